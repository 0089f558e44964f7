//! The handle of one upgraded connection, for any thread.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::engine::{Shared, later};
use super::frame::{self, BINARY, CONTINUATION, PING, TEXT};
use super::{Captured, ExpectError, Frame, Matcher, Request};

/// The server's end of one upgraded connection.
///
/// Cheap to clone, usable from any thread and from a script's closures. Its methods queue a command for
/// the server's thread and return at once; commands of one peer take effect in the order they were given.
/// Once the connection is over they do nothing.
///
/// What a client does not read is kept for it up to 64 MiB; beyond, the connection is reset and that is
/// noted among [`MockServer::violations`](super::MockServer::violations).
///
/// ```
/// # use std::{net::TcpStream, time::Duration};
/// use zen_websocket::testkit::{Frame, MockServer};
///
/// let server = MockServer::start()?;
/// # let stream = TcpStream::connect(server.address())?;
/// # let (mut client, _) = tungstenite::client(server.url(), stream).expect("the server upgrades");
/// // … a client connects …
/// let peer = server.accept(Duration::from_secs(5)).expect("a client has connected");
/// peer.send_text("tick");
/// peer.send_frame(&Frame::text("to").unfinished());
/// peer.ping("between fragments");
/// peer.send_frame(&Frame::continuation("ck"));
/// # assert_eq!(client.read().expect("a text").to_string(), "tick");
/// # assert!(client.read().expect("a ping").is_ping());
/// # assert_eq!(client.read().expect("a text").to_string(), "tock");
/// peer.close(1012, "restart");
/// # assert!(client.read().expect("a close").is_close());
/// # assert!(client.read().is_err());
/// # drop(client);
/// assert!(peer.wait_closed(Duration::from_secs(5)));
/// assert_eq!(peer.client_close(), Some((1012, "restart".to_owned())));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Peer {
    state: Arc<State>,
}

struct State {
    id: u64,
    request: Request,
    server: Arc<Shared>,
    outbox: Mutex<Outbox>,
    over: AtomicBool,
    /// The client's close frame; guards the wait for `over`.
    close: Mutex<Option<(u16, String)>>,
    ended: Condvar,
}

#[derive(Default)]
struct Outbox {
    commands: Vec<Command>,
    /// Whether the server's thread has been told and has not looked yet.
    posted: bool,
}

/// What a peer wants the server's thread to do.
pub(super) enum Command {
    Close(Vec<u8>),
    Freeze(bool),
    HangUp,
    Read(bool),
    Reset,
    Silence(bool),
    Write(Vec<u8>),
}

impl Peer {
    pub(super) fn new(id: u64, request: Request, server: Arc<Shared>) -> Self {
        let state = State {
            id,
            request,
            server,
            outbox: Mutex::default(),
            over: AtomicBool::new(false),
            close: Mutex::default(),
            ended: Condvar::new(),
        };
        Self { state: Arc::new(state) }
    }

    /// The number of the TCP connection since the server started, from zero.
    pub fn id(&self) -> u64 {
        self.state.id
    }

    /// The client's upgrade request.
    pub fn request(&self) -> &Request {
        &self.state.request
    }

    /// Sends a text message in one frame.
    pub fn send_text(&self, text: &str) {
        self.send(TEXT, text.as_bytes());
    }

    /// Sends a binary message in one frame.
    pub fn send_binary(&self, bytes: &[u8]) {
        self.send(BINARY, bytes);
    }

    /// Sends one text message of several frames, one per piece.
    pub fn send_fragments(&self, pieces: &[&str]) {
        let mut bytes = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let frame = Frame::new(if index == 0 { TEXT } else { CONTINUATION }, *piece);
            let last = index + 1 == pieces.len();
            bytes.extend(if last { frame } else { frame.unfinished() }.to_bytes());
        }
        self.send_raw(bytes);
    }

    /// Sends one frame, right or wrong.
    pub fn send_frame(&self, frame: &Frame) {
        self.send_raw(frame.to_bytes());
    }

    /// Sends these bytes as they are.
    pub fn send_raw(&self, bytes: impl Into<Vec<u8>>) {
        self.post(Command::Write(bytes.into()));
    }

    /// Sends a ping.
    pub fn ping(&self, payload: impl AsRef<[u8]>) {
        self.send(PING, payload.as_ref());
    }

    /// Sends a close frame. When the client has answered it, the server ends the stream.
    pub fn close(&self, code: u16, reason: &str) {
        self.close_raw(frame::close_payload(code, reason));
    }

    /// Sends a close frame with any payload: none, a single byte, a forbidden code.
    pub fn close_raw(&self, payload: impl Into<Vec<u8>>) {
        self.post(Command::Close(payload.into()));
    }

    /// Resets the connection (RST); what has not left is lost.
    pub fn reset(&self) {
        self.post(Command::Reset);
    }

    /// Ends the stream (FIN, no TLS close_notify) without a close frame, after everything queued so far.
    /// The server goes on reading until the client hangs up too.
    pub fn hang_up(&self) {
        self.post(Command::HangUp);
    }

    /// Reads nothing more, so that the client's socket fills up.
    pub fn stop_reading(&self) {
        self.post(Command::Read(false));
    }

    /// Reads again after [`stop_reading`](Self::stop_reading).
    pub fn resume_reading(&self) {
        self.post(Command::Read(true));
    }

    /// Reads and captures, but answers no message, ping or close any more, until told otherwise.
    /// What the test sends by hand still leaves.
    pub fn silence(&self, on: bool) {
        self.post(Command::Silence(on));
    }

    /// Neither reads nor writes any more while TCP stays open, as if the machine behind it were gone. Once
    /// the client hangs up, what it left is read and the connection is over.
    pub fn freeze(&self) {
        self.post(Command::Freeze(true));
    }

    /// Goes on after [`freeze`](Self::freeze), with everything queued meanwhile.
    pub fn thaw(&self) {
        self.post(Command::Freeze(false));
    }

    /// What this client sent, oldest first, as far as the server still keeps it.
    pub fn captured(&self) -> Vec<Captured> {
        self.state.server.log.captured(Some(self.id()))
    }

    /// Waits for a matching message of this client; see [`MockServer::expect`](super::MockServer::expect).
    ///
    /// # Errors
    ///
    /// If none came in time, or before the connection was over; the error lists what came instead.
    pub fn expect(&self, matcher: impl Into<Matcher>, timeout: Duration) -> Result<Captured, ExpectError> {
        self.state.server.log.expect(Some(self.id()), &matcher.into(), timeout, || !self.is_open())
    }

    /// Code and reason of the client's close frame, once it has come; 1005 if it had no code.
    pub fn client_close(&self) -> Option<(u16, String)> {
        self.state.close.lock().clone()
    }

    /// Whether the TCP connection still stands.
    pub fn is_open(&self) -> bool {
        !self.state.over.load(Ordering::SeqCst)
    }

    /// Waits until the TCP connection is over; `false` if it still stands after the timeout.
    pub fn wait_closed(&self, timeout: Duration) -> bool {
        let deadline = later(Instant::now(), timeout);
        let mut close = self.state.close.lock();
        while self.is_open() {
            if self.state.ended.wait_until(&mut close, deadline).timed_out() {
                return !self.is_open();
            }
        }
        true
    }

    fn send(&self, opcode: u8, payload: &[u8]) {
        let mut bytes = Vec::with_capacity(payload.len() + 10);
        frame::encode(&mut bytes, opcode, payload);
        self.send_raw(bytes);
    }

    fn post(&self, command: Command) {
        let mut outbox = self.state.outbox.lock();
        if !self.is_open() {
            return;
        }
        outbox.commands.push(command);
        if !mem::replace(&mut outbox.posted, true) {
            drop(outbox);
            self.state.server.post(self.id());
        }
    }

    pub(super) fn take_commands(&self) -> Vec<Command> {
        let mut outbox = self.state.outbox.lock();
        outbox.posted = false;
        mem::take(&mut outbox.commands)
    }

    pub(super) fn note_close(&self, code: u16, reason: String) {
        self.state.close.lock().get_or_insert((code, reason));
    }

    /// Called once, by the server's thread, when the socket is closed.
    pub(super) fn end(&self) {
        self.state.over.store(true, Ordering::SeqCst);
        drop(self.take_commands());
        drop(self.state.close.lock());
        self.state.ended.notify_all();
        self.state.server.log.notify();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.id()).field("is_open", &self.is_open()).finish_non_exhaustive()
    }
}
