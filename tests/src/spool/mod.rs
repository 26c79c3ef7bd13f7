//! The journal under an agent, on a disk that is full and under kill -9.

mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::disk::Disk;
use crate::agent::{Agent, Home, answers};

/// What a test program's `main` returns.
pub fn main() -> ExitCode {
    crate::main(crate::cases![
        a_full_disk_holds_records_back_and_loses_none,
        stopped_while_the_disk_is_full_it_ends_and_looks_again,
        started_on_a_full_disk_it_says_so_and_goes_on,
        killed_at_any_moment_it_keeps_what_was_told,
    ])
}

/// Objects of a test: more than the channels before the journal hold batches.
const OBJECTS: usize = 400;

/// MiB of a disk that is to be filled.
const SMALL: u64 = 8;

/// An agent's home whose state is on a small disk, and sealed objects elsewhere.
struct Bench {
    disk: Disk,
    home: Home,
    objects: Vec<PathBuf>,
    /// Last, so that the disk is unmounted before.
    _scratch: tempfile::TempDir,
}

impl Bench {
    fn new(mib: u64) -> Result<Self> {
        let place = if Path::new("/data").is_dir() { "/data" } else { "/var/tmp" };
        let scratch = tempfile::Builder::new().prefix("spool-").tempdir_in(place)?;
        let home = Home::new(scratch.path().join("home"))?;
        let disk = Disk::mount(scratch.path(), &home.dir.join("state"), mib)?;
        let dir = scratch.path().join("tree");
        fs::create_dir(&dir)?;
        let objects: Vec<PathBuf> = (0..OBJECTS).map(|at| dir.join(format!("object-{at}"))).collect();
        for object in &objects {
            fs::write(object, "sealed")?;
        }
        home.baseline("spool", 1, &[&dir])?;
        Ok(Self { disk, home, objects, _scratch: scratch })
    }

    fn tamper(&self) -> Result<()> {
        self.objects.iter().try_for_each(|object| Ok(fs::write(object, "TAMPER")?))
    }

    /// Each object's violation is told once, and no number is missing.
    fn all_told(&self, agent: &mut Agent) -> Result<()> {
        let wanted: BTreeSet<String> = self.objects.iter().map(|path| path.display().to_string()).collect();
        agent.wait("violation of each object", |seen| opened(seen).len() >= wanted.len())?;
        let opened = opened(&agent.seen);
        let told: BTreeSet<String> = opened.iter().cloned().collect();
        ensure!(
            told == wanted && opened.len() == wanted.len(),
            "{} violations of {}",
            opened.len(),
            told.len()
        );
        let numbers = agent.seen.iter().map(|record| record["seq"].as_u64());
        ensure!(numbers.eq((1..=agent.seen.len() as u64).map(Some)), "sequence numbers have holes");
        Ok(())
    }
}

/// Paths of all opened violations, in order.
fn opened(records: &[Value]) -> Vec<String> {
    let opened = records.iter().filter(|record| record["kind"] == "violation.opened");
    opened.filter_map(|record| record["object"]["path"].as_str()).map(str::to_owned).collect()
}

/// Asks for the status until it is as wanted. It must always answer.
fn status(agent: &Agent, what: &str, fits: impl Fn(&Value, i32) -> bool) -> Result<Value> {
    let ask = || {
        let (status, code) = agent.status()?;
        ensure!(status["posture"].is_string(), "no answer: {status}");
        Ok((status, code))
    };
    answers(what, ask, fits).map(|(status, _)| status)
}

fn failing(status: &Value) -> bool {
    status["reasons"].as_array().is_some_and(|reasons| reasons.iter().any(|one| one == "journal_failing"))
}

fn a_full_disk_holds_records_back_and_loses_none() -> Result<()> {
    let bench = Bench::new(SMALL)?;
    let mut agent = Agent::start(&bench.home, 1)?;
    status(&agent, "intact", |status, code| status["posture"] == "intact" && code == 0)?;
    bench.disk.fill()?;
    // Something to record that is no violation: opened for writing, and nothing written.
    for object in &bench.objects[..100] {
        drop(OpenOptions::new().write(true).open(object)?);
    }
    status(&agent, "uncertain", |status, code| {
        failing(status) && status["posture"] == "uncertain" && code == 3
    })?;
    bench.home.verify_journal().context("while the disk is full")?;

    // More than the way to the journal holds.
    bench.tamper()?;
    let full = status(&agent, "violated", |status, code| {
        failing(status) && status["posture"] == "violated" && code == 1
    })?;
    bench.home.verify_journal().context("while the disk is full")?;

    bench.disk.free()?;
    bench.all_told(&mut agent)?;
    let after = status(&agent, "well again", |status, code| !failing(status) && code == 1)?;
    ensure!(after["journal"]["seq"].as_u64() > full["journal"]["seq"].as_u64(), "{}", after["journal"]);
    ensure!(after["loss"]["unreconciled"] == 0, "{}", after["loss"]);
    agent.stop()?;
    bench.home.verify_journal()
}

fn stopped_while_the_disk_is_full_it_ends_and_looks_again() -> Result<()> {
    let bench = Bench::new(SMALL)?;
    let agent = Agent::start(&bench.home, 1)?;
    bench.disk.fill()?;
    bench.tamper()?;
    status(&agent, "violated", |status, _| failing(status))?;
    agent.signal(rustix::process::Signal::TERM)?;
    let ended = agent.ended()?;
    ensure!(ended.code() == Some(1), "it ended with {ended}");
    bench.home.verify_journal().context("after the stop")?;
    bench.disk.free()?;
    let mut agent = Agent::start(&bench.home, 1)?;
    bench.all_told(&mut agent)?;
    agent.stop()?;
    bench.home.verify_journal()
}

fn started_on_a_full_disk_it_says_so_and_goes_on() -> Result<()> {
    let bench = Bench::new(SMALL)?;
    let agent = Agent::start(&bench.home, 1)?;
    bench.disk.fill()?;
    bench.tamper()?;
    status(&agent, "violated", |status, _| failing(status))?;
    agent.kill()?;
    bench.home.verify_journal().context("after the kill")?;
    // It is not ready before it has recorded what it found; until then it answers.
    let mut agent = Agent::start_while(&bench.home, 1, &[], || {
        let socket = bench.home.socket();
        answers("failing", || Agent::status_at(&socket), |status, _| failing(status))?;
        bench.home.verify_journal().context("while it starts")?;
        bench.disk.free()
    })?;
    bench.all_told(&mut agent)?;
    agent.stop()?;
    bench.home.verify_journal()
}

/// Kills the agent while it records, at moments that differ, and compares what it told before with what it has after.
fn killed_at_any_moment_it_keeps_what_was_told() -> Result<()> {
    const ROUNDS: u64 = 8;
    let bench = Bench::new(128)?;
    let mut told: BTreeMap<u64, Value> = BTreeMap::new();
    let mut wait = std::process::id().into();
    for round in 0..ROUNDS {
        let over = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| -> Result<Vec<Value>> {
            scope.spawn(|| storm(&bench.objects, &over));
            let killed = (|| {
                let agent = Agent::start(&bench.home, 1)?;
                // A moment that nobody chose.
                wait = u64::wrapping_mul(wait, 6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                std::thread::park_timeout(Duration::from_millis(20 + (wait >> 33) % 400));
                agent.kill()
            })();
            over.store(true, Ordering::Release);
            killed
        })?;
        bench.home.verify_journal().with_context(|| format!("after kill {round}"))?;
        let now: BTreeMap<u64, Value> =
            seen.into_iter().filter_map(|record| Some((record["seq"].as_u64()?, record))).collect();
        for (seq, record) in &told {
            if let Some(found) = now.get(seq) {
                ensure!(found == record, "record {seq} is another after kill {round}: {found}, was {record}");
            }
        }
        told.extend(now);
    }
    let last = told.keys().next_back().copied().context("nothing was told")?;
    let mut agent = Agent::start(&bench.home, 1)?;
    agent.wait("record that was told before", |seen| {
        seen.iter().any(|one| one["seq"].as_u64() > Some(last))
    })?;
    let records = agent.stop()?;
    for (seq, record) in &told {
        let found = records.iter().find(|one| one["seq"] == *seq);
        ensure!(found == Some(record), "record {seq} was told and is gone");
    }
    let starts = records.iter().filter(|one| one["kind"] == "agent.started").count() as u64;
    ensure!(starts == ROUNDS + 1, "{starts} starts");
    bench.home.verify_journal()
}

/// Changes objects without end.
fn storm(objects: &[PathBuf], over: &AtomicBool) {
    for round in 0_u64.. {
        for object in objects {
            if over.load(Ordering::Acquire) {
                return;
            }
            drop(fs::write(object, round.to_string()));
        }
    }
}
