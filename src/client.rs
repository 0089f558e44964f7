//! The handle that callers hold, and the ways to get one.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{Config, YEAR};
use crate::dialect::Id;
use crate::error::{Error, Rejection, Result};
use crate::event::{ConnectionId, Generation, Sent, State};
use crate::governor::Governor;
use crate::inbox::Inbox;
use crate::metrics::{HeartbeatStatus, Latencies, Metrics, RateStatus, SentMany};
use crate::reactor::{
    CONNECTION, Channels, Driver, Kind, Mailbox, Manner, Opening, PendingCall, Reactor, Shared, Sink, Subscription, to_params,
};
use crate::reply::Reply;
use crate::wire::out::Lane;
use crate::wire::tls;

/// Opens a connection on the [shared reactor](Reactor::shared) and waits until it is open.
///
/// Takes a URL or a [`Config`]. The wait ends by itself: each dial has a limit ([`Config::connect_timeout`]), and so have their number
/// ([`Config::connect_attempts`]) and the pauses between.
///
/// # Errors
///
/// [`Error::Config`] for a setting that is wrong; otherwise how the last attempt ended, inside [`Error::Exhausted`] if there were
/// several. [`Error::OnReactor`] inside a handler of that reactor.
///
/// ```no_run
/// use zen_websocket::{Event, connect};
///
/// let (client, inbox) = connect("wss://www.example.com/ws")?;
/// for received in &inbox {
///     println!("{:?}", received.event);
///     // The first wire's Open is among the events, so this subscribes on every wire.
///     if let Event::Open = received.event {
///         client.send_on(received.generation, r#"{"op":"subscribe","args":["ticker"]}"#)?;
///     }
/// }
/// # Ok::<(), zen_websocket::Error>(())
/// ```
pub fn connect(config: impl Into<Config>) -> Result<(Client, Inbox)> {
    Reactor::shared()?.connect(config)
}

/// As [`connect`], but returns at once: the inbox tells how the connection fares, and [`Client::wait`] waits.
///
/// # Errors
///
/// [`Error::Config`] for a setting that is wrong.
pub fn open(config: impl Into<Config>) -> Result<(Client, Inbox)> {
    Reactor::shared()?.open(config)
}

/// Opens a connection whose events go to a [`Handler`](crate::Handler) or a shared inbox (`&inbox`), and waits until it is open.
///
/// A handler gets a reactor of its own, so that it delays no other connection and no other delays it; [`Reactor::connect_with`] puts
/// several on one. A shared inbox is fed by the [shared reactor](Reactor::shared). Keep the client: dropping the last one closes the
/// connection.
///
/// # Errors
///
/// As [`connect`].
///
/// # Panics
///
/// If the sink is an inbox that was not made by [`Inbox::shared`].
pub fn connect_with(config: impl Into<Config>, sink: impl Into<Sink>) -> Result<Client> {
    let (config, sink) = (config.into(), sink.into());
    sink.reactor(&config)?.connect_with(config, sink)
}

/// As [`connect_with`], but returns at once.
///
/// # Errors
///
/// [`Error::Config`] for a setting that is wrong.
///
/// # Panics
///
/// As [`connect_with`].
pub fn open_with(config: impl Into<Config>, sink: impl Into<Sink>) -> Result<Client> {
    let (config, sink) = (config.into(), sink.into());
    sink.reactor(&config)?.open_with(config, sink)
}

/// A handle to one connection: sends, waits, asks, closes.
///
/// Clones are handles to the same connection, from any thread. Dropping the last one closes it.
///
/// A send leaves on the calling thread: it takes the connection's send lock, writes the socket and returns; there is no queue between.
/// The frames of one thread keep their order.
///
/// ```no_run
/// use std::time::Duration;
/// use zen_websocket::{State, open};
///
/// // Nobody listens here: what arrives is discarded and counted.
/// let (client, _) = open("wss://www.example.com/ws")?;
/// client.wait(State::Open, Duration::from_secs(10))?;
/// client.send("hello")?;
/// client.close()?;
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[must_use = "dropping the last client closes the connection"]
#[derive(Clone)]
pub struct Client {
    guard: Arc<Guard>,
    manner: Manner,
}

/// Closes the connection when the last handle goes.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        // The code is one that may be sent.
        let _ = self.0.start_close(1000, "");
        self.0.flush_recording();
    }
}

impl Client {
    /// The id that the events of this connection carry.
    pub fn id(&self) -> ConnectionId {
        self.shared().id
    }

    /// Sends a text message, on this thread.
    ///
    /// `Ok` means that the kernel has it, or the bounded tail of bytes the kernel did not take at once; it does not mean that the peer
    /// has it. What is left of the tail when the wire ends is reported as [`Event::Unsent`](crate::Event::Unsent).
    ///
    /// # Errors
    ///
    /// Nothing of the message left whole: [`Error::NotConnected`] between wires, [`Error::Closed`] at the end, [`Error::Full`] if the
    /// peer does not take what was sent before, [`Error::Io`] if the wire broke on this very write.
    pub fn send(&self, text: &str) -> Result<Sent> {
        self.shared().send_text(self.manner, text, None)
    }

    /// Sends text messages on one wire, for bursts that are not urgent: as many as fit 16 KiB leave in one write and, encrypted, in one
    /// record. A message of another thread may leave between two of these writes, so an order never waits for the whole burst.
    ///
    /// What keeps one message from being accepted keeps those behind it, too; those before it were accepted as by [`send`](Self::send).
    /// Under [`Throttle::Wait`](crate::Throttle::Wait) each message may wait for as long as it allows.
    ///
    /// ```
    /// # use zen_websocket::{Config, connect, testkit::MockServer};
    /// # let server = MockServer::start()?;
    /// # let (client, _inbox) = connect(Config::new(server.url()))?;
    /// let cancels = ["BTC", "ETH", "SOL"].map(|coin| format!(r#"{{"op":"cancel","coin":"{coin}"}}"#));
    /// let sent = client.send_many(&cancels);
    /// if let Some(error) = sent.error {
    ///     println!("not sent from {} on: {error}", cancels[sent.accepted]);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_many<T: AsRef<str>>(&self, texts: impl IntoIterator<Item = T>) -> SentMany {
        self.shared().send_many(self.manner, texts)
    }

    /// Sends a binary message; otherwise as [`send`](Self::send).
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn send_binary(&self, bytes: &[u8]) -> Result<Sent> {
        self.shared().send_binary(self.manner, bytes, None)
    }

    /// Sends a value as JSON text; otherwise as [`send`](Self::send).
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`Error::Json`] if the value cannot be written as JSON.
    pub fn send_json<T: Serialize + ?Sized>(&self, value: &T) -> Result<Sent> {
        self.shared().send_json(self.manner, value, None)
    }

    /// Sends a text message if the wire is still the one of this generation: what was decided on the state of one wire must not leave
    /// on another.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and [`Error::Stale`] if another wire is open.
    pub fn send_on(&self, generation: Generation, text: &str) -> Result<Sent> {
        self.shared().send_text(self.manner, text, Some(generation))
    }

    /// Sends a value as JSON text if the wire is still the one of this generation; otherwise as [`send_on`](Self::send_on).
    ///
    /// # Errors
    ///
    /// As [`send_on`](Self::send_on), and [`Error::Json`] if the value cannot be written as JSON.
    pub fn send_json_on<T: Serialize + ?Sized>(&self, generation: Generation, value: &T) -> Result<Sent> {
        self.shared().send_json(self.manner, value, Some(generation))
    }

    /// Sends a binary message if the wire is still the one of this generation; otherwise as [`send_on`](Self::send_on).
    ///
    /// # Errors
    ///
    /// As [`send_on`](Self::send_on).
    pub fn send_binary_on(&self, generation: Generation, bytes: &[u8]) -> Result<Sent> {
        self.shared().send_binary(self.manner, bytes, Some(generation))
    }

    /// Sends a ping now, besides those of the heartbeat; its round trip appears in [`heartbeat`](Self::heartbeat) and
    /// [`latency`](Self::latency). Nothing is concluded if its pong stays away.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn ping(&self) -> Result<Sent> {
        self.shared().ping(self.manner)
    }

    /// The same connection by a handle whose messages and calls go in the urgent lane: they do not wait behind others for the rate limit,
    /// and may use the part of it that is [reserved](crate::RateLimit::reserved). For cancels and what else must not queue.
    ///
    /// ```no_run
    /// # use zen_websocket::{Config, JsonRpc, Reply, connect};
    /// # let (client, inbox) = connect(Config::new("wss://www.example.com/ws").dialect(JsonRpc::default()))?;
    /// let cancels = client.urgent();
    /// let reply: serde_json::Value = cancels.call("private/cancel_all", ())?;
    /// # Ok::<(), zen_websocket::Error>(())
    /// ```
    pub fn urgent(&self) -> Self {
        Self { guard: self.guard.clone(), manner: Manner { lane: Lane::Urgent, ..self.manner } }
    }

    /// The same connection by a handle whose calls have this limit, a year at most, instead of [`Config::call_timeout`].
    pub fn with_call_timeout(&self, limit: Duration) -> Self {
        Self { guard: self.guard.clone(), manner: Manner { call_timeout: Some(limit.min(YEAR)), ..self.manner } }
    }

    /// Calls a method of the venue's and waits for the result, which is read as `T`. One limit holds for everything
    /// ([`Config::call_timeout`]), waiting for the rate limit included.
    ///
    /// Under [`Overflow::Block`](crate::Overflow::Block) somebody else must empty the inbox meanwhile: a full one keeps the reply from
    /// being read.
    ///
    /// `params` is whatever serializes to a JSON array or object; `()` for none. [`rpc!`](crate::rpc) declares methods once.
    ///
    /// # Errors
    ///
    /// As [`start_call`](Self::start_call), then as [`PendingCall::wait`], and [`Error::Reply`] if the result is not of the shape of
    /// `T`. [`Error::may_have_been_sent`] says whether the venue may have acted on it. [`Error::OnReactor`] on the thread that would have
    /// to receive the reply; nothing is sent then.
    ///
    /// ```no_run
    /// # use serde_json::{Value, json};
    /// # use zen_websocket::{Config, JsonRpc, connect};
    /// let (client, inbox) = connect(Config::new("wss://www.example.com/ws").dialect(JsonRpc::default()))?;
    /// let ticker: Value = client.call("public/ticker", json!({ "instrument_name": "BTC-PERPETUAL" }))?;
    /// # Ok::<(), zen_websocket::Error>(())
    /// ```
    pub fn call<T: DeserializeOwned>(&self, method: &str, params: impl Serialize) -> Result<T> {
        self.shared().check_thread()?;
        self.start_call(method, params)?.wait()?.result()
    }

    /// Starts a call and returns at once; the [`PendingCall`] gives the reply.
    ///
    /// # Errors
    ///
    /// Nothing was sent: as [`send`](Self::send), [`Error::TooManyCalls`], [`Error::Throttled`] or [`Error::QueueFull`] if the rate limit
    /// says so, [`Error::Json`] if the parameters cannot be written as JSON, [`Error::Config`] if the dialect has no calls or not with
    /// such parameters.
    pub fn start_call(&self, method: &str, params: impl Serialize) -> Result<PendingCall> {
        self.shared().start_call(self.manner, method, to_params(&params)?.as_deref())
    }

    /// Makes several calls in one message and waits for all replies, each by itself, in the order of the calls.
    ///
    /// # Errors
    ///
    /// As [`start_call`](Self::start_call), and [`Error::Config`] if the dialect has no batches or there are no calls: nothing was sent.
    /// What becomes of each call is in the list.
    pub fn call_batch<P: Serialize>(&self, calls: impl IntoIterator<Item = (impl AsRef<str>, P)>) -> Result<Vec<Result<Reply>>> {
        self.shared().check_thread()?;
        let calls: Vec<_> = calls.into_iter().map(|(method, params)| Ok((method, to_params(&params)?))).collect::<Result<_>>()?;
        let calls: Vec<_> = calls.iter().map(|(method, params)| (method.as_ref(), params.clone())).collect();
        let started = self.shared().start_batch(self.manner, &calls)?;
        Ok(started.into_iter().map(PendingCall::wait).collect())
    }

    /// Sends a message of the dialect's to which no reply comes.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), [`Error::Json`] and [`Error::Config`] as [`start_call`](Self::start_call).
    pub fn notify(&self, method: &str, params: impl Serialize) -> Result<Sent> {
        self.shared().notify(self.manner, method, to_params(&params)?.as_deref())
    }

    /// Sends a text that carries an `"id"` at its top level, an integer or a string, and waits for the message that carries the same.
    /// Works with every dialect, [`Plain`](crate::Plain) included.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), [`Error::Duplicate`] if a call with this id waits, [`Error::Config`] if the text has none.
    pub fn request_raw(&self, text: &str) -> Result<Reply> {
        self.shared().check_thread()?;
        self.start_request_raw(text)?.wait()
    }

    /// As [`request_raw`](Self::request_raw), but returns at once; the [`PendingCall`] gives the reply.
    ///
    /// # Errors
    ///
    /// As [`start_call`](Self::start_call), [`Error::Duplicate`] if a call with this id waits, [`Error::Config`] if the text has none.
    pub fn start_request_raw(&self, text: &str) -> Result<PendingCall> {
        self.shared().start_raw(self.manner, text)
    }

    /// Answers a request of the venue's ([`Event::Request`](crate::Event::Request)) with a result or an error.
    ///
    /// # Errors
    ///
    /// As [`notify`](Self::notify).
    pub fn respond(&self, id: &Id, outcome: Result<impl Serialize, Rejection>) -> Result<Sent> {
        self.shared().respond(self.manner, id, outcome)
    }

    /// Subscribes channels and waits until the venue has confirmed them all, [`Config::call_timeout`] at most. They stay subscribed,
    /// across losses, until the subscription is dropped.
    ///
    /// # Errors
    ///
    /// Then nothing stays subscribed: [`Error::ChannelsRejected`] with those that the venue refused, [`Error::Timeout`],
    /// [`Error::Config`] if the dialect has no subscriptions or no channel is named, [`Error::OnReactor`], or why the connection has
    /// closed. [`start_subscribe`](Self::start_subscribe) keeps what was accepted.
    ///
    /// ```no_run
    /// # use zen_websocket::{Config, JsonRpc, connect};
    /// let (client, inbox) = connect(Config::new("wss://www.example.com/ws").dialect(JsonRpc::default()))?;
    /// let books = client.subscribe(["book.BTC-PERPETUAL.raw", "book.ETH-PERPETUAL.raw"])?;
    /// for received in &inbox {
    ///     println!("{:?}", received.event);
    /// }
    /// drop(books);
    /// # Ok::<(), zen_websocket::Error>(())
    /// ```
    pub fn subscribe(&self, channels: impl Into<Channels>) -> Result<Subscription> {
        self.shared().check_thread()?;
        let subscription = self.start_subscribe(channels)?;
        subscription.wait(self.manner.call_timeout.unwrap_or(self.shared().config.settings.call_timeout))?;
        Ok(subscription)
    }

    /// Subscribes channels without waiting for the venue; the [`Subscription`] tells how they fare, and waits.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the dialect has no subscriptions or no channel is named; [`Error::Closed`].
    pub fn start_subscribe(&self, channels: impl Into<Channels>) -> Result<Subscription> {
        self.shared().subscribe(channels.into())
    }

    /// How far the rate limits are used up.
    pub fn rate_status(&self) -> RateStatus {
        self.shared().rate_status()
    }

    /// Where the connection stands. A wish counts at once: after [`reconnect`](Self::reconnect) the state is not `Open` or `Live` until
    /// the new wire is.
    pub fn state(&self) -> State {
        self.shared().state()
    }

    /// Which wire is or was the latest; 0 before the first.
    pub fn generation(&self) -> Generation {
        self.shared().generation()
    }

    /// The subprotocol the server chose on the latest wire.
    pub fn subprotocol(&self) -> Option<Arc<str>> {
        self.shared().session.lock().subprotocol()
    }

    /// Waits until the connection is in this state; `Live` is good enough for who waits for `Open`. The event that tells of it may reach the inbox a moment later.
    ///
    /// A state that was passed through between two looks may be missed, as `Waiting` is by the immediate first redial; events tell of
    /// every one.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if it was not by then; why it closed ([`Error::Closed`] if this program did) if it never will be;
    /// [`Error::OnReactor`] on the thread that would have to bring it there.
    pub fn wait(&self, state: State, timeout: Duration) -> Result<()> {
        self.shared().wait(Some(timeout), |session| match session.end() {
            _ if session.state() == state || (state == State::Open && session.state().is_open()) => Some(Ok(())),
            Some(cause) => Some(Err(cause.clone().unwrap_or(Error::Closed))),
            None => None,
        })?
    }

    /// Bytes of accepted messages that the kernel has not taken yet. More than 0 means that the peer or the network is slower than this
    /// program.
    pub fn unsent(&self) -> usize {
        self.shared().unsent()
    }

    /// How the connection stands, and what was counted so far.
    ///
    /// ```
    /// # use zen_websocket::{Config, State, connect, testkit::MockServer};
    /// # let server = MockServer::start()?;
    /// let (client, _inbox) = connect(Config::new(server.url()))?;
    /// client.send("hello")?;
    /// let metrics = client.metrics();
    /// assert_eq!((metrics.state, metrics.messages_out, metrics.redials), (State::Live, 1, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn metrics(&self) -> Metrics {
        self.shared().metrics()
    }

    /// How the heartbeat fares: what is unanswered, what was missed, and the last proof that the peer lives.
    pub fn heartbeat(&self) -> HeartbeatStatus {
        self.shared().heartbeat()
    }

    /// How long calls and pings take, and what else the config has [measured](Config::kernel_stamps). Asking takes some microseconds of
    /// the caller's and holds up neither the reactor nor a sender.
    pub fn latency(&self) -> Latencies {
        self.shared().latency()
    }

    /// Waits until what was [recorded](Config::record_to) so far is in the file, 2 s at most; returns whether it is. Closing does so, too.
    /// `false` at once if nothing is recorded, if the file cannot be written, and on a thread that turns a reactor.
    ///
    /// ```
    /// # use zen_websocket::{Config, Recording, connect, testkit::MockServer};
    /// # let server = MockServer::start()?;
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("feed.jsonl");
    /// let (client, _inbox) = connect(Config::new(server.url()).record_to(&path))?;
    /// client.send("hello")?;
    /// assert!(client.flush_recording());
    /// assert!(Recording::open(&path)?.metadata()?.outbound > 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn flush_recording(&self) -> bool {
        self.shared().flush_recording()
    }

    /// Closes with code 1000 and waits until the connection has ended: for the close handshake if a wire is open
    /// ([`Config::close_timeout`] at most), otherwise hardly at all. Closing twice is fine. On a [`Driver`] somebody has to go on
    /// turning meanwhile. Behind a full inbox that blocks, the peer's answer is not read, and the limit runs out.
    ///
    /// # Errors
    ///
    /// [`Error::OnReactor`] on the thread that would have to close it; there the close has begun all the same.
    pub fn close(&self) -> Result<()> {
        self.close_with(1000, "")
    }

    /// As [`close`](Self::close), with a code and a reason for the peer.
    ///
    /// # Errors
    ///
    /// As [`close`](Self::close), and [`Error::Config`] for a code that an endpoint may not send (RFC 6455 §7.4) or a reason longer
    /// than 123 bytes; nothing is closed then.
    pub fn close_with(&self, code: u16, reason: &str) -> Result<()> {
        self.start_close(code, reason)?;
        self.shared().wait(None, |session| session.end().map(|_| ()))?;
        self.shared().finish_recording();
        Ok(())
    }

    /// As [`close_with`](Self::close_with), but returns at once. Until the reactor has taken it up, a moment later, sends still leave.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] as [`close_with`](Self::close_with).
    pub fn start_close(&self, code: u16, reason: &str) -> Result<()> {
        self.shared().start_close(code, reason)
    }

    /// Replaces the wire: drops the open one, or ends the pause before the next dial. Config and handles stay as they are; nothing that
    /// was not sent yet is sent on the new wire. Until the reactor has taken it up, a moment later, sends still leave on the old one.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the connection has ended; [`connect`] again with the same config then.
    pub fn reconnect(&self) -> Result<()> {
        self.shared().reconnect()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.guard.0
    }

    fn wait_first(self) -> Result<Self> {
        self.shared().wait(None, |session| match session.end() {
            _ if session.was_open() => Some(Ok(())),
            Some(cause) => Some(Err(cause.clone().unwrap_or(Error::Closed))),
            None => None,
        })??;
        Ok(self)
    }
}

impl Reactor {
    /// As the free function [`connect`], on this reactor.
    ///
    /// # Errors
    ///
    /// As [`connect`], and [`Error::Stopped`].
    pub fn connect(&self, config: impl Into<Config>) -> Result<(Client, Inbox)> {
        self.check_thread()?;
        let (client, inbox) = self.open(config)?;
        Ok((client.wait_first()?, inbox))
    }

    /// As the free function [`open`], on this reactor.
    ///
    /// # Errors
    ///
    /// As [`open`], and [`Error::Stopped`].
    pub fn open(&self, config: impl Into<Config>) -> Result<(Client, Inbox)> {
        let config = config.into();
        let (feed, inbox) = Inbox::pair(config.settings.inbox_capacity);
        let client = self.open_with(config, Sink(Kind::Feed(feed)))?;
        Ok((client, inbox))
    }

    /// As the free function [`connect_with`], on this reactor.
    ///
    /// # Errors
    ///
    /// As [`connect_with`], and [`Error::Stopped`].
    ///
    /// # Panics
    ///
    /// As [`connect_with`].
    pub fn connect_with(&self, config: impl Into<Config>, sink: impl Into<Sink>) -> Result<Client> {
        self.check_thread()?;
        self.open_with(config, sink)?.wait_first()
    }

    /// As the free function [`open_with`], on this reactor.
    ///
    /// # Errors
    ///
    /// As [`open_with`], and [`Error::Stopped`].
    ///
    /// # Panics
    ///
    /// As [`connect_with`].
    pub fn open_with(&self, config: impl Into<Config>, sink: impl Into<Sink>) -> Result<Client> {
        start(self.mailbox(), config.into(), sink.into())
    }

    fn check_thread(&self) -> Result<()> {
        if self.mailbox().is_turned_here() { Err(Error::OnReactor) } else { Ok(()) }
    }
}

impl Driver {
    /// Opens a connection whose events go to the closure of [`turn_with`](Self::turn_with). Returns at once; the turns do the rest.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a setting that is wrong.
    pub fn open(&self, config: impl Into<Config>) -> Result<Client> {
        start(&self.mailbox, config.into(), Sink(Kind::Engine))
    }

    /// Opens a connection whose events go to a [`Handler`](crate::Handler) or a shared inbox (`&inbox`).
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a setting that is wrong.
    ///
    /// # Panics
    ///
    /// As [`connect_with`].
    pub fn open_with(&self, config: impl Into<Config>, sink: impl Into<Sink>) -> Result<Client> {
        start(&self.mailbox, config.into(), sink.into())
    }
}

impl Sink {
    /// Where the free functions open a connection with this sink. No thread is started for a config that is wrong.
    fn reactor(&self, config: &Config) -> Result<Reactor> {
        match self.0 {
            Kind::Handler(_) => config.validate().and_then(|()| Reactor::builder().start()),
            Kind::Feed(_) | Kind::Intake(_) | Kind::Engine => Reactor::shared(),
        }
    }
}

fn start(mailbox: &Arc<Mailbox>, config: Config, sink: Sink) -> Result<Client> {
    let target = config.target()?;
    let tls = if target.tls { Some(tls::client_config(&config.settings.trust)?) } else { None };
    if let Some(feeders) = sink.0.feeders() {
        feeders.add(mailbox);
    }
    let now = Instant::now();
    let governor = Governor::new(&config.settings.rate_limits, now)?;
    let dial_limit =
        config.settings.dial_limit.as_deref().cloned().map(|limit| limit.or_shared(|| format!("dials to {}", target.host)));
    let dial_limit = Governor::new(dial_limit.as_slice(), now)?;
    let config = Arc::new(config);
    let shared = Shared::new(ConnectionId::next(), config.clone(), governor, mailbox.clone(), sink.0.depth());
    log::debug!(target: CONNECTION, "{}: {target}", shared.id);
    mailbox.open(Opening { shared: shared.clone(), config, tls, sink: sink.0, dial_limit })?;
    Ok(Client { guard: Arc::new(Guard(shared)), manner: Manner::NORMAL })
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("id", &self.id()).field("state", &self.state()).finish_non_exhaustive()
    }
}
