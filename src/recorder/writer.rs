//! The thread that writes what was recorded.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::gzip::Gzip;
use super::journal::Journal;
use super::queue::Chunk;
use super::scribe::Scribe;
use super::tap::{Progress, Shared};

/// Writes what connections leave in the queue, until the last of them is gone.
pub(super) struct Writer {
    shared: Arc<Shared>,
    scribe: Scribe,
    journal: Journal,
    gzip: Option<Gzip>,
    /// Taken and not written, the oldest last.
    chunks: Vec<Chunk>,
    /// The chunk that is being written, with the size of its lines.
    current: Option<(Chunk, usize)>,
    /// Its lines, as far as they are not written.
    lines: Vec<u8>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            scribe: Scribe::new(shared.clone()),
            journal: Journal::new(shared.path.clone(), &shared.recorder),
            shared,
            gzip: None,
            chunks: Vec::new(),
            current: None,
            lines: Vec::new(),
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
                let Some(chunk) = self.chunks.last() else { return Ok(()) };
                self.scribe.append_lines(chunk, clock, &mut self.lines);
                self.current = self.chunks.pop().map(|chunk| (chunk, self.lines.len()));
            }
            self.journal.write(&mut self.lines, Instant::now())?;
            let (chunk, bytes) = self.current.take().expect("its lines were written");
            self.shared.note_written(chunk, bytes);
            // One huge message need not cost its memory for ever.
            self.lines.shrink_to(LINES_KEPT);
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

impl Drop for Writer {
    fn drop(&mut self) {
        if thread::panicking() {
            let current = self.current.take().map(|(chunk, _)| chunk);
            self.shared.note_end("the thread that writes it panicked", current.into_iter().chain(self.chunks.drain(..)));
        }
    }
}

/// From how many chunks on the writer comes back sooner, so that those who record find warm ones: page faults of fresh ones cost as much
/// as many entries.
const BUSY_CHUNKS: usize = 4;

/// How soon a file that fails is tried again.
const RETRY: Duration = Duration::from_secs(1);

const LINES_KEPT: usize = 1 << 20;
