//! Containers whose root is an overlay, laid out as containerd does it: acts in the container, through /proc, and on the
//! layers themselves. Each is one violation of what the container sees.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;

use super::actor;
use super::acts::SEALED;
use super::raw::private_mounts;
use super::rung::on_hooks;
use super::world::{places, scratch};
use crate::agent::{Agent, Home, told_of};
use crate::process::{Process, say};

/// What is in the image, in `usr/bin`: one file for each act.
const FILES: [&str; 9] = [
    "written",
    "chmodded",
    "unlinked",
    "renamed-over",
    "through-proc",
    "copied-up",
    "lower",
    "upper",
    "opened",
];

/// An image of two layers, and its containers.
struct Node {
    scratch: tempfile::TempDir,
    home: Home,
    containers: Vec<Process>,
}

impl Node {
    fn new(containers: usize) -> Result<Self> {
        let scratch = scratch(&places()[0])?;
        let home = Home::new(scratch.path().join("home"))?;
        let node = Self { scratch, home, containers: Vec::new() };
        for layer in ["1", "2"] {
            fs::create_dir_all(node.layer(layer).join("usr/bin"))?;
        }
        for name in FILES {
            fs::write(node.layer("1").join("usr/bin").join(name), SEALED)?;
        }
        fs::write(node.layer("2").join("usr/bin/above"), SEALED)?;
        for at in 0..containers {
            node.mount(at)?;
        }
        Ok(node)
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.scratch.path().join("snapshots").join(name)
    }

    fn layer(&self, name: &str) -> PathBuf {
        self.snapshot(name).join("fs")
    }

    /// The upper layer of a container.
    fn upper(&self, at: usize) -> PathBuf {
        self.layer(&format!("c{at}"))
    }

    fn root(&self, at: usize) -> PathBuf {
        self.scratch.path().join(format!("k8s.io/c{at}/rootfs"))
    }

    fn file(&self, at: usize, name: &str) -> PathBuf {
        self.root(at).join("usr/bin").join(name)
    }

    fn mount(&self, at: usize) -> Result<()> {
        let root = self.root(at);
        fs::create_dir_all(&root)?;
        mount_overlay(&[&self.layer("2"), &self.layer("1")], &self.snapshot(&format!("c{at}")), &root)
    }

    /// Starts the first process of each container.
    fn start(&mut self) -> Result<()> {
        for at in 0.. {
            let root = self.root(at);
            if !root.exists() {
                return Ok(());
            }
            let role = ["container", root.to_str().context("not UTF-8")?];
            let name = format!("container{at}");
            let mut process = actor::begin(&name, &role)?;
            process.hear("held")?;
            self.containers.push(process);
        }
        Ok(())
    }

    /// Does one act in the first container, by a process of its own; the answer is that process's number.
    fn act(&self, act: &str, name: &str) -> Result<u32> {
        let path = format!("/usr/bin/{name}");
        let pid = self.containers.first().context("no container")?.pid().to_string();
        let mut inside = actor::begin(act, &["inside", &pid, act, &path])?;
        inside.hear("done")?;
        let pid = inside.pid();
        inside.end()?;
        Ok(pid)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for process in self.containers.drain(..) {
            // What it held is gone with it.
            drop(process.end());
        }
        for at in 0.. {
            let root = self.root(at);
            if !root.exists() {
                return;
            }
            unmount(&root);
        }
    }
}

/// Mounts an overlay of these layers, topmost first, and of one of its own in that directory.
pub(super) fn mount_overlay(lower: &[&Path], own: &Path, root: &Path) -> Result<()> {
    let (upper, work) = (own.join("fs"), own.join("work"));
    for dir in [&upper, &work] {
        fs::create_dir_all(dir)?;
    }
    let lower: Vec<String> = lower.iter().map(|layer| layer.display().to_string()).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount("overlay", root, "overlay", MountFlags::empty(), Some(options.as_c_str()))?)
}

pub(super) fn unmount(root: &Path) {
    while rustix::mount::unmount(root, UnmountFlags::DETACH).is_ok() {}
}

/// The first process of a container: in a mount namespace of its own, with this root.
pub(super) fn live_in(root: &Path) -> Result<()> {
    private_mounts()?;
    rustix::mount::mount_bind(root, root)?;
    rustix::process::chdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    say("held")
}

/// The first process of a container, which becomes that program.
pub(super) fn become_in(root: &Path, program: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    live_in(root)?;
    let (name, arguments) = program.split_first().context("no program")?;
    Err(std::process::Command::new(name).args(arguments).exec().into())
}

/// Moves into the mount namespace of that process.
fn enter(pid: &str) -> Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    Ok(rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(rustix::thread::LinkNameSpaceType::Mount),
    )?)
}

/// Becomes that program in the container of that process.
pub(super) fn become_within(pid: &str, program: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    enter(pid)?;
    let (name, arguments) = program.split_first().context("no program")?;
    Err(std::process::Command::new(name).args(arguments).exec().into())
}

/// Does something in the container of that process.
pub(super) fn act_inside(pid: &str, act: &str, path: &Path) -> Result<()> {
    enter(pid)?;
    match act {
        "write" => OpenOptions::new().write(true).open(path)?.write_all(b"TAMPER")?,
        "chmod" => fs::set_permissions(path, fs::Permissions::from_mode(0o666))?,
        "unlink" => fs::remove_file(path)?,
        "rename" => {
            fs::write("/new", "another")?;
            fs::rename("/new", path)?;
        }
        _ => anyhow::bail!("no such act: {act}"),
    }
    Ok(())
}

/// One record, and no other, of an object: what was done to it, how, how often and by whom.
struct Told {
    path: PathBuf,
    violation: &'static str,
    operation: &'static str,
    by: u32,
}

pub(super) fn what_is_done_to_a_container_is_one_violation() -> Result<()> {
    let mut node = Node::new(1)?;
    // A change from before it was sealed: the copy is there.
    fs::set_permissions(node.file(0, "upper"), fs::Permissions::from_mode(0o644))?;
    fs::set_permissions(node.file(0, "copied-up"), fs::Permissions::from_mode(0o644))?;
    ensure!(node.upper(0).join("usr/bin/upper").exists(), "chmod does not copy up");
    let sealed: Vec<PathBuf> = FILES.iter().chain(&["above"]).map(|name| node.file(0, name)).collect();
    node.home.baseline("image", 1, &sealed.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    node.start()?;
    let mut agent = Agent::start(&node.home, 1)?;
    ensure!(on_hooks(&agent.rung()?), "no programs run");

    let own = std::process::id();
    let mut expected = Vec::new();
    let mut done = |name: &str, violation, operation, by| {
        expected.push(Told { path: node.file(0, name), violation, operation, by });
    };
    done("written", "content", "write", node.act("write", "written")?);
    done("copied-up", "content", "write", node.act("write", "copied-up")?);
    done("chmodded", "attributes", "setattr", node.act("chmod", "chmodded")?);
    done("unlinked", "removed", "unlink", node.act("unlink", "unlinked")?);
    done("renamed-over", "replaced", "rename", node.act("rename", "renamed-over")?);
    let through = node.containers.first().context("no container")?.pid();
    fs::write(format!("/proc/{through}/root/usr/bin/through-proc"), "TAMPER")?;
    done("through-proc", "content", "write", own);
    let write = |path: PathBuf| OpenOptions::new().write(true).open(path)?.write_all(b"TAMPER");
    write(node.layer("1").join("usr/bin/lower"))?;
    done("lower", "content", "write", own);
    write(node.layer("2").join("usr/bin/above"))?;
    done("above", "content", "write", own);
    write(node.upper(0).join("usr/bin/upper"))?;
    done("upper", "content", "write", own);

    agent.wait("a violation for each act", |seen| {
        expected.iter().all(|told| seen.iter().any(|record| is_about(record, told)))
    })?;
    let records = agent.stop()?;
    let finding = |record: &&Value| {
        record["kind"].as_str().is_some_and(|kind| kind == "attempt" || kind.starts_with("violation."))
    };
    let findings: Vec<&Value> = records.iter().filter(finding).collect();
    for told in &expected {
        let mine: Vec<&&Value> = findings.iter().filter(|record| is_about(record, told)).collect();
        let all = || told_of(mine.iter().map(|record| **record));
        ensure!(mine.len() == 1, "{} records of {}: {}", mine.len(), told.path.display(), all());
        let one = mine[0];
        ensure!(one["kind"] == "violation.opened" && one["violation"] == told.violation, "{}", all());
        ensure!(one["operation"] == told.operation && one["count"] == 1, "{}", all());
        ensure!(one["actor"]["tgid"] == told.by && one["actor"]["uid"] == 0, "{}", all());
    }
    let stray = findings.iter().filter(|record| !expected.iter().any(|told| is_about(record, told)));
    let stray: Vec<&Value> = stray.copied().collect();
    ensure!(stray.is_empty(), "also told: {}", told_of(stray));
    node.home.verify_journal()
}

fn is_about(record: &Value, told: &Told) -> bool {
    record["object"]["path"] == told.path.display().to_string().as_str()
}

/// A layer that two containers are made of: a write to it is a violation of each.
pub(super) fn a_layer_of_two_containers_is_a_violation_of_each() -> Result<()> {
    let mut node = Node::new(2)?;
    let sealed = [node.file(0, "lower"), node.file(1, "lower")];
    node.home.baseline("image", 1, &[&sealed[0], &sealed[1]])?;
    node.start()?;
    let mut agent = Agent::start(&node.home, 1)?;
    OpenOptions::new().write(true).open(node.layer("1").join("usr/bin/lower"))?.write_all(b"TAMPER")?;
    for path in sealed {
        let is_it = |record: &Value| {
            record["kind"] == "violation.opened"
                && record["object"]["path"] == path.display().to_string().as_str()
        };
        let found = agent.find("a violation of each container", is_it)?;
        ensure!(found["violation"] == "content" && found["operation"] == "write", "{}", told_of([&found]));
        ensure!(found["actor"]["tgid"] == std::process::id(), "{}", told_of([&found]));
    }
    agent.stop().map(drop)
}
