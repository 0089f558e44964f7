//! Channels that a caller wants, and the handle that keeps them wanted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::dialect;
use crate::error::{Error, RejectedChannel, Result};
use crate::event::{Standing, State};
use crate::reactor::calls::Waiter;
use crate::reactor::shared::Shared;
use crate::reactor::sink::Feed;
use crate::reactor::talk::{Want, What};
use crate::session::Session;

/// Channels to be subscribed, with how they are to be watched. Made from names, in any of the usual containers.
///
/// ```no_run
/// # use std::time::Duration;
/// # use zen_websocket::{Channels, Config, Inbox, JsonRpc, connect};
/// # let (client, main) = connect(Config::new("wss://www.example.com/ws").dialect(JsonRpc::default()))?;
/// let inbox = Inbox::shared(1024);
/// let books = Channels::new(["book.BTC-PERPETUAL.raw", "book.ETH-PERPETUAL.raw"]).inbox(&inbox).silence(Duration::from_secs(5));
/// let books = client.subscribe(books)?;
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[must_use]
#[derive(Clone)]
pub struct Channels {
    names: Vec<Arc<str>>,
    pub(crate) feed: Option<Feed>,
    silence: Option<Duration>,
    sequenced: bool,
}

/// Keeps channels subscribed across losses, until it is dropped.
///
/// A channel that several subscriptions want is subscribed once and unsubscribed when the last of them is dropped. Unsubscribing does not
/// wait for the venue's confirmation; data that is still under way arrives.
#[must_use = "dropping it unsubscribes"]
pub struct Subscription {
    shared: Arc<Shared>,
    subscriber: u64,
    channels: Arc<[Arc<str>]>,
    /// The order that began it: before it is carried out, standings tell of earlier subscriptions.
    order: u64,
}

impl Channels {
    /// Channels by their names. A name that comes twice counts once.
    pub fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Self {
        let mut seen = BTreeMap::new();
        for name in names {
            let place = seen.len();
            seen.entry(Arc::<str>::from(name.as_ref())).or_insert(place);
        }
        let mut names: Vec<_> = seen.into_iter().collect();
        names.sort_by_key(|(_, place)| *place);
        Self { names: names.into_iter().map(|(name, _)| name).collect(), feed: None, silence: None, sequenced: false }
    }

    /// Reports [`Event::ChannelSilent`](crate::Event::ChannelSilent) and subscribes a channel anew when no data of it came for this long.
    /// Off by default: only the user knows how quiet a channel may be.
    pub fn silence(mut self, limit: Duration) -> Self {
        self.silence = Some(limit);
        self
    }

    /// Checks the sequence of each channel, if the dialect reads one ([`Dialect::sequence`](crate::Dialect::sequence)); a hole is
    /// reported as [`Event::Gap`](crate::Event::Gap), and [`Config::on_gap`](crate::Config::on_gap) says what else happens. Off by
    /// default: it reads every message of these channels.
    pub fn check_sequence(mut self) -> Self {
        self.sequenced = true;
        self
    }
}

impl Shared {
    pub(crate) fn subscribe(self: &Arc<Self>, channels: Channels) -> Result<Subscription> {
        if !self.reads {
            return Err(dialect::lacks(self.config.settings.dialect.name(), "subscriptions"));
        }
        let Channels { names, feed, silence, sequenced } = channels;
        if names.is_empty() {
            return Err(Error::config("channels", "names none"));
        }
        if silence == Some(Duration::ZERO) {
            return Err(Error::config("silence", "must be more than zero"));
        }
        if matches!(self.state(), State::Closing | State::Closed) {
            return Err(Error::Closed);
        }
        if let Some(feed) = &feed {
            feed.feeders.add(&self.mailbox);
        }
        let channels: Arc<[_]> = names.into();
        let subscriber = self.next_number();
        let want = Want { subscriber, channels: channels.clone(), feed, silence, sequenced };
        let order = self.order(What::Want(want));
        Ok(Subscription { shared: self.clone(), subscriber, channels, order })
    }
}

impl Subscription {
    /// The channels, in the order in which they were named.
    pub fn channels(&self) -> &[Arc<str>] {
        &self.channels
    }

    /// Where each channel stands.
    pub fn standings(&self) -> Vec<(Arc<str>, Standing)> {
        let session = self.shared.session.lock();
        let standing = |channel| self.standing(&session, channel).cloned().unwrap_or(Standing::Wanted);
        self.channels.iter().map(|channel| (channel.clone(), standing(channel))).collect()
    }

    /// Whether the venue has confirmed every channel on the wire that is open.
    pub fn is_confirmed(&self) -> bool {
        let session = self.shared.session.lock();
        self.channels.iter().all(|channel| self.standing(&session, channel) == Some(&Standing::Confirmed))
    }

    fn standing<'s>(&self, session: &'s Session<Waiter>, channel: &Arc<str>) -> Option<&'s Standing> {
        session.standings().get(channel).filter(|_| session.has_done(self.order))
    }

    /// Waits until the venue has confirmed or refused every channel, `timeout` at most; across losses, if need be.
    ///
    /// # Errors
    ///
    /// [`Error::ChannelsRejected`] with those that were refused; the others stay subscribed, and those refused are asked for again from
    /// time to time, as long as this subscription lives. [`Error::Timeout`], [`Error::OnReactor`], why the connection has closed, or
    /// [`Error::Lost`] if the wire has ended and [`Config::restore`](crate::Config::restore) is off.
    pub fn wait(&self, timeout: Duration) -> Result<()> {
        let channels = &self.channels;
        let rejected = self.shared.wait(Some(timeout), |session| {
            if let Some(cause) = session.end() {
                return Some(Err(cause.clone().unwrap_or(Error::Closed)));
            }
            let mut rejected = Vec::new();
            for channel in channels.iter() {
                match self.standing(session, channel) {
                    Some(Standing::Confirmed) => {}
                    Some(Standing::Rejected(reason)) => {
                        rejected.push(RejectedChannel { channel: channel.clone(), reason: reason.clone() });
                    }
                    // Restoring is off, and the wire has ended.
                    None if session.has_done(self.order) => {
                        return Some(Err(Error::Lost { cause: Arc::new(Error::Disconnected), sent: true }));
                    }
                    Some(Standing::Wanted | Standing::Pending) | None => return None,
                }
            }
            Some(Ok(rejected))
        });
        let rejected = match rejected {
            Err(Error::Timeout { after, .. }) => {
                let is_asked = |(_, standing): (_, Standing)| standing == Standing::Pending;
                return Err(Error::Timeout { after, sent: self.standings().into_iter().any(is_asked) });
            }
            rejected => rejected??,
        };
        if rejected.is_empty() { Ok(()) } else { Err(Error::ChannelsRejected(rejected.into())) }
    }

    /// Unsubscribes, as dropping does.
    pub fn unsubscribe(self) {}
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.order(What::Unwant(self.subscriber));
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("standings", &self.standings()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels")
            .field("names", &self.names)
            .field("inbox", &self.feed.is_some())
            .field("silence", &self.silence)
            .field("sequenced", &self.sequenced)
            .finish()
    }
}

impl From<&str> for Channels {
    fn from(name: &str) -> Self {
        Self::new([name])
    }
}

impl<S: AsRef<str>, const N: usize> From<[S; N]> for Channels {
    fn from(names: [S; N]) -> Self {
        Self::new(names)
    }
}

impl<S: AsRef<str>> From<&[S]> for Channels {
    fn from(names: &[S]) -> Self {
        Self::new(names)
    }
}

impl<S: AsRef<str>> From<Vec<S>> for Channels {
    fn from(names: Vec<S>) -> Self {
        Self::new(names)
    }
}
