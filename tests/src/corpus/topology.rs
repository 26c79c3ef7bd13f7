//! Directories above objects and mounts, as the host sees them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};
use serde_json::Value;

use super::acts::SEALED;
use super::rung::on_hooks;
use super::world::{places, scratch};
use crate::agent::{Agent, Home, told_of};

/// `above/mid/f`, sealed alone, where `mid` is a file system of its own.
struct Bench {
    scratch: tempfile::TempDir,
    home: Home,
}

impl Bench {
    fn new() -> Result<Self> {
        let scratch = scratch(&places()[0])?;
        let home = Home::new(scratch.path().join("home"))?;
        let bench = Self { scratch, home };
        fs::create_dir_all(bench.path("above/mid"))?;
        tmpfs(&bench.path("above/mid"))?;
        fs::write(bench.object(), SEALED)?;
        bench.home.baseline("ways", 1, &[&bench.object()])?;
        Ok(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn object(&self) -> PathBuf {
        self.path("above/mid/f")
    }

    fn is_about(&self) -> impl Fn(&Value) -> bool + use<> {
        let path = self.object().display().to_string();
        move |record| record["object"]["path"] == path.as_str()
    }

    /// The one violation of that kind, by this process.
    fn opened(&self, agent: &mut Agent, violation: &str, operation: &str) -> Result<()> {
        let about = self.is_about();
        let is_it = |record: &Value| {
            about(record) && record["kind"] == "violation.opened" && record["violation"] == violation
        };
        let found = agent.find(violation, is_it)?;
        ensure!(found["operation"] == operation, "{}", told_of([&found]));
        ensure!(found["actor"]["tgid"] == std::process::id(), "{}", told_of([&found]));
        Ok(())
    }

    /// The object is watched where it stands: a write is seen, with its writer.
    fn is_watched(&self, agent: &mut Agent) -> Result<()> {
        fs::write(self.object(), b"TAMPER")?;
        self.opened(agent, "content", "write")
    }

    /// No violations but these.
    fn ends(&self, agent: Agent, violations: &[&str]) -> Result<()> {
        let records = agent.stop()?;
        let told: Vec<&Value> =
            records.iter().filter(|record| record["kind"] == "violation.opened").collect();
        let mut kinds: Vec<&str> = told.iter().filter_map(|record| record["violation"].as_str()).collect();
        kinds.sort_unstable();
        ensure!(kinds == violations, "{}", told_of(told));
        self.home.verify_journal()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for name in ["over", "above/mid", "moved/mid", "else"] {
            // Some are there, some are not.
            while rustix::mount::unmount(self.path(name), UnmountFlags::DETACH).is_ok() {}
        }
    }
}

fn tmpfs(at: &Path) -> Result<()> {
    Ok(rustix::mount::mount("none", at, "tmpfs", MountFlags::empty(), None)?)
}

/// Nothing is sealed on the file system of that directory: the lower rungs do not watch there.
pub(super) fn a_directory_above_is_moved_and_comes_back() -> Result<()> {
    let bench = Bench::new()?;
    let mut agent = Agent::start(&bench.home, 1)?;
    if !on_hooks(&agent.rung()?) {
        return agent.stop().map(drop);
    }
    fs::rename(bench.path("above"), bench.path("moved"))?;
    bench.opened(&mut agent, "renamed", "rename")?;
    fs::rename(bench.path("moved"), bench.path("above"))?;
    let about = bench.is_about();
    agent.find("the object's return", |record| {
        about(record) && matches!(record["kind"].as_str(), Some("violation.updated" | "violation.resolved"))
    })?;
    bench.is_watched(&mut agent)?;
    bench.ends(agent, &["content", "renamed"])
}

/// The lower rungs do not see mounts.
pub(super) fn a_mount_over_a_directory_above_is_seen_and_its_end_too() -> Result<()> {
    let bench = Bench::new()?;
    let mut agent = Agent::start(&bench.home, 1)?;
    if !on_hooks(&agent.rung()?) {
        return agent.stop().map(drop);
    }
    tmpfs(&bench.path("above"))?;
    bench.opened(&mut agent, "mounted_over", "mount")?;
    rustix::mount::unmount(bench.path("above"), UnmountFlags::empty())?;
    let about = bench.is_about();
    agent.find("the object's return", |record| {
        about(record) && matches!(record["kind"].as_str(), Some("violation.updated" | "violation.resolved"))
    })?;
    bench.is_watched(&mut agent)?;
    bench.ends(agent, &["content", "mounted_over"])
}

/// By another way to it.
pub(super) fn what_is_written_under_a_mount_is_seen_when_that_is_gone() -> Result<()> {
    let bench = Bench::new()?;
    fs::create_dir(bench.path("else"))?;
    rustix::mount::mount_bind(bench.path("above/mid"), bench.path("else"))?;
    let fence = bench.path("fence");
    fs::write(&fence, SEALED)?;
    bench.home.baseline("ways", 2, &[&bench.object(), &fence])?;
    let mut agent = Agent::start(&bench.home, 1)?;
    if !on_hooks(&agent.rung()?) {
        return agent.stop().map(drop);
    }
    tmpfs(&bench.path("above/mid"))?;
    bench.opened(&mut agent, "mounted_over", "mount")?;
    fs::write(bench.path("else/f"), b"TAMPER")?;
    // Looked at after it, since it was acted upon later.
    fs::write(&fence, b"TAMPER")?;
    let path = fence.display().to_string();
    agent.find("the fence", |record| {
        record["kind"] == "violation.opened" && record["object"]["path"] == path.as_str()
    })?;
    let other = Command::new("umount").arg(bench.path("above/mid")).status()?;
    ensure!(other.success(), "umount: {other}");
    bench.opened(&mut agent, "content", "write")?;
    bench.ends(agent, &["content", "content", "mounted_over"])
}

/// In the host's own namespace: as a kubelet makes a directory of its own a mount.
pub(super) fn a_directory_above_that_is_mounted_over_itself_covers_nothing() -> Result<()> {
    let bench = Bench::new()?;
    let mut agent = Agent::start(&bench.home, 1)?;
    if !on_hooks(&agent.rung()?) {
        return agent.stop().map(drop);
    }
    rustix::mount::mount_bind_recursive(bench.path("above"), bench.path("above"))?;
    bench.is_watched(&mut agent)?;
    rustix::mount::unmount(bench.path("above"), UnmountFlags::DETACH)?;
    bench.ends(agent, &["content"])
}

/// How a mount is taken from its place.
type Takes = fn(&Bench) -> rustix::io::Result<()>;

/// The lower rungs do not see mounts. Somebody else mounts something elsewhere right after.
pub(super) fn a_mount_that_carries_the_object_is_moved_and_taken_away() -> Result<()> {
    let ways: [(&str, Takes, &str); 3] = [
        ("mount(2)", |bench| rustix::mount::mount_move(bench.path("above/mid"), bench.path("else")), "mount"),
        (
            "move_mount(2)",
            |bench| {
                let (from, to) = (bench.path("above/mid"), bench.path("else"));
                rustix::mount::move_mount(CWD, from, CWD, to, MoveMountFlags::empty())
            },
            "mount",
        ),
        (
            "umount(2)",
            |bench| rustix::mount::unmount(bench.path("above/mid"), UnmountFlags::DETACH),
            "umount",
        ),
    ];
    // What is shared cannot be moved.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    for (call, takes, operation) in ways {
        let bench = Bench::new()?;
        let mut agent = Agent::start(&bench.home, 1)?;
        if !on_hooks(&agent.rung()?) {
            return agent.stop().map(drop);
        }
        for dir in ["else", "over"] {
            fs::create_dir(bench.path(dir))?;
        }
        takes(&bench)?;
        let other = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(bench.path("over")).status()?;
        ensure!(other.success(), "mount: {other}");
        bench.opened(&mut agent, "removed", operation).context(call)?;
        bench.ends(agent, &["removed"])?;
    }
    Ok(())
}
