//! Which inodes are watched, by the bytes fanotify names them with.
//!
//! What is created or moved below a [`WatchKind::Tree`] or [`WatchKind::ClosedDir`] inherits its slot when its event
//! is read: marks are on whole file systems, so the events that follow are in the queue already.

use std::collections::{HashMap, HashSet};

use super::sys::FileId;
use crate::model::{HostPath, InodeKey, Slot, WatchKind};

/// Most inodes that are kept because they inherited a slot. Beyond it, what lies directly in a watched directory is
/// still matched by its directory.
const INHERITED_MAX: usize = 1 << 20;
/// Deepest path that is put together.
const DEPTH_MAX: usize = 256;

/// A watched inode.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) slot: Slot,
    pub(super) kind: WatchKind,
    pub(super) key: Option<InodeKey>,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// Watched by itself: its path in the file system when that began.
    Own(Option<HostPath>),
    /// Inherited from this directory, under this name.
    Below(FileId, Vec<u8>),
}

/// All watched inodes.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<FileId, Entry>,
    slots: HashMap<Slot, HashSet<FileId>>,
    inherited: usize,
}

impl Table {
    /// Watches an inode by itself, under one slot only.
    pub(super) fn watch(
        &mut self,
        id: &FileId,
        slot: Slot,
        kind: WatchKind,
        key: Option<InodeKey>,
        path_in_fs: Option<HostPath>,
    ) {
        self.forget(id);
        self.entries.insert(id.clone(), Entry { slot, kind, key, place: Place::Own(path_in_fs) });
        self.slots.entry(slot).or_default().insert(id.clone());
    }

    /// Hands the slot of `dir` down to `id`, unless it has one. Returns whether it has the directory's now; `None`
    /// if there is no room.
    pub(super) fn inherit(
        &mut self,
        dir: &[u8],
        name: &[u8],
        id: &FileId,
        key: Option<InodeKey>,
    ) -> Option<bool> {
        let Some((dir_id, parent)) = self.entries.get_key_value(dir) else { return Some(false) };
        if !hands_down(parent.kind) {
            return Some(false);
        }
        if let Some(entry) = self.entries.get(id) {
            return Some(entry.slot == parent.slot);
        }
        if self.inherited >= INHERITED_MAX {
            return None;
        }
        let place = Place::Below(dir_id.clone(), name.to_vec());
        let entry = Entry { slot: parent.slot, kind: parent.kind, key, place };
        self.slots.entry(entry.slot).or_default().insert(id.clone());
        self.entries.insert(id.clone(), entry);
        self.inherited += 1;
        Some(true)
    }

    /// An inode that inherited its slot has another name now.
    pub(super) fn moved(&mut self, id: &[u8], dir: &[u8], name: &[u8]) {
        let Some(dir) = self.entries.get_key_value(dir).map(|(dir, _)| dir.clone()) else { return };
        if let Some(Entry { place: Place::Below(at, called), .. }) = self.entries.get_mut(id) {
            *at = dir;
            name.clone_into(called);
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, id: &[u8]) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// The name of an inode that inherited its slot.
    pub(super) fn name(&self, id: &[u8]) -> Option<&[u8]> {
        match &self.entries.get(id)?.place {
            Place::Below(_, name) => Some(name),
            Place::Own(_) => None,
        }
    }

    /// The inode is gone.
    pub(super) fn forget(&mut self, id: &[u8]) {
        if let Some((id, entry)) = self.entries.remove_entry(id) {
            if let Place::Below(..) = entry.place {
                self.inherited -= 1;
            }
            if let Some(ids) = self.slots.get_mut(&entry.slot) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.slots.remove(&entry.slot);
                }
            }
        }
    }

    /// Everything under a slot.
    pub(super) fn remove(&mut self, slot: Slot) -> HashSet<FileId> {
        let ids = self.slots.remove(&slot).unwrap_or_default();
        for id in &ids {
            if let Some(Entry { place: Place::Below(..), .. }) = self.entries.remove(id) {
                self.inherited -= 1;
            }
        }
        ids
    }

    /// The inodes under a slot.
    pub(super) fn ids(&self, slot: Slot) -> impl Iterator<Item = &FileId> {
        self.slots.get(&slot).into_iter().flatten()
    }

    /// Path in its file system, as far as it is known from names seen.
    pub(super) fn path(&self, id: &[u8]) -> Option<HostPath> {
        let (mut names, mut at): (Vec<&[u8]>, &[u8]) = (Vec::new(), id);
        for _ in 0..DEPTH_MAX {
            match &self.entries.get(at)?.place {
                Place::Own(path) => {
                    return names.iter().rev().try_fold(path.clone()?, |path, name| Some(path.join(name)));
                }
                Place::Below(dir, name) => {
                    names.push(name);
                    at = dir;
                }
            }
        }
        None
    }
}

/// Whether what appears in such a directory inherits its slot.
pub(super) const fn hands_down(kind: WatchKind) -> bool {
    matches!(kind, WatchKind::Tree | WatchKind::ClosedDir)
}

/// Whether names in such a directory are told.
pub(super) const fn watches_names(kind: WatchKind) -> bool {
    !matches!(kind, WatchKind::Object | WatchKind::Ancestor)
}

#[cfg(test)]
mod tests {
    use super::Table;
    use crate::model::{HostPath, Slot, WatchKind};
    use crate::sensor::fanotify::sys::FileId;

    fn id(number: u8) -> FileId {
        FileId::new(&[number; 20])
    }

    fn raw(number: u8) -> [u8; 20] {
        [number; 20]
    }

    #[test]
    fn slots_go_down_trees_only_and_paths_follow_moves() {
        let mut table = Table::default();
        table.watch(&id(1), Slot(5), WatchKind::Tree, None, Some(HostPath::from("/t")));
        table.watch(&id(9), Slot(6), WatchKind::Parent, None, None);
        assert_eq!(table.inherit(&raw(1), b"a", &id(2), None), Some(true));
        assert_eq!(table.inherit(&raw(2), b"b\xff", &id(3), None), Some(true));
        assert_eq!(table.inherit(&raw(9), b"c", &id(4), None), Some(false));
        assert_eq!(table.path(&raw(3)), Some(HostPath::new(b"/t/a/b\xff".to_vec())));
        table.moved(&raw(2), &raw(1), b"z");
        assert_eq!(table.path(&raw(3)), Some(HostPath::new(b"/t/z/b\xff".to_vec())));
        assert_eq!(table.remove(Slot(5)).len(), 3);
        assert_eq!((table.inherited, table.entries.len()), (0, 1));
        assert_eq!(table.path(&raw(3)), None);
    }

    #[test]
    fn an_own_watch_wins_over_what_was_inherited() {
        let mut table = Table::default();
        table.watch(&id(1), Slot(5), WatchKind::ClosedDir, None, None);
        assert_eq!(table.inherit(&raw(1), b"a", &id(2), None), Some(true));
        table.watch(&id(2), Slot(7), WatchKind::Object, None, None);
        assert_eq!(table.inherit(&raw(1), b"a", &id(2), None), Some(false));
        assert_eq!(table.get(&raw(2)).map(|entry| entry.slot), Some(Slot(7)));
        assert_eq!(table.inherited, 0);
    }
}
