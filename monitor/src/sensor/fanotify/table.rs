//! Which inodes are watched, by the bytes fanotify names them with.
//!
//! What is created or moved below a [`WatchKind::Tree`] or [`WatchKind::ClosedDir`] inherits its slot when its event
//! is read: marks are on whole file systems, so the events that follow are in the queue already.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

use super::sys::{FileId, HEAD, SHORT};
use crate::model::{HostPath, InodeKey, Slot, WatchKind};

/// Most inodes that are kept because they inherited a slot. Beyond it, what lies directly in a watched directory is
/// still matched by its directory.
const INHERITED_MAX: usize = 1 << 20;
/// Deepest path that is put together.
const DEPTH_MAX: usize = 256;
/// A watched inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) slot: Slot,
    pub(super) kind: WatchKind,
    pub(super) key: Option<InodeKey>,
    /// Its openings are counted.
    pub(super) counted: bool,
}

/// The inode that was last watched under a slot: there is one of nearly every slot, and so of every object.
#[derive(Debug)]
struct Own {
    ino: u64,
    handle: [u8; SHORT - HEAD],
    /// In [`Systems::all`].
    system: u16,
    kind: WatchKind,
    counted: bool,
}

const _: () = assert!(size_of::<Option<Own>>() <= 24, "one of every watched inode");

/// Any other: what inherited its slot, what was watched under a slot before, and what has a long handle.
#[derive(Debug)]
struct Other {
    entry: Entry,
    place: Place,
}

impl Other {
    const fn inherited(&self) -> bool {
        matches!(self.place, Place::Below(_))
    }

    fn by_slot(&self, id: &FileId) -> (Slot, bool, FileId) {
        (self.entry.slot, self.inherited(), id.clone())
    }
}

#[derive(Debug)]
enum Place {
    /// Watched by itself: its path in the file system when that began, of a directory.
    Own(Option<HostPath>),
    /// Inherited from this directory, under this name.
    Below(Box<(FileId, Vec<u8>)>),
}

/// All watched inodes.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By [`place`] of the slot.
    own: Vec<Option<Own>>,
    /// The same by what names them, as places.
    ids: HashTable<u32>,
    hasher: RandomState,
    systems: Systems,
    /// Paths of directories, by place.
    paths: HashMap<u32, HostPath>,
    others: HashMap<FileId, Other>,
    /// The same by slot: what was watched by itself, then what inherited.
    others_of: BTreeSet<(Slot, bool, FileId)>,
    inherited: usize,
}

/// Where a slot stands in [`Table::own`]: the canary's, which has the highest number there is, before all that the judge gives out.
const fn place(slot: Slot) -> u32 {
    slot.0.wrapping_add(1)
}

const fn slot_at(place: u32) -> Slot {
    Slot(place.wrapping_sub(1))
}

impl Table {
    /// Watches an inode by itself, under one slot only. `path` is for directories: what is done to a file is told with the directory
    /// its name is in.
    pub(super) fn watch(
        &mut self,
        id: &FileId,
        slot: Slot,
        kind: WatchKind,
        key: Option<InodeKey>,
        path: Option<HostPath>,
    ) {
        self.forget(id);
        let (at, entry) = (place(slot), Entry { slot, kind, key, counted: false });
        if let Some((before, own, path)) = self.take_own(at) {
            self.insert_other(before, Other { entry: own, place: Place::Own(path) });
        }
        let Some(own) = self.short(id, &entry) else {
            return self.insert_other(id.clone(), Other { entry, place: Place::Own(path) });
        };
        if at as usize >= self.own.len() {
            self.own.resize_with(at as usize + 1, || None);
        }
        self.own[at as usize] = Some(own);
        self.paths.extend(path.map(|path| (at, path)));
        let Self { own, hasher, ids, systems, .. } = self;
        let hash_of = |at: &u32| {
            let own = own.get(*at as usize).and_then(Option::as_ref);
            own.map_or(0, |own| hasher.hash_one(&*systems.id(own)))
        };
        ids.insert_unique(hasher.hash_one(&**id), at, hash_of);
    }

    /// The small form, of what has one.
    fn short(&mut self, id: &FileId, entry: &Entry) -> Option<Own> {
        let mut handle = [0; SHORT - HEAD];
        handle.get_mut(..id.handle().len())?.copy_from_slice(id.handle());
        let (key, kind, counted) = (entry.key?, entry.kind, entry.counted);
        let system = self.systems.use_one(System { head: id.head(), dev: key.dev })?;
        Some(Own { ino: key.ino, handle, system, kind, counted })
    }

    /// Takes out the inode that was last watched under a slot, with its path.
    fn take_own(&mut self, at: u32) -> Option<(FileId, Entry, Option<HostPath>)> {
        let entry = self.own_entry(at)?;
        let own = self.own.get_mut(at as usize)?.take()?;
        let id = self.systems.id(&own);
        if let Ok(found) = self.ids.find_entry(self.hasher.hash_one(&*id), |known| *known == at) {
            found.remove();
        }
        self.systems.leave(own.system);
        Some((id, entry, self.paths.remove(&at)))
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
        let place = Place::Below(Box::new((FileId::new(dir), name.to_vec())));
        self.insert_other(id.clone(), Other { entry: Entry { key, counted: false, ..parent }, place });
        self.inherited += 1;
        Some(true)
    }

    /// An inode that inherited its slot has another name now.
    pub(super) fn moved(&mut self, id: &[u8], dir: &[u8], name: &[u8]) {
        if self.get(dir).is_some()
            && let Some(Other { place: Place::Below(below), .. }) = self.others.get_mut(id)
        {
            **below = (FileId::new(dir), name.to_vec());
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ids.len() + self.others.len()
    }

    pub(super) fn get(&self, id: &[u8]) -> Option<Entry> {
        match self.find(id) {
            Some(at) => self.own_entry(at),
            None => self.others.get(id).map(|other| other.entry),
        }
    }

    /// The name of an inode that inherited its slot.
    pub(super) fn name(&self, id: &[u8]) -> Option<&[u8]> {
        match &self.others.get(id)?.place {
            Place::Below(below) => Some(&below.1),
            Place::Own(_) => None,
        }
    }

    /// The inode is gone.
    pub(super) fn forget(&mut self, id: &[u8]) {
        match self.find(id) {
            Some(at) => drop(self.take_own(at)),
            None => self.remove_other(id),
        }
    }

    /// Everything under a slot.
    pub(super) fn remove(&mut self, slot: Slot) -> Vec<FileId> {
        let ids: Vec<_> = self.ids(slot, true).collect();
        for id in &ids {
            self.forget(id);
        }
        ids
    }

    /// The inodes under a slot that were watched by themselves.
    pub(super) fn watched(&self, slot: Slot) -> Vec<FileId> {
        self.ids(slot, false).collect()
    }

    fn ids(&self, slot: Slot, inherited: bool) -> impl Iterator<Item = FileId> {
        let own = self.own.get(place(slot) as usize).and_then(Option::as_ref);
        let own = own.map(|own| self.systems.id(own));
        let others = self.others_of.range((slot, false, FileId::new(&[]))..);
        let others = others.take_while(move |one| one.0 == slot && (inherited || !one.1));
        own.into_iter().chain(others.map(|one| one.2.clone()))
    }

    /// Whether the openings of an inode are counted, from now on.
    pub(super) fn count(&mut self, id: &[u8], on: bool) {
        let own = self.find(id).and_then(|at| self.own.get_mut(at as usize)?.as_mut());
        match own {
            Some(own) => own.counted = on,
            None => {
                if let Some(other) = self.others.get_mut(id) {
                    other.entry.counted = on;
                }
            }
        }
    }

    fn own_entry(&self, at: u32) -> Option<Entry> {
        let own = self.own.get(at as usize)?.as_ref()?;
        let key = Some(InodeKey { dev: self.systems.dev(own.system), ino: own.ino });
        Some(Entry { slot: slot_at(at), kind: own.kind, key, counted: own.counted })
    }

    fn find(&self, id: &[u8]) -> Option<u32> {
        let is_it = |at: &u32| {
            let own = self.own.get(*at as usize).and_then(Option::as_ref);
            own.is_some_and(|own| *self.systems.id(own) == *id)
        };
        self.ids.find(self.hasher.hash_one(id), is_it).copied()
    }

    /// An inode that is not in the table.
    fn insert_other(&mut self, id: FileId, other: Other) {
        self.others_of.insert(other.by_slot(&id));
        self.others.insert(id, other);
    }

    fn remove_other(&mut self, id: &[u8]) {
        let Some((id, other)) = self.others.remove_entry(id) else { return };
        self.inherited -= usize::from(other.inherited());
        self.others_of.remove(&other.by_slot(&id));
    }

    /// Path of a directory in its file system, or of what inherited its slot, as far as it is known from names seen.
    pub(super) fn path(&self, id: &[u8]) -> Option<HostPath> {
        let (mut names, mut at): (Vec<&[u8]>, &[u8]) = (Vec::new(), id);
        for _ in 0..DEPTH_MAX {
            let own = match (self.find(at), self.others.get(at)) {
                (Some(own), _) => self.paths.get(&own),
                (None, Some(Other { place: Place::Own(path), .. })) => path.as_ref(),
                (None, Some(Other { place: Place::Below(below), .. })) => {
                    names.push(&below.1);
                    at = &below.0;
                    continue;
                }
                (None, None) => None,
            };
            return names.iter().rev().try_fold(own?.clone(), |path, name| Some(path.join(name)));
        }
        None
    }
}

/// What all inodes of a file system have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct System {
    /// How their names begin.
    head: [u8; HEAD],
    dev: u32,
}

/// Those that watched inodes are in.
#[derive(Debug, Default)]
struct Systems {
    /// With the number of inodes; with none, it is free.
    all: Vec<(System, u32)>,
    numbers: HashMap<System, u16>,
    free: Vec<u16>,
}

impl Systems {
    /// Its number, for one inode more; `None` if there are too many.
    fn use_one(&mut self, system: System) -> Option<u16> {
        let number = match self.numbers.get(&system) {
            Some(number) => *number,
            None => {
                let number = self.free.pop().or_else(|| {
                    let number = u16::try_from(self.all.len()).ok()?;
                    self.all.push((system, 0));
                    Some(number)
                })?;
                self.all[usize::from(number)] = (system, 0);
                self.numbers.insert(system, number);
                number
            }
        };
        self.all[usize::from(number)].1 += 1;
        Some(number)
    }

    /// One inode less.
    fn leave(&mut self, number: u16) {
        let (system, inodes) = &mut self.all[usize::from(number)];
        *inodes -= 1;
        if *inodes == 0 {
            self.numbers.remove(system);
            self.free.push(number);
        }
    }

    fn dev(&self, number: u16) -> u32 {
        self.all[usize::from(number)].0.dev
    }

    /// What fanotify names an inode by.
    fn id(&self, own: &Own) -> FileId {
        FileId::of(&self.all[usize::from(own.system)].0.head, &own.handle)
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
    use super::{Entry, Table};
    use crate::model::{HostPath, InodeKey, Slot, WatchKind};
    use crate::sensor::canary::SLOT;
    use crate::sensor::fanotify::sys::FileId;

    fn id(number: u8) -> FileId {
        FileId::new(&raw(number))
    }

    /// File system, length, type and handle, of 8 bytes.
    fn raw(number: u8) -> [u8; 24] {
        let mut raw = [number; 24];
        raw[..8].fill(7);
        raw[8..12].copy_from_slice(&8_u32.to_ne_bytes());
        raw[12..16].copy_from_slice(&1_i32.to_ne_bytes());
        raw
    }

    fn key(number: u8) -> Option<InodeKey> {
        Some(InodeKey { dev: 1, ino: number.into() })
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
        table.watch(&id(1), SLOT, WatchKind::Object, key(1), None);
        assert_eq!(table.own.len(), 1);
        table.watch(&id(2), Slot(1), WatchKind::Object, key(2), None);
        assert_eq!(table.own.len(), 3);
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

    #[test]
    fn what_is_small_and_what_is_not_is_told_alike() {
        let mut long = [0; 40];
        long[8..12].copy_from_slice(&24_u32.to_ne_bytes());
        for (raw, key) in [(&raw(1)[..], key(1)), (&raw(1)[..], None), (&long[..], key(1))] {
            let (mut table, path) = (Table::default(), HostPath::from("/d"));
            table.watch(&FileId::new(raw), Slot(5), WatchKind::Tree, key, Some(path.clone()));
            let entry = Entry { slot: Slot(5), kind: WatchKind::Tree, key, counted: false };
            assert_eq!((table.get(raw), table.path(raw), table.len()), (Some(entry), Some(path.clone()), 1));
            table.count(raw, true);
            // Another inode stands there: the earlier one is of the same slot as long as it is there.
            table.watch(&id(9), Slot(5), WatchKind::Tree, self::key(9), None);
            let entry = Entry { counted: true, ..entry };
            assert_eq!((table.get(raw), table.path(raw), table.len()), (Some(entry), Some(path), 2));
            assert_eq!(table.watched(Slot(5)), [id(9), FileId::new(raw)]);
            table.forget(raw);
            assert_eq!((table.get(raw), table.remove(Slot(5))), (None, vec![id(9)]));
            assert_eq!((table.len(), table.others_of.len(), table.paths.len()), (0, 0, 0));
            assert_eq!(table.systems.numbers.len(), 0);
        }
    }
}
