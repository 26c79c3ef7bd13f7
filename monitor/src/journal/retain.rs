//! Keeps the journal within its bound: drops the oldest segments, keeps violations that were not delivered, and
//! declares what is gone before it goes.

use std::fs;
use std::ops::RangeInclusive;

use super::files::{self, Segment};
use super::frame::{self, SEGMENT_HEAD, SegmentHead, SegmentKind};
use super::recover::{self, Known, KnownKept, Peek};
use super::scan::{Found, Scan, StoredRecord};
use super::writer::{Batch, Writer};
use super::{Exported, JournalError};
use crate::model::{Draft, GapBody, RecordBody, Severity};

/// Kept segments named in a checkpoint; the oldest is dropped beyond that.
const MAX_KEPT: usize = 64;

/// What goes, and what of it nobody has received.
#[derive(Default)]
struct Eviction {
    /// Violations of the evicted segments that are kept, as frames,
    frames: Vec<u8>,
    /// their numbers, and where their frames begin.
    kept: Vec<(u64, usize)>,
    /// Records that nobody received and that are not kept.
    lost: u64,
    /// First and last of those.
    range: Option<RangeInclusive<u64>>,
    damaged: Option<String>,
}

impl Eviction {
    fn lose(&mut self, seqs: RangeInclusive<u64>, records: u64) {
        self.lost += records;
        self.range = Some(match self.range.take() {
            Some(r) => *r.start().min(seqs.start())..=*r.end().max(seqs.end()),
            None => seqs,
        });
    }

    /// Keeps a violation, as far as there is room in the end.
    fn keep(&mut self, record: &StoredRecord) {
        let start = self.frames.len();
        if frame::encode(&mut self.frames, record.seq, &record.payload).is_ok() {
            self.kept.push((record.seq, start));
        }
    }

    /// Loses the oldest of what is kept until the rest takes at most so many bytes. Returns the numbers of these.
    fn trim(&mut self, bytes: u64) -> Vec<u64> {
        let over = self.frames.len().saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
        let gone = self.kept.partition_point(|(_, start)| *start < over);
        self.frames.drain(..self.kept.get(gone).map_or(self.frames.len(), |(_, start)| *start));
        let rest = self.kept.split_off(gone);
        if let (Some((first, _)), Some((last, _))) = (self.kept.first(), self.kept.last()) {
            self.lose(*first..=*last, gone as u64);
        }
        self.kept = rest;
        self.kept.iter().map(|(seq, _)| *seq).collect()
    }
}

impl Writer {
    /// Brings the journal back within its bound. False if the journal closes before it could.
    pub(super) fn evict(&mut self) -> bool {
        let exported = *self.signals.exported.borrow();
        let delivered: Vec<KnownKept> =
            self.log.kept.iter().filter(|k| k.last <= exported.violations).cloned().collect();
        self.log.kept.retain(|k| k.last > exported.violations);
        let victims = self.victims();
        if victims.is_empty() && delivered.is_empty() {
            return true;
        }
        let mut batch = Batch::default();
        let mut removed: Vec<_> = delivered.iter().map(|k| (SegmentKind::Kept, k.line.first)).collect();
        let undo = (self.log.evicted, self.log.kept.clone());
        if !victims.is_empty() {
            match self.declare(&victims, exported, &mut batch) {
                Ok(mut gone) => removed.append(&mut gone),
                Err(e) => {
                    // Tried again after the next batch: the bound is passed a little, nothing is lost.
                    (self.log.evicted, self.log.kept) = undo;
                    self.log.kept.extend(delivered);
                    self.failing(&e.to_string());
                    return true;
                }
            }
        }
        self.place_checkpoint(&mut batch, false);
        if !batch.has_checkpoint() {
            (self.log.evicted, self.log.kept) = undo;
            self.log.kept.extend(delivered);
            return self.commit(batch);
        }
        if !self.commit(batch) {
            return false;
        }
        for (kind, first) in removed {
            drop(fs::remove_file(self.log.dir.join(files::segment_name(kind, first))));
        }
        self.log.segments.drain(..victims.len());
        true
    }

    /// The oldest closed segments that must go.
    fn victims(&self) -> Vec<Known> {
        let max = self.options.max_bytes;
        let mut total = self.log.tree.len()
            + self.log.segments.iter().map(|s| s.len).sum::<u64>()
            + self.log.kept.iter().map(|k| k.len).sum::<u64>();
        if total <= max {
            return Vec::new();
        }
        let closed = self.log.segments.len().saturating_sub(1);
        let mut out = Vec::new();
        for segment in self.log.segments.iter().take(closed) {
            // More than needed now, so that it is not needed again at once.
            if total <= max / 8 * 7 {
                break;
            }
            total -= segment.len;
            out.push(*segment);
        }
        out
    }

    /// Puts a `gap` record for the victims into the batch. Returns the files that may go once it is durable.
    fn declare(
        &mut self,
        victims: &[Known],
        exported: Exported,
        batch: &mut Batch,
    ) -> Result<Vec<(SegmentKind, u64)>, JournalError> {
        let mut eviction = Eviction::default();
        let first = victims.first().map_or(1, |v| v.first);
        let to = self.log.segments.get(victims.len()).map_or(self.log.next_seq(), |s| s.first) - 1;
        for (i, victim) in victims.iter().enumerate() {
            let end = self.log.segments.get(i + 1).map_or(to, |s| s.first - 1);
            self.sift(*victim, end, exported, &mut eviction)?;
        }
        let mut gone: Vec<_> = victims.iter().map(|v| (SegmentKind::Log, v.first)).collect();
        let bound = self.options.max_bytes / 4;
        let kept = eviction.trim(bound.saturating_sub(SEGMENT_HEAD as u64));
        if let Some(last) = kept.last().copied() {
            let head = SegmentHead {
                kind: SegmentKind::Kept,
                journal: self.log.id,
                first,
                prev_first: 0,
                prev_len: 0,
            };
            let bytes = [head.encode().as_slice(), &eviction.frames].concat();
            files::replace(&self.log.dir, &files::segment_name(SegmentKind::Kept, first), &bytes)?;
            let line = recover::kept_line(first, &kept);
            self.log.kept.push(KnownKept { line, last, len: bytes.len() as u64 });
        }
        // The new one alone is not too large: only older ones go.
        while self.log.kept.len() > MAX_KEPT || self.log.kept.iter().map(|k| k.len).sum::<u64>() > bound {
            let oldest = self.log.kept.remove(0);
            eviction.lose(oldest.line.first..=oldest.last, oldest.line.records);
            gone.push((SegmentKind::Kept, oldest.line.first));
        }
        let kept = kept.len();
        let reason = if eviction.lost > 0 || kept > 0 {
            format!(
                "evicted before delivery: the journal reached its bound of {} bytes; {kept} violations are kept{}",
                self.options.max_bytes,
                eviction.damaged.map(|d| format!("; {d}")).unwrap_or_default()
            )
        } else {
            format!(
                "evicted after delivery: the journal reached its bound of {} bytes",
                self.options.max_bytes
            )
        };
        let named = eviction.range.unwrap_or(first..=to);
        let body = RecordBody::Gap(GapBody {
            at: "journal".to_owned(),
            lost: eviction.lost,
            reason,
            objects: Vec::new(),
            from_seq: Some(*named.start()),
            to_seq: Some(*named.end()),
            reconciled: eviction.lost == 0,
        });
        let severity = if eviction.lost > 0 { Severity::High } else { Severity::Info };
        let leaves = self.log.tree.leaves();
        let record = self
            .place_one(batch, Draft::now(severity, body))
            .inspect_err(|_| self.log.tree.rollback(leaves))?;
        self.log.evicted = Some((to, record.seq));
        Ok(gone)
    }

    /// Sorts the records of a segment into delivered, kept and lost.
    fn sift(
        &self,
        victim: Known,
        end: u64,
        exported: Exported,
        eviction: &mut Eviction,
    ) -> Result<(), JournalError> {
        let name = files::segment_name(SegmentKind::Log, victim.first);
        let path = self.log.dir.join(&name);
        let segment = Segment { path: path.clone(), kind: SegmentKind::Log, first: victim.first };
        if end <= exported.rest && end <= exported.violations {
            return Ok(());
        }
        let opened = files::open_r(&path)
            .and_then(|file| files::read_head(&segment, &file, self.log.id).map(|_head| file));
        let file = match opened {
            Ok(file) => file,
            // It cannot be read later either: kept for that, the journal would outgrow its bound.
            Err(JournalError::Tampered(what)) => {
                eviction.lose(victim.first..=end, end - victim.first + 1);
                eviction.damaged = Some(what);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let mut scan = Scan::new(file);
        let mut next = victim.first;
        while let Found::Record(record) = scan.next().map_err(JournalError::io(&path))? {
            next = record.seq + 1;
            let violation = Peek::parse(&record).is_ok_and(|peek| peek.is_violation());
            if violation && record.seq > exported.violations {
                eviction.keep(&record);
            } else if !violation && record.seq > exported.rest {
                eviction.lose(record.seq..=record.seq, 1);
            }
        }
        if next <= end {
            eviction.lose(next..=end, end - next + 1);
            eviction.damaged = Some(format!("{name} was damaged at offset {}", scan.at()));
        }
        Ok(())
    }
}
