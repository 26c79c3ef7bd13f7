//! List, watch, and begin again: the task that asks.
//!
//! kube-rs's `runtime::watcher` is not used: it keeps bookmarks to itself, which are how a quiet watch shows that it lives.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::core::params::{GetParams, ListParams, WatchParams};
use kube::core::{ObjectList, Request, WatchEvent};
use tokio_util::sync::CancellationToken;

use super::access::{Access, Source};
use super::backoff::Backoff;
use super::fault::{Fault, bounded};
use super::known::{CLUSTER, Cluster, Known, LABELS, PODS_MAX};
use super::transport::{Client, Line};
use super::wire::{self, OwnerReference, Partial, PodFacts};
use crate::model::Owner;

/// Longest part of a list, and longest answer about one thing, in bytes.
const PART_MAX: usize = 8 << 20;
const ONE_MAX: usize = 2 << 20;
/// Longest event, in bytes. etcd takes objects of 1.5 MiB.
const EVENT_MAX: usize = 4 << 20;
/// Pods in one part of a list at most; fewer where parts are too large.
const PART: u32 = 64;
/// Most controllers of which it is kept what controls them.
const OWNERS_MAX: usize = 8192;

const OWNERS: &str = "what controls the ReplicaSets and Jobs of pods";

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A request, until its answer is there or its stream begins.
    pub request: Duration,
    /// Without an event. A server sends a bookmark each minute.
    pub idle: Duration,
    /// After which the server is to end a watch, so that the next goes to another one perhaps.
    pub watch: Duration,
    /// A watch that lasted this long was a good one: pauses begin anew.
    pub settled: Duration,
    /// The shortest pause after a fault.
    pub pause_least: Duration,
    /// The longest.
    pub pause_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            idle: Duration::from_secs(100),
            watch: Duration::from_secs(290),
            settled: Duration::from_secs(10),
            pause_least: Duration::from_secs(1),
            pause_most: Duration::from_secs(60),
        }
    }
}

/// Keeps `known` up to date until it is told to stop. Never ends by itself: what fails is tried again.
pub async fn run(source: Source, node: String, known: Arc<Known>, timing: Timing, stop: CancellationToken) {
    let sync = Sync { source, node, known, timing, owners: HashMap::new(), ask_owners: true, position: None };
    tokio::select! {
        () = stop.cancelled() => {}
        () = sync.go_on() => {}
    }
}

/// What an agent of this node would get, for `doctor`: how many pods, and what it may not read.
///
/// # Errors
/// Pods cannot be listed.
pub async fn probe(source: &Source, node: &str, timing: Timing) -> Result<(String, Vec<String>), Fault> {
    let client = Client::new(Access::open(source).await?, timing.request);
    let list = ListParams { limit: Some(1), ..pods_of(node) };
    let request = pods().list(&list).map_err(|e| Fault::malformed(&e))?;
    client.whole::<ObjectList<wire::Pod>>(request, PART_MAX).await?;
    let mut refused = Vec::new();
    for (what, request) in [(CLUSTER, cluster()), (LABELS, labels(node))] {
        let asked: Result<Partial, Fault> = client.whole(request?, ONE_MAX).await;
        if let Err(fault) = asked {
            refused.push(format!("{what}: {fault}"));
        }
    }
    Ok((client.server(), refused))
}

struct Sync {
    source: Source,
    node: String,
    known: Arc<Known>,
    timing: Timing,
    /// What controls a controller, by its uid; `None`: nothing.
    owners: HashMap<String, Option<Owner>>,
    /// They may be read, as far as is known.
    ask_owners: bool,
    /// The version of what is known, to resume from.
    position: Option<String>,
}

fn pods() -> Request {
    Request::new("/api/v1/pods")
}

fn pods_of(node: &str) -> ListParams {
    ListParams::default().fields(&format!("spec.nodeName={node}"))
}

fn metadata(path: &str, name: &str) -> Result<http::Request<Vec<u8>>, Fault> {
    Request::new(path).get_metadata(name, &GetParams::default()).map_err(|e| Fault::malformed(&e))
}

fn cluster() -> Result<http::Request<Vec<u8>>, Fault> {
    metadata("/api/v1/namespaces", "kube-system")
}

fn labels(node: &str) -> Result<http::Request<Vec<u8>>, Fault> {
    metadata("/api/v1/nodes", node)
}

impl Sync {
    async fn go_on(mut self) {
        let mut backoff = Backoff::new(self.timing.pause_least, self.timing.pause_most);
        loop {
            let began = Instant::now();
            let ended = self.session(&mut backoff).await;
            if began.elapsed() >= self.timing.settled && self.position.is_some() {
                backoff.reset();
            }
            if let Err(fault) = ended {
                tracing::warn!(kind = fault.word(), error = %fault, "the Kubernetes API");
                // A position that has expired is no outage: a list follows.
                if fault != Fault::Gone {
                    self.known.failed(&fault);
                }
                if matches!(fault, Fault::Gone | Fault::Malformed(_) | Fault::TooLarge(_)) {
                    self.position = None;
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// One connection, for as long as it does.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), Fault> {
        self.known.connecting(None);
        let client = Client::new(Access::open(&self.source).await?, self.timing.request);
        self.known.connecting(Some(client.server()));
        loop {
            if self.position.is_none() {
                self.list(&client).await?;
            }
            self.surroundings(&client).await?;
            let began = Instant::now();
            self.watch(&client).await?;
            if began.elapsed() < self.timing.settled {
                // A server that ends each watch at once is not asked without a pause.
                return Ok(());
            }
            backoff.reset();
        }
    }

    /// All pods of this node, part by part.
    async fn list(&mut self, client: &Client) -> Result<(), Fault> {
        let mut limit = PART;
        let mut next: Option<String> = None;
        let mut all = Vec::new();
        let (mut beyond, mut version) = (0, None);
        for _ in 0..PODS_MAX {
            let mut list = ListParams { limit: Some(limit), ..pods_of(&self.node) };
            list.continue_token.clone_from(&next);
            let request = pods().list(&list).map_err(|e| Fault::malformed(&e))?;
            let part: Result<ObjectList<wire::Pod>, Fault> = client.whole(request, PART_MAX).await;
            let part = match part {
                Err(Fault::TooLarge(_)) if limit > 1 => {
                    limit = limit.div_ceil(4);
                    continue;
                }
                part => part?,
            };
            for pod in part.items {
                if all.len() < PODS_MAX {
                    all.extend(PodFacts::of(pod));
                } else {
                    beyond += 1;
                }
            }
            version = part.metadata.resource_version.or(version);
            next = part.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() || beyond > 0 {
                break;
            }
        }
        if next.is_some() && beyond == 0 {
            return Err(Fault::Malformed("a list without end".to_owned()));
        }
        let version = version.filter(|version| !version.is_empty());
        let version =
            version.ok_or_else(|| Fault::Malformed("a list without a resourceVersion".to_owned()))?;
        self.ask_owners = true;
        self.fill_owners(&mut all);
        let controllers: Vec<_> = all.iter().filter_map(asks_for_owner).collect();
        self.known.listed(all, beyond);
        self.position = Some(version);
        for (namespace, owner) in controllers {
            self.look_up(client, &namespace, &owner).await?;
        }
        Ok(())
    }

    /// From where the list or the last event left off, until the server ends it.
    async fn watch(&mut self, client: &Client) -> Result<(), Fault> {
        let Some(position) = self.position.clone() else { return Ok(()) };
        let seconds = u32::try_from(self.timing.watch.as_secs().max(1)).unwrap_or(u32::MAX);
        let watch =
            WatchParams::default().fields(&format!("spec.nodeName={}", self.node)).timeout(seconds.min(294));
        let request = pods().watch(&watch, &position).map_err(|e| Fault::malformed(&e))?;
        let mut lines = client.lines(request).await?;
        self.known.heard();
        while let Some(line) = lines.next(EVENT_MAX, self.timing.idle).await? {
            let Line::Whole(line) = line else {
                tracing::warn!("an event about a pod of more than {EVENT_MAX} bytes was passed over");
                self.known.passed_over();
                continue;
            };
            let event: WatchEvent<wire::Pod> =
                serde_json::from_slice(&line).map_err(|e| Fault::malformed(&e))?;
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    let version = pod.version();
                    if let Some(facts) = PodFacts::of(pod) {
                        let mut one = [facts];
                        self.fill_owners(&mut one);
                        let asks = asks_for_owner(&one[0]);
                        let [facts] = one;
                        self.known.changed(facts);
                        if let Some((namespace, owner)) = asks {
                            self.look_up(client, &namespace, &owner).await?;
                        }
                    } else {
                        self.known.not_kept();
                    }
                    self.position = version.or_else(|| self.position.take());
                }
                WatchEvent::Deleted(pod) => {
                    let version = pod.version();
                    if let Some(facts) = PodFacts::of(pod) {
                        let mut one = [facts];
                        self.fill_owners(&mut one);
                        let [facts] = one;
                        self.known.deleted(facts);
                    }
                    self.position = version.or_else(|| self.position.take());
                }
                WatchEvent::Bookmark(bookmark) => self.position = Some(bookmark.metadata.resource_version),
                WatchEvent::Error(status) => {
                    return Err(match status.code {
                        410 => Fault::Gone,
                        code => Fault::Refused(code, bounded(&status.message)),
                    });
                }
            }
            self.known.heard();
        }
        Ok(())
    }

    /// Cluster and node. What may not be read stays unknown, and is said.
    async fn surroundings(&self, client: &Client) -> Result<(), Fault> {
        let was = self.known.cluster().borrow().clone();
        let uid = self.ask(client, CLUSTER, cluster()).await?;
        let node = self.ask(client, LABELS, labels(&self.node)).await?;
        // What is not told now stays as it was told before.
        let uid = uid.and_then(|found| found.uid).or(was.uid);
        let labels = node.map(|found| found.labels.unwrap_or_default()).or(was.labels);
        self.known.cluster_is(Cluster { uid, labels });
        Ok(())
    }

    /// Asks for something that may be refused.
    async fn ask(
        &self,
        client: &Client,
        what: &'static str,
        request: Result<http::Request<Vec<u8>>, Fault>,
    ) -> Result<Option<wire::Meta>, Fault> {
        match client.whole::<Partial>(request?, ONE_MAX).await {
            Ok(found) => {
                self.known.refused(what, None);
                Ok(Some(found.metadata))
            }
            Err(fault @ (Fault::Forbidden(_) | Fault::NotFound(_))) => {
                self.known.refused(what, Some(fault.to_string()));
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    /// Puts in owners that were looked up before.
    fn fill_owners(&self, pods: &mut [PodFacts]) {
        for pod in pods {
            let known = pod.controller_uid.as_ref().and_then(|uid| self.owners.get(uid));
            if let Some(Some(owner)) = known {
                pod.owner = Some(owner.clone());
                pod.controller_uid = None;
            } else if known.is_some() {
                pod.controller_uid = None;
            }
        }
    }

    /// What controls a ReplicaSet or Job: only if it is the very one, by its uid.
    async fn look_up(&mut self, client: &Client, namespace: &str, owner: &Controller) -> Result<(), Fault> {
        if !self.ask_owners || self.owners.contains_key(&owner.uid) {
            return Ok(());
        }
        let path = format!("{}/namespaces/{namespace}/{}", owner.group, owner.resource);
        // A name that is none of the API's own is nobody's controller.
        let Ok(request) = metadata(&path, &owner.name) else { return Ok(()) };
        let found = match client.whole::<Partial>(request, ONE_MAX).await {
            Ok(found) => {
                self.known.refused(OWNERS, None);
                found.metadata
            }
            Err(Fault::NotFound(_)) => wire::Meta::default(),
            Err(fault @ Fault::Forbidden(_)) => {
                self.known.refused(OWNERS, Some(fault.to_string()));
                // Each of them would be: asked again after the next list.
                self.ask_owners = false;
                return Ok(());
            }
            Err(fault) => return Err(fault),
        };
        let above = (found.uid.as_ref() == Some(&owner.uid))
            .then(|| found.controller().and_then(OwnerReference::owner))
            .flatten();
        if self.owners.len() >= OWNERS_MAX {
            self.owners.clear();
        }
        if let Some(above) = &above {
            self.known.owned(&owner.uid, above);
        }
        self.owners.insert(owner.uid.clone(), above);
        Ok(())
    }
}

/// A controller that may have one of its own.
struct Controller {
    group: &'static str,
    resource: &'static str,
    name: String,
    uid: String,
}

fn asks_for_owner(pod: &PodFacts) -> Option<(String, Controller)> {
    let owner = pod.owner.as_ref()?;
    let (group, resource) = match owner.kind.as_str() {
        "ReplicaSet" => ("/apis/apps/v1", "replicasets"),
        "Job" => ("/apis/batch/v1", "jobs"),
        _ => return None,
    };
    let uid = pod.controller_uid.clone()?;
    Some((pod.namespace.clone(), Controller { group, resource, name: owner.name.clone(), uid }))
}
