//! What failed is run once more, by itself: on a machine that others load, a case may fail for want of processor time. What passes
//! then does not fail the lane, and is listed with why it failed, for somebody to mend.

use std::collections::HashSet;

use anyhow::Result;

use super::Tally;

/// More failures than this are no accident.
const AT_MOST: usize = 5;

/// One that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// The test program; empty for those of libtest.
    pub(super) program: String,
    /// `None` where the program as a whole failed.
    pub(super) case: Option<String>,
    why: String,
}

/// What a lane is to run.
#[derive(Debug, Clone, Copy)]
pub(super) enum Run<'a> {
    All,
    /// Only what failed.
    Again(&'a [Failure]),
}

impl<'a> Run<'a> {
    /// Of this program: `None` where it need not run, else the names of the cases, none for all.
    pub(super) fn cases(self, program: &str) -> Option<Vec<&'a str>> {
        let Self::Again(failures) = self else { return Some(Vec::new()) };
        let mut of = failures.iter().filter(|failure| failure.program == program).peekable();
        of.peek()?;
        // All of it, if it failed as a whole.
        Some(of.map(|failure| failure.case.as_deref()).collect::<Option<_>>().unwrap_or_default())
    }

    /// Names of libtest's that failed.
    pub(super) fn tests(self) -> Vec<&'a str> {
        let Self::Again(failures) = self else { return Vec::new() };
        failures.iter().filter_map(|failure| failure.case.as_deref()).collect()
    }
}

/// Runs a lane, and what failed of it once more.
pub(super) fn once_more(run: impl Fn(Run<'_>) -> Result<Tally>) -> Result<Tally> {
    let mut tally = run(Run::All)?;
    let mut failures = failures(&tally.log);
    let all_are_known = failures.len() == tally.failed as usize;
    // A test that runs itself in a process of its own is named by both.
    let mut seen = HashSet::new();
    failures.retain(|one| seen.insert((one.program.clone(), one.case.clone())));
    if failures.is_empty() || failures.len() > AT_MOST || !all_are_known {
        return Ok(tally);
    }
    let again = match run(Run::Again(&failures)) {
        Ok(again) => again,
        Err(error) => Tally { failed: 1, log: format!("{error:#}\n"), ..Tally::default() },
    };
    tally.log.push_str("== what failed, once more\n");
    tally.log.push_str(&again.log);
    if again.failed == 0 && again.passed as usize >= failures.len() {
        tally.passed += again.passed;
        tally.failed = 0;
        tally.flaky = failures.iter().map(|failure| failure.why.clone()).collect();
    }
    Ok(tally)
}

/// What a lane's log names as failed: `program: FAIL case: why`, or `FAIL program: why`, or libtest's `FAIL name`.
fn failures(log: &str) -> Vec<Failure> {
    let failure = |line: &str| {
        let (program, case) = if let Some(what) = line.strip_prefix("FAIL ") {
            match what.split_once(": ") {
                Some((program, _)) => (program, None),
                None => ("", Some(what)),
            }
        } else if let Some((program, what)) = line.split_once(": FAIL ") {
            (program, Some(what.split_once(": ").map_or(what, |(case, _)| case)))
        } else {
            return None;
        };
        Some(Failure { program: program.to_owned(), case: case.map(str::to_owned), why: line.to_owned() })
    };
    log.lines().filter_map(failure).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LOG: &str =
        "vm_a: ok one\nvm_a: FAIL two: why\nvm_a: FAIL three: why\nFAIL vm_b: exit status 1\nFAIL a::b\n";

    fn tally(passed: u32, failed: u32, log: &str) -> Tally {
        Tally { passed, failed, log: log.to_owned(), ..Tally::default() }
    }

    #[test]
    fn what_failed_is_chosen() {
        let failures = failures(LOG);
        let run = Run::Again(&failures);
        assert_eq!(run.cases("vm_a"), Some(vec!["two", "three"]));
        assert_eq!(run.cases("vm_b"), Some(vec![]));
        assert_eq!(run.cases("vm_c"), None);
        assert_eq!(run.tests(), ["two", "three", "a::b"]);
        assert_eq!(Run::All.cases("vm_c"), Some(vec![]));
    }

    #[test]
    fn what_passes_then_is_flaky_and_what_fails_again_has_failed() {
        let outcome = |again: Tally| {
            let again = Cell::new(Some(again));
            let tally = once_more(|run| {
                Ok(match run {
                    Run::All => tally(1, 1, "vm_a: ok one\nvm_a: FAIL two: why\n"),
                    Run::Again(_) => again.take().unwrap(),
                })
            })
            .unwrap();
            (tally.passed, tally.failed, tally.flaky)
        };
        assert_eq!(outcome(tally(1, 0, "vm_a: ok two\n")), (2, 0, vec!["vm_a: FAIL two: why".to_owned()]));
        assert_eq!(outcome(tally(0, 1, "vm_a: FAIL two: why\n")), (1, 1, vec![]));
        // Nothing was run.
        assert_eq!(outcome(tally(0, 0, "")), (1, 1, vec![]));
    }

    #[test]
    fn many_or_nameless_failures_are_not_run_again() {
        let ran_again = |first: &dyn Fn() -> Tally| {
            let again = Cell::new(false);
            once_more(|run| {
                again.set(again.get() || matches!(run, Run::Again(_)));
                Ok(first())
            })
            .unwrap();
            again.get()
        };
        let many: String = (0..6).map(|at| format!("vm_a: FAIL c{at}: why\n")).collect();
        assert!(!ran_again(&|| tally(0, 6, &many)));
        assert!(!ran_again(&|| tally(0, 2, "vm_a: FAIL one: why\n")));
        assert!(!ran_again(&|| tally(1, 0, "vm_a: ok one\n")));
        assert!(ran_again(&|| tally(0, 1, "vm_a: FAIL one: why\n")));
        assert!(ran_again(&|| tally(0, 2, "FAIL a::b\nFAIL a::b\n")));
    }
}
