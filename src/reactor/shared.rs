//! What callers and the reactor share of one connection: the session, the sending half, and a few counters.
//!
//! The two locks are never held together, and nothing of the user's runs under either.

use std::io::{self, Read, Write};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::net::TcpStream;
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::Serialize;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::config::{Config, Throttle};
use crate::error::{Error, Result};
use crate::event::{ConnectionId, Generation, Sent, State};
use crate::governor::{Costs, Governor, LimitStatus, Pressure};
use crate::metrics::{HeartbeatStatus, Latencies, Metrics, Proof, RateStatus, SentMany};
use crate::reactor::calls::Waiter;
use crate::reactor::instruments::Instruments;
use crate::reactor::mailbox::{self, Mailbox};
use crate::reactor::sink::Depth;
use crate::reactor::talk::{Order, What};
use crate::reactor::witness::CONNECTION;
use crate::recorder::Tap;
use crate::session::Session;
use crate::telemetry::{self, Signal};
use crate::wire::frame;
use crate::wire::out::{Lane, Out, Outgoing};

/// About what a connection holds that is idle; an exact figure is in the tests of its allocations.
const BASE_MEMORY: usize = 2048;

/// About what a call holds that waits, and a channel that is wanted.
const CALL_MEMORY: usize = 512;
const CHANNEL_MEMORY: usize = 512;

/// How long closing waits for a recording: a disk that takes longer has worse to tell.
const RECORDING_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct Shared {
    pub(crate) id: ConnectionId,
    pub(crate) config: Arc<Config>,
    /// Whether the dialect reads messages; asked once, where it may panic.
    pub(crate) reads: bool,
    pub(crate) session: Mutex<Session<Waiter>>,
    /// Signalled with `session` when its state has changed.
    pub(crate) changed: Condvar,
    pub(crate) out: Mutex<Out<Stream>>,
    governor: Option<Arc<Governor>>,
    /// What callers want of the dialogue, for the reactor.
    pub(crate) orders: Mutex<Vec<Order>>,
    /// Counts calls and subscriptions.
    pub(crate) numbers: AtomicU64,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) counters: Counters,
    pub(crate) instruments: Instruments,
    /// The inbox of the connection, to ask how much waits in it.
    depth: Option<Weak<dyn Depth>>,
    /// The recording.
    pub(crate) tap: Option<Arc<Tap>>,
    posted: AtomicBool,
    /// The last event is recorded; written under the session's lock.
    pub(crate) is_told: AtomicBool,
}

/// A socket that one side reads and another writes, without a lock between them.
#[derive(Clone, Debug)]
pub(crate) struct Stream(pub(crate) Arc<TcpStream>);

/// What became of messages that were to be sent.
pub(crate) struct Attempt {
    /// How many were accepted, the first ones.
    pub(crate) count: usize,
    pub(crate) sent: Result<Sent>,
    pub(crate) generation: Generation,
    /// What those cost that need not wait for the rate limit.
    pub(crate) passed: Costs,
    /// How many messages of callers wait, if one of these does and somebody asks.
    pub(crate) waiting: usize,
}

/// How a handle sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) lane: Lane,
    /// In place of the config's.
    pub(crate) call_timeout: Option<Duration>,
}

/// Counters that only the reactor writes.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) discarded: AtomicU64,
    /// Bytes of unfinished and undelivered messages.
    pub(crate) held: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        id: ConnectionId,
        config: Arc<Config>,
        governor: Option<Arc<Governor>>,
        mailbox: Arc<Mailbox>,
        depth: Option<Weak<dyn Depth>>,
    ) -> Arc<Self> {
        let mut out = Out::new(config.settings.unsent_max, governor.clone(), Instant::now);
        if config.settings.send_stamps {
            out.stamp();
        }
        let tap = config.settings.recorder.as_ref().map(|recorder| Arc::new(recorder.tap(id)));
        if let Some(tap) = &tap {
            out.record(tap.clone());
        }
        Arc::new(Self {
            id,
            session: Mutex::new(Session::new(config.clone(), rand::random(), Instant::now())),
            changed: Condvar::new(),
            out: Mutex::new(out),
            reads: config.settings.dialect.reads(),
            config,
            governor,
            orders: Mutex::default(),
            numbers: AtomicU64::new(0),
            mailbox,
            counters: Counters::default(),
            instruments: Instruments::default(),
            depth,
            tap,
            posted: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
        })
    }

    pub(crate) fn send_text(&self, manner: Manner, text: &str, expected: Option<Generation>) -> Result<Sent> {
        self.send(Outgoing { lane: manner.lane, expected, ..self.outgoing(OpCode::Data(Data::Text), text.as_bytes()) }, None)
    }

    pub(crate) fn send_binary(&self, manner: Manner, bytes: &[u8], expected: Option<Generation>) -> Result<Sent> {
        self.send(Outgoing { lane: manner.lane, expected, ..self.outgoing(OpCode::Data(Data::Binary), bytes) }, None)
    }

    pub(crate) fn send_json<T: Serialize + ?Sized>(
        &self,
        manner: Manner,
        value: &T,
        expected: Option<Generation>,
    ) -> Result<Sent> {
        self.send_text(manner, &to_json(value)?, expected)
    }

    pub(crate) fn ping(&self, manner: Manner) -> Result<Sent> {
        let payload = self.session.lock().start_ping(Instant::now());
        let outgoing = Outgoing { lane: manner.lane, ..self.outgoing(OpCode::Control(Control::Ping), &payload) };
        let sent = self.send(outgoing, None);
        match sent {
            Ok(_) => self.tell(&Signal::Ping),
            Err(_) => self.session.lock().withdraw_ping(&payload),
        }
        sent
    }

    /// Sends texts on one wire, as many in one write as fit.
    pub(crate) fn send_many<T: AsRef<str>>(&self, manner: Manner, texts: impl IntoIterator<Item = T>) -> SentMany {
        let texts: Vec<T> = texts.into_iter().collect();
        let bytes = texts.iter().map(|text| text.as_ref().as_bytes());
        let mut messages: Vec<_> =
            bytes.map(|bytes| Outgoing { lane: manner.lane, ..self.outgoing(Outgoing::TEXT, bytes) }).collect();
        let mut rest = &mut messages[..];
        while !rest.is_empty() {
            let Attempt { count, sent, generation, .. } = self.try_send(rest);
            rest = &mut rest[count..];
            rest.iter_mut().for_each(|outgoing| outgoing.expected = Some(generation));
            let error = match sent {
                Ok(_) => continue,
                // It may wait, by itself.
                Err(Error::Throttled { wait }) => self.send_later(rest[0], wait, generation, None).err(),
                Err(error) => Some(error),
            };
            if error.is_some() {
                return SentMany { accepted: texts.len() - rest.len(), error };
            }
            rest = &mut rest[1..];
        }
        SentMany { accepted: texts.len(), error: None }
    }

    /// A message with what it costs, which is found out before any lock is taken.
    pub(crate) fn outgoing<'a>(&self, opcode: OpCode, payload: &'a [u8]) -> Outgoing<'a> {
        let dialect_cost = || str::from_utf8(payload).map_or(1, |text| self.config.settings.dialect.cost(text));
        let costs = match (&self.governor, opcode) {
            (None, _) => Costs::default(),
            (Some(governor), OpCode::Control(_)) => governor.control(),
            (Some(governor), OpCode::Data(_)) => governor.costs(payload, dialect_cost),
        };
        let enqueued = self.config.settings.send_stamps.then(Instant::now);
        Outgoing { opcode, payload, costs, queue_max: self.queue_max(), enqueued, ..Outgoing::text("") }
    }

    /// Sends a message of a caller's, which may have to wait for the rate limit, until `deadline` at most.
    pub(crate) fn send(&self, outgoing: Outgoing<'_>, deadline: Option<Instant>) -> Result<Sent> {
        match self.try_send(slice::from_ref(&outgoing)) {
            Attempt { sent: Err(Error::Throttled { wait }), generation, .. } => {
                self.send_later(outgoing, wait, generation, deadline)
            }
            attempt => attempt.sent,
        }
    }

    /// Sends a message that the rate limit allows only later, if it may wait.
    fn send_later(
        &self,
        mut outgoing: Outgoing<'_>,
        mut wait: Duration,
        generation: Generation,
        deadline: Option<Instant>,
    ) -> Result<Sent> {
        let Throttle::Wait(limit) = self.config.settings.throttle else { return Err(Error::Throttled { wait }) };
        if mailbox::is_turning_thread() {
            return Err(Error::Throttled { wait });
        }
        // A message must not leave late on another wire.
        outgoing.expected.get_or_insert(generation);
        let began = Instant::now();
        let last = deadline.map_or(began + limit, |deadline| deadline.min(began + limit));
        loop {
            let now = Instant::now();
            if wait > last.saturating_duration_since(now) {
                return Err(Error::Throttled { wait });
            }
            self.pause(now + wait);
            if !self.state().is_open() {
                return Err(if matches!(self.state(), State::Closing | State::Closed) {
                    Error::Closed
                } else {
                    Error::NotConnected
                });
            }
            match self.try_silently(slice::from_ref(&outgoing)) {
                Attempt { sent: Err(Error::Throttled { wait: more }), .. } => wait = more,
                attempt => {
                    self.witness_sent(slice::from_ref(&outgoing), &attempt);
                    return attempt.sent;
                }
            }
        }
    }

    /// Sends the first of these messages, at once or not at all.
    fn try_send(&self, messages: &[Outgoing<'_>]) -> Attempt {
        let attempt = self.try_silently(messages);
        self.witness_sent(messages, &attempt);
        attempt
    }

    /// As [`try_send`](Self::try_send), without telling anybody.
    fn try_silently(&self, messages: &[Outgoing<'_>]) -> Attempt {
        let mut attempt = self.attempt(messages);
        let needs_reactor = match &attempt.sent {
            Ok(Sent::Written) => false,
            // It sends the rest when kernel and rate limit let it.
            Ok(Sent::Buffered | Sent::Queued) => true,
            // The wire is dead; it reads what the wire still holds and reports the loss.
            Err(Error::Io(_)) => true,
            // Those before it may not have left.
            Err(_) => attempt.count > 0,
        };
        if needs_reactor {
            self.post();
        }
        if matches!(attempt.sent, Err(Error::NotConnected)) && matches!(self.state(), State::Closing | State::Closed) {
            attempt.sent = Err(Error::Closed);
        }
        attempt
    }

    /// One critical section of the sending half.
    fn attempt(&self, messages: &[Outgoing<'_>]) -> Attempt {
        let mut passed = Costs::default();
        let mut out = self.out.lock();
        let (count, sent) = out.send_counting(messages, &mut passed);
        let generation = out.generation();
        let is_asked = matches!(sent, Ok(Sent::Queued)) && telemetry::is_wanted(Signal::QUEUE);
        let waiting = if is_asked { out.waiting() } else { 0 };
        if count < messages.len() {
            // An order must not wait for all of them.
            MutexGuard::unlock_fair(out);
        }
        Attempt { count, sent, generation, passed, waiting }
    }

    /// Waits, but not beyond the end of the wire.
    fn pause(&self, until: Instant) {
        let mut session = self.session.lock();
        while session.state().is_open() && !self.changed.wait_until(&mut session, until).timed_out() {}
        drop(session);
        thread::yield_now();
    }

    /// Sends what the connection itself has to say, as the reactor.
    pub(crate) fn say(&self, outgoing: Outgoing<'_>) -> Result<Sent> {
        let outgoing = Outgoing { is_own: true, enqueued: None, ..outgoing };
        let attempt = self.attempt(slice::from_ref(&outgoing));
        self.heed(&attempt.sent);
        self.witness_sent(slice::from_ref(&outgoing), &attempt);
        attempt.sent
    }

    /// Sends what the connection itself has to say and marks so, as many in one write as fit.
    pub(crate) fn say_many(&self, mut rest: &[Outgoing<'_>]) {
        while !rest.is_empty() {
            let attempt = self.attempt(rest);
            self.heed(&attempt.sent);
            self.witness_sent(rest, &attempt);
            // One that cannot be said holds up no other.
            rest = &rest[attempt.count + usize::from(attempt.sent.is_err())..];
        }
    }

    fn heed(&self, said: &Result<Sent>) {
        match said {
            Ok(Sent::Written) => {}
            Ok(Sent::Buffered | Sent::Queued) | Err(Error::Io(_)) => self.post(),
            // The wire ends; what was to be said is said on the next one.
            Err(Error::NotConnected) => {}
            // More probes than can be answered; those that wait will be.
            Err(Error::QueueFull { .. }) => {
                log::debug!(target: CONNECTION, "{}: an answer to a probe finds no place to wait", self.id)
            }
            Err(error) => log::error!(target: CONNECTION, "{}: could not say what the dialect asked for: {error}", self.id),
        }
    }

    /// Has the reactor do something about channels; returns the number of this order.
    pub(crate) fn order(&self, what: What) -> u64 {
        let number = {
            let mut session = self.session.lock();
            let number = session.wish_order();
            // A leaf, taken here so that the orders lie in the order of their numbers.
            self.orders.lock().push(Order { number, what });
            number
        };
        self.post();
        number
    }

    /// Writes a control frame, as the reactor. A failure, or what kernel and rate limit did not let pass, is seen to with the next posts.
    pub(crate) fn write<T>(&self, write: impl FnOnce(&mut Out<Stream>) -> Result<T>) -> Option<T> {
        let mut out = self.out.lock();
        let written = write(&mut out);
        let is_done = written.is_ok() && out.unsent() == 0 && !out.is_held();
        drop(out);
        if !is_done {
            self.post();
        }
        written.ok()
    }

    pub(crate) fn start_close(&self, code: u16, reason: &str) -> Result<()> {
        if !frame::is_valid_close_code(code) {
            return Err(Error::config("code", format!("{code} may not be sent in a Close frame")));
        }
        if reason.len() > frame::CONTROL_MAX - 2 {
            return Err(Error::config("reason", "is longer than 123 bytes"));
        }
        self.session.lock().wish_close(code, reason.into());
        self.post();
        Ok(())
    }

    pub(crate) fn reconnect(&self) -> Result<()> {
        let mut session = self.session.lock();
        if matches!(session.state(), State::Closing | State::Closed) {
            return Err(Error::Closed);
        }
        session.wish_reconnect();
        drop(session);
        self.post();
        Ok(())
    }

    pub(crate) fn state(&self) -> State {
        self.session.lock().state()
    }

    pub(crate) fn generation(&self) -> Generation {
        self.session.lock().generation()
    }

    pub(crate) fn unsent(&self) -> usize {
        self.out.lock().unsent()
    }

    /// Waits until `done` gives a value.
    pub(crate) fn wait<T>(&self, timeout: Option<Duration>, mut done: impl FnMut(&Session<Waiter>) -> Option<T>) -> Result<T> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut session = self.session.lock();
        loop {
            if let Some(value) = done(&session) {
                return Ok(value);
            }
            if self.mailbox.is_turned_here() {
                return Err(Error::OnReactor);
            }
            match deadline {
                None => self.changed.wait(&mut session),
                Some(deadline) => {
                    if self.changed.wait_until(&mut session, deadline).timed_out() {
                        return done(&session).ok_or(Error::Timeout { after: timeout.unwrap_or_default(), sent: false });
                    }
                }
            }
        }
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let (unsent, queued, totals, out_memory) = {
            let out = self.out.lock();
            (out.unsent(), out.waiting(), out.totals(), out.memory())
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let inbox_depth = self.depth.as_ref().map(|depth| depth.upgrade().map_or(0, |depth| depth.depth()));
        let recorder = self.tap.as_ref().map(|tap| tap.status());
        let session = self.session.lock();
        let tables = session.calls_pending() * CALL_MEMORY + session.standings().len() * CHANNEL_MEMORY;
        Metrics {
            state: session.state(),
            generation: session.generation(),
            uptime: session.uptime(Instant::now()),
            redials: session.redials(),
            messages_in: count(&self.counters.messages),
            bytes_in: count(&self.counters.bytes),
            messages_out: totals.messages,
            bytes_out: totals.bytes,
            dropped: count(&self.counters.dropped),
            discarded: count(&self.counters.discarded),
            inbox_depth,
            calls_pending: session.calls_pending(),
            channels: session.channels(),
            unsent,
            queued,
            pressure: self.pressure(queued),
            memory: BASE_MEMORY + out_memory + tables + count(&self.counters.held) as usize,
            recorder,
        }
    }

    pub(crate) fn heartbeat(&self) -> HeartbeatStatus {
        let session = self.session.lock();
        let (heartbeat, now) = (session.heartbeat(), Instant::now());
        let (unanswered, oldest) = heartbeat.unanswered();
        let wall = |at| SystemTime::now().checked_sub(now.saturating_duration_since(at)).unwrap_or(UNIX_EPOCH);
        HeartbeatStatus {
            interval: self.config.settings.heartbeat_interval,
            unanswered,
            waiting: oldest.map(|sent| now.saturating_duration_since(sent)),
            misses: heartbeat.misses(),
            last_proof: heartbeat.proof().map(|at| Proof { at, wall: wall(at) }),
            rtt: heartbeat.rtt(),
        }
    }

    pub(crate) fn latency(&self) -> Latencies {
        let now = Instant::now();
        let stamps = self.out.lock().stamps();
        // Copied, so that nobody waits for the sums.
        let rtts = self.session.lock().heartbeat().rtts().clone();
        Latencies {
            calls: self.instruments.calls(now),
            methods: self.instruments.methods(now),
            pings: rtts.summary(),
            kernel: self.instruments.kernel(now),
            encode: stamps.as_ref().and_then(|stamps| stamps.encode.summary(now)),
            write: stamps.as_ref().and_then(|stamps| stamps.write.summary(now)),
        }
    }

    /// Waits until the recording of a connection that has ended is complete and in the file, if it is the thread of a caller.
    pub(crate) fn finish_recording(&self) {
        if self.tap.is_some() {
            // The end is known a moment before it is told.
            let _ = self.wait(Some(RECORDING_PATIENCE), |_| self.is_told.load(Ordering::Relaxed).then_some(()));
            self.flush_recording();
        }
    }

    /// Waits until what was recorded is in the file, if it is the thread of a caller. Returns whether it is.
    pub(crate) fn flush_recording(&self) -> bool {
        let Some(tap) = self.tap.as_ref().filter(|_| !mailbox::is_turning_thread()) else { return false };
        let is_flushed = tap.flush(RECORDING_PATIENCE);
        if !is_flushed {
            log::warn!(target: CONNECTION, "{}: the recording is not in the file after {RECORDING_PATIENCE:?}", self.id);
        }
        is_flushed
    }

    /// How far the rate limits are used up.
    pub(crate) fn rate_status(&self) -> RateStatus {
        let queued = self.out.lock().waiting();
        let pressure = self.pressure(queued);
        let interval = self.governor.as_ref().map_or(Duration::ZERO, |governor| governor.interval());
        let suggested_delay = interval.saturating_mul(pressure.factor());
        RateStatus { limits: self.limits(), queued, pressure, suggested_delay }
    }

    /// What each limit has left.
    pub(crate) fn limits(&self) -> Vec<LimitStatus> {
        self.governor.as_ref().map_or_else(Vec::new, |governor| governor.status(Instant::now()))
    }

    /// How many messages may wait for the rate limit.
    pub(crate) fn queue_max(&self) -> usize {
        if let Throttle::Queue(max) = self.config.settings.throttle { max } else { 0 }
    }

    /// How full the queue for the rate limit is with so many messages.
    pub(crate) fn pressure(&self, queued: usize) -> Pressure {
        Pressure::of(queued, self.queue_max())
    }

    /// Makes the reactor look at this connection.
    pub(crate) fn post(&self) {
        if !self.posted.swap(true, Ordering::SeqCst) {
            self.mailbox.post(self.id);
        }
    }

    /// The reactor is about to look; posts from here on count anew.
    pub(crate) fn attend(&self) {
        self.posted.store(false, Ordering::SeqCst);
    }
}

impl Manner {
    /// As messages are sent unless asked otherwise.
    pub(crate) const NORMAL: Self = Self { lane: Lane::Normal, call_timeout: None };
}

pub(crate) fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Json(Arc::new(error)))
}

impl Counters {
    /// Adds to a counter that has one writer.
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        if count > 0 {
            counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
