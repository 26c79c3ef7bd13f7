use serde::{Deserialize, Serialize};

/// How an object may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Bytes fixed.
    #[default]
    Sealed,
    /// Written once at start, then fixed.
    Generated,
    /// Changes by design; identity fixed.
    Rotated,
    /// Content ignored; replacement watched.
    Opaque,
}

impl Class {
    /// The word in statements and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Generated => "generated",
            Self::Rotated => "rotated",
            Self::Opaque => "opaque",
        }
    }
}

/// The number a sensor knows a watched inode by. Slot 0 is never given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub u32);

/// An inode of this node, in the kernel's own numbers (`s_dev` as `MKDEV`, `i_ino`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InodeKey {
    /// `super_block.s_dev`, major in the upper bits (`MKDEV`: major << 20 | minor).
    pub dev: u32,
    /// `inode.i_ino`.
    pub ino: u64,
}

impl InodeKey {
    /// As `statx` tells it, which must have been asked for the number. On file systems that tell another device than `s_dev`
    /// (btrfs, overlayfs across layers) it is that one.
    #[must_use]
    pub const fn of(stat: &rustix::fs::Statx) -> Self {
        Self { dev: (stat.stx_dev_major << 20) | (stat.stx_dev_minor & 0xf_ffff), ino: stat.stx_ino }
    }
}

/// What a watched inode is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchKind {
    /// A file or symlink: content, attributes, and its own name.
    Object,
    /// A directory whose set of names is sealed: attributes and each name in it. What is created or moved below it
    /// inherits its slot, so that a file dropped there is watched from its first byte.
    ClosedDir,
    /// A directory watched only for the names of objects in it (they may be created again). Not inherited.
    Parent,
    /// A directory above an object: only its own renaming and what is mounted over it or taken away from it. Not
    /// inherited, and what is done to names in it costs nothing.
    Ancestor,
    /// A directory whose whole tree belongs to it: everything created below inherits its slot at creation.
    Tree,
}

/// A family of hooks: what stands or falls together, and what `blind_to` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Opening for write.
    Open,
    /// Writing through a descriptor, however old.
    Write,
    /// Changing the size.
    Truncate,
    /// Shared writable mappings.
    Mmap,
    /// Mode, owner, times.
    Attributes,
    /// Extended attributes and ACLs.
    Xattr,
    /// Memory of processes that run a sealed program.
    Memory,
    /// What processes that run a sealed program load as code, or execute next.
    Execute,
    /// ioctls and inode flags.
    Ioctl,
    /// create, link, symlink, mkdir, mknod, unlink, rmdir, rename.
    Names,
    /// Tags handed to new inodes and new mounts in the kernel.
    Inherit,
    /// Mounts over, under and above an object.
    Mounts,
    /// Who did it: the actor, taken at the moment.
    Actor,
    /// Events on file systems where the sensor cannot place its marks.
    Filesystem,
}

impl Family {
    /// The name in `blind_to` and `hooks`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Write => "write",
            Self::Truncate => "truncate",
            Self::Mmap => "mmap",
            Self::Attributes => "attributes",
            Self::Xattr => "xattr",
            Self::Memory => "memory",
            Self::Execute => "execute",
            Self::Ioctl => "ioctl",
            Self::Names => "names",
            Self::Inherit => "inherit",
            Self::Mounts => "mounts",
            Self::Actor => "actor",
            Self::Filesystem => "filesystem",
        }
    }
}
