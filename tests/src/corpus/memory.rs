//! Acts on a process that runs a sealed program.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::acts::{Act, Site, hooks_only, prepared, some};

/// Seals a program that says back what it hears.
fn seal_a_program(site: &Site) -> Result<()> {
    let cat = ["/bin/cat", "/usr/bin/cat", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(cat.context("no program that waits")?, site.dir().join("program"))?;
    Ok(())
}

/// A process that runs it, killed with its owner.
struct Running(Child);

impl Running {
    /// Starts it, and waits for a word of its own: before that the kernel may still be laying out its memory.
    fn new(site: &Site) -> Result<Self> {
        let mut command = Command::new(site.dir().join("program"));
        let child = command.arg0("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut running = Self(child);
        running.0.stdin.as_mut().context("no stdin")?.write_all(b".")?;
        running.0.stdout.as_mut().context("no stdout")?.read_exact(&mut [0])?;
        Ok(running)
    }

    fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.0.id())?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It waits, or is gone already.
        let _gone = (self.0.kill(), self.0.wait());
    }
}

/// Where a process has memory that it may write.
fn writable_memory_of(pid: i32) -> Result<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|line| line.contains(" rw-p ")).context("no such memory")?;
    let (start, _) = line.split_once('-').context("no range")?;
    Ok(usize::from_str_radix(start, 16)?)
}

/// All acts of this file.
pub(super) const ACTS: &[Act] = &[
    prepared(
        "attach_to_a_sealed_program",
        seal_a_program,
        |site, _| {
            let running = Running::new(site)?;
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: attaching takes no memory.
            let attached = unsafe { libc::ptrace(libc::PTRACE_ATTACH, running.pid()?, none, none) };
            ensure!(attached == 0, "ptrace: {}", std::io::Error::last_os_error());
            Ok(())
        },
        &[hooks_only(some("program", "memory", "ptrace"))],
    ),
    prepared(
        "write_into_a_sealed_program",
        seal_a_program,
        |site, _| {
            let running = Running::new(site)?;
            let (pid, mut byte) = (running.pid()?, [0_u8]);
            let here = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
            let at = std::ptr::with_exposed_provenance_mut(writable_memory_of(pid)?);
            let there = libc::iovec { iov_base: at, iov_len: 1 };
            // SAFETY: room for one byte here; whatever stands at the other address is the other process's.
            let read = unsafe { libc::process_vm_readv(pid, &raw const here, 1, &raw const there, 1, 0) };
            ensure!(read == 1, "process_vm_readv: {}", std::io::Error::last_os_error());
            // SAFETY: as above; the byte is what stood there.
            let written = unsafe { libc::process_vm_writev(pid, &raw const here, 1, &raw const there, 1, 0) };
            ensure!(written == 1, "process_vm_writev: {}", std::io::Error::last_os_error());
            Ok(())
        },
        &[hooks_only(some("program", "memory", "ptrace"))],
    ),
    prepared(
        "open_the_memory_of_a_sealed_program",
        seal_a_program,
        |site, _| {
            let running = Running::new(site)?;
            OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", running.pid()?))?;
            Ok(())
        },
        &[hooks_only(some("program", "memory", "ptrace"))],
    ),
];
