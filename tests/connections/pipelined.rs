//! Many requests of one connection at once.

use crate::http::Client;
use crate::scripted::{Asked, DEADLINE, Place, answer_all, poll, while_worker_stands_still};
use std::time::{Duration, Instant};

/// As many as a connection has open at once.
const MAX_OPEN: usize = 64;

fn place() -> Place {
    Place::new(DEADLINE)
}

fn post(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: h\r\n\r\n")
}

fn posts(paths: &[&str]) -> String {
    paths.iter().map(|path| post(path)).collect()
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("/later/{n}")).collect()
}

/// The bodies of the next `count` answers, all of them 200.
fn bodies(client: &mut Client, count: usize) -> Vec<String> {
    let body = |n| {
        let answer = client.receive().unwrap_or_else(|e| panic!("answer {n}: {e}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    };
    (0..count).map(body).collect()
}

fn paths(asked: &[Asked]) -> Vec<&str> {
    asked.iter().map(|one| one.path.as_str()).collect()
}

#[test]
fn many_are_open_at_once_up_to_a_bound() {
    let place = place();
    let mut client = place.sent(&numbered(0..70).iter().map(|path| post(path)).collect::<String>());
    let asked = place.service.waiting(MAX_OPEN);
    assert_eq!(paths(&asked), numbered(0..MAX_OPEN), "no more are begun before these are answered");
    answer_all(asked);
    assert_eq!(bodies(&mut client, MAX_OPEN), numbered(0..MAX_OPEN));
    let rest = place.service.waiting(70 - MAX_OPEN);
    answer_all(rest);
    assert_eq!(bodies(&mut client, 70 - MAX_OPEN), numbered(MAX_OPEN..70));
    // One at a time goes on as before.
    client.send(post("/now/last").as_bytes()).unwrap();
    assert_eq!(bodies(&mut client, 1), ["/now/last"]);
}

#[test]
fn long_requests_are_open_at_once_too() {
    let place = place();
    let cookie = "x".repeat(600);
    let long = |path: &String| format!("POST {path} HTTP/1.1\r\nHost: h\r\nCookie: {cookie}\r\n\r\n");
    // Ten times the usual buffer, and more than its greatest size.
    let mut client = place.sent(&numbered(0..MAX_OPEN).iter().map(long).collect::<String>());
    let asked = place.service.waiting(MAX_OPEN);
    answer_all(asked);
    assert_eq!(bodies(&mut client, MAX_OPEN), numbered(0..MAX_OPEN));
}

#[test]
fn answers_come_in_the_order_of_their_requests() {
    let place = place();
    let order = ["/now/0", "/later/1", "/now/2", "/later/3", "/later/4", "/now/5"];
    let mut client = place.sent(&posts(&order));
    assert_eq!(bodies(&mut client, 1), ["/now/0"], "it waits for none behind it");
    let mut asked = place.service.waiting(3);
    assert_eq!(paths(&asked), ["/later/1", "/later/3", "/later/4"]);
    assert_eq!(place.service.begun(), order);
    asked.pop().unwrap().answer(None);
    asked.remove(0).answer(None);
    assert_eq!(bodies(&mut client, 2), ["/later/1", "/now/2"], "as far as answers are there");
    asked.remove(0).answer(None);
    assert_eq!(bodies(&mut client, 3), ["/later/3", "/later/4", "/now/5"]);
}

#[test]
fn other_methods_between() {
    let place = place();
    let head = "HEAD /now/1 HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut client = place.sent(&format!("{}{head}{}", post("/later/0"), post("/later/2")));
    answer_all(place.service.waiting(2));
    assert_eq!(bodies(&mut client, 1), ["/later/0"]);
    let told = client.receive_head().unwrap();
    assert_eq!((told.status, told.header("content-length")), (200, Some("6")), "a head without a body");
    assert_eq!(bodies(&mut client, 1), ["/later/2"]);
}

#[test]
fn nothing_is_begun_behind_the_last_request() {
    let place = place();
    for last in [
        "POST /later/1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        "POST /later/1 HTTP/1.0\r\n\r\n",
        "POST /now/1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    ] {
        let before = place.service.begun().len();
        let mut client = place.sent(&format!("{}{last}{}", post("/later/0"), post("/later/2")));
        let waits = 1 + usize::from(last.contains("later"));
        answer_all(place.service.waiting(waits));
        assert_eq!(bodies(&mut client, 2), ["/later/0", last.split(' ').nth(1).unwrap()]);
        assert!(client.is_closed());
        assert_eq!(place.service.begun().len() - before, 2, "{last:?}");
    }
}

#[test]
fn good_requests_before_a_malformed_one_are_answered() {
    let place = place();
    for bad in [
        "no request\r\n\r\n",
        "POST /later/x HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        "POST /later/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    ] {
        let mut client = place.sent(&format!("{}{}{bad}{}", post("/later/0"), post("/later/1"), post("/later/2")));
        let asked = place.service.waiting(2);
        assert_eq!(paths(&asked), ["/later/0", "/later/1"]);
        answer_all(asked);
        assert_eq!(bodies(&mut client, 2), ["/later/0", "/later/1"]);
        assert_eq!(client.receive().unwrap().status, 400, "{bad:?}");
        assert!(client.is_closed());
    }
    assert!(place.service.waiting(0).is_empty());
}

#[test]
fn requests_with_bodies() {
    let place = place();
    let with =
        |path: &str, framing: &str, body: &str| format!("POST {path} HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{body}");
    let hidden = post("/hidden");
    let sized = with("/later/0", &format!("Content-Length: {}", hidden.len()), &hidden);
    let chunked =
        with("/later/1", "Transfer-Encoding: chunked", &format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len()));
    let empty = with("/later/2", "Content-Length: 0", "");
    // The last one's body is missing: the others do not wait for it, and it is not begun.
    for (framing, begin, end) in
        [("Content-Length: 6", "abc", "def"), ("Transfer-Encoding: chunked", "3\r\nabc\r\n", "0\r\n\r\n")]
    {
        let before = place.service.begun().len();
        let all = format!("{sized}{chunked}{empty}{}{}", post("/later/3"), with("/later/4", framing, begin));
        let mut client = place.sent(&all);
        let asked = place.service.waiting(4);
        assert_eq!(paths(&asked), numbered(0..4));
        answer_all(asked);
        assert_eq!(bodies(&mut client, 4), numbered(0..4));
        assert_eq!(place.service.begun().len() - before, 4);
        while_worker_stands_still(|| client.send(format!("{end}{}", post("/later/5")).as_bytes()).unwrap());
        answer_all(place.service.waiting(2));
        assert_eq!(bodies(&mut client, 2), ["/later/4", "/later/5"]);
    }
    assert!(!place.service.begun().contains(&"/hidden".into()));
}

#[test]
fn continue_is_said_after_the_answers_before() {
    let place = place();
    let expecting = "POST /later/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    let mut client = place.sent(&format!("{}{expecting}", post("/later/0")));
    answer_all(place.service.waiting(1));
    assert_eq!(bodies(&mut client, 1), ["/later/0"]);
    assert_eq!(client.receive_head().unwrap().status, 100);
    while_worker_stands_still(|| client.send(format!("abc{}", post("/later/2")).as_bytes()).unwrap());
    answer_all(place.service.waiting(2));
    assert_eq!(bodies(&mut client, 2), ["/later/1", "/later/2"]);
}

#[test]
fn a_peer_that_ends_its_side_gets_all_answers() {
    let place = place();
    let mut client = place.client();
    while_worker_stands_still(|| {
        client.send(posts(&["/later/0", "/now/1", "/later/2"]).as_bytes()).unwrap();
        client.finish();
    });
    let mut asked = place.service.waiting(2);
    asked.pop().unwrap().answer(None);
    asked.pop().unwrap().answer(None);
    assert_eq!(bodies(&mut client, 3), ["/later/0", "/now/1", "/later/2"]);
    assert!(client.is_closed());
}

/// Each request has the same time, and they have it at the same time: one after the other would take minutes.
#[test]
fn all_open_requests_are_given_up_in_time() {
    let place = Place::new(Duration::from_secs(3));
    let mut client = place.sent(&numbered(0..MAX_OPEN).iter().map(|path| post(path)).collect::<String>());
    let begun = Instant::now();
    let mut late = place.service.waiting(MAX_OPEN);
    // One of them has its answer.
    late.remove(5).answer(None);
    for n in 0..MAX_OPEN {
        let answer = client.receive().unwrap_or_else(|e| panic!("answer {n}: {e}"));
        let want = if n == 5 { (200, "/later/5") } else { (503, "given up") };
        assert_eq!((answer.status, answer.text().as_str()), want, "answer {n}");
    }
    assert!(begun.elapsed() < DEADLINE, "one after the other: {:?}", begun.elapsed());
    // Answers that come now belong to no request.
    client.send(post("/later/next").as_bytes()).unwrap();
    let next = place.service.waiting(1).pop().unwrap();
    late.into_iter().for_each(|one| one.answer(Some("late")));
    next.answer(None);
    assert_eq!(bodies(&mut client, 1), ["/later/next"]);
}

/// A peer that sends on and reads nothing: the server begins what it can answer, and no more.
#[test]
fn a_peer_that_does_not_read_is_not_served_without_end() {
    const SENT: usize = 20_000;
    let place = place();
    let mut client = place.client();
    let requests = post("/big").repeat(SENT);
    std::thread::scope(|scope| {
        // The kernel may take all of it, whether the server reads it or not.
        scope.spawn(|| client.send(requests.as_bytes()));
        let mut answered = 0;
        let is_closed = || place.server.connections().open == 0;
        poll("the first requests", || !place.service.begun().is_empty());
        poll("the end", || {
            let asked = place.service.waiting(0);
            answered += asked.len();
            answer_all(asked);
            is_closed()
        });
        let begun = place.service.begun().len();
        // The kernel holds a few megabytes of answers.
        assert!(begun < SENT / 20, "{begun} of {SENT} were begun");
        assert!(begun <= answered + MAX_OPEN, "{begun} were begun, {answered} answered");
    });
}

/// A server that drains answers what was sent together, and closes the connection with the last answer.
#[test]
fn open_requests_are_answered_while_the_server_drains() {
    let place = place();
    let mut client = place.sent(&posts(&["/later/0", "/later/1", "/later/2"]));
    let mut asked = place.service.waiting(3);
    place.server.drain();
    asked.pop().unwrap().answer(None);
    asked.remove(0).answer(None);
    let answer = client.receive().unwrap();
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("/later/0", None));
    asked.remove(0).answer(None);
    let answer = client.receive().unwrap();
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("/later/1", None));
    let answer = client.receive().unwrap();
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("/later/2", Some("close")));
}

/// What many open requests needed is given back, once, when the connection has been idle.
#[test]
fn memory_is_given_back_when_the_connection_is_idle() {
    let place = place();
    let mut client = place.sent(&posts(&["/later/0", "/later/1", "/later/2"]));
    answer_all(place.service.waiting(3));
    assert_eq!(bodies(&mut client, 3), numbered(0..3));
    poll("the memory", || place.service.shrunk() == 1);
    client.send(post("/later/3").as_bytes()).unwrap();
    answer_all(place.service.waiting(1));
    assert_eq!(bodies(&mut client, 1), ["/later/3"]);
}
