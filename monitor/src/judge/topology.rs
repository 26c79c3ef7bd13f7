//! Ways: the directories above the objects, up to the root.
//!
//! Whatever is done to one of them is done to every object below it: they are watched for it, cheaply, and looked up
//! again after anything that may have changed what stands at their paths, before any object below is looked at.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, StatxFlags};

use crate::baseline::{ObserveError, Root};
use crate::model::{HostPath, InodeKey, Observation, Operation, Slot, ViolationKind, WatchKind};

use super::Judge;
use super::acts::Act;
use super::route::{Fate, displaced};
use super::schedule::SETTLE;
use super::slots::{Ix, Use};

/// Rounds in which the ways are looked up until nothing moves under the looker; what moves after that is told by a
/// later event.
const ROUNDS: usize = 4;
/// Mounts and unmounts of which it is not known what they concern: kept for as long, to explain what is found.
const RECENT: Duration = Duration::from_secs(2);
/// At most so many of them.
const RECENT_MAX: usize = 32;
/// How long whoever mounted something is waited for, before one is taken for him of whom it is not known what he mounted: a hook tells
/// before the act, but what it tells has to be read.
const EXPLAINED_AFTER: Duration = Duration::from_millis(120);
/// When ways that could not be looked up are so once more.
const AGAIN: Duration = Duration::from_secs(10);

/// What stands at a directory's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stands {
    ino: u64,
    dev: u32,
    /// A bind mount of the same directory is another place all the same.
    mount: MountId,
}

impl Stands {
    const fn inode(self) -> InodeKey {
        InodeKey { dev: self.dev, ino: self.ino }
    }
}

/// One more than the kernel's number of a mount, which is an `int` where it is not asked for a unique one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MountId(NonZeroU32);

impl MountId {
    fn of(id: u64) -> Self {
        let more = u32::try_from(id).unwrap_or(u32::MAX).saturating_add(1);
        Self(NonZeroU32::new(more).unwrap_or(NonZeroU32::MAX))
    }
}

/// What stands at its path no more, since its mount lies elsewhere.
#[derive(Debug, Default)]
struct Carried {
    ways: Vec<HostPath>,
    units: Vec<(Ix, HostPath)>,
}

/// Something else stands at a directory's path.
struct Change {
    dir: HostPath,
    /// In another mount than before: a rename cannot do that.
    by_mount: bool,
}

/// One directory above objects. There is one of each directory that objects are in: what is only of those that are no objects
/// themselves is kept apart.
#[derive(Debug, Default)]
struct Way {
    /// Objects at any depth below it.
    users: u32,
    /// Objects directly in it.
    direct: u32,
    stands: Option<Stands>,
    apart: Option<Box<Apart>>,
}

const _: () = assert!(size_of::<Way>() <= 32, "one of every directory that objects are in");

/// What few directories have.
#[derive(Debug, Default)]
struct Apart {
    slot: Option<Slot>,
    /// What was mounted here is here no more.
    bared: bool,
    /// A symbolic link stands here.
    link: bool,
    /// There was a directory before it.
    turned: bool,
    /// Nothing stands here, where a directory did.
    left: bool,
    /// What the sensor was told.
    watched: Option<(InodeKey, WatchKind)>,
}

impl Way {
    fn slot(&self) -> Option<Slot> {
        self.apart.as_ref()?.slot
    }

    fn watched(&self) -> Option<(InodeKey, WatchKind)> {
        self.apart.as_ref()?.watched
    }

    fn bared(&self) -> bool {
        self.apart.as_ref().is_some_and(|apart| apart.bared)
    }

    /// A symbolic link stands where a directory did.
    fn turned(&self) -> bool {
        self.apart.as_ref().is_some_and(|apart| apart.turned)
    }

    /// Takes note of what stands there now.
    fn now_stands(&mut self, stands: Option<Stands>, link: bool) {
        let was_link = self.apart.as_ref().is_some_and(|apart| apart.link);
        let left = self.apart.as_ref().is_some_and(|apart| apart.left);
        let stood = !was_link && (self.stands.is_some() || left);
        let leaves = stands.is_none() && stood;
        if link || was_link || left || leaves {
            let turned = link && (self.turned() || stood);
            let apart = self.apart();
            (apart.link, apart.turned, apart.left) = (link, turned, leaves);
        }
        self.stands = stands;
    }

    fn apart(&mut self) -> &mut Apart {
        self.apart.get_or_insert_default()
    }
}

/// All directories above objects.
#[derive(Debug, Default)]
pub(super) struct Ways {
    ways: BTreeMap<HostPath, Way>,
    /// When they are to be looked up again.
    pub(super) due: Option<Instant>,
    recent: Vec<(Instant, Observation)>,
    /// Those of which it could not be told what stands there when they were looked up last.
    pub(super) unclear: HashSet<HostPath>,
    /// Objects below what changed with a mount, since when, and at which path: whoever did that may be told of yet.
    unexplained: Vec<(Instant, Ix, HostPath)>,
}

impl Ways {
    /// One more object at `path`.
    pub(super) fn hold(&mut self, path: &HostPath) {
        for (depth, dir) in above(path).enumerate() {
            let way = self.ways.entry(dir).or_default();
            way.users += 1;
            way.direct += u32::from(depth == 0);
        }
        self.stale(Duration::ZERO);
    }

    /// One object less at `path`: the slots that nobody needs any more.
    pub(super) fn release(&mut self, path: &HostPath) -> Vec<Slot> {
        let mut slots = Vec::new();
        for (depth, dir) in above(path).enumerate() {
            let Some(way) = self.ways.get_mut(&dir) else { continue };
            way.users = way.users.saturating_sub(1);
            way.direct = way.direct.saturating_sub(u32::from(depth == 0));
            if way.users == 0 {
                slots.extend(self.ways.remove(&dir).and_then(|way| way.slot()));
            }
        }
        slots
    }

    /// Whether objects lie below this directory.
    pub(super) fn contains(&self, path: &HostPath) -> bool {
        self.ways.contains_key(path)
    }

    /// Whether a mount that carried what lies at `path` is gone from above it.
    pub(super) fn bared(&self, path: &HostPath) -> bool {
        above(path).any(|dir| self.ways.get(&dir).is_some_and(Way::bared))
    }

    /// The directory above `path` that is a symbolic link now, if one is.
    pub(super) fn turned(&self, path: &HostPath) -> Option<HostPath> {
        above(path).find(|dir| self.ways.get(dir).is_some_and(Way::turned))
    }

    /// No tag stands any more.
    pub(super) fn untagged(&mut self) {
        for apart in self.ways.values_mut().filter_map(|way| way.apart.as_mut()) {
            apart.watched = None;
        }
        self.stale(Duration::ZERO);
    }

    /// They are to be looked up again after so long.
    pub(super) fn stale(&mut self, wait: Duration) {
        let at = Instant::now() + wait;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

/// The directories above a path, nearest first.
fn above(path: &HostPath) -> impl Iterator<Item = HostPath> {
    std::iter::successors(path.parent(), HostPath::parent)
}

/// What stands at a path, if anything does: itself, and whether it is a symbolic link.
///
/// # Errors
/// It cannot be told: out of descriptors or memory, for one.
fn look_up(root: &Root, path: &HostPath) -> Result<Option<(OwnedFd, Stands, bool)>, String> {
    let fd = match root.locate(path) {
        Ok(fd) => fd,
        Err(ObserveError::Missing) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, wanted);
    let stat = stat.map_err(|error| format!("{path}: cannot look: {error}"))?;
    let InodeKey { dev, ino } = InodeKey::of(&stat);
    let link = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Symlink;
    Ok(Some((fd, Stands { ino, dev, mount: MountId::of(stat.stx_mnt_id) }, link)))
}

impl Judge {
    /// Takes note of an act on a directory above objects: it is an act on each of them. `told` are the units that it
    /// is known to concern anyhow.
    pub(super) fn on_ways(&mut self, observation: &Observation, told: &[Ix]) {
        let mounts = is_mount(observation.operation);
        let mut displaced = displaced(observation, &self.slots, &self.units, &self.ways);
        let carried = self.carried_away(observation);
        displaced.extend(carried.ways.into_iter().map(|dir| (dir, Fate::Carried)));
        if mounts {
            self.ways.recent.retain(|(at, _)| at.elapsed() < RECENT);
            let unknown =
                displaced.is_empty() && carried.units.is_empty() && told.is_empty() && !observation.failed;
            if unknown && displaces(observation.operation) && self.ways.recent.len() < RECENT_MAX {
                self.ways.recent.push((Instant::now(), observation.clone()));
            }
        }
        if mounts || !displaced.is_empty() {
            self.ways.stale(SETTLE);
        }
        let now = Instant::now();
        for (ix, path) in carried.units {
            self.acted(ix, Act { carried: true, ..Act::new(observation, path, None) }, now);
        }
        for (dir, fate) in displaced {
            if fate == Fate::Options {
                // It changes nothing below; told of the directory itself.
                self.attempt_on_way(&dir, &Act::new(observation, dir.clone(), None));
                continue;
            }
            for ix in self.made_below(&dir) {
                self.schedule.at_latest(ix, now + SETTLE);
            }
            for (ix, path) in self.below(&dir) {
                let join = |dir: &HostPath, path: &HostPath, way: &HostPath| {
                    dir.join(path.below(way).unwrap_or_default())
                };
                let act = match &fate {
                    _ if told.contains(&ix) => continue,
                    Fate::Moved(to) => {
                        let to = to.as_ref().map(|to| join(to, &path, &dir));
                        Act::new(observation, path, to)
                    }
                    Fate::Came(Some(from)) => Act::new(observation, join(from, &path, &dir), Some(path)),
                    // From where nothing is watched: told by its new place alone.
                    Fate::Came(None) => Act::new(observation, path.clone(), Some(path)),
                    Fate::Covered => Act::new(observation, path, None),
                    Fate::Carried => Act { carried: true, ..Act::new(observation, path, None) },
                    Fate::Options | Fate::Empty => {
                        self.schedule.at_latest(ix, now + SETTLE);
                        continue;
                    }
                };
                self.acted(ix, act, now);
            }
        }
    }

    /// What a mount that was moved took from its place: what stood there is its root, and does no more.
    fn carried_away(&self, observation: &Observation) -> Carried {
        let Some(moved) = observation.moved.filter(|_| !observation.failed) else {
            return Carried::default();
        };
        // Where it still stands, it is there twice.
        let gone = |path: &HostPath| {
            look_up(&self.options.root, path)
                .is_ok_and(|now| now.is_none_or(|(_, stands, _)| stands.inode() != moved))
        };
        let ways = self.ways.ways.iter().filter(|(_, way)| way.stands.map(Stands::inode) == Some(moved));
        let ways = ways.map(|(path, _)| path).filter(|path| gone(path)).cloned().collect();
        let stood = |unit: &super::Unit| unit.seen().map(super::verdict::Seen::inode) == Some(moved);
        let units = self.units.iter().filter(|(_, unit)| stood(unit));
        let units = units.map(|(ix, unit)| (ix, unit.object().path.clone()));
        Carried { ways, units: units.filter(|(_, path)| gone(path)).collect() }
    }

    /// Objects below a directory.
    fn below(&self, dir: &HostPath) -> Vec<(Ix, HostPath)> {
        let below = |path: &HostPath| path.below(dir).is_some_and(|rest| !rest.is_empty());
        self.units
            .iter()
            .filter(|(_, unit)| below(&unit.object().path))
            .map(|(ix, unit)| (ix, unit.object().path.clone()))
            .collect()
    }

    /// Looks all ways up again if something may have changed them, and watches what stands there now. Objects below
    /// what changed are looked at.
    pub(super) fn follow_ways(&mut self) {
        if self.ways.due.take().is_none() {
            return;
        }
        let mut changed: Vec<Change> = Vec::new();
        for _ in 0..ROUNDS {
            let before = changed.len();
            self.follow_once(&mut changed);
            if changed.len() == before {
                break;
            }
        }
        let now = Instant::now();
        self.explain_by_mounts(now);
        let mut seen = HashSet::new();
        // Those that a mount explains come first.
        changed.sort_by_key(|change| !change.by_mount);
        for change in &changed {
            for ix in self.made_below(&change.dir) {
                self.schedule.at_latest(ix, now + SETTLE);
            }
            for (ix, path) in self.below(&change.dir) {
                if !seen.insert(ix) {
                    continue;
                }
                let Some(unit) = self.units.get(ix) else { continue };
                let known = unit.apart().acts.iter().next().is_some();
                if change.by_mount && !known && unit.seen().is_some() {
                    self.ways.unexplained.push((now, ix, path));
                    self.ways.stale(SETTLE);
                }
                self.schedule.at_latest(ix, now + SETTLE);
            }
        }
    }

    /// What is covered since a moment ago, and no act that is told by now says by whom: by the last of those mounts of which it is not
    /// known what they concern.
    fn explain_by_mounts(&mut self, now: Instant) {
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.ways.unexplained)
            .into_iter()
            .partition(|(since, ..)| now.saturating_duration_since(*since) >= EXPLAINED_AFTER);
        self.ways.unexplained = rest;
        if !self.ways.unexplained.is_empty() {
            self.ways.stale(SETTLE);
        }
        for (since, ix, path) in due {
            let then = |(at, _): &&(Instant, Observation)| {
                *at <= since + SETTLE && since.saturating_duration_since(*at) < RECENT
            };
            let last = self.ways.recent.iter().rev().find(then).map(|(_, observation)| observation);
            let last = last.filter(|_| !self.is_explained(ix, &path) && !self.stands_as_before(ix, &path));
            if let Some(act) = last.map(|observation| Act::new(observation, path, None)) {
                self.acted(ix, act, now);
            }
        }
    }

    /// What stands at its path is what stood there: another mount of the same tree carries it now.
    fn stands_as_before(&self, ix: Ix, path: &HostPath) -> bool {
        let now = look_up(&self.options.root, path).ok().flatten();
        let before = self.units.get(ix).and_then(|unit| unit.seen().map(super::verdict::Seen::inode));
        now.is_some_and(|(_, stands, _)| Some(stands.inode()) == before)
    }

    /// An act tells what came over it or took it away, or a violation does.
    fn is_explained(&self, ix: Ix, path: &HostPath) -> bool {
        use ViolationKind as V;
        let waits = self.units.get(ix).is_none_or(|unit| unit.apart().acts.iter().next().is_some());
        let judged = self.in_flight.get(&ix).is_some_and(|acts| acts.iter().next().is_some());
        let told =
            [V::MountedOver, V::Removed, V::Replaced].iter().any(|kind| self.book.is_open(path, *kind));
        waits || judged || told
    }

    /// Directories of which it cannot be told what stands there: told once for each, and looked up again.
    fn unclear(&mut self, unclear: Vec<(HostPath, String)>) {
        if !unclear.is_empty() {
            self.ways.stale(AGAIN);
        }
        let known: HashSet<HostPath> = unclear.iter().map(|(path, _)| path.clone()).collect();
        for (path, why) in unclear {
            if !self.ways.unclear.contains(&path) {
                self.report_unwatched(&path, &why);
            }
        }
        self.ways.unclear = known;
    }

    /// One walk over all ways, from the root down.
    fn follow_once(&mut self, changed: &mut Vec<Change>) {
        let root = self.options.root.clone();
        let mut missing: HashSet<HostPath> = HashSet::new();
        // No descriptor is kept: there may be more ways than those a process may have.
        let mut found: Vec<(HostPath, Option<Stands>, bool)> = Vec::new();
        let mut unclear = Vec::new();
        for (path, way) in &self.ways.ways {
            let (stands, link) = match look_up(&root, path) {
                Ok(now) => now.map_or((None, false), |(_, stands, link)| (Some(stands), link)),
                Err(why) => {
                    unclear.push((path.clone(), why));
                    (way.stands, way.apart.as_ref().is_some_and(|apart| apart.link))
                }
            };
            if stands.is_none()
                && let Some(parent) = path.parent()
            {
                missing.insert(parent);
            }
            found.push((path.clone(), stands, link));
        }
        // A directory that is an object is watched as one, and so is another path of the same inode.
        let mut taken: HashMap<InodeKey, ()> =
            self.units.iter().filter_map(|(_, unit)| Some((unit.watched()?, ()))).collect();
        let mounts: HashMap<HostPath, MountId> =
            found.iter().filter_map(|(path, now, _)| Some((path.clone(), now.as_ref()?.mount))).collect();
        self.unclear(unclear);
        for (path, stands, link) in found {
            let own = self
                .units
                .find(&path)
                .is_some_and(|ix| self.units.get(ix).is_some_and(super::Unit::is_directory));
            let Some(way) = self.ways.ways.get_mut(&path) else { continue };
            if way.stands != stands {
                let other = way.stands.zip(stands).is_some_and(|(was, is)| was.mount != is.mount);
                // What went with, or came with, a directory above it.
                let with = |change: &Change| change.by_mount && path.below(&change.dir).is_some();
                if other {
                    let around = path.parent().and_then(|parent| mounts.get(&parent).copied());
                    let bared = around == stands.map(|stands| stands.mount);
                    if bared || way.bared() {
                        way.apart().bared = bared;
                    }
                }
                if way.watched().is_some() || way.stands.is_some() {
                    let by_mount = other || changed.iter().any(with);
                    changed.push(Change { dir: path.clone(), by_mount });
                }
                way.now_stands(stands, link);
            }
            let Some(stands) = stands.filter(|_| !own) else { continue };
            let kind = if way.direct > 0 || missing.contains(&path) {
                WatchKind::Parent
            } else {
                WatchKind::Ancestor
            };
            let watched = (stands.inode(), kind);
            if taken.insert(stands.inode(), ()).is_some() || way.watched() == Some(watched) {
                continue;
            }
            // What came there in between is found in the next round.
            let again = look_up(&root, &path).ok().flatten().filter(|(_, now, _)| *now == stands);
            let Some((fd, ..)) = again else {
                self.ways.stale(SETTLE);
                continue;
            };
            let apart = way.apart();
            let slot = apart.slot.or_else(|| self.slots.take(Use::Way(path.clone())));
            // Where it fails, it is told once for each inode.
            (apart.slot, apart.watched) = (slot, Some(watched));
            let failed = match slot {
                None => Some(super::watches::NO_SLOT.to_owned()),
                Some(slot) => self.sensor.watch(fd.as_fd(), slot, kind, &path).err().map(|e| e.to_string()),
            };
            if let Some(why) = failed {
                self.report_unwatched(&path, &why);
            }
        }
    }
}

/// Other things may stand at paths after it: options change nothing there.
const fn displaces(operation: Operation) -> bool {
    use Operation as O;
    matches!(operation, O::Mount | O::Umount | O::PivotRoot)
}

/// It changes what stands at paths without touching names.
pub(super) const fn is_mount(operation: Operation) -> bool {
    use Operation as O;
    matches!(operation, O::Mount | O::Umount | O::PivotRoot | O::Remount | O::MountSetattr)
}
