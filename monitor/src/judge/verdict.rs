//! From two looks at an object and the acts between them to a finding. Pure: no I/O, no state.
//!
//! Hooks fire before the act, so an observation alone proves nothing: what counts is whether ctime, inode, links or
//! bytes moved. Unmoved is an attempt; moved and as sealed again is `reverted`, which is still a violation.

use std::num::NonZeroU32;

use crate::baseline::{Aspect, Difference, Found};
use crate::model::{InodeKey, ObjectRef, Operation, State, Time, ViolationKind};

use super::acts::{Act, decisive};
use super::parts::{OTHERS, may, name_each};
use super::violations::{Finding, moved_to};

/// How much older than the act that set it a ctime may be, in nanoseconds: it is that of the last tick of the clock.
pub(super) const TICK: i64 = 10_000_000;

/// The detail of what an ioctl set.
pub(super) const FLAGS: &str = "inode flags, or what only an ioctl can set";

/// What is remembered of the last look at an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    ino: u64,
    dev: u32,
    pub(crate) links: Links,
    /// Nanoseconds since the epoch.
    pub(crate) ctime: i64,
    /// Nanoseconds since the epoch.
    pub(crate) mtime: i64,
}

const _: () = assert!(size_of::<Option<Seen>>() == 32, "the judge keeps one of every object");

impl Seen {
    /// Of what nobody looked at yet only the inode is known.
    pub(crate) const fn unseen(inode: InodeKey) -> Self {
        Self { ino: inode.ino, dev: inode.dev, links: Links(NonZeroU32::MIN), ctime: 0, mtime: 0 }
    }

    pub(crate) const fn inode(&self) -> InodeKey {
        InodeKey { dev: self.dev, ino: self.ino }
    }
}

/// How many names an inode has. What was found by a name has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Links(NonZeroU32);

impl Links {
    fn of(nlink: u64) -> Self {
        let links = u32::try_from(nlink).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(links).unwrap_or(NonZeroU32::MIN))
    }

    pub(crate) const fn count(self) -> u64 {
        self.0.get() as u64
    }
}

impl From<&Found> for Seen {
    fn from(found: &Found) -> Self {
        let InodeKey { dev, ino } = found.inode;
        Self { ino, dev, links: Links::of(found.nlink), ctime: found.ctime, mtime: found.mtime }
    }
}

/// The outcome of one look.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) findings: Vec<Finding>,
    /// Acts after which nothing moved.
    pub(crate) attempts: Vec<Act>,
    /// The disk shows what no act tells yet: one is still to come.
    pub(crate) incomplete: bool,
}

/// Judges a file or symlink. `found` is `None` when nothing stands at its path; `lawful` tells of an act whether
/// its actor may write this object.
pub(crate) fn file(
    object: &ObjectRef,
    last: Option<&Seen>,
    found: Option<&Found>,
    differences: &[Difference],
    acts: &[&Act],
) -> Verdict {
    let mut verdict = decided(object, last, found, differences, acts);
    name_each(&mut verdict, object, found, acts);
    verdict
}

/// As [`file()`], by the acts that decided it.
fn decided(
    object: &ObjectRef,
    last: Option<&Seen>,
    found: Option<&Found>,
    differences: &[Difference],
    acts: &[&Act],
) -> Verdict {
    let mut verdict = Verdict::default();
    let denied = acts.iter().filter(|act| act.denied);
    verdict.attempts.extend(denied.map(|act| (*act).clone()));
    let acts: Vec<&Act> = acts.iter().copied().filter(|act| !act.denied).collect();
    let round = Round { object, acts: &acts };

    let Some(found) = found else {
        verdict.findings.push(round.gone(differences));
        return verdict;
    };
    let Some(last) = last else {
        // The first look: whatever differs was so before the watch began, by an act that an earlier agent's programs saw. Or nothing stood
        // there, and something was put in its place.
        match round.put_there().filter(|_| !differences.is_empty()) {
            put @ Some(_) => verdict.findings.push(round.other(put, None, found, differences)),
            None => verdict.findings.extend(round.standing(differences)),
        }
        if verdict.findings.is_empty() {
            let (moved, unmoved): (Vec<&Act>, Vec<&Act>) = acts
                .iter()
                .partition(|act| act.operation != Operation::Open && found.ctime >= act.first.0 - TICK);
            let round = Round { object, acts: &moved };
            verdict.findings.extend((!moved.is_empty()).then(|| round.passed_unseen(found)));
            verdict.attempts.extend(unmoved.into_iter().cloned());
        }
        return verdict;
    };
    if last.inode() != found.inode || last.ctime != found.ctime && round.made_anew() {
        let finding = round.replaced(last, found, differences);
        // What was taken away is told, and what was put in its place is not yet.
        let took = |act: &Act| act.operation == Operation::Unlink || act.moves_away(&object.path);
        verdict.incomplete = finding.act.as_ref().is_some_and(took);
        verdict.findings.push(finding);
        return verdict;
    }
    let (done, idle) = round.in_time(found);
    let effective = Round { object, acts: &done };
    verdict.findings.extend(effective.standing_by_each(differences, found.attributes.uid));
    if !verdict.findings.is_empty() {
        verdict.attempts.extend(idle.into_iter().cloned());
    }
    let moved = last.ctime != found.ctime;
    if moved {
        verdict.findings.extend(round.linked(last, found));
        let back = round.taken_and_put_back();
        // It stands there, so somebody put it back.
        verdict.incomplete = back.is_none() && round.taken().is_some();
        verdict.findings.extend(back);
    }
    if verdict.findings.is_empty() {
        if moved {
            verdict.findings.extend(round.passed(last, found));
        } else if let Some(finding) = round.away_and_back().or_else(|| round.taken_and_put_back_before()) {
            verdict.findings.push(finding);
        } else {
            verdict.attempts.extend(acts.iter().map(|act| (*act).clone()));
        }
    }
    verdict
}

/// Judges what others did to a file before its lawful writer made it anew: it is as sealed, and what they did is gone with the inode that it was
/// done to.
pub(crate) fn put_right(
    object: &ObjectRef,
    last: Option<&Seen>,
    found: Option<&Found>,
    acts: &[&Act],
) -> Verdict {
    let (changing, rest): (Vec<&Act>, Vec<&Act>) =
        acts.iter().copied().partition(|act| !act.denied && act.operation != Operation::Open);
    let mut verdict = Verdict { attempts: rest.into_iter().cloned().collect(), ..Verdict::default() };
    let (Some(last), Some(found), false) = (last, found, changing.is_empty()) else { return verdict };
    let finding = Round { object, acts: &changing }.passed(last, found);
    verdict.findings.extend(finding.map(|mut finding| {
        finding.detail = Some("changed, and put right by its lawful writer".to_owned());
        finding
    }));
    verdict
}

/// One object and the acts on it since the last look.
pub(crate) struct Round<'a> {
    pub(crate) object: &'a ObjectRef,
    pub(crate) acts: &'a [&'a Act],
}

impl Round<'_> {
    fn pick(&self, wanted: impl Fn(&Act) -> bool) -> Option<Act> {
        decisive(self.acts.iter().copied().filter(|act| wanted(act))).cloned()
    }

    /// What tells most of what one process did of the second kind: the process that did something of the first kind, or else of the second, before
    /// any other. Whoever came later may have found it changed already.
    fn first_to(&self, surely: fn(&Act) -> bool, maybe: fn(&Act) -> bool) -> Option<Act> {
        let first = |test: fn(&Act) -> bool| {
            let passes = self.acts.iter().copied().filter(|act| act.actor.is_ok() && test(act));
            passes.min_by_key(|act| act.first)
        };
        match first(surely).or_else(|| first(maybe)) {
            Some(first) => self.pick(|act| maybe(act) && act.by_one(first)),
            None => self.pick(maybe),
        }
    }

    /// A finding of this round.
    pub(crate) fn finding(
        &self,
        kind: ViolationKind,
        act: Option<Act>,
        expected: State,
        actual: State,
    ) -> Finding {
        let mut operations = Vec::new();
        for act in self.acts {
            if !operations.contains(&act.operation) {
                operations.push(act.operation);
            }
        }
        let unexplained = if self.acts.is_empty() {
            "found by comparing: no observation explains it"
        } else {
            "no observed act explains it"
        };
        Finding {
            kind,
            object: self.object.clone(),
            expected,
            actual,
            act,
            operations,
            detail: None,
            standing: true,
            of: None,
            unexplained,
        }
    }

    /// Nothing stands at the path.
    fn gone(&self, differences: &[Difference]) -> Finding {
        let (expected, actual) = merged(differences);
        let away = self.pick(|act| act.moves_away(&self.object.path));
        if let Some(act) = away {
            let to = act.to.clone();
            let mut finding = self.finding(ViolationKind::Renamed, Some(act), expected, actual);
            finding.detail = joined(to.as_ref().map(moved_to), differences);
            return finding;
        }
        let act = self
            .pick(|act| matches!(act.operation, Operation::Unlink | Operation::Rmdir))
            .or_else(|| self.pick(Act::touches_names))
            .or_else(|| self.pick(|act| act.operation == Operation::Ioctl));
        let mut finding = self.finding(ViolationKind::Removed, act, expected, actual);
        finding.detail = joined(None, differences);
        finding
    }

    /// The act that put what stands there at the path, other than by making it there and writing it.
    fn put_there(&self) -> Option<Act> {
        let path = &self.object.path;
        self.pick(|act| match act.operation {
            Operation::Rename => act.comes_to(path),
            Operation::Link | Operation::Symlink | Operation::Mkdir | Operation::Mknod => {
                act.to.as_ref().unwrap_or(&act.path) == path
            }
            _ => false,
        })
    }

    /// What stood at the path was taken away, and something was made there: a file system may give a number out again at once.
    fn made_anew(&self) -> bool {
        let path = &self.object.path;
        let away = |act: &&&Act| act.path == *path && act.operation == Operation::Unlink;
        let made = |act: &&&Act| act.path == *path && act.operation == Operation::Create;
        let away = self.acts.iter().filter(away).map(|act| act.first).min();
        away.is_some_and(|away| self.acts.iter().filter(made).any(|act| act.last >= away))
    }

    /// Another inode stands at the path.
    fn replaced(&self, last: &Seen, found: &Found, differences: &[Difference]) -> Finding {
        let act = self
            .pick(|act| act.comes_to(&self.object.path))
            .or_else(|| self.pick(|act| act.touches_names() && act.operation != Operation::Unlink))
            .or_else(|| self.pick(Act::touches_names))
            .or_else(|| self.pick(|act| act.operation == Operation::Mount));
        self.other(act, Some(last), found, differences)
    }

    /// By that act something else stands at the path: in the place of what was there at the last look, or of nothing.
    fn other(
        &self,
        act: Option<Act>,
        last: Option<&Seen>,
        found: &Found,
        differences: &[Difference],
    ) -> Finding {
        let path = &self.object.path;
        let (mut expected, mut actual) = merged(differences);
        expected.extend(last.map(|last| ("inode".to_owned(), last.inode().ino.to_string())));
        actual.insert("inode".into(), found.inode.ino.to_string());
        let from = act.as_ref().filter(|act| act.comes_to(path) && act.path != *path);
        let from = from.map(|act| format!("by {}", act.path));
        let mounted = act.as_ref().is_some_and(|act| act.operation == Operation::Mount);
        let kind = if mounted { ViolationKind::MountedOver } else { ViolationKind::Replaced };
        let mut finding = self.finding(kind, act, expected, actual);
        finding.detail = joined(from, differences);
        finding
    }

    /// What differs from the seal, split by what is wrong.
    pub(crate) fn standing(&self, differences: &[Difference]) -> Vec<Finding> {
        let is_content = |d: &&Difference| {
            matches!(d.aspect, Aspect::Content | Aspect::Type | Aspect::Target | Aspect::Missing)
        };
        let is_attributes = |d: &&Difference| d.aspect == Aspect::Attributes;
        let is_identity = |d: &&Difference| d.aspect == Aspect::Identity;
        let mut findings = Vec::new();
        let mut add = |kind, differences: Vec<&Difference>, act: Option<Act>| {
            if let Some(first) = differences.first() {
                let detail = first.detail.clone();
                let (expected, actual) = merged(differences);
                let mut finding = self.finding(kind, act, expected, actual);
                finding.detail = detail;
                findings.push(finding);
            }
        };
        let written = || self.first_to(Act::surely_writes, Act::touches_content);
        let writer = || written().or_else(|| self.pick(|act| act.operation == Operation::Open));
        add(ViolationKind::Content, differences.iter().filter(is_content).collect(), writer());
        let attributes: Vec<&Difference> = differences.iter().filter(is_attributes).collect();
        // Mode and owner are not set by who sets an extended attribute, but for ACLs.
        let only_xattrs = attributes.iter().all(|d| d.expected.keys().all(|key| key.starts_with("xattr.")));
        let fitting = if only_xattrs { Act::sets_xattrs } else { Act::sets_mode };
        let set = || {
            self.first_to(fitting, fitting)
                .or_else(|| self.first_to(Act::touches_attributes, Act::touches_attributes))
        };
        let setter = || set().or_else(writer);
        add(ViolationKind::Attributes, attributes, setter());
        add(ViolationKind::Identity, differences.iter().filter(is_identity).collect(), writer());
        findings
    }

    /// As [`Self::standing`], and the same again for each other process that may have had a part in it. Mode and attributes are changed by the owner or
    /// root; a hook tells of whoever tries.
    fn standing_by_each(&self, differences: &[Difference], owner: u32) -> Vec<Finding> {
        let able: Vec<&Act> = self.acts.iter().copied().filter(|act| may(act, Some(owner))).collect();
        let acts = if able.iter().any(|act| act.touches_attributes()) { &able } else { self.acts };
        let mut findings = Round { object: self.object, acts }.standing(differences);
        let mut others = Vec::new();
        for finding in &findings {
            let Some(first) = &finding.act else { continue };
            let fits = |act: &Act| match finding.kind {
                ViolationKind::Attributes => act.touches_attributes(),
                _ => act.touches_content(),
            };
            if !fits(first) {
                continue;
            }
            let mut told = vec![first];
            for act in acts.iter().copied().filter(|act| fits(act) && act.actor.is_ok()) {
                if told.len() <= OTHERS && !told.iter().any(|known| known.by_one(act)) {
                    told.push(act);
                    others.push(Finding { act: Some(act.clone()), ..finding.clone() });
                }
            }
        }
        findings.extend(others);
        findings
    }

    /// The acts that may have made what is found what it is, and those of which a hook told after its last change: these changed nothing.
    fn in_time(&self, found: &Found) -> (Vec<&Act>, Vec<&Act>) {
        let late = |act: &Act| act.is_hooked() && act.first.0 > found.ctime.saturating_add(TICK);
        let changes = |act: &Act| act.touches_content() || act.touches_attributes();
        let in_time = |act: &&Act| changes(act) && !late(act);
        // A clock whose ticks are late tells less than the processes: whoever changed it went on with it.
        let by_it = |act: &Act| self.acts.iter().copied().filter(in_time).any(|done| done.by_one(act));
        let (idle, done): (Vec<&Act>, Vec<&Act>) =
            self.acts.iter().partition(|act| changes(act) && late(act) && !by_it(act));
        // A clock that was set back, or another's, tells nothing.
        if done.iter().any(|act| changes(act)) { (done, idle) } else { (self.acts.to_vec(), Vec::new()) }
    }

    /// A new hard link.
    fn linked(&self, last: &Seen, found: &Found) -> Option<Finding> {
        let act = self.pick(|act| act.operation == Operation::Link);
        if act.is_none() && found.nlink <= last.links.count() {
            return None;
        }
        let state = |nlink: u64| State::from([("nlink".to_owned(), nlink.to_string())]);
        let alias = act.as_ref().and_then(|act| act.to.clone().or_else(|| act.path_in_fs.clone()));
        let mut finding =
            self.finding(ViolationKind::Linked, act, state(last.links.count()), state(found.nlink));
        finding.detail = alias.map(|alias| format!("also reachable as {alias}"));
        finding.standing = found.nlink > last.links.count();
        Some(finding)
    }

    /// It was moved away, by itself or with a directory above it, and back: in between something else may have stood there. A directory above
    /// moves no time of what is below.
    pub(crate) fn away_and_back(&self) -> Option<Finding> {
        let path = &self.object.path;
        let of_it =
            |act: &&&Act| act.operation == Operation::Rename && act.is_on(path) && !act.denied && !act.failed;
        let renames = || self.acts.iter().filter(of_it);
        // What left and stands there has come back. A hook comes before the act, and what is told of may have failed; but not both ways.
        let twice = renames().map(|act| act.count).sum::<u64>() > 1;
        let went = |act: &Act| twice || act.is_past() && act.moves_away(path);
        let away = renames().filter(|act| went(act)).min_by_key(|act| act.first)?;
        let act = Some((*away).clone());
        let mut finding = self.finding(ViolationKind::Reverted, act, State::new(), State::new());
        finding.standing = false;
        let to = away.to.as_ref().filter(|to| *to != path);
        let to = to.map_or_else(|| "away".to_owned(), |to| format!("to {to}"));
        finding.detail = Some(format!("moved {to}, and back"));
        Some(finding)
    }

    /// The first act that took its name away.
    fn taken(&self) -> Option<&Act> {
        let takes = |act: &&Act| act.operation == Operation::Unlink && act.path == self.object.path;
        self.acts.iter().copied().filter(takes).min_by_key(|act| act.first)
    }

    /// Its name was taken away, and another name of the same inode was put in its place: a link that was made before kept it.
    fn taken_and_put_back(&self) -> Option<Finding> {
        let (path, took) = (&self.object.path, self.taken()?);
        let puts = |act: &&&Act| {
            let linked = act.operation == Operation::Link && act.to.as_ref().unwrap_or(&act.path) == path;
            (linked || act.comes_to(path)) && act.last >= took.first
        };
        let put = *self.acts.iter().find(puts)?;
        let mut finding =
            self.finding(ViolationKind::Reverted, Some(took.clone()), State::new(), State::new());
        finding.standing = false;
        let from = if put.comes_to(path) { format!(" from {}", put.path) } else { String::new() };
        finding.detail = Some(format!("taken away, and put back{from}"));
        Some(finding)
    }

    /// The same, of what had come to pass at the last look and is told only now.
    fn taken_and_put_back_before(&self) -> Option<Finding> {
        self.taken_and_put_back().filter(|back| back.act.as_ref().is_some_and(Act::is_past))
    }

    /// It moved, and is as sealed.
    fn passed(&self, last: &Seen, found: &Found) -> Option<Finding> {
        let content = self.pick(|act| act.touches_content() && act.operation != Operation::Ioctl);
        let flags = self.pick(|act| matches!(act.operation, Operation::Ioctl | Operation::FileSetattr));
        if content.is_none() && flags.is_some() {
            let mut finding =
                self.finding(ViolationKind::Attributes, flags, ctime(last.ctime), ctime(found.ctime));
            finding.standing = false;
            finding.detail = Some(FLAGS.to_owned());
            return Some(finding);
        }
        let setter = self.pick(Act::touches_attributes);
        let names = self.pick(Act::touches_names);
        if content.is_none() && setter.is_some() && last.mtime != found.mtime {
            let state = |ns: i64| State::from([("mtime".to_owned(), Time(ns).to_string())]);
            let mut finding =
                self.finding(ViolationKind::Attributes, setter, state(last.mtime), state(found.mtime));
            finding.standing = false;
            return Some(finding);
        }
        let act = content.or(setter).or(names).or_else(|| self.pick(|_| true));
        let mut finding = self.finding(ViolationKind::Reverted, act, ctime(last.ctime), ctime(found.ctime));
        finding.standing = false;
        finding.detail = Some("changed, and as sealed again".to_owned());
        Some(finding)
    }

    /// As [`Self::passed`], where nobody looked before.
    fn passed_unseen(&self, found: &Found) -> Finding {
        let act = self.pick(|_| true);
        let mut finding = self.finding(ViolationKind::Reverted, act, State::new(), ctime(found.ctime));
        finding.standing = false;
        // It was not there at the last look, or there was none.
        let anew = self.acts.iter().any(|act| act.touches_names());
        let how = if anew { "made anew" } else { "changed while no agent ran" };
        finding.detail = Some(format!("{how}, and as sealed again"));
        finding
    }
}

/// How it was done, and what the differences say that it means.
fn joined(how: Option<String>, differences: &[Difference]) -> Option<String> {
    let said: Vec<String> = how
        .into_iter()
        .chain(differences.iter().filter_map(|difference| difference.detail.clone()))
        .collect();
    (!said.is_empty()).then(|| said.join("; "))
}

/// A change time, in nanoseconds since the epoch, as records show it.
pub(crate) fn ctime(ns: i64) -> State {
    State::from([("ctime".to_owned(), Time(ns).to_string())])
}

/// The states of several differences in one.
#[expect(single_use_lifetimes, reason = "an anonymous lifetime is not allowed in an impl Trait's binding")]
pub(crate) fn merged<'a>(differences: impl IntoIterator<Item = &'a Difference>) -> (State, State) {
    let (mut expected, mut actual) = (State::new(), State::new());
    for difference in differences {
        expected.extend(difference.expected.iter().map(|(k, v)| (k.clone(), v.clone())));
        actual.extend(difference.actual.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    (expected, actual)
}
