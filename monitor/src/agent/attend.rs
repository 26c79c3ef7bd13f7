//! What goes on beside the data path: config and baselines, pods, housekeeping, and until when the agent runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::baseline::Root;
use crate::baseline::secret::SecretKey;
use crate::config::reload::{Watcher, needs_restart};
use crate::config::settings::Settings;
use crate::config::{self, Config};
use crate::export::Exporter;
use crate::inventory::api::{Cluster, Remembered};
use crate::inventory::mesh::CniDirs;
use crate::judge::{Command, World as _};
use crate::model::{Draft, GapBody, RecordBody, Severity, Time};
use crate::profile::Layout;
use crate::status::Query;

use super::baselines::Keeper;
use super::first_use::{FirstUse, Means};
use super::pods::Pods;
use super::settings::Held;
use super::world::Node;
use super::{memory, secret_key};

/// How often kubelet, mesh files and expiry are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(15);
/// How often pods and containers are looked for, where a baseline names any.
const PODS: Duration = Duration::from_secs(1);

/// What goes on beside the data path: config and baselines, housekeeping, signals.
pub(super) struct Agent {
    pub(super) config: Config,
    /// Why the last reload was refused.
    pub(super) refused: Option<String>,
    /// What the next run is held to.
    pub(super) held: Held,
    pub(super) keeper: Keeper,
    /// The cluster's, as the judge has it.
    pub(super) secret_key: Option<Arc<SecretKey>>,
    /// Where the config asks for it.
    pub(super) first_use: Option<FirstUse>,
    pub(super) queries: mpsc::Sender<Query>,
    /// Where pods are looked for.
    pub(super) root: Root,
    pub(super) pods: Pods,
    pub(super) node: Arc<Node>,
    pub(super) exporter: Arc<Mutex<Exporter>>,
    /// Cluster and node as the Kubernetes API tells them, and where that is kept.
    pub(super) cluster: watch::Receiver<Cluster>,
    pub(super) remembered: Remembered,
    pub(super) drafts: mpsc::Sender<Vec<Draft>>,
    pub(super) commands: mpsc::Sender<Command>,
    /// The judge was told of baselines or pods since memory was last given back.
    pub(super) told: bool,
    /// That no agent ran before this one, until all is verified.
    pub(super) absence: Option<String>,
}

impl Agent {
    /// Attends to everything until it is dropped; ends by itself only where it cannot, and tells why.
    pub(super) async fn attend(mut self, live: oneshot::Receiver<()>, ready: watch::Sender<bool>) -> String {
        self.tell_judge().await;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let mut pods = tokio::time::interval(PODS);
        pods.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut live = std::pin::pin!(live);
        let mut waiting = true;
        let mut watcher = match Watcher::new(self.config.watched_paths()) {
            Ok(watcher) => watcher,
            Err(e) => return format!("cannot listen for SIGHUP: {e}"),
        };
        loop {
            tokio::select! {
                done = &mut live, if waiting => {
                    waiting = false;
                    if done.is_ok() {
                        self.held.write();
                        memory::trim();
                        send(&self.drafts, self.absence.take().map(made_good).into_iter().collect()).await;
                        ready.send_replace(true);
                        announce();
                    }
                }
                _ = housekeeping.tick() => {
                    self.housekeeping().await;
                    if !waiting {
                        self.held.write();
                    }
                    if std::mem::take(&mut self.told) {
                        memory::trim();
                    }
                }
                _ = pods.tick() => {
                    if self.look_for_pods().await {
                        self.tell().await;
                    }
                    send(&self.drafts, self.node.writer_changes()).await;
                }
                Ok(()) = self.cluster.changed() => self.cluster_told().await,
                _ = watcher.changed() => {
                    self.reload().await;
                    watcher.set_paths(self.config.watched_paths());
                }
            }
        }
    }

    /// All baselines in force and what they are on this node, for the judge.
    async fn tell_judge(&mut self) {
        self.look_for_pods().await;
        self.tell().await;
    }

    async fn tell(&mut self) {
        self.told = true;
        let mut uncertain = Vec::new();
        let broken = self.first_use.as_ref().is_some_and(FirstUse::is_broken);
        uncertain.extend((self.keeper.refused() || broken).then(|| "baseline_rejected".to_owned()));
        uncertain.extend(self.pods.unclear().then(|| "pods_unclear".to_owned()));
        let (mut baselines, resolved) = (self.keeper.in_force(), self.pods.resolved());
        let first_use = self.first_use.as_ref().and_then(|known| known.beside(&baselines, &resolved));
        baselines.extend(first_use);
        let baselines = Command::Baselines(baselines, resolved);
        for command in [Command::Uncertain(uncertain), baselines] {
            if self.commands.send(command).await.is_err() {
                tracing::error!("the judge is gone");
            }
        }
    }

    /// The Kubernetes API told which cluster and node this is: baselines for them may be accepted now.
    async fn cluster_told(&mut self) {
        let cluster = self.cluster.borrow_and_update().clone();
        if let Err(e) = self.remembered.write(&self.config.node, &cluster) {
            tracing::warn!(error = %e, "cluster and labels cannot be kept: the next start does not know them");
        }
        self.exporter.lock().await.set_cluster_uid(cluster.uid.clone());
        self.keeper.set_cluster(cluster);
        let drafts = self.keeper.offer_all(&self.config.baselines);
        send(&self.drafts, drafts).await;
        self.tell_judge().await;
    }

    /// Looks which pods and containers are on the node; whether anything changed.
    async fn look_for_pods(&mut self) -> bool {
        let mut pods =
            std::mem::replace(&mut self.pods, Pods::new(self.root.clone(), Arc::clone(&self.node.api)));
        let (node, baselines) = (Arc::clone(&self.node), self.keeper.with_those_before());
        let looked = tokio::task::spawn_blocking(move || {
            node.look_for_writers();
            let changed = pods.refresh(&node.kubelet_root(), &baselines);
            (pods, changed)
        });
        match looked.await {
            Ok((pods, changed)) => {
                self.pods = pods;
                changed
            }
            Err(e) => {
                tracing::error!(error = %e, "pods could not be looked for");
                false
            }
        }
    }

    /// Something the config names, or the config itself, changed. Taken whole or not at all; never relaxes.
    async fn reload(&mut self) {
        let mut drafts = Vec::new();
        let refused = match config::load(&self.config.candidates) {
            Err(e) => Some(e.to_string()),
            Ok(new) => self.take_up(new, &mut drafts).await,
        };
        if refused != self.refused
            && let Some(reason) = refused.clone()
        {
            drafts.push(Draft::now(Severity::High, RecordBody::ConfigRejected { file: self.file(), reason }));
        }
        self.refused = refused;
        if self.refused.is_none() {
            drafts.extend(self.keeper.offer_all(&self.config.baselines));
            let keys = self.keeper.key_ids(&self.config.baselines);
            self.held.take_up(Settings::of(&self.config, keys));
        }
        send(&self.drafts, drafts).await;
        self.tell_judge().await;
    }

    fn file(&self) -> String {
        self.config.file.as_ref().map_or_else(String::new, |file| file.display().to_string())
    }

    /// Takes up what may change while running; says why not otherwise.
    async fn take_up(&mut self, new: Config, drafts: &mut Vec<Draft>) -> Option<String> {
        let keys = match Keeper::key_ids_of(&new.baselines) {
            Ok(keys) => keys,
            Err(e) => return Some(e.to_string()),
        };
        let before = Settings::of(&self.config, self.keeper.key_ids(&self.config.baselines));
        if let Some(relaxation) = before.relaxed_by(&Settings::of(&new, keys)).first() {
            return Some(format!("{relaxation}: that takes a restart"));
        }
        let fixed = needs_restart(&self.config, &new);
        if !fixed.is_empty() {
            return Some(format!(
                "{} cannot change while the agent runs: that takes a restart",
                fixed.join(", ")
            ));
        }
        let secret_key = match secret_key(&new.baselines) {
            Ok(key) => key,
            Err(e) => return Some(e.to_string()),
        };
        let changes = match self.exporter.lock().await.apply(&new.export).await {
            Ok(changes) => changes,
            Err(e) => return Some(e.to_string()),
        };
        if !changes.is_empty() {
            let body = RecordBody::ConfigChanged { file: self.file(), changes };
            drafts.push(Draft::now(Severity::Low, body));
        }
        if secret_key != self.secret_key {
            self.secret_key.clone_from(&secret_key);
            if self.commands.send(Command::SecretKey(secret_key)).await.is_err() {
                tracing::error!("the judge is gone");
            }
        }
        self.config.export = new.export;
        self.config.baselines = new.baselines;
        None
    }

    async fn housekeeping(&mut self) {
        let node = Arc::clone(&self.node);
        let refreshed = tokio::task::spawn_blocking(move || node.refresh()).await;
        match refreshed {
            Ok(false) => {}
            Ok(true) => {
                if self.commands.send(Command::Inventory).await.is_err() {
                    tracing::error!("the judge is gone");
                }
            }
            Err(e) => tracing::error!(error = %e, "the inventory could not be read"),
        }
        let expired = self.keeper.newly_expired(Time::now());
        send(&self.drafts, expired).await;
        if self.keeper.end_transitions(Time::now()) {
            self.tell_judge().await;
        }
        self.learn().await;
    }

    /// What no baseline covers is trusted as it is, where the config asks for it.
    async fn learn(&mut self) {
        let Some(mut first_use) = self.first_use.take() else { return };
        let (reply, answer) = oneshot::channel();
        let asked = self.queries.send(Query::Unsealed(reply)).await;
        let unsealed = if asked.is_ok() { answer.await.unwrap_or_default() } else { Vec::new() };
        let (node, root, config) = (Arc::clone(&self.node), self.root.clone(), self.config.clone());
        let secret_key = self.secret_key.clone();
        let learned = tokio::task::spawn_blocking(move || {
            let kubelet_root = node.kubelet_root();
            let layout = Layout { kubelet_root: kubelet_root.clone(), cni: CniDirs::find(&config.host_root) };
            let means = Means { root, secret_key, profiles: Arc::clone(&config.profiles), layout };
            let told = first_use.learn(&unsealed, &kubelet_root, &means);
            (first_use, told)
        });
        match learned.await {
            Ok((first_use, told)) => {
                self.first_use = Some(first_use);
                match told {
                    Ok(None) => {}
                    Ok(Some(draft)) => {
                        send(&self.drafts, vec![draft]).await;
                        self.tell().await;
                    }
                    Err(error) => tracing::error!(%error, "nothing more can be trusted on first use"),
                }
            }
            Err(error) => tracing::error!(%error, "trust on first use ended"),
        }
    }
}

/// One line on stdout, for whoever waits for it.
fn announce() {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    if let Err(e) = writeln!(out, "ready").and_then(|()| out.flush()) {
        tracing::debug!(error = %e, "nobody reads stdout");
    }
}

/// All was verified since no agent ran.
fn made_good(absence: String) -> Draft {
    let at = super::ABSENCE.to_owned();
    let body = GapBody { at, reason: absence, reconciled: true, ..GapBody::default() };
    Draft::now(Severity::Low, RecordBody::Gap(body))
}

pub(super) async fn send(drafts: &mpsc::Sender<Vec<Draft>>, batch: Vec<Draft>) {
    if !batch.is_empty() && drafts.send(batch).await.is_err() {
        tracing::error!("the recorder is gone: records are lost");
    }
}
