//! What happens when a wire is lost, and how connections end.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use zen_websocket::internals::Session;
use zen_websocket::testkit::{ClientMessage, Matcher, MockServer, Script};
use zen_websocket::{
    Client, Config, Error, Event, Generation, Handler, Inbox, Phase, Received, Sent, State, connect, connect_with, open,
    open_with,
};

use self::common::*;

// ---- why a wire is lost ----

#[test]
fn code_and_reason_of_the_peer_are_surfaced_and_its_code_echoed() {
    for (code, reason) in
        [(1000, ""), (1001, "going away"), (1008, "policy"), (1012, "restart"), (4001, "Grüße ✓"), (1013, &"x".repeat(123))]
    {
        let (server, peer, _client, inbox) = session(Script::new());
        peer.close(code, reason);
        match until_lost(&inbox) {
            Error::PeerClosed { code: found, reason: why } => assert_eq!((found, &*why), (Some(code), reason)),
            other => panic!("{other:?}"),
        }
        assert!(peer.wait_closed(WAIT));
        assert_eq!(peer.client_close(), Some((code, String::new())));
        until_open(&inbox);
        assert_eq!(server.violations(), [""; 0]);
    }
}

#[test]
fn a_close_without_code_is_a_loss_like_others() {
    let (server, peer, client, inbox) = session(Script::new());
    peer.close_raw([]);
    let expected = ["lost, again in 0ns: the peer closed with code 1005", "dialing 1", "open"];
    assert_eq!(lines(&inbox, 3), expected);
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1005, String::new())));
    assert_eq!(client.generation().number(), 2);
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn a_stream_that_ends_without_a_close_frame_is_a_loss() {
    let (_server, peer, _client, inbox) = session(Script::new());
    peer.send_text("last words");
    peer.hang_up();
    let lost = "lost, again in 0ns: the peer closed the TCP connection without a close frame";
    assert_eq!(lines(&inbox, 4), ["text last words", lost, "dialing 1", "open"]);
}

#[test]
fn a_reset_is_a_loss() {
    let (_server, peer, _client, inbox) = session(Script::new());
    peer.reset();
    match until_lost(&inbox) {
        Error::Io(source) => assert_eq!(source.kind(), std::io::ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
    until_open(&inbox);
}

#[test]
fn what_came_before_a_close_frame_is_delivered_before_the_loss() {
    let (_server, peer, _client, inbox) = session_with(Script::new(), |config| config.reconnect(false));
    for number in 0..10_000 {
        peer.send_text(&number.to_string());
    }
    peer.close(1001, "");
    for number in 0..10_000 {
        assert_eq!(text(&inbox), number.to_string());
    }
    let cause = "the peer closed with code 1001";
    assert_eq!(lines_to_end(&inbox), [format!("lost, for good: {cause}"), format!("closed: {cause}")]);
}

// ---- liveness ----

#[test]
fn a_frozen_peer_is_noticed_within_interval_and_patience() {
    let (server, peer, client, inbox) =
        session_with(Script::new(), |config| config.heartbeat_interval(ms(100)).patience(ms(150)));
    peer.freeze();
    let frozen = Instant::now();
    match quickly(|| until_lost(&inbox)) {
        Error::Silent { quiet } => assert!(quiet >= ms(150) && quiet < QUICK, "{quiet:?}"),
        other => panic!("{other:?}"),
    }
    assert!(frozen.elapsed() >= ms(100), "{:?}", frozen.elapsed());
    assert_eq!(client.heartbeat().misses, 1);
    until_open(&inbox);
    client.send("to the next wire").unwrap();
    assert_eq!(text(&inbox), "to the next wire");
    assert_eq!(server.accepted(), 2);
}

#[test]
fn a_late_pong_is_a_pong() {
    let (_server, _peer, client, inbox) =
        session_with(Script::new().delay_pongs(ms(150)), |config| config.heartbeat_interval(ms(50)).patience(QUICK).strict(true));
    until(|| client.heartbeat().rtt.is_some());
    let heartbeat = client.heartbeat();
    assert!(heartbeat.rtt.unwrap() >= ms(145), "{:?}", heartbeat.rtt);
    assert_eq!((heartbeat.misses, inbox.len(), client.state()), (0, 0, State::Live));
}

#[test]
fn every_ping_has_a_payload_of_its_own() {
    let (server, _peer, _client, _inbox) = session_with(Script::new(), |config| config.heartbeat_interval(ms(20)));
    let mut payloads: Vec<_> = (0..5).map(|_| server.expect(a_ping(), WAIT).unwrap().message).collect();
    payloads.dedup();
    assert_eq!(payloads.len(), 5);
}

#[test]
fn data_excuses_a_missing_pong() {
    let (_server, _peer, client, inbox) =
        session_with(Script::new().withhold_pongs(), |config| config.heartbeat_interval(ms(50)).patience(ms(500)));
    until(|| {
        client.send("busy").unwrap();
        assert_eq!(text(&inbox), "busy");
        client.heartbeat().misses >= 3
    });
    assert_eq!((client.state(), client.generation().number()), (State::Live, 1));
}

#[test]
fn data_excuses_no_missing_pong_if_strict() {
    let (_server, _peer, client, inbox) = session_with(Script::new().withhold_pongs(), |config| {
        config.heartbeat_interval(ms(50)).patience(ms(100)).strict(true).reconnect(false)
    });
    let cause = loop {
        let _ = client.send("busy");
        match next(&inbox) {
            Event::Message(_) => {}
            Event::Lost { cause, .. } => break cause,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(cause, Error::Silent { .. }), "{cause:?}");
}

#[test]
fn pings_and_pongs_are_no_data() {
    let (_server, peer, _client, inbox) =
        session_with(Script::new(), |config| config.heartbeat_interval(ms(20)).data_silence(ms(300)).reconnect(false));
    peer.send_text("the only message");
    assert_eq!(text(&inbox), "the only message");
    match until_lost(&inbox) {
        Error::DataSilent { quiet } => assert!(quiet >= ms(300) && quiet < QUICK, "{quiet:?}"),
        other => panic!("{other:?}"),
    }
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1000, String::new())));
    assert!(peer.captured().iter().filter(|it| a_ping().matches(it)).count() > 3);
}

// ---- redial ----

#[test]
fn a_server_that_returns_on_its_port_is_found_again() {
    let (server, peer, client, inbox) = session(Script::new());
    server.pause().unwrap();
    peer.reset();
    until_lost(&inbox);
    for attempt in 1..=3 {
        assert_eq!(next_line(&inbox), format!("dialing {attempt}"));
        let failed = next_line(&inbox);
        assert!(
            failed.starts_with(&format!("dial {attempt} failed, again in {}ms: could not connect", 10 << attempt)),
            "{failed}"
        );
        assert_ne!(client.state(), State::Live);
        assert!(matches!(client.send("nobody hears this"), Err(Error::NotConnected)));
    }
    server.resume().unwrap();
    until_open(&inbox);
    client.send("back").unwrap();
    assert_eq!(text(&inbox), "back");
    let heard: Vec<_> = server.captured().into_iter().map(|it| it.message).collect();
    assert_eq!(heard, [ClientMessage::Text("back".to_owned())], "nothing is sent again by itself");
}

#[test]
fn the_ladder_starts_over_after_a_wire_that_proved_stable() {
    let server = serve(Script::new().close_after(ms(400), 1012, ""));
    let (_client, inbox) = connect(config(&server).stable_after(ms(20)).redial_attempts(1)).unwrap();
    let cycle = ["dialing 1", "open", "lost, again in 0ns: the peer closed with code 1012"];
    for _ in 0..3 {
        assert_eq!(lines(&inbox, 3), cycle);
    }
}

#[test]
fn a_server_that_accepts_and_closes_meets_growing_pauses() {
    let server = serve(Script::new().close_after(Duration::ZERO, 1013, ""));
    let (client, inbox) = connect(config(&server)).unwrap();
    let mut pauses = Vec::new();
    while pauses.len() < 8 {
        match next(&inbox) {
            Event::Lost { redial_in, .. } => pauses.push(redial_in.unwrap()),
            Event::Dialing { attempt } => assert_eq!(attempt as usize, pauses.len().max(1)),
            Event::Open => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pauses, [0, 20, 40, 80, 160, 200, 200, 200].map(ms));
    client.close().unwrap();
    let times = server.accept_times();
    assert!(times[7] - times[0] + SLACK >= ms(20 + 40 + 80 + 160 + 200 + 200), "{:?}", times[7] - times[0]);
}

#[test]
fn attempts_without_a_stable_wire_run_out() {
    let server = serve(Script::new().close_after(Duration::ZERO, 1013, ""));
    let (_client, inbox) = connect(config(&server).redial_attempts(3)).unwrap();
    match until_closed(&inbox) {
        Some(Error::Exhausted { attempts: 3, last }) => assert!(matches!(*last, Error::PeerClosed { code: Some(1013), .. })),
        other => panic!("{other:?}"),
    }
    assert_eq!(server.accepted(), 4);
}

#[test]
fn redials_that_are_never_answered_are_bounded_and_backed_off() {
    let server = serve(Script::new().mute());
    server.script_next(Script::new().close_after(ms(100), 1012, ""));
    let config = config(&server).connect_timeout(ms(200)).redial_attempts(3).base_delay(ms(100));
    let (client, inbox) = connect(config).unwrap();
    let timeout = "timed out after 200ms waiting for the upgrade";
    let (lines, times): (Vec<_>, Vec<_>) = inbox.iter().map(|it| (line(&it.event), it.at)).unzip();
    assert_eq!(
        lines,
        [
            "dialing 1".to_owned(),
            "open".to_owned(),
            "lost, again in 0ns: the peer closed with code 1012".to_owned(),
            "dialing 1".to_owned(),
            format!("dial 1 failed, again in 100ms: {timeout}"),
            "dialing 2".to_owned(),
            format!("dial 2 failed, again in 200ms: {timeout}"),
            "dialing 3".to_owned(),
            format!("dial 3 failed, for good: {timeout}"),
            format!("closed: gave up after 3 attempts: {timeout}"),
        ]
    );
    let took = times[8] - times[2];
    assert!(took + SLACK >= ms(200 + 100 + 200 + 200 + 200), "{took:?}");
    assert_eq!((server.accepted(), client.state()), (4, State::Closed));
}

#[test]
fn the_deadline_of_one_dial_does_not_end_the_next() {
    let server = serve(Script::new().mute());
    server.script_next(Script::new().close_after(ms(300), 1012, ""));
    let (_client, inbox) = connect(config(&server).connect_timeout(ms(400)).reconnect(true)).unwrap();
    until_open(&inbox);
    until_lost(&inbox);
    let dialing = inbox.recv_timeout(WAIT).unwrap();
    let failed = inbox.recv_timeout(WAIT).unwrap();
    assert_eq!(line(&dialing.event), "dialing 1");
    assert!(matches!(failed.event, Event::DialFailed { cause: Error::DialTimeout { phase: Phase::Upgrade, .. }, .. }));
    assert!(failed.at - dialing.at + SLACK >= ms(400), "{:?}", failed.at - dialing.at);
    assert_eq!(lines(&inbox, 1), ["dialing 2"]);
    assert!(server.wait_accepted(3, WAIT));
}

#[test]
fn without_reconnect_a_loss_closes() {
    for code in [1000, 1001, 1008] {
        let (server, peer, client, inbox) = session_with(Script::new(), |config| config.reconnect(false));
        peer.close(code, "");
        let cause = format!("the peer closed with code {code}");
        assert_eq!(lines_to_end(&inbox), [format!("lost, for good: {cause}"), format!("closed: {cause}")]);
        assert_eq!((client.state(), server.accepted()), (State::Closed, 1));
        assert!(matches!(client.wait(State::Open, WAIT), Err(Error::PeerClosed { .. })));
    }
    let (_server, peer, _client, inbox) = session_with(Script::new(), |config| config.reconnect(false));
    peer.reset();
    assert!(matches!(until_closed(&inbox), Some(Error::Io(_))));
}

#[test]
fn a_handler_survives_the_loss() {
    let server = MockServer::start().unwrap();
    let (send, seen) = mpsc::channel();
    let mut tag = 0;
    let handler = Handler::new().text(move |context, text| {
        tag += 1;
        send.send((tag, context.generation.number(), text.to_owned())).unwrap();
    });
    let client = connect_with(config(&server), handler).unwrap();
    for wire in 1..=3 {
        let peer = server.accept(WAIT).unwrap();
        peer.send_text("tick");
        assert_eq!(seen.recv_timeout(WAIT).unwrap(), (wire, wire, "tick".to_owned()));
        peer.reset();
    }
    client.close().unwrap();
}

#[test]
fn every_event_carries_its_connection_and_its_wire() {
    let (_server, peer, client, inbox) = session(Script::new());
    peer.send_text("one");
    peer.close(1012, "");
    let events: Vec<Received> = (0..4).map(|_| inbox.recv_timeout(WAIT).unwrap()).collect();
    let seen: Vec<_> = events.iter().map(|it| (it.generation.number(), line(&it.event))).collect();
    let lost = "lost, again in 0ns: the peer closed with code 1012";
    let expected = [(1, "text one"), (1, lost), (1, "dialing 1"), (2, "open")].map(|(wire, line)| (wire, line.to_owned()));
    assert_eq!(seen, expected);
    assert!(events.iter().all(|it| it.connection == client.id()));
    assert!(events.is_sorted_by_key(|it| it.at));
}

// ---- sending around a loss ----

#[test]
fn what_was_decided_on_one_wire_does_not_leave_on_the_next() {
    let (server, peer, client, inbox) = session(Script::new());
    let first = client.generation();
    assert_eq!(client.send_on(first, "in time").unwrap(), Sent::Written);
    assert_eq!(text(&inbox), "in time");
    peer.reset();
    until_open(&inbox);
    let second = client.generation();
    assert_eq!(second, first.next());
    for stale in [client.send_on(first, "late"), client.send_binary_on(first, b"late")] {
        assert!(matches!(stale, Err(Error::Stale { current }) if current == second), "{stale:?}");
    }
    client.send_on(second, "fresh").unwrap();
    assert_eq!(text(&inbox), "fresh");
    let texts: Vec<_> = server.captured().iter().filter_map(|it| it.text().map(str::to_owned)).collect();
    assert_eq!(texts, ["in time", "fresh"]);
}

#[test]
fn messages_that_did_not_leave_are_reported_before_the_loss() {
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().stop_reading()).start().unwrap();
    let (peer, client, inbox) = join(&server, config(&server).reconnect(false));
    fill(&client);
    peer.reset();
    let Event::Unsent { messages, bytes } = next(&inbox) else { panic!("not unsent") };
    assert!(bytes > 0 && bytes <= 64 << 10, "{bytes}");
    assert_eq!(messages, bytes.div_ceil(FILLER + 8), "frames of a header, a key and the payload");
    assert!(matches!(next(&inbox), Event::Lost { .. }));
    assert!(matches!(next(&inbox), Event::Closed { .. }));
    assert_eq!(client.unsent(), 0);
}

#[test]
fn nothing_unsent_is_sent_on_the_next_wire() {
    let server = MockServer::builder().receive_buffer(4096).start().unwrap();
    server.script_next(Script::new().stop_reading());
    let (peer, client, inbox) = join(&server, config(&server));
    fill(&client);
    peer.reset();
    until_open(&inbox);
    assert_eq!(client.unsent(), 0);
    client.send("fresh").unwrap();
    assert_eq!(text(&inbox), "fresh");
    let second = server.accept(WAIT).unwrap();
    let heard: Vec<_> = second.captured().into_iter().map(|it| it.message).collect();
    assert_eq!(heard, [ClientMessage::Text("fresh".to_owned())]);
}

// ---- reconnect ----

#[test]
fn reconnect_replaces_the_wire_and_keeps_config_and_handles() {
    let (server, first, client, inbox) = session_with(Script::new(), |config| config.header("X-Key", "4711"));
    client.reconnect().unwrap();
    assert_eq!(lines(&inbox, 3), ["lost, again in 0ns: replaced on request", "dialing 1", "open"]);
    let second = server.accept(WAIT).unwrap();
    assert_eq!(second.request().header("x-key"), Some("4711"));
    assert!(first.wait_closed(WAIT));
    assert_eq!(first.client_close(), Some((1000, String::new())));
    client.send("on the new wire").unwrap();
    second.expect("on the new wire", WAIT).unwrap();
}

#[test]
fn after_reconnect_the_state_is_not_open_until_the_new_wire_is() {
    let (_server, _peer, client, inbox) = session(Script::new());
    client.reconnect().unwrap();
    wait_open(&client);
    assert_eq!(client.generation().number(), 2);
    until_open(&inbox);
}

#[test]
fn a_wire_that_is_being_replaced_counts_as_open_at_no_moment() {
    let now = Instant::now();
    let first = Generation::default().next();
    let mut session: Session = Session::new(Arc::new(Config::new("ws://localhost")), 0, now);
    session.handle_opened(now, first, None);
    session.wish_reconnect();
    let wished = session.state();
    session.handle_wishes(now);
    let taken_up = session.state();
    session.handle_lost(now, Error::Replaced);
    let lost = session.state();
    session.handle_opened(now, first.next(), None);
    assert_eq!([wished, taken_up, lost, session.state()], [State::Connecting, State::Connecting, State::Connecting, State::Open]);
}

#[test]
fn reconnect_ends_the_pause_before_the_next_dial() {
    let (server, peer, client, inbox) = session_with(Script::new(), |config| config.base_delay(NEVER).max_backoff(NEVER));
    server.pause().unwrap();
    peer.reset();
    client.wait(State::Waiting, WAIT).unwrap();
    server.resume().unwrap();
    client.reconnect().unwrap();
    quickly(|| until_open(&inbox));
}

#[test]
fn a_storm_of_reconnects_ends_on_one_open_wire() {
    let (server, _peer, client, inbox) = session(Script::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..25).for_each(|_| client.reconnect().unwrap()));
        }
    });
    wait_open(&client);
    assert!(server.wait_connections(1, WAIT));
    client.send("calm").unwrap();
    while !matches!(next(&inbox), Event::Message(_)) {}
    assert_eq!((server.accepted(), server.violations()), (u64::from(client.generation().number()), vec![]));
}

#[test]
fn reconnect_works_where_reconnecting_is_off() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.reconnect(false));
    client.reconnect().unwrap();
    until_open(&inbox);
    assert_eq!(client.generation().number(), 2);
    drop(peer);
}

#[test]
fn reconnect_after_close_is_refused() {
    let (server, _peer, client, _inbox) = session(Script::new());
    client.close().unwrap();
    assert!(matches!(client.reconnect(), Err(Error::Closed)));
    assert!(matches!(client.send("x"), Err(Error::Closed)));
    let (again, _inbox) = connect(config(&server)).unwrap();
    assert_eq!(again.state(), State::Live);
}

// ---- close ----

#[test]
fn close_carries_code_and_reason_and_is_no_loss() {
    let (server, peer, client, inbox) = session(Script::new());
    client.close_with(4001, "für heute").unwrap();
    assert_eq!(lines_to_end(&inbox), ["closed"]);
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((4001, "für heute".to_owned())));
    assert!(matches!(client.wait(State::Open, WAIT), Err(Error::Closed)));
    client.close().unwrap();
    assert_eq!((server.accepted(), server.violations()), (1, vec![]));
}

#[test]
fn a_code_or_reason_that_may_not_be_sent_closes_nothing() {
    let (_server, _peer, client, inbox) = session(Script::new());
    for code in [0, 999, 1005, 1006, 1015, 5000] {
        assert!(matches!(client.close_with(code, ""), Err(Error::Config { setting: "code", .. })), "{code}");
    }
    assert!(matches!(client.close_with(1000, &"x".repeat(124)), Err(Error::Config { setting: "reason", .. })));
    client.send("still open").unwrap();
    assert_eq!(text(&inbox), "still open");
}

#[test]
fn messages_that_cross_the_close_are_delivered_and_later_sends_refused() {
    let (_server, peer, client, inbox) = session(Script::new().never_answer_close());
    client.start_close(1000, "").unwrap();
    peer.expect(Matcher::when(|it| matches!(it.message, ClientMessage::Close { .. })), WAIT).unwrap();
    assert!(matches!(client.send("too late"), Err(Error::Closed)));
    assert_eq!(client.state(), State::Closing);
    peer.send_text("crossed");
    peer.close(1000, "");
    assert_eq!(lines_to_end(&inbox), ["text crossed", "closed"]);
}

#[test]
fn close_waits_for_a_peer_that_never_answers_no_longer_than_its_limit() {
    let (_server, peer, client, inbox) = session_with(Script::new().never_answer_close(), |config| config.close_timeout(ms(200)));
    let began = Instant::now();
    quickly(|| client.close().unwrap());
    assert!(began.elapsed() >= ms(200), "{:?}", began.elapsed());
    assert_eq!(lines_to_end(&inbox), ["closed"]);
    assert!(peer.wait_closed(WAIT), "the socket is dropped");
}

#[test]
fn close_returns_though_the_peer_reads_nothing() {
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().stop_reading()).start().unwrap();
    let (_peer, client, inbox) = join(&server, config(&server).close_timeout(ms(100)));
    fill(&client);
    quickly(|| client.close().unwrap());
    assert!(matches!(next(&inbox), Event::Unsent { messages: 1.., .. }));
    assert_eq!(lines_to_end(&inbox), ["closed"]);
}

#[test]
fn what_was_accepted_leaves_before_the_close() {
    const SIZE: usize = 16 << 20;
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().ignore().stop_reading()).start().unwrap();
    let (peer, client, inbox) = join(&server, config(&server).close_timeout(WAIT));
    assert_eq!(client.send_binary(&vec![7; SIZE]).unwrap(), Sent::Buffered);
    client.start_close(1000, "").unwrap();
    peer.resume_reading();
    assert_eq!(lines_to_end(&inbox), ["closed"]);
    assert!(peer.wait_closed(WAIT));
    let heard: Vec<_> = peer.captured().into_iter().map(|it| it.message).collect();
    assert!(heard == [ClientMessage::Binary(vec![7; SIZE]), ClientMessage::Close { code: 1000, reason: String::new() }]);
}

#[test]
fn all_who_close_at_once_succeed_and_one_close_frame_leaves() {
    let (server, peer, client, inbox) = session(Script::new());
    let closers: Vec<_> = (4000..4004)
        .map(|code| {
            let client = client.clone();
            thread::spawn(move || client.close_with(code, ""))
        })
        .collect();
    closers.into_iter().for_each(|closer| closer.join().unwrap().unwrap());
    assert_eq!(lines_to_end(&inbox), ["closed"]);
    assert!(peer.wait_closed(WAIT));
    assert_eq!((peer.captured().len(), server.violations()), (1, vec![]));
}

#[test]
fn close_is_quick_in_every_step_of_a_dial() {
    let (release, blocked) = crossbeam_channel::bounded::<()>(0);
    let hook = move |_: &mut zen_websocket::DialPlan| {
        let _ = blocked.recv();
        Ok(())
    };
    let full = full_port();
    let plain = serve(Script::new().mute());
    let tls = MockServer::builder().tls().script(Script::new().mute()).start().unwrap();
    for (config, is_there) in [
        (config_for("ws://nowhere.invalid").on_dial(hook), None),
        (config_for(format!("ws://{}", full.address)), None),
        (config(&tls), Some(&tls)),
        (config(&plain), Some(&plain)),
    ] {
        let (client, inbox) = open(config.connect_timeout(NEVER)).unwrap();
        assert_eq!(next_line(&inbox), "dialing 1");
        if let Some(server) = is_there {
            assert!(server.wait_accepted(1, WAIT));
        }
        close_quickly(&client, &inbox);
    }
    drop(release);
}

#[test]
fn close_is_quick_in_the_pause_before_a_dial() {
    let (server, peer, client, inbox) = session_with(Script::new(), |config| config.base_delay(NEVER).max_backoff(NEVER));
    server.pause().unwrap();
    peer.reset();
    client.wait(State::Waiting, WAIT).unwrap();
    while !matches!(next(&inbox), Event::DialFailed { .. }) {}
    close_quickly(&client, &inbox);
}

#[test]
fn dropping_the_last_handle_closes() {
    let (server, peer, client, inbox) = session(Script::new());
    let clone = client.clone();
    drop(client);
    clone.send("one handle is left").unwrap();
    assert_eq!(text(&inbox), "one handle is left");
    drop(clone);
    assert_eq!(lines_to_end(&inbox), ["closed"]);
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1000, String::new())));
    assert_eq!((server.accepted(), server.violations()), (1, vec![]));
}

// ---- hooks ----

#[test]
fn the_hooks_run_once_for_every_wire() {
    let (send, calls) = mpsc::channel();
    let lost = send.clone();
    let set = |config: Config| {
        config
            .on_open(move |_, generation: Generation| send.send(format!("open {}", generation.number())).unwrap())
            .on_lost(move |_, generation, cause| lost.send(format!("lost {}: {cause}", generation.number())).unwrap())
    };
    let (server, peer, client, inbox) = session_with(Script::new(), set);
    peer.close(1012, "");
    until_open(&inbox);
    client.reconnect().unwrap();
    until_open(&inbox);
    server.pause().unwrap();
    client.close().unwrap();
    drop((client, inbox));
    let calls: Vec<_> = (0..6).map(|_| calls.recv_timeout(WAIT).unwrap()).collect();
    let expected = ["open 1", "lost 1: the peer closed with code 1012", "open 2", "lost 2: replaced on request", "open 3"];
    assert_eq!(calls[..5], expected);
    assert!(calls[5].starts_with("lost 3: "), "{}", calls[5]);
}

#[test]
fn the_hooks_keep_their_order_when_the_handler_panics() {
    let (send, calls) = mpsc::channel();
    let lost = send.clone();
    let server = MockServer::start().unwrap();
    let config = config(&server)
        .on_open(move |_, _| send.send("open".to_owned()).unwrap())
        .on_lost(move |_, _, cause| lost.send(format!("lost: {cause}")).unwrap());
    let handler = Handler::new().state(|_, event| assert!(!matches!(event, Event::Open), "boom"));
    let _ = open_with(config, handler).unwrap().wait(State::Closed, WAIT);
    let calls: Vec<_> = (0..2).map(|_| calls.recv_timeout(WAIT).unwrap()).collect();
    assert_eq!(calls, ["open", "lost: user code panicked: boom"]);
}

#[test]
fn hooks_that_panic_harm_nothing() {
    let calls = Arc::new(AtomicU32::new(0));
    let count = |calls: &Arc<AtomicU32>| {
        let calls = calls.clone();
        move || {
            calls.fetch_add(1, Ordering::SeqCst);
            panic!("a hook of the test");
        }
    };
    let (opened, lost) = (count(&calls), count(&calls));
    let (_server, peer, client, inbox) =
        session_with(Script::new(), |config| config.on_open(move |_, _| opened()).on_lost(move |_, _, _| lost()));
    peer.reset();
    until_open(&inbox);
    client.send("alive").unwrap();
    assert_eq!(text(&inbox), "alive");
    client.close().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 4);
}

// ---- helpers ----

const FILLER: usize = 4000;

/// How much later an event may be stamped than what it reports happened.
const SLACK: Duration = ms(100);

/// Sends until the peer, which does not read, has made the socket full.
fn fill(client: &Client) {
    let filler = "x".repeat(FILLER);
    loop {
        match client.send(&filler) {
            Ok(_) => {}
            Err(Error::Full { .. }) => return,
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn close_quickly(client: &Client, inbox: &Inbox) {
    quickly(|| client.close().unwrap());
    assert_eq!(client.state(), State::Closed);
    assert_eq!(lines_to_end(inbox), ["closed"]);
}

fn a_ping() -> Matcher {
    Matcher::when(|it| matches!(it.message, ClientMessage::Ping(_)))
}

#[test]
fn on_lost_tells_a_close_of_our_own_from_one_of_the_peer() {
    for script in [Script::new().never_answer_close(), Script::new()] {
        let (send, causes) = mpsc::channel();
        let set = |config: Config| config.close_timeout(ms(50)).on_lost(move |_, _, cause| send.send(cause.clone()).unwrap());
        let (_server, _peer, client, _inbox) = session_with(script, set);
        client.close().unwrap();
        let cause = causes.recv_timeout(WAIT).unwrap();
        assert!(matches!(cause, Error::Closed), "{cause:?}");
    }
}
