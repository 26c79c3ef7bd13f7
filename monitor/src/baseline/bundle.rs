//! Bundles as cosign writes them: the sigstore bundle (v0.1 to v0.3), around a DSSE envelope (`cosign attest-blob`) or
//! with the signature over a blob (`cosign sign-blob`), and the older one with `base64Signature`.
//!
//! Only signatures by a key count, and they are checked like all others. The transparency log's entries are not needed and
//! not believed, but what they and `messageDigest` say must fit the payload: a bundle that speaks of other bytes is refused.
//! Facts: protobuf-specs' `sigstore_bundle.proto`; cosign's `pkg/cosign/bundle`, read at 2.5 and 3.1.

use memchr::memmem;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::dsse::{self, MAX_ENVELOPE};
use super::error::Error;
use super::signed::{Over, Signature, Signed};

const WHAT: &str = "not a sigstore bundle";
/// Log entries of a bundle, at most.
const MAX_ENTRIES: usize = 32;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle<'b> {
    media_type: String,
    #[serde(default, deserialize_with = "or_default")]
    verification_material: Material,
    #[serde(borrow, default)]
    dsse_envelope: Option<dsse::Envelope<'b>>,
    #[serde(default)]
    message_signature: Option<MessageSignature>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    #[serde(default)]
    public_key: Option<Hint>,
    #[serde(default, deserialize_with = "or_default")]
    tlog_entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Hint {
    #[serde(default)]
    hint: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    canonicalized_body: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageSignature {
    #[serde(default)]
    message_digest: Option<MessageDigest>,
    signature: String,
}

#[derive(Deserialize)]
struct MessageDigest {
    algorithm: String,
    digest: String,
}

/// In the JSON of protobuf, null is as if it were not there.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// The older form.
#[derive(Deserialize)]
struct OldBundle {
    #[serde(rename = "base64Signature")]
    signature: String,
    #[serde(rename = "rekorBundle", default)]
    rekor: Option<Rekor>,
}

#[derive(Deserialize)]
struct Rekor {
    #[serde(rename = "Payload")]
    payload: RekorPayload,
}

#[derive(Deserialize)]
struct RekorPayload {
    body: String,
}

/// Whether this is meant to be a bundle, of either form.
#[must_use]
pub fn is_bundle(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        media_type: Option<serde::de::IgnoredAny>,
        #[serde(rename = "base64Signature")]
        old: Option<serde::de::IgnoredAny>,
    }
    // An envelope may be long: it is not read a second time only to find that it is no bundle.
    [&b"\"mediaType\""[..], b"\"base64Signature\""].iter().any(|key| memmem::find(bytes, key).is_some())
        && serde_json::from_slice::<Probe>(bytes)
            .is_ok_and(|probe| probe.media_type.is_some() || probe.old.is_some())
}

fn is_old(bytes: &[u8]) -> bool {
    serde_json::from_slice::<OldBundle>(bytes).is_ok()
}

fn parse(bytes: &[u8]) -> Result<Bundle<'_>, Error> {
    if bytes.len() as u64 > MAX_ENVELOPE {
        return Err(Error::new(WHAT, "size", format!("at most {MAX_ENVELOPE} bytes")));
    }
    let bundle: Bundle<'_> = serde_json::from_slice(bytes).map_err(|e| Error::new(WHAT, "JSON", e))?;
    if !bundle.media_type.starts_with("application/vnd.dev.sigstore.bundle") {
        return Err(Error::new(WHAT, "mediaType", "application/vnd.dev.sigstore.bundle.v0.3+json or older"));
    }
    if bundle.verification_material.tlog_entries.len() > MAX_ENTRIES {
        return Err(Error::new(WHAT, "verificationMaterial.tlogEntries", format!("at most {MAX_ENTRIES}")));
    }
    Ok(bundle)
}

/// A bundle that brings its payload along.
///
/// # Errors
/// Not a bundle; the signature of a blob, which does not; log entries for another payload.
pub(super) fn signed(bytes: &[u8]) -> Result<Signed, Error> {
    let no_payload = || {
        let expected = "an envelope: this one signs a blob, so give the statement, and the bundle by --signature \
                        (or `meshseal sign --attach`)";
        Error::new(WHAT, "dsseEnvelope", expected)
    };
    if is_old(bytes) {
        return Err(no_payload());
    }
    let Bundle { verification_material: material, dsse_envelope, .. } = parse(bytes)?;
    let mut signed = dsse::of_envelope(dsse_envelope.ok_or_else(no_payload)?)?;
    speaks_of(&material.tlog_entries, &signed.payload)?;
    for signature in &mut signed.signatures {
        if signature.claim.as_deref().is_none_or(str::is_empty) {
            signature.claim = material.public_key.as_ref().map(|key| key.hint.clone());
        }
    }
    Ok(signed)
}

/// The signatures of a bundle over this payload.
///
/// # Errors
/// Not a bundle, or one for another payload.
pub(super) fn attached(bytes: &[u8], payload: &[u8]) -> Result<Vec<Signature>, Error> {
    let decode =
        |text: &str, place: &str| dsse::decode(text).ok_or_else(|| Error::new(WHAT, place, "base64"));
    if is_old(bytes) {
        let old: OldBundle = serde_json::from_slice(bytes).map_err(|e| Error::new(WHAT, "JSON", e))?;
        if let Some(rekor) = &old.rekor {
            body_speaks_of(&rekor.payload.body, "rekorBundle.Payload.body", payload)?;
        }
        let bytes = decode(&old.signature, "base64Signature")?;
        return Ok(vec![Signature { claim: None, key: None, bytes, over: Over::Payload }]);
    }
    let bundle = parse(bytes)?;
    let Some(message) = bundle.message_signature else {
        let other = signed(bytes)?;
        if other.payload != payload {
            return Err(Error::new(WHAT, "dsseEnvelope.payload", "this very payload"));
        }
        return Ok(other.signatures);
    };
    speaks_of(&bundle.verification_material.tlog_entries, payload)?;
    if let Some(MessageDigest { algorithm, digest }) = &message.message_digest {
        let place = "messageSignature.messageDigest";
        if algorithm != "SHA2_256" {
            return Err(Error::new(WHAT, place, "algorithm SHA2_256"));
        }
        if decode(digest, place)? != Sha256::digest(payload)[..] {
            return Err(Error::new(WHAT, place, "the SHA-256 of this very payload"));
        }
    }
    let bytes = decode(&message.signature, "messageSignature.signature")?;
    let claim = bundle.verification_material.public_key.map(|key| key.hint);
    Ok(vec![Signature { claim, key: None, bytes, over: Over::Payload }])
}

fn speaks_of(entries: &[Entry], payload: &[u8]) -> Result<(), Error> {
    for (at, entry) in entries.iter().enumerate() {
        if let Some(body) = &entry.canonicalized_body {
            let place = format!("verificationMaterial.tlogEntries[{at}].canonicalizedBody");
            body_speaks_of(body, &place, payload)?;
        }
    }
    Ok(())
}

/// What kinds of log entries say of the payload they are for. Kinds not known here say nothing.
fn body_speaks_of(body: &str, place: &str, payload: &[u8]) -> Result<(), Error> {
    let body = dsse::decode(body).ok_or_else(|| Error::new(WHAT, place, "base64"))?;
    let body: Value = serde_json::from_slice(&body).map_err(|e| Error::new(WHAT, place, e))?;
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
    let hex_digests = ["/spec/data/hash/value", "/spec/payloadHash/value", "/spec/content/payloadHash/value"];
    let base64_digests = ["/spec/hashedRekordV002/data/digest", "/spec/dsseV002/payloadHash/digest"];
    let digest: [u8; 32] = Sha256::digest(payload).into();
    let fits = hex_digests
        .iter()
        .filter_map(|at| text(at))
        .all(|said| said.eq_ignore_ascii_case(&hex::encode(digest)))
        && base64_digests
            .iter()
            .filter_map(|at| text(at))
            .all(|said| dsse::decode(said).as_deref() == Some(&digest[..]));
    if fits { Ok(()) } else { Err(Error::new(WHAT, place, "an entry for this very payload")) }
}
