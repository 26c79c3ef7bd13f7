//! A system call made in another process, as a debugger makes it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};

/// `syscall`.
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];
/// Taken of the program's text at a time.
const PIECE: usize = 1 << 16;

/// Puts what stands behind descriptor 0 in place of another descriptor of that process, which closes that.
pub(super) fn replace_descriptor(pid: i32, fd: i32) -> Result<()> {
    let at = instruction(pid)?;
    let answer = call(pid, at, libc::SYS_dup2, [0, u64::try_from(fd)?])?;
    ensure!(answer == u64::try_from(fd)?, "dup2 in process {pid}: {}", answer.cast_signed());
    Ok(())
}

/// Where that process has an instruction that makes a system call.
fn instruction(pid: i32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && !line.contains("[v")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).context("no range")?;
        let (start, end) = (u64::from_str_radix(range.0, 16)?, u64::from_str_radix(range.1, 16)?);
        let mut piece = vec![0; PIECE];
        for at in (start..end).step_by(PIECE) {
            let len = PIECE.min(usize::try_from(end - at)?);
            memory.read_exact_at(&mut piece[..len], at)?;
            if let Some(found) = piece[..len].windows(2).position(|two| two == INSTRUCTION) {
                return Ok(at + found as u64);
            }
        }
    }
    anyhow::bail!("process {pid} makes no system calls")
}

fn ptrace(request: libc::c_uint, pid: i32, data: *mut libc::c_void) -> Result<()> {
    // SAFETY: `data` is what the request asks for: nothing, or a place for registers.
    let done = unsafe { libc::ptrace(request, pid, std::ptr::null_mut::<libc::c_void>(), data) };
    ensure!(done == 0, "ptrace request {request:#x}: {}", std::io::Error::last_os_error());
    Ok(())
}

fn stopped(pid: i32) -> Result<()> {
    let mut status = 0;
    // SAFETY: a valid place for the status.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    ensure!(waited == pid && libc::WIFSTOPPED(status), "process {pid} did not stop: {status:#x}");
    Ok(())
}

/// Makes one system call in the first thread of that process, with the instruction at `at`; the answer is its result.
fn call(pid: i32, at: u64, number: libc::c_long, arguments: [u64; 2]) -> Result<u64> {
    let null = std::ptr::null_mut();
    ptrace(libc::PTRACE_SEIZE, pid, null)?;
    let done = (|| {
        ptrace(libc::PTRACE_INTERRUPT, pid, null)?;
        stopped(pid)?;
        // SAFETY: numbers only; all zeroes are registers.
        let mut before: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        ptrace(libc::PTRACE_GETREGS, pid, (&raw mut before).cast())?;
        let mut during = before;
        // No call that was interrupted is begun again meanwhile.
        (during.orig_rax, during.rax, during.rip) = (u64::MAX, number.unsigned_abs(), at);
        [during.rdi, during.rsi] = arguments;
        ptrace(libc::PTRACE_SETREGS, pid, (&raw mut during).cast())?;
        ptrace(libc::PTRACE_SINGLESTEP, pid, null)?;
        stopped(pid)?;
        ptrace(libc::PTRACE_GETREGS, pid, (&raw mut during).cast())?;
        ptrace(libc::PTRACE_SETREGS, pid, (&raw mut before).cast())?;
        Ok(during.rax)
    })();
    ptrace(libc::PTRACE_DETACH, pid, null)?;
    done
}
