//! What can go wrong with a journal, in one line each.

use std::io;
use std::path::PathBuf;

/// Why a journal could not be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process writes this journal.
    #[error("journal is in use: {}: expected no other agent with this stateDir", .0.display())]
    Locked(PathBuf),
    /// There is no journal.
    #[error("no journal: {}: expected a directory with a meta.json", .0.display())]
    Missing(PathBuf),
    /// The file system refused.
    #[error("journal: {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    /// What is on disk is not what was written.
    #[error("journal was tampered with: {0}")]
    Tampered(String),
    /// A record is larger than a frame may be.
    #[error("journal record of kind {kind} too large: {bytes} bytes: expected at most {limit}", limit = super::MAX_PAYLOAD)]
    TooLarge { kind: &'static str, bytes: usize },
    /// A record has no JSON form.
    #[error("journal record of kind {kind}: {reason}")]
    Encode { kind: &'static str, reason: String },
    /// More drafts in one call than the queue holds.
    #[error("journal: {0} records at once: expected at most {limit}", limit = super::QUEUE)]
    TooMany(usize),
    /// The writer has ended.
    #[error("journal is closed")]
    Closed,
    /// A number that is not in this log.
    #[error("journal: no such record: {what}: expected 1 to {last}")]
    OutOfRange { what: String, last: u64 },
}

impl JournalError {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
