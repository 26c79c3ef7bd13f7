//! The pods of a node, told apart without asking the API server: by what the kubelet leaves on disk.
//!
//! A pod is a directory `<kubelet root>/pods/<uid>`. Its namespace and name stand in the name of its log directory
//! (`/var/log/pods/<namespace>_<name>_<uid>`) and in the claims of its service account tokens, which name the account
//! too; failing these, in its `etc-hosts` and in the `namespace` beside its token. All of it is written by the kubelet
//! and can be reached by nobody in a pod; whoever is root on the node can forge it, and gains that an object is
//! missing or differs. What is contradictory is taken for unknown.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;

use crate::baseline::identity::looks_like_token;
use crate::baseline::{EntryKind, Root};
use crate::inventory::api::PodFacts;
use crate::model::{HostPath, Owner};

/// Kubelet directories of the usual distributions: kubeadm and most others, k0s, MicroK8s. The last is a tree that is
/// itself a kubelet's directory.
const ROOTS: [&str; 4] =
    ["/var/lib/kubelet", "/var/lib/k0s/kubelet", "/var/snap/microk8s/common/var/lib/kubelet", "/"];
/// Most pods.
const PODS_MAX: usize = 1 << 14;
/// Most volumes of a pod that are looked at.
const VOLUMES_MAX: usize = 1024;
/// Most files of a projected volume that are looked at for tokens.
const TOKENS_MAX: usize = 64;
/// Longest token and hosts file, in bytes.
const FILE_MAX: u64 = 64 * 1024;
/// Length of a static pod's uid, which has no dashes.
const STATIC_UID: usize = 32;

/// A pod that is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePod {
    /// Its uid.
    pub uid: String,
    /// Its directory on the host.
    pub dir: HostPath,
    /// Its namespace, where that can be told.
    pub namespace: Option<String>,
    /// Its name, where that can be told.
    pub name: Option<String>,
    /// Its service account, where that can be told.
    pub service_account: Option<String>,
    /// Its volumes: `/volumes/<plugin>/<volume>`.
    pub volumes: BTreeSet<Vec<u8>>,
    /// A container of it has been made: its volumes are complete.
    pub started: bool,
    /// Log directory and token name two different pods: one of them is forged.
    pub contradictory: bool,
    /// What told its name.
    pub told_by: Option<Evidence>,
    /// What controls it, as the Kubernetes API tells.
    pub api_owner: Option<Owner>,
}

/// What tells which pod it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The name of its log directory.
    Logs,
    /// The claims of its token.
    Token,
    /// Its hosts file.
    Hosts,
    /// Nothing but the names of its volumes, which fit one workload only.
    Volumes,
    /// Nothing on the node: the Kubernetes API. Its word adds objects to what is watched, and takes no doubt away.
    Api,
}

impl Evidence {
    /// In words for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Logs => "its log directory",
            Self::Token => "its token",
            Self::Hosts => "its hosts file",
            Self::Volumes => "its volumes only",
            Self::Api => "the Kubernetes API only",
        }
    }
}

impl NodePod {
    /// A static pod: made from a file on the node.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.uid.len() == STATIC_UID && !self.uid.contains('-')
    }
}

/// The kubelet's directory below this root: the first that has pods.
#[must_use]
pub fn kubelet_root(root: &Root) -> Option<HostPath> {
    ROOTS.into_iter().map(HostPath::from).find(|dir| root.list(&dir.join(b"pods")).is_ok())
}

/// Whether a path lay in the directory of a pod that is not there any more.
#[must_use]
pub fn went_with_its_pod(root: &Root, kubelet_root: &HostPath, path: &HostPath) -> bool {
    let pods = kubelet_root.join(b"pods");
    let Some(below) = path.below(&pods) else { return false };
    let uid = below.split(|byte| *byte == b'/').next().unwrap_or_default();
    // Without its parent nothing can be said: the kubelet's root may have been moved away.
    root.modified(&pods).is_some() && root.modified(&pods.join(uid)).is_none()
}

/// Uids of the pods that the kubelet has a directory of.
#[must_use]
pub fn uids(root: &Root, kubelet_root: &HostPath) -> BTreeSet<String> {
    let names = root.list(&kubelet_root.join(b"pods")).unwrap_or_default();
    names.into_keys().filter_map(|uid| String::from_utf8(uid.into_vec()).ok()).take(PODS_MAX).collect()
}

/// All pods, by uid. What cannot be read is as if it were not there: what is sealed in it will be missed.
#[must_use]
pub fn read(root: &Root, kubelet_root: &HostPath) -> Vec<NodePod> {
    let logs = logs(root);
    let dir = kubelet_root.join(b"pods");
    let names = root.list(&dir).unwrap_or_default();
    let uids = names.iter().filter(|(_, kind)| **kind == EntryKind::Directory);
    uids.filter_map(|(uid, _)| std::str::from_utf8(uid).ok())
        .take(PODS_MAX)
        .map(|uid| pod(root, dir.join(uid.as_bytes()), uid, logs.get(uid)))
        .collect()
}

/// What a pod's token claims it to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Namespace and name.
    pub names: (String, String),
    /// Service account.
    pub service_account: String,
}

/// Which pod this is, by the claims of its tokens.
#[must_use]
pub fn claimed(root: &Root, kubelet_root: &HostPath, uid: &str) -> Option<Claimed> {
    if uid.is_empty() || uid.contains(['/', '.']) {
        return None;
    }
    let dir = kubelet_root.join(b"pods").join(uid.as_bytes());
    let volumes = volumes(root, &dir);
    let claims = claims(root, &dir, uid, &volumes)?;
    Some(Claimed { names: (claims.namespace, claims.pod), service_account: claims.service_account })
}

/// Pod uid → namespace and name, by the kubelet's log directories.
fn logs(root: &Root) -> BTreeMap<String, (String, String)> {
    let names = root.list(&HostPath::from("/var/log/pods")).unwrap_or_default();
    names
        .keys()
        .filter_map(|name| crate::attribution::pods::parse_log_dir(std::str::from_utf8(name).ok()?))
        .take(PODS_MAX * 4)
        .collect()
}

/// What a token says of the pod it was made for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Claims {
    namespace: String,
    pod: String,
    uid: String,
    service_account: String,
}

fn pod(root: &Root, dir: HostPath, uid: &str, logged: Option<&(String, String)>) -> NodePod {
    let volumes = volumes(root, &dir);
    let claims = claims(root, &dir, uid, &volumes);
    let started = root.list(&dir.join(b"containers")).is_ok_and(|names| !names.is_empty());
    let mut pod = NodePod {
        uid: uid.to_owned(),
        namespace: None,
        name: None,
        service_account: claims.as_ref().map(|claims| claims.service_account.clone()),
        volumes,
        started,
        contradictory: false,
        told_by: None,
        api_owner: None,
        dir,
    };
    let by_token = claims.map(|claims| (claims.namespace, claims.pod));
    match (logged, by_token) {
        (Some(logged), Some(token)) if *logged != token => {
            // One of them is forged, and with it maybe the account.
            (pod.contradictory, pod.service_account) = (true, None);
        }
        (Some(logged), _) => pod.told(logged.clone(), Evidence::Logs),
        (None, Some(token)) => pod.told(token, Evidence::Token),
        (None, None) => {
            pod.namespace = namespace(root, &pod.dir, &pod.volumes);
            pod.name = hosts(root, &pod.dir);
            pod.told_by = pod.name.is_some().then_some(Evidence::Hosts);
        }
    }
    pod
}

impl NodePod {
    /// Takes the API's word for what the node does not tell.
    pub fn told_by_api(&mut self, facts: &PodFacts) {
        let account = match (&self.service_account, &facts.service_account) {
            (Some(disk), Some(told)) => disk == told,
            _ => true,
        };
        let namespace = self.namespace.as_ref().is_none_or(|namespace| *namespace == facts.namespace);
        if self.contradictory || !account || !namespace {
            return;
        }
        if self.told_by.is_none() {
            self.told((facts.namespace.clone(), facts.name.clone()), Evidence::Api);
            self.api_owner.clone_from(&facts.owner);
        } else if self.name.as_ref() == Some(&facts.name) && self.namespace.is_some() {
            self.api_owner.clone_from(&facts.owner);
        }
    }

    fn told(&mut self, (namespace, name): (String, String), by: Evidence) {
        self.namespace = Some(namespace);
        self.name = Some(name);
        self.told_by = Some(by);
    }
}

fn volumes(root: &Root, pod: &HostPath) -> BTreeSet<Vec<u8>> {
    let mut volumes = BTreeSet::new();
    for plugin in root.list(&pod.join(b"volumes")).unwrap_or_default().keys() {
        let at = pod.join(b"volumes").join(plugin);
        for volume in root.list(&at).unwrap_or_default().keys() {
            if volumes.len() < VOLUMES_MAX {
                volumes.insert([b"/volumes/", &**plugin, b"/", &**volume].concat());
            }
        }
    }
    volumes
}

/// Files that the kubelet projects into a pod, as they are published now.
fn projected<'a>(
    root: &'a Root,
    pod: &'a HostPath,
    volumes: &'a BTreeSet<Vec<u8>>,
) -> impl Iterator<Item = HostPath> + 'a {
    volumes.iter().filter(|volume| volume.starts_with(b"/volumes/kubernetes.io~projected/")).flat_map(
        |volume| {
            // Through `..data`, which is a link.
            let at = pod.join(&volume[1..]).join(b"..data").join(b".");
            let names = root.list(&at).unwrap_or_default();
            names.into_keys().take(TOKENS_MAX).map(move |name| at.join(&name)).collect::<Vec<_>>()
        },
    )
}

/// The claims of the first token that was made for this very pod.
fn claims(root: &Root, pod: &HostPath, uid: &str, volumes: &BTreeSet<Vec<u8>>) -> Option<Claims> {
    projected(root, pod, volumes)
        .filter_map(|path| parse_claims(&root.read(&path, FILE_MAX).ok()?))
        .find(|claims| claims.uid == uid)
}

fn parse_claims(token: &[u8]) -> Option<Claims> {
    if !looks_like_token(token) {
        return None;
    }
    let claims = token.trim_ascii().split(|b| *b == b'.').nth(1)?;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(claims.strip_suffix(b"=").unwrap_or(claims))
        .ok()?;
    let json: serde_json::Value = serde_json::from_slice(&json).ok()?;
    let text = |path: &str| json.pointer(&format!("/kubernetes.io/{path}"))?.as_str().map(str::to_owned);
    Some(Claims {
        namespace: text("namespace")?,
        pod: text("pod/name")?,
        uid: text("pod/uid")?,
        service_account: text("serviceaccount/name")?,
    })
}

/// The `namespace` beside the token that the API server has mounted.
fn namespace(root: &Root, pod: &HostPath, volumes: &BTreeSet<Vec<u8>>) -> Option<String> {
    let text = projected(root, pod, volumes)
        .find(|path| path.name() == b"namespace")
        .and_then(|path| root.read(&path, 253).ok())?;
    String::from_utf8(text).ok()
}

/// The host name at the end of the hosts file the kubelet makes (`ensureHostsFile`): a pod's name, or its first 63
/// characters. With the node's network the file is the node's, and says nothing.
fn hosts(root: &Root, pod: &HostPath) -> Option<String> {
    host_name(&String::from_utf8(root.read(&pod.join(b"etc-hosts"), FILE_MAX).ok()?).ok()?)
}

fn host_name(text: &str) -> Option<String> {
    if !text.starts_with("# Kubernetes-managed hosts file.") {
        return None;
    }
    let lines = text.lines().take_while(|line| !line.contains("HostAliases"));
    let last = lines.filter(|line| !line.starts_with('#') && !line.trim().is_empty()).last()?;
    let mut words = last.split_whitespace();
    let address: std::net::IpAddr = words.next()?.parse().ok()?;
    let name = words.last()?;
    (!address.is_loopback() && !address.is_unspecified()).then(|| name.to_owned())
}

/// What the fuzzers give to the readers of tokens and hosts files.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    crate::fuzz::used(parse_claims(bytes));
    crate::fuzz::used(host_name(&String::from_utf8_lossy(bytes)));
}
