//! What a rotated certificate or token must keep when its bytes change.
//!
//! A certificate keeps its SPIFFE or DNS names, chains to a sealed root (`certify`), matches its private key, is in time, and is
//! not older than the one it replaces. A service account token keeps issuer, subject, audience and pod. A token's own
//! signature is not checked here: the API server's keys are not on the node; its lawful writer is.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, GeneralName, Pem, X509Certificate};

use super::certify;
use super::object::Digest;
use crate::model::{HostPath, Time};

/// Longest chain looked at.
const MAX_CHAIN: usize = 10;
/// How far a clock may be off before "not yet valid" counts (5 minutes), in nanoseconds.
pub(super) const SKEW: i64 = 300_000_000_000;
/// Seconds of a day.
const DAY: u64 = 86_400;
/// Seconds a renewal may be valid for in any case: as long as public ones may (CA/Browser Forum, until 2026).
const LIFETIME: u64 = 398 * DAY;

/// The identity a rotated object must keep, as sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealedIdentity {
    /// A certificate chain in PEM, leaf first.
    X509 {
        /// `URI:spiffe://...`, `DNS:...`, `IP:...`: the whole set, exactly.
        sans: BTreeSet<String>,
        /// SHA-256 of the DER of each root the chain may end in; empty: the chain is not anchored.
        roots: BTreeSet<Digest>,
        /// Where the roots themselves lie on the host; checked against `roots` before use.
        roots_file: Option<HostPath>,
        /// Where the private key lies on the host.
        key_file: Option<HostPath>,
        /// Seconds the leaf was valid for as it was sealed; unknown: a renewal's are not bounded.
        lifetime: Option<u64>,
    },
    /// A JSON web token.
    Token {
        /// Issuer; any, if empty.
        iss: String,
        /// Subject.
        sub: String,
        /// Audiences, the whole set; any, if empty.
        aud: BTreeSet<String>,
        /// It was bound to a pod as it was sealed: one that is bound to none is no successor. Which pod that must be the place says,
        /// where it is a pod's: pods come and go.
        pod_bound: bool,
    },
}

impl fmt::Display for SealedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::X509 { sans, .. } => f.write_str(&join(sans)),
            Self::Token { iss, sub, aud, .. } => write!(f, "iss={iss} sub={sub} aud={}", join(aud)),
        }
    }
}

/// The identity found in a file. Certificates are public and kept whole; of a token only the claims are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A certificate chain, leaf first.
    X509 {
        /// As in [`SealedIdentity::X509`].
        sans: BTreeSet<String>,
        /// DER of each certificate in the file.
        chain: Vec<Vec<u8>>,
        /// SHA-256 of the leaf's `SubjectPublicKeyInfo`.
        spki: Digest,
        /// Validity of the leaf.
        not_before: Time,
        /// Validity of the leaf.
        not_after: Time,
    },
    /// The claims of a token.
    Token {
        /// Issuer.
        iss: String,
        /// Subject.
        sub: String,
        /// Audiences.
        aud: BTreeSet<String>,
        /// UID of the pod it is bound to.
        pod: Option<String>,
        /// Issued at.
        iat: Option<Time>,
    },
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::X509 { sans, .. } => f.write_str(&join(sans)),
            Self::Token { iss, sub, aud, .. } => write!(f, "iss={iss} sub={sub} aud={}", join(aud)),
        }
    }
}

fn join(set: &BTreeSet<String>) -> String {
    set.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// What is known beside the rotated file itself.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// DER of the certificates in the roots file.
    pub roots: Vec<Vec<u8>>,
    /// SHA-256 of the public key that belongs to the private key in the key file.
    pub key_spki: Option<Digest>,
    /// UID of the pod whose directory it lies in.
    pub pod: Option<String>,
}

/// The UID in `.../pods/<uid>/volumes/...` (or `volume-subpaths`), wherever the kubelet's directory is.
#[must_use]
pub fn pod_of(path: &HostPath) -> Option<String> {
    let parts: Vec<&[u8]> = path.as_bytes().split(|byte| *byte == b'/').collect();
    let uid = parts.windows(3).find_map(|parts| match parts {
        [b"pods", uid, b"volumes" | b"volume-subpaths"] => Some(*uid),
        _ => None,
    })?;
    std::str::from_utf8(uid).ok().map(str::to_owned)
}

/// Reads the identity out of a PEM chain or a JSON web token.
///
/// # Errors
/// Neither is there, or it is broken; the text says which, and tells nothing of the content.
pub fn extract(bytes: &[u8]) -> Result<Identity, String> {
    if looks_like_token(bytes) { token(bytes) } else { x509(bytes) }
}

/// The DER of all certificates in a PEM file, at most [`MAX_CHAIN`] × 10 of them.
#[must_use]
pub fn certificates(bytes: &[u8]) -> Vec<Vec<u8>> {
    // Most files hold none, and the reader below goes through them line by line.
    if memchr::memmem::find(bytes, b"-----BEGIN ").is_none() {
        return Vec::new();
    }
    Pem::iter_from_buffer(bytes)
        .map_while(Result::ok)
        .filter(|pem| pem.label == "CERTIFICATE")
        .take(MAX_CHAIN * 10)
        .map(|pem| pem.contents)
        .collect()
}

/// Whether each block is a certificate or a private key, and whole: programs take other labels for certificates too, and differ in
/// what they make of a broken block.
fn is_plain_chain(bytes: &[u8]) -> bool {
    let plain =
        |label: &str| label == "CERTIFICATE" || label == "EC PARAMETERS" || label.ends_with("PRIVATE KEY");
    let read = Pem::iter_from_buffer(bytes)
        .take_while(|block| block.as_ref().is_ok_and(|block| plain(&block.label)))
        .count();
    read == memchr::memmem::find_iter(bytes, b"-----BEGIN ").count()
}

fn x509(bytes: &[u8]) -> Result<Identity, String> {
    let chain = certificates(bytes);
    if !chain.is_empty() && !is_plain_chain(bytes) {
        return Err("expected PEM certificates and private keys, and no other block".into());
    }
    if chain.len() > MAX_CHAIN {
        return Err(format!("more than {MAX_CHAIN} certificates"));
    }
    let leaf = chain.first().ok_or("no PEM certificate and no token")?;
    let leaf = parse(leaf)?;
    let mut sans = BTreeSet::new();
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| "broken subject alternative name")?
        .map_or(&[] as &[_], |ext| ext.value.general_names.as_slice());
    for name in names {
        sans.insert(match name {
            GeneralName::URI(uri) => format!("URI:{uri}"),
            GeneralName::DNSName(dns) => format!("DNS:{dns}"),
            GeneralName::IPAddress(ip) => format!("IP:{}", hex::encode(ip)),
            GeneralName::RFC822Name(mail) => format!("email:{mail}"),
            other => format!("other:{other:?}"),
        });
    }
    let time = |at: x509_parser::time::ASN1Time| Time(at.timestamp().saturating_mul(1_000_000_000));
    Ok(Identity::X509 {
        sans,
        spki: Sha256::digest(leaf.public_key().raw).into(),
        not_before: time(leaf.validity().not_before),
        not_after: time(leaf.validity().not_after),
        chain,
    })
}

pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        _ => Err("broken certificate".into()),
    }
}

/// Whether this is a JSON web token: three parts in base64url, the first an object.
#[must_use]
pub fn looks_like_token(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii();
    text.starts_with(b"eyJ")
        && text.len() <= 64 * 1024
        && text.split(|b| *b == b'.').count() == 3
        && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'='))
}

fn token(bytes: &[u8]) -> Result<Identity, String> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    #[derive(Default, serde::Deserialize)]
    struct Kubernetes {
        #[serde(default)]
        pod: Option<Pod>,
    }
    #[derive(serde::Deserialize)]
    struct Pod {
        uid: String,
    }
    #[derive(serde::Deserialize)]
    struct Claims {
        iss: String,
        sub: String,
        #[serde(default)]
        aud: Option<Audience>,
        #[serde(default)]
        iat: Option<i64>,
        #[serde(default, rename = "kubernetes.io")]
        kubernetes: Option<Kubernetes>,
    }
    let claims = bytes.trim_ascii().split(|b| *b == b'.').nth(1).ok_or("no token")?;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(claims.strip_suffix(b"=").unwrap_or(claims))
        .map_err(|_| "token's claims are not base64url")?;
    // serde's message would quote the claims; what is wrong with them is nobody's business but the issuer's.
    let claims: Claims = serde_json::from_slice(&json)
        .map_err(|_| "token without iss or sub, with claims of another type, or not an object")?;
    Ok(Identity::Token {
        iss: claims.iss,
        sub: claims.sub,
        aud: match claims.aud {
            None => BTreeSet::new(),
            Some(Audience::One(one)) => BTreeSet::from([one]),
            Some(Audience::Many(many)) => many.into_iter().collect(),
        },
        pod: claims.kubernetes.and_then(|claim| claim.pod).map(|pod| pod.uid),
        iat: claims.iat.map(|at| Time(at.saturating_mul(1_000_000_000))),
    })
}

/// Whether `new` is a lawful successor: it has the sealed identity and, where `old` is known, is not older.
///
/// # Errors
/// The first thing that is not kept, in words for people; no secret is in it.
pub fn keeps_identity(
    sealed: &SealedIdentity,
    old: Option<&Identity>,
    new: &Identity,
    known: &Known,
    now: Time,
) -> Result<(), String> {
    match (sealed, new) {
        (
            SealedIdentity::X509 { sans, roots, key_file, lifetime: sealed_for, .. },
            Identity::X509 { sans: found, chain, spki, not_before, not_after },
        ) => {
            if sans != found {
                return Err(format!("names {} instead of {}", join(found), join(sans)));
            }
            certify::leaf(chain.first().ok_or("no certificate")?, now)?;
            let seconds = lifetime(*not_before, *not_after);
            if let Some(limit) = sealed_for.map(|sealed| sealed.saturating_mul(2).max(LIFETIME))
                && seconds > limit
            {
                return Err(format!("valid for {} days instead of {} at most", seconds / DAY, limit / DAY));
            }
            if let Some(Identity::X509 { not_before: before, .. }) = old
                && not_before < before
            {
                return Err(format!("issued at {not_before}, older than the one it replaces ({before})"));
            }
            if key_file.is_some() {
                match &known.key_spki {
                    Some(key) if key == spki => {}
                    Some(_) => return Err("does not belong to the private key beside it".into()),
                    None => return Err("the private key beside it cannot be read".into()),
                }
            }
            if roots.is_empty() { Ok(()) } else { certify::anchored(chain, roots, &known.roots, now) }
        }
        (
            SealedIdentity::Token { iss, sub, aud, pod_bound },
            Identity::Token { iss: found_iss, sub: found_sub, aud: found_aud, pod: found_pod, iat },
        ) => {
            for (what, sealed, found) in [("issuer", iss, found_iss), ("subject", sub, found_sub)] {
                if sealed != found && !(what == "issuer" && sealed.is_empty()) {
                    return Err(format!("{what} {found} instead of {sealed}"));
                }
            }
            if aud != found_aud && !aud.is_empty() {
                return Err(format!("audience {} instead of {}", join(found_aud), join(aud)));
            }
            match (found_pod, &known.pod) {
                (Some(found), Some(expected)) if found != expected => {
                    return Err(format!("pod {found} instead of {expected}"));
                }
                (None, _) if *pod_bound => return Err("bound to no pod".into()),
                _ => {}
            }
            if let (Some(Identity::Token { iat: Some(before), .. }), Some(iat)) = (old, iat)
                && iat < before
            {
                return Err(format!("issued at {iat}, older than the one it replaces ({before})"));
            }
            Ok(())
        }
        (SealedIdentity::X509 { .. }, Identity::Token { .. }) => {
            Err("a token instead of a certificate".into())
        }
        (SealedIdentity::Token { .. }, Identity::X509 { .. }) => {
            Err("a certificate instead of a token".into())
        }
    }
}

/// Seconds from one to the other.
pub(super) fn lifetime(from: Time, to: Time) -> u64 {
    u64::try_from(to.0.saturating_sub(from.0) / 1_000_000_000).unwrap_or(0)
}

/// Whether this certificate may sign others.
#[must_use]
pub fn is_authority(der: &[u8]) -> bool {
    parse(der).is_ok_and(|cert| cert.is_ca())
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
