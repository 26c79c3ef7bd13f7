//! When each unit is due for its next look.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::slots::Ix;

/// A unit is looked at once nothing happened to it for this long.
pub const SETTLE: Duration = Duration::from_millis(40);
/// But no later than this after the first act.
pub(crate) const SETTLE_AT_MOST: Duration = Duration::from_millis(500);
/// The same while a violation is open on it: a storm becomes a few updates a second.
pub(crate) const SETTLE_OPEN: Duration = Duration::from_millis(250);

/// Due times, earliest first; a unit stands in it once.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    by_time: BTreeSet<(Instant, Ix)>,
    by_unit: HashMap<Ix, Instant>,
}

impl Schedule {
    /// The unit is due at `at`, instead of whenever it was before.
    pub(crate) fn set(&mut self, ix: Ix, at: Instant) {
        if let Some(before) = self.by_unit.insert(ix, at) {
            self.by_time.remove(&(before, ix));
        }
        self.by_time.insert((at, ix));
    }

    /// The unit is due at `at` unless it is due sooner.
    pub(crate) fn at_latest(&mut self, ix: Ix, at: Instant) {
        if self.by_unit.get(&ix).is_none_or(|known| *known > at) {
            self.set(ix, at);
        }
    }

    /// Takes the unit off.
    pub(crate) fn cancel(&mut self, ix: Ix) {
        if let Some(at) = self.by_unit.remove(&ix) {
            self.by_time.remove(&(at, ix));
        }
    }

    /// When the next unit is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the next unit that is due by `now`.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Ix> {
        let (at, ix) = *self.by_time.first().filter(|(at, _)| *at <= now)?;
        self.by_time.remove(&(at, ix));
        self.by_unit.remove(&ix);
        Some(ix)
    }

    /// Units waiting.
    pub(crate) fn len(&self) -> usize {
        self.by_unit.len()
    }
}

/// When a unit with acts since `first` and one just now has settled.
pub(crate) fn settles(first: Instant, now: Instant, open: bool) -> Instant {
    let wait = if open { SETTLE_OPEN } else { SETTLE };
    (now + wait).min(first + SETTLE_AT_MOST).max(now)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{SETTLE, SETTLE_AT_MOST, Schedule, settles};

    #[test]
    fn the_earliest_is_taken_first_and_once() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        schedule.set(1, now + Duration::from_secs(2));
        schedule.set(2, now + Duration::from_secs(1));
        schedule.at_latest(1, now);
        assert_eq!((schedule.len(), schedule.pop(now), schedule.pop(now)), (2, Some(1), None));
        schedule.cancel(2);
        assert_eq!((schedule.len(), schedule.next()), (0, None));
    }

    #[test]
    fn a_storm_does_not_put_the_look_off_for_ever() {
        let first = Instant::now();
        assert_eq!(settles(first, first, false), first + SETTLE);
        let late = first + SETTLE_AT_MOST + Duration::from_secs(1);
        assert_eq!(settles(first, late, false), late);
    }
}
