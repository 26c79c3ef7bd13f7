//! The archive format of an initramfs: cpio "newc" (kernel: `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written; parent directories are added where they are missing. Everything belongs to root.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    known: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// True when a path of that name was added.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.known.contains(path)
    }

    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        if path.is_empty() || self.contains(path) {
            return Ok(());
        }
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// `mode`: permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, FILE | (mode & 0o7777), (0, 0), content)
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    pub(crate) fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<()> {
        self.entry(path, CHARACTER | mode, (major, minor), &[])
    }

    /// A file of this machine, with its permission bits; read through symlinks.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)
            .with_context(|| format!("cannot read {}", from.display()))?
            .permissions()
            .mode();
        self.file(path, mode, &content)
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.header("TRAILER!!!", 0, (0, 0), 0)?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        if path.starts_with('/') || path.contains('\0') || path.is_empty() {
            bail!("{path:?} cannot name an entry of an initramfs");
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.known.insert(path.to_owned());
        let size =
            u32::try_from(content.len()).with_context(|| format!("{path} is too large for an initramfs"))?;
        self.header(path, mode, device, size)?;
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn header(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), size: u32) -> Result<()> {
        self.inode += 1;
        let name = u32::try_from(path.len() + 1).context("a name is too long for an initramfs")?;
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, dev major/minor, rdev major/minor, namesize, check
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("a/b", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let expected = "070701\
            00000001000041ED00000000000000000000000200000000000000000000000000000000000000000000000000000002000000\
            00a\0\
            070701\
            00000002000081ED00000000000000000000000100000000000000050000000000000000000000000000000000000004000000\
            00a/b\0\0\0\
            hello\0\0\0\
            070701\
            00000003000000000000000000000000000000010000000000000000000000000000000000000000000000000000000B000000\
            00TRAILER!!!\0\0\0\0";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_name_cannot_be_absolute_or_hold_a_nul() {
        let mut archive = Archive::default();
        for bad in ["/etc", "", "a\0b"] {
            assert!(archive.file(bad, 0o644, b"").is_err(), "{bad:?}");
        }
    }
}
