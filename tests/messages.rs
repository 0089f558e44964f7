//! Messages in both directions, and what a peer may not send.

mod common;

use std::collections::HashMap;
use std::sync::mpsc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use zen_websocket::testkit::{ClientMessage, Frame, Matcher, MockServer, Peer, Script};
use zen_websocket::{Config, Error, Event, Handler, Sent, State, connect_with};

use self::common::*;

// ---- there and back ----

#[test]
fn a_message_comes_back_once_and_close_ends_the_session() {
    let (server, peer, client, inbox) = session(Script::new());
    assert_eq!(client.state(), State::Live);
    assert_eq!(client.send("test message").unwrap(), Sent::Written);
    client.send("the next").unwrap();
    assert_eq!(lines(&inbox, 2), ["text test message", "text the next"]);
    client.close().unwrap();
    assert_eq!(client.state(), State::Closed);
    assert_eq!(lines_to_end(&inbox), ["closed"]);
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1000, String::new())));
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn a_burst_comes_back_in_order() {
    let (_server, _peer, client, inbox) = session_with(Script::new(), |config| config.unsent_max(1 << 20));
    for number in 0..1000 {
        client.send(&number.to_string()).unwrap();
    }
    for number in 0..1000 {
        assert_eq!(text(&inbox), number.to_string());
    }
}

#[test]
fn messages_of_every_size_come_back_intact() {
    let (server, _peer, client, inbox) = session(Script::new());
    for size in [0, 1, 125, 126, 127, 10_000, 65_535, 65_536, 1_000_000, 4 << 20] {
        let payload = "é!".repeat(size / 3 + 1)[..size - size % 3].to_owned();
        client.send(&payload).unwrap();
        assert!(text(&inbox) == payload, "text of {} bytes", payload.len());
        client.send_binary(&vec![0xff; size]).unwrap();
        assert!(binary(&next(&inbox)) == vec![0xff; size], "binary of {size} bytes");
    }
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn text_and_binary_are_told_apart_and_may_be_empty() {
    let (_server, _peer, client, inbox) = session(Script::new());
    client.send("").unwrap();
    client.send_binary(b"").unwrap();
    client.send_binary(b"text").unwrap();
    assert_eq!(lines(&inbox, 3), ["text ", "binary []", "binary [116, 101, 120, 116]"]);
}

#[test]
fn clients_of_one_server_get_their_own_messages_only() {
    let server = MockServer::start().unwrap();
    let (_, one, inbox_one) = join(&server, config(&server));
    let (_, other, inbox_other) = join(&server, config(&server));
    one.send("for one").unwrap();
    other.send("for the other").unwrap();
    assert_eq!((text(&inbox_one), text(&inbox_other)), ("for one".to_owned(), "for the other".to_owned()));
    assert!(inbox_one.is_empty() && inbox_other.is_empty());
    assert_ne!(one.id(), other.id());
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct Order {
    side: String,
    amount: u32,
}

#[test]
fn json_is_sent_and_read() {
    let (_server, peer, client, inbox) = session(Script::new());
    let order = Order { side: "buy".to_owned(), amount: 7 };
    client.send_json(&order).unwrap();
    peer.expect(Matcher::json(json!({ "side": "buy", "amount": 7 })), WAIT).unwrap();
    let Event::Message(message) = next(&inbox) else { panic!("no message") };
    assert_eq!(message.json::<Order>().unwrap(), order);
    assert!(matches!(message.json::<Vec<u8>>(), Err(Error::Json(_))));
    let unwritable = HashMap::from([(vec![1], 2)]);
    assert!(matches!(client.send_json(&unwritable), Err(Error::Json(_))));
    client.send("not JSON").unwrap();
    assert_eq!(text(&inbox), "not JSON");
}

#[test]
fn messages_are_counted() {
    let (_server, peer, client, inbox) = session(Script::new());
    peer.send_text("four");
    peer.send_binary(&[0; 200]);
    lines(&inbox, 2);
    client.send("echoed").unwrap();
    text(&inbox);
    peer.ping("");
    expect_pong(&peer);
    let metrics = client.metrics();
    assert_eq!((metrics.messages_in, metrics.bytes_in, metrics.dropped, metrics.discarded), (3, 6 + 204 + 8 + 2, 0, 0));
}

// ---- fragments ----

#[test]
fn fragments_are_joined_around_control_frames() {
    let (_server, peer, _client, inbox) = session(Script::new());
    peer.send_frame(&Frame::text("one ").unfinished());
    peer.ping("in between");
    peer.send_frame(&Frame::pong("nobody asked"));
    peer.send_frame(&Frame::continuation("").unfinished());
    peer.send_frame(&Frame::continuation("message"));
    peer.send_frame(&Frame::binary([1]).unfinished());
    peer.send_frame(&Frame::continuation([2]));
    assert_eq!(lines(&inbox, 2), ["text one message", "binary [1, 2]"]);
    assert_eq!(expect_pong(&peer), b"in between");
}

#[test]
fn a_character_may_be_cut_at_the_edge_of_a_frame() {
    let (_server, peer, _client, inbox) = session(Script::new());
    let bytes = "a€😀z".as_bytes();
    let (first, rest) = bytes.split_first().unwrap();
    let (last, middle) = rest.split_last().unwrap();
    peer.send_frame(&Frame::text([*first]).unfinished());
    for byte in middle {
        peer.send_frame(&Frame::continuation([*byte]).unfinished());
    }
    peer.send_frame(&Frame::continuation([*last]));
    assert_eq!(text(&inbox), "a€😀z");
}

#[test]
fn a_frame_that_comes_byte_by_byte_is_put_together() {
    let (_server, peer, _client, inbox) = session(Script::new());
    for byte in [Frame::text("x".repeat(300)).to_bytes(), Frame::ping("p").to_bytes()].concat() {
        peer.send_raw([byte]);
    }
    assert_eq!(text(&inbox), "x".repeat(300));
    assert_eq!(expect_pong(&peer), b"p");
}

// ---- control frames ----

#[test]
fn control_frames_never_reach_the_inbox() {
    let (_server, peer, _client, inbox) = session(Script::new());
    peer.ping("ping");
    peer.send_frame(&Frame::pong("pong"));
    peer.send_text("data");
    assert_eq!(text(&inbox), "data");
}

#[test]
fn each_ping_is_answered_once_with_its_payload() {
    let (server, peer, client, inbox) = session(Script::new());
    let payloads: Vec<Vec<u8>> = [0, 1, 125].map(|size| vec![7; size]).to_vec();
    payloads.iter().for_each(|payload| peer.ping(payload));
    peer.send_text("marker");
    text(&inbox);
    client.send("marker").unwrap();
    peer.expect("marker", WAIT).unwrap();
    let pongs: Vec<_> = peer.captured().into_iter().map(|it| it.message).collect();
    let expected = payloads.into_iter().map(ClientMessage::Pong);
    assert_eq!(pongs, expected.chain([ClientMessage::Text("marker".to_owned())]).collect::<Vec<_>>());
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn a_pong_nobody_asked_for_is_ignored() {
    let (_server, peer, client, inbox) = session(Script::new());
    for payload in ["", "\0\0\0\0\0\0\0\u{1}", "unsolicited"] {
        peer.send_frame(&Frame::pong(payload));
    }
    client.send("still here").unwrap();
    assert_eq!(text(&inbox), "still here");
    assert_eq!(client.heartbeat().rtt, None);
}

#[test]
fn a_ping_of_the_caller_measures_the_round_trip() {
    let (_server, peer, client, inbox) = session(Script::new());
    assert_eq!(client.heartbeat().rtt, None);
    client.ping().unwrap();
    client.send("behind the pong").unwrap();
    text(&inbox);
    let rtt = client.heartbeat().rtt.unwrap();
    assert!(!rtt.is_zero() && rtt < WAIT, "{rtt:?}");
    assert!(matches!(peer.captured()[0].message, ClientMessage::Ping(_)));
}

#[test]
fn a_million_pings_are_survived_in_bounded_memory() {
    let (server, peer, client, inbox) = session(Script::new().ignore());
    let chunk: Vec<u8> = (0..10_000_u32).flat_map(|number| Frame::ping(number.to_be_bytes()).to_bytes()).collect();
    for round in 0..100 {
        peer.send_raw(&*chunk);
        peer.send_text(&round.to_string());
    }
    peer.ping("the last");
    for round in 0..100 {
        assert_eq!(text(&inbox), round.to_string());
        assert!(client.unsent() < 1 << 20, "{}", client.unsent());
    }
    server.expect(Matcher::when(|it| it.message == ClientMessage::Pong(b"the last".to_vec())), WAIT).unwrap();
    client.send("alive").unwrap();
    server.expect("alive", WAIT).unwrap();
    assert_eq!((client.generation().number(), server.violations()), (1, vec![]));
}

// ---- what a peer may not send ----

#[test]
fn a_message_over_the_limit_ends_the_wire_and_the_next_one_works() {
    let (server, peer, client, inbox) = session_with(Script::new(), |config| config.max_message(1000));
    peer.send_binary(&[1; 1000]);
    assert_eq!(binary(&next(&inbox)), [1; 1000]);
    peer.send_binary(&vec![2; 8 << 20]);
    assert_eq!(next_line(&inbox), "lost, again in 0ns: the peer broke the protocol (1009): message over the size limit");
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1009, "message over the size limit".to_owned())));
    until_open(&inbox);
    client.send("still here").unwrap();
    assert_eq!(text(&inbox), "still here");
    assert_eq!(server.accepted(), 2);
}

#[test]
fn the_limit_counts_fragments_together_and_believes_the_header() {
    let limited = |config: Config| config.max_message(1000).reconnect(false);
    let too_big = "message over the size limit";
    let parts = [Frame::binary([0; 600]).unfinished().to_bytes(), Frame::continuation([0; 401]).to_bytes()];
    refuses_with(limited, parts.concat(), 1009, too_big);
    refuses_with(limited, Frame::binary("").announcing(1001).to_bytes(), 1009, too_big);
    refuses_with(limited, Frame::text("").announcing((1 << 63) - 1).to_bytes(), 1009, too_big);
}

#[test]
fn text_that_is_not_utf_8_ends_the_wire() {
    let cut = [Frame::text([0xe2, 0x82]).unfinished().to_bytes(), Frame::continuation([0x28]).to_bytes()].concat();
    let unended = [Frame::text([0xe2, 0x82]).unfinished().to_bytes(), Frame::continuation("").to_bytes()].concat();
    let early = Frame::text([b'x', 0xff]).announcing(1000).to_bytes();
    for bytes in [Frame::text([0xff]).to_bytes(), Frame::text([0xed, 0xa0, 0x80]).to_bytes(), cut, unended, early] {
        refuses(bytes, 1007, "text is not UTF-8");
    }
    refuses(Frame::new(8, [0x03, 0xe8, 0xff]).to_bytes(), 1007, "close reason is not UTF-8");
}

#[test]
fn reserved_bits_end_the_wire() {
    for bits in [0b100, 0b010, 0b001] {
        refuses(Frame::text("compressed?").rsv(bits).to_bytes(), 1002, "reserved bit set");
    }
}

#[test]
fn a_masked_frame_ends_the_wire() {
    refuses(Frame::text("hi").masked([1, 2, 3, 4]).to_bytes(), 1002, "masked frame from server");
}

#[test]
fn a_fragmented_or_long_control_frame_ends_the_wire() {
    refuses(Frame::ping("p").unfinished().to_bytes(), 1002, "fragmented control frame");
    refuses(Frame::ping([0; 126]).to_bytes(), 1002, "control frame longer than 125 bytes");
}

#[test]
fn an_unknown_opcode_ends_the_wire() {
    for opcode in [3, 7, 11, 15] {
        refuses(Frame::new(opcode, "").to_bytes(), 1002, "unknown opcode");
    }
}

#[test]
fn a_length_that_is_not_in_its_shortest_form_ends_the_wire() {
    refuses(Frame::text("hi").long_length().to_bytes(), 1002, "frame length not in its shortest form");
    refuses(vec![0x81, 126, 0, 2, b'h', b'i'], 1002, "frame length not in its shortest form");
}

#[test]
fn a_length_of_2_to_the_63_ends_the_wire() {
    refuses(Frame::binary("").announcing(1 << 63).to_bytes(), 1002, "frame length of 2^63 or more");
}

#[test]
fn fragments_out_of_order_end_the_wire() {
    refuses(Frame::continuation("of nothing").to_bytes(), 1002, "continuation of no message");
    let nested = [Frame::text("a").unfinished().to_bytes(), Frame::text("b").to_bytes()].concat();
    refuses(nested, 1002, "new message inside a fragmented one");
}

#[test]
fn a_close_frame_that_is_malformed_ends_the_wire_as_a_violation() {
    refuses(Frame::new(8, [3]).to_bytes(), 1002, "close frame of one byte");
    for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
        refuses(Frame::close(code, "").to_bytes(), 1002, "invalid close code");
    }
}

#[test]
fn what_came_whole_before_a_violation_is_delivered() {
    let (_server, peer, _client, inbox) = session_with(Script::new(), |config| config.reconnect(false));
    peer.send_raw([Frame::text("good").to_bytes(), Frame::text("bad").rsv(0b100).to_bytes()].concat());
    let broken = "the peer broke the protocol (1002): reserved bit set";
    assert_eq!(lines_to_end(&inbox), ["text good".to_owned(), format!("lost, for good: {broken}"), format!("closed: {broken}")]);
}

// ---- handlers ----

#[test]
fn a_handler_gets_every_kind_of_event_and_sends_from_inside() {
    let server = serve(Script::new().on_open(|peer| peer.send_text("welcome")).on_text(|_, _| ()));
    let (seen, events) = mpsc::channel();
    let [texts, binaries, states] = [seen.clone(), seen.clone(), seen];
    let handler = Handler::new()
        .text(move |context, text| {
            texts.send(format!("{} text {text}", context.generation.number())).unwrap();
            context.send(&format!("re: {text}")).unwrap();
            context.send_binary(&[1, 2]).unwrap();
        })
        .binary(move |context, bytes| {
            binaries.send(format!("{} binary {bytes:?}", context.generation.number())).unwrap();
            context.send_json(&json!({ "done": true })).unwrap();
        })
        .state(move |context, event| states.send(format!("{} {}", context.generation.number(), line(event))).unwrap());
    let client = connect_with(config(&server), handler).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.expect("re: welcome", WAIT).unwrap();
    peer.expect(Matcher::json(json!({ "done": true })), WAIT).unwrap();
    client.close().unwrap();
    let seen: Vec<_> = std::iter::from_fn(|| events.recv_timeout(WAIT).ok()).collect();
    assert_eq!(seen, ["0 dialing 1", "1 open", "1 text welcome", "1 binary [1, 2]", "1 closed"]);
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn a_login_sent_on_open_is_the_first_message_of_every_wire() {
    let server = serve(Script::new().ignore());
    let handler = Handler::new().state(|context, event| {
        if let Event::Open = event {
            assert_eq!(context.send("login").unwrap(), Sent::Written);
        }
    });
    let client = connect_with(config(&server), handler).unwrap();
    for wire in 1..=3 {
        let peer = server.accept(WAIT).unwrap();
        peer.expect("login", WAIT).unwrap();
        assert_eq!((peer.captured().len(), client.generation().number()), (1, wire));
        peer.reset();
    }
}

#[test]
fn a_handler_without_functions_discards_everything() {
    let server = serve(Script::new().on_open(|peer| peer.send_text("unheard")));
    let client = connect_with(config(&server), Handler::new()).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.ping("seen");
    assert_eq!(expect_pong(&peer), b"seen");
    assert_eq!((client.metrics().messages_in, client.state()), (1, State::Live));
}

#[test]
fn a_handler_is_told_of_a_violation_and_goes_on_with_the_next_wire() {
    let server = MockServer::start().unwrap();
    server.script_next(Script::new().on_open(|peer| peer.send_frame(&Frame::new(3, ""))));
    let (seen, events) = mpsc::channel();
    let texts = seen.clone();
    let handler = Handler::new()
        .text(move |_, text| texts.send(format!("text {text}")).unwrap())
        .state(move |_, event| seen.send(line(event)).unwrap());
    let client = connect_with(config(&server), handler).unwrap();
    let next = || events.recv_timeout(WAIT).unwrap();
    let first: Vec<_> = (0..5).map(|_| next()).collect();
    let lost = "lost, again in 0ns: the peer broke the protocol (1002): unknown opcode";
    assert_eq!(first, ["dialing 1", "open", lost, "dialing 1", "open"]);
    client.send("again").unwrap();
    assert_eq!(next(), "text again");
}

#[test]
fn a_pong_leaves_before_the_answer_to_a_message_that_ended_after_its_ping() {
    let server = serve(Script::new().ignore());
    let echo = Handler::new().text(|context, text| assert_eq!(context.send(text).unwrap(), Sent::Written));
    let _client = connect_with(config(&server), echo).unwrap();
    let peer = server.accept(WAIT).unwrap();
    let frames = [Frame::text("frag").unfinished(), Frame::ping("now"), Frame::continuation("ment")];
    peer.send_raw(frames.map(|frame| frame.to_bytes()).concat());
    peer.expect("fragment", WAIT).unwrap();
    let messages: Vec<_> = peer.captured().into_iter().map(|captured| captured.message).collect();
    assert_eq!(messages, [ClientMessage::Pong(b"now".to_vec()), ClientMessage::Text("fragment".to_owned())]);
}

// ---- helpers ----

/// These bytes end the wire with this code and reason, on both sides.
fn refuses(bytes: Vec<u8>, code: u16, reason: &str) {
    refuses_with(|config| config.reconnect(false), bytes, code, reason);
}

fn refuses_with(set: impl FnOnce(Config) -> Config, bytes: Vec<u8>, code: u16, reason: &str) {
    let (_server, peer, _client, inbox) = session_with(Script::new(), set);
    peer.send_raw(bytes);
    match until_closed(&inbox) {
        Some(Error::Protocol { code: found, reason: why }) => assert_eq!((found, why), (code, reason)),
        other => panic!("{other:?} and not {reason}"),
    }
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((code, reason.to_owned())));
}

/// The payload of the next pong.
fn expect_pong(peer: &Peer) -> Vec<u8> {
    let pong = Matcher::when(|it| matches!(it.message, ClientMessage::Pong(_)));
    match peer.expect(pong, WAIT).unwrap().message {
        ClientMessage::Pong(payload) => payload,
        other => panic!("{other:?}"),
    }
}

fn binary(event: &Event) -> Vec<u8> {
    match event {
        Event::Message(message) if message.text().is_none() => message.bytes().to_vec(),
        other => panic!("no binary message but {other:?}"),
    }
}
