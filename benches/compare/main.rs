//! This crate beside the floor, which is a loop over a bare socket, and beside tungstenite used directly. The package in `benches/peers`
//! measures more libraries in the same way.
//!
//! `cargo bench --bench compare [-- MEASUREMENT…] [--quick] [--write-guide]`; the measurements are listed in `harness`.

mod contenders;
mod harness;

use std::env;

use crate::harness::{exchange, memory};

/// What `cargo bench` says to the program, and the program to the processes that it starts; `cargo test` says neither.
const ARGUMENTS: [&str; 3] = ["--bench", exchange::ARGUMENT, memory::ARGUMENT];

#[expect(clippy::print_stdout, reason = "says why there are no tables")]
fn main() {
    if env::args().any(|argument| ARGUMENTS.contains(&argument.as_str())) {
        harness::run(contenders::all());
    } else {
        println!("measures under `cargo bench` only");
    }
}
