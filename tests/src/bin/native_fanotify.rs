//! The fanotify rung on this machine's kernel, on a disk file system and on tmpfs: what other processes do is told, with
//! the process; what only reads is not.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use monitor::model::{HostPath, Observation, Operation, Slot, WatchKind};
use monitor::sensor::fanotify::{FanotifyOptions, FanotifySensor, probe};
use monitor::sensor::{Sensor as _, SensorEvent};
use rustix::fs::{Mode, OFlags};

const TREE: Slot = Slot(1);
const DONE: &str = "done";

/// What `script` does in a watched tree, as the sensor tells it. The script runs in that directory.
fn seen(on: &str, script: &str) -> Result<Vec<Observation>> {
    let found = probe(Path::new(on));
    ensure!(found.usable(), "fanotify on {on}: {found:?}");
    let dir = tempfile::tempdir_in(on)?;
    fs::write(dir.path().join("old"), "sealed")?;
    let (tx, mut rx) = tokio::sync::mpsc::channel(64);
    let mut sensor = FanotifySensor::start(tx, FanotifyOptions::default())?;
    for (name, kind) in [("", WatchKind::Tree), ("old", WatchKind::Object)] {
        let path = dir.path().join(name);
        let fd = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let slot = if name.is_empty() { TREE } else { Slot(2) };
        sensor.watch(fd.as_fd(), slot, kind, &HostPath::from(path.as_path()))?;
    }
    let status = Command::new("/bin/sh").args(["-ec", script]).current_dir(dir.path()).status()?;
    ensure!(status.success(), "the script ended with {status}");
    fs::create_dir(dir.path().join(DONE))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let mut all = Vec::new();
        loop {
            let event =
                tokio::time::timeout(Duration::from_secs(30), rx.recv()).await.context("no more events")?;
            match event.context("the sensor ended")? {
                SensorEvent::Observed(one) if one.name.as_deref() == Some(DONE.as_bytes()) => return Ok(all),
                SensorEvent::Observed(one) => all.push(*one),
                other => anyhow::bail!("unexpected {other:?}"),
            }
        }
    })
}

fn told(all: &[Observation]) -> Vec<(Operation, String)> {
    let name =
        |one: &Observation| String::from_utf8_lossy(one.name.as_deref().unwrap_or_default()).into_owned();
    let mut told: Vec<_> = all.iter().map(|one| (one.operation, name(one))).collect();
    told.dedup();
    told
}

fn check(script: &str, expected: &[(Operation, &str)]) -> Result<()> {
    let expected: Vec<_> =
        expected.iter().map(|(operation, name)| (*operation, (*name).to_owned())).collect();
    for on in ["/var/tmp", "/dev/shm"] {
        let found = told(&seen(on, script)?);
        ensure!(found == expected, "{on}: {script}: {found:?}, expected {expected:?}");
    }
    Ok(())
}

fn a_publish_is_told_whole() -> Result<()> {
    use Operation as O;
    check(
        "mkdir ..1; for f in a b c; do echo x > ..1/$f; done; ln -s ..1 ..data_tmp; mv -T ..data_tmp ..data",
        &[
            (O::Mkdir, "..1"),
            (O::Create, "a"),
            (O::Write, "a"),
            (O::Create, "b"),
            (O::Write, "b"),
            (O::Create, "c"),
            (O::Write, "c"),
            (O::Symlink, "..data_tmp"),
            (O::Rename, "..data_tmp"),
        ],
    )
}

fn tampering_is_told() -> Result<()> {
    use Operation as O;
    check(
        "echo y >> old; chmod 666 old; rm old",
        &[(O::Write, "old"), (O::Setattr, "old"), (O::Unlink, "old")],
    )
}

fn reading_is_not_told() -> Result<()> {
    check("cat old > /dev/null; ls -l > /dev/null; test -f old", &[])
}

fn a_living_actor_is_named() -> Result<()> {
    // The shell itself writes, and lives on until its child has ended.
    let all = seen("/var/tmp", "echo y >> old; sleep 0.3")?;
    let actor =
        all.first().context("nothing told")?.actor.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    ensure!(actor.cmdline == "/bin/sh -ec echo y >> old; sleep 0.3", "command line {}", actor.cmdline);
    ensure!(actor.ppid == std::process::id(), "parent {}", actor.ppid);
    Ok(())
}

fn main() -> ExitCode {
    meshseal_tests::main(meshseal_tests::cases![
        a_publish_is_told_whole,
        tampering_is_told,
        reading_is_not_told,
        a_living_actor_is_named,
    ])
}
