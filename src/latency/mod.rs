//! How long things take. A [`Histogram`] is written by one thread and read by any without a lock; a [`Compact`] one is small. They take
//! no memory until the first sample.

mod compact;
mod histogram;
mod scale;

use std::time::Duration;

pub use self::compact::Compact;
pub use self::histogram::Histogram;

/// How long something took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latency {
    /// The latest sample.
    pub last: Duration,
    /// Of all samples.
    pub total: Percentiles,
    /// Of those in a sliding window: the last 30 to 60 seconds; of pings, the last 64. Its count is zero if there were none.
    pub recent: Percentiles,
}

/// What so many percent of the samples do not exceed. Two digits are exact; round trips of pings are true to 6 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Percentiles {
    /// How many samples.
    pub count: u64,
    /// The median.
    pub p50: Duration,
    /// What 90 % of the samples do not exceed.
    pub p90: Duration,
    /// What 99 % of the samples do not exceed.
    pub p99: Duration,
    /// What 99.9 % of the samples do not exceed.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
}

impl Percentiles {
    /// Of cells that hold so many samples each and stand for growing values. No percentile exceeds `max`.
    fn of(counts: &[u64], value: impl Fn(usize) -> Duration, max: Duration) -> Self {
        let count: u64 = counts.iter().sum();
        let at = |quantile: f64| {
            let rank = ((count as f64 * quantile).ceil() as u64).max(1);
            let mut passed = 0;
            let cell = counts.iter().position(|samples| {
                passed += samples;
                passed >= rank
            });
            cell.map_or(max, |cell| value(cell).min(max))
        };
        Self { count, p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max }
    }
}
