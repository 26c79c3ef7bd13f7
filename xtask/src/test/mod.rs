//! `cargo xtask test`: every lane, one after the other, and a summary that can be read.
//!
//! Everything that is compiled to run (unit tests, test programs, the agent) shares one cargo profile and target, so that each
//! dependency is built once. Details of a lane that failed are in `target/xtask-logs/<lane>.log`, and its end on stderr.

mod again;
mod checks;
mod full;
mod programs;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::again::once_more;
use self::programs::Boot;
use crate::cmd::{self, say};
use crate::vm::kernel::Series;
use crate::{setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The whole matrix, with what takes hours
    #[arg(long)]
    full: bool,
}

/// What a lane counted, and what it has to say.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// What failed, and passed once more by itself: the line that told of the failure.
    pub(crate) flaky: Vec<String>,
    /// For the summary; empty when there is nothing to add.
    pub(crate) note: String,
    /// Everything that the lane's programs said.
    pub(crate) log: String,
}

struct Lane {
    name: String,
    tally: Tally,
    took: Duration,
}

/// The verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    say!("set-up");
    setup::packages(setup::BUILD)?;
    setup::packages(setup::VM)?;
    let toolchain = setup::bpf_toolchain()?;
    say!("BPF toolchain: {}", toolchain.name);
    if args.full {
        say!("--full: every lane there is; the matrix adds to them as it grows");
    }

    let mut lanes = vec![
        lane("format", checks::format)?,
        lane("clippy", checks::clippy)?,
        lane("deny", checks::deny)?,
        lane("doc", checks::doc)?,
    ];
    lanes.push(lane("unit", || once_more(checks::unit))?);
    if args.full {
        lanes.push(lane("interop", full::interop)?);
        lanes.push(lane("fuzz", full::fuzz)?);
    }
    let mut built = None;
    lanes.push(lane("build", || {
        built = Some(programs::build()?);
        Ok(Tally { passed: 1, ..Tally::default() })
    })?);
    match built {
        Some(built) => {
            lanes.push(lane("native", || once_more(|run| programs::native(&built, args.full, run)))?);
            let guests: Vec<_> = Series::ALL
                .iter()
                .flat_map(|series| Boot::ALL.map(|(boot, suffix)| (*series, boot, suffix)))
                .collect();
            // Two guests at a time: one uses little more than one core.
            for pair in guests.chunks(2) {
                let done = std::thread::scope(|scope| {
                    let running: Vec<_> = pair
                        .iter()
                        .map(|(series, boot, suffix)| {
                            let built = &built;
                            scope.spawn(move || {
                                lane(&format!("vm {series}{suffix}"), || {
                                    once_more(|run| programs::guest(*series, *boot, args.full, built, run))
                                })
                            })
                        })
                        .collect();
                    running.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
                });
                for lane in done {
                    lanes.push(lane.map_err(|_| anyhow::anyhow!("a VM lane panicked"))??);
                }
            }
        }
        None => say!("native and vm lanes cannot run: the build failed"),
    }
    Ok(summary(&lanes))
}

/// The lines of a log that name what failed, some of them, and as much of each as can be read.
fn failures(log: &str) -> impl Iterator<Item = String> {
    const LINES: usize = 20;
    log.lines()
        .filter(|line| line.starts_with("FAIL ") || line.contains(": FAIL "))
        .take(LINES)
        .map(shortened)
}

fn shortened(line: &str) -> String {
    line.chars().take(1500).collect()
}

/// Runs one lane; an error of it counts as one failure.
fn lane(name: &str, run: impl FnOnce() -> Result<Tally>) -> Result<Lane> {
    say!("{name} ...");
    let started = Instant::now();
    let tally =
        run().unwrap_or_else(|error| Tally { failed: 1, log: format!("{error:#}\n"), ..Tally::default() });
    let lane = Lane { name: name.to_owned(), tally, took: started.elapsed() };
    let log = log_file(name)?;
    fs::write(&log, &lane.tally.log).with_context(|| format!("cannot write {}", log.display()))?;
    if lane.tally.failed > 0 {
        eprintln!("{}", cmd::tail(&lane.tally.log, 60));
        say!("{name} FAILED; all of it: {}", log.display());
    } else {
        say!("{name} passed in {:.0} s", lane.took.as_secs_f32());
    }
    Ok(lane)
}

fn log_file(lane: &str) -> Result<PathBuf> {
    let dir = workspace::target().join("xtask-logs");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir.join(format!("{}.log", lane.replace(' ', "-"))))
}

/// One line per lane, and the sum alone on the last line.
fn summary(lanes: &[Lane]) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    println!();
    println!("{:<14} {:>7} {:>7} {:>7}", "lane", "passed", "failed", "seconds");
    for Lane { name, tally, took } in lanes {
        passed += tally.passed;
        failed += tally.failed;
        let line = format!(
            "{name:<14} {:>7} {:>7} {:>7.0}  {}",
            tally.passed,
            tally.failed,
            took.as_secs_f32(),
            tally.note
        );
        println!("{}", line.trim_end());
    }
    for lane in lanes {
        for flaky in &lane.tally.flaky {
            println!("{}: FLAKY, passed once more by itself: {}", lane.name, shortened(flaky));
        }
        if lane.tally.failed == 0 {
            continue;
        }
        for failure in failures(&lane.tally.log) {
            println!("{}: {failure}", lane.name);
        }
    }
    println!();
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_said_last() {
        let log = "vm_a: ok one\nvm_a: FAIL two: why\nnoise\nFAIL vm_b: exit status 1\nno FAIL here\n";
        assert_eq!(failures(log).collect::<Vec<_>>(), ["vm_a: FAIL two: why", "FAIL vm_b: exit status 1"]);
    }
}
