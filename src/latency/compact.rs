//! The round trips of pings in a few hundred bytes: every connection has them.

use std::time::Duration;

use crate::latency::scale::Scale;
use crate::latency::{Latency, Percentiles};

/// Few samples of one kind: to 6 %, or to half a microsecond below eight. Only the latest and the longest of all are exact.
///
/// Takes 100 bytes from the first sample on, four more for each cell that samples fall into, and 1 KiB at most.
#[derive(Clone, Debug, Default)]
pub struct Compact(Option<Box<Samples>>);

#[derive(Clone, Debug, Default)]
struct Samples {
    /// In nanoseconds.
    last: u64,
    max: u64,
    /// Each cell that has samples, in order: its number in the highest byte, below it how many, up to [`COUNT_MAX`].
    cells: Vec<u32>,
    /// The cells of the latest samples: a ring.
    window: Vec<u8>,
    /// Where the next one goes.
    next: u8,
}

/// Of microseconds.
const SCALE: Scale = Scale { bits: 3 };

const CELLS: usize = SCALE.cell(LONGEST.as_micros() as u64) + 1;

/// A cell is a byte.
const _: () = assert!(CELLS <= 1 << u8::BITS);

/// The longest time that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(64);

/// How many samples a cell counts: those of 15 years at a ping every 30 seconds.
const COUNT_MAX: u32 = (1 << 24) - 1;

/// How many samples are recent.
const WINDOW: usize = 64;

/// By how much the lists grow.
const STEP: usize = 4;

impl Compact {
    /// Adds a sample. More than 64 seconds count as 64 seconds.
    pub fn record(&mut self, sample: Duration) {
        let samples = self.0.get_or_insert_default();
        let sample = sample.min(LONGEST);
        samples.last = sample.as_nanos() as u64;
        samples.max = samples.max.max(samples.last);
        let cell = SCALE.cell(sample.as_micros() as u64) as u8;
        samples.count(cell);
        samples.note(cell);
    }

    /// What the samples were, if there were any. The latest 64 are recent.
    pub fn summary(&self) -> Option<Latency> {
        let Samples { last, max, cells, window, .. } = &**self.0.as_ref()?;
        let (mut total, mut recent) = ([0; CELLS], [0; CELLS]);
        cells.iter().for_each(|entry| total[(entry >> 24) as usize] = u64::from(entry & COUNT_MAX));
        window.iter().for_each(|cell| recent[usize::from(*cell)] += 1);
        let longest = window.iter().max().map_or(Duration::ZERO, |cell| middle((*cell).into()));
        let (last, max) = (Duration::from_nanos(*last), Duration::from_nanos(*max));
        let (total, recent) = (Percentiles::of(&total, middle, max), Percentiles::of(&recent, middle, longest.min(max)));
        Some(Latency { last, total, recent })
    }

    /// The latest sample.
    pub fn last(&self) -> Option<Duration> {
        self.0.as_ref().map(|samples| Duration::from_nanos(samples.last))
    }
}

impl Samples {
    fn count(&mut self, cell: u8) {
        let entry = u32::from(cell) << 24 | 1;
        match self.cells.binary_search_by_key(&cell, |entry| (entry >> 24) as u8) {
            Ok(place) if self.cells[place] & COUNT_MAX == COUNT_MAX => {}
            Ok(place) => self.cells[place] += 1,
            Err(place) => {
                if self.cells.len() == self.cells.capacity() {
                    self.cells.reserve_exact(STEP);
                }
                self.cells.insert(place, entry);
            }
        }
    }

    fn note(&mut self, cell: u8) {
        if self.window.len() == WINDOW {
            self.window[usize::from(self.next)] = cell;
            self.next = (self.next + 1) % WINDOW as u8;
            return;
        }
        if self.window.len() == self.window.capacity() {
            self.window.reserve_exact(STEP);
        }
        self.window.push(cell);
    }
}

/// What no value of the cell is farther from than 6 %.
fn middle(cell: usize) -> Duration {
    Duration::from_micros(SCALE.lowest(cell) + SCALE.lowest(cell + 1)) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_is_full_stays_so() {
        let mut samples = Samples::default();
        samples.count(3);
        samples.cells[0] |= COUNT_MAX;
        samples.count(3);
        assert_eq!(samples.cells, [3 << 24 | COUNT_MAX]);
    }
}
