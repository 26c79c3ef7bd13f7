//! Where things lie on the demo's node: at a node's own paths in a guest, below a scratch directory natively.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Directories of a node that are on disk.
const ON_DISK: &[&str] =
    &["var/lib/kubelet", "var/lib/containerd", "var/lib/meshseal", "etc/cni", "opt/cni", "srv"];
const POD: &str = "var/lib/kubelet/pods/5d6f3c1a-8a57-4c0e-9a2b-1c7b0e7f4d11/volumes";

/// The demo's node. Unmounts what it mounted when it is dropped.
#[derive(Debug)]
pub(super) struct Places {
    root: PathBuf,
    mounted: Vec<PathBuf>,
    scratch: bool,
    pub(super) keep: bool,
}

impl Places {
    /// In a guest the node's root is the guest's own; its directories on disk lie on the scratch disk.
    pub(super) fn guest() -> Result<Self> {
        let mut places = Self { root: PathBuf::from("/"), mounted: Vec::new(), scratch: false, keep: false };
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        let disk = mounts
            .lines()
            .filter_map(|line| line.split_once(" /data "))
            .map(|(device, _)| device.to_owned())
            .next()
            .context("the guest has no /data")?;
        // The disk itself, not a bind mount of a part of it: what a node has.
        make(Path::new("/var/lib"))?;
        places.mount(&["-t".as_ref(), "ext4".as_ref(), disk.as_ref()], Path::new("/var/lib"))?;
        for dir in ["/etc/cni", "/opt/cni"] {
            places.tmpfs(Path::new(dir))?;
        }
        for dir in ON_DISK {
            make(&Path::new("/").join(dir))?;
        }
        Ok(places)
    }

    /// A node's tree in a directory of its own: the machine's own directories are not touched.
    pub(super) fn native() -> Result<Self> {
        let root = tempfile::Builder::new()
            .prefix("meshseal-demo-")
            .tempdir_in("/var/tmp")
            .context("cannot create a directory in /var/tmp")?
            .keep();
        for dir in ON_DISK {
            make(&root.join(dir))?;
        }
        Ok(Self { root, mounted: Vec::new(), scratch: true, keep: false })
    }

    pub(super) fn is_scratch(&self) -> bool {
        self.scratch
    }

    /// A path of the node.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A volume of the pod.
    pub(super) fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.at(POD).join(format!("kubernetes.io~{plugin}")).join(name)
    }

    /// Mounts a tmpfs of its own there, as the kubelet does for secrets, tokens and memory volumes.
    pub(super) fn tmpfs(&mut self, at: &Path) -> Result<()> {
        make(at)?;
        self.mount(&["-t".as_ref(), "tmpfs".as_ref(), "tmpfs".as_ref()], at)
    }

    fn mount(&mut self, words: &[&std::ffi::OsStr], at: &Path) -> Result<()> {
        let status = Command::new("mount").args(words).arg(at).status().context("cannot start mount")?;
        if !status.success() {
            bail!("cannot mount {} ({status}): the demo runs as root", at.display());
        }
        self.mounted.push(at.to_owned());
        Ok(())
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if self.keep || !self.scratch {
            return;
        }
        let mut clean = true;
        for at in self.mounted.iter().rev() {
            clean &= Command::new("umount").arg(at).status().is_ok_and(|status| status.success());
        }
        if !clean || fs::remove_dir_all(&self.root).is_err() {
            eprintln!("xtask: {} could not be removed whole", self.root.display());
        }
    }
}

/// A directory and those above it.
pub(super) fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}
