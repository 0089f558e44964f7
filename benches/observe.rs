//! What it costs to watch a feed: observers of the telemetry, and a recording. The feed comes from a thread of this process; what is
//! counted is the processor time of the thread that turns the driver.
//!
//! `cargo bench --bench observe`

use std::env;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use tungstenite::handshake::derive_accept_key;
use zen_websocket::internals::{FrameKind, Tap};
use zen_websocket::telemetry::{self, Filter};
use zen_websocket::{Client, Config, Direction, Driver, EventRef, Generation, Recorder, RecorderStatus};

/// Bytes of a message.
const SIZE: usize = 200;

/// Rounds of a comparison, and messages of each contender in one.
const ROUNDS: usize = 21;
const MESSAGES: u64 = 200_000;

/// Messages of a recorded turn: as many as a flush interval brings at the pace.
const RECORDED: u64 = 20_000;

/// The pace that a recording must keep up with, in messages a second, and for how long.
const PACE: u32 = 200_000;
const PACED_FOR: Duration = Duration::from_secs(10);

/// How often the paced feed sends.
const BEAT: Duration = Duration::from_millis(1);

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn main() {
    if !env::args().any(|argument| argument == "--bench") {
        println!("measures under `cargo bench` only");
        return;
    }
    let directory = tempfile::tempdir().expect("there is room for files");
    println!("processor time per message of {SIZE} bytes, the reading thread's   p10      p50      p90");
    let [alone, observed, recorded] = flood(&directory.path().join("flood.jsonl"));
    let mut sorted = alone.clone();
    sorted.sort_by(f64::total_cmp);
    print("nobody watches", &sorted, None);
    print("observers of all signals attached, more than that", &less(&observed, &alone), Some(30.0));
    print("recorded, more than that", &less(&recorded, &alone), None);
    println!();
    println!(
        "recording 200 bytes while the writer works, one by one:      {}",
        one_by_one(&directory.path().join("single.jsonl"))
    );
    println!("recording {PACE} messages/s for {PACED_FOR:?}:                  {}", paced(&directory.path().join("paced.jsonl")));
}

#[expect(clippy::print_stdout, reason = "a line of the table")]
fn print(what: &str, costs: &[f64], most: Option<f64>) {
    let [low, middle, high] = [10, 50, 90].map(|percent| costs[costs.len() * percent / 100]);
    let target = most.map(|most| format!("   target ≤ {most} ns: {}", if middle <= most { "yes" } else { "NO" }));
    println!("{what:<58} {low:>6.1} ns {middle:>6.1} ns {high:>6.1} ns{}", target.unwrap_or_default());
}

/// The differences of each round, sorted.
fn less(one: &[f64], other: &[f64]) -> Vec<f64> {
    let mut differences: Vec<f64> = one.iter().zip(other).map(|(one, other)| one - other).collect();
    differences.sort_by(f64::total_cmp);
    differences
}

/// Nanoseconds per message of each round: alone, with observers, with a recording.
fn flood(path: &Path) -> [Vec<f64>; 3] {
    let feed = Feed::start(None);
    let mut contenders = [Reader::new(Config::new(feed.url())), Reader::new(Config::new(feed.url()))];
    let mut recorded = Reader::new(Config::new(feed.url()).record_to(path));
    let mut costs = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        costs[0].push(contenders[0].read(MESSAGES));
        let guard = telemetry::attach(Filter::all(), |observed| _ = black_box(observed));
        costs[1].push(contenders[1].read(MESSAGES));
        drop(guard);
        costs[2].push(recorded.read(RECORDED));
        while recorded.waiting() > 0 {
            thread::yield_now();
        }
    }
    assert_eq!(recorded.status().dropped, 0);
    costs
}

/// The time of single frames, one reading of the clock included, beside a writer that writes at the pace. The first second, in which memory
/// is touched for the first time, does not count.
fn one_by_one(path: &Path) -> String {
    let tap = Tap::new(&Recorder::new(path), 1);
    let text = "x".repeat(SIZE);
    let mut times = Histogram::<u64>::new(3).expect("3 digits are possible");
    let begun = Instant::now();
    for number in 1..=u64::from(PACE) * 5 {
        while begun.elapsed() < Duration::from_secs(1) * number as u32 / PACE {}
        let at = Instant::now();
        tap.frame(at, Generation::default(), Direction::In, FrameKind::Text, black_box(text.as_bytes()), false);
        let took = at.elapsed();
        if number > u64::from(PACE) {
            times.saturating_record(took.as_nanos() as u64);
        }
    }
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| times.value_at_quantile(quantile));
    let (dropped, reached) = (tap.status().dropped, if p99 <= 300 { "yes" } else { "NO" });
    format!("p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns, {dropped} dropped   target p99 ≤ 300 ns: {reached}")
}

/// Whether a recording keeps up with the pace.
fn paced(path: &Path) -> String {
    let feed = Feed::start(Some(PACE));
    let mut reader = Reader::new(Config::new(feed.url()).record_to(path));
    let (begun, cpu) = (Instant::now(), clock_gettime(ClockId::ProcessCPUTime));
    while begun.elapsed() < PACED_FOR {
        reader.read(u64::from(PACE) / 100);
    }
    let elapsed = begun.elapsed();
    let pace = reader.client.metrics().messages_in as f64 / elapsed.as_secs_f64();
    let used = nanoseconds(clock_gettime(ClockId::ProcessCPUTime)) - nanoseconds(cpu);
    let recorder = reader.status();
    let reached = if recorder.dropped == 0 && pace > f64::from(PACE) * 0.99 { "yes" } else { "NO" };
    let core = used / elapsed.as_nanos() as f64;
    format!(
        "{pace:.0}/s came, {} written, {} dropped, {core:.2} cores with the feed   target: {reached}",
        recorder.written, recorder.dropped
    )
}

/// A connection on a driver that this thread turns.
struct Reader {
    driver: Driver,
    client: Client,
}

impl Reader {
    fn new(config: Config) -> Self {
        let driver = Driver::new().expect("a poller");
        let client = driver.open(config).expect("the config is right");
        Self { driver, client }
    }

    fn status(&self) -> RecorderStatus {
        self.client.metrics().recorder.expect("it is recorded")
    }

    fn waiting(&self) -> usize {
        self.status().waiting
    }

    /// Reads so many messages, at least; returns the processor time of each in nanoseconds.
    fn read(&mut self, messages: u64) -> f64 {
        let mut seen = 0;
        let mut begun = clock_gettime(ClockId::ThreadCPUTime);
        while seen < messages {
            let was_seen = seen;
            self.driver
                .turn_with(None, |_, event| {
                    if let EventRef::Text(text) = event {
                        black_box(text);
                        seen += 1;
                    }
                })
                .expect("polling works");
            if was_seen == 0 && seen > 0 {
                // What the connection took, or a socket that had filled up meanwhile, does not count.
                begun = clock_gettime(ClockId::ThreadCPUTime);
                seen = 1;
            }
        }
        (nanoseconds(clock_gettime(ClockId::ThreadCPUTime)) - nanoseconds(begun)) / (seen - 1) as f64
    }
}

fn nanoseconds(time: rustix::time::Timespec) -> f64 {
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Sends messages to whoever connects, as fast as they are taken or at a pace.
struct Feed(SocketAddr);

impl Feed {
    fn start(pace: Option<u32>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that leaves ends its thread.
                thread::spawn(move || feed(stream, pace));
            }
        });
        Self(address)
    }

    fn url(&self) -> String {
        format!("ws://{}", self.0)
    }
}

fn feed(mut stream: TcpStream, pace: Option<u32>) -> io::Result<()> {
    let mut key = String::new();
    for line in BufReader::new(&stream).lines() {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("sec-websocket-key") => key = value.to_owned(),
            None if line.is_empty() => break,
            _ => {}
        }
    }
    let accept = derive_accept_key(key.as_bytes());
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ";
    write!(stream, "{head}{accept}\r\n\r\n")?;
    let mut frame = vec![0x81, 126, 0, SIZE as u8];
    frame.resize(frame.len() + SIZE, b'x');
    let burst = pace.map_or(256, |pace| pace as usize * BEAT.as_micros() as usize / 1_000_000);
    let frames = frame.repeat(burst);
    let mut next = Instant::now();
    loop {
        stream.write_all(&frames)?;
        if pace.is_some() {
            next += BEAT;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}
