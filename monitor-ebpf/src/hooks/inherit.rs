//! Family `inherit`: a directory's tag is handed to what comes to lie below it, at that moment and in the kernel. A
//! publish by mkdir, 50 files and one rename takes less than a millisecond: user space would be late.

use aya_log_ebpf::warn;

use super::{Context, pointer, tags};
use crate::kernel::{Ptr, layout, parent_inode_of};
use crate::rung::hook;

hook!("d_instantiate", d_instantiate);

/// Runs whenever a name gets its inode: at creation, and when it is looked up again after it left the cache.
#[inline(always)]
fn d_instantiate(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let inode = pointer(ctx, layout!(arg_instantiate_inode));
        if inode.is_null() {
            return;
        }
        let parent: Ptr = parent_inode_of(pointer(ctx, layout!(arg_instantiate_dentry)));
        if let Some(tag) = tags::tag_of(parent)
            && tags::hands_down(tag)
            && !tags::hand_down(tag, inode)
        {
            warn!(ctx, "no memory to hand the tag of slot {} down", tag.slot);
        }
    }
}
