//! Families `open`, `write` and `mmap`: what reaches a file's bytes through a descriptor.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use monitor_ebpf::record::{HookId, Op, SLOT_COUNT_READS, Tag};

use super::emit::{Act, emit};
use super::{AGENT, Context, execute, number, pointer, tags};
use crate::kernel::{Ptr, add, constant, field, inode_of, layout};
use crate::rung::{self, TYPED_INODES, hook};

// include/linux/fs.h, include/uapi/asm-generic/mman-common.h, include/linux/mm.h: fixed by the ABI, or the same on
// every kernel since 2.6.
const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
const MAY_WRITE: u64 = 2;
const PROT_WRITE: u64 = 2;
const MAP_TYPE: u64 = 0xf;
const MAP_SHARED: u64 = 1;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_ANONYMOUS: u64 = 0x20;
const VM_WRITE: u64 = 2;
const VM_SHARED: u64 = 8;

hook!("file_open", file_open);

#[inline(always)]
fn file_open(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let file = pointer(ctx, layout!(arg_open_file));
        if rung::may_be_tagged(field(file, layout!(file_f_inode))) || looks_at_parents() {
            opened(file);
        }
    }
}

/// What is not for most files. A function of its own, so that the way that all files go saves no registers for it, which costs each
/// opening eighteen instructions on x86-64.
///
/// # Safety
/// `file` is a typed pointer and not null.
#[inline(never)]
unsafe fn opened(file: Ptr) {
    // SAFETY: the caller's word.
    unsafe {
        execute::note_opened(file);
        let mode: u32 = field(file, layout!(file_f_mode));
        let inode: Ptr = field(file, layout!(file_f_inode));
        if mode & FMODE_WRITE == 0 {
            if tags::control().is_some_and(|control| (*control).count_reads != 0) {
                count_read(inode);
            }
            return;
        }
        let Some(tag) = tag_or_parents(file, inode) else { return };
        if !tags::watches_content(tag) {
            return;
        }
        if mode & FMODE_READ != 0 && tags::control().is_some_and(|control| (*control).count_reads != 0) {
            count_read(inode);
        }
        let dentry = field(file, layout!(file_dentry));
        emit(&Act::on_inode(HookId::FileOpen, Op::Open, tag.slot, inode, dentry));
    }
}

/// Whether a file without a tag may have to get that of its directory.
#[inline(always)]
fn looks_at_parents() -> bool {
    // On newer kernels `f_path` lies in a union, and what is walked through it is of no type that can be trusted; there
    // only the agent's own walk finds such names.
    !(TYPED_INODES && layout!(file_path_in_union) != 0) && tags::is_catching_up()
}

/// The inode's tag, or its directory's, which it then gets: a name that was in the dentry cache when the directory
/// was tagged, or below a directory that was moved in, had no `d_instantiate`. The agent tags those too, soon after;
/// only until then the directory is looked at.
///
/// # Safety
/// Both are typed pointers, `file` is not null, and `inode` is its.
#[inline(always)]
unsafe fn tag_or_parents(file: Ptr, inode: Ptr) -> Option<Tag> {
    // SAFETY: the caller's word, here and below.
    if let Some(tag) = unsafe { tags::tag_of(inode) } {
        return Some(tag);
    }
    if !looks_at_parents() {
        return None;
    }
    // SAFETY: as above, and walked from there.
    let parent: Ptr = unsafe { field(field(file, layout!(file_dentry)), layout!(dentry_d_parent)) };
    if parent.is_null() {
        return None;
    }
    // SAFETY: walked from a typed pointer, and not null.
    let tag = unsafe { tags::tag_of(inode_of(parent)) }?;
    if !tags::hands_down(tag) {
        return None;
    }
    // SAFETY: as above.
    unsafe { tags::hand_down(tag, inode) };
    Some(tag)
}

/// # Safety
/// `inode` is a typed pointer.
#[inline(always)]
unsafe fn count_read(inode: Ptr) {
    // SAFETY: no preconditions.
    let tgid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    if tgid == constant(&AGENT) {
        return;
    }
    // SAFETY: the caller's word.
    let Some(tag) = (unsafe { tags::tag_of(inode) }) else { return };
    let Some(slot) = tags::slot(tag.slot) else { return };
    // SAFETY: a pointer into the array, never freed.
    unsafe {
        if (*slot).flags & SLOT_COUNT_READS != 0 {
            add(&raw mut (*slot).reads, 1);
        }
    }
}

hook!("file_permission", file_permission);

#[inline(always)]
fn file_permission(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        if number(ctx, layout!(arg_permission_mask)) & MAY_WRITE == 0 {
            return;
        }
        on_file(HookId::FilePermission, Op::Write, pointer(ctx, layout!(arg_permission_file)));
    }
}

hook!("mmap_file", mmap_file);

#[inline(always)]
fn mmap_file(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        // `file` is null for anonymous mappings, and between 6.2 and 7.x the verifier takes it for never null and
        // removes a test for it: only the flags tell.
        let flags = number(ctx, layout!(arg_mmap_flags));
        let shared = flags & MAP_TYPE;
        if (shared != MAP_SHARED && shared != MAP_SHARED_VALIDATE) || flags & MAP_ANONYMOUS != 0 {
            return;
        }
        if number(ctx, layout!(arg_mmap_prot)) & PROT_WRITE == 0 {
            return;
        }
        let file = pointer(ctx, layout!(arg_mmap_file));
        if file.is_null() {
            return;
        }
        on_file(HookId::MmapFile, Op::Mmap, file);
    }
}

hook!("file_mprotect", file_mprotect);

#[inline(always)]
fn file_mprotect(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        if number(ctx, layout!(arg_mprotect_prot)) & PROT_WRITE == 0 {
            return;
        }
        let vma = pointer(ctx, layout!(arg_mprotect_vma));
        let flags: u64 = field(vma, layout!(vma_vm_flags));
        if flags & VM_SHARED == 0 || flags & VM_WRITE != 0 {
            return;
        }
        let file: Ptr = field(vma, layout!(vma_vm_file));
        if file.is_null() {
            return;
        }
        on_file(HookId::FileMprotect, Op::Mmap, file);
    }
}

/// # Safety
/// `file` is a typed pointer and not null.
#[inline(always)]
unsafe fn on_file(hook: HookId, op: Op, file: Ptr) {
    // SAFETY: the caller's word.
    unsafe {
        if rung::may_be_tagged(field(file, layout!(file_f_inode))) {
            reached(hook, op, file);
        }
    }
}

/// As [`opened`].
///
/// # Safety
/// `file` is a typed pointer and not null.
#[inline(never)]
unsafe fn reached(hook: HookId, op: Op, file: Ptr) {
    // SAFETY: the caller's word.
    unsafe {
        let inode: Ptr = field(file, layout!(file_f_inode));
        let Some(tag) = tags::tag_of(inode) else { return };
        if tags::watches_content(tag) {
            emit(&Act::on_inode(hook, op, tag.slot, inode, field(file, layout!(file_dentry))));
        }
    }
}
