//! Where limits, logins, losses and handlers meet.

mod common;

use std::sync::mpsc;

use serde_json::{Value, json};
use zen_websocket::testkit::{ClientMessage, Matcher, MockServer, Peer, Script};
use zen_websocket::{
    Channels, Config, Dialect, Error, Event, Handler, Inbound, Inbox, JsonRpc, RateLimit, State, Throttle, connect, connect_with,
};

use self::common::*;

#[test]
fn what_waits_for_the_limit_behind_a_full_kernel_leaves_once_the_kernel_takes_more() {
    let server = serve(Script::new().ignore().stop_reading());
    let limit = RateLimit::window(2, ms(300)).margin(ms(0)).reserved(0);
    let config = config(&server).heartbeat_interval(None).unsent_max(100 << 20);
    let (client, _inbox) = connect(config.rate_limit(limit).throttle(Throttle::Queue(10))).unwrap();
    let peer = server.accept(WAIT).unwrap();
    client.send_binary(&vec![0; 16 << 20]).unwrap();
    (0..5).for_each(|number| _ = client.send(&format!("order {number}")).unwrap());
    peer.resume_reading();
    peer.expect("order 4", WAIT).unwrap();
}

#[test]
fn a_wait_that_ends_does_not_promise_that_a_queued_call_stays() {
    let server = serve(Script::new().ignore());
    let limit = RateLimit::window(1, ms(300)).margin(ms(0)).reserved(0);
    let (client, _inbox) = connect(json_rpc(&server).rate_limit(limit).throttle(Throttle::Queue(10))).unwrap();
    client.send("first").unwrap();
    let call = client.start_call("private/buy", ()).unwrap();
    assert!(call.wait_timeout(ms(1)).unwrap_err().may_have_been_sent(), "it leaves later");
    server.expect(Matcher::regex("private/buy"), WAIT).unwrap();
}

#[test]
fn a_call_expires_in_time_though_an_earlier_one_could_not_be_sent() {
    let server = serve(Script::new().ignore());
    let limit = RateLimit::window(1, ms(100)).margin(ms(0)).reserved(0);
    let config = json_rpc(&server).heartbeat_interval(None).call_timeout(ms(200)).rate_limit(limit);
    let (client, _inbox) = connect(config).unwrap();
    client.send("first").unwrap();
    client.start_call("refused", ()).unwrap_err();
    let call = loop {
        match client.start_call("sent", ()) {
            Ok(call) => break call,
            Err(Error::Throttled { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    // Nobody but the reactor ends it.
    let ended = call.receiver().recv_timeout(WAIT).unwrap();
    assert!(matches!(ended, Err(Error::Timeout { sent: true, .. })), "{ended:?}");
}

#[test]
fn a_wire_on_which_callers_are_held_is_pinged_and_stays() {
    let server = serve(Script::new().on_text(|peer, text| answer(peer, text, |_| false)));
    let config = json_rpc(&server).hold_until(State::Live).heartbeat_interval(ms(30)).patience(ms(30)).strict(true);
    let (client, inbox) = connect(config).unwrap();
    let _bad = client.start_subscribe("bad").unwrap();
    client.reconnect().unwrap();
    until_lost(&inbox);
    until_open(&inbox);
    let pings = || server.captured().iter().filter(|captured| matches!(captured.message, ClientMessage::Ping(_))).count();
    let before = pings();
    until(|| pings() > before + 5);
    assert_eq!((client.state(), client.generation().number()), (State::Open, 2));
}

#[test]
fn a_handler_that_panics_on_live_is_told_of_the_end() {
    let server = serve(Script::new().on_text(|peer, text| answer(peer, text, |_| true)));
    let (send, events) = mpsc::channel();
    let handler = Handler::new().state(move |_, event| {
        send.send(line(event)).unwrap();
        assert!(!matches!(event, Event::Live), "boom");
    });
    let side = Inbox::shared(100);
    let client = connect_with(json_rpc(&server), handler).unwrap();
    let _book = client.start_subscribe(Channels::new(["book"]).inbox(&side)).unwrap();
    let ended = std::iter::from_fn(|| events.recv_timeout(WAIT).ok()).last().unwrap();
    assert!(ended.starts_with("closed: user code panicked"), "{ended}");
    let told: Vec<_> = std::iter::from_fn(|| side.try_recv().unwrap()).map(|received| line(&received.event)).collect();
    assert!(told.last().unwrap().starts_with("closed"), "{told:?}");
}

#[test]
fn a_dialect_that_panics_when_asked_whether_it_reads_ends_no_reactor() {
    struct Undecided;
    impl Dialect for Undecided {
        fn name(&self) -> &str {
            "undecided"
        }
        fn reads(&self) -> bool {
            panic!("boom");
        }
        fn classify<'a>(&self, _: &'a str) -> Inbound<'a> {
            Inbound::Message
        }
    }
    let server = MockServer::start().unwrap();
    let (client, _inbox) = connect(config(&server)).unwrap();
    let config = config(&server).dialect(Undecided);
    let panicked = std::thread::spawn(move || connect(config).map(|_| ())).join();
    assert!(panicked.is_err(), "on the thread that asked");
    assert_eq!(client.state(), State::Live);
}

#[test]
fn a_batch_of_any_size_does_not_overrun_an_inbox() {
    let server = serve(Script::new().on_open(|peer| peer.send_text(&format!("[{{}}{}]", ",0".repeat(100_000)))));
    let (_client, inbox) = connect(json_rpc(&server)).unwrap();
    until_open(&inbox);
    assert_eq!(text(&inbox).len(), 200_004, "delivered as it is");
}

#[test]
fn a_limit_on_dials_outlives_the_clients_that_used_it_up() {
    let server = serve(Script::new());
    let limit = || RateLimit::window(2, NEVER).shared("dials that outlive their clients");
    for _ in 0..2 {
        connect(config(&server).dial_limit(limit())).unwrap().0.close().unwrap();
    }
    let (client, inbox) = zen_websocket::open(config(&server).dial_limit(limit())).unwrap();
    assert_eq!(next_line(&inbox), "dialing 1");
    assert!(matches!(next(&inbox), Event::DialFailed { cause: Error::Throttled { .. }, .. }));
    assert_eq!((client.state(), server.accepted()), (State::Waiting, 2));
}

fn json_rpc(server: &MockServer) -> Config {
    config(server).dialect(JsonRpc::default())
}

/// Answers requests to subscribe with those of their channels that are accepted.
fn answer(peer: &Peer, text: &str, accepts: fn(&str) -> bool) {
    let request: Value = serde_json::from_str(text).unwrap();
    let channels = request["params"]["channels"].as_array().unwrap().iter().filter(|channel| accepts(channel.as_str().unwrap()));
    let result: Vec<_> = channels.collect();
    peer.send_text(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }).to_string());
}
