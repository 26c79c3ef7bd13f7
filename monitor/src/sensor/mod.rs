//! Sources of observations: the ladder `lsm` · `fentry` · `fanotify` · `inotify`, behind one trait.
//!
//! A sensor knows inodes by [`Slot`]; the judge gives the numbers out and knows which object each one is.

#[cfg(test)]
mod alone;
pub mod btf;
mod canary;
pub mod exec_cache;
pub mod fanotify;
pub mod hooks;
pub mod inotify;
pub mod none;
mod pins;
mod queue;
mod tempdir;

use std::os::fd::BorrowedFd;

use crate::model::{
    Coverage, Family, HostPath, InodeKey, Observation, Rung, SensorBody, Slot, Time, WatchKind,
};

/// What a sensor sends, in the order it read it.
#[derive(Debug)]
pub enum SensorEvent {
    /// Something was done to a watched inode.
    Observed(Box<Observation>),
    /// Something was done while no agent ran, or before this one watched it: told by host path, because slots were another
    /// agent's.
    Earlier { observation: Box<Observation>, path: HostPath, to: Option<HostPath> },
    /// This slot must be verified again: it is marked in the kernel but not in the ring (after a loss, with the counters' own word on how many
    /// events there were); or inotify has seen something come to pass, which hooks tell of before, if at all.
    Dirty { slot: Slot, events: u64 },
    /// Whoever had it open for writing closed it: it must be verified again. Some ways to write pass no hook (process accounting, an exchange of
    /// extents through another file), and what passes one may come to pass long after it.
    Closed { slot: Slot },
    /// Events were lost. `slots` is `None` when anything may be concerned.
    Lost { at: &'static str, lost: u64, reason: String, slots: Option<Vec<Slot>>, time: Time },
    /// A family went blind or came back.
    Health(Health),
}

/// Which hooks live and what the sensor does not see.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// The rung.
    pub rung: Rung,
    /// One entry for each hook (or mark) in place.
    pub hooks: Vec<Hook>,
    /// What is not seen, for people and `blind_to`: family names, with a reason after a colon where it helps.
    pub blind_to: Vec<String>,
}

impl Health {
    /// `full` on the best rung with everything alive.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        if self.rung == Rung::Lsm && self.blind_to.is_empty() { Coverage::Full } else { Coverage::Reduced }
    }

    /// How many hooks ought to be live and are not.
    #[must_use]
    pub fn dead(&self) -> usize {
        self.hooks.iter().filter(|hook| !hook.live).count()
    }

    /// What a record says of it.
    #[must_use]
    pub fn body(&self, reason: String) -> SensorBody {
        SensorBody {
            rung: self.rung,
            hooks: self.hooks.iter().filter(|hook| hook.live).map(|hook| hook.name.clone()).collect(),
            families_blind: self.blind_to.clone(),
            reason,
        }
    }
}

/// What canaries showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Proven {
    /// What is live now.
    pub health: Health,
    /// A tag that was set when the sensor started is gone: others may be too.
    pub tags_lost: bool,
    /// Hooks that somebody detached, which were attached anew and are seen to work.
    pub revived: Vec<(String, Lapse)>,
    /// Something was attached anew just now, and is to be proven soon.
    pub again: bool,
}

impl Proven {
    /// Only what is live.
    #[must_use]
    pub const fn of(health: Health) -> Self {
        Self { health, tags_lost: false, revived: Vec::new(), again: false }
    }
}

/// A time in which a hook was dead, and how it came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lapse {
    /// When it was last seen to work before; unknown where no canary proves it.
    pub dead_since: Option<Time>,
    /// When it was first seen to work again.
    pub live_since: Time,
    /// How often it was attached for that.
    pub tries: u32,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Hook {
    /// Kernel name of the hook.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// Attached, and its canary was seen.
    pub live: bool,
    /// When its canary was last seen.
    pub last_canary: Option<Time>,
    /// The last time that somebody detached it and it was attached anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lapse: Option<Lapse>,
}

/// Why an inode could not be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No slot or no pin left: the limit, and who sets it.
    #[error("{what} exhausted ({limit})")]
    Exhausted { what: &'static str, limit: String },
    /// The kernel refused.
    #[error("{call}: {source}")]
    Kernel { call: &'static str, source: std::io::Error },
    /// The file system cannot be watched on this rung.
    #[error("file system cannot be watched on this rung: {0}")]
    Unsupported(String),
}

/// Whether an inode is still watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// It is.
    Yes,
    /// It was watched under another slot since (it has two names), which was given up.
    Outdated,
    /// Somebody else took away what it is watched by.
    Taken,
}

/// A live sensor. Dropping it detaches what is not pinned.
pub trait Sensor: Send + std::fmt::Debug {
    /// Which rung this is.
    fn rung(&self) -> Rung;

    /// Starts watching the inode behind `fd` (`O_PATH` is enough) under `slot`, and pins it. Watching an inode
    /// again under another slot moves it. `path` is for messages only.
    ///
    /// # Errors
    /// The inode is not watched; the caller counts and reports it.
    fn watch(
        &mut self,
        fd: BorrowedFd<'_>,
        slot: Slot,
        kind: WatchKind,
        path: &HostPath,
    ) -> Result<(), WatchError>;

    /// What observations of this sensor know the inode behind `fd` by, of which `statx` tells `stat`.
    fn knows_as(&self, _fd: BorrowedFd<'_>, stat: InodeKey) -> InodeKey {
        stat
    }

    /// Whether the inode behind `fd`, watched under `slot`, still is, as far as this sensor can tell.
    fn stands(&self, _fd: BorrowedFd<'_>, _slot: Slot) -> Stands {
        Stands::Yes
    }

    /// Stops watching what stands under `slot`. Unknown slots are ignored.
    fn unwatch(&mut self, slot: Slot);

    /// Inodes that are watched now because the judge asked for it, or because they inherited it, as far as the agent keeps
    /// them itself.
    fn watched(&self) -> u64;

    /// Asks that opening this slot's inodes for reading be counted from now on (a violated object: a heal must not
    /// hide that a proxy read it), or no longer. Returns how often that happened since this was last asked, or `None`
    /// where this rung cannot tell.
    fn count_reads(&mut self, slot: Slot, on: bool) -> Option<u64>;

    /// Everything is watched: what an agent before this one left running may go.
    fn relieve(&mut self) {}

    /// Begins a proof that what is attached works: acts once for each family, in a directory of the agent's own.
    /// [`Sensor::proven`] tells what came of it.
    fn prove(&mut self);

    /// What the proof begun last showed. `None` as long as something is still to be seen, unless it is asked for the
    /// `last` time; and where no proof was begun.
    fn proven(&mut self, last: bool) -> Option<Proven>;

    /// What is live now.
    fn health(&self) -> Health;
}
