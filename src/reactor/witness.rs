//! Who is told of what a connection does besides its consumers: the log, observers, the recording.

use std::mem;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::{Error, Phase};
use crate::event::{ConnectionId, Event, Generation, Sent};
use crate::governor::{Costs, Pressure};
use crate::reactor::shared::{Attempt, Shared};
use crate::recorder::{Direction, FrameKind};
use crate::target::Target;
use crate::telemetry::{self, Closer, Observed, Signal};
use crate::wire::assembler::Item;
use crate::wire::frame;
use crate::wire::out::Outgoing;

/// The target of what concerns a connection.
pub(crate) const CONNECTION: &str = "zen_websocket::connection";

/// The target of what concerns a reactor.
const REACTOR: &str = "zen_websocket::reactor";

/// The target of the frames that are logged on request.
const FRAMES: &str = "zen_websocket::frames";

/// How much of a text the log shows.
const SHOWN_MAX: usize = 256;

impl Shared {
    /// Tells observers of a signal, if any listens.
    pub(crate) fn tell(&self, signal: &Signal<'_>) {
        if telemetry::is_wanted(signal.kind()) {
            self.tell_wanted(signal);
        }
    }

    #[cold]
    fn tell_wanted(&self, signal: &Signal<'_>) {
        if !telemetry::is_observed(signal.kind(), self.id) {
            return;
        }
        // The wire of a login counts, too.
        let (connection, generation) = (Some(self.id), self.out.lock().generation());
        let host = self.instruments.host(|| self.host());
        telemetry::tell(&Observed { connection, generation, host, at: Instant::now(), signal });
    }

    /// The host and port the connection is for.
    fn host(&self) -> String {
        Target::parse(&self.config.url).map_or_else(|_| String::new(), |target| target.authority)
    }

    /// Tells all of an event, before it is delivered.
    pub(crate) fn witness(&self, generation: Generation, event: &Event) {
        log_event(self, generation, event);
        // What an observer causes comes after what it observed.
        if let Some(tap) = &self.tap {
            tap.event(Instant::now(), generation, event);
        }
        self.tell_event(event);
        if self.tap.is_some() && matches!(event, Event::Closed { .. }) {
            // Under the lock, or who looks and then waits would miss the signal that follows.
            let _session = self.session.lock();
            self.is_told.store(true, Ordering::Relaxed);
        }
    }

    fn tell_event(&self, event: &Event) {
        match event {
            Event::Dialing { attempt } => self.tell(&Signal::Dial { attempt: *attempt }),
            Event::DialFailed { attempt, cause, redial_in } => {
                self.tell(&Signal::DialFailed { attempt: *attempt, cause });
                let is_refused = cause.is_fatal() && self.generation() == Generation::default();
                self.tell_redial(*redial_in, if is_refused { 0 } else { *attempt });
            }
            Event::Open => self.tell(&Signal::Open),
            Event::Live => self.tell(&Signal::Live),
            Event::Gap { channel: None, missing } => self.tell(&Signal::Dropped { messages: *missing }),
            Event::Gap { channel: Some(channel), missing } => self.tell(&Signal::Gap { channel, missing: *missing }),
            Event::Rejected { channel, reason } => self.tell(&Signal::Rejected { channel, reason }),
            Event::ChannelSilent { channel, quiet } => self.tell(&Signal::Silent { channel, quiet: *quiet }),
            Event::Unmatched { id, .. } => self.tell(&Signal::Unmatched { id }),
            Event::Unsent { messages, bytes } => self.tell(&Signal::Unsent { messages: *messages, bytes: *bytes }),
            Event::Lost { cause, redial_in } => {
                let (uptime, attempts) = {
                    let session = self.session.lock();
                    (session.opened_for(Instant::now()), session.attempt())
                };
                let code = if let Error::PeerClosed { code, .. } = cause { *code } else { None };
                self.tell(&Signal::Lost { cause, closer: Closer::of(cause), code, uptime });
                self.tell_redial(*redial_in, attempts);
            }
            Event::Closed { cause } => self.tell(&Signal::Closed { cause: cause.as_ref() }),
            Event::Message(_) | Event::Request { .. } | Event::Notice(_) => {}
        }
    }

    fn tell_redial(&self, redial_in: Option<Duration>, attempts: u32) {
        match redial_in {
            Some(delay) => self.tell(&Signal::RedialScheduled { delay }),
            None if attempts > 0 => self.tell(&Signal::RedialsExhausted { attempts }),
            None => {}
        }
    }

    /// When a dial with this deadline began.
    pub(crate) fn dial_began(&self, deadline: Instant) -> Instant {
        deadline - self.config.settings.connect_timeout
    }

    /// Tells that the first phase of the dial with this deadline is over.
    pub(crate) fn tell_resolved(&self, now: Instant, deadline: Instant) {
        let took = now.saturating_duration_since(self.dial_began(deadline));
        self.tell(&Signal::DialPhase { phase: Phase::Resolve, took });
    }

    /// Tells of what became of messages that were to be sent.
    fn tell_sent(&self, attempt: &Attempt) {
        self.tell_consumed(&attempt.passed);
        match &attempt.sent {
            // The connection's own subscriptions wait apart.
            Ok(Sent::Queued) if attempt.waiting > 0 => self.tell(&Signal::Queue { waiting: attempt.waiting }),
            Ok(Sent::Written | Sent::Buffered | Sent::Queued) => {}
            Err(Error::Full { unsent }) => self.tell(&Signal::Refused { unsent: *unsent }),
            Err(Error::QueueFull { waiting }) => self.tell(&Signal::QueueFull { waiting: *waiting }),
            Err(Error::Throttled { wait }) => self.tell(&Signal::Throttle { wait: *wait }),
            Err(_) => {}
        }
    }

    /// Tells that messages of these costs have passed the limits.
    pub(crate) fn tell_consumed(&self, costs: &Costs) {
        if !telemetry::is_wanted(Signal::CONSUME)
            || *costs == Costs::default()
            || !telemetry::is_observed(Signal::CONSUME, self.id)
        {
            return;
        }
        for (index, limit) in self.limits().iter().enumerate() {
            let (name, available, capacity) = (limit.name.as_deref(), limit.available, limit.capacity);
            self.tell(&Signal::Consume { name, cost: costs.of(index), available, capacity });
        }
    }

    /// Tells that what the rate limit held back may leave.
    pub(crate) fn tell_refill(&self) {
        if !telemetry::is_observed(Signal::REFILL, self.id) {
            return;
        }
        for limit in self.limits() {
            let (name, available, capacity) = (limit.name.as_deref(), limit.available, limit.capacity);
            self.tell(&Signal::Refill { name, available, capacity });
        }
    }

    /// Tells how full the queue for the rate limit is, if that has changed. The reactor's, or signals would overtake each other.
    pub(crate) fn tell_pressure(&self, told: &mut Pressure) {
        if self.queue_max() == 0 || !telemetry::is_observed(Signal::PRESSURE, self.id) {
            return;
        }
        let level = self.pressure(self.out.lock().waiting());
        let previous = mem::replace(told, level);
        if level != previous {
            self.tell(&Signal::Pressure { level, previous });
        }
    }

    /// Serving this connection kept its reactor from all others for so long.
    pub(crate) fn tell_stall(&self, took: Duration) {
        log::warn!(target: REACTOR, "{}: kept its reactor busy for {took:?}", self.id);
        self.tell(&Signal::Stall { took });
    }

    /// Whether somebody wants to see the frames that come.
    pub(crate) fn sees_frames(&self) -> bool {
        self.config.settings.debug || self.tap.is_some()
    }

    /// A message or a control frame has come.
    pub(crate) fn witness_item(&self, at: Instant, generation: Generation, item: &Item<'_>, is_secret: bool) {
        let see = |kind, payload: &[u8]| self.witness_frame(at, generation, kind, payload, is_secret);
        match item {
            Item::Text(text) => see(FrameKind::Text, text.as_bytes()),
            Item::Binary(bytes) => see(FrameKind::Binary, bytes),
            Item::Ping(payload) => see(FrameKind::Ping, payload),
            Item::Pong(payload) => see(FrameKind::Pong, payload),
            Item::Close { code, reason } => see(FrameKind::Close, &frame::close_payload(*code, reason)),
        }
    }

    fn witness_frame(&self, at: Instant, generation: Generation, kind: FrameKind, payload: &[u8], is_secret: bool) {
        if let Some(tap) = &self.tap {
            tap.frame(at, generation, Direction::In, kind, payload, is_secret);
        }
        if self.config.settings.debug {
            log_frame(self.id, generation, "received", kind, payload, is_secret);
        }
    }

    /// Messages were to be sent. The recording has them from the sending half, in the order of the wire.
    pub(crate) fn witness_sent(&self, messages: &[Outgoing<'_>], attempt: &Attempt) {
        if self.config.settings.debug {
            let Attempt { count, sent, generation, .. } = attempt;
            let verb = if matches!(sent, Ok(Sent::Queued)) { "queued" } else { "sent" };
            for outgoing in &messages[..*count] {
                log_frame(self.id, *generation, verb, frame::kind(outgoing.opcode), outgoing.payload, outgoing.is_secret);
            }
            if let (Some(outgoing), Err(error)) = (messages.get(*count), sent) {
                let (id, word, size) = (self.id, word(frame::kind(outgoing.opcode)), outgoing.payload.len());
                log::debug!(target: FRAMES, "{id}, {generation}: not sent: {word}, {size} bytes: {error}");
            }
        }
        self.tell_sent(attempt);
    }

    /// A control frame of the connection's own was sent, or waits.
    pub(crate) fn log_control(&self, generation: Generation, kind: FrameKind, payload: &[u8]) {
        if self.config.settings.debug {
            log_frame(self.id, generation, "sent", kind, payload, false);
        }
    }

    /// A Close frame was sent, or waits.
    pub(crate) fn log_close(&self, generation: Generation, code: Option<u16>, reason: &str) {
        if self.config.settings.debug {
            self.log_control(generation, FrameKind::Close, &frame::close_payload(code, reason));
        }
    }
}

fn log_event(shared: &Shared, generation: Generation, event: &Event) {
    let id = shared.id;
    match event {
        Event::Open => log::info!(target: CONNECTION, "{id}: open, {generation} to {}", shared.host()),
        Event::Dialing { attempt } => log::debug!(target: CONNECTION, "{id}: dialing, attempt {attempt}"),
        Event::DialFailed { attempt, cause, redial_in: Some(pause) } => {
            log::warn!(target: CONNECTION, "{id}: dial {attempt} to {} failed, next in {pause:?}: {cause}", shared.host());
        }
        Event::DialFailed { attempt, cause, redial_in: None } => {
            log::warn!(target: CONNECTION, "{id}: dial {attempt} to {} failed: {cause}", shared.host())
        }
        Event::Lost { cause, redial_in: Some(pause) } => {
            log::warn!(target: CONNECTION, "{id}: lost {generation} to {}, next dial in {pause:?}: {cause}", shared.host())
        }
        Event::Lost { cause, redial_in: None } => {
            log::warn!(target: CONNECTION, "{id}: lost {generation} to {}: {cause}", shared.host())
        }
        Event::Unsent { messages, bytes } => {
            log::warn!(target: CONNECTION, "{id}: {messages} messages ({bytes} bytes) did not leave {generation}")
        }
        Event::Gap { channel: None, missing } => {
            log::warn!(target: CONNECTION, "{id}: the inbox was full, {missing} messages dropped")
        }
        Event::Gap { channel: Some(channel), missing } => {
            log::warn!(target: CONNECTION, "{id}: the sequence of {channel} jumps by {missing}")
        }
        Event::Live => log::info!(target: CONNECTION, "{id}: live, {generation}"),
        Event::Rejected { channel, reason } => {
            log::warn!(target: CONNECTION, "{id}: {channel} was refused: {}", reason.escape_debug())
        }
        Event::ChannelSilent { channel, quiet } => {
            log::warn!(target: CONNECTION, "{id}: no data of {channel} for {quiet:?}, subscribing anew")
        }
        Event::Unmatched { id: call, .. } => log::debug!(target: CONNECTION, "{id}: a reply to no call that waits, {call}"),
        Event::Request { id: call, .. } => log::debug!(target: CONNECTION, "{id}: the venue asks something, {call}"),
        Event::Notice(_) => log::info!(target: CONNECTION, "{id}: the venue tells of itself"),
        Event::Closed { cause: Some(cause) } => log::error!(target: CONNECTION, "{id}: closed: {cause}"),
        Event::Closed { cause: None } => log::info!(target: CONNECTION, "{id}: closed"),
        Event::Message(_) => {}
    }
}

fn log_frame(id: ConnectionId, generation: Generation, verb: &str, kind: FrameKind, payload: &[u8], is_secret: bool) {
    let (size, word) = (payload.len(), word(kind));
    match str::from_utf8(payload) {
        _ if is_secret => log::debug!(target: FRAMES, "{id}, {generation}: {verb} {word}, {size} bytes: [redacted]"),
        Ok(text) if kind == FrameKind::Text => {
            let end = (0..=SHOWN_MAX.min(size)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
            let shown = &text[..end];
            let dots = if shown.len() < size { "…" } else { "" };
            log::debug!(target: FRAMES, "{id}, {generation}: {verb} {word}, {size} bytes: {}{dots}", shown.escape_debug());
        }
        _ => log::debug!(target: FRAMES, "{id}, {generation}: {verb} {word}, {size} bytes"),
    }
}

fn word(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Text => "text",
        FrameKind::Binary => "binary",
        FrameKind::Ping => "ping",
        FrameKind::Pong => "pong",
        FrameKind::Close => "close",
    }
}
