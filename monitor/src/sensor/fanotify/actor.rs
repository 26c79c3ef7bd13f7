//! Who did it: read from /proc as soon as the event is read, and only believed if it is the same process.
//!
//! With a pidfd in the event the pid cannot have been reused while that descriptor's process is alive. Without one
//! (before 5.15) the process must have started before the last moment the queue was seen empty.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::living::Living;
use super::parse::Pidfd;
use super::sys;
use crate::inventory::procs::{Proc, ProcError};
use crate::model::Actor;

/// Knows processes that are gone, for instance from exec tracepoints.
pub trait ActorSource: Send + Sync + std::fmt::Debug {
    /// The process that had this pid last.
    fn lookup(&self, pid: u32) -> Option<Actor>;
}

/// Why procfs does not tell who it was.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error("it exited before it could be read (pid {0})")]
    Gone(u32),
    #[error("pid {0} may have been reused since")]
    Reused(u32),
    /// It is not known which of the two programs acted: what is remembered of it may be the other.
    #[error(transparent)]
    Executed(ProcError),
}

/// Finds actors.
#[derive(Debug)]
pub(super) struct Actors {
    proc: Proc,
    source: Option<Arc<dyn ActorSource>>,
    living: Arc<Living>,
    /// The last one, for bursts of one process.
    last: Option<(Instant, Actor)>,
}

/// How long an actor is taken for what it was; one that executes something else meanwhile is told as before.
const FRESH: Duration = Duration::from_millis(10);

impl Actors {
    pub(super) fn new(proc: Proc, source: Option<Arc<dyn ActorSource>>, living: Arc<Living>) -> Self {
        Self { proc, source, living, last: None }
    }

    /// The actor of an event, or why it is not known. `quiet` is when (nanoseconds since boot) the queue was last
    /// seen empty: the event is younger.
    pub(super) fn find(&mut self, pid: i32, pidfd: &Pidfd, quiet: u64) -> Result<Box<Actor>, String> {
        let pid = match u32::try_from(pid) {
            Ok(0) | Err(_) => return Err("it runs in another pid namespace, or is a kernel thread".into()),
            Ok(pid) => pid,
        };
        let unknown = match self.live(pid, pidfd, quiet) {
            Ok(actor) => return Ok(actor),
            Err(unknown @ Unknown::Executed(_)) => return Err(unknown.to_string()),
            Err(unknown) => unknown,
        };
        let source = self.source.as_ref();
        let remembered = source.and_then(|source| source.lookup(pid));
        let remembered = remembered.or_else(|| self.living.lookup(pid, quiet));
        remembered.map(Box::new).ok_or_else(|| unknown.to_string())
    }

    fn read(&mut self, pid: u32) -> Result<Actor, ProcError> {
        if let Some((at, actor)) = &self.last
            && actor.pid == pid
            && at.elapsed() < FRESH
        {
            // One that was renamed, or executes something else, is read anew.
            let stat = self.proc.stat(pid)?;
            let same = stat.start_ticks == actor.start_boottime / self.proc.tick_ns();
            if same && stat.comm == actor.comm {
                return Ok(actor.clone());
            }
        }
        let actor = self.proc.actor(pid)?;
        self.last = Some((Instant::now(), actor.clone()));
        Ok(actor)
    }

    fn live(&mut self, pid: u32, pidfd: &Pidfd, quiet: u64) -> Result<Box<Actor>, Unknown> {
        if matches!(pidfd, Pidfd::Gone) {
            return Err(Unknown::Gone(pid));
        }
        let actor = self.read(pid).map_err(|error| match error {
            ProcError::Executed(_) => Unknown::Executed(error),
            _ => Unknown::Gone(pid),
        })?;
        match pidfd {
            Pidfd::Open(fd) if sys::pidfd_alive(fd.as_fd()) => Ok(Box::new(actor)),
            Pidfd::Unsupported if actor.start_boottime + self.proc.tick_ns() < quiet => Ok(Box::new(actor)),
            Pidfd::Unsupported => Err(Unknown::Reused(pid)),
            Pidfd::Open(_) | Pidfd::Gone => Err(Unknown::Gone(pid)),
        }
    }
}
