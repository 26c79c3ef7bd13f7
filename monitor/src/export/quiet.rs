//! What a quiet node costs its receivers: routine records leave one by one only now and then, and checkpoints only where
//! they cover something that left. The journal keeps all of it, and a `summary` record tells how much of what there was.
//!
//! On a node where nothing is wrong that makes, a day, at most 12 routine records, 12 summaries and 24 checkpoints, and 32
//! more on the first one: below the 100 of the budget. Time is that of the records, so that a receiver that comes back
//! after a week gets what it would have got.

use std::time::Duration;

use crate::model::{Record, RecordBody, Time};

/// Routine records that may leave at once, and how long until there may be one more.
const ROUTINE: (u32, Duration) = (24, Duration::from_secs(2 * 3600));
/// Likewise for checkpoints that cover nothing but routine records and summaries.
const CHECKPOINTS: (u32, Duration) = (8, Duration::from_secs(3600));

/// A bucket that fills with time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u32,
    filled: Option<Time>,
    bounds: (u32, Duration),
}

impl Bucket {
    const fn new(bounds: (u32, Duration)) -> Self {
        Self { left: bounds.0, filled: None, bounds }
    }

    fn take(&mut self, now: Time) -> bool {
        let (capacity, every) = self.bounds;
        let every = i64::try_from(every.as_nanos()).unwrap_or(i64::MAX);
        let filled = self.filled.get_or_insert(now);
        let new = now.as_nanos().saturating_sub(filled.as_nanos()).max(0) / every;
        filled.0 = filled.0.saturating_add(new.saturating_mul(every));
        self.left = self.left.saturating_add(u32::try_from(new).unwrap_or(u32::MAX)).min(capacity);
        if self.left == 0 {
            return false;
        }
        if self.left == capacity {
            // A full bucket does not fill: the wait for the next one begins now.
            *filled = Time(filled.0.max(now.0));
        }
        self.left -= 1;
        true
    }
}

/// What left since the last checkpoint that did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Nothing,
    Routine,
    Something,
}

/// Decides for one receiver which records leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quiet {
    routine: Bucket,
    checkpoints: Bucket,
    left: Left,
}

impl Quiet {
    pub(super) const fn new() -> Self {
        Self { routine: Bucket::new(ROUTINE), checkpoints: Bucket::new(CHECKPOINTS), left: Left::Nothing }
    }

    /// Whether a record leaves. To be asked once for each record, in order.
    pub(super) fn leaves(&mut self, record: &Record) -> bool {
        match &record.body {
            RecordBody::Checkpoint(_) => {
                let leaves = match self.left {
                    Left::Nothing => false,
                    Left::Routine => self.checkpoints.take(record.time),
                    Left::Something => true,
                };
                if leaves {
                    self.left = Left::Nothing;
                }
                leaves
            }
            RecordBody::Summary(_) => {
                self.left = self.left.max(Left::Routine);
                true
            }
            body if body.is_routine() => {
                let leaves = self.routine.take(record.time);
                if leaves {
                    self.left = self.left.max(Left::Routine);
                }
                leaves
            }
            _ => {
                self.left = Left::Something;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Quiet;
    use crate::model::{CheckpointBody, Coverage, GapBody, Record, RecordBody, Severity, SummaryBody, Time};

    const MINUTE: i64 = 60_000_000_000;

    fn record(seq: u64, time: i64, body: RecordBody) -> Record {
        Record {
            seq,
            time: Time(time),
            node: "n".to_owned(),
            severity: Severity::Info,
            uid: String::new(),
            coverage: Coverage::Full,
            blind_to: Vec::new(),
            body,
        }
    }

    fn routine() -> RecordBody {
        let reason = "scrub".to_owned();
        RecordBody::ObjectVerified { reason, objects: 1, intact: 1, violated: 0, duration_ms: 1 }
    }

    fn checkpoint() -> RecordBody {
        RecordBody::Checkpoint(CheckpointBody { tree_size: 1, root: String::new(), note: String::new() })
    }

    fn summary() -> RecordBody {
        let counts = std::collections::BTreeMap::new();
        RecordBody::Summary(SummaryBody {
            from_seq: 1,
            to_seq: 1,
            from_time: Time(0),
            to_time: Time(0),
            counts,
            objects: Vec::new(),
        })
    }

    /// A day on which something routine happens every minute, with a checkpoint after it, and a summary every two hours.
    fn day(quiet: &mut Quiet, day: i64) -> usize {
        let mut left = 0;
        for minute in 0..1440 {
            let time = (day * 1440 + minute) * MINUTE;
            let summary = (minute % 120 == 0).then(summary);
            for (at, body) in [Some(routine()), summary, Some(checkpoint())].into_iter().flatten().enumerate()
            {
                left += usize::from(quiet.leaves(&record(1, time + at as i64, body)));
            }
        }
        left
    }

    #[test]
    fn a_quiet_day_stays_below_its_budget() {
        let mut quiet = Quiet::new();
        let days: Vec<usize> = (0..5).map(|at| day(&mut quiet, at)).collect();
        assert_eq!(days, [67, 36, 36, 36, 36]);
    }

    #[test]
    fn what_is_not_routine_leaves_at_once_and_the_next_checkpoint_with_it() {
        let mut quiet = Quiet::new();
        day(&mut quiet, 0);
        let time = 1440 * MINUTE;
        assert!(!quiet.leaves(&record(1, time, checkpoint())));
        assert!(quiet.leaves(&record(2, time, RecordBody::Gap(GapBody::default()))));
        assert!(quiet.leaves(&record(3, time, checkpoint())));
        assert!(!quiet.leaves(&record(4, time, checkpoint())));
    }

    #[test]
    fn a_clock_that_is_set_back_gives_nothing_away() {
        let mut quiet = Quiet::new();
        let mut left = 0;
        for at in 0..1000 {
            let time = if at % 2 == 0 { 5000 * MINUTE } else { -5000 * MINUTE };
            left += usize::from(quiet.leaves(&record(1, time, routine())));
        }
        assert_eq!(left, 24);
    }
}
