//! What the kernel tells of a program and aya does not show: `bpf_prog_info.recursion_misses`, runs it skipped because the
//! program was already up on that CPU, and whether a link is still there.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// `BPF_OBJ_GET_INFO_BY_FD` of include/uapi/linux/bpf.h.
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// `BPF_LINK_GET_FD_BY_ID` of the same.
const LINK_GET_FD_BY_ID: libc::c_int = 30;
/// Offset of `recursion_misses` in `struct bpf_prog_info` (5.12; earlier kernels fill less).
const RECURSION_MISSES: usize = 208;
const INFO: usize = 216;

#[repr(C)]
struct Attr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
    rest: [u64; 16],
}

/// Runs skipped so far; `None` where the kernel does not count them.
pub(super) fn recursion_misses(program: BorrowedFd<'_>) -> Option<u64> {
    let mut info = [0_u8; INFO];
    let mut attr = Attr {
        bpf_fd: u32::try_from(program.as_raw_fd()).ok()?,
        info_len: u32::try_from(INFO).ok()?,
        info: info.as_mut_ptr() as u64,
        rest: [0; 16],
    };
    // SAFETY: `attr` names a buffer of the length it says, and both outlive the call.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, std::ptr::from_mut(&mut attr), size_of::<Attr>())
    };
    if done != 0 || (attr.info_len as usize) < INFO {
        return None;
    }
    let field = info.get(RECURSION_MISSES..INFO)?;
    Some(u64::from_ne_bytes(field.try_into().ok()?))
}

/// Whether there is a link of that number. True where the kernel does not say that there is none.
pub(super) fn is_link(number: u32) -> bool {
    let attr = Attr { bpf_fd: number, info_len: 0, info: 0, rest: [0; 16] };
    // SAFETY: `attr` outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, LINK_GET_FD_BY_ID, std::ptr::from_ref(&attr), size_of::<Attr>())
    };
    if fd < 0 {
        return std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOENT);
    }
    // SAFETY: the kernel has just made it for us, and nobody else has it.
    drop(libc::c_int::try_from(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
    true
}
