//! A baseline of 100,000 objects: how long it takes to be believed and parsed, and what an object costs in memory.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::measure::median;
use super::{Budget, Figure};
use crate::build::{self, Profile};
use crate::cmd::{self, say};
use crate::workspace;

const OBJECTS: u64 = 100_000;
const ROUNDS: usize = 5;

pub(super) fn run() -> Result<Vec<Figure>> {
    let built = build::static_binaries(
        Profile::Release,
        &["--package", "meshseal-tests", "--bin", "bench_baseline"],
    )?;
    let program = built.join("bench_baseline");
    let dir = workspace::target().join("bench/baseline");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let file = dir.join("baseline.dsse.json");
    say!("making a baseline of {OBJECTS} objects");
    cmd::output(Command::new(&program).arg("make").arg(&file).arg(OBJECTS.to_string()))?;
    let (mut seconds, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let said = cmd::output(Command::new(&program).arg("load").arg(&file))?;
        let said: serde_json::Value = serde_json::from_str(&said).context("what bench_baseline says")?;
        let number = |key: &str| said[key].as_f64().with_context(|| format!("{key} of bench_baseline"));
        seconds.push(number("seconds")?);
        bytes.push(number("bytes_per_object")?);
    }
    let (seconds, bytes) = (median(seconds), median(bytes));
    Ok(vec![
        Figure {
            what: format!("{OBJECTS} objects, read, signature checked, parsed"),
            value: seconds,
            unit: "s",
            beside: None,
            budget: Some(Budget { says: "at most 1 s".into(), is: seconds, met: seconds <= 1.0 }),
        },
        Figure {
            what: "resident memory an object beyond its path".into(),
            value: bytes,
            unit: "B",
            beside: None,
            budget: Some(Budget { says: "at most 200 B".into(), is: bytes, met: bytes <= 200.0 }),
        },
    ])
}
