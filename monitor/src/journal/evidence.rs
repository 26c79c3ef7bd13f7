//! A violation's records with proof that they are in the signed log: to hand on, and to be checked without the node.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tlog_tiles::tlog::{self, Hash};

use super::keys::{self, KeyChain, Meta};
use super::{JournalError, Reader, checkpoint};
use crate::model::{Record, RecordBody};

/// `format` of a bundle.
const FORMAT: &str = "meshseal-evidence/1";
/// Records of one violation in a bundle: its first and its last ones.
const MAX_RECORDS: usize = 1000;

/// A bundle. The checkpoint is signed by the node's key; everything else follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// `meshseal-evidence/1`.
    pub format: String,
    /// `uid` of the opened record.
    pub violation: String,
    /// Name of the log.
    pub origin: String,
    /// The node's public key, as in `node.pub`.
    pub key: String,
    /// Key rotations that led to it, in order, as in `keys/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<String>,
    /// The signed checkpoint.
    pub checkpoint: String,
    /// Records between the first and the second of these that were left out because there are too many.
    #[serde(default)]
    pub omitted: u64,
    /// The violation's records, in order.
    pub records: Vec<Proven>,
}

/// A record and its place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proven {
    /// Its leaf index is `seq - 1`.
    pub seq: u64,
    /// Exactly the bytes that were hashed.
    pub payload: String,
    /// Base64 of the hashes of RFC 6962 §2.1.1.
    pub hashes: Vec<String>,
}

/// What checking a bundle found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checked {
    /// Nothing was found to be wrong.
    pub sound: bool,
    /// The violation.
    pub violation: String,
    /// Name of the log.
    pub origin: String,
    /// Records the checkpoint covers.
    pub tree_size: u64,
    /// What is wrong.
    pub findings: Vec<String>,
    /// What to know beside.
    pub notes: Vec<String>,
    /// The records, as far as they are proven.
    pub records: Vec<Record>,
}

/// Makes the bundle for a violation from the journal in `dir`; `seqs` are its records. `None` if the newest checkpoint does
/// not cover all of them.
///
/// # Errors
/// The journal cannot be read.
pub fn gather(dir: &Path, violation: &str, seqs: &[u64]) -> Result<Option<Evidence>, JournalError> {
    let meta = Meta::load(dir)?.ok_or_else(|| JournalError::Missing(dir.to_path_buf()))?;
    let (key, rotations) = keys::public_parts(dir)?;
    let mut reader = Reader::open(dir)?;
    let (mut records, mut head) = (Vec::new(), None);
    let skipped = seqs.len().saturating_sub(MAX_RECORDS);
    let chosen = seqs.iter().enumerate().filter(|(at, _)| *at == 0 || *at > skipped).map(|(_, seq)| *seq);
    for seq in chosen {
        let Some(stored) = reader.read_from(seq, 1, 1)?.pop().filter(|stored| stored.seq == seq) else {
            return Ok(None);
        };
        let proof = match reader.inclusion_proof(seq) {
            Ok(proof) => proof,
            Err(JournalError::OutOfRange { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
        // All against one checkpoint: another may have come meanwhile.
        if head.get_or_insert_with(|| proof.checkpoint.clone()) != &proof.checkpoint {
            return Ok(None);
        }
        let payload = String::from_utf8(stored.payload.to_vec())
            .map_err(|_| JournalError::Tampered(format!("record {seq} is not text")))?;
        records.push(Proven { seq, payload, hashes: proof.hashes });
    }
    Ok(head.map(|checkpoint| Evidence {
        format: FORMAT.to_owned(),
        violation: violation.to_owned(),
        origin: meta.origin,
        key,
        rotations,
        checkpoint,
        omitted: skipped as u64,
        records,
    }))
}

/// Whether a file says of itself that it is a bundle: one that does and cannot be parsed was changed.
#[must_use]
pub fn is_bundle(bytes: &[u8]) -> bool {
    let start = String::from_utf8_lossy(bytes.get(..128).unwrap_or(bytes));
    start.replace(char::is_whitespace, "").starts_with(&format!("{{\"format\":\"{FORMAT}\""))
}

impl Checked {
    /// The outcome for a bundle that cannot be parsed.
    #[must_use]
    pub fn damaged(finding: String) -> Self {
        Self {
            sound: false,
            violation: String::new(),
            origin: String::new(),
            tree_size: 0,
            findings: vec![finding],
            notes: Vec::new(),
            records: Vec::new(),
        }
    }
}

/// Checks a bundle, by itself or against a public key of the node that was kept elsewhere.
#[must_use]
pub fn check(evidence: &Evidence, key: Option<&str>) -> Checked {
    let mut checked = Checked {
        sound: false,
        violation: evidence.violation.clone(),
        origin: evidence.origin.clone(),
        tree_size: 0,
        findings: Vec::new(),
        notes: Vec::new(),
        records: Vec::new(),
    };
    if let Err(finding) = check_all(evidence, key, &mut checked) {
        checked.findings.push(finding);
    }
    checked.sound = checked.findings.is_empty();
    checked
}

fn check_all(evidence: &Evidence, key: Option<&str>, checked: &mut Checked) -> Result<(), String> {
    if evidence.format != FORMAT {
        return Err(format!("format: {}: expected {FORMAT}", evidence.format));
    }
    let origin = &evidence.origin;
    let chain =
        KeyChain::from_parts(&evidence.key, &evidence.rotations, origin).map_err(|e| e.to_string())?;
    match key {
        None => {
            checked.notes.push("the key is the bundle's own: compare it with one kept elsewhere".to_owned());
        }
        Some(text) => {
            let given = keys::parse_public(text, origin).map_err(|e| format!("the given key: {e}"))?;
            if !chain.contains(&given) {
                return Err("the given key is not the one this was signed with".to_owned());
            }
        }
    }
    let (size, root) = checkpoint::open_external(evidence.checkpoint.as_bytes(), origin, &chain)
        .map_err(|e| format!("checkpoint: {e}"))?;
    checked.tree_size = size;
    if evidence.omitted > 0 {
        checked.notes.push(format!("{} records after the first were left out", evidence.omitted));
    }
    let mut last = 0;
    for (at, proven) in evidence.records.iter().enumerate() {
        let seq = proven.seq;
        let of = |what: String| format!("record {seq}: {what}");
        if seq <= last {
            return Err(of("out of order".to_owned()));
        }
        last = seq;
        let hashes = proven.hashes.iter().map(|hash| Hash::parse_hash(hash)).collect::<Result<Vec<_>, _>>();
        let hashes = hashes.map_err(|e| of(format!("proof: {e}")))?;
        let leaf = tlog::record_hash(proven.payload.as_bytes());
        tlog::check_record(&hashes, size, root, seq - 1, leaf)
            .map_err(|_| of("it is not in the signed log".to_owned()))?;
        let record: Record = serde_json::from_str(&proven.payload).map_err(|e| of(e.to_string()))?;
        if record.seq != seq {
            return Err(of(format!("it says it is record {}", record.seq)));
        }
        let opens = matches!(record.body, RecordBody::ViolationOpened(_)) && record.uid == evidence.violation;
        let follows = record.body.violation_id() == Some(&evidence.violation);
        if (at == 0 && !opens) || (at > 0 && !follows) {
            return Err(of(format!("it does not belong to violation {}", evidence.violation)));
        }
        checked.records.push(record);
    }
    if evidence.records.is_empty() { Err("there are no records".to_owned()) } else { Ok(()) }
}

/// What the fuzzers give to the reader of bundles.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    crate::fuzz::used(is_bundle(bytes));
    if let Ok(evidence) = serde_json::from_slice::<Evidence>(bytes) {
        let (by_itself, by_key) = (check(&evidence, None), check(&evidence, Some(&evidence.key)));
        assert_eq!(by_itself.sound, by_key.sound, "its own key is one of its keys");
    }
}

/// A sound bundle of one record, and of one after a change of the key.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_seeds() -> Vec<Vec<u8>> {
    let (origin, uid) = ("meshseal/n/x", "01J00000000000000000000000");
    let (node_key, rotation) = keys::fuzz_key(origin);
    let payload = format!(
        r#"{{"seq":1,"time":"2026-01-01T00:00:00Z","node":"n","severity":"high","uid":"{uid}","coverage":"full","kind":"violation.opened","violation":"content","operation":"write","sensor":"lsm","count":1,"object":{{"id":"x","path":"/x","class":"sealed","baseline":null,"revision":null}},"first_time":"2026-01-01T00:00:00Z","last_time":"2026-01-01T00:00:00Z","fingerprint":"f","action":"observed","expected":{{}},"actual":{{}},"actor":null,"target":null,"attack":[]}}"#
    );
    let root = tlog::record_hash(payload.as_bytes());
    let checkpoint = checkpoint::sign(&node_key, origin, 1, root, &checkpoint::Extra::default());
    let key = keys::parse_public(&node_key.vkey(), origin)
        .and_then(|key| keys::public_text(origin, &key).map_err(|e| e.to_string()));
    let mut evidence = Evidence {
        format: FORMAT.to_owned(),
        violation: uid.to_owned(),
        origin: origin.to_owned(),
        key: key.unwrap_or_default(),
        rotations: Vec::new(),
        checkpoint: checkpoint.unwrap_or_default(),
        omitted: 0,
        records: vec![Proven { seq: 1, payload, hashes: Vec::new() }],
    };
    assert!(check(&evidence, None).sound, "{:?}", check(&evidence, None).findings);
    let one = serde_json::to_vec(&evidence).unwrap_or_default();
    evidence.rotations.push(rotation);
    assert!(check(&evidence, None).sound, "{:?}", check(&evidence, None).findings);
    vec![one, serde_json::to_vec(&evidence).unwrap_or_default()]
}
