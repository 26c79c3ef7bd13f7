//! The one thread that empties the ring, keeps account of what each slot had, and says what was lost.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;

use super::canary::Canaries;
use super::decode::{Decoded, call_end, decode};
use super::ends::Ends;
use super::kept::{Before, Takeover};
use super::prog_info;
use super::ring::{Extent, Ring};
use super::shared::Shared;
use crate::model::{Clock, Observation, Operation, Rung, Slot, Time};
use crate::sensor::SensorEvent;
use crate::sensor::pins::{Pins, Witness};

/// How often losses are looked for when nothing happens.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Records taken before what they say is sent on.
const BATCH: usize = 512;

/// The other side went away.
struct Closed;

/// See the module.
pub(super) struct Reader {
    pub before: Option<Before>,
    pub takeover: Arc<Takeover>,
    pub rung: Rung,
    pub ring: Ring,
    /// Hands the programs' own messages to the log.
    pub logs: Option<Box<dyn FnMut() + Send>>,
    pub shared: Arc<Shared>,
    pub pins: Arc<Mutex<Pins>>,
    pub witness: OwnedFd,
    pub canaries: Arc<Canaries>,
    pub programs: Vec<OwnedFd>,
    pub ends: Ends,
    /// The host's own mount namespace.
    pub host_ns: Option<u64>,
    pub tx: Sender<SensorEvent>,
    pub stop: CancellationToken,
}

/// What was accounted for so far.
#[derive(Default)]
struct Account {
    lost: u64,
    untagged: u64,
    misses: u64,
    malformed: u64,
    /// The record before, if it was not a canary's.
    previous: Option<Decoded>,
    /// Events of each slot that came by the ring or were reported as not come.
    seen: HashMap<u32, u64>,
}

impl Reader {
    /// Runs until the token is cancelled or the receiver is gone.
    pub(super) fn run(mut self) {
        let mut account = Account { misses: self.misses(), ..Account::default() };
        while !self.stop.is_cancelled() {
            if self.turn(&mut account).is_err() {
                return;
            }
            let mut fds = [
                PollFd::new(&self.ring, PollFlags::IN),
                PollFd::from_borrowed_fd(self.witness.as_fd(), PollFlags::IN),
            ];
            // An interrupted wait is as good as one that ended.
            let _ = rustix::event::poll(&mut fds, Some(&POLL));
        }
        // What was done before the stop is told too; whoever would hear it may have gone already.
        let _ = self.turn(&mut account);
    }

    fn turn(&mut self, account: &mut Account) -> Result<(), Closed> {
        self.earlier(account)?;
        // Hooks come before the act and the witness after it: what it says now is in the ring.
        let seen = self.pins.lock().unwrap_or_else(PoisonError::into_inner).read();
        self.drain(account)?;
        self.losses(account)?;
        self.witness(seen)?;
        if let Some(logs) = &mut self.logs {
            logs();
        }
        Ok(())
    }

    /// What the programs of an agent before this one saw. Once everything is watched by this one's, the old ones go.
    fn earlier(&mut self, account: &mut Account) -> Result<(), Closed> {
        let Some(mut before) = self.before.take() else { return Ok(()) };
        let over = self.takeover.over.load(Ordering::Acquire);
        // What comes to it meanwhile is told by the new ones once they watch, and read in the next turn until then.
        let mut extent = before.now();
        loop {
            let (events, malformed) = before.drain(&self.takeover, &mut extent);
            account.malformed += malformed;
            let last = events.is_empty();
            for event in events {
                self.send(event)?;
            }
            if last {
                break;
            }
        }
        if over {
            before.retire();
        } else {
            self.before = Some(before);
        }
        Ok(())
    }

    /// Takes what is in the ring now.
    fn drain(&mut self, account: &mut Account) -> Result<(), Closed> {
        let mut extent = self.ring.now();
        while self.take(account, &mut extent)? == BATCH {}
        Ok(())
    }

    /// Takes up to a batch of records; repeated writes of one process in a row become one.
    fn take(&mut self, account: &mut Account, extent: &mut Extent) -> Result<usize, Closed> {
        let clock = Clock::now();
        let mut batch: Vec<Box<Observation>> = Vec::new();
        let mut slots = Vec::new();
        let mut taken = 0;
        while taken < BATCH {
            let Some(record) = self.ring.next(extent) else { break };
            taken += 1;
            if let Some((pid, outcome)) = call_end(&record) {
                batch.extend(self.ends.ended(pid, outcome));
                continue;
            }
            let decoded = match decode(&record, clock, self.rung) {
                Ok(decoded) => decoded,
                Err(error) => {
                    tracing::error!(%error, "record from the kernel not understood");
                    account.malformed += 1;
                    continue;
                }
            };
            drop(record);
            for slot in &decoded.slots {
                *account.seen.entry(*slot).or_insert(0) += 1;
                if !slots.contains(slot) {
                    slots.push(*slot);
                }
            }
            if self.canaries.take(&decoded) {
                continue;
            }
            if account.previous.as_ref().is_some_and(|previous| same_exchange(previous, &decoded)) {
                // The second half of one RENAME_EXCHANGE.
                account.previous = None;
                continue;
            }
            if is_mount(decoded.observation.operation) {
                if !self.is_no_news(&decoded) {
                    batch.extend(self.ends.begins(decoded));
                }
                account.previous = None;
                continue;
            }
            match batch.last_mut() {
                Some(last) if coalesces(last, &decoded.observation) => last.count += 1,
                _ => batch.push(Box::new(decoded.observation.clone())),
            }
            account.previous = Some(decoded);
        }
        batch.extend(self.ends.overdue());
        for observation in batch {
            self.send(SensorEvent::Observed(observation))?;
        }
        for slot in slots {
            self.clear(account, slot);
        }
        Ok(taken)
    }

    /// Our own mounts that concern nobody, and the options of a single mount in a container's namespace: a runtime sets
    /// them at each start, and nobody else sees them.
    fn is_no_news(&self, decoded: &Decoded) -> bool {
        let Ok(actor) = &decoded.observation.actor else { return false };
        let ours = decoded.observation.slot == Slot(0) && actor.tgid == std::process::id();
        let elsewhere = actor.mount_ns.is_some() && actor.mount_ns != self.host_ns;
        ours || decoded.one_mount && self.host_ns.is_some() && elsewhere
    }

    /// Takes a slot's mark away, unless there was more than what was delivered.
    fn clear(&self, account: &Account, number: u32) {
        let Some(slot) = self.shared.slot(number) else { return };
        slot.dirty.store(0, Ordering::SeqCst);
        let seen = account.seen.get(&number).copied().unwrap_or(0);
        if slot.events.load(Ordering::SeqCst) != seen {
            slot.dirty.store(1, Ordering::SeqCst);
        }
    }

    /// Looks whether anything was lost, and names what must be verified again.
    fn losses(&mut self, account: &mut Account) -> Result<(), Closed> {
        let (lost, untagged) = self.shared.losses();
        if lost > account.lost {
            // What is in the ring now is accounted for first.
            self.drain(account)?;
            let dirty = self.unaccounted(account);
            self.send(SensorEvent::Lost {
                at: "ring",
                lost: lost - account.lost,
                reason: "the ring buffer was full".to_owned(),
                slots: Some(dirty.iter().map(|(slot, _)| Slot(*slot)).collect()),
                time: Time::now(),
            })?;
            account.lost = lost;
            for (slot, events) in dirty {
                self.send(SensorEvent::Dirty { slot: Slot(slot), events })?;
            }
        }
        let misses = self.misses();
        let all = |what: &mut u64, now: u64, at, reason: &str| {
            let rise = now.saturating_sub(std::mem::replace(what, now));
            if rise == 0 {
                return Ok(());
            }
            let (reason, time) = (reason.to_owned(), Time::now());
            self.send(SensorEvent::Lost { at, lost: rise, reason, slots: None, time })
        };
        all(
            &mut account.misses,
            misses,
            "programs",
            "the kernel skipped a program that was already running",
        )?;
        all(&mut account.untagged, untagged, "tags", "the kernel had no room to hand a tag down")?;
        let malformed = account.malformed;
        if malformed > 0 {
            account.malformed = 0;
            all(&mut 0, malformed, "ring", "records that could not be understood")?;
        }
        Ok(())
    }

    /// Slots whose counter moved without a record, with how many; they count as accounted for from now on.
    fn unaccounted(&self, account: &mut Account) -> Vec<(u32, u64)> {
        let mut out = Vec::new();
        for number in 1..self.shared.len() {
            let events = self.shared.events(number);
            let seen = account.seen.get(&number).copied().unwrap_or(0);
            if events != seen {
                let _ = account.seen.insert(number, events);
                if !self.canaries.owns(number) {
                    out.push((number, events.saturating_sub(seen)));
                }
                self.clear(account, number);
            }
        }
        out
    }

    /// What inotify saw is verified again, whatever the hooks told of it: it may have passed none, or come to pass long after one.
    fn witness(&self, seen: Vec<Witness>) -> Result<(), Closed> {
        for witness in seen {
            let event = match witness {
                Witness::Touched(slot) | Witness::Closed(slot) if self.canaries.owns(slot.0) => continue,
                Witness::Touched(slot) => SensorEvent::Dirty { slot, events: 0 },
                Witness::Closed(slot) => SensorEvent::Closed { slot },
                Witness::Overflow => SensorEvent::Lost {
                    at: "inotify",
                    lost: 1,
                    reason: "the inotify queue was full".to_owned(),
                    slots: None,
                    time: Time::now(),
                },
            };
            self.send(event)?;
        }
        Ok(())
    }

    fn misses(&self) -> u64 {
        self.programs.iter().filter_map(|program| prog_info::recursion_misses(program.as_fd())).sum()
    }

    /// Waits while the channel is full: the pressure falls onto the ring, which counts.
    fn send(&self, event: SensorEvent) -> Result<(), Closed> {
        self.tx.blocking_send(event).map_err(|_| Closed)
    }
}

const fn is_mount(operation: Operation) -> bool {
    use Operation as O;
    matches!(operation, O::Mount | O::Umount | O::PivotRoot | O::Remount | O::MountSetattr)
}

/// Whether the second is the first once more.
fn coalesces(first: &Observation, second: &Observation) -> bool {
    let process = |observation: &Observation| {
        observation.actor.as_ref().ok().map(|actor| (actor.tgid, actor.start_boottime, actor.exe_inode))
    };
    second.operation == Operation::Write
        && first.operation == second.operation
        && first.slot == second.slot
        && first.inode == second.inode
        && first.name == second.name
        && first.path_in_fs == second.path_in_fs
        && process(first) == process(second)
}

/// The kernel calls the hook twice for one exchange of two names.
fn same_exchange(first: &Decoded, second: &Decoded) -> bool {
    let (one, two) = (&first.observation, &second.observation);
    let pid = |observation: &Observation| observation.actor.as_ref().ok().map(|actor| actor.pid);
    let to = |observation: &Observation| observation.renamed_to.as_ref().map(|to| to.name.clone());
    first.replaces
        && second.replaces
        && one.operation == Operation::Rename
        && two.operation == Operation::Rename
        && pid(one) == pid(two)
        && to(one) == two.name
        && to(two) == one.name
        && one.child_slot == two.replaced_slot
        && two.child_slot == one.replaced_slot
}
