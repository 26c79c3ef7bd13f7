//! From file handles to files and paths, for the moment only: a descriptor kept open would keep the kubelet from
//! unmounting a volume.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use super::sys::{self, FileId};
use crate::inventory::mounts::Mounts;
use crate::inventory::procs::kernel_dev;
use crate::model::{HostPath, InodeKey};

/// Mount points by which a file system was reached, most recent last.
const POINTS_MAX: usize = 8;

/// What a file is at this moment.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) kind: FileType,
    pub(super) links: u64,
    pub(super) key: InodeKey,
}

/// Where file systems are mounted, in this process's mount namespace.
#[derive(Debug, Default)]
pub(super) struct Places {
    mounts: Mounts,
    points: HashMap<[u8; 8], Vec<HostPath>>,
}

impl Places {
    /// Learns where `fd` lies; gives its path in its file system.
    pub(super) fn learn(&mut self, fd: BorrowedFd<'_>, fsid: [u8; 8]) -> Option<HostPath> {
        let path = HostPath::new(sys::path_of(fd)?);
        let id = mount_id(fd)?;
        let dev = rustix::fs::fstat(fd).ok().map(|stat| kernel_dev(stat.st_dev))?;
        if !self.known(id, dev, &path) {
            self.mounts = Mounts::read(Path::new("/proc/self/mountinfo")).ok()?;
        }
        let mount = self.mounts.by_id(id)?;
        let points = self.points.entry(fsid).or_default();
        if !points.contains(&mount.point) {
            if points.len() == POINTS_MAX {
                points.remove(0);
            }
            points.push(mount.point.clone());
        }
        self.mounts.path_in_fs(id, &path)
    }

    fn known(&self, id: u64, dev: u32, path: &HostPath) -> bool {
        // btrfs tells another device than mountinfo: it is read again each time.
        self.mounts.by_id(id).is_some_and(|mount| mount.dev == dev)
            && self.mounts.path_in_fs(id, path).is_some()
    }

    /// Opens what a handle names.
    pub(super) fn open(&self, id: &FileId, flags: libc::c_int) -> Option<OwnedFd> {
        let points = self.points.get(&id.fsid())?;
        points.iter().rev().find_map(|point| {
            let mount = mount_fd(point, id.fsid())?;
            sys::open(mount.as_fd(), id, flags).ok()
        })
    }

    /// What a handle names is at this moment.
    pub(super) fn look(&self, id: &FileId) -> Option<Look> {
        look(self.open(id, libc::O_PATH)?.as_fd())
    }

    /// Path of a directory in its file system at this moment.
    pub(super) fn path_in_fs(&self, id: &FileId) -> Option<HostPath> {
        let fd = self.open(id, libc::O_PATH)?;
        let path = HostPath::new(sys::path_of(&fd)?);
        self.mounts.path_in_fs(mount_id(fd.as_fd())?, &path)
    }
}

/// What is behind a descriptor.
pub(super) fn look(fd: BorrowedFd<'_>) -> Option<Look> {
    let stat = rustix::fs::fstat(fd).ok()?;
    Some(Look {
        kind: FileType::from_raw_mode(stat.st_mode),
        links: u64::from(stat.st_nlink as u32),
        key: InodeKey { dev: kernel_dev(stat.st_dev), ino: stat.st_ino },
    })
}

/// A descriptor that `open_by_handle_at` accepts. Only directories and regular files are opened for real.
fn mount_fd(point: &HostPath, fsid: [u8; 8]) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let place = rustix::fs::open(point.as_path(), flags, Mode::empty()).ok()?;
    let kind = look(place.as_fd())?.kind;
    if sys::fsid(place.as_fd()).ok()? != fsid || !matches!(kind, FileType::Directory | FileType::RegularFile)
    {
        return None;
    }
    let again = format!("/proc/self/fd/{}", place.as_raw_fd());
    rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).ok()
}

fn mount_id(fd: BorrowedFd<'_>) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}
