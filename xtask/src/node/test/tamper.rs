//! The tamperings of the node's own files, and what must be told of each.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::agent::Agent;
use super::sealed::Sealed;
use super::{PATIENCE, TAMPER};
use crate::node::cluster::Cluster;
use crate::{cmd, interrupt};

/// One act, and what must be told of it.
pub(super) struct Tampering<'a> {
    pub(super) what: &'static str,
    pub(super) act: Box<dyn Fn() -> Result<()> + 'a>,
    /// One of these, as the words of the next two.
    pub(super) violation: &'static str,
    pub(super) operation: &'static str,
    pub(super) path: PathBuf,
    pub(super) comm: &'static str,
    /// Namespace and name of the actor's pod; `None` for a process of the host.
    pub(super) actor: Option<(&'a str, &'a str)>,
    /// Namespace and name of the pod that the object belongs to.
    pub(super) target: Option<(&'a str, &'a str)>,
}

pub(super) fn all<'a>(cluster: &'a Cluster, sealed: &'a Sealed) -> Vec<Tampering<'a>> {
    let dropped = sealed.conflist.with_file_name("99-dropped.conflist");
    let beside = dropped.clone();
    let mut all = vec![
        Tampering {
            what: "a pod with a hostPath changes one byte of another pod's root certificate",
            act: Box::new(move || {
                // The file behind the name, in the directory that the kubelet made last.
                let file = fs::canonicalize(&sealed.certificate)
                    .with_context(|| format!("{} is not there", sealed.certificate.display()))?;
                let yaml = TAMPER
                    .replace("@FILE@", &file.display().to_string())
                    .replace("@KUBELET@", &cluster.places.kubelet.display().to_string());
                cluster.apply(&yaml)
            }),
            violation: "content",
            operation: "write",
            path: sealed.certificate.clone(),
            comm: "dd",
            actor: Some(("plain", "tamper")),
            target: Some((&sealed.pod.namespace, &sealed.pod.name)),
        },
        Tampering {
            what: "a process of the host replaces the binary by rename",
            act: Box::new(move || {
                let new = sealed.scratch.join("new");
                fs::write(&new, "#!/bin/sh\n").context("cannot write the replacement")?;
                cmd::output(Command::new("mv").arg("-f").arg(&new).arg(&sealed.binary)).map(drop)
            }),
            violation: "replaced",
            operation: "rename",
            path: sealed.binary.clone(),
            comm: "mv",
            actor: None,
            target: None,
        },
        Tampering {
            what: "another drops a file beside the CNI configuration",
            act: Box::new(move || cmd::output(Command::new("cp").arg(&sealed.key).arg(&beside)).map(drop)),
            violation: "unexpected",
            operation: "create",
            path: dropped,
            comm: "cp",
            actor: None,
            target: None,
        },
    ];
    if sealed.installed.is_none() {
        // Else the same file is attacked where its installer is (`super::cni`).
        all.push(Tampering {
            what: "a process of the host edits the CNI configuration",
            act: Box::new(move || {
                // As many bytes as before, a plugin chain as before, for another version of the interface.
                let script = r#"sed 's/"0\.4\.0"/"0.3.1"/' "$1" | dd of="$1" conv=notrunc status=none"#;
                cmd::output(Command::new("sh").args(["-c", script, "sh"]).arg(&sealed.conflist)).map(drop)
            }),
            violation: "content",
            operation: "write",
            path: sealed.conflist.clone(),
            comm: "dd",
            actor: None,
            target: None,
        });
    }
    all
}

/// Waits for the violation and compares what is told of it.
pub(super) fn found(agent: &Agent<'_>, tampering: &Tampering<'_>) -> Result<()> {
    let path = tampering.path.display().to_string();
    let record = interrupt::until("a violation is opened", PATIENCE, || {
        let opened = agent.violations()?;
        opened
            .iter()
            .find(|record| {
                let kind = record["violation"].as_str().unwrap_or_default();
                record["object"]["path"] == path.as_str()
                    && tampering.violation.split('|').any(|one| one == kind)
            })
            .cloned()
            .with_context(|| format!("no {} is about {path}; there are {opened:#?}", tampering.violation))
    })?;
    for (field, told, expected) in [
        ("operation", &record["operation"], tampering.operation),
        ("actor.comm", &record["actor"]["comm"], tampering.comm),
    ] {
        if !expected.split('|').any(|one| told == one) {
            bail!("{field} is {told}, expected {expected:?}: {record}");
        }
    }
    let pod = |of: &Value, name: &str| match (of["namespace"].as_str(), of[name].as_str()) {
        (Some(namespace), Some(name)) => Some((namespace.to_owned(), name.to_owned())),
        _ => None,
    };
    for (field, told, expected) in [
        ("actor.pod", pod(&record["actor"]["pod"], "name"), tampering.actor),
        ("target", pod(&record["target"], "pod"), tampering.target),
    ] {
        let expected = expected.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        if told != expected {
            bail!("{field} is {told:?}, expected {expected:?}: {record}");
        }
    }
    Ok(())
}
