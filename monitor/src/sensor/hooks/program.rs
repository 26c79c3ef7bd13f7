//! The smallest program, for canaries: run by its path alone it executes itself with one argument more; then it makes code of a
//! part of its file that was mapped as data, writes a byte of its own memory to its stdout, and waits to be killed.

use std::arch::global_asm;

/// Where it is loaded, all of it as code.
pub(super) const LOADED_AT: usize = 0x40_0000;
/// Where it is loaded again, as data.
const DATA_AT: usize = 0x60_0000;

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .rodata.meshseal_canary, \"a\"",
    ".globl meshseal_canary",
    "meshseal_canary:",
    "cmp qword ptr [rsp], 1",
    "ja 2f",
    // execve(argv[0], [argv[0], argv[0], NULL], NULL), or exit(1).
    "mov rdi, [rsp + 8]",
    "xor edx, edx",
    "push rdx",
    "push rdi",
    "push rdi",
    "mov rsi, rsp",
    "mov eax, 59",
    "syscall",
    "mov edi, 1",
    "mov eax, 60",
    "syscall",
    // mprotect(DATA_AT, 4096, PROT_READ | PROT_EXEC)
    "2:",
    "mov edi, {data}",
    "mov esi, 4096",
    "mov edx, 5",
    "mov eax, 10",
    "syscall",
    // write(1, LOADED_AT, 1)
    "mov edi, 1",
    "mov esi, {loaded}",
    "mov edx, 1",
    "mov eax, 1",
    "syscall",
    // pause(), again and again.
    "3:",
    "mov eax, 34",
    "syscall",
    "jmp 3b",
    ".globl meshseal_canary_end",
    "meshseal_canary_end:",
    ".popsection",
    data = const DATA_AT,
    loaded = const LOADED_AT,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .rodata.meshseal_canary, \"a\"",
    ".balign 4",
    ".globl meshseal_canary",
    "meshseal_canary:",
    "ldr x9, [sp]",
    "cmp x9, #1",
    "b.hi 2f",
    // execve(argv[0], [argv[0], argv[0], NULL], NULL), or exit(1).
    "ldr x0, [sp, #8]",
    "sub sp, sp, #32",
    "stp x0, x0, [sp]",
    "str xzr, [sp, #16]",
    "mov x1, sp",
    "mov x2, xzr",
    "mov x8, #221",
    "svc #0",
    "mov x0, #1",
    "mov x8, #93",
    "svc #0",
    // mprotect(DATA_AT, 4096, PROT_READ | PROT_EXEC)
    "2:",
    "mov x0, #{data}",
    "mov x1, #4096",
    "mov x2, #5",
    "mov x8, #226",
    "svc #0",
    // write(1, LOADED_AT, 1)
    "mov x0, #1",
    "mov x1, #{loaded}",
    "mov x2, #1",
    "mov x8, #64",
    "svc #0",
    // ppoll(NULL, 0, NULL, NULL), again and again.
    "3:",
    "mov x0, xzr",
    "mov x1, xzr",
    "mov x2, xzr",
    "mov x3, xzr",
    "mov x8, #73",
    "svc #0",
    "b 3b",
    ".globl meshseal_canary_end",
    "meshseal_canary_end:",
    ".popsection",
    data = const DATA_AT,
    loaded = const LOADED_AT,
);

unsafe extern "C" {
    #[link_name = "meshseal_canary"]
    static CODE: u8;
    #[link_name = "meshseal_canary_end"]
    static END: u8;
}

/// The code above, which does not depend on where it lies.
fn code() -> &'static [u8] {
    let (start, end) = (&raw const CODE, &raw const END);
    // SAFETY: both are labels of one section of constants, the second behind the first.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// The whole executable file.
pub(super) fn elf() -> Vec<u8> {
    const MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    /// `Elf64_Ehdr` and two `Elf64_Phdr`.
    const HEADERS: u64 = 64 + 2 * 56;
    let code = code();
    let size = HEADERS + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |elf: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    let long = |elf: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    half(&mut elf, &[2, MACHINE]);
    word(&mut elf, &[1]);
    long(&mut elf, &[LOADED_AT as u64 + HEADERS, 64, 0]);
    word(&mut elf, &[0]);
    half(&mut elf, &[64, 56, 2, 64, 0, 0]);
    // PT_LOAD, readable and executable; and readable only.
    for (flags, at) in [(5, LOADED_AT), (4, DATA_AT)] {
        word(&mut elf, &[1, flags]);
        long(&mut elf, &[0, at as u64, at as u64, size, size, 4096]);
    }
    elf.extend(code);
    elf
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::process::{Command, Stdio};

    #[test]
    fn it_runs_until_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let mut file = std::fs::File::options().create_new(true).write(true).mode(0o700).open(&path).unwrap();
        file.write_all(&super::elf()).unwrap();
        drop(file);
        let mut command = Command::new(&path);
        // Another test's child may hold the file open for writing until it executes.
        let mut child = loop {
            match command.env_clear().stdout(Stdio::piped()).spawn() {
                Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => std::thread::yield_now(),
                child => break child.unwrap(),
            }
        };
        let mut byte = [0];
        child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
        assert_eq!(byte, [0x7f]);
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        let code: Vec<&str> = maps.lines().filter(|line| line.contains(" r-xp ")).collect();
        let arguments = std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(arguments.iter().filter(|byte| **byte == 0).count(), 2);
        assert!(code.iter().any(|line| line.starts_with("00400000-")), "{maps}");
        assert!(code.iter().any(|line| line.starts_with("00600000-")), "{maps}");
    }
}
