//! More libraries beside this crate, measured by the harness of `benches/compare`.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml [-- MEASUREMENT…] [--quick] [--write-guide]`; with `--check` nothing is
//! measured: every contender has to show that it loses and changes nothing.

mod boomnet;
mod check;
#[path = "../../compare/contenders/mod.rs"]
mod contenders;
mod fastwebsockets;
#[path = "../../compare/harness/mod.rs"]
mod harness;
mod nexus;
mod polled;
mod tokio_link;
mod tokio_tungstenite;
mod tokio_websockets;

use std::env;

use rustls::crypto::ring;

use crate::fastwebsockets::FastWebSockets;
use crate::harness::contender::Contender;
use crate::tokio_link::Tokio;
use crate::tokio_tungstenite::TokioTungstenite;
use crate::tokio_websockets::TokioWebSockets;

fn main() {
    // The same cryptography for everyone; nexus-web asks for the default.
    ring::default_provider().install_default().expect("nobody was before");
    let mut contenders = contenders::all();
    contenders.extend(peers());
    if env::args().any(|argument| argument == check::ARGUMENT) {
        return check::run(contenders);
    }
    harness::run(contenders);
}

fn peers() -> Vec<Box<dyn Contender>> {
    let mut peers: Vec<Box<dyn Contender>> = vec![
        Box::new(Tokio::<TokioTungstenite>::new()),
        Box::new(Tokio::<FastWebSockets>::new()),
        Box::new(Tokio::<TokioWebSockets>::new()),
    ];
    peers.extend(boomnet::all());
    peers.extend(nexus::all());
    peers
}
