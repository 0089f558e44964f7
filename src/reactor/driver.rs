//! The loop that owns every socket: [`Driver::turn`] is all of it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::mem;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
use std::panic;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use crate::error::{Error, Result};
use crate::event::{ConnectionId, EventRef};
use crate::metrics::ReactorMetrics;
use crate::reactor::handler::Context;
use crate::reactor::mailbox::Mailbox;
use crate::reactor::scratch::Scratch;
use crate::reactor::sink::Engine;
use crate::reactor::slot::{Opening, Read, Slot, Turn};
use crate::reactor::work::Stopwatch;

/// How often a connection whose inbox is full looks for room.
const ROOM_INTERVAL: Duration = Duration::from_millis(1);

/// How many readiness events one poll takes; the rest follow with the next.
const EVENTS_MAX: usize = 1024;

/// How many sockets a driver that never waits reads without asking the poller first: asking once costs about as much as one empty read.
const HOT_MAX: usize = 4;

/// For how long turns may leave out the poller, the dials and the deadlines. By the clock, because only the engine knows how often it
/// turns.
const HOT_FOR: Duration = Duration::from_micros(5);

/// How many empty reads in a row make a socket cold: some hundred milliseconds of them for a driver that does nothing else.
const COLD_AFTER: u32 = 1 << 20;

const WAKER: Token = Token(usize::MAX);

/// A reactor without a thread, for engines that have a loop of their own.
///
/// Nothing happens between turns: no message is read, no ping answered, no deadline kept. Turn it at least as often as
/// [`next_deadline`](Self::next_deadline) asks, and whenever its descriptor ([`AsFd`]) is readable. Calls that wait, as
/// [`Client::close`](crate::Client::close) does, wait for turns; on the thread that turns they answer
/// [`Error::OnReactor`](crate::Error::OnReactor), but before the first turn no thread is known to be that one.
///
/// ```no_run
/// use std::time::Duration;
/// use zen_websocket::{Config, Driver, EventRef};
///
/// struct Engine {
///     ticks: u64,
/// }
///
/// let mut engine = Engine { ticks: 0 };
/// let mut driver = Driver::new()?;
/// let client = driver.open(Config::new("wss://www.example.com/ws"))?;
/// while engine.ticks < 1000 {
///     driver.turn_with(Duration::from_millis(1), |context, event| match event {
///         EventRef::Text(_) => engine.ticks += 1,
///         EventRef::State(event) => println!("{}: {event:?}", context.connection),
///         _ => {}
///     })?;
/// }
/// # Ok::<(), zen_websocket::Error>(())
/// ```
pub struct Driver {
    poll: Poll,
    events: Events,
    pub(crate) mailbox: Arc<Mailbox>,
    slots: Slots,
    hot: Hot,
    scratch: Scratch,
    stopwatch: Stopwatch,
    /// No connection will be opened any more.
    is_released: bool,
}

/// The sockets that had something to read lately, for a driver that never waits.
#[derive(Default)]
struct Hot {
    /// Each with the number of empty reads since.
    slots: Vec<(usize, u32)>,
    /// Until when turns may leave out the poller.
    until: Option<Instant>,
    /// Where the next one goes if there are too many.
    next: usize,
}

/// The connections and what is due on them.
#[derive(Default)]
struct Slots {
    entries: Vec<Entry>,
    free: Vec<usize>,
    by_id: HashMap<ConnectionId, usize>,
    /// Open connections that may have something to read, each once.
    ready: VecDeque<usize>,
    /// Dials that may go on, each once; one step of one of them is taken between two looks at the sockets.
    dials: VecDeque<usize>,
    /// Connections that wait for room in their inbox, each once.
    stuck: Vec<usize>,
    /// The next deadline of each connection that has one.
    deadlines: BTreeSet<(Instant, usize)>,
}

#[derive(Default)]
struct Entry {
    slot: Option<Slot>,
    is_queued: bool,
    is_stuck: bool,
    deadline: Option<Instant>,
}

impl Driver {
    /// A driver without connections.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) if the system has no poller or descriptor left.
    pub fn new() -> Result<Self> {
        let poll = Poll::new().map_err(Error::io)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(Error::io)?;
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            mailbox: Mailbox::new(waker),
            slots: Slots::default(),
            hot: Hot::default(),
            scratch: Scratch::new(),
            stopwatch: Stopwatch::new(),
            is_released: false,
        })
    }

    /// Serves the connections once: waits until something is to be done, `timeout` at most, does it and returns. Handlers run in here;
    /// events of connections that have neither handler nor inbox are discarded.
    ///
    /// Turned again and again without waiting (`Duration::ZERO`), it reads the up to four sockets that had something lately at once, and
    /// asks the poller for the others, and looks at dials and deadlines, every 5 µs.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) if polling fails.
    pub fn turn(&mut self, timeout: impl Into<Option<Duration>>) -> Result<()> {
        self.turn_with(timeout, |_, _| ())
    }

    /// As [`turn`](Self::turn), and gives the events of connections opened by [`open`](Self::open) to the closure, which may use the
    /// engine's own state. If it panics, the connection it ran for is closed and the panic goes on when the turn is complete.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) if polling fails.
    pub fn turn_with(
        &mut self,
        timeout: impl Into<Option<Duration>>,
        mut engine: impl FnMut(&Context<'_>, EventRef<'_>),
    ) -> Result<()> {
        self.serve(timeout.into(), &mut engine)?;
        // An engine may wait on the descriptor before the next turn.
        if !self.mailbox.is_asleep() && !self.mailbox.fall_asleep() {
            self.mailbox.wake();
        }
        if let Some(payload) = self.scratch.panic.take() {
            panic::resume_unwind(payload);
        }
        Ok(())
    }

    /// When the next turn is due though nothing happens; `None` if only an event can make one necessary.
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.slots.ready.is_empty() || !self.slots.dials.is_empty() {
            return Some(Instant::now());
        }
        let room = (!self.slots.stuck.is_empty()).then(|| Instant::now() + ROOM_INTERVAL);
        let timer = self.slots.deadlines.first().map(|(deadline, _)| *deadline);
        [room, timer].into_iter().flatten().min()
    }

    /// What it has done so far, as [`Reactor::metrics`](crate::Reactor::metrics) tells of a reactor.
    pub fn metrics(&self) -> ReactorMetrics {
        self.mailbox.work.metrics()
    }

    /// How many connections it serves. Those opened since the last turn are not among them yet.
    pub fn connections(&self) -> usize {
        self.slots.by_id.len()
    }

    /// Whether it serves connections or may yet.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.is_released || self.connections() > 0
    }

    /// All of a turn but what concerns an engine. Returns whether anything was to be done.
    pub(crate) fn serve(&mut self, timeout: Option<Duration>, engine: &mut Engine<'_>) -> Result<bool> {
        self.mailbox.enter();
        self.mailbox.work.note_turn();
        let is_spinning = timeout == Some(Duration::ZERO);
        let mut is_busy = false;
        let is_hot = |until| {
            self.stopwatch.start(Instant::now());
            self.stopwatch.since() < until
        };
        if is_spinning && self.hot.until.is_some_and(is_hot) {
            is_busy |= self.serve_hot(engine);
        } else {
            self.poll(timeout)?;
            self.stopwatch.start(Instant::now());
            self.note_events();
            let (ready, dials) = (self.slots.ready.len(), self.slots.dials.len());
            is_busy |= ready + dials > 0;
            self.serve_ready(engine, is_spinning);
            self.serve_dial(engine);
            is_busy |= self.serve_deadlines(engine);
            self.serve_stuck(engine);
            // With more sockets ready than can be hot, the poller finds them faster.
            let is_hot = is_spinning && ready <= HOT_MAX && !self.hot.slots.is_empty();
            self.hot.until = is_hot.then(|| Instant::now() + HOT_FOR);
        }
        is_busy |= self.serve_mailbox(engine);
        self.mailbox.work.note_connections(self.connections());
        Ok(is_busy)
    }

    /// Reads the hot sockets, whether there is anything or not, and goes on with what that, or the turn before, has left.
    fn serve_hot(&mut self, engine: &mut Engine<'_>) -> bool {
        let mut is_busy = !self.slots.ready.is_empty();
        let mut place = 0;
        while let Some((index, empty)) = self.hot.slots.get(place).copied() {
            let empty = match self.read_hot(index, engine) {
                Read::Something => {
                    is_busy = true;
                    0
                }
                Read::Nothing if empty < COLD_AFTER => empty + 1,
                Read::Nothing | Read::Closed => {
                    self.hot.slots.swap_remove(place);
                    continue;
                }
            };
            self.hot.slots[place].1 = empty;
            place += 1;
        }
        self.serve_ready(engine, true);
        if !self.slots.dials.is_empty() || !self.slots.stuck.is_empty() {
            self.hot.until = None;
        }
        is_busy
    }

    fn read_hot(&mut self, index: usize, engine: &mut Engine<'_>) -> Read {
        let entry = &mut self.slots.entries[index];
        let Some(slot) = &mut entry.slot else { return Read::Closed };
        if entry.is_queued {
            return Read::Something;
        }
        let mut turn = Turn { registry: self.poll.registry(), token: Token(index), scratch: &mut self.scratch, engine };
        let (read, again) = slot.handle_hot(&mut turn);
        if matches!(read, Read::Something) {
            self.put_back(index, again);
        }
        read
    }

    fn poll(&mut self, timeout: Option<Duration>) -> Result<()> {
        let mut wait = timeout;
        // Who spins need not know what is due later.
        if wait != Some(Duration::ZERO) {
            let until_due = self.next_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            wait = [timeout, until_due].into_iter().flatten().min();
        }
        if wait != Some(Duration::ZERO) && !self.mailbox.fall_asleep() {
            wait = Some(Duration::ZERO);
        }
        let polled = self.poll.poll(&mut self.events, wait);
        self.mailbox.wake_up();
        match polled {
            // A signal is a reason to look around, not a failure.
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(Error::io(error)),
            _ => Ok(()),
        }
    }

    fn note_events(&mut self) {
        for event in &self.events {
            if event.token() == WAKER {
                continue;
            }
            // An event that outlived its socket would at worst make its successor look once for nothing.
            let Token(index) = event.token();
            let Some(slot) = &mut self.slots.entries[index].slot else { continue };
            if event.is_writable() {
                slot.handle_writable();
            }
            let hangup = event.is_read_closed() || event.is_error();
            if event.is_readable() || hangup {
                slot.note_ready(hangup);
            } else if !slot.is_dialing() {
                continue;
            }
            self.slots.queue(index);
        }
    }

    /// One receive for each connection that has something.
    fn serve_ready(&mut self, engine: &mut Engine<'_>, is_spinning: bool) {
        for _ in 0..self.slots.ready.len() {
            let Some(index) = self.slots.ready.pop_front() else { break };
            self.scratch.was_filled = false;
            self.go_on(index, engine);
            if is_spinning && self.scratch.was_filled {
                self.hot.note(index);
            }
        }
    }

    fn serve_dial(&mut self, engine: &mut Engine<'_>) {
        if let Some(index) = self.slots.dials.pop_front() {
            self.go_on(index, engine);
        }
    }

    fn serve_mailbox(&mut self, engine: &mut Engine<'_>) -> bool {
        let Some(content) = self.mailbox.take() else { return false };
        for opening in content.openings {
            let index = self.slots.insert(opening);
            self.serve_slot(index, engine, |slot, turn| {
                slot.begin(turn);
                false
            });
        }
        for resolved in content.resolved {
            if let Some(index) = self.slots.by_id.get(&resolved.connection).copied() {
                self.serve_slot(index, engine, |slot, turn| {
                    slot.handle_resolved(turn, resolved);
                    slot.is_dialing()
                });
            }
        }
        for connection in content.posts {
            if let Some(index) = self.slots.by_id.get(&connection).copied() {
                self.serve_slot(index, engine, |slot, turn| {
                    slot.handle_post(turn);
                    false
                });
            }
        }
        self.is_released |= content.release;
        if content.stop {
            self.is_released = true;
            self.close();
        }
        true
    }

    fn serve_deadlines(&mut self, engine: &mut Engine<'_>) -> bool {
        let now = self.stopwatch.since();
        let mut is_busy = false;
        while let Some((deadline, index)) = self.slots.deadlines.first().copied()
            && deadline <= now
        {
            is_busy = true;
            self.slots.deadlines.pop_first();
            self.slots.entries[index].deadline = None;
            self.serve_slot(index, engine, |slot, turn| slot.handle_timeout(turn, now));
        }
        is_busy
    }

    fn serve_stuck(&mut self, engine: &mut Engine<'_>) {
        for index in mem::take(&mut self.slots.stuck) {
            self.slots.entries[index].is_stuck = false;
            self.serve_slot(index, engine, |slot, turn| slot.handle_room(turn));
        }
    }

    /// Serves a slot that was taken off its queue.
    fn go_on(&mut self, index: usize, engine: &mut Engine<'_>) {
        self.slots.entries[index].is_queued = false;
        self.serve_slot(index, engine, |slot, turn| slot.handle_ready(turn));
    }

    /// Lets a slot work, then files it where it now belongs.
    fn serve_slot(&mut self, index: usize, engine: &mut Engine<'_>, work: impl FnOnce(&mut Slot, &mut Turn<'_>) -> bool) {
        let Some(slot) = &mut self.slots.entries[index].slot else { return };
        let mut turn = Turn { registry: self.poll.registry(), token: Token(index), scratch: &mut self.scratch, engine };
        let again = work(slot, &mut turn);
        self.put_back(index, again);
    }

    /// Ends the service of a slot: its consumers are told, its time is taken, and it is filed.
    fn put_back(&mut self, index: usize, again: bool) {
        let Some(slot) = &mut self.slots.entries[index].slot else { return };
        slot.hand_over();
        let stall = self.stopwatch.lap(slot.shared.id, &self.mailbox.work);
        if let Some(took) = stall {
            slot.shared.tell_stall(took);
        }
        let has_ended = self.slots.file(index, again);
        if stall.is_some() || has_ended {
            // What observers, the logger and dropping what is the user's take is not the next one's.
            self.stopwatch.start(Instant::now());
        }
    }

    /// Ends every connection and refuses new ones.
    fn close(&mut self) {
        // Handlers run in here, perhaps on a thread that never turned the driver.
        self.mailbox.enter();
        self.stopwatch.start(Instant::now());
        let content = self.mailbox.close();
        for opening in content.openings {
            self.slots.insert(opening);
        }
        for index in 0..self.slots.entries.len() {
            self.serve_slot(index, &mut |_, _| (), |slot, turn| {
                slot.stop(turn);
                false
            });
        }
    }
}

/// Ends its connections with [`Error::Stopped`](crate::Error::Stopped).
impl Drop for Driver {
    fn drop(&mut self) {
        self.close();
        self.mailbox.leave_for_good();
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

#[cfg(unix)]
impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }
}

impl Hot {
    /// Adds a socket, in place of the one added first if there are too many.
    fn note(&mut self, index: usize) {
        if self.slots.iter().any(|(known, _)| *known == index) {
            return;
        }
        if self.slots.len() < HOT_MAX {
            return self.slots.push((index, 0));
        }
        self.slots[self.next] = (index, 0);
        self.next = (self.next + 1) % HOT_MAX;
    }
}

impl Slots {
    fn insert(&mut self, opening: Opening) -> usize {
        let id = opening.shared.id;
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            self.entries.len() - 1
        });
        self.entries[index].slot = Some(Slot::new(opening));
        self.by_id.insert(id, index);
        index
    }

    fn queue(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        let Some(slot) = &entry.slot else { return };
        if !entry.is_queued {
            entry.is_queued = true;
            if slot.is_dialing() {
                self.dials.push_back(index);
            } else {
                self.ready.push_back(index);
            }
        }
    }

    /// Puts a connection where its next piece of work will find it, or away if it has ended; returns whether it has.
    fn file(&mut self, index: usize, again: bool) -> bool {
        let Some(slot) = &self.entries[index].slot else { return false };
        let (is_closed, deadline) = slot.outlook();
        let is_stuck = !is_closed && slot.is_stuck();
        let entry = &mut self.entries[index];
        if entry.deadline != deadline {
            if let Some(old) = entry.deadline {
                self.deadlines.remove(&(old, index));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, index));
            }
            entry.deadline = deadline;
        }
        if is_stuck && !entry.is_stuck {
            entry.is_stuck = true;
            self.stuck.push(index);
        }
        if is_closed {
            self.remove(index);
        } else if again {
            self.queue(index);
        }
        is_closed
    }

    fn remove(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        let Some(slot) = entry.slot.take() else { return };
        self.by_id.remove(&slot.shared.id);
        if entry.is_queued {
            entry.is_queued = false;
            self.ready.retain(|other| *other != index);
            self.dials.retain(|other| *other != index);
        }
        if entry.is_stuck {
            entry.is_stuck = false;
            self.stuck.retain(|other| *other != index);
        }
        self.free.push(index);
        slot.discard();
    }
}
