//! No two files of `src/` import each other, directly or by way of others.
//!
//! An import is a path that begins with `crate`, `super`, `self` or the name of a child module, in a `use` line or in the code. A
//! name that a module re-exports (`pub use child::Name`) belongs to the file that defines it: the parent only gives it a second
//! path, and imports the child only if its own code uses the name too. Left out are tests, and `main.rs` and `lib.rs`, which
//! nothing imports.

use crate::docs::{root, sources};
use std::collections::{BTreeMap, BTreeSet};

/// A module's path from the crate's root, `["inventory", "redis"]` for example.
type Module = Vec<String>;

/// A path in a module's code, from the crate's root.
struct Import {
    path: Vec<String>,
    is_public: bool,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A file's code without comments and tests.
fn code(text: &str) -> String {
    let text = text.split("\nmod tests {").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The path at the start of `text`; all that it stands for, if it ends in a group in braces.
fn paths(text: &str) -> Vec<Vec<String>> {
    let (segment, rest) = text.split_at(text.find(|c: char| !is_word(c)).unwrap_or(text.len()));
    let tails = match rest.strip_prefix("::") {
        Some(group) if group.starts_with('{') => {
            let (mut depth, mut members) = (0, Vec::new());
            for (at, c) in group.char_indices() {
                match c {
                    '{' | ',' if depth == usize::from(c == ',') => members.push(group[at + 1..].trim_start()),
                    '}' if depth == 1 => break,
                    _ => {}
                }
                depth = if c == '{' { depth + 1 } else { depth - usize::from(c == '}') };
            }
            members.into_iter().filter(|member| !member.starts_with('}')).flat_map(paths).collect()
        }
        Some(tail) => paths(tail),
        None => vec![Vec::new()],
    };
    tails.into_iter().map(|tail| [vec![segment.to_owned()], tail].concat()).collect()
}

/// The imports of `module`, whose code is `code`.
fn imports(code: &str, module: &Module, modules: &BTreeSet<Module>) -> Vec<Import> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("::") {
        let start = code[..at].rfind(|c: char| !is_word(c)).map_or(0, |before| before + 1);
        if start == at || code[..start].ends_with("::") {
            continue;
        }
        let line = code[..start].rsplit('\n').next().unwrap();
        let is_public = line.starts_with("pub") && line.ends_with("use ");
        for path in paths(&code[start..]) {
            let (mut base, mut rest) = (module.clone(), &path[..]);
            match path[0].as_str() {
                "crate" => (base, rest) = (Module::new(), &path[1..]),
                "self" => rest = &path[1..],
                "super" => {}
                _ if modules.contains(&[&module[..], &path[..1]].concat()) => {}
                _ => continue,
            }
            while rest.first().is_some_and(|segment| segment == "super") {
                base.pop();
                rest = &rest[1..];
            }
            found.push(Import { path: [&base[..], rest].concat(), is_public });
        }
    }
    found
}

/// The module that defines what `path` names.
fn owner(path: &[String], all: &BTreeMap<Module, Vec<Import>>) -> Option<Module> {
    let module = (1..=path.len()).rev().map(|length| &path[..length]).find(|start| all.contains_key(*start))?;
    let exports = |name| all[module].iter().find(|import| import.is_public && import.path.last() == Some(name));
    match path.get(module.len()).and_then(exports) {
        Some(exported) if exported.path != path => owner(&exported.path, all),
        _ => Some(module.to_vec()),
    }
}

/// The imports that are part of a circle, in words. `files` has the text of each module.
fn circles(files: &BTreeMap<Module, String>) -> BTreeSet<String> {
    let modules: BTreeSet<Module> = files.keys().cloned().collect();
    let codes: BTreeMap<&Module, String> = files.iter().map(|(module, text)| (module, code(text))).collect();
    let all: BTreeMap<Module, Vec<Import>> =
        codes.iter().map(|(module, code)| ((*module).clone(), imports(code, module, &modules))).collect();
    let mut edges: BTreeSet<(Module, Module)> = BTreeSet::new();
    for (module, imports) in &all {
        for import in imports {
            let Some(owner) = owner(&import.path, &all).filter(|owner| owner != module) else { continue };
            let mut words = codes[module].split(|c: char| !is_word(c));
            let name = import.path.last().unwrap();
            // The re-export is one place, its use another one.
            if !import.is_public
                || !owner.starts_with(module)
                || words.by_ref().filter(|word| *word == name.as_str()).count() > 1
            {
                edges.insert((module.clone(), owner));
            }
        }
    }
    // What nothing leads to, or what leads to nothing, is part of no circle.
    loop {
        let before = edges.len();
        let (from, to): (BTreeSet<Module>, BTreeSet<Module>) = edges.iter().cloned().unzip();
        edges.retain(|(module, owner)| to.contains(module) && from.contains(owner));
        if edges.len() == before {
            break;
        }
    }
    edges.iter().map(|(module, owner)| format!("{} imports {}", module.join("/"), owner.join("/"))).collect()
}

#[test]
fn files_do_not_import_each_other() {
    let src = root().join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    let mut files = BTreeMap::new();
    for path in found {
        let name = path.strip_prefix(&src).unwrap().with_extension("");
        let mut module: Module = name.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        module.pop_if(|last| last == "mod");
        let last = module.last().unwrap();
        if !last.ends_with("tests") && !["testing", "main", "lib"].contains(&last.as_str()) {
            files.insert(module, std::fs::read_to_string(path).unwrap());
        }
    }
    assert!(files.len() > 100, "{}", files.len());
    assert_eq!(circles(&files), BTreeSet::new());
}

#[test]
fn circles_are_found() {
    let check = |files: &[(&str, &str)], want: &[&str]| {
        let module = |name: &str| name.split('/').map(str::to_owned).collect::<Module>();
        let files = files.iter().map(|(name, text)| (module(name), (*text).to_owned())).collect();
        assert_eq!(circles(&files).iter().map(String::as_str).collect::<Vec<_>>(), want);
    };
    let both = ["a imports b", "b imports a"];
    check(&[("a", "use crate::b::B;"), ("b", "use crate::a;")], &both);
    check(&[("a", "use crate::{c, b::{C, B}};"), ("b", "fn f(x: super::a::A) {}"), ("c", "")], &both);
    check(&[("a", "use crate::b::B;"), ("b", "// use crate::a;\nmod tests {\n use crate::a; }")], &[]);
    let three = ["a imports b", "b imports c", "c imports a"];
    check(
        &[("a", "use crate::b::B;"), ("b", "use crate::c::C;"), ("c", "use crate::a::A;"), ("d", "use crate::a;")],
        &three,
    );
    // A parent that gives its children's names a second path.
    let child = ("a/x", "use super::{\n    A, Y,\n};");
    check(&[("a", "pub use x::X;\npub use y::Y;\nstruct A;"), child, ("a/y", "struct Y;")], &[]);
    let own = "pub use x::X;\npub use y::Y;\nstruct A(X);";
    check(&[("a", own), child, ("a/y", "")], &["a imports a/x", "a/x imports a"]);
    check(
        &[("a", "pub use y::Y;"), ("a/x", "use super::Y;"), ("a/y", "use super::x::X;")],
        &["a/x imports a/y", "a/y imports a/x"],
    );
}
