//! Family `memory`: who reaches into a process that runs a sealed program.

use monitor_ebpf::record::{HookId, Op};

use super::emit::{Act, emit};
use super::{Context, number, pointer, tags};
use crate::kernel::{Ptr, field, layout};
use crate::rung::hook;

/// include/linux/ptrace.h. What only looks (`ps`, and whatever reads /proc) asks for less.
const PTRACE_MODE_ATTACH: u64 = 2;

hook!("ptrace_access_check", ptrace_access_check);

/// Attaching, opening /proc/PID/mem, and reading or writing the memory of another process all ask here, and in the same
/// words: which of them it is cannot be told. A process's own memory is not asked for.
#[inline(always)]
fn ptrace_access_check(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        if number(ctx, layout!(arg_ptrace_mode)) & PTRACE_MODE_ATTACH == 0 {
            return;
        }
        let Some(exe) = exe_of(pointer(ctx, layout!(arg_ptrace_child))) else { return };
        let inode: Ptr = field(exe, layout!(file_f_inode));
        let Some(tag) = tags::tag_of(inode) else { return };
        if tags::watches_content(tag) {
            let dentry = field(exe, layout!(file_dentry));
            emit(&Act::on_inode(HookId::PtraceAccessCheck, Op::Ptrace, tag.slot, inode, dentry));
        }
    }
}

/// The open file of what a task runs; none for a thread of the kernel, and for a process that ends.
///
/// # Safety
/// `task` is a typed pointer and not null.
#[inline(always)]
pub(super) unsafe fn exe_of(task: Ptr) -> Option<Ptr> {
    // SAFETY: the caller's word, and walked from there with a test for null at each step that may be null.
    unsafe {
        let mm: Ptr = field(task, layout!(task_mm));
        if mm.is_null() {
            return None;
        }
        let exe: Ptr = field(mm, layout!(mm_exe_file));
        if exe.is_null() { None } else { Some(exe) }
    }
}
