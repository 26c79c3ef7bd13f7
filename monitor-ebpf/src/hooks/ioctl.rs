//! Family `ioctl`: what changes a file, or what it is made of, without passing a hook for writing.

use monitor_ebpf::record::{HookId, Op};

use super::emit::{Act, emit};
use super::{Context, number, pointer, tags};
use crate::kernel::{Ptr, field, layout};
use crate::rung::hook;

/// Commands that only ask, or change the descriptor alone. All others are told: most of what changes a file this way is
/// known to its file system only, and newer kernels know more.
#[inline(always)]
fn is_harmless(cmd: u32) -> bool {
    matches!(
        cmd,
        // include/uapi/asm-generic/ioctls.h: FIOCLEX, FIONCLEX, FIONBIO, FIOASYNC, FIONREAD, FIOQSIZE, and what asks
        // whether this is a terminal: TCGETS, TCGETA, TIOCGPGRP, TIOCGWINSZ, TCGETS2.
        0x5451 | 0x5450 | 0x5421 | 0x5452 | 0x541b | 0x5460 | 0x5401 | 0x5405 | 0x540f | 0x5413 | 0x802c_542a
        // include/uapi/linux/fs.h: FIBMAP, FIGETBSZ, FS_IOC_GETFLAGS and GETVERSION (both widths), FIEMAP, FSGETXATTR,
        // GETFSLABEL, GETFSUUID, GETFSSYSFSPATH.
        | 1 | 2 | 0x8008_6601 | 0x8004_6601 | 0x8008_7601 | 0x8004_7601 | 0xc020_660b | 0x801c_581f | 0x8100_9431
        | 0x8011_1500 | 0x8081_1501
        // include/uapi/linux/fs.h: FIDEDUPERANGE shares equal bytes and cannot change them.
        | 0xc018_9436
        // include/uapi/linux/fsverity.h and fscrypt.h: MEASURE_VERITY, READ_VERITY_METADATA, GET_ENCRYPTION_POLICY and its
        // _EX, GET_ENCRYPTION_NONCE, GET_ENCRYPTION_KEY_STATUS.
        | 0xc004_6686 | 0xc028_6687 | 0x400c_6615 | 0xc009_6616 | 0x8010_661b | 0xc080_661a
        // include/uapi/linux/fsmap.h: GETFSMAP; ext4.h: GETVERSION, GETRSVSZ, GETSTATE, GET_ES_CACHE.
        | 0xc0c0_583b | 0x8008_6603 | 0x8008_6605 | 0x4004_6629 | 0xc020_662a
        // include/uapi/linux/fs.h, of block devices: BLKROGET, BLKGETSIZE, BLKSSZGET, BLKBSZGET, BLKGETSIZE64, BLKPBSZGET.
        | 0x125e | 0x1260 | 0x1268 | 0x8008_1270 | 0x8008_1272 | 0x127b
    )
}

/// Commands that take a name in a directory away without a hook for names: include/uapi/linux/btrfs.h, SNAP_DESTROY and its V2.
#[inline(always)]
fn takes_a_name(cmd: u32) -> bool {
    matches!(cmd, 0x5000_940f | 0x5000_943f)
}

/// # Safety
/// `file` is a typed pointer.
#[inline(always)]
unsafe fn on_ioctl(hook: HookId, file: Ptr, cmd: u32) {
    if is_harmless(cmd) {
        return;
    }
    // SAFETY: the caller's word.
    unsafe {
        let inode: Ptr = field(file, layout!(file_f_inode));
        let Some(tag) = tags::tag_of(inode) else { return };
        if tags::watches_content(tag) || takes_a_name(cmd) {
            emit(&Act::on_inode(hook, Op::Ioctl, tag.slot, inode, field(file, layout!(file_dentry))));
        }
    }
}

hook!("file_ioctl", file_ioctl);

#[inline(always)]
fn file_ioctl(ctx: &Context) {
    // SAFETY: this hook's context; positions and offsets are this kernel's.
    unsafe {
        let cmd = number(ctx, layout!(arg_ioctl_cmd)) as u32;
        on_ioctl(HookId::FileIoctl, pointer(ctx, layout!(arg_ioctl_file)), cmd);
    }
}

hook!("file_ioctl_compat", file_ioctl_compat);

/// As a program of 32 bits calls it.
#[inline(always)]
fn file_ioctl_compat(ctx: &Context) {
    // SAFETY: as above.
    unsafe {
        let cmd = number(ctx, layout!(arg_ioctl_compat_cmd)) as u32;
        on_ioctl(HookId::FileIoctlCompat, pointer(ctx, layout!(arg_ioctl_compat_file)), cmd);
    }
}
