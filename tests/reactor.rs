//! Reactors and drivers: many connections on one thread, handlers that misbehave, loops of one's own, and the end of it all.

mod common;

use std::collections::HashSet;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use zen_websocket::testkit::{Frame, Matcher, MockServer, Peer, Script};
use zen_websocket::{
    Client, Config, Context, DialPlan, Driver, Error, Event, EventRef, Handler, Inbox, Overflow, Reactor, State, Wait, connect,
    connect_with,
};

use self::common::*;

// ---- many ----

#[test]
fn hundreds_of_connections_live_on_one_thread() {
    let server = MockServer::start().unwrap();
    let reactor = Reactor::builder().start().unwrap();
    let inbox = Inbox::shared(10_000);
    let clients: Vec<_> = (0..MANY).map(|_| reactor.open_with(config(&server), &inbox).unwrap()).collect();
    for client in &clients {
        wait_open(client);
        client.send(&client.id().to_string()).unwrap();
    }
    assert_eq!(server.peers().len(), MANY);
    let mut heard = Vec::new();
    while heard.len() < MANY {
        let received = inbox.recv_timeout(WAIT).unwrap();
        if let Event::Message(message) = received.event {
            assert_eq!(message.text().unwrap(), received.connection.to_string(), "to its own connection");
            heard.push(received.connection);
        }
    }
    heard.sort();
    assert_eq!(heard, clients.iter().map(Client::id).collect::<Vec<_>>());
    drop(clients);
    assert!(server.wait_connections(0, WAIT));
    assert_eq!((server.accepted() as usize, server.violations()), (MANY, vec![]));
}

#[test]
fn hundreds_of_connections_come_back_after_a_crash_of_the_server() {
    let server = MockServer::start().unwrap();
    let reactor = Reactor::builder().start().unwrap();
    let inbox = Inbox::shared(100_000);
    let clients: Vec<_> = (0..MANY).map(|_| reactor.open_with(config(&server), &inbox).unwrap()).collect();
    clients.iter().for_each(wait_open);
    server.kill_all();
    assert!(server.wait_accepted(2 * MANY as u64, WAIT));
    for client in &clients {
        wait_open(client);
        client.send("back").unwrap();
    }
    let mut back = 0;
    while back < MANY {
        if let Event::Message(message) = inbox.recv_timeout(WAIT).unwrap().event {
            assert_eq!(message.text(), Some("back"));
            back += 1;
        }
    }
}

#[test]
fn a_flood_on_one_connection_does_not_starve_another() {
    let reactor = Reactor::builder().start().unwrap();
    let server = MockServer::start().unwrap();
    let _flooded = reactor.connect_with(config(&server), Handler::new()).unwrap();
    let flood = server.accept(WAIT).unwrap();
    let (client, inbox) = reactor.connect(config(&server)).unwrap();
    until_open(&inbox);
    for _ in 0..100 {
        flood.send_binary(&[0; 100_000]);
        client.send("through").unwrap();
        assert_eq!(text(&inbox), "through");
    }
}

#[test]
fn frames_of_several_threads_do_not_tear_and_keep_the_order_of_each_thread() {
    let (server, peer, client, _inbox) = session_with(Script::new().ignore(), |config| config.unsent_max(1 << 20));
    thread::scope(|scope| {
        for number in 0..THREADS {
            let client = client.clone();
            scope.spawn(move || {
                for count in 0..COUNT {
                    client.send(&format!("{number} {count} {}", "x".repeat(count % 300))).unwrap();
                }
            });
        }
    });
    client.close().unwrap();
    assert!(peer.wait_closed(WAIT));
    let mut next = [0; THREADS];
    for captured in peer.captured() {
        let Some(text) = captured.text() else { continue };
        let mut words = text.split(' ');
        let mut number = || words.next().unwrap().parse::<usize>().unwrap();
        let (thread, count) = (number(), number());
        assert_eq!((count, words.next().unwrap().len()), (next[thread], count % 300));
        next[thread] += 1;
    }
    assert_eq!((next, server.violations()), ([COUNT; THREADS], vec![]));
}

#[test]
fn a_message_is_on_one_wire_at_most_however_often_wires_break() {
    let set = |config: Config| config.stable_after(ms(1)).base_delay(ms(1)).max_backoff(ms(1));
    let server = MockServer::builder().script(Script::new().ignore()).captured_max(1_000_000).start().unwrap();
    let (first, client, inbox) = join(&server, set(config(&server)));
    let done = AtomicBool::new(false);
    let send = &|thread: usize| {
        let attempts = (0..).take_while(|_| !done.load(Ordering::Relaxed));
        let accepted = attempts.filter(|count| match client.send(&format!("{thread} {count}")) {
            Ok(_) => true,
            Err(Error::NotConnected | Error::Full { .. } | Error::Io(_)) => false,
            Err(other) => panic!("{other:?}"),
        });
        accepted.count()
    };
    let accepted = thread::scope(|scope| {
        let senders = [0, 1, 2, 3].map(|thread| scope.spawn(move || send(thread)));
        let mut peer = first;
        for _ in 0..20 {
            peer.expect(Matcher::any(), WAIT).unwrap();
            peer.reset();
            until_open(&inbox);
            peer = server.accept(WAIT).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        senders.map(|sender| sender.join().unwrap()).into_iter().sum::<usize>()
    });
    client.close().unwrap();
    assert!(server.wait_connections(0, WAIT));
    let heard: Vec<_> = server.captured().iter().filter_map(|it| it.text().map(str::to_owned)).collect();
    assert!(heard.len() <= accepted, "{} heard, {accepted} accepted", heard.len());
    assert_eq!(heard.iter().collect::<HashSet<_>>().len(), heard.len(), "nothing is sent twice");
    assert_eq!((client.generation().number(), server.violations()), (21, vec![]));
}

// ---- handlers ----

#[test]
fn a_handler_that_panics_ends_its_own_connection_only() {
    let reactor = Reactor::builder().start().unwrap();
    let server = MockServer::start().unwrap();
    let (neighbour, inbox) = reactor.connect(config(&server)).unwrap();
    until_open(&inbox);
    let (send, states) = mpsc::channel();
    let handler =
        Handler::new().text(|_, text| panic!("cannot handle {text}")).state(move |_, event| send.send(line(event)).unwrap());
    let client = reactor.connect_with(config(&server), handler).unwrap();
    let peer = newest(&server);
    client.send("this").unwrap();
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1001, String::new())));
    client.wait(State::Closed, WAIT).unwrap();
    match client.wait(State::Open, WAIT) {
        Err(Error::Panicked(message)) => assert_eq!(&*message, "cannot handle this"),
        other => panic!("{other:?}"),
    }
    let states: Vec<_> = std::iter::from_fn(|| states.recv_timeout(WAIT).ok()).collect();
    assert_eq!(states, ["dialing 1", "open", "closed: user code panicked: cannot handle this"]);
    neighbour.send("alive").unwrap();
    assert_eq!(text(&inbox), "alive");
}

#[test]
fn a_handler_that_panics_on_a_state_ends_its_connection_too() {
    let server = MockServer::start().unwrap();
    for state in ["dialing 1", "open"] {
        let handler = Handler::new().state(move |_, event| assert_ne!(line(event), state));
        match connect_with(config(&server).reconnect(false), handler) {
            Err(Error::Panicked(_)) => {}
            Ok(client) => assert!(matches!(client.wait(State::Closed, WAIT), Ok(()))),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn calls_that_would_wait_for_their_own_thread_are_refused() {
    let reactor = Reactor::builder().start().unwrap();
    let server = MockServer::start().unwrap();
    let inbox = Inbox::shared(10);
    let _other = reactor.connect_with(config(&server), &inbox).unwrap();
    lines(&inbox, 2);
    let client = Arc::new(OnceLock::<Client>::new());
    let (send, errors) = mpsc::channel();
    let (own, handle, url) = (client.clone(), reactor.clone(), server.url());
    let handler = Handler::new().text(move |context, _| {
        let client = own.get().unwrap();
        let refused = [
            client.wait(State::Closed, WAIT).err(),
            inbox.recv().err(),
            inbox.recv_timeout(WAIT).err(),
            inbox.spin().err(),
            handle.connect(&*url).err(),
            handle.connect_with(&*url, Handler::new()).err(),
            client.close().err(),
        ];
        send.send(refused.map(|error| error.unwrap().to_string())).unwrap();
        assert!(matches!(inbox.try_recv(), Ok(None)));
        assert_eq!(context.state(), State::Closing, "the close has begun all the same");
    });
    client.set(reactor.connect_with(config(&server), handler).unwrap()).unwrap();
    let peer = newest(&server);
    peer.send_text("now");
    let errors = errors.recv_timeout(WAIT).unwrap();
    assert_eq!(errors, [(); 7].map(|()| Error::OnReactor.to_string()));
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1000, String::new())));
    assert_eq!(server.accepted(), 2);
}

#[test]
fn a_handler_opens_closes_and_reconnects_without_waiting() {
    let server = MockServer::start().unwrap();
    let reactor = Reactor::builder().start().unwrap();
    let (send, opened) = mpsc::channel();
    let (handle, other) = (reactor.clone(), config(&server));
    let handler = Handler::new().text(move |context, text| match text {
        "open" => send.send(handle.open(&other).unwrap()).unwrap(),
        "reconnect" => context.reconnect().unwrap(),
        "close" => context.start_close(4002, "enough").unwrap(),
        _ => {}
    });
    let client = reactor.connect_with(config(&server), handler).unwrap();
    client.send("open").unwrap();
    let (other, _inbox) = opened.recv_timeout(WAIT).unwrap();
    wait_open(&other);
    client.send("reconnect").unwrap();
    assert!(server.wait_accepted(3, WAIT));
    wait_open(&client);
    let peer = newest(&server);
    client.send("close").unwrap();
    client.wait(State::Closed, WAIT).unwrap();
    assert_eq!(peer.client_close(), Some((4002, "enough".to_owned())));
    assert_eq!(other.state(), State::Live);
}

// ---- a loop of one's own ----

#[test]
fn a_driver_lends_the_engine_its_own_state() {
    let server = serve(Script::new().ignore().on_open(|peer| peer.send_text("tick")));
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server)).unwrap();
    assert_eq!(client.state(), State::Connecting);
    let mut seen = Vec::new();
    turn_until(&mut driver, |context, event| {
        seen.push(shown(event));
        if let EventRef::Text("tick") = event {
            context.send("tock").unwrap();
            context.start_close(1000, "").unwrap();
        }
        seen.last().unwrap() == "closed"
    });
    assert_eq!(seen, ["dialing 1", "open", "text tick", "closed"]);
    assert_eq!((driver.connections(), driver.next_deadline()), (0, None));
    server.expect("tock", WAIT).unwrap();
}

#[test]
fn a_driver_serves_handlers_and_inboxes_too() {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    let inbox = Inbox::shared(10);
    let (send, heard) = mpsc::channel();
    let handler = Handler::new().text(move |_, text| send.send(text.to_owned()).unwrap());
    let clients = [driver.open_with(config(&server), &inbox).unwrap(), driver.open_with(config(&server), handler).unwrap()];
    while clients.iter().any(|client| !client.state().is_open()) {
        driver.turn(WAIT).unwrap();
    }
    clients.iter().for_each(|client| assert!(client.send("hi").is_ok()));
    let mut texts = Vec::new();
    while texts.len() < 2 {
        driver.turn(WAIT).unwrap();
        texts.extend(heard.try_iter());
        while let Some(received) = inbox.try_recv().unwrap() {
            if let Event::Message(message) = received.event {
                texts.push(message.text().unwrap().to_owned());
            }
        }
    }
    assert_eq!((texts, driver.connections()), (vec!["hi".to_owned(); 2], 2));
}

#[test]
fn a_turn_ends_at_its_timeout_and_the_next_deadline_is_known() {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    assert_eq!(driver.next_deadline(), None);
    let began = Instant::now();
    driver.turn(ms(50)).unwrap();
    assert!(began.elapsed() >= ms(50));
    let client = driver.open(config(&server).heartbeat_interval(QUICK).stable_after(NEVER)).unwrap();
    turn_until(&mut driver, |_, event| shown(event) == "open");
    while driver.next_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
        driver.turn(Duration::ZERO).unwrap();
    }
    let left = driver.next_deadline().unwrap() - Instant::now();
    assert!(left > Duration::ZERO && left <= QUICK, "{left:?}");
    drop(client);
}

#[test]
fn an_engine_that_waits_on_the_descriptor_is_woken_by_messages_openings_and_other_threads() {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    let mut engine = Engine::watching(&driver);
    let client = driver.open(config(&server)).unwrap();
    engine.run_until(&mut driver, "open");
    let peer = server.accept(WAIT).unwrap();
    peer.send_text("from the server");
    engine.run_until(&mut driver, "text from the server");
    let other = client.clone();
    thread::spawn(move || other.reconnect().unwrap());
    engine.run_until(&mut driver, "lost, again in 0ns: replaced on request");
    engine.run_until(&mut driver, "open");
    let opened = driver.open(config(&server)).unwrap();
    engine.wait(WAIT);
    engine.run_until(&mut driver, "open");
    assert_eq!((opened.state(), driver.connections()), (State::Live, 2));
    let closing = thread::spawn(move || client.close());
    engine.run_until(&mut driver, "closed");
    closing.join().unwrap().unwrap();
}

#[test]
fn a_panic_of_the_engine_goes_on_after_the_turn_and_ends_its_connection_only() {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    let [one, other] = [(); 2].map(|()| driver.open(config(&server)).unwrap());
    while [&one, &other].iter().any(|client| !client.state().is_open()) {
        driver.turn(WAIT).unwrap();
    }
    one.send("boom").unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        turn_until(&mut driver, |_, event| {
            assert_ne!(shown(event), "text boom");
            false
        });
    }));
    assert!(caught.unwrap_err().downcast_ref::<String>().unwrap().contains("text boom"));
    assert_eq!((one.state(), other.state(), driver.connections()), (State::Closed, State::Live, 1));
    other.send("alive").unwrap();
    turn_until(&mut driver, |_, event| shown(event) == "text alive");
}

#[test]
fn dropping_a_driver_ends_its_connections() {
    let (open, opening) = (MockServer::start().unwrap(), serve(Script::new().mute()));
    let mut driver = Driver::new().unwrap();
    let inbox = Inbox::shared(100);
    let clients = [&open, &opening].map(|server| driver.open_with(config(server), &inbox).unwrap());
    while !clients[0].state().is_open() {
        driver.turn(WAIT).unwrap();
    }
    let never_begun = driver.open_with(config(&open), &inbox).unwrap();
    let waiters = [clients[1].clone(), never_begun].map(|client| thread::spawn(move || client.wait(State::Open, WAIT)));
    drop(driver);
    for waiter in waiters {
        assert!(matches!(waiter.join().unwrap(), Err(Error::Stopped)));
    }
    let peer = open.accept(WAIT).unwrap();
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1001, String::new())));
    assert!(clients.iter().all(|client| matches!(client.send("x"), Err(Error::Closed)) && client.state() == State::Closed));
    let ends = inbox.receiver().try_iter().filter(|it| line(&it.event) == "closed: the reactor was stopped").count();
    assert_eq!(ends, 3);
}

#[test]
fn what_waits_for_nothing_is_not_refused_on_the_thread_of_the_driver() {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    let inbox = Inbox::shared(10);
    let client = driver.open_with(config(&server), &inbox).unwrap();
    while !client.state().is_open() {
        driver.turn(WAIT).unwrap();
    }
    client.wait(State::Open, WAIT).unwrap();
    assert_eq!(line(&inbox.recv().unwrap().event), "dialing 1");
    assert_eq!(line(&inbox.spin().unwrap().event), "open");
    assert!(matches!(client.wait(State::Closed, WAIT), Err(Error::OnReactor)));
    drop(driver);
    client.wait(State::Closed, WAIT).unwrap();
    client.close().unwrap();
    assert!(matches!(client.wait(State::Open, WAIT), Err(Error::Stopped)));
}

// ---- stop ----

#[test]
fn stop_is_quick_whatever_the_connections_are_doing() {
    let (release, blocked) = crossbeam_channel::bounded::<()>(0);
    let hook = move |_: &mut DialPlan| {
        let _ = blocked.recv();
        Ok(())
    };
    let full = full_port();
    let plain = serve(Script::new().mute());
    let tls = MockServer::builder().tls().script(Script::new().mute()).start().unwrap();
    let echo = MockServer::start().unwrap();
    let down = MockServer::start().unwrap();
    down.pause().unwrap();
    let reactor = Reactor::builder().start().unwrap();
    let inbox = Inbox::shared(1000);
    let open = |config: Config| {
        let config = config.connect_timeout(NEVER).base_delay(NEVER).max_backoff(NEVER);
        reactor.open_with(config, &inbox).unwrap()
    };
    let clients = [
        open(config_for("ws://nowhere.invalid").on_dial(hook)),
        open(config_for(format!("ws://{}", full.address))),
        open(config(&tls)),
        open(config(&plain)),
        open(config(&down)),
        open(config(&echo)),
        open(config(&echo).close_timeout(NEVER)),
    ];
    assert!(tls.wait_accepted(1, WAIT) && plain.wait_accepted(1, WAIT));
    clients[4].wait(State::Waiting, WAIT).unwrap();
    clients[5..].iter().for_each(wait_open);
    let peer = echo.peers().remove(0);
    peer.freeze();
    quickly(|| reactor.stop());
    for client in &clients {
        assert!(matches!(client.wait(State::Open, WAIT), Err(Error::Stopped)));
    }
    let ends = inbox.receiver().try_iter().filter(|it| line(&it.event) == "closed: the reactor was stopped").count();
    assert_eq!(ends, clients.len());
    assert!(matches!(reactor.open(config(&echo)), Err(Error::Stopped)));
    assert!(matches!(reactor.connect(config(&echo)), Err(Error::Stopped)));
    quickly(|| reactor.stop());
    assert!(echo.wait_connections(0, WAIT));
    drop(release);
}

#[test]
fn stop_ends_a_close_that_waits_for_its_peer() {
    let server = serve(Script::new().never_answer_close());
    let reactor = Reactor::builder().start().unwrap();
    let (client, inbox) = reactor.connect(config(&server).close_timeout(NEVER)).unwrap();
    let closing = thread::spawn({
        let client = client.clone();
        move || client.close()
    });
    client.wait(State::Closing, WAIT).unwrap();
    quickly(|| reactor.stop());
    closing.join().unwrap().unwrap();
    assert_eq!(client.state(), State::Closed);
    assert!(lines_to_end(&inbox).last().unwrap().starts_with("closed"));
}

#[test]
fn stop_from_a_handler_returns_and_ends_the_others_too() {
    let server = MockServer::start().unwrap();
    let reactor = Reactor::builder().start().unwrap();
    let (_other, inbox) = reactor.connect(config(&server)).unwrap();
    let own = reactor.clone();
    let client = reactor.connect_with(config(&server), Handler::new().text(move |_, _| own.stop())).unwrap();
    client.send("stop").unwrap();
    assert!(matches!(until_closed(&inbox), Some(Error::Stopped)));
    assert!(server.wait_connections(0, WAIT));
    quickly(|| reactor.stop());
}

#[test]
fn connections_outlive_the_last_handle_of_their_reactor() {
    let server = MockServer::start().unwrap();
    let reactor = Reactor::builder().name("abandoned").start().unwrap();
    let (client, inbox) = reactor.connect(config(&server)).unwrap();
    let peer = newest(&server);
    drop(reactor);
    until_open(&inbox);
    client.send("still here").unwrap();
    assert_eq!(text(&inbox), "still here");
    peer.reset();
    until_open(&inbox);
    client.send("and again").unwrap();
    assert_eq!(text(&inbox), "and again");
    client.close().unwrap();
    assert_eq!(lines_to_end(&inbox), ["closed"]);
}

#[test]
fn clients_of_a_handler_close_when_dropped() {
    let server = MockServer::start().unwrap();
    let client = connect_with(config(&server), Handler::new()).unwrap();
    let peer = server.accept(WAIT).unwrap();
    drop(client);
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((1000, String::new())));
}

// ---- ways to wait ----

#[test]
fn a_spinning_reactor_serves_like_a_parked_one() {
    let server = MockServer::start().unwrap();
    for core in [None, Some(0)] {
        let reactor = Reactor::builder().wait(Wait::Spin { core }).start().unwrap();
        let (client, inbox) = reactor.connect(config(&server).inbox_capacity(5).overflow(Overflow::Block)).unwrap();
        let peer = newest(&server);
        until_open(&inbox);
        for number in 0..100 {
            peer.send_text(&number.to_string());
        }
        for number in 0..100 {
            assert_eq!(text(&inbox), number.to_string());
        }
        client.close().unwrap();
        quickly(|| reactor.stop());
    }
}

#[test]
fn a_reactor_that_cannot_be_is_refused_by_its_setting() {
    let core = Reactor::builder().wait(Wait::Spin { core: Some(100_000) }).start().unwrap_err();
    assert_eq!(core.to_string(), "invalid wait: there is no core 100000");
    assert_eq!(Reactor::builder().name("a\0b").start().unwrap_err().to_string(), "invalid name: contains a NUL");
}

#[test]
fn the_shared_reactor_is_one() {
    let server = MockServer::start().unwrap();
    let ids: Vec<_> = (0..3).map(|_| connect(config(&server)).unwrap().0.id()).collect();
    assert!(ids.is_sorted() && ids[0] != ids[1]);
    assert_eq!(format!("{:?}", Reactor::shared().unwrap()), "Reactor { .. }");
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("dropped");
        }
    }
}

#[test]
fn a_panic_in_the_drop_of_a_handler_ends_nothing_else() {
    let server = serve(Script::new());
    let reactor = Reactor::builder().start().unwrap();
    let (good, inbox) = reactor.connect(config(&server)).unwrap();
    let bomb = Bomb;
    let handler = Handler::new().text(move |_, _| assert!(size_of_val(&bomb) == 0));
    reactor.connect_with(config(&server), handler).unwrap().close().unwrap();
    until_open(&inbox);
    good.send("still here").unwrap();
    assert_eq!(next_line(&inbox), "text still here");
}

#[test]
fn a_panic_in_the_drop_of_a_panic_ends_nothing_else() {
    let server = serve(Script::new());
    let reactor = Reactor::builder().start().unwrap();
    let (good, inbox) = reactor.connect(config(&server)).unwrap();
    let bad = reactor.connect_with(config(&server), Handler::new().text(|_, _| std::panic::panic_any(Bomb))).unwrap();
    bad.send("x").unwrap();
    assert!(matches!(bad.wait(State::Open, WAIT).and_then(|()| bad.wait(State::Waiting, WAIT)), Err(Error::Panicked(_))));
    until_open(&inbox);
    good.send("still here").unwrap();
    assert_eq!(next_line(&inbox), "text still here");
}

#[test]
fn panics_in_drops_of_dial_hooks_leave_threads_for_other_hooks() {
    let server = serve(Script::new());
    for _ in 0..4 {
        let bomb = Bomb;
        let (started, is_started) = mpsc::sync_channel(1);
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let may_go_on = std::sync::Mutex::new(may_go_on);
        let hook = move |_: &mut DialPlan| {
            let _ = (&bomb, started.send(()));
            let _ = may_go_on.lock().unwrap().recv();
            Ok(())
        };
        let reactor = Reactor::builder().start().unwrap();
        let (client, inbox) = reactor.open(config(&server).on_dial(hook)).unwrap();
        is_started.recv_timeout(WAIT).unwrap();
        // The thread of the hook is left with the last reference to it.
        reactor.stop();
        drop((client, inbox, go_on));
    }
    drop(connect(config(&server).on_dial(|_| Ok(()))).unwrap());
}

#[test]
fn a_driver_may_be_dropped_by_a_thread_that_never_turned_it() {
    let server = serve(Script::new().ignore());
    let driver = Driver::new().unwrap();
    let other = Arc::new(OnceLock::<Client>::new());
    let (answer, answers) = mpsc::channel();
    let closes = other.clone();
    let handler = Handler::new().state(move |_, _| answer.send(closes.get().unwrap().close()).unwrap());
    let _one = driver.open_with(config(&server), handler).unwrap();
    other.set(driver.open(config(&server)).unwrap()).unwrap();
    thread::spawn(move || drop(driver));
    assert!(matches!(answers.recv_timeout(WAIT).unwrap(), Err(Error::OnReactor) | Ok(())));
}

#[test]
fn handlers_may_stop_one_anothers_reactors() {
    let server = serve(Script::new());
    let [one, other] = [(); 2].map(|()| Reactor::builder().start().unwrap());
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let stopper = |other: &Reactor| {
        let (other, barrier) = (other.clone(), barrier.clone());
        Handler::new().text(move |_, _| {
            barrier.wait();
            other.stop();
        })
    };
    let clients = [
        one.connect_with(config(&server), stopper(&other)).unwrap(),
        other.connect_with(config(&server), stopper(&one)).unwrap(),
    ];
    for client in &clients {
        client.send("x").unwrap();
    }
    for client in &clients {
        client.wait(State::Closed, WAIT).unwrap();
    }
}

#[test]
fn an_end_announced_during_the_dial_is_noticed_after_it() {
    // More than the dial reads, so that the end of the stream is left to the wire.
    let frames = Frame::binary([0; 100]).to_bytes().repeat(400);
    let server = serve(Script::new().delay(ms(50)).glue(frames).hang_up_after(Duration::ZERO));
    let mut driver = Driver::new().unwrap();
    let (mut lost, mut messages) = (false, 0);
    let client = driver.open(config(&server).heartbeat_interval(None).reconnect(false)).unwrap();
    while server.requests().is_empty() {
        driver.turn(ms(1)).unwrap();
    }
    // Nobody turns while the answer comes whole.
    assert!(Inbox::shared(1).recv_timeout(ms(200)).is_err());
    let began = Instant::now();
    while client.state() != State::Closed && began.elapsed() < WAIT {
        let count = |_: &Context<'_>, event: EventRef<'_>| match event {
            EventRef::Binary(_) => messages += 1,
            EventRef::State(Event::Lost { .. }) => lost = true,
            _ => {}
        };
        driver.turn_with(ms(5), count).unwrap();
    }
    assert_eq!((lost, messages), (true, 400));
}

#[test]
fn a_thread_whose_driver_is_gone_may_wait_again() {
    let server = serve(Script::new());
    let inbox = Inbox::shared(100);
    let driver = Driver::new().unwrap();
    let first = driver.open_with(config(&server), &inbox).unwrap();
    drop(driver);
    assert_eq!(next_line(&inbox), "closed: the reactor was stopped");
    let reactor = Reactor::builder().start().unwrap();
    let second = reactor.open_with(config(&server), &inbox).unwrap();
    until_open(&inbox);
    reactor.stop();
    assert_eq!([first.state(), second.state()], [State::Closed; 2]);
}

#[test]
fn nothing_is_dialled_once_the_handler_has_panicked() {
    let server = serve(Script::new());
    let (send, dials) = mpsc::channel();
    let handler = Handler::new().state(|_, event| assert!(!matches!(event, Event::Dialing { .. }), "no dials please"));
    let config = config(&server).on_dial(move |plan| Ok(send.send(plan.attempt())?));
    let client = connect_with(config, handler);
    assert!(matches!(client, Err(Error::Panicked(_))), "{client:?}");
    assert!(dials.recv_timeout(WAIT).is_err());
}

#[test]
fn the_clock_of_a_dial_starts_when_the_driver_is_turned() {
    let server = serve(Script::new());
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server).connect_timeout(ms(200)).connect_attempts(1)).unwrap();
    // Nothing comes: time passes.
    assert!(Inbox::shared(1).recv_timeout(ms(250)).is_err());
    let began = Instant::now();
    while client.state() == State::Connecting && began.elapsed() < WAIT {
        driver.turn(ms(5)).unwrap();
    }
    assert_eq!(client.state(), State::Live);
}

// ---- helpers ----

/// As many as leave room under a limit of 1,024 descriptors, with both ends in this process.
const MANY: usize = 300;
const THREADS: usize = 4;
const COUNT: usize = 1000;

/// The peer that connected last.
fn newest(server: &MockServer) -> Peer {
    server.peers().pop().unwrap()
}

fn shown(event: EventRef<'_>) -> String {
    match event {
        EventRef::Text(text) => format!("text {text}"),
        EventRef::Binary(bytes) => format!("binary {bytes:?}"),
        EventRef::State(event) => line(event),
        other => format!("{other:?}"),
    }
}

/// Turns the driver until the closure has seen what it wants.
fn turn_until(driver: &mut Driver, mut engine: impl FnMut(&Context<'_>, EventRef<'_>) -> bool) {
    let deadline = Instant::now() + WAIT;
    let mut done = false;
    while !done {
        assert!(Instant::now() < deadline, "it never came");
        driver.turn_with(WAIT, |context, event| done |= engine(context, event)).unwrap();
    }
}

/// A loop that sleeps on the driver's descriptor and never inside a turn.
struct Engine {
    poll: Poll,
    events: Events,
    /// The driver's descriptor in a shape that mio takes.
    _watched: mio::net::UdpSocket,
    seen: Vec<String>,
}

impl Engine {
    fn watching(driver: &Driver) -> Self {
        let poll = Poll::new().unwrap();
        let descriptor = UdpSocket::from(driver.as_fd().try_clone_to_owned().unwrap());
        let mut watched = mio::net::UdpSocket::from_std(descriptor);
        poll.registry().register(&mut watched, Token(0), Interest::READABLE).unwrap();
        Self { poll, events: Events::with_capacity(8), _watched: watched, seen: Vec::new() }
    }

    /// Waits until the descriptor is readable.
    fn wait(&mut self, timeout: Duration) {
        self.poll.poll(&mut self.events, Some(timeout)).unwrap();
        assert!(!self.events.is_empty(), "never woken; seen so far: {:?}", self.seen);
    }

    /// Goes on until this event comes; earlier ones are forgotten.
    fn run_until(&mut self, driver: &mut Driver, wanted: &str) {
        loop {
            if let Some(index) = self.seen.iter().position(|line| line == wanted) {
                self.seen.drain(..=index);
                return;
            }
            let due = driver.next_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match due {
                Some(Duration::ZERO) => {}
                Some(due) if due < WAIT => drop(self.poll.poll(&mut self.events, Some(due))),
                _ => self.wait(WAIT),
            }
            driver.turn_with(Duration::ZERO, |_, event| self.seen.push(shown(event))).unwrap();
        }
    }
}
