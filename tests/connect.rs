//! From a config to an open connection, or to an error that says why not.

mod common;

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use zen_websocket::testkit::{ClientMessage, Frame, Matcher, MockServer, Script};
use zen_websocket::{Client, Config, Error, Generation, Phase, Reactor, Refusal, State, connect, open};

use self::common::*;

// ---- settings ----

#[test]
fn a_wrong_setting_is_named_before_a_socket_is_opened() {
    let server = MockServer::start().unwrap();
    let url = server.url();
    let refused = [
        config(&server).connect_timeout(Duration::ZERO),
        config(&server).base_delay(ms(2000)).max_backoff(ms(1000)),
        Config::new(url.replace("ws:", "http:")),
        Config::new("wss://"),
        Config::new(""),
        Config::new("localhost"),
    ];
    let errors = refused.map(|config| connect(config).unwrap_err().to_string());
    assert_eq!(
        errors,
        [
            "invalid connect_timeout: must be more than zero",
            "invalid max_backoff: must be at least base_delay",
            "invalid url: the scheme must be ws or wss, not http",
            "invalid url: empty host",
            "invalid url: a URL is required",
            "invalid url: relative URL without a base",
        ]
    );
    assert_eq!(server.accepted(), 0);
}

#[test]
fn line_breaks_and_nul_in_header_path_or_host_never_reach_a_server() {
    let server = MockServer::start().unwrap();
    let config = || config(&server);
    let refused = [
        config().header("X-A\r\nX-B", "1"),
        config().header("X-A", "1\r\nX-B: 2"),
        config().header("X-A", "1\0"),
        Config::new(format!("{}a\r\nX-B: 2", server.url())),
        Config::new(format!("{}a\0", server.url())),
        Config::new(server.url().replace("127", "\n127")),
    ];
    for config in refused {
        assert!(matches!(open(config), Err(Error::Config { .. })));
    }
    assert_eq!(server.accepted(), 0);
}

// ---- the request ----

#[test]
fn headers_arrive_verbatim_on_the_first_dial_and_every_redial() {
    let (server, peer, _client, inbox) = session_with(Script::new(), |config| {
        config.header("Authorization", "Bearer t0k3n==").header("x-LIST", "a,b; c=\"d e\"").header("X-Empty", "")
    });
    let mut peers = vec![peer];
    for _ in 0..2 {
        peers.last().unwrap().reset();
        until_open(&inbox);
        peers.push(server.accept(WAIT).unwrap());
    }
    let host = server.address().to_string();
    for peer in &peers {
        let headers = peer.request().headers().iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let expected = [
            ("Host", host.as_str()),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", peer.request().header("sec-websocket-key").unwrap()),
            ("Sec-WebSocket-Version", "13"),
            ("Authorization", "Bearer t0k3n=="),
            ("x-LIST", "a,b; c=\"d e\""),
            ("X-Empty", ""),
        ];
        assert_eq!(headers.collect::<Vec<_>>(), expected);
    }
    let key = |index: usize| peers[index].request().header("sec-websocket-key").unwrap();
    assert!(key(0) != key(1) && key(1) != key(2), "each dial has a key of its own");
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn path_and_query_arrive_as_given() {
    let server = MockServer::start().unwrap();
    let origin = server.url().trim_end_matches('/').to_owned();
    for (rest, path, query) in [
        ("", "/", ""),
        ("/", "/", ""),
        ("?a=1", "/", "a=1"),
        ("/ws?token=test123&session=abc", "/ws", "token=test123&session=abc"),
        ("/a%20b/c?x=%2F&&y", "/a%20b/c", "x=%2F&&y"),
        ("/stream?streams=btcusdt@depth/ethusdt@depth", "/stream", "streams=btcusdt@depth/ethusdt@depth"),
    ] {
        let _client = connect(config_for(format!("{origin}{rest}"))).unwrap();
        let peer = server.accept(WAIT).unwrap();
        assert_eq!((peer.request().path(), peer.request().query()), (path, query));
    }
}

#[test]
fn user_info_becomes_basic_authorization_unless_the_user_sets_it() {
    let server = MockServer::start().unwrap();
    let url = server.url().replace("ws://", "ws://user:p%40ss@");
    let authorization = |config: Config| {
        let _client = connect(config).unwrap();
        let peer = server.accept(WAIT).unwrap();
        assert_eq!(peer.request().header("host"), Some(server.address().to_string().as_str()));
        peer.request().header("authorization").map(str::to_owned)
    };
    assert_eq!(authorization(config_for(&url)).as_deref(), Some("Basic dXNlcjpwQHNz"));
    assert_eq!(authorization(config_for(&url).header("authorization", "Bearer x")).as_deref(), Some("Bearer x"));
}

#[test]
fn an_ipv6_literal_is_dialled_and_named_in_brackets() {
    let Ok(server) = MockServer::builder().bind((Ipv6Addr::LOCALHOST, 0)).start() else {
        skip("no ::1 on this machine");
        return;
    };
    let (peer, client, inbox) = join(&server, config(&server));
    assert_eq!(peer.request().header("host"), Some(format!("[::1]:{}", server.address().port()).as_str()));
    client.send("six").unwrap();
    assert_eq!(text(&inbox), "six");
}

#[test]
fn a_host_header_of_the_user_replaces_ours() {
    let (_server, peer, ..) = session_with(Script::new(), |config| config.header("hOST", "front.example"));
    let hosts: Vec<_> = peer.request().headers().iter().filter(|(name, _)| name.eq_ignore_ascii_case("host")).collect();
    assert_eq!(hosts, [&("Host".to_owned(), "front.example".to_owned())]);
}

#[test]
fn the_server_chooses_among_the_subprotocols_or_none() {
    let chosen = |script: Script| {
        let (_server, peer, client, _inbox) = session_with(script, |config| config.subprotocol("v2").subprotocol("v1"));
        assert_eq!(peer.request().header("sec-websocket-protocol"), Some("v2, v1"));
        client.subprotocol()
    };
    assert_eq!(chosen(Script::new().subprotocol("v1")).as_deref(), Some("v1"));
    assert_eq!(chosen(Script::new()), None);
}

// ---- the answer ----

#[test]
fn an_answer_other_than_101_is_reported_whole_and_at_once() {
    let length = |body: &str| ("Content-Length".to_owned(), body.len().to_string());
    let close = ("Connection".to_owned(), "close".to_owned());
    for status in [200, 302, 400, 401, 403, 404, 429, 500, 503] {
        let body = format!("sorry, {status}");
        let server = serve(Script::new().status(status).header("X-Request-Id", "4711").body(&*body));
        let expected = Refusal {
            status,
            headers: vec![length(&body), close.clone(), ("X-Request-Id".to_owned(), "4711".to_owned())],
            body,
            retry_after: None,
        };
        let refused = quickly(|| connect(config(&server).connect_attempts(1)).unwrap_err());
        assert_eq!(refusal(&refused), &expected);
    }
}

#[test]
fn a_redirect_is_reported_with_its_location() {
    let server = serve(Script::new().status(302).header("Location", "wss://elsewhere.example/ws"));
    let refused = connect(config(&server)).unwrap_err();
    assert_eq!(refusal(&refused).header("location"), Some("wss://elsewhere.example/ws"));
}

#[test]
fn of_a_long_body_the_first_kibibyte_is_kept() {
    let server = serve(Script::new().status(503).body("x".repeat(100_000)));
    let refused = connect(config(&server).connect_attempts(1)).unwrap_err();
    assert_eq!(refusal(&refused).body, "x".repeat(1024));
}

#[test]
fn a_refusal_whose_body_never_comes_is_reported_all_the_same() {
    let server = serve(Script::new().raw_answer("HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nba"));
    let refused = quickly(|| connect(config(&server).connect_attempts(1)).unwrap_err());
    assert_eq!((refusal(&refused).status, refusal(&refused).body.as_str()), (503, "ba"));
}

#[test]
fn what_cannot_pass_ends_the_first_connect_at_once() {
    for status in [302, 400, 401, 403, 404] {
        let server = serve(Script::new().status(status));
        let refused = connect(config(&server).connect_attempts(5)).unwrap_err();
        assert_eq!((refusal(&refused).status, server.accepted()), (status, 1));
        assert!(refused.is_fatal());
    }
}

#[test]
fn what_may_pass_is_dialled_again() {
    for status in [200, 408, 429, 500, 503] {
        let server = MockServer::start().unwrap();
        server.script_next(Script::new().status(status));
        let (_client, inbox) = connect(config(&server)).unwrap();
        let failed = format!("dial 1 failed, again in 20ms: the server answered the upgrade with HTTP {status}");
        assert_eq!(lines(&inbox, 4), ["dialing 1", &failed, "dialing 2", "open"]);
    }
}

#[test]
fn the_pause_a_server_asks_for_is_kept() {
    let server = MockServer::start().unwrap();
    server.script_next(Script::new().status(429).header("Retry-After", "1"));
    let (_client, inbox) = connect(config(&server)).unwrap();
    assert_eq!(lines(&inbox, 2)[1], "dial 1 failed, again in 1s: the server answered the upgrade with HTTP 429");
    let accepted = server.accept_times();
    assert!(accepted[1] - accepted[0] >= ms(900), "{:?}", accepted[1] - accepted[0]);
}

#[test]
fn a_refusal_after_the_first_success_is_retried_at_the_longest_pause() {
    let (server, peer, _client, inbox) = session(Script::new());
    server.script_next(Script::new().status(403));
    peer.reset();
    until_lost(&inbox);
    assert_eq!(
        lines(&inbox, 4),
        ["dialing 1", "dial 1 failed, again in 200ms: the server answered the upgrade with HTTP 403", "dialing 2", "open"]
    );
}

#[test]
fn an_answer_that_breaks_the_handshake_is_refused_with_the_reason() {
    for (script, reason) in [
        (Script::new().wrong_accept_key(), "sec-websocket-accept does not match our key"),
        (Script::new().without_header("sec-websocket-accept"), "sec-websocket-accept does not match our key"),
        (Script::new().without_header("upgrade"), "101 without upgrade: websocket"),
        (Script::new().header("Upgrade", "h2c"), "101 without upgrade: websocket"),
        (Script::new().without_header("connection"), "101 without connection: upgrade"),
        (
            Script::new().header("Sec-WebSocket-Extensions", "permessage-deflate"),
            "server chose an extension that was not offered",
        ),
        (Script::new().subprotocol("v3"), r#"server chose a subprotocol that was not offered: "v3""#),
        (Script::new().raw_answer("SSH-2.0-OpenSSH_9.6\r\n"), "answer is not HTTP/1.1"),
        (Script::new().raw_answer([0x81, 2, b'h', b'i']), "answer is not HTTP/1.1"),
        (Script::new().endless_headers(), "head of the answer larger than 16384 bytes"),
    ] {
        let server = serve(script);
        match connect(config(&server).subprotocol("v1").connect_attempts(1)).unwrap_err() {
            Error::Handshake(found) => assert_eq!(&*found, reason),
            other => panic!("{other:?} and not {reason}"),
        }
    }
}

#[test]
fn a_head_that_comes_byte_by_byte_is_put_together() {
    let (_server, _peer, client, inbox) = session(Script::new().dribble(1, ms(1)));
    client.send("hi").unwrap();
    assert_eq!(text(&inbox), "hi");
}

#[test]
fn frames_behind_the_101_are_the_first_messages() {
    let glue = [Frame::text("welcome").to_bytes(), Frame::ping("p").to_bytes(), Frame::text("to").unfinished().to_bytes()];
    let (_server, peer, _client, inbox) = session(Script::new().glue(glue.concat()));
    assert_eq!(text(&inbox), "welcome");
    peer.send_frame(&Frame::continuation("gether"));
    assert_eq!(text(&inbox), "together");
    peer.expect(Matcher::when(|it| it.message == ClientMessage::Pong(b"p".to_vec())), WAIT).unwrap();
}

#[test]
fn a_long_burst_behind_the_101_is_complete() {
    let glue: Vec<u8> = (0..5000).flat_map(|number| Frame::text(number.to_string()).to_bytes()).collect();
    let (_server, _peer, _client, inbox) = session(Script::new().glue(glue));
    for number in 0..5000 {
        assert_eq!(text(&inbox), number.to_string());
    }
}

#[test]
fn a_close_behind_the_101_is_a_loss_after_the_opening() {
    let server = MockServer::start().unwrap();
    server.script_next(Script::new().glue(Frame::close(1013, "later").to_bytes()));
    let (_client, inbox) = connect(config(&server)).unwrap();
    assert_eq!(
        lines(&inbox, 5),
        ["dialing 1", "open", "lost, again in 0ns: the peer closed with code 1013: later", "dialing 1", "open"]
    );
}

#[test]
fn a_server_that_hangs_up_instead_of_answering_is_told_from_a_timeout() {
    let server = serve(Script::new().raw_answer("HTTP/1.1 101 Switch").hang_up_after(Duration::ZERO));
    let error = connect(config(&server).connect_attempts(1)).unwrap_err();
    assert!(matches!(error, Error::Disconnected), "{error:?}");
    let server = serve(Script::new().reset_on_accept());
    let error = connect(config(&server).connect_attempts(1)).unwrap_err();
    assert!(matches!(error, Error::Io(_) | Error::Connect { .. }), "{error:?}");
}

// ---- time ----

#[test]
fn a_dial_that_hangs_ends_at_its_deadline_with_its_phase() {
    let plain = serve(Script::new().mute());
    let mute = MockServer::builder().tls().script(Script::new().mute()).start().unwrap();
    let mute_later = MockServer::builder().tls().script(Script::new().mute_after_tls()).start().unwrap();
    let full = full_port();
    for (config, phase) in [
        (config_for("ws://localhost").on_dial(|plan| wait_past(plan.deadline())), Phase::Resolve),
        (config_for(format!("ws://{}", full.address)), Phase::Connect),
        (config(&mute), Phase::Tls),
        (config(&mute_later), Phase::Upgrade),
        (config(&plain), Phase::Upgrade),
    ] {
        let began = Instant::now();
        let error = quickly(|| connect(config.connect_timeout(ms(200)).connect_attempts(1)).unwrap_err());
        assert!(began.elapsed() >= ms(200), "{phase:?} {:?}", began.elapsed());
        assert_eq!(timed_out(&error), (phase, ms(200)));
    }
}

#[test]
fn a_phase_has_a_limit_of_its_own() {
    let server = serve(Script::new().mute());
    let limited = config(&server).phase_timeout(Phase::Tls, NEVER).phase_timeout(Phase::Upgrade, ms(100));
    let error = quickly(|| connect(limited.connect_timeout(NEVER).connect_attempts(1)).unwrap_err());
    assert_eq!(timed_out(&error), (Phase::Upgrade, ms(100)));
}

#[test]
fn a_very_short_deadline_harms_nothing_but_its_dial() {
    let server = serve(Script::new().delay(ms(100)));
    let error = connect(config(&server).connect_timeout(ms(1)).connect_attempts(1)).unwrap_err();
    assert!(matches!(error, Error::DialTimeout { after, .. } if after == ms(1)), "{error:?}");
    let (client, inbox) = connect(config(&server)).unwrap();
    until_open(&inbox);
    client.send("hi").unwrap();
    assert_eq!(text(&inbox), "hi");
}

#[test]
fn attempts_that_hang_are_counted_and_the_caller_survives() {
    let server = serve(Script::new().mute());
    let error = quickly(|| connect(config(&server).connect_timeout(ms(100)).connect_attempts(2)).unwrap_err());
    let Error::Exhausted { attempts: 2, last } = &error else { panic!("{error:?}") };
    assert_eq!(timed_out(last), (Phase::Upgrade, ms(100)));
    assert_eq!(server.accepted(), 2);
}

#[test]
fn an_unknown_host_is_reported_by_name() {
    let error = connect(config_for("ws://no-such-host.invalid").connect_attempts(1)).unwrap_err();
    assert!(matches!(&error, Error::Resolve { host, .. } if &**host == "no-such-host.invalid"), "{error:?}");
}

// ---- the end of all attempts ----

#[test]
fn one_attempt_fails_with_its_cause_and_several_keep_the_last() {
    let (_server, url, peer) = refusing();
    let once = connect(config_for(&url).connect_attempts(1)).unwrap_err();
    assert_eq!(refused_by(&once), peer);
    let twice = connect(config_for(&url).connect_attempts(2)).unwrap_err();
    let Error::Exhausted { attempts: 2, last } = &twice else { panic!("{twice:?}") };
    assert_eq!(refused_by(last), peer);
    let mut source: &dyn std::error::Error = &twice;
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    assert_eq!(source.downcast_ref::<io::Error>().map(io::Error::kind), Some(io::ErrorKind::ConnectionRefused));
}

#[test]
fn the_inbox_tells_every_attempt_and_then_ends() {
    let (_server, url, peer) = refusing();
    let refused = TcpStream::connect(&peer).unwrap_err();
    let (client, inbox) = open(config_for(&url)).unwrap();
    let cause = format!("could not connect to {peer}: {refused}");
    assert_eq!(
        lines_to_end(&inbox),
        [
            "dialing 1".to_owned(),
            format!("dial 1 failed, again in 20ms: {cause}"),
            "dialing 2".to_owned(),
            format!("dial 2 failed, again in 40ms: {cause}"),
            "dialing 3".to_owned(),
            format!("dial 3 failed, for good: {cause}"),
            format!("closed: gave up after 3 attempts: {cause}"),
        ]
    );
    let error = client.wait(State::Open, WAIT).unwrap_err();
    assert!(matches!(error, Error::Exhausted { attempts: 3, .. }), "{error:?}");
    assert!(matches!(client.send("x"), Err(Error::Closed)));
}

// ---- addresses ----

#[test]
fn a_refused_address_gives_way_to_the_next() {
    let (_server, _, dead) = refusing();
    let live = MockServer::start().unwrap();
    let addresses = [dead.parse().unwrap(), live.address()];
    let (client, _inbox) = quickly(|| connect(dialling(addresses)).unwrap());
    assert_eq!(client.state(), State::Live);
    assert_eq!(live.accept(WAIT).unwrap().request().header("host"), Some("exchange.example"));
}

#[test]
fn an_address_that_does_not_answer_gives_way_to_the_next() {
    let full = full_port();
    let live = MockServer::start().unwrap();
    let (client, inbox) = quickly(|| connect(dialling([full.address, live.address()])).unwrap());
    assert_eq!(client.state(), State::Live);
    assert_eq!(lines(&inbox, 2), ["dialing 1", "open"]);
}

#[test]
fn when_no_address_answers_the_last_one_is_named() {
    let (_one, _, first) = refusing();
    let (_other, _, second) = refusing();
    let addresses = [first.parse().unwrap(), second.parse().unwrap()];
    assert_eq!(refused_by(&connect(dialling(addresses).connect_attempts(1)).unwrap_err()), second);
}

// ---- the dial hook ----

#[test]
fn the_dial_hook_sets_url_and_headers_of_each_dial() {
    let server = MockServer::start().unwrap();
    let url = server.url();
    let config = config_for("ws://nowhere.invalid/old").header("X-Sign", "stale").on_dial(move |plan| {
        assert_eq!(plan.url(), "ws://nowhere.invalid/old");
        plan.set_url(format!("{url}new?nonce={}", plan.attempt()));
        plan.set_header("x-sign", format!("fresh {}", plan.attempt()));
        Ok(())
    });
    server.script_next(Script::new().status(503));
    let _client = connect(config).unwrap();
    let requests = server.requests();
    let seen = requests.iter().map(|it| (it.path(), it.query(), it.header("x-sign").unwrap()));
    assert_eq!(seen.collect::<Vec<_>>(), [("/new", "nonce=1", "fresh 1"), ("/new", "nonce=2", "fresh 2")]);
    assert!(requests.iter().all(|it| it.headers().iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-sign")).count() == 1));
}

#[test]
fn an_error_of_the_dial_hook_fails_the_dial() {
    let server = MockServer::start().unwrap();
    let config = config(&server).on_dial(|plan| if plan.attempt() == 1 { Err("no token yet".into()) } else { Ok(()) });
    let (_client, inbox) = connect(config).unwrap();
    assert_eq!(
        lines(&inbox, 4),
        ["dialing 1", "dial 1 failed, again in 20ms: the dial hook failed: no token yet", "dialing 2", "open"]
    );
}

#[test]
fn a_panic_of_the_dial_hook_fails_the_dial() {
    let server = MockServer::start().unwrap();
    let config = config(&server).on_dial(|_| panic!("boom")).connect_attempts(1);
    let error = connect(config).unwrap_err();
    assert!(matches!(error, Error::DialHook(_)));
    assert_eq!(error.to_string(), "the dial hook failed: user code panicked: boom");
    assert_eq!(server.accepted(), 0);
}

#[test]
fn a_dial_hook_cannot_split_the_request() {
    let server = MockServer::start().unwrap();
    let config = config(&server).on_dial(|plan| {
        plan.set_header("X-A", "1\r\nX-B: 2");
        Ok(())
    });
    let error = connect(config).unwrap_err();
    assert_eq!(error.to_string(), "invalid header: the value of X-A contains a control character");
    assert_eq!(server.accepted(), 0);
}

#[test]
fn a_dial_hook_that_hangs_holds_up_neither_close_nor_stop() {
    let (release, blocked) = crossbeam_channel::bounded::<()>(0);
    let hook = move |_: &mut zen_websocket::DialPlan| {
        let _ = blocked.recv();
        Ok(())
    };
    let reactor = Reactor::builder().start().unwrap();
    let config = config_for("ws://nowhere.invalid").on_dial(hook);
    let (one, inbox) = reactor.open(&config).unwrap();
    let (other, _inbox) = reactor.open(&config).unwrap();
    quickly(|| one.close().unwrap());
    assert_eq!(lines_to_end(&inbox), ["dialing 1", "closed"]);
    quickly(|| reactor.stop());
    assert!(matches!(other.wait(State::Open, WAIT), Err(Error::Stopped)));
    drop(release);
}

// ---- open and wait ----

#[test]
fn open_returns_at_once_and_the_state_is_visible_while_the_dial_hangs() {
    let server = serve(Script::new().mute());
    let (client, inbox) = quickly(|| open(config(&server).connect_timeout(NEVER)).unwrap());
    assert!(server.wait_accepted(1, WAIT));
    let metrics = client.metrics();
    assert_eq!((metrics.state, metrics.generation, metrics.uptime), (State::Connecting, Generation::default(), None));
    assert_eq!((metrics.messages_in, metrics.bytes_out, metrics.inbox_depth, metrics.redials), (0, 0, Some(1), 0));
    assert!(matches!(client.send("early"), Err(Error::NotConnected)));
    let waited = client.wait(State::Open, ms(20)).unwrap_err();
    assert!(matches!(waited, Error::Timeout { after, .. } if after == ms(20)), "{waited:?}");
    quickly(|| client.close().unwrap());
    assert_eq!(client.state(), State::Closed);
    assert_eq!(lines_to_end(&inbox), ["dialing 1", "closed"]);
}

#[test]
fn all_who_wait_for_an_opening_are_told() {
    let server = serve(Script::new().delay(ms(100)));
    let (client, _inbox) = open(config(&server)).unwrap();
    let waiters: Vec<_> = (0..2).map(|_| waiter(&client)).collect();
    for waiter in waiters {
        waiter.recv_timeout(WAIT).unwrap().unwrap();
    }
}

#[test]
fn all_who_wait_for_an_opening_that_fails_are_told_why() {
    let server = serve(Script::new().delay(ms(100)).status(401));
    let (client, _inbox) = open(config(&server)).unwrap();
    let waiters: Vec<_> = (0..2).map(|_| waiter(&client)).collect();
    for waiter in waiters {
        assert_eq!(refusal(&waiter.recv_timeout(WAIT).unwrap().unwrap_err()).status, 401);
    }
}

// ---- helpers ----

fn waiter(client: &Client) -> mpsc::Receiver<zen_websocket::Result<()>> {
    let (send, done) = mpsc::channel();
    let client = client.clone();
    thread::spawn(move || send.send(client.wait(State::Open, WAIT)));
    done
}

/// A port that refuses connections, with its URL and its name in errors.
fn refusing() -> (MockServer, String, String) {
    let server = MockServer::start().unwrap();
    server.pause().unwrap();
    let (url, peer) = (server.url(), server.address().to_string());
    (server, url, peer)
}

/// Dials these addresses for a host that does not exist.
fn dialling(addresses: [SocketAddr; 2]) -> Config {
    config_for("ws://exchange.example").on_dial(move |plan| {
        plan.set_addresses(addresses);
        Ok(())
    })
}

/// What a dial hook does that takes too long.
fn wait_past(deadline: Instant) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (_hold, never) = crossbeam_channel::bounded::<()>(0);
    let waited = never.recv_deadline(deadline + ms(100));
    assert!(waited.is_err());
    Ok(())
}

fn refusal(error: &Error) -> &Refusal {
    match error {
        Error::Refused(refusal) => refusal,
        other => panic!("not refused but {other:?}"),
    }
}

fn refused_by(error: &Error) -> String {
    match error {
        Error::Connect { peer, source } if source.kind() == io::ErrorKind::ConnectionRefused => peer.to_string(),
        other => panic!("not refused but {other:?}"),
    }
}

fn timed_out(error: &Error) -> (Phase, Duration) {
    match error {
        Error::DialTimeout { phase, after } => (*phase, *after),
        other => panic!("no timeout but {other:?}"),
    }
}

/// Says on the terminal that a test did not run.
fn skip(why: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("skipped: {why}\n").as_bytes());
}
