//! The sending half of a connection: encodes, encrypts and writes, and keeps what the kernel or the rate limit has not let pass yet.
//!
//! Callers and the reactor share it under a lock, so every method is one critical section: it makes one frame, or 16 KiB of frames, and
//! one attempt to write, and only the reactor's [`Out::flush`] makes more, as far as the rate limit lets them. A frame once begun is finished or dies with its
//! wire; none ever moves to another wire.
//!
//! ```text
//!   Down ── upgraded ──► Login ── logged in ──► Ready ── Close frame ──► CloseSent
//!   any but Down ── a write failed ──► Dead          any ── given up ──► Down
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, Read, Write};
use std::iter;
use std::mem;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::error::Error;
use crate::event::{Generation, Sent};
use crate::governor::{Costs, Governor, Refused};
use crate::latency::Histogram;
use crate::recorder::{Direction, FrameKind, Tap};
use crate::ticket::Ticket;
use crate::wire::frame;
use crate::wire::tls;

/// How much ciphertext is worked off in one critical section, so that a sender waits for a few microseconds at most.
const TLS_STEP: usize = 4096;

/// A buffer larger than this is given back when it runs empty.
const KEPT_CAPACITY: usize = 4096;

/// How many bytes of frames leave in one write when many are sent together: the most that one TLS record holds (RFC 8446 §5.1).
const BURST_MAX: usize = 16 << 10;

/// How many answers to a venue's heartbeats may wait for the rate limit.
const ANSWERS_MAX: usize = 16;

/// About what a frame holds that waits; to add them up would take time under the lock.
const WAITING_MEMORY: usize = 512;

/// How many frames of the connection's own may wait in all; more are made only by a program that subscribes and unsubscribes without
/// end while the limit is exhausted.
const OWN_MAX: usize = 16_384;

/// The sending half of a connection, across its wires.
#[derive(Debug)]
pub struct Out<W> {
    generation: Generation,
    phase: Phase,
    /// Why writing failed, while `Dead`.
    failure: Option<Error>,
    stream: Option<W>,
    tls: Option<Box<ClientConnection>>,
    unsent_max: usize,
    /// What the kernel has not taken, from `start` on.
    buffer: Vec<u8>,
    start: usize,
    /// Offset on this wire of the end of `buffer`.
    queued: u64,
    /// The frames that the kernel has not taken whole, as far as anybody asks about them.
    begun: VecDeque<Begun>,
    /// Frames before they are encrypted.
    plain: Vec<u8>,
    /// The pong that leaves once kernel and rate limit let it.
    pong: Option<Vec<u8>>,
    governor: Option<Arc<Governor>>,
    /// What waits for the governor, in the order in which it will leave.
    waiting: BTreeMap<(Lane, u64), Waiting>,
    /// How many frames have ever waited.
    arrivals: u64,
    /// When the governor will let the first of them pass.
    next: Option<Instant>,
    /// What waited when the Close frame was sent.
    abandoned: Unsent,
    /// How long messages take, if that is measured.
    stamps: Option<Arc<SendStamps>>,
    /// Records each frame in the order of the wire.
    tap: Option<Arc<Tap>>,
    /// What has been encoded so far, on all wires.
    totals: Totals,
    /// Read for the governor, after each write that it counts, and for stamps.
    clock: fn() -> Instant,
}

/// What has been encoded to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages; control frames are none.
    pub messages: u64,
    /// Bytes of all frames, headers included, before TLS.
    pub bytes: u64,
}

/// How long messages of callers take on their way out.
#[derive(Debug, Default)]
pub struct SendStamps {
    /// From the call until the frame is encoded: waiting for the senders' lock and the rate limit, and masking.
    pub encode: Histogram,
    /// From there until the kernel has the last byte.
    pub write: Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No wire.
    Down,
    /// Only what the connection says for itself may leave.
    Login,
    /// Messages may leave.
    Ready,
    /// A Close frame is the last frame of this wire.
    CloseSent,
    /// Writing failed; the reactor has still to notice.
    Dead,
}

/// Who goes first when messages wait for the rate limit. The first two may use what the limit keeps for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Pings, pongs, closes, logins, answers to a venue's heartbeats.
    Control,
    /// What a caller calls urgent.
    Urgent,
    /// Everything else of callers.
    Normal,
    /// Subscriptions.
    Restore,
}

/// A message on its way out.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// What it is.
    pub opcode: OpCode,
    /// Its content.
    pub payload: &'a [u8],
    /// Whom it lets pass.
    pub lane: Lane,
    /// What it counts for in the rate limits.
    pub costs: Costs,
    /// The wire it was made for, if not for any.
    pub expected: Option<Generation>,
    /// Who asks what becomes of it.
    pub ticket: Option<&'a Arc<Ticket>>,
    /// How many messages of callers may wait for the rate limit, this one included; with 0 it is refused instead.
    pub queue_max: usize,
    /// Whether the connection itself says it: it leaves before a login has succeeded, waits if it must, and nobody misses it.
    pub is_own: bool,
    /// When its caller asked for it, if that is measured.
    pub enqueued: Option<Instant>,
    /// It is a login, whose content nobody may see.
    pub is_secret: bool,
}

/// A frame of which the kernel has not taken the last byte.
#[derive(Debug)]
struct Begun {
    /// Offsets on this wire.
    start: u64,
    end: u64,
    is_message: bool,
    costs: Costs,
    ticket: Option<Arc<Ticket>>,
    /// When, if that is measured.
    encoded: Option<Instant>,
}

/// The end of a frame that has not been encrypted yet.
const NOT_SEALED: u64 = u64::MAX;

/// A frame that waits for the governor.
struct Waiting {
    opcode: OpCode,
    payload: Vec<u8>,
    costs: Costs,
    ticket: Option<Arc<Ticket>>,
    is_own: bool,
    enqueued: Option<Instant>,
    is_secret: bool,
}

/// A frame that leaves now.
struct Frame<'a> {
    opcode: OpCode,
    payload: &'a [u8],
    costs: Costs,
    ticket: Option<Arc<Ticket>>,
    is_message: bool,
    enqueued: Option<Instant>,
    is_secret: bool,
}

/// Without the payload, which may be a login.
impl fmt::Debug for Outgoing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("opcode", &self.opcode).field("lane", &self.lane).finish_non_exhaustive()
    }
}

/// Without the payload, which may be a login.
impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("opcode", &self.opcode).finish_non_exhaustive()
    }
}

impl Waiting {
    fn is_withdrawn(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| ticket.is_withdrawn())
    }
}

/// Messages that did not leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unsent {
    messages: usize,
    bytes: usize,
}

/// What remains of a wire that ended.
#[derive(Debug)]
pub struct Remains<W> {
    /// The stream, to be shut down.
    pub stream: Option<W>,
    /// Messages of which the kernel did not take the last byte.
    pub messages: usize,
    /// Bytes the kernel did not take.
    pub bytes: usize,
}

/// What [`Out::decrypt`] found.
#[derive(Debug)]
pub struct Decrypted {
    /// Bytes of plaintext.
    pub plain: usize,
    /// Why nothing follows, if nothing does: the peer said so (RFC 8446 §6.1), or it broke TLS.
    pub end: Option<Error>,
}

impl<'a> Outgoing<'a> {
    /// The opcode of a text.
    pub const TEXT: OpCode = OpCode::Data(Data::Text);

    /// A text of a caller's in the normal lane that costs nothing and does not wait.
    pub fn text(text: &'a str) -> Self {
        Self {
            opcode: Self::TEXT,
            payload: text.as_bytes(),
            lane: Lane::Normal,
            costs: Costs::default(),
            expected: None,
            ticket: None,
            queue_max: 0,
            is_own: false,
            enqueued: None,
            is_secret: false,
        }
    }

    fn is_message(&self) -> bool {
        !self.is_own && matches!(self.opcode, OpCode::Data(_))
    }
}

impl<W: Write> Out<W> {
    /// A sending half without a wire.
    pub fn new(unsent_max: usize, governor: Option<Arc<Governor>>, clock: fn() -> Instant) -> Self {
        Self {
            generation: Generation::default(),
            phase: Phase::Down,
            failure: None,
            stream: None,
            tls: None,
            unsent_max,
            buffer: Vec::new(),
            start: 0,
            queued: 0,
            begun: VecDeque::new(),
            plain: Vec::new(),
            pong: None,
            governor,
            waiting: BTreeMap::new(),
            arrivals: 0,
            next: None,
            abandoned: Unsent::default(),
            stamps: None,
            tap: None,
            totals: Totals::default(),
            clock,
        }
    }

    /// Measures how long messages take that say when they were asked for.
    pub fn stamp(&mut self) {
        self.stamps.get_or_insert_default();
    }

    /// How long messages take, if that is measured.
    pub fn stamps(&self) -> Option<Arc<SendStamps>> {
        self.stamps.clone()
    }

    /// Records each frame from here on.
    pub(crate) fn record(&mut self, tap: Arc<Tap>) {
        self.tap = Some(tap);
    }

    /// What has been encoded so far, on all wires.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// About how many bytes it holds on the heap.
    pub fn memory(&self) -> usize {
        self.buffer.capacity() + self.plain.capacity() + self.waiting.len() * WAITING_MEMORY
    }

    /// Takes a wire on which the upgrade succeeded. Messages of callers may leave once it is [ready](Self::ready).
    ///
    /// # Panics
    ///
    /// If the last one was not given up.
    pub fn open(&mut self, generation: Generation, stream: W, tls: Option<Box<ClientConnection>>) {
        assert_eq!(self.phase, Phase::Down, "what the last wire left unsent would be lost");
        self.generation = generation;
        self.stream = Some(stream);
        self.tls = tls;
        self.phase = Phase::Login;
    }

    /// Lets the messages of callers leave.
    pub fn ready(&mut self) {
        if self.phase == Phase::Login {
            self.phase = Phase::Ready;
        }
    }

    /// Gives up the wire, with what it had not sent.
    pub fn end(&mut self) -> Remains<W> {
        if self.phase == Phase::CloseSent
            && let Some(tls) = &mut self.tls
        {
            // An orderly end of TLS (RFC 8446 §6.1); whoever does not hear it has gone already.
            tls.send_close_notify();
            let _ = self.encode(|_| ()).and_then(|()| self.write());
        }
        self.abandon();
        let accepted = self.accepted();
        let begun = mem::take(&mut self.begun);
        if let Some(governor) = &self.governor {
            for frame in &begun {
                // Of a frame that was cut the venue may have seen the beginning.
                if frame.start < accepted {
                    governor.commit((self.clock)(), &frame.costs)
                } else {
                    governor.release(&frame.costs)
                }
            }
        }
        let remains = Remains {
            stream: self.stream.take(),
            messages: begun.iter().filter(|frame| frame.is_message).count() + self.abandoned.messages,
            bytes: self.unsent() + self.abandoned.bytes,
        };
        let next = Self::new(self.unsent_max, self.governor.take(), self.clock);
        *self = Self {
            generation: self.generation,
            arrivals: self.arrivals,
            stamps: self.stamps.take(),
            tap: self.tap.take(),
            totals: self.totals,
            ..next
        };
        remains
    }

    /// Sends a message or a caller's ping.
    ///
    /// # Errors
    ///
    /// After any error no byte of the frame, or not its last byte, has left. On [`Error::Io`] the wire is dead and the reactor must be
    /// told.
    pub fn send(&mut self, outgoing: Outgoing<'_>) -> Result<Sent, Error> {
        self.send_many(slice::from_ref(&outgoing)).1
    }

    /// Sends messages in one write and, encrypted, in one record: as many of the first as fit, one at least. Returns how many were
    /// accepted, and how far the last of them has come or why the next was not.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), for the message behind those that were accepted.
    pub fn send_many(&mut self, messages: &[Outgoing<'_>]) -> (usize, Result<Sent, Error>) {
        self.send_counting(messages, &mut Costs::default())
    }

    /// As [`send_many`](Self::send_many), and adds up what the messages cost that need not wait for the rate limit.
    pub fn send_counting(&mut self, messages: &[Outgoing<'_>], passed: &mut Costs) -> (usize, Result<Sent, Error>) {
        let (start, arrivals) = (self.queued, self.arrivals);
        let (mut count, mut sent, mut refused) = (0, Sent::Written, None);
        for outgoing in messages {
            let fits = |size| size + self.plain.len() <= BURST_MAX && self.has_room(outgoing.payload);
            if count > 0 && !fits((self.queued - start) as usize + frame::size(outgoing.payload.len())) {
                break;
            }
            match self.take_up(outgoing) {
                Ok(Sent::Queued) => sent = Sent::Queued,
                Ok(Sent::Written | Sent::Buffered) => passed.add(&outgoing.costs),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
            count += 1;
        }
        if self.queued > start || !self.plain.is_empty() {
            match self.seal().and_then(|()| self.write()) {
                Ok(true) => {}
                Ok(false) => {
                    self.note_begun(start, &messages[..count]);
                    if sent == Sent::Written {
                        sent = Sent::Buffered;
                    }
                }
                Err(error) => {
                    let accepted = self.accepted();
                    // Their sender is told, so that they are not reported with those that were accepted.
                    self.begun.iter_mut().filter(|frame| frame.start >= start).for_each(|frame| frame.is_message = false);
                    self.waiting.retain(|(_, arrival), _| *arrival <= arrivals);
                    let whole = self.ends(start, &messages[..count]).take_while(|(_, end)| *end <= accepted).count();
                    return (whole, Err(error));
                }
            }
        }
        (count, refused.map_or(Ok(sent), Err))
    }

    /// Where the frames end that were encoded from `start` on; those of one TLS record leave together.
    fn ends<'m>(&self, start: u64, messages: &'m [Outgoing<'m>]) -> impl Iterator<Item = (&'m Outgoing<'m>, u64)> + use<'m, W> {
        // If nothing could be encrypted, nothing leaves.
        let sealed = self.tls.is_some().then_some(if self.queued > start { self.queued } else { NOT_SEALED });
        let mut plain = start;
        messages.iter().map(move |outgoing| {
            plain += frame::size(outgoing.payload.len()) as u64;
            (outgoing, sealed.unwrap_or(plain))
        })
    }

    /// Remembers which messages the kernel has not taken whole, unless they were remembered from the beginning.
    fn note_begun(&mut self, start: u64, messages: &[Outgoing<'_>]) {
        let accepted = self.accepted();
        for (outgoing, end) in self.ends(start, messages) {
            if end > accepted && !self.is_followed(outgoing.ticket.is_some(), outgoing.enqueued) {
                let (is_message, costs) = (outgoing.is_message(), outgoing.costs);
                self.begun.push_back(Begun { start, end, is_message, costs, ticket: None, encoded: None });
            }
        }
    }

    /// Encodes a message, or lets it wait.
    fn take_up(&mut self, outgoing: &Outgoing<'_>) -> Result<Sent, Error> {
        match self.phase {
            Phase::Ready => {}
            Phase::Login if outgoing.is_own => {}
            Phase::Down | Phase::Login | Phase::CloseSent | Phase::Dead => return Err(Error::NotConnected),
        }
        if outgoing.expected.is_some_and(|expected| expected != self.generation) {
            return Err(Error::Stale { current: self.generation });
        }
        let Outgoing { opcode, payload, costs, ticket, is_own, enqueued, is_secret, .. } = *outgoing;
        let has_room = self.has_room(payload);
        if !has_room && !is_own {
            return Err(Error::Full { unsent: self.unsent() });
        }
        if let Err(wait) = self.admit(outgoing)? {
            return self.wait(outgoing, wait);
        }
        if !has_room {
            self.release(&costs);
            return self.wait(outgoing, Duration::ZERO);
        }
        let (ticket, is_message) = (ticket.cloned(), outgoing.is_message());
        self.put(Frame { opcode, payload, costs, ticket, is_message, enqueued, is_secret });
        Ok(Sent::Written)
    }

    /// Sends a ping of the session; [`Sent::Queued`] if it waits for the rate limit, in place of an earlier one. `None` if it finds no
    /// room: it is left out and counts as unanswered in time.
    pub fn ping(&mut self, payload: &[u8]) -> Result<Option<Sent>, Error> {
        // The session pings once the login has succeeded, though callers may still be held.
        if !matches!(self.phase, Phase::Login | Phase::Ready) || !self.has_room(payload) {
            return Ok(None);
        }
        self.control(Control::Ping, payload).map(|left| Some(if left { Sent::Written } else { Sent::Queued }))
    }

    /// Answers the pings of one receive, in one write. While the kernel or the rate limit lets nothing pass, the newest replaces the one
    /// that waits (RFC 6455 §5.5.3). `false` if it is too late for answers.
    pub fn pong<'a>(&mut self, payloads: impl Iterator<Item = &'a [u8]>) -> Result<bool, Error> {
        if !matches!(self.phase, Phase::Login | Phase::Ready) {
            return Ok(false);
        }
        if self.unsent() > 0 {
            if let Some(newest) = payloads.last() {
                self.pong = Some(newest.to_vec());
            }
            return Ok(true);
        }
        // One that has waited goes first.
        let waited = self.pong.take();
        let costs = self.control_costs();
        let (mut held, mut count) = (None, 0);
        let governor = self.governor.clone();
        let mut next = None;
        let (clock, tap, generation) = (self.clock, self.tap.clone(), self.generation);
        let mut totals = self.totals;
        let encoded = self.encode(|out| {
            let mut answer = |payload: &[u8]| {
                if let Some(governor) = &governor {
                    let now = clock();
                    if let Err(refused) = governor.reserve(now, &costs, true) {
                        held = Some(payload.to_vec());
                        next = Some(later(now, wait_of(&refused)));
                        return;
                    }
                }
                count += 1;
                totals.add(OpCode::Control(Control::Pong), payload);
                if let Some(tap) = &tap {
                    tap.frame(clock(), generation, Direction::Out, FrameKind::Pong, payload, false);
                }
                frame::encode(OpCode::Control(Control::Pong), frame::next_key(), payload, out);
            };
            waited.iter().for_each(|payload| answer(payload));
            payloads.for_each(answer);
        });
        self.totals = totals;
        self.pong = held;
        self.next = next.or(self.next);
        if governor.is_some() {
            // All are counted when the last byte has left.
            let (start, end) = (self.accepted(), self.queued);
            let begun = |_| Begun { start, end, is_message: false, costs, ticket: None, encoded: None };
            self.begun.extend((0..count).map(begun));
        }
        encoded?;
        self.write().map(|_| true)
    }

    /// Sends a Close frame, once per wire; no data follows it (RFC 6455 §5.5.1), and what waits for the rate limit will not leave.
    /// `false` if there was one.
    pub fn close(&mut self, code: Option<u16>, reason: &str) -> Result<bool, Error> {
        if !matches!(self.phase, Phase::Login | Phase::Ready) {
            return Ok(false);
        }
        self.phase = Phase::CloseSent;
        self.abandon();
        let payload = frame::close_payload(code, reason);
        self.control(Control::Close, &payload).map(|_| true)
    }

    /// Writes what waits, as far as kernel and rate limit let it. Returns when the rate limit will let more pass.
    pub fn flush(&mut self) -> Result<Option<Instant>, Error> {
        self.flush_counting(&mut Costs::default())
    }

    /// As [`flush`](Self::flush), and adds up what the frames cost that had waited for the rate limit.
    pub fn flush_counting(&mut self, passed: &mut Costs) -> Result<Option<Instant>, Error> {
        if matches!(self.phase, Phase::Down | Phase::Dead) {
            return Ok(None);
        }
        if self.write()? {
            self.next = None;
            if self.pong.is_some() {
                self.pong(iter::empty())?;
            }
            self.drain(passed)?;
        }
        // While the kernel takes nothing, its edge says when to go on.
        Ok(self.next.filter(|_| self.unsent() == 0 && self.is_held()))
    }

    /// Takes at most [`TLS_STEP`] bytes off the front of `cipher`, writes what they decrypt to into `plain`, and sends what TLS itself has
    /// to answer.
    pub fn decrypt(&mut self, cipher: &mut &[u8], plain: &mut [u8]) -> Decrypted {
        let Some(tls) = &mut self.tls else { return Decrypted { plain: 0, end: Some(Error::NotConnected) } };
        let mut step = &cipher[..cipher.len().min(TLS_STEP)];
        let taken = match tls.read_tls(&mut step) {
            Ok(0) => return Decrypted { plain: 0, end: Some(tls::stuck()) },
            Err(error) => return Decrypted { plain: 0, end: Some(Error::io(error)) },
            Ok(taken) => taken,
        };
        *cipher = &cipher[taken..];
        let end = match tls.process_new_packets() {
            Ok(state) if state.peer_has_closed() => Some(Error::Disconnected),
            Ok(_) => None,
            Err(error) => Some(tls::error(error)),
        };
        // What came before a failure counts. With nothing to read the reader answers with an error of its own.
        let count = tls.reader().read(plain).unwrap_or(0);
        if tls.wants_write() {
            // A key update to acknowledge, or the alert that says why we leave. A failure is kept; the reactor reads on first.
            let _ = self.encode(|_| ()).and_then(|()| self.write());
        }
        Decrypted { plain: count, end }
    }

    /// Why writing failed, if it has and the wire was not given up yet.
    pub fn failure(&self) -> Option<Error> {
        self.failure.clone()
    }

    /// Bytes the kernel has not taken yet.
    pub fn unsent(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Which wire is or was the latest.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How many messages of callers wait for the rate limit.
    pub fn waiting(&self) -> usize {
        self.waiting.values().filter(|waiting| !waiting.is_own && !waiting.is_withdrawn()).count()
    }

    /// Whether anything waits for the rate limit, so that the reactor must come back.
    pub fn is_held(&self) -> bool {
        !self.waiting.is_empty() || (self.governor.is_some() && self.pong.is_some())
    }

    /// Reserves what the message costs. `Ok(Err(…))` if it must wait: the governor says so, or others are before it.
    fn admit(&mut self, outgoing: &Outgoing<'_>) -> Result<Result<(), Duration>, Error> {
        let is_behind = self.waiting.first_key_value().is_some_and(|((lane, _), _)| *lane <= outgoing.lane);
        let Some(governor) = &self.governor else {
            // Without a governor only the connection's own frames wait, for the kernel; they keep their order.
            return Ok(if is_behind && outgoing.is_own { Err(Duration::ZERO) } else { Ok(()) });
        };
        let now = (self.clock)();
        let is_pong_held = self.pong.is_some() && self.unsent() == 0;
        match governor.reserve(now, &outgoing.costs, outgoing.lane <= Lane::Urgent) {
            Ok(()) if is_behind || is_pong_held => {
                governor.release(&outgoing.costs);
                // The reactor lets the others go first; a microsecond is more than it takes it to see that it can.
                let wait = self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now));
                Ok(Err(wait.max(Duration::from_micros(1))))
            }
            Ok(()) => Ok(Ok(())),
            Err(Refused::Wait(wait)) => Ok(Err(wait)),
            Err(Refused::Never { cost, capacity }) => {
                Err(Error::config("rate_limit", format!("the message costs {cost}, the limit allows {capacity}")))
            }
        }
    }

    /// Lets a message wait for the governor, or refuses it.
    fn wait(&mut self, outgoing: &Outgoing<'_>, wait: Duration) -> Result<Sent, Error> {
        let Outgoing { opcode, payload, lane, costs, is_own, enqueued, is_secret, .. } = *outgoing;
        if is_own {
            let waiting = if lane == Lane::Control { self.count(lane, true) } else { self.waiting.len() };
            if waiting >= if lane == Lane::Control { ANSWERS_MAX } else { OWN_MAX } {
                return Err(Error::QueueFull { waiting });
            }
        } else if outgoing.queue_max == 0 || matches!(opcode, OpCode::Control(_)) {
            return Err(Error::Throttled { wait });
        } else if self.count(lane, false) >= outgoing.queue_max {
            // What was taken back takes no room.
            self.waiting.retain(|_, waiting| !waiting.is_withdrawn());
            let waiting = self.count(lane, false);
            if waiting >= outgoing.queue_max {
                return Err(Error::QueueFull { waiting });
            }
        }
        let ticket = outgoing.ticket.cloned();
        self.file(lane, wait, Waiting { opcode, payload: payload.to_vec(), costs, ticket, is_own, enqueued, is_secret });
        Ok(Sent::Queued)
    }

    /// How many frames of this kind wait in this lane or before; what has less of a hurry takes no room from what has more.
    fn count(&self, lane: Lane, is_own: bool) -> usize {
        self.waiting.range(..=(lane, u64::MAX)).filter(|(_, waiting)| waiting.is_own == is_own).count()
    }

    fn file(&mut self, lane: Lane, wait: Duration, waiting: Waiting) {
        if self.governor.is_some() {
            let at = later((self.clock)(), wait);
            self.next = Some(self.next.map_or(at, |next| next.min(at)));
        }
        self.arrivals += 1;
        self.waiting.insert((lane, self.arrivals), waiting);
    }

    /// Sends a control frame of the connection's own. `false` if it waits for the governor, in place of an earlier one of its kind.
    fn control(&mut self, control: Control, payload: &[u8]) -> Result<bool, Error> {
        let opcode = OpCode::Control(control);
        let costs = self.control_costs();
        let outgoing = Outgoing { opcode, payload, costs, lane: Lane::Control, is_own: true, ..Outgoing::text("") };
        let Err(wait) = self.admit(&outgoing)? else {
            self.begin(Frame { opcode, payload, costs, ticket: None, is_message: false, enqueued: None, is_secret: false })?;
            return Ok(true);
        };
        self.waiting.retain(|_, waiting| waiting.opcode != opcode);
        let payload = payload.to_vec();
        let (ticket, enqueued, is_secret) = (None, None, false);
        self.file(Lane::Control, wait, Waiting { opcode, payload, costs, ticket, is_own: true, enqueued, is_secret });
        Ok(false)
    }

    /// Sends what waits for the governor, as far as it allows.
    fn drain(&mut self, passed: &mut Costs) -> Result<(), Error> {
        if self.waiting.is_empty() || self.pong.is_some() {
            return Ok(());
        }
        while self.unsent() == 0
            && let Some(first) = self.waiting.first_entry()
        {
            if first.get().is_withdrawn() {
                first.remove();
                continue;
            }
            let (lane, costs) = (first.key().0, first.get().costs);
            let now = (self.clock)();
            let allowed = self.governor.as_ref().map_or(Ok(()), |governor| governor.reserve(now, &costs, lane <= Lane::Urgent));
            if let Err(refused) = allowed {
                self.next = Some(later(now, wait_of(&refused)));
                break;
            }
            let Waiting { opcode, payload, ticket, is_own, enqueued, is_secret, .. } = first.remove();
            let is_message = !is_own && matches!(opcode, OpCode::Data(_));
            passed.add(&costs);
            self.begin(Frame { opcode, payload: &payload, costs, ticket, is_message, enqueued, is_secret })?;
        }
        Ok(())
    }

    /// Begins a frame whose costs are reserved, by itself.
    fn begin(&mut self, frame: Frame<'_>) -> Result<(), Error> {
        let start = self.queued;
        let Frame { costs, is_message, .. } = frame;
        let is_followed = self.is_followed(frame.ticket.is_some(), frame.enqueued);
        if !self.put(frame) {
            return Ok(());
        }
        self.seal()?;
        if !self.write()? && !is_followed {
            self.begun.push_back(Begun { start, end: self.queued, is_message, costs, ticket: None, encoded: None });
        }
        Ok(())
    }

    /// Encodes a frame whose costs are reserved. `false` if it was taken back while it waited.
    fn put(&mut self, frame: Frame<'_>) -> bool {
        let Frame { opcode, payload, costs, ticket, is_message, enqueued, is_secret } = frame;
        if ticket.as_ref().is_some_and(|ticket| !ticket.begin()) {
            self.release(&costs);
            return false;
        }
        let start = self.queued;
        self.totals.add(opcode, payload);
        if let Some(tap) = &self.tap {
            tap.frame((self.clock)(), self.generation, Direction::Out, frame::kind(opcode), payload, is_secret);
        }
        self.append(|out| frame::encode(opcode, frame::next_key(), payload, out));
        if self.is_followed(ticket.is_some(), enqueued) {
            let end = if self.tls.is_some() { NOT_SEALED } else { self.queued };
            let encoded = enqueued.and_then(|enqueued| self.note_encoded(enqueued));
            self.begun.push_back(Begun { start, end, is_message, costs, ticket, encoded });
        }
        true
    }

    /// Whether somebody wants to know when the kernel has taken a frame.
    fn is_followed(&self, has_ticket: bool, enqueued: Option<Instant>) -> bool {
        has_ticket || self.governor.is_some() || (enqueued.is_some() && self.stamps.is_some())
    }

    fn note_encoded(&mut self, enqueued: Instant) -> Option<Instant> {
        let stamps = self.stamps.as_ref()?;
        let now = (self.clock)();
        stamps.encode.record(now, now.saturating_duration_since(enqueued));
        Some(now)
    }

    /// Gives up what waits for the governor. Nobody sends it again.
    fn abandon(&mut self) {
        self.pong = None;
        self.next = None;
        for waiting in mem::take(&mut self.waiting).into_values() {
            // One that was taken back is its caller's affair.
            let is_withdrawn = waiting.ticket.is_some_and(|ticket| !ticket.withdraw());
            if !waiting.is_own && !is_withdrawn {
                self.abandoned.messages += 1;
                self.abandoned.bytes += waiting.payload.len();
            }
        }
    }

    fn release(&self, costs: &Costs) {
        if let Some(governor) = &self.governor {
            governor.release(costs);
        }
    }

    fn control_costs(&self) -> Costs {
        self.governor.as_ref().map_or_else(Costs::default, |governor| governor.control())
    }

    /// How much of this wire's bytes the kernel has taken.
    fn accepted(&self) -> u64 {
        self.queued - self.unsent() as u64
    }

    /// Whether a frame may join what the kernel has not taken; the first one always may.
    fn has_room(&self, payload: &[u8]) -> bool {
        let unsent = self.unsent() + self.plain.len();
        unsent == 0 || unsent + payload.len() + frame::HEADER_MAX <= self.unsent_max
    }

    /// Appends the frames that `make` writes to the buffer, encrypted if the wire is.
    fn encode(&mut self, make: impl FnOnce(&mut Vec<u8>)) -> Result<(), Error> {
        self.append(make);
        self.seal()
    }

    /// Appends the frames that `make` writes to the buffer, or to what is to be encrypted.
    fn append(&mut self, make: impl FnOnce(&mut Vec<u8>)) {
        if self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        if self.tls.is_some() {
            return make(&mut self.plain);
        }
        let before = self.buffer.len();
        make(&mut self.buffer);
        self.queued += (self.buffer.len() - before) as u64;
    }

    /// Encrypts what was appended, if the wire is encrypted.
    fn seal(&mut self) -> Result<(), Error> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        let before = self.buffer.len();
        let encrypted = encrypt(tls, &self.plain, &mut self.buffer);
        self.plain.clear();
        give_back(&mut self.plain);
        self.queued += (self.buffer.len() - before) as u64;
        let (sealed, queued) = (encrypted.is_ok(), self.queued);
        let fresh = self.begun.iter_mut().rev().take_while(|frame| sealed && frame.end == NOT_SEALED);
        fresh.for_each(|frame| frame.end = queued);
        encrypted.map_err(|error| self.die(error))
    }

    /// Writes until nothing is left (`true`) or the kernel takes no more.
    fn write(&mut self) -> Result<bool, Error> {
        let Some(stream) = &mut self.stream else { return Ok(true) };
        let written = loop {
            if self.start == self.buffer.len() {
                break Ok(true);
            }
            match stream.write(&self.buffer[self.start..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => self.start += taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        // However it ended: what the kernel took before is not unsent.
        self.settle();
        if !written.map_err(|error| self.die(error))? {
            return Ok(false);
        }
        self.buffer.clear();
        self.start = 0;
        give_back(&mut self.buffer);
        Ok(true)
    }

    /// Lets go of the frames that the kernel has taken whole, and has the governor count them from now on.
    fn settle(&mut self) {
        let accepted = self.accepted();
        while self.begun.front().is_some_and(|frame| frame.end <= accepted)
            && let Some(frame) = self.begun.pop_front()
        {
            if let Some(governor) = &self.governor {
                governor.commit((self.clock)(), &frame.costs);
            }
            if let (Some(stamps), Some(encoded)) = (&self.stamps, frame.encoded) {
                let now = (self.clock)();
                stamps.write.record(now, now.saturating_duration_since(encoded));
            }
            if let Some(ticket) = frame.ticket {
                ticket.finish();
            }
        }
    }

    fn die(&mut self, error: io::Error) -> Error {
        let error = Error::io(error);
        self.phase = Phase::Dead;
        self.failure = Some(error.clone());
        error
    }
}

impl Totals {
    fn add(&mut self, opcode: OpCode, payload: &[u8]) {
        self.messages += u64::from(matches!(opcode, OpCode::Data(_)));
        self.bytes += frame::size(payload.len()) as u64;
    }
}

/// What cannot pass at all was refused when it was to wait; another connection may have changed nothing about that.
fn wait_of(refused: &Refused) -> Duration {
    match refused {
        Refused::Wait(wait) => *wait,
        Refused::Never { .. } => Duration::MAX,
    }
}

/// A slow limit may make a frame wait for longer than an instant can say.
fn later(now: Instant, wait: Duration) -> Instant {
    now + wait.min(Duration::from_secs(3600))
}

fn encrypt(tls: &mut ClientConnection, plain: &[u8], buffer: &mut Vec<u8>) -> io::Result<()> {
    if !plain.is_empty() {
        tls.writer().write_all(plain)?;
    }
    while tls.wants_write() {
        tls.write_tls(buffer)?;
    }
    Ok(())
}

fn give_back(buffer: &mut Vec<u8>) {
    if buffer.capacity() > KEPT_CAPACITY {
        mem::take(buffer);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::governor::RateLimit;

    const SEC: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn without_a_wire_nothing_is_accepted() {
        let mut out = Out::<Socket>::new(0, None, Instant::now);
        assert!(matches!(out.send(message(b"x")), Err(Error::NotConnected)));
    }

    #[test]
    fn a_message_for_another_wire_is_refused() {
        let mut out = open(100, 0);
        let next = Generation::default().next().next();
        assert!(matches!(out.send(Outgoing { expected: Some(next), ..message(b"x") }), Err(Error::Stale { .. })));
        assert_eq!(out.send(Outgoing { expected: Some(out.generation()), ..message(b"x") }).unwrap(), Sent::Written);
    }

    #[test]
    fn a_begun_frame_is_always_accepted_and_further_ones_up_to_the_bound() {
        let mut out = open(10, 0);
        assert_eq!(out.send(message(&[b'x'; 1000])).unwrap(), Sent::Buffered);
        assert!(matches!(out.send(message(b"x")), Err(Error::Full { unsent: 998 })));
        let mut out = open(10, 1200);
        assert_eq!(out.send(message(&[b'x'; 1000])).unwrap(), Sent::Buffered);
        assert_eq!(out.send(message(b"x")).unwrap(), Sent::Buffered);
    }

    #[test]
    fn the_tail_leaves_when_the_kernel_has_room_and_what_did_not_is_counted() {
        let mut out = open(3, 1000);
        for _ in 0..3 {
            assert_eq!(out.send(message(b"0123")).unwrap(), Sent::Buffered);
        }
        give(&mut out, 12);
        out.flush().unwrap();
        let remains = out.end();
        assert_eq!((remains.messages, remains.bytes), (2, 15), "10 of the first and 5 of the second left");
    }

    #[test]
    fn no_data_follows_a_close_and_it_is_sent_once() {
        let mut out = open(1000, 1000);
        out.close(Some(1000), "bye").unwrap();
        let sent = out.stream.as_ref().unwrap().taken.len();
        assert!(matches!(out.send(message(b"x")), Err(Error::NotConnected)));
        out.close(Some(1001), "again").unwrap();
        out.ping(b"x").unwrap();
        out.pong([&b"x"[..]].into_iter()).unwrap();
        assert_eq!(out.stream.unwrap().taken.len(), sent);
    }

    #[test]
    fn pongs_answer_one_for_one_until_the_kernel_is_full_and_then_the_newest_only() {
        let mut out = open(13, 1000);
        out.pong([&b"a"[..], b"b"].into_iter()).unwrap();
        assert_eq!(out.unsent(), 1);
        for newer in [b"c", b"d", b"e"] {
            out.pong([&newer[..]].into_iter()).unwrap();
        }
        give(&mut out, 1000);
        out.flush().unwrap();
        assert_eq!(said(&out), ["pong a", "pong b", "pong e"]);
    }

    #[test]
    fn a_failed_write_kills_the_wire() {
        let mut out = open(1000, 1000);
        out.stream.as_mut().unwrap().broken = true;
        assert!(matches!(out.send(message(b"x")), Err(Error::Io(_))));
        assert!(matches!(out.failure(), Some(Error::Io(_))));
        assert!(matches!(out.send(message(b"x")), Err(Error::NotConnected)));
    }

    #[test]
    fn a_large_buffer_is_given_back() {
        let mut out = open(1 << 20, 0);
        out.send(message(&[0; 100_000])).unwrap();
        assert!(out.buffer.capacity() <= KEPT_CAPACITY);
    }

    // Bursts.

    #[test]
    fn a_burst_leaves_in_one_write_as_far_as_it_fits_16_kib() {
        let payload = [b'x'; 1000];
        let messages = [message(&payload); 40];
        let mut out = open(1 << 20, 1 << 20);
        let frame = frame::size(payload.len());
        assert_eq!(out.send_many(&messages).0, BURST_MAX / frame);
        assert_eq!(out.stream.as_ref().unwrap().writes, 1);
        let large = [b'x'; BURST_MAX];
        assert!(matches!(out.send_many(&[message(&large), message(b"1")]), (1, Ok(Sent::Written))));
        assert!(matches!(out.send_many(&[]), (0, Ok(Sent::Written))));
        assert_eq!(out.stream.as_ref().unwrap().writes, 2);
    }

    #[test]
    fn of_a_burst_that_the_kernel_cuts_those_count_as_unsent_that_did_not_leave_whole() {
        let messages = [&b"1"[..], b"22", b"333"].map(message);
        let ends = [7, 15, 24];
        for room in 0..=24 {
            let mut out = open(room, 1000);
            let (count, sent) = out.send_many(&messages);
            assert_eq!((count, sent.unwrap()), (3, if room < 24 { Sent::Buffered } else { Sent::Written }), "{room}");
            let remains = out.end();
            assert_eq!((remains.messages, remains.bytes), (ends.iter().filter(|end| **end > room).count(), 24 - room), "{room}");
        }
    }

    #[test]
    fn of_a_burst_on_which_the_wire_breaks_those_were_accepted_that_left_whole() {
        let messages = [&b"1"[..], b"22", b"333"].map(message);
        for room in 0..24 {
            let mut out = open(room, 1000);
            out.stream.as_mut().unwrap().breaks_when_full = true;
            let (count, sent) = out.send_many(&messages);
            assert!(matches!(sent, Err(Error::Io(_))));
            assert_eq!((count, out.end().messages), ([7, 15].iter().filter(|end| **end <= room).count(), 0), "{room}");
        }
    }

    #[test]
    fn a_burst_goes_as_far_as_the_limit_lets_it() {
        let mut out = limited(2, 0, 1000, 1000);
        let (count, sent) = out.send_many(&[b"1", b"2", b"3"].map(|text| costing(&out, 1, text)));
        assert!((count, said(&out).len()) == (2, 2) && matches!(sent, Err(Error::Throttled { .. })), "{count}: {sent:?}");
        let mut out = limited(2, 0, 1000, 1000);
        let (count, sent) = out.send_many(&[b"1", b"2", b"3"].map(|text| queued(&out, Lane::Normal, text)));
        assert_eq!((count, sent.unwrap(), out.waiting()), (3, Sent::Queued, 1));
        pass(2 * SEC);
        out.flush().unwrap();
        assert_eq!(said(&out), ["1", "2", "3"]);
    }

    #[test]
    fn of_a_burst_on_which_the_wire_breaks_nothing_goes_on_waiting() {
        let mut out = limited(2, 0, 10, 1000);
        out.stream.as_mut().unwrap().breaks_when_full = true;
        let (count, sent) = out.send_many(&[b"1", b"2", b"3"].map(|text| queued(&out, Lane::Normal, text)));
        assert!((count, out.waiting()) == (1, 0) && matches!(sent, Err(Error::Io(_))), "{count}, {} wait", out.waiting());
        assert_eq!(out.end().messages, 0);
    }

    #[test]
    fn a_burst_fills_the_tail_no_further_than_its_bound() {
        let mut out = open(0, 40);
        let messages = [&[b'x'; 10][..]; 5].map(message);
        assert!(matches!(out.send_many(&messages), (2, Ok(Sent::Buffered))));
        assert!(matches!(out.send_many(&messages[2..]), (0, Err(Error::Full { unsent: 32 }))));
    }

    #[test]
    fn a_burst_for_another_wire_is_refused_whole() {
        let mut out = open(1000, 1000);
        let stale = |payload| Outgoing { expected: Some(Generation::default()), ..message(payload) };
        assert!(matches!(out.send_many(&[stale(b"1"), stale(b"2")]), (0, Err(Error::Stale { .. }))));
        assert_eq!(out.stream.unwrap().writes, 0);
    }

    // Stamps.

    #[test]
    fn the_way_of_a_message_is_measured_up_to_its_last_byte() {
        let mut out = open(10, 1000);
        out.stamp();
        let enqueued = Some(now());
        pass(MS);
        assert_eq!(out.send(Outgoing { enqueued, ..message(b"12345678") }).unwrap(), Sent::Buffered);
        assert_eq!(out.stamps().unwrap().write.summary(now()), None, "it has not left");
        pass(SEC);
        give(&mut out, 1000);
        out.flush().unwrap();
        let counts = |out: &Out<Socket>| {
            let stamps = out.stamps().unwrap();
            let SendStamps { encode, write } = &*stamps;
            [encode, write]
                .map(|histogram| histogram.summary(now()).map(|latency| (latency.total.count, latency.total.max.as_millis())))
        };
        assert_eq!(counts(&out), [Some((1, 1)), Some((1, 1000))]);
        out.send(message(b"nobody asked")).unwrap();
        out.ping(b"nor here").unwrap();
        assert_eq!(counts(&out)[0].unwrap().0, 1);
        out.end();
        assert_eq!(counts(&out)[1].unwrap().0, 1, "it is kept from wire to wire");
    }

    #[test]
    fn waiting_for_the_limit_counts_as_waiting_to_be_encoded() {
        let mut out = spent(1, 0);
        out.stamp();
        out.send(Outgoing { enqueued: Some(now()), ..queued(&out, Lane::Normal, b"1") }).unwrap();
        pass(SEC);
        out.flush().unwrap();
        let encode = out.stamps().unwrap().encode.summary(now()).unwrap();
        assert_eq!(encode.total.max, SEC);
    }

    // Phases.

    #[test]
    fn during_a_login_only_the_connection_itself_may_speak() {
        let mut out = Out::new(1000, None, now);
        out.open(Generation::default().next(), socket(1000), None);
        assert!(matches!(out.send(message(b"order")), Err(Error::NotConnected)));
        assert!(matches!(out.send(Outgoing { queue_max: 9, lane: Lane::Urgent, ..message(b"order") }), Err(Error::NotConnected)));
        assert_eq!(out.send(own(Lane::Control, b"login")).unwrap(), Sent::Written);
        out.ready();
        assert_eq!(out.send(message(b"order")).unwrap(), Sent::Written);
        assert_eq!(said(&out), ["login", "order"]);
    }

    #[test]
    fn pings_are_sent_and_answered_while_callers_are_held() {
        let mut out = Out::new(1000, None, now);
        out.open(Generation::default().next(), socket(1000), None);
        out.pong([&b"1"[..]].into_iter()).unwrap();
        assert_eq!(out.ping(b"2").unwrap(), Some(Sent::Written));
        out.close(None, "").unwrap();
        assert_eq!(said(&out), ["pong 1", "ping 2", "close "]);
    }

    #[test]
    fn each_wire_begins_with_a_login() {
        let mut out = open(1000, 1000);
        out.end();
        out.ready();
        assert!(matches!(out.send(own(Lane::Control, b"login")), Err(Error::NotConnected)), "there is no wire");
        out.open(out.generation().next(), socket(1000), None);
        assert!(matches!(out.send(message(b"order")), Err(Error::NotConnected)));
    }

    #[test]
    fn a_login_that_succeeds_after_the_close_frame_lets_nothing_pass() {
        let mut out = Out::new(1000, None, now);
        out.open(Generation::default().next(), socket(1000), None);
        out.close(Some(1000), "").unwrap();
        out.ready();
        assert!(matches!(out.send(message(b"order")), Err(Error::NotConnected)));
        assert!(matches!(out.send(own(Lane::Control, b"login")), Err(Error::NotConnected)));
    }

    #[test]
    #[should_panic(expected = "what the last wire left unsent would be lost")]
    fn a_wire_that_was_not_given_up_is_not_replaced() {
        let mut out = open(1000, 1000);
        out.open(out.generation().next(), socket(1000), None);
    }

    // Lanes.

    #[test]
    fn what_waits_leaves_by_lane_and_in_a_lane_by_age() {
        let mut out = spent(2, 0);
        for (lane, text) in
            [(Lane::Restore, b"1"), (Lane::Normal, b"2"), (Lane::Urgent, b"3"), (Lane::Control, b"4"), (Lane::Normal, b"5")]
        {
            let is_own = matches!(lane, Lane::Control | Lane::Restore);
            assert_eq!(out.send(Outgoing { is_own, ..queued(&out, lane, text) }).unwrap(), Sent::Queued);
        }
        let t0 = now();
        assert_eq!((out.flush().unwrap(), said(&out).len()), (Some(t0 + SEC), 0));
        let rest: Vec<_> = (1..=3)
            .map(|_| {
                pass(SEC);
                let next = out.flush().unwrap().map(|next| next - t0);
                (next, said(&out).join(""))
            })
            .collect();
        assert_eq!(rest, [(Some(2 * SEC), "43".into()), (Some(3 * SEC), "4325".into()), (None, "43251".into())]);
    }

    #[test]
    fn a_frame_passes_those_of_lower_lanes_only() {
        for waiting in LANES {
            for sending in LANES {
                let mut out = spent(1, 0);
                out.send(queued(&out, waiting, b"first")).unwrap();
                pass(SEC);
                let sent = out.send(queued(&out, sending, b"second")).unwrap();
                assert_eq!(sent == Sent::Written, sending < waiting, "{sending:?} while {waiting:?} waits: {sent:?}");
            }
        }
    }

    #[test]
    fn a_frame_that_may_not_pass_takes_nothing_from_the_limit() {
        let mut out = spent(1, 0);
        out.send(queued(&out, Lane::Normal, b"first")).unwrap();
        pass(SEC);
        assert!(matches!(out.send(costing(&out, 1, b"second")), Err(Error::Throttled { .. })));
        assert_eq!(available(&out), 1);
        assert_eq!(out.flush().unwrap(), None);
        assert_eq!(said(&out), ["first"]);
    }

    #[test]
    fn unsent_bytes_are_passed_by_nobody() {
        let mut out = limited(9, 0, 3, 1000);
        for (lane, text) in [(Lane::Restore, b"r"), (Lane::Normal, b"n"), (Lane::Urgent, b"u"), (Lane::Control, b"c")] {
            assert_eq!(out.send(queued(&out, lane, text)).unwrap(), Sent::Buffered);
        }
        give(&mut out, 1000);
        out.flush().unwrap();
        assert_eq!(said(&out), ["r", "n", "u", "c"]);
    }

    #[test]
    fn what_waits_is_begun_no_faster_than_the_kernel_takes_it() {
        let mut out = spent(9, 0);
        for text in [b"1", b"2", b"3"] {
            out.send(queued(&out, Lane::Normal, text)).unwrap();
        }
        out.stream.as_mut().unwrap().room = 10;
        pass(SEC);
        out.flush().unwrap();
        assert_eq!((out.waiting(), out.unsent()), (1, 4));
        assert_eq!(out.send(queued(&out, Lane::Urgent, b"hasty")).unwrap(), Sent::Buffered);
        give(&mut out, 1000);
        out.flush().unwrap();
        assert_eq!(said(&out), ["1", "2", "hasty", "3"]);
    }

    #[test]
    fn what_is_reserved_serves_control_and_urgent_only() {
        for (lane, passes) in LANES.into_iter().zip([true, true, false, false]) {
            let mut out = limited(2, 1, 1000, 1000);
            out.send(costing(&out, 1, b"first")).unwrap();
            assert_eq!(out.send(Outgoing { lane, ..costing(&out, 1, b"second") }).is_ok(), passes, "{lane:?}");
            // The same when it has waited.
            let mut out = limited(2, 1, 1000, 1000);
            out.send(queued(&out, Lane::Control, b"first")).unwrap();
            out.send(queued(&out, Lane::Control, b"first")).unwrap();
            out.send(queued(&out, lane, b"waited")).unwrap();
            pass(SEC);
            let other = out.governor.clone().unwrap();
            other.reserve(now(), &cost(&out, 1), true).unwrap();
            out.flush().unwrap();
            assert_eq!(said(&out).contains(&"waited".into()), passes, "{lane:?}");
        }
    }

    #[test]
    fn what_is_reserved_serves_pongs_too() {
        let mut out = limited(2, 1, 1000, 1000);
        out.send(costing(&out, 1, b"1")).unwrap();
        out.pong([&b"2"[..]].into_iter()).unwrap();
        assert_eq!(said(&out), ["1", "pong 2"]);
    }

    // Refusals.

    #[test]
    fn a_refusal_says_exactly_how_long_to_wait() {
        let mut out = spent(2, 0);
        pass(300 * MS);
        assert!(matches!(out.send(costing(&out, 1, b"x")), Err(Error::Throttled { wait }) if wait == 700 * MS));
        pass(700 * MS);
        assert_eq!(out.send(costing(&out, 1, b"x")).unwrap(), Sent::Written);
    }

    #[test]
    fn who_waits_behind_others_waits_as_long_as_the_first_of_them() {
        let mut out = spent(2, 0);
        out.send(queued(&out, Lane::Normal, b"first")).unwrap();
        pass(300 * MS);
        // Of the two that the limit gives again the first takes one.
        assert!(matches!(out.send(costing(&out, 1, b"x")), Err(Error::Throttled { wait }) if wait == 700 * MS));
        pass(800 * MS);
        let wait = Duration::from_micros(1);
        assert!(matches!(out.send(costing(&out, 1, b"x")), Err(Error::Throttled { wait: told }) if told == wait));
    }

    #[test]
    fn who_waits_behind_several_waits_as_long_as_the_first_that_may_pass() {
        let mut out = limited(9, 0, 1000, 1000);
        out.send(costing(&out, 1, b"1")).unwrap();
        pass(500 * MS);
        out.send(costing(&out, 8, b"2")).unwrap();
        out.send(Outgoing { costs: cost(&out, 9), ..queued(&out, Lane::Normal, b"in a second") }).unwrap();
        out.send(queued(&out, Lane::Urgent, b"in half a second")).unwrap();
        assert!(matches!(out.send(costing(&out, 0, b"free")), Err(Error::Throttled { wait }) if wait == 500 * MS));
    }

    #[test]
    fn who_waits_behind_others_is_told_the_same_after_a_pong() {
        let mut out = limited(2, 1, 1000, 1000);
        out.send(costing(&out, 1, b"1")).unwrap();
        out.send(queued(&out, Lane::Normal, b"2")).unwrap();
        out.pong([&b"pong"[..]].into_iter()).unwrap();
        assert_eq!(said(&out), ["1", "pong pong"]);
        assert!(matches!(out.send(costing(&out, 0, b"free")), Err(Error::Throttled { wait: SEC })));
    }

    #[test]
    fn who_waits_behind_others_does_not_hear_of_those_that_have_left() {
        let mut out = spent(1, 0);
        out.send(queued(&out, Lane::Normal, b"1")).unwrap();
        pass(SEC);
        out.flush().unwrap();
        out.send(queued(&out, Lane::Normal, b"2")).unwrap();
        assert!(matches!(out.send(costing(&out, 0, b"free")), Err(Error::Throttled { wait: SEC })));
    }

    #[test]
    fn a_free_frame_waits_behind_others_until_the_limit_lets_them_pass() {
        let mut out = spent(2, 0);
        out.send(queued(&out, Lane::Normal, b"first")).unwrap();
        pass(300 * MS);
        assert!(matches!(out.send(costing(&out, 0, b"x")), Err(Error::Throttled { wait }) if wait == 700 * MS));
    }

    #[test]
    fn what_costs_more_than_the_limit_is_a_mistake_and_takes_nothing() {
        let mut out = limited(3, 1, 1000, 1000);
        let refusal = |out: &mut Out<Socket>, lane, cost| {
            let sent = out.send(Outgoing { lane, queue_max: 9, ..costing(out, cost, b"x") });
            let Err(Error::Config { setting: "rate_limit", reason }) = sent else { panic!("{sent:?}") };
            reason
        };
        assert_eq!(&*refusal(&mut out, Lane::Normal, 3), "the message costs 3, the limit allows 2");
        assert_eq!(&*refusal(&mut out, Lane::Urgent, 4), "the message costs 4, the limit allows 3");
        assert_eq!((available(&out), out.waiting(), said(&out).len()), (2, 0, 0));
    }

    #[test]
    fn only_so_many_messages_of_callers_wait() {
        let mut out = spent(1, 0);
        for _ in 0..3 {
            out.send(Outgoing { is_own: true, ..queued(&out, Lane::Control, b"own") }).unwrap();
        }
        let queue = |out: &mut Out<Socket>| out.send(Outgoing { queue_max: 2, ..queued(out, Lane::Normal, b"x") });
        assert_eq!([queue(&mut out).unwrap(), queue(&mut out).unwrap()], [Sent::Queued; 2]);
        assert!(matches!(queue(&mut out), Err(Error::QueueFull { waiting: 2 })));
        assert_eq!((out.waiting(), out.waiting.len()), (2, 5));
    }

    #[test]
    fn what_has_less_of_a_hurry_takes_no_room_from_what_has_more() {
        let mut out = spent(1, 0);
        let mut queue = |lane| out.send(Outgoing { queue_max: 2, ..queued(&out, lane, b"x") });
        for lane in [Lane::Normal, Lane::Normal, Lane::Urgent, Lane::Urgent] {
            assert_eq!(queue(lane).unwrap(), Sent::Queued);
        }
        assert!(matches!(queue(Lane::Urgent), Err(Error::QueueFull { waiting: 2 })));
        assert!(matches!(queue(Lane::Normal), Err(Error::QueueFull { waiting: 4 })));
    }

    #[test]
    fn only_so_many_answers_wait_and_subscriptions_do_not_count() {
        let mut out = spent(1, 0);
        for _ in 0..20 {
            out.send(Outgoing { is_own: true, ..queued(&out, Lane::Restore, b"subscribe") }).unwrap();
        }
        for _ in 0..ANSWERS_MAX {
            out.send(Outgoing { is_own: true, ..queued(&out, Lane::Control, b"answer") }).unwrap();
        }
        let refused = out.send(Outgoing { is_own: true, ..queued(&out, Lane::Control, b"answer") });
        assert!(matches!(refused, Err(Error::QueueFull { waiting: ANSWERS_MAX })));
    }

    #[test]
    fn only_so_many_subscriptions_wait() {
        let mut out = spent(1, 0);
        for _ in 0..OWN_MAX {
            out.send(Outgoing { is_own: true, ..queued(&out, Lane::Restore, b"") }).unwrap();
        }
        let refused = out.send(Outgoing { is_own: true, ..queued(&out, Lane::Restore, b"") });
        assert!(matches!(refused, Err(Error::QueueFull { waiting: OWN_MAX })));
        let answer = out.send(Outgoing { is_own: true, ..queued(&out, Lane::Control, b"answer") });
        assert_eq!(answer.unwrap(), Sent::Queued, "they take no room from answers");
    }

    #[test]
    fn what_is_printed_shows_no_payload() {
        let mut out = spent(1, 0);
        out.send(Outgoing { is_own: true, ..queued(&out, Lane::Control, b"AAAAAAAA") }).unwrap();
        let shown = format!("{out:?} {:?}", own(Lane::Control, b"AAAAAAAA"));
        assert!(shown.contains("Waiting") && !shown.contains("65, 65") && !shown.contains("AAAA"), "{shown}");
    }

    #[test]
    fn a_callers_ping_does_not_wait() {
        let mut out = spent(1, 0);
        let ping = Outgoing { opcode: OpCode::Control(Control::Ping), ..queued(&out, Lane::Normal, b"x") };
        assert!(matches!(out.send(ping), Err(Error::Throttled { wait: SEC })));
    }

    #[test]
    fn a_message_that_finds_no_room_costs_nothing_and_does_not_wait() {
        let mut out = limited(9, 0, 3, 0);
        out.send(costing(&out, 1, b"first")).unwrap();
        assert!(matches!(out.send(queued(&out, Lane::Normal, b"second")), Err(Error::Full { unsent: 8 })));
        assert_eq!((available(&out), out.waiting()), (8, 0));
    }

    #[test]
    fn a_message_for_another_wire_costs_nothing() {
        let mut out = limited(9, 0, 1000, 1000);
        let refused = out.send(Outgoing { expected: Some(out.generation().next()), ..costing(&out, 1, b"x") });
        assert!(matches!(refused, Err(Error::Stale { .. })));
        assert_eq!(available(&out), 9);
    }

    // Tickets.

    #[test]
    fn a_ticket_is_sent_once_the_kernel_took_the_last_byte() {
        for limit in [None, Some(9)] {
            let mut out = wire(limit, 0, 0, 1000);
            let (first, second) = (Arc::default(), Arc::default());
            out.send(Outgoing { ticket: Some(&first), ..message(b"first") }).unwrap();
            out.send(Outgoing { ticket: Some(&second), ..message(b"second") }).unwrap();
            let steps = [0, 10, 1, 11, 1].map(|room| {
                give(&mut out, room);
                out.flush().unwrap();
                [&first, &second].map(|ticket: &Arc<Ticket>| (ticket.may_arrive(), ticket.is_sent()))
            });
            let (begun, sent) = ((true, false), (true, true));
            assert_eq!(steps, [[begun, begun], [begun, begun], [sent, begun], [sent, begun], [sent, sent]]);
        }
    }

    #[test]
    fn a_ticket_is_not_sent_on_a_wire_that_fails() {
        let mut out = limited(9, 0, 13, 1000);
        let (whole, cut, last) = (Arc::default(), Arc::default(), Arc::default());
        out.send(Outgoing { ticket: Some(&whole), ..message(b"whole") }).unwrap();
        out.send(Outgoing { ticket: Some(&cut), ..message(b"cut") }).unwrap();
        out.stream.as_mut().unwrap().broken = true;
        assert!(out.flush().is_err());
        assert!(out.send(Outgoing { ticket: Some(&last), ..message(b"last") }).is_err());
        give(&mut out, 1000);
        out.stream.as_mut().unwrap().broken = false;
        assert_eq!(out.flush().unwrap(), None);
        out.end();
        let tickets: [&Arc<Ticket>; 3] = [&whole, &cut, &last];
        assert_eq!(tickets.map(|ticket| (ticket.may_arrive(), ticket.is_sent())), [(true, true), (true, false), (false, false)]);
    }

    #[test]
    fn bytes_that_left_before_a_failure_are_sent() {
        let mut out = limited(9, 0, 0, 1000);
        let (whole, cut) = (Arc::default(), Arc::default());
        out.send(Outgoing { ticket: Some(&whole), ..message(b"whole") }).unwrap();
        out.send(Outgoing { ticket: Some(&cut), ..message(b"cut") }).unwrap();
        give(&mut out, 12);
        out.stream.as_mut().unwrap().breaks_when_full = true;
        assert!(out.flush().is_err());
        assert_eq!((whole.is_sent(), cut.is_sent()), (true, false));
    }

    #[test]
    fn a_message_taken_back_while_it_waits_does_not_leave_and_costs_nothing() {
        let mut out = spent(2, 0);
        let ticket = Arc::default();
        out.send(Outgoing { ticket: Some(&ticket), ..queued(&out, Lane::Normal, b"taken back") }).unwrap();
        out.send(queued(&out, Lane::Normal, b"next")).unwrap();
        assert!(ticket.withdraw());
        pass(SEC);
        assert_eq!(out.flush().unwrap(), None);
        assert_eq!((said(&out), available(&out), ticket.may_arrive()), (vec!["next".to_owned()], 1, false));
    }

    #[test]
    fn a_message_taken_back_takes_no_room_in_the_queue() {
        let mut out = spent(1, 0);
        let ticket = Arc::default();
        out.send(Outgoing { ticket: Some(&ticket), queue_max: 1, ..queued(&out, Lane::Normal, b"taken back") }).unwrap();
        assert!(matches!(out.send(Outgoing { queue_max: 1, ..queued(&out, Lane::Normal, b"x") }), Err(Error::QueueFull { .. })));
        Ticket::withdraw(&ticket);
        assert_eq!(out.waiting(), 0);
        assert_eq!(out.send(Outgoing { queue_max: 1, ..queued(&out, Lane::Normal, b"x") }).unwrap(), Sent::Queued);
    }

    #[test]
    fn a_message_taken_back_holds_nobody_up() {
        let mut out = limited(9, 0, 1000, 1000);
        let governor = out.governor.clone().unwrap();
        for (units, later) in [(1, 500 * MS), (8, Duration::ZERO)] {
            governor.reserve(now(), &cost(&out, units), true).unwrap();
            governor.commit(now(), &cost(&out, units));
            pass(later);
        }
        let ticket = Arc::default();
        let dear = Outgoing { costs: cost(&out, 9), ticket: Some(&ticket), ..queued(&out, Lane::Normal, b"taken back") };
        out.send(dear).unwrap();
        out.send(queued(&out, Lane::Normal, b"next")).unwrap();
        Ticket::withdraw(&ticket);
        pass(500 * MS);
        out.flush().unwrap();
        assert_eq!(said(&out), ["next"]);
    }

    #[test]
    fn a_message_taken_back_before_it_is_sent_does_not_leave_and_costs_nothing() {
        for limit in [None, Some(9)] {
            let mut out = wire(limit, 0, 1000, 1000);
            let ticket = Arc::default();
            Ticket::withdraw(&ticket);
            out.send(Outgoing { ticket: Some(&ticket), costs: cost(&out, 1), ..message(b"x") }).unwrap();
            assert_eq!((said(&out).len(), out.end().messages), (0, 0));
            assert!(out.governor.as_ref().is_none_or(|governor| governor.status(now())[0].available == 9));
        }
    }

    // Reservations.

    #[test]
    fn a_frame_counts_from_when_its_last_byte_has_left() {
        let mut out = limited(1, 0, 0, 1000);
        out.send(costing(&out, 1, b"x")).unwrap();
        give(&mut out, 6);
        out.flush().unwrap();
        pass(5 * SEC);
        assert_eq!(available(&out), 0, "reserved until then");
        give(&mut out, 1);
        out.flush().unwrap();
        let free = [999 * MS, MS].map(|later| {
            pass(later);
            available(&out)
        });
        assert_eq!(free, [0, 1]);
    }

    #[test]
    fn a_frame_counts_from_the_end_of_the_write_and_not_from_its_begin() {
        for is_waiting in [false, true] {
            let mut out = limited(1, 0, 1000, 1000);
            if is_waiting {
                out.pong([&b""[..]].into_iter()).unwrap();
                out.send(queued(&out, Lane::Normal, b"x")).unwrap();
                pass(SEC);
            }
            out.stream.as_mut().unwrap().delay = 300 * MS;
            let sent = if is_waiting { out.flush().map(|_| ()) } else { out.send(costing(&out, 1, b"x")).map(|_| ()) };
            sent.unwrap();
            let free = [999 * MS, MS].map(|later| {
                pass(later);
                available(&out)
            });
            assert_eq!((free, said(&out).pop().unwrap()), ([0, 1], "x".into()));
        }
    }

    #[test]
    fn of_a_wire_that_ends_only_frames_that_had_begun_to_leave_count() {
        for (room, left) in [(0, 2), (1, 1), (6, 1), (7, 1), (8, 0), (13, 0), (14, 0)] {
            let mut out = limited(2, 0, room, 1000);
            out.send(costing(&out, 1, b"1")).unwrap();
            out.send(costing(&out, 1, b"2")).unwrap();
            out.end();
            assert_eq!(available(&out), left, "after {room} bytes");
            pass(SEC);
            assert_eq!(available(&out), 2, "nothing stays reserved");
        }
    }

    #[test]
    fn what_waits_when_the_wire_ends_has_reserved_nothing() {
        let mut out = spent(1, 0);
        out.send(queued(&out, Lane::Normal, b"x")).unwrap();
        pass(SEC);
        out.end();
        assert_eq!(available(&out), 1);
    }

    #[test]
    fn control_frames_count_too() {
        let mut out = limited(9, 0, 1000, 1000);
        assert_eq!(out.ping(b"1").unwrap(), Some(Sent::Written));
        out.pong([&b"2"[..], b"3"].into_iter()).unwrap();
        out.close(Some(1000), "").unwrap();
        assert_eq!(available(&out), 5);
        pass(SEC);
        assert_eq!(available(&out), 9);
    }

    // The end.

    #[test]
    fn what_waits_dies_with_its_wire_and_is_counted() {
        let mut out = limited(1, 0, 5, 1000);
        out.send(costing(&out, 1, b"123456")).unwrap();
        let (waits, taken_back) = (Arc::default(), Arc::default());
        out.send(Outgoing { ticket: Some(&waits), ..queued(&out, Lane::Normal, b"1234") }).unwrap();
        out.send(Outgoing { ticket: Some(&taken_back), ..queued(&out, Lane::Normal, b"12") }).unwrap();
        out.send(Outgoing { is_own: true, ..queued(&out, Lane::Restore, b"subscribe") }).unwrap();
        assert_eq!(out.ping(b"ping").unwrap(), Some(Sent::Queued));
        Ticket::withdraw(&taken_back);
        let remains = out.end();
        assert_eq!((remains.messages, remains.bytes), (2, 7 + 4), "7 of 12 of the first, and the second");
        assert!(!Ticket::begin(&waits), "nobody sends it any more");
        assert_eq!((out.waiting(), out.is_held(), out.unsent()), (0, false, 0));
        pass(SEC);
        out.open(out.generation().next(), socket(1000), None);
        out.ready();
        assert_eq!((out.flush().unwrap(), said(&out).len()), (None, 0));
    }

    #[test]
    fn the_connections_own_frames_are_missed_by_nobody() {
        for limit in [None, Some(9)] {
            let mut out = wire(limit, 0, 3, 1000);
            out.send(own(Lane::Control, b"login")).unwrap();
            out.ping(b"x").unwrap();
            let remains = out.end();
            assert_eq!((remains.messages, remains.bytes), (0, 8 + 7));
        }
    }

    #[test]
    fn a_callers_ping_is_no_message() {
        let mut out = open(3, 1000);
        out.send(Outgoing { opcode: OpCode::Control(Control::Ping), ..message(b"x") }).unwrap();
        assert_eq!(out.end().messages, 0);
    }

    #[test]
    fn the_next_wire_owes_nothing_of_the_last() {
        let mut out = spent(1, 0);
        out.send(queued(&out, Lane::Normal, b"x")).unwrap();
        out.pong([&b"x"[..]].into_iter()).unwrap();
        out.close(Some(1000), "").unwrap();
        assert_eq!(out.end().messages, 1);
        out.open(out.generation().next(), socket(1000), None);
        let remains = out.end();
        assert_eq!((remains.messages, remains.bytes, out.is_held()), (0, 0, false));
    }

    #[test]
    fn a_message_that_fails_with_its_wire_is_not_counted_besides() {
        for limit in [None, Some(9)] {
            for ticket in [None, Some(Arc::default())] {
                let mut out = wire(limit, 0, 3, 1000);
                out.stream.as_mut().unwrap().breaks_when_full = true;
                assert!(matches!(out.send(Outgoing { ticket: ticket.as_ref(), ..message(b"x") }), Err(Error::Io(_))));
                assert_eq!(out.end().messages, 0, "limit {limit:?}, ticket {ticket:?}");
            }
        }
    }

    #[test]
    fn a_message_that_fails_after_it_has_waited_is_counted() {
        let mut out = spent(1, 0);
        out.send(queued(&out, Lane::Normal, b"x")).unwrap();
        pass(SEC);
        out.stream.as_mut().unwrap().broken = true;
        assert!(out.flush().is_err());
        assert_eq!((out.end().messages, available(&out)), (1, 1));
    }

    // Closing.

    #[test]
    fn a_close_drops_what_waits_and_the_end_counts_it() {
        let mut out = limited(1, 0, 3, 1000);
        out.send(costing(&out, 1, b"begun")).unwrap();
        let ticket = Arc::default();
        out.send(Outgoing { ticket: Some(&ticket), ..queued(&out, Lane::Urgent, b"1234") }).unwrap();
        out.send(Outgoing { is_own: true, ..queued(&out, Lane::Restore, b"subscribe") }).unwrap();
        out.close(Some(1000), "").unwrap();
        assert!(!ticket.may_arrive() && !ticket.begin());
        assert_eq!(out.waiting(), 0);
        give(&mut out, 1000);
        pass(SEC);
        out.flush().unwrap();
        pass(SEC);
        out.flush().unwrap();
        assert_eq!(said(&out), ["begun", "close \u{3}\u{e8}"]);
        let remains = out.end();
        assert_eq!((remains.messages, remains.bytes), (1, 4));
    }

    #[test]
    fn a_close_drops_the_pong_that_waits() {
        let mut out = limited(9, 0, 3, 1000);
        out.send(message(b"x")).unwrap();
        out.pong([&b"late"[..]].into_iter()).unwrap();
        out.close(None, "").unwrap();
        give(&mut out, 1000);
        out.flush().unwrap();
        assert_eq!(said(&out), ["x", "close "]);
    }

    #[test]
    fn a_close_waits_for_the_limit_and_is_the_last_frame_though() {
        let mut out = spent(1, 0);
        let t0 = now();
        out.close(None, "").unwrap();
        assert!(out.is_held());
        assert_eq!(out.flush().unwrap(), Some(t0 + SEC));
        pass(SEC);
        assert!(matches!(out.send(queued(&out, Lane::Urgent, b"x")), Err(Error::NotConnected)));
        assert!(matches!(out.send(own(Lane::Control, b"x")), Err(Error::NotConnected)));
        out.pong([&b"x"[..]].into_iter()).unwrap();
        assert_eq!(out.ping(b"x").unwrap(), None);
        assert_eq!(out.flush().unwrap(), None);
        pass(SEC);
        out.flush().unwrap();
        assert_eq!((said(&out), out.is_held()), (vec!["close ".to_owned()], false));
    }

    #[test]
    fn a_close_that_waits_is_not_held_up_by_a_pong_before_it() {
        let mut out = spent(1, 0);
        out.pong([&b"x"[..]].into_iter()).unwrap();
        out.close(None, "").unwrap();
        pass(SEC);
        out.flush().unwrap();
        assert_eq!(said(&out), ["close "]);
    }

    // Pings and pongs.

    #[test]
    fn a_ping_that_the_limit_holds_back_says_so_and_the_next_takes_its_place() {
        let mut out = spent(2, 0);
        out.send(Outgoing { is_own: true, ..queued(&out, Lane::Control, b"answer") }).unwrap();
        assert_eq!([out.ping(b"1").unwrap(), out.ping(b"2").unwrap()], [Some(Sent::Queued); 2]);
        pass(SEC);
        out.flush().unwrap();
        assert_eq!(said(&out), ["answer", "ping 2"]);
    }

    #[test]
    fn a_ping_that_finds_no_room_is_left_out() {
        for limit in [None, Some(9)] {
            let mut out = wire(limit, 0, 3, 0);
            out.send(message(b"x")).unwrap();
            assert_eq!(out.ping(b"y").unwrap(), None);
            give(&mut out, 1000);
            out.flush().unwrap();
            assert_eq!(said(&out), ["x"]);
        }
    }

    #[test]
    fn pongs_leave_as_far_as_the_limit_lets_them_and_then_the_newest_waits() {
        let mut out = limited(2, 0, 1000, 1000);
        out.pong([&b"1"[..], b"2", b"3", b"4"].into_iter()).unwrap();
        out.pong([&b"5"[..]].into_iter()).unwrap();
        assert!(out.is_held());
        assert_eq!(said(&out), ["pong 1", "pong 2"]);
        pass(SEC);
        out.flush().unwrap();
        assert_eq!((said(&out), out.is_held()), (vec!["pong 1".into(), "pong 2".into(), "pong 5".to_owned()], false));
    }

    #[test]
    fn a_pong_that_has_waited_goes_before_newer_ones() {
        let mut out = spent(2, 0);
        out.pong([&b"1"[..]].into_iter()).unwrap();
        pass(SEC);
        out.pong([&b"2"[..]].into_iter()).unwrap();
        assert_eq!(said(&out), ["pong 1", "pong 2"]);
    }

    #[test]
    fn a_pong_that_waits_for_the_limit_goes_before_all_others() {
        let mut out = spent(1, 0);
        let t0 = now();
        out.send(Outgoing { is_own: true, ..queued(&out, Lane::Control, b"answer") }).unwrap();
        out.pong([&b"1"[..]].into_iter()).unwrap();
        assert_eq!(out.flush().unwrap(), Some(t0 + SEC));
        pass(SEC);
        assert_eq!(out.flush().unwrap(), Some(t0 + 2 * SEC));
        assert_eq!(said(&out), ["pong 1"]);
    }

    #[test]
    fn a_pong_that_waits_for_the_limit_goes_before_free_frames() {
        let mut out = spent(1, 0);
        out.pong([&b"1"[..]].into_iter()).unwrap();
        assert_eq!(out.send(Outgoing { costs: cost(&out, 0), ..queued(&out, Lane::Urgent, b"2") }).unwrap(), Sent::Queued);
        out.flush().unwrap();
        assert_eq!(said(&out).len(), 0);
        pass(SEC);
        out.flush().unwrap();
        assert_eq!(said(&out), ["pong 1", "2"]);
    }

    #[test]
    fn a_pong_that_waits_for_the_kernel_holds_nobody_up() {
        let mut out = limited(9, 0, 3, 1000);
        out.send(costing(&out, 1, b"1")).unwrap();
        out.pong([&b"2"[..]].into_iter()).unwrap();
        assert_eq!(out.send(costing(&out, 1, b"3")).unwrap(), Sent::Buffered);
        give(&mut out, 1000);
        out.flush().unwrap();
        assert_eq!(said(&out), ["1", "3", "pong 2"]);
    }

    #[test]
    fn who_sends_does_not_pass_a_pong_that_waits_for_the_limit() {
        for lane in LANES {
            let mut out = spent(2, 0);
            out.pong([&b"1"[..]].into_iter()).unwrap();
            pass(SEC);
            assert_eq!(out.send(queued(&out, lane, b"2")).unwrap(), Sent::Queued);
            out.flush().unwrap();
            assert_eq!(said(&out), ["pong 1", "2"]);
        }
    }

    #[test]
    fn a_flush_says_when_the_limit_lets_more_pass_unless_the_kernel_is_full() {
        let mut out = spent(2, 0);
        let t0 = now();
        out.send(queued(&out, Lane::Normal, b"1")).unwrap();
        out.send(Outgoing { costs: cost(&out, 2), ..queued(&out, Lane::Normal, b"2") }).unwrap();
        out.stream.as_mut().unwrap().room = 3;
        assert_eq!(out.flush().unwrap(), Some(t0 + SEC));
        pass(SEC);
        assert_eq!(out.flush().unwrap(), None, "the edge says when");
        give(&mut out, 1000);
        pass(SEC);
        assert_eq!(out.flush().unwrap(), Some(now() + SEC));
    }

    #[test]
    fn a_flush_that_finds_the_kernel_full_waits_for_its_edge_alone() {
        let mut out = limited(1, 0, 3, 1000);
        out.send(costing(&out, 1, b"tail")).unwrap();
        assert_eq!(out.send(queued(&out, Lane::Normal, b"x")).unwrap(), Sent::Queued);
        assert_eq!(out.flush().unwrap(), None);
        pass(9 * SEC);
        assert_eq!(out.flush().unwrap(), None);
    }

    #[test]
    fn a_flush_asks_for_no_other_once_nothing_waits() {
        let mut out = spent(1, 0);
        assert!(matches!(out.send(costing(&out, 1, b"x")), Err(Error::Throttled { .. })));
        pass(SEC);
        assert_eq!(out.flush().unwrap(), None, "after a refused sender");
        let mut out = spent(1, 0);
        out.pong([&b"x"[..]].into_iter()).unwrap();
        pass(SEC);
        assert_eq!((out.flush().unwrap(), out.is_held()), (None, false), "after a pong");
    }

    // The connection's own frames.

    #[test]
    fn own_frames_wait_for_a_full_kernel_and_keep_their_order() {
        for limit in [None, Some(99)] {
            let mut out = wire(limit, 0, 3, 0);
            out.send(message(b"tail")).unwrap();
            for text in [b"1", b"2", b"3"] {
                assert_eq!(out.send(own(Lane::Restore, text)).unwrap(), Sent::Queued);
            }
            assert_eq!(out.send(own(Lane::Control, b"first")).unwrap(), Sent::Queued);
            assert!(matches!(out.send(Outgoing { lane: Lane::Urgent, ..message(b"x") }), Err(Error::Full { .. })));
            out.stream.as_mut().unwrap().room = 7 + 11 + 7;
            out.flush().unwrap();
            assert_eq!(said(&out), ["tail", "first", "1"]);
            assert_eq!(out.send(own(Lane::Restore, b"4")).unwrap(), Sent::Queued);
            give(&mut out, 1000);
            out.flush().unwrap();
            assert_eq!(said(&out).join(" "), "tail first 1 2 3 4");
        }
    }

    #[test]
    fn a_short_own_frame_does_not_pass_a_long_one_that_finds_no_room() {
        for limit in [None, Some(9)] {
            let mut out = wire(limit, 0, 3, 30);
            out.send(message(b"tail")).unwrap();
            for text in [&b"a long subscription"[..], b"short"] {
                assert_eq!(out.send(own(Lane::Restore, text)).unwrap(), Sent::Queued);
            }
            assert_eq!(out.send(own(Lane::Control, b"hasty")).unwrap(), Sent::Buffered);
            give(&mut out, 1000);
            out.flush().unwrap();
            assert_eq!(said(&out), ["tail", "hasty", "a long subscription", "short"]);
        }
    }

    #[test]
    fn own_frames_that_wait_for_the_kernel_have_reserved_nothing() {
        let mut out = limited(9, 0, 3, 0);
        out.send(costing(&out, 1, b"tail")).unwrap();
        out.send(Outgoing { is_own: true, ..queued(&out, Lane::Restore, b"1") }).unwrap();
        assert_eq!(available(&out), 8);
        give(&mut out, 1000);
        out.flush().unwrap();
        assert_eq!((said(&out).len(), available(&out)), (2, 7));
    }

    #[test]
    fn callers_do_not_wait_for_own_frames_without_a_limit() {
        let mut out = wire(None, 0, 3, 0);
        out.send(message(b"tail")).unwrap();
        out.send(own(Lane::Control, b"answer")).unwrap();
        give(&mut out, 1000);
        out.write().unwrap();
        assert_eq!(out.send(message(b"order")).unwrap(), Sent::Written);
        out.flush().unwrap();
        assert_eq!(said(&out), ["tail", "order", "answer"]);
    }

    // The bench.

    /// A socket whose buffer takes `room` bytes.
    #[derive(Debug, Default)]
    struct Socket {
        taken: Vec<u8>,
        room: usize,
        broken: bool,
        breaks_when_full: bool,
        writes: usize,
        /// How long a write takes.
        delay: Duration,
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            pass(self.delay);
            self.writes += 1;
            let count = bytes.len().min(self.room);
            if self.broken || (count == 0 && self.breaks_when_full) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if count == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const LANES: [Lane; 4] = [Lane::Control, Lane::Urgent, Lane::Normal, Lane::Restore];

    thread_local! {
        static NOW: Cell<Instant> = Cell::new(Instant::now());
    }

    fn now() -> Instant {
        NOW.get()
    }

    fn pass(by: Duration) {
        NOW.set(NOW.get() + by);
    }

    fn socket(room: usize) -> Socket {
        Socket { room, ..Socket::default() }
    }

    fn open(room: usize, unsent_max: usize) -> Out<Socket> {
        wire(None, 0, room, unsent_max)
    }

    /// With a limit of so many frames a second.
    fn limited(count: u32, reserved: u32, room: usize, unsent_max: usize) -> Out<Socket> {
        wire(Some(count), reserved, room, unsent_max)
    }

    /// With a limit that was used up right now, by others.
    fn spent(count: u32, reserved: u32) -> Out<Socket> {
        let out = limited(count, reserved, 1000, 1000);
        let (governor, costs) = (out.governor.as_ref().unwrap(), cost(&out, count));
        governor.reserve(now(), &costs, true).unwrap();
        governor.commit(now(), &costs);
        out
    }

    fn wire(limit: Option<u32>, reserved: u32, room: usize, unsent_max: usize) -> Out<Socket> {
        let limits: Vec<_> =
            limit.into_iter().map(|count| RateLimit::window(count, SEC).margin(Duration::ZERO).reserved(reserved)).collect();
        let mut out = Out::new(unsent_max, Governor::new(&limits, now()).unwrap(), now);
        out.open(Generation::default().next(), socket(room), None);
        out.ready();
        out
    }

    fn cost(out: &Out<Socket>, cost: u32) -> Costs {
        out.governor.as_ref().map_or_else(Costs::default, |governor| governor.costs(b"", || cost))
    }

    fn available(out: &Out<Socket>) -> u32 {
        out.governor.as_ref().unwrap().status(now())[0].available
    }

    fn message(payload: &[u8]) -> Outgoing<'_> {
        Outgoing { payload, ..Outgoing::text("") }
    }

    fn costing<'a>(out: &Out<Socket>, units: u32, payload: &'a [u8]) -> Outgoing<'a> {
        Outgoing { costs: cost(out, units), ..message(payload) }
    }

    /// One that costs 1 and may wait.
    fn queued<'a>(out: &Out<Socket>, lane: Lane, payload: &'a [u8]) -> Outgoing<'a> {
        Outgoing { lane, queue_max: 9, ..costing(out, 1, payload) }
    }

    fn own(lane: Lane, payload: &[u8]) -> Outgoing<'_> {
        Outgoing { lane, is_own: true, ..message(payload) }
    }

    fn give(out: &mut Out<Socket>, room: usize) {
        out.stream.as_mut().unwrap().room += room;
    }

    /// The frames that the kernel took whole.
    fn said(out: &Out<Socket>) -> Vec<String> {
        let mut rest = &out.stream.as_ref().unwrap().taken[..];
        let mut frames = Vec::new();
        while let [first, second, a, b, c, d, after @ ..] = rest {
            let length = usize::from(second & 0x7F);
            let Some((masked, after)) = after.split_at_checked(length) else { break };
            let payload: Vec<_> = masked.iter().zip([a, b, c, d].into_iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            let kind = match first & 0x0F {
                1 => "",
                8 => "close ",
                9 => "ping ",
                _ => "pong ",
            };
            // Each byte as a character, for close codes.
            frames.push(payload.into_iter().map(char::from).fold(kind.to_owned(), |text, byte| text + &byte.to_string()));
            rest = after;
        }
        frames
    }
}
