//! Reactors and drivers that stay awake: no socket is forgotten, whether it is read at once or found by the poller.

mod common;

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use zen_websocket::testkit::{MockServer, Script};
use zen_websocket::{Client, ConnectionId, Driver, Error, Event, EventRef, Handler, Inbox, Reactor, Wait, connect, connect_with};

use crate::common::{QUICK, WAIT, config, ms, next_line, serve, until, until_open};

/// As many as are read without asking the poller, and more.
const CROWDS: [usize; 4] = [1, 4, 5, 20];

#[test]
fn a_driver_that_spins_hears_everybody() {
    for count in CROWDS {
        let server = MockServer::start().unwrap();
        let (mut driver, clients) = crowd(&server, count);
        // One after another, and the same one many times in a row.
        for client in clients.iter().chain(&clients).chain([&clients[0]; 50]) {
            client.send("x").unwrap();
            turn_until_heard(&mut driver, client.id(), Duration::ZERO);
        }
        // All at once.
        clients.iter().for_each(|client| _ = client.send("x").unwrap());
        let (mut heard, start) = (0, Instant::now());
        while heard < count {
            assert!(start.elapsed() < WAIT, "heard {heard} of {count}");
            driver.turn_with(Duration::ZERO, |_, event| heard += usize::from(matches!(event, EventRef::Text(_)))).unwrap();
        }
    }
}

#[test]
fn a_driver_that_spins_only_now_and_then_forgets_nothing() {
    for count in CROWDS {
        let server = MockServer::start().unwrap();
        let (mut driver, clients) = crowd(&server, count);
        for round in 0..200 {
            let client = &clients[round % count];
            client.send("x").unwrap();
            // Some turns that spin, then ones that wait, and only an event ends those.
            let mut heard = false;
            for _ in 0..round % 40 {
                driver.turn_with(Duration::ZERO, |_, event| heard |= matches!(event, EventRef::Text(_))).unwrap();
            }
            if !heard {
                turn_until_heard(&mut driver, client.id(), QUICK);
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn an_engine_that_spins_for_a_while_may_then_wait_on_the_descriptor() {
    for count in CROWDS {
        let server = MockServer::start().unwrap();
        let (mut driver, clients) = crowd(&server, count);
        for round in 0..200 {
            clients[round % count].send("x").unwrap();
            let (mut heard, start) = (false, Instant::now());
            let mut turns = round % 40;
            while !heard {
                if turns == 0 && driver.next_deadline().is_none_or(|deadline| deadline > Instant::now()) {
                    is_readable(&driver, QUICK);
                }
                turns = turns.saturating_sub(1);
                driver.turn_with(Duration::ZERO, |_, event| heard |= matches!(event, EventRef::Text(_))).unwrap();
                assert!(start.elapsed() < QUICK, "not heard in round {round} of {count}");
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn an_engine_that_follows_the_descriptor_is_woken_about_once_for_a_message() {
    let server = MockServer::start().unwrap();
    let (mut driver, _clients) = crowd(&server, 1);
    let peer = server.accept(WAIT).unwrap();
    let (mut wakes, mut heard) = (0, 0);
    for number in 1..=100 {
        peer.send_text("x");
        while heard < number || is_readable(&driver, Duration::ZERO) {
            assert!(is_readable(&driver, QUICK), "not woken for message {number}");
            wakes += 1;
            driver.turn_with(Duration::ZERO, |_, event| heard += i32::from(matches!(event, EventRef::Text(_)))).unwrap();
        }
    }
    assert!(wakes <= 200, "{wakes} wakes for 100 messages");
}

#[cfg(unix)]
#[test]
fn an_engine_that_turns_seldom_hears_everybody_in_its_next_turn() {
    let server = MockServer::start().unwrap();
    let (mut driver, clients) = crowd(&server, 2);
    let peers = [(); 2].map(|()| server.accept(WAIT).unwrap());
    for number in 0..100 {
        peers[0].send_text("hot");
        let mut is_hot = false;
        let start = Instant::now();
        while !is_hot {
            assert!(start.elapsed() < QUICK, "not heard");
            driver.turn_with(Duration::ZERO, |_, event| is_hot |= matches!(event, EventRef::Text(_))).unwrap();
        }
        // What is left of the first message is a wake for nothing.
        while is_readable(&driver, Duration::ZERO) {
            driver.turn(Duration::ZERO).unwrap();
        }
        peers[number % 2].send_text("seldom");
        assert!(is_readable(&driver, QUICK));
        let arrived = Instant::now();
        while arrived.elapsed() < Duration::from_micros(20) {}
        let mut heard = 0;
        driver.turn_with(Duration::ZERO, |_, event| heard += u32::from(matches!(event, EventRef::Text("seldom")))).unwrap();
        assert_eq!(heard, 1, "{number}");
    }
    drop(clients);
}

#[test]
fn a_loss_is_noticed_at_once_while_spinning() {
    let server = MockServer::start().unwrap();
    let (mut driver, clients) = crowd(&server, 1);
    let peer = server.accept(WAIT).unwrap();
    clients[0].send("x").unwrap();
    turn_until_heard(&mut driver, clients[0].id(), Duration::ZERO);
    peer.reset();
    let (mut lost, mut open) = (false, false);
    let start = Instant::now();
    while !open {
        assert!(start.elapsed() < WAIT);
        let turned = driver.turn_with(Duration::ZERO, |_, event| match event {
            EventRef::State(Event::Lost { .. }) => lost = true,
            EventRef::State(Event::Open) => open = true,
            _ => {}
        });
        turned.unwrap();
    }
    assert!(lost);
    clients[0].send("x").unwrap();
    turn_until_heard(&mut driver, clients[0].id(), Duration::ZERO);
}

#[test]
fn heartbeats_are_kept_while_a_hot_feed_is_read() {
    // The server sends without end, so that every turn finds something.
    let server = serve(Script::new().on_text(|peer, _| (0..100_000).for_each(|_| peer.send_text("tick"))));
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server).heartbeat_interval(ms(20)).patience(WAIT)).unwrap();
    while !client.state().is_open() {
        driver.turn(None).unwrap();
    }
    client.send("begin").unwrap();
    let start = Instant::now();
    let mut ticks = 0;
    while client.heartbeat().rtt.is_none() || ticks == 0 {
        assert!(start.elapsed() < WAIT, "no pong after {ticks} ticks");
        driver.turn_with(Duration::ZERO, |_, event| ticks += u32::from(matches!(event, EventRef::Text(_)))).unwrap();
    }
}

#[test]
fn sends_of_other_threads_reach_a_spinning_reactor() {
    let server = MockServer::start().unwrap();
    let reactor = Reactor::builder().wait(Wait::Spin { core: None }).start().unwrap();
    let inbox = Inbox::shared(100);
    let client = reactor.connect_with(config(&server), &inbox).unwrap();
    until_open(&inbox);
    for _ in 0..100 {
        client.send("x").unwrap();
        assert_eq!(next_line(&inbox), "text x");
    }
    client.reconnect().unwrap();
    until_open(&inbox);
    client.close().unwrap();
    reactor.stop();
}

#[test]
fn an_adaptive_reactor_sleeps_when_nothing_happens_and_is_woken() {
    let server = MockServer::start().unwrap();
    let reactor = Reactor::builder().name("adaptive").wait(Wait::Adaptive { spin_for: ms(5) }).start().unwrap();
    let inbox = Inbox::shared(100);
    let client = reactor.connect_with(config(&server), &inbox).unwrap();
    until_open(&inbox);
    for _ in 0..5 {
        client.send("x").unwrap();
        assert_eq!(next_line(&inbox), "text x");
        let before = run_time("adaptive");
        assert!(inbox.recv_timeout(ms(300)).is_err(), "nobody sends anything");
        if let (Some(before), Some(after)) = (before, run_time("adaptive")) {
            assert!(after - before < ms(60), "ran for {:?} of 300 ms", after - before);
        }
    }
    reactor.stop();
}

#[test]
fn a_handler_sees_whether_more_follows_and_is_told_when_nothing_does() {
    let server = serve(Script::new().on_text(|peer, text| {
        // In one segment, with a ping among them.
        let frame = |first: u8, payload: &str| [&[first, payload.len() as u8], payload.as_bytes()].concat();
        let frames = [frame(0x81, "1"), frame(0x89, "ping"), frame(0x82, "2"), frame(0x81, text)];
        peer.send_raw(frames.concat());
    }));
    let (seen, seeing) = mpsc::channel();
    let (texts, bytes, drained) = (seen.clone(), seen.clone(), seen);
    let handler = Handler::new()
        .text(move |context, text| texts.send(format!("{text} {}", context.more())).unwrap())
        .binary(move |context, _| bytes.send(format!("2 {}", context.more())).unwrap())
        .drained(move |_| drained.send("drained".to_owned()).unwrap());
    let client = connect_with(config(&server), handler).unwrap();
    for _ in 0..3 {
        client.send("3").unwrap();
        let seen: Vec<String> = (0..4).map(|_| seeing.recv_timeout(WAIT).unwrap()).collect();
        assert_eq!(seen, ["1 true", "2 true", "3 false", "drained"]);
    }
}

#[test]
fn a_panic_in_drained_ends_its_connection_only() {
    let server = MockServer::start().unwrap();
    let reactor = Reactor::builder().start().unwrap();
    let inbox = Inbox::shared(100);
    let other = reactor.connect_with(config(&server), &inbox).unwrap();
    until_open(&inbox);
    let handler = Handler::new().drained(|_| panic!("drained"));
    let client = reactor.connect_with(config(&server), handler).unwrap();
    client.send("x").unwrap();
    client.wait(zen_websocket::State::Closed, WAIT).unwrap();
    other.send("still there").unwrap();
    assert_eq!(next_line(&inbox), "text still there");
}

/// The kernel turns stamps on a moment after the first socket has asked for them, and off behind the last: a socket that has some.
#[cfg(target_os = "linux")]
fn stamped() -> (MockServer, Client) {
    let server = MockServer::start().unwrap();
    let (seen, seeing) = mpsc::channel();
    let handler = Handler::new().text(move |context, _| seen.send(context.kernel_at).unwrap());
    let client = connect_with(config(&server).kernel_stamps(true), handler).unwrap();
    until(|| {
        client.send("x").unwrap();
        seeing.recv_timeout(WAIT).unwrap().is_some()
    });
    (server, client)
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernel_says_when_it_received() {
    let _stamped = stamped();
    let server = MockServer::start().unwrap();
    let (seen, seeing) = mpsc::channel();
    let handler = Handler::new().text(move |context, _| seen.send(context.kernel_at).unwrap());
    let before = std::time::SystemTime::now();
    let client = connect_with(config(&server).kernel_stamps(true), handler).unwrap();
    for number in 1..=3 {
        client.send("x").unwrap();
        let stamp = seeing.recv_timeout(WAIT).unwrap().expect("a stamp");
        assert!(stamp >= before && stamp <= std::time::SystemTime::now(), "{stamp:?}");
        let latency = client.latency().kernel.unwrap();
        assert!(latency.total.count == number && latency.total.max < WAIT, "{latency:?}");
    }
    assert_eq!((client.latency().encode, client.latency().write), (None, None), "not asked for");
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_is_measured_once_however_long_its_consumer_takes() {
    let _stamped = stamped();
    let burst = [0x81, 1, b'x'].repeat(10);
    let server = serve(Script::new().on_text(move |peer, _| peer.send_raw(burst.clone())));
    let (client, inbox) = connect(config(&server).kernel_stamps(true).inbox_capacity(1)).unwrap();
    until_open(&inbox);
    client.send("begin").unwrap();
    (0..10).for_each(|_| assert_eq!(next_line(&inbox), "text x"));
    assert_eq!(client.latency().kernel.unwrap().total.count, 1);
}

/// There is no room for a second stamp where the first one is expected.
#[cfg(target_os = "linux")]
#[test]
fn other_control_messages_cost_no_data() {
    use nix::sys::socket::{TimestampingFlag, setsockopt, sockopt};

    let server = MockServer::start().unwrap();
    let flags = TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
    let config =
        config(&server).kernel_stamps(true).on_socket(move |socket| Ok(setsockopt(&socket, sockopt::Timestamping, &flags)?));
    let (client, inbox) = connect(config).unwrap();
    until_open(&inbox);
    for _ in 0..3 {
        client.send("x").unwrap();
        assert_eq!(next_line(&inbox), "text x");
    }
}

#[test]
fn sends_are_measured_if_asked_for() {
    let server = MockServer::start().unwrap();
    let client = connect_with(config(&server).send_stamps(true), Handler::new()).unwrap();
    for _ in 0..3 {
        client.send("x").unwrap();
    }
    let latencies = client.latency();
    for latency in [latencies.encode, latencies.write] {
        let latency = latency.unwrap();
        assert!(latency.total.count == 3 && latency.total.max < WAIT, "{latency:?}");
    }
    assert_eq!(latencies.kernel, None);
}

#[test]
fn many_messages_arrive_whole_and_in_order() {
    let server = MockServer::start().unwrap();
    let inbox = Inbox::shared(10_000);
    let client = connect_with(config(&server), &inbox).unwrap();
    until_open(&inbox);
    let texts: Vec<String> = (0..2000).map(|number| format!("{number} {}", "x".repeat(number % 300))).collect();
    let (mut sent, mut received) = (0, 0);
    while received < texts.len() {
        let burst = client.send_many(&texts[sent..]);
        sent += burst.accepted;
        assert!(matches!(burst.error, None | Some(Error::Full { .. })), "{burst:?}");
        // What is refused fits when some of the rest has come back.
        for text in &texts[received..sent] {
            assert_eq!(next_line(&inbox), format!("text {text}"));
        }
        received = sent;
    }
}

#[cfg(unix)]
fn is_readable(driver: &Driver, limit: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};

    poll(&mut [PollFd::new(driver, PollFlags::IN)], Some(&limit.try_into().unwrap())).unwrap() > 0
}

fn crowd(server: &MockServer, count: usize) -> (Driver, Vec<Client>) {
    let mut driver = Driver::new().unwrap();
    let clients: Vec<Client> = (0..count).map(|_| driver.open(config(server)).unwrap()).collect();
    let start = Instant::now();
    while !clients.iter().all(|client| client.state().is_open()) {
        assert!(start.elapsed() < WAIT);
        driver.turn(Duration::ZERO).unwrap();
    }
    (driver, clients)
}

fn turn_until_heard(driver: &mut Driver, connection: ConnectionId, timeout: Duration) {
    let (mut heard, start) = (false, Instant::now());
    while !heard {
        driver
            .turn_with(timeout, |context, event| heard |= matches!(event, EventRef::Text(_)) && context.connection == connection)
            .unwrap();
        assert!(start.elapsed() < QUICK, "not heard");
    }
}

/// How long the thread of this name has run on a core, if the system tells.
fn run_time(name: &str) -> Option<Duration> {
    fs::read_dir("/proc/self/task").ok()?.flatten().find_map(|task| {
        let comm = fs::read_to_string(task.path().join("comm")).ok()?;
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        (comm.trim_end() == name).then(|| schedstat.split(' ').next()?.parse().ok().map(Duration::from_nanos)).flatten()
    })
}
