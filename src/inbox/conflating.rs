//! The receiving end for those who want the newest only.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::event::{ConnectionId, EventRef, Received};
use crate::inbox::wait::{self, IntoIter, Iter, Source, Yield};
use crate::reactor::{Bell, Conflated, ConflatingFeed, Feeders, KeyFn, Kind, Owner, Sink};

/// Yields the latest message of each key: one that comes while an older one with the same key still waits takes the older one's place. A
/// slow consumer sees fewer messages, and no stale ones.
///
/// The place in the queue is that of the older one, so a busy key neither starves nor overtakes the others. No message passes a state
/// change of its connection: what comes after an `Open`, a `Lost` or a `Gap` is not mixed with what came before. State changes all
/// arrive, in order.
///
/// Otherwise as an [`Inbox`](crate::Inbox) made by [`Inbox::shared`](crate::Inbox::shared): give `&latest` to
/// [`connect_with`](crate::connect_with) or [`open_with`](crate::open_with). Clones draw from the same queue. It never ends; a consumer
/// that is to end counts `Closed` events. Dropping all clones does not close the connections: what arrives is then discarded and
/// counted. `crossbeam_channel::select!` knows nothing of it.
///
/// ```no_run
/// use zen_websocket::{Config, ConflatingInbox, Event, EventRef, connect_with, peek};
///
/// let latest = ConflatingInbox::new(1024, |connection, message| match message {
///     EventRef::Text(text) => peek::field(text, "symbol").map(|symbol| (connection, symbol.to_owned())),
///     _ => None,
/// });
/// let client = connect_with(Config::new("wss://www.example.com/ws"), &latest)?;
/// for received in &latest {
///     if let Event::Message(message) = received.event {
///         println!("{:?}, {} skipped so far", message.text(), latest.conflated());
///     }
/// }
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[derive(Clone)]
pub struct ConflatingInbox<K> {
    owner: Owner<Conflated<K>>,
    key: Arc<KeyFn<K>>,
    patience: Duration,
}

impl<K: Clone + Eq + Hash + Send + 'static> ConflatingInbox<K> {
    /// An inbox for one connection or many.
    ///
    /// `key` says what a message is the latest value of; messages of different connections never replace one another. With `None` a
    /// message is kept, in its place. It runs on the reactor thread for every message, so it must not block; a panic closes the
    /// connection with [`Error::Panicked`](crate::Error::Panicked). `Hash`, `Eq`, `Clone` and `Drop` of the key run under the lock of the
    /// inbox and must not use it. [`Received::more`](crate::Received::more) is never set.
    ///
    /// When `capacity` events wait, the [`overflow`](crate::Config::overflow) setting of each connection applies, as it does for an
    /// [`Inbox`](crate::Inbox): give it room for all keys. What takes another's place takes no room.
    ///
    /// # Panics
    ///
    /// If `capacity` is 0.
    pub fn new(capacity: usize, key: impl Fn(ConnectionId, EventRef<'_>) -> Option<K> + Send + Sync + 'static) -> Self {
        Self { owner: Owner::new(capacity), key: Arc::new(key), patience: Duration::ZERO }
    }

    /// The same with consumers that look for so long before they sleep; see [`Inbox::spin_for`](crate::Inbox::spin_for).
    pub fn spin_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// [`Error::OnReactor`](crate::Error::OnReactor) on the thread that would have to feed it.
    pub fn recv(&self) -> Result<Received> {
        wait::recv(self, None)
    }

    /// The next event if there is one, without waiting.
    pub fn try_recv(&self) -> Option<Received> {
        self.owner.take(Conflated::take)
    }

    /// Waits for the next event, `timeout` at most.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`](crate::Error::Timeout) if none came; otherwise as [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Received> {
        wait::recv(self, Some(timeout))
    }

    /// Waits for the next event without ever sleeping; see [`Inbox::spin`](crate::Inbox::spin).
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn spin(&self) -> Result<Received> {
        wait::spin(self)
    }

    /// Iterates for ever, except on the thread that would have to feed it.
    pub fn iter(&self) -> Iter<'_, Self> {
        Iter(self)
    }

    /// How many messages a newer one has replaced.
    pub fn conflated(&self) -> u64 {
        self.owner.with(|queue| queue.replaced)
    }
}

impl<K> ConflatingInbox<K> {
    /// How many events wait.
    pub fn len(&self) -> usize {
        self.owner.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Yield for ConflatingInbox<K> {
    type Item = Received;

    fn next(&self) -> Option<Received> {
        self.recv().ok()
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Source for ConflatingInbox<K> {
    fn take(&self) -> Result<Option<Received>> {
        Ok(self.try_recv())
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bell(&self) -> &Bell {
        &self.owner.bell
    }

    fn feeders(&self) -> &Feeders {
        &self.owner.feeders
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}

impl<'a, K: Clone + Eq + Hash + Send + 'static> IntoIterator for &'a ConflatingInbox<K> {
    type Item = Received;
    type IntoIter = Iter<'a, ConflatingInbox<K>>;

    fn into_iter(self) -> Iter<'a, ConflatingInbox<K>> {
        self.iter()
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> IntoIterator for ConflatingInbox<K> {
    type Item = Received;
    type IntoIter = IntoIter<Self>;

    fn into_iter(self) -> IntoIter<Self> {
        IntoIter(self)
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> From<&ConflatingInbox<K>> for Sink {
    fn from(inbox: &ConflatingInbox<K>) -> Self {
        Self(Kind::Intake(Box::new(ConflatingFeed::new(inbox.owner.tray().clone(), inbox.key.clone()))))
    }
}

impl<K> fmt::Debug for ConflatingInbox<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConflatingInbox").field("len", &self.len()).finish_non_exhaustive()
    }
}
