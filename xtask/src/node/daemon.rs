//! The node's daemons: started with a log each, and stopped by process id and start time, so that one left over by a killed run is found
//! again and nothing else is ever hit.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::interrupt;

/// A process and the tick it started at: what the kernel does not use twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pid: i32,
    start: u64,
}

/// A process that does nothing for now.
#[derive(Debug)]
pub(crate) struct Held(Identity);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.send(Signal::CONT);
    }
}

impl Identity {
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let (state, start) = stat(pid)?;
        (state != 'Z').then_some(Self { pid, start })
    }

    pub(crate) fn pid(self) -> i32 {
        self.pid
    }

    pub(crate) fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    fn send(self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.alive()) {
            // It may have ended just now, which is as good.
            let _gone = kill_process(pid, signal);
        }
    }

    /// Stops it until the answer is dropped.
    pub(crate) fn hold(self) -> Held {
        self.send(Signal::STOP);
        Held(self)
    }

    /// Asks it to end, and makes it end when it does not.
    pub(crate) fn stop(self, patience: Duration) {
        self.send(Signal::TERM);
        let start = Instant::now();
        while self.alive() {
            if start.elapsed() > patience {
                self.send(Signal::KILL);
                if start.elapsed() > patience + Duration::from_secs(5) {
                    return;
                }
            }
            interrupt::pause(50);
        }
    }
}

/// State and start time out of /proc/PID/stat; the name before them may hold anything.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

/// Starts a daemon; its output goes to `<work>/log/<name>.log`.
pub(crate) fn start(work: &Path, name: &str, command: &mut Command) -> Result<()> {
    let log = work.join("log").join(format!("{name}.log"));
    let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let err = out.try_clone().context("cannot use the log twice")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        // Ctrl-C is for this run to act upon, in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let pid = i32::try_from(child.id()).context("a process id beyond i32")?;
    if let Some(identity) = Identity::of(pid) {
        let file = work.join("log").join(format!("{name}.pid"));
        fs::write(&file, format!("{} {}\n", identity.pid, identity.start))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// The daemon of that name, if it runs.
pub(crate) fn running(work: &Path, name: &str) -> Option<Identity> {
    let text = fs::read_to_string(work.join("log").join(format!("{name}.pid"))).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    let identity = Identity { pid: pid.parse().ok()?, start: start.parse().ok()? };
    identity.alive().then_some(identity)
}

/// The end of a daemon's log.
pub(crate) fn log_tail(work: &Path, name: &str) -> String {
    let log = fs::read(work.join("log").join(format!("{name}.log"))).unwrap_or_default();
    crate::cmd::tail(&String::from_utf8_lossy(&log), 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_found_again_by_its_file_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        start(dir.path(), "sleeper", Command::new("sleep").arg("600")).unwrap();
        let found = running(dir.path(), "sleeper").unwrap();
        found.stop(Duration::from_secs(5));
        assert_eq!(running(dir.path(), "sleeper"), None);
    }

    #[test]
    fn another_process_with_the_same_id_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        fs::write(dir.path().join("log/x.pid"), format!("{} 1\n", std::process::id())).unwrap();
        assert_eq!(running(dir.path(), "x"), None);
    }
}
