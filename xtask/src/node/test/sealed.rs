//! What is sealed on the node, and the signed baseline for it, made off the cluster with the command-line tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::cni::Installed;
use super::proxied::Proxied;
use super::{ATTACKED, PATIENCE, PODS};
use crate::node::cluster::Cluster;
use crate::{cmd, interrupt};

/// A pod of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

impl Pod {
    pub(super) fn named(cluster: &Cluster, namespace: &str, name: &str) -> Result<Self> {
        let uid =
            cluster.kubectl(&["-n", namespace, "get", "pod", name, "-o", "jsonpath={.metadata.uid}"])?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.trim().to_owned() })
    }

    /// One of the two pods that Istio injected.
    pub(super) fn injected(cluster: &Cluster, which: usize) -> Result<Self> {
        let field = format!("jsonpath={{.items[{which}].metadata.name}}");
        let name = cluster.kubectl(&["-n", "app", "get", "pods", "-l", "app=web", "-o", &field])?;
        Self::named(cluster, "app", name.trim())
    }

    /// The directory of one of its volumes.
    pub(super) fn volume(&self, cluster: &Cluster, plugin: &str, name: &str) -> PathBuf {
        let volumes = cluster.places.kubelet.join("pods").join(&self.uid).join("volumes");
        volumes.join(format!("kubernetes.io~{plugin}")).join(name)
    }
}

/// What was sealed, and where the signed baseline and the key are.
pub(super) struct Sealed {
    /// The pod whose volume it is.
    pub(super) pod: Pod,
    /// The volume's `root-cert.pem`, as it is sealed: by the name that the pod uses.
    pub(super) certificate: PathBuf,
    pub(super) conflist: PathBuf,
    pub(super) binary: PathBuf,
    /// A second binary, for what is done to the place rather than the file.
    pub(super) plugin: PathBuf,
    /// The pod that is attacked by way of the API and from within.
    pub(super) attacked: Pod,
    /// Its policy, bundle, key and bootstrap.
    pub(super) policy: PathBuf,
    pub(super) bundle: PathBuf,
    pub(super) ca_key: PathBuf,
    pub(super) bootstrap: PathBuf,
    /// A file that nothing happens to until the API server stands still.
    pub(super) spare: PathBuf,
    /// Files that nothing happens to until the agent is ended.
    pub(super) blind: [PathBuf; 2],
    /// What Istio's CNI installer put on the node, where it is there.
    pub(super) installed: Option<Installed>,
    /// What istiod and that pod live by, where Istio is there.
    pub(super) proxied: Option<Proxied>,
    pub(super) baseline: PathBuf,
    /// What values of Secrets are sealed under.
    pub(super) cluster_key: PathBuf,
    /// What it is signed with.
    pub(super) private: PathBuf,
    pub(super) key: PathBuf,
    /// For what the tamperings bring along; on the binary's file system.
    pub(super) scratch: PathBuf,
}

/// Hands these baselines to the agents, instead of those before.
pub(super) fn publish(cluster: &Cluster, baselines: &[&Path]) -> Result<()> {
    let files: Vec<String> = baselines.iter().map(|file| format!("--from-file={}", file.display())).collect();
    let mut create = vec!["-n", "meshseal", "create", "configmap", "meshseal-baselines"];
    create.extend(files.iter().map(String::as_str));
    create.extend(["--dry-run=client", "-o", "yaml"]);
    let yaml = cluster.kubectl(&create)?;
    cluster.apply(&yaml)
}

/// Seals one pod's volume with the mesh's root certificate, the CNI configuration, and a binary.
pub(super) fn seal(cluster: &Cluster, package: &Path, mesh: bool, all: bool) -> Result<Sealed> {
    let scratch = cluster.places.work.join("test");
    let protected = cluster.places.work.join("sealed");
    for dir in [&scratch, &protected] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let binary = protected.join("proxy");
    fs::copy(cmd::find("busybox").context("busybox is missing")?, &binary)
        .context("cannot make the binary")?;
    let plugin = protected.join("plugin");
    fs::copy(&binary, &plugin).context("cannot make the plugin")?;
    let spare = protected.join("spare");
    fs::write(&spare, "as sealed").context("cannot make the spare file")?;
    let blind = ["first", "second"].map(|name| protected.join(name));
    for file in &blind {
        fs::write(file, "as sealed, and long enough for a name").context("cannot make a spare file")?;
    }
    cluster.apply(PODS)?;
    cluster.apply(ATTACKED)?;
    for pod in ["pod/web", "pod/neighbour", "pod/attacked", "pod/privileged"] {
        interrupt::until(&format!("{pod} runs"), PATIENCE, || {
            cluster.kubectl(&["-n", "plain", "wait", "--for=condition=Ready", pod, "--timeout=1s"])
        })?;
    }
    let pod = if mesh { Pod::injected(cluster, 0)? } else { Pod::named(cluster, "plain", "web")? };
    let volume = pod.volume(cluster, "configmap", "istiod-ca-cert");
    let attacked = Pod::named(cluster, "plain", "attacked")?;
    let [policy, trust] = ["policy", "trust"].map(|name| attacked.volume(cluster, "configmap", name));
    let cacerts = attacked.volume(cluster, "secret", "cacerts");
    let bootstrap = attacked.volume(cluster, "empty-dir", "bootstrap").join("bootstrap.json");

    let key = scratch.join("release.key");
    let public = scratch.join("release.pub");
    cmd::output(Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&key))?;
    cmd::output(Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&key).arg("-out").arg(&public))?;
    let cluster_key = scratch.join("cluster.key");
    cmd::output(Command::new("openssl").args(["rand", "-out"]).arg(&cluster_key).arg("32"))?;
    let meshseal = || Command::new(package.join("meshseal"));
    let statement = scratch.join("statement.json");
    let mut seal = meshseal();
    seal.args(["seal", "--secret-key"]).arg(&cluster_key);
    let installed = if all { Some(Installed::new(cluster, &scratch)?) } else { None };
    for path in installed.iter().flat_map(Installed::paths) {
        seal.arg("--path").arg(path);
    }
    let proxied = if all { Some(Proxied::new(cluster, &pod, &scratch)?) } else { None };
    for path in proxied.iter().flat_map(Proxied::paths) {
        seal.arg("--path").arg(path);
    }
    let places = [&volume, &cluster.places.cni, &binary, &plugin, &spare];
    for path in places.into_iter().chain([&policy, &trust, &cacerts, &bootstrap]).chain(&blind) {
        seal.arg("--path").arg(path);
    }
    cmd::output(seal.args(["--name", "node-test", "--revision", "1", "-o"]).arg(&statement))?;
    let baseline = scratch.join("node-test.dsse.json");
    cmd::output(meshseal().args(["sign", "--key"]).arg(&key).arg(&statement).arg("-o").arg(&baseline))?;
    Ok(Sealed {
        pod,
        certificate: volume.join("root-cert.pem"),
        conflist: cluster.places.cni.join("10-node.conflist"),
        binary,
        plugin,
        attacked,
        policy: policy.join("policy.yaml"),
        bundle: trust.join("ca.pem"),
        ca_key: cacerts.join("ca-key.pem"),
        bootstrap,
        spare,
        blind,
        installed,
        proxied,
        baseline,
        cluster_key,
        private: key,
        key: public,
        scratch,
    })
}
