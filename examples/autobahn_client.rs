//! The client side of the Autobahn test suite: echoes every message of every case.
//!
//! `cargo run --release --example autobahn_client ws://127.0.0.1:9001`

use std::error::Error;
use std::time::Duration;

use zen_websocket::{Config, Error as WebSocketError, Event, Handler, Reactor, Result, Sent, State, connect};

const AGENT: &str = "zen-websocket";

/// No case takes as long.
const CASE_MAX: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().next_back().filter(|url| url.starts_with("ws")).ok_or("usage: autobahn_client URL")?;
    let count: u32 = ask(&format!("{server}/getCaseCount"))?.ok_or("the server did not say how many cases there are")?.parse()?;
    let reactor = Reactor::builder().start()?;
    for case in 1..=count {
        // Echoed where they are read: a case that ends in a protocol error wants the messages before it answered first.
        let echo = Handler::new()
            .text(move |context, text| report(case, context.send(text)))
            .binary(move |context, bytes| report(case, context.send_binary(bytes)));
        let client = reactor.connect_with(config(format!("{server}/runCase?case={case}&agent={AGENT}")), echo)?;
        match client.wait(State::Closed, CASE_MAX) {
            Err(WebSocketError::Timeout { .. }) => println!("case {case} did not end"),
            _ => client.close()?,
        }
    }
    ask(&format!("{server}/updateReports?agent={AGENT}"))?;
    println!("{count} cases");
    Ok(())
}

fn report(case: u32, sent: Result<Sent>) {
    if let Err(error) = sent {
        println!("case {case}: {error}");
    }
}

/// The last message that comes before the server closes.
fn ask(url: &str) -> Result<Option<String>> {
    let (_client, inbox) = connect(config(url))?;
    let mut answer = None;
    for received in &inbox {
        if let Event::Message(message) = received.event {
            answer = message.text().map(str::to_owned);
        }
    }
    Ok(answer)
}

/// One wire per case; the suite sends messages of 16 MiB, and echoes pile up while it only writes.
fn config(url: impl Into<String>) -> Config {
    Config::new(url).reconnect(false).heartbeat_interval(None).max_message(16 << 20).unsent_max(64 << 20)
}
