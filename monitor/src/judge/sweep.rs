//! Verifying many units: at once after a new baseline or a loss, or within the budget over time.

use std::collections::HashSet;
use std::time::Instant;

use crate::model::{Draft, RecordBody, Severity};

use super::Judge;
use super::slots::Ix;
use super::unit::{Standing, Unit};

/// A verification of many units.
#[derive(Debug)]
pub(super) struct Sweep {
    reason: String,
    since: Instant,
    left: HashSet<Ix>,
    total: u64,
}

impl Sweep {
    fn new(reason: &str) -> Self {
        Self { reason: reason.to_owned(), since: Instant::now(), left: HashSet::new(), total: 0 }
    }

    /// Waits for one more; `false` if it did already.
    fn expect(&mut self, ix: Ix) -> bool {
        let fresh = self.left.insert(ix);
        self.total += u64::from(fresh);
        fresh
    }
}

impl Judge {
    /// A scrub leaves one worker free for what is touched meanwhile.
    pub(super) fn may_scrub(&self) -> bool {
        !self.scrub.is_empty() && self.looks.len() < self.options.workers.saturating_sub(1).max(1)
    }

    /// The next unit of the scrub, if the budget allows it.
    pub(super) fn next_scrubbed(&mut self, now: Instant) -> Option<Ix> {
        if !self.may_scrub() {
            return None;
        }
        let ix = *self.scrub.front()?;
        let bytes = self.units.get(ix).map_or(0, |unit| crate::baseline::verify::size(unit.object()));
        match self.budget.take(bytes, now) {
            Ok(()) => self.scrub.pop_front(),
            Err(later) => {
                self.scrub_at = later;
                None
            }
        }
    }

    /// What nothing happened to is looked at within the budget, and leaves posture alone meanwhile.
    pub(super) fn verify_all(&mut self, reason: &str) {
        let calm = |unit: &Unit| !unit.dirty && unit.standing != Standing::Unverified;
        let (calm, pressing) =
            self.units.indices().into_iter().partition(|ix| self.units.get(*ix).is_some_and(calm));
        self.sweep(reason, pressing);
        let scrub = self.scrubbing.get_or_insert_with(|| Sweep::new(reason));
        let calm: Vec<Ix> = calm;
        self.scrub.extend(calm.into_iter().filter(|ix| scrub.expect(*ix)));
    }

    /// Records a sweep or scrub that is done.
    pub(super) fn settle_sweep(&mut self) {
        while self.answers.try_join_next().is_some() {}
        if let Some(scrub) = self.scrubbing.take_if(|scrub| scrub.left.is_empty()) {
            self.swept(scrub);
        }
        let Some(sweep) = self.sweep.take_if(|sweep| sweep.left.is_empty()) else { return };
        self.backlog.shrink_to_fit();
        self.swept(sweep);
        if let Some(live) = self.first_done.take() {
            // Nobody waits any more: the agent is stopping.
            live.send(()).unwrap_or_default();
            self.sensor.relieve();
        }
    }

    fn swept(&mut self, sweep: Sweep) {
        if sweep.total == 0 {
            return;
        }
        let counted =
            |standing| self.units.iter().filter(|(_, unit)| unit.standing == standing).count() as u64;
        let body = RecordBody::ObjectVerified {
            reason: sweep.reason,
            objects: sweep.total,
            intact: counted(Standing::Intact),
            violated: counted(Standing::Violated),
            duration_ms: u64::try_from(sweep.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.out.push(Draft::now(Severity::Info, body));
    }

    /// Looks at these units when there is time, and records when all are done.
    pub(super) fn sweep(&mut self, reason: &str, units: Vec<Ix>) {
        let left = self.sweep.take().map(|sweep| sweep.left).unwrap_or_default();
        let mut sweep = Sweep { total: left.len() as u64, left, ..Sweep::new(reason) };
        self.backlog.extend(units.into_iter().filter(|ix| sweep.expect(*ix)));
        self.sweep = Some(sweep);
    }

    /// The unit has been looked at, or is no more.
    pub(super) fn not_expected(&mut self, ix: Ix) {
        for sweep in [&mut self.sweep, &mut self.scrubbing].into_iter().flatten() {
            sweep.left.remove(&ix);
        }
    }
}
