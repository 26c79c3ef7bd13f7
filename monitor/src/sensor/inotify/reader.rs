//! The thread that reads the queue: events in, observations out, waiting where the receiver is slow.

use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::fs::inotify::{self, ReadFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::NO_ACTOR;
use super::watches::{self, Seen, Watches};
use crate::baseline::Root;
use crate::model::{HostPath, InodeKey, Observation, Operation, RenamedTo, Rung, Slot, Time, WatchKind};
use crate::sensor::SensorEvent;
use crate::sensor::canary::Heard;
use crate::sensor::queue::{Queue, SHORT, Stopped};

/// How long half a rename waits for the other half. The kernel queues both at once; what went to where nobody watches must not be told
/// after it was found by comparing.
const HALF: Duration = Duration::from_millis(20);
/// Observations that are held before they are sent.
const BATCH: usize = 256;
/// Halves of renames that wait at once.
const HALVES: usize = 64;

/// A name that went, whose new one may follow.
#[derive(Debug)]
struct Half {
    cookie: u32,
    slot: Slot,
    path: HostPath,
    child: Option<(Slot, Option<InodeKey>)>,
    time: Time,
    since: Instant,
}

/// One event, whole.
struct Told {
    wd: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<Vec<u8>>,
}

pub(super) struct Reader {
    heard: Heard,
    queue: Queue,
    watches: Arc<Mutex<Watches>>,
    root: Root,
    alive: Arc<AtomicBool>,
    halves: Vec<Half>,
    out: Vec<SensorEvent>,
}

impl Reader {
    pub(super) fn new(
        queue: Queue,
        watches: Arc<Mutex<Watches>>,
        root: Root,
        alive: Arc<AtomicBool>,
        heard: Heard,
    ) -> Self {
        Self { heard, queue, watches, root, alive, halves: Vec::new(), out: Vec::new() }
    }

    /// Runs until the sensor is dropped, the receiver is gone, or the queue cannot be read any more.
    pub(super) fn run(mut self) {
        while self.turn().is_ok() {}
        self.alive.store(false, Ordering::Release);
    }

    fn turn(&mut self) -> Result<(), Stopped> {
        let fd = Arc::clone(self.queue.fd());
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(fd.as_fd(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let told = Told {
                        wd: event.wd(),
                        flags: event.events(),
                        cookie: event.cookie(),
                        name: event.file_name().map(|name| name.to_bytes().to_vec()),
                    };
                    self.take(&told);
                    self.expire();
                    if self.out.len() >= BATCH {
                        self.send_all()?;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.lost(format!("reading the queue: {error}"));
                    self.send_all()?;
                    return Err(Stopped);
                }
            }
        }
        // The queue is empty: a half whose other half is not there soon went to where nobody watches.
        if let Some(first) = self.halves.first() {
            let left = Timespec::try_from(HALF.saturating_sub(first.since.elapsed())).unwrap_or(SHORT);
            self.send_all()?;
            if !self.queue.wait(Some(&left), true)? {
                self.expire();
            }
            return Ok(());
        }
        self.send_all()?;
        self.queue.wait(None, true).map(drop)
    }

    fn take(&mut self, event: &Told) {
        if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.lost("the kernel's queue was full (IN_Q_OVERFLOW)".to_owned());
            return;
        }
        let locked = Arc::clone(&self.watches);
        let mut watches = locked.lock().unwrap_or_else(PoisonError::into_inner);
        match &event.name {
            Some(name) => self.named(event, name, &mut watches),
            None => self.itself(event, &mut watches),
        }
        if event.flags.contains(ReadFlags::IGNORED) {
            watches.forget(event.wd);
        }
    }

    /// Something was done to a watched inode.
    fn itself(&mut self, event: &Told, watches: &mut Watches) {
        let Some(watch) = watches.get(event.wd) else { return };
        let (slot, inode, name) = (watch.slot, watch.inode, watch.path.name().to_vec());
        let attrib = event.flags.contains(ReadFlags::ATTRIB) && watch.kind != WatchKind::Parent;
        // The link count is an attribute as well: that it rose tells of another name, wherever that is.
        let seen =
            if attrib { self.look(&watch.path).filter(|seen| Some(seen.inode) == inode) } else { None };
        let links = seen.filter(|seen| seen.kind != FileType::Directory).map(|seen| seen.links);
        let linked = links.is_some_and(|links| links > watch.links);
        watch.links = links.unwrap_or(watch.links);
        let mut tell = |operation| {
            self.observe(Observation { inode, name: Some(name.clone()), ..observation(operation, slot) });
        };
        if event.flags.contains(ReadFlags::MODIFY) {
            watch.written = true;
            tell(Operation::Write);
        }
        if attrib {
            tell(if linked { Operation::Link } else { Operation::Setattr });
        }
        if event.flags.contains(ReadFlags::CLOSE_WRITE) && !std::mem::take(&mut watch.written) {
            // Nothing was written, or through a mapping.
            tell(Operation::Open);
        }
        if event.flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
            self.out.push(SensorEvent::Dirty { slot, events: 0 });
        }
    }

    /// Something was done in a watched directory.
    fn named(&mut self, event: &Told, name: &[u8], watches: &mut Watches) {
        let Some(watch) = watches.get(event.wd) else { return };
        if watch.kind == WatchKind::Object {
            return;
        }
        let (slot, hands_down) = (watch.slot, watch.kind != WatchKind::Parent);
        let path = watch.path.join(name);
        let child = watches.at(&path).map(|watch| (watch.slot, watch.inode));
        let name = Some(name.to_vec());
        let flags = event.flags;
        if flags.contains(ReadFlags::CREATE) {
            let seen = self.look(&path);
            let known = seen.and_then(|seen| watches.of(seen.inode)).map(|watch| watch.slot);
            let operation = made(flags.contains(ReadFlags::ISDIR), known.is_some(), seen);
            let inode = seen.map(|seen| seen.inode);
            self.observe(Observation { child_slot: known, inode, name, ..observation(operation, slot) });
            watches.vacate(&path);
        } else if flags.contains(ReadFlags::DELETE) {
            let operation =
                if flags.contains(ReadFlags::ISDIR) { Operation::Rmdir } else { Operation::Unlink };
            let (child_slot, inode) = (child.map(|(slot, _)| slot), child.and_then(|(_, inode)| inode));
            self.observe(Observation { child_slot, inode, name, ..observation(operation, slot) });
            watches.vacate(&path);
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            watches.vacate(&path);
            if self.halves.len() >= HALVES {
                let oldest = self.halves.remove(0);
                self.renamed(Some(&oldest), None, Time::now());
            }
            let (time, since) = (Time::now(), Instant::now());
            self.halves.push(Half { cookie: event.cookie, slot, path, child, time, since });
        } else if flags.contains(ReadFlags::MOVED_TO) {
            let half = self.halves.iter().position(|half| half.cookie == event.cookie);
            let half = half.map(|at| self.halves.remove(at));
            let seen = self.look(&path).map(|seen| seen.inode);
            watches.vacate(&path);
            if let Some(inode) = seen {
                watches.settle(inode, &path);
            }
            let moved = seen.and_then(|inode| Some((watches.of(inode)?.slot, Some(inode))));
            let to = Target { slot, path, replaced: child.map(|(slot, _)| slot), moved, inode: seen };
            self.renamed(half.as_ref(), Some(&to), Time::now());
        } else if hands_down && child.is_none() && !flags.contains(ReadFlags::ISDIR) {
            let operation = if flags.contains(ReadFlags::MODIFY) {
                Operation::Write
            } else if flags.contains(ReadFlags::ATTRIB) {
                Operation::Setattr
            } else if flags.contains(ReadFlags::CLOSE_WRITE) {
                Operation::Open
            } else {
                return;
            };
            let inode = self.look(&path).map(|seen| seen.inode);
            self.observe(Observation { inode, name, ..observation(operation, slot) });
        }
    }

    /// A half waits no longer where the queue does not come to its end.
    fn expire(&mut self) {
        let now = Time::now();
        while self.halves.first().is_some_and(|half| half.since.elapsed() >= HALF) {
            let half = self.halves.remove(0);
            self.renamed(Some(&half), None, now);
        }
    }

    /// A rename, or what is known of it.
    fn renamed(&mut self, from: Option<&Half>, to: Option<&Target>, now: Time) {
        let child = from.and_then(|from| from.child);
        let child = child.or_else(|| to.and_then(|to| to.moved));
        let known = |inode: Option<InodeKey>| inode.or_else(|| to.and_then(|to| to.inode));
        let seen = Observation {
            time: from.map_or(now, |from| from.time),
            child_slot: child.map(|(slot, _)| slot),
            inode: known(child.and_then(|(_, inode)| inode)),
            name: from.map(|from| from.path.name().to_vec()),
            renamed_to: to.map(|to| RenamedTo::new(to.slot, to.path.name().to_vec())),
            replaced_slot: to.and_then(|to| to.replaced),
            ..observation(Operation::Rename, from.map_or(Slot(0), |from| from.slot))
        };
        self.observe(seen);
    }

    /// Adds an observation; the same once more is counted.
    fn observe(&mut self, seen: Observation) {
        if self.heard.take(&seen) {
            return;
        }
        if let Some(SensorEvent::Observed(last)) = self.out.last_mut()
            && last.operation == seen.operation
            && seen.operation == Operation::Write
            && last.slot == seen.slot
            && last.inode == seen.inode
            && last.name == seen.name
        {
            last.count += 1;
            return;
        }
        self.out.push(SensorEvent::Observed(Box::new(seen)));
    }

    /// What stands at a path at this moment.
    fn look(&self, path: &HostPath) -> Option<Seen> {
        watches::look(self.root.locate(path).ok()?.as_fd())
    }

    fn lost(&mut self, reason: String) {
        let time = Time::now();
        self.out.push(SensorEvent::Lost { at: "inotify", lost: 0, reason, slots: None, time });
    }

    fn send_all(&mut self) -> Result<(), Stopped> {
        std::mem::take(&mut self.out).into_iter().try_for_each(|event| self.queue.send(event))
    }
}

/// Where something was moved to.
struct Target {
    slot: Slot,
    path: HostPath,
    /// The slot of what stood there before.
    replaced: Option<Slot>,
    /// What stands there now, if it is watched.
    moved: Option<(Slot, Option<InodeKey>)>,
    /// What stands there now.
    inode: Option<InodeKey>,
}

/// What a new name was made by. The event does not say: what stands there tells, if it still does.
fn made(dir: bool, known: bool, seen: Option<Seen>) -> Operation {
    match seen.map(|seen| (seen.kind, seen.links)) {
        _ if dir => Operation::Mkdir,
        _ if known => Operation::Link,
        Some((FileType::Symlink, _)) => Operation::Symlink,
        Some((FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice, _)) => {
            Operation::Mknod
        }
        Some((_, links)) if links > 1 => Operation::Link,
        _ => Operation::Create,
    }
}

fn observation(operation: Operation, slot: Slot) -> Observation {
    Observation {
        time: Time::now(),
        sensor: Rung::Inotify,
        operation,
        slot,
        child_slot: None,
        inode: None,
        name: None,
        path_in_fs: None,
        renamed_to: None,
        replaced_slot: None,
        actor: Err(NO_ACTOR.to_owned()),
        count: 1,
        denied: false,
        failed: false,
        unlinked: false,
        moved: None,
    }
}
