//! What a sealed program makes its code in a container whose root is an overlay: what its image brought is its own, anything else is not.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::acts::SEALED;
use super::image::{self, Container, PROXY, RUNTIME, VOLUME};
use super::load::hash_of;
use super::mapping::Mapping;
use super::world::{places, scratch};
use crate::agent::{Agent, Home, told_of};
use crate::process::{Process, ROLE};

/// The image's own library, and one that the container changes.
const OWN: &str = "/usr/lib/own.so";
const CHANGED: &str = "/usr/lib/changed.so";

/// One thing that the program does, and what is told of it.
struct Done {
    how: &'static str,
    /// The file, as the container sees it.
    file: &'static str,
    /// How it is told, and why the file is not the program's own; nothing, where it is.
    told: Option<(&'static str, &'static str)>,
}

const MADE_HERE: &str = "is not its image's: it was made or changed in the container";
const NO_NAME: &str = "has no name: it was made in memory, or deleted";

const DONE: [Done; 9] = [
    Done { how: "as_it_is", file: OWN, told: None },
    Done { how: "as_is_later", file: OWN, told: None },
    Done { how: "made", file: "/usr/lib/made.so", told: Some(("mmap", MADE_HERE)) },
    Done { how: "changed", file: CHANGED, told: Some(("mmap", MADE_HERE)) },
    Done { how: "made_later", file: "/usr/lib/later.so", told: Some(("mmap", MADE_HERE)) },
    Done { how: "deleted", file: "/usr/lib/deleted.so", told: Some(("mmap", NO_NAME)) },
    Done { how: "memory", file: "/memfd:loaded", told: Some(("mmap", NO_NAME)) },
    Done {
        how: "made",
        file: "/volume/elsewhere.so",
        told: Some(("mmap", "is neither sealed nor the system's")),
    },
    Done { how: "executed", file: "/usr/lib/tool", told: Some(("execve", MADE_HERE)) },
];

/// The sealed program's part, in the container.
pub(super) fn load(how: &str, file: &Path) -> Result<()> {
    let code = |file: &File| -> Result<()> {
        drop(Mapping::code(file, SEALED.len())?);
        Ok(())
    };
    if matches!(how, "made" | "made_later" | "deleted") {
        fs::write(file, SEALED)?;
    }
    match how {
        "as_it_is" | "made" => code(&File::open(file)?),
        "changed" => {
            OpenOptions::new().append(true).open(file)?.write_all(SEALED)?;
            code(&File::open(file)?)
        }
        // As data first.
        "as_is_later" | "made_later" => Mapping::private(&File::open(file)?, SEALED.len())?.make_code(),
        "deleted" => {
            let open = File::open(file)?;
            fs::remove_file(file)?;
            code(&open)
        }
        "memory" => {
            let mut memory = File::from(rustix::fs::memfd_create("loaded", rustix::fs::MemfdFlags::CLOEXEC)?);
            memory.write_all(SEALED)?;
            code(&memory)
        }
        "executed" => {
            fs::copy(Path::new("/").join(PROXY), file)?;
            Err(Command::new(file).args([ROLE, how, "tool"]).exec().into())
        }
        _ => bail!("no such way: {how}"),
    }
}

/// Copies an executable without what is behind its segments, which is most of it: names for debuggers.
fn without_names(from: &Path, to: &Path) -> Result<()> {
    const HEADER: usize = 64;
    const SEGMENT: usize = 56;
    fs::copy(from, to)?;
    let mut file = OpenOptions::new().read(true).write(true).open(to)?;
    let mut header = [0_u8; HEADER];
    file.read_exact(&mut header)?;
    let long =
        |bytes: &[u8], at: usize| Ok::<_, anyhow::Error>(u64::from_le_bytes(bytes[at..at + 8].try_into()?));
    let segments = usize::from(u16::from_le_bytes(header[56..58].try_into()?));
    file.seek(SeekFrom::Start(long(&header, 32)?))?;
    let mut table = vec![0_u8; segments * SEGMENT];
    file.read_exact(&mut table)?;
    let ends =
        table.chunks(SEGMENT).map(|one| Ok(long(one, 8)? + long(one, 32)?)).collect::<Result<Vec<_>>>()?;
    // Where the sections are described, and how many there are.
    header[40..48].fill(0);
    header[60..64].fill(0);
    file.rewind()?;
    file.write_all(&header)?;
    Ok(file.set_len(ends.into_iter().max().context("no segments")?)?)
}

/// A program runs in a container of its image, and loads or executes what its image did not bring: each is a violation, of its
/// container; what the image brought is none.
pub(super) fn a_container_runs_what_its_image_brought() -> Result<()> {
    let scratch = scratch(&places()[0])?;
    let home = Home::new(scratch.path().join("home"))?;
    let lower = scratch.path().join("snapshots/1/fs");
    let proxy = lower.join(PROXY);
    for dir in ["proc", "dev", &VOLUME[1..], "usr/lib", "usr/local/bin"] {
        fs::create_dir_all(lower.join(dir))?;
    }
    for library in [OWN, CHANGED] {
        fs::write(lower.join(&library[1..]), SEALED)?;
    }
    without_names(&std::env::current_exe()?, &proxy)?;
    image::sealed(&home, &scratch.path().join("layout"), &lower)?;
    let program = format!("/{PROXY}");
    let container = Container::start("c0de", scratch.path(), &lower, &[&program, ROLE, "proxy", "idle"])?;
    let root = container.bundle.join("rootfs");
    let mut agent = Agent::start(&home, 1)?;
    let (status, code) = agent.status()?;
    ensure!(status["posture"] == "intact" && code == 0, "{} {}", status["posture"], status["reasons"]);

    let done = DONE.iter().filter(|done| Path::new(RUNTIME).exists() || !done.file.starts_with(VOLUME));
    let done: Vec<&Done> = done.collect();
    for (at, done) in done.iter().enumerate() {
        // No longer than the kernel keeps.
        let mut name = format!("{at}-{}", done.how);
        name.truncate(15);
        let part = [program.as_str(), ROLE, name.as_str(), "loader", done.how, done.file];
        let mut loader = Process::start(&mut container.inside(&part)?, &name)?;
        loader.hear("done")?;
        let Some((operation, why)) = done.told else {
            loader.end()?;
            continue;
        };
        // What the node does not see has the place that the container sees.
        let on_node = !done.file.starts_with(VOLUME) && !done.file.starts_with("/memfd:");
        let path = if on_node { root.join(&done.file[1..]) } else { done.file.into() };
        let path = path.display().to_string();
        let found = agent.find(&format!("what is told of {name}"), |record| {
            record["kind"] == "violation.opened" && record["object"]["path"] == path.as_str()
        })?;
        let told = || told_of([&found]);
        ensure!(found["violation"] == "executed" && found["operation"] == operation, "{}", told());
        let detail = found["detail"].as_str().unwrap_or_default();
        ensure!(detail.starts_with("by a process that runs ") && detail.ends_with(why), "{detail}");
        let (actor, target) = (&found["actor"], &found["target"]);
        if why == MADE_HERE {
            let hash = hash_of(Path::new(&path))?;
            ensure!(
                found["actual"]["sha256"] == hash.as_str(),
                "{name}: {} instead of {hash}",
                found["actual"]
            );
        }
        ensure!(actor["comm"] == name.as_str() && actor["uid"] == 0, "{actor}");
        ensure!(actor["exe"].as_str().is_some_and(|exe| exe.ends_with(PROXY)), "{actor}");
        ensure!(target["pod"] == "cart-7d4b9c6f5b-x2k8q" && target["container"] == "istio-proxy", "{target}");
        // What the node does not see was looked for by way of the process.
        loader.end()?;
    }
    let records = agent.stop()?;
    let findings: Vec<&Value> = records
        .iter()
        .filter(|record| record["kind"].as_str().is_some_and(|kind| kind.starts_with("violation.")))
        .collect();
    let expected = done.iter().filter(|done| done.told.is_some()).count();
    ensure!(
        findings.len() == expected,
        "{} are told of, expected {expected}: {}",
        findings.len(),
        told_of(findings.iter().copied())
    );
    home.verify_journal()
}
