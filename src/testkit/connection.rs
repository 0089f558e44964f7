//! One connection of the server: what its script makes of what the client sends.

use std::borrow::Cow;
use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Instant;

use mio::event::Event;
use tungstenite::handshake::derive_accept_key;
use tungstenite::http::StatusCode;

use super::engine::{Shared, Timer, Timers, later};
use super::frame::{self, BINARY, CLOSE, CONTINUATION, Header, PING, PONG, TEXT};
use super::peer::Command;
use super::playback::{Playback, Player, Step};
use super::script::{Answer, Conduct, End, Pongs, Script};
use super::wire::{Wire, clear};
use super::{Captured, ClientMessage, Peer, Request};

pub(super) struct Connection {
    id: u64,
    wire: Wire,
    script: Arc<Script>,
    stage: Stage,
    /// The beginning of a request or frame whose rest has not come.
    pending: Vec<u8>,
    /// Opcode and payload so far of a fragmented message.
    fragments: Option<(u8, Vec<u8>)>,
    conduct: Conduct,
    reads: bool,
    frozen: bool,
    /// The socket may have something to read; edges tell, and only reading it empty settles it.
    readable: bool,
    /// The client will send nothing more: what is there is read, whatever the script says.
    hung_up: bool,
    close_sent: bool,
    close_received: bool,
    /// Whether a further turn is already due.
    again: bool,
    flush_timer: Option<Instant>,
    player: Option<Player>,
    verdict: Verdict,
}

enum Stage {
    /// The upgrade request is not complete.
    Request,
    /// Upgraded.
    Open(Peer),
    /// Header lines are being sent, for ever.
    Endless,
    /// Whatever comes is thrown away.
    Discard,
}

/// What becomes of a connection after its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Drop,
    Keep,
    Reset,
}

/// What a connection needs of the server's thread during its turn.
pub(super) struct Turn<'a> {
    pub(super) now: Instant,
    pub(super) shared: &'a Arc<Shared>,
    pub(super) timers: &'a mut Timers,
    /// Connections that have more to do before the thread may sleep.
    pub(super) again: &'a mut Vec<u64>,
    /// Where TLS decrypts to.
    pub(super) plain: &'a mut [u8],
}

impl Connection {
    pub(super) fn new(id: u64, wire: Wire, script: Arc<Script>) -> Self {
        let mute = matches!(script.answer, Answer::Mute | Answer::MuteAfterTls);
        Self {
            id,
            wire,
            stage: if mute { Stage::Discard } else { Stage::Request },
            pending: Vec::new(),
            fragments: None,
            conduct: script.conduct,
            reads: !matches!(script.answer, Answer::Mute),
            script,
            frozen: false,
            readable: false,
            hung_up: false,
            close_sent: false,
            close_received: false,
            again: false,
            flush_timer: None,
            player: None,
            verdict: Verdict::Keep,
        }
    }

    /// Starts the script's timers if there will never be an answer to start them.
    pub(super) fn start_mute_timers(&self, now: Instant, timers: &mut Timers) {
        if let Stage::Discard = self.stage {
            self.start_timers(now, timers);
        }
    }

    pub(super) fn peer(&self) -> Option<&Peer> {
        match &self.stage {
            Stage::Open(peer) => Some(peer),
            Stage::Request | Stage::Endless | Stage::Discard => None,
        }
    }

    pub(super) fn into_wire(self) -> Wire {
        self.wire
    }

    pub(super) fn handle_again(&mut self) {
        self.again = false;
    }

    pub(super) fn handle_event(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.hung_up |= event.is_read_closed() || event.is_error();
    }

    pub(super) fn handle_timer(&mut self, timer: Timer) {
        match timer {
            Timer::End(End::Close(code, reason)) => self.send_close(&frame::close_payload(code, &reason)),
            Timer::End(End::HangUp) => self.wire.finish(false),
            Timer::End(End::Reset) => self.verdict = Verdict::Reset,
            Timer::Flush => self.flush_timer = None,
            Timer::Play => {
                if let Some(player) = &mut self.player {
                    player.handle_timeout();
                }
            }
            Timer::Pong(payload) => self.wire.queue(|out| frame::encode(out, PONG, &payload)),
        }
    }

    /// Does what there is to do: the peer's commands, a few reads, what is to be written.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>, scratch: &mut [u8]) -> Verdict {
        self.run_commands();
        self.play(turn);
        self.flush(turn);
        for _ in 0..READS_PER_TURN {
            if !self.can_read() {
                break;
            }
            if let Err(error) = self.read(turn, scratch) {
                // A reset is the client's right; anything else about the stream comes from TLS.
                if error.kind() == io::ErrorKind::InvalidData {
                    turn.shared.note_violation(self.id, &error);
                }
                self.verdict = self.verdict.or(Verdict::Drop);
            }
            self.flush(turn);
        }
        if self.wire.unsent() > UNSENT_MAX {
            turn.shared.note_violation(self.id, "the client leaves more than 64 MiB unread");
            self.verdict = Verdict::Reset;
        }
        if (self.can_read() || self.is_endless() || self.can_play()) && !mem::replace(&mut self.again, true) {
            turn.again.push(self.id);
        }
        self.verdict
    }

    fn can_read(&self) -> bool {
        // A client that does not read its echoes finds its own socket full, as with any real server.
        let willing = self.reads && !self.frozen && self.wire.unsent() < UNSENT_PAUSE;
        self.verdict == Verdict::Keep && self.readable && (willing || self.hung_up)
    }

    fn read(&mut self, turn: &mut Turn<'_>, scratch: &mut [u8]) -> io::Result<()> {
        let Some(size) = self.wire.receive(scratch)? else {
            self.readable = false;
            if self.hung_up {
                self.verdict = self.verdict.or(Verdict::Drop);
            }
            return Ok(());
        };
        if size == 0 {
            self.verdict = self.verdict.or(Verdict::Drop);
            return Ok(());
        }
        // epoll reports an edge for whatever comes after a short read; the others want to see the refusal.
        if size < scratch.len() && !self.hung_up && cfg!(target_os = "linux") {
            self.readable = false;
        }
        if self.wire.tls().is_none() {
            self.handle_bytes(turn, &mut scratch[..size]);
            return Ok(());
        }
        let mut sealed = &scratch[..size];
        while !sealed.is_empty() {
            self.wire.decrypt(&mut sealed)?;
            // Decrypted bytes are taken out after each step, because rustls keeps few of them.
            let plain = mem::take(&mut turn.plain);
            while let Some(size) = self.wire.receive_plain(plain)? {
                self.handle_bytes(turn, &mut plain[..size]);
            }
            turn.plain = plain;
        }
        Ok(())
    }

    fn handle_bytes(&mut self, turn: &mut Turn<'_>, bytes: &mut [u8]) {
        if self.pending.is_empty() {
            let used = self.consume(turn, bytes);
            self.pending.extend_from_slice(&bytes[used..]);
        } else {
            let mut pending = mem::take(&mut self.pending);
            pending.extend_from_slice(bytes);
            let used = self.consume(turn, &mut pending);
            if used == pending.len() {
                clear(&mut pending);
            } else {
                pending.drain(..used);
            }
            self.pending = pending;
        }
    }

    /// Handles what is complete and returns how much that was.
    fn consume(&mut self, turn: &mut Turn<'_>, bytes: &mut [u8]) -> usize {
        let mut used = 0;
        if let Stage::Request = self.stage {
            used = self.handle_request(turn, bytes);
        }
        while let Stage::Open(_) = self.stage {
            let rest = &mut bytes[used..];
            let Some(header) = Header::parse(rest) else {
                return used;
            };
            let gathered = self.fragments.as_ref().map_or(0, |(_, payload)| payload.len() as u64);
            if gathered.saturating_add(header.length) > MESSAGE_MAX {
                turn.shared.note_violation(self.id, "a message of more than 64 MiB");
                self.verdict = Verdict::Reset;
                break;
            }
            let end = header.size + header.length as usize;
            let Some(payload) = rest.get_mut(header.size..end) else {
                return used;
            };
            self.handle_frame(turn, &header, payload);
            used += end;
        }
        match self.stage {
            Stage::Request => used,
            Stage::Open(_) | Stage::Endless | Stage::Discard => bytes.len(),
        }
    }

    fn handle_request(&mut self, turn: &mut Turn<'_>, bytes: &[u8]) -> usize {
        let (request, size) = match Request::parse(bytes, self.wire.tls()) {
            Ok(Some(parsed)) => parsed,
            Ok(None) if bytes.len() < REQUEST_MAX => return 0,
            Ok(None) => return self.refuse_request(turn, "a request head of more than 64 KiB"),
            Err(error) => return self.refuse_request(turn, &format!("not an upgrade request: {error}")),
        };
        for violation in request.violations() {
            turn.shared.note_violation(self.id, violation);
        }
        turn.shared.push_request(request.clone());
        let script = Arc::clone(&self.script);
        match &script.answer {
            Answer::Upgrade => match request.header("sec-websocket-key").map(str::to_owned) {
                Some(key) => self.upgrade(turn, &key, request),
                None => self.answer_status(400, "no websocket key"),
            },
            Answer::Status(code) => self.answer_status(*code, &script.body),
            Answer::Raw(bytes) => {
                self.wire.queue(|out| out.extend([bytes.as_slice(), &script.glue].concat()));
                self.stage = Stage::Discard;
            }
            Answer::EndlessHeaders => {
                self.wire.queue(|out| out.extend(b"HTTP/1.1 101 Switching Protocols\r\n"));
                self.stage = Stage::Endless;
            }
            // These never get as far as a request.
            Answer::Mute | Answer::MuteAfterTls | Answer::Reset => {}
        }
        self.start_timers(turn.now, turn.timers);
        size
    }

    fn refuse_request(&mut self, turn: &mut Turn<'_>, violation: &str) -> usize {
        turn.shared.note_violation(self.id, violation);
        self.answer_status(400, violation);
        0
    }

    fn answer_status(&mut self, code: u16, body: &str) {
        let reason = StatusCode::from_u16(code).ok().and_then(|status| status.canonical_reason());
        let status = format!("{code} {}", reason.unwrap_or("Unknown"));
        let usual = [("Content-Length", body.len().to_string()), ("Connection", "close".to_owned())];
        let head = self.script.head(&status, &usual);
        self.wire.queue(|out| out.extend([head.as_bytes(), body.as_bytes(), &self.script.glue].concat()));
        self.wire.finish(true);
        self.stage = Stage::Discard;
    }

    fn upgrade(&mut self, turn: &mut Turn<'_>, key: &str, request: Request) {
        // Before the 101 is queued: a test whose client has connected finds its peer.
        let peer = Peer::new(self.id, request, Arc::clone(turn.shared));
        turn.shared.push_peer(&peer);
        self.stage = Stage::Open(peer.clone());
        self.reads = self.script.reads;

        let accept = self.script.accept_key.clone().unwrap_or_else(|| derive_accept_key(key.as_bytes()));
        let usual = [("Upgrade", "websocket".to_owned()), ("Connection", "Upgrade".to_owned()), ("Sec-WebSocket-Accept", accept)];
        let head = self.script.head("101 Switching Protocols", &usual);
        self.wire.queue(|out| out.extend([head.as_bytes(), &self.script.glue].concat()));
        if let Some(run) = &self.script.on_open {
            guard(turn, self.id, || run(&peer));
        }
        self.run_commands();
        self.player = self.script.playback.as_ref().map(Playback::start);
    }

    fn start_timers(&self, now: Instant, timers: &mut Timers) {
        for (after, end) in &self.script.ends {
            timers.push(later(now, *after), self.id, Timer::End(end.clone()));
        }
    }

    fn handle_frame(&mut self, turn: &mut Turn<'_>, header: &Header, payload: &mut [u8]) {
        let control = header.opcode >= CLOSE;
        let checks = [
            (header.mask.is_some(), "an unmasked frame"),
            (header.rsv == 0, "a frame with reserved bits"),
            (header.minimal, "a frame whose length took more bytes than it needs"),
            (matches!(header.opcode, CONTINUATION..=BINARY | CLOSE..=PONG), "a frame of an unknown opcode"),
            (!control || header.fin, "a fragmented control frame"),
            (!control || header.length <= 125, "a control frame of more than 125 bytes"),
            (!self.close_received, "a frame after the close frame"),
        ];
        for (_, violation) in checks.iter().filter(|(kept, _)| !kept) {
            turn.shared.note_violation(self.id, violation);
        }
        if let Some(key) = header.mask {
            frame::unmask(payload, key);
        }
        match header.opcode {
            CONTINUATION => self.handle_continuation(turn, header.fin, payload),
            TEXT | BINARY => {
                if self.fragments.take().is_some() {
                    turn.shared.note_violation(self.id, "a new message inside a fragmented one");
                }
                if header.fin {
                    self.handle_message(turn, header.opcode, payload);
                } else {
                    self.fragments = Some((header.opcode, payload.to_vec()));
                }
            }
            CLOSE => self.handle_close(turn, payload),
            PING => {
                self.capture(turn, || ClientMessage::Ping(payload.to_vec()));
                match self.script.pongs {
                    _ if self.conduct == Conduct::Silent => {}
                    Pongs::AtOnce => self.wire.queue(|out| frame::encode(out, PONG, payload)),
                    Pongs::Later(delay) => {
                        turn.timers.push(later(turn.now, delay), self.id, Timer::Pong(payload.to_vec()));
                    }
                    Pongs::Never => {}
                }
            }
            PONG => self.capture(turn, || ClientMessage::Pong(payload.to_vec())),
            _ => {}
        }
    }

    fn handle_continuation(&mut self, turn: &mut Turn<'_>, fin: bool, payload: &[u8]) {
        let Some((opcode, mut message)) = self.fragments.take() else {
            turn.shared.note_violation(self.id, "a continuation of nothing");
            return;
        };
        message.extend_from_slice(payload);
        if fin {
            self.handle_message(turn, opcode, &message);
        } else {
            self.fragments = Some((opcode, message));
        }
    }

    fn handle_message(&mut self, turn: &mut Turn<'_>, opcode: u8, payload: &[u8]) {
        let text = if opcode == TEXT { String::from_utf8_lossy(payload) } else { "".into() };
        if opcode == TEXT && matches!(text, Cow::Owned(_)) {
            turn.shared.note_violation(self.id, "a text that is not UTF-8");
        }
        self.capture(turn, || match opcode {
            TEXT => ClientMessage::Text(text.to_string()),
            _ => ClientMessage::Binary(payload.to_vec()),
        });
        if let Some(player) = &mut self.player {
            player.handle_message();
        }
        if self.conduct == Conduct::Silent {
            return;
        }
        match (opcode, &self.stage, &self.script.on_text, &self.script.on_binary) {
            (TEXT, Stage::Open(peer), Some(run), _) => guard(turn, self.id, || run(peer, &text)),
            (BINARY, Stage::Open(peer), _, Some(run)) => guard(turn, self.id, || run(peer, payload)),
            _ if self.conduct == Conduct::Echo => return self.wire.queue(|out| frame::encode(out, opcode, payload)),
            _ => return,
        }
        self.run_commands();
    }

    fn handle_close(&mut self, turn: &mut Turn<'_>, payload: &[u8]) {
        self.close_received = true;
        let (code, reason) = match payload.split_first_chunk() {
            Some((code, reason)) => (u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned()),
            None => (1005, String::new()),
        };
        let sendable = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) || payload.is_empty();
        if !sendable {
            turn.shared.note_violation(self.id, "a close frame without a code that may be sent");
        }
        if let Some(peer) = self.peer() {
            peer.note_close(code, reason.clone());
        }
        self.capture(turn, || ClientMessage::Close { code, reason });
        if self.conduct == Conduct::Silent || !self.script.answers_close {
            return;
        }
        if !self.close_sent {
            self.send_close(&payload[..payload.len().min(2)]);
        }
        // The server is the one to end the stream (RFC 6455 §7.1.1).
        self.wire.finish(true);
    }

    fn send_close(&mut self, payload: &[u8]) {
        self.close_sent = true;
        self.wire.queue(|out| frame::encode(out, CLOSE, payload));
    }

    fn capture(&self, turn: &Turn<'_>, message: impl FnOnce() -> ClientMessage) {
        if turn.shared.log.is_on() {
            turn.shared.log.push(Captured { peer: self.id, at: turn.now, message: message() });
        }
    }

    /// Carries out what the peer's holders asked for, in their order.
    fn run_commands(&mut self) {
        let commands = self.peer().map(Peer::take_commands).unwrap_or_default();
        for command in commands {
            match command {
                Command::Close(payload) => self.send_close(&payload),
                Command::Freeze(on) => self.frozen = on,
                Command::HangUp => self.wire.finish(false),
                Command::Read(on) => self.reads = on,
                Command::Reset => self.verdict = Verdict::Reset,
                Command::Silence(true) => self.conduct = Conduct::Silent,
                Command::Silence(false) => self.conduct = self.script.conduct.spoken(),
                Command::Write(bytes) => self.wire.queue(|out| out.extend(bytes)),
            }
        }
    }

    /// Queues what the playback has, as far as the client takes it.
    fn play(&mut self, turn: &mut Turn<'_>) {
        while self.can_play()
            && let Some(player) = &mut self.player
        {
            match player.poll(turn.now) {
                Step::Send(opcode, payload) => self.wire.queue(|out| frame::encode(out, opcode, &payload)),
                Step::Close(payload) => self.send_close(&payload),
                Step::HangUp => self.wire.finish(true),
                Step::Until(due) => turn.timers.push(due, self.id, Timer::Play),
                Step::Nothing => {}
            }
        }
    }

    fn can_play(&self) -> bool {
        let is_ready = self.player.as_ref().is_some_and(Player::is_ready);
        is_ready && self.verdict == Verdict::Keep && !self.frozen && self.wire.unsent() < PLAY_AHEAD
    }

    fn flush(&mut self, turn: &mut Turn<'_>) {
        if self.frozen || self.verdict == Verdict::Reset {
            return;
        }
        if self.is_endless() {
            self.wire.queue(|out| out.extend(ENDLESS_LINE.repeat(ENDLESS_CHUNK / ENDLESS_LINE.len() + 1)));
        }
        if self.wire.flush(turn.now).is_err() {
            // The client is gone; what it left behind is still read.
            self.wire.discard();
            self.readable = true;
            self.hung_up = true;
        }
        let next = self.wire.flush_next();
        if let Some(at) = next.filter(|at| self.flush_timer.is_none_or(|timer| *at < timer)) {
            self.flush_timer = Some(at);
            turn.timers.push(at, self.id, Timer::Flush);
        }
    }

    /// Whether more header lines are wanted, of which there are as many as the client takes.
    fn is_endless(&self) -> bool {
        matches!(self.stage, Stage::Endless) && !self.frozen && self.wire.unsent() < ENDLESS_CHUNK
    }
}

impl Verdict {
    /// The harsher of two verdicts.
    fn or(self, other: Self) -> Self {
        if self == Self::Keep { other } else { self }
    }
}

/// Runs a script's closure, whose panic is the test's mistake and not the end of the server.
fn guard(turn: &Turn<'_>, id: u64, run: impl FnOnce()) {
    if panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
        turn.shared.note_violation(id, "the script's closure panicked");
    }
}

/// Reads of one connection before the others get their turn.
const READS_PER_TURN: usize = 8;
const REQUEST_MAX: usize = 64 * 1024;
const MESSAGE_MAX: u64 = 64 * 1024 * 1024;
/// Unsent bytes at which no more is read, and at which the connection is given up.
const UNSENT_PAUSE: usize = 1024 * 1024;
const UNSENT_MAX: usize = 64 * 1024 * 1024;
/// Unsent bytes at which a playback waits for the client.
const PLAY_AHEAD: usize = 64 * 1024;
const ENDLESS_CHUNK: usize = 16 * 1024;
const ENDLESS_LINE: &[u8] = b"X-Endless: and so on and so on and so on\r\n";
