//! OpenSSH's forms: public keys, `allowed_signers` files, and the signatures of `ssh-keygen -Y sign`.
//!
//! Facts: OpenSSH's `PROTOCOL.sshsig`; ssh-keygen(1), "ALLOWED SIGNERS"; RFC 4253 §6.6, RFC 5656 §3.1, RFC 8709.

use base64::Engine as _;
use sha2::{Digest as _, Sha256, Sha512};

use super::error::Error;
use super::keys::{Public, TrustedKey};
use crate::model::Time;

/// The namespace signatures must be made for (`ssh-keygen -Y sign -n`): a signature made to log in, or over a commit,
/// is none over a baseline.
pub const NAMESPACE: &str = "baseline@meshseal.dev";
/// First bytes of a signature, and of what is signed.
pub const MAGIC: &[u8] = b"SSHSIG";
const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
const ED25519: &[u8] = b"ssh-ed25519";
const P256: &[u8] = b"ecdsa-sha2-nistp256";
/// Most keys of one file.
const MAX_KEYS: usize = 1000;

/// What `ssh-keygen -Y sign` writes, parsed; nothing is checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSignature {
    key: Public,
    namespace: Vec<u8>,
    hash: Hash,
    signature: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha512,
}

impl SshSignature {
    /// Takes off the armour; `None` if it is not armoured so, or not base64.
    #[must_use]
    pub fn dearmour(text: &str) -> Option<Vec<u8>> {
        let body = text.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
        let body: String = body.split_ascii_whitespace().collect();
        base64::engine::general_purpose::STANDARD.decode(body).ok()
    }

    /// Parses the bytes without armour.
    ///
    /// # Errors
    /// No such signature, of another version, or by a key of another kind.
    pub fn parse(blob: &[u8]) -> Result<Self, Error> {
        let bad = |expected: &str| Error::new("bad SSH signature", "SSHSIG", expected);
        let cut = || bad("a whole signature, as from `ssh-keygen -Y sign`");
        let mut wire = Wire(blob.strip_prefix(MAGIC).ok_or_else(cut)?);
        if wire.number().ok_or_else(cut)? != 1 {
            return Err(bad("version 1"));
        }
        let key = wire.string().ok_or_else(cut)?;
        let key = public_key(key).map_err(|expected| bad(&expected))?;
        let namespace = wire.string().ok_or_else(cut)?.to_vec();
        if !wire.string().ok_or_else(cut)?.is_empty() {
            return Err(bad("nothing in the reserved field"));
        }
        let hash = match wire.string().ok_or_else(cut)? {
            b"sha256" => Hash::Sha256,
            b"sha512" => Hash::Sha512,
            _ => return Err(bad("sha256 or sha512")),
        };
        let mut inner = Wire(wire.string().ok_or_else(cut)?);
        let kind = inner.string().ok_or_else(cut)?;
        let signature = inner.string().ok_or_else(cut)?;
        if !wire.0.is_empty() || !inner.0.is_empty() {
            return Err(bad("nothing after the signature"));
        }
        let signature = match (&key, kind) {
            (Public::Ed25519(_), ED25519) => signature.to_vec(),
            (Public::P256(_), P256) => ecdsa_der(signature).ok_or_else(cut)?,
            _ => return Err(bad("a signature of the key's own kind")),
        };
        Ok(Self { key, namespace, hash, signature })
    }

    /// The id of the key that claims to have signed.
    #[must_use]
    pub fn key_id(&self) -> Option<String> {
        TrustedKey::of(self.key.clone()).map(|key| key.id().to_owned())
    }

    /// Made for another namespace, and which.
    #[must_use]
    pub fn foreign_namespace(&self) -> Option<String> {
        (self.namespace != NAMESPACE.as_bytes())
            .then(|| String::from_utf8_lossy(&self.namespace).chars().take(100).collect())
    }

    /// Whether this key signed the message, for our namespace.
    #[must_use]
    pub fn verifies(&self, key: &TrustedKey, message: &[u8]) -> bool {
        let (name, digest): (&[u8], Vec<u8>) = match self.hash {
            Hash::Sha256 => (b"sha256", Sha256::digest(message).to_vec()),
            Hash::Sha512 => (b"sha512", Sha512::digest(message).to_vec()),
        };
        let mut signed = MAGIC.to_vec();
        for part in [NAMESPACE.as_bytes(), b"", name, &digest] {
            put(&mut signed, part);
        }
        self.foreign_namespace().is_none() && key.has(&self.key) && key.verifies(&signed, &self.signature)
    }
}

fn put(out: &mut Vec<u8>, part: &[u8]) {
    // Parts are names and digests: they fit.
    out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(part);
}

/// Two `mpint`s to DER.
fn ecdsa_der(blob: &[u8]) -> Option<Vec<u8>> {
    let mut wire = Wire(blob);
    let r = scalar(wire.string()?)?;
    let s = scalar(wire.string()?)?;
    if !wire.0.is_empty() {
        return None;
    }
    let signature = p256::ecdsa::Signature::from_scalars(r, s).ok()?;
    Some(signature.to_der().as_bytes().to_vec())
}

/// A positive `mpint` of at most 32 bytes.
fn scalar(mpint: &[u8]) -> Option<[u8; 32]> {
    let digits = match mpint {
        [0, rest @ ..] => rest,
        [first, ..] if *first >= 0x80 => return None,
        digits => digits,
    };
    let mut out = [0_u8; 32];
    let start = out.len().checked_sub(digits.len())?;
    out.get_mut(start..)?.copy_from_slice(digits);
    Some(out)
}

/// A key in OpenSSH's binary form; the error is what was expected.
fn public_key(blob: &[u8]) -> Result<Public, String> {
    let cut = || "a whole OpenSSH public key".to_owned();
    let mut wire = Wire(blob);
    let kind = wire.string().ok_or_else(cut)?;
    let key = match kind {
        ED25519 => {
            let point: [u8; 32] = wire.string().and_then(|point| point.try_into().ok()).ok_or_else(cut)?;
            Public::Ed25519(ed25519_dalek::VerifyingKey::from_bytes(&point).map_err(|_| cut())?)
        }
        P256 => {
            if wire.string().ok_or_else(cut)? != b"nistp256" {
                return Err(cut());
            }
            let point = wire.string().ok_or_else(cut)?;
            Public::P256(p256::ecdsa::VerifyingKey::from_sec1_bytes(point).map_err(|_| cut())?)
        }
        other => {
            let other: String = String::from_utf8_lossy(other).chars().take(64).collect();
            return Err(format!("a key of type ssh-ed25519 or ecdsa-sha2-nistp256, not {other}"));
        }
    };
    if wire.0.is_empty() { Ok(key) } else { Err(cut()) }
}

/// Keys of a `.pub` file (`TYPE BASE64 [COMMENT]`) or an `allowed_signers` file (`PRINCIPALS [OPTIONS] TYPE BASE64
/// [COMMENT]`). A line whose `namespaces=` leave ours out trusts nobody here, as with ssh-keygen.
///
/// # Errors
/// The first line that is none of these, with its number; no key at all.
pub(super) fn keys(text: &str) -> Result<Vec<TrustedKey>, Error> {
    let bad = |line: usize, expected: &str| Error::new("bad trusted key", format!("line {line}"), expected);
    let mut keys = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let (at, line) = (at + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(key) = key_line(line).map_err(|expected| bad(at, &expected))? {
            keys.push(key);
        }
        if keys.len() > MAX_KEYS {
            return Err(bad(at, "at most 1000 keys"));
        }
    }
    if keys.is_empty() {
        let expected = format!(
            "a PEM block PUBLIC KEY, an OpenSSH public key, or allowed_signers lines for namespace {NAMESPACE}"
        );
        return Err(Error::new("bad trusted key", "", expected));
    }
    Ok(keys)
}

fn key_line(line: &str) -> Result<Option<TrustedKey>, String> {
    const EXPECTED: &str =
        "TYPE BASE64 [COMMENT] or PRINCIPALS [OPTIONS] TYPE BASE64, as OpenSSH writes them";
    let fields = fields(line).ok_or(EXPECTED)?;
    let is_type = |field: &&str| ["ssh-", "ecdsa-", "sk-"].iter().any(|start| field.starts_with(start));
    let at = fields.iter().take(3).position(is_type).ok_or(EXPECTED)?;
    let (before, rest) = (fields.get(..at).unwrap_or_default(), fields.get(at..).unwrap_or_default());
    let [kind, blob, comment @ ..] = rest else { return Err(EXPECTED.into()) };
    let blob = base64::engine::general_purpose::STANDARD.decode(blob).map_err(|_| EXPECTED)?;
    let key = public_key(&blob)?;
    let named = Wire(&blob).string().is_some_and(|inner| inner == kind.as_bytes());
    if !named {
        return Err("the key type that the key itself names".into());
    }
    let (name, options) = match before {
        [] => (comment.join(" "), ""),
        [principals] => ((*principals).to_owned(), ""),
        [principals, options, ..] => ((*principals).to_owned(), *options),
    };
    let mut key = TrustedKey::of(key).ok_or("a key that encodes to DER")?;
    key.set_name(name.trim_matches('"'));
    for option in split_options(options) {
        let (option, value) = option.split_once('=').unwrap_or((option, ""));
        let value = value.trim_matches('"');
        match option.to_ascii_lowercase().as_str() {
            "namespaces" => {
                // ssh-keygen takes patterns here; one that is no plain name or `*` does not match.
                if !value.split(',').any(|name| name == NAMESPACE || name == "*") {
                    return Ok(None);
                }
            }
            "valid-after" => key.set_valid_from(timestamp(value)?),
            "valid-before" => key.set_valid_until(timestamp(value)?),
            _ => return Err("the options namespaces, valid-after and valid-before only".into()),
        }
    }
    Ok(Some(key))
}

/// Fields apart by blanks, which quotes keep together; `None` where a quote is left open.
fn fields(line: &str) -> Option<Vec<&str>> {
    let (mut out, mut start, mut quoted) = (Vec::new(), None, false);
    for (at, c) in line.char_indices() {
        match c {
            '"' => {
                quoted = !quoted;
                start = start.or(Some(at));
            }
            ' ' | '\t' if !quoted => out.extend(start.take().and_then(|start| line.get(start..at))),
            _ => start = start.or(Some(at)),
        }
    }
    out.extend(start.and_then(|start| line.get(start..)));
    (!quoted).then_some(out)
}

fn split_options(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .filter(|option| !option.is_empty())
}

/// `YYYYMMDD[Z]` or `YYYYMMDDHHMM[SS][Z]`. Taken as UTC with or without the `Z`: a node's own time zone must not move
/// what is trusted.
fn timestamp(text: &str) -> Result<Time, String> {
    let expected = || format!("a time as YYYYMMDD or YYYYMMDDHHMM[SS], not '{text}'");
    let digits = text.strip_suffix(['Z', 'z']).unwrap_or(text);
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(expected());
    }
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or("00");
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(8, 10),
        part(10, 12),
        part(12, 14)
    );
    Time::parse(&text).map_err(|_| expected())
}

/// RFC 4251 §5.
struct Wire<'w>(&'w [u8]);

impl<'w> Wire<'w> {
    fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }

    fn string(&mut self) -> Option<&'w [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string)
    }
}
