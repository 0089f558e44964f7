//! The rate governor: says whether a frame may leave under the limits of a venue.
//!
//! A sender asks for a reservation, writes, and then commits it, or releases it if nothing left. All of it takes `now` from the
//! caller.

pub mod costs;
mod limit;
mod meter;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) use self::limit::{LIMITS_MAX, validate};
pub use self::limit::{LimitStatus, Pressure, RateLimit};
use crate::error::{Error, Result};
use crate::governor::limit::CostFn;
use crate::governor::meter::Meter;

/// The limits of one connection.
///
/// What was reserved must be [committed](Self::commit) or [released](Self::release) once, with the same costs.
pub struct Governor {
    gates: Vec<Gate>,
}

/// One limit as one connection sees it.
struct Gate {
    meter: Arc<Meter>,
    cost: Option<CostFn>,
    control_cost: u32,
}

/// What one frame costs under each limit of its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs([u32; LIMITS_MAX]);

/// Why a frame may not leave. The greater of two is the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// It may, this much later, if nothing else is sent meanwhile. Never zero. An estimate if reservations are open.
    Wait(Duration),
    /// It costs more than a limit ever gives.
    Never {
        /// What it costs.
        cost: u32,
        /// The most that the limit gives to one frame of this kind.
        capacity: u32,
    },
}

impl Costs {
    /// What it costs under the limit of this place in the settings.
    pub(crate) fn of(&self, limit: usize) -> u32 {
        self.0[limit]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(cost, more)| *cost = cost.saturating_add(more));
    }
}

impl Governor {
    /// Makes the governor of a connection, or none if it has no limits. Limits with a name join those of the same name in this
    /// process.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for `rate_limit`: wrong settings, or a name that is in use with other settings.
    pub fn new(limits: &[RateLimit], now: Instant) -> Result<Option<Arc<Self>>> {
        validate("rate_limit", limits)?;
        if limits.is_empty() {
            return Ok(None);
        }
        let gate = |limit: &RateLimit| -> Result<Gate> {
            let meter = meter(limit, now)?;
            Ok(Gate { meter, cost: limit.cost.clone(), control_cost: limit.control_cost })
        };
        let gates = limits.iter().map(gate).collect::<Result<_>>()?;
        Ok(Some(Arc::new(Self { gates })))
    }

    /// What a message costs. Runs the users' cost functions, so no lock may be held; `dialect` is asked at most once, and only if
    /// a limit has no function of its own.
    pub fn costs(&self, payload: &[u8], dialect: impl Fn() -> u32) -> Costs {
        let mut by_dialect = None;
        self.each(|gate| match &gate.cost {
            Some(cost) => cost(payload),
            None => *by_dialect.get_or_insert_with(&dialect),
        })
    }

    /// What a ping, a pong or a close frame costs.
    pub fn control(&self) -> Costs {
        self.each(|gate| gate.control_cost)
    }

    fn each(&self, mut cost: impl FnMut(&Gate) -> u32) -> Costs {
        let mut costs = Costs::default();
        for (into, gate) in costs.0.iter_mut().zip(&self.gates) {
            *into = cost(gate);
        }
        costs
    }

    /// Takes these costs from all limits, or nothing from any. Only a `privileged` frame may take what is reserved: one of
    /// control, or of the urgent lane.
    ///
    /// # Errors
    ///
    /// What the limits say; of several waits the longest.
    pub fn reserve(&self, now: Instant, costs: &Costs, privileged: bool) -> Result<(), Refused> {
        // The locks are taken one after the other. The look keeps a frame that one limit refuses from filling another for a
        // moment, in which a frame of some other connection would be refused for nothing.
        if self.gates.len() > 1 {
            let refusals = self.charges(costs).filter_map(|(meter, cost)| meter.look(now, cost, privileged).err());
            refusals.max().map_or(Ok(()), Err)?;
        }
        for (index, (meter, cost)) in self.charges(costs).enumerate() {
            if let Err(refused) = meter.reserve(now, cost, privileged) {
                self.charges(costs).take(index).for_each(|(meter, cost)| meter.release(cost));
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Ends a reservation: the last byte left at `now`, or may have.
    pub fn commit(&self, now: Instant, costs: &Costs) {
        for (meter, cost) in self.charges(costs) {
            meter.commit(now, cost);
        }
    }

    /// Ends a reservation: nothing left.
    pub fn release(&self, costs: &Costs) {
        for (meter, cost) in self.charges(costs) {
            meter.release(cost);
        }
    }

    /// The limits for which these costs are something.
    fn charges(&self, costs: &Costs) -> impl Iterator<Item = (&Meter, u32)> {
        self.gates.iter().zip(costs.0).filter(|(_, cost)| *cost > 0).map(|(gate, cost)| (&*gate.meter, cost))
    }

    /// What the limits have left, in the order of the settings.
    pub fn status(&self, now: Instant) -> Vec<LimitStatus> {
        self.gates.iter().map(|gate| gate.meter.status(now)).collect()
    }

    /// The longest time that a limit takes to give again, the unit of suggested delays: the interval of a bucket, a window
    /// divided by its count.
    pub fn interval(&self) -> Duration {
        self.gates.iter().map(|gate| gate.meter.shape.interval()).max().unwrap_or_default()
    }
}

/// Shows the limits and what they have left.
impl fmt::Debug for Governor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.gates.iter().map(|gate| &gate.meter)).finish()
    }
}

/// The meter of a limit: a new one, or the one that others with this name use.
fn meter(limit: &RateLimit, now: Instant) -> Result<Arc<Meter>> {
    let Some(name) = &limit.name else { return Ok(Arc::new(Meter::new(limit, now))) };
    let mut shared = SHARED.lock();
    shared.retain(|_, meter| Arc::strong_count(meter) > 1 || !meter.is_full(now));
    match shared.get(&**name) {
        Some(meter) if meter.shape == limit.shape => Ok(meter.clone()),
        Some(_) => Err(Error::config("rate_limit", format!("{name:?} is in use with other settings"))),
        None => {
            let meter = Arc::new(Meter::new(limit, now));
            shared.insert(name.to_string(), meter.clone());
            Ok(meter)
        }
    }
}

/// The meters that have names, as long as a governor uses them or the venue remembers: whoever comes back at once finds the limit as it
/// was left.
static SHARED: Mutex<BTreeMap<String, Arc<Meter>>> = Mutex::new(BTreeMap::new());

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    #[test]
    fn without_limits_there_is_no_governor() {
        assert!(Governor::new(&[], Instant::now()).expect("nothing is wrong").is_none());
    }

    #[test]
    fn wrong_settings_make_no_governor() {
        Governor::new(&[RateLimit::window(0, SEC)], Instant::now()).expect_err("a count of 0");
    }

    #[test]
    fn the_default_cost_is_the_dialects_and_is_asked_for_once() {
        let t0 = Instant::now();
        let asked = Cell::new(0);
        let dialect = || {
            asked.set(asked.get() + 1);
            7
        };
        let own = || window(9).cost(|payload| payload.len() as u32);
        assert_eq!(governor(t0, &[window(9), own(), window(9)]).costs(b"four", dialect), Costs([7, 4, 7, 0]));
        assert_eq!(asked.get(), 1);
        assert_eq!(governor(t0, &[own()]).costs(b"four", dialect), Costs([4, 0, 0, 0]));
        assert_eq!(asked.get(), 1, "no limit needs it");
    }

    #[test]
    fn a_control_frame_costs_what_its_limit_says() {
        let t0 = Instant::now();
        let governor = governor(t0, &[window(9), window(9).control_cost(0), window(9).control_cost(3)]);
        assert_eq!(governor.control(), Costs([1, 0, 3, 0]));
    }

    #[test]
    fn several_limits_give_all_or_nothing() {
        let t0 = Instant::now();
        for limits in [[window(5), window(9)], [window(9), window(5)]] {
            let governor = governor(t0, &limits);
            assert_eq!(governor.reserve(t0, &Costs([3, 3, 0, 0]), false), Ok(()));
            assert!(matches!(governor.reserve(t0, &Costs([3, 3, 0, 0]), false), Err(Refused::Wait(_))));
            let left = limits.map(|limit| limit.shape.capacity - 3);
            assert_eq!(available(&governor, t0), left);
            governor.release(&Costs([3, 3, 0, 0]));
            assert_eq!(available(&governor, t0), left.map(|left| left + 3));
        }
    }

    #[test]
    fn a_limit_exhausted_since_the_look_leaves_the_others_untouched() {
        let t0 = Instant::now();
        // The same meter twice stands for another connection that is faster: each look finds room, the second reservation none.
        let mut governor = Arc::into_inner(governor(t0, &[window(9), window(5)])).expect("the only owner");
        let gate = &governor.gates[1];
        governor.gates.push(Gate { meter: gate.meter.clone(), cost: None, control_cost: 1 });
        assert!(matches!(governor.reserve(t0, &Costs([3, 3, 3, 0]), false), Err(Refused::Wait(_))));
        assert_eq!(available(&governor, t0), [9, 5, 5]);
    }

    #[test]
    fn of_several_refusals_the_longest_counts() {
        let t0 = Instant::now();
        let bucket = |seconds| RateLimit::bucket(5, 1, seconds * SEC).reserved(0);
        let governor = governor(t0, &[bucket(1), bucket(3), bucket(2)]);
        let all = Costs([5, 5, 5, 0]);
        governor.reserve(t0, &all, false).expect("all are full");
        assert_eq!(governor.reserve(t0, &Costs([1, 1, 1, 0]), false), Err(Refused::Wait(3 * SEC)));
        assert_eq!(governor.reserve(t0, &Costs([5, 1, 1, 0]), false), Err(Refused::Wait(5 * SEC)));
        assert_eq!(governor.reserve(t0, &Costs([6, 1, 1, 0]), false), Err(Refused::Never { cost: 6, capacity: 5 }));
        assert_eq!(governor.reserve(t0 + 3 * SEC, &Costs([3, 1, 1, 0]), false), Ok(()));
    }

    #[test]
    fn what_is_free_passes_an_exhausted_limit_and_is_not_logged() {
        let t0 = Instant::now();
        let governor = governor(t0, &[window(2).reserved(1), window(2)]);
        governor.reserve(t0, &Costs([2, 0, 0, 0]), true).expect("all is free");
        let free = Costs([0, 1, 0, 0]);
        assert_eq!(governor.reserve(t0, &free, false), Ok(()));
        governor.commit(t0, &free);
        let before = format!("{:?}", governor.gates[0].meter);
        governor.commit(t0, &Costs::default());
        assert_eq!(format!("{:?}", governor.gates[0].meter), before);
    }

    #[test]
    fn a_window_counts_from_the_commit_on_every_limit() {
        let t0 = Instant::now();
        let governor = governor(t0, &[window(2), window(2)]);
        let all = Costs([2, 2, 0, 0]);
        governor.reserve(t0, &all, false).expect("all is free");
        governor.commit(t0 + SEC, &all);
        assert_eq!(governor.reserve(t0 + SEC, &all, false), Err(Refused::Wait(SEC)));
        assert_eq!(governor.reserve(t0 + 2 * SEC, &all, false), Ok(()));
    }

    #[test]
    fn urgent_passes_where_normal_is_refused() {
        let t0 = Instant::now();
        let governor = governor(t0, &[window(3).reserved(1)]);
        let one = Costs([1, 0, 0, 0]);
        let lanes = [false, false, false, true, true].map(|privileged| governor.reserve(t0, &one, privileged).is_ok());
        assert_eq!(lanes, [true, true, false, true, false]);
    }

    #[test]
    fn limits_of_one_name_share_one_account() {
        let t0 = Instant::now();
        let limit = || window(5).shared("two share");
        let (one, other) = (governor(t0, &[limit()]), governor(t0, &[limit().cost(|_| 2)]));
        one.reserve(t0, &Costs([2, 0, 0, 0]), false).expect("all is free");
        assert_eq!(available(&other, t0), [3]);
        other.release(&Costs([2, 0, 0, 0]));
        assert_eq!((available(&one, t0), other.status(t0)[0].name.as_deref()), (vec![5], Some("two share")));
    }

    #[test]
    fn limits_without_a_name_are_alone() {
        let t0 = Instant::now();
        let (one, other) = (governor(t0, &[window(5)]), governor(t0, &[window(5)]));
        one.reserve(t0, &Costs([2, 0, 0, 0]), false).expect("all is free");
        assert_eq!(available(&other, t0), [5]);
    }

    #[test]
    fn a_name_in_use_with_other_settings_is_refused() {
        let t0 = Instant::now();
        let _user = governor(t0, &[window(5).shared("agree")]);
        let others = [
            window(6),
            window(5).margin(SEC),
            window(5).reserved(1),
            RateLimit::window(5, 2 * SEC).margin(Duration::ZERO).reserved(0),
            RateLimit::bucket(5, 1, SEC).reserved(0),
        ];
        for other in others {
            let error = Governor::new(&[other.shared("agree")], t0).expect_err("other settings");
            assert_eq!(error.to_string(), r#"invalid rate_limit: "agree" is in use with other settings"#);
        }
        governor(t0, &[window(5).shared("agree").cost(|_| 9).control_cost(2)]);
    }

    #[test]
    fn a_shared_name_dies_when_nobody_uses_it_and_nothing_counts() {
        let t0 = Instant::now();
        let limit = || window(5).shared("mortal");
        let (one, other) = (governor(t0, &[limit()]), governor(t0, &[limit()]));
        one.reserve(t0, &Costs([2, 0, 0, 0]), false).expect("all is free");
        drop(one);
        assert_eq!(available(&other, t0), [3], "one user is left");
        drop(other);
        Governor::new(&[window(6).shared("mortal")], t0).expect_err("what was sent counts yet");
        let back = governor(t0, &[limit()]);
        assert_eq!(available(&back, t0), [3], "whoever comes back finds it as it was");
        back.commit(t0, &Costs([2, 0, 0, 0]));
        drop(back);
        let later = t0 + 2 * SEC;
        governor(later, &[window(7).shared("another")]);
        assert!(!SHARED.lock().contains_key("mortal"));
        assert_eq!(available(&governor(later, &[window(6).shared("mortal")]), later), [6]);
    }

    #[test]
    fn the_unit_of_delays_is_the_slowest_limits() {
        let t0 = Instant::now();
        let bucket = RateLimit::bucket(10, 5, SEC);
        assert_eq!(governor(t0, &[bucket.clone(), RateLimit::window(100, SEC)]).interval(), SEC);
        assert_eq!(governor(t0, &[bucket, RateLimit::window(2, 10 * SEC)]).interval(), 5 * SEC);
    }

    #[test]
    fn a_governor_is_shared_between_threads_and_shows_its_limits() {
        fn shown(governor: &(impl fmt::Debug + Send + Sync)) -> String {
            format!("{governor:?}")
        }
        assert!(shown(&*governor(Instant::now(), &[window(4711)])).contains("capacity: 4711"));
    }

    fn governor(now: Instant, limits: &[RateLimit]) -> Arc<Governor> {
        Governor::new(limits, now).expect("the settings are right").expect("there are limits")
    }

    /// One of a second that is strict to the letter.
    fn window(count: u32) -> RateLimit {
        RateLimit::window(count, SEC).margin(Duration::ZERO).reserved(0)
    }

    fn available(governor: &Governor, now: Instant) -> Vec<u32> {
        governor.status(now).into_iter().map(|status| status.available).collect()
    }
}
