//! What content is sealed by where it is not its bytes, as it stands in a statement: identities and meanings.

use std::collections::BTreeSet;

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};

use super::error::Error;
use super::identity::SealedIdentity;
use super::meaning::{Chain, Form, Meaning, Plugin};
use super::object::Digest;
use super::wire::{digest, is_plain_path};
use crate::model::HostPath;

/// An identity as text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum WireIdentity {
    /// A token.
    Token {
        /// Audiences.
        aud: BTreeSet<String>,
        /// Issuer.
        iss: String,
        /// It was bound to a pod.
        #[serde(rename = "podBound", default)]
        pod_bound: bool,
        /// Subject.
        sub: String,
    },
    /// A certificate chain.
    X509 {
        /// Where the private key lies.
        #[serde(rename = "keyFile", default)]
        key_file: Option<HostPath>,
        /// Seconds the leaf was valid for.
        #[serde(default)]
        lifetime: Option<u64>,
        /// Hex SHA-256 of the DER of each root.
        #[serde(default)]
        roots: BTreeSet<String>,
        /// Where the roots lie.
        #[serde(rename = "rootsFile", default)]
        roots_file: Option<HostPath>,
        /// `URI:...`, `DNS:...`.
        sans: BTreeSet<String>,
    },
}

/// Fields are sorted, the tag among them, where a derived one would stand first.
impl Serialize for WireIdentity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Token { aud, iss, pod_bound, sub } => {
                map.serialize_entry("aud", aud)?;
                map.serialize_entry("iss", iss)?;
                map.serialize_entry("kind", "token")?;
                if *pod_bound {
                    map.serialize_entry("podBound", pod_bound)?;
                }
                map.serialize_entry("sub", sub)?;
            }
            Self::X509 { key_file, lifetime, roots, roots_file, sans } => {
                if let Some(file) = key_file {
                    map.serialize_entry("keyFile", file)?;
                }
                map.serialize_entry("kind", "x509")?;
                if let Some(seconds) = lifetime {
                    map.serialize_entry("lifetime", seconds)?;
                }
                if !roots.is_empty() {
                    map.serialize_entry("roots", roots)?;
                }
                if let Some(file) = roots_file {
                    map.serialize_entry("rootsFile", file)?;
                }
                map.serialize_entry("sans", sans)?;
            }
        }
        map.end()
    }
}

/// What content means, as text. Fields are sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "lowercase", deny_unknown_fields)]
pub enum WireMeaning {
    /// A bundle of certificates.
    Pem {
        /// Hex SHA-256 of the DER of each.
        hashes: BTreeSet<String>,
    },
    /// A chain of CNI plugins.
    Cni {
        /// In order.
        plugins: Vec<Plugin>,
        /// Hex SHA-256 of all but the plugins.
        rest: String,
    },
    /// A JSON value.
    Json {
        /// Hex SHA-256 of it as canonical JSON.
        sha256: String,
    },
    /// A YAML value.
    Yaml {
        /// Hex SHA-256 of it as canonical JSON.
        sha256: String,
    },
}

impl From<&Meaning> for WireMeaning {
    fn from(meaning: &Meaning) -> Self {
        match meaning {
            Meaning::Pem(set) => Self::Pem { hashes: set.iter().map(hex::encode).collect() },
            Meaning::Cni(chain) => {
                Self::Cni { plugins: chain.plugins.clone(), rest: hex::encode(chain.rest) }
            }
            Meaning::Value(Form::Yaml, value) => Self::Yaml { sha256: hex::encode(value) },
            Meaning::Value(_, value) => Self::Json { sha256: hex::encode(value) },
        }
    }
}

impl WireMeaning {
    /// As it is kept.
    ///
    /// # Errors
    /// What is wrong, with the field.
    pub(super) fn into_meaning(self, place: &str) -> Result<Meaning, Error> {
        let bad = |field: &str, expected: &str| {
            Error::new("bad statement", format!("{place}.meaning.{field}"), expected)
        };
        let read = |field: &str, text: &str| digest(text).ok_or_else(|| bad(field, "64 hex digits"));
        Ok(match self {
            Self::Pem { hashes } => {
                let set: BTreeSet<Digest> =
                    hashes.iter().map(|hash| read("hashes", hash)).collect::<Result<_, _>>()?;
                if set.is_empty() {
                    return Err(bad("hashes", "one at least"));
                }
                Meaning::Pem(set)
            }
            Self::Cni { plugins, rest } => {
                let named = |plugin: &Plugin| (1..=255).contains(&plugin.kind.len());
                if plugins.len() > 64 || !plugins.iter().all(named) {
                    return Err(bad("plugins", "at most 64, each with a type of 1 to 255 bytes"));
                }
                for plugin in &plugins {
                    let hash = read("plugins.sha256", &plugin.sha256)?;
                    if plugin.sha256 != hex::encode(hash) {
                        return Err(bad("plugins.sha256", "hex digits in lower case"));
                    }
                }
                Meaning::Cni(Chain { plugins, rest: read("rest", &rest)? })
            }
            Self::Json { sha256 } => Meaning::Value(Form::Json, read("sha256", &sha256)?),
            Self::Yaml { sha256 } => Meaning::Value(Form::Yaml, read("sha256", &sha256)?),
        })
    }
}

impl WireIdentity {
    /// As it is kept.
    ///
    /// # Errors
    /// What is wrong, with the field.
    pub(super) fn into_sealed(self, place: &str) -> Result<SealedIdentity, Error> {
        let bad = |field: &str, expected: &str| {
            Error::new("bad statement", format!("{place}.identity{field}"), expected)
        };
        Ok(match self {
            Self::Token { aud, iss, pod_bound, sub } => SealedIdentity::Token { iss, sub, aud, pod_bound },
            Self::X509 { key_file, lifetime, roots, roots_file, sans } => {
                if [&key_file, &roots_file].into_iter().flatten().any(|path| !is_plain_path(path)) {
                    return Err(bad("", "absolute paths for keyFile and rootsFile"));
                }
                if sans.is_empty() {
                    return Err(bad(".sans", "at least one name"));
                }
                let roots = roots
                    .iter()
                    .map(|text| digest(text).ok_or_else(|| bad(".roots", "64 hex digits each")))
                    .collect::<Result<_, _>>()?;
                SealedIdentity::X509 { sans, roots, roots_file, key_file, lifetime }
            }
        })
    }
}
