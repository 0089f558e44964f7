//! Where the events of a connection go.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

use crossbeam_channel::Sender;

use crate::event::{Event, EventRef, Message, Received};
use crate::reactor::handler::{Context, Handler};

/// Where the events of a connection go: a [`Handler`], or an [`Inbox`](crate::Inbox) that several connections share (`&inbox`).
#[derive(Debug)]
pub struct Sink {
    pub(crate) kind: Kind,
    /// The inbox it feeds, if that is shared.
    pub(crate) inbox: Option<crate::Inbox>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Feed(Feed),
    Handler(Box<Handler>),
    /// The closure given to [`Driver::turn_with`](crate::Driver::turn_with).
    Engine,
}

/// The sending end of an inbox.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    pub(crate) sender: Sender<Received>,
    pub(crate) capacity: usize,
}

/// The closure of a turn.
pub(crate) type Engine<'a> = dyn FnMut(&Context<'_>, EventRef<'_>) + 'a;

/// What became of an event.
pub(crate) enum Outcome {
    Delivered,
    /// Nobody holds the inbox any more.
    Discarded,
    Panicked(Box<dyn Any + Send>),
}

impl Kind {
    /// How many more events fit.
    pub(crate) fn room(&self) -> usize {
        match self {
            Self::Feed(feed) => feed.capacity.saturating_sub(feed.sender.len()),
            Self::Handler(_) | Self::Engine => usize::MAX,
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
                let Context { connection, generation, at, .. } = *context;
                return match feed.sender.send(Received { connection, generation, at, event }) {
                    Ok(()) => Outcome::Delivered,
                    Err(_) => Outcome::Discarded,
                };
            }
            Self::Handler(handler) => panic::catch_unwind(AssertUnwindSafe(|| handler.handle(context, event))),
            Self::Engine => panic::catch_unwind(AssertUnwindSafe(|| engine(context, event))),
        };
        match ran {
            Ok(()) => Outcome::Delivered,
            Err(payload) => Outcome::Panicked(payload),
        }
    }
}

impl From<Handler> for Sink {
    fn from(handler: Handler) -> Self {
        Self { kind: Kind::Handler(Box::new(handler)), inbox: None }
    }
}
