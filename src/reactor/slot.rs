//! One connection as the reactor holds it: it carries out what the session decides, and decides nothing itself.

use std::any::Any;
use std::io::{self, Read as _};
use std::mem;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use mio::{Registry, Token};
use parking_lot::MutexGuard;
use rustls::ClientConfig;

use crate::config::{Config, Overflow};
use crate::dialect::Inbound;
use crate::error::{Error, Phase};
use crate::event::{Event, EventRef, Generation, Sent, Standing, State};
use crate::governor::{Costs, Governor, Pressure, Refused};
use crate::reactor::calls;
use crate::reactor::handler::Context;
use crate::reactor::resolver::{self, Query, Resolved};
use crate::reactor::scratch::{Pongs, Scratch};
use crate::reactor::shared::{Counters, Shared, Stream};
use crate::reactor::sink::{Engine, Kind, Outcome};
use crate::reactor::talk::{self, Routed, Talk};
use crate::reactor::traffic::Traffic;
use crate::reactor::{guard, shield};
use crate::recorder::FrameKind;
use crate::session::Action;
use crate::session::dialogue::Deed;
use crate::telemetry::Signal;
use crate::ticket::Ticket;
use crate::wire::assembler::{Assembler, Item};
use crate::wire::dial::{Dial, Opened, Progress};
use crate::wire::out::{Lane, Outgoing};
use crate::wire::socket;
use crate::wire::stamp::Stamped;

/// How many receives a wire that ends is allowed, so that a peer that goes on sending cannot hold the reactor.
const LAST_RECEIVES: usize = 64;

/// How many parts of a batch are looked at one by one; a larger one is delivered as it is, or an inbox would get any number of events at
/// once.
const BATCH_MAX: usize = 1024;

/// Everything a connection is made of, on its way to the driver.
pub(crate) struct Opening {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: Arc<Config>,
    /// Made on the caller's thread, and kept between dials so that they resume.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) sink: Kind,
    pub(crate) dial_limit: Option<Arc<Governor>>,
}

pub(crate) struct Slot {
    pub(crate) shared: Arc<Shared>,
    config: Arc<Config>,
    tls: Option<Arc<ClientConfig>>,
    sink: Kind,
    dial_limit: Option<Arc<Governor>>,
    /// What is said with the venue, if the dialect reads messages.
    talk: Option<Box<Talk>>,
    link: Link,
    generation: Generation,
    /// Counts the dials; an answer to an earlier one is ignored.
    dial: u64,
    /// A query runs. If it has a hook the next begins when it has ended, so that a hook that hangs holds one thread.
    query_running: bool,
    /// Messages dropped and not reported yet.
    dropped: u64,
    /// Messages of a receive have been delivered, and its end has not been told.
    in_burst: bool,
    /// The handler panicked and gets nothing but the end.
    broken: bool,
    traffic: Traffic,
    /// How full the queue for the rate limit was when observers were told last.
    pressure: Pressure,
}

enum Link {
    Down,
    Resolving { attempt: u32, deadline: Instant },
    Dialing(Box<Dialing>),
    Open(Box<Wire>),
}

/// A dial whose host is resolved.
struct Dialing {
    dial: Dial,
    /// The kernel announced an end, which it does once.
    hangup: bool,
    began: Instant,
    phase: Phase,
    /// When it entered this phase.
    phase_began: Instant,
}

/// The receiving half of a wire.
struct Wire {
    stream: Stream,
    is_tls: bool,
    subprotocol: Option<Arc<str>>,
    /// The login has succeeded.
    is_open: bool,
    /// When the rate limit will let more pass, if something waits for it.
    held_until: Option<Instant>,
    assembler: Assembler,
    /// Reads in place of the stream if the kernel's stamps are asked for.
    stamped: Option<Stamped>,
    /// When the kernel received what was read last.
    kernel_at: Option<SystemTime>,
    /// There may be something to read.
    readable: bool,
    /// The kernel said that the peer closed or the socket failed, so a short read is not the end of what there is.
    hangup: bool,
    /// The kernel took less than it was given: the next writable edge means something.
    unsent: bool,
    /// Reading is stopped because the inbox is full.
    blocked: bool,
    /// What was read and the inbox had no room for, and when.
    backlog: Vec<u8>,
    backlog_at: Instant,
}

/// A wire that has ended.
struct Ended {
    /// The login had succeeded.
    was_open: bool,
    /// What did not leave, if anything.
    unsent: Option<Event>,
}

/// What a slot may use during a turn.
pub(crate) struct Turn<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) token: Token,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) engine: &'a mut Engine<'a>,
}

/// What became of a read that nobody had announced.
pub(crate) enum Read {
    /// There was something, be it the end.
    Something,
    /// There was nothing.
    Nothing,
    /// There is no wire to read.
    Closed,
}

/// How a receive, or the decoding of one, went.
enum Flow {
    /// The kernel has nothing.
    Idle,
    /// There may be more to read.
    More,
    /// The kernel has nothing more for now.
    Drained,
    /// The inbox is full.
    Blocked,
    /// What was decoded last asks for something to be done before the rest.
    Paused,
    /// The wire has ended.
    End(Error),
    /// The session cannot go on.
    Fail(Error),
}

impl Slot {
    pub(crate) fn new(opening: Opening) -> Self {
        Self {
            talk: opening.shared.reads.then(|| Talk::new(&opening.config, Instant::now())),
            shared: opening.shared,
            config: opening.config,
            tls: opening.tls,
            sink: opening.sink,
            dial_limit: opening.dial_limit,
            link: Link::Down,
            generation: Generation::default(),
            dial: 0,
            query_running: false,
            dropped: 0,
            in_burst: false,
            broken: false,
            traffic: Traffic::new(),
            pressure: Pressure::None,
        }
    }

    /// Whether the session has ended, and when the slot wants to be looked at though nothing happens.
    pub(crate) fn outlook(&self) -> (bool, Option<Instant>) {
        let link = match &self.link {
            Link::Dialing(dialing) => dialing.dial.deadline(),
            Link::Open(wire) => wire.held_until,
            Link::Down | Link::Resolving { .. } => None,
        };
        let talk = self.talk.as_ref().and_then(|talk| talk.dialogue.next_deadline());
        let session = self.shared.session.lock();
        (session.end().is_some(), [link, talk, self.traffic.due(), session.next_deadline()].into_iter().flatten().min())
    }

    /// Whether its work at hand is a step of a dial, which may take long.
    pub(crate) fn is_dialing(&self) -> bool {
        matches!(self.link, Link::Dialing(_))
    }

    /// Whether it waits for room in its inbox.
    pub(crate) fn is_stuck(&self) -> bool {
        let owes_gap = self.dropped > 0 || self.talk.as_ref().is_some_and(|talk| talk.owes_gap());
        owes_gap || matches!(&self.link, Link::Open(wire) if wire.blocked)
    }

    /// A socket of the slot is ready.
    pub(crate) fn note_ready(&mut self, hangup: bool) {
        match &mut self.link {
            Link::Dialing(dialing) => dialing.hangup |= hangup,
            Link::Open(wire) => {
                wire.readable = true;
                wire.hangup |= hangup;
            }
            Link::Down | Link::Resolving { .. } => {}
        }
    }

    /// The kernel has room again. Every event says so, so the senders' lock is taken only if something waits.
    pub(crate) fn handle_writable(&mut self) {
        if !matches!(&self.link, Link::Open(wire) if wire.unsent) {
            return;
        }
        let failure = self.flush();
        // What waits for the rate limit behind what has left needs a deadline, which is filed after a post.
        if failure.is_some() || matches!(&self.link, Link::Open(wire) if wire.held_until.is_some()) {
            self.shared.post();
        }
    }

    /// Goes on with the dial, or reads once. Returns whether there is more to do at once.
    pub(crate) fn handle_ready(&mut self, turn: &mut Turn<'_>) -> bool {
        match &mut self.link {
            Link::Dialing(dialing) => {
                let (now, hangup) = (Instant::now(), dialing.hangup);
                let dial = &mut dialing.dial;
                let progress = guard(|| dial.advance(now, turn.registry, turn.token)).and_then(|progress| progress);
                let phase = dial.phase();
                let is_over = !matches!(progress, Ok(Progress::Pending | Progress::Again));
                // The step itself takes time, in TLS most of all.
                let after = Instant::now();
                dialing.enter(after, phase, is_over, &self.shared);
                match progress {
                    Ok(Progress::Done(opened)) => {
                        let took = after.saturating_duration_since(dialing.began);
                        self.handle_opened(turn, opened, hangup, took);
                        self.wants_to_read()
                    }
                    Ok(progress) => {
                        self.shared.session.lock().handle_phase(now, phase);
                        matches!(progress, Progress::Again)
                    }
                    Err(error) => {
                        self.fail_dial(turn, error);
                        false
                    }
                }
            }
            Link::Open(_) => {
                if self.wants_to_read() {
                    let flow = self.receive(turn, true);
                    self.follow(turn, flow);
                }
                self.wants_to_read()
            }
            Link::Down | Link::Resolving { .. } => false,
        }
    }

    /// Reads once though no event has said that there is anything. Returns also whether there is more to do at once.
    pub(crate) fn handle_hot(&mut self, turn: &mut Turn<'_>) -> (Read, bool) {
        let Link::Open(wire) = &mut self.link else { return (Read::Closed, false) };
        if wire.blocked {
            return (Read::Nothing, false);
        }
        match self.receive(turn, true) {
            Flow::Idle => (Read::Nothing, false),
            flow => {
                if let Link::Open(wire) = &mut self.link {
                    wire.readable = true;
                }
                self.follow(turn, flow);
                (Read::Something, self.wants_to_read())
            }
        }
    }

    /// Tells the consumers of what was delivered since the last time: once for any number of messages.
    pub(crate) fn hand_over(&mut self) {
        self.sink.flush();
        if let Some(talk) = &mut self.talk {
            talk.flush();
        }
    }

    /// A caller wants the slot to be looked at.
    pub(crate) fn handle_post(&mut self, turn: &mut Turn<'_>) {
        self.shared.attend();
        if let Some(cause) = self.flush() {
            self.lose_after_reading(turn, cause);
        }
        self.shared.session.lock().handle_wishes(Instant::now());
        self.obey(turn);
        let orders = mem::take(&mut *self.shared.orders.lock());
        if let (false, Some(talk)) = (orders.is_empty(), &mut self.talk) {
            let (now, sink) = (Instant::now(), &self.sink);
            let last = orders.last().map_or(0, |order| order.number);
            let ran = guard(|| orders.into_iter().for_each(|order| talk.obey(now, order.what, sink)));
            self.converse(turn, ran);
            self.shared.session.lock().handle_orders(last);
            self.shared.changed.notify_all();
        }
    }

    /// A query has ended.
    pub(crate) fn handle_resolved(&mut self, turn: &mut Turn<'_>, resolved: Resolved) {
        self.query_running = false;
        let Link::Resolving { attempt, deadline } = self.link else { return };
        if resolved.dial != self.dial {
            return self.query(attempt, deadline);
        }
        let now = Instant::now();
        self.shared.tell_resolved(now, deadline);
        match resolved.plan {
            Ok(plan) => {
                // The next dial resumes the TLS session of this one.
                self.tls = plan.tls.clone().or(self.tls.take());
                self.link = Link::Dialing(Box::new(Dialing {
                    dial: Dial::new(plan, self.config.clone()),
                    hangup: false,
                    began: self.shared.dial_began(deadline),
                    phase: Phase::Connect,
                    phase_began: now,
                }));
            }
            Err(error) => self.fail_dial(turn, error),
        }
    }

    /// A deadline may have come.
    pub(crate) fn handle_timeout(&mut self, turn: &mut Turn<'_>, now: Instant) -> bool {
        let (expired, misses) = {
            let mut session = self.shared.session.lock();
            let before = session.heartbeat().misses();
            session.handle_timeout(now);
            let misses = session.heartbeat().misses();
            (session.take_expired(now), (misses > before).then_some(misses))
        };
        for (id, call) in expired {
            calls::expire(call, now);
            self.shared.tell(&Signal::Timeout { id: &id });
        }
        if let Some(misses) = misses {
            self.shared.tell(&Signal::Missed { misses });
        }
        self.obey(turn);
        if let Some(talk) = &mut self.talk
            && talk.dialogue.next_deadline().is_some_and(|deadline| deadline <= now)
        {
            let ran = guard(|| talk.dialogue.handle_timeout(now, talk::stamp()));
            self.converse(turn, ran);
        }
        if matches!(&self.link, Link::Open(wire) if wire.held_until.is_some_and(|until| until <= now)) {
            self.shared.tell_refill();
            if self.flush().is_some() {
                self.shared.post();
            }
        }
        if self.traffic.due().is_some_and(|due| due <= now) {
            self.traffic.tell(&self.shared);
        }
        self.is_dialing() && self.handle_ready(turn)
    }

    /// Looks whether the inbox has room again. Returns whether there is more to do at once.
    pub(crate) fn handle_room(&mut self, turn: &mut Turn<'_>) -> bool {
        if let Some(talk) = &mut self.talk {
            let context = Context::new(&self.shared, self.generation, Instant::now());
            talk.report_gaps(&self.shared, &context);
        }
        if self.sink.room() == 0 {
            return false;
        }
        self.report_gap(turn);
        let Link::Open(wire) = &mut self.link else { return false };
        if !wire.blocked {
            return false;
        }
        match self.decode_backlog(turn, true) {
            Flow::Blocked => {}
            flow => {
                self.unblock();
                self.follow(turn, flow);
            }
        }
        self.wants_to_read()
    }

    /// Ends the session: its reactor stops.
    pub(crate) fn stop(&mut self, turn: &mut Turn<'_>) {
        self.fail(turn, Error::Stopped);
    }

    /// Begins the session's first dial.
    pub(crate) fn begin(&mut self, turn: &mut Turn<'_>) {
        self.shared.session.lock().handle_begin(Instant::now());
        self.obey(turn);
    }

    /// Drops the slot. A panic in a handler's or hook's own `drop` ends nothing else.
    pub(crate) fn discard(self) {
        let id = self.shared.id;
        shield(format_args!("{id}: dropping the handler or a hook"), || drop(self));
    }

    /// Does what the session asks for. Afterwards callers who wait are told.
    fn obey(&mut self, turn: &mut Turn<'_>) {
        loop {
            let actions = self.shared.session.lock().take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    // The handler panicked on the event before it; the end is among the next actions.
                    Action::Dial { .. } if self.broken => {}
                    Action::Dial { attempt, deadline } => {
                        if let Some(wait) = self.dial_later() {
                            self.shared.session.lock().handle_dial_throttled(Instant::now(), wait);
                            continue;
                        }
                        self.dial += 1;
                        self.link = Link::Resolving { attempt, deadline };
                        self.query(attempt, deadline);
                    }
                    Action::Abandon => self.abandon(turn),
                    Action::Ping(payload) => self.ping(turn, payload),
                    Action::Close(code, reason) => {
                        if self.shared.write(|out| out.close(Some(code), &reason)) == Some(true) {
                            self.shared.log_close(self.generation, Some(code), &reason);
                        }
                    }
                    Action::Hangup(cause) => self.drop_wire(turn, cause),
                    Action::Emit(event) => self.report(turn, &event),
                }
            }
            self.shared.changed.notify_all();
        }
    }

    /// Does what the dialogue asks for, after it ran. If the dialect panicked in it, the session ends.
    fn converse(&mut self, turn: &mut Turn<'_>, ran: Result<(), Error>) {
        if let Err(panicked) = ran {
            return self.fail(turn, panicked);
        }
        while let Some(talk) = &mut self.talk {
            let deeds = talk.dialogue.take_deeds();
            if deeds.is_empty() {
                break;
            }
            let (generation, had_wire) = (self.generation, matches!(self.link, Link::Open(_)));
            let mut burst = Vec::new();
            for deed in deeds {
                // Once the wire has ended, what was to be done on it is stale.
                let is_stale = had_wire && (self.generation != generation || !matches!(self.link, Link::Open(_)));
                match deed {
                    Deed::Standing(channel, standing) if standing.is_none() || !is_stale => {
                        self.note_standing(channel, standing);
                        continue;
                    }
                    Deed::Say { text, urgent: false, ticket } if !is_stale => {
                        burst.push((text, ticket));
                        continue;
                    }
                    _ => {}
                }
                if let Err(panicked) = self.say_many(&mem::take(&mut burst)) {
                    return self.fail(turn, panicked);
                }
                match deed {
                    _ if is_stale => {}
                    Deed::Say { text, ticket, .. } => {
                        let costs = match self.costs(&text) {
                            Ok(costs) => costs,
                            Err(panicked) => return self.fail(turn, panicked),
                        };
                        let (lane, ticket) = (Lane::Control, ticket.as_ref());
                        let outgoing = Outgoing { lane, costs, ticket, is_secret: true, ..Outgoing::text(&text) };
                        if let Err(error @ (Error::Config { .. } | Error::QueueFull { .. })) = self.shared.say(outgoing) {
                            // A login that cannot leave is none.
                            self.lose(turn, error);
                        }
                    }
                    Deed::Standing(..) => {}
                    Deed::LoggedIn => self.handle_logged_in(turn),
                    Deed::LoginFailed(cause) | Deed::Hangup(cause) => self.lose(turn, cause),
                    Deed::Live(is_live) => self.handle_live(turn, is_live),
                    Deed::Emit(event) => self.report_if_room(turn, &event),
                }
            }
            if let Err(panicked) = self.say_many(&burst) {
                return self.fail(turn, panicked);
            }
            if let Some(talk) = &mut self.talk {
                talk.dialogue.handle_said();
            }
            self.shared.changed.notify_all();
        }
        if self.broken {
            // The handler panicked on one of the events: the end is still to be told.
            self.obey(turn);
        }
    }

    fn note_standing(&self, channel: Arc<str>, standing: Option<Standing>) {
        let is_wanted = standing.is_some();
        let was_wanted = self.shared.session.lock().handle_standing(channel.clone(), standing);
        match (was_wanted, is_wanted) {
            (false, true) => self.shared.tell(&Signal::Add { channel: &channel }),
            (true, false) => self.shared.tell(&Signal::Remove { channel: &channel }),
            (true, true) | (false, false) => {}
        }
    }

    /// Says what has no hurry, in as few writes as possible.
    fn say_many(&self, texts: &[(String, Option<Arc<Ticket>>)]) -> Result<(), Error> {
        if texts.is_empty() {
            return Ok(());
        }
        let costs = texts.iter().map(|(text, _)| self.costs(text)).collect::<Result<Vec<_>, _>>()?;
        let outgoing = texts.iter().zip(costs).map(|((text, ticket), costs)| Outgoing {
            lane: Lane::Restore,
            costs,
            is_own: true,
            ticket: ticket.as_ref(),
            ..Outgoing::text(text)
        });
        self.shared.say_many(&outgoing.collect::<Vec<_>>());
        Ok(())
    }

    /// What a text of the connection's own counts for in the rate limits.
    fn costs(&self, text: &str) -> Result<Costs, Error> {
        guard(|| self.shared.outgoing(Outgoing::TEXT, text.as_bytes()).costs)
    }

    /// How long the limit on dials makes the next one wait.
    fn dial_later(&self) -> Option<Duration> {
        let limit = self.dial_limit.as_ref()?;
        let (now, costs) = (Instant::now(), limit.control());
        match limit.reserve(now, &costs, true) {
            Ok(()) => {
                limit.commit(now, &costs);
                None
            }
            Err(Refused::Wait(wait)) => Some(wait),
            // A dial costs one, and no limit is less.
            Err(Refused::Never { .. }) => None,
        }
    }

    /// Sends a heartbeat of the session's: the venue's own text, or a ping frame.
    fn ping(&mut self, turn: &mut Turn<'_>, payload: [u8; 8]) {
        let dialect = self.talk.as_ref().map(|_| &self.config.settings.dialect);
        let text = dialect.and_then(|dialect| guard(|| dialect.ping(u64::from_be_bytes(payload))).transpose());
        let is_held = match text {
            None => match self.shared.write(|out| out.ping(&payload)).flatten() {
                Some(Sent::Queued) => true,
                Some(Sent::Written | Sent::Buffered) => {
                    self.shared.log_control(self.generation, FrameKind::Ping, &payload);
                    self.shared.tell(&Signal::Ping);
                    false
                }
                None => false,
            },
            Some(text) => match text.and_then(|text| Ok((self.costs(&text)?, text))) {
                Ok((costs, text)) => {
                    let outgoing = Outgoing { costs, lane: Lane::Control, ..Outgoing::text(&text) };
                    let said = self.shared.say(outgoing);
                    let has_left = matches!(said, Ok(Sent::Written | Sent::Buffered));
                    if has_left {
                        self.shared.tell(&Signal::Ping);
                    }
                    !has_left
                }
                Err(panicked) => return self.fail(turn, panicked),
            },
        };
        if is_held {
            self.shared.session.lock().handle_ping_held();
        }
    }

    fn query(&mut self, attempt: u32, deadline: Instant) {
        // A hook that hangs holds one thread. A look-up that hangs may be asked again: what is known of the name serves.
        if self.query_running && self.config.settings.on_dial.is_some() {
            return resolver::staff();
        }
        self.query_running = true;
        let query = Query {
            connection: self.shared.id,
            dial: self.dial,
            attempt,
            deadline,
            config: self.config.clone(),
            tls: self.tls.clone(),
            mailbox: self.shared.mailbox.clone(),
        };
        query.start();
    }

    fn fail_dial(&mut self, turn: &mut Turn<'_>, cause: Error) {
        self.link = Link::Down;
        self.shared.session.lock().handle_dial_failed(Instant::now(), cause);
        self.obey(turn);
    }

    /// Gives up the dial, or the wire on which the login goes on.
    fn abandon(&mut self, turn: &mut Turn<'_>) {
        let now = Instant::now();
        match &mut self.link {
            Link::Resolving { deadline, .. } => self.shared.tell_resolved(now, *deadline),
            Link::Dialing(dialing) => dialing.enter(now, dialing.phase, true, &self.shared),
            Link::Down | Link::Open(_) => {}
        }
        self.end_wire(turn, &Error::Closed);
        self.link = Link::Down;
        self.converse(turn, Ok(()));
    }

    /// The upgrade has succeeded; a login may follow.
    fn handle_opened(&mut self, turn: &mut Turn<'_>, opened: Opened, hangup: bool, took: Duration) {
        let stream = Stream(Arc::new(opened.stream));
        let is_tls = opened.tls.is_some();
        self.generation = self.generation.next();
        self.link = Link::Open(Box::new(Wire {
            stream: stream.clone(),
            is_tls,
            subprotocol: opened.subprotocol.map(Into::into),
            is_open: false,
            held_until: None,
            assembler: Assembler::new(self.config.settings.max_message),
            stamped: self.config.settings.kernel_stamps.then(|| Stamped::new(&stream.0)).flatten(),
            kernel_at: None,
            readable: true,
            hangup,
            unsent: false,
            blocked: false,
            backlog: Vec::new(),
            backlog_at: Instant::now(),
        }));
        self.shared.out.lock().open(self.generation, stream, opened.tls);
        self.shared.tell(&Signal::Upgrade { took });
        let now = Instant::now();
        match &mut self.talk {
            None => self.handle_logged_in(turn),
            Some(talk) => {
                self.shared.session.lock().handle_phase(now, Phase::Login);
                talk.began = now;
                let ran = guard(|| talk.dialogue.handle_upgraded(now, talk::stamp()));
                self.converse(turn, ran);
            }
        }
        if !opened.glued.is_empty() {
            turn.scratch.calls_wait = self.shared.session.lock().handle_receive(now);
            let flow = self.decode(turn, &opened.glued, now, true);
            self.follow(turn, flow);
        }
    }

    /// Callers may send, unless they are to wait for the restore.
    fn handle_logged_in(&mut self, turn: &mut Turn<'_>) {
        let Link::Open(wire) = &mut self.link else { return };
        wire.is_open = true;
        let now = Instant::now();
        if let Some(talk) = &mut self.talk {
            if talk.dialogue.has_login() {
                self.shared.tell(&Signal::Login { took: now.saturating_duration_since(talk.began) });
            }
            talk.began = now;
            talk.is_restoring = talk.dialogue.has_channels();
        }
        let subprotocol = wire.subprotocol.clone();
        if self.config.settings.hold_until != State::Live || self.talk.is_none() {
            self.shared.out.lock().ready();
        }
        {
            let mut session = self.shared.session.lock();
            session.handle_opened(now, self.generation, subprotocol);
            session.handle_live(self.talk.is_none());
        }
        // Before the event: a handler that panics on it ends the wire, and `on_lost` comes second.
        if let Some(hook) = &self.config.settings.on_open {
            shield("on_open", || hook(self.shared.id, self.generation));
        }
        self.obey(turn);
        // Unless the handler panicked on the event.
        if let (Link::Open(_), Some(talk)) = (&self.link, self.talk.as_ref().filter(|talk| talk.is_restoring)) {
            self.shared.tell(&Signal::Restore { channels: talk.dialogue.channels() });
        }
    }

    fn handle_live(&mut self, turn: &mut Turn<'_>, is_live: bool) {
        if is_live {
            // Before anybody sees that it is live.
            self.shared.out.lock().ready();
        }
        self.shared.session.lock().handle_live(is_live);
        let Some(talk) = self.talk.as_mut().filter(|_| is_live) else { return };
        let was_restoring = mem::take(&mut talk.is_restoring);
        if !talk.dialogue.has_channels() {
            return;
        }
        if was_restoring {
            let (channels, took) = (talk.dialogue.channels(), Instant::now().saturating_duration_since(talk.began));
            self.shared.tell(&Signal::Restored { channels, took });
        }
        self.report(turn, &Event::Live);
    }

    fn wants_to_read(&self) -> bool {
        matches!(&self.link, Link::Open(wire) if wire.readable && !wire.blocked)
    }

    fn follow(&mut self, turn: &mut Turn<'_>, flow: Flow) {
        match flow {
            Flow::More | Flow::Paused => {}
            Flow::Idle | Flow::Drained => {
                if let Link::Open(wire) = &mut self.link {
                    wire.readable = false;
                }
            }
            Flow::Blocked => self.block(),
            Flow::End(cause) => self.lose(turn, cause),
            Flow::Fail(cause) => self.fail(turn, cause),
        }
    }

    /// One receive, decoded and delivered; `bounded` as in [`decode`](Self::decode).
    fn receive(&mut self, turn: &mut Turn<'_>, bounded: bool) -> Flow {
        let Link::Open(wire) = &mut self.link else { return Flow::Drained };
        // A login must not wait for a consumer.
        if bounded && wire.is_open && self.config.settings.overflow == Overflow::Block && self.sink.room() == 0 {
            return Flow::Blocked;
        }
        let mut received = mem::take(&mut turn.scratch.received);
        let count = loop {
            let count = match &mut wire.stamped {
                None => wire.stream.read(&mut received),
                Some(stamped) => stamped.read(&wire.stream.0, &mut received).map(|(count, stamp)| {
                    wire.kernel_at = stamp;
                    count
                }),
            };
            match count {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                count => break count,
            }
        };
        let flow = match count {
            Ok(0) => Flow::End(Error::Disconnected),
            Ok(count) => {
                let at = Instant::now();
                turn.scratch.was_filled = true;
                turn.scratch.calls_wait = self.shared.session.lock().handle_receive(at);
                // Windows reports a socket as ready again only after it was read to `WouldBlock`.
                let is_last = count < received.len() && !wire.hangup && !cfg!(windows);
                let is_tls = wire.is_tls;
                self.traffic.note(at, &self.shared);
                let decoded = if is_tls {
                    self.decrypt(turn, &received[..count], at, bounded)
                } else {
                    self.decode(turn, &received[..count], at, bounded)
                };
                if let (true, Link::Open(wire)) = (self.config.settings.socket.quickack, &self.link) {
                    socket::rearm_quickack(&wire.stream.0);
                }
                match decoded {
                    Flow::More if is_last => Flow::Drained,
                    flow => flow,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wire.hangup = false;
                Flow::Idle
            }
            Err(error) => Flow::End(Error::io(error)),
        };
        turn.scratch.received = received;
        flow
    }

    /// Decrypts a receive, a few KiB under the lock at a time, then decodes it.
    fn decrypt(&mut self, turn: &mut Turn<'_>, mut cipher: &[u8], at: Instant, bounded: bool) -> Flow {
        let mut plain = mem::take(&mut turn.scratch.plain);
        let mut length = 0;
        let mut end = None;
        while !cipher.is_empty() && end.is_none() {
            let mut out = self.shared.out.lock();
            let step = out.decrypt(&mut cipher, &mut plain[length..]);
            let is_done = out.unsent() == 0 && out.failure().is_none();
            MutexGuard::unlock_fair(out);
            if !is_done {
                // What TLS had to answer may be among it.
                self.shared.post();
            }
            length += step.plain;
            end = step.end;
        }
        let flow = self.decode(turn, &plain[..length], at, bounded);
        turn.scratch.plain = plain;
        match (flow, end) {
            (Flow::More, Some(cause)) => Flow::End(cause),
            // What the inbox did not take is in the backlog and is delivered with the loss.
            (Flow::Blocked, Some(cause)) => Flow::End(cause),
            (flow, _) => flow,
        }
    }

    /// Delivers what was read before and the inbox had no room for.
    fn decode_backlog(&mut self, turn: &mut Turn<'_>, bounded: bool) -> Flow {
        let Link::Open(wire) = &mut self.link else { return Flow::More };
        if wire.backlog.is_empty() {
            return Flow::More;
        }
        let (backlog, at) = (mem::take(&mut wire.backlog), wire.backlog_at);
        turn.scratch.calls_wait = self.shared.session.lock().calls_pending() > 0;
        self.decode(turn, &backlog, at, bounded)
    }

    /// Delivers the messages in `bytes`. If not `bounded`, an inbox that would block takes them all the same: the wire is ending, and
    /// there is nobody left to push back on.
    fn decode(&mut self, turn: &mut Turn<'_>, bytes: &[u8], at: Instant, bounded: bool) -> Flow {
        let mut rest = bytes;
        let flow = loop {
            match self.decode_some(turn, &mut rest, at, bounded) {
                // A login has succeeded, say: that is told before what follows.
                Flow::Paused => self.converse(turn, Ok(())),
                flow => break flow,
            }
        };
        match self.finish_burst(at) {
            Ok(()) => flow,
            Err(panicked) => Flow::Fail(panicked),
        }
    }

    /// Tells a handler that it has had all messages of a receive.
    fn finish_burst(&mut self, at: Instant) -> Result<(), Error> {
        let in_burst = mem::take(&mut self.in_burst);
        let (true, false, Link::Open(wire), Kind::Handler(handler)) = (in_burst, self.broken, &self.link, &mut self.sink) else {
            return Ok(());
        };
        let context = Context { kernel_at: wire.kernel_at, ..Context::new(&self.shared, self.generation, at) };
        let ran = guard(|| handler.handle_drained(&context));
        self.broken = ran.is_err();
        ran
    }

    /// As [`decode`](Self::decode), up to the first message that makes the dialogue ask for something.
    fn decode_some(&mut self, turn: &mut Turn<'_>, rest: &mut &[u8], at: Instant, bounded: bool) -> Flow {
        // What was dropped came before these messages, so its report does too.
        if self.dropped > 0 && self.sink.room() > 0 {
            self.report_gap(turn);
        }
        let Link::Open(wire) = &mut self.link else { return Flow::More };
        let shared = &self.shared;
        let overflow = self.config.settings.overflow;
        let is_bounded = (bounded && wire.is_open) || overflow != Overflow::Block;
        let mut delivery = Delivery {
            context: Context { kernel_at: wire.kernel_at, ..Context::new(shared, self.generation, at) },
            room: if is_bounded { self.sink.room() } else { usize::MAX },
            overflow,
            sink: &mut self.sink,
            pongs: &mut turn.scratch.pongs,
            engine: &mut *turn.engine,
            dropped: 0,
            discarded: 0,
        };
        // With a dialect that reads nothing, a raw request may wait for its reply.
        let calls_wait = turn.scratch.calls_wait;
        let sees_frames = shared.sees_frames();
        let length = rest.len();
        // What the inbox had no room for was counted when it came.
        let is_first = !self.in_burst && wire.backlog_at != at;
        let (mut messages, mut kept) = (0, 0);
        let flow = loop {
            if delivery.room == 0 && overflow == Overflow::Block && !rest.is_empty() {
                wire.backlog.extend_from_slice(rest);
                // Counted when it is taken up again.
                kept = rest.len();
                *rest = &[];
                wire.backlog_at = at;
                break Flow::Blocked;
            }
            let item = wire.assembler.next(rest);
            delivery.context.rest = rest;
            if let (true, Ok(Some(item))) = (sees_frames, &item) {
                let is_secret = !wire.is_open || is_login(self.talk.as_deref(), item);
                shared.witness_item(at, self.generation, item, is_secret);
            }
            if matches!(item, Ok(Some(Item::Text(_) | Item::Binary(_)))) {
                messages += 1;
                if let (true, 1, Some(stamp)) = (is_first, messages, wire.kernel_at) {
                    shared.instruments.note_kernel(at, stamp);
                }
            }
            let delivered = match item {
                Ok(Some(Item::Text(text))) => match &mut self.talk {
                    Some(talk) => delivery.route(talk, text),
                    None if calls_wait => delivery.correlate(text),
                    None => delivery.deliver(EventRef::Text(text)),
                },
                Ok(Some(Item::Binary(bytes))) => delivery.deliver(EventRef::Binary(bytes)),
                Ok(Some(Item::Ping(payload))) => {
                    delivery.pongs.push(payload);
                    continue;
                }
                Ok(Some(Item::Pong(payload))) => {
                    let proof = shared.session.lock().handle_pong(at, payload);
                    if let Some(rtt) = proof {
                        shared.tell(&Signal::Pong { rtt, kind: "ping_pong" });
                    }
                    continue;
                }
                Ok(Some(Item::Close { code, reason })) => break Flow::End(Error::PeerClosed { code, reason: reason.into() }),
                Ok(None) => break Flow::More,
                Err(violation) => break Flow::End(Error::Protocol { code: violation.code, reason: violation.reason }),
            };
            match delivered {
                Ok(()) => {}
                Err(Undelivered::Failed(cause)) => break Flow::Fail(cause),
                Err(Undelivered::Panicked(payload)) => {
                    self.broken = true;
                    break Flow::Fail(Error::Panicked(delivery.sink.take_panic(payload, &mut turn.scratch.panic)));
                }
            }
            if self.talk.as_ref().is_some_and(|talk| talk.dialogue.has_deeds()) {
                break Flow::Paused;
            }
        };
        let Delivery { dropped, discarded, .. } = delivery;
        let held = wire.assembler.memory() + wire.backlog.capacity();
        self.dropped += dropped;
        self.in_burst |= messages > 0;
        let counters = &shared.counters;
        Counters::add(&counters.messages, messages);
        Counters::add(&counters.bytes, (length - kept - rest.len()) as u64);
        Counters::add(&counters.dropped, dropped);
        Counters::add(&counters.discarded, discarded);
        counters.held.store(held as u64, Ordering::Relaxed);
        if messages > 0 && self.config.settings.data_silence.is_some() {
            shared.session.lock().handle_data(at);
        }
        turn.scratch.pongs.answer(shared, self.generation);
        flow
    }

    fn block(&mut self) {
        if let Link::Open(wire) = &mut self.link
            && !wire.blocked
        {
            wire.blocked = true;
            self.note_blocked(true);
        }
    }

    fn unblock(&mut self) {
        if let Link::Open(wire) = &mut self.link
            && wire.blocked
        {
            wire.blocked = false;
            self.note_blocked(false);
        }
    }

    fn note_blocked(&mut self, blocked: bool) {
        let now = Instant::now();
        self.shared.tell(if blocked { &Signal::Blocked } else { &Signal::Resumed });
        self.shared.session.lock().handle_blocked(now, blocked);
        if let Some(talk) = &mut self.talk {
            talk.dialogue.handle_blocked(now, blocked);
        }
    }

    /// A write failed somewhere: what the peer said last is still to be read, a Close frame with its reason perhaps.
    fn lose_after_reading(&mut self, turn: &mut Turn<'_>, cause: Error) {
        let mut flow = self.decode_backlog(turn, false);
        for _ in 0..LAST_RECEIVES {
            match flow {
                Flow::More => {}
                Flow::End(end @ Error::PeerClosed { .. }) => return self.lose(turn, end),
                Flow::Fail(failure) => return self.fail(turn, failure),
                Flow::Idle | Flow::Drained | Flow::Blocked | Flow::Paused | Flow::End(_) => break,
            }
            flow = self.receive(turn, false);
        }
        self.lose(turn, cause);
    }

    fn lose(&mut self, turn: &mut Turn<'_>, cause: Error) {
        self.drop_wire(turn, cause);
        self.obey(turn);
    }

    fn drop_wire(&mut self, turn: &mut Turn<'_>, cause: Error) {
        self.end(turn, cause, false);
    }

    fn fail(&mut self, turn: &mut Turn<'_>, cause: Error) {
        self.end(turn, cause, true);
        self.obey(turn);
    }

    /// Ends the wire, if there is one, and tells the session, the callers who wait for replies, and the hook.
    fn end(&mut self, turn: &mut Turn<'_>, mut cause: Error, mut is_failure: bool) {
        // What was received is delivered, in order, whatever room there is.
        let had_wire = matches!(self.link, Link::Open(_));
        let rest = self.decode_backlog(turn, false);
        if had_wire && !is_failure && !matches!(self.link, Link::Open(_)) {
            // What was in it has ended the wire already, and the next dial may have begun.
            return;
        }
        if let Flow::Fail(failure) = rest {
            // A dialect, or the key function of an inbox, panicked over it.
            (cause, is_failure) = (failure, true);
        } else if let Flow::End(end @ Error::PeerClosed { .. }) = rest
            && matches!(cause, Error::Disconnected | Error::Io(_) | Error::Tls { .. })
        {
            cause = end;
        }
        let ended = self.end_wire(turn, &cause);
        let was_open = ended.as_ref().is_some_and(|ended| ended.was_open);
        let (is_own_close, waiting) = {
            let (mut session, now) = (self.shared.session.lock(), Instant::now());
            match &ended {
                _ if is_failure => session.handle_failure(now, cause.clone()),
                // The login is a part of the dial.
                Some(Ended { was_open: false, .. }) => session.handle_dial_failed(now, cause.clone()),
                _ => session.handle_lost(now, cause.clone()),
            }
            (matches!(session.end(), Some(None)), session.take_calls())
        };
        let cause = Arc::new(if is_own_close { Error::Closed } else { cause });
        for (id, call) in waiting {
            calls::lose(call, &cause);
            self.shared.tell(&Signal::FailAll { id: &id, cause: &cause });
        }
        if let Some(Ended { unsent: Some(unsent), .. }) = &ended {
            self.report(turn, unsent);
        }
        if let (true, Some(hook)) = (was_open, &self.config.settings.on_lost) {
            shield("on_lost", || hook(self.shared.id, self.generation, &cause));
        }
        self.converse(turn, Ok(()));
    }

    /// Takes leave of the peer if it may still listen, and drops the socket.
    fn end_wire(&mut self, turn: &mut Turn<'_>, cause: &Error) -> Option<Ended> {
        if !matches!(self.link, Link::Open(_)) {
            return None;
        }
        self.unblock();
        let Link::Open(mut wire) = mem::replace(&mut self.link, Link::Down) else { return None };
        self.report_gap(turn);
        let (told, remains) = {
            let mut out = self.shared.out.lock();
            // Nothing can be done if it fails: the wire is ending.
            let told = farewell(cause).filter(|(code, reason)| matches!(out.close(*code, reason), Ok(true)));
            (told, out.end())
        };
        if let Some((code, reason)) = told {
            self.shared.log_close(self.generation, code, reason);
        }
        drop(remains.stream);
        self.shared.counters.held.store(0, Ordering::Relaxed);
        if let Some(talk) = &mut self.talk {
            talk.dialogue.handle_lost(Instant::now());
        }
        // With unread bytes the kernel would answer the peer with a reset, which can overtake our Close frame.
        let _ = wire.stream.0.shutdown(Shutdown::Write);
        let _ = wire.stream.read(&mut turn.scratch.received);
        if let Some(stream) = Arc::get_mut(&mut wire.stream.0) {
            let _ = turn.registry.deregister(stream);
        }
        self.shared.tell_pressure(&mut self.pressure);
        self.traffic.tell(&self.shared);
        let unsent = Event::Unsent { messages: remains.messages, bytes: remains.bytes };
        Some(Ended { was_open: wire.is_open, unsent: (remains.messages > 0).then_some(unsent) })
    }

    fn report_gap(&mut self, turn: &mut Turn<'_>) {
        let missing = mem::take(&mut self.dropped);
        if missing > 0 {
            self.report(turn, &Event::Gap { channel: None, missing });
        }
    }

    /// Delivers an event that the peer can cause at will: it is dropped as messages are, and counted.
    fn report_if_room(&mut self, turn: &mut Turn<'_>, event: &Event) {
        if self.sink.room() > 0 || self.config.settings.overflow == Overflow::Block {
            return self.report(turn, event);
        }
        self.shared.witness(self.generation, event);
        self.dropped += 1;
        Counters::add(&self.shared.counters.dropped, 1);
        if let Some(talk) = &mut self.talk {
            talk.report(&self.shared, &Context::new(&self.shared, self.generation, Instant::now()), event);
        }
    }

    /// Delivers an event that is not a message.
    fn report(&mut self, turn: &mut Turn<'_>, event: &Event) {
        self.shared.witness(self.generation, event);
        if self.broken && !matches!(event, Event::Closed { .. }) {
            return;
        }
        // A session that redials for ever must not fill an inbox that nobody reads: what only reports progress yields.
        if matches!(event, Event::Dialing { .. } | Event::DialFailed { redial_in: Some(_), .. }) && self.sink.room() == 0 {
            return;
        }
        let context = Context::new(&self.shared, self.generation, Instant::now());
        if let Some(talk) = &mut self.talk {
            talk.report(&self.shared, &context, event);
        }
        match self.sink.deliver(&context, EventRef::State(event), turn.engine) {
            Outcome::Delivered | Outcome::Replaced => {}
            Outcome::Discarded => Counters::add(&self.shared.counters.discarded, 1),
            Outcome::Panicked(payload) => {
                let text = self.sink.take_panic(payload, &mut turn.scratch.panic);
                if !mem::replace(&mut self.broken, true) {
                    // The caller's `obey` goes on with what this asks for; a gap is reported only to inboxes, which do not panic.
                    self.end(turn, Error::Panicked(text), true);
                }
            }
        }
    }

    /// Writes what waits, and notes whether something still does. Returns why writing has failed, if it has.
    ///
    /// Whoever leaves something unsent posts the slot, which leads here: an edge that came before the note is made up for by this write,
    /// and one that comes after it finds the note.
    fn flush(&mut self) -> Option<Error> {
        let mut passed = Costs::default();
        let (failure, next, unsent) = {
            let mut out = self.shared.out.lock();
            let flushed = out.flush_counting(&mut passed);
            let next = flushed.as_ref().map_or(None, |next| *next);
            (flushed.err().or_else(|| out.failure()), next, out.unsent() > 0)
        };
        if let Link::Open(wire) = &mut self.link {
            wire.unsent = unsent;
            wire.held_until = next;
        }
        self.shared.tell_consumed(&passed);
        self.shared.tell_pressure(&mut self.pressure);
        failure
    }
}

/// Where the messages of one receive go.
struct Delivery<'d, 'e> {
    context: Context<'d>,
    sink: &'d mut Kind,
    engine: &'d mut Engine<'e>,
    pongs: &'d mut Pongs,
    overflow: Overflow,
    room: usize,
    dropped: u64,
    discarded: u64,
}

/// Why nothing further can be delivered.
enum Undelivered {
    Failed(Error),
    Panicked(Box<dyn Any + Send>),
}

impl Delivery<'_, '_> {
    /// Delivers what the user is to see.
    fn deliver(&mut self, event: EventRef<'_>) -> Result<(), Undelivered> {
        if self.room == 0 {
            if self.overflow == Overflow::Disconnect {
                return Err(Undelivered::Failed(Error::InboxFull));
            }
            // Under `Block` these are the further parts of a batch.
            if self.overflow == Overflow::DropNewest {
                self.dropped += 1;
                return Ok(());
            }
        }
        self.room = self.room.saturating_sub(1);
        // The peer sent its ping first, so its pong goes out before any answer to this message.
        self.pongs.answer(self.context.shared, self.context.generation);
        match self.sink.deliver(&self.context, event, self.engine) {
            Outcome::Delivered => {}
            Outcome::Replaced => self.room = self.room.saturating_add(1),
            // Who discards is never full.
            Outcome::Discarded => {
                self.discarded += 1;
                self.room = self.room.saturating_add(1);
            }
            Outcome::Panicked(payload) => return Err(Undelivered::Panicked(payload)),
        }
        Ok(())
    }

    /// Lets the dialect say what a text is.
    fn route(&mut self, talk: &mut Talk, text: &str) -> Result<(), Undelivered> {
        match self.classify(talk, text)? {
            Routed::Parts(parts) if parts.len() > BATCH_MAX => self.deliver(EventRef::Text(text)),
            Routed::Parts(parts) => {
                for (index, part) in parts.iter().enumerate() {
                    self.context.is_followed = index + 1 < parts.len();
                    match self.classify(talk, part)? {
                        Routed::Parts(_) => self.deliver(EventRef::Text(part))?,
                        routed => self.pass(routed, part)?,
                    }
                }
                Ok(())
            }
            routed => self.pass(routed, text),
        }
    }

    /// Looks whether a text answers a call, for dialects that know nothing of replies.
    fn correlate(&mut self, text: &str) -> Result<(), Undelivered> {
        let shared = self.context.shared;
        let dialect = &shared.config.settings.dialect;
        let answered = guard(|| match dialect.classify(text) {
            Inbound::Reply { id } => talk::answer(shared, dialect, self.context.at, &id, text),
            _ => Ok(false),
        });
        match answered.and_then(|answered| answered) {
            Ok(true) => Ok(()),
            Ok(false) => self.deliver(EventRef::Text(text)),
            Err(panicked) => Err(Undelivered::Failed(panicked)),
        }
    }

    fn classify<'t>(&self, talk: &mut Talk, text: &'t str) -> Result<Routed<'t>, Undelivered> {
        let routed = guard(|| talk.route(self.context.shared, &self.context, text));
        routed.and_then(|routed| routed).map_err(Undelivered::Failed)
    }

    fn pass(&mut self, routed: Routed<'_>, text: &str) -> Result<(), Undelivered> {
        match routed {
            Routed::Message => self.deliver(EventRef::Text(text)),
            Routed::Behind(event) => {
                self.context.shared.witness(self.context.generation, &event);
                self.deliver(EventRef::State(&event))?;
                self.deliver(EventRef::Text(text))
            }
            Routed::Event(event) => {
                self.context.shared.witness(self.context.generation, &event);
                self.deliver(EventRef::State(&event))
            }
            Routed::Done | Routed::Parts(_) => Ok(()),
        }
    }
}

impl Dialing {
    /// The dial has got this far; tells how long the phases took that are over.
    fn enter(&mut self, now: Instant, phase: Phase, is_over: bool, shared: &Shared) {
        if phase != self.phase || is_over {
            let took = now.saturating_duration_since(self.phase_began);
            shared.tell(&Signal::DialPhase { phase: self.phase, took });
            (self.phase, self.phase_began) = (phase, now);
        }
    }
}

/// Whether a message answers a login that is repeated on an open wire.
fn is_login(talk: Option<&Talk>, item: &Item<'_>) -> bool {
    matches!(item, Item::Text(text) if talk.is_some_and(|talk| talk.is_login(text)))
}

/// The Close frame to send before a wire is dropped for this cause, if the peer is worth telling (RFC 6455 §7.1.7, §7.4.1).
fn farewell(cause: &Error) -> Option<(Option<u16>, &str)> {
    match cause {
        // The code is echoed (RFC 6455 §5.5.1).
        Error::PeerClosed { code, .. } => Some((*code, "")),
        Error::Protocol { code, reason } => Some((Some(*code), *reason)),
        Error::Replaced | Error::DataSilent { .. } => Some((Some(1000), "")),
        Error::InboxFull | Error::Panicked(_) | Error::Stopped => Some((Some(1001), "")),
        _ => None,
    }
}
