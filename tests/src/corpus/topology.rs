//! Directories above objects and mounts, as the host sees them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags};
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

/// The lower rungs do not see mounts.
pub(super) fn a_mount_that_carries_the_object_is_moved_and_taken_away() -> Result<()> {
    for moves in [true, false] {
        let bench = Bench::new()?;
        let mut agent = Agent::start(&bench.home, 1)?;
        if !on_hooks(&agent.rung()?) {
            return agent.stop().map(drop);
        }
        if moves {
            // What is shared cannot be moved.
            use rustix::mount::MountPropagationFlags as Flags;
            fs::create_dir(bench.path("else"))?;
            rustix::mount::mount_change("/", Flags::PRIVATE | Flags::REC)?;
            rustix::mount::mount_move(bench.path("above/mid"), bench.path("else"))?;
        } else {
            rustix::mount::unmount(bench.path("above/mid"), UnmountFlags::DETACH)?;
        }
        bench.opened(&mut agent, "removed", if moves { "mount" } else { "umount" })?;
        bench.ends(agent, &["removed"])?;
    }
    Ok(())
}
