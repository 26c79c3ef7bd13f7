//! SHA-256 of executables, kept by (device, inode, ctime, size), within a budget.
//!
//! Read through `/proc/PID/exe`, so that the bytes are those that run, wherever the path leads by now.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

use sha2::{Digest as _, Sha256};

use crate::inventory::inodes;
use crate::inventory::procs::Proc;
use crate::model::Actor;

/// Executables larger than this are not hashed when they act (their inode still tells them apart), in bytes.
const SIZE_MAX: u64 = 256 << 20;
/// Hashes kept.
const KEPT_MAX: usize = 4096;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    dev: u64,
    ino: u64,
    ctime: (i64, i64),
    size: u64,
}

/// Hashes of executables that acted.
#[derive(Debug, Default)]
pub struct ExeHashes {
    kept: HashMap<Key, String>,
}

impl ExeHashes {
    /// The hash of what a live process runs; `None` if it is gone, too large, or is not the actor any more.
    pub fn of_process(&mut self, proc: &Proc, actor: &Actor) -> Option<String> {
        let mut file = std::fs::File::open(proc.path(actor.tgid, "exe")).ok()?;
        let meta = file.metadata().ok()?;
        // Another inode: the process has executed something else since, or the pid is another's.
        let other = actor.exe_inode.is_some_and(|acted| inodes::of(&file).ok() != Some(acted));
        if other || !started_then(proc, actor) {
            return None;
        }
        self.of_file(&mut file, &meta)
    }

    /// The hash of an open file, of which `meta` tells; `None` if it is too large or changes meanwhile.
    pub fn of_file(&mut self, file: &mut std::fs::File, meta: &std::fs::Metadata) -> Option<String> {
        let key = Key {
            dev: meta.dev(),
            ino: meta.ino(),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            size: meta.size(),
        };
        if let Some(known) = self.kept.get(&key) {
            return Some(known.clone());
        }
        let hash = hash(file, meta.size())?;
        let again = file.metadata().ok()?;
        if (again.ctime(), again.ctime_nsec(), again.size()) == (key.ctime.0, key.ctime.1, key.size) {
            if self.kept.len() >= KEPT_MAX {
                self.kept.clear();
            }
            self.kept.insert(key, hash.clone());
        }
        Some(hash)
    }
}

fn started_then(proc: &Proc, actor: &Actor) -> bool {
    let Ok(stat) = proc.stat(actor.tgid) else { return false };
    proc.ticks_to_ns(stat.start_ticks).abs_diff(actor.start_boottime) <= proc.tick_ns()
}

fn hash(file: &mut std::fs::File, size: u64) -> Option<String> {
    if size > SIZE_MAX {
        return None;
    }
    let (mut digest, mut buffer, mut left) = (Sha256::new(), vec![0; 128 << 10], SIZE_MAX);
    loop {
        let count = file.read(&mut buffer).ok()?;
        if count == 0 {
            return Some(hex::encode(digest.finalize()));
        }
        left = left.checked_sub(count as u64)?;
        digest.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::ExeHashes;
    use crate::inventory::procs::Proc;
    use crate::model::InodeKey;
    use sha2::{Digest as _, Sha256};

    #[test]
    fn own_executable_hashes_right_and_another_inode_does_not_hash() {
        let (proc, mut hashes) = (Proc::default(), ExeHashes::default());
        let mut actor = proc.actor(std::process::id()).unwrap();
        let expected = hex::encode(Sha256::digest(std::fs::read("/proc/self/exe").unwrap()));
        assert_eq!(hashes.of_process(&proc, &actor), Some(expected.clone()));
        assert_eq!(hashes.of_process(&proc, &actor), Some(expected));
        actor.exe_inode = Some(InodeKey { dev: 1, ino: 1 });
        assert_eq!(hashes.of_process(&proc, &actor), None);
    }
}
