//! A venue's message language: what its texts mean, and how to say things in it.

mod id;
mod jsonrpc;
pub mod peek;
mod plain;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

pub use self::id::Id;
pub use self::jsonrpc::JsonRpc;
pub use self::plain::Plain;
use crate::error::{Error, Rejection, Result};

/// A venue's message language: strings in, verdicts out.
///
/// A dialect holds no state of a connection: one value serves any number of them, from several threads at once, and every method takes
/// `&self`. What a venue's protocol remembers (which requests wait, which channels are confirmed, how far a login is) the connection
/// remembers for it; the time of day and random numbers come in as arguments. No lock is held while a dialect runs. It runs on the
/// reactor thread, so it must not block; a panic in it closes the connection with [`Error::Panicked`](crate::Error::Panicked).
///
/// # Writing one
///
/// [`classify`](Self::classify) is all that must be written; every other method has a default for venues that lack the feature. In the
/// order in which they pay off:
///
/// 1. `classify` names data by its channel and replies by the id of their request. With that, [`Inbound::Message`] for all the rest is a
///    dialect already: calls by [`Client::request_raw`](crate::Client::request_raw) find their replies.
/// 2. [`subscribe`](Self::subscribe), [`unsubscribe`](Self::unsubscribe) and [`confirm`](Self::confirm) make
///    [`Client::subscribe`](crate::Client::subscribe) work: channels are confirmed, restored after a loss, and refused ones are named.
/// 3. [`login`](Self::login) runs on every new wire before anything else leaves.
/// 4. [`request`](Self::request), [`check`](Self::check) and [`result`](Self::result) make [`Client::call`](crate::Client::call) work.
/// 5. [`ping`](Self::ping) with [`Inbound::Pong`], and [`Inbound::Probe`], for venues with heartbeats of their own;
///    [`sequence`](Self::sequence) for those that number their data; [`cost`](Self::cost) for those that weigh messages.
///
/// This venue wants a login with the time of day and takes ten channels a message, which it confirms one by one, without ids:
///
/// ```
/// use std::time::Duration;
///
/// use zen_websocket::testkit::{MockServer, Script};
/// use zen_websocket::{Client, Config, Event, Sent, connect};
/// use zen_websocket::{Confirmation, Dialect, Error, Id, Inbound, Login, LoginStep, Request, Result, Secret, Subscribe, peek};
///
/// struct Venue {
///     key: Secret,
/// }
///
/// /// The reply to a login has no id; this stands for it.
/// const LOGIN: &str = "login";
///
/// impl Dialect for Venue {
///     fn name(&self) -> &str {
///         "venue"
///     }
///
///     fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
///         // {"channel":"ticker.BTC","data":…}: decided by the first key, however long the rest is.
///         let Some((key, value)) = peek::keys(text).next() else { return Inbound::Message };
///         match (key, peek::string(value)) {
///             ("channel", Some(channel)) => Inbound::Data { channel },
///             ("event", Some(event)) => match &*event {
///                 "subscribe" => Inbound::Confirmation,
///                 "login" => Inbound::Reply { id: LOGIN.into() },
///                 _ => Inbound::Message,
///             },
///             _ => Inbound::Message,
///         }
///     }
///
///     fn login(&self, step: &LoginStep<'_>) -> Login {
///         let Some(reply) = step.reply else {
///             let (key, time) = (self.key.expose(), step.unix.as_secs());
///             let text = format!(r#"{{"op":"login","key":"{key}","time":{time}}}"#);
///             return Login::Send(Request { text, id: LOGIN.into() });
///         };
///         match peek::field(reply, "code") {
///             Some("0") => Login::Done { refresh_after: Some(Duration::from_secs(720)), token: None },
///             code => Login::Refused { reason: format!("code {code:?}"), fatal: true },
///         }
///     }
///
///     fn subscribe(&self, _: u64, channels: &[&str]) -> Result<Subscribe> {
///         let some = &channels[..channels.len().min(10)];
///         Ok(Subscribe { text: format!(r#"{{"op":"subscribe","args":{some:?}}}"#), id: None, channels: some.len() })
///     }
///
///     fn unsubscribe(&self, _: u64, channels: &[&str]) -> Result<Subscribe> {
///         let some = &channels[..channels.len().min(10)];
///         Ok(Subscribe { text: format!(r#"{{"op":"unsubscribe","args":{some:?}}}"#), id: None, channels: some.len() })
///     }
///
///     fn confirm(&self, reply: &str, _: &[&str]) -> Confirmation {
///         let text = |key| peek::field(reply, key).and_then(peek::string).map(String::from);
///         match (text("arg"), text("error")) {
///             (Some(channel), None) => Confirmation { accepted: vec![channel], ..Confirmation::default() },
///             (Some(channel), Some(error)) => Confirmation { rejected: vec![(channel, error)], ..Confirmation::default() },
///             (None, _) => Confirmation::default(),
///         }
///     }
/// }
///
/// let venue = MockServer::builder()
///     .script(Script::new().on_text(|peer, text| {
///         if text.contains("login") {
///             peer.send_text(r#"{"event":"login","code":0}"#);
///         } else {
///             peer.send_text(r#"{"event":"subscribe","arg":"ticker.BTC"}"#);
///             peer.send_text(r#"{"channel":"ticker.BTC","data":1}"#);
///         }
///     }))
///     .start()?;
/// let (client, inbox) = connect(Config::new(venue.url()).dialect(Venue { key: Secret::new("4711") }))?;
/// let ticker = client.subscribe(["ticker.BTC"])?;
/// assert!(ticker.is_confirmed());
/// let is_data = |event: &Event| matches!(event, Event::Message(message) if message.text().is_some_and(|text| text.contains("data")));
/// assert!(inbox.iter().any(|received| is_data(&received.event)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Dialect: Send + Sync {
    /// The name, for `Debug` and logs.
    fn name(&self) -> &str;

    /// Whether inbound texts are classified though no call waits for its reply. A dialect that says no gets no subscriptions, no login
    /// and no heartbeat, and costs nothing per message.
    fn reads(&self) -> bool {
        true
    }

    /// Says what an inbound text is. It sees every text, so it should decide by the front of the text where it can
    /// ([`peek`](crate::peek) helps), and must not assume that the text is well-formed.
    fn classify<'a>(&self, text: &'a str) -> Inbound<'a>;

    /// Makes a request with a reply. `number` is unique within the connection; `params` is JSON, or `None` if the caller gave none.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if this venue has no requests, or not with such parameters. By default it has none.
    fn request(&self, number: u64, method: &str, params: Option<&str>) -> Result<Request> {
        let _ = (number, method, params);
        Err(lacks(self.name(), "calls"))
    }

    /// Makes a message to which no reply comes.
    ///
    /// # Errors
    ///
    /// As [`request`](Self::request).
    fn notification(&self, method: &str, params: Option<&str>) -> Result<String> {
        let _ = (method, params);
        Err(lacks(self.name(), "notifications"))
    }

    /// Puts several requests into one message.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if this venue has no batches. By default it has none.
    fn batch(&self, requests: &[String]) -> Result<String> {
        let _ = requests;
        Err(lacks(self.name(), "batches"))
    }

    /// Takes a text classified as [`Inbound::Batch`] apart; each part is classified by itself. One that cannot be taken apart gives
    /// itself. Of more than 1,024 parts none is looked at: the text is delivered as it is.
    fn split<'a>(&self, text: &'a str) -> Vec<&'a str> {
        vec![text]
    }

    /// Makes the answer to a request of the venue's: a result as JSON, or an error.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if this venue sends no requests. By default it does not.
    fn response(&self, id: &Id, outcome: Result<&str, &Rejection>) -> Result<String> {
        let _ = (id, outcome);
        Err(lacks(self.name(), "requests to clients"))
    }

    /// Looks whether a reply tells of success. Runs once for every reply, on the reactor thread; the result itself is read later, on the
    /// thread that wants it.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`] if the venue refused the request, [`Error::Reply`] if the text is no proper reply.
    fn check(&self, reply: &str) -> Result<()> {
        let _ = reply;
        Ok(())
    }

    /// The part of a successful reply that is the result, as JSON. By default all of it.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] if there is none.
    fn result<'a>(&self, reply: &'a str) -> Result<&'a str> {
        Ok(reply)
    }

    /// Makes a request to subscribe to the first of `channels`, as many as the venue takes in one message.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if this venue has no subscriptions, or no such channel. By default it has none.
    fn subscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        let _ = (number, channels);
        Err(lacks(self.name(), "subscriptions"))
    }

    /// Makes a request to unsubscribe from the first of `channels`, as many as the venue takes in one message.
    ///
    /// # Errors
    ///
    /// As [`subscribe`](Self::subscribe).
    fn unsubscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        let _ = (number, channels);
        Err(lacks(self.name(), "subscriptions"))
    }

    /// Reads which channels a venue has accepted and refused: from the reply to a request to subscribe to `channels`, or from a text
    /// classified as [`Inbound::Confirmation`]; then `channels` is empty. Channels of the request that are named in neither list are
    /// awaited further.
    fn confirm(&self, reply: &str, channels: &[&str]) -> Confirmation {
        let _ = (reply, channels);
        Confirmation::default()
    }

    /// The place of a data message in the sequence of its channel, for venues that number them. By default none is read.
    fn sequence(&self, channel: &str, text: &str) -> Option<Sequence> {
        let _ = (channel, text);
        None
    }

    /// One step of a login, the first with no reply. Runs on every new wire before anything else is sent, and again whenever a login
    /// asked to be refreshed. By default there is none to be done.
    fn login(&self, step: &LoginStep<'_>) -> Login {
        let _ = step;
        Login::Done { refresh_after: None, token: None }
    }

    /// The venue's own heartbeat text, for venues that want one in place of a ping frame; its answer is to be classified as
    /// [`Inbound::Pong`]. `number` is another one each time. By default ping frames are sent.
    fn ping(&self, number: u64) -> Option<String> {
        let _ = number;
        None
    }

    /// What a message counts for in rate limits that have no cost function of their own. By default 1.
    fn cost(&self, text: &str) -> u32 {
        let _ = text;
        1
    }
}

/// The error for what a venue has not.
pub(crate) fn lacks(name: &str, what: &str) -> Error {
    Error::config("dialect", format!("{name} has no {what}"))
}

/// What an inbound text is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inbound<'a> {
    /// A message for the user, of which nothing needs to be known: a notification, a welcome, anything unknown.
    Message,
    /// Data of a channel.
    Data {
        /// The channel, spelt as in the subscription.
        channel: Cow<'a, str>,
    },
    /// The reply to a request.
    Reply {
        /// The id of the request. A dialect may make one up for requests that carry none, if the reply shows what it answers.
        id: Id,
    },
    /// A request of the venue's, to be answered by the user.
    Request {
        /// Its id.
        id: Id,
    },
    /// Tells of channels that were accepted or refused, without the id of a request. As a reply is, it is used up.
    Confirmation,
    /// A heartbeat that wants to be answered at once. It reaches the user as well.
    Probe {
        /// The answer.
        answer: String,
    },
    /// The answer to a heartbeat of ours; see [`Dialect::ping`].
    Pong,
    /// Tells of the venue itself, such as that it is about to shut down.
    Notice,
    /// Several texts in one; see [`Dialect::split`].
    Batch,
}

/// A request with a reply, made by a dialect. `Debug` does not show the text, which may be that of a login.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The message.
    pub text: String,
    /// The id that the reply will be classified with.
    pub id: Id,
}

/// A request to subscribe or unsubscribe, made by a dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// The message.
    pub text: String,
    /// The id that the reply will be classified with; `None` if the venue confirms by the names of channels
    /// ([`Inbound::Confirmation`]).
    pub id: Option<Id>,
    /// How many of the channels it names, from the first on; at least one.
    pub channels: usize,
}

/// Which channels a venue has accepted and refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confirmation {
    /// Accepted.
    pub accepted: Vec<String>,
    /// Refused, each with the reason.
    pub rejected: Vec<(String, String)>,
}

/// The place of a message in the sequence of its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The number that the message before must have ended with; `None` for a snapshot, which follows nothing.
    pub follows: Option<u64>,
    /// The number this message ends with.
    pub last: u64,
}

/// What a step of a login may use. `Debug` does not show what the venue said.
#[derive(Clone, Copy)]
pub struct LoginStep<'a> {
    /// Counts the steps, from 0.
    pub step: usize,
    /// The reply to the request of the step before.
    pub reply: Option<&'a str>,
    /// Whether a login that is valid is refreshed.
    pub is_refresh: bool,
    /// What the login before left for its refresh, if it left anything.
    pub token: Option<&'a Secret>,
    /// Unique within the connection, for the id of the request.
    pub number: u64,
    /// The time of day, since the Unix epoch.
    pub unix: Duration,
    /// A random number.
    pub nonce: u64,
}

/// How a login goes on.
#[derive(Debug)]
#[non_exhaustive]
pub enum Login {
    /// With a request; its reply is passed to the next step.
    Send(Request),
    /// It is complete, or there is none.
    Done {
        /// When it must be refreshed. Venues limit how long a login is valid; four fifths of that is usual.
        refresh_after: Option<Duration>,
        /// What the refresh will need.
        token: Option<Secret>,
    },
    /// The venue refused it.
    Refused {
        /// Why.
        reason: String,
        /// Whether repeating it is useless, as with a wrong key: a first connect ends at once.
        fatal: bool,
    },
}

/// A value that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for LoginStep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginStep")
            .field("step", &self.step)
            .field("is_refresh", &self.is_refresh)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
