//! The share of the disk that looks may have which nobody's act asks for: `scrub.ioBudget`.

use std::time::{Duration, Instant};

/// What may be saved up while nothing is read.
const BURST: Duration = Duration::from_secs(1);

/// A token bucket over bytes. A look is not cut in two: one that is larger than what is there puts the bucket into debt,
/// and the next waits until that is paid.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Bytes a second.
    rate: u64,
    /// Bytes that may be read now; below zero: in debt.
    room: i128,
    at: Instant,
}

impl Budget {
    pub(crate) fn new(rate: u64, now: Instant) -> Self {
        let rate = rate.max(1);
        Self { rate, room: bytes_in(rate, BURST), at: now }
    }

    /// Takes so many bytes.
    ///
    /// # Errors
    /// Not now: when to ask again.
    pub(crate) fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Instant> {
        let since = now.saturating_duration_since(self.at);
        self.room = self.room.saturating_add(bytes_in(self.rate, since)).min(bytes_in(self.rate, BURST));
        self.at = now;
        if self.room < 0 {
            let nanos = self.room.unsigned_abs().saturating_mul(1_000_000_000) / u128::from(self.rate);
            // A debt of years is no use to anyone: asked again sooner, it is still one.
            let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).saturating_add(1));
            return Err(now + wait.min(Duration::from_secs(3600)));
        }
        self.room = self.room.saturating_sub(i128::from(bytes));
        Ok(())
    }
}

fn bytes_in(rate: u64, time: Duration) -> i128 {
    let bytes = u128::from(rate).saturating_mul(time.as_nanos()) / 1_000_000_000;
    i128::try_from(bytes).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Budget;

    /// Everything asked for at once, by a clock of the test's own: how long it takes, and in how many steps.
    fn reads(rate: u64, looks: &[u64]) -> Duration {
        let start = Instant::now();
        let mut now = start;
        let mut budget = Budget::new(rate, now);
        for bytes in looks {
            while let Err(later) = budget.take(*bytes, now) {
                assert!(later > now);
                now = later;
            }
        }
        now - start
    }

    #[test]
    fn the_rate_holds_over_time_whatever_the_sizes() {
        const MIB: u64 = 1 << 20;
        let seconds = |looks: &[u64]| reads(10 * MIB, looks).as_secs_f64();
        // One second's worth may be saved up, and the last look goes into debt.
        assert!((seconds(&[MIB; 111]) - 10.0).abs() < 0.3, "{}", seconds(&[MIB; 111]));
        assert!((seconds(&[100 * MIB, 100 * MIB, 0]) - 19.0).abs() < 0.3);
        assert_eq!(reads(1, &[0; 1000]), Duration::ZERO);
    }

    #[test]
    fn idle_time_is_not_saved_up_for_ever() {
        let start = Instant::now();
        let mut budget = Budget::new(1000, start);
        let late = start + Duration::from_secs(1_000_000);
        assert_eq!(budget.take(1000, late), Ok(()));
        assert_eq!(budget.take(1, late), Ok(()));
        assert!(budget.take(1, late).is_err());
        assert_eq!(budget.take(1, late + Duration::from_millis(2)), Ok(()));
    }
}
