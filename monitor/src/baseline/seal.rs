//! A statement from what stands on disk: the golden node's way to a baseline.
//!
//! Directories are walked and closed; `AtomicWriter` volumes are told by their shape and sealed by logical path;
//! symlinks are sealed by target, not followed; FIFOs, sockets and devices are names with a type in their directory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::advice::{Advice, Advisor};
use super::beside::{self, Members};
use super::certify;
use super::content::FoundContent;
use super::error::Error;
use super::identity::{self, Identity, Known};
use super::meaning::{Form, Meaning};
use super::object::{Attributes, EntryKind, Publish, Writer};
use super::observe::{Context, Found, FoundKind, ObserveError, Root, observe};
use super::secret::{self, SecretKey};
use super::statement::{MAX_OBJECTS, Predicate, Scope, Statement, Validity, WireWriter, is_name};
use super::wire::{Unique, WireEntry, WireIdentity, WireMeaning, WireObject, WireType};
use crate::model::{Class, HostPath, Time};
use crate::profile::{Layout, Profiles};

/// Files that hold roots, beside a certificate: Istio, cert-manager and istio-csr, Linkerd, GKE.
const ROOT_FILES: [&[u8]; 4] = [b"root-cert.pem", b"ca.crt", b"ca-bundle.crt", b"ca_certificates.pem"];
/// Files that hold the private key, beside a certificate: the same.
const KEY_FILES: [&[u8]; 4] = [b"key.pem", b"tls.key", b"key.p8", b"private_key.pem"];
/// Volumes the kubelet publishes.
const PUBLISHED: [&[u8]; 4] = [
    b"kubernetes.io~configmap",
    b"kubernetes.io~secret",
    b"kubernetes.io~projected",
    b"kubernetes.io~downward-api",
];

/// What a statement says beside its objects.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the baseline.
    pub name: String,
    /// Its revision, from 1.
    pub revision: u64,
    /// Class of everything; `None`: as profiles say; beyond them, tokens are rotated and the rest is sealed.
    pub class: Option<Class>,
    /// Whether a publish may reach a running pod.
    pub publish: Publish,
    /// Where it is valid.
    pub scope: Scope,
    /// When it is valid.
    pub validity: Validity,
    /// For how long objects of the revision before are `superseded`, in whole seconds.
    pub transition: Duration,
    /// What it was made from.
    pub source_commit: Option<String>,
    /// The cluster's key for secrets.
    pub secret_key: Option<Arc<SecretKey>>,
    /// What advises on class and writers of what a mesh has.
    pub profiles: Arc<Profiles>,
    /// Where kubelet and runtime keep their files.
    pub layout: Layout,
    /// Leave out, with a note, what cannot be sealed, instead of failing.
    pub skip_unsealable: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "node".into(),
            revision: 1,
            class: None,
            publish: Publish::default(),
            scope: Scope::default(),
            validity: Validity::default(),
            transition: Duration::from_secs(1800),
            source_commit: None,
            secret_key: None,
            profiles: Arc::clone(Profiles::built_in()),
            layout: Layout::default(),
            skip_unsealable: false,
        }
    }
}

/// A statement, and what its reviewer should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// To review and sign.
    pub statement: Statement,
    /// One line each.
    pub notes: Vec<String>,
}

/// Seals these paths: files, symlinks, directories with all below, volumes. A path given twice is sealed once.
///
/// # Errors
/// A bad name or revision; a path that is not there, cannot be read, or keeps changing; a secret without the
/// cluster's key; a rotated file that has no identity to keep.
pub fn statement_for(root: &Root, paths: &[HostPath], options: &Options) -> Result<Proposal, Error> {
    if !is_name(&options.name) {
        return Err(Error::new(
            "cannot seal",
            "name",
            "1 to 128 letters, digits, `.`, `_`, `-`, not first a `.`",
        ));
    }
    if options.revision == 0 {
        return Err(Error::new("cannot seal", "revision", "1 or more"));
    }
    let advisor = Advisor::new(root, &options.profiles, &options.layout);
    let mut sealer = Sealer {
        root,
        options,
        advisor,
        objects: BTreeMap::new(),
        notes: Vec::new(),
        rotated_keys: Vec::new(),
        matched_keys: BTreeSet::new(),
    };
    for path in paths {
        if !super::wire::is_plain_path(path) {
            return Err(Error::new(
                "cannot seal",
                path,
                "an absolute path of at most 4096 bytes without `.`, `..` or empty components",
            ));
        }
        sealer.tree(path)?;
    }
    sealer.note_keys();
    let statement = Statement::of(Predicate {
        name: options.name.clone(),
        revision: options.revision,
        scope: options.scope.clone(),
        validity: options.validity.clone(),
        transition: options.transition.as_secs(),
        source_commit: options.source_commit.clone(),
        writers: sealer.advisor.writers,
        unresolved: Vec::new(),
        objects: sealer.objects.into_values().collect(),
    })?;
    Ok(Proposal { statement, notes: sealer.notes })
}

/// A statement's entry for an executable that may publish, hashed where it stands.
///
/// # Errors
/// It cannot be read, or is no regular file.
pub fn writer_for(root: &Root, name: &str, exe: &HostPath) -> Result<WireWriter, Error> {
    let bad = |expected: &str| Error::new("cannot seal", exe, expected);
    if !is_name(name) || name == Writer::KUBELET {
        return Err(bad("a writer's name of letters, digits, `.`, `_`, `-`; `kubelet` is built in"));
    }
    let found = observe(root, exe, &Context::default()).map_err(|e| bad(&e.to_string()))?;
    let FoundKind::File { content, .. } = found.kind else { return Err(bad("an executable file")) };
    Ok(WireWriter {
        containers: Vec::new(),
        exe: exe.clone(),
        name: name.into(),
        namespace: None,
        sha256: hex::encode(content.sha256),
    })
}

struct Sealer<'s> {
    root: &'s Root,
    options: &'s Options,
    advisor: Advisor<'s>,
    objects: BTreeMap<HostPath, WireObject>,
    notes: Vec<String>,
    /// Rotated private keys, whose content is not sealed.
    rotated_keys: Vec<HostPath>,
    /// Private keys that the identity of a certificate names.
    matched_keys: BTreeSet<HostPath>,
}

/// How the content of one file is sealed.
#[derive(Default)]
struct Sealed {
    class: Class,
    sha256: Option<String>,
    hmac: Option<String>,
    public_key: Option<String>,
    identity: Option<WireIdentity>,
    meaning: Option<WireMeaning>,
    size: Option<u64>,
}

/// How bytes that are known before they lie anywhere are sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBytes {
    /// Hex SHA-256 of what is no secret.
    pub sha256: Option<String>,
    /// Hex HMAC of a secret.
    pub hmac: Option<String>,
    /// Hex SHA-256 of the public key of what is one private key.
    pub public_key: Option<String>,
    /// How many there are.
    pub size: u64,
}

impl SealedBytes {
    /// Seals bytes as a file of them would be sealed; `None` for a secret without the cluster's key.
    #[must_use]
    pub fn of(bytes: &[u8], secret: bool, key: Option<&SecretKey>) -> Option<Self> {
        use hmac::Mac as _;

        let mut sealed = Self { sha256: None, hmac: None, public_key: None, size: bytes.len() as u64 };
        // Longer ones are not looked at for keys when they are found again.
        let whole = Some(bytes).filter(|bytes| bytes.len() < super::content::WHOLE_MAX);
        if let Some(digest) = whole.and_then(secret::public_key_of) {
            sealed.public_key = Some(hex::encode(digest));
        } else if secret || whole.is_some_and(secret::is_secret_content) {
            let mac = key?.mac()?.chain_update(bytes);
            sealed.hmac = Some(hex::encode(mac.finalize().into_bytes()));
        } else {
            sealed.sha256 = Some(hex::encode(Sha256::digest(bytes)));
        }
        Some(sealed)
    }
}

/// How a file came to be sealed.
#[derive(Clone, Copy)]
enum Way<'f> {
    /// Its path was given.
    AskedFor,
    /// It lies below one that was.
    Below,
    /// As part of a volume with these, whose writers are the volume's.
    InVolume(Members<'f>),
}

impl Sealer<'_> {
    fn tree(&mut self, top: &HostPath) -> Result<(), Error> {
        let secret_key = self.options.secret_key.clone();
        // Which of them a file is sealed by is known once it is known what it is; only small files are read so.
        let forms = vec![Form::Pem, Form::Cni, Form::Json, Form::Yaml];
        let plain = Context { secret_key, forms: vec![Form::Pem], ..Context::default() };
        let context = Context { forms, ..plain.clone() };
        let mut queue = vec![top.clone()];
        while let Some(path) = queue.pop() {
            if self.objects.contains_key(&path) {
                continue;
            }
            if self.objects.len() >= MAX_OBJECTS {
                return Err(Error::new("cannot seal", top, format!("at most {MAX_OBJECTS} objects")));
            }
            let context = if self.advised(&path) { &context } else { &plain };
            let object =
                observe(self.root, &path, context).map_err(|e| cannot_observe(&path, &e)).and_then(|found| {
                    if let FoundKind::Directory { names } = &found.kind {
                        let plain = names.iter().filter(|(_, kind)| {
                            matches!(kind, EntryKind::File | EntryKind::Directory | EntryKind::Symlink)
                        });
                        queue.extend(plain.map(|(name, _)| path.join(name)));
                    }
                    self.object(found, path == *top)
                });
            match object {
                Ok(object) => {
                    self.objects.insert(path, object);
                }
                Err(e) if self.options.skip_unsealable => self.notes.push(e.to_string()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn object(&mut self, found: Found, asked_for: bool) -> Result<WireObject, Error> {
        let Found { path, attributes, kind, .. } = found;
        let (mode, xattrs) = wire_attributes(&attributes);
        let advice = self.advice(&path);
        let class = match self.options.class {
            Some(class @ (Class::Generated | Class::Opaque)) => class,
            _ => Class::Sealed,
        };
        let mut object = WireObject {
            class,
            files: None,
            gid: attributes.gid,
            hmac: None,
            identity: None,
            image: None,
            meaning: None,
            mode,
            mounts: Vec::new(),
            names: None,
            path: path.clone(),
            public_key: None,
            publish: self.publish(advice.as_ref()),
            sha256: None,
            size: None,
            target: None,
            kind: WireType::File,
            uid: attributes.uid,
            workload: None,
            writers: Vec::new(),
            xattrs,
        };
        let published = is_published(&path);
        object.writers = advice.as_ref().map_or_else(Vec::new, |advice| advice.writers.clone());
        object.writers.retain(|name| name != Writer::KUBELET);
        match kind {
            FoundKind::File { size, content } => {
                let advice = advice.map(|advice| (advice, !object.writers.is_empty()));
                let way = if asked_for { Way::AskedFor } else { Way::Below };
                let sealed = self.content(&path, size, &content, (advice, way))?;
                object.class = sealed.class;
                object.sha256 = sealed.sha256;
                object.hmac = sealed.hmac;
                object.public_key = sealed.public_key;
                object.identity = sealed.identity;
                object.meaning = sealed.meaning;
                object.size = sealed.size;
            }
            FoundKind::Symlink { target } => {
                object.kind = WireType::Symlink;
                object.target = Some(HostPath::new(target.into_vec()));
            }
            FoundKind::Directory { names } => {
                object.kind = WireType::Directory;
                object.names =
                    Some(Unique(names.into_iter().map(|(name, kind)| (text(&name), kind)).collect()));
            }
            FoundKind::Volume { shape, entries } => {
                if let Some(fault) = shape.faults.first() {
                    return Err(Error::new(
                        "cannot seal a volume that is not as its publisher makes it",
                        path.join(&fault.name),
                        format!("{}, not {}", fault.expected, fault.actual),
                    ));
                }
                object.kind = WireType::Volume;
                let mut files = BTreeMap::new();
                let members = Members { volume: &path, entries: &entries };
                for (logical, entry) in &entries {
                    let proven = published || !object.writers.is_empty();
                    files.insert(text(logical), self.entry((members, proven), logical, entry)?);
                }
                object.files = Some(Unique(files));
                if published {
                    object.writers = vec![Writer::KUBELET.into()];
                }
            }
            FoundKind::Special(kind) => {
                return Err(Error::new(
                    "cannot seal",
                    path,
                    format!(
                        "a file, symlink or directory, not a {}; seal the directory it is in",
                        kind.as_str()
                    ),
                ));
            }
        }
        Ok(object)
    }

    /// What profiles say of a path. Where everything is to be of one class, only who may write it.
    fn advice(&mut self, path: &HostPath) -> Option<Advice> {
        let advice = self.advisor.on(path)?;
        Some(match self.options.class {
            Some(class) => Advice { class, publish: Publish::default(), form: None, ..advice },
            None => advice,
        })
    }

    /// Whether what it means may be sealed, of this or of what is in it.
    fn advised(&mut self, path: &HostPath) -> bool {
        self.advice(path).is_some_and(|advice| advice.form.is_some()) || is_published(path)
    }

    /// As it was asked for, or stricter.
    fn publish(&self, advice: Option<&Advice>) -> Publish {
        match advice {
            Some(advice) if advice.publish == Publish::Redeploy => Publish::Redeploy,
            _ => self.options.publish,
        }
    }

    fn entry(
        &mut self,
        (members, proven): (Members<'_>, bool),
        logical: &[u8],
        found: &Found,
    ) -> Result<WireEntry, Error> {
        let (mode, xattrs) = wire_attributes(&found.attributes);
        let (kind, sealed) = match &found.kind {
            FoundKind::File { size, content } => {
                // By its visible path: that is the one that stays.
                let path = members.volume.join(logical);
                let advice = self.advice(&path).map(|advice| (advice, proven));
                (WireType::File, self.content(&path, *size, content, (advice, Way::InVolume(members)))?)
            }
            _ => (WireType::Directory, Sealed::default()),
        };
        Ok(WireEntry {
            class: sealed.class,
            gid: found.attributes.gid,
            hmac: sealed.hmac,
            identity: sealed.identity,
            meaning: sealed.meaning,
            mode,
            public_key: sealed.public_key,
            sha256: sealed.sha256,
            size: sealed.size,
            source: None,
            kind,
            uid: found.attributes.uid,
            xattrs,
        })
    }

    fn content(
        &mut self,
        path: &HostPath,
        size: u64,
        content: &FoundContent,
        (advice, way): (Option<(Advice, bool)>, Way<'_>),
    ) -> Result<Sealed, Error> {
        let token = matches!(content.identity.as_deref(), Ok(Identity::Token { .. }));
        let class = match (self.options.class, &advice) {
            (Some(class), _) => class,
            (None, _) if token => Class::Rotated,
            (None, Some((advice, _))) => advice.class,
            (None, None) => Class::Sealed,
        };
        let proven = advice.as_ref().is_some_and(|(_, proven)| *proven);
        let class = match class {
            Class::Opaque => return Ok(Sealed { class: Class::Opaque, ..Sealed::default() }),
            // Its writer makes it anew at each start: what is sealed is who that is.
            Class::Generated if proven => {
                return Ok(Sealed { class: Class::Generated, ..Sealed::default() });
            }
            Class::Rotated => {
                if let Some(identity) = self.identity(path, content, way)? {
                    return Ok(Sealed {
                        class: Class::Rotated,
                        identity: Some(identity),
                        ..Sealed::default()
                    });
                }
                if content.public_key.is_some() {
                    self.rotated_keys.push(path.clone());
                    return Ok(Sealed { class: Class::Opaque, ..Sealed::default() });
                }
                let bundle = matches!(way, Way::InVolume(_)) && content.meaning(Form::Pem).is_ok();
                if bundle && let Some(meaning) = authorities(content) {
                    // Hashes of certificates tell nothing of the Secret they are in.
                    return Ok(Sealed { meaning: Some(meaning.into()), ..Sealed::default() });
                }
                let bundle = bundle && content.identity.is_err();
                if proven && !bundle {
                    // Labels of the pod, a kubeconfig: nothing in it stays, but who writes it. In a volume that goes without saying.
                    let class =
                        if matches!(way, Way::InVolume(_)) { Class::Opaque } else { Class::Generated };
                    return Ok(Sealed { class, ..Sealed::default() });
                }
                if matches!(way, Way::AskedFor) && (advice.is_none() || self.options.class.is_some()) {
                    return Err(Error::new(
                        "cannot seal as rotated",
                        path,
                        "a PEM certificate with names, or a token; --class opaque ignores content",
                    ));
                }
                Class::Sealed
            }
            class => class,
        };
        let form = advice.as_ref().and_then(|(advice, _)| advice.form).filter(|_| class == Class::Sealed);
        // Nobody sees that an opaque token is one; what holds certificates tells no more than they do.
        let by_role = advice.as_ref().is_some_and(|(advice, _)| advice.secret)
            && !matches!(content.identity.as_deref(), Ok(Identity::X509 { .. }))
            && content.meaning(Form::Pem).is_err();
        let secret =
            by_role || content.secret || content.public_key.is_some() || secret::is_secret_path(path);
        if let Some(form) = form.filter(|_| !secret) {
            match content.meaning(form) {
                Ok(meaning) => {
                    return Ok(Sealed { class, meaning: Some(meaning.into()), ..Sealed::default() });
                }
                Err(reason) => {
                    self.notes
                        .push(format!("{path}: sealed by its bytes, not as {}: {reason}", form.as_str()));
                }
            }
        }
        let mut sealed = Sealed { class, size: Some(size), ..Sealed::default() };
        if let Some(digest) = content.public_key {
            sealed.public_key = Some(hex::encode(digest));
        } else if !secret {
            sealed.sha256 = Some(hex::encode(content.sha256));
        } else if let Some(hmac) = content.hmac {
            sealed.hmac = Some(hex::encode(hmac));
        } else {
            return Err(Error::new(
                "cannot seal a secret by a plain hash",
                path,
                "--secret-key FILE with the cluster's key (at least 32 random bytes, the same on all nodes: \
                 `openssl rand -out FILE 32`)",
            ));
        }
        Ok(sealed)
    }

    fn identity(
        &mut self,
        path: &HostPath,
        content: &FoundContent,
        way: Way<'_>,
    ) -> Result<Option<WireIdentity>, Error> {
        let (sans, chain, spki, valid) = match content.identity.as_deref() {
            Ok(Identity::Token { iss, sub, aud, pod, .. }) => {
                let (aud, iss, sub) = (aud.clone(), iss.clone(), sub.clone());
                return Ok(Some(WireIdentity::Token { aud, iss, pod_bound: pod.is_some(), sub }));
            }
            Ok(Identity::X509 { sans, chain, spki, not_before, not_after }) => {
                (sans, chain, spki, (*not_before, *not_after))
            }
            Err(_) => return Ok(None),
        };
        if sans.is_empty() || chain.first().is_none_or(|leaf| identity::is_authority(leaf)) {
            return Ok(None);
        }
        let roots_file = self.beside(path, way, ROOT_FILES)?;
        let key_file = self
            .beside(path, way, KEY_FILES)?
            .filter(|(_, bytes)| secret::public_key_of(bytes).as_ref() == Some(spki))
            .map(|(path, _)| path);
        let beside: Vec<Vec<u8>> =
            roots_file.iter().flat_map(|(_, bytes)| identity::certificates(bytes)).collect();
        let roots: BTreeSet<String> = beside
            .iter()
            .chain(chain.iter().skip(1).filter(|der| certify::is_self_signed(der)))
            .map(|der| hex::encode(Sha256::digest(der)))
            .collect();
        let known = Known { roots: beside, key_spki: Some(*spki), pod: None };
        let roots_file = roots_file.map(|(path, _)| path);
        if roots.is_empty() {
            self.notes
                .push(format!("{path}: no roots beside it; any issuer can renew it, names stay sealed"));
        }
        self.matched_keys.extend(key_file.clone());
        let lifetime = Some(identity::lifetime(valid.0, valid.1));
        let wire = WireIdentity::X509 { key_file, lifetime, roots, roots_file, sans: sans.clone() };
        // It is there, so it is sealed; but whoever compares will tell.
        if let (Ok(found), Ok(sealed)) = (&content.identity, wire.clone().into_sealed(""))
            && let Err(reason) = identity::keeps_identity(&sealed, None, found, &known, Time::now())
        {
            self.notes.push(format!("{path}: does not hold as it is: {reason}"));
        }
        Ok(Some(wire))
    }

    /// The first of these that is there beside it.
    fn beside(
        &self,
        path: &HostPath,
        way: Way<'_>,
        names: [&[u8]; 4],
    ) -> Result<Option<(HostPath, Vec<u8>)>, Error> {
        let Some(dir) = path.parent() else { return Ok(None) };
        let members = match way {
            Way::InVolume(members) => Some(members),
            Way::AskedFor | Way::Below => None,
        };
        for other in names.into_iter().map(|name| dir.join(name)).filter(|other| other != path) {
            match beside::read(self.root, members, &other) {
                Ok(bytes) => return Ok(Some((other, bytes))),
                Err(e @ ObserveError::Unstable { .. }) => return Err(cannot_observe(&other, &e)),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Whether a certificate is checked to match a key is known once all of them were seen.
    fn note_keys(&mut self) {
        for path in std::mem::take(&mut self.rotated_keys) {
            let by = if self.matched_keys.contains(&path) {
                "its certificate is checked to match it"
            } else {
                "no certificate beside it is its own, and none is checked to match it"
            };
            self.notes.push(format!("{path}: a rotated private key is opaque; {by}"));
        }
    }
}

/// The set of certificates, if it begins with an authority's.
fn authorities(content: &FoundContent) -> Option<&Meaning> {
    let Ok(Identity::X509 { chain, .. }) = content.identity.as_deref() else { return None };
    content.meaning(Form::Pem).ok().filter(|_| chain.first().is_some_and(|der| identity::is_authority(der)))
}

fn cannot_observe(path: &HostPath, error: &ObserveError) -> Error {
    match error {
        ObserveError::Missing => Error::new("cannot seal", path, "something there"),
        other => {
            Error::new("cannot seal", path, format!("something that can be read and holds still ({other})"))
        }
    }
}

fn wire_attributes(attributes: &Attributes) -> (String, Unique<String>) {
    let xattrs = attributes.xattrs.iter().flat_map(|map| map.iter());
    let xattrs = xattrs.map(|(name, value)| (text(name), value.to_string())).collect();
    (format!("{:04o}", attributes.mode), Unique(xattrs))
}

fn text(bytes: &[u8]) -> String {
    HostPath::new(bytes).to_string()
}

/// `.../pods/<uid>/volumes/<plugin the kubelet publishes>/<volume>`.
fn is_published(path: &HostPath) -> bool {
    let mut parts = path.as_bytes().rsplit(|b| *b == b'/');
    let (_volume, plugin, volumes, _uid, pods) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
    plugin.is_some_and(|plugin| PUBLISHED.contains(&plugin))
        && volumes == Some(b"volumes")
        && pods == Some(b"pods")
}
