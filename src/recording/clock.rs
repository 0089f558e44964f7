//! When the entries of a recording are due.

use std::time::{Duration, Instant, SystemTime};

use crate::recorder::Entry;

/// How fast a recording is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// With the pauses it was recorded with.
    Original,
    /// So many times as fast; a number above zero.
    Times(f64),
    /// Without pauses.
    Unpaced,
}

impl Speed {
    /// Checks the number.
    pub(crate) fn validate(self) {
        if let Self::Times(factor) = self {
            assert!(factor > 0.0 && factor.is_finite(), "a recording cannot be replayed {factor} times as fast");
        }
    }

    /// When an entry is due, from the start of the replay on; `None` for at once.
    pub(crate) fn scale(self, position: Duration) -> Option<Duration> {
        match self {
            Self::Original => Some(position),
            Self::Times(factor) => Some(Duration::try_from_secs_f64(position.as_secs_f64() / factor).unwrap_or(Duration::MAX)),
            Self::Unpaced => None,
        }
    }
}

/// How long after the first entry each was recorded, told from the entries alone.
///
/// The clock that is never set decides. Where there is none, and where it begins anew because another start of the program appended, the
/// time of day does. Time does not run backwards: an entry that was recorded late, behind others, is due with them. A pause longer than
/// [`PAUSE_MAX`] counts as that: the recorder was off, or its clock was set.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    position: Duration,
    /// The latest that was seen of both clocks.
    mono: Option<Duration>,
    at: Option<SystemTime>,
}

impl Clock {
    /// Whether this entry is the first after another start of the program.
    pub(crate) fn begins_anew(&self, entry: &Entry) -> bool {
        let (Some(latest), Some(mono), Some(at)) = (self.mono, entry.mono, self.at) else { return false };
        // What was recorded late is as late by the time of day.
        let late = at.duration_since(entry.at).unwrap_or_default();
        mono.saturating_add(late).saturating_add(PASSING) < latest
    }

    /// Takes the next entry and returns when it is due.
    pub(crate) fn advance(&mut self, entry: &Entry) -> Duration {
        let begins_anew = self.begins_anew(entry);
        if !begins_anew && entry.mono.is_some() && entry.mono < self.mono {
            // It is late, and sets no clock back.
            return self.position;
        }
        let pause = match (self.mono, entry.mono) {
            (Some(latest), Some(mono)) if !begins_anew => mono.saturating_sub(latest),
            _ => self.at.and_then(|latest| entry.at.duration_since(latest).ok()).unwrap_or_default(),
        };
        self.position = self.position.saturating_add(pause.min(PAUSE_MAX));
        self.mono = entry.mono.or(self.mono);
        // A time of day that falls by more was set back, and goes on from there.
        let was_set_back = self.at.is_some_and(|latest| entry.at.checked_add(PASSING).is_some_and(|at| at < latest));
        self.at = if was_set_back { Some(entry.at) } else { self.at.max(Some(entry.at)) };
        self.position
    }
}

/// The end of a duration; one that no clock can hold is as good as a year.
pub(super) fn later(now: Instant, after: Duration) -> Instant {
    now.checked_add(after).unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}

/// Threads that record at the same time pass each other by less.
const PASSING: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::recorder::{Content, Direction};

    #[test]
    fn the_clock_that_is_never_set_decides_whatever_the_time_of_day_does() {
        assert_eq!(positions(&[(Some(5_000), 0), (Some(5_050), 9_000_000), (Some(5_250), 20)]), [0, 50, 250]);
    }

    #[test]
    fn without_it_the_time_of_day_decides() {
        assert_eq!(positions(&[(None, 100), (None, 150), (None, 150), (None, 2_150)]), [0, 50, 50, 2_050]);
    }

    #[test]
    fn entries_that_passed_each_other_are_due_together_and_add_no_time() {
        assert_eq!(positions(&[(Some(0), 0), (Some(30), 0), (Some(20), 0), (Some(30), 0), (Some(40), 0)]), [0, 30, 30, 30, 40]);
        assert_eq!(positions(&[(None, 0), (None, 30), (None, 20), (None, 40)]), [0, 30, 30, 40]);
    }

    #[test]
    fn what_is_recorded_late_is_due_with_what_came_before_it_and_sets_no_clock_back() {
        let late = [(0, 1_000), (5_000, 6_000), (10, 1_010), (5_001, 6_001), (12, 1_012), (6_000, 7_000)];
        let late = late.map(|(mono, at)| (Some(mono), at));
        assert_eq!(positions(&late), [0, 5_000, 5_000, 5_001, 5_001, 6_000]);
        // Another start is told from the latest time of day.
        assert_eq!(positions(&[&late[..], &[(Some(0), 7_500)]].concat()).last(), Some(&6_500));
    }

    #[test]
    fn after_another_start_the_pause_is_that_of_the_time_of_day() {
        assert_eq!(positions(&[(Some(90_000), 1_000), (Some(3), 8_000), (Some(13), 8_010)]), [0, 7_000, 7_010]);
    }

    #[test]
    fn a_time_of_day_that_was_set_back_does_not_run_backwards_and_goes_on() {
        assert_eq!(positions(&[(None, 900_000), (None, 100_000), (None, 100_500)]), [0, 0, 500]);
    }

    #[test]
    fn a_pause_of_years_is_cut() {
        assert_eq!(positions(&[(None, 0), (None, 1_792_000_000_000)]), [0, PAUSE_MAX.as_millis() as u64]);
    }

    #[test]
    fn a_speed_divides_the_time_and_none_takes_none() {
        let second = Duration::from_secs(1);
        assert_eq!(Speed::Original.scale(second), Some(second));
        assert_eq!(Speed::Times(4.0).scale(second), Some(second / 4));
        assert_eq!(Speed::Times(f64::MIN_POSITIVE).scale(second), Some(Duration::MAX));
        assert_eq!(Speed::Unpaced.scale(second), None);
    }

    /// When entries with these two clocks are due, all in milliseconds.
    fn positions(entries: &[(Option<u64>, u64)]) -> Vec<u64> {
        let mut clock = Clock::default();
        let entry = |(mono, at): (Option<u64>, u64)| Entry {
            at: UNIX_EPOCH + Duration::from_millis(at),
            mono: mono.map(Duration::from_millis),
            connection: None,
            generation: None,
            direction: Direction::In,
            content: Content::Text(String::new()),
            masked: false,
        };
        entries.iter().map(|clocks| clock.advance(&entry(*clocks)).as_millis() as u64).collect()
    }
}
