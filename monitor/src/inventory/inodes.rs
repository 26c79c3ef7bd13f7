//! Inodes in the kernel's own numbers, as hooks see them.
//!
//! `stat` tells other ones on some file systems: btrfs has a device for each subvolume, overlayfs one for each layer that is
//! not on the file system of the others.

use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::procs::kernel_dev;
use crate::model::InodeKey;

/// File systems of which `stat` may tell other numbers than the inode has: btrfs, overlayfs, bcachefs.
const OTHERWISE: [i64; 3] = [0x9123_683e, 0x794c_7630, 0xca45_1a4e];

/// The inode behind a descriptor.
///
/// # Errors
/// It cannot be asked for.
pub fn of(fd: &impl AsFd) -> io::Result<InodeKey> {
    at(&PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())))
}

/// The inode that stands at a path, behind a link of procfs for example.
///
/// # Errors
/// It cannot be asked for.
pub fn at(path: &Path) -> io::Result<InodeKey> {
    let told = key(&std::fs::metadata(path)?);
    if OTHERWISE.contains(&rustix::fs::statfs(path)?.f_type) { watched(path) } else { Ok(told) }
}

/// As `stat` tells it.
fn key(meta: &Metadata) -> InodeKey {
    InodeKey { dev: kernel_dev(meta.dev()), ino: meta.ino() }
}

/// As the kernel describes an inotify watch on it, set for that alone.
fn watched(path: &Path) -> io::Result<InodeKey> {
    let inotify = inotify::init(CreateFlags::CLOEXEC)?;
    inotify::add_watch(&inotify, path, WatchFlags::DELETE_SELF)?;
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", inotify.as_raw_fd()))?;
    described(&told).ok_or_else(|| io::Error::other("no inotify watch in its own fdinfo"))
}

/// From a line `inotify wd:1 ino:2c sdev:fe00000 mask:...`, all of it hexadecimal.
fn described(fdinfo: &str) -> Option<InodeKey> {
    let line = fdinfo.lines().find_map(|line| line.strip_prefix("inotify "))?;
    let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name));
    Some(InodeKey {
        dev: u32::from_str_radix(field("sdev:")?, 16).ok()?,
        ino: u64::from_str_radix(field("ino:")?, 16).ok()?,
    })
}

/// What the fuzzers give to the reader of `fdinfo`.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz(text: &str) {
    crate::fuzz::used(described(text));
}

#[cfg(test)]
mod tests {
    use super::{at, described, of, watched};
    use crate::model::InodeKey;

    #[test]
    fn a_watch_tells_what_stat_tells_where_they_agree() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        let key = of(&file).unwrap();
        assert_eq!(at(dir.path()).unwrap(), key);
        // In a container the directory may be on overlayfs, of which this is the only word.
        assert_eq!(watched(dir.path()).unwrap(), key);
    }

    #[test]
    fn the_kernels_words_are_read_as_they_are() {
        let told = "pos:\t0\nflags:\t02000000\nmnt_id:\t15\nino:\t1058\ninotify wd:1 ino:2c1 sdev:fe00000 mask:400 ignored_mask:0 fhandle-bytes:8\n";
        assert_eq!(described(told), Some(InodeKey { dev: 0xfe0_0000, ino: 0x2c1 }));
        assert_eq!(described("pos:\t0\n"), None);
        assert_eq!(described("inotify wd:1 ino:x sdev:1\n"), None);
    }
}
