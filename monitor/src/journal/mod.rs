//! The journal: one append-only, signed log of all records of a node, and the spool of the exporters.
//!
//! The format on disk is specified in docs/journal.md. [`Journal::open`] takes the single writer's lock, repairs what
//! a crash left behind and starts the writer; [`JournalHandle`] appends, [`Reader`] reads, [`verify()`] checks all
//! of it offline.

mod checkpoint;
mod error;
pub mod evidence;
mod files;
mod frame;
mod keys;
mod reader;
mod recover;
mod retain;
mod scan;
mod tree;
mod verify;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot, watch};

pub use error::JournalError;
pub use files::{Faults, Op};
pub use frame::MAX_PAYLOAD;
pub use reader::{InclusionProof, Reader};
pub use recover::Recovered;
pub use scan::StoredRecord;
pub use verify::{Against, Evicted, Report, verify};

use crate::model::{Coverage, Draft, Record, Time};
use writer::{Message, Signals, Writer};

/// Drafts that may wait for the disk; more of them wait in [`JournalHandle::append`].
pub const QUEUE: usize = 4096;

/// Coverage and `blind_to`, as stamped on records.
type Stamp = Arc<(Coverage, Vec<String>)>;

/// How a journal is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the node, in each record and in the name of the log.
    pub node: String,
    /// Bytes the journal may take on disk.
    pub max_bytes: u64,
    /// A checkpoint at least after so many records,
    pub checkpoint_records: u64,
    /// and so long after the first record it does not yet cover.
    pub checkpoint_interval: Duration,
    /// Puts a journal that was tampered with aside and begins a new one, instead of refusing to open.
    pub set_aside_tampered: bool,
    /// Makes a new node key, signed by the old one, when an old journal is opened.
    pub rotate_key: bool,
    /// Where a test makes the disk fail.
    pub faults: Option<Arc<dyn Faults>>,
}

impl Options {
    /// The defaults of the configuration, for that node.
    #[must_use]
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            max_bytes: 1 << 30,
            checkpoint_records: 1000,
            checkpoint_interval: Duration::from_secs(10),
            set_aside_tampered: true,
            rotate_key: false,
            faults: None,
        }
    }

    /// At which length a segment is closed.
    fn segment_bytes(&self) -> u64 {
        (self.max_bytes / 16).clamp(16 << 10, 8 << 20)
    }
}

/// Whether the journal can write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalHealth {
    /// Since when writing fails; what is to be written waits, and [`JournalHandle::append`] with it.
    pub failing_since: Option<Time>,
    /// What fails.
    pub error: Option<String>,
}

/// Up to where all endpoints have acknowledged: nothing, as long as there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// All `violation.*` records up to this one.
    pub violations: u64,
    /// All other records up to this one.
    pub rest: u64,
}

impl Exported {
    /// Whatever there is.
    pub const ALL: Self = Self { violations: u64::MAX, rest: u64::MAX };
}

/// The newest checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeHead {
    /// Records it covers.
    pub tree_size: u64,
    /// The signed note; empty before the first one.
    pub note: String,
}

/// An open journal. Dropping it, and all handles, ends the writer without a final checkpoint.
#[derive(Debug)]
pub struct Journal {
    handle: JournalHandle,
    thread: Option<JoinHandle<()>>,
}

/// The way to append.
#[derive(Debug, Clone)]
pub struct JournalHandle {
    dir: PathBuf,
    inbox: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    coverage: Arc<Mutex<Stamp>>,
    durable: watch::Receiver<u64>,
    health: watch::Receiver<JournalHealth>,
    head: watch::Receiver<TreeHead>,
    exported: Arc<watch::Sender<Exported>>,
    closing: Arc<AtomicBool>,
}

impl Journal {
    /// Opens the journal in `dir`, or makes one, and starts its writer.
    ///
    /// # Errors
    /// Another process has it open, the file system refuses, or (if the options say so) it was tampered with.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovered), JournalError> {
        let (mut log, recovered) = recover::open(dir, &options)?;
        if options.rotate_key && log.checkpointed > 0 {
            log.key = keys::rotate(dir, &log.key, log.checkpointed - 1)?;
        }
        let (inbox, outbox) = mpsc::channel();
        let (durable, durable_rx) = watch::channel(recovered.next_seq - 1);
        let (health, health_rx) = watch::channel(JournalHealth::default());
        let (head, head_rx) = watch::channel(reader::head_of(dir)?);
        let (exported, exported_rx) = watch::channel(Exported::default());
        let closing = Arc::new(AtomicBool::new(false));
        let signals = Signals { durable, health, head, exported: exported_rx, closing: Arc::clone(&closing) };
        let writer = Writer::new(log, options, signals);
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&outbox))
            .map_err(JournalError::io(dir))?;
        let handle = JournalHandle {
            dir: dir.to_path_buf(),
            inbox,
            room: Arc::new(Semaphore::new(QUEUE)),
            coverage: Arc::new(Mutex::new(Arc::new((Coverage::Reduced, vec!["starting".to_owned()])))),
            durable: durable_rx,
            health: health_rx,
            head: head_rx,
            exported: Arc::new(exported),
            closing,
        };
        Ok((Self { handle, thread: Some(thread) }, recovered))
    }

    /// A way to append.
    #[must_use]
    pub fn handle(&self) -> JournalHandle {
        self.handle.clone()
    }

    /// Writes what is queued and a final checkpoint, and ends the writer.
    ///
    /// # Errors
    /// The disk kept failing for some seconds: what was queued is lost, and each append was told so.
    pub async fn shutdown(mut self) -> Result<(), JournalError> {
        let done = self.handle.shutdown().await;
        if let Some(thread) = self.thread.take() {
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
        done
    }
}

impl JournalHandle {
    /// Appends records, all of them or none, and returns once they are on disk. They stand together, in this order, with
    /// nothing between them but the checkpoints that end segments.
    ///
    /// Waits while the queue is full or the disk refuses; see [`JournalHandle::health`].
    ///
    /// # Errors
    /// A record is too large, or the journal closed before the records were durable.
    pub async fn append(&self, drafts: Vec<Draft>) -> Result<Vec<Record>, JournalError> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        if drafts.len() > QUEUE {
            return Err(JournalError::TooMany(drafts.len()));
        }
        let wanted = u32::try_from(drafts.len()).unwrap_or(u32::MAX);
        let permit =
            Arc::clone(&self.room).acquire_many_owned(wanted).await.map_err(|_| JournalError::Closed)?;
        let coverage = Arc::clone(&self.coverage.lock().unwrap_or_else(PoisonError::into_inner));
        self.ask(|reply| Message::Append { drafts, coverage, permit, reply }).await
    }

    /// What is stamped on each record from now on.
    pub fn set_coverage(&self, coverage: Coverage, blind_to: Vec<String>) {
        *self.coverage.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new((coverage, blind_to));
    }

    /// Up to where all endpoints have acknowledged; what lies behind may be evicted without a loss.
    pub fn set_exported(&self, exported: Exported) {
        self.exported.send_replace(exported);
    }

    /// The last sequence number on disk.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.durable.clone()
    }

    /// Whether writing works.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<JournalHealth> {
        self.health.clone()
    }

    /// The newest checkpoint.
    #[must_use]
    pub fn tree_head(&self) -> watch::Receiver<TreeHead> {
        self.head.clone()
    }

    /// Where it lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A reader of the same journal.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn reader(&self) -> Result<Reader, JournalError> {
        Reader::open(&self.dir)
    }

    /// Signs a checkpoint now, if records came since the last one.
    ///
    /// # Errors
    /// The journal is closed.
    pub async fn checkpoint(&self) -> Result<(), JournalError> {
        self.ask(Message::Checkpoint).await
    }

    /// As [`Journal::shutdown`], without waiting for the writer's thread to be gone.
    ///
    /// # Errors
    /// The disk kept failing, or the journal is closed already.
    pub async fn shutdown(&self) -> Result<(), JournalError> {
        self.closing.store(true, Ordering::SeqCst);
        self.ask(Message::Shutdown).await
    }

    async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<T, JournalError>>) -> Message,
    ) -> Result<T, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(message(reply)).map_err(|_| JournalError::Closed)?;
        answer.await.map_err(|_| JournalError::Closed)?
    }
}

/// Whether a text is a node's public key, of whichever node: a vkey line or a PEM block.
///
/// # Errors
/// What is wrong with it.
pub fn expect_key(text: &str) -> Result<(), String> {
    keys::parse_named(text).map(drop)
}

/// Whether bytes are a checkpoint, of whichever log and signed by whomever.
///
/// # Errors
/// What is wrong with them.
pub fn expect_checkpoint(note: &[u8]) -> Result<(), String> {
    checkpoint::parse_external(note).map(drop)
}

/// Takes the writer's lock of the journal in `dir`, if there is one, so that no agent can write it while it is held.
///
/// # Errors
/// An agent that runs has it.
pub fn hold(dir: &Path) -> Result<Option<std::fs::File>, JournalError> {
    files::hold(dir)
}

/// What the fuzzers give to the readers of segments and frames.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    use std::io::{Seek as _, Write as _};

    crate::fuzz::used(frame::SegmentHead::decode(bytes));
    crate::fuzz::used(format!("{:?}", frame::decode(bytes)));
    // As the only segment of a journal, after a head of its own.
    let Ok(mut file) = tempfile() else { return };
    if file
        .write_all(&[0; frame::SEGMENT_HEAD])
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.rewind())
        .is_ok()
    {
        let mut scan = scan::Scan::new(file);
        while let Ok(scan::Found::Record(_)) = scan.next() {}
    }
}

/// What the fuzzers give to the readers of signed notes and public keys.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_checkpoint(bytes: &[u8]) {
    let origin = "meshseal/n/x";
    keys::fuzz(bytes, origin);
    let (key, _) = keys::fuzz_key(origin);
    if let Ok(public) = keys::parse_public(&key.vkey(), origin) {
        let chain = keys::KeyChain::single(origin, public);
        crate::fuzz::used(checkpoint::open(bytes, origin, &chain));
        crate::fuzz::used(checkpoint::open_external(bytes, origin, &chain));
    }
}

/// A signed checkpoint with every line that there is, a key rotation, and a public key.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_checkpoint_seeds() -> Vec<Vec<u8>> {
    let origin = "meshseal/n/x";
    let (key, rotation) = keys::fuzz_key(origin);
    let kept = checkpoint::Kept { first: 3, records: 2, digest: "ab".repeat(32) };
    let extra = checkpoint::Extra { evicted: Some((9, 12)), kept: vec![kept], clean_stop: true };
    let root = tlog_tiles::tlog::record_hash(b"x");
    let note = checkpoint::sign(&key, origin, 12, root, &extra).unwrap_or_default();
    vec![note.into_bytes(), rotation.into_bytes(), key.vkey().into_bytes()]
}

/// Frames of two records.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_seeds() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (seq, payload) in [(1, &b"{}"[..]), (2, b"{\"seq\":2}")] {
        crate::fuzz::used(frame::encode(&mut frames, seq, payload));
    }
    let head = frame::SegmentHead {
        kind: frame::SegmentKind::Log,
        journal: 1,
        first: 1,
        prev_first: 0,
        prev_len: 0,
    };
    vec![frames, head.encode().to_vec()]
}

/// Names of a journal's files, as the fuzzers number them.
#[cfg(any(test, feature = "fuzz"))]
const FUZZED: [&str; 8] = [
    files::META,
    files::TREE,
    files::CHECKPOINT,
    files::KEY,
    files::PUB,
    "keys/00000001.note",
    "log-00000000000000000001.seg",
    "kept-00000000000000000001.seg",
];

/// What the fuzzers give to the readers of a whole journal: files, each after its number and its length (two bytes).
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_files(mut bytes: &[u8]) {
    let dir = std::env::temp_dir().join(format!("meshseal-fuzz-{}", ulid::Ulid::generate()));
    if std::fs::create_dir_all(dir.join(files::KEYS)).is_err() {
        return;
    }
    while let [number, low, high, rest @ ..] = bytes {
        let (content, next) = rest.split_at(rest.len().min(u16::from_le_bytes([*low, *high]).into()));
        if let Some(name) = FUZZED.get(usize::from(*number)) {
            crate::fuzz::used(std::fs::write(dir.join(name), content));
        }
        bytes = next;
    }
    crate::fuzz::used(verify(&dir, Against::default()).is_ok());
    if let Ok(mut reader) = Reader::open(&dir) {
        crate::fuzz::used((reader.read_from(1, 16, 1 << 20).is_ok(), reader.inclusion_proof(1).is_ok()));
    }
    // Taken up as an agent does, it is sound, or refused.
    let options = Options { set_aside_tampered: false, ..Options::new("n") };
    if let Ok((log, _)) = recover::open(&dir, &options) {
        drop(log);
        let findings = verify(&dir, Against::default()).map(|report| report.findings);
        crate::fuzz::used(findings);
    }
    crate::fuzz::used(std::fs::remove_dir_all(&dir));
}

/// A journal of three records and its final checkpoint, as its files.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_files_seeds() -> Vec<Vec<u8>> {
    use crate::model::{RecordBody, Severity};

    let dir = std::env::temp_dir().join(format!("meshseal-fuzz-{}", ulid::Ulid::generate()));
    let draft = || Draft::now(Severity::Info, RecordBody::Breakglass { statement: "s".to_owned() });
    let written = async {
        let (journal, _) = Journal::open(&dir, Options::new("n"))?;
        journal.handle().append(vec![draft(), draft(), draft()]).await?;
        journal.shutdown().await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let written = runtime.map(|runtime| runtime.block_on(written));
    assert!(matches!(written, Ok(Ok(()))), "{written:?}");
    let mut seed = Vec::new();
    for (name, number) in FUZZED.iter().zip(0_u8..) {
        let Ok(content) = std::fs::read(dir.join(name)) else { continue };
        seed.push(number);
        seed.extend(u16::try_from(content.len()).unwrap_or(u16::MAX).to_le_bytes());
        seed.extend(content);
    }
    crate::fuzz::used(std::fs::remove_dir_all(&dir));
    vec![seed]
}

/// A file without a name, in memory.
#[cfg(any(test, feature = "fuzz"))]
fn tempfile() -> std::io::Result<std::fs::File> {
    let fd = rustix::fs::memfd_create("meshseal-fuzz", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(std::fs::File::from(fd))
}

#[cfg(test)]
mod tests;
