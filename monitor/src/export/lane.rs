//! One receiver's loop: reads the journal from its two cursors, sends, and moves a cursor once the receiver has
//! acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Outcome};
use super::otlp::{self, Resource};
use super::quiet::Quiet;
use super::state::{Cursor, Store};
use super::{ExportStatus, Policy, Progress};
use crate::config::Endpoint;
use crate::journal::{JournalError, JournalHandle, Reader, StoredRecord};
use crate::model::{Draft, GapBody, Record, RecordBody, Severity, Time};

/// Bounds of one request: below the 4 MiB that receivers take by default.
const BATCH_RECORDS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// When that many records of a batch were refused and none was taken, it is not the records.
const ALL_POISON: usize = 8;
/// A record that is refused alone may be one of many that would be: it is tried so often.
const LONE_TRIES: u8 = 3;
/// Bytes from which a record alone may be too large for a receiver; below that the fault is not the record's.
const LARGE: usize = 16 << 10;
/// Reports of failures that may follow each other at once.
const REPORTS: u32 = 4;

/// Which records a cursor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Violations,
    Rest,
}

/// A record on its way.
#[derive(Debug, Clone)]
struct Item {
    stored: StoredRecord,
    log: LogRecord,
    /// `delivery.failed` and the like: its own fate is not reported again.
    own_noise: bool,
}

/// Why a batch was not delivered.
enum Later {
    /// Wait so long, then build the batch anew.
    Wait(Duration),
    /// The agent stops.
    Stop,
}

pub(super) struct Lane {
    pub(super) endpoint: Endpoint,
    pub(super) name: String,
    pub(super) store: Store,
    pub(super) cursor: Cursor,
    pub(super) violations: Reader,
    pub(super) rest: Reader,
    pub(super) handle: JournalHandle,
    pub(super) resource: watch::Receiver<Resource>,
    pub(super) policy: Policy,
    pub(super) status: watch::Sender<ExportStatus>,
    pub(super) progress: Progress,
    pub(super) client: Option<Client>,
    pub(super) backoff: Duration,
    /// Since when nothing is acknowledged, and whether that was reported.
    pub(super) outage: Option<(Instant, bool)>,
    /// The receiver has taken something since the agent started.
    pub(super) proven: bool,
    /// How often the record at the cursor was refused alone.
    pub(super) lone: u8,
    pub(super) reports: Reports,
    pub(super) quiet: Quiet,
    pub(super) cancel: CancellationToken,
}

impl Lane {
    pub(super) async fn run(mut self) {
        let mut durable = self.handle.durable();
        let mut flush_until = None;
        loop {
            if self.cancel.is_cancelled() {
                let until = *flush_until.get_or_insert_with(|| Instant::now() + self.policy.flush);
                if Instant::now() >= until {
                    break;
                }
            }
            let last = *durable.borrow_and_update();
            let which = if self.cursor.violations < last {
                Which::Violations
            } else if self.cursor.rest < last {
                Which::Rest
            } else if flush_until.is_some() {
                break;
            } else {
                self.tell(None);
                tokio::select! {
                    changed = durable.changed() => if changed.is_err() { break },
                    () = self.cancel.cancelled() => {}
                }
                continue;
            };
            match self.step(which, last).await {
                Ok(()) => {}
                Err(Later::Stop) => break,
                Err(Later::Wait(_)) if flush_until.is_some() => break,
                Err(Later::Wait(wait)) => {
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.cancel.cancelled() => {}
                    }
                }
            }
        }
        self.save();
    }

    /// Reads one batch, sends it, and moves the cursor.
    async fn step(&mut self, which: Which, last: u64) -> Result<(), Later> {
        let (from, reader) = match which {
            Which::Violations => (self.cursor.violations + 1, &mut self.violations),
            Which::Rest => (self.cursor.rest + 1, &mut self.rest),
        };
        let records = match reader.read_from(from, BATCH_RECORDS, BATCH_BYTES) {
            Ok(records) => records,
            Err(e) => return self.unreadable(which, from, last, &e).await,
        };
        let mut done = last;
        // What is not delivered now is decided anew.
        let mut quiet = self.quiet;
        let mut items = Vec::new();
        let mut bytes = 0;
        let full = records.len() == BATCH_RECORDS
            || records.iter().map(|r| r.payload.len()).sum::<usize>() >= BATCH_BYTES;
        for stored in records.into_iter().take_while(|r| r.seq <= last) {
            if full {
                done = stored.seq;
            }
            let parsed: Result<Record, _> = serde_json::from_slice(&stored.payload);
            let record = match parsed {
                Ok(record) => record,
                Err(e) => {
                    self.bury(&stored, &format!("not a record: {e}"));
                    continue;
                }
            };
            if record.body.kind().starts_with("violation.") != (which == Which::Violations) {
                continue;
            }
            if !quiet.leaves(&record) {
                continue;
            }
            let log = otlp::log_record(&record, Time::now());
            bytes += log.encoded_len();
            let own_noise = matches!(record.body, RecordBody::DeliveryFailed { .. });
            if items.is_empty() {
                self.tell(Some(record.time));
            }
            let seq = stored.seq;
            items.push(Item { stored, log, own_noise });
            if bytes >= BATCH_BYTES {
                done = seq;
                break;
            }
        }
        let sent = !items.is_empty();
        if sent {
            self.deliver(items).await?;
        }
        self.quiet = quiet;
        match which {
            Which::Violations => self.cursor.violations = done,
            Which::Rest => self.cursor.rest = done,
        }
        if sent {
            self.save();
        }
        self.progress.moved(&self.cursor);
        Ok(())
    }

    /// Sends until each item is acknowledged, or is a dead letter.
    async fn deliver(&mut self, items: Vec<Item>) -> Result<(), Later> {
        let mut todo = VecDeque::from([items]);
        let mut refused: Vec<(Item, String)> = Vec::new();
        let mut taken = false;
        while let Some(mut items) = todo.pop_front() {
            let outcome = self.send(&items).await?;
            match outcome {
                Outcome::Accepted(warning) => {
                    if let Some(warning) = warning {
                        tracing::warn!(endpoint = %self.name, "the receiver says: {warning}");
                    }
                    taken = true;
                    self.recovered();
                }
                Outcome::Partial(count, message) => {
                    taken = true;
                    self.recovered();
                    let all = items.len();
                    let reason = format!("{count} of {all} records refused, nobody says which: {message}");
                    self.bury_all(items.into_iter().map(|item| (item, reason.clone())).collect()).await?;
                }
                Outcome::Retry(after, reason) => {
                    let jitter = f64::from(u32::from(random_byte())) / 255.0;
                    let wait = self.backoff.mul_f64(0.5 + jitter / 2.0);
                    self.backoff = (self.backoff * 2).min(self.policy.backoff.1);
                    self.failed(&reason, items.first(), false).await;
                    return Err(Later::Wait(after.unwrap_or_default().max(wait)));
                }
                Outcome::Configuration(reason) => {
                    self.failed(&reason, items.first(), true).await;
                    return Err(Later::Wait(self.policy.slow));
                }
                Outcome::TooLarge(_) | Outcome::Poison(_) if items.len() > 1 => {
                    let right = items.split_off(items.len() / 2);
                    todo.push_front(right);
                    todo.push_front(items);
                }
                Outcome::TooLarge(reason) if items.iter().all(|item| item.log.encoded_len() < LARGE) => {
                    self.failed(&reason, items.first(), true).await;
                    return Err(Later::Wait(self.policy.slow));
                }
                Outcome::TooLarge(reason) | Outcome::Poison(reason) => {
                    refused.extend(items.into_iter().map(|item| (item, reason.clone())));
                    if !taken && refused.len() >= ALL_POISON {
                        break;
                    }
                }
            }
        }
        if !taken && let Some((first, reason)) = refused.first() {
            self.lone = if refused.len() == 1 { self.lone.saturating_add(1) } else { 0 };
            if !self.proven || self.lone < LONE_TRIES {
                let (first, reason) = (first.clone(), format!("everything is refused: {reason}"));
                self.failed(&reason, Some(&first), true).await;
                return Err(Later::Wait(self.policy.slow));
            }
        }
        self.bury_all(refused).await?;
        self.lone = 0;
        Ok(())
    }

    async fn send(&mut self, items: &[Item]) -> Result<Outcome, Later> {
        if self.client.is_none() {
            match Client::new(&self.endpoint) {
                Ok(client) => self.client = Some(client),
                Err(reason) => return Ok(Outcome::Configuration(reason)),
            }
        }
        let Some(client) = &mut self.client else { return Err(Later::Stop) };
        let resource = self.resource.borrow().clone();
        let request = otlp::request(&resource, items.iter().map(|i| i.log.clone()).collect());
        let give_up = async {
            self.cancel.cancelled().await;
            tokio::time::sleep(self.policy.flush).await;
        };
        tokio::select! {
            outcome = client.send(request) => Ok(outcome),
            () = give_up => Err(Later::Stop),
        }
    }

    fn recovered(&mut self) {
        self.backoff = self.policy.backoff.0;
        self.proven = true;
        if self.outage.take().is_some() {
            tracing::info!(endpoint = %self.name, "the receiver acknowledges again");
        }
        self.status.send_modify(|status| status.last_error = None);
    }

    /// Notes a failure, and journals it once for each outage.
    async fn failed(&mut self, reason: &str, first: Option<&Item>, at_once: bool) {
        // A new connection reads keys and certificates anew.
        self.client = None;
        self.status.send_modify(|status| status.last_error = Some(reason.to_owned()));
        let (since, reported) = *self.outage.get_or_insert_with(|| (Instant::now(), false));
        if reported || !(at_once || since.elapsed() >= self.policy.report_after) {
            return;
        }
        tracing::warn!(endpoint = %self.name, "export fails: {reason}");
        self.outage = Some((since, true));
        self.report(reason, first.map_or(0, |item| item.stored.seq)).await;
    }

    /// Journals a failure. A receiver that fails again and again must not fill the journal: what is held back is told with
    /// the next report, and the status tells the latest at any time.
    async fn report(&mut self, reason: &str, oldest_unsent_seq: u64) {
        let Some(held) = self.reports.next(Instant::now(), self.policy.report_every) else { return };
        let more = if held > 0 { format!(" (and {held} failures before this one)") } else { String::new() };
        let reason = format!("{reason}{more}");
        let body = RecordBody::DeliveryFailed {
            endpoint: self.name.clone(),
            reason,
            oldest_unsent_seq,
            dead_letters: self.cursor.dead_letters,
        };
        let append = self.handle.append(vec![Draft::now(Severity::Medium, body)]);
        // A disk that refuses must not hold up the export of what is on it already.
        match tokio::time::timeout(Duration::from_secs(5), append).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => tracing::warn!("export: {e}"),
            Err(_) => tracing::warn!("export: the journal does not take the report of a failed delivery"),
        }
    }

    async fn bury_all(&mut self, refused: Vec<(Item, String)>) -> Result<(), Later> {
        let Some((first, reason)) = refused.first().cloned() else { return Ok(()) };
        for (item, reason) in &refused {
            if !self.bury(&item.stored, reason) {
                // Not even the dead letter can be written: the record stays where it is.
                return Err(Later::Wait(self.policy.slow));
            }
        }
        if refused.iter().any(|(item, _)| !item.own_noise) {
            let reason = format!("{} records became dead letters: {reason}", refused.len());
            tracing::warn!(endpoint = %self.name, "{reason}");
            self.report(&reason, first.stored.seq).await;
        }
        Ok(())
    }

    fn bury(&mut self, stored: &StoredRecord, reason: &str) -> bool {
        if let Err(e) = self.store.dead_letter(&self.name, reason, &stored.payload) {
            tracing::error!("export: dead letter of record {}: {e}", stored.seq);
            self.status.send_modify(|status| status.last_error = Some(format!("dead letters: {e}")));
            return false;
        }
        self.cursor.dead_letters += 1;
        true
    }

    /// Passes over a damaged segment, and says so.
    async fn unreadable(
        &mut self,
        which: Which,
        from: u64,
        last: u64,
        error: &JournalError,
    ) -> Result<(), Later> {
        let reader = if which == Which::Violations { &self.violations } else { &self.rest };
        let JournalError::Tampered(what) = error else {
            self.failed(&error.to_string(), None, true).await;
            return Err(Later::Wait(self.policy.slow));
        };
        let next = reader.after_damage(from).ok().flatten().unwrap_or(last + 1);
        // Each of the two cursors comes by; one report is enough.
        if which == Which::Violations {
            let body = RecordBody::Gap(GapBody {
                at: "export".to_owned(),
                lost: next - from,
                reason: format!("the journal cannot be read: {what}"),
                objects: Vec::new(),
                from_seq: Some(from),
                to_seq: Some(next - 1),
                reconciled: false,
            });
            let draft = Draft::now(Severity::Critical, body);
            if let Err(e) = self.handle.append(vec![draft]).await {
                tracing::warn!("export: {e}");
                return Err(Later::Stop);
            }
            self.cursor.violations = next - 1;
        } else {
            self.cursor.rest = next - 1;
        }
        self.save();
        Ok(())
    }

    fn save(&self) {
        if let Err(e) = self.store.save(&self.cursor) {
            // What was sent is sent again after a restart: duplicates, no loss.
            tracing::warn!(endpoint = %self.name, "export cursor cannot be saved: {e}");
        }
    }

    fn tell(&self, oldest_unsent: Option<Time>) {
        self.status.send_modify(|status| {
            status.acknowledged_seq = self.cursor.violations.min(self.cursor.rest);
            status.dead_letters = self.cursor.dead_letters;
            status.oldest_unsent = oldest_unsent;
        });
    }
}

/// How many reports of failures may still be made.
#[derive(Debug)]
pub(super) struct Reports {
    left: u32,
    refilled: Instant,
    held: u64,
}

impl Reports {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: REPORTS, refilled: now, held: 0 }
    }

    /// If one may be made now: how many were held back before it.
    fn next(&mut self, now: Instant, every: Duration) -> Option<u64> {
        while self.left < REPORTS && now.duration_since(self.refilled) >= every {
            self.left += 1;
            self.refilled += every;
        }
        if self.left == REPORTS {
            self.refilled = now;
        }
        if self.left == 0 {
            self.held += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.held))
    }
}

fn random_byte() -> u8 {
    let mut byte = [0];
    rand_core::RngCore::fill_bytes(&mut rand_core::OsRng, &mut byte);
    byte[0]
}
