//! Histograms: beside hdrhistogram's, over time, under a reader, in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use hdrhistogram::Histogram as Reference;
use proptest::prelude::*;
use zen_websocket::internals::{Compact, Histogram};
use zen_websocket::{Latency, Percentiles};

const SEC: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn without_a_sample_there_is_nothing_to_say_and_nothing_allocated() {
    let info = measure(|| {
        assert_eq!(Histogram::default().summary(Instant::now()), None);
        assert_eq!(Compact::default().summary(), None);
    });
    assert_eq!(info.count_total, 0);
    assert!(size_of::<Histogram>() <= 16 && size_of::<Compact>() <= 16);
}

#[test]
fn a_sample_is_last_longest_and_every_percentile() {
    let now = Instant::now();
    let sample = Duration::from_nanos(123_456_789);
    let histogram = Histogram::default();
    histogram.record(now, sample);
    let latency = histogram.summary(now).unwrap();
    assert_eq!((latency.last, latency.recent), (sample, latency.total));
    let Percentiles { count, p50, p90, p99, p999, max, .. } = latency.total;
    assert_eq!((count, [p50, p90, p99, p999, max]), (1, [sample; 5]));
}

#[test]
fn a_million_samples_are_exact_to_two_digits() {
    let now = Instant::now();
    let histogram = Histogram::default();
    (1..=1_000_000).map(Duration::from_micros).for_each(|sample| histogram.record(now, sample));
    let Percentiles { count, p50, p90, p99, p999, max, .. } = histogram.summary(now).unwrap().total;
    assert_eq!((count, max), (1_000_000, SEC));
    for (found, expected) in [(p50, 500), (p90, 900), (p99, 990), (p999, 999)] {
        assert!(found.abs_diff(expected * MILLI) * 100 <= expected * MILLI, "{found:?} instead of {expected} ms");
    }
}

#[test]
fn what_takes_longer_than_an_hour_counts_as_an_hour() {
    let now = Instant::now();
    let histogram = Histogram::default();
    histogram.record(now, Duration::MAX);
    let Latency { last, total, .. } = histogram.summary(now).unwrap();
    assert_eq!((last, total.p50, total.max), (HOUR, HOUR, HOUR));
}

#[test]
fn the_window_forgets_by_halves_and_the_total_never() {
    let begin = Instant::now();
    let histogram = Histogram::default();
    let mut counts = Vec::new();
    for seconds in (0..=120).step_by(10) {
        let now = begin + seconds * SEC;
        histogram.record(now, seconds * MILLI);
        let latency = histogram.summary(now).unwrap();
        counts.push((latency.total.count, latency.recent.count));
    }
    let expected = [1, 2, 3, 4, 5, 6, 4, 5, 6, 4, 5, 6, 4];
    assert_eq!(counts, (1..).zip(expected).collect::<Vec<_>>());
}

#[test]
fn without_new_samples_the_window_runs_empty() {
    let begin = Instant::now();
    let histogram = Histogram::default();
    histogram.record(begin, MILLI);
    histogram.record(begin + 40 * SEC, 2 * MILLI);
    let recent = |seconds: u32| {
        let recent = histogram.summary(begin + seconds * SEC).unwrap().recent;
        (recent.count, recent.max)
    };
    assert_eq!([40, 60, 89].map(recent), [(2, 2 * MILLI), (1, 2 * MILLI), (1, 2 * MILLI)]);
    assert_eq!(histogram.summary(begin + 90 * SEC).unwrap().recent, Percentiles::default());
}

#[test]
fn after_a_pause_the_window_begins_anew() {
    let begin = Instant::now();
    let histogram = Histogram::default();
    histogram.record(begin, HOUR);
    histogram.record(begin + 30 * SEC, HOUR);
    for (pause, count) in [(HOUR, 1), (HOUR + 30 * SEC, 2)] {
        histogram.record(begin + pause, MILLI);
        let recent = histogram.summary(begin + pause).unwrap().recent;
        assert_eq!((recent.count, recent.p50, recent.max), (count, MILLI, MILLI));
    }
}

#[test]
fn a_clock_that_was_read_earlier_clears_nothing() {
    let begin = Instant::now();
    let histogram = Histogram::default();
    for seconds in [0, 60, 31, 29, 0] {
        histogram.record(begin + seconds * SEC, MILLI);
    }
    assert_eq!(histogram.summary(begin + 60 * SEC).unwrap().recent.count, 4);
}

#[test]
fn a_reader_sees_counts_grow_while_another_thread_writes() {
    const WRITTEN: u64 = 300_000;
    const INTERVAL: Duration = Duration::from_millis(100);
    let begin = Instant::now();
    let histogram = Histogram::default();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..WRITTEN {
                // A half of the window ends every 300 samples.
                let sample = Duration::from_nanos(1 << (number % 40));
                histogram.record(begin + number as u32 * INTERVAL, sample);
            }
            is_done.store(true, Ordering::Release);
        });
        let mut seen = 0;
        while !is_done.load(Ordering::Acquire) {
            let Some(Latency { total, recent, .. }) = histogram.summary(begin + seen as u32 * INTERVAL) else { continue };
            assert!(total.count >= seen, "{} after {seen}", total.count);
            seen = total.count;
            assert!(recent.count <= total.count);
            assert!(is_sound(&total) && is_sound(&recent), "{total:?}, {recent:?}");
        }
    });
    let end = begin + WRITTEN as u32 * INTERVAL;
    assert_eq!(histogram.summary(end).unwrap().total.count, WRITTEN);
}

#[test]
fn a_narrow_spread_takes_a_few_kibibytes() {
    let (now, histogram) = (Instant::now(), Histogram::default());
    let info = measure(|| {
        for number in 0..100_000 {
            let sample = Duration::from_micros(u64::from(30 + number % 30));
            histogram.record(now + number * MILLI, sample);
        }
    });
    assert!(info.bytes_current <= 8 << 10, "{info:?}");
}

#[test]
fn a_compact_one_takes_a_kibibyte_at_most() {
    let mut compact = Compact::default();
    let info = measure(|| (0..100_000_000).step_by(1000).map(Duration::from_micros).for_each(|sample| compact.record(sample)));
    let bytes = size_of::<Compact>() + usize::try_from(info.bytes_current).unwrap();
    assert!(bytes <= 1024, "{bytes}");
}

#[test]
fn of_a_compact_one_the_latest_64_are_recent() {
    let mut compact = Compact::default();
    for count in 1..=200 {
        compact.record(if count <= 100 { SEC } else { 10 * MILLI });
        let Latency { total, recent, .. } = compact.summary().unwrap();
        assert_eq!((total.count, recent.count), (count, count.min(64)));
    }
    let Latency { last, total, recent, .. } = compact.summary().unwrap();
    assert_eq!((last, total.max), (10 * MILLI, SEC));
    assert!(
        is_close(recent.max, 10 * MILLI) && is_close(total.p50, 10 * MILLI) && is_close(total.p90, SEC),
        "{recent:?}, {total:?}"
    );
}

#[test]
fn more_than_64_seconds_count_as_64_in_a_compact_one() {
    let mut compact = Compact::default();
    compact.record(Duration::MAX);
    let Latency { last, total, .. } = compact.summary().unwrap();
    assert_eq!((last, total.max), (64 * SEC, 64 * SEC));
}

proptest! {
    #[test]
    fn percentiles_are_those_of_hdrhistogram(samples in samples()) {
        let now = Instant::now();
        let histogram = Histogram::default();
        let mut reference = Reference::<u64>::new_with_max(HOUR.as_nanos() as u64, 2).unwrap();
        for &sample in &samples {
            histogram.record(now, Duration::from_nanos(sample));
            reference.record(sample).unwrap();
        }
        let Latency { last, total, recent, .. } = histogram.summary(now).unwrap();
        prop_assert_eq!(recent, total);
        prop_assert_eq!(total.count, reference.len());
        prop_assert_eq!(last, Duration::from_nanos(samples[samples.len() - 1]));
        prop_assert_eq!(total.max, Duration::from_nanos(*samples.iter().max().unwrap()));
        for (quantile, found) in quantiles(&total) {
            let expected = Duration::from_nanos(reference.value_at_quantile(quantile)).min(total.max);
            prop_assert_eq!(found, expected, "at {}", quantile);
        }
    }

    #[test]
    fn a_compact_one_is_true_to_6_percent(samples in samples()) {
        let mut compact = Compact::default();
        samples.iter().map(|&sample| Duration::from_nanos(sample)).for_each(|sample| compact.record(sample));
        let Latency { total, recent, .. } = compact.summary().unwrap();
        prop_assert!(recent.max <= total.max);
        let latest = &samples[samples.len().saturating_sub(64)..];
        for (percentiles, samples) in [(total, &samples[..]), (recent, latest)] {
            let mut sorted = samples.to_vec();
            sorted.sort_unstable();
            for (quantile, found) in quantiles(&percentiles).into_iter().chain([(1.0, percentiles.max)]) {
                let rank = (sorted.len() as f64 * quantile).ceil() as usize;
                let exact = Duration::from_nanos(sorted[rank - 1]).min(64 * SEC);
                prop_assert!(is_close(found, exact), "{:?} instead of {:?} at {}", found, exact, quantile);
            }
        }
    }

    #[test]
    fn recent_are_all_of_30_seconds_and_none_before_60(pauses in prop::collection::vec(0_u32..100_000, 1..50)) {
        let (begin, histogram) = (Instant::now(), Histogram::default());
        let (mut now, mut times) = (begin, Vec::new());
        for pause in pauses {
            // Many short ones, few long.
            now += MILLI * if pause < 90_000 { pause / 20 } else { pause };
            let since = |age: u32| times.iter().filter(|&&time| now.duration_since(time) <= age * SEC).count() as u64;
            let (least, most) = (since(30), since(60));
            let found = histogram.summary(now).map_or(0, |latency| latency.recent.count);
            prop_assert!((least..=most).contains(&found), "{} of {} to {}", found, least, most);
            histogram.record(now, MILLI);
            times.push(now);
        }
    }
}

fn samples() -> impl Strategy<Value = Vec<u64>> {
    let hour = HOUR.as_nanos() as u64;
    let any_size = (0..42_u32, any::<u64>()).prop_map(move |(bits, value)| (value >> (63 - bits)).min(hour));
    let corner = prop::sample::select(vec![0, 1, 127, 128, 255, 256, 1_000_000_000, hour - 1, hour]);
    prop::collection::vec(prop_oneof![8 => any_size, 1 => corner], 1..1000)
}

fn quantiles(percentiles: &Percentiles) -> [(f64, Duration); 4] {
    [(0.5, percentiles.p50), (0.9, percentiles.p90), (0.99, percentiles.p99), (0.999, percentiles.p999)]
}

fn is_sound(percentiles: &Percentiles) -> bool {
    let Percentiles { count, p50, p90, p99, p999, max, .. } = *percentiles;
    (count == 0) == p50.is_zero() && p50 <= p90 && p90 <= p99 && p99 <= p999 && p999 <= max
}

/// To 6.25 %, the half of an eighth, or to a microsecond.
fn is_close(found: Duration, exact: Duration) -> bool {
    found.abs_diff(exact) <= (exact / 16).max(Duration::from_micros(1))
}
