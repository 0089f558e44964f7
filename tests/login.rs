//! Logins, what waits for them, and the heartbeats of venues.

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use zen_websocket::testkit::{ClientMessage, Frame, Matcher, MockServer, Peer, Script};
use zen_websocket::{
    Client, Config, Dialect, Error, Event, Handler, Id, Inbound, Inbox, JsonRpc, Login, LoginStep, Overflow, Phase, RateLimit,
    Reactor, Request, Secret, Sent, Standing, State, connect, connect_with, open,
};

use self::common::*;

// ---- the login comes first ----

#[test]
fn the_login_is_the_first_message_of_every_wire() {
    let (server, mut peer, client, inbox) = session_with(venue(), log_in);
    for wire in 1..=3 {
        assert_eq!(client.send("order").unwrap(), Sent::Written);
        peer.expect("order", WAIT).unwrap();
        let texts: Vec<_> = peer.captured().iter().map(|it| it.text().unwrap().to_owned()).collect();
        assert_eq!((texts.len(), client.generation().number()), (2, wire));
        assert!(texts[0].contains("public/auth") && texts[1] == "order", "{texts:?}");
        peer.reset();
        until_open(&inbox);
        peer = server.accept(WAIT).unwrap();
    }
}

#[test]
fn the_request_of_a_login_is_what_the_closure_gave() {
    let (_server, _peer, _client, _inbox, auth) = logging_in(log_in);
    assert_eq!((&auth["method"], &auth["params"]), (&json!("public/auth"), &json!({ "client_secret": SECRET })));
    assert!(auth["id"].as_u64().unwrap() >= 1 << 52, "out of the way of calls");
}

#[test]
fn a_step_of_a_login_gets_the_time_of_day_and_random_numbers() {
    let (send, steps) = mpsc::channel();
    let dialect = JsonRpc::new().login("auth", move |step| send.send((step.unix, step.nonce, step.step, step.number)).unwrap());
    let server = serve(refusal(1, "later"));
    connect(config(&server).dialect(dialect).connect_attempts(2)).unwrap_err();
    let [one, other] = [(); 2].map(|()| steps.recv_timeout(WAIT).unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(now - one.0 < WAIT && one.0 <= other.0, "{one:?} {other:?}");
    assert!(one.1 != other.1 && one.3 != other.3 && (one.2, other.2) == (0, 0), "{one:?} {other:?}");
}

#[test]
fn connect_returns_when_the_login_has_succeeded() {
    let server = serve(Script::new().ignore());
    let connecting = thread::spawn({
        let config = log_in(config(&server));
        move || connect(config)
    });
    let peer = server.accept(WAIT).unwrap();
    let auth = request(&peer);
    assert!(!connecting.is_finished());
    accept_login(&peer, &auth);
    let (client, inbox) = connecting.join().unwrap().unwrap();
    assert_eq!(lines(&inbox, 2), ["dialing 1", "open"]);
    client.send("at once").unwrap();
    peer.expect("at once", WAIT).unwrap();
}

#[test]
fn during_a_login_nothing_of_the_user_leaves_then_or_later() {
    let (_server, peer, client, inbox, auth) = logging_in(log_in);
    let outcomes = [
        client.send("a").map(|_| ()),
        client.urgent().send_binary(b"b").map(|_| ()),
        client.ping().map(|_| ()),
        client.call::<()>("c", ()),
        client.request_raw(r#"{"id":1}"#).map(|_| ()),
        client.notify("d", ()).map(|_| ()),
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::NotConnected)), "{outcome:?}");
    }
    assert_eq!((client.state(), client.generation().number()), (State::Connecting, 0));
    accept_login(&peer, &auth);
    until_open(&inbox);
    client.send("after").unwrap();
    peer.expect("after", WAIT).unwrap();
    assert_eq!(peer.captured().len(), 2);
}

#[test]
fn a_login_may_use_what_the_rate_limit_keeps_from_messages() {
    let set = |config: Config| log_in(config).rate_limit(RateLimit::bucket(3, 1, NEVER).reserved(2));
    let (_server, peer, client, inbox) = session_with(venue(), set);
    assert!(matches!(client.send("order"), Err(Error::Throttled { .. })));
    peer.reset();
    quickly(|| until_open(&inbox));
}

#[test]
fn channels_are_restored_behind_the_login() {
    let (server, peer, client, inbox) = session_with(venue(), log_in);
    let _books = client.start_subscribe(["book"]).unwrap();
    let asked = |peer: &Peer| [(); 2].map(|()| request(peer)["method"].clone());
    assert_eq!(asked(&peer), ["public/auth", "public/subscribe"]);
    peer.reset();
    until_open(&inbox);
    assert_eq!(asked(&server.accept(WAIT).unwrap()), ["public/auth", "public/subscribe"]);
}

#[test]
fn over_tls_logins_and_calls_are_the_same() {
    let server = MockServer::builder().tls().script(venue()).start().unwrap();
    let (mut peer, client, inbox) = join(&server, log_in(config(&server)));
    for _ in 0..2 {
        assert_eq!(client.call::<[u8; 1]>("m", [1]).unwrap(), [1]);
        assert_eq!([(); 2].map(|()| request(&peer)["method"].clone()), ["public/auth", "m"]);
        peer.reset();
        until_open(&inbox);
        peer = server.accept(WAIT).unwrap();
    }
}

#[test]
fn what_a_venue_says_before_the_login_comes_before_open() {
    let (_server, peer, client, inbox, auth) = logging_in(log_in);
    peer.send_text("welcome");
    peer.send_text(r#"{"jsonrpc":"2.0","id":1,"method":"who"}"#);
    peer.send_text(r#"{"id":1,"result":"stray"}"#);
    assert_eq!(lines(&inbox, 2), ["dialing 1", "text welcome"]);
    assert!(matches!(next(&inbox), Event::Request { id, .. } if id == Id::from(1)));
    assert!(matches!(next(&inbox), Event::Unmatched { .. }));
    assert_eq!(client.state(), State::Connecting);
    accept_login(&peer, &auth);
    assert_eq!(next_line(&inbox), "open");
}

#[test]
fn what_comes_in_one_segment_with_the_answer_to_the_login_comes_after_open() {
    let (_server, peer, _client, inbox, auth) = logging_in(log_in);
    let frames = [Frame::text("before"), Frame::text(accepted(&auth).to_string()), Frame::text("after")];
    peer.send_raw(frames.map(|frame| frame.to_bytes()).concat());
    assert_eq!(lines(&inbox, 4), ["dialing 1", "text before", "open", "text after"]);
}

#[test]
fn a_login_succeeds_though_the_inbox_is_full() {
    let set = |config: Config| log_in(config).inbox_capacity(2).overflow(Overflow::DropNewest);
    let (_server, peer, client, inbox, auth) = logging_in(set);
    for text in ["1", "2", "3"] {
        peer.send_text(text);
    }
    accept_login(&peer, &auth);
    client.wait(State::Live, WAIT).unwrap();
    assert_eq!(lines(&inbox, 4), ["dialing 1", "text 1", "open", "gap of 2"]);
}

#[test]
fn a_login_does_not_wait_for_who_must_read_what_came_before_it() {
    let (_server, peer, client, inbox, auth) = logging_in(|config| log_in(config).inbox_capacity(2));
    for text in ["1", "2", "3"] {
        peer.send_text(text);
    }
    accept_login(&peer, &auth);
    client.wait(State::Live, WAIT).unwrap();
    assert_eq!(lines(&inbox, 5), ["dialing 1", "text 1", "text 2", "text 3", "open"]);
}

#[test]
fn answers_to_a_login_are_never_shown_repeated_ones_included() {
    let (_server, peer, client, inbox, auth) = logging_in(log_in);
    accept_login(&peer, &auth);
    accept_login(&peer, &auth);
    peer.send_text("marker");
    assert_eq!(lines(&inbox, 3), ["dialing 1", "open", "text marker"]);
    assert_eq!(client.latency().calls, None);
}

#[test]
fn pings_are_answered_during_a_login_and_none_is_sent() {
    let (_server, peer, _client, inbox, auth) = logging_in(|config| log_in(config).heartbeat_interval(ms(10)).patience(ms(10)));
    peer.ping("early");
    peer.expect(Matcher::when(|it| it.message == ClientMessage::Pong(b"early".to_vec())), WAIT).unwrap();
    assert_eq!(next_line(&inbox), "dialing 1");
    assert!(matches!(inbox.recv_timeout(ms(100)), Err(Error::Timeout { .. })));
    assert_eq!(peer.captured().len(), 2);
    accept_login(&peer, &auth);
    peer.expect(Matcher::when(|it| matches!(it.message, ClientMessage::Ping(_))), WAIT).unwrap();
}

#[test]
fn a_login_takes_as_many_steps_as_the_dialect_wants() {
    let server = serve(Script::new().ignore());
    let (client, inbox) = open(config(&server).dialect(Challenge)).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.expect(r#"{"op":"hello","id":"0"}"#, WAIT).unwrap();
    peer.send_text(r#"{"id":"0","challenge":42}"#);
    peer.expect(r#"{"op":"answer","to":42,"id":"1"}"#, WAIT).unwrap();
    assert_eq!(client.state(), State::Connecting);
    peer.send_text(r#"{"id":"1","ok":true}"#);
    assert_eq!(lines(&inbox, 2), ["dialing 1", "open"]);
}

#[test]
fn a_login_without_end_fails() {
    let server = serve(Script::new().on_text(|peer, text| peer.send_text(text)));
    let error = connect(config(&server).dialect(Endless).connect_attempts(1)).unwrap_err();
    assert_eq!(error.to_string(), "the venue refused the login: the login takes more than 16 steps");
    assert_eq!(server.captured().len(), 16);
}

// ---- a login that fails ----

#[test]
fn a_login_refused_for_good_ends_the_first_connect_at_once() {
    let server = serve(refusal(13004, "invalid_credentials"));
    match quickly(|| connect(log_in(config(&server)))) {
        Err(error @ Error::LoginRefused { fatal: true, .. }) => {
            assert_eq!(error.to_string(), "the venue refused the login: invalid_credentials (13004)");
            assert!(error.is_fatal());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(server.accepted(), 1);
}

#[test]
fn which_codes_refuse_a_login_for_good_can_be_said() {
    for (code, is_fatal) in [(7, true), (13004, false)] {
        let dialect = JsonRpc::new().login("auth", |_| ()).fatal_codes(&[7]);
        let server = serve(refusal(code, "no"));
        let error = connect(config(&server).dialect(dialect).connect_attempts(1)).unwrap_err();
        assert!(matches!(error, Error::LoginRefused { fatal, .. } if fatal == is_fatal), "{error:?}");
    }
}

#[test]
fn a_login_refused_for_the_moment_is_tried_again() {
    let server = serve(venue());
    server.script_next(refusal(10028, "too_many_requests"));
    let (_client, inbox) = connect(log_in(config(&server))).unwrap();
    let failed = "dial 1 failed, again in 20ms: the venue refused the login: too_many_requests (10028)";
    assert_eq!(lines(&inbox, 4), ["dialing 1", failed, "dialing 2", "open"]);
    assert!(server.peers().len() <= 1 || server.wait_connections(1, WAIT), "the refused wire is dropped");
}

#[test]
fn a_login_refused_for_good_after_a_success_is_tried_again_at_the_longest_pause() {
    let (server, peer, _client, inbox) = session_with(venue(), log_in);
    server.script_next(refusal(13004, "invalid_credentials"));
    peer.close(1012, "");
    let failed = "dial 1 failed, again in 200ms: the venue refused the login: invalid_credentials (13004)";
    let lost = "lost, again in 0ns: the peer closed with code 1012";
    assert_eq!(lines(&inbox, 5), [lost, "dialing 1", failed, "dialing 2", "open"]);
}

#[test]
fn an_answer_to_a_login_that_is_none_refuses_it_for_the_moment() {
    for outcome in [json!({}), json!({ "error": "text" })] {
        let (_server, peer, _client, inbox, auth) = logging_in(|config| log_in(config).connect_attempts(1));
        reply(&peer, &auth, outcome);
        assert!(matches!(until_closed(&inbox), Some(Error::LoginRefused { fatal: false, .. })));
    }
}

#[test]
fn a_login_that_is_not_answered_runs_into_the_limit_of_the_dial() {
    let server = serve(Script::new().ignore());
    let by_phase = config(&server).phase_timeout(Phase::Login, ms(100));
    for config in [config(&server).connect_timeout(ms(100)), by_phase] {
        let error = quickly(|| connect(log_in(config).connect_attempts(1)).unwrap_err());
        assert!(matches!(error, Error::DialTimeout { phase: Phase::Login, after } if after == ms(100)), "{error:?}");
        assert!(server.wait_connections(0, WAIT), "the wire is dropped");
    }
}

#[test]
fn a_login_that_is_not_answered_is_tried_again_on_another_wire() {
    let server = serve(venue());
    server.script_next(Script::new().ignore());
    let (_client, inbox) = connect(log_in(config(&server)).phase_timeout(Phase::Login, ms(100))).unwrap();
    let failed = "dial 1 failed, again in 20ms: timed out after 100ms logging in";
    assert_eq!(lines(&inbox, 4), ["dialing 1", failed, "dialing 2", "open"]);
}

#[test]
fn a_wire_that_ends_during_the_login_is_a_dial_that_failed() {
    let ends: [fn(&Peer); 4] =
        [|peer| peer.close(1012, "restart"), Peer::hang_up, |peer| peer.send_frame(&Frame::new(3, "")), Peer::reset];
    let causes = [
        "the peer closed with code 1012: restart",
        "the peer closed the TCP connection without a close frame",
        "the peer broke the protocol (1002): unknown opcode",
        "the socket failed: ",
    ];
    for (end, cause) in ends.into_iter().zip(causes) {
        let (server, peer, _client, inbox, _auth) = logging_in(log_in);
        server.script(venue());
        end(&peer);
        let found = lines(&inbox, 4);
        assert_eq!([&found[0], &found[2], &found[3]], ["dialing 1", "dialing 2", "open"]);
        assert!(found[1].starts_with(&format!("dial 1 failed, again in 20ms: {cause}")), "{found:?}");
    }
}

#[test]
fn close_is_quick_during_a_login() {
    let (_server, peer, client, inbox, _auth) = logging_in(|config| log_in(config).connect_timeout(NEVER));
    quickly(|| client.close().unwrap());
    assert_eq!(lines_to_end(&inbox), ["dialing 1", "closed"]);
    assert!(peer.wait_closed(WAIT));
    assert_eq!(client.state(), State::Closed);
}

#[test]
fn who_asks_for_a_new_wire_during_a_login_gets_the_one_that_is_being_made() {
    let (server, peer, client, inbox, auth) = logging_in(log_in);
    client.reconnect().unwrap();
    assert_eq!(client.state(), State::Connecting);
    accept_login(&peer, &auth);
    peer.send_text("marker");
    assert_eq!(lines(&inbox, 3), ["dialing 1", "open", "text marker"]);
    assert_eq!((client.generation().number(), server.accepted()), (1, 1));
}

#[test]
fn the_hooks_run_for_wires_that_have_logged_in_only() {
    let (send, calls) = mpsc::channel();
    let lost = send.clone();
    let set = |config: Config| {
        log_in(config)
            .on_open(move |_, _| send.send("open".to_owned()).unwrap())
            .on_lost(move |_, _, cause| lost.send(format!("lost: {cause}")).unwrap())
    };
    let server = serve(venue());
    server.script_next(refusal(1, "later"));
    server.script_next(Script::new().on_text(|peer, _| peer.reset()));
    let (client, inbox) = connect(set(config(&server))).unwrap();
    client.close().unwrap();
    drop((client, inbox));
    let calls: Vec<_> = [(); 2].map(|()| calls.recv_timeout(WAIT).unwrap()).into_iter().chain(calls.try_iter()).collect();
    assert_eq!(calls, ["open", "lost: the connection was closed"]);
}

#[test]
fn a_login_that_panics_ends_its_own_connection_only() {
    let (server, reactor) = (serve(venue()), Reactor::builder().start().unwrap());
    let (neighbour, inbox) = reactor.connect(log_in(config(&server))).unwrap();
    until_open(&inbox);
    let dialect = JsonRpc::new().login("auth", |_| -> Value { panic!("no key") });
    let error = reactor.connect(config(&server).dialect(dialect)).unwrap_err();
    assert!(matches!(&error, Error::Panicked(text) if &**text == "no key"), "{error:?}");
    assert_eq!(neighbour.call::<[u8; 1]>("m", [1]).unwrap(), [1]);
}

#[test]
fn a_handler_is_told_of_open_after_the_login_and_sends_behind_it() {
    let (server, (send, seen)) = (serve(venue().on_open(|peer| peer.send_text("early"))), mpsc::channel());
    let texts = send.clone();
    let handler = Handler::new()
        .text(move |context, text| texts.send(format!("{text}, {:?}", context.send("too early").is_ok())).unwrap())
        .state(move |context, event| {
            send.send(line(event)).unwrap();
            if let Event::Open = event {
                context.send("order").unwrap();
            }
        });
    let _client = connect_with(log_in(config(&server)), handler).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.expect("order", WAIT).unwrap();
    assert_eq!([(); 3].map(|()| seen.recv_timeout(WAIT).unwrap()), ["dialing 1", "early, false", "open"]);
    assert_eq!(peer.captured().len(), 2);
}

// ---- the login is refreshed ----

#[test]
fn a_login_is_refreshed_with_what_the_one_before_left_while_messages_go_on() {
    let (_server, peer, client, inbox, auth) = logging_in(log_in);
    reply(&peer, &auth, json!({ "result": { "expires_in": 1, "refresh_token": TOKEN } }));
    until_open(&inbox);
    let refresh = request(&peer);
    assert_eq!((&refresh["method"], &refresh["params"]), (&json!("public/auth"), &json!({ "refresh_token": TOKEN })));
    client.send("meanwhile").unwrap();
    peer.expect("meanwhile", WAIT).unwrap();
    reply(&peer, &refresh, json!({ "result": { "expires_in": 1, "refresh_token": "another" } }));
    assert_eq!(request(&peer)["params"], json!({ "refresh_token": "another" }));
    assert!(inbox.is_empty() && client.state() == State::Live, "nobody notices");
}

#[test]
fn a_refresh_that_is_refused_or_not_answered_replaces_the_wire() {
    let ends = [Some(json!({ "error": { "code": 13009, "message": "unauthorized" } })), None];
    let causes = ["unauthorized (13009)", "the refresh of the login was not answered"];
    let cases = ends.map(|end| (end, logging_in(|config| log_in(config).confirm_timeout(ms(200)))));
    for ((end, (server, peer, _client, inbox, auth)), cause) in cases.into_iter().zip(causes) {
        server.script(venue());
        reply(&peer, &auth, json!({ "result": { "expires_in": 1 } }));
        until_open(&inbox);
        let refresh = request(&peer);
        end.into_iter().for_each(|end| reply(&peer, &refresh, end));
        let lost = format!("lost, again in 0ns: the venue refused the login: {cause}");
        assert_eq!(lines(&inbox, 3), [&*lost, "dialing 1", "open"]);
        assert_eq!(request(&server.accept(WAIT).unwrap())["params"], json!({ "client_secret": SECRET }), "a login from scratch");
    }
}

// ---- secrets ----

#[test]
fn what_a_login_sends_and_gets_is_neither_printed_nor_logged() {
    Lines::keep();
    let server = serve(venue());
    server.script_next(refusal(1, "later"));
    let config = log_in(config(&server));
    let (client, inbox) = connect(&config).unwrap();
    server.kill_all();
    until_lost(&inbox);
    until_open(&inbox);
    server.script(refusal(13004, "invalid"));
    let error = connect(&config).unwrap_err();
    let printed = format!("{config:?} {client:?} {inbox:?} {error:?} {error} {:?}", error.explain());
    client.close().unwrap();
    lines_to_end(&inbox);
    let logged = Lines::kept().join("\n");
    assert!(logged.contains(&format!("{}: open, wire 3", client.id())), "{logged}");
    for secret in [SECRET, TOKEN] {
        assert!(!printed.contains(secret) && !logged.contains(secret), "{printed}\n{logged}");
    }
}

// ---- hold_until ----

#[test]
fn a_client_that_holds_until_live_sends_nothing_before_its_channels_are_confirmed() {
    let (server, peer, client, inbox) = session_with(Script::new().ignore(), hold);
    let books = client.start_subscribe(["book"]).unwrap();
    confirm(&peer, &request(&peer));
    assert_eq!(next_line(&inbox), "Live");
    peer.reset();
    until_open(&inbox);
    let second = server.accept(WAIT).unwrap();
    let restore = request(&second);
    assert!(matches!(client.send("early"), Err(Error::NotConnected)));
    assert!(matches!(client.call::<()>("early", ()), Err(Error::NotConnected)));
    assert_eq!((client.state(), client.metrics().calls_pending), (State::Open, 0));
    confirm(&second, &restore);
    assert_eq!(next_line(&inbox), "Live");
    client.send("order").unwrap();
    second.expect("order", WAIT).unwrap();
    assert_eq!((second.captured().len(), &books.standings()[0].1), (2, &Standing::Confirmed));
}

#[test]
fn without_hold_messages_leave_ahead_of_the_confirmations() {
    let (server, peer, client, inbox) = session_with(Script::new().ignore(), |config| config.dialect(JsonRpc::new()));
    let _books = client.start_subscribe(["book"]).unwrap();
    confirm(&peer, &request(&peer));
    assert_eq!(next_line(&inbox), "Live");
    peer.reset();
    until_open(&inbox);
    client.send("order").unwrap();
    server.accept(WAIT).unwrap().expect("order", WAIT).unwrap();
    assert_eq!(client.state(), State::Open);
}

#[test]
fn who_sees_a_client_live_may_send_though_it_holds() {
    let server = serve(Script::new().ignore());
    let reactor = Reactor::builder().start().unwrap();
    for _ in 0..100 {
        let (client, _inbox) = reactor.open(hold(config(&server))).unwrap();
        until(|| client.state() == State::Live);
        client.send("order").unwrap();
    }
}

// ---- heartbeats of the venue ----

#[test]
fn a_probe_is_answered_at_once_and_shown() {
    let (_server, peer, client, inbox) = session_with(Script::new().ignore(), |config| config.dialect(JsonRpc::new()));
    peer.send_text(PROBE);
    peer.expect(PROBE_ANSWER, WAIT).unwrap();
    peer.send_text(r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"heartbeat"}}"#);
    peer.send_text(PROBE);
    peer.expect(PROBE_ANSWER, WAIT).unwrap();
    assert_eq!(lines(&inbox, 3).iter().filter(|line| line.contains("test_request")).count(), 2);
    client.send("marker").unwrap();
    peer.expect("marker", WAIT).unwrap();
    assert_eq!(peer.captured().len(), 3, "only probes are answered");
}

#[test]
fn a_probe_is_answered_during_a_login_and_behind_a_used_up_rate_limit() {
    let limit = RateLimit::bucket(3, 1, NEVER).reserved(2);
    let (_server, peer, client, inbox, auth) = logging_in(|config| log_in(config).rate_limit(limit));
    peer.send_text(PROBE);
    peer.expect(PROBE_ANSWER, WAIT).unwrap();
    accept_login(&peer, &auth);
    until_open(&inbox);
    assert!(matches!(client.send("order"), Err(Error::Throttled { .. })));
    peer.send_text(PROBE);
    peer.expect(PROBE_ANSWER, WAIT).unwrap();
}

#[test]
fn the_ping_of_a_dialect_leaves_in_place_of_ping_frames_and_its_pong_is_not_shown() {
    let (_server, peer, client, inbox) =
        session_with(ponging(), |config| config.dialect(Pinger::new()).heartbeat_interval(ms(20)).patience(QUICK).strict(true));
    let mut pings: Vec<_> = (0..5).map(|_| peer.expect(Matcher::any(), WAIT).unwrap().text().unwrap().to_owned()).collect();
    assert!(pings.iter().all(|ping| ping.starts_with("ping ")), "{pings:?}");
    pings.dedup();
    assert_eq!(pings.len(), 5);
    until(|| client.heartbeat().rtt.is_some());
    assert_eq!((client.heartbeat().misses, client.generation().number(), inbox.len()), (0, 1, 0));
}

#[test]
fn a_pong_of_the_venue_proves_more_than_its_data_where_that_is_asked_for() {
    let set =
        |config: Config| config.dialect(Pinger::new()).heartbeat_interval(ms(50)).patience(ms(100)).strict(true).reconnect(false);
    let (_server, _peer, client, inbox) = session_with(Script::new().on_text(|peer, _| peer.send_text("data")), set);
    let cause = loop {
        let _ = client.send("busy");
        match next(&inbox) {
            Event::Message(_) => {}
            Event::Lost { cause, .. } => break cause,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(cause, Error::Silent { .. }), "{cause:?}");
    assert_eq!(client.heartbeat().misses, 1);
}

#[test]
fn a_heartbeat_that_the_rate_limit_holds_back_proves_nothing() {
    held(ms(50), |config| config);
    held(ms(50), |config| config.dialect(Pinger::new()));
}

#[test]
fn many_heartbeats_that_the_rate_limit_holds_back_prove_nothing() {
    held(ms(5), |config| config);
    held(ms(5), |config| config.dialect(Pinger::new()));
}

#[test]
fn a_heartbeat_that_panics_ends_its_own_connection_only() {
    ends_its_own_connection_only(Pinger { panics: true, ..Pinger::new() });
}

#[test]
fn a_heartbeat_whose_cost_panics_ends_its_own_connection_only() {
    ends_its_own_connection_only(Pinger { cost_panics: true, ..Pinger::new() });
}

// ---- helpers ----

const SECRET: &str = "t0ps3cret";

/// What the venue gives for the refresh.
const TOKEN: &str = "r3fr3sh";

const PROBE: &str = r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}"#;

const PROBE_ANSWER: &str = r#"{"jsonrpc":"2.0","method":"public/test","params":{}}"#;

fn log_in(config: Config) -> Config {
    config.dialect(JsonRpc::new().login("public/auth", |step| match step.token {
        None => json!({ "client_secret": SECRET }),
        Some(token) => json!({ "refresh_token": token.expose() }),
    }))
}

fn hold(config: Config) -> Config {
    config.dialect(JsonRpc::new()).hold_until(State::Live)
}

/// A venue that accepts each login and answers all else with its parameters.
fn venue() -> Script {
    Script::new().on_text(|peer, text| {
        if let Ok(request) = serde_json::from_str::<Value>(text) {
            if request["method"] == "public/auth" {
                accept_login(peer, &request);
            } else {
                reply(peer, &request, json!({ "result": request["params"] }));
            }
        }
    })
}

/// A venue that refuses each login.
fn refusal(code: i64, message: &'static str) -> Script {
    let error = json!({ "error": { "code": code, "message": message } });
    Script::new().on_text(move |peer, text| reply(peer, &serde_json::from_str(text).unwrap(), error.clone()))
}

/// A venue that answers heartbeats in its own way.
fn ponging() -> Script {
    Script::new().on_text(|peer, _| peer.send_text("pong"))
}

/// A client whose login waits for its answer, with the request.
fn logging_in(set: impl FnOnce(Config) -> Config) -> (MockServer, Peer, Client, Inbox, Value) {
    let server = serve(Script::new().ignore());
    let (client, inbox) = open(set(config(&server))).unwrap();
    let peer = server.accept(WAIT).unwrap();
    let auth = request(&peer);
    (server, peer, client, inbox, auth)
}

fn accepted(auth: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": auth["id"], "result": { "access_token": TOKEN, "expires_in": 900, "refresh_token": TOKEN } })
}

fn accept_login(peer: &Peer, auth: &Value) {
    peer.send_text(&accepted(auth).to_string());
}

/// Confirms all channels that a request names.
fn confirm(peer: &Peer, subscribe: &Value) {
    reply(peer, subscribe, json!({ "result": subscribe["params"]["channels"] }));
}

/// Answers a request with these members.
fn reply(peer: &Peer, request: &Value, outcome: Value) {
    let mut reply = json!({ "jsonrpc": "2.0", "id": request["id"] });
    reply.as_object_mut().unwrap().extend(outcome.as_object().unwrap().clone());
    peer.send_text(&reply.to_string());
}

/// The next request that the venue has read.
fn request(peer: &Peer) -> Value {
    let captured = peer.expect(Matcher::json(json!({})), WAIT).unwrap();
    serde_json::from_str(captured.text().unwrap()).unwrap()
}

/// No wire is lost because a rate limit holds its heartbeats back.
fn held(interval: Duration, set: fn(Config) -> Config) {
    let strict = |config: Config| config.heartbeat_interval(interval).patience(ms(100)).strict(true);
    let limited = |config: Config| set(strict(config)).rate_limit(RateLimit::bucket(3, 1, NEVER));
    let (_server, peer, client, inbox) = session_with(ponging(), limited);
    (0..3).for_each(|_| _ = peer.expect(Matcher::any(), WAIT).unwrap());
    let lost = inbox.recv_timeout(ms(400));
    assert!(matches!(lost, Err(Error::Timeout { .. })), "{lost:?}");
    assert_eq!((client.generation().number(), peer.captured().len()), (1, 3));
}

fn ends_its_own_connection_only(dialect: Pinger) {
    let (server, reactor) = (serve(venue()), Reactor::builder().start().unwrap());
    let (neighbour, _inbox) = reactor.connect(log_in(config(&server))).unwrap();
    let limited = config(&server).rate_limit(RateLimit::bucket(1000, 1, NEVER));
    let (client, inbox) = reactor.connect(limited.dialect(dialect).heartbeat_interval(ms(200))).unwrap();
    until_open(&inbox);
    client.wait(State::Closed, QUICK).unwrap();
    assert!(matches!(until_closed(&inbox), Some(Error::Panicked(_))));
    assert_eq!(neighbour.call::<[u8; 1]>("m", [1]).unwrap(), [1]);
}

/// Asks for a challenge, and answers it.
struct Challenge;

impl Dialect for Challenge {
    fn name(&self) -> &str {
        "challenge"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        JsonRpc::new().classify(text)
    }

    fn login(&self, step: &LoginStep<'_>) -> Login {
        let reply: Value = step.reply.map_or(Value::Null, |reply| serde_json::from_str(reply).unwrap());
        let text = match (step.step, &reply["challenge"]) {
            (0, _) => r#"{"op":"hello","id":"0"}"#.to_owned(),
            (1, challenge) => format!(r#"{{"op":"answer","to":{challenge},"id":"1"}}"#),
            _ => return Login::Done { refresh_after: None, token: Some(Secret::new("unused")) },
        };
        Login::Send(Request { text, id: step.step.to_string().as_str().into() })
    }
}

/// Is never done with its login.
struct Endless;

impl Dialect for Endless {
    fn name(&self) -> &str {
        "endless"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        Inbound::Reply { id: text.into() }
    }

    fn login(&self, step: &LoginStep<'_>) -> Login {
        let text = step.number.to_string();
        Login::Send(Request { id: text.as_str().into(), text })
    }
}

/// A venue with heartbeats of its own.
struct Pinger {
    panics: bool,
    cost_panics: bool,
}

impl Pinger {
    fn new() -> Self {
        Self { panics: false, cost_panics: false }
    }
}

impl Dialect for Pinger {
    fn name(&self) -> &str {
        "pinger"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        if text == "pong" { Inbound::Pong } else { Inbound::Message }
    }

    fn ping(&self, number: u64) -> Option<String> {
        assert!(!self.panics, "no ping");
        Some(format!("ping {number}"))
    }

    fn cost(&self, _: &str) -> u32 {
        assert!(!self.cost_panics, "no cost");
        1
    }
}
