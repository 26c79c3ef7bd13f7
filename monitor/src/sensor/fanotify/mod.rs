//! The `fanotify` rung: marks on whole file systems, events matched by file handle.
//!
//! For kernels that refuse BPF LSM. It sees what is done through any path, alias, mount or namespace of a marked file
//! system, with the process that did it; it looks after the act, and does not see all that the `lsm` rung sees:
//! [`Sensor::health`] says what. Nothing here keeps a descriptor on a watched file system, which would keep it from
//! being unmounted.

mod actor;
mod assemble;
mod living;
mod parse;
mod places;
mod probe;
mod reader;
mod sys;
mod table;
#[cfg(test)]
mod tests;
mod translate;
mod window;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

pub use actor::ActorSource;
pub use probe::{FanotifyProbe, probe};

use self::living::Living;
use self::places::Places;
use self::table::Table;
use super::canary::{self, Canary, WithCanary};
use super::queue::{Queue, ReaderThread, Stop};
use super::{Health, Proven, Sensor, SensorEvent, WatchError};
use crate::inventory::procs::Proc;
use crate::model::{HostPath, Rung, Slot, WatchKind};

/// How to run.
#[derive(Debug, Default)]
pub struct FanotifyOptions {
    /// Who is asked for processes that are gone already.
    pub actor_source: Option<Arc<dyn ActorSource>>,
    /// Where the host's processes are seen.
    pub proc: Proc,
    /// Keep to the kernel's default queue (16,384 events), as an unprivileged group has it.
    pub limited_queue: bool,
    /// A directory of the agent's own; canaries act below it. Without one nothing is proven.
    pub canary_dir: Option<PathBuf>,
}

/// Why the sensor does not start.
#[derive(Debug, thiserror::Error)]
pub enum FanotifyError {
    /// No group.
    #[error("fanotify_init: {0}")]
    Group(#[source] io::Error),
    /// No thread or event descriptor.
    #[error("{what}: {source}")]
    Start { what: &'static str, source: io::Error },
}

/// What the reader and the caller share.
#[derive(Debug, Default)]
struct Shared {
    table: Table,
    places: Places,
    /// How often what is counted was opened, of each slot, if at all.
    opened: HashMap<Slot, u64>,
    /// File systems with a mark; `false` where only single inodes could be marked.
    marked: BTreeMap<[u8; 8], bool>,
}

/// The running sensor.
#[derive(Debug)]
pub struct FanotifySensor {
    group: Arc<OwnedFd>,
    shared: Arc<Mutex<Shared>>,
    alive: Arc<AtomicBool>,
    #[cfg(test)]
    living: Arc<Living>,
    _thread: ReaderThread,
    unlimited: bool,
    pidfd: bool,
    target_fid: bool,
    rename: bool,
    canary: Canary,
}

impl FanotifySensor {
    /// Opens a group with the best flags this kernel takes and starts reading it. Events go to `tx`; where that is
    /// full they wait in the kernel's queue.
    ///
    /// # Errors
    /// The kernel, or this process's rights, do not allow a group that names inodes.
    pub fn start(tx: mpsc::Sender<SensorEvent>, options: FanotifyOptions) -> Result<Self, FanotifyError> {
        let group = probe::open_group(!options.limited_queue).map_err(FanotifyError::Group)?;
        let start = |what| move |source: io::Error| FanotifyError::Start { what, source };
        let stop = Stop::new().map_err(start("eventfd"))?;
        let living = Arc::new(Living::start(options.proc.clone()).map_err(start("thread"))?);
        let fd = Arc::new(group.fd);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let alive = Arc::new(AtomicBool::new(true));
        let canary = Canary::new(options.canary_dir.as_deref());
        let reader = reader::Reader {
            heard: canary.heard.clone(),
            queue: Queue::new(&fd, &stop, tx),
            shared: Arc::clone(&shared),
            alive: Arc::clone(&alive),
            actors: actor::Actors::new(options.proc, options.actor_source, Arc::clone(&living)),
            assembler: assemble::Assembler::default(),
            translator: translate::Translator::default(),
            window: window::Window::default(),
            gone: std::collections::VecDeque::new(),
            full: std::collections::HashSet::new(),
            quiet: reader::boottime(),
        };
        let thread = stop.spawn("fanotify", move || reader.run()).map_err(start("thread"))?;
        Ok(Self {
            group: fd,
            shared,
            alive,
            #[cfg(test)]
            living,
            _thread: thread,
            unlimited: group.unlimited,
            pidfd: group.pidfd,
            target_fid: group.target_fid,
            rename: group.rename,
            canary,
        })
    }

    /// The kernel's names of what the canary proves, in its order.
    const fn hooks(&self) -> [&'static str; 6] {
        let moves = if self.rename { "fan_rename" } else { "fan_moved" };
        ["fan_modify", "fan_close_write", "fan_attrib", "fan_create", "fan_delete", moves]
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    const fn mask(&self) -> u64 {
        let moves = if self.rename {
            libc::FAN_RENAME
        } else {
            libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO | libc::FAN_MOVE_SELF
        };
        libc::FAN_MODIFY
            | libc::FAN_ATTRIB
            | libc::FAN_CLOSE_WRITE
            | libc::FAN_CREATE
            | libc::FAN_DELETE
            | libc::FAN_DELETE_SELF
            | libc::FAN_ONDIR
            | moves
    }

    /// Marks the file system behind `fd`, or else the inode alone.
    fn mark(&self, fd: BorrowedFd<'_>, fsid: [u8; 8], shared: &mut Shared) -> Result<(), WatchError> {
        let group = self.group.as_fd();
        // Each time: an unmounted file system has taken its mark with it, and marking twice costs nothing.
        let whole = sys::mark(group, libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM, self.mask(), fd);
        let refused = match whole {
            Ok(()) => {
                shared.marked.insert(fsid, true);
                return Ok(());
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                let limit = "fs.fanotify.max_user_marks".into();
                return Err(WatchError::Exhausted { what: "fanotify marks", limit });
            }
            Err(error) => error,
        };
        let directory = places::look(fd).is_some_and(|look| look.kind == rustix::fs::FileType::Directory);
        let mask = match directory {
            true => self.mask() | libc::FAN_EVENT_ON_CHILD,
            // Names are a directory's; asking a file for them is refused.
            false => self.mask() & !(libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_ONDIR | assemble::MOVES),
        };
        sys::mark(group, libc::FAN_MARK_ADD, mask, fd).map_err(|error| {
            WatchError::Unsupported(format!("fanotify_mark: file system: {refused}, inode: {error}"))
        })?;
        shared.marked.entry(fsid).or_insert(false);
        Ok(())
    }

    /// Adds or removes a mark for opening on the inodes of a slot that have none, or one. Whether it did.
    fn mark_reads(&self, slot: Slot, on: bool, shared: &mut Shared) -> bool {
        let flags = if on { libc::FAN_MARK_ADD } else { libc::FAN_MARK_REMOVE };
        let mut ids = shared.table.watched(slot);
        ids.retain(|id| shared.table.get(id).is_some_and(|entry| entry.counted != on));
        for id in &ids {
            shared.table.count(id, on);
            if let Some(fd) = shared.places.open(id, libc::O_PATH)
                && let Err(error) = sys::mark(self.group.as_fd(), flags, libc::FAN_OPEN, fd.as_fd())
            {
                tracing::debug!(?id, %error, "reads of an inode cannot be counted");
            }
        }
        !ids.is_empty()
    }

    fn blind_to(&self, shared: &Shared) -> Vec<String> {
        let mut blind = blind_to(self.target_fid, self.pidfd, self.unlimited);
        for (fsid, _) in shared.marked.iter().filter(|(_, whole)| !**whole) {
            let fsid = hex::encode(fsid);
            blind.push(format!("filesystem: fsid {fsid}: single inodes only, nothing is inherited in time"));
        }
        blind
    }
}

/// What the rung does not see, wherever it runs, with a group that has or lacks these.
fn blind_to(target_fid: bool, pidfd: bool, unlimited: bool) -> Vec<String> {
    let mut blind = vec![
        "open: an open for writing is seen when it is closed, and refused acts are not seen".to_owned(),
        "write: ioctl, aio and io_uring stores may show only when the file is closed".to_owned(),
        "truncate: reported as write".to_owned(),
        "mmap: stores through a mapping are seen when it ends".to_owned(),
        "xattr: reported as setattr".to_owned(),
        "inherit: not across new mounts".to_owned(),
        "mounts".to_owned(),
        "names: directories above objects on a file system in which nothing is sealed".to_owned(),
        "ioctl".to_owned(),
        "memory".to_owned(),
        "execute".to_owned(),
        "actor: read after the act; what lived for less than 2 s and exited, or executed, at once is not named".to_owned(),
    ];
    if !target_fid {
        blind.push("names: this kernel does not tell which inode a name stood for".to_owned());
    }
    if !pidfd {
        blind.push(
            "actor: this kernel gives no pidfd; a process younger than the event is not named".to_owned(),
        );
    }
    if !unlimited {
        blind.push("filesystem: the queue is limited; an overflow is reported as a loss".to_owned());
    }
    blind
}

impl Sensor for FanotifySensor {
    fn rung(&self) -> Rung {
        Rung::Fanotify
    }

    fn watch(
        &mut self,
        fd: BorrowedFd<'_>,
        slot: Slot,
        kind: WatchKind,
        path: &HostPath,
    ) -> Result<(), WatchError> {
        let id = sys::file_id(fd)
            .map_err(|error| WatchError::Unsupported(format!("name_to_handle_at: {path}: {error}")))?;
        let fsid = id.fsid();
        let mut shared = self.shared();
        let look = places::look(fd);
        let is_dir = look.as_ref().is_some_and(|look| look.kind == rustix::fs::FileType::Directory);
        // Where that is the end of the host's path, as nearly always, it is no copy.
        let path_in_fs = shared.places.learn(fd, fsid).filter(|_| is_dir);
        let path_in_fs = path_in_fs.map(|found| path.ending(found.as_bytes()).unwrap_or(found));
        // First known, then marked: no event in between is taken for a neighbour's.
        shared.table.watch(&id, slot, kind, look.map(|look| look.key), path_in_fs);
        if kind == WatchKind::Ancestor {
            // Objects on the same file system have it marked; a mark on the node's root for a directory's own name
            // would cost every process that writes there.
            return Ok(());
        }
        let marked = self.mark(fd, fsid, &mut shared);
        if marked.is_err() {
            shared.table.forget(&id);
        }
        marked
    }

    fn unwatch(&mut self, slot: Slot) {
        let mut shared = self.shared();
        self.mark_reads(slot, false, &mut shared);
        shared.opened.remove(&slot);
        for id in shared.table.remove(slot) {
            // A mark on a single inode would hold it for ever.
            if shared.marked.get(&id.fsid()) == Some(&false)
                && let Some(fd) = shared.places.open(&id, libc::O_PATH)
                && let Err(error) =
                    sys::mark(self.group.as_fd(), libc::FAN_MARK_REMOVE, u64::from(u32::MAX), fd.as_fd())
            {
                tracing::debug!(?id, %error, "a mark could not be removed");
            }
        }
    }

    fn watched(&self) -> u64 {
        self.shared().table.len() as u64
    }

    fn count_reads(&mut self, slot: Slot, on: bool) -> Option<u64> {
        let mut shared = self.shared();
        let marked = self.mark_reads(slot, on, &mut shared);
        let count = shared.opened.remove(&slot).unwrap_or(0);
        (on || marked).then_some(count)
    }

    fn health(&self) -> Health {
        let shared = self.shared();
        // Where nothing is to be watched yet, no mark is missing.
        let placed = shared.marked.is_empty() || shared.marked.values().any(|whole| *whole);
        let live = self.alive.load(Ordering::Acquire) && placed;
        self.canary.health(Rung::Fanotify, self.hooks(), live, self.blind_to(&shared))
    }

    fn prove(&mut self) {
        canary::prove(self);
    }

    fn proven(&mut self, last: bool) -> Option<Proven> {
        canary::proven(self, last)
    }
}

impl WithCanary for FanotifySensor {
    fn canary(&mut self) -> &mut Canary {
        &mut self.canary
    }
}

/// What the fuzzers give to the parser of events.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    // A descriptor that the fuzzer made up is nobody's to close.
    let events = parse::events_by(bytes, |_| None, |event| crate::fuzz::used(format!("{event:?}")));
    crate::fuzz::used(events);
}

/// Two events: a name that was made, and a rename, with a process that was gone.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_seeds() -> Vec<Vec<u8>> {
    let id = |name: &[u8]| [&[0; 8], &8_u32.to_ne_bytes()[..], &1_i32.to_ne_bytes(), &[7; 8], name].concat();
    let info = |kind: u8, body: &[u8]| {
        let length = u16::try_from(body.len() + 4).unwrap_or(u16::MAX);
        [&[kind, 0], &length.to_ne_bytes()[..], body].concat()
    };
    let event = |mask: u64, infos: &[Vec<u8>]| {
        let infos = infos.concat();
        let length = u32::try_from(infos.len() + 24).unwrap_or(u32::MAX);
        let version = [libc::FANOTIFY_METADATA_VERSION, 0];
        [
            &length.to_ne_bytes()[..],
            &version,
            &24_u16.to_ne_bytes(),
            &mask.to_ne_bytes(),
            &[255; 4],
            &[1; 4],
            &infos,
        ]
        .concat()
    };
    let made = event(
        libc::FAN_CREATE,
        &[
            info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &id(b"name\0\0\0\0")),
            info(libc::FAN_EVENT_INFO_TYPE_FID, &id(b"")),
            info(libc::FAN_EVENT_INFO_TYPE_PIDFD, &libc::FAN_NOPIDFD.to_ne_bytes()),
        ],
    );
    let moved = event(
        libc::FAN_RENAME,
        &[
            info(libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME, &id(b"a\0")),
            info(libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME, &id(b"b\0")),
        ],
    );
    vec![[made.clone(), moved].concat(), made]
}
