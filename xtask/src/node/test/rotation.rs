//! A certificate that the proxy's own agent renews: sealed by its identity, with the agent in its container as the only one who may
//! write it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::PATIENCE;
use super::agent::Agent;
use super::sealed::{Pod, Sealed, publish};
use crate::node::cluster::Cluster;
use crate::{cmd, interrupt};

const AGENT: &str = "/usr/local/bin/pilot-agent";

/// The certificate of the injected pod whose root certificate nobody tampered with.
pub(super) struct Certificate<'a> {
    agent: &'a Agent<'a>,
    pod: Pod,
    path: PathBuf,
}

impl<'a> Certificate<'a> {
    /// Seals it as it is now, and hands that to the agent beside the other baselines.
    pub(super) fn new(
        cluster: &'a Cluster,
        package: &Path,
        sealed: &Sealed,
        agent: &'a Agent<'a>,
        others: &[&Path],
    ) -> Result<Self> {
        let pod = Pod::injected(cluster, 1)?;
        let path = pod.volume(cluster, "empty-dir", "istio-envoy").join("cert-chain.pem");
        let dir = sealed.scratch.join("certificate");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let (statement, baseline) = (dir.join("certificate.json"), dir.join("certificate.dsse.json"));
        let meshseal = || Command::new(package.join("meshseal"));
        let mut seal = meshseal();
        seal.args(["seal", "--name", "certificate", "--class", "rotated", "--path"]).arg(&path);
        cmd::output(seal.arg("-o").arg(&statement))?;
        let mut sign = meshseal();
        sign.args(["sign", "--key"]).arg(&sealed.private).arg(&statement);
        cmd::output(sign.arg("-o").arg(&baseline))?;
        publish(cluster, &[others, &[&baseline]].concat())?;
        let certificate = Self { agent, pod, path };
        interrupt::until("the certificate is known", PATIENCE, || {
            let objects = agent.objects()?;
            let state = objects.iter().find(|one| certificate.is_it(one)).map(|one| one["state"].clone());
            if state == Some("intact".into()) { Ok(()) } else { bail!("it is {state:?}") }
        })?;
        Ok(certificate)
    }

    fn is_it(&self, of: &Value) -> bool {
        of["path"] == self.path.display().to_string().as_str()
    }

    /// The records about it of one kind.
    fn told(&self, kind: &str) -> Result<Vec<Value>> {
        let mut records = self.agent.records()?;
        records.retain(|record| record["kind"] == kind && self.is_it(&record["object"]));
        Ok(records)
    }

    /// The agent's renewal is a rotation, with old and new certificate, by the agent, and nothing is wrong.
    pub(super) fn is_renewed(&self) -> Result<()> {
        let record = interrupt::until("pilot-agent renews the certificate", 2 * PATIENCE, || {
            let told = self.told("rotation.accepted")?;
            told.into_iter().next().context("no rotation is told yet")
        })?;
        let actor = &record["actor"];
        if actor["exe"] != AGENT || actor["pod"]["name"] != self.pod.name.as_str() {
            bail!("by {actor}");
        }
        if record["old"] == record["new"] || record["new"] == Value::Null {
            bail!("from {} to {}", record["old"], record["new"]);
        }
        match self.told("violation.opened")?.as_slice() {
            [] => Ok(()),
            some => bail!("violations: {some:#?}"),
        }
    }

    /// A certificate of the same name by nobody's authority, put there by a process of the host.
    pub(super) fn is_replaced(&self) -> Result<()> {
        let beside = self.path.with_file_name("new.pem");
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/", "-days", "1"]);
        openssl.args(["-addext", "subjectAltName=URI:spiffe://cluster.local/ns/app/sa/default"]);
        openssl.args(["-keyout", "/dev/null", "-out"]).arg(&beside);
        cmd::output(&mut openssl)?;
        cmd::output(Command::new("mv").arg("-f").arg(&beside).arg(&self.path))?;
        let told = interrupt::until("the violation is opened", PATIENCE, || {
            let told = self.told("violation.opened")?;
            told.into_iter().next().context("none is told yet")
        })?;
        let expected = ["replaced", "identity"];
        let kind = told["violation"].as_str().unwrap_or_default();
        if !expected.contains(&kind) || told["operation"] != "rename" || told["actor"]["comm"] != "mv" {
            bail!("told as {told:#}");
        }
        Ok(())
    }
}
