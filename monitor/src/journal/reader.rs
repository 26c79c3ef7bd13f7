//! Reads a journal, while it is written or at rest, with bounded memory.

use std::path::{Path, PathBuf};

use tlog_tiles::checkpoint::Checkpoint;
use tlog_tiles::tlog::Hash;

use super::files::{self, CHECKPOINT, Segment, TREE};
use super::frame::SegmentKind;
use super::keys::Meta;
use super::recover::Peek;
use super::scan::{Found, Scan, StoredRecord};
use super::tree::{self, Tree};
use super::{JournalError, TreeHead};
use crate::model::Time;

/// How far `time` may run behind the order of records.
const DISORDER_NS: i64 = 120_000_000_000;

/// A reader. It remembers where it was: reading on is cheap, going elsewhere scans one segment.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    journal: u128,
    place: Option<Place>,
}

/// Where the last read ended.
#[derive(Debug)]
struct Place {
    segment: Segment,
    scan: Scan,
    /// The record asked for next, if reading goes on.
    next: u64,
}

/// That a record is in the log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct InclusionProof {
    /// The record.
    pub seq: u64,
    /// Records the checkpoint covers; the record's leaf index is `seq - 1`.
    pub tree_size: u64,
    /// Base64 of the leaf's hash.
    pub leaf: String,
    /// Base64 of the hashes of RFC 6962 §2.1.1.
    pub hashes: Vec<String>,
    /// The signed checkpoint.
    pub checkpoint: String,
}

/// The newest checkpoint on disk.
pub(super) fn head_of(dir: &Path) -> Result<TreeHead, JournalError> {
    let Some(bytes) = files::read_small(&dir.join(CHECKPOINT), 1 << 20)? else {
        return Ok(TreeHead::default());
    };
    let bad = || JournalError::Tampered(format!("{CHECKPOINT}: not a checkpoint"));
    let note = String::from_utf8(bytes).map_err(|_| bad())?;
    let text = note.split_once("\n\n").map(|(text, _)| format!("{text}\n")).ok_or_else(bad)?;
    let parsed = Checkpoint::from_bytes(text.as_bytes()).map_err(|_| bad())?;
    Ok(TreeHead { tree_size: parsed.size(), note })
}

impl Reader {
    /// Opens the journal in `dir` for reading.
    ///
    /// # Errors
    /// There is none, or its `meta.json` cannot be read.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let meta = Meta::load(dir)?.ok_or_else(|| JournalError::Missing(dir.to_path_buf()))?;
        Ok(Self { dir: dir.to_path_buf(), journal: meta.number().unwrap_or_default(), place: None })
    }

    /// The journal's id, a ULID: sequence numbers of different journals have nothing to do with each other.
    #[must_use]
    pub fn journal_id(&self) -> String {
        ulid::Ulid(self.journal).to_string()
    }

    /// Reads records from `seq` on, at most so many, and at most so many bytes (but at least one record if there is
    /// one). Records that were evicted are passed over: watch the numbers.
    ///
    /// # Errors
    /// The file system refuses, or a segment is damaged; [`Reader::after_damage`] tells where reading can go on.
    pub fn read_from(
        &mut self,
        seq: u64,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<StoredRecord>, JournalError> {
        let mut out: Vec<StoredRecord> = Vec::new();
        let mut bytes = 0;
        let mut place = match self.place.take() {
            Some(place) if place.next == seq => place,
            _ => match self.locate(seq)? {
                Some(place) => place,
                None => return Ok(out),
            },
        };
        let mut reread = false;
        while out.len() < max_records && (bytes < max_bytes || out.is_empty()) {
            let at = place.scan.at();
            match place.scan.next().map_err(JournalError::io(&place.segment.path))? {
                Found::Record(record) => {
                    reread = false;
                    if record.seq >= seq {
                        bytes += record.payload.len();
                        place.next = record.seq + 1;
                        out.push(record);
                    }
                }
                Found::End | Found::Short(_) => match self.follow(&place)? {
                    Some(_) if !reread => {
                        // There is a segment behind: this one is closed. Look once more at its end.
                        reread = true;
                        place.scan.forget();
                    }
                    Some(next) => {
                        if let Found::Short(_) = place.scan.next().map_err(JournalError::io(&next.path))? {
                            return self.damaged(&place, at, out);
                        }
                        let Some(scan) = self.scan(&next)? else { break };
                        (place.segment, place.scan, reread) = (next, scan, false);
                    }
                    None => break,
                },
                // It may have been seen half written.
                Found::Bad(_) if !reread => {
                    reread = true;
                    place.scan.forget();
                }
                Found::Bad(_) => return self.damaged(&place, at, out),
            }
        }
        self.place = Some(place);
        Ok(out)
    }

    fn damaged(
        &mut self,
        place: &Place,
        at: u64,
        out: Vec<StoredRecord>,
    ) -> Result<Vec<StoredRecord>, JournalError> {
        self.place = None;
        if !out.is_empty() {
            return Ok(out);
        }
        let name = files::segment_name(place.segment.kind, place.segment.first);
        Err(JournalError::Tampered(format!("{name}: damaged at offset {at}")))
    }

    /// The first record behind the segment that `seq` is in, if there is such a segment.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn after_damage(&self, seq: u64) -> Result<Option<u64>, JournalError> {
        Ok(files::list(&self.dir)?.segments.iter().map(|s| s.first).find(|first| *first > seq))
    }

    /// The first record there is; `None` while there is none.
    ///
    /// # Errors
    /// As [`Reader::read_from`].
    pub fn first_seq(&mut self) -> Result<Option<u64>, JournalError> {
        Ok(self.read_from(1, 1, 1)?.first().map(|r| r.seq))
    }

    /// The last record there is; 0 while there is none.
    ///
    /// # Errors
    /// As [`Reader::read_from`].
    pub fn last_seq(&mut self) -> Result<u64, JournalError> {
        let first = files::list(&self.dir)?
            .segments
            .iter()
            .rev()
            .find(|s| s.kind == SegmentKind::Log)
            .map(|s| s.first);
        let Some(mut next) = first else { return Ok(0) };
        loop {
            let records = self.read_from(next, 1024, 1 << 20)?;
            match records.last() {
                Some(last) => next = last.seq + 1,
                None => return Ok(next - 1),
            }
        }
    }

    /// From where to read to see all records of `since` or later.
    ///
    /// # Errors
    /// As [`Reader::read_from`].
    pub fn seq_since(&mut self, since: Time) -> Result<u64, JournalError> {
        let mut start = 1;
        for segment in files::list(&self.dir)?.segments {
            let Some(first) = self.read_from(segment.first, 1, 1)?.pop() else { break };
            if Peek::parse(&first)?.time.as_nanos() >= since.as_nanos().saturating_sub(DISORDER_NS) {
                break;
            }
            start = first.seq;
        }
        loop {
            let records = self.read_from(start, 1024, 1 << 20)?;
            let Some(last) = records.last() else { return Ok(start) };
            for record in &records {
                if Peek::parse(record)?.time >= since {
                    return Ok(record.seq);
                }
            }
            start = last.seq + 1;
        }
    }

    /// The newest checkpoint; its note is empty before the first one.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn tree_head(&self) -> Result<TreeHead, JournalError> {
        head_of(&self.dir)
    }

    /// Proves that record `seq` is in the log of the newest checkpoint.
    ///
    /// # Errors
    /// The newest checkpoint does not cover it.
    pub fn inclusion_proof(&self, seq: u64) -> Result<InclusionProof, JournalError> {
        let head = self.tree_head()?;
        if seq == 0 || seq > head.tree_size {
            let what = format!("{seq}, the newest checkpoint covers {}", head.tree_size);
            return Err(JournalError::OutOfRange { what, last: head.tree_size });
        }
        let tree = self.tree()?;
        let io = |e| JournalError::io(self.dir.join(TREE))(e);
        let hashes = tree.prove_leaf(head.tree_size, seq - 1).map_err(io)?;
        Ok(InclusionProof {
            seq,
            tree_size: head.tree_size,
            leaf: tree.leaf(seq - 1).map_err(io)?.to_string(),
            hashes: hashes.iter().map(Hash::to_string).collect(),
            checkpoint: head.note,
        })
    }

    /// Proves that the log of `old` records is a prefix of that of `new` records: base64 of the hashes of RFC 6962
    /// §2.1.2.
    ///
    /// # Errors
    /// The log never had those sizes.
    pub fn consistency_proof(&self, old: u64, new: u64) -> Result<Vec<String>, JournalError> {
        let tree = self.tree()?;
        if old == 0 || old > new || new > tree.leaves() {
            return Err(JournalError::OutOfRange { what: format!("{old} to {new}"), last: tree.leaves() });
        }
        let hashes = tree.prove_prefix(old, new).map_err(JournalError::io(self.dir.join(TREE)))?;
        Ok(hashes.iter().map(Hash::to_string).collect())
    }

    fn tree(&self) -> Result<Tree, JournalError> {
        let path = self.dir.join(TREE);
        let file = files::open_r(&path)?;
        let len = file.metadata().map_err(JournalError::io(&path))?.len();
        Ok(Tree::new(file, tree::leaves_in(len)))
    }

    /// Where `seq` is, or what follows it if it was evicted.
    fn locate(&self, seq: u64) -> Result<Option<Place>, JournalError> {
        loop {
            let segments = files::list(&self.dir)?.segments;
            let Some(segment) = segments.iter().rev().find(|s| s.first <= seq).or(segments.first()) else {
                return Ok(None);
            };
            if let Some(scan) = self.scan(segment)? {
                return Ok(Some(Place { segment: segment.clone(), scan, next: seq }));
            }
        }
    }

    /// The segment behind this one.
    fn follow(&self, place: &Place) -> Result<Option<Segment>, JournalError> {
        let this = (place.segment.first, place.segment.kind == SegmentKind::Log);
        Ok(files::list(&self.dir)?
            .segments
            .into_iter()
            .find(|s| (s.first, s.kind == SegmentKind::Log) > this))
    }

    /// Opens a segment; `None` if it was evicted meanwhile.
    fn scan(&self, segment: &Segment) -> Result<Option<Scan>, JournalError> {
        let Some(file) = files::open_if_there(&segment.path)? else { return Ok(None) };
        files::read_head(segment, &file, self.journal)?;
        Ok(Some(Scan::new(file)))
    }
}
