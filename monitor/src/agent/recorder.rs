//! From drafts to records on disk, in the order they were written.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::mpsc;

use crate::journal::JournalHandle;
use crate::model::{Draft, Record, RecordBody};

/// Drafts appended in one go.
const BATCH: usize = 1024;

/// Sequence numbers of opened violations, by uid.
#[derive(Debug, Default)]
pub(super) struct Opened(RwLock<BTreeMap<String, u64>>);

impl Opened {
    /// The record's number; 0 while it is not on disk.
    pub(super) fn seq_of(&self, uid: &str) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(uid).copied().unwrap_or_default()
    }

    /// Takes note of a record.
    pub(super) fn note(&self, record: &Record) {
        if matches!(record.body, RecordBody::ViolationOpened(_)) {
            self.0.write().unwrap_or_else(PoisonError::into_inner).insert(record.uid.clone(), record.seq);
        }
    }
}

/// Appends what comes until all senders are gone. The journal holds an append while the disk is full, and so the
/// channel fills, the judge waits, and the sensor's own buffers and marks take over: nothing is dropped here.
pub(super) async fn run(mut drafts: mpsc::Receiver<Vec<Draft>>, journal: JournalHandle, opened: Arc<Opened>) {
    while let Some(mut batch) = drafts.recv().await {
        while batch.len() < BATCH {
            let Ok(more) = drafts.try_recv() else { break };
            batch.extend(more);
        }
        while !batch.is_empty() {
            let rest = batch.split_off(batch.len().min(BATCH));
            let count = batch.len();
            match journal.append(std::mem::replace(&mut batch, rest)).await {
                Ok(records) => records.iter().for_each(|record| opened.note(record)),
                Err(e) => tracing::error!(error = %e, records = count, "records could not be journaled"),
            }
        }
    }
}
