//! The thread that turns what was recorded into lines.

use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::gzip::Gzip;
use super::journal::Journal;
use super::queue::{Chunk, Head, What};
use super::tap::{Progress, Shared};
use super::{Content, Entry, FrameKind, Mask};
use crate::telemetry::{self, Signal};

/// Writes what connections leave in the queue, until the last of them is gone.
pub(super) struct Writer {
    shared: Arc<Shared>,
    journal: Journal,
    gzip: Option<Gzip>,
    /// Taken and not written, the oldest last.
    chunks: Vec<Chunk>,
    /// The chunk that is being written, with the size of its lines.
    current: Option<(Chunk, usize)>,
    /// Its lines, as far as they are not written.
    lines: Vec<u8>,
    has_mask_panicked: bool,
}

/// What the time of day was at an instant.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    day: SystemTime,
    instant: Instant,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            journal: Journal::new(shared.path.clone(), &shared.recorder),
            shared,
            gzip: None,
            chunks: Vec::new(),
            current: None,
            lines: Vec::new(),
            has_mask_panicked: false,
        }
    }

    pub(super) fn run(mut self) {
        // The file is opened at once, so that a failure shows.
        let mut wait = Duration::ZERO;
        while let Some(round) = self.shared.await_work(wait, self.progress(), &mut self.chunks) {
            if round.has_taken() {
                self.chunks.reverse();
            }
            let is_busy = self.chunks.len() >= BUSY_CHUNKS;
            wait = match self.write() {
                Ok(()) => {
                    let is_more = self.shared.note_success(round);
                    match self.compress() || is_more {
                        true => Duration::ZERO,
                        false if is_busy => self.shared.recorder.flush_interval / 10,
                        false => self.shared.recorder.flush_interval,
                    }
                }
                Err(error) => {
                    self.handle_failure(&error);
                    RETRY
                }
            }
        }
    }

    fn progress(&self) -> Progress {
        if self.current.is_some() || !self.chunks.is_empty() {
            Progress::Behind
        } else if self.gzip.is_some() || !self.journal.rotated.is_empty() {
            Progress::Compressing
        } else {
            Progress::Idle
        }
    }

    /// Writes everything that was taken.
    fn write(&mut self) -> io::Result<()> {
        loop {
            let clock = self.journal.open(Instant::now())?;
            if self.current.is_none() {
                let Some(chunk) = self.chunks.pop() else { return Ok(()) };
                self.append_lines(&chunk, clock);
                self.current = Some((chunk, self.lines.len()));
            }
            self.journal.write(&mut self.lines, Instant::now())?;
            let (chunk, bytes) = self.current.take().expect("its lines were written");
            self.shared.note_written(chunk, bytes);
            // One huge message need not cost its memory for ever.
            self.lines.shrink_to(LINES_KEPT);
        }
    }

    fn append_lines(&mut self, chunk: &Chunk, clock: Clock) {
        let mask = self.shared.recorder.mask.clone();
        for (head, payload) in chunk.entries() {
            let mut entry = self.entry(head, payload, clock);
            match (head.what, &mask) {
                (What::Frame(_), Some(mask)) if !head.is_secret => self.mask(&**mask, &mut entry),
                (What::Frame(_) | What::State, _) => {}
                (What::Missing(count), _) => self.handle_overflow(count),
            }
            entry.append_to(&mut self.lines);
            self.lines.push(b'\n');
        }
    }

    fn entry(&self, head: &Head, payload: &[u8], clock: Clock) -> Entry {
        let text = || String::from_utf8_lossy(payload).into_owned();
        let content = match head.what {
            What::Frame(FrameKind::Text) => Content::Text(text()),
            What::Frame(FrameKind::Binary) => Content::Binary(payload.to_vec()),
            What::Frame(FrameKind::Ping) => Content::Ping(payload.to_vec()),
            What::Frame(FrameKind::Pong) => Content::Pong(payload.to_vec()),
            What::Frame(FrameKind::Close) => match payload.split_first_chunk() {
                Some((code, reason)) => {
                    let reason = String::from_utf8_lossy(reason).into_owned();
                    Content::Close { code: Some(u16::from_be_bytes(*code)), reason }
                }
                None => Content::Close { code: None, reason: text() },
            },
            What::State => Content::State(text()),
            What::Missing(count) => Content::Missing(count),
        };
        let is_of_a_connection = !matches!(head.what, What::Missing(_));
        Entry {
            at: clock.day_at(head.at),
            mono: Some(head.at.saturating_duration_since(self.shared.started)),
            connection: is_of_a_connection.then_some(head.connection),
            generation: is_of_a_connection.then_some(head.generation),
            direction: head.direction,
            content,
            masked: head.is_secret,
        }
    }

    fn mask(&mut self, mask: &Mask, entry: &mut Entry) {
        let before = entry.clone();
        match panic::catch_unwind(AssertUnwindSafe(|| mask(entry))) {
            Ok(()) => entry.masked |= entry.content != before.content,
            Err(payload) => {
                *entry = Entry { content: before.content.to_emptied(), masked: true, ..before };
                if !mem::replace(&mut self.has_mask_panicked, true) {
                    log::error!("the mask of {} panicked; such entries are written without content", self.shared.path.display());
                }
                // Its own drop might panic.
                mem::forget(payload);
            }
        }
    }

    /// Compresses a slice of what was rotated. Returns whether there is more.
    fn compress(&mut self) -> bool {
        if self.gzip.is_none()
            && let Some(path) = self.journal.rotated.pop_front()
        {
            self.gzip = Gzip::start(path).inspect_err(|error| log::error!("a recording stays uncompressed: {error}")).ok();
        }
        if let Some(gzip) = self.gzip.take() {
            self.gzip = gzip.step().inspect_err(|error| log::error!("a recording stays uncompressed: {error}")).unwrap_or(None);
        }
        self.progress() == Progress::Compressing
    }

    fn handle_overflow(&self, count: u64) {
        log::warn!("{count} entries for {} were dropped, because too many waited", self.shared.path.display());
        telemetry::tell_recorder(&Signal::RecorderDropped { entries: count });
    }

    fn handle_failure(&mut self, error: &io::Error) {
        if self.shared.note_failure(&error.to_string()) {
            return;
        }
        self.lines.clear();
        let current = self.current.take().map(|(chunk, _)| chunk);
        self.shared.give_up(current.into_iter().chain(self.chunks.drain(..)));
        self.gzip = None;
        self.journal.rotated.clear();
    }
}

impl Clock {
    pub(super) fn new(instant: Instant) -> Self {
        Self { day: SystemTime::now(), instant }
    }

    fn day_at(self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.instant) {
            Some(after) => self.day + after,
            None => self.day - self.instant.duration_since(at),
        }
    }
}

/// From how many chunks on the writer comes back sooner, so that those who record find warm ones: page faults of fresh ones cost as much
/// as many entries.
const BUSY_CHUNKS: usize = 4;

/// How soon a file that fails is tried again.
const RETRY: Duration = Duration::from_secs(1);

const LINES_KEPT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_reaches_both_ways() {
        let (second, now) = (Duration::from_secs(1), Instant::now());
        let clock = Clock::new(now + second);
        assert_eq!(clock.day_at(now), clock.day - second);
        assert_eq!(clock.day_at(now + 2 * second), clock.day + second);
    }
}
