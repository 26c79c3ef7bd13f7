//! Arrays that both sides map: read and written without system calls, and never full.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a place in the mapping and the atomic view of it are one argument"
)]

use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;
use monitor_ebpf::record::{Control, Slot, Tag};

/// A `BPF_F_MMAPABLE` array of `T`.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    base: NonNull<T>,
    len: usize,
    bytes: usize,
    of: PhantomData<T>,
    /// A program that is loaded anew finds the map by its descriptor.
    _map: MapData,
}

// SAFETY: what lies behind it is shared memory that is reached through atomics only.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T> Mapped<T> {
    /// Maps the first `len` entries.
    pub(super) fn new(map: MapData, len: usize) -> std::io::Result<Self> {
        // The kernel lays each at a multiple of 8 bytes (kernel/bpf/arraymap.c), and not one right after the other.
        const { assert!(size_of::<T>().is_multiple_of(8), "entries do not follow each other") };
        let bytes = (len * size_of::<T>()).next_multiple_of(rustix::param::page_size());
        // SAFETY: a fresh shared mapping of the map's own memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        match NonNull::new(base.cast::<T>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => {
                Ok(Self { base, len, bytes, of: PhantomData, _map: map })
            }
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// The entry of that number.
    pub(super) fn at(&self, index: usize) -> Option<*mut T> {
        // SAFETY: within the mapping.
        (index < self.len).then(|| unsafe { self.base.as_ptr().add(index) })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; nothing borrows from it.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// The slots and the control entry.
#[derive(Debug)]
pub(super) struct Shared {
    slots: Mapped<Slot>,
    control: Mapped<Control>,
}

/// One slot's fields.
pub(super) struct SlotView<'a> {
    pub events: &'a AtomicU64,
    pub reads: &'a AtomicU64,
    pub dirty: &'a AtomicU32,
    pub flags: &'a AtomicU32,
    pub generation: &'a AtomicU32,
}

impl Shared {
    /// Maps both.
    pub(super) fn new(slots: MapData, len: u32, control: MapData) -> std::io::Result<Self> {
        Ok(Self { slots: Mapped::new(slots, len as usize)?, control: Mapped::new(control, 1)? })
    }

    /// How many slots there are, slot 0 among them.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.slots.len).unwrap_or(u32::MAX)
    }

    /// The slot of that number.
    pub(super) fn slot(&self, number: u32) -> Option<SlotView<'_>> {
        let slot = self.slots.at(number as usize)?;
        // SAFETY: aligned fields in a mapping that lives as long as `self`; the kernel writes them with atomic or
        // single aligned stores.
        unsafe {
            Some(SlotView {
                events: AtomicU64::from_ptr(&raw mut (*slot).events),
                reads: AtomicU64::from_ptr(&raw mut (*slot).reads),
                dirty: AtomicU32::from_ptr(&raw mut (*slot).dirty),
                flags: AtomicU32::from_ptr(&raw mut (*slot).flags),
                generation: AtomicU32::from_ptr(&raw mut (*slot).generation),
            })
        }
    }

    /// Events that a slot had.
    pub(super) fn events(&self, number: u32) -> u64 {
        self.slot(number).map_or(0, |slot| slot.events.load(Ordering::Acquire))
    }

    /// Whether a tag is of its slot's present generation.
    pub(super) fn is_live(&self, tag: &Tag) -> bool {
        let generation = |slot: SlotView<'_>| slot.generation.load(Ordering::Acquire);
        self.slot(tag.slot).map(generation) == Some(u32::from(tag.generation))
    }

    /// Records that found the ring full, and tags that found no memory.
    pub(super) fn losses(&self) -> (u64, u64) {
        let Some(control) = self.control.at(0) else { return (0, 0) };
        // SAFETY: as in `slot`.
        let (lost, untagged) = unsafe {
            (AtomicU64::from_ptr(&raw mut (*control).lost), AtomicU64::from_ptr(&raw mut (*control).untagged))
        };
        (lost.load(Ordering::Acquire), untagged.load(Ordering::Acquire))
    }

    /// Tags that went with their inodes, where a program does that.
    pub(super) fn released(&self) -> u64 {
        let Some(control) = self.control.at(0) else { return 0 };
        // SAFETY: as in `slot`.
        unsafe { AtomicU64::from_ptr(&raw mut (*control).released) }.load(Ordering::Acquire)
    }

    /// A directory came under a tag, and what lies below it has none yet.
    pub(super) fn catch_up(&self) {
        if let Some(directories) = self.directories() {
            let _ = directories.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How many directories came under a tag since all that lies below has its tag; 0 then.
    pub(super) fn catching_up(&self) -> u32 {
        self.directories().map_or(0, |directories| directories.load(Ordering::Acquire))
    }

    /// All that lies below those that had come when there were `so_many` has its tag. Changes nothing if there are more.
    pub(super) fn caught_up(&self, so_many: u32) {
        if let Some(directories) = self.directories() {
            let _ = directories.compare_exchange(so_many, 0, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    fn directories(&self) -> Option<&AtomicU32> {
        let control = self.control.at(0)?;
        // SAFETY: as in `slot`.
        Some(unsafe { AtomicU32::from_ptr(&raw mut (*control).catching_up) })
    }

    /// Says how many slots want their reads counted.
    pub(super) fn set_count_reads(&self, slots: u32) {
        if let Some(control) = self.control.at(0) {
            // SAFETY: as in `slot`.
            unsafe { AtomicU32::from_ptr(&raw mut (*control).count_reads) }.store(slots, Ordering::Release);
        }
    }
}
