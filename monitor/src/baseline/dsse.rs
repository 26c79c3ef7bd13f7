//! DSSE: the envelope around a statement. Who signed is checked in [`super::signed`], before a byte of it is parsed.
//!
//! <https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>, version 1.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::keys::{SigningKey, TrustedKey};
use super::signed::{self, MAX_SIGNATURES, Over, Signed};
pub use super::signed::{Verified, claims};

/// The payload type of in-toto statements.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Longest payload, in bytes.
pub const MAX_PAYLOAD: usize = 256 * 1024 * 1024;
/// Longest envelope: the payload in base64 and room for signatures.
pub const MAX_ENVELOPE: u64 = (MAX_PAYLOAD / 3 * 4 + 1024 * 1024) as u64;
const WHAT: &str = "not a DSSE envelope";

#[derive(Serialize, Deserialize)]
pub(super) struct Envelope<'e> {
    #[serde(rename = "payloadType")]
    payload_type: String,
    #[serde(borrow)]
    payload: std::borrow::Cow<'e, str>,
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
struct WireSignature {
    #[serde(default)]
    keyid: Option<String>,
    sig: String,
    /// Not of DSSE: SHA-256 of the public key, where `keyid` must stay empty.
    #[serde(default, rename = "keySha256", skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Not of DSSE: `payload` marks a signature that another tool made over the payload as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    over: Option<String>,
}

/// What is signed: `DSSEv1 <len type> <type> <len payload> <payload>`.
#[must_use]
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

/// Signs a payload with each key.
///
/// # Errors
/// No key, the same key twice, or a payload that is too long.
pub fn sign(payload: &[u8], keys: &[SigningKey]) -> Result<Vec<u8>, Error> {
    if keys.is_empty() {
        return Err(Error::new("cannot sign", "keys", "at least one, each of them once"));
    }
    let mut signed = Signed::bare(payload.to_vec())?;
    signed.sign(keys)?;
    write(&signed)
}

/// Adds signatures to an envelope, for those who review elsewhere; the signatures it has stay.
///
/// # Errors
/// No envelope, or one that a key has signed already; otherwise as [`sign`].
pub fn sign_more(envelope: &[u8], keys: &[SigningKey]) -> Result<Vec<u8>, Error> {
    let mut signed = Signed::read(envelope)?;
    signed.sign(keys)?;
    write(&signed)
}

/// The envelope as text.
pub(super) fn write(signed: &Signed) -> Result<Vec<u8>, Error> {
    let envelope = Envelope {
        payload_type: PAYLOAD_TYPE.into(),
        payload: signed::encode(&signed.payload).into(),
        signatures: signed
            .signatures
            .iter()
            .map(|signature| WireSignature {
                keyid: Some(signature.claim.clone().unwrap_or_default()),
                key: signature.key.clone(),
                sig: signed::encode(&signature.bytes),
                over: (signature.over == Over::Payload).then(|| "payload".to_owned()),
            })
            .collect(),
    };
    let mut out = serde_json::to_vec(&envelope).map_err(|e| Error::new("cannot write envelope", "", e))?;
    out.push(b'\n');
    Ok(out)
}

/// Whether this is meant to be an envelope or a bundle, not a bare statement.
#[must_use]
pub fn looks_like_envelope(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(rename = "payloadType")]
        payload_type: Option<serde::de::IgnoredAny>,
    }
    (memchr::memmem::find(bytes, b"\"payloadType\"").is_some()
        && serde_json::from_slice::<Probe>(bytes).is_ok_and(|probe| probe.payload_type.is_some()))
        || super::bundle::is_bundle(bytes)
}

/// Opens an envelope or bundle and counts the distinct trusted keys that signed it.
///
/// # Errors
/// As [`Signed::read`] and [`Signed::verify`].
pub fn verify(envelope: &[u8], trusted: &[TrustedKey], threshold: usize) -> Result<Verified, Error> {
    Signed::read(envelope)?.verify(trusted, threshold)
}

/// An envelope's payload and signatures, nothing checked.
///
/// # Errors
/// No envelope, or another payload type.
pub(super) fn parse(envelope: &[u8]) -> Result<Signed, Error> {
    if envelope.len() as u64 > MAX_ENVELOPE {
        return Err(Error::new(WHAT, "size", format!("at most {MAX_ENVELOPE} bytes")));
    }
    let parsed: Envelope<'_> = serde_json::from_slice(envelope)
        .map_err(|e| Error::new(WHAT, "JSON", format!("payloadType, payload, signatures ({e})")))?;
    of_envelope(parsed)
}

/// As [`parse`].
pub(super) fn of_envelope(parsed: Envelope<'_>) -> Result<Signed, Error> {
    if parsed.payload_type != PAYLOAD_TYPE {
        return Err(Error::new(WHAT, "payloadType", PAYLOAD_TYPE));
    }
    if parsed.signatures.len() > MAX_SIGNATURES {
        return Err(Error::new(WHAT, "signatures", format!("at most {MAX_SIGNATURES}")));
    }
    let payload = decode(&parsed.payload).ok_or_else(|| Error::new(WHAT, "payload", "base64"))?;
    let mut signed = Signed::bare(payload)?;
    for (at, signature) in parsed.signatures.into_iter().enumerate() {
        let bytes = decode(&signature.sig)
            .ok_or_else(|| Error::new(WHAT, format!("signatures[{at}].sig"), "base64"))?;
        let over = match signature.over.as_deref() {
            None => Over::Envelope,
            Some("payload") => Over::Payload,
            Some(_) => return Err(Error::new(WHAT, format!("signatures[{at}].over"), "payload, or nothing")),
        };
        signed.signatures.push(signed::Signature {
            claim: signature.keyid.filter(|id| !id.is_empty()),
            key: signature.key,
            bytes,
            over,
        });
    }
    Ok(signed)
}

/// Standard or URL-safe base64, padded or not, as DSSE allows.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet =
        if text.contains(['-', '_']) { &base64::alphabet::URL_SAFE } else { &base64::alphabet::STANDARD };
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}
