//! What an exporter keeps on disk: how far a receiver has acknowledged, and what no receiver would take.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::config::{Endpoint, Protocol};

/// Bytes of dead letters kept in one file; there are two.
const DEAD_LETTER_BYTES: u64 = 32 << 20;

/// How far one receiver is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// The journal it speaks of.
    pub(super) journal: String,
    /// For people: whose cursor it is, without credentials.
    pub(super) endpoint: String,
    /// All `violation.*` records up to this one are done with.
    pub(super) violations: u64,
    /// All other records up to this one are done with.
    pub(super) rest: u64,
    /// Records no receiver would take.
    pub(super) dead_letters: u64,
}

/// The URL without what may be secret in it: user, password and query.
pub(super) fn redacted(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => url.rsplit('@').next().unwrap_or_default().to_owned(),
    }
}

/// The directory of one state.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    file: PathBuf,
}

impl Store {
    pub(super) fn new(dir: &Path, endpoint: &Endpoint) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let protocol = if endpoint.protocol == Protocol::Grpc { "grpc" } else { "http" };
        let digest = sha2::Sha256::digest(format!("{protocol} {}", endpoint.endpoint));
        Ok(Self {
            dir: dir.to_path_buf(),
            file: dir.join(format!("cursor-{}.json", hex::encode(&digest[..8]))),
        })
    }

    /// The cursor for `journal`. A cursor that is missing, damaged or of another journal starts anew: that makes
    /// duplicates, and loses nothing.
    pub(super) fn load(&self, journal: &str, endpoint: &str, last: u64) -> Cursor {
        let fresh =
            Cursor { journal: journal.to_owned(), endpoint: endpoint.to_owned(), ..Cursor::default() };
        let Ok(bytes) = fs::read(&self.file) else { return fresh };
        match serde_json::from_slice::<Cursor>(&bytes) {
            Ok(c) if c.journal == journal => Cursor {
                violations: c.violations.min(last),
                rest: c.rest.min(last),
                endpoint: fresh.endpoint,
                ..c
            },
            Ok(other) => Cursor { dead_letters: other.dead_letters, ..fresh },
            Err(e) => {
                tracing::warn!(file = %self.file.display(), "export cursor is damaged, everything is sent again: {e}");
                fresh
            }
        }
    }

    pub(super) fn save(&self, cursor: &Cursor) -> io::Result<()> {
        let tmp = self.file.with_extension("tmp");
        let bytes = serde_json::to_vec(cursor)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        fs::rename(&tmp, &self.file)?;
        fs::File::open(&self.dir)?.sync_all()
    }

    /// Writes down a record that no receiver would take.
    pub(super) fn dead_letter(&self, endpoint: &str, reason: &str, payload: &[u8]) -> io::Result<()> {
        let path = self.dir.join("dead-letters.jsonl");
        if fs::metadata(&path).is_ok_and(|m| m.len() > DEAD_LETTER_BYTES) {
            fs::rename(&path, self.dir.join("dead-letters.1.jsonl"))?;
        }
        let record: serde_json::Value = serde_json::from_slice(payload)?;
        let mut line = serde_json::to_vec(
            &serde_json::json!({"endpoint": endpoint, "reason": reason, "record": record}),
        )?;
        line.push(b'\n');
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.write_all(&line)?;
        file.sync_data()
    }
}

/// What the fuzzers give to the readers of cursors and endpoints.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    crate::fuzz::used(serde_json::from_slice::<Cursor>(bytes).is_ok());
    crate::fuzz::used(redacted(&String::from_utf8_lossy(bytes)));
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn credentials_are_not_told() {
        assert_eq!(redacted("https://u:p@host:4318/v1/logs?token=x#y"), "https://host:4318/v1/logs");
        assert_eq!(redacted("http://host:4317"), "http://host:4317");
        assert_eq!(redacted("u:p@host"), "host");
    }
}
