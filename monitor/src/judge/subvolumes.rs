//! What goes without an act on its name: a btrfs subvolume, with all that is in it, by an ioctl on the directory that it is in.

use std::time::{Duration, Instant};

use crate::model::{HostPath, Observation, Operation};

use super::Judge;
use super::acts::Act;
use super::route::itself_a_directory;
use super::schedule::SETTLE;

/// How long an ioctl on a directory is kept to explain what is missing below it. A look may be late, and acts on names tell of themselves.
const RECENT: Duration = Duration::from_secs(10);
/// At most so many of them.
const RECENT_MAX: usize = 32;

/// Ioctls on directories, of late.
#[derive(Debug, Default)]
pub(super) struct Ioctls(Vec<(Instant, HostPath, Observation)>);

impl Ioctls {
    fn push(&mut self, at: Instant, dir: HostPath, observation: Observation) {
        self.0.retain(|(at, ..)| at.elapsed() < RECENT);
        if self.0.len() == RECENT_MAX {
            self.0.remove(0);
        }
        self.0.push((at, dir, observation));
    }

    /// The last one on the nearest directory above, as an act on what is gone from that path.
    pub(super) fn takes(&self, path: &HostPath) -> Option<Act> {
        let above = |dir: &HostPath| path.below(dir).is_some_and(|rest| !rest.is_empty());
        let recent = self.0.iter().filter(|(at, dir, _)| at.elapsed() < RECENT && above(dir));
        let (.., observation) = recent.max_by_key(|(at, dir, _)| (dir.as_bytes().len(), *at))?;
        Some(Act::new(observation, path.clone(), None))
    }
}

impl Judge {
    /// Keeps an ioctl on a directory, and looks whether something below it is gone.
    pub(super) fn may_take_a_subvolume(&mut self, observation: &Observation) {
        if observation.operation != Operation::Ioctl || observation.denied || observation.failed {
            return;
        }
        let Some(dir) = itself_a_directory(observation, &self.slots, &self.units) else { return };
        let now = Instant::now();
        let in_it = |path: &HostPath| path.parent().as_ref() == Some(&dir);
        let in_it = self.units.iter().filter(|(_, unit)| unit.is_directory() && in_it(&unit.object().path));
        for ix in in_it.map(|(ix, _)| ix).collect::<Vec<_>>() {
            self.schedule.at_latest(ix, now + SETTLE);
        }
        self.ioctls.push(now, dir, observation.clone());
        self.ways.stale(SETTLE);
    }
}
