//! Much at a time, and memory that is not what it seems.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::actor;
use super::acts::SEALED;
use super::mapping::{Mapping, shared_segment};
use super::rung::on_hooks;
use super::world::{places, scratch};
use crate::agent::{Agent, Home, told_of};
use crate::process::{Process, heard, say};

const BURST: u64 = 2001;
/// A storm in a lane that has to be short.
const SMALL: Storm = Storm { objects: 100, writers: 4, writes: 20_000 };

/// Many processes that write at once, each to objects of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storm {
    pub(super) objects: u64,
    pub(super) writers: u64,
    /// All together.
    pub(super) writes: u64,
}

impl Storm {
    /// Writers that are ready to begin.
    pub(super) fn gather(self, dir: &Path) -> Result<Vec<Process>> {
        let count = self.objects / self.writers;
        let each = self.writes / self.objects;
        ensure!(
            count * self.writers == self.objects && each * self.objects == self.writes,
            "{self:?} is uneven"
        );
        (0..self.writers).map(|at| waiting(dir, &format!("storm{at}"), at * count, count, each)).collect()
    }
}

pub(crate) fn object(dir: &Path, at: u64) -> PathBuf {
    dir.join(format!("{at:03}"))
}

/// Writes `each` times to each of `count` objects, in turn.
pub(super) fn write(dir: &Path, first: u64, count: u64, each: u64) -> Result<()> {
    let files = (first..first + count)
        .map(|at| Ok(OpenOptions::new().write(true).open(object(dir, at))?))
        .collect::<Result<Vec<File>>>()?;
    say("held")?;
    heard()?;
    for round in 0..each {
        for file in &files {
            file.write_all_at(format!("{round:06}").as_bytes(), 0)?;
        }
    }
    Ok(())
}

/// Maps a file, and stores into it when told to.
pub(super) fn hold(path: &Path) -> Result<()> {
    let mapping = {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Mapping::of(&file, SEALED.len())?
    };
    say("held")?;
    heard()?;
    mapping.store(0, b'X');
    drop(mapping);
    say("done")
}

/// That many objects, in a directory that is sealed.
pub(crate) fn bench(objects: u64) -> Result<(tempfile::TempDir, PathBuf, Home)> {
    let scratch = scratch(&places()[0])?;
    let dir = scratch.path().join("sealed");
    fs::create_dir(&dir)?;
    for at in 0..objects {
        fs::write(object(&dir, at), SEALED)?;
    }
    let home = Home::new(scratch.path().join("home"))?;
    home.baseline("load", 1, &[&dir])?;
    Ok((scratch, dir, home))
}

fn of_violation(record: &Value) -> Option<&str> {
    let kind = record["kind"].as_str()?;
    let own = matches!(kind, "violation.opened" | "violation.updated");
    own.then(|| record["object"]["path"].as_str()).flatten()
}

/// The last word on each object: how often it was written, and what it is said to hold.
fn last_words(records: &[Value]) -> BTreeMap<String, (u64, String)> {
    records
        .iter()
        .filter_map(|record| {
            let hash = record["actual"]["sha256"].as_str().unwrap_or_default().to_owned();
            Some((of_violation(record)?.to_owned(), (record["count"].as_u64()?, hash)))
        })
        .collect()
}

fn writer(dir: &Path, comm: &str, first: u64, count: u64, each: u64) -> Result<Process> {
    let role = [
        "writer",
        dir.to_str().context("not UTF-8")?,
        &first.to_string(),
        &count.to_string(),
        &each.to_string(),
    ];
    actor::begin(comm, &role)
}

/// All writes are told of, or a gap says that not all are; each object's state is that on disk.
fn judged(home: &Home, dir: &Path, objects: u64, writes: u64, mut writers: Vec<Process>) -> Result<()> {
    let mut agent = Agent::start(home, 1)?;
    let rung = agent.rung()?;
    writers.iter_mut().try_for_each(|writer| writer.say("go"))?;
    writers.iter_mut().try_for_each(|writer| writer.hear("done"))?;
    let hashes = hashes(dir, objects)?;
    last_states_are_told(&mut agent, &hashes)?;
    gaps_are_reconciled(&mut agent)?;
    writers.into_iter().try_for_each(Process::end)?;
    agent.stop()?;
    home.verify_journal()?;
    // What is told while the agent stops has no follower any more.
    adds_up(&home.records()?, &rung, &hashes, writes)
}

/// Waits until the last word on each object is what it holds.
pub(super) fn last_states_are_told(agent: &mut Agent, hashes: &BTreeMap<String, String>) -> Result<()> {
    let known = RefCell::new((0, HashSet::new()));
    agent.wait("the last state of each object", |seen| {
        let (read, right) = &mut *known.borrow_mut();
        for record in &seen[*read..] {
            let Some(path) = of_violation(record) else { continue };
            if hashes.get(path).is_some_and(|hash| record["actual"]["sha256"] == hash.as_str()) {
                right.insert(path.to_owned());
            } else {
                right.remove(path);
            }
        }
        *read = seen.len();
        right.len() == hashes.len()
    })
}

fn gaps(records: &[Value], reconciled: bool) -> impl Iterator<Item = &Value> {
    records.iter().filter(move |record| record["kind"] == "gap" && record["reconciled"] == reconciled)
}

/// Waits until each gap has its end.
pub(super) fn gaps_are_reconciled(agent: &mut Agent) -> Result<()> {
    agent.wait("the end of each gap", |seen| gaps(seen, false).count() <= gaps(seen, true).count())
}

/// What each object holds now, by another program than the agent.
pub(super) fn hashes(dir: &Path, objects: u64) -> Result<BTreeMap<String, String>> {
    let mut command = std::process::Command::new(sha256sum()?);
    command.args((0..objects).map(|at| object(dir, at)));
    let out = crate::agent::told(&mut command)?;
    let lines = String::from_utf8(out)?;
    let parse = |line: &str| line.split_once("  ").map(|(hash, path)| (path.to_owned(), hash.to_owned()));
    lines.lines().map(|line| parse(line).with_context(|| format!("sha256sum said {line}"))).collect()
}

/// What a file holds now, by another program than the agent.
pub(super) fn hash_of(path: &Path) -> Result<String> {
    let out = crate::agent::told(std::process::Command::new(sha256sum()?).arg(path))?;
    let line = String::from_utf8(out)?;
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

/// The counts of all objects, and of what is said to be lost, are what was done.
pub(super) fn adds_up(
    records: &[Value],
    rung: &str,
    hashes: &BTreeMap<String, String>,
    writes: u64,
) -> Result<()> {
    let last = last_words(records);
    ensure!(last.len() == hashes.len(), "{} objects are told of, expected {}", last.len(), hashes.len());
    for (path, (_, told)) in &last {
        ensure!(hashes.get(path) == Some(told), "{path} is said to hold {told}");
    }
    let counted: u64 = last.values().map(|(count, _)| count).sum();
    // Each loss is told once as reconciled: at once, where no object is concerned that was not looked at since.
    let lost: u64 = gaps(records, true).filter_map(|record| record["lost"].as_u64()).sum();
    // fanotify and inotify merge what is done to one file: they count events, not writes.
    let adds_up =
        if on_hooks(rung) { counted + lost >= writes && counted <= writes } else { counted <= writes };
    let gaps = told_of(records.iter().filter(|record| record["kind"] == "gap").take(5));
    let last = told_of(records.iter().rev().take(8));
    ensure!(adds_up, "{counted} counted and {lost} lost of {writes}; {gaps}; the last records: {last}");
    Ok(())
}

fn sha256sum() -> Result<PathBuf> {
    ["/usr/bin/sha256sum", "/bin/sha256sum"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .context("no sha256sum")
}

pub(super) fn a_burst_on_one_object_is_counted() -> Result<()> {
    let (_scratch, dir, home) = bench(1)?;
    judged(&home, &dir, 1, BURST, vec![waiting(&dir, "burst", 0, 1, BURST)?])
}

pub(super) fn a_storm_leaves_each_object_right() -> Result<()> {
    storm(SMALL)
}

/// A storm from its beginning to its end.
pub(super) fn storm(storm: Storm) -> Result<()> {
    let (_scratch, dir, home) = bench(storm.objects)?;
    judged(&home, &dir, storm.objects, storm.writes, storm.gather(&dir)?)
}

pub(super) fn waiting(dir: &Path, comm: &str, first: u64, count: u64, each: u64) -> Result<Process> {
    let mut actor = writer(dir, comm, first, count, each)?;
    actor.hear("held")?;
    Ok(actor)
}

/// A store long after the mapping was made: no event tells of it on every rung, but nothing false may be said.
pub(super) fn a_store_through_a_held_mapping_is_not_denied() -> Result<()> {
    let (_scratch, dir, home) = bench(2)?;
    let held = object(&dir, 0);
    let mut agent = Agent::start(&home, 1)?;
    let rung = agent.rung()?;
    let role = ["holder", held.to_str().context("not UTF-8")?];
    let mut holder = actor::begin("holder", &role)?;
    holder.hear("held")?;
    let path = held.display().to_string();
    let about = |record: &Value| record["object"]["path"] == path.as_str();
    if on_hooks(&rung) {
        let attempt = agent.find("attempt", |record| about(record) && record["operation"] == "mmap")?;
        ensure!(attempt["kind"] == "attempt", "{}", told_of([&attempt]));
        let (status, code) = agent.status()?;
        ensure!(status["posture"] == "uncertain" && code == 3, "held writable, and {}", status["posture"]);
    }
    holder.say("go")?;
    holder.hear("done")?;
    holder.end()?;
    let found = agent.find("violation", |record| about(record) && record["kind"] == "violation.opened")?;
    ensure!(found["violation"] == "content", "{}", told_of([&found]));
    agent.stop().map(drop)
}

/// Mappings without a file pass through the same hooks, and must neither be told of nor do harm.
pub(super) fn anonymous_and_segment_mappings_do_no_harm() -> Result<()> {
    let (_scratch, dir, home) = bench(1)?;
    let mut agent = Agent::start(&home, 1)?;
    let before = kernel_complaints()?;
    for flags in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
        let mapping = Mapping::anonymous(8192, flags)?;
        mapping.store(0, 1);
        ensure!(mapping.first() == 1, "lost");
        // No huge page may be free: refused is fine, an oops is not.
        drop(Mapping::anonymous(2 << 20, flags | libc::MAP_HUGETLB));
    }
    shared_segment()?;
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).open(dir.with_file_name("neighbour"))?;
    file.set_len(8192)?;
    Mapping::of(&file, 8192)?.store(5000, 7);
    ensure!(kernel_complaints()? == before, "the kernel complains: {:?}", kernel_complaints()?);
    fs::write(object(&dir, 0), "TAMPER")?;
    let finding = |record: &Value| record["object"].is_object();
    agent.find("the tampering", finding)?;
    let records = agent.stop()?;
    let told: Vec<&Value> = records.iter().filter(|record| finding(record)).collect();
    ensure!(told.len() == 1 && told[0]["violation"] == "content", "{}", told_of(told));
    Ok(())
}

/// Lines of the kernel's log that speak of something broken.
fn kernel_complaints() -> Result<Vec<String>> {
    let log = kernel_log()?;
    let bad =
        |line: &&str| ["BUG:", "Oops", "WARNING:", "general protection"].iter().any(|bad| line.contains(bad));
    Ok(log.lines().filter(bad).map(str::to_owned).collect())
}

/// The kernel's log; empty where it may not be read.
fn kernel_log() -> Result<String> {
    const READ_ALL: i32 = 3;
    let mut log = vec![0_u8; 1 << 20];
    let len = i32::try_from(log.len())?;
    // SAFETY: the buffer is as long as is said.
    let read = unsafe { libc::klogctl(READ_ALL, log.as_mut_ptr().cast(), len) };
    log.truncate(usize::try_from(read).unwrap_or(0));
    Ok(String::from_utf8_lossy(&log).into_owned())
}
