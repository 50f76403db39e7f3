//! The audit: what clients were told against what the ledger shows.
//!
//! A pure function of both finds the violations; [`check`] waits for the writer first. Refuses to know how the service
//! works: only what it promises.

use super::history::{Checkout, History, Redeemed, Told};
use super::ledger::{Attempt, Ledger, Rows};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

/// How long the ledger's writer may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(20);

/// What the sales were opened with.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// `SALE_ITEMS`.
    pub items: u64,
    /// `USER_LIMIT`.
    pub user_limit: u64,
    /// `SALE_SECONDS`.
    pub sale_seconds: u64,
    /// `HOLD_SECONDS`.
    pub hold_seconds: u64,
}

/// Waits until the ledger has what clients were told, and panics if anything does not fit. Returns the rows.
pub fn check(history: &History, ledger: &Ledger, terms: &Terms) -> Rows {
    let (checkouts, purchases) = (history.checkouts(), history.purchases());
    let deadline = std::time::Instant::now() + CATCH_UP;
    loop {
        let rows = ledger.rows();
        let found = violations(&checkouts, &purchases, &rows, terms);
        if found.is_empty() {
            return rows;
        }
        // What is missing may be on its way; what is wrong stays wrong until the deadline.
        if std::time::Instant::now() > deadline {
            let shown: Vec<_> = found.iter().take(20).cloned().collect();
            panic!("{} violations, such as:\n{}", found.len(), shown.join("\n"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// All that does not fit, in words.
pub fn violations(checkouts: &[Checkout], purchases: &[Redeemed], rows: &Rows, terms: &Terms) -> Vec<String> {
    let mut found = Vec::new();
    checkouts_have_rows(checkouts, rows, &mut found);
    purchases_have_rows(purchases, rows, &mut found);
    tables_agree(rows, terms, &mut found);
    limits_hold(rows, terms, &mut found);
    found
}

/// Each granted checkout has its row; each further row is of an answer that got lost on the way.
fn checkouts_have_rows(checkouts: &[Checkout], rows: &Rows, found: &mut Vec<String>) {
    let by_code: HashMap<&str, &Attempt> = unique(rows.attempts.iter().map(|a| (a.code.as_str(), a)), found);
    let mut told = HashSet::new();
    let mut lost: HashMap<(&str, &str), u64> = HashMap::new();
    for checkout in checkouts {
        match &checkout.told {
            Told::Granted(code) => {
                if !told.insert(code.as_str()) {
                    found.push(format!("the code {code} was given twice"));
                }
                match by_code.get(code.as_str()) {
                    None => found.push(format!("no row of the granted {checkout:?}")),
                    Some(row) if (&row.user, &row.item) != (&checkout.user, &checkout.item) => {
                        found.push(format!("{row:?} does not say what {checkout:?} says"));
                    }
                    Some(_) => {}
                }
            }
            Told::Lost(_) => *lost.entry((&checkout.user, &checkout.item)).or_default() += 1,
            Told::Already(_) | Told::Refused(..) => {}
        }
    }
    for row in rows.attempts.iter().filter(|row| !told.contains(row.code.as_str())) {
        match lost.get_mut(&(row.user.as_str(), row.item.as_str())) {
            Some(count) if *count > 0 => *count -= 1,
            _ => found.push(format!("nobody asked for {row:?}")),
        }
    }
}

/// Each purchase that a client knows of has its row; each further row is of an answer that got lost on the way.
fn purchases_have_rows(purchases: &[Redeemed], rows: &Rows, found: &mut Vec<String>) {
    let by_code: HashMap<&str, _> = unique(rows.purchases.iter().map(|p| (p.code.as_str(), p)), found);
    let mut granted = HashSet::new();
    let mut known = HashSet::new();
    for purchase in purchases {
        let code = purchase.code.as_str();
        let item = match &purchase.told {
            Told::Granted(item) => {
                if !granted.insert(code) {
                    found.push(format!("{code} was redeemed twice"));
                }
                item
            }
            Told::Already(item) => item,
            Told::Lost(_) => {
                known.insert(code);
                continue;
            }
            Told::Refused(..) => continue,
        };
        known.insert(code);
        match by_code.get(code) {
            None => found.push(format!("no row of {purchase:?}")),
            Some(row) if &row.item != item => found.push(format!("{row:?} does not say what {purchase:?} says")),
            Some(_) => {}
        }
    }
    for row in rows.purchases.iter().filter(|row| !known.contains(row.code.as_str())) {
        found.push(format!("nobody asked for {row:?}"));
    }
}

/// A purchase has its checkout, and what stands in both tables is the same; times lie within their sale.
fn tables_agree(rows: &Rows, terms: &Terms, found: &mut Vec<String>) {
    let attempts: HashMap<&str, &Attempt> = rows.attempts.iter().map(|a| (a.code.as_str(), a)).collect();
    let purchased: HashSet<&str> = rows.purchases.iter().map(|p| p.code.as_str()).collect();
    for p in &rows.purchases {
        match attempts.get(p.code.as_str()) {
            None => found.push(format!("no checkout of {p:?}")),
            Some(a) if (&a.user, &a.item, a.sale) != (&p.user, &p.item, p.sale) => {
                found.push(format!("{a:?} and {p:?} differ"));
            }
            Some(a) if p.at_ms < a.at_ms || p.at_ms >= a.at_ms + terms.hold_seconds * 1000 => {
                found.push(format!("{p:?} was redeemed outside the hold {a:?}"));
            }
            Some(_) => {}
        }
        in_its_sale(p, p.sale, p.at_ms, terms, found);
    }
    for a in &rows.attempts {
        if a.used != purchased.contains(a.code.as_str()) {
            found.push(format!("{a:?} has the wrong word in `used`"));
        }
        in_its_sale(a, a.sale, a.at_ms, terms, found);
    }
}

fn in_its_sale(row: &impl Debug, sale: u64, at_ms: u64, terms: &Terms, found: &mut Vec<String>) {
    let window = sale * 1000..(sale + terms.sale_seconds) * 1000;
    if !sale.is_multiple_of(terms.sale_seconds) || !window.contains(&at_ms) {
        found.push(format!("{row:?} is not of its sale"));
    }
}

/// At no moment are more items held and purchased than there are, or more by one user than he may.
fn limits_hold(rows: &Rows, terms: &Terms, found: &mut Vec<String>) {
    let purchased: HashSet<&str> = rows.purchases.iter().map(|p| p.code.as_str()).collect();
    // Moments in order; at the same one, what is given back comes first.
    let mut sales: BTreeMap<u64, Vec<(u64, i64, &str)>> = BTreeMap::new();
    for a in &rows.attempts {
        let moments = sales.entry(a.sale).or_default();
        moments.push((a.at_ms, 1, &a.user));
        if !purchased.contains(a.code.as_str()) {
            moments.push((a.at_ms + terms.hold_seconds * 1000, -1, &a.user));
        }
    }
    for (sale, mut moments) in sales {
        moments.sort_unstable();
        let (mut taken, mut most) = (0, 0);
        let mut users: HashMap<&str, i64> = HashMap::new();
        let mut greedy = HashSet::new();
        for (_, change, user) in moments {
            taken += change;
            most = most.max(taken);
            let count = users.entry(user).or_default();
            *count += change;
            if *count > terms.user_limit.cast_signed() {
                greedy.insert(user);
            }
        }
        if most > terms.items.cast_signed() {
            found.push(format!("sale {sale}: {most} of {} items were taken at once", terms.items));
        }
        found.extend(greedy.into_iter().map(|user| format!("sale {sale}: {user} had more than he may")));
    }
}

/// Codes that were granted here, were refused before their time was over, and had not been redeemed: in words. Only a code
/// whose hold was lost for good may be.
pub fn refused_good_codes(history: &History) -> Vec<String> {
    let expires: HashMap<String, u64> = history
        .checkouts()
        .into_iter()
        .filter_map(|checkout| match checkout.told {
            Told::Granted(code) => Some((code, checkout.expires_at)),
            _ => None,
        })
        .collect();
    let is_good = |p: &Redeemed| expires.get(&p.code).is_some_and(|expires_at| p.at < *expires_at as f64);
    let refused = |p: &Redeemed| matches!(p.told, Told::Refused(..)) && is_good(p);
    history.purchases().iter().filter(|p| refused(p)).map(|p| format!("a good code was refused: {p:?}")).collect()
}

/// A map of `pairs`, each key of which must be there once.
fn unique<K: Eq + Hash + Copy + Debug, V>(
    pairs: impl Iterator<Item = (K, V)>,
    found: &mut Vec<String>,
) -> HashMap<K, V> {
    let mut map = HashMap::new();
    for (key, value) in pairs {
        if map.insert(key, value).is_some() {
            found.push(format!("two rows of {key:?}"));
        }
    }
    map
}
