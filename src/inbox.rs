//! The receiving end that callers hold.

use std::fmt;
use std::iter::FusedIterator;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use crate::error::{Error, Result};
use crate::event::Received;
use crate::reactor::{Channels, Feed, Feeders, Kind, Sink};

/// Yields the events of one or many connections, in order.
///
/// An inbox made by [`connect`](crate::connect) or [`open`](crate::open) ends after its connection's `Closed` event; one made by
/// [`Inbox::shared`] never ends. Clones draw from the same queue, so several worker threads may iterate it; each event goes to one of
/// them. Dropping all of them does not close the connection: what arrives is then discarded and counted.
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
    feeders: Feeders,
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
        let feeders = Feeders::default();
        (Feed { sender, capacity, feeders: feeders.clone() }, Self { receiver, feed: None, feeders })
    }

    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when nothing can come any more; [`Error::OnReactor`] on the thread that would have to feed it.
    pub fn recv(&self) -> Result<Received> {
        if let Some(received) = self.try_recv()? {
            return Ok(received);
        }
        self.check_thread()?;
        self.receiver.recv().map_err(|_| Error::Closed)
    }

    /// The next event if there is one, without waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when nothing can come any more.
    pub fn try_recv(&self) -> Result<Option<Received>> {
        match self.receiver.try_recv() {
            Ok(received) => Ok(Some(received)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Error::Closed),
        }
    }

    /// Waits for the next event, `timeout` at most.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if none came; otherwise as [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Received> {
        if let Some(received) = self.try_recv()? {
            return Ok(received);
        }
        self.check_thread()?;
        self.receiver.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => Error::Timeout { after: timeout, sent: false },
            RecvTimeoutError::Disconnected => Error::Closed,
        })
    }

    /// Waits for the next event without ever sleeping: takes the core of the calling thread, and sees an event without having to be woken.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn spin(&self) -> Result<Received> {
        if let Some(received) = self.try_recv()? {
            return Ok(received);
        }
        self.check_thread()?;
        loop {
            if let Some(received) = self.try_recv()? {
                return Ok(received);
            }
            std::hint::spin_loop();
        }
    }

    /// Iterates until nothing can come any more.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self)
    }

    /// The channel itself, for `crossbeam_channel::select!`.
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

    fn check_thread(&self) -> Result<()> {
        if self.feeders.include_this_thread() { Err(Error::OnReactor) } else { Ok(()) }
    }
}

/// Events until nothing can come any more; made by [`Inbox::iter`].
#[derive(Debug)]
pub struct Iter<'a>(&'a Inbox);

/// Events until nothing can come any more; made by iterating an [`Inbox`] itself.
#[derive(Debug)]
pub struct IntoIter(Inbox);

impl Iterator for Iter<'_> {
    type Item = Received;

    fn next(&mut self) -> Option<Received> {
        self.0.recv().ok()
    }
}

impl Iterator for IntoIter {
    type Item = Received;

    fn next(&mut self) -> Option<Received> {
        self.0.recv().ok()
    }
}

impl FusedIterator for Iter<'_> {}
impl FusedIterator for IntoIter {}

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
