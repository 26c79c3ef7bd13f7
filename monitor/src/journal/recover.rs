//! Opening a journal: makes a new one, or brings the old one to its last whole record.
//!
//! What a crash can leave behind is repaired and reported. Anything a crash cannot leave behind is tampering.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use tlog_tiles::tlog::{Hash, record_hash};
use ulid::Ulid;

use super::checkpoint::{self, Extra, Opened};
use super::files::{self, CHECKPOINT, Segment, TREE};
use super::frame::{SEGMENT_HEAD, SegmentHead, SegmentKind};
use super::keys::{self, KeyChain, Meta, NodeKey};
use super::scan::{Found, Scan, StoredRecord};
use super::tree::{self, Tree};
use super::{JournalError, Options};
use crate::model::Time;

/// What was found when the journal was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The journal's id, a ULID.
    pub journal_id: String,
    /// The sequence number the next record gets.
    pub next_seq: u64,
    /// The journal was made just now.
    pub fresh: bool,
    /// The last agent stopped in good order. True for a fresh journal.
    pub clean_stop: bool,
    /// Bytes of unfinished records cut from the end.
    pub torn_bytes: u64,
    /// Whole records known to have been there and cut from the end (the tree had them).
    pub lost_records: u64,
    /// What was repaired, for a `gap` record.
    pub repaired: Option<String>,
    /// The journal before this one was tampered with: what was found, and where it lies now.
    pub tampered: Option<(String, PathBuf)>,
}

/// The fields of a record the journal itself looks at.
#[derive(Debug, Deserialize)]
pub(super) struct Peek {
    pub(super) seq: u64,
    pub(super) time: Time,
    pub(super) kind: String,
    pub(super) note: Option<String>,
    pub(super) tree_size: Option<u64>,
    pub(super) root: Option<String>,
}

impl Peek {
    pub(super) fn parse(record: &StoredRecord) -> Result<Self, JournalError> {
        serde_json::from_slice(&record.payload)
            .map_err(|e| JournalError::Tampered(format!("record {}: {e}", record.seq)))
    }

    pub(super) fn is_violation(&self) -> bool {
        self.kind.starts_with("violation.")
    }
}

/// A segment the writer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) first: u64,
    pub(super) len: u64,
}

/// A kept segment the writer knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownKept {
    pub(super) line: checkpoint::Kept,
    pub(super) last: u64,
    pub(super) len: u64,
}

/// An opened journal, ready to be written.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) dir: PathBuf,
    /// Held as long as the journal is open.
    pub(super) _lock: File,
    pub(super) id: u128,
    pub(super) origin: String,
    pub(super) key: NodeKey,
    pub(super) tree: Tree,
    /// Closed segments, oldest first, then the one being written.
    pub(super) segments: Vec<Known>,
    pub(super) kept: Vec<KnownKept>,
    /// The segment being written.
    pub(super) segment: File,
    pub(super) evicted: Option<(u64, u64)>,
    /// Records covered by the newest checkpoint record, and that record's own number.
    pub(super) checkpointed: u64,
}

impl Log {
    pub(super) const fn next_seq(&self) -> u64 {
        self.tree.leaves() + 1
    }
}

/// Opens the journal, and sets a tampered one aside if the options say so.
pub(super) fn open(dir: &Path, options: &Options) -> Result<(Log, Recovered), JournalError> {
    files::make_dir(dir)?;
    let found = match files::lock(dir).and_then(|lock| try_open(dir, options, lock)) {
        Err(JournalError::Tampered(what)) if options.set_aside_tampered => what,
        other => return other,
    };
    let mut aside = dir.as_os_str().to_owned();
    aside.push(format!(".tampered-{}", Ulid::generate()));
    let aside = PathBuf::from(aside);
    // The same key goes on, if it is still there: it ties the new journal to the old one.
    let key = NodeKey::load(dir, "").ok().flatten();
    fs::rename(dir, &aside).map_err(JournalError::io(dir))?;
    files::make_dir(dir)?;
    if let Some(parent) = dir.parent() {
        files::sync_dir(parent)?;
    }
    let lock = files::lock(dir)?;
    let (log, mut recovered) = create(dir, options, lock, key)?;
    recovered.clean_stop = false;
    recovered.tampered = Some((found, aside));
    Ok((log, recovered))
}

fn create(
    dir: &Path,
    options: &Options,
    lock: File,
    key: Option<NodeKey>,
) -> Result<(Log, Recovered), JournalError> {
    let id = Ulid::generate();
    let meta = Meta::new(&options.node, id);
    let key = key.map_or_else(|| NodeKey::generate(&meta.origin), |key| key.renamed(&meta.origin));
    key.save(dir)?;
    files::replace(dir, files::META, &meta.encode())?;
    let segment = new_segment(dir, id.0, Known { first: 1, len: 0 }, None)?;
    let tree = Tree::new(files::open_rw(&dir.join(TREE))?, 0);
    files::sync_dir(dir)?;
    let log = Log {
        dir: dir.to_path_buf(),
        _lock: lock,
        id: id.0,
        origin: meta.origin,
        key,
        tree,
        segments: vec![Known { first: 1, len: SEGMENT_HEAD as u64 }],
        kept: Vec::new(),
        segment,
        evicted: None,
        checkpointed: 0,
    };
    let recovered = Recovered {
        journal_id: id.to_string(),
        next_seq: 1,
        fresh: true,
        clean_stop: true,
        ..Recovered::default()
    };
    Ok((log, recovered))
}

/// Makes the file of a log segment, whole with its head or not at all.
pub(super) fn new_segment(
    dir: &Path,
    journal: u128,
    segment: Known,
    before: Option<Known>,
) -> Result<File, JournalError> {
    let before = before.unwrap_or(Known { first: 0, len: 0 });
    let head = SegmentHead {
        kind: SegmentKind::Log,
        journal,
        first: segment.first,
        prev_first: before.first,
        prev_len: before.len,
    };
    let name = files::segment_name(SegmentKind::Log, segment.first);
    files::replace(dir, &name, &head.encode())?;
    files::open_rw(&dir.join(name))
}

/// The newest checkpoint record in sight.
struct Newest {
    seq: u64,
    opened: Opened,
}

/// What the last segment holds.
#[derive(Default)]
struct Tail {
    leaves: Vec<(u64, Hash)>,
    newest: Option<Newest>,
    len: u64,
    torn_bytes: u64,
    bad: Option<Bad>,
}

/// Why a segment cannot be read on.
struct Bad {
    what: String,
    /// It may be what a crash leaves: the unfinished write of records nobody was told of.
    may_be_torn: bool,
}

fn tampered(what: impl Into<String>) -> JournalError {
    JournalError::Tampered(what.into())
}

fn try_open(dir: &Path, options: &Options, lock: File) -> Result<(Log, Recovered), JournalError> {
    let listing = files::list(dir)?;
    for path in &listing.unfinished {
        fs::remove_file(path).map_err(JournalError::io(path))?;
    }
    let Some(meta) = Meta::load(dir)? else {
        if listing.segments.is_empty() && !dir.join(TREE).exists() {
            let key = NodeKey::load(dir, "").ok().flatten();
            return create(dir, options, lock, key);
        }
        return Err(tampered("meta.json: missing"));
    };
    let id = meta.number().unwrap_or_default();
    let key = NodeKey::load(dir, &meta.origin)?.ok_or_else(|| tampered("node.key: missing"))?;
    keys::undo_unfinished_rotation(dir, &key)?;
    let chain = KeyChain::load(dir, &meta.origin)?;
    if chain.current().map(|k| signed_note::new_ed25519_verifier_key(&meta.origin, k)) != Some(key.vkey()) {
        return Err(tampered("node.pub: is not the key of node.key"));
    }

    let (log_files, kept_files): (Vec<_>, Vec<_>) =
        listing.segments.into_iter().partition(|s| s.kind == SegmentKind::Log);
    let Some(last) = log_files.last() else {
        // The first segment is made after meta.json: a crash between the two.
        if kept_files.is_empty() && !dir.join(TREE).exists() {
            let first = Known { first: 1, len: 0 };
            new_segment(dir, id, first, None)?;
            return try_open(dir, options, lock);
        }
        return Err(tampered("no segment is left"));
    };
    let file = files::open_rw(&last.path)?;
    files::read_head(last, &file, id)?;
    let mut tail = scan_tail(last, &file, &meta.origin, &chain)?;
    if tail.newest.is_none()
        && let Some(before) = log_files.iter().rev().nth(1)
    {
        let file = files::open_rw(&before.path)?;
        files::read_head(before, &file, id)?;
        let earlier = scan_tail(before, &file, &meta.origin, &chain)?;
        if let Some(bad) = earlier.bad {
            return Err(tampered(bad.what));
        }
        if earlier.torn_bytes > 0 {
            return Err(tampered(format!(
                "{}: cut short",
                files::segment_name(SegmentKind::Log, before.first)
            )));
        }
        tail.newest = earlier.newest;
    }
    if tail.newest.is_none() && last.first > 1 {
        return Err(tampered(format!("no checkpoint before record {}", last.first)));
    }

    let mut recovered = Recovered { journal_id: meta.id.clone(), ..Recovered::default() };
    let records = last.first - 1 + tail.leaves.len() as u64;
    check_checkpoint_file(dir, &meta.origin, &chain, records)?;
    let tree = recover_tree(dir, last, &tail, &mut recovered)?;
    if tail.torn_bytes > 0 {
        file.set_len(tail.len).and_then(|()| file.sync_all()).map_err(JournalError::io(&last.path))?;
        recovered.torn_bytes = tail.torn_bytes;
    }
    if recovered.torn_bytes > 0 || recovered.lost_records > 0 {
        recovered.repaired = Some(format!(
            "the journal ended inside a record: cut to record {}, {} bytes{}",
            tree.leaves(),
            recovered.torn_bytes,
            if recovered.lost_records > 0 {
                format!(", {} records known to the tree are gone", recovered.lost_records)
            } else {
                String::new()
            }
        ));
    }
    let (checkpointed, extra) = match &tail.newest {
        Some(newest) => (newest.seq, newest.opened.extra.clone()),
        None => (0, Extra::default()),
    };
    recovered.clean_stop = extra.clean_stop && checkpointed == tree.leaves() && recovered.repaired.is_none();
    recovered.next_seq = tree.leaves() + 1;

    let segments = check_segments(dir, &log_files, id, extra.evicted, tail.len, &tree)?;
    let kept = check_kept(&kept_files, id, &extra.kept, &tree)?;
    let log = Log {
        dir: dir.to_path_buf(),
        _lock: lock,
        id,
        origin: meta.origin,
        key,
        tree,
        segments,
        kept,
        segment: file,
        evicted: extra.evicted,
        checkpointed,
    };
    Ok((log, recovered))
}

fn scan_tail(segment: &Segment, file: &File, origin: &str, chain: &KeyChain) -> Result<Tail, JournalError> {
    let name = files::segment_name(segment.kind, segment.first);
    let size = file.metadata().map_err(JournalError::io(&segment.path))?.len();
    let mut scan = Scan::new(file.try_clone().map_err(JournalError::io(&segment.path))?);
    let mut tail = Tail { len: scan.at(), ..Tail::default() };
    loop {
        match scan.next().map_err(JournalError::io(&segment.path))? {
            Found::Record(record) => {
                let want = segment.first.saturating_add(tail.leaves.len() as u64);
                if record.seq != want {
                    let what = format!("{name}: record {} where {want} should be", record.seq);
                    tail.bad = Some(Bad { what, may_be_torn: false });
                    return Ok(tail);
                }
                let peek = Peek::parse(&record)?;
                if peek.kind == "checkpoint" {
                    let opened = open_checkpoint(&record, &peek, origin, chain)?;
                    tail.newest = Some(Newest { seq: record.seq, opened });
                }
                tail.leaves.push((record.seq, record_hash(&record.payload)));
                tail.len = scan.at();
            }
            Found::End => return Ok(tail),
            Found::Short(bytes) => {
                tail.torn_bytes = bytes;
                return Ok(tail);
            }
            Found::Bad(why) => {
                // Blocks of one unfinished write may reach the disk in any order: no frame after the last whole one
                // proves anything by itself. The tree tells whether this one was once whole.
                let next = segment.first + tail.leaves.len() as u64;
                tail.torn_bytes = size - tail.len;
                let what = format!("{name}: {why} at offset {}, in record {next}", tail.len);
                tail.bad = Some(Bad { what, may_be_torn: true });
                return Ok(tail);
            }
        }
    }
}

/// Opens the note in a checkpoint record and holds it against the record's own fields.
pub(super) fn open_checkpoint(
    record: &StoredRecord,
    peek: &Peek,
    origin: &str,
    chain: &KeyChain,
) -> Result<Opened, JournalError> {
    let note = peek.note.as_deref().unwrap_or_default();
    let opened = checkpoint::open(note.as_bytes(), origin, chain)
        .map_err(|e| tampered(format!("record {}: its checkpoint: {e}", record.seq)))?;
    let root = base64::engine::general_purpose::STANDARD.encode(opened.root.0);
    if opened.size + 1 != record.seq || peek.tree_size != Some(opened.size) || peek.root != Some(root) {
        return Err(tampered(format!("record {}: its checkpoint is of another place", record.seq)));
    }
    Ok(opened)
}

/// Brings the tree file to the records that are there. Everything up to the newest checkpoint must agree with it.
fn recover_tree(
    dir: &Path,
    last: &Segment,
    tail: &Tail,
    recovered: &mut Recovered,
) -> Result<Tree, JournalError> {
    let path = dir.join(TREE);
    let io = || JournalError::io(path.clone());
    let file = files::open_rw(&path)?;
    let known = tree::leaves_in(file.metadata().map_err(io())?.len());
    let records = last.first - 1 + tail.leaves.len() as u64;
    let old = Tree::new(file.try_clone().map_err(io())?, known);
    let mut sound = last.first - 1;
    if known < sound {
        return Err(tampered(format!("tree: covers {known} records: expected at least {sound}")));
    }
    if let Some(newest) = &tail.newest {
        let size = newest.opened.size;
        if known < size {
            return Err(tampered(format!("tree: covers {known} records: expected at least {size}")));
        }
        if old.root(size).map_err(io())? != newest.opened.root {
            return Err(tampered(format!(
                "tree: does not have the root of the checkpoint in record {}",
                newest.seq
            )));
        }
        sound = sound.max(size);
    }
    for (seq, leaf) in &tail.leaves {
        if *seq <= known {
            let stored = old.leaf(seq - 1).map_err(io())?;
            // A crash of the machine may leave zeros where the tree was not yet synced.
            if stored != *leaf && (*seq <= sound || stored != Hash::default()) {
                return Err(tampered(format!("record {seq}: is not the one in the tree")));
            }
        }
    }
    if let Some(bad) = &tail.bad
        && (known > records || !bad.may_be_torn)
    {
        return Err(tampered(bad.what.clone()));
    }
    recovered.lost_records = known.saturating_sub(records);
    let mut tree = Tree::new(file.try_clone().map_err(io())?, sound);
    for (seq, leaf) in &tail.leaves {
        if *seq > sound {
            tree.push_hash(*leaf).map_err(io())?;
        }
    }
    tree.flush().map_err(io())?;
    file.set_len(tree.len()).and_then(|()| file.sync_all()).map_err(io())?;
    Ok(tree)
}

/// The newest checkpoint is also in a file of its own. It may be one behind, but never ahead of the records.
fn check_checkpoint_file(
    dir: &Path,
    origin: &str,
    chain: &KeyChain,
    leaves: u64,
) -> Result<(), JournalError> {
    let Some(note) = files::read_small(&dir.join(CHECKPOINT), 1 << 20)? else { return Ok(()) };
    let opened =
        checkpoint::open(&note, origin, chain).map_err(|e| tampered(format!("{CHECKPOINT}: {e}")))?;
    if opened.size > leaves {
        return Err(tampered(format!(
            "records {} to {} were cut off: checkpoint covers them",
            leaves + 1,
            opened.size
        )));
    }
    Ok(())
}

/// Each segment must follow the one before, and be whole; what is evicted must be declared.
fn check_segments(
    dir: &Path,
    log_files: &[Segment],
    id: u128,
    evicted: Option<(u64, u64)>,
    tail_len: u64,
    tree: &Tree,
) -> Result<Vec<Known>, JournalError> {
    let evicted_to = evicted.map_or(0, |(to, _)| to);
    let mut known: Vec<Known> = Vec::new();
    for (i, segment) in log_files.iter().enumerate() {
        let next = log_files.get(i + 1);
        if next.is_some_and(|next| next.first <= evicted_to + 1) {
            // Declared evicted, but the agent died before it was removed.
            fs::remove_file(&segment.path).map_err(JournalError::io(&segment.path))?;
            continue;
        }
        let file = files::open_r(&segment.path)?;
        let head = files::read_head(segment, &file, id)?;
        let mut len = file.metadata().map_err(JournalError::io(&segment.path))?.len();
        match next {
            Some(next) => check_records(segment, file, next.first, tree)?,
            // Its records were held against the tree already.
            None => len = tail_len,
        }
        match known.last() {
            Some(before) if head.prev_first != before.first || head.prev_len != before.len => {
                return Err(tampered(format!(
                    "{}: does not follow {}",
                    files::segment_name(SegmentKind::Log, segment.first),
                    files::segment_name(SegmentKind::Log, before.first)
                )));
            }
            None if segment.first > evicted_to + 1 => {
                return Err(tampered(format!(
                    "records {} to {} are missing",
                    evicted_to + 1,
                    segment.first - 1
                )));
            }
            _ => {}
        }
        known.push(Known { first: segment.first, len });
    }
    files::sync_dir(dir)?;
    Ok(known)
}

/// Holds every record of a closed segment, which ends before record `end`, against the tree. Whoever reads the journal later
/// would stop at what is damaged there.
fn check_records(segment: &Segment, file: File, end: u64, tree: &Tree) -> Result<(), JournalError> {
    let name = files::segment_name(segment.kind, segment.first);
    let mut scan = Scan::new(file);
    let mut next = segment.first;
    loop {
        let what = match scan.next().map_err(JournalError::io(&segment.path))? {
            Found::Record(record) if record.seq == next && next < end => {
                check_leaf(&record, tree)?;
                next += 1;
                continue;
            }
            Found::End if next == end => return Ok(()),
            Found::Record(record) => format!("record {} where {next} should be", record.seq),
            Found::End => format!("ends before record {next}"),
            Found::Short(_) => format!("ends inside record {next}"),
            Found::Bad(why) => format!("{why} at offset {}, in record {next}", scan.at()),
        };
        return Err(tampered(format!("{name}: {what}")));
    }
}

/// The record must be the one in the tree.
fn check_leaf(record: &StoredRecord, tree: &Tree) -> Result<(), JournalError> {
    let known = (1..=tree.leaves()).contains(&record.seq);
    if known && tree.leaf(record.seq - 1).map_err(JournalError::io(TREE))? == record_hash(&record.payload) {
        return Ok(());
    }
    Err(tampered(format!("record {}: is not the one in the tree", record.seq)))
}

fn check_kept(
    files_found: &[Segment],
    id: u128,
    lines: &[checkpoint::Kept],
    tree: &Tree,
) -> Result<Vec<KnownKept>, JournalError> {
    let mut out = Vec::new();
    for segment in files_found {
        let Some(line) = lines.iter().find(|line| line.first == segment.first) else {
            // Of an eviction that was not finished, or delivered meanwhile.
            fs::remove_file(&segment.path).map_err(JournalError::io(&segment.path))?;
            continue;
        };
        out.push(scan_kept(segment, id, line, |record| check_leaf(record, tree))?);
    }
    match lines.iter().find(|line| out.iter().all(|k| k.line != **line)) {
        Some(line) => Err(tampered(format!(
            "{}: missing, with {} kept violations",
            files::segment_name(SegmentKind::Kept, line.first),
            line.records
        ))),
        None => Ok(out),
    }
}

/// Reads a kept segment and holds it against its line in the checkpoint, and each record against what `check` knows.
pub(super) fn scan_kept(
    segment: &Segment,
    id: u128,
    line: &checkpoint::Kept,
    check: impl Fn(&StoredRecord) -> Result<(), JournalError>,
) -> Result<KnownKept, JournalError> {
    let name = files::segment_name(SegmentKind::Kept, segment.first);
    let file = files::open_r(&segment.path)?;
    files::read_head(segment, &file, id)?;
    let len = file.metadata().map_err(JournalError::io(&segment.path))?.len();
    let mut scan = Scan::new(file);
    let mut seqs = Vec::new();
    loop {
        match scan.next().map_err(JournalError::io(&segment.path))? {
            Found::Record(record) => {
                check(&record)?;
                seqs.push(record.seq);
            }
            Found::End => break,
            Found::Short(_) | Found::Bad(_) => {
                return Err(tampered(format!("{name}: damaged at offset {}", scan.at())));
            }
        }
    }
    let found = kept_line(segment.first, &seqs);
    if found != *line {
        return Err(tampered(format!("{name}: not the records the checkpoint says")));
    }
    Ok(KnownKept { line: found, last: seqs.last().copied().unwrap_or(segment.first), len })
}

/// What a checkpoint says about a kept segment.
pub(super) fn kept_line(first: u64, seqs: &[u64]) -> checkpoint::Kept {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    for seq in seqs {
        hash.update(seq.to_le_bytes());
    }
    checkpoint::Kept { first, records: seqs.len() as u64, digest: hex::encode(hash.finalize()) }
}
