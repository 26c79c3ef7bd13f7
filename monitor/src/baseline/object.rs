//! A sealed object as it is kept in memory: small, because a node has thousands of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::anchor::Anchor;
use super::identity::SealedIdentity;
use super::meaning::Meaning;
use crate::model::{Class, HostPath, Slice, State};

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// Stable id of an object: the beginning of the SHA-256 over baseline name, NUL, address; 16 hex digits as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; 8]);

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl serde::Serialize for ObjectId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// What one object must be. A baseline may have a hundred thousand of them: what many have in common stands in one [`Rule`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedObject {
    /// Where it stands, relative to its anchor; on the host for a resolved one.
    pub path: HostPath,
    /// What holds for it as for others.
    pub rule: Arc<Rule>,
    /// What it is.
    pub seal: Seal,
}

const _: () = assert!(size_of::<SealedObject>() <= 64, "an object beyond its path");

/// What objects have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What the object was sealed relative to. Once resolved on a node, its path is the host's whatever this says.
    pub anchor: Anchor,
    /// Where containers see it, where it was sealed for a workload.
    pub mounts: Vec<MountedAt>,
    /// How it may change.
    pub class: Class,
    /// Whether a publish may reach a running pod.
    pub publish: Publish,
    /// Mode, owner, extended attributes.
    pub attributes: Attributes,
    /// Names of those who may lawfully publish it (see [`Writer`] for what a name stands for).
    pub writers: Vec<String>,
}

impl SealedObject {
    /// The id of an object of the host: the same for every revision of a baseline.
    #[must_use]
    pub fn id_of(baseline: &str, path: &HostPath) -> ObjectId {
        Self::id(baseline, path.as_bytes())
    }

    /// Its id as long as it is not resolved on a node.
    #[must_use]
    pub fn id_at_anchor(&self, baseline: &str) -> ObjectId {
        if self.rule.anchor.is_host() {
            Self::id_of(baseline, &self.path)
        } else {
            Self::id(baseline, self.address().as_bytes())
        }
    }

    fn id(baseline: &str, address: &[u8]) -> ObjectId {
        let mut hash = Sha256::new();
        hash.update(baseline.as_bytes());
        hash.update([0]);
        hash.update(address);
        let digest: Digest = hash.finalize().into();
        ObjectId(digest.first_chunk().copied().unwrap_or_default())
    }

    /// Its path with what that is relative to.
    #[must_use]
    pub fn address(&self) -> String {
        self.rule.anchor.address(&self.path)
    }

    /// What of it is packed with that of other objects. There are so many that each in a piece of memory of its own would leave
    /// holes everywhere.
    pub(crate) fn slices_mut(&mut self) -> impl Iterator<Item = &mut Slice> {
        let names = match &mut self.seal {
            Seal::Directory { names: Some(names) } => Some(&mut names.0),
            _ => None,
        };
        std::iter::once(self.path.slice_mut()).chain(names)
    }

    /// All of what is sealed, as records show it. Secrets show no content.
    #[must_use]
    pub fn state(&self) -> State {
        let mut state = self.rule.attributes.state();
        state.insert("type".into(), self.seal.kind().as_str().into());
        match &self.seal {
            Seal::File(content) => {
                if let Some(size) = content.size() {
                    state.insert("size".into(), size.to_string());
                }
                if let Some((key, value)) = content.state() {
                    state.insert(key.into(), value);
                }
            }
            Seal::Symlink { target } => {
                state.insert("target".into(), HostPath::new(target.to_vec()).to_string());
            }
            Seal::Directory { names } => {
                if let Some(names) = names {
                    state.insert("names".into(), names.iter().count().to_string());
                }
            }
            Seal::Volume { entries } => {
                state.insert("files".into(), entries.len().to_string());
            }
        }
        state
    }
}

/// Where a container sees a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MountedAt {
    /// Name of the container.
    pub container: String,
    /// Path in it.
    pub path: String,
}

/// Whether a publish of new content may reach a running pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publish {
    /// A lawful publish of approved content is lawful at any time.
    #[default]
    InPlace,
    /// Any update is a redeployment: a publish into a running pod is a violation, approved or not.
    Redeploy,
}

/// What an object is, and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seal {
    /// A regular file.
    File(Content),
    /// A symbolic link, sealed by its target.
    Symlink { target: Box<[u8]> },
    /// A directory; closed if `names` is there.
    Directory { names: Option<Names> },
    /// An `AtomicWriter` volume: logical relative path (`.` for the directory `..data` points at) → entry, sorted.
    Volume { entries: Box<[VolumeEntry]> },
}

impl Seal {
    /// The type of inode that must stand there.
    #[must_use]
    pub const fn kind(&self) -> EntryKind {
        match self {
            Self::File(_) => EntryKind::File,
            Self::Symlink { .. } => EntryKind::Symlink,
            Self::Directory { .. } | Self::Volume { .. } => EntryKind::Directory,
        }
    }

    /// A volume's entry of that logical path.
    #[must_use]
    pub fn member(&self, path: &[u8]) -> Option<&VolumeEntry> {
        let Self::Volume { entries } = self else { return None };
        let at = entries.binary_search_by(|entry| (*entry.path).cmp(path)).ok()?;
        entries.get(at)
    }
}

/// One logical file or directory of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Path below `..data`, without a leading slash; `.` is the directory itself.
    pub path: Box<[u8]>,
    /// How it may change.
    pub class: Class,
    /// Content of a file; `None` for a directory.
    pub file: Option<Content>,
    /// What it comes from, such as `ConfigMap/name:key`, where the baseline says so.
    pub source: Option<Box<str>>,
    /// Mode, owner, extended attributes.
    pub attributes: Attributes,
}

/// The names in a closed directory and what stands under each, sorted, in one piece of memory: of each the type, the name, and a NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(Slice);

impl Names {
    /// Names of files, which hold no NUL.
    #[must_use]
    pub fn of(names: &BTreeMap<Box<[u8]>, EntryKind>) -> Self {
        let each = names.iter().map(|(name, kind)| [&[*kind as u8], &**name, &[0]].concat());
        Self(Slice::new(each.collect::<Vec<_>>().concat()))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], EntryKind)> {
        self.0.as_bytes().split_inclusive(|byte| *byte == 0).filter_map(|one| {
            let (kind, name) = one.split_first()?;
            Some((name.strip_suffix(&[0])?, *EntryKind::ALL.get(usize::from(*kind).checked_sub(1)?)?))
        })
    }
}

/// How the content of a file is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// By its SHA-256.
    Sha256(Hashed),
    /// A secret: by HMAC-SHA256 under the cluster's key.
    Hmac(Hashed),
    /// A private key: by the SHA-256 of its `SubjectPublicKeyInfo`.
    PublicKey(Hashed),
    /// Rotated: by the identity it must keep.
    Identity(Arc<SealedIdentity>),
    /// By what it means: a set of certificates, a chain of plugins, a value.
    Meaning(Arc<Meaning>),
    /// Not at all (opaque, or generated and not yet known).
    Any,
}

impl Content {
    /// No hash of what is found there is told: a secret, a private key, or a token, whatever stands there for the moment.
    #[must_use]
    pub fn is_of_a_secret(&self) -> bool {
        match self {
            Self::Hmac(_) | Self::PublicKey(_) => true,
            Self::Identity(identity) => matches!(**identity, SealedIdentity::Token { .. }),
            Self::Sha256(_) | Self::Meaning(_) | Self::Any => false,
        }
    }
}

/// A digest, and how long what it is of is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashed {
    /// The digest.
    pub digest: Digest,
    /// Seven bytes, which stand where an eighth would cost every object eight.
    size: [u8; 7],
}

impl Hashed {
    /// `None` of what is longer than 2⁵⁶ bytes, which nobody would wait for to be hashed.
    #[must_use]
    pub fn new(digest: Digest, size: u64) -> Option<Self> {
        let [size @ .., 0] = size.to_le_bytes() else { return None };
        Some(Self { digest, size })
    }

    /// Bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        let [a, b, c, d, e, f, g] = self.size;
        u64::from_le_bytes([a, b, c, d, e, f, g, 0])
    }
}

impl Content {
    /// Bytes; `None` where they may change.
    #[must_use]
    pub const fn size(&self) -> Option<u64> {
        match self {
            Self::Sha256(sized) | Self::Hmac(sized) | Self::PublicKey(sized) => Some(sized.size()),
            Self::Identity(_) | Self::Meaning(_) | Self::Any => None,
        }
    }

    /// Key and value for a [`State`]; nothing for secrets.
    #[must_use]
    pub fn state(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Sha256(sealed) => Some(("sha256", hex::encode(sealed.digest))),
            Self::PublicKey(sealed) => Some(("public_key", hex::encode(sealed.digest))),
            Self::Identity(identity) => Some(("identity", identity.to_string())),
            Self::Meaning(meaning) => Some(meaning.state()),
            Self::Hmac(_) | Self::Any => None,
        }
    }
}

/// The type of an inode. Its number is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// Regular file.
    File = 1,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// FIFO.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

impl EntryKind {
    /// All of them, by number.
    const ALL: [Self; 7] =
        [Self::File, Self::Directory, Self::Symlink, Self::Fifo, Self::Socket, Self::Char, Self::Block];

    /// The word in statements and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Char => "char",
            Self::Block => "block",
        }
    }

    /// From `st_mode`; `None` for what Linux does not know.
    #[must_use]
    pub fn from_mode(mode: u32) -> Option<Self> {
        use rustix::fs::FileType;
        Some(match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::Char,
            FileType::BlockDevice => Self::Block,
            FileType::Unknown => return None,
        })
    }
}

/// Mode, owner and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky (`07777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes by name; none is the usual case and costs a word.
    pub xattrs: Option<Box<BTreeMap<Box<[u8]>, XattrValue>>>,
}

impl Attributes {
    /// As records show them.
    #[must_use]
    pub fn state(&self) -> State {
        let mut state = State::from([
            ("mode".to_owned(), format!("{:04o}", self.mode)),
            ("uid".to_owned(), self.uid.to_string()),
            ("gid".to_owned(), self.gid.to_string()),
        ]);
        for (name, value) in self.xattrs.iter().flat_map(|map| map.iter()) {
            state.insert(xattr_key(name), value.to_string());
        }
        state
    }
}

/// The key of an extended attribute in a [`State`].
#[must_use]
pub fn xattr_key(name: &[u8]) -> String {
    format!("xattr.{}", HostPath::new(name.to_vec()))
}

/// Longest value of an extended attribute kept as it is; longer ones are kept by their hash.
pub const XATTR_INLINE: usize = 64;

/// The value of an extended attribute: short ones as they are, long ones by SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum XattrValue {
    /// The bytes, at most [`XATTR_INLINE`].
    Bytes(Box<[u8]>),
    /// Their SHA-256.
    Sha256(Digest),
}

impl XattrValue {
    /// Of these bytes.
    #[must_use]
    pub fn of(value: &[u8]) -> Self {
        if value.len() <= XATTR_INLINE {
            Self::Bytes(value.into())
        } else {
            Self::Sha256(Sha256::digest(value).into())
        }
    }

    /// Whether both stand for the same bytes.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }

    fn digest(&self) -> Digest {
        match self {
            Self::Bytes(bytes) => Sha256::digest(bytes).into(),
            Self::Sha256(digest) => *digest,
        }
    }
}

impl std::fmt::Display for XattrValue {
    /// `base64:...` or `sha256:...`, as in a statement.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use base64::Engine as _;
        match self {
            Self::Bytes(bytes) => {
                write!(f, "base64:{}", base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            Self::Sha256(digest) => write!(f, "sha256:{}", hex::encode(digest)),
        }
    }
}

/// Who may lawfully publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writer {
    /// The kubelet of this node: a process that the attribution has proven to be it.
    Kubelet,
    /// An executable by path and content.
    Executable { name: String, exe: HostPath, sha256: Digest },
    /// The first process of a container of a pod.
    InPod(Arc<PodWriter>),
}

/// A writer inside pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodWriter {
    /// What objects call it.
    pub name: String,
    /// Its executable, as its container names it.
    pub exe: HostPath,
    /// SHA-256 of its executable.
    pub sha256: Digest,
    /// Names of the containers it is the first process of.
    pub containers: Vec<String>,
    /// Namespace of its pods, if it writes files of others than its own pod.
    pub namespace: Option<String>,
}

impl Writer {
    /// The built-in name.
    pub const KUBELET: &'static str = "kubelet";

    /// The name objects use.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Kubelet => Self::KUBELET,
            Self::Executable { name, .. } => name,
            Self::InPod(writer) => &writer.name,
        }
    }
}
