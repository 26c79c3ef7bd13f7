//! The tracepoint object, for kernels that refuse LSM programs but take these: it remembers who each process is, from
//! its fork or exec on, so that one that lived 2 ms still has a name when another sensor reports what it did.
//!
//! Nothing is removed at exit, on purpose: the least recently used give way, and a reused number is written over.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "shared with the LSM object, which needs more of it")]
mod kernel;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::btf_maps::LruHashMap;
    use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_get_current_task};
    use aya_ebpf::macros::{btf_map, raw_tracepoint};
    use aya_ebpf::programs::RawTracePointContext;
    use monitor_ebpf::limits;
    use monitor_ebpf::record::{ACTOR_INCOMPLETE, Actor};

    use crate::kernel::{Ptr, actor, constant, layout, read, read_ptr};

    /// By tgid.
    #[btf_map]
    static ACTORS: LruHashMap<u32, Actor, { limits::EXECS }> = LruHashMap::new();

    /// What an entry is made from before it is filled: too large for the stack.
    static EMPTY: Actor = Actor {
        start_boottime: 0,
        cgroup_id: 0,
        exe_ino: 0,
        exe_dev: 0,
        pid: 0,
        tgid: 0,
        ppid: 0,
        uid: 0,
        mount_ns: 0,
        flags: ACTOR_INCOMPLETE,
        exe_len: 0,
        argv_len: 0,
        cgroup_len: 0,
        comm: [0; limits::COMM],
        exe: [0; limits::EXE],
        argv: [0; limits::ARGV],
        cgroup: [0; limits::CGROUP],
    };

    /// Number of the agent's PID namespace, where that is not the first one: processes go by the numbers they have there,
    /// because that is how the agent, procfs and fanotify call them. 0: by the kernel's own. Filled by the loader.
    #[unsafe(no_mangle)]
    static PID_NS: u32 = 0;

    /// The number of a process (its group leader) in the agent's PID namespace; 0 if it is not in it.
    #[inline(always)]
    fn number(leader: Ptr, own: u32) -> u32 {
        let wanted = constant(&PID_NS);
        if wanted == 0 {
            return own;
        }
        let pid = read_ptr(leader, layout!(task_thread_pid));
        let level = read(pid, layout!(pid_level), 0_u32);
        for at in 0..limits::PID_LEVELS {
            if at > level {
                break;
            }
            // `struct upid` is a number and a pointer.
            let upid = pid.cast::<u8>().wrapping_add((layout!(pid_numbers) + at * 16) as usize).cast();
            let ns = read_ptr(upid, layout!(upid_ns));
            if read(ns, layout!(pid_ns_inum), 0_u32) == wanted {
                return read(upid, layout!(upid_nr), 0_u32);
            }
        }
        0
    }

    /// As [`number`], for whatever thread of the process.
    #[inline(always)]
    fn number_of_thread(thread: Ptr, own: u32) -> u32 {
        if constant(&PID_NS) == 0 { own } else { number(read_ptr(thread, layout!(task_group_leader)), own) }
    }

    /// Enters the current process under `key`.
    #[inline(always)]
    fn enter(key: u32) -> Option<*mut Actor> {
        ACTORS.insert(key, &EMPTY, 0).ok()?;
        let entry = ACTORS.get_ptr_mut(key)?;
        // SAFETY: a value of the map; flags, which say that it is complete, are written last.
        unsafe { actor::capture(entry) };
        Some(entry)
    }

    /// The process has its new identity: `mm`, `comm` and credentials are those of the program executed.
    #[raw_tracepoint(tracepoint = "sched_process_exec")]
    fn process_exec(_ctx: RawTracePointContext) -> i32 {
        // SAFETY: no preconditions.
        let (task, own) =
            unsafe { (bpf_get_current_task() as Ptr, (bpf_get_current_pid_tgid() >> 32) as u32) };
        // Whoever executes leads its process from then on.
        let key = number(task, own);
        if key == 0 {
            return 0;
        }
        let Some(entry) = enter(key) else { return 0 };
        if constant(&PID_NS) != 0 {
            let parent = number_of_thread(read_ptr(task, layout!(task_real_parent)), 0);
            // SAFETY: a value of the map.
            unsafe {
                (*entry).pid = key;
                (*entry).tgid = key;
                (*entry).ppid = parent;
            }
        }
        0
    }

    /// The child is what its parent is, but for numbers and start. Arguments: parent, child.
    #[raw_tracepoint(tracepoint = "sched_process_fork")]
    fn process_fork(ctx: RawTracePointContext) -> i32 {
        let child = ctx.arg::<u64>(1) as Ptr;
        let (tgid, pid) = (read(child, layout!(task_tgid), 0_u32), read(child, layout!(task_pid), 0_u32));
        // SAFETY: no preconditions.
        let (task, parent) =
            unsafe { (bpf_get_current_task() as Ptr, (bpf_get_current_pid_tgid() >> 32) as u32) };
        if tgid == 0 || tgid == parent {
            // A thread: its process is known, or will be at its next exec.
            return 0;
        }
        let key = number(child, tgid);
        if key == 0 {
            return 0;
        }
        let Some(entry) = enter(key) else { return 0 };
        let start = read(child, layout!(task_start_boottime), 0_u64);
        let parent = number_of_thread(task, parent);
        // SAFETY: a value of the map.
        unsafe {
            (*entry).pid = if constant(&PID_NS) == 0 { pid } else { key };
            (*entry).tgid = key;
            (*entry).ppid = parent;
            (*entry).start_boottime = start;
        }
        0
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
