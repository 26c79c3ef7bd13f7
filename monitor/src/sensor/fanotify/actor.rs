//! Who did it: read from /proc as soon as the event is read, and only believed if it is the same process.
//!
//! With a pidfd in the event the pid cannot have been reused while that descriptor's process is alive. Without one
//! (before 5.15) the process must have started before the last moment the queue was seen empty.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::parse::Pidfd;
use super::sys;
use crate::inventory::procs::{Proc, ProcError};
use crate::model::Actor;

/// Knows processes that are gone, for instance from exec tracepoints.
pub trait ActorSource: Send + Sync + std::fmt::Debug {
    /// The process that had this pid last.
    fn lookup(&self, pid: u32) -> Option<Actor>;
}

/// Finds actors.
#[derive(Debug)]
pub(super) struct Actors {
    proc: Proc,
    source: Option<Arc<dyn ActorSource>>,
    /// The last one, for bursts of one process.
    last: Option<(Instant, Actor)>,
}

/// How long an actor is taken for what it was; one that executes something else meanwhile is told as before.
const FRESH: Duration = Duration::from_millis(10);

impl Actors {
    pub(super) fn new(proc: Proc, source: Option<Arc<dyn ActorSource>>) -> Self {
        Self { proc, source, last: None }
    }

    /// The actor of an event, or why it is not known. `quiet` is when (nanoseconds since boot) the queue was last
    /// seen empty: the event is younger.
    pub(super) fn find(&mut self, pid: i32, pidfd: &Pidfd, quiet: u64) -> Result<Box<Actor>, String> {
        let pid = match u32::try_from(pid) {
            Ok(0) | Err(_) => return Err("it runs in another pid namespace, or is a kernel thread".into()),
            Ok(pid) => pid,
        };
        self.live(pid, pidfd, quiet).or_else(|reason| {
            let gone = self.source.as_ref().and_then(|source| source.lookup(pid));
            gone.map(Box::new).ok_or(reason)
        })
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

    fn live(&mut self, pid: u32, pidfd: &Pidfd, quiet: u64) -> Result<Box<Actor>, String> {
        let gone = || format!("it exited before it could be read (pid {pid})");
        if matches!(pidfd, Pidfd::Gone) {
            return Err(gone());
        }
        let actor = self.read(pid).map_err(|error| match error {
            ProcError::Executed(_) => error.to_string(),
            _ => gone(),
        })?;
        match pidfd {
            Pidfd::Open(fd) if sys::pidfd_alive(fd.as_fd()) => Ok(Box::new(actor)),
            Pidfd::Unsupported if actor.start_boottime + self.proc.tick_ns() < quiet => Ok(Box::new(actor)),
            Pidfd::Unsupported => Err(format!("pid {pid} may have been reused since")),
            Pidfd::Open(_) | Pidfd::Gone => Err(gone()),
        }
    }
}
