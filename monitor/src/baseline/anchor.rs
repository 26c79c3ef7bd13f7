//! What an object's path is relative to: the host, the pods of a workload, or the containers of an image.
//!
//! A baseline from the approved side cannot name host paths: pod uids and nodes are not known when it is made. Its
//! objects are anchored to a workload or an image instead, and become host paths on the node
//! (`inventory::workloads`).

use std::fmt;
use std::sync::Arc;

use super::object::Digest;
use crate::model::HostPath;

/// What a path is relative to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Anchor {
    /// The host's root.
    #[default]
    Host,
    /// The directory of each pod of a workload: `<kubelet root>/pods/<uid>`. A last component that ends in `*` stands
    /// for what the API server makes up (`kube-api-access-*`).
    Workload(Arc<Workload>),
    /// The root of each container of an image.
    Image(Arc<Image>),
}

/// A workload: what pods are made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// `Deployment`, `DaemonSet`, ..., or `Pod` for a pod of its own.
    pub kind: WorkloadKind,
    /// Name.
    pub name: String,
    /// Service account its pods run as.
    pub service_account: String,
}

/// The kinds that make pods, as far as the names of their pods tell them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum WorkloadKind {
    /// A pod of its own.
    Pod,
    /// `<name>-<hash>-<random>`.
    Deployment,
    /// `<name>-<random>`.
    ReplicaSet,
    /// `<name>-<random>`.
    ReplicationController,
    /// `<name>-<random>`.
    DaemonSet,
    /// `<name>-<ordinal>`.
    StatefulSet,
    /// `<name>-<random>`, or `<name>-<index>-<random>`.
    Job,
    /// `<name>-<minutes>-<random>`.
    CronJob,
}

impl WorkloadKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Pod,
        Self::Deployment,
        Self::ReplicaSet,
        Self::ReplicationController,
        Self::DaemonSet,
        Self::StatefulSet,
        Self::Job,
        Self::CronJob,
    ];

    /// The word in manifests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::ReplicationController => "ReplicationController",
            Self::DaemonSet => "DaemonSet",
            Self::StatefulSet => "StatefulSet",
            Self::Job => "Job",
            Self::CronJob => "CronJob",
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.kind.as_str(), self.name)
    }
}

/// An image, by what its bytes are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Image {
    /// SHA-256 of the manifest of the platform.
    pub digest: Digest,
    /// What pods may call it: references with a tag or a digest, as runtimes write them out.
    pub names: Box<[String]>,
}

impl Anchor {
    /// The path with what it is relative to: one text for each object of a baseline.
    #[must_use]
    pub fn address(&self, path: &HostPath) -> String {
        match self {
            Self::Host => path.to_string(),
            Self::Workload(workload) => format!("pod:{workload}:{path}"),
            Self::Image(image) => format!("image:sha256:{}:{path}", hex::encode(image.digest)),
        }
    }

    /// Whether paths are the host's as they are.
    #[must_use]
    pub const fn is_host(&self) -> bool {
        matches!(self, Self::Host)
    }
}
