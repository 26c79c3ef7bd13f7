//! The `fentry` rung: tracing programs on the `security_*` functions, and tags in a hash map, for kernels that do not have
//! `bpf` among their security modules. (What a rung is, is said in `hooks`.)
//!
//! There is no inode storage here, not even as a map nobody writes to: without the BPF security module its place in the
//! inode is another module's.

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::btf_map;
use monitor_ebpf::limits;
use monitor_ebpf::record::{InodeId, REQUEST_DONE, REQUEST_REFUSED, Request, Tag};

use crate::hooks::tags::{MMAPABLE, control};
use crate::hooks::{Context, pointer};
use crate::kernel::{Ptr, add, field, inode_of, layout};

/// Room is taken as it is needed: most nodes need little of it.
#[btf_map]
static TAGS: HashMap<InodeId, Tag, { limits::TAGS }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// How many tagged inodes have a number of each kind. A file that nobody watches is mostly of a kind that none of them has, which is known
/// without asking for what an inode is known by, and without a look-up in a hash. Counted before a tag is set and after it is gone, so that it may be too
/// much and is never too little.
#[btf_map]
static CROWDS: Array<u64, { limits::CROWDS }, MMAPABLE> = Array::new();
#[btf_map]
static REQUEST: Array<Request, 1, MMAPABLE> = Array::new();

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

/// Whether the inode may be tagged.
///
/// # Safety
/// `inode` is a typed pointer and not null.
#[inline(always)]
unsafe fn is_crowded(inode: Ptr) -> bool {
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
    if !unsafe { is_crowded(inode) } {
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

hook!("path_notify", path_notify);

/// The agent is about to pin an inode by an inotify watch: the tag that it has asked for is set here, because only here
/// all of what the inode is known by can be seen.
#[inline(always)]
fn path_notify(ctx: &Context) {
    let Some(request) = REQUEST.get_ptr_mut(0) else { return };
    // SAFETY: a pointer into the array, never freed; the agent writes it only while no call of its own is under way. This
    // hook's context; positions and offsets are this kernel's.
    unsafe {
        if (*request).task != bpf_get_current_pid_tgid() {
            return;
        }
        let dentry: Ptr = field(pointer(ctx, layout!(arg_path_notify_path)), layout!(path_dentry));
        let inode = inode_of(dentry);
        if inode.is_null() {
            return;
        }
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
        let answer = if done { REQUEST_DONE } else { REQUEST_REFUSED };
        core::ptr::write_volatile(&raw mut (*request).answer, answer);
    }
}

hook!("inode_free", inode_free);

/// The inode leaves the cache, as its storage would.
#[inline(always)]
fn inode_free(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's. The control entry is never freed.
    unsafe {
        let inode = pointer(ctx, layout!(arg_inode_free_inode));
        if !is_crowded(inode) {
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
