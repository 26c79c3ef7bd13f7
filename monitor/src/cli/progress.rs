//! How far a long command is, on stderr, if that is a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::baseline::verify::Progress;

/// What is done sooner shows nothing.
const FIRST: Duration = Duration::from_millis(500);
const EVERY: Duration = Duration::from_millis(200);

/// The line, while it is there; dropping it wipes it.
pub(super) struct Line {
    running: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Line {
    /// Shows how far `progress` is on the way to so many objects and bytes.
    pub(super) fn show(progress: &Arc<Progress>, objects: usize, bytes: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { running: None };
        }
        let progress = Arc::clone(progress);
        let (sender, receiver) = sync_channel::<()>(0);
        let draw = move || {
            let started = Instant::now();
            let mut wait = FIRST;
            while receiver.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let text = text(&progress, objects, bytes, started.elapsed());
                // Nobody to tell, then.
                let _unseen = write!(std::io::stderr().lock(), "\r\x1b[K{text}");
                wait = EVERY;
            }
            if wait == EVERY {
                let _unseen = write!(std::io::stderr().lock(), "\r\x1b[K");
            }
        };
        let thread = std::thread::Builder::new().name("progress".into()).spawn(draw);
        Self { running: thread.ok().map(|thread| (sender, thread)) }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.running.take() {
            drop(sender);
            // It can only have ended.
            let _ended = thread.join();
        }
    }
}

fn text(progress: &Progress, objects: usize, bytes: u64, since: Duration) -> String {
    let (done, read) = (progress.objects.load(Ordering::Relaxed), progress.bytes.load(Ordering::Relaxed));
    let percent = match bytes {
        0 => done.saturating_mul(100).checked_div(objects).unwrap_or(0) as u64,
        _ => read.saturating_mul(100) / bytes,
    };
    format!(
        "{done} of {objects} objects, {} of {} MiB, {percent} %, {} s",
        read >> 20,
        bytes >> 20,
        since.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_objects_and_bytes() {
        let progress = Progress::default();
        progress.objects.store(5, Ordering::Relaxed);
        progress.bytes.store(3 << 20, Ordering::Relaxed);
        let line = text(&progress, 10, 12 << 20, Duration::from_secs(7));
        assert_eq!(line, "5 of 10 objects, 3 of 12 MiB, 25 %, 7 s");
        assert_eq!(text(&progress, 10, 0, Duration::ZERO), "5 of 10 objects, 3 of 0 MiB, 50 %, 0 s");
    }
}
