//! Which executable the kubelet was found to be, one after the other: that it became another is recorded.

use crate::attribution::Attribution;
use crate::inventory::procs::Proc;
use crate::inventory::writers::{Proven, Writers};
use crate::model::{Actor, Draft, ExeHash, RecordBody, Severity, State, WriterBody};

const REASON: &str = "no kubelet that was known ran any more, and this one stands in its place, in the same cgroup; who put it there is not asked";

/// The kubelet that was found last.
#[derive(Debug, Default)]
pub(super) struct Kubelet {
    known: Option<(Proven, Option<ExeHash>)>,
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
        let [sha256, sha256_now] =
            [&sha256, &actor.exe_sha256].map(|hash| hash.as_ref().and_then(ExeHash::get));
        let same = match (sha256, sha256_now) {
            (Some(before), Some(now)) => before == now,
            _ => before.exe == now.exe,
        };
        if !same {
            let states = [state(&before, sha256), state(now, sha256_now)];
            self.changes.push(told(states, actor));
        }
    }

    pub(super) fn take_changes(&mut self) -> Vec<Draft> {
        std::mem::take(&mut self.changes)
    }
}

fn state(proven: &Proven, sha256: Option<&str>) -> State {
    let exe = ("exe".to_owned(), proven.exe_path.to_string());
    std::iter::once(exe).chain(sha256.map(|hash| ("sha256".to_owned(), hash.to_owned()))).collect()
}

fn told([old, new]: [State; 2], actor: Actor) -> Draft {
    let body = WriterBody {
        writer: crate::baseline::Writer::KUBELET.to_owned(),
        old,
        new,
        actor,
        reason: REASON.to_owned(),
    };
    Draft::now(Severity::Medium, RecordBody::WriterChanged(Box::new(body)))
}
