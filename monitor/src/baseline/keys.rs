//! Keys that sign and verify baselines: Ed25519 and ECDSA P-256 (SHA-256), in PEM as `openssl` and cosign write them;
//! public ones also as OpenSSH does ([`super::openssh`]).
//!
//! The algorithm is the key's, never the envelope's. A key has one id, whichever form it was read from.

use std::path::Path;

use pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::Pem;

use super::error::Error;
use super::{openssh, read_bounded};
use crate::model::Time;
use crate::text::one_line;

/// Longest key file.
const MAX: u64 = 64 * 1024;
/// Longest name of a key, in characters.
const MAX_NAME: usize = 64;

/// A public key that is trusted to sign baselines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    id: String,
    name: String,
    key: Public,
    /// When it may be believed: at a time that is in one of these.
    valid: Vec<Window>,
}

/// A time from one moment to another, as far as they are said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) from: Option<Time>,
    pub(super) until: Option<Time>,
}

/// The key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Public {
    Ed25519(ed25519_dalek::VerifyingKey),
    P256(p256::ecdsa::VerifyingKey),
}

impl TrustedKey {
    /// Reads the keys in a file: one PEM block `PUBLIC KEY`, an OpenSSH `.pub`, or an `allowed_signers` file.
    ///
    /// # Errors
    /// Unreadable, none of these, or a key of another kind.
    pub fn read(path: &Path) -> Result<Vec<Self>, Error> {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let mut keys = Self::parse(&read_bounded(path, MAX)?).map_err(|e| e.in_file(path.display()))?;
        for key in &mut keys {
            if key.name.is_empty() {
                key.set_name(&stem);
            }
        }
        Ok(keys)
    }

    /// Parses what such a file holds.
    ///
    /// # Errors
    /// As [`TrustedKey::read`].
    pub fn parse(bytes: &[u8]) -> Result<Vec<Self>, Error> {
        let looks_like_openssh = |text: &&str| {
            !text.contains("-----BEGIN ")
                && (text.contains("ssh-") || text.contains("ecdsa-") || text.contains("sk-"))
        };
        match std::str::from_utf8(bytes).ok().filter(looks_like_openssh) {
            Some(text) => openssh::keys(text),
            None => Ok(vec![Self::from_pem(bytes)?]),
        }
    }

    /// Reads keys from files, and from directories all files in them that end in `.pub`.
    ///
    /// # Errors
    /// As [`TrustedKey::read`], for the first that is bad.
    pub fn read_all<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<Self>, Error> {
        let mut keys: Vec<Self> = Vec::new();
        for path in paths {
            let path = path.as_ref();
            let mut files = Vec::new();
            if path.is_dir() {
                let fail = |e: std::io::Error| {
                    Error::new("cannot list keys", path.display(), format!("a readable directory ({e})"))
                };
                for entry in std::fs::read_dir(path).map_err(fail)? {
                    let file = entry.map_err(fail)?.path();
                    if file.extension().is_some_and(|ext| ext == "pub") {
                        files.push(file);
                    }
                }
                files.sort();
            } else {
                files.push(path.to_owned());
            }
            for file in files {
                for key in Self::read(&file)? {
                    match keys.iter_mut().find(|known| known.id == key.id) {
                        // As with ssh-keygen, one line that believes it is enough.
                        Some(known) => known.valid.extend(key.valid),
                        None => keys.push(key),
                    }
                }
            }
        }
        Ok(keys)
    }

    /// Parses PEM.
    ///
    /// # Errors
    /// As [`TrustedKey::read`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let what = "bad trusted key";
        let expected = "one PEM block PUBLIC KEY, as from `openssl pkey -pubout`, or an OpenSSH public key";
        let block = only_block(pem, what, expected)?;
        match block.label.as_str() {
            "PUBLIC KEY" => {}
            label if label.ends_with("PRIVATE KEY") => {
                return Err(Error::new(
                    what,
                    "PEM",
                    "the public key, not the private one: `openssl pkey -in KEY -pubout`",
                ));
            }
            label => return Err(Error::new(what, "PEM", format!("PUBLIC KEY, not {label}"))),
        }
        let der = block.contents.as_slice();
        let key = if let Ok(key) = ed25519_dalek::VerifyingKey::from_public_key_der(der) {
            Public::Ed25519(key)
        } else if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_der(der) {
            Public::P256(key)
        } else {
            return Err(Error::new(what, "PUBLIC KEY", "an Ed25519 or ECDSA P-256 key"));
        };
        Self::of(key).ok_or_else(|| Error::new(what, "PUBLIC KEY", "a key that encodes to DER"))
    }

    /// `None` for a key that does not encode to DER.
    pub(super) fn of(key: Public) -> Option<Self> {
        let spki = match &key {
            Public::Ed25519(key) => key.to_public_key_der(),
            Public::P256(key) => key.to_public_key_der(),
        }
        .ok()?;
        let id = hex::encode(Sha256::digest(spki.as_bytes()));
        Some(Self { id, name: String::new(), key, valid: vec![Window::default()] })
    }

    /// What people call it: the name of its file, its comment or principals. Empty if it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls it so; bounded, and on one line.
    pub(super) fn set_name(&mut self, name: &str) {
        self.name = one_line(name).chars().take(MAX_NAME).collect();
    }

    pub(super) fn set_valid(&mut self, window: Window) {
        self.valid = vec![window];
    }

    /// Whether it may be believed at any time.
    pub(super) fn is_valid_always(&self) -> bool {
        self.valid.contains(&Window::default())
    }

    /// Whether it may be believed at that time: `allowed_signers` lines can say so.
    #[must_use]
    pub fn is_valid_at(&self, now: Time) -> bool {
        let within = |window: &Window| {
            window.from.is_none_or(|from| now >= from) && window.until.is_none_or(|until| now < until)
        };
        self.valid.iter().any(within)
    }

    /// Name and the beginning of its id, for people.
    #[must_use]
    pub fn label(&self) -> String {
        label(&self.name, &self.id)
    }

    /// As PEM.
    ///
    /// # Errors
    /// It does not encode.
    pub fn to_pem(&self) -> Result<String, Error> {
        let ending = spki::der::pem::LineEnding::LF;
        match &self.key {
            Public::Ed25519(key) => key.to_public_key_pem(ending),
            Public::P256(key) => key.to_public_key_pem(ending),
        }
        .map_err(|e| Error::new("cannot write key", &self.id, e))
    }

    /// Whether it is this key.
    pub(super) fn has(&self, key: &Public) -> bool {
        self.key == *key
    }

    /// Hex SHA-256 of the `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether this key signed the message. ECDSA signatures are in DER, or as `r || s` (Azure Key Vault, Web Crypto).
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Public::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            Public::P256(key) => {
                use p256::ecdsa::signature::Verifier as _;
                p256::ecdsa::Signature::from_der(signature)
                    .or_else(|_| p256::ecdsa::Signature::from_slice(signature))
                    .is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
        }
    }
}

/// `name (id...)`, or the id alone.
#[must_use]
pub fn label(name: &str, id: &str) -> String {
    let short = id.get(..16).unwrap_or(id);
    if name.is_empty() { short.to_owned() } else { format!("{name} ({short})") }
}

/// A private key that signs baselines. Its `Debug` shows the key id only.
pub struct SigningKey {
    key: Private,
    public: TrustedKey,
}

enum Private {
    Ed25519(Box<ed25519_dalek::SigningKey>),
    P256(Box<p256::ecdsa::SigningKey>),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.public.id).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Reads the key in a file: PKCS#8, or SEC1 as `openssl ecparam -genkey` writes it.
    ///
    /// # Errors
    /// Unreadable, encrypted, no key or more than one, or a key of another kind.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::from_pem(&read_bounded(path, MAX)?).map_err(|e| e.in_file(path.display()))
    }

    /// Parses PEM.
    ///
    /// # Errors
    /// As [`SigningKey::read`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let what = "bad signing key";
        let block = only_block(
            pem,
            what,
            "one PEM block PRIVATE KEY (PKCS#8) or EC PRIVATE KEY, as from `openssl genpkey`",
        )?;
        let der = block.contents.as_slice();
        let wrong = || Error::new(what, &block.label, "an Ed25519 or ECDSA P-256 key");
        let key = match block.label.as_str() {
            "PRIVATE KEY" => {
                if let Ok(key) = ed25519_dalek::SigningKey::from_pkcs8_der(der) {
                    Private::Ed25519(Box::new(key))
                } else {
                    let key = p256::SecretKey::from_pkcs8_der(der).map_err(|_| wrong())?;
                    Private::P256(Box::new(key.into()))
                }
            }
            "EC PRIVATE KEY" => {
                let key = p256::SecretKey::from_sec1_der(der).map_err(|_| wrong())?;
                Private::P256(Box::new(key.into()))
            }
            "ENCRYPTED PRIVATE KEY" => {
                return Err(Error::new(what, "PEM", "a key without a passphrase: `openssl pkey -in KEY`"));
            }
            label => return Err(Error::new(what, "PEM", format!("a PRIVATE KEY, not {label}"))),
        };
        let public = match &key {
            Private::Ed25519(key) => Public::Ed25519(key.verifying_key()),
            Private::P256(key) => Public::P256(*key.verifying_key()),
        };
        let public = TrustedKey::of(public).ok_or_else(wrong)?;
        Ok(Self { key, public })
    }

    /// Hex SHA-256 of the `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.public.id()
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> &TrustedKey {
        &self.public
    }

    /// Signs; ECDSA signatures in DER, as `openssl dgst -sign` makes them.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        use p256::ecdsa::signature::Signer as _;
        match &self.key {
            Private::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
            Private::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
        }
    }
}

/// The one block of a PEM file, `EC PARAMETERS` aside.
fn only_block(pem: &[u8], what: &str, expected: &str) -> Result<Pem, Error> {
    let mut only = None;
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|_| Error::new(what, "PEM", expected))?;
        if block.label == "EC PARAMETERS" {
            continue;
        }
        if only.replace(block).is_some() {
            return Err(Error::new(what, "PEM", format!("{expected}, not more")));
        }
    }
    only.ok_or_else(|| Error::new(what, "PEM", expected))
}
