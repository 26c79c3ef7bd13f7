//! Mappings of memory, as tamperers and innocent programs make them.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::ptr::null_mut;

use anyhow::{Result, ensure};

/// A mapping, gone with its owner.
#[derive(Debug)]
pub(super) struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    fn make(len: usize, protection: i32, flags: i32, fd: i32) -> Result<Self> {
        // SAFETY: a new mapping where the kernel likes; no memory of this process is touched.
        let at = unsafe { libc::mmap(null_mut(), len, protection, flags, fd, 0) };
        ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self { at, len })
    }

    /// Shared and writable.
    pub(super) fn of(file: &File, len: usize) -> Result<Self> {
        Self::make(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// Private, for reading.
    pub(super) fn private(file: &File, len: usize) -> Result<Self> {
        Self::make(len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd())
    }

    /// Private, as code.
    pub(super) fn code(file: &File, len: usize) -> Result<Self> {
        Self::make(len, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE, file.as_raw_fd())
    }

    /// Shared, for reading for now.
    pub(super) fn shared_for_reading(file: &File, len: usize) -> Result<Self> {
        Self::make(len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// Part of a descriptor's memory, shared and writable.
    pub(super) fn of_fd(fd: i32, len: usize, offset: i64) -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes; no memory of this process is touched.
        let at = unsafe { libc::mmap(null_mut(), len, protection, libc::MAP_SHARED, fd, offset) };
        ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self { at, len })
    }

    /// Makes it writable.
    pub(super) fn make_writable(&self) -> Result<()> {
        // SAFETY: the whole of a mapping that lives as long as `self`.
        let done = unsafe { libc::mprotect(self.at, self.len, libc::PROT_READ | libc::PROT_WRITE) };
        ensure!(done == 0, "mprotect: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Makes it code.
    pub(super) fn make_code(&self) -> Result<()> {
        // SAFETY: the whole of a mapping that lives as long as `self`, and is not run.
        let done = unsafe { libc::mprotect(self.at, self.len, libc::PROT_READ | libc::PROT_EXEC) };
        ensure!(done == 0, "mprotect: {}", std::io::Error::last_os_error());
        Ok(())
    }

    pub(super) const fn address(&self) -> *const libc::c_void {
        self.at
    }

    fn place<T>(&self, at: usize) -> *mut T {
        assert!(at + size_of::<T>() <= self.len && at.is_multiple_of(align_of::<T>()));
        self.at.wrapping_byte_add(at).cast()
    }

    pub(super) fn store_u32(&self, at: usize, value: u32) {
        // SAFETY: within the mapping and aligned, as `place` has looked.
        unsafe { self.place::<u32>(at).write_volatile(value) };
    }

    pub(super) fn store_u64(&self, at: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.place::<u64>(at).write_volatile(value) };
    }

    pub(super) fn load_u32(&self, at: usize) -> u32 {
        // SAFETY: as above.
        unsafe { self.place::<u32>(at).read_volatile() }
    }

    /// Without a file, with these flags.
    pub(super) fn anonymous(len: usize, flags: i32) -> Result<Self> {
        Self::make(len, libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_ANONYMOUS, -1)
    }

    pub(super) fn store(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: within the mapping, which is writable and lives as long as `self`.
        let place = unsafe { self.at.cast::<u8>().add(at) };
        // SAFETY: as above; nobody in this process reads it meanwhile.
        unsafe { place.write_volatile(byte) };
    }

    pub(super) fn first(&self) -> u8 {
        // SAFETY: the mapping has one byte at least and is readable.
        unsafe { self.at.cast::<u8>().read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        let done = unsafe { libc::munmap(self.at, self.len) };
        assert_eq!(done, 0, "munmap");
    }
}

/// Attaches a `SysV` segment, stores into it, and removes it.
pub(super) fn shared_segment() -> Result<()> {
    // SAFETY: no pointers.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 8192, libc::IPC_CREAT | 0o600) };
    ensure!(id >= 0, "shmget: {}", std::io::Error::last_os_error());
    // SAFETY: attached where the kernel likes.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    let attached = at.addr() != usize::MAX;
    if attached {
        // SAFETY: attached for writing, 8192 bytes long.
        unsafe { at.cast::<u8>().write_volatile(1) };
        // SAFETY: attached above, and nothing refers to it.
        let done = unsafe { libc::shmdt(at) };
        ensure!(done == 0, "shmdt");
    }
    // SAFETY: IPC_RMID takes no buffer.
    let done = unsafe { libc::shmctl(id, libc::IPC_RMID, null_mut()) };
    ensure!(attached && done == 0, "shmat or shmctl: {}", std::io::Error::last_os_error());
    Ok(())
}
