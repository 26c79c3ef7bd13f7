//! A small disk of a test's own: a tmpfs, or in a guest an ext4 on a loop device.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::agent::told;

/// Mounted until dropped.
#[derive(Debug)]
pub(super) struct Disk {
    place: PathBuf,
}

impl Disk {
    /// Mounts one of so many MiB at `place`, which is made.
    pub(super) fn mount(scratch: &Path, place: &Path, mib: u64) -> Result<Self> {
        fs::create_dir_all(place)?;
        let mut mount = Command::new("mount");
        if Path::new("/data").is_dir() {
            let image = scratch.join("image");
            File::create(&image)?.set_len((mib + 4) << 20)?;
            told(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-m", "0"]).arg(&image))?;
            mount.args(["-o", "loop"]).arg(&image);
        } else {
            mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0700"), "tmpfs"]);
        }
        told(mount.arg(place))?;
        Ok(Self { place: place.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.place.join("ballast")
    }

    /// Takes all that is free.
    pub(super) fn fill(&self) -> Result<()> {
        let mut file = File::create(self.ballast())?;
        for size in [1 << 20, 64 << 10, 4 << 10, 512, 1] {
            while file.write_all(&vec![0xbb; size]).and_then(|()| file.sync_data()).is_ok() {}
        }
        Ok(())
    }

    /// Gives it back.
    pub(super) fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still hold it.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}
