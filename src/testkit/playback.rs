//! A recorded connection as what a server does.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::engine::later;
use super::frame::{self, BINARY, PING, TEXT};
use crate::error::Error;
use crate::event::Event;
use crate::recorder::{Content, Direction, Entry};
use crate::recording::{Clock, Entries, Lives, Recording, Speed, to_change};

/// Plays one recorded connection, for [`Script::playback`](super::Script::playback): each client that connects gets the next of its wires,
/// message by message, so that a whole program runs against a recorded day.
///
/// Of a wire it sends what came in: texts, binary messages, pings, and a Close with its code; a wire that was lost without one is hung up.
/// Before what came in after an outgoing message it waits until the client has sent one, too, so that a reply does not outrun its request.
/// Pongs are not played: the script answers the client's own pings.
///
/// It counts the client's messages, whatever they say and however early they come. One that was not recorded counts for the next that was,
/// a heartbeat of the dialect's for an order, and then a reply may come before its request. A heartbeat that was recorded, on the other
/// hand, holds up what follows it until the client's own timer has sent one, even at [`Speed::Unpaced`]. Where that matters,
/// [filter](Recording::filter) heartbeats out of the recording, and play it to a client whose dialect sends none.
///
/// One client at a time: with the next that connects, the wire before is over, and what was left of it is not sent. After the last wire,
/// connections are upgraded and get nothing. Of a recording of several connections, that of the first entry is played; a
/// [filter](Recording::filter) chooses another.
///
/// What came in masked cannot be sent; it is passed over and [counted](PlaybackStatus::masked). A recorder masks whatever a dialect's login
/// asks and what answers it, so a client that logs in needs an answer of the script's, by [`Script::on_text`](super::Script::on_text); it
/// leaves before what was recorded next.
///
/// ```no_run
/// use std::time::Duration;
/// use zen_websocket::testkit::{MockServer, Playback, Script};
/// use zen_websocket::{Config, Recording, Speed, connect};
///
/// let playback = Playback::new(&Recording::open("feed.jsonl")?, Speed::Unpaced);
/// let exchange = MockServer::builder().script(Script::new().playback(&playback)).start()?;
/// let (client, inbox) = connect(Config::new(exchange.url()))?;
/// // … the client runs as on that day …
/// assert!(playback.wait_end(Duration::from_secs(60)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
#[derive(Clone)]
pub struct Playback(Arc<Stage>);

struct Stage {
    reel: Mutex<Reel>,
    ended: Condvar,
}

/// How far a [`Playback`] has come.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PlaybackStatus {
    /// Wires that were begun.
    pub wires: u64,
    /// Frames that were sent.
    pub sent: u64,
    /// Incoming frames that could not be sent, because their content is not in the recording.
    pub masked: u64,
    /// Incoming messages and pings that were not sent, because the client had gone.
    pub unsent: u64,
    /// Entries that the recorder could not keep up with.
    pub missing: u64,
    /// Whether nothing is left to send, or the recording cannot be read on.
    pub is_over: bool,
    /// Why it cannot be.
    pub failure: Option<Error>,
}

impl Playback {
    /// The connection of the recording's first entry, from its first wire on.
    ///
    /// # Panics
    ///
    /// If the speed is not a number above zero.
    pub fn new(recording: &Recording, speed: Speed) -> Self {
        speed.validate();
        let reel = Reel {
            entries: recording.entries(),
            speed,
            waits: true,
            clock: Clock::default(),
            lives: Lives::default(),
            connection: None,
            next: None,
            status: PlaybackStatus::default(),
        };
        Self(Arc::new(Stage { reel: Mutex::new(reel), ended: Condvar::new() }))
    }

    /// The same that does not wait for what the client sends.
    pub fn without_waiting(self) -> Self {
        self.0.reel.lock().waits = false;
        self
    }

    /// How far it has come.
    pub fn status(&self) -> PlaybackStatus {
        self.0.reel.lock().status.clone()
    }

    /// Waits until nothing is left to send; `false` if it was not so by then, or if the recording cannot be read on.
    pub fn wait_end(&self, timeout: Duration) -> bool {
        let deadline = later(Instant::now(), timeout);
        let mut reel = self.0.reel.lock();
        while !reel.status.is_over {
            if self.0.ended.wait_until(&mut reel, deadline).timed_out() {
                break;
            }
        }
        reel.status.is_over && reel.status.failure.is_none()
    }

    /// Begins the next wire.
    pub(super) fn start(&self) -> Player {
        let mut reel = self.0.reel.lock();
        let pause = if reel.start_wire() { Pause::None } else { Pause::Over };
        let wire = reel.status.wires;
        self.0.tell_end(&reel);
        drop(reel);
        Player { stage: self.0.clone(), wire, began: None, from: None, heard: 0, asked: 0, is_closing: false, pause }
    }
}

impl fmt::Debug for Playback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Playback").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Stage {
    fn tell_end(&self, reel: &Reel) {
        if reel.status.is_over {
            self.ended.notify_all();
        }
    }
}

/// One connection's part of a playback.
pub(super) struct Player {
    stage: Arc<Stage>,
    /// The number of the wire that it plays; once another has begun, this one is over.
    wire: u64,
    /// When the time began to run that is waited for.
    began: Option<Instant>,
    /// What was due then.
    from: Option<Duration>,
    /// Messages of the client.
    heard: u64,
    /// Those of the recorded client that have been passed.
    asked: u64,
    /// The client that was recorded has sent its Close.
    is_closing: bool,
    pause: Pause,
}

/// What a player waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    None,
    /// The next frame is not due.
    Time,
    /// A message of the client's.
    Client,
    Over,
}

/// What a player has for its connection.
pub(super) enum Step {
    /// A frame of this opcode.
    Send(u8, Vec<u8>),
    /// A Close frame of this payload.
    Close(Vec<u8>),
    HangUp,
    /// Nothing until then.
    Until(Instant),
    /// Nothing until something happens.
    Nothing,
}

impl Player {
    /// Whether `poll` may have something.
    pub(super) fn is_ready(&self) -> bool {
        self.pause == Pause::None
    }

    /// The time has come that a step named.
    pub(super) fn handle_timeout(&mut self) {
        self.end_pause(Pause::Time);
    }

    /// The client has sent a message.
    pub(super) fn handle_message(&mut self) {
        self.heard += 1;
        self.end_pause(Pause::Client);
    }

    fn end_pause(&mut self, pause: Pause) {
        if self.pause == pause {
            self.pause = Pause::None;
        }
    }

    pub(super) fn poll(&mut self, now: Instant) -> Step {
        let stage = self.stage.clone();
        let mut reel = stage.reel.lock();
        let step = self.next(now, &mut reel);
        if self.pause == Pause::Over && reel.status.wires == self.wire {
            // What tells of the end and of dials is read at once, to see whether anything is left.
            reel.seek_wire();
        }
        stage.tell_end(&reel);
        step
    }

    fn next(&mut self, now: Instant, reel: &mut Reel) -> Step {
        if reel.status.wires != self.wire {
            self.pause = Pause::Over;
            return Step::Nothing;
        }
        while let Some(cue) = reel.peek() {
            let acts = self.acts_at(cue);
            if acts && self.asked > self.heard {
                self.pause = Pause::Client;
                self.began = None;
                return Step::Nothing;
            }
            if cue.is_new_wire {
                self.pause = Pause::Over;
                // A recorder that was killed leaves no trace of how the wire ended.
                return if self.is_closing { Step::Nothing } else { Step::HangUp };
            }
            let (position, is_request) = (cue.position, cue.is_request());
            let due = reel.speed.scale(position).filter(|_| acts || is_request);
            if let Some(due) = due {
                let from = *self.from.get_or_insert(due);
                let due = later(*self.began.get_or_insert(now), due.saturating_sub(from));
                if due > now {
                    self.pause = Pause::Time;
                    return Step::Until(due);
                }
            }
            if is_request && reel.waits {
                self.asked += 1;
                if self.asked > self.heard {
                    // What follows is as long after the client's message as it was after the recorded one.
                    (self.began, self.from) = (None, due);
                }
            }
            let entry = reel.take();
            if let Some(step) = entry.and_then(|entry| self.step(entry, &mut reel.status)) {
                return step;
            }
        }
        self.pause = Pause::Over;
        Step::Nothing
    }

    /// Whether the server does something at this cue.
    fn acts_at(&self, cue: &Cue) -> bool {
        match &cue.entry.content {
            _ if cue.is_new_wire => !self.is_closing,
            Content::Text(_) | Content::Binary(_) | Content::Ping(_) => is_sendable(&cue.entry) && !cue.entry.masked,
            Content::Close { .. } => cue.entry.direction == Direction::In && !self.is_closing,
            content @ Content::State(_) => is_loss(content),
            Content::Pong(_) | Content::Missing(_) => false,
        }
    }

    /// What an entry has the server do.
    fn step(&mut self, entry: Entry, status: &mut PlaybackStatus) -> Option<Step> {
        if is_sendable(&entry) && entry.masked {
            status.masked += 1;
            return None;
        }
        let step = match (entry.direction, entry.content) {
            (Direction::In, Content::Text(text)) => Step::Send(TEXT, text.into_bytes()),
            (Direction::In, Content::Binary(bytes)) => Step::Send(BINARY, bytes),
            (Direction::In, Content::Ping(payload)) => Step::Send(PING, payload),
            (Direction::In, Content::Close { code, reason }) if !self.is_closing => {
                self.pause = Pause::Over;
                Step::Close(code.map_or(Vec::new(), |code| frame::close_payload(code, &reason)))
            }
            (Direction::In, content @ Content::State(_)) if is_loss(&content) => {
                self.pause = Pause::Over;
                return Some(Step::HangUp);
            }
            // The client that plays along closes by itself, and is answered.
            (Direction::Out, Content::Close { .. }) => {
                self.is_closing = true;
                return None;
            }
            (Direction::In, Content::Close { .. } | Content::Pong(_) | Content::State(_) | Content::Missing(_))
            | (Direction::Out, _) => return None,
        };
        status.sent += 1;
        Some(step)
    }
}

/// The recording, as far as it has been played.
struct Reel {
    entries: Entries,
    speed: Speed,
    waits: bool,
    clock: Clock,
    lives: Lives,
    /// The recorded number of the connection that is played.
    connection: Option<Option<u64>>,
    next: Option<Cue>,
    status: PlaybackStatus,
}

struct Cue {
    entry: Entry,
    position: Duration,
    is_new_wire: bool,
}

impl Reel {
    fn start_wire(&mut self) -> bool {
        self.seek_wire();
        let Some(cue) = &mut self.next else { return false };
        cue.is_new_wire = false;
        self.status.wires += 1;
        true
    }

    /// Passes over what is left of a wire.
    fn seek_wire(&mut self) {
        while self.peek().is_some_and(|cue| !cue.is_new_wire) {
            let is_unsent = self.take().is_some_and(|entry| is_sendable(&entry));
            self.status.unsent += u64::from(is_unsent);
        }
    }

    fn take(&mut self) -> Option<Entry> {
        self.next.take().map(|cue| cue.entry)
    }

    /// The next entry of the connection; `None` if there is none.
    fn peek(&mut self) -> Option<&Cue> {
        while self.next.is_none() && !self.status.is_over {
            match self.entries.next() {
                Some(Ok(entry)) => self.next = self.cue(entry),
                Some(Err(error)) => {
                    self.status.failure = Some(error);
                    self.status.is_over = true;
                }
                None => self.status.is_over = true,
            }
        }
        self.next.as_ref()
    }

    fn cue(&mut self, entry: Entry) -> Option<Cue> {
        let position = self.clock.advance(&entry);
        if let Content::Missing(count) = entry.content {
            self.status.missing = self.status.missing.saturating_add(count);
        }
        let place = self.lives.place(&entry)?;
        let is_played = *self.connection.get_or_insert(entry.connection) == entry.connection;
        is_played.then_some(Cue { entry, position, is_new_wire: place.is_new_wire })
    }
}

impl Cue {
    /// Whether this is a message that the client sent.
    fn is_request(&self) -> bool {
        self.entry.direction == Direction::Out && matches!(self.entry.content, Content::Text(_) | Content::Binary(_))
    }
}

fn is_loss(content: &Content) -> bool {
    matches!(to_change(content), Some(Event::Lost { .. }))
}

/// Whether this is a message or a ping that came in.
fn is_sendable(entry: &Entry) -> bool {
    entry.direction == Direction::In && matches!(entry.content, Content::Text(_) | Content::Binary(_) | Content::Ping(_))
}
