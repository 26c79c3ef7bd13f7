//! One look at an object: read, hash, compare. Runs where blocking is allowed.

use sha2::{Digest as _, Sha256};

use crate::baseline::{
    Content, Context, Difference, Digest, Found, FoundKind, ObserveError, Root, Seal, check, compare,
};

use super::held::{Ask, Holders};
use super::slots::Ix;
use super::unit::Sealed;

/// What to look at.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) ix: Ix,
    pub(crate) object: Sealed,
    /// The seal of the revision before, while its transition lasts.
    pub(crate) before: Option<Sealed>,
    /// What was found last time, where identity depends on it.
    pub(crate) last: Option<Box<Found>>,
    /// Whether to look who holds it.
    pub(crate) ask: Ask,
    /// A writer closed it since the last look.
    pub(crate) closed: bool,
    /// It was open for writing, and nothing tells what was done: see [`Context::from_disk`].
    pub(crate) from_disk: bool,
    /// It did not rest for some looks: see [`Context::restless`].
    pub(crate) restless: bool,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) found: Option<Found>,
    pub(crate) differences: Vec<Difference>,
    /// It is as the revision before sealed it.
    pub(crate) as_before: bool,
    pub(crate) content: Option<Digest>,
    pub(crate) holders: Holders,
    /// It is gone, and its container too.
    pub(crate) ended: bool,
    /// It changed meanwhile: what is found to be wrong was so at that moment, and what it is once it rests is not known.
    pub(crate) restless: bool,
}

/// Looks.
pub(crate) fn look(root: &Root, context: &Context, job: &Job) -> Result<Look, ObserveError> {
    let context = Context { from_disk: job.from_disk, ..context.clone() };
    let checked = |context: &Context| check(root, &job.object, context, job.last.as_deref());
    let ((found, differences), restless) = match checked(&context) {
        // Else whoever makes one name after the other could keep all of it from being told.
        Err(error @ ObserveError::Unstable { .. }) if job.restless => {
            let (found, differences) = checked(&Context { restless: true, ..context.clone() })?;
            if differences.is_empty() {
                return Err(error);
            }
            ((found, differences), true)
        }
        rested => (rested?, false),
    };
    let as_before = match (&job.before, &found) {
        (Some(before), Some(found)) if !differences.is_empty() => {
            before.seal.kind() == job.object.seal.kind()
                && compare(before, found, &context.profiles).is_empty()
        }
        _ => false,
    };
    let content = found.as_ref().map(digest);
    let ended = found.is_none()
        && job
            .object
            .lot
            .container
            .as_ref()
            .is_some_and(|container| root.locate(&container.lives_by).is_err());
    Ok(Look { found, differences, as_before, content, holders: Holders::default(), ended, restless })
}

/// A digest over everything in it, whatever its type.
fn digest(found: &Found) -> Digest {
    let mut hash = Sha256::new();
    match &found.kind {
        FoundKind::File { content, .. } => return content.sha256,
        FoundKind::Symlink { target } => hash.update(target),
        FoundKind::Directory { names } => hash_names(&mut hash, names.keys()),
        FoundKind::Volume { entries, .. } => {
            for (path, entry) in entries {
                hash.update((path.len() as u64).to_le_bytes());
                hash.update(path);
                // The directory's own inode changes with each publish, its content does not.
                if matches!(entry.kind, FoundKind::File { .. }) {
                    hash.update(digest(entry));
                }
            }
        }
        FoundKind::Special(kind) => hash.update(kind.as_str()),
    }
    hash.finalize().into()
}

/// The digest of what is as sealed, where the seal tells it.
pub(crate) fn sealed_digest(seal: &Seal) -> Option<Digest> {
    let mut hash = Sha256::new();
    match seal {
        Seal::File(Content::Sha256(sealed)) => return Some(sealed.digest),
        Seal::Symlink { target } => hash.update(target),
        Seal::Directory { names: Some(names) } => hash_names(&mut hash, names.iter().map(|(name, _)| name)),
        Seal::File(_) | Seal::Directory { names: None } | Seal::Volume { .. } => return None,
    }
    Some(hash.finalize().into())
}

fn hash_names<N: AsRef<[u8]>>(hash: &mut Sha256, names: impl Iterator<Item = N>) {
    for name in names {
        let name = name.as_ref();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
    }
}
