//! How a connection behaves: every setting with its effect, unit, default and reason.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::dialect::{Dialect, Plain};
use crate::error::{Error, Phase, Result};
use crate::event::{ConnectionId, Generation, State};
use crate::governor::{self, RateLimit};
use crate::recorder::Recorder;
use crate::socket::SocketOptions;
use crate::target::Target;

/// How one connection behaves. Setters consume and return the config; it is checked once, when a connection is opened.
///
/// The defaults suit one feed on one machine. `Debug` shows no header values, user info, query values or keys.
///
/// ```
/// use std::time::Duration;
/// use zen_websocket::Config;
///
/// let config = Config::new("wss://www.example.com/ws?token=t0p5ecret")
///     .header("X-Api-Key", "4711")
///     .connect_timeout(Duration::from_secs(3));
/// assert!(!format!("{config:?}").contains("t0p5ecret"));
/// assert!(!format!("{config:?}").contains("4711"));
/// ```
#[must_use]
#[derive(Clone)]
pub struct Config {
    pub(crate) url: String,
    /// Shared by clones until one of them is changed: a program may open thousands of connections that differ in their URL at most.
    pub(crate) settings: Arc<Settings>,
}

/// All of a config but its URL.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) trust: Arc<Trust>,
    /// Behind a pointer, because each connection has a config.
    pub(crate) socket: Arc<SocketOptions>,
    pub(crate) connect_timeout: Duration,
    pub(crate) phase_timeouts: [Option<Duration>; 5],
    pub(crate) connect_attempts: u32,
    pub(crate) redial_attempts: u32,
    pub(crate) base_delay: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) jitter: f64,
    pub(crate) stable_after: Duration,
    pub(crate) seed: Option<u64>,
    pub(crate) heartbeat_interval: Option<Duration>,
    pub(crate) patience: Duration,
    pub(crate) strict: bool,
    pub(crate) data_silence: Option<Duration>,
    pub(crate) close_timeout: Duration,
    pub(crate) max_message: usize,
    pub(crate) unsent_max: usize,
    pub(crate) inbox_capacity: usize,
    pub(crate) overflow: Overflow,
    pub(crate) dialect: Arc<dyn Dialect>,
    pub(crate) call_timeout: Duration,
    pub(crate) calls_max: usize,
    pub(crate) confirm_timeout: Duration,
    pub(crate) restore: bool,
    pub(crate) hold_until: State,
    pub(crate) on_gap: GapPolicy,
    pub(crate) rate_limits: Vec<RateLimit>,
    pub(crate) throttle: Throttle,
    /// Behind a pointer, because few have one and each connection has a config.
    pub(crate) dial_limit: Option<Arc<RateLimit>>,
    pub(crate) kernel_stamps: bool,
    pub(crate) send_stamps: bool,
    pub(crate) debug: bool,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) on_dial: Option<DialHook>,
    pub(crate) on_socket: Option<SocketHook>,
    pub(crate) on_open: Option<OpenHook>,
    pub(crate) on_lost: Option<LostHook>,
}

/// What happens to messages for which the inbox has no room.
///
/// `Open`, `Lost`, `Unsent`, `Gap` and `Closed` are delivered even into a full inbox; `Dialing`, and `DialFailed` with a further dial to
/// come, are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Stops reading the socket until there is room, so that TCP slows the peer down. Nothing is lost, but what comes next is old, and
    /// a peer may close a connection that does not keep up. Meanwhile nothing is heard: a loss is noticed only by a write that fails (a
    /// ping's at the latest), silence not at all, and pings of the peer wait. A program that only sends drops its inbox.
    #[default]
    Block,
    /// Drops what does not fit and reports how much as [`Event::Gap`](crate::Event::Gap).
    DropNewest,
    /// Closes the connection with [`Error::InboxFull`].
    Disconnect,
}

/// What happens to messages that the rate limit does not allow yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Throttle {
    /// They are refused with [`Error::Throttled`], which says when they would be allowed. Nothing ages unseen.
    #[default]
    Fail,
    /// The sending thread waits, so long at most; what would take longer is refused at once with [`Error::Throttled`]. If the wire is
    /// lost meanwhile, the message is refused with [`Error::NotConnected`] or [`Error::Stale`]. A thread that turns a reactor does not
    /// wait.
    Wait(Duration),
    /// They wait in the order of their lanes, so many at most (urgent ones count by themselves), and leave as the limit allows; beyond
    /// that they are refused with [`Error::QueueFull`]. Those that have not left when the wire ends are reported as [`Event::Unsent`](crate::Event::Unsent).
    Queue(usize),
}

/// What happens when the sequence of a channel has a hole, besides [`Event::Gap`](crate::Event::Gap).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GapPolicy {
    /// Nothing.
    #[default]
    Report,
    /// The channel is unsubscribed and subscribed anew, which brings a new snapshot on most venues.
    Resubscribe,
}

/// What the next dial will do; [`Config::on_dial`] may change it.
#[derive(Debug)]
pub struct DialPlan {
    pub(crate) url: Redacted<String>,
    pub(crate) headers: Redacted<Vec<(String, String)>>,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) attempt: u32,
    pub(crate) deadline: Instant,
}

/// Whom a TLS connection trusts and as whom it appears.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    pub(crate) without_system_roots: bool,
    /// DER, or PEM with one or more certificates.
    pub(crate) roots: Vec<Vec<u8>>,
    /// PEM of the chain and of the key.
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
}

pub(crate) type DialHook = Arc<dyn Fn(&mut DialPlan) -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync>;
pub(crate) type SocketHook = Arc<dyn Fn(&Socket) -> io::Result<()> + Send + Sync>;
pub(crate) type OpenHook = Arc<dyn Fn(ConnectionId, Generation) + Send + Sync>;
pub(crate) type LostHook = Arc<dyn Fn(ConnectionId, Generation, &Error) + Send + Sync>;

/// Holds a value that `Debug` must not show.
pub(crate) struct Redacted<T>(pub(crate) T);

impl Config {
    /// A config with all defaults for this URL of scheme `ws` or `wss`.
    ///
    /// Path and query are sent as given, dot segments resolved and what a URL may not contain percent-encoded. User info becomes an `Authorization: Basic` header. A fragment is refused (RFC 6455 §3).
    pub fn new(url: impl Into<String>) -> Self {
        let settings = Settings {
            headers: Vec::new(),
            subprotocols: Vec::new(),
            trust: Arc::default(),
            socket: Arc::default(),
            connect_timeout: Duration::from_secs(5),
            phase_timeouts: [None; 5],
            connect_attempts: 3,
            redial_attempts: u32::MAX,
            base_delay: Duration::from_secs(1),
            max_backoff: Duration::from_secs(30),
            jitter: 0.5,
            stable_after: Duration::from_secs(10),
            seed: None,
            heartbeat_interval: Some(Duration::from_secs(30)),
            patience: Duration::from_secs(10),
            strict: false,
            data_silence: None,
            close_timeout: Duration::from_secs(2),
            max_message: 4 << 20,
            unsent_max: 64 << 10,
            inbox_capacity: 8192,
            overflow: Overflow::Block,
            dialect: Arc::new(Plain),
            call_timeout: Duration::from_secs(30),
            calls_max: 1024,
            confirm_timeout: Duration::from_secs(10),
            restore: true,
            hold_until: State::Open,
            on_gap: GapPolicy::Report,
            rate_limits: Vec::new(),
            throttle: Throttle::Fail,
            dial_limit: None,
            kernel_stamps: false,
            send_stamps: false,
            debug: false,
            recorder: None,
            on_dial: None,
            on_socket: None,
            on_open: None,
            on_lost: None,
        };
        Self { url: url.into(), settings: Arc::new(settings) }
    }

    /// The same for another URL. Connections opened by clones of one config, whatever their URLs, share the memory of its settings.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = url.into();
        self
    }

    fn set(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    /// Adds a header to the upgrade request of every dial; a repeated name is sent twice. `Host` replaces the one made from the URL; the headers of the WebSocket
    /// handshake itself are refused.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set().headers.push((name.into(), value.into()));
        self
    }

    /// Offers a subprotocol (RFC 6455 §1.9), in the order of preference. A server may choose one of those offered or none; any other
    /// choice fails the dial. None by default.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.set().subprotocols.push(name.into());
        self
    }

    /// Trusts these certificate authorities, given as DER or PEM, besides those of the operating system.
    pub fn root_certificate(mut self, certificate: impl Into<Vec<u8>>) -> Self {
        self.trust_mut().roots.push(certificate.into());
        self
    }

    /// Trusts only what [`root_certificate`](Self::root_certificate) names. Off by default: the operating system's roots are trusted.
    pub fn without_system_roots(mut self) -> Self {
        self.trust_mut().without_system_roots = true;
        self
    }

    /// Appears to TLS servers with this certificate chain and private key, both as PEM. None by default.
    pub fn client_certificate(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.trust_mut().client = Some((chain.into(), key.into()));
        self
    }

    fn trust_mut(&mut self) -> &mut Trust {
        Arc::make_mut(&mut self.set().trust)
    }

    /// What the kernel is told about each socket: buffers, timeouts, the address to dial from, and more. Default
    /// [`SocketOptions::default`], which sends each frame at once and keeps at most 64 KiB waiting in the kernel.
    ///
    /// ```
    /// # use zen_websocket::{Config, SocketOptions};
    /// let config = Config::new("wss://www.example.com/ws").socket(SocketOptions::default().bind_address([192, 0, 2, 7]));
    /// ```
    pub fn socket(mut self, options: SocketOptions) -> Self {
        self.set().socket = Arc::new(options);
        self
    }

    /// How long one dial may take in all, from the dial hook to the verified 101 and the dialect's login. Default 5 s: an exchange that takes longer is better
    /// dialled again.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.set().connect_timeout = limit;
        self
    }

    /// How long one phase of a dial may take. By default only [`connect_timeout`](Self::connect_timeout) limits a phase.
    pub fn phase_timeout(mut self, phase: Phase, limit: Duration) -> Self {
        self.set().phase_timeouts[phase as usize] = Some(limit);
        self
    }

    /// How many dials in a row may fail before the first wire. Default 3: a wrong host or key must reach whoever starts the program.
    /// Failures that cannot pass ([`Error::is_fatal`]) end the first connect at once.
    pub fn connect_attempts(mut self, attempts: u32) -> Self {
        self.set().connect_attempts = attempts;
        self
    }

    /// How many dials may follow a loss before the connection closes, counted until a wire proves
    /// [stable](Self::stable_after). Default `u32::MAX`, which means for ever: a feed must survive an outage of any length.
    pub fn redial_attempts(mut self, attempts: u32) -> Self {
        self.set().redial_attempts = attempts;
        self
    }

    /// Whether a lost wire is replaced, without limit. On by default; off is [`redial_attempts(0)`](Self::redial_attempts): the loss
    /// closes. Of the two settings the later one counts.
    pub fn reconnect(self, on: bool) -> Self {
        self.redial_attempts(if on { u32::MAX } else { 0 })
    }

    /// The first pause of the redial ladder; each further one doubles, up to [`max_backoff`](Self::max_backoff). Default 1 s. The first
    /// redial after a loss comes at once.
    pub fn base_delay(mut self, delay: Duration) -> Self {
        self.set().base_delay = delay;
        self
    }

    /// The longest pause of the redial ladder, at least [`base_delay`](Self::base_delay). Default 30 s, which spares a venue that is
    /// down and still finds it within half a minute.
    pub fn max_backoff(mut self, delay: Duration) -> Self {
        self.set().max_backoff = delay;
        self
    }

    /// The part of each pause that is drawn at random, from 0 to 1. Default 0.5: half is fixed, half drawn, so that a thousand
    /// connections lost together do not return together. 0 gives exact pauses.
    pub fn jitter(mut self, part: f64) -> Self {
        self.set().jitter = part;
        self
    }

    /// How long a wire must have been up for the redial ladder to start over. Default 10 s: a server that accepts and closes at once
    /// meets growing pauses.
    pub fn stable_after(mut self, uptime: Duration) -> Self {
        self.set().stable_after = uptime;
        self
    }

    /// Seeds the jitter, for reproducible pauses. Random by default.
    pub fn seed(mut self, seed: u64) -> Self {
        self.set().seed = Some(seed);
        self
    }

    /// How often a ping leaves, whatever else arrives; `None` sends none. Default 30 s: often enough for the idle limits of venues and
    /// middleboxes, rare enough for their message limits.
    pub fn heartbeat_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.set().heartbeat_interval = interval.into();
        self
    }

    /// How long after a ping its pong is awaited. If it has not come by then, and not a byte since the ping either, the wire is dropped
    /// as [silent](Error::Silent). Default 10 s, longer than any TCP retransmission on a path worth trading on.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.set().patience = patience;
        self
    }

    /// Whether only the pong proves that the peer lives, and other bytes do not. Off by default: a peer busy sending may answer late.
    pub fn strict(mut self, on: bool) -> Self {
        self.set().strict = on;
        self
    }

    /// Drops a wire on which no data message came for this long, whatever pings and pongs arrive; `None` never does. Default `None`:
    /// only the user knows how quiet a feed may be.
    pub fn data_silence(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.set().data_silence = limit.into();
        self
    }

    /// How long the close handshake may take before the socket is dropped. Default 2 s.
    pub fn close_timeout(mut self, limit: Duration) -> Self {
        self.set().close_timeout = limit;
        self
    }

    /// The longest message accepted, in bytes, fragments together; a longer one ends the wire with 1009. Default 4 MiB, more than any
    /// venue's book snapshot.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.set().max_message = bytes;
        self
    }

    /// How many bytes may wait for the kernel to take them before sends answer [`Error::Full`]. A frame that finds nothing waiting is
    /// always accepted and finished; 0 refuses all others. Default 64 KiB: what waits there grows old.
    pub fn unsent_max(mut self, bytes: usize) -> Self {
        self.set().unsent_max = bytes;
        self
    }

    /// How many events the inbox made for this connection may hold before [`overflow`](Self::overflow) applies. Default 8,192. State
    /// events, and what the socket of a wire that ends still holds (about 4 MiB of frames at most), may exceed it. Consumers are woken
    /// when a read of up to 64 KiB has been taken in, so with little room messages are dropped before an idle consumer has a chance.
    pub fn inbox_capacity(mut self, events: usize) -> Self {
        self.set().inbox_capacity = events;
        self
    }

    /// What happens when the inbox is full. Default [`Overflow::Block`], which loses nothing.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.set().overflow = overflow;
        self
    }

    /// Whether the kernel's receive stamps are asked for (Linux): when it took the latest bytes of a read from the network travels with
    /// their messages as [`Context::kernel_at`](crate::Context::kernel_at), and how long they took from there to here is in
    /// [`Client::latency`](crate::Client::latency). Off by default: it makes each read about a twentieth dearer. Elsewhere it does
    /// nothing.
    ///
    /// The stamp is that of the segment that came last (`SO_TIMESTAMPNS`, socket(7)), made by the system's clock when the network card's
    /// driver handed it over, or on loopback when it was sent. Messages that were read together share it, though the earlier may have waited longer; one
    /// that is decrypted from several segments has that of the last.
    pub fn kernel_stamps(mut self, on: bool) -> Self {
        self.set().kernel_stamps = on;
        self
    }

    /// Whether it is measured how long messages take from the call of a send to the kernel; see
    /// [`Client::latency`](crate::Client::latency). Off by default: it reads the clock three times per message, about 100 ns.
    pub fn send_stamps(mut self, on: bool) -> Self {
        self.set().send_stamps = on;
        self
    }

    /// Whether every message and control frame of this connection is logged, one line each: target `zen_websocket::frames`, level
    /// `debug`. Texts are shown up to 256 bytes, logins not at all. Off by default: it is for looking at one connection for a while.
    pub fn debug(mut self, on: bool) -> Self {
        self.set().debug = on;
        self
    }

    /// Records every message and control frame, and every change of state, to a file: give a path, or a [`Recorder`] for more settings.
    /// Connections that name the same file share it. The frames of a dialect's logins, and what comes before a login has succeeded, are
    /// recorded without their content. None by default.
    ///
    /// ```no_run
    /// # use zen_websocket::Config;
    /// let config = Config::new("wss://www.example.com/ws").record_to("feed.jsonl");
    /// ```
    pub fn record_to(mut self, recorder: impl Into<Recorder>) -> Self {
        self.set().recorder = Some(recorder.into());
        self
    }

    /// The venue's message language. Default [`Plain`], which knows nothing and reads nothing.
    pub fn dialect(mut self, dialect: impl Dialect + 'static) -> Self {
        self.set().dialect = Arc::new(dialect);
        self
    }

    /// How long a call may take in all, waiting for the rate limit included. Default 30 s, longer than any venue takes that will answer;
    /// [`Client::with_call_timeout`](crate::Client::with_call_timeout) sets it for single calls.
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.set().call_timeout = limit;
        self
    }

    /// How many calls may wait for their replies before further ones answer [`Error::TooManyCalls`]. Default 1,024, more than any venue
    /// works on for one connection.
    pub fn calls_max(mut self, calls: usize) -> Self {
        self.set().calls_max = calls;
        self
    }

    /// How long the confirmation of a subscription is awaited, from the moment the request has left; then it is asked for again. Also
    /// how long the refresh of a login may take. Default 10 s.
    pub fn confirm_timeout(mut self, limit: Duration) -> Self {
        self.set().confirm_timeout = limit;
        self
    }

    /// Whether subscriptions are restored on the next wire. On by default; off, a loss ends them.
    pub fn restore(mut self, on: bool) -> Self {
        self.set().restore = on;
        self
    }

    /// From which state on messages of callers may leave on a new wire. Default [`State::Open`]: as soon as the login has succeeded,
    /// ahead of the restore. With [`State::Live`] only when every channel wanted is confirmed; a channel that the venue refuses holds them
    /// until its subscription is dropped. No other state will do.
    pub fn hold_until(mut self, state: State) -> Self {
        self.set().hold_until = state;
        self
    }

    /// What happens when the sequence of a channel has a hole. Default [`GapPolicy::Report`].
    pub fn on_gap(mut self, policy: GapPolicy) -> Self {
        self.set().on_gap = policy;
        self
    }

    /// Adds a limit that everything sent keeps to, control frames, logins, restores and heartbeats included; up to four apply together.
    /// None by default.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use zen_websocket::{Config, RateLimit};
    /// // Binance: 5 frames a second, pings and pongs among them.
    /// let config = Config::new("wss://www.example.com/ws").rate_limit(RateLimit::window(5, Duration::from_secs(1)));
    /// ```
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.set().rate_limits.push(limit);
        self
    }

    /// What happens to messages of callers that the rate limit does not allow yet. Default [`Throttle::Fail`].
    pub fn throttle(mut self, throttle: Throttle) -> Self {
        self.set().throttle = throttle;
        self
    }

    /// Limits the dials to the host of the URL, of all connections in the process that set it; a limit that is
    /// [shared](RateLimit::shared) by another name counts under that name. A dial that is not allowed yet waits, is reported as
    /// [`DialFailed`](crate::Event::DialFailed) with [`Error::Throttled`], and does not count as an attempt: a first connect waits as long
    /// as the limit makes it. A dial costs what a control frame does. None by default.
    pub fn dial_limit(mut self, limit: RateLimit) -> Self {
        self.set().dial_limit = Some(Arc::new(limit));
        self
    }

    /// Runs before each dial, on a thread where it may block (to fetch a token, say) until the dial's deadline. It may set the URL,
    /// headers (a signature with its timestamp) and addresses of this dial; an error fails the dial. None by default.
    ///
    /// Four hooks run at once in a process; while four block, other dials with a hook wait, on their own time.
    ///
    /// ```
    /// # use zen_websocket::Config;
    /// let config = Config::new("wss://www.example.com/ws").on_dial(|plan| {
    ///     plan.set_header("X-Attempt", plan.attempt().to_string());
    ///     Ok(())
    /// });
    /// ```
    pub fn on_dial<F>(mut self, hook: F) -> Self
    where
        F: Fn(&mut DialPlan) -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync + 'static,
    {
        self.set().on_dial = Some(Arc::new(hook));
        self
    }

    /// Runs on the reactor thread for each socket, after the options of [`socket`](Self::socket) and before it connects: for whatever
    /// else the system lets one set. A dial opens several sockets if its host has several addresses and the first do not answer. It must
    /// not block. An error fails the dial with [`Error::Io`]; a panic fails it with [`Error::Panicked`] and ends nothing else. Unix only.
    /// None by default.
    ///
    /// ```
    /// # use std::os::fd::{AsRawFd, BorrowedFd};
    /// # use zen_websocket::Config;
    /// let config = Config::new("wss://www.example.com/ws").on_socket(|socket: BorrowedFd<'_>| {
    ///     println!("dialling with descriptor {}", socket.as_raw_fd());
    ///     Ok(())
    /// });
    /// ```
    #[cfg(unix)]
    pub fn on_socket(mut self, hook: impl Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.set().on_socket = Some(Arc::new(move |socket| hook(socket.as_fd())));
        self
    }

    /// Runs on the reactor thread whenever a wire is up. It must not block; a panic in it is logged and harmless. None by default.
    pub fn on_open(mut self, hook: impl Fn(ConnectionId, Generation) + Send + Sync + 'static) -> Self {
        self.set().on_open = Some(Arc::new(hook));
        self
    }

    /// Runs on the reactor thread once for every [`on_open`](Self::on_open), when that wire has ended, for whatever reason. It must not
    /// block; a panic in it is logged and harmless. None by default.
    pub fn on_lost(mut self, hook: impl Fn(ConnectionId, Generation, &Error) + Send + Sync + 'static) -> Self {
        self.set().on_lost = Some(Arc::new(hook));
        self
    }

    /// Checks every setting but the certificates, which are read when a connection is opened; the first that is wrong is named.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn validate(&self) -> Result<()> {
        self.target().map(|_| ())
    }

    pub(crate) fn target(&self) -> Result<Target> {
        let target = Target::parse(&self.url)?;
        let durations = [
            ("connect_timeout", Some(self.settings.connect_timeout)),
            ("phase_timeout", self.settings.phase_timeouts.iter().flatten().min().copied()),
            ("phase_timeout", self.settings.phase_timeouts.iter().flatten().max().copied()),
            ("base_delay", Some(self.settings.base_delay)),
            ("max_backoff", Some(self.settings.max_backoff)),
            ("stable_after", Some(self.settings.stable_after)),
            ("heartbeat_interval", self.settings.heartbeat_interval),
            ("patience", Some(self.settings.patience)),
            ("data_silence", self.settings.data_silence),
            ("close_timeout", Some(self.settings.close_timeout)),
            ("call_timeout", Some(self.settings.call_timeout)),
            ("confirm_timeout", Some(self.settings.confirm_timeout)),
            ("throttle", if let Throttle::Wait(limit) = self.settings.throttle { Some(limit) } else { None }),
        ];
        for (setting, value) in durations {
            match value {
                Some(Duration::ZERO) => return Err(Error::config(setting, "must be more than zero")),
                // Deadlines are computed by addition, which must not overflow.
                Some(value) if value > YEAR => return Err(Error::config(setting, "must be at most a year")),
                _ => {}
            }
        }
        let base = self.settings.base_delay;
        let rules = [
            (self.settings.max_backoff < base, "max_backoff", "must be at least base_delay"),
            (!(0.0..=1.0).contains(&self.settings.jitter), "jitter", "must be from 0 to 1"),
            (self.settings.connect_attempts == 0, "connect_attempts", "must be at least 1"),
            (self.settings.max_message == 0, "max_message", "must be more than zero"),
            (self.settings.inbox_capacity == 0, "inbox_capacity", "must be more than zero"),
            (self.settings.calls_max == 0, "calls_max", "must be more than zero"),
            (!self.settings.hold_until.is_open(), "hold_until", "must be Open or Live"),
            (self.settings.throttle == Throttle::Queue(0), "throttle", "a queue must have room"),
        ];
        if let Some((_, setting, reason)) = rules.into_iter().find(|(broken, ..)| *broken) {
            return Err(Error::config(setting, reason));
        }
        if let Some(name) = self.settings.subprotocols.iter().find(|name| !is_token(name)) {
            return Err(Error::config("subprotocol", format!("{name:?} is not a token")));
        }
        if let Some(name) = (1..self.settings.subprotocols.len())
            .find_map(|i| self.settings.subprotocols[..i].iter().find(|name| **name == self.settings.subprotocols[i]))
        {
            return Err(Error::config("subprotocol", format!("{name} is offered twice")));
        }
        check_headers(&self.settings.headers)?;
        self.settings.socket.validate()?;
        self.settings.recorder.as_ref().map_or(Ok(()), Recorder::validate)?;
        governor::validate("rate_limit", &self.settings.rate_limits)?;
        governor::validate("dial_limit", self.settings.dial_limit.as_deref().map_or(&[], slice::from_ref))?;
        Ok(target)
    }
}

/// The longest duration a setting may have, so that deadlines do not overflow.
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Refuses what would break the request apart or contradict the handshake (RFC 9110 §5.5, RFC 6455 §4.1).
pub(crate) fn check_headers(headers: &[(String, String)]) -> Result<()> {
    for (name, value) in headers {
        if !is_token(name) {
            return Err(Error::config("header", format!("the name {name:?} is not a token")));
        }
        if is_reserved(name) {
            return Err(Error::config("header", format!("{name} belongs to the handshake")));
        }
        if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(Error::config("header", format!("the value of {name} contains a control character")));
        }
    }
    Ok(())
}

/// Whether `name` may name a header or a subprotocol: a token of RFC 9110 §5.6.2.
pub(crate) fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Whether the handshake itself sets this header, or must not have it. `Host` is not among them: a user's replaces ours.
pub(crate) fn is_reserved(name: &str) -> bool {
    ["connection", "upgrade", "content-length", "transfer-encoding"].iter().any(|own| name.eq_ignore_ascii_case(own))
        || name.get(..14).is_some_and(|start| start.eq_ignore_ascii_case("sec-websocket-"))
}

impl From<&str> for Config {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<String> for Config {
    fn from(url: String) -> Self {
        Self::new(url)
    }
}

impl From<&Config> for Config {
    fn from(config: &Config) -> Self {
        config.clone()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.settings.headers.iter().map(|(name, _)| (name.as_str(), "[redacted]")).collect();
        let url = Target::parse(&self.url).map_or_else(|_| "[invalid]".to_owned(), |target| target.to_string());
        f.debug_struct("Config")
            .field("url", &url)
            .field("headers", &headers)
            .field("subprotocols", &self.settings.subprotocols)
            .field("trust", &self.settings.trust)
            .field("socket", &self.settings.socket)
            .field("connect_timeout", &self.settings.connect_timeout)
            .field("phase_timeouts", &self.settings.phase_timeouts)
            .field("connect_attempts", &self.settings.connect_attempts)
            .field("redial_attempts", &self.settings.redial_attempts)
            .field("base_delay", &self.settings.base_delay)
            .field("max_backoff", &self.settings.max_backoff)
            .field("jitter", &self.settings.jitter)
            .field("stable_after", &self.settings.stable_after)
            .field("seed", &self.settings.seed)
            .field("heartbeat_interval", &self.settings.heartbeat_interval)
            .field("patience", &self.settings.patience)
            .field("strict", &self.settings.strict)
            .field("data_silence", &self.settings.data_silence)
            .field("close_timeout", &self.settings.close_timeout)
            .field("max_message", &self.settings.max_message)
            .field("unsent_max", &self.settings.unsent_max)
            .field("inbox_capacity", &self.settings.inbox_capacity)
            .field("overflow", &self.settings.overflow)
            .field("dialect", &self.settings.dialect.name())
            .field("call_timeout", &self.settings.call_timeout)
            .field("calls_max", &self.settings.calls_max)
            .field("confirm_timeout", &self.settings.confirm_timeout)
            .field("restore", &self.settings.restore)
            .field("hold_until", &self.settings.hold_until)
            .field("on_gap", &self.settings.on_gap)
            .field("rate_limits", &self.settings.rate_limits)
            .field("throttle", &self.settings.throttle)
            .field("dial_limit", &self.settings.dial_limit)
            .field("kernel_stamps", &self.settings.kernel_stamps)
            .field("send_stamps", &self.settings.send_stamps)
            .field("debug", &self.settings.debug)
            .field("recorder", &self.settings.recorder)
            .field("on_dial", &self.settings.on_dial.is_some())
            .field("on_socket", &self.settings.on_socket.is_some())
            .field("on_open", &self.settings.on_open.is_some())
            .field("on_lost", &self.settings.on_lost.is_some())
            .finish()
    }
}

impl DialPlan {
    /// The number of this dial since the last stable wire, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When this dial is given up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The URL to dial.
    pub fn url(&self) -> &str {
        &self.url.0
    }

    /// Dials another URL this time.
    pub fn set_url(&mut self, url: impl Into<String>) {
        self.url.0 = url.into();
    }

    /// Sets a header of this dial, in place of any of the same name.
    pub fn set_header(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        self.headers.0.retain(|(have, _)| !have.eq_ignore_ascii_case(&name));
        self.headers.0.push((name, value.into()));
    }

    /// Connects to these addresses, in this order, instead of resolving the host. The URL's host still goes into TLS and `Host`.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.addresses = addresses.into_iter().collect();
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("without_system_roots", &self.without_system_roots)
            .field("roots", &self.roots.len())
            .field("client", &self.client.is_some())
            .finish()
    }
}

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(config: Config) -> String {
        config.validate().unwrap_err().to_string()
    }

    fn config() -> Config {
        Config::new("ws://localhost")
    }

    #[test]
    fn a_url_alone_is_enough() {
        config().validate().unwrap();
    }

    #[test]
    fn a_zero_duration_is_refused_by_the_name_of_its_setting() {
        let zero = Duration::ZERO;
        assert_eq!(refusal(config().connect_timeout(zero)), "invalid connect_timeout: must be more than zero");
        assert_eq!(refusal(config().phase_timeout(Phase::Tls, zero)), "invalid phase_timeout: must be more than zero");
        assert_eq!(refusal(config().base_delay(zero)), "invalid base_delay: must be more than zero");
        assert_eq!(refusal(config().heartbeat_interval(zero)), "invalid heartbeat_interval: must be more than zero");
        assert_eq!(refusal(config().patience(zero)), "invalid patience: must be more than zero");
        assert_eq!(refusal(config().data_silence(zero)), "invalid data_silence: must be more than zero");
        assert_eq!(refusal(config().close_timeout(zero)), "invalid close_timeout: must be more than zero");
        assert_eq!(refusal(config().stable_after(zero)), "invalid stable_after: must be more than zero");
    }

    #[test]
    fn an_endless_duration_is_refused() {
        assert_eq!(refusal(config().patience(Duration::MAX)), "invalid patience: must be at most a year");
    }

    #[test]
    fn the_longest_pause_is_at_least_the_first() {
        let pause = |base, max| config().base_delay(Duration::from_millis(base)).max_backoff(Duration::from_millis(max));
        assert_eq!(refusal(pause(5000, 1000)), "invalid max_backoff: must be at least base_delay");
        pause(5000, 5000).validate().unwrap();
    }

    #[test]
    fn counts_and_parts_have_bounds() {
        assert_eq!(refusal(config().connect_attempts(0)), "invalid connect_attempts: must be at least 1");
        assert_eq!(refusal(config().jitter(1.5)), "invalid jitter: must be from 0 to 1");
        assert_eq!(refusal(config().jitter(f64::NAN)), "invalid jitter: must be from 0 to 1");
        assert_eq!(refusal(config().inbox_capacity(0)), "invalid inbox_capacity: must be more than zero");
        assert_eq!(refusal(config().max_message(0)), "invalid max_message: must be more than zero");
    }

    #[test]
    fn a_header_cannot_split_the_request_or_contradict_the_handshake() {
        assert_eq!(refusal(config().header("X-A\r\nX-B", "1")), r#"invalid header: the name "X-A\r\nX-B" is not a token"#);
        assert_eq!(refusal(config().header("", "1")), r#"invalid header: the name "" is not a token"#);
        for value in ["a\r\nb", "a\nb", "a\0", "\u{7f}"] {
            assert_eq!(refusal(config().header("X-A", value)), "invalid header: the value of X-A contains a control character");
        }
        assert_eq!(
            refusal(config().header("sec-websocket-key", "1")),
            "invalid header: sec-websocket-key belongs to the handshake"
        );
        assert_eq!(refusal(config().header("Upgrade", "h2c")), "invalid header: Upgrade belongs to the handshake");
        assert_eq!(refusal(config().subprotocol("a b")), r#"invalid subprotocol: "a b" is not a token"#);
        config().header("Host", "front.example").header("Authorization", "Bearer ä").validate().unwrap();
    }

    #[test]
    fn debug_shows_no_secret_and_keeps_the_values() {
        let config =
            Config::new("wss://alice:pass@h/ws?token=query").header("Authorization", "bearer").client_certificate("chain", "pem");
        let shown = format!("{config:?}");
        for secret in ["alice", "pass", "query", "bearer", "pem", "chain"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert!(shown.contains("Authorization"));
        assert_eq!(config.settings.headers, [("Authorization".to_owned(), "bearer".to_owned())]);
        assert!(!format!("{:?}", Config::new("ws://h")).contains("redacted"));
    }
}
