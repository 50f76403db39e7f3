//! The table of answers: each request that the contract names, and what it is told.

use crate::support::clock;
use crate::support::http::{Answer, Client, checkout_target, encode};
use crate::support::process::poll;
use crate::support::servers::{Mode, Stack};
use std::time::Duration;

crate::on_stacks! {
    distributed: granted, refused, parameters_in_a_body, retry_after, holds_end_with_the_sale, awkward_ids, pictures, servers_away,
        two_instances;
    embedded: granted, refused, parameters_in_a_body, retry_after, holds_end_with_the_sale, awkward_ids, pictures
}

/// What every answer has, and what every refusal says.
fn refusal(answer: &Answer, status: u16, error: &str) {
    assert_eq!((answer.status, answer.error().as_str()), (status, error), "{answer:?}");
    assert!(!answer.field("message").is_empty(), "{answer:?}");
    json_headers(answer);
}

fn json_headers(answer: &Answer) {
    assert!(answer.header("content-type").unwrap().starts_with("application/json"), "{answer:?}");
    assert_eq!(answer.header("content-length").unwrap(), answer.body.len().to_string());
    let date = answer.header("date").unwrap();
    assert!(date.len() == 29 && date.ends_with(" GMT") && date.as_bytes()[3] == b',', "{date}");
}

fn is_code(code: &str) -> bool {
    code.len() == 32 && code.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn granted(mode: Mode) {
    let stack = Stack::new(mode);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("HOLD_SECONDS", 100).start();
    let mut client = app.client();
    let before = clock::now();
    let held = client.checkout("u", "lamp");
    let after = clock::now();
    assert_eq!(held.status, 200, "{}", held.text());
    json_headers(&held);
    let code = held.field("code");
    assert!(is_code(&code), "{code}");
    let expires = held.json()["expires_at"].as_u64().unwrap() as f64;
    assert!((before.floor() + 100.0..=after.ceil() + 100.0).contains(&expires), "{before} {expires} {after}");
    assert_eq!(held.json().as_object().unwrap().len(), 2);

    let bought = client.purchase(&code);
    assert_eq!(bought.status, 200, "{}", bought.text());
    json_headers(&bought);
    assert_eq!(bought.json()["success"], true);
    assert_eq!(bought.field("item_id"), "lamp");
    let again = client.purchase(&code);
    refusal(&again, 409, "already_purchased");
    for field in ["item_id", "item_name", "item_image"] {
        assert!(!bought.field(field).is_empty());
        assert_eq!(again.field(field), bought.field(field), "{field}");
    }
    let other = client.code("u", "lamp");
    assert_ne!(other, code);
    assert_eq!(client.purchase(&other.to_uppercase()).status, 200, "hex digits of either case");
}

fn refused(mode: Mode) {
    let stack = Stack::new(mode);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let mut client = app.client();
    let mut check = |method: &str, target: &str, status: u16, error: &str| {
        let answer = client.send_request(method, target).unwrap();
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.text());
        json_headers(&answer);
        if !error.is_empty() {
            refusal(&answer, status, error);
        }
        answer
    };
    let (full, long) = ("x".repeat(64), "x".repeat(65));
    for query in ["", "?", "?user_id=u", "?id=i", "?user_id=&id=i", "?user_id=u&id=", "?user_id&id=i", "?userid=u&id=i"]
    {
        check("POST", &format!("/checkout{query}"), 400, "invalid_request");
    }
    for bad in [long.as_str(), "%FF", "%C3", "a%09b", "%00", "%7F", "%C2%85", "%", "%4", "%zz", "a&user_id=a", "a&id=b"]
    {
        check("POST", &format!("/checkout?user_id={bad}&id=i"), 400, "invalid_request");
        check("POST", &format!("/checkout?id={bad}&user_id=u"), 400, "invalid_request");
    }
    for good in
        ["user_id=p&id=i", "id=i&user_id=p", "z=%&user_id=p&id=i&z=1&z=2", "%75ser_id=p&id=i", "&&id=i&user_id=p&"]
    {
        check("POST", &format!("/checkout?{good}"), 200, "");
    }
    check("POST", &format!("/checkout?user_id={full}&id={full}"), 200, "");
    for query in ["", "?", "?code", "?code=", "?Code=1", "?code=1&code=1"] {
        check("POST", &format!("/purchase{query}"), 400, "invalid_request");
    }
    for code in
        ["1".into(), "zz".into(), "0".repeat(32), "f".repeat(32), "0".repeat(31), "0".repeat(33), "g".repeat(32)]
    {
        check("POST", &format!("/purchase?code={code}"), 400, "invalid_code");
    }
    for (method, target, allowed) in [
        ("GET", "/checkout?user_id=u&id=i", "POST"),
        ("PUT", "/checkout", "POST"),
        ("DELETE", "/purchase", "POST"),
        ("GET", "/purchase?code=1", "POST"),
        ("POST", "/items/a.svg", "GET"),
    ] {
        let answer = check(method, target, 405, "");
        assert!(answer.header("allow").unwrap().split(", ").any(|m| m == allowed), "{answer:?}");
    }
    for target in ["/", "/checkout/", "/Checkout", "/purchases", "/items", "/items/a.png", "/metrics", "/health"] {
        check("GET", target, 404, "");
        check("POST", target, 404, "");
    }
}

/// A form or a document with the parameters in it: its sender is told where they belong.
fn parameters_in_a_body(mode: Mode) {
    let stack = Stack::new(mode);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let mut client = app.client();
    let mut post = |target: &str, kind: &str, body: &str| {
        let head = format!("POST {target} HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\n");
        let sized = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let [answer, other] = [sized, chunked].map(|request| {
            client.send(request.as_bytes()).unwrap();
            client.receive().unwrap()
        });
        assert_eq!((answer.status, &answer.body), (other.status, &other.body), "{target} {body}");
        answer
    };
    for (target, kind, body, name) in [
        ("/checkout", "application/x-www-form-urlencoded", "user_id=u&id=i", "user_id"),
        ("/checkout?user_id=u", "application/json", r#"{"user_id":"u","id":"i"}"#, "id"),
        ("/purchase", "application/json", r#"{"code":"1"}"#, "code"),
    ] {
        let answer = post(target, kind, body);
        refusal(&answer, 400, "invalid_request");
        let message = answer.field("message");
        assert!(message.starts_with(&format!("{name} is missing: ")), "{message}");
        assert!(message.contains("query") && message.contains("body"), "{message}");
    }
    // Where the body is not the reason, it is not named.
    let empty = post("/checkout?user_id=&id=i", "text/plain", "user_id=u");
    assert_eq!(empty.field("message"), "user_id is empty");
    assert_eq!(client.post("/checkout?id=i").field("message"), "user_id is missing");
    client.send(b"POST /checkout HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert_eq!(client.receive().unwrap().field("message"), "user_id is missing");
}

fn retry_after(mode: Mode) {
    let stack = Stack::new(mode);
    let sale_seconds = clock::quiet_sale_seconds();
    let base = || stack.app().env("SALE_SECONDS", sale_seconds).env("SALE_ITEMS", 2).env("USER_LIMIT", 1);
    let app = base().env("HOLD_SECONDS", 100).start();
    let mut client = app.client();
    // Never too early for something to be free, and not a second later than it needs be.
    let check = |client: &mut Client, user: &str, status: u16, error: &str, free: (f64, f64)| {
        let before = clock::now();
        let answer = client.checkout(user, "i");
        let after = clock::now();
        refusal(&answer, status, error);
        let retry = answer.retry_after() as f64;
        let (soonest, latest) = (free.0 - after - 0.01, free.1 - before + 1.01);
        assert!((soonest..=latest).contains(&retry), "{user}: {soonest} <= {retry} <= {latest}");
    };
    let first = clock::now();
    let one = client.code("a", "i");
    let taken = (first + 100.0, clock::now() + 100.0);
    let limit = client.checkout("a", "i");
    refusal(&limit, 429, "user_limit");
    assert_eq!(limit.retry_after(), 100);
    let begun = clock::now();
    let two = client.code("b", "i");
    let second = (begun + 100.0, clock::now() + 100.0);
    check(&mut client, "c", 409, "sold_out", taken);
    // Sold out goes before the user's limit.
    check(&mut client, "a", 409, "sold_out", taken);
    // The oldest hold is redeemed: the next moment is another's.
    assert_eq!(client.purchase(&one).status, 200);
    poll("the later moment", Duration::from_secs(3), || {
        let retry = client.checkout("c", "i").retry_after() as f64;
        (retry >= second.0 - clock::now() - 0.01).then_some(())
    });
    assert_eq!(client.purchase(&two).status, 200);
    let end = clock::sale_end(sale_seconds) as f64;
    poll("the sale's end", Duration::from_secs(3), || {
        (client.checkout("c", "i").retry_after() as f64 >= end - clock::now() - 0.01).then_some(())
    });
    check(&mut client, "c", 409, "sold_out", (end, end));
}

fn holds_end_with_the_sale(mode: Mode) {
    let stack = Stack::new(mode);
    let sale_seconds = clock::quiet_sale_seconds();
    let app = stack.app().env("SALE_SECONDS", sale_seconds).env("HOLD_SECONDS", 100_000).env("USER_LIMIT", 1).start();
    let mut client = app.client();
    let end = clock::sale_end(sale_seconds);
    assert_eq!(client.checkout("a", "i").json()["expires_at"], end);
    let before = clock::now();
    let answer = client.checkout("a", "i");
    let after = clock::now();
    refusal(&answer, 429, "user_limit");
    let retry = answer.retry_after() as f64;
    assert!((end as f64 - after - 0.01..=end as f64 - before + 1.01).contains(&retry), "{retry}");
}

fn awkward_ids(mode: Mode) {
    let ids = [
        "a:b",
        "a|b",
        "a\"b",
        "a'b",
        "a\\b",
        "a b",
        " ",
        "+",
        "%",
        "&=",
        "\u{1f600}",
        "é",
        "a/b",
        "<b>",
        "{sale}",
        "0",
        "-1",
        "h:1",
        "u:1",
        "free",
        "epoch",
        "NULL",
        "\\N",
        "a,b",
        "1:2",
        "1",
        "2:1",
        "12",
        ":",
        "::",
        "1:1:1",
        "\u{feff}x",
    ];
    let stack = Stack::new(mode);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("USER_LIMIT", 2).start();
    let mut client = app.client();
    let mut sent = Vec::new();
    for (at, user) in ids.iter().enumerate() {
        // Each user has his own two, whatever the others are called: nothing is joined without a length.
        for item in [ids[ids.len() - 1 - at], user] {
            let code = client.code(user, item);
            let bought = client.purchase(&code);
            assert_eq!((bought.status, bought.field("item_id").as_str()), (200, item), "{user:?}");
            assert_eq!(client.get(&bought.field("item_image")).status, 200, "{item:?}");
            sent.push((code, (*user).to_owned(), item.to_owned()));
        }
        refusal(&client.checkout(user, "i"), 429, "user_limit");
    }
    let spaced = client.post("/checkout?user_id=plus+user&id=a+b").field("code");
    assert_eq!(client.purchase(&spaced).field("item_id"), "a b", "a plus is a space in a query");
    sent.push((spaced, "plus user".into(), "a b".into()));
    sent.sort();
    poll("the rows as sent", Duration::from_secs(20), || {
        let rows = stack.ledger().rows();
        let mut attempts: Vec<_> = rows.attempts.into_iter().map(|r| (r.code, r.user, r.item)).collect();
        let mut purchases: Vec<_> = rows.purchases.into_iter().map(|r| (r.code, r.user, r.item)).collect();
        attempts.sort();
        purchases.sort();
        (attempts == sent && purchases == sent).then_some(())
    });
}

fn pictures(mode: Mode) {
    let stack = Stack::new(mode);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let mut client = app.client();
    let mut bodies = Vec::new();
    for id in ["a", "b", "a b", "<script>", "\u{1f600}", "a.svg"] {
        let answer = client.get(&format!("/items/{}.svg", encode(id)));
        assert_eq!(answer.status, 200, "{id}");
        assert!(answer.header("content-type").unwrap().starts_with("image/svg+xml"));
        assert!(answer.text().contains("<svg") && !answer.text().contains("<script>"), "{}", answer.text());
        assert_eq!(answer.text(), client.get(&format!("/items/{}.svg", encode(id))).text(), "always the same");
        bodies.push(answer.text());
    }
    assert_ne!(bodies[0], bodies[1]);
    assert_eq!(client.get(&format!("/items/{}.svg", "x".repeat(65))).status / 100, 4);
}

fn servers_away(mode: Mode) {
    let mut stack = Stack::new(mode);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let mut client = app.client();
    let code = client.code("u", "i");
    poll("the hold's row", Duration::from_secs(20), || (stack.ledger().rows().attempts.len() == 1).then_some(()));
    stack.redis().stop();
    for target in [checkout_target("v", "i"), format!("/purchase?code={code}")] {
        let answer = client.post(&target);
        refusal(&answer, 503, "unavailable");
        assert!(answer.retry_after() >= 1);
    }
    // It comes back with nothing: the sale is built again from the ledger, holds and all.
    stack.redis().restart();
    let bought = poll("the sale", Duration::from_secs(20), || {
        let answer = client.purchase(&code);
        (answer.status != 503).then_some(answer)
    });
    assert_eq!((bought.status, bought.field("item_id").as_str()), (200, "i"), "{}", bought.text());
    assert_eq!(client.checkout("v", "i").status, 200);
}

fn two_instances(mode: Mode) {
    let stack = Stack::new(mode);
    let builder =
        stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("SALE_ITEMS", 3).env("USER_LIMIT", 2);
    let (one, two) = (builder.start(), builder.start());
    let (mut a, mut b) = (one.client(), two.client());
    let code = a.code("u", "i");
    assert_eq!(b.purchase(&code).status, 200, "a code of one is a code of all");
    refusal(&a.purchase(&code), 409, "already_purchased");
    b.code("u", "i");
    refusal(&a.checkout("u", "i"), 429, "user_limit");
    a.code("v", "i");
    refusal(&b.checkout("v", "i"), 409, "sold_out");
    refusal(&a.checkout("w", "i"), 409, "sold_out");
}
