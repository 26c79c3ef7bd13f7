//! The account of what a stretch of the journal holds, made every two hours if anything routine happened in it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::journal::{JournalError, JournalHandle, Reader, StoredRecord};
use crate::model::{Draft, HostPath, Record, RecordBody, Severity, SummaryBody, Time};

/// Between two summaries.
pub const EVERY: Duration = Duration::from_secs(2 * 3600);
/// Records read in one go.
const BATCH: (usize, usize) = (4096, 4 << 20);
/// Objects counted, and objects named.
const OBJECTS: (usize, usize) = (10_000, 10);
/// What is summed up; the rest is counted beside it.
const ROUTINE: &[&str] = &["attempt", "rotation.accepted", "object.verified"];

/// Where the last summary ended: 0 before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summed(pub u64);

impl Summed {
    /// Takes note of a record of the journal.
    pub fn note(&mut self, record: &Record) {
        if let RecordBody::Summary(summary) = &record.body {
            self.0 = summary.to_seq;
        }
    }
}

/// As much of a record as is counted.
#[derive(Deserialize)]
struct Peek {
    kind: String,
    time: Time,
    #[serde(default)]
    object: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    path: HostPath,
}

/// Appends summaries, that far apart, until cancelled.
pub async fn run(handle: JournalHandle, mut summed: Summed, every: Duration, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let (from, to) = (summed.0 + 1, *handle.durable().borrow());
        let reader = handle.reader();
        let counted = tokio::task::spawn_blocking(move || count(&mut reader?, from, to)).await;
        match counted {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(body))) => {
                let draft = Draft::now(Severity::Info, RecordBody::Summary(body));
                // A full disk holds it up, and a stop ends that.
                tokio::select! {
                    () = cancel.cancelled() => return,
                    done = handle.append(vec![draft]) => match done {
                        Ok(_) => summed = Summed(to),
                        Err(e) => tracing::warn!("summary: {e}"),
                    }
                }
            }
            Ok(Err(e)) => tracing::warn!("summary: {e}"),
            Err(e) => tracing::error!("summary: {e}"),
        }
    }
}

/// Counts the records `from` to `to`; `None` if nothing in them is routine.
pub(super) fn count(reader: &mut Reader, from: u64, to: u64) -> Result<Option<SummaryBody>, JournalError> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut objects: HashMap<HostPath, u64> = HashMap::new();
    let mut span: Option<((u64, Time), (u64, Time))> = None;
    let (mut next, mut routine) = (from, false);
    while next <= to {
        let batch = match reader.read_from(next, BATCH.0, BATCH.1) {
            Ok(batch) => batch,
            // What is damaged is told by who exports it.
            Err(JournalError::Tampered(_)) => match reader.after_damage(next)? {
                Some(after) => {
                    next = after;
                    continue;
                }
                None => break,
            },
            Err(e) => return Err(e),
        };
        let Some(last) = batch.last() else { break };
        next = last.seq + 1;
        for StoredRecord { seq, payload, .. } in batch.iter().filter(|record| record.seq <= to) {
            let Ok(peek) = serde_json::from_slice::<Peek>(payload) else { continue };
            let end = (*seq, peek.time);
            span = Some((span.map_or(end, |(first, _)| first), end));
            if ROUTINE.contains(&peek.kind.as_str()) {
                routine = true;
                if let Some(object) = peek.object
                    && (objects.len() < OBJECTS.0 || objects.contains_key(&object.path))
                {
                    *objects.entry(object.path).or_default() += 1;
                }
            }
            *counts.entry(peek.kind).or_default() += 1;
        }
    }
    let Some(((from_seq, from_time), (to_seq, to_time))) = span.filter(|_| routine) else { return Ok(None) };
    let mut ranked: Vec<_> = objects.into_iter().collect();
    ranked.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    ranked.truncate(OBJECTS.1);
    let objects = ranked.into_iter().map(|(path, _)| path).collect();
    Ok(Some(SummaryBody { from_seq, to_seq, from_time, to_time, counts, objects }))
}
