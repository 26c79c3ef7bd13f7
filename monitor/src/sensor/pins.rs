//! Inode pins: one inotify watch for each watched inode. It keeps the inode (and with it the BPF storage) in memory
//! without holding the mount busy, and is a witness of its own: close after write, deletion, move.
//!
//! The limit on watches is per user and shared with the kubelet: at most half of what is free at start is taken.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::model::Slot;
use crate::sensor::WatchError;

/// Where the limit stands.
const LIMIT: &str = "/proc/sys/fs/inotify/max_user_watches";

/// What the witness says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Witness {
    /// Something was done to the inode of this slot.
    Touched(Slot),
    /// It was open for writing, and was closed.
    Closed(Slot),
    /// The kernel dropped events.
    Overflow,
}

/// How many watches may be taken.
#[derive(Debug)]
pub(crate) struct Budget {
    watches: usize,
    limit: String,
}

impl Budget {
    /// Half of the watches that are free now.
    pub(crate) fn now() -> std::io::Result<Self> {
        let limit = std::fs::read_to_string(LIMIT)?.trim().parse::<usize>().unwrap_or(0);
        let watches = limit.saturating_sub(used(Path::new("/proc"))) / 2;
        let limit =
            format!("fs.inotify.max_user_watches is {limit}, of which half of the free {watches} are used");
        Ok(Self { watches, limit })
    }

    /// Watches the inode behind `target`, if fewer than the budget are in use; watched already, it only gets another
    /// mask.
    pub(crate) fn add(
        &self,
        inotify: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        mask: WatchFlags,
        in_use: usize,
    ) -> Result<i32, WatchError> {
        let exhausted = || WatchError::Exhausted { what: "inotify watches", limit: self.limit.clone() };
        if in_use >= self.watches {
            return Err(exhausted());
        }
        let path = format!("/proc/self/fd/{}", target.as_raw_fd());
        inotify::add_watch(inotify, path, mask).map_err(|source| {
            if source == rustix::io::Errno::NOSPC {
                exhausted()
            } else {
                WatchError::Kernel { call: "inotify_add_watch", source: source.into() }
            }
        })
    }
}

/// The pins of one sensor.
#[derive(Debug)]
pub(crate) struct Pins {
    fd: OwnedFd,
    budget: Budget,
    slots: HashMap<i32, Slot>,
}

impl Pins {
    /// With half of the watches that are free now.
    pub(crate) fn new() -> std::io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { fd, budget: Budget::now()?, slots: HashMap::new() })
    }

    /// Becomes readable when the witness has something to say.
    pub(crate) fn fd(&self) -> std::io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Pins the inode behind `fd`, or moves its pin to another slot. `dir` leaves what is done to its entries out.
    pub(crate) fn add(&mut self, fd: BorrowedFd<'_>, slot: Slot, dir: bool) -> Result<(), WatchError> {
        let mut mask = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        if !dir {
            mask |= WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB;
        }
        let wd = self.budget.add(self.fd.as_fd(), fd, mask, self.slots.len())?;
        let _ = self.slots.insert(wd, slot);
        Ok(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Releases what is pinned under `slot`.
    pub(crate) fn remove(&mut self, slot: Slot) {
        let wds: Vec<i32> =
            self.slots.iter().filter(|(_, pinned)| **pinned == slot).map(|(wd, _)| *wd).collect();
        for wd in wds {
            let _ = self.slots.remove(&wd);
            // It may be gone already, with its inode.
            let _ = inotify::remove_watch(&self.fd, wd);
        }
    }

    /// Reads what the witness has to say now.
    pub(crate) fn read(&mut self) -> Vec<Witness> {
        let mut out = Vec::new();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(self.fd.as_fd(), &mut buffer);
        // Errors mean: nothing more now.
        while let Ok(event) = reader.next() {
            let (flags, wd) = (event.events(), event.wd());
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                out.push(Witness::Overflow);
                continue;
            }
            let closed = flags.contains(ReadFlags::CLOSE_WRITE);
            let witness = if closed { Witness::Closed } else { Witness::Touched };
            if let Some(slot) = self.slots.get(&wd)
                && event.file_name().is_none()
                && !out.contains(&witness(*slot))
            {
                out.push(witness(*slot));
            }
            if flags.contains(ReadFlags::IGNORED) {
                let _ = self.slots.remove(&wd);
            }
        }
        out
    }
}

/// Watches in use by all processes, as far as /proc shows them.
fn used(proc: &Path) -> usize {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut count = 0;
    for process in entries(proc) {
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        for descriptor in entries(&process.path().join("fd")) {
            let inotify = std::fs::read_link(descriptor.path())
                .is_ok_and(|target| target.as_os_str() == "anon_inode:inotify");
            if inotify {
                let info = process.path().join("fdinfo").join(descriptor.file_name());
                count += std::fs::read_to_string(info)
                    .map_or(0, |text| text.lines().filter(|line| line.starts_with("inotify ")).count());
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_witness_tells_of_a_write_and_of_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f\n");
        std::fs::write(&path, "a").unwrap();
        let mut pins = Pins::new().unwrap();
        let file = std::fs::File::open(&path).unwrap();
        pins.add(file.as_fd(), Slot(7), false).unwrap();
        assert_eq!(pins.read(), []);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"b").unwrap();
        assert_eq!(pins.read(), [Witness::Closed(Slot(7))]);
        drop(file);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(pins.read(), [Witness::Touched(Slot(7))]);
        assert!(pins.slots.is_empty());
    }

    #[test]
    fn a_used_up_budget_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        let mut pins = Pins::new().unwrap();
        pins.budget.watches = 0;
        let error = pins.add(file.as_fd(), Slot(1), true).unwrap_err();
        assert!(matches!(error, WatchError::Exhausted { what: "inotify watches", .. }));
    }
}
