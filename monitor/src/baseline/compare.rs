//! How what was found differs from what is sealed.

use std::collections::BTreeMap;

use super::beside::{self, Members};
use super::content::{self, FoundContent};
use super::identity::{self, Identity, Known, SealedIdentity};
use super::meaning;
use super::object::{Attributes, Content, EntryKind, Names, Seal, SealedObject, xattr_key};
use super::observe::{self, Context, Found, FoundKind, ObserveError, Root};
use super::secret;
use crate::model::{HostPath, State, Time};
use crate::profile::Profiles;

/// One way in which an object is not as sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// In what.
    pub aspect: Aspect,
    /// The entry of a directory (a name) or volume (a name or logical path) concerned, if it is not the object itself.
    pub entry: Option<Vec<u8>>,
    /// As sealed: only what differs.
    pub expected: State,
    /// As found: only what differs.
    pub actual: State,
    /// One sentence more.
    pub detail: Option<String>,
}

/// In what an object differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aspect {
    /// Nothing is there.
    Missing,
    /// Another type of inode.
    Type,
    /// Bytes of a file, or size.
    Content,
    /// Target of a link.
    Target,
    /// A name too many or too few in a closed directory, or a file in a volume.
    Names,
    /// A volume is not shaped as its publisher shapes it.
    Structure,
    /// A rotation that does not keep identity.
    Identity,
    /// Mode, owner or extended attributes.
    Attributes,
}

impl Difference {
    /// The keys that differ.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.expected.keys().chain(self.actual.keys().filter(|key| !self.expected.contains_key(*key)))
    }
}

impl Aspect {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Missing,
        Self::Type,
        Self::Content,
        Self::Target,
        Self::Names,
        Self::Structure,
        Self::Identity,
        Self::Attributes,
    ];

    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Type => "type",
            Self::Content => "content",
            Self::Target => "target",
            Self::Names => "names",
            Self::Structure => "structure",
            Self::Identity => "identity",
            Self::Attributes => "attributes",
        }
    }
}

/// Observes a sealed object and compares: empty means intact. [`ObserveError::Missing`] becomes a difference.
/// The files a rotated certificate needs beside it (roots, private key) are read too.
///
/// `found` is `None` where nothing is there. `old` is what was found before a rotation, where the caller knows it.
///
/// # Errors
/// Any other [`ObserveError`]; or a secret sealed by HMAC while the cluster's key is not known.
pub fn check(
    root: &Root,
    sealed: &SealedObject,
    context: &Context,
    old: Option<&Found>,
) -> Result<(Option<Found>, Vec<Difference>), ObserveError> {
    let found = match observe::observe(root, &sealed.path, &context.for_sealed(sealed)) {
        Ok(found) => found,
        Err(ObserveError::Missing) => return Ok((None, vec![missing(sealed, &context.profiles)])),
        Err(e) => return Err(e),
    };
    if needs_secret_key(&sealed.seal) && context.secret_key.is_none() {
        return Err(ObserveError::Io {
            path: sealed.path.clone(),
            what: "compare a secret",
            reason: "it is sealed by HMAC, and the cluster's secret key is not given".into(),
        });
    }
    let mut differences = compare(sealed, &found, &context.profiles);
    match (&sealed.seal, &found.kind) {
        (Seal::File(Content::Identity(identity)), FoundKind::File { content, .. }) => {
            let before = old.and_then(|old| identity_of(&old.kind));
            let known = known(root, &sealed.path, None, identity)?;
            differences.extend(check_identity(identity, before, content, &known, None));
        }
        (Seal::Volume { entries }, FoundKind::Volume { entries: found, .. }) => {
            let members = Members { volume: &sealed.path, entries: found };
            for entry in entries {
                if let Some(Content::Identity(identity)) = &entry.file
                    && let Some(Found { kind: FoundKind::File { content, .. }, .. }) = found.get(&entry.path)
                {
                    let before = old.and_then(|old| match &old.kind {
                        FoundKind::Volume { entries, .. } => {
                            entries.get(&entry.path).and_then(|old| identity_of(&old.kind))
                        }
                        _ => None,
                    });
                    let known = known(root, &sealed.path, Some(members), identity)?;
                    differences.extend(check_identity(identity, before, content, &known, Some(&entry.path)));
                }
            }
        }
        _ => {}
    }
    Ok((Some(found), differences))
}

/// Whether it takes the cluster's key to compare this.
#[must_use]
pub fn needs_secret_key(seal: &Seal) -> bool {
    match seal {
        Seal::File(content) => matches!(content, Content::Hmac(_)),
        Seal::Volume { entries } => entries.iter().any(|entry| matches!(&entry.file, Some(Content::Hmac(_)))),
        _ => false,
    }
}

fn identity_of(kind: &FoundKind) -> Option<&Identity> {
    match kind {
        FoundKind::File { content, .. } => content.identity.as_deref().ok(),
        _ => None,
    }
}

/// What is known beside the file. What cannot be read leaves the identity unproven, and `keeps_identity` says what is missing; a volume
/// that moves under the reader proves nothing.
fn known(
    root: &Root,
    at: &HostPath,
    members: Option<Members<'_>>,
    sealed: &SealedIdentity,
) -> Result<Known, ObserveError> {
    let mut known = Known { pod: identity::pod_of(at), ..Known::default() };
    let read = |path: &Option<HostPath>| match path.as_ref().map(|path| beside::read(root, members, path)) {
        Some(Err(e @ ObserveError::Unstable { .. })) => Err(e),
        read => Ok(read.and_then(Result::ok)),
    };
    if let SealedIdentity::X509 { roots_file, key_file, .. } = sealed {
        known.roots = read(roots_file)?.map_or_else(Vec::new, |bytes| identity::certificates(&bytes));
        known.key_spki = read(key_file)?.and_then(|bytes| secret::public_key_of(&bytes));
    }
    Ok(known)
}

fn check_identity(
    sealed: &SealedIdentity,
    old: Option<&Identity>,
    content: &FoundContent,
    known: &Known,
    entry: Option<&[u8]>,
) -> Option<Difference> {
    let reason = match &content.identity {
        Ok(new) => identity::keeps_identity(sealed, old, new, known, Time::now()).err()?,
        Err(reason) => reason.clone(),
    };
    Some(Difference {
        aspect: Aspect::Identity,
        entry: entry.map(<[u8]>::to_vec),
        expected: State::from([("identity".into(), sealed.to_string())]),
        actual: State::from([(
            "identity".into(),
            content.identity.as_ref().map_or_else(|_| "none".into(), ToString::to_string),
        )]),
        detail: Some(reason),
    })
}

/// The difference of an object that is not there.
#[must_use]
pub fn missing(sealed: &SealedObject, profiles: &Profiles) -> Difference {
    Difference {
        aspect: Aspect::Missing,
        entry: None,
        expected: State::from([("type".into(), sealed.seal.kind().as_str().into())]),
        actual: State::from([("type".into(), "none".into())]),
        detail: match &sealed.seal {
            Seal::File(Content::Meaning(meaning)) => meaning.without_it(profiles),
            _ => None,
        },
    }
}

/// Compares; empty means intact. Identity of rotated files is [`check`]'s, or the caller's by
/// [`identity::keeps_identity`]. A secret that cannot be compared for want of the key counts as different.
#[must_use]
pub fn compare(sealed: &SealedObject, found: &Found, profiles: &Profiles) -> Vec<Difference> {
    let mut out = Vec::new();
    match (&sealed.seal, &found.kind) {
        (Seal::File(content), FoundKind::File { size, content: found }) => {
            file(&mut out, None, content, (*size, found), profiles);
        }
        (Seal::Symlink { target }, FoundKind::Symlink { target: found }) => {
            if target != found {
                let state = |target: &[u8]| {
                    State::from([("target".into(), HostPath::new(target.to_vec()).to_string())])
                };
                out.push(Difference {
                    aspect: Aspect::Target,
                    entry: None,
                    expected: state(target),
                    actual: state(found),
                    detail: None,
                });
            }
        }
        (Seal::Directory { names }, FoundKind::Directory { names: found }) => {
            if let Some(names) = names {
                directory(&mut out, names, found);
            }
        }
        (Seal::Volume { .. }, FoundKind::Volume { .. }) => volume(&mut out, sealed, found, profiles),
        // A directory is looked at as a volume only if it is sealed as one, so this is another type of inode,
        // or a caller who observed without `Context::for_sealed`.
        _ => out.push(Difference {
            aspect: Aspect::Type,
            entry: None,
            expected: State::from([("type".into(), sealed.seal.kind().as_str().into())]),
            actual: State::from([("type".into(), found.entry_kind().as_str().into())]),
            detail: None,
        }),
    }
    // Mode bits of another type of inode tell nothing, and a symlink's mode is always 0777.
    if sealed.seal.kind() == found.entry_kind() {
        attributes(&mut out, None, &sealed.rule.attributes, &found.attributes);
    }
    out
}

fn file(
    out: &mut Vec<Difference>,
    entry: Option<&[u8]>,
    sealed: &Content,
    (found_size, found): (u64, &FoundContent),
    profiles: &Profiles,
) {
    let mut expected = State::new();
    let mut actual = State::new();
    if let Content::Meaning(sealed) = sealed {
        if let Some((expected, mut actual, detail)) = sealed.differs(found.meaning(sealed.form()), profiles) {
            if !found.secret {
                actual.insert("sha256".into(), hex::encode(found.sha256));
            }
            let (aspect, entry) = (Aspect::Content, entry.map(<[u8]>::to_vec));
            out.push(Difference { aspect, entry, expected, actual, detail: Some(detail) });
        }
        return;
    }
    let same = content::content_matches(sealed, found);
    if same != Some(true) {
        match sealed {
            Content::Sha256(sealed) if !found.secret => {
                expected.insert("sha256".into(), hex::encode(sealed.digest));
                actual.insert("sha256".into(), hex::encode(found.sha256));
            }
            _ => {
                expected.insert("content".into(), "equal".into());
                actual.insert("content".into(), "differs".into());
            }
        }
    }
    if let Some(size) = sealed.size()
        && size != found_size
    {
        expected.insert("size".into(), size.to_string());
        actual.insert("size".into(), found_size.to_string());
    }
    if !expected.is_empty() {
        out.push(Difference {
            aspect: Aspect::Content,
            entry: entry.map(<[u8]>::to_vec),
            expected,
            actual,
            detail: same.is_none().then(|| "cannot be compared without the cluster's secret key".into()),
        });
    }
}

fn attributes(out: &mut Vec<Difference>, entry: Option<&[u8]>, sealed: &Attributes, found: &Attributes) {
    let mut expected = State::new();
    let mut actual = State::new();
    let mut note = |key: &str, sealed: String, found: String| {
        if sealed != found {
            expected.insert(key.to_owned(), sealed);
            actual.insert(key.to_owned(), found);
        }
    };
    note("mode", format!("{:04o}", sealed.mode), format!("{:04o}", found.mode));
    note("uid", sealed.uid.to_string(), found.uid.to_string());
    note("gid", sealed.gid.to_string(), found.gid.to_string());
    let none = BTreeMap::new();
    let sealed = sealed.xattrs.as_deref().unwrap_or(&none);
    let found = found.xattrs.as_deref().unwrap_or(&none);
    for (name, value) in sealed {
        match found.get(name) {
            Some(other) if value.same(other) => {}
            other => {
                let other = other.map_or_else(|| "none".to_owned(), ToString::to_string);
                note(&xattr_key(name), value.to_string(), other);
            }
        }
    }
    for (name, value) in found.iter().filter(|(name, _)| !sealed.contains_key(*name)) {
        note(&xattr_key(name), "none".into(), value.to_string());
    }
    if !expected.is_empty() {
        out.push(Difference {
            aspect: Aspect::Attributes,
            entry: entry.map(<[u8]>::to_vec),
            expected,
            actual,
            detail: None,
        });
    }
}

fn directory(out: &mut Vec<Difference>, sealed: &Names, found: &BTreeMap<Box<[u8]>, EntryKind>) {
    for (name, kind) in sealed.iter() {
        match found.get(name) {
            Some(other) if *other == kind => {}
            other => name_differs(out, name, kind.as_str(), other.map_or("none", |kind| kind.as_str())),
        }
    }
    let names: Vec<&[u8]> = sealed.iter().map(|(name, _)| name).collect();
    for (name, kind) in found.iter().filter(|(name, _)| names.binary_search(&&***name).is_err()) {
        name_differs(out, name, "none", kind.as_str());
        if let Some(difference) = out.last_mut() {
            difference.detail = meaning::overtakes(&names, name);
        }
    }
}

fn name_differs(out: &mut Vec<Difference>, name: &[u8], expected: &str, actual: &str) {
    let key = format!("name.{}", HostPath::new(name.to_vec()));
    out.push(Difference {
        aspect: Aspect::Names,
        entry: Some(name.to_vec()),
        expected: State::from([(key.clone(), expected.to_owned())]),
        actual: State::from([(key, actual.to_owned())]),
        detail: None,
    });
}

fn volume(out: &mut Vec<Difference>, sealed: &SealedObject, found: &Found, profiles: &Profiles) {
    let (Seal::Volume { entries: sealed }, FoundKind::Volume { shape, entries: found }) =
        (&sealed.seal, &found.kind)
    else {
        return;
    };
    for fault in &shape.faults {
        let key = format!("name.{}", HostPath::new(fault.name.to_vec()));
        out.push(Difference {
            aspect: Aspect::Structure,
            entry: Some(fault.name.to_vec()),
            expected: State::from([(key.clone(), fault.expected.clone())]),
            actual: State::from([(key, fault.actual.clone())]),
            detail: None,
        });
    }
    // Without a proper `..data` there is nothing to compare, and the structure says so already.
    if shape.current.is_none() {
        return;
    }
    for entry in sealed {
        let first = out.len();
        let expected = if entry.file.is_some() { EntryKind::File } else { EntryKind::Directory };
        match found.get(&entry.path) {
            None => name_differs(out, &entry.path, expected.as_str(), "none"),
            Some(other) if other.entry_kind() != expected => {
                name_differs(out, &entry.path, expected.as_str(), other.entry_kind().as_str());
            }
            Some(other) => {
                if let (Some(sealed), FoundKind::File { size, content }) = (&entry.file, &other.kind) {
                    file(out, Some(&entry.path), sealed, (*size, content), profiles);
                }
                attributes(out, Some(&entry.path), &entry.attributes, &other.attributes);
            }
        }
        if let Some(source) = &entry.source {
            for difference in &mut out[first..] {
                difference.detail.get_or_insert_with(|| format!("from {source}"));
            }
        }
    }
    for (path, other) in found {
        if sealed.binary_search_by(|entry| entry.path.cmp(path)).is_err() {
            name_differs(out, path, "none", other.entry_kind().as_str());
        }
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
