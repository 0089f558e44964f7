//! What a connection reports, in order: its messages and its state changes.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::de::DeserializeOwned;

use crate::dialect::Id;
use crate::error::{Error, Result};

/// One event as an [`Inbox`](crate::Inbox) yields it: what happened, on which wire of which connection, and when it was read.
#[derive(Clone, Debug)]
pub struct Received {
    /// Which connection; the id of its [`Client`](crate::Client).
    pub connection: ConnectionId,
    /// Which wire of it.
    pub generation: Generation,
    /// When the bytes were read from the socket: one stamp per read, so messages that arrived together share it. For state changes,
    /// when the reactor noticed.
    pub at: Instant,
    /// When the kernel took the latest of these bytes from the network, by the system's clock; see
    /// [`Config::kernel_stamps`](crate::Config::kernel_stamps).
    pub kernel_at: Option<SystemTime>,
    /// Whether a further message of the same read follows at once, so that a consumer that only acts on the newest state can wait for it;
    /// see [`Context::more`](crate::Context::more). It follows here if one consumer takes all events of one connection and none is
    /// dropped for want of room.
    pub more: bool,
    /// What happened.
    pub event: Event,
}

/// What happened on a connection.
///
/// The order of a life is `Dialing (DialFailed Dialing)* Open (Message | Live | …)* Unsent? Lost Dialing …`, and at any point `Closed`,
/// after which nothing comes. What a venue says before a login has succeeded comes before `Open`. A wire whose connection ends with it (closed by this program, its handler panicked, its inbox overflowed, its
/// reactor stopped) ends with `Closed` alone. A full inbox gets no `Dialing`, and no `DialFailed` that another dial follows. Whatever was
/// built from messages before a `Lost` is stale after the next `Open`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A dial begins.
    Dialing {
        /// Counts the dials since the last wire that proved [stable](crate::Config::stable_after), since the first wire, or since
        /// [`Client::reconnect`](crate::Client::reconnect), from 1.
        attempt: u32,
    },
    /// A dial failed.
    DialFailed {
        /// The number of the dial.
        attempt: u32,
        /// Why.
        cause: Error,
        /// When the next dial begins; `None` if there is none, then `Closed` follows.
        redial_in: Option<Duration>,
    },
    /// A new wire is up and the dialect's login has succeeded: sends are accepted from here on, unless the config
    /// [holds](crate::Config::hold_until) them.
    Open,
    /// Every channel that is wanted is confirmed. Comes after `Open` if channels are restored, and whenever further ones were confirmed; a
    /// connection without channels is live once it is open and does not say so.
    Live,
    /// The peer sent a message.
    Message(Message),
    /// Messages are missing here.
    Gap {
        /// The channel with a hole in its sequence; `None` if the inbox was full and messages of any kind were dropped
        /// ([`Overflow::DropNewest`](crate::Overflow::DropNewest)).
        channel: Option<Arc<str>>,
        /// How many messages were dropped, or by how much the channel's numbers jump, which may count something else than messages.
        missing: u64,
    },
    /// The venue refused a channel that is wanted. It stays wanted, and is asked for again from time to time, until its subscription is
    /// dropped.
    Rejected {
        /// The channel.
        channel: Arc<str>,
        /// What the venue said.
        reason: Arc<str>,
    },
    /// No data of a channel came for longer than its subscription allows; it is subscribed anew.
    ChannelSilent {
        /// The channel.
        channel: Arc<str>,
        /// How long none came.
        quiet: Duration,
    },
    /// A reply to no call that waits: it came late, or the venue made up its id.
    Unmatched {
        /// The id.
        id: Id,
        /// The reply.
        message: Message,
    },
    /// The venue asks something; [`Client::respond`](crate::Client::respond) answers.
    Request {
        /// The id of its request.
        id: Id,
        /// The request.
        message: Message,
    },
    /// The venue tells of itself, such as that it is about to shut down.
    Notice(Message),
    /// Messages whose sending was accepted did not leave whole before the wire ended. They are not sent again.
    Unsent {
        /// How many.
        messages: usize,
        /// Bytes the kernel had not taken, with those of control frames among them.
        bytes: usize,
    },
    /// The wire is gone.
    Lost {
        /// Why.
        cause: Error,
        /// When the next dial begins; `None` if there is none, then `Closed` follows.
        redial_in: Option<Duration>,
    },
    /// The connection has ended for good.
    Closed {
        /// `None` if this program closed it.
        cause: Option<Error>,
    },
}

/// An event as a handler sees it: messages are borrowed from the buffer they were read into.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum EventRef<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// Anything but a message.
    State(&'a Event),
}

/// A message of the peer.
#[derive(Clone, PartialEq, Eq)]
pub struct Message(Payload);

#[derive(Clone, PartialEq, Eq)]
enum Payload {
    Text(Box<str>),
    Binary(Box<[u8]>),
}

/// Names a connection within the process. Ids are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(NonZeroU64);

/// Counts the wires of a connection, from 1: one more with each upgrade that succeeds, be the login on it refused. A client says 0 before
/// the first that was open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u32);

/// Where a connection stands.
///
/// ```text
///   Connecting ── upgraded, logged in ──► Open ── every wanted channel confirmed ──► Live
///   Connecting ── failed ──► Waiting ── pause over ──► Connecting
///   Live ── a further channel is wanted, or one is silent ──► Open
///   Open or Live ── lost ──► Connecting (at once) or Waiting
///   Open or Live ── closed by this program ──► Closing ── answered, lost or timed out ──► Closed
///   any ── closed without a wire, no attempts left, or a fatal first failure ──► Closed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// A dial is under way, the dialect's login included.
    Connecting,
    /// A wire is up and logged in, and channels are wanted that are not confirmed.
    Open,
    /// As `Open`, and every channel that is wanted is confirmed, be it none.
    Live,
    /// A wire was lost or a dial failed; the next dial is scheduled.
    Waiting,
    /// A close was asked for; if a wire is open, the peer's answer is awaited.
    Closing,
    /// Ended for good.
    Closed,
}

/// Where a channel stands that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It is to be asked for: there is no wire, no login has succeeded yet, or its turn has not come.
    Wanted,
    /// The venue was asked and has not answered.
    Pending,
    /// The venue sends it.
    Confirmed,
    /// The venue refused it, for this reason. It is asked for again from time to time.
    Rejected(Arc<str>),
}

/// How far a message that was accepted has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sent {
    /// The kernel took every byte.
    Written,
    /// Some bytes wait for the kernel to take them; if the wire ends before, the message is counted in [`Event::Unsent`].
    Buffered,
    /// The message waits for the rate limit, under [`Throttle::Queue`](crate::Throttle::Queue); if the wire ends before, it is counted
    /// in [`Event::Unsent`].
    Queued,
}

impl State {
    /// Whether a wire is up and logged in: [`Open`](Self::Open) or [`Live`](Self::Live).
    pub fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Live)
    }
}

impl Message {
    pub(crate) fn from_text(text: &str) -> Self {
        Self(Payload::Text(text.into()))
    }

    pub(crate) fn from_binary(bytes: &[u8]) -> Self {
        Self(Payload::Binary(bytes.into()))
    }

    /// The text, if this is a text message.
    pub fn text(&self) -> Option<&str> {
        match &self.0 {
            Payload::Text(text) => Some(text),
            Payload::Binary(_) => None,
        }
    }

    /// The payload, of a text as of a binary message.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Payload::Text(text) => text.as_bytes(),
            Payload::Binary(bytes) => bytes,
        }
    }

    /// Reads the payload as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] if it is not JSON or not of this shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.bytes()).map_err(|error| Error::Json(Arc::new(error)))
    }

    /// The payload without copying it.
    pub fn into_bytes(self) -> Vec<u8> {
        match self.0 {
            Payload::Text(text) => text.into_string().into_bytes(),
            Payload::Binary(bytes) => bytes.into_vec(),
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Payload::Text(text) => write!(f, "Text({text:?})"),
            Payload::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

impl ConnectionId {
    pub(crate) fn next() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NonZeroU64::new(NEXT.fetch_add(1, Ordering::Relaxed)).expect("2^64 connections are not reached"))
    }

    /// The id as a number, as recordings and logs have it.
    pub fn number(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}", self.0)
    }
}

impl Generation {
    /// The wire of this number.
    pub(crate) fn new(number: u32) -> Self {
        Self(number)
    }

    /// The wire after this one.
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The count as a number.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wire {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_gives_text_bytes_and_json() {
        let message = Message::from_text("[1,2]");
        assert_eq!(message.text(), Some("[1,2]"));
        assert_eq!(message.bytes(), b"[1,2]");
        assert_eq!(message.json::<Vec<u8>>().unwrap(), [1, 2]);
        assert!(matches!(message.json::<String>(), Err(Error::Json(_))));
        assert_eq!(Message::from_binary(b"\0").text(), None);
        assert_eq!(message.into_bytes(), b"[1,2]");
    }

    #[test]
    fn an_event_in_the_inbox_is_small() {
        assert!(size_of::<Received>() <= 112, "{}", size_of::<Received>());
    }
}
