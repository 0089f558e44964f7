//! The test kit against a client that is not ours: every fault shows on the wire.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};
use zen_websocket::testkit::{Captured, Certificate, ClientMessage, Frame, Matcher, MockServer, Peer, Script};

// ---- echo and the handles ----

#[test]
fn plain_server_echoes_text_and_binary() {
    let server = MockServer::start().unwrap();
    let mut client = connect(&server);
    let long = "x".repeat(100_000);
    for message in [Message::text("hello"), Message::text(""), Message::text(long), Message::binary(vec![7; 70_000])] {
        client.send(message.clone()).unwrap();
        assert_eq!(client.read().unwrap(), message);
    }
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn burst_is_echoed_in_order() {
    let server = MockServer::start().unwrap();
    let mut client = connect(&server);
    for number in 0..1_000 {
        client.write(Message::text(number.to_string())).unwrap();
    }
    client.flush().unwrap();
    for number in 0..1_000 {
        assert_eq!(client.read().unwrap(), Message::text(number.to_string()));
    }
}

#[test]
fn pings_are_answered_with_their_payload() {
    let server = MockServer::start().unwrap();
    let mut client = connect(&server);
    client.send(Message::Ping("are you there".into())).unwrap();
    assert_eq!(client.read().unwrap(), Message::Pong("are you there".into()));
}

#[test]
fn client_close_is_answered_and_the_stream_ended() {
    let server = MockServer::start().unwrap();
    let mut client = connect(&server);
    let peer = server.accept(SEC).unwrap();
    client.close(Some(CloseFrame { code: CloseCode::Library(4001), reason: "bye".into() })).unwrap();
    assert!(matches!(client.read().unwrap(), Message::Close(Some(frame)) if u16::from(frame.code) == 4001));
    assert!(matches!(client.read(), Err(tungstenite::Error::ConnectionClosed)));
    drop(client);
    assert!(peer.wait_closed(SEC));
    assert_eq!(peer.client_close(), Some((4001, "bye".to_owned())));
    assert!(server.peers().is_empty());
}

#[test]
fn close_without_code_counts_as_1005() {
    let server = MockServer::start().unwrap();
    let mut client = connect(&server);
    client.close(None).unwrap();
    server.expect(Matcher::when(|it| it.message == close(1005, "")), SEC).unwrap();
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn peer_is_found_as_soon_as_the_client_is_connected() {
    let server = MockServer::start().unwrap();
    for count in 1..50 {
        let client = connect(&server);
        assert_eq!(server.peers().len(), count);
        std::mem::forget(client);
    }
    assert_eq!(server.accepted(), 49);
    assert_eq!(server.accept_times().len(), 49);
}

#[test]
fn request_is_kept_as_it_came() {
    let server = MockServer::start().unwrap();
    let stream = dial(&server);
    let request = tungstenite::ClientRequestBuilder::new("ws://exchange.example/ws?token=a&b=c".parse().unwrap())
        .with_header("X-Key", "Value");
    let (_client, _) = tungstenite::client(request, stream).unwrap();
    let peer = server.accept(SEC).unwrap();
    let request = peer.request();
    assert_eq!((request.path(), request.query()), ("/ws", "token=a&b=c"));
    assert_eq!((request.header("x-KEY"), request.header("x-none")), (Some("Value"), None));
    assert_eq!(request.header("host"), Some("exchange.example"));
    assert_eq!(server.requests().len(), 1);
    assert_eq!((request.alpn(), request.server_name(), request.tls_resumed()), (None, None, false));
}

#[test]
fn commands_of_one_peer_keep_their_order() {
    let (server, mut client, peer) = session(Script::new());
    for number in 0..500 {
        peer.send_text(&number.to_string());
    }
    peer.close(1012, "restart");
    for number in 0..500 {
        assert_eq!(client.read().unwrap(), Message::text(number.to_string()));
    }
    assert!(matches!(client.read().unwrap(), Message::Close(Some(frame)) if u16::from(frame.code) == 1012));
    assert!(matches!(client.read(), Err(tungstenite::Error::ConnectionClosed)));
    drop(client);
    assert!(peer.wait_closed(SEC));
    peer.send_text("nobody is there");
    assert!(server.peers().is_empty());
}

#[test]
fn broadcast_reaches_every_client() {
    let server = MockServer::start().unwrap();
    assert_eq!(server.broadcast_text("nobody"), 0);
    let mut clients = [connect(&server), connect(&server)];
    assert_eq!(server.broadcast_text("tick"), 2);
    for client in &mut clients {
        assert_eq!(client.read().unwrap(), Message::text("tick"));
    }
    assert_eq!(server.close_all(1001, "maintenance"), 2);
    for client in &mut clients {
        assert!(client.read().unwrap().is_close());
    }
}

#[test]
fn fragments_arrive_as_one_message_around_a_ping() {
    let (_server, mut client, peer) = session(Script::new());
    peer.send_fragments(&["frag", "men", "ted"]);
    assert_eq!(client.read().unwrap(), Message::text("fragmented"));
    peer.send_frame(&Frame::binary([1]).unfinished());
    peer.ping("p");
    peer.send_frame(&Frame::continuation([2]));
    assert_eq!(client.read().unwrap(), Message::Ping("p".into()));
    assert_eq!(client.read().unwrap(), Message::binary(vec![1, 2]));
    peer.send_binary(&[3]);
    assert_eq!(client.read().unwrap(), Message::binary(vec![3]));
}

#[test]
fn client_fragments_are_joined() {
    let (server, mut client, _peer) = session(Script::new());
    let stream = client.get_mut();
    stream.write_all(&Frame::text("to").unfinished().masked([1, 2, 3, 4]).to_bytes()).unwrap();
    stream.write_all(&Frame::ping("p").masked([9; 4]).to_bytes()).unwrap();
    stream.write_all(&Frame::continuation("gether").masked([4, 3, 2, 1]).to_bytes()).unwrap();
    assert_eq!(client.read().unwrap(), Message::Pong("p".into()));
    assert_eq!(client.read().unwrap(), Message::text("together"));
    server.expect("together", SEC).unwrap();
}

#[test]
fn frames_cut_anywhere_are_understood() {
    let (_server, mut client, _peer) = session(Script::new());
    for byte in Frame::text("piecemeal").masked([1, 2, 3, 4]).to_bytes() {
        client.get_mut().write_all(&[byte]).unwrap();
    }
    assert_eq!(client.read().unwrap(), Message::text("piecemeal"));
}

#[test]
fn wrong_frames_leave_as_told() {
    let (_server, mut client, peer) = session(Script::new());
    let frames = [
        Frame::text("a").rsv(0b100),
        Frame::new(11, "b"),
        Frame::ping("c").unfinished(),
        Frame::text("d").masked([1, 1, 1, 1]),
        Frame::text("e").long_length(),
        Frame::binary("f").announcing(1 << 33),
    ];
    let mut expected = Vec::new();
    for frame in &frames {
        peer.send_frame(frame);
        expected.extend(frame.to_bytes());
    }
    peer.close_raw([3]);
    expected.extend([0x88, 1, 3]);
    let mut bytes = vec![0; expected.len()];
    client.get_mut().read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
}

#[test]
fn violations_of_the_client_are_noted() {
    let (server, mut client, peer) = session(Script::new());
    let key = [1, 2, 3, 4];
    let frames = [
        Frame::text("unmasked"),
        Frame::text("rsv").rsv(1).masked(key),
        Frame::text("long").long_length().masked(key),
        Frame::new(3, "opcode").masked(key),
        Frame::continuation("nothing").masked(key),
        Frame::text([0xff]).masked(key),
        Frame::new(9, [0; 126]).masked(key),
        Frame::close(1006, "").masked(key),
        Frame::text("after").masked(key),
    ];
    let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
    client.get_mut().write_all(&bytes).unwrap();
    peer.expect("after", SEC).unwrap();
    let expected = [
        "an unmasked frame",
        "a frame with reserved bits",
        "a frame whose length took more bytes than it needs",
        "a frame of an unknown opcode",
        "a continuation of nothing",
        "a text that is not UTF-8",
        "a control frame of more than 125 bytes",
        "a close frame without a code that may be sent",
        "a frame after the close frame",
    ];
    assert_eq!(server.violations(), expected.map(|it| format!("connection 0: {it}")));
}

#[test]
fn bad_request_is_refused_and_noted() {
    let server = MockServer::start().unwrap();
    let answer = exchange(&server, "POST / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(server.violations().contains(&"connection 0: the request is not a GET".to_owned()));
    let answer = exchange(&server, "not http at all\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(server.wait_connections(0, SEC));
}

// ---- capturing and expecting ----

#[test]
fn expect_finds_each_kind_of_matcher() {
    let server = MockServer::start().unwrap();
    let mut client = connect(&server);
    client.send(Message::text("exact")).unwrap();
    client.send(Message::text(r#"{"method":"subscribe","params":{"channels":["a","b"],"depth":1}}"#)).unwrap();
    client.send(Message::binary(vec![1, 2])).unwrap();
    client.send(Message::Ping("p".into())).unwrap();
    server.expect("exact", SEC).unwrap();
    server.expect(Matcher::json(json!({ "params": { "channels": ["a", "b"] } })), SEC).unwrap();
    server.expect(Matcher::when(|it| it.message == ClientMessage::Binary(vec![1, 2])), SEC).unwrap();
    let last = server.expect(Matcher::any(), SEC).unwrap();
    assert_eq!(last.message, ClientMessage::Ping(b"p".to_vec()));
    client.send(Message::text("order 42")).unwrap();
    assert_eq!(server.expect(Matcher::regex(r"^order \d+$"), SEC).unwrap().text(), Some("order 42"));
    assert!(server.expect(Matcher::json(json!({ "params": { "channels": ["a"] } })), Duration::ZERO).is_err());
}

#[test]
fn each_message_is_expected_once() {
    let server = MockServer::start().unwrap();
    let mut client = connect(&server);
    client.send(Message::text("again")).unwrap();
    client.send(Message::text("again")).unwrap();
    server.expect("again", SEC).unwrap();
    server.expect("again", SEC).unwrap();
    assert!(server.expect("again", Duration::ZERO).is_err());
    assert_eq!(server.captured().len(), 2);
}

#[test]
fn expect_waits_for_what_comes_later() {
    let server = MockServer::start().unwrap();
    let mut client = connect(&server);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.expect("late", SEC));
        client.send(Message::text("early")).unwrap();
        client.send(Message::text("late")).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap().text(), Some("late"));
    });
}

#[test]
fn failed_expectation_says_what_came_instead() {
    let (server, mut client, peer) = session(Script::new());
    client.send(Message::text("something else")).unwrap();
    client.read().unwrap();
    let error = server.expect("wanted", Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.captured()[0].text(), Some("something else"));
    let text = "no text \"wanted\" came in time: 1 other messages\n  peer 0: Text(\"something else\")";
    assert_eq!(error.to_string(), text);
    drop(client);
    let error = peer.expect("wanted", LONG).unwrap_err();
    assert!(error.to_string().contains("before the connection was over"), "{error}");
}

#[test]
fn peers_capture_apart() {
    let server = MockServer::start().unwrap();
    let (mut first, mut second) = (connect(&server), connect(&server));
    let [one, two] = [server.accept(SEC).unwrap(), server.accept(SEC).unwrap()];
    first.send(Message::text("one")).unwrap();
    second.send(Message::text("two")).unwrap();
    two.expect("two", SEC).unwrap();
    one.expect("one", SEC).unwrap();
    let texts = |peer: &Peer| peer.captured().iter().filter_map(|it| it.text().map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!((texts(&one), texts(&two)), (vec!["one".to_owned()], vec!["two".to_owned()]));
}

#[test]
fn only_the_newest_messages_are_kept() {
    let server = MockServer::builder().captured_max(3).start().unwrap();
    let mut client = connect(&server);
    for number in 0..10 {
        client.send(Message::text(number.to_string())).unwrap();
        client.read().unwrap();
    }
    let texts: Vec<_> = server.captured().iter().filter_map(Captured::text).map(str::to_owned).collect();
    assert_eq!(texts, ["7", "8", "9"]);
    assert_eq!(server.captured_dropped(), 7);
    assert!(server.expect("0", Duration::ZERO).is_err());
    server.expect("9", Duration::ZERO).unwrap();
}

#[test]
fn capturing_can_be_off() {
    let server = MockServer::builder().captured_max(0).start().unwrap();
    let mut client = connect(&server);
    client.send(Message::text("a")).unwrap();
    client.read().unwrap();
    assert_eq!(server.captured(), []);
}

// ---- the life of the server ----

#[test]
fn stopping_ends_everything_and_may_be_repeated() {
    let (server, mut client, peer) = session(Script::new());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.accept(LONG));
        server.stop();
        assert!(waiting.join().unwrap().is_none());
    });
    server.stop();
    assert!(peer.wait_closed(SEC));
    assert!(client.read().is_err());
    assert!(TcpStream::connect(server.address()).is_err());
    assert!(server.expect("anything", LONG).is_err());
    assert_eq!(server.connections(), 0);
}

#[test]
fn paused_server_refuses_until_resumed_on_the_same_port() {
    let server = MockServer::start().unwrap();
    let mut before = connect(&server);
    server.pause().unwrap();
    server.pause().unwrap();
    assert_eq!(TcpStream::connect(server.address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    before.send(Message::text("still here")).unwrap();
    assert_eq!(before.read().unwrap(), Message::text("still here"));
    server.resume().unwrap();
    server.resume().unwrap();
    let mut after = connect(&server);
    after.send(Message::text("back")).unwrap();
    assert_eq!(after.read().unwrap(), Message::text("back"));
}

#[test]
fn kill_all_resets_the_upgraded_and_the_others() {
    let server = MockServer::start().unwrap();
    let mut upgraded = connect(&server);
    let mut raw = dial(&server);
    assert!(server.wait_accepted(2, SEC));
    server.kill_all();
    let mut fresh = connect(&server);
    assert!(is_reset(&raw.read(&mut [0]).unwrap_err()));
    assert!(is_reset(&upgraded.get_mut().read(&mut [0]).unwrap_err()));
    fresh.send(Message::text("spared")).unwrap();
    assert_eq!(fresh.read().unwrap(), Message::text("spared"));
    assert!(server.wait_connections(1, SEC));
}

#[test]
fn scripts_in_the_queue_go_first() {
    let server = MockServer::start().unwrap();
    server.script_next(Script::new().status(429).header("Retry-After", "3"));
    server.script_next(Script::new().on_open(|peer| peer.send_text("second")));
    let response = refusal(&server);
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "3");
    assert_eq!(connect(&server).read().unwrap(), Message::text("second"));
    server.script(Script::new().on_open(|peer| peer.send_text("usual")));
    assert_eq!(connect(&server).read().unwrap(), Message::text("usual"));
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn ipv6_is_served() {
    let Ok(server) = MockServer::builder().bind((Ipv6Addr::LOCALHOST, 0)).start() else {
        return; // A machine without IPv6.
    };
    assert!(server.url().starts_with("ws://[::1]:"));
    let mut client = connect(&server);
    client.send(Message::text("six")).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("six"));
}

#[test]
fn thousands_of_connections_are_held() {
    let server = MockServer::builder().captured_max(0).start().unwrap();
    let mut clients: Vec<_> = (0..MANY).map(|_| connect(&server)).collect();
    assert_eq!(server.peers().len(), MANY);
    assert_eq!(server.broadcast_text("tick"), MANY);
    for client in &mut clients {
        assert_eq!(client.read().unwrap(), Message::text("tick"));
    }
    drop(clients);
    assert!(server.wait_connections(0, LONG));
}

#[test]
fn panicking_closure_is_noted_and_survived() {
    let (server, mut client, _peer) = session(Script::new().on_text(|_, text| assert_eq!(text, "good")));
    client.send(Message::text("bad")).unwrap();
    client.send(Message::Ping("p".into())).unwrap();
    assert_eq!(client.read().unwrap(), Message::Pong("p".into()));
    assert_eq!(server.violations(), ["connection 0: the script's closure panicked"]);
}

// ---- faults before the upgrade ----

#[test]
fn accepted_connection_may_be_reset_at_once() {
    let server = scripted(Script::new().reset_on_accept());
    let mut stream = dial(&server);
    assert!(server.wait_accepted(1, SEC));
    assert!(is_reset(&stream.read(&mut [0]).unwrap_err()));
    assert!(server.wait_connections(0, SEC));
}

#[test]
fn mute_server_accepts_and_says_nothing() {
    let server = scripted(Script::new().mute().hang_up_after(Duration::from_millis(30)));
    let since = Instant::now();
    assert_eq!(exchange(&server, REQUEST), "");
    assert!(since.elapsed() >= Duration::from_millis(30));
    assert!(server.wait_connections(0, SEC));
    assert!(server.requests().is_empty());
}

#[test]
fn status_with_headers_and_body_is_answered() {
    let server = scripted(Script::new().status(503).header("X-Why", "maintenance").body("back soon"));
    let answer = exchange(&server, REQUEST);
    let expected =
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\nConnection: close\r\nX-Why: maintenance\r\n\r\nback soon";
    assert_eq!(answer, expected);
    assert!(server.peers().is_empty());
}

#[test]
fn accept_key_may_be_wrong() {
    let server = scripted(Script::new().wrong_accept_key());
    let error = tungstenite::client(server.url(), dial(&server)).unwrap_err().to_string();
    assert!(error.contains("Sec-WebSocket-Accept"), "{error}");
}

#[test]
fn usual_headers_may_be_missing_or_replaced() {
    let script = Script::new().without_header("upgrade").header("CONNECTION", "keep-alive");
    let answer = exchange(&scripted(script.hang_up_after(Duration::ZERO)), REQUEST);
    assert!(!answer.contains("Upgrade:"), "{answer}");
    assert_eq!(answer.to_lowercase().matches("connection:").count(), 1);
    assert!(answer.contains("CONNECTION: keep-alive\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn raw_answer_leaves_as_it_is() {
    let server = scripted(Script::new().raw_answer("HTTP/1.1 101 Swi").hang_up_after(Duration::ZERO));
    assert_eq!(exchange(&server, REQUEST), "HTTP/1.1 101 Swi");
}

#[test]
fn endless_headers_stop_only_with_the_client() {
    let server = scripted(Script::new().endless_headers());
    let mut stream = dial(&server);
    stream.write_all(REQUEST.as_bytes()).unwrap();
    let mut head = vec![0; 4_000_000];
    stream.read_exact(&mut head).unwrap();
    assert!(!head.windows(4).any(|it| it == b"\r\n\r\n"));
    // Others are served meanwhile.
    server.script(Script::new());
    connect(&server);
    drop(stream);
    assert!(server.wait_connections(0, SEC));
}

#[test]
fn subprotocol_is_selected() {
    let server = scripted(Script::new().subprotocol("v2.exchange"));
    let request = tungstenite::ClientRequestBuilder::new(server.url().parse().unwrap()).with_sub_protocol("v2.exchange");
    let (_, response) = tungstenite::client(request, dial(&server)).unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "v2.exchange");
}

#[test]
fn glued_bytes_come_with_the_101() {
    let glue = Frame::text("glued").to_bytes();
    let server = scripted(Script::new().glue(glue.clone()).on_open(|peer| peer.send_text("opened")));
    let mut stream = dial(&server);
    stream.write_all(REQUEST.as_bytes()).unwrap();
    let mut bytes = vec![0; 4096];
    let size = stream.read(&mut bytes).unwrap();
    let expected = [glue, Frame::text("opened").to_bytes()].concat();
    assert!(bytes[..size].ends_with(&expected));
}

#[test]
fn dribble_cuts_everything_small() {
    let server = scripted(Script::new().dribble(9, Duration::from_millis(1)));
    let mut stream = dial(&server);
    let since = Instant::now();
    stream.write_all(REQUEST.as_bytes()).unwrap();
    let mut bytes = [0; 129];
    stream.read_exact(&mut bytes).unwrap();
    assert!(bytes.ends_with(b"\r\n\r\n"));
    // 129 bytes are fifteen pieces, with fourteen intervals between them.
    assert!(since.elapsed() >= Duration::from_millis(14));
}

#[test]
fn delay_postpones_and_keeps_the_order() {
    let delay = Duration::from_millis(40);
    let server = scripted(Script::new().delay(delay));
    let since = Instant::now();
    let mut client = connect(&server);
    assert!(since.elapsed() >= delay);
    let since = Instant::now();
    client.send(Message::text("one")).unwrap();
    client.send(Message::text("two")).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("one"));
    assert!(since.elapsed() >= delay);
    assert_eq!(client.read().unwrap(), Message::text("two"));
}

// ---- faults after the upgrade ----

#[test]
fn ignoring_server_answers_only_control_frames() {
    let (server, mut client, _peer) = session(Script::new().ignore());
    client.send(Message::text("no echo")).unwrap();
    client.send(Message::Ping("p".into())).unwrap();
    assert_eq!(client.read().unwrap(), Message::Pong("p".into()));
    server.expect("no echo", SEC).unwrap();
}

#[test]
fn silent_server_answers_nothing_at_all() {
    let (server, mut client, peer) = session(Script::new().silent().on_text(|peer, _| peer.send_text("never")));
    client.send(Message::Ping("p".into())).unwrap();
    client.send(Message::text("hello")).unwrap();
    client.close(None).unwrap();
    server.expect(Matcher::when(|it| it.message == close(1005, "")), SEC).unwrap();
    assert!(peer.is_open());
    peer.send_text("by hand");
    assert_eq!(client.read().unwrap(), Message::text("by hand"));
}

#[test]
fn silence_can_begin_and_end_later() {
    let (_server, mut client, peer) = session(Script::new());
    peer.silence(true);
    peer.send_text("silent");
    assert_eq!(client.read().unwrap(), Message::text("silent"));
    client.send(Message::text("unanswered")).unwrap();
    peer.expect("unanswered", SEC).unwrap();
    peer.silence(false);
    peer.send_text("speaking");
    assert_eq!(client.read().unwrap(), Message::text("speaking"));
    client.send(Message::text("answered")).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("answered"));
}

#[test]
fn closures_answer_in_the_place_of_the_echo() {
    let script = Script::new()
        .on_text(|peer, text| peer.send_text(&text.to_uppercase()))
        .on_binary(|peer, bytes| peer.send_binary(&[bytes, bytes].concat()));
    let (_server, mut client, _peer) = session(script);
    client.send(Message::text("abc")).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("ABC"));
    client.send(Message::binary(vec![1])).unwrap();
    assert_eq!(client.read().unwrap(), Message::binary(vec![1, 1]));
}

#[test]
fn server_closes_after_a_while() {
    let after = Duration::from_millis(20);
    let since = Instant::now();
    let (_server, mut client, peer) = session(Script::new().close_after(after, 1001, "going away"));
    let frame = CloseFrame { code: CloseCode::Away, reason: "going away".into() };
    assert_eq!(client.read().unwrap(), Message::Close(Some(frame)));
    assert!(since.elapsed() >= after);
    assert!(matches!(client.read(), Err(tungstenite::Error::ConnectionClosed)));
    drop(client);
    assert!(peer.wait_closed(SEC));
    assert_eq!(peer.client_close().map(|(code, _)| code), Some(1001));
}

#[test]
fn server_resets_after_a_while() {
    let (_server, mut client, peer) = session(Script::new().reset_after(Duration::from_millis(20)));
    assert!(is_reset(&client.get_mut().read(&mut [0]).unwrap_err()));
    assert!(peer.wait_closed(SEC));
}

#[test]
fn pongs_may_be_withheld_or_late() {
    let (server, mut client, _peer) = session(Script::new().withhold_pongs());
    client.send(Message::Ping("p".into())).unwrap();
    client.send(Message::text("echo")).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("echo"));

    server.script(Script::new().delay_pongs(Duration::from_millis(30)));
    let mut client = connect(&server);
    let since = Instant::now();
    client.send(Message::Ping("p".into())).unwrap();
    client.send(Message::text("echo")).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("echo"));
    assert_eq!(client.read().unwrap(), Message::Pong("p".into()));
    assert!(since.elapsed() >= Duration::from_millis(30));
}

#[test]
fn reader_that_stops_fills_the_clients_socket() {
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().stop_reading().ignore()).start().unwrap();
    let client = connect(&server);
    let peer = server.accept(SEC).unwrap();
    assert!(fill(client.get_ref(), 50_000_000) < 50_000_000);
    assert_eq!(peer.captured(), []);
    peer.resume_reading();
    peer.expect(Matcher::any(), SEC).unwrap();
}

#[test]
fn close_may_stay_unanswered() {
    let (_server, mut client, peer) = session(Script::new().never_answer_close());
    client.close(None).unwrap();
    peer.expect(Matcher::when(|it| it.message == close(1005, "")), SEC).unwrap();
    client.get_mut().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    assert!(is_timeout(&client.get_mut().read(&mut [0]).unwrap_err()));
    assert!(peer.is_open());
}

#[test]
fn reset_shows_as_reset() {
    let (_server, mut client, peer) = session(Script::new());
    peer.reset();
    assert!(is_reset(&client.get_mut().read(&mut [0]).unwrap_err()));
    assert!(peer.wait_closed(SEC));
}

#[test]
fn hang_up_ends_the_stream_after_what_was_queued() {
    let (_server, mut client, peer) = session(Script::new());
    peer.send_text("last words");
    peer.hang_up();
    let mut bytes = Vec::new();
    client.get_mut().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, Frame::text("last words").to_bytes());
    assert!(peer.is_open());
    drop(client);
    assert!(peer.wait_closed(SEC));
}

#[test]
fn frozen_peer_is_half_open_until_thawed() {
    let (_server, mut client, peer) = session(Script::new());
    peer.freeze();
    peer.send_text("queued");
    client.send(Message::text("unheard")).unwrap();
    client.get_mut().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    assert!(is_timeout(&client.get_mut().read(&mut [0]).unwrap_err()));
    assert!(peer.captured().is_empty() && peer.is_open());
    peer.thaw();
    client.get_mut().set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("queued"));
    assert_eq!(client.read().unwrap(), Message::text("unheard"));
}

#[test]
fn frozen_peer_notices_that_the_client_hangs_up() {
    let (_server, mut client, peer) = session(Script::new());
    peer.freeze();
    client.send(Message::text("last")).unwrap();
    drop(client);
    assert!(peer.wait_closed(SEC));
    assert_eq!(peer.captured()[0].text(), Some("last"));
}

#[test]
fn client_that_does_not_read_is_given_up_in_the_end() {
    let (server, _client, peer) = session(Script::new());
    for _ in 0..80 {
        peer.send_binary(&vec![0; 1024 * 1024]);
    }
    assert!(peer.wait_closed(LONG));
    assert_eq!(server.violations(), ["connection 0: the client leaves more than 64 MiB unread"]);
}

#[test]
fn echoes_wait_for_a_client_that_reads_late() {
    let (server, mut client, _peer) = session(Script::new());
    let whole = fill(client.get_ref(), 50_000_000);
    assert!(whole < 50_000_000, "the server read {whole} bytes and nobody read the echoes");
    for _ in 0..whole / FILLER {
        assert_eq!(client.read().unwrap().len(), FILLER - 8);
    }
    assert_eq!(server.violations(), [""; 0]);
}

// ---- TLS ----

#[test]
fn tls_server_echoes_and_settles_on_http_1() {
    let server = MockServer::builder().tls().alpn(&["h2", "http/1.1"]).start().unwrap();
    let config = trusting(&server);
    let mut client = connect_tls(&server, &config, "localhost").unwrap();
    let long = Message::binary(vec![5; 1_000_000]);
    client.send(long.clone()).unwrap();
    assert_eq!(client.read().unwrap(), long);
    let peer = server.accept(SEC).unwrap();
    assert_eq!(peer.request().alpn(), Some("http/1.1"));
    assert_eq!(peer.request().server_name(), Some("localhost"));
    client.close(None).unwrap();
    client.read().unwrap();
    // An orderly end: rustls would complain about a stream without close_notify.
    assert!(matches!(client.read(), Err(tungstenite::Error::ConnectionClosed)));
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn certificate_covers_the_local_addresses() {
    let server = MockServer::builder().tls().start().unwrap();
    let config = trusting(&server);
    for host in ["localhost", "127.0.0.1", "::1"] {
        connect_tls(&server, &config, host).unwrap();
    }
}

#[test]
fn tls_sessions_are_resumed() {
    let server = MockServer::builder().tls().start().unwrap();
    let config = trusting(&server);
    for resumed in [false, true] {
        let mut client = connect_tls(&server, &config, "localhost").unwrap();
        client.send(Message::text("echo")).unwrap();
        client.read().unwrap();
        assert_eq!(server.accept(SEC).unwrap().request().tls_resumed(), resumed);
    }
}

#[test]
fn bad_certificates_are_refused() {
    let cases = [
        (Certificate::Expired, "expired"),
        (Certificate::ForHost("other.example".to_owned()), "not valid for name"),
        (Certificate::SelfSigned, "UnknownIssuer"),
    ];
    for (certificate, cause) in cases {
        let server = MockServer::builder().certificate(certificate).start().unwrap();
        let error = connect_tls(&server, &trusting(&server), "localhost").unwrap_err();
        assert!(error.contains(cause), "{error}");
    }
    let [server, stranger] = [(); 2].map(|()| MockServer::builder().tls().start().unwrap());
    let error = connect_tls(&server, &trusting(&stranger), "localhost").unwrap_err();
    assert!(error.contains("BadSignature") || error.contains("UnknownIssuer"), "{error}");
}

#[test]
fn mute_after_tls_completes_the_handshake_only() {
    let server = MockServer::builder().tls().script(Script::new().mute_after_tls()).start().unwrap();
    let mut stream = tls_stream(&server, &trusting(&server), "localhost");
    stream.conn.complete_io(&mut stream.sock).unwrap();
    stream.write_all(REQUEST.as_bytes()).unwrap();
    stream.sock.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    assert!(is_timeout(&stream.read(&mut [0]).unwrap_err()));
    assert!(server.requests().is_empty());
}

#[test]
fn mute_server_shakes_no_hands() {
    let server = MockServer::builder().tls().script(Script::new().mute()).start().unwrap();
    let mut stream = tls_stream(&server, &trusting(&server), "localhost");
    stream.sock.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    assert!(is_timeout(&stream.conn.complete_io(&mut stream.sock).unwrap_err()));
}

#[test]
fn dribble_cuts_tls_records_too() {
    let script = Script::new().dribble(100, Duration::from_micros(10)).delay(Duration::from_millis(1));
    let server = MockServer::builder().tls().script(script).start().unwrap();
    let mut client = connect_tls(&server, &trusting(&server), "localhost").unwrap();
    client.send(Message::text("in pieces")).unwrap();
    assert_eq!(client.read().unwrap(), Message::text("in pieces"));
}

#[test]
fn hang_up_under_tls_lacks_the_close_notify() {
    let server = MockServer::builder().tls().start().unwrap();
    let mut client = connect_tls(&server, &trusting(&server), "localhost").unwrap();
    server.accept(SEC).unwrap().hang_up();
    assert_eq!(client.get_mut().read(&mut [0]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

// ---- helpers ----

fn scripted(script: Script) -> MockServer {
    MockServer::builder().script(script).start().unwrap()
}

fn session(script: Script) -> (MockServer, WebSocket<TcpStream>, Peer) {
    let server = scripted(script);
    let client = connect(&server);
    let peer = server.accept(SEC).unwrap();
    (server, client, peer)
}

fn dial(server: &MockServer) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn connect(server: &MockServer) -> WebSocket<TcpStream> {
    tungstenite::client(server.url(), dial(server)).unwrap().0
}

/// What the server answered, if not 101.
fn refusal(server: &MockServer) -> tungstenite::http::Response<Option<Vec<u8>>> {
    match tungstenite::client(server.url(), dial(server)).unwrap_err() {
        tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response)) => *response,
        other => panic!("{other}"),
    }
}

/// Sends this and returns everything up to the end of the stream.
fn exchange(server: &MockServer, request: &str) -> String {
    let mut stream = dial(server);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Writes binary messages until the socket takes nothing for a while, and returns how many bytes it took,
/// up to `max`.
fn fill(mut stream: &TcpStream, max: usize) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let frame = Frame::binary(vec![0; FILLER - 8]).masked([0; 4]).to_bytes();
    assert_eq!(frame.len(), FILLER);
    let mut sent = 0;
    while sent < max {
        // A short write goes on where it ended.
        match stream.write(&frame[sent % FILLER..]) {
            Ok(size) => sent += size,
            Err(error) if is_timeout(&error) => break,
            Err(error) => panic!("{error}"),
        }
    }
    sent
}

fn trusting(server: &MockServer) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(server.root_certificate().unwrap().to_vec().into()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn tls_stream(server: &MockServer, config: &Arc<ClientConfig>, host: &str) -> Tls {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), dial(server))
}

fn connect_tls(server: &MockServer, config: &Arc<ClientConfig>, host: &str) -> Result<WebSocket<Tls>, String> {
    let stream = tls_stream(server, config, host);
    let (client, _) = tungstenite::client(server.url(), stream).map_err(|error| error.to_string())?;
    Ok(client)
}

fn close(code: u16, reason: &str) -> ClientMessage {
    ClientMessage::Close { code, reason: reason.to_owned() }
}

fn is_reset(error: &io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionReset
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Long enough for any machine; nothing waits it out.
const SEC: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);
/// As many as the usual limit of file descriptors allows, both ends being in this process.
const MANY: usize = 400;
/// The size of a masked frame with a payload of less than 64 KiB.
const FILLER: usize = 50_000;
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
