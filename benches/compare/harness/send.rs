//! What a send costs the thread that sends.

use std::hint;
use std::time::{Duration, Instant};

use crate::harness::Bench;
use crate::harness::contender::Style;
use crate::harness::peer::filler;
use crate::harness::rounds::{Cell, Column, FEW, SIZE, Turn, interleave};

const WARM_UP: usize = 50;
const SENDS: usize = 1000;

/// How long a sender does something else between two sends, so that neither the kernel's buffer nor the peer is the bottleneck.
const INTERVAL: Duration = Duration::from_micros(15);

const COLUMNS: &[Column] = &[Column::P50, Column::P99, Column::P999, Column::MAX];

pub(crate) fn run(bench: &mut Bench) {
    let text = String::from_utf8(filler(SIZE.1)).expect("ASCII");
    for tls in [false, true] {
        for style in [Style::Parked, Style::Spinning] {
            let target = bench.server.target("/sink", tls);
            let rounds = bench.rounds(FEW);
            let series = interleave(&mut bench.contenders_of(style), rounds, |contender| {
                let mut link = contender.connect(&target, false);
                let mut samples = Vec::with_capacity(WARM_UP + SENDS);
                for _ in 0..WARM_UP + SENDS {
                    let start = Instant::now();
                    link.send(&text);
                    let end = Instant::now();
                    samples.push((end - start).as_nanos() as u64);
                    while end.elapsed() < INTERVAL {
                        hint::spin_loop();
                    }
                }
                Turn::of_latencies(samples.split_off(WARM_UP))
            });
            let wire = if tls { "TLS" } else { "plain" };
            bench.report.add(Cell {
                id: format!("send-{style:?}-{wire}").to_lowercase(),
                title: format!("Send, {}, {wire}, {style:?}", SIZE.0),
                columns: COLUMNS,
                compared: "p50",
                is_headline: true,
                series,
                goals: Vec::new(),
            });
        }
    }
}
