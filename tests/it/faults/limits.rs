//! The user's limit holds on record, whichever way a purchase comes into the ledger.

use super::*;
use crate::support::servers::{Mode, Stack};

/// Users who each buy one item at two instances that do not know of each other.
const USERS: usize = 10;

#[test]
fn late_purchases_of_an_ended_sale_keep_the_users_limit() {
    let mut stack = Stack::new(Mode::Distributed);
    let sale_seconds = clock::sale_seconds_ending_in(12..15);
    let terms = Terms { items: 300, user_limit: 1, sale_seconds, hold_seconds: 60 };
    let history = History::default();
    let sale = clock::sale(terms.sale_seconds);
    let (postgres, far, near) = far_and_near(&mut stack, &terms);
    let buy_at = |addr: SocketAddr| {
        for nth in 0..USERS {
            ask(addr, &history, |shopper| {
                let told = decided(|| shopper.checkout(&format!("user {nth}"), "i")).0;
                let Told::Granted(code) = told else { panic!("user {nth}: {told:?}") };
                assert!(matches!(decided(|| shopper.purchase(&code)).0, Told::Granted(_)));
            });
        }
    };
    postgres.hold(true);
    buy_at(far.addr());
    stack.redis().wipe();
    sells_at(near.addr(), &history);
    // Neither Redis nor the ledger knows of the first ten purchases.
    buy_at(near.addr());
    let end = sale + terms.sale_seconds;
    poll("the sale's end", Duration::from_secs(25), || (clock::now() > end as f64 + 0.5).then_some(()));
    postgres.hold(false);
    far.says("late records are settled", GOING_ON * 3);
    let mut client = stack.postgres().client();
    let mut count = |sql: &str| client.query_one(sql, &[&sale.cast_signed()]).unwrap().get::<_, i64>(0);
    let late = "SELECT count(*) FROM quarantined_records WHERE kind = 'purchase' AND sale_id = $1";
    let sold = "SELECT count(*) FROM purchases WHERE sale_id = $1 AND user_id LIKE 'user %'";
    poll("all late purchases", GOING_ON * 2, || (count(late) + count(sold) == 2 * USERS as i64).then_some(()));
    let most = "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM purchases WHERE sale_id = $1 \
        GROUP BY user_id) AS users";
    assert_eq!(count(most), 1, "the most purchases of a user on record");
    assert_eq!(count(late), USERS as i64, "what a user had bought beyond his limit is in quarantine");
}
