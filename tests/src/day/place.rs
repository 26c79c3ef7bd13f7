//! Where the day takes place: a guest, or on this machine a world of its own, with the paths of a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags};

/// Tells this program that it is in a world of its own.
const INSIDE: &str = "MESHSEAL_DAY_INSIDE";
/// What lies below these is a node's; below the first on a disk, below the others in memory.
const ON_DISK: [&str; 5] = ["/var/lib", "/var/log", "/etc/cni", "/opt", "/srv"];
const IN_MEMORY: &str = "/run";

/// A guest is a machine of its own, with a disk there.
const GUEST: &str = "/data";

/// Runs this program again where process 1 and all mounts are its own; `None` if it is there.
pub(super) fn enter() -> Result<Option<ExitCode>> {
    if Path::new(GUEST).is_dir() || std::env::var_os(INSIDE).is_some() {
        return Ok(None);
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--"]);
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    let status = command.status().context("unshare: the package util-linux provides it")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(Some(ExitCode::from(code)))
}

/// A directory for all of a run, with a node's paths in it.
#[derive(Debug)]
pub(super) struct Place {
    scratch: tempfile::TempDir,
    covered: Vec<PathBuf>,
}

impl Place {
    pub(super) fn new() -> Result<Self> {
        let disk = if Path::new(GUEST).is_dir() { GUEST } else { "/var/tmp" };
        let scratch = tempfile::Builder::new().prefix("day-").tempdir_in(disk)?;
        let mut place = Self { scratch, covered: Vec::new() };
        if std::env::var_os(INSIDE).is_some() {
            ensure!(std::process::id() == 1, "{INSIDE} is for this program itself");
            // Containers do what runtimes do with shared mounts; nothing of it may reach this machine.
            rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
            rustix::mount::mount("run", IN_MEMORY, "tmpfs", MountFlags::empty(), None)?;
        }
        for at in ON_DISK.into_iter().map(Path::new) {
            // On this machine what is missing is not made: it would stay.
            if !at.is_dir() && Path::new(GUEST).is_dir() {
                fs::create_dir_all(at)?;
            }
            place.cover(at)?;
        }
        Ok(place)
    }

    fn cover(&mut self, at: &Path) -> Result<()> {
        // A directory that is not there is covered one higher.
        let at = at.ancestors().find(|at| at.is_dir()).context("no root")?;
        if self.covered.iter().any(|known| known == at) {
            return Ok(());
        }
        let from = self.scratch.path().join("root").join(at.strip_prefix("/")?);
        fs::create_dir_all(&from)?;
        rustix::mount::mount_bind(&from, at).with_context(|| at.display().to_string())?;
        self.covered.push(at.to_owned());
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for at in self.covered.drain(..).rev() {
            // Busy ones go with the machine, or with the namespace.
            let _left = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
