//! What was done while no agent ran: known by path, and judged with the first look at each object.

use std::time::Instant;

use crate::model::{HostPath, Observation, Time};

use super::Judge;
use super::acts::Act;
use super::route::{Places as _, in_layer};

/// Acts that wait for the baselines that say whether they concern anything.
const HELD_MAX: usize = 65_536;
/// Why the others are counted only.
const TOO_MANY: &str =
    "more acts of the time before this agent than are kept until its baselines are in force";

impl Judge {
    /// Takes an act of the time before this agent watched.
    pub(crate) fn earlier(&mut self, observation: &Observation, path: HostPath, to: Option<HostPath>) {
        let mut act = Act::new(observation, path.clone(), to.clone());
        if act.runs_code() {
            let Some(foreign) = self.world.foreign_code(observation) else { return };
            act.of_code(&foreign);
        }
        for at in std::iter::once(path).chain(to) {
            if self.earlier.len() < HELD_MAX {
                self.earlier.push((at, act.clone()));
            } else {
                self.earlier_more = self.earlier_more.saturating_add(1);
            }
        }
        if !self.baselines.is_empty() {
            self.route_earlier();
        }
    }

    /// Hands the acts to the units they concern: the object, and the directory that it lies in.
    pub(crate) fn route_earlier(&mut self) {
        let more = std::mem::take(&mut self.earlier_more);
        if more > 0 {
            self.lost("judge", more, TOO_MANY, None, Time::now());
        }
        let now = Instant::now();
        for (path, act) in std::mem::take(&mut self.earlier) {
            let around = path.parent().and_then(|dir| self.owner(&dir));
            let directory = around.filter(|ix| self.units.get(*ix).is_some_and(super::Unit::is_directory));
            let mut units: Vec<_> = self.units.find(&path).into_iter().chain(directory).collect();
            units.dedup();
            let made: Vec<_> = self.units.made_of(&path).to_vec();
            for ix in made.into_iter().filter(|ix| !units.contains(ix)) {
                let act = in_layer(&act, ix, &self.units);
                self.acted(ix, act, now);
            }
            for ix in units {
                self.acted(ix, act.clone(), now);
            }
        }
    }
}
