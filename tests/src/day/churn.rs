//! Pods that come and go all day leave nothing behind in the agent: no slot, no watch, no descriptor, no memory.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::chance::Chance;
use super::node::Node;
use super::place::Place;
use super::{seal, seed};
use crate::agent::{Agent, Home, pause, told_of};
use crate::corpus::full;

/// Pods on the node.
const PODS: usize = 250;
/// Of these, how many are replaced in one round.
const REPLACED: usize = 100;
/// A second's worth of that.
const EACH_SECOND: usize = 10;
/// How much more memory the agent may have after the last round than after the first, in KiB: what an allocator keeps.
const SLACK: u64 = 4096;
/// For all of a round to be taken up, in a guest too.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the agent, and the kernel of the agent's process, say that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holds {
    objects: u64,
    slots: u64,
    inodes: u64,
    /// By /proc.
    inotify: u64,
    descriptors: u64,
}

fn holds(agent: &Agent) -> Result<Holds> {
    let status = agent.status()?.0;
    let number = |path: &str| status.pointer(path).and_then(Value::as_u64).context(path.to_owned());
    let mut inotify = 0;
    let mut descriptors = 0;
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", agent.pid()))? {
        descriptors += 1;
        // It may be closed by now.
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        inotify += info.lines().filter(|line| line.starts_with("inotify ")).count() as u64;
    }
    let (slots, inodes) = (number("/sensor/watched/slots")?, number("/sensor/watched/inodes")?);
    Ok(Holds { objects: number("/objects/total")?, slots, inodes, inotify, descriptors })
}

/// Resident memory, in KiB.
fn resident(agent: &Agent) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Waits until what is judged is what there is: these volumes, all as sealed, and no other.
fn settled(agent: &Agent, node: &Node) -> Result<()> {
    let wanted: BTreeSet<String> = node
        .pods
        .iter()
        .flat_map(|pod| pod.published.iter().map(|volume| volume.path.display().to_string()))
        .collect();
    let until = Instant::now() + PATIENCE;
    loop {
        let objects = agent.objects()?;
        let judged = objects.iter().filter(|one| one["baseline"] == seal::WORKLOADS);
        let intact = |one: &&Value| one["state"] == "intact";
        let (as_sealed, other): (Vec<&Value>, Vec<&Value>) = judged.partition(intact);
        let found: BTreeSet<String> =
            as_sealed.iter().filter_map(|one| one["path"].as_str().map(str::to_owned)).collect();
        if other.is_empty() && found == wanted {
            return Ok(());
        }
        if Instant::now() > until {
            let missing = wanted.difference(&found).count();
            let stale = found.difference(&wanted).count();
            bail!(
                "{missing} volumes are not judged, {stale} are gone and judged, {} not intact",
                other.len()
            );
        }
        pause(Duration::from_millis(200));
    }
}

/// Waits until it holds this again.
fn holds_again(agent: &Agent, wanted: Holds) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = holds(agent)?;
        if now == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < until, "with as many pods as before: {wanted:?} then, {now:?} now");
        pause(Duration::from_millis(200));
    }
}

pub(super) fn pods_that_come_and_go_leave_nothing() -> Result<()> {
    let place = Place::new()?;
    let mut chance = Chance::new(seed());
    let mut node = Node::new(place.path(), &mut chance)?;
    let home = Home::new(place.path().join("home"))?;
    seal::prepare(&home)?;
    seal::manifests(&home, &node, 1)?;
    for at in 0..PODS {
        node.lay(at % 4, at % 2, &mut chance)?;
    }
    let agent = Agent::start(&home, 1)?;
    settled(&agent, &node)?;
    let before = holds(&agent)?;
    ensure!(before.slots > before.objects && before.inodes > 0, "{before:?}");
    let mut memory = Vec::new();
    let rounds = if full() { 8 } else { 3 };
    for _ in 0..rounds {
        let began = Instant::now();
        for at in 0..REPLACED {
            // One of the same mesh comes for each that goes.
            let goes = chance.below(node.pods.len());
            let mesh = node.pods[goes].mesh;
            node.stop(goes)?;
            node.lay(mesh, at % 2, &mut chance)?;
            let due = Duration::from_millis(1000 * (at as u64 + 1) / EACH_SECOND as u64);
            pause(due.saturating_sub(began.elapsed()));
        }
        settled(&agent, &node)?;
        holds_again(&agent, before)?;
        memory.push(resident(&agent)?);
    }
    println!("note: {before:?}, memory after each round {memory:?} KiB");
    let grown = memory[rounds - 1].saturating_sub(memory[0]);
    ensure!(grown <= SLACK, "{grown} KiB more after the last round than after the first: {memory:?}");
    // And with nobody left it holds nothing of them.
    while !node.pods.is_empty() {
        node.stop(0)?;
    }
    settled(&agent, &node)?;
    let until = Instant::now() + PATIENCE;
    loop {
        let after = holds(&agent)?;
        if after.objects == 0 && after.slots == 0 {
            break;
        }
        ensure!(Instant::now() < until, "nobody is left, and {after:?}");
        pause(Duration::from_millis(200));
    }
    agent.stop()?;
    let records = home.records()?;
    let wrong = records.iter().filter(|one| {
        one["kind"]
            .as_str()
            .is_some_and(|kind| kind.starts_with("violation.") || kind == "attempt" || kind == "gap")
    });
    let wrong: Vec<&Value> = wrong.collect();
    ensure!(wrong.is_empty(), "all was lawful, and {}", told_of(wrong.into_iter().take(20)));
    home.verify_journal()
}
