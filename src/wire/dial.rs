//! Makes a wire: TCP to the first address that answers, TLS, then the upgrade. A state machine that is advanced whenever one of its
//! sockets is ready or its deadline has come; limits on its time are the session's.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Config;
use crate::error::{Error, Phase, Refusal, Result};
use crate::target::Target;
use crate::wire::handshake::{self, Answer, Request};
use crate::wire::{socket, tls};

/// How long a connection attempt is alone before the next address is tried too (RFC 8305 §8).
const STAGGER: Duration = Duration::from_millis(250);

/// How much of the body of a refusal is kept, and how long it is waited for once the head is there.
const BODY_MAX: usize = 1024;
const BODY_GRACE: Duration = Duration::from_millis(200);

/// What to dial.
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) addresses: Vec<SocketAddr>,
    /// Set if the target wants TLS.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// A dial under way.
pub(crate) struct Dial {
    plan: Plan,
    /// For what it says of sockets.
    config: Arc<Config>,
    step: Step,
    /// Addresses not tried yet.
    waiting: VecDeque<SocketAddr>,
    /// When the next address is tried, or a refusal is reported without the rest of its body.
    deadline: Option<Instant>,
    last_error: Option<Error>,
}

enum Step {
    Connecting(Vec<(TcpStream, SocketAddr)>),
    Tls(TcpStream, Box<ClientConnection>),
    Upgrading(Upgrade),
    Done,
}

struct Upgrade {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    request: Request,
    written: usize,
    received: Vec<u8>,
    scanned: usize,
    ended: bool,
}

/// How far a dial has come.
pub(crate) enum Progress {
    /// It goes on when a socket is ready or the deadline has come.
    Pending,
    /// There may be more to do at once; others come first.
    Again,
    /// The wire is up.
    Done(Opened),
}

/// A wire on which the upgrade succeeded.
pub(crate) struct Opened {
    pub(crate) stream: TcpStream,
    pub(crate) tls: Option<Box<ClientConnection>>,
    pub(crate) subprotocol: Option<String>,
    /// What came behind the head of the answer.
    pub(crate) glued: Vec<u8>,
}

impl Dial {
    pub(crate) fn new(mut plan: Plan, config: Arc<Config>) -> Self {
        let mut addresses = mem::take(&mut plan.addresses);
        if let Some(own) = config.settings.socket.bind_address {
            addresses.retain(|address| address.is_ipv6() == own.is_ipv6());
        }
        let waiting = interleave(addresses);
        Self { plan, config, step: Step::Connecting(Vec::new()), waiting, deadline: None, last_error: None }
    }

    /// What the dial is doing.
    pub(crate) fn phase(&self) -> Phase {
        match &self.step {
            Step::Connecting(_) => Phase::Connect,
            Step::Tls(..) => Phase::Tls,
            Step::Upgrading(_) | Step::Done => Phase::Upgrade,
        }
    }

    /// When to advance even if no socket is ready.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Goes as far as one look at its sockets allows; in TLS, one step of the handshake, whose cryptography takes longest.
    pub(crate) fn advance(&mut self, now: Instant, registry: &Registry, token: Token) -> Result<Progress> {
        match mem::replace(&mut self.step, Step::Done) {
            Step::Connecting(attempts) => self.connect(now, attempts, registry, token),
            Step::Tls(stream, connection) => self.shake_hands(stream, connection),
            Step::Upgrading(upgrade) => self.upgrade(now, upgrade),
            Step::Done => Ok(Progress::Pending),
        }
    }

    fn connect(
        &mut self,
        now: Instant,
        mut attempts: Vec<(TcpStream, SocketAddr)>,
        registry: &Registry,
        token: Token,
    ) -> Result<Progress> {
        let mut index = 0;
        while index < attempts.len() {
            let (stream, address) = &attempts[index];
            match connected(stream) {
                Ok(true) => {
                    let (stream, _) = attempts.swap_remove(index);
                    self.deadline = None;
                    return self.begin(stream);
                }
                Ok(false) => index += 1,
                Err(error) => {
                    self.fail(*address, error);
                    attempts.swap_remove(index);
                }
            }
        }
        while attempts.is_empty() || self.deadline.is_none_or(|deadline| deadline <= now) {
            let Some(address) = self.waiting.pop_front() else {
                self.deadline = None;
                break;
            };
            match self.start(address, registry, token)? {
                Ok(stream) => {
                    attempts.push((stream, address));
                    self.deadline = Some(now + STAGGER);
                }
                Err(error) => self.fail(address, error),
            }
        }
        if attempts.is_empty() {
            let source = || Arc::new(no_address(self.config.settings.socket.bind_address));
            let nowhere = || Error::Connect { peer: self.plan.target.host.clone(), source: source() };
            return Err(self.last_error.take().unwrap_or_else(nowhere));
        }
        self.step = Step::Connecting(attempts);
        Ok(Progress::Pending)
    }

    /// A socket whose connect is under way. The inner error is this address's; the outer one would meet every other too.
    fn start(&self, address: SocketAddr, registry: &Registry, token: Token) -> Result<io::Result<TcpStream>> {
        let socket = match Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)) {
            Ok(socket) => socket,
            Err(error) => return Ok(Err(error)),
        };
        socket::prepare(&socket, address, &self.config.settings.socket, self.config.settings.on_socket.as_ref())?;
        Ok(launch(socket, address, registry, token))
    }

    fn fail(&mut self, address: SocketAddr, error: io::Error) {
        self.last_error = Some(Error::Connect { peer: address.to_string().into(), source: Arc::new(error) });
    }

    fn begin(&mut self, stream: TcpStream) -> Result<Progress> {
        self.step = match &self.plan.tls {
            Some(config) => Step::Tls(stream, tls::connection(config.clone(), &self.plan.target.host)?),
            None => Step::Upgrading(self.request(stream, None)),
        };
        Ok(Progress::Again)
    }

    fn request(&self, stream: TcpStream, tls: Option<Box<ClientConnection>>) -> Upgrade {
        let target = &self.plan.target;
        let mut headers = self.plan.headers.clone();
        if let Some(credentials) = &target.authorization
            && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"))
        {
            headers.push(("Authorization".to_owned(), credentials.clone()));
        }
        let key = tungstenite::handshake::client::generate_key();
        let request = handshake::request(&target.authority, &target.path, &headers, &self.plan.subprotocols, key);
        Upgrade { stream, tls, request, written: 0, received: Vec::new(), scanned: 0, ended: false }
    }

    fn shake_hands(&mut self, mut stream: TcpStream, mut connection: Box<ClientConnection>) -> Result<Progress> {
        let mut read = false;
        if connection.wants_read() {
            match connection.read_tls(&mut stream) {
                Ok(0) => return Err(Error::Disconnected),
                Ok(_) => {
                    read = true;
                    if let Err(error) = connection.process_new_packets() {
                        // The alert tells the server why; it may well be gone already.
                        let _ = connection.write_tls(&mut stream);
                        return Err(tls::error(error));
                    }
                }
                Err(error) if is_retry(&error) => {}
                Err(error) => return Err(Error::io(error)),
            }
        }
        write_tls(&mut connection, &mut stream)?;
        if connection.is_handshaking() {
            self.step = Step::Tls(stream, connection);
            return Ok(if read { Progress::Again } else { Progress::Pending });
        }
        self.step = Step::Upgrading(self.request(stream, Some(connection)));
        Ok(Progress::Again)
    }

    fn upgrade(&mut self, now: Instant, mut upgrade: Upgrade) -> Result<Progress> {
        upgrade.write()?;
        upgrade.read()?;
        let answer =
            handshake::read_answer(&upgrade.received, &mut upgrade.scanned, &upgrade.request.key, &self.plan.subprotocols);
        match answer.map_err(|reason| Error::Handshake(reason.into()))? {
            Answer::Partial if upgrade.ended => Err(Error::Disconnected),
            Answer::Partial => {
                self.step = Step::Upgrading(upgrade);
                Ok(Progress::Pending)
            }
            Answer::Switched { subprotocol, size } => {
                let mut glued = upgrade.received.split_off(size);
                if let Some(tls) = &mut upgrade.tls {
                    // What is decrypted already makes no socket readable. The reader ends with `WouldBlock`.
                    let _ = tls.reader().read_to_end(&mut glued);
                }
                Ok(Progress::Done(Opened { stream: upgrade.stream, tls: upgrade.tls, subprotocol, glued }))
            }
            Answer::Refused { status, headers, size, content_length } => {
                let body = &upgrade.received[size..];
                let wanted = content_length.map_or(BODY_MAX, |length| length.min(BODY_MAX as u64) as usize);
                let deadline = *self.deadline.get_or_insert(now + BODY_GRACE);
                if body.len() < wanted && !upgrade.ended && now < deadline {
                    self.step = Step::Upgrading(upgrade);
                    return Ok(Progress::Pending);
                }
                let body = String::from_utf8_lossy(&body[..body.len().min(BODY_MAX)]).into_owned();
                let retry_after = handshake::retry_after(&headers, SystemTime::now());
                Err(Error::Refused(Arc::new(Refusal { status, headers, body, retry_after })))
            }
        }
    }
}

impl Upgrade {
    fn write(&mut self) -> Result<()> {
        if let Some(tls) = &mut self.tls {
            if self.written == 0 {
                tls.writer().write_all(&self.request.bytes).map_err(Error::io)?;
                self.written = self.request.bytes.len();
            }
            return write_tls(tls, &mut self.stream);
        }
        while self.written < self.request.bytes.len() {
            match self.stream.write(&self.request.bytes[self.written..]) {
                Ok(taken) => self.written += taken,
                Err(error) if is_retry(&error) => break,
                Err(error) => return Err(Error::io(error)),
            }
        }
        Ok(())
    }

    /// Reads what is there, up to a full head and the start of a body; frames beyond that are left to the wire.
    fn read(&mut self) -> Result<()> {
        while self.received.len() < handshake::HEAD_MAX + BODY_MAX && !self.ended {
            let mut chunk = [0; 2048];
            let count = match &mut self.tls {
                None => self.stream.read(&mut chunk),
                Some(tls) => read_tls(tls, &mut self.stream, &mut chunk)?,
            };
            match count {
                Ok(0) => self.ended = true,
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A server that refuses may reset right behind its answer.
                Err(_) if !self.received.is_empty() => self.ended = true,
                Err(error) => return Err(Error::io(error)),
            }
        }
        Ok(())
    }
}

/// Writes what TLS has ready, as far as the kernel takes it.
fn write_tls(tls: &mut ClientConnection, stream: &mut TcpStream) -> Result<()> {
    while tls.wants_write() {
        match tls.write_tls(stream) {
            Ok(_) => {}
            Err(error) if is_retry(&error) => break,
            Err(error) => return Err(Error::io(error)),
        }
    }
    Ok(())
}

/// One read of plaintext; reads ciphertext only if no plaintext is left.
fn read_tls(tls: &mut ClientConnection, stream: &mut TcpStream, chunk: &mut [u8]) -> Result<io::Result<usize>> {
    loop {
        match tls.reader().read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // A peer that hangs up without the TLS alert ends the answer all the same; its length is checked elsewhere.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Ok(0)),
            read => return Ok(read),
        }
        match tls.read_tls(stream) {
            Ok(0) => return Ok(Ok(0)),
            Ok(_) => tls.process_new_packets().map_err(tls::error)?,
            Err(error) => return Ok(Err(error)),
        };
    }
}

/// Begins to connect a socket, registered for everything it will ever be asked.
fn launch(socket: Socket, address: SocketAddr, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if is_retry(&error) || error.raw_os_error() == Some(IN_PROGRESS) => {}
        Err(error) => return Err(error),
    }
    let mut stream = TcpStream::from_std(socket.into());
    registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

/// `EINPROGRESS`, which has no `ErrorKind` of its own in stable Rust. Windows says `WouldBlock` instead.
const IN_PROGRESS: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 115 } else { 36 };

/// Whether a connect has succeeded, is under way, or has failed.
fn connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn no_address(own: Option<IpAddr>) -> io::Error {
    let reason = match own {
        None => "the host has no address",
        Some(IpAddr::V4(_)) => "the host has no IPv4 address, and bind_address is one",
        Some(IpAddr::V6(_)) => "the host has no IPv6 address, and bind_address is one",
    };
    io::Error::new(io::ErrorKind::AddrNotAvailable, reason)
}

/// Alternates address families, beginning with that of the first (RFC 8305 §4).
fn interleave(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let Some(first) = addresses.first().copied() else { return VecDeque::new() };
    let (mut same, mut other): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first.is_ipv6());
    let mut order = VecDeque::with_capacity(same.len() + other.len());
    while !same.is_empty() || !other.is_empty() {
        order.extend(same.pop_front());
        order.extend(other.pop_front());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_families_alternate_beginning_with_the_preferred_one() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let six = |n| parse(&format!("[::{n}]:1"));
        let four = |n| parse(&format!("127.0.0.{n}:1"));
        assert_eq!(interleave(vec![six(1), six(2), six(3), four(1)]), [six(1), four(1), six(2), six(3)]);
        assert_eq!(interleave(vec![four(1), four(2), six(1)]), [four(1), six(1), four(2)]);
        assert_eq!(interleave(vec![]), []);
    }
}
