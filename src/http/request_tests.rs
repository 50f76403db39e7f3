//! Raw bytes in, verdict out.

use super::*;
use proptest::prelude::*;

fn complete(raw: &[u8]) -> Head<'_> {
    match parse(raw) {
        Parse::Complete { request, head_len } => {
            assert_eq!(head_len, raw.len(), "{:?}", String::from_utf8_lossy(raw));
            request
        }
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(raw)),
    }
}

fn status(raw: &[u8]) -> u16 {
    match parse(raw) {
        Parse::Complete { .. } => 200,
        Parse::Partial => 0,
        Parse::Reject(reject) => reject.status(),
    }
}

/// A `POST` whose lines after the Host are `lines`, each ended with CRLF.
fn post(lines: &str) -> Vec<u8> {
    format!("POST /checkout HTTP/1.1\r\nHost: x\r\n{lines}\r\n").into_bytes()
}

#[test]
fn a_request_is_read() {
    let raw =
        b"POST /checkout?user_id=u&id=i HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n";
    let want = Head {
        method: Method::Post,
        path: "/checkout",
        query: "user_id=u&id=i",
        http_11: true,
        keep_alive: true,
        body: Body::Length(5),
        expect_continue: true,
    };
    assert_eq!(complete(raw), want);
    let followed = [raw.as_slice(), b"hello\nGET / HTTP/1.1\n\n\0"].concat();
    assert_eq!(parse(&followed), Parse::Complete { request: want, head_len: raw.len() });
}

#[test]
fn methods() {
    let check = |name: &str, want: Method<'_>| {
        assert_eq!(complete(format!("{name} / HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).method, want);
    };
    check("GET", Method::Get);
    check("HEAD", Method::Head);
    check("POST", Method::Post);
    check("get", Method::Other("get"));
    check("POSTS", Method::Other("POSTS"));
    check("DELETE", Method::Other("DELETE"));
}

#[test]
fn targets() {
    let check = |target: &str, path: &str, query: &str| {
        let raw = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let head = complete(raw.as_bytes());
        assert_eq!((head.path, head.query), (path, query), "{target}");
    };
    check("/", "/", "");
    check("/?", "/", "");
    check("/a%20b?c=d?e", "/a%20b", "c=d?e");
    check("//a/../b", "//a/../b", "");
    check("/http://x/y", "/http://x/y", "");
    check("/go?to=http://x/y", "/go", "to=http://x/y");
    check("http://host/p?q", "/p", "q");
    check("HTTPS://host:443/p", "/p", "");
    check("http://[::1]:80/p", "/p", "");
    check("http://host", "/", "");
    check("http://host?q", "/", "q");
    check("http://host/?a=http://b/c", "/", "a=http://b/c");
    check("ftp://host/p", "ftp://host/p", "");
    check("urn:a-b", "urn:a-b", "");
}

#[test]
fn refused_request_lines() {
    let check = |line: &str, want: u16| {
        assert_eq!(status(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()), want, "{line:?}");
    };
    check("GET / HTTP/1.1", 200);
    check("GET /#f HTTP/1.1", 400);
    check("GET /?a#f HTTP/1.1", 400);
    check("GET http://host/#f HTTP/1.1", 400);
    check("GET http:///p HTTP/1.1", 400);
    check("GET http://me@host/p HTTP/1.1", 400);
    check("GET http://?q HTTP/1.1", 400);
    check("GET  / HTTP/1.1", 400);
    check("GET /  HTTP/1.1", 400);
    check("GET / HTTP/1.1 ", 400);
    check(" GET / HTTP/1.1", 400);
    check("GET\t/\tHTTP/1.1", 400);
    check("GET /a b HTTP/1.1", 400);
    check("GET /a\0b HTTP/1.1", 400);
    check("GET /a\x7fb HTTP/1.1", 400);
    check("GET /a\rb HTTP/1.1", 400);
    check("G(T / HTTP/1.1", 400);
    check("GET /", 400);
    check("GET", 400);
    check("GET / HTTP/2.0", 505);
    check("GET / HTTP/1.2", 505);
    check("GET / HTTP/0.9", 505);
    check("GET / HTTP/3", 400);
    check("GET / HTTP/1.10", 400);
    check("GET / HTTP/11.1", 400);
    check("GET / HTTP/1,1", 400);
    check("GET / HTTP/x.y", 400);
    check("GET / http/1.1", 400);
    check("GET / HTTP 1.1", 400);
    check("GET / ICAP/1.0", 400);
    assert_eq!(status(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    assert_eq!(status(b"GET / HTTP/2"), 505);
    assert_eq!(status(b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"), 400);
    // The first bytes of TLS.
    assert_eq!(status(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 400);
}

#[test]
fn line_ends() {
    let check = |raw: &str, want: u16| assert_eq!(status(raw.as_bytes()), want, "{raw:?}");
    check("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200);
    check("GET / HTTP/1.1\nHost: x\r\n\r\n", 400);
    check("GET / HTTP/1.1\r\nHost: x\n\r\n", 400);
    check("GET / HTTP/1.1\r\nHost: x\r\n\n", 400);
    check("GET / HTTP/1.1\n\n", 400);
    check("GET / HTTP/1.1\nHo", 400);
    check("GET / HTTP/1.1\r\nHost: x\nX", 400);
    check("GET / HTTP/1.1\rHost: x\r\n\r\n", 400);
    check("GET / HTTP/1.1\r\r\nHost: x\r\n\r\n", 400);
    check("GET / HTTP/1.1\r\nHost: x\r\r\n\r\n", 400);
    check("GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400);
    check("GET / HTTP/1.1\r\nHost: x\r\n\r\r\n", 400);
    // Empty lines before the request: two at most, of CRLF only.
    check("\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 200);
    check("\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 200);
    check("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    check("\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    check("\r\n\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    check("\rGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    for partial in ["", "\r", "\r\n", "\r\n\r", "\r\n\r\n"] {
        check(partial, 0);
    }
    check("\r\n\r\n\r", 400);
}

#[test]
fn header_lines() {
    let check = |lines: &str, want: u16| assert_eq!(status(&post(lines)), want, "{lines:?}");
    check("", 200);
    check("A: b\r\n", 200);
    check("A:\r\n", 200);
    check("A: \u{e9}\tb\r\n", 200);
    check("A : b\r\n", 400);
    check("A\t: b\r\n", 400);
    check(" A: b\r\n", 400);
    check("A: b\r\n c\r\n", 400);
    check("A: b\r\n\tc\r\n", 400);
    check("A: b\r\n \r\n", 400);
    check("A b\r\n", 400);
    check("A\r\n", 400);
    check(": b\r\n", 400);
    check("A\0: b\r\n", 400);
    check("A: b\0\r\n", 400);
    check("A: b\x7f\r\n", 400);
    check("A: b\x0b\r\n", 400);
    check("\u{e9}: b\r\n", 400);
    check("A(: b\r\n", 400);
    assert_eq!(status(b"GET / HTTP/1.1\r\n Host: x\r\n\r\n"), 400);
}

#[test]
fn hosts() {
    let check = |version: &str, lines: &str, want: u16| {
        assert_eq!(status(format!("GET / HTTP/{version}\r\n{lines}\r\n").as_bytes()), want, "{version} {lines:?}");
    };
    check("1.1", "", 400);
    check("1.0", "", 200);
    check("1.1", "Hosts: x\r\n", 400);
    check("1.1", "hOST:x\r\n", 200);
    check("1.1", "Host:\r\n", 200);
    check("1.1", "Host: [::1]:8080\r\n", 200);
    check("1.1", "Host: b\u{fc}cher.example\r\n", 400);
    check("1.1", "Host: a b\r\n", 400);
    check("1.1", "Host: a/b\r\n", 400);
    check("1.1", "Host: me@a\r\n", 400);
    check("1.1", "Host: x\r\nHost: x\r\n", 400);
    check("1.1", "Host:\r\nHost:\r\n", 400);
    check("1.0", "Host: x\r\nHost: y\r\n", 400);
}

#[test]
fn bodies() {
    let check = |lines: &str, want: Result<Body, u16>| {
        let raw = post(lines);
        let got = match parse(&raw) {
            Parse::Complete { request, .. } => Ok(request.body),
            Parse::Reject(reject) => Err(reject.status()),
            Parse::Partial => Err(0),
        };
        assert_eq!(got, want, "{lines:?}");
    };
    check("", Ok(Body::None));
    check("Content-Length: 0\r\n", Ok(Body::Length(0)));
    check("content-length:\t7 \r\n", Ok(Body::Length(7)));
    check("Content-Length: 000007\r\n", Ok(Body::Length(7)));
    check("Content-Length: 65536\r\n", Ok(Body::Length(65536)));
    check("Content-Length: 65537\r\n", Err(413));
    check("Content-Length: 18446744073709551615\r\n", Err(413));
    check("Content-Length: 18446744073709551616\r\n", Err(413));
    check("Content-Length: 184467440737095516150\r\n", Err(413));
    for bad in ["", "+1", "-1", "1.0", "0x1", "1 1", "1,1", "1, 1", "1;", "a", "\"1\"", "\u{661}", "1_0"] {
        check(&format!("Content-Length: {bad}\r\n"), Err(400));
    }
    check("Content-Length: 1\r\nContent-Length: 2\r\n", Err(400));
    check("Content-Length: 1\r\nContent-Length: 1\r\n", Err(400));
    check("Content_Length: 1\r\nContent-Lengths: 2\r\n", Ok(Body::None));
    check("Transfer-Encoding: chunked\r\n", Ok(Body::Chunked));
    check("TRANSFER-ENCODING:  Chunked \r\n", Ok(Body::Chunked));
    for other in ["", "gzip", "gzip, chunked", "chunked, chunked", "identity", "xchunked", "chunked;a=b", "\"chunked\""]
    {
        check(&format!("Transfer-Encoding: {other}\r\n"), Err(501));
    }
    check("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(400));
    check("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Err(400));
    check("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Err(400));
    check("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", Err(400));
    check("Content-Length: 99999\r\nTransfer-Encoding: gzip\r\n", Err(400));
    check("Transfer-Encoding: chunked\x0b\r\n", Err(400));
    check("Transfer-Encoding: chunked\r\n , gzip\r\n", Err(400));
    assert_eq!(status(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    assert_eq!(status(b"POST / HTTP/1.0\r\nTransfer-Encoding: gzip\r\n\r\n"), 400);
}

#[test]
fn connections() {
    let check = |version: &str, lines: &str, want: bool| {
        let raw = format!("GET / HTTP/{version}\r\nHost: x\r\n{lines}\r\n");
        assert_eq!(complete(raw.as_bytes()).keep_alive, want, "{version} {lines:?}");
    };
    check("1.1", "", true);
    check("1.0", "", false);
    check("1.1", "Connection: close\r\n", false);
    check("1.1", "connection: CLOSE\r\n", false);
    check("1.1", "Connection: keep-alive\r\n", true);
    check("1.0", "Connection: Keep-Alive\r\n", true);
    check("1.0", "Connection: te,\tkeep-alive ,x\r\n", true);
    check("1.0", "Connection: keep-alive, close\r\n", false);
    check("1.1", "Connection: te\r\nConnection: close\r\nConnection: keep-alive\r\n", false);
    check("1.1", "Connection: closed, not-close\r\n", true);
    check("1.1", "Connection: ,,\r\n", true);
    check("1.0", "Connection:\r\n", false);
    check("1.1", "Proxy-Connection: close\r\n", true);
}

#[test]
fn expectations() {
    let check = |version: &str, lines: &str, want: Result<bool, u16>| {
        let raw = format!("POST / HTTP/{version}\r\nHost: x\r\n{lines}\r\n");
        let got = match parse(raw.as_bytes()) {
            Parse::Complete { request, .. } => Ok(request.expect_continue),
            Parse::Reject(reject) => Err(reject.status()),
            Parse::Partial => Err(0),
        };
        assert_eq!(got, want, "{version} {lines:?}");
    };
    check("1.1", "Expect: 100-continue\r\nContent-Length: 1\r\n", Ok(true));
    check("1.1", "Expect: 100-CONTINUE\r\nTransfer-Encoding: chunked\r\n", Ok(true));
    check("1.1", "Expect: 100-continue\r\nContent-Length: 0\r\n", Ok(false));
    check("1.1", "Expect: 100-continue\r\n", Ok(false));
    check("1.0", "Expect: 100-continue\r\nContent-Length: 1\r\n", Ok(false));
    check("1.1", "Expect: 200-ok\r\n", Err(417));
    check("1.1", "Expect:\r\n", Err(417));
    check("1.1", "Expect: 100-continue, x\r\n", Err(417));
    check("1.1", "Expect: 100-continue\r\nContent-Length: 65537\r\n", Err(413));
}

#[test]
fn limits() {
    let with_lines = |count: usize| post(&"a:\r\n".repeat(count));
    // One line is the Host.
    assert_eq!(status(&with_lines(MAX_HEADERS - 1)), 200);
    assert_eq!(status(&with_lines(MAX_HEADERS)), 431);

    let sized = |size: usize| {
        let frame = post("A: \r\n").len();
        post(&format!("A: {}\r\n", "x".repeat(size - frame)))
    };
    let longest = sized(MAX_HEAD_BYTES);
    assert_eq!((longest.len(), status(&longest)), (MAX_HEAD_BYTES, 200));
    assert_eq!(status(&[longest.as_slice(), b"body"].concat()), 200);
    assert_eq!(status(&longest[..MAX_HEAD_BYTES - 1]), 0);
    let longer = sized(MAX_HEAD_BYTES + 1);
    assert_eq!(status(&longer), 431);
    assert_eq!(status(&longer[..MAX_HEAD_BYTES]), 431);
    assert_eq!(status(&longer[..MAX_HEAD_BYTES - 1]), 0);
    // The empty lines before it count.
    assert_eq!(status(&[b"\r\n", longest.as_slice()].concat()), 431);
    assert_eq!(status(format!("GET /{}", "x".repeat(MAX_HEAD_BYTES)).as_bytes()), 431);
    assert_eq!(status("G".repeat(MAX_HEAD_BYTES).as_bytes()), 431);
}

#[test]
fn every_prefix_is_partial() {
    let heads: [&[u8]; 4] = [
        b"\r\n\r\nPOST /checkout?user_id=u%20v&id=i HTTP/1.1\r\nHost: x:80\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost:\r\nConnection: close , x\r\nExpect: 100-continue\r\n\r\n",
        b"GET http://host:1/p?q HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nContent-Length: 3\r\n\r\n",
    ];
    for raw in heads {
        complete(raw);
        for len in 0..raw.len() {
            assert_eq!(parse(&raw[..len]), Parse::Partial, "{:?}", String::from_utf8_lossy(&raw[..len]));
        }
    }
}

/// Pieces of requests, for random orders.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "GET ",
        "POST ",
        "/",
        "a?b=c",
        "http://h",
        " HTTP/1.1",
        " HTTP/1.0",
        " HTTP/2.0",
        "\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        ":",
        "\0",
        "Host: x",
        "Host:",
        "Content-Length: 1",
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
        "Connection: close",
        "\u{e9}",
        "#",
        "GET / HTTP/1.1\r\nHost: x\r\n",
        "\r\n\r\n",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        parse(&noise);
    }

    /// A verdict on the first bytes is not taken back when more arrive.
    #[test]
    fn verdicts_stand(raw in pieces()) {
        let whole = parse(&raw);
        for len in 0..raw.len() {
            match parse(&raw[..len]) {
                Parse::Partial => {}
                Parse::Reject(_) => prop_assert!(matches!(whole, Parse::Reject(_)), "{} {:?}", len, raw),
                complete => prop_assert_eq!(complete, whole, "{} {:?}", len, raw),
            }
        }
        if let Parse::Complete { head_len, .. } = whole {
            let head = &raw[..head_len];
            prop_assert!(head.ends_with(b"\r\n\r\n"));
            prop_assert!((0..head_len).all(|at| head[at] != b'\n' || head[at - 1] == b'\r'));
        }
    }
}
