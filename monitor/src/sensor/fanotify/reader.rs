//! The thread that reads the queue: events in, observations out, waiting where the receiver is slow. Memory stays
//! bounded here; what waits, waits in the kernel's queue.

use std::collections::{HashSet, VecDeque};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::time::Timespec;

use super::Shared;
use super::actor::Actors;
use super::assemble::{Act, Assembler, NAME};
use super::parse::{self, Event};
use super::sys::{self, FileId};
use super::translate::{Chore, Translator};
use super::window::Window;
use crate::model::{Slot, Time};
use crate::sensor::SensorEvent;
use crate::sensor::canary::Heard;
use crate::sensor::queue::{Queue, SHORT, Stopped};

/// One read; small, because each event may bring a descriptor.
const BUFFER: usize = 16 << 10;
/// Entries of a directory tree that are taken in when it is moved below a watched directory.
const WALK_MAX: usize = 100_000;
/// Deepest tree that is taken in.
const WALK_DEPTH: usize = 64;

pub(super) struct Reader {
    pub(super) heard: Heard,
    pub(super) queue: Queue,
    pub(super) shared: Arc<Mutex<Shared>>,
    pub(super) alive: Arc<AtomicBool>,
    pub(super) actors: Actors,
    pub(super) assembler: Assembler,
    pub(super) translator: Translator,
    pub(super) window: Window,
    /// Inodes to forget once no event can speak of them any more, and since when: their name is told after their end, by a process that may
    /// have lost its processor in between.
    pub(super) gone: VecDeque<(Instant, FileId)>,
    /// Slots below which more was made than is kept.
    pub(super) full: HashSet<Slot>,
    /// When the queue was last seen empty, in nanoseconds since boot.
    pub(super) quiet: u64,
}

impl Reader {
    /// Runs until the sensor is dropped, the receiver is gone, or the queue cannot be read any more.
    pub(super) fn run(mut self) {
        let mut buffer = vec![0; BUFFER];
        while self.turn(&mut buffer).is_ok() {}
        self.alive.store(false, Ordering::Release);
    }

    fn turn(&mut self, buffer: &mut [u8]) -> Result<(), Stopped> {
        match rustix::io::read(self.queue.fd(), &mut *buffer) {
            Ok(length) => {
                self.take(&buffer[..length])?;
                if self.window.is_full() {
                    self.send_window()?;
                }
                Ok(())
            }
            Err(rustix::io::Errno::AGAIN) => self.idle(),
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => {
                self.lost(0, format!("reading the queue: {error}"), None)?;
                // Out of descriptors or memory may pass; anything else is final.
                let passes = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::NOMEM];
                if passes.contains(&error) {
                    self.queue.wait(Some(&SHORT), false).map(drop)
                } else {
                    Err(Stopped)
                }
            }
        }
    }

    /// The queue is empty: nothing that was held back can still be completed soon.
    fn idle(&mut self) -> Result<(), Stopped> {
        self.quiet = boottime();
        while let Some(left) = self.assembler.waits() {
            let left = Timespec::try_from(left).unwrap_or(SHORT);
            if self.queue.wait(Some(&left), true)? {
                return Ok(());
            }
            let locked = Arc::clone(&self.shared);
            self.acts(&mut locked.lock().unwrap_or_else(PoisonError::into_inner));
        }
        self.send_window()?;
        self.forget();
        self.queue.wait(None, true).map(drop)
    }

    /// Those that went long enough ago; the others with a later event.
    fn forget(&mut self) {
        let long_ago = |(since, _): &mut (Instant, FileId)| since.elapsed() >= NAME;
        if !self.gone.front_mut().is_some_and(long_ago) {
            return;
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((_, id)) = self.gone.pop_front_if(long_ago) {
            shared.table.forget(&id);
        }
    }

    /// Takes events one by one: what one makes known, the next may need.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        let (now, own, mut overflow) = (Time::now(), std::process::id(), false);
        let locked = Arc::clone(&self.shared);
        let mut shared = locked.lock().unwrap_or_else(PoisonError::into_inner);
        let result = parse::events(bytes, |event| {
            if event.mask & libc::FAN_Q_OVERFLOW != 0 {
                overflow = true;
                return;
            }
            if event.mask & libc::FAN_OPEN != 0
                && event.pid.unsigned_abs() != own
                && let Some(slot) = counted(&event, &shared)
            {
                *shared.opened.entry(slot).or_default() += 1;
            }
            // Most events are of no concern: nothing of them is copied.
            let wanted = event.mask & !(libc::FAN_OPEN | libc::FAN_ONDIR) != 0;
            if wanted && (concerns(&event, &shared) || self.assembler.is_completed_by(&event)) {
                let (actors, quiet) = (&mut self.actors, self.quiet);
                self.assembler.take(event, now, |pid, pidfd| actors.find(pid, pidfd, quiet));
                self.acts(&mut shared);
            }
        });
        let malformed = result.err().map(|error| error.to_string());
        let full = "the kernel's queue was full (FAN_Q_OVERFLOW)".to_owned();
        let reason = malformed.or_else(|| overflow.then_some(full));
        if reason.is_some() {
            self.assembler.give_up();
        }
        self.acts(&mut shared);
        drop(shared);
        if let Some(reason) = reason {
            self.send_window()?;
            self.lost(0, reason, None)?;
        }
        if !self.full.is_empty() {
            self.send_window()?;
            let slots = std::mem::take(&mut self.full).into_iter().collect();
            self.lost(0, "more inodes below a watched directory than are kept".into(), Some(slots))?;
        }
        Ok(())
    }

    /// Those acts that are whole.
    fn acts(&mut self, shared: &mut Shared) {
        while let Some(act) = self.assembler.next() {
            self.act(&act, shared);
        }
    }

    fn act(&mut self, act: &Act, shared: &mut Shared) {
        let (mut seen, mut chores) = (Vec::new(), Vec::new());
        self.translator.translate(act, &mut shared.table, &shared.places, &mut seen, &mut chores);
        for chore in chores {
            match chore {
                Chore::Forget(id) => self.gone.push_back((Instant::now(), id)),
                Chore::Full(slot) => {
                    self.full.insert(slot);
                }
                Chore::Walk(id) => self.full.extend(walk(&id, shared)),
                Chore::Find(dir, name) => self.full.extend(find(&dir, &name, shared)),
            }
        }
        for one in seen {
            let (actors, quiet) = (&mut self.actors, self.quiet);
            let who = || act.actor.clone().unwrap_or_else(|| actors.find(act.pid, &act.pidfd, quiet));
            self.window.add(one, act.pid, act.time, who);
        }
    }

    fn send_window(&mut self) -> Result<(), Stopped> {
        for observation in self.window.drain() {
            if self.heard.take(&observation) {
                continue;
            }
            self.queue.send(SensorEvent::Observed(Box::new(observation)))?;
        }
        Ok(())
    }

    fn lost(&self, lost: u64, reason: String, slots: Option<Vec<Slot>>) -> Result<(), Stopped> {
        self.queue.send(SensorEvent::Lost { at: "fanotify", lost, reason, slots, time: Time::now() })
    }
}

/// Nanoseconds since boot.
pub(super) fn boottime() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

fn concerns(event: &Event<'_>, shared: &Shared) -> bool {
    let named =
        |named: Option<parse::Named<'_>>| named.is_some_and(|(dir, _)| shared.table.get(dir).is_some());
    event.child.is_some_and(|id| shared.table.get(id).is_some())
        || named(event.dir)
        || named(event.old)
        || named(event.new)
}

/// The slot of what was opened, if that is counted.
fn counted(event: &Event<'_>, shared: &Shared) -> Option<Slot> {
    let id = event.child.or_else(|| event.dir.filter(|(_, name)| *name == b".").map(|(id, _)| id))?;
    shared.table.get(id).filter(|entry| entry.counted).map(|entry| entry.slot)
}

/// Hands a directory's slot down to all that lies below it. Gives the slot if that was too much.
fn walk(dir: &FileId, shared: &mut Shared) -> Option<Slot> {
    let slot = shared.table.get(dir)?.slot;
    let (mut pending, mut left) = (vec![(dir.clone(), 0)], WALK_MAX);
    while let Some((dir, depth)) = pending.pop() {
        let Some(fd) = shared.places.open(&dir, libc::O_RDONLY | libc::O_DIRECTORY) else { continue };
        let Ok(entries) = Dir::read_from(&fd) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            left = left.saturating_sub(1);
            if left == 0 || depth == WALK_DEPTH {
                return Some(slot);
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(child) = rustix::fs::openat(&fd, name, flags, Mode::empty()) else { continue };
            let (Ok(id), Some(look)) = (sys::file_id(child.as_fd()), super::places::look(child.as_fd()))
            else {
                continue;
            };
            let raw: &[u8] = &dir;
            match shared.table.inherit(raw, name.to_bytes(), &id, Some(look.key)) {
                None => return Some(slot),
                Some(true) if look.kind == FileType::Directory => pending.push((id, depth + 1)),
                Some(_) => {}
            }
        }
    }
    None
}

/// Finds a directory that was made or moved here, where the kernel does not say which it is.
fn find(dir: &FileId, name: &[u8], shared: &mut Shared) -> Option<Slot> {
    let parent = shared.places.open(dir, libc::O_PATH)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let child = rustix::fs::openat(&parent, name, flags, Mode::empty()).ok()?;
    let id = sys::file_id(child.as_fd()).ok()?;
    let key = super::places::look(child.as_fd()).map(|look| look.key);
    let slot = shared.table.get(dir)?.slot;
    match shared.table.inherit(dir, name, &id, key) {
        None => Some(slot),
        Some(true) => walk(&id, shared),
        Some(false) => None,
    }
}
