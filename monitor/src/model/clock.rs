//! From the kernel's boot clock, which its records and `/proc` tell times by, to wall-clock time.

use std::sync::atomic::{AtomicI64, Ordering};

use super::Time;

/// How far the offset may be off, in nanoseconds, before it is measured anew: the clock was set, or was slewed that far.
const OFF: u64 = 1_000_000;

/// Offset of the realtime clock from the boot clock, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    offset: i64,
}

impl Clock {
    /// The offset in force. It stays what it was as long as it is right to a millisecond: each measuring differs by some
    /// microseconds, and one process would seem to have started at another time in each record.
    #[must_use]
    pub fn now() -> Self {
        static IN_FORCE: AtomicI64 = AtomicI64::new(i64::MIN);
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boot = boot.tv_sec.saturating_mul(1_000_000_000).saturating_add(boot.tv_nsec);
        let measured = Time::now().0.saturating_sub(boot);
        let keep = |known: i64| (known.abs_diff(measured) > OFF).then_some(measured);
        match IN_FORCE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, keep) {
            Ok(_) => Self { offset: measured },
            Err(known) => Self { offset: known },
        }
    }

    /// One that adds this many nanoseconds.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) const fn with_offset(offset: i64) -> Self {
        Self { offset }
    }

    /// Wall-clock time of nanoseconds since boot.
    #[must_use]
    pub fn wall(self, boot: u64) -> Time {
        Time(self.offset.saturating_add(i64::try_from(boot).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn one_process_started_at_one_time() {
        // Measured each time, hardly two of so many would be equal.
        let offsets: Vec<Clock> = (0..1000).map(|_| Clock::now()).collect();
        let changes = offsets.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes <= 1, "{changes} changes in 1,000");
    }
}
