//! The sending half of a connection: encodes, encrypts and writes, and keeps what the kernel has not taken yet.
//!
//! Callers and the reactor share it under a lock, so every method is one critical section: it makes at most one frame and one attempt to
//! write. A frame once begun is finished or dies with its wire; none ever moves to another wire.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::iter;
use std::mem;

use rustls::ClientConnection;
use tungstenite::protocol::frame::coding::{Control, OpCode};

use crate::error::Error;
use crate::event::{Generation, Sent};
use crate::wire::frame;
use crate::wire::tls;

/// How much ciphertext is worked off in one critical section, so that a sender waits for a few microseconds at most.
const TLS_STEP: usize = 4096;

/// A buffer larger than this is given back when it runs empty.
const KEPT_CAPACITY: usize = 4096;

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
    /// Where the messages end that the kernel has not taken whole.
    ends: VecDeque<u64>,
    /// A frame before it is encrypted.
    plain: Vec<u8>,
    /// The pong that leaves once the kernel takes bytes again.
    pong: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No wire.
    Down,
    /// Messages may leave.
    Ready,
    /// A Close frame is the last frame of this wire.
    CloseSent,
    /// Writing failed; the reactor has still to notice.
    Dead,
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

impl<W: Write> Out<W> {
    /// A sending half without a wire.
    pub fn new(unsent_max: usize) -> Self {
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
            ends: VecDeque::new(),
            plain: Vec::new(),
            pong: None,
        }
    }

    /// Takes a wire on which the upgrade succeeded.
    ///
    /// # Panics
    ///
    /// If the last one was not given up.
    pub fn open(&mut self, generation: Generation, stream: W, tls: Option<Box<ClientConnection>>) {
        assert_eq!(self.phase, Phase::Down, "what the last wire left unsent would be lost");
        self.generation = generation;
        self.stream = Some(stream);
        self.tls = tls;
        self.phase = Phase::Ready;
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
        let remains = Remains { stream: self.stream.take(), messages: self.ends.len(), bytes: self.unsent() };
        *self = Self { generation: self.generation, ..Self::new(self.unsent_max) };
        remains
    }

    /// Sends a message or a caller's ping. `expected` is the wire it was made for.
    ///
    /// # Errors
    ///
    /// After any error no byte of the frame, or not its last byte, has left. On [`Error::Io`] the wire is dead and the reactor must be
    /// told.
    pub fn send(&mut self, opcode: OpCode, payload: &[u8], expected: Option<Generation>) -> Result<Sent, Error> {
        if self.phase != Phase::Ready {
            return Err(Error::NotConnected);
        }
        if expected.is_some_and(|expected| expected != self.generation) {
            return Err(Error::Stale { current: self.generation });
        }
        if !self.has_room(payload) {
            return Err(Error::Full { unsent: self.unsent() });
        }
        self.encode(|out| frame::encode(opcode, frame::next_key(), payload, out))?;
        let is_idle = self.write()?;
        if !is_idle && matches!(opcode, OpCode::Data(_)) {
            self.ends.push_back(self.queued);
        }
        Ok(if is_idle { Sent::Written } else { Sent::Buffered })
    }

    /// Sends a ping of the session. One that finds no room is left out and counts as unanswered in time.
    pub fn ping(&mut self, payload: &[u8]) -> Result<(), Error> {
        if self.phase != Phase::Ready || !self.has_room(payload) {
            return Ok(());
        }
        self.encode(|out| frame::encode(OpCode::Control(Control::Ping), frame::next_key(), payload, out))?;
        self.write().map(|_| ())
    }

    /// Answers the pings of one receive, in one write. While the kernel takes nothing the newest replaces the one that waits
    /// (RFC 6455 §5.5.3).
    pub fn pong<'a>(&mut self, payloads: impl Iterator<Item = &'a [u8]>) -> Result<(), Error> {
        if self.phase != Phase::Ready {
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
        self.encode(|out| {
            let mut pong = |payload: &[u8]| frame::encode(OpCode::Control(Control::Pong), frame::next_key(), payload, out);
            if let Some(payload) = &waited {
                pong(payload);
            }
            payloads.for_each(pong);
        })?;
        self.write().map(|_| ())
    }

    /// Sends a Close frame, once per wire; no data follows it (RFC 6455 §5.5.1).
    pub fn close(&mut self, code: Option<u16>, reason: &str) -> Result<(), Error> {
        if self.phase != Phase::Ready {
            return Ok(());
        }
        self.phase = Phase::CloseSent;
        self.encode(|out| frame::encode_close(code, reason, frame::next_key(), out))?;
        self.write().map(|_| ())
    }

    /// Writes what waits, as far as the kernel takes it.
    pub fn flush(&mut self) -> Result<(), Error> {
        if matches!(self.phase, Phase::Down | Phase::Dead) {
            return Ok(());
        }
        if self.write()? && self.pong.is_some() {
            self.pong(iter::empty())?;
        }
        Ok(())
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
        let accepted = self.queued - self.unsent() as u64;
        while self.ends.front().is_some_and(|end| *end <= accepted) {
            self.ends.pop_front();
        }
        if !written.map_err(|error| self.die(error))? {
            return Ok(false);
        }
        self.buffer.clear();
        self.start = 0;
        give_back(&mut self.buffer);
        Ok(true)
    }

    fn die(&mut self, error: io::Error) -> Error {
        let error = Error::io(error);
        self.phase = Phase::Dead;
        self.failure = Some(error.clone());
        error
    }
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
    use tungstenite::protocol::frame::coding::Data;

    use super::*;

    const TEXT: OpCode = OpCode::Data(Data::Text);

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
        let mut out = Out::new(unsent_max);
        out.open(Generation::default().next(), Socket { room, ..Socket::default() }, None);
        out
    }

    #[test]
    fn without_a_wire_nothing_is_accepted() {
        let mut out = Out::<Socket>::new(0);
        assert!(matches!(out.send(TEXT, b"x", None), Err(Error::NotConnected)));
    }

    #[test]
    fn a_message_for_another_wire_is_refused() {
        let mut out = open(100, 0);
        let next = Generation::default().next().next();
        assert!(matches!(out.send(TEXT, b"x", Some(next)), Err(Error::Stale { .. })));
        assert_eq!(out.send(TEXT, b"x", Some(out.generation())).unwrap(), Sent::Written);
    }

    #[test]
    fn a_begun_frame_is_always_accepted_and_further_ones_up_to_the_bound() {
        let mut out = open(10, 0);
        assert_eq!(out.send(TEXT, &[b'x'; 1000], None).unwrap(), Sent::Buffered);
        assert!(matches!(out.send(TEXT, b"x", None), Err(Error::Full { unsent: 998 })));
        let mut out = open(10, 1200);
        assert_eq!(out.send(TEXT, &[b'x'; 1000], None).unwrap(), Sent::Buffered);
        assert_eq!(out.send(TEXT, b"x", None).unwrap(), Sent::Buffered);
    }

    #[test]
    fn the_tail_leaves_when_the_kernel_has_room_and_what_did_not_is_counted() {
        let mut out = open(3, 1000);
        for _ in 0..3 {
            assert_eq!(out.send(TEXT, b"0123", None).unwrap(), Sent::Buffered);
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
        assert!(matches!(out.send(TEXT, b"x", None), Err(Error::NotConnected)));
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
        assert!(matches!(out.send(TEXT, b"x", None), Err(Error::Io(_))));
        assert!(matches!(out.failure(), Some(Error::Io(_))));
        assert!(matches!(out.send(TEXT, b"x", None), Err(Error::NotConnected)));
    }

    #[test]
    fn a_large_buffer_is_given_back() {
        let mut out = open(1 << 20, 0);
        out.send(TEXT, &[0; 100_000], None).unwrap();
        assert!(out.buffer.capacity() <= KEPT_CAPACITY);
    }
}
