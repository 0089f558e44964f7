//! What happens between the reactor and those who take events, above all when they are slow.

mod common;

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use zen_websocket::testkit::{ClientMessage, Frame, Matcher, MockServer, Peer, Script};
use zen_websocket::{
    Client, Config, Driver, Error, Event, Inbox, Overflow, Reactor, Sent, Sink, State, connect, connect_with, open_with,
};

use self::common::*;

// ---- full: block ----

#[test]
fn a_blocked_inbox_loses_nothing_and_keeps_the_order() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(10));
    send_numbers(&peer, 0..5000);
    for number in 0..5000 {
        assert_eq!(text(&inbox), number.to_string());
        assert!(inbox.len() <= 10, "{}", inbox.len());
    }
    settle(&peer);
    assert_eq!((client.metrics().messages_in, client.metrics().dropped), (5000, 0));
}

#[test]
fn what_a_blocked_inbox_has_read_already_comes_before_the_loss() {
    let (_server, peer, _client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(10).reconnect(false));
    send_numbers(&peer, 0..3000);
    peer.close(1001, "");
    for number in 0..3000 {
        assert_eq!(text(&inbox), number.to_string());
    }
    assert_eq!(until_closed(&inbox).unwrap().to_string(), "the peer closed with code 1001");
}

#[test]
fn a_blocked_inbox_slows_the_peer_down_and_through_it_our_own_sends() {
    let (_server, _peer, client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(10));
    let filler = "x".repeat(16 << 10);
    let mut sent = 0;
    // The server reads no more when its echoes are not taken.
    while let Ok(Sent::Written | Sent::Buffered) = client.send(&format!("{sent} {filler}")) {
        sent += 1;
        assert!(sent < 10_000, "nothing ever pushed back");
    }
    assert!(inbox.len() <= 10 && client.unsent() > 0);
    for number in 0..sent {
        assert_eq!(text(&inbox).split_once(' ').unwrap().0, number.to_string());
    }
    client.send("room again").unwrap();
    assert_eq!(text(&inbox), "room again");
    assert_eq!(client.generation().number(), 1);
}

#[test]
fn a_peer_is_not_taken_for_silent_while_the_inbox_is_full() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| {
        config.inbox_capacity(10).heartbeat_interval(ms(50)).patience(ms(400)).data_silence(ms(400))
    });
    send_numbers(&peer, 0..100);
    for _ in 0..20 {
        peer.expect(a_ping(), WAIT).unwrap();
    }
    for number in 0..100 {
        assert_eq!(text(&inbox), number.to_string());
    }
    assert_eq!((client.generation().number(), client.heartbeat().misses), (1, 0));
}

#[test]
fn close_returns_though_the_inbox_is_full() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(10).close_timeout(ms(100)));
    send_numbers(&peer, 0..1000);
    until(|| inbox.len() >= 10);
    quickly(|| client.close().unwrap());
    let lines = lines_to_end(&inbox);
    assert_eq!(lines.last().unwrap(), "closed");
    let numbers: Vec<_> = (0..lines.len() - 1).map(|number| format!("text {number}")).collect();
    assert_eq!(lines[..lines.len() - 1], numbers);
}

#[test]
fn stop_returns_though_the_inbox_is_full() {
    let reactor = Reactor::builder().start().unwrap();
    let server = MockServer::start().unwrap();
    let (_client, inbox) = reactor.connect(config(&server).inbox_capacity(10)).unwrap();
    send_numbers(&server.accept(WAIT).unwrap(), 0..1000);
    until(|| inbox.len() >= 10);
    quickly(|| reactor.stop());
    assert!(matches!(until_closed(&inbox), Some(Error::Stopped)));
}

// ---- full: drop ----

#[test]
fn a_gap_says_exactly_how_much_was_dropped_and_where() {
    let (_server, peer, client, inbox) = dropping();
    send_numbers(&peer, 0..100);
    settle(&peer);
    let numbers: Vec<_> = (0..10).map(|number| format!("text {number}")).collect();
    assert_eq!(lines(&inbox, 10), numbers);
    assert_eq!(next_line(&inbox), "gap of 90");
    peer.send_text("after the gap");
    assert_eq!(text(&inbox), "after the gap");
    settle(&peer);
    assert_eq!((client.metrics().messages_in, client.metrics().dropped), (101, 90));
}

#[test]
fn gaps_and_messages_add_up_whatever_the_pace() {
    let (_server, peer, client, inbox) = dropping();
    send_numbers(&peer, 0..20_000);
    peer.close(1000, "");
    let (mut expected, mut dropped) = (0, 0);
    for received in &inbox {
        match received.event {
            Event::Message(message) => {
                assert_eq!(message.text().unwrap(), expected.to_string(), "the gap stands where the messages are missing");
                expected += 1;
            }
            Event::Gap { missing: more, .. } => {
                expected += more;
                dropped += more;
            }
            Event::Lost { .. } | Event::Closed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let metrics = client.metrics();
    assert_eq!((expected, metrics.messages_in, metrics.dropped), (20_000, 20_000, dropped));
}

#[test]
fn state_events_are_delivered_to_a_full_inbox() {
    let (_server, peer, client, inbox) = dropping();
    send_numbers(&peer, 0..100);
    peer.close(4001, "over");
    client.wait(State::Closed, WAIT).unwrap();
    let cause = "the peer closed with code 4001: over";
    let end = ["gap of 90".to_owned(), format!("lost, for good: {cause}"), format!("closed: {cause}")];
    let lines = lines_to_end(&inbox);
    assert_eq!((lines.len(), &lines[10..]), (13, &end[..]));
}

// ---- full: disconnect ----

#[test]
fn an_inbox_that_disconnects_when_full_closes_with_the_reason() {
    let (_server, peer, client, inbox) =
        session_with(Script::new(), |config| config.inbox_capacity(10).overflow(Overflow::Disconnect));
    send_numbers(&peer, 0..11);
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1001, String::new())));
    let lines = lines_to_end(&inbox);
    assert!(matches!(client.wait(State::Open, WAIT), Err(Error::InboxFull)));
    assert_eq!((lines.len(), lines[9].as_str(), lines[10].as_str()), (11, "text 9", "closed: the inbox was full"));
}

// ---- nobody listens ----

#[test]
fn a_dropped_inbox_discards_and_counts() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(10));
    drop(inbox);
    send_numbers(&peer, 0..1000);
    settle(&peer);
    assert_eq!((client.metrics().messages_in, client.metrics().discarded, client.metrics().dropped), (1000, 1000, 0));
    client.send("still open").unwrap();
    peer.expect("still open", WAIT).unwrap();
    client.close().unwrap();
}

#[test]
fn a_blocked_inbox_that_is_dropped_lets_the_rest_through() {
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.inbox_capacity(10));
    send_numbers(&peer, 0..1000);
    until(|| inbox.len() >= 10);
    drop(inbox);
    settle(&peer);
    let metrics = client.metrics();
    assert_eq!((metrics.messages_in, metrics.dropped), (1000, 0));
    assert!(metrics.discarded >= 990 && metrics.discarded <= 1000, "{}", metrics.discarded);
}

// ---- shared ----

#[test]
fn several_connections_feed_one_inbox() {
    let server = MockServer::start().unwrap();
    let inbox = Inbox::shared(100);
    let clients: Vec<_> = (0..3).map(|_| connect_with(config(&server), &inbox).unwrap()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send(&format!("to {number}")).unwrap();
    }
    let mut seen: HashMap<_, Vec<_>> = HashMap::new();
    for _ in 0..9 {
        let received = inbox.recv_timeout(WAIT).unwrap();
        seen.entry(received.connection).or_default().push(line(&received.event));
    }
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(seen[&client.id()], ["dialing 1".to_owned(), "open".to_owned(), format!("text to {number}")]);
    }
}

#[test]
fn a_shared_inbox_does_not_end_with_its_connections() {
    let server = MockServer::start().unwrap();
    let inbox = Inbox::shared(100);
    for _ in 0..2 {
        let client = open_with(config(&server), &inbox).unwrap();
        wait_open(&client);
        client.close().unwrap();
        assert_eq!(lines(&inbox, 3), ["dialing 1", "open", "closed"]);
    }
    assert!(matches!(inbox.try_recv(), Ok(None)));
}

#[test]
fn each_connection_keeps_its_own_policy_in_a_shared_inbox() {
    let server = MockServer::start().unwrap();
    let inbox = Inbox::shared(10);
    let block = connect_with(config(&server), &inbox).unwrap();
    let blocked = server.accept(WAIT).unwrap();
    let drop = connect_with(config(&server).overflow(Overflow::DropNewest), &inbox).unwrap();
    let dropped = server.accept(WAIT).unwrap();
    lines(&inbox, 4);
    send_numbers(&dropped, 0..100);
    settle(&dropped);
    send_numbers(&blocked, 0..100);
    let (mut kept, mut lost, mut whole) = (0, 0, 0);
    while kept + lost < 100 || whole < 100 {
        let received = inbox.recv_timeout(WAIT).unwrap();
        match received.event {
            Event::Message(_) if received.connection == block.id() => whole += 1,
            Event::Message(_) => kept += 1,
            Event::Gap { missing: dropped, .. } => lost += dropped,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((kept, lost, whole), (10, 90, 100));
    assert_eq!((block.metrics().dropped, drop.metrics().dropped), (0, 90));
}

#[test]
fn an_inbox_of_one_connection_takes_no_other_and_none_is_without_room() {
    let (_server, _peer, _client, inbox) = session(Script::new());
    assert!(catch_unwind(AssertUnwindSafe(|| Sink::from(&inbox))).is_err());
    assert!(catch_unwind(|| Inbox::shared(0)).is_err());
}

#[test]
fn workers_share_the_events_of_an_inbox_and_each_sees_them_in_order() {
    let (_server, peer, client, inbox) = session(Script::new());
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let inbox = inbox.clone();
            thread::spawn(move || {
                inbox.into_iter().filter_map(|it| number(&it.event)).inspect(|_| thread::yield_now()).collect::<Vec<_>>()
            })
        })
        .collect();
    send_numbers(&peer, 0..3000);
    settle(&peer);
    client.close().unwrap();
    let shares: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    assert!(shares.iter().all(|share| share.is_sorted()));
    assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), 3000);
    assert_eq!(shares.concat().into_iter().collect::<HashSet<_>>().len(), 3000);
}

// ---- ways to take events ----

#[test]
fn an_inbox_is_asked_with_and_without_waiting() {
    let (_server, peer, client, inbox) = session(Script::new());
    assert!(matches!(inbox.try_recv(), Ok(None)));
    let began = Instant::now();
    let waited = inbox.recv_timeout(ms(50)).unwrap_err();
    assert!(matches!(waited, Error::Timeout { after, .. } if after == ms(50)), "{waited:?}");
    assert!(began.elapsed() >= ms(50));
    peer.send_text("recv");
    assert_eq!(line(&inbox.recv().unwrap().event), "text recv");
    peer.send_text("spin");
    assert_eq!(line(&inbox.spin().unwrap().event), "text spin");
    peer.send_text("select");
    let selected = crossbeam_channel::select! {
        recv(inbox.receiver()) -> received => line(&received.unwrap().event),
        default(WAIT) => panic!("nothing came"),
    };
    assert_eq!((selected.as_str(), inbox.len(), inbox.is_empty()), ("text select", 0, true));
    client.close().unwrap();
    assert_eq!(line(&inbox.recv().unwrap().event), "closed");
    assert!(matches!(inbox.recv(), Err(Error::Closed)));
    assert!(matches!(inbox.try_recv(), Err(Error::Closed)));
    assert!(matches!(inbox.recv_timeout(WAIT), Err(Error::Closed)));
    assert!(matches!(inbox.spin(), Err(Error::Closed)));
    assert!(inbox.receiver().recv().is_err());
}

#[test]
fn iteration_ends_after_closed() {
    let (_server, peer, client, inbox) = session(Script::new());
    peer.send_text("one");
    let mut iter = inbox.iter();
    assert_eq!(line(&iter.next().unwrap().event), "text one");
    client.start_close(1000, "").unwrap();
    assert_eq!(iter.by_ref().map(|it| line(&it.event)).collect::<Vec<_>>(), ["closed"]);
    assert!(iter.next().is_none());
    assert_eq!((&inbox).into_iter().count() + inbox.into_iter().count(), 0);
}

#[test]
fn messages_of_one_read_share_its_time() {
    let (_server, peer, _client, inbox) = session(Script::new());
    let before = Instant::now();
    peer.send_raw(b"\x81\x01a\x81\x01b\x81\x01c".repeat(10));
    let times: HashSet<_> = (0..30).map(|_| inbox.recv_timeout(WAIT).unwrap().at).collect();
    assert_eq!(times.len(), 1);
    assert!(times.iter().all(|at| *at >= before && *at <= Instant::now()));
}

#[test]
fn an_outage_does_not_fill_an_inbox_that_nobody_reads() {
    let (server, peer, client, inbox) =
        session_with(Script::new(), |config| config.inbox_capacity(10).base_delay(ms(1)).max_backoff(ms(1)));
    server.script(Script::new().status(503));
    peer.reset();
    assert!(server.wait_accepted(50, WAIT));
    assert!(inbox.len() <= 10, "{}", inbox.len());
    server.script(Script::new());
    wait_open(&client);
    while let Ok(Some(received)) = inbox.try_recv() {
        drop(received);
    }
    client.send("back").unwrap();
    while !matches!(next(&inbox), Event::Message(_)) {}
}

// ---- sleeping ----

#[test]
fn every_consumer_that_sleeps_sees_the_end() {
    let (_server, _peer, client, inbox) = session(Script::new());
    let (give, given) = mpsc::channel();
    for _ in 0..5 {
        let (inbox, give) = (inbox.clone(), give.clone());
        thread::spawn(move || give.send(inbox.iter().map(|received| line(&received.event)).collect::<Vec<_>>()));
    }
    client.close().unwrap();
    let lines: Vec<_> = (0..5).flat_map(|_| given.recv_timeout(WAIT).unwrap()).collect();
    assert_eq!(lines, ["closed"]);
}

#[test]
fn consumers_that_wait_and_those_that_select_share_an_inbox() {
    let (_server, peer, client, inbox) = session(Script::new());
    let (give, given) = mpsc::channel();
    for worker in 0..4 {
        let (inbox, give) = (inbox.clone(), give.clone());
        thread::spawn(move || {
            let next = || if worker % 2 == 0 { inbox.recv().ok() } else { inbox.receiver().recv().ok() };
            std::iter::from_fn(next).for_each(|received| give.send(line(&received.event)).unwrap());
        });
    }
    drop(give);
    // One at a time, so that whoever is to take it may be asleep.
    for number in 0..500 {
        peer.send_text(&number.to_string());
        assert_eq!(given.recv_timeout(WAIT).unwrap(), format!("text {number}"));
    }
    client.close().unwrap();
    assert_eq!(given.recv_timeout(WAIT).unwrap(), "closed");
    assert!(matches!(given.recv_timeout(WAIT), Err(mpsc::RecvTimeoutError::Disconnected)), "somebody sleeps on");
}

#[test]
fn a_consumer_may_look_for_a_while_before_it_sleeps() {
    let (_server, peer, client, inbox) = session(Script::new());
    for patience in [ms(1), NEVER] {
        let inbox = inbox.clone().spin_for(patience);
        assert!(matches!(inbox.recv_timeout(ms(50)), Err(Error::Timeout { after, .. }) if after == ms(50)));
        peer.send_text("for who looks");
        assert_eq!(line(&inbox.recv().unwrap().event), "text for who looks");
    }
    client.close().unwrap();
    assert_eq!(lines_to_end(&inbox.spin_for(NEVER)), ["closed"]);
}

// ---- our own sends against a peer that does not read ----

#[test]
fn sends_to_a_peer_that_does_not_read_are_bounded_and_visible() {
    let (_server, peer, client) = deaf(|config| config.unsent_max(10_000));
    let filler = "x".repeat(1000);
    let mut sent = 0;
    let full = loop {
        match client.send(&filler) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::Full { unsent } if unsent > 8000 && unsent <= 10_000), "{full:?}");
    assert!(client.unsent() > 8000 && client.unsent() <= 10_000, "{}", client.unsent());
    peer.resume_reading();
    for _ in 0..sent {
        peer.expect(&*filler, WAIT).unwrap();
    }
    until(|| client.unsent() == 0);
    assert_eq!(client.send("room again").unwrap(), Sent::Written);
    peer.expect("room again", WAIT).unwrap();
}

#[test]
fn without_a_tail_everything_but_a_begun_frame_is_refused() {
    let (_server, peer, client) = deaf(|config| config.unsent_max(0));
    let filler = "x".repeat(100_000);
    let mut sent = 0;
    while client.send(&filler).unwrap() == Sent::Written {
        sent += 1;
    }
    assert!(client.unsent() > 0 && client.unsent() < 100_014);
    assert!(matches!(client.send(""), Err(Error::Full { .. })));
    peer.resume_reading();
    for _ in 0..=sent {
        peer.expect(&*filler, WAIT).unwrap();
    }
    assert_eq!(peer.captured().len(), sent + 1, "the frame that had begun was finished");
}

#[test]
fn an_inbox_that_has_ended_says_so() {
    let (_server, _peer, client, inbox) = session(Script::new());
    client.close().unwrap();
    assert_eq!(lines_to_end(&inbox), ["closed"]);
    assert!(matches!(inbox.recv(), Err(Error::Closed)));
    assert!(matches!(inbox.recv_timeout(WAIT), Err(Error::Closed)));
    assert!(matches!(inbox.try_recv(), Err(Error::Closed)));
    assert!(matches!(inbox.spin(), Err(Error::Closed)));
}

#[test]
fn order_is_kept_when_a_write_fails_while_the_inbox_is_full() {
    // More than the dial and one receive hold, so that some is decoded, some only read and some left in the kernel.
    let messages = (0..4000).flat_map(|number| Frame::text(format!("{number:06} {}", "x".repeat(55))).to_bytes());
    let script = Script::new().ignore().glue(messages.collect::<Vec<_>>());
    let (_server, mut driver, inbox, client, peer) = driven(script, 16);
    turn_until(&mut driver, || inbox.len() >= 16);
    reset_until_a_send_fails(&peer, &client);
    let mut received: Vec<_> = (0..8).map(|_| inbox.try_recv().unwrap().unwrap().event).collect();
    turn_until(&mut driver, || client.state() == State::Closed);
    received.extend(std::iter::from_fn(|| inbox.try_recv().unwrap()).map(|received| received.event));
    let numbers: Vec<usize> = received
        .iter()
        .filter_map(|event| match event {
            Event::Message(message) => Some(message.text().unwrap()[..6].parse().unwrap()),
            _ => None,
        })
        .collect();
    assert!(numbers.len() > 100, "{}", numbers.len());
    assert_eq!(numbers, Vec::from_iter(0..numbers.len()));
}

#[test]
fn a_close_code_behind_a_full_inbox_is_the_cause_of_the_loss() {
    let (_server, mut driver, inbox, client, peer) = driven(Script::new().ignore(), 3);
    peer.send_raw([b"\x81\x01a\x81\x01b\x81\x01c".as_slice(), b"\x88\x06\x03\xF0slow"].concat());
    turn_until(&mut driver, || inbox.len() >= 3);
    reset_until_a_send_fails(&peer, &client);
    turn_until(&mut driver, || client.state() == State::Closed);
    let lines: Vec<_> = std::iter::from_fn(|| inbox.try_recv().unwrap()).map(|received| line(&received.event)).collect();
    assert!(lines.iter().any(|line| line.contains("code 1008")), "{lines:?}");
}

#[test]
fn a_wire_that_breaks_while_full_both_ways_is_noticed() {
    let server = MockServer::builder().script(Script::new().stop_reading()).receive_buffer(4096).start().unwrap();
    let set = config(&server).inbox_capacity(4).unsent_max(1 << 20).heartbeat_interval(None);
    let (client, inbox) = connect(set).unwrap();
    let peer = server.accept(WAIT).unwrap();
    while !matches!(client.send_binary(&[0; 60_000]), Err(Error::Full { .. })) {}
    (0..100).for_each(|_| peer.send_text("tick"));
    let began = Instant::now();
    while inbox.len() < 4 {
        assert!(began.elapsed() < WAIT);
        thread::yield_now();
    }
    peer.reset();
    assert!(server.wait_accepted(2, WAIT), "{:?}, and sends answer {:?}", client.state(), client.send("x"));
}

/// An open connection of a driver that this test turns, into an inbox of this capacity.
fn driven(script: Script, capacity: usize) -> (MockServer, Driver, Inbox, Client, Peer) {
    let server = serve(script);
    let mut driver = Driver::new().unwrap();
    let inbox = Inbox::shared(capacity);
    let client = driver.open_with(config(&server).reconnect(false), &inbox).unwrap();
    turn_until(&mut driver, || client.state().is_open());
    let peer = server.accept(WAIT).unwrap();
    (server, driver, inbox, client, peer)
}

fn reset_until_a_send_fails(peer: &Peer, client: &Client) {
    peer.reset();
    assert!(peer.wait_closed(WAIT));
    let began = Instant::now();
    while client.send("x").is_ok() {
        assert!(began.elapsed() < WAIT);
    }
}

/// Turns until this is so.
fn turn_until(driver: &mut Driver, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        driver.turn(ms(5)).unwrap();
        assert!(began.elapsed() < WAIT);
    }
}

// ---- helpers ----

fn dropping() -> (MockServer, Peer, Client, Inbox) {
    session_with(Script::new(), |config| config.inbox_capacity(10).overflow(Overflow::DropNewest).reconnect(false))
}

/// A client on a server that does not read.
fn deaf(set: impl FnOnce(Config) -> Config) -> (MockServer, Peer, Client) {
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().ignore().stop_reading()).start().unwrap();
    let (client, _inbox) = connect(set(config(&server))).unwrap();
    let peer = server.accept(WAIT).unwrap();
    (server, peer, client)
}

fn send_numbers(peer: &Peer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        peer.send_text(&number.to_string());
    }
}

fn number(event: &Event) -> Option<u64> {
    match event {
        Event::Message(message) => message.text().map(|text| text.parse().unwrap()),
        _ => None,
    }
}

fn a_ping() -> Matcher {
    Matcher::when(|it| matches!(it.message, ClientMessage::Ping(_)))
}

#[test]
fn heartbeats_to_a_peer_that_talks_but_does_not_read_do_not_pile_up() {
    let (_server, peer, client) = deaf(|config| config.unsent_max(1000).heartbeat_interval(ms(1)).patience(NEVER));
    let began = Instant::now();
    while began.elapsed() < ms(1000) {
        while client.send(&"x".repeat(100)).is_ok() {}
        peer.send_text("not silent");
        assert!(client.unsent() <= 1200, "{} bytes unsent after {:?}", client.unsent(), began.elapsed());
    }
}
