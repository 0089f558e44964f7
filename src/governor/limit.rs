//! What users say about a rate limit, and what they see of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};

/// One rate limit of a venue: a connection sends no faster than all of its limits allow.
///
/// A limit counts every frame that leaves, pings, pongs and closes included, in units of its own: messages, credits, weight. What
/// is refused takes nothing from it.
///
/// ```
/// use std::time::Duration;
/// use zen_websocket::{RateLimit, costs};
///
/// // 1500 credits, 1000 more each second, shared by all connections of one account.
/// let credits = RateLimit::bucket(1500, 1000, Duration::from_secs(1)).cost(costs::deribit).shared("deribit main");
/// // Five messages in any second, on one connection.
/// let messages = RateLimit::window(5, Duration::from_secs(1)).cost(costs::simple);
/// # let _ = (credits, messages);
/// ```
#[must_use]
#[derive(Clone)]
pub struct RateLimit {
    pub(super) shape: Shape,
    pub(super) cost: Option<CostFn>,
    pub(super) control_cost: u32,
    pub(super) name: Option<Arc<str>>,
    /// A margin was given to a bucket.
    margin_misplaced: bool,
}

/// What one limit has left.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitStatus {
    /// The capacity of the bucket, or the count of the window.
    pub capacity: u32,
    /// What an ordinary message may cost at most at this moment; the part that is kept for control frames and the urgent lane
    /// comes on top.
    pub available: u32,
    /// The name under which connections share it.
    pub name: Option<Arc<str>>,
}

/// How full the queue of the messages is that wait for the rate limit.
///
/// ```
/// use zen_websocket::Pressure;
///
/// assert_eq!(Pressure::of(24, 100), Pressure::None);
/// assert_eq!(Pressure::of(75, 100), Pressure::High);
/// assert!(Pressure::Low < Pressure::Medium);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Pressure {
    /// Less than a quarter.
    None,
    /// From a quarter.
    Low,
    /// From half.
    Medium,
    /// From three quarters.
    High,
}

/// What makes two meters the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(super) capacity: u32,
    pub(super) reserved: u32,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bucket { refill: u32, interval: Duration },
    Window { window: Duration, margin: Duration },
}

pub(super) type CostFn = Arc<dyn Fn(&[u8]) -> u32 + Send + Sync>;

impl RateLimit {
    /// A token bucket: it starts full, gets `refill` tokens at the end of each `interval`, and never holds more than `capacity`.
    pub fn bucket(capacity: u32, refill: u32, interval: Duration) -> Self {
        Self::new(capacity, Kind::Bucket { refill, interval })
    }

    /// A strict sliding window: what leaves within any `window` of time costs `count` at most, wherever that window begins.
    pub fn window(count: u32, window: Duration) -> Self {
        Self::new(count, Kind::Window { window, margin: (window / 10).min(MARGIN_MAX) })
    }

    fn new(capacity: u32, kind: Kind) -> Self {
        let reserved = RESERVED.min(capacity.saturating_sub(1));
        let shape = Shape { capacity, reserved, kind };
        Self { shape, cost: None, control_cost: 1, name: None, margin_misplaced: false }
    }

    /// By how much a window is lengthened. Frames travel for varying times, so two that left a window apart may arrive closer
    /// together. Default a tenth of the window, at most 100 ms. A bucket has none.
    pub fn margin(mut self, by: Duration) -> Self {
        match &mut self.shape.kind {
            Kind::Bucket { .. } => self.margin_misplaced = true,
            Kind::Window { margin, .. } => *margin = by,
        }
        self
    }

    /// What a message with this payload costs; 0 is free. The function runs on the sending thread for every message, under no
    /// lock. Default: what the connection's dialect says, which is 1 unless it weighs messages. For some venues, see
    /// [`costs`](crate::costs).
    pub fn cost(mut self, cost: impl Fn(&[u8]) -> u32 + Send + Sync + 'static) -> Self {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// What a ping, a pong or a close frame costs. Default 1; 0 where the venue does not count them.
    pub fn control_cost(mut self, cost: u32) -> Self {
        self.control_cost = cost;
        self
    }

    /// The part that ordinary messages leave for control frames and the urgent lane. Default 1, so that a flood of orders cannot
    /// hold back a pong; 0 for a limit of 1.
    pub fn reserved(mut self, part: u32) -> Self {
        self.shape.reserved = part;
        self
    }

    /// Makes all connections of this process whose limits have this name share one account, as venues do that count by user or
    /// address. The settings of one name must agree, except for what a message costs. Not shared by default.
    pub fn shared(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into().into());
        self
    }

    /// As [`shared`](Self::shared), unless it is shared by another name.
    pub(crate) fn or_shared(self, name: impl FnOnce() -> String) -> Self {
        if self.name.is_none() { self.shared(name()) } else { self }
    }

    fn check(&self) -> Result<(), String> {
        let Shape { capacity, reserved, kind } = self.shape;
        let (duration, margin) = match kind {
            Kind::Bucket { refill: 0, .. } => return Err("a refill of 0 never fills the bucket".into()),
            Kind::Bucket { interval, .. } => (interval, Duration::ZERO),
            Kind::Window { window, margin } => (window, margin),
        };
        if capacity == 0 {
            Err("a limit of 0 allows nothing".into())
        } else if duration.is_zero() || duration > DURATION_MAX {
            Err(format!("{duration:?} is not between a nanosecond and a year"))
        } else if margin > DURATION_MAX {
            Err(format!("a margin of {margin:?} is longer than a year"))
        } else if self.margin_misplaced {
            Err("a token bucket has no margin".into())
        } else if reserved >= capacity {
            Err(format!("{reserved} reserved of {capacity} leaves nothing for messages"))
        } else if self.control_cost > capacity {
            Err(format!("a control frame costs {} of {capacity}", self.control_cost))
        } else {
            Ok(())
        }
    }
}

/// Shows no more of the cost function than whether there is one.
impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("shape", &self.shape)
            .field("weighs", &self.cost.is_some())
            .field("control_cost", &self.control_cost)
            .field("name", &self.name)
            .finish()
    }
}

impl Shape {
    /// How long the limit takes to give the next.
    pub(super) fn interval(&self) -> Duration {
        match self.kind {
            Kind::Bucket { interval, .. } => interval,
            Kind::Window { window, .. } => window / self.capacity,
        }
    }

    /// The most that one message may ever cost.
    pub(super) fn most(&self, privileged: bool) -> u32 {
        if privileged { self.capacity } else { self.capacity - self.reserved }
    }
}

impl Pressure {
    /// The pressure of a queue that has room for `max`; a queue without room is under none until something waits.
    #[must_use]
    pub fn of(queued: usize, max: usize) -> Self {
        match queued as u128 * 4 / max.max(1) as u128 {
            0 => Self::None,
            1 => Self::Low,
            2 => Self::Medium,
            _ => Self::High,
        }
    }

    /// The delay to suggest to a sender, in units of the time in which the limit gives again: 0, 1, 2 or 4.
    #[must_use]
    pub fn factor(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Low => 1,
            Self::Medium => 2,
            Self::High => 4,
        }
    }
}

/// Checks the limits of one connection.
///
/// # Errors
///
/// [`Error::Config`] for `rate_limit`, with what is wrong.
pub(crate) fn validate(setting: &'static str, limits: &[RateLimit]) -> Result<()> {
    if limits.len() > LIMITS_MAX {
        return Err(Error::config(setting, format!("{} limits, at most {LIMITS_MAX} are possible", limits.len())));
    }
    for (index, limit) in limits.iter().enumerate() {
        limit.check().map_err(|reason| Error::config(setting, reason))?;
        // One meter that is charged twice for a message would be in its own way.
        if let Some(name) = &limit.name
            && limits[..index].iter().any(|earlier| earlier.name.as_ref() == Some(name))
        {
            return Err(Error::config(setting, format!("{name:?} is named twice")));
        }
    }
    Ok(())
}

/// How many limits one connection may have.
pub(crate) const LIMITS_MAX: usize = 4;

/// The longest duration of a limit.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const MARGIN_MAX: Duration = Duration::from_millis(100);

const RESERVED: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    fn reason(limit: RateLimit) -> String {
        validate("rate_limit", &[limit]).expect_err("wrong settings").to_string()
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        let wrong = [
            (RateLimit::bucket(0, 1, SEC), "a limit of 0 allows nothing"),
            (RateLimit::window(0, SEC), "a limit of 0 allows nothing"),
            (RateLimit::bucket(2, 0, SEC), "a refill of 0 never fills the bucket"),
            (RateLimit::bucket(2, 1, Duration::ZERO), "0ns is not between a nanosecond and a year"),
            (RateLimit::window(2, Duration::ZERO), "0ns is not between a nanosecond and a year"),
            (RateLimit::window(2, DURATION_MAX + SEC), "31536001s is not between a nanosecond and a year"),
            (RateLimit::window(2, SEC).margin(DURATION_MAX + SEC), "a margin of 31536001s is longer than a year"),
            (RateLimit::bucket(2, 1, SEC).margin(SEC), "a token bucket has no margin"),
            (RateLimit::window(2, SEC).reserved(2), "2 reserved of 2 leaves nothing for messages"),
            (RateLimit::window(2, SEC).control_cost(3), "a control frame costs 3 of 2"),
        ];
        for (limit, expected) in wrong {
            assert_eq!(reason(limit), format!("invalid rate_limit: {expected}"));
        }
    }

    #[test]
    fn extreme_settings_that_make_sense_are_accepted() {
        validate(
            "rate_limit",
            &[
                RateLimit::bucket(1, 1, Duration::from_nanos(1)),
                RateLimit::bucket(u32::MAX, u32::MAX, DURATION_MAX).reserved(0),
                RateLimit::window(1, DURATION_MAX).margin(DURATION_MAX),
                RateLimit::window(u32::MAX, Duration::from_nanos(1)).margin(Duration::ZERO).reserved(u32::MAX - 1),
            ],
        )
        .expect("all are possible");
    }

    #[test]
    fn a_connection_has_a_bounded_number_of_limits() {
        let limit = || RateLimit::window(2, SEC);
        validate("rate_limit", &vec![limit(); LIMITS_MAX]).expect("as many as possible");
        validate("rate_limit", &vec![limit(); LIMITS_MAX + 1]).expect_err("one too many");
    }

    #[test]
    fn a_connection_names_an_account_once() {
        let named = |name| RateLimit::window(2, SEC).shared(name);
        validate("rate_limit", &[named("a"), named("b")]).expect("two accounts");
        validate("rate_limit", &[named("a"), named("b"), named("a")]).expect_err("one account twice");
    }

    #[test]
    fn the_margin_is_a_tenth_of_the_window_up_to_a_bound() {
        let margin = |limit: RateLimit| match limit.shape.kind {
            Kind::Bucket { .. } => None,
            Kind::Window { margin, .. } => Some(margin),
        };
        assert_eq!(margin(RateLimit::window(5, SEC / 2)), Some(SEC / 20));
        assert_eq!(margin(RateLimit::window(5, 300 * SEC)), Some(SEC / 10));
        assert_eq!(margin(RateLimit::window(5, SEC).margin(Duration::ZERO)), Some(Duration::ZERO));
    }

    #[test]
    fn a_limit_of_one_reserves_nothing_by_default() {
        let reserved = |capacity| RateLimit::window(capacity, SEC).shape.reserved;
        assert_eq!([0, 1, 2, 9].map(reserved), [0, 0, 1, 1]);
    }

    #[test]
    fn pressure_rises_by_quarters() {
        use Pressure::*;
        assert_eq!(
            [0, 24, 25, 49, 50, 74, 75, 100, 101].map(|queued| Pressure::of(queued, 100)),
            [None, None, Low, Low, Medium, Medium, High, High, High]
        );
        assert_eq!([Pressure::of(0, 0), Pressure::of(1, 0), Pressure::of(usize::MAX / 2 + 1, usize::MAX)], [None, High, Medium]);
        assert_eq!([None, Low, Medium, High].map(Pressure::factor), [0, 1, 2, 4]);
    }

    #[test]
    fn debug_shows_the_settings() {
        let shown = format!("{:?}", RateLimit::window(5, SEC).cost(|_| 1).shared("main"));
        for part in ["capacity: 5", "reserved: 1", "window: 1s", "margin: 100ms", "weighs: true", "main"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
}
