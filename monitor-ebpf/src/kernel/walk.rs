//! Paths, by walking upwards. Written from the last name to the first, each with its NUL: no name is ever cut, and
//! the agent turns it around. Each answers whether the root was not reached.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use monitor_ebpf::limits;

use super::{Ptr, bounded, known, layout, read_ptr};

const PATH: i32 = limits::PATH_WALK as i32 - 1;
const EXE: i32 = limits::EXE_WALK as i32 - 1;
const CGROUP: i32 = limits::CGROUP_WALK as i32 - 1;

/// How much is written stands in the record and is read back each time: a number from there is any number to the
/// verifier, so that one round of a loop is like the other, whatever way it took, and is not verified again and again.
#[inline(always)]
fn get(len: *const u32) -> u64 {
    // SAFETY: a field of the record that the callers write.
    u64::from(unsafe { core::ptr::read_volatile(len) })
}

#[inline(always)]
fn put(len: *mut u32, value: u64) {
    // SAFETY: a field of the record that the callers write.
    unsafe { core::ptr::write_volatile(len, value as u32) };
}

/// Appends one name at `at`. `None` if it cannot be read.
///
/// # Safety
/// `buffer` has `MASK + room` bytes; `at` is not above `MASK`.
#[inline(always)]
unsafe fn append<const MASK: i32>(buffer: *mut u8, at: u64, room: u32, name: Ptr) -> Option<u64> {
    let place = bounded::<MASK>(buffer, at).cast::<c_void>();
    // SAFETY: the caller's word; the helper checks `name`.
    let took = unsafe { bpf_probe_read_kernel_str(place, room, name) };
    if took <= 0 || took > i64::from(room) { None } else { Some(took as u64) }
}

/// The path of a dentry below the root of its file system. Where it is that root itself, its own name: `/`, or that of a file
/// which has no place (`memfd:x`).
///
/// # Safety
/// `buffer` has `limits::PATH` bytes.
#[inline(always)]
pub(crate) unsafe fn in_file_system(buffer: *mut u8, len: *mut u32, mut dentry: Ptr) -> bool {
    put(len, 0);
    for _ in 0..limits::DEPTH {
        let parent = read_ptr(dentry, layout!(dentry_d_parent));
        if parent.is_null() {
            break;
        }
        let at = get(len);
        if parent == dentry && at != 0 {
            return false;
        }
        let name = read_ptr(dentry, layout!(dentry_name));
        if at >= limits::PATH_WALK as u64 {
            break;
        }
        // SAFETY: `at` was compared just above.
        match unsafe { append::<PATH>(buffer, at, limits::NAME as u32, name) } {
            Some(took) => put(len, at + took),
            None => break,
        }
        if parent == dentry {
            return false;
        }
        dentry = parent;
    }
    true
}

/// The path of an open file as its mount namespace names it: across mount points; of a file that has no place, its name.
///
/// # Safety
/// `buffer` has `limits::EXE` bytes.
#[inline(always)]
pub(crate) unsafe fn across_mounts(buffer: *mut u8, len: *mut u32, mut dentry: Ptr, mut mnt: Ptr) -> bool {
    put(len, 0);
    for _ in 0..limits::DEPTH {
        let parent = read_ptr(dentry, layout!(dentry_d_parent));
        if dentry == read_ptr(mnt, layout!(vfsmount_mnt_root)) || dentry == parent {
            let mount = mnt.wrapping_byte_sub(layout!(mount_mnt) as usize);
            let above = read_ptr(mount, layout!(mount_mnt_parent));
            if above == mount || above.is_null() {
                if get(len) == 0 {
                    let name = read_ptr(dentry, layout!(dentry_name));
                    // SAFETY: at the beginning there is room.
                    if let Some(took) = unsafe { append::<EXE>(buffer, 0, limits::NAME as u32, name) } {
                        put(len, took);
                    }
                }
                return false;
            }
            dentry = read_ptr(mount, layout!(mount_mnt_mountpoint));
            mnt = above.wrapping_byte_add(layout!(mount_mnt) as usize);
            continue;
        }
        let name = read_ptr(dentry, layout!(dentry_name));
        if parent.is_null() {
            break;
        }
        let at = get(len);
        if at >= limits::EXE_WALK as u64 {
            break;
        }
        // SAFETY: `at` was compared just above.
        match unsafe { append::<EXE>(buffer, at, limits::NAME as u32, name) } {
            Some(took) => put(len, at + took),
            None => break,
        }
        dentry = parent;
    }
    true
}

/// The path of a cgroup. The root has the empty name.
///
/// # Safety
/// `buffer` has `limits::CGROUP` bytes.
#[inline(always)]
pub(crate) unsafe fn cgroup(buffer: *mut u8, len: *mut u32, mut kn: Ptr) -> bool {
    put(len, 0);
    if !known(layout!(kn_parent)) || !known(layout!(kn_name)) {
        return true;
    }
    for _ in 0..limits::CGROUP_DEPTH {
        let parent = read_ptr(kn, layout!(kn_parent));
        if parent.is_null() {
            return false;
        }
        let name = read_ptr(kn, layout!(kn_name));
        let at = get(len);
        if at >= limits::CGROUP_WALK as u64 {
            break;
        }
        // SAFETY: `at` was compared just above.
        match unsafe { append::<CGROUP>(buffer, at, limits::CGROUP_NAME as u32, name) } {
            Some(took) => put(len, at + took),
            None => break,
        }
        kn = parent;
    }
    true
}
