//! The records that follow from a look: changes accepted, attempts, violations and their end.

use std::sync::Arc;

use crate::attribution::sealed_source;
use crate::baseline::{Anchor, Content, Found, FoundKind, Seal};
use crate::config::settings::Relaxation;
use crate::model::{
    Action, AttemptBody, ChangeBody, Class, Draft, HostPath, ObjectRef, Operation, RecordBody, Resolution,
    Rung, Severity, State, Target, Time, ViolationBody, ViolationKind,
};

use super::Judge;
use super::acts::{Act, decisive};
use super::look::Look;
use super::slots::Ix;
use super::unit::Unit;
use super::violations::Finding;

/// What records name, though no baseline seals it.
fn of_no_baseline(path: HostPath, class: Class) -> ObjectRef {
    let id = crate::baseline::SealedObject::id_of("", &path).to_string();
    ObjectRef { id, path, class, baseline: None, revision: None }
}

impl Judge {
    /// A lawful change or rotation.
    pub(super) fn accepted(&mut self, ix: Ix, look: &Look, lawful: &[&Act], rebaselined: bool) {
        let Some(unit) = self.units.get(ix) else { return };
        let (Some(found), act) = (&look.found, decisive(lawful.iter().copied())) else { return };
        let (old, new, rotated) = changes(unit, found);
        let nobody = || (None, Some("no act of a lawful writer was seen".to_owned()));
        let (actor, unknown) = act.map_or_else(nobody, Act::who);
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
        self.attempt(&of_no_baseline(path.clone(), Class::Opaque), act);
    }

    pub(super) fn attempt(&mut self, object: &ObjectRef, act: &Act) {
        let (actor, unknown) = act.who();
        let body = AttemptBody {
            object: ObjectRef { path: act.path.clone(), ..object.clone() },
            operation: act.operation,
            sensor: act.sensor,
            count: act.count,
            first_time: act.first,
            last_time: act.last,
            action: if act.denied && !act.failed { Action::Denied } else { Action::Observed },
            actor,
            actor_unknown_because: unknown,
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

    /// The agent was started on less than it ran on before. Whoever knows why acknowledges that.
    pub(super) fn relaxed(&mut self, config: HostPath, relaxations: &[Relaxation]) {
        let state = |value: fn(&Relaxation) -> &String| -> State {
            relaxations.iter().map(|one| (one.key.to_owned(), value(one).clone())).collect()
        };
        let says: Vec<String> = relaxations.iter().map(ToString::to_string).collect();
        self.tell(&Finding {
            kind: ViolationKind::Itself,
            object: of_no_baseline(config, Class::Sealed),
            expected: state(|one| &one.before),
            actual: state(|one| &one.after),
            act: None,
            operations: Vec::new(),
            detail: Some(format!("started on less than before: {}", says.join("; "))),
            standing: false,
            of: None,
            unexplained: "it was changed while no agent ran",
        });
    }

    /// The pod an object belongs to, as its path tells it, and as its baseline and its container do.
    pub(super) fn target(&self, path: &HostPath) -> Option<Target> {
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
                if !target.unclear {
                    target.namespace.get_or_insert_with(|| workload.namespace.clone());
                    target.service_account.get_or_insert_with(|| workload.service_account.clone());
                }
                sealed_source(&mut target, path, unit.object());
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
    pub(super) fn put_right(&mut self, ix: Ix, findings: &[Finding], look: &Look) {
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
        // Counted is what was read of the inode that was there when it was as sealed: whatever else stood there may have been read unseen.
        let stood = unit.seen().map(|seen| seen.inode().ino).or_else(|| self.book.sealed_inode(&path));
        let same = look.found.as_ref().is_some_and(|found| Some(found.inode.ino) == stood);
        let counted = unit.reads_counted && same;
        let unread = intact && self.reads(ix) == Some(0) && counted;
        for uid in paths.iter().flat_map(|path| self.book.open_of(path)).collect::<Vec<_>>() {
            let Some(entry) = self.book.get(&uid) else { continue };
            let again = findings.iter().any(|finding| {
                finding.kind == entry.now.violation && finding.object.path == entry.now.object.path
            });
            if again || !over(&entry.now, look, &path) {
                continue;
            }
            let of = &entry.now.object;
            let other = of.baseline.as_ref().is_some_and(|name| *name != source.name);
            let newer = other || of.revision.is_some_and(|of| of < revision);
            // As sealed from the moment on at which it was put there: what stood there before has not come back.
            let found = look.found.as_ref().map(|found| found.inode.ino.to_string());
            let by_its_like = entry.now.violation == ViolationKind::Replaced
                && entry.now.actual.len() == 1
                && entry.now.actual.get("inode") == found.as_ref();
            let draft = if intact && newer {
                let why = Some(format!("as revision {revision} seals it"));
                self.book.resolve(&uid, Resolution::Rebaselined, why)
            } else if !entry.standing {
                None
            } else if by_its_like {
                self.book.stands_no_more(
                    &uid,
                    "as sealed, though another than the one that was replaced, so this stays open",
                )
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
}

/// A look that does not find a violation again tells that it is over, unless the look could not have found it: what
/// was replaced is so until all is as sealed, and an alias is there as long as the links are too many.
fn over(now: &ViolationBody, look: &Look, unit: &HostPath) -> bool {
    let inner = now.object.path.below(unit).filter(|inner| !inner.is_empty());
    // What is wrong with the very thing: a wrong state gives way to another one, too.
    let wrong = look.differences.iter().any(|difference| match (&difference.entry, inner) {
        (Some(entry), Some(inner)) => **entry == *inner,
        (Some(_), None) => {
            !matches!(look.found.as_ref().map(|found| &found.kind), Some(FoundKind::Directory { .. }))
        }
        (None, Some(_)) => look.found.is_none(),
        (None, None) => true,
    });
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
        _ => !wrong,
    }
}

/// What changed, before and after, and whether all of it may rotate.
fn changes(unit: &Unit, found: &Found) -> (State, State, bool) {
    let (Seal::Volume { entries: sealed }, FoundKind::Volume { entries: now, .. }) =
        (&unit.object().seal, &found.kind)
    else {
        let hidden = matches!(&unit.object().seal, Seal::File(content) if content.is_of_a_secret());
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
            .is_some_and(|entry| entry.file.as_ref().is_some_and(Content::is_of_a_secret))
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
