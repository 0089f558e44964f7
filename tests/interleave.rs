//! Two callers, the kernel and the reactor on one connection, in every order of their critical sections.
//!
//! Each step is one critical section of the library, or one thing the kernel does. A script gives each actor its steps; all interleavings
//! are run from the start, and what then lies on the wires is compared with what the callers were told.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Cursor, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use zen_websocket::internals::{Action, Out, Outgoing, Remains, Session};
use zen_websocket::{Config, Error, Event, Generation, Sent, State};

use self::Step::*;

#[test]
fn frames_queue_up_behind_a_full_kernel() {
    let a = vec![Send, Send, Send];
    let b = vec![Send, Send];
    let kernel = vec![Room(9), Room(40)];
    let reactor = vec![Flush, Flush, End, Lost];
    explore(Script { room: 20, unsent_max: 50, actors: vec![a, b, kernel, reactor] }, 50_000);
}

#[test]
fn sends_across_a_loss_and_a_redial() {
    let a = vec![Look, SendOn, SendOn];
    let b = vec![Send, Send];
    let reactor = vec![End, Lost, Take, Dial, Open, Opened];
    explore(Script { room: 25, unsent_max: 100, actors: vec![a, b, reactor] }, 4_000);
}

#[test]
fn sends_across_two_wires_that_take_little() {
    let a = vec![Look, SendOn, SendOn];
    let b = vec![Send];
    let kernel = vec![Room(20)];
    let reactor = vec![End, Lost, Take, Dial, Open, Opened, Flush];
    explore(Script { room: 10, unsent_max: 40, actors: vec![a, b, kernel, reactor] }, 10_000);
}

#[test]
fn a_wire_that_breaks_under_the_callers() {
    let a = vec![Send, Send];
    let b = vec![Send];
    let kernel = vec![Room(16), Break];
    let reactor = vec![Flush, Notice, Lost, Take, Dial, Open, Opened];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor] }, 10_000);
}

#[test]
fn a_wire_that_takes_a_little_more_before_it_breaks() {
    for more in [1, 6, 7, 16, 22] {
        let a = vec![Send, Send];
        let b = vec![Look, SendOn];
        let kernel = vec![RoomAndBreak(more)];
        let reactor = vec![Flush, Notice, Lost];
        explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor] }, 1_000);
    }
}

#[test]
fn a_close_among_sends() {
    let a = vec![Send, WishClose, Send];
    let b = vec![Send, Send];
    let kernel = vec![Room(60)];
    let reactor = vec![Wishes, Take, Act, Flush, End, Lost];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor] }, 25_000);
}

#[test]
fn a_reconnect_asked_for_by_both_callers() {
    let a = vec![Send, WishReconnect, Send];
    let b = vec![Look, WishReconnect, SendOn];
    let reactor = vec![Wishes, Take, Act, Lost, Take, Dial, Open, Opened];
    explore(Script { room: 20, unsent_max: 100, actors: vec![a, b, reactor] }, 60_000);
}

#[test]
fn a_close_and_a_reconnect_across_a_loss() {
    let a = vec![WishClose, Send];
    let b = vec![WishReconnect, Send];
    let reactor = vec![End, Lost, Take, Dial, Open, Opened, Wishes, Take, Act];
    explore(Script { room: 100, unsent_max: 100, actors: vec![a, b, reactor] }, 4_000);
}

#[test]
fn pings_and_pongs_among_sends() {
    let a = vec![Send, Send];
    let b = vec![Send];
    let kernel = vec![Room(30), Room(30)];
    let reactor = vec![Pong, Ping, Pong, Flush, Close, Pong];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor] }, 10_000);
}

#[test]
fn nothing_that_waits_for_the_kernel_is_forgotten() {
    let a = vec![Send, Post, Send];
    let b = vec![Send, Post];
    let kernel = vec![Room(20), Room(1000)];
    let reactor = vec![Edge, Attend, Attended, Pong];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor] }, 50_000);
}

#[test]
fn a_close_that_waits_for_the_kernel_leaves_in_the_end() {
    let a = vec![Send, Post];
    let b = vec![Send, WishClose];
    let kernel = vec![Room(20), Room(1000)];
    let reactor = vec![Wishes, Take, Act, Edge, Attend, Attended];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor] }, 50_000);
}

#[test]
fn pongs_stay_on_their_wire() {
    let a = vec![Send];
    let b = vec![Send];
    let kernel = vec![Room(20)];
    let reactor = vec![Pong, End, Lost, Take, Dial, Open, Opened, Flush, Pong];
    explore(Script { room: 15, unsent_max: 100, actors: vec![a, b, kernel, reactor] }, 1_000);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    // Callers.
    Send,
    /// Reads the generation, for `SendOn`.
    Look,
    SendOn,
    WishClose,
    WishReconnect,
    /// Tells the reactor of a send that left something to do.
    Post,
    // The kernel.
    /// Takes so many more bytes.
    Room(usize),
    /// Fails once it has taken what it had room for.
    Break,
    RoomAndBreak(usize),
    // The reactor.
    Flush,
    /// Looks at a writable edge.
    Edge,
    /// Looks at a post: first it forgets it, then it acts.
    Attend,
    Attended,
    Ping,
    Pong,
    /// Sends a Close frame of its own accord.
    Close,
    /// Ends the wire, as after the peer's end.
    End,
    /// Ends the wire if a write has failed.
    Notice,
    /// Tells the session that the wire has ended, if it has.
    Lost,
    Wishes,
    /// Takes the session's actions, and does one.
    Take,
    Act,
    /// Dials, once the session asks for it.
    Dial,
    /// A dial has succeeded: first the sending half learns it, then the session.
    Open,
    Opened,
}

struct Script {
    /// What the kernel takes of each wire at first.
    room: usize,
    unsent_max: usize,
    actors: Vec<Vec<Step>>,
}

/// Runs every interleaving of a script; there must be so many at least.
fn explore(script: Script, least: usize) {
    let mut order = Vec::new();
    let mut done = vec![0; script.actors.len()];
    let count = descend(&script, &mut done, &mut order);
    println!("{count} interleavings");
    assert!(count >= least, "only {count} interleavings");
}

fn descend(script: &Script, done: &mut [usize], order: &mut Vec<(usize, Step)>) -> usize {
    let mut count = 0;
    for actor in 0..done.len() {
        let Some(step) = script.actors[actor].get(done[actor]) else { continue };
        done[actor] += 1;
        order.push((actor, *step));
        count += descend(script, done, order);
        order.pop();
        done[actor] -= 1;
    }
    if count == 0 {
        Stage::new(script).run(order);
        count = 1;
    }
    count
}

/// One connection, and what was said about it.
struct Stage {
    out: Out<Socket>,
    unsent_max: usize,
    room: usize,
    session: Session,
    now: Instant,
    wires: Vec<Wire>,
    attempts: Vec<Attempt>,
    looked: [Generation; 2],
    /// The actions the reactor has taken, its dial, and the end it has still to tell the session.
    actions: VecDeque<Action>,
    dialing: bool,
    opening: bool,
    ended: Option<Error>,
    events: Vec<Event>,
    pongs: u8,
    /// How many of them were made before each wire.
    pongs_before: Vec<u8>,
    /// The wire that was open when a caller asked for another.
    unwanted: Option<Generation>,
    /// A caller asked for a close and the reactor has not looked since.
    close_waits: bool,
    /// Of each caller, whether it has still to post; whether somebody has; whether the reactor is about to look.
    owes_post: [bool; 2],
    posted: bool,
    attending: bool,
    /// The reactor knows that something waits for an edge.
    noted: bool,
}

/// A wire and what remained of it.
#[derive(Default)]
struct Wire {
    kernel: Rc<RefCell<Kernel>>,
    messages: usize,
    bytes: usize,
}

/// What a caller sent and was told.
#[derive(Debug)]
struct Attempt {
    caller: usize,
    text: String,
    /// The wire that was up, and the one it was made for.
    current: Generation,
    expected: Option<Generation>,
    outcome: Result<Sent, Error>,
}

#[derive(Default)]
struct Kernel {
    taken: Vec<u8>,
    room: usize,
    broken: bool,
    /// A write found no room; the next room is an edge.
    full: bool,
    edge: bool,
}

/// The callers' end of a kernel that takes a few bytes at a time.
struct Socket(Rc<RefCell<Kernel>>);

const CHUNK: usize = 13;

const PONG: OpCode = OpCode::Control(Control::Pong);

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kernel = self.0.borrow_mut();
        let count = bytes.len().min(kernel.room).min(CHUNK);
        if count == 0 {
            kernel.full = true;
            let error = if kernel.broken { io::ErrorKind::BrokenPipe } else { io::ErrorKind::WouldBlock };
            return Err(error.into());
        }
        kernel.room -= count;
        kernel.taken.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stage {
    fn new(script: &Script) -> Self {
        let now = Instant::now();
        let mut stage = Self {
            out: Out::new(script.unsent_max, None, Instant::now),
            unsent_max: script.unsent_max,
            room: script.room,
            session: Session::new(Arc::new(Config::new("ws://peer").jitter(0.0)), 0, now),
            now,
            wires: Vec::new(),
            attempts: Vec::new(),
            looked: Default::default(),
            actions: VecDeque::new(),
            dialing: false,
            opening: false,
            ended: None,
            events: Vec::new(),
            pongs: 0,
            pongs_before: Vec::new(),
            unwanted: None,
            close_waits: false,
            owes_post: [false; 2],
            posted: false,
            attending: false,
            noted: false,
        };
        stage.session.handle_begin(now);
        for step in [Take, Dial, Open, Opened, Take] {
            stage.step(0, step);
        }
        stage
    }

    fn run(mut self, order: &[(usize, Step)]) {
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (actor, step) in order {
                self.step(*actor, *step);
            }
            if order.iter().any(|(_, step)| *step == Attend) {
                // The last turn of the reactor; all posts and edges have come.
                let last = [(0, Post), (1, Post), (0, Attended), (0, Edge), (0, Attend), (0, Attended), (0, Edge)];
                last.into_iter().for_each(|(actor, step)| self.step(actor, step));
                assert_eq!(self.out.unsent(), 0, "left behind");
                let frames = decode(&self.kernel().borrow().taken);
                if self.session.state() == State::Closing && !self.close_waits && self.actions.is_empty() {
                    assert_eq!(frames.last().unwrap().0, OpCode::Control(Control::Close));
                } else {
                    assert_eq!(frames.iter().any(|frame| frame.0 == PONG), self.pongs > 0);
                }
            }
            for step in [End, Lost, Take] {
                self.step(0, step);
            }
            self.check();
        }));
        if let Err(cause) = checked {
            println!("in this order: {order:?}");
            std::panic::resume_unwind(cause);
        }
    }

    fn step(&mut self, actor: usize, step: Step) {
        let generation = self.out.generation();
        match step {
            Send => self.send(actor, None),
            Look => self.looked[actor] = self.session.generation(),
            SendOn => self.send(actor, Some(self.looked[actor])),
            WishClose => {
                self.session.wish_close(1000, "enough".into());
                self.close_waits = true;
            }
            WishReconnect => {
                if self.session.state() == State::Open {
                    self.unwanted = Some(self.session.generation());
                }
                self.session.wish_reconnect();
            }
            Post => self.posted |= std::mem::take(&mut self.owes_post[actor]),
            Room(bytes) => {
                let mut kernel = self.kernel().borrow_mut();
                kernel.room += bytes;
                kernel.edge |= std::mem::take(&mut kernel.full);
            }
            Break => self.kernel().borrow_mut().broken = true,
            RoomAndBreak(bytes) => {
                self.step(actor, Room(bytes));
                self.step(actor, Break);
            }
            Flush => self.reactor_wrote(|out| out.flush().map(|_| ())),
            Edge => {
                if std::mem::take(&mut self.kernel().borrow_mut().edge) && self.noted {
                    self.flush();
                }
            }
            Attend => self.attending |= std::mem::take(&mut self.posted),
            Attended => {
                if std::mem::take(&mut self.attending) {
                    self.flush();
                }
            }
            Ping => self.reactor_wrote(|out| out.ping(b"ping").map(|_| ())),
            Pong => {
                self.pongs += 2;
                let (first, second) = ([self.pongs - 1], [self.pongs]);
                self.reactor_wrote(|out| out.pong([&first[..], &second[..]].into_iter()));
            }
            Close => self.reactor_wrote(|out| out.close(Some(1001), "")),
            End => self.end(Error::Disconnected),
            Notice => {
                if let Some(cause) = self.out.failure() {
                    self.end(cause);
                }
            }
            Lost => {
                if let Some(cause) = self.ended.take() {
                    self.session.handle_lost(self.now, cause);
                }
            }
            Wishes => {
                self.session.handle_wishes(self.now);
                self.close_waits = false;
            }
            Take => {
                for action in self.session.take_actions() {
                    match action {
                        Action::Emit(event) => self.events.push(event),
                        Action::Dial { .. } => self.dialing = true,
                        Action::Abandon => self.dialing = false,
                        action => self.actions.push_back(action),
                    }
                }
            }
            Act => match self.actions.pop_front() {
                Some(Action::Close(code, reason)) => self.reactor_wrote(|out| out.close(Some(code), &reason)),
                Some(Action::Hangup(cause)) => self.end(cause),
                Some(action) => panic!("{action:?} is not in any script"),
                None => {}
            },
            Dial => {
                if self.session.state() == State::Waiting {
                    self.now = self.session.next_deadline().unwrap();
                    self.session.handle_timeout(self.now);
                    self.step(actor, Take);
                }
            }
            Open => {
                if self.dialing {
                    self.dialing = false;
                    self.opening = true;
                    let wire = Wire::default();
                    wire.kernel.borrow_mut().room = self.room;
                    self.out.open(generation.next(), Socket(wire.kernel.clone()), None);
                    self.out.ready();
                    self.wires.push(wire);
                    self.pongs_before.push(self.pongs);
                }
            }
            Opened => {
                if self.opening {
                    self.opening = false;
                    self.session.handle_opened(self.now, generation, None);
                }
            }
        }
        assert_eq!(self.out.generation().number() as usize, self.wires.len());
        let state = self.session.state();
        assert!(state != State::Open || self.unwanted != Some(self.session.generation()), "the wire to be replaced counts");
    }

    fn send(&mut self, caller: usize, expected: Option<Generation>) {
        let text = format!("{caller} says {:02}", self.attempts.len());
        let (before, current) = (self.out.unsent(), self.out.generation());
        let outcome = self.out.send(Outgoing { expected, ..Outgoing::text(&text) });
        let unsent = self.out.unsent();
        match &outcome {
            Ok(Sent::Written) => assert_eq!(unsent, 0),
            Ok(Sent::Buffered) => assert!(unsent > 0 && (before == 0 || unsent <= self.unsent_max), "{before}, then {unsent}"),
            Err(Error::Full { unsent: told }) => assert!(*told == before && before > 0 && unsent == before),
            Err(Error::Io(_)) => assert!(self.out.failure().is_some()),
            Err(Error::Stale { current: told }) => assert!(*told == current && expected != Some(current)),
            Err(Error::NotConnected) => assert_eq!(unsent, before),
            other => panic!("{other:?}"),
        }
        self.owes_post[caller] |= matches!(outcome, Ok(Sent::Buffered) | Err(Error::Io(_)));
        self.attempts.push(Attempt { caller, text, current, expected, outcome });
    }

    /// As the shell does, which takes the lock for an edge only if it has noted that something waits.
    fn flush(&mut self) {
        self.reactor_wrote(|out| out.flush().map(|_| ()));
        self.noted = self.out.unsent() > 0;
    }

    fn reactor_wrote(&mut self, write: impl FnOnce(&mut Out<Socket>) -> Result<(), Error>) {
        let wrote = write(&mut self.out);
        assert!(wrote.is_ok() || self.out.failure().is_some());
        self.posted |= wrote.is_err() || self.out.unsent() > 0;
    }

    fn end(&mut self, cause: Error) {
        let Remains { stream, messages, bytes } = self.out.end();
        assert!(self.out.unsent() == 0 && self.out.failure().is_none());
        if stream.is_some() {
            let wire = self.wires.last_mut().unwrap();
            (wire.messages, wire.bytes) = (messages, bytes);
            self.ended = Some(cause);
        } else {
            assert_eq!((messages, bytes), (0, 0));
        }
    }

    fn kernel(&self) -> &RefCell<Kernel> {
        &self.wires.last().unwrap().kernel
    }

    /// Compares the wires with what the callers were told.
    fn check(&self) {
        let wires: Vec<_> = self.wires.iter().map(|wire| decode(&wire.kernel.borrow().taken)).collect();
        for attempt in &self.attempts {
            let Attempt { text, current, expected, outcome, .. } = attempt;
            let found: Vec<_> =
                (1..).zip(&wires).filter(|(_, frames)| frames.iter().any(|frame| frame.1 == text.as_bytes())).collect();
            if let [(number, frames)] = found[..] {
                assert_eq!(frames.iter().filter(|frame| frame.1 == text.as_bytes()).count(), 1, "sent twice: {attempt:?}");
                assert_eq!(number, current.number(), "on another wire: {attempt:?}");
                assert!(
                    expected.is_none_or(|expected| expected.number() == number),
                    "on a wire it was not made for: {attempt:?}"
                );
                assert!(outcome.is_ok(), "left whole: {attempt:?}");
            } else {
                assert!(found.is_empty(), "on two wires: {attempt:?}");
                assert!(!matches!(outcome, Ok(Sent::Written)), "did not leave: {attempt:?}");
            }
        }
        for (number, (wire, frames)) in (1..).zip(self.wires.iter().zip(&wires)) {
            let accepted = self.attempts.iter().filter(|attempt| attempt.current.number() == number && attempt.outcome.is_ok());
            let left = frames.iter().filter(|frame| matches!(frame.0, OpCode::Data(_))).count();
            assert_eq!(wire.messages, accepted.count() - left, "unsent on wire {number}");
            assert!(wire.messages == 0 || wire.bytes > 0);
            self.check_order(frames);
            let before = self.pongs_before[number as usize - 1];
            let foreign = frames.iter().find(|frame| frame.0 == PONG && frame.1[0] <= before);
            assert!(foreign.is_none(), "a pong of an earlier wire: {foreign:?}");
        }
        self.check_events();
    }

    fn check_order(&self, frames: &[(OpCode, Vec<u8>)]) {
        let close = frames.iter().position(|frame| frame.0 == OpCode::Control(Control::Close));
        assert!(close.is_none_or(|close| close + 1 == frames.len()), "frames after a close: {frames:?}");
        for caller in [0, 1] {
            let said = |frame: &(OpCode, Vec<u8>)| {
                self.attempts.iter().position(|attempt| attempt.caller == caller && attempt.text.as_bytes() == frame.1)
            };
            assert!(frames.iter().filter_map(said).is_sorted(), "out of order: {frames:?}");
        }
        let pongs: Vec<_> = frames.iter().filter(|frame| frame.0 == PONG).map(|frame| &frame.1).collect();
        assert!(pongs.is_sorted_by(|a, b| a < b), "pongs out of order: {pongs:?}");
    }

    fn check_events(&self) {
        let story: Vec<_> = self
            .events
            .iter()
            .map(|event| match event {
                Event::Dialing { .. } => 'd',
                Event::Open => 'o',
                Event::Lost { .. } => 'l',
                Event::Closed { cause: None } => 'c',
                event => panic!("{event:?}"),
            })
            .collect();
        let allowed = story
            .windows(2)
            .all(|pair| matches!(pair, ['d', 'o'] | ['d', 'c'] | ['o', 'l'] | ['o', 'c'] | ['l', 'd'] | ['l', 'c']));
        assert!(allowed, "{story:?}");
    }
}

/// The frames on a wire, the last one only if it is whole.
fn decode(mut bytes: &[u8]) -> Vec<(OpCode, Vec<u8>)> {
    let mut frames = Vec::new();
    loop {
        let mut cursor = Cursor::new(bytes);
        let Some((header, length)) = FrameHeader::parse(&mut cursor).expect("a header of RFC 6455") else { return frames };
        let (start, length) = (cursor.position() as usize, length as usize);
        let key = header.mask.expect("a client masks");
        assert!(header.is_final && !(header.rsv1 || header.rsv2 || header.rsv3), "{header:?}");
        if bytes.len() < start + length {
            return frames;
        }
        let masked = &bytes[start..start + length];
        frames.push((header.opcode, masked.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect()));
        bytes = &bytes[start + length..];
    }
}
