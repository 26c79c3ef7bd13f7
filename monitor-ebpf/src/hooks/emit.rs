//! One act: counted and marked first, then recorded.

use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_boot_ns, bpf_probe_read_user_str, bpf_ringbuf_reserve, bpf_ringbuf_submit,
};
use aya_ebpf::macros::btf_map;
use monitor_ebpf::limits;
use monitor_ebpf::record::{
    EVENT_PATH_AS_NAMED, EVENT_PATH_TRUNCATED, EVENT_TO_PATH_TRUNCATED, Event, HookId, KIND_EVENT,
    KIND_RENAME, Op, RenameEvent,
};

use super::tags;
use crate::kernel::{Ptr, actor, add, layout, read, read_ptr, walk};

#[btf_map]
static EVENTS: RingBuf<Event, { limits::RING }> = RingBuf::new();

/// What is recorded, beside the actor. Slots are as in [`Event`].
pub(super) struct Act {
    pub hook: HookId,
    pub op: Op,
    pub flags: u32,
    pub slot: u32,
    pub child_slot: u32,
    pub to_slot: u32,
    pub replaced_slot: u32,
    /// The inode acted upon, or null.
    pub inode: Ptr,
    /// Whose super block it is, if `inode` is null.
    pub dir: Ptr,
    pub dentry: Ptr,
}

impl Act {
    /// An act on an inode itself.
    #[inline(always)]
    pub(super) fn on_inode(hook: HookId, op: Op, slot: u32, inode: Ptr, dentry: Ptr) -> Self {
        let dir = core::ptr::null();
        Self { hook, op, flags: 0, slot, child_slot: 0, to_slot: 0, replaced_slot: 0, inode, dir, dentry }
    }
}

/// Counts one event and leaves the mark; the answer is the event's number.
#[inline(always)]
fn mark(slot: u32) -> u64 {
    let Some(slot) = tags::slot(slot) else { return 0 };
    // SAFETY: a pointer into the array, never freed; the agent only clears the mark.
    unsafe {
        add(&raw mut (*slot).events, 1);
        core::ptr::write_volatile(&raw mut (*slot).dirty, 1);
        core::ptr::read_volatile(&raw const (*slot).events)
    }
}

/// Each slot concerned once.
#[inline(always)]
fn mark_all(act: &Act) -> u64 {
    let number = mark(act.slot);
    if act.child_slot != 0 && act.child_slot != act.slot {
        mark(act.child_slot);
    }
    if act.to_slot != 0 && act.to_slot != act.slot && act.to_slot != act.child_slot {
        mark(act.to_slot);
    }
    if act.replaced_slot != 0
        && act.replaced_slot != act.slot
        && act.replaced_slot != act.child_slot
        && act.replaced_slot != act.to_slot
    {
        mark(act.replaced_slot);
    }
    number
}

#[inline(always)]
fn lost() {
    if let Some(control) = tags::control() {
        // SAFETY: a pointer into the array, never freed.
        unsafe { add(&raw mut (*control).lost, 1) };
    }
}

/// Records an act with one path.
#[inline(always)]
pub(super) fn emit(act: &Act) {
    let number = mark_all(act);
    // SAFETY: the map lives as long as the program.
    let record = unsafe { bpf_ringbuf_reserve(ring(), size_of::<Event>() as u64, 0) }.cast::<Event>();
    if record.is_null() {
        return lost();
    }
    // SAFETY: reserved with this size, and submitted once.
    unsafe {
        (*record).kind = KIND_EVENT;
        (*record).to_path_len = 0;
        let flags = fill(record, act, number);
        (*record).flags = flags;
        bpf_ringbuf_submit(record.cast(), 0);
    }
}

/// Records an act with two paths.
#[inline(always)]
pub(super) fn emit_rename(act: &Act, to: Ptr) {
    let number = mark_all(act);
    // SAFETY: the map lives as long as the program.
    let record =
        unsafe { bpf_ringbuf_reserve(ring(), size_of::<RenameEvent>() as u64, 0) }.cast::<RenameEvent>();
    if record.is_null() {
        return lost();
    }
    // SAFETY: reserved with this size, and submitted once.
    unsafe {
        let event = &raw mut (*record).event;
        (*event).kind = KIND_RENAME;
        let mut flags = fill(event, act, number);
        if walk::in_file_system((&raw mut (*record).to_path).cast(), &raw mut (*event).to_path_len, to) {
            flags |= EVENT_TO_PATH_TRUNCATED;
        }
        (*event).flags = flags;
        bpf_ringbuf_submit(record.cast(), 0);
    }
}

/// Records an act on what the caller names by a path in its own memory.
#[inline(always)]
pub(super) fn emit_named(hook: HookId, op: Op, path: Ptr) {
    // SAFETY: the map lives as long as the program.
    let record = unsafe { bpf_ringbuf_reserve(ring(), size_of::<Event>() as u64, 0) }.cast::<Event>();
    if record.is_null() {
        return lost();
    }
    let null = core::ptr::null();
    let act = Act::on_inode(hook, op, 0, null, null);
    // SAFETY: reserved with this size, and submitted once; the helper checks the address.
    unsafe {
        (*record).kind = KIND_EVENT;
        (*record).to_path_len = 0;
        let flags = fill(record, &act, 0);
        let took = bpf_probe_read_user_str((&raw mut (*record).path).cast(), limits::PATH as u32, path);
        let whole = took > 0 && took < limits::PATH as i64;
        (*record).path_len = if whole { took as u32 } else { 0 };
        (*record).flags = flags | EVENT_PATH_AS_NAMED;
        bpf_ringbuf_submit(record.cast(), 0);
    }
}

#[inline(always)]
pub(super) fn ring() -> *mut core::ffi::c_void {
    (&raw const EVENTS).cast_mut().cast()
}

/// Writes all of `event` but its kind, flags and second path. Answers the flags so far.
///
/// # Safety
/// `event` is valid for writes.
#[inline(always)]
unsafe fn fill(event: *mut Event, act: &Act, number: u64) -> u32 {
    let of_sb = if act.inode.is_null() { act.dir } else { act.inode };
    let sb = read_ptr(of_sb, layout!(inode_i_sb));
    let ino = if act.inode.is_null() { 0 } else { read(act.inode, layout!(inode_i_ino), 0) };
    // SAFETY: the caller's word; the arrays are as long as the walk expects.
    unsafe {
        (*event).hook = act.hook as u32;
        (*event).op = act.op as u32;
        (*event).time = bpf_ktime_get_boot_ns();
        (*event).number = number;
        (*event).slot = act.slot;
        (*event).child_slot = act.child_slot;
        (*event).to_slot = act.to_slot;
        (*event).replaced_slot = act.replaced_slot;
        (*event).ino = ino;
        (*event).dev = read(sb, layout!(sb_s_dev), 0);
        (*event).reserved = 0;
        actor::capture(&raw mut (*event).actor);
        let path = (&raw mut (*event).path).cast();
        if walk::in_file_system(path, &raw mut (*event).path_len, act.dentry) {
            act.flags | EVENT_PATH_TRUNCATED
        } else {
            act.flags
        }
    }
}
