//! The `fentry` rung: tracing programs on the `security_*` functions, and tags in a hash map, for kernels that do not have
//! `bpf` among their security modules. (What a rung is, is said in `hooks`.)
//!
//! There is no inode storage here, not even as a map nobody writes to: without the BPF security module its place in the
//! inode is another module's.

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use monitor_ebpf::limits;
use monitor_ebpf::record::{InodeId, Request, Tag};

use crate::hooks::tags::{MMAPABLE, control};
use crate::hooks::{Context, pointer};
use crate::kernel::{Ptr, add, field, layout};

/// Room is taken as it is needed: most nodes need little of it.
#[btf_map]
static TAGS: HashMap<InodeId, Tag, { limits::TAGS }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// How many tagged inodes have a number of each kind. A file that nobody watches is mostly of a kind that none of them has, which is known
/// without asking for what an inode is known by, and without a look-up in a hash. Counted before a tag is set and after it is gone, so that it may be too
/// much and is never too little.
#[btf_map]
static CROWDS: Array<u64, { limits::CROWDS }, MMAPABLE> = Array::new();

/// Inodes are known by what stands in them.
pub(crate) const TYPED_INODES: bool = false;

/// A program on the hook of that name, which hands its context to the function of that name.
macro_rules! hook {
    ($hook:literal, $name:ident) => {
        const _: () = {
            #[::aya_ebpf::macros::fentry(function = $hook)]
            fn $name(ctx: ::aya_ebpf::programs::FEntryContext) -> i32 {
                // SAFETY: the kernel's.
                let ctx = unsafe { $crate::hooks::Context::new(::aya_ebpf::EbpfContext::as_ptr(&ctx)) };
                self::$name(&ctx);
                0
            }
        };
    };
}
pub(crate) use hook;

/// What an inode is known by here.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
unsafe fn id_of(inode: Ptr) -> InodeId {
    // SAFETY: the caller's word, and walked from there.
    unsafe {
        let ino: u64 = field(inode, layout!(inode_i_ino));
        InodeId {
            address: inode as u64,
            ino: ino as u32,
            generation: field(inode, layout!(inode_i_generation)),
        }
    }
}

/// How many tagged inodes have a number of this one's kind.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
unsafe fn crowd_of(inode: Ptr) -> Option<*mut u64> {
    // SAFETY: the caller's word.
    let ino: u64 = unsafe { field(inode, layout!(inode_i_ino)) };
    CROWDS.get_ptr_mut(InodeId::crowd(ino as u32))
}

/// Whether the inode may have a tag: what does not is told apart by its number.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
pub(crate) unsafe fn may_be_tagged(inode: Ptr) -> bool {
    // SAFETY: the caller's word; a pointer into the array, never freed, where another CPU may count meanwhile.
    unsafe { crowd_of(inode).is_none_or(|count| core::ptr::read_volatile(count) != 0) }
}

/// One more, or with -1 one less.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
unsafe fn count(inode: Ptr, by: i64) {
    // SAFETY: the caller's word; a pointer into the array, never freed.
    unsafe {
        if let Some(count) = crowd_of(inode) {
            add(count, by as u64);
        }
    }
}

/// The tag of an inode, or null.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
pub(crate) unsafe fn tag_of(inode: Ptr) -> *mut Tag {
    // SAFETY: the caller's word, here and below.
    if !unsafe { may_be_tagged(inode) } {
        return core::ptr::null_mut();
    }
    // SAFETY: as above.
    TAGS.get_ptr_mut(unsafe { id_of(inode) }).unwrap_or(core::ptr::null_mut())
}

/// Tags an inode that has no tag. False if the map is full, or the kernel had no memory for it.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
pub(crate) unsafe fn tag(inode: Ptr, tag: Tag) -> bool {
    /// `EEXIST`: another CPU was first.
    const EXISTS: i32 = -17;
    // SAFETY: the caller's word.
    let inserted = unsafe {
        count(inode, 1);
        let inserted = TAGS.insert(id_of(inode), tag, u64::from(BPF_NOEXIST));
        if inserted.is_err() {
            count(inode, -1);
        }
        inserted
    };
    matches!(inserted, Ok(()) | Err(EXISTS))
}

/// Tags the inode as the agent wants it, whatever tag it has, and says what it is known by. False if the map is full, or the kernel had no
/// memory for it.
///
/// # Safety
/// `inode` is a typed pointer and not null, and `request` points into a map's value.
#[inline(always)]
pub(crate) unsafe fn grant(inode: Ptr, request: *mut Request) -> bool {
    // SAFETY: the caller's word.
    unsafe {
        let (id, tag) = (id_of(inode), (*request).tag);
        let is_new = TAGS.get_ptr(id).is_none();
        if is_new {
            count(inode, 1);
        }
        let done = TAGS.insert(id, tag, u64::from(BPF_ANY)).is_ok();
        if is_new && !done {
            count(inode, -1);
        }
        (*request).inode = id;
        done
    }
}

hook!("inode_free", inode_free);

/// The inode leaves the cache, as its storage would.
#[inline(always)]
fn inode_free(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's. The control entry is never freed.
    unsafe {
        let inode = pointer(ctx, layout!(arg_inode_free_inode));
        if !may_be_tagged(inode) {
            return;
        }
        let id = id_of(inode);
        if TAGS.get_ptr(id).is_some() && TAGS.remove(id).is_ok() {
            count(inode, -1);
            if let Some(control) = control() {
                add(&raw mut (*control).released, 1);
            }
        }
    }
}
