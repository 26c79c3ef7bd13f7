//! Volumes as the kubelet publishes them, and everybody else.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::actor::{self, Actor};
use super::rung::names_actors;
use super::world::{places, scratch};
use crate::agent::{Agent, Home, Signer, told_of};

const ROOT: &str = "-- root certificate --\n";
const CONF: &str = "mode: strict\n";

/// `AtomicWriter`'s steps: a new directory, a link to it, one rename.
fn publish(volume: &Path, timestamp: &str, root: &str) -> Result<()> {
    let new = volume.join(format!("..{timestamp}"));
    fs::create_dir(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    for (name, content) in [("root.txt", root), ("conf.yaml", CONF)] {
        fs::write(new.join(name), content)?;
        fs::set_permissions(new.join(name), fs::Permissions::from_mode(0o644))?;
    }
    let before = fs::read_link(volume.join("..data")).ok();
    symlink(format!("..{timestamp}"), volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    for name in ["root.txt", "conf.yaml"] {
        if fs::symlink_metadata(volume.join(name)).is_err() {
            symlink(format!("..data/{name}"), volume.join(name))?;
        }
    }
    if let Some(before) = before {
        fs::remove_dir_all(volume.join(before))?;
    }
    Ok(())
}

/// What the kubelet of these tests, and a tamperer, are told to do.
pub(super) fn serve() -> Result<()> {
    while let Some(line) = actor::heard()? {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
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
            _ => bail!("cannot {line}"),
        }
        actor::say("done")?;
    }
    Ok(())
}

fn do_as(who: &mut Actor, what: &str) -> Result<()> {
    who.say(what)?;
    who.hear("done").with_context(|| what.to_owned())
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
    fs::copy(std::env::current_exe()?, &exe)?;
    let mut kubelet =
        Actor::start(&exe, "kubelet", &["--config=/etc/kubelet.yaml"], "kubelet", &["publisher"])?;
    let mut other = Actor::start(&std::env::current_exe()?, "other", &[], "other", &["publisher"])?;
    let mut agent = Agent::start(&home, 1)?;
    let tell = |name: &str, what: &str, rest: &str| {
        format!("{what} {}{}{rest}", volume(name).display(), if rest.is_empty() { "" } else { " " })
    };
    let next = "2026_01_02_00_00_00.2";
    do_as(&mut kubelet, &tell("same", "publish", &format!("{next} as-sealed")))?;
    do_as(&mut kubelet, &tell("unapproved", "publish", &format!("{next} unapproved")))?;
    do_as(&mut other, &tell("stranger", "publish", &format!("{next} as-sealed")))?;
    do_as(&mut other, &format!("write {}", volume("in_place").join("..data/root.txt").display()))?;
    do_as(&mut other, &format!("replace {}", volume("link").join("root.txt").display()))?;
    do_as(&mut other, &tell("swung", "swing", ""))?;

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
    do_as(&mut kubelet, &tell("approved", "publish", &format!("{next} newer")))?;

    let about = |record: &Value, name: &str| {
        let path = record["object"]["path"].as_str().unwrap_or_default();
        path.starts_with(&volume(name).display().to_string())
    };
    for name in &names[1..] {
        agent.find(&format!("record of {name}"), |record| about(record, name))?;
    }
    let rung = agent.rung()?;
    let records = agent.stop()?;
    kubelet.end()?;
    other.end()?;
    home.verify_journal()?;

    // Where pid 1 may not be looked at (a sandbox), or acts have no actor, nobody can be proven to be the kubelet.
    let named = names_actors(&rung);
    let provable = named && fs::read_link("/proc/1/ns/mnt").is_ok();
    let unproven = &["violation.opened structure /..data rename kubelet"][..];
    let mut wrong = Vec::new();
    for (name, expected) in [
        ("same", if provable { &[][..] } else { unproven }),
        ("unapproved", &["violation.opened content /root.txt rename kubelet"][..]),
        ("stranger", &["violation.opened structure /..data rename other"][..]),
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
