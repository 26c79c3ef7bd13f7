//! Export: OTLP logs from the journal, at least once, to each receiver by a cursor of its own.
//!
//! A record leaves when the journal has it on disk; a cursor moves when the receiver has acknowledged. Violations go
//! first. Nothing here drops a record: what a receiver will never take becomes a dead letter on disk, and a record.

mod client;
mod lane;
mod otlp;
mod quiet;
mod state;
pub mod summary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use otlp::{Resource, log_record, request};

use crate::config::Endpoint;
use crate::journal::{Exported, JournalError, JournalHandle};
use crate::model::Time;
use lane::{Lane, Reports};
use quiet::Quiet;
use state::{Cursor, Store};

/// Why export could not start.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The cursors cannot be kept.
    #[error("export: {path}: {source}")]
    State { path: String, source: std::io::Error },
}

/// How one receiver is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportStatus {
    /// Its URL, without credentials.
    pub endpoint: String,
    /// All records up to here are acknowledged.
    pub acknowledged_seq: u64,
    /// When the oldest record happened that is not acknowledged.
    pub oldest_unsent: Option<Time>,
    /// Why the last request failed, if it did.
    pub last_error: Option<String>,
    /// Records it would not take.
    pub dead_letters: u64,
}

impl ExportStatus {
    /// Age of the oldest record not acknowledged, in seconds; 0 if there is none.
    #[must_use]
    pub fn oldest_unsent_age_s(&self) -> u64 {
        let age = self.oldest_unsent.map_or(0, |t| Time::now().as_nanos().saturating_sub(t.as_nanos()));
        u64::try_from(age / 1_000_000_000).unwrap_or(0)
    }
}

/// How patient export is.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// First and longest wait before a retry.
    pub backoff: (Duration, Duration),
    /// Wait when somebody must change something first.
    pub slow: Duration,
    /// How long an outage lasts before it is journaled.
    pub report_after: Duration,
    /// How long, in the long run, between two such records.
    pub report_every: Duration,
    /// How long a stopping agent goes on sending.
    pub flush: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            backoff: (Duration::from_millis(250), Duration::from_secs(30)),
            slow: Duration::from_secs(60),
            report_after: Duration::from_secs(10),
            report_every: Duration::from_secs(600),
            flush: Duration::from_secs(5),
        }
    }
}

/// Tells the journal up to where all receivers have acknowledged.
#[derive(Debug, Clone)]
struct Progress {
    all: Arc<Mutex<BTreeMap<u64, Exported>>>,
    /// Whose it is.
    lane: u64,
    handle: JournalHandle,
}

impl Progress {
    fn moved(&self, cursor: &Cursor) {
        let mine = Exported { violations: cursor.violations, rest: cursor.rest };
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(self.lane, mine);
        let lowest = all.values().fold(Exported::ALL, |low, e| Exported {
            violations: low.violations.min(e.violations),
            rest: low.rest.min(e.rest),
        });
        self.handle.set_exported(lowest);
    }
}

/// How all receivers are doing, whichever they are.
#[derive(Debug, Clone, Default)]
pub struct Statuses(Arc<RwLock<Vec<watch::Receiver<ExportStatus>>>>);

impl Statuses {
    /// As of now, in the order of the configuration.
    #[must_use]
    pub fn now(&self) -> Vec<ExportStatus> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|one| one.borrow().clone()).collect()
    }

    /// One of them, as it changes.
    #[must_use]
    pub fn watch(&self, at: usize) -> Option<watch::Receiver<ExportStatus>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(at).cloned()
    }
}

/// The task of one receiver. Dropping it ends the task at once: a cursor is saved after each acknowledgement, so that
/// costs a duplicate at most.
#[derive(Debug)]
struct Running {
    lane: u64,
    endpoint: Endpoint,
    status: watch::Receiver<ExportStatus>,
    task: JoinSet<()>,
}

/// The running exporters: one task for each receiver.
#[derive(Debug)]
pub struct Exporter {
    dir: PathBuf,
    handle: JournalHandle,
    resource: watch::Sender<Resource>,
    policy: Policy,
    cancel: CancellationToken,
    all: Arc<Mutex<BTreeMap<u64, Exported>>>,
    running: Vec<Running>,
    statuses: Statuses,
    lanes: u64,
}

impl Exporter {
    /// Starts exporting to these receivers. Cursors and dead letters are kept in `state_dir/export`.
    ///
    /// # Errors
    /// The journal or the state directory cannot be read.
    pub fn start(
        endpoints: &[Endpoint],
        state_dir: &Path,
        handle: &JournalHandle,
        resource: &Resource,
        policy: Policy,
    ) -> Result<Self, ExportError> {
        let mut exporter = Self {
            dir: state_dir.join("export"),
            handle: handle.clone(),
            resource: watch::Sender::new(resource.clone()),
            policy,
            cancel: CancellationToken::new(),
            all: Arc::default(),
            running: Vec::new(),
            statuses: Statuses::default(),
            lanes: 0,
        };
        for endpoint in endpoints {
            exporter.add(endpoint)?;
        }
        Ok(exporter)
    }

    /// How the receivers are doing, now and after changes.
    #[must_use]
    pub fn statuses(&self) -> Statuses {
        self.statuses.clone()
    }

    /// What is sent from now on comes from this cluster: it may become known only while the agent runs.
    pub fn set_cluster_uid(&self, uid: Option<String>) {
        self.resource.send_if_modified(|resource| {
            let differs = resource.cluster_uid != uid;
            resource.cluster_uid = uid;
            differs
        });
    }

    /// Exports to these receivers from now on. Those that are new get all of the journal; those whose settings changed go on
    /// where they were. Tells what changed.
    ///
    /// # Errors
    /// As [`Exporter::start`].
    pub async fn apply(&mut self, endpoints: &[Endpoint]) -> Result<Vec<String>, ExportError> {
        let (mut changes, mut failed) = (Vec::new(), None);
        let mut before = std::mem::take(&mut self.running);
        for endpoint in endpoints {
            let at = before.iter().position(|one| one.endpoint.same_receiver(endpoint));
            match at.map(|at| before.remove(at)) {
                Some(same) if same.endpoint == *endpoint => self.running.push(same),
                other => {
                    let what = if other.is_some() { "settings of" } else { "added" };
                    if let Some(mut other) = other {
                        other.task.shutdown().await;
                        self.forget(other.lane);
                    }
                    // One that cannot be started does not stop the others.
                    match self.add(endpoint) {
                        Ok(()) => {
                            let name = state::redacted(&endpoint.endpoint);
                            changes.push(format!("export.otlp: {what} {name}"));
                        }
                        Err(e) => failed = Some(e),
                    }
                }
            }
        }
        for mut gone in before {
            gone.task.shutdown().await;
            self.forget(gone.lane);
            changes.push(format!("export.otlp: removed {}", state::redacted(&gone.endpoint.endpoint)));
        }
        self.publish();
        failed.map_or(Ok(changes), Err)
    }

    /// Sends what is left, for as long as the policy allows, and ends.
    pub async fn stop(&mut self) {
        self.cancel.cancel();
        for one in &mut self.running {
            while one.task.join_next().await.is_some() {}
        }
    }

    fn forget(&self, lane: u64) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&lane);
    }

    fn publish(&self) {
        let all = self.running.iter().map(|one| one.status.clone()).collect();
        *self.statuses.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    fn add(&mut self, endpoint: &Endpoint) -> Result<(), ExportError> {
        let name = state::redacted(&endpoint.endpoint);
        let store = Store::new(&self.dir, endpoint)
            .map_err(|source| ExportError::State { path: self.dir.display().to_string(), source })?;
        let (violations, rest) = (self.handle.reader()?, self.handle.reader()?);
        let cursor = store.load(&rest.journal_id(), &name, *self.handle.durable().borrow());
        let (status, seen) = watch::channel(ExportStatus {
            endpoint: name.clone(),
            acknowledged_seq: cursor.violations.min(cursor.rest),
            dead_letters: cursor.dead_letters,
            ..ExportStatus::default()
        });
        self.lanes += 1;
        let progress = Progress { all: Arc::clone(&self.all), lane: self.lanes, handle: self.handle.clone() };
        progress.moved(&cursor);
        let lane = Lane {
            endpoint: endpoint.clone(),
            name,
            store,
            cursor,
            violations,
            rest,
            handle: self.handle.clone(),
            resource: self.resource.subscribe(),
            policy: self.policy,
            status,
            progress,
            client: None,
            backoff: self.policy.backoff.0,
            outage: None,
            proven: false,
            lone: 0,
            quiet: Quiet::new(),
            reports: Reports::new(Instant::now()),
            cancel: self.cancel.clone(),
        };
        let mut task = JoinSet::new();
        task.spawn(lane.run());
        self.running.push(Running { lane: self.lanes, endpoint: endpoint.clone(), status: seen, task });
        self.publish();
        Ok(())
    }
}

#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use state::fuzz as fuzz_cursor;
