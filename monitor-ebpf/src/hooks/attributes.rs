//! Families `attributes`, `truncate` and `xattr`.

use monitor_ebpf::record::{HookId, Op};

use super::emit::{Act, emit};
use super::{Context, pointer, tags};
use crate::kernel::{Ptr, field, inode_of, layout};
use crate::rung::hook;

/// include/linux/fs.h.
const ATTR_SIZE: u32 = 8;

/// # Safety
/// `dentry` is a typed pointer.
#[inline(always)]
unsafe fn on_dentry(hook: HookId, op: Op, dentry: Ptr) {
    // SAFETY: the caller's word.
    unsafe {
        let inode = inode_of(dentry);
        let Some(tag) = tags::tag_of(inode) else { return };
        if tags::watches_content(tag) {
            emit(&Act::on_inode(hook, op, tag.slot, inode, dentry));
        }
    }
}

hook!("inode_setattr", inode_setattr);

#[inline(always)]
fn inode_setattr(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let dentry = pointer(ctx, layout!(arg_setattr_dentry));
        let valid: u32 = field(pointer(ctx, layout!(arg_setattr_attr)), layout!(iattr_ia_valid));
        let op = if valid & ATTR_SIZE == 0 { Op::Setattr } else { Op::Truncate };
        on_dentry(HookId::InodeSetattr, op, dentry);
    }
}

hook!("inode_setxattr", inode_setxattr);

#[inline(always)]
fn inode_setxattr(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe { on_dentry(HookId::InodeSetxattr, Op::Setxattr, pointer(ctx, layout!(arg_setxattr_dentry))) };
}

hook!("inode_removexattr", inode_removexattr);

#[inline(always)]
fn inode_removexattr(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        on_dentry(HookId::InodeRemovexattr, Op::Removexattr, pointer(ctx, layout!(arg_removexattr_dentry)))
    };
}

hook!("inode_set_acl", inode_set_acl);

#[inline(always)]
fn inode_set_acl(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe { on_dentry(HookId::InodeSetAcl, Op::Setxattr, pointer(ctx, layout!(arg_set_acl_dentry))) };
}

hook!("inode_remove_acl", inode_remove_acl);

#[inline(always)]
fn inode_remove_acl(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        on_dentry(HookId::InodeRemoveAcl, Op::Removexattr, pointer(ctx, layout!(arg_remove_acl_dentry)))
    };
}

hook!("inode_file_setattr", inode_file_setattr);

#[inline(always)]
fn inode_file_setattr(ctx: &Context) {
    // SAFETY: as above.
    unsafe {
        on_dentry(HookId::InodeFileSetattr, Op::FileSetattr, pointer(ctx, layout!(arg_file_setattr_dentry)));
    }
}
