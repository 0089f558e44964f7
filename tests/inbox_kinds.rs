//! Inboxes that hand over whole receives, and inboxes that keep the newest only; and how all of them wake who waits.

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::env;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use allocation_counter::measure;
use zen_websocket::testkit::{MockServer, Peer, Script};
use zen_websocket::{
    Batch, BatchInbox, Client, Config, ConflatingInbox, ConnectionId, Driver, Error, Event, EventRef, Inbox, JsonRpc, Overflow,
    Reactor, Received, Sink, State, connect_with, open_with,
};

use self::common::*;

// ---- batches: what is in them ----

#[test]
fn a_batch_holds_what_one_receive_brought_in_order() {
    let (_server, peer, _client, batches) = batched(|config| config);
    let before = Instant::now();
    peer.send_raw(b"\x81\x03one\x82\x02\0\x01\x81\x00\x81\x05three\x82\x00");
    let batch = batches.recv_timeout(WAIT).unwrap();
    let lines = ["text one", "binary [0, 1]", "text ", "text three", "binary []"];
    assert_eq!((lines_of(&batch), batch.len(), batch.iter().len()), (lines.map(str::to_owned).to_vec(), 5, 5));
    assert!(!batch.is_empty() && batch.at >= before && batch.at <= Instant::now());
    assert_eq!((&batch).into_iter().count(), 5);
}

#[test]
fn state_changes_stand_among_the_messages_of_a_batch() {
    let batches = BatchInbox::new(100);
    let (_server, mut driver, client, peer) = turned(|config| config.dialect(JsonRpc::default()), &batches);
    drain(&batches);
    let unmatched = r#"{"jsonrpc":"2.0","id":9,"result":1}"#;
    peer.send_raw([frame("before"), frame(unmatched), frame("after")].concat());
    turn_until(&mut driver, || client.metrics().messages_in == 3);
    let lines: Vec<_> = drain(&batches);
    assert_eq!((lines.len(), lines[0].as_str(), lines[2].as_str()), (3, "text before", "text after"));
    assert!(lines[1].starts_with("Unmatched"), "{lines:?}");
}

#[test]
fn a_batch_never_mixes_wires_nor_connections() {
    const WIRES: u32 = 20;
    let server = serve(Script::new().on_open(|peer| {
        (0..50).for_each(|number| peer.send_text(&number.to_string()));
        peer.close(1001, "");
    }));
    let batches = BatchInbox::new(8192);
    let config = config(&server).base_delay(ms(1)).max_backoff(ms(1));
    let clients: Vec<_> = (0..3).map(|_| open_with(config.clone(), &batches).unwrap()).collect();
    let mut seen: HashMap<_, Vec<_>> = HashMap::new();
    while clients.iter().any(|client| seen.get(&(client.id(), WIRES)).is_none_or(|lines| !has_lost(lines))) {
        let batch = batches.recv_timeout(WAIT).unwrap();
        seen.entry((batch.connection, batch.generation.number())).or_default().extend(lines_of(&batch));
    }
    for client in &clients {
        for wire in 1..WIRES {
            let mut lines = seen[&(client.id(), wire)].clone();
            lines.retain(|line| !line.starts_with("dialing"));
            let numbers = (0..50).map(|number| format!("text {number}"));
            let whole: Vec<_> = ["open".to_owned()].into_iter().chain(numbers).collect();
            assert_eq!(lines[..51], whole, "of {} on wire {wire}", client.id());
            assert!(lines.len() == 52 && lines[51].starts_with("lost"), "{lines:?}");
        }
    }
}

#[test]
fn a_flood_comes_in_batches_of_bounded_size() {
    let (_server, peer, client, batches) = batched(|config| config);
    let filler = "x".repeat(1000);
    for number in 0..2000 {
        peer.send_text(&format!("{number} {filler}"));
    }
    let (mut seen, mut count) = (0, 0);
    while seen < 2000 {
        let batch = batches.recv_timeout(WAIT).unwrap();
        let mut bytes = 0;
        for event in &batch {
            let EventRef::Text(text) = event else { panic!("{event:?}") };
            assert_eq!(text.split_once(' ').unwrap().0, seen.to_string());
            (seen, bytes) = (seen + 1, bytes + text.len());
        }
        assert!(bytes < (64 << 10) + 1100, "{bytes}");
        count += 1;
    }
    assert!(count < 2000, "{count}");
    assert_eq!(client.metrics().messages_in, 2000);
}

#[test]
fn a_large_message_comes_whole() {
    let (_server, peer, _client, batches) = batched(|config| config);
    let text = "é".repeat(1 << 20);
    peer.send_text(&text);
    peer.send_text("after");
    let batch = batches.recv_timeout(WAIT).unwrap();
    let Some(EventRef::Text(received)) = batch.iter().next() else { panic!("{batch:?}") };
    assert_eq!(received.len(), text.len());
    assert!(received == text);
}

#[test]
fn a_batch_outlives_its_inbox_and_its_connection() {
    let (server, peer, client, batches) = batched(|config| config);
    peer.send_text("kept");
    let batch = batches.recv_timeout(WAIT).unwrap();
    drop((batches, peer, client, server));
    assert_eq!(lines_of(&batch), ["text kept"]);
}

// ---- batches: room ----

#[test]
fn a_blocked_batch_inbox_loses_nothing_and_keeps_the_order() {
    let (_server, peer, client, batches) = batched_into(BatchInbox::new(10), |config| config);
    send_numbers(&peer, 0..5000);
    let mut seen = 0;
    while seen < 5000 {
        assert!(batches.len() <= 10, "{}", batches.len());
        for line in lines_of(&batches.recv_timeout(WAIT).unwrap()) {
            assert_eq!(line, format!("text {seen}"));
            seen += 1;
        }
    }
    settle(&peer);
    assert_eq!((client.metrics().messages_in, client.metrics().dropped, batches.is_empty()), (5000, 0, true));
}

#[test]
fn a_full_batch_inbox_says_what_it_dropped_where_it_is_missing() {
    let (_server, peer, client, batches) =
        batched_into(BatchInbox::new(10), |config| config.overflow(Overflow::DropNewest).reconnect(false));
    send_numbers(&peer, 0..100);
    settle(&peer);
    // A pong leaves before the batch is handed over.
    until(|| batches.len() == 10);
    let mut lines = drain(&batches);
    peer.send_text("after the gap");
    while lines.len() < 12 {
        lines.extend(lines_of(&batches.recv_timeout(WAIT).unwrap()));
    }
    let numbers = (0..10).map(|number| format!("text {number}"));
    assert_eq!(lines, numbers.chain(["gap of 90", "text after the gap"].map(str::to_owned)).collect::<Vec<_>>());
    assert_eq!((client.metrics().messages_in, client.metrics().dropped), (101, 90));
}

#[test]
fn state_changes_come_into_a_full_batch_inbox() {
    let (_server, peer, client, batches) =
        batched_into(BatchInbox::new(10), |config| config.overflow(Overflow::DropNewest).reconnect(false));
    send_numbers(&peer, 0..100);
    peer.close(4001, "over");
    client.wait(State::Closed, WAIT).unwrap();
    let lines = drain_to_end(&batches);
    let cause = "the peer closed with code 4001: over";
    let end = ["gap of 90".to_owned(), format!("lost, for good: {cause}"), format!("closed: {cause}")];
    assert_eq!((lines.len(), &lines[10..]), (13, &end[..]));
}

#[test]
fn a_batch_inbox_that_disconnects_when_full_closes_with_the_reason() {
    let (_server, peer, _client, batches) = batched_into(BatchInbox::new(10), |config| config.overflow(Overflow::Disconnect));
    send_numbers(&peer, 0..11);
    assert!(peer.wait_closed(WAIT));
    let lines = drain_to_end(&batches);
    assert_eq!((lines.len(), lines[9].as_str(), lines[10].as_str()), (11, "text 9", "closed: the inbox was full"));
}

#[test]
fn a_dropped_batch_inbox_discards_and_counts() {
    let (_server, peer, client, batches) = batched_into(BatchInbox::new(10), |config| config);
    drop(batches.clone());
    peer.send_text("still held");
    assert_eq!(lines_of(&batches.recv_timeout(WAIT).unwrap()), ["text still held"]);
    drop(batches);
    send_numbers(&peer, 0..1000);
    settle(&peer);
    assert_eq!((client.metrics().messages_in, client.metrics().discarded, client.metrics().dropped), (1001, 1000, 0));
    client.close().unwrap();
}

#[test]
fn a_blocked_batch_inbox_that_is_dropped_lets_the_rest_through() {
    let (_server, peer, client, batches) = batched_into(BatchInbox::new(10), |config| config);
    send_numbers(&peer, 0..1000);
    until(|| batches.len() >= 10);
    drop(batches);
    settle(&peer);
    let metrics = client.metrics();
    assert_eq!((metrics.messages_in, metrics.dropped), (1000, 0));
    assert!(metrics.discarded >= 980 && metrics.discarded <= 1000, "{}", metrics.discarded);
}

#[test]
fn no_inbox_is_without_room() {
    assert!(catch_unwind(|| BatchInbox::new(0)).is_err());
    assert!(catch_unwind(|| ConflatingInbox::new(0, by_name)).is_err());
}

// ---- batches: what they cost ----

#[test]
fn a_flood_into_a_batch_inbox_allocates_nothing() {
    const BURST: usize = 100;
    let batches = BatchInbox::new(8192);
    let (_server, mut driver, client, peer) = turned(|config| config, &batches);
    let burst = frame(&"x".repeat(100)).repeat(BURST);
    let mut flood = |bursts: u64| {
        for _ in 0..bursts {
            let end = client.metrics().messages_in + BURST as u64;
            peer.send_raw(burst.clone());
            while client.metrics().messages_in < end {
                driver.turn(WAIT).unwrap();
            }
            while let Some(batch) = batches.try_recv() {
                assert!(batch.iter().all(|event| !matches!(event, EventRef::Binary(_))));
            }
        }
    };
    flood(20);
    // The bursts themselves are made here.
    let made = measure(|| _ = burst.clone()).count_total;
    let count = measure(|| flood(20)).count_total;
    assert!(count <= 20 * (made + 4), "{count} allocations for {} messages", 20 * BURST);
}

#[test]
fn an_idle_connection_into_any_inbox_is_small() {
    const IDLE: usize = 50;
    let server = MockServer::start().unwrap();
    let (batches, latest) = (BatchInbox::new(8192), ConflatingInbox::new(8192, by_name));
    let cost = |open: &dyn Fn(&Driver) -> Client| {
        let mut driver = Driver::new().unwrap();
        let _first = open_idle(&mut driver, open);
        let mut clients = Vec::with_capacity(IDLE);
        let info = measure(|| clients.extend((0..IDLE).map(|_| open_idle(&mut driver, open))));
        info.bytes_current / IDLE as i64
    };
    for bytes in [
        cost(&|driver| driver.open_with(config(&server), &batches).unwrap()),
        cost(&|driver| driver.open_with(config(&server), &latest).unwrap()),
    ] {
        assert!(bytes <= 4 << 10, "{bytes} bytes per connection");
    }

    fn open_idle(driver: &mut Driver, open: &dyn Fn(&Driver) -> Client) -> Client {
        let client = open(driver);
        turn_until(driver, || client.state().is_open());
        client
    }
}

// ---- the newest only ----

#[test]
fn a_newer_message_takes_the_place_of_an_older_one_with_its_key() {
    let (mut driver, latest, client, peer, _server) = conflated(100, |config| config);
    peer.send_raw(frames(["a 1", "b 1", "a 2", "c 1", "b 2", "a 3"]));
    turn_until(&mut driver, || client.metrics().messages_in == 6);
    assert_eq!((latest.len(), latest.conflated()), (3, 3));
    assert_eq!(taken(&latest), ["text a 3", "text b 2", "text c 1"]);
    peer.send_raw(frames(["b 3", "a 4"]));
    turn_until(&mut driver, || client.metrics().messages_in == 8);
    assert_eq!((taken(&latest), latest.conflated()), (vec!["text b 3".to_owned(), "text a 4".to_owned()], 3));
    peer.send_raw(frames(["a 5", "b 4", "c 2"]));
    turn_until(&mut driver, || client.metrics().messages_in == 11);
    assert_eq!(line(&latest.try_recv().unwrap().event), "text a 5");
    // The others have moved up.
    peer.send_raw(frames(["c 3", "a 6", "b 5", "a 7"]));
    turn_until(&mut driver, || client.metrics().messages_in == 15);
    assert_eq!(taken(&latest), ["text b 5", "text c 3", "text a 7"]);
}

#[test]
fn a_message_is_taken_with_its_own_time() {
    let (mut driver, latest, client, peer, _server) = conflated(100, |config| config);
    peer.send_text("a 1");
    turn_until(&mut driver, || client.metrics().messages_in == 1);
    let between = Instant::now();
    peer.send_text("a 2");
    turn_until(&mut driver, || client.metrics().messages_in == 2);
    assert!(latest.try_recv().unwrap().at > between);
}

#[test]
fn messages_without_a_key_are_all_kept_in_their_places() {
    let (mut driver, latest, client, peer, _server) = conflated(100, |config| config);
    peer.send_raw(frames(["- 1", "a 1", "- 1", "a 2", "- 1"]));
    turn_until(&mut driver, || client.metrics().messages_in == 5);
    assert_eq!(taken(&latest), ["text - 1", "text a 2", "text - 1", "text - 1"]);
}

#[test]
fn no_message_passes_a_state_change() {
    let (mut driver, latest, client, peer, _server) = conflated(100, |config| config.dialect(JsonRpc::default()));
    peer.send_raw(frames(["a 1", "a 2", r#"{"jsonrpc":"2.0","id":9,"result":1}"#, "a 3", "a 4"]));
    turn_until(&mut driver, || client.metrics().messages_in == 5);
    let lines = taken(&latest);
    assert_eq!((lines.len(), lines[0].as_str(), lines[2].as_str()), (3, "text a 2", "text a 4"));
    assert!(lines[1].starts_with("Unmatched"), "{lines:?}");
}

#[test]
fn no_message_moves_to_another_wire() {
    let (mut driver, latest, client, peer, server) = conflated(100, |config| config.base_delay(ms(1)).max_backoff(ms(1)));
    peer.send_raw(frames(["a 1", "a 2"]));
    turn_until(&mut driver, || client.metrics().messages_in == 2);
    peer.close(1001, "");
    turn_until(&mut driver, || client.generation().number() == 2 && client.state().is_open());
    server.accept(WAIT).unwrap().send_raw(frames(["a 3", "a 4"]));
    turn_until(&mut driver, || client.metrics().messages_in == 4);
    let received: Vec<_> = std::iter::from_fn(|| latest.try_recv()).collect();
    let lines: Vec<_> = received.iter().map(|received| (received.generation.number(), line(&received.event))).collect();
    assert!(lines[1].1.starts_with("lost"), "{lines:?}");
    let expected = [(1, "text a 2"), (1, "dialing 1"), (2, "open"), (2, "text a 4")];
    let rest: Vec<_> =
        lines.iter().filter(|(_, line)| !line.starts_with("lost")).map(|(wire, line)| (*wire, line.as_str())).collect();
    assert_eq!(rest, expected);
}

#[test]
fn connections_do_not_replace_the_messages_of_one_another() {
    let server = MockServer::start().unwrap();
    let latest = ConflatingInbox::new(100, by_name);
    let mut driver = Driver::new().unwrap();
    let clients = [(); 2].map(|()| {
        let client = driver.open_with(config(&server), &latest).unwrap();
        turn_until(&mut driver, || client.state().is_open());
        (client, server.accept(WAIT).unwrap())
    });
    taken(&latest);
    for (client, peer) in &clients {
        peer.send_raw(frames(["a 1", "a 2"]));
        turn_until(&mut driver, || client.metrics().messages_in == 2);
    }
    let connections: Vec<_> = std::iter::from_fn(|| latest.try_recv()).map(|received| received.connection).collect();
    assert_eq!(connections, clients.map(|(client, _)| client.id()));
}

#[test]
fn what_takes_anothers_place_takes_no_room() {
    for overflow in [Overflow::Block, Overflow::DropNewest, Overflow::Disconnect] {
        let (mut driver, latest, client, peer, _server) = conflated(5, |config| config.overflow(overflow));
        peer.send_raw(frames((0..1000).map(|number| format!("{} {number}", ["a", "b", "c"][number % 3]))));
        turn_until(&mut driver, || client.metrics().messages_in == 1000);
        assert_eq!(taken(&latest), ["text a 999", "text b 997", "text c 998"]);
        assert_eq!((latest.conflated(), client.metrics().dropped, client.state().is_open()), (997, 0, true));
    }
}

#[test]
fn a_blocked_conflating_inbox_keeps_every_key() {
    let (_server, peer, client, latest) = conflating(5, |config| config);
    peer.send_raw(frames((0..1000).map(|number| format!("{number} x"))));
    for number in 0..1000 {
        assert!(latest.len() <= 5, "{}", latest.len());
        assert_eq!(line(&latest.recv_timeout(WAIT).unwrap().event), format!("text {number} x"));
    }
    assert_eq!((client.metrics().dropped, latest.conflated()), (0, 0));
}

#[test]
fn a_full_conflating_inbox_drops_or_disconnects_as_the_connection_says() {
    let (_server, peer, client, latest) = conflating(5, |config| config.overflow(Overflow::DropNewest));
    peer.send_raw(frames((0..20).map(|number| format!("{number} x"))));
    settle(&peer);
    let mut lines = taken(&latest);
    peer.send_text("0 y");
    while lines.len() < 7 {
        lines.push(line(&latest.recv_timeout(WAIT).unwrap().event));
    }
    let numbers = (0..5).map(|number| format!("text {number} x"));
    assert_eq!(lines, numbers.chain(["gap of 15", "text 0 y"].map(str::to_owned)).collect::<Vec<_>>());
    assert_eq!(client.metrics().dropped, 15);

    let (_server, peer, _client, latest) = conflating(5, |config| config.overflow(Overflow::Disconnect));
    peer.send_raw(frames((0..20).map(|number| format!("{number} x"))));
    assert!(peer.wait_closed(WAIT));
    let lines = (0..6).map(|_| line(&latest.recv_timeout(WAIT).unwrap().event)).collect::<Vec<_>>();
    assert_eq!(lines[5], "closed: the inbox was full");
}

#[test]
fn a_slow_consumer_gets_the_newest_of_every_key_in_the_end() {
    const MESSAGES: u64 = 20_000;
    let (_server, peer, client, latest) = conflating(100, |config| config);
    let sender = thread::spawn(move || {
        (0..MESSAGES).for_each(|number| peer.send_text(&format!("{} {number}", number % 10)));
        peer
    });
    let mut newest = BTreeMap::new();
    let mut count = 0;
    while newest.values().filter(|number| **number >= MESSAGES - 10).count() < 10 {
        let Event::Message(message) = latest.recv_timeout(WAIT).unwrap().event else { panic!("no message") };
        let (key, number) = message.text().unwrap().split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        let previous = newest.insert(key.to_owned(), number);
        assert!(previous.is_none_or(|previous| previous < number), "{key} went back from {previous:?} to {number}");
        count += 1;
    }
    let _peer = sender.join().unwrap();
    assert_eq!(count + latest.conflated(), MESSAGES);
    assert_eq!((client.metrics().messages_in, client.metrics().dropped), (MESSAGES, 0));
}

#[test]
fn a_key_function_that_panics_closes_its_connection_only() {
    let server = MockServer::start().unwrap();
    let latest = ConflatingInbox::new(100, |_, message| match message {
        EventRef::Text("panic") => panic!("no key for this"),
        _ => Some(0),
    });
    let clients = [(); 2].map(|()| {
        let client = connect_with(config(&server), &latest).unwrap();
        (client, server.accept(WAIT).unwrap())
    });
    clients[0].1.send_text("panic");
    let mut closed = latest.iter().filter(|received| matches!(received.event, Event::Closed { .. }));
    let closed = closed.next().unwrap();
    assert_eq!(
        (closed.connection, line(&closed.event)),
        (clients[0].0.id(), "closed: user code panicked: no key for this".to_owned())
    );
    clients[1].1.send_text("still here");
    assert_eq!(line(&latest.recv_timeout(WAIT).unwrap().event), "text still here");
}

#[test]
fn a_key_function_that_panics_over_what_was_held_back_closes_its_connection() {
    let server = MockServer::start().unwrap();
    let latest = ConflatingInbox::new(2, |_, message| match message {
        EventRef::Text("panic") => panic!("no key for this"),
        _ => None::<()>,
    });
    let mut driver = Driver::new().unwrap();
    let client = driver.open_with(config(&server), &latest).unwrap();
    turn_until(&mut driver, || client.state().is_open());
    let peer = server.accept(WAIT).unwrap();
    taken(&latest);
    peer.send_raw(frames(["1", "2", "3", "panic"]));
    turn_until(&mut driver, || latest.len() == 2);
    client.reconnect().unwrap();
    turn_until(&mut driver, || client.state() == State::Closed);
    assert_eq!(taken(&latest).last().unwrap(), "closed: user code panicked: no key for this");
}

#[test]
fn a_dropped_conflating_inbox_discards_and_counts() {
    let server = MockServer::start().unwrap();
    let latest = ConflatingInbox::new(10, |_, _| -> Option<()> { panic!("nobody wants a key") });
    let client = connect_with(config(&server), &latest).unwrap();
    let peer = server.accept(WAIT).unwrap();
    drop(latest);
    peer.send_raw(frames((0..100).map(|number| format!("{number} x"))));
    settle(&peer);
    assert_eq!((client.metrics().messages_in, client.metrics().discarded, client.state().is_open()), (100, 100, true));
}

// ---- who takes ----

#[test]
fn workers_share_the_batches_and_each_sees_them_in_order() {
    let (_server, peer, client, batches) = batched(|config| config);
    let workers = share(&batches, |batch: Batch| {
        batch.iter().filter_map(|event| if let EventRef::Text(text) = event { text.parse().ok() } else { None }).collect()
    });
    send_numbers(&peer, 0..3000);
    let shares = collect(workers, || client.metrics().messages_in == 3000 && batches.is_empty(), &client);
    assert!(shares.iter().all(|share| share.is_sorted()));
    assert_eq!(shares.concat().into_iter().collect::<HashSet<u64>>().len(), 3000);
}

#[test]
fn workers_share_a_conflating_inbox() {
    let (_server, peer, client, latest) = conflating(8192, |config| config);
    let workers = share(&latest, |received: Received| match received.event {
        Event::Message(message) => vec![message.text().unwrap().split_once(' ').unwrap().0.parse().unwrap()],
        _ => Vec::new(),
    });
    peer.send_raw(frames((0..3000).map(|number| format!("{number} x"))));
    let shares = collect(workers, || client.metrics().messages_in == 3000 && latest.is_empty(), &client);
    assert!(shares.iter().all(|share| share.is_sorted()));
    assert_eq!(shares.concat().into_iter().collect::<HashSet<u64>>().len(), 3000);
}

#[test]
fn inboxes_are_asked_with_and_without_waiting() {
    let (_server, peer, _client, batches) = batched(|config| config);
    assert!(batches.try_recv().is_none());
    let began = Instant::now();
    assert!(matches!(batches.recv_timeout(ms(50)), Err(Error::Timeout { after, .. }) if after == ms(50)));
    assert!(began.elapsed() >= ms(50));
    let said = |batch: Batch| lines_of(&batch).concat();
    peer.send_text("recv");
    assert_eq!(said(batches.recv().unwrap()), "text recv");
    peer.send_text("spin");
    assert_eq!(said(batches.spin().unwrap()), "text spin");
    let patient = batches.clone().spin_for(NEVER);
    assert!(matches!(patient.recv_timeout(ms(50)), Err(Error::Timeout { .. })));
    peer.send_text("patient");
    assert_eq!(said(patient.iter().next().unwrap()), "text patient");
    peer.send_text("impatient");
    assert_eq!(said(patient.spin_for(ms(1)).into_iter().next().unwrap()), "text impatient");

    let (_server, peer, _client, latest) = conflating(10, |config| config);
    assert!(latest.try_recv().is_none() && latest.is_empty());
    assert!(matches!(latest.recv_timeout(ms(50)), Err(Error::Timeout { .. })));
    for word in ["a recv", "a spin", "a iter", "a patient"] {
        peer.send_text(word);
        let received = match word {
            "a recv" => latest.recv().unwrap(),
            "a spin" => latest.spin().unwrap(),
            "a iter" => (&latest).into_iter().next().unwrap(),
            _ => latest.clone().spin_for(NEVER).into_iter().next().unwrap(),
        };
        assert_eq!(line(&received.event), format!("text {word}"));
    }
}

#[test]
fn nobody_waits_on_the_thread_that_would_have_to_feed_an_inbox() {
    let server = MockServer::start().unwrap();
    let (batches, latest) = (BatchInbox::new(10), ConflatingInbox::new(10, by_name));
    let mut driver = Driver::new().unwrap();
    let clients = [driver.open_with(config(&server), &batches).unwrap(), driver.open_with(config(&server), &latest).unwrap()];
    turn_until(&mut driver, || clients.iter().all(|client| client.state().is_open()));
    // What is there is given.
    while batches.recv().is_ok() {}
    while latest.recv().is_ok() {}
    let errors = [
        batches.recv().unwrap_err(),
        batches.recv_timeout(WAIT).unwrap_err(),
        batches.spin().unwrap_err(),
        latest.recv().unwrap_err(),
        latest.recv_timeout(WAIT).unwrap_err(),
        latest.spin().unwrap_err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, Error::OnReactor)), "{errors:?}");
    assert!(batches.iter().next().is_none() && latest.iter().next().is_none());
}

#[test]
fn reactors_share_an_inbox() {
    let server = serve(Script::new().on_open(|peer| (0..1000).for_each(|number| peer.send_text(&number.to_string()))));
    let batches = BatchInbox::new(100);
    let reactors: Vec<_> = (0..2).map(|_| Reactor::builder().start().unwrap()).collect();
    let clients: Vec<_> = reactors.iter().map(|reactor| reactor.open_with(config(&server), &batches).unwrap()).collect();
    let mut seen: HashMap<ConnectionId, u64> = HashMap::new();
    while clients.iter().any(|client| seen.get(&client.id()) != Some(&1000)) {
        let batch = batches.recv_timeout(WAIT).unwrap();
        let next = seen.entry(batch.connection).or_default();
        for event in &batch {
            if let EventRef::Text(text) = event {
                assert_eq!(text, next.to_string());
                *next += 1;
            }
        }
    }
}

// ---- how often they are woken ----

/// Bursts, and messages in each.
const BURSTS: usize = 30;
const BURST: usize = 100;

/// Tells the child which server to use.
const URL: &str = "ZEN_WEBSOCKET_BURSTS_URL";

/// Files that do not exist: looking for them marks, in the list of calls of a thread, what is to be counted.
const BEGIN: &str = "/zen-websocket-begin";
const END: &str = "/zen-websocket-end";

#[test]
fn a_consumer_that_sleeps_is_woken_once_for_each_receive() {
    if !Command::new("strace").args(["-o", "/dev/null", "true"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no strace here, or it may not trace; install it to count wake-ups");
        return;
    }
    let server = serve(Script::new().on_text(|peer, _| peer.send_raw(frame("x").repeat(BURST))));
    let trace = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bursts");
    let child = ["--exact", "child_takes_bursts", "--ignored", "--nocapture"];
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .args([&trace, &env::current_exe().unwrap()])
        .args(child)
        .env(URL, server.url())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = fs::read_to_string(&trace).unwrap();
    let thread = trace.lines().find(|line| line.contains(BEGIN)).unwrap().split_inclusive(' ').next().unwrap();
    let mut of_thread = trace.lines().filter(|line| line.starts_with(thread));
    for kind in 0..3 {
        assert!(of_thread.any(|line| line.contains(BEGIN)));
        let (mut wakes, mut end) = (0, None);
        for line in of_thread.by_ref() {
            wakes += usize::from(line.contains("FUTEX_WAKE"));
            end = line.split_once(END);
            if end.is_some() {
                break;
            }
        }
        let receives: usize = end.unwrap().1.split('"').next().unwrap().parse().unwrap();
        // Once in a while somebody waits for a lock, and is woken for it.
        let most = receives + BURSTS / 5;
        assert!((BURSTS..=most).contains(&wakes), "{wakes} wakes for {receives} receives into inbox {kind}");
        assert!(receives < 3 * BURSTS, "{receives} receives");
    }
}

#[test]
#[ignore = "runs in a child process under strace"]
fn child_takes_bursts() {
    let inbox = Inbox::shared(8192);
    take_bursts(&inbox, inbox.clone(), Inbox::is_empty);
    let batches = BatchInbox::new(8192);
    take_bursts(&batches, batches.clone(), BatchInbox::is_empty);
    let latest = ConflatingInbox::new(8192, |_, _| None::<()>);
    take_bursts(&latest, latest.clone(), ConflatingInbox::is_empty);
}

/// Delivers bursts, each to a consumer that sleeps, and marks how many receives they took.
fn take_bursts<I>(sink: impl Into<Sink>, inbox: I, is_empty: impl Fn(&I) -> bool)
where
    I: Clone + IntoIterator + Send + 'static,
{
    let Ok(url) = env::var(URL) else { return };
    let mut driver = Driver::new().unwrap();
    let client = driver.open_with(Config::new(url), sink).unwrap();
    turn_until(&mut driver, || client.state().is_open());
    let (tell, told) = mpsc::channel();
    let consumer = inbox.clone();
    thread::spawn(move || {
        tell.send(Path::new("/proc").join(fs::read_link("/proc/thread-self").unwrap()).join("stat")).unwrap();
        consumer.into_iter().for_each(drop);
    });
    let stat = told.recv_timeout(WAIT).unwrap();
    let is_asleep = || fs::read_to_string(&stat).unwrap().rsplit_once(") ").unwrap().1.starts_with('S');
    let mut receives = 0;
    assert!(fs::metadata(BEGIN).is_err());
    for burst in 0..BURSTS {
        until(|| is_empty(&inbox) && is_asleep());
        client.send("a burst, please").unwrap();
        let messages = || client.metrics().messages_in as usize;
        while messages() < (burst + 1) * BURST {
            let before = messages();
            driver.turn(WAIT).unwrap();
            receives += usize::from(messages() > before);
        }
    }
    assert!(fs::metadata(format!("{END}{receives}")).is_err());
}

// ---- helpers ----

/// The key of a text is its first word; `-` is none.
fn by_name(_: ConnectionId, message: EventRef<'_>) -> Option<String> {
    let EventRef::Text(text) = message else { return None };
    text.split(' ').next().filter(|name| *name != "-").map(str::to_owned)
}

/// A client on an echoing server, into a batch inbox whose events up to `Open` are taken already.
fn batched(set: impl FnOnce(Config) -> Config) -> (MockServer, Peer, Client, BatchInbox) {
    batched_into(BatchInbox::new(8192), set)
}

fn batched_into(batches: BatchInbox, set: impl FnOnce(Config) -> Config) -> (MockServer, Peer, Client, BatchInbox) {
    let server = MockServer::start().unwrap();
    let client = connect_with(set(config(&server)), &batches).unwrap();
    let peer = server.accept(WAIT).unwrap();
    while !lines_of(&batches.recv_timeout(WAIT).unwrap()).contains(&"open".to_owned()) {}
    (server, peer, client, batches)
}

/// A client on an echoing server, into a conflating inbox whose events up to `Open` are taken already.
fn conflating(capacity: usize, set: impl FnOnce(Config) -> Config) -> (MockServer, Peer, Client, ConflatingInbox<String>) {
    let server = MockServer::start().unwrap();
    let latest = ConflatingInbox::new(capacity, by_name);
    let client = connect_with(set(config(&server)), &latest).unwrap();
    let peer = server.accept(WAIT).unwrap();
    while !matches!(latest.recv_timeout(WAIT).unwrap().event, Event::Open) {}
    (server, peer, client, latest)
}

/// The same on a driver that this test turns.
fn conflated(capacity: usize, set: impl FnOnce(Config) -> Config) -> (Driver, ConflatingInbox<String>, Client, Peer, MockServer) {
    let latest = ConflatingInbox::new(capacity, by_name);
    let (server, driver, client, peer) = turned(set, &latest);
    taken(&latest);
    (driver, latest, client, peer, server)
}

/// An open connection of a driver that this test turns.
fn turned(set: impl FnOnce(Config) -> Config, sink: impl Into<Sink>) -> (MockServer, Driver, Client, Peer) {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    let client = driver.open_with(set(config(&server)), sink).unwrap();
    turn_until(&mut driver, || client.state().is_open());
    let peer = server.accept(WAIT).unwrap();
    (server, driver, client, peer)
}

fn turn_until(driver: &mut Driver, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        driver.turn(ms(5)).unwrap();
        assert!(began.elapsed() < WAIT);
    }
}

fn lines_of(batch: &Batch) -> Vec<String> {
    let line = |event: EventRef<'_>| match event {
        EventRef::Text(text) => format!("text {text}"),
        EventRef::Binary(bytes) => format!("binary {bytes:?}"),
        EventRef::State(event) => line(event),
        other => panic!("{other:?}"),
    };
    batch.iter().map(line).collect()
}

fn has_lost(lines: &[String]) -> bool {
    lines.iter().any(|line| line.starts_with("lost"))
}

/// What waits now.
fn drain(batches: &BatchInbox) -> Vec<String> {
    std::iter::from_fn(|| batches.try_recv()).flat_map(|batch| lines_of(&batch)).collect()
}

fn drain_to_end(batches: &BatchInbox) -> Vec<String> {
    let mut lines = Vec::new();
    while !lines.last().is_some_and(|line: &String| line.starts_with("closed")) {
        lines.extend(lines_of(&batches.recv_timeout(WAIT).unwrap()));
    }
    lines
}

fn taken(latest: &ConflatingInbox<impl Clone + Eq + std::hash::Hash + Send + 'static>) -> Vec<String> {
    std::iter::from_fn(|| latest.try_recv()).map(|received| line(&received.event)).collect()
}

/// Three threads that iterate clones of an inbox, each until the `Closed` it finds.
fn share<I, T>(inbox: &I, numbers: impl Fn(T) -> Vec<u64> + Clone + Send + 'static) -> mpsc::Receiver<(usize, Vec<u64>)>
where
    I: Clone + IntoIterator<Item = T> + Send + 'static,
{
    let (give, given) = mpsc::channel();
    for worker in 0..3 {
        let (inbox, numbers, give) = (inbox.clone(), numbers.clone(), give.clone());
        thread::spawn(move || {
            for item in inbox {
                thread::yield_now();
                if give.send((worker, numbers(item))).is_err() {
                    return;
                }
            }
        });
    }
    given
}

/// What each worker has taken until this is so.
fn collect(given: mpsc::Receiver<(usize, Vec<u64>)>, is_done: impl Fn() -> bool, client: &Client) -> Vec<Vec<u64>> {
    let mut shares = vec![Vec::new(); 3];
    until(is_done);
    while shares.iter().map(Vec::len).sum::<usize>() < client.metrics().messages_in as usize {
        let (worker, numbers) = given.recv_timeout(WAIT).unwrap();
        shares[worker].extend(numbers);
    }
    shares
}

/// A text frame.
fn frame(text: &str) -> Vec<u8> {
    zen_websocket::testkit::Frame::text(text).to_bytes()
}

fn frames<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Vec<u8> {
    texts.into_iter().flat_map(|text| frame(text.as_ref())).collect()
}

fn send_numbers(peer: &Peer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        peer.send_text(&number.to_string());
    }
}
