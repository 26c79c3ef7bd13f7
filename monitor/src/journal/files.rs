//! Files of the journal directory: names, the lock, atomic replacement, and the hook tests use to make disks fail.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::JournalError;
use super::frame::{SEGMENT_HEAD, SegmentHead, SegmentKind};
use crate::baseline::{NoFile, open_regular};

pub(super) const META: &str = "meta.json";
pub(super) const LOCK: &str = "lock";
pub(super) const TREE: &str = "tree";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const KEY: &str = "node.key";
pub(super) const PUB: &str = "node.pub";
pub(super) const KEYS: &str = "keys";
/// Suffix of files that are not there yet: written, then renamed. Left-overs are removed at start.
pub(super) const TMP: &str = ".tmp";

/// What is about to be done to a file; see [`Faults`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Frames into a segment.
    WriteLog,
    /// `fdatasync` of a segment.
    SyncLog,
    /// Hashes into the tree file.
    WriteTree,
    /// A new file.
    Create,
}

/// Makes the disk fail where a test wants it to.
pub trait Faults: Send + Sync + Debug {
    /// Called before `op`. On an error nothing, or with `Some(n)` only the first `n` bytes, has reached the file.
    ///
    /// # Errors
    /// The failure to simulate.
    fn before(&self, op: Op) -> Result<(), (io::Error, Option<usize>)>;
}

/// One segment file in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) kind: SegmentKind,
    pub(super) first: u64,
}

/// Name of a log segment.
pub(super) fn segment_name(kind: SegmentKind, first: u64) -> String {
    match kind {
        SegmentKind::Log => format!("log-{first:020}.seg"),
        SegmentKind::Kept => format!("kept-{first:020}.seg"),
    }
}

fn parse_name(name: &str) -> Option<(SegmentKind, u64)> {
    let (kind, number) = match name.strip_prefix("log-") {
        Some(rest) => (SegmentKind::Log, rest),
        None => (SegmentKind::Kept, name.strip_prefix("kept-")?),
    };
    let number =
        number.strip_suffix(".seg").filter(|n| n.len() == 20 && n.bytes().all(|b| b.is_ascii_digit()))?;
    // Records are counted from 1.
    Some((kind, number.parse().ok().filter(|first| *first > 0)?))
}

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// By first sequence number; a kept segment before the log segment of the same number.
    pub(super) segments: Vec<Segment>,
    /// Names that do not belong here.
    pub(super) strangers: Vec<PathBuf>,
    /// Left-overs of writes that did not finish.
    pub(super) unfinished: Vec<PathBuf>,
}

/// Lists the directory.
pub(super) fn list(dir: &Path) -> Result<Listing, JournalError> {
    let mut out = Listing::default();
    let entries = fs::read_dir(dir).map_err(JournalError::io(dir))?;
    for entry in entries {
        let entry = entry.map_err(JournalError::io(dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if let Some((kind, first)) = parse_name(&name) {
            out.segments.push(Segment { path: entry.path(), kind, first });
        } else if name.ends_with(TMP) {
            out.unfinished.push(entry.path());
        } else if ![META, LOCK, TREE, CHECKPOINT, KEY, PUB, KEYS].contains(&&*name) {
            out.strangers.push(entry.path());
        }
    }
    out.segments.sort_by_key(|s| (s.first, s.kind == SegmentKind::Log));
    Ok(out)
}

/// Makes a directory, 0700, where there is none.
pub(super) fn make_dir(dir: &Path) -> Result<(), JournalError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => io::Error::new(e.kind(), "not a directory, expected one"),
        _ => e,
    })
    .map_err(JournalError::io(dir))
}

/// Opens a file of the journal. Whatever else stands under its name is tampering, and is not waited for.
fn open(path: &Path, options: &OpenOptions) -> Result<File, JournalError> {
    open_regular(path, options, false).map_err(|none| match none {
        NoFile::Io(source) => JournalError::io(path)(source),
        odd @ NoFile::NotRegular(_) => JournalError::Tampered(format!(
            "{}: {odd}",
            path.file_name().unwrap_or_default().to_string_lossy()
        )),
    })
}

/// Opens for reading.
pub(super) fn open_r(path: &Path) -> Result<File, JournalError> {
    open(path, OpenOptions::new().read(true))
}

/// The same; `None` where there is none.
pub(super) fn open_if_there(path: &Path) -> Result<Option<File>, JournalError> {
    match open_r(path) {
        Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Opens for reading and writing, 0600, made where it is missing.
pub(super) fn open_rw(path: &Path) -> Result<File, JournalError> {
    open(path, OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600))
}

/// Makes names in the directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(JournalError::io(dir))
}

/// Puts `bytes` under `name`, all or nothing, durably, 0600.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), JournalError> {
    let (tmp, path) = (dir.join(format!("{name}{TMP}")), dir.join(name));
    drop(fs::remove_file(&tmp));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&tmp, &path)
    };
    if let Err(source) = write() {
        drop(fs::remove_file(&tmp));
        return Err(JournalError::Io { path, source });
    }
    sync_dir(dir)
}

/// Reads a whole file of at most `limit` bytes; `None` where there is none.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, JournalError> {
    let Some(file) = open_if_there(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(JournalError::io(path))?;
    if bytes.len() as u64 > limit {
        return Err(JournalError::Tampered(format!(
            "{}: larger than {limit} bytes",
            path.file_name().unwrap_or_default().to_string_lossy()
        )));
    }
    Ok(Some(bytes))
}

/// Reads the head of a segment, and checks that it belongs to `journal` and to its name.
pub(super) fn read_head(segment: &Segment, file: &File, journal: u128) -> Result<SegmentHead, JournalError> {
    let mut bytes = [0; SEGMENT_HEAD];
    let name = segment.path.file_name().unwrap_or_default().to_string_lossy();
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(JournalError::Tampered(format!("{name}: shorter than its head")));
        }
        Err(e) => return Err(JournalError::io(&segment.path)(e)),
    }
    let head = SegmentHead::decode(&bytes)
        .ok_or_else(|| JournalError::Tampered(format!("{name}: its head is damaged")))?;
    if head.kind != segment.kind || head.first != segment.first || head.journal != journal {
        return Err(JournalError::Tampered(format!("{name}: its head belongs to another segment")));
    }
    Ok(head)
}

/// Takes the single writer's lock.
pub(super) fn lock(dir: &Path) -> Result<File, JournalError> {
    let file = open_rw(&dir.join(LOCK))?;
    take(dir, &file)?;
    expect_empty(&file)?;
    Ok(file)
}

/// The lock is empty.
pub(super) fn expect_empty(lock: &File) -> Result<(), JournalError> {
    match lock.metadata().map_err(JournalError::io(LOCK))?.len() {
        0 => Ok(()),
        _ => Err(JournalError::Tampered(format!("{LOCK}: expected an empty file"))),
    }
}

/// Takes the writer's lock of a journal that nobody is to write any more, if it has one that can be taken.
pub(super) fn hold(dir: &Path) -> Result<Option<File>, JournalError> {
    // What stands there instead of a lock is nobody's lock.
    let Ok(Some(file)) = open_if_there(&dir.join(LOCK)) else { return Ok(None) };
    take(dir, &file)?;
    Ok(Some(file))
}

fn take(dir: &Path, lock: &File) -> Result<(), JournalError> {
    match rustix::fs::flock(lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(JournalError::Locked(dir.to_path_buf())),
        Err(e) => Err(JournalError::io(dir.join(LOCK))(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::{SegmentKind, parse_name, segment_name};

    #[test]
    fn names_come_back() {
        for (kind, first) in [(SegmentKind::Log, 1), (SegmentKind::Kept, u64::MAX)] {
            assert_eq!(parse_name(&segment_name(kind, first)), Some((kind, first)));
        }
        for bad in [
            "log-1.seg",
            "log-+0000000000000000001.seg",
            "log-00000000000000000000.seg",
            "kept-99999999999999999999.seg",
            "x",
            "log-",
        ] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }
}
