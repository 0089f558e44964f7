//! How long it takes to have a connection: the first time, and again after the server has dropped it.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use zen_websocket::{Client, Config, Handler, Reactor, connect_with};

use crate::harness::Bench;
use crate::harness::blocking;
use crate::harness::contender::{Contender, Link, Observer, Style, Target};
use crate::harness::goal::{Goal, Limit, Other};
use crate::harness::rounds::{Cell, Column, FEW, MANY, Series, Turn, interleave};
use crate::harness::tls::Settings;

/// Connections per turn, besides one before them that does not count.
const CONNECTIONS: usize = 30;

/// How long a connection has to close, on the server too, before the next.
const PAUSE: Duration = Duration::from_millis(1);

/// Longer than any connection takes.
const PATIENCE: Duration = Duration::from_secs(5);

const COLUMNS: &[Column] = &[Column::P50, Column::P99, Column::P999, Column::MAX];

/// Ours with a reactor that is started with each connection.
struct OwnReactor;

/// Ours on a reactor that runs already.
struct Ours {
    reactor: Reactor,
    target: Target,
    /// As long as it lives, TLS sessions are kept.
    _keeper: Client,
}

pub(crate) fn run(bench: &mut Bench) {
    for (wire, tls, fresh, rounds) in
        [("plain", false, false, MANY), ("TLS, full", true, true, FEW), ("TLS, resumed", true, false, FEW)]
    {
        let target = bench.server.crowd("/", tls);
        let rounds = bench.rounds(rounds);
        let mut own = OwnReactor;
        let mut contenders: Vec<&mut dyn Contender> =
            bench.contenders.iter_mut().map(|contender| &mut **contender as _).collect();
        // Its sessions are resumed by all that trust the same root.
        if !fresh {
            contenders.push(&mut own);
        }
        let series = interleave(&mut contenders, rounds, |contender| {
            drop(contender.connect(&target, fresh));
            let mut samples = Vec::with_capacity(CONNECTIONS);
            for _ in 0..CONNECTIONS {
                // Nobody unparks it.
                thread::park_timeout(PAUSE);
                let start = Instant::now();
                let link = contender.connect(&target, fresh);
                samples.push(start.elapsed().as_nanos() as u64);
                drop(link);
            }
            Turn::of_latencies(samples)
        });
        let other = Other::Named("tungstenite");
        let goal = Goal { ours: "zen, handler", other, column: "p50", limit: Limit::AtMost(1.5) };
        bench.report.add(Cell {
            id: format!("connect-{wire}").to_lowercase().replace(", ", "-"),
            title: format!("Connect, {wire}"),
            columns: COLUMNS,
            compared: "p50",
            is_headline: true,
            series,
            goals: if tls { Vec::new() } else { vec![goal] },
        });
    }
    for tls in [false, true] {
        redial(bench, tls);
    }
}

/// Both until the first message on the wire: of a connection that is new, and of one that the server has dropped, since it was asked to.
fn redial(bench: &mut Bench, tls: bool) {
    let target = bench.server.crowd("/mortal", tls);
    let ours = Ours::new(bench.server.crowd("/", tls), target.clone());
    let mut settings = Settings::default();
    let mut series = ["zen, handler, connect", "zen, handler, redial", "tungstenite, connect", "tungstenite, redial"]
        .map(|name| named(name, name.starts_with("zen")));
    for round in 0..bench.rounds(MANY) {
        for turn in 0..2 {
            let is_ours = (round + turn) % 2 == 0;
            let (mut connects, mut redials) = (Vec::new(), Vec::new());
            for _ in 0..CONNECTIONS {
                thread::park_timeout(PAUSE);
                let (connect, redial) = if is_ours { ours.live_twice() } else { live_twice(&target, &mut settings) };
                connects.push(connect.as_nanos() as u64);
                redials.push(redial.as_nanos() as u64);
            }
            let at = if is_ours { 0 } else { 2 };
            series[at].add(Turn::of_latencies(connects));
            series[at + 1].add(Turn::of_latencies(redials));
        }
    }
    ours.reactor.stop();
    let wire = if tls { "TLS, resumed" } else { "plain" };
    let other = Other::Named("zen, handler, connect");
    bench.report.add(Cell {
        id: format!("redial-{wire}").to_lowercase().replace(", ", "-"),
        title: format!("Connect and redial until the first message, {wire}"),
        columns: COLUMNS,
        compared: "p50",
        is_headline: true,
        series: series.into(),
        goals: vec![Goal { ours: "zen, handler, redial", other, column: "p50", limit: Limit::AtMost(2.0) }],
    });
}

impl Ours {
    fn new(quiet: Target, target: Target) -> Self {
        let reactor = Reactor::builder().start().expect("a thread");
        let keeper = reactor.connect_with(config(&quiet), Handler::new()).expect("the server accepts");
        Self { reactor, target, _keeper: keeper }
    }

    /// How long a connection takes to be greeted, and to be greeted again.
    fn live_twice(&self) -> (Duration, Duration) {
        let (greet, greeted) = mpsc::channel();
        let handler = Handler::new().text(move |_, _| _ = greet.send(Instant::now()));
        let start = Instant::now();
        let client = self.reactor.connect_with(config(&self.target), handler).expect("the server accepts");
        let connect = wait(&greeted) - start;
        let start = Instant::now();
        client.send("die").expect("the server reads");
        let redial = wait(&greeted) - start;
        client.close().expect("not on the reactor");
        (connect, redial)
    }
}

fn wait(greeted: &Receiver<Instant>) -> Instant {
    greeted.recv_timeout(PATIENCE).expect("a greeting")
}

/// The same by hand.
fn live_twice(target: &Target, settings: &mut Settings) -> (Duration, Duration) {
    let mut connect = || {
        let mut socket = blocking::connect(target, settings.config(target, false));
        socket.read().expect("a greeting");
        socket
    };
    let start = Instant::now();
    let mut socket = connect();
    let first = start.elapsed();
    let start = Instant::now();
    socket.send("die".into()).expect("the server reads");
    while socket.read().is_ok() {}
    drop(socket);
    connect();
    (first, start.elapsed())
}

/// A series of something that is no contender.
pub(crate) fn named(name: &'static str, is_ours: bool) -> Series {
    let latencies = Histogram::new(3).expect("3 digits are possible");
    Series { name, style: Style::Parked, is_ours, is_floor: false, rounds: Vec::new(), latencies }
}

/// Our settings for a target: the defaults.
pub(crate) fn config(target: &Target) -> Config {
    let config = Config::new(target.url());
    match &target.root {
        Some(root) => config.root_certificate(&root[..]).without_system_roots(),
        None => config,
    }
}

impl Contender for OwnReactor {
    fn name(&self) -> &'static str {
        "zen, handler, own reactor"
    }

    fn style(&self) -> Style {
        Style::Parked
    }

    fn is_ours(&self) -> bool {
        true
    }

    fn connect(&mut self, target: &Target, _: bool) -> Box<dyn Link> {
        Box::new(Connected(connect_with(config(target), Handler::new()).expect("the server accepts")))
    }
}

/// A connection that is only made.
struct Connected(#[expect(dead_code, reason = "keeps the connection")] Client);

impl Link for Connected {
    fn run(&mut self, _: &str, _: Observer) -> Observer {
        unreachable!("it is only made")
    }

    fn send(&mut self, _: &str) {
        unreachable!("it is only made")
    }
}
