//! Volume path → the pod, volume and kind of source it belongs to, and pod uid → names.
//!
//! Path grammar: `<kubelet root>/pods/<uid>/volumes/<plugin>/<volume>/...` (`/` in a plugin's name is `~`). Names come
//! from the directories of /var/log/pods, `<namespace>_<name>_<uid>`, which the kubelet makes for every pod.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::baseline::Root;
use crate::inventory::pods::service_account;
use crate::model::{HostPath, Source, Target};

/// Most pods that are kept.
const PODS_MAX: usize = 1 << 14;
/// Not listed more often than this.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// A pod that has no token is looked at again after this.
const ACCOUNT_EVERY: Duration = Duration::from_secs(10);

/// Names of the pods of this node.
#[derive(Debug)]
pub struct PodNames {
    logs: PathBuf,
    by_uid: HashMap<String, (String, String)>,
    listed: Option<Instant>,
}

impl PodNames {
    /// Pods of the node whose root is mounted at `host_root`.
    #[must_use]
    pub fn new(host_root: &Path) -> Self {
        Self { logs: host_root.join("var/log/pods"), by_uid: HashMap::new(), listed: None }
    }

    /// Namespace and name of a pod. Lists again if the uid is new, at most once a second; pods that are gone are
    /// kept until then.
    pub fn name_of(&mut self, uid: &str) -> Option<(String, String)> {
        if !self.by_uid.contains_key(uid) && self.listed.is_none_or(|at| at.elapsed() > LIST_EVERY) {
            self.list();
        }
        self.by_uid.get(uid).cloned()
    }

    fn list(&mut self) {
        self.listed = Some(Instant::now());
        let Ok(entries) = std::fs::read_dir(&self.logs) else { return };
        if self.by_uid.len() >= PODS_MAX {
            self.by_uid.clear();
        }
        for entry in entries.flatten().take(PODS_MAX) {
            let name = entry.file_name();
            if let Some((uid, names)) = name.to_str().and_then(parse_log_dir) {
                self.by_uid.insert(uid, names);
            }
        }
    }
}

/// Service accounts of the pods of this node, as the claims of their tokens tell them.
#[derive(Debug)]
pub(super) struct Accounts {
    root: Option<Root>,
    known: HashMap<String, (Option<String>, Instant)>,
}

impl Accounts {
    pub(super) fn new(root: Option<Root>) -> Self {
        Self { root, known: HashMap::new() }
    }

    /// That of a pod. A pod without one on disk is looked at again after some time: its token may have come.
    pub(super) fn of(&mut self, uid: &str, kubelet_root: &HostPath) -> Option<String> {
        if let Some((account, at)) = self.known.get(uid)
            && (account.is_some() || at.elapsed() < ACCOUNT_EVERY)
        {
            return account.clone();
        }
        if self.known.len() >= PODS_MAX {
            self.known.clear();
        }
        let account = self.root.as_ref().and_then(|root| service_account(root, kubelet_root, uid));
        self.known.insert(uid.to_owned(), (account.clone(), Instant::now()));
        account
    }
}

/// Uid, namespace and name. Neither namespaces nor names of pods can have an underscore.
pub(crate) fn parse_log_dir(name: &str) -> Option<(String, (String, String))> {
    let mut parts = name.split('_');
    let (namespace, pod, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none() && !namespace.is_empty() && !pod.is_empty() && !uid.is_empty();
    whole.then(|| (uid.to_owned(), (namespace.to_owned(), pod.to_owned())))
}

/// A volume's place in a path of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePath {
    /// Pod uid.
    pub pod_uid: String,
    /// Directory name of the plugin, such as `kubernetes.io~configmap`.
    pub plugin: String,
    /// Volume name.
    pub volume: String,
    /// Container, for a subPath mount.
    pub container: Option<String>,
    /// What follows the volume's directory; empty for the directory itself.
    pub rest: Vec<u8>,
}

/// Takes a volume's path apart.
#[must_use]
pub fn volume_path(path: &HostPath, kubelet_root: &HostPath) -> Option<VolumePath> {
    let below = path.below(&kubelet_root.join(b"pods"))?;
    let mut parts = below.split(|byte| *byte == b'/');
    let mut text =
        || std::str::from_utf8(parts.next()?).ok().filter(|part| !part.is_empty()).map(str::to_owned);
    let (pod_uid, kind) = (text()?, text()?);
    let (plugin, volume, container) = match kind.as_str() {
        "volumes" => (text()?, text()?, None),
        "volume-subpaths" => {
            let (volume, container) = (text()?, text()?);
            (String::new(), volume, Some(container))
        }
        _ => return None,
    };
    let rest: Vec<&[u8]> = parts.collect();
    Some(VolumePath { pod_uid, plugin, volume, container, rest: rest.join(&b'/') })
}

/// The pod a path belongs to; neither its names nor its mesh are known here.
#[must_use]
pub fn target_of(path: &HostPath, kubelet_root: &HostPath) -> Option<Target> {
    if let Some(at) = volume_path(path, kubelet_root) {
        let kind = source_kind(&at.plugin).map(str::to_owned);
        let source = kind.map(|kind| Source { kind, name: Some(at.volume.clone()), ..Source::default() });
        return Some(Target {
            pod_uid: Some(at.pod_uid),
            container: at.container,
            source,
            ..Target::default()
        });
    }
    let below = path.below(&kubelet_root.join(b"pods"))?;
    let uid =
        std::str::from_utf8(below.split(|byte| *byte == b'/').next()?).ok().filter(|uid| !uid.is_empty())?;
    Some(Target { pod_uid: Some(uid.to_owned()), ..Target::default() })
}

/// The kind of source behind a volume plugin's directory name.
#[must_use]
pub fn source_kind(plugin: &str) -> Option<&'static str> {
    Some(match plugin {
        "kubernetes.io~configmap" => "ConfigMap",
        "kubernetes.io~secret" => "Secret",
        "kubernetes.io~projected" => "Projected",
        "kubernetes.io~downward-api" => "DownwardAPI",
        "kubernetes.io~empty-dir" => "EmptyDir",
        "kubernetes.io~csi" => "CSI",
        "kubernetes.io~local-volume" => "Local",
        "kubernetes.io~nfs" => "NFS",
        _ => return None,
    })
}

/// What the fuzzers give to the readers of paths.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let (path, kubelet_root) = (HostPath::new(bytes), HostPath::from("/var/lib/kubelet"));
    crate::fuzz::used((volume_path(&path, &kubelet_root), target_of(&path, &kubelet_root)));
    crate::fuzz::used(parse_log_dir(&String::from_utf8_lossy(bytes)));
}

#[cfg(test)]
mod tests {
    use super::{PodNames, parse_log_dir};
    use crate::attribution::Attribution;
    use crate::model::{HostPath, Source, Target};

    fn target(path: &[u8]) -> Option<Target> {
        let root = tempfile::tempdir().unwrap();
        let profiles = std::sync::Arc::clone(crate::profile::Profiles::built_in());
        let api = std::sync::Arc::new(crate::inventory::api::Known::new(Default::default()));
        let mut attribution =
            Attribution::new(root.path(), HostPath::from("/var/lib/kubelet"), profiles, api);
        attribution.target_of(&HostPath::new(path.to_vec()))
    }

    #[test]
    fn volumes_name_their_pod_and_source() {
        let path =
            b"/var/lib/kubelet/pods/u1/volumes/kubernetes.io~configmap/istiod-ca-cert/..2026/root-cert.pem";
        let expected = Target {
            pod_uid: Some("u1".into()),
            mesh: Some("istio".into()),
            source: Some(Source {
                kind: "ConfigMap".into(),
                name: Some("istiod-ca-cert".into()),
                ..Source::default()
            }),
            ..Target::default()
        };
        assert_eq!(target(path), Some(expected));
    }

    #[test]
    fn subpaths_name_their_container_and_other_files_their_pod() {
        let found = target(b"/var/lib/kubelet/pods/u1/volume-subpaths/tls/control-plane/0").unwrap();
        assert_eq!((found.container.as_deref(), found.source), (Some("control-plane"), None));
        let hosts = target(b"/var/lib/kubelet/pods/u1/etc-hosts").unwrap();
        assert_eq!(hosts, Target { pod_uid: Some("u1".into()), ..Target::default() });
    }

    #[test]
    fn other_paths_belong_to_no_pod() {
        for path in [
            &b"/var/lib/kubelet/pods"[..],
            b"/var/lib/kubelet/pods/",
            b"/var/lib/kubelet/podsx/u1/volumes",
            b"/etc/cni/net.d",
            b"/var/lib/kubelet/pods/\xff/volumes/a/b",
        ] {
            assert_eq!(target(path), None);
        }
    }

    #[test]
    fn names_come_from_the_log_directories() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("var/log/pods/shop_cart-7d9_u-1")).unwrap();
        let mut names = PodNames::new(root.path());
        assert_eq!(names.name_of("u-1"), Some(("shop".into(), "cart-7d9".into())));
        assert_eq!(names.name_of("u-2"), None);
        assert_eq!(parse_log_dir("a_b_c_d"), None);
        assert_eq!(parse_log_dir("a__c"), None);
    }
}
