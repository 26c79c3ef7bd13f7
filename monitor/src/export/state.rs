//! What an exporter keeps on disk: how far a receiver has acknowledged, and what no receiver would take.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::baseline::{open_regular, remove_left_over};
use crate::config::{Endpoint, Protocol};

/// Bytes of dead letters kept in one file; there are two.
const DEAD_LETTER_BYTES: u64 = 32 << 20;

/// Bytes of a cursor that are read.
const CURSOR_MAX: u64 = 64 << 10;

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
        let read = || -> io::Result<Cursor> {
            let file = open_regular(&self.file, OpenOptions::new().read(true), false)?;
            let mut bytes = Vec::new();
            file.take(CURSOR_MAX).read_to_end(&mut bytes)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        match read() {
            Ok(c) if c.journal == journal => Cursor {
                violations: c.violations.min(last),
                rest: c.rest.min(last),
                endpoint: fresh.endpoint,
                ..c
            },
            Ok(other) => Cursor { dead_letters: other.dead_letters, ..fresh },
            Err(e) if e.kind() == io::ErrorKind::NotFound => fresh,
            Err(e) => {
                tracing::warn!(file = %self.file.display(), "export cursor is damaged, everything is sent again: {e}");
                fresh
            }
        }
    }

    pub(super) fn save(&self, cursor: &Cursor) -> io::Result<()> {
        let tmp = self.file.with_extension("tmp");
        let bytes = serde_json::to_vec(cursor)?;
        remove_left_over(&tmp)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        fs::rename(&tmp, &self.file)?;
        fs::File::open(&self.dir)?.sync_all()
    }

    /// Writes down a record that no receiver would take.
    pub(super) fn dead_letter(&self, endpoint: &str, reason: &str, payload: &[u8]) -> io::Result<()> {
        let path = self.dir.join("dead-letters.jsonl");
        if path.symlink_metadata().is_ok_and(|m| !m.is_file() || m.len() > DEAD_LETTER_BYTES) {
            fs::rename(&path, self.dir.join("dead-letters.1.jsonl"))?;
        }
        let record: serde_json::Value = serde_json::from_slice(payload)?;
        let mut line = serde_json::to_vec(
            &serde_json::json!({"endpoint": endpoint, "reason": reason, "record": record}),
        )?;
        line.push(b'\n');
        let options = &mut OpenOptions::new();
        let mut file = open_regular(&path, options.append(true).create(true).mode(0o600), false)?;
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
    use std::collections::BTreeMap;
    use std::fs;
    use std::time::Duration;

    use super::{Cursor, Store, redacted};
    use crate::config::{Compression, Endpoint, Protocol, Tls};

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let dir = tempfile::tempdir().unwrap();
        let endpoint = Endpoint {
            endpoint: "http://h:1".to_owned(),
            protocol: Protocol::Grpc,
            headers: BTreeMap::new(),
            tls: Tls::default(),
            compression: Compression::None,
            timeout: Duration::from_secs(1),
        };
        let store = Store::new(dir.path(), &endpoint).unwrap();
        let fifo = |path: &std::path::Path| {
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        };
        let letters = dir.path().join("dead-letters.jsonl");
        for path in [&store.file, &store.file.with_extension("tmp"), &letters] {
            fifo(path);
        }
        let fresh = Cursor { journal: "j".to_owned(), endpoint: "h".to_owned(), ..Cursor::default() };
        assert_eq!(store.load("j", "h", 9), fresh);
        let far = Cursor { violations: 3, rest: 4, ..fresh };
        store.save(&far).unwrap();
        assert_eq!(store.load("j", "h", 9), far);
        store.dead_letter("h", "why", b"{}").unwrap();
        let line = "{\"endpoint\":\"h\",\"reason\":\"why\",\"record\":{}}\n";
        assert_eq!(fs::read_to_string(letters).unwrap(), line);
    }

    #[test]
    fn credentials_are_not_told() {
        assert_eq!(redacted("https://u:p@host:4318/v1/logs?token=x#y"), "https://host:4318/v1/logs");
        assert_eq!(redacted("http://host:4317"), "http://host:4317");
        assert_eq!(redacted("u:p@host"), "host");
    }
}
