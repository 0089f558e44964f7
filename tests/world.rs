//! Seeded worlds: one session against a faulty peer, a user and a reactor that is at times late, in virtual time.
//!
//! After every step the world compares the session with a model of its contract. In the end the faults stop, and the session must heal.
//! A failure names its seed; `ZEN_WORLD_SEED=n cargo test --test world` runs that world alone, `ZEN_WORLDS=n` more of them.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zen_websocket::internals::{Action, Session};
use zen_websocket::{Config, Error, Event, Generation, Phase, Refusal, State};

const WORLDS: u64 = 1000;

/// How late the reactor may look, and how far its clock may step back.
const LATE: Duration = Duration::from_millis(3);
const EPSILON: Duration = Duration::from_millis(10);

/// More than any session needs, the config included, however it is treated.
const DEBUG_SIZE_MAX: usize = 12 << 10;

#[test]
fn sessions_keep_their_contract_in_any_world_and_heal_when_its_faults_stop() {
    if let Ok(seed) = env::var("ZEN_WORLD_SEED") {
        World::new(seed.parse().expect("a seed is a number")).run();
        return;
    }
    let worlds = env::var("ZEN_WORLDS").map_or(WORLDS, |count| count.parse().expect("a count is a number"));
    let mut seen = Seen::default();
    for seed in 0..worlds {
        seen.add(&World::new(seed).run());
    }
    // Worlds in which nothing happens prove nothing.
    let expected = [
        ("healed", seen.healed, worlds / 2),
        ("opened", seen.opened, 4 * worlds),
        ("failed dials", seen.failed, 5 * worlds),
        ("silences", seen.silent, worlds / 2),
        ("data silences", seen.data_silent, worlds / 10),
        ("replacements", seen.replaced, worlds / 4),
        ("dial timeouts", seen.timed_out, worlds / 2),
        ("ends wished", seen.closed, worlds / 20),
        ("exhausted or refused", seen.exhausted, worlds / 50),
        ("pauses", seen.paused, 5 * worlds),
        ("blocked inboxes", seen.blocked, worlds / 4),
    ];
    for (what, have, least) in expected {
        assert!(have >= least, "{what}: {have}, at least {least} wanted; all: {seen:?}");
    }
}

/// What happened in a world, or in all.
#[derive(Debug, Default)]
struct Seen {
    healed: u64,
    opened: u64,
    failed: u64,
    silent: u64,
    data_silent: u64,
    replaced: u64,
    timed_out: u64,
    closed: u64,
    exhausted: u64,
    paused: u64,
    blocked: u64,
}

struct World {
    seed: u64,
    rng: Rng,
    rules: Rules,
    session: Session,
    start: Instant,
    now: Instant,
    link: Link,
    model: Model,
    /// What peer and user will do, in order.
    agenda: BTreeMap<(Instant, u64), News>,
    scheduled: u64,
    dials: u64,
    generation: Generation,
    faults: bool,
    /// How many of a hundred dials open a wire.
    luck: u64,
    /// The longest pause a server has asked for.
    asked: Duration,
    log: VecDeque<String>,
    seen: Seen,
}

/// The settings of the session, for the model.
#[derive(Clone, Debug)]
struct Rules {
    connect_timeout: Duration,
    phase_timeout: Option<Duration>,
    connect_attempts: u32,
    redial_attempts: u32,
    base: Duration,
    max: Duration,
    jitter: f64,
    stable_after: Duration,
    interval: Option<Duration>,
    patience: Duration,
    strict: bool,
    data_silence: Option<Duration>,
    close_timeout: Duration,
}

/// What the shell has in hand.
#[derive(Debug)]
enum Link {
    Down,
    Dialing { begun: Instant, phase: Phase, phase_since: Instant },
    Open(Wire),
}

#[derive(Debug)]
struct Wire {
    opened: Instant,
    /// Since when nothing was heard, no data came, nothing was pinged.
    heard: Instant,
    heard_data: Instant,
    pinged: Instant,
    unanswered: VecDeque<Ping>,
    blocked: bool,
    closing: Option<Instant>,
    // What the peer does.
    data_every: Duration,
    rtt: Duration,
    vanishes: Option<Instant>,
    data_stops: Option<Instant>,
    pongs_stop: Option<Instant>,
}

#[derive(Debug)]
struct Ping {
    payload: [u8; 8],
    sent: Instant,
    /// A caller's, which need not be answered.
    excused: bool,
}

/// What the contract allows next.
#[derive(Debug)]
struct Model {
    stage: Stage,
    attempt: u32,
    /// Pauses taken since the ladder began; `None` while the immediate redial is still to be had.
    rung: Option<u32>,
    was_open: bool,
    wished_close: bool,
    wished_reconnect: bool,
    failed: bool,
    /// How the session must end next.
    end: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Pausing {
        until: Instant,
    },
    Dialing,
    Open,
    /// The last failure left no dial.
    Ending,
    Closed,
}

/// What the world does to the session; what concerns a dial or wire that is gone is not passed on.
#[derive(Clone, Debug)]
enum News {
    Phase(u64, Phase),
    DialFailed(u64, Error),
    Opened(u64),
    Bytes(Generation),
    Data(Generation),
    Pong(Generation, [u8; 8]),
    Lost(Generation, Error),
    Block(Generation),
    Unblock(Generation),
    WishClose,
    WishReconnect,
    UserPing,
    Failure,
    /// A deadline that is none.
    Timeout,
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
        let mut rng = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5eed);
        let rules = Rules::draw(&mut rng);
        let start = Instant::now();
        let mut session = Session::new(Arc::new(rules.config()), rng.next(), start);
        session.handle_begin(start);
        let luck = [5, 30, 60, 90][rng.below(4) as usize];
        let mut world = Self {
            seed,
            rng,
            rules,
            session,
            start,
            now: start,
            link: Link::Down,
            model: Model {
                stage: Stage::Pausing { until: start },
                attempt: 0,
                rung: None,
                was_open: false,
                wished_close: false,
                wished_reconnect: false,
                failed: false,
                end: None,
            },
            agenda: BTreeMap::new(),
            scheduled: 0,
            dials: 0,
            generation: Generation::default(),
            faults: true,
            luck,
            asked: Duration::ZERO,
            log: VecDeque::new(),
            seen: Seen::default(),
        };
        world.note(format_args!("{:?}", world.rules.clone()));
        world
    }

    fn run(mut self) -> Seen {
        self.obey();
        self.check();
        let horizon = self.start + self.rng.between(SEC, 3600 * SEC);
        self.plan_user(horizon);
        let mut steps = 0;
        while self.now < horizon && steps < 3000 && !self.is_over() {
            self.step(horizon);
            steps += 1;
            if steps % 50 == 0 {
                self.check_size();
            }
        }
        self.check_size();
        if !self.is_over() {
            self.heal();
        }
        if self.is_over() {
            self.outlive();
        }
        self.seen
    }

    fn is_over(&self) -> bool {
        self.model.stage == Stage::Closed
    }

    /// The faults stop: the session must find a healthy wire, and keep it.
    fn heal(&mut self) {
        self.note(format_args!("the faults stop"));
        self.faults = false;
        self.agenda.retain(|_, news| {
            !matches!(news, News::Lost(..) | News::Block(_) | News::WishClose | News::WishReconnect | News::Failure)
        });
        let (now, generation) = (self.now, self.generation);
        let mut sick = Duration::ZERO;
        if let Link::Open(wire) = &mut self.link {
            // A peer that is gone stays gone; one that was slow to answer recovers.
            for stop in [&mut wire.vanishes, &mut wire.data_stops] {
                *stop = stop.filter(|stop| *stop <= now);
            }
            wire.pongs_stop = None;
            wire.rtt = wire.rtt.min(self.rules.patience / 2);
            if wire.blocked {
                self.schedule(Duration::ZERO, News::Unblock(generation));
            }
            sick = [self.rules.interval.map(|interval| interval + self.rules.patience), self.rules.data_silence]
                .into_iter()
                .flatten()
                .max()
                .unwrap_or_default();
        }
        let Rules { connect_timeout, max, close_timeout, .. } = self.rules;
        // A sick wire is noticed, a dial that hangs is given up, a pause passes, a dial succeeds.
        let deadline = self.now + sick + connect_timeout + max.max(self.asked) + connect_timeout + close_timeout + EPSILON;
        while self.now < deadline && !self.is_over() {
            self.step(deadline);
        }
        if self.is_over() {
            return;
        }
        check!(self, self.session.state() == State::Open, "not healed by {:?}", deadline - self.start);
        let (healed, silence) = (self.generation, self.rules.data_silence.unwrap_or_default());
        let proof = self.now + 4 * (self.rules.interval.unwrap_or_default() + self.rules.patience + silence);
        while self.now < proof {
            self.step(proof);
        }
        let stays = self.session.state() == State::Open && self.generation == healed;
        check!(self, stays, "lost a healthy wire");
        self.seen.healed += 1;
    }

    /// Whatever is still to come finds a session that has ended.
    fn outlive(&mut self) {
        let end = format!("{:?}", self.session.end());
        let more = [
            News::WishReconnect,
            News::WishClose,
            News::Failure,
            News::Timeout,
            News::UserPing,
            News::Opened(self.dials),
            News::DialFailed(self.dials, Error::Disconnected),
            News::Phase(self.dials, Phase::Tls),
            News::Bytes(self.generation),
            News::Data(self.generation),
            News::Lost(self.generation, Error::Disconnected),
            News::Block(self.generation),
            News::Unblock(self.generation),
        ];
        for news in more {
            self.now += self.rng.between(Duration::ZERO, 100 * SEC);
            self.feed(news.clone());
            self.session.handle_timeout(self.now);
            let actions = self.session.take_actions();
            check!(self, actions.is_empty(), "{actions:?} after the end, for {news:?}");
            check!(self, self.session.next_deadline().is_none(), "a deadline after the end, for {news:?}");
            check!(self, self.session.state() == State::Closed, "{:?} after the end", self.session.state());
        }
        check!(self, end == format!("{:?}", self.session.end()), "the end has changed from {end}");
    }

    /// One turn of the reactor: what sockets and callers bring, then the deadlines.
    fn step(&mut self, limit: Instant) {
        let due = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let next = [self.session.next_deadline(), due].into_iter().flatten().min().unwrap_or(limit).min(limit);
        let late = if self.rng.chance(25) { self.rng.between(Duration::ZERO, LATE) } else { Duration::ZERO };
        self.now = self.now.max(next + late);
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let news = entry.remove();
            self.feed(news);
            self.obey();
        }
        self.time_out(self.now);
        self.check();
    }

    fn time_out(&mut self, now: Instant) {
        self.session.handle_timeout(now);
        self.obey();
    }

    /// The wire ends; if it was up for long enough, the ladder starts over.
    fn end_wire(&mut self) {
        if let Link::Open(wire) = mem::replace(&mut self.link, Link::Down)
            && self.now >= wire.opened + self.rules.stable_after
        {
            self.model.attempt = 0;
            self.model.rung = None;
        }
    }

    /// Passes something on to the session, as the shell would.
    fn feed(&mut self, news: News) {
        if !matches!(news, News::Bytes(_) | News::Data(_)) {
            self.note(format_args!("{news:?}"));
        }
        let now = self.now;
        // Stamps are taken on several threads.
        let about = now - if self.rng.chance(10) { self.rng.between(Duration::ZERO, LATE) } else { Duration::ZERO };
        let current = self.generation;
        let is_dialing = matches!(self.link, Link::Dialing { .. });
        match news {
            News::Phase(dial, next) => {
                if let Link::Dialing { phase, phase_since, .. } = &mut self.link
                    && dial == self.dials
                {
                    (*phase, *phase_since) = (next, now);
                } else if is_dialing {
                    return;
                }
                self.session.handle_phase(now, next);
            }
            News::DialFailed(dial, cause) => {
                if is_dialing {
                    if dial != self.dials {
                        return;
                    }
                    self.link = Link::Down;
                }
                self.session.handle_dial_failed(now, cause);
            }
            News::Opened(dial) => {
                if is_dialing && dial == self.dials {
                    self.open();
                } else if !is_dialing {
                    self.session.handle_opened(now, current.next().next(), None);
                    check!(self, self.session.generation() == current, "a wire nobody dialled was taken");
                }
            }
            News::Bytes(generation) => {
                if self.wire_of(generation).is_some_and(|wire| wire.hears(now)) {
                    self.hear(about, false);
                }
            }
            News::Data(generation) => {
                let Some(wire) = self.wire_of(generation) else { return };
                let (hears, more) = (wire.hears(now) && wire.data_stops.is_none_or(|stop| now < stop), wire.data_every);
                if hears {
                    self.hear(about, true);
                }
                let pause = self.rng.between(more / 2, more);
                self.schedule(pause, News::Data(generation));
            }
            News::Pong(generation, payload) => {
                let Some(wire) = self.wire_of(generation) else { return };
                if wire.pongs_stop.is_some_and(|stop| now >= stop) || !wire.hears(now) {
                    return;
                }
                let place = wire.unanswered.iter().position(|ping| ping.payload == payload);
                self.hear(about, false);
                let rtt = self.session.handle_pong(about, &payload);
                let Link::Open(wire) = &mut self.link else { return };
                let Some(place) = place else { return check!(self, rtt.is_none(), "a pong to no ping took {rtt:?}") };
                let Ping { sent, excused, .. } = wire.unanswered[place];
                // A caller's pings may be forgotten if there are many, those of the heartbeat while there are few.
                if rtt.is_none() && (excused || wire.unanswered.len() > 50) {
                    return;
                }
                wire.unanswered.drain(..=place);
                let off = rtt.map(|rtt| rtt.abs_diff(now - sent));
                check!(self, off.is_some_and(|off| off < EPSILON), "a round trip of {rtt:?}");
            }
            News::Lost(generation, cause) => {
                if self.wire_of(generation).is_some() {
                    self.end_wire();
                }
                if !is_dialing && matches!(self.link, Link::Down) {
                    self.session.handle_lost(now, cause);
                }
            }
            News::Block(generation) => {
                let Some(wire) = self.wire_of(generation) else { return };
                wire.blocked = true;
                wire.unanswered.clear();
                self.seen.blocked += 1;
                self.session.handle_blocked(now, true);
            }
            News::Unblock(generation) => {
                let Some(wire) = self.wire_of(generation) else { return };
                wire.blocked = false;
                wire.heard = now;
                wire.heard_data = now;
                wire.unanswered.clear();
                self.session.handle_blocked(now, false);
            }
            News::WishClose => {
                self.session.wish_close(1000, "enough".into());
                let expected = if self.is_over() { State::Closed } else { State::Closing };
                check!(self, self.session.state() == expected, "{:?} after a close was wished", self.session.state());
                self.model.wished_close = true;
                self.session.handle_wishes(now);
            }
            News::WishReconnect => {
                self.session.wish_reconnect();
                let state = self.session.state();
                check!(self, state != State::Open && state != State::Waiting, "{state:?} after a reconnect was wished");
                self.model.wished_reconnect = matches!(self.model.stage, Stage::Pausing { .. });
                self.session.handle_wishes(now);
            }
            News::UserPing => {
                let burst = [1, 3, 100][self.rng.below(3) as usize];
                for _ in 0..burst {
                    let payload = self.session.start_ping(about);
                    if let Some(wire) = self.wire_of(current) {
                        wire.unanswered.push_back(Ping { payload, sent: now, excused: true });
                    }
                    if self.rng.chance(10) {
                        let rtt = self.rng.between(Duration::ZERO, SEC);
                        self.schedule(rtt, News::Pong(current, payload));
                    }
                }
            }
            News::Failure => {
                self.model.failed = !self.is_over();
                if !is_dialing {
                    // What to do about a dial the session says.
                    self.link = Link::Down;
                }
                self.session.handle_failure(now, Error::Stopped);
            }
            News::Timeout => self.session.handle_timeout(about),
        }
    }

    fn wire_of(&mut self, generation: Generation) -> Option<&mut Wire> {
        match &mut self.link {
            Link::Open(wire) if generation == self.generation => Some(wire),
            _ => None,
        }
    }

    fn hear(&mut self, at: Instant, data: bool) {
        let Link::Open(wire) = &mut self.link else { return };
        wire.heard = self.now;
        self.session.handle_receive(at);
        if data {
            wire.heard_data = self.now;
            self.session.handle_data(at);
        }
    }

    /// Does what the session asks for, and checks that it may.
    fn obey(&mut self) {
        let mut hung_up = false;
        loop {
            let actions = self.session.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.note(format_args!("  {action:?}"));
                match action {
                    Action::Dial { attempt, deadline } => {
                        let idle = matches!(self.link, Link::Down) && self.model.stage == Stage::Dialing;
                        check!(self, idle, "a dial besides {:?}", self.link);
                        check!(self, attempt == self.model.attempt, "attempt {attempt}, not {}", self.model.attempt);
                        let expected = self.now + self.rules.connect_timeout;
                        check!(self, deadline == expected, "a dial until {:?}", deadline - self.start);
                        self.dial();
                    }
                    Action::Abandon => {
                        check!(self, matches!(self.link, Link::Dialing { .. }), "{:?} is no dial to abandon", self.link);
                        self.link = Link::Down;
                    }
                    Action::Ping(payload) => self.ping(payload),
                    Action::Close(code, reason) => {
                        let now = self.now;
                        check!(self, code == 1000 && &*reason == "enough", "another close: {code} {reason}");
                        let Link::Open(wire) = &mut self.link else { self.fail(format_args!("nothing to close")) };
                        check!(self, wire.closing.replace(now).is_none(), "closed twice");
                        if !self.faults || self.rng.chance(60) {
                            let (rtt, generation) = (self.rng.between(Duration::ZERO, SEC), self.generation);
                            self.schedule(rtt, News::Lost(generation, closed_by_peer(1000)));
                        }
                    }
                    Action::Hangup(cause) => {
                        check!(self, hung_up || matches!(self.link, Link::Open(_)), "no wire to hang up");
                        if !hung_up {
                            self.check_hangup(&cause);
                        }
                        hung_up = true;
                        self.end_wire();
                        self.session.handle_lost(self.now, cause);
                    }
                    Action::Emit(event) => self.take(event),
                }
            }
        }
    }

    fn ping(&mut self, payload: [u8; 8]) {
        let (now, generation) = (self.now, self.generation);
        let interval = self.rules.interval;
        let Link::Open(wire) = &mut self.link else { self.fail(format_args!("a ping without a wire")) };
        let gap = now - wire.pinged;
        wire.pinged = now;
        let excused = wire.blocked;
        wire.unanswered.push_back(Ping { payload, sent: now, excused });
        let (rtt, closing) = (wire.rtt, wire.closing);
        check!(self, interval.is_some_and(|interval| gap + EPSILON > interval), "a ping {gap:?} after the last");
        check!(self, closing.is_none(), "a ping while closing");
        let rtt = self.rng.between(rtt / 2, rtt);
        self.schedule(rtt, News::Pong(generation, payload));
    }

    /// Whether the session may drop the wire for this cause.
    fn check_hangup(&self, cause: &Error) {
        let Link::Open(wire) = &self.link else { return };
        let Rules { patience, strict, .. } = self.rules;
        let quiet = self.now - wire.heard + EPSILON;
        let may = match cause {
            Error::Silent { .. } if wire.blocked => false,
            Error::Silent { .. } if strict => wire.oldest().is_some_and(|sent| self.now - sent + EPSILON >= patience),
            Error::Silent { .. } => quiet >= patience,
            Error::DataSilent { .. } => {
                !wire.blocked && self.rules.data_silence.is_some_and(|limit| self.now - wire.heard_data + EPSILON >= limit)
            }
            Error::Closed => wire.closing.is_some_and(|since| self.now - since >= self.rules.close_timeout),
            Error::Replaced => true,
            _ => false,
        };
        check!(self, may, "hung up without reason: {cause}, {wire:?}");
    }

    /// Takes an event of the session: the grammar of a life and the pauses in it.
    fn take(&mut self, event: Event) {
        let stage = self.model.stage;
        match event {
            Event::Dialing { attempt } => {
                let Stage::Pausing { until } = stage else { self.fail(format_args!("dialing while {stage:?}")) };
                let early = until.saturating_duration_since(self.now);
                check!(self, early.is_zero() || self.model.wished_reconnect, "dialing {early:?} early");
                check!(self, self.now <= until + EPSILON, "dialing late");
                self.model.attempt += 1;
                self.model.wished_reconnect = false;
                self.model.stage = Stage::Dialing;
                check!(self, attempt == self.model.attempt, "attempt {attempt}, not {}", self.model.attempt);
            }
            Event::DialFailed { attempt, cause, redial_in } => {
                check!(self, stage == Stage::Dialing && matches!(self.link, Link::Down), "a dial failed while {stage:?}");
                check!(self, attempt == self.model.attempt, "attempt {attempt}, not {}", self.model.attempt);
                let (fatal, first) = (cause.is_fatal(), !self.model.was_open);
                let allowed = if first { self.rules.connect_attempts } else { self.rules.redial_attempts };
                let exhausted = allowed != u32::MAX && attempt >= allowed;
                let (mut least, mut most) = self.pause();
                if fatal {
                    (least, most) = (self.rules.max, self.rules.max);
                }
                if let Error::Refused(refusal) = &cause {
                    let asked = refusal.retry_after.unwrap_or_default();
                    (least, most) = (least.max(asked), most.max(asked));
                }
                self.seen.failed += 1;
                self.seen.timed_out += u64::from(matches!(cause, Error::DialTimeout { .. }));
                if (fatal && first) || exhausted {
                    self.expect_end(&cause, fatal || allowed <= 1, redial_in);
                } else {
                    self.expect_pause(least, most, redial_in);
                }
            }
            Event::Open => {
                check!(self, stage == Stage::Dialing && matches!(self.link, Link::Open(_)), "open while {stage:?}");
                if !self.model.was_open {
                    self.model.attempt = 0;
                    self.model.rung = None;
                }
                self.model.was_open = true;
                self.model.stage = Stage::Open;
                self.seen.opened += 1;
            }
            Event::Lost { cause, redial_in } => {
                check!(self, stage == Stage::Open && matches!(self.link, Link::Down), "lost while {stage:?}");
                let allowed = self.rules.redial_attempts;
                let replaced = matches!(cause, Error::Replaced);
                self.seen.silent += u64::from(matches!(cause, Error::Silent { .. }));
                self.seen.data_silent += u64::from(matches!(cause, Error::DataSilent { .. }));
                self.seen.replaced += u64::from(replaced);
                if replaced {
                    self.model.attempt = 0;
                }
                if allowed != u32::MAX && self.model.attempt >= allowed && !replaced {
                    self.expect_end(&cause, allowed <= 1, redial_in);
                } else if replaced {
                    self.expect_pause(Duration::ZERO, Duration::ZERO, redial_in);
                } else if self.model.rung.is_none() {
                    self.model.rung = Some(0);
                    self.expect_pause(Duration::ZERO, Duration::ZERO, redial_in);
                } else {
                    let (least, most) = self.pause();
                    self.expect_pause(least, most, redial_in);
                }
            }
            Event::Closed { cause } => {
                check!(self, stage != Stage::Closed, "closed twice");
                let told = cause.as_ref().map(|cause| format!("{cause:?}"));
                let wished = self.model.wished_close && told.is_none();
                let failed = self.model.failed && matches!(cause, Some(Error::Stopped));
                let ended = stage == Stage::Ending && told.is_some() && told == self.model.end;
                check!(self, wished || failed || ended, "closed for {cause:?}, expected {:?}", self.model.end);
                check!(self, matches!(self.link, Link::Down), "closed over {:?}", self.link);
                let end = format!("{:?}", self.session.end());
                check!(self, end == format!("{:?}", Some(cause)), "closed, but ended with {end}");
                self.model.stage = Stage::Closed;
                self.seen.closed += u64::from(wished);
                self.seen.exhausted += u64::from(ended);
            }
            event => self.fail(format_args!("{event:?} is not the session's to tell")),
        }
    }

    /// The next pause of the ladder, at least and at most.
    fn pause(&mut self) -> (Duration, Duration) {
        let rung = self.model.rung.unwrap_or(0);
        self.model.rung = Some(rung + 1);
        let whole = (0..rung).fold(self.rules.base, |pause, _| (pause * 2).min(self.rules.max)).min(self.rules.max);
        (whole.mul_f64(1.0 - self.rules.jitter), whole)
    }

    fn expect_pause(&mut self, least: Duration, most: Duration, redial_in: Option<Duration>) {
        let Some(pause) = redial_in else { self.fail(format_args!("no redial, though {least:?} to {most:?} were due")) };
        check!(self, least <= pause && pause <= most, "a pause of {pause:?}, not {least:?} to {most:?}");
        self.model.stage = Stage::Pausing { until: self.now + pause };
        self.seen.paused += u64::from(!pause.is_zero());
    }

    fn expect_end(&mut self, cause: &Error, raw: bool, redial_in: Option<Duration>) {
        check!(self, redial_in.is_none(), "goes on after {cause}, attempt {}", self.model.attempt);
        let attempts = self.model.attempt;
        let end = if raw { cause.clone() } else { Error::Exhausted { attempts, last: Arc::new(cause.clone()) } };
        self.model.end = Some(format!("{end:?}"));
        self.model.stage = Stage::Ending;
    }

    /// What must hold between any two steps.
    fn check(&self) {
        let now = self.now;
        let Rules { connect_timeout, phase_timeout, interval, patience, strict, data_silence, close_timeout, .. } = self.rules;
        if let Some(deadline) = self.session.next_deadline() {
            check!(self, deadline > now, "a deadline in the past");
        }
        let state = match (&self.link, self.model.stage) {
            (Link::Down, Stage::Pausing { .. }) => State::Waiting,
            (Link::Down, Stage::Closed) => State::Closed,
            (Link::Dialing { .. }, Stage::Dialing) => State::Connecting,
            (Link::Open(Wire { closing: None, .. }), Stage::Open) => State::Open,
            (Link::Open(Wire { closing: Some(_), .. }), Stage::Open) => State::Closing,
            (link, stage) => self.fail(format_args!("{stage:?} with {link:?}")),
        };
        check!(self, self.session.state() == state, "{:?} instead of {state:?}", self.session.state());
        check!(self, self.session.generation() == self.generation, "at {}", self.session.generation());
        check!(self, self.session.was_open() == self.model.was_open, "was_open");
        check!(self, self.session.end().is_some() == self.is_over(), "end");
        match &self.link {
            Link::Down => {}
            Link::Dialing { begun, phase_since, phase } => {
                check!(self, now < *begun + connect_timeout, "a dial outlived its time");
                let phase_is_late = phase_timeout.is_some_and(|limit| now >= *phase_since + limit);
                check!(self, !phase_is_late, "{phase:?} outlived its time");
            }
            Link::Open(Wire { closing: Some(since), .. }) => {
                check!(self, now < *since + close_timeout, "the close handshake outlived its time");
            }
            Link::Open(wire) if wire.blocked => {
                check!(self, interval.is_none_or(|interval| now < wire.pinged + interval), "a ping is overdue");
            }
            Link::Open(wire) => {
                if let Some(interval) = interval {
                    check!(self, now < wire.pinged + interval, "a ping is overdue");
                    check!(self, now < wire.heard + interval + patience + EPSILON, "outlived its silence: {wire:?}");
                    let is_overdue = strict && wire.oldest().is_some_and(|sent| now >= sent + patience);
                    check!(self, !is_overdue, "outlived a pong: {wire:?}");
                }
                let quiet = data_silence.is_some_and(|limit| now >= wire.heard_data + limit + EPSILON);
                check!(self, !quiet, "outlived the silence of its data: {wire:?}");
            }
        }
    }

    fn check_size(&self) {
        let size = format!("{:?}", self.session).len();
        check!(self, size < DEBUG_SIZE_MAX, "the session has grown to {size} bytes: {:?}", self.session);
    }

    // What peer and user do.

    fn dial(&mut self) {
        self.dials += 1;
        self.link = Link::Dialing { begun: self.now, phase: Phase::Resolve, phase_since: self.now };
        let dial = self.dials;
        if !self.faults {
            let limit =
                self.rules.phase_timeout.map_or(self.rules.connect_timeout, |limit| limit.min(self.rules.connect_timeout));
            return self.schedule(limit / 4, News::Opened(dial));
        }
        let mut at = Duration::ZERO;
        let last = self.rng.below(4);
        for phase in [Phase::Connect, Phase::Tls, Phase::Upgrade].into_iter().take(last as usize) {
            at += self.rng.between(Duration::ZERO, self.rules.connect_timeout / 4);
            self.schedule(at, News::Phase(dial, phase));
        }
        at += self.rng.between(Duration::ZERO, self.rules.connect_timeout / 2);
        // Half of the worlds begin well.
        let lucky = self.rng.chance(self.luck) || (dial == 1 && self.seed.is_multiple_of(2));
        let fate = match self.rng.below(8) {
            _ if lucky => News::Opened(dial),
            0 | 1 => return,
            2 => News::Opened(dial),
            3 | 4 => News::DialFailed(dial, Error::Connect { peer: "peer".into(), source: reset() }),
            5 => News::DialFailed(dial, Error::Handshake("no upgrade".into())),
            6 if self.rng.chance(10) => {
                let certificate = self.rng.chance(50);
                News::DialFailed(dial, Error::Tls { certificate, source: reset() })
            }
            _ => News::DialFailed(dial, self.refusal()),
        };
        self.schedule(at, fate);
        if self.rng.chance(5) {
            self.luck = [5, 30, 60, 90][self.rng.below(4) as usize];
        }
    }

    fn refusal(&mut self) -> Error {
        let status = [401, 403, 404, 429, 429, 500, 502, 503, 503, 503][self.rng.below(10) as usize];
        let retry_after = (matches!(status, 429 | 503) && self.rng.chance(50)).then(|| self.rng.between(SEC / 10, 90 * SEC));
        self.asked = self.asked.max(retry_after.unwrap_or_default());
        Error::Refused(Arc::new(Refusal { status, headers: vec![], body: "sorry".into(), retry_after }))
    }

    fn open(&mut self) {
        let now = self.now;
        let silence = self.rules.data_silence.unwrap_or(20 * SEC);
        let mut wire = Wire {
            opened: now,
            heard: now,
            heard_data: now,
            pinged: now,
            unanswered: VecDeque::new(),
            blocked: false,
            closing: None,
            data_every: (silence / 2).min(self.rng.between(SEC, 30 * SEC)),
            rtt: self.rng.between(SEC / 100, self.rules.patience / 2),
            vanishes: None,
            data_stops: None,
            pongs_stop: None,
        };
        self.generation = self.generation.next();
        let generation = self.generation;
        let uptime = match self.rng.below(6) {
            0 => Duration::ZERO,
            1 => self.rules.stable_after,
            2 => self.rules.stable_after - Duration::from_nanos(1),
            3 => self.rng.between(Duration::ZERO, SEC),
            _ => self.rng.between(Duration::ZERO, 90 * SEC),
        };
        if self.faults {
            let codes = [1000, 1001, 1008, 1012, 4001];
            match self.rng.below(12) {
                0 | 1 => wire.vanishes = Some(now + uptime),
                2 => wire.data_stops = Some(now + uptime),
                3 => wire.pongs_stop = Some(now + uptime),
                4 | 5 => {
                    let code = codes[self.rng.below(5) as usize];
                    self.schedule(uptime, News::Lost(generation, closed_by_peer(code)));
                }
                6 => self.schedule(uptime, News::Lost(generation, Error::Disconnected)),
                7 => self.schedule(uptime, News::Lost(generation, Error::Io(reset()))),
                8 => {
                    let pause = self.rng.between(Duration::ZERO, 200 * SEC);
                    self.schedule(uptime, News::Block(generation));
                    self.schedule(uptime + pause, News::Unblock(generation));
                }
                9 => wire.rtt = 2 * self.rules.patience,
                10 => self.schedule(5 * uptime, News::Lost(generation, Error::Disconnected)),
                _ => {}
            }
        }
        self.link = Link::Open(wire);
        self.session.handle_opened(now, generation, None);
        self.schedule(Duration::ZERO, News::Data(generation));
        for _ in 0..self.rng.below(3) {
            let at = self.rng.between(Duration::ZERO, 100 * SEC);
            self.schedule(at, News::Bytes(generation));
        }
    }

    fn plan_user(&mut self, horizon: Instant) {
        let time = horizon - self.start;
        let mut plan = |chance, news: News| {
            while self.rng.chance(chance) {
                let at = self.rng.between(Duration::ZERO, time);
                self.schedule(at, news.clone());
            }
        };
        plan(60, News::WishReconnect);
        plan(70, News::UserPing);
        plan(90, News::Timeout);
        plan(15, News::WishClose);
        plan(5, News::Failure);
    }

    fn schedule(&mut self, after: Duration, news: News) {
        self.scheduled += 1;
        self.agenda.insert((self.now + after, self.scheduled), news);
    }

    fn note(&mut self, text: fmt::Arguments<'_>) {
        if self.log.len() == 60 {
            self.log.pop_front();
        }
        self.log.push_back(format!("{:>12.3?} {text}", self.now - self.start));
    }

    fn fail(&self, text: fmt::Arguments<'_>) -> ! {
        let log: Vec<_> = self.log.iter().map(String::as_str).collect();
        let (seed, at) = (self.seed, self.now - self.start);
        panic!("{}\nworld {seed} at {at:?}: {text}\nZEN_WORLD_SEED={seed} runs it again", log.join("\n"));
    }
}

impl Wire {
    /// When the oldest ping left that is to be answered.
    fn oldest(&self) -> Option<Instant> {
        self.unanswered.iter().find(|ping| !ping.excused).map(|ping| ping.sent)
    }

    /// Whether what the peer sends arrives.
    fn hears(&self, now: Instant) -> bool {
        !self.blocked && self.vanishes.is_none_or(|at| now < at)
    }
}

impl Rules {
    fn draw(rng: &mut Rng) -> Self {
        let patience = rng.between(SEC, 10 * SEC);
        let base = rng.between(SEC / 20, SEC);
        Self {
            connect_timeout: rng.between(SEC / 10, 5 * SEC),
            phase_timeout: rng.chance(30).then(|| rng.between(SEC / 10, 3 * SEC)),
            connect_attempts: [1, 2, 3, 10, u32::MAX, u32::MAX, u32::MAX, u32::MAX][rng.below(8) as usize],
            redial_attempts: [0, 1, 5, u32::MAX][(rng.below(16) as usize).min(3)],
            base,
            max: base + rng.between(Duration::ZERO, 30 * SEC),
            jitter: [0.0, 0.5, 0.9][rng.below(3) as usize],
            stable_after: rng.between(SEC, 20 * SEC),
            // Often shorter than the patience, but not so short that pings are forgotten.
            interval: rng.chance(90).then(|| rng.between(patience / 50, 30 * SEC)),
            patience,
            strict: rng.chance(30),
            data_silence: rng.chance(40).then(|| rng.between(5 * SEC, 60 * SEC)),
            close_timeout: rng.between(SEC / 10, 3 * SEC),
        }
    }

    fn config(&self) -> Config {
        let config = Config::new("ws://peer")
            .connect_timeout(self.connect_timeout)
            .connect_attempts(self.connect_attempts)
            .redial_attempts(self.redial_attempts)
            .base_delay(self.base)
            .max_backoff(self.max)
            .jitter(self.jitter)
            .stable_after(self.stable_after)
            .heartbeat_interval(self.interval)
            .patience(self.patience)
            .strict(self.strict)
            .data_silence(self.data_silence)
            .close_timeout(self.close_timeout);
        let phases = [Phase::Resolve, Phase::Connect, Phase::Tls, Phase::Upgrade];
        let config = phases.into_iter().fold(config, |config, phase| match self.phase_timeout {
            Some(limit) => config.phase_timeout(phase, limit),
            None => config,
        });
        config.validate().expect("a world keeps to the rules");
        config
    }
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.healed += other.healed;
        self.opened += other.opened;
        self.failed += other.failed;
        self.silent += other.silent;
        self.data_silent += other.data_silent;
        self.replaced += other.replaced;
        self.timed_out += other.timed_out;
        self.closed += other.closed;
        self.exhausted += other.exhausted;
        self.paused += other.paused;
        self.blocked += other.blocked;
    }
}

const SEC: Duration = Duration::from_secs(1);

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

fn closed_by_peer(code: u16) -> Error {
    Error::PeerClosed { code: Some(code), reason: "".into() }
}

fn reset() -> Arc<io::Error> {
    Arc::new(io::ErrorKind::ConnectionReset.into())
}
