//! From an act to its record on disk, at an even pace: on this machine, with few objects and many, on the best rung it allows; and in a guest,
//! on hooks.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Budget, Figure};
use crate::build::{self, Profile};
use crate::cmd::{self, say};
use crate::setup;
use crate::vm::kernel::{self, Series};
use crate::vm::{self, End, Output, VmSpec};

/// So many objects, here and in a guest.
const HERE: [u32; 3] = [10, 1_000, 100_000];
const IN_A_GUEST: [u32; 2] = [10, 1_000];
const GUEST: Series = Series::V6_12;
/// What may pass beside the flush of a disk and what the judge waits for an object to settle, in milliseconds, for all but one of a hundred acts.
const MOST: f64 = 10.0;

pub(super) fn run() -> Result<Vec<Figure>> {
    setup::packages(setup::VM)?;
    let built = build::static_binaries(
        Profile::Lane,
        &[
            "--package",
            "monitor",
            "--bin",
            "meshseal",
            "--package",
            "meshseal-tests",
            "--bin",
            "bench_latency",
        ],
    )?;
    let (meshseal, program) = (built.join("meshseal"), built.join("bench_latency"));
    let mut figures = Vec::new();
    for objects in HERE {
        say!("{objects} objects, on this machine");
        figures.extend(figures_of("here", &here(&meshseal, &program, objects)?, true)?);
    }
    for objects in IN_A_GUEST {
        say!("{objects} objects, in a guest with {GUEST}");
        // Where each processor is emulated, times are those of the emulation.
        figures.extend(figures_of(
            &format!("{GUEST} guest"),
            &in_a_guest(&meshseal, &program, objects)?,
            false,
        )?);
    }
    Ok(figures)
}

fn here(meshseal: &Path, program: &Path, objects: u32) -> Result<Value> {
    let mut command = Command::new(program);
    said(&cmd::output(command.arg(objects.to_string()).env("MESHSEAL", meshseal))?)
}

fn in_a_guest(meshseal: &Path, program: &Path, objects: u32) -> Result<Value> {
    let command = ["/with/bench_latency".to_owned(), objects.to_string()];
    let mut spec = VmSpec::new(kernel::resolve(GUEST)?, command.map(Into::into).to_vec());
    spec.meshseal = Some(meshseal.to_owned());
    spec.with = vec![program.to_owned()];
    spec.memory_mib = 2048;
    spec.output = Output::Capture;
    spec.timeout = Some(Duration::from_secs(1800));
    let outcome = vm::run(&spec)?;
    if !matches!(outcome.end, End::Exited(0)) {
        let errors = String::from_utf8_lossy(&outcome.stderr);
        bail!("bench_latency in a guest: {:?}: {}", outcome.end, cmd::tail(errors.trim(), 10));
    }
    said(&String::from_utf8_lossy(&outcome.stdout))
}

fn said(text: &str) -> Result<Value> {
    serde_json::from_str(text.trim()).context("what bench_latency says")
}

fn figures_of(place: &str, said: &Value, counts: bool) -> Result<Vec<Figure>> {
    let number = |value: &Value| value.as_f64().with_context(|| format!("a time in {said}"));
    let rung = said["rung"].as_str().context("the rung")?;
    let (objects, acts) = (&said["objects"], &said["acts"]);
    let (settle, pace) = (number(&said["settle"])?, number(&said["pace"])?);
    let mut figures = Vec::new();
    for percentile in ["p50", "p99"] {
        let (told, flush) = (number(&said["told"][percentile])?, number(&said["flush"][percentile])?);
        let beyond = told - settle - flush;
        let budget = Budget {
            says: format!("at most {MOST} ms beyond a flush and the {settle} ms in which an object settles"),
            is: beyond,
            met: beyond <= MOST,
        };
        figures.push(Figure {
            what: format!(
                "{place} {rung}, {objects} objects, {acts} acts at {pace:.0}/s: act to journal, {percentile}"
            ),
            value: told,
            unit: "ms",
            beside: Some(("a flush of the disk".to_owned(), flush)),
            budget: (counts && percentile == "p99").then_some(budget),
        });
    }
    let megabytes = number(&said["executable"])? / 1e6;
    figures.push(Figure {
        what: format!("{place} {rung}, {objects} objects: the first act of a program of {megabytes:.0} MB"),
        value: number(&said["first"])?,
        unit: "ms",
        beside: None,
        budget: None,
    });
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_about_what_is_beyond_settling_and_a_flush() {
        let said = |p99: f64| {
            serde_json::json!({
                "rung": "lsm", "objects": 1000, "acts": 1000, "pace": 999.6, "settle": 40.0,
                "first": 60.0, "executable": 5e7, "told": {"p50": 45.0, "p99": p99}, "flush": {"p50": 1.0, "p99": 3.0},
            })
        };
        let met = |p99: f64| {
            let figures = figures_of("here", &said(p99), true).unwrap();
            figures
                .into_iter()
                .filter_map(|figure| figure.budget)
                .map(|budget| budget.met)
                .collect::<Vec<_>>()
        };
        assert_eq!((met(52.9), met(53.1)), (vec![true], vec![false]));
        let guest = figures_of("guest", &said(99.0), false).unwrap();
        assert!(guest.len() == 3 && guest.iter().all(|figure| figure.budget.is_none()));
    }
}
