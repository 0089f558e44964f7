//! Where the events of a connection go.

use std::any::Any;
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Weak};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::event::{Event, EventRef, Message, Received};
use crate::reactor::bell::{Bell, Ringer};
use crate::reactor::handler::{Context, Handler};
use crate::reactor::mailbox::Mailbox;
use crate::reactor::{panic_text, text_of};

/// Where the events of a connection go: a [`Handler`], or an inbox that several connections may share, by reference (`&inbox`): an
/// [`Inbox`](crate::Inbox), a [`BatchInbox`](crate::BatchInbox) or a [`ConflatingInbox`](crate::ConflatingInbox).
pub struct Sink(pub(crate) Kind);

pub(crate) enum Kind {
    Feed(Feed),
    Intake(Box<dyn Intake>),
    Handler(Box<Handler>),
    /// The closure given to [`Driver::turn_with`](crate::Driver::turn_with).
    Engine,
}

/// The sending end of an [`Inbox`](crate::Inbox).
#[derive(Clone)]
pub(crate) struct Feed {
    pub(crate) end: Arc<FeedEnd>,
    capacity: usize,
    pub(crate) feeders: Feeders,
    /// Something was put since the consumers were told.
    is_news: bool,
}

/// What all feeds of an inbox share; without them the inbox ends.
pub(crate) struct FeedEnd {
    sender: Sender<Received>,
    /// Goes after the sender: whoever sleeps must see that it has gone.
    ringer: Ringer,
}

/// Tells how much waits in an inbox.
pub(crate) trait Depth: Send + Sync {
    /// How many events.
    fn depth(&self) -> usize;
}

/// The sending end of any other inbox, for one connection.
pub(crate) trait Intake: Send {
    /// How many more events fit.
    fn room(&self) -> usize;

    fn deliver(&mut self, context: &Context<'_>, event: EventRef<'_>) -> Outcome;

    /// Tells the consumers of what was delivered since the last time.
    fn flush(&mut self);

    fn feeders(&self) -> &Feeders;

    /// What tells how much waits.
    fn depth(&self) -> Weak<dyn Depth>;
}

/// The drivers that feed an inbox: on the threads that turn them, nobody may wait for it.
#[derive(Clone, Default)]
pub(crate) struct Feeders(Arc<Mutex<Vec<Arc<Mailbox>>>>);

/// The closure of a turn.
pub(crate) type Engine<'a> = dyn FnMut(&Context<'_>, EventRef<'_>) + 'a;

/// What became of an event.
pub(crate) enum Outcome {
    Delivered,
    /// It took the place of an older event, and no room.
    Replaced,
    /// Nobody holds the inbox any more.
    Discarded,
    Panicked(Box<dyn Any + Send>),
}

impl Feed {
    pub(crate) fn new(sender: Sender<Received>, bell: Arc<Bell>, capacity: usize, feeders: Feeders) -> Self {
        Self { end: Arc::new(FeedEnd { sender, ringer: Ringer(bell) }), capacity, feeders, is_news: false }
    }

    /// How many more events fit.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.end.depth())
    }

    /// Returns whether anybody may still take it.
    pub(crate) fn put(&mut self, context: &Context<'_>, event: Event) -> bool {
        self.push(received(context, event))
    }

    /// Returns whether anybody may still take it.
    pub(crate) fn push(&mut self, received: Received) -> bool {
        self.is_news = true;
        self.end.sender.send(received).is_ok()
    }

    /// Tells the consumers of what was put since the last time.
    pub(crate) fn flush(&mut self) {
        // Consumers that are awake may have taken it all.
        if mem::take(&mut self.is_news) && !self.end.sender.is_empty() {
            self.end.ringer.ring();
        }
    }
}

impl Depth for FeedEnd {
    fn depth(&self) -> usize {
        self.sender.len()
    }
}

impl Kind {
    /// The inbox, if it is one.
    pub(crate) fn depth(&self) -> Option<Weak<dyn Depth>> {
        match self {
            Self::Feed(feed) => {
                let end: Weak<FeedEnd> = Arc::downgrade(&feed.end);
                Some(end)
            }
            Self::Intake(intake) => Some(intake.depth()),
            Self::Handler(_) | Self::Engine => None,
        }
    }

    /// How many more events fit.
    pub(crate) fn room(&self) -> usize {
        match self {
            Self::Feed(feed) => feed.room(),
            Self::Intake(intake) => intake.room(),
            Self::Handler(_) | Self::Engine => usize::MAX,
        }
    }

    /// Tells the consumers of what was delivered since the last time.
    pub(crate) fn flush(&mut self) {
        match self {
            Self::Feed(feed) => feed.flush(),
            Self::Intake(intake) => intake.flush(),
            Self::Handler(_) | Self::Engine => {}
        }
    }

    pub(crate) fn deliver(&mut self, context: &Context<'_>, event: EventRef<'_>, engine: &mut Engine<'_>) -> Outcome {
        let ran = match self {
            Self::Feed(feed) => {
                return if feed.put(context, to_event(event)) { Outcome::Delivered } else { Outcome::Discarded };
            }
            Self::Intake(intake) => return intake.deliver(context, event),
            Self::Handler(handler) => panic::catch_unwind(AssertUnwindSafe(|| handler.handle(context, event))),
            Self::Engine => panic::catch_unwind(AssertUnwindSafe(|| engine(context, event))),
        };
        match ran {
            Ok(()) => Outcome::Delivered,
            Err(payload) => Outcome::Panicked(payload),
        }
    }

    /// The text of a panic of this sink's. That of an engine's closure is kept, to be resumed when the turn is over.
    pub(crate) fn take_panic(&self, payload: Box<dyn Any + Send>, kept: &mut Option<Box<dyn Any + Send>>) -> Arc<str> {
        match self {
            Self::Engine if kept.is_none() => {
                let text = text_of(&*payload).into();
                *kept = Some(payload);
                text
            }
            Self::Engine | Self::Feed(_) | Self::Intake(_) | Self::Handler(_) => panic_text(payload),
        }
    }

    /// Who feeds the inbox, if it is one.
    pub(crate) fn feeders(&self) -> Option<&Feeders> {
        match self {
            Self::Feed(feed) => Some(&feed.feeders),
            Self::Intake(intake) => Some(intake.feeders()),
            Self::Handler(_) | Self::Engine => None,
        }
    }
}

/// An event as the consumers get it.
pub(crate) fn received(context: &Context<'_>, event: Event) -> Received {
    let Context { connection, generation, at, kernel_at, .. } = *context;
    let more = matches!(event, Event::Message(_)) && context.more();
    Received { connection, generation, at, kernel_at, more, event }
}

/// A copy that outlives the buffer the event was read into.
pub(crate) fn to_event(event: EventRef<'_>) -> Event {
    match event {
        EventRef::Text(text) => Event::Message(Message::from_text(text)),
        EventRef::Binary(bytes) => Event::Message(Message::from_binary(bytes)),
        EventRef::State(event) => event.clone(),
    }
}

impl Feeders {
    pub(crate) fn add(&self, mailbox: &Arc<Mailbox>) {
        let mut known = self.0.lock();
        // One that nobody else holds is gone.
        known.retain(|mailbox| Arc::strong_count(mailbox) > 1);
        if !known.iter().any(|known| Arc::ptr_eq(known, mailbox)) {
            known.push(mailbox.clone());
        }
    }

    pub(crate) fn include_this_thread(&self) -> bool {
        self.0.lock().iter().any(|mailbox| mailbox.is_turned_here())
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Feed(_) | Kind::Intake(_) => "Sink(inbox)",
            Kind::Handler(_) => "Sink(handler)",
            Kind::Engine => "Sink(engine)",
        })
    }
}

impl From<Handler> for Sink {
    fn from(handler: Handler) -> Self {
        Self(Kind::Handler(Box::new(handler)))
    }
}
