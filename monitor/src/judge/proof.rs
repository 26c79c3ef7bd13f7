//! Attached is not working: the sensor is proven by canaries, again and again, and what fell silent is told.

use std::time::{Duration, Instant};

use crate::model::{Draft, Family, RecordBody, Severity, Time};
use crate::sensor::{Health, Proven};

use super::Judge;

/// How long the events of canaries may take.
const PATIENCE: Duration = Duration::from_secs(10);
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
        if proven.tags_lost {
            self.tag_anew();
            let reason = "tags that were set are gone; all objects are tagged anew and verified";
            self.lost("tags", 0, reason, None, Time::now());
        }
        self.health_changed(proven.health);
    }

    /// Tells what the sensor sees now, if that is other than it was.
    pub(crate) fn health_changed(&mut self, health: Health) {
        let sees = |health: &Health| -> (Vec<(String, Family, bool)>, Vec<String>) {
            let hook = |hook: &crate::sensor::Hook| (hook.name.clone(), hook.family, hook.live);
            (health.hooks.iter().map(hook).collect(), health.blind_to.clone())
        };
        let changed = sees(&health) != sees(&self.proofs.known);
        let reason = match (health.dead(), self.proofs.known.dead()) {
            (now, before) if now > before => "canaries were not seen",
            (now, before) if now < before => "canaries are seen again",
            _ => "changed while running",
        };
        let severity = if health.dead() > 0 { Severity::High } else { Severity::Info };
        self.world.coverage(&health);
        if changed {
            let body = health.body(reason.to_owned());
            self.out.push(Draft::now(severity, RecordBody::SensorChanged(body)));
        }
        self.proofs.known = health;
    }
}
