//! SHA-256 of executables, kept by (device, inode, ctime, size), within a budget.
//!
//! Opened through `/proc/PID/exe`, so that the bytes are those that run, wherever the path leads by now and whether or not the process is
//! still there when they are read. They are read beside whoever asks: 50 MB take some 50 ms, in which an object settles and the judge has
//! others to look at.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::inventory::inodes;
use crate::inventory::procs::Proc;
use crate::model::{Actor, ExeHash, InodeKey};

/// Executables larger than this are not hashed when they act (their inode still tells them apart), in bytes.
const SIZE_MAX: u64 = 256 << 20;
/// Who acts many times in a row is looked up so often: that takes some five system calls, and a storm has a hundred thousand acts.
const LOOKED_UP_AGAIN: Duration = Duration::from_secs(1);
/// Processes remembered for that.
const SEEN_MAX: usize = 256;
/// Hashes kept.
const KEPT_MAX: usize = 4096;
/// Executables read at once beside those who ask; each has a descriptor and a thread. Whoever brings more waits for his own.
const AT_ONCE: usize = 4;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    dev: u64,
    ino: u64,
    ctime: (i64, i64),
    size: u64,
}

/// A process that runs a program: another one that it executes, or a process that has its number later, is another.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Running {
    tgid: u32,
    start_boottime: u64,
    exe: InodeKey,
}

/// Hashes of executables that acted.
#[derive(Debug, Default)]
pub struct ExeHashes {
    kept: HashMap<Key, ExeHash>,
    /// What processes were seen to run, and when.
    seen: HashMap<Running, (Instant, ExeHash)>,
    /// One more than are being read.
    reading: Arc<()>,
}

impl ExeHashes {
    /// The hash of what a live process runs, most likely in the making; `None` if it is gone, too large, or is not the actor any more.
    pub fn of_process(&mut self, proc: &Proc, actor: &Actor) -> Option<ExeHash> {
        // Without its inode a program is not told from one that is executed next.
        let exe = actor.exe_inode.filter(|_| actor.start_boottime != 0);
        let running = exe.map(|exe| Running { tgid: actor.tgid, start_boottime: actor.start_boottime, exe });
        let seen = running.as_ref().and_then(|running| self.seen.get(running));
        if let Some((_, hash)) =
            seen.filter(|(at, hash)| at.elapsed() < LOOKED_UP_AGAIN && !hash.has_failed())
        {
            return Some(hash.clone());
        }
        let hash = self.looked_up(proc, actor)?;
        if let Some(running) = running {
            if self.seen.len() >= SEEN_MAX {
                self.seen.clear();
            }
            self.seen.insert(running, (Instant::now(), hash.clone()));
        }
        Some(hash)
    }

    fn looked_up(&mut self, proc: &Proc, actor: &Actor) -> Option<ExeHash> {
        let file = File::open(proc.path(actor.tgid, "exe")).ok()?;
        let meta = file.metadata().ok()?;
        // Another inode: the process has executed something else since, or the pid is another's.
        let other = actor.exe_inode.is_some_and(|acted| inodes::of(&file).ok() != Some(acted));
        if other || !started_then(proc, actor) {
            return None;
        }
        let hash = self.begun(file, &meta)?;
        if !hash.is_made() {
            self.read_beside(&hash);
        }
        Some(hash)
    }

    /// The hash of an open file, of which `meta` tells; `None` if it is too large or cannot be read.
    pub fn of_file(&mut self, file: File, meta: &Metadata) -> Option<String> {
        self.begun(file, meta)?.get().map(str::to_owned)
    }

    /// The hash that is kept of a file, or one that is still to be made.
    fn begun(&mut self, mut file: File, meta: &Metadata) -> Option<ExeHash> {
        let (ctime, size) = ((meta.ctime(), meta.ctime_nsec()), meta.size());
        let key = Key { dev: meta.dev(), ino: meta.ino(), ctime, size };
        if let Some(known) = self.kept.get(&key).filter(|known| !known.has_failed()) {
            return Some(known.clone());
        }
        if size > SIZE_MAX {
            return None;
        }
        if self.kept.len() >= KEPT_MAX {
            self.kept.clear();
        }
        // What changes while it is read has another ctime from then on: it is not found by this key again.
        let hash = ExeHash::of(move || hash(&mut file));
        self.kept.insert(key, hash.clone());
        Some(hash)
    }

    /// Has it made by a worker, if there is one that is free.
    fn read_beside(&self, hash: &ExeHash) {
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if Arc::strong_count(&self.reading) <= AT_ONCE => {
                let (hash, reading) = (hash.clone(), Arc::clone(&self.reading));
                drop(runtime.spawn_blocking(move || {
                    hash.make();
                    drop(reading);
                }));
            }
            _ => hash.make(),
        }
    }
}

fn started_then(proc: &Proc, actor: &Actor) -> bool {
    let Ok(stat) = proc.stat(actor.tgid) else { return false };
    proc.ticks_to_ns(stat.start_ticks).abs_diff(actor.start_boottime) <= proc.tick_ns()
}

fn hash(file: &mut File) -> Option<String> {
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
    use std::fs::File;
    use std::io::Write as _;

    use super::ExeHashes;
    use crate::inventory::procs::Proc;
    use crate::model::{ExeHash, InodeKey};
    use sha2::{Digest as _, Sha256};

    #[test]
    fn own_executable_hashes_right_and_another_inode_does_not_hash() {
        let (proc, mut hashes) = (Proc::default(), ExeHashes::default());
        let mut actor = proc.actor(std::process::id()).unwrap();
        let expected = ExeHash::from(hex::encode(Sha256::digest(std::fs::read("/proc/self/exe").unwrap())));
        assert_eq!(hashes.of_process(&proc, &actor), Some(expected.clone()));
        assert_eq!(hashes.of_process(&proc, &actor), Some(expected));
        actor.exe_inode = Some(InodeKey { dev: 1, ino: 1 });
        assert_eq!(hashes.of_process(&proc, &actor), None);
    }

    /// A pipe is read to its end only once its writer has gone.
    #[tokio::test]
    async fn whoever_asks_does_not_wait_until_it_is_read() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        let (mut hashes, meta) = (ExeHashes::default(), file.metadata().unwrap());
        let again = file.try_clone().unwrap();
        let hash = hashes.begun(file, &meta).unwrap();
        hashes.read_beside(&hash);
        assert!(!hash.is_made());
        writer.write_all(b"code").unwrap();
        drop(writer);
        let expected = hex::encode(Sha256::digest(b"code"));
        let meta = again.metadata().unwrap();
        let made = tokio::task::spawn_blocking(move || hash.get().map(str::to_owned)).await.unwrap();
        assert_eq!(made, Some(expected.clone()));
        assert_eq!(hashes.of_file(again, &meta), Some(expected), "it is kept");
    }
}
