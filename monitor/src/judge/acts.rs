//! Acts: observations of one unit, folded by (operation, name, actor) until it settles.

use std::time::Instant;

use crate::inventory::code::Foreign;
use crate::model::{Actor, ExeHash, HostPath, InodeKey, Observation, Operation, Rung, Time};

use super::schedule::SETTLE_AT_MOST;
use super::topology::is_mount;

/// Acts on one object, and on all names in it, that are kept apart in one round; more are counted, and told as lost.
const MAX_ACTS: usize = 2048;
/// When so many wait the object is looked at before more come.
const MANY_ACTS: usize = 256;

/// What was done to one unit, by one actor, on one name, one or more times.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    pub(crate) operation: Operation,
    /// Host path of the thing acted upon, as far as known.
    pub(crate) path: HostPath,
    /// For rename: where it went, if that is a watched directory.
    pub(crate) to: Option<HostPath>,
    /// The inode acted upon.
    pub(crate) inode: Option<InodeKey>,
    /// Path in its file system (tells an alias).
    pub(crate) path_in_fs: Option<HostPath>,
    pub(crate) actor: Result<Box<Actor>, String>,
    pub(crate) sensor: Rung,
    pub(crate) count: u64,
    pub(crate) first: Time,
    pub(crate) last: Time,
    /// Nothing came of it: refused, or failed.
    pub(crate) denied: bool,
    /// The kernel itself did not carry it out.
    pub(crate) failed: bool,
    /// It was seen in a layer of an overlay: by itself, or as part of what was done through the overlay.
    pub(crate) in_layer: bool,
    /// It moved the mount on which the object lies.
    pub(crate) carried: bool,
    /// What is known of the thing acted upon, beside its path.
    pub(crate) note: Option<&'static str>,
    /// Of what became code: what it held, if that could still be read.
    pub(crate) sha256: Option<String>,
}

impl Act {
    /// An act on `path` as `observation` tells it.
    pub(crate) fn new(observation: &Observation, path: HostPath, to: Option<HostPath>) -> Self {
        Self {
            operation: observation.operation,
            path,
            to,
            inode: observation.inode,
            path_in_fs: observation.path_in_fs.clone(),
            actor: observation.actor.clone(),
            sensor: observation.sensor,
            count: observation.count.max(1),
            first: observation.time,
            last: observation.time,
            denied: observation.denied || observation.failed,
            failed: observation.failed,
            in_layer: false,
            carried: false,
            note: None,
            sha256: None,
        }
    }

    /// Who it was, and what of that is not known and why.
    pub(crate) fn who(&self) -> (Option<Actor>, Option<String>) {
        match &self.actor {
            Ok(actor) => (Some((**actor).clone()), actor.unknown().map(str::to_owned)),
            Err(why) => (None, Some(why.clone())),
        }
    }

    /// It tells of what became code, not of the program.
    pub(crate) fn of_code(&mut self, code: &Foreign) {
        self.path = code.path.clone();
        self.note = Some(code.why);
        self.sha256.clone_from(&code.sha256);
    }

    /// One process did both.
    pub(crate) fn by_one(&self, other: &Self) -> bool {
        match (&self.actor, &other.actor) {
            (Ok(a), Ok(b)) => a.is_same_process(b),
            _ => false,
        }
    }

    /// Same cause: folds into one.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.operation == other.operation
            && self.denied == other.denied
            && self.in_layer == other.in_layer
            && self.carried == other.carried
            && self.path == other.path
            && self.to == other.to
            && self.inode == other.inode
            && match (&self.actor, &other.actor) {
                (Ok(a), Ok(b)) => a.is_same_process(b) && a.comm == b.comm,
                (Err(a), Err(b)) => a == b,
                _ => false,
            }
    }

    /// The kernel's thread of a loop device has nothing of its own: whoever opened the file gave it to the device.
    pub(super) fn is_for_whoever_opened(&mut self, known: &[Self]) {
        if let Ok(worker) = &self.actor
            && worker.is_loop_worker()
            && let Some(opened) = known.iter().find(|known| known.operation == Operation::Open)
        {
            self.actor = opened.actor.clone();
        }
    }

    /// A hook of the kernel told of it, before it came to pass.
    pub(super) const fn is_hooked(&self) -> bool {
        matches!(self.sensor, Rung::Lsm | Rung::Fentry)
    }

    /// It was told of after it came to pass.
    pub(super) const fn is_past(&self) -> bool {
        matches!(self.sensor, Rung::Fanotify | Rung::Inotify)
    }

    /// It made something code of a process that runs the object.
    pub(crate) const fn runs_code(&self) -> bool {
        self.operation.runs_code()
    }

    /// It is of what stands at that path, or has come there.
    pub(crate) fn is_on(&self, path: &HostPath) -> bool {
        self.path == *path || self.to.as_ref() == Some(path)
    }

    /// It moves what stands at that path somewhere else. What came from where nothing is watched is told by its new place alone.
    pub(crate) fn moves_away(&self, path: &HostPath) -> bool {
        self.operation == Operation::Rename && self.path == *path && self.to.as_ref() != Some(path)
    }

    /// It moves something to that path.
    pub(crate) fn comes_to(&self, path: &HostPath) -> bool {
        self.operation == Operation::Rename && self.to.as_ref() == Some(path)
    }

    /// It can change bytes.
    pub(crate) const fn touches_content(&self) -> bool {
        matches!(self.operation, Operation::Write | Operation::Truncate | Operation::Mmap | Operation::Ioctl)
    }

    /// It changes bytes by itself, where it changes anything.
    pub(crate) const fn surely_writes(&self) -> bool {
        matches!(self.operation, Operation::Write | Operation::Truncate)
    }

    /// It sets or takes away extended attributes.
    pub(crate) const fn sets_xattrs(&self) -> bool {
        matches!(self.operation, Operation::Setxattr | Operation::Removexattr)
    }

    /// It sets mode, owner, times or flags.
    pub(crate) const fn sets_mode(&self) -> bool {
        matches!(self.operation, Operation::Setattr | Operation::FileSetattr)
    }

    /// It can change mode, owner, times or extended attributes.
    pub(crate) const fn touches_attributes(&self) -> bool {
        self.sets_mode() || self.sets_xattrs()
    }

    /// It changes names.
    pub(crate) const fn touches_names(&self) -> bool {
        matches!(
            self.operation,
            Operation::Link
                | Operation::Symlink
                | Operation::Create
                | Operation::Mkdir
                | Operation::Mknod
                | Operation::Unlink
                | Operation::Rmdir
                | Operation::Rename
        )
    }
}

/// What waits for a unit to settle.
#[derive(Debug, Default)]
pub(crate) struct Acts {
    acts: Vec<Act>,
    /// Acts beyond `MAX_ACTS`, counted only.
    pub(crate) more: u64,
    /// When the first one came, by the agent's clock.
    pub(crate) since: Option<Instant>,
}

impl Acts {
    pub(crate) const fn none() -> Self {
        Self { acts: Vec::new(), more: 0, since: None }
    }

    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.acts.is_empty() && self.more == 0 && self.since.is_none()
    }

    /// So many wait that the unit is to be looked at before more come.
    pub(crate) const fn are_many(&self) -> bool {
        self.acts.len() >= MANY_ACTS
    }

    /// Adds an act, folding it into one of the same cause.
    pub(crate) fn push(&mut self, mut act: Act, now: Instant) {
        self.since.get_or_insert(now);
        if let Ok(worker) = &act.actor
            && worker.is_io_worker()
        {
            // It acts for whoever opened the file, and that is who is looked for.
            let mut opened = self.acts.iter().filter_map(|known| known.actor.as_ref().ok());
            if let Some(submitter) = opened.find(|actor| worker.works_for(actor)) {
                act.actor = Ok(submitter.clone());
            }
        }
        act.is_for_whoever_opened(&self.acts);
        // What passes an overlay passes its layers too, in the same call.
        if act.in_layer && self.acts.iter().any(|known| !known.in_layer && known.by_one(&act)) {
            return;
        }
        if !act.in_layer {
            self.acts.retain(|known| !(known.in_layer && known.by_one(&act)));
        }
        if let Some(same) = self.acts.iter_mut().find(|known| known.same(&act)) {
            same.count = same.count.saturating_add(act.count);
            same.last = same.last.max(act.last);
            same.first = same.first.min(act.first);
            same.sha256 = act.sha256.or(same.sha256.take());
        } else if self.acts.len() < MAX_ACTS {
            self.acts.push(act);
        } else {
            self.more = self.more.saturating_add(act.count);
        }
    }

    /// These, looked at since they came, are not all: others came meanwhile. Only while it would not be put off for too long.
    pub(crate) fn go_on(&self, meanwhile: &Self) -> bool {
        let first = self.since.or(meanwhile.since);
        !meanwhile.is_empty()
            && !self.are_many()
            && first.is_some_and(|first| first.elapsed() < SETTLE_AT_MOST)
    }

    /// There are some on the object itself, and all of them only opened it.
    pub(crate) fn are_opens(&self) -> bool {
        let mut on_it = self.acts.iter().filter(|act| !is_mount(act.operation)).peekable();
        on_it.peek().is_some() && on_it.all(|act| act.operation == Operation::Open)
    }

    /// Some can change bytes.
    pub(crate) fn touch_content(&self) -> bool {
        self.acts.iter().any(Act::touches_content)
    }

    /// None is on the object itself: something was mounted or unmounted above it at most.
    pub(crate) fn are_around(&self) -> bool {
        self.more == 0 && self.acts.iter().all(|act| is_mount(act.operation))
    }

    /// Some that were judged before, once more.
    pub(crate) fn again(acts: Vec<Act>) -> Self {
        Self { since: Some(Instant::now()), acts, more: 0 }
    }

    /// The acts, in order of first appearance.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Act> {
        self.acts.iter()
    }

    /// Hashes of what the actors run that are not there yet.
    pub(crate) fn hashes_in_the_making(&self) -> Vec<ExeHash> {
        let hashes = self.acts.iter().filter_map(|act| act.actor.as_ref().ok()?.exe_sha256.as_ref());
        hashes.filter(|hash| !hash.is_made()).cloned().collect()
    }

    /// Merges acts that were taken out but could not be judged.
    pub(crate) fn put_back(&mut self, earlier: Self, now: Instant) {
        let later = std::mem::replace(self, earlier);
        self.since = self.since.or(later.since);
        self.more = self.more.saturating_add(later.more);
        for act in later.acts {
            self.push(act, now);
        }
    }
}

/// Of some acts the one that tells most about a finding: the highest operation, the earliest among equals; an act
/// with a known actor before one without.
pub(crate) fn decisive<'a>(acts: impl IntoIterator<Item = &'a Act>) -> Option<&'a Act> {
    let mut best: Option<&Act> = None;
    for act in acts {
        best = match best {
            None => Some(act),
            Some(known) => {
                let rank = |a: &Act| (a.actor.is_ok(), a.operation);
                Some(if rank(act) > rank(known) { act } else { known })
            }
        };
    }
    best
}
