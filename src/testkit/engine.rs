//! The server's thread: one mio loop over the listener and all connections, and what it shares with the
//! handles.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Poll, Token, Waker};
use parking_lot::{Condvar, Mutex};
use rustls::ServerConfig;

use super::captured::Log;
use super::connection::{Connection, Turn, Verdict};
use super::script::{Answer, End};
use super::wire::Wire;
use super::{Peer, Request, Script};

/// The loop's own state; everything it does not own alone is in [`Shared`].
pub(super) struct Engine {
    pub(super) poll: Poll,
    pub(super) shared: Arc<Shared>,
    pub(super) tls: Option<Arc<ServerConfig>>,
}

impl Engine {
    /// Serves until the server is stopped.
    pub(super) fn run(mut self) {
        let mut state = State {
            connections: HashMap::new(),
            timers: Timers::default(),
            again: Vec::new(),
            received: vec![0; SCRATCH],
            plain: vec![0; if self.tls.is_some() { SCRATCH } else { 0 }],
        };
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !self.shared.stopping.load(Ordering::SeqCst) {
            if let Err(error) = self.wait(&mut events, &state) {
                self.shared.note(format!("the server's loop broke: {error}"));
                break;
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(&mut state),
                    WAKER => {}
                    Token(id) => self.visit(&mut state, id as u64, Visit::Event(event)),
                }
            }
            for id in mem::take(&mut state.again) {
                self.visit(&mut state, id, Visit::Again);
            }
            self.take_mail(&mut state);
            // What is set anew meanwhile waits for the next round, however short its time.
            let now = Instant::now();
            while let Some((id, timer)) = state.timers.pop(now) {
                self.visit(&mut state, id, Visit::Timer(timer));
            }
        }
        for (_, connection) in state.connections.drain() {
            self.end(connection, Verdict::Drop);
        }
        self.shared.end();
    }

    fn wait(&mut self, events: &mut Events, state: &State) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        // Mail is looked at after `asleep` is set: whoever wrote before saw `false` and did not wake.
        shared.asleep.store(true, Ordering::SeqCst);
        let stopping = shared.stopping.load(Ordering::SeqCst);
        let busy = stopping || !state.again.is_empty() || !shared.mail.lock().is_empty();
        let until = state.timers.next().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = if busy { Some(Duration::ZERO) } else { until };
        let polled = self.poll.poll(events, timeout);
        shared.asleep.store(false, Ordering::SeqCst);
        match polled {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            polled => polled,
        }
    }

    fn accept(&self, state: &mut State) {
        loop {
            // The lock covers one call: `pause` closes the listener under it.
            let accepted = match &*self.shared.listener.lock() {
                Some(listener) => listener.accept(),
                None => return,
            };
            match accepted {
                Ok((stream, _)) => self.open(state, stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => return self.shared.note(format!("accepting failed: {error}")),
            }
        }
    }

    fn open(&self, state: &mut State, stream: TcpStream) {
        let script = self.shared.scripts.lock().take();
        let id = self.shared.push_accept();
        // Fails only on a socket that is gone already, as the first read will find.
        let _ = stream.set_nodelay(true);
        let mut wire = match Wire::new(stream, self.tls.as_ref(), &script) {
            Ok(wire) => wire,
            Err(error) => {
                self.shared.note_violation(id, error);
                return self.shared.pop_connection();
            }
        };
        if matches!(script.answer, Answer::Reset) {
            wire.reset();
            return self.shared.pop_connection();
        }
        if let Err(error) = wire.register(self.poll.registry(), Token(id as usize)) {
            self.shared.note_violation(id, error);
            return self.shared.pop_connection();
        }
        let connection = Connection::new(id, wire, script);
        connection.start_mute_timers(Instant::now(), &mut state.timers);
        state.connections.insert(id, connection);
    }

    fn visit(&self, state: &mut State, id: u64, visit: Visit<'_>) {
        let State { connections, timers, again, received, plain } = state;
        // Timers and mail may come for a connection that has ended since.
        let Some(connection) = connections.get_mut(&id) else {
            return;
        };
        let mut turn = Turn { now: Instant::now(), shared: &self.shared, timers, again, plain };
        match visit {
            Visit::Again => connection.handle_again(),
            Visit::Event(event) => connection.handle_event(event),
            Visit::Mail => {}
            Visit::Timer(timer) => connection.handle_timer(timer),
        }
        let verdict = connection.turn(&mut turn, received);
        if verdict != Verdict::Keep {
            let connection = connections.remove(&id).expect("the connection has just been served");
            self.end(connection, verdict);
        }
    }

    fn take_mail(&self, state: &mut State) {
        let mail = mem::take(&mut *self.shared.mail.lock());
        if let Some(before) = mail.kill_before {
            for (_, connection) in state.connections.extract_if(|id, _| *id < before) {
                self.end(connection, Verdict::Reset);
            }
        }
        for id in mail.peers {
            self.visit(state, id, Visit::Mail);
        }
    }

    /// Closes the socket, then tells whoever waits for that.
    fn end(&self, connection: Connection, verdict: Verdict) {
        let peer = connection.peer().cloned();
        match verdict {
            Verdict::Drop | Verdict::Keep => drop(connection),
            Verdict::Reset => connection.into_wire().reset(),
        }
        if let Some(peer) = peer {
            self.shared.peers.lock().remove(&peer.id());
            peer.end();
        }
        self.shared.pop_connection();
    }
}

/// What the loop changes while it serves.
struct State {
    connections: HashMap<u64, Connection>,
    timers: Timers,
    again: Vec<u64>,
    /// Where every socket is read into.
    received: Vec<u8>,
    /// Where TLS decrypts to.
    plain: Vec<u8>,
}

/// Why a connection gets a turn.
enum Visit<'a> {
    Again,
    Event(&'a Event),
    Mail,
    Timer(Timer),
}

/// Deadlines of all connections, earliest first; those of the same instant in the order they were set.
#[derive(Default)]
pub(super) struct Timers {
    entries: BTreeMap<(Instant, u64), (u64, Timer)>,
    set: u64,
}

/// What is due on a connection.
pub(super) enum Timer {
    End(End),
    Flush,
    Play,
    Pong(Vec<u8>),
}

impl Timers {
    pub(super) fn push(&mut self, at: Instant, connection: u64, timer: Timer) {
        self.set += 1;
        self.entries.insert((at, self.set), (connection, timer));
    }

    fn next(&self) -> Option<Instant> {
        self.entries.first_key_value().map(|((at, _), _)| *at)
    }

    fn pop(&mut self, now: Instant) -> Option<(u64, Timer)> {
        let entry = self.entries.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }
}

/// What the loop and the handles share. No two of the locks are ever held together.
pub(super) struct Shared {
    pub(super) log: Log,
    pub(super) scripts: Mutex<Scripts>,
    pub(super) peers: Mutex<BTreeMap<u64, Peer>>,
    pub(super) requests: Mutex<VecDeque<Request>>,
    pub(super) violations: Mutex<Vec<String>>,
    /// `None` while the server is paused.
    pub(super) listener: Mutex<Option<TcpListener>>,
    pub(super) stopping: AtomicBool,
    ended: AtomicBool,
    connections: Mutex<Connections>,
    connections_changed: Condvar,
    mail: Mutex<Mail>,
    asleep: AtomicBool,
    waker: Waker,
}

impl Shared {
    pub(super) fn new(waker: Waker, listener: TcpListener, script: Script, captured_max: usize) -> Self {
        Self {
            log: Log::new(captured_max),
            scripts: Mutex::new(Scripts { next: VecDeque::new(), then: Arc::new(script) }),
            peers: Mutex::default(),
            requests: Mutex::default(),
            violations: Mutex::default(),
            listener: Mutex::new(Some(listener)),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            connections: Mutex::default(),
            connections_changed: Condvar::new(),
            mail: Mutex::default(),
            asleep: AtomicBool::new(false),
            waker,
        }
    }

    /// Tells the loop that a peer has commands.
    pub(super) fn post(&self, peer: u64) {
        self.mail.lock().peers.push(peer);
        self.wake();
    }

    /// Has every connection reset that has been accepted so far.
    pub(super) fn kill(&self) {
        let before = self.connections.lock().accepted;
        self.mail.lock().kill_before = Some(before);
        self.wake();
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Without a waker the next event does it; there is nobody to tell.
            let _ = self.waker.wake();
        }
    }

    /// The last thing the loop does: whoever waits learns that nothing more will come.
    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(self.listener.lock().take());
        // Peers hold on to what is shared here; a queue of them would keep it alive for ever.
        drop(mem::take(&mut self.connections.lock().unclaimed));
        self.connections_changed.notify_all();
        self.log.notify();
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn note_violation(&self, connection: u64, violation: impl fmt::Display) {
        self.note(format!("connection {connection}: {violation}"));
    }

    fn note(&self, violation: String) {
        let mut violations = self.violations.lock();
        if violations.len() < VIOLATIONS_MAX {
            violations.push(violation);
        }
    }

    pub(super) fn push_request(&self, request: Request) {
        let mut requests = self.requests.lock();
        if requests.len() == REQUESTS_MAX {
            requests.pop_front();
        }
        requests.push_back(request);
    }

    pub(super) fn push_peer(&self, peer: &Peer) {
        self.peers.lock().insert(peer.id(), peer.clone());
        let mut connections = self.connections.lock();
        if connections.unclaimed.len() == UNCLAIMED_MAX {
            connections.unclaimed.pop_front();
        }
        connections.unclaimed.push_back(peer.clone());
        self.connections_changed.notify_all();
    }

    /// Counts a connection in and numbers it.
    fn push_accept(&self) -> u64 {
        let mut connections = self.connections.lock();
        let id = connections.accepted;
        connections.accepted += 1;
        connections.open += 1;
        if connections.accept_times.len() < ACCEPT_TIMES_MAX {
            connections.accept_times.push(Instant::now());
        }
        self.connections_changed.notify_all();
        id
    }

    fn pop_connection(&self) {
        self.connections.lock().open -= 1;
        self.connections_changed.notify_all();
    }

    /// Looks at the connections.
    pub(super) fn connections<T>(&self, look: impl FnOnce(&Connections) -> T) -> T {
        look(&self.connections.lock())
    }

    /// Waits until `look` sees what it wants, or nothing can change any more.
    pub(super) fn wait_connections<T>(
        &self,
        timeout: Duration,
        mut look: impl FnMut(&mut Connections) -> Option<T>,
    ) -> Option<T> {
        let deadline = later(Instant::now(), timeout);
        let mut connections = self.connections.lock();
        loop {
            let seen = look(&mut connections);
            if seen.is_some() || self.is_ended() || Instant::now() >= deadline {
                return seen;
            }
            self.connections_changed.wait_until(&mut connections, deadline);
        }
    }
}

/// What the handles want of the loop.
#[derive(Default)]
struct Mail {
    /// Those with commands.
    peers: Vec<u64>,
    /// Connections with smaller numbers are to be reset.
    kill_before: Option<u64>,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.kill_before.is_none()
    }
}

/// TCP connections, upgraded or not.
#[derive(Default)]
pub(super) struct Connections {
    pub(super) accepted: u64,
    pub(super) accept_times: Vec<Instant>,
    pub(super) open: usize,
    /// Upgraded, and not yet handed out by `accept`.
    pub(super) unclaimed: VecDeque<Peer>,
}

/// What the next connections are to do.
pub(super) struct Scripts {
    pub(super) next: VecDeque<Arc<Script>>,
    pub(super) then: Arc<Script>,
}

impl Scripts {
    fn take(&mut self) -> Arc<Script> {
        self.next.pop_front().unwrap_or_else(|| Arc::clone(&self.then))
    }
}

/// The end of a duration; one that no clock can hold is as good as a year.
pub(super) fn later(now: Instant, after: Duration) -> Instant {
    now.checked_add(after).unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}

pub(super) const LISTENER: Token = Token(usize::MAX);
pub(super) const WAKER: Token = Token(usize::MAX - 1);
const EVENTS_MAX: usize = 1024;
const SCRATCH: usize = 64 * 1024;
const VIOLATIONS_MAX: usize = 1_000;
const REQUESTS_MAX: usize = 1_000;
const UNCLAIMED_MAX: usize = 10_000;
const ACCEPT_TIMES_MAX: usize = 65_536;
