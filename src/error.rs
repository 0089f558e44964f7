//! What can go wrong, said as what the caller may conclude from it.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::event::Generation;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed, or why a connection was lost or closed.
///
/// An error returned by a sending method means that nothing of that message left whole: the peer cannot have acted on it. A message that
/// was accepted (`Ok`) and then could not leave is reported as [`Event::Unsent`](crate::Event::Unsent). Nothing is ever sent again by
/// itself.
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
    /// The connection was closed by this program and stays closed; [`connect`](crate::connect) again with the same config.
    Closed,
    /// A setting was refused before anything was opened.
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
    /// No wire is open right now; nothing was sent.
    NotConnected,
    /// The call would block the thread that has to do its work; use the variant that does not wait.
    OnReactor,
    /// A handler panicked; its connection was closed.
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
    /// The server answered the upgrade request with something else than 101.
    Refused(Arc<Refusal>),
    /// [`Client::reconnect`](crate::Client::reconnect) replaced the wire.
    Replaced,
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
    /// The wait ended before what was waited for happened.
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// TLS failed.
    Tls {
        /// Whether the peer's certificate was the reason.
        certificate: bool,
        /// What the TLS library said.
        source: Arc<dyn StdError + Send + Sync>,
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
            Self::Closed
            | Self::Config { .. }
            | Self::InboxFull
            | Self::Json(_)
            | Self::OnReactor
            | Self::Panicked(_)
            | Self::Stopped => true,
            Self::Connect { .. }
            | Self::DataSilent { .. }
            | Self::DialHook(_)
            | Self::DialTimeout { .. }
            | Self::Disconnected
            | Self::Full { .. }
            | Self::Handshake(_)
            | Self::Io(_)
            | Self::NotConnected
            | Self::PeerClosed { .. }
            | Self::Protocol { .. }
            | Self::Replaced
            | Self::Resolve { .. }
            | Self::Silent { .. }
            | Self::Stale { .. }
            | Self::Timeout { .. } => false,
        }
    }

    /// Says what happened and what to do about it.
    pub fn explain(&self) -> Explanation {
        let suggestion = match self {
            Self::Closed | Self::Stopped => "connect again with the same config",
            Self::Config { .. } => "correct the setting that is named",
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::ConnectionRefused => "check that the server is running and that host and port are right",
                _ => "check the network path to the server",
            },
            Self::DataSilent { .. } => "check the subscriptions, or raise data_silence for a quiet feed",
            Self::DialHook(_) => "look at the on_dial hook",
            Self::DialTimeout { phase, .. } => match phase {
                Phase::Resolve => "check the name server and how long on_dial takes",
                Phase::Connect => "check the network path and firewalls, or raise connect_timeout",
                Phase::Tls | Phase::Upgrade => "check that the port speaks WebSocket, or raise connect_timeout",
            },
            Self::Disconnected | Self::Io(_) => "nothing; the connection is dialled again unless reconnect is off",
            Self::Exhausted { last, .. } => last.explain().suggestion,
            Self::Full { .. } => "send less, or raise unsent_max and accept that messages age in the buffer",
            Self::Handshake(_) => "check the URL: the server does not speak RFC 6455 at this path",
            Self::InboxFull => "take events faster, raise inbox_capacity, or choose another overflow policy",
            Self::Json(_) => "compare the type with the message",
            Self::NotConnected => "wait for the next Open event",
            Self::OnReactor => "use open, try_recv or start_close, or call from another thread",
            Self::Panicked(_) => "mend the handler",
            Self::PeerClosed { .. } => "see the venue's documentation for this close code",
            Self::Protocol { code: 1009, .. } => "raise max_message if the venue sends such messages",
            Self::Protocol { .. } => "report it to the venue; the connection is dialled again",
            Self::Refused(refusal) => match refusal.status {
                300..=399 => "use the URL the server points to",
                401 | 403 => "check the credentials, their clock and the address they are allowed from",
                404 => "check the path of the URL",
                408 | 425 | 429 => "connect less often; the pause the server asked for is kept",
                400..=499 => "check the URL and the headers",
                _ => "wait until the server is back",
            },
            Self::Replaced => "nothing; reconnect was asked for",
            Self::Resolve { .. } => "check the spelling of the host and the name server",
            Self::Silent { .. } => "nothing; the connection is dialled again. If it recurs, check the network path",
            Self::Stale { .. } => "build the message again from the state of the current wire",
            Self::Timeout { .. } => "look at the state of the client, or wait longer",
            Self::Tls { certificate: true, .. } => "check the host name, the clock and which roots are trusted",
            Self::Tls { certificate: false, .. } => "check that the port speaks TLS 1.2 or 1.3",
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
            Self::Closed => f.write_str("the connection was closed"),
            Self::Config { setting, reason } => write!(f, "invalid {setting}: {reason}"),
            Self::Connect { peer, source } => write!(f, "could not connect to {peer}: {source}"),
            Self::DataSilent { quiet } => write!(f, "no data message for {quiet:?}"),
            Self::DialHook(source) => write!(f, "the dial hook failed: {source}"),
            Self::DialTimeout { phase, after } => write!(f, "timed out after {after:?} {phase}"),
            Self::Disconnected => f.write_str("the peer closed the TCP connection without a close frame"),
            Self::Exhausted { attempts, last } => write!(f, "gave up after {attempts} attempts: {last}"),
            Self::Full { unsent } => write!(f, "the send buffer is full: {unsent} bytes unsent"),
            Self::Handshake(reason) => write!(f, "the upgrade failed: {reason}"),
            Self::InboxFull => f.write_str("the inbox was full"),
            Self::Io(source) => write!(f, "the socket failed: {source}"),
            Self::Json(source) => write!(f, "invalid JSON: {source}"),
            Self::NotConnected => f.write_str("not connected"),
            Self::OnReactor => f.write_str("a blocking call on the thread that turns the reactor"),
            Self::Panicked(message) => write!(f, "a handler panicked: {message}"),
            Self::PeerClosed { code, reason } => {
                write!(f, "the peer closed with code {}", code.unwrap_or(1005))?;
                if reason.is_empty() { Ok(()) } else { write!(f, ": {}", reason.escape_debug()) }
            }
            Self::Protocol { code, reason } => write!(f, "the peer broke the protocol ({code}): {reason}"),
            Self::Refused(refusal) => write!(f, "the server answered the upgrade with HTTP {}", refusal.status),
            Self::Replaced => f.write_str("replaced on request"),
            Self::Resolve { host, source } => write!(f, "could not resolve {host}: {source}"),
            Self::Silent { quiet } => write!(f, "the peer is silent: not a byte for {quiet:?}"),
            Self::Stale { current } => write!(f, "the wire changed: {current} is open"),
            Self::Stopped => f.write_str("the reactor was stopped"),
            Self::Timeout { after } => write!(f, "timed out after {after:?}"),
            Self::Tls { source, .. } => write!(f, "TLS failed: {source}"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Io(source) | Self::Resolve { source, .. } => Some(&**source),
            Self::DialHook(source) | Self::Json(source) | Self::Tls { source, .. } => Some(&**source),
            Self::Exhausted { last, .. } => Some(&**last),
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
        })
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
