//! Where tags are kept, and how the agent sets one.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the fields of one request, in one mapping")]

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{HashMap as BpfHashMap, InodeStorage, MapData, MapError};
use monitor_ebpf::limits;
use monitor_ebpf::record::{InodeId, REQUEST_DONE, REQUEST_REFUSED, Request, TAG_INHERITED, Tag};

use super::HookError;
use super::load::{array, map_error, take};
use super::rung::HookRung;
use super::shared::{Mapped, Shared};
use crate::model::Slot;
use crate::sensor::{Stands, WatchError};

/// Slots given up before left-over tags are looked for.
const SWEEP_AFTER: u32 = 256;

/// The tags of a rung.
#[derive(Debug)]
pub(super) struct Tags {
    request: Mapped<Request>,
    kept: Kept,
}

/// Where they are.
#[derive(Debug)]
enum Kept {
    /// In the inodes themselves.
    Storage(InodeStorage<MapData, Tag>),
    /// By what the kernel knows an inode by.
    Table(Box<Table>),
}

/// Tags in a hash map, which the programs fill and empty: the agent cannot tell what the kernel knows an inode by, and
/// asks by way of a pin.
#[derive(Debug)]
struct Table {
    map: BpfHashMap<MapData, InodeId, Tag>,
    /// How many inodes with a tag have a number of each kind.
    crowds: Mapped<u64>,
    /// What was tagged for each slot, beside what inherited.
    inodes: HashMap<Slot, Vec<InodeId>>,
    given_up: u32,
}

impl Tags {
    /// Takes the rung's maps.
    pub(super) fn new(ebpf: &mut Ebpf, rung: HookRung) -> Result<Self, HookError> {
        let map = take(ebpf, "TAGS")?;
        let wrong = |error: MapError| map_error("TAGS", &error);
        let kept = match rung {
            HookRung::Lsm => Kept::Storage(InodeStorage::try_from(map).map_err(wrong)?),
            HookRung::Fentry => Kept::Table(Box::new(Table {
                map: BpfHashMap::try_from(map).map_err(wrong)?,
                crowds: mapped(ebpf, "CROWDS", limits::CROWDS)?,
                inodes: HashMap::new(),
                given_up: 0,
            })),
        };
        Ok(Self { request: mapped(ebpf, "REQUEST", 1)?, kept })
    }

    /// Says which tag the inode is to get that this thread pins next: the program on the hook of that call prepares for it, or sets it.
    pub(super) fn ask(&self, tag: Tag) {
        let Some(request) = self.request.at(0) else { return };
        let thread = u64::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap_or(0);
        let task = u64::from(std::process::id()) << 32 | thread;
        // SAFETY: aligned fields of a mapping that lives as long as `self`; the program reads them only in a call of this
        // thread's.
        unsafe {
            (&raw mut (*request).tag).write_volatile(tag);
            AtomicU32::from_ptr(&raw mut (*request).answer).store(0, Ordering::Release);
            AtomicU64::from_ptr(&raw mut (*request).task).store(task, Ordering::SeqCst);
        }
    }

    /// Tags the inode behind `fd`, which was pinned since [`ask`](Self::ask).
    pub(super) fn set(&mut self, fd: BorrowedFd<'_>, tag: Tag) -> Result<(), WatchError> {
        let inode = self.answered()?;
        match &mut self.kept {
            Kept::Storage(map) => map
                .insert(&fd.as_raw_fd(), tag, 0)
                .map_err(|error| WatchError::Kernel { call: "bpf_map_update_elem", source: io(&error) }),
            Kept::Table(table) => {
                table.inodes.entry(Slot(tag.slot)).or_default().push(inode);
                Ok(())
            }
        }
    }

    /// What became of the request, and what the inode is known by, where there is a table.
    fn answered(&self) -> Result<InodeId, WatchError> {
        let did_not_run = || WatchError::Kernel {
            call: "inotify_add_watch",
            source: std::io::Error::other("the program on path_notify did not run"),
        };
        let request = self.request.at(0).ok_or_else(did_not_run)?;
        // SAFETY: as in `ask`.
        let (answer, inode) = unsafe {
            AtomicU64::from_ptr(&raw mut (*request).task).store(0, Ordering::SeqCst);
            let answer = AtomicU32::from_ptr(&raw mut (*request).answer).load(Ordering::Acquire);
            (answer, (&raw const (*request).inode).read_volatile())
        };
        match answer {
            REQUEST_DONE => Ok(inode),
            REQUEST_REFUSED => Err(WatchError::Exhausted {
                what: "tags",
                limit: format!("{} inodes, with what lies below watched directories", limits::TAGS),
            }),
            _ => Err(did_not_run()),
        }
    }

    /// Whether the inode behind `fd`, tagged for `slot`, has a tag that the agent set and that counts. Of two slots for
    /// one inode the later one's will do.
    pub(super) fn stands(&self, fd: BorrowedFd<'_>, slot: Slot, shared: &Shared) -> Stands {
        let tag = match &self.kept {
            Kept::Storage(map) => map.get(&fd.as_raw_fd(), 0),
            Kept::Table(table) => match table.inodes.get(&slot).and_then(|inodes| inodes.last()) {
                Some(inode) => table.map.get(inode, 0),
                None => return Stands::Outdated,
            },
        };
        match tag {
            Ok(tag) if !shared.is_live(&tag) => Stands::Outdated,
            // Handed down since: the one that was set had gone.
            Ok(tag) if tag.flags & TAG_INHERITED != 0 => Stands::Taken,
            Err(MapError::KeyNotFound) => Stands::Taken,
            // That it could not be asked says nothing.
            Ok(_) | Err(_) => Stands::Yes,
        }
    }

    /// The slot is given up: what stands for it goes where that does not go by itself.
    pub(super) fn forget(&mut self, slot: Slot, shared: &Shared) {
        if let Kept::Table(table) = &mut self.kept {
            table.forget(slot, shared);
        }
    }
}

fn io(error: &MapError) -> std::io::Error {
    match error {
        MapError::SyscallError(call) => {
            std::io::Error::from_raw_os_error(call.io_error.raw_os_error().unwrap_or(0))
        }
        other => std::io::Error::other(other.to_string()),
    }
}

/// All of an array that both sides map.
fn mapped<T>(ebpf: &mut Ebpf, name: &'static str, len: usize) -> Result<Mapped<T>, HookError> {
    Mapped::new(array(ebpf, name)?, len).map_err(|error| map_error(name, &error))
}

impl Table {
    fn forget(&mut self, slot: Slot, shared: &Shared) {
        for inode in self.inodes.remove(&slot).unwrap_or_default() {
            // It may be another slot's by now, or gone with its inode.
            if self.map.get(&inode, 0).is_ok_and(|tag| tag.slot == slot.0) {
                self.remove(&inode);
            }
        }
        self.given_up += 1;
        if self.given_up >= SWEEP_AFTER {
            self.given_up = 0;
            self.sweep(shared);
        }
    }

    fn remove(&mut self, inode: &InodeId) {
        // It may have gone with its inode, and was counted then.
        if self.map.remove(inode).is_ok()
            && let Some(count) = self.crowds.at(InodeId::crowd(inode.ino) as usize)
        {
            // SAFETY: an aligned number in a mapping that lives as long as `self`; the programs write it by atomic additions.
            let _ = unsafe { AtomicU64::from_ptr(count) }.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Removes what was inherited from slots that are given up, where the inode lives on.
    fn sweep(&mut self, shared: &Shared) {
        // The programs add and remove meanwhile: what is not met now is met the next time.
        let stale: Vec<InodeId> = self
            .map
            .iter()
            .filter_map(Result::ok)
            .take(limits::TAGS)
            .filter(|(_, tag)| !shared.is_live(tag))
            .map(|(inode, _)| inode)
            .collect();
        for inode in &stale {
            self.remove(inode);
        }
        if !stale.is_empty() {
            tracing::debug!(count = stale.len(), "left-over tags removed");
        }
    }
}
