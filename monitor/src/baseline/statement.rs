//! The in-toto statement a baseline is: its text, and the suspicion it is read with.
//!
//! `subject[0].digest.sha256` is the SHA-256 of `predicate.objects` as canonical JSON (RFC 8785: sorted keys, no
//! blanks). The fields of objects stand in sorted order below for that reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::anchor::Anchor;
use super::error::Error;
use super::object::{Publish, SealedObject, Writer};
use super::parse::ObjectsDigest;
use super::wire::WireObject;
use crate::model::{HostPath, Time};

/// `_type` of an in-toto Statement v1.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Ours.
pub const PREDICATE_TYPE: &str = "https://meshseal.dev/baseline/v1";
/// Most objects of a baseline.
pub const MAX_OBJECTS: usize = 1_000_000;
/// Most executables a baseline can make lawful writers.
pub const MAX_WRITERS: usize = 1000;
/// Seconds of transition, where the statement says nothing.
const TRANSITION: u64 = 1800;

pub use super::parse::parse;

/// An in-toto statement as text: over a baseline, or over what is signed like one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement<P = Predicate> {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// The baseline, by name and by digest of its objects.
    pub subject: Vec<Subject>,
    /// [`PREDICATE_TYPE`], of a baseline.
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// The baseline.
    pub predicate: P,
}

/// What the statement is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Name of the baseline.
    pub name: String,
    /// Digest of its objects.
    pub digest: SubjectDigest,
}

/// Digest of the objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectDigest {
    /// Hex SHA-256 of `predicate.objects` as canonical JSON.
    pub sha256: String,
}

/// A baseline as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Predicate {
    /// Letters, digits, `.`, `_`, `-`; at most 128.
    pub name: String,
    /// From 1; never goes down.
    pub revision: u64,
    /// Where it is valid; everywhere, if absent.
    #[serde(default, skip_serializing_if = "Scope::is_everywhere")]
    pub scope: Scope,
    /// When it is valid; always, if absent.
    #[serde(default, skip_serializing_if = "Validity::is_always")]
    pub validity: Validity,
    /// Seconds for which objects of the revision before are `superseded`, not violated.
    #[serde(default = "transition")]
    pub transition: u64,
    /// What it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_commit: Option<String>,
    /// Executables that may publish, beside the kubelet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writers: Vec<WireWriter>,
    /// What the maker of the baseline met and could not seal: part of what is signed, so that nobody takes it for
    /// protected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unresolved: Vec<Unresolved>,
    /// The objects: the host's first, then those of workloads, then those of images, each sorted by path.
    pub objects: Vec<WireObject>,
}

/// Something that is used and not sealed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unresolved {
    /// Where: workload and volume, image and path, or a file.
    pub place: String,
    /// Why.
    pub reason: String,
}

impl std::fmt::Display for Unresolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

pub(super) const fn transition() -> u64 {
    TRANSITION
}

/// Where a baseline is valid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Cluster uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Which nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeSelector>,
}

impl Scope {
    fn is_everywhere(&self) -> bool {
        self.cluster.is_none() && self.nodes.is_none()
    }
}

/// Which nodes: those named, or those that have all labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSelector {
    /// Labels, all of which a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Names, one of which a node must have; any, if empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub names: BTreeSet<String>,
}

/// When a baseline is valid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Validity {
    /// Not before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// Not after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
}

impl Validity {
    fn is_always(&self) -> bool {
        self.not_before.is_none() && self.not_after.is_none()
    }
}

/// An executable that may publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WireWriter {
    /// Names of containers: the writer is the first process of such a container, in the pod whose file it writes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// Path as its own mount namespace names it.
    pub exe: HostPath,
    /// What objects call it.
    pub name: String,
    /// Namespace of its pods: files of the host, and of other pods, are its to write too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Hex SHA-256 of the executable.
    pub sha256: String,
}

/// A baseline that was read and is well-formed. Who signed it, and whether it is in force, is the store's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// Its name.
    pub name: String,
    /// From 1.
    pub revision: u64,
    /// SHA-256 of the payload.
    pub sha256: [u8; 32],
    /// Where it is valid.
    pub scope: Scope,
    /// When it is valid.
    pub validity: Validity,
    /// For how long objects of the revision before are `superseded`.
    pub transition: Duration,
    /// What it was made from.
    pub source_commit: Option<String>,
    /// Who may publish; the kubelet always stands first.
    pub writers: Arc<[Writer]>,
    /// What its maker could not seal.
    pub unresolved: Vec<Unresolved>,
    /// The objects, sorted by anchor and path: the host's first.
    pub objects: Arc<[SealedObject]>,
}

impl Statement {
    /// A statement over a predicate: sorts the objects and works out the subject.
    ///
    /// # Errors
    /// The objects cannot be written as JSON.
    pub fn of(mut predicate: Predicate) -> Result<Self, Error> {
        predicate
            .objects
            .sort_by(|a, b| (&a.workload, &a.image, &a.path).cmp(&(&b.workload, &b.image, &b.path)));
        let mut digest = ObjectsDigest::default();
        predicate.objects.iter().try_for_each(|object| digest.add(object))?;
        let sha256 = digest.finish();
        let name = predicate.name.clone();
        Ok(Self::around((&name, sha256), PREDICATE_TYPE, predicate))
    }
}

impl<P: Serialize> Statement<P> {
    /// A statement of that type about this name and SHA-256.
    pub(super) fn around((name, sha256): (&str, String), predicate_type: &str, predicate: P) -> Self {
        Self {
            statement_type: STATEMENT_TYPE.into(),
            subject: vec![Subject { name: name.into(), digest: SubjectDigest { sha256 } }],
            predicate_type: predicate_type.into(),
            predicate,
        }
    }

    /// As text to review and sign.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        let mut out =
            serde_json::to_vec_pretty(self).map_err(|e| Error::new("cannot write statement", "", e))?;
        out.push(b'\n');
        Ok(out)
    }
}

/// Whether this is meant to be a bare statement, not an envelope.
#[must_use]
pub fn looks_like_statement(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(rename = "predicateType")]
        predicate_type: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Probe>(bytes).is_ok_and(|probe| probe.predicate_type.is_some())
}

/// v1, or v0.1, which has the same fields and which `cosign attest-blob` writes.
pub(super) fn is_statement_type(text: &str) -> bool {
    text == STATEMENT_TYPE || text == "https://in-toto.io/Statement/v0.1"
}

/// What an object is sorted by.
pub(super) fn place_of(object: &SealedObject) -> (&Anchor, &HostPath) {
    (&object.rule.anchor, &object.path)
}

/// Whether this may name a baseline, and so a file in the store.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// What changed from one baseline to another: addresses ([`SealedObject::address`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Only in the later one.
    pub added: Vec<String>,
    /// Only in the earlier one.
    pub removed: Vec<String>,
    /// In both, and not the same.
    pub changed: Vec<String>,
}

impl Diff {
    /// Of two lists sorted by anchor and path, as [`Baseline::objects`] are.
    #[must_use]
    pub fn between(old: &[SealedObject], new: &[SealedObject]) -> Self {
        let mut diff = Self::default();
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return diff,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => place_of(a).cmp(&place_of(b)),
            };
            match order {
                std::cmp::Ordering::Less => diff.removed.extend(old.next().map(SealedObject::address)),
                std::cmp::Ordering::Greater => diff.added.extend(new.next().map(SealedObject::address)),
                std::cmp::Ordering::Equal => {
                    if let (Some(a), Some(b)) = (old.next(), new.next())
                        && (a.rule != b.rule || a.seal != b.seal)
                    {
                        diff.changed.push(b.address());
                    }
                }
            }
        }
    }

    /// Nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// `in-place`, which need not be said.
pub(super) fn is_default_publish(publish: &Publish) -> bool {
    *publish == Publish::default()
}
