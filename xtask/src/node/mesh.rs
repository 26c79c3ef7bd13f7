//! A real mesh on the node: istiod with its injector, and two injected pods whose pilot-agent and Envoy are the real ones, with
//! certificates written to files and renewed every few minutes; and the node's chain of CNI plugins with Istio's in it, kept there by its installer.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::cluster::Cluster;
use super::pki;
use crate::cmd::{self, say};
use crate::interrupt;

const APP: &str = include_str!("../../assets/node/app.yaml");

/// Where Istio's plugin and its installer meet.
pub(crate) const CNI_RUN: &str = "/run/istio-cni";

/// Installs Istio and waits until both pods are ready; with its CNI plugin where the image of the installer is given.
pub(crate) fn start(cluster: &Cluster, istioctl: &Path, installer: Option<&Path>) -> Result<()> {
    say!("installing Istio");
    let cni = match installer {
        Some(image) => {
            cluster.import(image)?;
            vec![
                "components.cni.enabled=true".to_owned(),
                format!("values.cni.cniBinDir={}", cluster.places.cni_bin.display()),
                format!("values.cni.cniConfDir={}", cluster.places.cni.display()),
                // It knows no interception mode NONE.
                "values.cni.excludeNamespaces[0]=kube-system".to_owned(),
                "values.cni.excludeNamespaces[1]=app".to_owned(),
                "values.cni.resources.requests.cpu=10m".to_owned(),
                "values.cni.resources.requests.memory=32Mi".to_owned(),
            ]
        }
        None => Vec::new(),
    };
    let manifest = cmd::output(
        Command::new(istioctl).args(["manifest", "generate"]).args(
            [
                "profile=minimal",
                "values.global.hub=docker.io/meshseal-node",
                "values.global.tag=1",
                "values.pilot.resources.requests.cpu=10m",
                "values.pilot.resources.requests.memory=64Mi",
                "values.global.proxy.resources.requests.cpu=10m",
                "values.global.proxy.resources.requests.memory=32Mi",
                "values.telemetry.enabled=false",
                "values.pilot.env.PILOT_ENABLE_METADATA_EXCHANGE=false",
            ]
            .into_iter()
            .chain(cni.iter().map(String::as_str))
            .flat_map(|setting| ["--set", setting]),
        ),
    )?;
    let file = cluster.places.work.join("istio.yaml");
    std::fs::write(&file, manifest).with_context(|| format!("cannot write {}", file.display()))?;
    cluster.kubectl(&["create", "namespace", "istio-system"])?;
    // The signing key is the operator's own, in a volume of istiod's.
    let files = pki::mesh_authority(&cluster.places)?;
    let files: Vec<String> = files.iter().map(|file| format!("--from-file={}", file.display())).collect();
    let create = ["-n", "istio-system", "create", "secret", "generic", "cacerts"];
    let create: Vec<&str> = create.into_iter().chain(files.iter().map(String::as_str)).collect();
    cluster.kubectl(&create)?;
    // Its own resource types are there only some time after their definitions.
    interrupt::until("Istio's manifests are taken", Duration::from_secs(120), || {
        let file = file.to_string_lossy();
        cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file])
    })?;
    rollout(cluster, "istio-system", "deployment/istiod")?;
    if installer.is_some() {
        rollout(cluster, "istio-system", "daemonset/istio-cni-node")?;
    }
    // There is no cluster DNS: the pods get istiod's name as a host alias.
    let address = cluster.kubectl(&[
        "-n",
        "istio-system",
        "get",
        "service",
        "istiod",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ])?;
    let app = APP.replace("@ISTIOD@", address.trim());
    interrupt::until("the injected pods' manifests are taken", Duration::from_secs(120), || {
        cluster.apply(&app)
    })?;
    rollout(cluster, "app", "deployment/web")?;
    say!("the mesh is ready");
    Ok(())
}

/// Waits for a roll-out; where it does not come about the pods are described on stderr.
pub(crate) fn rollout(cluster: &Cluster, namespace: &str, what: &str) -> Result<()> {
    // One by one second, so that Ctrl-C is heard.
    interrupt::until(&format!("{what} is rolled out"), Duration::from_secs(420), || {
        cluster.kubectl(&["-n", namespace, "rollout", "status", what, "--timeout=2s"])
    })
    .map(drop)
    .inspect_err(|_| {
        for args in [
            ["-n", namespace, "describe", "pods"].as_slice(),
            &["-n", namespace, "logs", what, "--all-containers", "--tail=40"],
        ] {
            match cluster.kubectl(args) {
                Ok(text) => eprintln!("{text}"),
                Err(error) => eprintln!("{error:#}"),
            }
        }
    })
}
