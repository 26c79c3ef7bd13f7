//! The containers of a node, by the bundles their runtimes leave below /run: an OCI runtime configuration each.
//!
//! containerd: `<state>/io.containerd.runtime.v2.task/k8s.io/<id>/config.json`, with annotations of its CRI plugin
//! (`internal/cri/annotations`). CRI-O: `/run/containers/storage/overlay-containers/<id>/userdata/config.json`
//! (`pkg/annotations`). Both are root's, and gone with the container.

use serde::Deserialize;

use crate::baseline::Root;
use crate::model::HostPath;

/// Where bundles lie, and what stands between one's directory and its configuration.
const BUNDLES: [(&str, &str); 3] = [
    ("/run/containerd/io.containerd.runtime.v2.task/k8s.io", ""),
    ("/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io", ""),
    ("/run/containers/storage/overlay-containers", "/userdata"),
];
/// Most containers.
const CONTAINERS_MAX: usize = 1 << 14;
/// Longest configuration, in bytes.
const CONFIG_MAX: u64 = 4 << 20;

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeContainer {
    /// Its id.
    pub id: String,
    /// Uid of its pod.
    pub pod_uid: String,
    /// Namespace and name of its pod, where they are noted.
    pub pod: Option<(String, String)>,
    /// Its name in the pod.
    pub name: String,
    /// The image as the pod names it, written out by the runtime.
    pub image: String,
    /// Its root on the host.
    pub rootfs: HostPath,
    /// Its runtime configuration, which is there as long as it is.
    pub config: HostPath,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    root: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    path: String,
}

/// The directories that have an entry for each container.
pub fn bundles() -> impl Iterator<Item = HostPath> {
    BUNDLES.iter().map(|(dir, _)| HostPath::from(*dir))
}

/// What a bundle is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bundle {
    /// A container of a pod.
    Container(NodeContainer),
    /// A pod's sandbox, or nothing of a pod's.
    Other,
    /// The runtime has not written what is to be run, or not all of it; or it cannot be read.
    Unfinished,
}

/// All containers, pods' sandboxes not among them.
#[must_use]
pub fn read(root: &Root) -> Vec<NodeContainer> {
    read_all(root).0
}

/// All containers, pods' sandboxes not among them; and whether there is a bundle of which it cannot be said (yet) what it is for.
#[must_use]
pub fn read_all(root: &Root) -> (Vec<NodeContainer>, bool) {
    let (mut containers, mut unfinished) = (Vec::new(), false);
    for (id, bundle) in list(root) {
        match at(root, &id, &bundle) {
            Bundle::Container(container) if containers.len() < CONTAINERS_MAX => containers.push(container),
            Bundle::Container(_) | Bundle::Other => {}
            Bundle::Unfinished => unfinished = true,
        }
    }
    (containers, unfinished)
}

/// All bundles, each with the id of its container.
pub fn list(root: &Root) -> Vec<(String, HostPath)> {
    let mut bundles = Vec::new();
    for (dir, below) in BUNDLES {
        let ids = root.list(&HostPath::from(dir)).unwrap_or_default();
        let ids = ids.into_keys().filter_map(|id| String::from_utf8(id.into_vec()).ok());
        bundles.extend(ids.map(|id| {
            let place = place(dir, &id, below);
            (id, place)
        }));
    }
    bundles
}

fn place(dir: &str, id: &str, below: &str) -> HostPath {
    HostPath::from(format!("{dir}/{id}{below}").as_str())
}

/// What the bundle of the container of that id is for.
#[must_use]
pub fn at(root: &Root, id: &str, bundle: &HostPath) -> Bundle {
    root.read(&bundle.join(b"config.json"), CONFIG_MAX)
        .map_or(Bundle::Unfinished, |text| parse(id, bundle, &text))
}

fn parse(id: &str, bundle: &HostPath, text: &[u8]) -> Bundle {
    match serde_json::from_slice(text) {
        Ok(config) => container(id, bundle, &config).map_or(Bundle::Other, Bundle::Container),
        Err(_) => Bundle::Unfinished,
    }
}

/// The container of that id.
#[must_use]
pub fn find(root: &Root, id: &str) -> Option<NodeContainer> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    BUNDLES.iter().find_map(|(dir, below)| match at(root, id, &place(dir, id, below)) {
        Bundle::Container(container) => Some(container),
        Bundle::Other | Bundle::Unfinished => None,
    })
}

/// The process a container was started with, as its runtime noted it beside its configuration (containerd: `init.pid`;
/// CRI-O: `pidfile`).
#[must_use]
pub fn first_pid(root: &Root, container: &NodeContainer) -> Option<u32> {
    let bundle = container.config.parent()?;
    let text =
        ["init.pid", "pidfile"].iter().find_map(|name| root.read(&bundle.join(name.as_bytes()), 32).ok())?;
    std::str::from_utf8(&text).ok()?.trim().parse().ok().filter(|pid| *pid > 0)
}

fn container(id: &str, bundle: &HostPath, config: &Config) -> Option<NodeContainer> {
    let noted = |names: [&str; 2]| names.iter().find_map(|name| config.annotations.get(*name)).cloned();
    let kind = noted(["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"])?;
    if kind != "container" {
        return None;
    }
    let path = &config.root.path;
    Some(NodeContainer {
        id: id.to_owned(),
        pod_uid: noted(["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"])?,
        pod: noted(["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"])
            .zip(noted(["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"])),
        name: noted(["io.kubernetes.cri.container-name", "io.kubernetes.container.name"])?,
        image: noted(["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"])?,
        rootfs: if path.starts_with('/') {
            HostPath::from(path.as_str())
        } else {
            bundle.join(path.as_bytes())
        },
        config: bundle.join(b"config.json"),
    })
}

/// A reference with what is left out of it by custom: registry, `library/`, tag (`distribution/reference`).
#[must_use]
pub fn written_out(reference: &str) -> String {
    let (name, rest) = reference.split_once('@').map_or((reference, None), |(name, rest)| (name, Some(rest)));
    let slash = name.find('/');
    let first = &name[..slash.unwrap_or(0)];
    let with_registry = slash.is_some() && (first.contains(['.', ':']) || first == "localhost");
    let name = match (with_registry, slash) {
        (true, _) => name.to_owned(),
        (false, Some(_)) => format!("docker.io/{name}"),
        (false, None) => format!("docker.io/library/{name}"),
    };
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    match rest {
        Some(digest) => format!("{name}@{digest}"),
        None if tagged => name,
        None => format!("{name}:latest"),
    }
}

/// What the fuzzers give to the readers of a bundle's configuration, and of image references.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    crate::fuzz::used(parse("1", &HostPath::from("/run/b/1"), bytes));
    if let Ok(text) = std::str::from_utf8(bytes) {
        let whole = written_out(text);
        assert_eq!(written_out(&whole), whole, "what is written out stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::{Bundle, NodeContainer, parse, written_out};
    use crate::model::HostPath;

    #[test]
    fn references_are_written_out() {
        for (short, long) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("istio/proxyv2:1.2", "docker.io/istio/proxyv2:1.2"),
            ("localhost/a", "localhost/a:latest"),
            ("r.example:5000/a/b:1", "r.example:5000/a/b:1"),
            ("a/b@sha256:00", "docker.io/a/b@sha256:00"),
        ] {
            assert_eq!(written_out(short), long);
        }
    }

    #[test]
    fn bundles_of_both_runtimes_are_understood() {
        let bundle = HostPath::from("/run/b/1");
        let containerd = br#"{"root": {"path": "rootfs"}, "annotations": {
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "proxy",
            "io.kubernetes.cri.sandbox-namespace": "n", "io.kubernetes.cri.sandbox-name": "p",
            "io.kubernetes.cri.sandbox-uid": "u", "io.kubernetes.cri.image-name": "docker.io/a/b:1"}}"#;
        let expected = NodeContainer {
            id: "1".into(),
            pod_uid: "u".into(),
            pod: Some(("n".into(), "p".into())),
            name: "proxy".into(),
            image: "docker.io/a/b:1".into(),
            rootfs: HostPath::from("/run/b/1/rootfs"),
            config: HostPath::from("/run/b/1/config.json"),
        };
        let parse = |text: &[u8]| parse("1", &bundle, text);
        assert_eq!(parse(containerd), Bundle::Container(expected.clone()));
        let crio = br#"{"root": {"path": "/var/lib/x/merged"}, "annotations": {
            "io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.container.name": "proxy",
            "io.kubernetes.pod.namespace": "n", "io.kubernetes.pod.name": "p",
            "io.kubernetes.pod.uid": "u", "io.kubernetes.cri-o.ImageName": "docker.io/a/b:1"}}"#;
        let rootfs = HostPath::from("/var/lib/x/merged");
        assert_eq!(parse(crio), Bundle::Container(NodeContainer { rootfs, ..expected }));
        let sandbox = br#"{"root": {"path": "rootfs"}, "annotations": {"io.kubernetes.cri.container-type": "sandbox"}}"#;
        assert_eq!(parse(sandbox), Bundle::Other);
        assert_eq!(parse(&containerd[..40]), Bundle::Unfinished);
    }
}
