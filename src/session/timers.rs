//! Deadlines by reason: one small array, no allocation.

use std::time::Instant;

/// Why a session wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The dial takes too long in all.
    Dial,
    /// A phase of the dial takes too long.
    Phase,
    /// The pause before the next dial is over.
    Redial,
    /// The next ping is due.
    Ping,
    /// An unanswered ping must be judged.
    Patience,
    /// The data clock may have run out.
    DataSilence,
    /// The close handshake takes too long.
    Close,
}

const ALL: [Timer; 7] =
    [Timer::Dial, Timer::Phase, Timer::Redial, Timer::Ping, Timer::Patience, Timer::DataSilence, Timer::Close];

/// The deadline of each [`Timer`] that is armed.
#[derive(Debug, Default)]
pub(crate) struct Timers([Option<Instant>; ALL.len()]);

impl Timers {
    /// Arms a timer, in place of an earlier deadline.
    pub(crate) fn set(&mut self, timer: Timer, deadline: Instant) {
        self.0[timer as usize] = Some(deadline);
    }

    /// Disarms a timer.
    pub(crate) fn stop(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    /// Disarms all.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether a timer is armed.
    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.0[timer as usize].is_some()
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Removes one timer whose deadline has come; call until `None`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let due = ALL.into_iter().find(|timer| self.0[*timer as usize].is_some_and(|deadline| deadline <= now))?;
        self.stop(due);
        Some(due)
    }
}
