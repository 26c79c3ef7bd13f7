//! What a node does all day, and what must not be told of as a violation.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::sealed::Pod;
use super::{PATIENCE, PODS};
use crate::interrupt;
use crate::node::cluster::Cluster;

/// A changed ConfigMap of a pod, and a pod that goes and comes again.
pub(super) fn kubelet(cluster: &Cluster, value: &str) -> Result<()> {
    let file =
        Pod::named(cluster, "plain", "neighbour")?.volume(cluster, "configmap", "config").join("value");
    let patch = format!(r#"{{"data":{{"value":"{value}"}}}}"#);
    cluster.kubectl(&["-n", "plain", "patch", "configmap", "neighbour", "--patch", &patch])?;
    interrupt::until("the kubelet publishes the change", PATIENCE, || {
        let now = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if now == value { Ok(()) } else { bail!("{} is {now:?}", file.display()) }
    })?;
    cluster.kubectl(&["-n", "plain", "delete", "pod", "neighbour", "--wait=true", "--timeout=120s"])?;
    cluster.apply(PODS)?;
    interrupt::until("the neighbour runs again", PATIENCE, || {
        cluster.kubectl(&["-n", "plain", "wait", "--for=condition=Ready", "pod/neighbour", "--timeout=1s"])
    })
    .map(drop)
}

/// The proxy's agent renews its certificate, every minute or so.
pub(super) fn renewal(cluster: &Cluster, pod: &Pod) -> Result<()> {
    let file = pod.volume(cluster, "empty-dir", "istio-envoy").join("cert-chain.pem");
    let before = inode(&file)?;
    interrupt::until("pilot-agent renews the certificate", 2 * PATIENCE, || {
        let now = inode(&file)?;
        if now == before { bail!("{} is the same file", file.display()) } else { Ok(()) }
    })
}

fn inode(file: &Path) -> Result<(u64, i64)> {
    let meta = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok((meta.ino(), meta.ctime_nsec()))
}
