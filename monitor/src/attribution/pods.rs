//! Volume path → the pod, volume and kind of source it belongs to, and pod uid → names.
//!
//! Path grammar: `<kubelet root>/pods/<uid>/volumes/<plugin>/<volume>/...` (`/` in a plugin's name is `~`). Names come
//! from the directories of /var/log/pods, `<namespace>_<name>_<uid>`, which the kubelet makes for every pod.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::baseline::{Root, SealedObject};
use crate::inventory::pods::{Claimed, claimed};
use crate::model::{HostPath, Source, Target};

/// Most pods that are kept.
const PODS_MAX: usize = 1 << 14;
/// Not listed more often than this.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// A pod that has no token is looked at again after this.
const TOKEN_EVERY: Duration = Duration::from_secs(10);

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

/// Which pods of this node are whose, as the claims of their tokens tell it.
#[derive(Debug)]
pub(super) struct Tokens {
    root: Option<Root>,
    known: HashMap<String, (Option<Claimed>, Instant)>,
}

impl Tokens {
    pub(super) fn new(root: Option<Root>) -> Self {
        Self { root, known: HashMap::new() }
    }

    /// That of a pod. A pod without one on disk is looked at again after some time: its token may have come.
    pub(super) fn of(&mut self, uid: &str, kubelet_root: &HostPath) -> Option<Claimed> {
        if let Some((claimed, at)) = self.known.get(uid)
            && (claimed.is_some() || at.elapsed() < TOKEN_EVERY)
        {
            return claimed.clone();
        }
        if self.known.len() >= PODS_MAX {
            self.known.clear();
        }
        let claimed = self.root.as_ref().and_then(|root| claimed(root, kubelet_root, uid));
        self.known.insert(uid.to_owned(), (claimed.clone(), Instant::now()));
        claimed
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
        // The volume's name is the pod's: what the API object behind it is called, the node does not tell.
        let kind = source_kind(&at.plugin).map(str::to_owned);
        let source = kind.map(|kind| Source { kind, ..Source::default() });
        return Some(Target {
            pod_uid: Some(at.pod_uid),
            container: at.container,
            volume: Some(at.volume),
            source,
            ..Target::default()
        });
    }
    let below = path.below(&kubelet_root.join(b"pods"))?;
    let uid =
        std::str::from_utf8(below.split(|byte| *byte == b'/').next()?).ok().filter(|uid| !uid.is_empty())?;
    Some(Target { pod_uid: Some(uid.to_owned()), ..Target::default() })
}

/// Puts in what the signed baseline says a file of a volume comes from (`ConfigMap/name:key`), where nobody else tells the name.
pub fn sealed_source(target: &mut Target, path: &HostPath, volume: &SealedObject) {
    let Some(rest) = path.below(&volume.path) else { return };
    let known = target.source.as_ref();
    if known.is_some_and(|source| source.name.is_some()) {
        return;
    }
    let entry = volume.seal.member(published(rest));
    let Some((kind, object)) = entry.and_then(|entry| entry.source.as_deref()?.split_once('/')) else {
        return;
    };
    let fits = known.is_none_or(|source| source.kind == kind || source.kind == "Projected");
    if fits && matches!(kind, "ConfigMap" | "Secret") {
        let name = object.split_once(':').map_or(object, |(name, _)| name);
        target.source = Some(Source {
            kind: kind.to_owned(),
            namespace: target.namespace.clone(),
            name: Some(name.to_owned()),
            ..Source::default()
        });
    }
}

/// A file's path in its volume as the pod's spec writes it: without the directory of its publication.
pub(super) fn published(rest: &[u8]) -> &[u8] {
    if rest.starts_with(b"..") {
        return rest.iter().position(|byte| *byte == b'/').map_or(&[][..], |at| &rest[at + 1..]);
    }
    rest
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
    use super::{PodNames, parse_log_dir, sealed_source};
    use crate::attribution::Attribution;
    use crate::baseline::{Anchor, Attributes, Publish, Rule, Seal, SealedObject, VolumeEntry};
    use crate::model::{Class, HostPath, Source, Target};

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
            volume: Some("istiod-ca-cert".into()),
            source: Some(Source { kind: "ConfigMap".into(), ..Source::default() }),
            ..Target::default()
        };
        assert_eq!(target(path), Some(expected));
    }

    #[test]
    fn a_signed_baseline_names_the_source_that_the_node_does_not_tell() {
        let volume = HostPath::from("/var/lib/kubelet/pods/u1/volumes/kubernetes.io~projected/certs");
        let entry = |path: &str, source: &str| VolumeEntry {
            path: path.as_bytes().into(),
            class: Class::Sealed,
            file: None,
            source: Some(source.into()),
            attributes: Attributes::default(),
        };
        let entries = [
            entry("ca", "ConfigMap/roots:ca.crt"),
            entry("key", "Secret/tls:tls.key"),
            entry("ns", "DownwardAPI/x"),
        ];
        let rule = Rule {
            anchor: Anchor::Host,
            mounts: Vec::new(),
            class: Class::Sealed,
            publish: Publish::default(),
            attributes: Attributes::default(),
            writers: Vec::new(),
        };
        let seal = Seal::Volume { entries: entries.into() };
        let object = SealedObject { path: volume.clone(), rule: rule.into(), seal };
        let named = |file: &str, source: Option<Source>| {
            let mut target = Target { namespace: Some("shop".into()), source, ..Target::default() };
            sealed_source(&mut target, &volume.join(file.as_bytes()), &object);
            target.source.map(|source| (source.kind, source.name, source.namespace))
        };
        let of = |kind: &str| Some(Source { kind: kind.into(), ..Source::default() });
        let told =
            |kind: &str, name: &str| Some((kind.to_owned(), Some(name.to_owned()), Some("shop".to_owned())));
        assert_eq!(named("..2026/ca", of("Projected")), told("ConfigMap", "roots"));
        assert_eq!(named("key", None), told("Secret", "tls"));
        // Where it is of no object, of another kind, or not sealed, nothing is said.
        for (file, kind) in [("ns", "Projected"), ("ca", "Secret"), ("other", "Projected")] {
            assert_eq!(named(file, of(kind)), Some((kind.to_owned(), None, None)));
        }
        // What the API tells stands.
        let api = Source { name: Some("a".into()), ..of("ConfigMap").unwrap() };
        assert_eq!(named("ca", Some(api)), Some(("ConfigMap".into(), Some("a".into()), None)));
    }

    #[test]
    fn subpaths_name_their_container_and_other_files_their_pod() {
        let found = target(b"/var/lib/kubelet/pods/u1/volume-subpaths/tls/control-plane/0").unwrap();
        assert_eq!((found.container.as_deref(), found.source), (Some("control-plane"), None));
        assert_eq!(found.volume.as_deref(), Some("tls"));
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
