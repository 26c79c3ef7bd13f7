//! The one writer: a thread that gathers what is queued, writes it as one batch, and answers once it is durable.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use base64::Engine as _;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::checkpoint::{self, Extra};
use super::files::{self, CHECKPOINT, Op};
use super::recover::{self, Known, Log};
use super::{Exported, JournalError, JournalHealth, Options, QUEUE, Stamp, TreeHead, frame};
use crate::model::{CheckpointBody, Coverage, Draft, Record, RecordBody, Severity, Time};

/// Payload bytes gathered into one batch before it is written.
const BATCH_BYTES: usize = 4 << 20;
/// Between two tries of a write that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long a failing disk may hold up a shutdown.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(3);

pub(super) type Reply<T> = oneshot::Sender<Result<T, JournalError>>;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Message {
    Append {
        drafts: Vec<Draft>,
        coverage: Stamp,
        permit: OwnedSemaphorePermit,
        reply: Reply<Vec<Record>>,
    },
    /// A checkpoint now, if anything is new.
    Checkpoint(Reply<()>),
    Shutdown(Reply<()>),
}

/// What the writer tells, and is told, beside messages.
#[derive(Debug)]
pub(super) struct Signals {
    pub(super) durable: watch::Sender<u64>,
    pub(super) health: watch::Sender<JournalHealth>,
    pub(super) head: watch::Sender<TreeHead>,
    pub(super) exported: watch::Receiver<Exported>,
    pub(super) closing: Arc<AtomicBool>,
}

/// One append and its records, once they have their places.
struct Placed {
    records: Vec<Record>,
    reply: Reply<Vec<Record>>,
    permit: OwnedSemaphorePermit,
}

/// Frames on their way to the disk.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    placed: Vec<Placed>,
    /// Where segments end inside this batch.
    cuts: Vec<Cut>,
    /// A checkpoint behind the last of these.
    note: Option<Signed>,
}

/// A checkpoint in a batch.
struct Signed {
    /// Its record's number.
    seq: u64,
    note: String,
}

/// The end of a segment inside a batch.
struct Cut {
    /// Bytes of the batch before it.
    end: usize,
    /// Its last record.
    checkpoint: Signed,
}

impl Batch {
    pub(super) const fn has_checkpoint(&self) -> bool {
        self.note.is_some()
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) log: Log,
    pub(super) options: Options,
    pub(super) signals: Signals,
    due: Option<Instant>,
    /// Coverage as last stamped, for the writer's own records.
    coverage: Stamp,
}

impl Writer {
    pub(super) fn new(log: Log, options: Options, signals: Signals) -> Self {
        let due = (log.tree.leaves() > log.checkpointed).then(Instant::now);
        Self {
            log,
            options,
            signals,
            due,
            coverage: Arc::new((Coverage::Reduced, vec!["starting".to_owned()])),
        }
    }

    /// Runs until shut down, or until all handles are gone.
    pub(super) fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            let next = match self.due {
                Some(due) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let mut batch = Batch::default();
            let mut asked = Vec::new();
            let mut shutdown = None;
            match next {
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(first) => {
                    let mut next = Some(first);
                    let mut gathered = 0;
                    while let Some(message) = next.take() {
                        match message {
                            Message::Append { drafts, coverage, permit, reply } => {
                                gathered += drafts.len();
                                self.coverage = coverage;
                                self.place(&mut batch, drafts, permit, reply);
                            }
                            Message::Checkpoint(reply) => asked.push(reply),
                            Message::Shutdown(reply) => shutdown = Some(reply),
                        }
                        if shutdown.is_none() && gathered < QUEUE && batch.bytes.len() < BATCH_BYTES {
                            next = inbox.try_recv().ok();
                        }
                    }
                }
            }
            let done = self.finish(batch, !asked.is_empty(), shutdown.is_some());
            for reply in asked {
                drop(reply.send(if done { Ok(()) } else { Err(JournalError::Closed) }));
            }
            if let Some(reply) = shutdown {
                drop(reply.send(if done { Ok(()) } else { Err(JournalError::Closed) }));
                return;
            }
            if !done {
                return;
            }
        }
    }

    /// Writes the batch, with a checkpoint if one is due; then rotates and evicts. False if the writer must end.
    fn finish(&mut self, mut batch: Batch, asked: bool, stop: bool) -> bool {
        let new = self.uncovered(&batch);
        let due = self.due.is_some_and(|due| due <= Instant::now()) || new >= self.options.checkpoint_records;
        let full = self.is_full(&batch);
        let any = self.log.tree.leaves() > 0;
        if (new > 0 && (asked || due || full)) || (stop && any) {
            self.place_checkpoint(&mut batch, stop);
        }
        if !self.commit(batch) {
            return false;
        }
        if full && !stop && self.log.checkpointed == self.log.tree.leaves() {
            self.rotate(self.log.checkpointed);
        }
        stop || self.evict()
    }

    /// Records behind the newest checkpoint, written or in the batch.
    fn uncovered(&self, batch: &Batch) -> u64 {
        let covered = batch.cuts.last().map_or(self.log.checkpointed, |cut| cut.checkpoint.seq);
        self.log.tree.leaves() - covered
    }

    /// Whether the segment has its size once the batch is in it.
    fn is_full(&self, batch: &Batch) -> bool {
        let (len, end) =
            batch.cuts.last().map_or((self.segment_len(), 0), |cut| (frame::SEGMENT_HEAD as u64, cut.end));
        len + (batch.bytes.len() - end) as u64 >= self.options.segment_bytes()
    }

    /// Ends the segment inside the batch if it is full: one batch may be larger than several, and what is evicted are whole
    /// segments.
    fn cut(&mut self, batch: &mut Batch) {
        if self.uncovered(batch) == 0 || !self.is_full(batch) {
            return;
        }
        self.place_checkpoint(batch, false);
        if let Some(checkpoint) = batch.note.take() {
            batch.cuts.push(Cut { end: batch.bytes.len(), checkpoint });
        }
    }

    pub(super) fn segment_len(&self) -> u64 {
        self.log.segments.last().map_or(0, |s| s.len)
    }

    /// Gives drafts their places. Either all of them get one, or the caller gets the error.
    fn place(
        &mut self,
        batch: &mut Batch,
        drafts: Vec<Draft>,
        permit: OwnedSemaphorePermit,
        reply: Reply<Vec<Record>>,
    ) {
        let (leaves, bytes, cuts) = (self.log.tree.leaves(), batch.bytes.len(), batch.cuts.len());
        let mut place = |draft| {
            self.cut(batch);
            self.place_one(batch, draft)
        };
        match drafts.into_iter().map(&mut place).collect() {
            Ok(records) => batch.placed.push(Placed { records, reply, permit }),
            Err(e) => {
                self.log.tree.rollback(leaves);
                batch.bytes.truncate(bytes);
                batch.cuts.truncate(cuts);
                drop(reply.send(Err(e)));
            }
        }
    }

    /// Gives one draft its place.
    pub(super) fn place_one(&mut self, batch: &mut Batch, draft: Draft) -> Result<Record, JournalError> {
        let (coverage, blind_to) = (*self.coverage).clone();
        let record = Record {
            seq: self.log.next_seq(),
            time: draft.time,
            node: self.options.node.clone(),
            severity: draft.severity,
            uid: draft.uid,
            coverage,
            blind_to,
            body: draft.body,
        };
        let kind = record.body.kind();
        let payload =
            serde_json::to_vec(&record).map_err(|e| JournalError::Encode { kind, reason: e.to_string() })?;
        frame::encode(&mut batch.bytes, record.seq, &payload)
            .map_err(|bytes| JournalError::TooLarge { kind, bytes })?;
        self.log.tree.push(&payload).map_err(JournalError::io(self.log.dir.join(files::TREE)))?;
        Ok(record)
    }

    /// Adds a checkpoint over all records before it.
    pub(super) fn place_checkpoint(&mut self, batch: &mut Batch, clean_stop: bool) {
        let size = self.log.tree.leaves();
        let extra = Extra {
            evicted: self.log.evicted,
            kept: self.log.kept.iter().map(|k| k.line.clone()).collect(),
            clean_stop,
        };
        let made = self.log.tree.root(size).map_err(|e| e.to_string()).and_then(|root| {
            let note = checkpoint::sign(&self.log.key, &self.log.origin, size, root, &extra)?;
            Ok((base64::engine::general_purpose::STANDARD.encode(root.0), note))
        });
        let (root, note) = match made {
            Ok(made) => made,
            Err(e) => return self.failing(&format!("checkpoint: {e}")),
        };
        let body = RecordBody::Checkpoint(CheckpointBody { tree_size: size, root, note: note.clone() });
        let draft = Draft::now(Severity::Info, body);
        let before = (size, batch.bytes.len());
        match self.place_one(batch, draft) {
            Ok(record) => batch.note = Some(Signed { seq: record.seq, note }),
            Err(e) => {
                self.log.tree.rollback(before.0);
                batch.bytes.truncate(before.1);
                self.failing(&e.to_string());
            }
        }
    }

    /// Makes the batch durable, however long it takes, and answers. False if the journal closes before it could.
    pub(super) fn commit(&mut self, batch: Batch) -> bool {
        let written = self.write_batch(&batch.bytes, batch.cuts, batch.note);
        for placed in batch.placed {
            let answer = match &written {
                Ok(()) => Ok(placed.records),
                Err(e) => {
                    let source = io::Error::new(e.kind(), e.to_string());
                    Err(JournalError::Io { path: self.segment_path(), source })
                }
            };
            drop(placed.reply.send(answer));
            drop(placed.permit);
        }
        written.is_ok()
    }

    /// Writes the batch, each part of it into a segment of its own.
    fn write_batch(&mut self, bytes: &[u8], cuts: Vec<Cut>, note: Option<Signed>) -> io::Result<()> {
        let mut begin = 0;
        for Cut { end, checkpoint } in cuts {
            let last = checkpoint.seq;
            self.write_part(&bytes[begin..end], last, Some(checkpoint))?;
            self.rotate(last);
            begin = end;
        }
        self.write_part(&bytes[begin..], self.log.tree.leaves(), note)
    }

    /// Makes frames up to record `last` durable. Fails only if the journal closes before it could.
    fn write_part(&mut self, bytes: &[u8], last: u64, checkpoint: Option<Signed>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let at = self.segment_len();
        let mut wait = RETRY.0;
        let mut give_up = None;
        while let Err(e) = self.write(bytes, at) {
            self.failing(&e.to_string());
            if self.signals.closing.load(Ordering::SeqCst) {
                let limit = *give_up.get_or_insert_with(|| Instant::now() + SHUTDOWN_PATIENCE);
                if Instant::now() >= limit {
                    return Err(e);
                }
            }
            thread::park_timeout(wait);
            wait = (wait * 2).min(RETRY.1);
        }
        if let Some(segment) = self.log.segments.last_mut() {
            segment.len = at + bytes.len() as u64;
        }
        let mut well = self.keep_tree(last, checkpoint.is_some());
        if let Some(Signed { seq, note }) = checkpoint {
            self.log.checkpointed = seq;
            self.due = None;
            if let Err(e) = files::replace(&self.log.dir, CHECKPOINT, note.as_bytes()) {
                self.failing(&e.to_string());
                well = false;
            }
            self.signals.head.send_replace(TreeHead { tree_size: seq - 1, note });
        } else {
            self.due.get_or_insert_with(|| Instant::now() + self.options.checkpoint_interval);
        }
        if well {
            self.healthy();
        }
        self.signals.durable.send_replace(last);
        Ok(())
    }

    /// Writes and syncs frames at the end of the segment. After an error the segment is as before, or will be once
    /// it is written again: a failed sync says nothing about what is on disk, so all of it is written anew.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let file = &self.log.segment;
        let done = self
            .fault(Op::WriteLog, |part| {
                file.write_all_at(&bytes[..part.unwrap_or(bytes.len()).min(bytes.len())], at)
            })
            .and_then(|()| self.fault(Op::SyncLog, |_| file.sync_data()));
        if done.is_err() {
            drop(file.set_len(at));
        }
        done
    }

    /// Runs `act`, unless a test's fault says otherwise.
    fn fault(&self, op: Op, act: impl Fn(Option<usize>) -> io::Result<()>) -> io::Result<()> {
        match self.options.faults.as_ref().map(|f| f.before(op)) {
            Some(Err((e, part))) => {
                if part.is_some() {
                    act(part)?;
                }
                Err(e)
            }
            _ => act(None),
        }
    }

    /// Brings the tree file up to record `last`; if that fails, its hashes wait in memory, and are made again at the next
    /// start.
    fn keep_tree(&mut self, last: u64, sync: bool) -> bool {
        let mut done = match self.options.faults.as_ref().map(|f| f.before(Op::WriteTree)) {
            Some(Err((e, _))) => Err(e),
            _ => self.log.tree.flush_to(last),
        };
        if sync {
            done = done.and_then(|()| self.log.tree.sync());
        }
        if let Err(e) = done {
            self.failing(&format!("tree: {e}"));
            return false;
        }
        true
    }

    /// Begins a new segment behind record `last`, a checkpoint. If that fails the old one goes on, and the next batch tries
    /// again.
    fn rotate(&mut self, last: u64) {
        let Some(before) = self.log.segments.last().copied() else { return };
        // What the tree of a closed segment holds must not depend on memory.
        if self.log.tree.flush_to(last).and_then(|()| self.log.tree.sync()).is_err() {
            return;
        }
        let next = Known { first: last + 1, len: frame::SEGMENT_HEAD as u64 };
        let made = match self.options.faults.as_ref().map(|f| f.before(Op::Create)) {
            Some(Err((source, _))) => Err(JournalError::Io { path: self.log.dir.clone(), source }),
            _ => recover::new_segment(&self.log.dir, self.log.id, next, Some(before)),
        };
        match made {
            Ok(file) => {
                let _closed = mem::replace(&mut self.log.segment, file);
                self.log.segments.push(next);
            }
            Err(e) => self.failing(&e.to_string()),
        }
    }

    fn segment_path(&self) -> std::path::PathBuf {
        let first = self.log.segments.last().map_or(1, |s| s.first);
        self.log.dir.join(files::segment_name(frame::SegmentKind::Log, first))
    }

    pub(super) fn failing(&self, error: &str) {
        self.signals.health.send_if_modified(|health| {
            let new = health.error.as_deref() != Some(error);
            health.failing_since.get_or_insert_with(Time::now);
            health.error = Some(error.to_owned());
            new
        });
    }

    fn healthy(&self) {
        self.signals.health.send_if_modified(|health| {
            let was = health.error.is_some();
            *health = JournalHealth::default();
            was
        });
    }
}
