//! HTTP as bytes: how requests may arrive, and where a connection ends.

use crate::support::clock;
use crate::support::http::Client;
use crate::support::servers::{Mode, Stack};

crate::on_stacks! {
    distributed: connections, options, limits, malformed, unsupported, bodies;
    embedded: connections, options, limits, malformed, unsupported, bodies
}

const HEAD_LIMIT: usize = 16384;
const LINE_LIMIT: usize = 100;
const BODY_LIMIT: usize = 65536;
const GET: &str = "GET /items/a.svg HTTP/1.1\r\nHost: h\r\n";

fn on_app(mode: Mode, test: impl FnOnce(&dyn Fn() -> Client)) {
    let stack = Stack::new(mode);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    test(&|| app.client());
}

/// Sends `bytes` on a fresh connection; the statuses of the answers that come, and whether it is closed after them.
fn check(client: &mut Client, bytes: &[u8], statuses: &[u16], closes: bool) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    // A server that refuses early may reset before all is sent.
    let _ = client.send(bytes);
    for want in statuses {
        let answer = client.receive().unwrap_or_else(|e| panic!("{shown:?}: {e}"));
        assert_eq!(answer.status, *want, "{shown:?}: {}", answer.text());
        let word = match answer.status {
            413 => "body_too_large",
            417 => "expectation_failed",
            431 => "head_too_large",
            501 => "not_implemented",
            505 => "version_not_supported",
            _ => continue,
        };
        assert_eq!(answer.error(), word, "{shown:?}");
    }
    if closes {
        assert!(client.is_closed(), "still open: {shown:?}");
    } else {
        client.send(format!("{GET}\r\n").as_bytes()).unwrap();
        assert_eq!(client.receive().unwrap_or_else(|e| panic!("next after {shown:?}: {e}")).status, 200);
    }
}

fn connections(mode: Mode) {
    on_app(mode, |client| {
        let cases: [(String, &[u16], bool); 8] = [
            (format!("{GET}\r\n"), &[200], false),
            (format!("{GET}\r\n{GET}\r\nGET /none HTTP/1.1\r\nHost: h\r\n\r\n"), &[200, 200, 404], false),
            (format!("{GET}Connection: close\r\n\r\n"), &[200], true),
            (format!("{GET}Connection: close\r\n\r\n{GET}\r\n"), &[200], true),
            (format!("{GET}Connection: keep-alive\r\n\r\n"), &[200], false),
            ("GET /items/a.svg HTTP/1.0\r\n\r\n".into(), &[200], true),
            ("GET /items/a.svg HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(), &[200], false),
            (format!("\r\n{GET}\r\n"), &[200], false),
        ];
        for (bytes, statuses, closes) in cases {
            check(&mut client(), bytes.as_bytes(), statuses, closes);
        }
        let mut pipelined = client();
        let order =
            ["a", "b", "c"].map(|user| format!("POST /checkout?user_id={user}&id=i HTTP/1.1\r\nHost: h\r\n\r\n"));
        pipelined.send(format!("{}GET / HTTP/1.1\r\nHost: h\r\n\r\n{}", order.concat(), order[0]).as_bytes()).unwrap();
        let statuses: Vec<u16> = (0..5).map(|_| pipelined.receive().unwrap().status).collect();
        assert_eq!(statuses, [200, 200, 200, 404, 200], "answers come in the order of their requests");

        let mut slow = client();
        for byte in format!("{GET}\r\n").as_bytes() {
            slow.send(&[*byte]).unwrap();
        }
        assert_eq!(slow.receive().unwrap().status, 200);

        for request in [format!("{GET}\r\n"), order[1].clone()] {
            let mut last = client();
            last.send(request.as_bytes()).unwrap();
            last.finish();
            assert_eq!(last.receive().unwrap().status, 200, "an answer after FIN");
            assert!(last.is_closed());
        }
        // An answer does not wait for the body of the request behind it.
        for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let mut waiting = client();
            let behind = format!("POST /checkout?user_id=d&id=i HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n");
            waiting.send(format!("{}{behind}", order[0]).as_bytes()).unwrap();
            assert_eq!(waiting.receive().unwrap_or_else(|e| panic!("{framing}: {e}")).status, 200);
        }

        let mut quitter = client();
        quitter.send(GET.as_bytes()).unwrap();
        quitter.finish();
        assert!(quitter.is_closed() || quitter.receive().unwrap().status == 400, "half a request is not served");
    });
}

/// What a load balancer asks with when it is told nothing else.
fn options(mode: Mode) {
    on_app(mode, |client| {
        for request in ["OPTIONS / HTTP/1.0", "OPTIONS * HTTP/1.0", "OPTIONS / HTTP/1.1", "OPTIONS * HTTP/1.1"] {
            let mut client = client();
            client.send(format!("{request}\r\nHost: h\r\nConnection: keep-alive\r\n\r\n").as_bytes()).unwrap();
            let answer = client.receive().unwrap();
            assert_eq!(answer.status, 204, "{request}: {}", answer.text());
            assert_eq!((answer.header("content-length"), answer.header("content-type")), (None, None), "RFC 9110, 8.6");
            assert_eq!(answer.header("allow"), Some("GET, HEAD, POST, OPTIONS"));
            assert_eq!(client.get("/items/a.svg").status, 200, "the connection goes on");
        }
        let mut client = client();
        assert_eq!(client.send_request("OPTIONS", "/checkout").unwrap().status, 405);
        assert_eq!(client.send_request("OPTIONS", "/none").unwrap().status, 404);
    });
}

fn limits(mode: Mode) {
    on_app(mode, |client| {
        let head = |bytes: usize| {
            let filler = bytes - GET.len() - "X: \r\n\r\n".len();
            format!("{GET}X: {}\r\n\r\n", "x".repeat(filler))
        };
        assert_eq!(head(HEAD_LIMIT).len(), HEAD_LIMIT);
        check(&mut client(), head(HEAD_LIMIT).as_bytes(), &[200], false);
        check(&mut client(), head(HEAD_LIMIT + 1).as_bytes(), &[431], true);
        // A head that never ends is refused all the same.
        check(&mut client(), format!("{GET}X: {}", "x".repeat(HEAD_LIMIT)).as_bytes(), &[431], true);
        let fields = |count: usize| format!("{GET}{}\r\n", "A: 1\r\n".repeat(count - 1));
        check(&mut client(), fields(LINE_LIMIT).as_bytes(), &[200], false);
        check(&mut client(), fields(LINE_LIMIT + 1).as_bytes(), &[431], true);
        // Long heads one after the other, with bodies between them, and a long one that comes in pieces.
        let post = |body: usize| {
            let head = format!("POST /none HTTP/1.1\r\nHost: h\r\nContent-Length: {body}\r\nX: ");
            format!("{head}{}\r\n\r\n{}", "x".repeat(HEAD_LIMIT - head.len() - 4), "y".repeat(body))
        };
        let row = format!("{}{}{}{}", head(HEAD_LIMIT), post(BODY_LIMIT), post(1), head(9000));
        check(&mut client(), row.as_bytes(), &[200, 404, 404, 200], false);
        let mut slow = client();
        for piece in head(HEAD_LIMIT).as_bytes().chunks(700) {
            slow.send(piece).unwrap();
        }
        assert_eq!(slow.receive().unwrap().status, 200);
    });
}

fn malformed(mode: Mode) {
    on_app(mode, |client| {
        for bad in [
            "\0\0\0\0\r\n\r\n",
            "POST checkout?user_id=u&id=i HTTP/1.1\r\nHost: h\r\n\r\n",
            "POST \\a HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: h\r\n\r\n",
            "POST /checkout HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;\r\nhello\r\n0\r\n\r\n",
            "POST /checkout HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;(\r\nhello\r\n0\r\n\r\n",
            "GET\r\n\r\n",
            "GET / HTTP/1.1 x\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost\r\n\r\n",
            "GET / HTTP/1.1\nHost: h\n\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\nC: d\r\n\r\n",
            "POST /checkout HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
            "POST /checkout HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
            "POST /checkout HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n1",
            "POST /checkout HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12",
            "POST /checkout HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST /checkout HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        ] {
            // One answer may be on its way already when a body turns out to be malformed.
            let mut client = client();
            let _ = client.send(bad.as_bytes());
            let answer = client.receive().unwrap_or_else(|e| panic!("{bad:?}: {e}"));
            assert_eq!(
                (answer.status, answer.error().as_str()),
                (400, "invalid_request"),
                "{bad:?}: {}",
                answer.text()
            );
            assert!(client.is_closed(), "still open: {bad:?}");
        }
    });
}

fn unsupported(mode: Mode) {
    on_app(mode, |client| {
        let post = |fields: &str| format!("POST /checkout?user_id=u&id=i HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n");
        check(&mut client(), post("Content-Length: 1\r\nExpect: 200-ok").as_bytes(), &[417], true);
        check(&mut client(), post("Transfer-Encoding: gzip, chunked").as_bytes(), &[501], true);
        check(&mut client(), b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", &[505], true);
    });
}

fn bodies(mode: Mode) {
    on_app(mode, |client| {
        let post = |field: &str| format!("POST /checkout?user_id=u&id=i HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n");
        // What stands in a body is never taken for a request.
        let hidden = format!("{GET}\r\n");
        let sized = |body: &str| format!("{}{body}", post(&format!("Content-Length: {}", body.len())));
        check(&mut client(), sized(&hidden).as_bytes(), &[200], false);
        check(&mut client(), sized("").as_bytes(), &[200], false);
        check(&mut client(), sized(&"x".repeat(BODY_LIMIT)).as_bytes(), &[200], false);
        check(&mut client(), format!("{}{GET}\r\n", sized("abc")).as_bytes(), &[200, 200], false);
        check(&mut client(), post(&format!("Content-Length: {}", BODY_LIMIT + 1)).as_bytes(), &[413], true);
        check(&mut client(), post("Content-Length: 99999999999999999999999").as_bytes(), &[413], true);
        let chunked = |body: &str| format!("{}{body}", post("Transfer-Encoding: chunked"));
        check(&mut client(), chunked("0\r\n\r\n").as_bytes(), &[200], false);
        let chunk = format!("{:x}\r\n{hidden}\r\n0\r\nTrailer: x\r\n\r\n", hidden.len());
        check(&mut client(), chunked(&chunk).as_bytes(), &[200], false);
    });
}
