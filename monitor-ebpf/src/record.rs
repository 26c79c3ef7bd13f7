//! What the programs write and the agent reads. All of it is `repr(C)` without padding, and each bit pattern is valid:
//! numbers that stand for words are `u32` and are checked by `TryFrom` in the agent.

use crate::limits;

/// `Event::kind` of a record that is an [`Event`] alone.
pub const KIND_EVENT: u32 = 1;
/// `Event::kind` of a record that is a [`RenameEvent`].
pub const KIND_RENAME: u32 = 2;

/// `CallEnd::kind`.
pub const KIND_CALL_END: u32 = 3;

/// The hook that wrote a record. The names are the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum HookId {
    FileOpen = 1,
    FilePermission = 2,
    MmapFile = 3,
    FileMprotect = 4,
    InodeSetattr = 5,
    InodeSetxattr = 6,
    InodeRemovexattr = 7,
    InodeSetAcl = 8,
    InodeRemoveAcl = 9,
    InodeCreate = 10,
    InodeLink = 11,
    InodeSymlink = 12,
    InodeMkdir = 13,
    InodeMknod = 14,
    InodeUnlink = 15,
    InodeRmdir = 16,
    InodeRename = 17,
    DInstantiate = 18,
    SbMount = 19,
    SbKernMount = 20,
    MoveMount = 21,
    SbUmount = 22,
    SbPivotroot = 23,
    SbRemount = 24,
    /// No hook: the system call's end.
    MountSetattr = 25,
    FileIoctl = 26,
    FileIoctlCompat = 27,
    InodeFileSetattr = 28,
    PtraceAccessCheck = 29,
    /// `mmap_file`, of what becomes code.
    MmapCode = 30,
    /// `file_mprotect`, likewise.
    MprotectCode = 31,
    BprmCheckSecurity = 32,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    Open = 1,
    Write = 2,
    Mmap = 3,
    Setattr = 4,
    Truncate = 5,
    Setxattr = 6,
    Removexattr = 7,
    Create = 8,
    Link = 9,
    Symlink = 10,
    Mkdir = 11,
    Mknod = 12,
    Unlink = 13,
    Rmdir = 14,
    Rename = 15,
    Mount = 16,
    Umount = 17,
    PivotRoot = 18,
    Remount = 19,
    MountSetattr = 20,
    Ioctl = 21,
    FileSetattr = 22,
    Ptrace = 23,
    Execute = 24,
}

macro_rules! from_number {
    ($type:ident: $($variant:ident)*) => {
        impl TryFrom<u32> for $type {
            type Error = u32;

            fn try_from(number: u32) -> Result<Self, u32> {
                $(if number == Self::$variant as u32 { return Ok(Self::$variant); })*
                Err(number)
            }
        }
    };
}

from_number!(HookId: FileOpen FilePermission MmapFile FileMprotect InodeSetattr InodeSetxattr InodeRemovexattr
    InodeSetAcl InodeRemoveAcl InodeCreate InodeLink InodeSymlink InodeMkdir InodeMknod InodeUnlink InodeRmdir
    InodeRename DInstantiate SbMount SbKernMount MoveMount SbUmount SbPivotroot SbRemount MountSetattr FileIoctl
    FileIoctlCompat InodeFileSetattr PtraceAccessCheck MmapCode MprotectCode BprmCheckSecurity);
from_number!(Op: Open Write Mmap Setattr Truncate Setxattr Removexattr Create Link Symlink Mkdir Mknod Unlink Rmdir
    Rename Mount Umount PivotRoot Remount MountSetattr Ioctl FileSetattr Ptrace Execute);

/// `Tag::kind`: a file or symlink.
pub const TAG_OBJECT: u8 = 1;
/// `Tag::kind`: a directory whose names are sealed; hands its tag down.
pub const TAG_CLOSED_DIR: u8 = 2;
/// `Tag::kind`: a directory watched for names only.
pub const TAG_PARENT: u8 = 3;
/// `Tag::kind`: a directory whose tree belongs to it; hands its tag down.
pub const TAG_TREE: u8 = 4;
/// `Tag::kind`: a directory above an object: its own renaming, and mounts on it.
pub const TAG_ANCESTOR: u8 = 5;
/// `Tag::flags`: handed down by the kernel, not set by the agent.
pub const TAG_INHERITED: u8 = 1;

/// What an inode carries in its storage. It counts only while `generation` is that of its slot.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    pub slot: u32,
    pub generation: u16,
    pub kind: u8,
    pub flags: u8,
}

/// `Slot::flags`: opening for reading is counted.
pub const SLOT_COUNT_READS: u32 = 1;

/// One entry of the slots array, which both sides map: it cannot overflow, so no loss of records hides a change.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Events since the array was made, recorded or not.
    pub events: u64,
    /// Opened for reading, while `SLOT_COUNT_READS` was set.
    pub reads: u64,
    /// Not 0: something happened since the agent wrote 0.
    pub dirty: u32,
    /// `SLOT_*`.
    pub flags: u32,
    /// Tags of another generation are left-overs. 0 matches no tag.
    pub generation: u32,
    /// Keeps the size a power of two.
    pub reserved: u32,
}

/// The one entry of the control array.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// Records that found the ring full.
    pub lost: u64,
    /// Inheritance that found no memory.
    pub untagged: u64,
    /// Tags that went with their inodes, where that is done by a program.
    pub released: u64,
    /// How many slots have `SLOT_COUNT_READS`.
    pub count_reads: u32,
    /// Not 0: a directory came under a tag, and what lies below may not have it yet. Each one adds; the agent, once it has
    /// looked below them, sets it back to 0 if none was added since.
    pub catching_up: u32,
}

/// What an inode is known by where there is no inode storage. Two inodes that are in the cache at one time never have one address; number
/// and device they may share, as those of two btrfs subvolumes do.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InodeId {
    /// Where the kernel has it: meaningless to whoever is not in the kernel.
    pub address: u64,
    /// The lower half of `i_ino`: with the generation it tells the inode from one that had its address before, and went unseen.
    pub ino: u32,
    /// `i_generation`.
    pub generation: u32,
}

impl InodeId {
    /// Which of [`CROWDS`](limits::CROWDS) kinds that [`Self::ino`] is of: its upper bits after a multiplication by what the golden
    /// ratio lacks to one (`GOLDEN_RATIO_32` in the kernel's include/linux/hash.h). Not the address's: the verifier allows no multiplication of it.
    #[must_use]
    pub const fn crowd(ino: u32) -> u32 {
        ino.wrapping_mul(0x61c8_8647) >> (u32::BITS - limits::CROWD_BITS)
    }
}

/// What is known of an executable by the address of its inode, where the current task's cannot be reached by a pointer
/// that the verifier trusts. The address may be another inode's by now: number and device must be the same.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    pub tag: Tag,
    /// `i_ino`.
    pub ino: u64,
    /// `s_dev` of its super block.
    pub dev: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

/// `Request::answer`: the inode is tagged, or, where that is done by way of its storage, may be.
pub const REQUEST_DONE: u32 = 1;
/// `Request::answer`: there was no room for the tag.
pub const REQUEST_REFUSED: u32 = 2;

/// The one entry by which the agent asks for a tag.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which thread asks: process number in the upper half, thread number in the lower. 0: nobody.
    pub task: u64,
    pub tag: Tag,
    /// Filled in with the answer where there is no inode storage.
    pub inode: InodeId,
    /// 0, until it is answered by `REQUEST_*`.
    pub answer: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

/// `Actor::flags`: the path of the executable goes on above what was taken.
pub const ACTOR_EXE_TRUNCATED: u32 = 1;
/// `Actor::flags`: the arguments go on after what was taken.
pub const ACTOR_ARGV_TRUNCATED: u32 = 2;
/// `Actor::flags`: the arguments could not be read without sleeping.
pub const ACTOR_ARGV_UNREADABLE: u32 = 4;
/// `Actor::flags`: the path of the cgroup goes on above what was taken.
pub const ACTOR_CGROUP_TRUNCATED: u32 = 8;
/// `Actor::flags`: a kernel thread (no address space).
pub const ACTOR_KTHREAD: u32 = 16;
/// `Actor::flags`: a thread by which the kernel carries out what its process submitted; it has the process's name here.
pub const ACTOR_IO_WORKER: u32 = 64;
/// `Actor::flags`: being filled at this moment.
pub const ACTOR_INCOMPLETE: u32 = 32;

/// Who acted.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Actor {
    pub start_boottime: u64,
    pub cgroup_id: u64,
    pub exe_ino: u64,
    pub exe_dev: u32,
    pub pid: u32,
    pub tgid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub mount_ns: u32,
    /// `ACTOR_*`.
    pub flags: u32,
    /// How much of `exe` counts: names from the last to the first, each with its NUL.
    pub exe_len: u32,
    /// How much of `argv` counts.
    pub argv_len: u32,
    /// How much of `cgroup` counts: as `exe`.
    pub cgroup_len: u32,
    pub comm: [u8; limits::COMM],
    pub exe: [u8; limits::EXE],
    pub argv: [u8; limits::ARGV],
    pub cgroup: [u8; limits::CGROUP],
}

/// `Event::flags`: the path goes on above what was taken.
pub const EVENT_PATH_TRUNCATED: u32 = 1;
/// `Event::flags`: as above, for `RenameEvent::to_path`.
pub const EVENT_TO_PATH_TRUNCATED: u32 = 2;
/// `Event::flags`: a rename to a name that stands for another inode.
pub const EVENT_REPLACES: u32 = 4;
/// `Event::flags`: `path` is what the caller named, as it named it, and not walked.
pub const EVENT_PATH_AS_NAMED: u32 = 8;
/// `Event::flags`: only one mount was changed, not its file system.
pub const EVENT_ONE_MOUNT: u32 = 16;
/// `Event::flags`: a [`CallEnd`] of the same thread is to follow.
pub const EVENT_ENDS: u32 = 32;
/// `Event::flags`: the inode acted upon has no name left, or never had one.
pub const EVENT_UNLINKED: u32 = 64;

/// One act on a tagged inode.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// `KIND_*`.
    pub kind: u32,
    /// [`HookId`].
    pub hook: u32,
    /// [`Op`].
    pub op: u32,
    /// `EVENT_*`.
    pub flags: u32,
    /// Nanoseconds since boot.
    pub time: u64,
    /// How many events its slot had, this one among them.
    pub number: u64,
    /// The directory's slot for names, if it has one; else that of the inode. 0 for mounts alone, where nothing that is
    /// known to be concerned is tagged.
    pub slot: u32,
    /// For names: the slot of the inode named, or 0.
    pub child_slot: u32,
    /// For rename: the slot of the directory moved to, or 0.
    pub to_slot: u32,
    /// For rename: the slot of the inode replaced, or 0.
    pub replaced_slot: u32,
    /// The inode acted upon, 0 where there is none yet.
    pub ino: u64,
    /// `super_block.s_dev` of it.
    pub dev: u32,
    /// How much of `path` counts: names from the last to the first, each with its NUL.
    pub path_len: u32,
    /// How much of `RenameEvent::to_path` counts.
    pub to_path_len: u32,
    /// Keeps `actor` aligned.
    pub reserved: u32,
    pub actor: Actor,
    /// Of the thing acted upon, in its file system.
    pub path: [u8; limits::PATH],
}

/// A rename: with the path moved to.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RenameEvent {
    pub event: Event,
    pub to_path: [u8; limits::PATH],
}

/// What became of a call that a hook told of at its beginning.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallEnd {
    /// `KIND_CALL_END`.
    pub kind: u32,
    /// The thread.
    pub pid: u32,
    /// Not 0: the call failed.
    pub failed: u32,
    /// Not 0: what was laid over a directory or file is that directory or file itself.
    pub same: u32,
    /// Inode number of the root of what was moved there; 0 if nothing was, or that is not known.
    pub ino: u64,
    /// `s_dev` of its file system.
    pub dev: u32,
    pub reserved: u32,
}

// No padding: the sizes are the sums of the fields.
const _: () = assert!(size_of::<Tag>() == 8);
const _: () = assert!(size_of::<Slot>() == 32);
const _: () = assert!(size_of::<Control>() == 32);
const _: () = assert!(size_of::<InodeId>() == 16);
const _: () = assert!(size_of::<Request>() == 40);
const _: () = assert!(size_of::<Program>() == 24);
const _: () = assert!(
    size_of::<Actor>() == 3 * 8 + 10 * 4 + limits::COMM + limits::EXE + limits::ARGV + limits::CGROUP
);
const _: () =
    assert!(size_of::<Event>() == 4 * 4 + 2 * 8 + 4 * 4 + 8 + 4 * 4 + size_of::<Actor>() + limits::PATH);
const _: () = assert!(size_of::<CallEnd>() == 32);
const _: () = assert!(size_of::<RenameEvent>() == size_of::<Event>() + limits::PATH);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, no padding (asserted above), and every bit pattern is a valid value.
    unsafe impl aya::Pod for super::Tag {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Slot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Control {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::InodeId {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Request {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Actor {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Event {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RenameEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CallEnd {}
    // SAFETY: only `u32` fields.
    unsafe impl aya::Pod for crate::Layout {}
}

#[cfg(test)]
mod tests {
    use super::{HookId, Op};

    #[test]
    fn numbers_are_checked() {
        for number in 0..64 {
            assert_eq!(
                HookId::try_from(number).map_or(0, |hook| hook as u32),
                if (1..=32).contains(&number) { number } else { 0 }
            );
            assert_eq!(
                Op::try_from(number).map_or(0, |op| op as u32),
                if (1..=24).contains(&number) { number } else { 0 }
            );
        }
    }
}
