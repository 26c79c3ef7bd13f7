//! What a look and the acts before it amount to: which of them are lawful, and what is wrong.

use crate::baseline::{Found, Seal, Writer};
use crate::inventory::writers::Lawful;
use crate::model::{Class, HostPath, ObjectRef, Operation, State, Time, ViolationKind};

use super::Judge;
use super::acts::{Act, Acts};
use super::covered::{Standpoint, covered, executed, reached_into};
use super::directory::{Neighbours, directory};
use super::look::Look;
use super::nameless::passes_for_lawful;
use super::topology::is_mount;
use super::unit::Unit;
use super::units::Units;
use super::verdict::{Round, Verdict, file, put_right};
use super::violations::{Finding, moved_to};
use super::volume::Volume;

impl Judge {
    /// Acts of lawful writers of this unit, and all others.
    pub(super) fn split<'a>(&self, unit: &Unit, look: &Look, acts: &'a Acts) -> (Vec<&'a Act>, Vec<&'a Act>) {
        if passes_for_lawful(unit, look, acts) {
            return (acts.iter().collect(), Vec::new());
        }
        let writers = self.writers_of(unit);
        acts.iter().partition(|act| self.is_lawful(act, &writers, &unit.object().path))
    }

    /// A lawful writer of this unit acted.
    pub(super) fn is_lawful_here(&self, unit: &Unit, act: &Act) -> bool {
        self.is_lawful(act, &self.writers_of(unit), &unit.object().path)
    }

    /// The lawful writers of a unit, as its baseline declares them. While the transition from the revision before lasts, those in pods are
    /// so as that declares them, too: what is rolled out runs in both versions, and the old one ends lawfully.
    pub(super) fn writers_of(&self, unit: &Unit) -> Vec<Writer> {
        let names = &unit.object().rule.writers;
        let declared =
            |writers: &[Writer], name: &str| writers.iter().find(|writer| writer.name() == name).cloned();
        let own = names.iter().filter_map(|name| {
            declared(&unit.source().writers, name)
                .or_else(|| (name == Writer::KUBELET).then_some(Writer::Kubelet))
        });
        let now = Time::now();
        let before = self
            .baselines
            .iter()
            .find(|baseline| baseline.name == unit.source().name && !baseline.transition_left(now).is_zero())
            .and_then(|baseline| baseline.before.as_deref());
        let rolled_out = names
            .iter()
            .filter_map(|name| declared(&before?.writers, name))
            .filter(|writer| matches!(writer, Writer::InPod(_)));
        own.chain(rolled_out).collect()
    }

    pub(super) fn is_lawful(&self, act: &Act, writers: &[Writer], object: &HostPath) -> bool {
        let Ok(actor) = &act.actor else { return false };
        writers.iter().any(|writer| self.world.lawful(actor, writer, object) == Lawful::Yes)
    }

    pub(super) fn verdict<'a>(
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
        let gone_by_ioctl = |act: &Act| found.is_none() && act.operation == Operation::Ioctl;
        let names = |act: &Act| (act.touches_names() || gone_by_ioctl(act)) && !act.denied;
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
        self.behind_a_link(unit, found, &mut verdict);
        verdict.findings.extend(over.findings.into_iter().chain(reached).chain(ran));
        verdict.attempts.extend(over.attempts);
        verdict
    }

    /// A directory above the object was moved, and its path leads there by a symbolic link that was put in the place: whoever made the link
    /// says from now on what stands at the path.
    fn behind_a_link(&self, unit: &Unit, found: Option<&Found>, verdict: &mut Verdict) {
        let path = &unit.object().path;
        let same = found.is_some_and(|found| unit.seen().is_some_and(|last| last.inode() == found.inode));
        let Some(link) = self.ways.turned(path).filter(|_| same) else { return };
        let moves = |act: &Act| act.moves_away(path);
        let undone = |finding: &Finding| {
            finding.kind == ViolationKind::Reverted && finding.act.as_ref().is_some_and(moves)
        };
        let reverted = verdict.findings.iter().position(undone);
        let reverted = reverted.and_then(|at| verdict.findings.remove(at).act);
        let tried = || verdict.attempts.iter().position(moves).map(|at| verdict.attempts.remove(at));
        // It was told as an attempt, and came to pass later.
        let lately = || unit.apart().lately.iter().find(|act| moves(act)).cloned();
        let act = reverted.or_else(tried).or_else(lately);
        let acts: Vec<&Act> = act.iter().collect();
        let round = Round { object: &unit.object_ref(), acts: &acts };
        let mut finding = round.finding(ViolationKind::Renamed, act.clone(), State::new(), State::new());
        let to = act.as_ref().and_then(|act| act.to.as_ref()).map(|to| format!("{}; ", moved_to(to)));
        finding.detail = Some(format!("{}{link} is a symbolic link now", to.unwrap_or_default()));
        verdict.findings.push(finding);
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
                let names_changed = unit.is_other(look.content);
                let around = Around { units: &self.units, unit, names_changed };
                let mut verdict = directory(&object, unit.seen(), found, &look.differences, all, &around);
                // A lawful writer may put a file beside the one it renames it onto, and take it away again; and it may
                // make its own socket anew.
                verdict.findings.retain(|finding| {
                    !matches!(finding.kind, ViolationKind::Unexpected | ViolationKind::Replaced)
                        || finding.standing
                        || !finding.act.as_ref().is_some_and(|act| lawful.iter().any(|one| one.same(act)))
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
}

/// A lawful writer put another file in the place of the object.
fn made_anew(object: &ObjectRef, lawful: &[&Act]) -> bool {
    let onto = |act: &&&Act| {
        let made = matches!(act.operation, Operation::Create | Operation::Rename);
        made && !act.denied && act.to.as_ref().unwrap_or(&act.path) == &object.path
    };
    lawful.iter().any(|act| onto(&act))
}

/// What a directory's verdict asks.
struct Around<'a> {
    units: &'a Units,
    unit: &'a Unit,
    names_changed: bool,
}

impl Neighbours for Around<'_> {
    fn is_sealed(&self, path: &HostPath) -> bool {
        self.units.find(path).is_some()
    }

    fn names_changed(&self) -> bool {
        self.names_changed
    }

    fn inner(&self, path: &HostPath) -> ObjectRef {
        self.unit.inner_ref(path.clone())
    }
}
