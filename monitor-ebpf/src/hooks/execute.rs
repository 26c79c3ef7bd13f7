//! Family `execute`: what a process that runs a sealed program loads as code, or executes next.
//!
//! The current task's executable is what has to be known here, and no argument leads to it. Since 5.11 a helper gives the task
//! by a pointer that the verifier trusts, from which the executable's inode is walked to. Before, the inode is known by its
//! address alone: when an executable is executed, or opened by the agent, it is noted by its address, if it is tagged.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf,
};
use aya_ebpf::macros::btf_map;
use monitor_ebpf::limits;
use monitor_ebpf::record::{EVENT_UNLINKED, HookId, Op, Program, TAG_INHERITED, TAG_OBJECT, Tag};

use super::emit::{Act, emit};
use super::processes::exe_of;
use super::{AGENT, Context, number, pointer, tags};
use crate::kernel::{Ptr, constant, field, layout, read, read_ptr};
use crate::rung::hook;

// include/uapi/asm-generic/mman-common.h, include/linux/mm.h: as in `open`.
const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;
const VM_EXEC: u64 = 4;

/// Not 0: the kernel has `bpf_get_current_task_btf`.
#[unsafe(no_mangle)]
static TYPED_CURRENT: u32 = 0;

/// Tagged executables by the address of their inode.
#[btf_map]
static PROGRAMS: LruHashMap<u64, Program, { limits::PROGRAMS }> = LruHashMap::new();

/// Notes a tagged file that the agent opens, where files have to be noted: it may be the executable of a process that runs
/// already.
///
/// # Safety
/// `file` is a typed pointer and not null.
#[inline(always)]
pub(super) unsafe fn note_opened(file: Ptr) {
    // SAFETY: the helper has no preconditions; the caller's word.
    unsafe {
        if constant(&TYPED_CURRENT) == 0 && (bpf_get_current_pid_tgid() >> 32) as u32 == constant(&AGENT) {
            note(field(file, layout!(file_f_inode)));
        }
    }
}

/// # Safety
/// `inode` is a typed pointer, or null.
#[inline(always)]
unsafe fn note(inode: Ptr) {
    // SAFETY: the caller's word, and walked from there.
    unsafe {
        let Some(tag) = tags::tag_of(inode) else { return };
        let sb: Ptr = field(inode, layout!(inode_i_sb));
        let (ino, dev) = (field(inode, layout!(inode_i_ino)), field(sb, layout!(sb_s_dev)));
        let program = Program { tag, ino, dev, reserved: 0 };
        // Of the least recently used one room is made.
        let _ = PROGRAMS.insert(inode as u64, program, u64::from(BPF_ANY));
    }
}

/// The live tag of the executable that the current process runs.
#[inline(always)]
fn tag_of_running() -> Option<Tag> {
    if constant(&TYPED_CURRENT) != 0 {
        // SAFETY: a typed pointer, which is never null, and walked from there.
        return unsafe {
            tags::tag_of(field(exe_of(bpf_get_current_task_btf() as Ptr)?, layout!(file_f_inode)))
        };
    }
    // SAFETY: no preconditions.
    let task = unsafe { bpf_get_current_task() } as Ptr;
    let exe = read_ptr(read_ptr(task, layout!(task_mm)), layout!(mm_exe_file));
    let inode = read_ptr(exe, layout!(file_f_inode));
    // SAFETY: an entry of the map, which is copied; another processor may write to it meanwhile, which the numbers tell.
    let program = unsafe { *PROGRAMS.get_ptr(inode as u64)? };
    let sb = read_ptr(inode, layout!(inode_i_sb));
    let same = read(inode, layout!(inode_i_ino), 0_u64) == program.ino
        && read(sb, layout!(sb_s_dev), 0_u32) == program.dev;
    (same && tags::live(program.tag)).then_some(program.tag)
}

hook!("mmap_file", mmap_code);

#[inline(always)]
fn mmap_code(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        // As for shared mappings: only the flags tell that there is no file.
        if number(ctx, layout!(arg_mmap_flags)) & MAP_ANONYMOUS != 0
            || number(ctx, layout!(arg_mmap_prot)) & PROT_EXEC == 0
        {
            return;
        }
        let file = pointer(ctx, layout!(arg_mmap_file));
        if !file.is_null() {
            on_code(HookId::MmapCode, file);
        }
    }
}

hook!("file_mprotect", mprotect_code);

#[inline(always)]
fn mprotect_code(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        if number(ctx, layout!(arg_mprotect_prot)) & PROT_EXEC == 0 {
            return;
        }
        let vma = pointer(ctx, layout!(arg_mprotect_vma));
        let flags: u64 = field(vma, layout!(vma_vm_flags));
        if flags & VM_EXEC != 0 {
            return;
        }
        let file: Ptr = field(vma, layout!(vma_vm_file));
        if !file.is_null() {
            on_code(HookId::MprotectCode, file);
        }
    }
}

hook!("bprm_check_security", bprm_check_security);

/// Runs once for each level of interpreters, before the process has the new executable.
#[inline(always)]
fn bprm_check_security(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let file: Ptr = field(pointer(ctx, layout!(arg_bprm_check_bprm)), layout!(bprm_file));
        if file.is_null() {
            return;
        }
        if constant(&TYPED_CURRENT) == 0 {
            note(field(file, layout!(file_f_inode)));
        }
        on_code(HookId::BprmCheckSecurity, file);
    }
}

/// Tells of `file` becoming code of the current process, if that runs a tagged program and the file is not sealed itself.
///
/// # Safety
/// `file` is a typed pointer and not null.
#[inline(always)]
unsafe fn on_code(hook: HookId, file: Ptr) {
    let Some(program) = tag_of_running() else { return };
    if !tags::watches_content(program) {
        return;
    }
    // SAFETY: the caller's word, and walked from there.
    unsafe {
        let inode: Ptr = field(file, layout!(file_f_inode));
        let sealed = |tag: Tag| tag.kind == TAG_OBJECT && tag.flags & TAG_INHERITED == 0;
        if inode.is_null() || tags::tag_of(inode).is_some_and(sealed) {
            return;
        }
        let mut act =
            Act::on_inode(hook, Op::Execute, program.slot, inode, field(file, layout!(file_dentry)));
        let links: u32 = field(inode, layout!(inode_i_nlink));
        act.flags = if links == 0 { EVENT_UNLINKED } else { 0 };
        emit(&act);
    }
}
