//! Which files of this node are mesh files, and whose: what `unsealed` counts and `propose` offers.
//!
//! Four places are looked at: the CNI directories, the paths of the host that profiles name, the volumes of pods, and the
//! executables of running processes. What of it is a mesh's, the profiles say. Nothing is hashed or opened here.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::mounts::Mounts;
use super::procs::{Proc, base_name, read};
use crate::attribution::{below_root, cgroup};
use crate::model::{Class, HostPath};
use crate::profile::{Layout, Match, OnDisk, Profiles};
use crate::text::wildcard;

/// Most files that are listed.
const FILES_MAX: usize = 20_000;
/// Most entries of one directory that are looked at.
const ENTRIES_MAX: usize = 4096;
/// Most paths of the host that are looked at because profiles name them: `/a/*/*/*` may be anything.
const HOST_MAX: usize = 1 << 16;
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
    pub mesh: String,
    /// The profile that tells of it.
    pub profile: String,
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

/// Looks at the whole node. Costs a listing of the pods' volumes, of the CNI directories, and of /proc.
#[must_use]
pub fn find(host_root: &Path, layout: &Layout, profiles: &Profiles, proc: &Proc) -> Found {
    let mut files = BTreeMap::new();
    let mut add = |file: MeshFile| {
        let room = files.len() < FILES_MAX || files.contains_key(&file.path);
        if room {
            files.entry(file.path.clone()).or_insert(file);
        }
        room
    };
    let node = Node { host_root, layout, profiles };
    // What every pod can make more of comes last: it must not push the node's own files out.
    let complete =
        node.cni(&mut add) & node.host(&mut add) & node.volumes(&mut add) & node.binaries(proc, &mut add);
    Found { files: files.into_values().collect(), truncated: !complete }
}

/// The node that is looked at.
struct Node<'n> {
    host_root: &'n Path,
    layout: &'n Layout,
    profiles: &'n Profiles,
}

impl Node<'_> {
    /// A file that a profile tells of, as it tells.
    fn told(&self, path: HostPath, pod_uid: Option<String>) -> Option<MeshFile> {
        let around = OnDisk { host_root: self.host_root, kubelet_root: &self.layout.kubelet_root };
        let Match { profile, rule } = self.profiles.rule_of(&path, self.layout, &around)?;
        Some(MeshFile {
            path,
            what: rule.about.clone(),
            class: rule.class,
            mesh: profile.mesh.clone(),
            profile: profile.name.clone(),
            pod_uid,
        })
    }

    fn volumes(&self, add: &mut impl FnMut(MeshFile) -> bool) -> bool {
        let mut complete = true;
        let pods = self.layout.kubelet_root.join(b"pods");
        for pod in names(self.host_root, &pods, &mut complete) {
            let Ok(pod_uid) = String::from_utf8(pod.clone()) else { continue };
            let dir = pods.join(&pod).join(b"volumes");
            for plugin in names(self.host_root, &dir, &mut complete) {
                let dir = dir.join(&plugin);
                for volume in names(self.host_root, &dir, &mut complete) {
                    let told = self.told(dir.join(&volume), Some(pod_uid.clone()));
                    if told.is_some_and(|file| !add(file)) {
                        return false;
                    }
                }
            }
        }
        complete
    }

    fn cni(&self, add: &mut impl FnMut(MeshFile) -> bool) -> bool {
        let mut complete = true;
        for dir in self.layout.cni.conf.iter().chain(&self.layout.cni.bin) {
            for name in names(self.host_root, dir, &mut complete) {
                if self.told(dir.join(&name), None).is_some_and(|file| !add(file)) {
                    return false;
                }
            }
        }
        complete
    }

    /// Paths of the host that profiles name. No symlink on the way is followed: what it leads to has another path, of which no
    /// rule may say anything, and may be where a pod wants it. Sockets, FIFOs and devices cannot be sealed, and are not listed.
    fn host(&self, add: &mut impl FnMut(MeshFile) -> bool) -> bool {
        let (mut complete, mut room) = (true, HOST_MAX);
        for parts in self.profiles.host_paths() {
            let mut found = vec![HostPath::from("/")];
            for (depth, part) in parts.iter().enumerate() {
                let last = depth + 1 == parts.len();
                let mut next = Vec::new();
                for dir in &found {
                    for name in fitting(self.host_root, dir, part, &mut complete) {
                        if room == 0 {
                            return false;
                        }
                        room -= 1;
                        let path = dir.join(&name);
                        let kind = std::fs::symlink_metadata(below_root(self.host_root, &path));
                        let kind = kind.map(|meta| meta.file_type());
                        if kind
                            .is_ok_and(|kind| kind.is_dir() || last && (kind.is_file() || kind.is_symlink()))
                        {
                            next.push(path);
                        }
                    }
                }
                found = next;
            }
            for path in found {
                let is_dir = below_root(self.host_root, &path).is_dir();
                // Of an opaque directory nothing is sealed but its names, and those come and go with who made it.
                let file = self.told(path, None).filter(|file| !is_dir || file.class != Class::Opaque);
                if file.is_some_and(|file| !add(file)) {
                    return false;
                }
            }
        }
        complete
    }

    fn binaries(&self, proc: &Proc, add: &mut impl FnMut(MeshFile) -> bool) -> bool {
        let mounts = Mounts::read(&proc.path(1, "mountinfo")).unwrap_or_default();
        for pid in proc.pids().unwrap_or_default() {
            let Some(exe) = proc.exe(pid) else { continue };
            let called = exe.as_bytes().strip_suffix(b" (deleted)").unwrap_or_else(|| exe.as_bytes());
            let Some((profile, _)) = self.profiles.executable(called) else { continue };
            let pod = proc.cgroup(pid).as_deref().and_then(cgroup::parse);
            let Some(path) = host_path(self.host_root, proc, &mounts, pid, &exe) else { continue };
            let file = MeshFile {
                path,
                what: format!("executable {}", String::from_utf8_lossy(base_name(called))),
                class: Class::Sealed,
                mesh: profile.mesh.clone(),
                profile: profile.name.clone(),
                pod_uid: pod.map(|pod| pod.pod_uid),
            };
            if !add(file) {
                return false;
            }
        }
        true
    }
}

/// Where the host sees what a process runs: in the host's own tree, or below the mount of its container's root.
fn host_path(host_root: &Path, proc: &Proc, mounts: &Mounts, pid: u32, exe: &HostPath) -> Option<HostPath> {
    let inode = proc.exe_inode(pid)?;
    let same =
        |path: &HostPath| super::inodes::at(&below_root(host_root, path)).is_ok_and(|found| found == inode);
    if same(exe) {
        return Some(exe.clone());
    }
    mounts.host_path(inode.dev, exe).filter(same)
}

/// Names in a directory that a part of a pattern fits: itself, there or not, where it has no placeholder.
fn fitting(host_root: &Path, dir: &HostPath, part: &[u8], complete: &mut bool) -> Vec<Vec<u8>> {
    if !part.iter().any(|byte| matches!(byte, b'*' | b'?')) {
        return vec![part.to_vec()];
    }
    let mut all = names(host_root, dir, complete);
    all.retain(|name| wildcard(part, name));
    all
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
    use crate::profile::{Layout, Profiles};
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
                let layout = Layout { cni: CniDirs::find(root.path()), ..Layout::default() };
                find(root.path(), &layout, Profiles::built_in(), &Proc::new(empty.path()))
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
    fn paths_of_the_host_that_profiles_name_are_found() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |path: &str| root.path().join(path);
        for dir in [
            "run/istio-cni",
            "run/ztunnel",
            "run/spire/agent-sockets",
            "tmp/cert-manager-csi-driver/inmemfs/a",
            "tmp/cert-manager-csi-driver/inmemfs/b",
            "opt/hp",
            "srv/real",
        ] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        for file in ["run/istio-cni/istio-cni-kubeconfig", "opt/hp/f", "opt/hp/other", "srv/real/f"] {
            fs::write(at(file), "").unwrap();
        }
        fs::write(outside.path().join("f"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("run/ztunnel/ztunnel.sock")).unwrap();
        for (target, link) in [("real", "srv/way"), ("/etc/shadow", "opt/hp/link")] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        std::os::unix::fs::symlink(outside.path(), at("srv/out")).unwrap();
        let rule = |path: &str, class: &str| {
            format!("  - {{ path: \"{path}\", about: own, class: {class}, role: other }}\n")
        };
        let rules = [
            ("/opt/hp/f", "sealed"),
            ("/opt/hp/l*k", "opaque"),
            ("/opt/hp/absent", "sealed"),
            ("/srv/way/f", "sealed"),
            ("/srv/out/f", "sealed"),
            ("/srv/*/f", "generated"),
        ]
        .map(|(path, class)| rule(path, class))
        .concat();
        let own = root.path().join("own.yaml");
        let text = format!(
            "apiVersion: meshseal/v1\nprofile: one\nmesh: m\nabout: a\nreadFrom: r\nstatus: read\nfiles:\n{rules}"
        );
        fs::write(&own, text).unwrap();
        let profiles = Profiles::with(&[own]).unwrap();
        let empty = tempfile::tempdir().unwrap();
        let layout = Layout { cni: CniDirs::find(root.path()), ..Layout::default() };
        let found = find(root.path(), &layout, &profiles, &Proc::new(empty.path()));
        assert!(!found.truncated);
        let told: Vec<_> = found
            .files
            .iter()
            .map(|file| (file.path.to_string(), file.class, file.profile.as_str(), file.pod_uid.is_some()))
            .collect();
        let of = |path: &str, class, profile| (path.to_owned(), class, profile, false);
        let expected = [
            of("/opt/hp/f", Class::Sealed, "one"),
            of("/opt/hp/link", Class::Opaque, "one"),
            of("/run/istio-cni/istio-cni-kubeconfig", Class::Rotated, "istio-cni"),
            of("/srv/real/f", Class::Generated, "one"),
            of("/tmp/cert-manager-csi-driver/inmemfs/a", Class::Rotated, "cert-manager-csi"),
            of("/tmp/cert-manager-csi-driver/inmemfs/b", Class::Rotated, "cert-manager-csi"),
        ];
        assert_eq!(told, expected);
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
        let layout = Layout { cni: CniDirs::find(root.path()), ..Layout::default() };
        let found = find(root.path(), &layout, Profiles::built_in(), &Proc::new(empty.path()));
        let file =
            |path: &str, what: &str, class, (mesh, profile): (&str, &str), pod: Option<&str>| MeshFile {
                path: HostPath::from(path),
                what: what.to_owned(),
                class,
                mesh: mesh.to_owned(),
                profile: profile.to_owned(),
                pod_uid: pod.map(str::to_owned),
            };
        let expected = [
            file("/etc/cni/net.d/10-x.conflist", "CNI configuration", Class::Sealed, ("cni", "cni"), None),
            file("/opt/cni/bin/istio-cni", "CNI plugin", Class::Sealed, ("istio", "istio-cni"), None),
            file(
                "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~configmap/istiod-ca-cert",
                "Istio root certificate",
                Class::Sealed,
                ("istio", "istio-proxy"),
                Some("u-1"),
            ),
            file(
                "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/istio-envoy",
                "Envoy bootstrap",
                Class::Generated,
                ("istio", "istio-proxy"),
                Some("u-1"),
            ),
        ];
        assert_eq!((found.files.as_slice(), found.truncated), (expected.as_slice(), false));
    }
}
