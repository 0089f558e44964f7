//! What a connection says to its venue on its own account: the login, its refresh, and the subscriptions.
//!
//! A pure state machine that the reactor alone owns: it feeds inputs and carries out what they ask for, in order
//! ([`Dialogue::take_deeds`]). A repeated or early timeout is harmless, and `now` never runs backwards: it is clamped to the latest seen.
//!
//! ```text
//!   Down ── upgraded ──► LoggingIn ── done ──► Open (Never or Due)
//!   LoggingIn ── refused ──► Down
//!   Open (Due) ── its time has come ──► Open (Asked) ── done ──► Open (Never or Due)
//!   Open (Asked) ── refused or not answered ──► Open (Never), and the wire is to be replaced
//!   any ── lost ──► Down
//! ```

#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dialect::{Dialect, Id, Login, LoginStep, Secret};
use crate::error::Error;
use crate::event::{Event, Standing};
use crate::session::subscriptions::Subscriptions;
use crate::ticket::Ticket;

/// The first number of a request of our own. Callers' calls count from 1; both stay exact where a venue reads numbers as doubles.
pub(crate) const NUMBER_FIRST: u64 = 1 << 52;

/// How many steps a login may take; a dialect that goes on sending would never let the wire open.
const STEPS_MAX: usize = 16;

/// The shortest time between a login and its refresh, whatever the venue says of its validity.
const REFRESH_MIN: Duration = Duration::from_secs(1);

/// How many ids of our own requests are remembered, so that late and repeated replies to them are recognised. As many as a large table
/// of channels has when each is unsubscribed by a message of its own.
const SAID_MAX: usize = 16_384;

/// The longest pause a deadline is set for. What venues say of validity can be any number, and an `Instant` must not overflow.
const PAUSE_MAX: Duration = Duration::from_secs(30 * 365 * 86_400);

/// The state of one connection's dialogue with its venue, across its wires.
pub struct Dialogue {
    rules: Rules,
    phase: Phase,
    subscriptions: Subscriptions,
    voice: Voice,
    /// What was reported last.
    live: bool,
    /// Reading is stopped because the inbox is full: no answer can be heard, so nothing is concluded from silence.
    blocked: bool,
    now: Instant,
}

/// The settings of a dialogue.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How long the answer to a request of ours may take, once it is sent.
    pub confirm_timeout: Duration,
    /// How long after its refusal a channel is asked for again.
    pub retry: Duration,
    /// Whether channels outlive the wire they were confirmed on.
    pub restore: bool,
    /// Whether a channel with a hole in its sequence is subscribed anew.
    pub resubscribe_on_gap: bool,
}

/// What a step of a login needs of the world.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// The time of day, since the Unix epoch.
    pub unix: Duration,
    /// A random number.
    pub nonce: u64,
}

/// What a dialogue asks of the reactor. It has no `Debug`: the texts of a login tell secrets.
#[derive(Clone)]
pub enum Deed {
    /// Send a text.
    Say {
        /// The text.
        text: String,
        /// Whether it belongs to a login, and passes what waits; if not, it goes behind everything else that is sent.
        urgent: bool,
        /// Follows it on its way, if a deadline depends on that.
        ticket: Option<Arc<Ticket>>,
    },
    /// The login of a new wire is complete: the user's messages may leave.
    LoggedIn,
    /// The login of a new wire was refused: give it up for this cause.
    LoginFailed(Error),
    /// Drop the wire and report it lost for this cause.
    Hangup(Error),
    /// Note where this channel stands; `None` if it is wanted no more.
    Standing(Arc<str>, Option<Standing>),
    /// Every channel that is wanted is confirmed, or not any more. Said on a change only; a wire that is lost is not live, which goes
    /// without saying.
    Live(bool),
    /// Deliver this event.
    Emit(Event),
}

/// How far the dialogue is on the wire.
enum Phase {
    /// There is no wire, or one whose login was refused.
    Down,
    /// The login of a new wire waits for a reply.
    LoggingIn(Exchange),
    /// The login of the wire is complete.
    Open(Renewal),
}

/// How the refresh of a login stands.
enum Renewal {
    /// None is to come.
    Never,
    /// It begins at this time, with what the login left.
    Due { at: Instant, token: Secret },
    /// It waits for a reply; `held` if it had not left when its time was over.
    Asked { exchange: Exchange, token: Secret, ticket: Arc<Ticket>, deadline: Instant, held: bool },
}

/// A request of a login that waits for its reply.
struct Exchange {
    step: usize,
    id: Id,
}

impl Dialogue {
    /// A dialogue that has no wire yet.
    pub fn new(dialect: Arc<dyn Dialect>, rules: Rules, now: Instant) -> Self {
        Self {
            subscriptions: Subscriptions::new(rules.clone(), now),
            rules,
            phase: Phase::Down,
            voice: Voice {
                dialect,
                number: NUMBER_FIRST,
                said: BTreeMap::new(),
                order: VecDeque::new(),
                has_login: false,
                deeds: Vec::new(),
            },
            live: false,
            blocked: false,
            now,
        }
    }

    /// Whether the login of the wire is complete.
    pub fn is_logged_in(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Whether the login of the wire is complete and every channel that is wanted is confirmed.
    pub fn is_live(&self) -> bool {
        self.is_logged_in() && self.subscriptions.are_confirmed()
    }

    /// Whether a reply with this id is for [`handle_reply`](Self::handle_reply).
    pub fn awaits(&self, id: &Id) -> bool {
        self.voice.has_said(id)
            || self.exchange().is_some_and(|exchange| exchange.id == *id)
            || self.subscriptions.await_reply(id)
    }

    /// Whether a reply to a login may come, be it late or again.
    pub fn has_login(&self) -> bool {
        self.voice.has_login
    }

    /// Whether a reply with this id answers a login, whose secrets it may tell.
    pub fn is_login(&self, id: &Id) -> bool {
        let is_awaited = self.exchange().is_some_and(|exchange| exchange.id == *id);
        is_awaited || self.voice.said.get(id).is_some_and(|is_login| *is_login)
    }

    /// Whether [`handle_data`](Self::handle_data) can have any effect, so that it needs to be called.
    pub fn watches_data(&self) -> bool {
        self.subscriptions.watch_data()
    }

    /// How often channels were asked for anew because a request for them was not answered in time.
    pub fn retries(&self) -> u64 {
        self.subscriptions.retries()
    }

    /// A new wire is up: its login begins.
    pub fn handle_upgraded(&mut self, now: Instant, stamp: Stamp) {
        self.handle_lost(now);
        self.blocked = false;
        self.log_in(stamp, 0, None, None);
        self.report();
    }

    /// The wire is gone, however far its login was. What was wanted when no login had succeeded is wanted still, whatever
    /// [`Rules::restore`] says: that wire had nothing to be restored.
    pub fn handle_lost(&mut self, now: Instant) {
        self.clamp(now);
        let keep = self.rules.restore || !self.is_logged_in();
        self.phase = Phase::Down;
        self.live = false;
        self.voice.forget();
        self.subscriptions.handle_lost(keep, &mut self.voice);
    }

    /// A reply came. Returns whether it answers a request of this dialogue, be it late, and is thereby used up.
    pub fn handle_reply(&mut self, now: Instant, stamp: Stamp, id: &Id, text: &str) -> bool {
        let now = self.clamp(now);
        let answered = self.exchange().filter(|exchange| exchange.id == *id).map(|exchange| exchange.step);
        let ours = if let Some(step) = answered {
            let token = match mem::replace(&mut self.phase, Phase::Down) {
                Phase::Open(Renewal::Asked { token, .. }) => Some(token),
                Phase::Open(_) | Phase::LoggingIn(_) | Phase::Down => None,
            };
            self.log_in(stamp, step + 1, Some(text), token);
            true
        } else {
            self.subscriptions.handle_reply(now, id, text, &mut self.voice) || self.voice.has_said(id)
        };
        self.report();
        ours
    }

    /// A text came that tells of channels without the id of a request.
    pub fn handle_confirmation(&mut self, now: Instant, text: &str) {
        let now = self.clamp(now);
        self.subscriptions.handle_confirmation(now, text, &mut self.voice);
        self.report();
    }

    /// Data of a channel came. Returns the gap in its sequence that lies before it, if there is one.
    pub fn handle_data(&mut self, now: Instant, channel: &str, text: &str) -> Option<Event> {
        let now = self.clamp(now);
        let gap = self.subscriptions.handle_data(now, channel, text, &mut self.voice);
        self.report();
        gap
    }

    /// Reading was stopped because the inbox is full, or resumed; then the time for answers and for data starts anew.
    pub fn handle_blocked(&mut self, now: Instant, blocked: bool) {
        let now = self.clamp(now);
        if self.blocked && !blocked {
            if let Phase::Open(Renewal::Asked { deadline, .. }) = &mut self.phase {
                *deadline = later(now, self.rules.confirm_timeout);
            }
            self.subscriptions.handle_resumed(now);
        }
        self.blocked = blocked;
    }

    /// A subscriber wants these channels as well, each of which may be silent for so long, and with its sequence checked if it is to be.
    /// Said again of a channel, the new terms replace the old.
    pub fn want(&mut self, now: Instant, subscriber: u64, channels: &[Arc<str>], silence: Option<Duration>, sequenced: bool) {
        let now = self.clamp(now);
        self.subscriptions.want(now, subscriber, channels, silence, sequenced, &mut self.voice);
        self.report();
    }

    /// A subscriber wants none of its channels any more.
    pub fn unwant(&mut self, now: Instant, subscriber: u64) {
        let now = self.clamp(now);
        self.subscriptions.unwant(now, subscriber, &mut self.voice);
        self.report();
    }

    /// What was to be said is said, or waits for the rate limit; then the time for its answer begins when it has left.
    pub fn handle_said(&mut self) {
        if let Phase::Open(Renewal::Asked { ticket, held, .. }) = &mut self.phase {
            *held |= !ticket.is_sent();
        }
        self.subscriptions.handle_said();
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant, stamp: Stamp) {
        let now = self.clamp(now);
        // Before a hang-up, behind which nothing counts.
        self.subscriptions.handle_timeout(now, self.blocked, &mut self.voice);
        self.report();
        match &mut self.phase {
            Phase::Open(Renewal::Due { at, token }) if *at <= now => {
                let token = token.clone();
                self.log_in(stamp, 0, None, Some(token));
            }
            Phase::Open(Renewal::Asked { ticket, deadline, held, .. }) if *deadline <= now && !self.blocked => {
                let is_sent = ticket.is_sent();
                if is_sent && !*held {
                    self.replace("the refresh of the login was not answered".into());
                } else {
                    // It waits for the rate limit, or has until a moment ago: the venue has all its time yet.
                    *held = !is_sent;
                    *deadline = later(now, self.rules.confirm_timeout);
                }
            }
            Phase::Open(_) | Phase::LoggingIn(_) | Phase::Down => {}
        }
        self.report();
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let renewal = match self.phase {
            Phase::Open(Renewal::Due { at, .. }) => Some(at),
            Phase::Open(Renewal::Asked { deadline, .. }) if !self.blocked => Some(deadline),
            Phase::Open(_) | Phase::LoggingIn(_) | Phase::Down => None,
        };
        renewal.into_iter().chain(self.subscriptions.next_deadline(self.blocked)).min()
    }

    /// Whether anything is to be done.
    pub fn has_deeds(&self) -> bool {
        !self.voice.deeds.is_empty()
    }

    /// Whether any channel is wanted.
    pub fn has_channels(&self) -> bool {
        self.channels() > 0
    }

    /// How many channels are wanted.
    pub fn channels(&self) -> usize {
        self.subscriptions.len()
    }

    /// Takes what is to be done, in order. Call after every input.
    pub fn take_deeds(&mut self) -> Vec<Deed> {
        mem::take(&mut self.voice.deeds)
    }

    /// Takes one step of a login: of a new wire, or with a token, of a refresh.
    fn log_in(&mut self, stamp: Stamp, step: usize, reply: Option<&str>, token: Option<Secret>) {
        let Stamp { unix, nonce } = stamp;
        let number = self.voice.next_number();
        let login = if step < STEPS_MAX {
            let is_refresh = token.is_some();
            // One that left nothing has left an empty one here.
            let token = token.as_ref().filter(|token| !token.expose().is_empty());
            self.voice.dialect.login(&LoginStep { step, reply, is_refresh, token, number, unix, nonce })
        } else {
            Login::Refused { reason: format!("the login takes more than {STEPS_MAX} steps"), fatal: false }
        };
        match login {
            Login::Send(request) => {
                let exchange = Exchange { step, id: request.id.clone() };
                let ticket = token.is_some().then(Arc::<Ticket>::default);
                self.voice.say(request.text, true, Some(request.id), ticket.clone());
                self.phase = match (token, ticket) {
                    (Some(token), Some(ticket)) => {
                        let deadline = later(self.now, self.rules.confirm_timeout);
                        Phase::Open(Renewal::Asked { exchange, token, ticket, deadline, held: false })
                    }
                    _ => Phase::LoggingIn(exchange),
                };
            }
            Login::Done { refresh_after, token: left } => {
                self.phase = Phase::Open(match refresh_after {
                    Some(pause) => Renewal::Due {
                        at: later(self.now, pause.max(REFRESH_MIN)),
                        token: left.unwrap_or_else(|| Secret::new("")),
                    },
                    None => Renewal::Never,
                });
                if token.is_none() {
                    self.voice.act(Deed::LoggedIn);
                    self.subscriptions.handle_logged_in(self.now, &mut self.voice);
                }
            }
            Login::Refused { reason, .. } if token.is_some() => self.replace(reason.into()),
            Login::Refused { reason, fatal } => {
                self.phase = Phase::Down;
                self.voice.act(Deed::LoginFailed(Error::LoginRefused { reason: reason.into(), fatal }));
            }
        }
    }

    /// Asks for a new wire, since the login of this one ends. It was valid once, so that another login is worth a try.
    fn replace(&mut self, reason: Arc<str>) {
        self.phase = Phase::Open(Renewal::Never);
        self.voice.act(Deed::Hangup(Error::LoginRefused { reason, fatal: false }));
    }

    /// The request of a login that waits for its reply.
    fn exchange(&self) -> Option<&Exchange> {
        match &self.phase {
            Phase::LoggingIn(exchange) | Phase::Open(Renewal::Asked { exchange, .. }) => Some(exchange),
            Phase::Open(Renewal::Never | Renewal::Due { .. }) | Phase::Down => None,
        }
    }

    fn report(&mut self) {
        if self.live != self.is_live() {
            self.live = !self.live;
            self.voice.act(Deed::Live(self.live));
        }
    }

    fn clamp(&mut self, now: Instant) -> Instant {
        self.now = self.now.max(now);
        self.now
    }
}

/// What login and subscriptions share: the language, the numbers of requests, and what is to be done.
pub(crate) struct Voice {
    pub(crate) dialect: Arc<dyn Dialect>,
    /// The next one.
    number: u64,
    /// The ids of what was said on this wire, with whether it was a login, and the order in which they are forgotten.
    said: BTreeMap<Id, bool>,
    order: VecDeque<Id>,
    /// A login was said on this wire.
    has_login: bool,
    deeds: Vec<Deed>,
}

impl Voice {
    /// A number no other request of the connection has.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number - 1
    }

    /// Has a text sent, and remembers the id of its reply.
    pub(crate) fn say(&mut self, text: String, urgent: bool, id: Option<Id>, ticket: Option<Arc<Ticket>>) {
        self.has_login |= urgent;
        if let Some(id) = id {
            // A dialect may use an id again; what was a login stays one.
            if let Some(is_login) = self.said.get_mut(&id) {
                *is_login |= urgent;
                return self.act(Deed::Say { text, urgent, ticket });
            }
            self.said.insert(id.clone(), urgent);
            self.order.push_back(id);
            if self.order.len() > SAID_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.said.remove(&oldest);
            }
        }
        self.act(Deed::Say { text, urgent, ticket });
    }

    /// Has something done.
    pub(crate) fn act(&mut self, deed: Deed) {
        self.deeds.push(deed);
    }

    fn has_said(&self, id: &Id) -> bool {
        self.said.contains_key(id)
    }

    /// The wire is gone, and no reply comes any more.
    fn forget(&mut self) {
        self.said.clear();
        self.order.clear();
        self.has_login = false;
    }
}

/// The time after a pause.
pub(crate) fn later(now: Instant, pause: Duration) -> Instant {
    now + pause.min(PAUSE_MAX)
}
