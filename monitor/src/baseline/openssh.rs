//! OpenSSH's forms: public keys, `allowed_signers` files, and the signatures of `ssh-keygen -Y sign`.
//!
//! Facts: OpenSSH's `PROTOCOL.sshsig`; ssh-keygen(1), "ALLOWED SIGNERS"; RFC 4253 §6.6, RFC 5656 §3.1, RFC 8709.

use base64::Engine as _;
use sha2::{Digest as _, Sha256, Sha512};

use super::error::Error;
use super::keys::{Public, TrustedKey, Window};
use crate::model::Time;
use crate::text::wildcard;

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
    let is_type = |field: &str| ["ssh-", "ecdsa-", "sk-"].iter().any(|start| field.starts_with(start));
    let decode = |blob: &str| base64::engine::general_purpose::STANDARD.decode(blob);
    let named_by = |blob: &str| decode(blob).ok().and_then(|blob| Some(Wire(&blob).string()?.to_vec()));
    // Principals may begin as a type does: it is what the key names itself.
    let is_named = |at: &usize| {
        let kind = fields.get(*at).filter(|kind| is_type(kind));
        kind.is_some_and(|kind| {
            fields.get(at + 1).and_then(|blob| named_by(blob)).as_deref() == Some(kind.as_bytes())
        })
    };
    let at = (0..3).find(is_named).or_else(|| fields.iter().take(3).position(|field| is_type(field)));
    let at = at.ok_or(EXPECTED)?;
    let (before, rest) = (fields.get(..at).unwrap_or_default(), fields.get(at..).unwrap_or_default());
    let [kind, blob, comment @ ..] = rest else { return Err(EXPECTED.into()) };
    let blob = decode(blob).map_err(|_| EXPECTED)?;
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
    let mut valid = Window::default();
    for option in split_options(options) {
        let (option, value) = option.split_once('=').unwrap_or((option, ""));
        let value = value.trim_matches('"');
        match option.to_ascii_lowercase().as_str() {
            "namespaces" => {
                if !is_in_pattern_list(NAMESPACE, value) {
                    return Ok(None);
                }
            }
            "valid-after" => valid.from = Some(timestamp(value)?),
            "valid-before" => valid.until = Some(timestamp(value)?),
            _ => return Err("the options namespaces, valid-after and valid-before only".into()),
        }
    }
    key.set_valid(valid);
    Ok(Some(key))
}

/// Whether a list of patterns has the name: one that fits has it, and one with `!` that fits takes it out whatever the others say
/// (ssh_config(5), "PATTERNS").
fn is_in_pattern_list(name: &str, list: &str) -> bool {
    let mut has = false;
    for pattern in list.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if wildcard(pattern.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => has |= wildcard(pattern.as_bytes(), name.as_bytes()),
        }
    }
    has
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{NAMESPACE, is_in_pattern_list, keys};
    use crate::baseline::keys::TrustedKey;
    use crate::baseline::trust::Rotation;
    use crate::model::Time;

    const KEY: &str = include_str!("../../tests/vectors/ssh-ed25519.pub");

    fn line(before: &str) -> String {
        format!("{before} {KEY}\n")
    }

    #[test]
    fn namespaces_are_patterns_and_a_negated_one_wins() {
        for list in
            ["*", "git,baseline@meshseal.dev", "baseline@*", "baseline@meshseal.de?", "!git,*", "*a*e*e@*dev"]
        {
            assert!(is_in_pattern_list(NAMESPACE, list), "{list}");
        }
        for list in [
            "",
            "git",
            "*,!baseline@meshseal.dev",
            "!baseline@meshseal.dev,*",
            "baseline@meshseal.dev,!baseline@*",
            "!*",
            "baseline@meshseal.dev?",
            "Baseline@meshseal.dev",
            "!git",
        ] {
            assert!(!is_in_pattern_list(NAMESPACE, list), "{list}");
            let text = format!("{}{}", line(&format!("me namespaces=\"{list}\"")), line("you"));
            assert_eq!(keys(&text).unwrap().len(), 1, "{list}");
        }
    }

    #[test]
    fn principals_may_be_called_as_a_type_is() {
        for (principals, name) in [("ssh-me,me", "ssh-me,me"), ("sk-team", "sk-team")] {
            let found = keys(&line(principals)).unwrap();
            assert_eq!(found.iter().map(TrustedKey::name).collect::<Vec<_>>(), [name]);
        }
    }

    #[test]
    fn a_key_counts_while_one_of_its_lines_says_so_and_goes_into_no_keys_statement_then() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("allowed_signers");
        let lines = [line("me valid-before=\"20200101\""), line("me valid-after=\"20300101\"")];
        fs::write(&file, lines.concat()).unwrap();
        let [key] = <[TrustedKey; 1]>::try_from(TrustedKey::read_all(&[&file]).unwrap()).unwrap();
        let at = |text: &str| key.is_valid_at(Time::parse(text).unwrap());
        assert_eq!(
            ["2019-12-31T00:00:00Z", "2025-01-01T00:00:00Z", "2030-01-01T00:00:00Z"].map(at),
            [true, false, true]
        );
        let refused = Rotation::statement(1, 1, &[key]).unwrap_err().to_string();
        assert!(refused.ends_with("a keys statement cannot say until when one counts"), "{refused}");
        fs::write(&file, [lines.concat(), line("me")].concat()).unwrap();
        assert!(Rotation::statement(1, 1, &TrustedKey::read_all(&[&file]).unwrap()).is_ok());
    }
}
