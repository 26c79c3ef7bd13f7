//! Losses: what was not seen is named, verified again, and only then reconciled.

use std::collections::HashSet;
use std::time::Instant;

use crate::model::{Draft, GapBody, HostPath, RecordBody, Severity, Slot, Time};

use super::Judge;
use super::route::Places as _;
use super::schedule::settles;
use super::slots::{Ix, Use};
use super::unit::Standing;

/// Paths named in one gap record.
const NAMED: usize = 100;
/// Losses of one kind whose objects are kept apart while they are open: what is lost after these ends together with the last of them, since
/// each look goes through all.
const OPEN_MAX: usize = 8;

/// Losses whose consequences are being looked for.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// Events lost since the agent started.
    pub(crate) events: u64,
    open: Vec<Loss>,
}

#[derive(Debug)]
struct Loss {
    at: String,
    /// Events, of each loss that ends with this one.
    lost: Vec<u64>,
    reason: String,
    left: HashSet<Ix>,
}

impl Loss {
    fn is_like(&self, other: &Self) -> bool {
        self.at == other.at && self.reason == other.reason
    }
}

impl Losses {
    /// Losses not reconciled.
    pub(crate) fn unreconciled(&self) -> u64 {
        self.open.iter().map(|loss| loss.lost.len() as u64).sum()
    }

    fn opened(&mut self, loss: Loss) {
        let mut alike: Vec<&mut Loss> = self.open.iter_mut().filter(|open| open.is_like(&loss)).collect();
        match alike.pop().filter(|_| alike.len() + 1 >= OPEN_MAX) {
            Some(last) => {
                last.lost.extend(loss.lost);
                last.left.extend(loss.left);
            }
            None => self.open.push(loss),
        }
    }

    /// A unit has been verified: the gap records of losses that are reconciled by it.
    pub(crate) fn verified(&mut self, ix: Ix) -> Vec<Draft> {
        if self.open.is_empty() {
            return Vec::new();
        }
        for loss in &mut self.open {
            loss.left.remove(&ix);
        }
        let done = self.open.extract_if(.., |loss| loss.left.is_empty());
        let ends = |Loss { at, lost, reason, .. }: Loss| {
            lost.into_iter().map(move |lost| gap(&at, lost, &reason, Vec::new(), true, Time::now()))
        };
        done.flat_map(ends).collect()
    }
}

fn gap(at: &str, lost: u64, reason: &str, objects: Vec<HostPath>, reconciled: bool, time: Time) -> Draft {
    let severity = if reconciled { Severity::Low } else { Severity::Medium };
    let body = GapBody {
        at: at.to_owned(),
        lost,
        reason: reason.to_owned(),
        objects,
        from_seq: None,
        to_seq: None,
        reconciled,
    };
    Draft::at(time, severity, RecordBody::Gap(body))
}

impl Judge {
    /// Events were lost: all that may be concerned is looked at again.
    pub(crate) fn lost(&mut self, at: &str, lost: u64, reason: &str, slots: Option<Vec<Slot>>, time: Time) {
        self.losses.events = self.losses.events.saturating_add(lost);
        let units: HashSet<Ix> = match slots {
            Some(slots) => slots.into_iter().flat_map(|slot| self.units_of(slot)).collect(),
            None => self.units.indices().into_iter().collect(),
        };
        let objects = units.iter().take(NAMED).filter_map(|ix| self.units.get(*ix));
        let objects = objects.map(|unit| unit.object().path.clone()).collect();
        self.out.push(gap(at, lost, reason, objects, units.is_empty(), time));
        if units.is_empty() {
            return;
        }
        for ix in &units {
            self.mark(*ix);
        }
        self.losses.opened(Loss {
            at: at.to_owned(),
            lost: vec![lost],
            reason: reason.to_owned(),
            left: units,
        });
    }

    /// More may have come of what was done on this slot than was told, or seen so far.
    pub(crate) fn dirty(&mut self, slot: Slot, _events: u64) {
        match self.slots.get(slot) {
            Some(Use::Way(_)) => self.ways.stale(super::schedule::SETTLE),
            _ => self.units_of(slot).into_iter().for_each(|ix| self.mark(ix)),
        }
    }

    /// A writer is done. What it did comes with it mostly, and is looked at once.
    pub(crate) fn closed(&mut self, slot: Slot) {
        for ix in self.units_of(slot) {
            if let Some(unit) = self.units.get_mut(ix) {
                unit.apart_mut().closed = true;
                self.look_once_settled(ix);
            }
        }
    }

    fn mark(&mut self, ix: Ix) {
        if let Some(unit) = self.units.get_mut(ix) {
            unit.dirty = true;
            self.look_once_settled(ix);
        }
    }

    fn look_once_settled(&mut self, ix: Ix) {
        let violated = self.units.get(ix).is_some_and(|unit| unit.standing == Standing::Violated);
        let now = Instant::now();
        self.schedule.at_latest(ix, settles(now, now, violated));
    }

    /// The units that a slot stands for, or that are made of what it stands for.
    fn units_of(&self, slot: Slot) -> Vec<Ix> {
        match self.slots.get(slot) {
            Some(Use::Unit(ix) | Use::Member(ix) | Use::Stray(ix, _)) => vec![ix],
            Some(Use::Backing(path)) => self.units.made_of(&path).to_vec(),
            Some(Use::Way(_)) | None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Loss, Losses, OPEN_MAX};
    use crate::model::RecordBody;

    #[test]
    fn losses_without_end_cost_no_more_and_each_of_them_ends() {
        let mut losses = Losses::default();
        for unit in 0..100 {
            let left = HashSet::from([unit]);
            losses.opened(Loss { at: "ring".to_owned(), lost: vec![3], reason: "full".to_owned(), left });
        }
        assert_eq!((losses.open.len(), losses.unreconciled()), (OPEN_MAX, 100));
        let reconciled: Vec<u64> = (0..100)
            .flat_map(|unit| losses.verified(unit))
            .map(|draft| match draft.body {
                RecordBody::Gap(gap) if gap.reconciled => gap.lost,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((reconciled, losses.unreconciled()), (vec![3; 100], 0));
    }
}
