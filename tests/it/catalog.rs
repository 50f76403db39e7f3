//! What a shopper sees of an item, from the outside: names, pictures, and the operator's file.

use crate::support::app::{App, Builder};
use crate::support::clock;
use crate::support::http::{Answer, Client};
use crate::support::process;
use crate::support::servers::{Mode, Stack};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ids that would break out of JSON, of a URL, of a page or of a picture, if anything let them.
const ODD_IDS: [&str; 26] = [
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"quoted\"",
    "'single'",
    "\\\"; alert(1); //",
    "a\\",
    "../../etc/passwd",
    "..",
    ".",
    "/",
    "a/b.svg",
    "%2e%2e%2f",
    "a?b=c#d",
    "a&amp;b;c",
    "&#x3c;b&#x3e;",
    "]]>",
    "<!--",
    "{{7*7}} ${x}",
    "javascript:alert(1)",
    "\u{1f600}\u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "\u{202e}abc",
    "\u{2028}\u{2029}",
    "\u{fffe}\u{ffff}",
    " ",
    "plain",
];

fn start(stack: &Stack) -> Builder {
    stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("USER_LIMIT", 1000)
}

/// Checks an item out and purchases it.
fn buy(client: &mut Client, item: &str) -> Answer {
    let code = client.code("u", item);
    let answer = client.purchase(&code);
    assert_eq!(answer.status, 200, "{item:?}: {}", answer.text());
    answer
}

/// Checks what comes with a picture, and that it is one that can do no harm.
fn check_picture(answer: &Answer, id: &str) {
    assert_eq!(answer.status, 200, "{id:?}: {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("image/svg+xml"), "{id:?}");
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{id:?}");
    let cache = answer.header("cache-control").unwrap_or_default();
    assert!(cache.contains("public") && cache.contains("max-age="), "{id:?}: {cache}");
    let policy = answer.header("content-security-policy").unwrap_or_default();
    assert!(policy.contains("default-src 'none'") && !policy.contains("script-src"), "{id:?}: {policy}");

    let text = std::str::from_utf8(&answer.body).unwrap();
    let picture = roxmltree::Document::parse(text).unwrap_or_else(|e| panic!("{id:?}: {e}\n{text}"));
    let root = picture.root_element();
    assert_eq!(root.tag_name().name(), "svg");
    assert_eq!(root.tag_name().namespace(), Some("http://www.w3.org/2000/svg"));
    for node in picture.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        assert!(
            !["script", "foreignObject", "image", "use", "a", "style", "animate"].contains(&name),
            "{id:?}: {name}"
        );
        for attribute in node.attributes() {
            let (name, value) = (attribute.name(), attribute.value());
            assert!(!name.starts_with("on") && name != "href" && name != "style", "{id:?}: {name}");
            assert!(!value.contains("url(") || value.starts_with("url(#"), "{id:?}: {name}={value}");
        }
    }
    let title = root.children().find(|node| node.has_tag_name("title")).and_then(|node| node.text());
    assert!(title.is_some_and(|title| !title.trim().is_empty()), "{id:?}: {title:?}");
}

#[test]
fn odd_ids_stay_what_they_are() {
    let stack = Stack::new(Mode::Embedded);
    let app = start(&stack).start();
    let mut client = app.client();
    for id in ODD_IDS {
        let bought = buy(&mut client, id);
        assert_eq!(bought.field("item_id"), id);
        let text = bought.text();
        // As it is, the answer can stand in a script of a page.
        assert!(!text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{id:?}: {text}");

        let name = bought.field("item_name");
        let shown: String = id.chars().take(20).collect();
        assert!(name.contains(&shown), "{id:?} is called {name:?}");

        let image = bought.field("item_image");
        let segment = image.strip_prefix("/items/").and_then(|rest| rest.strip_suffix(".svg")).unwrap_or_default();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~%".contains(&b);
        assert!(!segment.is_empty() && segment.bytes().all(plain), "{id:?}: {image}");

        let picture = client.get(&image);
        check_picture(&picture, id);
        let head = head(&app, &image);
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{id:?}: {head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", picture.body.len())), "{id:?}: {head}");
    }
    // Who goes by the raw id, escaped by the rules of a path alone, finds the same picture.
    let picture = client.get("/items/%3Cscript%3E'(1)!+.svg");
    check_picture(&picture, "<script>'(1)!+");
}

/// All that comes back when only the head of `target` is asked for.
fn head(app: &App, target: &str) -> String {
    let mut stream = TcpStream::connect(app.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let request = format!("HEAD {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn write_file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn items_of_a_file() {
    let dir = process::temp_dir();
    let file = write_file(
        dir.path(),
        "items.jsonl",
        r#"{"id":"lamp","name":"The \"Sun\" <lamp>","image":"https://cdn.example/lamp.png?a=1&b=2"}

        {"image":"/items/mug.svg","name":"Mug & Co \u2028 \ud83d\ude00","id":"mug"}
{"id":"<b>/..","name":"</script>","image":"http://cdn.example/\"x\""}"#,
    );
    let stack = Stack::new(Mode::Embedded);
    let builder = start(&stack).env("CATALOG_FILE", file.display());
    let mut app = builder.start();
    let mut client = app.client();
    for (id, name, image) in [
        ("lamp", "The \"Sun\" <lamp>", "https://cdn.example/lamp.png?a=1&b=2"),
        ("mug", "Mug & Co \u{2028} \u{1f600}", "/items/mug.svg"),
        ("<b>/..", "</script>", "http://cdn.example/\"x\""),
    ] {
        let code = client.code("u", id);
        for status in [200, 409] {
            let answer = client.purchase(&code);
            assert_eq!(answer.status, status);
            let fields = ["item_id", "item_name", "item_image"].map(|field| answer.field(field));
            assert_eq!(fields, [id, name, image]);
            assert!(!answer.text().contains(['<', '>', '&', '\u{2028}']), "{}", answer.text());
        }
    }
    for id in ["Lamp", "lamp ", "sofa", "<script>", "\u{1f600}"] {
        let answer = client.checkout("u", id);
        assert_eq!((answer.status, answer.error().as_str()), (400, "unknown_item"), "{id:?}");
        assert!(!answer.field("message").is_empty());
    }
    // What is wrong with the request itself goes first.
    assert_eq!(client.post("/checkout?user_id=u&id=").error(), "invalid_request");
    assert_eq!(client.post("/checkout?id=sofa").error(), "invalid_request");

    // The picture of a listed item has its name, and that of any other is still drawn.
    let picture = client.get("/items/mug.svg");
    check_picture(&picture, "mug");
    assert!(picture.text().contains("Mug &amp; Co"), "{}", picture.text());
    check_picture(&client.get("/items/sofa.svg"), "sofa");

    // An item that has left the list was bought all the same.
    let code = client.code("u", "lamp");
    assert_eq!(client.purchase(&code).status, 200);
    write_file(dir.path(), "items.jsonl", r#"{"id":"mug","name":"Mug","image":"/m.png"}"#);
    app.restart();
    let mut client = app.client();
    assert_eq!(client.checkout("u", "lamp").error(), "unknown_item");
    let again = client.purchase(&code);
    assert_eq!((again.error().as_str(), again.field("item_id").as_str()), ("already_purchased", "lamp"));
    check_picture(&client.get(&again.field("item_image")), "lamp");
}

#[test]
fn a_bad_file_stops_the_start_and_says_where() {
    let dir = process::temp_dir();
    let good = r#"{"id":"a","name":"A","image":"/a.png"}"#;
    let long = "x".repeat(65);
    let with = |line: &str| format!("{good}\n\n{line}\n");
    let item = |id: &str, name: &str, image: &str| {
        with(&serde_json::json!({"id": id, "name": name, "image": image}).to_string())
    };
    // The file, the line that is named, and a word of what is said about it.
    for (text, line, word) in [
        (String::new(), 0, "no items"),
        ("\n \n".into(), 0, "no items"),
        (with("lamp"), 3, "JSON object"),
        (with(r#"["b","B","/b.png"]"#), 3, "JSON object"),
        (with(r#"{"id":"b","name":"B"}"#), 3, "image"),
        (with(r#"{"id":"b","name":"B","image":"/b.png","price":1}"#), 3, "price"),
        (with(r#"{"id":"b","name":"B","image":"/b.png"} x"#), 3, "trailing"),
        (with(r#"{"id":"b","name":"B","image":"/b.png""#), 3, "EOF"),
        (with(r#"{"id":7,"name":"B","image":"/b.png"}"#), 3, "string"),
        (with(good), 3, "twice"),
        (item("", "B", "/b.png"), 3, "id is empty"),
        (item(&long, "B", "/b.png"), 3, "id is longer"),
        (item("a\tb", "B", "/b.png"), 3, "id has a control"),
        (item("b", " ", "/b.png"), 3, "name is empty"),
        (item("b", "B\n", "/b.png"), 3, "name has a control"),
        (item("b", "B", ""), 3, "image is empty"),
        (item("b", "B", "javascript:alert(1)"), 3, "image does not start"),
        (item("b", "B", "data:text/html,x"), 3, "image does not start"),
    ] {
        let path = write_file(dir.path(), "bad.jsonl", &text);
        let failure = App::builder().env("CATALOG_FILE", path.display()).run_to_failure();
        let said = failure.stderr.trim();
        assert!(failure.code > 0 && said.lines().count() == 1, "{text}: {} {said}", failure.code);
        assert!(said.contains("CATALOG_FILE") && said.contains("bad.jsonl") && said.contains(word), "{text}: {said}");
        assert_eq!(said.contains(", line "), line > 0, "{text}: {said}");
        assert!(line == 0 || said.contains(&format!("bad.jsonl, line {line}: ")), "{text}: {said}");
    }
}
