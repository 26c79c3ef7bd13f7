//! What is not told yet, since acts still under way may explain or undo it; and acts that may explain what is seen only later.

use std::time::{Duration, Instant};

use crate::baseline::Writer;
use crate::inventory::pods;
use crate::model::{Operation, Rung, Time, ViolationKind};

use super::acts::{Act, Acts};
use super::away::{self, is_away};
use super::look::{Job, Look};
use super::schedule::SETTLE;
use super::slots::Ix;
use super::topology::is_mount;
use super::unit::{Standing, Unit};
use super::verdict::Verdict;
use super::violations::Finding;
use super::{Judge, WAIT_FOR_ACTS, WAITS_FOR_ACTS};

/// Looks at a volume that its lawful writer is still working on, before what it left is judged.
pub(super) const WAITS_FOR_WRITER: u8 = 8;
/// How long each such wait is.
const WAIT_FOR_WRITER: Duration = Duration::from_millis(150);
/// Looks at an object that went with its pod's directory, while nothing tells who took it away.
pub(super) const WAITS_FOR_POD: u8 = 8;
/// How long each such wait is. Long before, the pod is known to be gone, and its objects are dropped.
const WAIT_FOR_POD: Duration = Duration::from_millis(500);
/// Looks after an act that moved nothing, before it is told as an attempt.
const WAITS_FOR_EFFECT: u8 = 2;
/// Most acts on one object that are kept for what may come of them later.
const LATELY: usize = 4;
/// Between two looks at an object that somebody has open for writing: the kernel itself may write for him, as a loop device does, and passes
/// no hook; and what he writes may have to wait for his own memory. The longer he did nothing, the longer.
const WHILE_OPEN: [Duration; 2] = [Duration::from_secs(5), Duration::from_mins(10)];

/// What is waited for before a look is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Acts that are to be told of yet.
    Acts,
    /// A lawful writer, who is not done.
    Writer,
    /// What took away the directory of its pod.
    Pod,
    /// An installer that has taken it away, this long between two looks.
    Installer(Duration),
}

impl Wait {
    const fn time(self) -> Duration {
        match self {
            Self::Acts => WAIT_FOR_ACTS,
            Self::Writer => WAIT_FOR_WRITER,
            Self::Pod => WAIT_FOR_POD,
            Self::Installer(time) => time,
        }
    }
}

impl Unit {
    /// What a look was to judge, which the next one does.
    fn put_back(&mut self, job: &Job, acts: Acts) {
        let apart = self.apart_mut();
        apart.closed |= job.closed;
        apart.acts.put_back(acts, Instant::now());
    }
}

impl Judge {
    /// Looks once more, with what may have come by then.
    pub(super) fn wait(&mut self, ix: Ix, job: &Job, acts: Acts, wait: Wait) {
        let Some(unit) = self.units.get_mut(ix) else { return };
        unit.waited = unit.waited.saturating_add(1);
        unit.put_back(job, acts);
        if matches!(wait, Wait::Installer(_)) {
            // Until then nobody can say that the node is intact; nor does the agent's being ready wait for it.
            unit.standing = Standing::Unverified;
            unit.apart_mut().away.get_or_insert_with(Instant::now);
            self.not_expected(ix);
        }
        self.schedule.at_latest(ix, Instant::now() + wait.time());
    }

    /// What came while it was looked at may have had a part in what was found: all of it is looked at together.
    pub(super) fn look_at_all(&mut self, ix: Ix, job: &Job, acts: Acts) {
        let Some(unit) = self.units.get_mut(ix) else { return };
        unit.put_back(job, acts);
        self.schedule.at_latest(ix, Instant::now() + SETTLE);
    }

    /// A finding that acts still under way may explain, or undo, is not told yet.
    pub(super) fn must_wait(
        &self,
        unit: &Unit,
        look: &Look,
        closed: bool,
        verdict: &Verdict,
        lawful: &[&Act],
        unlawful: &[&Act],
    ) -> Option<Wait> {
        let news = |finding: &&Finding| !self.book.is_open(&finding.object.path, finding.kind);
        let Some(seen) = unit.seen().copied() else {
            // An installer takes it away when a node goes down, and may be back later than this agent.
            let untold = unlawful.is_empty() && verdict.findings.iter().all(|finding| news(&finding));
            return if untold { self.comes_again(unit, look) } else { None };
        };
        if verdict.findings.is_empty() {
            // Whoever published it is about to be told of.
            let told = unit.apart().resealed || !unit.is_by_its_writer_alone();
            let published = unit.is_other(look.content) && !look.as_before && told;
            if published && lawful.is_empty() && unlawful.is_empty() {
                // As a new baseline seals it already; or renewed, as it may be at any time.
                let (waits, wait) = match unit.apart().resealed {
                    true => (WAITS_FOR_ACTS, Wait::Acts),
                    false => (WAITS_FOR_WRITER, Wait::Writer),
                };
                if unit.waited < waits {
                    return Some(wait);
                }
            }
            // Whoever has just opened it is about to do something, if he has not closed it.
            let opened =
                |act: &Act| !closed && act.operation == Operation::Open && act.is_hooked() && !act.denied;
            let coming = verdict.attempts.iter().any(|act| may_still_come(act) || opened(act));
            return (coming && unit.waited < WAITS_FOR_EFFECT).then_some(Wait::Acts);
        }
        if unlawful.is_empty() && !lawful.is_empty() {
            if unit.waited < WAITS_FOR_WRITER {
                return Some(Wait::Writer);
            }
            return self.comes_again(unit, look);
        }
        if !unlawful.is_empty()
            && unlawful.iter().all(|act| act.is_nameless())
            && let Some(wait) = self.comes_again(unit, look)
        {
            return Some(wait);
        }
        if verdict.incomplete && unit.waited < WAITS_FOR_ACTS {
            return Some(Wait::Acts);
        }
        let mut findings = verdict.findings.iter().filter(news);
        // What is seen on the disk already, and not yet told of: opening alone changes nothing.
        let coming = findings.any(|finding| match &finding.act {
            None => true,
            Some(act) => act.operation == Operation::Open && act.is_hooked(),
        });
        // The names have not changed yet: a rename in the middle.
        let same = look.found.as_ref().is_some_and(|found| found.inode == seen.inode());
        let renaming = same && verdict.reverted_by(Act::touches_names);
        let wait = coming && unit.waited < WAITS_FOR_ACTS || renaming && unit.waited < WAITS_FOR_EFFECT;
        wait.then_some(Wait::Acts)
    }

    /// Its installer, which took it away, may put it back yet. How often it is looked at meanwhile does not count: whatever happens around it
    /// has it looked at.
    fn comes_again(&self, unit: &Unit, look: &Look) -> Option<Wait> {
        let within = self.options.await_installer;
        let may_come = !within.is_zero() && unit.apart().away.is_none_or(|since| since.elapsed() < within);
        let wait = Wait::Installer(away::look_again(within));
        (may_come && is_away(&self.writers_of(unit), unit, look)).then_some(wait)
    }

    /// Its pod's own directory is gone, and no act on a name tells how: a pod that ended before its volume was looked at, or one of
    /// whose end the acts are still to come.
    pub(super) fn went_untold(&self, unit: &Unit, acts: &Acts) -> bool {
        let told = acts.iter().any(|act| act.touches_names() && !act.denied && !act.is_nameless());
        let path = &unit.object().path;
        !told && pods::went_with_its_pod(&self.options.root, &self.world.kubelet_root(), path)
    }

    /// It was taken away by the kubelet, with the pod it belongs to.
    pub(super) fn goes_lawfully(&self, unit: &Unit, acts: &Acts) -> bool {
        let path = &unit.object().path;
        let mut away = acts.iter().filter(|act| act.touches_names() && !act.denied).peekable();
        away.peek().is_some()
            && self.world.target(path).is_some()
            && away.all(|act| self.is_lawful(act, &[Writer::Kubelet], path))
    }

    /// The acts that explain a look: where none came since the last one, and the content is other all the same, those that may come to pass
    /// long after they were told of; where it is gone and no act on a name tells how, an ioctl on a directory above.
    pub(super) fn explained(&mut self, ix: Ix, look: &Look, mut acts: Acts) -> Acts {
        let Some(unit) = self.units.get_mut(ix) else { return acts };
        let stands = look.found.as_ref().map(|found| found.inode);
        let bare = |act: &Act| act.inode == stands;
        if stands.is_some() && unit.apart().under.iter().any(bare) {
            let (shown, under) = std::mem::take(&mut unit.apart_mut().under).into_iter().partition(bare);
            unit.apart_mut().under = under;
            acts.put_back(Acts::again(shown), Instant::now());
        }
        if look.found.is_none()
            && unit.seen().is_some()
            && !acts.iter().any(|act| act.touches_names() && !act.denied)
            && let Some(act) = self.ioctls.takes(&unit.object().path)
        {
            acts.put_back(Acts::again(vec![act]), Instant::now());
            return acts;
        }
        if !acts.are_around() || !unit.is_other(look.content) || unit.apart().lately.is_empty() {
            return acts;
        }
        acts.put_back(Acts::again(std::mem::take(&mut unit.apart_mut().lately)), Instant::now());
        acts
    }

    /// Keeps acts on what something else lies over, for as long as it does.
    pub(super) fn keep_what_was_under(&mut self, ix: Ix, acts: &Acts) {
        let Some(unit) = self.units.get_mut(ix) else { return };
        let sealed = self.book.sealed_inode(&unit.object().path);
        let hidden = sealed.filter(|sealed| unit.seen().is_none_or(|seen| seen.inode().ino != *sealed));
        let Some(hidden) = hidden else {
            if !unit.apart().under.is_empty() {
                unit.apart_mut().under.clear();
                unit.tidy();
            }
            return;
        };
        let on_it = |act: &&Act| {
            act.inode.is_some_and(|inode| inode.ino == hidden)
                && !act.denied
                && (act.touches_content() || act.touches_attributes())
        };
        let mut new = acts.iter().filter(on_it).peekable();
        if new.peek().is_some() {
            let under = &mut unit.apart_mut().under;
            under.extend(new.take(LATELY).cloned());
            under.truncate(LATELY);
        }
    }

    /// How long until the next look at an object that is open for writing; `None` where it is not.
    pub(super) fn while_open(&self, ix: Ix) -> Option<Duration> {
        let lately = &self.units.get(ix)?.apart().lately;
        let is_open = lately.iter().any(|act| act.operation == Operation::Open);
        let since = lately.iter().map(|act| act.last.0).max().filter(|_| is_open)?;
        let idle =
            Time::now().0.saturating_sub(since).try_into().map_or(Duration::ZERO, Duration::from_nanos);
        let [least, most] = WHILE_OPEN;
        Some((idle / 2).clamp(least, most))
    }

    /// Acts that may explain a later look: those just judged, and those before of whoever has it open still.
    pub(super) fn keep(&mut self, ix: Ix, lately: &[Act], closed: bool) {
        let Some(unit) = self.units.get_mut(ix) else { return };
        if lately.is_empty() && unit.apart().lately.is_empty() {
            return;
        }
        let apart = unit.apart_mut();
        let before = std::mem::take(&mut apart.lately);
        let open = |act: &Act| before.iter().any(|one| may_write_unseen(one) && one.by_one(act));
        let known = |act: &Act| lately.iter().any(|one| one.same(act));
        let kept = before.iter().filter(|act| !closed && (may_write_unseen(act) || open(act)) && !known(act));
        let kept: Vec<Act> = lately.iter().chain(kept).take(LATELY).cloned().collect();
        apart.lately = kept;
        unit.tidy();
    }
}

/// Of acts just judged, those that may come to pass yet: whoever has it open may write by ways that pass no hook, until it is `closed`; and
/// what was told as an attempt, or as undone again, may have been kept waiting.
pub(super) fn lately(acts: &Acts, attempts: &[Act], findings: &[Finding], closed: bool) -> Vec<Act> {
    let opened = |act: &Act| may_write_unseen(act) && !closed;
    let opens = acts.iter().filter(|act| opened(act) && act.is_hooked() && !act.denied);
    let undone = findings.iter().filter(|finding| finding.kind == ViolationKind::Reverted);
    let unmoved = attempts.iter().chain(undone.filter_map(|finding| finding.act.as_ref()));
    let waiting = unmoved.filter(|act| !may_write_unseen(act) && may_still_come(act));
    opens.chain(waiting).take(LATELY).cloned().collect()
}

/// Whoever did that may change bytes later, and pass no hook.
const fn may_write_unseen(act: &Act) -> bool {
    matches!(act.operation, Operation::Open | Operation::Mmap)
}

/// Hooks come before the act, and its process may be preempted in between: what moved nothing yet may do so soon. An
/// opening moves nothing by itself.
fn may_still_come(act: &Act) -> bool {
    let before = !matches!(act.sensor, Rung::Fanotify | Rung::Inotify | Rung::Scrub);
    before && !act.denied && act.operation != Operation::Open
}

impl Verdict {
    /// The acts of others without those on mounts that changed nothing here: each container that starts takes the root of its host away, in
    /// a namespace of its own. Such a one neither ends a wait nor makes what a lawful writer did unlawful.
    pub(super) fn without_idle_mounts<'a>(&self, unlawful: Vec<&'a Act>) -> Vec<&'a Act> {
        let told =
            |act: &Act| self.findings.iter().filter_map(|found| found.act.as_ref()).any(|one| one.same(act));
        unlawful.into_iter().filter(|act| !is_mount(act.operation) || told(act)).collect()
    }

    /// Whether something was only touched, or may have been seen half written, for a reason that is told of in advance: a direct write
    /// extends a file before its bytes are there.
    pub(super) fn may_be_early(&self) -> bool {
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
