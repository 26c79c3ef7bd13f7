//! Takes a node down: every process, container, mount, namespace, control group and directory of it. The same for the node of this run and for
//! what an earlier run left when it was killed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::daemon::{self, Identity};
use super::places::network_namespaces;
use crate::cmd::say;
use crate::interrupt;

/// Cleans up after the node in `work`; nothing is there, nothing is done.
pub(crate) fn clean(work: &Path) -> Result<()> {
    let Ok(owned) = fs::read_to_string(work.join("owned")) else {
        return remove(work);
    };
    let owned: Vec<PathBuf> = owned.lines().map(PathBuf::from).collect();
    say!("taking the node down");
    let stop = |name: &str| {
        if let Some(process) = daemon::running(work, name) {
            process.stop(Duration::from_secs(15));
        }
    };
    stop("kubelet");
    let sockets: Vec<PathBuf> =
        owned.iter().map(|dir| dir.join("containerd.sock")).filter(|socket| socket.exists()).collect();
    for socket in &sockets {
        stop_containers(socket);
    }
    for name in ["proxy", "sched", "kcm", "apiserver", "containerd", "etcd"] {
        stop(name);
    }
    for socket in &sockets {
        stop_shims(socket);
    }
    let below: Vec<PathBuf> = owned.iter().cloned().chain([work.to_path_buf()]).collect();
    unmount(&below)?;
    let before = fs::read_to_string(work.join("netns-before")).unwrap_or_default();
    for name in network_namespaces()? {
        if name.starts_with("cni-") && !before.lines().any(|line| line == name) {
            quiet(Command::new("ip").args(["netns", "del", &name]));
        }
    }
    remove_cgroups();
    remove_pins();
    for dir in &owned {
        remove(dir)?;
        // Of `/etc/cni/net.d` the directory around it as well, when nothing else is in it.
        if dir.ends_with("cni/net.d") {
            let _kept = dir.parent().map(fs::remove_dir);
        }
    }
    remove(work)
}

/// Tells of a clean-up that failed, where nobody is left to return an error to.
pub(crate) fn report(outcome: Result<()>) {
    if let Err(error) = outcome {
        say!("the node was not taken down completely; the next run tries again: {error:#}");
    }
}

fn quiet(command: &mut Command) {
    let _ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

fn stop_containers(socket: &Path) {
    let ctr = |args: &[&str]| {
        let mut command = Command::new("timeout");
        command.args(["20", "ctr", "-a"]).arg(socket).args(["-n", "k8s.io"]).args(args);
        command
    };
    let tasks = || -> Vec<String> {
        let out = ctr(&["tasks", "ls", "-q"]).stdin(Stdio::null()).output();
        out.map(|out| String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
            .unwrap_or_default()
    };
    for task in tasks() {
        quiet(&mut ctr(&["tasks", "kill", "-s", "9", &task]));
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        let left = tasks();
        if left.is_empty() {
            break;
        }
        for task in left {
            quiet(&mut ctr(&["tasks", "rm", "-f", &task]));
        }
    }
}

/// Shims outlive containerd by design; those of this containerd are known by its address in their arguments.
fn stop_shims(socket: &Path) {
    let Some(address) = socket.to_str() else { return };
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for pid in processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let shim =
            args.first().is_some_and(|program| program.windows(15).any(|part| part == b"containerd-shim"));
        if shim
            && args.contains(&address.as_bytes())
            && let Some(process) = Identity::of(pid)
        {
            process.stop(Duration::from_secs(5));
        }
    }
}

/// Unmounts what is mounted in these directories, the deepest first, and makes sure that nothing is left: what is removed
/// afterwards must not be somebody's file system.
fn unmount(dirs: &[PathBuf]) -> Result<()> {
    let mut left = mounts_below(dirs)?;
    left.sort();
    for mount in left.iter().rev() {
        quiet(Command::new("umount").arg("-l").arg(mount));
    }
    let left = mounts_below(dirs)?;
    if let Some(mount) = left.first() {
        bail!("{} is still mounted", mount.display());
    }
    Ok(())
}

fn mounts_below(dirs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(1))
        .map(unescape)
        .filter(|mount| dirs.iter().any(|dir| mount.starts_with(dir)))
        .collect())
}

/// `\040` and the like, as the kernel writes them in its tables of mounts.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (first, tail) {
            out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The kubelet leaves its control groups, empty once the last process in them is gone, which after a kill takes a moment.
fn remove_cgroups() {
    let start = Instant::now();
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(children(Path::new("/sys/fs/cgroup")));
    // `k8s.io`: where the runtime is not told otherwise it puts a pod's sandbox there.
    let all: Vec<PathBuf> =
        roots.iter().flat_map(|root| ["kubepods", "k8s.io"].map(|name| root.join(name))).collect();
    loop {
        all.iter().for_each(|group| remove_cgroup(group));
        if !all.iter().any(|group| group.exists()) {
            return;
        }
        if start.elapsed() > Duration::from_secs(10) {
            say!("control groups of the node are left: something still runs in them");
            return;
        }
        interrupt::pause(100);
    }
}

fn remove_cgroup(dir: &Path) {
    for child in children(dir) {
        remove_cgroup(&child);
    }
    // Only an empty one can be removed.
    let _absent = fs::remove_dir(dir);
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Programs that the agent pinned would sense on without it.
fn remove_pins() {
    let _absent = fs::remove_dir_all("/sys/fs/bpf/meshseal");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescape(br"/a\040b/c\134d"), PathBuf::from(r"/a b/c\d"));
        assert_eq!(unescape(br"/a\9"), PathBuf::from(r"/a\9"));
    }

    #[test]
    fn nothing_there_nothing_done() {
        let dir = tempfile::tempdir().unwrap();
        clean(&dir.path().join("absent")).unwrap();
    }
}
