//! What the judge asks the rest of the agent.

use std::sync::Arc;

use crate::baseline::Writer;
use crate::inventory::code::Foreign;
use crate::inventory::writers::Lawful;
use crate::model::{Actor, Class, HostPath, Observation, Severity, Target, ViolationKind};
use crate::sensor::Health;
use crate::status::{
    AgentStatus, ExportStatus, JournalStatus, KubernetesPod, KubernetesStatus, ViolationStory,
};

/// Facts of the agent that stand in a status report and are not the judge's.
#[derive(Debug, Clone)]
pub struct AgentFacts {
    /// Name of the node.
    pub node: String,
    /// `observe` or `enforce`.
    pub mode: String,
    /// The agent.
    pub agent: AgentStatus,
    /// Receivers.
    pub export: Vec<ExportStatus>,
    /// The journal.
    pub journal: JournalStatus,
    /// The Kubernetes API.
    pub kubernetes: KubernetesStatus,
    /// The journal cannot be written.
    pub journal_failing: bool,
}

/// What was found of meshes on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshFiles {
    /// By path.
    pub paths: Vec<HostPath>,
    /// There are more than these.
    pub truncated: bool,
}

/// The rest of the agent, as the judge sees it. Called from the judge's task: answers come from memory, or at most
/// from a short read of /proc.
pub trait World: Send + Sync + std::fmt::Debug {
    /// Completes an actor: cgroup, container, pod, hash of the executable, which is in the making then.
    fn enrich(&self, actor: &mut Actor);

    /// Whether `actor` is the lawful writer `writer` of an object.
    fn lawful(&self, actor: &Actor, writer: &Writer, object: &HostPath) -> Lawful;

    /// What a process that runs a sealed program made its code, if that did not come with the program. Looks at the file.
    fn foreign_code(&self, observation: &Observation) -> Option<Foreign>;

    /// Takes note of the writers that baselines declare.
    fn declare(&self, writers: &[Writer]);

    /// The kubelet's directory.
    fn kubelet_root(&self) -> HostPath;

    /// The pod an object belongs to.
    fn target(&self, path: &HostPath) -> Option<Target>;

    /// Completes a target that a container tells.
    fn complete_target(&self, target: &mut Target) {
        let _ = target;
    }

    /// How bad a violation is, and which techniques it may be part of.
    fn weigh(
        &self,
        kind: ViolationKind,
        class: Class,
        path: &HostPath,
        actor: Option<&Actor>,
        target: Option<&Target>,
    ) -> (Severity, Vec<String>);

    /// Mesh files of this node that may be sealed, sealed or not.
    fn mesh_files(&self) -> Arc<MeshFiles>;

    /// How one of them may change, as its profile says.
    fn class_of(&self, _: &HostPath) -> Class {
        Class::Sealed
    }

    /// Whether this is not the host's mount namespace, and a process lives in it.
    fn has_mount_namespace(&self, namespace: u64) -> bool;

    /// The pods of this node, as disk and API tell of them. Called where blocking is allowed.
    fn pods(&self) -> Vec<KubernetesPod> {
        Vec::new()
    }

    /// Facts for a status report.
    fn facts(&self) -> AgentFacts;

    /// What is stamped on records from now on.
    fn coverage(&self, health: &Health);

    /// Sequence number of a record by its uid; 0 while it is not on disk.
    fn seq_of(&self, uid: &str) -> u64;

    /// Adds to a story its records, from the journal. Called where blocking is allowed.
    fn complete(&self, story: &mut ViolationStory);
}
