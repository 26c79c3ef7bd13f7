//! The `lsm` rung: LSM programs, and tags in inode storage. (What a rung is, is said in `hooks`.)

use aya_ebpf::btf_maps::InodeStorage;
use aya_ebpf::macros::btf_map;
use monitor_ebpf::record::Tag;

use crate::kernel::Ptr;

#[btf_map]
static TAGS: InodeStorage<Tag> = InodeStorage::new();

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

/// The tag of an inode, or null. Costs an inode without storage one pointer test.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
pub(crate) unsafe fn tag_of(inode: Ptr) -> *mut Tag {
    // SAFETY: the caller's word; the helper itself checks for null once more.
    unsafe { TAGS.get_ptr_mut(inode.cast_mut().cast()) }
}

/// Tags an inode that has no tag. False if the kernel had no memory for it.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
pub(crate) unsafe fn tag(inode: Ptr, tag: Tag) -> bool {
    let mut tag = tag;
    // SAFETY: the caller's word.
    !unsafe { TAGS.get_or_insert_ptr_mut(inode.cast_mut().cast(), Some(&mut tag)) }.is_null()
}
