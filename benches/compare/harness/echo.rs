//! Round trips, one after the other.

use std::time::Instant;

use crate::harness::Bench;
use crate::harness::contender::{Contender, Next, Observe, Observer, Style, Target};
use crate::harness::goal::{Goal, Limit, Other};
use crate::harness::peer::filler;
use crate::harness::rounds::{Cell, Column, FEW, MANY, SIZE, SIZES, Size, Turn, Unit, interleave};

/// Round trips before those that count, and those that count.
const WARM_UP: usize = 50;
const TRIPS: usize = 1000;

/// Libraries that receive on an async runtime.
const TOKIO: &[&str] = &["tokio-tungstenite", "fastwebsockets", "tokio-websockets"];

const COLUMNS: &[Column] = &[Column::P50, Column::P99, Column::P999, Column::MAX];

struct Echo {
    size: usize,
    sent: Instant,
    trips: usize,
    samples: Vec<u64>,
}

impl Observe for Echo {
    fn message(&mut self, payload: &[u8]) -> Next {
        let now = Instant::now();
        assert_eq!(payload.len(), self.size);
        self.trips += 1;
        if self.trips > WARM_UP {
            self.samples.push((now - self.sent).as_nanos() as u64);
        }
        self.sent = now;
        if self.samples.len() == TRIPS { Next::Done } else { Next::Answer }
    }
}

pub(crate) fn run(bench: &mut Bench) {
    for (style, path, server) in [
        (Style::Parked, "/echo", ""),
        (Style::Spinning, "/echo", ", server parked"),
        (Style::Spinning, "/echo-awake", ", server spinning"),
    ] {
        for tls in [false, true] {
            let wire = if tls { "TLS" } else { "plain" };
            let id = format!("echo-{style:?}{}-{wire}", path.trim_start_matches("/echo")).to_lowercase();
            let title = format!("{wire}, {style:?}{server}");
            let target = bench.server.target(path, tls);
            let cells = SIZES.map(|size| {
                let rounds = bench.rounds(if size == SIZE { MANY } else { FEW });
                let series = interleave(&mut bench.contenders_of(style), rounds, |contender| turn(contender, &target, size.1));
                Cell {
                    id: format!("{id}-{}", size.1),
                    title: format!("Echo, {}, {title}", size.0),
                    columns: COLUMNS,
                    compared: "p50",
                    is_headline: size == SIZE,
                    series,
                    goals: if size == SIZE { goals(style, tls) } else { Vec::new() },
                }
            });
            bench.report.add_by_size(
                format!("{id}-p50"),
                format!("Echo, p50 by size, {title}"),
                &const { Size::columns(Unit::Nanoseconds) },
                cells,
            );
        }
    }
}

fn turn(contender: &mut dyn Contender, target: &Target, size: usize) -> Turn {
    let text = String::from_utf8(filler(size)).expect("ASCII");
    let echo = Echo { size, sent: Instant::now(), trips: 0, samples: Vec::with_capacity(TRIPS) };
    let echo: Echo = contender.connect(target, false).run(&text, Observer::new(echo)).into_inner();
    Turn::of_latencies(echo.samples)
}

fn goals(style: Style, tls: bool) -> Vec<Goal> {
    let goal = |ours, column, other, limit| Goal { ours, other, column, limit: Limit::AtMost(limit) };
    match (style, tls) {
        (Style::Parked, false) => vec![
            goal("zen, handler", "p50", Other::Floor, 1.05),
            goal("zen, handler", "p50", Other::BestOf(TOKIO), 0.90),
            goal("zen, inbox", "p50", Other::Floor, 1.35),
            goal("zen, inbox 20 µs spin", "p50", Other::Floor, 1.15),
        ],
        (Style::Parked, true) => vec![goal("zen, handler", "p50", Other::BestOf(TOKIO), 0.90)],
        (Style::Spinning, false) => {
            vec![goal("zen, own driver", "p50", Other::BestPeer, 1.03), goal("zen, own driver", "p99", Other::BestPeer, 1.25)]
        }
        (Style::Spinning, true) => Vec::new(),
    }
}
