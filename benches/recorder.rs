//! What recording a frame costs the thread that reads or sends it, and how fast its writer is.
//!
//! `cargo bench --bench recorder`

use std::env;
use std::hint::black_box;
use std::time::{Duration, Instant};

use zen_websocket::internals::{FrameKind, Tap};
use zen_websocket::{Direction, Generation, Recorder};

/// Rounds of each size, and bytes recorded in one: as a busy feed brings in a flush interval.
const ROUNDS: usize = 501;
const BYTES: u32 = 1 << 20;

const PATIENCE: Duration = Duration::from_secs(60);

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn main() {
    if !env::args().any(|argument| argument == "--bench") {
        println!("measures under `cargo bench` only");
        return;
    }
    let directory = tempfile::tempdir().expect("there is room for files");
    println!("a text frame recorded            p10      p50      p90   written at");
    for (payload, most) in [(64, 100), (200, 100), (1 << 10, 200), (16 << 10, 2000)] {
        let frames = BYTES / payload;
        let path = directory.path().join(format!("{payload}.jsonl"));
        let tap = Tap::new(&Recorder::new(path), 1);
        let text: String = r#"{"price":"1.5"}"#.chars().cycle().take(payload as usize).collect();
        let mut costs = Vec::with_capacity(ROUNDS);
        let mut writing = Duration::ZERO;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for _ in 0..frames {
                record(&tap, black_box(&text));
            }
            let recorded = Instant::now();
            costs.push((recorded - start) / frames);
            assert!(tap.flush(PATIENCE), "the disk keeps up");
            writing += recorded.elapsed();
        }
        assert_eq!(tap.status().dropped, 0);
        costs.sort();
        let [low, middle, high] = [10, 50, 90].map(|percent| costs[ROUNDS * percent / 100].as_nanos());
        let speed = tap.status().bytes as f64 / writing.as_secs_f64() / 1e6;
        let reached = if middle <= most { "yes" } else { "NO" };
        println!(
            "{payload:>6} bytes                {low:>5} ns {middle:>5} ns {high:>5} ns   {speed:>5.0} MB/s   target ≤ {most} ns: {reached}"
        );
    }
}

fn record(tap: &Tap, text: &str) {
    tap.frame(Instant::now(), Generation::default(), Direction::In, FrameKind::Text, text.as_bytes(), false);
}
