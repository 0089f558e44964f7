//! What is counted and measured: on connections, of heartbeats and calls, and on reactors.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use zen_websocket::testkit::{ClientMessage, Frame, Matcher, MockServer, Script};
use zen_websocket::{
    BatchInbox, Client, Config, ConflatingInbox, Driver, Error, Event, EventRef, Handler, Inbox, JsonRpc, Metrics, Overflow,
    Pressure, RateLimit, Reactor, Sent, State, Throttle, connect, connect_with, open,
};

use self::common::*;

// ---- a life ----

#[test]
fn before_the_first_wire_nothing_is_counted() {
    let server = serve(Script::new());
    let driver = Driver::new().unwrap();
    let client = driver.open(config(&server)).unwrap();
    let metrics = client.metrics();
    assert_eq!((metrics.state, metrics.generation.number(), metrics.uptime), (State::Connecting, 0, None));
    assert_eq!(counts(&metrics), [0; 7]);
    assert_eq!((metrics.inbox_depth, metrics.calls_pending, metrics.channels), (None, 0, Default::default()));
    assert_eq!((metrics.unsent, metrics.queued, metrics.pressure), (0, 0, Pressure::None));
    assert_eq!(metrics.recorder, None);
    assert!(metrics.memory > 0 && metrics.memory < 16 << 10, "{metrics:?}");
    let latency = client.latency();
    assert_eq!(latency, Default::default());
    let heartbeat = client.heartbeat();
    assert_eq!(heartbeat.interval, Some(Duration::from_secs(30)));
    assert_eq!((heartbeat.unanswered, heartbeat.waiting, heartbeat.misses), (0, None, 0));
    assert_eq!((heartbeat.last_proof, heartbeat.rtt), (None, None));
}

#[test]
fn uptime_is_that_of_the_wire() {
    let began = Instant::now();
    let (server, peer, client, inbox) = session(Script::new());
    let first = client.metrics();
    assert_eq!((first.state, first.generation.number()), (State::Live, 1));
    assert!(first.uptime.unwrap() <= began.elapsed(), "{first:?}");
    assert!(client.metrics().uptime > first.uptime);
    let lost = Instant::now();
    peer.reset();
    until_open(&inbox);
    let second = client.metrics();
    assert_eq!((second.generation.number(), second.redials), (2, 1));
    assert!(second.uptime.unwrap() <= lost.elapsed(), "{second:?}");
    drop(server);
}

#[test]
fn between_wires_the_counts_stand_still() {
    let (server, peer, client, inbox) = session_with(Script::new(), |config| config.base_delay(NEVER).max_backoff(NEVER));
    client.send("12345").unwrap();
    assert_eq!(text(&inbox), "12345");
    let open = client.metrics();
    server.script(Script::new().status(503));
    peer.reset();
    until(|| client.state() == State::Waiting);
    let lost = client.metrics();
    assert_eq!((lost.generation.number(), lost.uptime, lost.redials), (1, None, 1));
    assert_eq!(counts(&lost)[1..], counts(&open)[1..]);
    assert_eq!(counts(&lost)[1..5], [1, 7, 1, 11]);
}

#[test]
fn a_closed_connection_is_still_told_of() {
    let (_server, _peer, client, inbox) = session(Script::new());
    client.send("12345").unwrap();
    assert_eq!(text(&inbox), "12345");
    client.close().unwrap();
    let closed = client.metrics();
    assert_eq!((closed.state, closed.uptime, closed.generation.number()), (State::Closed, None, 1));
    // Our Close frame has a code.
    assert_eq!((closed.messages_out, closed.bytes_out, closed.messages_in), (1, 11 + 8, 1));
    assert!(client.latency().calls.is_none() && client.heartbeat().rtt.is_none());
}

#[test]
fn a_client_of_a_stopped_reactor_still_tells() {
    let (_server, reactor, client, inbox) = session_on_reactor();
    client.send("x").unwrap();
    assert_eq!(text(&inbox), "x");
    reactor.stop();
    assert_eq!((client.metrics().state, client.metrics().messages_in), (State::Closed, 1));
    assert_eq!((client.heartbeat().unanswered, client.latency().pings), (0, None));
    assert_eq!(reactor.metrics().connections, 0);
}

#[test]
fn every_dial_after_the_first_wire_is_a_redial() {
    let (server, mut peer, client, inbox) = session(Script::new());
    assert_eq!(client.metrics().redials, 0);
    for redials in [1, 2, 4] {
        if redials == 4 {
            server.script_next(Script::new().status(503));
        }
        peer.reset();
        until_lost(&inbox);
        until_open(&inbox);
        assert_eq!(client.metrics().redials, redials);
        peer = server.accept(WAIT).unwrap();
    }
}

#[test]
fn a_dial_before_the_first_wire_is_no_redial() {
    let server = serve(Script::new());
    server.script_next(Script::new().status(503));
    let (client, _inbox) = connect(config(&server)).unwrap();
    assert_eq!((client.metrics().redials, server.accepted()), (0, 2));
}

#[test]
fn a_dial_that_the_limit_put_off_is_no_redial() {
    let limit = RateLimit::bucket(2, 1, ms(200)).reserved(0);
    let (server, mut peer, client, inbox) = session_with(Script::new(), |config| config.dial_limit(limit));
    for _ in 0..2 {
        peer.reset();
        until_lost(&inbox);
        until_open(&inbox);
        peer = server.accept(WAIT).unwrap();
    }
    assert_eq!((client.metrics().redials, server.accepted()), (2, 3));
}

// ---- what leaves and what comes ----

#[test]
fn what_is_sent_is_counted_to_the_byte() {
    for server in [serve(Script::new().ignore()), MockServer::builder().tls().script(Script::new().ignore()).start().unwrap()] {
        let (peer, client, _inbox) = join(&server, config(&server));
        let sent = |count| {
            let metrics = client.metrics();
            assert_eq!(metrics.messages_out, count);
            metrics.bytes_out
        };
        client.send("12345").unwrap();
        assert_eq!(sent(1), 6 + 5);
        client.send_binary(&[0; 200]).unwrap();
        assert_eq!(sent(2), 11 + 8 + 200);
        client.send_binary(&vec![0; 70_000]).unwrap();
        assert_eq!(sent(3), 219 + 14 + 70_000);
        assert!(client.send_many(["a", "bb", ""]).error.is_none());
        assert_eq!(sent(6), 70_233 + 7 + 8 + 6);
        client.ping().unwrap();
        assert_eq!(sent(6), 70_254 + 14);
        peer.ping("xyz");
        peer.expect(Matcher::when(|it| it.message == ClientMessage::Pong(b"xyz".to_vec())), WAIT).unwrap();
        assert_eq!(sent(6), 70_268 + 9);
        client.close_with(1000, "bye").unwrap();
        assert_eq!(sent(6), 70_277 + 6 + 2 + 3);
    }
}

#[test]
fn what_is_refused_is_not_counted() {
    let limit = RateLimit::bucket(1, 1, NEVER).reserved(0);
    let (_server, _peer, client, _inbox) = session_with(Script::new().ignore(), |config| config.rate_limit(limit));
    client.send("1").unwrap();
    assert!(matches!(client.send("2"), Err(Error::Throttled { .. })));
    assert!(matches!(client.ping(), Err(Error::Throttled { .. })));
    client.close().unwrap();
    assert!(matches!(client.send("3"), Err(Error::Closed)));
    assert_eq!(client.metrics().messages_out, 1);
}

#[test]
fn what_waits_for_the_limit_is_counted_when_it_leaves() {
    let set = |config: Config| config.rate_limit(RateLimit::bucket(1, 1, ms(300)).reserved(0)).throttle(Throttle::Queue(4));
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore(), set);
    let sent = ["1", "2", "3"].map(|text| client.send(text).unwrap());
    assert_eq!(sent, [Sent::Written, Sent::Queued, Sent::Queued]);
    let metrics = client.metrics();
    assert_eq!((metrics.messages_out, metrics.queued, metrics.pressure), (1, 2, Pressure::Medium));
    peer.expect("3", WAIT).unwrap();
    until(|| client.metrics().messages_out == 3);
    let metrics = client.metrics();
    assert_eq!((metrics.bytes_out, metrics.queued, metrics.pressure), (21, 0, Pressure::None));
}

#[test]
fn what_waited_in_vain_is_not_counted() {
    let set = |config: Config| config.rate_limit(RateLimit::bucket(1, 1, NEVER).reserved(0)).throttle(Throttle::Queue(4));
    let (_server, peer, client, inbox) = session_with(Script::new().ignore(), set);
    ["1", "2", "3"].iter().for_each(|text| _ = client.send(text).unwrap());
    peer.reset();
    until_lost(&inbox);
    let metrics = client.metrics();
    assert_eq!((metrics.messages_out, metrics.bytes_out, metrics.queued, metrics.pressure), (1, 7, 0, Pressure::None));
}

#[test]
fn what_the_dialect_says_is_counted() {
    let set = |config: Config| config.dialect(JsonRpc::new().login("auth", |_| json!({})));
    let (_server, peer, client, _inbox) = session_with(venue(), set);
    let _book = client.subscribe("book").unwrap();
    client.call::<Value>("m", ()).unwrap();
    let texts: Vec<_> = peer.captured().iter().map(|it| it.text().unwrap().len() as u64).collect();
    let bytes: u64 = texts.iter().map(|length| length + if *length < 126 { 6 } else { 8 }).sum();
    let metrics = client.metrics();
    assert_eq!((texts.len(), metrics.messages_out, metrics.bytes_out), (3, 3, bytes));
}

#[test]
fn the_pings_of_a_dialect_are_messages() {
    let script = Script::new().on_text(|peer, _| peer.send_text("pong"));
    let (_server, _peer, client, _inbox) = session_with(script, |config| config.dialect(Pinger).heartbeat_interval(ms(20)));
    until(|| client.latency().pings.is_some_and(|pings| pings.total.count >= 3));
    let metrics = client.metrics();
    assert!(metrics.messages_out >= 3 && metrics.messages_in >= 3, "{metrics:?}");
}

#[test]
fn what_is_received_is_counted_to_the_byte() {
    for server in [serve(Script::new()), MockServer::builder().tls().start().unwrap()] {
        let (peer, client, inbox) = join(&server, config(&server));
        peer.send_text("12345");
        peer.send_fragments(&["ab", "cd"]);
        peer.ping("xyz");
        peer.send_binary(&vec![0; 70_000]);
        (0..3).for_each(|_| _ = next(&inbox));
        let metrics = client.metrics();
        assert_eq!((metrics.messages_in, metrics.bytes_in), (3, 7 + 4 + 4 + 5 + 70_010));
    }
}

#[test]
fn what_an_inbox_has_no_room_for_yet_is_counted_once() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(4));
    let frame = Frame::text("12345").to_bytes();
    peer.send_raw(frame.repeat(100));
    (0..100).for_each(|_| assert_eq!(text(&inbox), "12345"));
    settle(&peer);
    let metrics = client.metrics();
    // And the ping.
    assert_eq!((metrics.messages_in, metrics.bytes_in), (100, 100 * frame.len() as u64 + 2 + 8));
    assert_eq!((metrics.dropped, metrics.discarded), (0, 0));
}

#[test]
fn what_is_dropped_or_discarded_is_counted_as_received_too() {
    let set = |config: Config| config.inbox_capacity(2).overflow(Overflow::DropNewest);
    let (_server, peer, client, inbox) = session_with(Script::new(), set);
    peer.send_raw(Frame::text("x").to_bytes().repeat(5));
    settle(&peer);
    assert_eq!((client.metrics().messages_in, client.metrics().dropped, client.metrics().discarded), (5, 3, 0));
    drop(inbox);
    peer.send_raw(Frame::text("x").to_bytes().repeat(5));
    settle(&peer);
    let metrics = client.metrics();
    assert_eq!((metrics.messages_in, metrics.dropped), (10, 3));
    // The gap, too.
    assert_eq!(metrics.discarded, 6);
}

#[test]
fn an_inbox_that_nobody_holds_is_never_full() {
    for overflow in [Overflow::Block, Overflow::Disconnect, Overflow::DropNewest] {
        let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(2).overflow(overflow));
        drop(inbox);
        peer.send_raw(Frame::text("x").to_bytes().repeat(5));
        settle(&peer);
        let metrics = client.metrics();
        assert_eq!(
            (metrics.state, metrics.messages_in, metrics.dropped, metrics.discarded),
            (State::Live, 5, 0, 5),
            "{overflow:?}"
        );
    }
}

// ---- inboxes ----

#[test]
fn the_depth_is_what_waits_in_the_inbox() {
    let (_server, peer, client, inbox) = session(Script::new());
    assert_eq!(client.metrics().inbox_depth, Some(0));
    peer.send_raw(Frame::text("x").to_bytes().repeat(5));
    settle(&peer);
    assert_eq!(client.metrics().inbox_depth, Some(5));
    next(&inbox);
    assert_eq!(client.metrics().inbox_depth, Some(4));
    drop(inbox);
    assert_eq!(client.metrics().inbox_depth, Some(0));
}

#[test]
fn an_inbox_that_nobody_feeds_any_more_has_no_depth() {
    let (_server, peer, client, inbox) = session(Script::new());
    peer.send_raw(Frame::text("x").to_bytes().repeat(5));
    settle(&peer);
    client.close().unwrap();
    until(|| inbox.len() == 6);
    until(|| client.metrics().inbox_depth == Some(0));
    assert_eq!(inbox.len(), 6);
}

#[test]
fn the_depth_of_a_shared_inbox_is_that_of_all() {
    let server = serve(Script::new());
    let inbox = Inbox::shared(64);
    let clients = [(); 2].map(|()| connect_with(config(&server), &inbox).unwrap());
    let depths = || clients.each_ref().map(|client| client.metrics().inbox_depth);
    assert_eq!(depths(), [Some(4); 2]);
    clients[0].close().unwrap();
    until(|| inbox.len() == 5);
    assert_eq!(depths(), [Some(5); 2]);
}

#[test]
fn other_inboxes_have_a_depth_and_handlers_have_none() {
    let server = serve(Script::new());
    let batches = BatchInbox::new(64);
    let latest = ConflatingInbox::new(64, |_, event| matches!(event, EventRef::Text(_)).then_some(()));
    let to_batches = connect_with(config(&server), &batches).unwrap();
    let to_latest = connect_with(config(&server), &latest).unwrap();
    let to_handler = connect_with(config(&server), Handler::new()).unwrap();
    assert!(server.wait_connections(3, WAIT));
    for _ in 0..3 {
        server.broadcast_text("x");
    }
    server.peers().iter().for_each(settle);
    // Two state changes each; of the messages only the latest stays where they replace one another.
    assert_eq!(to_batches.metrics().inbox_depth, Some(5));
    assert_eq!(to_latest.metrics().inbox_depth, Some(3));
    assert_eq!(to_handler.metrics().inbox_depth, None);
    drop((batches, latest));
    assert_eq!((to_batches.metrics().inbox_depth, to_latest.metrics().inbox_depth), (Some(0), Some(0)));
}

#[test]
fn an_inbox_ends_though_its_depth_is_asked_for_all_the_time() {
    let server = serve(Script::new());
    let reactor = Reactor::builder().start().unwrap();
    for round in 0..200 {
        let (client, inbox) = reactor.connect(config(&server)).unwrap();
        let (is_over, (done, ended)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
        let polls: Vec<_> = (0..2)
            .map(|_| {
                let (client, is_over) = (client.clone(), is_over.clone());
                thread::spawn(move || {
                    while !is_over.load(Ordering::SeqCst) {
                        client.metrics();
                    }
                })
            })
            .collect();
        thread::spawn(move || done.send(inbox.iter().count()));
        client.close().unwrap();
        let count = ended.recv_timeout(WAIT);
        is_over.store(true, Ordering::SeqCst);
        polls.into_iter().for_each(|poll| poll.join().unwrap());
        assert_eq!(count, Ok(3), "in round {round}");
    }
}

#[test]
fn an_inbox_ends_for_all_who_wait_though_its_connection_is_lost_with_its_reactor() {
    let server = serve(Script::new());
    for round in 0..30 {
        let reactor = Reactor::builder().start().unwrap();
        let (client, inbox) = reactor.connect(config(&server)).unwrap();
        let (is_over, (done, ended)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
        let poll = thread::spawn({
            let is_over = is_over.clone();
            move || {
                while !is_over.load(Ordering::SeqCst) {
                    client.metrics();
                }
            }
        });
        for _ in 0..3 {
            let (inbox, done) = (inbox.clone(), done.clone());
            thread::spawn(move || done.send(inbox.iter().count()));
        }
        drop(inbox);
        reactor.stop();
        let counts: Vec<_> = (0..3).map(|_| ended.recv_timeout(WAIT)).collect();
        is_over.store(true, Ordering::SeqCst);
        poll.join().unwrap();
        assert_eq!(counts.into_iter().map(|count| count.unwrap()).sum::<usize>(), 3, "in round {round}");
    }
}

// ---- calls, channels, memory ----

#[test]
fn calls_that_wait_are_counted() {
    let (_server, _peer, client, _inbox) = session_with(Script::new().ignore(), |config| config.dialect(JsonRpc::new()));
    let calls: Vec<_> = (0..3).map(|_| client.start_call("m", ()).unwrap()).collect();
    assert_eq!(client.metrics().calls_pending, 3);
    drop(calls);
    assert_eq!(client.metrics().calls_pending, 0);
}

#[test]
fn channels_are_counted_by_where_they_stand() {
    let server = serve(Script::new().ignore());
    server.script_next(Script::new().status(503));
    let (client, inbox) = open(config(&server).dialect(JsonRpc::new()).base_delay(ms(200))).unwrap();
    let books = client.start_subscribe(["book.a", "book.b", "bad"]).unwrap();
    let counts = || {
        let channels = client.metrics().channels;
        [channels.wanted, channels.pending, channels.confirmed, channels.rejected]
    };
    until(|| counts() == [3, 0, 0, 0]);
    until_open(&inbox);
    let peer = server.accept(WAIT).unwrap();
    let asked = peer.expect(Matcher::regex("subscribe"), WAIT).unwrap();
    until(|| counts() == [0, 3, 0, 0]);
    let id = serde_json::from_str::<Value>(asked.text().unwrap()).unwrap()["id"].clone();
    peer.send_text(&json!({ "id": id, "result": ["book.a", "book.b"] }).to_string());
    until(|| counts() == [0, 0, 2, 1]);
    let more = client.start_subscribe(["book.a", "book.c"]).unwrap();
    until(|| counts() == [0, 1, 2, 1]);
    drop(books);
    until(|| counts() == [0, 1, 1, 0]);
    drop(more);
    until(|| counts() == [0; 4]);
}

#[test]
fn channels_are_wanted_again_after_a_loss_and_gone_if_they_are_not_restored() {
    for (restore, expected) in [(true, 1), (false, 0)] {
        let set = |config: Config| config.dialect(JsonRpc::new()).restore(restore).base_delay(NEVER).max_backoff(NEVER);
        let (server, peer, client, _inbox) = session_with(venue(), set);
        let _book = client.subscribe("book").unwrap();
        assert_eq!(client.metrics().channels.confirmed, 1);
        server.script(Script::new().status(503));
        peer.reset();
        until(|| client.state() == State::Waiting);
        let channels = client.metrics().channels;
        assert_eq!((channels.wanted, channels.confirmed + channels.pending + channels.rejected), (expected, 0));
    }
}

#[test]
fn memory_grows_with_an_unfinished_message_and_falls_again() {
    let (_server, peer, client, inbox) = session(Script::new());
    let before = client.metrics().memory;
    peer.send_frame(&Frame::binary(vec![0; 1 << 20]).unfinished());
    settle(&peer);
    let held = client.metrics().memory;
    assert!(held >= before + (1 << 20) && held < before + (3 << 20), "{before} to {held}");
    peer.send_frame(&Frame::continuation(""));
    next(&inbox);
    settle(&peer);
    let after = client.metrics().memory;
    assert!(after < before + (64 << 10), "{before} to {held} to {after}");
}

#[test]
fn memory_of_an_unfinished_message_goes_with_its_wire() {
    let (_server, peer, client, inbox) = session(Script::new());
    let before = client.metrics().memory;
    peer.send_frame(&Frame::binary(vec![0; 1 << 20]).unfinished());
    settle(&peer);
    peer.reset();
    until_lost(&inbox);
    assert!(client.metrics().memory < before + (64 << 10), "{}", client.metrics().memory);
}

#[test]
fn memory_grows_with_what_the_kernel_does_not_take_and_falls_again() {
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().ignore().stop_reading()).start().unwrap();
    let (peer, client, _inbox) = join(&server, config(&server).unsent_max(1 << 20));
    let before = client.metrics();
    while client.send_binary(&[0; 60_000]).is_ok() {}
    let full = client.metrics();
    assert!(full.unsent > 900_000 && full.memory > before.memory + full.unsent, "{full:?}");
    peer.resume_reading();
    until(|| client.metrics().unsent == 0);
    until(|| client.metrics().memory < before.memory + (64 << 10));
}

// ---- heartbeats ----

#[test]
fn pings_without_a_pong_are_unanswered_and_wait() {
    let (_server, peer, client, _inbox) = session_with(Script::new().withhold_pongs(), |config| config.heartbeat_interval(None));
    let began = Instant::now();
    (0..3).for_each(|_| _ = client.ping().unwrap());
    let first = client.heartbeat();
    assert_eq!((first.interval, first.unanswered, first.misses), (None, 3, 0));
    assert_eq!((first.last_proof, first.rtt, client.latency().pings), (None, None, None));
    assert!(first.waiting.unwrap() <= began.elapsed());
    assert!(client.heartbeat().waiting > first.waiting);
    // A pong with a number that was never used, or with none, proves nothing.
    for payload in [&[0xFF; 8][..], b"", b"foreign!", &[0; 7]] {
        peer.send_frame(&Frame::pong(payload));
    }
    settle(&peer);
    assert_eq!((client.heartbeat().unanswered, client.heartbeat().last_proof), (3, None));
}

#[test]
fn a_pong_proves_when_the_peer_lived_and_how_far_away_it_is() {
    let (_server, _peer, client, _inbox) = session_with(Script::new(), |config| config.heartbeat_interval(ms(250)));
    let (began, wall) = (Instant::now(), SystemTime::now());
    client.ping().unwrap();
    until(|| client.heartbeat().rtt.is_some());
    let heartbeat = client.heartbeat();
    let proof = heartbeat.last_proof.unwrap();
    assert!(proof.at >= began && proof.at <= Instant::now() && heartbeat.rtt.unwrap() <= began.elapsed(), "{heartbeat:?}");
    assert!(proof.wall + ms(50) >= wall && proof.wall <= SystemTime::now() + ms(50), "{heartbeat:?}");
    assert_eq!(heartbeat.interval, Some(ms(250)));
    let pings = client.latency().pings.unwrap();
    assert_eq!(Some(pings.last), heartbeat.rtt);
}

#[test]
fn pings_are_forgotten_with_their_wire_and_what_was_proved_is_not() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.heartbeat_interval(None));
    client.ping().unwrap();
    until(|| client.heartbeat().rtt.is_some());
    let proved = client.heartbeat();
    peer.silence(true);
    client.ping().unwrap();
    assert_eq!(client.heartbeat().unanswered, 1);
    peer.reset();
    until_lost(&inbox);
    until_open(&inbox);
    let after = client.heartbeat();
    assert_eq!((after.unanswered, after.waiting, after.rtt), (0, None, proved.rtt));
    assert_eq!(after.last_proof.unwrap().at, proved.last_proof.unwrap().at);
}

#[test]
fn no_ping_of_a_closed_connection_is_awaited() {
    let (_server, _peer, client, _inbox) = session_with(Script::new().withhold_pongs(), |config| config.heartbeat_interval(None));
    client.ping().unwrap();
    client.close().unwrap();
    assert_eq!((client.heartbeat().unanswered, client.heartbeat().waiting), (0, None));
}

#[test]
fn a_ping_that_could_not_leave_is_not_awaited() {
    let set = |config: Config| config.heartbeat_interval(None).base_delay(ms(100));
    let (server, peer, client, inbox) = session_with(Script::new(), set);
    server.script_next(Script::new().status(503));
    peer.reset();
    until(|| client.state() == State::Waiting);
    assert!(matches!(client.ping(), Err(Error::NotConnected)));
    assert_eq!((client.heartbeat().unanswered, client.heartbeat().waiting), (0, None));
    until_open(&inbox);
    assert_eq!((client.heartbeat().unanswered, client.heartbeat().waiting), (0, None));
}

#[test]
fn a_ping_that_the_limit_refused_is_not_awaited() {
    let set = |config: Config| config.heartbeat_interval(None).rate_limit(RateLimit::bucket(1, 1, NEVER).reserved(0));
    let (_server, _peer, client, _inbox) = session_with(Script::new(), set);
    client.send("x").unwrap();
    assert!(matches!(client.ping(), Err(Error::Throttled { .. })));
    assert_eq!((client.heartbeat().unanswered, client.heartbeat().waiting), (0, None));
}

#[test]
fn misses_are_counted_over_all_wires() {
    let set = |config: Config| config.heartbeat_interval(ms(20)).patience(ms(20));
    let (server, _peer, client, _inbox) = session_with(Script::new().silent(), set);
    until(|| client.heartbeat().misses >= 2);
    assert!(server.accepted() >= 2);
    assert_eq!((client.heartbeat().rtt, client.latency().pings), (None, None));
}

#[test]
fn the_answers_of_a_dialect_prove_as_pongs_do() {
    let script = Script::new().on_text(|peer, _| peer.send_text("pong"));
    let (_server, _peer, client, _inbox) = session_with(script, |config| config.dialect(Pinger).heartbeat_interval(ms(20)));
    until(|| client.heartbeat().last_proof.is_some());
    until(|| client.latency().pings.is_some_and(|pings| pings.total.count == 5));
    assert_eq!(client.heartbeat().misses, 0);
}

// ---- latency ----

#[test]
fn calls_are_measured_together_and_by_method() {
    let (_server, peer, client, inbox) = session_with(venue(), |config| config.dialect(JsonRpc::new()));
    for method in ["a", "b", "a"] {
        client.call::<Value>(method, ()).unwrap();
    }
    let measured = || {
        let latency = client.latency();
        let methods: Vec<_> = latency.methods.iter().map(|(name, latency)| (name.to_string(), latency.total.count)).collect();
        (latency.calls.unwrap().total.count, methods)
    };
    assert_eq!(measured(), (3, vec![("a".to_owned(), 2), ("b".to_owned(), 1)]));
    client.call_batch([("b", ()), ("c", ())]).unwrap().into_iter().for_each(|reply| _ = reply.unwrap());
    client.request_raw(r#"{"id":"raw","method":"a"}"#).unwrap();
    client.notify("a", ()).unwrap();
    let expected = vec![("a".to_owned(), 2), ("b".to_owned(), 2), ("c".to_owned(), 1)];
    assert_eq!(measured(), (6, expected.clone()));
    peer.reset();
    until_lost(&inbox);
    until_open(&inbox);
    assert_eq!(measured(), (6, expected), "they survive a redial");
    client.call::<Value>("a", ()).unwrap();
    assert_eq!(measured().0, 7);
    client.close().unwrap();
    assert_eq!(measured().0, 7);
}

#[test]
fn a_call_is_measured_from_its_start_to_its_reply() {
    let (_server, _peer, client, _inbox) = session_with(venue(), |config| config.dialect(JsonRpc::new()));
    let began = Instant::now();
    let reply = client.start_call("m", ()).unwrap().wait().unwrap();
    let calls = client.latency().calls.unwrap();
    assert_eq!((calls.last, calls.total.count, calls.total.max, calls.recent.count), (reply.round_trip(), 1, calls.last, 1));
    assert!(calls.last <= began.elapsed());
}

#[test]
fn a_call_without_a_reply_is_not_measured() {
    let (_server, _peer, client, _inbox) = session_with(Script::new().ignore(), |config| config.dialect(JsonRpc::new()));
    client.with_call_timeout(ms(20)).call::<Value>("m", ()).unwrap_err();
    drop(client.start_call("m", ()).unwrap());
    assert_eq!(client.latency(), Default::default());
}

#[test]
fn of_65_methods_64_are_measured_by_themselves() {
    let (_server, _peer, client, _inbox) = session_with(venue(), |config| config.dialect(JsonRpc::new()));
    for number in 0..65 {
        client.call::<Value>(&format!("m{number}"), ()).unwrap();
    }
    client.call::<Value>("m64", ()).unwrap();
    let latency = client.latency();
    let names: Vec<_> = latency.methods.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, (0..64).map(|number| format!("m{number}")).collect::<Vec<_>>());
    assert_eq!(latency.calls.unwrap().total.count, 66);
}

#[test]
fn methods_come_in_the_order_of_their_first_replies() {
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore(), |config| config.dialect(JsonRpc::new()));
    let [early, late] = ["early", "late"].map(|method| client.start_call(method, ()).unwrap());
    for call in [&late, &early] {
        peer.send_text(&json!({ "id": call.id().to_string().parse::<u64>().unwrap(), "result": 1 }).to_string());
    }
    [early, late].into_iter().for_each(|call| _ = call.wait().unwrap());
    let methods: Vec<_> = client.latency().methods.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(methods, ["late", "early"]);
}

// ---- reactors ----

#[test]
fn a_reactor_counts_its_turns_and_the_time_it_was_busy() {
    let server = serve(Script::new());
    let began = Instant::now();
    let reactor = Reactor::builder().start().unwrap();
    let (client, inbox) = reactor.connect(config(&server)).unwrap();
    until_open(&inbox);
    let before = reactor.metrics();
    assert_eq!(before.connections, 1);
    for _ in 0..100 {
        client.send("x").unwrap();
        assert_eq!(text(&inbox), "x");
    }
    let after = reactor.metrics();
    // The first echo may come in the turn of the open.
    assert!(after.turns >= before.turns + 99 && after.busy > before.busy, "{before:?} {after:?}");
    assert!(after.busy < began.elapsed(), "{after:?}");
    client.close().unwrap();
    until(|| reactor.metrics().connections == 0);
}

#[test]
fn a_parked_reactor_with_nothing_to_do_does_not_turn() {
    let (_server, reactor, client, inbox) = session_on_reactor();
    client.send("x").unwrap();
    assert_eq!(text(&inbox), "x");
    assert!(inbox.recv_timeout(ms(100)).is_err());
    let before = reactor.metrics();
    assert!(inbox.recv_timeout(ms(300)).is_err());
    (0..1000).for_each(|_| _ = (reactor.metrics(), client.metrics(), client.latency()));
    assert_eq!(reactor.metrics(), before);
}

#[test]
fn the_longest_stall_names_the_connection_whose_handler_took_its_time() {
    let server = serve(Script::new());
    let reactor = Reactor::builder().start().unwrap();
    let quick = reactor.connect_with(config(&server), Handler::new().text(|_, _| ())).unwrap();
    let slow = reactor.connect_with(config(&server), Handler::new().text(|_, _| spin(ms(50)))).unwrap();
    for client in [&quick, &slow, &quick] {
        client.send("x").unwrap();
        until(|| client.metrics().messages_in > 0);
    }
    until(|| reactor.metrics().longest_stall.is_some_and(|stall| stall.took >= ms(50)));
    let metrics = reactor.metrics();
    assert_eq!(metrics.longest_stall.unwrap().connection, slow.id());
    assert!(metrics.busy >= ms(50), "{metrics:?}");
}

#[test]
fn a_driver_counts_as_a_reactor_does() {
    let server = serve(Script::new());
    let mut driver = Driver::new().unwrap();
    assert_eq!(driver.metrics(), Default::default());
    (0..5).for_each(|_| driver.turn(Duration::ZERO).unwrap());
    assert_eq!((driver.metrics().turns, driver.metrics().connections, driver.metrics().busy), (5, 0, Duration::ZERO));
    let client = driver.open(config(&server)).unwrap();
    while !client.state().is_open() {
        driver.turn(ms(10)).unwrap();
    }
    client.send("x").unwrap();
    while client.metrics().messages_in == 0 {
        driver
            .turn_with(ms(10), |_, event| {
                if matches!(event, EventRef::Text(_)) {
                    spin(ms(20))
                }
            })
            .unwrap();
    }
    let metrics = driver.metrics();
    let stall = metrics.longest_stall.unwrap();
    assert_eq!((metrics.connections, stall.connection), (1, client.id()));
    assert!(stall.took >= ms(20) && metrics.busy >= stall.took, "{metrics:?}");
}

#[test]
fn time_between_turns_is_nobodys() {
    let server = serve(Script::new());
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server)).unwrap();
    while !client.state().is_open() {
        driver.turn(ms(10)).unwrap();
    }
    let before = driver.metrics();
    for _ in 0..3 {
        client.send("x").unwrap();
        spin(ms(30));
        driver.turn(Duration::ZERO).unwrap();
        driver.turn(WAIT / 1000).unwrap();
    }
    assert!(driver.metrics().busy - before.busy < ms(30), "{:?}", driver.metrics());
}

// ---- asking while things happen ----

#[test]
fn asking_from_many_threads_stops_nobody() {
    let server = serve(Script::new());
    let reactor = Reactor::builder().start().unwrap();
    let echoes = Arc::new(AtomicU64::new(0));
    let count = echoes.clone();
    let handler = Handler::new().text(move |context, text| {
        count.fetch_add(1, Ordering::SeqCst);
        let _ = context.send(text);
    });
    let set = |config: Config| config.heartbeat_interval(ms(1)).send_stamps(true).rate_limit(RateLimit::window(1_000_000, WAIT));
    let client = reactor.connect_with(set(config(&server)), handler).unwrap();
    let caller = reactor.connect_with(config(&server).dialect(JsonRpc::new()), Handler::new()).unwrap();
    server.script(venue());
    client.send("x").unwrap();
    let is_over = AtomicBool::new(false);
    let told = thread::scope(|scope| {
        let askers = [(); 4].map(|()| {
            scope.spawn(|| {
                let mut asked = 0;
                while !is_over.load(Ordering::SeqCst) {
                    for client in [&client, &caller] {
                        let latency = client.latency();
                        assert!(latency.encode.is_none_or(|encode| encode.recent.count <= encode.total.count));
                        assert!(client.metrics().memory > 0 && client.heartbeat().misses == 0);
                    }
                    asked += reactor.metrics().turns.min(1);
                }
                asked
            })
        });
        let before = echoes.load(Ordering::SeqCst);
        let deadline = Instant::now() + WAIT;
        while echoes.load(Ordering::SeqCst) < before + 1000 && Instant::now() < deadline {
            let _ = caller.start_call("m", ());
            thread::yield_now();
        }
        is_over.store(true, Ordering::SeqCst);
        let asked = askers.map(|asker| asker.join().unwrap());
        (echoes.load(Ordering::SeqCst) - before, asked)
    });
    assert!(told.0 >= 1000 && told.1.iter().all(|asked| *asked > 10), "{told:?}");
    let before = echoes.load(Ordering::SeqCst);
    until(|| echoes.load(Ordering::SeqCst) > before + 100);
}

#[test]
fn counts_never_fall_while_wires_come_and_go() {
    let (server, _peer, client, inbox) = session(Script::new());
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut last = client.metrics();
            while last.generation.number() < 10 {
                let metrics = client.metrics();
                let (now, before) = (counts(&metrics), counts(&last));
                assert!(now.iter().zip(before).all(|(now, before)| *now >= before), "{last:?} then {metrics:?}");
                assert!(metrics.generation >= last.generation);
                last = metrics;
            }
        });
        for _ in 0..9 {
            let _ = client.send("x");
            server.kill_all();
            until_lost(&inbox);
            until_open(&inbox);
        }
        watching.join().unwrap();
    });
}

// ---- helpers ----

fn counts(metrics: &Metrics) -> [u64; 7] {
    let Metrics { redials, messages_in, bytes_in, messages_out, bytes_out, dropped, discarded, .. } = *metrics;
    [redials, messages_in, bytes_in, messages_out, bytes_out, dropped, discarded]
}

/// Confirms channels, and answers whatever else has an id.
fn venue() -> Script {
    Script::new().on_text(|peer, text| {
        let Ok(request) = serde_json::from_str::<Value>(text) else { return };
        if request.is_object() && request["id"].is_null() {
            return;
        }
        let answer = |request: &Value| json!({ "id": request["id"], "result": request["params"]["channels"] });
        let answers = match request.as_array() {
            Some(requests) => requests.iter().map(answer).collect(),
            None => answer(&request),
        };
        peer.send_text(&answers.to_string());
    })
}

fn spin(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {}
}

#[test]
fn the_stall_of_a_connection_is_not_that_of_the_next_one_served() {
    let server = serve(Script::new());
    let mut driver = Driver::new().unwrap();
    let slow = open_slow(&driver, &server);
    let _quick = driver.open(config(&server)).unwrap();
    // One turn serves both openings.
    driver.turn(ms(10)).unwrap();
    assert_eq!(driver.metrics().longest_stall.unwrap().connection, slow.id());
}

#[test]
fn the_longest_stall_stays_the_longest() {
    let server = serve(Script::new());
    let mut driver = Driver::new().unwrap();
    let slow = open_slow(&driver, &server);
    driver.turn(ms(10)).unwrap();
    let longest = driver.metrics().longest_stall;
    while !slow.state().is_open() {
        driver.turn(ms(10)).unwrap();
    }
    assert_eq!(driver.metrics().longest_stall, longest);
}

#[test]
fn memory_grows_with_calls_and_channels_and_falls_again() {
    let (_server, _peer, client, _inbox) = session_with(Script::new().ignore(), |config| config.dialect(JsonRpc::new()));
    let calls: Vec<_> = (0..10).map(|_| client.start_call("m", ()).unwrap()).collect();
    let book = client.start_subscribe(["book", "trades"]).unwrap();
    until(|| client.metrics().channels.pending == 2);
    let all = client.metrics().memory;
    drop(calls);
    let channels = client.metrics().memory;
    drop(book);
    until(|| client.metrics().channels.pending == 0);
    let none = client.metrics().memory;
    assert!(all > channels + 1000 && channels > none + 500, "{all} {channels} {none}");
}

#[test]
fn what_waits_for_the_limit_takes_long_to_encode_and_not_to_write() {
    let limit = RateLimit::bucket(1, 1, ms(50)).reserved(0);
    let set = |config: Config| config.send_stamps(true).rate_limit(limit).throttle(Throttle::Queue(4));
    let (_server, _peer, client, inbox) = session_with(Script::new(), set);
    for message in ["1", "2", "3"] {
        client.send(message).unwrap();
    }
    (0..3).for_each(|_| _ = text(&inbox));
    let (encode, write) = (client.latency().encode.unwrap().total, client.latency().write.unwrap().total);
    assert_eq!((encode.count, write.count), (3, 3));
    assert!(encode.max >= ms(50) && encode.max > write.max, "{encode:?} {write:?}");
}

/// A connection whose first turn takes long.
fn open_slow(driver: &Driver, server: &MockServer) -> Client {
    let handler = Handler::new().state(|_, event| {
        if matches!(event, Event::Dialing { .. }) {
            spin(ms(5));
        }
    });
    driver.open_with(config(server), handler).unwrap()
}

#[test]
fn memory_grows_with_what_waits_for_the_limit() {
    let limit = RateLimit::bucket(1, 1, NEVER).reserved(0);
    let set = |config: Config| config.rate_limit(limit).throttle(Throttle::Queue(10)).heartbeat_interval(None);
    let (_server, _peer, client, _inbox) = session_with(Script::new().ignore(), set);
    client.send("leaves").unwrap();
    let before = client.metrics().memory;
    (0..10).for_each(|_| assert_eq!(client.send("waits").unwrap(), Sent::Queued));
    assert!(client.metrics().memory >= before + 1000, "{before} to {:?}", client.metrics());
}

#[test]
fn memory_grows_with_what_an_inbox_has_no_room_for() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(1));
    let before = client.metrics().memory;
    peer.send_raw(Frame::text("x".repeat(10_000)).to_bytes().repeat(5));
    until(|| client.metrics().memory > before + 9_000);
    (0..5).for_each(|_| _ = text(&inbox));
}

/// An open connection to a server that echoes, on a reactor of its own.
fn session_on_reactor() -> (MockServer, Reactor, Client, Inbox) {
    let server = serve(Script::new());
    let reactor = Reactor::builder().start().unwrap();
    let (client, inbox) = reactor.connect(config(&server)).unwrap();
    until_open(&inbox);
    (server, reactor, client, inbox)
}
