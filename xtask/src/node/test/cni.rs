//! Istio's CNI plugin on the node: its real installer, which puts it there, keeps it there, and takes it away when it ends; and attackers who write
//! what only the installer may.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::tamper::Tampering;
use super::{PATIENCE, agent::Agent};
use crate::node::cluster::Cluster;
use crate::node::daemon::Held;
use crate::node::mesh::CNI_RUN;
use crate::{cmd, interrupt};

const NAMESPACE: &str = "istio-system";
const HOST_PATH: &str = include_str!("../../../assets/node/cni.yaml");

/// Number and time of change of an inode: the number alone is given to the next file at once.
type Incarnation = (u64, i64, i64);

/// What the installer keeps on the node.
pub(super) struct Installed {
    pub(super) plugin: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) chain: PathBuf,
    scratch: PathBuf,
    /// The pod of the installer that runs by the time of the attacks.
    pub(super) pod: String,
    /// It, while it stands still.
    held: RefCell<Option<Held>>,
}

impl Installed {
    pub(super) fn new(cluster: &Cluster, scratch: &Path) -> Result<Self> {
        let installed = Self {
            plugin: cluster.places.cni_bin.join("istio-cni"),
            kubeconfig: Path::new(CNI_RUN).join("istio-cni-kubeconfig"),
            chain: cluster.places.cni.join("10-node.conflist"),
            scratch: scratch.to_owned(),
            pod: String::new(),
            held: RefCell::new(None),
        };
        installed.is_whole()?;
        Ok(installed)
    }

    /// What is to be sealed beside the directory of chains.
    pub(super) fn paths(&self) -> [&Path; 2] {
        [&self.plugin, &self.kubeconfig]
    }

    /// All of it is there, the plugin's entry in the chain too.
    fn is_whole(&self) -> Result<()> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let chain: serde_json::Value = serde_json::from_slice(&read(&self.chain)?)?;
        let plugins = chain["plugins"].as_array().context("no chain")?;
        if plugins.iter().filter(|plugin| plugin["type"] == "istio-cni").count() != 1 {
            bail!("{} has not istio-cni in it once: {chain}", self.chain.display());
        }
        self.files().map(drop)
    }

    /// What is made anew with each installation.
    fn files(&self) -> Result<[Incarnation; 2]> {
        let file = |path: &Path| -> Result<Incarnation> {
            let meta = fs::metadata(path).with_context(|| format!("no {}", path.display()))?;
            Ok((meta.ino(), meta.ctime(), meta.ctime_nsec()))
        };
        Ok([file(&self.plugin)?, file(&self.kubeconfig)?])
    }

    fn pod(cluster: &Cluster) -> Result<String> {
        let select = ["-n", NAMESPACE, "get", "pods", "-l", "k8s-app=istio-cni-node"];
        let name = cluster.kubectl(&[&select[..], &["-o", "jsonpath={.items[0].metadata.name}"]].concat())?;
        Ok(name.trim().to_owned())
    }

    /// Waits until another installer has installed all of it anew.
    fn comes_again(&self, cluster: &Cluster, before: [Incarnation; 2]) -> Result<()> {
        interrupt::until("the installer has installed anew", PATIENCE, || {
            let now = self.files()?;
            if now.iter().zip(&before).any(|(now, before)| now == before) {
                bail!("still the files of before");
            }
            self.is_whole()
        })?;
        crate::node::mesh::rollout(cluster, NAMESPACE, "daemonset/istio-cni-node")
    }

    /// The DaemonSet's pod goes, with what it installed, and another comes; then its process ends, and the kubelet starts it again.
    pub(super) fn restarts(&mut self, cluster: &Cluster) -> Result<()> {
        let before = self.files()?;
        let pod = Self::pod(cluster)?;
        cluster.kubectl(&["-n", NAMESPACE, "delete", "pod", &pod, "--wait=true", "--timeout=120s"])?;
        self.comes_again(cluster, before).context("after its pod was deleted")?;
        let before = self.files()?;
        self.pod = Self::pod(cluster)?;
        let ended = cluster.kubectl(&["-n", NAMESPACE, "exec", &self.pod, "--", "/bin/busybox", "kill", "1"]);
        self.comes_again(cluster, before).context("after its process was ended").inspect_err(|_| {
            eprintln!("`kill 1` answered {ended:?}");
        })
    }

    /// The installer, which watches the chain, is made to stand still; then the entry is taken out.
    fn bypass(&self, cluster: &Cluster) -> Result<()> {
        let field = "jsonpath={.status.containerStatuses[0].containerID}";
        let id = cluster.kubectl(&["-n", NAMESPACE, "get", "pod", &self.pod, "-o", field])?;
        let installer = cluster.first_process(&id)?;
        *self.held.borrow_mut() = Some(installer.hold());
        let chain = fs::read_to_string(&self.chain).context("cannot read the chain")?;
        let mut chain: serde_json::Value = serde_json::from_str(&chain)?;
        let plugins = chain["plugins"].as_array_mut().context("no chain")?;
        plugins.retain(|plugin| plugin["type"] != "istio-cni");
        let new = self.scratch.join("without-istio");
        fs::write(&new, serde_json::to_string_pretty(&chain)?).context("cannot write the other chain")?;
        cmd::output(Command::new("cp").arg(&new).arg(&self.chain)).map(drop)
    }

    /// What attackers do to it; each is one violation.
    pub(super) fn attacks<'a>(&'a self, cluster: &'a Cluster) -> Vec<Tampering<'a>> {
        vec![
            Tampering {
                what: "a pod with a hostPath puts a kubeconfig of its own in place of istio-cni's",
                act: Box::new(move || cluster.apply(&HOST_PATH.replace("@RUN@", CNI_RUN))),
                violation: "content",
                operation: "write",
                path: self.kubeconfig.clone(),
                comm: "dd",
                actor: Some(("plain", "credential")),
                target: None,
            },
            Tampering {
                what: "a shell in the installer's own container appends to the plugin",
                act: Box::new(move || {
                    let script = "echo >> /host/opt/cni/bin/istio-cni";
                    let exec = ["-n", NAMESPACE, "exec", &self.pod, "--", "sh", "-c", script];
                    cluster.kubectl(&exec).map(drop)
                }),
                // The installer, which watches it, has put it right before or after the agent looks.
                violation: "content|reverted",
                operation: "write",
                path: self.plugin.clone(),
                comm: "sh",
                actor: Some((NAMESPACE, &self.pod)),
                target: None,
            },
            Tampering {
                what: "a shell of the host stops the installer and takes istio-cni out of the chain: a way around the mesh",
                act: Box::new(move || self.bypass(cluster)),
                violation: "content",
                operation: "write",
                path: self.chain.clone(),
                comm: "cp",
                actor: None,
                target: None,
            },
        ]
    }

    /// The record of the last of them says what it means; and the installer, which may go on, puts its entry back.
    pub(super) fn bypass_is_told(&self, agent: &Agent<'_>) -> Result<()> {
        drop(self.held.take());
        let path = self.chain.display().to_string();
        let told = agent.violations()?;
        let detail =
            "plugin istio-cni removed from the chain; pods that start from now on may bypass the mesh";
        let says = |record: &&serde_json::Value| {
            record["object"]["path"] == path.as_str() && record["detail"] == detail
        };
        match told.iter().filter(says).count() {
            1 => interrupt::until("the installer puts its entry back", PATIENCE, || self.is_whole()),
            count => bail!("{count} violations say that it is a bypass: {told:#?}"),
        }
    }
}
