//! The content of a regular file: read once, in chunks, for every digest it may be compared by.

use hmac::Mac as _;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::identity::{self, Identity};
use super::meaning::{Form, Meaning};
use super::object::{Content, Digest};
use super::observe::{Context, ObserveError};
use super::secret::{self, SecretKey};
use crate::model::HostPath;

/// Bytes read at a time.
const CHUNK: usize = 256 * 1024;
/// A file shorter than this is also looked at for keys, tokens and certificates.
pub(super) const WHOLE_MAX: usize = CHUNK;

/// The content of a regular file, by its digests. Of a secret's digests none leaves this crate's comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundContent {
    /// SHA-256 of the bytes.
    pub sha256: Digest,
    /// HMAC of the bytes, where the cluster's key is known.
    pub hmac: Option<Digest>,
    /// SHA-256 of the public key, if it is one private key.
    pub public_key: Option<Digest>,
    /// It is a private key or token, or lies where secrets lie: its SHA-256 must not be told.
    pub secret: bool,
    /// What it means in each form that was asked for, or why it is not of that form.
    pub meanings: Vec<(Form, Result<Meaning, String>)>,
    /// What identity it has, if it is a certificate or token; otherwise why not.
    pub identity: Result<Box<Identity>, String>,
}

impl FoundContent {
    /// What it means in that form, or why it means nothing.
    pub(crate) fn meaning(&self, form: Form) -> Result<&Meaning, &str> {
        match self.meanings.iter().find(|(read, _)| *read == form) {
            Some((_, meaning)) => meaning.as_ref().map_err(String::as_str),
            None => Err("it was not read so"),
        }
    }
}

/// Hashes exactly `size` bytes; `None` if there are more or fewer.
pub(super) fn hash(
    file: &std::fs::File,
    path: &HostPath,
    size: u64,
    context: &Context,
) -> Result<Option<FoundContent>, ObserveError> {
    if context.from_disk {
        // Pages that are mapped or not written yet stay, and are what counts. Where the advice is not taken, nothing is lost.
        let _taken = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }
    let mut buffer = vec![0_u8; usize::try_from(size).unwrap_or(CHUNK).clamp(1, CHUNK - 1) + 1];
    let (mut sha256, mut mac) = (Sha256::new(), context.secret_key.as_deref().and_then(SecretKey::mac));
    let mut seen: u64 = 0;
    loop {
        let filled = fill(file, &mut buffer, size - seen).map_err(|e| ObserveError::io(path, "read", e))?;
        seen += filled as u64;
        if seen > size {
            return Ok(None);
        }
        sha256.update(&buffer[..filled]);
        if let Some(mac) = &mut mac {
            mac.update(&buffer[..filled]);
        }
        if filled < buffer.len() {
            break;
        }
    }
    if seen != size {
        return Ok(None);
    }
    // One byte more than the file was asked for, so a whole file is still in the buffer if it is small.
    let whole = usize::try_from(size)
        .ok()
        .and_then(|size| buffer.get(..size))
        .filter(|whole| whole.len() < WHOLE_MAX);
    Ok(Some(FoundContent {
        sha256: sha256.finalize().into(),
        hmac: mac.map(|mac| mac.finalize().into_bytes().into()),
        public_key: whole.and_then(secret::public_key_of),
        secret: context.secret
            || secret::is_secret_path(path)
            || whole.is_some_and(secret::is_secret_content),
        meanings: context
            .forms
            .iter()
            .map(|form| {
                let meaning = whole.ok_or_else(|| format!("longer than {WHOLE_MAX} bytes"));
                (*form, meaning.and_then(|whole| Meaning::read(*form, whole)))
            })
            .collect(),
        identity: whole.map_or_else(
            || Err("too long for a certificate or token".to_owned()),
            |whole| identity::extract(whole).map(Box::new),
        ),
    }))
}

/// Reads until the buffer is full or the file ends: by a read of nothing, or by one that ends short where the file is said to
/// end. Should it have grown just then, its `ctime` moved, and the look is repeated.
fn fill(file: &std::fs::File, buffer: &mut [u8], left: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(file, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => {
                filled += n;
                if filled as u64 == left && filled < buffer.len() {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Whether content found is as sealed; `None` where it cannot be said (a secret without the cluster's key).
#[must_use]
pub(super) fn content_matches(sealed: &Content, found: &FoundContent) -> Option<bool> {
    match sealed {
        Content::Sha256(sealed) => Some(sealed.digest == found.sha256),
        Content::Hmac(sealed) => found.hmac.map(|hmac| hmac == sealed.digest),
        Content::PublicKey(sealed) => Some(found.public_key == Some(sealed.digest)),
        Content::Meaning(sealed) => Some(found.meaning(sealed.form()) == Ok(&**sealed)),
        // Judged by `keeps_identity`.
        Content::Identity(_) | Content::Any => Some(true),
    }
}
