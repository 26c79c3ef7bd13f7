//! The two sides the server asks: the judge task, by message; and the journal, through a trait.

use std::fmt;
use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::{KubernetesPod, ObjectEntry, StatusReport, ViolationEntry, ViolationStory};
use crate::journal::evidence::Evidence;
use crate::model::{Acknowledgement, HostPath, Time};

/// A question to the judge task. It answers by the enclosed channel; a dropped channel means it is stopping.
#[derive(Debug)]
pub enum Query {
    /// The whole status.
    Status(oneshot::Sender<StatusReport>),
    /// All objects, sealed ones and unsealed ones, by path.
    Objects(oneshot::Sender<Vec<ObjectEntry>>),
    /// All violations, oldest first.
    Violations(oneshot::Sender<Vec<ViolationEntry>>),
    /// One violation by its id; `None` if there is none.
    Violation(String, oneshot::Sender<Option<Box<ViolationStory>>>),
    /// A person took note of a violation whose wrong state has passed.
    Acknowledge(String, Acknowledgement, oneshot::Sender<Acknowledged>),
    /// The pods of this node, as disk and API tell of them, by uid.
    Pods(oneshot::Sender<Vec<KubernetesPod>>),
    /// Paths of objects that ought to be sealed and are not.
    Unsealed(oneshot::Sender<Vec<HostPath>>),
}

/// What comes of an acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acknowledged {
    /// It is resolved; the `uid` of the record that says so, which is on its way to the journal.
    Done(String),
    /// There is no such violation.
    Unknown,
    /// It was resolved before.
    Resolved,
    /// What is wrong still is: an acknowledgement would hide it.
    Standing,
    /// It was covered in this mount namespace, which lives: whether it still is, is not known.
    Elsewhere(u64),
}

/// The journal, as far as answers need it. Calls may read the disk: the server makes them on a blocking thread.
pub trait EventSource: Send + Sync + fmt::Debug + 'static {
    /// At most `max` durable records from `seq` on, in order, each as the JSON object that was hashed (no line end).
    /// Starts at the oldest record kept if `seq` is older; empty if `seq` is beyond the last durable one.
    ///
    /// # Errors
    /// The journal cannot be read.
    fn read_from(&self, seq: u64, max: usize) -> io::Result<Vec<(u64, Bytes)>>;

    /// The first durable record that happened at `time` or later; one past the last if there is none.
    ///
    /// # Errors
    /// The journal cannot be read.
    fn seq_at_time(&self, time: Time) -> io::Result<u64>;

    /// The last durable sequence number, as it grows.
    fn durable(&self) -> watch::Receiver<u64>;

    /// The latest signed checkpoint (a C2SP note); `None` if none has been made yet.
    ///
    /// # Errors
    /// The journal cannot be read.
    fn checkpoint(&self) -> io::Result<Option<String>>;

    /// Proof that record `seq` is in the tree of the latest checkpoint; `None` if that does not cover it.
    ///
    /// # Errors
    /// The journal cannot be read.
    fn proof(&self, seq: u64) -> io::Result<Option<Proof>>;

    /// A bundle of these records of a violation, with proofs; `None` if they cannot all be proven yet.
    ///
    /// # Errors
    /// The journal cannot be read.
    fn evidence(&self, violation: &str, seqs: &[u64]) -> io::Result<Option<Evidence>>;
}

/// An RFC 6962 inclusion proof. Hashes are base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The record; its leaf index is `seq` - 1.
    pub seq: u64,
    /// Leaves in the tree.
    pub tree_size: u64,
    /// Hash of the record's leaf.
    pub leaf_hash: String,
    /// Sibling hashes from the leaf to the root.
    pub hashes: Vec<String>,
    /// Root hash of the tree.
    pub root: String,
    /// The signed checkpoint over that root.
    pub checkpoint: String,
}
