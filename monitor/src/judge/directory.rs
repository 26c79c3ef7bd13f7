//! The verdict on a closed directory: names that do not belong there, and the directory itself.

use std::collections::BTreeSet;

use crate::baseline::{Aspect, Difference, Found, FoundKind};
use crate::model::{HostPath, ObjectRef, Operation, State, ViolationKind};

use super::acts::{Act, decisive};
use super::verdict::{FLAGS, Round, Seen, TICK, Verdict, ctime, file};
use super::violations::Finding;

/// What the verdict must know of the rest.
pub(crate) trait Neighbours {
    /// The path is sealed as an object of its own.
    fn is_sealed(&self, path: &HostPath) -> bool;
    /// There are other names in it than at the last look.
    fn names_changed(&self) -> bool;
    /// The object of a record for a path inside the directory.
    fn inner(&self, path: &HostPath) -> ObjectRef;
}

/// Judges a directory whose names are sealed.
pub(crate) fn directory(
    object: &ObjectRef,
    last: Option<&Seen>,
    found: Option<&Found>,
    differences: &[Difference],
    acts: &[&Act],
    neighbours: &impl Neighbours,
) -> Verdict {
    let own: Vec<Difference> = differences.iter().filter(|d| d.entry.is_none()).cloned().collect();
    let on_itself: Vec<&Act> = acts.iter().copied().filter(|act| act.is_on(&object.path)).collect();
    let other = last.zip(found).is_some_and(|(last, found)| last.inode() != found.inode);
    let came = last.is_none() && !on_itself.is_empty();
    let gone_or_other = found.is_none() || other || came;
    if gone_or_other {
        let mut verdict = file(object, last, found, &own, &on_itself);
        // What lies in it came with it. Where no act tells how, its names are judged once it is watched anew.
        let whole = verdict.findings.first().and_then(|finding| finding.act.clone());
        let whole = whole.filter(|act| found.is_some() && act.comes_to(&object.path));
        if whole.is_some() {
            let dir = Names { object, acts, neighbours, whole: whole.as_ref() };
            verdict.findings.extend(dir.named(differences, &present(object, found)));
        }
        return verdict;
    }
    let mut verdict = itself(object, last, found, &own, &on_itself);
    // What makes or takes a btrfs subvolume in it, without an act on its name and, on 5.10, without moving its times.
    let is_ioctl = |act: &&Act| act.operation == Operation::Ioctl && !act.denied;
    let ioctl = on_itself.iter().copied().find(is_ioctl).filter(|_| neighbours.names_changed());
    let dir = Names { object, acts, neighbours, whole: ioctl };
    let present = present(object, found);
    if let Some(ioctl) = ioctl.filter(|_| differences.iter().any(|one| one.aspect == Aspect::Names)) {
        verdict.findings.retain(|finding| !finding.act.as_ref().is_some_and(|act| act.same(ioctl)));
        verdict.attempts.retain(|act| !act.same(ioctl));
    }
    verdict.findings.extend(dir.named(differences, &present));
    let mut passing = dir.passing(&present);
    // A name cannot come and go without moving the directory's ctime: the act failed, or is still to come. Unless the last look saw it
    // already, before it was told of.
    if let Some((_, found)) = last.zip(found).filter(|(last, found)| last.ctime == found.ctime) {
        let seen =
            |finding: &Finding| finding.act.as_ref().is_some_and(|act| act.first.0 <= found.ctime + TICK);
        let (seen, failed): (Vec<Finding>, Vec<Finding>) = passing.into_iter().partition(seen);
        verdict.attempts.extend(failed.into_iter().filter_map(|finding| finding.act));
        if seen.is_empty() {
            return verdict;
        }
        passing = seen;
    }
    verdict.incomplete = passing.iter().any(|finding| !dir.is_taken(&finding.object.path));
    verdict.findings.extend(passing);
    let told = |path: &HostPath| differences.iter().any(|d| d.entry.as_deref() == Some(path.name()));
    verdict.findings.extend(dir.made_anew(&present, told));
    verdict
}

/// The paths of all names in it.
fn present(object: &ObjectRef, found: Option<&Found>) -> BTreeSet<HostPath> {
    match found.map(|found| &found.kind) {
        Some(FoundKind::Directory { names }) => names.keys().map(|name| object.path.join(name)).collect(),
        _ => BTreeSet::new(),
    }
}

/// The directory's own mode, owner and attributes. Names coming and going move its times, so they prove nothing.
fn itself(
    object: &ObjectRef,
    last: Option<&Seen>,
    found: Option<&Found>,
    own: &[Difference],
    acts: &[&Act],
) -> Verdict {
    let mut verdict = Verdict::default();
    let round = Round { object, acts };
    verdict.findings.extend(round.standing(own));
    if !verdict.findings.is_empty() {
        return verdict;
    }
    if let Some(finding) = round.away_and_back() {
        verdict.findings.push(finding);
        return verdict;
    }
    let flags = |act: &Act| matches!(act.operation, Operation::Ioctl | Operation::FileSetattr);
    let setters: Vec<&Act> =
        acts.iter().copied().filter(|act| act.touches_attributes() || flags(act)).collect();
    if !setters.is_empty() {
        let (Some(last), Some(found)) = (last, found) else { return verdict };
        if last.ctime == found.ctime {
            verdict.attempts.extend(setters.into_iter().cloned());
        } else {
            let (kind, detail) = match setters.iter().all(|act| flags(act)) {
                true => (ViolationKind::Attributes, FLAGS),
                false => (ViolationKind::Reverted, "changed, and as sealed again"),
            };
            let act = decisive(setters).cloned();
            let mut finding = round.finding(kind, act, ctime(last.ctime), ctime(found.ctime));
            finding.standing = false;
            finding.detail = Some(detail.to_owned());
            verdict.findings.push(finding);
        }
    }
    verdict
}

struct Names<'a, N> {
    object: &'a ObjectRef,
    acts: &'a [&'a Act],
    neighbours: &'a N,
    /// The act on all of it that tells of names which have none of their own: what moved it to its place, or an ioctl.
    whole: Option<&'a Act>,
}

impl<N: Neighbours> Names<'_, N> {
    /// The acts on one path in the directory, or else the one on all of it.
    fn on(&self, path: &HostPath) -> Vec<&Act> {
        let acts: Vec<&Act> = self.acts.iter().copied().filter(|act| act.is_on(path)).collect();
        if acts.is_empty() { self.whole.into_iter().collect() } else { acts }
    }

    /// All names that are not as sealed.
    fn named(&self, differences: &[Difference], present: &BTreeSet<HostPath>) -> Vec<Finding> {
        let of_names = differences.iter().filter(|difference| difference.aspect == Aspect::Names);
        of_names.filter_map(|difference| self.name(difference, present)).collect()
    }

    /// A name too many, too few, or of another type.
    fn name(&self, difference: &Difference, present: &BTreeSet<HostPath>) -> Option<Finding> {
        let path = self.object.path.join(difference.entry.as_deref()?);
        if self.neighbours.is_sealed(&path) {
            // Judged as the object it is.
            return None;
        }
        let acts = self.on(&path);
        let inner = self.neighbours.inner(&path);
        let round = Round { object: &inner, acts: &acts };
        let was_there = difference.expected.values().all(|kind| kind != "none");
        let is_there = difference.actual.values().all(|kind| kind != "none");
        let makes = |act: &&&Act| makes(act, &path);
        if !was_there {
            let act = decisive(acts.iter().filter(makes).copied()).or_else(|| decisive(acts.iter().copied()));
            if act.is_some_and(|act| {
                act.operation == Operation::Rename
                    && act.path != self.object.path
                    && self.neighbours.is_sealed(&act.path)
                    && !present.contains(&act.path)
            }) {
                // A sealed object moved within reach: told as `renamed`, once.
                return None;
            }
            let mut finding = round.finding(
                ViolationKind::Unexpected,
                act.cloned(),
                difference.expected.clone(),
                difference.actual.clone(),
            );
            // From where nothing is watched it may be known by its new place alone.
            let from = |act: &&Act| {
                act.operation == Operation::Rename && act.path != path && act.path != self.object.path
            };
            let moved = act.filter(from).map(|act| match act.is_on(&path) {
                true => format!("moved here from {}", act.path),
                false => format!("came with {}", act.path),
            });
            let said: Vec<String> = moved.into_iter().chain(difference.detail.clone()).collect();
            finding.detail = (!said.is_empty()).then(|| said.join("; "));
            return Some(finding);
        }
        let kind = if is_there { ViolationKind::Replaced } else { ViolationKind::Removed };
        let act = decisive(acts.iter().copied()).cloned();
        Some(round.finding(kind, act, difference.expected.clone(), difference.actual.clone()))
    }

    /// An act tells where a name that is gone has gone.
    fn is_taken(&self, path: &HostPath) -> bool {
        let takes = |act: &&Act| {
            matches!(act.operation, Operation::Unlink | Operation::Rmdir | Operation::Rename)
                && act.path == *path
        };
        self.acts.iter().copied().any(|act| takes(&act))
    }

    /// Names that were taken away and made again between two looks, of things that are no objects of their own: a socket of
    /// somebody else's looks like the one before.
    fn made_anew(&self, present: &BTreeSet<HostPath>, told: impl Fn(&HostPath) -> bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        for path in present.iter().filter(|path| !told(path) && !self.neighbours.is_sealed(path)) {
            let acts = self.on(path);
            let over = |act: &&&Act| act.comes_to(path);
            let anew = self.is_taken(path) || acts.iter().any(|act| over(&act));
            let maker = decisive(acts.iter().copied().filter(|act| makes(act, path)));
            let Some(act) = maker.filter(|_| anew) else { continue };
            let inner = self.neighbours.inner(path);
            let round = Round { object: &inner, acts: &acts };
            let mut finding =
                round.finding(ViolationKind::Replaced, Some(act.clone()), State::new(), State::new());
            finding.standing = false;
            finding.detail = Some("taken away, and made anew".to_owned());
            findings.push(finding);
        }
        findings
    }

    /// Names that came and went between two looks.
    fn passing(&self, present: &BTreeSet<HostPath>) -> Vec<Finding> {
        let mut told = BTreeSet::new();
        let mut findings = Vec::new();
        for act in self.acts {
            let path = act.to.as_ref().unwrap_or(&act.path);
            let here = path.parent().as_ref() == Some(&self.object.path);
            if !here || !makes(act, path) || present.contains(path) || self.neighbours.is_sealed(path) {
                continue;
            }
            let onto_sealed = self.acts.iter().any(|next| {
                next.operation == Operation::Rename
                    && next.path == *path
                    && next.to.as_ref().is_some_and(|to| self.neighbours.is_sealed(to))
            });
            if onto_sealed || !told.insert(path.clone()) {
                // The way many editors write: told as `replaced` of the object it was moved onto.
                continue;
            }
            let acts = self.on(path);
            let inner = self.neighbours.inner(path);
            let round = Round { object: &inner, acts: &acts };
            let key = format!("name.{}", HostPath::new(path.name().to_vec()));
            let none = State::from([(key, "none".to_owned())]);
            let mut finding =
                round.finding(ViolationKind::Unexpected, Some((*act).clone()), none.clone(), none);
            finding.standing = false;
            finding.detail = Some("there for a moment, and gone again".to_owned());
            findings.push(finding);
        }
        findings
    }
}

/// The act puts something at `path`.
fn makes(act: &Act, path: &HostPath) -> bool {
    match act.operation {
        Operation::Rename => act.comes_to(path),
        Operation::Create | Operation::Mkdir | Operation::Mknod | Operation::Symlink | Operation::Link => {
            act.path == *path
        }
        _ => false,
    }
}
