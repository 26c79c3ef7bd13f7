//! What a killed agent leaves in the kernel, and `meshseal uninstall` takes away.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::bpf;
use super::load::{bench, object};
use super::rung::on_hooks;
use crate::agent::{Agent, PATIENCE, Signer, pause, told};
use crate::meshseal;

const PINS: &str = "/sys/fs/bpf/meshseal";
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(50);

/// Programs, maps, links and pins are there after a kill, and none of them after that: who writes to a file that nobody watches
/// meets no program any more.
pub(super) fn uninstalled_it_leaves_nothing_in_the_kernel() -> Result<()> {
    let (_scratch, dir, home) = bench(2)?;
    let before = bpf::everything()?;
    let agent = Agent::start(&home, 1)?;
    ensure!(on_hooks(&agent.rung()?), "no programs run");
    agent.kill()?;
    let note: Value = serde_json::from_slice(&fs::read(home.dir.join("state/kept.json"))?)?;
    let links = note["links"].as_object().context("no links are noted")?;
    ensure!(links.len() > 20, "only {} links", links.len());
    for (hook, numbers) in links {
        let link = u32::try_from(numbers[0].as_u64().context("no number")?)?;
        ensure!(bpf::is_linked(link), "{hook} did not outlive the agent");
    }
    let pins = Path::new(PINS).join(note["generation"].as_str().context("no generation")?);
    ensure!(fs::read_dir(&pins)?.count() > links.len(), "not all is pinned");

    let run = |arguments: &[&str]| {
        let mut command = Command::new(meshseal());
        command.args(["uninstall", "--format", "json", "--config"]).arg(home.config()).args(arguments);
        command
    };
    let statement = home.dir.join("work/uninstall.json");
    told(run(&["--propose", "--reason", "a test", "-o"]).arg(&statement))?;
    let (signed, strange) = (home.dir.join("work/uninstall.dsse"), home.dir.join("work/strange.dsse"));
    fs::write(&strange, home.sign(&statement, Signer::Stranger)?)?;
    fs::write(&signed, home.sign(&statement, Signer::Trusted)?)?;
    ensure!(!run(&[]).arg(&strange).output()?.status.success(), "a stranger may take it away");
    ensure!(pins.exists(), "a stranger took it away");
    let said: Value = serde_json::from_slice(&told(run(&[]).arg(&signed))?)?;
    ensure!(said["unpinned"] == 1, "{said}");
    ensure!(said["left"].as_array().is_some_and(Vec::is_empty), "{said}");
    ensure!(!Path::new(PINS).exists(), "{PINS} is left");

    // The kernel lets go of what was pinned some time after.
    let until = Instant::now() + PATIENCE;
    loop {
        let now = bpf::everything()?;
        let left = [0, 1, 2].map(|kind| now[kind].iter().filter(|id| !before[kind].contains(id)).count());
        if left == [0; 3] {
            break;
        }
        ensure!(Instant::now() < until, "left programs, maps and links: {left:?}");
        pause(LOOK_AGAIN);
    }
    // Nothing is in the way of a new start.
    let mut agent = Agent::start(&home, 1)?;
    fs::write(object(&dir, 0), "TAMPER")?;
    agent.find("a violation", |record| record["kind"] == "violation.opened")?;
    agent.stop().map(drop)
}
