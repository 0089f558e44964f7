//! A hot feed whose neighbours the server kills, one after the other, while they redial.
//!
//! A round is a second, so that a machine that is busy with something else for a while spoils few of them.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tungstenite::Message;
use zen_websocket::{Client, Config, Driver, EventRef, Handler, Reactor};

use crate::harness::Bench;
use crate::harness::blocking;
use crate::harness::connect::{config, named};
use crate::harness::contender::{Next, Observe, Target};
use crate::harness::goal::{Goal, Limit, Other};
use crate::harness::rounds::{Cell, Column, Turn, Unit};
use crate::harness::ticks::Ticks;
use crate::harness::tls::Settings;

/// How long a storm lasts, and a calm, and how many there are of either.
const SECONDS: usize = 10;
const STORMS: usize = 1;

/// The feed's messages per second, and their size.
const RATE: usize = 5000;
const SIZE: usize = 200;
/// Messages before those that count, and those that count.
const WARM_UP: usize = RATE;
const TICKS: usize = SECONDS * RATE;

const COLUMNS: &[Column] =
    &[Column::P50, Column::P99, Column::P999, Column::MAX, Column { name: "redials", unit: Unit::PerSecond }];

const TURN_COLUMNS: &[Column] = &[
    Column { name: "longest turn", unit: Unit::Nanoseconds },
    Column { name: "longest with interruptions", unit: Unit::Nanoseconds },
];

/// How feed and neighbours are served, with the names of the calm and the storm.
struct Way {
    names: [&'static str; 2],
    measure: fn(&Weather) -> Seen,
}

const WAYS: [Way; 3] = [
    Way { names: ["zen, own driver, calm", "zen, own driver, storm"], measure: driver },
    Way { names: ["zen, handler, calm", "zen, handler, storm"], measure: handler },
    Way { names: ["tungstenite, a thread each, calm", "tungstenite, a thread each, storm"], measure: threads },
];

/// A feed and as many neighbours as the server kills per second.
struct Weather {
    feed: Target,
    neighbours: Target,
    count: usize,
}

/// What the feed saw.
struct Seen {
    /// How late its messages were, in nanoseconds.
    samples: Vec<u64>,
    /// How many wires the neighbours had besides the first.
    redials: u64,
    /// The longest turns of our own driver in each second, as in [`TURN_COLUMNS`].
    turns: Vec<[Duration; 2]>,
}

pub(crate) fn run(bench: &mut Bench) {
    for (tls, count) in [(false, 20), (true, 5)] {
        let weather =
            |path: &str| Weather { feed: bench.server.target("/ticks", tls), neighbours: bench.server.crowd(path, tls), count };
        let weathers = [weather("/"), weather(&format!("/storm/{count}"))];
        let mut feeds = Vec::new();
        for way in &WAYS {
            feeds.extend(way.names.map(|name| named(name, name.starts_with("zen"))));
        }
        let mut turns = WAYS[0].names.map(|name| named(name, true));
        for _ in 0..bench.rounds(STORMS) {
            for (index, way) in WAYS.iter().enumerate() {
                for (storm, weather) in weathers.iter().enumerate() {
                    let seen = (way.measure)(weather);
                    for longest in seen.turns {
                        let figures = longest.map(|turn| turn.as_nanos() as f64).to_vec();
                        turns[storm].add(Turn { figures, samples: Vec::new() });
                    }
                    for second in seen.samples.chunks(RATE) {
                        let mut turn = Turn::of_latencies(second.to_vec());
                        turn.figures.push(seen.redials as f64 / (WARM_UP / RATE + SECONDS) as f64);
                        feeds[2 * index + storm].add(turn);
                    }
                }
            }
        }
        let wire = if tls { "TLS" } else { "plain" };
        let neighbours = format!("{count} neighbours that are killed once a second, {wire}");
        let goal = |ours, other, column, limit| Goal { ours, other, column, limit: Limit::AtMost(limit) };
        bench.report.add(Cell {
            id: format!("storm-{wire}").to_lowercase(),
            title: format!("Feed of {RATE} messages per second beside {neighbours}"),
            columns: COLUMNS,
            compared: "p99",
            is_headline: true,
            series: feeds,
            goals: vec![
                goal("zen, own driver, storm", Other::Named("zen, own driver, calm"), "p99", 1.25),
                goal("zen, handler, storm", Other::Named("zen, handler, calm"), "p99", 1.25),
            ],
        });
        bench.report.add(Cell {
            id: format!("storm-turns-{wire}").to_lowercase(),
            title: format!("Turns of the driver of that feed, {wire}"),
            columns: TURN_COLUMNS,
            compared: TURN_COLUMNS[0].name,
            is_headline: true,
            series: turns.into(),
            goals: vec![goal("zen, own driver, storm", Other::Nobody, TURN_COLUMNS[0].name, 500_000.0)],
        });
    }
}

impl Weather {
    /// Our settings for a neighbour that redials at once whenever it is killed, and how many wires all of them have had.
    fn neighbour(&self) -> (Config, Arc<AtomicU64>) {
        let opened = Arc::new(AtomicU64::new(0));
        let counter = opened.clone();
        let config = config(&self.neighbours).stable_after(Duration::from_millis(1));
        (config.on_open(move |_, _| _ = counter.fetch_add(1, Ordering::Relaxed)), opened)
    }
}

/// Everything on one thread that never sleeps.
fn driver(weather: &Weather) -> Seen {
    let mut driver = Driver::new().expect("descriptors");
    let (neighbour, opened) = weather.neighbour();
    let open = |_| driver.open_with(neighbour.clone(), Handler::new()).expect("a good config");
    let neighbours: Vec<Client> = (0..weather.count).map(open).collect();
    let feed = driver.open(config(&weather.feed)).expect("a good config");
    while !neighbours.iter().chain([&feed]).all(|client| client.state().is_open()) {
        driver.turn(None).expect("a poller");
    }
    let before = opened.load(Ordering::Relaxed);
    let mut ticks = Ticks::new(WARM_UP, TICKS);
    feed.send(&ticks.request(RATE, SIZE)).expect("the server reads");
    let (mut messages, mut next) = (0, Next::Continue);
    let mut turns = vec![[Duration::ZERO; 2]; (WARM_UP + TICKS) / RATE];
    let mut ran = run_time();
    while next != Next::Done {
        let longest = &mut turns[messages / RATE];
        let start = Instant::now();
        let turned = driver.turn_with(Duration::ZERO, |_, event| {
            if let EventRef::Text(text) = event {
                next = ticks.message(text.as_bytes());
                messages += 1;
            }
        });
        let (elapsed, now_ran) = (start.elapsed(), run_time());
        // The clock counts what interrupts the turn, the time on the core what interrupts this loop between two turns.
        *longest = [longest[0].max(elapsed.min(now_ran - ran)), longest[1].max(elapsed)];
        ran = now_ran;
        turned.expect("a poller");
    }
    turns.drain(..WARM_UP / RATE);
    let redials = opened.load(Ordering::Relaxed) - before;
    Seen { samples: ticks.into_samples(), redials, turns }
}

/// How long this thread has run on a core.
fn run_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Everything on one reactor that sleeps.
fn handler(weather: &Weather) -> Seen {
    let reactor = Reactor::builder().start().expect("a thread");
    let (neighbour, opened) = weather.neighbour();
    let open = |_| reactor.connect_with(neighbour.clone(), Handler::new()).expect("the server accepts");
    let _neighbours: Vec<Client> = (0..weather.count).map(open).collect();
    let ticks = Ticks::new(WARM_UP, TICKS);
    let request = ticks.request(RATE, SIZE);
    let (finish, finished) = mpsc::channel();
    let mut ticks = Some(ticks);
    let handler = Handler::new().text(move |_, text| {
        if ticks.as_mut().is_some_and(|ticks| ticks.message(text.as_bytes()) == Next::Done) {
            let _ = finish.send(ticks.take());
        }
    });
    let feed = reactor.connect_with(config(&weather.feed), handler).expect("the server accepts");
    let before = opened.load(Ordering::Relaxed);
    feed.send(&request).expect("the server reads");
    let ticks = finished.recv().expect("the handler lives").expect("it is done once");
    let redials = opened.load(Ordering::Relaxed) - before;
    reactor.stop();
    Seen { samples: ticks.into_samples(), redials, turns: Vec::new() }
}

/// A blocking thread for the feed and one for each neighbour.
fn threads(weather: &Weather) -> Seen {
    let mut settings = Settings::default();
    let tls = settings.config(&weather.neighbours, false);
    let is_over = Arc::new(AtomicBool::new(false));
    let (open, opened) = mpsc::channel();
    let neighbours: Vec<JoinHandle<()>> = (0..weather.count)
        .map(|_| {
            let (target, tls, is_over, open) = (weather.neighbours.clone(), tls.clone(), is_over.clone(), open.clone());
            thread::spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    let mut socket = blocking::connect(&target, tls.clone());
                    let _ = open.send(socket.get_ref().tcp().try_clone().expect("descriptors"));
                    // Whoever ends the storm looks for further streams after saying so.
                    while !is_over.load(Ordering::SeqCst) && socket.read().is_ok() {}
                }
            })
        })
        .collect();
    let mut streams: Vec<TcpStream> = neighbours.iter().map(|_| opened.recv().expect("the server accepts")).collect();
    let mut feed = blocking::connect(&weather.feed, settings.config(&weather.feed, false));
    let mut ticks = Ticks::new(WARM_UP, TICKS);
    feed.send(ticks.request(RATE, SIZE).into()).expect("the server reads");
    loop {
        let Message::Text(text) = feed.read().expect("the server writes") else { continue };
        if ticks.message(text.as_bytes()) == Next::Done {
            break;
        }
    }
    is_over.store(true, Ordering::SeqCst);
    streams.extend(opened.try_iter());
    let redials = (streams.len() - weather.count) as u64;
    for stream in &streams {
        // Those that were killed are not connected any more.
        let _ = stream.shutdown(Shutdown::Both);
    }
    for neighbour in neighbours {
        neighbour.join().expect("no panic");
    }
    Seen { samples: ticks.into_samples(), redials, turns: Vec::new() }
}
