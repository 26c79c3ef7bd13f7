//! Losses: what was not seen is named, verified again, and only then reconciled.

use std::collections::HashSet;

use crate::model::{Draft, GapBody, HostPath, RecordBody, Severity, Slot, Time};

use super::Judge;
use super::route::Places as _;
use super::slots::{Ix, Use};

/// Paths named in one gap record.
const NAMED: usize = 100;

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
    lost: u64,
    reason: String,
    left: HashSet<Ix>,
}

impl Losses {
    /// Losses not reconciled.
    pub(crate) fn unreconciled(&self) -> u64 {
        self.open.len() as u64
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
        done.map(|loss| gap(&loss.at, loss.lost, &loss.reason, Vec::new(), true, Time::now())).collect()
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
        self.losses.open.push(Loss { at: at.to_owned(), lost, reason: reason.to_owned(), left: units });
    }

    /// The kernel counted more on this slot than it could tell.
    pub(crate) fn dirty(&mut self, slot: Slot, _events: u64) {
        match self.slots.get(slot) {
            Some(Use::Way(_)) => self.ways.stale(super::schedule::SETTLE),
            _ => self.units_of(slot).into_iter().for_each(|ix| self.mark(ix)),
        }
    }

    /// A writer of whom nothing but the open was told is done.
    pub(crate) fn closed(&mut self, slot: Slot) {
        for ix in self.units_of(slot) {
            if let Some(unit) = self.units.get_mut(ix) {
                unit.apart_mut().closed = true;
                self.schedule.at_latest(ix, std::time::Instant::now() + super::schedule::SETTLE);
            }
        }
    }

    fn mark(&mut self, ix: Ix) {
        if let Some(unit) = self.units.get_mut(ix) {
            unit.dirty = true;
            self.schedule.at_latest(ix, std::time::Instant::now() + super::schedule::SETTLE);
        }
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
