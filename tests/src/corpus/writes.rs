//! Ways to change a file that few programs take.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Result, ensure};
use rustix::fs::{FallocateFlags, XattrFlags};

use super::acts::{Act, SEALED, Site, act, attempt, for_write, hooks_only, lower, prepared, some, source, v};
use super::{mapping, raw};

/// Two blocks, as the modes of fallocate want them.
fn two_blocks(site: &Site) -> Result<()> {
    let mut bytes = vec![b'a'; 4096];
    bytes.extend(vec![b'b'; 4096]);
    Ok(fs::write(site.f(), bytes)?)
}

fn fallocate(site: &Site, mode: FallocateFlags) -> Result<()> {
    Ok(rustix::fs::fallocate(for_write(&site.f())?, mode, 0, 4096)?)
}

pub(super) const EXT4: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;
pub(super) const BTRFS: i64 = 0x9123_683e;

pub(super) fn is_on(site: &Site, kinds: &[i64]) -> bool {
    rustix::fs::statfs(&site.root).is_ok_and(|fs| kinds.contains(&fs.f_type))
}

const fn on_disk(act: Act) -> Act {
    Act { can: |site| is_on(site, &[EXT4, XFS, BTRFS]), ..act }
}

/// Blocks in the middle of a file go and come: not on btrfs.
const fn by_blocks(act: Act) -> Act {
    Act { can: |site| is_on(site, &[EXT4, XFS]), ..act }
}

fn shares_extents(site: &Site) -> bool {
    is_on(site, &[XFS, BTRFS])
}

/// All acts of this file.
pub(super) const ACTS: &[Act] = &[
    act(
        "pwritev2",
        |site, _| {
            let file = for_write(&site.f())?;
            let flags = rustix::io::ReadWriteFlags::DSYNC;
            ensure!(rustix::io::pwritev2(&file, &[IoSlice::new(b"TAMPER")], 2, flags)? == 6, "short write");
            Ok(())
        },
        &[v("f", "content", "write")],
    ),
    act(
        "write_by_aio",
        |site, _| raw::write_by_aio(&for_write(&site.f())?, b"TAMPER"),
        &[lower("open", v("f", "content", "write"))],
    ),
    Act {
        can: |site| raw::has_io_uring() && !shares_extents(site),
        ..act(
            "write_by_io_uring",
            |site, _| raw::write_by_io_uring(&for_write(&site.f())?, b"TAMPER"),
            &[v("f", "content", "write")],
        )
    },
    // xfs and btrfs do not do it at once, and are asked again.
    Act {
        can: |site| raw::has_io_uring() && shares_extents(site),
        ..act(
            "write_by_io_uring_that_is_put_off",
            |site, _| raw::write_by_io_uring(&for_write(&site.f())?, b"TAMPER"),
            &[some("f", "content", "write")],
        )
    },
    on_disk(act(
        "write_direct",
        |site, _| {
            let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(site.f())?;
            let page = mapping::Mapping::anonymous(4096, libc::MAP_PRIVATE)?;
            page.store(0, b'X');
            raw::write_page(&file, &page)
        },
        &[v("f", "content", "write")],
    )),
    act(
        "punch_a_hole",
        |site, _| {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(site, mode)
        },
        &[some("f", "content", "write")],
    ),
    on_disk(act(
        "zero_a_range",
        |site, _| fallocate(site, FallocateFlags::ZERO_RANGE),
        &[some("f", "content", "write")],
    )),
    by_blocks(prepared(
        "collapse_a_range",
        two_blocks,
        |site, _| fallocate(site, FallocateFlags::COLLAPSE_RANGE),
        &[some("f", "content", "write")],
    )),
    by_blocks(prepared(
        "insert_a_range",
        two_blocks,
        |site, _| fallocate(site, FallocateFlags::INSERT_RANGE),
        &[some("f", "content", "write")],
    )),
    act(
        "store_after_mprotect",
        |site, _| {
            let file = OpenOptions::new().read(true).write(true).open(site.f())?;
            let mapping = mapping::Mapping::shared_for_reading(&file, SEALED.len())?;
            drop(file);
            mapping.make_writable()?;
            mapping.store(0, b'X');
            Ok(())
        },
        &[v("f", "content", "mmap")],
    ),
    act(
        "write_through_a_descriptor_of_proc",
        |site, _| {
            let read = File::open(site.f())?;
            let mut again =
                OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", read.as_raw_fd()))?;
            Ok(again.write_all(b"TAMPER")?)
        },
        &[v("f", "content", "write")],
    ),
    act(
        "write_by_handle",
        |site, _| Ok(raw::open_by_handle(&site.f())?.write_all(b"TAMPER")?),
        &[v("f", "content", "write")],
    ),
    act(
        "write_with_the_cursor_of_another",
        |site, _| {
            let mut file = for_write(&site.f())?;
            file.seek(SeekFrom::End(-1))?;
            Ok(file.try_clone()?.write_all(b"TAMPER")?)
        },
        &[v("f", "content", "write")],
    ),
    act(
        "set_acl",
        |site, _| {
            // owner rw, user 4711 rwx, group r, mask rwx, others r
            const ACL: &[u8] = &[
                2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 0x67, 0x12, 0, 0, 4, 0, 4, 0, 255,
                255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
            ];
            Ok(rustix::fs::setxattr(site.f(), "system.posix_acl_access", ACL, XattrFlags::empty())?)
        },
        &[some("f", "attributes", "setxattr")],
    ),
    on_disk(act(
        "chattr",
        |site, _| raw::set_nodump(&File::open(site.f())?),
        &[hooks_only(some("f", "attributes", "ioctl"))],
    )),
    on_disk(act(
        "chattr_of_the_directory",
        |site, _| raw::set_nodump(&File::open(site.dir())?),
        &[hooks_only(some("", "attributes", "ioctl"))],
    )),
    Act {
        can: |site| !shares_extents(site),
        ..act(
            "clone_range",
            |site, _| {
                let to = for_write(&site.f())?;
                ensure!(rustix::fs::ioctl_ficlone(to, source(site)?).is_err(), "cloned");
                Ok(())
            },
            &[attempt("f", "open"), hooks_only(attempt("f", "ioctl"))],
        )
    },
    Act {
        can: shares_extents,
        ..act(
            "clone_range_that_is_shared",
            |site, _| Ok(rustix::fs::ioctl_ficlone(for_write(&site.f())?, source(site)?)?),
            &[some("f", "content", "write")],
        )
    },
];
