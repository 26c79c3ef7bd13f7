//! The types of the contract's §5, as the server writes and the command line reads them.

use serde::{Deserialize, Serialize};

use crate::model::{Class, Coverage, HostPath, Record, Resolution, Rung, Severity, Time, ViolationBody};
use crate::sensor::Hook;

/// A node's answer; later is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Posture {
    /// All is as sealed, and all is seen.
    Intact,
    /// It cannot be said.
    Uncertain,
    /// No live sensor.
    Blind,
    /// Something is not as sealed.
    Violated,
}

impl Posture {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intact => "intact",
            Self::Uncertain => "uncertain",
            Self::Blind => "blind",
            Self::Violated => "violated",
        }
    }

    /// Exit status of `meshseal status`.
    #[must_use]
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Intact => 0,
            Self::Violated => 1,
            Self::Uncertain => 3,
            Self::Blind => 4,
        }
    }
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Name of the node.
    pub node: String,
    /// Posture.
    pub posture: Posture,
    /// Why, worst first; empty when intact. See [`mod@super::posture`] for the words.
    pub reasons: Vec<String>,
    /// Since when the posture is what it is.
    pub since: Time,
    /// `observe` or `enforce`.
    pub mode: String,
    /// Whether everything is seen.
    pub coverage: Coverage,
    /// The sensor.
    pub sensor: SensorStatus,
    /// How many objects are in which state.
    pub objects: ObjectCounts,
    /// How many violations there are.
    pub violations: ViolationCounts,
    /// Accepted baselines.
    pub baseline: Vec<BaselineStatus>,
    /// Events that were lost.
    pub loss: LossStatus,
    /// Receivers.
    pub export: Vec<ExportStatus>,
    /// The journal.
    pub journal: JournalStatus,
    /// The agent.
    pub agent: AgentStatus,
    /// The Kubernetes API: what it is asked, and what is unknown because it does not tell. Has no part in the posture.
    #[serde(default)]
    pub kubernetes: KubernetesStatus,
}

/// The sensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SensorStatus {
    /// The rung it runs on.
    pub rung: Rung,
    /// Its hooks.
    pub hooks: Vec<Hook>,
    /// What it does not see.
    pub blind_to: Vec<String>,
    /// What it watches.
    #[serde(default)]
    pub watched: Watched,
}

/// How much is watched: goes up with the objects, and down with them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Objects, what lies in them, and the directories above them.
    pub slots: u64,
    /// Inodes behind these, with those that inherited it, as far as the agent keeps them itself.
    pub inodes: u64,
}

/// How many objects are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectCounts {
    /// Sealed objects (all states but `unsealed`).
    pub total: u64,
    /// As sealed.
    pub intact: u64,
    /// Not as sealed.
    pub violated: u64,
    /// Not verified yet, or again.
    pub unverified: u64,
    /// Found, of the kind that is sealed, but in no baseline.
    pub unsealed: u64,
    /// There are more of these than are listed and counted.
    #[serde(default)]
    pub unsealed_truncated: bool,
    /// As sealed by the revision before, during a transition.
    pub superseded: u64,
    /// Of all: those that nobody signed, held to what they were when they were seen first. They are among the unsealed too.
    #[serde(default)]
    pub first_use: u64,
}

/// How many violations there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViolationCounts {
    /// Open now.
    pub open: u64,
    /// Ever opened, as far as the journal reaches.
    pub total: u64,
}

/// An accepted baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineStatus {
    /// Name.
    pub name: String,
    /// Revision.
    pub revision: u64,
    /// When it was accepted.
    pub accepted: Time,
    /// When it runs out.
    pub not_after: Option<Time>,
    /// Key ids that signed.
    pub signers: Vec<String>,
}

/// Events that were lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossStatus {
    /// Since the agent started.
    pub events: u64,
    /// Losses after which what they concern has not been verified again yet.
    pub unreconciled: u64,
}

/// A receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    /// Its URL.
    pub endpoint: String,
    /// All records up to here have been acknowledged.
    pub acknowledged_seq: u64,
    /// Age of the oldest record not acknowledged, in seconds; 0 if there is none.
    pub oldest_unsent_age_s: u64,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<String>,
}

/// The journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Last durable sequence number.
    pub seq: u64,
    /// Leaves covered by the last checkpoint.
    pub tree_size: u64,
    /// Base64 of its root hash.
    pub root: String,
}

/// The agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Version.
    pub version: String,
    /// When it started.
    pub started: Time,
    /// Hooks are live and the first verification is done.
    pub ready: bool,
    /// Where the node's root is mounted, as the agent sees it: paths of objects are below it.
    #[serde(default = "slash")]
    pub host_root: HostPath,
}

fn slash() -> HostPath {
    HostPath::from_text("/")
}

/// Whether the Kubernetes API tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KubernetesState {
    /// It is not asked: not in a cluster, or not wanted.
    #[default]
    Off,
    /// It was not reached yet.
    Connecting,
    /// It tells.
    Connected,
    /// It does not tell (any more), and is asked again.
    Lost,
}

impl KubernetesState {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Lost => "lost",
        }
    }
}

/// Why the Kubernetes API does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesFault {
    /// A stable word: `no_access` `unreachable` `silent` `unauthorized` `forbidden` `not_found` `refused` `too_large` `malformed`.
    pub kind: String,
    /// For people.
    pub message: String,
}

/// The Kubernetes API, as the agent knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesStatus {
    /// Whether it tells.
    pub state: KubernetesState,
    /// Why it is not asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub off_because: Option<String>,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub server: Option<String>,
    /// Since when the state is what it is.
    pub since: Time,
    /// When all pods were last listed.
    pub last_sync: Option<Time>,
    /// When it last said anything.
    pub last_heard: Option<Time>,
    /// What went wrong last, while it does not tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fault: Option<KubernetesFault>,
    /// Pods it has on this node.
    pub pods: u64,
    /// Pods it had, which are kept while they are on disk.
    pub gone: u64,
    /// Pods of which it tells what the disk contradicts: the disk is believed.
    pub contradictory: u64,
    /// Pods that are not kept.
    pub not_kept: u64,
    /// Events that were too large to be read.
    pub passed_over: u64,
    /// How often all pods were listed.
    pub lists: u64,
    /// Uid of the cluster, that of its namespace `kube-system`.
    pub cluster_uid: Option<String>,
    /// What cannot be said, in words for people; empty when nothing is missing.
    pub unknown: Vec<String>,
}

/// One element of `GET /v1/pods`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesPod {
    /// Its uid on the node (of a static pod, the hash of its file).
    pub uid: String,
    /// Namespace, where known.
    pub namespace: Option<String>,
    /// Name, where known.
    pub name: Option<String>,
    /// Service account, where known.
    pub service_account: Option<String>,
    /// What controls it, where known.
    pub owner: Option<crate::model::Owner>,
    /// The kubelet has a directory of it.
    pub disk: bool,
    /// The API told of it.
    pub api: bool,
    /// The API has it no more.
    pub gone_from_api: bool,
    /// The API tells of it what the disk contradicts, and is not believed; or the disk contradicts itself (its log directory and
    /// its token name two pods), and neither is: then there is nothing but the uid.
    pub contradictory: bool,
}

/// In which state an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectState {
    /// As sealed.
    Intact,
    /// Not as sealed.
    Violated,
    /// Not verified yet, or again.
    Unverified,
    /// In no baseline.
    Unsealed,
    /// As sealed by the revision before, during a transition.
    Superseded,
}

impl ObjectState {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intact => "intact",
            Self::Violated => "violated",
            Self::Unverified => "unverified",
            Self::Unsealed => "unsealed",
            Self::Superseded => "superseded",
        }
    }
}

/// One element of `GET /v1/objects`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectEntry {
    /// Stable id.
    pub id: String,
    /// Path as on the host.
    pub path: HostPath,
    /// Class.
    pub class: Class,
    /// Name of the baseline it is sealed by.
    pub baseline: Option<String>,
    /// Revision of that baseline.
    pub revision: Option<u64>,
    /// State.
    pub state: ObjectState,
    /// `file`, `symlink`, `directory`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it was last verified.
    pub last_verified: Option<Time>,
    /// Ids of its open violations.
    pub violations: Vec<String>,
}

/// Whether a violation still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ViolationState {
    /// It does.
    Open,
    /// It does not.
    Resolved,
}

/// One element of `GET /v1/violations`: the opened record with its latest update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViolationEntry {
    /// `uid` of the opened record: the violation's id.
    pub uid: String,
    /// `seq` of the opened record.
    pub seq: u64,
    /// `time` of the opened record.
    pub time: Time,
    /// Severity of the opened record.
    pub severity: Severity,
    /// Open or resolved.
    pub state: ViolationState,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resolution: Option<Resolution>,
    /// `violation.updated` records so far.
    pub updates: u64,
    /// What it is, as of the latest update.
    #[serde(flatten)]
    pub body: ViolationBody,
}

/// `GET /v1/violations/ID`: the entry, and each record that tells of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViolationStory {
    /// The entry.
    #[serde(flatten)]
    pub entry: ViolationEntry,
    /// `violation.opened`, `.updated` and `.resolved` records in order.
    pub records: Vec<Record>,
}
