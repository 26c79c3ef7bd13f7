//! Writing to stdout and stderr: a reader that went away is no error and no panic, and what others named cannot
//! forge lines or drive the terminal.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde::Serialize;

use super::Failure;
use crate::model::Time;
pub use crate::text::one_line;

/// Prints one line to stdout.
///
/// # Errors
/// stdout cannot be written to; a closed pipe ends the command with exit status 0.
pub fn line(text: &str) -> Result<(), Failure> {
    write(text, true)
}

/// Prints text that brings its own line ends to stdout.
///
/// # Errors
/// As [`line()`].
pub fn text(text: &str) -> Result<(), Failure> {
    write(text, false)
}

fn write(text: &str, end: bool) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| if end { out.write_all(b"\n") } else { Ok(()) })
        .and_then(|()| out.flush());
    written.map_err(|error| {
        let mut failure = Failure::new("output", "stdout", &error);
        failure.pipe_closed = error.kind() == io::ErrorKind::BrokenPipe;
        failure
    })
}

/// Prints one line to stderr, as far as that works.
pub fn error_line(text: &str) {
    let _unheard = writeln!(io::stderr().lock(), "{text}");
}

/// The word an enum has in JSON; empty for what is no word.
#[must_use]
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// How long ago that was, in its largest unit.
#[must_use]
pub fn ago(then: Time, now: Time) -> String {
    let seconds = now.as_nanos().saturating_sub(then.as_nanos()).max(0) / 1_000_000_000;
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7_199 => format!("{} min ago", seconds / 60),
        7_200..=172_799 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Rows in columns: each as wide as its widest cell (in characters), two blanks between, none at the end.
#[must_use]
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let clean: Vec<Vec<String>> = std::iter::once(header.iter().map(|&cell| cell.to_owned()).collect())
        .chain(rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()))
        .collect();
    let columns = clean.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        clean.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in &clean {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "long one".to_owned()], vec!["bbb\n".to_owned(), "c".to_owned()]];
        assert_eq!(table(&["ID", "NAME"], &rows), "ID       NAME\na        long one\nbbb\\x0a  c\n");
    }
}
