//! Who acts: the current task, taken at the moment, so that a process that lives 2 ms still has a name.

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
    bpf_probe_read_user,
};
use monitor_ebpf::limits;
use monitor_ebpf::record::{
    ACTOR_ARGV_TRUNCATED, ACTOR_ARGV_UNREADABLE, ACTOR_CGROUP_TRUNCATED, ACTOR_EXE_TRUNCATED,
    ACTOR_IO_WORKER, ACTOR_KTHREAD, Actor,
};

use super::{Ptr, known, layout, masked, read, read_ptr, walk};

/// All of the room but a byte, so that a mask of bits bounds it.
const ARGV: i32 = limits::ARGV as i32 - 1;
/// include/linux/sched.h.
const PF_IO_WORKER: u32 = 0x10;

/// Fills `actor` from the current task.
///
/// # Safety
/// `actor` is valid for writes. Each field is written; of the byte arrays, as much as their lengths say.
#[inline(always)]
pub(crate) unsafe fn capture(actor: *mut Actor) {
    // SAFETY: these helpers have no preconditions.
    let (task, both, cgroup_id) =
        unsafe { (bpf_get_current_task() as Ptr, bpf_get_current_pid_tgid(), bpf_get_current_cgroup_id()) };
    let mut flags = 0_u32;
    let parent = read_ptr(task, layout!(task_real_parent));
    let cred = read_ptr(task, layout!(task_real_cred));
    let nsproxy = read_ptr(task, layout!(task_nsproxy));
    // Each thread has a start of its own, and a process is told by that of its first. Without that, nothing is better than a wrong one.
    let leader = if known(layout!(task_group_leader)) {
        read_ptr(task, layout!(task_group_leader))
    } else {
        core::ptr::null()
    };
    let mnt_ns = read_ptr(nsproxy, layout!(nsproxy_mnt_ns));
    // SAFETY: the caller's word, for this and each block below.
    unsafe {
        (*actor).pid = both as u32;
        (*actor).tgid = (both >> 32) as u32;
        (*actor).ppid = read(parent, layout!(task_tgid), 0);
        (*actor).uid = read(cred, layout!(cred_uid), u32::MAX);
        (*actor).start_boottime = read(leader, layout!(task_start_boottime), 0);
        (*actor).cgroup_id = cgroup_id;
        (*actor).mount_ns = if mnt_ns.is_null() { 0 } else { read(mnt_ns, layout!(mnt_ns_inum), 0) };
        bpf_get_current_comm((&raw mut (*actor).comm).cast(), limits::COMM as u32);
        (*actor).exe_ino = 0;
        (*actor).exe_dev = 0;
        (*actor).exe_len = 0;
        (*actor).argv_len = 0;
        (*actor).cgroup_len = 0;
    }

    // The kernel calls it by a name of its own (`iou-wrk-4711`), which says nothing of who it works for.
    let told = known(layout!(task_flags)) && known(layout!(task_comm)) && !leader.is_null();
    if told && read::<u32>(task, layout!(task_flags), 0) & PF_IO_WORKER != 0 {
        // SAFETY: the caller's word.
        unsafe { (*actor).comm = read(leader, layout!(task_comm), (*actor).comm) };
        flags |= ACTOR_IO_WORKER;
    }

    let mm = read_ptr(task, layout!(task_mm));
    if mm.is_null() {
        flags |= ACTOR_KTHREAD;
    } else {
        // SAFETY: as above.
        flags |= unsafe { capture_exe(actor, mm) };
        // SAFETY: as above.
        flags |= unsafe { capture_argv(actor, mm) };
    }

    let mut truncated = true;
    if known(layout!(css_set_dfl_cgrp)) && known(layout!(cgroup_kn)) {
        let set = read_ptr(task, layout!(task_cgroups));
        let group = read_ptr(set, layout!(css_set_dfl_cgrp));
        if !group.is_null() {
            // SAFETY: the array is as long as the walk expects.
            truncated = unsafe {
                walk::cgroup(
                    (&raw mut (*actor).cgroup).cast(),
                    &raw mut (*actor).cgroup_len,
                    read_ptr(group, layout!(cgroup_kn)),
                )
            };
        }
    }
    if truncated {
        flags |= ACTOR_CGROUP_TRUNCATED;
    }
    // SAFETY: as above.
    unsafe {
        (*actor).flags = flags;
    }
}

#[inline(always)]
unsafe fn capture_exe(actor: *mut Actor, mm: Ptr) -> u32 {
    let file = read_ptr(mm, layout!(mm_exe_file));
    if file.is_null() {
        return 0;
    }
    let inode = read_ptr(file, layout!(file_f_inode));
    let sb = read_ptr(inode, layout!(inode_i_sb));
    let (dentry, mnt) = (read_ptr(file, layout!(file_dentry)), read_ptr(file, layout!(file_mnt)));
    // SAFETY: `actor` is valid, by the word of `capture`'s caller; the array is as long as the walk expects.
    unsafe {
        (*actor).exe_ino = read(inode, layout!(inode_i_ino), 0);
        (*actor).exe_dev = read(sb, layout!(sb_s_dev), 0);
        if walk::across_mounts((&raw mut (*actor).exe).cast(), &raw mut (*actor).exe_len, dentry, mnt) {
            ACTOR_EXE_TRUNCATED
        } else {
            0
        }
    }
}

#[inline(always)]
unsafe fn capture_argv(actor: *mut Actor, mm: Ptr) -> u32 {
    let start: u64 = read(mm, layout!(mm_arg_start), 0);
    let end: u64 = read(mm, layout!(mm_arg_end), 0);
    if end <= start {
        return 0;
    }
    let (mut len, mut flags) = (end - start, 0);
    if len > ARGV as u64 {
        len = ARGV as u64;
        flags = ACTOR_ARGV_TRUNCATED;
    }
    let len = masked::<ARGV>(len);
    // SAFETY: the array has that room; the helper checks the address and does not sleep.
    let failed =
        unsafe { bpf_probe_read_user((&raw mut (*actor).argv).cast(), len as u32, start as Ptr) } != 0;
    if failed {
        return ACTOR_ARGV_UNREADABLE;
    }
    // SAFETY: `actor` is valid, by the word of `capture`'s caller.
    unsafe { (*actor).argv_len = len as u32 };
    flags
}
