//! Where the events of a connection go.

use std::any::Any;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::event::{Event, EventRef, Message, Received};
use crate::reactor::handler::{Context, Handler};
use crate::reactor::mailbox::Mailbox;
use crate::reactor::{panic_text, text_of};

/// Where the events of a connection go: a [`Handler`], or an [`Inbox`](crate::Inbox) that several connections share (`&inbox`).
pub struct Sink(pub(crate) Kind);

pub(crate) enum Kind {
    Feed(Feed),
    Handler(Box<Handler>),
    /// The closure given to [`Driver::turn_with`](crate::Driver::turn_with).
    Engine,
}

/// The sending end of an inbox.
#[derive(Clone)]
pub(crate) struct Feed {
    pub(crate) sender: Sender<Received>,
    pub(crate) capacity: usize,
    pub(crate) feeders: Feeders,
}

/// The drivers that feed an inbox: on the threads that turn them, nobody may wait for it.
#[derive(Clone, Default)]
pub(crate) struct Feeders(Arc<Mutex<Vec<Arc<Mailbox>>>>);

/// The closure of a turn.
pub(crate) type Engine<'a> = dyn FnMut(&Context<'_>, EventRef<'_>) + 'a;

/// What became of an event.
pub(crate) enum Outcome {
    Delivered,
    /// Nobody holds the inbox any more.
    Discarded,
    Panicked(Box<dyn Any + Send>),
}

impl Feed {
    /// How many more events fit.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.sender.len())
    }

    /// Returns whether anybody may still take it.
    pub(crate) fn put(&mut self, context: &Context<'_>, event: Event) -> bool {
        let Context { connection, generation, at, kernel_at, .. } = *context;
        let more = matches!(event, Event::Message(_)) && context.more();
        self.sender.send(Received { connection, generation, at, kernel_at, more, event }).is_ok()
    }

    /// Tells the consumers of what was put since the last time.
    pub(crate) fn flush(&mut self) {}
}

impl Kind {
    /// How many more events fit.
    pub(crate) fn room(&self) -> usize {
        match self {
            Self::Feed(feed) => feed.room(),
            Self::Handler(_) | Self::Engine => usize::MAX,
        }
    }

    /// Tells the consumers of what was delivered since the last time.
    pub(crate) fn flush(&mut self) {
        if let Self::Feed(feed) = self {
            feed.flush();
        }
    }

    pub(crate) fn deliver(&mut self, context: &Context<'_>, event: EventRef<'_>, engine: &mut Engine<'_>) -> Outcome {
        let ran = match self {
            Self::Feed(feed) => {
                let event = match event {
                    EventRef::Text(text) => Event::Message(Message::from_text(text)),
                    EventRef::Binary(bytes) => Event::Message(Message::from_binary(bytes)),
                    EventRef::State(event) => event.clone(),
                };
                return if feed.put(context, event) { Outcome::Delivered } else { Outcome::Discarded };
            }
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
            Self::Engine | Self::Feed(_) | Self::Handler(_) => panic_text(payload),
        }
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
            Kind::Feed(_) => "Sink(inbox)",
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
