//! Reads what a [`Recorder`](crate::Recorder) wrote: entry by entry, counted, or replayed.

mod clock;
mod entries;
mod event;
mod lives;
mod replay;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

#[cfg(feature = "testkit")]
pub(crate) use self::clock::Clock;
pub use self::clock::Speed;
pub use self::entries::Entries;
#[cfg(feature = "testkit")]
pub(crate) use self::event::to_change;
pub(crate) use self::lives::Lives;
pub use self::replay::{Feeding, Replay};
use crate::error::{Error, Result};
use crate::recorder::names::stamp_of;
use crate::recorder::{Content, Direction, Entry};

/// A recording, to be looked at or replayed. Nothing of it is kept in memory but the line that is being read.
///
/// Files are JSON Lines, one [`Entry`] each, plain or compressed with gzip, whatever their name. What crashes leave behind does no harm:
/// lines that are blank, torn or no entry are skipped and [counted](Entries::skipped). So is half a line, in which a file may end that is
/// being written.
///
/// ```no_run
/// use zen_websocket::{Direction, Recording};
///
/// let inbound = Recording::open("feed.jsonl")?.filter(|entry| entry.direction == Direction::In);
/// println!("{:?}", inbound.metadata()?);
/// for entry in inbound.entries() {
///     println!("{:?}", entry?.content);
/// }
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[must_use]
#[derive(Clone)]
pub struct Recording {
    /// The files, oldest first.
    parts: Arc<[PathBuf]>,
    filter: Option<Arc<Filter>>,
}

type Filter = dyn Fn(&Entry) -> bool + Send + Sync;

/// What a recording amounts to; made by [`Recording::metadata`]. That of an empty one is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metadata {
    /// Entries of all kinds.
    pub count: u64,
    /// Frames from the peer.
    pub inbound: u64,
    /// Frames to the peer.
    pub outbound: u64,
    /// The earliest time.
    pub first: Option<SystemTime>,
    /// The latest time.
    pub last: Option<SystemTime>,
    /// From the earliest to the latest.
    pub duration: Duration,
    /// Lines that are no entries.
    pub skipped: u64,
    /// Entries that the writer could not keep up with, by its own account.
    pub missing: u64,
    /// Connections; one that was opened after another start of the program is another one.
    pub connections: u64,
    /// Wires of all connections.
    pub generations: u64,
}

impl Recording {
    /// The recording in this file.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if it cannot be opened, with its path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(vec![path.as_ref().to_owned()])
    }

    /// The recording in this file and in those that were rotated away from it, oldest first: `feed.jsonl` after every
    /// `feed.<time>.jsonl` and `feed.<time>.jsonl.gz`. One of the files is enough. What a recorder rotates while this runs may be left out.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if there is no file or one cannot be opened, with its path.
    pub fn open_rotated(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut parts = rotated(path).map_err(|error| failed(path, &error))?;
        if parts.is_empty() || path.exists() {
            parts.push(path.to_owned());
        }
        Self::new(parts)
    }

    fn new(parts: Vec<PathBuf>) -> Result<Self> {
        for path in &parts {
            entries::open(path).map_err(|error| failed(path, &error))?;
        }
        Ok(Self { parts: parts.into(), filter: None })
    }

    /// Leaves out what the predicate rejects, for everything that is done with the recording; several filters all have to agree.
    pub fn filter(self, predicate: impl Fn(&Entry) -> bool + Send + Sync + 'static) -> Self {
        let filter: Arc<Filter> = match self.filter {
            Some(first) => Arc::new(move |entry| first(entry) && predicate(entry)),
            None => Arc::new(predicate),
        };
        Self { filter: Some(filter), ..self }
    }

    /// Reads from the beginning.
    pub fn entries(&self) -> Entries {
        Entries::new(self.parts.clone(), self.filter.clone())
    }

    /// Reads from the beginning, in step with the time that passed when it was recorded.
    ///
    /// # Panics
    ///
    /// If the speed is not a number above zero.
    pub fn replay(&self, speed: Speed) -> Replay {
        Replay::new(self.entries(), speed)
    }

    /// Reads everything and counts.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a file cannot be read to its end, with its path: there is no count of a part.
    pub fn metadata(&self) -> Result<Metadata> {
        let mut metadata = Metadata::default();
        let mut lives = Lives::default();
        let mut entries = self.entries();
        for entry in &mut entries {
            metadata.add(&entry?, &mut lives);
        }
        metadata.skipped = entries.skipped();
        Ok(metadata)
    }
}

impl Metadata {
    fn add(&mut self, entry: &Entry, lives: &mut Lives) {
        self.count += 1;
        match (&entry.content, entry.direction) {
            (Content::Missing(count), _) => self.missing = self.missing.saturating_add(*count),
            (Content::State(_), _) => {}
            (_, Direction::In) => self.inbound += 1,
            (_, Direction::Out) => self.outbound += 1,
        }
        let first = self.first.map_or(entry.at, |at| at.min(entry.at));
        let last = self.last.map_or(entry.at, |at| at.max(entry.at));
        (self.first, self.last) = (Some(first), Some(last));
        self.duration = last.duration_since(first).unwrap_or_default();
        if let Some(place) = lives.place(entry) {
            self.connections = self.connections.max(place.life.index as u64 + 1);
            self.generations += u64::from(place.is_new_wire);
        }
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("parts", &self.parts).finish_non_exhaustive()
    }
}

/// What cannot be opened or read on, with its path.
fn failed(path: &Path, error: &io::Error) -> Error {
    Error::config("recording", format!("{}: {error}", path.display()))
}

/// The files that a recorder rotated away from this one, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut parts = BTreeMap::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        if let Some((stamp, _)) = stamp_of(path, &file.file_name()) {
            // Of two with one stamp, which a recorder leaves that is killed after compressing, either is whole.
            parts.insert(stamp, file.path());
        }
    }
    Ok(parts.into_values().collect())
}
