//! Interleaved rounds of two contenders, and what is concluded from them.

use std::fmt;

use hdrhistogram::Histogram;

/// How many rounds a ratio is made of; each is one turn of either contender, and who begins alternates.
const ROUNDS: usize = 31;

/// What our time over theirs must not exceed.
#[derive(Clone, Copy)]
pub(crate) struct AtMost(pub(crate) f64);

/// The times of one contender, in picoseconds: a message of a flood takes few nanoseconds.
pub(crate) struct Times(Histogram<u64>);

/// A line of the table.
pub(crate) struct Comparison {
    what: &'static str,
    target: AtMost,
    ours: Times,
    theirs: Times,
    /// One per round, sorted.
    ratios: Vec<f64>,
}

impl Comparison {
    /// Runs the rounds. Each contender adds the times of one round; the round's figure is their median.
    pub(crate) fn run(
        what: &'static str,
        target: AtMost,
        mut ours: impl FnMut(&mut Times),
        mut theirs: impl FnMut(&mut Times),
    ) -> Self {
        let mut all = (Times::new(), Times::new());
        let mut round = (Times::new(), Times::new());
        let mut ratios = Vec::with_capacity(ROUNDS);
        ours(&mut Times::new());
        theirs(&mut Times::new());
        for number in 0..ROUNDS {
            round.0.0.reset();
            round.1.0.reset();
            if number % 2 == 0 {
                ours(&mut round.0);
                theirs(&mut round.1);
            } else {
                theirs(&mut round.1);
                ours(&mut round.0);
            }
            let (ours, theirs) = (round.0.quantile(0.5), round.1.quantile(0.5));
            ratios.push(ours / theirs);
            all.0.0.add(&round.0.0).expect("it resizes itself");
            all.1.0.add(&round.1.0).expect("it resizes itself");
        }
        ratios.sort_by(f64::total_cmp);
        Self { what, target, ours: all.0, theirs: all.1, ratios }
    }

    pub(crate) const HEADER: &'static str = "comparison                                      zen p50    p99   other p50    p99   ratio  10–90 %        target  reached";

    fn ratio(&self, quantile: f64) -> f64 {
        self.ratios[((self.ratios.len() - 1) as f64 * quantile).round() as usize]
    }

    /// Whether the end of the range that is nearer to the target lies within it: what noise alone can explain is not held against us.
    pub(crate) fn is_reached(&self) -> bool {
        self.ratio(0.1) <= self.target.0
    }
}

impl Times {
    fn new() -> Self {
        Self(Histogram::new(3).expect("3 digits are possible"))
    }

    pub(crate) fn add(&mut self, nanoseconds: f64) {
        self.0.record((nanoseconds * 1000.0) as u64).expect("it resizes itself");
    }

    /// In nanoseconds.
    fn quantile(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = |nanoseconds: f64| match nanoseconds {
            0.0..1000.0 => format!("{nanoseconds:.0} ns"),
            _ => format!("{:.1} µs", nanoseconds / 1000.0),
        };
        write!(f, "{:>8} {:>8}", figure(self.quantile(0.5)), figure(self.quantile(0.99)))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = format!("≤ {:.2}", self.target.0);
        let (low, middle, high) = (self.ratio(0.1), self.ratio(0.5), self.ratio(0.9));
        let reached = if self.is_reached() { "yes" } else { "NO" };
        let Self { what, ours, theirs, .. } = self;
        write!(f, "{what:<44} {ours}  {theirs}  {middle:>6.3}  {low:.3}–{high:.3}  {target:>8}  {reached}")
    }
}
