//! The files beside a rotated certificate: its roots and its private key.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::observe::{Found, FoundKind, ObserveError, Root};
use crate::model::HostPath;

/// Longest of these files.
const MAX: u64 = 256 * 1024;

/// What was found in a volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Members<'f> {
    /// Where the volume is.
    pub(super) volume: &'f HostPath,
    /// Logical path → what lies there.
    pub(super) entries: &'f BTreeMap<Box<[u8]>, Found>,
}

/// Reads one of these files. What lies in the volume is read where it was found: its visible name is a link, which could lead
/// anywhere, and the next publish swings it.
///
/// # Errors
/// [`ObserveError::Unstable`] if the volume no longer has what was found in it; else as [`Root::read`].
pub(super) fn read(
    root: &Root,
    members: Option<Members<'_>>,
    path: &HostPath,
) -> Result<Vec<u8>, ObserveError> {
    let inside = members.and_then(|members| Some((members.entries, path.below(members.volume)?)));
    let Some((entries, logical)) = inside else { return root.read(path, MAX) };
    let found = entries.get(logical).ok_or(ObserveError::Missing)?;
    let FoundKind::File { size, content } = &found.kind else { return Err(ObserveError::Missing) };
    if *size > MAX {
        return Err(ObserveError::TooMuch { path: path.clone(), what: "bytes", limit: 256 * 1024 });
    }
    let bytes = root.read(&found.path, MAX).ok();
    bytes
        .filter(|bytes| content.sha256 == <[u8; 32]>::from(Sha256::digest(bytes)))
        .ok_or_else(|| ObserveError::Unstable { path: path.clone() })
}
