//! What an object costs the agent in memory, all told: its seal, what the judge keeps of it, and what the sensor does.
//!
//! Agents on the best rung that this kernel allows, with few objects, a node's worth, and many: what the last has more in `VmRSS` than the first,
//! without the bytes of the objects' paths, by the objects that it has more. The kernel's own memory (inotify watches, fanotify marks, inodes and
//! their storage) is not in `VmRSS`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Budget, Figure};
use crate::build::{self, Profile};
use crate::cmd::{self, say};
use crate::{interrupt, workspace};

const FEW: usize = 1_000;
const NODE: usize = 10_000;
const MANY: usize = 100_000;
/// Files in one directory; each is an object, and so is the directory.
const IN_ONE: usize = 20;
const BUDGET: f64 = 200.0;
/// Mebibytes of an agent with [`NODE`] objects.
const NODE_BUDGET: f64 = 40.0;
/// The least that is resident in this time counts: the allocator gives back what the start needed a little later.
const SETTLES: Duration = Duration::from_secs(5);
/// Ed25519, of no worth.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEII7P0jOC3nSp+VcL+FxYWO4r808xnhnh9KiLaxFhU4uL\n-----END PRIVATE KEY-----\n";
const KEY_PUB: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAHotAjRd8ostY0L6z0e8kJhR8IWmeJL+/CmjzUdTVFxs=\n-----END PUBLIC KEY-----\n";

/// One agent's figures.
struct Resident {
    objects: usize,
    /// Bytes of the objects' paths.
    paths: usize,
    /// Bytes of the process.
    bytes: usize,
}

pub(super) fn run() -> Result<Vec<Figure>> {
    // What is kept of an object is the same in every profile, and this one is built for the lanes anyway.
    let built = build::static_binaries(Profile::Lane, &["--package", "monitor", "--bin", "meshseal"])?;
    let meshseal = built.join("meshseal");
    let few = resident(&meshseal, FEW)?;
    let node = resident(&meshseal, NODE)?;
    let many = resident(&meshseal, MANY)?;
    let more = |of: fn(&Resident) -> usize| of(&many).saturating_sub(of(&few)) as f64;
    let each = (more(|one| one.bytes) - more(|one| one.paths)) / more(|one| one.objects);
    let mebibytes = |one: &Resident, most: Option<f64>| {
        let value = one.bytes as f64 / f64::from(1 << 20);
        let budget =
            most.map(|most| Budget { says: format!("at most {most} MiB"), is: value, met: value <= most });
        Figure {
            what: format!("agent with {} objects", one.objects),
            value,
            unit: "MiB",
            beside: None,
            budget,
        }
    };
    Ok(vec![
        mebibytes(&few, None),
        mebibytes(&node, Some(NODE_BUDGET)),
        mebibytes(&many, None),
        Figure {
            what: "resident memory an object in the agent beyond its path".into(),
            value: each,
            unit: "B",
            beside: None,
            budget: Some(Budget { says: format!("at most {BUDGET} B"), is: each, met: each <= BUDGET }),
        },
    ])
}

/// Starts an agent with so many objects, and tells what it keeps.
fn resident(meshseal: &Path, objects: usize) -> Result<Resident> {
    let dir = workspace::target().join(format!("bench/memory-{objects}"));
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    say!("a tree of {objects} objects, sealed, and an agent that watches it");
    let (objects, paths) = tree(&dir, objects)?;
    for (name, text) in [("key.pem", KEY), ("key.pub", KEY_PUB)] {
        fs::write(dir.join(name), text)?;
    }
    let (statement, envelope) = (dir.join("statement.json"), dir.join("baseline.dsse.json"));
    let mut seal = Command::new(meshseal);
    cmd::output(
        seal.args(["seal", "--class", "sealed", "--path"]).arg(dir.join("files")).arg("-o").arg(&statement),
    )?;
    let mut sign = Command::new(meshseal);
    cmd::output(
        sign.args(["sign", "--key"]).arg(dir.join("key.pem")).arg(&statement).arg("-o").arg(&envelope),
    )?;
    let config = dir.join("config.yaml");
    let at = dir.display();
    fs::write(
        &config,
        format!(
            "apiVersion: meshseal/v1\nnode: bench\nsensor: {{ maxSlots: 400000 }}\nstateDir: {at}/state\n\
             socket: {at}/agent.sock\nbaselines:\n  files: [{}]\n  trustedKeys: [{at}/key.pub]\n",
            envelope.display()
        ),
    )?;
    let agent = Command::new(meshseal)
        .arg("agent")
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the agent")?;
    let mut agent = Running(agent);
    let out = agent.0.stdout.take().context("the agent's output")?;
    let ready = BufReader::new(out).lines().any(|line| line.is_ok_and(|line| line.contains("ready")));
    if !ready {
        bail!("the agent ended before it was ready: start it by hand with {}", config.display());
    }
    let (ready, mut bytes) = (Instant::now(), usize::MAX);
    while ready.elapsed() < SETTLES {
        bytes = bytes.min(vm_rss(agent.0.id())?);
        interrupt::check()?;
        interrupt::pause(100);
    }
    drop(agent);
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok(Resident { objects, paths, bytes })
}

/// Small files in many directories: how many objects that makes, and how long their paths are together.
fn tree(dir: &Path, objects: usize) -> Result<(usize, usize)> {
    let root = dir.join("files");
    let mut all: Vec<PathBuf> = vec![root.clone()];
    while all.len() < objects {
        let below = root.join(format!("{:08x}-0000-4000-8000-volume", all.len()));
        fs::create_dir_all(&below).with_context(|| format!("cannot make {}", below.display()))?;
        for at in 0..IN_ONE {
            let file = below.join(format!("{at:06}.json"));
            fs::write(&file, format!("{{\"object\": {}}}\n", all.len() + at))?;
            all.push(file);
        }
        all.push(below);
    }
    Ok((all.len(), all.iter().map(|path| path.as_os_str().len()).sum()))
}

/// Resident bytes of a process.
fn vm_rss(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kibibytes: usize = kibibytes.context("no VmRSS")?.parse().context("VmRSS")?;
    Ok(kibibytes << 10)
}

/// Ended whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; it is waited for all the same.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
