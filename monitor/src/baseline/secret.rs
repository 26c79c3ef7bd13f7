//! Content that must never be told: private keys are known by their public key, other secrets by an HMAC.
//!
//! A plain hash of a secret lets anyone who reads records test guesses against it; the HMAC needs the cluster's key.

use std::path::Path;

use hmac::{Hmac, Mac as _};
use memchr::memmem;
use sha2::{Digest as _, Sha256};
use spki::der::{Decode as _, Encode as _, asn1::BitStringRef};
use x509_parser::prelude::Pem;

use super::error::Error;
use super::identity::looks_like_token;
use super::object::Digest;
use crate::model::HostPath;

/// The cluster's key for HMACs. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(Vec<u8>);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

impl SecretKey {
    /// Fewest bytes of a key.
    pub const MIN: usize = 32;

    /// Takes the key's bytes.
    ///
    /// # Errors
    /// Fewer than [`Self::MIN`] bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Error> {
        if bytes.len() < Self::MIN {
            return Err(Error::new(
                "secret key too short",
                "",
                format!("at least {} bytes, as from `openssl rand -out FILE 32`", Self::MIN),
            ));
        }
        Ok(Self(bytes))
    }

    /// Reads the key file: its bytes as they are.
    ///
    /// # Errors
    /// The file cannot be read, is longer than 4096 bytes, or holds fewer than [`Self::MIN`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::new(super::read_bounded(path, 4096)?).map_err(|e| e.in_file(path.display()))
    }

    /// Reads the key where the agent is given it: a file, or a directory with one file, such as the volume of an optional Kubernetes
    /// Secret, where names that begin with a dot are the kubelet's. `None` if nothing is there yet.
    ///
    /// # Errors
    /// As [`Self::read`]; or the directory cannot be listed, or holds several files.
    pub fn given(path: &Path) -> Result<Option<Self>, Error> {
        if !path.is_dir() {
            return path.exists().then(|| Self::read(path)).transpose();
        }
        let fail = |expected: String| Error::new("cannot take the secret key", path.display(), expected);
        let list = |e| fail(format!("a directory that can be listed ({e})"));
        let mut key = None;
        for entry in std::fs::read_dir(path).map_err(list)? {
            let entry = entry.map_err(list)?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if key.replace(entry.path()).is_some() {
                return Err(fail("expected one file, found several".into()));
            }
        }
        key.map(|file| Self::read(&file)).transpose()
    }

    /// A running HMAC under this key.
    pub(super) fn mac(&self) -> Option<Hmac<Sha256>> {
        Hmac::new_from_slice(&self.0).ok()
    }
}

/// Whether the kubelet publishes secrets there.
#[must_use]
pub fn is_secret_path(path: &HostPath) -> bool {
    memmem::find(path.as_bytes(), b"/kubernetes.io~secret/").is_some()
}

/// Whether the content is a secret by itself: it holds a private key or a token.
#[must_use]
pub fn is_secret_content(bytes: &[u8]) -> bool {
    memmem::find(bytes, b"PRIVATE KEY-----").is_some()
        || holds_token(bytes)
        || pkcs8::PrivateKeyInfo::from_der(bytes).is_ok()
}

/// A token by itself, or as a word of something else: a kubeconfig's.
fn holds_token(bytes: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'=');
    let mut words = bytes.split(|byte| !is_part(byte)).filter(|word| word.starts_with(b"eyJ"));
    memmem::find(bytes, b"eyJ").is_some() && words.any(looks_like_token)
}

/// SHA-256 of the `SubjectPublicKeyInfo` of the one private key this file holds, and nothing else but
/// `EC PARAMETERS`; `None` where it is something else, holds more, or does not tell its public key.
#[must_use]
pub fn public_key_of(bytes: &[u8]) -> Option<Digest> {
    let spki = if memmem::find(bytes, b"-----BEGIN ").is_some() {
        if !is_pem_alone(bytes) {
            return None;
        }
        let mut blocks = Vec::new();
        for block in Pem::iter_from_buffer(bytes) {
            let block = block.ok()?;
            if block.label != "EC PARAMETERS" {
                blocks.push(block);
            }
        }
        let [block] = blocks.as_slice() else { return None };
        match block.label.as_str() {
            "PRIVATE KEY" => from_pkcs8(&block.contents)?,
            "EC PRIVATE KEY" => from_sec1(&block.contents, None)?,
            "RSA PRIVATE KEY" => from_pkcs1(&block.contents)?,
            _ => return None,
        }
    } else {
        from_pkcs8(bytes)?
    };
    Some(Sha256::digest(spki).into())
}

/// Nothing stands around the blocks, nor in them but base64: what a reader of PEM passes over may be the script that a shell runs.
fn is_pem_alone(bytes: &[u8]) -> bool {
    let mut inside = false;
    bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).all(|line| match line {
        [] => true,
        [b'-', ..] => {
            let begins = line.starts_with(b"-----BEGIN ");
            let label = line.strip_prefix(if inside { b"-----END ".as_slice() } else { b"-----BEGIN " });
            let label = label.and_then(|rest| rest.strip_suffix(b"-----"));
            inside = begins;
            label.is_some_and(|label| label.iter().all(|c| c.is_ascii_uppercase() || *c == b' '))
        }
        _ => inside && line.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=')),
    })
}

fn from_pkcs8(der: &[u8]) -> Option<Vec<u8>> {
    const EC: pkcs8::ObjectIdentifier = pkcs8::ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
    const RSA: pkcs8::ObjectIdentifier = pkcs8::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    const ED25519: pkcs8::ObjectIdentifier = pkcs8::ObjectIdentifier::new_unwrap("1.3.101.112");

    let info = pkcs8::PrivateKeyInfo::from_der(der).ok()?;
    match info.algorithm.oid {
        EC => from_sec1(info.private_key, info.algorithm.parameters_oid().ok()),
        RSA => from_pkcs1(info.private_key),
        ED25519 => {
            let seed: [u8; 32] = info.private_key.strip_prefix(&[4, 32])?.try_into().ok()?;
            let key = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
            spki_der(spki::AlgorithmIdentifierRef { oid: ED25519, parameters: None }, key.as_bytes())
        }
        _ => None,
    }
}

fn from_sec1(der: &[u8], curve: Option<pkcs8::ObjectIdentifier>) -> Option<Vec<u8>> {
    const P256: pkcs8::ObjectIdentifier = pkcs8::ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
    const EC: pkcs8::ObjectIdentifier = pkcs8::ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

    let key = sec1::EcPrivateKey::from_der(der).ok()?;
    let curve = curve.or_else(|| key.parameters.and_then(sec1::EcParameters::named_curve))?;
    let point = if curve == P256 {
        // Worked out, not believed.
        let secret = p256::SecretKey::from_slice(key.private_key).ok()?;
        p256::elliptic_curve::sec1::ToEncodedPoint::to_encoded_point(&secret.public_key(), false)
            .as_bytes()
            .to_vec()
    } else {
        key.public_key?.to_vec()
    };
    let parameters = spki::der::asn1::AnyRef::from(&curve);
    spki_der(spki::AlgorithmIdentifierRef { oid: EC, parameters: Some(parameters) }, &point)
}

fn from_pkcs1(der: &[u8]) -> Option<Vec<u8>> {
    const RSA: pkcs8::ObjectIdentifier = pkcs8::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    let key = pkcs1::RsaPrivateKey::from_der(der).ok()?;
    let public = key.public_key().to_der().ok()?;
    let parameters = Some(spki::der::asn1::AnyRef::NULL);
    spki_der(spki::AlgorithmIdentifierRef { oid: RSA, parameters }, &public)
}

fn spki_der(algorithm: spki::AlgorithmIdentifierRef<'_>, key: &[u8]) -> Option<Vec<u8>> {
    let subject_public_key = BitStringRef::from_bytes(key).ok()?;
    spki::SubjectPublicKeyInfo { algorithm, subject_public_key }.to_der().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::{SecretKey, is_secret_content, public_key_of};

    #[test]
    fn a_file_is_a_key_only_if_it_holds_nothing_else() {
        // RFC 8410, §10.3
        let pem = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let key = public_key_of(pem.as_bytes());
        assert!(key.is_some());
        assert_eq!(public_key_of(format!("\n{}\r\n \n", pem.replace('\n', "\r\n")).as_bytes()), key);
        for other in [
            format!("#!/bin/sh\n{pem}"),
            format!("{pem}exec /usr/bin/envoy\n"),
            pem.replacen("-----\n", "-----\nProc-Type: 4\n\n", 1),
            pem.replacen("-----\n", "----- exec\n", 1),
            format!("-----\n{pem}"),
        ] {
            assert_eq!(public_key_of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn what_holds_a_token_is_a_secret() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln";
        for secret in
            [format!("{token}\n"), format!("users:\n- user:\n    token: {token}\n"), format!("\"{token}\"")]
        {
            assert!(is_secret_content(secret.as_bytes()), "{secret}");
        }
        for other in ["eyJ", "token: none", "eyJa.b", "x.eyJhbGciOiJSUzI1NiJ9.eyJz.c2ln.eyJa"] {
            assert!(!is_secret_content(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn the_key_is_the_one_file_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let key = SecretKey::new(vec![7; 32]).unwrap();
        assert_eq!(SecretKey::given(&at("absent")).unwrap(), None);
        assert_eq!(SecretKey::given(dir.path()).unwrap(), None);
        fs::create_dir(at("..1")).unwrap();
        fs::write(at("..1/cluster.key"), [7; 32]).unwrap();
        symlink("..1", at("..data")).unwrap();
        assert_eq!(SecretKey::given(dir.path()).unwrap(), None);
        symlink("..data/cluster.key", at("cluster.key")).unwrap();
        assert_eq!(SecretKey::given(dir.path()).unwrap().as_ref(), Some(&key));
        assert_eq!(SecretKey::given(&at("cluster.key")).unwrap(), Some(key));
        fs::write(at("second"), [8; 32]).unwrap();
        let told = SecretKey::given(dir.path()).unwrap_err().to_string();
        assert_eq!(
            told,
            format!("cannot take the secret key: {}: expected one file, found several", dir.path().display())
        );
        fs::remove_file(at("cluster.key")).unwrap();
        fs::write(at("second"), "short").unwrap();
        assert!(SecretKey::given(dir.path()).unwrap_err().to_string().contains("secret key too short"));
    }
}
