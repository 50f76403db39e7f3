//! The log's lines on a sale's course: sold out, and ended, each once and with its moment.

use crate::support::clock;
use crate::support::process::poll;
use crate::support::servers::{Mode, Stack};
use std::time::Duration;

crate::on_stacks! {
    distributed: lines_of_a_sale;
    embedded: lines_of_a_sale
}

const SALE_SECONDS: u64 = 12;

fn lines_of_a_sale(mode: Mode) {
    let stack = Stack::new(mode);
    let app = stack.app().env("SALE_ITEMS", 3).env("SALE_SECONDS", SALE_SECONDS).env("USER_LIMIT", 1).start();
    // A sale that has just begun.
    let sale = clock::sale_end(SALE_SECONDS);
    poll("the next sale", Duration::from_secs(SALE_SECONDS + 5), || (clock::now() >= sale as f64 + 0.3).then_some(()));
    let codes: Vec<String> = ["a", "b", "c"]
        .iter()
        .map(|user| {
            let answer = app.client().checkout(user, "i");
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.field("code")
        })
        .collect();
    app.says("is sold out since", Duration::from_secs(8));
    codes.iter().take(2).for_each(|code| assert_eq!(app.client().purchase(code).status, 200));
    app.says("has ended: sold 2, expired 1, free 1", Duration::from_secs(SALE_SECONDS + 6));
    let said = app.last_words();
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("is sold out")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains(&format!("sale {sale} (20")) && lines[0].contains("Z to 20"), "{said}");
    assert_eq!(said.matches("free 1").count(), 1, "{said}");
}

/// Each sale in `said` stands there with its times, and nothing is written as the program keeps it.
fn is_for_people(said: &str) {
    for line in said.lines() {
        let words = line.split_once("flashsale::").map_or(line, |(_, words)| words);
        for part in ["sale=", "SaleId", " { ", "Some(", "None", "Ok(", "Err("] {
            assert!(!words.contains(part), "{part}: {line}");
        }
        for rest in words.split("sale ").skip(1).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
            let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            assert!(after.starts_with(" (20"), "a sale without its time: {line}");
        }
    }
}

#[test]
fn the_log_of_a_loss_is_for_people() {
    let mut stack = Stack::new(Mode::Distributed);
    let app = stack.app().start();
    let other = stack.app().env("SALE_ITEMS", 77).env("USER_LIMIT", 7).start();
    let code = app.client().checkout("u", "i").field("code");
    assert_eq!(app.client().purchase(&code).status, 200);
    stack.redis().wipe();
    [&app, &other].iter().for_each(|app| app.says("recovered: epoch", Duration::from_secs(10)));
    for app in [app, other] {
        let said = app.last_words();
        assert!(said.contains(" is missing"), "{said}");
        is_for_people(&said);
    }
}

#[test]
fn whose_connection_ended() {
    let mut stack = Stack::new(Mode::Distributed);
    let app = stack.app().env("WORKERS", 2).start();
    let addr = stack.redis().addr();
    stack.redis().kill();
    for worker in 0..2 {
        app.says(&format!("the connection of worker {worker} to Redis at {addr} ended"), Duration::from_secs(10));
    }
    stack.redis().restart();
    for worker in 0..2 {
        app.says(&format!("worker {worker} is connected to Redis at {addr} again, after "), Duration::from_secs(10));
    }
    is_for_people(&app.last_words());
}

#[test]
fn the_log_of_other_settings_is_for_people() {
    let stack = Stack::new(Mode::Embedded);
    is_for_people(&stack.app().start().last_words());
    let said = stack.app().env("SALE_ITEMS", 77).start().last_words();
    assert!(said.contains("other settings"), "{said}");
    is_for_people(&said);
}
