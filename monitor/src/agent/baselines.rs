//! Baselines in force: from the store at start, from the config's files whenever they change.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::baseline::error::Error;
use crate::baseline::keys::TrustedKey;
use crate::baseline::store::{Accepted, KeysAccepted, Policy, Rejected, Store};
use crate::baseline::{AcceptedBaseline, Diff, read_bounded, trust};
use crate::config::Baselines;
use crate::inventory::api::Cluster;
use crate::model::{BaselineBody, DiffBody, Draft, RecordBody, Severity, Time};

/// Longest envelope.
const MAX_ENVELOPE: u64 = 384 << 20;
/// Envelopes in one directory.
const MAX_FILES: usize = 1000;
const SUFFIX: &str = ".dsse.json";
/// Files that may be keys statements: those no longer than this.
const MAX_KEYS: u64 = 4 << 20;
/// Bytes of paths in the diff of one record.
const MAX_DIFF: usize = 16 << 10;

/// What a journal says was accepted: name → highest revision, hex SHA-256 of its payload, when.
pub(super) type InJournal = BTreeMap<String, (u64, String, Time)>;

/// Keeps the store, and remembers what has been refused, so that each refusal is recorded once.
#[derive(Debug)]
pub(super) struct Keeper {
    store: Store,
    node: String,
    cluster: Cluster,
    keys: Vec<TrustedKey>,
    told: BTreeMap<PathBuf, String>,
    expired: HashSet<(String, u64)>,
    refused_now: bool,
    /// The files were offered once: from then on nothing is relaxed.
    started: bool,
}

impl Keeper {
    /// Opens the store.
    ///
    /// # Errors
    /// Its ledger cannot be read: going on would let an old baseline in.
    pub(super) fn open(dir: &Path, node: &str, cluster: Cluster) -> Result<Self, Error> {
        let store = Store::open(dir)?;
        Ok(Self {
            store,
            node: node.to_owned(),
            cluster,
            keys: Vec::new(),
            told: BTreeMap::new(),
            expired: HashSet::new(),
            refused_now: false,
            started: false,
        })
    }

    /// Holds the store against the journal, which knows what was accepted, too: what one of them has forgotten.
    pub(super) fn held_against(&mut self, journal: &InJournal, fresh: bool) -> Vec<String> {
        let mut forgotten = Vec::new();
        if fresh && self.store.has_accepted() {
            forgotten.push(
                "the journal is new, though baselines were accepted here: the one before was taken away"
                    .to_owned(),
            );
        }
        for (name, (revision, sha256, at)) in journal {
            let news = self.store.recall(name, *revision, sha256, *at).unwrap_or_else(|error| {
                tracing::error!(%error, "what the journal says was accepted is not in the ledger");
                true
            });
            if news {
                forgotten.push(format!(
                    "the ledger of baselines did not know {name} revision {revision}, which the journal says was accepted: lower ones stay refused"
                ));
            }
        }
        forgotten
    }

    /// Cluster and labels of the node are these from now on: scopes are compared with them. What is in force stays in force.
    pub(super) fn set_cluster(&mut self, cluster: Cluster) {
        self.cluster = cluster;
    }

    /// All that is in force.
    pub(super) fn in_force(&self) -> Vec<Arc<AcceptedBaseline>> {
        self.store.in_force().cloned().collect()
    }

    /// All that is in force, and the revisions before whose objects may still be there.
    pub(super) fn with_those_before(&self) -> Vec<Arc<AcceptedBaseline>> {
        let each = |one: &Arc<AcceptedBaseline>| std::iter::once(Arc::clone(one)).chain(one.before.clone());
        self.store.in_force().flat_map(each).collect()
    }

    /// Lets go of revisions whose successor's transition is over; whether there were any.
    pub(super) fn end_transitions(&mut self, now: Time) -> bool {
        self.store.end_transitions(now)
    }

    /// A file was refused, and what was in force before still is.
    pub(super) const fn refused(&self) -> bool {
        self.refused_now
    }

    /// Takes up what was in force before the agent started.
    pub(super) fn load(&mut self, config: &Baselines) -> Vec<Draft> {
        let (policy, mut drafts) = self.policy(config);
        let (_, rejected) = self.store.load(&policy);
        drafts.extend(rejected.iter().map(refusal));
        drafts
    }

    /// Offers every file of the config. Bad ones are recorded and change nothing.
    pub(super) fn offer_all(&mut self, config: &Baselines) -> Vec<Draft> {
        let (policy, mut drafts) = self.policy(config);
        self.refused_now = !drafts.is_empty();
        let files = self.files(config, &mut drafts);
        let seen: HashSet<PathBuf> = files.iter().cloned().collect();
        // Keys first: a baseline beside them may be signed with the new ones.
        let keys = self.offer_keys(&files, &policy, &mut drafts);
        self.started = true;
        for file in files.into_iter().filter(|file| !keys.contains(file)) {
            let shown = file.display().to_string();
            let bytes = match read_bounded(&file, MAX_ENVELOPE) {
                Ok(bytes) => bytes,
                Err(e) => {
                    self.refuse(&file, &e.to_string(), None, &mut drafts);
                    continue;
                }
            };
            let digest = hex::encode(Sha256::digest(&bytes));
            match self.store.offer(&bytes, &shown, &policy) {
                Ok(accepted) => {
                    self.told.remove(&file);
                    if !accepted.unchanged {
                        drafts.push(acceptance(&accepted, &shown));
                    }
                }
                Err(rejected) => {
                    let what = format!("{digest} {}", rejected.reason);
                    self.refuse(&file, &what, Some(&rejected), &mut drafts);
                }
            }
        }
        self.told.retain(|file, _| seen.contains(file));
        drafts
    }

    /// Offers those files that are keys statements, the earliest revision first, and tells which they are.
    fn offer_keys(
        &mut self,
        files: &[PathBuf],
        policy: &Policy,
        drafts: &mut Vec<Draft>,
    ) -> HashSet<PathBuf> {
        let mut offers = Vec::new();
        for file in files.iter().filter(|file| file.metadata().is_ok_and(|meta| meta.len() <= MAX_KEYS)) {
            let Ok(bytes) = read_bounded(file, MAX_KEYS) else { continue };
            if let Some(revision) = trust::claimed_revision(&bytes) {
                offers.push((revision, file.clone(), bytes));
            }
        }
        offers.sort();
        let mut keys = HashSet::new();
        for (_, file, bytes) in offers {
            let shown = file.display().to_string();
            match self.store.offer_keys(&bytes, &shown, policy, !self.started) {
                None => continue,
                Some(Ok(accepted)) => {
                    self.told.remove(&file);
                    if !accepted.unchanged {
                        drafts.push(other_keys(&accepted, &shown));
                    }
                }
                Some(Err(rejected)) => {
                    let what = format!("{} {}", hex::encode(Sha256::digest(&bytes)), rejected.reason);
                    self.refuse(&file, &what, Some(&rejected), drafts);
                }
            }
            keys.insert(file);
        }
        keys
    }

    /// Baselines that ran out since the last call.
    pub(super) fn newly_expired(&mut self, now: Time) -> Vec<Draft> {
        let expired: Vec<_> = self.store.in_force().filter(|one| one.is_expired(now)).cloned().collect();
        let fresh = expired.into_iter().filter(|one| self.expired.insert((one.name.clone(), one.revision)));
        fresh
            .map(|one| {
                let body = BaselineBody {
                    name: Some(one.name.clone()),
                    revision: Some(one.revision),
                    sha256: Some(one.sha256.clone()),
                    signers: one.signers.clone(),
                    reason: one.not_after.map(|end| format!("was valid until {end}")),
                    ..BaselineBody::default()
                };
                Draft::now(Severity::High, RecordBody::BaselineExpired(body))
            })
            .collect()
    }

    /// The ids of the keys that are trusted now: the config's, and those that a statement put in their place.
    pub(super) fn key_ids(&self, config: &Baselines) -> BTreeSet<String> {
        let trust = self.store.trust(&self.policy_of(config));
        self.keys.iter().chain(&trust.keys).map(|key| key.id().to_owned()).collect()
    }

    /// The ids of the keys a config names.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub(super) fn key_ids_of(config: &Baselines) -> Result<BTreeSet<String>, Error> {
        Ok(read_keys(config)?.iter().map(|key| key.id().to_owned()).collect())
    }

    /// On which terms baselines are accepted. Keys that cannot be read leave those trusted before.
    fn policy(&mut self, config: &Baselines) -> (Policy, Vec<Draft>) {
        let mut drafts = Vec::new();
        let place = PathBuf::from("baselines.trustedKeys");
        match read_keys(config) {
            Ok(keys) => {
                self.told.remove(&place);
                self.keys = keys;
            }
            Err(e) => {
                let reason = e.to_string();
                if self.told.insert(place, reason.clone()).as_ref() != Some(&reason) {
                    let body =
                        RecordBody::ConfigRejected { file: "baselines.trustedKeys".to_owned(), reason };
                    drafts.push(Draft::now(Severity::High, body));
                }
            }
        }
        (self.policy_of(config), drafts)
    }

    fn policy_of(&self, config: &Baselines) -> Policy {
        Policy {
            trusted: self.keys.clone(),
            threshold: config.require_signatures as usize,
            now: Time::now(),
            node: self.node.clone(),
            labels: self.cluster.labels.clone(),
            cluster: self.cluster.uid.clone(),
        }
    }

    /// The files to offer: those named, and in directories those ending in `.dsse.json`.
    fn files(&mut self, config: &Baselines, drafts: &mut Vec<Draft>) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for path in &config.files {
            if !path.is_dir() {
                files.extend(path.exists().then(|| path.clone()));
                continue;
            }
            match std::fs::read_dir(path) {
                Ok(entries) => {
                    let mut found: Vec<_> =
                        entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
                    found.retain(|file| file.to_string_lossy().ends_with(SUFFIX));
                    found.sort();
                    found.truncate(MAX_FILES);
                    files.extend(found);
                }
                Err(e) => self.refuse(path, &format!("cannot be listed: {e}"), None, drafts),
            }
        }
        files
    }

    fn refuse(&mut self, file: &Path, what: &str, rejected: Option<&Rejected>, drafts: &mut Vec<Draft>) {
        self.refused_now = true;
        if self.told.insert(file.to_path_buf(), what.to_owned()).as_deref() == Some(what) {
            return;
        }
        drafts.push(rejected.map_or_else(
            || {
                let body = BaselineBody {
                    file: file.display().to_string(),
                    reason: Some(what.to_owned()),
                    ..BaselineBody::default()
                };
                Draft::now(Severity::High, RecordBody::BaselineRejected(body))
            },
            refusal,
        ));
    }
}

fn read_keys(config: &Baselines) -> Result<Vec<TrustedKey>, Error> {
    let present: Vec<_> = config.trusted_keys.iter().filter(|path| path.exists()).collect();
    TrustedKey::read_all(&present)
}

fn refusal(rejected: &Rejected) -> Draft {
    let body = BaselineBody {
        file: rejected.file.clone(),
        name: rejected.name.clone(),
        revision: rejected.revision,
        sha256: rejected.sha256.clone(),
        signers: rejected.signers.clone(),
        reason: Some(rejected.reason.clone()),
        ..BaselineBody::default()
    };
    Draft::now(Severity::High, RecordBody::BaselineRejected(body))
}

fn acceptance(accepted: &Accepted, file: &str) -> Draft {
    let baseline = &accepted.baseline;
    let body = BaselineBody {
        file: file.to_owned(),
        name: Some(baseline.name.clone()),
        revision: Some(baseline.revision),
        sha256: Some(baseline.sha256.clone()),
        signers: baseline.signers.clone(),
        objects: Some(baseline.objects.len() as u64),
        added: Some(accepted.diff.added.len() as u64),
        removed: Some(accepted.diff.removed.len() as u64),
        changed: Some(accepted.diff.changed.len() as u64),
        source_commit: baseline.source_commit.clone(),
        diff: Some(bounded(&accepted.diff)).filter(|diff| *diff != DiffBody::default()),
        reason: None,
    };
    Draft::now(Severity::Info, RecordBody::BaselineAccepted(body))
}

/// Which objects changed, as far as they fit into a record.
fn bounded(diff: &Diff) -> DiffBody {
    let mut room = MAX_DIFF;
    let mut left_out = 0;
    let mut take = |addresses: &[String]| -> Vec<String> {
        let fits = addresses.iter().take_while(|address| {
            let fits = address.len() <= room;
            room = room.saturating_sub(address.len());
            fits
        });
        let taken: Vec<String> = fits.cloned().collect();
        left_out += (addresses.len() - taken.len()) as u64;
        taken
    };
    // What was taken out is what hurts most if it is not seen.
    let (removed, changed, added) = (take(&diff.removed), take(&diff.changed), take(&diff.added));
    DiffBody { added, removed, changed, left_out }
}

fn other_keys(accepted: &KeysAccepted, file: &str) -> Draft {
    let rotation = &accepted.rotation;
    let has = |keys: &[TrustedKey], id: &str| keys.iter().any(|key| key.id() == id);
    let labels: Vec<String> = rotation.keys.iter().map(TrustedKey::label).collect();
    let body = BaselineBody {
        file: file.to_owned(),
        name: Some(trust::NAME.to_owned()),
        revision: Some(rotation.revision),
        sha256: Some(rotation.sha256.clone()),
        signers: accepted.signers.clone(),
        added: Some(rotation.keys.iter().filter(|key| !has(&accepted.before, key.id())).count() as u64),
        removed: Some(accepted.before.iter().filter(|key| !has(&rotation.keys, key.id())).count() as u64),
        reason: Some(format!("from now on {} of {} must sign", rotation.threshold, labels.join(", "))),
        ..BaselineBody::default()
    };
    Draft::now(Severity::Medium, RecordBody::BaselineAccepted(body))
}
