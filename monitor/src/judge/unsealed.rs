//! Mesh files that no object in force covers: told once each, many at a time, and not too often.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::model::{Draft, HostPath, Record, RecordBody, Severity};

use super::Judge;

/// Paths named in one record.
const MAX_NAMED: usize = 64;
/// Paths remembered as told, beyond which those that are gone are forgotten.
const MAX_TOLD: usize = 40_000;
/// At most so many records in [`WINDOW`]: pods that come and go all day must not make a node loud.
const MAX_RECORDS: usize = 8;
const WINDOW: Duration = Duration::from_secs(2 * 3600);

/// What has been told of files that nothing seals.
#[derive(Debug, Default)]
pub(super) struct Unsealed {
    told: HashSet<HostPath>,
    truncated: bool,
    /// The files or the seals changed since it was last looked at.
    pub(super) due: bool,
    records: VecDeque<Instant>,
}

impl Unsealed {
    /// Takes up a record of an earlier run.
    pub(super) fn replay(&mut self, record: &Record) {
        if let RecordBody::ObjectUnsealed { objects, truncated, .. } = &record.body {
            self.told.extend(objects.iter().cloned());
            self.truncated = *truncated;
        }
    }

    /// Whether another record may be made now.
    fn may_tell(&mut self, now: Instant) -> bool {
        while self.records.front().is_some_and(|made| now.duration_since(*made) >= WINDOW) {
            self.records.pop_front();
        }
        self.records.len() < MAX_RECORDS
    }

    /// What there is to tell of these, if anything.
    fn news(&mut self, unsealed: Vec<HostPath>, truncated: bool) -> Option<RecordBody> {
        let more = truncated && !self.truncated;
        self.truncated = truncated;
        if self.told.len() > MAX_TOLD {
            let there: HashSet<&HostPath> = unsealed.iter().collect();
            self.told.retain(|path| there.contains(path));
        }
        let mut new: Vec<HostPath> = unsealed.into_iter().filter(|path| !self.told.contains(path)).collect();
        if new.is_empty() && !more {
            return None;
        }
        self.told.extend(new.iter().cloned());
        let total = new.len() as u64;
        new.truncate(MAX_NAMED);
        Some(RecordBody::ObjectUnsealed { objects: new, total, truncated })
    }
}

impl Judge {
    /// Tells of mesh files that are in no baseline, once what is in one has been taken up.
    pub(super) fn tell_unsealed(&mut self) {
        let now = Instant::now();
        let settled = self.first_done.is_none() && self.sweep.is_none();
        if !self.unsealed.due || !settled || !self.unsealed.may_tell(now) {
            return;
        }
        self.unsealed.due = false;
        let truncated = self.world.mesh_files().truncated;
        let paths = self.unsealed();
        if let Some(body) = self.unsealed.news(paths, truncated) {
            self.unsealed.records.push_back(now);
            // Without a baseline nothing is sealed: a normal first hour.
            let signed = self.baselines.iter().any(|baseline| !baseline.is_first_use());
            let severity = if signed { Severity::Low } else { Severity::Info };
            self.out.push(Draft::now(severity, body));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{MAX_NAMED, MAX_RECORDS, Unsealed, WINDOW};
    use crate::model::{HostPath, RecordBody};

    fn paths(range: std::ops::Range<usize>) -> Vec<HostPath> {
        range.map(|at| HostPath::from_text(&format!("/f{at}"))).collect()
    }

    fn told(body: Option<RecordBody>) -> Option<(usize, u64, bool)> {
        match body? {
            RecordBody::ObjectUnsealed { objects, total, truncated } => {
                Some((objects.len(), total, truncated))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_is_told_once_and_many_in_one_record() {
        let mut unsealed = Unsealed::default();
        assert_eq!(told(unsealed.news(Vec::new(), false)), None);
        assert_eq!(told(unsealed.news(paths(0..2), false)), Some((2, 2, false)));
        assert_eq!(told(unsealed.news(paths(0..2), false)), None);
        assert_eq!(told(unsealed.news(paths(0..500), false)), Some((MAX_NAMED, 498, false)));
        assert_eq!(told(unsealed.news(paths(0..500), true)), Some((0, 0, true)));
        assert_eq!(told(unsealed.news(paths(0..500), true)), None);
    }

    #[test]
    fn a_node_that_changes_all_day_is_not_loud() {
        let mut unsealed = Unsealed::default();
        let start = Instant::now();
        for _ in 0..MAX_RECORDS {
            assert!(unsealed.may_tell(start));
            unsealed.records.push_back(start);
        }
        assert!(!unsealed.may_tell(start + WINDOW - Duration::from_secs(1)));
        assert!(unsealed.may_tell(start + WINDOW));
    }
}
