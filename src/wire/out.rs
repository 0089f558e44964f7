//! The sending half of a connection: encodes, encrypts and writes, and keeps what the kernel or the rate limit has not let pass yet.
//!
//! Callers and the reactor share it under a lock, so every method is one critical section: it makes one frame and one attempt to write,
//! and only the reactor's [`Out::flush`] makes more, as far as the rate limit lets them. A frame once begun is finished or dies with its
//! wire; none ever moves to another wire.
//!
//! ```text
//!   Down ── upgraded ──► Login ── logged in ──► Ready ── Close frame ──► CloseSent
//!   any but Down ── a write failed ──► Dead          any ── given up ──► Down
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::iter;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::error::Error;
use crate::event::{Generation, Sent};
use crate::governor::{Costs, Governor, Refused};
use crate::ticket::Ticket;
use crate::wire::frame;
use crate::wire::tls;

/// How much ciphertext is worked off in one critical section, so that a sender waits for a few microseconds at most.
const TLS_STEP: usize = 4096;

/// A buffer larger than this is given back when it runs empty.
const KEPT_CAPACITY: usize = 4096;

/// How many answers to a venue's heartbeats may wait for the rate limit.
const ANSWERS_MAX: usize = 16;

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
    /// A frame before it is encrypted.
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
    /// Read for the governor only, after each write that it counts.
    clock: fn() -> Instant,
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
#[derive(Clone, Copy, Debug)]
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
}

/// A frame that waits for the governor.
#[derive(Debug)]
struct Waiting {
    opcode: OpCode,
    payload: Vec<u8>,
    costs: Costs,
    ticket: Option<Arc<Ticket>>,
    is_own: bool,
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
            clock,
        }
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
        *self = Self { generation: self.generation, arrivals: self.arrivals, ..next };
        remains
    }

    /// Sends a message or a caller's ping.
    ///
    /// # Errors
    ///
    /// After any error no byte of the frame, or not its last byte, has left. On [`Error::Io`] the wire is dead and the reactor must be
    /// told.
    pub fn send(&mut self, outgoing: Outgoing<'_>) -> Result<Sent, Error> {
        match self.phase {
            Phase::Ready => {}
            Phase::Login if outgoing.is_own => {}
            Phase::Down | Phase::Login | Phase::CloseSent | Phase::Dead => return Err(Error::NotConnected),
        }
        if outgoing.expected.is_some_and(|expected| expected != self.generation) {
            return Err(Error::Stale { current: self.generation });
        }
        if let Err(wait) = self.admit(&outgoing)? {
            return self.wait(&outgoing, wait);
        }
        if !self.has_room(outgoing.payload) {
            self.release(&outgoing.costs);
            if outgoing.is_own {
                return self.wait(&outgoing, Duration::ZERO);
            }
            return Err(Error::Full { unsent: self.unsent() });
        }
        let Outgoing { opcode, payload, costs, ticket, .. } = outgoing;
        let is_idle = self.begin(opcode, payload, costs, ticket.cloned(), outgoing.is_message())?;
        Ok(if is_idle { Sent::Written } else { Sent::Buffered })
    }

    /// Sends a ping of the session. One that finds no room is left out and counts as unanswered in time. `false` if it waits for the rate
    /// limit, in place of an earlier one.
    pub fn ping(&mut self, payload: &[u8]) -> Result<bool, Error> {
        if self.phase != Phase::Ready || !self.has_room(payload) {
            return Ok(true);
        }
        self.control(Control::Ping, payload)
    }

    /// Answers the pings of one receive, in one write. While the kernel or the rate limit lets nothing pass, the newest replaces the one
    /// that waits (RFC 6455 §5.5.3).
    pub fn pong<'a>(&mut self, payloads: impl Iterator<Item = &'a [u8]>) -> Result<(), Error> {
        if !matches!(self.phase, Phase::Login | Phase::Ready) {
            return Ok(());
        }
        if self.unsent() > 0 {
            if let Some(newest) = payloads.last() {
                self.pong = Some(newest.to_vec());
            }
            return Ok(());
        }
        // One that has waited goes first.
        let waited = self.pong.take();
        let costs = self.control_costs();
        let (mut held, mut count) = (None, 0);
        let governor = self.governor.clone();
        let mut next = None;
        let clock = self.clock;
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
                frame::encode(OpCode::Control(Control::Pong), frame::next_key(), payload, out);
            };
            waited.iter().for_each(|payload| answer(payload));
            payloads.for_each(answer);
        });
        self.pong = held;
        self.next = next.or(self.next);
        if governor.is_some() {
            // All are counted when the last byte has left.
            let (start, end) = (self.accepted(), self.queued);
            self.begun.extend((0..count).map(|_| Begun { start, end, is_message: false, costs, ticket: None }));
        }
        encoded?;
        self.write().map(|_| ())
    }

    /// Sends a Close frame, once per wire; no data follows it (RFC 6455 §5.5.1), and what waits for the rate limit will not leave.
    pub fn close(&mut self, code: Option<u16>, reason: &str) -> Result<(), Error> {
        if !matches!(self.phase, Phase::Login | Phase::Ready) {
            return Ok(());
        }
        self.phase = Phase::CloseSent;
        self.abandon();
        let payload = frame::close_payload(code, reason);
        self.control(Control::Close, &payload).map(|_| ())
    }

    /// Writes what waits, as far as kernel and rate limit let it. Returns when the rate limit will let more pass.
    pub fn flush(&mut self) -> Result<Option<Instant>, Error> {
        if matches!(self.phase, Phase::Down | Phase::Dead) {
            return Ok(None);
        }
        if self.write()? {
            if self.pong.is_some() {
                self.pong(iter::empty())?;
            }
            self.drain()?;
        }
        // While the kernel takes nothing, its edge says when to go on.
        Ok(self.next.filter(|_| self.unsent() == 0))
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
        self.waiting.values().filter(|waiting| !waiting.is_own).count()
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
            Err(Refused::Wait(wait)) => {
                self.next.get_or_insert(later(now, wait));
                Ok(Err(wait))
            }
            Err(Refused::Never { cost, capacity }) => {
                Err(Error::config("rate_limit", format!("the message costs {cost}, the limit allows {capacity}")))
            }
        }
    }

    /// Lets a message wait for the governor, or refuses it.
    fn wait(&mut self, outgoing: &Outgoing<'_>, wait: Duration) -> Result<Sent, Error> {
        let Outgoing { opcode, payload, lane, costs, is_own, .. } = *outgoing;
        // What has less of a hurry takes no room from what has more.
        let waiting = self.waiting.range(..=(lane, u64::MAX)).filter(|(_, waiting)| waiting.is_own == is_own).count();
        if is_own {
            if lane == Lane::Control && waiting >= ANSWERS_MAX {
                return Err(Error::QueueFull { waiting });
            }
        } else if outgoing.queue_max == 0 || matches!(opcode, OpCode::Control(_)) {
            return Err(Error::Throttled { wait });
        } else if waiting >= outgoing.queue_max {
            return Err(Error::QueueFull { waiting });
        }
        let ticket = outgoing.ticket.cloned();
        self.file(lane, Waiting { opcode, payload: payload.to_vec(), costs, ticket, is_own });
        Ok(Sent::Queued)
    }

    fn file(&mut self, lane: Lane, waiting: Waiting) {
        self.arrivals += 1;
        self.waiting.insert((lane, self.arrivals), waiting);
    }

    /// Sends a control frame of the connection's own. `false` if it waits for the governor, in place of an earlier one of its kind.
    fn control(&mut self, control: Control, payload: &[u8]) -> Result<bool, Error> {
        let opcode = OpCode::Control(control);
        let costs = self.control_costs();
        let outgoing = Outgoing { opcode, payload, costs, lane: Lane::Control, is_own: true, ..Outgoing::text("") };
        if self.admit(&outgoing)?.is_ok() {
            return self.begin(opcode, payload, costs, None, false).map(|_| true);
        }
        self.waiting.retain(|_, waiting| waiting.opcode != opcode);
        self.file(Lane::Control, Waiting { opcode, payload: payload.to_vec(), costs, ticket: None, is_own: true });
        Ok(false)
    }

    /// Sends what waits for the governor, as far as it allows.
    fn drain(&mut self) -> Result<(), Error> {
        if self.waiting.is_empty() || self.pong.is_some() {
            return Ok(());
        }
        self.next = None;
        while self.unsent() == 0
            && let Some(first) = self.waiting.first_entry()
        {
            let (lane, costs) = (first.key().0, first.get().costs);
            let now = (self.clock)();
            let allowed = self.governor.as_ref().map_or(Ok(()), |governor| governor.reserve(now, &costs, lane <= Lane::Urgent));
            if let Err(refused) = allowed {
                self.next = Some(later(now, wait_of(&refused)));
                break;
            }
            let Waiting { opcode, payload, ticket, is_own, .. } = first.remove();
            let is_message = !is_own && matches!(opcode, OpCode::Data(_));
            self.begin(opcode, &payload, costs, ticket, is_message)?;
        }
        Ok(())
    }

    /// Begins a frame whose costs are reserved. Returns whether the kernel took it whole.
    fn begin(
        &mut self,
        opcode: OpCode,
        payload: &[u8],
        costs: Costs,
        ticket: Option<Arc<Ticket>>,
        is_message: bool,
    ) -> Result<bool, Error> {
        if ticket.as_ref().is_some_and(|ticket| !ticket.begin()) {
            // Taken back while it waited.
            self.release(&costs);
            return Ok(true);
        }
        let start = self.queued;
        let encoded = self.encode(|out| frame::encode(opcode, frame::next_key(), payload, out));
        let is_followed = ticket.is_some() || self.governor.is_some();
        if is_followed {
            self.begun.push_back(Begun { start, end: self.queued, is_message, costs, ticket });
        }
        encoded?;
        let is_idle = self.write()?;
        if !is_idle && !is_followed {
            self.begun.push_back(Begun { start, end: self.queued, is_message, costs, ticket: None });
        }
        Ok(is_idle)
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
        let unsent = self.unsent();
        unsent == 0 || unsent + payload.len() + frame::HEADER_MAX <= self.unsent_max
    }

    /// Appends the frames that `make` writes to the buffer, encrypted if the wire is.
    fn encode(&mut self, make: impl FnOnce(&mut Vec<u8>)) -> Result<(), Error> {
        if self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let before = self.buffer.len();
        match &mut self.tls {
            None => make(&mut self.buffer),
            Some(tls) => {
                make(&mut self.plain);
                let encrypted = encrypt(tls, &self.plain, &mut self.buffer);
                self.plain.clear();
                give_back(&mut self.plain);
                encrypted.map_err(|error| self.die(error))?;
            }
        }
        self.queued += (self.buffer.len() - before) as u64;
        Ok(())
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
    use super::*;

    /// A socket whose buffer takes `room` bytes.
    #[derive(Debug, Default)]
    struct Socket {
        taken: Vec<u8>,
        room: usize,
        broken: bool,
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let count = bytes.len().min(self.room);
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

    fn open(room: usize, unsent_max: usize) -> Out<Socket> {
        let mut out = Out::new(unsent_max, None, Instant::now);
        out.open(Generation::default().next(), Socket { room, ..Socket::default() }, None);
        out.ready();
        out
    }

    fn message(payload: &[u8]) -> Outgoing<'_> {
        Outgoing { payload, ..Outgoing::text("") }
    }

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
        out.stream.as_mut().unwrap().room = 12;
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
        out.stream.as_mut().unwrap().room = 1000;
        out.flush().unwrap();
        let taken = &out.stream.as_ref().unwrap().taken;
        let payloads: Vec<u8> = taken.chunks(7).map(|frame| frame[6] ^ frame[2]).collect();
        assert_eq!(payloads, b"abe");
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
}
