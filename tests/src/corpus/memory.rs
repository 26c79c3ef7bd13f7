//! Acts on a process that runs a sealed program.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::acts::{Act, Site, hooks_only, prepared, some};
use crate::agent::PATIENCE;

/// Seals a program that waits.
fn seal_a_program(site: &Site) -> Result<()> {
    let sleep =
        ["/bin/sleep", "/usr/bin/sleep", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(sleep.context("no program that waits")?, site.dir().join("program"))?;
    Ok(())
}

/// A process that runs it, killed with its owner.
struct Running(Child);

impl Running {
    fn new(site: &Site) -> Result<Self> {
        let program = site.dir().join("program");
        let mut command = Command::new(&program);
        let child = command.arg0("sleep").arg("600").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let running = Self(child);
        // The kernel wakes whoever started it before it has memory of its own: until then it is the starter's.
        let until = Instant::now() + PATIENCE;
        while fs::read_link(format!("/proc/{}/exe", running.pid()?))? != program {
            ensure!(Instant::now() < until, "the program does not start");
            std::thread::yield_now();
        }
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
            let until = Instant::now() + PATIENCE;
            // It may still be on its way to what it will be: its stack is moved once.
            let there = loop {
                let at = std::ptr::with_exposed_provenance_mut(writable_memory_of(pid)?);
                let there = libc::iovec { iov_base: at, iov_len: 1 };
                // SAFETY: room for one byte here; whatever stands at the other address is the other process's.
                let read = unsafe { libc::process_vm_readv(pid, &raw const here, 1, &raw const there, 1, 0) };
                if read == 1 {
                    break there;
                }
                let error = std::io::Error::last_os_error();
                ensure!(Instant::now() < until, "process_vm_readv: {error}");
            };
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
