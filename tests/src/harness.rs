//! Runs cases and tells of each on one line.

use std::any::Any;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::Result;

/// One thing that a test program shows.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Unique within the program; the function's name.
    pub name: &'static str,
    /// Fails by `Err` or by a panic.
    pub run: fn() -> Result<()>,
}

/// Runs the cases that the process's arguments choose; what a test program's `main` returns.
pub fn main(cases: &[Case]) -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    match run(cases, &arguments, &mut io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot tell the outcome: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the cases that `arguments` choose; true when all of them passed and there was one at least.
///
/// # Errors
/// Where `out` cannot be written.
pub fn run(cases: &[Case], arguments: &[String], out: &mut dyn Write) -> io::Result<bool> {
    if arguments.iter().any(|argument| argument == "--list") {
        for case in cases {
            writeln!(out, "{}", case.name)?;
        }
        return Ok(true);
    }
    let chosen = |case: &&Case| arguments.is_empty() || arguments.iter().any(|part| case.name.contains(part));
    let (mut passed, mut failed) = (0, 0);
    for case in cases.iter().filter(chosen) {
        let failure = match catch_unwind(AssertUnwindSafe(case.run)) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) => Some(format!("panicked: {}", message(panic.as_ref()))),
        };
        match failure {
            None => {
                passed += 1;
                writeln!(out, "ok {}", case.name)?;
            }
            Some(why) => {
                failed += 1;
                writeln!(out, "FAIL {}: {}", case.name, one_line(&why))?;
            }
        }
        out.flush()?;
    }
    if passed + failed == 0 {
        writeln!(out, "FAIL no case: none of the names contains {arguments:?}")?;
    }
    Ok(passed > 0 && failed == 0)
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

/// Line ends inside a text would look like the end of its line.
fn one_line(text: &str) -> String {
    text.trim().replace('\\', "\\\\").replace('\r', "\\r").replace('\n', "\\n")
}
