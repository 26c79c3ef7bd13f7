//! A payload and the signatures over it, in whichever form they come: a DSSE envelope, a sigstore bundle around one, or a
//! bare statement with signatures beside it.
//!
//! Nothing is believed before [`Signed::verify`]: key ids and hints are shown, never used to trust; each signature is
//! tried with each trusted key, and each key counts once.

use std::collections::BTreeSet;

use base64::Engine as _;

use super::bundle;
use super::dsse::{self, MAX_PAYLOAD, PAYLOAD_TYPE, pre_authentication_encoding};
use super::error::Error;
use super::keys::{SigningKey, TrustedKey, label};
use super::openssh::{self, SshSignature};
use crate::model::Time;
use crate::text::one_line;

/// Most signatures looked at.
pub const MAX_SIGNATURES: usize = 64;
/// Longest file with a signature in it, but for envelopes and bundles that bring the payload along.
const MAX_DETACHED: usize = 64 * 1024;

/// What a signature was made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// DSSE's pre-authentication encoding of the payload.
    Envelope,
    /// The payload as it is: `ssh-keygen -Y sign FILE`, `cosign sign-blob FILE`, `openssl dgst -sign`. Cannot be taken for
    /// the other: that begins with `DSSEv1`, a statement with a brace.
    Payload,
}

/// One signature, not believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The key it claims to be by, in whatever way its tool names keys.
    pub claim: Option<String>,
    /// The key it claims to be by, as [`TrustedKey::id`]; ours have this and no `claim`, because verifiers of other makes pass
    /// over a signature whose key id is not of their own kind.
    pub key: Option<String>,
    /// Its bytes: Ed25519, ECDSA, or a whole SSHSIG.
    pub bytes: Vec<u8>,
    /// What it was made over. For an SSHSIG both are tried.
    pub over: Over,
}

impl Signature {
    /// The key it claims to be by.
    fn named(&self) -> Option<&str> {
        self.key.as_deref().or(self.claim.as_deref()).filter(|claim| !claim.is_empty())
    }
}

/// A payload and signatures over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What is signed.
    pub payload: Vec<u8>,
    /// By whom it claims to be.
    pub signatures: Vec<Signature>,
}

/// A payload whose signatures were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The bytes that were signed.
    pub payload: Vec<u8>,
    /// Ids of the trusted keys that signed, sorted.
    pub signers: Vec<String>,
    /// All that is to be said of the signatures.
    pub report: Report,
}

/// Who signed, who did not, and what was not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Name and id of each trusted key that signed, by id.
    pub signed: Vec<(String, String)>,
    /// Name and id of each trusted key that did not.
    pub absent: Vec<(String, String)>,
    /// Of each signature that no trusted key made: the key it claims to be by, or what it is.
    pub unknown: Vec<String>,
    /// Signatures by a key that was counted already.
    pub repeated: usize,
}

impl Report {
    /// The trusted keys that signed, for people.
    #[must_use]
    pub fn signers(&self) -> String {
        let labels: Vec<String> = self.signed.iter().map(|(name, id)| label(name, id)).collect();
        labels.join(", ")
    }

    /// Ids of the trusted keys that signed, sorted.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.signed.iter().map(|(_, id)| id.clone()).collect()
    }

    /// What is left to say: signatures that do not count, and keys that have not signed.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.repeated > 0 {
            out.push(format!("{} more by the same key", self.repeated));
        }
        if !self.unknown.is_empty() {
            out.push(format!("{} by no trusted key ({})", self.unknown.len(), some(&self.unknown)));
        }
        if !self.absent.is_empty() {
            let labels: Vec<String> = self.absent.iter().map(|(name, id)| label(name, id)).collect();
            out.push(format!("not signed by {}", some(&labels)));
        }
        out
    }
}

/// The first few.
fn some(all: &[String]) -> String {
    const FEW: usize = 5;
    let shown = all.get(..FEW.min(all.len())).unwrap_or_default().join(", ");
    if all.len() > FEW { format!("{shown} and {} more", all.len() - FEW) } else { shown }
}

impl Signed {
    /// A payload that nobody has signed yet.
    ///
    /// # Errors
    /// Longer than [`MAX_PAYLOAD`].
    pub fn bare(payload: Vec<u8>) -> Result<Self, Error> {
        if payload.len() > MAX_PAYLOAD {
            return Err(Error::new("bad statement", "size", format!("at most {MAX_PAYLOAD} bytes")));
        }
        Ok(Self { payload, signatures: Vec::new() })
    }

    /// Reads an envelope, or a sigstore bundle around one.
    ///
    /// # Errors
    /// Neither; another payload type; a bundle whose log entries are for something else.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        if bundle::is_bundle(bytes) { bundle::signed(bytes) } else { dsse::parse(bytes) }
    }

    /// Adds the signatures of a file that another tool made over this very payload: an SSH signature, a cosign bundle (old or
    /// new), an envelope, or a bare signature, in base64 or not.
    ///
    /// # Errors
    /// None of these; for another payload; too many.
    pub fn attach(&mut self, file: &[u8]) -> Result<(), Error> {
        let bad = |expected: &str| Error::new("bad signature", "", expected);
        let text = std::str::from_utf8(file).ok().map(str::trim);
        let added = if text.is_some_and(|text| text.starts_with('{')) {
            if bundle::is_bundle(file) {
                bundle::attached(file, &self.payload)?
            } else {
                let other = dsse::parse(file)?;
                if other.payload != self.payload {
                    return Err(bad("an envelope around this very payload"));
                }
                other.signatures
            }
        } else {
            if file.len() > MAX_DETACHED {
                return Err(bad("at most 65536 bytes"));
            }
            let armoured = text.filter(|text| text.starts_with("-----BEGIN "));
            let bytes = match (armoured, text) {
                (Some(text), _) => SshSignature::dearmour(text)
                    .ok_or_else(|| bad("an SSH SIGNATURE as `ssh-keygen -Y sign` writes it"))?,
                // base64(1) and `openssl base64` break lines.
                (None, Some(text)) => dsse::decode(&text.split_ascii_whitespace().collect::<String>())
                    .unwrap_or_else(|| file.to_vec()),
                (None, None) => file.to_vec(),
            };
            vec![Signature { claim: None, key: None, bytes, over: Over::Payload }]
        };
        for signature in &added {
            if signature.bytes.starts_with(openssh::MAGIC) {
                SshSignature::parse(&signature.bytes)?;
            } else if !(8..=80).contains(&signature.bytes.len()) {
                return Err(bad("an Ed25519 or ECDSA P-256 signature, an SSH signature, or a cosign bundle"));
            }
        }
        self.signatures.extend(added.into_iter().filter(|new| !new.bytes.is_empty()));
        if self.signatures.len() > MAX_SIGNATURES {
            return Err(Error::new("bad signature", "", format!("at most {MAX_SIGNATURES} of them")));
        }
        Ok(())
    }

    /// Adds a signature by each key.
    ///
    /// # Errors
    /// The same key twice, or one that has signed already.
    pub fn sign(&mut self, keys: &[SigningKey]) -> Result<(), Error> {
        let distinct: BTreeSet<&str> = keys.iter().map(SigningKey::id).collect();
        if distinct.len() != keys.len() {
            return Err(Error::new("cannot sign", "keys", "at least one, each of them once"));
        }
        let message = pre_authentication_encoding(PAYLOAD_TYPE, &self.payload);
        for key in keys {
            if self.signatures.iter().any(|known| self.made_by(known, key.public(), &message)) {
                let place = format!("key {}", key.id());
                return Err(Error::new("cannot sign", place, "a key that has not signed yet"));
            }
        }
        self.signatures.extend(keys.iter().map(|key| Signature {
            claim: None,
            key: Some(key.id().to_owned()),
            bytes: key.sign(&message),
            over: Over::Envelope,
        }));
        Ok(())
    }

    /// Counts the distinct trusted keys that signed.
    ///
    /// # Errors
    /// Fewer than `threshold` (at least 1): who signed, what did not count, and who has not.
    pub fn check(&self, trusted: &[TrustedKey], threshold: usize) -> Result<Report, Error> {
        let report = self.report(trusted);
        let threshold = threshold.max(1);
        if report.signed.len() >= threshold {
            return Ok(report);
        }
        let mut said = vec![format!("{threshold} by distinct trusted keys, not {}", report.signed.len())];
        if !report.signed.is_empty() {
            said.push(format!("signed by {}", report.signers()));
        }
        said.extend(report.remarks());
        if trusted.is_empty() {
            said.push("no key is trusted".into());
        }
        if self.signatures.is_empty() {
            said.push("it is not signed at all".into());
        }
        Err(Error::new("signature not trusted", "signatures", said.join("; ")))
    }

    /// As [`Signed::check`], and hands the payload over.
    ///
    /// # Errors
    /// As [`Signed::check`].
    pub fn verify(self, trusted: &[TrustedKey], threshold: usize) -> Result<Verified, Error> {
        let report = self.check(trusted, threshold)?;
        Ok(Verified { payload: self.payload, signers: report.ids(), report })
    }

    /// Who signed and who did not, without a threshold.
    #[must_use]
    pub fn report(&self, trusted: &[TrustedKey]) -> Report {
        let now = Time::now();
        let message = pre_authentication_encoding(PAYLOAD_TYPE, &self.payload);
        let mut report = Report::default();
        let mut counted = BTreeSet::new();
        for signature in &self.signatures {
            let by = trusted.iter().find(|key| self.made_by(signature, key, &message));
            match by {
                Some(key) if !key.is_valid_at(now) => {
                    report.unknown.push(format!("{}, not valid now", key.label()));
                }
                Some(key) if counted.insert(key.id().to_owned()) => {
                    report.signed.push((key.name().to_owned(), key.id().to_owned()));
                }
                Some(_) => report.repeated += 1,
                None => report.unknown.push(claim(signature)),
            }
        }
        report.signed.sort_by(|a, b| a.1.cmp(&b.1));
        let absent = trusted.iter().filter(|key| !counted.contains(key.id()));
        report.absent = absent.map(|key| (key.name().to_owned(), key.id().to_owned())).collect();
        report
    }

    fn made_by(&self, signature: &Signature, key: &TrustedKey, message: &[u8]) -> bool {
        if signature.bytes.starts_with(openssh::MAGIC) {
            return SshSignature::parse(&signature.bytes).is_ok_and(|signature| {
                signature.verifies(key, &self.payload) || signature.verifies(key, message)
            });
        }
        match signature.over {
            Over::Envelope => key.verifies(message, &signature.bytes),
            Over::Payload => key.verifies(&self.payload, &signature.bytes),
        }
    }

    /// As a DSSE envelope. Signatures over the bare payload are marked (`"over": "payload"`), which other verifiers of
    /// DSSE pass over as signatures they cannot verify.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn to_envelope(&self) -> Result<Vec<u8>, Error> {
        dsse::write(self)
    }
}

/// What a signature says of itself, for people.
fn claim(signature: &Signature) -> String {
    if signature.bytes.starts_with(openssh::MAGIC) {
        return match SshSignature::parse(&signature.bytes) {
            Ok(ssh) => match (ssh.foreign_namespace(), ssh.key_id()) {
                (Some(other), _) => {
                    let other = one_line(&other);
                    format!("SSH namespace {other}, not {}", openssh::NAMESPACE)
                }
                (None, id) => format!("SSH key {}", label("", &id.unwrap_or_default())),
            },
            Err(e) => format!("SSH signature: {}", e.expected),
        };
    }
    match signature.named() {
        Some(claim) => {
            let short: String = claim.chars().take(16).collect();
            format!("claims key {}", one_line(&short))
        }
        _ => "no key id".into(),
    }
}

/// The key ids signatures claim, for showing only.
#[must_use]
pub fn claims(signed: &Signed) -> Vec<String> {
    let of = |signature: &Signature| match signature.named() {
        Some(claim) => claim.to_owned(),
        None => SshSignature::parse(&signature.bytes)
            .ok()
            .and_then(|ssh| ssh.key_id())
            .unwrap_or_else(|| "no key id".into()),
    };
    signed.signatures.iter().map(of).collect()
}

/// For writing signatures.
pub(super) fn encode(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
