//! Which pods of the node belong to which workload, and where a workload's objects lie.
//!
//! A pod belongs to a workload if namespace, service account (where the node tells it) and name fit. Names are made
//! by controllers: `<owner>-<random>`, random being letters that make no words (`k8s.io/apimachinery`,
//! `util/rand`), so that `web` seldom takes a pod of `web-admin`; where two still fit, the volumes decide, then the
//! longer name. A pod that fits two alike belongs to none, and that is said.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::containers::{NodeContainer, written_out};
use super::pods::{Evidence, NodePod};
use crate::baseline::{Anchor, Image, Root, Seal, SealedObject, Workload, WorkloadKind};
use crate::model::HostPath;

/// Letters of what is random in a pod's name (`k8s.io/apimachinery/pkg/util/rand`).
const RANDOM: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many of them end a pod's name.
const SUFFIX: usize = 5;
/// Longest part of a pod's name before them (`k8s.io/apiserver/pkg/storage/names`).
const BASE_MAX: usize = 58;
/// Longest host name.
const HOST_MAX: usize = 63;
/// The sticky bit, which a tmpfs has on its root.
const STICKY: u16 = 0o1000;

/// What the objects of workloads are on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Objects with the paths of the host, by pod.
    pub objects: Vec<SealedObject>,
    /// Pods that were found.
    pub pods: Vec<ResolvedPod>,
    /// Containers that were found.
    pub containers: Vec<ResolvedContainer>,
    /// Workloads that have no pod here.
    pub absent: Vec<Arc<Workload>>,
    /// Images that no container here is made from.
    pub absent_images: Vec<Arc<Image>>,
    /// Pods that cannot be told, or fit more than one workload.
    pub unknown: Vec<UnknownPod>,
    /// Volumes of these pods that the kubelet publishes, and that no object covers.
    pub uncovered: Vec<HostPath>,
}

/// A pod of which it cannot be said what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPod {
    /// Its uid.
    pub uid: String,
    /// Why.
    pub reason: String,
    /// It may well belong to a sealed workload.
    pub may_be_sealed: bool,
}

/// A container with the image it is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedContainer {
    /// Its id.
    pub id: String,
    /// Uid of its pod.
    pub pod_uid: String,
    /// Namespace and name of its pod, where they are known.
    pub pod: Option<(String, String)>,
    /// Its name in the pod.
    pub name: String,
    /// Its image.
    pub image: Arc<Image>,
    /// The image as the pod names it.
    pub named: String,
    /// What is there as long as the container is.
    pub lives_by: HostPath,
    /// Its objects, as a range of [`Resolution::objects`].
    pub objects: std::ops::Range<usize>,
}

/// A pod with the workload it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPod {
    /// Its uid.
    pub uid: String,
    /// Namespace and name, where they are known.
    pub name: Option<(String, String)>,
    /// Its workload.
    pub workload: Arc<Workload>,
    /// What told.
    pub told_by: Evidence,
    /// Its objects, as a range of [`Resolution::objects`].
    pub objects: std::ops::Range<usize>,
}

/// How much is expected to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Everything: a tree that holds still.
    All,
    /// What a starting pod already has; everything, once it has started.
    Started,
}

/// Finds the pods of the workloads that `objects` are anchored to, and gives each its objects.
#[must_use]
pub fn resolve(root: &Root, objects: &[SealedObject], pods: &[NodePod], expect: Expect) -> Resolution {
    let workloads = workloads(objects);
    let mut resolution = Resolution::default();
    let mut found = BTreeSet::new();
    for pod in pods {
        let (workload, told_by) = match owner(pod, &workloads, expect) {
            Owner::None => continue,
            Owner::Unclear(reason, may_be_sealed) => {
                resolution.unknown.push(UnknownPod { uid: pod.uid.clone(), reason, may_be_sealed });
                continue;
            }
            Owner::Of(workload, told_by) => (workload, told_by),
        };
        found.insert(Arc::clone(&workload.workload));
        let first = resolution.objects.len();
        let mut covered = BTreeSet::new();
        for object in &workload.objects {
            for path in places(root, object, pod, expect) {
                covered.insert(path.clone());
                resolution.objects.push(at(root, object, path));
            }
        }
        let published = pod.volumes.iter().filter(|volume| is_published(volume));
        let paths = published.map(|volume| pod.dir.join(&volume[1..]));
        resolution.uncovered.extend(paths.filter(|path| !covered.contains(path)));
        resolution.pods.push(ResolvedPod {
            uid: pod.uid.clone(),
            name: pod.namespace.clone().zip(pod.name.clone()),
            workload: Arc::clone(&workload.workload),
            told_by,
            objects: first..resolution.objects.len(),
        });
    }
    let absent = workloads.into_iter().map(|known| known.workload);
    resolution.absent = absent.filter(|workload| !found.contains(workload)).collect();
    resolution
}

/// Finds the containers of the images that `objects` are anchored to, and adds each one's objects. A container is of
/// an image if its pod names it by one of the image's references or by one of its digests.
pub fn resolve_images(
    root: &Root,
    objects: &[SealedObject],
    containers: &[NodeContainer],
    resolution: &mut Resolution,
) {
    let mut images: Vec<(&Arc<Image>, Vec<&SealedObject>)> = Vec::new();
    for object in objects {
        let Anchor::Image(image) = &object.rule.anchor else { continue };
        match images.last_mut() {
            Some((last, objects)) if *last == image => objects.push(object),
            _ => images.push((image, vec![object])),
        }
    }
    for (image, objects) in images {
        let mut found = false;
        for container in containers.iter().filter(|container| is_of(image, &container.image)) {
            found = true;
            if root.list(&container.rootfs).is_ok_and(|names| !names.is_empty()) {
                let first = resolution.objects.len();
                resolution.objects.extend(objects.iter().map(|object| {
                    let relative = object.path.as_bytes().strip_prefix(b"/").unwrap_or_default();
                    at(root, object, container.rootfs.join(relative))
                }));
                resolution.containers.push(ResolvedContainer {
                    id: container.id.clone(),
                    pod_uid: container.pod_uid.clone(),
                    pod: container.pod.clone(),
                    name: container.name.clone(),
                    image: Arc::clone(image),
                    named: container.image.clone(),
                    lives_by: container.config.clone(),
                    objects: first..resolution.objects.len(),
                });
            } else {
                let (uid, may_be_sealed) = (container.pod_uid.clone(), true);
                let reason = format!("the root of container {} is not mounted here", container.name);
                resolution.unknown.push(UnknownPod { uid, reason, may_be_sealed });
            }
        }
        if !found {
            resolution.absent_images.push(Arc::clone(image));
        }
    }
}

/// Whether a pod that names this reference gets that image.
#[must_use]
pub fn is_of(image: &Image, reference: &str) -> bool {
    let digest = format!("sha256:{}", hex::encode(image.digest));
    let named = reference.rsplit_once('@').map_or(reference, |(_, digest)| digest);
    let reference = written_out(reference);
    named == digest || image.names.iter().any(|name| name == named || written_out(name) == reference)
}

/// A workload of a baseline, with its objects.
struct Known<'o> {
    workload: Arc<Workload>,
    objects: Vec<&'o SealedObject>,
}

impl Known<'_> {
    /// Volumes that each of its pods has, whatever the API server adds.
    fn volumes(&self) -> impl Iterator<Item = &[u8]> {
        let volumes = self.objects.iter().filter(|object| matches!(object.seal, Seal::Volume { .. }));
        volumes.map(|object| object.path.as_bytes()).filter(|path| !path.ends_with(b"*"))
    }

    /// Whether the pod has all of its volumes.
    fn is_in(&self, pod: &NodePod) -> bool {
        self.volumes().all(|volume| pod.volumes.contains(volume))
    }
}

fn workloads(objects: &[SealedObject]) -> Vec<Known<'_>> {
    let mut known: Vec<Known<'_>> = Vec::new();
    // Sorted by anchor, so those of one workload stand together.
    for object in objects {
        let Anchor::Workload(workload) = &object.rule.anchor else { continue };
        match known.last_mut() {
            Some(last) if last.workload == *workload => last.objects.push(object),
            _ => known.push(Known { workload: Arc::clone(workload), objects: vec![object] }),
        }
    }
    known
}

enum Owner<'k, 'o> {
    /// Of a workload that is not sealed here.
    None,
    /// Not to be told, and why; and whether it may be one that is sealed.
    Unclear(String, bool),
    /// Of this one.
    Of(&'k Known<'o>, Evidence),
}

fn owner<'k, 'o>(pod: &NodePod, workloads: &'k [Known<'o>], expect: Expect) -> Owner<'k, 'o> {
    if pod.contradictory {
        return Owner::Unclear("its log directory and its token name two pods".into(), true);
    }
    let (Some(name), Some(told_by)) = (&pod.name, pod.told_by) else {
        return by_volumes(pod, workloads, expect);
    };
    let fits = |known: &&Known<'_>| {
        let workload = &known.workload;
        pod.namespace.as_ref().is_none_or(|namespace| *namespace == workload.namespace)
            && pod.service_account.as_ref().is_none_or(|account| *account == workload.service_account)
            && is_pod_of(workload, name, pod.is_static(), told_by == Evidence::Hosts)
    };
    let mut all: Vec<_> = workloads.iter().filter(fits).collect();
    if all.len() > 1 && all.iter().any(|known| known.is_in(pod)) {
        all.retain(|known| known.is_in(pod));
    }
    let longest = all.iter().map(|known| known.workload.name.len()).max().unwrap_or(0);
    all.retain(|known| known.workload.name.len() == longest);
    match all.as_slice() {
        // The API's word takes no doubt away.
        [] if told_by == Evidence::Api => Owner::Unclear(
            "the node does not tell its name, and by the API's it fits no workload".into(),
            true,
        ),
        [] => Owner::None,
        [known] => Owner::Of(known, told_by),
        [first, second, ..] => {
            // The API's word settles which to watch; that the node does not tell stays in doubt.
            let by_api = |known: &&&Known<'_>| {
                let workload = &known.workload;
                pod.api_owner
                    .as_ref()
                    .is_some_and(|owner| owner.name == workload.name && owner.kind == workload.kind.as_str())
            };
            if let Some(known) = all.iter().find(by_api) {
                return Owner::Of(known, Evidence::Api);
            }
            let reason = format!("pod {name} may be of {} or of {}", first.workload, second.workload);
            Owner::Unclear(reason, true)
        }
    }
}

/// A tree that tells no names: the one workload whose volumes are there. Never in the agent, where names are known.
fn by_volumes<'k, 'o>(pod: &NodePod, workloads: &'k [Known<'o>], expect: Expect) -> Owner<'k, 'o> {
    if expect == Expect::Started {
        return Owner::Unclear("its namespace and name are not known".into(), true);
    }
    let mut all = workloads.iter().filter(|known| {
        known.volumes().next().is_some()
            && known.is_in(pod)
            && pod.namespace.as_ref().is_none_or(|namespace| *namespace == known.workload.namespace)
            && pod.service_account.as_ref().is_none_or(|account| *account == known.workload.service_account)
    });
    match (all.next(), all.next()) {
        (None, _) => Owner::Unclear("nothing tells its name, and its volumes fit no workload".into(), false),
        (Some(known), None) => Owner::Of(known, Evidence::Volumes),
        (Some(first), Some(second)) => {
            let (first, second) = (&first.workload, &second.workload);
            let reason = format!("nothing tells its name, and its volumes fit {first} and {second}");
            Owner::Unclear(reason, true)
        }
    }
}

/// Whether a pod of that name may be one of the workload's.
fn is_pod_of(workload: &Workload, pod: &str, is_static: bool, cut: bool) -> bool {
    let name = workload.name.as_str();
    // A host name is the first 63 characters of the pod's name.
    if cut && pod.len() == HOST_MAX && name.len() >= HOST_MAX {
        return name.starts_with(pod);
    }
    match workload.kind {
        // The kubelet adds the node's name to that of a static pod.
        WorkloadKind::Pod if is_static => {
            pod == name || pod.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
        }
        WorkloadKind::Pod => pod == name,
        WorkloadKind::StatefulSet => {
            pod.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).is_some_and(is_number)
        }
        kind => base(pod).is_some_and(|base| match kind {
            WorkloadKind::Deployment => {
                owned(base, name, |hash| (1..=10).contains(&hash.len()) && is_random(hash))
            }
            WorkloadKind::CronJob => owned(base, name, is_number),
            // An indexed job has the index in its pods' names.
            WorkloadKind::Job => is_cut(base, name) || owned(base, name, is_number),
            _ => is_cut(base, name),
        }),
    }
}

/// What stands before the random letters and their dash.
fn base(pod: &str) -> Option<&str> {
    let (base, random) = pod.split_at_checked(pod.len().checked_sub(SUFFIX)?)?;
    if !is_random(random) {
        return None;
    }
    // A long name was cut before the letters were added, and its dash with it.
    Some(if base.len() < BASE_MAX { base.strip_suffix('-')? } else { base.strip_suffix('-').unwrap_or(base) })
}

/// `<name>`, or as much of `<name>-` as there was room for.
fn is_cut(base: &str, name: &str) -> bool {
    base == name || (base.len() >= BASE_MAX - 1 && name.len() >= base.len() && name.starts_with(base))
}

/// `<name>-<middle>`, or as much of it as there was room for.
fn owned(base: &str, name: &str, middle: impl Fn(&str) -> bool) -> bool {
    match base.strip_prefix(name) {
        Some(rest) => {
            let cut = base.len() >= BASE_MAX - 1;
            rest.strip_prefix('-').is_some_and(|rest| middle(rest) || (cut && rest.is_empty()))
                || (cut && rest.is_empty())
        }
        None => is_cut(base, name),
    }
}

fn is_random(text: &str) -> bool {
    text.bytes().all(|byte| RANDOM.contains(&byte))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Where an object lies in this pod.
fn places(root: &Root, object: &SealedObject, pod: &NodePod, expect: Expect) -> Vec<HostPath> {
    let relative = object.path.as_bytes().strip_prefix(b"/").unwrap_or(object.path.as_bytes());
    if let Some(prefix) = object.path.as_bytes().strip_suffix(b"*") {
        // What the API server adds is there or not: the manifests do not say.
        let named = pod.volumes.iter().filter(|volume| volume.starts_with(prefix));
        return named.map(|volume| pod.dir.join(&volume[1..])).collect();
    }
    let path = pod.dir.join(relative);
    // A subPath is mounted when its container starts, if it ever does. A volume is whole once its first publish is.
    let expected = match &object.seal {
        Seal::Volume { .. } => expect == Expect::All || pod.started,
        _ => false,
    };
    let there = match &object.seal {
        Seal::Volume { .. } => root.locate(&path.join(crate::baseline::volume::DATA)).is_ok(),
        _ => root.locate(&path).is_ok(),
    };
    if expected || there { vec![path] } else { Vec::new() }
}

/// The object at its place.
fn at(root: &Root, object: &SealedObject, path: HostPath) -> SealedObject {
    let mut object = object.clone();
    // In a copy of a tree, or where a kubelet does without tmpfs, the bit is not there.
    if let Seal::Volume { .. } = object.seal
        && object.rule.attributes.mode & STICKY != 0
        && root.mode(&path).is_some_and(|mode| mode & STICKY == 0)
    {
        Arc::make_mut(&mut object.rule).attributes.mode &= !STICKY;
    }
    object.path = path;
    object
}

fn is_published(volume: &[u8]) -> bool {
    let plugins = ["configmap", "secret", "projected", "downward-api"];
    plugins.iter().any(|plugin| volume.starts_with(format!("/volumes/kubernetes.io~{plugin}/").as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Evidence, Expect, Known, Owner, owner};
    use crate::baseline::{Workload, WorkloadKind};
    use crate::inventory::api::telling;
    use crate::inventory::pods::NodePod;
    use crate::model::HostPath;

    const UID: &str = "0123abcd-4567-89ab-cdef-0123456789ab";

    fn workload(kind: WorkloadKind, name: &str) -> Known<'static> {
        let (namespace, service_account) = ("shop".to_owned(), "default".to_owned());
        let workload = Workload { namespace, kind, name: name.to_owned(), service_account };
        Known { workload: Arc::new(workload), objects: Vec::new() }
    }

    fn node_pod(name: Option<&str>) -> NodePod {
        NodePod {
            uid: UID.to_owned(),
            dir: HostPath::from("/p"),
            namespace: name.map(|_| "shop".to_owned()),
            name: name.map(str::to_owned),
            service_account: None,
            volumes: std::collections::BTreeSet::new(),
            started: true,
            contradictory: false,
            told_by: name.map(|_| Evidence::Logs),
            api_owner: None,
        }
    }

    /// What a pod is of, and by what; `None`: of none. `disk` is what the node tells, `api` the name and owner the API tells.
    fn of(disk: Option<&str>, api: Option<(&str, &str, &str)>) -> Result<Option<(String, Evidence)>, bool> {
        let workloads = [workload(WorkloadKind::DaemonSet, "log"), workload(WorkloadKind::ReplicaSet, "log")];
        let mut pod = node_pod(disk);
        if let Some((name, kind, controller)) = api {
            let known = telling(&[serde_json::json!({
                "metadata": {"namespace": "shop", "name": name, "uid": UID,
                    "ownerReferences": [{"kind": kind, "name": controller, "uid": "c", "controller": true}]},
                "spec": {"serviceAccountName": "default"},
            })]);
            pod.told_by_api(&known.pod(UID).unwrap());
        }
        match owner(&pod, &workloads, Expect::Started) {
            Owner::None => Ok(None),
            Owner::Unclear(_, may_be_sealed) => Err(may_be_sealed),
            Owner::Of(known, by) => Ok(Some((known.workload.to_string(), by))),
        }
    }

    #[test]
    fn an_api_that_tells_another_account_is_not_believed_in_anything() {
        let known = telling(&[serde_json::json!({
            "metadata": {"namespace": "shop", "name": "log-bcdfg", "uid": UID,
                "ownerReferences": [{"kind": "DaemonSet", "name": "log", "uid": "c", "controller": true}]},
            "spec": {"serviceAccountName": "default"},
        })]);
        for (account, believed) in [(None, true), (Some("default"), true), (Some("another"), false)] {
            let mut pod = node_pod(Some("log-bcdfg"));
            pod.service_account = account.map(str::to_owned);
            pod.told_by_api(&known.pod(UID).unwrap());
            assert_eq!(pod.api_owner.is_some(), believed, "{account:?}");
        }
    }

    #[test]
    fn the_api_adds_what_is_watched_and_takes_no_doubt_away() {
        let daemon = Ok(Some(("shop/DaemonSet/log".to_owned(), Evidence::Api)));
        // A name that fits two: the owner settles which, and it is said by whom.
        assert_eq!(of(Some("log-bcdfg"), None), Err(true));
        assert_eq!(of(Some("log-bcdfg"), Some(("log-bcdfg", "DaemonSet", "log"))), daemon);
        assert_eq!(of(Some("log-bcdfg"), Some(("log-bcdfg", "Job", "other"))), Err(true));
        // Another name than the disk's counts for nothing.
        assert_eq!(of(Some("log-bcdfg"), Some(("x", "DaemonSet", "log"))), Err(true));
        // No name on disk: the API's is taken.
        assert_eq!(of(None, None), Err(true));
        assert_eq!(of(None, Some(("log-bcdfg", "DaemonSet", "log"))), daemon);
        // But a name that fits nothing does not make it a stranger: it may still be one that is sealed.
        assert_eq!(of(None, Some(("x", "Job", "x"))), Err(true));
        // What the disk tells to be a stranger is one, whatever the API calls its owner.
        assert_eq!(of(Some("x"), Some(("x", "DaemonSet", "log"))), Ok(None));
    }
}
