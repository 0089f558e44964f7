//! The redial ladder: at once, then `base · 2ⁿ` up to `max`, part of it drawn at random.

use std::time::Duration;

/// The pause before each dial after a failure.
#[derive(Debug)]
pub(crate) struct Backoff {
    base: Duration,
    max: Duration,
    jitter: f64,
    rung: u32,
    random: u64,
}

impl Backoff {
    /// A ladder at its start; `jitter` is the part of each pause that is drawn, from the sequence that `seed` begins.
    pub(crate) fn new(base: Duration, max: Duration, jitter: f64, seed: u64) -> Self {
        Self { base, max, jitter, rung: 0, random: seed }
    }

    /// The pause after the loss of a wire: none the first time, then a rung each.
    pub(crate) fn after_loss(&mut self) -> Duration {
        if self.rung == 0 {
            self.rung = 1;
            return Duration::ZERO;
        }
        self.after_failure()
    }

    /// The pause after a dial that failed; the dial itself was the immediate one.
    pub(crate) fn after_failure(&mut self) -> Duration {
        self.rung = self.rung.max(1);
        let full = self.exact(self.rung - 1);
        self.rung = self.rung.saturating_add(1);
        full.mul_f64(1.0 - self.jitter * self.draw())
    }

    /// A pause drawn from nothing up to the first rung.
    pub(crate) fn scatter(&mut self) -> Duration {
        self.base.mul_f64(self.jitter * self.draw())
    }

    /// Starts over.
    pub(crate) fn reset(&mut self) {
        self.rung = 0;
    }

    /// The pause of rung `n` without jitter.
    fn exact(&self, n: u32) -> Duration {
        let factor = 1_u32.checked_shl(n).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }

    /// The next number of the seed's sequence, in 0..1 (SplitMix64, whose every seed is a good one).
    fn draw(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn exact(base: Duration, max: Duration, n: u32) -> Duration {
        Backoff::new(base, max, 0.0, 0).exact(n)
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let delay = |n| exact(ms(1000), ms(30_000), n);
        assert_eq!([0, 1, 2, 3, 10, 20].map(delay), [1000, 2000, 4000, 8000, 30_000, 30_000].map(ms));
        assert_eq!(exact(ms(1000), ms(5000), 10), ms(5000));
        assert_eq!([0, 5].map(|n| exact(ms(1), ms(30_000), n)), [ms(1), ms(32)]);
    }

    #[test]
    fn ten_thousand_failures_do_not_overflow() {
        assert_eq!(exact(ms(1000), ms(30_000), 10_000), ms(30_000));
        let mut backoff =
            Backoff { rung: u32::MAX, ..Backoff::new(Duration::from_secs(86_400), Duration::from_secs(86_401), 0.0, 0) };
        assert_eq!(backoff.after_failure(), Duration::from_secs(86_401));
        assert_eq!(backoff.rung, u32::MAX);
    }

    #[test]
    fn the_first_loss_is_redialled_at_once_and_the_next_after_a_pause() {
        let mut backoff = Backoff::new(ms(100), ms(1000), 0.0, 0);
        assert_eq!([backoff.after_loss(), backoff.after_loss(), backoff.after_failure()], [ms(0), ms(100), ms(200)]);
        backoff.reset();
        assert_eq!([backoff.after_loss(), backoff.after_failure()], [ms(0), ms(100)]);
    }

    #[test]
    fn a_thousand_connections_spread_over_the_drawn_half() {
        let mut pauses: Vec<_> = (0..1000).map(|seed| Backoff::new(ms(1000), ms(30_000), 0.5, seed).after_failure()).collect();
        pauses.sort();
        assert!(pauses[0] >= ms(500) && pauses[999] <= ms(1000));
        // Uniform over 500 ms: the quartiles lie within 50 ms of their places.
        for (index, place) in [(250, 625), (500, 750), (750, 875)] {
            assert!(pauses[index].abs_diff(ms(place)) < ms(50), "{:?}", pauses[index]);
        }
    }

    #[test]
    fn a_seed_repeats_its_pauses() {
        let ladder = |seed| {
            let mut backoff = Backoff::new(ms(1000), ms(30_000), 0.5, seed);
            [(); 5].map(|()| backoff.after_failure())
        };
        assert_eq!(ladder(7), ladder(7));
        assert_ne!(ladder(7), ladder(8));
    }
}
