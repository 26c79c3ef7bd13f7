//! What the real API server tells the agent, and what becomes of the agent while it tells nothing.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::PATIENCE;
use super::agent::Agent;
use super::sealed::{Pod, Sealed};
use crate::interrupt;
use crate::node::cluster::Cluster;
use crate::node::daemon;

/// Where the DaemonSet's agent listens on the node.
const SOCKET: &str = "/run/meshseal/agent.sock";
/// An answer that takes longer was waited for.
const AT_ONCE: Duration = Duration::from_secs(20);

/// The agent is connected, may read what the packaged role says, and knows cluster and pods.
pub(super) fn connected(cluster: &Cluster, agent: &Agent<'_>) -> Result<()> {
    let uid = cluster.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"])?;
    interrupt::until("the agent knows the cluster", PATIENCE, || {
        let told = agent.status()?.status["kubernetes"].clone();
        if told["state"] != "connected"
            || told["cluster_uid"] != uid.trim()
            || told["unknown"] != Value::Array(Vec::new())
        {
            bail!("status says of the API: {told}");
        }
        Ok(())
    })
}

/// What a violation's record must say of the pod acted upon, by the API server's own answer.
pub(super) fn target(cluster: &Cluster, agent: &Agent<'_>, sealed: &Sealed) -> Result<()> {
    let path = sealed.certificate.display().to_string();
    let opened = agent.violations()?;
    let record = opened.iter().find(|record| record["object"]["path"] == path.as_str());
    let target = &record.with_context(|| format!("no violation is about {path}"))?["target"];
    let Pod { namespace, name, .. } = &sealed.pod;
    let text = cluster.kubectl(&["-n", namespace, "get", "pod", name, "-o", "json"])?;
    let pod: Value = serde_json::from_str(&text).context("kubectl's answer is no JSON")?;
    if target["service_account"] != pod["spec"]["serviceAccountName"] {
        bail!("the service account is not {}: {target}", pod["spec"]["serviceAccountName"]);
    }
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let named = |all: Vec<Value>| all.into_iter().find(|one| one["name"] == target["container"]);
    let containers = [list("/spec/containers"), list("/spec/initContainers")].concat();
    let statuses = [list("/status/containerStatuses"), list("/status/initContainerStatuses")].concat();
    let (container, status) = (named(containers), named(statuses));
    let (container, status) =
        container.zip(status).with_context(|| format!("the pod has no such container: {target}"))?;
    for (field, expected) in [("image", &container["image"]), ("image_digest", &status["imageID"])] {
        if target[field] != *expected || expected.as_str().is_none_or(str::is_empty) {
            bail!("{field} is not {expected}: {target}");
        }
    }
    let volume = list("/spec/volumes").into_iter().find(|volume| volume["name"] == "istiod-ca-cert");
    let map = volume.map(|volume| volume["configMap"]["name"].clone()).unwrap_or_default();
    let source = &target["source"];
    if source["kind"] != "ConfigMap" || source["name"] != map || source["namespace"] != namespace.as_str() {
        bail!("the source is not ConfigMap {map}: {target}");
    }
    Ok(())
}

/// The owner of the agent's own pod, which a DaemonSet made: on the list of pods, with its service account.
pub(super) fn listed(agent: &Agent<'_>) -> Result<()> {
    let pods = agent.pods()?;
    let own = pods.as_array().into_iter().flatten().find(|pod| pod["namespace"] == "meshseal");
    let own = own.with_context(|| format!("the agent's own pod is not on its list: {pods}"))?;
    let owner = &own["owner"];
    if owner["kind"] != "DaemonSet" || owner["name"] != "meshseal" || own["service_account"] != "meshseal" {
        bail!("owner or service account are not those of the DaemonSet: {own}");
    }
    if own["disk"] != true || own["api"] != true {
        bail!("it is not known by both disk and API: {own}");
    }
    Ok(())
}

/// The API server stands still: the agent answers, and tells of a change meanwhile.
pub(super) fn outage(cluster: &Cluster, package: &Path, sealed: &Sealed) -> Result<()> {
    let ask = |args: &[&str]| -> Result<String> {
        let asked = Instant::now();
        let mut command = Command::new(package.join("meshseal"));
        let out = command.args(args).args(["--format", "json", "--socket", SOCKET]).output()?;
        if asked.elapsed() > AT_ONCE {
            bail!("`meshseal {}` took {:?}", args.join(" "), asked.elapsed());
        }
        String::from_utf8(out.stdout).context("the answer is not UTF-8")
    };
    let held =
        daemon::running(&cluster.places.work, "apiserver").context("the API server does not run")?.hold();
    fs::write(&sealed.spare, "TAMPER").with_context(|| format!("cannot write {}", sealed.spare.display()))?;
    let path = sealed.spare.display().to_string();
    interrupt::until("a violation is opened while the API server stands still", PATIENCE, || {
        let status: Value = serde_json::from_str(&ask(&["status"])?).context("status is no JSON")?;
        if status["posture"] != "violated" {
            bail!("status is {status}");
        }
        let told = ask(&["violations"])?;
        if told.contains(&path) { Ok(()) } else { bail!("none is about {path}: {told}") }
    })?;
    drop(held);
    interrupt::until("the API server answers again", PATIENCE, || {
        cluster.kubectl(&["get", "namespace", "kube-system"])
    })
    .map(drop)
}
