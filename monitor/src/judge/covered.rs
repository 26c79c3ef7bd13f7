//! The verdict on what is not done to an object's own inode: mounts over it and under it, and reaching into a process
//! that runs it.

use crate::baseline::{Difference, Found};
use crate::model::{HostPath, ObjectRef, Operation, State, ViolationKind};

use super::acts::{Act, Acts, decisive};
use super::topology::is_mount;
use super::verdict::{Round, Seen, merged};
use super::violations::Finding;

/// What mounts and unmounts did to one object.
#[derive(Debug, Default)]
pub(super) struct Covered {
    pub(super) findings: Vec<Finding>,
    /// Failed, or without effect on what is sealed.
    pub(super) attempts: Vec<Act>,
    /// Nothing else can be said of the object: it is not what stands at its path.
    pub(super) whole: bool,
}

/// What is known of the place of an object beside the acts on mounts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standpoint {
    /// Number of the inode that stood there before it was covered or replaced, if it was.
    pub(super) sealed: Option<u64>,
    /// A mount that carried it is gone from above it.
    pub(super) bared: bool,
    /// Acts on names tell why another inode, or none, stands there; what was unmounted then is the same tree elsewhere, as when a
    /// container takes the root of its host away.
    pub(super) named: bool,
}

/// Judges acts on mounts.
pub(super) fn covered(
    object: &ObjectRef,
    last: Option<&Seen>,
    found: Option<&Found>,
    differences: &[Difference],
    acts: &[&Act],
    Standpoint { sealed, bared, named }: Standpoint,
) -> Covered {
    let mut covered = Covered::default();
    let (done, undone): (Vec<&Act>, Vec<&Act>) =
        acts.iter().copied().filter(|act| is_mount(act.operation)).partition(|act| !act.denied);
    covered.attempts.extend(undone.into_iter().cloned());
    let options = done
        .iter()
        .copied()
        .filter(|act| matches!(act.operation, Operation::Remount | Operation::MountSetattr));
    covered.attempts.extend(options.cloned());
    let Some(last) = last.filter(|_| !done.is_empty()) else { return covered };
    let round = Round { object, acts: &done };
    let pick = |wanted: &[Operation]| {
        decisive(done.iter().copied().filter(|act| wanted.contains(&act.operation))).cloned()
    };
    let laid = pick(&[Operation::Mount, Operation::PivotRoot]);
    if found.is_some_and(|found| found.inode == last.inode()) {
        // The host sees it as before: it is covered in another mount namespace, or was for a moment.
        if let Some(act) = laid {
            let namespace = act.actor.as_ref().ok().and_then(|actor| actor.mount_ns);
            let mut finding =
                round.finding(ViolationKind::MountedOver, Some(act), State::new(), State::new());
            finding.standing = false;
            finding.detail = Some(namespace.map_or_else(
                || "not, or no longer, where the host sees it".to_owned(),
                |namespace| format!("in mount namespace {namespace}; the host sees it as before"),
            ));
            covered.findings.push(finding);
        }
        return covered;
    }
    let taken = || pick(&[Operation::Umount]);
    let carried = decisive(done.iter().copied().filter(|act| act.carried)).cloned();
    let back = sealed.is_some() && found.map(|found| found.inode.ino) == sealed;
    let gone = if found.is_some() { ViolationKind::Replaced } else { ViolationKind::Removed };
    let (kind, act) = match (carried, laid, taken()) {
        _ if back => {
            covered.whole = true;
            // It may have been written to while something lay over it.
            covered.findings = Round { object, acts }.standing(differences);
            return covered;
        }
        (Some(moved), ..) => (gone, moved),
        // A mount that is moved is laid elsewhere.
        (None, Some(moved), None) if bared => (gone, moved),
        (None, _, Some(act)) if bared => (gone, act),
        (None, Some(act), _) => (ViolationKind::MountedOver, act),
        (None, None, Some(act)) if !named => (gone, act),
        (None, None, _) => return covered,
    };
    covered.whole = true;
    let (mut expected, mut actual) = merged(differences);
    expected.insert("inode".into(), last.inode().ino.to_string());
    actual
        .insert("inode".into(), found.map_or_else(|| "none".to_owned(), |found| found.inode.ino.to_string()));
    covered.findings.push(round.finding(kind, Some(act), expected, actual));
    covered
}

/// What processes that run the object made their code and did not come with it: a finding for each file.
pub(super) fn executed(
    object: &ObjectRef,
    acts: &Acts,
    as_inner: impl Fn(&HostPath) -> ObjectRef,
) -> Vec<Finding> {
    let mut by_file: Vec<(&HostPath, Vec<&Act>)> = Vec::new();
    for act in acts.iter().filter(|act| act.runs_code() && !act.denied) {
        match by_file.iter_mut().find(|(path, _)| **path == act.path) {
            Some((_, acts)) => acts.push(act),
            None => by_file.push((&act.path, vec![act])),
        }
    }
    let finding = |(path, acts): (&HostPath, Vec<&Act>)| {
        // In the kernel's words.
        let told = acts.iter().map(|act| {
            let code = act.operation == Operation::MmapCode;
            Act { operation: if code { Operation::Mmap } else { act.operation }, ..(*act).clone() }
        });
        let told: Vec<Act> = told.collect();
        let acts: Vec<&Act> = told.iter().collect();
        let round = Round { object: &as_inner(path), acts: &acts };
        let act = decisive(acts.iter().copied()).cloned();
        let why = act.as_ref().and_then(|act| act.note).unwrap_or("is not sealed");
        // The latest that is known: it may have been written to between two acts, and gone before the last.
        let hash = acts.iter().rev().find_map(|act| act.sha256.clone());
        let actual = hash.map(|hash| ("sha256".to_owned(), hash)).into_iter().collect();
        let mut finding = round.finding(ViolationKind::Executed, act, State::new(), actual);
        finding.standing = false;
        finding.detail = Some(format!("by a process that runs {}; it {why}", object.path));
        finding.of = Some(object.path.clone());
        finding
    };
    by_file.into_iter().map(finding).collect()
}

/// Somebody attached to a process that runs the object, or opened, read or wrote its memory. It may have been read only:
/// what a process's memory holds is its keys.
pub(super) fn reached_into(object: &ObjectRef, acts: &[&Act]) -> Option<Finding> {
    let reached: Vec<&Act> =
        acts.iter().copied().filter(|act| act.operation == Operation::Ptrace && !act.denied).collect();
    let act = decisive(reached.iter().copied())?.clone();
    let round = Round { object, acts: &reached };
    let mut finding = round.finding(ViolationKind::Memory, Some(act), State::new(), State::new());
    finding.standing = false;
    finding.detail = Some("a process that runs it was attached to, or its memory opened".to_owned());
    Some(finding)
}
