//! What an object on overlayfs is made of: its file in the layer below, shared by all containers of the image, and the copy
//! that a container's first change makes in its own layer. Either can be written to without passing the overlay; both are
//! watched, and an act on them is an act on the object, told once where it came through the overlay.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::{AtFlags, StatxFlags};

use crate::inventory::layers::Layers;
use crate::inventory::mount_table::KeptTable;
use crate::model::{HostPath, Slot, WatchKind};
use crate::sensor::Stands;

use super::Judge;
use super::incarnation::Incarnation;
use super::slots::{Ix, Use};
use super::watches::NO_SLOT;

/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAY: i64 = 0x794c_7630;

/// A path in a layer, and the objects that are made of what lies there.
#[derive(Debug, Default)]
pub(crate) struct Backing {
    slot: Option<Slot>,
    watched: Option<Incarnation>,
    pub(super) units: Vec<Ix>,
}

/// All of them, by path.
pub(crate) type Backings = HashMap<HostPath, Backing>;

/// Where one object's layers are.
#[derive(Debug, Clone)]
pub(crate) struct MadeOf {
    /// The overlay's mount.
    mount: u64,
    paths: Vec<HostPath>,
}

/// Mount tables in which the object's mount may be: the agent's own, and the node's, which the tree of process 1 lies in.
#[derive(Debug)]
pub(super) struct MountTables([KeptTable; 2]);

impl Default for MountTables {
    fn default() -> Self {
        Self(["/proc/self/mountinfo", "/proc/1/mountinfo"].map(|path| KeptTable::new(path.into())))
    }
}

impl MountTables {
    /// The layers of a mount.
    fn find(&mut self, mount: u64) -> Option<Layers> {
        self.0.iter_mut().find_map(|table| Layers::of_mount(&table.now()?.text, mount))
    }
}

/// The id of the mount that it was opened by, and the number of its inode.
fn place_of(fd: &OwnedFd) -> Option<(u64, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let asked = StatxFlags::MNT_ID | StatxFlags::INO;
    rustix::fs::statx(fd, c"", flags, asked).ok().map(|stat| (stat.stx_mnt_id, stat.stx_ino))
}

impl Judge {
    /// Watches what the object behind `fd` is made of, if it lies on overlayfs.
    pub(super) fn watch_layers(&mut self, ix: Ix, fd: &OwnedFd) {
        if rustix::fs::fstatfs(fd).map_or(0, |fs| fs.f_type) != OVERLAY {
            return self.leave_layers(ix);
        }
        let Some(place) = place_of(fd) else { return };
        let mount = place.0;
        let known = self.units.get(ix).and_then(|unit| unit.apart().made_of.clone());
        let made_of = match known.filter(|known| known.mount == mount) {
            Some(known) => known,
            None => {
                self.leave_layers(ix);
                let Some(paths) = self.layers_of(fd, mount) else {
                    // A container that ends takes its root away, and another file may have come in place of this one: what was
                    // opened just now is not there any more, and what that means is for the look to say.
                    let path = self.units.get(ix).map(|unit| unit.object().path.clone());
                    let now = path.and_then(|path| self.options.root.locate(&path).ok());
                    if now.as_ref().and_then(place_of) == Some(place) {
                        self.unwatched(ix, "the layers of the overlay that it lies on cannot be found");
                    }
                    return;
                };
                let made_of = MadeOf { mount, paths };
                self.enter_layers(ix, &made_of);
                made_of
            }
        };
        for path in &made_of.paths {
            if let Err(why) = self.watch_layer(path) {
                self.unwatched(ix, &why);
            }
        }
    }

    /// The object's place in the upper layer, and its file in the topmost one below that has it.
    fn layers_of(&mut self, fd: &OwnedFd, mount: u64) -> Option<Vec<HostPath>> {
        let seen = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        let layers = self.mount_tables.find(mount)?;
        let (upper, lower) = layers.places(&HostPath::from(seen.as_path()))?;
        let there = lower.into_iter().find(|path| self.options.root.locate(path).is_ok());
        Some(upper.into_iter().chain(there).collect())
    }

    fn enter_layers(&mut self, ix: Ix, made_of: &MadeOf) {
        for path in &made_of.paths {
            let backing = self.units.backings.entry(path.clone()).or_default();
            if backing.units.is_empty() {
                self.ways.hold(path);
            }
            backing.units.push(ix);
        }
        if let Some(unit) = self.units.get_mut(ix) {
            unit.apart_mut().made_of = Some(made_of.clone());
        }
        // The directories above them are watched before the object is read.
        self.follow_ways();
    }

    /// The object is no longer made of what it was.
    pub(super) fn leave_layers(&mut self, ix: Ix) {
        let Some(unit) = self.units.get_mut(ix).filter(|unit| unit.apart().made_of.is_some()) else { return };
        let Some(made_of) = unit.apart_mut().made_of.take() else { return };
        self.release_layers(ix, &made_of);
    }

    pub(super) fn release_layers(&mut self, ix: Ix, made_of: &MadeOf) {
        for path in &made_of.paths {
            let Some(backing) = self.units.backings.get_mut(path) else { continue };
            backing.units.retain(|unit| *unit != ix);
            if !backing.units.is_empty() {
                continue;
            }
            let slot = self.units.backings.remove(path).and_then(|backing| backing.slot);
            for slot in slot.into_iter().chain(self.ways.release(path)) {
                self.sensor.unwatch(slot);
                self.slots.release(slot);
            }
        }
    }

    fn watch_layer(&mut self, path: &HostPath) -> Result<(), String> {
        // In the upper layer there is nothing before the first change.
        let Ok(fd) = self.options.root.locate(path) else { return Ok(()) };
        let Some(one) = Incarnation::of(&fd) else { return Ok(()) };
        let Some(backing) = self.units.backings.get_mut(path) else { return Ok(()) };
        if let Some(slot) = backing.slot.filter(|_| backing.watched == Some(one)) {
            match self.sensor.stands(fd.as_fd(), slot) {
                Stands::Yes => return Ok(()),
                Stands::Outdated => {}
                Stands::Taken => self.watch_was_taken(slot),
            }
        }
        let Some(backing) = self.units.backings.get_mut(path) else { return Ok(()) };
        let slot = backing.slot.or_else(|| self.slots.take(Use::Backing(path.clone())));
        let slot = slot.ok_or_else(|| NO_SLOT.to_owned())?;
        backing.slot = Some(slot);
        self.sensor.watch(fd.as_fd(), slot, WatchKind::Object, path).map_err(|error| error.to_string())?;
        backing.watched = Some(one);
        Ok(())
    }

    /// No tag stands any more.
    pub(super) fn layers_untagged(&mut self) {
        for backing in self.units.backings.values_mut() {
            backing.watched = None;
        }
    }

    /// Objects that are made of what lies below a directory.
    pub(super) fn made_below(&self, dir: &HostPath) -> Vec<Ix> {
        let below = |path: &HostPath| path.below(dir).is_some_and(|rest| !rest.is_empty());
        let backings = self.units.backings.iter().filter(|(path, _)| below(path));
        backings.flat_map(|(_, backing)| backing.units.iter().copied()).collect()
    }
}
