//! Hostile ids and files against the catalogue.

use super::*;
use crate::http::query::decode_segment;
use proptest::prelude::*;
use std::collections::HashSet;
use std::io::Write;

const ODD: [&str; 16] = [
    "sku-1",
    "<script>alert(1)</script>",
    "a\"b'c\\d",
    "../../etc/passwd",
    "..",
    "\u{1f600}\u{1f381}",
    "100%",
    "%2e%2e",
    "a+b c",
    "a&b;c&amp;",
    "]]>",
    "-->",
    "\u{2028}\u{2029}",
    "\u{fffe}",
    " ",
    "0123456789012345678901234567890123456789012345678901234567890123",
];

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

/// The three fields that a purchase's answer would carry, read back by another parser.
fn fields(catalog: &Catalog, id: &Id) -> [String; 3] {
    let mut out = b"{".to_vec();
    catalog.write_json_fields(id, &mut out);
    out.push(b'}');
    let text = String::from_utf8(out).unwrap();
    assert!(!text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{text}");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
    ["item_id", "item_name", "item_image"].map(|key| value[key].as_str().unwrap().to_owned())
}

fn check_generated(text: &str) {
    let id = id(text);
    let catalog = Catalog::generated();
    let [item_id, name, image] = fields(&catalog, &id);
    assert_eq!(item_id, text);
    assert_eq!(name, catalog.name(&id));
    assert!(catalog.knows(&id));
    let segment = image.strip_prefix("/items/").and_then(|rest| rest.strip_suffix(".svg")).unwrap();
    assert!(!segment.contains(['/', '?', '#', '+', '"']), "{image}");
    assert_eq!(decode_segment(segment), Ok(id));

    let picture = svg(&id, &name);
    assert!(!picture.contains("<script"), "{picture}");
    let document = roxmltree::Document::parse(&picture).unwrap_or_else(|error| panic!("{text:?}: {error}\n{picture}"));
    let shown = |tag: &str| document.descendants().filter(|n| n.has_tag_name(tag)).filter_map(|n| n.text()).next();
    assert_eq!(shown("title").unwrap(), name.replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}"));
    let allowed = [
        "svg",
        "title",
        "defs",
        "linearGradient",
        "stop",
        "clipPath",
        "g",
        "rect",
        "circle",
        "ellipse",
        "path",
        "text",
    ];
    for node in document.descendants().filter(|node| node.is_element()) {
        assert!(allowed.contains(&node.tag_name().name()), "{:?}", node.tag_name());
        assert!(node.attributes().all(|a| !a.name().starts_with("on") && !a.name().contains("href")));
    }
}

#[test]
fn odd_ids() {
    ODD.into_iter().for_each(check_generated);
}

proptest! {
    #[test]
    fn any_id(text in "\\PC{1,16}") {
        prop_assume!(text.parse::<Id>().is_ok());
        check_generated(&text);
    }
}

#[test]
fn generated_fields_are_for_ever() {
    let check = |text: &str, name: &str, image: &str| {
        let catalog = Catalog::generated();
        assert_eq!(fields(&catalog, &id(text)), [text, name, image].map(str::to_owned));
    };
    check("1", "Coastal Headphones (1)", "/items/1.svg");
    check("sku-42", "Gentle Coffee Mug (sku-42)", "/items/sku-42.svg");
    check("a/b \u{e9}", "Electric Mug (a/b é)", "/items/a%2Fb%20%C3%A9.svg");
    check(
        "an-id-that-is-longer-than-fits",
        "Electric Gift Box (an-id-that-is-longer…)",
        "/items/an-id-that-is-longer-than-fits.svg",
    );
}

#[test]
fn names_and_pictures_vary() {
    let ids: Vec<Id> = (0..200).map(|n| id(&n.to_string())).collect();
    let catalog = Catalog::generated();
    let first_words = |id: &Id| catalog.name(id).split(" (").next().unwrap().to_owned();
    assert!(ids.iter().map(first_words).collect::<HashSet<_>>().len() > 120);
    assert_eq!(ids.iter().map(|id| svg(id, "same")).collect::<HashSet<_>>().len(), ids.len());
    assert_eq!(svg(&ids[7], "same"), svg(&ids[7], "same"));
}

/// A file of `text`, as a catalogue.
fn load(text: &[u8]) -> Result<Catalog, CatalogError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    Catalog::from_file(file.path())
}

/// What is said of a file of `text`, behind the name of the file.
fn refusal(text: &[u8]) -> String {
    let error = load(text).unwrap_err();
    let said = error.to_string();
    said.strip_prefix(&error.path.display().to_string()).unwrap_or_else(|| panic!("{said} does not name it")).to_owned()
}

#[test]
fn a_file_names_its_items() {
    let name = "B\u{fc}cher </script> & \"more\" \u{2028}";
    let one = serde_json::json!({"id": "a", "name": name, "image": "https://x/?a=1&b=2"});
    let text = format!("\n{one}\r\n  \n{{\"image\":\"/b.png\",\"id\":\"b \\u00e9\",\"name\":\"B\"}}");
    let catalog = load(text.as_bytes()).unwrap();
    assert_eq!(fields(&catalog, &id("a")), ["a", name, "https://x/?a=1&b=2"].map(str::to_owned));
    assert_eq!(fields(&catalog, &id("b \u{e9}")), ["b \u{e9}", "B", "/b.png"].map(str::to_owned));
    assert_eq!(catalog.name(&id("a")), name);
    assert!(catalog.knows(&id("a")) && !catalog.knows(&id("A")));
    // Bought before the file was changed: no worse off than without a file.
    assert_eq!(fields(&catalog, &id("c")), fields(&Catalog::generated(), &id("c")));
    for odd in ODD {
        let catalog = load(serde_json::json!({"id": odd, "name": "n", "image": "/"}).to_string().as_bytes()).unwrap();
        assert_eq!(fields(&catalog, &id(odd)), [odd, "n", "/"].map(str::to_owned));
    }
}

#[test]
fn files_that_stop_the_start() {
    let check = |text: &str, want: &str| assert_eq!(refusal(text.as_bytes()), want, "{text:?}");
    let item =
        |id: &str, name: &str, image: &str| serde_json::json!({"id": id, "name": name, "image": image}).to_string();
    let good = item("a", "A", "/a");
    check("", ": there are no items");
    check("\n \r\n", ": there are no items");
    check(&format!("{good}\n\n{good}"), ", line 3: id \"a\" is given twice");
    check(&format!("{good}\n[\"b\",\"B\",\"/b\"]"), ", line 2: is not a JSON object");
    check("\u{feff}{}", ", line 1: missing field `id` (column 2)");
    check("{\"id\":\"a\",\"name\":\"A\"}", ", line 1: missing field `image` (column 21)");
    check(
        "{\"id\":\"a\",\"name\":\"A\",\"image\":\"/\",\"price\":1}",
        ", line 1: unknown field `price`, expected one of `id`, `name`, `image` (column 40)",
    );
    check("{\"id\":\"a\",\"id\":\"b\",\"name\":\"A\",\"image\":\"/\"}", ", line 1: duplicate field `id` (column 14)");
    check(
        "{\"id\":1,\"name\":\"A\",\"image\":\"/\"}",
        ", line 1: invalid type: integer `1`, expected a string (column 7)",
    );
    check(&format!("{good}{good}"), ", line 1: trailing characters (column 35)");
    check("{\"id\":\"a\",\n\"name\":\"A\",\"image\":\"/\"}", ", line 1: EOF while parsing a value (column 10)");
    check(&item("", "A", "/"), ", line 1: id is empty");
    check(&item(&"x".repeat(65), "A", "/"), ", line 1: id is longer than 64 bytes");
    check(&item("a\n", "A", "/"), ", line 1: id has a control character");
    check(&item("a", "", "/"), ", line 1: name is empty");
    check(&item("a", " ", "/"), ", line 1: name is empty");
    check(&item("a", &"\u{e9}".repeat(201), "/"), ", line 1: name is longer than 200 characters");
    check(&item("a", "A\tB", "/"), ", line 1: name has a control character");
    check(&item("a", "A", ""), ", line 1: image is empty");
    check(&item("a", "A", &format!("/{}", "x".repeat(2048))), ", line 1: image is longer than 2048 bytes");
    check(&item("a", "A", "/\u{85}"), ", line 1: image has a control character");
    for image in ["a.png", "javascript:alert(1)", "data:image/png;base64,", "HTTP://x", " /a", "http:/x"] {
        check(&item("a", "A", image), ", line 1: image does not start with http://, https:// or /");
    }
    let longest = item(&"x".repeat(64), &"\u{e9}".repeat(200), &format!("/{}", "x".repeat(2047)));
    assert!(load(longest.as_bytes()).is_ok());
    let not_utf8 = refusal(b"{\"id\":\"\xff\",\"name\":\"A\",\"image\":\"/\"}");
    assert!(not_utf8.starts_with(", line 1: invalid unicode"), "{not_utf8}");
    let absent = Catalog::from_file("/nonexistent/items.jsonl").unwrap_err().to_string();
    assert!(absent.starts_with("/nonexistent/items.jsonl: cannot be opened: "), "{absent}");
    let folder = Catalog::from_file("/").unwrap_err().to_string();
    assert!(folder.starts_with("/: cannot be read: "), "{folder}");
}

#[test]
fn a_file_that_is_too_large() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(MAX_FILE_BYTES + 1).unwrap();
    let said = Catalog::from_file(file.path()).unwrap_err().to_string();
    assert!(said.ends_with(": is larger than 64 MiB"), "{said}");
}

#[test]
fn encodings_of_a_file() {
    let text = "{\"id\":\"a\",\"name\":\"A\",\"image\":\"/a.png\"}\n";
    let with_mark = load(format!("\u{feff}{text}").as_bytes()).unwrap();
    assert_eq!(with_mark.name(&id("a")), "A", "a byte order mark of UTF-8 is skipped");
    assert!(refusal(format!("{text}\u{feff}{text}").as_bytes()).contains("JSON object"), "only at the start");
    let units = |mark: &str| -> Vec<u16> { format!("{mark}{text}").encode_utf16().collect() };
    for mark in ["", "\u{feff}"] {
        let little: Vec<u8> = units(mark).into_iter().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = units(mark).into_iter().flat_map(u16::to_be_bytes).collect();
        for bytes in [little, big] {
            let problem = refusal(&bytes);
            assert!(problem.contains("UTF-16") && problem.contains("UTF-8"), "{mark:?} {problem}");
        }
    }
    assert!(refusal("\u{feff}".as_bytes()).contains("no items"));
}
