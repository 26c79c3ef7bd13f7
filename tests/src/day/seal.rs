//! What is sealed: workloads from their manifests, proxies from their images, and what only one pod has from the pod itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::mesh::{CONSUL, ISSUER, ISTIO, MESHES, Mesh};
use super::node::{CNI_BIN, CNI_CONF, CNI_RUN, Node};
use crate::agent::{Home, Signer, told};
use crate::corpus::image::layout;
use crate::meshseal;

/// Names of the baselines.
pub(super) const WORKLOADS: &str = "workloads";
pub(super) const RESIDENTS: &str = "residents";
pub(super) const IMAGES: &str = "images";
pub(super) const CNI: &str = "cni";

/// Images are sealed of these.
const SEALED: [usize; 2] = [ISTIO, CONSUL];

pub(super) fn is_sealed(mesh: &Mesh) -> bool {
    SEALED.iter().any(|at| std::ptr::eq(&raw const MESHES[*at], mesh))
}

fn cluster_key(home: &Home) -> PathBuf {
    home.dir.join("cluster.key")
}

/// The cluster's key for secrets, and an agent that has it.
pub(super) fn prepare(home: &Home) -> Result<()> {
    fs::write(cluster_key(home), [7; 32])?;
    std::os::unix::fs::chown(cluster_key(home), Some(0), Some(0))?;
    fs::set_permissions(cluster_key(home), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    configure(home, "10m")
}

/// Its config, with how long it awaits the baseline of what the kubelet publishes.
pub(super) fn configure(home: &Home, patience: &str) -> Result<()> {
    home.configure(&format!("  secretKey: {}\n  awaitApproval: {patience}\n", cluster_key(home).display()))
}

fn offer(home: &Home, name: &str, revision: u64, seal: impl FnOnce(&mut Command)) -> Result<()> {
    let statement = home.dir.join(format!("work/{name}-{revision}.json"));
    let mut command = Command::new(meshseal());
    command.args(["seal", "--name", name, "--revision", &revision.to_string(), "--secret-key"]);
    command.arg(cluster_key(home)).arg("-o").arg(&statement);
    seal(&mut command);
    told(&mut command)?;
    home.offer(name, &home.sign(&statement, Signer::Trusted)?)
}

/// A revision of what the API server would hold by now.
pub(super) fn manifests(home: &Home, node: &Node, revision: u64) -> Result<()> {
    let dir = home.dir.join(format!("work/rendered-{revision}"));
    node.api.render(&dir)?;
    offer(home, WORKLOADS, revision, |seal| {
        seal.args(["--token-issuer", ISSUER, "--manifests"]).arg(&dir);
    })
}

/// The files that residents fill themselves.
pub(super) fn residents(home: &Home, node: &Node, residents: &[String]) -> Result<()> {
    let mut paths = Vec::new();
    for pod in node.pods.iter().filter(|pod| residents.contains(&pod.uid)) {
        paths.extend(pod.mesh().scratch.iter().map(|scratch| pod.scratch(scratch.name)));
    }
    offer(home, RESIDENTS, 1, |seal| {
        seal.arg("--path").args(&paths);
    })
}

/// What the node below `root` has of plugins, their chains and their credentials, and who installs it there.
pub(super) fn cni(home: &Home, root: &Path, revision: u64) -> Result<()> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    offer(home, CNI, revision, |seal| {
        seal.arg("--root").arg(root).arg("--path").args([CNI_CONF, CNI_BIN, CNI_RUN].map(below));
    })
}

/// Proxies, from the layouts of their images.
pub(super) fn images(home: &Home, node: &Node) -> Result<()> {
    let mut layouts = Vec::new();
    for mesh in SEALED.map(|at| &MESHES[at]) {
        let at = home.dir.join("work").join(format!("image-{}", mesh.workload));
        layout(&at, &node.layer(mesh), mesh.image, mesh.exe).context(mesh.image)?;
        layouts.push(at);
    }
    let layouts: Vec<&Path> = layouts.iter().map(PathBuf::as_path).collect();
    offer(home, IMAGES, 1, |seal| {
        seal.arg("--images").args(layouts);
    })
}
