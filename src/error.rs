//! What can go wrong, said as what the caller may conclude from it.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::dialect::Id;
use crate::event::Generation;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed, or why a connection was lost or closed.
///
/// An error returned by a method that sends and does not wait means that nothing of that message left whole: the peer cannot have acted
/// on it. A message that was accepted (`Ok`) and then could not leave is reported as [`Event::Unsent`](crate::Event::Unsent). Of a call
/// that failed, [`may_have_been_sent`](Self::may_have_been_sent) says whether the venue may have acted on it. Nothing is ever sent again
/// by itself.
///
/// Errors are cheap to clone, 40 bytes at most, and never print header values, user info or query values.
///
/// ```
/// use zen_websocket::{Config, Error, connect};
///
/// let error = connect(Config::new("http://example.com")).unwrap_err();
/// assert!(matches!(error, Error::Config { setting: "url", .. }));
/// assert_eq!(error.explain().suggestion, "correct the setting that is named");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The venue refused channels: which, and why. What it accepted was given up again.
    ChannelsRejected(Arc<[RejectedChannel]>),
    /// The connection was closed by this program and stays closed; [`connect`](crate::connect) again with the same config.
    Closed,
    /// A setting was refused, before anything was opened or by the system when a socket was made.
    Config {
        /// The name of the setter or argument.
        setting: &'static str,
        /// What is wrong with the value.
        reason: Arc<str>,
    },
    /// No address of the host accepted a TCP connection; the last one tried is named.
    Connect {
        /// The address.
        peer: Arc<str>,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// No data message came for longer than [`Config::data_silence`](crate::Config::data_silence).
    DataSilent {
        /// How long none came.
        quiet: Duration,
    },
    /// The [`Config::on_dial`](crate::Config::on_dial) hook refused to dial or panicked.
    DialHook(Arc<dyn StdError + Send + Sync>),
    /// A dial did not finish in time.
    DialTimeout {
        /// What it was doing.
        phase: Phase,
        /// The limit that ran out, of the phase or of the whole dial.
        after: Duration,
    },
    /// The peer closed the TCP connection without a Close frame.
    Disconnected,
    /// A call with this id waits for its reply already; nothing was sent.
    Duplicate(Id),
    /// Every attempt the config allows has failed.
    Exhausted {
        /// How many were made.
        attempts: u32,
        /// How the last one ended.
        last: Arc<Error>,
    },
    /// The bytes the kernel has not taken yet have reached [`Config::unsent_max`](crate::Config::unsent_max); nothing was sent.
    Full {
        /// Bytes waiting.
        unsent: usize,
    },
    /// The answer to the upgrade request breaks RFC 6455 §4.1.
    Handshake(Arc<str>),
    /// The inbox was full under [`Overflow::Disconnect`](crate::Overflow::Disconnect).
    InboxFull,
    /// Reading or writing the socket failed, or the system has no thread or descriptor left.
    Io(Arc<io::Error>),
    /// A value could not be written as JSON, or a message not read as such; nothing was sent.
    Json(Arc<dyn StdError + Send + Sync>),
    /// The venue refused the login.
    LoginRefused {
        /// What it said.
        reason: Arc<str>,
        /// Whether repeating the login is useless.
        fatal: bool,
    },
    /// The wire ended before the reply came.
    Lost {
        /// Why it ended.
        cause: Arc<Error>,
        /// Whether the request had left whole.
        sent: bool,
    },
    /// No wire is open right now, no login has succeeded on it yet, or messages are [held](crate::Config::hold_until) until it is live;
    /// nothing was sent.
    NotConnected,
    /// The call would block the thread that has to do its work; use the variant that does not wait.
    OnReactor,
    /// A handler, a dialect or a cost function panicked and its connection was closed, or an `on_socket` hook did and its dial failed.
    Panicked(Arc<str>),
    /// The peer ended the wire with a Close frame.
    PeerClosed {
        /// RFC 6455 §7.4; `None` if the frame had no code (reported as 1005 elsewhere).
        code: Option<u16>,
        /// What the peer wrote beside it.
        reason: Arc<str>,
    },
    /// The peer broke RFC 6455 or a limit of the config; it was told so with this close code.
    Protocol {
        /// 1002, 1007 or 1009.
        code: u16,
        /// Which rule.
        reason: &'static str,
    },
    /// As many messages wait for the rate limit as [`Throttle::Queue`](crate::Throttle::Queue) allows; nothing was sent.
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The server answered the upgrade request with something else than 101.
    Refused(Arc<Refusal>),
    /// The venue refused the request.
    Rejected(Arc<Rejection>),
    /// [`Client::reconnect`](crate::Client::reconnect) replaced the wire.
    Replaced,
    /// The reply is not one, or not of the shape that was asked for.
    Reply(Arc<str>),
    /// The host name could not be resolved.
    Resolve {
        /// The name.
        host: Arc<str>,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A ping stayed without answer and nothing else came: the peer or the path is gone.
    Silent {
        /// How long not a byte came.
        quiet: Duration,
    },
    /// The wire is another one than the caller's state was built on; nothing was sent.
    Stale {
        /// The wire that is open.
        current: Generation,
    },
    /// The reactor was stopped or its driver dropped.
    Stopped,
    /// The rate limit allows the message only later; nothing was sent.
    Throttled {
        /// When it will allow it, if nothing else is sent meanwhile.
        wait: Duration,
    },
    /// The wait ended before what was waited for happened.
    Timeout {
        /// How long was waited.
        after: Duration,
        /// Whether a request whose reply was waited for may have reached the peer, or still may.
        sent: bool,
    },
    /// TLS failed.
    Tls {
        /// Whether the peer's certificate was the reason.
        certificate: bool,
        /// What the TLS library said.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// As many calls wait for their replies as [`Config::calls_max`](crate::Config::calls_max) allows; nothing was sent.
    TooManyCalls {
        /// How many wait.
        pending: usize,
    },
}

/// The steps of a dial, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Running [`Config::on_dial`](crate::Config::on_dial) and looking up the host.
    Resolve,
    /// Opening a TCP connection.
    Connect,
    /// The TLS handshake.
    Tls,
    /// Waiting for the answer to the upgrade request.
    Upgrade,
    /// The dialect's login.
    Login,
}

/// An answer to the upgrade request other than 101.
#[derive(Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The headers as received.
    pub headers: Vec<(String, String)>,
    /// The first KiB of the body, as far as it came with the head or shortly after.
    pub body: String,
    /// How long the server asked to wait (RFC 9110 §10.2.3).
    pub retry_after: Option<Duration>,
}

/// A venue's refusal of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The venue's code for it, if it gives one.
    pub code: Option<i64>,
    /// What the venue wrote.
    pub message: String,
    /// What came with it, as JSON.
    pub data: Option<String>,
}

/// A venue's refusal of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedChannel {
    /// The channel.
    pub channel: Arc<str>,
    /// What the venue wrote.
    pub reason: Arc<str>,
}

/// What happened and what to do about it, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What happened, with its cause.
    pub message: String,
    /// What to do.
    pub suggestion: &'static str,
}

impl Error {
    /// Whether repeating the operation as it was cannot help: the server refused these credentials or this path, its certificate is not
    /// trusted, or this connection or its reactor has ended. A first connect ends at once on such an error.
    ///
    /// After a first success the same errors are retried, at [`Config::max_backoff`](crate::Config::max_backoff): front ends answer
    /// 403 or 404 during maintenance.
    pub fn is_fatal(&self) -> bool {
        match self {
            // 408, 425 and 429 speak of this moment only (RFC 9110 §15.5.9, RFC 8470 §5.2, RFC 6585 §4).
            Self::Refused(refusal) => matches!(refusal.status, 300..=499) && !matches!(refusal.status, 408 | 425 | 429),
            Self::Exhausted { last, .. } => last.is_fatal(),
            Self::Tls { certificate, .. } => *certificate,
            Self::LoginRefused { fatal, .. } => *fatal,
            Self::Lost { cause, .. } => cause.is_fatal(),
            Self::ChannelsRejected(_)
            | Self::Closed
            | Self::Config { .. }
            | Self::InboxFull
            | Self::Json(_)
            | Self::OnReactor
            | Self::Panicked(_)
            | Self::Rejected(_)
            | Self::Reply(_)
            | Self::Stopped => true,
            Self::Connect { .. }
            | Self::DataSilent { .. }
            | Self::DialHook(_)
            | Self::DialTimeout { .. }
            | Self::Disconnected
            | Self::Duplicate(_)
            | Self::Full { .. }
            | Self::Handshake(_)
            | Self::Io(_)
            | Self::NotConnected
            | Self::PeerClosed { .. }
            | Self::Protocol { .. }
            | Self::QueueFull { .. }
            | Self::Replaced
            | Self::Resolve { .. }
            | Self::Silent { .. }
            | Self::Stale { .. }
            | Self::Throttled { .. }
            | Self::Timeout { .. }
            | Self::TooManyCalls { .. } => false,
        }
    }

    /// Whether the message of an operation that failed may have reached the peer, so that the peer may have acted on it: then ask the
    /// venue before doing it again. `false` is a promise.
    ///
    /// ```
    /// use std::time::Duration;
    /// use zen_websocket::Error;
    ///
    /// let after = Duration::from_secs(30);
    /// assert!(!Error::Throttled { wait: after }.may_have_been_sent());
    /// assert!(Error::Timeout { after, sent: true }.may_have_been_sent());
    /// assert!(!Error::Timeout { after, sent: false }.may_have_been_sent(), "it was still waiting for the rate limit");
    /// ```
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            // Who wrote it knew; the variant does not.
            Self::Lost { sent, .. } | Self::Timeout { sent, .. } => *sent,
            // There is an answer to it.
            Self::ChannelsRejected(_) | Self::LoginRefused { .. } | Self::Rejected(_) | Self::Reply(_) => true,
            Self::Closed
            | Self::Config { .. }
            | Self::Connect { .. }
            | Self::DataSilent { .. }
            | Self::DialHook(_)
            | Self::DialTimeout { .. }
            | Self::Disconnected
            | Self::Duplicate(_)
            | Self::Exhausted { .. }
            | Self::Full { .. }
            | Self::Handshake(_)
            | Self::InboxFull
            | Self::Io(_)
            | Self::Json(_)
            | Self::NotConnected
            | Self::OnReactor
            | Self::Panicked(_)
            | Self::PeerClosed { .. }
            | Self::Protocol { .. }
            | Self::QueueFull { .. }
            | Self::Refused(_)
            | Self::Replaced
            | Self::Resolve { .. }
            | Self::Silent { .. }
            | Self::Stale { .. }
            | Self::Stopped
            | Self::Throttled { .. }
            | Self::Tls { .. }
            | Self::TooManyCalls { .. } => false,
        }
    }

    /// Says what happened and what to do about it.
    pub fn explain(&self) -> Explanation {
        let suggestion = match self {
            Self::ChannelsRejected(_) => "check the names of the channels, and whether they need a login",
            Self::Closed => "connect again with the same config",
            Self::Config { .. } => "correct the setting that is named",
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::AddrNotAvailable => "check bind_address and the addresses of the host",
                io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => IF_RARE,
                io::ErrorKind::ConnectionRefused => "check that the server is running and that host and port are right",
                _ => "check the network path to the server",
            },
            Self::DataSilent { .. } => "check the subscriptions, or raise data_silence for a quiet feed",
            Self::DialHook(_) => "look at the on_dial hook",
            Self::DialTimeout { phase, .. } => match phase {
                Phase::Resolve => "check the name server and how long on_dial takes",
                Phase::Connect => "check the network path and firewalls, or raise connect_timeout",
                Phase::Login => "check that the dialect recognises the replies to its login, or raise connect_timeout",
                Phase::Tls => "check that the port speaks TLS, or raise connect_timeout",
                Phase::Upgrade => "check that the port speaks WebSocket, or raise connect_timeout",
            },
            Self::Duplicate(_) => "wait for the reply to the call before, or use another id",
            Self::Disconnected => IF_RARE,
            Self::Exhausted { last, .. } => last.explain().suggestion,
            Self::Full { .. } => "send less, or raise unsent_max and accept that messages age in the buffer",
            Self::Handshake(_) => "check scheme, port and path of the URL, and the subprotocols that are offered",
            Self::InboxFull => "take events faster, raise inbox_capacity, or choose another overflow policy",
            Self::Io(source) => match source.kind() {
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::TimedOut => IF_RARE,
                _ => "check what the system allows this process, and the on_socket hook",
            },
            Self::Json(_) => "compare the type with the message",
            Self::LoginRefused { .. } => "check the credentials, their clock and what they are allowed to do",
            Self::Lost { sent: false, .. } => "decide again on the next wire; the venue does not have the request",
            Self::Lost { sent: true, .. } => "ask the venue what became of the request before sending it again",
            Self::NotConnected => "wait for the next Open event, or for Live under hold_until",
            Self::OnReactor => "use open, try_recv, start_call or start_close, or call from another thread",
            Self::Panicked(_) => "mend the code that panicked",
            Self::PeerClosed { code, .. } => match code {
                Some(1000 | 1001) => "nothing if it is rare; else see how long the venue lets connections last",
                Some(1002 | 1003 | 1007) => "check what was sent: the peer could not read it",
                Some(1008) => "check the credentials, and the venue's rules on messages and limits",
                Some(1009) => "send smaller messages",
                Some(1011..=1014) => "wait until the server is back",
                _ => "see the venue's documentation for this close code",
            },
            Self::Protocol { code: 1009, .. } => "raise max_message if the venue sends such messages",
            Self::Protocol { .. } => "report it to the venue",
            Self::QueueFull { .. } => "send less, or look at the pressure before sending",
            Self::Refused(refusal) => match refusal.status {
                200..=299 => "check the path of the URL: no WebSocket answers there",
                300..=399 => "use the URL the server points to",
                401 | 403 => "check the credentials, their clock and the address they are allowed from",
                404 => "check the path of the URL",
                408 | 425 | 429 => "connect less often, and only after the pause the server asks for",
                400..=499 => "check the URL and the headers",
                _ => "wait until the server is back",
            },
            Self::Rejected(_) => "see the venue's documentation for this code",
            Self::Replaced => "nothing; reconnect was asked for",
            Self::Reply(_) => "compare the type that was asked for with the venue's documentation",
            Self::Resolve { .. } => "check the spelling of the host and the name server",
            Self::Silent { .. } => "nothing if it is rare; else check the network path, and whether the venue answers pings",
            Self::Stale { .. } => "build the message again from the state of the current wire",
            Self::Stopped => "connect again on another reactor",
            Self::Throttled { .. } => "wait as long as it says, or let messages queue",
            Self::Timeout { sent: true, .. } => "ask the venue what became of the request before sending it again",
            Self::Timeout { sent: false, .. } => "look at the state of the client, or wait longer",
            Self::Tls { certificate: true, .. } => "check the host name, the clock and which roots are trusted",
            Self::Tls { certificate: false, .. } => {
                "check that the port speaks TLS, whether it wants a client certificate, and what lies between"
            }
            Self::TooManyCalls { .. } => "wait for replies, or raise calls_max",
        };
        Explanation { message: self.to_string(), suggestion }
    }

    /// The socket, or what else the system provides, failed. No `From`: a caller's own I/O is none of this crate's errors.
    pub(crate) fn io(source: io::Error) -> Self {
        Self::Io(Arc::new(source))
    }

    pub(crate) fn config(setting: &'static str, reason: impl Into<Arc<str>>) -> Self {
        Self::Config { setting, reason: reason.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChannelsRejected(channels) => {
                let each = channels.iter().map(|refused| format!("{} ({})", refused.channel, refused.reason.escape_debug()));
                write!(f, "the venue refused {}", each.collect::<Vec<_>>().join(", "))
            }
            Self::Closed => f.write_str("the connection was closed"),
            Self::Config { setting, reason } => write!(f, "invalid {setting}: {reason}"),
            Self::Connect { peer, source } => write!(f, "could not connect to {peer}: {source}"),
            Self::DataSilent { quiet } => write!(f, "no data message for {quiet:?}"),
            Self::DialHook(source) => write!(f, "the dial hook failed: {source}"),
            Self::DialTimeout { phase, after } => write!(f, "timed out after {after:?} {phase}"),
            Self::Disconnected => f.write_str("the peer closed the TCP connection without a close frame"),
            Self::Duplicate(id) => write!(f, "a call with the id {id} is pending"),
            Self::Exhausted { attempts, last } => write!(f, "gave up after {attempts} attempts: {last}"),
            Self::Full { unsent } => write!(f, "the send buffer is full: {unsent} bytes unsent"),
            Self::Handshake(reason) => write!(f, "the upgrade failed: {reason}"),
            Self::InboxFull => f.write_str("the inbox was full"),
            Self::Io(source) => write!(f, "the socket failed: {source}"),
            Self::Json(source) => write!(f, "invalid JSON: {source}"),
            Self::LoginRefused { reason, .. } => write!(f, "the venue refused the login: {}", reason.escape_debug()),
            Self::Lost { cause, sent: true } => write!(f, "the wire ended before the reply came: {cause}"),
            Self::Lost { cause, sent: false } => write!(f, "the wire ended before the request had left: {cause}"),
            Self::NotConnected => f.write_str("not connected"),
            Self::OnReactor => f.write_str("a blocking call on the thread that turns the reactor"),
            Self::Panicked(message) => write!(f, "user code panicked: {message}"),
            Self::PeerClosed { code, reason } => {
                write!(f, "the peer closed with code {}", code.unwrap_or(1005))?;
                if reason.is_empty() { Ok(()) } else { write!(f, ": {}", reason.escape_debug()) }
            }
            Self::Protocol { code, reason } => write!(f, "the peer broke the protocol ({code}): {reason}"),
            Self::QueueFull { waiting } => write!(f, "{waiting} messages wait for the rate limit"),
            Self::Refused(refusal) => write!(f, "the server answered the upgrade with HTTP {}", refusal.status),
            Self::Rejected(rejection) => write!(f, "the venue refused the request: {rejection}"),
            Self::Replaced => f.write_str("replaced on request"),
            Self::Reply(reason) => write!(f, "unusable reply: {reason}"),
            Self::Resolve { host, source } => write!(f, "could not resolve {host}: {source}"),
            Self::Silent { quiet } => write!(f, "the peer is silent: not a byte for {quiet:?}"),
            Self::Stale { current } => write!(f, "the wire changed: {current} is open"),
            Self::Stopped => f.write_str("the reactor was stopped"),
            Self::Throttled { wait } => write!(f, "the rate limit allows it in {wait:?}"),
            Self::Timeout { after, .. } => write!(f, "timed out after {after:?}"),
            Self::Tls { source, .. } => write!(f, "TLS failed: {source}"),
            Self::TooManyCalls { pending } => write!(f, "{pending} calls are pending"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Io(source) | Self::Resolve { source, .. } => Some(&**source),
            Self::DialHook(source) | Self::Json(source) | Self::Tls { source, .. } => Some(&**source),
            Self::Exhausted { last, .. } => Some(&**last),
            Self::Lost { cause, .. } => Some(&**cause),
            _ => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "resolving the host",
            Self::Connect => "connecting",
            Self::Tls => "in the TLS handshake",
            Self::Upgrade => "waiting for the upgrade",
            Self::Login => "logging in",
        })
    }
}

impl Rejection {
    /// A refusal without data.
    pub fn new(code: impl Into<Option<i64>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), data: None }
    }

    /// Reads what came with it.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] if nothing came or it is not of this shape.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T> {
        let data = self.data.as_deref().unwrap_or_default();
        serde_json::from_str(data).map_err(|error| Error::Json(Arc::new(error)))
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message.escape_debug();
        match self.code {
            Some(code) => write!(f, "{message} ({code})"),
            None => message.fmt(f),
        }
    }
}

impl Refusal {
    /// The first value of a header; names are compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Shows the names of the headers only: a server may echo or set secrets.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Refusal")
            .field("status", &self.status)
            .field("headers", &names)
            .field("body", &self.body)
            .field("retry_after", &self.retry_after)
            .finish()
    }
}

/// For what ends connections now and then, whatever anybody does. Whether there is another dial is the config's to say.
const IF_RARE: &str = "nothing if it is rare; else check the venue's limits and the network path";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_small() {
        assert!(size_of::<Error>() <= 40, "{}", size_of::<Error>());
    }

    #[test]
    fn refusals_of_these_credentials_are_fatal_and_refusals_of_this_moment_are_not() {
        let fatal = |status| {
            Error::Refused(Arc::new(Refusal { status, headers: vec![], body: String::new(), retry_after: None })).is_fatal()
        };
        assert_eq!([301, 400, 401, 403, 404].map(fatal), [true; 5]);
        assert_eq!([200, 408, 425, 429, 500, 503].map(fatal), [false; 6]);
    }

    #[test]
    fn network_failures_are_retried_and_bad_certificates_are_not() {
        let io = || Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert!(!Error::Connect { peer: "127.0.0.1:1".into(), source: io() }.is_fatal());
        assert!(!Error::Resolve { host: "example".into(), source: io() }.is_fatal());
        assert!(!Error::DialTimeout { phase: Phase::Tls, after: Duration::from_secs(1) }.is_fatal());
        assert!(!Error::Tls { certificate: false, source: io() }.is_fatal());
        assert!(Error::Tls { certificate: true, source: io() }.is_fatal());
    }

    #[test]
    fn an_explanation_names_the_cause_and_what_to_do() {
        let refused = Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        let error =
            Error::Exhausted { attempts: 3, last: Arc::new(Error::Connect { peer: "127.0.0.1:1".into(), source: refused }) };
        assert_eq!(
            error.explain(),
            Explanation {
                message: "gave up after 3 attempts: could not connect to 127.0.0.1:1: connection refused".into(),
                suggestion: "check that the server is running and that host and port are right",
            }
        );
    }
}
