//! Containers as containerd makes them: bundle, cgroup, overlay root, and processes in them: this program again, as the
//! runtime and its clients would start it.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::LinkNameSpaceType;
use serde_json::json;

use super::verbs;
use crate::process::{Process, ROLE, be_called, obey, say};

/// In place of a cgroup: that of whoever starts it.
pub(crate) const NO_CGROUP: &str = "-";
/// Where containerd keeps its bundles.
pub(crate) const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";

/// What a container is.
#[derive(Debug, Clone)]
pub(crate) struct About<'a> {
    /// 64 digits of hex.
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) pod_uid: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) image: &'a str,
}

/// A container but for its processes. Goes, with its cgroup, when it is dropped.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) bundle: PathBuf,
    pub(crate) cgroup: PathBuf,
    /// Where the host sees it: without what is mounted in it, which its own mount namespace alone has.
    pub(crate) root: PathBuf,
    /// Directories of the host, and where its first process mounts them.
    volumes: Vec<(PathBuf, String)>,
}

/// Where this machine has cgroups of version 2: all of them in a guest, else a directory of these tests beside those of version 1, which
/// nobody else takes away while it is empty.
pub(crate) fn cgroups() -> PathBuf {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if hybrid.is_dir() { hybrid.join("meshseal-tests") } else { PathBuf::from("/sys/fs/cgroup") }
}

impl Container {
    /// Makes it of one layer, below `work`, with these directories of the host mounted.
    pub(crate) fn make(
        work: &Path,
        layer: &Path,
        mounts: &[(PathBuf, &str)],
        about: &About<'_>,
    ) -> Result<Self> {
        let bundle = Path::new(BUNDLES).join(about.id);
        let root = bundle.join("rootfs");
        let pod = cgroups().join("kubepods/burstable").join(format!("pod{}", about.pod_uid));
        let volumes = mounts.iter().map(|(from, to)| (from.clone(), (*to).to_owned())).collect();
        let made = Self { bundle, cgroup: pod.join(about.id), root, volumes };
        made.mount(&work.join(about.id), layer)?;
        let config = json!({ "root": { "path": "rootfs" }, "annotations": {
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": about.name,
            "io.kubernetes.cri.sandbox-uid": about.pod_uid, "io.kubernetes.cri.image-name": about.image,
            "io.kubernetes.cri.sandbox-namespace": about.namespace, "io.kubernetes.cri.sandbox-name": about.pod } });
        fs::write(made.bundle.join("config.json"), config.to_string())?;
        fs::create_dir_all(&made.cgroup)?;
        Ok(made)
    }

    fn mount(&self, work: &Path, layer: &Path) -> Result<()> {
        let (upper, scratch) = (work.join("upper"), work.join("work"));
        for dir in [&upper, &scratch, &self.root] {
            fs::create_dir_all(dir)?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layer.display(),
            upper.display(),
            scratch.display()
        );
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount("overlay", &self.root, "overlay", MountFlags::empty(), Some(options.as_c_str()))
            .context("overlay")
    }

    /// Its first process, which runs `exe` of its image; noted as containerd does.
    pub(crate) fn start(&self, exe: &str) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ROLE).arg("enter").arg(&self.root).arg(&self.cgroup).arg(exe);
        for (from, to) in &self.volumes {
            command.arg(from).arg(to);
        }
        let mut first = Process::start(&mut command, exe)?;
        first.hear("ready")?;
        fs::write(self.bundle.join("init.pid"), first.pid().to_string())?;
        Ok(first)
    }

    pub(crate) fn cgroup(&self) -> Result<&str> {
        self.cgroup.to_str().context("not UTF-8")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What is left goes with the machine.
        let _left = rustix::mount::unmount(&self.root, UnmountFlags::DETACH);
        let _left = (fs::remove_dir_all(&self.bundle), fs::remove_dir(&self.cgroup));
        for above in self.cgroup.ancestors().skip(1).take(4) {
            // As long as they are empty.
            let _others_are_there = fs::remove_dir(above);
        }
    }
}

/// Another process in the mount namespace of that one.
pub(crate) fn join(pid: u32, cgroup: &str, exe: &str) -> Result<Process> {
    let pid = pid.to_string();
    ready(&std::env::current_exe()?, exe, &[], &["join", &pid, cgroup, exe])
}

/// A process on the host under that name, and under no other.
pub(crate) fn called(name: &str) -> Result<Process> {
    ready(&std::env::current_exe()?, name, &[], &["serve", name])
}

/// A process of a pod that sees the host's files: in that cgroup, in a mount namespace of its own.
pub(crate) fn with_host_path(cgroup: &Path, name: &str) -> Result<Process> {
    let cgroup = cgroup.to_str().context("not UTF-8")?;
    ready(&std::env::current_exe()?, name, &[], &["host", cgroup, name])
}

/// `exe`, which is this program, on the host.
pub(crate) fn ready(exe: &Path, argv0: &str, first: &[&str], part: &[&str]) -> Result<Process> {
    let mut process = Process::play(exe, argv0, first, part, argv0)?;
    process.hear("ready")?;
    Ok(process)
}

/// The parts that such processes play.
pub(crate) fn play(arguments: &[String]) -> Result<()> {
    let serve = |exe: &str| Err(Command::new(exe).args([ROLE, "serve"]).exec()).context("exec");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["enter", root, cgroup, exe, volumes @ ..] => {
            take_cgroup(cgroup)?;
            unshare_mounts()?;
            for pair in volumes.chunks_exact(2) {
                let at = Path::new(root).join(pair[1].trim_start_matches('/'));
                rustix::mount::mount_bind(pair[0], &at)
                    .with_context(|| format!("bind to {}", at.display()))?;
            }
            pivot(Path::new(root))?;
            serve(exe)
        }
        ["join", pid, cgroup, exe] => {
            take_cgroup(cgroup)?;
            let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
            serve(exe)
        }
        ["host", cgroup, name] => {
            take_cgroup(cgroup)?;
            unshare_mounts()?;
            be_called(name)?;
            say("ready")?;
            obey(verbs::act)
        }
        ["serve"] => {
            say("ready")?;
            obey(verbs::act)
        }
        ["serve", name] => {
            be_called(name)?;
            say("ready")?;
            obey(verbs::act)
        }
        other => bail!("no such role: {other:?}"),
    }
}

fn take_cgroup(cgroup: &str) -> Result<()> {
    if cgroup == NO_CGROUP {
        return Ok(());
    }
    Ok(fs::write(Path::new(cgroup).join("cgroup.procs"), "0")?)
}

fn unshare_mounts() -> Result<()> {
    // SAFETY: no pointers; the process has one thread.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    ensure!(done == 0, "unshare: {}", std::io::Error::last_os_error());
    // As a runtime does: what is mounted here later is not seen by the host.
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    Ok(rustix::mount::mount_change("/", private)?)
}

/// As a container runtime does it: the new root becomes that of the mount namespace, the old one goes.
fn pivot(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(std::env::set_current_dir("/")?)
}
