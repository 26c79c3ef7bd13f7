//! With which modes and owners a volume's files lie on the node.
//!
//! Without fsGroup: the volume's directory is the emptyDir plugin's (0777; a tmpfs is 01777), `..<timestamp>` is 0755
//! (`AtomicWriter`), directories in it are `MkdirAll(0777)` under the kubelet's umask of 022, files have their mode
//! whatever the umask. All belong to root, but tokens (`fs_user`).
//! With fsGroup, `SetVolumeOwnership` gives everything to that group: files get `| 0440` (published volumes are
//! read-only), directories `| 0550 | setgid`.

use std::collections::{BTreeMap, BTreeSet};

use super::payload::{File, Payload};

/// Mode and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A volume as it lies on the node.
#[derive(Debug)]
pub struct Layout<'p> {
    /// The volume's directory.
    pub root: Owned,
    /// Logical path (`.` for the directory `..data` points at) → file, or `None` for a directory.
    pub entries: BTreeMap<String, (Owned, Option<&'p File>)>,
}

/// Lays a payload out.
#[must_use]
pub fn layout(payload: &Payload, fs_group: Option<u32>) -> Layout<'_> {
    let directory = |mode: u16| match fs_group {
        Some(gid) => Owned { mode: mode | 0o2550, uid: 0, gid },
        None => Owned { mode, uid: 0, gid: 0 },
    };
    let root = directory(if payload.plugin.in_memory() { 0o1777 } else { 0o777 });
    let mut entries = BTreeMap::from([(".".to_owned(), (directory(0o755), None))]);
    let directories: BTreeSet<&str> = payload.files.keys().flat_map(|path| ancestors(path)).collect();
    for path in directories {
        entries.insert(path.to_owned(), (directory(0o755), None));
    }
    for (path, file) in &payload.files {
        let (mode, gid) = fs_group.map_or((file.mode, 0), |gid| (file.mode | 0o440, gid));
        entries.insert(path.clone(), (Owned { mode, uid: file.uid, gid }, Some(file)));
    }
    Layout { root, entries }
}

/// The directories above a path, without the volume's own.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}
