//! What observers are told: every kind of signal, caused by what it tells of, and what observers may do themselves.

mod common;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::mem;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use serde_json::{Value, json};
use zen_websocket::telemetry::{self, Closer, Filter, Guard, Observed, Signal};
use zen_websocket::testkit::{Frame, Matcher, MockServer, Peer, Script};
use zen_websocket::{
    Channels, Client, Config, ConnectionId, Driver, Error, Event, EventRef, Handler, Id, Inbox, JsonRpc, Overflow, RateLimit,
    Reactor, State, Throttle, connect, open,
};

use self::common::*;

// ---- dials ----

#[test]
fn a_dial_is_told_phase_by_phase() {
    let server = serve(Script::new());
    let tap = Tap::of(&server, &["connection"]);
    let began = Instant::now();
    let (client, _inbox) = open(config(&server)).unwrap();
    let seen = tap.until("connection.open");
    let expected = ["dial 1", "dial_phase Resolve", "dial_phase Connect", "dial_phase Upgrade", "upgrade", "open"];
    assert_eq!(told(&seen), expected.map(|line| format!("connection.{line}")));
    let host = server.address().to_string();
    assert!(seen.iter().all(|seen| seen.connection == Some(client.id()) && seen.host == host), "{seen:?}");
    assert!(seen.is_sorted_by_key(|seen| seen.at) && seen[0].at >= began && seen[5].at <= Instant::now(), "{seen:?}");
    assert_eq!((seen[0].generation, seen[5].generation), (0, 1));
    let phases: Duration = seen[1..4].iter().filter_map(|seen| seen.took).sum();
    assert!(phases <= seen[4].took.unwrap(), "{seen:?}");
}

#[test]
fn over_tls_a_dial_has_one_phase_more() {
    let server = MockServer::builder().tls().start().unwrap();
    let tap = Tap::of(&server, &["connection.dial_phase", "connection.upgrade"]);
    let (_client, _inbox) = open(config(&server)).unwrap();
    let seen = tap.until("connection.upgrade");
    let expected = ["dial_phase Resolve", "dial_phase Connect", "dial_phase Tls", "dial_phase Upgrade", "upgrade"];
    assert_eq!(told(&seen), expected.map(|line| format!("connection.{line}")));
    assert_eq!(seen[0].host, format!("localhost:{}", server.address().port()));
}

#[test]
fn the_dial_hook_is_a_part_of_resolving() {
    let server = serve(Script::new());
    let tap = Tap::of(&server, &["connection.dial_phase", "connection.upgrade"]);
    let (_never, pause) = mpsc::channel::<()>();
    let pause = Mutex::new(pause);
    let hook = move |_: &mut _| {
        let _ = pause.lock().unwrap().recv_timeout(ms(30));
        Ok(())
    };
    let (_client, _inbox) = open(config(&server).on_dial(hook)).unwrap();
    let seen = tap.until("connection.upgrade");
    assert!(seen[0].took.unwrap() >= ms(30) && seen[3].took.unwrap() >= ms(30), "{seen:?}");
}

#[test]
fn a_dial_that_fails_is_told_with_its_cause_and_when_the_next_begins() {
    let server = serve(Script::new().status(503).header("Retry-After", "1"));
    let tap = Tap::of(&server, &["connection"]);
    connect(config(&server).connect_attempts(2)).unwrap_err();
    let seen = tap.until("connection.closed");
    let lines = told(&seen);
    let expected = [
        "connection.dial 1",
        "connection.dial_phase Resolve",
        "connection.dial_phase Connect",
        "connection.dial_phase Upgrade",
        "connection.dial_failed 1",
        "connection.redial_scheduled 1s",
        "connection.dial 2",
        "connection.dial_phase Resolve",
        "connection.dial_phase Connect",
        "connection.dial_phase Upgrade",
        "connection.dial_failed 2",
        "connection.redials_exhausted 2",
        "connection.closed",
    ];
    let short: Vec<_> = lines.iter().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(short, expected);
    assert!(lines[4].contains("503") && lines[12].contains("503"), "{lines:?}");
}

#[test]
fn a_phase_in_which_a_dial_times_out_is_told() {
    let port = full_port();
    let tap = Tap::at(port.address, &["connection"]);
    let config = config_for(format!("ws://{}/", port.address)).connect_timeout(ms(100)).connect_attempts(1);
    connect(config).unwrap_err();
    let seen = tap.until("connection.dial_failed");
    assert_eq!(told(&seen)[..3], ["dial 1", "dial_phase Resolve", "dial_phase Connect"].map(|line| format!("connection.{line}")));
    assert!(seen[2].took.unwrap() >= ms(90), "{seen:?}");
}

#[test]
fn attempts_that_are_used_up_are_told_though_there_was_only_one() {
    let server = serve(Script::new().status(503));
    let tap = Tap::of(&server, &["connection.redials_exhausted", "connection.closed"]);
    connect(config(&server).connect_attempts(1)).unwrap_err();
    assert_eq!(told(&tap.until("connection.closed"))[0], "connection.redials_exhausted 1");
}

#[test]
fn the_one_redial_that_was_allowed_is_told_to_be_used_up() {
    let lines = told_of_one_redial(503);
    assert!(lines.contains(&"connection.redials_exhausted 1".to_owned()), "{lines:?}");
}

#[test]
fn what_cannot_pass_ends_the_connection_without_exhausting_it() {
    let server = serve(Script::new().status(401));
    let tap = Tap::of(&server, &["connection.redials_exhausted", "connection.closed"]);
    connect(config(&server)).unwrap_err();
    let lines = told(&tap.until("connection.closed"));
    assert!(lines.len() == 1 && lines[0].contains("401"), "{lines:?}");
}

// ---- logins and the rest of a life ----

#[test]
fn a_login_is_told_between_upgrade_and_open_on_its_own_wire() {
    let server = serve(venue());
    let tap = Tap::of(&server, &["connection"]);
    let (_client, _inbox) = open(log_in(config(&server))).unwrap();
    for wire in 1..=2 {
        let mut seen = tap.until("connection.open");
        let end = seen.split_off(seen.len() - 3);
        assert_eq!(told(&end), ["connection.upgrade", "connection.login", "connection.open"]);
        assert_eq!(end[1..].iter().map(|seen| seen.generation).collect::<Vec<_>>(), [wire; 2], "{end:?}");
        server.kill_all();
    }
}

#[test]
fn without_a_login_none_is_told() {
    let (_server, _peer, tap, _client, _inbox) = tapped(venue(), |config| config.dialect(JsonRpc::new()), &["connection.login"]);
    assert_eq!(tap.left(), [""; 0]);
}

#[test]
fn a_loss_is_told_with_who_ended_the_wire_and_how_long_it_was_open() {
    type End = fn(&Client, &Peer);
    let ends: [(End, &str); 6] = [
        (|_, peer| peer.close(4001, "bye"), "Peer Some(4001)"),
        (|_, peer| peer.close_raw([]), "Peer None"),
        (|_, peer| peer.hang_up(), "Peer None"),
        (|_, peer| peer.reset(), "Network None"),
        (|_, peer| peer.send_frame(&Frame::continuation("stray")), "Own None"),
        (|client, _| client.reconnect().unwrap(), "Own None"),
    ];
    for (end, how) in ends {
        let began = Instant::now();
        let (_server, peer, tap, client, _inbox) = tapped(Script::new(), |config| config, &["connection"]);
        tap.until("connection.open");
        let opened = Instant::now();
        end(&client, &peer);
        let seen = tap.until("connection.dial");
        assert_eq!(told(&seen)[1..], ["connection.redial_scheduled 0ns".to_owned(), "connection.dial 1".to_owned()], "{how}");
        assert!(seen[0].line.starts_with(&format!("connection.lost {how}: ")), "{} is not {how}", seen[0].line);
        let uptime = seen[0].took.unwrap();
        assert!(uptime <= began.elapsed() && uptime + SLACK >= seen[0].at - opened, "{uptime:?} {how}");
        assert_eq!(seen.iter().map(|seen| seen.generation).collect::<Vec<_>>(), [1; 3]);
    }
}

#[test]
fn a_peer_that_was_dropped_as_silent_was_dropped_by_this_side() {
    let script = Script::new().silent();
    let set = |config: Config| config.heartbeat_interval(ms(200)).patience(ms(20));
    let (_server, _peer, tap, _client, _inbox) = tapped(script, set, &["connection.lost", "heartbeat"]);
    let lines = told(&tap.until("connection.lost"));
    assert_eq!(lines[..2], ["heartbeat.ping", "heartbeat.missed 1"]);
    assert!(lines[2].starts_with("connection.lost Own None: "), "{lines:?}");
}

#[test]
fn what_this_program_closes_is_closed_and_not_lost() {
    let (_server, _peer, tap, client, _inbox) = tapped(Script::new(), |config| config, &["connection"]);
    tap.until("connection.open");
    client.close().unwrap();
    assert_eq!(told(&tap.until("connection.closed")), ["connection.closed"]);
}

#[test]
fn what_ends_with_its_reactor_is_closed_with_the_cause() {
    let server = serve(Script::new());
    let tap = Tap::of(&server, &["connection.lost", "connection.closed"]);
    let reactor = Reactor::builder().start().unwrap();
    let _held = reactor.connect(config(&server)).unwrap();
    reactor.stop();
    assert_eq!(told(&tap.until("connection.closed")), [format!("connection.closed: {}", Error::Stopped)]);
}

// ---- heartbeats ----

#[test]
fn pings_and_pongs_are_told_one_for_one() {
    let set = |config: Config| config.heartbeat_interval(ms(20));
    let (_server, _peer, tap, _client, _inbox) = tapped(Script::new(), set, &["heartbeat"]);
    let seen: Vec<_> = (0..6).map(|_| tap.next()).collect();
    assert_eq!(told(&seen), ["heartbeat.ping", "heartbeat.pong ping_pong"].repeat(3));
    assert!(seen.chunks(2).all(|pair| pair[1].took.unwrap() <= pair[1].at - pair[0].at + SLACK), "{seen:?}");
}

#[test]
fn the_pong_of_a_dialect_has_its_name() {
    let script = Script::new().on_text(|peer, _| peer.send_text("pong"));
    let set = |config: Config| config.dialect(Pinger).heartbeat_interval(ms(20));
    let (_server, _peer, tap, _client, _inbox) = tapped(script, set, &["heartbeat"]);
    let seen: Vec<_> = (0..4).map(|_| tap.next()).collect();
    assert_eq!(told(&seen), ["heartbeat.ping", "heartbeat.pong pinger"].repeat(2));
}

#[test]
fn a_ping_of_the_callers_is_told_if_its_pong_is() {
    let (_server, _peer, tap, client, _inbox) = tapped(Script::new(), |config| config.heartbeat_interval(None), &["heartbeat"]);
    client.ping().unwrap();
    until(|| client.heartbeat().rtt.is_some());
    settle_client(&client);
    let lines = tap.left();
    let count = |name| lines.iter().filter(|line| line.starts_with(name)).count();
    assert_eq!(count("heartbeat.ping"), count("heartbeat.pong"), "{lines:?}");
}

#[test]
fn a_ping_that_the_limit_holds_back_is_not_told_to_leave() {
    let set = |config: Config| config.heartbeat_interval(ms(20)).rate_limit(RateLimit::bucket(1, 1, NEVER).reserved(0));
    let (_server, peer, tap, client, _inbox) = tapped(Script::new(), set, &["heartbeat.ping"]);
    tap.left();
    client.send("x").unwrap();
    peer.expect("x", WAIT).unwrap();
    let sent = peer.captured().len();
    let is_told = tap.seen.recv_timeout(ms(200)).is_ok();
    assert_eq!((is_told, peer.captured().len()), (false, sent));
}

#[test]
fn a_missed_pong_is_told_though_the_wire_stays_up_for_other_bytes() {
    let script = Script::new().withhold_pongs();
    let set = |config: Config| config.heartbeat_interval(ms(100)).patience(ms(300));
    let (_server, peer, tap, client, inbox) = tapped(script, set, &["heartbeat.missed", "connection.lost"]);
    let (stop, stopped) = mpsc::channel::<()>();
    let talking = thread::spawn(move || {
        while stopped.recv_timeout(ms(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
            peer.send_text("alive");
        }
    });
    assert_eq!(told(&tap.until("heartbeat.missed")), ["heartbeat.missed 1"]);
    assert_eq!((client.generation().number(), client.heartbeat().misses >= 1), (1, true));
    stop.send(()).unwrap();
    talking.join().unwrap();
    drop(inbox);
}

// ---- traffic ----

#[test]
fn the_traffic_adds_up_to_what_was_counted() {
    for server in [serve(Script::new()), MockServer::builder().tls().start().unwrap()] {
        let tap = Tap::of(&server, &["traffic.count"]);
        let (peer, client, inbox) = join(&server, config(&server).heartbeat_interval(ms(10)));
        for number in 0..50_u32 {
            client.send(&number.to_string()).unwrap();
            peer.ping("between");
        }
        assert!(client.send_many(["a", "b", "c"]).error.is_none());
        client.send_binary(&[0; 70_000]).unwrap();
        (0..54).for_each(|_| _ = next(&inbox));
        client.close().unwrap();
        let metrics = client.metrics();
        let counted = [metrics.messages_in, metrics.bytes_in, metrics.messages_out, metrics.bytes_out];
        assert_eq!(tap.traffic(), counted);
    }
}

#[test]
fn what_came_with_the_upgrade_is_traffic_too() {
    let server = serve(Script::new().glue(Frame::text("welcome").to_bytes()));
    let tap = Tap::of(&server, &["traffic.count"]);
    let (_peer, client, inbox) = join(&server, config(&server));
    assert_eq!(text(&inbox), "welcome");
    client.close().unwrap();
    assert_eq!(tap.traffic()[..2], [client.metrics().messages_in, client.metrics().bytes_in]);
}

#[test]
fn what_was_sent_before_anything_was_received_is_traffic_too() {
    let server = serve(Script::new().ignore());
    let tap = Tap::of(&server, &["traffic.count"]);
    let (peer, client, _inbox) = join(&server, config(&server).heartbeat_interval(None));
    client.send("order").unwrap();
    peer.expect("order", WAIT).unwrap();
    peer.reset();
    until(|| client.generation().number() == 2);
    client.close().unwrap();
    assert_eq!(tap.traffic()[2], 1);
}

#[test]
fn the_traffic_of_a_login_that_was_given_up_is_told() {
    let server = serve(Script::new().ignore());
    let tap = Tap::of(&server, &["traffic.count"]);
    let (client, inbox) = open(log_in(config(&server))).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.expect(Matcher::any(), WAIT).unwrap();
    peer.send_text("wait");
    while !matches!(next(&inbox), Event::Message(_)) {}
    client.close().unwrap();
    until_closed(&inbox);
    assert_eq!(tap.traffic()[..2], [client.metrics().messages_in, client.metrics().bytes_in]);
}

#[test]
fn traffic_is_told_while_the_wire_is_open() {
    let (_server, peer, tap, client, _inbox) = tapped(Script::new(), |config| config, &["traffic.count"]);
    let began = Instant::now();
    peer.send_text("one");
    let seen = tap.next();
    assert_eq!((seen.line.as_str(), client.state()), ("traffic.count 1 5 0 0", State::Live));
    assert!(began.elapsed() > ms(900), "{:?}", began.elapsed());
}

#[test]
fn messages_that_an_inbox_had_no_room_for_are_told_to_be_dropped() {
    let set = |config: Config| config.inbox_capacity(2).overflow(Overflow::DropNewest);
    let (_server, peer, tap, _client, inbox) = tapped(Script::new(), set, &["traffic.dropped"]);
    peer.send_raw(Frame::text("x").to_bytes().repeat(5));
    while !matches!(next(&inbox), Event::Gap { missing: 3, .. }) {}
    assert_eq!(told(&[tap.next()]), ["traffic.dropped 3"]);
    assert_eq!(tap.left(), [""; 0]);
}

#[test]
fn messages_that_the_inbox_of_a_channel_had_no_room_for_are_told_to_be_dropped() {
    let (_server, peer, tap, client, _inbox) = tapped(venue(), |config| config.dialect(JsonRpc::new()), &["traffic.dropped"]);
    let books = Inbox::shared(1);
    let _book = client.subscribe(Channels::new(["book"]).inbox(&books)).unwrap();
    while books.try_recv().unwrap().is_some() {}
    peer.send_raw(Frame::text(push("book", 1)).to_bytes().repeat(4));
    while !matches!(next(&books), Event::Gap { missing: 3, .. }) {}
    assert_eq!(told(&[tap.next()]), ["traffic.dropped 3"]);
}

#[test]
fn what_the_kernel_does_not_take_is_told_to_be_refused_and_then_unsent() {
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().ignore().stop_reading()).start().unwrap();
    let tap = Tap::of(&server, &["traffic.refused", "traffic.unsent"]);
    let (peer, client, inbox) = join(&server, config(&server).unsent_max(10_000));
    let filler = "x".repeat(1000);
    let unsent = loop {
        match client.send(&filler) {
            Err(Error::Full { unsent }) => break unsent,
            sent => _ = sent.unwrap(),
        }
    };
    assert_eq!(told(&[tap.next()]), [format!("traffic.refused {unsent}")]);
    peer.reset();
    let (messages, bytes) = loop {
        if let Event::Unsent { messages, bytes } = next(&inbox) {
            break (messages, bytes);
        }
    };
    assert_eq!(told(&[tap.next()]), [format!("traffic.unsent {messages} {bytes}")]);
}

#[test]
fn reading_that_stops_is_told_once_and_once_that_it_goes_on() {
    let set = |config: Config| config.inbox_capacity(4);
    let (_server, peer, tap, _client, inbox) = tapped(Script::new(), set, &["traffic"]);
    peer.send_raw(Frame::text("x").to_bytes().repeat(100));
    let first = tap.next().line;
    (0..100).for_each(|_| assert_eq!(text(&inbox), "x"));
    settle(&peer);
    let lines = [vec![first], tap.left()].concat();
    assert_eq!(lines, ["traffic.blocked", "traffic.resumed"].repeat(lines.len() / 2));
}

// ---- rate limits ----

#[test]
fn what_a_limit_lets_pass_is_told_with_what_is_left() {
    let limits = |config: Config| {
        let own = RateLimit::bucket(3, 1, NEVER).reserved(1);
        config.rate_limit(own).rate_limit(RateLimit::bucket(9, 1, NEVER).reserved(0).shared("telemetry"))
    };
    let (_server, _peer, tap, client, _inbox) = tapped(Script::new(), limits, &["rate_limiter"]);
    client.send("order").unwrap();
    client.send("order").unwrap();
    assert!(matches!(client.send("order"), Err(Error::Throttled { .. })));
    let seen = tap.taken(5);
    let lines = told(&seen);
    assert_eq!(lines[..2], ["rate_limiter.consume None 1, 1/3", "rate_limiter.consume Some(\"telemetry\") 1, 8/9"]);
    assert_eq!(lines[2..4], ["rate_limiter.consume None 1, 0/3", "rate_limiter.consume Some(\"telemetry\") 1, 7/9"]);
    assert_eq!(lines[4], "rate_limiter.throttle");
    let wait = seen[4].took.unwrap();
    assert!(wait > NEVER / 2 && wait <= NEVER, "{wait:?}");
    assert_eq!(tap.left(), [""; 0]);
}

#[test]
fn of_a_burst_that_is_cut_what_passed_is_told_and_what_did_not() {
    let limit = |config: Config| config.rate_limit(RateLimit::bucket(2, 1, NEVER).reserved(0));
    let (_server, _peer, tap, client, _inbox) = tapped(Script::new(), limit, &["rate_limiter"]);
    let sent = client.send_many(["1", "2", "3"]);
    assert_eq!(sent.accepted, 2);
    let lines = tap.left();
    assert!(lines.contains(&"rate_limiter.consume None 2, 0/2".to_owned()), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| *line == "rate_limiter.throttle").count(), 1, "{lines:?}");
}

#[test]
fn a_message_that_has_to_wait_is_told_to_once_however_it_is_sent() {
    for burst in [false, true] {
        let limit =
            |config: Config| config.rate_limit(RateLimit::bucket(1, 1, ms(300)).reserved(0)).throttle(Throttle::Wait(WAIT));
        let (_server, _peer, tap, client, _inbox) = tapped(Script::new(), limit, &["rate_limiter"]);
        client.send("1").unwrap();
        if burst {
            assert!(client.send_many(["2"]).error.is_none());
        } else {
            client.send("2").unwrap();
        }
        let consume = "rate_limiter.consume None 1, 0/1";
        assert_eq!(tap.left(), [consume, "rate_limiter.throttle", consume], "burst: {burst}");
    }
}

#[test]
fn a_queue_for_a_limit_is_told_as_it_fills_and_empties() {
    let server = serve(Script::new());
    let tap = Tap::of(&server, &["rate_limiter.queue", "rate_limiter.queue_full", "rate_limiter.pressure"]);
    let mut driver = Driver::new().unwrap();
    let limit = RateLimit::bucket(1, 1, ms(50)).reserved(0);
    let client = driver.open(config(&server).rate_limit(limit).throttle(Throttle::Queue(4))).unwrap();
    while !client.state().is_open() {
        driver.turn(ms(10)).unwrap();
    }
    send_all(&client, &["1", "2", "3", "4", "5"]);
    assert!(matches!(client.send("6"), Err(Error::QueueFull { waiting: 4 })));
    let expected = ["queue 1", "queue 2", "queue 3", "queue 4", "queue_full 4"];
    assert_eq!(tap.left(), expected.map(|line| format!("rate_limiter.{line}")));
    while client.metrics().messages_out < 5 {
        driver.turn(ms(10)).unwrap();
    }
    let expected = ["pressure None High", "pressure High Medium", "pressure Medium Low", "pressure Low None"];
    assert_eq!(tap.left(), expected.map(|line| format!("rate_limiter.{line}")));
}

#[test]
fn what_waited_for_a_limit_is_told_when_it_gives_again_and_when_it_passes() {
    let limit = |config: Config| config.rate_limit(RateLimit::bucket(1, 1, ms(50)).reserved(0)).throttle(Throttle::Queue(4));
    let names = ["rate_limiter.refill", "rate_limiter.consume"];
    let (_server, _peer, tap, client, _inbox) = tapped(Script::new(), limit, &names);
    send_all(&client, &["1", "2"]);
    let expected = ["rate_limiter.consume None 1, 0/1", "rate_limiter.refill None 1/1", "rate_limiter.consume None 1, 0/1"];
    assert_eq!(told(&tap.taken(3)), expected);
}

#[test]
fn the_pressure_of_a_queue_ends_with_its_wire() {
    let limit = |config: Config| config.rate_limit(RateLimit::bucket(1, 1, NEVER).reserved(0)).throttle(Throttle::Queue(1));
    let (_server, peer, tap, client, inbox) = tapped(Script::new(), limit, &["rate_limiter.pressure"]);
    send_all(&client, &["1", "2"]);
    let first = tap.taken(1);
    peer.reset();
    until_lost(&inbox);
    until_open(&inbox);
    client.send("3").unwrap();
    let expected = ["None High", "High None", "None High"].map(|change| format!("rate_limiter.pressure {change}"));
    assert_eq!([told(&first), told(&tap.taken(2))].concat(), expected);
}

#[test]
fn a_subscription_that_waits_for_the_limit_is_not_told_to_be_none() {
    let limit = |config: Config| {
        config.dialect(JsonRpc::new()).rate_limit(RateLimit::bucket(1, 1, NEVER).reserved(0)).throttle(Throttle::Queue(4))
    };
    let (_server, peer, tap, client, _inbox) = tapped(venue(), limit, &["rate_limiter.queue"]);
    client.send("1").unwrap();
    let _book = client.start_subscribe("book").unwrap();
    settle_held(&client, &peer);
    assert!(!tap.left().contains(&"rate_limiter.queue 0".to_owned()));
}

// ---- calls ----

#[test]
fn a_call_is_tracked_until_its_reply() {
    let (_server, _peer, tap, client, _inbox) = tapped(venue(), |config| config.dialect(JsonRpc::new()), &["request_correlator"]);
    let call = client.with_call_timeout(WAIT).start_call("m", ()).unwrap();
    let id = call.id().clone();
    let reply = call.wait().unwrap();
    let seen = tap.taken(2);
    assert_eq!(told(&seen), [format!("request_correlator.track {id} {WAIT:?}"), format!("request_correlator.resolve {id}")]);
    assert_eq!(seen[1].took, Some(reply.round_trip()));
}

#[test]
fn every_call_of_a_batch_is_tracked() {
    let (_server, _peer, tap, client, _inbox) =
        tapped(Script::new().ignore(), |config| config.dialect(JsonRpc::new()), &["request_correlator"]);
    let _ = client.with_call_timeout(ms(50)).call_batch([("a", ()), ("b", ())]);
    let names: Vec<_> = tap.taken(4).iter().map(|seen| seen.name).collect();
    let (track, timeout) = ("request_correlator.track", "request_correlator.timeout");
    assert_eq!(names, [track, track, timeout, timeout]);
}

#[test]
fn a_call_that_nobody_waits_for_times_out_once() {
    let (_server, peer, tap, client, _inbox) =
        tapped(Script::new().ignore(), |config| config.dialect(JsonRpc::new()), &["request_correlator"]);
    let call = client.with_call_timeout(ms(50)).start_call("m", ()).unwrap();
    let end = call.receiver().recv_timeout(WAIT).unwrap();
    assert!(matches!(end, Err(Error::Timeout { .. })), "{end:?}");
    settle(&peer);
    let id = call.id().clone();
    drop(call);
    let expected = [format!("request_correlator.track {id} 50ms"), format!("request_correlator.timeout {id}")];
    assert_eq!(tap.left(), expected);
}

#[test]
fn calls_whose_callers_wait_time_out_once_each() {
    let (_server, peer, tap, client, _inbox) =
        tapped(Script::new().ignore(), |config| config.dialect(JsonRpc::new()), &["request_correlator.timeout"]);
    let client = client.with_call_timeout(ms(60));
    let waiting: Vec<_> = (0..16)
        .map(|_| {
            let client = client.clone();
            thread::spawn(move || client.start_call("m", ()).unwrap().wait().unwrap_err())
        })
        .collect();
    for caller in waiting {
        assert!(matches!(caller.join().unwrap(), Error::Timeout { .. }));
    }
    settle(&peer);
    let lines = tap.left();
    assert_eq!((lines.len(), lines.iter().collect::<BTreeSet<_>>().len()), (16, 16), "{lines:?}");
}

#[test]
fn a_call_that_is_taken_back_or_refused_is_cancelled() {
    let limit = |config: Config| config.dialect(JsonRpc::new()).rate_limit(RateLimit::bucket(1, 1, NEVER).reserved(0));
    let (_server, _peer, tap, client, _inbox) = tapped(Script::new().ignore(), limit, &["request_correlator"]);
    drop(client.with_call_timeout(WAIT).start_call("m", ()).unwrap());
    client.with_call_timeout(WAIT).start_call("m", ()).unwrap_err();
    let expected = ["track 1 10s", "cancel 1", "track 2 10s", "cancel 2"];
    assert_eq!(tap.left(), expected.map(|line| format!("request_correlator.{line}")));
}

#[test]
fn calls_fail_with_their_wire_one_signal_each() {
    let (_server, peer, tap, client, _inbox) =
        tapped(Script::new().ignore(), |config| config.dialect(JsonRpc::new()), &["request_correlator"]);
    let calls: Vec<_> = (0..3).map(|_| client.start_call("m", ()).unwrap()).collect();
    peer.close(4001, "bye");
    calls.into_iter().for_each(|call| assert!(matches!(call.wait(), Err(Error::Lost { .. }))));
    let lines = told(&tap.taken(6));
    let cause = Error::PeerClosed { code: Some(4001), reason: "bye".into() };
    let expected = ["1", "2", "3"].map(|id| format!("request_correlator.fail_all {id}: {cause}"));
    assert_eq!(lines[3..], expected);
}

#[test]
fn a_reply_to_no_call_is_told() {
    let (_server, peer, tap, client, _inbox) =
        tapped(Script::new().ignore(), |config| config.dialect(JsonRpc::new()), &["request_correlator"]);
    peer.send_text(r#"{"id":"stray","result":1}"#);
    assert_eq!(tap.next().line, format!("request_correlator.unmatched {}", Id::from("stray")));
    drop(client);
}

// ---- channels ----

#[test]
fn channels_are_told_from_the_first_wish_to_the_last() {
    let (_server, _peer, tap, client, _inbox) =
        tapped(venue(), |config| config.dialect(JsonRpc::new()), &["subscription_manager"]);
    let one = client.subscribe(["book", "trades"]).unwrap();
    let other = client.subscribe("book").unwrap();
    drop(one);
    drop(other);
    let lines = told(&tap.taken(4));
    let expected = ["add book", "add trades", "remove trades", "remove book"];
    assert_eq!(lines, expected.map(|line| format!("subscription_manager.{line}")));
    settle_client(&client);
    assert_eq!(tap.left(), [""; 0]);
}

#[test]
fn a_restore_is_told_when_it_begins_and_when_it_is_done() {
    let names = ["subscription_manager", "connection.open", "connection.live", "connection.lost"];
    let (server, peer, tap, client, _inbox) = tapped(venue(), |config| config.dialect(JsonRpc::new()), &names);
    let _both = client.subscribe(["book", "trades"]).unwrap();
    let expected = ["connection.open", "subscription_manager.add book", "subscription_manager.add trades", "connection.live"];
    assert_eq!(told(&tap.taken(4)), expected);
    peer.reset();
    let seen = tap.until("connection.live");
    let expected = ["connection.open", "subscription_manager.restore 2", "subscription_manager.restored 2", "connection.live"];
    assert_eq!(told(&seen)[1..], expected);
    assert!(seen[3].took.unwrap() <= seen[3].at - seen[1].at + SLACK, "{seen:?}");
    drop(server);
}

#[test]
fn what_is_wanted_before_the_first_wire_is_restored_on_it() {
    let server = serve(venue());
    let names = ["subscription_manager", "connection.open", "connection.live"];
    let tap = Tap::of(&server, &names);
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server).dialect(JsonRpc::new())).unwrap();
    let _book = client.start_subscribe("book").unwrap();
    while client.state() != State::Live {
        driver.turn(ms(10)).unwrap();
    }
    let manager = |line| format!("subscription_manager.{line}");
    let expected =
        [manager("add book"), "connection.open".into(), manager("restore 1"), manager("restored 1"), "connection.live".into()];
    assert_eq!(tap.left(), expected);
}

#[test]
fn a_channel_that_is_refused_is_told_with_the_reason() {
    let (_server, _peer, tap, client, _inbox) =
        tapped(venue(), |config| config.dialect(JsonRpc::new()), &["subscription_manager"]);
    let _bad = client.start_subscribe("bad").unwrap();
    let reason = "not among the channels the venue accepted";
    assert_eq!(
        told(&tap.taken(2)),
        ["subscription_manager.add bad".to_owned(), format!("subscription_manager.rejected bad {reason}")]
    );
}

#[test]
fn a_channel_that_falls_silent_is_told() {
    let (_server, _peer, tap, client, _inbox) =
        tapped(venue(), |config| config.dialect(JsonRpc::new()), &["subscription_manager.silent"]);
    let _book = client.subscribe(Channels::new(["book"]).silence(ms(50))).unwrap();
    let seen = tap.next();
    assert_eq!(seen.line, "subscription_manager.silent book");
    assert!(seen.took.unwrap() >= ms(50), "{seen:?}");
}

#[test]
fn a_hole_in_the_sequence_of_a_channel_is_told() {
    let numbered = |config: Config| config.dialect(JsonRpc::new().sequence("prev_change_id", "change_id"));
    let (_server, peer, tap, client, _inbox) = tapped(venue(), numbered, &["subscription_manager.gap", "traffic.dropped"]);
    let _book = client.subscribe(Channels::new(["book"]).check_sequence()).unwrap();
    for (previous, last) in [(None, 1), (Some(4), 5)] {
        let data = json!({ "prev_change_id": previous, "change_id": last });
        peer.send_text(&json!({ "method": "subscription", "params": { "channel": "book", "data": data } }).to_string());
    }
    assert_eq!(tap.next().line, "subscription_manager.gap book 3");
    settle(&peer);
    assert_eq!(tap.left(), [""; 0]);
}

// ---- the reactor ----

#[test]
fn a_handler_that_takes_its_time_is_told_to_stall_its_reactor() {
    let server = serve(Script::new());
    let tap = Tap::of(&server, &["reactor.stall"]);
    let reactor = Reactor::builder().start().unwrap();
    let handler = Handler::new().text(|_, _| {
        let began = Instant::now();
        while began.elapsed() < ms(15) {}
    });
    let client = reactor.connect_with(config(&server), handler).unwrap();
    client.send("go").unwrap();
    let seen = tap.next();
    assert!(seen.took.unwrap() >= ms(15) && seen.connection == Some(client.id()), "{seen:?}");
}

#[test]
fn dropping_a_handler_is_not_the_stall_of_another_connection() {
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            let began = Instant::now();
            while began.elapsed() < ms(30) {}
        }
    }
    let (server, refusing) = (serve(Script::new()), serve(Script::new().status(503)));
    let tap = Tap::of(&server, &["reactor.stall"]);
    let mut driver = Driver::new().unwrap();
    let slow = Slow;
    let handler = Handler::new().text(move |_, _| _ = &slow);
    let ending = driver.open_with(config(&refusing).base_delay(NEVER).max_backoff(NEVER), handler).unwrap();
    let other = driver.open(config(&server)).unwrap();
    while ending.state() != State::Waiting || !other.state().is_open() {
        driver.turn(ms(10)).unwrap();
    }
    // One turn finds both posts.
    ending.start_close(1000, "").unwrap();
    other.reconnect().unwrap();
    driver.turn(ms(10)).unwrap();
    assert_eq!((ending.state(), driver.connections()), (State::Closed, 1));
    // A busy machine may bring about shorter ones.
    assert_eq!(tap.seen.try_iter().filter(|seen| seen.took >= Some(ms(30))).count(), 0);
}

// ---- filters ----

#[test]
fn a_filter_is_a_name_or_a_group_and_nothing_else() {
    for known in Signal::NAMES {
        let group = known.split_once('.').unwrap().0;
        assert_ne!(Filter::name(known).unwrap(), Filter::all());
        assert_ne!(Filter::name(group).unwrap(), Filter::all());
    }
    for unknown in ["", ".", "connection.", "conn", "connection.los", "lost", "Connection.lost", "connection.lost ", "all"] {
        let error = Filter::name(unknown).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid filter: no signal is called {unknown:?}"));
    }
}

#[test]
fn every_signal_has_a_name_of_its_own() {
    assert_eq!(Signal::NAMES.iter().collect::<BTreeSet<_>>().len(), Signal::NAMES.len());
}

#[test]
fn an_observer_of_one_connection_hears_of_no_other() {
    let _gate = shared();
    let server = serve(Script::new());
    let [(one, one_inbox), (other, other_inbox)] = [(); 2].map(|()| connect(config(&server)).unwrap());
    let (send, seen) = mpsc::channel();
    let filter = Filter::name("connection").unwrap().connection(one.id());
    let _guard = telemetry::attach(filter, move |observed| send.send(observed.connection).unwrap());
    for inbox in [&other_inbox, &one_inbox] {
        let client = if std::ptr::eq(inbox, &one_inbox) { &one } else { &other };
        client.close().unwrap();
        lines_to_end(inbox);
    }
    assert_eq!(seen.recv_timeout(WAIT).unwrap(), Some(one.id()));
    assert!(seen.try_recv().is_err());
}

#[test]
fn filters_of_two_connections_let_no_third_through() {
    let _gate = shared();
    let server = serve(Script::new());
    let [one, other, third] = [(); 3].map(|()| connect(config(&server)).unwrap());
    let (send, seen) = mpsc::channel();
    let closed = Filter::name("connection.closed").unwrap();
    let filter = closed.clone().connection(one.0.id()).or(closed.connection(other.0.id()));
    let _guard = telemetry::attach(filter, move |observed| send.send(observed.connection.unwrap()).unwrap());
    for (client, inbox) in [&third, &one, &other] {
        client.close().unwrap();
        lines_to_end(inbox);
    }
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [one.0.id(), other.0.id()]);
}

// ---- observers ----

#[test]
fn without_its_guard_an_observer_hears_nothing() {
    let (_server, _peer, mut tap, client, _inbox) = tapped(Script::new(), |config| config, &["connection"]);
    tap.until("connection.open");
    tap.guard = None;
    client.close().unwrap();
    assert_eq!(tap.left(), [""; 0]);
    assert!(matches!(tap.seen.recv_timeout(WAIT), Err(mpsc::RecvTimeoutError::Disconnected)), "the observer was not dropped");
}

#[test]
fn an_observer_that_panics_is_detached_and_nobody_else_is_hurt() {
    let _alone = alone();
    Lines::keep();
    let server = serve(Script::new());
    let calls = Arc::new(AtomicUsize::new(0));
    let (count, name) = (calls.clone(), Filter::name("connection.dial").unwrap());
    let (send, heard) = mpsc::channel();
    let before = send.clone();
    let _before = telemetry::attach(name.clone(), move |_| before.send("before").unwrap());
    let _broken = telemetry::attach(Filter::all(), move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        panic!("as the test asks");
    });
    let _after = telemetry::attach(name, move |_| send.send("after").unwrap());
    for _ in 0..2 {
        let (client, inbox) = connect(config(&server)).unwrap();
        client.send("hello").unwrap();
        until_open(&inbox);
        assert_eq!(text(&inbox), "hello");
        client.close().unwrap();
    }
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["before", "after"].repeat(2));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let lines = Lines::kept();
    assert!(lines.iter().any(|line| line.starts_with("ERROR an observer panicked over connection.dial")), "{lines:?}");
}

#[test]
fn an_observer_may_drop_its_own_guard() {
    let _gate = shared();
    let server = serve(Script::new());
    let own = Arc::new(Mutex::new(None::<Guard>));
    let (held, (send, heard)) = (own.clone(), mpsc::channel());
    let host = server.address().to_string();
    let guard = telemetry::attach(Filter::name("connection.dial").unwrap(), move |observed| {
        if observed.host == host {
            drop(held.lock().unwrap().take());
            send.send(()).unwrap();
        }
    });
    *own.lock().unwrap() = Some(guard);
    for _ in 0..2 {
        connect(config(&server)).unwrap().0.close().unwrap();
    }
    assert_eq!(heard.iter().count(), 1, "detached and dropped");
}

#[test]
fn an_observer_may_attach_and_detach_others() {
    let _gate = shared();
    let server = serve(Script::new());
    let host = server.address().to_string();
    let (send, heard) = mpsc::channel();
    let guards = Arc::new(Mutex::new(Vec::new()));
    let held = guards.clone();
    let mine = move |observed: &Observed<'_>| observed.host == host;
    let _guard = telemetry::attach(Filter::name("connection.upgrade").unwrap(), move |observed| {
        if !mine(observed) {
            return;
        }
        let (send, mine) = (send.clone(), mine.clone());
        let filter = Filter::name("connection").unwrap();
        let guard = telemetry::attach(filter.clone(), move |observed| {
            if mine(observed) {
                send.send(observed.signal.name()).unwrap();
            }
        });
        held.lock().unwrap().push(guard);
        drop(telemetry::attach(filter, |_| panic!("detached at once")));
    });
    connect(config(&server)).unwrap().0.close().unwrap();
    let both = [heard.recv_timeout(WAIT).unwrap(), heard.recv_timeout(WAIT).unwrap()];
    guards.lock().unwrap().clear();
    assert_eq!((both, heard.try_iter().count()), (["connection.open", "connection.closed"], 0));
}

#[test]
fn what_an_observer_causes_is_not_told() {
    let (_server, peer, tap, client, _inbox) = tapped(venue(), |config| config.dialect(JsonRpc::new()), &["request_correlator"]);
    let caller = client.clone();
    let filter = Filter::name("subscription_manager.add").unwrap().connection(client.id());
    let (send, replies) = mpsc::channel();
    let _guard = telemetry::attach(filter, move |_| send.send(caller.start_call("observed", ()).unwrap()).unwrap());
    let _book = client.subscribe("book").unwrap();
    replies.recv_timeout(WAIT).unwrap().wait().unwrap();
    peer.expect(Matcher::regex("observed"), WAIT).unwrap();
    client.call::<Value>("m", ()).unwrap();
    let lines = tap.left();
    assert_eq!(lines.iter().filter(|line| line.contains("track")).count(), 1, "{lines:?}");
}

#[test]
fn observers_may_ask_a_client_whatever_it_knows() {
    let (asked, clients) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::<Client>::new())));
    let (count, known) = (asked.clone(), clients.clone());
    let _gate = shared();
    let _guard = telemetry::attach(Filter::all(), move |_| {
        let clients = known.lock().unwrap().clone();
        for client in clients {
            let status = (client.metrics(), client.heartbeat(), client.latency(), client.rate_status(), client.unsent());
            count.fetch_add(usize::from(status.0.memory > 0), Ordering::SeqCst);
        }
    });
    quickly(|| walk(|client| clients.lock().unwrap().push(client.clone())));
    clients.lock().unwrap().clear();
    assert!(asked.load(Ordering::SeqCst) > 50);
}

#[test]
fn signals_of_many_threads_all_arrive() {
    let limit = |config: Config| config.rate_limit(RateLimit::bucket(1_000_000, 1, NEVER));
    let (_server, _peer, tap, client, _inbox) = tapped(Script::new().ignore(), limit, &["rate_limiter.consume"]);
    thread::scope(|scope| {
        (0..4).for_each(|_| _ = scope.spawn(|| (0..500).for_each(|_| _ = client.send("x").unwrap())));
    });
    assert_eq!(tap.left().len(), 2000);
}

#[test]
fn observers_come_and_go_while_signals_are_told() {
    let server = serve(Script::new());
    let _gate = shared();
    let (client, _inbox) = connect(config(&server).heartbeat_interval(ms(1))).unwrap();
    let calls = AtomicUsize::new(0);
    let calls: &'static AtomicUsize = Box::leak(Box::new(calls));
    let filter = Filter::name("heartbeat").unwrap().connection(client.id());
    quickly(|| {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while calls.load(Ordering::SeqCst) < 50 {
                        let _guard = telemetry::attach(filter.clone(), |_| _ = calls.fetch_add(1, Ordering::SeqCst));
                        thread::yield_now();
                    }
                });
            }
        });
    });
    settle_client(&client);
}

// ---- what it costs ----

#[test]
fn where_nobody_listens_telling_allocates_nothing() {
    let _alone = alone();
    assert_eq!(echo_allocations(), 0);
}

#[test]
fn an_observer_of_the_traffic_costs_no_allocation_per_message() {
    let _alone = alone();
    let _guard = telemetry::attach(Filter::name("traffic").unwrap(), |_| ());
    let allocations = echo_allocations();
    // Once a second there is a signal, for which the list of the observers is copied.
    assert!(allocations <= 4, "{allocations}");
}

// ---- secrets ----

#[test]
fn nothing_secret_is_told_in_a_whole_life() {
    let _gate = shared();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let told = lines.clone();
    let _guard = telemetry::attach(Filter::all(), move |observed| {
        told.lock().unwrap().push((observed.signal.name(), format!("{observed:?}")));
    });
    walk(|_| ());
    let lines = mem::take(&mut *lines.lock().unwrap());
    let shown: Vec<_> = lines.iter().filter(|(_, line)| line.contains(SECRET)).collect();
    assert!(shown.is_empty(), "{shown:?}");
    let names: BTreeSet<_> = lines.iter().map(|(name, _)| *name).collect();
    assert!(names.len() >= 20, "{names:?}");
}

// ---- helpers ----

const SECRET: &str = "s3cret";

/// How much later something may be noticed than it happened.
const SLACK: Duration = ms(200);

/// A signal as the tests see it.
#[derive(Debug)]
struct Seen {
    name: &'static str,
    /// All that it tells but times.
    line: String,
    took: Option<Duration>,
    connection: Option<ConnectionId>,
    generation: u32,
    host: String,
    at: Instant,
}

/// What is told of the connections to one server.
struct Tap {
    seen: mpsc::Receiver<Seen>,
    guard: Option<Guard>,
    _gate: RwLockReadGuard<'static, ()>,
}

/// Taken alone by tests in which nobody else may listen.
static GATE: RwLock<()> = RwLock::new(());

fn shared() -> RwLockReadGuard<'static, ()> {
    GATE.read().unwrap_or_else(PoisonError::into_inner)
}

fn alone() -> RwLockWriteGuard<'static, ()> {
    GATE.write().unwrap_or_else(PoisonError::into_inner)
}

impl Tap {
    fn of(server: &MockServer, names: &[&str]) -> Self {
        Self::at(server.address(), names)
    }

    fn at(address: SocketAddr, names: &[&str]) -> Self {
        let gate = shared();
        let filter = names.iter().map(|name| Filter::name(name).unwrap()).reduce(Filter::or).unwrap();
        let (send, seen) = mpsc::channel();
        let port = format!(":{}", address.port());
        let guard = telemetry::attach(filter, move |observed| {
            if observed.host.ends_with(&port) {
                let _ = send.send(see(observed));
            }
        });
        Self { seen, guard: Some(guard), _gate: gate }
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(WAIT).unwrap()
    }

    fn taken(&self, count: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let next = self.seen.recv_timeout(WAIT);
            seen.push(next.unwrap_or_else(|_| panic!("nothing after {:?}", told(&seen))));
        }
        seen
    }

    /// Up to the next of this name.
    fn until(&self, name: &str) -> Vec<Seen> {
        let mut seen: Vec<Seen> = Vec::new();
        while seen.last().is_none_or(|seen| seen.name != name) {
            let next = self.seen.recv_timeout(WAIT);
            seen.push(next.unwrap_or_else(|_| panic!("no {name} after {:?}", told(&seen))));
        }
        seen
    }

    /// The lines that nobody took.
    fn left(&self) -> Vec<String> {
        told(&self.seen.try_iter().collect::<Vec<_>>())
    }

    /// The sums of what the traffic was told to be.
    fn traffic(&self) -> [u64; 4] {
        let mut sums = [0; 4];
        for line in self.left() {
            let counts = line.strip_prefix("traffic.count ").unwrap().split(' ').map(|count| count.parse::<u64>().unwrap());
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        sums
    }
}

fn told(seen: &[Seen]) -> Vec<String> {
    seen.iter().map(|seen| seen.line.clone()).collect()
}

fn see(observed: &Observed<'_>) -> Seen {
    let name = observed.signal.name();
    let (fields, took) = fields(observed.signal);
    let line = if fields.is_empty() || fields.starts_with(':') { format!("{name}{fields}") } else { format!("{name} {fields}") };
    let Observed { connection, generation, host, at, .. } = *observed;
    Seen { name, line, took, connection, generation: generation.number(), host: host.to_owned(), at }
}

/// What a signal tells, and how long that took or will take.
fn fields(signal: &Signal<'_>) -> (String, Option<Duration>) {
    let cause_of = |cause: Option<&Error>| cause.map_or(String::new(), |cause| format!(": {cause}"));
    match *signal {
        Signal::Dial { attempt } => (attempt.to_string(), None),
        Signal::DialPhase { phase, took } => (format!("{phase:?}"), Some(took)),
        Signal::DialFailed { attempt, cause } => (format!("{attempt}: {cause}"), None),
        Signal::Upgrade { took } | Signal::Login { took } => (String::new(), Some(took)),
        Signal::Open | Signal::Live | Signal::Ping | Signal::Blocked | Signal::Resumed => (String::new(), None),
        Signal::Lost { cause, closer, code, uptime } => (format!("{} {code:?}: {cause}", closer_word(closer)), Some(uptime)),
        Signal::RedialScheduled { delay } => (format!("{delay:?}"), Some(delay)),
        Signal::RedialsExhausted { attempts } => (attempts.to_string(), None),
        Signal::Closed { cause } => (cause_of(cause), None),
        Signal::Pong { rtt, kind } => (kind.to_owned(), Some(rtt)),
        Signal::Missed { misses } => (misses.to_string(), None),
        Signal::Traffic { messages_in, bytes_in, messages_out, bytes_out } => {
            (format!("{messages_in} {bytes_in} {messages_out} {bytes_out}"), None)
        }
        Signal::Dropped { messages } => (messages.to_string(), None),
        Signal::Unsent { messages, bytes } => (format!("{messages} {bytes}"), None),
        Signal::Refused { unsent } => (unsent.to_string(), None),
        Signal::Consume { name, cost, available, capacity } => (format!("{name:?} {cost}, {available}/{capacity}"), None),
        Signal::Refill { name, available, capacity } => (format!("{name:?} {available}/{capacity}"), None),
        Signal::Throttle { wait } => (String::new(), Some(wait)),
        Signal::Queue { waiting } | Signal::QueueFull { waiting } => (waiting.to_string(), None),
        Signal::Pressure { level, previous } => (format!("{previous:?} {level:?}"), None),
        Signal::Track { id, timeout } => (format!("{id} {timeout:?}"), Some(timeout)),
        Signal::Resolve { id, round_trip } => (id.to_string(), Some(round_trip)),
        Signal::Cancel { id } | Signal::Timeout { id } | Signal::Unmatched { id } => (id.to_string(), None),
        Signal::FailAll { id, cause } => (format!("{id}: {cause}"), None),
        Signal::Add { channel } | Signal::Remove { channel } => (channel.to_owned(), None),
        Signal::Restore { channels } => (channels.to_string(), None),
        Signal::Restored { channels, took } => (channels.to_string(), Some(took)),
        Signal::Rejected { channel, reason } => (format!("{channel} {reason}"), None),
        Signal::Silent { channel, quiet } => (channel.to_owned(), Some(quiet)),
        Signal::Gap { channel, missing } => (format!("{channel} {missing}"), None),
        Signal::Stall { took } => (String::new(), Some(took)),
        Signal::RecorderDropped { entries } => (entries.to_string(), None),
        Signal::RecorderFailed { cause } => (cause.to_owned(), None),
        ref other => panic!("nobody here knows {other:?}"),
    }
}

fn closer_word(closer: Closer) -> &'static str {
    match closer {
        Closer::Peer => "Peer",
        Closer::Own => "Own",
        Closer::Network => "Network",
    }
}

/// What is told of a connection whose wire is reset and whose only redial gets this status.
fn told_of_one_redial(status: u16) -> Vec<String> {
    let (server, peer, tap, _client, _inbox) = tapped(Script::new(), |config| config.redial_attempts(1), &["connection"]);
    server.script(Script::new().status(status));
    peer.reset();
    told(&tap.until("connection.closed"))
}

/// A client on a server with this script, with what is told of it from the beginning.
fn tapped(script: Script, set: impl FnOnce(Config) -> Config, names: &[&str]) -> (MockServer, Peer, Tap, Client, Inbox) {
    let server = serve(script);
    let tap = Tap::of(&server, names);
    let (peer, client, inbox) = join(&server, set(config(&server)));
    (server, peer, tap, client, inbox)
}

/// Confirms channels, unless their names begin with `bad`, and answers whatever else has an id.
fn venue() -> Script {
    Script::new().on_text(|peer, text| {
        let Ok(request) = serde_json::from_str::<Value>(text) else { return };
        let channels = request["params"]["channels"].as_array();
        let accepted: Option<Vec<_>> =
            channels.map(|channels| channels.iter().filter(|channel| !channel.as_str().unwrap().starts_with("bad")).collect());
        let result = accepted.map_or(json!({ "access_token": SECRET }), |accepted| json!(accepted));
        peer.send_text(&json!({ "id": request["id"], "result": result }).to_string());
    })
}

fn log_in(config: Config) -> Config {
    config.dialect(JsonRpc::new().login("public/auth", |_| json!({ "client_secret": SECRET })))
}

fn send_all(client: &Client, texts: &[&str]) {
    texts.iter().for_each(|text| _ = client.send(text).unwrap());
}

fn push(channel: &str, number: u64) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{channel}","data":{number}}}}}"#)
}

/// Waits until the reactor of a client has dealt with all that was wanted of it, and with what it had at hand.
fn settle_client(client: &Client) {
    client.close().unwrap();
}

/// As [`settle`], where a limit holds pongs back.
fn settle_held(client: &Client, peer: &Peer) {
    let before = client.metrics().messages_in;
    peer.send_text("settled?");
    until(|| client.metrics().messages_in > before && client.metrics().channels.wanted + client.metrics().channels.pending > 0);
}

/// A life with a bit of everything, full of secrets, on connections that `meet` is shown.
fn walk(meet: impl Fn(&Client)) {
    let server = serve(venue());
    server.script_next(Script::new().status(503).body("maintenance"));
    let url = format!("ws://user:{SECRET}@{}/ws?token={SECRET}", server.address());
    let limit = RateLimit::bucket(8, 8, ms(20)).reserved(1);
    let set =
        config_for(url).header("X-Api-Key", SECRET).heartbeat_interval(ms(20)).rate_limit(limit).throttle(Throttle::Queue(4));
    let (client, inbox) = connect(log_in(set).inbox_capacity(8).overflow(Overflow::DropNewest)).unwrap();
    meet(&client);
    let peer = server.accept(WAIT).unwrap();
    let _books = client.start_subscribe(["book", "bad"]).unwrap();
    client.with_call_timeout(WAIT).call::<Value>("m", json!({ "key": SECRET })).unwrap();
    for _ in 0..20 {
        let _ = client.send("not json");
    }
    peer.send_text(r#"{"id":77,"result":1}"#);
    settle(&peer);
    peer.send_raw(Frame::text(push("book", 1)).to_bytes().repeat(20));
    settle(&peer);
    while inbox.try_recv().unwrap().is_some() {}
    peer.close(4001, "bye");
    until(|| client.generation().number() == 2);
    let peer = server.accept(WAIT).unwrap();
    peer.freeze();
    let _lost = client.start_call("m", ());
    peer.reset();
    until(|| client.generation().number() == 3);
    client.reconnect().unwrap();
    until(|| client.generation().number() == 4);
    until(|| client.heartbeat().rtt.is_some());
    client.close().unwrap();
}

/// What a thousand echoes allocate on the thread of the driver.
fn echo_allocations() -> u64 {
    let server = serve(Script::new());
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server)).unwrap();
    while !client.state().is_open() {
        driver.turn(WAIT).unwrap();
    }
    client.send("x").unwrap();
    let mut echo = |count: usize| {
        let seen = Cell::new(0);
        while seen.get() < count {
            let echo = |context: &zen_websocket::Context<'_>, event: EventRef<'_>| {
                if let EventRef::Text(text) = event {
                    context.send(text).unwrap();
                    seen.set(seen.get() + 1);
                }
            };
            driver.turn_with(WAIT, echo).unwrap();
        }
    };
    echo(100);
    measure(|| echo(1000)).count_total
}

#[test]
fn what_cannot_pass_on_a_redial_exhausts_what_was_allowed() {
    let lines = told_of_one_redial(401);
    assert!(lines.contains(&"connection.redials_exhausted 1".to_owned()), "{lines:?}");
}

#[test]
fn each_limit_is_told_with_the_cost_it_has_there() {
    let limits = |config: Config| {
        let weighed = RateLimit::bucket(9, 1, NEVER).reserved(0).cost(|text| text.len() as u32);
        config.rate_limit(RateLimit::bucket(3, 1, NEVER).reserved(0)).rate_limit(weighed)
    };
    let (_server, _peer, tap, client, _inbox) = tapped(Script::new(), limits, &["rate_limiter"]);
    client.send("order").unwrap();
    assert_eq!(tap.left(), ["rate_limiter.consume None 1, 2/3", "rate_limiter.consume None 5, 4/9"]);
}

#[test]
fn what_passed_while_nobody_listened_is_no_traffic() {
    let _alone = alone();
    let (_server, _peer, client, inbox) = session_with(Script::new(), |config| config.heartbeat_interval(None));
    let counted = Arc::new(Mutex::new(Vec::new()));
    let listen = || {
        let (filter, counted) = (Filter::name("traffic.count").unwrap().connection(client.id()), counted.clone());
        telemetry::attach(filter, move |observed| counted.lock().unwrap().push(see(observed).line))
    };
    let echo = |message: &str| {
        client.send(message).unwrap();
        assert_eq!(text(&inbox), message);
    };
    let first = listen();
    echo("heard");
    drop(first);
    echo("unheard");
    let second = listen();
    echo("heard again");
    client.close().unwrap();
    drop(second);
    let counted = counted.lock().unwrap();
    assert!(counted.len() == 1 && counted[0].starts_with("traffic.count 1 "), "{counted:?}");
}

#[test]
fn traffic_is_told_though_there_is_always_more() {
    let (_server, peer, tap, _client, inbox) = tapped(Script::new(), |config| config, &["traffic.count"]);
    let (stop, stopped) = mpsc::channel::<()>();
    let talking = thread::spawn(move || {
        while stopped.recv_timeout(ms(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
            peer.send_text("more");
        }
    });
    let seen = tap.seen.recv_timeout(QUICK);
    stop.send(()).unwrap();
    talking.join().unwrap();
    assert!(seen.is_ok(), "{seen:?}");
    drop(inbox);
}

#[test]
fn a_wire_without_traffic_is_told_of_none() {
    let set = |config: Config| config.heartbeat_interval(None);
    let (_server, peer, tap, client, _inbox) = tapped(Script::new(), set, &["traffic.count"]);
    peer.reset();
    until(|| client.generation().number() == 2);
    assert_eq!(tap.left(), [""; 0]);
}

#[test]
fn reading_has_not_resumed_while_a_part_of_what_was_read_still_waits() {
    let set = |config: Config| config.inbox_capacity(4);
    let (_server, peer, tap, client, inbox) = tapped(Script::new(), set, &["traffic.blocked", "traffic.resumed"]);
    peer.send_raw(Frame::text("x").to_bytes().repeat(100));
    assert_eq!(tap.next().line, "traffic.blocked");
    for _ in 0..3 {
        assert_eq!(text(&inbox), "x");
        until(|| client.metrics().inbox_depth == Some(4));
    }
    assert_eq!(tap.left(), [""; 0]);
}

#[test]
fn reading_that_had_stopped_goes_on_at_the_end_of_its_wire() {
    let set = |config: Config| config.inbox_capacity(4);
    let (_server, peer, tap, client, _inbox) = tapped(Script::new(), set, &["traffic.blocked", "traffic.resumed"]);
    peer.send_raw(Frame::text("x").to_bytes().repeat(100));
    assert_eq!(tap.next().line, "traffic.blocked");
    client.reconnect().unwrap();
    assert_eq!(tap.next().line, "traffic.resumed");
}

#[test]
fn a_ping_of_a_dialect_that_the_limit_holds_back_is_not_told_to_leave() {
    let script = Script::new().on_text(|peer, _| peer.send_text("pong"));
    let limit = RateLimit::bucket(1, 1, NEVER).reserved(0);
    let set = |config: Config| config.dialect(Pinger).heartbeat_interval(ms(20)).rate_limit(limit);
    let (_server, peer, tap, _client, _inbox) = tapped(script, set, &["heartbeat.ping"]);
    // The first takes what there is.
    tap.next();
    let is_told = tap.seen.recv_timeout(ms(200)).is_ok();
    assert_eq!((is_told, peer.captured().len()), (false, 1));
}

#[test]
fn a_dial_that_is_given_up_while_it_resolves_is_told_to_have_resolved() {
    let server = serve(Script::new());
    let tap = Tap::of(&server, &["connection"]);
    let (go_on, pause) = mpsc::channel::<()>();
    let pause = Mutex::new(pause);
    let hook = move |_: &mut _| {
        let _ = pause.lock().unwrap().recv();
        Ok(())
    };
    let (client, _inbox) = open(config(&server).on_dial(hook)).unwrap();
    assert_eq!(tap.next().line, "connection.dial 1");
    client.close().unwrap();
    drop(go_on);
    assert_eq!(told(&tap.until("connection.closed")), ["connection.dial_phase Resolve", "connection.closed"]);
}

#[test]
fn a_login_takes_from_the_upgrade_on() {
    let server = serve(venue());
    let tap = Tap::of(&server, &["connection.upgrade", "connection.login"]);
    let (_client, _inbox) = open(log_in(config(&server))).unwrap();
    let seen = tap.until("connection.login");
    assert!(seen[1].took.unwrap() <= seen[1].at - seen[0].at, "{seen:?}");
}

#[test]
fn a_restore_takes_from_the_login_on() {
    let server = serve(venue());
    let tap = Tap::of(&server, &["connection.upgrade", "subscription_manager.restored"]);
    let (client, _inbox) = connect(log_in(config(&server))).unwrap();
    let _book = client.subscribe("book").unwrap();
    server.script(Script::new().ignore());
    server.kill_all();
    let answer = |peer: &Peer, result: Value| {
        let asked = peer.expect(Matcher::any(), WAIT).unwrap();
        let request: Value = serde_json::from_str(asked.text().unwrap()).unwrap();
        peer.send_text(&json!({ "id": request["id"], "result": result }).to_string());
    };
    until(|| client.generation().number() == 1 && !client.state().is_open());
    let _old = server.accept(WAIT).unwrap();
    let peer = server.accept(WAIT).unwrap();
    // The venue takes its time over the login.
    assert!(tap.seen.recv_timeout(WAIT).is_ok());
    assert!(tap.until("connection.upgrade").len() == 1 && tap.seen.recv_timeout(ms(50)).is_err());
    let logged_in = Instant::now();
    answer(&peer, json!({}));
    answer(&peer, json!(["book"]));
    let restored = tap.until("subscription_manager.restored").pop().unwrap();
    assert!(restored.took.unwrap() <= restored.at - logged_in, "{restored:?}");
}

#[test]
fn what_an_inbox_has_no_room_for_is_told_all_the_same() {
    let set = |config: Config| config.dialect(JsonRpc::new()).inbox_capacity(1).overflow(Overflow::DropNewest);
    let (_server, peer, tap, client, _inbox) = tapped(venue(), set, &["subscription_manager.rejected"]);
    peer.send_text("x");
    until(|| client.metrics().inbox_depth == Some(1));
    let _bad = client.start_subscribe("bad").unwrap();
    assert_eq!(tap.next().name, "subscription_manager.rejected");
}

#[test]
fn what_an_observer_of_a_stall_takes_is_not_the_stall_of_another_connection() {
    let _gate = shared();
    let server = serve(Script::new());
    let mut driver = Driver::new().unwrap();
    let slow = open_slow(&driver, &server);
    let _quick = driver.open(config(&server)).unwrap();
    let guard = telemetry::attach(Filter::name("reactor.stall").unwrap().connection(slow.id()), |_| spin(ms(60)));
    // One turn serves both openings.
    driver.turn(ms(10)).unwrap();
    drop(guard);
    assert_eq!(driver.metrics().longest_stall.map(|stall| stall.connection), Some(slow.id()));
}

#[test]
fn the_end_of_a_driver_is_no_stall_however_long_ago_it_turned() {
    let server = serve(Script::new());
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server)).unwrap();
    while !client.state().is_open() {
        driver.turn(ms(10)).unwrap();
    }
    let tap = Tap::of(&server, &["reactor.stall"]);
    spin(ms(100));
    drop(driver);
    // A busy machine may bring about shorter ones.
    assert_eq!(tap.seen.try_iter().filter(|seen| seen.took >= Some(ms(100))).count(), 0);
}

/// A connection whose first turn takes long.
fn open_slow(driver: &Driver, server: &MockServer) -> Client {
    let handler = Handler::new().state(|_, event| {
        if matches!(event, Event::Dialing { .. }) {
            spin(ms(30));
        }
    });
    driver.open_with(config(server), handler).unwrap()
}

fn spin(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {}
}

#[test]
fn an_observer_that_another_has_detached_is_not_called_any_more() {
    let _gate = shared();
    let (_server, _peer, client, inbox) = session(Script::new());
    let filter = || Filter::name("connection.closed").unwrap().connection(client.id());
    let (held, calls) = (Arc::new(Mutex::new(None::<Guard>)), Arc::new(AtomicUsize::new(0)));
    let holder = held.clone();
    let _first = telemetry::attach(filter(), move |_| drop(holder.lock().unwrap().take()));
    let counted = calls.clone();
    *held.lock().unwrap() = Some(telemetry::attach(filter(), move |_| _ = counted.fetch_add(1, Ordering::SeqCst)));
    client.close().unwrap();
    until_closed(&inbox);
    assert_eq!((held.lock().unwrap().is_none(), calls.load(Ordering::SeqCst)), (true, 0));
}

#[test]
fn a_call_that_times_out_before_its_reactor_looks_is_told_to() {
    let server = serve(Script::new().ignore());
    let tap = Tap::of(&server, &["request_correlator"]);
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server).dialect(JsonRpc::new())).unwrap();
    while !client.state().is_open() {
        driver.turn(ms(10)).unwrap();
    }
    // Nobody turns the driver meanwhile.
    let caller = thread::spawn(move || client.with_call_timeout(ms(10)).start_call("m", ()).unwrap().wait().unwrap_err());
    assert!(matches!(caller.join().unwrap(), Error::Timeout { .. }));
    let lines = tap.left();
    assert!(lines.len() == 2 && lines[1].starts_with("request_correlator.timeout"), "{lines:?}");
}

#[test]
fn a_call_that_cannot_be_waited_for_is_cancelled() {
    let server = serve(Script::new().ignore());
    let tap = Tap::of(&server, &["request_correlator"]);
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server).dialect(JsonRpc::new())).unwrap();
    while !client.state().is_open() {
        driver.turn(ms(10)).unwrap();
    }
    client.start_call("m", ()).unwrap().wait().unwrap_err();
    let lines = tap.left();
    assert!(lines.len() == 2 && lines[1].starts_with("request_correlator.cancel"), "{lines:?}");
}

#[test]
fn traffic_over_tls_is_told_while_the_wire_is_open() {
    let server = MockServer::builder().tls().start().unwrap();
    let tap = Tap::of(&server, &["traffic.count"]);
    let (peer, client, _inbox) = join(&server, config(&server));
    peer.send_text("one");
    assert_eq!((tap.next().line.as_str(), client.state()), ("traffic.count 1 5 0 0", State::Live));
}
