//! The channels that are wanted, and how far each of them is on the wire.
//!
//! ```text
//!   Wanted ── its turn ──► Pending ── accepted ──► Confirmed
//!   Pending ── not answered in time ──► Wanted
//!   Pending ── refused ──► Rejected ── after a pause, or wanted once more ──► Wanted
//!   Confirmed ── silent, or with a hole in its sequence ──► Wanted
//!   any ── the wire lost ──► Wanted
//!   any ── its last subscriber gone ──► not in the table
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dialect::{Confirmation, Id, Sequence};
use crate::event::{Event, Standing};
use crate::session::dialogue::{Deed, Rules, Voice, later};
use crate::ticket::Ticket;

/// How many channels a dialect is shown at once.
const NAMES_MAX: usize = 1_000;

/// How many requests to subscribe wait for their answers at once: enough to hide the round trip, too few to flood a venue.
const FLIGHTS_MAX: usize = 4;

/// How many requests that were given up are remembered in case their answers come late.
const LATE_MAX: usize = 16;

/// The wanted channels of one connection, across its wires.
pub(crate) struct Subscriptions {
    rules: Rules,
    /// Whether the wire is logged in.
    open: bool,
    channels: BTreeMap<Arc<str>, Channel>,
    /// The channels of each subscriber.
    subscribers: BTreeMap<u64, Vec<Arc<str>>>,
    /// The channels that are `Wanted`, in the order in which they were first.
    queue: BTreeMap<u64, Arc<str>>,
    /// Requests some of whose channels are `Pending`, and requests that were given up.
    flights: Vec<Flight>,
    late: VecDeque<Flight>,
    /// When channels that are `Rejected` are asked for again.
    retries: Alarms,
    /// When to look how long channels that are `Confirmed` have been silent.
    checks: Alarms,
    /// How many channels are not `Confirmed`, and of how many the data is looked at.
    unconfirmed: usize,
    watched: usize,
    /// When reading was resumed: what was silent before is excused.
    resumed: Instant,
    /// How many channels to show the dialect, close to what it took lately.
    width: usize,
    /// The order number of the next channel.
    order: u64,
    given_up: u64,
}

struct Channel {
    name: Arc<str>,
    order: u64,
    stage: Stage,
    subscribers: BTreeMap<u64, Terms>,
    /// The subscribers that set a limit to its silence, the shortest first.
    limits: BTreeSet<(Duration, u64)>,
    /// How many subscribers want its sequence checked.
    sequenced: usize,
    /// The number of the first request whose answer counts: later ones were made because an answer was missing. `None` if the venue has
    /// not been asked on this wire, or was told since that the channel is wanted no more.
    since: Option<u64>,
    /// While `Confirmed`: when data came last, when that is looked at next, and the number the last message ended with.
    heard: Instant,
    check: Option<Instant>,
    last: Option<u64>,
}

enum Stage {
    Wanted,
    Pending { request: u64 },
    Confirmed,
    Rejected { reason: Arc<str>, again: Instant },
}

/// What a subscriber wants of a channel.
#[derive(Clone, Copy)]
struct Terms {
    silence: Option<Duration>,
    sequenced: bool,
}

/// A request to subscribe.
struct Flight {
    number: u64,
    id: Option<Id>,
    names: Vec<Arc<str>>,
    /// How many of its channels are `Pending` under it.
    left: usize,
    ticket: Arc<Ticket>,
    deadline: Instant,
    /// When its time was over, it had not left yet.
    held: bool,
}

impl Subscriptions {
    pub(crate) fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            open: false,
            channels: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            queue: BTreeMap::new(),
            flights: Vec::new(),
            late: VecDeque::new(),
            retries: Alarms::default(),
            checks: Alarms::default(),
            unconfirmed: 0,
            watched: 0,
            resumed: now,
            width: NAMES_MAX,
            order: 0,
            given_up: 0,
        }
    }

    /// How many channels are wanted.
    pub(crate) fn len(&self) -> usize {
        self.channels.len()
    }

    /// Whether every channel that is wanted is confirmed.
    pub(crate) fn are_confirmed(&self) -> bool {
        self.unconfirmed == 0
    }

    /// Whether a reply with this id answers a request to subscribe.
    pub(crate) fn await_reply(&self, id: &Id) -> bool {
        self.flight(id).is_some()
    }

    /// Whether the data of any channel is looked at.
    pub(crate) fn watch_data(&self) -> bool {
        self.watched > 0
    }

    /// How many requests were given up because no answer came in time.
    pub(crate) fn retries(&self) -> u64 {
        self.given_up
    }

    /// The wire is logged in: the channels are asked for.
    pub(crate) fn handle_logged_in(&mut self, now: Instant, voice: &mut Voice) {
        self.open = true;
        self.width = NAMES_MAX;
        self.ask(now, voice);
    }

    /// The wire is gone. The channels are wanted on the next one if they are to be kept.
    pub(crate) fn handle_lost(&mut self, keep: bool, voice: &mut Voice) {
        self.open = false;
        self.flights.clear();
        self.late.clear();
        if keep {
            let changed = |channel: &&Channel| !matches!(channel.stage, Stage::Wanted);
            let names: Vec<_> = self.channels.values().filter(changed).map(|channel| channel.name.clone()).collect();
            for name in names {
                self.enter(&name, Some(Stage::Wanted), voice);
            }
            for channel in self.channels.values_mut() {
                channel.since = None;
            }
        } else {
            let subscribers: Vec<_> = self.subscribers.keys().copied().collect();
            for subscriber in subscribers {
                self.drop_subscriber(subscriber, voice);
            }
        }
    }

    /// A reply came; returns whether it answers a request to subscribe.
    pub(crate) fn handle_reply(&mut self, now: Instant, id: &Id, text: &str, voice: &mut Voice) -> bool {
        let Some(flight) = self.flight(id) else { return false };
        let names: Vec<&str> = flight.names.iter().map(|name| &**name).collect();
        let (number, confirmation) = (flight.number, voice.dialect.confirm(text, &names));
        self.settle(now, Some(number), confirmation, voice);
        true
    }

    /// A text came that tells of channels without the id of a request.
    pub(crate) fn handle_confirmation(&mut self, now: Instant, text: &str, voice: &mut Voice) {
        if !self.flights.is_empty() {
            let confirmation = voice.dialect.confirm(text, &[]);
            self.settle(now, None, confirmation, voice);
        }
    }

    /// Data of a channel came. What comes before the confirmation may belong to an earlier subscription, and says nothing.
    /// Returns the gap in its sequence that lies before it.
    pub(crate) fn handle_data(&mut self, now: Instant, name: &str, text: &str, voice: &mut Voice) -> Option<Event> {
        let channel = self.channels.get_mut(name).filter(|channel| channel.is_confirmed())?;
        channel.heard = now;
        if channel.sequenced == 0 {
            return None;
        }
        let missing = channel.follow(voice.dialect.sequence(name, text)?)?;
        let name = channel.name.clone();
        if self.rules.resubscribe_on_gap {
            self.resubscribe(slice::from_ref(&name), voice);
            self.ask(now, voice);
        }
        Some(Event::Gap { channel: Some(name), missing })
    }

    /// Reading goes on after it was stopped.
    pub(crate) fn handle_resumed(&mut self, now: Instant) {
        self.resumed = now;
        for flight in &mut self.flights {
            flight.deadline = later(now, self.rules.confirm_timeout);
        }
    }

    /// What was to be said is said, or waits for the rate limit.
    pub(crate) fn handle_said(&mut self) {
        for flight in &mut self.flights {
            flight.held |= !flight.ticket.is_sent();
        }
    }

    /// A subscriber wants these channels as well.
    pub(crate) fn want(
        &mut self,
        now: Instant,
        subscriber: u64,
        names: &[Arc<str>],
        silence: Option<Duration>,
        sequenced: bool,
        voice: &mut Voice,
    ) {
        for name in names {
            if !self.channels.contains_key(name) {
                self.channels.insert(name.clone(), Channel::new(name.clone(), self.order, now));
                self.queue.insert(self.order, name.clone());
                self.order += 1;
                self.unconfirmed += 1;
                voice.act(Deed::Standing(name.clone(), Some(Standing::Wanted)));
            }
            let Some(channel) = self.channels.get_mut(name) else { continue };
            let was_watched = channel.is_watched();
            if channel.join(subscriber, Terms { silence, sequenced }, now) {
                self.subscribers.entry(subscriber).or_default().push(name.clone());
            }
            self.watched = self.watched + usize::from(channel.is_watched()) - usize::from(was_watched);
            match channel.stage {
                Stage::Confirmed => channel.arm(&mut self.checks, self.resumed),
                Stage::Rejected { .. } => self.enter(name, Some(Stage::Wanted), voice),
                Stage::Wanted | Stage::Pending { .. } => {}
            }
        }
        self.ask(now, voice);
    }

    /// A subscriber wants none of its channels any more. Those that nobody else wants are given up.
    pub(crate) fn unwant(&mut self, now: Instant, subscriber: u64, voice: &mut Voice) {
        let asked = self.drop_subscriber(subscriber, voice);
        say_unsubscribe(&asked, voice);
        self.ask(now, voice);
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant, blocked: bool, voice: &mut Voice) {
        for name in self.retries.take_due(now) {
            self.enter(&name, Some(Stage::Wanted), voice);
        }
        if !blocked {
            self.give_up_flights(now, voice);
            self.check_silence(now, voice);
        }
        self.ask(now, voice);
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub(crate) fn next_deadline(&self, blocked: bool) -> Option<Instant> {
        let flights = self.flights.iter().map(|flight| flight.deadline);
        let patience = flights.chain(self.checks.next()).filter(|_| !blocked);
        patience.chain(self.retries.next()).min()
    }

    /// Asks for the channels whose turn it is.
    fn ask(&mut self, now: Instant, voice: &mut Voice) {
        while self.open && self.flights.len() < FLIGHTS_MAX && !self.queue.is_empty() {
            let names: Vec<&str> = self.queue.values().take(self.width).map(|name| &**name).collect();
            let (given, number) = (names.len(), voice.next_number());
            let request = voice.dialect.subscribe(number, &names);
            self.width = next_width(self.width, given, request.as_ref().ok().map(|request| request.channels));
            match request {
                Ok(request) => {
                    let names: Vec<_> = self.queue.values().take(request.channels.clamp(1, given)).cloned().collect();
                    let ticket = Arc::<Ticket>::default();
                    voice.say(request.text, false, request.id.clone(), Some(ticket.clone()));
                    for name in &names {
                        self.enter(name, Some(Stage::Pending { request: number }), voice);
                    }
                    let (left, deadline) = (names.len(), later(now, self.rules.confirm_timeout));
                    self.flights.push(Flight { number, id: request.id, names, left, ticket, deadline, held: false });
                }
                Err(error) if given == 1 => {
                    if let Some(name) = self.queue.values().next().cloned() {
                        self.reject(now, &name, error.to_string().into(), true, voice);
                    }
                }
                // One of them is at fault. Showing fewer finds out which.
                Err(_) => {}
            }
        }
    }

    /// Takes note of what the venue says of channels: in the answer to the request of this number, or without one.
    fn settle(&mut self, now: Instant, number: Option<u64>, confirmation: Confirmation, voice: &mut Voice) {
        for name in confirmation.accepted {
            if let Some(name) = self.answered(&name, number) {
                self.enter(&name, Some(Stage::Confirmed), voice);
                if let Some(channel) = self.channels.get_mut(&name) {
                    channel.heard = now;
                    channel.last = None;
                    channel.arm(&mut self.checks, self.resumed);
                }
            }
        }
        for (name, reason) in confirmation.rejected {
            if let Some(name) = self.answered(&name, number) {
                self.reject(now, &name, reason.into(), number.is_some(), voice);
            }
        }
        self.ask(now, voice);
    }

    /// The channel of this name, if the answer to the request of this number speaks of it as it stands.
    fn answered(&self, name: &str, number: Option<u64>) -> Option<Arc<str>> {
        let channel = self.channels.get(name)?;
        let since = channel.since?;
        let waits = matches!(channel.stage, Stage::Wanted | Stage::Pending { .. });
        (waits && number.is_none_or(|number| since <= number)).then(|| channel.name.clone())
    }

    fn reject(&mut self, now: Instant, name: &Arc<str>, reason: Arc<str>, has_id: bool, voice: &mut Voice) {
        let again = later(now, self.rules.retry);
        // Without an id the refusal may be that of an earlier request.
        if has_id
            && let Some(channel) = self.channels.get_mut(name)
            && matches!(channel.stage, Stage::Pending { request } if channel.since == Some(request))
        {
            // The venue was asked once and refused. If it was asked more often, it may have accepted another time.
            channel.since = None;
        }
        self.enter(name, Some(Stage::Rejected { reason: reason.clone(), again }), voice);
        voice.act(Deed::Emit(Event::Rejected { channel: name.clone(), reason }));
    }

    /// Requests that were not answered in time are given up, and what they asked for is wanted again.
    fn give_up_flights(&mut self, now: Instant, voice: &mut Voice) {
        for flight in self.flights.iter_mut().filter(|flight| flight.deadline <= now) {
            let is_sent = flight.ticket.is_sent();
            if !is_sent || flight.held {
                // It waits for the rate limit, or has until a moment ago: the venue has all its time yet.
                flight.held = !is_sent;
                flight.deadline = later(now, self.rules.confirm_timeout);
            }
        }
        for flight in self.flights.extract_if(.., |flight| flight.deadline <= now).collect::<Vec<_>>() {
            self.given_up += 1;
            for name in &flight.names {
                let stage = self.channels.get(name).map(|channel| &channel.stage);
                if matches!(stage, Some(Stage::Pending { request }) if *request == flight.number) {
                    self.enter(name, Some(Stage::Wanted), voice);
                }
            }
            self.late.push_back(flight);
            if self.late.len() > LATE_MAX {
                self.late.pop_front();
            }
        }
    }

    /// Looks at channels when they may have been silent for too long, and not with every message.
    fn check_silence(&mut self, now: Instant, voice: &mut Voice) {
        let mut silent = Vec::new();
        for name in self.checks.take_due(now) {
            let Some(channel) = self.channels.get_mut(&name) else { continue };
            channel.check = None;
            let quiet = now.saturating_duration_since(channel.heard.max(self.resumed));
            if channel.limit().is_some_and(|limit| limit <= quiet) {
                voice.act(Deed::Emit(Event::ChannelSilent { channel: name.clone(), quiet }));
                silent.push(name);
            } else {
                channel.arm(&mut self.checks, self.resumed);
            }
        }
        self.resubscribe(&silent, voice);
    }

    /// Has the venue forget channels, so that they are asked for anew.
    fn resubscribe(&mut self, names: &[Arc<str>], voice: &mut Voice) {
        say_unsubscribe(names, voice);
        for name in names {
            self.enter(name, Some(Stage::Wanted), voice);
            if let Some(channel) = self.channels.get_mut(name) {
                channel.since = None;
            }
        }
    }

    /// Brings a channel to another stage, or out of the table: the only place where that happens.
    fn enter(&mut self, name: &str, stage: Option<Stage>, voice: &mut Voice) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        match &channel.stage {
            Stage::Wanted => {
                self.queue.remove(&channel.order);
            }
            Stage::Pending { request } => land(&mut self.flights, *request),
            Stage::Confirmed => channel.disarm(&mut self.checks),
            Stage::Rejected { again, .. } => self.retries.stop(*again, channel.order),
        }
        self.unconfirmed -= usize::from(!channel.is_confirmed());
        let (name, order) = (channel.name.clone(), channel.order);
        let Some(stage) = stage else {
            self.channels.remove(&name);
            return voice.act(Deed::Standing(name, None));
        };
        let standing = match &stage {
            Stage::Wanted => {
                self.queue.insert(order, name.clone());
                Standing::Wanted
            }
            Stage::Pending { request } => {
                channel.since.get_or_insert(*request);
                Standing::Pending
            }
            Stage::Confirmed => Standing::Confirmed,
            Stage::Rejected { reason, again } => {
                self.retries.set(*again, order, name.clone());
                Standing::Rejected(reason.clone())
            }
        };
        channel.stage = stage;
        self.unconfirmed += usize::from(!channel.is_confirmed());
        voice.act(Deed::Standing(name, Some(standing)));
    }

    /// Forgets a subscriber and the channels that nobody else wants. Returns those that the venue has to be told of.
    fn drop_subscriber(&mut self, subscriber: u64, voice: &mut Voice) -> Vec<Arc<str>> {
        let mut asked = Vec::new();
        for name in self.subscribers.remove(&subscriber).unwrap_or_default() {
            let Some(channel) = self.channels.get_mut(&name) else { continue };
            let was_watched = channel.is_watched();
            channel.leave(subscriber);
            self.watched = self.watched + usize::from(channel.is_watched()) - usize::from(was_watched);
            if channel.subscribers.is_empty() {
                if channel.since.is_some() {
                    asked.push(name.clone());
                }
                self.enter(&name, None, voice);
            }
        }
        asked
    }

    fn flight(&self, id: &Id) -> Option<&Flight> {
        self.flights.iter().chain(&self.late).find(|flight| flight.id.as_ref() == Some(id))
    }
}

impl Channel {
    fn new(name: Arc<str>, order: u64, now: Instant) -> Self {
        Self {
            name,
            order,
            stage: Stage::Wanted,
            subscribers: BTreeMap::new(),
            limits: BTreeSet::new(),
            sequenced: 0,
            since: None,
            heard: now,
            check: None,
            last: None,
        }
    }

    fn is_confirmed(&self) -> bool {
        matches!(self.stage, Stage::Confirmed)
    }

    fn is_watched(&self) -> bool {
        self.sequenced > 0 || !self.limits.is_empty()
    }

    /// How long it may be silent.
    fn limit(&self) -> Option<Duration> {
        self.limits.first().map(|(limit, _)| *limit)
    }

    /// Notes what a subscriber wants; returns whether that subscriber is new.
    fn join(&mut self, subscriber: u64, terms: Terms, now: Instant) -> bool {
        if self.limits.is_empty() {
            self.heard = now;
        }
        // Counted before the old terms are forgotten, so that a sequence that is still checked goes on where it was.
        self.sequenced += usize::from(terms.sequenced);
        let is_new = !self.leave(subscriber);
        self.subscribers.insert(subscriber, terms);
        self.limits.extend(terms.silence.map(|limit| (limit, subscriber)));
        is_new
    }

    /// Forgets a subscriber; returns whether there was one.
    fn leave(&mut self, subscriber: u64) -> bool {
        let Some(terms) = self.subscribers.remove(&subscriber) else { return false };
        if let Some(limit) = terms.silence {
            self.limits.remove(&(limit, subscriber));
        }
        self.sequenced -= usize::from(terms.sequenced);
        if self.sequenced == 0 {
            self.last = None;
        }
        true
    }

    /// Has the silence looked at when its limit may be reached, unless that is done earlier.
    fn arm(&mut self, checks: &mut Alarms, resumed: Instant) {
        let Some(limit) = self.limit() else { return };
        let at = later(self.heard.max(resumed), limit);
        if self.check.is_none_or(|check| at < check) {
            self.disarm(checks);
            self.check = Some(at);
            checks.set(at, self.order, self.name.clone());
        }
    }

    fn disarm(&mut self, checks: &mut Alarms) {
        if let Some(check) = self.check.take() {
            checks.stop(check, self.order);
        }
    }

    /// Takes note of a message's place in the sequence; returns by how much it lies too far ahead, if it does not join on.
    fn follow(&mut self, sequence: Sequence) -> Option<u64> {
        match (self.last, sequence.follows) {
            (Some(last), Some(follows)) if follows != last => {
                // An old message or a duplicate is no hole.
                let is_ahead = sequence.last > last;
                self.last = Some(last.max(sequence.last));
                is_ahead.then(|| follows.saturating_sub(last))
            }
            _ => {
                self.last = Some(sequence.last);
                None
            }
        }
    }
}

/// Times at which to come back to a channel, each with the channel's order number to tell equal times apart.
#[derive(Default)]
struct Alarms(BTreeMap<(Instant, u64), Arc<str>>);

impl Alarms {
    fn set(&mut self, at: Instant, order: u64, name: Arc<str>) {
        self.0.insert((at, order), name);
    }

    fn stop(&mut self, at: Instant, order: u64) {
        self.0.remove(&(at, order));
    }

    fn next(&self) -> Option<Instant> {
        self.0.keys().next().map(|(at, _)| *at)
    }

    /// Removes those whose time has come.
    fn take_due(&mut self, now: Instant) -> Vec<Arc<str>> {
        let mut due = Vec::new();
        while let Some(entry) = self.0.first_entry()
            && entry.key().0 <= now
        {
            due.push(entry.remove());
        }
        due
    }
}

/// One channel of this request waits no more.
fn land(flights: &mut Vec<Flight>, request: u64) {
    if let Some(index) = flights.iter().position(|flight| flight.number == request) {
        flights[index].left -= 1;
        if flights[index].left == 0 {
            flights.remove(index);
        }
    }
}

/// Tells the venue that channels are wanted no more. Its replies change nothing.
fn say_unsubscribe(names: &[Arc<str>], voice: &mut Voice) {
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let (mut rest, mut width) = (&names[..], NAMES_MAX);
    while !rest.is_empty() {
        let (given, number) = (rest.len().min(width), voice.next_number());
        let request = voice.dialect.unsubscribe(number, &rest[..given]);
        width = next_width(width, given, request.as_ref().ok().map(|request| request.channels));
        match request {
            Ok(request) => {
                rest = &rest[request.channels.clamp(1, given)..];
                voice.say(request.text, false, request.id, None);
            }
            Err(_) if given == 1 => rest = &rest[1..],
            Err(_) => {}
        }
    }
}

/// How many channels to show a dialect after it was shown some and took the first of them: twice what it takes, so that building
/// thousands of small requests costs no more than the channels; or, if it took none, half.
fn next_width(width: usize, given: usize, taken: Option<usize>) -> usize {
    let next = match taken {
        Some(taken) if taken < given => 2 * taken.max(1),
        Some(_) => 2 * width,
        None if given > 1 => given / 2,
        None => width,
    };
    next.min(NAMES_MAX)
}
