//! The binary as it is shipped: one static file.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

/// `PT_INTERP` of elf(5): a program header that names a loader.
const PT_INTERP: u32 = 3;

fn it_needs_no_loader() -> Result<()> {
    let elf = fs::read(meshseal_tests::meshseal())?;
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let number = |at: usize, size: usize| -> Option<u64> {
        let mut bytes = [0_u8; 8];
        bytes.get_mut(..size)?.copy_from_slice(elf.get(at..at + size)?);
        Some(u64::from_le_bytes(bytes))
    };
    let headers = (|| {
        let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count).map(|n| number(usize::try_from(offset + n * size).ok()?, 4)).collect::<Option<Vec<u64>>>()
    })();
    let Some(headers) = headers else { anyhow::bail!("the program headers are cut off") };
    ensure!(!headers.is_empty(), "no program headers");
    ensure!(!headers.contains(&u64::from(PT_INTERP)), "it names a loader: it is not static");
    Ok(())
}

fn it_runs_with_an_empty_environment() -> Result<()> {
    let out = Command::new(meshseal_tests::meshseal()).arg("--version").env_clear().output()?;
    ensure!(out.status.success(), "{}", out.status);
    let expected = format!("meshseal {}\n", env!("CARGO_PKG_VERSION"));
    ensure!(out.stdout == expected.as_bytes(), "it says {:?}", String::from_utf8_lossy(&out.stdout));
    Ok(())
}

fn main() -> ExitCode {
    meshseal_tests::main(meshseal_tests::cases![it_needs_no_loader, it_runs_with_an_empty_environment])
}
