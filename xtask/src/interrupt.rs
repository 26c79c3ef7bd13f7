//! Ctrl-C and SIGTERM: noted, so that whatever was started is taken down before the run ends.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

static SIGNAL: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    SIGNAL.store(signal, Ordering::SeqCst);
}

/// From here on these signals no longer end the process; [`check`] tells of them.
pub(crate) fn catch() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler: extern "C" fn(libc::c_int) = note;
        // SAFETY: the handler does nothing but store to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// The signal that came, if one came.
pub(crate) fn signal() -> Option<i32> {
    match SIGNAL.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(signal),
    }
}

/// An error once a signal has come.
pub(crate) fn check() -> Result<()> {
    if let Some(signal) = signal() {
        bail!("stopped by signal {signal}");
    }
    Ok(())
}

/// Asks again and again until the answer is `Some`; `what` and the last reason given are told when the time is up.
pub(crate) fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        check()?;
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(reason) if start.elapsed() > limit => {
                bail!("gave up after {} s on: {what}: {reason:#}", limit.as_secs());
            }
            Err(_) => pause(250),
        }
    }
}

/// Some milliseconds between two looks at something that nobody tells of: another program's readiness, a process that is not a child.
#[expect(
    clippy::disallowed_methods,
    reason = "neither a daemon's readiness nor the end of a foreign process can be waited for"
)]
pub(crate) fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
