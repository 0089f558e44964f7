//! A recording in step with the time that passed when it was made.

use std::fmt;
use std::iter::FusedIterator;
use std::panic;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::event::{ConnectionId, Event, Generation, Received};
use crate::inbox::Inbox;
use crate::reactor::Feed;
use crate::recorder::Entry;
use crate::recording::clock::{Clock, Speed, later};
use crate::recording::entries::Entries;
use crate::recording::event::to_event;
use crate::recording::lives::{Life, Lives};

/// The entries of a recording, each when it is due; made by [`Recording::replay`](crate::Recording::replay).
///
/// The first is due at once, every other as long after it as it was recorded, divided by the [`Speed`]: by the clock that is never set
/// where the recording has it, else by the time of day. What the consumer is late for comes at once, until it has caught up. A pause counts
/// as an hour at most.
///
/// ```no_run
/// use zen_websocket::{Content, Recording, Speed};
///
/// for entry in Recording::open("feed.jsonl")?.replay(Speed::Times(10.0)) {
///     if let Content::Text(text) = entry?.content {
///         println!("{text}");
///     }
/// }
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[must_use]
#[derive(Debug)]
pub struct Replay {
    entries: Entries,
    speed: Speed,
    clock: Clock,
    began: Option<Instant>,
    /// How long after the first entry the latest was recorded.
    position: Duration,
    brake: Arc<Brake>,
}

/// A replay into an inbox, which goes on until this is dropped; made by [`Replay::into_inbox`].
#[must_use = "dropping it ends the replay"]
pub struct Feeding {
    thread: Option<JoinHandle<Result<u64>>>,
    brake: Arc<Brake>,
}

impl Replay {
    pub(super) fn new(entries: Entries, speed: Speed) -> Self {
        speed.validate();
        let (clock, brake) = (Clock::default(), Arc::default());
        Self { entries, speed, clock, began: None, position: Duration::ZERO, brake }
    }

    /// How many lines were no entries, so far.
    pub fn skipped(&self) -> u64 {
        self.entries.skipped()
    }

    /// Feeds an inbox, from a thread of its own, with what its consumers would have got: messages and changes of state, in the order they
    /// were recorded. The inbox ends after the last, and before a file that cannot be read on, which [`Feeding::wait`] tells. When it holds `capacity` events the replay waits for its consumers.
    ///
    /// Each connection has an id of its own in this process, each event the generation it was recorded with. [`Received::at`] is as
    /// far from the start of the replay as the entry is from the first, whatever the speed, so that what a strategy computes from it does
    /// not depend on the speed.
    ///
    /// A recording has less than the connection had: causes are told from their texts, and are [`Error::Io`] with that text otherwise.
    /// Replies, requests and notices of a venue come as messages. Masked messages do not come. Where entries are missing, every
    /// connection that is open gets an [`Event::Gap`].
    ///
    /// ```no_run
    /// use zen_websocket::{Event, Recording, Speed};
    ///
    /// let (inbox, feeding) = Recording::open("feed.jsonl")?.replay(Speed::Unpaced).into_inbox(8192)?;
    /// for received in &inbox {
    ///     if let Event::Message(message) = received.event {
    ///         println!("{:?}", message.text());
    ///     }
    /// }
    /// println!("{} events", feeding.wait()?);
    /// # Ok::<(), zen_websocket::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the system has no thread left.
    ///
    /// # Panics
    ///
    /// If `capacity` is 0.
    pub fn into_inbox(self, capacity: usize) -> Result<(Inbox, Feeding)> {
        assert!(capacity > 0, "an inbox without room receives nothing");
        let (feed, inbox) = Inbox::pair(capacity);
        let brake = self.brake.clone();
        let thread = thread::Builder::new().name("zen-websocket replay".to_owned());
        let thread = thread.spawn(move || self.feed(feed)).map_err(Error::io)?;
        Ok((inbox, Feeding { thread: Some(thread), brake }))
    }

    fn feed(mut self, mut feed: Feed) -> Result<u64> {
        let began = Instant::now();
        let (mut cast, mut events) = (Cast::default(), Vec::new());
        let mut count = 0;
        while let Some(entry) = self.next() {
            cast.receive(&entry?, later(began, self.position), &mut events);
            for received in events.drain(..) {
                if feed.room() == 0 {
                    feed.flush();
                }
                // Consumers do not tell when they make room, so that they pay nothing for it.
                while feed.room() == 0 {
                    if !self.brake.wait_until(Instant::now() + ROOM_LOOK) {
                        return Ok(count);
                    }
                }
                if !feed.push(received) {
                    return Ok(count);
                }
                count += 1;
                if self.speed != Speed::Unpaced || count % FLUSH_EVERY == 0 {
                    feed.flush();
                }
            }
        }
        // The feed goes, and its consumers wake to see it.
        Ok(count)
    }
}

impl Iterator for Replay {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        let entry = match self.entries.next()? {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        self.position = self.clock.advance(&entry);
        let goes_on = match self.speed.scale(self.position) {
            Some(due) => self.brake.wait_until(later(*self.began.get_or_insert_with(Instant::now), due)),
            None => !self.brake.is_pulled(),
        };
        goes_on.then_some(Ok(entry))
    }
}

impl FusedIterator for Replay {}

impl Feeding {
    /// Waits until everything is in the inbox, or nobody holds it any more, and returns how many events were put into it.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a file could not be read to its end, with its path. Nothing behind that was put into the inbox.
    ///
    /// # Panics
    ///
    /// If a [filter](crate::Recording::filter) did.
    pub fn wait(mut self) -> Result<u64> {
        let thread = self.thread.take().expect("nobody else takes it");
        thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        self.brake.pull();
    }
}

impl fmt::Debug for Feeding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feeding").finish_non_exhaustive()
    }
}

/// Turns entries into events, under the ids that the recorded connections have in this process.
#[derive(Default)]
struct Cast {
    lives: Lives,
    ids: Vec<ConnectionId>,
}

impl Cast {
    fn receive(&mut self, entry: &Entry, at: Instant, events: &mut Vec<Received>) {
        let place = self.lives.place(entry);
        let Some(event) = to_event(entry) else { return };
        match place {
            Some(place) => events.push(self.received(place.life, at, event)),
            None => {
                let open: Vec<_> = self.lives.open().collect();
                events.extend(open.into_iter().map(|life| self.received(life, at, event.clone())));
            }
        }
    }

    fn received(&mut self, life: Life, at: Instant, event: Event) -> Received {
        while self.ids.len() <= life.index {
            self.ids.push(ConnectionId::next());
        }
        let (connection, generation) = (self.ids[life.index], Generation::new(life.generation));
        Received { connection, generation, at, kernel_at: None, more: false, event }
    }
}

/// Ends waits early, for good.
#[derive(Debug, Default)]
struct Brake {
    is_pulled: Mutex<bool>,
    pulled: Condvar,
}

impl Brake {
    fn pull(&self) {
        *self.is_pulled.lock() = true;
        self.pulled.notify_all();
    }

    fn is_pulled(&self) -> bool {
        *self.is_pulled.lock()
    }

    /// Returns whether to go on.
    fn wait_until(&self, deadline: Instant) -> bool {
        let mut is_pulled = self.is_pulled.lock();
        while !*is_pulled && Instant::now() < deadline {
            self.pulled.wait_until(&mut is_pulled, deadline);
        }
        !*is_pulled
    }
}

/// How often a replay without pauses looks whether a consumer sleeps, in events.
const FLUSH_EVERY: u64 = 64;
const ROOM_LOOK: Duration = Duration::from_millis(1);
