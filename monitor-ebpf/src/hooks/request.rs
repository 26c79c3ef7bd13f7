//! The agent is about to pin an inode by an inotify watch, and has said which tag it is to get. Only here all is seen that the inode is
//! known by in the kernel.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::btf_map;
use monitor_ebpf::record::{REQUEST_DONE, REQUEST_REFUSED, Request};

use super::tags::MMAPABLE;
use super::{Context, pointer};
use crate::kernel::{Ptr, field, inode_of, layout};
use crate::rung::{self, hook};

#[btf_map]
static REQUEST: Array<Request, 1, MMAPABLE> = Array::new();

hook!("path_notify", path_notify);

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
        let answer = if rung::grant(inode, request) { REQUEST_DONE } else { REQUEST_REFUSED };
        core::ptr::write_volatile(&raw mut (*request).answer, answer);
    }
}
