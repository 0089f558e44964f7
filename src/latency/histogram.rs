//! Two digits from 1 ns to an hour, in total and over a window of time.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::latency::scale::Scale;
use crate::latency::{Latency, Percentiles};

/// Samples of one kind.
///
/// One thread records at a time; were there two, samples would be lost. Any thread may ask for the summary meanwhile: what it reads may
/// lack samples of that instant, and part of a half of the window that is about to end.
///
/// From the first sample on it takes 2 KiB, and 3 more for each power of two of nanoseconds that samples fall into: 110 KiB at most.
#[derive(Default)]
pub struct Histogram(OnceLock<Box<Samples>>);

struct Samples {
    /// When the first of the periods, which take turns with the halves, began.
    begin: Instant,
    last: AtomicU64,
    total: Cells,
    halves: [Half; 2],
}

/// The samples of one period in two.
#[derive(Default)]
struct Half {
    /// The number of the period.
    period: AtomicU64,
    cells: Cells,
}

/// How many samples there were of which length, in nanoseconds.
struct Cells {
    blocks: [OnceLock<Box<Block>>; BLOCKS],
    max: AtomicU64,
}

/// The cells of a power of two.
type Block = [AtomicU64; BLOCK_LEN];

/// A cell is 1/128 to 1/256 of its values wide: two digits.
const SCALE: Scale = Scale { bits: 7 };

const BLOCK_LEN: usize = 1 << SCALE.bits;

const BLOCKS: usize = SCALE.cell(LONGEST.as_nanos() as u64) / BLOCK_LEN + 1;

/// The longest time that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(3600);

/// How long a half of the window gathers samples.
const PERIOD: Duration = Duration::from_secs(30);

impl Histogram {
    /// Adds a sample, which ended `now`. More than an hour counts as an hour.
    pub fn record(&self, now: Instant, sample: Duration) {
        let samples = self.0.get_or_init(|| Box::new(Samples::new(now)));
        let sample = sample.min(LONGEST).as_nanos() as u64;
        samples.last.store(sample, Ordering::Relaxed);
        samples.total.add(sample);
        samples.half(now).add(sample);
    }

    /// What the samples were, if there were any. The recent ones are all those of the last 30 seconds before `now`, and some that are
    /// older, none by more than another 30.
    pub fn summary(&self, now: Instant) -> Option<Latency> {
        let samples = self.0.get()?;
        // In this order, whatever is found in the window is found in the total too.
        let recent = percentiles(samples.recent(now));
        let total = percentiles([&samples.total]);
        let last = Duration::from_nanos(samples.last.load(Ordering::Relaxed));
        (total.count > 0).then_some(Latency { last, total, recent })
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").finish_non_exhaustive()
    }
}

impl Samples {
    fn new(begin: Instant) -> Self {
        Self { begin, last: AtomicU64::new(0), total: Cells::default(), halves: Default::default() }
    }

    /// Where samples of `now` go in the window; the writer's.
    fn half(&self, now: Instant) -> &Cells {
        let period = self.period(now);
        let half = &self.halves[(period % 2) as usize];
        // A clock that was read before another writer's may be a period behind; then nothing is cleared.
        if half.period.load(Ordering::Relaxed) < period {
            half.cells.clear();
            half.period.store(period, Ordering::Release);
        }
        &half.cells
    }

    /// The parts of the window that are not over.
    fn recent(&self, now: Instant) -> impl Iterator<Item = &Cells> {
        let period = self.period(now);
        let is_recent = move |half: &&Half| half.period.load(Ordering::Acquire) + 1 >= period;
        self.halves.iter().filter(is_recent).map(|half| &half.cells)
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begin).as_secs() / PERIOD.as_secs()
    }
}

impl Cells {
    /// Adds a sample; the writer's, who needs no atomic addition therefore.
    fn add(&self, sample: u64) {
        if sample > self.max.load(Ordering::Relaxed) {
            self.max.store(sample, Ordering::Relaxed);
        }
        let cell = SCALE.cell(sample);
        let block = self.blocks[cell / BLOCK_LEN].get_or_init(|| Box::new([const { AtomicU64::new(0) }; BLOCK_LEN]));
        let count = &block[cell % BLOCK_LEN];
        // Whoever sees the sample sees its maximum, and what was counted before.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Forgets all samples; the writer's.
    fn clear(&self) {
        for count in self.blocks.iter().filter_map(OnceLock::get).flat_map(|block| &block[..]) {
            count.store(0, Ordering::Relaxed);
        }
        self.max.store(0, Ordering::Relaxed);
    }

    fn add_to(&self, counts: &mut [u64]) {
        for (block, counts) in self.blocks.iter().zip(counts.chunks_exact_mut(BLOCK_LEN)) {
            for (cell, count) in block.get().into_iter().flat_map(|block| &block[..]).zip(counts) {
                *count += cell.load(Ordering::Acquire);
            }
        }
    }
}

impl Default for Cells {
    fn default() -> Self {
        Self { blocks: [const { OnceLock::new() }; BLOCKS], max: AtomicU64::new(0) }
    }
}

fn percentiles<'a>(parts: impl IntoIterator<Item = &'a Cells>) -> Percentiles {
    let mut counts = vec![0; BLOCKS * BLOCK_LEN];
    let mut max = 0;
    for cells in parts {
        cells.add_to(&mut counts);
        max = max.max(cells.max.load(Ordering::Relaxed));
    }
    // Cells and their maximum are not read at one instant: while they are cleared, it may be gone before them.
    let top = counts.iter().rposition(|&count| count > 0);
    let max = top.map_or(0, |cell| max.max(SCALE.lowest(cell)));
    let highest = |cell| Duration::from_nanos(SCALE.lowest(cell + 1) - 1);
    Percentiles::of(&counts, highest, Duration::from_nanos(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_whose_maximum_is_cleared_already_keeps_its_length() {
        let cells = Cells::default();
        cells.add(1000);
        cells.max.store(0, Ordering::Relaxed);
        let found = percentiles([&cells]);
        assert_eq!((found.count, found.p50, found.max), (1, Duration::from_nanos(1000), Duration::from_nanos(1000)));
    }

    #[test]
    fn a_maximum_whose_sample_is_not_counted_yet_is_no_sample() {
        let cells = Cells::default();
        cells.max.store(1000, Ordering::Relaxed);
        assert_eq!(percentiles([&cells]), Percentiles::default());
    }
}
