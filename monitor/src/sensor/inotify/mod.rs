//! The `inotify` rung: a watch on each inode, for kernels and sandboxes that refuse everything above.
//!
//! It sees that something was done to an inode or to a name in a directory, through whatever path, but not by whom:
//! inotify does not tell. A watch holds its inode and not the mount. What this rung does not see is in [`BLIND_TO`]; the
//! judge looks at the objects and decides all the same.

mod reader;
#[cfg(test)]
mod tests;
mod watches;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags};
use tokio::sync::mpsc::Sender;

use self::watches::Watches;
use super::canary::{self, Canary, WithCanary};
use super::pins::Budget;
use super::queue::{Queue, ReaderThread, Stop};
use super::{Health, Proven, Sensor, SensorEvent, WatchError};
use crate::baseline::Root;
use crate::model::{Family, HostPath, Rung, Slot, WatchKind};

/// What the rung does not see, wherever it runs.
const BLIND_TO: [&str; 11] = [
    "open: an open for writing is seen when it is closed, and refused acts are not seen",
    "write: ioctl, aio and io_uring stores may show only when the file is closed",
    "truncate: reported as write",
    "mmap: stores through a mapping are seen when the file is closed",
    "xattr: reported as setattr",
    "names: what is done in a directory that is not watched shows by the inode alone, a link without its name",
    "inherit: what is made in a new directory is seen once the agent has found it, not across new mounts",
    "mounts",
    "ioctl",
    "memory",
    "execute",
];
/// As [`BLIND_TO`], and why no record of this rung has an actor.
pub(crate) const NO_ACTOR: &str = "inotify does not tell who acted";

/// What the sensor would not see here.
#[must_use]
pub fn blind_to() -> Vec<String> {
    let mut blind: Vec<String> = BLIND_TO.map(str::to_owned).into();
    // `judge::nameless` has the rule.
    let rule = "what ends as a lawful writer would have left it is taken for its doing";
    blind.push(format!("{}: {NO_ACTOR}; {rule}", Family::Actor.as_str()));
    blind
}

/// Whether the sensor can run here: the error of `inotify_init1` if not.
///
/// # Errors
/// The kernel's.
pub fn probe() -> Result<(), String> {
    inotify::init(CreateFlags::CLOEXEC).map(drop).map_err(|error| format!("inotify_init1: {error}"))
}

/// Why the sensor does not start.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct InotifyError {
    /// Which step.
    what: &'static str,
    source: io::Error,
}

/// The kernel's names of what the canary proves, in its order.
const HOOKS: [&str; 6] = ["in_modify", "in_close_write", "in_attrib", "in_create", "in_delete", "in_move"];

/// The running sensor.
#[derive(Debug)]
pub struct InotifySensor {
    canary: Canary,
    fd: Arc<OwnedFd>,
    watches: Arc<Mutex<Watches>>,
    budget: Budget,
    alive: Arc<AtomicBool>,
    _thread: ReaderThread,
}

impl InotifySensor {
    /// Starts the sensor. Paths of watched inodes are looked at below `root`. Events go to `tx`; where that is full they
    /// wait in the kernel's queue. Canaries act below `canary_dir`; without one nothing is proven.
    ///
    /// # Errors
    /// The kernel gives no inotify instance, or no thread.
    pub fn start(
        tx: Sender<SensorEvent>,
        root: Root,
        canary_dir: Option<&Path>,
    ) -> Result<Self, InotifyError> {
        let failed = |what| move |source: io::Error| InotifyError { what, source };
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|error| failed("inotify_init1")(error.into()))?;
        let stop = Stop::new().map_err(failed("eventfd"))?;
        let fd = Arc::new(fd);
        let watches = Arc::new(Mutex::new(Watches::default()));
        let alive = Arc::new(AtomicBool::new(true));
        let canary = Canary::new(canary_dir);
        let reader = reader::Reader::new(
            Queue::new(&fd, &stop, tx),
            Arc::clone(&watches),
            root,
            Arc::clone(&alive),
            canary.heard.clone(),
        );
        let thread = stop.spawn("inotify", move || reader.run()).map_err(failed("thread"))?;
        let budget = Budget::now().map_err(failed("fs.inotify.max_user_watches"))?;
        Ok(Self { canary, fd, watches, budget, alive, _thread: thread })
    }

    fn watches(&self) -> std::sync::MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sensor for InotifySensor {
    fn rung(&self) -> Rung {
        Rung::Inotify
    }

    fn watch(
        &mut self,
        fd: BorrowedFd<'_>,
        slot: Slot,
        kind: WatchKind,
        path: &HostPath,
    ) -> Result<(), WatchError> {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let wd = self.budget.add(self.fd.as_fd(), fd, watches::mask(kind), watches.len())?;
        watches.add(wd, slot, kind, path, watches::look(fd));
        Ok(())
    }

    fn unwatch(&mut self, slot: Slot) {
        for wd in self.watches().remove(slot) {
            // It may be gone already, with its inode.
            let _ = inotify::remove_watch(&*self.fd, wd);
        }
    }

    fn watched(&self) -> u64 {
        self.watches().len() as u64
    }

    /// An open for reading has no name on it: the agent's own would count.
    fn count_reads(&mut self, _: Slot, _: bool) -> Option<u64> {
        None
    }

    fn health(&self) -> Health {
        let live = self.alive.load(Ordering::Acquire);
        self.canary.health(Rung::Inotify, HOOKS, live, blind_to())
    }

    fn prove(&mut self) {
        canary::prove(self);
    }

    fn proven(&mut self, last: bool) -> Option<Proven> {
        canary::proven(self, last)
    }
}

impl WithCanary for InotifySensor {
    fn canary(&mut self) -> &mut Canary {
        &mut self.canary
    }
}
