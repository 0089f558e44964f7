//! Channels: asked for, confirmed, refused, watched, routed, and restored on the next wire.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;

use serde_json::{Value, json};
use zen_websocket::testkit::{Captured, Matcher, MockServer, Peer, Script};
use zen_websocket::{
    Channels, Client, Config, Confirmation, Dialect, Error, Event, GapPolicy, Handler, Inbound, Inbox, JsonRpc, Overflow,
    Reactor, Result, Standing, State, Subscribe, connect_with, open, peek,
};

use self::common::*;

// ---- subscribing ----

#[test]
fn channels_are_asked_for_in_one_message_with_an_id() {
    let (_server, peer, client, _inbox) = venue();
    let books = client.subscribe(["book.a", "book.b"]).unwrap();
    let text = peer.captured()[0].text().unwrap().to_owned();
    let id = serde_json::from_str::<Value>(&text).unwrap()["id"].as_u64().unwrap();
    let params = r#"{"channels":["book.a","book.b"]}"#;
    assert_eq!(text, format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"public/subscribe","params":{params}}}"#));
    assert_eq!((id >= 1 << 52, peer.captured().len(), books.channels().len()), (true, 1, 2));
}

#[test]
fn a_confirmed_channel_is_known_as_such_and_its_data_arrives() {
    let (_server, peer, client, inbox) = venue();
    let book = client.subscribe("book.a").unwrap();
    assert!(book.is_confirmed());
    assert_eq!(book.standings(), [("book.a".into(), Standing::Confirmed)]);
    tick(&peer, "book.a", 1);
    assert_eq!(lines(&inbox, 2), ["Live".to_owned(), data("book.a", 1)]);
}

#[test]
fn data_of_a_channel_that_nobody_wants_reaches_the_user_and_is_not_restored() {
    let (server, peer, _client, inbox) = venue();
    tick(&peer, "book.x", 1);
    assert_eq!(next_line(&inbox), data("book.x", 1));
    assert_eq!(after_kill(&server, &peer, &inbox), [""; 0]);
}

#[test]
fn a_dropped_subscription_is_unsubscribed_and_not_restored() {
    let (server, peer, client, inbox) = venue();
    drop(client.subscribe(["book.a", "book.b"]).unwrap());
    expect_said(&peer, "public/unsubscribe book.a book.b");
    tick(&peer, "book.a", 1);
    assert_eq!(lines(&inbox, 2), ["Live".to_owned(), data("book.a", 1)], "what was under way arrives");
    assert_eq!(after_kill(&server, &peer, &inbox), [""; 0]);
}

#[test]
fn unsubscribe_does_what_dropping_does() {
    let (server, peer, client, inbox) = venue();
    client.subscribe("book.a").unwrap().unsubscribe();
    expect_said(&peer, "public/unsubscribe book.a");
    assert_eq!(after_kill(&server, &peer, &inbox), [""; 0]);
}

#[test]
fn a_refused_channel_is_named_with_its_reason_and_nothing_stays() {
    let (server, peer, client, inbox) = venue();
    let error = client.subscribe(["book.a", "bad.b", "book.c"]).unwrap_err();
    assert_eq!(refusals(&error), [format!("bad.b: {NOT_ACCEPTED}")]);
    expect_said(&peer, "public/unsubscribe book.a book.c");
    assert_eq!(next_line(&inbox), rejected("bad.b", NOT_ACCEPTED));
    assert_eq!(after_kill(&server, &peer, &inbox), [""; 0]);
}

#[test]
fn an_error_refuses_all_channels_of_its_request() {
    let script = Script::new().on_text(|peer, text| {
        peer.send_text(&format!(r#"{{"id":{},"error":{{"code":11050,"message":"bad_request"}}}}"#, id_in(text)));
    });
    let (_server, _peer, client, inbox) = venue_with(script, |config| config);
    let error = client.subscribe(["book.a", "book.b"]).unwrap_err();
    assert_eq!(refusals(&error), ["book.a: bad_request (11050)", "book.b: bad_request (11050)"]);
    assert_eq!(lines(&inbox, 2), ["book.a", "book.b"].map(|channel| rejected(channel, "bad_request (11050)")));
}

#[test]
fn start_subscribe_keeps_what_was_accepted_and_asks_for_the_rest_again() {
    let listed = Arc::new(AtomicBool::new(false));
    let accepts = listed.clone();
    let script = exchange(move |channel| channel != "late" || accepts.load(Ordering::SeqCst));
    let (_server, peer, client, inbox) = venue_with(script, |config| config);
    let both = client.start_subscribe(["book.a", "late"]).unwrap();
    assert_eq!(refusals(&both.wait(WAIT).unwrap_err()), [format!("late: {NOT_ACCEPTED}")]);
    assert_eq!(next_line(&inbox), rejected("late", NOT_ACCEPTED));
    assert_eq!((both.is_confirmed(), client.state()), (false, State::Open));
    listed.store(true, Ordering::SeqCst);
    until_line(&inbox, "Live");
    assert_eq!((both.is_confirmed(), client.state()), (true, State::Live));
    assert_eq!(said(&peer)[..2], ["public/subscribe book.a late", "public/subscribe late"]);
}

#[test]
fn a_refused_channel_is_not_asked_for_again_once_its_subscription_is_dropped() {
    let (_server, peer, client, inbox) = venue();
    let both = client.start_subscribe(["book.a", "bad"]).unwrap();
    assert_eq!(next_line(&inbox), rejected("bad", NOT_ACCEPTED));
    drop(both);
    peer.expect(Matcher::regex("public/unsubscribe"), WAIT).unwrap();
    let asked = said(&peer).len();
    while inbox.recv_timeout(ms(500)).is_ok() {}
    assert_eq!(said(&peer).len(), asked);
}

#[test]
fn a_refusal_stands_though_a_result_with_the_same_id_follows() {
    let script = Script::new().on_text(|peer, text| {
        peer.send_text(&format!(r#"{{"id":{},"error":{{"code":1,"message":"no"}}}}"#, id_in(text)));
        peer.send_text(&format!(r#"{{"id":{},"result":["book.a"]}}"#, id_in(text)));
    });
    let (_server, peer, client, _inbox) = venue_with(script, |config| config.max_backoff(NEVER));
    let book = client.start_subscribe("book.a").unwrap();
    assert_eq!(refusals(&book.wait(WAIT).unwrap_err()), ["book.a: no (1)"]);
    settle(&peer);
    assert_eq!(book.standings()[0].1, Standing::Rejected("no (1)".into()));
}

#[test]
fn a_list_of_channels_for_an_id_that_was_never_used_confirms_nothing() {
    let (_server, peer, client, inbox) = venue_with(Script::new().ignore(), |config| config);
    let book = client.start_subscribe("book.a").unwrap();
    expect_said(&peer, "public/subscribe book.a");
    peer.send_text(r#"{"jsonrpc":"2.0","id":5,"result":["book.a","book.b"]}"#);
    assert!(next_line(&inbox).starts_with("Unmatched"));
    assert_eq!(book.standings(), [("book.a".into(), Standing::Pending)]);
}

#[test]
fn a_channel_that_two_subscriptions_want_is_subscribed_once_and_unsubscribed_with_the_last() {
    let (_server, peer, client, inbox) = venue();
    let one = client.subscribe(["book.a", "book.b"]).unwrap();
    let other = client.subscribe(["book.b", "book.c"]).unwrap();
    drop(one);
    expect_said(&peer, "public/unsubscribe book.a");
    tick(&peer, "book.b", 1);
    until_line(&inbox, &data("book.b", 1));
    drop(other);
    expect_said(&peer, "public/unsubscribe book.b book.c");
    let subscribed = ["public/subscribe book.a book.b", "public/subscribe book.c"];
    let unsubscribed = ["public/unsubscribe book.a", "public/unsubscribe book.b book.c"];
    assert_eq!(said(&peer), [subscribed, unsubscribed].concat());
}

#[test]
fn a_name_that_comes_twice_counts_once() {
    let (_server, peer, client, _inbox) = venue();
    let books = client.subscribe(["book.b", "book.a", "book.b"]).unwrap();
    assert_eq!(books.channels(), ["book.b".into(), "book.a".into()]);
    drop(books);
    expect_said(&peer, "public/unsubscribe book.b book.a");
    assert_eq!(said(&peer)[0], "public/subscribe book.b book.a");
}

#[test]
fn private_channels_go_by_the_private_method() {
    let (_server, peer, client, _inbox) = venue();
    drop(client.subscribe(["book.a", "user.orders", "user.trades", "book.b"]).unwrap());
    expect_said(&peer, "public/unsubscribe book.b");
    let calls = ["subscribe", "unsubscribe"].map(|method| {
        [
            format!("public/{method} book.a"),
            format!("private/{method} user.orders user.trades"),
            format!("public/{method} book.b"),
        ]
    });
    assert_eq!(said(&peer), calls.concat());
}

// ---- what is refused at once ----

#[test]
fn a_dialect_without_subscriptions_refuses_them() {
    let (_server, _peer, client, _inbox) = session(Script::new());
    let error = client.subscribe("book.a").unwrap_err();
    assert_eq!(error.to_string(), "invalid dialect: plain has no subscriptions");
    assert!(matches!(client.start_subscribe("book.a"), Err(Error::Config { setting: "dialect", .. })));
}

#[test]
fn no_channels_are_no_subscription() {
    let (_server, _peer, client, _inbox) = venue();
    assert!(matches!(client.subscribe([""; 0]), Err(Error::Config { setting: "channels", .. })));
    let silent = Channels::new(["book.a"]).silence(ms(0));
    assert!(matches!(client.subscribe(silent), Err(Error::Config { setting: "silence", .. })));
}

#[test]
fn a_closed_client_subscribes_nothing() {
    let (_server, _peer, client, _inbox) = venue();
    client.close().unwrap();
    assert!(matches!(client.subscribe("book.a"), Err(Error::Closed)));
    assert!(matches!(client.start_subscribe("book.a"), Err(Error::Closed)));
}

#[test]
fn a_subscription_that_the_venue_does_not_answer_times_out_and_is_given_up() {
    let (_server, peer, client, _inbox) = venue_with(Script::new().ignore(), |config| config.call_timeout(ms(50)));
    assert!(matches!(client.subscribe("book.a"), Err(Error::Timeout { after, .. }) if after == ms(50)));
    expect_said(&peer, "public/unsubscribe book.a");
    client.wait(State::Live, WAIT).unwrap();
}

#[test]
fn who_waits_for_a_subscription_learns_that_the_client_closed() {
    let (_server, peer, client, _inbox) = venue_with(Script::new().ignore(), |config| config);
    let waiter = client.clone();
    let thread = std::thread::spawn(move || waiter.subscribe("book.a").map(drop));
    expect_said(&peer, "public/subscribe book.a");
    client.start_close(1000, "").unwrap();
    assert!(matches!(thread.join().unwrap(), Err(Error::Closed)));
}

#[test]
fn a_handler_starts_a_subscription_and_does_not_wait_for_one() {
    let (sender, results) = mpsc::channel();
    let mut kept = Vec::new();
    let handler = Handler::new().state(move |context, event| match event {
        Event::Open => kept.push(context.start_subscribe("book.a").unwrap()),
        Event::Live => sender.send((kept[0].is_confirmed(), kept[0].wait(WAIT).is_ok())).unwrap(),
        _ => {}
    });
    let server = serve(exchange(accepts));
    let _client = connect_with(config(&server).dialect(JsonRpc::new()), handler).unwrap();
    assert_eq!(results.recv_timeout(WAIT).unwrap(), (true, true));
}

#[test]
fn inside_a_handler_no_confirmation_can_be_waited_for() {
    let (clients, from_test) = mpsc::channel::<Client>();
    let (sender, results) = mpsc::channel();
    let handler = Handler::new().text(move |context, _| {
        let client = from_test.recv_timeout(WAIT).unwrap();
        let started = context.start_subscribe("book.b").unwrap();
        sender.send((client.subscribe("book.a").map(drop), started.wait(WAIT))).unwrap();
    });
    let server = serve(exchange(accepts));
    let client = connect_with(config(&server).dialect(JsonRpc::new()), handler).unwrap();
    clients.send(client.clone()).unwrap();
    server.accept(WAIT).unwrap().send_text("now");
    let outcome = results.recv_timeout(WAIT).unwrap();
    assert!(matches!(outcome, (Err(Error::OnReactor), Err(Error::OnReactor))), "{outcome:?}");
}

// ---- before there is a wire ----

#[test]
fn a_subscription_made_before_the_wire_is_open_is_asked_for_on_it() {
    let server = serve(exchange(accepts));
    let (client, inbox) = open(config(&server).dialect(JsonRpc::new())).unwrap();
    let book = client.subscribe(["book.a", "book.b"]).unwrap();
    assert_eq!(lines(&inbox, 3), ["dialing 1", "open", "Live"]);
    assert_eq!(said(&server.accept(WAIT).unwrap()), ["public/subscribe book.a book.b"]);
    assert!(book.is_confirmed());
}

#[test]
fn a_subscription_made_while_disconnected_is_asked_for_on_the_next_wire() {
    let (server, peer, client, inbox) = venue();
    server.pause().unwrap();
    peer.reset();
    until_lost(&inbox);
    let book = client.start_subscribe("book.a").unwrap();
    assert_eq!(book.standings(), [("book.a".into(), Standing::Wanted)]);
    server.resume().unwrap();
    book.wait(WAIT).unwrap();
    assert_eq!(said(&server.accept(WAIT).unwrap()), ["public/subscribe book.a"]);
}

#[test]
fn a_subscription_dropped_while_disconnected_leaves_nothing_to_be_said() {
    let (server, peer, client, inbox) = venue();
    let books = (client.subscribe("book.a").unwrap(), client.subscribe("book.b").unwrap());
    server.pause().unwrap();
    peer.reset();
    until_lost(&inbox);
    drop(books.0);
    server.resume().unwrap();
    until_line(&inbox, "Live");
    assert_eq!(said(&server.accept(WAIT).unwrap()), ["public/subscribe book.b"]);
}

// ---- restoring ----

#[test]
fn one_message_restores_all_channels_in_order_and_then_it_is_live() {
    let (server, peer, client, inbox) = venue();
    let _books = (client.subscribe("book.b").unwrap(), client.subscribe("book.a").unwrap());
    assert_eq!(lines(&inbox, 2), ["Live", "Live"]);
    assert_eq!(after_kill(&server, &peer, &inbox), ["public/subscribe book.b book.a"]);
    assert_eq!(next_line(&inbox), "Live");
    assert_eq!((client.generation().number(), client.state()), (2, State::Live));
}

#[test]
fn a_restore_comes_in_pieces_no_larger_than_the_venue_takes() {
    let (server, peer, client, inbox) = venue_with(exchange(accepts), |config| config.dialect(JsonRpc::new().channels_max(2)));
    let _books = client.subscribe(["e", "d", "c", "b", "a"]).unwrap();
    assert_eq!(next_line(&inbox), "Live");
    let pieces = ["public/subscribe e d", "public/subscribe c b", "public/subscribe a"];
    assert_eq!(after_kill(&server, &peer, &inbox), pieces);
    assert_eq!(next_line(&inbox), "Live", "once, when all are confirmed");
}

#[test]
fn private_channels_are_restored_by_the_private_method_after_the_login() {
    let dialect = JsonRpc::new().login("public/auth", |_| json!({ "key": "k" }));
    let (server, peer, client, inbox) = venue_with(exchange(accepts), |config| config.dialect(dialect));
    let _both = client.subscribe(["user.orders", "book.a"]).unwrap();
    let expected = ["public/auth ", "private/subscribe user.orders", "public/subscribe book.a"];
    assert_eq!(said(&peer), expected);
    assert_eq!(after_kill(&server, &peer, &inbox), expected);
}

#[test]
fn without_restore_a_loss_ends_the_subscriptions() {
    let (server, peer, client, inbox) = venue_with(exchange(accepts), |config| config.restore(false));
    let book = client.subscribe("book.a").unwrap();
    assert_eq!(after_kill(&server, &peer, &inbox), [""; 0]);
    client.wait(State::Live, WAIT).unwrap();
    assert!(!book.is_confirmed());
}

#[test]
fn without_restore_what_was_wanted_before_the_first_wire_is_asked_for() {
    let server = serve(exchange(accepts));
    server.script_next(Script::new().status(503));
    let (client, inbox) = open(config(&server).dialect(JsonRpc::new()).restore(false)).unwrap();
    let book = client.subscribe("book.a").unwrap();
    until_line(&inbox, "Live");
    assert!(book.is_confirmed());
}

#[test]
fn a_restore_that_is_not_answered_is_asked_for_again() {
    let (server, peer, client, inbox) = venue_with(exchange(accepts), |config| config.confirm_timeout(ms(50)));
    let _books = client.subscribe(["book.a", "book.b"]).unwrap();
    assert_eq!(next_line(&inbox), "Live");
    server.script_next(exchange_deaf_to(2));
    peer.reset();
    until_open(&inbox);
    until_line(&inbox, "Live");
    assert_eq!(said(&server.accept(WAIT).unwrap()), ["public/subscribe book.a book.b"; 3]);
}

#[test]
fn an_answer_that_comes_late_confirms_all_the_same() {
    let (_server, peer, client, inbox) = venue_with(Script::new().ignore(), |config| config.confirm_timeout(ms(50)));
    let book = client.start_subscribe("book.a").unwrap();
    let first = expect_said(&peer, "public/subscribe book.a");
    expect_said(&peer, "public/subscribe book.a");
    confirm(&peer, &first, &["book.a"]);
    assert_eq!(next_line(&inbox), "Live");
    assert!(book.is_confirmed());
}

#[test]
fn a_request_that_waited_when_its_wire_was_lost_is_forgotten() {
    let (server, peer, client, inbox) = venue_with(Script::new().ignore(), |config| config);
    let book = client.start_subscribe("book.a").unwrap();
    let old = expect_said(&peer, "public/subscribe book.a");
    peer.reset();
    until_open(&inbox);
    let peer = server.accept(WAIT).unwrap();
    let new = expect_said(&peer, "public/subscribe book.a");
    confirm(&peer, &old, &["book.a"]);
    assert!(next_line(&inbox).starts_with("Unmatched"));
    assert_eq!(book.standings()[0].1, Standing::Pending);
    confirm(&peer, &new, &["book.a"]);
    assert_eq!(next_line(&inbox), "Live");
}

#[test]
fn a_channel_refused_in_a_restore_is_reported_and_asked_for_again() {
    let (server, peer, client, inbox) = venue();
    let books = client.subscribe(["book.a", "book.b"]).unwrap();
    assert_eq!(next_line(&inbox), "Live");
    server.script_next(exchange_that_first_refuses("book.b"));
    let expected = ["public/subscribe book.a book.b", "public/subscribe book.b"];
    assert_eq!(after_kill(&server, &peer, &inbox)[0], expected[0]);
    assert_eq!(lines(&inbox, 2), [rejected("book.b", NOT_ACCEPTED), "Live".to_owned()]);
    assert_eq!((books.is_confirmed(), said(&server.peers()[0])), (true, expected.map(String::from).to_vec()));
}

#[test]
fn an_explicit_reconnect_keeps_what_is_wanted() {
    let (server, _peer, client, inbox) = venue();
    let books = client.subscribe(["book.a", "book.b"]).unwrap();
    client.reconnect().unwrap();
    until_open(&inbox);
    assert_eq!(next_line(&inbox), "Live");
    assert_eq!(said(&server.accept(WAIT).unwrap()), ["public/subscribe book.a book.b"]);
    assert!(books.is_confirmed());
}

#[test]
fn two_thousand_channels_are_restored() {
    let (server, peer, client, inbox) = venue();
    let names: Vec<_> = (0..2000).map(|number| format!("ticker.{number}")).collect();
    let tickers = client.subscribe(&names[..]).unwrap();
    assert_eq!(next_line(&inbox), "Live");
    let asked = after_kill(&server, &peer, &inbox);
    until_line(&inbox, "Live");
    let expected: Vec<_> = names.chunks(500).map(|chunk| format!("public/subscribe {}", chunk.join(" "))).collect();
    assert_eq!(asked, expected);
    assert!(tickers.is_confirmed());
}

#[test]
fn a_thousand_subscriptions_are_dropped_one_by_one() {
    let (_server, peer, client, _inbox) = venue();
    let names: Vec<_> = (0..1000).map(|number| format!("ticker.{number}")).collect();
    let all: Vec<_> = names.iter().map(|name| client.start_subscribe(name.as_str()).unwrap()).collect();
    all.iter().for_each(|one| one.wait(WAIT).unwrap());
    drop(all);
    expect_said(&peer, "public/unsubscribe ticker.999");
    let dropped: Vec<_> = said(&peer).into_iter().filter(|line| line.starts_with("public/unsubscribe")).collect();
    assert_eq!(dropped, names.iter().map(|name| format!("public/unsubscribe {name}")).collect::<Vec<_>>());
    assert_eq!((client.state(), client.generation().number()), (State::Live, 1));
}

#[test]
fn a_subscription_may_outlive_its_client_and_reactor() {
    let server = serve(exchange(accepts));
    let reactor = Reactor::builder().start().unwrap();
    let (client, inbox) = reactor.connect(config(&server).dialect(JsonRpc::new())).unwrap();
    let books = (client.subscribe("book.a").unwrap(), client.subscribe("book.b").unwrap());
    drop(client);
    assert!(until_closed(&inbox).is_none(), "a subscription is no handle to the connection");
    assert!(matches!(books.1.wait(WAIT), Err(Error::Closed)));
    drop(books.0);
    reactor.stop();
    drop(books.1);
}

// ---- live ----

#[test]
fn the_state_is_open_while_a_channel_is_pending_and_live_after() {
    let (_server, peer, client, inbox) = venue_with(Script::new().ignore(), |config| config);
    client.wait(State::Live, WAIT).unwrap();
    let _book = client.start_subscribe("book.a").unwrap();
    let request = expect_said(&peer, "public/subscribe book.a");
    until(|| client.state() == State::Open);
    assert!(matches!(client.wait(State::Live, ms(20)), Err(Error::Timeout { .. })));
    confirm(&peer, &request, &["book.a"]);
    client.wait(State::Live, WAIT).unwrap();
    assert_eq!(next_line(&inbox), "Live");
}

#[test]
fn what_is_asked_for_is_wanted_at_once() {
    let (_server, _peer, client, _inbox) = venue_with(Script::new().ignore(), |config| config);
    for number in 0..20 {
        let ticker = client.start_subscribe(format!("ticker.{number}").as_str()).unwrap();
        assert_eq!(client.state(), State::Open, "no confirmation has come");
        drop(ticker);
        client.wait(State::Live, WAIT).unwrap();
    }
}

#[test]
fn an_old_confirmation_does_not_stand_for_a_new_subscription() {
    let (_server, _peer, client, _inbox) = venue_with(exchange_that_confirms_once(), |config| config);
    drop(client.subscribe("book.a").unwrap());
    let again = client.subscribe("book.a");
    assert!(matches!(again, Err(Error::ChannelsRejected(_))), "the venue refuses it the second time, and we say {again:?}");
}

#[test]
fn an_old_refusal_does_not_stand_for_a_new_subscription() {
    let (_server, _peer, client, _inbox) = venue_with(exchange_that_first_refuses("book.a"), |config| config.max_backoff(NEVER));
    let first = client.start_subscribe("book.a").unwrap();
    assert!(matches!(first.wait(WAIT), Err(Error::ChannelsRejected(_))));
    let _again = client.subscribe("book.a").expect("the venue accepts it the second time");
}

#[test]
fn messages_are_held_until_the_restore_is_complete_if_so_configured() {
    let (server, peer, client, inbox) = venue_with(exchange(accepts), |config| config.hold_until(State::Live));
    let _book = client.subscribe("book.a").unwrap();
    server.script_next(Script::new().ignore());
    peer.reset();
    until_open(&inbox);
    let peer = server.accept(WAIT).unwrap();
    assert!(matches!(client.send("too early"), Err(Error::NotConnected)));
    confirm(&peer, &expect_said(&peer, "public/subscribe book.a"), &["book.a"]);
    client.wait(State::Live, WAIT).unwrap();
    client.send("in time").unwrap();
    peer.expect("in time", WAIT).unwrap();
}

// ---- an inbox of their own ----

#[test]
fn data_goes_to_the_inbox_of_its_channel_and_not_to_the_main_one() {
    let (_server, peer, client, inbox) = venue();
    let side = Inbox::shared(10);
    let _book = client.subscribe(Channels::new(["book.a"]).inbox(&side)).unwrap();
    tick(&peer, "book.a", 1);
    tick(&peer, "book.b", 2);
    assert_eq!(lines(&inbox, 2), ["Live".to_owned(), data("book.b", 2)]);
    assert_eq!(lines(&side, 2), ["Live".to_owned(), data("book.a", 1)]);
    assert_eq!((inbox.len(), side.len()), (0, 0));
}

#[test]
fn data_goes_to_both_inboxes_if_another_subscription_wants_it_without_one() {
    let (_server, peer, client, inbox) = venue();
    let side = Inbox::shared(10);
    let _book = client.subscribe(Channels::new(["book.a"]).inbox(&side)).unwrap();
    let plain = client.subscribe("book.a").unwrap();
    tick(&peer, "book.a", 1);
    until_line(&inbox, &data("book.a", 1));
    until_line(&side, &data("book.a", 1));
    drop(plain);
    let _other = client.subscribe("book.b").unwrap();
    until_line(&inbox, "Live");
    tick(&peer, "book.a", 2);
    until_line(&side, &data("book.a", 2));
    assert!(inbox.is_empty());
}

#[test]
fn the_inbox_of_a_channel_is_told_of_the_wire_as_well() {
    let (_server, peer, client, _inbox) = venue();
    let side = Inbox::shared(10);
    let _book = client.subscribe(Channels::new(["book.a"]).inbox(&side)).unwrap();
    peer.close(1012, "restart");
    assert_eq!(lines(&side, 4), ["Live", "lost, again in 0ns: the peer closed with code 1012: restart", "open", "Live"]);
    client.close().unwrap();
    assert_eq!(next_line(&side), "closed");
}

#[test]
fn a_full_inbox_of_a_channel_drops_with_a_gap_and_the_main_feed_goes_on() {
    let (_server, peer, client, inbox) = venue();
    let side = Inbox::shared(2);
    let _book = client.subscribe(Channels::new(["book.a"]).inbox(&side)).unwrap();
    assert_eq!((next_line(&side), next_line(&inbox)), ("Live".into(), "Live".into()));
    (1..=5).for_each(|number| tick(&peer, "book.a", number));
    tick(&peer, "book.b", 6);
    assert_eq!(next_line(&inbox), data("book.b", 6));
    assert_eq!(lines(&side, 3), [data("book.a", 1), data("book.a", 2), "gap of 3".to_owned()]);
    tick(&peer, "book.a", 7);
    assert_eq!(next_line(&side), data("book.a", 7));
    assert_eq!(client.metrics().dropped, 3);
}

#[test]
fn two_subscriptions_that_share_an_inbox_get_each_message_once() {
    let (_server, peer, client, _inbox) = venue();
    let side = Inbox::shared(10);
    let one = client.subscribe(Channels::new(["book.a"]).inbox(&side)).unwrap();
    let _other = client.subscribe(Channels::new(["book.a", "book.b"]).inbox(&side)).unwrap();
    assert_eq!(lines(&side, 2), ["Live", "Live"]);
    tick(&peer, "book.a", 1);
    tick(&peer, "book.b", 2);
    assert_eq!(lines(&side, 2), [data("book.a", 1), data("book.b", 2)]);
    drop(one);
    tick(&peer, "book.a", 3);
    assert_eq!((next_line(&side), side.len()), (data("book.a", 3), 0));
}

#[test]
fn each_of_two_inboxes_gets_what_its_subscription_wants() {
    let (_server, peer, client, _inbox) = venue();
    let sides = [Inbox::shared(10), Inbox::shared(10)];
    let _books = client.subscribe(Channels::new(["book.a", "book.b"]).inbox(&sides[0])).unwrap();
    let _others = client.subscribe(Channels::new(["book.b", "book.c"]).inbox(&sides[1])).unwrap();
    for (number, channel) in ["book.a", "book.b", "book.c"].into_iter().enumerate() {
        tick(&peer, channel, number as u64);
    }
    until_line(&sides[0], &data("book.a", 0));
    until_line(&sides[0], &data("book.b", 1));
    until_line(&sides[1], &data("book.b", 1));
    until_line(&sides[1], &data("book.c", 2));
    assert_eq!((sides[0].len(), sides[1].len()), (0, 0));
}

#[test]
fn a_channel_whose_subscription_with_an_inbox_is_dropped_comes_to_the_main_one_again() {
    let (_server, peer, client, inbox) = venue();
    let side = Inbox::shared(10);
    let book = client.subscribe(Channels::new(["book.a"]).inbox(&side)).unwrap();
    assert_eq!((next_line(&side), next_line(&inbox)), ("Live".into(), "Live".into()));
    drop(book);
    expect_said(&peer, "public/unsubscribe book.a");
    tick(&peer, "book.a", 1);
    assert_eq!((next_line(&inbox), side.len()), (data("book.a", 1), 0));
    drop(client);
    assert_eq!(next_line(&inbox), "closed");
    assert!(side.is_empty(), "nothing concerns it any more");
}

#[test]
fn the_inbox_that_gets_all_messages_gets_those_of_its_channel_once() {
    let server = serve(exchange(accepts));
    let inbox = Inbox::shared(10);
    let client = connect_with(config(&server).dialect(JsonRpc::new()), &inbox).unwrap();
    let book = client.subscribe(Channels::new(["book.a"]).inbox(&inbox)).unwrap();
    let peer = server.accept(WAIT).unwrap();
    tick(&peer, "book.a", 1);
    assert_eq!(lines(&inbox, 4), ["dialing 1".to_owned(), "open".into(), "Live".into(), data("book.a", 1)]);
    drop(book);
    expect_said(&peer, "public/unsubscribe book.a");
    assert!(inbox.is_empty());
}

#[test]
fn one_inbox_takes_the_channels_of_two_connections() {
    let (_server, peer, client, _inbox) = venue();
    let (_second, other_peer, other, _second_inbox) = venue();
    let side = Inbox::shared(10);
    let _books = [&client, &other].map(|client| client.subscribe(Channels::new(["book.a"]).inbox(&side)).unwrap());
    assert_eq!(lines(&side, 2), ["Live", "Live"]);
    tick(&peer, "book.a", 1);
    assert_eq!(line_of(&side, &client), data("book.a", 1));
    tick(&other_peer, "book.a", 2);
    assert_eq!(line_of(&side, &other), data("book.a", 2));
}

#[test]
fn a_refused_channel_is_reported_to_its_inbox_and_to_no_other() {
    let (_server, _peer, client, inbox) = venue_with(exchange(accepts), |config| config.max_backoff(NEVER));
    let (side, other) = (Inbox::shared(10), Inbox::shared(10));
    let book = client.start_subscribe(Channels::new(["bad"]).inbox(&side)).unwrap();
    let _other = client.start_subscribe(Channels::new(["book.a"]).inbox(&other)).unwrap();
    assert_eq!(next_line(&inbox), rejected("bad", NOT_ACCEPTED));
    assert_eq!(next_line(&side), rejected("bad", NOT_ACCEPTED));
    drop(book);
    assert_eq!(next_line(&other), "Live");
}

#[test]
fn a_subscription_goes_on_without_its_inbox() {
    let (_server, peer, client, inbox) = venue();
    let side = Inbox::shared(10);
    let book = client.subscribe(Channels::new(["book.a"]).inbox(&side)).unwrap();
    drop(side);
    tick(&peer, "book.a", 1);
    tick(&peer, "book.b", 2);
    until_line(&inbox, &data("book.b", 2));
    assert!(book.is_confirmed());
    assert_eq!(client.metrics().discarded, 1);
}

// ---- silence and sequence ----

#[test]
fn a_silent_channel_is_reported_and_subscribed_anew_and_no_other() {
    let (_server, peer, client, inbox) = venue();
    let _other = client.subscribe("book.b").unwrap();
    let _book = client.subscribe(Channels::new(["book.a"]).silence(ms(100))).unwrap();
    assert_eq!(lines(&inbox, 2), ["Live", "Live"]);
    match next(&inbox) {
        Event::ChannelSilent { channel, quiet } => assert!(&*channel == "book.a" && quiet >= ms(100), "{channel} {quiet:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(next_line(&inbox), "Live");
    assert_eq!(said(&peer)[2..4], ["public/unsubscribe book.a", "public/subscribe book.a"]);
    assert!(said(&peer)[2..].iter().all(|line| line.ends_with(" book.a")), "{:?}", said(&peer));
}

#[test]
fn a_channel_that_talks_is_not_silent() {
    let (_server, peer, client, inbox) = venue();
    let _book = client.subscribe(Channels::new(["book.a"]).silence(ms(1000))).unwrap();
    assert_eq!(next_line(&inbox), "Live");
    for number in 0..6 {
        assert!(inbox.recv_timeout(ms(250)).is_err());
        tick(&peer, "book.a", number);
        assert_eq!(next_line(&inbox), data("book.a", number));
    }
    assert_eq!(said(&peer), ["public/subscribe book.a"]);
}

#[test]
fn a_hole_in_the_sequence_of_a_channel_is_reported() {
    let (_server, peer, client, inbox) = venue_with(exchange(accepts), |config| config.dialect(numbered()));
    let _book = client.subscribe(Channels::new(["book.a"]).check_sequence()).unwrap();
    for (previous, last) in [(None, 10), (Some(10), 12), (Some(15), 16), (Some(16), 17)] {
        change(&peer, "book.a", previous, last);
    }
    let events: Vec<_> = (0..6).map(|_| next(&inbox)).collect();
    let gaps: Vec<_> = events.iter().filter(|event| matches!(event, Event::Gap { .. })).map(|gap| format!("{gap:?}")).collect();
    assert_eq!(gaps, [r#"Gap { channel: Some("book.a"), missing: 3 }"#]);
    assert_eq!(said(&peer), ["public/subscribe book.a"], "and that is all");
}

#[test]
fn a_hole_is_told_before_the_message_that_shows_it() {
    let (_server, peer, client, inbox) = venue_with(exchange(accepts), |config| config.dialect(numbered()));
    let _book = client.subscribe(Channels::new(["book.a"]).check_sequence()).unwrap();
    change(&peer, "book.a", None, 10);
    change(&peer, "book.a", Some(15), 16);
    assert_eq!(lines(&inbox, 2)[0], "Live");
    assert_eq!(next_line(&inbox), "gap of 5", "messages are missing here, says the event");
}

#[test]
fn a_channel_with_a_hole_is_subscribed_anew_if_so_configured() {
    let (_server, peer, client, inbox) =
        venue_with(exchange(accepts), |config| config.dialect(numbered()).on_gap(GapPolicy::Resubscribe));
    let _books = client.subscribe(Channels::new(["book.a", "book.b"]).check_sequence()).unwrap();
    change(&peer, "book.a", None, 10);
    change(&peer, "book.a", Some(15), 16);
    expect_said(&peer, "public/unsubscribe book.a");
    expect_said(&peer, "public/subscribe book.a");
    assert_eq!(next_line(&inbox), "Live");
    until_line(&inbox, "Live");
    change(&peer, "book.a", Some(40), 41);
    assert!(next_line(&inbox).starts_with("text"), "the sequence begins anew");
    assert_eq!(said(&peer).len(), 3);
}

#[test]
fn a_channel_whose_sequence_is_not_checked_may_have_holes() {
    let (_server, peer, client, inbox) = venue_with(exchange(accepts), |config| config.dialect(numbered()));
    let _book = client.subscribe("book.a").unwrap();
    change(&peer, "book.a", Some(1), 2);
    change(&peer, "book.a", Some(5), 6);
    tick(&peer, "book.a", 1);
    assert_eq!(lines(&inbox, 4)[3], data("book.a", 1));
}

#[test]
fn an_inbox_with_room_is_told_of_a_hole_though_the_main_one_is_full() {
    let (_server, peer, client, _main) =
        venue_with(exchange(accepts), |config| config.dialect(numbered()).inbox_capacity(1).overflow(Overflow::DropNewest));
    let side = Inbox::shared(10);
    let _book = client.subscribe(Channels::new(["book.a"]).check_sequence().inbox(&side)).unwrap();
    tick(&peer, "other", 0);
    change(&peer, "book.a", None, 10);
    change(&peer, "book.a", Some(15), 16);
    settle(&peer);
    let lines: Vec<_> = std::iter::from_fn(|| side.try_recv().unwrap()).map(|received| line(&received.event)).collect();
    assert!(lines.contains(&"gap of 5".to_owned()), "{lines:?}");
}

// ---- other languages ----

#[test]
fn a_venue_without_ids_confirms_by_name_one_by_one() {
    let (_server, peer, client, inbox) = venue_with(Script::new().ignore(), |config| config.dialect(ByName));
    let both = client.start_subscribe(["a", "b"]).unwrap();
    peer.expect(r#"{"op":"subscribe","args":["a", "b"]}"#, WAIT).unwrap();
    peer.send_text(r#"{"event":"subscribed","arg":"a"}"#);
    until(|| both.standings() == [("a".into(), Standing::Confirmed), ("b".into(), Standing::Pending)]);
    peer.send_text(r#"{"event":"subscribed","arg":"b"}"#);
    until_line(&inbox, "Live");
    assert!(both.is_confirmed());
}

#[test]
fn a_venue_without_ids_refuses_by_name() {
    let script = Script::new().on_text(|peer, _| peer.send_text(r#"{"event":"subscribed","arg":"b","error":"no such pair"}"#));
    let (_server, _peer, client, _inbox) = venue_with(script, |config| config.dialect(ByName));
    assert_eq!(refusals(&client.subscribe("b").unwrap_err()), ["b: no such pair"]);
}

#[test]
fn a_dialect_that_panics_closes_its_connection_and_no_other() {
    for place in ["subscribe", "confirm"] {
        let (_server, peer, healthy, inbox) = venue();
        let (_other, _peer, client, broken) = venue_with(exchange(accepts), |config| config.dialect(Broken(place)));
        let error = client.subscribe("book.a").unwrap_err();
        assert!(matches!(&error, Error::Panicked(text) if **text == *place), "{error:?}");
        assert!(matches!(until_closed(&broken), Some(Error::Panicked(_))));
        let _book = healthy.subscribe("book.a").unwrap();
        tick(&peer, "book.a", 1);
        until_line(&inbox, &data("book.a", 1));
    }
}

#[test]
fn a_dialect_that_panics_on_unsubscribing_closes_its_connection() {
    let (_server, _peer, client, inbox) = venue_with(exchange(accepts), |config| config.dialect(Broken("unsubscribe")));
    drop(client.subscribe("book.a").unwrap());
    assert!(matches!(until_closed(&inbox), Some(Error::Panicked(_))));
}

// ---- helpers ----

const NOT_ACCEPTED: &str = "not among the channels the venue accepted";

/// A client on an exchange in the manner of Deribit's that refuses channels whose names begin with `bad`.
fn venue() -> (MockServer, Peer, Client, Inbox) {
    venue_with(exchange(accepts), |config| config)
}

fn venue_with(script: Script, set: impl FnOnce(Config) -> Config) -> (MockServer, Peer, Client, Inbox) {
    session_with(script, |config| set(config.dialect(JsonRpc::new())))
}

fn accepts(channel: &str) -> bool {
    !channel.starts_with("bad")
}

/// Answers each request with those of its channels that are accepted.
fn exchange(accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Script {
    Script::new().on_text(move |peer, text| {
        let accepted: Vec<_> = channels_in(text).into_iter().filter(|channel| accepts(channel)).collect();
        peer.send_text(&json!({ "jsonrpc": "2.0", "id": id_in(text), "result": accepted }).to_string());
    })
}

/// Leaves this many requests unanswered first.
fn exchange_deaf_to(count: u32) -> Script {
    let seen = AtomicU32::new(0);
    Script::new().on_text(move |peer, text| {
        if seen.fetch_add(1, Ordering::SeqCst) >= count {
            peer.send_text(&json!({ "id": id_in(text), "result": channels_in(text) }).to_string());
        }
    })
}

fn exchange_that_first_refuses(channel: &'static str) -> Script {
    let refused = AtomicBool::new(false);
    exchange(move |asked| asked != channel || refused.swap(true, Ordering::SeqCst))
}

fn exchange_that_confirms_once() -> Script {
    let confirmed = AtomicBool::new(false);
    Script::new().on_text(move |peer, text| {
        let is_first = text.contains("public/subscribe") && !confirmed.swap(true, Ordering::SeqCst);
        let accepted = if is_first { channels_in(text) } else { vec![] };
        peer.send_text(&json!({ "id": id_in(text), "result": accepted }).to_string());
    })
}

fn id_in(text: &str) -> u64 {
    serde_json::from_str::<Value>(text).unwrap()["id"].as_u64().unwrap()
}

fn channels_in(text: &str) -> Vec<String> {
    let request: Value = serde_json::from_str(text).unwrap();
    let channels = request["params"]["channels"].as_array().into_iter().flatten();
    channels.map(|channel| channel.as_str().unwrap().to_owned()).collect()
}

/// The requests of this client as lines: the method and the channels.
fn said(peer: &Peer) -> Vec<String> {
    peer.captured().iter().filter_map(request_line).collect()
}

fn request_line(captured: &Captured) -> Option<String> {
    let text = captured.text()?;
    let request: Value = serde_json::from_str(text).ok()?;
    Some(format!("{} {}", request["method"].as_str()?, channels_in(text).join(" ")))
}

fn expect_said(peer: &Peer, line: &'static str) -> Captured {
    peer.expect(Matcher::when(move |captured| request_line(captured).as_deref() == Some(line)), WAIT).unwrap()
}

/// Answers this request with these channels.
fn confirm(peer: &Peer, request: &Captured, channels: &[&str]) {
    peer.send_text(&json!({ "id": id_in(request.text().unwrap()), "result": channels }).to_string());
}

/// What is said on the next wire at first. The events up to its `Open` are taken.
fn after_kill(server: &MockServer, peer: &Peer, inbox: &Inbox) -> Vec<String> {
    peer.reset();
    until_lost(inbox);
    until_open(inbox);
    let peer = server.accept(WAIT).unwrap();
    settle(&peer);
    said(&peer)
}

fn tick(peer: &Peer, channel: &str, number: u64) {
    peer.send_text(&push(channel, number));
}

fn push(channel: &str, number: u64) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{channel}","data":{number}}}}}"#)
}

/// The line of a tick.
fn data(channel: &str, number: u64) -> String {
    format!("text {}", push(channel, number))
}

/// As JSON-RPC, with the sequence of Deribit's books.
fn numbered() -> JsonRpc {
    JsonRpc::new().sequence("prev_change_id", "change_id")
}

fn change(peer: &Peer, channel: &str, previous: Option<u64>, last: u64) {
    let data = json!({ "prev_change_id": previous, "change_id": last });
    peer.send_text(&json!({ "method": "subscription", "params": { "channel": channel, "data": data } }).to_string());
}

fn rejected(channel: &str, reason: &str) -> String {
    format!("Rejected {{ channel: {channel:?}, reason: {reason:?} }}")
}

fn refusals(error: &Error) -> Vec<String> {
    match error {
        Error::ChannelsRejected(list) => list.iter().map(|it| format!("{}: {}", it.channel, it.reason)).collect(),
        other => panic!("{other:?}"),
    }
}

fn until_line(inbox: &Inbox, wanted: &str) {
    while next_line(inbox) != wanted {}
}

/// The line of the next event, which must be of this client.
fn line_of(inbox: &Inbox, client: &Client) -> String {
    let received = inbox.recv_timeout(WAIT).unwrap();
    assert_eq!(received.connection, client.id());
    line(&received.event)
}

/// A venue without ids.
struct ByName;

impl Dialect for ByName {
    fn name(&self) -> &str {
        "by name"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        match peek::keys(text).next() {
            Some(("channel", value)) => peek::string(value).map_or(Inbound::Message, |channel| Inbound::Data { channel }),
            Some(("event", _)) => Inbound::Confirmation,
            _ => Inbound::Message,
        }
    }

    fn subscribe(&self, _: u64, channels: &[&str]) -> Result<Subscribe> {
        Ok(Subscribe { text: format!(r#"{{"op":"subscribe","args":{channels:?}}}"#), id: None, channels: channels.len() })
    }

    fn unsubscribe(&self, _: u64, channels: &[&str]) -> Result<Subscribe> {
        Ok(Subscribe { text: format!(r#"{{"op":"unsubscribe","args":{channels:?}}}"#), id: None, channels: channels.len() })
    }

    fn confirm(&self, reply: &str, _: &[&str]) -> Confirmation {
        let text = |key| peek::field(reply, key).and_then(peek::string).map(String::from);
        match (text("arg"), text("error")) {
            (Some(channel), None) => Confirmation { accepted: vec![channel], rejected: vec![] },
            (Some(channel), Some(error)) => Confirmation { accepted: vec![], rejected: vec![(channel, error)] },
            (None, _) => Confirmation::default(),
        }
    }
}

/// As JSON-RPC, but panics in the method of this name.
struct Broken(&'static str);

impl Broken {
    fn check(&self, place: &str) -> JsonRpc {
        assert!(self.0 != place, "{place}");
        JsonRpc::new()
    }
}

impl Dialect for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        JsonRpc::new().classify(text)
    }

    fn subscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        self.check("subscribe").subscribe(number, channels)
    }

    fn unsubscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        self.check("unsubscribe").unsubscribe(number, channels)
    }

    fn confirm(&self, reply: &str, channels: &[&str]) -> Confirmation {
        self.check("confirm").confirm(reply, channels)
    }
}
