//! Which files of this node are mesh files, and whose: what `unsealed` counts and `propose` offers.
//!
//! Three places are looked at: the volumes that meshes inject into pods, the CNI directories, and the executables of
//! running proxies. Nothing is hashed or opened here. Layouts: Istio's injection template, Linkerd's, Consul's and
//! Kuma's charts, the CNI specification.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::mounts::Mounts;
use super::procs::{Proc, base_name, read};
use crate::attribution::pods::{mesh_of_volume, source_kind};
use crate::attribution::{below_root, cgroup};
use crate::model::{Class, HostPath};

/// Most files that are listed.
const FILES_MAX: usize = 20_000;
/// Most entries of one directory that are looked at.
const ENTRIES_MAX: usize = 4096;
/// Largest runtime configuration that is read, in bytes.
const CONFIG_MAX: u64 = 1 << 20;

/// A file or directory that belongs to a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshFile {
    /// Path on the host.
    pub path: HostPath,
    /// What it is, for people.
    pub what: String,
    /// How it may change.
    pub class: Class,
    /// `istio`, `linkerd`, ...; `cni` where it serves any.
    pub mesh: &'static str,
    /// The pod it belongs to.
    pub pod_uid: Option<String>,
}

/// Where CNI plugins and their configuration lie on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniDirs {
    /// Directories of plugin chains.
    pub conf: Vec<HostPath>,
    /// Directories of plugins.
    pub bin: Vec<HostPath>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// By path.
    pub files: Vec<MeshFile>,
    /// There were more than are listed.
    pub truncated: bool,
}

/// Injected volumes: name, plugin's kind, what it holds, class.
const VOLUMES: [(&str, &str, &str, Class); 19] = [
    ("istiod-ca-cert", "ConfigMap", "Istio root certificate", Class::Sealed),
    ("istiod-ca-cert", "Projected", "Istio root certificate", Class::Sealed),
    ("istio-ca-crl", "ConfigMap", "Istio revocation list", Class::Rotated),
    ("custom-bootstrap-volume", "ConfigMap", "Envoy bootstrap override", Class::Sealed),
    ("istio-envoy", "EmptyDir", "Envoy bootstrap", Class::Generated),
    ("istio-data", "EmptyDir", "Istio agent's data and WebAssembly modules", Class::Generated),
    ("istio-token", "Projected", "Istio service account token", Class::Rotated),
    ("istio-podinfo", "DownwardAPI", "pod labels and annotations", Class::Rotated),
    ("istio-certs", "Secret", "Istio workload certificates", Class::Rotated),
    ("workload-certs", "EmptyDir", "workload certificates (normally none)", Class::Sealed),
    ("workload-socket", "EmptyDir", "workload API socket", Class::Opaque),
    ("credential-socket", "EmptyDir", "credential socket", Class::Opaque),
    ("cacerts", "Secret", "Istio signing CA", Class::Sealed),
    ("istio-csr-dns-cert", "Secret", "istiod's certificate", Class::Rotated),
    ("linkerd-identity-end-entity", "EmptyDir", "Linkerd identity key", Class::Generated),
    ("linkerd-identity-token", "Projected", "Linkerd identity token", Class::Rotated),
    ("consul-connect-inject-data", "EmptyDir", "Consul CA and proxy id", Class::Generated),
    ("kuma-sidecar-tmp", "EmptyDir", "Kuma's Envoy bootstrap", Class::Generated),
    ("envoy-config", "ConfigMap", "Cilium's Envoy bootstrap", Class::Sealed),
];

/// Executables of meshes, by their file's name.
const BINARIES: [(&[u8], &str); 13] = [
    (b"pilot-agent", "istio"),
    (b"pilot-discovery", "istio"),
    (b"ztunnel", "istio"),
    (b"install-cni", "istio"),
    (b"envoy", "envoy"),
    (b"linkerd2-proxy", "linkerd"),
    (b"linkerd2-proxy-identity", "linkerd"),
    (b"consul-dataplane", "consul"),
    (b"kuma-dp", "kuma"),
    (b"kuma-cp", "kuma"),
    (b"cilium-envoy", "cilium"),
    (b"cilium-envoy-starter", "cilium"),
    (b"spire-agent", "spire"),
];

/// Looks at the whole node. Costs a listing of the pods' volumes, of the CNI directories, and of /proc.
#[must_use]
pub fn find(host_root: &Path, kubelet_root: &HostPath, cni: &CniDirs, proc: &Proc) -> Found {
    let mut files = BTreeMap::new();
    let mut add = |file: MeshFile| {
        let room = files.len() < FILES_MAX || files.contains_key(&file.path);
        if room {
            files.entry(file.path.clone()).or_insert(file);
        }
        room
    };
    // What every pod can make more of comes last: it must not push the node's own files out.
    let complete = cni_files(host_root, cni, &mut add)
        & volumes(host_root, kubelet_root, &mut add)
        & binaries(host_root, proc, &mut add);
    Found { files: files.into_values().collect(), truncated: !complete }
}

fn volumes(host_root: &Path, kubelet_root: &HostPath, add: &mut impl FnMut(MeshFile) -> bool) -> bool {
    let mut complete = true;
    let pods = kubelet_root.join(b"pods");
    for pod in names(host_root, &pods, &mut complete) {
        let Ok(pod_uid) = String::from_utf8(pod.clone()) else { continue };
        let dir = pods.join(&pod).join(b"volumes");
        for plugin in names(host_root, &dir, &mut complete) {
            let Some(kind) = std::str::from_utf8(&plugin).ok().and_then(source_kind) else { continue };
            for volume in names(host_root, &dir.join(&plugin), &mut complete) {
                let Ok(name) = std::str::from_utf8(&volume) else { continue };
                let Some(mesh) = mesh_of_volume(name) else { continue };
                let known = VOLUMES.iter().find(|known| (known.0, known.1) == (name, kind));
                let (what, class) = known.map_or_else(
                    || (format!("{kind} volume {name}"), class_of(kind)),
                    |known| (known.2.to_owned(), known.3),
                );
                let path = dir.join(&plugin).join(&volume);
                if !add(MeshFile { path, what, class, mesh, pod_uid: Some(pod_uid.clone()) }) {
                    return false;
                }
            }
        }
    }
    complete
}

fn class_of(kind: &str) -> Class {
    match kind {
        "ConfigMap" | "Secret" => Class::Sealed,
        "EmptyDir" => Class::Generated,
        "CSI" => Class::Opaque,
        _ => Class::Rotated,
    }
}

fn cni_files(host_root: &Path, cni: &CniDirs, add: &mut impl FnMut(MeshFile) -> bool) -> bool {
    let mut complete = true;
    let conf = cni.conf.iter().map(|dir| (dir, "CNI configuration"));
    for (dir, what) in conf.chain(cni.bin.iter().map(|dir| (dir, "CNI plugin"))) {
        for name in names(host_root, dir, &mut complete) {
            let text = String::from_utf8_lossy(&name);
            let mesh =
                ["istio", "linkerd", "consul", "kuma", "cilium"].into_iter().find(|mesh| text.contains(mesh));
            // A kubeconfig holds a token that is renewed; all else only changes with an installation.
            let rotated = text.contains("kubeconfig") || text.contains("host-token");
            let class = if rotated { Class::Rotated } else { Class::Sealed };
            let mesh = mesh.unwrap_or("cni");
            if !add(MeshFile { path: dir.join(&name), what: what.to_owned(), class, mesh, pod_uid: None }) {
                return false;
            }
        }
    }
    complete
}

fn binaries(host_root: &Path, proc: &Proc, add: &mut impl FnMut(MeshFile) -> bool) -> bool {
    let mounts = Mounts::read(&proc.path(1, "mountinfo")).unwrap_or_default();
    for pid in proc.pids().unwrap_or_default() {
        let Some(exe) = proc.exe(pid) else { continue };
        let name = base_name(exe.as_bytes());
        let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
        let Some((_, mesh)) = BINARIES.iter().find(|(known, _)| *known == name) else { continue };
        let pod = proc.cgroup(pid).as_deref().and_then(cgroup::parse);
        let Some(path) = host_path(host_root, proc, &mounts, pid, &exe) else { continue };
        let what = format!("executable {}", String::from_utf8_lossy(name));
        let pod_uid = pod.map(|pod| pod.pod_uid);
        if !add(MeshFile { path, what, class: Class::Sealed, mesh, pod_uid }) {
            return false;
        }
    }
    true
}

/// Where the host sees what a process runs: in the host's own tree, or below the mount of its container's root.
fn host_path(host_root: &Path, proc: &Proc, mounts: &Mounts, pid: u32, exe: &HostPath) -> Option<HostPath> {
    let inode = proc.exe_inode(pid)?;
    let same = |path: &HostPath| {
        std::fs::metadata(below_root(host_root, path))
            .is_ok_and(|meta| super::procs::inode_key(&meta) == inode)
    };
    if same(exe) {
        return Some(exe.clone());
    }
    mounts.host_path(inode.dev, exe).filter(same)
}

/// Whether a mesh calls one of its executables so.
#[must_use]
pub fn is_mesh_binary(name: &[u8]) -> bool {
    BINARIES.iter().any(|(known, _)| *known == name)
}

/// Names in a directory of the host; `complete` is cleared where there are more than are looked at.
fn names(host_root: &Path, dir: &HostPath, complete: &mut bool) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(below_root(host_root, dir)) else { return Vec::new() };
    let mut entries = entries.flatten();
    let mut names: Vec<_> =
        entries.by_ref().take(ENTRIES_MAX).map(|entry| entry.file_name().as_bytes().to_vec()).collect();
    *complete &= entries.next().is_none();
    names.sort();
    names
}

impl CniDirs {
    /// The defaults, and what containerd's or CRI-O's configuration names instead or as well.
    #[must_use]
    pub fn find(host_root: &Path) -> Self {
        let (mut conf, mut bin) = (Vec::new(), Vec::new());
        let files = [
            "/etc/containerd/config.toml",
            "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
            "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
            "/var/snap/microk8s/current/args/containerd.toml",
            "/etc/crio/crio.conf",
        ];
        for file in files {
            let Ok(text) = read(&below_root(host_root, &HostPath::from(file)), CONFIG_MAX) else { continue };
            for line in String::from_utf8_lossy(&text).lines() {
                let Some((key, value)) = line.split_once('=') else { continue };
                let paths = match key.trim() {
                    "conf_dir" | "network_dir" => &mut conf,
                    "bin_dir" | "bin_dirs" | "plugin_dirs" => &mut bin,
                    _ => continue,
                };
                for path in quoted(value).filter(|path| path.starts_with('/')) {
                    push(paths, HostPath::from(path));
                }
            }
        }
        push(&mut conf, HostPath::from("/etc/cni/net.d"));
        push(&mut bin, HostPath::from("/opt/cni/bin"));
        Self { conf, bin }
    }
}

fn push(paths: &mut Vec<HostPath>, path: HostPath) {
    if !paths.contains(&path) {
        paths.push(path);
    }
}

/// The strings of a TOML value on one line.
fn quoted(value: &str) -> impl Iterator<Item = &str> {
    let value = value.split(" #").next().unwrap_or(value);
    value.split(['"', '\'']).skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::{CniDirs, ENTRIES_MAX, MeshFile, find};
    use crate::inventory::procs::Proc;
    use crate::model::{Class, HostPath};
    use std::fs;

    fn paths(list: &[&str]) -> Vec<HostPath> {
        list.iter().map(|path| HostPath::from(*path)).collect()
    }

    #[test]
    fn cni_directories_come_from_the_runtime() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(
            CniDirs::find(root.path()),
            CniDirs { conf: paths(&["/etc/cni/net.d"]), bin: paths(&["/opt/cni/bin"]) }
        );
        fs::create_dir_all(root.path().join("etc/containerd")).unwrap();
        let toml = "version = 3\n  bin_dirs = ['/a', \"/b\"] # '/no'\n  conf_dir = \"/c\"\nbin_dir=\"relative\"\n\u{0}";
        fs::write(root.path().join("etc/containerd/config.toml"), toml).unwrap();
        assert_eq!(
            CniDirs::find(root.path()),
            CniDirs { conf: paths(&["/c", "/etc/cni/net.d"]), bin: paths(&["/a", "/b", "/opt/cni/bin"]) }
        );
    }

    #[test]
    fn a_list_that_is_cut_says_so_and_keeps_room_for_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let (bin, empty) = (root.path().join("opt/cni/bin"), tempfile::tempdir().unwrap());
        fs::create_dir_all(&bin).unwrap();
        let volume = root.path().join("var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/istio-envoy");
        fs::create_dir_all(volume).unwrap();
        for at in 0..=ENTRIES_MAX {
            let found = || {
                let (kubelet, cni) = (HostPath::from("/var/lib/kubelet"), CniDirs::find(root.path()));
                find(root.path(), &kubelet, &cni, &Proc::new(empty.path()))
            };
            if at == ENTRIES_MAX {
                let whole = found();
                assert_eq!((whole.files.len(), whole.truncated), (ENTRIES_MAX + 1, false));
            }
            fs::write(bin.join(format!("p{at}")), "").unwrap();
            if at == ENTRIES_MAX {
                let cut = found();
                assert_eq!((cut.files.len(), cut.truncated), (ENTRIES_MAX + 1, true));
            }
        }
    }

    #[test]
    fn volumes_and_plugins_are_found() {
        let root = tempfile::tempdir().unwrap();
        let pods = "var/lib/kubelet/pods/u-1/volumes";
        for dir in [
            "kubernetes.io~configmap/istiod-ca-cert",
            "kubernetes.io~empty-dir/scratch",
            "kubernetes.io~empty-dir/istio-envoy",
        ] {
            fs::create_dir_all(root.path().join(pods).join(dir)).unwrap();
        }
        for file in ["opt/cni/bin/istio-cni", "etc/cni/net.d/10-x.conflist"] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let empty = tempfile::tempdir().unwrap();
        let cni = CniDirs::find(root.path());
        let found = find(root.path(), &HostPath::from("/var/lib/kubelet"), &cni, &Proc::new(empty.path()));
        let file = |path: &str, what: &str, class, mesh, pod: Option<&str>| MeshFile {
            path: HostPath::from(path),
            what: what.to_owned(),
            class,
            mesh,
            pod_uid: pod.map(str::to_owned),
        };
        let expected = [
            file("/etc/cni/net.d/10-x.conflist", "CNI configuration", Class::Sealed, "cni", None),
            file("/opt/cni/bin/istio-cni", "CNI plugin", Class::Sealed, "istio", None),
            file(
                "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~configmap/istiod-ca-cert",
                "Istio root certificate",
                Class::Sealed,
                "istio",
                Some("u-1"),
            ),
            file(
                "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/istio-envoy",
                "Envoy bootstrap",
                Class::Generated,
                "istio",
                Some("u-1"),
            ),
        ];
        assert_eq!((found.files.as_slice(), found.truncated), (expected.as_slice(), false));
    }
}
