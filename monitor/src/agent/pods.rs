//! The objects of workloads and images, as the pods on this node make them concrete.
//!
//! Looked at whenever the kubelet's directory of pods changes, while a pod is still starting, and now and then anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::baseline::{AcceptedBaseline, Root, SealedObject};
use crate::inventory::api::Known;
use crate::inventory::containers::{self, NodeContainer};
use crate::inventory::pods::{self, Evidence};
use crate::inventory::workloads::{Expect, Resolution, resolve, resolve_images};
use crate::judge::{Container, Resolved};
use crate::model::{HostPath, Target};

/// Looked at again after this, whatever the directories say.
const EVERY: Duration = Duration::from_secs(15);
/// For how long after such a change a pod that is not complete is looked at every time.
const STIRRED: Duration = Duration::from_secs(60);
/// For how long a pod may be without what tells it: the kubelet makes its directory first, and its log directory last.
const UNTOLD: Duration = Duration::from_secs(30);
/// For how long a container may be without its first process: a runtime notes it once the container's mounts are made.
const SET_UP: Duration = Duration::from_secs(30);
/// A pod that was not there this often in a row is gone: its removal is judged before its objects are dropped.
const ABSENT: u32 = 3;

/// Name and revision of a baseline, and uid of a pod or id of a container.
type Key = (String, u64, String);

/// The pods and containers of what is sealed, as they were last seen.
#[derive(Debug)]
pub(super) struct Pods {
    root: Root,
    api: Arc<Known>,
    /// When the directories that have an entry for each pod or container were changed last.
    changed: Vec<Option<SystemTime>>,
    looked: Option<Instant>,
    stirred: Option<Instant>,
    /// The baselines that were there last, and those of them that name no host paths.
    of: Vec<(String, u64)>,
    anchored: Vec<Arc<AcceptedBaseline>>,
    known: BTreeMap<Key, Made>,
    /// A pod or container is not complete yet, or on its way out.
    pending: bool,
    /// Pods that cannot be told and may be sealed, by uid, and since when.
    untold: BTreeMap<String, Instant>,
    unclear: bool,
    /// Containers that their runtime is still setting up, by id, and since when.
    set_up: BTreeMap<String, Instant>,
}

#[derive(Debug)]
struct Made {
    objects: Arc<[SealedObject]>,
    container: Option<Arc<Container>>,
    absent: u32,
}

impl Pods {
    pub(super) const fn new(root: Root, api: Arc<Known>) -> Self {
        Self {
            root,
            api,
            changed: Vec::new(),
            looked: None,
            stirred: None,
            of: Vec::new(),
            anchored: Vec::new(),
            known: BTreeMap::new(),
            pending: false,
            untold: BTreeMap::new(),
            unclear: false,
            set_up: BTreeMap::new(),
        }
    }

    /// A pod that may belong to a sealed workload cannot be told from others.
    pub(super) const fn unclear(&self) -> bool {
        self.unclear
    }

    /// What is concrete now.
    pub(super) fn resolved(&self) -> Vec<Resolved> {
        let resolved = |((baseline, revision, _), known): (&Key, &Made)| Resolved {
            baseline: baseline.clone(),
            revision: *revision,
            objects: Arc::clone(&known.objects),
            container: known.container.clone(),
        };
        self.known.iter().map(resolved).collect()
    }

    /// Looks again if there is reason to; whether anything changed. Reads directories: call it where blocking is
    /// allowed.
    pub(super) fn refresh(&mut self, kubelet_root: &HostPath, baselines: &[Arc<AcceptedBaseline>]) -> bool {
        let of: Vec<_> = baselines.iter().map(|one| (one.name.clone(), one.revision)).collect();
        let other = of != self.of;
        if other {
            let anchored =
                baselines.iter().filter(|one| one.objects.iter().any(|object| !object.rule.anchor.is_host()));
            self.anchored = anchored.cloned().collect();
            self.of = of;
        } else if self.anchored.is_empty() {
            return false;
        }
        let dirs = containers::bundles().chain([kubelet_root.join(b"pods")]);
        let changed: Vec<_> = dirs.map(|dir| self.root.modified(&dir)).collect();
        let due = self.looked.is_none_or(|at| at.elapsed() >= EVERY);
        if other || changed != self.changed {
            self.stirred = Some(Instant::now());
        }
        let pending = self.pending && self.stirred.is_some_and(|at| at.elapsed() < STIRRED);
        if !other && !due && !pending && changed == self.changed {
            return false;
        }
        (self.changed, self.looked) = (changed, Some(Instant::now()));
        let (unclear, was) = (self.unclear, self.known.len());
        let fresh = self.look(kubelet_root);
        // What an earlier revision made concrete is not judged any more.
        let of = &self.of;
        self.known.retain(|(name, revision, _), known| {
            known.absent < ABSENT && of.iter().any(|one| (&one.0, &one.1) == (name, revision))
        });
        self.unclear = self.untold.values().any(|since| since.elapsed() >= UNTOLD);
        fresh || other || unclear != self.unclear || was != self.known.len()
    }

    fn look(&mut self, kubelet_root: &HostPath) -> bool {
        self.pending = false;
        let untold = std::mem::take(&mut self.untold);
        for known in self.known.values_mut() {
            known.absent += 1;
        }
        if self.anchored.is_empty() {
            return false;
        }
        let mut pods = pods::read(&self.root, kubelet_root);
        for pod in &mut pods {
            if let Some(facts) = self.api.pod(&pod.uid) {
                pod.told_by_api(&facts);
            }
        }
        let containers = self.containers();
        let started: BTreeMap<&str, bool> = pods.iter().map(|pod| (pod.uid.as_str(), pod.started)).collect();
        let mut fresh = false;
        let anchored = std::mem::take(&mut self.anchored);
        for baseline in &anchored {
            let objects = &baseline.objects;
            let mut found = resolve(&self.root, objects, &pods, Expect::Started);
            resolve_images(&self.root, objects, &containers, &mut found);
            let Resolution { objects, pods, containers, unknown, .. } = found;
            for pod in unknown.iter().filter(|pod| pod.may_be_sealed) {
                let since = untold.get(&pod.uid).copied().unwrap_or_else(Instant::now);
                self.untold.insert(pod.uid.clone(), since);
            }
            // Watched, as the API says; but whether it is so, the node does not tell.
            for pod in pods.iter().filter(|pod| pod.told_by == Evidence::Api) {
                let since = untold.get(&pod.uid).copied().unwrap_or_else(Instant::now);
                self.untold.insert(pod.uid.clone(), since);
                self.pending = true;
            }
            self.pending |= !unknown.is_empty();
            let pods = pods.into_iter().map(|pod| (pod.uid, None, pod.objects));
            let containers = containers.into_iter().map(|one| {
                let (namespace, pod) = one.pod.unzip();
                let target = Target {
                    namespace,
                    pod,
                    pod_uid: Some(one.pod_uid),
                    container: Some(one.name),
                    image: Some(one.named),
                    ..Target::default()
                };
                (one.id, Some(Arc::new(Container { lives_by: one.lives_by, target })), one.objects)
            });
            for (id, container, range) in pods.chain(containers) {
                self.pending |= started.get(id.as_str()).is_some_and(|started| !started);
                let objects = objects.get(range).unwrap_or_default();
                let key = (baseline.name.clone(), baseline.revision, id);
                match self.known.get_mut(&key) {
                    Some(known) if *known.objects == *objects => known.absent = 0,
                    _ => {
                        fresh = true;
                        let known = Made { objects: objects.into(), container, absent: 0 };
                        self.known.insert(key, known);
                    }
                }
            }
        }
        self.anchored = anchored;
        self.pending |= self.known.values().any(|known| known.absent > 0);
        fresh
    }

    /// Those whose runtime is done with them: what it mounts in one before, and makes its root, is not an act on what it holds. One whose
    /// runtime notes no process is taken as it is after a while.
    fn containers(&mut self) -> Vec<NodeContainer> {
        let before = std::mem::take(&mut self.set_up);
        let known: BTreeSet<&str> = self.known.keys().map(|(_, _, id)| id.as_str()).collect();
        let (mut containers, unfinished) = containers::read_all(&self.root);
        containers.retain(|container| {
            if known.contains(container.id.as_str()) || containers::first_pid(&self.root, container).is_some()
            {
                return true;
            }
            let since = *before.get(&container.id).unwrap_or(&Instant::now());
            self.set_up.insert(container.id.clone(), since);
            since.elapsed() >= SET_UP
        });
        self.pending |= unfinished || !self.set_up.is_empty();
        containers
    }
}
