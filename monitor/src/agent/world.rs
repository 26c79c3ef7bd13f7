//! The rest of the agent, as the judge sees it: inventory, attribution, journal, export.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::attribution::attack::techniques;
use crate::attribution::{Attribution, severity};
use crate::baseline::{Root, Writer};
use crate::export;
use crate::inventory::api::Known;
use crate::inventory::code::{Code, Foreign};
use crate::inventory::in_pod::{InPods, PodWriter};
use crate::inventory::mesh::{self, CniDirs};
use crate::inventory::pods;
use crate::inventory::procs::Proc;
use crate::inventory::writers::{Declared, Lawful, Writers};
use crate::journal::{JournalHandle, JournalHealth, TreeHead};
use crate::judge::{AgentFacts, MeshFiles, World};
use crate::model::{Actor, Class, Draft, HostPath, Observation, Record, Severity, Target, ViolationKind};
use crate::profile::{Layout, Profiles};
use crate::sensor::Health;
use crate::status::{
    AgentStatus, EventSource as _, ExportStatus, JournalStatus, KubernetesPod, ViolationStory,
};

use super::events::{Events, root_of};
use super::kubelet::Kubelet;
use super::recorder::Opened;

/// How often, at most, the kubelet is looked for again because somebody unknown acted.
const REFRESH: Duration = Duration::from_secs(1);

/// Everything the judge asks, behind locks that are held for short reads of /proc at most.
#[derive(Debug)]
pub(super) struct Node {
    host_root: PathBuf,
    code: Code,
    root: Root,
    pub(super) name: String,
    pub(super) mode: String,
    pub(super) started: crate::model::Time,
    who: Mutex<Who>,
    pub(super) mesh_files: RwLock<Arc<MeshFiles>>,
    /// Pods that the kubelet has a directory of.
    on_disk: RwLock<BTreeSet<String>>,
    profiles: Arc<Profiles>,
    pub(super) journal: JournalHandle,
    pub(super) events: Arc<Events>,
    pub(super) opened: Arc<Opened>,
    export: export::Statuses,
    pub(super) api: Arc<Known>,
    pub(super) ready: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Who {
    attribution: Attribution,
    writers: Writers,
    in_pods: InPods,
    kubelet: Kubelet,
    refreshed: Instant,
}

impl Who {
    fn refresh(&mut self) {
        self.writers.refresh(self.attribution.view());
        self.refreshed = Instant::now();
        self.take_note();
    }

    /// As [`Self::refresh`], by one process alone: whoever is called like a kubelet must not have all of /proc read each time it acts.
    fn look_at(&mut self, pid: u32) {
        if self.writers.look_at(pid, self.attribution.view()) {
            self.take_note();
        }
    }

    fn take_note(&mut self) {
        self.kubelet.look(&self.writers, &mut self.attribution);
        self.attribution.set_kubelet_root(self.writers.kubelet_root());
    }
}

impl Node {
    pub(super) fn new(
        (host_root, root): (&Path, Root),
        (name, mode): (String, String),
        journal: JournalHandle,
        (events, opened): (Arc<Events>, Arc<Opened>),
        export: export::Statuses,
        ready: watch::Receiver<bool>,
        (profiles, api): (Arc<Profiles>, Arc<Known>),
    ) -> Self {
        let writers = Writers::new(host_root, Proc::default());
        let attribution =
            Attribution::new(host_root, writers.kubelet_root(), Arc::clone(&profiles), Arc::clone(&api));
        let in_pods = InPods::new(root.clone(), Proc::default());
        let (kubelet, refreshed) = (Kubelet::default(), Instant::now());
        let mut who = Who { attribution, writers, in_pods, kubelet, refreshed };
        who.refresh();
        Self {
            host_root: host_root.to_owned(),
            code: Code::new(host_root.to_owned(), Proc::default()),
            root,
            name,
            mode,
            started: crate::model::Time::now(),
            who: Mutex::new(who),
            mesh_files: RwLock::default(),
            on_disk: RwLock::default(),
            profiles,
            journal,
            events,
            opened,
            export,
            api,
            ready,
        }
    }

    /// Looks for the kubelet and for mesh files again; `true` if other files are there than before. Reads /proc and
    /// directories.
    pub(super) fn refresh(&self) -> bool {
        let kubelet_root = {
            let mut who = self.who();
            who.refresh();
            who.writers.kubelet_root()
        };
        let on_disk = pods::uids(&self.root, &kubelet_root);
        self.api.forget_gone(&on_disk);
        // What is contradictory is counted, whether or not anybody asks for the list.
        drop(self.who().attribution.pods(&on_disk));
        *self.on_disk.write().unwrap_or_else(PoisonError::into_inner) = on_disk;
        let cni = CniDirs::find(&self.host_root);
        self.who().attribution.set_cni(cni.clone());
        let layout = Layout { kubelet_root, cni };
        let found = mesh::find(&self.host_root, &layout, &self.profiles, &Proc::default());
        let files = found.files.into_iter().map(|file| file.path).collect();
        let files = MeshFiles { paths: files, truncated: found.truncated };
        let mut known = self.mesh_files.write().unwrap_or_else(PoisonError::into_inner);
        let changed = **known != files;
        *known = Arc::new(files);
        changed
    }

    /// Looks which containers of lawful writers run. Reads directories, and what is new to it.
    pub(super) fn look_for_writers(&self) {
        self.who().in_pods.look();
    }

    /// Lawful writers of the node that became another executable since this was last asked.
    pub(super) fn writer_changes(&self) -> Vec<Draft> {
        self.who().kubelet.take_changes()
    }

    fn who(&self) -> std::sync::MutexGuard<'_, Who> {
        self.who.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(status: &export::ExportStatus) -> ExportStatus {
    ExportStatus {
        endpoint: status.endpoint.clone(),
        acknowledged_seq: status.acknowledged_seq,
        oldest_unsent_age_s: status.oldest_unsent_age_s(),
        last_error: status.last_error.clone(),
    }
}

impl World for Node {
    fn enrich(&self, actor: &mut Actor) {
        self.who().attribution.enrich(actor);
    }

    fn lawful(&self, actor: &Actor, writer: &Writer, object: &HostPath) -> Lawful {
        let mut who = self.who();
        if let Writer::InPod(writer) = writer {
            let pod = who.attribution.target_of(object).and_then(|target| target.pod_uid);
            let writer = PodWriter {
                exe: &writer.exe,
                sha256: &writer.sha256,
                containers: &writer.containers,
                namespace: writer.namespace.as_deref(),
            };
            let lawful = who.in_pods.is_lawful(actor, &writer, pod.as_deref());
            if let Lawful::No(reason) | Lawful::Unknown(reason) = &lawful
                && actor.exe.as_ref() == Some(writer.exe)
            {
                // Whoever asks why the record of its act is a violation finds it here.
                tracing::info!(pid = actor.tgid, exe = %writer.exe, object = %object, reason, "not taken for the lawful writer");
            }
            return lawful;
        }
        let mut known = who.writers.is_lawful(actor, writer.name());
        if known != Lawful::Yes && who.writers.may_be_new(actor) {
            // A kubelet that was started a moment ago is proven now, or not at all.
            who.look_at(actor.tgid);
            known = who.writers.is_lawful(actor, writer.name());
        }
        if known == Lawful::Yes || who.refreshed.elapsed() < REFRESH {
            return known;
        }
        who.refresh();
        who.writers.is_lawful(actor, writer.name())
    }

    fn foreign_code(&self, observation: &Observation) -> Option<Foreign> {
        self.code.foreign(observation)
    }

    fn declare(&self, writers: &[Writer]) {
        let declared = writers.iter().filter_map(|writer| match writer {
            Writer::Kubelet | Writer::InPod(_) => None,
            Writer::Executable { name, exe, sha256 } => {
                Some(Declared { name: name.clone(), exe: exe.clone(), sha256: Some(hex::encode(sha256)) })
            }
        });
        let declared: Vec<_> = declared.collect();
        let in_pods = writers.iter().filter_map(|writer| match writer {
            Writer::InPod(writer) => Some(Arc::clone(writer)),
            Writer::Kubelet | Writer::Executable { .. } => None,
        });
        let mut who = self.who();
        who.writers.declare(declared);
        who.in_pods.declare(in_pods);
    }

    fn kubelet_root(&self) -> HostPath {
        self.who().writers.kubelet_root()
    }

    fn target(&self, path: &HostPath) -> Option<Target> {
        self.who().attribution.target_of(path)
    }

    fn complete_target(&self, target: &mut Target) {
        self.who().attribution.complete(target, None);
    }

    fn weigh(
        &self,
        kind: ViolationKind,
        class: Class,
        path: &HostPath,
        actor: Option<&Actor>,
        target: Option<&Target>,
    ) -> (Severity, Vec<String>) {
        let (role, said) = self.who().attribution.weight_of(path, kind);
        let pod = actor.and_then(|actor| actor.pod.as_ref()).map(|pod| pod.uid.as_str());
        let elsewhere =
            pod.is_some_and(|pod| target.and_then(|target| target.pod_uid.as_deref()) != Some(pod));
        (said.unwrap_or_else(|| severity::of(kind, class, role)), techniques(kind, role, elsewhere))
    }

    fn pods(&self) -> Vec<KubernetesPod> {
        let on_disk = self.on_disk.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.who().attribution.pods(&on_disk)
    }

    fn mesh_files(&self) -> Arc<MeshFiles> {
        Arc::clone(&self.mesh_files.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn class_of(&self, path: &HostPath) -> Class {
        self.who().attribution.class_of(path)
    }

    fn has_mount_namespace(&self, namespace: u64) -> bool {
        let proc = Proc::default();
        // What cannot be listed may be there.
        proc.mount_ns(1) != Some(namespace)
            && proc
                .pids()
                .map_or(true, |pids| pids.into_iter().any(|pid| proc.mount_ns(pid) == Some(namespace)))
    }

    fn facts(&self) -> AgentFacts {
        let head: TreeHead = self.journal.tree_head().borrow().clone();
        let health: JournalHealth = self.journal.health().borrow().clone();
        let root = root_of(&head.note).to_owned();
        AgentFacts {
            node: self.name.clone(),
            mode: self.mode.clone(),
            agent: AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started: self.started,
                ready: *self.ready.borrow(),
                host_root: HostPath::from(self.host_root.as_path()),
            },
            export: self.export.now().iter().map(told).collect(),
            journal: JournalStatus { seq: *self.journal.durable().borrow(), tree_size: head.tree_size, root },
            kubernetes: self.api.status(),
            journal_failing: health.failing_since.is_some(),
        }
    }

    fn coverage(&self, health: &Health) {
        self.journal.set_coverage(health.coverage(), health.blind_to.clone());
    }

    fn seq_of(&self, uid: &str) -> u64 {
        self.opened.seq_of(uid)
    }

    fn complete(&self, story: &mut ViolationStory) {
        let mut seq = story.entry.seq.max(1);
        loop {
            let records = match self.events.read_from(seq, 4096) {
                Ok(records) if !records.is_empty() => records,
                Ok(_) => return,
                Err(e) => {
                    tracing::warn!(error = %e, "the journal cannot be read for a violation's story");
                    return;
                }
            };
            for (at, payload) in &records {
                seq = at + 1;
                let Ok(record) = serde_json::from_slice::<Record>(payload) else { continue };
                if record.uid == story.entry.uid || record.body.violation_id() == Some(&story.entry.uid) {
                    story.records.push(record);
                }
            }
        }
    }
}
