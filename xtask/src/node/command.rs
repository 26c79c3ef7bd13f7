//! The command that is run beside the node.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use super::cluster::Cluster;
use crate::cmd::say;
use crate::interrupt;

/// What `timeout(1)` answers when the time is up.
const TIMED_OUT: u8 = 124;

/// Runs the command beside the node with KUBECONFIG, `kubectl` in PATH, WITH, and the places of the node; the answer is its exit status.
pub(crate) fn run(cluster: &Cluster, command: &[OsString], with: &Path, limit: Duration) -> Result<u8> {
    let Some((program, args)) = command.split_first() else { bail!("no command") };
    let mut path = cluster.places.work.join("path").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
    let mut child = Command::new(program);
    child
        .args(args)
        .env("PATH", path)
        .env("KUBECONFIG", cluster.places.kubeconfig())
        .env("WITH", with)
        .env("KUBELET_ROOT", &cluster.places.kubelet)
        .env("CNI_CONF_DIR", &cluster.places.cni)
        .env("CONTAINERD_ADDRESS", cluster.places.containerd_socket())
        .env("CONTAINERD_NAMESPACE", "k8s.io");
    // At a terminal it must stay in the foreground; elsewhere a group of its own lets all of it be ended.
    let grouped = !std::io::stdin().is_terminal();
    if grouped {
        child.process_group(0);
    }
    let child = child.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    wait(child, grouped, limit)
}

fn wait(mut child: Child, grouped: bool, limit: Duration) -> Result<u8> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            return Ok(code(status));
        }
        if let Some(signal) = interrupt::signal() {
            say!("signal {signal}: ending the command");
            end(&mut child, grouped)?;
            return Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX));
        }
        if start.elapsed() > limit {
            say!("time is up after {} s", limit.as_secs());
            end(&mut child, grouped)?;
            return Ok(TIMED_OUT);
        }
        interrupt::pause(50);
    }
}

fn end(child: &mut Child, grouped: bool) -> Result<()> {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group.filter(|_| grouped) {
        let _gone = kill_process_group(group, Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) && child.try_wait().is_ok_and(|ended| ended.is_none())
        {
            interrupt::pause(50);
        }
        let _gone = kill_process_group(group, Signal::KILL);
    } else {
        let _gone = child.kill();
    }
    child.wait().map(drop).context("cannot wait for the command")
}

/// As a shell says it: 128 and the signal.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(script: &str, limit: u64) -> u8 {
        let child = Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap();
        wait(child, true, Duration::from_secs(limit)).unwrap()
    }

    #[test]
    fn the_status_is_the_commands_own() {
        assert_eq!(ended("exit 7", 20), 7);
        assert_eq!(ended("kill -9 $$", 20), 137);
    }

    #[test]
    fn when_time_is_up_the_command_and_its_children_end() {
        assert_eq!(ended("sleep 600 & sleep 600", 1), 124);
    }
}
