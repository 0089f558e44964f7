//! How long things take: histograms that cost nothing until the first sample.

use std::time::Duration;

/// The longest time that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(3600);

/// How long something took, over all samples. Two digits are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latency {
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

/// Samples of one kind. Takes memory, about 30 KiB, from the first on.
#[derive(Debug, Default)]
pub struct Histogram(Option<Box<hdrhistogram::Histogram<u64>>>);

impl Histogram {
    /// Adds a sample.
    pub fn record(&mut self, sample: Duration) {
        let longest = LONGEST.as_nanos() as u64;
        let make = || Box::new(hdrhistogram::Histogram::new_with_max(longest, 2).expect("the bounds are constants"));
        self.0.get_or_insert_with(make).saturating_record(sample.as_nanos().min(u128::from(longest)) as u64);
    }

    /// What the samples were, if there were any.
    pub fn summary(&self) -> Option<Latency> {
        let histogram = self.0.as_ref()?;
        let at = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
        Some(Latency {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: Duration::from_nanos(histogram.max()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_sample_there_is_nothing_to_say() {
        assert_eq!(Histogram::default().summary(), None);
    }

    #[test]
    fn percentiles_are_exact_to_two_digits() {
        let mut histogram = Histogram::default();
        (1..=1000).map(Duration::from_micros).for_each(|sample| histogram.record(sample));
        let Latency { count, p50, p90, p99, p999, max } = histogram.summary().unwrap();
        assert_eq!(count, 1000);
        for (found, expected) in [(p50, 500), (p90, 900), (p99, 990), (p999, 999), (max, 1000)] {
            let error = found.abs_diff(Duration::from_micros(expected));
            assert!(error * 100 <= Duration::from_micros(expected), "{found:?} instead of {expected} µs");
        }
    }

    #[test]
    fn what_takes_longer_than_an_hour_counts_as_an_hour() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        let max = histogram.summary().unwrap().max;
        assert!(max.abs_diff(LONGEST) < LONGEST / 100, "{max:?}");
    }
}
