//! A feed that keeps its own schedule. Each message carries the time at which it was due, so that a client that falls behind is charged
//! with all the time that messages wait for it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::Bench;
use crate::harness::contender::{Next, Observe, Observer, Style};
use crate::harness::goal::{Goal, Limit, Other};
use crate::harness::machine::cpu_time;
use crate::harness::peer::STAMP;
use crate::harness::rounds::{Cell, Column, MANY, SIZE, Turn, Unit, interleave};

/// Messages before those that count, and those that count.
const WARM_UP: usize = 100;
const TICKS: usize = 1500;

/// Per second.
const RATE: usize = 5000;

const COLUMNS: &[Column] =
    &[Column::P50, Column::P99, Column::P999, Column::MAX, Column { name: "CPU per message", unit: Unit::Nanoseconds }];

/// Notes how late messages are.
pub(crate) struct Ticks {
    warm_up: usize,
    count: usize,
    samples: Vec<u64>,
    cpu: Duration,
}

impl Ticks {
    pub(crate) fn new(warm_up: usize, count: usize) -> Self {
        Self { warm_up, count, samples: Vec::with_capacity(count), cpu: Duration::ZERO }
    }

    /// What to ask the server for.
    pub(crate) fn request(&self, rate: usize, size: usize) -> String {
        format!("{} {rate} {size}", self.warm_up + self.count)
    }

    /// In nanoseconds.
    pub(crate) fn into_samples(self) -> Vec<u64> {
        self.samples
    }
}

impl Observe for Ticks {
    fn message(&mut self, payload: &[u8]) -> Next {
        if self.warm_up > 0 {
            self.warm_up -= 1;
            if self.warm_up == 0 {
                self.cpu = cpu_time();
            }
            return Next::Continue;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the epoch is past").as_nanos() as u64;
        let due = payload[..STAMP].iter().fold(0, |stamp, digit| stamp * 10 + u64::from(digit - b'0'));
        // A clock that is set back in between makes no message early.
        self.samples.push(now.saturating_sub(due));
        if self.samples.len() < self.count {
            return Next::Continue;
        }
        self.cpu = cpu_time() - self.cpu;
        Next::Done
    }
}

pub(crate) fn run(bench: &mut Bench) {
    for tls in [false, true] {
        for style in [Style::Parked, Style::Spinning] {
            let target = bench.server.target("/ticks", tls);
            let rounds = bench.rounds(MANY);
            let series = interleave(&mut bench.contenders_of(style), rounds, |contender| {
                let ticks = Ticks::new(WARM_UP, TICKS);
                let request = ticks.request(RATE, SIZE.1);
                let ticks: Ticks = contender.connect(&target, false).run(&request, Observer::new(ticks)).into_inner();
                let cpu = ticks.cpu.as_nanos() as f64 / TICKS as f64;
                let mut turn = Turn::of_latencies(ticks.into_samples());
                turn.figures.push(cpu);
                turn
            });
            let wire = if tls { "TLS" } else { "plain" };
            let goals = match style {
                Style::Parked => {
                    vec![goal("zen, handler"), goal("zen, inbox"), goal("zen, inbox 20 µs spin"), goal("zen, batched inbox")]
                }
                Style::Spinning => vec![goal("zen, own driver")],
            };
            bench.report.add(Cell {
                id: format!("ticks-{style:?}-{wire}").to_lowercase(),
                title: format!("Ticks, {RATE} per second, {}, {wire}, {style:?}", SIZE.0),
                columns: COLUMNS,
                compared: "p99.9",
                is_headline: true,
                series,
                goals,
            });
        }
    }
}

fn goal(ours: &'static str) -> Goal {
    Goal { ours, other: Other::BestPeer, column: "p99.9", limit: Limit::AtMost(1.0) }
}
