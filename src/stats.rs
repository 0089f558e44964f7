//! What a connection has counted.

use std::time::Duration;

use crate::error::Error;
use crate::governor::{LimitStatus, Pressure};
use crate::latency::Latency;

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

/// How long things take on a connection, over all its wires. What is not measured, or has not happened, is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latencies {
    /// From the kernel's taking the last bytes of a read from the network until the first of their messages is delivered; one sample per
    /// read. Measured with [`Config::kernel_stamps`](crate::Config::kernel_stamps).
    pub kernel: Option<Latency>,
    /// From the call of a send until the frame is encoded: what waiting for other senders and for the rate limit, and masking take.
    /// Measured with [`Config::send_stamps`](crate::Config::send_stamps).
    pub encode: Option<Latency>,
    /// From there until the kernel has taken the last byte. Measured with [`Config::send_stamps`](crate::Config::send_stamps).
    pub write: Option<Latency>,
}

/// What became of messages that were sent together.
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub struct SentMany {
    /// How many were accepted, from the first on.
    pub accepted: usize,
    /// Why the next one was not, nor any behind it; `None` if all were accepted. It says of that message what the error of
    /// [`Client::send`](crate::Client::send) would.
    pub error: Option<Error>,
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
