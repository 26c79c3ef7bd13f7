//! What is to be judged from now on: the units of the baselines in force.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::baseline::AcceptedBaseline;
use crate::model::Time;

use super::beside::Beside;
use super::unit::{Lot, Sealed, Source, Unit};
use super::{Judge, Resolved};

/// An object that is to be judged, and by what.
struct Wanted {
    sealed: Sealed,
    /// As the revision before sealed it, and until when that counts too.
    before: Option<(Sealed, Instant)>,
}

impl Judge {
    /// Units of these baselines, and no others.
    pub(super) fn take_up(&mut self, baselines: Vec<Arc<AcceptedBaseline>>, resolved: &[Resolved]) {
        self.unsealed.due = true;
        let mut wanted = HashMap::new();
        for baseline in &baselines {
            each_object(baseline, resolved, |sealed| {
                wanted.insert(sealed.path.clone(), Wanted { sealed, before: None });
            });
            let Some(before) = &baseline.before else { continue };
            let until = Instant::now() + baseline.transition_left(Time::now());
            each_object(before, resolved, |sealed| {
                if let Some(wanted) = wanted.get_mut(&sealed.path).filter(|now| now.sealed.differs(&sealed)) {
                    wanted.before = Some((sealed, until));
                }
            });
        }
        for ix in self.units.indices() {
            let Some(unit) = self.units.get_mut(ix) else { continue };
            match wanted.remove(&unit.object().path) {
                Some(Wanted { sealed, before }) => {
                    let other = unit.sealed().differs(&sealed);
                    let anew = **unit.source() != *sealed.lot.source;
                    // Once as the new revision seals it, it does not go back.
                    if anew && before.is_some() {
                        unit.apart_mut().before = before;
                    }
                    unit.dirty |= anew || other;
                    if other && unit.seen().is_some() {
                        unit.apart_mut().resealed = true;
                    }
                    unit.seal(sealed);
                }
                None => self.forget(ix),
            }
        }
        // Parents before children, so that a directory hands its slot down while its files are taken up.
        let mut fresh: Vec<_> = wanted.into_values().collect();
        fresh.sort_by(|a, b| a.sealed.path.cmp(&b.sealed.path));
        for Wanted { sealed, before } in fresh {
            self.ways.hold(&sealed.path);
            let mut unit = Unit::new(sealed);
            if before.is_some() {
                unit.apart_mut().before = before;
            }
            self.units.insert(unit);
        }
        // Where one has the same name in both, the newer one counts.
        let before = baselines.iter().filter_map(|baseline| baseline.before.as_ref());
        let writers: Vec<_> =
            before.chain(&baselines).flat_map(|baseline| baseline.writers.iter().cloned()).collect();
        self.world.declare(&writers);
        self.baselines = baselines;
        self.beside = Beside::of(&self.units);
        self.route_earlier();
        let dirty = self.units.iter().filter(|(_, unit)| unit.dirty).map(|(ix, _)| ix).collect();
        self.sweep("baseline", dirty);
    }
}

/// Each object of a baseline that has a place on this node.
fn each_object(baseline: &AcceptedBaseline, resolved: &[Resolved], mut take: impl FnMut(Sealed)) {
    let source = Arc::new(Source {
        name: baseline.name.clone(),
        revision: baseline.revision,
        commit: baseline.source_commit.clone(),
        writers: baseline.writers.to_vec(),
    });
    let of_it = |one: &&Resolved| one.baseline == baseline.name && one.revision == baseline.revision;
    let resolved = resolved.iter().filter(of_it);
    let own = std::iter::once((&baseline.objects, None));
    for (objects, concrete) in own.chain(resolved.map(|one| (&one.objects, Some(&one.container)))) {
        let container = concrete.cloned().flatten();
        let lot = Arc::new(Lot { objects: Arc::clone(objects), source: Arc::clone(&source), container });
        for at in 0..u32::try_from(objects.len()).unwrap_or(u32::MAX) {
            let sealed = Sealed { lot: Arc::clone(&lot), at };
            if concrete.is_some() || sealed.rule.anchor.is_host() {
                take(sealed);
            }
        }
    }
}
