//! Acts on btrfs subvolumes: made and deleted by an ioctl on the directory that they are in, without a hook for names.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Result, ensure};

use super::acts::{Act, SEALED, Site, prepared, v};
use super::writes::{BTRFS, is_on};

/// include/uapi/linux/btrfs.h: `BTRFS_IOC_SUBVOL_CREATE` and `BTRFS_IOC_SNAP_DESTROY`, and what they are told: a descriptor that is not
/// used, and a name.
const CREATE: libc::c_ulong = 0x5000_940e;
const DESTROY: libc::c_ulong = 0x5000_940f;
const NAME_MAX: usize = 4087;

/// Makes a subvolume.
pub(super) fn make(above: &Path, name: &str) -> Result<()> {
    ask(CREATE, above, name)
}

/// Deletes a subvolume with all that is in it.
fn delete(above: &Path, name: &str) -> Result<()> {
    ask(DESTROY, above, name)
}

fn ask(what: libc::c_ulong, above: &Path, name: &str) -> Result<()> {
    ensure!(name.len() <= NAME_MAX, "{name} is too long");
    let mut arguments = [0_u8; 8 + NAME_MAX + 1];
    arguments[8..8 + name.len()].copy_from_slice(name.as_bytes());
    let dir = File::open(above)?;
    // SAFETY: as long as the kernel reads, and ends with NUL.
    let done = unsafe { libc::ioctl(dir.as_raw_fd(), what, arguments.as_ptr()) };
    ensure!(done == 0, "{name}: {what:#x}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The open directory, as a subvolume.
fn lone_is_one(site: &Site) -> Result<()> {
    fs::remove_dir_all(site.lone())?;
    make(&site.root.join("l"), site.name)?;
    Ok(fs::write(site.lone().join("f"), SEALED)?)
}

const fn on_btrfs(act: Act) -> Act {
    Act { can: |site| is_on(site, &[BTRFS]), ..act }
}

/// All acts of this file.
pub(super) const ACTS: &[Act] = &[
    on_btrfs(prepared(
        "delete_the_subvolume_of_a_lone_file",
        lone_is_one,
        |site, _| delete(&site.root.join("l"), site.name),
        &[v("/f", "removed", "ioctl")],
    )),
    on_btrfs(prepared(
        "delete_a_subvolume_in_a_sealed_directory",
        |site| {
            make(&site.dir(), "sub")?;
            Ok(fs::write(site.dir().join("sub/x"), SEALED)?)
        },
        |site, _| delete(&site.dir(), "sub"),
        &[v("sub", "removed", "ioctl"), v("sub/x", "removed", "ioctl")],
    )),
    on_btrfs(prepared(
        "make_a_subvolume_in_a_sealed_directory",
        |_| Ok(()),
        |site, _| make(&site.dir(), "sub"),
        &[v("sub", "unexpected", "ioctl")],
    )),
];
