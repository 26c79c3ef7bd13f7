use serde::{Deserialize, Serialize};

use super::{Actor, HostPath, InodeKey, Slot, Time};

/// A source of observations, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// BPF LSM programs.
    Lsm,
    /// fentry programs on `security_*`.
    Fentry,
    /// fanotify file-system marks.
    Fanotify,
    /// inotify watches.
    Inotify,
    /// Periodic re-verification.
    Scrub,
    /// What /proc shows.
    Proc,
    /// No live sensor.
    None,
}

/// What was done, in the kernel's terms. Ordered by how much each tells about a change of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A process that runs it was attached to, or its memory opened, read or written.
    Ptrace,
    /// A process that runs it made code of a file that is not sealed, by mapping it. Records tell it as `mmap`.
    MmapCode,
    /// A process that runs it executed a file that is not sealed.
    Execve,
    /// Opened for writing.
    Open,
    /// Mode, owner or times set.
    Setattr,
    /// A mount it lies on got other options.
    Remount,
    /// A mount it lies on got other attributes by `mount_setattr`.
    MountSetattr,
    /// Inode flags or project set, by ioctl or `file_setattr`.
    FileSetattr,
    /// Extended attribute or ACL set.
    Setxattr,
    /// Extended attribute removed.
    Removexattr,
    /// Size changed.
    Truncate,
    /// Another ioctl that may change it.
    Ioctl,
    /// Mapped shared and writable.
    Mmap,
    /// Written.
    Write,
    /// A hard link was made.
    Link,
    /// A symbolic link was made.
    Symlink,
    /// A regular file was made.
    Create,
    /// A directory was made.
    Mkdir,
    /// A FIFO, socket or device was made.
    Mknod,
    /// A name was removed.
    Unlink,
    /// A directory was removed.
    Rmdir,
    /// A name was moved.
    Rename,
    /// What it lay on, or what lay over it, was taken away.
    Umount,
    /// The root of a mount namespace was swapped, and the old one laid over it.
    PivotRoot,
    /// Something was mounted over it.
    Mount,
    /// Found by comparing, not by a hook.
    Scrub,
}

impl Operation {
    /// It makes something code of a process that runs the object.
    #[must_use]
    pub const fn runs_code(self) -> bool {
        matches!(self, Self::MmapCode | Self::Execve)
    }
}

/// Where a rename puts what it moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenamedTo {
    /// The directory, or one above it that its slot is inherited from; 0 if that is not watched.
    pub slot: Slot,
    /// The new name.
    pub name: Vec<u8>,
    /// The new path below its file system's root, as [`Observation::path_in_fs`].
    pub path_in_fs: Option<HostPath>,
}

impl RenamedTo {
    /// That name in that directory, wherever it is.
    #[must_use]
    pub const fn new(slot: Slot, name: Vec<u8>) -> Self {
        Self { slot, name, path_in_fs: None }
    }
}

/// What a sensor saw, undecided. `slot` says on which watched inode; the rest is what the judge needs to tell
/// what happened to which name, and by whom.
#[derive(Debug, Clone)]
pub struct Observation {
    /// When the kernel saw it.
    pub time: Time,
    /// Which rung saw it.
    pub sensor: Rung,
    /// What was done.
    pub operation: Operation,
    /// The watched inode: the file acted upon, or for name operations the directory if that is watched; 0 for a
    /// rename out of a directory that is not.
    pub slot: Slot,
    /// For name operations, the slot of the child inode named, where that inode has one of its own
    /// (unlink or rename of a tagged file). Equal to `slot` where the child inherited it.
    pub child_slot: Option<Slot>,
    /// The inode acted upon (the child for name operations, where it exists already).
    pub inode: Option<InodeKey>,
    /// For name operations: the name in the directory. For others: the name of the dentry used (it tells an alias).
    pub name: Option<Vec<u8>>,
    /// Path of the thing acted upon below its file system's root, as far as the sensor could tell, oldest first;
    /// `None` if unknown. On the host it lies below the mount of that file system.
    pub path_in_fs: Option<HostPath>,
    /// For rename: where to.
    pub renamed_to: Option<RenamedTo>,
    /// For rename: the inode that was replaced, if there was one and it had a slot.
    pub replaced_slot: Option<Slot>,
    /// Who did it, or why that cannot be known.
    pub actor: Result<Box<Actor>, String>,
    /// How many events this stands for.
    pub count: u64,
    /// The act was refused.
    pub denied: bool,
    /// The kernel did not carry it out, for reasons of its own.
    pub failed: bool,
    /// The inode acted upon has no name left, or never had one.
    pub unlinked: bool,
    /// For a mount that was moved: the root of it, which stood elsewhere before.
    pub moved: Option<InodeKey>,
}
