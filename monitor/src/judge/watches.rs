//! Which inodes are watched for a unit, brought up to date before each look.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::baseline::Seal;
use crate::model::{HostPath, Resolution, Slot, Time, WatchKind};
use crate::sensor::Stands;

use super::Judge;
use super::incarnation::Incarnation;
use super::slots::{Ix, Use};
use super::unit::Unit;

/// Inodes watched inside one volume; a ConfigMap or Secret holds 1 MiB.
const MAX_INNER: usize = 4096;
/// What is said when the sensor can watch no more.
pub(super) const NO_SLOT: &str = "no slot left: raise sensor.maxSlots";
/// Depth of a volume.
const MAX_DEPTH: usize = 16;

impl Judge {
    /// Watches what stands at the unit's path now, and what lies in it. Failures are counted, reported once, and
    /// make posture uncertain; the look goes on.
    pub(crate) fn watch(&mut self, ix: Ix) {
        let Some(unit) = self.units.get(ix) else { return };
        let (path, slot) = (unit.object().path.clone(), unit.slot());
        let kind = match &unit.object().seal {
            Seal::File(_) | Seal::Symlink { .. } | Seal::Directory { names: None } => WatchKind::Object,
            Seal::Directory { names: Some(_) } => WatchKind::ClosedDir,
            Seal::Volume { .. } => WatchKind::Tree,
        };
        let Some(slot) = slot.or_else(|| self.slots.take(Use::Unit(ix))) else {
            self.unwatched(ix, NO_SLOT);
            return;
        };
        if let Some(unit) = self.units.get_mut(ix) {
            unit.set_slot(slot);
        }
        // Nothing there is the look's to tell.
        let Ok(fd) = self.options.root.locate(&path) else { return };
        let Some(one) = Incarnation::of(&fd) else { return };
        let known = self.units.get(ix).is_some_and(|unit| unit.watches(&one));
        let stands = if known { self.sensor.stands(fd.as_fd(), slot) } else { Stands::Outdated };
        if stands == Stands::Taken {
            self.watch_was_taken(slot);
        }
        if stands != Stands::Yes {
            match self.sensor.watch(fd.as_fd(), slot, kind, &path) {
                Ok(()) => {
                    self.sensor.count_reads(slot, true);
                    let known_as = self.sensor.knows_as(fd.as_fd(), one.inode);
                    if let Some(unit) = self.units.get_mut(ix) {
                        unit.set_watched(&one, known_as);
                        unit.fresh = true;
                        if unit.apart().unwatched.is_some() {
                            unit.apart_mut().unwatched = None;
                        }
                    }
                }
                Err(e) => {
                    self.unwatched(ix, &e.to_string());
                    return;
                }
            }
        }
        if kind == WatchKind::Object {
            self.watch_layers(ix, &fd);
        }
        if kind == WatchKind::Tree {
            self.watch_inside(ix, &fd, &path);
        }
    }

    /// Every inode of a volume has a slot of its own, so that an act on it is told apart from acts on what is new.
    fn watch_inside(&mut self, ix: Ix, dir: &OwnedFd, path: &HostPath) {
        let mut known = self.units.get_mut(ix).map(Unit::take_inner).unwrap_or_default();
        let mut now: BTreeMap<Incarnation, Slot> = BTreeMap::new();
        let (mut failed, mut fresh, mut taken) = (None, false, None);
        let mut queue = vec![(open_below(dir.as_fd(), b"."), path.clone(), 0)];
        while let Some((dir, at, depth)) = queue.pop() {
            let Some(dir) = dir else { continue };
            for (name, fd) in children(&dir) {
                let Some((one, is_dir)) = Incarnation::of(&fd).map(|one| (one, is_dir(&fd))) else {
                    continue;
                };
                if now.contains_key(&one) || now.len() >= MAX_INNER {
                    continue;
                }
                let child = at.join(&name);
                let kind = if is_dir { WatchKind::Tree } else { WatchKind::Object };
                match known.remove(&one) {
                    Some(slot) => {
                        let stands = self.sensor.stands(fd.as_fd(), slot);
                        if stands != Stands::Yes {
                            fresh = true;
                            taken = taken.or((stands == Stands::Taken).then_some(slot));
                            if let Err(e) = self.sensor.watch(fd.as_fd(), slot, kind, &child) {
                                failed = Some(e.to_string());
                            }
                        }
                        let _ = now.insert(one, slot);
                    }
                    None => match self.watch_member(ix, &fd, kind, &child) {
                        Ok(slot) => {
                            fresh = true;
                            let _ = now.insert(one, slot);
                        }
                        Err(why) => failed = Some(why),
                    },
                }
                if is_dir && depth < MAX_DEPTH {
                    queue.push((open_below(fd.as_fd(), b"."), child, depth + 1));
                }
            }
        }
        for slot in known.into_values() {
            self.sensor.unwatch(slot);
            self.slots.release(slot);
        }
        if let Some(unit) = self.units.get_mut(ix) {
            unit.apart_mut().inner = now;
            unit.fresh |= fresh;
        }
        if let Some(slot) = taken {
            self.watch_was_taken(slot);
        }
        if let Some(why) = failed {
            self.unwatched(ix, &why);
        }
    }

    /// What the sensor watched an inode by is gone, and not by its doing: what was done since then was not seen.
    pub(super) fn watch_was_taken(&mut self, slot: Slot) {
        let reason = "the tag of an object was taken away; it is tagged anew and verified";
        self.lost("tags", 0, reason, Some(vec![slot]), Time::now());
    }

    fn watch_member(
        &mut self,
        ix: Ix,
        fd: &OwnedFd,
        kind: WatchKind,
        path: &HostPath,
    ) -> Result<Slot, String> {
        let slot = self.slots.take(Use::Member(ix)).ok_or_else(|| NO_SLOT.to_owned())?;
        if let Err(e) = self.sensor.watch(fd.as_fd(), slot, kind, path) {
            self.slots.release(slot);
            return Err(e.to_string());
        }
        self.sensor.count_reads(slot, true);
        Ok(slot)
    }

    /// Watches a name that does not belong into a directory, so that what is done to it is told of it.
    pub(crate) fn watch_stray(&mut self, ix: Ix, path: &HostPath) {
        let Ok(fd) = self.options.root.locate(path) else { return };
        let Some(one) = Incarnation::of(&fd) else { return };
        if self
            .units
            .get(ix)
            .map(|unit| &unit.apart().inner)
            .is_none_or(|inner| inner.contains_key(&one) || inner.len() >= MAX_INNER)
        {
            return;
        }
        let Some(slot) = self.slots.take(Use::Stray(ix, path.clone())) else { return };
        let kind = if is_dir(&fd) { WatchKind::Tree } else { WatchKind::Object };
        match self.sensor.watch(fd.as_fd(), slot, kind, path) {
            Ok(()) => {
                self.sensor.count_reads(slot, true);
                if let Some(unit) = self.units.get_mut(ix) {
                    unit.apart_mut().inner.insert(one, slot);
                }
            }
            Err(_) => self.slots.release(slot),
        }
    }

    /// Forgets which inodes are tagged, so that the next look at each unit tags them again; directories above them are tagged now.
    pub(crate) fn tag_anew(&mut self) {
        for ix in self.units.indices() {
            let Some(unit) = self.units.get_mut(ix) else { continue };
            unit.untagged();
            for slot in unit.take_inner().into_values() {
                self.sensor.unwatch(slot);
                self.slots.release(slot);
            }
        }
        self.layers_untagged();
        self.ways.untagged();
        self.follow_ways();
    }

    /// The object is sealed no longer.
    pub(crate) fn forget(&mut self, ix: Ix) {
        self.schedule.cancel(ix);
        self.tell_awaited(ix);
        let Some(mut unit) = self.units.remove(ix) else { return };
        if let Some(made_of) = &unit.apart().made_of {
            self.release_layers(ix, made_of);
        }
        for slot in unit.slot().into_iter().chain(unit.take_inner().into_values()) {
            self.sensor.unwatch(slot);
            self.slots.release(slot);
        }
        for slot in self.ways.release(&unit.object().path) {
            self.sensor.unwatch(slot);
            self.slots.release(slot);
        }
        for uid in self.book.open_of(&unit.object().path) {
            let (resolution, why) = if unit.object().rule.anchor.is_host() {
                (Resolution::Rebaselined, "no baseline in force seals it any more")
            } else {
                (Resolution::Redeployed, "its pod is gone, or no baseline in force seals it any more")
            };
            let draft = self.book.resolve(&uid, resolution, Some(why.to_owned()));
            self.out.extend(draft);
        }
        self.not_expected(ix);
        let reconciled = self.losses.verified(ix);
        self.out.extend(reconciled);
    }

    pub(super) fn unwatched(&mut self, ix: Ix, why: &str) {
        let Some(unit) = self.units.get_mut(ix) else { return };
        if unit.apart().unwatched.as_deref() != Some(why) {
            let path = unit.object().path.clone();
            unit.apart_mut().unwatched = Some(why.to_owned());
            self.report_unwatched(&path, why);
        }
    }

    pub(super) fn report_unwatched(&mut self, path: &HostPath, why: &str) {
        let body = crate::model::GapBody {
            at: "watch".to_owned(),
            reason: why.to_owned(),
            objects: vec![path.clone()],
            ..crate::model::GapBody::default()
        };
        let severity = crate::model::Severity::Medium;
        self.out.push(crate::model::Draft::now(severity, crate::model::RecordBody::Gap(body)));
    }
}

fn is_dir(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory
    })
}

fn open_below(dir: BorrowedFd<'_>, name: &[u8]) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).ok()
}

/// The entries of a directory, each opened with `O_PATH`. What vanishes meanwhile is passed over.
fn children(dir: &OwnedFd) -> Vec<(Vec<u8>, OwnedFd)> {
    let Ok(entries) = rustix::fs::Dir::read_from(dir) else { return Vec::new() };
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_bytes().to_vec());
    let names = names.filter(|name| !matches!(name.as_slice(), b"." | b"..")).take(MAX_INNER);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    names
        .filter_map(|name| {
            let fd = rustix::fs::openat(dir, name.as_slice(), flags, Mode::empty()).ok()?;
            Some((name, fd))
        })
        .collect()
}
