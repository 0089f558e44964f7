//! What callers and the reactor share of one connection: the session, the sending half, and a few counters.
//!
//! The two locks are never held together, and nothing of the user's runs under either.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::error::{Error, Result};
use crate::event::{ConnectionId, Generation, Sent, State};
use crate::reactor::mailbox::Mailbox;
use crate::session::Session;
use crate::stats::Stats;
use crate::wire::frame;
use crate::wire::out::Out;

pub(crate) struct Shared {
    pub(crate) id: ConnectionId,
    pub(crate) session: Mutex<Session>,
    /// Signalled with `session` when its state has changed.
    pub(crate) changed: Condvar,
    pub(crate) out: Mutex<Out<Stream>>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) counters: Counters,
    posted: AtomicBool,
}

/// A socket that one side reads and another writes, without a lock between them.
#[derive(Clone, Debug)]
pub(crate) struct Stream(pub(crate) Arc<TcpStream>);

/// Counters that only the reactor writes.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) discarded: AtomicU64,
}

impl Shared {
    pub(crate) fn new(id: ConnectionId, session: Session, unsent_max: usize, mailbox: Arc<Mailbox>) -> Arc<Self> {
        Arc::new(Self {
            id,
            session: Mutex::new(session),
            changed: Condvar::new(),
            out: Mutex::new(Out::new(unsent_max)),
            mailbox,
            counters: Counters::default(),
            posted: AtomicBool::new(false),
        })
    }

    pub(crate) fn send_text(&self, text: &str, expected: Option<Generation>) -> Result<Sent> {
        self.send(OpCode::Data(Data::Text), text.as_bytes(), expected)
    }

    pub(crate) fn send_binary(&self, bytes: &[u8], expected: Option<Generation>) -> Result<Sent> {
        self.send(OpCode::Data(Data::Binary), bytes, expected)
    }

    pub(crate) fn send_json<T: Serialize + ?Sized>(&self, value: &T, expected: Option<Generation>) -> Result<Sent> {
        let json = serde_json::to_vec(value).map_err(|error| Error::Json(Arc::new(error)))?;
        self.send(OpCode::Data(Data::Text), &json, expected)
    }

    pub(crate) fn ping(&self) -> Result<Sent> {
        let payload = self.session.lock().start_ping(Instant::now());
        self.send(OpCode::Control(Control::Ping), &payload, None)
    }

    fn send(&self, opcode: OpCode, payload: &[u8], expected: Option<Generation>) -> Result<Sent> {
        let sent = self.out.lock().send(opcode, payload, expected);
        match &sent {
            Ok(Sent::Written) => {}
            // The reactor flushes the rest when the kernel has room.
            Ok(Sent::Buffered) => self.post(),
            // The wire is dead; the reactor reads what it still holds and reports the loss.
            Err(Error::Io(_)) => self.post(),
            Err(Error::NotConnected) if matches!(self.state(), State::Closing | State::Closed) => return Err(Error::Closed),
            Err(_) => {}
        }
        sent
    }

    /// Writes a control frame, as the reactor. A failure, or what the kernel did not take, is seen to with the next posts.
    pub(crate) fn write(&self, write: impl FnOnce(&mut Out<Stream>) -> Result<()>) {
        let mut out = self.out.lock();
        let is_done = write(&mut out).is_ok() && out.unsent() == 0;
        drop(out);
        if !is_done {
            self.post();
        }
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
    pub(crate) fn wait<T>(&self, timeout: Option<Duration>, mut done: impl FnMut(&Session) -> Option<T>) -> Result<T> {
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
                        return done(&session).ok_or(Error::Timeout { after: timeout.unwrap_or_default() });
                    }
                }
            }
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let (rtt, pings_missed) = {
            let session = self.session.lock();
            (session.rtt(), session.misses())
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            messages: count(&self.counters.messages),
            bytes: count(&self.counters.bytes),
            dropped: count(&self.counters.dropped),
            discarded: count(&self.counters.discarded),
            rtt,
            pings_missed,
        }
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
