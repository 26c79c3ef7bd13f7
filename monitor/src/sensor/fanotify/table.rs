//! Which inodes are watched, by the bytes fanotify names them with.
//!
//! What is created or moved below a [`WatchKind::Tree`] or [`WatchKind::ClosedDir`] inherits its slot when its event
//! is read: marks are on whole file systems, so the events that follow are in the queue already.

use std::hash::{BuildHasher as _, RandomState};
use std::num::{NonZeroU32, NonZeroU64};

use hashbrown::HashTable;

use super::sys::FileId;
use crate::model::{HostPath, InodeKey, Slot, WatchKind};

/// Most inodes that are kept because they inherited a slot. Beyond it, what lies directly in a watched directory is
/// still matched by its directory.
const INHERITED_MAX: usize = 1 << 20;
/// Deepest path that is put together.
const DEPTH_MAX: usize = 256;

/// A watched inode.
#[derive(Debug)]
pub(super) struct Entry {
    id: FileId,
    place: Place,
    ino: Option<NonZeroU64>,
    dev: u32,
    pub(super) slot: Slot,
    /// The next one of its slot.
    next: Link,
    pub(super) kind: WatchKind,
}

const _: () = assert!(size_of::<Option<Entry>>() <= 80, "one of every watched inode");

impl Entry {
    fn new(id: &FileId, slot: Slot, kind: WatchKind, key: Option<InodeKey>, place: Place) -> Self {
        let (ino, dev) = key.map_or((None, 0), |key| (NonZeroU64::new(key.ino), key.dev));
        Self { id: id.clone(), place, ino, dev, slot, next: None, kind }
    }

    pub(super) fn key(&self) -> Option<InodeKey> {
        self.ino.map(|ino| InodeKey { dev: self.dev, ino: ino.get() })
    }
}

#[derive(Debug)]
enum Place {
    /// Watched by itself: its path in the file system when that began.
    Own(Option<HostPath>),
    /// Inherited from this directory, under this name.
    Below(Box<(FileId, Vec<u8>)>),
}

/// Where an entry stands in [`Table::entries`], from 1.
type Link = Option<NonZeroU32>;

/// All watched inodes.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Found by [`Table::ids`], and from [`Table::slots`] on by each one's `next`.
    entries: Vec<Option<Entry>>,
    free: Vec<NonZeroU32>,
    ids: HashTable<NonZeroU32>,
    hasher: RandomState,
    /// By [`place`] of the slot: the first entry.
    slots: Vec<Link>,
    inherited: usize,
}

/// Where a slot stands in [`Table::slots`]: the canary's, which has the highest number there is, before all that the judge gives out.
const fn place(slot: Slot) -> usize {
    slot.0.wrapping_add(1) as usize
}

fn at(link: NonZeroU32) -> usize {
    link.get() as usize - 1
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
        self.insert(Entry::new(id, slot, kind, key, Place::Own(path_in_fs)));
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
        let Some(parent) = self.get(dir) else { return Some(false) };
        if !hands_down(parent.kind) {
            return Some(false);
        }
        if let Some(entry) = self.get(id) {
            return Some(entry.slot == parent.slot);
        }
        if self.inherited >= INHERITED_MAX {
            return None;
        }
        let place = Place::Below(Box::new((parent.id.clone(), name.to_vec())));
        let entry = Entry::new(id, parent.slot, parent.kind, key, place);
        self.insert(entry);
        self.inherited += 1;
        Some(true)
    }

    /// An inode that inherited its slot has another name now.
    pub(super) fn moved(&mut self, id: &[u8], dir: &[u8], name: &[u8]) {
        let Some(dir) = self.get(dir).map(|entry| entry.id.clone()) else { return };
        let Some(link) = self.find(id) else { return };
        if let Some(Some(Entry { place: Place::Below(below), .. })) = self.entries.get_mut(at(link)) {
            **below = (dir, name.to_vec());
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn get(&self, id: &[u8]) -> Option<&Entry> {
        self.entry(self.find(id)?)
    }

    /// The name of an inode that inherited its slot.
    pub(super) fn name(&self, id: &[u8]) -> Option<&[u8]> {
        match &self.get(id)?.place {
            Place::Below(below) => Some(&below.1),
            Place::Own(_) => None,
        }
    }

    /// The inode is gone.
    pub(super) fn forget(&mut self, id: &[u8]) {
        let Some(link) = self.find(id) else { return };
        let Some((slot, next)) = self.entry(link).map(|entry| (entry.slot, entry.next)) else { return };
        // It is the first of its slot, or another leads to it.
        let before = self.links(slot).find(|one| self.entry(*one).is_some_and(|one| one.next == Some(link)));
        match before.map(at).and_then(|before| self.entries.get_mut(before)) {
            Some(Some(before)) => before.next = next,
            _ => self.slots[place(slot)] = next,
        }
        self.remove_entry(link);
    }

    /// Everything under a slot.
    pub(super) fn remove(&mut self, slot: Slot) -> Vec<FileId> {
        let links: Vec<_> = self.links(slot).collect();
        if let Some(first) = self.slots.get_mut(place(slot)) {
            *first = None;
        }
        links.into_iter().filter_map(|link| self.remove_entry(link)).map(|entry| entry.id).collect()
    }

    /// The inodes under a slot.
    pub(super) fn ids(&self, slot: Slot) -> impl Iterator<Item = &FileId> {
        self.links(slot).filter_map(|link| Some(&self.entry(link)?.id))
    }

    fn entry(&self, link: NonZeroU32) -> Option<&Entry> {
        self.entries.get(at(link))?.as_ref()
    }

    fn find(&self, id: &[u8]) -> Option<NonZeroU32> {
        let is_it = |link: &NonZeroU32| self.entry(*link).is_some_and(|entry| *entry.id == *id);
        self.ids.find(self.hasher.hash_one(id), is_it).copied()
    }

    fn links(&self, slot: Slot) -> impl Iterator<Item = NonZeroU32> {
        let first = self.slots.get(place(slot)).copied().flatten();
        std::iter::successors(first, |link| self.entry(*link)?.next)
    }

    /// An inode that is not in the table.
    fn insert(&mut self, mut entry: Entry) {
        let slot = place(entry.slot);
        if slot >= self.slots.len() {
            self.slots.resize(slot + 1, None);
        }
        entry.next = self.slots[slot];
        let link = self.free.pop().or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len()).ok().and_then(NonZeroU32::new)
        });
        // Four thousand million inodes are more than there are slots.
        let Some(link) = link else { return };
        self.slots[slot] = Some(link);
        let hash = self.hasher.hash_one(&*entry.id);
        self.entries[at(link)] = Some(entry);
        let Self { entries, hasher, ids, .. } = self;
        let hash_of =
            |link: &NonZeroU32| entries[at(*link)].as_ref().map(|entry| hasher.hash_one(&*entry.id));
        ids.insert_unique(hash, link, |link| hash_of(link).unwrap_or_default());
    }

    /// Out of everything but the chain of its slot.
    fn remove_entry(&mut self, link: NonZeroU32) -> Option<Entry> {
        let entry = self.entries.get_mut(at(link))?.take()?;
        if let Ok(found) = self.ids.find_entry(self.hasher.hash_one(&*entry.id), |known| *known == link) {
            found.remove();
        }
        self.inherited -= usize::from(matches!(entry.place, Place::Below(_)));
        self.free.push(link);
        Some(entry)
    }

    /// Path in its file system, as far as it is known from names seen.
    pub(super) fn path(&self, id: &[u8]) -> Option<HostPath> {
        let (mut names, mut at): (Vec<&[u8]>, &[u8]) = (Vec::new(), id);
        for _ in 0..DEPTH_MAX {
            match &self.get(at)?.place {
                Place::Own(path) => {
                    return names.iter().rev().try_fold(path.clone()?, |path, name| Some(path.join(name)));
                }
                Place::Below(below) => {
                    names.push(&below.1);
                    at = &below.0;
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
    use crate::sensor::canary::SLOT;
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
        assert_eq!((table.inherited, table.len()), (0, 1));
        assert_eq!(table.path(&raw(3)), None);
    }

    #[test]
    fn the_canary_costs_no_more_than_an_object() {
        let mut table = Table::default();
        table.watch(&id(1), SLOT, WatchKind::Object, None, None);
        assert_eq!(table.slots.len(), 1);
        table.watch(&id(2), Slot(1), WatchKind::Object, None, None);
        assert_eq!(table.slots.len(), 3);
        assert_eq!(table.remove(SLOT).len(), 1);
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
