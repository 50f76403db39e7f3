//! Environment variables that are nearly one of ours.
//!
//! A variable with a misspelt name is never read, and the setting silently keeps its default. Owns the comparison of
//! names. Invariant: a variable that usual programs set (`PORT`, `LOGNAME`, `POSTGRES_DB`) is not taken for a misspelt
//! one. Leaves the list of our names to its caller.

/// Names of fewer letters are compared without tolerance: `LOGS` may well be another program's.
const MIN_LETTERS: usize = 5;

/// Each name in `there` that is nearly one of `ours`, but none of them, with that one.
pub fn misspelt<'a>(ours: &[&'a str], there: impl Iterator<Item = String>) -> Vec<(String, &'a str)> {
    let strange = there.filter(|name| !ours.contains(&name.as_str()));
    let pairs =
        strange.filter_map(|name| ours.iter().copied().find(|ours| is_near(ours, &name)).map(|ours| (name, ours)));
    pairs.collect()
}

fn is_near(ours: &str, name: &str) -> bool {
    let ours = letters(ours);
    let name = letters(name);
    if ours.len() < MIN_LETTERS { ours == name } else { within_one_edit(&ours, &name) }
}

/// A name without its case and its separators, and with the usual short form of "address".
fn letters(name: &str) -> Vec<char> {
    let letters: String = name.to_ascii_uppercase().chars().filter(|c| !matches!(c, '_' | '-' | '.')).collect();
    letters.replace("ADDRESS", "ADDR").chars().collect()
}

/// Whether `b` is `a` with at most one letter more, one less, one replaced, or two neighbours swapped.
fn within_one_edit(a: &[char], b: &[char]) -> bool {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let a = a.get(same..).unwrap_or_default();
    let b = b.get(same..).unwrap_or_default();
    match (a, b) {
        ([], []) => true,
        ([_, rest_a @ ..], [_, rest_b @ ..]) if rest_a == rest_b || rest_a == b || a == rest_b => true,
        ([a1, a2, rest_a @ ..], [b1, b2, rest_b @ ..]) => (a1, a2) == (b2, b1) && rest_a == rest_b,
        ([_], []) | ([], [_]) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_edit() {
        let check = |name: &str, want: bool| {
            let found = misspelt(&["SALE_ITEMS", "LOG"], [name.to_owned()].into_iter());
            assert_eq!(!found.is_empty(), want, "{name}: {found:?}");
        };
        let near =
            ["SALE_ITEM", "ALE_ITEMS", "SALE_TIEMS", "SALES_ITEMS", "SALE_ITEMZ", "SALEITEMS", "sale-items", "log"];
        near.into_iter().for_each(|name| check(name, true));
        let far = [
            "SALE_ITEMS",
            "LOG",
            "SALE_ITE",
            "SALE",
            "SALE_TIMES",
            "ITEMS",
            "",
            "LO",
            "LOGS",
            "BLOG",
            "SALE_ITEMS_MAX",
        ];
        far.into_iter().for_each(|name| check(name, false));
    }
}
