//! What the API has told, in memory: read by whoever wants to know, written by the one task that asks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::fault::Fault;
use super::wire::PodFacts;
use crate::model::{Owner, Time};
use crate::status::{KubernetesFault, KubernetesPod, KubernetesState, KubernetesStatus};

/// Most pods that are kept: a node has some hundred at most.
pub(super) const PODS_MAX: usize = 4096;
/// What may be unknown of the surroundings of pods, in words for people.
pub(super) const CLUSTER: &str = "uid of the cluster";
pub(super) const LABELS: &str = "labels of the node";
/// What is gone from the API is kept this long at least: what was done to it may be judged only now.
const GONE_KEPT: Duration = Duration::from_secs(600);
/// Most contradictions that are told apart.
const CONTRADICTIONS_MAX: usize = 1024;

/// Cluster and node, as the API tells them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Uid of the namespace `kube-system`, which stands for the cluster.
    pub uid: Option<String>,
    /// Labels of this node.
    pub labels: Option<BTreeMap<String, String>>,
}

/// What the API has told, and whether it still tells.
#[derive(Debug)]
pub struct Known {
    inner: RwLock<Inner>,
    cluster: watch::Sender<Cluster>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    /// By the uid a pod has on the node.
    pods: HashMap<String, Entry>,
    state: KubernetesState,
    /// Why there is no API at all.
    off: Option<String>,
    server: Option<String>,
    since: Time,
    last_sync: Option<Time>,
    last_heard: Option<Time>,
    fault: Option<KubernetesFault>,
    lists: u64,
    not_kept: u64,
    passed_over: u64,
    contradictions: HashSet<String>,
    /// What may not be read, and why, by what it is.
    refused: BTreeMap<&'static str, String>,
    /// What is known of the cluster was told by an earlier agent.
    remembered: bool,
}

#[derive(Debug)]
struct Entry {
    facts: Arc<PodFacts>,
    gone: Option<Instant>,
}

impl Known {
    /// Nothing but what was remembered.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        let inner = Inner {
            pods: HashMap::new(),
            state: KubernetesState::Off,
            off: Some("kubernetes.api is off".to_owned()),
            server: None,
            since: Time::now(),
            last_sync: None,
            last_heard: None,
            fault: None,
            lists: 0,
            not_kept: 0,
            passed_over: 0,
            contradictions: HashSet::new(),
            refused: BTreeMap::new(),
            remembered: cluster != Cluster::default(),
        };
        Self {
            inner: RwLock::new(inner),
            cluster: watch::Sender::new(cluster),
            revision: watch::Sender::new(0),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the API tells of the pod that has this uid on the node, gone or not.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<Arc<PodFacts>> {
        self.read().pods.get(uid).map(|entry| Arc::clone(&entry.facts))
    }

    /// Cluster and node, and each time they change.
    #[must_use]
    pub fn cluster(&self) -> watch::Receiver<Cluster> {
        self.cluster.subscribe()
    }

    /// Grows whenever something was learned, or the API is heard or lost.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The disk says otherwise: what the API tells of this pod counts for nothing.
    pub fn contradicts(&self, uid: &str) {
        let told = self.read().contradictions.contains(uid);
        if told {
            return;
        }
        tracing::warn!(uid, "the API tells of a pod what the node's disk contradicts: the disk is believed");
        let mut inner = self.write();
        if inner.contradictions.len() < CONTRADICTIONS_MAX {
            inner.contradictions.insert(uid.to_owned());
        }
    }

    /// Forgets pods that are gone from the API, some time ago, and from the disk.
    pub fn forget_gone(&self, on_disk: &BTreeSet<String>) {
        self.forget_older(on_disk, GONE_KEPT);
    }

    pub(super) fn forget_older(&self, on_disk: &BTreeSet<String>, kept: Duration) {
        let mut inner = self.write();
        inner.pods.retain(|uid, entry| {
            on_disk.contains(uid) || entry.gone.is_none_or(|since| since.elapsed() < kept)
        });
        let Inner { pods, contradictions, .. } = &mut *inner;
        contradictions.retain(|uid| pods.contains_key(uid));
    }

    /// All pods the API has told of, by uid on the node.
    #[must_use]
    pub fn pods(&self) -> Vec<KubernetesPod> {
        let inner = self.read();
        let mut all: Vec<_> = inner
            .pods
            .iter()
            .map(|(uid, entry)| KubernetesPod {
                uid: uid.clone(),
                namespace: Some(entry.facts.namespace.clone()),
                name: Some(entry.facts.name.clone()),
                service_account: entry.facts.service_account.clone(),
                owner: entry.facts.owner.clone(),
                api: true,
                gone_from_api: entry.gone.is_some(),
                disk: false,
                contradictory: inner.contradictions.contains(uid),
            })
            .collect();
        all.sort_by(|a, b| a.uid.cmp(&b.uid));
        all
    }

    /// The answer for status, with what is unknown.
    #[must_use]
    pub fn status(&self) -> KubernetesStatus {
        let inner = self.read();
        let cluster = self.cluster.borrow().clone();
        KubernetesStatus {
            state: inner.state,
            off_because: inner.off.clone(),
            server: inner.server.clone(),
            since: inner.since,
            last_sync: inner.last_sync,
            last_heard: inner.last_heard,
            fault: inner.fault.clone(),
            pods: inner.pods.values().filter(|entry| entry.gone.is_none()).count() as u64,
            gone: inner.pods.values().filter(|entry| entry.gone.is_some()).count() as u64,
            contradictory: inner.contradictions.len() as u64,
            not_kept: inner.not_kept,
            passed_over: inner.passed_over,
            lists: inner.lists,
            unknown: inner.unknown(&cluster),
            cluster_uid: cluster.uid,
        }
    }

    // What follows is for the task that asks.

    /// There is no API to ask, and why.
    pub fn off(&self, why: &str) {
        let mut inner = self.write();
        inner.becomes(KubernetesState::Off);
        inner.off = Some(why.to_owned());
    }

    pub(super) fn connecting(&self, server: Option<String>) {
        let mut inner = self.write();
        inner.off = None;
        if let Some(server) = server {
            inner.server = Some(server);
        }
        if inner.state == KubernetesState::Off {
            inner.becomes(KubernetesState::Connecting);
        }
    }

    /// The watch is open, or told something.
    pub(super) fn heard(&self) {
        {
            let mut inner = self.write();
            inner.last_heard = Some(Time::now());
            if inner.state == KubernetesState::Connected {
                return;
            }
            inner.becomes(KubernetesState::Connected);
            inner.fault = None;
        }
        self.learned();
    }

    pub(super) fn failed(&self, fault: &Fault) {
        {
            let mut inner = self.write();
            inner.becomes(KubernetesState::Lost);
            inner.fault = Some(KubernetesFault { kind: fault.word().to_owned(), message: fault.to_string() });
        }
        self.learned();
    }

    pub(super) fn refused(&self, what: &'static str, why: Option<String>) {
        let mut inner = self.write();
        match why {
            Some(why) => inner.refused.insert(what, why),
            None => inner.refused.remove(what),
        };
    }

    pub(super) fn cluster_is(&self, told: Cluster) {
        self.write().remembered = false;
        self.cluster.send_if_modified(|known| {
            let differs = *known != told;
            if differs {
                *known = told;
            }
            differs
        });
    }

    /// A whole list: what is not on it is gone.
    pub(super) fn listed(&self, pods: Vec<PodFacts>, not_kept: u64) {
        {
            let mut inner = self.write();
            let now: HashSet<&str> = pods.iter().map(PodFacts::node_uid).collect();
            for (uid, entry) in &mut inner.pods {
                if !now.contains(uid.as_str()) && entry.gone.is_none() {
                    entry.gone = Some(Instant::now());
                }
            }
            inner.not_kept = not_kept;
            for facts in pods {
                inner.keep(facts);
            }
            inner.lists += 1;
            inner.last_sync = Some(Time::now());
        }
        self.learned();
    }

    pub(super) fn changed(&self, facts: PodFacts) {
        self.write().keep(facts);
        self.learned();
    }

    pub(super) fn deleted(&self, facts: PodFacts) {
        {
            let mut inner = self.write();
            let uid = facts.node_uid().to_owned();
            inner.keep(facts);
            if let Some(entry) = inner.pods.get_mut(&uid) {
                entry.gone = Some(Instant::now());
            }
        }
        self.learned();
    }

    pub(super) fn passed_over(&self) {
        self.write().passed_over += 1;
        self.learned();
    }

    pub(super) fn not_kept(&self) {
        self.write().not_kept += 1;
        self.learned();
    }

    /// Pods that are controlled by this, which is controlled by that in turn.
    pub(super) fn owned(&self, controller_uid: &str, owner: &Owner) {
        {
            let mut inner = self.write();
            for entry in inner.pods.values_mut() {
                if entry.facts.controller_uid.as_deref() == Some(controller_uid) {
                    Arc::make_mut(&mut entry.facts).owner = Some(owner.clone());
                }
            }
        }
        self.learned();
    }

    fn learned(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }
}

impl Inner {
    fn becomes(&mut self, state: KubernetesState) {
        if self.state != state {
            (self.state, self.since) = (state, Time::now());
        }
    }

    fn keep(&mut self, facts: PodFacts) {
        let uid = facts.node_uid().to_owned();
        if let Some(entry) = self.pods.get_mut(&uid) {
            // A static uid is what an annotation says: no other pod takes the place of one that is there.
            if entry.facts.uid == facts.uid || entry.gone.is_some() {
                *entry = Entry { facts: Arc::new(facts), gone: None };
            } else {
                self.not_kept += 1;
            }
            return;
        }
        if self.pods.len() >= PODS_MAX {
            // What is gone makes room, the longest gone first.
            let oldest = self.pods.iter().filter_map(|(uid, entry)| Some((entry.gone?, uid.clone()))).min();
            match oldest {
                Some((_, uid)) => drop(self.pods.remove(&uid)),
                None => {
                    self.not_kept += 1;
                    return;
                }
            }
        }
        self.pods.insert(uid, Entry { facts: Arc::new(facts), gone: None });
    }

    /// What cannot be said, in words for people.
    fn unknown(&self, cluster: &Cluster) -> Vec<String> {
        let mut unknown = Vec::new();
        match (self.state, self.last_sync) {
            (KubernetesState::Connected, Some(_)) => {}
            (_, None) => {
                unknown.push("owners, images by digest and sources of volumes of all pods".to_owned());
            }
            (_, Some(_)) => {
                let since = self.last_heard.or(self.last_sync).unwrap_or(self.since);
                unknown.push(format!("what came of pods since {since}"));
            }
        }
        for (what, known) in [(CLUSTER, cluster.uid.is_some()), (LABELS, cluster.labels.is_some())] {
            if known && (self.remembered || self.refused.contains_key(what)) {
                let before = format!("{what}, but for what was told before");
                unknown.push(self.because(what, before));
            } else if !known {
                unknown.push(self.because(what, what.to_owned()));
            }
        }
        let others = self.refused.keys().filter(|what| ![CLUSTER, LABELS].contains(what));
        unknown.extend(others.map(|what| self.because(what, (*what).to_owned())));
        if self.not_kept > 0 {
            unknown.push(format!(
                "{} pods that are not kept: there are too many, or they cannot be told apart",
                self.not_kept
            ));
        }
        if self.passed_over > 0 {
            unknown.push(format!("{} events about pods that were too large to be read", self.passed_over));
        }
        unknown
    }

    fn because(&self, what: &str, told: String) -> String {
        match self.refused.get(what) {
            Some(why) => format!("{told}: {why}"),
            None => told,
        }
    }
}
