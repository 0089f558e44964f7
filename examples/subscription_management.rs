//! Subscribes channels, keeps them through a crash of the exchange, gives one an inbox of its own, and learns of one that is refused.
//!
//! `cargo run --release --example subscription_management`

use std::error::Error;
use std::time::Duration;

use serde_json::{Value, json};
use zen_websocket::testkit::{MockServer, Peer, Script};
use zen_websocket::{Channels, Config, Event, Inbox, JsonRpc, LoginStep, State, connect};

const WAIT: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let exchange = MockServer::builder().script(Script::new().on_text(answer)).start()?;
    let credentials =
        |_: &LoginStep<'_>| json!({ "grant_type": "client_credentials", "client_id": "key", "client_secret": "s3cret" });
    let dialect = JsonRpc::default().login("public/auth", credentials);
    let (client, inbox) = connect(Config::new(exchange.url()).dialect(dialect))?;

    let tickers = client.subscribe(["ticker.BTC-PERPETUAL", "ticker.ETH-PERPETUAL"])?;
    println!("confirmed: {:?}", tickers.channels());

    // The book goes to an inbox of its own, and is subscribed anew if it falls silent.
    let books = Inbox::shared(1024);
    let book = client.subscribe(Channels::new(["book.BTC-PERPETUAL.raw"]).inbox(&books).silence(WAIT))?;
    let first = books.iter().find(|received| matches!(received.event, Event::Message(_)));
    println!("first of the book: {:?}", first.map(|received| received.event));

    match client.subscribe(["ticker.BTC-PERPETUAL", "ticker.NOBODY"]) {
        Ok(_) => println!("unexpected"),
        Err(error) => println!("refused: {error}"),
    }

    exchange.kill_all();
    for received in &inbox {
        match received.event {
            Event::Message(message) => println!("{}", message.text().unwrap_or_default()),
            Event::Lost { cause, .. } => println!("lost: {cause}"),
            // All three channels are confirmed again; the first Live was said before the loss.
            Event::Live if received.generation.number() == 2 => break,
            event => println!("{event:?}"),
        }
    }
    println!("restored: {:?}, {:?}", tickers.standings(), book.standings());

    drop(tickers);
    exchange.expect(zen_websocket::testkit::Matcher::regex("public/unsubscribe.*ticker.BTC"), WAIT)?;
    client.wait(State::Live, WAIT)?;
    println!("unsubscribed, {:?}", client.state());
    client.close()?;
    Ok(())
}

/// What the exchange does: lets everybody in, knows two instruments, and sends one message of each channel it confirms.
fn answer(peer: &Peer, text: &str) {
    let request: Value = serde_json::from_str(text).unwrap_or_default();
    let channels: Vec<_> = request["params"]["channels"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let known: Vec<_> = channels.into_iter().filter(|channel| channel.contains("BTC") || channel.contains("ETH")).collect();
    let result = match request["method"].as_str() {
        Some("public/auth") => json!({ "access_token": "token", "expires_in": 900 }),
        _ => json!(known),
    };
    peer.send_text(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }).to_string());
    if request["method"] == "public/subscribe" {
        for channel in known {
            let push = json!({ "jsonrpc": "2.0", "method": "subscription", "params": { "channel": channel, "data": 64_000 } });
            peer.send_text(&push.to_string());
        }
    }
}
