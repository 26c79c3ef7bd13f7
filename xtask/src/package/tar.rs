//! A tar writer (POSIX ustar) whose bytes depend on nothing but what is put in: no times, no owners, no order of a disk.

use anyhow::{Result, bail};

const BLOCK: usize = 512;

/// An archive in memory.
#[derive(Debug, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

enum Kind<'a> {
    File(&'a [u8]),
    Directory,
    Link(&'a str),
}

impl Tar {
    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.put(&format!("{path}/"), mode, &Kind::Directory)
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.put(path, mode, &Kind::File(content))
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.put(path, 0o777, &Kind::Link(target))
    }

    /// The whole archive with its end mark.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn put(&mut self, path: &str, mode: u32, kind: &Kind<'_>) -> Result<()> {
        let (flag, content, link): (u8, &[u8], &str) = match kind {
            Kind::File(content) => (b'0', content, ""),
            Kind::Directory => (b'5', &[], ""),
            Kind::Link(target) => (b'2', &[], target),
        };
        if path.len() > 100 || link.len() > 100 {
            bail!("{path:?}: a name in the archive has at most 100 bytes");
        }
        let mut header = [0_u8; BLOCK];
        let mut field = |at: usize, value: &[u8]| {
            if let Some(place) = header.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        field(0, path.as_bytes());
        field(100, format!("{mode:07o}").as_bytes());
        field(108, b"0000000");
        field(116, b"0000000");
        field(124, format!("{:011o}", content.len()).as_bytes());
        field(136, b"00000000000");
        field(148, b"        ");
        field(156, &[flag]);
        field(157, link.as_bytes());
        field(257, b"ustar\x0000");
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        if let Some(place) = header.get_mut(148..155) {
            place.copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn gnu_tar_reads_what_was_written() {
        let mut tar = Tar::default();
        tar.directory("usr", 0o755).unwrap();
        tar.file("usr/a", 0o644, b"hello\n").unwrap();
        tar.symlink("usr/b", "a").unwrap();
        let mut child = Command::new("tar")
            .args(["--utc", "--full-time", "-tvf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&tar.finish()).unwrap();
        let listed = child.wait_with_output().unwrap();
        assert!(listed.status.success());
        assert_eq!(
            String::from_utf8(listed.stdout).unwrap(),
            "drwxr-xr-x 0/0               0 1970-01-01 00:00:00 usr/\n\
             -rw-r--r-- 0/0               6 1970-01-01 00:00:00 usr/a\n\
             lrwxrwxrwx 0/0               0 1970-01-01 00:00:00 usr/b -> a\n"
        );
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert!(Tar::default().file(&"a".repeat(101), 0o644, b"").is_err());
    }
}
