//! From acts to observations: which slot, which operation, which path.

use std::collections::HashSet;

use rustix::fs::FileType;

use super::assemble::{Act, MOVES, OwnedName};
use super::places::Places;
use super::sys::FileId;
use super::table::{Table, hands_down, watches_names};
use crate::model::{HostPath, InodeKey, Operation, RenamedTo, Slot, WatchKind};

/// Writers that are remembered, so that their close is told as part of the write. (The next opening without a write by
/// the same process may then be told as one: the kernel merges events and loses their order.)
const WRITERS_MAX: usize = 4096;

/// An observation without time and actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) operation: Operation,
    pub(super) slot: Slot,
    pub(super) child_slot: Option<Slot>,
    pub(super) inode: Option<InodeKey>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) path_in_fs: Option<HostPath>,
    pub(super) renamed_to: Option<RenamedTo>,
    pub(super) replaced_slot: Option<Slot>,
    /// It only ends a write that was told already.
    pub(super) closes: bool,
}

/// What must be done besides telling.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chore {
    /// A directory may hold what was there before it was watched.
    Walk(FileId),
    /// A directory was made here, and the kernel does not say which.
    Find(FileId, Vec<u8>),
    /// The inode is gone for good.
    Forget(FileId),
    /// There is no room for more inherited inodes below this slot.
    Full(Slot),
}

/// Remembers what spans several acts.
#[derive(Debug, Default)]
pub(super) struct Translator {
    writers: HashSet<(FileId, i32)>,
}

impl Translator {
    /// Translates one act. `seen` and `chores` are appended to.
    pub(super) fn translate(
        &mut self,
        act: &Act,
        table: &mut Table,
        places: &Places,
        seen: &mut Vec<Seen>,
        chores: &mut Vec<Chore>,
    ) {
        if act.mask & libc::FAN_CREATE != 0 {
            seen.extend(create(act, table, places, chores));
        }
        if act.mask & MOVES != 0 {
            seen.extend(rename(act, table, chores));
        }
        self.content(act, table, places, seen);
        if act.mask & libc::FAN_DELETE != 0 {
            seen.extend(delete(act, table));
        }
        if act.mask & libc::FAN_DELETE_SELF != 0
            && let Some(id) = act.subject()
        {
            chores.push(Chore::Forget(id.clone()));
        }
    }

    fn content(&mut self, act: &Act, table: &mut Table, places: &Places, seen: &mut Vec<Seen>) {
        let mask = act.mask & (libc::FAN_MODIFY | libc::FAN_ATTRIB | libc::FAN_CLOSE_WRITE);
        let Some(id) = act.subject().filter(|_| mask != 0) else { return };
        let Some(base) = place(act, id, table, places) else { return };
        let mut tell = |operation, closes| seen.push(Seen { operation, closes, ..base.clone() });
        let writer = (id.clone(), act.pid);
        if mask & libc::FAN_MODIFY != 0 {
            tell(Operation::Write, false);
        }
        if mask & libc::FAN_ATTRIB != 0 {
            tell(Operation::Setattr, false);
        }
        match (mask & libc::FAN_MODIFY != 0, mask & libc::FAN_CLOSE_WRITE != 0) {
            // Merged with a close, the write may be that before it or that of the next open, whose close is to come.
            (true, _) => {
                if self.writers.len() >= WRITERS_MAX {
                    self.writers.clear();
                }
                self.writers.insert(writer);
            }
            // What was stored through a mapping since the last write shows only here.
            (false, true) if self.writers.remove(&writer) => tell(Operation::Write, true),
            (false, true) => tell(Operation::Open, false),
            (false, false) => {}
        }
    }
}

/// Where a change of content or attributes happened, if that is watched.
fn place(act: &Act, id: &FileId, table: &mut Table, places: &Places) -> Option<Seen> {
    let raw: &[u8] = id;
    let dir = act.dir.as_ref().filter(|(_, name)| name != b".");
    if table.get(raw).is_none() {
        // It lay there before its directory was watched, or its creation could not say which inode it made.
        let (dir, name) = dir?;
        let kind = table.get(dir)?.kind;
        if !hands_down(kind) {
            return None;
        }
        let key = places.look(id).map(|look| look.key);
        if table.inherit(dir, name, id, key).is_none() {
            return base_below(dir, name, table);
        }
    }
    let entry = table.get(raw)?;
    if matches!(entry.kind, WatchKind::Parent | WatchKind::Ancestor) {
        return None;
    }
    let (slot, inode) = (entry.slot, entry.key);
    let known = table.path(raw);
    let path_in_fs = match dir {
        Some((_, name)) if known.as_ref().is_some_and(|path| path.name() == name) => known,
        Some((dir, name)) => {
            dir_path(dir, table).or_else(|| places.path_in_fs(dir)).map(|path| path.join(name))
        }
        None => known,
    };
    // What inherited its slot is never the watched directory itself, which a name tells where the inode is gone.
    let own_name = || table.name(raw).map(<[u8]>::to_vec);
    let name = dir.map(|(_, name)| name.clone()).or_else(own_name);
    Some(Seen { slot, inode, name, path_in_fs, ..nothing() })
}

/// Told by its directory alone, because there is no room to remember the inode.
fn base_below(dir: &FileId, name: &[u8], table: &Table) -> Option<Seen> {
    let slot = table.get(dir)?.slot;
    let path_in_fs = dir_path(dir, table).map(|path| path.join(name));
    Some(Seen { slot, name: Some(name.to_vec()), path_in_fs, ..nothing() })
}

const fn nothing() -> Seen {
    Seen {
        operation: Operation::Open,
        slot: Slot(0),
        child_slot: None,
        inode: None,
        name: None,
        path_in_fs: None,
        renamed_to: None,
        replaced_slot: None,
        closes: false,
    }
}

fn dir_path(dir: &FileId, table: &Table) -> Option<HostPath> {
    table.path(dir)
}

/// The slot of a directory whose names are watched.
fn names_slot(dir: &FileId, table: &Table) -> Option<Slot> {
    let entry = table.get(dir)?;
    watches_names(entry.kind).then_some(entry.slot)
}

fn slot_of(id: Option<&FileId>, table: &Table) -> (Option<Slot>, Option<InodeKey>) {
    let entry = id.and_then(|id| table.get(id));
    (entry.map(|entry| entry.slot), entry.and_then(|entry| entry.key))
}

fn create(act: &Act, table: &mut Table, places: &Places, chores: &mut Vec<Chore>) -> Option<Seen> {
    let (dir, name) = act.dir.as_ref()?;
    let is_dir = act.mask & libc::FAN_ONDIR != 0;
    let (child_slot, known_key) = slot_of(act.child.as_ref(), table);
    let dir_slot = names_slot(dir, table);
    let slot = dir_slot.or(child_slot)?;
    let look = act.child.as_ref().filter(|_| child_slot.is_none()).and_then(|id| places.look(id));
    let operation = match &look {
        _ if is_dir => Operation::Mkdir,
        _ if child_slot.is_some() => Operation::Link,
        Some(look) => match look.kind {
            FileType::Symlink => Operation::Symlink,
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                Operation::Mknod
            }
            _ if look.links > 1 => Operation::Link,
            _ => Operation::Create,
        },
        None => Operation::Create,
    };
    let key = known_key.or_else(|| look.map(|look| look.key));
    let raw: &[u8] = dir;
    if let Some(id) = &act.child {
        if table.inherit(raw, name, id, key).is_none() {
            chores.push(Chore::Full(slot));
        }
    } else if is_dir && table.get(raw).is_some_and(|entry| hands_down(entry.kind)) {
        chores.push(Chore::Find(dir.clone(), name.clone()));
    }
    let path_in_fs = dir_path(dir, table).or_else(|| places.path_in_fs(dir)).map(|path| path.join(name));
    Some(Seen { operation, slot, child_slot, inode: key, name: Some(name.clone()), path_in_fs, ..nothing() })
}

fn delete(act: &Act, table: &Table) -> Option<Seen> {
    let (dir, name) = act.dir.as_ref()?;
    let (child_slot, inode) = slot_of(act.child.as_ref(), table);
    let slot = names_slot(dir, table).or(child_slot)?;
    let operation = if act.mask & libc::FAN_ONDIR != 0 { Operation::Rmdir } else { Operation::Unlink };
    let path_in_fs = dir_path(dir, table).map(|path| path.join(name));
    Some(Seen { operation, slot, child_slot, inode, name: Some(name.clone()), path_in_fs, ..nothing() })
}

fn rename(act: &Act, table: &mut Table, chores: &mut Vec<Chore>) -> Option<Seen> {
    let side = |named: &Option<OwnedName>| named.as_ref().and_then(|(dir, _)| names_slot(dir, table));
    let (from_slot, to_slot) = (side(&act.from), side(&act.to));
    let (child_slot, mut inode) = slot_of(act.child.as_ref(), table);
    let (replaced_slot, _) = slot_of(act.replaced.as_ref(), table);
    // Slot 0 stands for a source directory that is not watched, if the destination is.
    let slot = from_slot.or_else(|| to_slot.map(|_| Slot(0))).or(child_slot).or(replaced_slot)?;
    let path_in_fs = act.from.as_ref().and_then(|(dir, name)| Some(dir_path(dir, table)?.join(name)));
    let renamed_to = act.to.as_ref().map(|(dir, name)| RenamedTo {
        slot: to_slot.unwrap_or(Slot(0)),
        name: name.clone(),
        path_in_fs: dir_path(dir, table).map(|path| path.join(name)),
    });
    if let (Some(id), Some((dir, name))) = (&act.child, &act.to) {
        let raw: &[u8] = dir;
        if child_slot.is_some() {
            table.moved(id, raw, name);
        } else {
            match table.inherit(raw, name, id, inode) {
                Some(true) if act.mask & libc::FAN_ONDIR != 0 => chores.push(Chore::Walk(id.clone())),
                Some(_) => {}
                None => chores.push(Chore::Full(to_slot.unwrap_or(slot))),
            }
            inode = None;
        }
    } else if let Some((dir, name)) = &act.to
        && act.mask & libc::FAN_ONDIR != 0
        && to_slot.is_some()
    {
        chores.push(Chore::Find(dir.clone(), name.clone()));
    }
    Some(Seen {
        operation: Operation::Rename,
        slot,
        child_slot,
        inode,
        name: act.from.as_ref().map(|(_, name)| name.clone()),
        path_in_fs,
        renamed_to,
        replaced_slot,
        ..nothing()
    })
}
