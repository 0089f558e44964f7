//! What one receive brought, in one piece.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::mem;
use std::slice;
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use crate::event::{ConnectionId, Event, EventRef, Generation};
use crate::reactor::handler::Context;
use crate::reactor::sink::{Depth, Feeders, Intake, Outcome};
use crate::reactor::tray::{Queue, Tray};

/// How many bytes of payload make a batch complete, whatever follows.
const BATCH_BYTES: usize = 64 << 10;

/// How many used buffers wait for the next batches.
const SPARES_MAX: usize = 16;

/// Larger buffers are freed when their batch has been consumed.
const SPARE_BYTES: usize = 256 << 10;

/// What one receive of a connection brought: its messages, and the state changes among them, in order. Made by a
/// [`BatchInbox`](crate::BatchInbox).
///
/// Never empty, and never of two connections or two wires. A receive that brings more than 64 KiB of messages makes several batches, and
/// state changes may come alone. The memory is used again once the batch is dropped.
///
/// ```no_run
/// use zen_websocket::{BatchInbox, Config, EventRef, connect_with};
///
/// let batches = BatchInbox::new(8192);
/// let client = connect_with(Config::new("wss://www.example.com/ws"), &batches)?;
/// for batch in &batches {
///     let mut latest = None;
///     for event in &batch {
///         match event {
///             EventRef::Text(text) => latest = Some(text),
///             EventRef::State(event) => println!("{}, {}: {event:?}", batch.connection, batch.generation),
///             _ => {}
///         }
///     }
///     println!("{} events, then {latest:?}", batch.len());
/// }
/// # Ok::<(), zen_websocket::Error>(())
/// ```
pub struct Batch {
    /// Which connection; the id of its [`Client`](crate::Client).
    pub connection: ConnectionId,
    /// Which wire of it.
    pub generation: Generation,
    /// When the messages were read from the socket. Without messages: when the reactor noticed the first of the state changes.
    pub at: Instant,
    /// When the kernel took the latest of these bytes from the network, by the system's clock; see
    /// [`Config::kernel_stamps`](crate::Config::kernel_stamps).
    pub kernel_at: Option<SystemTime>,
    content: Content,
    tray: Arc<Tray<Batches>>,
}

/// The events of a [`Batch`], in order; made by [`Batch::iter`].
#[derive(Clone, Debug)]
pub struct Events<'a> {
    entries: slice::Iter<'a, Entry>,
    /// What the entries to come are about.
    text: &'a str,
    bytes: &'a [u8],
    states: slice::Iter<'a, Event>,
}

/// The queue of a batch inbox.
#[derive(Default)]
pub(crate) struct Batches {
    waiting: VecDeque<Parcel>,
    /// In all that wait.
    events: usize,
    spares: Vec<Content>,
}

/// The sending end of a batch inbox, for one connection.
pub(crate) struct BatchFeed {
    tray: Arc<Tray<Batches>>,
    /// What has not been handed over yet.
    current: Option<Parcel>,
    /// Batches were handed over since the consumers were told.
    is_news: bool,
}

/// A batch on its way.
struct Parcel {
    connection: ConnectionId,
    generation: Generation,
    at: Instant,
    kernel_at: Option<SystemTime>,
    /// It is not state changes alone.
    has_messages: bool,
    content: Content,
}

#[derive(Default)]
struct Content {
    entries: Vec<Entry>,
    /// The text messages, and the binary ones, back to back.
    text: String,
    bytes: Vec<u8>,
    states: Vec<Event>,
}

/// One event: how much of what it is.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Text(usize),
    Binary(usize),
    State,
}

impl Batch {
    /// The events in order. Payloads are borrowed from the batch.
    pub fn iter(&self) -> Events<'_> {
        let Content { entries, text, bytes, states } = &self.content;
        Events { entries: entries.iter(), text, bytes, states: states.iter() }
    }

    /// How many events.
    pub fn len(&self) -> usize {
        self.content.entries.len()
    }

    /// Whether there are none, which does not happen.
    pub fn is_empty(&self) -> bool {
        self.content.entries.is_empty()
    }
}

/// Takes the next batch, if there is one.
pub(crate) fn take_batch(tray: &Arc<Tray<Batches>>) -> Option<Batch> {
    let Parcel { connection, generation, at, kernel_at, content, .. } = tray.take(Batches::pop)?;
    Some(Batch { connection, generation, at, kernel_at, content, tray: tray.clone() })
}

impl BatchFeed {
    pub(crate) fn new(tray: Arc<Tray<Batches>>) -> Self {
        Self { tray, current: None, is_news: false }
    }

    /// The batch that this event belongs to.
    fn parcel_for(&mut self, context: &Context<'_>, is_message: bool) -> &mut Parcel {
        if self.current.as_ref().is_some_and(|parcel| !parcel.takes(context, is_message)) {
            self.hand_over();
        }
        let parcel = self.current.get_or_insert_with(|| {
            let content = self.tray.with(|batches| batches.spares.pop()).unwrap_or_default();
            Parcel::new(context, content)
        });
        if is_message && !mem::replace(&mut parcel.has_messages, true) {
            (parcel.at, parcel.kernel_at) = (context.at, context.kernel_at);
        }
        parcel
    }

    fn hand_over(&mut self) {
        if let Some(parcel) = self.current.take() {
            self.is_news |= self.tray.put(|batches| batches.push(parcel)).is_some();
        }
    }
}

impl Intake for BatchFeed {
    fn room(&self) -> usize {
        let held = self.current.as_ref().map_or(0, |parcel| parcel.content.entries.len());
        self.tray.room().saturating_sub(held)
    }

    fn deliver(&mut self, context: &Context<'_>, event: EventRef<'_>) -> Outcome {
        if self.tray.is_deserted() {
            self.current = None;
            return Outcome::Discarded;
        }
        let content = &mut self.parcel_for(context, !matches!(event, EventRef::State(_))).content;
        content.push(event);
        if content.payload() >= BATCH_BYTES {
            self.hand_over();
        }
        Outcome::Delivered
    }

    fn flush(&mut self) {
        self.hand_over();
        if mem::take(&mut self.is_news) {
            self.tray.ring();
        }
    }

    fn feeders(&self) -> &Feeders {
        &self.tray.feeders
    }

    fn depth(&self) -> Weak<dyn Depth> {
        let tray: Weak<Tray<_>> = Arc::downgrade(&self.tray);
        tray
    }
}

impl Parcel {
    fn new(context: &Context<'_>, content: Content) -> Self {
        let Context { connection, generation, at, kernel_at, .. } = *context;
        Self { connection, generation, at, kernel_at, has_messages: false, content }
    }

    /// Whether an event belongs to this batch. Messages of two receives do not belong together.
    fn takes(&self, context: &Context<'_>, is_message: bool) -> bool {
        self.generation == context.generation && !(is_message && self.has_messages && self.at != context.at)
    }
}

impl Content {
    fn push(&mut self, event: EventRef<'_>) {
        self.entries.push(match event {
            EventRef::Text(text) => {
                self.text.push_str(text);
                Entry::Text(text.len())
            }
            EventRef::Binary(bytes) => {
                self.bytes.extend_from_slice(bytes);
                Entry::Binary(bytes.len())
            }
            EventRef::State(event) => {
                self.states.push(event.clone());
                Entry::State
            }
        });
    }

    fn payload(&self) -> usize {
        self.text.len() + self.bytes.len()
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.text.clear();
        self.bytes.clear();
        self.states.clear();
    }

    /// How much memory it holds.
    fn size(&self) -> usize {
        let entries = self.entries.capacity() * size_of::<Entry>();
        let states = self.states.capacity() * size_of::<Event>();
        self.text.capacity() + self.bytes.capacity() + entries + states
    }
}

impl Batches {
    fn push(&mut self, parcel: Parcel) {
        self.events += parcel.content.entries.len();
        self.waiting.push_back(parcel);
    }

    fn pop(&mut self) -> Option<Parcel> {
        let parcel = self.waiting.pop_front()?;
        self.events -= parcel.content.entries.len();
        Some(parcel)
    }

    /// Keeps the memory of a batch, or returns it if there is enough.
    fn recycle(&mut self, content: Content) -> Option<Content> {
        if self.spares.len() == SPARES_MAX {
            return Some(content);
        }
        self.spares.push(content);
        None
    }
}

impl Queue for Batches {
    fn len(&self) -> usize {
        self.events
    }
}

/// Gives the memory back to be used again.
impl Drop for Batch {
    fn drop(&mut self) {
        let mut content = mem::take(&mut self.content);
        content.clear();
        if content.size() <= SPARE_BYTES {
            drop(self.tray.put(|batches| batches.recycle(content)));
        }
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = EventRef<'a>;
    type IntoIter = Events<'a>;

    fn into_iter(self) -> Events<'a> {
        self.iter()
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = EventRef<'a>;

    fn next(&mut self) -> Option<EventRef<'a>> {
        Some(match *self.entries.next()? {
            Entry::Text(length) => {
                let (text, rest) = self.text.split_at(length);
                self.text = rest;
                EventRef::Text(text)
            }
            Entry::Binary(length) => {
                let (bytes, rest) = self.bytes.split_at(length);
                self.bytes = rest;
                EventRef::Binary(bytes)
            }
            Entry::State => EventRef::State(self.states.next()?),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.entries.size_hint()
    }
}

impl ExactSizeIterator for Events<'_> {}
impl FusedIterator for Events<'_> {}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("connection", &self.connection)
            .field("generation", &self.generation)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::reactor::Driver;
    use crate::reactor::shared::Shared;
    use crate::reactor::tray::Owner;

    #[test]
    fn messages_of_two_receives_make_two_batches_and_state_changes_join_either() {
        let (mut feed, shared, owner) = fed();
        let (noticed, first, second) = times();
        let context = |at| Context::new(&shared, Generation::default(), at);
        deliver(&mut feed, &context(noticed), EventRef::State(&Event::Open));
        deliver(&mut feed, &context(first), EventRef::Text("a"));
        deliver(&mut feed, &context(first), EventRef::Binary(b"b"));
        deliver(&mut feed, &context(second), EventRef::State(&Event::Live));
        deliver(&mut feed, &context(second), EventRef::Text("c"));
        feed.flush();
        let batches: Vec<_> = std::iter::from_fn(|| take_batch(owner.tray())).map(|batch| (batch.at, batch.len())).collect();
        assert_eq!(batches, [(first, 4), (second, 1)]);
    }

    #[test]
    fn another_wire_makes_another_batch() {
        let (mut feed, shared, owner) = fed();
        let (at, ..) = times();
        let first = Generation::default().next();
        for generation in [first, first, first.next()] {
            deliver(&mut feed, &Context::new(&shared, generation, at), EventRef::State(&Event::Open));
        }
        feed.flush();
        let batches: Vec<_> = std::iter::from_fn(|| take_batch(owner.tray())).map(|it| (it.generation, it.len())).collect();
        assert_eq!(batches, [(first, 2), (first.next(), 1)]);
    }

    #[test]
    fn a_batch_that_is_large_enough_is_handed_over_at_once() {
        let (mut feed, shared, owner) = fed();
        let context = Context::new(&shared, Generation::default(), Instant::now());
        let half = "x".repeat(BATCH_BYTES / 2);
        deliver(&mut feed, &context, EventRef::Text(&half));
        assert_eq!((feed.room(), owner.len()), (99, 0));
        deliver(&mut feed, &context, EventRef::Binary(half.as_bytes()));
        assert_eq!((feed.room(), owner.len()), (98, 2));
        feed.flush();
        assert_eq!(take_batch(owner.tray()).unwrap().len(), 2);
        assert!(take_batch(owner.tray()).is_none());
    }

    #[test]
    fn the_memory_of_batches_is_used_again_unless_it_is_much() {
        let (mut feed, shared, owner) = fed();
        let context = Context::new(&shared, Generation::default(), Instant::now());
        let mut batch_of = |bytes: usize| {
            deliver(&mut feed, &context, EventRef::Binary(&vec![0; bytes]));
            feed.flush();
            take_batch(owner.tray()).unwrap()
        };
        let spares = || owner.with(|batches| batches.spares.len());
        drop(batch_of(SPARE_BYTES + 1));
        assert_eq!(spares(), 0);
        let batches: Vec<_> = (0..SPARES_MAX + 1).map(|_| batch_of(10)).collect();
        drop(batches);
        assert_eq!(spares(), SPARES_MAX);
        let again = batch_of(10);
        assert_eq!((spares(), again.len()), (SPARES_MAX - 1, 1));
    }

    fn fed() -> (BatchFeed, Arc<Shared>, Owner<Batches>) {
        let mailbox = Driver::new().unwrap().mailbox.clone();
        let shared = Shared::new(ConnectionId::next(), Arc::new(Config::new("ws://peer")), None, mailbox, None);
        let owner = Owner::new(100);
        (BatchFeed::new(owner.tray().clone()), shared, owner)
    }

    fn times() -> (Instant, Instant, Instant) {
        let now = Instant::now();
        (now, now + Duration::from_secs(1), now + Duration::from_secs(2))
    }

    fn deliver(feed: &mut BatchFeed, context: &Context<'_>, event: EventRef<'_>) {
        assert!(matches!(feed.deliver(context, event), Outcome::Delivered));
    }
}
