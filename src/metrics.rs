//! What connections and reactors have counted and measured.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::error::Error;
use crate::event::{ConnectionId, Generation, Standing, State};
use crate::governor::{LimitStatus, Pressure};
use crate::latency::Latency;
use crate::recorder::RecorderStatus;

/// What a connection has counted since it was opened, over all its wires, and how it stands. Works on a closed connection too.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Where the connection stands.
    pub state: State,
    /// Which wire is or was the latest.
    pub generation: Generation,
    /// How long the wire has been open; `None` if none is.
    pub uptime: Option<Duration>,
    /// Dials begun since the first wire was open.
    pub redials: u64,
    /// Messages received, those dropped or discarded included.
    pub messages_in: u64,
    /// Bytes received after the upgrade, frame headers included, TLS removed.
    pub bytes_in: u64,
    /// Messages that were encoded to be sent, the dialect's own included, control frames not.
    pub messages_out: u64,
    /// Bytes encoded to be sent after the upgrade, frame headers and control frames included, before TLS.
    pub bytes_out: u64,
    /// Messages dropped because an inbox was full.
    pub dropped: u64,
    /// Events discarded because nobody holds the inbox any more.
    pub discarded: u64,
    /// Events that wait in the inbox of the connection, those of others included if it is shared; `None` without an inbox, 0 once nobody
    /// feeds it any more.
    pub inbox_depth: Option<usize>,
    /// Calls that wait for their replies.
    pub calls_pending: usize,
    /// How the channels stand that are wanted.
    pub channels: ChannelCounts,
    /// Bytes of accepted messages that the kernel has not taken yet.
    pub unsent: usize,
    /// Messages that wait for the rate limit.
    pub queued: usize,
    /// How full the queue for the rate limit is.
    pub pressure: Pressure,
    /// About how many bytes of memory the connection holds, without the events in its inbox, TLS, histograms, and what handlers and
    /// dialects hold.
    pub memory: usize,
    /// How its recording fares, if it is recorded.
    pub recorder: Option<RecorderStatus>,
}

/// How many channels stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelCounts {
    /// To be asked for.
    pub wanted: u32,
    /// Asked for and not answered.
    pub pending: u32,
    /// Confirmed by the venue.
    pub confirmed: u32,
    /// Refused by the venue.
    pub rejected: u32,
}

/// How the heartbeat of a connection fares. Works on a closed connection too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeartbeatStatus {
    /// How often a ping leaves; `None` if none does.
    pub interval: Option<Duration>,
    /// Pings of this wire that are not answered yet.
    pub unanswered: usize,
    /// How long ago the oldest of them left.
    pub waiting: Option<Duration>,
    /// Pings that were not answered within the patience, over all wires.
    pub misses: u64,
    /// When the peer last answered one, over all wires.
    pub last_proof: Option<Proof>,
    /// The round trip of that one.
    pub rtt: Option<Duration>,
}

/// When the peer proved that it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proof {
    /// By the clock that is never set.
    pub at: Instant,
    /// By the system's clock, as it is set at the moment of asking.
    pub wall: SystemTime,
}

/// What a reactor or driver has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReactorMetrics {
    /// Connections it serves.
    pub connections: usize,
    /// Looks at what there is to do.
    pub turns: u64,
    /// How long it did something, handlers included; the rest it waited, or found nothing to do.
    pub busy: Duration,
    /// The longest time that it served one connection and no other.
    pub longest_stall: Option<Stall>,
}

/// A time during which a reactor served one connection and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stall {
    /// How long.
    pub took: Duration,
    /// Which connection.
    pub connection: ConnectionId,
}

/// How long things take on a connection, over all its wires. What is not measured, or has not happened, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latencies {
    /// From the start of a call until its reply was read.
    pub calls: Option<Latency>,
    /// The same for each method by itself, in the order of their first replies; calls of further methods than the first 64 count in
    /// [`calls`](Self::calls) only, and so do raw requests.
    pub methods: Vec<(Arc<str>, Latency)>,
    /// From a ping until its pong was read.
    pub pings: Option<Latency>,
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

impl ChannelCounts {
    /// The count of this standing.
    pub(crate) fn of(&mut self, standing: &Standing) -> &mut u32 {
        match standing {
            Standing::Wanted => &mut self.wanted,
            Standing::Pending => &mut self.pending,
            Standing::Confirmed => &mut self.confirmed,
            Standing::Rejected(_) => &mut self.rejected,
        }
    }
}
