//! Family `names`: what is done to the names in a directory.

use monitor_ebpf::record::{EVENT_REPLACES, HookId, Op};

use super::emit::{Act, emit, emit_rename};
use super::{Context, number, pointer, settled, tags};
use crate::kernel::{Ptr, field, inode_of, known, layout};
use crate::rung::hook;

/// include/uapi/linux/fs.h.
const RENAME_EXCHANGE: u64 = 2;

/// The slot a directory is watched under for its names, or 0.
///
/// # Safety
/// `dir` is a typed pointer.
#[inline(always)]
unsafe fn names_slot(dir: Ptr) -> u32 {
    // SAFETY: the caller's word.
    settled(match unsafe { tags::tag_of(dir) } {
        Some(tag) if tags::watches_names(tag) => tag.slot,
        _ => 0,
    })
}

/// As [`names_slot`], for the directory something is moved to. What is moved below a tagged directory gets its tag: a
/// rename has no `d_instantiate`.
///
/// # Safety
/// Both are typed pointers.
#[inline(always)]
unsafe fn moved_to(dir: Ptr, inode: Ptr) -> u32 {
    // SAFETY: the caller's word.
    let Some(tag) = (unsafe { tags::tag_of(dir) }) else { return settled(0) };
    if tags::hands_down(tag) {
        // SAFETY: as above.
        unsafe { tags::hand_down(tag, inode) };
        // SAFETY: as above.
        if unsafe { is_directory(inode) } {
            tags::catch_up();
        }
    }
    settled(if tags::watches_names(tag) { tag.slot } else { 0 })
}

/// Whether something may lie below it.
///
/// # Safety
/// `inode` is a typed pointer, or null.
#[inline(always)]
unsafe fn is_directory(inode: Ptr) -> bool {
    // include/uapi/linux/stat.h
    const S_IFMT: u16 = 0o170_000;
    const S_IFDIR: u16 = 0o040_000;
    // SAFETY: the caller's word, and not null.
    !inode.is_null()
        && (!known(layout!(inode_i_mode))
            || unsafe { field::<u16>(inode, layout!(inode_i_mode)) } & S_IFMT == S_IFDIR)
}

/// The slot of an inode, or 0.
///
/// # Safety
/// `inode` is a typed pointer, or null.
#[inline(always)]
unsafe fn slot_of(inode: Ptr) -> u32 {
    // SAFETY: the caller's word.
    settled(unsafe { tags::tag_of(inode) }.map_or(0, |tag| tag.slot))
}

/// A name is about to appear, or to go. `inode` is what it stands for, or null.
///
/// # Safety
/// All are typed pointers.
#[inline(always)]
unsafe fn on_name(hook: HookId, op: Op, dir: Ptr, dentry: Ptr, inode: Ptr) {
    // SAFETY: the caller's word.
    let (dir_slot, child_slot) = unsafe { (names_slot(dir), slot_of(inode)) };
    let slot = if dir_slot == 0 { child_slot } else { dir_slot };
    if slot != 0 {
        emit(&Act { hook, op, flags: 0, slot, child_slot, to_slot: 0, replaced_slot: 0, inode, dir, dentry });
    }
}

macro_rules! made {
    ($name:ident, $hook:literal, $id:ident, $op:ident, $dir:ident, $dentry:ident) => {
        hook!($hook, $name);

        #[inline(always)]
        fn $name(ctx: &Context) {
            // SAFETY: this hook's context; positions and offsets are this kernel's.
            unsafe {
                let (dir, dentry) = (pointer(ctx, layout!($dir)), pointer(ctx, layout!($dentry)));
                on_name(HookId::$id, Op::$op, dir, dentry, core::ptr::null());
            }
        }
    };
}

macro_rules! removed {
    ($name:ident, $hook:literal, $id:ident, $op:ident, $dir:ident, $dentry:ident) => {
        hook!($hook, $name);

        #[inline(always)]
        fn $name(ctx: &Context) {
            // SAFETY: this hook's context; positions and offsets are this kernel's.
            unsafe {
                let (dir, dentry) = (pointer(ctx, layout!($dir)), pointer(ctx, layout!($dentry)));
                on_name(HookId::$id, Op::$op, dir, dentry, inode_of(dentry));
            }
        }
    };
}

made!(inode_create, "inode_create", InodeCreate, Create, arg_create_dir, arg_create_dentry);
made!(inode_symlink, "inode_symlink", InodeSymlink, Symlink, arg_symlink_dir, arg_symlink_dentry);
made!(inode_mkdir, "inode_mkdir", InodeMkdir, Mkdir, arg_mkdir_dir, arg_mkdir_dentry);
made!(inode_mknod, "inode_mknod", InodeMknod, Mknod, arg_mknod_dir, arg_mknod_dentry);
removed!(inode_unlink, "inode_unlink", InodeUnlink, Unlink, arg_unlink_dir, arg_unlink_dentry);
removed!(inode_rmdir, "inode_rmdir", InodeRmdir, Rmdir, arg_rmdir_dir, arg_rmdir_dentry);

hook!("inode_link", inode_link);

#[inline(always)]
fn inode_link(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let old = pointer(ctx, layout!(arg_link_old_dentry));
        let (dir, new) = (pointer(ctx, layout!(arg_link_dir)), pointer(ctx, layout!(arg_link_new_dentry)));
        on_name(HookId::InodeLink, Op::Link, dir, new, inode_of(old));
    }
}

hook!("inode_rename", inode_rename);

#[inline(always)]
fn inode_rename(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let old_dir = pointer(ctx, layout!(arg_rename_old_dir));
        let new_dir = pointer(ctx, layout!(arg_rename_new_dir));
        let old = pointer(ctx, layout!(arg_rename_old_dentry));
        let new = pointer(ctx, layout!(arg_rename_new_dentry));
        let inode = inode_of(old);
        let target = inode_of(new);

        let to_slot = moved_to(new_dir, inode);
        if known(layout!(arg_rename_flags)) && number(ctx, layout!(arg_rename_flags)) & RENAME_EXCHANGE != 0 {
            // Told once: what it replaces comes the other way. (As an LSM hook it is called once for each way.)
            moved_to(old_dir, target);
        }
        let from_slot = names_slot(old_dir);
        let (child_slot, replaced_slot) = (slot_of(inode), slot_of(target));
        let slot = if from_slot != 0 {
            from_slot
        } else if to_slot != 0 {
            to_slot
        } else if child_slot != 0 {
            child_slot
        } else {
            replaced_slot
        };
        if slot == 0 {
            return;
        }
        let flags = if target.is_null() { 0 } else { EVENT_REPLACES };
        let act = Act {
            hook: HookId::InodeRename,
            op: Op::Rename,
            flags,
            slot,
            child_slot,
            to_slot,
            replaced_slot,
            inode,
            dir: old_dir,
            dentry: old,
        };
        emit_rename(&act, new);
    }
}
