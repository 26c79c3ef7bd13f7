//! A kernel queue that a thread of its own reads, for the rungs that have one: how it waits, hands on, and ends.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::SensorEvent;

/// How long a full receiver is left alone.
pub(super) const SHORT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// The receiver is gone, or the sensor is to stop.
pub(super) struct Stopped;

/// The queue, and where what is read goes.
#[derive(Debug)]
pub(super) struct Queue {
    fd: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    tx: Sender<SensorEvent>,
}

impl Queue {
    /// Reads from `fd` until `stop` becomes readable.
    pub(super) fn new(fd: &Arc<OwnedFd>, stop: &Stop, tx: Sender<SensorEvent>) -> Self {
        Self { fd: Arc::clone(fd), stop: stop.descriptor(), tx }
    }

    /// The queue's descriptor.
    pub(super) fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Waits for events (`events`) or the time. Returns whether there are some.
    pub(super) fn wait(&self, timeout: Option<&Timespec>, events: bool) -> Result<bool, Stopped> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN),
        ];
        let watched = if events { 2 } else { 1 };
        match poll(&mut fds[..watched], timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return Err(Stopped),
        }
        if fds[0].revents().is_empty() { Ok(!fds[1].revents().is_empty()) } else { Err(Stopped) }
    }

    /// Waits while the receiver is full, but not past the end of the sensor.
    pub(super) fn send(&self, mut event: SensorEvent) -> Result<(), Stopped> {
        loop {
            match self.tx.try_send(event) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(Stopped),
                Err(TrySendError::Full(back)) => event = back,
            }
            self.wait(Some(&SHORT), false)?;
        }
    }
}

/// What the reader looks at wherever it waits.
#[derive(Debug)]
pub(super) struct Stop(Arc<OwnedFd>);

impl Stop {
    /// Not yet.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// What becomes readable when it is time to stop.
    pub(super) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    /// Starts the reader under that name; it ends when what is returned is dropped.
    pub(super) fn spawn(
        self,
        name: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<ReaderThread> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(ReaderThread { name, stop: self, thread: Some(thread) })
    }
}

/// The thread that reads. Dropping it tells it to stop, and waits for it.
#[derive(Debug)]
pub(super) struct ReaderThread {
    name: &'static str,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ReaderThread {
    fn drop(&mut self) {
        let reader = self.name;
        if let Err(error) = rustix::io::write(&self.stop.0, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, reader, "the reader cannot be told to stop");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(reader, "the reader had panicked");
        }
    }
}
