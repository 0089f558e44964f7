//! Messages as fast as the client takes them.

use std::hint;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use crate::harness::Bench;
use crate::harness::contender::{Contender, Link, Next, Observe, Observer, Style, Target};
use crate::harness::goal::{Goal, Limit, Other};
use crate::harness::machine::cpu_time;
use crate::harness::raw::Raw;
use crate::harness::rounds::{Cell, Column, FEW, MANY, SIZE, SIZES, Size, Turn, Unit, interleave};
use crate::harness::tls::Settings;

/// Bytes of payload in a turn, plain and TLS: several times what the kernel buffers.
const BYTES: [usize; 2] = [32 << 20, 16 << 20];

/// Batches between the bare loop and its consumer.
const BATCHES: usize = 256;

const COLUMNS: &[Column] =
    &[Column { name: "messages", unit: Unit::PerSecond }, Column { name: "CPU per message", unit: Unit::Nanoseconds }];

/// Counts, and takes the time from the first message to the last.
struct Flood {
    size: usize,
    left: usize,
    /// By the clock, and in time on a core.
    start: Option<(Instant, Duration)>,
    taken: Option<(Duration, Duration)>,
}

impl Observe for Flood {
    fn message(&mut self, payload: &[u8]) -> Next {
        assert_eq!(payload.len(), self.size);
        hint::black_box(payload[self.size - 1]);
        let (start, cpu) = *self.start.get_or_insert_with(|| (Instant::now(), cpu_time()));
        self.left -= 1;
        if self.left > 0 {
            return Next::Continue;
        }
        self.taken = Some((start.elapsed(), cpu_time() - cpu));
        Next::Done
    }
}

pub(crate) fn run(bench: &mut Bench) {
    let mut batches = Batches::default();
    for tls in [false, true] {
        let wire = if tls { "TLS" } else { "plain" };
        let target = bench.server.target("/flood", tls);
        let cells = SIZES.map(|size| {
            let rounds = bench.rounds(if size == SIZE { MANY } else { FEW });
            let count = BYTES[usize::from(tls)] / size.1;
            let mut contenders: Vec<&mut dyn Contender> =
                bench.contenders.iter_mut().map(|contender| &mut **contender as _).collect();
            contenders.push(&mut batches);
            let series = interleave(&mut contenders, rounds, |contender| turn(contender, &target, count, size.1));
            Cell {
                id: format!("flood-{wire}-{}", size.1).to_lowercase(),
                title: format!("Flood, {}, {wire}", size.0),
                columns: COLUMNS,
                compared: "messages",
                is_headline: size == SIZE,
                series,
                goals: if size == SIZE { goals(tls) } else { Vec::new() },
            }
        });
        let id = format!("flood-{wire}-messages").to_lowercase();
        bench.report.add_by_size(
            id,
            format!("Flood, messages by size, {wire}"),
            &const { Size::columns(Unit::PerSecond) },
            cells,
        );
    }
}

fn turn(contender: &mut dyn Contender, target: &Target, count: usize, size: usize) -> Turn {
    let flood = Flood { size, left: count, start: None, taken: None };
    let flood: Flood = contender.connect(target, false).run(&format!("{count} {size}"), Observer::new(flood)).into_inner();
    let (time, cpu) = flood.taken.expect("it has seen the last message");
    // The clock starts at the first.
    let count = (count - 1) as f64;
    Turn { figures: vec![count / time.as_secs_f64(), cpu.as_nanos() as f64 / count], samples: Vec::new() }
}

fn goals(tls: bool) -> Vec<Goal> {
    let at_least =
        |ours, other, limit| Goal { ours, other: Other::Named(other), column: "messages", limit: Limit::AtLeast(limit) };
    if tls {
        return vec![at_least("zen, handler", "tokio-tungstenite", 1.3)];
    }
    vec![
        at_least("zen, handler", "boomnet", 1.0),
        Goal { ours: "zen, handler", other: Other::Named("boomnet"), column: "CPU per message", limit: Limit::AtMost(1.0) },
        at_least("zen, batched inbox", "bare loop, batches", 0.8),
    ]
}

/// The yardstick of an inbox that hands over batches: a bare loop that copies what it reads at once to a consumer on another thread.
#[derive(Default)]
struct Batches {
    tls: Settings,
}

/// The payloads of one read, one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Contender for Batches {
    fn name(&self) -> &'static str {
        "bare loop, batches"
    }

    fn style(&self) -> Style {
        Style::Parked
    }

    fn is_floor(&self) -> bool {
        true
    }

    fn connect(&mut self, target: &Target, fresh: bool) -> Box<dyn Link> {
        Box::new(BatchesLink(Raw::connect(target, self.tls.config(target, fresh))))
    }
}

struct BatchesLink(Raw);

impl Link for BatchesLink {
    /// Answers nothing: the consumer is not where the socket is.
    fn run(&mut self, first: &str, mut observer: Observer) -> Observer {
        let (deliver, batches) = bounded::<Batch>(BATCHES);
        let consumer = thread::spawn(move || {
            for batch in batches {
                let mut start = 0;
                for end in batch.ends {
                    if observer.message(&batch.bytes[start..end]) == Next::Done {
                        return observer;
                    }
                    start = end;
                }
            }
            unreachable!("somebody delivers until the observer is done")
        });
        let mut left: usize = first.split(' ').next().and_then(|count| count.parse().ok()).expect("the request of a flood");
        self.0.send(first.as_bytes());
        while left > 0 {
            self.0.read();
            let mut batch = Batch::default();
            while let Some(payload) = self.0.take() {
                batch.bytes.extend_from_slice(self.0.payload(payload));
                batch.ends.push(batch.bytes.len());
            }
            left -= batch.ends.len();
            if !batch.ends.is_empty() {
                deliver.send(batch).expect("the consumer sees every message");
            }
        }
        consumer.join().expect("no panic")
    }

    fn send(&mut self, text: &str) {
        self.0.send(text.as_bytes());
    }
}
