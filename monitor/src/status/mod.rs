//! Answers: what the agent tells of itself over its socket, and how they are asked for.
//!
//! The judge task owns the facts and answers [`Query`]s; records come from the journal through [`EventSource`].

pub mod client;
mod feed;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod metrics;
mod model;
mod page;
mod posture;
mod query;
mod routes;
mod server;
mod socket;

pub use model::{
    AgentStatus, BaselineStatus, ExportStatus, JournalStatus, KubernetesFault, KubernetesPod,
    KubernetesState, KubernetesStatus, LossStatus, ObjectCounts, ObjectEntry, ObjectState, Posture,
    SensorStatus, StatusReport, ViolationCounts, ViolationEntry, ViolationState, ViolationStory, Watched,
};
pub use posture::{Facts, posture};
pub use query::{Acknowledged, EventSource, Proof, Query};
pub use server::Server;
pub use socket::{Socket, SocketError};

#[cfg(test)]
mod tests;
