//! Programs that do nothing, on the two hooks that a file's opening and a write to it pass: what the kernel's own way into a program and out of it
//! costs, below which no sensor on these hooks can come.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use monitor::sensor::hooks::{HookRung, empty_program};

/// The hooks.
const HOOKS: [&str; 2] = ["file_open", "file_permission"];

/// include/uapi/linux/bpf.h.
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;

/// `union bpf_attr` for `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
#[derive(Default)]
struct Attach {
    name: u64,
    prog_fd: u32,
    reserved: u32,
}

/// They stand for as long as this is held.
#[derive(Debug)]
pub struct Empty {
    _links: Vec<OwnedFd>,
}

impl Empty {
    /// Loads and attaches them.
    ///
    /// # Errors
    /// The kernel has no such hook, or refuses.
    pub fn attach(rung: HookRung) -> Result<Self> {
        let attach = |hook: &&str| {
            let program = empty_program(rung, hook)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("on {hook}"))?;
            link(&program).with_context(|| format!("cannot attach to {hook}"))
        };
        Ok(Self { _links: HOOKS.iter().map(attach).collect::<Result<_>>()? })
    }
}

/// Attaches a program to what it was loaded for.
fn link(program: &OwnedFd) -> std::io::Result<OwnedFd> {
    let attributes = Attach { prog_fd: program.as_raw_fd().unsigned_abs(), ..Attach::default() };
    let pointer: *const Attach = &raw const attributes;
    // SAFETY: attributes as long as is said, which the kernel reads.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_RAW_TRACEPOINT_OPEN, pointer, size_of::<Attach>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(std::io::Error::last_os_error)?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
