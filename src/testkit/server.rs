//! The server as tests hold it.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Interest, Poll, Registry, Waker};
use parking_lot::Mutex;
use socket2::{Domain, SockRef, Socket, Type};

use super::engine::{Engine, LISTENER, Shared, WAKER};
use super::{Captured, Certificate, ExpectError, Matcher, Peer, Request, Script};

/// A WebSocket exchange inside the test: listens on a local port, serves from one thread, and does to its
/// clients what a [`Script`] or the test says.
///
/// It stops when dropped. A connection is registered before its 101 leaves, so a test whose client has just
/// connected finds the peer. Thousands of connections are fine.
///
/// ```
/// use std::io::Read;
/// use std::net::TcpStream;
/// use std::time::Duration;
/// use zen_websocket::testkit::{MockServer, Script};
///
/// let server = MockServer::start()?;
/// server.script_next(Script::new().reset_on_accept());
///
/// let mut stream = TcpStream::connect(server.address())?;
/// assert!(server.wait_accepted(1, Duration::from_secs(5)));
/// assert!(stream.read(&mut [0]).is_err());
///
/// server.pause()?;
/// assert!(TcpStream::connect(server.address()).is_err());
/// server.resume()?;
/// assert!(TcpStream::connect(server.address()).is_ok());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct MockServer {
    shared: Arc<Shared>,
    registry: Registry,
    address: SocketAddr,
    root: Option<Vec<u8>>,
    receive_buffer: Option<usize>,
    /// Keeps the port while the server is paused.
    placeholder: Mutex<Option<Socket>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl MockServer {
    /// Starts a plain server that echoes.
    ///
    /// # Errors
    ///
    /// If the system gives no port or no thread.
    pub fn start() -> io::Result<Self> {
        Self::builder().start()
    }

    /// Starts with what a server can only be told at its start.
    pub fn builder() -> MockServerBuilder {
        MockServerBuilder {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            certificate: None,
            alpn: vec![b"http/1.1".to_vec()],
            script: Script::new(),
            captured_max: 10_000,
            receive_buffer: None,
        }
    }

    /// Where to connect: `ws://127.0.0.1:PORT/`, or `wss://localhost:PORT/` under TLS.
    pub fn url(&self) -> String {
        match (&self.root, self.address) {
            (Some(_), SocketAddr::V4(address)) => format!("wss://localhost:{}/", address.port()),
            (Some(_), address) => format!("wss://{address}/"),
            (None, address) => format!("ws://{address}/"),
        }
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The root certificate a client has to trust, as DER; `None` without TLS.
    pub fn root_certificate(&self) -> Option<&[u8]> {
        self.root.as_deref()
    }

    /// Sets what connections accepted from here on do.
    pub fn script(&self, script: Script) {
        self.shared.scripts.lock().then = Arc::new(script);
    }

    /// Sets what the very next connection does. Called repeatedly, it makes a queue: one script for each
    /// of the next connections, before the usual script has its turn again.
    pub fn script_next(&self, script: Script) {
        self.shared.scripts.lock().next.push_back(Arc::new(script));
    }

    /// How many TCP connections have been accepted, upgraded or not.
    pub fn accepted(&self) -> u64 {
        self.shared.connections(|connections| connections.accepted)
    }

    /// When connections were accepted, the first 65,536 of them. A peer's is at its id.
    pub fn accept_times(&self) -> Vec<Instant> {
        self.shared.connections(|connections| connections.accept_times.clone())
    }

    /// Waits until this many TCP connections have been accepted since the start.
    pub fn wait_accepted(&self, count: u64, timeout: Duration) -> bool {
        self.shared.wait_connections(timeout, |connections| (connections.accepted >= count).then_some(())).is_some()
    }

    /// How many TCP connections stand, upgraded or not.
    pub fn connections(&self) -> usize {
        self.shared.connections(|connections| connections.open)
    }

    /// Waits until this many TCP connections stand, upgraded or not.
    pub fn wait_connections(&self, count: usize, timeout: Duration) -> bool {
        self.shared.wait_connections(timeout, |connections| (connections.open == count).then_some(())).is_some()
    }

    /// Hands out the next connection that has completed its upgrade, waiting for one if need be. Each is
    /// handed out once, in the order of their upgrades; of those nobody asks for, the newest 10,000 are kept.
    pub fn accept(&self, timeout: Duration) -> Option<Peer> {
        self.shared.wait_connections(timeout, |connections| connections.unclaimed.pop_front())
    }

    /// All upgraded connections that stand, oldest first.
    pub fn peers(&self) -> Vec<Peer> {
        self.shared.peers.lock().values().cloned().collect()
    }

    /// The newest 1,000 upgrade requests, oldest first, whatever they were answered with.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().iter().cloned().collect()
    }

    /// Sends a text message to all upgraded connections and returns how many that are.
    pub fn broadcast_text(&self, text: &str) -> usize {
        self.for_peers(|peer| peer.send_text(text))
    }

    /// Sends a close frame to all upgraded connections and returns how many that are.
    pub fn close_all(&self, code: u16, reason: &str) -> usize {
        self.for_peers(|peer| peer.close(code, reason))
    }

    /// Resets (RST) every connection accepted so far, upgraded or not.
    pub fn kill_all(&self) {
        self.shared.kill();
    }

    /// Stops listening, so that connects are refused. Existing connections stay, and the port stays ours.
    /// Does nothing if paused already.
    ///
    /// # Errors
    ///
    /// If the port could not be kept; it is still closed, and [`resume`](Self::resume) tries again.
    pub fn pause(&self) -> io::Result<()> {
        let Some(listener) = self.shared.listener.lock().take() else {
            return Ok(());
        };
        drop(listener);
        // A bound socket that does not listen refuses connects, and nobody else gets its port.
        let placeholder = bind(self.address, self.receive_buffer)?;
        *self.placeholder.lock() = Some(placeholder);
        Ok(())
    }

    /// Listens again on the same port after [`pause`](Self::pause). Does nothing if not paused.
    ///
    /// # Errors
    ///
    /// If the port is gone.
    pub fn resume(&self) -> io::Result<()> {
        if self.shared.is_ended() || self.shared.listener.lock().is_some() {
            return Ok(());
        }
        let placeholder = self.placeholder.lock().take();
        let socket = placeholder.map_or_else(|| bind(self.address, self.receive_buffer), Ok)?;
        let listener = listen(socket, &self.registry)?;
        *self.shared.listener.lock() = Some(listener);
        Ok(())
    }

    /// Waits until any client has sent a matching message, or finds it among those captured before.
    ///
    /// A message satisfies one `expect` only, of the server or of its peer: expecting the same again waits
    /// for it to be sent again.
    ///
    /// # Errors
    ///
    /// If none came in time, or before the server stopped; the error lists what came instead.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use zen_websocket::testkit::{MockServer, Matcher};
    /// # let server = MockServer::start()?;
    /// let subscribe = server.expect(Matcher::regex("public/subscribe"), Duration::from_secs(5))?;
    /// println!("after {:?}", subscribe.at - server.accept_times()[0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn expect(&self, matcher: impl Into<Matcher>, timeout: Duration) -> Result<Captured, ExpectError> {
        self.shared.log.expect(None, &matcher.into(), timeout, || self.shared.is_ended())
    }

    /// What clients sent, oldest first, as far as it is still kept.
    pub fn captured(&self) -> Vec<Captured> {
        self.shared.log.captured(None)
    }

    /// How many captured messages were dropped because newer ones needed the room.
    pub fn captured_dropped(&self) -> u64 {
        self.shared.log.dropped()
    }

    /// What clients did that RFC 6455 forbids, and whatever else went wrong in the server, the first 1,000
    /// of it. A test of a well-behaved client ends with this being empty.
    pub fn violations(&self) -> Vec<String> {
        self.shared.violations.lock().clone()
    }

    /// Closes all connections and the port, and waits for the thread. Does nothing if stopped already.
    pub fn stop(&self) {
        self.shared.stop();
        // A script's closure that drops the last handle runs on the very thread.
        let own = |handle: &JoinHandle<()>| handle.thread().id() == thread::current().id();
        let handle = self.thread.lock().take().filter(|handle| !own(handle));
        if let Some(handle) = handle {
            let ended = handle.join();
            // A second panic would abort the test that is failing already.
            assert!(ended.is_ok() || thread::panicking(), "the server's thread panicked");
        }
        drop(self.placeholder.lock().take());
    }

    fn for_peers(&self, act: impl Fn(&Peer)) -> usize {
        let peers = self.peers();
        peers.iter().for_each(act);
        peers.len()
    }
}

impl Drop for MockServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for MockServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockServer").field("url", &self.url()).field("accepted", &self.accepted()).finish_non_exhaustive()
    }
}

/// What a [`MockServer`] can only be told at its start. Made by [`MockServer::builder`].
///
/// ```
/// use zen_websocket::testkit::{Certificate, MockServer};
///
/// let server = MockServer::builder().tls().alpn(&["h2", "http/1.1"]).start()?;
/// assert!(server.url().starts_with("wss://localhost:"));
/// assert!(server.root_certificate().is_some());
///
/// // One that no client should talk to.
/// let expired = MockServer::builder().certificate(Certificate::Expired).start()?;
/// # drop(expired);
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use]
#[derive(Clone, Debug)]
pub struct MockServerBuilder {
    address: SocketAddr,
    certificate: Option<Certificate>,
    alpn: Vec<Vec<u8>>,
    script: Script,
    captured_max: usize,
    receive_buffer: Option<usize>,
}

impl MockServerBuilder {
    /// Speaks TLS, with a certificate for `localhost`, `127.0.0.1` and `::1` and session resumption on.
    pub fn tls(self) -> Self {
        self.certificate(Certificate::Valid)
    }

    /// Speaks TLS with this certificate.
    pub fn certificate(mut self, certificate: Certificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    /// Sets the protocols offered by ALPN, most wanted first. Default: `http/1.1`. An empty list takes no
    /// part in ALPN.
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Sets what connections do. Default: [`Script::new`], the echo.
    pub fn script(mut self, script: Script) -> Self {
        self.script = script;
        self
    }

    /// Sets the address to listen on. Default: an ephemeral port of `127.0.0.1`.
    pub fn bind(mut self, address: impl Into<SocketAddr>) -> Self {
        self.address = address.into();
        self
    }

    /// Sets how many captured messages are kept, the newest. Default: 10,000. Zero captures nothing, for
    /// benches.
    pub fn captured_max(mut self, count: usize) -> Self {
        self.captured_max = count;
        self
    }

    /// Sets the kernel's receive buffer of each connection, in bytes. Default: the system's. With a small
    /// one, a client meets a full socket soon after [`Peer::stop_reading`].
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Starts the server.
    ///
    /// # Errors
    ///
    /// If the system gives no such port or no thread, or the certificate's host is no name.
    pub fn start(self) -> io::Result<MockServer> {
        let tls = self.certificate.map(|certificate| certificate.to_config(&self.alpn)).transpose()?;
        let (tls, root) = tls.unzip();
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let listener = listen(bind(self.address, self.receive_buffer)?, &registry)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(waker, listener, self.script, self.captured_max));
        let engine = Engine { poll, shared: Arc::clone(&shared), tls };
        let thread = thread::Builder::new().name("mock-server".to_owned()).spawn(move || engine.run())?;
        Ok(MockServer {
            shared,
            registry,
            address,
            root,
            receive_buffer: self.receive_buffer,
            placeholder: Mutex::new(None),
            thread: Mutex::new(Some(thread)),
        })
    }
}

fn bind(address: SocketAddr, receive_buffer: Option<usize>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Elsewhere it lets a port be taken again while old connections linger; on Windows, while it is in use.
    if cfg!(not(windows)) {
        socket.set_reuse_address(true)?;
    }
    if let Some(bytes) = receive_buffer {
        // Accepted sockets inherit it, early enough for the window of their handshake.
        SockRef::from(&socket).set_recv_buffer_size(bytes)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(socket: Socket, registry: &Registry) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(socket.into());
    registry.register(&mut listener, LISTENER, Interest::READABLE)?;
    Ok(listener)
}

const BACKLOG: i32 = 4096;
