//! What the end-to-end tests share: a server with a client on it, and events as lines that can be compared.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use zen_websocket::testkit::{ClientMessage, Matcher, MockServer, Peer, Script};
use zen_websocket::{Client, Config, Dialect, Error, Event, Inbound, Inbox, State, connect};

/// How long a test waits for what must happen.
pub(crate) const WAIT: Duration = Duration::from_secs(10);

/// Much longer than what is called quick takes, much shorter than what would be waited for otherwise.
pub(crate) const QUICK: Duration = Duration::from_secs(3);

/// Longer than any test takes.
pub(crate) const NEVER: Duration = Duration::from_secs(60);

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A config for this server with short, exact pauses.
pub(crate) fn config(server: &MockServer) -> Config {
    let config = config_for(server.url()).without_system_roots();
    match server.root_certificate() {
        Some(root) => config.root_certificate(root),
        None => config,
    }
}

/// A config with short, exact pauses.
pub(crate) fn config_for(url: impl Into<String>) -> Config {
    Config::new(url).base_delay(ms(20)).max_backoff(ms(200)).jitter(0.0).connect_timeout(WAIT)
}

pub(crate) fn serve(script: Script) -> MockServer {
    MockServer::builder().script(script).start().unwrap()
}

/// A server with this script and a client on it.
pub(crate) fn session(script: Script) -> (MockServer, Peer, Client, Inbox) {
    session_with(script, |config| config)
}

/// A server with this script and a client on it, whose config is changed by `set`. The events up to `Open` are taken already.
pub(crate) fn session_with(script: Script, set: impl FnOnce(Config) -> Config) -> (MockServer, Peer, Client, Inbox) {
    let server = serve(script);
    let (peer, client, inbox) = join(&server, set(config(&server)));
    (server, peer, client, inbox)
}

/// A client on a server, with the server's end. The events up to `Open` are taken already.
pub(crate) fn join(server: &MockServer, config: Config) -> (Peer, Client, Inbox) {
    let (client, inbox) = connect(config).unwrap();
    let peer = server.accept(WAIT).unwrap();
    until_open(&inbox);
    (peer, client, inbox)
}

/// The next event.
pub(crate) fn next(inbox: &Inbox) -> Event {
    inbox.recv_timeout(WAIT).unwrap().event
}

/// The next event as a line.
pub(crate) fn next_line(inbox: &Inbox) -> String {
    line(&next(inbox))
}

/// The next events as lines, this many.
pub(crate) fn lines(inbox: &Inbox, count: usize) -> Vec<String> {
    (0..count).map(|_| next_line(inbox)).collect()
}

/// All further events as lines, up to the end.
pub(crate) fn lines_to_end(inbox: &Inbox) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        match inbox.recv_timeout(WAIT) {
            Ok(received) => lines.push(line(&received.event)),
            Err(Error::Closed) => return lines,
            Err(error) => panic!("{error} after {lines:?}"),
        }
    }
}

/// Takes events up to the next `Open`.
pub(crate) fn until_open(inbox: &Inbox) {
    while !matches!(next(inbox), Event::Open) {}
}

/// Takes events up to the next loss, and returns its cause.
pub(crate) fn until_lost(inbox: &Inbox) -> Error {
    loop {
        if let Event::Lost { cause, .. } = next(inbox) {
            return cause;
        }
    }
}

/// Takes events up to the end, and returns why it came.
pub(crate) fn until_closed(inbox: &Inbox) -> Option<Error> {
    loop {
        if let Event::Closed { cause } = next(inbox) {
            return cause;
        }
    }
}

/// Waits until the client has dealt with all that the peer sent, and the peer with all that the client said of it.
pub(crate) fn settle(peer: &Peer) {
    peer.ping("settled?");
    peer.expect(Matcher::when(|it| it.message == ClientMessage::Pong(b"settled?".to_vec())), WAIT).unwrap();
}

/// The text of the next event, which must be a text message.
pub(crate) fn text(inbox: &Inbox) -> String {
    match next(inbox) {
        Event::Message(message) => message.text().expect("a text message").to_owned(),
        other => panic!("no message but {other:?}"),
    }
}

/// An event as a line.
pub(crate) fn line(event: &Event) -> String {
    let again = |redial_in: &Option<Duration>| redial_in.map_or("for good".to_owned(), |pause| format!("again in {pause:?}"));
    match event {
        Event::Dialing { attempt } => format!("dialing {attempt}"),
        Event::DialFailed { attempt, cause, redial_in } => format!("dial {attempt} failed, {}: {cause}", again(redial_in)),
        Event::Open => "open".to_owned(),
        Event::Message(message) => match message.text() {
            Some(text) => format!("text {text}"),
            None => format!("binary {:?}", message.bytes()),
        },
        Event::Gap { missing: dropped, .. } => format!("gap of {dropped}"),
        Event::Unsent { messages, bytes } => format!("{messages} messages unsent, {bytes} bytes"),
        Event::Lost { cause, redial_in } => format!("lost, {}: {cause}", again(redial_in)),
        Event::Closed { cause: Some(cause) } => format!("closed: {cause}"),
        Event::Closed { cause: None } => "closed".to_owned(),
        other => format!("{other:?}"),
    }
}

/// A port that takes connections into its backlog no more, so that connecting to it hangs.
pub(crate) struct FullPort {
    pub(crate) address: SocketAddr,
    _listener: Socket,
    _backlog: Vec<TcpStream>,
}

pub(crate) fn full_port() -> FullPort {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut backlog = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, ms(200)) {
        backlog.push(stream);
    }
    FullPort { address, _listener: listener, _backlog: backlog }
}

/// A port where this runs on a thread of its own with the first connection.
pub(crate) fn serve_raw(run: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || run(listener.accept().unwrap().0));
    address
}

/// Fails unless this takes less than `QUICK`.
pub(crate) fn quickly<T>(run: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let value = run();
    assert!(began.elapsed() < QUICK, "took {:?}", began.elapsed());
    value
}

/// Looks until this is so, where nothing can be waited on.
pub(crate) fn until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to that");
        thread::yield_now();
    }
}

pub(crate) fn wait_open(client: &Client) {
    client.wait(State::Open, WAIT).unwrap();
}

/// A venue with heartbeats of its own.
pub(crate) struct Pinger;

impl Dialect for Pinger {
    fn name(&self) -> &str {
        "pinger"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        if text == "pong" { Inbound::Pong } else { Inbound::Message }
    }

    fn ping(&self, number: u64) -> Option<String> {
        Some(format!("ping {number}"))
    }
}

/// Keeps what is logged, with its level.
pub(crate) struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Lines {
    /// Begins to keep everything.
    pub(crate) fn keep() {
        let _ = log::set_logger(&LINES).map(|()| log::set_max_level(log::LevelFilter::Trace));
    }

    /// What was logged since.
    pub(crate) fn kept() -> Vec<String> {
        LINES.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}", record.level(), record.args());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn flush(&self) {}
}
