//! What the reactor holds of a connection whose dialect reads messages: the dialogue with the venue, and where channels go.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::{Config, GapPolicy};
use crate::dialect::{Dialect, Id, Inbound};
use crate::error::Result;
use crate::event::{Event, Message};
use crate::reactor::calls;
use crate::reactor::guard;
use crate::reactor::handler::Context;
use crate::reactor::shared::{Counters, Shared};
use crate::reactor::sink::{Feed, Kind};
use crate::reactor::witness::CONNECTION;
use crate::session::dialogue::{Dialogue, Rules, Stamp};
use crate::telemetry::Signal;
use crate::wire::out::{Lane, Outgoing};

/// What a caller wants of the dialogue.
pub(crate) struct Order {
    /// Counts them.
    pub(crate) number: u64,
    pub(crate) what: What,
}

pub(crate) enum What {
    Want(Want),
    /// A subscription was dropped.
    Unwant(u64),
}

/// A subscription.
pub(crate) struct Want {
    pub(crate) subscriber: u64,
    pub(crate) channels: Arc<[Arc<str>]>,
    /// Where the channels go; `None`: to where all messages of the connection go.
    pub(crate) feed: Option<Feed>,
    pub(crate) silence: Option<Duration>,
    pub(crate) sequenced: bool,
}

pub(crate) struct Talk {
    pub(crate) dialogue: Dialogue,
    dialect: Arc<dyn Dialect>,
    /// Every channel that is wanted.
    routes: HashMap<Arc<str>, Route>,
    /// The inboxes of subscriptions, each once.
    side_inboxes: Vec<SideInbox>,
    subscriptions: HashMap<u64, Subscription>,
    /// When the login on this wire began, or the restore after it.
    pub(crate) began: Instant,
    /// Channels are subscribed that were wanted before this wire.
    pub(crate) is_restoring: bool,
}

/// Where the data of a channel goes.
#[derive(Default)]
struct Route {
    /// Subscriptions without an inbox of their own.
    main: usize,
    /// The others, with the place of their inbox.
    sides: Vec<(u64, usize)>,
}

struct SideInbox {
    feed: Feed,
    /// Subscriptions that go here.
    users: usize,
    /// Messages dropped and not reported yet.
    dropped: u64,
}

struct Subscription {
    channels: Arc<[Arc<str>]>,
    side: Option<usize>,
}

/// What a text turned out to be, as far as others must deal with it.
pub(crate) enum Routed<'a> {
    /// It goes where all messages go.
    Message,
    /// It goes there, and this event before it.
    Behind(Event),
    /// This event goes there in its place.
    Event(Event),
    /// It has been dealt with.
    Done,
    /// Each of these must be looked at.
    Parts(Vec<&'a str>),
}

impl Talk {
    pub(crate) fn new(config: &Config, now: Instant) -> Box<Self> {
        let rules = Rules {
            confirm_timeout: config.settings.confirm_timeout,
            retry: config.settings.max_backoff,
            restore: config.settings.restore,
            resubscribe_on_gap: config.settings.on_gap == GapPolicy::Resubscribe,
        };
        Box::new(Self {
            dialogue: Dialogue::new(config.settings.dialect.clone(), rules, now),
            dialect: config.settings.dialect.clone(),
            routes: HashMap::new(),
            side_inboxes: Vec::new(),
            subscriptions: HashMap::new(),
            began: now,
            is_restoring: false,
        })
    }

    pub(crate) fn obey(&mut self, now: Instant, order: What, main: &Kind) {
        match order {
            What::Want(want) => {
                self.route_to(&want, main);
                self.dialogue.want(now, want.subscriber, &want.channels, want.silence, want.sequenced);
            }
            What::Unwant(subscriber) => {
                self.unroute(subscriber);
                self.dialogue.unwant(now, subscriber);
            }
        }
    }

    /// Whether a text answers a login of this wire.
    pub(crate) fn is_login(&self, text: &str) -> bool {
        let is_login = |text: &str| matches!(self.dialect.classify(text), Inbound::Reply { id } if self.dialogue.is_login(&id));
        let is_any = || match self.dialect.classify(text) {
            Inbound::Batch => self.dialect.split(text).into_iter().any(is_login),
            _ => is_login(text),
        };
        // If the dialect panics over it, nobody knows.
        self.dialogue.has_login() && guard(is_any).unwrap_or(true)
    }

    /// Classifies a text and deals with it, unless it is for others.
    ///
    /// # Errors
    ///
    /// [`Error::Panicked`](crate::Error::Panicked) if the dialect panicked over a reply.
    pub(crate) fn route<'a>(&mut self, shared: &Shared, context: &Context<'_>, text: &'a str) -> Result<Routed<'a>> {
        let at = context.at;
        let routed = match self.dialect.classify(text) {
            Inbound::Message => Routed::Message,
            Inbound::Data { channel } => {
                let mut before = None;
                if self.dialogue.watches_data() {
                    before = self.dialogue.handle_data(at, &channel, text);
                }
                if let Some(gap) = &before {
                    self.report(shared, context, gap);
                }
                match (self.deliver(shared, context, &channel, text), before) {
                    (true, None) => Routed::Message,
                    (false, None) => Routed::Done,
                    (true, Some(gap)) => Routed::Behind(gap),
                    (false, Some(gap)) => Routed::Event(gap),
                }
            }
            Inbound::Reply { id } => {
                if self.dialogue.awaits(&id) && self.dialogue.handle_reply(at, stamp(), &id, text) {
                    return Ok(Routed::Done);
                }
                if answer(shared, &self.dialect, at, &id, text)? {
                    return Ok(Routed::Done);
                }
                Routed::Event(Event::Unmatched { id, message: Message::from_text(text) })
            }
            Inbound::Request { id } => Routed::Event(Event::Request { id, message: Message::from_text(text) }),
            Inbound::Confirmation => {
                self.dialogue.handle_confirmation(at, text);
                Routed::Done
            }
            Inbound::Probe { answer } => {
                let _ = shared.say(Outgoing { lane: Lane::Control, ..shared.outgoing(Outgoing::TEXT, answer.as_bytes()) });
                Routed::Message
            }
            Inbound::Pong => {
                let proof = shared.session.lock().handle_proof(at);
                if let Some(rtt) = proof {
                    shared.tell(&Signal::Pong { rtt, kind: self.dialect.name() });
                }
                Routed::Done
            }
            Inbound::Notice => Routed::Event(Event::Notice(Message::from_text(text))),
            Inbound::Batch => Routed::Parts(self.dialect.split(text)),
        };
        Ok(routed)
    }

    /// Tells the inboxes of subscriptions what concerns them.
    pub(crate) fn report(&mut self, shared: &Shared, context: &Context<'_>, event: &Event) {
        if self.side_inboxes.is_empty() {
            return;
        }
        let channel = match event {
            Event::Open | Event::Live | Event::Lost { .. } | Event::Closed { .. } => None,
            Event::Gap { channel: Some(channel), .. }
            | Event::Rejected { channel, .. }
            | Event::ChannelSilent { channel, .. } => Some(channel),
            Event::Dialing { .. }
            | Event::DialFailed { .. }
            | Event::Message(_)
            | Event::Gap { channel: None, .. }
            | Event::Unmatched { .. }
            | Event::Request { .. }
            | Event::Notice(_)
            | Event::Unsent { .. } => return,
        };
        for (place, side) in self.side_inboxes.iter_mut().enumerate() {
            let concerns = |channel| self.routes.get(channel).is_some_and(|route: &Route| route.leads_to(place));
            if side.users > 0 && channel.is_none_or(concerns) {
                side.report_dropped(shared, context);
                side.put(shared, context, event.clone());
            }
        }
    }

    /// Tells the consumers of the inboxes of subscriptions what was put there since the last time.
    pub(crate) fn flush(&mut self) {
        self.side_inboxes.iter_mut().for_each(|side| side.feed.flush());
    }

    /// Whether an inbox has still to be told of dropped messages.
    pub(crate) fn owes_gap(&self) -> bool {
        self.side_inboxes.iter().any(|side| side.dropped > 0)
    }

    /// Tells the inboxes that have room again of dropped messages.
    pub(crate) fn report_gaps(&mut self, shared: &Shared, context: &Context<'_>) {
        for side in self.side_inboxes.iter_mut().filter(|side| side.feed.room() > 0) {
            side.report_dropped(shared, context);
        }
    }

    /// Gives data to the inboxes of subscriptions; returns whether it goes where all messages go, too.
    fn deliver(&mut self, shared: &Shared, context: &Context<'_>, channel: &str, text: &str) -> bool {
        if self.side_inboxes.is_empty() {
            return true;
        }
        let Some(route) = self.routes.get(channel).filter(|route| !route.sides.is_empty()) else { return true };
        let mut previous = None;
        for (_, place) in &route.sides {
            // Of two subscriptions with the same inbox one is enough; they lie side by side.
            if previous.replace(*place) == Some(*place) {
                continue;
            }
            let side = &mut self.side_inboxes[*place];
            if side.feed.room() == 0 {
                side.dropped += 1;
                Counters::add(&shared.counters.dropped, 1);
                continue;
            }
            side.report_dropped(shared, context);
            side.put(shared, context, Event::Message(Message::from_text(text)));
        }
        route.main > 0
    }

    /// Notes where the channels of a subscription go. An inbox that gets all messages anyway is not given those of a channel twice.
    fn route_to(&mut self, want: &Want, main: &Kind) {
        let feed = want.feed.as_ref().filter(|feed| !matches!(main, Kind::Feed(own) if Arc::ptr_eq(&own.end, &feed.end)));
        let side = feed.map(|feed| self.place_of(feed));
        if let Some(place) = side {
            self.side_inboxes[place].users += 1;
        }
        for channel in want.channels.iter() {
            let route = self.routes.entry(channel.clone()).or_default();
            match side {
                None => route.main += 1,
                Some(place) => {
                    route.sides.push((want.subscriber, place));
                    route.sides.sort_by_key(|(_, place)| *place);
                }
            }
        }
        self.subscriptions.insert(want.subscriber, Subscription { channels: want.channels.clone(), side });
    }

    fn unroute(&mut self, subscriber: u64) {
        let Some(Subscription { channels, side }) = self.subscriptions.remove(&subscriber) else { return };
        for channel in channels.iter() {
            let Some(route) = self.routes.get_mut(channel) else { continue };
            match side {
                None => route.main -= 1,
                Some(_) => route.sides.retain(|(other, _)| *other != subscriber),
            }
            if route.main == 0 && route.sides.is_empty() {
                self.routes.remove(channel);
            }
        }
        if let Some(place) = side {
            self.side_inboxes[place].users -= 1;
            // Places in front of one in use stay; routes know them by number.
            while self.side_inboxes.last().is_some_and(|side| side.users == 0) {
                self.side_inboxes.pop();
            }
        }
    }

    fn place_of(&mut self, feed: &Feed) -> usize {
        let is_same = |side: &SideInbox| side.users > 0 && Arc::ptr_eq(&side.feed.end, &feed.end);
        if let Some(place) = self.side_inboxes.iter().position(is_same) {
            return place;
        }
        let side = SideInbox { feed: feed.clone(), users: 0, dropped: 0 };
        match self.side_inboxes.iter().position(|side| side.users == 0) {
            Some(place) => {
                self.side_inboxes[place] = side;
                place
            }
            None => {
                self.side_inboxes.push(side);
                self.side_inboxes.len() - 1
            }
        }
    }
}

impl Route {
    fn leads_to(&self, place: usize) -> bool {
        self.sides.iter().any(|(_, other)| *other == place)
    }
}

impl SideInbox {
    fn report_dropped(&mut self, shared: &Shared, context: &Context<'_>) {
        let missing = mem::take(&mut self.dropped);
        if missing > 0 {
            log::warn!(target: CONNECTION, "{}: the inbox of a channel was full, {missing} messages dropped", shared.id);
            shared.tell(&Signal::Dropped { messages: missing });
            self.put(shared, context, Event::Gap { channel: None, missing });
        }
    }

    fn put(&mut self, shared: &Shared, context: &Context<'_>, event: Event) {
        if !self.feed.put(context, event) {
            Counters::add(&shared.counters.discarded, 1);
        }
    }
}

/// Settles the call that a text answers; returns whether one waits.
pub(crate) fn answer(shared: &Shared, dialect: &Arc<dyn Dialect>, at: Instant, id: &Id, text: &str) -> Result<bool> {
    let answered = shared.session.lock().handle_reply(at, id);
    let Some((call, round_trip)) = answered else { return Ok(false) };
    shared.instruments.note_call(at, call.waiter.method.as_deref(), round_trip);
    shared.tell(&Signal::Resolve { id, round_trip });
    calls::answer(call, round_trip, text, dialect).map(|()| true)
}

/// The time of day and a random number.
pub(crate) fn stamp() -> Stamp {
    Stamp { unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), nonce: rand::random() }
}
