//! Calls, raw requests, batches and requests of the venue's, and what becomes of them when wires break.

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zen_websocket::testkit::{ClientMessage, Frame, Matcher, MockServer, Peer, Script};
use zen_websocket::{
    Client, Config, Dialect, Driver, Error, Event, Handler, Id, Inbound, Inbox, JsonRpc, Overflow, PendingCall, RateLimit,
    Reactor, Rejection, Request, Result, Sent, State, Throttle, connect_with, rpc,
};

use self::common::*;

// ---- what leaves and what comes back ----

#[test]
fn parameters_by_name_by_position_empty_and_absent_arrive_as_given() {
    let (_server, peer, client, _inbox) = by_hand();
    let _calls = [
        client.start_call("named", json!({ "depth": 10 })).unwrap(),
        client.start_call("listed", ("logs", json!({ "address": [] }))).unwrap(),
        client.start_call("empty", json!({})).unwrap(),
        client.start_call("absent", ()).unwrap(),
        client.start_call("", None::<u8>).unwrap(),
    ];
    let expected = [
        r#"{"jsonrpc":"2.0","id":1,"method":"named","params":{"depth":10}}"#,
        r#"{"jsonrpc":"2.0","id":2,"method":"listed","params":["logs",{"address":[]}]}"#,
        r#"{"jsonrpc":"2.0","id":3,"method":"empty","params":{}}"#,
        r#"{"jsonrpc":"2.0","id":4,"method":"absent"}"#,
        r#"{"jsonrpc":"2.0","id":5,"method":""}"#,
    ];
    assert_eq!(heard(&peer, 5), expected);
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct Order {
    side: String,
    amount: u32,
}

#[test]
fn a_result_is_read_as_the_type_that_is_asked_for() {
    let (_server, _peer, client, inbox) = session_with(mirror(), json_rpc);
    let order = Order { side: "buy".to_owned(), amount: 7 };
    assert_eq!(client.call::<Order>("private/buy", &order).unwrap(), order);
    assert_eq!(client.call::<(u8, bool)>("m", (1, true)).unwrap(), (1, true));
    assert!(inbox.is_empty(), "replies are the caller's");
}

#[test]
fn a_result_of_null_is_a_result() {
    let (_server, _peer, client, _inbox) = session_with(mirror(), json_rpc);
    client.call::<()>("m", ()).unwrap();
    assert_eq!(client.call::<Option<u8>>("m", ()).unwrap(), None);
    assert_eq!(client.call::<Value>("m", ()).unwrap(), Value::Null);
}

#[test]
fn a_refusal_carries_code_message_and_data() {
    let (_server, peer, client, _inbox) = by_hand();
    let call = client.start_call("private/buy", ()).unwrap();
    reply(&peer, &request(&peer), json!({ "error": { "code": 10009, "message": "not_enough_funds", "data": { "missing": 3 } } }));
    let error = call.wait().unwrap_err();
    assert!(error.may_have_been_sent());
    let Error::Rejected(rejection) = error else { panic!("{error:?}") };
    let data = Some(r#"{"missing":3}"#.to_owned());
    assert_eq!(*rejection, Rejection { data, ..Rejection::new(10009, "not_enough_funds") });
}

#[test]
fn a_result_of_another_shape_is_an_unusable_reply() {
    let (_server, _peer, client, _inbox) = session_with(mirror(), json_rpc);
    let error = client.call::<u32>("m", ["text"]).unwrap_err();
    assert!(matches!(error, Error::Reply(_)) && error.may_have_been_sent(), "{error:?}");
}

#[test]
fn a_reply_tells_its_text_its_result_and_its_round_trip() {
    let (_server, _peer, client, _inbox) = session_with(mirror().delay(ms(50)), json_rpc);
    assert_eq!(client.latency().calls, None);
    let reply = client.start_call("m", [1, 2]).unwrap().wait().unwrap();
    assert_eq!(reply.text(), r#"{"id":1,"jsonrpc":"2.0","result":[1,2]}"#);
    assert_eq!((reply.raw_result().unwrap(), reply.result::<[u8; 2]>().unwrap()), ("[1,2]", [1, 2]));
    assert!(reply.round_trip() >= ms(50) && reply.round_trip() < WAIT, "{:?}", reply.round_trip());
    assert_eq!(client.latency().calls.unwrap().last, reply.round_trip());
}

#[test]
fn a_reply_that_takes_long_but_less_than_the_limit_is_a_reply() {
    let (_server, _peer, client, _inbox) = session_with(mirror().delay(ms(500)), |config| json_rpc(config).call_timeout(WAIT));
    let began = Instant::now();
    assert_eq!(client.call::<[u8; 1]>("m", [1]).unwrap(), [1]);
    assert!(began.elapsed() >= ms(500), "{:?}", began.elapsed());
}

#[test]
fn a_reply_of_a_megabyte_in_fragments_between_pings_finds_its_call() {
    let (_server, peer, client, _inbox) = by_hand();
    let call = client.start_call("m", ()).unwrap();
    let long = "x".repeat(1 << 20);
    let text = format!(r#"{{"result":"{long}","id":{}}}"#, request(&peer)["id"]);
    let (first, rest) = text.split_at(1000);
    peer.send_frame(&Frame::text(first).unfinished());
    peer.ping("between");
    peer.send_frame(&Frame::continuation(rest));
    assert!(call.wait().unwrap().result::<String>().unwrap() == long);
}

rpc! {
    /// What it is called with.
    fn echo => "public/echo";
    fn nothing() -> Option<u8> => "public/nothing";
    fn order(&Order) -> Order => "private/order";
}

#[test]
fn declared_methods_call_by_their_names() {
    let (_server, peer, client, _inbox) = session_with(mirror(), json_rpc);
    assert_eq!(echo::<Value>(&client, json!({})).unwrap(), json!({}));
    assert_eq!(nothing(&client).unwrap(), None);
    let sent = Order { side: "sell".to_owned(), amount: 1 };
    assert_eq!(order(&client.urgent(), &sent).unwrap(), sent);
    let methods: Vec<_> = (0..3).map(|_| request(&peer)["method"].clone()).collect();
    assert_eq!(methods, ["public/echo", "public/nothing", "private/order"]);
}

#[test]
fn a_notification_carries_no_id_and_waits_for_nothing() {
    let (_server, peer, client, _inbox) = by_hand();
    assert_eq!(client.notify("public/hello", [1]).unwrap(), Sent::Written);
    client.notify("bye", ()).unwrap();
    assert_eq!(
        heard(&peer, 2),
        [r#"{"jsonrpc":"2.0","method":"public/hello","params":[1]}"#, r#"{"jsonrpc":"2.0","method":"bye"}"#]
    );
    assert_eq!(client.metrics().calls_pending, 0);
}

#[test]
fn parameters_that_are_no_list_and_no_object_are_refused_before_anything_leaves() {
    let (_server, peer, client, _inbox) = by_hand();
    assert!(matches!(client.call::<Value>("m", 1), Err(Error::Config { setting: "params", .. })));
    assert!(matches!(client.notify("m", "text"), Err(Error::Config { setting: "params", .. })));
    let unwritable = std::collections::HashMap::from([(vec![1], 2)]);
    assert!(matches!(client.start_call("m", unwritable), Err(Error::Json(_))));
    client.send("marker").unwrap();
    assert_eq!((heard(&peer, 1), client.metrics().calls_pending), (vec!["marker".to_owned()], 0));
}

// ---- which reply is whose ----

#[test]
fn replies_in_another_order_find_their_calls() {
    let (_server, peer, client, _inbox) = by_hand();
    let calls = [1, 2, 3].map(|n| client.start_call("same", [n]).unwrap());
    let requests = [(); 3].map(|()| request(&peer));
    for index in [1, 0, 2] {
        answer(&peer, &requests[index]);
    }
    assert_eq!(calls.map(|call| call.wait().unwrap().result::<Value>().unwrap()), [json!([1]), json!([2]), json!([3])]);
}

#[test]
fn callers_on_many_threads_get_each_their_own() {
    for count in [5, 20] {
        let (_server, _peer, client, _inbox) = session_with(in_reverse(count), json_rpc);
        let call = |n: usize| client.call::<[usize; 1]>("m", [n]);
        thread::scope(|scope| {
            let callers: Vec<_> = (0..count).map(|n| scope.spawn(move || call(n))).collect();
            let results: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap().unwrap()).collect();
            assert_eq!(results, (0..count).map(|n| [n]).collect::<Vec<_>>());
        });
        assert_eq!(client.metrics().calls_pending, 0);
    }
}

#[test]
fn calls_and_messages_do_not_mix() {
    let (_server, peer, client, inbox) = by_hand();
    let call = client.start_call("m", [1]).unwrap();
    client.send("plain").unwrap();
    peer.send_text("before");
    answer(&peer, &request(&peer));
    peer.send_text(r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":"c","data":{"id":1,"result":2}}}"#);
    peer.send_binary(br#"{"id":1,"result":"binary"}"#);
    assert_eq!(call.wait().unwrap().result::<[u8; 1]>().unwrap(), [1]);
    peer.expect("plain", WAIT).unwrap();
    assert_eq!(text(&inbox), "before");
    assert!(text(&inbox).contains("subscription"));
    assert!(matches!(next(&inbox), Event::Message(message) if message.text().is_none()));
}

#[test]
fn a_reply_that_comes_after_the_limit_is_unmatched() {
    let (_server, peer, client, inbox) = by_hand();
    let impatient = client.with_call_timeout(ms(50));
    assert!(matches!(impatient.call::<Value>("m", ()), Err(Error::Timeout { sent: true, .. })));
    answer(&peer, &request(&peer));
    assert_eq!(unmatched(&inbox), (Id::from(1), r#"{"id":1,"jsonrpc":"2.0","result":null}"#.to_owned()));
    assert_eq!(client.latency().calls, None);
}

#[test]
fn a_reply_with_an_id_nobody_used_is_unmatched() {
    let (_server, peer, client, inbox) = by_hand();
    peer.send_text(r#"{"jsonrpc":"2.0","id":99999,"result":1}"#);
    peer.send_text(r#"{"jsonrpc":"2.0","id":"x","error":{"code":1,"message":"m"}}"#);
    assert_eq!([unmatched(&inbox).0, unmatched(&inbox).0], [Id::from(99999), Id::from("x")]);
    assert_eq!(client.latency().calls, None);
}

#[test]
fn an_unmatched_reply_reaches_a_handler_too() {
    let (server, (send, seen)) = (serve(Script::new().ignore()), mpsc::channel());
    let handler = Handler::new().state(move |_, event| {
        if let Event::Unmatched { id, message } = event {
            send.send(format!("{id} {}", message.text().unwrap())).unwrap();
        }
    });
    let _client = connect_with(json_rpc(config(&server)), handler).unwrap();
    server.accept(WAIT).unwrap().send_text(r#"{"id":88888,"result":1}"#);
    assert_eq!(seen.recv_timeout(WAIT).unwrap(), r#"88888 {"id":88888,"result":1}"#);
}

#[test]
fn a_number_is_not_answered_by_its_text() {
    let (_server, peer, client, inbox) = by_hand();
    let call = client.start_call("m", ()).unwrap();
    peer.send_text(r#"{"jsonrpc":"2.0","id":"1","result":"wrong"}"#);
    peer.send_text(r#"{"jsonrpc":"2.0","id":1,"result":"right"}"#);
    assert_eq!(call.wait().unwrap().result::<String>().unwrap(), "right");
    assert_eq!(unmatched(&inbox).0, Id::from("1"));
}

#[test]
fn a_second_reply_to_a_call_is_unmatched() {
    let (_server, peer, client, inbox) = by_hand();
    let call = client.start_call("m", [1]).unwrap();
    let request = request(&peer);
    answer(&peer, &request);
    answer(&peer, &request);
    call.wait().unwrap();
    assert_eq!(unmatched(&inbox).0, Id::from(1));
}

#[test]
fn a_reply_that_is_none_ends_its_call_as_unusable() {
    let (_server, peer, client, _inbox) = by_hand();
    for outcome in [json!({}), json!({ "error": null }), json!({ "other": 1 })] {
        let call = client.start_call("m", ()).unwrap();
        reply(&peer, &request(&peer), outcome);
        let error = call.wait().unwrap_err();
        assert!(matches!(error, Error::Reply(_)) && error.may_have_been_sent(), "{error:?}");
    }
}

#[test]
fn an_error_of_another_shape_is_a_refusal_all_the_same() {
    let (_server, peer, client, _inbox) = by_hand();
    for (error, message) in [(json!("text"), r#""text""#), (json!(7), "7"), (json!({ "why": 1 }), r#"{"why":1}"#)] {
        let call = client.start_call("m", ()).unwrap();
        reply(&peer, &request(&peer), json!({ "error": error }));
        assert_eq!(rejected(call), Rejection::new(None, message));
    }
}

#[test]
fn a_full_inbox_that_drops_does_not_keep_replies_from_their_calls() {
    let set = |config: Config| json_rpc(config).inbox_capacity(2).overflow(Overflow::DropNewest);
    let (_server, peer, client, inbox) = session_with(Script::new().ignore(), set);
    let call = client.start_call("m", [1]).unwrap();
    for text in ["1", "2", "3"] {
        peer.send_text(text);
    }
    answer(&peer, &request(&peer));
    call.wait().unwrap();
    assert_eq!(lines(&inbox, 3), ["text 1", "text 2", "gap of 1"]);
}

#[test]
fn behind_a_full_inbox_that_blocks_a_reply_waits_for_who_must_read_it() {
    let (_server, peer, client, inbox) = session_with(Script::new().ignore(), |config| json_rpc(config).inbox_capacity(2));
    let call = client.start_call("m", [1]).unwrap();
    for text in ["1", "2", "3"] {
        peer.send_text(text);
    }
    answer(&peer, &request(&peer));
    assert!(matches!(call.wait_timeout(ms(50)), Err(Error::Timeout { .. })));
    assert_eq!(lines(&inbox, 3), ["text 1", "text 2", "text 3"]);
    call.wait().unwrap();
}

#[test]
fn nonsense_is_a_message_and_harms_nothing() {
    let (_server, peer, client, inbox) = by_hand();
    let call = client.start_call("m", [1]).unwrap();
    let deep = format!(r#"[{{"a":{}"#, "[".repeat(100_000));
    let nonsense = [
        "",
        "nonsense",
        "{",
        "[",
        "[]",
        "[1]",
        "[[",
        r#"{"id":1"#,
        r#"{"id":null,"result":1}"#,
        r#"{"id":1.0,"result":1}"#,
        r#"{"id":[1],"result":1}"#,
        r#"{"id":18446744073709551615,"result":1}"#,
        r#"[{"id":1"#,
        "null",
        "\0",
        &deep,
    ];
    for text in nonsense {
        peer.send_text(text);
    }
    for expected in nonsense {
        assert_eq!(text(&inbox), expected);
    }
    answer(&peer, &request(&peer));
    call.wait().unwrap();
    assert_eq!(client.generation().number(), 1);
}

// ---- limits ----

#[test]
fn a_call_that_is_not_answered_ends_at_the_limit_of_the_config() {
    let (_server, peer, client, inbox) = session_with(Script::new().ignore(), |config| json_rpc(config).call_timeout(ms(100)));
    let began = Instant::now();
    match quickly(|| client.call::<Value>("ignored", ()).unwrap_err()) {
        Error::Timeout { after, sent: true } => assert!(after >= ms(100), "{after:?}"),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() >= ms(100), "{:?}", began.elapsed());
    request(&peer);
    assert_eq!((client.metrics().calls_pending, client.state(), inbox.len()), (0, State::Live, 0));
}

#[test]
fn a_handle_has_a_limit_of_its_own() {
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore(), |config| json_rpc(config).call_timeout(NEVER));
    let patient = client.start_call("patient", ()).unwrap();
    let impatient = client.with_call_timeout(ms(50));
    let calls = [impatient.start_call("m", ()).unwrap(), impatient.urgent().start_call("m", ()).unwrap()];
    for call in calls {
        assert!(matches!(quickly(|| call.wait()), Err(Error::Timeout { .. })));
    }
    let [first, ..] = [(); 3].map(|()| request(&peer));
    answer(&peer, &first);
    patient.wait().unwrap();
}

#[test]
fn a_limit_without_end_is_none() {
    let (_server, _peer, client, _inbox) = session_with(mirror(), json_rpc);
    let patient = client.with_call_timeout(Duration::MAX);
    assert_eq!(patient.call::<[u8; 1]>("m", [1]).unwrap(), [1]);
}

#[test]
fn ten_calls_at_once_that_are_not_answered_all_end_and_leave_nothing() {
    let (_server, peer, client, inbox) = session_with(Script::new().ignore(), |config| json_rpc(config).call_timeout(ms(100)));
    let calls = [(); 10].map(|()| client.start_call("m", ()).unwrap());
    for call in &calls {
        // The reactor ends it, not this thread.
        let error = call.receiver().recv_timeout(WAIT).unwrap().unwrap_err();
        assert!(matches!(error, Error::Timeout { sent: true, .. }), "{error:?}");
    }
    assert_eq!(client.metrics().calls_pending, 0);
    (0..10).for_each(|_| answer(&peer, &request(&peer)));
    assert_eq!([(); 10].map(|()| unmatched(&inbox).0), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(Id::from));
}

#[test]
fn there_is_a_most_of_calls_that_wait() {
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore(), |config| json_rpc(config).calls_max(2));
    let calls = [(); 2].map(|()| client.start_call("m", ()).unwrap());
    assert!(matches!(client.start_call("m", ()), Err(Error::TooManyCalls { pending: 2 })));
    assert!(matches!(client.call_batch([("m", ())]), Err(Error::TooManyCalls { pending: 2 })));
    assert_eq!(client.metrics().calls_pending, 2);
    let [first, _] = [(); 2].map(|()| request(&peer));
    answer(&peer, &first);
    calls.into_iter().next().unwrap().wait().unwrap();
    let _third = client.start_call("third", ()).unwrap();
    assert_eq!(request(&peer)["method"], "third");
}

#[test]
fn a_batch_that_is_one_call_too_many_leaves_nothing_behind() {
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore(), |config| json_rpc(config).calls_max(2));
    assert!(matches!(client.call_batch([("a", ()), ("b", ()), ("c", ())]), Err(Error::TooManyCalls { .. })));
    assert_eq!(client.metrics().calls_pending, 0);
    client.send("marker").unwrap();
    assert_eq!(heard(&peer, 1), ["marker"]);
}

// ---- loss ----

#[test]
fn a_call_the_venue_has_read_ends_with_its_wire_and_may_have_been_sent() {
    let (_server, peer, client, inbox) = by_hand();
    let call = client.with_call_timeout(NEVER).start_call("m", ()).unwrap();
    request(&peer);
    peer.close(1012, "restart");
    match quickly(|| call.wait()) {
        Err(error @ Error::Lost { sent: true, .. }) => {
            assert!(error.may_have_been_sent());
            assert_eq!(error.to_string(), "the wire ended before the reply came: the peer closed with code 1012: restart");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(until_lost(&inbox), Error::PeerClosed { .. }));
}

#[test]
fn a_lost_call_is_not_sent_again_and_its_reply_on_the_next_wire_is_unmatched() {
    let (server, peer, client, inbox) = by_hand();
    let call = client.start_call("m", ()).unwrap();
    let request = request(&peer);
    peer.reset();
    assert!(matches!(call.wait(), Err(Error::Lost { sent: true, .. })));
    until_open(&inbox);
    let second = server.accept(WAIT).unwrap();
    answer(&second, &request);
    assert_eq!(unmatched(&inbox).0, Id::from(1));
    assert_eq!((second.captured().len(), client.metrics().calls_pending), (0, 0));
}

#[test]
fn a_call_behind_a_full_socket_has_not_been_sent() {
    let (peer, client, inbox, _server) = stuffed();
    let call = client.start_call("m", ()).unwrap();
    peer.reset();
    match call.wait() {
        Err(error @ Error::Lost { sent: false, .. }) => assert!(!error.may_have_been_sent()),
        other => panic!("{other:?}"),
    }
    assert!(matches!(next(&inbox), Event::Unsent { messages: 2, .. }), "the call is among them");
}

#[test]
fn a_call_behind_a_full_socket_may_still_be_sent_when_its_time_is_over() {
    let (_peer, client, _inbox, _server) = stuffed();
    match client.with_call_timeout(ms(50)).call::<Value>("m", ()) {
        Err(error @ Error::Timeout { sent: true, .. }) => assert!(error.may_have_been_sent()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_for_which_the_socket_has_no_room_is_not_begun() {
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().stop_reading()).start().unwrap();
    let (_peer, client, _inbox) = join(&server, json_rpc(config(&server)).unsent_max(0));
    assert_eq!(client.send_binary(&vec![7; STUFFING]).unwrap(), Sent::Buffered);
    assert!(matches!(client.start_call("m", ()), Err(Error::Full { .. })));
    assert_eq!(client.metrics().calls_pending, 0);
}

#[test]
fn a_call_that_waits_for_the_rate_limit_when_the_wire_ends_has_not_been_sent() {
    let (server, peer, client, inbox) = session_with(Script::new().ignore(), |config| limited(config, NEVER));
    let calls = [(); 2].map(|()| client.start_call("m", ()).unwrap());
    request(&peer);
    peer.reset();
    let sent = calls.map(|call| match call.wait() {
        Err(Error::Lost { sent, .. }) => sent,
        other => panic!("{other:?}"),
    });
    assert_eq!(sent, [true, false]);
    until_open(&inbox);
    assert_eq!((server.captured().len(), client.rate_status().queued), (1, 0));
}

#[test]
fn a_call_whose_time_ends_while_it_waits_for_the_rate_limit_never_leaves() {
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore(), |config| limited(config, ms(500)));
    let _first = client.start_call("first", ()).unwrap();
    match client.with_call_timeout(ms(20)).call::<Value>("second", ()) {
        Err(error @ Error::Timeout { sent: false, .. }) => assert!(!error.may_have_been_sent()),
        other => panic!("{other:?}"),
    }
    let _third = client.start_call("third", ()).unwrap();
    assert_eq!([(); 2].map(|()| request(&peer)["method"].clone()), ["first", "third"]);
}

#[test]
fn a_call_that_waits_on_its_thread_for_the_rate_limit_gives_up_with_the_wire() {
    let set = |config: Config| limited(config, NEVER).throttle(Throttle::Wait(2 * NEVER)).call_timeout(2 * NEVER);
    let (server, peer, client, _inbox) = session_with(Script::new().ignore(), set);
    let _first = client.start_call("first", ()).unwrap();
    request(&peer);
    let waiting = thread::spawn({
        let client = client.clone();
        move || client.call::<Value>("second", ())
    });
    until(|| client.metrics().calls_pending == 2);
    server.pause().unwrap();
    peer.reset();
    let outcome = quickly(|| waiting.join().unwrap());
    assert!(matches!(outcome, Err(Error::NotConnected)), "{outcome:?}");
    assert_eq!(client.metrics().calls_pending, 0);
}

#[test]
fn a_call_that_must_wait_longer_than_its_limit_is_refused_at_once() {
    let set = |config: Config| limited(config, NEVER).throttle(Throttle::Wait(NEVER)).call_timeout(QUICK);
    let (_server, _peer, client, _inbox) = session_with(Script::new().ignore(), set);
    let _first = client.start_call("first", ()).unwrap();
    assert!(matches!(quickly(|| client.call::<Value>("second", ())), Err(Error::Throttled { .. })));
    assert_eq!(client.metrics().calls_pending, 1);
}

#[test]
fn the_limit_of_a_lost_request_does_not_end_the_one_that_reuses_its_id() {
    let (server, peer, client, inbox) = session_with(Script::new().ignore(), |config| config);
    let (impatient, text) = (client.with_call_timeout(ms(200)), r#"{"id":"drain-1","op":"x"}"#);
    let first = impatient.start_request_raw(text).unwrap();
    peer.expect(text, WAIT).unwrap();
    peer.reset();
    assert!(matches!(first.wait(), Err(Error::Lost { .. })));
    until_open(&inbox);
    let second = client.start_request_raw(text).unwrap();
    let other_peer = server.accept(WAIT).unwrap();
    other_peer.expect(text, WAIT).unwrap();
    assert!(matches!(second.wait_timeout(ms(300)), Err(Error::Timeout { sent: true, .. })), "beyond the first's limit");
    other_peer.send_text(r#"{"id":"drain-1","ok":true}"#);
    assert_eq!(second.wait().unwrap().text(), r#"{"id":"drain-1","ok":true}"#);
}

#[test]
fn calls_under_way_end_when_the_venue_breaks_the_protocol() {
    let (_server, peer, client, _inbox) = by_hand();
    let calls = [(); 3].map(|()| client.start_call("m", ()).unwrap());
    (0..3).for_each(|_| _ = request(&peer));
    peer.send_frame(&Frame::new(3, ""));
    for call in calls {
        match call.wait() {
            Err(Error::Lost { cause, sent: true }) => assert!(matches!(*cause, Error::Protocol { code: 1002, .. }), "{cause:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_said_not_to_have_been_sent_never_arrives_however_often_wires_break() {
    let set = |config: Config| json_rpc(config).stable_after(ms(1)).base_delay(ms(1)).max_backoff(ms(1));
    let server = MockServer::builder().script(Script::new().ignore()).captured_max(1_000_000).start().unwrap();
    let (first, client, inbox) = join(&server, set(config(&server)));
    let done = AtomicBool::new(false);
    let denied: HashSet<String> = thread::scope(|scope| {
        let callers = [0, 1, 2].map(|thread| {
            scope.spawn({
                let (client, done) = (&client, &done);
                move || {
                    (0..)
                        .take_while(|_| !done.load(Ordering::Relaxed))
                        .filter_map(|n| deny(client, format!("{thread} {n}")))
                        .collect::<Vec<_>>()
                }
            })
        });
        let mut peer = first;
        for _ in 0..50 {
            peer.expect(Matcher::any(), WAIT).unwrap();
            peer.reset();
            until_open(&inbox);
            peer = server.accept(WAIT).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    client.close().unwrap();
    assert!(server.wait_connections(0, WAIT));
    let heard = server.captured().into_iter().filter_map(|it| it.text().map(|text| serde_json::from_str::<Value>(text).unwrap()));
    let heard: Vec<_> = heard.map(|request| request["method"].as_str().unwrap().to_owned()).collect();
    assert!(!denied.is_empty() && !heard.is_empty());
    assert_eq!(heard.iter().filter(|method| denied.contains(*method)).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_reply_in_front_of_a_close_frame_counts() {
    let (_server, peer, client, _inbox) = by_hand();
    let calls = [1, 2].map(|n| client.start_call("m", [n]).unwrap());
    let [first, _] = [(); 2].map(|()| request(&peer));
    let reply = format!(r#"{{"id":{},"result":"just in time"}}"#, first["id"]);
    peer.send_raw([Frame::text(reply).to_bytes(), Frame::close(1012, "").to_bytes()].concat());
    let [first, second] = calls.map(PendingCall::wait);
    assert_eq!(first.unwrap().result::<String>().unwrap(), "just in time");
    assert!(matches!(second, Err(Error::Lost { .. })));
}

#[test]
fn closing_ends_the_calls_that_wait() {
    let cause = ended_by(|client, _| client.close().unwrap());
    assert!(matches!(cause, Error::Closed), "{cause:?}");
}

#[test]
fn dropping_the_last_client_ends_the_calls_that_wait() {
    let cause = ended_by(|client, _| drop(client));
    assert!(matches!(cause, Error::Closed), "{cause:?}");
}

#[test]
fn stopping_the_reactor_ends_the_calls_that_wait() {
    let cause = ended_by(|client, reactor| {
        reactor.stop();
        drop(client);
    });
    assert!(matches!(cause, Error::Stopped), "{cause:?}");
}

#[test]
fn a_handler_that_panics_ends_the_calls_that_wait() {
    let server = serve(Script::new().ignore());
    let client = connect_with(json_rpc(config(&server)), Handler::new().text(|_, text| panic!("{text}"))).unwrap();
    let peer = server.accept(WAIT).unwrap();
    let call = client.start_call("m", ()).unwrap();
    request(&peer);
    peer.send_text("boom");
    assert!(matches!(call.wait(), Err(Error::Lost { cause, sent: true }) if is_panic(&cause)));
}

#[test]
fn a_call_has_ended_when_a_handler_is_told_of_the_loss() {
    let (server, (send, outcomes)) = (serve(Script::new().ignore()), mpsc::channel());
    let mut call = None;
    let handler = Handler::new().state(move |context, event| match event {
        Event::Open => call = Some(context.start_call("m", ()).unwrap()),
        Event::Lost { .. } => send.send(call.take().unwrap().try_get()).unwrap(),
        _ => {}
    });
    let _client = connect_with(json_rpc(config(&server)), handler).unwrap();
    let peer = server.accept(WAIT).unwrap();
    request(&peer);
    peer.reset();
    assert!(matches!(outcomes.recv_timeout(WAIT).unwrap(), Some(Err(Error::Lost { sent: true, .. }))));
}

#[test]
fn replacing_the_wire_ends_the_calls_that_wait() {
    let cause = ended_by(|client, _| {
        client.reconnect().unwrap();
        wait_open(&client);
    });
    assert!(matches!(cause, Error::Replaced), "{cause:?}");
}

#[test]
fn a_reply_that_crosses_the_close_is_a_reply() {
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore().never_answer_close(), json_rpc);
    let call = client.start_call("m", [1]).unwrap();
    let request = request(&peer);
    client.start_close(1000, "").unwrap();
    peer.expect(Matcher::when(|it| matches!(it.message, ClientMessage::Close { .. })), WAIT).unwrap();
    assert!(matches!(client.start_call("m", ()), Err(Error::Closed)));
    answer(&peer, &request);
    assert_eq!(call.wait().unwrap().result::<[u8; 1]>().unwrap(), [1]);
    peer.close(1000, "");
}

#[test]
fn between_wires_a_call_is_refused_as_not_connected_and_after_the_end_as_closed() {
    let (server, peer, client, inbox) =
        session_with(Script::new().ignore(), |config| json_rpc(config).base_delay(NEVER).max_backoff(NEVER));
    server.pause().unwrap();
    peer.reset();
    until_lost(&inbox);
    client.wait(State::Waiting, WAIT).unwrap();
    let outcomes = || {
        let raw = client.request_raw(r#"{"id":1}"#).map(|_| ());
        let batch = client.call_batch([("m", ())]).map(|_| ());
        [
            client.call::<()>("m", ()),
            raw,
            batch,
            client.notify("m", ()).map(|_| ()),
            client.respond(&Id::from(1), Ok(1)).map(|_| ()),
        ]
    };
    for outcome in outcomes() {
        assert!(matches!(outcome, Err(Error::NotConnected)), "{outcome:?}");
    }
    client.close().unwrap();
    for outcome in outcomes() {
        assert!(matches!(outcome, Err(Error::Closed)), "{outcome:?}");
    }
    assert_eq!((server.captured().len(), client.metrics().calls_pending), (0, 0));
}

// ---- calls under way ----

#[test]
fn a_call_under_way_can_be_looked_at() {
    let (_server, peer, client, _inbox) = by_hand();
    let call = client.start_call("m", [1]).unwrap();
    assert!(call.try_get().is_none());
    assert_eq!((call.id(), client.metrics().calls_pending), (&Id::from(1), 1));
    answer(&peer, &request(&peer));
    until(|| client.metrics().calls_pending == 0);
    let reply = call.receiver().recv_timeout(WAIT).unwrap().unwrap();
    assert_eq!(reply.result::<[u8; 1]>().unwrap(), [1]);
    assert!(call.try_get().is_none(), "given once");
}

#[test]
fn a_call_goes_on_when_one_wait_for_it_is_over() {
    let (_server, peer, client, _inbox) = by_hand();
    let call = client.start_call("m", [1]).unwrap();
    match call.wait_timeout(ms(20)) {
        Err(Error::Timeout { after, sent: true }) => assert_eq!(after, ms(20)),
        other => panic!("{other:?}"),
    }
    answer(&peer, &request(&peer));
    assert_eq!(call.wait_timeout(WAIT).unwrap().result::<[u8; 1]>().unwrap(), [1]);
    assert!(matches!(call.wait_timeout(Duration::MAX), Err(Error::Timeout { .. })), "it has ended");
}

#[test]
fn calls_can_be_selected_on_together_with_an_inbox() {
    let (_server, peer, client, inbox) = by_hand();
    let (one, other) = (client.start_call("one", ()).unwrap(), client.start_call("other", ()).unwrap());
    let [_, second] = [(); 2].map(|()| request(&peer));
    answer(&peer, &second);
    let first = select! {
        recv(one.receiver()) -> _ => "one",
        recv(other.receiver()) -> ended => if ended.unwrap().is_ok() { "other" } else { "failed" },
        recv(inbox.receiver()) -> _ => "event",
        default(WAIT) => "nothing",
    };
    assert_eq!(first, "other");
}

#[test]
fn dropping_a_call_takes_it_back() {
    let (_server, peer, client, inbox) = by_hand();
    drop(client.start_call("m", ()).unwrap());
    assert_eq!(client.metrics().calls_pending, 0);
    answer(&peer, &request(&peer));
    assert_eq!(unmatched(&inbox).0, Id::from(1));
}

#[test]
fn dropping_a_call_that_waits_for_the_rate_limit_keeps_it_from_leaving() {
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore(), |config| limited(config, ms(500)));
    let _first = client.start_call("first", ()).unwrap();
    drop(client.start_call("second", ()).unwrap());
    let _third = client.start_call("third", ()).unwrap();
    assert_eq!([(); 2].map(|()| request(&peer)["method"].clone()), ["first", "third"]);
}

#[test]
fn an_urgent_call_passes_those_that_wait_for_the_rate_limit() {
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore(), |config| limited(config, NEVER));
    let _calls = ["first", "second"].map(|method| client.start_call(method, ()).unwrap());
    let _urgent = client.urgent().start_call("cancel", ()).unwrap();
    assert_eq!([(); 2].map(|()| request(&peer)["method"].clone()), ["first", "cancel"]);
    assert_eq!(client.rate_status().queued, 1);
}

// ---- on the thread that would have to bring the reply ----

#[test]
fn a_call_inside_a_handler_is_refused_and_nothing_leaves() {
    let (server, client) = (serve(Script::new().ignore()), Arc::new(OnceLock::<Client>::new()));
    let (send, outcomes) = mpsc::channel();
    let own = client.clone();
    let handler = Handler::new().text(move |_, _| {
        let client = own.get().unwrap();
        let raw = client.request_raw(r#"{"id":1}"#).map(|_| ());
        let batch = client.call_batch([("m", ())]).map(|_| ());
        send.send([client.call::<()>("m", ()), raw, batch].map(|outcome| outcome.unwrap_err().to_string())).unwrap();
    });
    client.set(connect_with(json_rpc(config(&server)), handler).unwrap()).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.send_text("now");
    assert_eq!(outcomes.recv_timeout(WAIT).unwrap(), [(); 3].map(|()| Error::OnReactor.to_string()));
    client.get().unwrap().send("marker").unwrap();
    assert_eq!(heard(&peer, 1), ["marker"]);
}

#[test]
fn a_call_started_in_a_handler_is_finished_in_a_later_event() {
    let (server, (send, outcomes)) = (serve(Script::new().ignore()), mpsc::channel());
    let mut started = None;
    let handler = Handler::new().text(move |context, text| match text {
        "start" => {
            let call = context.urgent().start_call("m", [1]).unwrap();
            assert!(call.wait_timeout(NEVER).unwrap_err().may_have_been_sent(), "it does not wait here");
            started = Some(call);
        }
        _ => send.send(started.take().unwrap().wait()).unwrap(),
    });
    let _client = connect_with(json_rpc(config(&server)), handler).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.send_text("start");
    answer(&peer, &request(&peer));
    peer.send_text("finish");
    assert_eq!(outcomes.recv_timeout(WAIT).unwrap().unwrap().result::<[u8; 1]>().unwrap(), [1]);
}

#[test]
fn waiting_in_a_handler_for_a_call_without_reply_is_refused() {
    let (server, (send, outcomes)) = (serve(Script::new().ignore()), mpsc::channel());
    let handler = Handler::new().text(move |context, _| send.send(context.start_call("m", ()).unwrap().wait()).unwrap());
    let client = connect_with(json_rpc(config(&server)), handler).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.send_text("now");
    assert!(outcomes.recv_timeout(WAIT).unwrap().unwrap_err().may_have_been_sent());
    request(&peer);
    assert_eq!(client.metrics().calls_pending, 0, "it was given up");
}

#[test]
fn a_handler_may_wait_for_a_call_on_a_connection_of_another_reactor() {
    let (server, (send, results)) = (serve(mirror()), mpsc::channel());
    let (_peer, other, _inbox) = join(&server, json_rpc(config(&server)));
    let handler = Handler::new().text(move |_, _| send.send(other.call::<[u8; 1]>("m", [1])).unwrap());
    let _client = connect_with(json_rpc(config(&server)), handler).unwrap();
    server.accept(WAIT).unwrap().send_text("now");
    assert_eq!(results.recv_timeout(WAIT).unwrap().unwrap(), [1]);
}

#[test]
fn a_handler_notifies_and_answers_the_venue() {
    let server = serve(Script::new().ignore());
    let handler = Handler::new().state(|context, event| match event {
        Event::Open => _ = context.notify("hello", ()).unwrap(),
        Event::Request { id, .. } => _ = context.respond(id, Ok("pong")).unwrap(),
        _ => {}
    });
    let _client = connect_with(json_rpc(config(&server)), handler).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.send_text(r#"{"jsonrpc":"2.0","id":5,"method":"ping"}"#);
    assert_eq!(heard(&peer, 2), [r#"{"jsonrpc":"2.0","method":"hello"}"#, r#"{"jsonrpc":"2.0","id":5,"result":"pong"}"#]);
}

#[test]
fn the_thread_that_turns_a_driver_starts_calls_and_does_not_wait_for_them() {
    let (server, mut driver) = (serve(mirror()), Driver::new().unwrap());
    let client = driver.open(json_rpc(config(&server))).unwrap();
    turn_until(&mut driver, || client.state() == State::Live);
    assert!(matches!(client.call::<Value>("m", [1]), Err(Error::OnReactor)));
    let call = client.start_call("m", [2]).unwrap();
    assert!(call.wait_timeout(NEVER).unwrap_err().may_have_been_sent(), "it does not wait here");
    turn_until(&mut driver, || client.metrics().calls_pending == 0);
    assert_eq!(call.wait().unwrap().result::<[u8; 1]>().unwrap(), [2]);
    assert_eq!(server.captured().len(), 1);
}

#[test]
fn another_thread_calls_while_a_driver_is_turned() {
    let (server, mut driver) = (serve(mirror()), Driver::new().unwrap());
    let client = driver.open(json_rpc(config(&server))).unwrap();
    turn_until(&mut driver, || client.state() == State::Live);
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call::<[u8; 1]>("m", [1]));
        turn_until(&mut driver, || call.is_finished());
        assert_eq!(call.join().unwrap().unwrap(), [1]);
    });
}

#[test]
fn a_call_on_a_driver_that_nobody_turns_ends_at_its_limit() {
    let (server, mut driver) = (serve(mirror()), Driver::new().unwrap());
    let client = driver.open(json_rpc(config(&server))).unwrap();
    turn_until(&mut driver, || client.state() == State::Live);
    let handle = client.with_call_timeout(ms(50));
    let outcome = thread::scope(|scope| scope.spawn(|| handle.call::<Value>("m", ())).join().unwrap());
    assert!(matches!(outcome, Err(Error::Timeout { sent: true, .. })), "{outcome:?}");
}

#[test]
fn dropping_a_driver_ends_the_calls_that_wait() {
    let (server, mut driver) = (serve(Script::new().ignore()), Driver::new().unwrap());
    let client = driver.open(json_rpc(config(&server))).unwrap();
    turn_until(&mut driver, || client.state() == State::Live);
    let call = client.start_call("m", ()).unwrap();
    drop(driver);
    match call.try_get() {
        Some(Err(Error::Lost { cause, sent: true })) => assert!(matches!(*cause, Error::Stopped), "{cause:?}"),
        other => panic!("{other:?}"),
    }
}

// ---- batches ----

#[test]
fn a_batch_is_one_message_and_its_replies_keep_the_order_of_the_calls() {
    let (_server, peer, client, _inbox) = session_with(mirror(), json_rpc);
    let replies = client.call_batch([("a", Some([1])), ("b", None), ("c", Some([3]))]).unwrap();
    let results: Vec<Value> = replies.into_iter().map(|reply| reply.unwrap().result().unwrap()).collect();
    assert_eq!(results, [json!([3]), json!(null), json!([1])].into_iter().rev().collect::<Vec<_>>());
    let one = r#"{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}"#;
    let two = r#"{"jsonrpc":"2.0","id":2,"method":"b"}"#;
    let three = r#"{"jsonrpc":"2.0","id":3,"method":"c","params":[3]}"#;
    assert_eq!(heard(&peer, 1), [format!("[{one},{two},{three}]")]);
}

#[test]
fn a_batch_may_be_answered_by_single_messages_in_any_order() {
    let (_server, peer, client, inbox) = by_hand();
    let calls = thread::spawn(move || client.call_batch([("a", [1]), ("b", [2])]).unwrap());
    let batch: Vec<Value> = serde_json::from_str(&heard(&peer, 1)[0]).unwrap();
    answer(&peer, &batch[1]);
    peer.send_text("between");
    answer(&peer, &batch[0]);
    let results = calls.join().unwrap().into_iter().map(|reply| reply.unwrap().result::<[u8; 1]>().unwrap());
    assert_eq!(results.collect::<Vec<_>>(), [[1], [2]]);
    assert_eq!(text(&inbox), "between");
}

#[test]
fn each_call_of_a_batch_ends_by_itself() {
    let (_server, peer, client, _inbox) = session_with(Script::new().ignore(), |config| json_rpc(config).call_timeout(ms(200)));
    let calls = thread::spawn(move || client.call_batch([("good", ()), ("bad", ()), ("ignored", ())]).unwrap());
    let batch: Vec<Value> = serde_json::from_str(&heard(&peer, 1)[0]).unwrap();
    let replies =
        json!([{ "id": batch[1]["id"], "error": { "code": 1, "message": "no" } }, { "id": batch[0]["id"], "result": 7 }]);
    peer.send_text(&replies.to_string());
    match &calls.join().unwrap()[..] {
        [Ok(good), Err(Error::Rejected(_)), Err(Error::Timeout { sent: true, .. })] => {
            assert_eq!(good.raw_result().unwrap(), "7")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_batch_of_the_venue_is_taken_apart() {
    let (_server, peer, client, inbox) = by_hand();
    let call = client.start_call("m", ()).unwrap();
    let id = &request(&peer)["id"];
    let [one, two] = [1, 2].map(|n| format!(r#"{{"jsonrpc":"2.0","method":"n","params":[{n}]}}"#));
    let asks = r#"{"id":"q","method":"ask"}"#;
    peer.send_text(&format!(r#"[{one}, {{"id":{id},"result":"r"}} ,{two},{asks},[{one}],{{"id":77,"result":0}}]"#));
    assert_eq!(call.wait().unwrap().result::<String>().unwrap(), "r");
    assert_eq!([text(&inbox), text(&inbox)], [one.clone(), two]);
    assert!(matches!(next(&inbox), Event::Request { id, .. } if id == Id::from("q")));
    assert_eq!(text(&inbox), format!("[{one}]"), "not taken apart again");
    assert_eq!(unmatched(&inbox).0, Id::from(77));
}

#[test]
fn a_batch_of_nothing_and_one_in_a_language_without_batches_are_refused() {
    let (_server, _peer, client, _inbox) = by_hand();
    assert!(matches!(client.call_batch([("m", ()); 0]), Err(Error::Config { .. })));
    let (_server, _peer, plain, _inbox) = session(Script::new());
    for outcome in [plain.call::<()>("m", ()), plain.notify("m", ()).map(|_| ()), plain.call_batch([("m", ())]).map(|_| ())] {
        assert!(matches!(outcome, Err(Error::Config { setting: "dialect", .. })), "{outcome:?}");
    }
}

#[test]
fn a_batch_under_way_is_lost_with_its_wire() {
    let (_server, peer, client, _inbox) = by_hand();
    let calls = thread::spawn(move || client.call_batch([("a", ()), ("b", ())]).unwrap());
    heard(&peer, 1);
    peer.reset();
    let outcomes = calls.join().unwrap();
    assert!(matches!(&outcomes[..], [Err(Error::Lost { sent: true, .. }), Err(Error::Lost { sent: true, .. })]), "{outcomes:?}");
}

// ---- requests of the venue ----

#[test]
fn a_request_of_the_venue_is_an_event_and_is_answered_by_its_id() {
    let (_server, peer, client, inbox) = by_hand();
    for id in ["7", r#""text""#] {
        let asked = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"client/ask","params":[1]}}"#);
        peer.send_text(&asked);
        let Event::Request { id, message } = next(&inbox) else { panic!("no request") };
        assert_eq!(message.text(), Some(&*asked));
        client.respond(&id, Ok(json!({ "ok": true }))).unwrap();
    }
    let expected = [r#"{"jsonrpc":"2.0","id":7,"result":{"ok":true}}"#, r#"{"jsonrpc":"2.0","id":"text","result":{"ok":true}}"#];
    assert_eq!(heard(&peer, 2), expected);
}

#[test]
fn a_request_of_the_venue_may_be_refused() {
    let (_server, peer, client, _inbox) = by_hand();
    client.respond(&Id::from(1), Err::<(), _>(Rejection::new(-32601, "no such \"method\""))).unwrap();
    let rejection = Rejection { data: Some("[1]".to_owned()), ..Rejection::new(1, "m") };
    client.respond(&Id::from(2), Err::<(), _>(rejection)).unwrap();
    let expected = [
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no such \"method\""}}"#,
        r#"{"jsonrpc":"2.0","id":2,"error":{"code":1,"message":"m","data":[1]}}"#,
    ];
    assert_eq!(heard(&peer, 2), expected);
}

#[test]
fn a_request_of_the_venue_with_the_id_of_a_call_does_not_answer_the_call() {
    let (_server, peer, client, inbox) = by_hand();
    let call = client.start_call("m", [1]).unwrap();
    let request = request(&peer);
    peer.send_text(r#"{"jsonrpc":"2.0","id":1,"method":"ask"}"#);
    assert!(matches!(next(&inbox), Event::Request { id, .. } if id == Id::from(1)));
    answer(&peer, &request);
    assert_eq!(call.wait().unwrap().result::<[u8; 1]>().unwrap(), [1]);
}

// ---- raw requests ----

#[test]
fn a_raw_request_gets_the_message_with_its_id_whatever_the_language() {
    let (_server, peer, client, inbox) = session(Script::new().ignore());
    for (id, other) in [("1", r#""1""#), (r#""a\"b""#, "2"), ("-5", "5")] {
        let text = format!(r#"{{"op":"x","id": {id} }}"#);
        let request = client.start_request_raw(&text).unwrap();
        peer.expect(&*text, WAIT).unwrap();
        let stranger = format!(r#"{{"id":{other},"ok":0}}"#);
        peer.send_text(&stranger);
        peer.send_text(&format!(r#"{{"ok":1,"id":{id}}}"#));
        assert_eq!(request.wait().unwrap().text(), format!(r#"{{"ok":1,"id":{id}}}"#));
        assert_eq!(common::text(&inbox), stranger, "an ordinary message");
    }
    assert!(inbox.is_empty());
}

#[test]
fn under_plain_every_reply_is_a_success_and_all_of_it_the_result() {
    let (_server, _peer, client, _inbox) = session(Script::new());
    let text = r#"{"id":1,"error":"as it came"}"#;
    let reply = client.request_raw(text).unwrap();
    assert_eq!((reply.text(), reply.raw_result().unwrap()), (text, text));
}

#[test]
fn a_raw_request_in_a_known_language_is_checked_as_a_call_is() {
    let (_server, peer, client, _inbox) = by_hand();
    let [good, bad] = ["good", "bad"].map(|id| client.start_request_raw(&format!(r#"{{"id":"{id}","method":"m"}}"#)).unwrap());
    let [first, second] = [(); 2].map(|()| request(&peer));
    reply(&peer, &second, json!({ "error": { "code": 5, "message": "no" } }));
    answer(&peer, &first);
    assert_eq!(rejected(bad), Rejection::new(5, "no"));
    assert_eq!(good.wait().unwrap().raw_result().unwrap(), "null");
}

#[test]
fn an_id_that_waits_is_refused_at_once_and_the_first_request_goes_on() {
    let (_server, peer, client, _inbox) = session(Script::new().ignore());
    let text = r#"{"id":7,"n":1}"#;
    let first = client.start_request_raw(text).unwrap();
    let error = quickly(|| client.request_raw(r#"{"n":2,"id":7}"#).unwrap_err());
    assert!(matches!(&error, Error::Duplicate(id) if *id == Id::from(7)) && !error.may_have_been_sent(), "{error:?}");
    client.send("marker").unwrap();
    assert_eq!(heard(&peer, 2), [text, "marker"], "one frame");
    peer.send_text(r#"{"id":7}"#);
    first.wait().unwrap();
    let _again = client.start_request_raw(text).unwrap();
}

#[test]
fn a_text_without_a_usable_id_is_no_request() {
    let (_server, peer, client, inbox) = session(Script::new());
    for text in ["", "nonsense", "[1]", "{}", r#"{"id":null}"#, r#"{"id":1.5}"#, r#"{"id":{}}"#, r#"{"a":{"id":1}}"#, r#"{"id":"#]
    {
        assert!(matches!(client.request_raw(text), Err(Error::Config { setting: "text", .. })), "{text}");
        client.send(text).unwrap();
        assert_eq!(common::text(&inbox), text, "fire and forget works with any text");
    }
    assert_eq!((peer.captured().len(), client.generation().number()), (9, 1));
}

#[test]
fn ids_that_the_connection_uses_for_itself_are_refused() {
    let (_server, peer, client, _inbox) = session(Script::new());
    let (reserved, last) = (1_u64 << 52, (1_u64 << 52) - 1);
    for id in [reserved, reserved + 1, i64::MAX as u64] {
        assert!(matches!(client.request_raw(&format!(r#"{{"id":{id}}}"#)), Err(Error::Config { setting: "text", .. })), "{id}");
    }
    client.request_raw(&format!(r#"{{"id":{last}}}"#)).unwrap();
    assert_eq!(peer.captured().len(), 1);
}

#[test]
fn a_call_passes_over_ids_that_raw_requests_have_taken() {
    let (_server, peer, client, _inbox) = by_hand();
    let _raw = [1, 2, 4].map(|id| client.start_request_raw(&format!(r#"{{"id":{id},"method":"raw"}}"#)).unwrap());
    let _calls = [client.start_call("m", ()).unwrap(), client.start_call("m", ()).unwrap()];
    assert_eq!([(); 5].map(|()| request(&peer)["id"].clone()), [1, 2, 4, 3, 5]);
}

#[test]
fn messages_pass_unread_while_no_raw_request_waits() {
    let read = Arc::new(AtomicUsize::new(0));
    let (_server, peer, client, inbox) = session_with(Script::new().ignore(), |config| config.dialect(Unread(read.clone())));
    let exchange = |count| {
        (0..count).for_each(|_| peer.send_text(r#"{"id":1}"#));
        (0..count).for_each(|_| assert_eq!(text(&inbox), r#"{"id":1}"#));
    };
    exchange(5);
    assert_eq!(read.load(Ordering::SeqCst), 0);
    let request = client.start_request_raw(r#"{"id":2}"#).unwrap();
    exchange(3);
    assert_eq!(read.load(Ordering::SeqCst), 3);
    drop(request);
    exchange(5);
    assert_eq!(read.load(Ordering::SeqCst), 3);
}

// ---- dialects that panic ----

#[test]
fn a_dialect_that_panics_ends_its_own_connection_and_its_calls() {
    let (server, reactor) = (serve(Script::new().ignore()), Reactor::builder().start().unwrap());
    let (neighbour, _inbox) = reactor.connect(json_rpc(config(&server))).unwrap();
    let other = server.accept(WAIT).unwrap();
    let (client, inbox) = reactor.connect(config(&server).dialect(Fragile::at_classify(true))).unwrap();
    let peer = server.accept(WAIT).unwrap();
    let call = client.start_call("m", ()).unwrap();
    request(&peer);
    peer.send_text("boom");
    assert!(is_panic(&until_closed(&inbox).unwrap()));
    assert!(matches!(call.wait(), Err(Error::Lost { cause, sent: true }) if is_panic(&cause)));
    assert!(peer.wait_closed(WAIT));
    let call = neighbour.start_call("m", [1]).unwrap();
    answer(&other, &request(&other));
    call.wait().unwrap();
}

#[test]
fn a_dialect_that_reads_nothing_and_panics_over_a_reply_ends_its_own_connection_only() {
    let (server, reactor) = (serve(Script::new().ignore()), Reactor::builder().start().unwrap());
    let (neighbour, _inbox) = reactor.connect(json_rpc(config(&server))).unwrap();
    let other = server.accept(WAIT).unwrap();
    let (client, inbox) = reactor.connect(config(&server).dialect(Fragile::at_classify(false))).unwrap();
    let peer = server.accept(WAIT).unwrap();
    let request_raw = client.start_request_raw(r#"{"id":1,"method":"m"}"#).unwrap();
    request(&peer);
    peer.send_text("boom");
    assert!(is_panic(&until_closed(&inbox).unwrap()));
    assert!(matches!(request_raw.wait(), Err(Error::Lost { cause, sent: true }) if is_panic(&cause)));
    let call = neighbour.start_call("m", [1]).unwrap();
    answer(&other, &request(&other));
    call.wait().unwrap();
}

#[test]
fn a_call_over_whose_reply_a_dialect_panics_may_have_been_sent() {
    let (server, reactor) = (serve(Script::new().ignore()), Reactor::builder().start().unwrap());
    let (client, inbox) = reactor.connect(config(&server).dialect(Fragile::at_check())).unwrap();
    let peer = server.accept(WAIT).unwrap();
    let call = client.start_call("m", ()).unwrap();
    peer.send_text(&format!(r#"{{"id":{},"result":"boom"}}"#, request(&peer)["id"]));
    assert!(is_panic(&until_closed(&inbox).unwrap()));
    let error = call.wait().unwrap_err();
    assert!(error.may_have_been_sent(), "{error:?}");
}

// ---- helpers ----

/// More than any socket takes.
const STUFFING: usize = 16 << 20;

fn json_rpc(config: Config) -> Config {
    config.dialect(JsonRpc::default())
}

/// A venue whose answers the test gives by hand.
fn by_hand() -> (MockServer, Peer, Client, Inbox) {
    session_with(Script::new().ignore(), json_rpc)
}

/// A venue that answers each request with its parameters, and batches in reverse.
fn mirror() -> Script {
    Script::new().on_text(|peer, text| match serde_json::from_str(text).unwrap() {
        Value::Array(requests) => peer.send_text(&requests.iter().rev().map(mirrored).collect::<Value>().to_string()),
        request => answer(peer, &request),
    })
}

/// A venue that answers when it has so many requests, the last one first.
fn in_reverse(count: usize) -> Script {
    let requests = Mutex::new(Vec::new());
    Script::new().on_text(move |peer, text| {
        let mut requests = requests.lock().unwrap();
        requests.push(serde_json::from_str(text).unwrap());
        if requests.len() == count {
            requests.drain(..).rev().for_each(|request| answer(peer, &request));
        }
    })
}

fn mirrored(request: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": request["id"], "result": request["params"] })
}

/// Answers a request with its parameters.
fn answer(peer: &Peer, request: &Value) {
    peer.send_text(&mirrored(request).to_string());
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

/// The next texts that the venue has read.
fn heard(peer: &Peer, count: usize) -> Vec<String> {
    (0..count).map(|_| peer.expect(Matcher::regex(""), WAIT).unwrap().text().unwrap().to_owned()).collect()
}

/// Id and text of the next event, which must be an unmatched reply.
fn unmatched(inbox: &Inbox) -> (Id, String) {
    match next(inbox) {
        Event::Unmatched { id, message } => (id, message.text().unwrap().to_owned()),
        other => panic!("{other:?}"),
    }
}

fn rejected(call: PendingCall) -> Rejection {
    match call.wait() {
        Err(Error::Rejected(rejection)) => (*rejection).clone(),
        other => panic!("{other:?}"),
    }
}

/// One message may leave per interval; further ones queue.
fn limited(config: Config, interval: Duration) -> Config {
    json_rpc(config).rate_limit(RateLimit::bucket(2, 1, interval)).throttle(Throttle::Queue(10))
}

/// A client whose socket is full, with room behind it.
fn stuffed() -> (Peer, Client, Inbox, MockServer) {
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().stop_reading()).start().unwrap();
    let config = json_rpc(config(&server)).unsent_max(2 * STUFFING).reconnect(false).close_timeout(ms(50));
    let (peer, client, inbox) = join(&server, config);
    assert_eq!(client.send_binary(&vec![7; STUFFING]).unwrap(), Sent::Buffered);
    (peer, client, inbox, server)
}

/// With what a call ends, which the venue has read, when this is done to its connection.
fn ended_by(end: impl FnOnce(Client, &Reactor)) -> Error {
    let (server, reactor) = (serve(Script::new().ignore()), Reactor::builder().start().unwrap());
    let (client, _inbox) = reactor.connect(json_rpc(config(&server))).unwrap();
    let peer = server.accept(WAIT).unwrap();
    let call = client.with_call_timeout(NEVER).start_call("m", ()).unwrap();
    request(&peer);
    end(client, &reactor);
    match quickly(|| call.wait()) {
        Err(Error::Lost { cause, sent: true }) => (*cause).clone(),
        other => panic!("{other:?}"),
    }
}

/// The method, if the call ends as one that was not sent.
fn deny(client: &Client, method: String) -> Option<String> {
    let outcome = client.with_call_timeout(ms(2)).call::<Value>(&method, ());
    outcome.is_err_and(|error| !error.may_have_been_sent()).then_some(method)
}

fn turn_until(driver: &mut Driver, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to that");
        driver.turn(ms(10)).unwrap();
    }
}

/// Counts what it reads, though it says that it reads nothing.
struct Unread(Arc<AtomicUsize>);

impl Dialect for Unread {
    fn name(&self) -> &str {
        "unread"
    }

    fn reads(&self) -> bool {
        false
    }

    fn classify<'a>(&self, _: &'a str) -> Inbound<'a> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Inbound::Message
    }
}

/// JSON-RPC that panics over the word boom.
struct Fragile {
    reads: bool,
    classify: bool,
    check: bool,
}

impl Fragile {
    fn at_classify(reads: bool) -> Self {
        Self { reads, classify: true, check: false }
    }

    fn at_check() -> Self {
        Self { reads: true, classify: false, check: true }
    }
}

impl Dialect for Fragile {
    fn name(&self) -> &str {
        "fragile"
    }

    fn reads(&self) -> bool {
        self.reads
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        assert!(!(self.classify && text.contains("boom")), "boom");
        JsonRpc::new().classify(text)
    }

    fn request(&self, number: u64, method: &str, params: Option<&str>) -> Result<Request> {
        JsonRpc::new().request(number, method, params)
    }

    fn check(&self, reply: &str) -> Result<()> {
        assert!(!(self.check && reply.contains("boom")), "boom");
        JsonRpc::new().check(reply)
    }
}

fn is_panic(error: &Error) -> bool {
    matches!(error, Error::Panicked(text) if &**text == "boom")
}
