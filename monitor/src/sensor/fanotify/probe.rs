//! What fanotify allows here: each flag tried, never guessed from a version.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use super::sys;

/// A group's flags from best to least; each step loses something.
const STEPS: [(u32, &str); 3] = [
    (
        libc::FAN_REPORT_DFID_NAME
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_TARGET_FID
            | libc::FAN_REPORT_PIDFD,
        "dfid_name+target_fid+pidfd",
    ),
    (libc::FAN_REPORT_DFID_NAME | libc::FAN_REPORT_FID | libc::FAN_REPORT_PIDFD, "dfid_name+fid+pidfd"),
    (libc::FAN_REPORT_DFID_NAME | libc::FAN_REPORT_FID, "dfid_name+fid"),
];

/// What this kernel and this process's rights allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanotifyProbe {
    /// Names of the flags that a group was made with, or the error (the flags tried last, the call's words).
    pub group: Result<&'static str, String>,
    /// Unlimited queue and marks.
    pub unlimited: bool,
    /// Events name the process by pidfd.
    pub pidfd: bool,
    /// Name events carry the inode named.
    pub target_fid: bool,
    /// Renames are one event with both names.
    pub rename: bool,
    /// A file-system mark on the root directory, or its error.
    pub filesystem_mark: Result<(), String>,
}

impl FanotifyProbe {
    /// Whether the sensor can run.
    #[must_use]
    pub const fn usable(&self) -> bool {
        self.group.is_ok() && self.filesystem_mark.is_ok()
    }

    /// What the sensor would not see here.
    #[must_use]
    pub fn blind_to(&self) -> Vec<String> {
        super::blind_to(self.target_fid, self.pidfd, self.unlimited)
    }
}

/// Tries everything, and leaves nothing behind. `root` is a directory to place a mark on.
#[must_use]
pub fn probe(root: &Path) -> FanotifyProbe {
    match open_group(true) {
        Ok(group) => {
            let mask = libc::FAN_MODIFY | libc::FAN_ONDIR;
            let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
            let mark = sys::mark_path(group.fd.as_fd(), flags, mask, root);
            FanotifyProbe {
                group: Ok(group.name),
                unlimited: group.unlimited,
                pidfd: group.pidfd,
                target_fid: group.target_fid,
                rename: group.rename,
                filesystem_mark: mark.map_err(|error| format!("fanotify_mark: {error}")),
            }
        }
        Err(error) => FanotifyProbe {
            group: Err(format!("fanotify_init: {error}")),
            unlimited: false,
            pidfd: false,
            target_fid: false,
            rename: false,
            filesystem_mark: Err("no group".into()),
        },
    }
}

/// A new group with the best flags there are.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) fd: OwnedFd,
    pub(super) name: &'static str,
    pub(super) unlimited: bool,
    pub(super) pidfd: bool,
    pub(super) target_fid: bool,
    pub(super) rename: bool,
}

/// Opens a group; with `unlimited` the queue cannot overflow where the kernel allows that.
pub(super) fn open_group(unlimited: bool) -> io::Result<Group> {
    let base = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    let without = [0];
    let with = [libc::FAN_UNLIMITED_QUEUE | libc::FAN_UNLIMITED_MARKS, 0];
    let queues: &[u32] = if unlimited { &with } else { &without };
    let mut last = io::Error::from_raw_os_error(libc::ENOSYS);
    for (flags, name) in STEPS {
        for queue in queues {
            match sys::init(base | flags | queue) {
                Ok(fd) => {
                    return Ok(Group {
                        rename: accepts_rename(base | flags),
                        fd,
                        name,
                        unlimited: *queue != 0,
                        pidfd: flags & libc::FAN_REPORT_PIDFD != 0,
                        target_fid: flags & libc::FAN_REPORT_TARGET_FID != 0,
                    });
                }
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// The mask is checked before the path, so that only `EINVAL` means that the kernel does not know it.
fn accepts_rename(flags: u32) -> bool {
    let Ok(group) = sys::init(flags) else { return false };
    let mark = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    let result = sys::mark_path(group.as_fd(), mark, libc::FAN_RENAME, Path::new("/"));
    result.err().and_then(|error| error.raw_os_error()) != Some(libc::EINVAL)
}
