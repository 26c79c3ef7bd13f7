//! The harness itself: what it prints is what `cargo xtask test` counts.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests stand outside the test functions")]

use anyhow::{Result, bail};
use meshseal_tests::{Case, cases, run};

fn good() -> Result<()> {
    Ok(())
}

fn bad() -> Result<()> {
    bail!("expected 1\nfound 2")
}

fn panicking() -> Result<()> {
    panic!("index {}", 7)
}

const CASES: &[Case] = cases![good, bad, panicking];

fn outcome(arguments: &[&str]) -> (String, bool) {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let mut out = Vec::new();
    let passed = run(CASES, &arguments, &mut out).unwrap();
    (String::from_utf8(out).unwrap(), passed)
}

#[test]
fn each_case_gets_one_line() {
    let lines = "ok good\nFAIL bad: expected 1\\nfound 2\nFAIL panicking: panicked: index 7\n";
    assert_eq!(outcome(&[]), (lines.to_owned(), false));
}

#[test]
fn a_filter_chooses_by_part_of_the_name() {
    assert_eq!(outcome(&["oo"]), ("ok good\n".to_owned(), true));
}

#[test]
fn a_filter_that_chooses_nothing_is_no_success() {
    assert_eq!(
        outcome(&["nothing"]),
        ("FAIL no case: none of the names contains [\"nothing\"]\n".to_owned(), false)
    );
}

#[test]
fn the_list_names_all() {
    assert_eq!(outcome(&["--list"]), ("good\nbad\npanicking\n".to_owned(), true));
}
