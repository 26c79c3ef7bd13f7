//! The `lsm` rung: LSM programs, and tags in inode storage. (What a rung is, is said in `hooks`.)

use aya_ebpf::btf_maps::InodeStorage;
use aya_ebpf::macros::btf_map;
use monitor_ebpf::limits;
use monitor_ebpf::record::{InodeId, Request, Tag};

use crate::kernel::{Ptr, field, layout};

#[btf_map]
static TAGS: InodeStorage<Tag> = InodeStorage::new();

/// Not 0: a tagged inode has, or had, a number of that kind. Most files that nobody watches are of none, which takes a few instructions to
/// see, and to ask for their storage several times that. Set before an inode gets its tag. Never taken back, since a tag
/// goes with its inode and no program is told: the worst of it is that a file nobody watches is asked for a tag.
#[unsafe(no_mangle)]
static mut CROWDS: [u8; limits::CROWDS] = [0; limits::CROWDS];

/// The helper checks the type of its argument.
pub(crate) const TYPED_INODES: bool = true;

/// A program on the hook of that name, which hands its context to the function of that name.
macro_rules! hook {
    ($hook:literal, $name:ident) => {
        const _: () = {
            #[::aya_ebpf::macros::lsm(hook = $hook)]
            fn $name(ctx: ::aya_ebpf::programs::LsmContext) -> i32 {
                // SAFETY: the kernel's.
                let ctx = unsafe { $crate::hooks::Context::new(::aya_ebpf::EbpfContext::as_ptr(&ctx)) };
                self::$name(&ctx);
                0
            }
        };
    };
}
pub(crate) use hook;

/// The byte of an inode's kind.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
unsafe fn crowd_of(inode: Ptr) -> *mut u8 {
    // SAFETY: the caller's word; a kind is a place in the array.
    unsafe {
        let ino: u64 = field(inode, layout!(inode_i_ino));
        (&raw mut CROWDS).cast::<u8>().add(InodeId::crowd(ino as u32) as usize)
    }
}

/// Whether the inode may have a tag: what does not is told apart by its number.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
pub(crate) unsafe fn may_be_tagged(inode: Ptr) -> bool {
    // SAFETY: the caller's word. Another processor may set it meanwhile.
    unsafe { core::ptr::read_volatile(crowd_of(inode)) != 0 }
}

/// From now on the inode may have a tag.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
unsafe fn expect(inode: Ptr) {
    // SAFETY: the caller's word. Whoever else writes there writes the same.
    unsafe { core::ptr::write_volatile(crowd_of(inode), 1) };
}

/// The tag of an inode, or null.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
pub(crate) unsafe fn tag_of(inode: Ptr) -> *mut Tag {
    // SAFETY: the caller's word; the helper itself checks for null once more.
    unsafe {
        if may_be_tagged(inode) { TAGS.get_ptr_mut(inode.cast_mut().cast()) } else { core::ptr::null_mut() }
    }
}

/// Tags an inode that has no tag. False if the kernel had no memory for it.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
pub(crate) unsafe fn tag(inode: Ptr, tag: Tag) -> bool {
    let mut tag = tag;
    // SAFETY: the caller's word.
    unsafe {
        expect(inode);
        !TAGS.get_or_insert_ptr_mut(inode.cast_mut().cast(), Some(&mut tag)).is_null()
    }
}

/// The agent, which wants a tag for this inode, sets it itself, in its storage.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
pub(crate) unsafe fn grant(inode: Ptr, _request: *mut Request) -> bool {
    // SAFETY: the caller's word.
    unsafe { expect(inode) };
    true
}
