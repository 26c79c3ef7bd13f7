//! Which inode stands behind which watch.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use rustix::fs::FileType;
use rustix::fs::inotify::WatchFlags;

use crate::inventory::procs::kernel_dev;
use crate::model::{HostPath, InodeKey, Slot, WatchKind};

/// A watched inode.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    pub(super) slot: Slot,
    pub(super) kind: WatchKind,
    /// Where it stood when it was last named.
    pub(super) path: HostPath,
    pub(super) inode: Option<InodeKey>,
    /// Names it had when it was last looked at.
    pub(super) links: u64,
    /// Written since it was last closed after writing.
    pub(super) written: bool,
}

/// All watches of one instance.
#[derive(Debug, Default)]
pub(super) struct Watches {
    watches: HashMap<i32, Watch>,
    /// What stands at a path, as far as names told.
    paths: HashMap<HostPath, i32>,
    inodes: HashMap<InodeKey, i32>,
}

/// What a watch is to tell. Of what lies in a directory that is closed or a tree, content too: what has no watch of its
/// own is told by its name.
pub(super) fn mask(kind: WatchKind) -> WatchFlags {
    let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    let content = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::CLOSE_WRITE;
    let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
    match kind {
        WatchKind::Object => itself | content,
        WatchKind::Ancestor => itself,
        WatchKind::Parent => itself | names,
        WatchKind::ClosedDir | WatchKind::Tree => itself | content | names,
    }
}

/// What an inode is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: FileType,
    pub(super) links: u64,
    pub(super) inode: InodeKey,
}

/// Looks at the inode behind `fd`.
pub(super) fn look(fd: BorrowedFd<'_>) -> Option<Seen> {
    let stat = rustix::fs::fstat(fd).ok()?;
    Some(Seen {
        kind: FileType::from_raw_mode(stat.st_mode),
        links: u64::from(stat.st_nlink as u32),
        inode: InodeKey { dev: kernel_dev(stat.st_dev), ino: stat.st_ino },
    })
}

impl Watches {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.watches.len()
    }

    /// Knows a watch, or moves it to another slot.
    pub(super) fn add(&mut self, wd: i32, slot: Slot, kind: WatchKind, path: &HostPath, seen: Option<Seen>) {
        let inode = seen.map(|seen| seen.inode);
        self.forget(wd);
        self.paths.insert(path.clone(), wd);
        if let Some(inode) = inode {
            self.inodes.insert(inode, wd);
        }
        let links = seen.map_or(u64::MAX, |seen| seen.links);
        self.watches.insert(wd, Watch { slot, kind, path: path.clone(), inode, links, written: false });
    }

    /// The watch of that number.
    pub(super) fn get(&mut self, wd: i32) -> Option<&mut Watch> {
        self.watches.get_mut(&wd)
    }

    /// What stands at a path, if it is watched.
    pub(super) fn at(&self, path: &HostPath) -> Option<&Watch> {
        self.watches.get(self.paths.get(path)?)
    }

    /// The watch of an inode.
    pub(super) fn of(&self, inode: InodeKey) -> Option<&Watch> {
        self.watches.get(self.inodes.get(&inode)?)
    }

    /// Nothing that is known stands at the path any more.
    pub(super) fn vacate(&mut self, path: &HostPath) {
        self.paths.remove(path);
    }

    /// An inode stands at another path now.
    pub(super) fn settle(&mut self, inode: InodeKey, path: &HostPath) {
        let Some(wd) = self.inodes.get(&inode) else { return };
        if let Some(watch) = self.watches.get_mut(wd) {
            watch.path = path.clone();
            self.paths.insert(path.clone(), *wd);
        }
    }

    /// The watch is gone.
    pub(super) fn forget(&mut self, wd: i32) {
        let Some(watch) = self.watches.remove(&wd) else { return };
        if self.paths.get(&watch.path) == Some(&wd) {
            self.paths.remove(&watch.path);
        }
        if let Some(inode) = watch.inode.filter(|inode| self.inodes.get(inode) == Some(&wd)) {
            self.inodes.remove(&inode);
        }
    }

    /// Forgets all watches of a slot, and tells which they were.
    pub(super) fn remove(&mut self, slot: Slot) -> Vec<i32> {
        let wds: Vec<i32> =
            self.watches.iter().filter(|(_, watch)| watch.slot == slot).map(|(wd, _)| *wd).collect();
        wds.iter().for_each(|wd| self.forget(*wd));
        wds
    }
}
