//! Pauses that grow, each of them partly chance: a fleet of agents must not come back all at once.

use std::time::Duration;

use rand_core::{OsRng, RngCore as _};

/// Doubles from `least` to `most`.
#[derive(Debug)]
pub(super) struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) const fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, next: least }
    }

    /// All is well again.
    pub(super) const fn reset(&mut self) {
        self.next = self.least;
    }

    /// The next pause: between half of it and all of it.
    pub(super) fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.most);
        let half = whole / 2;
        half + half.mul_f64(f64::from(OsRng.next_u32()) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Backoff;

    #[test]
    fn pauses_grow_to_the_most_and_begin_anew() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(350));
        for whole in [100, 200, 350, 350] {
            let pause = backoff.pause();
            assert!((ms(whole / 2)..=ms(whole)).contains(&pause), "{pause:?} of {whole} ms");
        }
        backoff.reset();
        assert!(backoff.pause() <= ms(100));
    }
}
