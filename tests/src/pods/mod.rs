//! Pods as a kubelet and containerd make them: who writes into a pod's own volume, and who may.

pub(crate) mod container;
pub(crate) mod lean;
pub(crate) mod verbs;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use self::container::{About, Container, NO_CGROUP, called, join};
use crate::agent::{Agent, Home, Signer, told_of};

const POD: &str = "01234567-89ab-cdef-0123-456789abcdef";
const AGENT: &str = "/usr/local/bin/pilot-agent";
const COPY: &str = "/tmp/pilot-agent";
const MOUNTED: &str = "/etc/istio/proxy";

/// What a test program's `main` returns.
pub fn main() -> ExitCode {
    if let Some(played) = crate::process::played(container::play) {
        return played;
    }
    crate::main(crate::cases![a_pods_agent_writes_its_own_volume_and_nobody_else_does])
}

fn a_pods_agent_writes_its_own_volume_and_nobody_else_does() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("pods-").tempdir_in("/data")?;
    let home = Home::new(scratch.path().join("home"))?;
    let lower = scratch.path().join("image");
    for dir in ["usr/local/bin", "etc/istio/proxy", "tmp", "proc"] {
        fs::create_dir_all(lower.join(dir))?;
    }
    for exe in [AGENT, COPY] {
        let exe = lower.join(exe.trim_start_matches('/'));
        lean::copy(&exe)?;
    }
    let volume =
        Path::new("/var/lib/kubelet/pods").join(POD).join("volumes/kubernetes.io~empty-dir/istio-envoy");
    fs::create_dir_all(&volume)?;
    let names = ["own", "swapped", "exec", "copied", "app", "entered", "named"];
    for name in names {
        fs::write(volume.join(name), "as-sealed")?;
    }
    let make = |id: char, name: &str| {
        let id = String::from(id).repeat(64);
        let (namespace, pod, image) = ("shop", "cart", "docker.io/istio/proxyv2:1");
        let about = About { id: &id, name, pod_uid: POD, namespace, pod, image };
        Container::make(scratch.path(), &lower, &[(volume.clone(), MOUNTED)], &about)
    };
    let (proxy, app) = (make('a', "istio-proxy")?, make('b', "app")?);
    let mut agent_of_pod = proxy.start(AGENT)?;
    let mut others = [
        ("exec", join(agent_of_pod.pid(), proxy.cgroup()?, AGENT)?),
        ("copied", join(agent_of_pod.pid(), proxy.cgroup()?, COPY)?),
        ("app", app.start(AGENT)?),
        ("entered", join(agent_of_pod.pid(), NO_CGROUP, AGENT)?),
        ("named", called("pilot-agent")?),
    ];
    let statement = home.seal("pod", 1, &[&volume], &[])?;
    let text: Value = serde_json::from_slice(&fs::read(&statement)?)?;
    let writers = &text["predicate"]["writers"];
    ensure!(
        writers[0]["exe"] == AGENT
            && writers[0]["containers"] == json!(["istio-proxy"])
            && writers[1].is_null(),
        "the pod's agent is not sealed as the writer: {writers}"
    );
    home.offer("pod", &home.sign(&statement, Signer::Trusted)?)?;
    let mut agent = Agent::start(&home, 1)?;

    let inside = |name: &str| format!("{MOUNTED}/{name}");
    agent_of_pod.tell(&format!("write {} by-agent", inside("own")))?;
    agent_of_pod.tell(&format!("swap {} by-agent", inside("swapped")))?;
    for (name, process) in &mut others {
        let on_host = volume.join(*name).display().to_string();
        let file = if *name == "named" { on_host } else { inside(name) };
        process.tell(&format!("write {file} by-{name}"))?;
    }
    let path = |name: &str| volume.join(name).display().to_string();
    let about = |record: &Value, name: &str| record["object"]["path"] == path(name).as_str();
    for name in names {
        agent.find(&format!("record of {name}"), |record| about(record, name))?;
    }
    // Once more, after it was accepted.
    agent_of_pod.tell(&format!("write {} again", inside("own")))?;
    agent.wait("second change of own", |seen| {
        seen.iter().filter(|record| about(record, "own") && record["kind"] == "change.accepted").count() == 2
    })?;
    let pids: Vec<(&str, u32)> = others.iter().map(|(name, process)| (*name, process.pid())).collect();
    let own = agent_of_pod.pid();
    let records = agent.stop()?;
    for (_, process) in others {
        process.end()?;
    }
    agent_of_pod.end()?;
    home.verify_journal()?;

    let expected = |name: &str| match pids.iter().find(|(of, _)| *of == name) {
        Some((_, pid)) => vec![format!("violation.opened content {pid}")],
        None if name == "own" => vec![format!("change.accepted  {own}"); 2],
        None => vec![format!("change.accepted  {own}")],
    };
    let mut wrong = Vec::new();
    for name in names {
        let mine: Vec<&Value> = records.iter().filter(|record| about(record, name)).collect();
        let told: Vec<String> = mine
            .iter()
            .map(|record| {
                let field = |name: &str| record[name].as_str().unwrap_or_default();
                format!("{} {} {}", field("kind"), field("violation"), record["actor"]["tgid"])
            })
            .collect();
        if told != expected(name) {
            wrong.push(format!("{name}: expected {:?}, found {told:?}: {}", expected(name), told_of(mine)));
        }
    }
    let opened = records.iter().filter(|record| record["kind"] == "violation.opened").count();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    ensure!(opened == pids.len(), "{opened} violations: {}", told_of(&records));
    let target = |record: &&Value| record["target"]["pod_uid"] == POD && record["target"]["mesh"] == "istio";
    ensure!(
        records.iter().filter(|record| record["kind"] == "violation.opened").all(|record| target(&record)),
        "no target"
    );
    Ok(())
}
