//! What a connection does, told in advance.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Peer, Playback};

/// What the server does on one connection, from the moment TCP is accepted.
///
/// A new script upgrades and echoes every text and binary message, answers pings and the client's close.
/// Each setter changes one thing about that; setters of the same thing replace each other.
///
/// Closures run on the server's only thread. They may use every [`Peer`] but must not wait for one
/// (`expect`, `wait_closed`), or the server stands still. If one panics, that is noted among
/// [`MockServer::violations`](super::MockServer::violations). Timers are good to about a millisecond.
///
/// ```
/// use std::time::Duration;
/// use zen_websocket::testkit::{Frame, MockServer, Script};
///
/// // Maintenance: the first connection is refused, the second lives for a second, all others are fine.
/// let server = MockServer::start()?;
/// server.script_next(Script::new().status(503).header("Retry-After", "2").body("maintenance"));
/// server.script_next(
///     Script::new()
///         .glue(Frame::text("welcome").to_bytes())
///         .close_after(Duration::from_secs(1), 1012, "restart"),
/// );
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use]
#[derive(Clone)]
pub struct Script {
    pub(super) answer: Answer,
    pub(super) accept_key: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) headers_omitted: Vec<String>,
    pub(super) body: String,
    pub(super) glue: Vec<u8>,
    pub(super) delay: Duration,
    pub(super) dribble: Option<Dribble>,
    pub(super) conduct: Conduct,
    pub(super) on_open: Option<Arc<OnOpen>>,
    pub(super) on_text: Option<Arc<OnText>>,
    pub(super) on_binary: Option<Arc<OnBinary>>,
    pub(super) pongs: Pongs,
    pub(super) reads: bool,
    pub(super) answers_close: bool,
    pub(super) ends: Vec<(Duration, End)>,
    pub(super) playback: Option<Playback>,
}

impl Script {
    /// Makes the script of a server that echoes.
    pub fn new() -> Self {
        Self {
            answer: Answer::Upgrade,
            accept_key: None,
            headers: Vec::new(),
            headers_omitted: Vec::new(),
            body: String::new(),
            glue: Vec::new(),
            delay: Duration::ZERO,
            dribble: None,
            conduct: Conduct::Echo,
            on_open: None,
            on_text: None,
            on_binary: None,
            pongs: Pongs::AtOnce,
            reads: true,
            answers_close: true,
            ends: Vec::new(),
            playback: None,
        }
    }

    /// Resets the connection as soon as it is accepted.
    pub fn reset_on_accept(self) -> Self {
        self.answer(Answer::Reset)
    }

    /// Accepts TCP and then neither reads nor writes a byte; TLS does not get a handshake either.
    pub fn mute(self) -> Self {
        self.answer(Answer::Mute)
    }

    /// Completes the TLS handshake and then never answers. Without TLS it reads what comes, and is silent.
    pub fn mute_after_tls(self) -> Self {
        self.answer(Answer::MuteAfterTls)
    }

    /// Answers the upgrade request with this status instead of 101, then closes the connection.
    pub fn status(self, code: u16) -> Self {
        self.answer(Answer::Status(code))
    }

    /// Answers the upgrade request with exactly these bytes, and leaves the connection open.
    /// With [`hang_up_after`](Self::hang_up_after) of zero it ends there.
    pub fn raw_answer(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.answer(Answer::Raw(bytes.into()))
    }

    /// Answers the upgrade request with header lines without end, as fast as the client takes them.
    pub fn endless_headers(self) -> Self {
        self.answer(Answer::EndlessHeaders)
    }

    /// Sends a `Sec-WebSocket-Accept` that does not belong to the client's key.
    pub fn wrong_accept_key(mut self) -> Self {
        self.accept_key = Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned());
        self
    }

    /// Adds a header to the answer, in the place of the usual one of that name if there is one.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Leaves one of the usual headers out of the answer.
    pub fn without_header(mut self, name: impl Into<String>) -> Self {
        self.headers_omitted.push(name.into());
        self
    }

    /// Selects a subprotocol in the 101, whether the client asked for it or not.
    pub fn subprotocol(self, name: impl Into<String>) -> Self {
        self.header("Sec-WebSocket-Protocol", name)
    }

    /// Sets the body of an answer with a [`status`](Self::status).
    pub fn body(mut self, text: impl Into<String>) -> Self {
        self.body = text.into();
        self
    }

    /// Sends these bytes in the same write as the answer.
    pub fn glue(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.glue = bytes.into();
        self
    }

    /// Lets every byte leave this much later, in order; bytes of TLS included.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Lets everything leave in writes of this many bytes at most, one per interval; under TLS, the
    /// encrypted bytes. A size of zero counts as one.
    pub fn dribble(mut self, size: usize, interval: Duration) -> Self {
        self.dribble = Some(Dribble { size: size.max(1), interval });
        self
    }

    /// Echoes text and binary messages, which is what a new script does.
    pub fn echo(self) -> Self {
        self.conduct(Conduct::Echo)
    }

    /// Reads and captures, but answers nothing except pings and the client's close.
    pub fn ignore(self) -> Self {
        self.conduct(Conduct::Ignore)
    }

    /// Reads and captures, but answers nothing at all and runs no closure for messages;
    /// as [`Peer::silence`] does later.
    pub fn silent(self) -> Self {
        self.conduct(Conduct::Silent)
    }

    /// Sends what a recorded connection got, in the place of the echo. Closures for messages run all the same.
    pub fn playback(mut self, playback: &Playback) -> Self {
        self.playback = Some(playback.clone());
        self.ignore()
    }

    /// Runs this right after the 101 is queued; what it sends leaves in the same write.
    pub fn on_open(mut self, run: impl Fn(&Peer) + Send + Sync + 'static) -> Self {
        self.on_open = Some(Arc::new(run));
        self
    }

    /// Runs this for every text message, in the place of the echo.
    pub fn on_text(mut self, run: impl Fn(&Peer, &str) + Send + Sync + 'static) -> Self {
        self.on_text = Some(Arc::new(run));
        self
    }

    /// Runs this for every binary message, in the place of the echo.
    pub fn on_binary(mut self, run: impl Fn(&Peer, &[u8]) + Send + Sync + 'static) -> Self {
        self.on_binary = Some(Arc::new(run));
        self
    }

    /// Never answers a ping.
    pub fn withhold_pongs(mut self) -> Self {
        self.pongs = Pongs::Never;
        self
    }

    /// Answers each ping this much later.
    pub fn delay_pongs(mut self, delay: Duration) -> Self {
        self.pongs = Pongs::Later(delay);
        self
    }

    /// Reads nothing after the upgrade, until [`Peer::resume_reading`].
    pub fn stop_reading(mut self) -> Self {
        self.reads = false;
        self
    }

    /// Neither answers the client's close nor ends the connection after it.
    pub fn never_answer_close(mut self) -> Self {
        self.answers_close = false;
        self
    }

    /// Sends a close frame this long after the 101.
    pub fn close_after(self, after: Duration, code: u16, reason: impl Into<String>) -> Self {
        self.end(after, End::Close(code, reason.into()))
    }

    /// Ends the stream (FIN) without a close frame, this long after the answer to the upgrade request, or
    /// after accepting if there is no answer.
    pub fn hang_up_after(self, after: Duration) -> Self {
        self.end(after, End::HangUp)
    }

    /// Resets the connection this long after the answer to the upgrade request, or after accepting if
    /// there is no answer.
    pub fn reset_after(self, after: Duration) -> Self {
        self.end(after, End::Reset)
    }

    fn answer(mut self, answer: Answer) -> Self {
        self.answer = answer;
        self
    }

    fn conduct(mut self, conduct: Conduct) -> Self {
        self.conduct = conduct;
        self
    }

    fn end(mut self, after: Duration, end: End) -> Self {
        self.ends.push((after, end));
        self
    }

    /// The head of an answer: the usual headers less those omitted or replaced, then the script's own.
    pub(super) fn head(&self, status: &str, usual: &[(&str, String)]) -> String {
        let mut head = format!("HTTP/1.1 {status}\r\n");
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value));
        let named = |name: &str| {
            let mut others = self.headers_omitted.iter().chain(self.headers.iter().map(|(name, _)| name));
            others.any(|other| other.eq_ignore_ascii_case(name))
        };
        let usual = usual.iter().map(|(name, value)| (*name, value)).filter(|(name, _)| !named(name));
        for (name, value) in usual.chain(own) {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head + "\r\n"
    }
}

impl Default for Script {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("answer", &self.answer)
            .field("conduct", &self.conduct)
            .field("pongs", &self.pongs)
            .finish_non_exhaustive()
    }
}

type OnOpen = dyn Fn(&Peer) + Send + Sync;
type OnText = dyn Fn(&Peer, &str) + Send + Sync;
type OnBinary = dyn Fn(&Peer, &[u8]) + Send + Sync;

/// What the upgrade request gets.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    EndlessHeaders,
    Mute,
    MuteAfterTls,
    Raw(Vec<u8>),
    Reset,
    Status(u16),
    Upgrade,
}

/// What a message gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Conduct {
    Echo,
    Ignore,
    Silent,
}

impl Conduct {
    /// What a connection goes on with when its silence ends.
    pub(super) fn spoken(self) -> Self {
        if self == Self::Silent { Self::Ignore } else { self }
    }
}

/// What a ping gets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pongs {
    AtOnce,
    Later(Duration),
    Never,
}

/// How the server ends a connection by itself.
#[derive(Clone, Debug)]
pub(super) enum End {
    Close(u16, String),
    HangUp,
    Reset,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Dribble {
    pub(super) size: usize,
    pub(super) interval: Duration,
}
