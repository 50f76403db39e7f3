//! Bodies as bytes, whole and in pieces.

use super::*;
use proptest::prelude::*;

/// The bytes taken in all and whether the body is done, or the refusal's status.
fn run<'a>(body: Body, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<(usize, bool), u16> {
    let mut skipper = BodySkipper::new(body);
    let mut total = (0, false);
    for part in parts {
        match skipper.skip(part) {
            Ok(skipped) => {
                assert!(skipped.done || skipped.used == part.len());
                total = (total.0 + skipped.used, skipped.done);
            }
            Err(reject) => {
                assert_eq!(skipper.skip(b"\r\n"), Err(reject), "a refusal is final");
                return Err(reject.status());
            }
        }
    }
    Ok(total)
}

#[test]
fn lengths() {
    let check = |body, bytes: &[u8], want| assert_eq!(run(body, [bytes]), want, "{body:?} {bytes:?}");
    check(Body::None, b"", Ok((0, true)));
    check(Body::None, b"GET", Ok((0, true)));
    check(Body::Length(0), b"GET", Ok((0, true)));
    check(Body::Length(3), b"", Ok((0, false)));
    check(Body::Length(3), b"ab", Ok((2, false)));
    check(Body::Length(3), b"abc", Ok((3, true)));
    check(Body::Length(3), b"abcGET", Ok((3, true)));
    check(Body::Length(65536), &[0; 65537], Ok((65536, true)));
    check(Body::Length(65537), b"", Err(413));
}

/// `text` as a chunked body; a `^` marks where it must end, without one it must be unfinished.
fn ends(text: &str) {
    let raw = text.replace('^', "");
    let want = text.find('^').map_or((raw.len(), false), |end| (end, true));
    assert_eq!(run(Body::Chunked, [raw.as_bytes()]), Ok(want), "{text:?}");
    assert_eq!(run(Body::Chunked, raw.as_bytes().chunks(1)), Ok(want), "{text:?} byte by byte");
}

#[test]
fn chunks() {
    ends("0\r\n\r\n^");
    ends("0\r\n\r\n^GET / HTTP/1.1\r\n");
    ends("5\r\nhello\r\n0\r\n\r\n^0\r\n\r\n");
    ends("a\r\n0123456789\r\nA\r\n0\r\n\r\n\r\n678\r\n0\r\n\r\n^");
    ends("0000000000000001\r\nx\r\n0000000000000000\r\n\r\n^");
    ends("1;a=b;c=\"d e\"\r\nx\r\n0;\tz\r\n\r\n^");
    ends("1;a;b = c\t; d=\"\" ;e=\"\\\"\\\\;\u{e9}\"\r\nx\r\n0\r\n\r\n^");
    ends("0\r\nA: b\r\nC-d:\r\n\r\n^GET");
    ends("");
    ends("5");
    ends("5\r\nhel");
    ends("5\r\nhello");
    ends("0\r\n");
    ends("0\r\n\r");
    ends("0\r\nA: b\r\n");
}

#[test]
fn refused_chunks() {
    let check = |raw: &str, want: u16| {
        assert_eq!(run(Body::Chunked, [raw.as_bytes()]), Err(want), "{raw:?}");
        assert_eq!(run(Body::Chunked, raw.as_bytes().chunks(1)), Err(want), "{raw:?} byte by byte");
    };
    for size in ["", "g", "+1", "-1", "0x1", " 1", "1 ", "1\t", "1,", "1\n", "1\r\r", "00000000000000001", ";a"] {
        check(&format!("{size}\r\nx\r\n0\r\n\r\n"), 400);
    }
    check("1\r\nxy\r\n", 400);
    check("1\r\nx\n", 400);
    check("1\r\nx\r\r", 400);
    check("1\r\nx0\r\n\r\n", 400);
    for extension in [
        ";",
        ";;a",
        ";a;",
        "; ",
        ";a ",
        ";a=",
        ";a= ",
        ";a=;b",
        ";=b",
        ";a b",
        ";a=b c",
        ";a=b=c",
        ";(",
        ";a(",
        ";a=(",
        ";a=\"",
        ";a=\"b\"c",
        ";a=\"b\" ",
        ";a=\"\\\u{1}\"",
        ";a=\"\u{7f}\"",
        ";\u{e9}",
        ";a=\u{e9}",
        " ;a",
    ] {
        check(&format!("1{extension}\r\nx\r\n0\r\n\r\n"), 400);
    }
    check("1;a\nx", 400);
    check("1;a\0", 400);
    check("1;a\r1", 400);
    check(&format!("1;{}\r\n", "x".repeat(1025)), 400);
    check(&format!("1;{}\r\nx\r\n1;{}\r\n", "x".repeat(1000), "x".repeat(25)), 400);
    check("0\r\n\n", 400);
    check("0\r\n\r\r", 400);
    check("0\r\n folded: x\r\n\r\n", 400);
    check("0\r\nA: b\r\n c\r\n\r\n", 400);
    check("0\r\nA : b\r\n\r\n", 400);
    check("0\r\n: b\r\n\r\n", 400);
    check("0\r\nA\r\n\r\n", 400);
    check("0\r\nA: b\n\r\n", 400);
    check("0\r\nA: b\0\r\n\r\n", 400);
    check(&format!("0\r\nA: {}", "x".repeat(8190)), 400);
    check(&format!("0\r\n{}", "A: b\r\n".repeat(1366)), 400);
    check("10001\r\n", 413);
    check("ffffffffffffffff\r\n", 413);
    check("ffffffffffffffff;a\r\n", 413);
    check("1\r\nx\r\nffffffffffffffff\r\n", 413);
}

#[test]
fn bounds_are_met_exactly() {
    ends(&format!("10000\r\n{}\r\n0\r\n\r\n^", "x".repeat(65536)));
    ends(&format!("1;{}\r\nx\r\n0;{}\r\n\r\n^", "x".repeat(1000), "x".repeat(24)));
    ends(&format!("0\r\nA:{}\r\n\r\n^", "x".repeat(8188)));
    let halves = format!("8000\r\n{0}\r\n8000\r\n{0}\r\n", "x".repeat(32768));
    ends(&halves);
    assert_eq!(run(Body::Chunked, [halves.as_bytes(), b"1\r\n"]), Err(413));
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "0",
        "1",
        "5",
        "\r\n",
        "\r\n",
        "hello",
        "x",
        ";e=1",
        "A: b",
        "\r",
        "\n",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "ffff",
    ]);
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn any_split_gives_the_same(raw in bodies(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
                                length in prop::option::of(0u64..40)) {
        let body = length.map_or(Body::Chunked, Body::Length);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(raw.len() + 1)).collect();
        cuts.extend([0, raw.len()]);
        cuts.sort_unstable();
        let parts = cuts.windows(2).map(|ends| &raw[ends[0]..ends[1]]);
        prop_assert_eq!(run(body, parts), run(body, [raw.as_slice()]));
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = run(Body::Chunked, [noise.as_slice()]);
    }
}
