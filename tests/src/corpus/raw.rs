//! System calls that no safe interface offers.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Result, ensure};

fn c_path(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// truncate(2): by path, without opening.
pub(super) fn truncate(path: &Path, len: i64) -> Result<()> {
    let path = c_path(path)?;
    // SAFETY: a string that ends with NUL.
    let done = unsafe { libc::truncate(path.as_ptr(), len) };
    ensure!(done == 0, "truncate: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Mounts that nobody else sees.
pub(super) fn private_mounts() -> Result<()> {
    // SAFETY: no pointers; the process has one thread.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    ensure!(done == 0, "unshare: {}", std::io::Error::last_os_error());
    use rustix::mount::MountPropagationFlags as Flags;
    Ok(rustix::mount::mount_change("/", Flags::PRIVATE | Flags::REC)?)
}

/// A child that only opens, writes and exits; it is gone when this returns.
pub(super) fn momentary(path: &Path) -> Result<()> {
    let path = c_path(path)?;
    // SAFETY: the process has one thread; the child makes system calls only.
    let child = unsafe { libc::fork() };
    ensure!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        // SAFETY: a string that ends with NUL.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY) };
        // SAFETY: six bytes of static memory.
        let written = unsafe { libc::write(fd, c"TAMPER".as_ptr().cast(), 6) };
        // SAFETY: ends the process without running anything of the parent's.
        unsafe { libc::_exit(i32::from(written != 6)) };
    }
    let mut status = 0;
    // SAFETY: a valid place for the status.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(ended == child && status == 0, "the child failed: {status:#x}");
    Ok(())
}

fn check(result: libc::c_long, what: &str) -> Result<usize> {
    ensure!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    Ok(usize::try_from(result)?)
}

/// The page of that mapping, at the beginning of the file.
pub(super) fn write_page(file: &File, page: &super::mapping::Mapping) -> Result<()> {
    // SAFETY: a mapping of 4096 bytes that outlives the call.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), page.address(), 4096, 0) };
    ensure!(written == 4096, "pwrite: {}", std::io::Error::last_os_error());
    Ok(())
}

/// `struct iocb` of include/uapi/linux/aio_abi.h.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    reqprio: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `io_submit`: the kernel's own asynchronous writes.
pub(super) fn write_by_aio(file: &File, bytes: &[u8]) -> Result<()> {
    const PWRITE: u16 = 1;
    let mut context: u64 = 0;
    // SAFETY: a place for the context.
    check(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) }, "io_setup")?;
    let mut request = Iocb {
        opcode: PWRITE,
        fd: u32::try_from(file.as_raw_fd())?,
        buf: bytes.as_ptr() as u64,
        nbytes: bytes.len() as u64,
        ..Iocb::default()
    };
    let mut list = [&raw mut request];
    // SAFETY: one request, whose memory outlives it.
    check(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) }, "io_submit")?;
    // data, obj, res, res2
    let mut event = [0_i64; 4];
    let forever = std::ptr::null::<libc::timespec>();
    // SAFETY: room for one event.
    let got = unsafe { libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), forever) };
    ensure!(
        check(got, "io_getevents")? == 1 && event[2] == i64::try_from(bytes.len())?,
        "wrote {}",
        event[2]
    );
    // SAFETY: nothing is under way.
    check(unsafe { libc::syscall(libc::SYS_io_destroy, context) }, "io_destroy").map(drop)
}

/// `struct io_uring_params`, as far as it is read here.
#[repr(C)]
#[derive(Default)]
struct RingParams {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    rest: [u32; 7],
    /// head, tail, mask, entries, flags, dropped, array, and what is reserved
    sq: [u32; 10],
    cq: [u32; 10],
}

fn ring() -> Option<(OwnedFd, RingParams)> {
    let mut params = RingParams::default();
    // SAFETY: a structure of the kernel's size.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: a descriptor just given, and nobody else's.
    Some((unsafe { OwnedFd::from_raw_fd(fd) }, params))
}

/// Whether this kernel lets us.
pub(super) fn has_io_uring() -> bool {
    ring().is_some()
}

/// A write of a ring, done by whichever thread the kernel takes.
pub(super) fn write_by_io_uring(file: &File, bytes: &[u8]) -> Result<()> {
    use super::mapping::Mapping;
    const WRITE: u8 = 23;
    const GETEVENTS: u32 = 1;
    let (ring, params) = ring().ok_or_else(|| anyhow::anyhow!("io_uring_setup"))?;
    let submissions = Mapping::of_fd(ring.as_raw_fd(), 4096, 0)?;
    let entries = Mapping::of_fd(ring.as_raw_fd(), 4096, 0x1000_0000)?;
    let completions = Mapping::of_fd(ring.as_raw_fd(), 4096, 0x800_0000)?;
    // opcode, flags, ioprio, fd, off, addr, len: the head of `struct io_uring_sqe`.
    entries.store(0, WRITE);
    entries.store_u32(4, u32::try_from(file.as_raw_fd())?);
    entries.store_u64(16, bytes.as_ptr() as u64);
    entries.store_u32(24, u32::try_from(bytes.len())?);
    submissions.store_u32(params.sq[6] as usize, 0);
    submissions.store_u32(params.sq[1] as usize, 1);
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: one request, whose memory outlives it.
    let done = unsafe { libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 1, 1, GETEVENTS, none, 0) };
    check(done, "io_uring_enter")?;
    // user_data, res, flags: the one entry of the completion ring.
    let wrote = completions.load_u32(params.cq[5] as usize + 8);
    ensure!(wrote == u32::try_from(bytes.len())?, "wrote {}", wrote.cast_signed());
    Ok(())
}

/// By file handle: no name is looked up.
pub(super) fn open_by_handle(path: &Path) -> Result<File> {
    let path = c_path(path)?;
    // handle_bytes, handle_type, handle
    let mut handle = [0_u32; 34];
    handle[0] = 128;
    let mut mount = 0;
    // SAFETY: a handle with room for 128 bytes, and a place for the mount id.
    let named = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            handle.as_mut_ptr(),
            &raw mut mount,
            0,
        )
    };
    check(named, "name_to_handle_at")?;
    // SAFETY: a string that ends with NUL; any descriptor on the file system will do.
    let near = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    check(near.into(), "open")?;
    // SAFETY: just given, and nobody else's.
    let near = unsafe { OwnedFd::from_raw_fd(near) };
    // SAFETY: the handle as it was given.
    let fd = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, near.as_raw_fd(), handle.as_mut_ptr(), libc::O_WRONLY)
    };
    let fd = i32::try_from(check(fd, "open_by_handle_at")?)?;
    // SAFETY: just given, and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// `FS_IOC_SETFLAGS` with `FS_NODUMP_FL` more, as chattr does it.
pub(super) fn set_nodump(file: &File) -> Result<()> {
    const NODUMP: libc::c_long = 0x40;
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes an int, for which there is room.
    let got = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) };
    check(got.into(), "GETFLAGS")?;
    flags |= NODUMP;
    // SAFETY: the kernel reads an int.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) };
    check(set.into(), "SETFLAGS").map(drop)
}
