//! What observers may do, and what they cost those they do not observe.

mod common;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use serde_json::{Value, json};
use zen_websocket::telemetry::{self, Filter, Signal};
use zen_websocket::testkit::Script;
use zen_websocket::{Client, Driver, Event, Handler, JsonRpc, RateLimit, State};

use self::common::*;

/// Answers subscriptions to the channels that `answers` names, and calls other than `keep`.
fn venue(answers: fn(&str) -> bool) -> Script {
    Script::new().on_text(move |peer, text| {
        let Ok(request) = serde_json::from_str::<Value>(text) else { return };
        let channels = request["params"]["channels"].clone();
        let is_answered = channels.as_array().is_none_or(|names| names.iter().all(|name| answers(name.as_str().unwrap_or(""))));
        if is_answered && request["method"] != "keep" {
            peer.send_text(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": channels }).to_string());
        }
    })
}

fn told(client: &Client, filter: Filter) -> (telemetry::Guard, mpsc::Receiver<String>) {
    let (tell, told) = mpsc::channel();
    let guard = telemetry::attach(filter.connection(client.id()), move |observed| {
        let _ = tell.send(format!("{:?}", observed.signal));
    });
    (guard, told)
}

#[test]
fn a_recording_has_an_event_before_what_an_observer_sends_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("feed.jsonl");
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.record_to(&path));
    let sender = client.clone();
    let filter = Filter::name("connection.open").unwrap().connection(client.id());
    let guard = telemetry::attach(filter, move |_| _ = sender.send("hello"));
    peer.reset();
    until_open(&inbox);
    drop(guard);
    client.close().unwrap();
    let recording = fs::read_to_string(&path).unwrap();
    // The server sends it back, later.
    let order: Vec<_> =
        recording.lines().filter(|line| line.contains(r#"\"open\""#) || line.contains(r#""data":"hello""#)).collect();
    assert!(order[1].contains("open") && order[2].contains("hello"), "{recording}");
}

#[test]
fn an_observer_of_another_connection_costs_a_sender_no_allocation() {
    let limit = RateLimit::bucket(1_000_000, 1, NEVER);
    let (_server, _peer, client, _inbox) = session_with(Script::new(), |config| config.rate_limit(limit));
    let (_other_server, _other_peer, other, _other_inbox) = session(Script::new());
    let _guard = telemetry::attach(Filter::all().connection(other.id()), |_| ());
    let count = || allocation_counter::measure(|| (0..100).for_each(|_| _ = client.send("x").unwrap())).count_total;
    count();
    assert_eq!(count(), 0, "allocations of 100 sends");
}

#[test]
fn every_call_that_is_tracked_ends() {
    let limit = RateLimit::bucket(1, 1, NEVER).reserved(0);
    let (_server, _peer, client, _inbox) =
        session_with(venue(|_| true), |config| config.dialect(JsonRpc::new()).rate_limit(limit));
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let (filter, counted) = (Filter::name("request_correlator").unwrap().connection(client.id()), counts.clone());
    let _guard = telemetry::attach(filter, move |observed| {
        let is_end = !matches!(observed.signal, Signal::Track { .. });
        counted[usize::from(is_end)].fetch_add(1, Ordering::SeqCst);
    });
    let _: Value = client.call("answered", ()).unwrap();
    client.call::<Value>("refused by the limit", ()).unwrap_err();
    client.close().unwrap();
    assert_eq!(counts.each_ref().map(|count| count.load(Ordering::SeqCst)), [2, 2]);
}

#[test]
fn calls_that_were_refused_take_no_place_of_a_method() {
    let (_server, _peer, client, _inbox) = session_with(venue(|_| true), |config| config.dialect(JsonRpc::new()).calls_max(1));
    let keep = client.start_call("keep", ()).unwrap();
    for number in 0..64 {
        client.start_call(&format!("method {number}"), ()).unwrap_err();
    }
    drop(keep);
    let _: Value = client.call("real", ()).unwrap();
    let methods = client.latency().methods;
    assert_eq!(methods.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["real"]);
}

#[test]
fn a_subscription_after_a_restore_that_nobody_wanted_any_more_is_no_restore() {
    let (server, peer, client, inbox) = session_with(venue(|_| true), |config| config.dialect(JsonRpc::new()));
    let book = client.subscribe("book").unwrap();
    server.script(venue(|channel| channel == "trades"));
    let (guard, told) = told(&client, Filter::name("subscription_manager").unwrap());
    peer.reset();
    until_open(&inbox);
    drop(book);
    until(|| client.metrics().channels.pending + client.metrics().channels.wanted == 0);
    let _trades = client.subscribe("trades").unwrap();
    until(|| client.state() == State::Live);
    let peer = server.accept(WAIT).unwrap();
    settle(&peer);
    drop(guard);
    let told: Vec<_> = told.iter().collect();
    assert!(!told.iter().any(|line| line.starts_with("Restored")), "{told:#?}");
}

#[test]
fn behind_closed_nothing_is_told() {
    let server = serve(venue(|_| true));
    let mut driver = Driver::new().unwrap();
    let handler = Handler::new().state(|_, event| assert!(!matches!(event, Event::Open), "the handler does not like it"));
    let client = driver.open_with(config(&server).dialect(JsonRpc::new()), handler).unwrap();
    // The panic's own report may take long.
    let (guard, told) = told(&client, Filter::all().without("reactor").unwrap());
    let _book = client.start_subscribe("book").unwrap();
    while client.state() != State::Closed {
        driver.turn(ms(10)).unwrap();
    }
    drop(guard);
    let told: Vec<_> = told.iter().collect();
    assert!(told.last().is_some_and(|last| last.starts_with("Closed")), "{told:?}");
}

#[test]
fn an_observer_of_a_recording_that_closes_what_is_recorded_does_not_stop_the_writer() {
    let (give, take) = mpsc::channel::<Client>();
    let take = Mutex::new(take);
    let (tell, told) = mpsc::channel();
    let guard = telemetry::attach(Filter::name("recorder.failed").unwrap(), move |_| {
        if let Ok(client) = take.lock().unwrap().recv() {
            let _ = tell.send(client.close().map(|()| client.metrics().recorder.unwrap().failure.is_some()));
        }
    });
    // A directory cannot be written to.
    let directory = tempfile::tempdir().unwrap();
    let (_server, _peer, client, _inbox) = session_with(Script::new(), |config| config.record_to(directory.path()));
    give.send(client).unwrap();
    assert!(told.recv_timeout(Duration::from_millis(1900)).unwrap().unwrap(), "it was waited for the thread that waits");
    drop((give, guard));
}

#[test]
fn an_observer_may_ask_everything_and_drop_the_last_client_over_any_signal_of_a_life() {
    for name in Signal::NAMES {
        let (_server, peer, client, inbox) =
            session_with(venue(|_| true), |config| config.dialect(JsonRpc::new()).heartbeat_interval(ms(20)));
        let held = Arc::new(Mutex::new(None::<Client>));
        let holder = held.clone();
        let guard = telemetry::attach(Filter::name(name).unwrap().connection(client.id()), move |_| {
            let taken = holder.lock().unwrap().take();
            if let Some(client) = taken {
                let _ = (client.metrics(), client.latency(), client.heartbeat(), client.rate_status());
                let _guard = telemetry::attach(Filter::all(), |_| ());
                let _ = client.send("x");
            }
        });
        let book = client.start_subscribe("book").unwrap();
        let pending = client.start_call("keep", ()).unwrap();
        *held.lock().unwrap() = Some(client);
        peer.send_text(r#"{"id":4711,"result":1}"#);
        drop((book, pending));
        peer.reset();
        let left = held.lock().unwrap().take();
        drop(left);
        // It ends, whoever dropped the client.
        while inbox.recv_timeout(WAIT).is_ok_and(|received| !matches!(received.event, Event::Closed { .. })) {}
        drop(guard);
    }
}
