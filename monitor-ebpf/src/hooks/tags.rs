//! What a tag means, and the slots tags point to.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use monitor_ebpf::limits;
use monitor_ebpf::record::{
    Control, Slot, TAG_ANCESTOR, TAG_CLOSED_DIR, TAG_INHERITED, TAG_OBJECT, TAG_PARENT, TAG_TREE, Tag,
};

use crate::kernel::{Ptr, add, add32};
use crate::rung;

/// `BPF_F_MMAPABLE`: the agent reads and clears marks without a system call.
pub(crate) const MMAPABLE: usize = 1 << 10;

#[btf_map]
static SLOTS: Array<Slot, { limits::SLOTS }, MMAPABLE> = Array::new();
#[btf_map]
static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();

/// The slot of that number.
#[inline(always)]
pub(super) fn slot(number: u32) -> Option<*mut Slot> {
    SLOTS.get_ptr_mut(number)
}

/// The one control entry.
#[inline(always)]
pub(crate) fn control() -> Option<*mut Control> {
    CONTROL.get_ptr_mut(0)
}

/// Whether something may lie below tagged directories that does not have its tag yet.
#[inline(always)]
pub(super) fn is_catching_up() -> bool {
    // SAFETY: a pointer into the array, never freed.
    control().is_some_and(|control| unsafe { (*control).catching_up } != 0)
}

/// A directory came under a tag: what lies below it has none yet.
#[inline(always)]
pub(super) fn catch_up() {
    if let Some(control) = control() {
        // SAFETY: a pointer into the array, never freed.
        unsafe { add32(&raw mut (*control).catching_up, 1) };
    }
}

/// Whether the tag is of its slot's present generation.
#[inline(always)]
pub(super) fn live(tag: Tag) -> bool {
    // SAFETY: a pointer into the array, never freed.
    slot(tag.slot).is_some_and(|slot| unsafe { (*slot).generation } == u32::from(tag.generation))
}

/// The live tag of an inode.
///
/// # Safety
/// `inode` is a typed pointer, or null.
#[inline(always)]
pub(super) unsafe fn tag_of(inode: Ptr) -> Option<Tag> {
    if inode.is_null() {
        return None;
    }
    // SAFETY: the caller's word, and not null.
    let tag = unsafe { rung::tag_of(inode) };
    if tag.is_null() {
        return None;
    }
    // SAFETY: not null, and it lives as long as the inode.
    let tag = unsafe { *tag };
    if live(tag) { Some(tag) } else { None }
}

/// Whether acts on the inode itself are of interest.
#[inline(always)]
pub(super) fn watches_content(tag: Tag) -> bool {
    tag.kind != TAG_PARENT && tag.kind != TAG_ANCESTOR
}

/// Whether acts on names in the directory are of interest.
#[inline(always)]
pub(super) fn watches_names(tag: Tag) -> bool {
    tag.kind != TAG_OBJECT && tag.kind != TAG_ANCESTOR
}

/// Whether what comes to lie below gets the tag too.
#[inline(always)]
pub(super) fn hands_down(tag: Tag) -> bool {
    tag.kind == TAG_CLOSED_DIR || tag.kind == TAG_TREE
}

/// Hands a directory's tag to an inode that has none. False if the kernel had no room for it.
///
/// # Safety
/// `inode` is a typed pointer, or null.
#[inline(always)]
pub(super) unsafe fn hand_down(dir: Tag, inode: Ptr) -> bool {
    if inode.is_null() {
        return true;
    }
    let tag = Tag { flags: TAG_INHERITED, ..dir };
    // SAFETY: the caller's word.
    let old = unsafe { rung::tag_of(inode) };
    if !old.is_null() {
        // SAFETY: not null, and it lives as long as the inode.
        if !live(unsafe { *old }) {
            // SAFETY: as above.
            unsafe { *old = tag };
        }
        return true;
    }
    // SAFETY: the caller's word.
    if !unsafe { rung::tag(inode, tag) } {
        if let Some(control) = control() {
            // SAFETY: a pointer into the array, never freed.
            unsafe { add(&raw mut (*control).untagged, 1) };
        }
        return false;
    }
    true
}
