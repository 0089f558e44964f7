//! Recordings of what a connection said and heard, for later study and for replay.
//!
//! Those who record (`tap`) leave frames as they are in a `queue`; a thread per file (`writer`) turns them into lines (`scribe`, `entry`)
//! and appends them (`journal`), and compresses what was rotated (`gzip`).

mod entry;
mod gzip;
mod journal;
pub(crate) mod names;
mod queue;
mod scribe;
mod state;
mod tap;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::entry::{Content, Direction, Entry};
pub use self::tap::Tap;
use crate::error::{Error, Result};
use crate::event::ConnectionId;

/// Where and how a connection is recorded; [`Config::record_to`](crate::Config::record_to) takes it.
///
/// Frames and changes of state are appended to a file, a JSON object a line; [`Entry`] reads and writes one. Recording never makes a
/// connection wait and never ends it: what the disk does not take waits in memory, up to a [bound](Self::queue_max), and is dropped and
/// counted beyond it. A file that cannot be opened or written is reported in the log and in [`RecorderStatus::failure`], and tried again
/// every second.
///
/// Connections whose recorders name the same absolute path share a file and the thread that writes it; the settings of the first stand.
/// One process at a time may record to a path. A program that is killed loses the last [flush interval](Self::flush_interval); a line that
/// was cut off so is ended before the next is appended. [`Client::close`](crate::Client::close) returns when the recording is complete and in
/// the file; dropping the last client, be it by a panic, when what was recorded so far is. Both wait 2 s at most for the file; that they
/// waited in vain is logged.
///
/// A file that another program removes or renames is begun anew, one that is put in its place is continued.
///
/// The time of day is read when a file is opened or begun; entries count on from there by a clock that is never set. The thread may use
/// the cores that the one which opened the first connection may use: open it before pinning a thread, or from another.
///
/// ```
/// use zen_websocket::{Content, Recorder};
///
/// let recorder = Recorder::new("feed.jsonl").rotate_at(1 << 30).gzip(true).mask(|entry| {
///     if let Content::Text(text) = &mut entry.content {
///         *text = text.replace("4711", "…");
///     }
/// });
/// ```
#[must_use]
#[derive(Clone)]
pub struct Recorder {
    path: PathBuf,
    flush_interval: Duration,
    queue_max: usize,
    rotate_at: Option<u64>,
    rotate_after: Option<Duration>,
    gzip: bool,
    mask: Option<Arc<Mask>>,
}

/// How a recording fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecorderStatus {
    /// Entries written to the file since the recorder was opened.
    pub written: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Entries dropped because too much waited, or because the file failed to the end.
    pub dropped: u64,
    /// Bytes that wait to be written, with what is kept beside them.
    pub waiting: usize,
    /// Why nothing is written at present, if that is so.
    pub failure: Option<Arc<str>>,
}

/// What a frame is, as a connection tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A text message.
    Text,
    /// A binary message.
    Binary,
    /// A ping.
    Ping,
    /// A pong.
    Pong,
    /// A Close frame.
    Close,
}

type Mask = dyn Fn(&mut Entry) + Send + Sync;

impl Recorder {
    /// Appends to this file, which is made if there is none; its directory must exist. Nothing is rotated.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            flush_interval: Duration::from_millis(100),
            queue_max: 16 << 20,
            rotate_at: None,
            rotate_after: None,
            gzip: false,
            mask: None,
        }
    }

    /// How long an entry may wait before it is written, 1 ms to 1 minute. Default 100 ms: so much is lost at most when the program is
    /// killed, and so often does the writer wake. It is written sooner if much waits.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.flush_interval = interval;
        self
    }

    /// How many bytes may wait for the disk, 64 KiB at least; each entry counts as its payload and some 60 bytes. Default 16 MiB: some seconds
    /// of a busy feed. What comes beyond it is dropped, and a [`Content::Missing`] tells how many entries are missing where. A message that
    /// is larger than this is never recorded.
    pub fn queue_max(mut self, bytes: usize) -> Self {
        self.queue_max = bytes;
        self
    }

    /// Begins a new file before a line that would make the present one larger than this many bytes. Default never.
    ///
    /// The file before is renamed: `feed.jsonl` becomes `feed.20261121T145135.000250Z.jsonl`, by the time of day in UTC, so that the names
    /// sort as the files were written, though the clock is set back meanwhile.
    pub fn rotate_at(mut self, bytes: u64) -> Self {
        self.rotate_at = Some(bytes);
        self
    }

    /// Begins a new file, as [`rotate_at`](Self::rotate_at), with the first entry after the present one has become this old; a file that
    /// was there before counts from when it was made, where the file system knows. Default never.
    pub fn rotate_after(mut self, age: Duration) -> Self {
        self.rotate_after = Some(age);
        self
    }

    /// Compresses files that were rotated, into `….gz`. Default off. The writer's thread does it, between entries; one that the program's
    /// end interrupts stays as it was.
    pub fn gzip(mut self, on: bool) -> Self {
        self.gzip = on;
        self
    }

    /// Changes the content of each frame and of each change of state before it is written, to keep a secret. Default none; what is known to
    /// be secret, such as logins, is left out without it.
    ///
    /// It runs on the writer's thread. An entry whose content it changes is [marked](Entry::masked). If it panics, it is not called again:
    /// this entry and those that follow are written without their content.
    pub fn mask(mut self, mask: impl Fn(&mut Entry) + Send + Sync + 'static) -> Self {
        self.mask = Some(Arc::new(mask));
        self
    }

    /// Checks the settings.
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse = |setting, reason: &str| Err(Error::config(setting, reason));
        if self.path.file_name().is_none() {
            return refuse("record_to", "the path names no file");
        }
        if !(FLUSH_INTERVAL_MIN..=FLUSH_INTERVAL_MAX).contains(&self.flush_interval) {
            return refuse("flush_interval", "1 ms to 1 minute are allowed");
        }
        if self.queue_max < QUEUE_MIN {
            return refuse("queue_max", "64 KiB are the least");
        }
        if self.rotate_at == Some(0) {
            return refuse("rotate_at", "a file cannot be empty for ever");
        }
        if self.rotate_after == Some(Duration::ZERO) {
            return refuse("rotate_after", "a file has to last");
        }
        Ok(())
    }

    /// A connection's end; starts the writer unless another connection has.
    pub(crate) fn tap(&self, connection: ConnectionId) -> Tap {
        Tap::new(self, connection.number())
    }

    fn has_settings_of(&self, other: &Self) -> bool {
        let masks = (self.mask.as_ref().map(Arc::as_ptr), other.mask.as_ref().map(Arc::as_ptr));
        self.flush_interval == other.flush_interval
            && self.queue_max == other.queue_max
            && self.rotate_at == other.rotate_at
            && self.rotate_after == other.rotate_after
            && self.gzip == other.gzip
            && match masks {
                (Some(mask), Some(other)) => std::ptr::addr_eq(mask, other),
                (None, None) => true,
                _ => false,
            }
    }
}

impl<P: Into<PathBuf>> From<P> for Recorder {
    fn from(path: P) -> Self {
        Self::new(path)
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("path", &self.path)
            .field("flush_interval", &self.flush_interval)
            .field("queue_max", &self.queue_max)
            .field("rotate_at", &self.rotate_at)
            .field("rotate_after", &self.rotate_after)
            .field("gzip", &self.gzip)
            .field("mask", &self.mask.is_some())
            .finish()
    }
}

const FLUSH_INTERVAL_MIN: Duration = Duration::from_millis(1);
const FLUSH_INTERVAL_MAX: Duration = Duration::from_secs(60);

const QUEUE_MIN: usize = 64 << 10;
