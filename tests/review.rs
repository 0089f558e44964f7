//! Throwaway: each of these fails while a defect stands.

mod common;

use std::fs;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zen_websocket::internals::{Dialogue, Rules, Session, Stamp};
use zen_websocket::telemetry::{self, Filter, Signal};
use zen_websocket::testkit::{ClientMessage, Matcher, MockServer, Peer, Script};
use zen_websocket::*;

use self::common::*;

fn settle(peer: &Peer) {
    peer.ping(b"settle");
    peer.expect(Matcher::when(|captured| matches!(captured.message, ClientMessage::Pong(_))), WAIT).unwrap();
}

fn answering() -> Script {
    Script::new().on_text(|peer, text| {
        let request: Value = serde_json::from_str(text).unwrap();
        if request["method"] != "keep" {
            peer.send_text(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": 1 }).to_string());
        }
    })
}

#[test]
fn r1_bytes_for_which_an_inbox_had_no_room_are_counted_once() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(2).overflow(Overflow::Block));
    let frames: Vec<u8> = (0..20).flat_map(|_| [0x81, 1, b'x']).collect();
    peer.send_raw(frames);
    thread::sleep(ms(50));
    (0..20).for_each(|_| _ = text(&inbox));
    settle(&peer);
    let metrics = client.metrics();
    // The ping that settles has 8 bytes.
    assert_eq!((metrics.messages_in, metrics.bytes_in), (20, 60 + 8));
}

#[test]
fn r2_latency_holds_no_lock_while_it_computes() {
    let (_server, _peer, client, inbox) =
        session_with(Script::new().echo(), |config| config.kernel_stamps(true).send_stamps(true));
    for _ in 0..2000 {
        client.send("x").unwrap();
        text(&inbox);
    }
    let (_server2, _peer2, bare, inbox2) = session(Script::new().echo());
    for _ in 0..10 {
        bare.send("x").unwrap();
        text(&inbox2);
    }
    let asking = |client: &Client| {
        let stop = Arc::new(AtomicBool::new(false));
        let asker = thread::spawn({
            let (client, stop) = (client.clone(), stop.clone());
            move || {
                let mut asked = 0_u64;
                let began = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    black_box(client.latency());
                    asked += 1;
                }
                began.elapsed() / asked as u32
            }
        });
        thread::sleep(ms(20));
        let mut times: Vec<_> = (0..2_000)
            .map(|_| {
                let pause = Instant::now();
                while pause.elapsed() < ms(1) / 5 {}
                let began = Instant::now();
                black_box(client.state());
                began.elapsed()
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        let each = asker.join().unwrap();
        times.sort();
        let mean: Duration = times.iter().sum::<Duration>() / times.len() as u32;
        (each, mean, times[times.len() / 2], times[times.len() * 9 / 10], times[times.len() * 99 / 100])
    };
    let (without, with) = (asking(&bare), asking(&client));
    println!("one latency(); state() mean, p50, p90, p99 meanwhile: without samples {without:?}, with {with:?}");
    assert!(with.1 < ms(1) / 20, "state() takes {:?} while another asks for latencies", with.1);
}

#[test]
fn r2b_a_temporary_guard_lives_to_the_end_of_a_struct_literal() {
    struct Pair {
        first: usize,
        is_free: bool,
    }
    fn both(lock: &Mutex<Vec<u8>>) -> Pair {
        Pair { first: lock.lock().unwrap().len(), is_free: lock.try_lock().is_ok() }
    }
    let pair = both(&Mutex::new(vec![1]));
    assert_eq!((pair.first, pair.is_free), (1, true));
}

#[test]
fn r3_a_dial_that_its_limit_puts_off_is_no_redial() {
    let t0 = Instant::now();
    let mut session: Session<()> = Session::new(Arc::new(Config::new("ws://peer").jitter(0.0)), 1, t0);
    session.handle_begin(t0);
    session.handle_opened(t0, Generation::default().next(), None);
    session.handle_lost(t0, Error::Disconnected);
    assert_eq!(session.redials(), 1);
    for _ in 0..5 {
        session.handle_dial_throttled(t0, Duration::from_secs(1));
        session.handle_timeout(session.next_deadline().unwrap());
    }
    assert_eq!(session.redials(), 1, "it has not begun and does not count");
}

#[test]
fn r4_what_waits_in_the_inbox_of_a_closed_connection_is_its_depth() {
    let (_server, peer, client, inbox) = session(Script::new());
    (0..5).for_each(|_| peer.send_text("x"));
    settle(&peer);
    assert_eq!(client.metrics().inbox_depth, Some(5));
    client.close().unwrap();
    thread::sleep(ms(50));
    assert_eq!(client.metrics().inbox_depth, Some(inbox.len()));
}

#[test]
fn r5_on_a_closed_connection_no_ping_waits() {
    let (_server, _peer, client, _inbox) = session(Script::new().withhold_pongs());
    client.ping().unwrap();
    client.close().unwrap();
    let heartbeat = client.heartbeat();
    assert_eq!((heartbeat.unanswered, heartbeat.waiting), (0, None));
}

#[test]
fn r6_a_recording_has_the_event_before_what_an_observer_sends_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("feed.jsonl");
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.record_to(&path));
    let filter = Filter::name("connection.open").unwrap().connection(client.id());
    let sender = client.clone();
    let guard = telemetry::attach(filter, move |_| _ = sender.send("hello"));
    peer.reset();
    until_open(&inbox);
    drop(guard);
    client.close().unwrap();
    let recording = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = recording.lines().collect();
    let last = |what: &str| lines.iter().rposition(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {recording}"));
    assert!(last("event\\\":\\\"open") < last("\"dir\":\"out\",\"type\":\"text\",\"data\":\"hello"), "{recording}");
}

#[test]
fn r7_methods_come_in_the_order_of_their_first_replies() {
    let (_server, peer, client, _inbox) = session_with(Script::new(), |config| config.dialect(JsonRpc::new()));
    let calls = ["first", "second"].map(|method| client.start_call(method, ()).unwrap());
    let [first, second] = calls;
    for call in [second, first] {
        peer.send_text(
            &json!({ "jsonrpc": "2.0", "id": 0, "result": 1 }).to_string().replace("\"id\":0", &format!("\"id\":{}", call.id())),
        );
        call.wait().unwrap();
    }
    let names: Vec<_> = client.latency().methods.into_iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["second", "first"]);
}

#[test]
fn r8_calls_that_were_refused_take_no_place_of_a_method() {
    let (_server, _peer, client, _inbox) = session_with(answering(), |config| config.dialect(JsonRpc::new()).calls_max(1));
    let keep = client.start_call("keep", ()).unwrap();
    for number in 0..64 {
        client.start_call(&format!("method {number}"), ()).unwrap_err();
    }
    drop(keep);
    let _: Value = client.call("real", ()).unwrap();
    assert_eq!(client.latency().methods.len(), 1);
}

#[test]
fn r9_every_call_that_is_tracked_ends() {
    let limit = RateLimit::bucket(1, 1, NEVER).reserved(0);
    let (_server, _peer, client, _inbox) = session_with(answering(), |config| config.dialect(JsonRpc::new()).rate_limit(limit));
    let (tracked, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (tracked.clone(), ended.clone());
    let filter = Filter::name("request_correlator").unwrap().connection(client.id());
    let _guard = telemetry::attach(filter, move |observed| {
        let counter = if matches!(observed.signal, Signal::Track { .. }) { &counters.0 } else { &counters.1 };
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let _: Value = client.call("a", ()).unwrap();
    client.call::<Value>("b", ()).unwrap_err();
    client.close().unwrap();
    assert_eq!(tracked.load(Ordering::Relaxed), ended.load(Ordering::Relaxed));
}

#[test]
fn r10_an_observer_of_a_stall_makes_none_of_another_connection() {
    let server = serve(Script::new());
    let mut driver = Driver::new().unwrap();
    let handler = Handler::new().text(|_, _| thread::sleep(ms(12)));
    let slow = driver.open_with(config(&server), handler).unwrap();
    while slow.state() != State::Live {
        driver.turn(ms(10)).unwrap();
    }
    let slow_peer = server.accept(WAIT).unwrap();
    let other = driver.open(config(&server)).unwrap();
    while other.state() != State::Live {
        driver.turn(ms(10)).unwrap();
    }
    let peer = server.accept(WAIT).unwrap();
    (0..3).for_each(|_| driver.turn(Duration::ZERO).unwrap());
    let (told, stalls) = mpsc::channel();
    let guard = telemetry::attach(Filter::name("reactor.stall").unwrap(), move |observed| {
        let _ = told.send(observed.connection.unwrap());
        thread::sleep(ms(20));
    });
    slow_peer.send_text("go");
    thread::sleep(ms(30));
    peer.send_text("go");
    thread::sleep(ms(30));
    driver.turn(ms(10)).unwrap();
    drop(guard);
    assert_eq!(stalls.iter().collect::<Vec<_>>(), [slow.id()], "other: {}", other.id());
}

struct Speech;

impl Dialect for Speech {
    fn name(&self) -> &str {
        "speech"
    }

    fn classify<'a>(&self, _: &'a str) -> Inbound<'a> {
        Inbound::Message
    }

    fn login(&self, step: &LoginStep<'_>) -> Login {
        if step.step == 0 {
            return Login::Send(Request { text: "key".into(), id: Id::Number(step.number as i64) });
        }
        Login::Done { refresh_after: Some(Duration::from_secs(60)), token: None }
    }

    fn subscribe(&self, number: u64, _: &[&str]) -> Result<Subscribe> {
        Ok(Subscribe { text: "subscribe".into(), id: Some(Id::Number(number as i64)), channels: 1 })
    }
}

#[test]
fn r11_the_reply_that_a_login_waits_for_is_secret_whatever_was_said_since() {
    let t0 = Instant::now();
    let stamp = Stamp { unix: Duration::ZERO, nonce: 0 };
    let rules = Rules { confirm_timeout: WAIT, retry: WAIT, restore: true, resubscribe_on_gap: false };
    let mut dialogue = Dialogue::new(Arc::new(Speech), rules, t0);
    dialogue.handle_upgraded(t0, stamp);
    let first = (1_i64 << 52..).map(Id::Number).find(|id| dialogue.awaits(id)).unwrap();
    assert!(dialogue.handle_reply(t0, stamp, &first, "token"));
    let at = dialogue.next_deadline().unwrap();
    dialogue.handle_timeout(at, stamp);
    let refresh = (1_i64 << 52..).map(Id::Number).find(|id| *id != first && dialogue.awaits(id)).unwrap();
    assert!(dialogue.is_login(&refresh));
    let channels: Vec<Arc<str>> = (0..20_000).map(|number| format!("{number}").into()).collect();
    dialogue.want(at, 1, &channels, None, false);
    println!("{} deeds", dialogue.take_deeds().len());
    assert!(dialogue.awaits(&refresh) && dialogue.is_login(&refresh), "its reply would be recorded and logged");
}

#[test]
fn r12_the_signals_of_a_login_are_those_of_its_wire() {
    let (told, seen) = mpsc::channel();
    let guard = telemetry::attach(Filter::name("connection.login").unwrap(), move |observed| {
        let _ = told.send((observed.host.to_owned(), observed.generation));
    });
    let dialect = JsonRpc::new().login("public/auth", |_| json!({ "client_secret": "key" }));
    let (server, _peer, client, _inbox) = session_with(answering(), |config| config.dialect(dialect));
    drop(guard);
    let host = server.address().to_string();
    let generation = seen.iter().find(|(other, _)| *other == host).unwrap().1;
    assert_eq!(generation, client.generation());
}

#[test]
fn r13_an_observer_of_another_connection_costs_a_sender_no_allocation() {
    let limit = |config: Config| config.rate_limit(RateLimit::bucket(1_000_000, 1, NEVER));
    let (_server, _peer, client, _inbox) = session_with(Script::new(), limit);
    let (_server2, _peer2, other, _inbox2) = session(Script::new());
    let count = || allocation_counter::measure(|| (0..100).for_each(|_| _ = client.send("x").unwrap())).count_total;
    count();
    let without = count();
    let _guard = telemetry::attach(Filter::all().connection(other.id()), |_| ());
    count();
    let with = count();
    assert_eq!((without, with), (0, 0), "allocations of 100 sends");
}

#[test]
fn r14_reading_that_stopped_is_told_to_go_on_or_its_wire_to_be_lost_once() {
    let server = serve(Script::new());
    let (client, inbox) = connect(config(&server).inbox_capacity(2).overflow(Overflow::Block)).unwrap();
    let peer = server.accept(WAIT).unwrap();
    until_open(&inbox);
    let (told, seen) = mpsc::channel();
    let guard = telemetry::attach(Filter::name("traffic").unwrap().connection(client.id()), move |observed| {
        if matches!(observed.signal, Signal::Blocked | Signal::Resumed) {
            let _ = told.send(observed.signal.name());
        }
    });
    (0..10).for_each(|_| peer.send_text("x"));
    thread::sleep(ms(50));
    client.reconnect().unwrap();
    until_open(&inbox);
    let peer = server.accept(WAIT).unwrap();
    peer.send_text("fresh");
    while text(&inbox) != "fresh" {}
    drop(guard);
    assert_eq!(seen.iter().collect::<Vec<_>>(), ["traffic.blocked", "traffic.resumed"]);
}

#[test]
fn r15_what_waits_costs_a_sender_no_second_look_at_the_queue() {
    let limit = RateLimit::bucket(1, 1, NEVER).reserved(0);
    let (_server, _peer, client, _inbox) =
        session_with(Script::new(), |config| config.rate_limit(limit).throttle(Throttle::Queue(50_000)));
    client.send("first").unwrap();
    for round in 0..5 {
        let began = Instant::now();
        (0..5_000).for_each(|_| _ = client.send("x").unwrap());
        let each = began.elapsed() / 5_000;
        let began = Instant::now();
        (0..200).for_each(|_| _ = black_box(client.rate_status()));
        println!("{} wait: a send takes {each:?}, of it the further count {:?}", (round + 1) * 5_000, began.elapsed() / 200);
    }
}

fn venue(answers: fn(&str) -> bool) -> Script {
    Script::new().on_text(move |peer, text| {
        let Ok(request) = serde_json::from_str::<Value>(text) else { return };
        let channels = request["params"]["channels"].clone();
        if channels.as_array().is_none_or(|channels| channels.iter().all(|channel| answers(channel.as_str().unwrap()))) {
            peer.send_text(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": channels }).to_string());
        }
    })
}

fn names(client: &Client, filter: &str) -> (telemetry::Guard, mpsc::Receiver<String>) {
    let (told, seen) = mpsc::channel();
    let filter = Filter::name(filter).unwrap().connection(client.id());
    let guard = telemetry::attach(filter, move |observed| _ = told.send(format!("{:?}", observed.signal)));
    (guard, seen)
}

#[test]
fn r16_a_subscription_after_a_restore_that_nobody_wanted_any_more_is_none() {
    let (server, peer, client, inbox) = session_with(venue(|_| true), |config| config.dialect(JsonRpc::new()));
    let book = client.subscribe("book").unwrap();
    server.script(venue(|channel| channel == "trades"));
    let (guard, seen) = names(&client, "subscription_manager");
    peer.reset();
    until_open(&inbox);
    drop(book);
    thread::sleep(ms(300));
    let _trades = client.subscribe("trades").unwrap();
    thread::sleep(ms(50));
    drop(guard);
    let seen: Vec<_> = seen.iter().collect();
    assert!(!seen.iter().any(|line| line.starts_with("Restored")), "{seen:#?}");
}

#[test]
fn r17_behind_closed_nothing_is_told() {
    let server = serve(venue(|_| true));
    let mut driver = Driver::new().unwrap();
    let handler = Handler::new().state(|_, event| assert!(!matches!(event, Event::Open)));
    let client = driver.open_with(config(&server).dialect(JsonRpc::new()), handler).unwrap();
    let (told, seen) = mpsc::channel();
    let guard = telemetry::attach(Filter::all().connection(client.id()), move |observed| {
        _ = told.send(observed.signal.name());
    });
    let _book = client.start_subscribe("book").unwrap();
    while client.state() != State::Closed {
        driver.turn(ms(10)).unwrap();
    }
    drop(guard);
    let seen: Vec<_> = seen.iter().collect();
    assert_eq!(seen.last(), Some(&"connection.closed"), "{seen:?}");
}

#[test]
fn r18_the_last_pressure_that_is_told_is_that_of_the_queue() {
    for round in 0..30 {
        let limit = RateLimit::bucket(1, 1, ms(1) / 5).reserved(0);
        let (_server, peer, client, _inbox) =
            session_with(Script::new(), |config| config.rate_limit(limit).throttle(Throttle::Queue(2)));
        let (guard, seen) = names(&client, "rate_limiter.pressure");
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let client = client.clone();
                thread::spawn(move || (0..300).for_each(|_| _ = client.send("x")))
            })
            .collect();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        while client.rate_status().queued > 0 {
            thread::yield_now();
        }
        thread::sleep(ms(5));
        settle(&peer);
        drop(guard);
        let seen: Vec<_> = seen.iter().collect();
        if let Some(last) = seen.last() {
            assert!(last.contains("level: None"), "round {round}: {:?}", &seen[seen.len().saturating_sub(4)..]);
        }
        let breaks = seen.windows(2).filter(|pair| {
            let (_, level) = pair[0].split_once("level: ").unwrap();
            let (_, previous) = pair[1].split_once("previous: ").unwrap();
            level.split(',').next().unwrap().trim() != previous.trim_end_matches([' ', '}'])
        });
        assert_eq!(breaks.count(), 0, "round {round}: of {} signals some are told out of order", seen.len());
    }
}

#[test]
fn r19_an_observer_of_a_recording_may_close_what_is_recorded_without_stopping_it() {
    let (give, take) = mpsc::channel::<Client>();
    let take = Mutex::new(take);
    let (told, seen) = mpsc::channel();
    let guard = telemetry::attach(Filter::name("recorder.failed").unwrap(), move |_| {
        if let Ok(client) = take.lock().unwrap().recv() {
            let began = Instant::now();
            let _ = client.close();
            told.send(began.elapsed()).unwrap();
        }
    });
    let (_server, _peer, client, _inbox) = session_with(Script::new(), |config| config.record_to(std::env::temp_dir()));
    give.send(client).unwrap();
    let took = seen.recv_timeout(WAIT);
    drop((give, guard));
    println!("closing took {took:?}");
    assert!(took.unwrap() < ms(1000));
}

#[test]
fn r20_a_connection_that_ends_behind_a_full_inbox_is_served_no_more() {
    let server = serve(Script::new());
    let reactor = Reactor::builder().start().unwrap();
    let (client, inbox) = reactor.connect(config(&server).reconnect(false).inbox_capacity(3).overflow(Overflow::Block)).unwrap();
    let peer = server.accept(WAIT).unwrap();
    until_open(&inbox);
    let mut bytes: Vec<u8> = (0..10).flat_map(|_| [0x81, 1, b'x']).collect();
    bytes.extend([0x88, 2, 3, 232]);
    peer.send_raw(bytes);
    thread::sleep(ms(100));
    assert_eq!(reactor.metrics().connections, 1);
    until_closed(&inbox);
    thread::sleep(ms(300));
    assert_eq!((client.state(), reactor.metrics().connections), (State::Closed, 0));
}

#[test]
fn r21_a_heartbeat_that_finds_no_room_is_not_told_to_leave() {
    let server = MockServer::builder().receive_buffer(4096).start().unwrap();
    let (client, inbox) = connect(config(&server).heartbeat_interval(ms(30)).patience(ms(400)).unsent_max(1 << 20)).unwrap();
    let peer = server.accept(WAIT).unwrap();
    until_open(&inbox);
    peer.stop_reading();
    let big = "x".repeat(64 << 10);
    while client.send(&big).is_ok() {}
    thread::sleep(ms(50));
    let (guard, seen) = names(&client, "heartbeat.ping");
    thread::sleep(ms(150));
    drop(guard);
    assert_eq!(seen.iter().count(), 0, "unsent: {}", client.unsent());
}

#[test]
fn r22_an_observer_may_drop_the_last_client_over_any_signal() {
    let mut done = Vec::new();
    for name in Signal::NAMES {
        let server = serve(venue(|channel| channel != "deaf"));
        let directory = tempfile::tempdir().unwrap();
        let config = config(&server)
            .dialect(JsonRpc::new())
            .heartbeat_interval(ms(20))
            .record_to(directory.path().join("x"))
            .debug(true)
            .call_timeout(ms(60))
            .inbox_capacity(4)
            .overflow(Overflow::Block);
        let (client, inbox) = connect(config).unwrap();
        let id = client.id();
        let holder = Arc::new(Mutex::new(None));
        let (told, seen) = mpsc::channel();
        let guard = telemetry::attach(Filter::name(name).unwrap().connection(id), {
            let holder = holder.clone();
            move |_| {
                let taken: Option<Client> = holder.lock().unwrap().take();
                if let Some(client) = taken {
                    let _ = (
                        client.metrics(),
                        client.latency(),
                        client.heartbeat(),
                        client.rate_status(),
                        client.start_close(1000, ""),
                    );
                    drop(client);
                    let _ = told.send(());
                }
            }
        });
        let peer = server.accept(WAIT).unwrap();
        let book = client.start_subscribe("book").unwrap();
        let pending = client.start_call("x", json!({ "channels": ["deaf"] })).unwrap();
        *holder.lock().unwrap() = Some(client);
        peer.send_text("{\"id\":4711,\"result\":1}");
        (0..12).for_each(|_| peer.send_text("{\"x\":1}"));
        thread::sleep(ms(100));
        while inbox.try_recv().is_ok_and(|event| event.is_some()) {
            thread::sleep(ms(1));
        }
        drop((book, pending));
        peer.reset();
        thread::sleep(ms(80));
        let has_been_told = seen.try_recv().is_ok();
        drop(holder.lock().unwrap().take());
        let deadline = Instant::now() + WAIT;
        loop {
            match inbox.recv_timeout(WAIT) {
                Err(Error::Closed) => break,
                Err(error) => panic!("{name}: {error}"),
                Ok(_) => assert!(Instant::now() < deadline, "{name}"),
            }
        }
        drop(guard);
        if has_been_told {
            done.push(*name);
        }
    }
    println!("dropped over {done:?}");
}

#[test]
fn r23_what_tls_takes_is_counted_to_its_phase() {
    let mut all = Vec::new();
    for is_tls in [false, true] {
        for _ in 0..20 {
            let server = if is_tls { MockServer::builder().tls().start() } else { MockServer::start() }.unwrap();
            let (told, seen) = mpsc::channel();
            let guard = telemetry::attach(Filter::name("connection").unwrap(), move |observed| {
                let now = Instant::now();
                _ = match *observed.signal {
                    Signal::DialPhase { phase, took } => told.send((phase, took, now)),
                    _ => Ok(()),
                };
            });
            let (client, _inbox) = connect(config(&server)).unwrap();
            drop(guard);
            client.close().unwrap();
            let seen: Vec<_> = seen.iter().collect();
            // By when it was told, beside what was told.
            let real: Vec<_> = seen.windows(2).map(|pair| (pair[1].0, pair[1].1, pair[1].2 - pair[0].2)).collect();
            all.push((is_tls, real));
        }
    }
    for (is_tls, phases) in [&all[10], &all[15], &all[30], &all[35]] {
        println!("tls {is_tls}: told, real: {phases:?}");
    }
}
