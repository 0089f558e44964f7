//! Seeded worlds: a whole connection, from callers to the kernel, against a model of a venue, in virtual time.
//!
//! Session, dialogue, sending half and governor are joined as `reactor/slot.rs` joins them. The venue reads what the kernel took, logs in,
//! answers, confirms, refuses and forgets; wires stall, break and fall silent; callers send, call, subscribe and change their minds. After
//! every step the world compares what was said with what lies on the wires. In the end the faults stop, and all must heal.
//! A failure names its seed; `ZEN_WORLD_SEED=n cargo test --test venue_world` runs that world alone, `ZEN_WORLDS=n` more of them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::env;
use std::fmt;
use std::io::{self, Cursor, Write};
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, OpCode};
use zen_websocket::internals::{
    Action, Call, Costs, Deed, Dialogue, Governor, Lane, Out, Outgoing, Registered, Rules, Session, Stamp, Ticket,
};
use zen_websocket::{
    Config, Confirmation, Dialect, Error, Event, Generation, Id, Inbound, Login, LoginStep, Phase, RateLimit, Request, Result,
    Secret, Sent, Sequence, Standing, State, Subscribe,
};

const WORLDS: u64 = 1000;

/// How late the reactor may look.
const LATE: Duration = Duration::from_millis(3);

/// How long the healing may take: the slowest limit lets a restore through meanwhile.
const HEAL: Duration = Duration::from_secs(60);
const PROOF: Duration = Duration::from_secs(6);

/// How often the reactor may be woken by deadlines within a second.
const WAKES_MAX: usize = 300;

/// How many lines are kept of a world; `ZEN_WORLD_LOG=n` keeps more.
const LOG_MAX: usize = 40;
const CALLERS: usize = 3;

#[test]
fn callers_are_told_the_truth_and_venues_get_what_is_wanted_in_any_world() {
    if let Ok(seed) = env::var("ZEN_WORLD_SEED") {
        World::new(seed.parse().expect("a seed is a number")).run();
        return;
    }
    let worlds = env::var("ZEN_WORLDS").map_or(WORLDS, |count| count.parse().expect("a count is a number"));
    let mut seen = BTreeMap::new();
    for seed in 0..worlds {
        for (what, count) in World::new(seed).run() {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    println!("{seen:#?}");
    // Worlds in which nothing happens prove nothing. Of each, so many in a hundred worlds.
    let expected = [
        ("healed", 80),
        ("closed", 30),
        ("logins", 150),
        ("logins refused", 8),
        ("logins ignored", 5),
        ("lost in the login", 15),
        ("refreshes failed", 5),
        ("restores", 60),
        ("live", 120),
        ("held until live", 30),
        ("replies", 600),
        ("late replies", 80),
        ("unknown replies", 15),
        ("timeouts, maybe sent", 70),
        ("timeouts, not sent", 20),
        ("lost, maybe sent", 20),
        ("lost, not sent", 10),
        ("duplicates", 10),
        ("too many calls", 40),
        ("calls dropped", 200),
        ("queued", 200),
        ("queue full", 100),
        ("throttled", 200),
        ("too heavy", 5),
        ("buffered", 25),
        ("kernel full", 30),
        ("stale", 30),
        ("unsent", 10),
        ("frames cut", 8),
        ("writes failed", 10),
        ("rejections", 400),
        ("split confirmations", 20),
        ("subscriptions unanswered", 50),
        ("channels ignored", 20),
        ("silent channels", 3),
        ("gaps", 60),
        ("silences", 3),
        ("losses", 40),
        ("closed by the venue", 8),
        ("replacements", 12),
        ("dials failed", 40),
        ("dials timed out", 10),
        ("blocked", 12),
        ("pongs", 400),
        ("probes answered", 400),
        ("answers dropped", 4),
        ("pings held", 10),
    ];
    for (what, percent) in expected {
        let (have, least) = (seen.get(what).copied().unwrap_or(0), percent * worlds / 100);
        assert!(have >= least, "{what}: {have}, at least {least} wanted; all: {seen:?}");
    }
}

struct World {
    seed: u64,
    rng: Rng,
    terms: Terms,
    start: Instant,
    now: Instant,
    faults: bool,
    agenda: BTreeMap<(Instant, u64), News>,
    scheduled: u64,
    // The connection, as `reactor/slot.rs` and `reactor/shared.rs` hold it. A call is told of its end by its number.
    dialect: Arc<Tongue>,
    session: Session<usize>,
    dialogue: Dialogue,
    out: Out<Socket>,
    governor: Option<Arc<Governor>>,
    link: Link,
    generation: Generation,
    dial: u64,
    orders: Vec<(u64, Order)>,
    posted: bool,
    pongs: Vec<Vec<u8>>,
    /// How many messages the inbox still takes.
    room: Option<usize>,
    /// When the driver looks at the slot: known to it since it last served the slot.
    filed: Option<Instant>,
    wakes: (u64, usize),
    // The model.
    limits: Vec<Limit>,
    wires: Vec<Wire>,
    sends: Vec<Message>,
    calls: Vec<Waiting>,
    pending: BTreeSet<usize>,
    /// Callers between the registration of a call and its sending.
    busy: [bool; CALLERS],
    number: u64,
    /// The subscriptions callers hold, and those the reactor has taken up.
    held: BTreeMap<u64, Vec<Arc<str>>>,
    subscribed: BTreeMap<u64, Vec<Arc<str>>>,
    /// Channels the venue refuses as long as there are faults.
    cursed: BTreeSet<String>,
    story: char,
    closing: Option<Instant>,
    wished: bool,
    log: VecDeque<String>,
    log_max: usize,
    seen: BTreeMap<&'static str, u64>,
}

/// The settings of a world.
#[derive(Clone, Debug)]
struct Terms {
    connect_timeout: Duration,
    base: Duration,
    max: Duration,
    stable_after: Duration,
    interval: Option<Duration>,
    patience: Duration,
    strict: bool,
    close_timeout: Duration,
    confirm_timeout: Duration,
    calls_max: usize,
    unsent_max: usize,
    restore: bool,
    hold: bool,
    resubscribe: bool,
    /// How many messages may wait for the rate limit; 0 refuses them.
    queue: usize,
    horizon: Duration,
    tick: Duration,
    /// How many of a hundred dials fail, and of wires come to grief.
    dial_luck: u64,
    wire_luck: u64,
}

/// What the shell has in hand.
#[derive(Debug)]
enum Link {
    Down,
    Dialing(u64),
    Open(Half),
}

/// The receiving half of a wire, as in `reactor/slot.rs`.
#[derive(Debug, Default)]
struct Half {
    is_open: bool,
    held_until: Option<Instant>,
    unsent: bool,
    blocked: bool,
    backlog: VecDeque<Item>,
}

enum Flow {
    More,
    Drained,
    Blocked,
    Paused,
    End(Error),
}

/// What callers want of the dialogue.
enum Order {
    Want { subscriber: u64, channels: Vec<Arc<str>>, silence: Option<Duration>, sequenced: bool },
    Unwant(u64),
}

/// What the venue sends.
#[derive(Clone, Debug)]
enum Item {
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close,
    /// Nothing follows.
    End(Error),
}

/// What happens; what concerns a dial or wire that is gone does not.
#[derive(Clone, Debug)]
enum News {
    // The reactor.
    Post,
    Readable(Generation),
    Dialled(u64, std::result::Result<(), Error>),
    // Venue and kernel.
    Arrive(Generation),
    Say(Generation, Item),
    Tick(Generation),
    Ask(Generation),
    Fault(Generation, Fault),
    // Callers.
    Act,
    Send(Box<Started>),
    GiveUp(usize),
    Close,
    Reconnect,
    /// The inbox takes so many more messages; `None`: any number.
    Room(Option<usize>),
}

#[derive(Clone, Debug)]
enum Fault {
    End(Error),
    Break,
    Deaf(bool),
    /// The kernel has room for so many bytes at most, or for so many more.
    Stall(usize),
    Ease(usize),
}

/// Calls that are registered and whose message is still to be sent.
#[derive(Clone, Debug)]
struct Started {
    caller: usize,
    lane: Lane,
    message: usize,
    text: String,
    generation: Generation,
    calls: Vec<usize>,
    is_urgent: bool,
    ticket: Arc<Ticket>,
}

/// A message of a caller's.
#[derive(Debug)]
struct Message {
    caller: usize,
    lane: Lane,
    /// The wire it was accepted for.
    accepted: Option<Generation>,
    /// Somebody was told that it was not sent.
    disclaimed: bool,
    /// It was taken back before its first byte was made.
    taken_back: bool,
    /// The kernel took it whole.
    whole: bool,
}

/// A call.
#[derive(Debug)]
struct Waiting {
    id: Id,
    message: usize,
    token: u64,
    deadline: Instant,
    /// Its message was accepted: from here on the reactor knows of it.
    started: bool,
    /// Starting it failed: the caller was told so, and nothing else.
    refused: bool,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Reply,
    Timeout { sent: bool },
    Lost { sent: bool },
    Dropped,
}

/// A wire, from the kernel to the venue.
struct Wire {
    generation: Generation,
    kernel: Rc<RefCell<Kernel>>,
    ended: bool,
    /// Nothing was wrong with it so far.
    healthy: bool,
    // What lies on it.
    parsed: usize,
    /// How many bytes had been made, and when.
    made: VecDeque<(usize, Instant)>,
    /// From which byte on messages of callers may lie on it.
    open_from: Option<usize>,
    close_seen: bool,
    /// The latest message of a caller in a lane.
    latest: BTreeMap<(usize, Lane), usize>,
    /// Accepted and not whole.
    awaited: BTreeSet<usize>,
    pinged: u64,
    ponged: u64,
    answered: BTreeSet<u64>,
    // The venue.
    uplink: VecDeque<(Instant, OpCode, Vec<u8>)>,
    arrival: Instant,
    downlink: VecDeque<(Instant, Item)>,
    departure: Instant,
    /// No answer about a login or a channel leaves before this.
    answers_from: Instant,
    logins: usize,
    is_in: bool,
    /// Nothing gets through to it or from it; what it says meanwhile.
    is_deaf: bool,
    detained: Vec<Item>,
    /// The channels it sends, each with the number of its latest message, and those that have fallen silent.
    channels: BTreeMap<String, u64>,
    mute: BTreeSet<String>,
    asked: u64,
    // What the connection has heard.
    logins_heard: usize,
    in_heard: bool,
    accepted_heard: BTreeSet<String>,
    refresh_refused: bool,
    refresh_late: bool,
    /// When the latest request for a refresh was taken by the kernel.
    refresh_asked: Option<Instant>,
}

#[derive(Debug, Default)]
struct Kernel {
    taken: Vec<u8>,
    room: usize,
    broken: bool,
    /// A write found no room; more of it is an edge.
    full: bool,
}

struct Socket(Rc<RefCell<Kernel>>);

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kernel = self.0.borrow_mut();
        if kernel.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(kernel.room);
        if count == 0 {
            kernel.full = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        kernel.room -= count;
        kernel.taken.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

thread_local! {
    static CLOCK: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn clock() -> Instant {
    CLOCK.get().expect("a world sets its time")
}

macro_rules! check {
    ($world:expr, $holds:expr, $($text:tt)+) => {
        if !$holds {
            $world.fail(format_args!($($text)+));
        }
    };
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x7e4e);
        let terms = Terms::draw(&mut rng);
        let dialect = Arc::new(Tongue::draw(&mut rng));
        let start = Instant::now();
        CLOCK.set(Some(start));
        let limits = Limit::draw(&mut rng, start);
        let settings: Vec<_> = limits.iter().map(|limit| limit.setting.clone()).collect();
        let governor = Governor::new(&settings, start).expect("a world keeps to the rules");
        let rules = Rules {
            confirm_timeout: terms.confirm_timeout,
            retry: terms.max,
            restore: terms.restore,
            resubscribe_on_gap: terms.resubscribe,
        };
        let cursed = NAMES.iter().filter(|_| rng.chance(12)).map(|name| (*name).into()).collect();
        Self {
            seed,
            session: Session::new(Arc::new(terms.config()), rng.next(), start),
            dialogue: Dialogue::new(dialect.clone(), rules, start),
            out: Out::new(terms.unsent_max, governor.clone(), clock),
            rng,
            start,
            now: start,
            faults: true,
            agenda: BTreeMap::new(),
            scheduled: 0,
            dialect,
            governor,
            link: Link::Down,
            generation: Generation::default(),
            dial: 0,
            orders: Vec::new(),
            posted: false,
            pongs: Vec::new(),
            room: None,
            filed: None,
            wakes: (0, 0),
            limits,
            wires: Vec::new(),
            sends: Vec::new(),
            calls: Vec::new(),
            pending: BTreeSet::new(),
            busy: [false; CALLERS],
            number: 0,
            held: BTreeMap::new(),
            subscribed: BTreeMap::new(),
            cursed,
            story: 'b',
            closing: None,
            wished: false,
            log: VecDeque::new(),
            log_max: env::var("ZEN_WORLD_LOG").map_or(LOG_MAX, |count| count.parse().expect("a count is a number")),
            seen: BTreeMap::new(),
            terms,
        }
    }

    fn run(mut self) -> BTreeMap<&'static str, u64> {
        self.plan();
        self.session.handle_begin(self.now);
        self.obey();
        self.file();
        let horizon = self.start + self.terms.horizon;
        while self.now < horizon && !self.is_over() {
            self.step(horizon);
        }
        if !self.is_over() {
            self.heal();
        }
        if !self.is_over() && self.rng.chance(50) {
            self.schedule(Duration::ZERO, News::Close);
            self.pass(self.terms.close_timeout + 2 * SEC);
            check!(self, self.is_over(), "not closed in time");
        }
        self.judge();
        self.seen
    }

    fn is_over(&self) -> bool {
        self.session.end().is_some()
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until && !self.is_over() {
            self.step(until);
        }
    }

    /// The faults stop: the venue must come to have what is wanted and nothing else, and calls their replies.
    fn heal(&mut self) {
        self.note(format_args!("the faults stop"));
        self.faults = false;
        self.agenda
            .retain(|_, news| !matches!(news, News::Fault(..) | News::Act | News::Close | News::Reconnect | News::Room(_)));
        let doomed: Vec<_> =
            self.held.iter().filter(|(_, names)| names.iter().any(|name| **name == *BAD)).map(|(s, _)| *s).collect();
        doomed.into_iter().for_each(|subscriber| self.unsubscribe(subscriber));
        self.subscribe(false);
        let generation = self.generation;
        self.schedule(Duration::ZERO, News::Room(None));
        if let Some(wire) = self.wire() {
            wire.mute.clear();
            let is_broken = wire.kernel.borrow().broken;
            self.schedule(Duration::ZERO, News::Fault(generation, Fault::Deaf(false)));
            self.schedule(Duration::ZERO, News::Fault(generation, Fault::Ease(usize::MAX / 2)));
            if is_broken {
                self.schedule(Duration::ZERO, News::Fault(generation, Fault::End(reset())));
            }
        }
        let deadline = self.now + HEAL;
        // What is under way arrives, and a wire that was ill is noticed.
        self.pass(self.terms.patience.max(4 * self.terms.confirm_timeout) + 50 * MILLI);
        while self.now < deadline && !self.is_over() && !(self.is_calm() && self.ills().is_none()) {
            self.step(deadline);
        }
        if self.is_over() {
            return;
        }
        let ills = self.ills();
        check!(self, ills.is_none(), "not healed: {}", ills.unwrap_or_default());
        self.count("healed");
        // It stays well, and what is asked is answered.
        let (healed, first) = (self.generation, self.calls.len());
        let (asked, pinged) = self.wires.last().map_or((0, 0), |wire| (wire.asked, wire.pinged));
        let proof = self.now + PROOF;
        while self.now < proof {
            let lane = Lane::Normal;
            self.call(CALLERS, lane, 1, 5 * SEC, false);
            self.send_message(CALLERS, lane, None, 10);
            self.pass(SEC);
        }
        self.pass(5 * SEC);
        check!(self, self.generation == healed, "a healthy wire was lost: {healed}, then {}", self.generation);
        let ills = self.ills();
        check!(self, ills.is_none(), "not well any more: {}", ills.unwrap_or_default());
        if let Some(wire) = self.wires.last().filter(|wire| wire.asked > asked + 1 && wire.pinged > pinged + 1) {
            let (asked, pinged) = (wire.asked.saturating_sub(1), wire.pinged.saturating_sub(1));
            let is_answered = wire.ponged >= pinged && wire.answered.last().copied().unwrap_or(0) >= asked;
            check!(self, is_answered, "pings {pinged} or probes {asked} were not answered");
        }
        for call in &self.calls[first..] {
            // The limit may let nothing pass in time.
            let is_held = self.governor.is_some() && call.end == Some(End::Timeout { sent: false });
            let is_well = call.refused || is_held || call.end == Some(End::Reply);
            check!(self, is_well, "no reply from a healthy venue: {call:?}");
        }
    }

    /// Nothing is on its way to the venue. Without ids, an answer to an earlier request may confirm what is still to be said.
    fn is_calm(&self) -> bool {
        !self.out.is_held() && self.wires.last().is_some_and(|wire| wire.uplink.is_empty())
    }

    /// Why all is not well.
    fn ills(&self) -> Option<String> {
        let wanted: BTreeSet<_> = self.wanted().into_iter().map(String::from).collect();
        let standing: BTreeSet<_> = self
            .session
            .standings()
            .iter()
            .filter(|(_, standing)| **standing == Standing::Confirmed)
            .map(|(name, _)| name.to_string())
            .collect();
        let has: BTreeSet<_> = self.wires.last().map(|wire| wire.channels.keys().cloned().collect()).unwrap_or_default();
        let state = self.session.state();
        if state == State::Live && has == wanted && standing == wanted && self.orders.is_empty() {
            return None;
        }
        Some(format!(
            "{state:?}, {} messages wait; wanted {wanted:?}, confirmed {standing:?}, at the venue {has:?}",
            self.out.waiting()
        ))
    }

    /// Whatever happened, everybody was told, once.
    fn judge(&mut self) {
        let left: Vec<_> = self.pending.iter().copied().collect();
        if self.is_over() {
            check!(self, left.is_empty(), "calls outlived their connection: {left:?}");
        } else if let Some(last) = left.iter().map(|call| self.calls[*call].deadline).max() {
            self.pass(last.saturating_duration_since(self.now) + SEC);
        }
        for call in &self.calls {
            check!(self, call.end.is_some() || call.refused, "a call without an end: {call:?}");
            let sent = matches!(call.end, Some(End::Reply | End::Timeout { sent: true } | End::Lost { sent: true }));
            check!(self, !(call.refused && sent), "refused, and sent: {call:?}");
        }
    }

    // Time.

    /// One turn of the reactor: what sockets and callers bring, then the deadlines.
    fn step(&mut self, limit: Instant) {
        let due = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let next = [self.filed, due].into_iter().flatten().min().unwrap_or(limit).min(limit);
        let late = if self.rng.chance(20) { self.rng.between(Duration::ZERO, LATE) } else { Duration::ZERO };
        self.now = self.now.max(next + late);
        CLOCK.set(Some(self.now));
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= self.now
        {
            let news = entry.remove();
            if !self.is_over() {
                self.feed(news);
            }
        }
        let mut wakes = 0;
        while !self.is_over() && self.filed.is_some_and(|at| at <= self.now) {
            self.handle_timeout();
            self.file();
            wakes += 1;
            check!(self, wakes < 50, "a hot loop: {}", self.deadlines());
        }
        let second = (self.now - self.start).as_secs();
        self.wakes = (second, if second == self.wakes.0 { self.wakes.1 + wakes } else { wakes });
        check!(self, self.wakes.1 < WAKES_MAX, "woken {} times within a second", self.wakes.1);
        self.check();
    }

    fn feed(&mut self, news: News) {
        if !matches!(news, News::Readable(_) | News::Tick(_) | News::Arrive(_) | News::Post) {
            self.note(format_args!("{news:?}"));
        }
        match news {
            News::Post => {
                if self.posted {
                    self.handle_post();
                    self.file();
                }
            }
            News::Readable(generation) => {
                if self.is_current(generation) {
                    self.handle_readable();
                    self.file();
                }
            }
            News::Dialled(dial, outcome) => {
                if matches!(self.link, Link::Dialing(current) if current == dial) {
                    match outcome {
                        Ok(()) => self.handle_opened(),
                        Err(cause) => {
                            self.link = Link::Down;
                            self.session.handle_dial_failed(self.now, cause);
                            self.obey();
                        }
                    }
                    self.file();
                }
            }
            News::Arrive(generation) => {
                if self.is_current(generation) {
                    self.arrive();
                }
            }
            News::Say(generation, item) => {
                if self.is_current(generation) {
                    self.say(item);
                }
            }
            News::Tick(generation) => {
                if self.is_current(generation) {
                    self.tick();
                }
            }
            News::Ask(generation) => {
                if self.is_current(generation) {
                    self.ask();
                }
            }
            News::Fault(generation, fault) => {
                if self.is_current(generation) {
                    self.suffer(fault);
                }
            }
            News::Act => self.act(),
            News::Send(started) => {
                self.busy[started.caller] = false;
                self.start_request(*started);
            }
            News::GiveUp(call) => self.give_up(call),
            News::Close => {
                self.session.wish_close(1000, "enough".into());
                self.wished = true;
                self.post();
            }
            News::Reconnect => {
                self.session.wish_reconnect();
                self.wished = true;
                self.count("reconnects");
                self.post();
            }
            News::Room(room) => {
                self.room = room;
                self.handle_room();
                self.file();
            }
        }
    }

    fn schedule(&mut self, after: Duration, news: News) {
        self.scheduled += 1;
        self.agenda.insert((self.now + after, self.scheduled), news);
    }

    fn is_current(&self, generation: Generation) -> bool {
        generation == self.generation && self.wires.last().is_some_and(|wire| !wire.ended)
    }

    fn wire(&mut self) -> Option<&mut Wire> {
        self.wires.last_mut().filter(|wire| !wire.ended)
    }

    // The driver and the slot.

    /// What the driver notes of a slot it has served.
    fn file(&mut self) {
        let held = match &self.link {
            Link::Open(half) => half.held_until,
            Link::Down | Link::Dialing(_) => None,
        };
        self.filed = [held, self.dialogue.next_deadline(), self.session.next_deadline()].into_iter().flatten().min();
    }

    /// What the driver might be woken for.
    fn deadlines(&self) -> String {
        let ahead = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(self.now));
        let held = if let Link::Open(half) = &self.link { half.held_until } else { None };
        let (dialogue, session) = (self.dialogue.next_deadline(), self.session.next_deadline());
        format!("held for {:?}, dialogue {:?}, session {:?}", ahead(held), ahead(dialogue), ahead(session))
    }

    fn post(&mut self) {
        if !mem::replace(&mut self.posted, true) {
            let after = self.rng.between(Duration::ZERO, Duration::from_micros(100));
            self.schedule(after, News::Post);
        }
    }

    fn handle_post(&mut self) {
        self.posted = false;
        if let Some(cause) = self.flush() {
            self.lose_after_reading(cause);
        }
        self.session.handle_wishes(self.now);
        self.obey();
        let orders = mem::take(&mut self.orders);
        let Some(last) = orders.last().map(|(number, _)| *number) else { return };
        for (_, order) in orders {
            match order {
                Order::Want { subscriber, channels, silence, sequenced } => {
                    self.dialogue.want(self.now, subscriber, &channels, silence, sequenced);
                    self.subscribed.insert(subscriber, channels);
                }
                Order::Unwant(subscriber) => {
                    self.dialogue.unwant(self.now, subscriber);
                    self.subscribed.remove(&subscriber);
                }
            }
        }
        self.converse();
        self.session.handle_orders(last);
    }

    fn handle_writable(&mut self) {
        if !matches!(&self.link, Link::Open(half) if half.unsent) {
            return;
        }
        let failure = self.flush();
        if failure.is_some() || matches!(&self.link, Link::Open(half) if half.held_until.is_some()) {
            self.post();
        }
    }

    fn handle_readable(&mut self) {
        while matches!(&self.link, Link::Open(half) if !half.blocked) {
            match self.receive(true) {
                Flow::More | Flow::Paused => {}
                Flow::Drained => return,
                flow => self.follow(flow),
            }
        }
    }

    fn handle_room(&mut self) {
        let Link::Open(half) = &mut self.link else { return };
        if !mem::replace(&mut half.blocked, false) {
            return;
        }
        match self.decode_backlog(true) {
            Flow::More => self.note_blocked(false),
            flow => self.follow(flow),
        }
        let generation = self.generation;
        self.schedule(Duration::ZERO, News::Readable(generation));
    }

    fn handle_timeout(&mut self) {
        let now = self.now;
        self.session.handle_timeout(now);
        for (_, call) in self.session.take_expired(now) {
            check!(self, self.calls[call.waiter].deadline <= now, "expired early: {:?}", self.calls[call.waiter]);
            self.expire(call);
        }
        self.obey();
        if self.dialogue.next_deadline().is_some_and(|deadline| deadline <= now) {
            let stamp = self.stamp();
            self.dialogue.handle_timeout(now, stamp);
            self.converse();
        }
        if matches!(&self.link, Link::Open(half) if half.held_until.is_some_and(|until| until <= now)) && self.flush().is_some() {
            self.post();
        }
    }

    fn handle_opened(&mut self) {
        let now = self.now;
        self.generation = self.generation.next();
        let generation = self.generation;
        self.link = Link::Open(Half::default());
        let kernel = Rc::new(RefCell::new(Kernel { room: usize::MAX / 2, ..Kernel::default() }));
        self.wires.push(Wire::new(generation, kernel.clone(), now));
        self.out.open(generation, Socket(kernel), None);
        let steps = self.dialect.steps;
        let wire = self.wires.last_mut().expect("just pushed");
        wire.is_in = steps == 0;
        if steps == 0 {
            wire.hear_in(0, self.terms.hold);
        }
        self.doom();
        self.session.handle_phase(now, Phase::Login);
        let stamp = self.stamp();
        self.dialogue.handle_upgraded(now, stamp);
        self.converse();
        if self.rng.chance(30) && self.is_current(generation) {
            // Bytes glued to the 101.
            self.session.handle_receive(now);
            let mut glued = VecDeque::from([Item::Text("n welcome".into())]);
            if self.rng.chance(30) {
                glued.push_back(self.next_ping());
            }
            let flow = self.decode(&mut glued, now, true);
            self.follow(flow);
        }
    }

    fn handle_logged_in(&mut self) {
        let now = self.now;
        let Link::Open(half) = &mut self.link else { return };
        half.is_open = true;
        if !self.terms.hold {
            self.out.ready();
        }
        let generation = self.generation;
        let is_in = self.wire().is_some_and(|wire| wire.in_heard);
        check!(self, is_in, "logged in before the venue said so");
        self.session.handle_opened(now, generation, None);
        self.session.handle_live(false);
        self.count("logins");
        if generation.number() > 1 && !self.subscribed.is_empty() {
            self.count("restores");
        }
        self.obey();
    }

    fn handle_live(&mut self, is_live: bool) {
        if !is_live {
            return self.session.handle_live(false);
        }
        let heard = self.wires.last().map(|wire| &wire.accepted_heard);
        let unheard = self.session.standings().keys().find(|name| !heard.is_some_and(|heard| heard.contains(&***name)));
        check!(self, unheard.is_none(), "live without {unheard:?}");
        let made = self.made();
        if let Some(wire) = self.wire() {
            wire.open_from.get_or_insert(made);
        }
        self.out.ready();
        self.session.handle_live(true);
        if self.dialogue.has_channels() {
            self.report(Event::Live);
        }
    }

    fn obey(&mut self) {
        loop {
            let actions = self.session.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.note(format_args!("  {action:?}"));
                match action {
                    Action::Dial { .. } => {
                        check!(self, matches!(self.link, Link::Down), "a dial besides {:?}", self.link);
                        self.dial += 1;
                        self.link = Link::Dialing(self.dial);
                        self.dial();
                    }
                    Action::Abandon => {
                        self.end_wire(&Error::Closed);
                        self.link = Link::Down;
                        self.converse();
                    }
                    Action::Ping(payload) => self.ping(payload),
                    Action::Close(code, reason) => {
                        self.closing = Some(self.now);
                        self.write(|out| out.close(Some(code), &reason));
                    }
                    Action::Hangup(cause) => {
                        self.check_hangup(&cause);
                        self.end(cause);
                    }
                    Action::Emit(event) => self.report(event),
                }
            }
        }
    }

    fn converse(&mut self) {
        loop {
            let deeds = self.dialogue.take_deeds();
            if deeds.is_empty() {
                return;
            }
            let (generation, had_wire) = (self.generation, matches!(self.link, Link::Open(_)));
            let mut burst = Vec::new();
            for deed in deeds {
                let is_stale = had_wire && (self.generation != generation || !matches!(self.link, Link::Open(_)));
                match deed {
                    Deed::Standing(channel, standing) if standing.is_none() || !is_stale => {
                        self.note(format_args!("  {channel}: {standing:?}"));
                        self.session.handle_standing(channel, standing);
                        continue;
                    }
                    Deed::Say { text, urgent: false, ticket } if !is_stale => {
                        self.note(format_args!("  says {text}"));
                        burst.push((text, ticket));
                        continue;
                    }
                    _ => {}
                }
                self.say_many(&mem::take(&mut burst));
                match deed {
                    _ if is_stale => self.count("stale deeds"),
                    Deed::Say { text, ticket, .. } => {
                        self.note(format_args!("  says {text}"));
                        self.say_own(&text, Lane::Control, ticket.as_ref());
                    }
                    Deed::Standing(..) => {}
                    Deed::LoggedIn => self.handle_logged_in(),
                    Deed::LoginFailed(cause) => {
                        self.count("logins refused");
                        self.lose(cause);
                    }
                    Deed::Hangup(cause) => {
                        self.note(format_args!("  hang up: {cause}"));
                        let (now, limit) = (self.now, self.terms.confirm_timeout);
                        let failed = self.wire().is_some_and(|wire| {
                            let is_late = wire.refresh_asked.is_some_and(|asked| asked + limit <= now);
                            wire.refresh_refused || (is_late && (wire.refresh_late || !wire.healthy))
                        });
                        check!(self, failed, "a refresh failed that did not: {cause}");
                        self.count("refreshes failed");
                        self.lose(cause);
                    }
                    Deed::Live(is_live) => self.handle_live(is_live),
                    Deed::Emit(event) => self.report(event),
                }
            }
            self.say_many(&burst);
            self.dialogue.handle_said();
        }
    }

    fn ping(&mut self, payload: [u8; 8]) {
        match self.dialect.ping(u64::from_be_bytes(payload)) {
            Some(text) => {
                if !self.say_own(&text, Lane::Control, None) {
                    self.session.handle_ping_held();
                }
            }
            None => {
                if self.write(|out| out.ping(&payload)).flatten() == Some(Sent::Queued) {
                    self.count("pings held");
                    self.session.handle_ping_held();
                }
            }
        }
    }

    fn receive(&mut self, bounded: bool) -> Flow {
        let Link::Open(half) = &self.link else { return Flow::Drained };
        if bounded && half.is_open && self.room == Some(0) {
            return Flow::Blocked;
        }
        let now = self.now;
        let Some(wire) = self.wire() else { return Flow::Drained };
        let mut received = VecDeque::new();
        while let Some((at, item)) = wire.downlink.front()
            && *at <= now
        {
            match item {
                Item::End(cause) if received.is_empty() => return Flow::End(cause.clone()),
                Item::End(_) => break,
                _ => received.extend(wire.downlink.pop_front().map(|(_, item)| item)),
            }
        }
        if received.is_empty() {
            return Flow::Drained;
        }
        self.session.handle_receive(now);
        self.decode(&mut received, now, bounded)
    }

    fn decode_backlog(&mut self, bounded: bool) -> Flow {
        let Link::Open(half) = &mut self.link else { return Flow::More };
        let mut backlog = mem::take(&mut half.backlog);
        self.decode(&mut backlog, self.now, bounded)
    }

    fn decode(&mut self, rest: &mut VecDeque<Item>, at: Instant, bounded: bool) -> Flow {
        loop {
            match self.decode_some(rest, at, bounded) {
                Flow::Paused => self.converse(),
                flow => return flow,
            }
        }
    }

    fn decode_some(&mut self, rest: &mut VecDeque<Item>, at: Instant, bounded: bool) -> Flow {
        let Link::Open(half) = &self.link else { return Flow::More };
        let bounded = bounded && half.is_open;
        let flow = loop {
            if bounded && self.room == Some(0) && !rest.is_empty() {
                if let Link::Open(half) = &mut self.link {
                    half.backlog.append(rest);
                }
                break Flow::Blocked;
            }
            match rest.pop_front() {
                Some(Item::Text(text)) => self.route(&text, at),
                Some(Item::Ping(payload)) => {
                    self.pongs.push(payload);
                    continue;
                }
                Some(Item::Pong(payload)) => {
                    self.session.handle_pong(at, &payload);
                    continue;
                }
                Some(Item::Close) => break Flow::End(Error::PeerClosed { code: Some(1001), reason: "".into() }),
                Some(Item::End(cause)) => break Flow::End(cause),
                None => break Flow::More,
            }
            if self.dialogue.has_deeds() {
                break Flow::Paused;
            }
        };
        self.answer_pings();
        flow
    }

    fn follow(&mut self, flow: Flow) {
        match flow {
            Flow::More | Flow::Paused | Flow::Drained => {}
            Flow::Blocked => {
                if let Link::Open(half) = &mut self.link
                    && !mem::replace(&mut half.blocked, true)
                {
                    self.count("blocked");
                    if let Some(wire) = self.wire() {
                        wire.healthy = false;
                    }
                    self.note_blocked(true);
                }
            }
            Flow::End(cause) => self.lose(cause),
        }
    }

    fn note_blocked(&mut self, blocked: bool) {
        self.session.handle_blocked(self.now, blocked);
        self.dialogue.handle_blocked(self.now, blocked);
    }

    fn route(&mut self, text: &str, at: Instant) {
        match self.dialect.clone().classify(text) {
            Inbound::Batch => self.dialect.clone().split(text).into_iter().for_each(|part| self.pass_on(part, at)),
            _ => self.pass_on(text, at),
        }
    }

    fn pass_on(&mut self, text: &str, at: Instant) {
        self.hear(text);
        match self.dialect.clone().classify(text) {
            Inbound::Data { channel } => {
                if self.dialogue.watches_data() {
                    let gap = self.dialogue.handle_data(at, &channel, text);
                    gap.into_iter().for_each(|gap| self.report(gap));
                }
                self.deliver();
            }
            Inbound::Reply { id } => {
                let stamp = self.stamp();
                if self.dialogue.awaits(&id) && self.dialogue.handle_reply(at, stamp, &id, text) {
                    return;
                }
                match self.session.handle_reply(at, &id) {
                    Some((call, _)) => self.answer(call, &id, text),
                    None => {
                        let is_known = self.calls.iter().any(|call| call.id == id);
                        self.count(if is_known { "late replies" } else { "unknown replies" });
                        self.deliver();
                    }
                }
            }
            Inbound::Confirmation => self.dialogue.handle_confirmation(at, text),
            Inbound::Probe { answer } => {
                let _ = self.say_own(&answer, Lane::Control, None);
                self.deliver();
            }
            Inbound::Pong => _ = self.session.handle_proof(at),
            _ => self.deliver(),
        }
    }

    /// The inbox takes a message. What it sent before, the peer sent first.
    fn deliver(&mut self) {
        self.room = self.room.map(|room| room.saturating_sub(1));
        self.answer_pings();
    }

    fn answer_pings(&mut self) {
        let pongs = mem::take(&mut self.pongs);
        if !pongs.is_empty() {
            self.write(|out| out.pong(pongs.iter().map(|payload| &payload[..])));
        }
    }

    fn lose_after_reading(&mut self, cause: Error) {
        self.count("writes failed");
        let mut flow = self.decode_backlog(false);
        for _ in 0..64 {
            match flow {
                Flow::More => {}
                Flow::End(end @ Error::PeerClosed { .. }) => return self.lose(end),
                Flow::Drained | Flow::Blocked | Flow::Paused | Flow::End(_) => break,
            }
            flow = self.receive(false);
        }
        self.lose(cause);
    }

    fn lose(&mut self, cause: Error) {
        self.end(cause);
        self.obey();
    }

    fn end(&mut self, mut cause: Error) {
        let had_wire = matches!(self.link, Link::Open(_));
        let rest = self.decode_backlog(false);
        if had_wire && !matches!(self.link, Link::Open(_)) {
            return self.count("ended within");
        }
        if let Flow::End(end @ Error::PeerClosed { .. }) = rest
            && matches!(cause, Error::Disconnected | Error::Io(_))
        {
            cause = end;
        }
        let ended = self.end_wire(&cause);
        if matches!(ended, Some((false, _))) {
            self.count("lost in the login");
        }
        match &ended {
            Some((false, _)) => self.session.handle_dial_failed(self.now, cause.clone()),
            _ => self.session.handle_lost(self.now, cause.clone()),
        }
        for call in self.session.take_calls().into_values() {
            let sent = call.ticket.is_sent();
            let message = self.calls[call.waiter].message;
            check!(self, sent == self.sends[message].whole, "lost, sent: {sent}: {:?}", self.sends[message]);
            self.settle(call.waiter, End::Lost { sent });
            if !sent {
                self.disclaim(message);
            }
            self.count(if sent { "lost, maybe sent" } else { "lost, not sent" });
        }
        if let Some((_, messages @ 1..)) = ended {
            self.report(Event::Unsent { messages, bytes: 1 });
        }
        self.converse();
    }

    fn end_wire(&mut self, cause: &Error) -> Option<(bool, usize)> {
        if !matches!(self.link, Link::Open(_)) {
            return None;
        }
        let Link::Open(half) = mem::replace(&mut self.link, Link::Down) else { return None };
        let farewell = match cause {
            Error::PeerClosed { code, .. } => Some(*code),
            Error::Replaced => Some(Some(1000)),
            _ => None,
        };
        if let Some(code) = farewell {
            let _ = self.out.close(code, "");
            self.observe();
        }
        let (remains, now) = (self.out.end(), self.now);
        let wire = self.wires.last_mut().expect("a half belongs to a wire");
        wire.ended = true;
        let (cut, awaited) = (wire.kernel.borrow().taken.len() > wire.parsed, mem::take(&mut wire.awaited));
        let (is_clean, begun) = (wire.close_seen, wire.begun(wire.parsed + 1).unwrap_or(now));
        let unsent = awaited.into_iter().filter(|message| !self.sends[*message].taken_back).count();
        check!(self, remains.messages == unsent, "{} messages are said not to have left, {unsent} have not", remains.messages);
        check!(self, !(cut && is_clean), "something follows a Close frame");
        if cut {
            self.count("frames cut");
            for limit in 0..self.limits.len() {
                let cost = self.limits[limit].least;
                self.charge(limit, begun, cost, true);
            }
        }
        if half.is_open && !self.terms.restore {
            let gone = mem::take(&mut self.subscribed);
            self.held.retain(|subscriber, _| !gone.contains_key(subscriber));
        }
        self.dialogue.handle_lost(now);
        Some((half.is_open, remains.messages))
    }

    fn flush(&mut self) -> Option<Error> {
        let flushed = self.out.flush();
        self.observe();
        let next = flushed.as_ref().map_or(None, |next| *next);
        let (failure, unsent) = (flushed.err().or_else(|| self.out.failure()), self.out.unsent() > 0);
        if let Link::Open(half) = &mut self.link {
            half.unsent = unsent;
            half.held_until = next;
        }
        failure
    }

    /// Returns whether it was sent at once.
    fn say_own(&mut self, text: &str, lane: Lane, ticket: Option<&Arc<Ticket>>) -> bool {
        let outgoing = Outgoing { lane, ticket, costs: self.costs(text), is_own: true, ..Outgoing::text(text) };
        let said = self.out.send(outgoing);
        let is_sent = matches!(said, Ok(Sent::Written | Sent::Buffered));
        self.heed(said);
        is_sent
    }

    fn say_many(&mut self, texts: &[(String, Option<Arc<Ticket>>)]) {
        let costs: Vec<_> = texts.iter().map(|(text, _)| self.costs(text)).collect();
        let outgoing = texts.iter().zip(costs).map(|((text, ticket), costs)| Outgoing {
            lane: Lane::Restore,
            ticket: ticket.as_ref(),
            costs,
            is_own: true,
            ..Outgoing::text(text)
        });
        let outgoing: Vec<_> = outgoing.collect();
        let mut rest = &outgoing[..];
        while !rest.is_empty() {
            let (count, said) = self.out.send_many(rest);
            rest = &rest[count + usize::from(said.is_err())..];
            self.heed(said);
        }
    }

    fn heed(&mut self, said: Result<Sent>) {
        self.observe();
        match said {
            Ok(Sent::Written) | Err(Error::NotConnected) => {}
            Ok(Sent::Buffered | Sent::Queued) | Err(Error::Io(_)) => self.post(),
            Err(Error::QueueFull { .. }) => self.count("answers dropped"),
            said => self.fail(format_args!("could not say something: {said:?}")),
        }
    }

    fn write<T>(&mut self, write: impl FnOnce(&mut Out<Socket>) -> Result<T>) -> Option<T> {
        let written = write(&mut self.out);
        self.observe();
        if written.is_err() || self.out.unsent() > 0 || self.out.is_held() {
            self.post();
        }
        written.ok()
    }

    fn costs(&self, text: &str) -> Costs {
        let governor = self.governor.as_ref();
        governor.map_or_else(Costs::default, |governor| governor.costs(text.as_bytes(), || self.dialect.cost(text)))
    }

    fn stamp(&mut self) -> Stamp {
        Stamp { unix: self.now - self.start, nonce: self.rng.next() }
    }

    /// An event as users get it.
    fn report(&mut self, event: Event) {
        if !matches!(event, Event::Dialing { .. } | Event::DialFailed { .. } | Event::Lost { .. }) {
            self.note(format_args!("  {event:?}"));
        }
        let (after, now) = match &event {
            Event::Dialing { .. } => ("bfl", 'd'),
            Event::DialFailed { .. } => ("d", 'f'),
            Event::Open => ("d", 'o'),
            Event::Lost { .. } => ("ou", 'l'),
            Event::Unsent { .. } => ("o", 'u'),
            Event::Closed { .. } => ("bdfolu", 'c'),
            _ => ("o", self.story),
        };
        check!(self, after.contains(self.story), "{event:?} after {:?}", self.story);
        self.story = now;
        match event {
            Event::Open if self.faults && self.rng.chance(40) => self.act(),
            Event::Live => {
                self.count("live");
                let standings = self.session.standings();
                let all = standings.values().all(|standing| *standing == Standing::Confirmed);
                check!(self, all, "live with {standings:?}");
            }
            Event::Lost { cause, .. } => self.count(match cause {
                Error::Silent { .. } => "silences",
                Error::Replaced => "replacements",
                Error::PeerClosed { .. } => "closed by the venue",
                _ => "losses",
            }),
            Event::Unsent { .. } => self.count("unsent"),
            Event::DialFailed { cause, .. } => self.count(match cause {
                Error::DialTimeout { phase: Phase::Login, .. } => "logins timed out",
                Error::DialTimeout { .. } => "dials timed out",
                _ => "dials failed",
            }),
            Event::Rejected { .. } => self.count("rejections"),
            Event::ChannelSilent { .. } => self.count("silent channels"),
            Event::Gap { .. } => self.count("gaps"),
            Event::Closed { cause } => {
                check!(self, cause.is_none() && self.wished, "closed for {cause:?}");
                self.count("closed");
            }
            _ => {}
        }
    }

    // What must hold.

    /// What must hold between any two steps.
    fn check(&self) {
        if self.is_over() {
            return check!(self, self.session.calls_pending() == 0, "calls wait after the end");
        }
        let wanted = self.wanted();
        let standings = self.session.standings();
        check!(self, standings.keys().map(|name| &**name).eq(wanted.iter().copied()), "{standings:?}, wanted {wanted:?}");
        let is_open = matches!(&self.link, Link::Open(half) if half.is_open);
        let confirmed = standings.values().all(|standing| *standing == Standing::Confirmed);
        if !is_open {
            let asked = standings.iter().find(|(_, standing)| **standing != Standing::Wanted);
            check!(self, asked.is_none(), "without a wire {asked:?}");
        }
        let state = self.session.state();
        if !self.wished || !is_open {
            let expected = match &self.link {
                Link::Open(half) if half.is_open && confirmed && self.orders.is_empty() => State::Live,
                Link::Open(half) if half.is_open => State::Open,
                Link::Open(_) | Link::Dialing(_) => State::Connecting,
                Link::Down => State::Waiting,
            };
            check!(self, self.wished || state == expected, "{state:?} instead of {expected:?}");
        }
        check!(self, self.session.calls_pending() == self.pending.len(), "{} calls wait", self.session.calls_pending());
        check!(self, self.pending.len() <= self.terms.calls_max, "{} calls wait", self.pending.len());
        let is_overdue = |call: &Waiting| call.started && call.deadline + LATE < self.now && !self.posted;
        let overdue = self.pending.iter().map(|call| &self.calls[*call]).find(|call| is_overdue(call));
        check!(self, overdue.is_none(), "{overdue:?} is overdue");
        // What is urgent finds as much room besides.
        check!(self, self.out.waiting() <= 2 * self.terms.queue, "{} messages wait", self.out.waiting());
        self.check_progress();
    }

    /// Nothing that waits is forgotten.
    fn check_progress(&self) {
        let Link::Open(half) = &self.link else { return };
        if self.posted {
            return;
        }
        check!(self, self.out.failure().is_none(), "a failure that nobody looks at");
        if self.out.unsent() > 0 {
            return check!(self, half.unsent, "unsent, and nobody waits for the edge");
        }
        if self.out.is_held() {
            let filed = half.held_until.is_some_and(|until| self.filed.is_some_and(|filed| filed <= until));
            let comes = self.filed.map(|filed| filed.saturating_duration_since(self.now));
            check!(self, filed, "the driver comes in {comes:?}; {}", self.deadlines());
        }
    }

    fn check_hangup(&self, cause: &Error) {
        let Some(wire) = self.wires.last().filter(|wire| !wire.ended) else { return };
        let may = match cause {
            Error::Silent { .. } => !wire.healthy,
            Error::Closed => self.closing.is_some_and(|since| self.now - since >= self.terms.close_timeout),
            Error::Replaced => self.wished,
            _ => false,
        };
        check!(self, may, "hung up without reason: {cause}");
    }

    fn wanted(&self) -> BTreeSet<&str> {
        self.subscribed.values().flatten().map(|name| &**name).collect()
    }

    /// How many bytes have been made for the wire.
    fn made(&self) -> usize {
        self.wires.last().map_or(0, |wire| wire.kernel.borrow().taken.len()) + self.out.unsent()
    }

    /// Looks at what the kernel took since the last look.
    fn observe(&mut self) {
        let (now, made) = (self.now, self.made());
        let Some(wire) = self.wire() else { return };
        if wire.made.back().is_none_or(|(most, _)| *most < made) {
            wire.made.push_back((made, now));
        }
        loop {
            let Some(wire) = self.wire() else { return };
            let Some((start, end, opcode, payload)) = wire.next_frame() else { return };
            let begun = wire.begun(end).unwrap_or(now);
            let (after_close, generation) = (wire.close_seen, wire.generation);
            self.note(format_args!("  on {generation}: {opcode} {}", payload[..payload.len().min(40)].escape_ascii()));
            check!(self, !after_close, "something follows a Close frame: {opcode}");
            let is_privileged = match str::from_utf8(&payload) {
                Ok(text) if opcode == Outgoing::TEXT => match message_of(text) {
                    Some(message) => self.sends[message].lane == Lane::Urgent,
                    None => !(text.starts_with("sub ") || text.starts_with("unsub ")),
                },
                // Of the pings only the session's are, but they look alike.
                _ => true,
            };
            for limit in 0..self.limits.len() {
                let cost = self.limits[limit].cost(opcode, &payload, &self.dialect);
                self.charge(limit, begun, cost, is_privileged);
            }
            match opcode {
                OpCode::Data(_) => self.observe_text(start, &payload),
                OpCode::Control(Control::Pong) => {
                    let number = u64::from_be_bytes(payload[..].try_into().expect("a venue's ping has a number"));
                    let Some(wire) = self.wire() else { return };
                    let is_next = wire.ponged < number && number <= wire.pinged;
                    wire.ponged = number;
                    check!(self, is_next, "pong {number} is to no ping of this wire, or late");
                    self.count("pongs");
                }
                OpCode::Control(_) => {}
            }
            let latency = self.rng.between(Duration::from_micros(50), 15 * MILLI);
            let Some(wire) = self.wire() else { return };
            wire.close_seen |= opcode == OpCode::Control(Control::Close);
            wire.arrival = wire.arrival.max(now + latency);
            let at = wire.arrival;
            wire.uplink.push_back((at, opcode, payload));
            self.schedule(at - now, News::Arrive(generation));
        }
    }

    fn observe_text(&mut self, start: usize, payload: &[u8]) {
        let text = str::from_utf8(payload).expect("all that is said is text");
        if text.starts_with("login ") && text.contains(" refresh ") {
            let now = self.now;
            if let Some(wire) = self.wire() {
                wire.refresh_asked = Some(now);
            }
        }
        let Some(message) = message_of(text) else { return };
        let Message { caller, lane, accepted, disclaimed, taken_back, whole } = self.sends[message];
        let generation = self.generation;
        let said = || format!("{} on {generation}: {:?}", &text[..text.len().min(40)], self.sends[message]);
        check!(self, !whole, "sent twice: {}", said());
        check!(self, !disclaimed && !taken_back, "said not to have been sent: {}", said());
        check!(self, accepted == Some(generation), "on another wire: {}", said());
        let wire = self.wires.last().expect("a frame lies on a wire");
        check!(self, wire.open_from.is_some_and(|from| from <= start), "too early on its wire: {}", said());
        let latest = wire.latest.get(&(caller, lane));
        check!(self, latest.is_none_or(|latest| *latest < message), "out of order: {}, after {latest:?}", said());
        self.sends[message].whole = true;
        if let Some(wire) = self.wire() {
            wire.latest.insert((caller, lane), message);
            wire.awaited.remove(&message);
        }
    }

    fn charge(&mut self, limit: usize, begun: Instant, cost: u32, is_privileged: bool) {
        let charged = self.limits[limit].charge(begun, self.now, cost, is_privileged);
        check!(self, charged.is_ok(), "{}", charged.unwrap_err());
    }

    // Callers, as in `reactor/shared.rs` and `reactor/calls.rs`.

    fn act(&mut self) {
        let caller = self.rng.below(CALLERS as u64) as usize;
        if self.busy[caller] {
            return;
        }
        let lane = if self.rng.chance(25) { Lane::Urgent } else { Lane::Normal };
        match self.rng.below(100) {
            0..30 => {
                let burst = if self.rng.chance(20) { 2 + self.rng.below(8) } else { 1 };
                for _ in 0..burst {
                    let size = if self.rng.chance(15) { self.rng.below(1500) } else { self.rng.below(20) };
                    let expected = self.rng.chance(20).then_some(self.generation);
                    self.send_message(caller, lane, expected, size as usize);
                }
            }
            30..32 => self.send_message(caller, lane, Some(Generation::default()), 3),
            32..34 => self.send_message(caller, lane, None, WHALE),
            34..62 => {
                let limit = self.rng.between(20 * MILLI, 2500 * MILLI);
                let (count, later) = (if self.rng.chance(20) { 3 } else { 1 }, self.rng.chance(25));
                self.call(caller, lane, count, limit, later);
            }
            62..70 => {
                // Of one that has ended, too.
                let started: Vec<_> = (0..self.calls.len()).rev().filter(|call| self.calls[*call].started).take(4).collect();
                if !started.is_empty() {
                    let one = self.rng.below(started.len() as u64) as usize;
                    self.drop_call(started[one]);
                }
            }
            70..82 => self.subscribe(true),
            82..94 => {
                let held: Vec<_> = self.held.keys().copied().collect();
                if !held.is_empty() {
                    let one = held[self.rng.below(held.len() as u64) as usize];
                    let channels = self.held[&one].clone();
                    self.unsubscribe(one);
                    if self.rng.chance(50) {
                        // Another mind, before or after the venue has heard of it.
                        self.want(channels);
                    }
                }
            }
            _ => {
                let payload = self.session.start_ping(self.now);
                let costs = self.governor.as_ref().map_or_else(Costs::default, |governor| governor.control());
                let opcode = OpCode::Control(Control::Ping);
                let outgoing = Outgoing { opcode, payload: &payload, lane, costs, ..Outgoing::text("") };
                let outgoing = Outgoing { queue_max: self.terms.queue, ..outgoing };
                let sent = self.out.send(outgoing);
                self.observe();
                self.follow_up(&sent);
            }
        }
    }

    fn send_message(&mut self, caller: usize, lane: Lane, expected: Option<Generation>, size: usize) {
        let message = self.sends.len();
        let text = format!("u{message} {caller} {:?} {}", lane, "x".repeat(size));
        self.sends.push(Message::new(caller, lane));
        let _ = self.try_send(message, &text, lane, expected, None);
    }

    fn try_send(
        &mut self,
        message: usize,
        text: &str,
        lane: Lane,
        expected: Option<Generation>,
        ticket: Option<&Arc<Ticket>>,
    ) -> Result<Sent> {
        let outgoing = Outgoing { lane, expected, ticket, queue_max: self.terms.queue, ..Outgoing::text(text) };
        let outgoing = Outgoing { costs: self.costs(text), ..outgoing };
        let (before, generation, state) = (self.out.unsent(), self.out.generation(), self.session.state());
        let sent = self.out.send(outgoing);
        self.note(format_args!("  u{message}, {} bytes, {lane:?}: {sent:?}", text.len()));
        if sent.is_ok() {
            self.sends[message].accepted = Some(generation);
            if let Some(wire) = self.wire() {
                wire.awaited.insert(message);
            }
        } else {
            self.disclaim(message);
        }
        self.observe();
        let Message { whole, taken_back, .. } = self.sends[message];
        let (unsent, waiting, is_stuck) = (self.out.unsent(), self.out.waiting(), self.out.failure().is_some());
        let longest = self.limits.iter().map(Limit::longest).max().unwrap_or_default() + Duration::from_micros(1);
        let is_true = match &sent {
            Ok(Sent::Written) => taken_back || (unsent == 0 && whole),
            Ok(Sent::Buffered) => unsent > 0 && !whole && (before == 0 || unsent <= self.terms.unsent_max),
            Ok(Sent::Queued) => {
                self.governor.is_some() && !whole && (usize::from(!taken_back)..=2 * self.terms.queue).contains(&waiting)
            }
            Err(Error::Throttled { wait }) => self.terms.queue == 0 && !wait.is_zero() && *wait <= longest,
            Err(Error::QueueFull { waiting: told }) => self.terms.queue > 0 && (self.terms.queue..=waiting).contains(told),
            Err(Error::Full { unsent: told }) => *told == before && before > 0 && unsent == before,
            Err(Error::Stale { current }) => *current == generation && expected.is_some_and(|expected| expected != generation),
            Err(Error::Config { .. }) => text.len() > WHALE && self.limits.iter().any(|limit| limit.weighs == Weighs::Length),
            Err(Error::Io(_)) => is_stuck,
            Err(Error::NotConnected) => unsent == before,
            _ => false,
        };
        check!(self, is_true, "{sent:?}, unsent {before}, then {unsent}, {waiting} wait, {:?}", self.sends[message]);
        match &sent {
            Ok(Sent::Queued) => self.count("queued"),
            Ok(Sent::Buffered) => self.count("buffered"),
            Err(Error::Throttled { .. }) => self.count("throttled"),
            Err(Error::QueueFull { .. }) => self.count("queue full"),
            Err(Error::Full { .. }) => self.count("kernel full"),
            Err(Error::Stale { .. }) => self.count("stale"),
            Err(Error::Config { .. }) => self.count("too heavy"),
            Err(Error::NotConnected) if state.is_open() => self.count("held until live"),
            Err(_) => {}
            Ok(_) => self.count("written"),
        }
        self.follow_up(&sent);
        sent
    }

    fn follow_up(&mut self, sent: &Result<Sent>) {
        if matches!(sent, Ok(Sent::Buffered | Sent::Queued) | Err(Error::Io(_))) {
            self.post();
        }
    }

    /// Somebody was told that a message was not sent.
    fn disclaim(&mut self, message: usize) {
        check!(self, !self.sends[message].whole, "not sent, it is said: u{message} {:?}", self.sends[message]);
        self.sends[message].disclaimed = true;
    }

    fn call(&mut self, caller: usize, lane: Lane, count: usize, limit: Duration, later: bool) {
        let message = self.sends.len();
        self.sends.push(Message::new(caller, lane));
        let ids: Vec<_> = (0..count).map(|_| self.next_id()).collect();
        let texts: Vec<_> = ids.iter().map(Id::to_string).collect();
        let size = if self.rng.chance(10) { self.rng.below(800) } else { 0 };
        let text = format!("call u{message} {} {}", texts.join(","), "x".repeat(size as usize));
        let (deadline, ticket) = (self.now + limit, Arc::<Ticket>::default());
        let mut started = Started {
            caller,
            lane,
            message,
            text,
            generation: self.generation,
            calls: Vec::new(),
            is_urgent: false,
            ticket: ticket.clone(),
        };
        for id in ids {
            let (call, state) = (self.calls.len(), self.session.state());
            let is_pending = self.pending.iter().any(|call| self.calls[*call].id == id);
            match self.session.register(self.now, id.clone(), deadline, call, ticket.clone()) {
                Ok((generation, Registered { token, is_urgent })) => {
                    check!(self, state.is_open() && !is_pending, "registered while {state:?}");
                    started.generation = generation;
                    started.is_urgent |= is_urgent;
                    started.calls.push(call);
                    self.calls.push(Waiting { id, message, token, deadline, started: false, refused: false, end: None });
                    self.pending.insert(call);
                }
                Err(error) => {
                    let is_true = match error {
                        Error::Duplicate(_) => is_pending,
                        Error::TooManyCalls { pending } => pending == self.terms.calls_max && pending == self.pending.len(),
                        Error::NotConnected | Error::Closed => !state.is_open(),
                        _ => false,
                    };
                    check!(self, is_true, "{error} while {state:?}, {} pending", self.pending.len());
                    self.count(match error {
                        Error::Duplicate(_) => "duplicates",
                        Error::TooManyCalls { .. } => "too many calls",
                        _ => "calls without a wire",
                    });
                    if started.is_urgent {
                        self.post();
                    }
                    return self.refuse(&started);
                }
            }
        }
        if later {
            self.busy[caller] = true;
            // At the latest its deadline ends the wait for the rate limit.
            let most = if self.rng.chance(20) { SEC } else { MILLI };
            let pause = self.rng.between(Duration::ZERO, most.min(limit));
            self.schedule(pause, News::Send(Box::new(started)));
        } else {
            self.start_request(started);
        }
    }

    fn start_request(&mut self, started: Started) {
        let Started { message, lane, generation, ticket, .. } = &started;
        let sent = self.try_send(*message, &started.text, *lane, Some(*generation), Some(ticket));
        if started.is_urgent {
            self.post();
        }
        if sent.is_err() {
            return self.refuse(&started);
        }
        for call in started.calls {
            self.calls[call].started = true;
            if self.rng.chance(30) {
                // This caller's own wait ends, a little early or late.
                let left = self.calls[call].deadline.saturating_duration_since(self.now);
                let wait = self.rng.between(left / 2, left);
                self.schedule(wait, News::GiveUp(call));
            }
        }
    }

    /// Starting calls has failed: nobody hears of them again.
    fn refuse(&mut self, started: &Started) {
        for call in &started.calls {
            self.calls[*call].refused = true;
            self.drop_call(*call);
        }
        self.disclaim(started.message);
    }

    /// A caller waits no longer for its reply.
    fn give_up(&mut self, call: usize) {
        let Waiting { id, token, .. } = &self.calls[call];
        if let Some(withdrawn) = self.session.withdraw(id, *token) {
            self.expire(withdrawn);
        }
    }

    fn drop_call(&mut self, call: usize) {
        let Waiting { id, token, .. } = &self.calls[call];
        if let Some(withdrawn) = self.session.withdraw(id, *token) {
            self.timed_out(call, &withdrawn.ticket);
            self.settle(call, End::Dropped);
            self.count("calls dropped");
        }
    }

    fn expire(&mut self, call: Call<usize>) {
        let sent = self.timed_out(call.waiter, &call.ticket);
        self.settle(call.waiter, End::Timeout { sent });
        self.count(if sent { "timeouts, maybe sent" } else { "timeouts, not sent" });
    }

    fn timed_out(&mut self, call: usize, ticket: &Ticket) -> bool {
        let message = self.calls[call].message;
        if ticket.withdraw() {
            self.sends[message].taken_back = true;
        }
        let sent = ticket.may_arrive();
        if !sent {
            self.disclaim(message);
        }
        sent
    }

    fn answer(&mut self, call: Call<usize>, id: &Id, text: &str) {
        let Waiting { id: own, message, .. } = &self.calls[call.waiter];
        let is_own = own == id && self.sends[*message].whole && text.ends_with(&format!(" u{message}"));
        check!(self, is_own, "{text} answers {:?}", self.calls[call.waiter]);
        self.settle(call.waiter, End::Reply);
        self.count("replies");
    }

    fn settle(&mut self, call: usize, end: End) {
        let earlier = self.calls[call].end.replace(end);
        check!(self, earlier.is_none(), "settled twice: {earlier:?}, then {:?}", self.calls[call]);
        self.pending.remove(&call);
    }

    fn next_id(&mut self) -> Id {
        if self.rng.chance(6)
            && let Some(call) = self.pending.iter().next()
        {
            return self.calls[*call].id.clone();
        }
        if self.rng.chance(25) {
            // An id serves again; if its message has left nobody could tell to which call a late reply belongs.
            let may_come = |id: &Id| self.calls.iter().any(|call| call.id == *id && !self.sends[call.message].disclaimed);
            let is_free = |call: &&Waiting| (call.end.is_some() || call.refused) && !may_come(&call.id);
            if let Some(call) = self.calls.iter().rev().take(20).find(is_free) {
                return call.id.clone();
            }
        }
        self.number += 1;
        let number = self.number as i64;
        if self.rng.chance(10) { Id::Text(format!("t{number}").into()) } else { Id::Number(number) }
    }

    fn subscribe(&mut self, any: bool) {
        if matches!(self.session.state(), State::Closing | State::Closed) {
            return;
        }
        let mut channels = BTreeSet::new();
        for _ in 0..=self.rng.below(6) {
            channels.insert(Arc::from(NAMES[self.rng.below(NAMES.len() as u64) as usize]));
        }
        if any && self.rng.chance(10) {
            channels.insert(Arc::from(BAD));
        }
        self.want(channels.into_iter().collect());
    }

    fn want(&mut self, channels: Vec<Arc<str>>) {
        let silence = self.rng.chance(25).then(|| self.rng.between(2 * SEC, 4 * SEC));
        let sequenced = self.rng.chance(30);
        self.number += 1;
        let subscriber = self.number;
        self.note(format_args!("  subscription {subscriber}: {channels:?}, silence {silence:?}, sequenced {sequenced}"));
        self.held.insert(subscriber, channels.clone());
        self.order(Order::Want { subscriber, channels, silence, sequenced });
        self.count("subscriptions");
    }

    fn unsubscribe(&mut self, subscriber: u64) {
        self.note(format_args!("  subscription {subscriber} dropped"));
        self.held.remove(&subscriber);
        self.order(Order::Unwant(subscriber));
    }

    fn order(&mut self, order: Order) {
        let number = self.session.wish_order();
        self.orders.push((number, order));
        self.post();
    }

    /// What callers will do.
    fn plan(&mut self) {
        let horizon = self.terms.horizon;
        for _ in 0..20 + self.rng.below(60) {
            let at = self.rng.between(Duration::ZERO, horizon);
            self.schedule(at, News::Act);
        }
        for _ in 0..1 + self.rng.below(3) {
            self.subscribe(true);
        }
        while self.rng.chance(30) {
            let at = self.rng.between(Duration::ZERO, horizon);
            self.schedule(at, News::Reconnect);
        }
        while self.rng.chance(20) {
            let (at, more) = (self.rng.between(Duration::ZERO, horizon), self.rng.below(5) as usize);
            let (first, second) = (self.rng.between(MILLI, 3 * SEC), self.rng.between(MILLI, SEC));
            self.schedule(at, News::Room(Some(more)));
            self.schedule(at + first, News::Room(Some(1)));
            self.schedule(at + first + second, News::Room(None));
        }
        if self.rng.chance(8) {
            let at = self.rng.between(Duration::ZERO, horizon);
            self.schedule(at, News::Close);
        }
    }

    // The venue, the kernel and the net.

    fn dial(&mut self) {
        let (dial, limit) = (self.dial, self.terms.connect_timeout);
        let pause = self.rng.between(MILLI, limit / 4);
        let outcome = if !self.faults || self.rng.chance(self.terms.dial_luck) {
            Ok(())
        } else if self.rng.chance(30) {
            return;
        } else {
            Err(Error::Connect { peer: "venue".into(), source: Arc::new(io::ErrorKind::ConnectionRefused.into()) })
        };
        self.schedule(pause, News::Dialled(dial, outcome));
    }

    /// What will happen to a new wire.
    fn doom(&mut self) {
        let (generation, tick) = (self.generation, self.terms.tick);
        let first = self.rng.between(MILLI, tick);
        self.schedule(first, News::Tick(generation));
        self.schedule(first / 2, News::Ask(generation));
        if !self.faults || self.rng.chance(self.terms.wire_luck) {
            return;
        }
        // Half of them early: in the login, during the restore.
        let most = if self.rng.chance(50) { SEC / 4 } else { 8 * SEC };
        for _ in 0..1 + self.rng.below(3) {
            let (at, pause) = (self.rng.between(Duration::ZERO, most), self.rng.between(MILLI, 2 * SEC));
            let room = self.rng.below(200) as usize;
            let mut plan = |after: Duration, fault| self.schedule(after, News::Fault(generation, fault));
            match room % 10 {
                0 => plan(at, Fault::End(Error::Disconnected)),
                1 => plan(at, Fault::End(reset())),
                2 => plan(at, Fault::End(Error::PeerClosed { code: Some(1001), reason: "".into() })),
                3 => {
                    plan(at, Fault::Break);
                    plan(at + pause, Fault::End(reset()));
                }
                4 => {
                    plan(at, Fault::Stall(room));
                    plan(at + pause, Fault::Break);
                    plan(at + pause + pause, Fault::End(reset()));
                }
                5 => plan(at, Fault::Deaf(true)),
                6 => {
                    plan(at, Fault::Deaf(true));
                    plan(at + pause, Fault::Deaf(false));
                }
                7 => {
                    plan(at, Fault::Stall(room));
                    plan(at + pause, Fault::End(Error::Disconnected));
                }
                _ => {
                    plan(at, Fault::Stall(room));
                    plan(at + pause / 3, Fault::Ease(7));
                    plan(at + pause / 2, Fault::Ease(60));
                    plan(at + pause, Fault::Ease(usize::MAX / 2));
                }
            }
        }
    }

    fn suffer(&mut self, fault: Fault) {
        let Some(wire) = self.wire() else { return };
        wire.healthy = false;
        match fault {
            Fault::End(Error::PeerClosed { .. }) => self.say(Item::Close),
            Fault::End(cause) => self.say(Item::End(cause)),
            Fault::Break => wire.kernel.borrow_mut().broken = true,
            Fault::Stall(room) => {
                let mut kernel = wire.kernel.borrow_mut();
                kernel.room = kernel.room.min(room);
            }
            Fault::Ease(room) => {
                let was_full = {
                    let mut kernel = wire.kernel.borrow_mut();
                    kernel.room = (kernel.room + room).min(usize::MAX / 2);
                    mem::replace(&mut kernel.full, false)
                };
                self.count("eased");
                if was_full {
                    self.handle_writable();
                }
            }
            Fault::Deaf(true) => wire.is_deaf = true,
            Fault::Deaf(false) => {
                wire.is_deaf = false;
                let detained = mem::take(&mut wire.detained);
                detained.into_iter().for_each(|item| self.say(item));
                self.arrive();
            }
        }
    }

    /// Something is sent to the connection; what is sent later arrives later.
    fn say(&mut self, item: Item) {
        let (now, latency) = (self.now, self.rng.between(Duration::from_micros(50), 15 * MILLI));
        let generation = self.generation;
        let Some(wire) = self.wire() else { return };
        if wire.is_deaf && !matches!(item, Item::End(_)) {
            // It arrives when the net is whole again, if ever.
            return wire.detained.push(item);
        }
        if matches!(wire.downlink.back(), Some((_, Item::End(_) | Item::Close))) && !matches!(item, Item::End(_)) {
            return;
        }
        wire.departure = wire.departure.max(now + latency);
        let at = wire.departure;
        wire.downlink.push_back((at, item));
        self.schedule(at - now, News::Readable(generation));
    }

    /// The venue reads what has come.
    fn arrive(&mut self) {
        loop {
            let now = self.now;
            let Some(wire) = self.wire() else { return };
            if wire.is_deaf || wire.uplink.front().is_none_or(|(at, ..)| *at > now) {
                return;
            }
            let Some((_, opcode, payload)) = wire.uplink.pop_front() else { return };
            match opcode {
                OpCode::Control(Control::Ping) => self.say(Item::Pong(payload)),
                OpCode::Control(Control::Close) => {
                    if !self.faults || self.rng.chance(70) {
                        self.say(Item::Close);
                    }
                }
                OpCode::Control(_) => {}
                OpCode::Data(_) => self.read(str::from_utf8(&payload).expect("all that is said is text")),
            }
        }
    }

    fn read(&mut self, text: &str) {
        let generation = self.generation;
        let words: Vec<&str> = text.split(' ').collect();
        let is_in = self.wire().is_some_and(|wire| wire.is_in);
        check!(self, is_in || matches!(words[0], "login" | "alive" | "hb"), "before the login: {text}");
        match words[0] {
            "login" => self.read_login(words[1], words[2] == "refresh"),
            "sub" => self.read_subscribe(words[1], words[2]),
            "unsub" => {
                let is_answered = self.dialect.ids && self.rng.chance(70);
                let Some(wire) = self.wire() else { return };
                for name in words[2].split(',') {
                    wire.channels.remove(name);
                }
                if is_answered {
                    self.say_in_order(MILLI, format!("r {}", words[1]));
                }
            }
            "call" => {
                for id in words[2].split(',') {
                    let reply = Item::Text(format!("r {id} done {}", words[1]));
                    let (quick, slow) = (self.rng.between(MILLI / 10, 30 * MILLI), self.rng.between(30 * MILLI, 3 * SEC));
                    match self.rng.below(20) {
                        _ if !self.faults => self.schedule(quick, News::Say(generation, reply)),
                        0 | 1 => self.count("calls ignored"),
                        2..6 => self.schedule(slow, News::Say(generation, reply)),
                        6 | 7 => {
                            self.schedule(quick, News::Say(generation, reply.clone()));
                            self.schedule(slow, News::Say(generation, reply));
                        }
                        8 => {
                            let unknown = (1 << 50) + self.rng.below(9);
                            self.say(Item::Text(format!("r {unknown} done nothing")));
                            self.schedule(quick, News::Say(generation, reply));
                        }
                        _ => self.schedule(quick, News::Say(generation, reply)),
                    }
                }
            }
            "alive" => {
                let number = words[1].parse().expect("an answer has a number");
                let Some(wire) = self.wire() else { return };
                let is_new = number <= wire.asked && wire.answered.insert(number);
                check!(self, is_new, "answered a second time, or nothing: {text}");
                self.count("probes answered");
            }
            "hb" => self.say(Item::Text("pong".into())),
            _ => {}
        }
    }

    fn read_login(&mut self, number: &str, is_refresh: bool) {
        let (now, steps, confirm_timeout) = (self.now, self.dialect.steps, self.terms.confirm_timeout);
        let (refuses, ignores) = (self.faults && self.rng.chance(7), self.faults && self.rng.chance(4));
        let Some(wire) = self.wire() else { return };
        if is_refresh {
            // Its answer may come too late after others.
            wire.refresh_refused |= refuses;
            wire.refresh_late |= ignores || wire.answers_from > now + confirm_timeout / 2;
        } else {
            wire.logins += 1;
            wire.is_in |= wire.logins == steps && !refuses && !ignores;
        }
        if ignores {
            return self.count("logins ignored");
        }
        let verdict = if refuses { "no" } else { "ok" };
        let kind = if is_refresh { "refresh" } else { "step" };
        self.say_in_order(
            MILLI,
            if self.dialect.ids { format!("r {number} {verdict} {kind}") } else { format!("l {verdict} {kind}") },
        );
    }

    fn read_subscribe(&mut self, number: &str, names: &str) {
        let (ids, faults) = (self.dialect.ids, self.faults);
        let mut parts = Vec::new();
        for name in names.split(',') {
            let is_cursed = faults && self.cursed.contains(name);
            // Without ids an answer could belong to any request, so such a venue must be of one mind about a channel.
            if is_cursed || (faults && ids && self.rng.chance(8)) {
                parts.push(format!("-{name}:no"));
            } else if faults && ids && self.rng.chance(8) {
                self.count("channels ignored");
            } else {
                let Some(wire) = self.wire() else { return };
                wire.channels.entry(name.into()).or_insert(0);
                wire.mute.remove(name);
                parts.push(format!("+{name}"));
            }
        }
        if parts.is_empty() || (faults && self.rng.chance(8)) {
            return self.count("subscriptions unanswered");
        }
        let late = if faults && self.rng.chance(15) { 3 * self.terms.confirm_timeout } else { 30 * MILLI };
        let split = if faults && self.rng.chance(20) { self.rng.below(parts.len() as u64) as usize } else { 0 };
        let rest = parts.split_off(split);
        if !parts.is_empty() {
            self.count("split confirmations");
        }
        for parts in [parts, rest] {
            if !parts.is_empty() {
                let text = if ids { format!("r {number} {}", parts.join(" ")) } else { format!("c {}", parts.join(" ")) };
                let delay = self.rng.between(MILLI, late);
                if ids && faults && self.rng.chance(5) {
                    let generation = self.generation;
                    self.schedule(delay * 2, News::Say(generation, Item::Text(text.clone())));
                }
                self.say_in_order(delay, text);
            }
        }
    }

    /// Says something after what was promised before.
    fn say_in_order(&mut self, delay: Duration, text: String) {
        let (now, generation) = (self.now, self.generation);
        let text = if self.rng.chance(5) { format!("b\nn first\n{text}\nn last") } else { text };
        let Some(wire) = self.wire() else { return };
        wire.answers_from = wire.answers_from.max(now + delay);
        let at = wire.answers_from;
        self.schedule(at - now, News::Say(generation, Item::Text(text)));
    }

    /// Data of channels.
    fn tick(&mut self) {
        let (generation, pause) = (self.generation, self.rng.between(self.terms.tick / 2, self.terms.tick));
        self.schedule(pause, News::Tick(generation));
        let (faults, skip) = (self.faults, self.faults && self.rng.chance(8));
        let (mutes, stray) = (self.faults && self.rng.chance(4), self.rng.chance(15));
        let stray = stray.then(|| NAMES[self.rng.below(NAMES.len() as u64) as usize]);
        let Some(wire) = self.wire() else { return };
        if !wire.is_in {
            return;
        }
        if mutes {
            wire.mute.extend(wire.channels.keys().next().cloned());
        }
        let mut ticks = Vec::new();
        for (name, number) in wire.channels.iter_mut().filter(|(name, _)| !wire.mute.contains(*name)) {
            *number += if skip { 3 } else { 1 };
            ticks.push(format!("t {name} {number}"));
        }
        // A channel that nobody asked for, or not any more; or an old message.
        if let Some(name) = stray.filter(|name| faults || !wire.channels.contains_key(*name)) {
            ticks.push(format!("t {name} 0"));
        }
        if self.rng.chance(10) {
            ticks = vec![format!("b\n{}", ticks.join("\n"))];
        }
        for tick in ticks {
            self.say(Item::Text(tick));
        }
    }

    /// Pings and probes of the venue's.
    fn ask(&mut self) {
        let (generation, most) = (self.generation, if self.faults { SEC } else { 6 * SEC });
        let pause = self.rng.between(most / 2, most);
        self.schedule(pause, News::Ask(generation));
        let burst = if self.faults && self.rng.chance(10) { 1 + self.rng.below(20) } else { 1 };
        let pings = self.rng.chance(50);
        for _ in 0..burst {
            if pings {
                let ping = self.next_ping();
                self.say(ping);
            } else if let Some(wire) = self.wire() {
                wire.asked += 1;
                let text = format!("probe {}", wire.asked);
                self.say(Item::Text(text));
            }
        }
    }

    fn next_ping(&mut self) -> Item {
        let Some(wire) = self.wire() else { return Item::Text("n late".into()) };
        wire.pinged += 1;
        Item::Ping(wire.pinged.to_be_bytes().into())
    }

    /// The connection hears a text: what the venue has told it by now.
    fn hear(&mut self, text: &str) {
        let words: Vec<&str> = text.split(' ').collect();
        let (hold, made, steps) = (self.terms.hold, self.made(), self.dialect.steps);
        let Some(wire) = self.wire() else { return };
        if matches!(words[0], "r" | "c") {
            wire.accepted_heard.extend(words.iter().filter_map(|word| word.strip_prefix('+')).map(String::from));
        }
        let is_ok = matches!(words[..], ["l", "ok", "step"] | ["r", _, "ok", "step"]);
        // The last step is the one that lets in.
        if is_ok && !wire.in_heard {
            wire.logins_heard += 1;
            if wire.logins_heard == steps {
                wire.hear_in(made, hold);
            }
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn note(&mut self, text: fmt::Arguments<'_>) {
        if self.log.len() == self.log_max {
            self.log.pop_front();
        }
        self.log.push_back(format!("{:>12.3?} {text}", self.now - self.start));
    }

    fn fail(&self, text: fmt::Arguments<'_>) -> ! {
        let log: Vec<_> = self.log.iter().map(String::as_str).collect();
        let (seed, at) = (self.seed, self.now - self.start);
        let limits: Vec<_> = self.limits.iter().map(|limit| &limit.setting).collect();
        let terms = format!("{:?} {:?} {limits:?}", self.terms, self.dialect);
        panic!("{terms}\n{}\nworld {seed} at {at:?}: {text}\nZEN_WORLD_SEED={seed} runs it again", log.join("\n"));
    }
}

impl Wire {
    fn new(generation: Generation, kernel: Rc<RefCell<Kernel>>, now: Instant) -> Self {
        Self {
            generation,
            kernel,
            ended: false,
            healthy: true,
            parsed: 0,
            made: VecDeque::new(),
            open_from: None,
            close_seen: false,
            latest: BTreeMap::new(),
            awaited: BTreeSet::new(),
            pinged: 0,
            ponged: 0,
            answered: BTreeSet::new(),
            uplink: VecDeque::new(),
            arrival: now,
            downlink: VecDeque::new(),
            departure: now,
            answers_from: now,
            logins: 0,
            is_in: false,
            is_deaf: false,
            detained: Vec::new(),
            channels: BTreeMap::new(),
            mute: BTreeSet::new(),
            asked: 0,
            logins_heard: 0,
            in_heard: false,
            accepted_heard: BTreeSet::new(),
            refresh_refused: false,
            refresh_late: false,
            refresh_asked: None,
        }
    }

    /// The venue has told the connection that it is in.
    fn hear_in(&mut self, made: usize, hold: bool) {
        self.in_heard = true;
        if !hold {
            self.open_from = Some(made);
        }
    }

    /// When the byte before this offset was made; later offsets only may be asked for from here on.
    fn begun(&mut self, end: usize) -> Option<Instant> {
        while self.made.front().is_some_and(|(most, _)| *most < end) {
            self.made.pop_front();
        }
        self.made.front().map(|(_, at)| *at)
    }

    /// The next frame that the kernel took whole, with its place.
    fn next_frame(&mut self) -> Option<(usize, usize, OpCode, Vec<u8>)> {
        let kernel = self.kernel.borrow();
        let bytes = &kernel.taken[self.parsed..];
        let mut cursor = Cursor::new(bytes);
        let (header, length) = FrameHeader::parse(&mut cursor).expect("a header of RFC 6455")?;
        let (from, length) = (cursor.position() as usize, length as usize);
        let key = header.mask.expect("a client masks");
        assert!(header.is_final && !(header.rsv1 || header.rsv2 || header.rsv3), "{header:?}");
        let masked = bytes.get(from..from + length)?;
        let payload = masked.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        let start = self.parsed;
        self.parsed += from + length;
        Some((start, self.parsed, header.opcode, payload))
    }
}

impl Message {
    fn new(caller: usize, lane: Lane) -> Self {
        Self { caller, lane, accepted: None, disclaimed: false, taken_back: false, whole: false }
    }
}

/// Which message of a caller's a text is.
fn message_of(text: &str) -> Option<usize> {
    let text = text.strip_prefix("call ").unwrap_or(text);
    text.strip_prefix('u')?.split(' ').next()?.parse().ok()
}

impl Terms {
    fn draw(rng: &mut Rng) -> Self {
        let base = rng.between(20 * MILLI, 200 * MILLI);
        let patience = rng.between(SEC / 2, 2 * SEC);
        Self {
            connect_timeout: rng.between(SEC / 2, 2 * SEC),
            base,
            max: base + rng.between(Duration::ZERO, SEC),
            stable_after: rng.between(SEC, 5 * SEC),
            interval: rng.chance(90).then(|| rng.between(SEC, 4 * SEC)),
            patience,
            strict: rng.chance(40),
            close_timeout: rng.between(SEC / 5, SEC),
            confirm_timeout: rng.between(300 * MILLI, 1500 * MILLI),
            calls_max: [2, 5, 100][rng.below(3) as usize],
            unsent_max: [0, 300, 3000, 64 << 10][rng.below(4) as usize],
            restore: rng.chance(90),
            hold: rng.chance(25),
            resubscribe: rng.chance(50),
            queue: if rng.chance(40) { 0 } else { 1 + rng.below(8) as usize },
            horizon: rng.between(3 * SEC, 12 * SEC),
            tick: rng.between(SEC / 4, SEC),
            dial_luck: [50, 80, 100][rng.below(3) as usize],
            wire_luck: [5, 20, 50][rng.below(3) as usize],
        }
    }

    fn config(&self) -> Config {
        let config = Config::new("ws://venue")
            .connect_timeout(self.connect_timeout)
            .connect_attempts(u32::MAX)
            .redial_attempts(u32::MAX)
            .base_delay(self.base)
            .max_backoff(self.max)
            .stable_after(self.stable_after)
            .heartbeat_interval(self.interval)
            .patience(self.patience)
            .strict(self.strict)
            .close_timeout(self.close_timeout)
            .calls_max(self.calls_max);
        config.validate().expect("a world keeps to the rules");
        config
    }
}

/// A rate limit, and what the venue counts.
struct Limit {
    setting: RateLimit,
    weighs: Weighs,
    control_cost: u32,
    /// What a frame costs at least.
    least: u32,
    reserved: u32,
    capacity: u32,
    account: Account,
}

enum Account {
    /// What was charged within the span.
    Window {
        span: Duration,
        charged: VecDeque<(Instant, u32)>,
    },
    Bucket {
        refill: u32,
        interval: Duration,
        tokens: u32,
        refilled: Instant,
    },
}

/// How a limit weighs messages.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weighs {
    /// As the dialect says.
    Dialect,
    Alike,
    /// By length; a whale costs more than there is.
    Length,
    /// Subscriptions are free.
    Requests,
}

impl Limit {
    fn draw(rng: &mut Rng, now: Instant) -> Vec<Self> {
        (0..[0, 1, 1, 2][rng.below(4) as usize]).map(|_| Self::one(rng, now)).collect()
    }

    fn one(rng: &mut Rng, now: Instant) -> Self {
        let capacity = 5 + rng.below(10) as u32;
        let (setting, account) = if rng.chance(60) {
            let window = rng.between(SEC / 5, 1500 * MILLI);
            let setting = RateLimit::window(capacity, window);
            let (setting, margin) = if rng.chance(50) {
                (setting.margin(Duration::ZERO), Duration::ZERO)
            } else {
                (setting, (window / 10).min(100 * MILLI))
            };
            (setting, Account::Window { span: window + margin, charged: VecDeque::new() })
        } else {
            let (refill, interval) = (1 + rng.below(4) as u32, rng.between(SEC / 10, SEC / 3));
            let setting = RateLimit::bucket(capacity, refill, interval);
            (setting, Account::Bucket { refill, interval, tokens: capacity, refilled: now })
        };
        let weighs = [Weighs::Dialect, Weighs::Alike, Weighs::Length, Weighs::Requests][rng.below(4) as usize];
        let (control_cost, reserved) = (rng.below(2) as u32, rng.below(2) as u32);
        let setting = setting.control_cost(control_cost).reserved(reserved);
        let setting = match weighs {
            Weighs::Dialect => setting,
            _ => setting.cost(move |payload| weigh(weighs, payload)),
        };
        let least = if weighs == Weighs::Requests { 0 } else { control_cost };
        Self { setting, weighs, control_cost, least, reserved, capacity, account }
    }

    fn cost(&self, opcode: OpCode, payload: &[u8], dialect: &Tongue) -> u32 {
        match (opcode, self.weighs) {
            (OpCode::Control(_), _) => self.control_cost,
            (OpCode::Data(_), Weighs::Dialect) => dialect.cost(str::from_utf8(payload).expect("all that is said is text")),
            (OpCode::Data(_), weighs) => weigh(weighs, payload),
        }
    }

    /// Charges a frame that was begun at one time and left at another. What is reserved is for the privileged.
    fn charge(&mut self, begun: Instant, left: Instant, cost: u32, is_privileged: bool) -> std::result::Result<(), String> {
        let (capacity, reserved) = (self.capacity, if is_privileged || cost == 0 { 0 } else { self.reserved });
        match &mut self.account {
            Account::Window { span, charged } => {
                charged.push_back((left, cost));
                while charged.front().is_some_and(|(at, _)| *at + *span <= left) {
                    charged.pop_front();
                }
                let sum: u32 = charged.iter().map(|(_, cost)| cost).sum();
                let most = capacity - reserved;
                if sum > most { Err(format!("{sum} of {most} within {span:?}")) } else { Ok(()) }
            }
            Account::Bucket { refill, interval, tokens, refilled } => {
                while *refilled + *interval <= begun {
                    *refilled += *interval;
                    *tokens = (*tokens + *refill).min(capacity);
                }
                if *tokens < cost + reserved {
                    return Err(format!("{cost} of {tokens} tokens, {reserved} of them reserved"));
                }
                *tokens -= cost;
                Ok(())
            }
        }
    }

    /// The longest that anything must wait if nothing else is sent.
    fn longest(&self) -> Duration {
        match &self.account {
            Account::Window { span, .. } => *span,
            Account::Bucket { refill, interval, .. } => *interval * self.capacity.div_ceil(*refill),
        }
    }
}

fn weigh(weighs: Weighs, payload: &[u8]) -> u32 {
    match weighs {
        Weighs::Dialect => unreachable!("the dialect weighs"),
        Weighs::Alike => 1,
        Weighs::Length if payload.len() > WHALE => 1000,
        Weighs::Length => 1 + u32::from(payload.len() > 500),
        Weighs::Requests => u32::from(!payload.starts_with(b"sub ")),
    }
}

/// The venue's language: words, and lines in a batch.
#[derive(Clone, Debug)]
struct Tongue {
    /// Answers about logins and channels carry the numbers of their requests.
    ids: bool,
    /// The steps of a login.
    steps: usize,
    refresh: Option<Duration>,
    /// How many channels a request names.
    take: usize,
    /// Heartbeats are texts.
    heartbeat: bool,
    /// Calls and subscriptions weigh more.
    weighs: bool,
}

impl Tongue {
    fn draw(rng: &mut Rng) -> Self {
        Self {
            ids: rng.chance(65),
            steps: rng.below(3) as usize,
            refresh: rng.chance(40).then(|| rng.between(SEC, 6 * SEC)),
            take: 1 + rng.below(4) as usize,
            heartbeat: rng.chance(30),
            weighs: rng.chance(50),
        }
    }

    fn channels(&self, verb: &str, number: u64, channels: &[&str]) -> Result<Subscribe> {
        let some = &channels[..channels.len().min(self.take)];
        if some.contains(&BAD) {
            return self.notification("", None).map(|_| unreachable!("this venue has none"));
        }
        let text = format!("{verb} {number} {}", some.join(","));
        Ok(Subscribe { text, id: self.ids.then_some(Id::Number(number as i64)), channels: some.len() })
    }
}

impl Dialect for Tongue {
    fn name(&self) -> &str {
        "tongue"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        if text.starts_with(
            "b
",
        ) {
            return Inbound::Batch;
        }
        let mut words = text.split(' ');
        match (words.next(), words.next()) {
            (Some("t"), Some(channel)) => Inbound::Data { channel: channel.into() },
            (Some("r"), Some(id)) => {
                Inbound::Reply { id: id.parse().map_or_else(|_| Id::Text(id.trim_matches('"').into()), Id::Number) }
            }
            (Some("l"), _) => Inbound::Reply { id: "login".into() },
            (Some("c"), _) => Inbound::Confirmation,
            (Some("probe"), Some(number)) => Inbound::Probe { answer: format!("alive {number}") },
            (Some("pong"), _) => Inbound::Pong,
            _ => Inbound::Message,
        }
    }

    fn split<'a>(&self, text: &'a str) -> Vec<&'a str> {
        text.lines().skip(1).collect()
    }

    fn login(&self, step: &LoginStep<'_>) -> Login {
        if step.reply.is_some_and(|reply| reply.contains("no ")) {
            return Login::Refused { reason: "no".into(), fatal: false };
        }
        let (steps, kind) = if step.token.is_some() { (1, "refresh") } else { (self.steps, "step") };
        if step.step == steps {
            return Login::Done { refresh_after: self.refresh, token: Some(Secret::new("token")) };
        }
        let id = if self.ids { Id::Number(step.number as i64) } else { "login".into() };
        Login::Send(Request { text: format!("login {} {kind} {}", step.number, step.nonce), id })
    }

    fn subscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        self.channels("sub", number, channels)
    }

    fn unsubscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        self.channels("unsub", number, channels)
    }

    fn confirm(&self, reply: &str, _: &[&str]) -> Confirmation {
        let mut confirmation = Confirmation::default();
        for word in reply.split(' ') {
            if let Some(name) = word.strip_prefix('+') {
                confirmation.accepted.push(name.into());
            } else if let Some((name, reason)) = word.strip_prefix('-').and_then(|word| word.split_once(':')) {
                confirmation.rejected.push((name.into(), reason.into()));
            }
        }
        confirmation
    }

    fn sequence(&self, _: &str, text: &str) -> Option<Sequence> {
        let last: u64 = text.rsplit(' ').next()?.parse().ok()?;
        Some(Sequence { follows: last.checked_sub(1), last })
    }

    fn ping(&self, number: u64) -> Option<String> {
        self.heartbeat.then(|| format!("hb {number}"))
    }

    fn cost(&self, text: &str) -> u32 {
        if self.weighs && (text.starts_with("call ") || text.starts_with("sub ")) { 2 } else { 1 }
    }
}

/// The channels, and one that the dialect refuses.
const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
const BAD: &str = "bad";

/// What is longer than this is too heavy for limits that weigh by length.
const WHALE: usize = 4000;

const SEC: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// xorshift64*, so that a seed means the same world on every machine.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = most.saturating_sub(least).as_nanos() as u64;
        least + Duration::from_nanos(self.below(span + 1))
    }
}

fn reset() -> Error {
    Error::Io(Arc::new(io::ErrorKind::ConnectionReset.into()))
}
