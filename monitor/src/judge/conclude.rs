//! What follows from one look: records, violations, and the state of the unit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::baseline::{Found, FoundKind, ObserveError, Seal};
use crate::model::{Class, Draft, GapBody, Operation, RecordBody, Resolution, Severity, Time, ViolationKind};

use super::acts::{Act, Acts};
use super::look::{Job, Look};
use super::slots::Ix;
use super::unit::{Standing, Unit};
use super::verdict::Seen;
use super::violations::Finding;
use super::waits::{WAITS_FOR_POD, WAITS_FOR_WRITER, Wait, lately};
use super::{Judge, RETRY};

/// When an object is looked at once more after what was told of it may have come to pass only later: whoever acts may be kept waiting
/// between the hook and the act, by a busy processor or a slow disk.
const LATE_EFFECT: Duration = Duration::from_secs(2);
/// Looks after which a file that changes all the time is told as unverified.
const NEVER_RESTS: u8 = 40;
/// Why acts were counted only.
const TOO_MANY: &str = "more acts on one object at once than are kept apart";
/// How long an object that cannot be read is left alone.
const RETRY_UNREADABLE: Duration = Duration::from_secs(10);

impl Judge {
    /// Draws the conclusions of one look.
    pub(super) fn conclude(&mut self, ix: Ix, job: &Job, seen: Result<Look, ObserveError>, acts: Acts) {
        let mut look = match seen {
            Ok(look) => look,
            Err(error) => return self.cannot_look(ix, &error, acts),
        };
        let Some(unit) = self.units.get_mut(ix) else { return };
        if !unit.sealed().is(&job.object) {
            // It was sealed anew while it was looked at.
            unit.apart_mut().acts.put_back(acts, Instant::now());
            self.schedule.set(ix, Instant::now());
            return;
        }
        if acts.go_on(&unit.apart().acts) {
            return self.look_at_all(ix, job, acts);
        }
        let acts = self.explained(ix, &look, acts);
        let Some(unit) = self.units.get(ix) else { return };
        let (lawful, unlawful) = self.split(unit, &look, &acts);
        if look.found.is_none() && unit.standing == Standing::Retired {
            // Still gone: of that all has been told. Its directories go after it, and have it looked at once more.
            return self.settled(ix);
        }
        if look.found.is_none() && self.goes_lawfully(unit, &acts) {
            return self.retire(ix, "taken away by the kubelet with its pod");
        }
        if look.found.is_none() && self.went_untold(unit, &acts) {
            if unit.seen().is_none() {
                return self.retire(ix, "gone with its pod before it was looked at");
            }
            if unit.waited < WAITS_FOR_POD {
                return self.wait(ix, job, acts, Wait::Pod);
            }
        }
        if look.ended {
            return self.retire(ix, "its container ended");
        }
        let mut verdict = self.verdict(unit, &look, &acts, &lawful, &unlawful);
        verdict.by_whoever_acted_beside(unit);
        if look.restless {
            // What is told by no act yet was done since these were taken: the next look has it, with who did it.
            verdict.findings.retain(|finding| finding.act.is_some() || self.book.tells(finding));
        }
        let unlawful = verdict.without_idle_mounts(unlawful);
        let late = verdict.may_be_early();
        let wait = self
            .must_wait(unit, &look, job.closed, &verdict, &lawful, &unlawful)
            // A runtime takes the root of an ended container away first, and then what the container lives by.
            .or_else(|| {
                let ending = look.found.is_none() && unit.container().is_some();
                (ending && unit.waited < WAITS_FOR_WRITER).then_some(Wait::Writer)
            });
        if let Some(wait) = wait {
            return self.wait(ix, job, acts, wait);
        }
        let superseded = look.as_before && !unit.is_other(look.content);
        let changed = unit.is_other(look.content);
        let rebaselined = unit.standing == Standing::Superseded || unit.apart().resealed;
        // As its seal allows it, and nothing tells by whom; where the writer is all that is sealed, that is not said to be lawful.
        let by_nobody =
            acts.are_around() && unit.standing == Standing::Intact && !unit.is_by_its_writer_alone();
        // The names of a directory change by a baseline alone: what a writer has in it for a moment goes again.
        let is_directory = matches!(unit.object().seal, Seal::Directory { .. });
        let renewed = !is_directory && (!lawful.is_empty() || by_nobody);
        let object = unit.object_ref();
        let mut findings = if superseded { Vec::new() } else { verdict.findings };
        let mut attempts = verdict.attempts;
        self.without_others_acts(ix, &look, &mut findings, &mut attempts);
        let stands = look.found.as_ref().map(|found| (&object.path, found.inode.ino));
        self.book.explain(&mut findings, stands);
        self.held(ix, job.ask, std::mem::take(&mut look.holders), &acts, &mut findings);
        let awaits = self
            .units
            .get(ix)
            .and_then(|unit| self.awaits_approval(unit, &look, &findings, &lawful, &unlawful));
        if let Some(until) = awaits {
            return self.await_approval(ix, acts, findings, until);
        }
        findings.extend(self.awaited_in_vain(ix, &findings, look.differences.is_empty()));
        if findings.is_empty() && changed && !superseded && (rebaselined || renewed) {
            self.accepted(ix, &look, &lawful, rebaselined);
        }
        let (lately, more) = (lately(&acts, &attempts, &findings, job.closed), acts.more);
        if late && attempts.iter().any(|act| act.operation == Operation::Rename) {
            // A directory above may be moved yet.
            self.ways.stale(LATE_EFFECT);
        }
        for act in attempts {
            self.attempt(&object, &act);
        }
        let standing = findings.iter().any(|finding| finding.standing);
        for finding in &findings {
            self.tell(finding);
            if finding.kind == ViolationKind::Unexpected && finding.standing {
                self.watch_stray(ix, &finding.object.path);
            }
        }
        self.put_right(ix, &findings, &look);
        if changed && look.found.is_some() {
            self.changed_beside(ix, &acts);
        }
        if look.restless {
            self.schedule.at_latest(ix, Instant::now() + RETRY);
        }
        self.remember(ix, look, standing, superseded);
        self.keep(ix, &lately, job.closed);
        self.keep_what_was_under(ix, &acts);
        if late {
            self.schedule.at_latest(ix, Instant::now() + LATE_EFFECT);
        }
        if let Some(wait) = self.while_open(ix) {
            self.schedule.at_latest(ix, Instant::now() + wait);
        }
        if more > 0 {
            let slot = self.units.get(ix).and_then(Unit::slot);
            self.lost("judge", more, TOO_MANY, slot.map(|slot| vec![slot]), Time::now());
        }
    }

    /// Takes acts off findings that are not of their doing: where all of it is told already, by what did it. What was taken away before can
    /// be taken away by nobody; and who opens a file whose bytes are wrong, or writes one whose mode is, has changed neither.
    fn without_others_acts(&self, ix: Ix, look: &Look, findings: &mut [Finding], attempts: &mut Vec<Act>) {
        use ViolationKind as V;
        let Some(unit) = self.units.get(ix) else { return };
        let path = &unit.object().path;
        let away = |kind| matches!(kind, V::Removed | V::Renamed);
        let known = unit.seen().is_none()
            && look.found.is_none()
            && [V::Removed, V::Renamed].iter().any(|kind| self.book.is_open(path, *kind));
        for finding in findings {
            if known && away(finding.kind) && finding.object.path == *path {
                (finding.kind, finding.act) = (V::Removed, None);
            } else if self.book.tells(finding) {
                let other = |act: &mut Act| match finding.kind {
                    V::Content | V::Identity => !act.touches_content() && !act.touches_names(),
                    V::Attributes => !act.touches_attributes(),
                    _ => false,
                };
                attempts.extend(finding.act.take_if(other));
            }
        }
    }

    fn cannot_look(&mut self, ix: Ix, error: &ObserveError, acts: Acts) {
        let now = Instant::now();
        let Some(unit) = self.units.get_mut(ix) else { return };
        unit.apart_mut().acts.put_back(acts, now);
        let unstable = matches!(error, ObserveError::Unstable { .. });
        unit.waited = unit.waited.saturating_add(1);
        let again = if unstable { RETRY } else { RETRY_UNREADABLE };
        // A file that is being written is no news; one that never rests is.
        let news = !unstable || unit.waited == NEVER_RESTS;
        let given_up = !unstable || unit.waited >= NEVER_RESTS;
        let reason = error.to_string();
        if news && unit.apart().unreadable.as_ref() != Some(&reason) {
            unit.apart_mut().unreadable = Some(reason.clone());
            unit.standing = Standing::Unverified;
            let body = GapBody {
                at: "hash".to_owned(),
                reason,
                objects: vec![unit.object().path.clone()],
                ..GapBody::default()
            };
            self.out.push(Draft::now(Severity::Medium, RecordBody::Gap(body)));
        }
        if given_up {
            // Told as unverified: neither a sweep nor the agent's being ready waits for it.
            self.not_expected(ix);
        }
        self.schedule.at_latest(ix, now + again);
    }

    /// How often the unit was opened for reading since this was last asked, where the sensor can tell.
    pub(super) fn reads(&mut self, ix: Ix) -> Option<u64> {
        let unit = self.units.get(ix)?;
        let slots: Vec<_> = unit.slot().into_iter().chain(unit.apart().inner.values().copied()).collect();
        slots.into_iter().map(|slot| self.sensor.count_reads(slot, true)).sum()
    }

    fn remember(&mut self, ix: Ix, look: Look, standing: bool, superseded: bool) {
        let intact = look.differences.is_empty();
        // From now on.
        let reads_counted = intact && self.reads(ix).is_some();
        let Some(unit) = self.units.get_mut(ix) else { return };
        unit.waited = 0;
        // Nothing counts what is read of another inode, nor did before it stood there.
        unit.reads_counted &= match (unit.seen(), &look.found) {
            (_, None) => true,
            (Some(last), Some(found)) => last.inode() == found.inode,
            (None, Some(_)) => false,
        };
        if let Some(found) = &look.found {
            self.twins.note(ix, found.inode, found.nlink);
        }
        unit.set_seen(look.found.as_ref().map(Seen::from));
        unit.found_content(look.content);
        unit.verified_now();
        if intact {
            unit.reads_counted = reads_counted;
        }
        let keep = unit.is_volume() || unit.object().rule.class == Class::Rotated;
        let was_right = matches!(unit.standing, Standing::Intact | Standing::Superseded);
        let apart = unit.apart_mut();
        apart.unreadable = None;
        apart.away = None;
        apart.beside = Vec::new();
        apart.resealed &= superseded;
        apart.members = look.found.as_ref().map(members).unwrap_or_default();
        // What is not as sealed is no predecessor: what comes next is held to what was right last.
        if intact || superseded {
            apart.right = None;
        } else if was_right {
            apart.right = apart.found.take();
        }
        apart.found = look.found.filter(|_| keep).map(Box::new);
        if intact {
            apart.before = None;
        }
        unit.standing = if superseded {
            Standing::Superseded
        } else if standing || !intact {
            Standing::Violated
        } else {
            Standing::Intact
        };
        let until = unit.apart().before.as_ref().map(|(_, until)| *until);
        unit.tidy();
        if let Some(until) = until.filter(|_| superseded) {
            // When the transition ends, what is still old is stale.
            self.schedule.at_latest(ix, until + Duration::from_millis(1));
        }
        self.settled(ix);
    }

    /// The unit has been verified: sweeps and losses take note.
    pub(super) fn settled(&mut self, ix: Ix) {
        self.not_expected(ix);
        let reconciled = self.losses.verified(ix);
        self.out.extend(reconciled);
    }

    fn retire(&mut self, ix: Ix, why: &str) {
        self.tell_awaited(ix);
        let Some(unit) = self.units.get_mut(ix) else { return };
        unit.standing = Standing::Retired;
        unit.set_seen(None);
        unit.found_content(None);
        unit.untagged();
        unit.verified_now();
        let apart = unit.apart_mut();
        (apart.found, apart.right, apart.away) = (None, None, None);
        let made_of = apart.made_of.take();
        let path = unit.object().path.clone();
        let slots: Vec<_> = unit.take_inner().into_values().collect();
        unit.tidy();
        for slot in slots {
            self.sensor.unwatch(slot);
            self.slots.release(slot);
        }
        if let Some(made_of) = made_of {
            self.release_layers(ix, &made_of);
        }
        for uid in
            self.book.open_below(&path).iter().flat_map(|path| self.book.open_of(path)).collect::<Vec<_>>()
        {
            let draft = self.book.resolve(&uid, Resolution::Redeployed, Some(why.to_owned()));
            self.out.extend(draft);
        }
        self.settled(ix);
    }
}

fn members(found: &Found) -> BTreeMap<Box<[u8]>, Seen> {
    match &found.kind {
        FoundKind::Volume { entries, .. } => {
            entries.iter().map(|(path, entry)| (path.clone(), Seen::from(entry))).collect()
        }
        _ => BTreeMap::new(),
    }
}
