//! Answers to what status asks.

use std::time::{Duration, Instant};

use crate::baseline::{Seal, SealedObject};
use crate::model::{Acknowledgement, HostPath, Rung, Time};
use crate::status::{
    Acknowledged, BaselineStatus, Facts, LossStatus, ObjectCounts, ObjectEntry, ObjectState, Query,
    SensorStatus, StatusReport, ViolationCounts, ViolationEntry, ViolationState, ViolationStory, Watched,
    posture,
};

use super::unit::{Standing, Unit};
use super::violations::Entry;
use super::{AgentFacts, Judge};
use crate::sensor::Health;

/// While much happens, the posture is looked at this often.
const POSTURE_AT_MOST: Duration = Duration::from_millis(50);
/// While nothing happens.
const POSTURE_AT_LEAST: Duration = Duration::from_secs(5);

impl Judge {
    /// Answers; a closed channel means that whoever asked has gone.
    pub(crate) fn answer(&mut self, query: Query) {
        match query {
            Query::Status(reply) => drop(reply.send(self.status())),
            Query::Objects(reply) => drop(reply.send(self.objects())),
            Query::Violations(reply) => {
                drop(reply.send(self.book.entries().map(|entry| self.violation(entry)).collect()));
            }
            Query::Violation(id, reply) => {
                let story = self.book.get(&id).map(|entry| {
                    Box::new(ViolationStory { entry: self.violation(entry), records: Vec::new() })
                });
                let world = std::sync::Arc::clone(&self.world);
                self.answers.spawn_blocking(move || {
                    let story = story.map(|mut story| {
                        world.complete(&mut story);
                        story
                    });
                    drop(reply.send(story));
                });
            }
            Query::Acknowledge(id, by, reply) => {
                // Whoever asked may have gone: it is done all the same.
                drop(reply.send(self.acknowledge(&id, by)));
            }
            Query::Pods(reply) => {
                let world = std::sync::Arc::clone(&self.world);
                self.answers.spawn_blocking(move || drop(reply.send(world.pods())));
            }
            Query::Unsealed(reply) => drop(reply.send(self.unsealed())),
        }
    }

    fn acknowledge(&mut self, id: &str, by: Acknowledgement) -> Acknowledged {
        let elsewhere = self.book.get(id).and_then(Entry::covered_in);
        if let Some(namespace) = elsewhere.filter(|namespace| self.world.has_mount_namespace(*namespace)) {
            return Acknowledged::Elsewhere(namespace);
        }
        match self.book.acknowledge(id, by) {
            Ok(draft) => {
                let uid = draft.uid.clone();
                self.out.push(draft);
                Acknowledged::Done(uid)
            }
            Err(why) => why,
        }
    }

    /// Notes since when the posture is what it is: when it changes, not when somebody asks.
    pub(super) fn note_posture(&mut self) {
        let now = Instant::now();
        if now < self.posture_due {
            return;
        }
        self.appraise();
        self.posture_due = now + POSTURE_AT_MOST;
        self.posture_stale = false;
    }

    /// When the posture is to be looked at again: soon after something happened, and now and then, since some of it
    /// depends on the clock and on the journal alone.
    pub(super) fn posture_again(&self) -> Instant {
        if self.posture_stale { self.posture_due } else { self.posture_due + POSTURE_AT_LEAST }
    }

    /// The posture now, with its reasons and the counts it comes from.
    fn appraise(&mut self) -> (ObjectCounts, Vec<String>, Health, AgentFacts) {
        let facts = self.world.facts();
        let health = self.sensor.health();
        let mut counts = ObjectCounts::default();
        let (mut unreadable, mut unwatched, mut mapped, mut awaited) = (0, 0, 0, 0);
        for (_, unit) in self.units.iter() {
            let counter = match unit.standing {
                Standing::Retired => continue,
                Standing::Unverified => &mut counts.unverified,
                Standing::Intact => &mut counts.intact,
                Standing::Violated => &mut counts.violated,
                Standing::Superseded => &mut counts.superseded,
            };
            *counter += 1;
            counts.total += 1;
            counts.first_use += u64::from(unit.source().is_first_use());
            unreadable += u64::from(unit.apart().unreadable.is_some());
            unwatched += u64::from(unit.apart().unwatched.is_some());
            awaited += u64::from(unit.apart().awaited.is_some());
            mapped += u64::from(!unit.apart().mapped.is_empty());
        }
        unwatched += self.ways.unclear.len() as u64;
        let now = Time::now();
        let expired = |baseline: &crate::baseline::AcceptedBaseline| {
            baseline.not_after.is_some_and(|not_after| not_after < now)
        };
        let (posture, mut reasons) = posture(&Facts {
            open_violations: self.book.open_count(),
            violated_objects: counts.violated,
            sensor_live: health.rung != Rung::None,
            dead_families: health.dead() as u64,
            has_baseline: self.baselines.iter().any(|baseline| !baseline.is_first_use()),
            first_use: counts.first_use,
            baseline_expired: self.baselines.iter().any(|baseline| expired(baseline)),
            baseline_rejected: false,
            loss_unreconciled: self.losses.unreconciled(),
            reverification_pending: self.sweep.is_some() || counts.unverified > unreadable + awaited,
            awaited_approvals: awaited,
            unreadable_objects: unreadable,
            unwatched_objects: unwatched,
            writable_mappings: mapped,
            journal_failing: facts.journal_failing,
        });
        let posture =
            if self.uncertain.is_empty() { posture } else { posture.max(crate::status::Posture::Uncertain) };
        reasons.extend(self.uncertain.iter().cloned());
        if self.posture_since.0 != posture {
            self.posture_since = (posture, now);
        }
        (counts, reasons, health, facts)
    }

    fn status(&mut self) -> StatusReport {
        let (mut counts, reasons, health, facts) = self.appraise();
        counts.unsealed = self.unsealed().len() as u64;
        counts.unsealed_truncated = self.world.mesh_files().truncated;
        StatusReport {
            node: facts.node,
            posture: self.posture_since.0,
            reasons,
            since: self.posture_since.1,
            mode: facts.mode,
            coverage: health.coverage(),
            sensor: SensorStatus {
                rung: health.rung,
                hooks: health.hooks,
                blind_to: health.blind_to,
                watched: Watched { slots: self.slots.len() as u64, inodes: self.sensor.watched() },
            },
            objects: counts,
            violations: ViolationCounts { open: self.book.open_count(), total: self.book.total() },
            baseline: self.baselines.iter().map(|baseline| baseline_status(baseline)).collect(),
            loss: LossStatus { events: self.losses.events, unreconciled: self.losses.unreconciled() },
            export: facts.export,
            journal: facts.journal,
            agent: facts.agent,
            kubernetes: facts.kubernetes,
        }
    }

    fn objects(&self) -> Vec<ObjectEntry> {
        let mut list: Vec<ObjectEntry> = self
            .units
            .iter()
            .filter_map(|(_, unit)| {
                let state = match unit.standing {
                    Standing::Retired => return None,
                    Standing::Unverified => ObjectState::Unverified,
                    Standing::Intact => ObjectState::Intact,
                    Standing::Violated => ObjectState::Violated,
                    Standing::Superseded => ObjectState::Superseded,
                };
                Some(self.object(unit, state))
            })
            .collect();
        // Of what is trusted on first use there is an entry already.
        let unwatched = self.unsealed().into_iter().filter(|path| self.owner(path).is_none());
        list.extend(unwatched.map(|path| ObjectEntry {
            id: SealedObject::id_of("", &path).to_string(),
            class: self.world.class_of(&path),
            path,
            baseline: None,
            revision: None,
            state: ObjectState::Unsealed,
            kind: String::new(),
            last_verified: None,
            violations: Vec::new(),
        }));
        list.sort_by(|a, b| a.path.cmp(&b.path));
        list
    }

    fn object(&self, unit: &Unit, state: ObjectState) -> ObjectEntry {
        let mut violations = self.book.open_of(&unit.object().path);
        if unit.is_directory() {
            let below = self.book.open_below(&unit.object().path);
            let inner =
                below.iter().filter(|path| **path != unit.object().path && self.units.find(path).is_none());
            violations.extend(inner.flat_map(|path| self.book.open_of(path)));
        }
        let kind = match &unit.object().seal {
            Seal::Volume { .. } => "volume",
            other => other.kind().as_str(),
        };
        ObjectEntry {
            id: SealedObject::id_of(&unit.source().name, &unit.object().path).to_string(),
            path: unit.object().path.clone(),
            class: unit.object().rule.class,
            baseline: Some(unit.source().name.clone()),
            revision: Some(unit.source().revision),
            state,
            kind: kind.to_owned(),
            last_verified: unit.verified(),
            violations,
        }
    }

    fn violation(&self, entry: &Entry) -> ViolationEntry {
        ViolationEntry {
            uid: entry.uid.clone(),
            seq: self.world.seq_of(&entry.uid),
            time: entry.opened,
            severity: entry.severity,
            state: if entry.resolution.is_some() { ViolationState::Resolved } else { ViolationState::Open },
            resolution: entry.resolution,
            updates: entry.updates,
            body: entry.now.clone(),
        }
    }

    /// Mesh files that no signed object in force covers.
    pub(super) fn unsealed(&self) -> Vec<HostPath> {
        let covered = |path: &HostPath| {
            let mut at = Some(path.clone());
            while let Some(here) = at {
                let unit = self.units.find(&here).and_then(|ix| self.units.get(ix));
                if unit.is_some_and(|unit| !unit.source().is_first_use()) {
                    return true;
                }
                at = here.parent();
            }
            false
        };
        self.world.mesh_files().paths.iter().filter(|path| !covered(path)).cloned().collect()
    }
}

fn baseline_status(baseline: &crate::baseline::AcceptedBaseline) -> BaselineStatus {
    BaselineStatus {
        name: baseline.name.clone(),
        revision: baseline.revision,
        accepted: baseline.accepted_at,
        not_after: baseline.not_after,
        signers: baseline.signers.clone(),
    }
}
