//! Which executable the kubelet was found to be, one after the other: that it became another is recorded.

use crate::attribution::Attribution;
use crate::inventory::procs::Proc;
use crate::inventory::writers::{Proven, Writers};
use crate::model::{Actor, Draft, RecordBody, Severity, State, WriterBody};

const REASON: &str = "no kubelet that was known ran any more, and this one stands in its place, in the same cgroup; who put it there is not asked";

/// The kubelet that was found last.
#[derive(Debug, Default)]
pub(super) struct Kubelet {
    known: Option<(Proven, Option<String>)>,
    changes: Vec<Draft>,
}

impl Kubelet {
    /// Looks whether the one that runs by now is another.
    pub(super) fn look(&mut self, writers: &Writers, attribution: &mut Attribution) {
        let Some(now) = writers.kubelets().last() else { return };
        if self.known.as_ref().is_some_and(|(known, _)| known == now) {
            return;
        }
        // One that is gone by now is looked at again if it comes back.
        let Ok(mut actor) = Proc::default().actor(now.tgid) else { return };
        attribution.enrich(&mut actor);
        let before = self.known.replace((now.clone(), actor.exe_sha256.clone()));
        let Some((before, sha256)) = before else { return };
        let same = match (&sha256, &actor.exe_sha256) {
            (Some(before), Some(now)) => before == now,
            _ => before.exe == now.exe,
        };
        if !same {
            self.changes.push(told(&before, sha256, now, actor));
        }
    }

    pub(super) fn take_changes(&mut self) -> Vec<Draft> {
        std::mem::take(&mut self.changes)
    }
}

fn told(before: &Proven, sha256: Option<String>, now: &Proven, actor: Actor) -> Draft {
    let state = |proven: &Proven, sha256: Option<String>| -> State {
        let exe = ("exe".to_owned(), proven.exe_path.to_string());
        std::iter::once(exe).chain(sha256.map(|hash| ("sha256".to_owned(), hash))).collect()
    };
    let new = state(now, actor.exe_sha256.clone());
    let body = WriterBody {
        writer: crate::baseline::Writer::KUBELET.to_owned(),
        old: state(before, sha256),
        new,
        actor,
        reason: REASON.to_owned(),
    };
    Draft::now(Severity::Medium, RecordBody::WriterChanged(Box::new(body)))
}
