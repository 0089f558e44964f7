//! What clients sent: kept, searched, waited for.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use regex::Regex;
use serde_json::Value;

use super::engine::later;

/// One message of a client, as the server received it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Captured {
    /// Which peer's client sent it; see [`Peer::id`](super::Peer::id).
    pub peer: u64,
    /// When the server read the last byte of it.
    pub at: Instant,
    /// What it was.
    pub message: ClientMessage,
}

impl Captured {
    /// The text of a text message.
    pub fn text(&self) -> Option<&str> {
        match &self.message {
            ClientMessage::Text(text) => Some(text),
            ClientMessage::Binary(_) | ClientMessage::Ping(_) | ClientMessage::Pong(_) | ClientMessage::Close { .. } => None,
        }
    }
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}: {:?}", self.peer, self.message)
    }
}

/// A message that a client sent, its fragments joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// A binary message.
    Binary(Vec<u8>),
    /// A close frame; without a code it counts as 1005 (RFC 6455 §7.1.5).
    Close {
        /// The status code.
        code: u16,
        /// The reason, often empty.
        reason: String,
    },
    /// A ping.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A text message; what is not UTF-8 has been replaced, and noted as a violation.
    Text(String),
}

/// Says which [`Captured`] message is meant. A `&str` is the matcher of exactly that text.
///
/// ```
/// use serde_json::json;
/// use zen_websocket::testkit::{ClientMessage, Matcher};
///
/// let exact: Matcher = "hello".into();
/// let prefix = Matcher::regex("^hel");
/// let subscribe = Matcher::json(json!({ "method": "public/subscribe" }));
/// let close = Matcher::when(|it| matches!(it.message, ClientMessage::Close { code: 1000, .. }));
/// # let _ = (exact, prefix, subscribe, close, Matcher::any());
/// ```
pub struct Matcher {
    test: Box<dyn Fn(&Captured) -> bool + Send + Sync>,
    wanted: String,
}

impl Matcher {
    /// Matches every message, control frames included.
    pub fn any() -> Self {
        Self { test: Box::new(|_| true), wanted: "anything".to_owned() }
    }

    /// Matches this text and no other.
    pub fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        let wanted = format!("text {text:?}");
        Self { test: Box::new(move |captured| captured.text() == Some(&text)), wanted }
    }

    /// Matches a text in which this regular expression finds something.
    ///
    /// # Panics
    ///
    /// If the expression is not valid.
    pub fn regex(pattern: &str) -> Self {
        let regex = Regex::new(pattern).unwrap_or_else(|error| panic!("invalid regular expression: {error}"));
        let wanted = format!("text matching /{pattern}/");
        Self { test: Box::new(move |captured| captured.text().is_some_and(|text| regex.is_match(text))), wanted }
    }

    /// Matches a text that is JSON and has at least these members, at every depth. Arrays have to be of
    /// the same length; everything else has to be equal. A Rust string stands for a JSON string, not for
    /// JSON text.
    ///
    /// # Panics
    ///
    /// If the value cannot be serialised.
    pub fn json(subset: impl serde::Serialize) -> Self {
        let subset = serde_json::to_value(subset).unwrap_or_else(|error| panic!("not serialisable: {error}"));
        let wanted = format!("json including {subset}");
        let test = move |captured: &Captured| {
            let value = captured.text().and_then(|text| serde_json::from_str::<Value>(text).ok());
            value.is_some_and(|value| includes(&value, &subset))
        };
        Self { test: Box::new(test), wanted }
    }

    /// Matches what the closure says. It runs on the thread that waits.
    pub fn when(test: impl Fn(&Captured) -> bool + Send + Sync + 'static) -> Self {
        Self { test: Box::new(test), wanted: "a message the closure accepts".to_owned() }
    }

    /// Whether this message is one of those that are meant.
    pub fn matches(&self, captured: &Captured) -> bool {
        (self.test)(captured)
    }
}

impl From<&str> for Matcher {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matcher({})", self.wanted)
    }
}

fn includes(value: &Value, subset: &Value) -> bool {
    match (value, subset) {
        (Value::Object(value), Value::Object(subset)) => {
            subset.iter().all(|(key, wanted)| value.get(key).is_some_and(|found| includes(found, wanted)))
        }
        (Value::Array(value), Value::Array(subset)) => {
            value.len() == subset.len() && value.iter().zip(subset).all(|(found, wanted)| includes(found, wanted))
        }
        (value, subset) => value == subset,
    }
}

/// No message came that the matcher wanted; says what came instead.
#[derive(Clone)]
pub struct ExpectError {
    wanted: String,
    captured: Vec<Captured>,
    over: bool,
}

impl ExpectError {
    /// What was captured and has not been expected before, oldest first.
    pub fn captured(&self) -> &[Captured] {
        &self.captured
    }
}

impl fmt::Display for ExpectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.over { "came before the connection was over" } else { "came in time" };
        write!(f, "no {} {why}: {} other messages", self.wanted, self.captured.len())?;
        let skipped = self.captured.len().saturating_sub(SHOWN_MAX);
        if skipped > 0 {
            write!(f, ", the last {SHOWN_MAX} of them")?;
        }
        self.captured[skipped..].iter().try_for_each(|captured| write!(f, "\n  {captured}"))
    }
}

/// As `Display`, so that `expect` and `unwrap` print it legibly.
impl fmt::Debug for ExpectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ExpectError {}

/// How many messages an error prints.
const SHOWN_MAX: usize = 20;

/// The newest messages of all clients, and those who wait for more.
pub(super) struct Log {
    max: usize,
    entries: Mutex<Entries>,
    news: Condvar,
}

#[derive(Default)]
struct Entries {
    /// Numbered from `dropped` upwards; `true` once an `expect` has returned the message.
    newest: VecDeque<(Captured, bool)>,
    dropped: u64,
}

impl Entries {
    fn next(&self) -> u64 {
        self.dropped + self.newest.len() as u64
    }

    /// Marks a message as expected, unless it is gone or someone else was faster.
    fn take(&mut self, number: u64) -> bool {
        let entry = number.checked_sub(self.dropped).and_then(|index| self.newest.get_mut(index as usize));
        entry.is_some_and(|(_, expected)| !std::mem::replace(expected, true))
    }

    fn open(&self, peer: Option<u64>, from: u64) -> Vec<(u64, Captured)> {
        let skip = from.saturating_sub(self.dropped) as usize;
        let numbered = (self.dropped..).zip(&self.newest).skip(skip);
        numbered
            .filter(|(_, (captured, expected))| !expected && peer.is_none_or(|peer| peer == captured.peer))
            .map(|(number, (captured, _))| (number, captured.clone()))
            .collect()
    }
}

impl Log {
    pub(super) fn new(max: usize) -> Self {
        Self { max, entries: Mutex::default(), news: Condvar::new() }
    }

    pub(super) fn is_on(&self) -> bool {
        self.max > 0
    }

    pub(super) fn push(&self, captured: Captured) {
        let mut entries = self.entries.lock();
        if entries.newest.len() == self.max {
            entries.newest.pop_front();
            entries.dropped += 1;
        }
        entries.newest.push_back((captured, false));
        self.news.notify_all();
    }

    /// Makes those who wait look again whether there is anything left to wait for.
    pub(super) fn notify(&self) {
        let _entries = self.entries.lock();
        self.news.notify_all();
    }

    pub(super) fn captured(&self, peer: Option<u64>) -> Vec<Captured> {
        let entries = self.entries.lock();
        let all = entries.newest.iter().map(|(captured, _)| captured);
        all.filter(|captured| peer.is_none_or(|peer| peer == captured.peer)).cloned().collect()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.entries.lock().dropped
    }

    /// Waits for a message that matches and has not been expected before, until nothing more can come.
    pub(super) fn expect(
        &self,
        peer: Option<u64>,
        matcher: &Matcher,
        timeout: Duration,
        is_over: impl Fn() -> bool,
    ) -> Result<Captured, ExpectError> {
        let deadline = later(Instant::now(), timeout);
        let mut seen = 0;
        let mut entries = self.entries.lock();
        loop {
            // Looked at before the entries: what came before the end is searched after it.
            let over = is_over();
            let fresh = entries.open(peer, seen);
            seen = entries.next();
            // The matcher may be the user's closure, which may look at the log itself.
            let matching: Vec<_> = MutexGuard::unlocked(&mut entries, || {
                fresh.into_iter().filter(|(_, captured)| matcher.matches(captured)).collect()
            });
            for (number, captured) in matching {
                if entries.take(number) {
                    return Ok(captured);
                }
            }
            if seen < entries.next() {
                continue;
            }
            if over || Instant::now() >= deadline {
                let captured = entries.open(peer, 0).into_iter().map(|(_, captured)| captured).collect();
                return Err(ExpectError { wanted: matcher.wanted.clone(), captured, over });
            }
            // The end may have come while the lock was free, without a message.
            if !is_over() {
                self.news.wait_until(&mut entries, deadline);
            }
        }
    }
}
