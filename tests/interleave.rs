//! Two callers, the kernel and the reactor on one connection, in every order of their critical sections.
//!
//! Each step is one critical section of the library, or one thing the kernel does. A script gives each actor its steps; all interleavings
//! are run from the start, and what then lies on the wires is compared with what the callers were told.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, Cursor, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, OpCode};
use zen_websocket::internals::{Action, Call, Costs, Governor, Lane, Out, Outgoing, Remains, Session, Ticket};
use zen_websocket::{Config, Error, Event, Generation, Id, RateLimit, Sent, State};

use self::Step::*;

#[test]
fn frames_queue_up_behind_a_full_kernel() {
    let a = vec![Send, Send, Send];
    let b = vec![Send, Send];
    let kernel = vec![Room(9), Room(40)];
    let reactor = vec![Flush, Flush, End, Lost];
    explore(Script { room: 20, unsent_max: 50, actors: vec![a, b, kernel, reactor], ..Script::default() }, 50_000);
}

#[test]
fn sends_across_a_loss_and_a_redial() {
    let a = vec![Look, SendOn, SendOn];
    let b = vec![Send, Send];
    let reactor = vec![End, Lost, Take, Dial, Open, Opened];
    explore(Script { room: 25, unsent_max: 100, actors: vec![a, b, reactor], ..Script::default() }, 4_000);
}

#[test]
fn sends_across_two_wires_that_take_little() {
    let a = vec![Look, SendOn, SendOn];
    let b = vec![Send];
    let kernel = vec![Room(20)];
    let reactor = vec![End, Lost, Take, Dial, Open, Opened, Flush];
    explore(Script { room: 10, unsent_max: 40, actors: vec![a, b, kernel, reactor], ..Script::default() }, 10_000);
}

#[test]
fn a_wire_that_breaks_under_the_callers() {
    let a = vec![Send, Send];
    let b = vec![Send];
    let kernel = vec![Room(16), Break];
    let reactor = vec![Flush, Notice, Lost, Take, Dial, Open, Opened];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 10_000);
}

#[test]
fn a_wire_that_takes_a_little_more_before_it_breaks() {
    for more in [1, 6, 7, 16, 22] {
        let a = vec![Send, Send];
        let b = vec![Look, SendOn];
        let kernel = vec![RoomAndBreak(more)];
        let reactor = vec![Flush, Notice, Lost];
        explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 1_000);
    }
}

#[test]
fn bursts_among_sends_behind_a_full_kernel() {
    let a = vec![SendMany, Send];
    let b = vec![Send, SendMany];
    let kernel = vec![Room(23), Room(40)];
    let reactor = vec![Flush, Pong, End, Lost];
    explore(Script { room: 10, unsent_max: 60, actors: vec![a, b, kernel, reactor], ..Script::default() }, 10_000);
}

#[test]
fn bursts_on_a_wire_that_takes_a_little_more_before_it_breaks() {
    for more in [1, 7, 22, 34, 35, 60] {
        let a = vec![SendMany, Send];
        let b = vec![SendMany];
        let kernel = vec![RoomAndBreak(more)];
        let reactor = vec![Flush, Notice, Lost];
        explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 400);
    }
}

#[test]
fn bursts_across_a_loss_and_a_redial() {
    let a = vec![SendMany, SendMany];
    let b = vec![Send];
    let reactor = vec![End, Lost, Take, Dial, Open, Opened];
    explore(Script { room: 25, unsent_max: 100, actors: vec![a, b, reactor], ..Script::default() }, 250);
}

#[test]
fn bursts_under_a_limit() {
    for queue_max in [0, 1, 3] {
        let a = vec![SendMany, SendMany];
        let b = vec![SendIn(Lane::Urgent), Send];
        let reactor = vec![Flush, Ping, Flush];
        let script = Script { room: 30, unsent_max: 100, actors: vec![a, b, vec![Room(90)], reactor], ..Script::default() };
        explore(Script { limit: Some(2), queue_max, ..script }, 1_000);
    }
}

#[test]
fn a_close_among_sends() {
    let a = vec![Send, WishClose, Send];
    let b = vec![Send, Send];
    let kernel = vec![Room(60)];
    let reactor = vec![Wishes, Take, Act, Flush, End, Lost];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 25_000);
}

#[test]
fn a_reconnect_asked_for_by_both_callers() {
    let a = vec![Send, WishReconnect, Send];
    let b = vec![Look, WishReconnect, SendOn];
    let reactor = vec![Wishes, Take, Act, Lost, Take, Dial, Open, Opened];
    explore(Script { room: 20, unsent_max: 100, actors: vec![a, b, reactor], ..Script::default() }, 60_000);
}

#[test]
fn a_close_and_a_reconnect_across_a_loss() {
    let a = vec![WishClose, Send];
    let b = vec![WishReconnect, Send];
    let reactor = vec![End, Lost, Take, Dial, Open, Opened, Wishes, Take, Act];
    explore(Script { room: 100, unsent_max: 100, actors: vec![a, b, reactor], ..Script::default() }, 4_000);
}

#[test]
fn pings_and_pongs_among_sends() {
    let a = vec![Send, Send];
    let b = vec![Send];
    let kernel = vec![Room(30), Room(30)];
    let reactor = vec![Pong, Ping, Pong, Flush, Close, Pong];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 10_000);
}

#[test]
fn nothing_that_waits_for_the_kernel_is_forgotten() {
    let a = vec![Send, Post, Send];
    let b = vec![Send, Post];
    let kernel = vec![Room(20), Room(1000)];
    let reactor = vec![Edge, Attend, Attended, Pong];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 50_000);
}

#[test]
fn a_close_that_waits_for_the_kernel_leaves_in_the_end() {
    let a = vec![Send, Post];
    let b = vec![Send, WishClose];
    let kernel = vec![Room(20), Room(1000)];
    let reactor = vec![Wishes, Take, Act, Edge, Attend, Attended];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 50_000);
}

#[test]
fn pongs_stay_on_their_wire() {
    let a = vec![Send];
    let b = vec![Send];
    let kernel = vec![Room(20)];
    let reactor = vec![Pong, End, Lost, Take, Dial, Open, Opened, Flush, Pong];
    explore(Script { room: 15, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 1_000);
}

#[test]
fn calls_across_a_loss_and_a_redial() {
    let a = vec![Register, Write, Undo];
    let b = vec![Register, Write, Undo];
    let reactor = vec![End, Lost, Settle, Take, Open, Opened];
    explore(Script { room: 30, unsent_max: 100, actors: vec![a, b, reactor], ..Script::default() }, 18_000);
}

#[test]
fn calls_across_two_wires_that_take_little() {
    let a = vec![Register, Write, Undo, Register, Write];
    let kernel = vec![Room(20)];
    let reactor = vec![End, Lost, Settle, Take, Open, Opened];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, kernel, reactor], ..Script::default() }, 5_000);
}

#[test]
fn replies_to_calls_that_leave_in_pieces() {
    let a = vec![Register, Write, Undo];
    let b = vec![Send];
    let kernel = vec![Room(20)];
    let reactor = vec![Reply, Flush, Reply, End, Lost, Settle];
    explore(Script { room: 20, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 9_000);
}

#[test]
fn deadlines_of_calls_on_a_wire_that_takes_little() {
    let a = vec![Register, Write, GiveUp, TakeBack];
    let clock = vec![Pass(1000)];
    let kernel = vec![Room(10)];
    let reactor = vec![Flush, Expire, Expired, Reply, End, Lost];
    explore(Script { room: 10, unsent_max: 100, actors: vec![a, clock, kernel, reactor], ..Script::default() }, 27_000);
}

#[test]
fn calls_on_a_wire_that_breaks() {
    for limit in [None, Some(9)] {
        let a = vec![Register, Write, Undo];
        let b = vec![Send];
        let kernel = vec![Room(16), Break];
        let reactor = vec![Flush, Notice, Lost, Settle];
        let actors = vec![a, b, kernel, reactor];
        explore(Script { room: 10, unsent_max: 100, limit, actors, ..Script::default() }, 12_000);
    }
}

#[test]
fn calls_on_a_wire_that_takes_a_little_more_before_it_breaks() {
    for (more, limit) in [(6, Some(9)), (7, None), (22, None), (23, Some(9))] {
        let a = vec![Register, Write, Undo];
        let b = vec![Register, Write];
        let kernel = vec![RoomAndBreak(more)];
        let reactor = vec![Flush, Notice, Lost, Settle];
        let actors = vec![a, b, kernel, reactor];
        explore(Script { room: 10, unsent_max: 100, limit, actors, ..Script::default() }, 12_000);
    }
}

#[test]
fn calls_on_a_wire_that_a_caller_replaces() {
    let a = vec![Register, Write, WishReconnect];
    let b = vec![Register, Write];
    let reactor = vec![Wishes, Take, Act, Lost, Settle, Take, Open, Opened];
    explore(Script { room: 30, unsent_max: 100, actors: vec![a, b, reactor], ..Script::default() }, 12_000);
}

#[test]
fn callers_during_a_login() {
    let a = vec![SendIn(Lane::Urgent)];
    let b = vec![Register, Write];
    let kernel = vec![Room(20)];
    let reactor = vec![End, Lost, Take, Upgrade, Login, Ready, Opened, Flush];
    explore(Script { room: 5, unsent_max: 100, actors: vec![a, b, kernel, reactor], ..Script::default() }, 5_000);
}

#[test]
fn callers_during_a_login_that_the_limit_holds_back() {
    let a = vec![SendIn(Lane::Urgent)];
    let b = vec![Register, Write];
    let clock = vec![Pass(1000)];
    let reactor = vec![End, Lost, Take, Upgrade, Login, Login, Ready, Opened, Flush];
    let actors = vec![a, b, clock, reactor];
    explore(Script { room: 100, unsent_max: 100, limit: Some(1), queue_max: 9, actors }, 8_000);
}

#[test]
fn calls_that_queue_and_are_taken_back() {
    for (limit, queue_max) in [(1, 9), (2, 1), (1, 0)] {
        let a = vec![Register, Write, GiveUp, TakeBack];
        let b = vec![Send, SendIn(Lane::Urgent)];
        let clock = vec![Pass(1000)];
        let reactor = vec![Flush, Flush, Reply];
        let actors = vec![a, b, clock, reactor];
        explore(Script { room: 100, unsent_max: 100, limit: Some(limit), queue_max, actors }, 12_000);
    }
}

#[test]
fn calls_that_queue_across_a_loss_and_a_redial() {
    let a = vec![Register, Write];
    let b = vec![Look, SendOn];
    let clock = vec![Pass(1000)];
    let reactor = vec![Flush, End, Lost, Settle, Take, Open, Opened];
    let actors = vec![a, b, clock, reactor];
    explore(Script { room: 100, unsent_max: 100, limit: Some(1), queue_max: 9, actors }, 23_000);
}

#[test]
fn calls_that_queue_until_their_deadline() {
    let a = vec![Register, Write, Undo];
    let b = vec![Send];
    let clock = vec![Pass(1000), Pass(1000)];
    let reactor = vec![Flush, Expire, Expired, Flush];
    let actors = vec![a, b, clock, reactor];
    explore(Script { room: 100, unsent_max: 100, limit: Some(1), queue_max: 9, actors }, 12_000);
}

#[test]
fn calls_and_a_close_under_a_limit() {
    let a = vec![Register, Write, WishClose];
    let b = vec![SendIn(Lane::Urgent)];
    let clock = vec![Pass(1000)];
    let reactor = vec![Wishes, Take, Act, Flush, End, Lost, Settle];
    let actors = vec![a, b, clock, reactor];
    explore(Script { room: 100, unsent_max: 100, limit: Some(1), queue_max: 9, actors }, 15_000);
}

#[test]
fn lanes_under_a_limit_and_a_kernel_that_takes_little() {
    let a = vec![Send, SendIn(Lane::Urgent)];
    let b = vec![Send];
    let clock = vec![Pass(500), Pass(500)];
    let kernel = vec![Room(30)];
    let reactor = vec![Subscribe, Flush, Flush];
    let actors = vec![a, b, clock, kernel, reactor];
    explore(Script { room: 30, unsent_max: 100, limit: Some(2), queue_max: 9, actors }, 15_000);
}

#[test]
fn what_a_limit_refuses_is_not_sent() {
    let a = vec![Send, Send, SendIn(Lane::Urgent)];
    let b = vec![Send];
    let clock = vec![Pass(500), Pass(500)];
    let reactor = vec![Flush, End, Lost];
    let actors = vec![a, b, clock, reactor];
    explore(Script { room: 20, unsent_max: 20, limit: Some(2), actors, ..Script::default() }, 5_000);
}

#[test]
fn pings_and_pongs_and_a_close_under_a_limit() {
    let a = vec![Send];
    let b = vec![SendIn(Lane::Urgent)];
    let clock = vec![Pass(500), Pass(500)];
    let kernel = vec![Room(30)];
    let reactor = vec![Pong, Ping, Flush, Pong, Close, Flush];
    let actors = vec![a, b, clock, kernel, reactor];
    explore(Script { room: 15, unsent_max: 100, limit: Some(2), queue_max: 9, actors }, 25_000);
}

#[test]
fn nothing_that_waits_for_the_limit_is_forgotten() {
    let a = vec![Send, Post];
    let b = vec![SendIn(Lane::Urgent), Post];
    let clock = vec![Pass(1000)];
    let kernel = vec![Room(1000)];
    let reactor = vec![Attend, Attended, Due, Pong];
    let actors = vec![a, b, clock, kernel, reactor];
    explore(Script { room: 20, unsent_max: 100, limit: Some(1), queue_max: 9, actors }, 37_000);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    // Callers.
    Send,
    SendIn(Lane),
    /// Sends two messages in one write, if they fit.
    SendMany,
    /// Reads the generation, for `SendOn`.
    Look,
    SendOn,
    /// Begins a call; the rest is about the caller's latest.
    Register,
    Write,
    /// Takes the call back if its message was refused.
    Undo,
    /// Takes the call back at its own deadline, then its message.
    GiveUp,
    TakeBack,
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
    // The clock.
    /// So many milliseconds pass.
    Pass(u64),
    // The reactor.
    Flush,
    /// Looks at a writable edge.
    Edge,
    /// Looks at a post: first it forgets it, then it acts.
    Attend,
    Attended,
    /// Looks whether the limit lets more pass.
    Due,
    /// Sends a login, a subscription.
    Login,
    Subscribe,
    /// Receives the reply to the first request that the peer has whole and has not answered.
    Reply,
    /// Takes the calls whose deadline has come, and settles them.
    Expire,
    Expired,
    Ping,
    Pong,
    /// Sends a Close frame of its own accord.
    Close,
    /// Ends the wire, as after the peer's end.
    End,
    /// Ends the wire if a write has failed.
    Notice,
    /// Tells the session that the wire has ended, if it has, and takes its calls.
    Lost,
    /// Settles the calls of a wire that ended.
    Settle,
    Wishes,
    /// Takes the session's actions, and does one.
    Take,
    Act,
    /// Dials, once the session asks for it.
    Dial,
    /// A dial has succeeded: first the sending half learns it, then, after a login, the session.
    Open,
    Opened,
    /// As `Open`, but with a login to come.
    Upgrade,
    Ready,
}

#[derive(Default)]
struct Script {
    /// What the kernel takes of each wire at first.
    room: usize,
    unsent_max: usize,
    /// How many frames a second may leave, and how many messages wait.
    limit: Option<u32>,
    queue_max: usize,
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
    limit: Option<u32>,
    queue_max: usize,
    costs: Costs,
    session: Session<usize>,
    wires: Vec<Wire>,
    /// Of the latest wire: a login has succeeded, and nothing has ended it.
    is_ready: bool,
    is_up: bool,
    attempts: Vec<Attempt>,
    /// What the connection itself said.
    own: Vec<String>,
    calls: Vec<Request>,
    /// Of each caller the latest call, whether its message was refused, and whether it is taken back.
    calling: [Option<usize>; 2],
    refused: [bool; 2],
    given_up: [bool; 2],
    /// The calls that the reactor has taken and has still to settle.
    expired: Vec<(Id, Call<usize>)>,
    lost: Vec<Call<usize>>,
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
    /// The reactor knows that something waits for an edge, or for a time.
    noted: bool,
    held_until: Option<Instant>,
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
    lane: Lane,
    call: Option<usize>,
    /// The wire that was up, and the one it was made for.
    current: Generation,
    expected: Option<Generation>,
    outcome: Result<Sent, Error>,
}

/// A call, and how it ended.
#[derive(Debug)]
struct Request {
    token: u64,
    generation: Generation,
    ticket: Arc<Ticket>,
    /// The peer has answered it.
    is_answered: bool,
    /// Its message was taken back before it began to leave.
    is_taken_back: bool,
    end: Option<Ending>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Replied,
    Lost,
    Expired,
    GivenUp,
    Refused,
}

#[derive(Default)]
struct Kernel {
    taken: Vec<u8>,
    /// How much it had taken when.
    times: Vec<(usize, Instant)>,
    room: usize,
    broken: bool,
    /// A write found no room; the next room is an edge.
    full: bool,
    edge: bool,
}

/// The callers' end of a kernel that takes a few bytes at a time.
struct Socket(Rc<RefCell<Kernel>>);

const CHUNK: usize = 13;

/// The window of the limit, and the time a call has.
const SECOND: Duration = Duration::from_secs(1);

thread_local! {
    static NOW: Cell<Instant> = Cell::new(Instant::now());
    static CONFIG: Arc<Config> = Arc::new(Config::new("ws://peer").jitter(0.0));
}

fn now() -> Instant {
    NOW.get()
}

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
        let length = kernel.taken.len();
        kernel.times.push((length, now()));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stage {
    fn new(script: &Script) -> Self {
        let limits: Vec<_> =
            script.limit.into_iter().map(|count| RateLimit::window(count, SECOND).margin(Duration::ZERO).reserved(0)).collect();
        let governor = Governor::new(&limits, now()).expect("the limit is right");
        let mut stage = Self {
            unsent_max: script.unsent_max,
            room: script.room,
            limit: script.limit,
            queue_max: script.queue_max,
            costs: governor.as_ref().map_or_else(Costs::default, |governor| governor.costs(b"", || 1)),
            out: Out::new(script.unsent_max, governor, now),
            session: Session::new(CONFIG.with(Arc::clone), 0, now()),
            wires: Vec::new(),
            is_ready: false,
            is_up: false,
            attempts: Vec::new(),
            own: Vec::new(),
            calls: Vec::new(),
            calling: [None; 2],
            refused: [false; 2],
            given_up: [false; 2],
            expired: Vec::new(),
            lost: Vec::new(),
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
            held_until: None,
        };
        stage.session.handle_begin(now());
        for step in [Take, Dial, Open, Opened, Take] {
            stage.step(0, step);
        }
        stage
    }

    fn run(&mut self, order: &[(usize, Step)]) {
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (actor, step) in order {
                self.step(*actor, *step);
            }
            if order.iter().any(|(_, step)| *step == Attend) {
                // The last turn of the reactor; all posts and edges have come.
                let last = [(0, Post), (1, Post), (0, Attended), (0, Edge), (0, Attend), (0, Attended), (0, Edge)];
                last.into_iter().for_each(|(actor, step)| self.step(actor, step));
                let turns = if self.limit.is_some() { self.attempts.len() + 2 } else { 0 };
                (0..turns).for_each(|_| [Pass(1000), Due].into_iter().for_each(|step| self.step(0, step)));
                assert!(self.out.unsent() == 0 && !self.out.is_held(), "left behind");
                let frames = decode(&self.kernel().borrow().taken);
                if self.session.state() == State::Closing && !self.close_waits && self.actions.is_empty() {
                    assert_eq!(frames.last().unwrap().0, OpCode::Control(Control::Close));
                } else {
                    assert_eq!(frames.iter().any(|frame| frame.0 == PONG), self.pongs > 0);
                }
            }
            for step in [Expired, Settle, End, Lost, Settle, Take] {
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
            Send => self.send(actor, Lane::Normal, None, None),
            SendMany => self.send_many(actor),
            SendIn(lane) => self.send(actor, lane, None, None),
            Look => self.looked[actor] = self.session.generation(),
            SendOn => self.send(actor, Lane::Normal, Some(self.looked[actor]), None),
            Register => self.register(actor),
            Write => {
                if let Some(number) = self.calling[actor] {
                    self.send(actor, Lane::Normal, Some(self.calls[number].generation), Some(number));
                    self.refused[actor] = self.attempts.last().is_some_and(|attempt| attempt.outcome.is_err());
                }
            }
            Undo => {
                if self.refused[actor] {
                    self.withdraw(actor, Ending::Refused);
                }
            }
            GiveUp => self.given_up[actor] = self.withdraw(actor, Ending::GivenUp),
            TakeBack => {
                if let (true, Some(number)) = (self.given_up[actor], self.calling[actor]) {
                    self.take_back(number);
                }
            }
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
            Pass(millis) => NOW.set(now() + Duration::from_millis(millis)),
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
            Due => {
                if self.held_until.is_some_and(|until| until <= now()) {
                    self.flush();
                }
            }
            Login => self.say("login", Lane::Control),
            Subscribe => self.say("subscribe", Lane::Restore),
            Reply => self.reply(),
            Expire => self.expired.extend(self.session.take_expired(now())),
            Expired => {
                for (_, call) in std::mem::take(&mut self.expired) {
                    self.ended(call.waiter, Ending::Expired);
                    self.take_back(call.waiter);
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
                    self.session.handle_lost(now(), cause);
                    self.lost.extend(self.session.take_calls().into_values());
                }
            }
            Settle => {
                for call in std::mem::take(&mut self.lost) {
                    let is_whole = self.is_whole(call.waiter);
                    assert_eq!(call.ticket.is_sent(), is_whole, "said of a call whose wire ended: {:?}", self.calls[call.waiter]);
                    self.ended(call.waiter, Ending::Lost);
                }
            }
            Wishes => {
                self.session.handle_wishes(now());
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
                    NOW.set(self.session.next_deadline().unwrap().max(now()));
                    self.session.handle_timeout(now());
                    self.step(actor, Take);
                }
            }
            Open => {
                self.step(actor, Upgrade);
                self.step(actor, Ready);
            }
            Upgrade => {
                if self.dialing {
                    self.dialing = false;
                    (self.opening, self.is_up) = (true, true);
                    let wire = Wire::default();
                    wire.kernel.borrow_mut().room = self.room;
                    self.out.open(generation.next(), Socket(wire.kernel.clone()), None);
                    self.wires.push(wire);
                    self.pongs_before.push(self.pongs);
                }
            }
            Ready => {
                self.out.ready();
                self.is_ready = self.is_up;
            }
            Opened => {
                if self.opening {
                    self.opening = false;
                    self.session.handle_opened(now(), generation, None);
                }
            }
        }
        assert_eq!(self.out.generation().number() as usize, self.wires.len());
        let state = self.session.state();
        assert!(state != State::Open || self.unwanted != Some(self.session.generation()), "the wire to be replaced counts");
    }

    fn send(&mut self, caller: usize, lane: Lane, expected: Option<Generation>, call: Option<usize>) {
        let text = format!("{caller} says {:02}", self.attempts.len());
        let (before, waiting, current) = (self.out.unsent(), self.out.waiting(), self.out.generation());
        let ticket = call.map(|number| self.calls[number].ticket.clone());
        let (queue_max, costs) = (self.queue_max, self.costs);
        let outgoing = Outgoing { lane, expected, ticket: ticket.as_ref(), queue_max, costs, ..Outgoing::text(&text) };
        let outcome = self.out.send(outgoing);
        let unsent = self.out.unsent();
        let is_taken_back = call.is_some_and(|number| self.calls[number].is_taken_back);
        match &outcome {
            Ok(Sent::Written | Sent::Buffered) if is_taken_back => assert_eq!(unsent, before),
            Ok(Sent::Written) => assert_eq!(unsent, 0),
            Ok(Sent::Buffered) => assert!(unsent > 0 && (before == 0 || unsent <= self.unsent_max), "{before}, then {unsent}"),
            Ok(Sent::Queued) => {
                assert!(self.queue_max > 0 && self.limit.is_some());
                assert_eq!(self.out.waiting(), waiting + usize::from(!is_taken_back));
            }
            Err(Error::Full { unsent: told }) => assert!(*told == before && before > 0 && unsent == before),
            Err(Error::Io(_)) => assert!(self.out.failure().is_some()),
            Err(Error::Stale { current: told }) => assert!(*told == current && expected != Some(current)),
            Err(Error::Throttled { wait }) => assert!(self.queue_max == 0 && self.limit.is_some() && !wait.is_zero()),
            Err(Error::QueueFull { waiting: told }) => assert!(*told >= self.queue_max && *told <= waiting),
            Err(Error::NotConnected) => assert_eq!(unsent, before),
            other => panic!("{other:?}"),
        }
        assert!(self.is_ready || matches!(outcome, Err(Error::NotConnected)), "before the login: {outcome:?}");
        assert!(outcome.is_ok() || self.out.waiting() == waiting);
        self.owes_post[caller] |= matches!(outcome, Ok(Sent::Buffered | Sent::Queued) | Err(Error::Io(_)));
        self.attempts.push(Attempt { caller, text, lane, call, current, expected, outcome });
    }

    fn send_many(&mut self, caller: usize) {
        let texts = [0, 1].map(|number| format!("{caller} says {:02}", self.attempts.len() + number));
        let (current, queue_max, costs) = (self.out.generation(), self.queue_max, self.costs);
        let messages = texts.each_ref().map(|text| Outgoing { queue_max, costs, ..Outgoing::text(text) });
        let (count, sent) = self.out.send_many(&messages);
        self.owes_post[caller] |= match &sent {
            Ok(sent) => *sent != Sent::Written,
            Err(Error::Io(_)) => true,
            Err(_) => count > 0,
        };
        assert!(count > 0 || sent.is_err(), "a burst that neither goes on nor fails");
        for (number, text) in texts.into_iter().enumerate() {
            let outcome = match &sent {
                Ok(sent) if number < count => Ok(*sent),
                // They left whole before it broke.
                Err(Error::Io(_)) if number < count => Ok(Sent::Written),
                Err(_) if number < count => Ok(Sent::Buffered),
                Err(error) if number == count => Err(error.clone()),
                Err(_) => Err(Error::NotConnected),
                // It comes with the next burst.
                Ok(_) => return self.send(caller, Lane::Normal, None, None),
            };
            self.attempts.push(Attempt { caller, text, lane: Lane::Normal, call: None, current, expected: None, outcome });
        }
    }

    /// Sends something of the connection's own.
    fn say(&mut self, text: &str, lane: Lane) {
        let text = format!("{text} {:02}", self.own.len());
        let said = self.out.send(Outgoing { lane, is_own: true, costs: self.costs, ..Outgoing::text(&text) });
        self.posted |= matches!(said, Ok(Sent::Buffered | Sent::Queued) | Err(Error::Io(_)));
        self.own.push(text);
    }

    fn register(&mut self, caller: usize) {
        let (number, ticket) = (self.calls.len(), Arc::new(Ticket::default()));
        let registered = self.session.register(now(), Id::from(number as i64), now() + SECOND, number, ticket.clone());
        self.calling[caller] = registered.is_ok().then_some(number);
        (self.refused[caller], self.given_up[caller]) = (false, false);
        match registered {
            Ok((generation, registered)) => self.calls.push(Request {
                token: registered.token,
                generation,
                ticket,
                is_answered: false,
                is_taken_back: false,
                end: None,
            }),
            Err(Error::NotConnected | Error::Closed) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Takes the caller's latest call back, if nobody has ended it.
    fn withdraw(&mut self, caller: usize, ending: Ending) -> bool {
        let Some(number) = self.calling[caller] else { return false };
        let call = self.session.withdraw(&Id::from(number as i64), self.calls[number].token);
        call.iter().for_each(|call| self.ended(call.waiter, ending));
        call.is_some()
    }

    /// Takes a call's message back; what the caller is told must be true for ever.
    fn take_back(&mut self, number: usize) {
        let call = &mut self.calls[number];
        call.is_taken_back |= call.ticket.withdraw();
        assert!(call.ticket.may_arrive() || !self.is_whole(number), "said not to have been sent: {:?}", self.calls[number]);
    }

    /// Notes how a call ended.
    fn ended(&mut self, number: usize, ending: Ending) {
        let before = self.calls[number].end.replace(ending);
        assert_eq!(before, None, "settled again: {:?}", self.calls[number]);
    }

    fn reply(&mut self) {
        let frames = decode(&self.kernel().borrow().taken);
        let whole = frames.iter().filter_map(|frame| self.attempts.iter().find(|attempt| attempt.text.as_bytes() == frame.1));
        let Some(number) = whole.filter_map(|attempt| attempt.call).find(|number| !self.calls[*number].is_answered) else {
            return;
        };
        // What the kernel still holds of a wire that was given up is not read.
        if !self.is_up {
            return;
        }
        self.calls[number].is_answered = true;
        let calls_wait = self.session.handle_receive(now());
        match self.session.handle_reply(now(), &Id::from(number as i64)) {
            Some((call, _)) => {
                assert!(calls_wait && call.waiter == number && call.ticket.is_sent());
                self.ended(number, Ending::Replied);
            }
            // It has waited for too long.
            None => assert!(self.calls[number].end.is_some() || self.expired.iter().any(|(_, call)| call.waiter == number)),
        }
    }

    /// Whether the message of a call lies whole on a wire.
    fn is_whole(&self, number: usize) -> bool {
        let wires: Vec<_> = self.wires.iter().map(|wire| decode(&wire.kernel.borrow().taken)).collect();
        self.is_among(&wires, number)
    }

    fn is_among(&self, wires: &[Vec<(OpCode, Vec<u8>)>], number: usize) -> bool {
        let attempt = self.attempts.iter().find(|attempt| attempt.call == Some(number));
        attempt.is_some_and(|attempt| wires.iter().flatten().any(|frame| frame.1 == attempt.text.as_bytes()))
    }

    /// As the shell does, which takes the lock for an edge only if it has noted that something waits.
    fn flush(&mut self) {
        let mut next = None;
        self.reactor_wrote(|out| out.flush().map(|flushed| next = flushed));
        assert!(next.is_none_or(|next| next > now() && self.out.is_held()), "the reactor would spin");
        assert!(next.is_some() || self.out.unsent() > 0 || !self.out.is_held() || self.out.failure().is_some(), "forgotten");
        (self.noted, self.held_until) = (self.out.unsent() > 0, next);
    }

    fn reactor_wrote<T>(&mut self, write: impl FnOnce(&mut Out<Socket>) -> Result<T, Error>) {
        let wrote = write(&mut self.out);
        assert!(wrote.is_ok() || self.out.failure().is_some());
        self.posted |= wrote.is_err() || self.out.unsent() > 0 || self.out.is_held();
    }

    fn end(&mut self, cause: Error) {
        let Remains { stream, messages, bytes } = self.out.end();
        assert!(self.out.unsent() == 0 && self.out.failure().is_none() && !self.out.is_held());
        (self.is_ready, self.is_up) = (false, false);
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
                let may_leave = attempt.call.is_none_or(|number| !self.calls[number].is_taken_back);
                assert!(!matches!(outcome, Ok(Sent::Written)) || !may_leave, "did not leave: {attempt:?}");
            }
        }
        for (number, (wire, frames)) in (1..).zip(self.wires.iter().zip(&wires)) {
            let accepted = self.attempts.iter().filter(|attempt| attempt.current.number() == number && attempt.outcome.is_ok());
            let is_taken_back = |attempt: &&Attempt| attempt.call.is_some_and(|number| self.calls[number].is_taken_back);
            let is_own = |frame: &(OpCode, Vec<u8>)| self.own.iter().any(|text| text.as_bytes() == frame.1);
            let left = frames.iter().filter(|frame| matches!(frame.0, OpCode::Data(_)) && !is_own(frame)).count();
            let taken_back = accepted.clone().filter(is_taken_back).count();
            assert_eq!(wire.messages, accepted.count() - left - taken_back, "unsent on wire {number}");
            assert!(wire.messages == 0 || wire.bytes > 0);
            self.check_order(frames);
            let before = self.pongs_before[number as usize - 1];
            let foreign = frames.iter().find(|frame| frame.0 == PONG && frame.1[0] <= before);
            assert!(foreign.is_none(), "a pong of an earlier wire: {foreign:?}");
        }
        self.check_calls(&wires);
        self.check_limit(&wires);
        self.check_events();
    }

    /// Each call has ended, and what was said of its message is true.
    fn check_calls(&self, wires: &[Vec<(OpCode, Vec<u8>)>]) {
        for (number, call) in self.calls.iter().enumerate() {
            let is_whole = self.is_among(wires, number);
            assert_eq!(call.ticket.is_sent(), is_whole, "{call:?}");
            assert!(!call.is_taken_back || !is_whole, "left though it was taken back: {call:?}");
            match call.end {
                Some(Ending::Replied) => assert!(is_whole, "{call:?}"),
                Some(Ending::Refused) => assert!(!is_whole, "{call:?}"),
                Some(Ending::Lost | Ending::Expired | Ending::GivenUp) => {}
                None => panic!("never settled: {call:?}"),
            }
        }
    }

    /// In no second more frames were taken whole than the limit allows.
    fn check_limit(&self, wires: &[Vec<(OpCode, Vec<u8>)>]) {
        let Some(limit) = self.limit else { return };
        let mut times = Vec::new();
        for (wire, frames) in self.wires.iter().zip(wires) {
            let kernel = wire.kernel.borrow();
            let mut end = 0;
            for (_, payload) in frames {
                end += 6 + payload.len();
                times.extend(kernel.times.iter().find(|(length, _)| *length >= end).map(|(_, at)| *at));
            }
        }
        for first in &times {
            let count = times.iter().filter(|time| *time >= first && **time < *first + SECOND).count();
            assert!(count <= limit as usize, "{count} frames within a second");
        }
    }

    fn check_order(&self, frames: &[(OpCode, Vec<u8>)]) {
        let close = frames.iter().position(|frame| frame.0 == OpCode::Control(Control::Close));
        assert!(close.is_none_or(|close| close + 1 == frames.len()), "frames after a close: {frames:?}");
        // Who was accepted first leaves first, unless the later one has more of a hurry.
        let place = |text: &str| frames.iter().position(|frame| frame.1 == text.as_bytes());
        for (index, later) in self.attempts.iter().enumerate() {
            for earlier in self.attempts[..index].iter().filter(|earlier| earlier.lane <= later.lane) {
                let (Some(first), Some(second)) = (place(&earlier.text), place(&later.text)) else { continue };
                assert!(first < second, "passed by callers {} and {}: {frames:?}", earlier.caller, later.caller);
            }
        }
        let own = |name: &str| self.own.iter().filter_map(|text| text.starts_with(name).then(|| place(text))?).is_sorted();
        assert!(own("login") && own("subscribe"), "the connection's own frames: {frames:?}");
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
