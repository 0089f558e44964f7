//! What connections cost that hardly anything happens on: memory, and of thousands of ours the time of a core.
//!
//! Each figure comes from a process of its own. Memory is what the process has more of in RAM; the kernel's share of a connection, which
//! is the same for all, is not in it.

use std::env;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tungstenite::WebSocket;

use crate::harness::Bench;
use crate::harness::blocking::{self, Stream};
use crate::harness::contender::{Contender, Target};
use crate::harness::crowd::raise_descriptors;
use crate::harness::exchange::{from_hex, to_hex};
use crate::harness::goal::{Goal, Limit, Other};
use crate::harness::machine::cpu_time;
use crate::harness::rounds::{Cell, Column, Series, Turn, Unit};

/// The argument that makes the benchmark's own binary hold connections and measure itself; see [`Order`].
pub(crate) const ARGUMENT: &str = "--hold";

const CONNECTIONS: usize = 1000;
const ROUNDS: usize = 3;

/// Connections of ours with the default heartbeat, and how long they are watched: each pings once in the time.
const THOUSANDS: usize = 10_000;
const WATCHED: Duration = Duration::from_millis(31_500);

/// Descriptors for other things.
const SPARE: usize = 200;

/// What a process is to hold.
struct Order {
    contender: String,
    count: usize,
    watched: Duration,
    target: Target,
    /// Where the server tells how many pings and pongs have come.
    census: Target,
}

const COLUMNS: &[Column] =
    &[Column { name: "memory per connection", unit: Unit::Bytes }, Column { name: "opened per second", unit: Unit::PerSecond }];

const COLUMNS_WATCHED: &[Column] = &[COLUMNS[0], COLUMNS[1], Column { name: "of a core", unit: Unit::Share }];

#[expect(clippy::print_stdout, reason = "the limit belongs to the tables")]
pub(crate) fn run(bench: &mut Bench) {
    for tls in [false, true] {
        let series = bench.contenders.iter().filter_map(|contender| {
            let mut series = Series::new(&**contender);
            for _ in 0..bench.rounds(ROUNDS) {
                series.add(order(bench, &**contender, CONNECTIONS, Duration::ZERO, tls).execute()?);
            }
            Some(series)
        });
        let series = series.collect();
        let wire = if tls { "TLS" } else { "plain" };
        bench.report.add(Cell {
            id: format!("memory-{wire}").to_lowercase(),
            title: format!("Memory of {CONNECTIONS} idle connections, {wire}"),
            columns: COLUMNS,
            compared: COLUMNS[0].name,
            is_headline: true,
            series,
            goals: Vec::new(),
        });
    }

    let limit = raise_descriptors();
    println!("client and server may have {limit} descriptors each");
    let count = THOUSANDS.min((limit as usize).saturating_sub(SPARE));
    let Some(ours) = bench.contenders.iter().find(|contender| contender.name() == OURS) else { return };
    let mut series = Series::new(&**ours);
    series.add(order(bench, &**ours, count, WATCHED, false).execute().expect("ours can be held"));
    bench.report.add(Cell {
        id: "crowd".to_owned(),
        title: format!("{count} idle connections, plain, a heartbeat every 30 s"),
        columns: COLUMNS_WATCHED,
        compared: "of a core",
        is_headline: false,
        series: vec![series],
        goals: vec![Goal { ours: OURS, other: Other::Nobody, column: "of a core", limit: Limit::AtMost(0.01) }],
    });
}

const OURS: &str = "zen, handler";

fn order(bench: &Bench, contender: &dyn Contender, count: usize, watched: Duration, tls: bool) -> Order {
    let contender = contender.name().to_owned();
    Order { contender, count, watched, target: bench.server.crowd("/idle", tls), census: bench.server.crowd("/", false) }
}

impl Order {
    /// Has a process carry it out. `None` if the contender does not offer it.
    fn execute(&self) -> Option<Turn> {
        let output = Command::new(env::current_exe().expect("our own path"))
            .args(self.to_arguments())
            .output()
            .expect("the process starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {}", self.contender, String::from_utf8_lossy(&output.stderr));
        let figures: Vec<f64> = said.split_whitespace().map(|figure| figure.parse().expect("a number")).collect();
        (!figures.is_empty()).then_some(Turn { figures, samples: Vec::new() })
    }

    fn to_arguments(&self) -> Vec<String> {
        let Self { contender, count, watched, target, census } = self;
        let mut arguments = vec![ARGUMENT.to_owned(), contender.clone(), count.to_string(), watched.as_millis().to_string()];
        arguments.extend([census.address, target.address].map(|address| address.to_string()));
        arguments.extend(target.root.as_deref().map(to_hex));
        arguments
    }

    fn from_arguments(arguments: &[String]) -> Self {
        let [_, contender, count, watched, census, address, root @ ..] = arguments else { panic!("not an order: {arguments:?}") };
        let target = |address: &str, path: &str, root| Target {
            address: address.parse().expect("an address"),
            path: path.to_owned(),
            root,
        };
        Self {
            contender: contender.clone(),
            count: count.parse().expect("a number"),
            watched: Duration::from_millis(watched.parse().expect("a number")),
            target: target(address, "/idle", root.first().map(|root| from_hex(root).into())),
            census: target(census, "/", None),
        }
    }

    /// Connects to where the server says that every connection has sent such a frame.
    fn census(&self, frames: &str) -> WebSocket<Stream> {
        blocking::connect(&Target { path: format!("/{frames}/{}", self.count), ..self.census.clone() }, None)
    }
}

/// What the process does: opens the connections, waits until each has answered a ping, and says what they cost.
#[expect(clippy::print_stdout, reason = "the figures go to the parent through a pipe")]
pub(crate) fn hold(mut contenders: Vec<Box<dyn Contender>>, arguments: &[String]) {
    let order = Order::from_arguments(arguments);
    let contender = contenders.iter_mut().find(|contender| contender.name() == order.contender).expect("a contender");
    let [mut pongs, mut pings] = ["pongs", "pings"].map(|frames| order.census(frames));
    let before = resident();
    let start = Instant::now();
    let Some(held) = contender.hold(&order.target, order.count) else { return };
    let opening = start.elapsed();
    pongs.read().expect("every connection answers");
    let bytes = resident() - before;
    print!("{} {}", bytes / order.count as f64, order.count as f64 / opening.as_secs_f64());
    if !order.watched.is_zero() {
        let (start, begin) = (Instant::now(), cpu_time());
        // Nobody unparks it.
        thread::park_timeout(order.watched);
        let share = (cpu_time() - begin).as_secs_f64() / start.elapsed().as_secs_f64();
        pings.read().expect("every connection has pinged in the time");
        print!(" {share}");
    }
    println!();
    drop(held);
}

/// How much RAM this process has, in bytes: by the pages themselves, because the counters in `statm` may be off by some hundred.
fn resident() -> f64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").expect("Linux");
    let kibibytes = rollup.lines().find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    kibibytes.map(|kibibytes: f64| kibibytes * 1024.0).expect("a line of this form")
}
