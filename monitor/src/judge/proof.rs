//! Attached is not working: the sensor is proven by canaries, again and again, and what fell silent is told.

use std::time::{Duration, Instant};

use crate::model::{Draft, Family, RecordBody, Severity, Time};
use crate::sensor::{Health, Lapse, Proven};

use super::Judge;

/// How long the events of canaries may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon a hook that was attached anew is proven.
const AGAIN: Duration = Duration::from_secs(2);
/// How often it is looked whether they came.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// When the sensor is proven, and what it was last seen to do.
#[derive(Debug)]
pub(crate) struct Proofs {
    period: Duration,
    next: Instant,
    /// The proof under way: looked at then, given up then.
    under_way: Option<(Instant, Instant)>,
    known: Health,
}

impl Proofs {
    /// The first proof comes at once, unless the sensor has proven itself at its start.
    pub(crate) fn new(period: Duration, known: Health) -> Self {
        let proven = known.hooks.iter().any(|hook| hook.last_canary.is_some());
        let next = Instant::now() + if proven { period } else { Duration::ZERO };
        Self { period, next, under_way: None, known }
    }

    /// When something is to be done next.
    pub(crate) fn due(&self) -> Instant {
        self.under_way.map_or(self.next, |(look, _)| look)
    }
}

impl Judge {
    /// Begins a proof that is due, or looks what came of one.
    pub(crate) fn prove(&mut self) {
        let now = Instant::now();
        match self.proofs.under_way {
            None if now >= self.proofs.next => {
                self.proofs.next = now + self.proofs.period;
                self.sensor.prove();
                self.proofs.under_way = Some((now, now + PATIENCE.min(self.proofs.period)));
            }
            Some((look, until)) if now >= look => match self.sensor.proven(now >= until) {
                Some(proven) => {
                    self.proofs.under_way = None;
                    self.take_proof(proven);
                }
                None if now >= until => self.proofs.under_way = None,
                None => self.proofs.under_way = Some((now + LOOK_AGAIN, until)),
            },
            _ => {}
        }
    }

    fn take_proof(&mut self, proven: Proven) {
        if proven.again {
            self.proofs.next = self.proofs.next.min(Instant::now() + AGAIN);
        }
        if proven.tags_lost || !proven.revived.is_empty() {
            self.tag_anew();
        }
        if proven.tags_lost {
            let reason = "tags that were set are gone; all objects are tagged anew and verified";
            self.lost("tags", 0, reason, None, Time::now());
        }
        if proven.revived.is_empty() {
            return self.health_changed(proven.health);
        }
        let revived: Vec<String> = proven.revived.iter().map(|(name, lapse)| told_of(name, lapse)).collect();
        let revived = revived.join("; ");
        let reason =
            format!("detached, and attached anew: {revived}; all objects are tagged anew and verified");
        self.lost("hooks", 0, &reason, None, Time::now());
        self.health_is(proven.health, Some(&format!("attached anew: {revived}")));
    }

    /// Tells what the sensor sees now, if that is other than it was.
    pub(crate) fn health_changed(&mut self, health: Health) {
        self.health_is(health, None);
    }

    /// As [`Self::health_changed`], for that reason.
    fn health_is(&mut self, health: Health, reason: Option<&str>) {
        let sees = |health: &Health| -> (Vec<(String, Family, bool)>, Vec<String>) {
            let hook = |hook: &crate::sensor::Hook| (hook.name.clone(), hook.family, hook.live);
            (health.hooks.iter().map(hook).collect(), health.blind_to.clone())
        };
        let changed = sees(&health) != sees(&self.proofs.known);
        let reason = reason.unwrap_or_else(|| match (health.dead(), self.proofs.known.dead()) {
            (now, before) if now > before => "canaries were not seen",
            (now, before) if now < before => "canaries are seen again",
            _ => "changed while running",
        });
        let severity = if health.dead() > 0 { Severity::High } else { Severity::Info };
        self.world.coverage(&health);
        if changed {
            let body = health.body(reason.to_owned());
            self.out.push(Draft::now(severity, RecordBody::SensorChanged(body)));
        }
        self.proofs.known = health;
    }
}

/// When a hook was dead.
fn told_of(name: &str, lapse: &Lapse) -> String {
    let dead =
        lapse.dead_since.map(|since| format!("dead since {since} at the earliest, ")).unwrap_or_default();
    format!("{name}: {dead}lives again since {}", lapse.live_since)
}
