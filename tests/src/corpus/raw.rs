//! System calls that no safe interface offers.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Result, ensure};

pub(super) fn c_path(path: &Path) -> Result<CString> {
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

/// One entry of a submission ring, as far as it is used here: `struct io_uring_sqe`.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) opcode: u8,
    pub(super) fd: i32,
    /// Also a second address.
    pub(super) offset: u64,
    pub(super) addr: u64,
    /// Also a second descriptor, or a mode.
    pub(super) len: u32,
    /// Of the operation.
    pub(super) flags: u32,
}

/// Has a ring do it, by whichever thread the kernel takes: the result, which is a negative number of an error if it failed. What the request
/// points to must be there until then.
pub(super) fn submit(request: &Request) -> Result<i32> {
    use super::mapping::Mapping;
    const GETEVENTS: u32 = 1;
    let (ring, params) = ring().ok_or_else(|| anyhow::anyhow!("io_uring_setup"))?;
    let submissions = Mapping::of_fd(ring.as_raw_fd(), 4096, 0)?;
    let entries = Mapping::of_fd(ring.as_raw_fd(), 4096, 0x1000_0000)?;
    let completions = Mapping::of_fd(ring.as_raw_fd(), 4096, 0x800_0000)?;
    // opcode, flags, ioprio, fd, off, addr, len, flags of the operation.
    entries.store(0, request.opcode);
    entries.store_u32(4, request.fd.cast_unsigned());
    entries.store_u64(8, request.offset);
    entries.store_u64(16, request.addr);
    entries.store_u32(24, request.len);
    entries.store_u32(28, request.flags);
    submissions.store_u32(params.sq[6] as usize, 0);
    submissions.store_u32(params.sq[1] as usize, 1);
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: one request, whose memory outlives it.
    let done = unsafe { libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 1, 1, GETEVENTS, none, 0) };
    check(done, "io_uring_enter")?;
    // user_data, res, flags: the one entry of the completion ring.
    Ok(completions.load_u32(params.cq[5] as usize + 8).cast_signed())
}

/// Closes a descriptor that a ring opened.
pub(super) fn close(fd: i32) {
    // SAFETY: the kernel has just given it, to nobody else.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// A write of a ring.
pub(super) fn write_by_io_uring(file: &File, bytes: &[u8]) -> Result<()> {
    const WRITE: u8 = 23;
    let (addr, len) = (bytes.as_ptr() as u64, u32::try_from(bytes.len())?);
    let wrote = submit(&Request { opcode: WRITE, fd: file.as_raw_fd(), addr, len, ..Request::default() })?;
    ensure!(wrote == len.cast_signed(), "wrote {wrote}");
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

/// What only asks: where it is not known the kernel refuses it.
pub(super) fn ask_by_ioctl(file: &File) -> Result<()> {
    // include/uapi/linux/fscrypt.h: FS_IOC_GET_ENCRYPTION_POLICY; fsmap.h: FS_IOC_GETFSMAP; ext4.h: EXT4_IOC_GETVERSION, GETRSVSZ, GETSTATE;
    // fs.h: BLKGETSIZE, BLKSSZGET, BLKGETSIZE64.
    const ASKING: [u32; 8] =
        [0x400c_6615, 0xc0c0_583b, 0x8008_6603, 0x8008_6605, 0x4004_6629, 0x1260, 0x1268, 0x8008_1272];
    // Room for the largest answer, of 192 bytes.
    let mut answer = [0_u64; 24];
    for ask in ASKING {
        answer.fill(0);
        // SAFETY: none of them writes more than there is room for.
        unsafe { libc::ioctl(file.as_raw_fd(), ask.into(), answer.as_mut_ptr()) };
    }
    // include/uapi/linux/fs.h: FIGETBSZ, which every file system answers.
    let mut size: libc::c_int = 0;
    // SAFETY: the kernel writes an int.
    let got = unsafe { libc::ioctl(file.as_raw_fd(), 2, &raw mut size) };
    check(got.into(), "FIGETBSZ").map(drop)
}

/// `setxattrat(2)`, of Linux 6.13, and `file_setattr(2)`, of 6.17.
pub(super) const SYS_SETXATTRAT: libc::c_long = 463;
pub(super) const SYS_FILE_SETATTR: libc::c_long = 469;

/// Whether this kernel has that system call.
pub(super) fn has(number: libc::c_long) -> bool {
    // SAFETY: descriptors and pointers that lead nowhere: it fails before it does anything.
    let result = unsafe { libc::syscall(number, -1, 0, 0, 0, 0, 0) };
    result >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

pub(super) fn fchmodat2(path: &Path, mode: u32) -> Result<()> {
    let path = c_path(path)?;
    // SAFETY: a string that ends with NUL.
    let done = unsafe { libc::syscall(libc::SYS_fchmodat2, libc::AT_FDCWD, path.as_ptr(), mode, 0) };
    check(done, "fchmodat2").map(drop)
}

pub(super) fn setxattrat(path: &Path, name: &std::ffi::CStr, value: &[u8]) -> Result<()> {
    let path = c_path(path)?;
    // struct xattr_args: value, size, flags.
    let arguments = [value.as_ptr() as u64, value.len() as u64];
    // SAFETY: strings that end with NUL, and a structure of the size that is told.
    let done = unsafe {
        libc::syscall(
            SYS_SETXATTRAT,
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            name.as_ptr(),
            arguments.as_ptr(),
            16_usize,
        )
    };
    check(done, "setxattrat").map(drop)
}

/// `FS_XFLAG_NODUMP`, by the system call for it.
pub(super) fn file_setattr_nodump(path: &Path) -> Result<()> {
    const NODUMP: u64 = 0x80;
    let path = c_path(path)?;
    // struct file_attr: fa_xflags, fa_extsize, fa_nextents, fa_projid, fa_cowextsize.
    let attributes = [NODUMP, 0, 0];
    // SAFETY: a string that ends with NUL, and a structure of the size that is told.
    let done = unsafe {
        libc::syscall(SYS_FILE_SETATTR, libc::AT_FDCWD, path.as_ptr(), attributes.as_ptr(), 24_usize, 0)
    };
    check(done, "file_setattr").map(drop)
}

/// `EXT4_IOC_MOVE_EXT`: blocks of both files are exchanged, and the second has the first one's bytes.
pub(super) fn move_extents(original: &File, donor: &File, blocks: u64) -> Result<()> {
    const MOVE_EXT: libc::c_ulong = 0xc028_660f;
    // struct move_extent: reserved, donor_fd, orig_start, donor_start, len, moved_len.
    let mut request = [u64::from(donor.as_raw_fd().cast_unsigned()) << 32, 0, 0, blocks, 0];
    // SAFETY: a structure of the size that the number tells.
    let done = unsafe { libc::ioctl(original.as_raw_fd(), MOVE_EXT, request.as_mut_ptr()) };
    check(done.into(), "EXT4_IOC_MOVE_EXT")?;
    ensure!(request[4] == blocks, "moved {}", request[4]);
    Ok(())
}

/// `FS_IOC_SETVERSION`.
pub(super) fn set_generation(file: &File, generation: libc::c_int) -> Result<()> {
    const SETVERSION: libc::c_ulong = 0x4008_7602;
    // SAFETY: a number where it is read.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), SETVERSION, &raw const generation) };
    check(done.into(), "FS_IOC_SETVERSION").map(drop)
}

/// acct(2): the kernel writes a record there of each process that ends, however little room is left on the file system; to nowhere again with
/// `None`.
pub(super) fn account_to(path: Option<&Path>) -> Result<()> {
    // proc_sys_kernel(5): suspended below the second, resumed above the first, in percent of what is free; looked at so many seconds apart.
    std::fs::write("/proc/sys/kernel/acct", if path.is_some() { "0 0 1" } else { "4 2 30" })?;
    let path = path.map(c_path).transpose()?;
    let name = path.as_ref().map_or(std::ptr::null(), |path| path.as_ptr());
    // SAFETY: a string that ends with NUL, or none.
    check(unsafe { libc::acct(name) }.into(), "acct").map(drop)
}

/// A block device whose blocks are those of an open file.
pub(super) struct Loop(File);

impl Loop {
    // include/uapi/linux/loop.h
    const LOOP_SET_FD: libc::c_ulong = 0x4c00;
    const LOOP_CLR_FD: libc::c_ulong = 0x4c01;
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;

    pub(super) fn of(file: &File) -> Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        // SAFETY: a request without an argument.
        let free = check(
            unsafe { libc::ioctl(control.as_raw_fd(), Self::LOOP_CTL_GET_FREE) }.into(),
            "a free loop device",
        )?;
        let device = OpenOptions::new().read(true).write(true).open(format!("/dev/loop{free}"))?;
        // SAFETY: the argument is a descriptor.
        let set = unsafe { libc::ioctl(device.as_raw_fd(), Self::LOOP_SET_FD, file.as_raw_fd()) };
        check(set.into(), "LOOP_SET_FD")?;
        Ok(Self(device))
    }

    /// Writes its first block, down to the file.
    pub(super) fn write(&self, block: &[u8]) -> Result<()> {
        self.0.write_all_at(block, 0)?;
        Ok(self.0.sync_all()?)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // SAFETY: a request without an argument.
        unsafe { libc::ioctl(self.0.as_raw_fd(), Self::LOOP_CLR_FD) };
    }
}

/// Ends the thread that calls it, and not its process.
pub(super) fn end_this_thread() -> ! {
    loop {
        // SAFETY: nothing of this thread's stack is used by another one.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}
