//! What the kubelet published before the baseline that approves it is there, where the config lets that wait.
//!
//! A pipeline may publish a moment before its baseline reaches the node. Within `baselines.awaitApproval` of such a publish nothing is
//! told: the volume is unverified meanwhile, and the node `uncertain`. A baseline that seals what stands there makes it an accepted
//! change; anything else that comes (the time, another act, the end of the agent) tells what was found. What was published and taken
//! back meanwhile is told too: nobody approved it.

use std::time::Instant;

use crate::baseline::Publish;
use crate::model::ViolationKind;

use super::Judge;
use super::acts::{Act, Acts};
use super::look::Look;
use super::slots::Ix;
use super::unit::{Sealed, Standing, Unit};
use super::violations::Finding;

/// A publish that waits for its baseline.
#[derive(Debug)]
pub(crate) struct Awaited {
    /// What it is not as.
    sealed: Sealed,
    until: Instant,
    /// What is told if nobody approves it.
    findings: Vec<Finding>,
}

impl Judge {
    /// Until when these findings wait for a baseline; `None` if they are to be told now.
    pub(super) fn awaits_approval(
        &self,
        unit: &Unit,
        look: &Look,
        findings: &[Finding],
        lawful: &[&Act],
        unlawful: &[&Act],
    ) -> Option<Instant> {
        let (now, most) = (Instant::now(), self.options.await_approval);
        if most.is_zero() || findings.is_empty() || look.found.is_none() {
            return None;
        }
        // Volumes of pods that came while the agent ran may have been published before anybody saw it.
        let comes = unit.seen().is_none() && self.first_done.is_none();
        let published = unlawful.is_empty() && (!lawful.is_empty() || comes);
        let publishable = unit.is_volume() && unit.object().rule.publish == Publish::InPlace;
        let by_content = |finding: &Finding| {
            use ViolationKind as V;
            let kind = matches!(finding.kind, V::Content | V::Unexpected | V::Removed);
            // What is told already is updated, not put off.
            kind && finding.standing && !self.book.is_open(&finding.object.path, finding.kind)
        };
        if !published || !publishable || !findings.iter().all(by_content) {
            return None;
        }
        // Another publish does not begin it anew; another baseline that approves neither ends it.
        let until = match &unit.apart().awaited {
            Some(awaited) if awaited.sealed.differs(&unit.sealed()) => now,
            Some(awaited) => awaited.until,
            None => now + most,
        };
        (until > now).then_some(until)
    }

    /// Tells nothing yet.
    pub(super) fn await_approval(&mut self, ix: Ix, acts: Acts, findings: Vec<Finding>, until: Instant) {
        let Some(unit) = self.units.get_mut(ix) else { return };
        let sealed = unit.sealed();
        unit.standing = Standing::Unverified;
        let apart = unit.apart_mut();
        apart.acts.put_back(acts, Instant::now());
        match &mut apart.awaited {
            Some(awaited) => awaited.findings = findings,
            None => apart.awaited = Some(Box::new(Awaited { sealed, until, findings })),
        }
        self.schedule.at_latest(ix, until);
        // A sweep does not wait for it.
        self.settled(ix);
    }

    /// What waited and can no longer be approved, for what stands there now is another thing, with which nothing is wrong. `as_sealed` says
    /// that it is as the newest baseline seals it.
    pub(super) fn awaited_in_vain(&mut self, ix: Ix, now: &[Finding], as_sealed: bool) -> Vec<Finding> {
        let Some(unit) = self.units.get_mut(ix) else { return Vec::new() };
        let Some(awaited) = unit.take_awaited() else { return Vec::new() };
        let approved = as_sealed && awaited.sealed.differs(&unit.sealed());
        if approved || !now.is_empty() {
            return Vec::new();
        }
        let over = |mut finding: Finding| {
            finding.standing = false;
            finding.detail = Some("published, and taken back before any baseline approved it".to_owned());
            finding
        };
        awaited.findings.into_iter().map(over).collect()
    }

    /// Nothing waits any longer for what goes now.
    pub(super) fn tell_awaited(&mut self, ix: Ix) {
        let Some(awaited) = self.units.get_mut(ix).and_then(Unit::take_awaited) else { return };
        for finding in &awaited.findings {
            self.tell(finding);
        }
    }

    /// The agent stops: the next one could not know since when they wait.
    pub(super) fn await_no_longer(&mut self) {
        let waiting = |(ix, unit): (Ix, &Unit)| unit.apart().awaited.is_some().then_some(ix);
        for ix in self.units.iter().filter_map(waiting).collect::<Vec<_>>() {
            if let Some(awaited) = self.units.get_mut(ix).and_then(|unit| unit.apart_mut().awaited.as_mut()) {
                awaited.until = Instant::now();
            }
            self.schedule.set(ix, Instant::now());
        }
        self.options.await_approval = std::time::Duration::ZERO;
    }
}
