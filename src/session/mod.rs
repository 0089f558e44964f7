//! The life of one logical connection, as a pure state machine over inputs and `now`.
//!
//! The reactor feeds inputs (`handle_…`) and drains what they ask for with [`Session::take_actions`]; callers only record wishes
//! (`wish_…`), register and withdraw calls, and look. A repeated or early timeout is harmless, and `now` never runs backwards: it is
//! clamped to the latest seen.
//!
//! What a connection says to the venue on its own account, the login and the subscriptions, is the [`dialogue`]'s; a login is the last
//! phase of a dial here.
//!
//! ```text
//!   Connecting ── opened, logged in ──► Open ── lost ──► Connecting (at once) or Waiting
//!   Connecting ── failed ──► Waiting ── Timer::Redial ──► Connecting
//!   Open ── close wished ──► Closing ── peer's Close, lost or Timer::Close ──► Closed
//!   any ── close wished, no attempts left, or a fatal first failure ──► Closed
//! ```

mod backoff;
pub(crate) mod calls;
pub(crate) mod dialogue;
mod heartbeat;
mod subscriptions;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::backoff::Backoff;
use self::calls::{Call, Calls, Registered};
pub use self::heartbeat::Heartbeat;
use self::heartbeat::Verdict;
use self::timers::{Timer, Timers};
use crate::config::Config;
use crate::dialect::Id;
use crate::error::{Error, Phase};
use crate::event::{Event, Generation, Standing, State};
use crate::metrics::ChannelCounts;
use crate::ticket::Ticket;

/// The longest pause a server may impose with `Retry-After`. Bans of venues last minutes; a longer demand is more likely a mistake, and
/// one attempt an hour is no burden.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// The state of one logical connection across its wires. `W` is whom to tell of the end of a call.
#[derive(Debug)]
pub struct Session<W = ()> {
    config: Arc<Config>,
    /// Never `Live`, which is `Open` and `is_live`.
    state: State,
    /// Every wanted channel is confirmed.
    is_live: bool,
    generation: Generation,
    /// Dials since the last wire that proved stable, since the first, or since a wish for another.
    attempt: u32,
    /// What the dial is doing, while `Connecting`.
    phase: Phase,
    backoff: Backoff,
    heartbeat: Heartbeat,
    timers: Timers,
    opened: Instant,
    /// When the wire last gave a byte, and a data message.
    heard: Instant,
    heard_data: Instant,
    /// Reading is stopped because the inbox is full: the clocks of liveness stand still.
    blocked: bool,
    /// What the server chose on the latest wire.
    subprotocol: Option<Arc<str>>,
    calls: Calls<W>,
    /// Dials begun since the first wire was up.
    redials: u64,
    /// How many orders about channels were given, and how many are carried out.
    orders: u64,
    orders_done: u64,
    /// What callers may know of the channels.
    standings: BTreeMap<Arc<str>, Standing>,
    channels: ChannelCounts,
    wishes: Wishes,
    actions: Vec<Action>,
    /// Why the session ended; `None` inside if the program closed it.
    end: Option<Option<Error>>,
    now: Instant,
}

/// What a session asks of the reactor.
#[derive(Clone, Debug)]
pub enum Action {
    /// Begin a dial.
    Dial {
        /// Its number since the last stable wire.
        attempt: u32,
        /// When it will be given up.
        deadline: Instant,
    },
    /// Give up the dial.
    Abandon,
    /// Send a ping with this payload.
    Ping([u8; 8]),
    /// Send a Close frame.
    Close(u16, Arc<str>),
    /// Drop the wire and report it lost for this cause.
    Hangup(Error),
    /// Deliver this event.
    Emit(Event),
}

/// What callers have asked for and the reactor has not taken up yet. Repeated wishes merge.
#[derive(Debug, Default)]
struct Wishes {
    close: Option<(u16, Arc<str>)>,
    reconnect: bool,
}

impl<W> Session<W> {
    /// A session that has not begun. The config must be valid.
    pub fn new(config: Arc<Config>, seed: u64, now: Instant) -> Self {
        let backoff = Backoff::new(
            config.settings.base_delay,
            config.settings.max_backoff,
            config.settings.jitter,
            config.settings.seed.unwrap_or(seed),
        );
        Self {
            config,
            state: State::Connecting,
            is_live: false,
            generation: Generation::default(),
            attempt: 0,
            phase: Phase::Resolve,
            backoff,
            heartbeat: Heartbeat::default(),
            timers: Timers::default(),
            opened: now,
            heard: now,
            heard_data: now,
            blocked: false,
            subprotocol: None,
            calls: Calls::default(),
            redials: 0,
            orders: 0,
            orders_done: 0,
            standings: BTreeMap::new(),
            channels: ChannelCounts::default(),
            wishes: Wishes::default(),
            actions: Vec::new(),
            end: None,
            now,
        }
    }

    // What callers may do.

    /// Asks for a close handshake; the first wish stands.
    pub fn wish_close(&mut self, code: u16, reason: Arc<str>) {
        self.wishes.close.get_or_insert((code, reason));
    }

    /// Makes the payload of a ping that a caller sends now. It measures the round trip; nothing is concluded if its pong stays away.
    pub fn start_ping(&mut self, now: Instant) -> [u8; 8] {
        let now = self.clamp(now);
        self.heartbeat.ping(now, true)
    }

    /// Forgets a ping of a caller's that did not leave.
    pub fn withdraw_ping(&mut self, payload: &[u8; 8]) {
        self.heartbeat.withdraw(payload);
    }

    /// Dials since the last wire that proved stable, since the first, or since a wish for another.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Asks for a new wire, now.
    pub fn wish_reconnect(&mut self) {
        self.wishes.reconnect = true;
    }

    /// Registers a call before its request is sent; returns the wire it must be sent on.
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`], [`Error::TooManyCalls`]; [`Error::NotConnected`] without an open wire.
    pub fn register(
        &mut self,
        now: Instant,
        id: Id,
        deadline: Instant,
        waiter: W,
        ticket: Arc<Ticket>,
    ) -> Result<(Generation, Registered), Error> {
        let now = self.clamp(now);
        match self.state() {
            State::Open | State::Live => {}
            State::Closing | State::Closed => return Err(Error::Closed),
            State::Connecting | State::Waiting => return Err(Error::NotConnected),
        }
        let registered = self.calls.register(now, id, deadline, waiter, ticket, self.config.settings.calls_max)?;
        Ok((self.generation, registered))
    }

    /// Takes a call back, if it still waits.
    pub fn withdraw(&mut self, id: &Id, token: u64) -> Option<Call<W>> {
        self.calls.withdraw(id, token)
    }

    /// How many calls wait for their replies.
    pub fn calls_pending(&self) -> usize {
        self.calls.len()
    }

    /// Notes that an order about channels is given; returns its number.
    pub fn wish_order(&mut self) -> u64 {
        self.orders += 1;
        self.orders
    }

    /// Whether the order of this number is carried out, so that the standings tell of it.
    pub fn has_done(&self, order: u64) -> bool {
        self.orders_done >= order
    }

    /// What is known of the channels that are wanted.
    pub fn standings(&self) -> &BTreeMap<Arc<str>, Standing> {
        &self.standings
    }

    /// How many channels stand where.
    pub fn channels(&self) -> ChannelCounts {
        self.channels
    }

    /// Where the connection stands, wishes included: after [`wish_reconnect`](Self::wish_reconnect) the old wire no longer counts.
    pub fn state(&self) -> State {
        match self.state {
            State::Closed => State::Closed,
            _ if self.wishes.close.is_some() => State::Closing,
            State::Open | State::Waiting if self.wishes.reconnect => State::Connecting,
            State::Open if self.is_live && self.has_done(self.orders) => State::Live,
            state => state,
        }
    }

    /// Which wire is or was the latest.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Why the session ended, once it has: `Some(None)` if the program closed it.
    pub fn end(&self) -> Option<&Option<Error>> {
        self.end.as_ref()
    }

    /// Whether a wire was ever up.
    pub fn was_open(&self) -> bool {
        self.generation != Generation::default()
    }

    /// The subprotocol the server chose on the latest wire.
    pub fn subprotocol(&self) -> Option<Arc<str>> {
        self.subprotocol.clone()
    }

    /// How long the wire has been open, if one is.
    pub fn uptime(&self, now: Instant) -> Option<Duration> {
        matches!(self.state, State::Open | State::Closing).then(|| self.opened_for(now))
    }

    /// How long ago the latest wire was opened.
    pub fn opened_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.opened)
    }

    /// Dials begun since the first wire was up.
    pub fn redials(&self) -> u64 {
        self.redials
    }

    /// The pings and what is known of their answers.
    pub fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    // What the reactor reports.

    /// The reactor has taken the session on: the first dial begins.
    pub fn handle_begin(&mut self, now: Instant) {
        self.clamp(now);
        self.dial();
    }

    /// Something was read from the wire. Returns whether calls wait for replies that may be in it.
    pub fn handle_receive(&mut self, now: Instant) -> bool {
        self.heard = self.clamp(now);
        self.calls.len() > 0
    }

    /// A reply came; returns the call it answers and how long that took.
    pub fn handle_reply(&mut self, now: Instant, id: &Id) -> Option<(Call<W>, Duration)> {
        let now = self.clamp(now);
        // What answers a request that has not begun to leave answers another.
        let call = self.calls.answer(id)?;
        let rtt = now.saturating_duration_since(call.began);
        Some((call, rtt))
    }

    /// Removes calls whose deadline has come, a limited number at a time; what is left is due at once.
    pub fn take_expired(&mut self, now: Instant) -> Vec<(Id, Call<W>)> {
        let now = self.clamp(now);
        self.calls.expire(now)
    }

    /// Removes the calls whose wire is gone.
    pub fn take_calls(&mut self) -> BTreeMap<Id, Call<W>> {
        self.calls.take()
    }

    /// A channel's standing has changed; `None` if nobody wants it any more. Returns whether it had one before.
    pub fn handle_standing(&mut self, channel: Arc<str>, standing: Option<Standing>) -> bool {
        if let Some(standing) = &standing {
            *self.channels.of(standing) += 1;
        }
        let previous = match standing {
            Some(standing) => self.standings.insert(channel, standing),
            None => self.standings.remove(&channel),
        };
        if let Some(previous) = &previous {
            *self.channels.of(previous) -= 1;
        }
        previous.is_some()
    }

    /// The orders about channels up to this number are carried out.
    pub fn handle_orders(&mut self, number: u64) {
        self.orders_done = number;
    }

    /// Every wanted channel is confirmed, or not any more.
    pub fn handle_live(&mut self, is_live: bool) {
        self.is_live = is_live;
    }

    /// What was read contained a data message.
    pub fn handle_data(&mut self, now: Instant) {
        self.heard_data = self.clamp(now);
    }

    /// A pong came; returns the round trip if it answers a ping of ours.
    pub fn handle_pong(&mut self, now: Instant, payload: &[u8]) -> Option<Duration> {
        let now = self.clamp(now);
        self.heartbeat.pong(now, payload)
    }

    /// The venue has answered a heartbeat of ours that has no number: it proves all that were sent.
    pub fn handle_proof(&mut self, now: Instant) -> Option<Duration> {
        let now = self.clamp(now);
        self.heartbeat.prove(now)
    }

    /// The rate limit holds the latest ping back, so nothing can be concluded if its pong stays away.
    pub fn handle_ping_held(&mut self) {
        self.heartbeat.excuse();
    }

    /// Reading was stopped because the inbox is full, or resumed. Meanwhile nothing can be heard, so nothing is concluded from silence.
    pub fn handle_blocked(&mut self, now: Instant, blocked: bool) {
        let now = self.clamp(now);
        self.blocked = blocked;
        self.heartbeat.forget();
        self.timers.stop(Timer::Patience);
        self.timers.stop(Timer::DataSilence);
        if !blocked && self.state == State::Open {
            self.start_clocks(now);
        }
    }

    /// The dial goes on with this phase.
    pub fn handle_phase(&mut self, now: Instant, phase: Phase) {
        let now = self.clamp(now);
        if self.state == State::Connecting && phase != self.phase {
            self.enter_phase(now, phase);
        }
    }

    /// The dial failed.
    pub fn handle_dial_failed(&mut self, now: Instant, cause: Error) {
        self.clamp(now);
        if self.state == State::Connecting {
            self.fail_dial(cause);
        }
    }

    /// The limit on dials allows the next one only later. It has not begun and does not count.
    pub fn handle_dial_throttled(&mut self, now: Instant, wait: Duration) {
        self.clamp(now);
        if self.state == State::Connecting {
            self.emit(Event::DialFailed { attempt: self.attempt, cause: Error::Throttled { wait }, redial_in: Some(wait) });
            self.attempt = self.attempt.saturating_sub(1);
            self.redials -= u64::from(self.was_open());
            // Looked at again within the hour, however long the limit is.
            // Those who wait for the same limit do not all come back at once.
            let apart = self.backoff.scatter();
            self.redial_in(wait.min(RETRY_AFTER_MAX) + apart);
        }
    }

    /// A wire of this generation is up and logged in, with the subprotocol the server chose.
    pub fn handle_opened(&mut self, now: Instant, generation: Generation, subprotocol: Option<Arc<str>>) {
        let now = self.clamp(now);
        if self.state != State::Connecting {
            return;
        }
        if !self.was_open() {
            // The failures before the first wire do not count against the first loss.
            self.attempt = 0;
            self.backoff.reset();
        }
        self.state = State::Open;
        self.is_live = false;
        // Who asked for a new wire while it was dialled has it.
        self.wishes.reconnect = false;
        self.generation = generation;
        self.subprotocol = subprotocol;
        self.timers.clear();
        self.opened = now;
        if let Some(interval) = self.config.settings.heartbeat_interval {
            self.timers.set(Timer::Ping, now + interval);
        }
        self.blocked = false;
        self.start_clocks(now);
        self.emit(Event::Open);
    }

    /// The wire is gone.
    pub fn handle_lost(&mut self, now: Instant, cause: Error) {
        self.clamp(now);
        match self.state {
            State::Open | State::Live => self.lose(cause),
            State::Closing => self.finish(None),
            State::Connecting | State::Waiting | State::Closed => {}
        }
    }

    /// The session cannot go on: its handler panicked, its inbox overflowed, or the reactor stops.
    pub fn handle_failure(&mut self, now: Instant, cause: Error) {
        self.clamp(now);
        if self.state != State::Closed {
            self.finish(Some(cause));
        }
    }

    /// Takes up what callers have asked for.
    pub fn handle_wishes(&mut self, now: Instant) {
        let now = self.clamp(now);
        if let Some((code, reason)) = self.wishes.close.take() {
            match self.state {
                State::Open | State::Live => {
                    self.state = State::Closing;
                    self.timers.clear();
                    self.timers.set(Timer::Close, now + self.config.settings.close_timeout);
                    self.actions.push(Action::Close(code, reason));
                }
                State::Connecting | State::Waiting => self.finish(None),
                State::Closing | State::Closed => {}
            }
        } else if mem::take(&mut self.wishes.reconnect) {
            match self.state {
                State::Open | State::Live => {
                    // Until the wire is dropped it no longer counts.
                    self.wishes.reconnect = true;
                    self.actions.push(Action::Hangup(Error::Replaced));
                }
                State::Waiting => self.dial(),
                State::Connecting | State::Closing | State::Closed => {}
            }
        }
    }

    /// Time has passed. Calls expire by [`take_expired`](Self::take_expired).
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = self.clamp(now);
        while let Some(timer) = self.timers.take_due(now) {
            match timer {
                Timer::Dial => self.time_out_dial(self.config.settings.connect_timeout),
                Timer::Phase => self.time_out_dial(self.phase_limit(self.phase)),
                Timer::Redial => self.dial(),
                Timer::Ping => self.ping(now),
                Timer::Patience => self.judge(now),
                Timer::DataSilence => self.check_data(now, self.config.settings.data_silence.unwrap_or_default()),
                Timer::Close => self.actions.push(Action::Hangup(Error::Closed)),
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        [self.timers.next(), self.calls.alarm()].into_iter().flatten().min()
    }

    /// Takes what is to be done, in order. Call after every input.
    pub fn take_actions(&mut self) -> Vec<Action> {
        mem::take(&mut self.actions)
    }

    fn dial(&mut self) {
        let deadline = self.now + self.config.settings.connect_timeout;
        self.state = State::Connecting;
        self.wishes.reconnect = false;
        self.attempt = self.attempt.saturating_add(1);
        self.redials += u64::from(self.was_open());
        self.timers.clear();
        self.timers.set(Timer::Dial, deadline);
        self.enter_phase(self.now, Phase::Resolve);
        self.emit(Event::Dialing { attempt: self.attempt });
        self.actions.push(Action::Dial { attempt: self.attempt, deadline });
    }

    fn enter_phase(&mut self, now: Instant, phase: Phase) {
        self.phase = phase;
        match self.config.settings.phase_timeouts[phase as usize] {
            Some(limit) => self.timers.set(Timer::Phase, now + limit),
            None => self.timers.stop(Timer::Phase),
        }
    }

    fn phase_limit(&self, phase: Phase) -> Duration {
        self.config.settings.phase_timeouts[phase as usize].unwrap_or(self.config.settings.connect_timeout)
    }

    fn time_out_dial(&mut self, after: Duration) {
        self.actions.push(Action::Abandon);
        self.fail_dial(Error::DialTimeout { phase: self.phase, after });
    }

    fn fail_dial(&mut self, cause: Error) {
        self.state = State::Waiting;
        let allowed = if self.was_open() { self.config.settings.redial_attempts } else { self.config.settings.connect_attempts };
        let fatal = cause.is_fatal();
        if (fatal && !self.was_open()) || self.has_used(allowed) {
            let end = if fatal { cause.clone() } else { self.exhausted(allowed, &cause) };
            self.emit(Event::DialFailed { attempt: self.attempt, cause, redial_in: None });
            return self.finish(Some(end));
        }
        let rung = self.backoff.after_failure();
        let mut delay = if fatal { self.config.settings.max_backoff } else { rung };
        if let Error::Refused(refusal) = &cause {
            delay = delay.max(refusal.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX));
        }
        self.emit(Event::DialFailed { attempt: self.attempt, cause, redial_in: Some(delay) });
        self.redial_in(delay);
    }

    fn lose(&mut self, cause: Error) {
        self.heartbeat.forget();
        if self.now.saturating_duration_since(self.opened) >= self.config.settings.stable_after {
            self.attempt = 0;
            self.backoff.reset();
        }
        let is_wished = matches!(cause, Error::Replaced);
        if is_wished {
            // What the program wishes for uses up no redials; the ladder stays where it is.
            self.attempt = 0;
        }
        if self.has_used(self.config.settings.redial_attempts) && !is_wished {
            let end = self.exhausted(self.config.settings.redial_attempts, &cause);
            self.emit(Event::Lost { cause, redial_in: None });
            return self.finish(Some(end));
        }
        let delay = if is_wished { Duration::ZERO } else { self.backoff.after_loss() };
        self.emit(Event::Lost { cause, redial_in: Some(delay) });
        self.redial_in(delay);
    }

    fn redial_in(&mut self, delay: Duration) {
        if delay.is_zero() {
            return self.dial();
        }
        self.state = State::Waiting;
        self.timers.clear();
        self.timers.set(Timer::Redial, self.now + delay);
    }

    /// Whether no dial is left of those allowed; the largest number means no limit.
    fn has_used(&self, allowed: u32) -> bool {
        allowed != u32::MAX && self.attempt >= allowed
    }

    /// Why the session ends when no attempt is left: the cause itself if there was only one.
    fn exhausted(&self, allowed: u32, last: &Error) -> Error {
        match allowed {
            0 | 1 => last.clone(),
            _ => Error::Exhausted { attempts: self.attempt, last: Arc::new(last.clone()) },
        }
    }

    fn finish(&mut self, cause: Option<Error>) {
        if self.state == State::Connecting {
            self.actions.push(Action::Abandon);
        }
        self.state = State::Closed;
        self.timers.clear();
        self.heartbeat.forget();
        self.wishes = Wishes::default();
        self.end = Some(cause.clone());
        self.emit(Event::Closed { cause });
    }

    fn ping(&mut self, now: Instant) {
        let Some(interval) = self.config.settings.heartbeat_interval else { return };
        self.timers.set(Timer::Ping, now + interval);
        let payload = self.heartbeat.ping(now, self.blocked);
        self.actions.push(Action::Ping(payload));
        if !self.timers.is_set(Timer::Patience) {
            self.timers.set(Timer::Patience, now + self.config.settings.patience);
        }
    }

    fn judge(&mut self, now: Instant) {
        match self.heartbeat.judge(now, self.config.settings.patience, self.config.settings.strict, self.heard) {
            Verdict::Silent => {
                let quiet = now.saturating_duration_since(self.heard);
                self.actions.push(Action::Hangup(Error::Silent { quiet }));
            }
            Verdict::Wait(Some(deadline)) => self.timers.set(Timer::Patience, deadline),
            Verdict::Wait(None) => {}
        }
    }

    /// Looks at the data clock when its timer fires and not with every message.
    fn check_data(&mut self, now: Instant, limit: Duration) {
        let quiet = now.saturating_duration_since(self.heard_data);
        if quiet >= limit {
            self.actions.push(Action::Hangup(Error::DataSilent { quiet }));
        } else {
            self.timers.set(Timer::DataSilence, self.heard_data + limit);
        }
    }

    fn start_clocks(&mut self, now: Instant) {
        self.heard = now;
        self.heard_data = now;
        if let Some(limit) = self.config.settings.data_silence {
            self.timers.set(Timer::DataSilence, now + limit);
        }
    }

    fn emit(&mut self, event: Event) {
        self.actions.push(Action::Emit(event));
    }

    fn clamp(&mut self, now: Instant) -> Instant {
        self.now = self.now.max(now);
        self.now
    }
}
