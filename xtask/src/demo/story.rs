//! The story's lines: each waits for the record it tells of, prints it, and is confirmed at the end.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::agent::Meshseal;

/// How long a record may take to come: a guest without hardware virtualisation hashes 100 MB in some seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The record that a line of the story must be confirmed by.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) title: &'static str,
    pub(super) kind: &'static str,
    /// Empty where the kind is no violation.
    pub(super) violation: &'static str,
    pub(super) path: String,
    pub(super) operation: &'static str,
    pub(super) comm: &'static str,
}

fn text<'a>(record: &'a Value, pointer: &str) -> &'a str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn seq(record: &Value) -> u64 {
    record.get("seq").and_then(Value::as_u64).unwrap_or_default()
}

impl Expected {
    fn is(&self, record: &Value) -> bool {
        text(record, "/kind") == self.kind
            && text(record, "/violation") == self.violation
            && text(record, "/object/path") == self.path
            && text(record, "/operation") == self.operation
            && text(record, "/actor/comm") == self.comm
    }
}

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Story {
    told: Vec<(u64, Expected)>,
    from: u64,
}

impl Story {
    /// Waits for a record of which `wanted` holds.
    pub(super) fn wait(
        &self,
        meshseal: &Meshseal,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            let records = meshseal.events(self.from.max(1))?;
            if let Some(found) = records.iter().find(|record| wanted(record)) {
                return Ok(found.clone());
            }
            if Instant::now() > until {
                let mut near = String::new();
                for record in &records {
                    let _ = write!(
                        near,
                        "\n  #{} {} {} {} by {} on {}",
                        seq(record),
                        text(record, "/kind"),
                        text(record, "/violation"),
                        text(record, "/operation"),
                        text(record, "/actor/comm"),
                        text(record, "/object/path")
                    );
                }
                bail!(
                    "not confirmed: {what}: no such record within {PATIENCE:?}; since the line before:{near}"
                );
            }
            pause();
        }
    }

    /// One line of the story, with what its record says.
    pub(super) fn tell(&mut self, meshseal: &Meshseal, expected: Expected) -> Result<()> {
        let what = format!("\"{}\" ({} {})", expected.title, expected.kind, expected.violation);
        let record = self.wait(meshseal, &what, |record| expected.is(record))?;
        let number = seq(&record);
        println!("  #{number:<4} {}", expected.title);
        let finding = if expected.violation.is_empty() { expected.kind } else { expected.violation };
        println!("        {:<8} {finding} ({})  {}", "what", text(&record, "/severity"), expected.path);
        println!(
            "        {:<8} {} by {} (pid {}, uid {}): {}",
            "who",
            expected.operation,
            expected.comm,
            record.pointer("/actor/tgid").unwrap_or(&Value::Null),
            record.pointer("/actor/uid").unwrap_or(&Value::Null),
            short(text(&record, "/actor/cmdline"), 90)
        );
        for (label, key) in
            [("expected", "/expected"), ("actual", "/actual"), ("old", "/old"), ("new", "/new")]
        {
            if let Some(state) = record.pointer(key).and_then(Value::as_object).filter(|s| !s.is_empty()) {
                let parts: Vec<String> = state
                    .iter()
                    .map(|(key, value)| format!("{key}={}", short(value.as_str().unwrap_or_default(), 36)))
                    .collect();
                println!("        {label:<8} {}", parts.join("  "));
            }
        }
        self.told.push((number, expected));
        Ok(())
    }

    /// From now on only later records are looked at.
    pub(super) fn next(&mut self, meshseal: &Meshseal) -> Result<()> {
        self.from = meshseal.events(self.from.max(1))?.iter().map(seq).max().map_or(self.from, |seq| seq + 1);
        Ok(())
    }

    /// Reads all records again: each line told must be there under its number, and no violation may be there beyond
    /// those told.
    pub(super) fn confirm(&self, meshseal: &Meshseal) -> Result<usize> {
        let records = meshseal.events(1)?;
        for (number, expected) in &self.told {
            if !records.iter().any(|record| seq(record) == *number && expected.is(record)) {
                bail!("not confirmed: \"{}\": record {number} does not say so", expected.title);
            }
        }
        for record in records.iter().filter(|record| text(record, "/kind") == "violation.opened") {
            if !self.told.iter().any(|(number, _)| *number == seq(record)) {
                bail!(
                    "not confirmed: record {} is a violation that the story does not tell of: {} of {} by {}",
                    seq(record),
                    text(record, "/violation"),
                    text(record, "/object/path"),
                    text(record, "/actor/comm")
                );
            }
        }
        Ok(self.told.len())
    }
}

/// Between two questions to the agent.
#[expect(clippy::disallowed_methods, reason = "the answers of another process are polled, as a user would")]
pub(super) fn pause() {
    thread::sleep(Duration::from_millis(200));
}

/// At most `most` characters.
fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most).chain("…".chars()).collect()
}
