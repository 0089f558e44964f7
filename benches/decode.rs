//! Decoding text frames from memory at an 8 KiB read buffer, ours beside tungstenite's.
//!
//! `cargo bench --bench decode`

#[path = "support/memory.rs"]
mod memory;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use crate::memory::{Ours, Theirs};

/// Messages per iteration.
const BATCH: u64 = 1000;

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode text");
    for payload in [200, 1 << 10, 16 << 10] {
        group.throughput(Throughput::Elements(BATCH));
        let (mut ours, mut theirs) = (Ours::new(payload), Theirs::new(payload));
        group.bench_function(BenchmarkId::new("zen-websocket", payload), |bencher| bencher.iter(|| ours.decode(BATCH)));
        group.bench_function(BenchmarkId::new("tungstenite", payload), |bencher| bencher.iter(|| theirs.decode(BATCH)));
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
