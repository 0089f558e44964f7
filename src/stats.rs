//! What a connection has counted.

use std::time::Duration;

use crate::governor::{LimitStatus, Pressure};

/// What a connection has counted since it was opened, over all its wires. Works on a closed connection too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages received, those dropped or discarded included.
    pub messages: u64,
    /// Bytes received after the upgrade, frame headers included, TLS removed.
    pub bytes: u64,
    /// Messages dropped because the inbox was full.
    pub dropped: u64,
    /// Events discarded because nobody holds the inbox any more.
    pub discarded: u64,
    /// The round trip of the latest answered ping.
    pub rtt: Option<Duration>,
    /// Pings of the heartbeat that were not answered within the patience.
    pub pings_missed: u64,
    /// The round trip of the latest call that was answered.
    pub call_rtt: Option<Duration>,
    /// Calls that wait for their replies.
    pub calls_pending: usize,
}

/// How far the rate limits of a connection are used up.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RateStatus {
    /// What each limit has left, in the order of the config.
    pub limits: Vec<LimitStatus>,
    /// How many messages wait under [`Throttle::Queue`](crate::Throttle::Queue).
    pub queued: usize,
    /// How full that queue is.
    pub pressure: Pressure,
    /// How long a program that wants to relieve the queue had better wait before its next message: none, one, two or four times the
    /// interval at which the limits give back, by the pressure.
    pub suggested_delay: Duration,
}
