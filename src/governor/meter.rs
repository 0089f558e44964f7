//! The arithmetic of one limit: a token bucket or a sliding window.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::governor::limit::{Kind, LimitStatus, Shape};
use crate::governor::{RateLimit, Refused};

/// The account of one limit, with all connections that share it. Its lock is a leaf.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(super) shape: Shape,
    name: Option<Arc<str>>,
    account: Mutex<Account>,
}

#[derive(Debug)]
enum Account {
    Bucket(Bucket),
    Window(Window),
}

/// Tokens that come in steps.
#[derive(Debug)]
struct Bucket {
    capacity: u32,
    refill: u32,
    interval: Duration,
    tokens: u32,
    /// When the last step was; a `now` before it changes nothing.
    refilled: Instant,
}

/// What left during the last `span`, and what is about to leave. Never more than `count` together.
#[derive(Debug)]
struct Window {
    count: u32,
    /// The window and its margin.
    span: Duration,
    /// Oldest first, so `expires` never decreases.
    log: VecDeque<Entry>,
    /// The cost of all entries.
    logged: u32,
    /// What is reserved and neither committed nor released.
    open: u32,
    /// Until when a commit joins the newest entry.
    joins_until: Instant,
    /// The latest time seen. Threads read the clock before they get the lock, so a call may bring an earlier one, and a stamp
    /// before a time at which room was found would be closer to the past than that room allows.
    latest: Instant,
}

/// What left within a thousandth of a span, counted until the last of it expires: longer than needed, never shorter.
#[derive(Debug)]
struct Entry {
    expires: Instant,
    cost: u32,
}

impl Meter {
    pub(super) fn new(limit: &RateLimit, now: Instant) -> Self {
        let capacity = limit.shape.capacity;
        let account = match limit.shape.kind {
            Kind::Bucket { refill, interval } => {
                Account::Bucket(Bucket { capacity, refill, interval, tokens: capacity, refilled: now })
            }
            Kind::Window { window, margin } => Account::Window(Window::new(capacity, window + margin, now)),
        };
        Self { shape: limit.shape, name: limit.name.clone(), account: Mutex::new(account) }
    }

    /// Whether a reservation would pass.
    pub(super) fn look(&self, now: Instant, cost: u32, privileged: bool) -> Result<(), Refused> {
        self.admit(&mut self.account.lock(), now, cost, privileged)
    }

    pub(super) fn reserve(&self, now: Instant, cost: u32, privileged: bool) -> Result<(), Refused> {
        let mut account = self.account.lock();
        self.admit(&mut account, now, cost, privileged)?;
        account.take(cost);
        Ok(())
    }

    fn admit(&self, account: &mut Account, now: Instant, cost: u32, privileged: bool) -> Result<(), Refused> {
        let most = self.shape.most(privileged);
        if cost > most {
            return Err(Refused::Never { cost, capacity: most });
        }
        // Not above the capacity, since the cost is within `most`.
        let needed = cost + (self.shape.capacity - most);
        match needed.saturating_sub(account.advance(now)) {
            0 => Ok(()),
            missing => Err(Refused::Wait(account.wait(now, missing))),
        }
    }

    pub(super) fn commit(&self, now: Instant, cost: u32) {
        match self.shape.kind {
            Kind::Bucket { .. } => (),
            Kind::Window { .. } => self.account.lock().commit(now, cost),
        }
    }

    pub(super) fn release(&self, cost: u32) {
        self.account.lock().give_back(cost);
    }

    /// Whether nothing that was sent counts any more.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.account.lock().advance(now) == self.shape.capacity
    }

    pub(super) fn status(&self, now: Instant) -> LimitStatus {
        let free = self.account.lock().advance(now);
        LimitStatus {
            capacity: self.shape.capacity,
            available: free.saturating_sub(self.shape.reserved),
            name: self.name.clone(),
        }
    }
}

impl Account {
    /// Brings the account up to `now`; returns what is free.
    fn advance(&mut self, now: Instant) -> u32 {
        match self {
            Self::Bucket(bucket) => bucket.advance(now),
            Self::Window(window) => window.advance(now),
        }
    }

    /// How long after `now` that much more will be free, if nothing else happens. Never zero.
    fn wait(&self, now: Instant, missing: u32) -> Duration {
        match self {
            Self::Bucket(bucket) => bucket.wait(now, missing),
            Self::Window(window) => window.wait(now, missing),
        }
    }

    fn take(&mut self, cost: u32) {
        match self {
            Self::Bucket(bucket) => bucket.tokens -= cost,
            Self::Window(window) => window.open += cost,
        }
    }

    fn give_back(&mut self, cost: u32) {
        match self {
            Self::Bucket(bucket) => bucket.tokens = bucket.tokens.saturating_add(cost).min(bucket.capacity),
            Self::Window(window) => window.close(cost),
        }
    }

    fn commit(&mut self, now: Instant, cost: u32) {
        match self {
            Self::Bucket(_) => (),
            Self::Window(window) => window.commit(now, cost),
        }
    }
}

impl Bucket {
    fn advance(&mut self, now: Instant) -> u32 {
        let elapsed = now.saturating_duration_since(self.refilled);
        if elapsed >= self.interval {
            let (elapsed, interval) = (elapsed.as_nanos(), self.interval.as_nanos());
            let tokens = u128::from(self.tokens) + elapsed / interval * u128::from(self.refill);
            self.tokens = u32::try_from(tokens).map_or(self.capacity, |tokens| tokens.min(self.capacity));
            // The steps keep their rhythm. A remainder is shorter than a year, which fits.
            self.refilled = now - Duration::from_nanos((elapsed % interval) as u64);
        }
        self.tokens
    }

    fn wait(&self, now: Instant, missing: u32) -> Duration {
        let due = self.interval * missing.div_ceil(self.refill);
        // One of the two is zero.
        due + self.refilled.saturating_duration_since(now) - now.saturating_duration_since(self.refilled)
    }
}

impl Window {
    fn new(count: u32, span: Duration, now: Instant) -> Self {
        // An entry costs at least 1.
        let log = VecDeque::with_capacity(ENTRIES_MAX.min(count as usize));
        Self { count, span, log, logged: 0, open: 0, joins_until: now, latest: now }
    }

    fn advance(&mut self, now: Instant) -> u32 {
        self.latest = self.latest.max(now);
        while let Some(oldest) = self.log.front()
            && oldest.expires <= self.latest
        {
            self.logged -= oldest.cost;
            self.log.pop_front();
        }
        self.count.saturating_sub(self.logged.saturating_add(self.open))
    }

    fn wait(&self, now: Instant, missing: u32) -> Duration {
        let mut freed = 0;
        let enough = self.log.iter().find(|entry| {
            freed += entry.cost;
            freed >= missing
        });
        // Nobody knows when the open reservations end: as if they were committed at once.
        let free_at = enough.map_or(self.latest + self.span, |entry| entry.expires);
        free_at.saturating_duration_since(now)
    }

    fn commit(&mut self, now: Instant, cost: u32) {
        self.advance(now);
        self.close(cost);
        self.logged += cost;
        let expires = self.latest + self.span;
        match self.log.back_mut() {
            Some(newest) if self.latest <= self.joins_until => {
                newest.cost += cost;
                newest.expires = expires;
            }
            _ => {
                self.log.push_back(Entry { expires, cost });
                self.joins_until = self.latest + self.span / GRAINS;
            }
        }
    }

    fn close(&mut self, cost: u32) {
        debug_assert!(cost <= self.open, "{cost} ends of {} reserved", self.open);
        self.open = self.open.saturating_sub(cost);
    }
}

/// Into how many parts a span is divided, so that a log stays small however much a window allows.
const GRAINS: u32 = 1024;

/// Entries begin more than a grain apart, none of the live ones earlier than a span and a grain ago.
const ENTRIES_MAX: usize = GRAINS as usize + 2;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    const SEC: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);
    const NS: Duration = Duration::from_nanos(1);

    #[test]
    fn a_bucket_starts_full_and_charges_what_a_message_costs() {
        let t0 = Instant::now();
        let meter = bucket(50, 1, t0);
        let left = [10; 4].map(|cost| {
            meter.reserve(t0, cost, false).expect("enough tokens");
            free(&meter, t0)
        });
        assert_eq!(left, [40, 30, 20, 10]);
    }

    #[test]
    fn a_rejected_reservation_takes_nothing() {
        let t0 = Instant::now();
        let meter = bucket(20, 1, t0);
        assert_eq!(meter.reserve(t0, 15, false), Ok(()));
        assert_eq!(meter.reserve(t0, 15, false), Err(Refused::Wait(10 * SEC)));
        assert_eq!(free(&meter, t0), 5);
    }

    #[test]
    fn a_refill_adds_its_tokens_up_to_the_capacity() {
        let t0 = Instant::now();
        let meter = bucket(100, 25, t0);
        meter.reserve(t0, 50, false).expect("full");
        assert_eq!([SEC - NS, SEC, 2 * SEC, 3 * SEC, 1000 * SEC].map(|after| free(&meter, t0 + after)), [50, 75, 100, 100, 100]);
    }

    #[test]
    fn the_steps_of_a_bucket_keep_their_rhythm() {
        let t0 = Instant::now();
        let meter = bucket(100, 1, t0);
        meter.reserve(t0, 100, false).expect("full");
        assert_eq!([1900 * MS, 2 * SEC, 3999 * MS, 4 * SEC].map(|after| free(&meter, t0 + after)), [1, 2, 3, 4]);
    }

    #[test]
    fn rejected_messages_do_not_spend_what_is_refilled() {
        let t0 = Instant::now();
        let meter = bucket(2, 2, t0);
        meter.reserve(t0, 2, false).expect("full");
        for _ in 0..3 {
            assert_eq!(meter.reserve(t0, 1, false), Err(Refused::Wait(SEC)));
        }
        assert_eq!(free(&meter, t0 + SEC), 2);
        assert_eq!(meter.reserve(t0 + SEC, 1, false), Ok(()), "recovered");
    }

    #[test]
    fn a_bucket_idle_for_long_is_full_and_no_fuller() {
        let t0 = Instant::now();
        let limit = RateLimit::bucket(u32::MAX, u32::MAX, NS).reserved(0);
        let meter = Meter::new(&limit, t0);
        meter.reserve(t0, u32::MAX, false).expect("full");
        assert_eq!(free(&meter, t0 + 1_000_000_000 * SEC), u32::MAX);
    }

    #[test]
    fn the_limits_of_known_venues_count_as_they_say() {
        let t0 = Instant::now();
        let left = |limit: RateLimit, costs: &[u32]| -> Vec<Option<u32>> {
            let meter = Meter::new(&limit.reserved(0), t0);
            costs.iter().map(|cost| meter.reserve(t0, *cost, false).ok().map(|()| free(&meter, t0))).collect()
        };
        assert_eq!(left(RateLimit::bucket(1500, 1000, SEC), &[1, 15]), [Some(1499), Some(1484)]);
        assert_eq!(left(RateLimit::bucket(60, 60, SEC), &[2]), [Some(58)]);
        assert_eq!(left(RateLimit::bucket(15, 15, SEC), &[1; 16])[14..], [Some(0), None]);
        assert_eq!(left(RateLimit::bucket(1200, 20, SEC), &[1, 2]), [Some(1199), Some(1197)]);
    }

    #[test]
    fn what_is_released_is_free_again_and_no_more() {
        let t0 = Instant::now();
        for meter in [bucket(10, 4, t0), window(10, t0)] {
            meter.reserve(t0, 8, false).expect("all is free");
            meter.release(8);
            assert_eq!(free(&meter, t0), 10);
        }
        let meter = bucket(10, 4, t0);
        meter.reserve(t0, 8, false).expect("full");
        assert_eq!(free(&meter, t0 + SEC), 6);
        meter.release(8);
        assert_eq!(free(&meter, t0 + SEC), 10, "not above the capacity");
    }

    #[test]
    fn the_tokens_of_a_bucket_go_with_the_reservation() {
        let t0 = Instant::now();
        let meter = bucket(10, 1, t0);
        meter.reserve(t0, 8, false).expect("full");
        meter.commit(t0, 8);
        assert_eq!(free(&meter, t0), 2);
    }

    #[test]
    fn a_reservation_counts_until_committed_and_from_its_stamp_on() {
        let t0 = Instant::now();
        let meter = window(1, t0);
        meter.reserve(t0, 1, false).expect("all is free");
        assert_eq!(free(&meter, t0 + 100 * SEC), 0, "not committed");
        meter.commit(t0 + 100 * SEC, 1);
        assert_eq!([101 * SEC - NS, 101 * SEC].map(|after| free(&meter, t0 + after)), [0, 1]);
    }

    #[test]
    fn a_margin_lengthens_the_window() {
        let t0 = Instant::now();
        let meter = Meter::new(&RateLimit::window(2, SEC).reserved(0), t0);
        send(&meter, t0, 2);
        assert_eq!(meter.reserve(t0 + SEC, 1, false), Err(Refused::Wait(100 * MS)));
        assert_eq!(meter.reserve(t0 + SEC + 100 * MS, 2, false), Ok(()));
    }

    #[test]
    fn a_window_slides() {
        let t0 = Instant::now();
        let meter = window(3, t0);
        for tenth in [0, 4, 8] {
            send(&meter, t0 + tenth * 100 * MS, 1);
        }
        assert_eq!(meter.reserve(t0 + 900 * MS, 1, false), Err(Refused::Wait(100 * MS)));
        assert_eq!(meter.reserve(t0 + 900 * MS, 2, false), Err(Refused::Wait(500 * MS)));
        assert_eq!(meter.reserve(t0 + 900 * MS, 3, false), Err(Refused::Wait(900 * MS)));
        assert_eq!(free(&meter, t0 + 1400 * MS), 2);
    }

    #[test]
    fn only_the_privileged_may_take_what_is_reserved() {
        let t0 = Instant::now();
        for limit in [RateLimit::bucket(10, 1, SEC), RateLimit::window(10, SEC).margin(Duration::ZERO)] {
            let meter = Meter::new(&limit.reserved(3), t0);
            send(&meter, t0, 6);
            assert_eq!(meter.status(t0).available, 1);
            assert!(matches!(meter.reserve(t0, 2, false), Err(Refused::Wait(_))));
            assert_eq!(meter.reserve(t0, 4, true), Ok(()));
            assert_eq!((meter.status(t0).available, meter.status(t0).capacity), (0, 10));
        }
    }

    #[test]
    fn what_costs_more_than_a_limit_gives_is_never_allowed() {
        let t0 = Instant::now();
        for limit in [RateLimit::bucket(10, 1, SEC), RateLimit::window(10, SEC)] {
            let meter = Meter::new(&limit.reserved(3), t0);
            assert_eq!(meter.reserve(t0, 8, false), Err(Refused::Never { cost: 8, capacity: 7 }));
            assert_eq!(meter.reserve(t0, u32::MAX, true), Err(Refused::Never { cost: u32::MAX, capacity: 10 }));
            assert_eq!(meter.reserve(t0, 7, false).and(meter.reserve(t0, 3, true)), Ok(()));
        }
    }

    #[test]
    fn a_retry_after_the_wait_passes_and_a_nanosecond_earlier_does_not() {
        let t0 = Instant::now();
        let t1 = t0 + 400 * MS;
        for cost in 3..=10 {
            for meter in [bucket(10, 3, t0), window(10, t0)] {
                [0, 100, 350, 370].into_iter().for_each(|ms| send(&meter, t0 + ms * MS, 2));
                let Err(Refused::Wait(wait)) = meter.reserve(t1, cost, false) else { panic!("{cost} are not free") };
                meter.reserve(t1 + wait - NS, cost, false).expect_err("too early");
                assert_eq!(meter.reserve(t1 + wait, cost, false), Ok(()), "{cost} after {wait:?}");
            }
        }
    }

    #[test]
    fn an_open_reservation_in_the_way_is_waited_for_as_if_committed_at_once() {
        let t0 = Instant::now();
        let meter = window(3, t0);
        send(&meter, t0, 1);
        meter.reserve(t0, 2, false).expect("free");
        let wait = |cost| meter.reserve(t0 + 400 * MS, cost, false);
        assert_eq!([wait(1), wait(2)], [Err(Refused::Wait(600 * MS)), Err(Refused::Wait(SEC))]);
        assert_eq!(meter.reserve(t0 + 5 * SEC, 2, false), Err(Refused::Wait(SEC)), "nothing is logged");
        meter.commit(t0 + 5 * SEC, 2);
        assert_eq!(meter.reserve(t0 + 6 * SEC, 2, false), Ok(()));
    }

    #[test]
    fn an_earlier_now_is_taken_for_the_latest() {
        let t0 = Instant::now();
        let t1 = t0 + 10 * SEC;
        let meter = window(1, t0);
        meter.reserve(t1, 1, false).expect("all is free");
        meter.commit(t1 - SEC / 2, 1);
        assert_eq!(meter.reserve(t1 - SEC, 1, false), Err(Refused::Wait(2 * SEC)));
        assert_eq!([t1, t0, t1 + SEC - NS, t1 + SEC, t0].map(|now| free(&meter, now)), [0, 0, 0, 1, 1]);
        let meter = bucket(1, 1, t1);
        meter.reserve(t0, 1, false).expect("full");
        assert_eq!(meter.reserve(t0, 1, false), Err(Refused::Wait(11 * SEC)));
    }

    #[test]
    fn stamps_are_merged_and_count_no_shorter_and_a_thousandth_longer() {
        let t0 = Instant::now();
        let meter = Meter::new(&RateLimit::window(10, 1024 * MS).margin(Duration::ZERO).reserved(0), t0);
        [Duration::ZERO, MS, MS + NS].into_iter().for_each(|after| send(&meter, t0 + after, 1));
        let t1 = t0 + 1024 * MS;
        assert_eq!([t1, t1 + MS - NS, t1 + MS, t1 + MS + NS].map(|now| free(&meter, now)), [7, 7, 9, 10]);
    }

    #[test]
    fn the_log_stays_bounded_however_much_a_window_allows() {
        let t0 = Instant::now();
        let meter = Meter::new(&RateLimit::window(160_000, 86_400 * SEC).reserved(0), t0);
        let capacity = log(&meter, VecDeque::capacity);
        let mut longest = 0;
        for step in 0..1_000_000 {
            let now = t0 + step * 541 * MS;
            send(&meter, now, 1);
            longest = longest.max(log(&meter, VecDeque::len));
        }
        assert!((1000..=ENTRIES_MAX).contains(&longest), "{longest}");
        assert_eq!(log(&meter, VecDeque::capacity), capacity);
    }

    #[test]
    fn a_hundred_threads_share_what_there_is_to_the_last_token() {
        let t0 = Instant::now();
        for meter in [bucket(1000, 1, t0), window(1000, t0)] {
            thread::scope(|scope| {
                for _ in 0..100 {
                    scope.spawn(|| (0..10).for_each(|_| send(&meter, t0, 1)));
                }
            });
            assert_eq!(free(&meter, t0), 0);
            meter.reserve(t0, 1, false).expect_err("all is spent");
        }
    }

    #[test]
    fn a_refill_never_brings_spent_tokens_back() {
        let t0 = Instant::now();
        for _round in 0..15 {
            let meter = Meter::new(&RateLimit::bucket(10_000_000, 10, SEC), t0);
            meter.reserve(t0, 5_000_000, false).expect("full");
            thread::scope(|scope| {
                scope.spawn(|| (1..=400).map(|step| free(&meter, t0 + step * SEC)).max());
                for _ in 0..4 {
                    scope.spawn(|| (0..1000).for_each(|_| meter.reserve(t0, 1, false).expect("millions are left")));
                }
            });
            assert_eq!(free(&meter, t0 + 400 * SEC), 5_000_000 + 400 * 10 - 4000);
        }
    }

    /// The threads have one clock that each of them moves. A frame leaves when its commit says, by a look at the clock after the
    /// reservation.
    #[test]
    fn threads_that_share_a_window_never_exceed_it() {
        let t0 = Instant::now();
        let meter = Meter::new(&RateLimit::window(5000, 10 * MS).margin(Duration::ZERO).reserved(0), t0);
        let clock = AtomicU64::new(0);
        let sender = |index: u64| {
            let mut left = Vec::new();
            for turn in 0..125_000 {
                let now = clock.fetch_add(1 + (turn + index) % 1999, Ordering::SeqCst);
                let cost = 1 + (turn % 3) as u32;
                match meter.reserve(t0 + Duration::from_nanos(now), cost, false) {
                    Ok(()) if turn % 16 == 0 => meter.release(cost),
                    Ok(()) => {
                        let now = clock.load(Ordering::SeqCst);
                        meter.commit(t0 + Duration::from_nanos(now), cost);
                        left.push((now, cost));
                    }
                    Err(refused) => assert!(matches!(refused, Refused::Wait(wait) if wait > Duration::ZERO)),
                }
            }
            left
        };
        let mut left: Vec<_> = thread::scope(|scope| {
            let senders: Vec<_> = (0..8).map(|index| scope.spawn(move || sender(index))).collect();
            senders.into_iter().flat_map(|sender| sender.join().expect("no sender panics")).collect()
        });
        left.sort_unstable();
        assert!(most_in_any(&left, 10_000_000) <= 5000);
        assert!(left.len() > 25_000, "{} left in a hundred windows", left.len());
    }

    proptest! {
        #[test]
        fn whatever_happens_no_window_holds_more_than_its_count(
            count in 2u32..20,
            reserved in 0u32..2,
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let t0 = Instant::now();
            let limit = RateLimit::window(count, Duration::from_nanos(SPAN)).margin(Duration::ZERO).reserved(reserved);
            let meter = Meter::new(&limit, t0);
            let (mut now, mut open, mut left) = (0, Vec::new(), Vec::new());
            for step in steps {
                let at = |nanos| t0 + Duration::from_nanos(nanos);
                match step {
                    Step::Pass(nanos) => now += nanos,
                    Step::Reserve { cost, privileged, late } => match meter.reserve(at(now - late.min(now)), cost, privileged) {
                        Ok(()) => open.push(cost),
                        Err(Refused::Wait(wait)) => {
                            prop_assert!(wait > Duration::ZERO);
                            if open.is_empty() {
                                now = now - late.min(now) + wait.as_nanos() as u64;
                                prop_assert_eq!(meter.reserve(at(now), cost, privileged), Ok(()));
                                open.push(cost);
                            }
                        }
                        Err(Refused::Never { .. }) => prop_assert!(cost > count - reserved * u32::from(!privileged)),
                    },
                    Step::Commit(index) if !open.is_empty() => {
                        let cost = open.swap_remove(index % open.len());
                        meter.commit(at(now), cost);
                        left.push((now, cost));
                    }
                    Step::Release(index) if !open.is_empty() => meter.release(open.swap_remove(index % open.len())),
                    Step::Commit(_) | Step::Release(_) => (),
                }
                let recent: u32 = left.iter().filter(|(stamp, _)| stamp + SPAN > now).map(|(_, cost)| cost).sum();
                let expected = count.saturating_sub(recent + open.iter().sum::<u32>());
                prop_assert!(free(&meter, at(now)) <= expected);
            }
            prop_assert!(most_in_any(&left, SPAN) <= count);
        }
    }

    /// The window of the property, in nanoseconds.
    const SPAN: u64 = 100_000;

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        Reserve { cost: u32, privileged: bool, late: u64 },
        Commit(usize),
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let reserve = (1u32..8, any::<bool>(), 0u64..1000);
        prop_oneof![
            2 => prop_oneof![0u64..200, 0u64..50_000].prop_map(Step::Pass),
            4 => reserve.prop_map(|(cost, privileged, late)| Step::Reserve { cost, privileged, late }),
            3 => any::<usize>().prop_map(Step::Commit),
            1 => any::<usize>().prop_map(Step::Release),
        ]
    }

    /// The greatest sum of costs whose stamps lie less than a span apart; the stamps are in order.
    fn most_in_any(left: &[(u64, u32)], span: u64) -> u32 {
        let (mut most, mut sum, mut oldest) = (0, 0, 0);
        for (stamp, cost) in left {
            sum += cost;
            while left[oldest].0 + span <= *stamp {
                sum -= left[oldest].1;
                oldest += 1;
            }
            most = most.max(sum);
        }
        most
    }

    fn bucket(capacity: u32, refill: u32, now: Instant) -> Meter {
        Meter::new(&RateLimit::bucket(capacity, refill, SEC).reserved(0), now)
    }

    /// One of a second, without a margin.
    fn window(count: u32, now: Instant) -> Meter {
        Meter::new(&RateLimit::window(count, SEC).margin(Duration::ZERO).reserved(0), now)
    }

    fn send(meter: &Meter, now: Instant, cost: u32) {
        meter.reserve(now, cost, false).expect("the limit allows it");
        meter.commit(now, cost);
    }

    fn free(meter: &Meter, now: Instant) -> u32 {
        meter.account.lock().advance(now)
    }

    fn log<T>(meter: &Meter, look: impl Fn(&VecDeque<Entry>) -> T) -> T {
        match &*meter.account.lock() {
            Account::Bucket(_) => panic!("a bucket has no log"),
            Account::Window(window) => look(&window.log),
        }
    }
}
