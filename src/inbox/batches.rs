//! The receiving end for floods: one hand-over for each receive.

use std::fmt;
use std::time::Duration;

use crate::error::Result;
use crate::inbox::wait::{self, IntoIter, Iter, Source, Yield};
use crate::reactor::{Batch, BatchFeed, Batches, Bell, Feeders, Kind, Owner, Sink, take_batch};

/// Yields what connections receive in batches: all that one receive brought, with the payloads copied back to back into one buffer that is
/// used again. A flood costs one hand-over, one wake-up and no allocation for each receive, instead of one for each message.
///
/// Otherwise as an [`Inbox`](crate::Inbox) made by [`Inbox::shared`](crate::Inbox::shared): give `&batches` to
/// [`connect_with`](crate::connect_with) or [`open_with`](crate::open_with). Clones draw from the same queue, each batch goes to one of
/// them. It never ends; a consumer that is to end counts `Closed` events. Dropping all clones does not close the connections: what
/// arrives is then discarded and counted. `crossbeam_channel::select!` knows nothing of it.
///
/// ```
/// use zen_websocket::{BatchInbox, Config, Event, EventRef, connect_with};
/// # use zen_websocket::testkit::MockServer;
/// # let server = MockServer::start()?;
/// # let url = server.url();
///
/// let batches = BatchInbox::new(8192);
/// let client = connect_with(Config::new(url), &batches)?;
/// client.send("hello")?;
/// 'all: for batch in &batches {
///     for event in &batch {
///         match event {
///             EventRef::Text(text) => {
///                 assert_eq!(text, "hello");
///                 client.start_close(1000, "done")?;
///             }
///             EventRef::State(Event::Closed { .. }) => break 'all,
///             other => println!("{}: {other:?}", batch.connection),
///         }
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct BatchInbox {
    owner: Owner<Batches>,
    patience: Duration,
}

impl BatchInbox {
    /// An inbox for one connection or many. When `capacity` events wait in it, the [`overflow`](crate::Config::overflow) setting of each
    /// connection applies, as it does for an [`Inbox`](crate::Inbox).
    ///
    /// # Panics
    ///
    /// If `capacity` is 0.
    pub fn new(capacity: usize) -> Self {
        Self { owner: Owner::new(capacity), patience: Duration::ZERO }
    }

    /// The same with consumers that look for so long before they sleep; see [`Inbox::spin_for`](crate::Inbox::spin_for).
    pub fn spin_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Waits for the next batch.
    ///
    /// # Errors
    ///
    /// [`Error::OnReactor`](crate::Error::OnReactor) on the thread that would have to feed it.
    pub fn recv(&self) -> Result<Batch> {
        wait::recv(self, None)
    }

    /// The next batch if there is one, without waiting.
    pub fn try_recv(&self) -> Option<Batch> {
        take_batch(self.owner.tray())
    }

    /// Waits for the next batch, `timeout` at most.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`](crate::Error::Timeout) if none came; otherwise as [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Batch> {
        wait::recv(self, Some(timeout))
    }

    /// Waits for the next batch without ever sleeping; see [`Inbox::spin`](crate::Inbox::spin).
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn spin(&self) -> Result<Batch> {
        wait::spin(self)
    }

    /// Iterates for ever, except on the thread that would have to feed it.
    pub fn iter(&self) -> Iter<'_, Self> {
        Iter(self)
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.owner.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Yield for BatchInbox {
    type Item = Batch;

    fn next(&self) -> Option<Batch> {
        self.recv().ok()
    }
}

impl Source for BatchInbox {
    fn take(&self) -> Result<Option<Batch>> {
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

impl<'a> IntoIterator for &'a BatchInbox {
    type Item = Batch;
    type IntoIter = Iter<'a, BatchInbox>;

    fn into_iter(self) -> Iter<'a, BatchInbox> {
        self.iter()
    }
}

impl IntoIterator for BatchInbox {
    type Item = Batch;
    type IntoIter = IntoIter<Self>;

    fn into_iter(self) -> IntoIter<Self> {
        IntoIter(self)
    }
}

impl From<&BatchInbox> for Sink {
    fn from(inbox: &BatchInbox) -> Self {
        Self(Kind::Intake(Box::new(BatchFeed::new(inbox.owner.tray().clone()))))
    }
}

impl fmt::Debug for BatchInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchInbox").field("len", &self.len()).finish_non_exhaustive()
    }
}
