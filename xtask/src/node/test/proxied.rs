//! What an attacker goes for in a real mesh: istiod's signing key, and of an injected pod its token, its socket, its credentials and the code that its
//! proxy loads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::PATIENCE;
use super::sealed::Pod;
use super::tamper::Tampering;
use crate::node::cluster::Cluster;
use crate::{cmd, interrupt};

const THIEF: &str = include_str!("../../../assets/node/thief.yaml");
/// Where the proxy keeps what it loads, and one module as pilot-agent lays it down.
const DATA: &str = "/var/lib/istio/data";
const MODULE: &str = "0badcafe/module.wasm";

/// Files of istiod and of one injected pod.
pub(super) struct Proxied {
    istiod: Pod,
    pod: Pod,
    signing: PathBuf,
    token: PathBuf,
    socket: PathBuf,
    credentials: PathBuf,
    module: PathBuf,
    other_key: PathBuf,
}

impl Proxied {
    pub(super) fn new(cluster: &Cluster, pod: &Pod, scratch: &Path) -> Result<Self> {
        let name = cluster.kubectl(&[
            "-n",
            "istio-system",
            "get",
            "pods",
            "-l",
            "app=istiod",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])?;
        let istiod = Pod::named(cluster, "istio-system", name.trim())?;
        let other_key = scratch.join("other.key");
        let mut openssl = Command::new("openssl");
        openssl.args(["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out"]).arg(&other_key);
        cmd::output(&mut openssl)?;
        let proxied = Self {
            signing: istiod.volume(cluster, "secret", "cacerts"),
            token: pod.volume(cluster, "projected", "istio-token"),
            socket: pod.volume(cluster, "empty-dir", "workload-socket"),
            credentials: pod.volume(cluster, "empty-dir", "workload-certs"),
            module: pod.volume(cluster, "empty-dir", "istio-data").join(MODULE),
            istiod,
            pod: pod.clone(),
            other_key,
        };
        // No module comes to this mesh by itself.
        proxied.inside(cluster, &format!("mkdir -p {DATA}/0badcafe && echo module > {DATA}/{MODULE}"))?;
        interrupt::until("the pod's socket and module are there", PATIENCE, || {
            for file in [proxied.socket.join("socket"), proxied.module.clone()] {
                if !file.exists() {
                    bail!("no {}", file.display());
                }
            }
            Ok(())
        })?;
        Ok(proxied)
    }

    /// What is to be sealed.
    pub(super) fn paths(&self) -> [&Path; 5] {
        [&self.signing, &self.token, &self.socket, &self.credentials, &self.module]
    }

    fn inside(&self, cluster: &Cluster, script: &str) -> Result<()> {
        let exec = ["-n", &self.pod.namespace, "exec", &self.pod.name, "-c", "istio-proxy", "--"];
        cluster.kubectl(&[&exec[..], &["sh", "-c", script]].concat()).map(drop)
    }

    /// Each of them is one violation.
    pub(super) fn attacks<'a>(&'a self, cluster: &'a Cluster) -> Vec<Tampering<'a>> {
        let pod = Some((&*self.pod.namespace, &*self.pod.name));
        vec![
            Tampering {
                what: "a shell of the host writes a signing key of its own over istiod's",
                act: Box::new(move || {
                    let key =
                        fs::canonicalize(self.signing.join("ca-key.pem")).context("istiod has no key")?;
                    let [from, to] = [("if=", &self.other_key), ("of=", &key)]
                        .map(|(word, path)| format!("{word}{}", path.display()));
                    cmd::output(Command::new("dd").args([&from, &to, "status=none"])).map(drop)
                }),
                violation: "content",
                operation: "write",
                path: self.signing.join("ca-key.pem"),
                comm: "dd",
                actor: None,
                target: Some((&self.istiod.namespace, &self.istiod.name)),
            },
            Tampering {
                what: "a pod with a hostPath puts its own token in place of another pod's",
                act: Box::new(move || {
                    let token = fs::canonicalize(self.token.join("istio-token")).context("no token")?;
                    let yaml = THIEF
                        .replace("@FILE@", &token.display().to_string())
                        .replace("@KUBELET@", &cluster.places.kubelet.display().to_string());
                    cluster.apply(&yaml)
                }),
                // The kubelet may have put it right before the agent looks.
                violation: "identity|reverted",
                operation: "write|truncate",
                path: self.token.join("istio-token"),
                comm: "dd",
                actor: Some(("plain", "thief")),
                target: pod,
            },
            Tampering {
                what: "kubectl exec into a proxy replaces the socket that it gets its identity from",
                act: Box::new(move || {
                    let socket = "/var/run/secrets/workload-spiffe-uds/socket";
                    self.inside(cluster, &format!("rm {socket} && /bin/busybox mkfifo {socket}"))
                }),
                violation: "replaced",
                // Two acts, of which either tells it. What busybox's shell does itself goes by the shell's name or the applet's.
                operation: "mknod|unlink",
                path: self.socket.join("socket"),
                comm: "busybox|mkfifo|rm|sh",
                actor: pod,
                target: pod,
            },
            Tampering {
                what: "kubectl exec into a proxy drops a key where the agent would take it for the workload's",
                act: Box::new(move || {
                    self.inside(cluster, "echo key > /var/run/secrets/workload-spiffe-credentials/key.pem")
                }),
                violation: "unexpected",
                operation: "create",
                path: self.credentials.join("key.pem"),
                comm: "sh",
                actor: pod,
                target: pod,
            },
            Tampering {
                what: "kubectl exec into a proxy swaps a WebAssembly module",
                act: Box::new(move || self.inside(cluster, &format!("echo other > {DATA}/{MODULE}"))),
                violation: "content",
                operation: "write",
                path: self.module.clone(),
                comm: "sh",
                actor: pod,
                target: pod,
            },
        ]
    }
}
