//! `cargo xtask test`: every lane, one after the other, and a summary that can be read.
//!
//! Everything that is compiled to run (unit tests, test programs, the agent) shares one cargo profile and target, so that each
//! dependency is built once. Details of a lane that failed are in `target/xtask-logs/<lane>.log`, and its end on stderr.

mod again;
mod checks;
mod full;
mod programs;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::again::once_more;
use self::programs::Boot;
use crate::cmd::{self, say};
use crate::fuzz::Extent;
use crate::vm::kernel::Series;
use crate::{setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The whole matrix, with what takes hours
    #[arg(long)]
    full: bool,
    /// Only this lane; may be given more than once
    #[arg(long, value_name = "LANE")]
    only: Vec<String>,
}

impl Args {
    /// Whether a lane of that name is to run. An error if `--only` names one that does not exist.
    fn wanted(&self) -> Result<impl Fn(&str) -> bool> {
        let mut names: Vec<String> = ["format", "clippy", "deny", "doc", "unit", "fuzz", "build", "native"]
            .map(str::to_owned)
            .to_vec();
        if self.full {
            names.push(INTEROP.to_owned());
        }
        names.extend(guests().map(|(name, ..)| name));
        if let Some(unknown) = self.only.iter().find(|only| !names.contains(only)) {
            let hint = if unknown == INTEROP { " but with --full" } else { "" };
            bail!("{unknown} is no lane{hint}: expected one of {}", names.join(", "));
        }
        Ok(|name: &str| self.only.is_empty() || self.only.iter().any(|only| only == name))
    }
}

const INTEROP: &str = "interop";
/// How far each parser is fuzzed, with `--full` and without.
const LONG_FUZZ: Extent = Extent::Seconds(120);
const SHORT_FUZZ: Extent = Extent::Inputs(10_000);

/// The lanes in guests: name, kernel, and how it is booted.
fn guests() -> impl Iterator<Item = (String, Series, Boot)> {
    Series::ALL
        .iter()
        .flat_map(|series| Boot::ALL.map(|(boot, suffix)| (format!("vm {series}{suffix}"), *series, boot)))
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
    let wanted = args.wanted()?;
    let guests: Vec<_> = guests().filter(|(name, ..)| wanted(name)).collect();
    say!("set-up");
    setup::packages(setup::BUILD)?;
    if !guests.is_empty() {
        setup::packages(setup::VM)?;
    }
    let toolchain = setup::bpf_toolchain()?;
    say!("BPF toolchain: {}", toolchain.name);
    if args.full {
        say!("--full: every lane there is; the matrix adds to them as it grows");
    }

    let mut lanes = Vec::new();
    let mut run = |name: &str, run: &dyn Fn() -> Result<Tally>| -> Result<()> {
        if wanted(name) {
            lanes.push(lane(name, run)?);
        }
        Ok(())
    };
    run("format", &checks::format)?;
    run("clippy", &checks::clippy)?;
    run("deny", &checks::deny)?;
    run("doc", &checks::doc)?;
    run("unit", &|| once_more(checks::unit))?;
    if args.full {
        run(INTEROP, &full::interop)?;
    }
    let mut built = None;
    if ["build", "native"].into_iter().any(&wanted) || !guests.is_empty() {
        lanes.push(lane("build", || {
            built = Some(programs::build()?);
            Ok(Tally { passed: 1, ..Tally::default() })
        })?);
        if built.is_none() {
            say!("native and vm lanes cannot run: the build failed");
        }
    }
    let mut rest: Vec<Work<'_>> = Vec::new();
    if wanted("fuzz") {
        let extent = if args.full { LONG_FUZZ } else { SHORT_FUZZ };
        rest.push(Box::new(move || lane("fuzz", || checks::fuzz(extent))));
    }
    let mut native: Option<Work<'_>> = None;
    if let Some(built) = &built {
        let full = args.full;
        native = wanted("native").then(|| -> Work<'_> {
            Box::new(move || lane("native", || once_more(|run| programs::native(built, full, run))))
        });
        rest.extend(guests.iter().map(|(name, series, boot)| -> Work<'_> {
            Box::new(move || {
                lane(name, || once_more(|run| programs::guest(*series, *boot, full, built, run)))
            })
        }));
    }
    lanes.extend(beside(native.as_ref(), &rest)?);
    Ok(summary(&lanes))
}

/// A lane that may run on a thread of its own.
type Work<'a> = Box<dyn Fn() -> Result<Lane> + Send + Sync + 'a>;

/// Runs the rest, two at a time, in turn: a guest uses little more than one core. The first goes before them: it mostly waits, and its cases fail for
/// want of processor time, so that the rest has what it leaves.
fn beside(first: Option<&Work<'_>>, rest: &[Work<'_>]) -> Result<Vec<Lane>> {
    /// The lowest priority that there is.
    const LEAST: i32 = 19;
    let (next, done) = (AtomicUsize::new(1), Mutex::new(BTreeMap::new()));
    let end = |at: usize, lane| done.lock().unwrap_or_else(PoisonError::into_inner).insert(at, lane);
    let work = || {
        // Of this thread, and of what it starts.
        rustix::process::setpriority_process(None, LEAST).context("cannot give way")?;
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(lane) = rest.get(at - 1) else { return anyhow::Ok(()) };
            end(at, lane());
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let own = scope.spawn(|| {
            if let Some(first) = first {
                end(0, first());
            }
            work()
        });
        for worker in [other, own] {
            let Ok(ended) = worker.join() else { bail!("a lane panicked") };
            ended?;
        }
        Ok(())
    })?;
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
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

    fn asked(full: bool, only: &[&str]) -> Args {
        Args { full, only: only.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn lanes_are_chosen_by_name() {
        let names = ["format", "fuzz", "interop", "vm 5.10", "vm 5.10 fentry"];
        let chosen = |args: &Args| {
            let wanted = args.wanted().unwrap();
            names.into_iter().filter(|name| wanted(name)).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&asked(true, &[])), names);
        assert_eq!(chosen(&asked(true, &["interop", "vm 5.10"])), ["interop", "vm 5.10"]);
        assert_eq!(chosen(&asked(false, &["fuzz"])), ["fuzz"]);
        let refused = |args: &Args| args.wanted().err().unwrap().to_string();
        let all = "format, clippy, deny, doc, unit, fuzz, build, native";
        let vm =
            "vm 5.10, vm 5.10 fentry, vm 6.1, vm 6.1 fentry, vm 6.12, vm 6.12 fentry, vm 7.2, vm 7.2 fentry";
        assert_eq!(
            refused(&asked(true, &["fuzz", "vm"])),
            format!("vm is no lane: expected one of {all}, interop, {vm}")
        );
        assert_eq!(
            refused(&asked(false, &["interop"])),
            format!("interop is no lane but with --full: expected one of {all}, {vm}")
        );
    }

    #[test]
    fn what_failed_is_said_last() {
        let log = "vm_a: ok one\nvm_a: FAIL two: why\nnoise\nFAIL vm_b: exit status 1\nno FAIL here\n";
        assert_eq!(failures(log).collect::<Vec<_>>(), ["vm_a: FAIL two: why", "FAIL vm_b: exit status 1"]);
    }
}
