//! One TCP stream of the server: TLS, delay and dribble between the frames and the socket.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::{ServerConfig, ServerConnection};
use socket2::SockRef;

use super::engine::later;
use super::script::{Dribble, Script};

/// Bytes leave in stages: `plain`, sealed by TLS, into `held` while a delay lasts, into `out`, and from
/// there as fast as the socket and the dribble allow. Buffers take memory only while they hold something
/// large.
pub(super) struct Wire {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    plain: Vec<u8>,
    held: VecDeque<(Instant, Vec<u8>)>,
    held_size: usize,
    out: Vec<u8>,
    written: usize,
    blocked: bool,
    delay: Duration,
    dribble: Option<Dribble>,
    dribble_next: Option<Instant>,
    finish: Finish,
}

/// Whether the stream ends, from the server's side.
#[derive(Clone, Copy, PartialEq)]
enum Finish {
    /// No end in sight.
    No,
    /// With a TLS close_notify and a FIN, once everything has left.
    Orderly,
    /// With a FIN, once everything has left.
    Fin,
    /// The FIN is out.
    Done,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, tls: Option<&Arc<ServerConfig>>, script: &Script) -> Result<Self, rustls::Error> {
        let tls = match tls {
            Some(config) => {
                let mut tls = Box::new(ServerConnection::new(Arc::clone(config))?);
                // The bound is on what is unsent; see `Connection`.
                tls.set_buffer_limit(None);
                Some(tls)
            }
            None => None,
        };
        Ok(Self {
            stream,
            tls,
            plain: Vec::new(),
            held: VecDeque::new(),
            held_size: 0,
            out: Vec::new(),
            written: 0,
            blocked: false,
            delay: script.delay,
            dribble: script.dribble,
            dribble_next: None,
            finish: Finish::No,
        })
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.stream, token, Interest::READABLE | Interest::WRITABLE)
    }

    pub(super) fn tls(&self) -> Option<&ServerConnection> {
        self.tls.as_deref()
    }

    /// Where the connection writes what shall leave with the next flush; nothing does after an end.
    pub(super) fn queue(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.finish == Finish::No {
            write(&mut self.plain);
        }
    }

    /// Ends the stream after everything that is queued, with a close_notify if `orderly`.
    pub(super) fn finish(&mut self, orderly: bool) {
        if self.finish == Finish::No {
            self.finish = if orderly { Finish::Orderly } else { Finish::Fin };
        }
    }

    /// Bytes that are queued and have not reached the kernel.
    pub(super) fn unsent(&self) -> usize {
        self.plain.len() + self.held_size + self.out.len() - self.written
    }

    /// Lets go what is due.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<()> {
        self.seal(now)?;
        while self.held.front().is_some_and(|(due, _)| *due <= now) {
            let (_, bytes) = self.held.pop_front().expect("the front has just been looked at");
            self.held_size -= bytes.len();
            self.out.extend(bytes);
        }
        self.write(now)?;
        if matches!(self.finish, Finish::Orderly | Finish::Fin) && self.unsent() == 0 {
            self.finish = Finish::Done;
            self.stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// When to flush again, if not when the socket becomes writable.
    pub(super) fn flush_next(&self) -> Option<Instant> {
        let dribble = self.dribble_next.filter(|_| !self.out.is_empty() && !self.blocked);
        let held = self.held.front().map(|(due, _)| *due);
        dribble.into_iter().chain(held).min()
    }

    /// Forgets what has not left.
    pub(super) fn discard(&mut self) {
        self.plain.clear();
        self.held.clear();
        self.held_size = 0;
        self.out.clear();
        self.written = 0;
        self.finish = Finish::Done;
    }

    /// Reads what the socket has, encrypted or not; `None` if it has nothing, zero at its end.
    pub(super) fn receive(&mut self, scratch: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.stream.read(scratch) {
                Ok(size) => return Ok(Some(size)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Feeds TLS with what has been received, of which it takes a part at a time.
    pub(super) fn decrypt(&mut self, sealed: &mut &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        tls.read_tls(sealed)?;
        match tls.process_new_packets() {
            Ok(_) => Ok(()),
            // The client's verdict on the certificate, most often.
            Err(error @ rustls::Error::AlertReceived(_)) => Err(io::Error::new(ErrorKind::ConnectionAborted, error)),
            Err(error) => Err(io::Error::new(ErrorKind::InvalidData, format!("tls: {error}"))),
        }
    }

    /// Takes decrypted bytes; `None` if there are no more, which after a close_notify is for ever.
    pub(super) fn receive_plain(&mut self, scratch: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(tls) = &mut self.tls else { return Ok(None) };
        match tls.reader().read(scratch) {
            Ok(0) => Ok(None),
            Ok(size) => Ok(Some(size)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Closes the stream so that the client gets a RST.
    pub(super) fn reset(self) {
        // A socket that no longer takes options is closed already.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    fn seal(&mut self, now: Instant) -> io::Result<()> {
        let mut sealed = Vec::new();
        let target = if self.delay.is_zero() { &mut self.out } else { &mut sealed };
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(&self.plain)?;
            clear(&mut self.plain);
            if self.finish == Finish::Orderly && !tls.is_handshaking() {
                tls.send_close_notify();
                self.finish = Finish::Fin;
            }
            while tls.wants_write() {
                tls.write_tls(target)?;
            }
        } else if target.is_empty() {
            mem::swap(target, &mut self.plain);
        } else {
            target.append(&mut self.plain);
        }
        if !sealed.is_empty() {
            self.held_size += sealed.len();
            self.held.push_back((later(now, self.delay), sealed));
        }
        Ok(())
    }

    fn write(&mut self, now: Instant) -> io::Result<()> {
        self.blocked = false;
        while self.written < self.out.len() {
            let mut piece = &self.out[self.written..];
            if let Some(dribble) = self.dribble {
                if self.dribble_next.is_some_and(|next| now < next) {
                    return Ok(());
                }
                piece = &piece[..dribble.size.min(piece.len())];
            }
            match self.stream.write(piece) {
                Ok(size) => {
                    self.written += size;
                    self.dribble_next = self.dribble.map(|dribble| later(now, dribble.interval));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        clear(&mut self.out);
        self.written = 0;
        Ok(())
    }
}

/// Empties a buffer, and gives a large one back: thousands of idle connections stay cheap.
pub(super) fn clear(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > KEPT_MAX {
        *buffer = Vec::new();
    }
}

const KEPT_MAX: usize = 64 * 1024;
