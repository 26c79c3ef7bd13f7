//! Volumes as the kubelet publishes them, and everybody else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::actor;
use super::rung::names_actors;
use super::world::{places, scratch};
use crate::agent::{Agent, Home, Signer, told_of};
use crate::atomic::{self, Payload};
use crate::pods::lean;
use crate::process::obey;

const ROOT: &str = "-- root certificate --\n";
const CONF: &str = "mode: strict\n";

/// A publish whether anything changed or not.
fn publish(volume: &Path, timestamp: &str, root: &str) -> Result<()> {
    let file = |name: &str, text: &str| (name.to_owned(), (text.as_bytes().to_vec(), 0o644));
    let payload = [file("root.txt", root), file("conf.yaml", CONF)];
    atomic::write(volume, timestamp, &Payload::from(payload), None)
}

/// What the kubelet of these tests, and a tamperer, are told to do.
pub(super) fn serve() -> Result<()> {
    obey(|words| {
        match words {
            ["publish", volume, timestamp, "as-sealed"] => publish(Path::new(volume), timestamp, ROOT)?,
            ["publish", volume, timestamp, content] => publish(Path::new(volume), timestamp, content)?,
            ["write", file] => fs::write(file, "TAMPER")?,
            ["replace", file] => {
                fs::remove_file(file)?;
                fs::write(file, ROOT)?;
            }
            ["swing", volume] => {
                let volume = Path::new(volume);
                fs::create_dir(volume.join("..evil"))?;
                fs::write(volume.join("..evil/root.txt"), "evil")?;
                fs::write(volume.join("..evil/conf.yaml"), CONF)?;
                symlink("..evil", volume.join("swing"))?;
                fs::rename(volume.join("swing"), volume.join("..data"))?;
            }
            _ => bail!("no such act"),
        }
        Ok(())
    })
}

pub(super) fn volumes_are_published_by_their_writer_alone() -> Result<()> {
    let scratch = scratch(&places()[0])?;
    let root = scratch.path().join("tree");
    let home = Home::new(scratch.path().join("home"))?;
    let volume = |name: &str| root.join("pods").join(name).join("volumes/kubernetes.io~configmap/ca");
    let names = ["same", "unapproved", "stranger", "in_place", "link", "swung", "approved"];
    for name in names {
        fs::create_dir_all(volume(name))?;
        publish(&volume(name), "2026_01_01_00_00_00.1", ROOT)?;
    }
    let volumes: Vec<PathBuf> = names.iter().map(|name| volume(name)).collect();
    let (approved, rest) = volumes.split_last().context("none")?;
    home.baseline("volumes", 1, &rest.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    home.baseline("approved", 1, &[approved])?;

    let exe = root.join("kubelet");
    lean::copy(&exe)?;
    let mut kubelet =
        actor::start(&exe, "kubelet", &["--config=/etc/kubelet.yaml"], "kubelet", &["publisher"])?;
    let mut other = actor::begin("other", &["publisher"])?;
    let mut agent = Agent::start(&home, 1)?;
    let tell = |name: &str, what: &str, rest: &str| {
        format!("{what} {}{}{rest}", volume(name).display(), if rest.is_empty() { "" } else { " " })
    };
    let next = "2026_01_02_00_00_00.2";
    kubelet.tell(&tell("same", "publish", &format!("{next} as-sealed")))?;
    kubelet.tell(&tell("unapproved", "publish", &format!("{next} unapproved")))?;
    other.tell(&tell("stranger", "publish", &format!("{next} as-sealed")))?;
    other.tell(&format!("write {}", volume("in_place").join("..data/root.txt").display()))?;
    other.tell(&format!("replace {}", volume("link").join("root.txt").display()))?;
    other.tell(&tell("swung", "swing", ""))?;

    // A new revision first, then what it approves.
    let stage = scratch.path().join("stage");
    let staged = stage.join(approved.strip_prefix("/")?);
    fs::create_dir_all(&staged)?;
    publish(&staged, "2026_01_01_00_00_00.9", "newer")?;
    let below = stage.to_str().context("not UTF-8")?;
    let statement = home.seal("approved", 2, &[approved], &["--root", below])?;
    home.offer("approved", &home.sign(&statement, Signer::Trusted)?)?;
    agent.reload()?;
    agent.find("acceptance of revision 2", |record| {
        record["kind"] == "baseline.accepted" && record["name"] == "approved" && record["revision"] == 2
    })?;
    kubelet.tell(&tell("approved", "publish", &format!("{next} newer")))?;

    let about = |record: &Value, name: &str| {
        let path = record["object"]["path"].as_str().unwrap_or_default();
        path.starts_with(&volume(name).display().to_string())
    };
    let rung = agent.rung()?;
    let named = names_actors(&rung);
    for name in names[1..].iter().filter(|name| named || **name != "stranger") {
        agent.find(&format!("record of {name}"), |record| about(record, name))?;
    }
    let records = agent.stop()?;
    kubelet.end()?;
    other.end()?;
    home.verify_journal()?;

    // Where pid 1 may not be looked at (a sandbox), nobody can be proven to be the kubelet. Where acts have no actor, whoever publishes what is
    // approved passes for it.
    let provable = !named || fs::read_link("/proc/1/ns/mnt").is_ok();
    let unproven = &["violation.opened structure /..data rename kubelet"][..];
    let mut wrong = Vec::new();
    for (name, expected) in [
        ("same", if provable { &[][..] } else { unproven }),
        ("unapproved", &["violation.opened content /root.txt rename kubelet"][..]),
        ("stranger", if named { &["violation.opened structure /..data rename other"][..] } else { &[] }),
        ("in_place", &["violation.opened content /root.txt write other"][..]),
        ("link", &["violation.opened structure /root.txt unlink other"][..]),
        ("swung", &["violation.opened content /root.txt rename other"][..]),
        ("approved", if provable { &["change.accepted   rename kubelet"][..] } else { unproven }),
    ] {
        let mine: Vec<&Value> = records.iter().filter(|record| about(record, name)).collect();
        let base = volume(name).display().to_string();
        let mut told: Vec<String> = mine
            .iter()
            .map(|record| {
                let field = |name: &str| record[name].as_str().unwrap_or_default();
                let path = record["object"]["path"].as_str().unwrap_or_default();
                let (kind, violation, operation) = (field("kind"), field("violation"), field("operation"));
                let path = path.strip_prefix(&base).unwrap_or(path);
                let comm = record["actor"]["comm"].as_str().unwrap_or("nobody");
                format!("{kind} {violation} {path} {operation} {comm}")
            })
            .collect();
        told.sort();
        let by_nobody =
            |line: &&str| line.rsplit_once(' ').map_or(String::new(), |(act, _)| format!("{act} nobody"));
        let expected: Vec<String> = match named {
            true => expected.iter().map(|line| (*line).to_owned()).collect(),
            false => expected.iter().map(by_nobody).collect(),
        };
        if told != expected {
            wrong.push(format!("{name}: expected {expected:?}, found {told:?}: {}", told_of(mine)));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}
