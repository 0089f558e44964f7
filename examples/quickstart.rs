//! Connects to an embedded exchange over TLS, trades a few messages, survives a crash of the exchange and closes.
//!
//! `cargo run --release --example quickstart`

use std::error::Error;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use zen_websocket::testkit::{MockServer, Peer, Script};
use zen_websocket::{Config, Event, connect};

const TICK: Duration = Duration::from_millis(1);
const TICKS: u64 = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    let exchange = MockServer::builder().tls().script(Script::new().on_open(stream_ticks)).start()?;
    let root = exchange.root_certificate().ok_or("the exchange speaks TLS")?;
    let config = Config::new(exchange.url()).root_certificate(root).heartbeat_interval(Duration::from_secs(1));
    let (client, inbox) = connect(config)?;

    let mut one_way = Histogram::<u64>::new(3)?;
    let mut round_trip = Histogram::<u64>::new(3)?;
    let (mut messages, mut losses) = (0, 0);
    let mut asked = Instant::now();
    for received in &inbox {
        match received.event {
            Event::Message(message) => {
                messages += 1;
                let text = message.text().unwrap_or_default();
                if let Some(sent) = text.strip_prefix("tick ") {
                    one_way.record(wall_clock_ns().saturating_sub(sent.parse()?))?;
                } else {
                    round_trip.record((received.at - asked).as_nanos() as u64)?;
                }
                match messages {
                    1..=3 => println!("{text}"),
                    n if n == TICKS / 2 => {
                        println!("… {n} messages; the exchange crashes");
                        exchange.kill_all();
                    }
                    n if n >= TICKS => client.start_close(1000, "that was all")?,
                    n if n % 10 == 0 => {
                        asked = Instant::now();
                        // Meant for the wire that this message came on, and no other.
                        if let Err(error) = client.send_on(received.generation, "order") {
                            println!("not sent: {error}");
                        }
                    }
                    _ => {}
                }
            }
            Event::Lost { cause, redial_in } => {
                losses += 1;
                println!("{} lost: {cause}; redial in {redial_in:?}", received.generation);
            }
            event => println!("{event:?}"),
        }
    }

    let us = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1000.0;
    println!("{messages} messages, losses: {losses}, wires: {}", client.generation().number());
    println!("round trip   p50 {:.1} µs, p99 {:.1} µs", us(&round_trip, 0.5), us(&round_trip, 0.99));
    println!("one-way tick p50 {:.1} µs, p99 {:.1} µs", us(&one_way, 0.5), us(&one_way, 0.99));
    Ok(())
}

/// What the exchange does with each connection: a tick every millisecond, stamped with the time it left.
fn stream_ticks(peer: &Peer) {
    let peer = peer.clone();
    std::thread::spawn(move || {
        while peer.is_open() {
            peer.send_text(&format!("tick {}", wall_clock_ns()));
            std::thread::sleep(TICK);
        }
    });
}

fn wall_clock_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
