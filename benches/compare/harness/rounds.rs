//! Interleaved rounds, and what is concluded from them.

use hdrhistogram::Histogram;

use crate::harness::contender::{Contender, Style};
use crate::harness::goal::Goal;

/// Rounds of a cell that decides whether a target is reached.
pub(crate) const MANY: usize = 21;
/// Rounds of other cells.
pub(crate) const FEW: usize = 5;

/// What messages are measured with, and the size that goals are about.
pub(crate) const SIZES: [Size; 4] = [Size("64 B", 64), SIZE, Size("1 KiB", 1 << 10), Size("16 KiB", 16 << 10)];
pub(crate) const SIZE: Size = Size("200 B", 200);

/// A size of messages: its name, and how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) &'static str, pub(crate) usize);

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Nanoseconds,
    PerSecond,
    /// Of a core: 1 is all of it.
    Share,
}

/// A figure that a round yields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
}

/// One contender's turn in a round.
pub(crate) struct Turn {
    /// One per column of the cell.
    pub(crate) figures: Vec<f64>,
    /// The latencies behind them in nanoseconds, for the curves; may be empty.
    pub(crate) samples: Vec<u64>,
}

/// One contender's rounds.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) style: Style,
    pub(crate) is_ours: bool,
    pub(crate) is_floor: bool,
    /// The figures of each round.
    pub(crate) rounds: Vec<Vec<f64>>,
    /// The latencies of all rounds in nanoseconds.
    pub(crate) latencies: Histogram<u64>,
}

/// A table: one thing measured on several contenders in one setting.
pub(crate) struct Cell {
    /// Names its files.
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) columns: &'static [Column],
    /// The name of the column whose ratios to the floor and to the best peer are shown.
    pub(crate) compared: &'static str,
    /// Whether it belongs in the guide.
    pub(crate) is_headline: bool,
    pub(crate) series: Vec<Series>,
    pub(crate) goals: Vec<Goal>,
}

/// The middle of what rounds yielded, and the range that holds four fifths of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) middle: f64,
    pub(crate) high: f64,
}

impl Unit {
    /// A figure with its unit. What does not apply is not a number.
    pub(crate) fn format(self, figure: f64) -> String {
        match self {
            _ if figure.is_nan() => "–".to_owned(),
            Self::Bytes if figure < 10_240.0 => format!("{figure:.0} B"),
            Self::Bytes => format!("{:.1} KiB", figure / 1024.0),
            Self::Nanoseconds if figure < 1e3 => format!("{figure:.0} ns"),
            Self::Nanoseconds if figure < 1e6 => format!("{:.1} µs", figure / 1e3),
            Self::Nanoseconds if figure < 1e9 => format!("{:.1} ms", figure / 1e6),
            Self::Nanoseconds => format!("{:.1} s", figure / 1e9),
            Self::PerSecond if figure < 1e4 => format!("{figure:.0}/s"),
            Self::PerSecond if figure < 1e6 => format!("{:.0} k/s", figure / 1e3),
            Self::PerSecond => format!("{:.2} M/s", figure / 1e6),
            Self::Share => format!("{:.2} %", figure * 100.0),
        }
    }
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let at = |quantile: f64| figures[((figures.len() - 1) as f64 * quantile).round() as usize];
        Self { low: at(0.1), middle: at(0.5), high: at(0.9) }
    }

    /// As text, given how to write a figure.
    pub(crate) fn format(self, figure: impl Fn(f64) -> String) -> String {
        format!("{} ({}–{})", figure(self.middle), figure(self.low), figure(self.high))
    }
}

impl Column {
    pub(crate) const P50: Self = Self { name: "p50", unit: Unit::Nanoseconds };
    pub(crate) const P99: Self = Self { name: "p99", unit: Unit::Nanoseconds };
    pub(crate) const P999: Self = Self { name: "p99.9", unit: Unit::Nanoseconds };
    pub(crate) const MAX: Self = Self { name: "max", unit: Unit::Nanoseconds };
}

impl Size {
    /// A column for each of [`SIZES`].
    pub(crate) const fn columns(unit: Unit) -> [Column; SIZES.len()] {
        let [Size(a, _), Size(b, _), Size(c, _), Size(d, _)] = SIZES;
        [Column { name: a, unit }, Column { name: b, unit }, Column { name: c, unit }, Column { name: d, unit }]
    }
}

impl Turn {
    /// The latencies' [`P50`](Column::P50), [`P99`](Column::P99), [`P999`](Column::P999) and [`MAX`](Column::MAX).
    pub(crate) fn of_latencies(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let quantile = |quantile: f64| samples[((samples.len() - 1) as f64 * quantile).round() as usize] as f64;
        Self { figures: [0.5, 0.99, 0.999, 1.0].map(quantile).to_vec(), samples }
    }
}

/// Gives every contender a turn per round. Who begins rotates, so that nobody always follows the same other.
pub(crate) fn interleave(
    contenders: &mut [&mut dyn Contender],
    rounds: usize,
    mut turn: impl FnMut(&mut dyn Contender) -> Turn,
) -> Vec<Series> {
    let mut series: Vec<Series> = contenders.iter().map(|contender| Series::new(&**contender)).collect();
    let count = contenders.len();
    for round in 0..rounds {
        for index in (0..count).map(|index| (round + index) % count) {
            series[index].add(turn(&mut *contenders[index]));
        }
    }
    series
}

impl Series {
    pub(crate) fn new(contender: &dyn Contender) -> Self {
        Self {
            name: contender.name(),
            style: contender.style(),
            is_ours: contender.is_ours(),
            is_floor: contender.is_floor(),
            rounds: Vec::new(),
            latencies: Histogram::new(3).expect("3 digits are possible"),
        }
    }

    pub(crate) fn add(&mut self, turn: Turn) {
        self.rounds.push(turn.figures);
        for sample in turn.samples {
            self.latencies.record(sample).expect("it resizes itself");
        }
    }

    /// The median over the rounds.
    pub(crate) fn figure(&self, column: usize) -> f64 {
        self.spread(column).middle
    }

    /// This one's figure over the other's.
    pub(crate) fn ratio(&self, other: &Self, column: usize) -> Spread {
        let pairs = self.rounds.iter().zip(&other.rounds);
        Spread::of(pairs.map(|(ours, theirs)| ours[column] / theirs[column]))
    }

    pub(crate) fn spread(&self, column: usize) -> Spread {
        Spread::of(self.rounds.iter().map(|round| round[column]))
    }
}

impl Cell {
    /// What is compared in each of several cells of the same contenders, as the columns of one.
    pub(crate) fn side_by_side(id: String, title: String, columns: &'static [Column], cells: &[Self]) -> Self {
        let series = (0..cells[0].series.len()).map(|index| {
            let of: Vec<(&Series, usize)> = cells.iter().map(|cell| (&cell.series[index], cell.column(cell.compared))).collect();
            let count = of.iter().map(|(series, _)| series.rounds.len()).min().unwrap_or_default();
            let round = |round: usize| of.iter().map(|(series, column)| series.rounds[round][*column]).collect();
            let rounds = (0..count).map(round).collect();
            Series { rounds, latencies: Histogram::new(3).expect("3 digits are possible"), ..cells[0].series[index] }
        });
        Self { id, title, columns, compared: SIZE.0, is_headline: true, series: series.collect(), goals: Vec::new() }
    }

    pub(crate) fn column(&self, name: &str) -> usize {
        self.columns.iter().position(|column| column.name == name).expect("a column of this cell")
    }

    /// The one that does best in a column.
    pub(crate) fn best<'a>(&self, of: impl Iterator<Item = &'a Series>, column: usize) -> Option<&'a Series> {
        let compare = |a: &&Series, b: &&Series| a.figure(column).total_cmp(&b.figure(column));
        match self.columns[column].unit {
            Unit::PerSecond => of.max_by(compare),
            Unit::Bytes | Unit::Nanoseconds | Unit::Share => of.min_by(compare),
        }
    }

    /// The bare loop that waits in the same way.
    pub(crate) fn floor(&self, style: Style) -> Option<&Series> {
        self.series.iter().find(|series| series.is_floor && series.style == style)
    }

    /// The other library that does best in a column, of those that wait in the same way.
    pub(crate) fn best_peer(&self, style: Style, column: usize) -> Option<&Series> {
        self.best(self.series.iter().filter(|series| !series.is_ours && !series.is_floor && series.style == style), column)
    }
}
