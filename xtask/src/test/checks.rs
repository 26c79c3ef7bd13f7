//! The lanes that cargo and its companions run by themselves.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::Tally;
use super::again::Run;
use crate::build::{self, Profile};
use crate::cache::Cache;
use crate::cmd::{self, say};
use crate::fuzz::{Extent, Programs, Sanitizer};

const DENY_VERSION: &str = "0.20.2";

pub(super) fn format() -> Result<Tally> {
    check(cmd::cargo().args(["fmt", "--all", "--check"]))
}

pub(super) fn clippy() -> Result<Tally> {
    check(cmd::cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        // What only the fuzzer sees.
        "--features",
        "monitor/fuzz",
        "--locked",
        "--",
        "-Dwarnings",
    ]))
}

/// Private items too: these docs are for who works on the project, so a public item may point to a private one.
pub(super) fn doc() -> Result<Tally> {
    check(cmd::cargo().env("RUSTDOCFLAGS", "-Dwarnings -Arustdoc::private_intra_doc_links").args([
        "doc",
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--locked",
    ]))
}

/// Advisories too where their database can be had; it says so where not.
pub(super) fn deny() -> Result<Tally> {
    let dir = Cache::open()?.entry("cargo-deny", DENY_VERSION, |dir| {
        say!("building cargo-deny {DENY_VERSION}, some minutes, once");
        let mut cargo = cmd::clean("cargo");
        cargo
            .env_remove("CARGO_TARGET_DIR")
            .current_dir("/")
            // Unoptimised, it is built in half the time, and reads one lock file.
            .args([
                "install",
                "--quiet",
                "--debug",
                "cargo-deny",
                "--version",
                DENY_VERSION,
                "--locked",
                "--root",
            ])
            .arg(dir);
        cmd::run(&mut cargo)
    })?;
    let deny = |arguments: &[&str]| {
        let mut command = cmd::clean(dir.join("bin/cargo-deny"));
        command.current_dir(crate::workspace::root()).args(["--workspace", "--locked"]).args(arguments);
        command
    };
    let fetched = cmd::output(&mut deny(&["fetch", "db"]));
    let mut tally = check(deny(&["check", "--hide-inclusion-graph"]).args(if fetched.is_ok() {
        &["advisories", "bans", "licenses", "sources"][..]
    } else {
        &["bans", "licenses", "sources"][..]
    }))?;
    if let Err(error) = fetched {
        "advisories NOT checked: their database cannot be fetched".clone_into(&mut tally.note);
        say!("{}", tally.note);
        tally.log.push_str(&format!("\n{}: {error:#}\n", tally.note));
    }
    Ok(tally)
}

/// Tests at a time: most of those that take long wait.
const TESTS_AT_ONCE: &str = "8";

/// Unit and property tests of all crates.
pub(super) fn unit(run: Run<'_>) -> Result<Tally> {
    let objects = crate::ebpf::build()?;
    let mut tally = Tally::default();
    for selection in [
        &["--workspace", "--exclude", "meshseal-tests"][..],
        &["--package", "meshseal-tests", "--test", "harness"],
    ] {
        let mut cargo = build::static_cargo(Profile::Lane, "test", &objects);
        cargo.arg("--no-fail-fast").args(selection).env("RUST_TEST_THREADS", TESTS_AT_ONCE);
        if let Run::Again(_) = run {
            cargo.args(["--", "--exact"]).args(run.tests());
        }
        let one = libtest(&mut cargo)?;
        tally.passed += one.passed;
        tally.failed += one.failed;
        tally.log.push_str(&one.log);
    }
    Ok(tally)
}

/// Every parser, guided by coverage.
pub(super) fn fuzz(extent: Extent) -> Result<Tally> {
    let (outcomes, log) = Programs::build(Sanitizer::None, &[])?.fuzz(extent)?;
    let mut tally = Tally { log, ..Tally::default() };
    for outcome in outcomes {
        tally.log.push_str(&format!("{}\n", outcome.line()));
        match outcome.fault {
            None => tally.passed += 1,
            Some(fault) => {
                tally.failed += 1;
                tally.log.push_str(&format!("FAIL fuzz {}: {fault}\n", outcome.name));
            }
        }
    }
    Ok(tally)
}

/// Runs test programs of libtest's, by cargo; the names of those that failed stand at the end of the log.
pub(super) fn libtest(cargo: &mut Command) -> Result<Tally> {
    let out = cargo.output().context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let (passed, failed) = count(&text);
    // It did not build, or a test program died.
    let died = u32::from(!out.status.success() && failed == 0);
    let mut log = format!("{text}{}", String::from_utf8_lossy(&out.stderr));
    for name in failed_tests(&text) {
        log.push_str(&format!("FAIL {name}\n"));
    }
    Ok(Tally { passed, failed: failed + died, log, ..Tally::default() })
}

/// Names in libtest's lines `test NAME ... FAILED`.
fn failed_tests(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
}

/// Sums libtest's closing lines.
fn count(text: &str) -> (u32, u32) {
    let number = |line: &str, what: &str| -> u32 {
        line.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
            .unwrap_or(0)
    };
    text.lines().filter(|line| line.starts_with("test result: ")).fold((0, 0), |(passed, failed), line| {
        (passed + number(line, " passed"), failed + number(line, " failed"))
    })
}

/// One check: it passes when the command does.
fn check(command: &mut Command) -> Result<Tally> {
    let shown = cmd::shown(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    let passed = out.status.success();
    Ok(Tally {
        passed: u32::from(passed),
        failed: u32::from(!passed),
        log: format!(
            "{shown}\n{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        ),
        ..Tally::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed() {
        let text = "test a ... ok\n\
            test result: ok. 17 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        assert_eq!(count(text), (20, 2));
        assert_eq!(count("running 0 tests\n"), (0, 0));
        let text = "test a::b ... ok\ntest a::c ... FAILED\ntest result: FAILED. 1 passed; 1 failed\n";
        assert_eq!(failed_tests(text).collect::<Vec<_>>(), ["a::c"]);
    }
}
