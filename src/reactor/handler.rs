//! Code of the user's that runs where events are read.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::Serialize;

use crate::dialect::Id;
use crate::error::{Rejection, Result};
use crate::event::{ConnectionId, Event, EventRef, Generation, Sent, State};
use crate::metrics::{Metrics, SentMany};
use crate::reactor::calls::{PendingCall, to_params};
use crate::reactor::shared::{Manner, Shared};
use crate::reactor::subscription::{Channels, Subscription};
use crate::wire::assembler;
use crate::wire::out::Lane;

/// Functions that run on the reactor thread, one per kind of event. Messages are borrowed from the buffer they were read into; nothing
/// is allocated or handed over.
///
/// While a handler runs, its reactor serves no other connection, so it must not block; the calls that would wait for the reactor answer
/// [`Error::OnReactor`](crate::Error::OnReactor). Kinds without a function are discarded. A panic closes the connection with
/// [`Error::Panicked`](crate::Error::Panicked) and leaves others alone.
///
/// ```no_run
/// use zen_websocket::{Config, Event, Handler, connect_with};
///
/// let handler = Handler::new()
///     .text(|context, text| {
///         if text.contains("ping?")
///             && let Err(error) = context.send("pong!")
///         {
///             eprintln!("not sent: {error}");
///         }
///     })
///     .state(|context, event| println!("{}: {event:?}", context.connection));
/// let client = connect_with(Config::new("wss://www.example.com/ws"), handler)?;
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[must_use]
#[derive(Default)]
pub struct Handler {
    text: Option<TextFn>,
    binary: Option<BinaryFn>,
    state: Option<StateFn>,
    drained: Option<DrainedFn>,
}

type TextFn = Box<dyn FnMut(&Context<'_>, &str) + Send>;
type BinaryFn = Box<dyn FnMut(&Context<'_>, &[u8]) + Send>;
type StateFn = Box<dyn FnMut(&Context<'_>, &Event) + Send>;
type DrainedFn = Box<dyn FnMut(&Context<'_>) + Send>;

/// Where an event came from, and the sending half of its connection.
///
/// A send leaves at once, on this thread, and on the wire that the event came from or not at all: only this thread replaces wires.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Which connection.
    pub connection: ConnectionId,
    /// Which wire of it.
    pub generation: Generation,
    /// When the bytes were read; see [`Received::at`](crate::Received::at).
    pub at: Instant,
    /// When the kernel took the latest of these bytes from the network, by the system's clock; see
    /// [`Config::kernel_stamps`](crate::Config::kernel_stamps).
    pub kernel_at: Option<SystemTime>,
    pub(crate) shared: &'a Arc<Shared>,
    /// What was read with the message and comes after it.
    pub(crate) rest: &'a [u8],
    /// Another part of the same text comes after it.
    pub(crate) is_followed: bool,
    pub(crate) manner: Manner,
}

impl Handler {
    /// A handler that discards everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs for each text message.
    pub fn text(mut self, run: impl FnMut(&Context<'_>, &str) + Send + 'static) -> Self {
        self.text = Some(Box::new(run));
        self
    }

    /// Runs for each binary message.
    pub fn binary(mut self, run: impl FnMut(&Context<'_>, &[u8]) + Send + 'static) -> Self {
        self.binary = Some(Box::new(run));
        self
    }

    /// Runs for each event that is not a message.
    pub fn state(mut self, run: impl FnMut(&Context<'_>, &Event) + Send + 'static) -> Self {
        self.state = Some(Box::new(run));
        self
    }

    /// Runs when all messages of a read have been handled, if there were any: for strategies that act once on many updates. With a dialect
    /// they may all have been replies. It does not run if the connection itself ended the wire in between; `Lost` follows then.
    pub fn drained(mut self, run: impl FnMut(&Context<'_>) + Send + 'static) -> Self {
        self.drained = Some(Box::new(run));
        self
    }

    pub(crate) fn handle_drained(&mut self, context: &Context<'_>) {
        if let Some(run) = &mut self.drained {
            run(context);
        }
    }

    pub(crate) fn handle(&mut self, context: &Context<'_>, event: EventRef<'_>) {
        match event {
            EventRef::Text(text) => {
                if let Some(run) = &mut self.text {
                    run(context, text);
                }
            }
            EventRef::Binary(bytes) => {
                if let Some(run) = &mut self.binary {
                    run(context, bytes);
                }
            }
            EventRef::State(event) => {
                if let Some(run) = &mut self.state {
                    run(context, event);
                }
            }
        }
    }
}

impl<'a> Context<'a> {
    pub(crate) fn new(shared: &'a Arc<Shared>, generation: Generation, at: Instant) -> Self {
        Self {
            connection: shared.id,
            generation,
            at,
            kernel_at: None,
            shared,
            rest: &[],
            is_followed: false,
            manner: Manner::NORMAL,
        }
    }

    /// Whether a further message of the same read follows at once, so that a strategy can leave acting to the last. Costs a look at a
    /// few bytes.
    ///
    /// With a dialect that reads messages, what follows may turn out to be a reply, or data for the inbox of a subscription, and not come
    /// here; [`Handler::drained`] tells exactly. If the bytes that follow break the protocol, the wire's end follows instead.
    pub fn more(&self) -> bool {
        self.is_followed || assembler::holds_message(self.rest)
    }

    /// The same with sends and calls in the urgent lane; see [`Client::urgent`](crate::Client::urgent).
    pub fn urgent(&self) -> Self {
        Self { manner: Manner { lane: Lane::Urgent, ..self.manner }, ..*self }
    }

    /// Starts a call; see [`Client::start_call`](crate::Client::start_call). Its reply cannot be waited for in here.
    ///
    /// # Errors
    ///
    /// As [`Client::start_call`](crate::Client::start_call).
    pub fn start_call(&self, method: &str, params: impl Serialize) -> Result<PendingCall> {
        self.shared.start_call(self.manner, method, to_params(&params)?.as_deref())
    }

    /// Starts a call by a text with an `"id"`; see [`Client::start_request_raw`](crate::Client::start_request_raw).
    ///
    /// # Errors
    ///
    /// As [`Client::start_request_raw`](crate::Client::start_request_raw).
    pub fn start_request_raw(&self, text: &str) -> Result<PendingCall> {
        self.shared.start_raw(self.manner, text)
    }

    /// Sends a notification; see [`Client::notify`](crate::Client::notify).
    ///
    /// # Errors
    ///
    /// As [`Client::notify`](crate::Client::notify).
    pub fn notify(&self, method: &str, params: impl Serialize) -> Result<Sent> {
        self.shared.notify(self.manner, method, to_params(&params)?.as_deref())
    }

    /// Answers a request of the venue's; see [`Client::respond`](crate::Client::respond).
    ///
    /// # Errors
    ///
    /// As [`Client::respond`](crate::Client::respond).
    pub fn respond(&self, id: &Id, outcome: Result<impl Serialize, Rejection>) -> Result<Sent> {
        self.shared.respond(self.manner, id, outcome)
    }

    /// Subscribes channels; see [`Client::start_subscribe`](crate::Client::start_subscribe).
    ///
    /// # Errors
    ///
    /// As [`Client::start_subscribe`](crate::Client::start_subscribe).
    pub fn start_subscribe(&self, channels: impl Into<Channels>) -> Result<Subscription> {
        self.shared.subscribe(channels.into())
    }

    /// Sends a text message; see [`Client::send`](crate::Client::send).
    ///
    /// # Errors
    ///
    /// As [`Client::send`](crate::Client::send).
    pub fn send(&self, text: &str) -> Result<Sent> {
        self.shared.send_text(self.manner, text, None)
    }

    /// Sends a value as JSON text.
    ///
    /// # Errors
    ///
    /// As [`Client::send_json`](crate::Client::send_json).
    pub fn send_json<T: Serialize + ?Sized>(&self, value: &T) -> Result<Sent> {
        self.shared.send_json(self.manner, value, None)
    }

    /// Sends text messages in as few writes as possible; see [`Client::send_many`](crate::Client::send_many).
    pub fn send_many<T: AsRef<str>>(&self, texts: impl IntoIterator<Item = T>) -> SentMany {
        self.shared.send_many(self.manner, texts)
    }

    /// Sends a binary message.
    ///
    /// # Errors
    ///
    /// As [`Client::send`](crate::Client::send).
    pub fn send_binary(&self, bytes: &[u8]) -> Result<Sent> {
        self.shared.send_binary(self.manner, bytes, None)
    }

    /// Sends a ping now; see [`Client::ping`](crate::Client::ping).
    ///
    /// # Errors
    ///
    /// As [`Client::send`](crate::Client::send).
    pub fn ping(&self) -> Result<Sent> {
        self.shared.ping(self.manner)
    }

    /// Bytes of accepted messages that the kernel has not taken yet; see [`Client::unsent`](crate::Client::unsent).
    pub fn unsent(&self) -> usize {
        self.shared.unsent()
    }

    /// What was counted so far.
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics()
    }

    /// Begins to close the connection; takes effect after the messages read together with this one.
    ///
    /// # Errors
    ///
    /// As [`Client::start_close`](crate::Client::start_close).
    pub fn start_close(&self, code: u16, reason: &str) -> Result<()> {
        self.shared.start_close(code, reason)
    }

    /// Replaces the wire; takes effect after the messages read together with this one.
    ///
    /// # Errors
    ///
    /// As [`Client::reconnect`](crate::Client::reconnect).
    pub fn reconnect(&self) -> Result<()> {
        self.shared.reconnect()
    }

    /// Where the connection stands.
    pub fn state(&self) -> State {
        self.shared.state()
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("text", &self.text.is_some())
            .field("binary", &self.binary.is_some())
            .field("state", &self.state.is_some())
            .field("drained", &self.drained.is_some())
            .finish()
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("connection", &self.connection)
            .field("generation", &self.generation)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
