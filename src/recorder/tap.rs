//! Where entries are handed over, on the threads of connections and senders.

use std::fmt;
use std::iter;
use std::mem;
use std::path::{self, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::queue::{Chunk, Head, Queue, What};
use super::writer::Writer;
use super::{Direction, FrameKind, Recorder, RecorderStatus, state};
use crate::event::{Event, Generation};
use crate::telemetry::{self, Signal};

/// One connection's end of a recorder. The recording ends when the last is gone, after everything is written.
#[derive(Clone)]
pub struct Tap {
    door: Arc<Door>,
    connection: u64,
}

/// Keeps the writer running.
struct Door(Arc<Shared>);

/// What the connections of a recorder and its writer share.
pub(super) struct Shared {
    pub(super) recorder: Recorder,
    /// The recorder's, absolute.
    pub(super) path: PathBuf,
    pub(super) started: Instant,
    state: Mutex<State>,
    /// The writer waits here, for its interval to end or for something urgent.
    wake: Condvar,
    /// Those who flush wait here.
    flushed: Condvar,
}

struct State {
    queue: Queue,
    doors: usize,
    /// Whether there is a writer, which clears it under the lock when it ends.
    is_running: bool,
    /// Its thread, on which nobody may wait for it: that of a mask or an observer.
    writer: Option<ThreadId>,
    /// How many flushes were asked for, the writer has woken for, are done, and were over when the file failed.
    flushes_asked: u64,
    flushes_seen: u64,
    flushes_done: u64,
    flushes_failed: u64,
    written: u64,
    bytes: u64,
    failure: Option<Arc<str>>,
}

/// What the writer woke for.
pub(super) struct Round {
    /// The flushes that are done once everything that was taken is written; `None` if nothing was taken because there is still work.
    flushes: Option<u64>,
}

impl Round {
    pub(super) fn has_taken(&self) -> bool {
        self.flushes.is_some()
    }
}

/// Where the writer stands when it asks for work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// What was taken is written.
    Idle,
    /// So it is, and a file is being compressed.
    Compressing,
    /// It is not: the file fails.
    Behind,
}

/// The recorders whose path is being written.
static RECORDERS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

impl Tap {
    /// A connection's end; starts the writer unless another connection has.
    pub fn new(recorder: &Recorder, connection: u64) -> Self {
        Self { door: Arc::new(Shared::of(recorder).enter()), connection }
    }

    /// Records a frame. For a Close, the payload is that of the frame. One that is secret is recorded without its content.
    ///
    /// This takes a lock that is held for the copying of one payload of up to 64 KiB, and wakes nobody unless the queue becomes half full.
    pub fn frame(
        &self,
        at: Instant,
        generation: Generation,
        direction: Direction,
        kind: FrameKind,
        payload: &[u8],
        is_secret: bool,
    ) {
        let payload = if is_secret { &[] } else { payload };
        let head = Head::new(at, self.connection, generation.number(), direction, What::Frame(kind), is_secret);
        self.door.0.push(head, payload);
    }

    /// Records a change of state; a message is none.
    pub(crate) fn event(&self, at: Instant, generation: Generation, event: &Event) {
        if let Some(described) = state::describe(event) {
            let head = Head::new(at, self.connection, generation.number(), Direction::In, What::State, false);
            self.door.0.push(head, described.as_bytes());
        }
    }

    /// Waits until what was recorded so far is with the operating system, `timeout` at most, and not while the file fails. Returns
    /// whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.door.0.flush(timeout)
    }

    /// How the recording fares, with that of other connections to the same file.
    pub fn status(&self) -> RecorderStatus {
        self.door.0.status()
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { door, connection } = self;
        f.debug_struct("Tap").field("path", &door.0.path).field("connection", connection).finish()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let is_last = {
            let mut state = self.0.state.lock();
            state.doors -= 1;
            state.doors == 0
        };
        if is_last {
            self.0.wake.notify_one();
        }
    }
}

/// The side of the connections.
impl Shared {
    /// The one that writes to this path, or a new one.
    fn of(recorder: &Recorder) -> Arc<Self> {
        let path = path::absolute(&recorder.path).unwrap_or_else(|_| recorder.path.clone());
        let shared = {
            let mut recorders = RECORDERS.lock();
            recorders.retain(|shared| shared.strong_count() > 0);
            let found = recorders.iter().filter_map(Weak::upgrade).find(|shared| shared.path == path);
            found.unwrap_or_else(|| {
                let shared = Arc::new(Self::new(recorder.clone(), path));
                recorders.push(Arc::downgrade(&shared));
                shared
            })
        };
        if !shared.recorder.has_settings_of(recorder) {
            log::warn!("{} is being recorded to with other settings, which stand", shared.path.display());
        }
        shared
    }

    fn new(recorder: Recorder, path: PathBuf) -> Self {
        let state = State {
            queue: Queue::new(recorder.queue_max),
            doors: 0,
            is_running: false,
            writer: None,
            flushes_asked: 0,
            flushes_seen: 0,
            flushes_done: 0,
            flushes_failed: 0,
            written: 0,
            bytes: 0,
            failure: None,
        };
        let (wake, flushed) = (Condvar::new(), Condvar::new());
        Self { recorder, path, started: Instant::now(), state: Mutex::new(state), wake, flushed }
    }

    fn enter(self: Arc<Self>) -> Door {
        let is_running = {
            let mut state = self.state.lock();
            state.doors += 1;
            // None, after a writer that ended in a panic.
            state.queue.bytes_max = self.recorder.queue_max;
            mem::replace(&mut state.is_running, true)
        };
        if !is_running {
            let writer = Writer::new(self.clone());
            if let Err(error) = thread::Builder::new().name("zen-websocket recorder".to_owned()).spawn(|| writer.run()) {
                self.note_end(&error.to_string(), iter::empty());
                log::error!("no thread could be started to record to {}: {error}", self.path.display());
            }
        }
        Door(self)
    }

    fn push(&self, head: Head, payload: &[u8]) {
        // What takes long to copy is copied without the lock, and freed so.
        let is_half_full = if payload.len() > Chunk::PAYLOADS {
            if self.state.lock().queue.refuses(&head, payload.len()) {
                return;
            }
            let chunk = Chunk::of_one(head, payload);
            let pushed = self.state.lock().queue.push_chunk(chunk);
            pushed.unwrap_or(false)
        } else {
            self.state.lock().queue.push(head, payload)
        };
        if is_half_full {
            self.wake.notify_one();
        }
    }

    fn flush(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.is_running || state.writer == Some(thread::current().id()) {
            return false;
        }
        state.flushes_asked += 1;
        let flush = state.flushes_asked;
        self.wake.notify_one();
        let is_pending = |state: &mut State| state.flushes_done.max(state.flushes_failed) < flush;
        self.flushed.wait_while_for(&mut state, is_pending, timeout);
        state.flushes_done >= flush
    }

    fn status(&self) -> RecorderStatus {
        let state = self.state.lock();
        RecorderStatus {
            written: state.written,
            bytes: state.bytes,
            dropped: state.queue.dropped(),
            waiting: state.queue.bytes(),
            failure: state.failure.clone(),
        }
    }
}

/// The side of the writer.
impl Shared {
    /// Waits until there is something urgent to do, `wait` at most, and takes what waits unless the writer is behind. Returns `None` if
    /// the recording has ended.
    pub(super) fn await_work(&self, wait: Duration, progress: Progress, chunks: &mut Vec<Chunk>) -> Option<Round> {
        let is_behind = progress == Progress::Behind;
        let mut state = self.state.lock();
        let may_wait = |state: &mut State| {
            state.flushes_seen == state.flushes_asked && state.doors > 0 && (is_behind || !state.queue.is_half_full())
        };
        state.writer = Some(thread::current().id());
        self.wake.wait_while_for(&mut state, may_wait, wait);
        if state.doors == 0 && state.queue.is_empty() && progress == Progress::Idle {
            state.is_running = false;
            return None;
        }
        state.flushes_seen = state.flushes_asked;
        if is_behind {
            return Some(Round { flushes: None });
        }
        state.queue.take(chunks);
        Some(Round { flushes: Some(state.flushes_seen) })
    }

    /// A chunk is written, as so many bytes.
    pub(super) fn note_written(&self, chunk: Chunk, bytes: usize) {
        let freed = {
            let mut state = self.state.lock();
            state.written += chunk.len() as u64;
            state.bytes += bytes as u64;
            state.queue.give_back(chunk)
        };
        drop(freed);
    }

    /// Everything that was taken is written. Returns whether what came meanwhile should be, too, at once.
    pub(super) fn note_success(&self, round: Round) -> bool {
        let mut state = self.state.lock();
        let was_failing = state.failure.take().is_some();
        if let Some(flushes) = round.flushes
            && state.flushes_done < flushes
        {
            state.flushes_done = flushes;
            self.flushed.notify_all();
        }
        drop(state);
        if was_failing {
            log::info!("recording to {} goes on", self.path.display());
        }
        round.flushes.is_none()
    }

    /// Nothing can be written. Returns whether to try again later; else nobody records any longer, and the entries are to be given up.
    pub(super) fn note_failure(&self, failure: &str) -> bool {
        let mut state = self.state.lock();
        let is_new = state.failure.is_none();
        if state.failure.as_deref() != Some(failure) {
            state.failure = Some(failure.into());
        }
        state.flushes_failed = state.flushes_seen;
        self.flushed.notify_all();
        let is_wanted = state.doors > 0;
        drop(state);
        if is_new {
            log::error!("recording to {} failed, tried again every second: {failure}", self.path.display());
            telemetry::tell_recorder(&Signal::RecorderFailed { cause: failure });
        }
        is_wanted
    }

    /// Counts what was taken, and what waits, as dropped.
    pub(super) fn give_up(&self, chunks: impl Iterator<Item = Chunk>) {
        let (dropped, freed) = self.state.lock().give_up(chunks);
        drop(freed);
        if dropped > 0 {
            log::error!("{dropped} entries could not be recorded to {}", self.path.display());
        }
    }

    /// There is no writer, or none any longer: nothing is recorded until the next tap starts another. What was taken, and what waits,
    /// counts as dropped.
    ///
    /// Nothing is logged, since a panic may have come from the logger.
    pub(super) fn note_end(&self, failure: &str, chunks: impl Iterator<Item = Chunk>) {
        let freed = {
            let mut state = self.state.lock();
            state.is_running = false;
            state.queue.bytes_max = 0;
            state.failure = Some(failure.into());
            state.flushes_failed = state.flushes_asked;
            self.flushed.notify_all();
            state.give_up(chunks).1
        };
        drop(freed);
    }
}

impl State {
    /// Counts what was taken, and what waits, as dropped. Returns how many entries that are, and what is to be freed without the lock.
    fn give_up(&mut self, chunks: impl Iterator<Item = Chunk>) -> (u64, Vec<Chunk>) {
        let before = self.queue.dropped();
        let mut waiting = Vec::new();
        self.queue.take(&mut waiting);
        let freed = chunks.chain(waiting).filter_map(|chunk| self.queue.give_up(chunk)).collect();
        (self.queue.dropped() - before, freed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_writer_is_started_again_for_those_who_come_late() {
        let directory = tempfile::tempdir().unwrap();
        let tap = Tap::new(&Recorder::new(directory.path().join("feed.jsonl")), 1);
        let shared = tap.door.0.clone();
        drop(tap);
        while Arc::strong_count(&shared) > 1 {
            thread::yield_now();
        }
        let tap = Tap { door: Arc::new(shared.enter()), connection: 1 };
        assert!(tap.flush(Duration::from_secs(30)));
    }

    #[test]
    fn a_writer_that_panics_lets_go_of_everything_until_the_next_tap_starts_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("feed.jsonl");
        let shared = Arc::new(Shared::new(Recorder::new(&path), path));
        {
            let mut state = shared.state.lock();
            (state.is_running, state.doors) = (true, 1);
        }
        let tap = Tap { door: Arc::new(Door(shared.clone())), connection: 1 };
        let tick = || tap.frame(Instant::now(), Generation::default(), Direction::In, FrameKind::Text, b"tick", false);
        tick();
        let (sender, flushed) = mpsc::channel();
        let waiting = tap.clone();
        thread::spawn(move || sender.send(waiting.flush(Duration::MAX)));
        while shared.state.lock().flushes_asked == 0 {
            thread::yield_now();
        }
        let writer = Writer::new(shared.clone());
        let dying = thread::spawn(move || {
            let _writer = writer;
            panic!("as a logger does whose pipe is broken");
        });
        dying.join().unwrap_err();
        assert_eq!(flushed.recv_timeout(Duration::from_secs(30)), Ok(false));
        assert!(!tap.flush(Duration::MAX), "it does not wait for nobody");
        tick();
        let failure = Some("the thread that writes it panicked".into());
        assert_eq!(tap.status(), RecorderStatus { dropped: 2, failure, ..RecorderStatus::default() });

        let _door = shared.enter();
        tick();
        assert!(tap.flush(Duration::from_secs(30)));
        let RecorderStatus { written, dropped, failure, .. } = tap.status();
        assert_eq!((written, dropped, failure), (2, 2, None), "one tells of the other that is missing");
    }
}
