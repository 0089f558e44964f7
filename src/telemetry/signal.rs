//! The kinds of signals.

use std::time::Duration;

use crate::dialect::Id;
use crate::error::{Error, Phase};
use crate::governor::Pressure;

/// Something that happened. Each kind has a dotted name, the one in front of its description.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Signal<'a> {
    /// `connection.dial`: a dial begins.
    Dial {
        /// Counts the dials as [`Event::Dialing`](crate::Event::Dialing) does.
        attempt: u32,
    },
    /// `connection.dial_phase`: a phase of a dial is done, well or not; a login has a signal of its own.
    DialPhase {
        /// Which.
        phase: Phase,
        /// How long it took.
        took: Duration,
    },
    /// `connection.dial_failed`: a dial failed.
    DialFailed {
        /// Which.
        attempt: u32,
        /// Why.
        cause: &'a Error,
    },
    /// `connection.upgrade`: the server has upgraded to WebSocket.
    Upgrade {
        /// How long the dial took up to here.
        took: Duration,
    },
    /// `connection.login`: the dialect's login has succeeded; not told of dialects that have none.
    Login {
        /// How long after the upgrade.
        took: Duration,
    },
    /// `connection.open`: as [`Event::Open`](crate::Event::Open).
    Open,
    /// `connection.live`: every channel wanted is confirmed.
    Live,
    /// `connection.lost`: an open wire is gone.
    Lost {
        /// Why.
        cause: &'a Error,
        /// Who ended it.
        closer: Closer,
        /// The code of the peer's Close frame, if it sent one.
        code: Option<u16>,
        /// How long the wire was open.
        uptime: Duration,
    },
    /// `connection.redial_scheduled`: there will be another dial.
    RedialScheduled {
        /// How long from now; zero after a loss.
        delay: Duration,
    },
    /// `connection.redials_exhausted`: there will be no further dial, because as many failed as the config allows.
    RedialsExhausted {
        /// How many.
        attempts: u32,
    },
    /// `connection.closed`: the connection has ended for good.
    Closed {
        /// `None` if this program closed it.
        cause: Option<&'a Error>,
    },
    /// `heartbeat.ping`: a heartbeat, or a ping of a caller's, leaves. The latter's is told by its own thread, perhaps behind its pong.
    Ping,
    /// `heartbeat.pong`: the peer has answered one.
    Pong {
        /// How long after it left.
        rtt: Duration,
        /// `"ping_pong"`, or the name of the dialect whose message it was.
        kind: &'a str,
    },
    /// `heartbeat.missed`: one was not answered in time.
    Missed {
        /// How many were not, since the connection was opened.
        misses: u64,
    },
    /// `traffic.count`: what went to and fro since the last signal of this kind on this connection; about once a second while something is
    /// received, and when the wire ends. On connections that were open before somebody began to listen, the counts
    /// begin with the next read.
    Traffic {
        /// Messages received.
        messages_in: u64,
        /// Bytes received, as [`Metrics::bytes_in`](crate::Metrics::bytes_in).
        bytes_in: u64,
        /// Messages sent.
        messages_out: u64,
        /// Bytes sent, as [`Metrics::bytes_out`](crate::Metrics::bytes_out).
        bytes_out: u64,
    },
    /// `traffic.dropped`: messages were dropped, because an inbox was full.
    Dropped {
        /// How many.
        messages: u64,
    },
    /// `traffic.unsent`: messages did not leave before their wire ended.
    Unsent {
        /// How many.
        messages: usize,
        /// The bytes, as in [`Event::Unsent`](crate::Event::Unsent).
        bytes: usize,
    },
    /// `traffic.refused`: a message was refused because too much waits for the kernel.
    Refused {
        /// Bytes unsent.
        unsent: usize,
    },
    /// `traffic.blocked`: reading stops, because the inbox is full.
    Blocked,
    /// `traffic.resumed`: reading goes on.
    Resumed,
    /// `rate_limiter.consume`: a limit has let a message pass.
    Consume {
        /// The name of a shared limit.
        name: Option<&'a str>,
        /// What the message cost, or those sent with it together.
        cost: u32,
        /// What is left for an ordinary message.
        available: u32,
        /// What the limit holds at most.
        capacity: u32,
    },
    /// `rate_limiter.refill`: a limit that held messages back has given again.
    Refill {
        /// The name of a shared limit.
        name: Option<&'a str>,
        /// What there is for an ordinary message.
        available: u32,
        /// What the limit holds at most.
        capacity: u32,
    },
    /// `rate_limiter.throttle`: a message was refused or has to wait, because a limit allows it only later.
    Throttle {
        /// How much later.
        wait: Duration,
    },
    /// `rate_limiter.queue`: a message waits for the rate limit.
    Queue {
        /// How many do.
        waiting: usize,
    },
    /// `rate_limiter.queue_full`: a message was refused, because too many wait for the rate limit.
    QueueFull {
        /// How many do.
        waiting: usize,
    },
    /// `rate_limiter.pressure`: the queue for the rate limit has become fuller or emptier.
    Pressure {
        /// How full it is.
        level: Pressure,
        /// How full it was.
        previous: Pressure,
    },
    /// `request_correlator.track`: a call waits for its reply.
    Track {
        /// The id of the request.
        id: &'a Id,
        /// How long it waits at most.
        timeout: Duration,
    },
    /// `request_correlator.resolve`: a call has its reply.
    Resolve {
        /// The id of the request.
        id: &'a Id,
        /// How long after the call began.
        round_trip: Duration,
    },
    /// `request_correlator.timeout`: a call has waited too long.
    Timeout {
        /// The id of the request.
        id: &'a Id,
    },
    /// `request_correlator.fail_all`: a call has failed with its wire; one signal for each.
    FailAll {
        /// The id of the request.
        id: &'a Id,
        /// Why the wire ended.
        cause: &'a Error,
    },
    /// `request_correlator.cancel`: a call was taken back, because its message was refused or its caller gave it up.
    Cancel {
        /// The id of the request.
        id: &'a Id,
    },
    /// `request_correlator.unmatched`: a reply answers no call that waits.
    Unmatched {
        /// The id of the reply.
        id: &'a Id,
    },
    /// `subscription_manager.add`: a channel is wanted.
    Add {
        /// The channel.
        channel: &'a str,
    },
    /// `subscription_manager.remove`: nobody wants a channel any more.
    Remove {
        /// The channel.
        channel: &'a str,
    },
    /// `subscription_manager.restore`: the channels that are wanted are subscribed on a new wire.
    Restore {
        /// How many.
        channels: usize,
    },
    /// `subscription_manager.restored`: the venue has confirmed them all.
    Restored {
        /// How many.
        channels: usize,
        /// How long that took.
        took: Duration,
    },
    /// `subscription_manager.rejected`: the venue refused a channel.
    Rejected {
        /// The channel.
        channel: &'a str,
        /// What the venue said.
        reason: &'a str,
    },
    /// `subscription_manager.silent`: no data of a channel comes.
    Silent {
        /// The channel.
        channel: &'a str,
        /// For how long none came.
        quiet: Duration,
    },
    /// `subscription_manager.gap`: the sequence of a channel has a hole.
    Gap {
        /// The channel.
        channel: &'a str,
        /// By how much its numbers jump.
        missing: u64,
    },
    /// `reactor.stall`: serving one connection, its handler included, kept a reactor from all others for 10 ms or more.
    Stall {
        /// How long.
        took: Duration,
    },
    /// `recorder.dropped`: entries of a recording were dropped, because its writer did not keep up. Of no connection, as a recording may be
    /// that of several.
    RecorderDropped {
        /// How many.
        entries: u64,
    },
    /// `recorder.failed`: a recording cannot be written; it is tried again every second. Of no connection.
    RecorderFailed {
        /// What the system said.
        cause: &'a str,
    },
}

/// Who ended a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closer {
    /// The peer did, with a Close frame or without.
    Peer,
    /// This side did: the program, a limit, or the verdict that the peer is silent or breaks the protocol.
    Own,
    /// The network did, or TLS.
    Network,
}

impl Signal<'_> {
    /// The dotted names of all kinds.
    ///
    /// ```
    /// assert!(zen_websocket::telemetry::Signal::NAMES.contains(&"heartbeat.pong"));
    /// ```
    pub const NAMES: &'static [&'static str] = &[
        "connection.dial",
        "connection.dial_phase",
        "connection.dial_failed",
        "connection.upgrade",
        "connection.login",
        "connection.open",
        "connection.live",
        "connection.lost",
        "connection.redial_scheduled",
        "connection.redials_exhausted",
        "connection.closed",
        "heartbeat.ping",
        "heartbeat.pong",
        "heartbeat.missed",
        "traffic.count",
        "traffic.dropped",
        "traffic.unsent",
        "traffic.refused",
        "traffic.blocked",
        "traffic.resumed",
        "rate_limiter.consume",
        "rate_limiter.refill",
        "rate_limiter.throttle",
        "rate_limiter.queue",
        "rate_limiter.queue_full",
        "rate_limiter.pressure",
        "request_correlator.track",
        "request_correlator.resolve",
        "request_correlator.timeout",
        "request_correlator.fail_all",
        "request_correlator.unmatched",
        "subscription_manager.add",
        "subscription_manager.remove",
        "subscription_manager.restore",
        "subscription_manager.restored",
        "subscription_manager.rejected",
        "subscription_manager.silent",
        "subscription_manager.gap",
        "reactor.stall",
        "recorder.dropped",
        "recorder.failed",
        "request_correlator.cancel",
    ];

    /// The place of `traffic.count` among the names: whoever counts asks for it before there is a signal.
    pub(crate) const TRAFFIC: usize = 14;
    /// That of `rate_limiter.consume`.
    pub(crate) const CONSUME: usize = 20;
    /// That of `rate_limiter.refill`.
    pub(crate) const REFILL: usize = 21;
    /// That of `rate_limiter.queue`.
    pub(crate) const QUEUE: usize = 23;
    /// That of `rate_limiter.pressure`.
    pub(crate) const PRESSURE: usize = 25;

    /// The dotted name of its kind.
    pub fn name(&self) -> &'static str {
        Self::NAMES[self.kind()]
    }

    /// The place of its kind among the names.
    pub(crate) fn kind(&self) -> usize {
        match self {
            Self::Dial { .. } => 0,
            Self::DialPhase { .. } => 1,
            Self::DialFailed { .. } => 2,
            Self::Upgrade { .. } => 3,
            Self::Login { .. } => 4,
            Self::Open => 5,
            Self::Live => 6,
            Self::Lost { .. } => 7,
            Self::RedialScheduled { .. } => 8,
            Self::RedialsExhausted { .. } => 9,
            Self::Closed { .. } => 10,
            Self::Ping => 11,
            Self::Pong { .. } => 12,
            Self::Missed { .. } => 13,
            Self::Traffic { .. } => Self::TRAFFIC,
            Self::Dropped { .. } => 15,
            Self::Unsent { .. } => 16,
            Self::Refused { .. } => 17,
            Self::Blocked => 18,
            Self::Resumed => 19,
            Self::Consume { .. } => Self::CONSUME,
            Self::Refill { .. } => Self::REFILL,
            Self::Throttle { .. } => 22,
            Self::Queue { .. } => Self::QUEUE,
            Self::QueueFull { .. } => 24,
            Self::Pressure { .. } => Self::PRESSURE,
            Self::Track { .. } => 26,
            Self::Resolve { .. } => 27,
            Self::Timeout { .. } => 28,
            Self::FailAll { .. } => 29,
            Self::Unmatched { .. } => 30,
            Self::Add { .. } => 31,
            Self::Remove { .. } => 32,
            Self::Restore { .. } => 33,
            Self::Restored { .. } => 34,
            Self::Rejected { .. } => 35,
            Self::Silent { .. } => 36,
            Self::Gap { .. } => 37,
            Self::Stall { .. } => 38,
            Self::RecorderDropped { .. } => 39,
            Self::RecorderFailed { .. } => 40,
            Self::Cancel { .. } => 41,
        }
    }
}

impl Closer {
    /// Who ended a wire that ended for this cause.
    pub(crate) fn of(cause: &Error) -> Self {
        match cause {
            Error::PeerClosed { .. } | Error::Disconnected => Self::Peer,
            Error::Io(_) | Error::Tls { .. } => Self::Network,
            _ => Self::Own,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_wire_that_tls_ends_is_ended_by_the_network() {
        let cause = Error::Tls { certificate: false, source: Arc::new(io::Error::other("bad record")) };
        assert_eq!(Closer::of(&cause), Closer::Network);
    }
}
