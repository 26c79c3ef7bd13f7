//! Family `mounts`, and inheritance across them: a volume is often a file system of its own, mounted below a tagged
//! directory.
//!
//! Each call that changes a mount table is told of, whatever it concerns: that something lies over an object, or no longer
//! does, can also follow from a mount that is moved, whose place no hook sees. A hook comes before the act, and what a
//! mount did cannot be seen from every namespace: the call's end ([`super::calls`]) says whether it did anything.

use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::btf_map;
use monitor_ebpf::limits;
use monitor_ebpf::record::{EVENT_ONE_MOUNT, HookId, Op, Tag};

use super::calls::Place;
use super::emit::{Act, emit};
use super::{Context, calls, number, pointer, tags};
use crate::kernel::{Ptr, field, inode_of, known, layout, read_ptr};
use crate::rung::hook;

// include/uapi/linux/mount.h
const MS_REMOUNT: u64 = 32;
const MS_BIND: u64 = 4096;
const MS_MOVE: u64 = 8192;
/// Changes a mount without covering its mount point, and nothing that is seen through it.
const MS_PROPAGATION: u64 = (1 << 17) | (1 << 18) | (1 << 19) | (1 << 20);

/// Tasks between `sb_mount` on a tagged mount point and the `sb_kern_mount` that follows.
#[btf_map]
static MOUNTERS: LruHashMap<u64, Tag, { limits::MOUNTERS }> = LruHashMap::new();

/// Tells of a call, on a tagged inode or not.
///
/// # Safety
/// `dentry` is a typed pointer and not null.
#[inline(always)]
unsafe fn on_mount(hook: HookId, op: Op, flags: u32, dentry: Ptr, place: Place) {
    // SAFETY: the caller's word.
    unsafe {
        let inode = inode_of(dentry);
        let slot = super::settled(tags::tag_of(inode).map_or(0, |tag| tag.slot));
        let flags = flags | calls::begin(place);
        emit(&Act { flags, ..Act::on_inode(hook, op, slot, inode, dentry) });
    }
}

hook!("sb_mount", sb_mount);

#[inline(always)]
fn sb_mount(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let flags = number(ctx, layout!(arg_mount_flags));
        let path = pointer(ctx, layout!(arg_mount_path));
        let dentry: Ptr = field(path, layout!(path_dentry));
        if flags & MS_REMOUNT != 0 {
            let one = if flags & MS_BIND == 0 { 0 } else { EVENT_ONE_MOUNT };
            on_mount(HookId::SbMount, Op::Remount, one, dentry, Place::NONE);
            return;
        }
        if flags & MS_PROPAGATION != 0 {
            return;
        }
        let place = Place::of(path).moved(flags & MS_MOVE != 0);
        on_mount(HookId::SbMount, Op::Mount, 0, dentry, place);
        let task = bpf_get_current_pid_tgid();
        // A note of an earlier call that failed.
        let _ = MOUNTERS.remove(task);
        if flags & (MS_BIND | MS_MOVE) != 0 {
            return;
        }
        // Looked up once more: kept across all of the above, the compiler would carry half of it undefined.
        if let Some(tag) = tags::tag_of(inode_of(dentry))
            && tags::hands_down(tag)
        {
            let _ = MOUNTERS.insert(task, tag, 0);
        }
    }
}

hook!("sb_kern_mount", sb_kern_mount);

#[inline(always)]
fn sb_kern_mount(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let task = bpf_get_current_pid_tgid();
        let Some(tag) = MOUNTERS.get(task).copied() else { return };
        let _ = MOUNTERS.remove(task);
        let sb = pointer(ctx, layout!(arg_kern_mount_sb));
        if known(layout!(sb_s_active)) {
            // A file system that is mounted elsewhere already is not this volume's own: its whole tree would be tagged.
            // A new one has one holder, or two where the kernel makes the mount before it calls the hook (7.x).
            let active: u32 = field(sb, layout!(sb_s_active));
            if active > 2 {
                return;
            }
        }
        let root: Ptr = field(sb, layout!(sb_s_root));
        if root.is_null() {
            return;
        }
        tags::hand_down(tag, inode_of(root));
    }
}

/// A mount that is made anew lies nowhere yet, and is its own parent.
#[inline(always)]
fn is_attached(mnt: Ptr) -> bool {
    let mount = mnt.wrapping_byte_sub(layout!(mount_mnt) as usize);
    let parent = read_ptr(mount, layout!(mount_mnt_parent));
    !parent.is_null() && parent != mount
}

hook!("move_mount", move_mount);

#[inline(always)]
fn move_mount(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let path = pointer(ctx, layout!(arg_move_mount_to));
        let to: Ptr = field(path, layout!(path_dentry));
        let from: Ptr = field(pointer(ctx, layout!(arg_move_mount_from)), layout!(path_mnt));
        on_mount(HookId::MoveMount, Op::Mount, 0, to, Place::of(path).moved(is_attached(from)));
        if let Some(tag) = tags::tag_of(inode_of(to))
            && tags::hands_down(tag)
        {
            let from: Ptr = field(pointer(ctx, layout!(arg_move_mount_from)), layout!(path_dentry));
            tags::hand_down(tag, inode_of(from));
        }
    }
}

hook!("sb_umount", sb_umount);

/// Told of the root of what is unmounted: of what lay over an object since it lies there that root is watched.
#[inline(always)]
fn sb_umount(ctx: &Context) {
    // SAFETY: as above.
    unsafe {
        let root: Ptr = field(pointer(ctx, layout!(arg_umount_mnt)), layout!(vfsmount_mnt_root));
        if !root.is_null() {
            on_mount(HookId::SbUmount, Op::Umount, 0, root, Place::NONE);
        }
    }
}

hook!("sb_pivotroot", sb_pivotroot);

/// The old root comes to lie over `old_path`.
#[inline(always)]
fn sb_pivotroot(ctx: &Context) {
    // SAFETY: as above.
    unsafe {
        let path = pointer(ctx, layout!(arg_pivotroot_old));
        let over: Ptr = field(path, layout!(path_dentry));
        on_mount(HookId::SbPivotroot, Op::PivotRoot, 0, over, Place::of(path));
    }
}

hook!("sb_remount", sb_remount);

#[inline(always)]
fn sb_remount(ctx: &Context) {
    // SAFETY: as above.
    unsafe {
        // Within mount(2) it was told by `sb_mount`, with the mount point.
        if calls::is_under_way() {
            return;
        }
        let root: Ptr = field(pointer(ctx, layout!(arg_remount_sb)), layout!(sb_s_root));
        if root.is_null() {
            return;
        }
        let inode = inode_of(root);
        let slot = super::settled(tags::tag_of(inode).map_or(0, |tag| tag.slot));
        emit(&Act::on_inode(HookId::SbRemount, Op::Remount, slot, inode, root));
    }
}
