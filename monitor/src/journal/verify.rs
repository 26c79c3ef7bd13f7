//! Checks a whole journal offline: every frame, leaf, hash, link and signature.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::Path;

use serde::Serialize;
use tlog_tiles::tlog::{EMPTY_HASH, Hash, node_hash, record_hash};

use super::JournalError;
use super::checkpoint::{self, Extra};
use super::files::{self, CHECKPOINT, LOCK, Listing, Segment, TREE};
use super::frame::SegmentKind;
use super::keys::{self, KeyChain, Meta, NodeKey};
use super::recover::{self, Peek};
use super::scan::{Found, Scan, StoredRecord};
use super::tree;

/// Findings kept; more are only counted.
const MAX_FINDINGS: usize = 1000;

/// What to hold the journal against, besides itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Against<'a> {
    /// A checkpoint kept elsewhere: it finds a cut tail and a forked log.
    pub checkpoint: Option<&'a [u8]>,
    /// The node's public key, known from elsewhere (vkey line or PEM).
    pub key: Option<&'a str>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// No finding.
    pub sound: bool,
    /// Name of the log.
    pub origin: String,
    /// Records in the log, evicted ones included.
    pub records: u64,
    /// Records whose content is still there.
    pub present: u64,
    /// Base64 of the root over all records.
    pub root: String,
    /// Checkpoints whose signature and root are right.
    pub checkpoints: u64,
    /// Records the newest checkpoint covers.
    pub signed: u64,
    /// Records that were evicted, and which record says so.
    pub evicted: Option<Evicted>,
    /// Violations kept from evicted segments.
    pub kept: u64,
    /// What must not be.
    pub findings: Vec<String>,
    /// Findings beyond those listed.
    pub more_findings: u64,
    /// What may be, and should be known.
    pub notes: Vec<String>,
}

/// The evicted start of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Evicted {
    /// Records 1 to this one.
    pub to: u64,
    /// The record that declares it.
    pub declared_by: u64,
}

/// Checks the journal in `dir`.
///
/// # Errors
/// It cannot be read at all. What is wrong with a journal that can be read is in the report.
pub fn verify(dir: &Path, against: Against<'_>) -> Result<Report, JournalError> {
    let mut report = Report::default();
    let meta = match Meta::load(dir) {
        Ok(Some(meta)) => meta,
        Ok(None) if dir.join(TREE).exists() => {
            report.findings.push("meta.json: missing".to_owned());
            return Ok(report);
        }
        Ok(None) => return Err(JournalError::Missing(dir.to_path_buf())),
        Err(JournalError::Tampered(what)) => {
            report.findings.push(what);
            return Ok(report);
        }
        Err(e) => return Err(e),
    };
    report.origin.clone_from(&meta.origin);
    let Some(chain) = keys_of(dir, &meta.origin, against.key, &mut report)? else { return Ok(report) };
    let mut walk = Walk {
        id: meta.number().unwrap_or_default(),
        origin: meta.origin,
        chain,
        tree: None,
        stack: Vec::new(),
        size: 0,
        wanted: BTreeMap::new(),
        kept: BTreeMap::new(),
        extra: Extra::default(),
        has_checkpoint_file: true,
        report,
    };
    walk.expect_checkpoints(dir, against.checkpoint)?;
    walk.run(dir)?;
    let mut report = walk.report;
    report.sound = report.findings.is_empty();
    Ok(report)
}

/// The keys that may have signed. `None` if there are none to go by.
fn keys_of(
    dir: &Path,
    origin: &str,
    given: Option<&str>,
    report: &mut Report,
) -> Result<Option<KeyChain>, JournalError> {
    let given = match given.map(|text| keys::parse_public(text, origin)).transpose() {
        Ok(given) => given,
        Err(e) => {
            report.findings.push(format!("the given key: {e}"));
            return Ok(None);
        }
    };
    let chain = match KeyChain::load(dir, origin) {
        Ok(chain) => Some(chain),
        Err(JournalError::Tampered(what)) => {
            report.findings.push(what);
            None
        }
        Err(e) => return Err(e),
    };
    match NodeKey::load(dir, origin) {
        Ok(Some(key)) => {
            let public = chain.as_ref().and_then(KeyChain::current);
            if public.is_some_and(|k| signed_note::new_ed25519_verifier_key(origin, k) != key.vkey()) {
                report.findings.push("node.key: is not the key of node.pub".to_owned());
            }
        }
        Ok(None) => {}
        Err(JournalError::Tampered(what)) => report.findings.push(what),
        // A reader need not be allowed to read the private key.
        Err(_) => report.notes.push("node.key: not readable, not checked".to_owned()),
    }
    Ok(match (given, chain) {
        (None, chain) => {
            report.notes.push(
                "no key given: node.pub was used, which proves that the log agrees with itself, not who wrote it"
                    .to_owned(),
            );
            chain
        }
        (Some(key), Some(chain)) if chain.contains(&key) => Some(chain),
        (Some(key), _) => {
            report.findings.push("the given key is not the one this journal was signed with".to_owned());
            Some(KeyChain::single(origin, key))
        }
    })
}

/// The tree file, read from start to end beside the records.
struct TreeFile {
    hashes: BufReader<File>,
    /// Whole leaves in it.
    leaves: u64,
    len: u64,
}

fn open_tree(dir: &Path) -> Result<Option<TreeFile>, JournalError> {
    let path = dir.join(TREE);
    let Some(file) = files::open_if_there(&path)? else { return Ok(None) };
    let len = file.metadata().map_err(JournalError::io(&path))?.len();
    let hashes = BufReader::with_capacity(64 << 10, file);
    Ok(Some(TreeFile { hashes, leaves: tree::leaves_in(len), len }))
}

/// A root the log must have had at some size, and who says so.
struct Wanted {
    root: Hash,
    who: String,
}

struct Walk {
    id: u128,
    origin: String,
    chain: KeyChain,
    tree: Option<TreeFile>,
    /// Roots of the full subtrees of the first `size` leaves, largest first.
    stack: Vec<Hash>,
    size: u64,
    wanted: BTreeMap<u64, Vec<Wanted>>,
    /// Leaf hashes of kept violations.
    kept: BTreeMap<u64, Hash>,
    /// What the newest checkpoint says.
    extra: Extra,
    has_checkpoint_file: bool,
    report: Report,
}

impl Walk {
    fn find(&mut self, what: impl Into<String>) {
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(what.into());
        } else {
            self.report.more_findings += 1;
        }
    }

    fn expect_checkpoints(&mut self, dir: &Path, external: Option<&[u8]>) -> Result<(), JournalError> {
        match files::read_small(&dir.join(CHECKPOINT), 1 << 20) {
            Ok(None) => self.has_checkpoint_file = false,
            Ok(Some(note)) => match checkpoint::open(&note, &self.origin, &self.chain) {
                Ok(opened) => self.want(opened.size, opened.root, "checkpoint"),
                Err(e) => self.find(format!("{CHECKPOINT}: {e}")),
            },
            Err(JournalError::Tampered(what)) => self.find(what),
            Err(e) => return Err(e),
        }
        if let Some(note) = external {
            match checkpoint::open_external(note, &self.origin, &self.chain) {
                Ok((size, root)) => self.want(size, root, "the given checkpoint"),
                Err(e) => self.find(format!("the given checkpoint: {e}")),
            }
        }
        Ok(())
    }

    fn want(&mut self, size: u64, root: Hash, who: &str) {
        self.wanted.entry(size).or_default().push(Wanted { root, who: who.to_owned() });
    }

    fn root(&self) -> Hash {
        let mut hashes = self.stack.iter().rev().copied();
        let Some(last) = hashes.next() else { return EMPTY_HASH };
        hashes.fold(last, |right, left| node_hash(left, right))
    }

    /// Adds the next leaf: its hash as computed from the record, or as the tree has it where the record is gone.
    fn leaf(&mut self, computed: Option<Hash>) -> Result<(), JournalError> {
        let seq = self.size + 1;
        // Leaf `size` completes as many subtrees as `size` has trailing ones.
        let completed = self.size.trailing_ones() as usize;
        let stored = self.stored(completed + 1)?;
        let from_tree = stored.first().copied();
        if let (Some(computed), Some(stored)) = (computed, from_tree)
            && computed != stored
        {
            self.find(format!("record {seq}: is not the one in the tree"));
        }
        let Some(mut hash) = computed.or(from_tree) else {
            self.find(format!("record {seq}: missing, and not in the tree"));
            self.size += 1;
            return Ok(());
        };
        for level in 1..=completed {
            let Some(left) = self.stack.pop() else { break };
            hash = node_hash(left, hash);
            if stored.get(level).is_some_and(|s| *s != hash) && computed.or(from_tree) == from_tree {
                self.find(format!("{TREE}: hash {level} of record {seq} is wrong"));
            }
        }
        self.stack.push(hash);
        self.size += 1;
        self.check_wanted();
        Ok(())
    }

    fn check_wanted(&mut self) {
        let root = self.root();
        for wanted in self.wanted.remove(&self.size).unwrap_or_default() {
            if wanted.root != root {
                self.find(format!(
                    "{} does not have the root of this log at {} records",
                    wanted.who, self.size
                ));
            }
        }
    }

    /// The next hashes of the tree file; fewer or none at its end.
    fn stored(&mut self, count: usize) -> Result<Vec<Hash>, JournalError> {
        let mut out = Vec::with_capacity(count);
        if let Some(tree) = &mut self.tree {
            for _ in 0..count {
                let mut hash = Hash::default();
                match tree.hashes.read_exact(&mut hash.0) {
                    Ok(()) => out.push(hash),
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                    Err(e) => return Err(JournalError::io(TREE)(e)),
                }
            }
        }
        Ok(out)
    }

    fn run(&mut self, dir: &Path) -> Result<(), JournalError> {
        let listing = files::list(dir)?;
        self.look_around(dir, &listing)?;
        let (logs, kept): (Vec<_>, Vec<_>) =
            listing.segments.into_iter().partition(|s| s.kind == SegmentKind::Log);
        for segment in &kept {
            self.scan_kept(segment)?;
        }
        self.check_wanted();
        let mut holes = Vec::new();
        let mut before: Option<(u64, u64)> = None;
        for (i, segment) in logs.iter().enumerate() {
            let missing = self.size + 1..segment.first;
            if !missing.is_empty() {
                holes.push((missing.start, missing.end - 1));
                // What lies beyond the tree is a number in a name: there is nothing to count through.
                let known = self.tree.as_ref().map_or(0, |tree| tree.leaves.saturating_add(1));
                for seq in missing.start..missing.end.min(known) {
                    let kept = self.kept.get(&seq).copied();
                    self.leaf(kept)?;
                }
            }
            before = self.scan_log(segment, before, i + 1 == logs.len())?;
        }
        if logs.is_empty() {
            self.find("no segment is left");
        }
        self.finish(&holes, &kept);
        Ok(())
    }

    /// Files beside the segments.
    fn look_around(&mut self, dir: &Path, listing: &Listing) -> Result<(), JournalError> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for path in &listing.strangers {
            self.find(format!("{}: does not belong here", name(path)));
        }
        for path in &listing.unfinished {
            self.report.notes.push(format!("{}: left over from a write that did not finish", name(path)));
        }
        let lock = files::open_if_there(&dir.join(LOCK));
        if let Err(e) = lock.and_then(|lock| lock.as_ref().map_or(Ok(()), files::expect_empty)) {
            self.tampering(e)?;
        }
        match open_tree(dir) {
            Ok(Some(tree)) => self.tree = Some(tree),
            Ok(None) => self.find(format!("{TREE}: missing")),
            Err(e) => self.tampering(e)?,
        }
        Ok(())
    }

    fn scan_kept(&mut self, segment: &Segment) -> Result<(), JournalError> {
        let name = files::segment_name(segment.kind, segment.first);
        let file = match files::open_r(&segment.path) {
            Ok(file) => file,
            Err(e) => return self.tampering(e),
        };
        if let Err(e) = files::read_head(segment, &file, self.id) {
            return self.tampering(e);
        }
        let mut scan = Scan::new(file);
        loop {
            match scan.next().map_err(JournalError::io(&segment.path))? {
                Found::Record(record) => {
                    self.kept.insert(record.seq, record_hash(&record.payload));
                }
                Found::End => return Ok(()),
                Found::Short(_) | Found::Bad(_) => {
                    self.find(format!("{name}: damaged at offset {}", scan.at()));
                    return Ok(());
                }
            }
        }
    }

    fn tampering(&mut self, e: JournalError) -> Result<(), JournalError> {
        match e {
            JournalError::Tampered(what) => {
                self.find(what);
                Ok(())
            }
            e => Err(e),
        }
    }

    /// Walks one segment. Returns its first sequence number and its length.
    fn scan_log(
        &mut self,
        segment: &Segment,
        before: Option<(u64, u64)>,
        is_last: bool,
    ) -> Result<Option<(u64, u64)>, JournalError> {
        let name = files::segment_name(segment.kind, segment.first);
        let file = match files::open_r(&segment.path) {
            Ok(file) => file,
            Err(e) => return self.tampering(e).map(|()| None),
        };
        match files::read_head(segment, &file, self.id) {
            Ok(head) => {
                if before.is_some_and(|before| before != (head.prev_first, head.prev_len)) {
                    self.find(format!("{name}: does not follow the segment before it"));
                }
                if before.is_none() && segment.first == 1 && (head.prev_first, head.prev_len) != (0, 0) {
                    self.find(format!("{name}: is not the first segment"));
                }
            }
            Err(e) => self.tampering(e)?,
        }
        let len = file.metadata().map_err(JournalError::io(&segment.path))?.len();
        let mut scan = Scan::new(file);
        loop {
            let at = scan.at();
            let rest = match scan.next().map_err(JournalError::io(&segment.path))? {
                Found::Record(record) => {
                    self.record(&record)?;
                    continue;
                }
                Found::End => break,
                Found::Short(bytes) => (bytes, "ends inside record".to_owned()),
                Found::Bad(why) => (len.saturating_sub(at), format!("{why} at offset {at}, in record")),
            };
            let next = self.size + 1;
            // The tree is written only after the record is on disk: what it knows was once whole.
            let was_whole = self.tree.as_ref().is_some_and(|t| t.leaves >= next);
            if is_last && !was_whole {
                self.report.notes.push(format!(
                    "{name}: {} {next}: the unfinished write of a crash ({} bytes), which the agent cuts at its next start",
                    rest.1, rest.0
                ));
            } else {
                self.find(format!("{name}: {} {next}", rest.1));
            }
            break;
        }
        Ok(Some((segment.first, len)))
    }

    fn record(&mut self, record: &StoredRecord) -> Result<(), JournalError> {
        let want = self.size + 1;
        if record.seq < want {
            self.find(format!("record {} stands where {want} should be", record.seq));
            return Ok(());
        }
        while self.size + 1 < record.seq {
            let missing = self.size + 1;
            // A forged number must not make a loop without end.
            if self.tree.as_ref().is_none_or(|t| missing > t.leaves) {
                self.find(format!("record {} stands where {missing} should be", record.seq));
                return Ok(());
            }
            self.find(format!("record {missing}: missing"));
            self.leaf(None)?;
        }
        self.report.present += 1;
        let before = self.root();
        let peek = match Peek::parse(record) {
            Ok(peek) => Some(peek),
            Err(e) => {
                self.tampering(e)?;
                None
            }
        };
        if let Some(peek) = &peek
            && peek.seq != record.seq
        {
            self.find(format!("record {}: says it is record {}", record.seq, peek.seq));
        }
        if let Some(peek) = peek.filter(|peek| peek.kind == "checkpoint") {
            match recover::open_checkpoint(record, &peek, &self.origin, &self.chain) {
                Ok(opened) if opened.root == before => {
                    self.report.checkpoints += 1;
                    self.report.signed = opened.size;
                    self.extra = opened.extra;
                }
                Ok(_) => {
                    self.find(format!("record {}: its checkpoint has another root than the log", record.seq));
                }
                Err(e) => self.tampering(e)?,
            }
        }
        self.leaf(Some(record_hash(&record.payload)))
    }

    fn finish(&mut self, holes: &[(u64, u64)], kept: &[Segment]) {
        self.report.records = self.size;
        self.report.root = self.root().to_string();
        for (from, to) in holes {
            match self.extra.evicted {
                Some((evicted, by)) if *from == 1 && *to <= evicted => {
                    self.report.evicted = Some(Evicted { to: *to, declared_by: by });
                    self.report.notes.push(format!("records 1 to {to}: evicted, declared by record {by}"));
                }
                _ => self.find(format!("records {from} to {to}: missing, and nothing declares it")),
            }
        }
        if let Some((leaves, len)) = self.tree.as_ref().map(|t| (t.leaves, t.len)) {
            let whole = tlog_tiles::tlog::stored_hash_count(leaves) * tree::HASH;
            if leaves > self.size {
                self.find(format!("records {} to {leaves}: cut off, the tree has them", self.size + 1));
            } else if leaves == self.size && len > whole {
                self.find(format!("{TREE}: longer than the log"));
            } else if leaves < self.report.signed {
                self.find(format!(
                    "{TREE}: covers {leaves} records: expected at least {}",
                    self.report.signed
                ));
            } else if leaves < self.size {
                self.report
                    .notes
                    .push(format!("{TREE}: ends at record {leaves}; the agent writes the rest anew"));
            }
        }
        for (size, wanted) in std::mem::take(&mut self.wanted) {
            for wanted in wanted {
                self.find(format!(
                    "records {} to {size}: cut off, {} covers them",
                    self.size + 1,
                    wanted.who
                ));
            }
        }
        // The file follows the record: after a crash the very first one may be missing.
        if !self.has_checkpoint_file && self.report.checkpoints > 1 {
            self.find(format!("{CHECKPOINT}: missing"));
        }
        self.finish_kept(kept);
        if self.size > self.report.signed {
            // The newest checkpoint record itself is covered by the next one only.
            self.report.notes.push(format!(
                "records {} to {}: after the newest checkpoint, not signed yet; only a checkpoint kept elsewhere finds \
                 a cut tail",
                self.report.signed + 1,
                self.size
            ));
        }
    }

    fn finish_kept(&mut self, kept: &[Segment]) {
        for line in self.extra.kept.clone() {
            let name = files::segment_name(SegmentKind::Kept, line.first);
            match kept.iter().find(|s| s.first == line.first) {
                None => self.find(format!("{name}: missing, with {} kept violations", line.records)),
                // Its records stood in the walk already.
                Some(segment) => match recover::scan_kept(segment, self.id, &line, |_| Ok(())) {
                    Ok(_) => self.report.kept += line.records,
                    Err(e) => self.find(e.to_string()),
                },
            }
        }
        for segment in kept {
            if self.extra.kept.iter().all(|line| line.first != segment.first) {
                let name = files::segment_name(SegmentKind::Kept, segment.first);
                self.report
                    .notes
                    .push(format!("{name}: not in the newest checkpoint, removed at the next start"));
            }
        }
    }
}
