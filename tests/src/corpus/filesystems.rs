//! Other file systems than the guest has by itself: made in files on its disk, for as long as the program runs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};

use crate::agent::told;

const SIZE: u64 = 512 << 20;
static CHOSEN: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Where the corpus is to run, if that was chosen.
pub(super) fn chosen() -> Option<&'static [PathBuf]> {
    CHOSEN.get().map(Vec::as_slice)
}

/// Makes xfs and btrfs, and has the corpus run there: on btrfs in a subvolume that is reached through the one above it, and
/// in one that is mounted by itself.
pub(super) fn choose() -> Result<()> {
    let base = Path::new("/data/filesystems");
    let (xfs, btrfs, alone) = (base.join("xfs"), base.join("btrfs"), base.join("alone"));
    for dir in [&xfs, &btrfs, &alone] {
        fs::create_dir_all(dir)?;
    }
    let image = made("xfs", &base.join("xfs.img"))?;
    mount("xfs", &image, &xfs, "loop")?;
    let image = made("btrfs", &base.join("btrfs.img"))?;
    mount("btrfs", &image, &btrfs, "loop")?;
    for name in ["nested", "alone"] {
        super::subvolumes::make(&btrfs, name)?;
    }
    let device = device_of(&btrfs)?;
    mount("btrfs", &device, &alone, "subvol=alone")?;
    let places = vec![xfs, btrfs.join("nested"), alone];
    ensure!(CHOSEN.set(places).is_ok(), "chosen twice");
    Ok(())
}

/// A file with an empty file system in it.
fn made(kind: &str, image: &Path) -> Result<PathBuf> {
    File::create(image)?.set_len(SIZE)?;
    told(Command::new(format!("/with/mkfs.{kind}")).arg("-q").arg(image))?;
    Ok(image.to_path_buf())
}

fn mount(kind: &str, from: &Path, at: &Path, options: &str) -> Result<()> {
    told(Command::new("mount").args(["-t", kind, "-o", options]).args([from, at])).map(drop)
}

/// The device that is mounted there.
fn device_of(at: &Path) -> Result<PathBuf> {
    let mounts = fs::read("/proc/self/mounts")?;
    let mut lines = mounts.split(|byte| *byte == b'\n').rev();
    let found = lines.find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.next()?;
        (fields.next()? == at.as_os_str().as_bytes()).then(|| PathBuf::from(OsStr::from_bytes(device)))
    });
    found.with_context(|| format!("nothing is mounted on {}", at.display()))
}
