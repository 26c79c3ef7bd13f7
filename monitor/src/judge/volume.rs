//! The verdict on an `AtomicWriter` volume: shape, files, and who published them.
//!
//! A publish is judged, not excluded: lawful writer AND lawful shape AND content as sealed. What the kubelet itself
//! publishes with other bytes is `content`; what anyone else does, even with the right bytes, is a violation.

use std::collections::BTreeMap;

use crate::baseline::{Aspect, Difference, Found, FoundKind, Publish};
use crate::model::{HostPath, ObjectRef, Operation, State, ViolationKind};

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

impl<F: Fn(&HostPath) -> ObjectRef> Volume<'_, F> {
    /// Judges it.
    pub(crate) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        verdict.attempts.extend(self.unlawful.iter().filter(|act| act.denied).map(|act| (*act).clone()));
        for difference in self.differences {
            verdict.findings.push(self.standing(difference));
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
        self.unlawful_acts(&mut verdict);
        verdict
    }

    fn path_of(&self, entry: &[u8]) -> HostPath {
        if entry == b"." { self.object.path.clone() } else { self.object.path.join(entry) }
    }

    /// Something is not as sealed.
    fn standing(&self, difference: &Difference) -> Finding {
        let path =
            difference.entry.as_ref().map_or_else(|| self.object.path.clone(), |entry| self.path_of(entry));
        let name = path.name();
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
        let named =
            |act: &&Act| act.path.name() == name || act.to.as_ref().is_some_and(|to| to.name() == name);
        let among = |acts: &[&Act]| {
            let fitting = || acts.iter().copied().filter(fits);
            let swung = |act: &&Act| act.to.as_ref().is_some_and(|to| to.name() == b"..data");
            // A publish takes effect with the rename onto `..data`, whatever was written before.
            decisive(fitting().filter(swung))
                .or_else(|| decisive(fitting().filter(named)))
                .or_else(|| decisive(fitting()))
                .cloned()
        };
        let act = among(self.unlawful).or_else(|| among(self.lawful));
        let from: Vec<&Act> = if self.unlawful.is_empty() { self.lawful } else { self.unlawful }.to_vec();
        let inner = (self.inner)(&path);
        let round = Round { object: &inner, acts: &from };
        let mut finding = round.finding(kind, act, difference.expected.clone(), difference.actual.clone());
        finding.detail = difference.detail.clone().or_else(|| {
            let real = finding.act.as_ref().map(|act| &act.path).filter(|real| **real != path)?;
            Some(format!("through {real}"))
        });
        finding
    }

    /// Acts of others than the lawful writers that left nothing wrong behind.
    fn unlawful_acts(&self, verdict: &mut Verdict) {
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
            if act.operation == Operation::Open || !self.moved(act) {
                verdict.attempts.push(act.clone());
                continue;
            }
            let inner = (self.inner)(&self.object.path.join(act.path.name()));
            let round = Round { object: &inner, acts: &[act] };
            let mut finding =
                round.finding(ViolationKind::Reverted, Some(act.clone()), State::new(), State::new());
            finding.standing = false;
            finding.detail = Some("changed, and as sealed again".to_owned());
            verdict.findings.push(finding);
        }
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
    fn moved(&self, act: &Act) -> bool {
        let Some(FoundKind::Volume { entries, .. }) = self.found.map(|found| &found.kind) else {
            return true;
        };
        let name = act.path.name();
        let member = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next() == Some(name);
        let mut known = false;
        for (path, last) in self.members.iter().filter(|(path, _)| member(path)) {
            known = true;
            match entries.get(path) {
                Some(now) if Seen::from(now) == *last => {}
                _ => return true,
            }
        }
        !known
    }
}
