//! Who else had a part in what was found: one finding has one act that decided it, and whoever did something to the object in that round, and is
//! told of by nothing yet, is told as well.

use crate::baseline::Found;
use crate::model::{ObjectRef, Operation, ViolationKind};

use super::acts::{Act, decisive};
use super::verdict::{Round, Verdict};
use super::violations::Finding;

/// Processes that are told of as having a part in one finding of one look, beside the first.
pub(super) const OTHERS: usize = 64;

/// Whether it is of a process that may set what it tries to: mode and attributes are the owner's and root's, and a hook tells of whoever tries.
pub(super) fn may(act: &Act, owner: Option<u32>) -> bool {
    match &act.actor {
        Ok(actor) => !act.touches_attributes() || actor.uid == 0 || owner.is_none_or(|uid| uid == actor.uid),
        Err(_) => true,
    }
}

/// Whether it changes the object by itself, where it is carried out. An ioctl mostly asks.
fn has_a_part(act: &Act) -> bool {
    let changes = act.surely_writes() || act.touches_attributes() || act.touches_names();
    changes && !act.denied && act.actor.as_ref().is_ok_and(|actor| !actor.is_kernel_thread())
}

/// Tells of each process that has a part and is not named: as one that moved the object away or back, where it stands there again, or by the
/// first finding once more.
pub(super) fn name_each(verdict: &mut Verdict, object: &ObjectRef, found: Option<&Found>, acts: &[&Act]) {
    use ViolationKind as V;
    let Some(first) = verdict.findings.first().cloned() else { return };
    let owner = found.map(|found| found.attributes.uid);
    let stands = !matches!(first.kind, V::Replaced | V::Removed | V::Renamed);
    let moved = if stands { (Round { object, acts }).away_and_back() } else { None };
    let mut others: Vec<Finding> = Vec::new();
    for act in acts.iter().copied().filter(|act| has_a_part(act) && may(act, owner)) {
        let findings = verdict.findings.iter().chain(&others);
        let mut named = findings.filter_map(|finding| finding.act.as_ref()).chain(&verdict.attempts);
        if others.len() >= OTHERS || named.any(|named| named.by_one(act)) {
            continue;
        }
        let own = acts.iter().copied().filter(|one| one.by_one(act) && has_a_part(one));
        let part = decisive(own).unwrap_or(act).clone();
        let of = moved.as_ref().filter(|_| part.operation == Operation::Rename).unwrap_or(&first);
        others.push(Finding { act: Some(part), ..of.clone() });
    }
    verdict.findings.extend(others);
}
