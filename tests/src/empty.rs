//! Programs that do nothing, on the two hooks that a file's opening and a write to it pass: what the kernel's own way into a program and out of it
//! costs, below which no sensor on these hooks can come.

use std::ffi::CStr;
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use monitor::sensor::btf::{Btf, FENTRY_PREFIX, LSM_PREFIX};
use monitor::sensor::hooks::HookRung;

/// The hooks.
const HOOKS: [&str; 2] = ["file_open", "file_permission"];

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: i32 = 5;
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_PROG_TYPE_LSM: u32 = 29;
const BPF_TRACE_FENTRY: u32 = 24;
const BPF_LSM_MAC: u32 = 27;

/// `r0 = 0; exit`.
const NOTHING: [u64; 2] = [0xb7, 0x95];
const LICENSE: &CStr = c"GPL";

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to the last member that is used here.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    infos: [u32; 8],
    attach_btf_id: u32,
}

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
        let btf = Btf::of_kernel()?;
        let (prefix, prog_type, expected_attach_type) = match rung {
            HookRung::Lsm => (LSM_PREFIX, BPF_PROG_TYPE_LSM, BPF_LSM_MAC),
            HookRung::Fentry => (FENTRY_PREFIX, BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY),
        };
        let attach = |hook: &&str| {
            let function = format!("{prefix}{hook}");
            let attach_btf_id = btf.function_id(&function).with_context(|| format!("no {function}"))?;
            let load = Load {
                prog_type,
                insn_cnt: 2,
                insns: NOTHING.as_ptr() as u64,
                license: LICENSE.as_ptr() as u64,
                expected_attach_type,
                attach_btf_id,
                ..Load::default()
            };
            let program = bpf(BPF_PROG_LOAD, &load).with_context(|| format!("cannot load on {function}"))?;
            let prog_fd = std::os::fd::AsRawFd::as_raw_fd(&program).unsigned_abs();
            bpf(BPF_RAW_TRACEPOINT_OPEN, &Attach { prog_fd, ..Attach::default() })
                .with_context(|| format!("cannot attach to {function}"))
        };
        Ok(Self { _links: HOOKS.iter().map(attach).collect::<Result<_>>()? })
    }
}

/// A command that answers with a descriptor.
fn bpf<T>(command: i32, attributes: &T) -> std::io::Result<OwnedFd> {
    let attributes: *const T = attributes;
    // SAFETY: attributes as long as is said, which the kernel reads; addresses in them are of constants.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(std::io::Error::last_os_error)?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
