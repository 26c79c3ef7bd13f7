//! What this kernel allows, for `doctor` and the choice of the rung. Capability is found by loading, never by version.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use super::HookRung;
use crate::sensor::btf::Btf;

/// Where securityfs shows the security modules in use.
pub const LSM_LIST: &str = "/sys/kernel/security/lsm";

/// Each with the reason where it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The security modules in use.
    pub lsm_list: Result<String, String>,
    /// `bpf` stands among them.
    pub bpf_in_list: bool,
    /// The kernel shows its type information, and it can be read.
    pub btf: Result<(), String>,
    /// A stub of type `lsm` loads.
    pub lsm_program: Result<(), String>,
    /// A stub of type `tracing` (fentry) loads.
    pub tracing_program: Result<(), String>,
    /// A stub of type `raw_tracepoint` loads.
    pub raw_tracepoint_program: Result<(), String>,
    /// The eBPF objects are part of this binary.
    pub objects: bool,
}

impl Probe {
    /// Whether the LSM rung can be expected to start.
    #[must_use]
    pub fn allows_lsm(&self) -> bool {
        self.bpf_in_list && self.btf.is_ok() && self.lsm_program.is_ok() && self.objects
    }

    /// Whether the fentry rung can be expected to start.
    #[must_use]
    pub fn allows_fentry(&self) -> bool {
        self.btf.is_ok() && self.tracing_program.is_ok() && self.objects
    }
}

/// Looks, and loads stubs. Creates no map: inode storage must not be touched where `bpf` is not in the list.
#[must_use]
pub fn probe() -> Probe {
    let lsm_list = list(Path::new(LSM_LIST));
    let bpf_in_list = lsm_list.as_ref().is_ok_and(|list| contains_bpf(list));
    let btf = Btf::of_kernel();
    let target = |function: &str| btf.as_ref().ok().and_then(|btf| btf.function_id(function));
    Probe {
        bpf_in_list,
        lsm_program: stub(PROG_LSM, ATTACH_LSM_MAC, target("bpf_lsm_file_open")).map(drop),
        tracing_program: stub(PROG_TRACING, ATTACH_FENTRY, target("security_file_open")).map(drop),
        raw_tracepoint_program: stub(PROG_RAW_TRACEPOINT, 0, Some(0)).map(drop),
        btf: btf.map(|_| ()).map_err(|error| error.to_string()),
        objects: super::objects::LSM.is_some()
            && super::objects::FENTRY.is_some()
            && super::objects::TRACE.is_some(),
        lsm_list,
    }
}

/// The list of security modules.
pub(super) fn list(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Whether `bpf` is one of them.
pub(super) fn contains_bpf(list: &str) -> bool {
    list.split(',').any(|name| name.trim() == "bpf")
}

// include/uapi/linux/bpf.h
const PROG_LOAD: libc::c_int = 5;
const PROG_RAW_TRACEPOINT: u32 = 17;
const PROG_TRACING: u32 = 26;
const PROG_LSM: u32 = 29;
const ATTACH_FENTRY: u32 = 24;
const ATTACH_LSM_MAC: u32 = 27;

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Attr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    rest: [u64; 4],
}

/// Loads a program that does nothing, for that hook on that rung: what the kernel's own way into a program and out of it costs. It is not
/// attached.
///
/// # Errors
/// The kernel has no such hook, or refuses the program.
pub fn empty_program(rung: HookRung, hook: &str) -> Result<OwnedFd, String> {
    let (prog_type, attach) = match rung {
        HookRung::Lsm => (PROG_LSM, ATTACH_LSM_MAC),
        HookRung::Fentry => (PROG_TRACING, ATTACH_FENTRY),
    };
    let btf = Btf::of_kernel().map_err(|error| error.to_string())?;
    stub(prog_type, attach, btf.function_id(&format!("{}{hook}", rung.prefix())))
}

/// Loads `return 0`.
fn stub(prog_type: u32, expected_attach_type: u32, target: Option<u32>) -> Result<OwnedFd, String> {
    let attach_btf_id = target.ok_or("the kernel's BTF does not have the hook")?;
    // mov r0, 0; exit
    let insns: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
    let license = c"Dual MIT/GPL";
    let attr = Attr {
        prog_type,
        insn_cnt: 2,
        insns: insns.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type,
        prog_btf_fd: 0,
        func_info_rec_size: 0,
        func_info: 0,
        func_info_cnt: 0,
        line_info_rec_size: 0,
        line_info: 0,
        line_info_cnt: 0,
        attach_btf_id,
        rest: [0; 4],
    };
    // SAFETY: `attr` and what it points to outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, std::ptr::from_ref(&attr), size_of::<Attr>()) };
    if fd < 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!("BPF_PROG_LOAD: {error}"));
    }
    let fd = libc::c_int::try_from(fd).map_err(|error| error.to_string())?;
    // SAFETY: a descriptor the kernel has just given us, and nobody else has.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    tracing::debug!(prog_type, fd = program.as_raw_fd(), "stub loaded");
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpf_is_a_whole_word() {
        assert!(contains_bpf("lockdown,capability,bpf"));
        assert!(!contains_bpf("lockdown,bpfx"));
        assert!(!contains_bpf(""));
    }

    /// Whatever the machine allows, the answer has a reason for each refusal.
    #[test]
    fn probing_explains_refusals() {
        let probe = probe();
        for refused in [&probe.lsm_program, &probe.tracing_program, &probe.raw_tracepoint_program] {
            if let Err(reason) = refused {
                assert!(
                    reason.starts_with("BPF_PROG_LOAD: ") || reason.starts_with("the kernel's BTF"),
                    "{reason}"
                );
            }
        }
    }
}
