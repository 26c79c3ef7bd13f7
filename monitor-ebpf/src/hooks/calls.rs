//! The ends of calls that change mounts: whether the kernel did what a hook told of.
//!
//! These stand on the functions of the system calls themselves, which costs other calls nothing (a tracepoint would put
//! every system call of every process on its slow path). `mount_setattr` has no hook at all, and is told here.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_ringbuf_reserve, bpf_ringbuf_submit};
use aya_ebpf::macros::{btf_map, fexit};
use aya_ebpf::programs::FExitContext;
use monitor_ebpf::limits;
use monitor_ebpf::record::{CallEnd, EVENT_ENDS, HookId, KIND_CALL_END, Op};

use super::emit;
use crate::kernel::{Ptr, arg, constant, field, known, layout, read, read_ptr};

/// What a call lays something over: a place in a mount; nulls where it takes something away.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Place {
    mnt: Ptr,
    dentry: Ptr,
    /// Not 0: what is laid there was mounted elsewhere.
    moved: u64,
}

impl Place {
    pub(super) const NONE: Self = Self { mnt: core::ptr::null(), dentry: core::ptr::null(), moved: 0 };

    /// # Safety
    /// `path` is a typed `struct path *` and not null.
    #[inline(always)]
    pub(super) unsafe fn of(path: Ptr) -> Self {
        // SAFETY: the caller's word.
        unsafe {
            Self { mnt: field(path, layout!(path_mnt)), dentry: field(path, layout!(path_dentry)), moved: 0 }
        }
    }

    /// What is laid there was mounted elsewhere until now.
    #[inline(always)]
    pub(super) fn moved(self, moved: bool) -> Self {
        Self { moved: u64::from(moved), ..self }
    }

    /// The root of what came to lie here last, or null.
    #[inline(always)]
    fn newest(self) -> Ptr {
        let found =
            known(layout!(mount_mnt_mounts)) && known(layout!(mount_mnt_child)) && known(layout!(list_prev));
        if self.mnt.is_null() || !found {
            return core::ptr::null();
        }
        let mount = self.mnt.wrapping_byte_sub(layout!(mount_mnt) as usize);
        let newest = read_ptr(mount, layout!(mount_mnt_mounts) + layout!(list_prev));
        if newest.is_null() || newest == mount.wrapping_byte_add(layout!(mount_mnt_mounts) as usize) {
            return core::ptr::null();
        }
        let child = newest.wrapping_byte_sub(layout!(mount_mnt_child) as usize);
        let at = read_ptr(child, layout!(mount_mnt_mountpoint));
        if at == self.dentry {
            read_ptr(child, layout!(mount_mnt) + layout!(vfsmount_mnt_root))
        } else {
            core::ptr::null()
        }
    }
}

/// Threads inside a call that a hook told of.
#[btf_map]
static CALLS: LruHashMap<u64, Place, { limits::MOUNTERS }> = LruHashMap::new();

/// Not 0: programs stand on the ends of calls. Filled by the loader.
#[unsafe(no_mangle)]
static ENDS: u32 = 0;

/// A hook tells of a call that is under way: the flag of its record.
#[inline(always)]
pub(super) fn begin(place: Place) -> u32 {
    // SAFETY: no preconditions.
    let task = unsafe { bpf_get_current_pid_tgid() };
    let noted = CALLS.insert(task, place, 0).is_ok();
    if noted && constant(&ENDS) != 0 { EVENT_ENDS } else { 0 }
}

/// Whether this thread is inside such a call.
#[inline(always)]
pub(super) fn is_under_way() -> bool {
    // SAFETY: no preconditions; the value is not looked at.
    unsafe { CALLS.get(bpf_get_current_pid_tgid()).is_some() }
}

/// # Safety
/// `ctx` is that of a program on the end of a system call's function, which has one argument.
#[inline(always)]
unsafe fn failed(ctx: &FExitContext) -> bool {
    // SAFETY: what the function returns stands behind its argument.
    (unsafe { arg(ctx.as_ptr(), 1) } as i64) < 0
}

#[inline(always)]
fn end(ctx: &FExitContext) {
    // SAFETY: no preconditions.
    let task = unsafe { bpf_get_current_pid_tgid() };
    // SAFETY: copied at once; only this thread's own calls change it.
    let Some(place) = (unsafe { CALLS.get(task) }).copied() else { return };
    let _ = CALLS.remove(task);
    // SAFETY: the map lives as long as the program.
    let record =
        unsafe { bpf_ringbuf_reserve(emit::ring(), size_of::<CallEnd>() as u64, 0) }.cast::<CallEnd>();
    if record.is_null() {
        // The agent waits for it in vain for a while, and takes the call for done.
        return;
    }
    let root = place.newest();
    let moved = if place.moved == 0 { core::ptr::null() } else { root };
    let inode = read_ptr(moved, layout!(dentry_d_inode));
    // SAFETY: reserved with this size, and submitted once.
    unsafe {
        (*record).kind = KIND_CALL_END;
        (*record).pid = task as u32;
        (*record).failed = u32::from(failed(ctx));
        // A service's sandbox is made of the host's own directories, each mounted over itself, and of its root, which becomes its root
        // again.
        (*record).same = u32::from(!root.is_null() && root == place.dentry);
        (*record).ino = read(inode, layout!(inode_i_ino), 0);
        (*record).dev = read(read_ptr(inode, layout!(inode_i_sb)), layout!(sb_s_dev), 0);
        (*record).reserved = 0;
        bpf_ringbuf_submit(record.cast(), 0);
    }
}

macro_rules! ends {
    ($($function:literal $name:ident)+) => {
        $(
            #[fexit(function = $function)]
            fn $name(ctx: FExitContext) -> i32 {
                end(&ctx);
                0
            }
        )+
    };
}

ends! {
    "__x64_sys_mount" end_of_mount
    "__x64_sys_umount" end_of_umount
    "__x64_sys_move_mount" end_of_move_mount
    "__x64_sys_pivot_root" end_of_pivot_root
}

/// Mount attributes, by path: which mount that is, only the caller's words tell.
#[fexit(function = "__x64_sys_mount_setattr")]
fn mount_setattr(ctx: FExitContext) -> i32 {
    // SAFETY: as `failed`; the argument is a pointer that the verifier knows the type of.
    unsafe {
        if failed(&ctx) {
            return 0;
        }
        let regs = arg(ctx.as_ptr(), 0) as Ptr;
        let path: u64 = field(regs, layout!(regs_si));
        emit::emit_named(HookId::MountSetattr, Op::MountSetattr, path as Ptr);
    }
    0
}
