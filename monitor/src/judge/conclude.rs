//! What follows from one look: records, violations, and the state of the unit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::baseline::{Anchor, Content, Found, FoundKind, ObserveError, Seal, Writer};
use crate::inventory::pods;
use crate::inventory::writers::Lawful;
use crate::model::{
    Action, AttemptBody, ChangeBody, Class, Draft, GapBody, HostPath, ObjectRef, Operation, RecordBody,
    Resolution, Rung, Severity, State, Target, Time, ViolationBody, ViolationKind,
};

use super::acts::{Act, Acts, decisive};
use super::away::{WAIT_FOR_INSTALLER, is_away};
use super::covered::{Standpoint, covered, executed, reached_into};
use super::directory::{Neighbours, directory};
use super::look::{Job, Look};
use super::slots::Ix;
use super::topology::is_mount;
use super::unit::{Standing, Unit};
use super::units::Units;
use super::verdict::{Seen, Verdict, file, put_right};
use super::violations::Finding;
use super::volume::Volume;
use super::{Judge, RETRY, WAIT_FOR_ACTS, WAITS_FOR_ACTS};

/// Looks at a volume that its lawful writer is still working on, before what it left is judged.
const WAITS_FOR_WRITER: u8 = 8;
/// How long each such wait is.
const WAIT_FOR_WRITER: Duration = Duration::from_millis(150);
/// Looks at an object that went with its pod's directory, while nothing tells who took it away.
const WAITS_FOR_POD: u8 = 8;
/// How long each such wait is. Long before, the pod is known to be gone, and its objects are dropped.
const WAIT_FOR_POD: Duration = Duration::from_millis(500);
/// Looks after an act that moved nothing, before it is told as an attempt.
const WAITS_FOR_EFFECT: u8 = 2;
/// When an object is looked at once more after what was told of it may have come to pass only later: whoever acts may be kept waiting
/// between the hook and the act, by a busy processor or a slow disk.
const LATE_EFFECT: Duration = Duration::from_secs(2);
/// Most acts on one object that are kept for what may come of them later.
const LATELY: usize = 4;
/// Looks after which a file that changes all the time is told as unverified.
const NEVER_RESTS: u8 = 40;
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
        let acts = self.explained(ix, &look, acts);
        let Some(unit) = self.units.get(ix) else { return };
        let (lawful, unlawful) = self.split(unit, &acts);
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
                return self.wait(ix, acts, WAIT_FOR_POD);
            }
        }
        if look.ended {
            return self.retire(ix, "its container ended");
        }
        let verdict = self.verdict(unit, &look, &acts, &lawful, &unlawful);
        let late = verdict.may_be_early();
        let wait = self
            .must_wait(unit, &look, &verdict, &lawful, &unlawful)
            // A runtime takes the root of an ended container away first, and then what the container lives by.
            .or_else(|| {
                let ending = look.found.is_none() && unit.container().is_some();
                (ending && unit.waited < WAITS_FOR_WRITER).then_some(WAIT_FOR_WRITER)
            });
        if let Some(wait) = wait {
            let away = wait == WAIT_FOR_INSTALLER && is_away(&writers_of(unit), unit, &look);
            self.wait(ix, acts, wait);
            if away && let Some(unit) = self.units.get_mut(ix) {
                // Until then nobody can say that the node is intact.
                unit.standing = Standing::Unverified;
            }
            return;
        }
        let superseded = look.as_before && !unit.is_other(look.content);
        let was_superseded = unit.standing == Standing::Superseded;
        let changed = unit.is_other(look.content);
        let resealed = unit.apart().resealed;
        let object = unit.object_ref();
        let mut findings = if superseded { Vec::new() } else { verdict.findings };
        findings.retain_mut(|finding| !self.book.explains(finding));
        self.held(ix, job.ask, std::mem::take(&mut look.holders), &acts, &mut findings);
        let awaits = self
            .units
            .get(ix)
            .and_then(|unit| self.awaits_approval(unit, &look, &findings, &lawful, &unlawful));
        if let Some(until) = awaits {
            return self.await_approval(ix, acts, findings, until);
        }
        findings.extend(self.awaited_in_vain(ix, &findings, look.differences.is_empty()));
        if findings.is_empty() && changed && !superseded && (was_superseded || resealed || !lawful.is_empty())
        {
            self.accepted(ix, &look, &lawful, was_superseded || resealed);
        }
        let lately = lately(&acts, &verdict.attempts, job.closed);
        for act in verdict.attempts {
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
        self.remember(ix, look, standing, superseded);
        self.keep(ix, lately, job.closed);
        if late {
            self.schedule.at_latest(ix, Instant::now() + LATE_EFFECT);
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

    /// Acts of lawful writers of this unit, and all others.
    fn split<'a>(&self, unit: &Unit, acts: &'a Acts) -> (Vec<&'a Act>, Vec<&'a Act>) {
        let writers = writers_of(unit);
        acts.iter().partition(|act| self.is_lawful(act, &writers, &unit.object().path))
    }

    /// A lawful writer of this unit acted.
    pub(super) fn is_lawful_here(&self, unit: &Unit, act: &Act) -> bool {
        self.is_lawful(act, &writers_of(unit), &unit.object().path)
    }

    fn is_lawful(&self, act: &Act, writers: &[Writer], object: &HostPath) -> bool {
        let Ok(actor) = &act.actor else { return false };
        writers.iter().any(|writer| self.world.lawful(actor, writer, object) == Lawful::Yes)
    }

    /// Looks once more, with what may have come by then.
    fn wait(&mut self, ix: Ix, acts: Acts, wait: Duration) {
        let Some(unit) = self.units.get_mut(ix) else { return };
        unit.waited = unit.waited.saturating_add(1);
        unit.apart_mut().acts.put_back(acts, Instant::now());
        self.schedule.at_latest(ix, Instant::now() + wait);
    }

    /// Its pod's own directory is gone, and no act on a name tells how: a pod that ended before its volume was looked at, or one of
    /// whose end the acts are still to come.
    fn went_untold(&self, unit: &Unit, acts: &Acts) -> bool {
        let told = acts.iter().any(|act| act.touches_names() && !act.denied);
        let path = &unit.object().path;
        !told && pods::went_with_its_pod(&self.options.root, &self.world.kubelet_root(), path)
    }

    /// It was taken away by the kubelet, with the pod it belongs to.
    fn goes_lawfully(&self, unit: &Unit, acts: &Acts) -> bool {
        let mut away = acts.iter().filter(|act| act.touches_names() && !act.denied).peekable();
        away.peek().is_some()
            && self.world.target(&unit.object().path).is_some()
            && away.all(|act| self.is_lawful(act, &[Writer::Kubelet], &unit.object().path))
    }

    fn verdict<'a>(
        &self,
        unit: &Unit,
        look: &Look,
        acts: &'a Acts,
        lawful: &[&'a Act],
        unlawful: &[&'a Act],
    ) -> Verdict {
        let object = unit.object_ref();
        let found = look.found.as_ref();
        let sealed = self.book.sealed_inode(&object.path);
        let names = |act: &Act| act.touches_names() && !is_mount(act.operation) && !act.denied;
        let stands =
            Standpoint { sealed, bared: self.ways.bared(&object.path), named: acts.iter().any(names) };
        let over = covered(&object, unit.seen(), found, &look.differences, unlawful, stands);
        let ran = executed(&object, acts, |path| unit.inner_ref(path.clone()));
        if over.whole {
            let findings = over.findings.into_iter().chain(ran).collect();
            return Verdict { findings, attempts: over.attempts, incomplete: false };
        }
        let reached = reached_into(&object, unlawful);
        let rest = |acts: &[&'a Act]| -> Vec<&'a Act> {
            let other = |act: &&Act| {
                !is_mount(act.operation) && act.operation != Operation::Ptrace && !act.runs_code()
            };
            acts.iter().copied().filter(other).collect()
        };
        let (all, unlawful) = (acts.iter().collect::<Vec<_>>(), rest(unlawful));
        let mut verdict = self.without_mounts(unit, look, &rest(&all), lawful, &unlawful);
        // The sealed inode itself stands there again.
        let back = look.differences.is_empty() && sealed.is_some() && found.map(|f| f.inode.ino) == sealed;
        verdict.findings.retain(|finding| !(back && finding.kind == ViolationKind::Replaced));
        verdict.findings.extend(over.findings.into_iter().chain(reached).chain(ran));
        verdict.attempts.extend(over.attempts);
        verdict
    }

    fn without_mounts(
        &self,
        unit: &Unit,
        look: &Look,
        all: &[&Act],
        lawful: &[&Act],
        unlawful: &[&Act],
    ) -> Verdict {
        let object = unit.object_ref();
        let first = unit.seen().is_none();
        let found = look.found.as_ref();
        match &unit.object().seal {
            Seal::Volume { .. } => Volume {
                object: &object,
                publish: unit.object().rule.publish,
                members: &unit.apart().members,
                first,
                changed: unit.is_other(look.content),
                found,
                differences: &look.differences,
                lawful,
                unlawful,
                inner: |path: &HostPath| unit.inner_ref(path.clone()),
            }
            .verdict(),
            Seal::Directory { names: Some(_) } => {
                let around = Around { units: &self.units, unit };
                let mut verdict = directory(&object, unit.seen(), found, &look.differences, all, &around);
                // A lawful writer may put a file beside the one it renames it onto, and take it away again; and it may
                // make its own socket anew.
                verdict.findings.retain(|finding| {
                    !matches!(finding.kind, ViolationKind::Unexpected | ViolationKind::Replaced)
                        || finding.standing
                        || !finding.act.as_ref().is_some_and(|act| self.is_lawful_here(unit, act))
                });
                verdict
            }
            _ => {
                let mut verdict = if unlawful.is_empty() && !lawful.is_empty() && look.differences.is_empty()
                {
                    Verdict::default()
                } else if !unlawful.is_empty() && look.differences.is_empty() && made_anew(&object, lawful) {
                    put_right(&object, unit.seen(), found, unlawful)
                } else {
                    let of = if unlawful.is_empty() { lawful } else { unlawful };
                    file(&object, unit.seen(), found, &look.differences, of)
                };
                self.by_class(unit, look, &mut verdict);
                verdict
            }
        }
    }

    /// What the class of an object allows.
    fn by_class(&self, unit: &Unit, look: &Look, verdict: &mut Verdict) {
        match unit.object().rule.class {
            Class::Sealed => {}
            Class::Opaque => {
                use ViolationKind as V;
                verdict.findings.retain(|f| !matches!(f.kind, V::Reverted | V::Content));
                verdict.attempts.clear();
            }
            // Where no hash is sealed, a change tells by who made it.
            Class::Generated | Class::Rotated => {
                let changed = unit.is_other(look.content);
                for finding in
                    verdict.findings.iter_mut().filter(|f| f.kind == ViolationKind::Reverted && changed)
                {
                    finding.kind = ViolationKind::Content;
                    finding.detail = Some("changed by a process that is not its lawful writer".to_owned());
                }
            }
        }
    }

    /// A finding that acts still under way may explain, or undo, is not told yet.
    fn must_wait(
        &self,
        unit: &Unit,
        look: &Look,
        verdict: &Verdict,
        lawful: &[&Act],
        unlawful: &[&Act],
    ) -> Option<Duration> {
        let seen = unit.seen().copied()?;
        if verdict.findings.is_empty() {
            // As a new baseline seals it already: whoever published it is about to be told of.
            let published = unit.apart().resealed && unit.is_other(look.content) && !look.as_before;
            if published && lawful.is_empty() && unlawful.is_empty() && unit.waited < WAITS_FOR_ACTS {
                return Some(WAIT_FOR_ACTS);
            }
            let coming = verdict.attempts.iter().any(may_still_come);
            return (coming && unit.waited < WAITS_FOR_EFFECT).then_some(WAIT_FOR_ACTS);
        }
        if unlawful.is_empty() && !lawful.is_empty() {
            if unit.waited < WAITS_FOR_WRITER {
                return Some(WAIT_FOR_WRITER);
            }
            let looks = u8::try_from(self.options.installer.as_secs()).unwrap_or(u8::MAX);
            let may_come = unit.waited < WAITS_FOR_WRITER.saturating_add(looks);
            let comes_again = may_come && is_away(&writers_of(unit), unit, look);
            return comes_again.then_some(WAIT_FOR_INSTALLER);
        }
        if verdict.incomplete && unit.waited < WAITS_FOR_ACTS {
            return Some(WAIT_FOR_ACTS);
        }
        let news = |finding: &&Finding| !self.book.is_open(&finding.object.path, finding.kind);
        let mut findings = verdict.findings.iter().filter(news);
        // What is seen on the disk already, and not yet told of: opening alone changes nothing.
        let coming = findings.any(|finding| match &finding.act {
            None => true,
            Some(act) => act.operation == Operation::Open && matches!(act.sensor, Rung::Lsm | Rung::Fentry),
        });
        // The names have not changed yet: a rename in the middle.
        let same = look.found.as_ref().is_some_and(|found| found.inode == seen.inode());
        let renaming = same && verdict.reverted_by(Act::touches_names);
        let wait = coming && unit.waited < WAITS_FOR_ACTS || renaming && unit.waited < WAITS_FOR_EFFECT;
        wait.then_some(WAIT_FOR_ACTS)
    }

    /// A lawful change or rotation.
    fn accepted(&mut self, ix: Ix, look: &Look, lawful: &[&Act], rebaselined: bool) {
        let Some(unit) = self.units.get(ix) else { return };
        let (Some(found), act) = (&look.found, decisive(lawful.iter().copied())) else { return };
        let (old, new, rotated) = changes(unit, found);
        let actor = act.and_then(|act| act.actor.as_ref().ok()).map(|actor| (**actor).clone());
        let unknown = actor.is_none().then(|| "no act of a lawful writer was seen".to_owned());
        let body = Box::new(ChangeBody {
            object: unit.object_ref(),
            operation: act.map_or(Operation::Scrub, |act| act.operation),
            sensor: act.map_or(Rung::Scrub, |act| act.sensor),
            old,
            new,
            actor,
            actor_unknown_because: unknown,
            target: self.target(&unit.object().path),
            source_commit: unit.source().commit.clone(),
        });
        let body = if rotated && !rebaselined {
            RecordBody::RotationAccepted(body)
        } else {
            RecordBody::ChangeAccepted(body)
        };
        let time = act.map_or_else(Time::now, |act| act.last);
        self.out.push(Draft::at(time, Severity::Info, body));
    }

    /// Something was done to a directory above objects that changed nothing.
    pub(super) fn attempt_on_way(&mut self, path: &HostPath, act: &Act) {
        let object = ObjectRef {
            id: crate::baseline::SealedObject::id_of("", path).to_string(),
            path: path.clone(),
            class: Class::Opaque,
            baseline: None,
            revision: None,
        };
        self.attempt(&object, act);
    }

    fn attempt(&mut self, object: &ObjectRef, act: &Act) {
        let body = AttemptBody {
            object: ObjectRef { path: act.path.clone(), ..object.clone() },
            operation: act.operation,
            sensor: act.sensor,
            count: act.count,
            first_time: act.first,
            last_time: act.last,
            action: if act.denied && !act.failed { Action::Denied } else { Action::Observed },
            actor: act.actor.as_ref().ok().map(|actor| (**actor).clone()),
            actor_unknown_because: act.actor.as_ref().err().cloned(),
            target: self.target(&object.path),
        };
        self.out.push(Draft::at(act.first, Severity::Info, RecordBody::Attempt(Box::new(body))));
    }

    pub(super) fn tell(&mut self, finding: &Finding) {
        let target = self.target(finding.of.as_ref().unwrap_or(&finding.object.path));
        let actor = finding.act.as_ref().and_then(|act| act.actor.as_deref().ok());
        let (severity, attack) = self.world.weigh(
            finding.kind,
            finding.object.class,
            &finding.object.path,
            actor,
            target.as_ref(),
        );
        let draft = self.book.found(finding, severity, attack, target);
        self.out.extend(draft);
    }

    /// The pod an object belongs to, as its path tells it, and as its baseline and its container do.
    fn target(&self, path: &HostPath) -> Option<Target> {
        let told = self.world.target(path);
        let Some(unit) = self.owner(path).and_then(|ix| self.units.get(ix)) else { return told };
        match &unit.object().rule.anchor {
            Anchor::Host => told,
            Anchor::Image(_) => {
                let mut target = unit.container().map(|container| container.target.clone()).or(told)?;
                self.world.complete_target(&mut target);
                Some(target)
            }
            Anchor::Workload(workload) => {
                let mut target = told.unwrap_or_default();
                target.namespace.get_or_insert_with(|| workload.namespace.clone());
                target.service_account.get_or_insert_with(|| workload.service_account.clone());
                // Seen by several containers, it is none's alone.
                let mounts = &unit.object().rule.mounts;
                if let Some(first) = mounts.first()
                    && mounts.iter().all(|mount| mount.container == first.container)
                {
                    target.container.get_or_insert_with(|| first.container.clone());
                }
                Some(target)
            }
        }
    }

    /// Open violations whose wrong state was not found again.
    fn put_right(&mut self, ix: Ix, findings: &[Finding], look: &Look) {
        let Some(unit) = self.units.get(ix) else { return };
        let path = unit.object().path.clone();
        let mut paths = vec![path.clone()];
        if unit.is_directory() {
            let below = self.book.open_below(&path);
            // What lies in a directory that is sealed itself is that one's to tell.
            paths.extend(below.into_iter().filter(|below| *below != path && self.owner(below) == Some(ix)));
        }
        let source = Arc::clone(unit.source());
        let revision = source.revision;
        let intact = look.differences.is_empty();
        let counted = unit.reads_counted;
        let unread = intact && self.reads(ix) == Some(0) && counted;
        for uid in paths.iter().flat_map(|path| self.book.open_of(path)).collect::<Vec<_>>() {
            let Some(entry) = self.book.get(&uid) else { continue };
            let again = findings.iter().any(|finding| {
                finding.kind == entry.now.violation && finding.object.path == entry.now.object.path
            });
            if again || !over(&entry.now, look) {
                continue;
            }
            let of = &entry.now.object;
            let other = of.baseline.as_ref().is_some_and(|name| *name != source.name);
            let newer = other || of.revision.is_some_and(|of| of < revision);
            let draft = if intact && newer {
                let why = Some(format!("as revision {revision} seals it"));
                self.book.resolve(&uid, Resolution::Rebaselined, why)
            } else if !entry.standing {
                None
            } else if unread {
                let why = Some("as sealed again, and not opened by anyone meanwhile".to_owned());
                self.book.resolve(&uid, Resolution::Restored, why)
            } else {
                self.book.stands_no_more(
                    &uid,
                    "as sealed again; who opened it meanwhile is not known to be nobody, so this stays open",
                )
            };
            self.out.extend(draft);
        }
    }

    /// The nearest unit that a path is, or lies in.
    pub(super) fn owner(&self, path: &HostPath) -> Option<Ix> {
        std::iter::successors(Some(path.clone()), HostPath::parent).find_map(|at| self.units.find(&at))
    }

    /// How often the unit was opened for reading since this was last asked, where the sensor can tell.
    fn reads(&mut self, ix: Ix) -> Option<u64> {
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
        unit.set_seen(look.found.as_ref().map(Seen::from));
        unit.found_content(look.content);
        unit.verified_now();
        if intact {
            unit.reads_counted = reads_counted;
        }
        let keep = unit.is_volume() || unit.object().rule.class == Class::Rotated;
        let apart = unit.apart_mut();
        apart.unreadable = None;
        apart.resealed &= superseded;
        apart.members = look.found.as_ref().map(members).unwrap_or_default();
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

    /// The acts that explain a look: where none came since the last one, and the content is other all the same, those that may come to pass
    /// long after they were told of.
    fn explained(&mut self, ix: Ix, look: &Look, acts: Acts) -> Acts {
        let Some(unit) = self.units.get_mut(ix) else { return acts };
        if !acts.is_empty() || !unit.is_other(look.content) || unit.apart().lately.is_empty() {
            return acts;
        }
        Acts::again(std::mem::take(&mut unit.apart_mut().lately))
    }

    /// Acts that may explain a later look.
    fn keep(&mut self, ix: Ix, lately: Vec<Act>, closed: bool) {
        let Some(unit) = self.units.get_mut(ix) else { return };
        if lately.is_empty() && unit.apart().lately.is_empty() {
            return;
        }
        let apart = unit.apart_mut();
        if lately.is_empty() {
            apart.lately.retain(|act| act.operation == Operation::Open && !closed);
        } else {
            apart.lately = lately;
        }
        unit.tidy();
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
        apart.found = None;
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

/// Of acts just judged, those that may come to pass yet: whoever has it open may write by ways that pass no hook, until it is `closed`; and
/// what was told as an attempt may have been kept waiting.
fn lately(acts: &Acts, attempts: &[Act], closed: bool) -> Vec<Act> {
    let opened = |act: &Act| act.operation == Operation::Open && !closed;
    let hooked = |act: &Act| matches!(act.sensor, Rung::Lsm | Rung::Fentry) && !act.denied;
    let opens = acts.iter().filter(|act| opened(act) && hooked(act));
    let waiting = attempts.iter().filter(|act| act.operation != Operation::Open && may_still_come(act));
    opens.chain(waiting).take(LATELY).cloned().collect()
}

/// A lawful writer put another file in the place of the object.
fn made_anew(object: &ObjectRef, lawful: &[&Act]) -> bool {
    let onto = |act: &&&Act| {
        let made = matches!(act.operation, Operation::Create | Operation::Rename);
        made && !act.denied && act.to.as_ref().unwrap_or(&act.path) == &object.path
    };
    lawful.iter().any(|act| onto(&act))
}

/// Hooks come before the act, and its process may be preempted in between: what moved nothing yet may do so soon. An
/// opening moves nothing by itself.
fn may_still_come(act: &Act) -> bool {
    let before = !matches!(act.sensor, Rung::Fanotify | Rung::Inotify | Rung::Scrub);
    before && !act.denied && act.operation != Operation::Open
}

impl Verdict {
    /// Whether something was only touched, or may have been seen half written, for a reason that is told of in advance: a direct write
    /// extends a file before its bytes are there.
    fn may_be_early(&self) -> bool {
        let content = |finding: &&Finding| finding.kind == ViolationKind::Content;
        let mut written = self.findings.iter().filter(content);
        self.attempts.iter().any(may_still_come)
            || self.reverted_by(may_still_come)
            || written.any(|finding| finding.act.as_ref().is_some_and(may_still_come))
    }

    fn reverted_by(&self, way: impl Fn(&Act) -> bool) -> bool {
        self.findings
            .iter()
            .filter(|finding| finding.kind == ViolationKind::Reverted)
            .any(|finding| finding.act.as_ref().is_some_and(&way))
    }
}

/// The lawful writers of a unit, as its baseline declares them.
fn writers_of(unit: &Unit) -> Vec<Writer> {
    unit.object()
        .rule
        .writers
        .iter()
        .filter_map(|name| {
            let declared = unit.source().writers.iter().find(|writer| writer.name() == name);
            declared.cloned().or_else(|| (name == Writer::KUBELET).then_some(Writer::Kubelet))
        })
        .collect()
}

/// What a directory's verdict asks.
struct Around<'a> {
    units: &'a Units,
    unit: &'a Unit,
}

impl Neighbours for Around<'_> {
    fn is_sealed(&self, path: &HostPath) -> bool {
        self.units.find(path).is_some()
    }

    fn inner(&self, path: &HostPath) -> ObjectRef {
        self.unit.inner_ref(path.clone())
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

/// A look that does not find a violation again tells that it is over, unless the look could not have found it: what
/// was replaced is so until all is as sealed, and an alias is there as long as the links are too many.
fn over(now: &ViolationBody, look: &Look) -> bool {
    match now.violation {
        ViolationKind::Replaced => look.differences.is_empty(),
        ViolationKind::MountedOver => {
            let sealed = now.expected.get("inode");
            let there = look.found.as_ref().map(|found| found.inode.ino.to_string());
            sealed.is_none() || sealed == there.as_ref()
        }
        ViolationKind::Linked => {
            let sealed = now.expected.get("nlink").and_then(|links| links.parse::<u64>().ok());
            look.found.as_ref().zip(sealed).is_none_or(|(found, sealed)| found.nlink <= sealed)
        }
        _ => true,
    }
}

/// What changed, before and after, and whether all of it may rotate.
fn changes(unit: &Unit, found: &Found) -> (State, State, bool) {
    let (Seal::Volume { entries: sealed }, FoundKind::Volume { entries: now, .. }) =
        (&unit.object().seal, &found.kind)
    else {
        let hidden = matches!(unit.object().seal, Seal::File(Content::Hmac(_) | Content::PublicKey(_)));
        let state = |found: &Found| {
            let mut state = found.state();
            state.retain(|key, _| !(hidden && key == "sha256"));
            state
        };
        let old = unit.apart().found.as_deref().map(state).unwrap_or_default();
        return (old, state(found), unit.object().rule.class == Class::Rotated);
    };
    let before = match unit.apart().found.as_deref().map(|found| &found.kind) {
        Some(FoundKind::Volume { entries, .. }) => Some(entries),
        _ => None,
    };
    let content = |found: &Found| match &found.kind {
        FoundKind::File { content, .. } => Some(content.sha256),
        _ => None,
    };
    // Sealed without a hash that could be told: nor is what was found.
    let hidden = |path: &[u8]| {
        sealed
            .iter()
            .find(|entry| *entry.path == *path)
            .is_some_and(|entry| matches!(entry.file, Some(Content::Hmac(_) | Content::PublicKey(_))))
    };
    let told = |found: &Found, path: &[u8]| {
        let key = format!("sha256.{}", HostPath::new(path.to_vec()));
        match &found.kind {
            FoundKind::File { content, .. } if content.secret || hidden(path) => {
                Some((key, "secret".to_owned()))
            }
            FoundKind::File { content, .. } => Some((key, hex::encode(content.sha256))),
            _ => None,
        }
    };
    let (mut old, mut new, mut rotated) = (State::new(), State::new(), true);
    for (path, entry) in now {
        let was = before.and_then(|before| before.get(path));
        if was.and_then(content) == content(entry) {
            continue;
        }
        old.extend(was.and_then(|was| told(was, path)));
        new.extend(told(entry, path));
        let class = sealed.iter().find(|sealed| sealed.path == *path).map(|sealed| sealed.class);
        rotated &= class == Some(Class::Rotated);
    }
    (old, new, rotated)
}
