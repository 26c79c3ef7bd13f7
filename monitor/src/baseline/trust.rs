//! Whose signatures count: the keys of the config or command line, and how they are changed by a statement signed with the
//! keys before.
//!
//! A *keys statement* is an in-toto statement like a baseline: `predicateType` [`PREDICATE_TYPE`], `subject[0]` named
//! [`NAME`] with the SHA-256 of `predicate.keys` as canonical JSON. It replaces all keys and the threshold. Its revision
//! only goes up; its threshold never goes down without a restart, nor ever below the config's.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::Error;
use super::keys::TrustedKey;
use super::signed::{Report, Signed};
use super::statement::{STATEMENT_TYPE, Statement, is_statement_type};

/// `predicateType` of a keys statement.
pub const PREDICATE_TYPE: &str = "https://meshseal.dev/keys/v1";
/// Name of its subject, and of the "baseline" it is in records.
pub const NAME: &str = "trusted-keys";
/// Most keys of one statement.
const MAX_KEYS: usize = 100;
const WHAT: &str = "bad keys statement";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Predicate {
    /// From 1; never goes down.
    revision: u64,
    /// Distinct keys that must sign from then on.
    require_signatures: u32,
    keys: Vec<WireKey>,
}

/// Fields are sorted: their canonical JSON is hashed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WireKey {
    /// What people call it.
    name: String,
    /// `PUBLIC KEY`, PEM.
    pem: String,
}

/// A keys statement, well-formed. Whether it is trusted, [`Trust::rotate`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// From 1.
    pub revision: u64,
    /// Distinct keys that must sign from then on.
    pub threshold: usize,
    /// The keys from then on.
    pub keys: Vec<TrustedKey>,
    /// Hex SHA-256 of the payload.
    pub sha256: String,
}

impl Rotation {
    /// Reads a statement.
    ///
    /// # Errors
    /// What is wrong, with the field.
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let bad = |place: &str, expected: &str| Error::new(WHAT, place, expected);
        let wire: Statement<Predicate> =
            serde_json::from_slice(payload).map_err(|e| Error::new(WHAT, "JSON", e))?;
        if !is_statement_type(&wire.statement_type) {
            return Err(bad("_type", STATEMENT_TYPE));
        }
        if wire.predicate_type != PREDICATE_TYPE {
            return Err(bad("predicateType", PREDICATE_TYPE));
        }
        let predicate = wire.predicate;
        if predicate.revision == 0 {
            return Err(bad("predicate.revision", "1 or more"));
        }
        let [subject] = wire.subject.as_slice() else { return Err(bad("subject", "exactly one")) };
        if subject.digest.sha256 != digest(&predicate.keys)? {
            return Err(bad("subject[0].digest.sha256", "the SHA-256 of predicate.keys as canonical JSON"));
        }
        if predicate.keys.is_empty() || predicate.keys.len() > MAX_KEYS {
            return Err(bad("predicate.keys", "1 to 100 keys"));
        }
        let mut keys = Vec::new();
        let mut ids = BTreeSet::new();
        for (at, key) in predicate.keys.iter().enumerate() {
            let place = format!("predicate.keys[{at}].pem");
            let mut parsed =
                TrustedKey::from_pem(key.pem.as_bytes()).map_err(|e| Error::new(WHAT, &place, e.expected))?;
            if !ids.insert(parsed.id().to_owned()) {
                return Err(bad(&place, "each key once"));
            }
            parsed.set_name(&key.name);
            keys.push(parsed);
        }
        let threshold = usize::try_from(predicate.require_signatures).unwrap_or(usize::MAX);
        if threshold == 0 || threshold > keys.len() {
            return Err(bad("predicate.requireSignatures", "1 to as many as there are keys"));
        }
        Ok(Self {
            revision: predicate.revision,
            threshold,
            keys,
            sha256: hex::encode(Sha256::digest(payload)),
        })
    }

    /// Makes a statement, to review and to sign with the keys before.
    ///
    /// # Errors
    /// What [`Rotation::parse`] would refuse.
    pub fn statement(revision: u64, threshold: u32, keys: &[TrustedKey]) -> Result<Vec<u8>, Error> {
        if let Some(key) = keys.iter().find(|key| !key.is_valid_always()) {
            let expected = "a key without valid-after and valid-before: a keys statement cannot say until when one counts";
            return Err(Error::new("bad trusted key", key.label(), expected));
        }
        let keys = keys
            .iter()
            .map(|key| Ok(WireKey { name: key.name().to_owned(), pem: key.to_pem()? }))
            .collect::<Result<Vec<_>, Error>>()?;
        let sha256 = digest(&keys)?;
        let predicate = Predicate { revision, require_signatures: threshold, keys };
        let out = Statement::around((NAME, sha256), PREDICATE_TYPE, predicate).to_json()?;
        Self::parse(&out)?;
        Ok(out)
    }
}

fn digest(keys: &[WireKey]) -> Result<String, Error> {
    let text = serde_json::to_vec(keys).map_err(|e| Error::new("cannot write keys", "", e))?;
    Ok(hex::encode(Sha256::digest(text)))
}

/// Whether a payload means to be a keys statement.
#[must_use]
pub fn is_keys_statement(payload: &[u8]) -> bool {
    is_of_type(payload, PREDICATE_TYPE)
}

/// Whether a payload means to be a statement of that predicate type, which is a short one.
pub(super) fn is_of_type(payload: &[u8], predicate_type: &str) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(rename = "predicateType")]
        predicate_type: String,
    }
    // A baseline may be long: do not read all of it only to find that it is one.
    payload.len() <= 4 << 20
        && serde_json::from_slice::<Probe>(payload).is_ok_and(|probe| probe.predicate_type == predicate_type)
}

/// The revision that an envelope around a keys statement claims, nothing checked: to take several in their order. `None` if
/// it is no such envelope.
#[must_use]
pub fn claimed_revision(envelope: &[u8]) -> Option<u64> {
    let signed = Signed::read(envelope).ok().filter(|signed| is_keys_statement(&signed.payload))?;
    Some(Rotation::parse(&signed.payload).map_or(u64::MAX, |rotation| rotation.revision))
}

/// The keys that are trusted, and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The keys that count now.
    pub keys: Vec<TrustedKey>,
    /// How many of them must have signed, at least 1.
    pub threshold: usize,
    /// Revision of the last keys statement; 0 without one.
    pub revision: u64,
    /// The least the threshold can be.
    floor: usize,
    /// Keys that counted before: for what was accepted then.
    retired: Vec<TrustedKey>,
}

impl Trust {
    /// The keys of the config or command line.
    #[must_use]
    pub fn new(keys: Vec<TrustedKey>, threshold: usize) -> Self {
        let threshold = threshold.max(1);
        Self { keys, threshold, revision: 0, floor: threshold, retired: Vec::new() }
    }

    /// Takes up a keys statement. `may_relax`: at a start, where the threshold may go down to the config's again.
    ///
    /// # Errors
    /// Not signed by enough of the keys before, not well-formed, not a later revision, or a lower threshold.
    pub fn rotate(&mut self, signed: &Signed, may_relax: bool) -> Result<(Rotation, Report), Error> {
        let report = signed.check(&self.keys, self.threshold)?;
        let rotation = Rotation::parse(&signed.payload)?;
        if rotation.revision <= self.revision {
            let expected = format!("above {}, which is in force", self.revision);
            return Err(Error::new(WHAT, "predicate.revision", expected));
        }
        if rotation.threshold < self.threshold && !may_relax {
            let expected = format!("{} or more: fewer than are required now takes a restart", self.threshold);
            return Err(Error::new(WHAT, "predicate.requireSignatures", expected));
        }
        if rotation.keys.len() < self.floor {
            let expected = format!("{} or more: the config requires that many signatures", self.floor);
            return Err(Error::new(WHAT, "predicate.keys", expected));
        }
        let before = std::mem::replace(&mut self.keys, rotation.keys.clone());
        self.retired.extend(before);
        self.retired.retain(|old| !rotation.keys.iter().any(|key| key.id() == old.id()));
        self.threshold = rotation.threshold.max(self.floor);
        self.revision = rotation.revision;
        Ok((rotation, report))
    }

    /// Checks an envelope that was accepted before, when other keys may have counted.
    ///
    /// # Errors
    /// Fewer than the config's threshold of signatures by keys that count or counted.
    pub fn check_accepted(&self, signed: &Signed) -> Result<Report, Error> {
        let all: Vec<TrustedKey> = self.keys.iter().chain(&self.retired).cloned().collect();
        signed.check(&all, self.floor)
    }
}
