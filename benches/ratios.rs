//! The ratios this crate promises, each from interleaved rounds against the code a careful author would write instead, and the cost of
//! idle connections. The server is a second process; where there are two cores, it has the first and the client the second.
//!
//! `cargo bench --bench ratios [-- decode|echo|send|flood|idle]`

#[path = "support/memory.rs"]
mod memory;
#[path = "support/raw.rs"]
mod raw;
#[path = "support/rounds.rs"]
mod rounds;
#[path = "support/server.rs"]
mod server;

use std::env;
use std::fs;
use std::hint;
use std::io::{Read, Write};
use std::mem;
use std::net::TcpStream;
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use zen_websocket::{Client, Config, Driver, EventRef, Handler, Reactor, Sent, State, connect_with};

use crate::raw::Raw;
use crate::rounds::{Comparison, Target, Times};
use crate::server::Server;

/// Messages per round.
const DECODED: u64 = 100_000;
const ECHOES: usize = 1000;
const SENDS: usize = 2000;

/// Long enough for the server to fill the kernel's buffers.
const HEAD_START: Duration = Duration::from_millis(2);

/// How long a sender does something else between two sends, so that neither the kernel's buffer nor the peer is the bottleneck.
const SEND_INTERVAL: Duration = Duration::from_micros(15);

/// Connections that do nothing but answer heartbeats.
const IDLE: usize = 2000;
/// The default heartbeat is measured once per connection; a faster one gives the cost of each.
const IDLE_INTERVALS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
const IDLE_TIME: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(31)];

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == server::ARGUMENT) {
        return server::run();
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("measures under `cargo bench` only");
        return;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let is_wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter.as_str()));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!("{}, {cores} cores; text messages of 200 bytes, loopback", machine());

    let server = Server::start();
    pin(1);
    println!("{}", Comparison::HEADER);
    if is_wanted("decode") {
        println!("{}", decode());
    }
    if is_wanted("echo") {
        println!("{}", echo_parked(&server, "echo, handler, parked / blocking socket", "echo"));
        println!("{}", echo_parked(&server, "  the same, server spinning", "echo-spinning"));
        println!("{}", echo_spinning(&server, "echo, own driver spinning / raw spinning", "echo"));
        println!("{}", echo_spinning(&server, "  the same, server spinning", "echo-spinning"));
    }
    if is_wanted("send") {
        println!("{}", send(&server, "Client::send, reactor parked / bare write", "sink-spinning"));
        println!("{}", send(&server, "Client::send, reactor receiving / bare write", "ticks"));
    }
    if is_wanted("flood") {
        println!("{}", flood(&server, "flood, handler, parked / tungstenite blocking", Flood::Apart));
        println!("{}", flood(&server, "  the same, the server 2 ms ahead", Flood::Ahead));
        println!("{}", flood(&server, "  the same, client and server on one core", Flood::OneCore));
        println!("{}", flood(&server, "  the same, core time of the receiving thread", Flood::CoreTime));
    }
    if is_wanted("idle") {
        for (interval, time) in IDLE_INTERVALS.into_iter().zip(IDLE_TIME) {
            println!("{}", idle(&server, interval, time));
        }
    }
}

fn decode() -> Comparison {
    let (mut ours, mut theirs) = (memory::Ours::new(200), memory::Theirs::new(200));
    let measure = |times: &mut Times, decode: &mut dyn FnMut() -> u64| {
        let start = Instant::now();
        let messages = decode();
        times.add(start.elapsed().as_nanos() as f64 / messages as f64);
    };
    Comparison::run(
        "decode from memory, 8 KiB reads / tungstenite",
        Target::AtLeast(2.5),
        |times| measure(times, &mut || ours.decode(DECODED)),
        |times| measure(times, &mut || theirs.decode(DECODED)),
    )
}

/// On our side everything between two messages happens on the reactor thread.
fn echo_parked(server: &Server, what: &'static str, path: &str) -> Comparison {
    let text = text();
    let (finish, finished) = mpsc::channel();
    let mut samples = Vec::with_capacity(ECHOES);
    let mut sent: Option<Instant> = None;
    let handler = Handler::new().text(move |context, text| {
        let now = Instant::now();
        if let Some(sent) = sent {
            samples.push(now - sent);
        }
        if samples.len() == ECHOES {
            sent = None;
            let _ = finish.send(mem::replace(&mut samples, Vec::with_capacity(ECHOES)));
            return;
        }
        sent = Some(now);
        context.send(text).expect("the server reads");
    });
    let client = connect_with(Config::new(server.url(path)), handler).expect("the server accepts");
    let mut raw = Raw::connect(server.address, path);
    Comparison::run(
        what,
        Target::AtMost(1.1),
        |times| {
            client.send(&text).expect("the server reads");
            let samples = finished.recv().expect("the handler lives");
            samples.iter().for_each(|sample| times.add(sample.as_nanos() as f64));
        },
        |times| echo_raw(&mut raw, &text, times),
    )
}

fn echo_spinning(server: &Server, what: &'static str, path: &str) -> Comparison {
    let text = text();
    let mut driver = Driver::new().expect("descriptors");
    let client = driver.open(Config::new(server.url(path))).expect("a good config");
    while !client.state().is_open() {
        driver.turn(None).expect("a poller");
    }
    let mut raw = Raw::connect(server.address, path);
    raw.stream.set_nonblocking(true).expect("a socket");
    Comparison::run(
        what,
        Target::AtMost(1.1),
        |times| {
            let mut left = ECHOES;
            let mut sent: Option<Instant> = None;
            client.send(&text).expect("the server reads");
            while left > 0 {
                let turned = driver.turn_with(Duration::ZERO, |context, event| {
                    let EventRef::Text(text) = event else { return };
                    let now = Instant::now();
                    if let Some(sent) = sent {
                        times.add((now - sent).as_nanos() as f64);
                        left -= 1;
                    }
                    if left > 0 {
                        sent = Some(now);
                        context.send(text).expect("the server reads");
                    }
                });
                turned.expect("a poller");
            }
        },
        |times| echo_raw(&mut raw, &text, times),
    )
}

/// The handler's loop by hand.
fn echo_raw(raw: &mut Raw, text: &str, times: &mut Times) {
    raw.send(text);
    hint::black_box(raw.receive());
    let mut sent = Instant::now();
    for _ in 0..ECHOES {
        raw.answer();
        hint::black_box(raw.receive());
        let now = Instant::now();
        times.add((now - sent).as_nanos() as f64);
        sent = now;
    }
}

/// The caller has a core for itself; whoever receives shares the server's, on either side.
fn send(server: &Server, what: &'static str, path: &str) -> Comparison {
    let text = text();
    let connected = thread::scope(|scope| {
        let connect = || {
            pin(0);
            connect_with(Config::new(server.url(path)), Handler::new().text(|_, text| _ = hint::black_box(text)))
        };
        scope.spawn(connect).join()
    });
    let client = connected.expect("no panic").expect("the server accepts");
    let mut raw = Raw::connect(server.address, path);
    let mut receiver = raw.stream.try_clone().expect("descriptors");
    let receiving = thread::spawn(move || {
        pin(0);
        let mut buffer = vec![0; 64 << 10];
        while receiver.read(&mut buffer).is_ok_and(|count| count > 0) {}
    });
    let mut frame = Vec::new();
    raw::encode(text.as_bytes(), &mut frame);
    let comparison = Comparison::run(
        what,
        Target::AtMost(1.25),
        |times| {
            paced(times, || assert_eq!(client.send(&text).expect("the server reads"), Sent::Written));
        },
        |times| {
            paced(times, || assert_eq!(raw.stream.write(&frame).expect("the server reads"), frame.len()));
        },
    );
    raw.stream.shutdown(std::net::Shutdown::Both).expect("a socket");
    receiving.join().expect("no panic");
    comparison
}

fn paced(times: &mut Times, mut send: impl FnMut()) {
    for _ in 0..SENDS {
        let start = Instant::now();
        send();
        let end = Instant::now();
        times.add((end - start).as_nanos() as f64);
        while end.elapsed() < SEND_INTERVAL {
            hint::spin_loop();
        }
    }
}

/// How a flood is measured. A receiver that is faster than the server finds the socket empty again and again, and the server then spends
/// its time on waking it, which is slow on virtual machines: there, by the clock and with a core each, a receiver that decodes nothing
/// at all is hardly faster than tungstenite.
#[derive(Clone, Copy, PartialEq)]
enum Flood {
    /// By the clock, client and server on a core each.
    Apart,
    /// The same, but the receiver stops after the first message until the kernel's buffers are full; the clock starts then.
    Ahead,
    /// By the clock, client and server on one core: nobody idles, so nobody is woken from idling.
    OneCore,
    /// The time the receiving thread has run: how much one core can receive.
    CoreTime,
}

impl Flood {
    /// Messages per round.
    fn messages(self) -> u64 {
        match self {
            Self::Ahead => 20_000,
            Self::Apart | Self::OneCore | Self::CoreTime => 200_000,
        }
    }

    /// Receives a message, the last of them with `true`.
    fn count(self, seen: &mut u64, start: &mut Instant) -> bool {
        *seen += 1;
        if *seen == 1 {
            *start = Instant::now();
            while self == Self::Ahead && start.elapsed() < HEAD_START {
                hint::spin_loop();
            }
            *start = Instant::now();
        }
        let is_last = *seen == self.messages();
        if is_last {
            *seen = 0;
        }
        is_last
    }
}

fn flood(server: &Server, what: &'static str, how: Flood) -> Comparison {
    if how == Flood::OneCore {
        pin(0);
    }
    let (finish, finished) = mpsc::channel();
    let ours = finish.clone();
    let (mut seen, mut bytes, mut start) = (0, 0, Instant::now());
    let handler = Handler::new().text(move |_, text| {
        bytes += text.len() as u64;
        if how.count(&mut seen, &mut start) {
            let _ = ours.send((start.elapsed(), mem::take(&mut bytes)));
        }
    });
    let reactor = Reactor::builder().name("ours").start().expect("a thread");
    let client = reactor.connect_with(Config::new(server.url("flood")), handler).expect("the server accepts");

    let stream = TcpStream::connect(server.address).expect("the server accepts");
    stream.set_nodelay(true).expect("a socket");
    let (mut theirs, _) = tungstenite::client(server.url("flood"), stream).expect("the server accepts");
    let (begin, begun) = mpsc::channel();
    let reader = thread::Builder::new().name("theirs".to_owned()).spawn(move || {
        let (mut seen, mut bytes, mut start) = (0, 0, Instant::now());
        while let Ok(request) = begun.recv() {
            theirs.send(tungstenite::Message::binary(request)).expect("the server reads");
            loop {
                let tungstenite::Message::Text(text) = theirs.read().expect("the server writes") else { panic!("not text") };
                bytes += text.len() as u64;
                if how.count(&mut seen, &mut start) {
                    break;
                }
            }
            let _ = finish.send((start.elapsed(), mem::take(&mut bytes)));
        }
    });
    let reader = reader.expect("a thread");
    pin(1);

    let messages = how.messages();
    let request = messages.to_be_bytes();
    let measure = |times: &mut Times, thread: &str, begin: &dyn Fn()| {
        let before = run_time(thread);
        begin();
        let (elapsed, bytes) = finished.recv().expect("somebody receives");
        assert_eq!(bytes, messages * 200);
        let elapsed = match (how, before, run_time(thread)) {
            (Flood::CoreTime, Some(before), Some(after)) => after - before,
            _ => elapsed,
        };
        times.add(elapsed.as_nanos() as f64 / messages as f64);
    };
    let comparison = Comparison::run(
        what,
        Target::AtLeast(1.3),
        |times| {
            measure(times, "ours", &|| {
                client.send_binary(&request).expect("the server reads");
            });
        },
        |times| measure(times, "theirs", &|| begin.send(request.to_vec()).expect("the reader lives")),
    );
    drop(begin);
    reader.join().expect("no panic");
    drop(client);
    reactor.stop();
    comparison
}

/// The time on a core of a reactor thread that holds idle connections, as the scheduler counts it.
fn idle(server: &Server, interval: Duration, time: Duration) -> String {
    let what = format!("{IDLE} idle connections, heartbeat {interval:?}");
    let reactor = Reactor::builder().name("idle").start().expect("a thread");
    let config = Config::new(server.url("echo")).heartbeat_interval(interval);
    let mut clients: Vec<Client> = Vec::with_capacity(IDLE);
    while clients.len() < IDLE {
        // No more at once than a listener's backlog.
        let batch: Vec<Client> =
            (0..100).map(|_| reactor.open_with(config.clone(), Handler::new()).expect("a good config")).collect();
        for client in &batch {
            client.wait(State::Open, Duration::from_secs(10)).expect("the server accepts (is `ulimit -n` above 2,100?)");
        }
        clients.extend(batch);
    }
    let Some(begin) = run_time("idle") else { return format!("{what}: this system does not tell a thread's run time") };
    let start = Instant::now();
    // Nobody unparks it.
    thread::park_timeout(time);
    let (end, elapsed) = (run_time("idle"), start.elapsed());
    let beating = clients.iter().filter(|client| client.stats().rtt.is_some()).count();
    assert_eq!(beating, IDLE, "every connection has beaten in the time");
    drop(clients);
    reactor.stop();
    let used = end.unwrap_or_default() - begin;
    let share = used.as_secs_f64() / elapsed.as_secs_f64();
    let beats = IDLE as f64 * (time.as_secs() / interval.as_secs()) as f64;
    let per_beat = used / beats as u32;
    // Scaled to the heartbeat the target speaks of.
    let scaled = share * interval.as_secs_f64() / 30.0;
    let reached = if scaled < 0.01 { "yes" } else { "NO" };
    format!(
        "{what}: {:.2} % of a core over {:.1} s, {per_beat:.1?} per beat, {:.2} % at 30 s (target < 1 %: {reached})",
        share * 100.0,
        elapsed.as_secs_f64(),
        scaled * 100.0,
    )
}

/// How long the thread of this name has run on a core.
fn run_time(name: &str) -> Option<Duration> {
    fs::read_dir("/proc/self/task").ok()?.flatten().find_map(|task| {
        let comm = fs::read_to_string(task.path().join("comm")).ok()?;
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        (comm.trim_end() == name).then(|| schedstat.split(' ').next()?.parse().ok().map(Duration::from_nanos)).flatten()
    })
}

/// Keeps the calling thread, and those it starts, on a core, if there are several.
pub(crate) fn pin(core: usize) {
    // Asked once: who is pinned already sees one core only.
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    let cores = CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default());
    if let Some(core) = cores.get(core) {
        core_affinity::set_for_current(*core);
    }
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| env::consts::ARCH.to_owned(), |(_, name)| name.to_owned())
}

fn text() -> String {
    let mut text = r#"{"op":"order","id":1234567,"price":"#.to_owned();
    while text.len() < 200 {
        text.push('7');
    }
    text
}
