//! The journal as the status server reads it.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::journal::evidence::{self, Evidence};
use crate::journal::{JournalError, JournalHandle, Reader};
use crate::model::Time;
use crate::status::{EventSource, Proof};

/// Bytes of records read in one go.
const MAX_BYTES: usize = 4 << 20;
/// Attempts to gather evidence against one checkpoint while others are being made.
const TRIES: usize = 4;
/// How long a checkpoint is waited for.
const SIGNED: Duration = Duration::from_secs(4);

/// The root hash in a C2SP checkpoint: its third line.
pub(super) fn root_of(note: &str) -> &str {
    note.lines().nth(2).unwrap_or_default()
}

/// Answers from the journal's files.
#[derive(Debug)]
pub(super) struct Events {
    journal: JournalHandle,
    reader: Mutex<Reader>,
}

impl Events {
    pub(super) fn new(journal: JournalHandle) -> Result<Self, JournalError> {
        let reader = Mutex::new(journal.reader()?);
        Ok(Self { journal, reader })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Reader) -> Result<T, JournalError>) -> io::Result<T> {
        f(&mut self.reader.lock().unwrap_or_else(PoisonError::into_inner)).map_err(io::Error::other)
    }
}

impl EventSource for Events {
    fn read_from(&self, seq: u64, max: usize) -> io::Result<Vec<(u64, Bytes)>> {
        let durable = *self.journal.durable().borrow();
        let records = self.with(|reader| reader.read_from(seq, max, MAX_BYTES))?;
        let durable_only = records.into_iter().filter(|record| record.seq <= durable);
        Ok(durable_only.map(|record| (record.seq, record.payload)).collect())
    }

    fn seq_at_time(&self, time: Time) -> io::Result<u64> {
        self.with(|reader| reader.seq_since(time))
    }

    fn durable(&self) -> watch::Receiver<u64> {
        self.journal.durable()
    }

    fn checkpoint(&self) -> io::Result<Option<String>> {
        let note = self.journal.tree_head().borrow().note.clone();
        Ok(Some(note).filter(|note| !note.is_empty()))
    }

    fn evidence(&self, violation: &str, seqs: &[u64]) -> io::Result<Option<Evidence>> {
        for _ in 0..TRIES {
            let made = evidence::gather(self.journal.dir(), violation, seqs).map_err(io::Error::other)?;
            if made.is_some() {
                return Ok(made);
            }
            // The newest records are signed with the next checkpoint: it is made now, if the disk allows.
            let signed = async { tokio::time::timeout(SIGNED, self.journal.checkpoint()).await };
            match tokio::runtime::Handle::try_current().map(|runtime| runtime.block_on(signed)) {
                Ok(Ok(Ok(()))) => {}
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    fn proof(&self, seq: u64) -> io::Result<Option<Proof>> {
        let proof = self.with(|reader| match reader.inclusion_proof(seq) {
            Ok(proof) => Ok(Some(proof)),
            Err(JournalError::OutOfRange { .. }) => Ok(None),
            Err(e) => Err(e),
        })?;
        Ok(proof.map(|proof| Proof {
            seq: proof.seq,
            tree_size: proof.tree_size,
            leaf_hash: proof.leaf,
            hashes: proof.hashes,
            root: root_of(&proof.checkpoint).to_owned(),
            checkpoint: proof.checkpoint,
        }))
    }
}
