//! Keeps to the limits of an exchange that closes on a sixth message within a second, in three ways: refused, waiting, queued. A cancel
//! passes what waits.
//!
//! `cargo run --release --example rate_limits`

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use zen_websocket::testkit::{MockServer, Script};
use zen_websocket::{Config, RateLimit, Throttle, connect};

const LIMIT: u32 = 5;
const WINDOW: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let limit = || RateLimit::window(LIMIT, WINDOW).reserved(1);

    println!("refused at once, with the time to wait:");
    let exchange = strict_exchange()?;
    let (client, _inbox) = connect(Config::new(exchange.url()).rate_limit(limit()))?;
    for number in 1..=6 {
        println!("  order {number}: {:?}", client.send("order"));
    }
    println!("  cancel, from the part that is reserved: {:?}", client.urgent().send("cancel"));
    println!("  {:?}", client.rate_status());
    client.close()?;

    println!("waiting on the sending thread:");
    let exchange = strict_exchange()?;
    let (client, _inbox) = connect(Config::new(exchange.url()).rate_limit(limit()).throttle(Throttle::Wait(2 * WINDOW)))?;
    let began = Instant::now();
    for number in 1..=6 {
        let sent = client.send("order");
        println!("  order {number}: {sent:?} after {:.1?}", began.elapsed());
    }
    client.close()?;

    println!("queued, in lanes:");
    let exchange = strict_exchange()?;
    let (client, _inbox) = connect(Config::new(exchange.url()).rate_limit(limit()).throttle(Throttle::Queue(8)))?;
    for number in 1..=12 {
        let sent = client.send(&format!("order {number}"));
        println!("  order {number}: {sent:?}, pressure {:?}", client.rate_status().pressure);
    }
    println!("  first cancel: {:?}, second: {:?}", client.urgent().send("cancel 1"), client.urgent().send("cancel 2"));
    for _ in 0..14 {
        // Full, it waits for the next second; the second cancel leaves before the orders that were queued.
        let Ok(captured) = exchange.expect(zen_websocket::testkit::Matcher::any(), 2 * WINDOW) else { break };
        println!("  arrived: {}", captured.text().unwrap_or_default());
    }
    println!("the exchange closed nobody: {}", client.generation().number() == 1);
    client.close()?;
    Ok(())
}

/// An exchange that closes a connection on the first message too many.
fn strict_exchange() -> Result<MockServer, std::io::Error> {
    let arrivals = Mutex::new(VecDeque::new());
    let script = Script::new().on_text(move |peer, _| {
        let (now, mut arrivals) = (Instant::now(), arrivals.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        arrivals.retain(|arrival| now - *arrival < WINDOW);
        arrivals.push_back(now);
        if arrivals.len() > LIMIT as usize {
            peer.close(1008, "too many requests");
        }
    });
    MockServer::builder().script(script).start()
}
