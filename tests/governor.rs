//! The rate governor as a client's user and a venue see it: what is refused, waits, queues, and when it arrives.

mod common;

use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zen_websocket::testkit::{Captured, ClientMessage, Matcher, MockServer, Peer, Script};
use zen_websocket::{
    Client, Config, Error, Event, Handler, Inbox, JsonRpc, Pressure, RateLimit, Result, Sent, State, Throttle, connect,
    connect_with, costs, open,
};

use self::common::*;

// ---- refused ----

#[test]
fn what_the_limit_does_not_allow_is_refused_with_the_time_to_wait() {
    let (_server, peer, client, inbox) = governed(window(2), Throttle::Fail);
    let first = Instant::now();
    assert_eq!([client.send("1").unwrap(), client.send("2").unwrap()], [Sent::Written; 2]);
    let asked = Instant::now();
    let wait = throttled(client.send("3"));
    assert!(asked + wait <= asked + SPAN && Instant::now() + wait >= first + SPAN, "{wait:?}");
    pause(&inbox, wait);
    assert_eq!(client.send("4").unwrap(), Sent::Written);
    peer.expect("4", WAIT).unwrap();
    assert_eq!(texts(&peer), ["1", "2", "4"]);
}

#[test]
fn messages_take_what_they_cost_and_refused_ones_nothing() {
    let bucket = RateLimit::bucket(20, 1, NEVER).reserved(0).cost(|payload| payload.len() as u32);
    let (_server, _peer, client, _inbox) = governed(bucket, Throttle::Fail);
    let left = ["1234567890", "1234567890", "12345"].map(|text| (client.send(text).is_ok(), available(&client)));
    assert_eq!(left, [(true, 10), (true, 0), (false, 0)]);
    let (_server, _peer, client, _inbox) =
        governed(RateLimit::bucket(20, 1, NEVER).reserved(0).cost(|payload| payload.len() as u32), Throttle::Fail);
    let left = ["123456789012345", "123456", "123456", "12345"].map(|text| (client.send(text).is_ok(), available(&client)));
    assert_eq!(left, [(true, 5), (false, 5), (false, 5), (true, 0)]);
}

#[test]
fn an_empty_bucket_is_filled_again_and_no_fuller_than_it_was() {
    let bucket = RateLimit::bucket(4, 3, ms(200)).reserved(0);
    let (_server, _peer, client, inbox) = governed(bucket, Throttle::Fail);
    let began = Instant::now();
    let refused = (0..100).find_map(|sent| client.send("x").err().map(|error| (sent, throttled(Err(error)))));
    let (sent, wait) = refused.unwrap();
    assert!(sent >= 4 && sent <= 4 + 3 * steps(began, ms(200)), "{sent}");
    pause(&inbox, wait);
    client.send("x").unwrap();
    pause(&inbox, ms(900));
    assert_eq!(available(&client), 4);
}

#[test]
fn the_costs_of_a_venue_are_charged_to_its_methods() {
    let credits = RateLimit::bucket(1500, 1000, NEVER).reserved(0).cost(costs::deribit);
    let (_server, _peer, client, _inbox) = governed(credits, Throttle::Fail);
    let left = ["public/ticker", "private/buy", "private/cancel", "private/set_heartbeat"].map(|method| {
        client.notify(method, ()).unwrap();
        available(&client)
    });
    assert_eq!(left, [1499, 1484, 1479, 1469]);
}

#[test]
fn a_call_that_is_refused_is_as_if_it_had_not_been_made() {
    let (_server, peer, client, _inbox) = governed(in_all(1), Throttle::Fail);
    client.send("1").unwrap();
    let error = client.call::<Value>("public/ticker", ()).unwrap_err();
    assert!(matches!(error, Error::Throttled { .. }) && !error.may_have_been_sent(), "{error:?}");
    settle(&peer);
    assert_eq!((texts(&peer).len(), client.metrics().calls_pending), (1, 0));
}

#[test]
fn a_message_that_costs_more_than_the_limit_gives_is_a_mistake() {
    let limit = RateLimit::window(5, NEVER).reserved(1).cost(|payload| payload.len() as u32);
    let (_server, _peer, client, _inbox) = governed(limit, Throttle::Wait(NEVER));
    let error = client.send("12345").unwrap_err();
    assert_eq!(error.to_string(), "invalid rate_limit: the message costs 5, the limit allows 4");
    assert!(matches!(client.urgent().send("123456"), Err(Error::Config { setting: "rate_limit", .. })));
    assert_eq!(available(&client), 4, "neither took anything");
    client.urgent().send("12345").unwrap();
}

#[test]
fn threads_together_send_exactly_what_the_limit_allows() {
    let (_server, peer, client, _inbox) = governed(in_all(1000), Throttle::Fail);
    let sent: usize = thread::scope(|scope| {
        let client = &client;
        let count = move || (0..150).filter(|_| client.send("x").is_ok()).count();
        let threads: Vec<_> = (0..10).map(|_| scope.spawn(count)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    settle(&peer);
    assert_eq!((sent, texts(&peer).len(), available(&client)), (1000, 1000, 0));
}

// ---- waiting ----

#[test]
fn a_send_waits_until_the_limit_lets_it_pass() {
    let (_server, peer, client, _inbox) = governed(window(2), Throttle::Wait(QUICK));
    let began = Instant::now();
    let sent = ["1", "2", "3", "4", "5"].map(|text| client.send(text).unwrap());
    let took = began.elapsed();
    assert_eq!(sent, [Sent::Written; 5]);
    assert!(took >= 2 * SPAN && took < 2 * SPAN + QUICK, "{took:?}");
    peer.expect("5", WAIT).unwrap();
    assert_eq!(texts(&peer), ["1", "2", "3", "4", "5"]);
}

#[test]
fn threads_that_wait_pass_one_after_another() {
    let (_server, peer, client, _inbox) = governed(window(3), Throttle::Wait(WAIT));
    let began = Instant::now();
    thread::scope(|scope| {
        (0..4).for_each(|_| _ = scope.spawn(|| send_all(&client, &["1", "2", "3"])));
    });
    (0..4).for_each(|_| _ = peer.expect("3", WAIT).unwrap());
    assert_eq!(peer.captured().len(), 12);
    assert_slides(&peer.captured(), 3, began);
}

#[test]
fn a_send_that_would_wait_for_too_long_is_refused_at_once() {
    let (_server, peer, client, _inbox) = governed(in_all(1), Throttle::Wait(QUICK));
    client.send("1").unwrap();
    let wait = quickly(|| throttled(client.send("2")));
    assert!(wait > QUICK, "{wait:?}");
    settle(&peer);
    assert_eq!(texts(&peer), ["1"]);
}

#[test]
fn a_call_waits_no_longer_than_its_own_limit() {
    let (_server, peer, client, _inbox) = governed(in_all(1), Throttle::Wait(NEVER + NEVER));
    client.send("1").unwrap();
    let error = quickly(|| client.with_call_timeout(ms(50)).call::<Value>("public/ticker", ()).unwrap_err());
    assert!(!error.may_have_been_sent(), "{error:?}");
    settle(&peer);
    assert_eq!(texts(&peer), ["1"]);
}

#[test]
fn a_send_that_waits_does_not_leave_on_another_wire() {
    let (server, peer, client, inbox) = governed(in_all(1), Throttle::Wait(2 * NEVER));
    client.send("1").unwrap();
    let waiter = send_on_a_thread(&client, "2");
    peer.expect("1", WAIT).unwrap();
    server.pause().unwrap();
    peer.reset();
    let error = quickly(|| waiter.join().unwrap().unwrap_err());
    assert!(matches!(error, Error::Stale { .. } | Error::NotConnected) && !error.may_have_been_sent(), "{error:?}");
    server.resume().unwrap();
    until_open(&inbox);
    let next = server.accept(WAIT).unwrap();
    settle(&next);
    assert_eq!(texts(&next), [""; 0]);
}

#[test]
fn a_send_that_waits_ends_with_its_client() {
    let (_server, peer, client, _inbox) = governed(in_all(1), Throttle::Wait(2 * NEVER));
    client.send("1").unwrap();
    let waiter = send_on_a_thread(&client, "2");
    client.close().unwrap();
    assert!(matches!(quickly(|| waiter.join().unwrap()), Err(Error::Closed)));
    assert_eq!(texts(&peer), ["1"]);
}

#[test]
fn a_handler_is_refused_and_never_waits() {
    let (sender, results) = mpsc::channel();
    let handler = Handler::new().text(move |context, _| {
        let sent = ["1", "2"].map(|text| context.send(text));
        sender.send((sent, Instant::now() - context.at)).unwrap();
    });
    let server = serve(Script::new().ignore());
    let config = config(&server).rate_limit(in_all(1)).throttle(Throttle::Wait(2 * NEVER));
    let _client = connect_with(config, handler).unwrap();
    server.accept(WAIT).unwrap().send_text("now");
    let (sent, took) = results.recv_timeout(WAIT).unwrap();
    assert!(matches!(sent, [Ok(Sent::Written), Err(Error::Throttled { .. })]), "{sent:?}");
    assert!(took < QUICK, "{took:?}");
}

// ---- queued ----

#[test]
fn queued_messages_leave_in_order_as_the_window_slides() {
    let (_server, peer, client, _inbox) = governed(window(5), Throttle::Queue(20));
    let began = Instant::now();
    let sent: Vec<_> = (0..20).map(|number| client.send(&number.to_string()).unwrap()).collect();
    assert_eq!((&sent[..5], &sent[15..]), (&[Sent::Written; 5][..], &[Sent::Queued; 5][..]));
    peer.expect("19", WAIT).unwrap();
    assert_eq!(texts(&peer), (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_slides(&peer.captured(), 5, began);
    assert_eq!(client.rate_status().queued, 0);
}

#[test]
fn a_queue_takes_no_more_than_it_has_room_for() {
    let (_server, _peer, client, _inbox) = governed(in_all(1), Throttle::Queue(3));
    let sent = [(); 4].map(|()| client.send("x").unwrap());
    assert_eq!(sent, [Sent::Written, Sent::Queued, Sent::Queued, Sent::Queued]);
    let error = client.send("x").unwrap_err();
    assert!(matches!(error, Error::QueueFull { waiting: 3 }) && !error.may_have_been_sent(), "{error:?}");
}

#[test]
fn what_is_queued_when_the_wire_is_lost_is_counted_and_does_not_leave_on_the_next() {
    let (server, peer, client, inbox) = governed(in_all(1), Throttle::Queue(10));
    send_all(&client, &["1", "22", "333"]);
    peer.close(1012, "");
    assert_eq!(lines(&inbox, 2), ["2 messages unsent, 5 bytes", "lost, again in 0ns: the peer closed with code 1012"]);
    until_open(&inbox);
    let next = server.accept(WAIT).unwrap();
    settle(&next);
    assert_eq!((texts(&peer), texts(&next).len(), client.rate_status().queued), (vec!["1".to_owned()], 0, 0));
}

#[test]
fn what_is_queued_when_the_program_closes_is_counted() {
    let (_server, peer, client, inbox) = governed(in_all(1), Throttle::Queue(10));
    send_all(&client, &["1", "22", "333"]);
    quickly(|| client.close().unwrap());
    assert_eq!(lines_to_end(&inbox), ["2 messages unsent, 5 bytes", "closed"]);
    assert_eq!(texts(&peer), ["1"]);
}

#[test]
fn urgent_messages_use_what_is_reserved_and_pass_those_that_are_queued() {
    let limit = RateLimit::window(2, WINDOW).margin(MARGIN).reserved(1);
    let (_server, peer, client, _inbox) = governed(limit, Throttle::Queue(10));
    let urgent = client.urgent();
    let sent = [client.send("1"), client.send("2"), client.send("3"), urgent.send("cancel 1"), urgent.send("cancel 2")];
    let expected = [Sent::Written, Sent::Queued, Sent::Queued, Sent::Written, Sent::Queued];
    assert_eq!(sent.map(Result::unwrap), expected);
    peer.expect("3", WAIT).unwrap();
    assert_eq!(texts(&peer), ["1", "cancel 1", "cancel 2", "2", "3"]);
}

#[test]
fn a_queue_that_is_full_has_room_for_what_is_urgent() {
    let (_server, _peer, client, _inbox) = governed(in_all(1), Throttle::Queue(1));
    let sent = [client.send("1"), client.send("2"), client.urgent().send("cancel")];
    assert_eq!(sent.map(Result::unwrap), [Sent::Written, Sent::Queued, Sent::Queued]);
    assert!(matches!(client.urgent().send("cancel"), Err(Error::QueueFull { waiting: 1 })));
}

#[test]
fn a_queued_call_is_answered() {
    let limit = window(1).control_cost(0);
    let (_server, _peer, client, _inbox) = governed_with(exchange(), limit, Throttle::Queue(10), |config| config);
    let began = Instant::now();
    let calls = ["a", "b", "c"].map(|method| client.start_call(method, ()).unwrap());
    let results = calls.map(|call| call.wait().unwrap().result::<String>().unwrap());
    assert_eq!(results, ["a", "b", "c"]);
    assert!(began.elapsed() >= 2 * SPAN && client.latency().calls.unwrap().last >= 2 * SPAN, "{:?}", client.latency());
}

#[test]
fn a_queued_call_that_times_out_does_not_leave() {
    let (_server, peer, client, _inbox) = governed(window(1), Throttle::Queue(10));
    client.send("first").unwrap();
    let error = client.with_call_timeout(ms(20)).call::<Value>("public/ticker", ()).unwrap_err();
    assert!(matches!(error, Error::Timeout { sent: false, .. }) && !error.may_have_been_sent(), "{error:?}");
    client.send("last").unwrap();
    peer.expect("last", WAIT).unwrap();
    assert_eq!(texts(&peer), ["first", "last"]);
}

#[test]
fn a_queued_call_that_is_dropped_does_not_leave_and_costs_nothing() {
    let (_server, peer, client, _inbox) = governed(window(1), Throttle::Queue(10));
    client.send("first").unwrap();
    let began = Instant::now();
    (0..5).for_each(|_| drop(client.start_call("public/ticker", ()).unwrap()));
    client.send("last").unwrap();
    let last = peer.expect("last", WAIT).unwrap();
    assert_eq!(texts(&peer), ["first", "last"]);
    assert!(last.at - began < 5 * SPAN, "{:?}", last.at - began);
}

#[test]
fn a_call_that_is_taken_back_leaves_its_place_in_the_queue() {
    let (_server, _peer, client, _inbox) = governed(in_all(1), Throttle::Queue(1));
    client.send("1").unwrap();
    drop(client.start_call("public/ticker", ()).unwrap());
    assert_eq!(client.rate_status().queued, 0, "it will not leave");
    assert_eq!(client.send("2").unwrap(), Sent::Queued);
}

#[test]
fn queued_calls_end_with_their_wire_as_not_sent() {
    let (_server, peer, client, inbox) = governed(in_all(1), Throttle::Queue(10));
    let calls = ["a", "b"].map(|method| client.start_call(method, ()).unwrap());
    peer.expect(Matcher::regex("\"a\""), WAIT).unwrap();
    peer.reset();
    let sent = calls.map(|call| call.wait().unwrap_err().may_have_been_sent());
    assert_eq!(sent, [true, false]);
    assert!(next_line(&inbox).starts_with("1 messages unsent"));
}

#[test]
fn a_ping_of_the_program_is_refused_where_messages_queue() {
    let (_server, _peer, client, _inbox) = governed(RateLimit::window(1, NEVER).reserved(0), Throttle::Queue(10));
    client.send("1").unwrap();
    assert_eq!(client.send("2").unwrap(), Sent::Queued);
    throttled(client.ping());
}

// ---- control frames ----

#[test]
fn control_frames_count() {
    let (_server, peer, client, _inbox) = governed(RateLimit::window(4, NEVER).reserved(0), Throttle::Fail);
    client.send("1").unwrap();
    client.ping().unwrap();
    settle(&peer);
    assert_eq!(available(&client), 1);
    client.ping().unwrap();
    throttled(client.send("2"));
}

#[test]
fn control_frames_are_free_where_the_venue_does_not_count_them() {
    let (_server, peer, client, _inbox) = governed(in_all(2), Throttle::Fail);
    client.send("1").unwrap();
    (0..20).for_each(|_| assert_eq!(client.ping().unwrap(), Sent::Written));
    settle(&peer);
    assert_eq!(available(&client), 1);
    client.send("2").unwrap();
    client.ping().unwrap();
    throttled(client.send("3"));
}

#[test]
fn a_pong_leaves_before_what_is_queued() {
    let limit = RateLimit::window(1, ms(1000)).reserved(0);
    let (_server, peer, client, _inbox) = governed(limit, Throttle::Queue(10));
    assert_eq!([client.send("1").unwrap(), client.send("2").unwrap()], [Sent::Written, Sent::Queued]);
    peer.ping("first");
    peer.ping("newest");
    peer.expect("2", WAIT).unwrap();
    let messages: Vec<_> = peer.captured().into_iter().map(|captured| captured.message).collect();
    let text = |text: &str| ClientMessage::Text(text.into());
    assert_eq!(messages, [text("1"), ClientMessage::Pong(b"newest".to_vec()), text("2")]);
}

#[test]
fn a_flood_of_messages_leaves_room_for_a_pong() {
    let limit = RateLimit::window(10, NEVER);
    let (_server, peer, client, _inbox) = governed(limit, Throttle::Fail);
    assert_eq!((0..20).filter(|_| client.send("x").is_ok()).count(), 9, "one is reserved unless told otherwise");
    settle(&peer);
}

#[test]
fn a_ping_that_the_limit_holds_back_is_not_held_against_the_peer() {
    let limit = RateLimit::window(1, NEVER).reserved(0);
    let (_server, _peer, client, inbox) = governed_with(Script::new().ignore(), limit, Throttle::Fail, |config| {
        config.heartbeat_interval(ms(50)).patience(ms(50)).strict(true)
    });
    client.send("1").unwrap();
    pause(&inbox, ms(500));
    assert_eq!((client.heartbeat().misses, client.generation().number()), (0, 1));
}

#[test]
fn a_close_frame_waits_for_the_limit_no_longer_than_a_close_may_take() {
    let limit = RateLimit::window(1, NEVER).reserved(0);
    let (_server, peer, client, _inbox) =
        governed_with(Script::new().ignore(), limit, Throttle::Fail, |config| config.close_timeout(ms(200)));
    client.send("1").unwrap();
    quickly(|| client.close().unwrap());
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), None, "a second frame would have been one too many");
}

#[test]
fn a_strict_venue_never_has_a_reason_to_complain() {
    let limit = RateLimit::window(5, WINDOW).margin(MARGIN).reserved(2);
    let dialect = JsonRpc::new().login("public/auth", |_| json!({ "key": "k" }));
    let (server, peer, client, inbox) =
        governed_with(exchange(), limit, Throttle::Queue(100), |config| config.dialect(dialect).heartbeat_interval(ms(200)));
    let began = server.accept_times()[0];
    let _books = client.subscribe(["book.a", "book.b"]).unwrap();
    (0..8).for_each(|number| _ = client.send(&format!("before {number}")).unwrap());
    (0..5).for_each(|number| peer.ping(format!("ping {number}")));
    peer.expect("before 7", WAIT).unwrap();
    client.reconnect().unwrap();
    until_open(&inbox);
    let peer = server.accept(WAIT).unwrap();
    (0..8).for_each(|number| _ = client.send(&format!("after {number}")).unwrap());
    (0..5).for_each(|number| peer.ping(format!("ping {number}")));
    client.urgent().ping().unwrap_or(Sent::Queued);
    peer.expect("after 7", WAIT).unwrap();
    client.wait(State::Live, WAIT).unwrap();
    client.close().unwrap();
    let kinds = server.captured();
    let has = |is: fn(&ClientMessage) -> bool| kinds.iter().filter(|captured| is(&captured.message)).count();
    assert!(has(|it| matches!(it, ClientMessage::Ping(_))) > 0 && has(|it| matches!(it, ClientMessage::Pong(_))) > 0);
    assert!(has(|it| matches!(it, ClientMessage::Close { .. })) > 0, "{kinds:?}");
    assert_slides(&kinds, 5, began);
}

// ---- shared by name ----

#[test]
fn clients_that_name_a_limit_alike_share_it() {
    let limit = || in_all(3).shared("one account");
    let (_server, _peer, one, _inbox) = governed(limit(), Throttle::Fail);
    let (_second, _peer, other, _second_inbox) = governed(limit(), Throttle::Fail);
    send_all(&one, &["1", "2"]);
    other.send("3").unwrap();
    throttled(one.send("4"));
    throttled(other.send("4"));
    let status = &other.rate_status().limits[0];
    assert_eq!((status.available, status.name.as_deref()), (0, Some("one account")));
}

#[test]
fn queues_of_clients_that_share_a_limit_leave_together_no_faster_than_it_allows() {
    let server = serve(Script::new().ignore());
    let clients = [(); 2].map(|()| {
        let limit = window(2).shared("two queues");
        connect(config(&server).heartbeat_interval(None).rate_limit(limit).throttle(Throttle::Queue(10))).unwrap()
    });
    let began = Instant::now();
    for number in 0..4 {
        clients.iter().for_each(|(client, _)| _ = client.send(&number.to_string()).unwrap());
    }
    for _ in 0..2 {
        server.expect("3", WAIT).unwrap();
    }
    assert_slides(&server.captured(), 2, began);
}

#[test]
fn a_name_that_is_in_use_with_other_settings_is_refused() {
    let (server, _peer, _client, _inbox) = governed(in_all(3).shared("disputed"), Throttle::Fail);
    let error = connect(config(&server).rate_limit(in_all(4).shared("disputed"))).unwrap_err();
    assert_eq!(error.to_string(), r#"invalid rate_limit: "disputed" is in use with other settings"#);
    assert_eq!(server.accepted(), 1);
}

#[test]
fn a_limit_goes_on_across_wires() {
    let (server, peer, client, inbox) = governed(in_all(2), Throttle::Fail);
    client.send("1").unwrap();
    peer.expect("1", WAIT).unwrap();
    peer.reset();
    until_open(&inbox);
    server.accept(WAIT).unwrap();
    client.send("2").unwrap();
    throttled(client.send("3"));
}

// ---- several limits ----

#[test]
fn several_limits_apply_together() {
    let server = serve(Script::new().ignore());
    let slow = RateLimit::window(3, 3 * WINDOW).margin(MARGIN).reserved(0);
    let config = config(&server).heartbeat_interval(None).rate_limit(window(2)).rate_limit(slow).throttle(Throttle::Queue(10));
    let (client, _inbox) = connect(config).unwrap();
    let began = Instant::now();
    (0..5).for_each(|number| _ = client.send(&number.to_string()).unwrap());
    server.expect("4", WAIT).unwrap();
    let arrivals: Vec<_> = server.captured().iter().map(|captured| captured.at - began).collect();
    assert!(arrivals[2] >= SPAN && arrivals[3] >= 3 * WINDOW + MARGIN, "{arrivals:?}");
    assert_eq!(client.rate_status().limits.iter().map(|limit| limit.capacity).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn what_one_limit_refuses_takes_nothing_from_another() {
    let server = serve(Script::new().ignore());
    let (client, _inbox) = connect(config(&server).rate_limit(in_all(5)).rate_limit(in_all(2))).unwrap();
    let sent = [(); 4].map(|()| client.send("x").is_ok());
    let left: Vec<_> = client.rate_status().limits.iter().map(|limit| limit.available).collect();
    assert_eq!((sent, left), ([true, true, false, false], vec![3, 0]));
}

// ---- what is seen of it ----

#[test]
fn the_status_tells_how_full_limits_and_queue_are() {
    let (_server, _peer, client, _inbox) = governed(in_all(2), Throttle::Queue(4));
    let status = client.rate_status();
    assert_eq!((status.limits[0].capacity, status.limits[0].available, &status.limits[0].name), (2, 2, &None));
    let seen = [(); 6].map(|()| {
        client.send("x").unwrap();
        let status = client.rate_status();
        (status.limits[0].available, status.queued, status.pressure, status.suggested_delay / (NEVER / 2).as_secs() as u32)
    });
    let second = Duration::from_secs(1);
    let expected = [
        (1, 0, Pressure::None, Duration::ZERO),
        (0, 0, Pressure::None, Duration::ZERO),
        (0, 1, Pressure::Low, second),
        (0, 2, Pressure::Medium, 2 * second),
        (0, 3, Pressure::High, 4 * second),
        (0, 4, Pressure::High, 4 * second),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn without_limits_there_is_no_status_of_them() {
    let (_server, _peer, client, _inbox) = session(Script::new());
    (0..1000).for_each(|_| _ = client.send("x").unwrap());
    let status = client.rate_status();
    assert_eq!((status.limits.len(), status.queued, status.pressure, status.suggested_delay), (0, 0, Pressure::None, ms(0)));
}

// ---- subscriptions under a limit ----

#[test]
fn a_restore_goes_behind_the_messages_of_the_program() {
    let limit = RateLimit::window(1, ms(1000)).reserved(0).control_cost(0);
    let (server, peer, client, inbox) = governed_with(exchange(), limit, Throttle::Queue(10), |config| config);
    let _book = client.subscribe("book.a").unwrap();
    peer.reset();
    until_open(&inbox);
    let sent = ["1", "2"].map(|text| client.send(text).unwrap());
    client.wait(State::Live, WAIT).unwrap();
    let said = texts(&server.accept(WAIT).unwrap());
    assert_eq!((sent[1], &said[..2]), (Sent::Queued, &["1".to_owned(), "2".to_owned()][..]));
    assert!(said[2].contains("public/subscribe"), "{said:?}");
}

#[test]
fn a_request_that_waits_for_the_limit_is_not_taken_for_unanswered() {
    let limit = RateLimit::window(1, ms(500)).reserved(0).control_cost(0);
    let (_server, peer, client, _inbox) =
        governed_with(exchange(), limit, Throttle::Queue(10), |config| config.confirm_timeout(ms(400)));
    client.send("1").unwrap();
    let _book = client.subscribe("book.a").unwrap();
    assert_eq!(texts(&peer).len(), 2, "{:?}", texts(&peer));
}

#[test]
fn the_time_for_a_confirmation_begins_when_its_request_has_left() {
    let limit = RateLimit::window(1, ms(480)).margin(ms(0)).reserved(0).control_cost(0);
    let (_server, peer, client, inbox) =
        governed_with(exchange().delay(ms(100)), limit, Throttle::Queue(10), |config| config.confirm_timeout(ms(250)));
    client.send("1").unwrap();
    let _book = client.subscribe("book.a").unwrap();
    assert_eq!(next_line(&inbox), "Live");
    pause(&inbox, ms(600));
    assert_eq!(texts(&peer).len(), 2, "asked again though the answer took 100 ms: {:?}", texts(&peer));
}

// ---- dials ----

#[test]
fn redials_are_spaced_by_the_limit_on_dials_and_do_not_count() {
    let server = serve(Script::new());
    let limit = RateLimit::window(1, SPAN).margin(ms(0)).shared("dials that are spaced");
    let began = Instant::now();
    let (client, inbox) = connect(config(&server).dial_limit(limit).redial_attempts(1)).unwrap();
    server.accept(WAIT).unwrap().close(1012, "");
    let (lost, dialing, failed) = (next_line_after_open(&inbox), next_line(&inbox), next(&inbox));
    assert_eq!([lost.as_str(), &dialing], ["lost, again in 0ns: the peer closed with code 1012", "dialing 1"]);
    let Event::DialFailed { attempt: 1, cause: Error::Throttled { wait }, redial_in } = failed else { panic!("{failed:?}") };
    assert_eq!((redial_in, wait <= SPAN), (Some(wait), true));
    assert_eq!(lines(&inbox, 2), ["dialing 1", "open"]);
    assert!(server.accept_times()[1] - began >= SPAN, "{:?}", server.accept_times());
    assert_eq!(client.generation().number(), 2);
}

#[test]
fn connections_to_one_host_share_its_limit_on_dials() {
    let (server, other) = (serve(Script::new()), serve(Script::new()));
    let limit = || RateLimit::window(1, SPAN).margin(ms(0));
    let began = Instant::now();
    let (_client, _inbox) = connect(config(&server).dial_limit(limit())).unwrap();
    let (_other, inbox) = connect(config(&other).dial_limit(limit()).connect_attempts(1)).unwrap();
    assert!(other.accept_times()[0] - began >= SPAN, "the one attempt was not used up by waiting");
    let lines = lines(&inbox, 4);
    assert!(lines[1].starts_with("dial 1 failed, again in"), "{lines:?}");
    assert_eq!([&lines[0], &lines[2], &lines[3]], ["dialing 1", "dialing 1", "open"]);
}

#[test]
fn a_dial_that_waits_for_the_limit_ends_with_its_client() {
    let server = serve(Script::new());
    let limit = || RateLimit::window(1, NEVER).shared("dials that never come");
    let (_client, _inbox) = connect(config(&server).dial_limit(limit())).unwrap();
    let (client, inbox) = open(config(&server).dial_limit(limit())).unwrap();
    assert_eq!(next_line(&inbox), "dialing 1");
    assert!(matches!(next(&inbox), Event::DialFailed { cause: Error::Throttled { .. }, .. }));
    assert_eq!(client.state(), State::Waiting);
    quickly(|| client.close().unwrap());
    assert_eq!((lines_to_end(&inbox), server.accepted()), (vec!["closed".to_owned()], 1));
}

#[test]
fn a_wrong_limit_on_dials_is_refused_by_its_own_name() {
    let wrong = Config::new("ws://localhost").dial_limit(RateLimit::window(0, SPAN)).validate();
    assert_eq!(wrong.unwrap_err().to_string(), "invalid dial_limit: a limit of 0 allows nothing");
}

// ---- helpers ----

const WINDOW: Duration = ms(250);
const MARGIN: Duration = ms(50);
const SPAN: Duration = ms(300);

/// By how much a server may read a frame late: up to 140 ms were seen with two cores and four busy loops, while the frames had left
/// 300 ms apart.
const LATE: Duration = ms(200);

/// So many in any window, without anything reserved.
fn window(count: u32) -> RateLimit {
    RateLimit::window(count, WINDOW).margin(MARGIN).reserved(0)
}

/// So many messages in as long as a test takes. Control frames are free.
fn in_all(count: u32) -> RateLimit {
    RateLimit::window(count, NEVER).reserved(0).control_cost(0)
}

/// A client with this limit on a server that answers nothing.
fn governed(limit: RateLimit, throttle: Throttle) -> (MockServer, Peer, Client, Inbox) {
    governed_with(Script::new().ignore(), limit, throttle, |config| config)
}

fn governed_with(
    script: Script,
    limit: RateLimit,
    throttle: Throttle,
    set: impl FnOnce(Config) -> Config,
) -> (MockServer, Peer, Client, Inbox) {
    session_with(script, |config| {
        set(config.dialect(JsonRpc::new()).heartbeat_interval(None).rate_limit(limit).throttle(throttle))
    })
}

/// Answers a call with its method, and a subscription with its channels.
fn exchange() -> Script {
    Script::new().on_text(|peer, text| {
        let request: Value = serde_json::from_str(text).unwrap_or_default();
        if request["id"].is_null() {
            return;
        }
        let channels = &request["params"]["channels"];
        let result = if channels.is_array() { channels } else { &request["method"] };
        peer.send_text(&json!({ "id": request["id"], "result": result }).to_string());
    })
}

fn throttled(sent: Result<Sent>) -> Duration {
    match sent {
        Err(Error::Throttled { wait }) => wait,
        other => panic!("{other:?}"),
    }
}

fn available(client: &Client) -> u32 {
    client.rate_status().limits[0].available
}

/// How many intervals have begun since then.
fn steps(since: Instant, interval: Duration) -> usize {
    (since.elapsed().as_nanos() / interval.as_nanos()) as usize + 1
}

/// Waits for as long, while nothing comes.
fn pause(inbox: &Inbox, time: Duration) {
    let waited = inbox.recv_timeout(time);
    assert!(matches!(waited, Err(Error::Timeout { .. })), "{waited:?}");
}

fn send_on_a_thread(client: &Client, text: &'static str) -> JoinHandle<Result<Sent>> {
    let client = client.clone();
    thread::spawn(move || client.send(text))
}

fn send_all(client: &Client, texts: &[&str]) {
    texts.iter().for_each(|text| _ = client.send(text).unwrap());
}

fn texts(peer: &Peer) -> Vec<String> {
    peer.captured().iter().filter_map(|captured| captured.text().map(str::to_owned)).collect()
}

fn next_line_after_open(inbox: &Inbox) -> String {
    until_open(inbox);
    next_line(inbox)
}

/// No earlier than the limit allows, counted from before the first left, which a server that reads late cannot make untrue; and no
/// more than `count` close together, as far as the times of reading can tell.
fn assert_slides(captured: &[Captured], count: usize, began: Instant) {
    let mut arrivals: Vec<_> = captured.iter().map(|captured| captured.at - began).collect();
    arrivals.sort();
    for (place, arrival) in arrivals.iter().enumerate() {
        assert!(*arrival >= SPAN * (place / count) as u32, "{place} came early: {arrivals:?}");
    }
    for group in arrivals.windows(count + 1) {
        let took = group[count] - group[0];
        assert!(took >= SPAN - LATE, "{} within {took:?}: {arrivals:?}", count + 1);
    }
}
