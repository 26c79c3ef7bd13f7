use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Actor, Class, HostPath, Operation, Rung, Target, Time};

/// One journal record, as `meshseal events --format json` prints it and as it is hashed.
///
/// `seq` counts from 1 without holes; `uid` is a ULID and the key by which receivers drop duplicates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Sequence number, from 1, no holes.
    pub seq: u64,
    /// When it happened.
    pub time: Time,
    /// Name of the node.
    pub node: String,
    /// Severity.
    pub severity: Severity,
    /// ULID of the record.
    pub uid: String,
    /// Whether the sensor saw all families at that moment.
    pub coverage: Coverage,
    /// What the sensor was blind to, where coverage is reduced.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub blind_to: Vec<String>,
    /// `kind` and what belongs to it.
    #[serde(flatten)]
    pub body: RecordBody,
}

/// What becomes a [`Record`] once the journal has given it its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The record's ULID, given by its author, so that later records can refer to it before it is on disk.
    pub uid: String,
    /// When it happened.
    pub time: Time,
    /// Severity.
    pub severity: Severity,
    /// `kind` and what belongs to it.
    pub body: RecordBody,
}

impl Draft {
    /// A draft for something that happened now.
    #[must_use]
    pub fn now(severity: Severity, body: RecordBody) -> Self {
        Self::at(Time::now(), severity, body)
    }

    /// A draft for something that happened at `time`.
    #[must_use]
    pub fn at(time: Time, severity: Severity, body: RecordBody) -> Self {
        Self { uid: ulid::Ulid::generate().to_string(), time, severity, body }
    }
}

/// How bad it is. OTLP severity numbers are 9, 12, 14, 17 and 20.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Routine.
    Info,
    /// Worth a look some day.
    Low,
    /// Worth a look.
    Medium,
    /// A violation.
    High,
    /// A violation that breaks the mesh's or the monitor's own trust.
    Critical,
}

impl Severity {
    /// The word in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// OTLP `SeverityNumber`.
    #[must_use]
    pub const fn otlp(self) -> i32 {
        match self {
            Self::Info => 9,
            Self::Low => 12,
            Self::Medium => 14,
            Self::High => 17,
            Self::Critical => 20,
        }
    }
}

/// Whether everything is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coverage {
    /// Best rung, all families live.
    Full,
    /// Lower rung, or families missing: see `blind_to`.
    Reduced,
}

/// The kinds of records, each with its own fields. The tag is the contract's `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum RecordBody {
    #[serde(rename = "agent.started")]
    AgentStarted { version: String, boot_id: String, rung: Rung, resumed_after: String },
    #[serde(rename = "agent.stopped")]
    AgentStopped { reason: String },
    #[serde(rename = "sensor.changed")]
    SensorChanged(SensorBody),
    #[serde(rename = "mode.changed")]
    ModeChanged { from: String, to: String },
    #[serde(rename = "breakglass")]
    Breakglass { statement: String },
    #[serde(rename = "baseline.accepted")]
    BaselineAccepted(BaselineBody),
    #[serde(rename = "baseline.rejected")]
    BaselineRejected(BaselineBody),
    #[serde(rename = "baseline.expired")]
    BaselineExpired(BaselineBody),
    #[serde(rename = "change.accepted")]
    ChangeAccepted(Box<ChangeBody>),
    #[serde(rename = "rotation.accepted")]
    RotationAccepted(Box<ChangeBody>),
    #[serde(rename = "object.verified")]
    ObjectVerified { reason: String, objects: u64, intact: u64, violated: u64, duration_ms: u64 },
    #[serde(rename = "object.unsealed")]
    ObjectUnsealed {
        /// The first of them.
        objects: Vec<HostPath>,
        /// How many were found that no earlier record tells of.
        total: u64,
        /// There are more files than are listed: what is not listed is not told of.
        #[serde(skip_serializing_if = "std::ops::Not::not", default)]
        truncated: bool,
    },
    #[serde(rename = "attempt")]
    Attempt(Box<AttemptBody>),
    #[serde(rename = "violation.opened")]
    ViolationOpened(Box<ViolationBody>),
    #[serde(rename = "violation.updated")]
    ViolationUpdated(Box<ViolationUpdate>),
    #[serde(rename = "violation.resolved")]
    ViolationResolved(Box<ViolationResolved>),
    #[serde(rename = "gap")]
    Gap(GapBody),
    #[serde(rename = "checkpoint")]
    Checkpoint(CheckpointBody),
    #[serde(rename = "delivery.failed")]
    DeliveryFailed { endpoint: String, reason: String, oldest_unsent_seq: u64, dead_letters: u64 },
    #[serde(rename = "config.rejected")]
    ConfigRejected { file: String, reason: String },
    #[serde(rename = "config.changed")]
    ConfigChanged { file: String, changes: Vec<String> },
    #[serde(rename = "writer.changed")]
    WriterChanged(Box<WriterBody>),
    #[serde(rename = "summary")]
    Summary(SummaryBody),
}

/// The `kind` of a record without its fields.
pub type Kind = &'static str;

impl RecordBody {
    /// The contract's `kind`.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::AgentStarted { .. } => "agent.started",
            Self::AgentStopped { .. } => "agent.stopped",
            Self::SensorChanged(_) => "sensor.changed",
            Self::ModeChanged { .. } => "mode.changed",
            Self::Breakglass { .. } => "breakglass",
            Self::BaselineAccepted(_) => "baseline.accepted",
            Self::BaselineRejected(_) => "baseline.rejected",
            Self::BaselineExpired(_) => "baseline.expired",
            Self::ChangeAccepted(_) => "change.accepted",
            Self::RotationAccepted(_) => "rotation.accepted",
            Self::ObjectVerified { .. } => "object.verified",
            Self::ObjectUnsealed { .. } => "object.unsealed",
            Self::Attempt(_) => "attempt",
            Self::ViolationOpened(_) => "violation.opened",
            Self::ViolationUpdated(_) => "violation.updated",
            Self::ViolationResolved(_) => "violation.resolved",
            Self::Gap(_) => "gap",
            Self::Checkpoint(_) => "checkpoint",
            Self::DeliveryFailed { .. } => "delivery.failed",
            Self::ConfigRejected { .. } => "config.rejected",
            Self::ConfigChanged { .. } => "config.changed",
            Self::WriterChanged(_) => "writer.changed",
            Self::Summary(_) => "summary",
        }
    }
}

impl RecordBody {
    /// What happens all day on a healthy node: exported one by one now and then, and summed up in a `summary`.
    #[must_use]
    pub fn is_routine(&self) -> bool {
        match self {
            Self::Attempt(attempt) => attempt.action == Action::Observed,
            Self::RotationAccepted(_) | Self::ObjectVerified { .. } => true,
            _ => false,
        }
    }

    /// The violation an update or a resolution belongs to.
    #[must_use]
    pub fn violation_id(&self) -> Option<&String> {
        match self {
            Self::ViolationUpdated(update) => Some(&update.violation_id),
            Self::ViolationResolved(resolved) => Some(&resolved.violation_id),
            _ => None,
        }
    }
}

/// The sensor came up, changed rung, or lost or regained families.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SensorBody {
    /// The rung that runs now.
    pub rung: Rung,
    /// Hooks that are attached.
    pub hooks: Vec<String>,
    /// Families not covered.
    pub families_blind: Vec<String>,
    /// Why.
    pub reason: String,
}

/// A baseline was taken, refused, or ran out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BaselineBody {
    /// File it came from.
    pub file: String,
    /// Its name, once the signature was believed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Its revision, once the signature was believed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub revision: Option<u64>,
    /// Hex SHA-256 of the payload.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sha256: Option<String>,
    /// Key ids that signed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub signers: Vec<String>,
    /// Objects in it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub objects: Option<u64>,
    /// Objects added against the revision before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub added: Option<u64>,
    /// Objects removed against the revision before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub removed: Option<u64>,
    /// Objects changed against the revision before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub changed: Option<u64>,
    /// Where the statement says it was made from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_commit: Option<String>,
    /// Which objects were added, removed and changed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub diff: Option<DiffBody>,
    /// Why it was refused; of accepted keys, what they are.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// Which objects are not as in the revision before, bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffBody {
    /// Objects that are new.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub added: Vec<String>,
    /// Objects that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub removed: Vec<String>,
    /// Objects sealed otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub changed: Vec<String>,
    /// How many of them did not fit.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The object a record speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Stable id: derived from baseline name and address.
    pub id: String,
    /// Path as on the host.
    pub path: HostPath,
    /// Class.
    pub class: Class,
    /// Name of the baseline it is sealed by.
    pub baseline: Option<String>,
    /// Revision of that baseline.
    pub revision: Option<u64>,
}

/// A state of an object, as sealed or as found: what differs, or all of it.
///
/// Keys: `type`, `sha256`, `size`, `mode`, `uid`, `gid`, `target`, `xattr.<name>`, `inode`, `names`, ...; secrets
/// carry `content: equal|differs` only.
pub type State = BTreeMap<String, String>;

/// A lawful change or rotation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeBody {
    /// The object.
    pub object: ObjectRef,
    /// What was done.
    pub operation: Operation,
    /// Who saw it.
    pub sensor: Rung,
    /// State before.
    pub old: State,
    /// State after.
    pub new: State,
    /// The lawful writer.
    pub actor: Option<Actor>,
    /// Why the actor is not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor_unknown_because: Option<String>,
    /// The pod the object belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Target>,
    /// Source commit of the baseline.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_commit: Option<String>,
}

/// Another executable is a lawful writer of the node's from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WriterBody {
    /// What baselines call the writer.
    pub writer: String,
    /// The executable before: `exe`, `sha256`.
    pub old: State,
    /// The executable now.
    pub new: State,
    /// The process that runs it.
    pub actor: Actor,
    /// Why it is believed.
    pub reason: String,
}

/// Something that could have changed an object, and did not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptBody {
    /// The object.
    pub object: ObjectRef,
    /// What was tried.
    pub operation: Operation,
    /// Who saw it.
    pub sensor: Rung,
    /// How often.
    pub count: u64,
    /// First time.
    pub first_time: Time,
    /// Last time.
    pub last_time: Time,
    /// Observed or denied.
    pub action: Action,
    /// Who tried.
    pub actor: Option<Actor>,
    /// Why the actor is not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor_unknown_because: Option<String>,
    /// The pod the object belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Target>,
}

/// What is wrong with the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    /// Bytes differ.
    Content,
    /// Mode, owner, times or extended attributes differ.
    Attributes,
    /// It is gone.
    Removed,
    /// It was moved away.
    Renamed,
    /// Another inode stands in its place.
    Replaced,
    /// It was changed and put back.
    Reverted,
    /// A name that is not sealed, in a closed directory.
    Unexpected,
    /// It got another name.
    Linked,
    /// Something is mounted over it.
    MountedOver,
    /// A volume is not shaped as its publisher shapes it.
    Structure,
    /// A rotation that does not keep identity.
    Identity,
    /// Something not sealed runs in a proxy.
    Executed,
    /// Memory of a proxy was written.
    Memory,
    /// A writer from before the watch still holds it.
    HeldHandle,
    /// The monitor itself.
    #[serde(rename = "self")]
    Itself,
}

/// What Meshseal did about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Seen.
    Observed,
    /// Refused.
    Denied,
}

/// A violation, when it opens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViolationBody {
    /// What is wrong.
    pub violation: ViolationKind,
    /// With what.
    pub object: ObjectRef,
    /// The act that decided it.
    pub operation: Operation,
    /// All acts seen before the verdict, in order of first appearance.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub operations: Vec<Operation>,
    /// Who saw it.
    pub sensor: Rung,
    /// Events folded into it.
    pub count: u64,
    /// First event.
    pub first_time: Time,
    /// Last event.
    pub last_time: Time,
    /// Same cause on another node: same fingerprint.
    pub fingerprint: String,
    /// Observed or denied.
    pub action: Action,
    /// As sealed: what differs.
    pub expected: State,
    /// As found: what differs.
    pub actual: State,
    /// Who did it.
    pub actor: Option<Actor>,
    /// Why the actor is not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor_unknown_because: Option<String>,
    /// The pod the object belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Target>,
    /// MITRE ATT&CK technique ids.
    pub attack: Vec<String>,
    /// One sentence more, where there is something to tell (an alias's path, the name moved to).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// More of the same, or a change of what is found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViolationUpdate {
    /// `uid` of the opened record.
    pub violation_id: String,
    /// The state of the violation now: `count`, times, `operation`, `actual` and `actor` are the latest.
    #[serde(flatten)]
    pub now: ViolationBody,
}

/// How a violation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolution {
    /// The object went with its pod, or came anew with a deployment.
    Redeployed,
    /// A newer baseline says it is right.
    Rebaselined,
    /// A person took note.
    Acknowledged,
    /// It was put back, and nobody opened it meanwhile.
    Restored,
}

/// Who took note of a violation, and why it is no matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// User id of the process that asked, as the kernel says.
    pub uid: u32,
    /// Its process id, as the agent's pid namespace has it; 0 if it is in another.
    pub pid: u32,
    /// Its executable, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exe: Option<HostPath>,
    /// The reason given.
    pub reason: String,
}

/// The end of a violation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViolationResolved {
    /// `uid` of the opened record.
    pub violation_id: String,
    /// How.
    pub resolution: Resolution,
    /// What it was.
    pub violation: ViolationKind,
    /// With what.
    pub object: ObjectRef,
    /// Who did it, where it was an act.
    pub actor: Option<Actor>,
    /// Who took note, where it was acknowledged.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub acknowledged: Option<Acknowledgement>,
    /// One sentence more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// Something was not seen, or not kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GapBody {
    /// Where: `ring`, `inotify`, `fanotify`, `journal`, `export`, `hash`, `baseline`, ...
    pub at: String,
    /// How many events, where that is known.
    pub lost: u64,
    /// What is known of the cause.
    pub reason: String,
    /// What it concerned, where that is known (at most 100 paths).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub objects: Vec<HostPath>,
    /// First sequence number concerned, for losses of the journal or export.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from_seq: Option<u64>,
    /// Last sequence number concerned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_seq: Option<u64>,
    /// Everything concerned has been verified again.
    pub reconciled: bool,
}

/// A stretch of the journal, counted: receivers get its routine records summed up, and can tell what they miss of the
/// others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryBody {
    /// First record counted.
    pub from_seq: u64,
    /// Last record counted.
    pub to_seq: u64,
    /// When the first one happened.
    pub from_time: Time,
    /// When the last one happened.
    pub to_time: Time,
    /// Records by kind, all of them.
    pub counts: BTreeMap<String, u64>,
    /// Objects that most routine records were about, the most frequent first (at most 10).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub objects: Vec<HostPath>,
}

/// The state of the tree, signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointBody {
    /// Leaves covered (records 1 to `tree_size`).
    pub tree_size: u64,
    /// Base64 of the root hash.
    pub root: String,
    /// The whole C2SP checkpoint note.
    pub note: String,
}
