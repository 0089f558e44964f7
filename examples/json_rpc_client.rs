//! Calls methods of an exchange that speaks JSON-RPC: one at a time, several under way, in a batch, and one that is refused.
//!
//! `cargo run --release --example json_rpc_client`

use std::error::Error;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use zen_websocket::testkit::{MockServer, Peer, Script};
use zen_websocket::{Config, JsonRpc, connect, rpc};

rpc! {
    /// The time of the venue, in milliseconds since the Unix epoch.
    fn get_time() -> u64 => "public/get_time";
    fn get_order_book => "public/get_order_book";
}

#[derive(Debug, Deserialize)]
struct Book {
    best_bid: f64,
    best_ask: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let exchange = MockServer::builder().script(Script::new().on_text(answer)).start()?;
    let (client, _inbox) = connect(Config::new(exchange.url()).dialect(JsonRpc::default()))?;

    println!("time: {}", get_time(&client)?);
    let book: Book = get_order_book(&client, json!({ "instrument_name": "BTC-PERPETUAL" }))?;
    println!("bid {}, ask {}", book.best_bid, book.best_ask);

    // Several under way at once; each knows its own reply, whatever their order.
    let orders: Vec<_> =
        (1..=3).map(|amount| client.start_call("private/buy", json!({ "amount": amount }))).collect::<Result<_, _>>()?;
    for order in orders {
        let reply = order.wait_timeout(Duration::from_secs(5))?;
        println!("order {} answered in {:?}", reply.raw_result()?, reply.round_trip());
    }

    // One message, several replies.
    for reply in client.call_batch([("public/get_time", json!({})), ("public/nonsense", json!({}))])? {
        println!("of the batch: {:?}", reply.and_then(|reply| reply.result::<Value>()).map_err(|error| error.to_string()));
    }

    // What a failure means is said by the error, and does not have to be guessed.
    let slow = client.with_call_timeout(Duration::from_millis(100));
    for (handle, method) in [(&client, "private/cancel"), (&slow, "private/never_answered")] {
        if let Err(error) = handle.call::<Value>(method, json!({ "order_id": "4711" })) {
            println!("{method}: {error}; may have been sent: {}; {}", error.may_have_been_sent(), error.explain().suggestion);
        }
    }
    println!(
        "latest round trip: {:?}, pending: {}",
        client.latency().calls.map(|calls| calls.last),
        client.metrics().calls_pending
    );
    client.close()?;
    Ok(())
}

/// What the exchange answers, to single requests and to batches.
fn answer(peer: &Peer, text: &str) {
    match serde_json::from_str(text) {
        Ok(Value::Array(requests)) => peer.send_text(&Value::from_iter(requests.iter().filter_map(reply)).to_string()),
        Ok(request) => reply(&request).into_iter().for_each(|reply| peer.send_text(&reply.to_string())),
        Err(error) => peer.close(1007, &error.to_string()),
    }
}

fn reply(request: &Value) -> Option<Value> {
    let outcome = match request["method"].as_str()? {
        "public/get_time" => json!({ "result": 1_700_000_000_000_u64 }),
        "public/get_order_book" => json!({ "result": { "best_bid": 64_000.5, "best_ask": 64_001.0 } }),
        "private/buy" => json!({ "result": { "order_id": request["params"]["amount"] } }),
        "private/cancel" => json!({ "error": { "code": 11_044, "message": "not_open_order" } }),
        "private/never_answered" => return None,
        _ => json!({ "error": { "code": -32_601, "message": "Method not found" } }),
    };
    let mut reply = json!({ "jsonrpc": "2.0", "id": request["id"] });
    reply.as_object_mut()?.extend(outcome.as_object()?.clone());
    Some(reply)
}
