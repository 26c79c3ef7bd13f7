//! Whoever would act unseen ends the agent first. The kubelet starts it again, and what was changed meanwhile is told: on hooks by whom, since they go on
//! without it, unless their pins were taken away too.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::PATIENCE;
use super::agent::Agent;
use crate::node::cluster::Cluster;
use crate::node::daemon::Identity;
use crate::{cmd, interrupt};

const PINS: &str = "/sys/fs/bpf/meshseal";

/// Ends the agent, changes a sealed file, and waits until both are told. `seen`: who did it is known.
pub(super) fn killed(cluster: &Cluster, agent: &Agent<'_>, file: &Path, seen: bool) -> Result<()> {
    let before = agent.records()?;
    let process = process(cluster)?;
    let pid = process.pid().to_string();
    cmd::output(Command::new("kill").args(["-KILL", &pid]))?;
    interrupt::until("the agent is gone", Duration::from_secs(30), || {
        if process.alive() { bail!("pid {pid} is alive") } else { Ok(()) }
    })?;
    let to = format!("of={}", file.display());
    cmd::output(Command::new("dd").args(["if=/etc/hostname", &to, "conv=notrunc", "status=none"]))?;

    let path = file.display().to_string();
    let about =
        |record: &&Value| record["kind"] == "violation.opened" && record["object"]["path"] == path.as_str();
    let after = interrupt::until("the agent is there again, and tells the change", 2 * PATIENCE, || {
        let after = agent.records()?;
        if !after.iter().any(|record| about(&record)) {
            bail!("{} records, none about {path}", after.len());
        }
        Ok(after)
    })?;
    let count = |records: &[Value], kind: &str| records.iter().filter(|one| one["kind"] == kind).count();
    for (kind, more) in [("agent.started", 1), ("agent.stopped", 0), ("violation.opened", 1)] {
        let (was, is) = (count(&before, kind), count(&after, kind));
        if is != was + more {
            bail!("{is} records of {kind} after {was}, expected {more} more");
        }
    }
    let told = after.iter().find(about).context("none is told")?;
    let by = &told["actor"]["comm"];
    let known = told["violation"] == "content" && if seen { by == "dd" } else { told["actor"].is_null() };
    if !known {
        bail!("{}: {told}", if seen { "by dd is expected" } else { "by nobody known is expected" });
    }
    Ok(())
}

/// Takes the pins of the agent's programs and maps away.
pub(super) fn unpin() -> Result<()> {
    let pinned = |dir: &Path| fs::read_dir(dir).map(Iterator::count).unwrap_or_default();
    if pinned(Path::new(PINS)) == 0 {
        bail!("{PINS} has no pins: there is nothing to take away");
    }
    fs::remove_dir_all(PINS).with_context(|| format!("cannot remove {PINS}"))
}

/// The agent's own process.
fn process(cluster: &Cluster) -> Result<Identity> {
    let id = cluster.kubectl(&[
        "-n",
        "meshseal",
        "get",
        "pods",
        "-o",
        "jsonpath={.items[0].status.containerStatuses[0].containerID}",
    ])?;
    cluster.first_process(&id)
}
