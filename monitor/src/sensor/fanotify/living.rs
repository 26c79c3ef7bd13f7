//! Who runs on the node, looked at every few seconds: names those who act and end before their event is read, as an
//! installer does that takes away what it laid down and exits.
//!
//! Each process that is known is held by a pidfd, so that its end is heard of at once: its number cannot have become
//! another's while it had not ended, and an event that came to the queue after its end is not its own. What lived for
//! less than [`PERIOD`] stays unknown here.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open};

use super::reader::boottime;
use crate::inventory::procs::Proc;
use crate::model::Actor;
use crate::sensor::queue::{ReaderThread, Stop, Stopped};

/// How long after the last look the next one is.
const PERIOD: Duration = Duration::from_secs(2);
/// How long one that has ended is kept, in nanoseconds: its last events may still be in the queue.
const KEPT: u64 = 60_000_000_000;
/// Most processes that are held; each is a descriptor, of which they take a quarter at most.
const MAX: u64 = 8192;

/// Those who run, by their numbers.
#[derive(Debug)]
pub(super) struct Living {
    known: Arc<Mutex<HashMap<u32, Known>>>,
    _thread: ReaderThread,
}

#[derive(Debug)]
struct Known {
    actor: Actor,
    /// When its end was noticed, in nanoseconds since boot.
    ended: Option<u64>,
}

impl Living {
    /// Starts to look.
    ///
    /// # Errors
    /// No thread or event descriptor.
    pub(super) fn start(proc: Proc) -> std::io::Result<Self> {
        let stop = Stop::new()?;
        let known = Arc::default();
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = usize::try_from(MAX.min(descriptors / 4)).unwrap_or(usize::MAX);
        let look = Look { proc, known: Arc::clone(&known), held: HashMap::new(), most };
        let descriptor = stop.descriptor();
        let thread = stop.spawn("living", move || look.run(&descriptor))?;
        Ok(Self { known, _thread: thread })
    }

    /// Who had this number when an event came that is younger than `quiet` (nanoseconds since boot), as it was last
    /// seen. `None` where that may have been another.
    pub(super) fn lookup(&self, pid: u32, quiet: u64) -> Option<Actor> {
        let known = lock(&self.known);
        let found = known.get(&pid)?;
        found.ended.is_none_or(|ended| quiet <= ended).then(|| found.actor.clone())
    }
}

fn lock(known: &Mutex<HashMap<u32, Known>>) -> MutexGuard<'_, HashMap<u32, Known>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread works with.
struct Look {
    proc: Proc,
    known: Arc<Mutex<HashMap<u32, Known>>>,
    /// Those that had not ended when they were last heard of.
    held: HashMap<u32, OwnedFd>,
    /// How many these may be.
    most: usize,
}

impl Look {
    fn run(mut self, stop: &OwnedFd) {
        loop {
            self.look();
            let next = Instant::now() + PERIOD;
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                if self.wait(stop, left).is_err() {
                    return;
                }
            }
        }
    }

    /// Takes in who is new, and who executes something else than before.
    fn look(&mut self) {
        let now = boottime();
        lock(&self.known).retain(|_, known| known.ended.is_none_or(|ended| now < ended.saturating_add(KEPT)));
        let pids = match self.proc.pids() {
            Ok(pids) => pids,
            Err(error) => {
                tracing::warn!(%error, "processes cannot be listed: who ends at once stays unnamed");
                return;
            }
        };
        for pid in pids {
            if self.held.contains_key(&pid) {
                let inode = self.proc.exe_inode(pid);
                let same = lock(&self.known).get(&pid).is_some_and(|known| known.actor.exe_inode == inode);
                if !same && inode.is_some() {
                    self.read(pid);
                }
            } else if self.held.len() < self.most
                && let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw)
                && let Ok(pidfd) = pidfd_open(number, PidfdFlags::empty())
            {
                self.held.insert(pid, pidfd);
                if !self.read(pid) {
                    self.held.remove(&pid);
                }
            }
        }
    }

    /// Reads a process that is held, which is the same one as long as it has not ended. Whether it could be read.
    fn read(&self, pid: u32) -> bool {
        let Ok(actor) = self.proc.actor(pid) else { return false };
        let alive = self.held.get(&pid).is_some_and(|pidfd| super::sys::pidfd_alive(pidfd.as_fd()));
        if alive {
            lock(&self.known).insert(pid, Known { actor, ended: None });
        }
        alive
    }

    /// Until one ends, the time is over, or it is to stop.
    fn wait(&mut self, stop: &OwnedFd, left: Duration) -> Result<(), Stopped> {
        let pids: Vec<u32> = self.held.keys().copied().collect();
        let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        fds.extend(self.held.values().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        match poll(&mut fds, Some(&Timespec::try_from(left).map_err(|_| Stopped)?)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "processes are not looked at any more: who ends at once stays unnamed");
                return Err(Stopped);
            }
        }
        if !fds[0].revents().is_empty() {
            return Err(Stopped);
        }
        let ended: Vec<u32> = pids
            .into_iter()
            .zip(&fds[1..])
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(pid, _)| pid)
            .collect();
        let now = boottime();
        let mut known = lock(&self.known);
        for pid in ended {
            self.held.remove(&pid);
            if let Some(known) = known.get_mut(&pid) {
                known.ended = Some(now);
            }
        }
        Ok(())
    }
}
