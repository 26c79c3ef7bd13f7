//! One object of a statement as text, to and from what is kept in memory.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use base64::Engine as _;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::anchor::{Anchor, Image, Workload, WorkloadKind};
use super::error::Error;
use super::object::{
    Attributes, Content, Digest, EntryKind, Hashed, MountedAt, Names, Publish, Rule, Seal, SealedObject,
    VolumeEntry, Writer, XATTR_INLINE, XattrValue,
};
use super::statement::is_default_publish;
pub use super::wire_content::{WireIdentity, WireMeaning};
use crate::model::{Class, HostPath};

/// Longest path, the kernel's `PATH_MAX`.
pub const MAX_PATH: usize = 4096;
/// Longest word on what a file of a volume comes from, in bytes.
pub const MAX_SOURCE: usize = 1024;

/// The type of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireType {
    /// Regular file.
    File,
    /// Symbolic link.
    Symlink,
    /// Directory.
    Directory,
    /// `AtomicWriter` volume.
    Volume,
}

/// An object as text. Fields are sorted: see [`super::statement`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WireObject {
    /// How it may change.
    pub class: Class,
    /// Of a volume: logical path → file or directory; `.` is the directory `..data` points at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Unique<WireEntry>>,
    /// Group.
    pub gid: u32,
    /// Hex HMAC-SHA256 under the cluster's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac: Option<String>,
    /// What a rotated file keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<WireIdentity>,
    /// The path is one in the containers of this image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<WireImage>,
    /// Of a file that is compared by what it means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<WireMeaning>,
    /// Octal.
    pub mode: String,
    /// Where containers see it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountedAt>,
    /// Of a closed directory: name → type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Unique<EntryKind>>,
    /// Path on the host, below the pod's directory, or in the image; bytes that are not UTF-8 as `\xNN`.
    pub path: HostPath,
    /// Hex SHA-256 of the `SubjectPublicKeyInfo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Whether a publish may reach a running pod.
    #[serde(default, skip_serializing_if = "is_default_publish")]
    pub publish: Publish,
    /// Hex SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Of a symlink; bytes that are not UTF-8 as `\xNN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<HostPath>,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: WireType,
    /// Owner.
    pub uid: u32,
    /// The path is one below the directory of each pod of this workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WireWorkload>,
    /// Names of writers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writers: Vec<String>,
    /// Name → `base64:...` or `sha256:...`.
    #[serde(default, skip_serializing_if = "Unique::is_empty")]
    pub xattrs: Unique<String>,
}

/// A logical file or directory of a volume as text. Fields are sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WireEntry {
    /// How it may change.
    pub class: Class,
    /// Group.
    pub gid: u32,
    /// As in [`WireObject`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac: Option<String>,
    /// As in [`WireObject`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<WireIdentity>,
    /// As in [`WireObject`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<WireMeaning>,
    /// Octal.
    pub mode: String,
    /// As in [`WireObject`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// As in [`WireObject`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// As in [`WireObject`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What it comes from, for people: `ConfigMap/name:key`, `Secret/name:key`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `file` or `directory`.
    #[serde(rename = "type")]
    pub kind: WireType,
    /// Owner.
    pub uid: u32,
    /// As in [`WireObject`].
    #[serde(default, skip_serializing_if = "Unique::is_empty")]
    pub xattrs: Unique<String>,
}

/// A workload as text. Fields are sorted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WireWorkload {
    /// Kind of what makes the pods.
    pub kind: WorkloadKind,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Service account its pods run as.
    pub service_account: String,
}

/// An image as text. Fields are sorted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WireImage {
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// References by which pods may name it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// A map that refuses a key that comes twice, instead of taking the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Unique<V>(pub BTreeMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V> Unique<V> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Each<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Each<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Unique<V>, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = access.next_entry::<String, V>()? {
                    if map.contains_key(&key) {
                        return Err(de::Error::custom(format!("key `{key}` twice")));
                    }
                    map.insert(key, value);
                }
                Ok(Unique(map))
            }
        }
        d.deserialize_map(Each(PhantomData))
    }
}

/// 64 hex digits.
pub(super) fn digest(text: &str) -> Option<Digest> {
    let mut out = Digest::default();
    hex::decode_to_slice(text, &mut out).ok()?;
    Some(out)
}

/// Absolute, bounded, and the only way to write it.
pub(super) fn is_plain_path(path: &HostPath) -> bool {
    let bytes = path.as_bytes();
    bytes == b"/"
        || (bytes.len() <= MAX_PATH
            && bytes.strip_prefix(b"/").is_some_and(|rest| rest.split(|b| *b == b'/').all(is_component)))
}

fn is_component(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && name.len() <= 255 && !name.contains(&0)
}

/// Parts of objects already made, to share them.
#[derive(Debug, Default)]
pub(super) struct Shared {
    rules: HashSet<Arc<Rule>>,
    workloads: BTreeMap<WireWorkload, Arc<Workload>>,
    images: BTreeMap<WireImage, Arc<Image>>,
}

impl Shared {
    fn rule(&mut self, rule: Rule) -> Arc<Rule> {
        match self.rules.get(&rule) {
            Some(known) => Arc::clone(known),
            None => {
                let rule = Arc::new(rule);
                self.rules.insert(Arc::clone(&rule));
                rule
            }
        }
    }

    /// What an object's path is relative to, checked.
    fn anchor(
        &mut self,
        workload: Option<WireWorkload>,
        image: Option<WireImage>,
        place: &str,
    ) -> Result<Anchor, Error> {
        let bad =
            |field: &str, expected: &str| Error::new("bad statement", format!("{place}.{field}"), expected);
        match (workload, image) {
            (None, None) => Ok(Anchor::Host),
            (Some(_), Some(_)) => Err(bad("image", "a workload or an image, not both")),
            (Some(wire), None) => {
                if let Some(known) = self.workloads.get(&wire) {
                    return Ok(Anchor::Workload(Arc::clone(known)));
                }
                if ![&wire.namespace, &wire.name, &wire.service_account].into_iter().all(|name| is_dns(name))
                {
                    return Err(bad("workload", "names of Kubernetes objects"));
                }
                let workload = Arc::new(Workload {
                    namespace: wire.namespace.clone(),
                    kind: wire.kind,
                    name: wire.name.clone(),
                    service_account: wire.service_account.clone(),
                });
                self.workloads.insert(wire, Arc::clone(&workload));
                Ok(Anchor::Workload(workload))
            }
            (None, Some(wire)) => {
                if let Some(known) = self.images.get(&wire) {
                    return Ok(Anchor::Image(Arc::clone(known)));
                }
                let digest = wire.digest.strip_prefix("sha256:").and_then(digest);
                let digest = digest.ok_or_else(|| bad("image.digest", "sha256: and 64 hex digits"))?;
                if wire.names.len() > 100 || wire.names.iter().any(|name| name.is_empty() || name.len() > 512)
                {
                    return Err(bad("image.names", "at most 100 references of 1 to 512 bytes"));
                }
                let image = Arc::new(Image { digest, names: wire.names.clone().into() });
                self.images.insert(wire, Arc::clone(&image));
                Ok(Anchor::Image(image))
            }
        }
    }
}

/// Whether this may name a Kubernetes object: the API's names of pods, workloads and accounts are such.
pub(crate) fn is_dns(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

/// Checks one object.
pub(super) fn to_sealed(
    wire: WireObject,
    writers: &[Writer],
    shared: &mut Shared,
    place: &str,
) -> Result<SealedObject, Error> {
    let bad = |field: &str, expected: &str| {
        let field = if field.is_empty() { String::new() } else { format!(".{field}") };
        Error::new("bad statement", format!("{place}{field}"), expected)
    };
    if !is_plain_path(&wire.path) {
        return Err(bad(
            "path",
            "an absolute path of at most 4096 bytes without `.`, `..` or empty components",
        ));
    }
    for (field, there, right) in [
        ("files", wire.files.is_some(), wire.kind == WireType::Volume),
        ("names", wire.names.is_some(), wire.kind == WireType::Directory),
        ("target", wire.target.is_some(), wire.kind == WireType::Symlink),
    ] {
        if there && !right {
            return Err(bad(field, "another type of object"));
        }
    }
    let seals = Seals {
        class: wire.class,
        sha256: wire.sha256,
        hmac: wire.hmac,
        public_key: wire.public_key,
        identity: wire.identity,
        meaning: wire.meaning,
        size: wire.size,
    };
    if wire.kind != WireType::File && !seals.is_empty() {
        return Err(bad("", "digest, size and identity on files only"));
    }
    let seal = match wire.kind {
        WireType::File => Seal::File(seals.content(place)?),
        WireType::Symlink => {
            let target = wire.target.ok_or_else(|| bad("target", "the target of the link"))?;
            if target.as_bytes().is_empty() || target.as_bytes().len() > MAX_PATH {
                return Err(bad("target", "1 to 4096 bytes"));
            }
            Seal::Symlink { target: target.as_bytes().into() }
        }
        WireType::Directory => {
            let names = wire.names.map(|names| {
                let count = names.0.len();
                let names: BTreeMap<Box<[u8]>, EntryKind> = names
                    .0
                    .into_iter()
                    .map(|(name, kind)| (HostPath::from_text(&name).as_bytes().into(), kind))
                    .collect();
                // Two texts may stand for the same bytes (`a` and `\x61`).
                if names.len() != count
                    || !names.keys().all(|name| is_component(name) && !name.contains(&b'/'))
                {
                    return Err(bad("names", "file names, each once"));
                }
                Ok(Names::of(&names))
            });
            Seal::Directory { names: names.transpose()? }
        }
        WireType::Volume => {
            let files = wire.files.ok_or_else(|| bad("files", "the files of the volume"))?;
            Seal::Volume { entries: entries(files, place)? }
        }
    };
    for name in &wire.writers {
        if !writers.iter().any(|writer| writer.name() == name) {
            return Err(bad("writers", "`kubelet` or names in predicate.writers"));
        }
    }
    let anchor = shared.anchor(wire.workload, wire.image, place)?;
    if !wire.mounts.is_empty() && !matches!(anchor, Anchor::Workload(_)) {
        return Err(bad("mounts", "objects of a workload only"));
    }
    let rule = Rule {
        anchor,
        mounts: wire.mounts,
        class: wire.class,
        publish: wire.publish,
        attributes: attributes(&wire.mode, wire.uid, wire.gid, wire.xattrs, place)?,
        writers: wire.writers,
    };
    Ok(SealedObject { path: wire.path, rule: shared.rule(rule), seal })
}

fn entries(files: Unique<WireEntry>, place: &str) -> Result<Box<[VolumeEntry]>, Error> {
    let mut entries = Vec::with_capacity(files.0.len());
    for (path, wire) in files.0 {
        let place = format!("{place}.files[{path}]");
        let bad = |expected: &str| Error::new("bad statement", &place, expected);
        let path = HostPath::from_text(&path);
        let bytes = path.as_bytes();
        let plain = bytes.len() <= MAX_PATH && bytes.split(|b| *b == b'/').all(is_component);
        if bytes != b"." && !plain {
            return Err(bad(
                "a relative path without `.`, `..` or empty components; `.` alone for the directory",
            ));
        }
        let seals = Seals {
            class: wire.class,
            sha256: wire.sha256,
            hmac: wire.hmac,
            public_key: wire.public_key,
            identity: wire.identity,
            meaning: wire.meaning,
            size: wire.size,
        };
        if wire.source.as_ref().is_some_and(|source| source.len() > MAX_SOURCE) {
            return Err(bad("a source of at most 1024 bytes"));
        }
        let file = match wire.kind {
            WireType::File if bytes != b"." => Some(seals.content(&place)?),
            WireType::Directory if seals.is_empty() => None,
            _ => return Err(bad("a file, or a directory without digest and size")),
        };
        entries.push(VolumeEntry {
            path: bytes.into(),
            class: wire.class,
            file,
            source: wire.source.map(Into::into),
            attributes: attributes(&wire.mode, wire.uid, wire.gid, wire.xattrs, &place)?,
        });
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    if entries.windows(2).any(|pair| pair[0].path == pair[1].path) {
        return Err(Error::new("bad statement", format!("{place}.files"), "each path once"));
    }
    // Not the first one by need: `-`, `$` and others sort before it.
    if entries.binary_search_by(|entry| (*entry.path).cmp(b".")).is_err() {
        return Err(Error::new("bad statement", format!("{place}.files"), "an entry `.` for the directory"));
    }
    Ok(entries.into())
}

struct Seals {
    class: Class,
    sha256: Option<String>,
    hmac: Option<String>,
    public_key: Option<String>,
    identity: Option<WireIdentity>,
    meaning: Option<WireMeaning>,
    size: Option<u64>,
}

impl Seals {
    fn is_empty(&self) -> bool {
        self.sha256.is_none()
            && self.hmac.is_none()
            && self.public_key.is_none()
            && self.identity.is_none()
            && self.meaning.is_none()
            && self.size.is_none()
    }

    fn content(self, place: &str) -> Result<Content, Error> {
        let bad =
            |field: &str, expected: &str| Error::new("bad statement", format!("{place}{field}"), expected);
        let given = [&self.sha256, &self.hmac, &self.public_key].iter().filter(|seal| seal.is_some()).count()
            + usize::from(self.identity.is_some())
            + usize::from(self.meaning.is_some());
        if given > 1 {
            return Err(bad("", "one of sha256, hmac, publicKey, identity, meaning"));
        }
        let size = self.size;
        let read = |field: &str, text: &str| {
            let digest = digest(text).ok_or_else(|| bad(field, "64 hex digits"))?;
            let size = size.ok_or_else(|| bad(".size", "a size beside a digest, and only there"))?;
            Hashed::new(digest, size).ok_or_else(|| bad(".size", "less than 2^56 bytes"))
        };
        let content = if let Some(text) = &self.sha256 {
            Content::Sha256(read(".sha256", text)?)
        } else if let Some(text) = &self.hmac {
            Content::Hmac(read(".hmac", text)?)
        } else if let Some(text) = &self.public_key {
            Content::PublicKey(read(".publicKey", text)?)
        } else if let Some(identity) = self.identity {
            Content::Identity(Arc::new(identity.into_sealed(place)?))
        } else if let Some(meaning) = self.meaning {
            Content::Meaning(Arc::new(meaning.into_meaning(place)?))
        } else {
            Content::Any
        };
        let fits = match self.class {
            Class::Sealed => !matches!(content, Content::Any | Content::Identity(_)),
            Class::Generated => !matches!(content, Content::Identity(_)),
            Class::Rotated => matches!(content, Content::Identity(_)),
            Class::Opaque => matches!(content, Content::Any),
        };
        if !fits {
            return Err(bad(
                ".class",
                "sealed with a digest, generated with or without, rotated with identity, opaque with neither",
            ));
        }
        if size.is_some() && content.size().is_none() {
            return Err(bad(".size", "a size beside a digest, and only there"));
        }
        Ok(content)
    }
}

fn attributes(
    mode: &str,
    uid: u32,
    gid: u32,
    xattrs: Unique<String>,
    place: &str,
) -> Result<Attributes, Error> {
    let mode = Some(mode)
        .filter(|text| (3..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| u16::from_str_radix(text, 8).ok())
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| Error::new("bad statement", format!("{place}.mode"), "octal digits, at most 07777"))?;
    let count = xattrs.0.len();
    let mut map = BTreeMap::new();
    for (name, value) in xattrs.0 {
        let bad = || {
            Error::new(
                "bad statement",
                format!("{place}.xattrs[{name}]"),
                "a name once, and base64: of at most 64 bytes or sha256: of 64 hex digits",
            )
        };
        let value = if let Some(text) = value.strip_prefix("base64:") {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| bad())?;
            if bytes.len() > XATTR_INLINE {
                return Err(bad());
            }
            XattrValue::Bytes(bytes.into())
        } else {
            XattrValue::Sha256(value.strip_prefix("sha256:").and_then(digest).ok_or_else(bad)?)
        };
        map.insert(HostPath::from_text(&name).as_bytes().into(), value);
    }
    if map.len() != count {
        return Err(Error::new("bad statement", format!("{place}.xattrs"), "each name once"));
    }
    Ok(Attributes { mode, uid, gid, xattrs: (!map.is_empty()).then(|| Box::new(map)) })
}
