//! Held handles: whoever could write before the watch began, and mappings whose stores pass no hook.
//!
//! The order is tag, then this, then the hash: whoever opens the object after the tag is seen by a hook. While an
//! object is mapped writable it is looked at again and again, and the node is `uncertain`.

use std::time::{Duration, Instant};

use crate::baseline::{Root, Seal};
use crate::inventory::handles::{Handles, Way};
use crate::inventory::procs::Proc;
use crate::model::{Actor, Class, HostPath, Operation, Rung, State, Time, ViolationKind};

use super::Judge;
use super::acts::{Act, Acts};
use super::look::Job;
use super::slots::Ix;
use super::unit::Unit;
use super::verdict::Round;
use super::violations::Finding;

/// How soon an object that is mapped writable is hashed again, at the earliest.
const AGAIN: Duration = Duration::from_secs(1);
/// The pause is at least so many times longer than the look took.
const SHARE: u32 = 10;
/// Said where the kernel counts a writer that no process shows.
const NOT_SHOWN: &str = "the kernel counts a writer that /proc does not show";

/// Whether a look asks who holds the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Nothing gives reason to.
    No,
    /// It is mapped, or was since the last look.
    Mappings,
    /// The watch is new: a writer from before it is a finding.
    Writers,
}

/// Who holds one file.
#[derive(Debug)]
struct Held {
    path: HostPath,
    holders: Vec<(Way, Box<Actor>)>,
    unknown: bool,
    mapped: bool,
}

/// Who holds an object, all of its files.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    files: Vec<Held>,
    /// How long all of the look took.
    pub(crate) took: Duration,
}

/// What a look at this unit asks.
pub(crate) fn ask(unit: &Unit, acts: &Acts) -> Ask {
    let rotates = matches!(unit.object().rule.class, Class::Opaque);
    if rotates || !matches!(unit.object().seal, Seal::File(_) | Seal::Volume { .. }) {
        Ask::No
    } else if unit.fresh {
        Ask::Writers
    } else if !unit.apart().mapped.is_empty() || acts.iter().any(|act| act.operation == Operation::Mmap) {
        Ask::Mappings
    } else {
        Ask::No
    }
}

/// Looks who holds the object now. Runs where blocking is allowed.
pub(crate) fn find(root: &Root, handles: &Handles, job: &Job) -> Holders {
    let mut holders = Holders::default();
    let paths = match (&job.object.seal, job.ask) {
        (_, Ask::No) => return holders,
        (Seal::Volume { entries, .. }, _) => {
            let data = job.object.path.join(b"..data");
            entries.iter().map(|entry| data.join(&entry.path)).collect()
        }
        _ => vec![job.object.path.clone()],
    };
    let proc = Proc::default();
    for path in paths {
        let Ok(Some(file)) = root.open_file(&path) else { continue };
        let held = match handles.of(&file) {
            Ok(held) if held.is_empty() => continue,
            Ok(held) => held,
            Err(error) => {
                tracing::debug!(%path, %error, "who holds it cannot be said");
                continue;
            }
        };
        let actors = held.holders.iter().filter_map(|holder| {
            // Whoever is gone by now holds nothing any more.
            proc.actor(holder.pid).ok().map(|actor| (holder.way, Box::new(actor)))
        });
        let found = Held { path, holders: actors.collect(), unknown: held.unknown, mapped: held.mapped() };
        if found.unknown || !found.holders.is_empty() {
            holders.files.push(found);
        }
    }
    holders
}

impl Held {
    fn act(&self, way: Way, actor: Result<Box<Actor>, String>) -> Act {
        let now = Time::now();
        Act {
            operation: if way == Way::Descriptor { Operation::Open } else { Operation::Mmap },
            path: self.path.clone(),
            to: None,
            inode: None,
            path_in_fs: None,
            actor,
            sensor: Rung::Proc,
            count: 1,
            first: now,
            last: now,
            denied: false,
            failed: false,
            in_layer: false,
            carried: false,
            note: None,
            sha256: None,
        }
    }

    fn acts(&self) -> Vec<Act> {
        let unknown = self.unknown.then(|| self.act(Way::Descriptor, Err(NOT_SHOWN.to_owned())));
        let known = self.holders.iter().map(|(way, actor)| self.act(*way, Ok(actor.clone())));
        known.chain(unknown).collect()
    }
}

impl Judge {
    /// What follows from who holds the object: findings, and another look while it is mapped.
    pub(super) fn held(
        &mut self,
        ix: Ix,
        ask: Ask,
        mut holders: Holders,
        acts: &Acts,
        findings: &mut Vec<Finding>,
    ) {
        for (_, actor) in holders.files.iter_mut().flat_map(|held| held.holders.iter_mut()) {
            self.world.enrich(actor);
        }
        let Some(unit) = self.units.get(ix) else { return };
        if ask == Ask::Writers {
            let new: Vec<Finding> =
                holders.files.iter().filter_map(|held| self.handle_from_before(unit, held, acts)).collect();
            findings.extend(new);
        }
        let mapped: Vec<Act> = holders.files.iter().filter(|held| held.mapped).flat_map(Held::acts).collect();
        let Some(unit) = self.units.get_mut(ix) else { return };
        for finding in findings.iter_mut().filter(|finding| {
            finding.act.is_none() && matches!(finding.kind, ViolationKind::Content | ViolationKind::Identity)
        }) {
            // A store passes no hook: whoever had it mapped is the only one who can have made it. What is told already
            // is no news for being found again.
            if !self.book.tells(finding) {
                finding.act =
                    mapped.iter().chain(&unit.apart().mapped).find(|act| act.actor.is_ok()).cloned();
            }
        }
        unit.fresh &= ask != Ask::Writers;
        if ask != Ask::No && !(mapped.is_empty() && unit.apart().mapped.is_empty()) {
            unit.apart_mut().mapped = mapped;
        }
        if !unit.apart().mapped.is_empty() {
            self.schedule.at_latest(ix, Instant::now() + AGAIN.max(holders.took * SHARE));
        }
    }

    /// Somebody could write before the watch began, and still can.
    fn handle_from_before(&self, unit: &Unit, held: &Held, acts: &Acts) -> Option<Finding> {
        let object = if held.path == unit.object().path {
            unit.object_ref()
        } else {
            unit.inner_ref(self.shown(unit, &held.path))
        };
        let all = held.acts();
        let all: Vec<&Act> = all.iter().filter(|act| !self.is_lawful_here(unit, act)).collect();
        // Seen acting since the watch began, or told of by the agent that ran before.
        let told = |act: &Act| {
            act.actor.is_ok()
                && (acts.iter().any(|seen| seen.by_one(act))
                    || self.book.is_held_by(&object.path, act.actor.as_ref().ok().map(AsRef::as_ref)))
        };
        let new: Vec<&Act> = all.iter().copied().filter(|act| !told(act)).collect();
        let first = (*new.first()?).clone();
        let round = Round { object: &object, acts: &new };
        let way = match (&first.actor, first.operation) {
            (Err(_), _) => "unknown",
            (_, Operation::Mmap) => "mapping",
            _ => "descriptor",
        };
        let state = |writers: &str| State::from([("writers".to_owned(), writers.to_owned())]);
        let mut finding = round.finding(ViolationKind::HeldHandle, Some(first), state("none"), state(way));
        finding.standing = false;
        let others: Vec<String> = new
            .iter()
            .skip(1)
            .filter_map(|act| act.actor.as_ref().ok())
            .map(|actor| format!("{} (pid {})", actor.comm, actor.tgid))
            .collect();
        finding.detail = Some(if others.is_empty() {
            "open for writing since before the watch began".to_owned()
        } else {
            format!("open for writing since before the watch began, also by {}", others.join(", "))
        });
        Some(finding)
    }

    /// A volume's file as its readers see it.
    fn shown(&self, unit: &Unit, path: &HostPath) -> HostPath {
        let data = unit.object().path.join(b"..data");
        path.below(&data).map_or_else(|| path.clone(), |rest| unit.object().path.join(rest))
    }
}
