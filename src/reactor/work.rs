//! What a driver has done: how often it turned, how long it was busy, and who kept it longest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::event::ConnectionId;
use crate::metrics::{ReactorMetrics, Stall};
use crate::reactor::shared::Counters;

/// From when on serving one connection is a stall worth telling of: a poll, a read and a decode of 64 KiB take a hundredth of it.
const STALL_MIN: Duration = Duration::from_millis(10);

/// What others may know of a driver's work.
#[derive(Default)]
pub(crate) struct Work {
    connections: AtomicU64,
    turns: AtomicU64,
    busy: AtomicU64,
    longest: Mutex<Option<Stall>>,
}

/// The driver's side of it.
pub(crate) struct Stopwatch {
    /// When the slot before was done, or the poller.
    since: Instant,
    longest: Duration,
}

impl Work {
    pub(crate) fn metrics(&self) -> ReactorMetrics {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReactorMetrics {
            connections: count(&self.connections) as usize,
            turns: count(&self.turns),
            busy: Duration::from_nanos(count(&self.busy)),
            longest_stall: *self.longest.lock(),
        }
    }

    pub(crate) fn note_turn(&self) {
        Counters::add(&self.turns, 1);
    }

    pub(crate) fn note_connections(&self, connections: usize) {
        self.connections.store(connections as u64, Ordering::Relaxed);
    }
}

impl Stopwatch {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), longest: Duration::ZERO }
    }

    /// Work begins.
    pub(crate) fn start(&mut self, now: Instant) {
        self.since = now;
    }

    /// When the work at hand began.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// A connection was served. Returns how long that took, if it is worth telling of.
    pub(crate) fn lap(&mut self, connection: ConnectionId, work: &Work) -> Option<Duration> {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.since);
        self.since = now;
        Counters::add(&work.busy, took.as_nanos() as u64);
        if took > self.longest {
            self.longest = took;
            *work.longest.lock() = Some(Stall { took, connection });
        }
        (took >= STALL_MIN).then_some(took)
    }
}
