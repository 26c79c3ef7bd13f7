//! The verdict on an `AtomicWriter` volume: shape, files, and who published them.
//!
//! A publish is judged, not excluded: lawful writer AND lawful shape AND content as sealed. What the kubelet itself
//! publishes with other bytes is `content`; what anyone else does, even with the right bytes, is a violation.

use std::collections::{BTreeMap, HashMap};

use crate::baseline::volume::DATA;
use crate::baseline::{Aspect, Difference, Found, FoundKind, Publish};
use crate::model::{HostPath, InodeKey, ObjectRef, Operation, State, ViolationKind};

use super::acts::{Act, decisive};
use super::verdict::{Round, Seen, Verdict};
use super::violations::Finding;

/// A volume between two looks.
pub(crate) struct Volume<'a, F: Fn(&HostPath) -> ObjectRef> {
    pub(crate) object: &'a ObjectRef,
    pub(crate) publish: Publish,
    /// Members at the last look.
    pub(crate) members: &'a BTreeMap<Box<[u8]>, Seen>,
    /// The first look: nothing is known of before.
    pub(crate) first: bool,
    /// Content is other than at the last look.
    pub(crate) changed: bool,
    pub(crate) found: Option<&'a Found>,
    pub(crate) differences: &'a [Difference],
    /// Acts of lawful writers.
    pub(crate) lawful: &'a [&'a Act],
    /// All others.
    pub(crate) unlawful: &'a [&'a Act],
    pub(crate) inner: F,
}

/// Which member an act was on.
#[derive(Default)]
struct Members<'a> {
    by_inode: HashMap<InodeKey, &'a [u8]>,
    by_name: HashMap<&'a [u8], &'a [u8]>,
}

impl<'a> Members<'a> {
    /// Those that are there now, and those that were.
    fn of(found: Option<&'a Found>, then: &'a BTreeMap<Box<[u8]>, Seen>) -> Self {
        let now = match found.map(|found| &found.kind) {
            Some(FoundKind::Volume { entries, .. }) => Some(entries),
            _ => None,
        };
        let now = now.into_iter().flatten().map(|(path, found)| (&**path, found.inode));
        let then = then.iter().map(|(path, seen)| (&**path, seen.inode()));
        let mut members = Self::default();
        for (path, inode) in now.chain(then) {
            members.by_inode.entry(inode).or_insert(path);
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
            members.by_name.entry(name).or_insert(path);
        }
        members
    }

    /// By its inode, or else by its name.
    fn of_act(&self, act: &Act) -> Option<&'a [u8]> {
        let known = act.inode.and_then(|inode| self.by_inode.get(&inode));
        known.or_else(|| self.by_name.get(act.path.name())).copied()
    }
}

impl<F: Fn(&HostPath) -> ObjectRef> Volume<'_, F> {
    /// Judges it.
    pub(crate) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let acted = !self.lawful.is_empty() || !self.unlawful.is_empty();
        let members = if acted { Members::of(self.found, self.members) } else { Members::default() };
        verdict.attempts.extend(self.unlawful.iter().filter(|act| act.denied).map(|act| (*act).clone()));
        for difference in self.differences {
            verdict.findings.push(self.standing(difference, &members));
        }
        if self.found.is_none() || self.first {
            return verdict;
        }
        if self.publish == Publish::Redeploy && self.changed && verdict.findings.is_empty() {
            let act = decisive(self.lawful.iter().copied().filter(|act| act.touches_names())).cloned();
            let round = Round { object: self.object, acts: self.lawful };
            let mut finding = round.finding(ViolationKind::Structure, act, State::new(), State::new());
            finding.detail =
                Some("published into a running pod, while its seal says `publish: redeploy`".into());
            finding.standing = false;
            verdict.findings.push(finding);
        }
        self.unlawful_acts(&mut verdict, &members);
        verdict
    }

    fn path_of(&self, entry: &[u8]) -> HostPath {
        if entry == b"." { self.object.path.clone() } else { self.object.path.join(entry) }
    }

    /// Something is not as sealed.
    fn standing(&self, difference: &Difference, members: &Members<'_>) -> Finding {
        let entry = difference.entry.as_deref();
        let path = entry.map_or_else(|| self.object.path.clone(), |entry| self.path_of(entry));
        let was_there = difference.expected.values().all(|kind| kind != "none");
        let is_there = difference.actual.values().all(|kind| kind != "none");
        let kind = match difference.aspect {
            Aspect::Missing => ViolationKind::Removed,
            Aspect::Names if !was_there => ViolationKind::Unexpected,
            Aspect::Names if !is_there => ViolationKind::Removed,
            Aspect::Structure | Aspect::Type | Aspect::Names => ViolationKind::Structure,
            Aspect::Attributes => ViolationKind::Attributes,
            Aspect::Identity => ViolationKind::Identity,
            Aspect::Content | Aspect::Target => ViolationKind::Content,
        };
        let fits = |act: &&Act| match kind {
            ViolationKind::Attributes => act.touches_attributes() || act.touches_names(),
            ViolationKind::Content | ViolationKind::Identity => act.touches_content() || act.touches_names(),
            _ => act.touches_names(),
        };
        let swings = |act: &&Act| act.to.as_ref().is_some_and(|to| to.name() == DATA);
        let reaches = |act: &&Act| entry.is_none_or(|entry| reaches(members.of_act(act), act, entry));
        let among = |acts: &[&Act]| {
            let fitting = || acts.iter().copied().filter(fits).filter(reaches);
            // A publish takes effect with the rename onto `..data`, whatever was written before.
            decisive(fitting().filter(swings)).or_else(|| decisive(fitting())).cloned()
        };
        let act = among(self.unlawful).or_else(|| among(self.lawful));
        let from = if self.unlawful.is_empty() { self.lawful } else { self.unlawful };
        let from: Vec<&Act> = from.iter().copied().filter(reaches).collect();
        let inner = (self.inner)(&path);
        let round = Round { object: &inner, acts: &from };
        let mut finding = round.finding(kind, act, difference.expected.clone(), difference.actual.clone());
        let elsewhere = |act: &&Act| act.path != path && (entry.is_none() || members.of_act(act) != entry);
        finding.detail = difference.detail.clone().or_else(|| {
            let act = finding.act.as_ref().filter(elsewhere)?;
            Some(format!("through {}", act.path))
        });
        finding
    }

    /// Acts of others than the lawful writers that left nothing wrong behind.
    fn unlawful_acts(&self, verdict: &mut Verdict, members: &Members<'_>) {
        let acts = || self.unlawful.iter().copied().filter(|act| !act.denied);
        let names: Vec<&Act> = acts().filter(|act| act.touches_names() && !self.told(verdict, act)).collect();
        if let Some(act) = decisive(names.iter().copied()) {
            let path = act.to.as_ref().unwrap_or(&act.path).clone();
            let inner = (self.inner)(&path);
            let round = Round { object: &inner, acts: &names };
            let mut finding =
                round.finding(ViolationKind::Structure, Some(act.clone()), State::new(), State::new());
            finding.standing = false;
            finding.detail = Some("not done by a lawful writer of this volume".to_owned());
            verdict.findings.push(finding);
        }
        for act in acts().filter(|act| !act.touches_names()) {
            if self.told(verdict, act) {
                continue;
            }
            let member = members.of_act(act);
            if act.operation == Operation::Open || !self.moved(member) {
                verdict.attempts.push(act.clone());
                continue;
            }
            if let Some(told) = member.and_then(|member| Self::wrong(verdict, &self.path_of(member))) {
                // As wrong as another left it, and this one had a part in it.
                let mut finding = told.clone();
                if finding.act.as_ref().is_some_and(Act::touches_content) {
                    finding.act = Some(act.clone());
                    verdict.findings.push(finding);
                }
                continue;
            }
            let path =
                member.map_or_else(|| self.object.path.join(act.path.name()), |member| self.path_of(member));
            let inner = (self.inner)(&path);
            let round = Round { object: &inner, acts: &[act] };
            let mut finding =
                round.finding(ViolationKind::Reverted, Some(act.clone()), State::new(), State::new());
            finding.standing = false;
            finding.detail = Some("changed, and as sealed again".to_owned());
            verdict.findings.push(finding);
        }
    }

    /// What is wrong at that path with what stands there.
    fn wrong<'v>(verdict: &'v Verdict, path: &HostPath) -> Option<&'v Finding> {
        use ViolationKind as V;
        let wrong = |finding: &&Finding| finding.standing && matches!(finding.kind, V::Content | V::Identity);
        verdict.findings.iter().filter(wrong).find(|finding| finding.object.path == *path)
    }

    /// A finding of this round already tells of this act: by the same actor on the same name, or as part of what
    /// the same actor did to the names of the volume.
    fn told(&self, verdict: &Verdict, act: &Act) -> bool {
        // Where nobody is known, nobody tells them apart.
        let by_one = |told: &Act| match (&told.actor, &act.actor) {
            (Ok(one), Ok(other)) => one.is_same_process(other),
            (Err(_), Err(_)) => true,
            _ => false,
        };
        let same = |told: &Act| {
            by_one(told)
                && (act.touches_names() || told.touches_names() || told.path.name() == act.path.name())
        };
        verdict.findings.iter().filter_map(|finding| finding.act.as_ref()).any(same)
    }

    /// The member an act was on is not as it was at the last look.
    fn moved(&self, member: Option<&[u8]>) -> bool {
        let Some(FoundKind::Volume { entries, .. }) = self.found.map(|found| &found.kind) else {
            return true;
        };
        let Some(member) = member else { return true };
        let (then, now) = (self.members.get(member), entries.get(member).map(Seen::from));
        then.is_none() || then.copied() != now
    }
}

/// An act, which was on that member, may have changed that entry: it was on it, or on the name of a directory that it lies in. A
/// publication's own directories have names that begin with two dots, and all members lie in them.
fn reaches(member: Option<&[u8]>, act: &Act, entry: &[u8]) -> bool {
    let lies_in =
        |name: &[u8]| name.starts_with(b"..") || entry.split(|byte| *byte == b'/').any(|part| part == name);
    let names = act.touches_names() || entry == b".";
    member == Some(entry)
        || names && (lies_in(act.path.name()) || act.to.as_ref().is_some_and(|to| lies_in(to.name())))
}
