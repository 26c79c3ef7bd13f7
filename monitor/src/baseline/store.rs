//! Which baselines are in force. Envelopes once accepted are kept in the state directory and hold until a later
//! revision is accepted; the highest revision seen of each name is remembered even if its envelope is gone.
//!
//! The directory: `<name>.dsse.json` for each baseline in force, `before/<name>.dsse.json` for the revision before it while its
//! transition lasts, `keys/<revision>.dsse.json` for each statement that
//! changed whose signatures count ([`super::trust`]), and `ledger.json`. Files 0600, directories 0700; written beside,
//! synced, renamed, directory synced.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use sha2::{Digest as _, Sha256};

use super::dsse::MAX_ENVELOPE;
use super::error::Error;
use super::keys::TrustedKey;
use super::object::{SealedObject, Writer};
use super::signed::{Report, Signed};
use super::statement::{self, Baseline, Diff, place_of};
use super::trust::{self, Rotation, Trust};
use super::{read_bounded, write_atomic};
use crate::model::Time;

const SUFFIX: &str = ".dsse.json";
const LEDGER: &str = "ledger.json";
const MAX_LEDGER: u64 = 16 * 1024 * 1024;
const KEYS: &str = "keys";
const BEFORE: &str = "before";
/// Longest keys statement in its envelope.
const MAX_KEYS: u64 = 4 * 1024 * 1024;

/// Name of the baseline of what is trusted on first use: no signed one may have it.
pub const FIRST_USE: &str = "trust-on-first-use";

/// A baseline in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedBaseline {
    /// Its name.
    pub name: String,
    /// Its revision.
    pub revision: u64,
    /// Hex SHA-256 of the payload.
    pub sha256: String,
    /// Ids of the trusted keys that signed.
    pub signers: Vec<String>,
    /// Valid from.
    pub not_before: Option<Time>,
    /// Valid until.
    pub not_after: Option<Time>,
    /// For how long after acceptance objects of the revision before are `superseded`.
    pub transition: Duration,
    /// What it was made from.
    pub source_commit: Option<String>,
    /// When this node took it first.
    pub accepted_at: Time,
    /// The objects, sorted by anchor and path: the host's first.
    pub objects: Arc<[SealedObject]>,
    /// Who may publish; the kubelet stands first.
    pub writers: Arc<[Writer]>,
    /// The revision before, until the transition is over.
    pub before: Option<Arc<Self>>,
}

impl AcceptedBaseline {
    /// How much is left of its transition.
    #[must_use]
    pub fn transition_left(&self, now: Time) -> Duration {
        // A clock that was set back makes it no longer than it is.
        let passed = u64::try_from(now.0.saturating_sub(self.accepted_at.0)).unwrap_or(0);
        self.transition.saturating_sub(Duration::from_nanos(passed))
    }

    /// Whether it is of what nobody signed: what is trusted on first use.
    #[must_use]
    pub fn is_first_use(&self) -> bool {
        self.name == FIRST_USE
    }

    /// Whether it has run out.
    #[must_use]
    pub fn is_expired(&self, now: Time) -> bool {
        self.not_after.is_some_and(|end| now > end)
    }
}

/// Under which terms a baseline is accepted.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Keys trusted to sign.
    pub trusted: Vec<TrustedKey>,
    /// Distinct keys that must have signed, at least 1.
    pub threshold: usize,
    /// Now.
    pub now: Time,
    /// Name of this node.
    pub node: String,
    /// Labels of this node, where they are known.
    pub labels: Option<BTreeMap<String, String>>,
    /// Uid of the cluster, where it is known.
    pub cluster: Option<String>,
}

/// A baseline came into force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The baseline.
    pub baseline: Arc<AcceptedBaseline>,
    /// Against what was in force under that name before.
    pub diff: Diff,
    /// What was in force before.
    pub replaced: Option<Arc<AcceptedBaseline>>,
    /// It was in force already: nothing happened.
    pub unchanged: bool,
}

/// Other keys count from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysAccepted {
    /// The keys, and how many of them must sign.
    pub rotation: Rotation,
    /// Ids of the keys that signed it.
    pub signers: Vec<String>,
    /// The keys that counted before.
    pub before: Vec<TrustedKey>,
    /// It was in force already, or has been followed by another: nothing happened.
    pub unchanged: bool,
}

/// A baseline was refused; what was in force still is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("baseline rejected: {file}: {reason}")]
pub struct Rejected {
    /// File it came from.
    pub file: String,
    /// Why.
    pub reason: String,
    /// Its name, once the signature was believed.
    pub name: Option<String>,
    /// Its revision, once the signature was believed.
    pub revision: Option<u64>,
    /// Hex SHA-256 of its payload, once the signature was believed.
    pub sha256: Option<String>,
    /// Key ids that signed.
    pub signers: Vec<String>,
}

/// What is remembered of each name, for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ledger {
    baselines: BTreeMap<String, Seen>,
    /// Keys statements: revision → hex SHA-256 of the payload.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    keys: BTreeMap<u64, String>,
}

/// The highest revision seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    revision: u64,
    sha256: String,
    accepted_at: Time,
}

/// What the ledger says to an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// The very one seen last.
    Same { accepted_at: Time },
    /// The first of its name, or a later revision.
    Later,
    /// Not to be taken.
    Refuse(String),
}

impl Ledger {
    fn knows(&self, sha256: &str) -> bool {
        self.baselines.values().any(|seen| seen.sha256 == sha256)
    }

    fn step(&self, name: &str, revision: u64, sha256: &str) -> Step {
        match self.baselines.get(name) {
            None => Step::Later,
            Some(seen) if revision > seen.revision => Step::Later,
            Some(seen) if revision < seen.revision => Step::Refuse(format!(
                "revision {revision} is lower than {}, which was accepted before",
                seen.revision
            )),
            Some(seen) if seen.sha256 == sha256 => Step::Same { accepted_at: seen.accepted_at },
            Some(_) => Step::Refuse(format!(
                "revision {revision} was accepted before with another content: a change needs a higher revision"
            )),
        }
    }
}

/// The baselines in force, and their directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    ledger: Ledger,
    in_force: BTreeMap<String, Arc<AcceptedBaseline>>,
    /// Keys statements that were accepted, by revision.
    rotations: Vec<Signed>,
}

impl Store {
    /// Opens the directory (`<stateDir>/baselines`), makes it if it is not there. Call [`Store::load`] next.
    ///
    /// # Errors
    /// It cannot be made or read, or the ledger is broken: then nobody can tell what was accepted before, and going
    /// on would let an old baseline in.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};

        let fail = |e: std::io::Error| {
            Error::new("cannot open baseline store", dir.display(), format!("a directory to write ({e})"))
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(fail)?;
        let path = dir.join(LEDGER);
        let ledger = if path.symlink_metadata().is_ok() {
            serde_json::from_slice(&read_bounded(&path, MAX_LEDGER)?).map_err(|e| {
                Error::new("broken baseline ledger", path.display(), format!("as this agent wrote it ({e})"))
            })?
        } else {
            Ledger::default()
        };
        Ok(Self { dir: dir.to_owned(), ledger, in_force: BTreeMap::new(), rotations: Vec::new() })
    }

    /// Whether anything was ever accepted here.
    #[must_use]
    pub fn has_accepted(&self) -> bool {
        !self.ledger.baselines.is_empty()
    }

    /// What the journal says was accepted; whether the ledger did not know it. A ledger that was taken away lets no lower revision in again.
    ///
    /// # Errors
    /// The ledger cannot be written; it counts until the agent stops.
    pub fn recall(
        &mut self,
        name: &str,
        revision: u64,
        sha256: &str,
        accepted_at: Time,
    ) -> Result<bool, Error> {
        if self.ledger.baselines.get(name).is_some_and(|seen| seen.revision >= revision) {
            return Ok(false);
        }
        let seen = Seen { revision, sha256: sha256.to_owned(), accepted_at };
        self.ledger.baselines.insert(name.to_owned(), seen);
        self.write_ledger(self.ledger.clone()).map(|()| true)
    }

    /// Takes up what was in force. Signatures are checked again; one that has expired since still holds, and
    /// [`AcceptedBaseline::is_expired`] tells.
    pub fn load(&mut self, policy: &Policy) -> (Vec<Arc<AcceptedBaseline>>, Vec<Rejected>) {
        let mut rejected = self.load_keys();
        let mut files = Vec::new();
        match std::fs::read_dir(&self.dir) {
            Ok(entries) => files.extend(
                entries
                    .filter_map(Result::ok)
                    .map(|entry| entry.path())
                    .filter(|path| path.to_string_lossy().ends_with(SUFFIX)),
            ),
            Err(e) => rejected.push(*reject(&self.dir.to_string_lossy(), e.to_string())),
        }
        files.sort();
        for path in files {
            let file = path.to_string_lossy().into_owned();
            let outcome = read_bounded(&path, MAX_ENVELOPE)
                .map_err(|e| reject(&file, e.to_string()))
                .and_then(|bytes| self.take(&bytes, &file, policy, true));
            if let Err(e) = outcome {
                rejected.push(*e);
            }
        }
        for name in self.in_force.keys().cloned().collect::<Vec<_>>() {
            if let Err(e) = self.load_before(&name, policy) {
                rejected.push(*e);
            }
        }
        for (name, seen) in &self.ledger.baselines {
            let file = self.dir.join(format!("{name}{SUFFIX}"));
            if !self.in_force.contains_key(name) && !file.exists() {
                rejected.push(Rejected {
                    name: Some(name.clone()),
                    revision: Some(seen.revision),
                    sha256: Some(seen.sha256.clone()),
                    ..*reject(&file.to_string_lossy(), "its envelope is gone from the store".into())
                });
            }
        }
        (self.in_force.values().cloned().collect(), rejected)
    }

    /// Offers an envelope. On success it is on disk and in force.
    ///
    /// # Errors
    /// Refused, or it could not be written: what was in force still is.
    pub fn offer(&mut self, envelope: &[u8], file: &str, policy: &Policy) -> Result<Accepted, Box<Rejected>> {
        self.take(envelope, file, policy, false)
    }

    /// Whose signatures count: the policy's keys, changed by each keys statement that they, or its successors, signed.
    /// One that was signed by keys the policy no longer names says nothing: the policy has caught up with it.
    #[must_use]
    pub fn trust(&self, policy: &Policy) -> Trust {
        let mut trust = Trust::new(policy.trusted.clone(), policy.threshold);
        for rotation in &self.rotations {
            if let Err(e) = trust.rotate(rotation, true) {
                tracing::debug!("a keys statement of the store is passed over: {e}");
            }
        }
        trust
    }

    /// Offers what may be a keys statement; `None` if it is none. `may_relax`: at a start, where the threshold may go down
    /// to the policy's.
    pub fn offer_keys(
        &mut self,
        envelope: &[u8],
        file: &str,
        policy: &Policy,
        may_relax: bool,
    ) -> Option<Result<KeysAccepted, Box<Rejected>>> {
        if envelope.len() as u64 > MAX_KEYS {
            return None;
        }
        let signed =
            Signed::read(envelope).ok().filter(|signed| trust::is_keys_statement(&signed.payload))?;
        Some(self.take_keys(envelope, &signed, file, policy, may_relax))
    }

    fn take_keys(
        &mut self,
        envelope: &[u8],
        signed: &Signed,
        file: &str,
        policy: &Policy,
        may_relax: bool,
    ) -> Result<KeysAccepted, Box<Rejected>> {
        let mut trust = self.trust(policy);
        let before = trust.keys.clone();
        let sha256 = hex::encode(Sha256::digest(&signed.payload));
        if self.ledger.keys.values().any(|known| *known == sha256) {
            let rotation = Rotation::parse(&signed.payload).map_err(|e| reject(file, e.to_string()))?;
            return Ok(KeysAccepted { rotation, signers: Vec::new(), before, unchanged: true });
        }
        let (rotation, report) = trust.rotate(signed, may_relax).map_err(|e| reject(file, e.to_string()))?;
        let refuse = |reason: String| {
            Box::new(Rejected {
                name: Some(trust::NAME.into()),
                revision: Some(rotation.revision),
                sha256: Some(sha256.clone()),
                signers: report.ids(),
                ..*reject(file, reason)
            })
        };
        // The policy may have caught up, and then does not know how far the revisions went.
        if let Some((highest, _)) = self.ledger.keys.last_key_value()
            && rotation.revision <= *highest
        {
            let reason =
                format!("revision {} is not above {highest}, which was accepted before", rotation.revision);
            return Err(refuse(reason));
        }
        self.persist_keys(envelope, &rotation).map_err(|e| refuse(e.to_string()))?;
        self.rotations.push(signed.clone());
        Ok(KeysAccepted { rotation, signers: report.ids(), before, unchanged: false })
    }

    /// What is in force, by name.
    pub fn in_force(&self) -> impl Iterator<Item = &Arc<AcceptedBaseline>> {
        self.in_force.values()
    }

    /// Lets go of revisions whose successor's transition is over; whether there were any.
    pub fn end_transitions(&mut self, now: Time) -> bool {
        let over =
            |one: &&mut Arc<AcceptedBaseline>| one.before.is_some() && one.transition_left(now).is_zero();
        let mut ended = false;
        for baseline in self.in_force.values_mut().filter(over) {
            let path = self.dir.join(BEFORE).join(format!("{}{SUFFIX}", baseline.name));
            if let Err(e) = std::fs::remove_file(&path) {
                tracing::warn!(error = %e, file = %path.display(), "a revision that is over stays on disk");
            }
            *baseline = Arc::new(AcceptedBaseline { before: None, ..(**baseline).clone() });
            ended = true;
        }
        ended
    }

    /// Takes up the revision before one in force, if its transition is not over. It was accepted once: whether it has run out or is in
    /// scope is not asked again, its signatures are.
    fn load_before(&mut self, name: &str, policy: &Policy) -> Result<(), Box<Rejected>> {
        let path = self.dir.join(BEFORE).join(format!("{name}{SUFFIX}"));
        let Some(current) = self.in_force.get(name) else { return Ok(()) };
        if path.symlink_metadata().is_err() || current.transition_left(policy.now).is_zero() {
            return Ok(());
        }
        let file = path.to_string_lossy().into_owned();
        let fail = |e: Error| reject(&file, e.to_string());
        let bytes = read_bounded(&path, MAX_ENVELOPE).map_err(fail)?;
        let signed = Signed::read(&bytes).map_err(fail)?;
        let signers = self.check(&signed, policy).map_err(fail)?.ids();
        let parsed = statement::parse(&signed.payload).map_err(fail)?;
        if parsed.name == name && parsed.revision == current.revision {
            // Cut off before another came into force.
            return Ok(());
        }
        if parsed.name != name || parsed.revision > current.revision {
            let what = format!("{} revision {}", parsed.name, parsed.revision);
            return Err(reject(&file, format!("{what} is not before {name} revision {}", current.revision)));
        }
        let before = Arc::new(accepted(parsed, signers, current.accepted_at, None));
        let current = AcceptedBaseline { before: Some(before), ..(**current).clone() };
        self.in_force.insert(name.to_owned(), Arc::new(current));
        Ok(())
    }

    fn take(
        &mut self,
        envelope: &[u8],
        file: &str,
        policy: &Policy,
        loading: bool,
    ) -> Result<Accepted, Box<Rejected>> {
        let signed = Signed::read(envelope).map_err(|e| reject(file, e.to_string()))?;
        let signers = self.check(&signed, policy).map_err(|e| reject(file, e.to_string()))?.ids();
        let parsed = statement::parse(&signed.payload)
            .map_err(|e| Box::new(Rejected { signers: signers.clone(), ..*reject(file, e.to_string()) }))?;
        drop(signed);
        let sha256 = hex::encode(parsed.sha256);
        let refuse = |reason: String| {
            Box::new(Rejected {
                file: file.into(),
                reason,
                name: Some(parsed.name.clone()),
                revision: Some(parsed.revision),
                sha256: Some(sha256.clone()),
                signers: signers.clone(),
            })
        };
        if parsed.name == FIRST_USE {
            return Err(refuse(format!("the name {FIRST_USE} is not one that a signed baseline can have")));
        }
        in_scope(&parsed, policy).map_err(refuse)?;
        let accepted_at = match self.ledger.step(&parsed.name, parsed.revision, &sha256) {
            Step::Refuse(reason) => return Err(refuse(reason)),
            Step::Same { accepted_at } => {
                if let Some(known) = self.in_force.get(&parsed.name) {
                    return Ok(Accepted {
                        baseline: Arc::clone(known),
                        diff: Diff::default(),
                        replaced: None,
                        unchanged: true,
                    });
                }
                // In force before this start: it holds, expired or not.
                if !loading {
                    is_valid(&parsed, policy.now).map_err(refuse)?;
                }
                accepted_at
            }
            Step::Later => {
                is_valid(&parsed, policy.now).map_err(refuse)?;
                policy.now
            }
        };
        self.no_conflict(&parsed).map_err(refuse)?;
        let replaced = self.in_force.get(&parsed.name).cloned();
        if replaced.is_some() {
            self.keep_before(&parsed.name).map_err(|e| refuse(e.to_string()))?;
        }
        self.persist(envelope, &parsed, &sha256, accepted_at).map_err(|e| refuse(e.to_string()))?;

        let objects = replaced.as_ref().map_or(&[] as &[_], |known| &*known.objects);
        let diff = Diff::between(objects, &parsed.objects);
        // Of the one before that nothing is known any more.
        let before = replaced.as_ref().map(|known| AcceptedBaseline { before: None, ..(**known).clone() });
        let baseline = Arc::new(accepted(parsed, signers, accepted_at, before.map(Arc::new)));
        self.in_force.insert(baseline.name.clone(), Arc::clone(&baseline));
        Ok(Accepted { baseline, diff, replaced, unchanged: false })
    }

    /// By the keys that count now; what was accepted before may be signed by those that counted then.
    fn check(&self, signed: &Signed, policy: &Policy) -> Result<Report, Error> {
        let trust = self.trust(policy);
        signed.check(&trust.keys, trust.threshold).or_else(|error| {
            let accepted =
                trust.revision > 0 && self.ledger.knows(&hex::encode(Sha256::digest(&signed.payload)));
            if accepted { trust.check_accepted(signed) } else { Err(error) }
        })
    }

    /// Takes up the keys statements accepted before.
    fn load_keys(&mut self) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        self.rotations.clear();
        for (revision, sha256) in &self.ledger.keys {
            let path = self.dir.join(KEYS).join(format!("{revision}{SUFFIX}"));
            let read = read_bounded(&path, MAX_KEYS)
                .and_then(|bytes| Signed::read(&bytes))
                .map_err(|e| e.to_string())
                .and_then(|signed| {
                    let same = hex::encode(Sha256::digest(&signed.payload)) == *sha256;
                    if same { Ok(signed) } else { Err("it is not the one that was accepted".to_owned()) }
                });
            match read {
                Ok(signed) => self.rotations.push(signed),
                Err(reason) => rejected.push(Rejected {
                    name: Some(trust::NAME.into()),
                    revision: Some(*revision),
                    sha256: Some(sha256.clone()),
                    ..*reject(&path.to_string_lossy(), reason)
                }),
            }
        }
        rejected
    }

    fn persist_keys(&mut self, envelope: &[u8], rotation: &Rotation) -> Result<(), Error> {
        let dir = self.subdirectory(KEYS)?;
        write_atomic(&dir.join(format!("{}{SUFFIX}", rotation.revision)), envelope, 0o600)?;
        let mut ledger = self.ledger.clone();
        ledger.keys.insert(rotation.revision, rotation.sha256.clone());
        self.write_ledger(ledger)
    }

    /// The envelope in force, which another is about to take the place of.
    fn keep_before(&self, name: &str) -> Result<(), Error> {
        let file = format!("{name}{SUFFIX}");
        let dir = self.subdirectory(BEFORE)?;
        write_atomic(&dir.join(&file), &read_bounded(&self.dir.join(&file), MAX_ENVELOPE)?, 0o600)
    }

    fn subdirectory(&self, name: &str) -> Result<PathBuf, Error> {
        use std::os::unix::fs::DirBuilderExt as _;

        let dir = self.dir.join(name);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| {
            Error::new("cannot open baseline store", dir.display(), format!("a directory to write ({e})"))
        })?;
        Ok(dir)
    }

    fn write_ledger(&mut self, ledger: Ledger) -> Result<(), Error> {
        let path = self.dir.join(LEDGER);
        let text = serde_json::to_vec(&ledger)
            .map_err(|e| Error::new("cannot write baseline ledger", path.display(), e))?;
        write_atomic(&path, &text, 0o600)?;
        self.ledger = ledger;
        Ok(())
    }

    /// Nobody else seals the same path.
    fn no_conflict(&self, offered: &Baseline) -> Result<(), String> {
        let places: HashSet<_> = offered.objects.iter().map(place_of).collect();
        for other in self.in_force.values().filter(|other| other.name != offered.name) {
            let taken = |object: &&SealedObject| places.contains(&place_of(object));
            if let Some(object) = other.objects.iter().find(taken) {
                return Err(format!(
                    "{} is sealed by baseline {} and by baseline {}: each path in one of them",
                    object.address(),
                    other.name,
                    offered.name
                ));
            }
        }
        Ok(())
    }

    /// Envelope first, then ledger: cut off in between, the next load takes the envelope as a later revision.
    fn persist(
        &mut self,
        envelope: &[u8],
        parsed: &Baseline,
        sha256: &str,
        accepted_at: Time,
    ) -> Result<(), Error> {
        let path = self.dir.join(format!("{}{SUFFIX}", parsed.name));
        if read_bounded(&path, MAX_ENVELOPE).ok().as_deref() != Some(envelope) {
            write_atomic(&path, envelope, 0o600)?;
        }
        let seen = Seen { revision: parsed.revision, sha256: sha256.into(), accepted_at };
        if self.ledger.baselines.get(&parsed.name) != Some(&seen) {
            let mut ledger = self.ledger.clone();
            ledger.baselines.insert(parsed.name.clone(), seen);
            self.write_ledger(ledger)?;
        }
        Ok(())
    }
}

fn accepted(
    parsed: Baseline,
    signers: Vec<String>,
    accepted_at: Time,
    before: Option<Arc<AcceptedBaseline>>,
) -> AcceptedBaseline {
    AcceptedBaseline {
        name: parsed.name,
        revision: parsed.revision,
        sha256: hex::encode(parsed.sha256),
        signers,
        not_before: parsed.validity.not_before,
        not_after: parsed.validity.not_after,
        transition: parsed.transition,
        source_commit: parsed.source_commit,
        accepted_at,
        objects: parsed.objects,
        writers: parsed.writers,
        before,
    }
}

fn reject(file: &str, reason: String) -> Box<Rejected> {
    Box::new(Rejected {
        file: file.into(),
        reason,
        name: None,
        revision: None,
        sha256: None,
        signers: Vec::new(),
    })
}

/// Whether a baseline is valid now.
///
/// # Errors
/// Not yet, or not any more.
pub fn is_valid(baseline: &Baseline, now: Time) -> Result<(), String> {
    match (baseline.validity.not_before, baseline.validity.not_after) {
        (Some(from), _) if now < from => Err(format!("not valid before {from}")),
        (_, Some(to)) if now > to => Err(format!("expired at {to}")),
        _ => Ok(()),
    }
}

fn in_scope(baseline: &Baseline, policy: &Policy) -> Result<(), String> {
    if let Some(cluster) = &baseline.scope.cluster
        && policy.cluster.as_ref() != Some(cluster)
    {
        let here = policy.cluster.as_deref().unwrap_or("unknown");
        return Err(format!("is for cluster {cluster}, and this one is {here}"));
    }
    let Some(nodes) = &baseline.scope.nodes else { return Ok(()) };
    if !nodes.names.is_empty() && !nodes.names.contains(&policy.node) {
        return Err(format!("is not for node {}", policy.node));
    }
    for (key, value) in &nodes.labels {
        if policy.labels.as_ref().and_then(|labels| labels.get(key)) != Some(value) {
            return Err(format!("is for nodes with label {key}={value}"));
        }
    }
    Ok(())
}

/// What the fuzzers give to the reader of the ledger.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    crate::fuzz::used(
        serde_json::from_slice::<Ledger>(bytes)
            .map(|ledger| (ledger.knows("0"), ledger.step("n", u64::MAX, "0"), ledger.step("n", 0, "0"))),
    );
}
