//! What it takes to record a sample, ours beside hdrhistogram's, and to read them.
//!
//! `cargo bench --bench latency`

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use zen_websocket::internals::{Compact, Histogram};

/// Each contender's turn comes once in a round.
const ROUNDS: usize = 31;

/// Samples per turn; the window of ours ends several times in one.
const BATCH: usize = 1_000_000;

/// The time between two samples.
const INTERVAL: Duration = Duration::from_micros(200);

struct Contender<'a> {
    name: &'static str,
    /// Takes a turn; returns the nanoseconds per call.
    turn: Box<dyn FnMut() -> f64 + 'a>,
    turns: Vec<f64>,
}

fn main() {
    let samples = samples();
    let sample = |number: usize| samples[number % samples.len()];
    let (histogram, compact) = (Histogram::default(), RefCell::new(Compact::default()));
    let mut reference = hdrhistogram::Histogram::<u64>::new_with_max(3_600_000_000_000, 2).expect("the bounds are constants");
    let mut now = Instant::now();
    let mut contenders = [
        Contender::new("Histogram::record", BATCH, |number| {
            now += INTERVAL;
            histogram.record(now, sample(number));
        }),
        Contender::new("Compact::record", BATCH, |number| compact.borrow_mut().record(sample(number))),
        Contender::new("hdrhistogram's record", BATCH, |number| {
            reference.record(sample(number).as_nanos() as u64).expect("it is within the bounds");
        }),
        Contender::new("Histogram::summary", BATCH / 1000, |_| _ = black_box(histogram.summary(Instant::now()))),
        Contender::new("Compact::summary", BATCH / 1000, |_| _ = black_box(compact.borrow().summary())),
    ];
    for _ in 0..ROUNDS {
        contenders.iter_mut().for_each(Contender::take_turn);
    }
    println!("ns per call               median    10 %    90 %");
    for Contender { name, mut turns, .. } in contenders {
        turns.sort_by(f64::total_cmp);
        let [median, low, high] = [0.5, 0.1, 0.9].map(|quantile| turns[((ROUNDS - 1) as f64 * quantile) as usize]);
        println!("{name:<24} {median:>7.1} {low:>7.1} {high:>7.1}");
    }
}

impl<'a> Contender<'a> {
    fn new(name: &'static str, calls: usize, mut call: impl FnMut(usize) + 'a) -> Self {
        let turn = move || {
            let start = Instant::now();
            (0..calls).for_each(&mut call);
            start.elapsed().as_nanos() as f64 / calls as f64
        };
        Self { name, turn: Box::new(turn), turns: Vec::with_capacity(ROUNDS) }
    }

    fn take_turn(&mut self) {
        self.turns.push((self.turn)());
    }
}

/// From 10 to 160 µs, the short ones more often, in no order.
fn samples() -> Vec<Duration> {
    let mut state = 4711_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    (0..4096).map(|_| Duration::from_nanos((10_000 + random() % 10_000) << (random() % 16).trailing_zeros().min(3))).collect()
}
