//! Ctrl-C while a command works: it stops at the next object, says how far it came, and ends with 130.

use std::sync::Arc;

use crate::baseline::verify::Progress;

/// The exit status of a command that was interrupted, as of a shell's.
pub(super) const STATUS: u8 = 130;

/// From now on SIGINT asks `progress` to stop; a second one ends the process at once. Where the handler cannot be
/// installed, SIGINT ends it as always.
pub(super) fn stops(progress: &Arc<Progress>) {
    let progress = Arc::clone(progress);
    let wait = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            progress.stop.store(true, std::sync::atomic::Ordering::Relaxed);
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(i32::from(STATUS));
            }
        });
    };
    // Nobody waits for it: it ends with the process. Without it Ctrl-C ends the process, which harms nothing.
    if let Err(e) = std::thread::Builder::new().name("interrupt".into()).spawn(wait) {
        tracing::debug!("no thread to wait for Ctrl-C: {e}");
    }
}
