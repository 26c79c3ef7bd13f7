//! This program without what only debuggers read, for the many places on a node where it stands in for another.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// `PT_LOAD` (elf.5).
const LOAD: u32 = 1;

/// Writes this program to `to`, up to the end of the last segment that is loaded; section headers, which lie behind, go.
pub(crate) fn copy(to: &Path) -> Result<()> {
    let mut bytes = fs::read(std::env::current_exe()?)?;
    let end = end_of_segments(&bytes).context("this program is no ELF of 64 bits")?;
    ensure!(end <= bytes.len(), "this program is cut short");
    bytes.truncate(end);
    // e_shoff; e_shnum and e_shstrndx.
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
    fs::write(to, bytes)?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}

fn end_of_segments(bytes: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    (bytes.get(..5)? == b"\x7fELF\x02").then_some(())?;
    let (first, size, count) = (usize::try_from(word(32)?).ok()?, half(54)?, half(56)?);
    let mut end = 0;
    for at in 0..count {
        let header = first + usize::from(at) * usize::from(size);
        let kind = u32::from_le_bytes(bytes.get(header..header + 4)?.try_into().ok()?);
        if kind == LOAD {
            end = end.max(usize::try_from(word(header + 8)?.checked_add(word(header + 32)?)?).ok()?);
        }
    }
    (end > 0).then_some(end)
}
