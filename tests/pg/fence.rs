//! The locks and the epoch, as several instances see them.

use super::server::Database;
use super::{batch, eventually};
use flashsale::domain::RecordKind::Hold;
use flashsale::ledger::{Append, Epoch, Fence, LedgerError};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_millis(100);

#[test]
fn one_raises_and_all_see_it() {
    let database = Database::new();
    let (mut one, mut two) = (database.ledger(), database.ledger());
    one.set_identity(1, "run a").unwrap();
    assert_eq!(two.epoch().unwrap().identity, "run a");
    let results: Vec<_> = std::thread::scope(|scope| {
        let both: Vec<_> = [&mut one, &mut two].map(|ledger| scope.spawn(|| ledger.raise(1, 2))).into_iter().collect();
        both.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(results.iter().filter(|r| matches!(r, Err(LedgerError::Stale { current: 2 }))).count(), 1);
    let epoch = one.epoch().unwrap();
    assert_eq!((epoch.number, epoch.identity.as_str()), (2, ""));
    // What is being closed forgets its Redis, and can still be written under.
    two.raise(2, 9).unwrap();
    two.set_identity(9, "run b").unwrap();
    one.announce_closing(9).unwrap();
    assert_eq!(two.epoch().unwrap(), Epoch { number: 9, identity: String::new() });
    assert!(matches!(one.announce_closing(8), Err(LedgerError::Stale { current: 9 })));
    assert!(matches!(one.raise(9, 9), Err(LedgerError::Stale { current: 9 })), "never to itself, nor back");
    database.append().append(&[&batch(9, Hold, [0])]).unwrap();
    assert!(one.join(1 << 31).unwrap_err().to_string().contains("beyond 31 bits"));
}

#[test]
fn draining_waits_for_members() {
    let database = Database::new();
    let (mut one, mut two, mut three) = (database.ledger(), database.ledger(), database.ledger());
    assert!(!one.is_member());
    one.join(1).unwrap();
    two.join(1).unwrap();
    assert!(one.is_member() && two.is_member());
    assert!(!three.drain(1, SOON).unwrap());
    assert!(!three.drain(2, SOON).unwrap(), "those of an older epoch count too");
    one.leave().unwrap();
    assert!(!one.is_member());
    assert!(!three.drain(1, SOON).unwrap());
    // Joining another epoch lets go of the first.
    two.join(2).unwrap();
    assert!(three.drain(1, SOON).unwrap());
    assert!(!three.drain(2, SOON).unwrap());
    // A dead instance's lock goes with its session.
    drop(two);
    assert!(three.drain(2, Duration::from_secs(5)).unwrap());
    one.join(2).unwrap();
    let ends = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 2
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    database.client().execute(ends, &[]).unwrap();
    eventually("the member notices", || !one.is_member());
    assert!(three.drain(2, SOON).unwrap());
}

#[test]
fn draining_does_not_stop_the_writers() {
    let database = Database::new();
    let (mut append, mut member) = (database.append(), database.ledger());
    member.join(1).unwrap();
    append.append(&[&batch(1, Hold, [0])]).unwrap();
    std::thread::scope(|scope| {
        let drainer = scope.spawn(|| database.ledger().drain(1, Duration::from_secs(4)).unwrap());
        let began = Instant::now();
        for number in 1..100 {
            append.append(&[&batch(1, Hold, [number])]).unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        member.leave().unwrap();
        assert!(drainer.join().unwrap());
    });
}

#[test]
fn a_writers_transaction_is_waited_for() {
    let database = Database::new();
    let mut ledger = database.ledger();
    drop(database.append());
    let mut writer = database.client();
    // What a writer's transaction begins with.
    let mut transaction = writer.transaction().unwrap();
    transaction.batch_execute(&format!("SELECT pg_advisory_xact_lock_shared({}, 1)", 0x6673_0002)).unwrap();
    ledger.raise(1, 2).unwrap();
    assert!(!ledger.drain(1, SOON).unwrap());
    transaction.commit().unwrap();
    assert!(ledger.drain(1, SOON).unwrap());
}

#[test]
fn one_opens_at_a_time() {
    let database = Database::new();
    let (mut one, mut two) = (database.ledger(), database.ledger());
    assert!(one.still_opening().is_err());
    assert!(one.lock_opening(SOON, false).unwrap());
    assert!(one.lock_opening(SOON, false).unwrap());
    assert!(!two.lock_opening(Duration::ZERO, false).unwrap());
    assert!(!two.lock_opening(SOON, false).unwrap());
    one.still_opening().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| two.lock_opening(Duration::from_secs(5), false).unwrap());
        one.unlock_opening();
        assert!(waiting.join().unwrap());
    });
    assert!(one.still_opening().is_err());
    assert!(!one.lock_opening(SOON, false).unwrap());
    two.unlock_opening();
    assert!(one.lock_opening(SOON, false).unwrap());
}

#[test]
fn an_idle_opener_loses_the_lock() {
    let database = Database::new();
    let (mut one, mut two) = (database.ledger(), database.ledger());
    assert!(one.lock_opening(SOON, false).unwrap());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        // An opener that makes calls keeps the lock.
        one.still_opening().unwrap();
        std::thread::sleep(Duration::from_millis(500));
    }
    let began = Instant::now();
    assert!(two.lock_opening(Duration::from_secs(8), false).unwrap());
    assert!(began.elapsed() > Duration::from_secs(2) && began.elapsed() < Duration::from_secs(6));
    let why = one.still_opening().unwrap_err().to_string();
    assert!(!why.contains('\n'), "{why}");
    two.still_opening().unwrap();
}

#[test]
fn who_does_not_let_go_is_evicted() {
    let database = Database::new();
    let (mut member, mut opener) = (database.ledger(), database.ledger());
    let mut append = database.append();
    append.append(&[&batch(1, Hold, [0])]).unwrap();
    member.join(1).unwrap();
    // A writer that froze in the midst of a transaction, with a row that would block the same one of others.
    let mut frozen = database.client();
    let begin = format!(
        "BEGIN; SELECT pg_advisory_xact_lock_shared({}, 1);
         INSERT INTO ledger_holds SELECT sale_id, 7, code, user_id, item_id, created_at, expires_at FROM ledger_holds",
        0x6673_0002
    );
    frozen.batch_execute(&begin).unwrap();
    opener.join(2).unwrap();
    opener.raise(1, 2).unwrap();
    assert!(!opener.drain(1, SOON).unwrap());
    assert_eq!(opener.evict(1).unwrap(), 2);
    assert!(opener.drain(1, Duration::from_secs(5)).unwrap());
    assert!(frozen.batch_execute("COMMIT").is_err(), "what was not committed never will be");
    assert!(!member.is_member());
    assert!(opener.is_member(), "those of another epoch stay");
    assert_eq!(opener.evict(1).unwrap(), 0);
    assert_eq!(database.client().query("SELECT 1 FROM ledger_holds WHERE hold = 7", &[]).unwrap().len(), 0);
}

#[test]
fn an_epoch_is_opened_on_one_redis() {
    let database = Database::new();
    let mut one = database.ledger();
    one.set_identity(1, "run a").unwrap();
    one.set_identity(1, "run a").unwrap();
    assert!(matches!(one.set_identity(1, "run b"), Err(LedgerError::Stale { current: 1 })));
    assert_eq!(one.epoch().unwrap().identity, "run a");
}

#[test]
fn an_instance_that_joins_again_is_no_other_member() {
    let database = Database::new();
    let (mut one, mut two) = (database.ledger(), database.ledger());
    one.join(1).unwrap();
    two.join(1).unwrap();
    let (others, ours) = (one.members(1).unwrap(), two.members(1).unwrap());
    assert_eq!((others.len(), ours.len()), (1, 1), "{others:?} {ours:?}");
    database.client().execute("SELECT pg_terminate_backend($1)", &[&ours[0]]).unwrap();
    eventually("the member notices", || !one.is_member());
    one.join(1).unwrap();
    assert_eq!(one.members(1).unwrap(), others);
    eventually("the others see the new session", || {
        let seen = two.members(1).unwrap();
        seen.len() == 1 && seen != ours
    });
}

#[test]
fn the_reconcilers_lock_that_is_lost_is_taken_again() {
    let database = Database::new();
    let mut ledger = database.ledger();
    assert!(ledger.lock_reconciling().unwrap());
    // As the server does where it has heard nothing for three seconds.
    let ends = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1718812675 AND objid = 2";
    assert_eq!(database.client().execute(ends, &[]).unwrap(), 1);
    assert!(!ledger.lock_reconciling().unwrap(), "not taken, and no failure");
    eventually("the lock", || ledger.lock_reconciling().unwrap());
}
