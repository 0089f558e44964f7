//! What this crate promises, as ratios to others measured in the same rounds.

use std::fmt;

use crate::harness::rounds::{Cell, Spread, Unit};

/// A promise about one column of a cell.
#[derive(Clone, Debug)]
pub(crate) struct Goal {
    /// One of our contenders.
    pub(crate) ours: &'static str,
    pub(crate) other: Other,
    /// The name of the column.
    pub(crate) column: &'static str,
    pub(crate) limit: Limit,
}

/// Whom it is compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Other {
    /// Whichever of these does best.
    BestOf(&'static [&'static str]),
    /// The other library that does best, of those that wait in the same way.
    BestPeer,
    /// The bare loop that waits in the same way.
    Floor,
    Named(&'static str),
    /// The figure itself is limited.
    Nobody,
}

/// What our figure has to be, over the other's if there is another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

/// How a goal came out.
pub(crate) struct Verdict {
    pub(crate) goal: Goal,
    /// The contender that it was compared with.
    other: Option<&'static str>,
    unit: Unit,
    /// Of the ratios, or of the figure itself.
    spread: Spread,
}

impl Goal {
    /// `None` if one of the two was not measured.
    pub(crate) fn judge(&self, cell: &Cell) -> Option<Verdict> {
        let column = cell.column(self.column);
        let named = |name: &str| cell.series.iter().find(|series| series.name == name);
        let ours = named(self.ours)?;
        let other = match self.other {
            Other::BestOf(names) => Some(cell.best(names.iter().filter_map(|name| named(name)), column)?),
            Other::BestPeer => Some(cell.best_peer(ours.style, column)?),
            Other::Floor => Some(cell.floor(ours.style)?),
            Other::Named(name) => Some(named(name)?),
            Other::Nobody => None,
        };
        let spread = other.map_or_else(|| ours.spread(column), |other| ours.ratio(other, column));
        Some(Verdict { goal: self.clone(), other: other.map(|other| other.name), unit: cell.columns[column].unit, spread })
    }
}

impl Limit {
    fn admits(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(limit) => figure >= limit,
            Self::AtMost(limit) => figure <= limit,
        }
    }
}

impl Verdict {
    /// Whether the end of the range that is nearer to the limit lies within it: what noise alone can explain is not held against us.
    pub(crate) fn is_reached(&self) -> bool {
        self.goal.limit.admits(match self.goal.limit {
            Limit::AtLeast(_) => self.spread.high,
            Limit::AtMost(_) => self.spread.low,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { goal: Goal { ours, column, limit, .. }, other, unit, spread } = self;
        let figure = |figure: f64| if other.is_some() { format!("{figure:.2}") } else { unit.format(figure) };
        let other = other.map_or_else(String::new, |other| format!(" / {other}"));
        let (sign, limit) = match limit {
            Limit::AtLeast(limit) => ('≥', figure(*limit)),
            Limit::AtMost(limit) => ('≤', figure(*limit)),
        };
        let reached = match (self.is_reached(), self.goal.limit.admits(self.spread.middle)) {
            (true, true) => "reached",
            (true, false) => "reached by the better end only",
            (false, _) => "NO",
        };
        write!(f, "{ours}, {column}{other}: {}, wanted {sign} {limit}: {reached}", spread.format(figure))
    }
}
