//! Wires the data path and owns the order of shutdown.
//!
//! sensor → judge → recorder → journal → export, one bounded channel each. Shutdown goes the same way: first no new
//! questions, then the sensor stops, the judge settles what it has, the recorder drains, the journal signs its last
//! checkpoint, and the exporters get what time is left.

mod attend;
mod baselines;
mod events;
mod first_use;
mod kubelet;
mod memory;
mod pods;
mod recorder;
mod rung;
mod settings;
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::baseline::secret::SecretKey;
use crate::baseline::store::FIRST_USE;
use crate::baseline::{Context, Error, Root, trust};
use crate::config::settings::Settings;
use crate::config::{Baselines, Config};
use crate::export::summary::{self, Summed};
use crate::export::{ExportError, Exporter, Policy, Resource};
use crate::inventory::api::{self, Known, Remembered};
use crate::journal::{Journal, JournalHandle, Options, Reader, Recovered};
use crate::judge::{self, Command, Inputs, Judge};
use crate::model::{Coverage, Draft, GapBody, HostPath, Record, RecordBody, Rung, Severity, Time};
use crate::sensor::Health;
use crate::status::{Server, Socket};

use self::attend::{Agent, send};
use self::baselines::{InJournal, Keeper};
use self::events::Events;
use self::first_use::FirstUse;
use self::pods::Pods;
use self::recorder::Opened;
use self::settings::Held;
use self::world::Node;

/// Events between sensor and judge; beyond that the sensor waits, and its own ring and marks take over.
const EVENTS: usize = 16_384;
/// Batches between judge and recorder.
const BATCHES: usize = 256;
/// Questions waiting for the judge.
const QUERIES: usize = 64;
/// How long a stop waits for the journal to take what is left.
const DRAIN: Duration = Duration::from_secs(15);
/// Parallel looks.
const WORKERS: usize = 2;

/// What stops the agent from starting.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    Journal(#[from] crate::journal::JournalError),
    #[error("{0}")]
    Baseline(#[from] Error),
    #[error("{0}")]
    Socket(#[from] crate::status::SocketError),
    #[error("{0}")]
    Export(#[from] ExportError),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

/// Runs until SIGTERM or SIGINT. Prints `ready` on stdout once the sensor is live and the first verification done.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    memory::give_back();
    raise_descriptors();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("meshseal: cannot start: runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("meshseal: cannot start: {e}");
            ExitCode::FAILURE
        }
    }
}

/// As many descriptors as may be had: the default of 1,024 is for programs that use select.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "RLIMIT_NOFILE stays as it is");
    }
}

async fn serve(config: Config) -> Result<(), StartError> {
    make_private(&config.state_dir)?;
    let socket = Socket::bind(&config.socket)?;
    let mut options = Options::new(config.node.clone());
    options.max_bytes = config.journal.max_bytes;
    let (journal, recovered) = Journal::open(&config.state_dir.join("journal"), options)?;
    let handle = journal.handle();
    let stop = CancellationToken::new();
    let (sensor_stop, judge_stop) = (CancellationToken::new(), CancellationToken::new());
    let (mut sensing, mut judging, mut recording, mut serving) =
        (JoinSet::new(), JoinSet::new(), JoinSet::new(), JoinSet::new());

    let (events_tx, events) = mpsc::channel(EVENTS);
    let rung::Started { sensor, why, resumes } = rung::start(
        &config.sensor,
        (&config.state_dir, &config.host_root),
        &events_tx,
        &mut sensing,
        &sensor_stop,
    );
    drop(events_tx);
    let health = sensor.health();
    handle.set_coverage(health.coverage(), health.blind_to.clone());

    let (drafts_tx, drafts) = mpsc::channel(BATCHES);
    let opened = Arc::new(Opened::default());
    recording.spawn(recorder::run(drafts, handle.clone(), Arc::clone(&opened)));
    let history = history(&handle, &opened)?;
    serving.spawn(summary::run(handle.clone(), history.summed, summary::EVERY, stop.clone()));
    let absence = history.absence(resumes);
    send(&drafts_tx, opening(&recovered, &health, &why, absence.clone())).await;

    let (ready_tx, ready) = watch::channel(false);
    let remembered = Remembered::new(&config.state_dir);
    let api = Arc::new(Known::new(remembered.read(&config.node)));
    let mut cluster = api.cluster();
    let known_cluster = cluster.borrow_and_update().clone();
    let exporter = Exporter::start(
        &config.export,
        &config.state_dir,
        &handle,
        &resource(&config, known_cluster.uid.clone()),
        Policy::default(),
    )?;
    let status_events = Arc::new(Events::new(handle.clone())?);
    let root = Root::open(&config.host_root)?;
    let node = Arc::new(Node::new(
        (&config.host_root, root.clone()),
        (config.node.clone(), config.mode.as_str().to_owned()),
        handle.clone(),
        (Arc::clone(&status_events), opened),
        exporter.statuses(),
        ready,
        (Arc::clone(&config.profiles), Arc::clone(&api)),
    ));
    ask_api(&config, &api, &mut serving, &stop);

    let (queries_tx, queries) = mpsc::channel(QUERIES);
    let (commands_tx, commands) = mpsc::channel(QUERIES);
    let (live_tx, live) = oneshot::channel();
    let secret_key = secret_key(&config.baselines)?;
    let judge_options = judge::Options {
        root: root.clone(),
        context: Context {
            secret_key: secret_key.clone(),
            profiles: Arc::clone(&config.profiles),
            ..Context::default()
        },
        workers: WORKERS,
        // The sensor keeps a few slots for its canaries.
        slots: config.sensor.max_slots.saturating_sub(64),
        scrub: config.scrub.interval,
        io_budget: config.scrub.io_budget,
        canary: config.sensor.canary_interval,
        await_approval: config.baselines.await_approval,
        await_installer: config.baselines.await_installer,
    };
    let world: Arc<dyn judge::World> = Arc::clone(&node) as _;
    let writers = Arc::clone(&node);
    let mut judge = Judge::new(judge_options, world, sensor, drafts_tx.clone(), live_tx);
    for record in &history.violations {
        judge.replay(record);
    }
    drop(history.violations);
    judging.spawn(judge.run(Inputs { events, commands, queries }, judge_stop.clone()));
    serving.spawn(Server::new(queries_tx.clone(), status_events, stop.clone()).serve(socket));

    let first_use = if config.baselines.trust_on_first_use {
        let (first_use, told) = FirstUse::open(&config.state_dir);
        send(&drafts_tx, told.into_iter().collect()).await;
        Some(first_use)
    } else {
        None
    };
    let mut keeper = Keeper::open(&config.state_dir.join("baselines"), &config.node, known_cluster)?;
    let fresh = recovered.fresh && recovered.tampered.is_none();
    let forgotten = keeper.held_against(&history.accepted, fresh).into_iter().map(|reason| {
        let body = GapBody { at: "journal".to_owned(), reason, ..GapBody::default() };
        Draft::now(Severity::Critical, RecordBody::Gap(body))
    });
    let mut first: Vec<Draft> = forgotten.collect();
    first.extend(keeper.load(&config.baselines));
    first.extend(keeper.offer_all(&config.baselines));
    let settings = Settings::of(&config, keeper.key_ids(&config.baselines));
    let (held, told) = Held::open(&config.state_dir, settings, recovered.fresh);
    first.extend(told.gap);
    send(&drafts_tx, first).await;
    if !told.relaxations.is_empty() {
        let file = config.file.as_ref().or(config.candidates.first());
        let path = file.map_or_else(
            || HostPath::from(config.state_dir.as_path()),
            |file| HostPath::from(file.as_path()),
        );
        let relaxed = Command::Relaxed(path, told.relaxations);
        if commands_tx.send(relaxed).await.is_err() {
            tracing::error!("the judge is gone");
        }
    }
    let exporter = Arc::new(Mutex::new(exporter));
    let agent = Agent {
        config,
        pods: Pods::new(root.clone(), Arc::clone(&api)),
        root,
        refused: None,
        held,
        keeper,
        secret_key,
        first_use,
        queries: queries_tx,
        node,
        exporter: Arc::clone(&exporter),
        cluster,
        remembered,
        drafts: drafts_tx,
        commands: commands_tx,
        told: false,
        absence,
    };
    // Whatever it waits for, a signal ends it.
    let reason = match signals() {
        Ok(signals) => tokio::select! {
            reason = signals => reason,
            reason = agent.attend(live, ready_tx) => reason,
        },
        Err(e) => {
            drop(agent);
            format!("cannot listen for signals: {e}")
        }
    };

    stop.cancel();
    while serving.join_next().await.is_some() {}
    sensor_stop.cancel();
    while sensing.join_next().await.is_some() {}
    judge_stop.cancel();
    let drained = async {
        while judging.join_next().await.is_some() {}
        // The recorder ends when the last sender of drafts is gone: the agent's and the judge's are.
        while recording.join_next().await.is_some() {}
        let mut last = writers.writer_changes();
        last.push(Draft::now(Severity::Info, RecordBody::AgentStopped { reason }));
        if let Err(e) = handle.append(last).await {
            tracing::error!(error = %e, "the stop could not be journaled");
        }
        // The receivers' copy ends with a signed one.
        if let Err(e) = handle.checkpoint().await {
            tracing::error!(error = %e, "no checkpoint could be made");
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::error!(
            "the journal does not take the last records: they are lost, and the next start looks again"
        );
    }
    exporter.lock().await.stop().await;
    journal.shutdown().await?;
    Ok(())
}

/// The first signal that asks to stop.
fn signals() -> std::io::Result<impl Future<Output = String>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM".to_owned(),
            _ = interrupt.recv() => "SIGINT".to_owned(),
        }
    })
}

/// What the journal tells of earlier runs.
#[derive(Debug, Default)]
struct History {
    violations: Vec<Record>,
    last: Option<Time>,
    summed: Summed,
    accepted: InJournal,
}

/// Where what was not seen between two agents is said to be lost.
const ABSENCE: &str = "agent";

impl History {
    /// That no agent ran for a while, if one did before.
    fn absence(&self, resumes: bool) -> Option<String> {
        let sensing = if resumes { "its programs went on, and what they saw is read; " } else { "" };
        let since = self.last?;
        Some(format!(
            "no agent ran between {since} and this one's start; {sensing}all objects are verified again"
        ))
    }
}

/// Takes note of a baseline that was accepted into the store.
fn note_accepted(accepted: &mut InJournal, record: &Record) {
    let RecordBody::BaselineAccepted(body) = &record.body else { return };
    let (Some(name), Some(revision), Some(sha256)) = (&body.name, body.revision, &body.sha256) else {
        return;
    };
    // Keys statements and trust on first use have ledgers of their own.
    let other = [trust::NAME, FIRST_USE].contains(&name.as_str());
    if !other && accepted.get(name).is_none_or(|(known, ..)| *known < revision) {
        accepted.insert(name.clone(), (revision, sha256.clone(), record.time));
    }
}

/// Reads the journal once: open violations, and when the last agent was last heard of.
fn history(handle: &JournalHandle, opened: &Opened) -> Result<History, StartError> {
    const RECORDS: usize = 4096;
    const BYTES: usize = 8 << 20;
    let mut reader: Reader = handle.reader()?;
    let mut history = History::default();
    let mut next = 1;
    loop {
        let batch = reader.read_from(next, RECORDS, BYTES)?;
        let Some(last) = batch.last() else { return Ok(history) };
        next = last.seq + 1;
        for stored in batch {
            let record: Record = match serde_json::from_slice(&stored.payload) {
                Ok(record) => record,
                Err(e) => {
                    tracing::warn!(seq = stored.seq, error = %e, "a record of another version is passed over");
                    continue;
                }
            };
            history.last = Some(record.time);
            opened.note(&record);
            history.summed.note(&record);
            note_accepted(&mut history.accepted, &record);
            let kind = record.body.kind();
            if kind.starts_with("violation.") || kind == "object.unsealed" {
                history.violations.push(record);
            }
        }
    }
}

/// The first records of a run: that it began, what was not seen before it, and what it sees.
fn opening(recovered: &Recovered, health: &Health, why: &[String], absence: Option<String>) -> Vec<Draft> {
    let boot_id =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let resumed_after = match (recovered.fresh, recovered.clean_stop) {
        (true, _) => "nothing: a new journal",
        (false, true) => "a clean stop",
        (false, false) => "a kill or crash",
    };
    let started = RecordBody::AgentStarted {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id,
        rung: health.rung,
        resumed_after: resumed_after.to_owned(),
    };
    let mut drafts = vec![Draft::now(Severity::Info, started)];
    let mut gap = |at: &str, lost, reason: String, severity| {
        let body = GapBody { at: at.to_owned(), lost, reason, ..GapBody::default() };
        drafts.push(Draft::now(severity, RecordBody::Gap(body)));
    };
    if let Some((what, aside)) = &recovered.tampered {
        let reason =
            format!("the journal before this one was tampered with ({what}); it lies in {}", aside.display());
        gap("journal", 0, reason, Severity::Critical);
    }
    if let Some(repaired) = &recovered.repaired {
        gap("journal", recovered.lost_records, repaired.clone(), Severity::Medium);
    }
    if let Some(absence) = absence {
        gap(ABSENCE, 0, absence, Severity::Low);
    }
    let reason = if why.is_empty() { "started".to_owned() } else { format!("started; {}", why.join("; ")) };
    let sensor = health.body(reason);
    let severity = match (health.rung, health.coverage()) {
        (Rung::None, _) => Severity::Critical,
        (_, Coverage::Reduced) => Severity::Medium,
        (_, Coverage::Full) => Severity::Info,
    };
    drafts.push(Draft::now(severity, RecordBody::SensorChanged(sensor)));
    drafts
}

/// Asks the Kubernetes API, in a task of its own, where it is wanted and there is a way to it. Nothing waits for it.
fn ask_api(config: &Config, known: &Arc<Known>, tasks: &mut JoinSet<()>, stop: &CancellationToken) {
    if !config.kubernetes.api {
        return known.off("kubernetes.api is off");
    }
    let kubeconfig = config.kubernetes.kubeconfig.as_deref();
    match api::Source::find(kubeconfig, &|name| std::env::var(name).ok()) {
        Ok(source) => {
            let (node, known, stop) = (config.node.clone(), Arc::clone(known), stop.clone());
            tasks.spawn(api::run(source, node, known, api::Timing::default(), stop));
        }
        Err(why) => known.off(&why),
    }
}

/// Who sends, for the receivers.
fn resource(config: &Config, cluster_uid: Option<String>) -> Resource {
    // The one file of the host that is read through its root by a plain path: a machine-id is no secret, and a
    // wrong one harms nobody.
    let machine_id = std::fs::read_to_string(config.host_root.join("etc/machine-id")).ok();
    let machine_id = machine_id.map(|id| id.trim().to_owned());
    Resource {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance_id: ulid::Ulid::generate().to_string(),
        node: config.node.clone(),
        cluster_uid,
        host_id: machine_id.filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())),
    }
}

/// The cluster's key for secrets, if the config names one, and it is there.
fn secret_key(baselines: &Baselines) -> Result<Option<Arc<SecretKey>>, Error> {
    let given = baselines.secret_key.as_deref().map(SecretKey::given).transpose()?;
    Ok(given.flatten().map(Arc::new))
}

/// Makes the state directory, for root alone.
fn make_private(dir: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};

    let io = |source| StartError::Io { what: format!("state directory: {}", dir.display()), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(io)
}

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use self::first_use::fuzz as fuzz_first_use;
