//! The node: its directories, its kubelet, and the pods that are on it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::api::{self, Api};
use super::chance::Chance;
use super::mesh::{CLUSTER_ROOT, INSTALLER, MESHES, Mesh, Source, TOKEN_AT, TOKEN_VOLUME, TOOL};
use super::pod::{Pod, Published};
use crate::pods::container::ready;
use crate::pods::lean;
use crate::process::Process;

/// The kubelet's directory.
pub(super) const KUBELET: &str = "/var/lib/kubelet";
pub(super) const CNI_CONF: &str = "/etc/cni/net.d";
pub(super) const CNI_BIN: &str = "/opt/cni/bin";
pub(super) const CNI_RUN: &str = "/run/istio-cni";

/// A node without an agent.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) dir: PathBuf,
    pub(super) api: Api,
    /// `None` while it is replaced.
    kubelet: Option<Process>,
    pub(super) pods: Vec<Pod>,
    /// Of each mesh the hash in the names of its pods: a Deployment has two `ReplicaSet`s while it is rolled out.
    replica_sets: BTreeMap<(usize, usize), String>,
    staged: u64,
    pub(super) serial: u64,
    /// Of the installer, as it runs.
    pub(super) version: u64,
}

impl Node {
    /// With nothing on it but its kubelet.
    pub(super) fn new(dir: &Path, chance: &mut Chance) -> Result<Self> {
        for at in [KUBELET, CNI_CONF, CNI_BIN, CNI_RUN, "/var/log/pods"] {
            fs::create_dir_all(at)?;
        }
        fs::create_dir_all(Path::new(KUBELET).join("pods"))?;
        for sub in ["bin", "stage", "snapshots"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let exe = dir.join("bin/kubelet");
        lean::copy(&exe)?;
        let kubelet = Some(start_kubelet(&exe)?);
        let mut replica_sets = BTreeMap::new();
        for mesh in 0..MESHES.len() {
            for set in 0..2 {
                replica_sets.insert((mesh, set), chance.letters(10));
            }
        }
        let node = Self {
            dir: dir.to_owned(),
            api: Api::new(),
            kubelet,
            pods: Vec::new(),
            replica_sets,
            staged: 0,
            serial: 0,
            version: 1,
        };
        for mesh in &MESHES {
            node.image(mesh)?;
        }
        node.installer_is_in_its_image()?;
        Ok(node)
    }

    fn kubelet(&mut self) -> Result<&mut Process> {
        self.kubelet.as_mut().context("the kubelet does not run")
    }

    /// As a package does it: another file in the place of the one before, and then its service is restarted.
    pub(super) fn upgrade_kubelet(&mut self) -> Result<()> {
        let exe = self.dir.join("bin/kubelet");
        let new = self.dir.join("bin/kubelet.dpkg-new");
        lean::copy(&new)?;
        // What is behind its last segment is not loaded.
        let mut file = fs::OpenOptions::new().append(true).open(&new)?;
        std::io::Write::write_all(&mut file, b"upgraded")?;
        drop(file);
        fs::rename(new, &exe)?;
        self.kubelet.take().context("the kubelet does not run")?.end()?;
        self.kubelet = Some(start_kubelet(&exe)?);
        Ok(())
    }

    /// The layer of a mesh's image: its agent, which is this program, and directories to mount to.
    pub(super) fn image(&self, mesh: &Mesh) -> Result<()> {
        let layer = self.layer(mesh);
        let mounts = mesh.volumes.iter().map(|volume| volume.at);
        let mounts = mounts.chain(mesh.scratch.iter().map(|scratch| scratch.at));
        let mounts = mounts.chain(mesh.host.iter().map(|(_, at)| *at));
        for dir in mounts.chain([TOKEN_AT, "/proc", "/etc", "/tmp"]) {
            fs::create_dir_all(layer.join(dir.trim_start_matches('/')))?;
        }
        // What an agent is given over the network, or makes in memory, it finds here.
        let given = layer.join("srv");
        fs::create_dir_all(&given)?;
        fs::write(given.join("root.pem"), api::ROOT_A)?;
        fs::write(given.join("key.pem"), api::CA_KEY)?;
        for (name, chain, key) in api::LEAVES {
            fs::create_dir(given.join(name))?;
            for (file, text) in [("cert-chain.pem", chain), ("key.pem", key), ("root-cert.pem", api::ROOT_A)]
            {
                fs::write(given.join(name).join(file), text)?;
            }
        }
        let exe = layer.join(mesh.exe.trim_start_matches('/'));
        fs::create_dir_all(exe.parent().context("no directory")?)?;
        lean::copy(&exe)?;
        let tool = layer.join(TOOL.trim_start_matches('/'));
        fs::create_dir_all(tool.parent().context("no directory")?)?;
        Ok(fs::hard_link(exe, tool)?)
    }

    /// Where the layer of a mesh's image lies.
    pub(super) fn layer(&self, mesh: &Mesh) -> PathBuf {
        let version = if mesh.host.is_empty() { 1 } else { self.version };
        self.dir.join("snapshots").join(format!("{}-{version}", mesh.workload)).join("fs")
    }

    /// A directory with these files, for a process to take them from.
    pub(super) fn stage(&mut self, files: &[(&str, &str)]) -> Result<String> {
        self.staged += 1;
        let dir = self.dir.join("stage").join(self.staged.to_string());
        fs::create_dir(&dir)?;
        for (name, text) in files {
            fs::write(dir.join(name), text)?;
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o644))?;
        }
        Ok(dir.to_str().context("not UTF-8")?.to_owned())
    }

    /// The next timestamp of an `AtomicWriter`.
    pub(super) fn timestamp(&mut self) -> String {
        self.serial += 1;
        format!("2026_01_01_00_00_00.{}", self.serial)
    }

    /// A pod's volumes as the API has them now: what of it the kubelet has to publish.
    fn files(
        &mut self,
        mesh: &Mesh,
        (pod, uid): (&str, &str),
        source: Source,
    ) -> Result<Vec<(String, String)>> {
        Ok(match source {
            Source::ConfigMap(name) | Source::Secret(name) => {
                let keys = self.api.keys((mesh.namespace, name))?;
                keys.iter().map(|(key, text)| ((*key).to_owned(), text.clone())).collect()
            }
            Source::Token(audience, file) => {
                self.serial += 1;
                vec![(file.to_owned(), api::token(mesh, (pod, uid), audience, self.serial))]
            }
        })
    }

    /// What a volume of that pod is to hold by now, in a directory.
    pub(super) fn stage_of(&mut self, pod: usize, volume: usize) -> Result<String> {
        let (mesh, name, uid) = {
            let pod = &self.pods[pod];
            (pod.mesh(), pod.name.clone(), pod.uid.clone())
        };
        let files = match mesh.volumes.get(volume) {
            Some(volume) => self.files(mesh, (&name, &uid), volume.source)?,
            // The API server's own.
            None => {
                let source = Source::Token("https://kubernetes.default.svc", "token");
                let mut files = self.files(mesh, (&name, &uid), source)?;
                let root = self.api.keys((mesh.namespace, CLUSTER_ROOT))?;
                files.extend(root.iter().map(|(key, text)| ((*key).to_owned(), text.clone())));
                files.push(("namespace".to_owned(), mesh.namespace.to_owned()));
                files
            }
        };
        let files: Vec<(&str, &str)> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let stage = self.stage(&files)?;
        // A token of a pod with an fsGroup is its owner's, and then its group's (`projected.go`).
        for token in
            ["token", "istio-token", "linkerd-identity-token"].map(|name| Path::new(&stage).join(name))
        {
            if mesh.group.is_some() && token.exists() {
                fs::set_permissions(token, fs::Permissions::from_mode(0o600))?;
            }
        }
        Ok(stage)
    }

    /// A sync of one volume by the kubelet.
    pub(super) fn sync(&mut self, pod: usize, volume: usize) -> Result<()> {
        let stage = self.stage_of(pod, volume)?;
        self.publish(pod, volume, &stage)
    }

    /// As [`Self::sync`], of what is staged there.
    pub(super) fn publish(&mut self, pod: usize, volume: usize, stage: &str) -> Result<()> {
        let at = self.pods[pod].published[volume].path.clone();
        let group = self.pods[pod].mesh().group.map_or_else(|| "-".to_owned(), |group| group.to_string());
        let timestamp = self.timestamp();
        self.kubelet()?.tell(&format!("sync {} {timestamp} {stage} {group}", at.display()))
    }

    /// A new pod of that mesh, in one of its two `ReplicaSet`s, up to its first process; its place in `pods`.
    pub(super) fn start(&mut self, mesh: usize, set: usize, chance: &mut Chance) -> Result<usize> {
        let at = self.lay(mesh, set, chance)?;
        self.run(at, chance)?;
        Ok(at)
    }

    /// A new pod up to its volumes.
    pub(super) fn lay(&mut self, mesh: usize, set: usize, chance: &mut Chance) -> Result<usize> {
        let of = &MESHES[mesh];
        let uid = chance.uid();
        let name = match mesh {
            INSTALLER => format!("{}-{}", of.workload, chance.letters(5)),
            _ => format!("{}-{}-{}", of.workload, self.replica_sets[&(mesh, set)], chance.letters(5)),
        };
        let dir = Path::new(KUBELET).join("pods").join(&uid);
        let mut published = Vec::new();
        for volume in of.volumes {
            published.push(Published::new(&dir, volume.name, volume.source));
        }
        let token = format!("{TOKEN_VOLUME}{}", chance.letters(5));
        published.push(Published::new(&dir, &token, Source::Token("", "token")));
        self.kubelet()?.tell(&format!("mkdir {} 750", dir.display()))?;
        let log = format!("/var/log/pods/{}_{name}_{uid}", of.namespace);
        self.kubelet()?.tell(&format!("mkdir {log} 755"))?;
        let pod = Pod { mesh, uid, name, dir, published, container: None, first: None, log: log.into() };
        self.pods.push(pod);
        let at = self.pods.len() - 1;
        for volume in 0..self.pods[at].published.len() {
            let Published { path, memory, .. } = self.pods[at].published[volume].clone();
            self.kubelet()?.tell(&format!("mkdir {} 777", path.display()))?;
            if memory {
                self.kubelet()?.tell(&format!("tmpfs {}", path.display()))?;
            }
            self.sync(at, volume)?;
        }
        for scratch in of.scratch {
            let path = self.pods[at].scratch(scratch.name);
            self.kubelet()?.tell(&format!("mkdir {} 777", path.display()))?;
            if scratch.memory {
                self.kubelet()?.tell(&format!("tmpfs {}", path.display()))?;
            }
        }
        // From here on the kubelet takes all of them for being there.
        let containers = self.pods[at].dir.join("containers").join(of.container);
        self.kubelet()?.tell(&format!("mkdir {} 750", containers.display()))?;
        Ok(at)
    }

    /// Runs a pod's container, anew if it ran before.
    pub(super) fn run(&mut self, at: usize, chance: &mut Chance) -> Result<()> {
        let layer = self.layer(self.pods[at].mesh());
        let dir = self.dir.join("snapshots");
        self.pods[at].end()?;
        self.pods[at].run(&dir, &layer, &chance.id())
    }

    /// Takes a pod away, as its runtime and its kubelet do.
    pub(super) fn stop(&mut self, at: usize) -> Result<Pod> {
        let mut pod = self.pods.remove(at);
        pod.end()?;
        let disk = |memory| if memory { "tmpfs" } else { "disk" };
        for volume in &pod.published {
            self.kubelet()?.tell(&format!("tear {} {}", volume.path.display(), disk(volume.memory)))?;
        }
        for scratch in pod.mesh().scratch {
            let path = pod.scratch(scratch.name);
            self.kubelet()?.tell(&format!("tear {} {}", path.display(), disk(scratch.memory)))?;
        }
        self.kubelet()?.tell(&format!("rmtree {}", pod.dir.display()))?;
        self.kubelet()?.tell(&format!("rmtree {}", pod.log.display()))?;
        Ok(pod)
    }
}

fn start_kubelet(exe: &Path) -> Result<Process> {
    ready(exe, "kubelet", &["--config=/var/lib/kubelet/config.yaml"], &["serve", "kubelet"])
}

impl Drop for Node {
    fn drop(&mut self) {
        for pod in &mut self.pods {
            // What is left goes with the machine, or with the namespace.
            let _left = pod.end();
            pod.unmount();
        }
    }
}
