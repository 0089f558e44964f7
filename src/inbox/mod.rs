//! The receiving ends that callers hold.

mod batches;
mod conflating;
mod wait;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};

pub use self::batches::BatchInbox;
pub use self::conflating::ConflatingInbox;
pub use self::wait::{IntoIter, Iter};
use self::wait::{Source, Yield};
use crate::error::{Error, Result};
use crate::event::Received;
use crate::reactor::{Bell, Channels, Feed, Feeders, Kind, Sink};

/// Yields the events of one or many connections, in order.
///
/// An inbox made by [`connect`](crate::connect) or [`open`](crate::open) ends after its connection's `Closed` event; one made by
/// [`Inbox::shared`] never ends. Clones draw from the same queue, so several worker threads may iterate it; each event goes to one of
/// them. Dropping all of them does not close the connection: what arrives is then discarded and counted.
///
/// A consumer that sleeps is woken once for all that a receive brought; one that sees more than it takes wakes the next. For floods there
/// is a [`BatchInbox`], for those who want the newest only a [`ConflatingInbox`].
///
/// ```no_run
/// use zen_websocket::{Event, connect};
///
/// let (client, inbox) = connect("wss://www.example.com/ws")?;
/// for received in &inbox {
///     match received.event {
///         Event::Open => {
///             client.send_on(received.generation, "hello")?;
///         }
///         Event::Message(message) => println!("{:?}", message.text()),
///         Event::Lost { cause, .. } => println!("lost, what was built before is stale: {cause}"),
///         other => println!("{other:?}"),
///     }
/// }
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[derive(Clone)]
pub struct Inbox {
    receiver: Receiver<Received>,
    /// The sending end, if more connections may be opened into this inbox.
    feed: Option<Feed>,
    bell: Arc<Bell>,
    feeders: Feeders,
    patience: Duration,
}

impl Inbox {
    /// An inbox for many connections: give `&inbox` to [`connect_with`](crate::connect_with) or [`open_with`](crate::open_with). When
    /// it holds `capacity` events, the [`overflow`](crate::Config::overflow) setting of each connection applies; what may exceed it is
    /// said at [`Config::inbox_capacity`](crate::Config::inbox_capacity). It never ends; a consumer that is to end counts `Closed` events.
    /// The first events of a connection may come before the call that opened it has returned its id.
    ///
    /// # Panics
    ///
    /// If `capacity` is 0.
    pub fn shared(capacity: usize) -> Self {
        assert!(capacity > 0, "an inbox without room receives nothing");
        let (feed, inbox) = Self::pair(capacity);
        Self { feed: Some(feed), ..inbox }
    }

    pub(crate) fn pair(capacity: usize) -> (Feed, Self) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let (bell, feeders) = (Arc::<Bell>::default(), Feeders::default());
        let feed = Feed::new(sender, bell.clone(), capacity, feeders.clone());
        (feed, Self { receiver, feed: None, bell, feeders, patience: Duration::ZERO })
    }

    /// The same with consumers that look for so long before they sleep: an event that comes meanwhile is taken without a wake-up, at the
    /// price of a core. Holds for [`recv`](Self::recv), [`recv_timeout`](Self::recv_timeout) and iteration. Default zero: never looks
    /// twice.
    pub fn spin_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when nothing can come any more; [`Error::OnReactor`] on the thread that would have to feed it.
    pub fn recv(&self) -> Result<Received> {
        wait::recv(self, None)
    }

    /// The next event if there is one, without waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when nothing can come any more.
    pub fn try_recv(&self) -> Result<Option<Received>> {
        self.take()
    }

    /// Waits for the next event, `timeout` at most.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if none came; otherwise as [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Received> {
        wait::recv(self, Some(timeout))
    }

    /// Waits for the next event without ever sleeping: takes the core of the calling thread, and sees an event without having to be woken.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn spin(&self) -> Result<Received> {
        wait::spin(self)
    }

    /// Iterates until nothing can come any more.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self)
    }

    /// The channel itself, for `crossbeam_channel::select!`. Who waits on it is woken by every event.
    pub fn receiver(&self) -> &Receiver<Received> {
        &self.receiver
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.receiver.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    fn shared_feed(&self) -> Feed {
        self.feed.clone().expect("only an inbox made by Inbox::shared takes further connections")
    }
}

impl Yield for Inbox {
    type Item = Received;

    fn next(&self) -> Option<Received> {
        self.recv().ok()
    }
}

impl Source for Inbox {
    fn take(&self) -> Result<Option<Received>> {
        match self.receiver.try_recv() {
            Ok(received) => Ok(Some(received)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Error::Closed),
        }
    }

    fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    fn bell(&self) -> &Bell {
        &self.bell
    }

    fn feeders(&self) -> &Feeders {
        &self.feeders
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}

impl<'a> IntoIterator for &'a Inbox {
    type Item = Received;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Inbox {
    type Item = Received;
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter(self)
    }
}

impl Channels {
    /// Gives the data of these channels to this inbox instead of where the connection's messages go, unless another subscription without
    /// an inbox wants them there too. The inbox gets `Open`, `Live`, `Lost` and `Closed` as well, and what concerns its channels. When it
    /// is full, data is dropped and reported as [`Event::Gap`](crate::Event::Gap), whatever the connection's overflow policy: one slow
    /// consumer must not hold up the other channels.
    ///
    /// # Panics
    ///
    /// If the inbox was not made by [`Inbox::shared`].
    pub fn inbox(mut self, inbox: &Inbox) -> Self {
        self.feed = Some(inbox.shared_feed());
        self
    }
}

impl From<&Inbox> for Sink {
    /// # Panics
    ///
    /// If the inbox was made for one connection; see [`Inbox::shared`].
    fn from(inbox: &Inbox) -> Self {
        Self(Kind::Feed(inbox.shared_feed()))
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("len", &self.len()).finish_non_exhaustive()
    }
}
