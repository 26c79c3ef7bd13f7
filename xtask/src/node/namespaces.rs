//! Namespaces of its own for the node on this machine: processes, mounts, network. Process 1 of it is this program, so that all of it ends when
//! this program ends, by whatever signal, and so that the agent finds the node's root at /proc/1/root as it does on any node.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{LANE_FAILED, Supplies};
use crate::cmd;
use crate::interrupt;

/// Tells the program that it is inside, and with what.
const INSIDE: &str = "MESHSEAL_NODE_SUPPLIES";
/// For taking the node down in order.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs this program with the same arguments in new namespaces; the answer is its status.
pub(super) fn run(supplies: &Supplies) -> Result<u8> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount",
            "--net",
        ])
        .args(["--mount-proc", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, serde_json::to_string(supplies)?);
    let mut child = command.spawn().context("cannot start unshare: the package util-linux provides it")?;
    let mut told = None;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the node")? {
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(LANE_FAILED));
        }
        if interrupt::signal().is_some() {
            let since = *told.get_or_insert_with(|| {
                // The program inside is the one child of `unshare`, which itself takes no notice of signals.
                if let Some(inside) = child_of(child.id()) {
                    let _gone = kill_process(inside, Signal::TERM);
                }
                Instant::now()
            });
            if since.elapsed() > PATIENCE {
                child.kill().context("cannot end the node")?;
            }
        }
        interrupt::pause(50);
    }
}

/// What the outer program gave, if this is the inner one.
pub(super) fn inside() -> Result<Option<Supplies>> {
    match std::env::var(INSIDE) {
        Ok(text) => {
            serde_json::from_str(&text).map(Some).with_context(|| format!("{INSIDE} is not as expected"))
        }
        Err(_) => Ok(None),
    }
}

/// What any node has: mounts that reach the pods, and the kernel's file systems for BPF and for LSMs.
pub(super) fn furnish() -> Result<()> {
    if std::process::id() != 1 {
        bail!("{INSIDE} is for this program itself");
    }
    cmd::output(Command::new("mount").args(["--make-rshared", "/"]))?;
    for (kind, at, marker) in [("bpf", "/sys/fs/bpf", ""), ("securityfs", "/sys/kernel/security", "lsm")] {
        let mounted = if marker.is_empty() { is_mounted(at) } else { Path::new(at).join(marker).exists() };
        if !mounted {
            cmd::output(Command::new("mount").args(["-t", kind, kind, at]))?;
        }
    }
    Ok(())
}

fn is_mounted(at: &str) -> bool {
    std::fs::read_to_string("/proc/self/mounts")
        .is_ok_and(|table| table.lines().any(|line| line.split(' ').nth(1) == Some(at)))
}

fn child_of(parent: u32) -> Option<Pid> {
    let wanted = parent.to_string();
    std::fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read(entry.path().join("stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat).into_owned();
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned();
        (parent == wanted).then(|| Pid::from_raw(pid)).flatten()
    })
}
