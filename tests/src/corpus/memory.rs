//! Acts on a process that runs a sealed program.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::acts::{Act, Site, hooks_only, prepared, some};
use crate::process::Process;

/// Seals a program that says back what it hears.
fn seal_a_program(site: &Site) -> Result<()> {
    let cat = ["/bin/cat", "/usr/bin/cat", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(cat.context("no program that waits")?, site.dir().join("program"))?;
    Ok(())
}

/// A process that runs it, once it has said a word: before that the kernel may still be laying out its memory.
fn run(site: &Site) -> Result<Process> {
    let mut cat = Process::start(Command::new(site.dir().join("program")).arg0("cat"), "cat")?;
    cat.say("here")?;
    cat.hear("here")?;
    Ok(cat)
}

fn pid_of(process: &Process) -> Result<i32> {
    Ok(i32::try_from(process.pid())?)
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
            let running = run(site)?;
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: attaching takes no memory.
            let attached = unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid_of(&running)?, none, none) };
            ensure!(attached == 0, "ptrace: {}", std::io::Error::last_os_error());
            running.kill()
        },
        &[hooks_only(some("program", "memory", "ptrace"))],
    ),
    prepared(
        "write_into_a_sealed_program",
        seal_a_program,
        |site, _| {
            let running = run(site)?;
            let (pid, mut byte) = (pid_of(&running)?, [0_u8]);
            let here = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
            let at = std::ptr::with_exposed_provenance_mut(writable_memory_of(pid)?);
            let there = libc::iovec { iov_base: at, iov_len: 1 };
            // SAFETY: room for one byte here; whatever stands at the other address is the other process's.
            let read = unsafe { libc::process_vm_readv(pid, &raw const here, 1, &raw const there, 1, 0) };
            ensure!(read == 1, "process_vm_readv: {}", std::io::Error::last_os_error());
            // SAFETY: as above; the byte is what stood there.
            let written = unsafe { libc::process_vm_writev(pid, &raw const here, 1, &raw const there, 1, 0) };
            ensure!(written == 1, "process_vm_writev: {}", std::io::Error::last_os_error());
            running.kill()
        },
        &[hooks_only(some("program", "memory", "ptrace"))],
    ),
    prepared(
        "open_the_memory_of_a_sealed_program",
        seal_a_program,
        |site, _| {
            let running = run(site)?;
            OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", running.pid()))?;
            running.kill()
        },
        &[hooks_only(some("program", "memory", "ptrace"))],
    ),
];
