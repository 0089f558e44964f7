//! What a message and an idle connection cost in allocations, exactly. The driver is turned on the thread that counts; the server has
//! threads of its own, which are not counted.

use std::time::Duration;

use allocation_counter::measure;
use zen_websocket::internals::{Assembler, Item};
use zen_websocket::testkit::MockServer;
use zen_websocket::{Client, Config, Driver, Event, EventRef, Handler, Inbox};

const WAIT: Duration = Duration::from_secs(10);

/// Messages before counting begins, and messages counted.
const WARM_UP: usize = 100;
const COUNTED: usize = 1000;

/// Idle connections counted, so many that what they share hardly shows.
const IDLE: usize = 100;

/// How many events the channel under an inbox allocates for at once.
const EVENTS_PER_BLOCK: usize = 31;

#[test]
fn decoding_whole_frames_allocates_nothing() {
    let frame = [&[0x81, 126, 0, 200][..], &[b'x'; 200]].concat();
    let wire = frame.repeat(COUNTED);
    let mut assembler = Assembler::new(4096);
    let mut seen = 0;
    let info = measure(|| {
        let mut rest = &wire[..];
        while let Ok(Some(Item::Text(_))) = assembler.next(&mut rest) {
            seen += 1;
        }
    });
    assert_eq!((seen, info.count_total), (COUNTED, 0));
}

#[test]
fn decoding_frames_cut_by_the_read_buffer_allocates_once_in_all() {
    let frame = [&[0x81, 126, 0, 200][..], &[b'x'; 200]].concat();
    let wire = frame.repeat(COUNTED);
    let mut assembler = Assembler::new(4096);
    let mut seen = 0;
    let info = measure(|| {
        for mut part in wire.chunks(8 << 10) {
            while let Ok(Some(Item::Text(_))) = assembler.next(&mut part) {
                seen += 1;
            }
        }
    });
    assert_eq!(seen, COUNTED);
    assert!(info.count_total <= 8, "the buffer for a cut message grows, then stays: {info:?}");
}

#[test]
fn an_echo_in_the_closure_of_a_turn_allocates_nothing() {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    let client = driver.open(Config::new(server.url())).unwrap();
    turn_until_open(&mut driver, &client);
    client.send(&text()).unwrap();
    let mut echo = |count: usize| {
        let mut seen = 0;
        while seen < count {
            driver
                .turn_with(WAIT, |context, event| {
                    if let EventRef::Text(text) = event {
                        context.send(text).unwrap();
                        seen += 1;
                    }
                })
                .unwrap();
        }
    };
    echo(WARM_UP);
    assert_eq!(measure(|| echo(COUNTED)).count_total, 0);
}

#[test]
fn an_echo_in_a_handler_allocates_nothing() {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    let handler = Handler::new().text(|context, text| {
        context.send(text).unwrap();
    });
    let client = driver.open_with(Config::new(server.url()), handler).unwrap();
    turn_until_open(&mut driver, &client);
    client.send(&text()).unwrap();
    let mut echo = |count: usize| {
        let end = client.metrics().messages_in + count as u64;
        while client.metrics().messages_in < end {
            driver.turn(WAIT).unwrap();
        }
    };
    echo(WARM_UP);
    assert_eq!(measure(|| echo(COUNTED)).count_total, 0);
}

#[test]
fn a_send_allocates_nothing() {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    let client = driver.open_with(Config::new(server.url()), Handler::new()).unwrap();
    turn_until_open(&mut driver, &client);
    let text = text();
    let mut allocations = 0;
    for number in 1..=WARM_UP + COUNTED {
        let info = measure(|| {
            client.send(&text).unwrap();
        });
        if number > WARM_UP {
            allocations += info.count_total;
        }
        // With one message under way at a time, the kernel takes each at once.
        while client.metrics().messages_in < number as u64 {
            driver.turn(WAIT).unwrap();
        }
    }
    assert_eq!(allocations, 0);
}

/// The message itself, and one block of the channel for every 31 events.
#[test]
fn a_message_into_an_inbox_allocates_once() {
    let server = MockServer::start().unwrap();
    let mut driver = Driver::new().unwrap();
    let inbox = Inbox::shared(8192);
    let client = driver.open_with(Config::new(server.url()), &inbox).unwrap();
    turn_until_open(&mut driver, &client);
    let text = text();
    let mut receive = |count: usize| {
        let mut seen = 0;
        client.send(&text).unwrap();
        while seen < count {
            driver.turn(WAIT).unwrap();
            while let Some(received) = inbox.try_recv().unwrap() {
                let Event::Message(message) = received.event else { continue };
                client.send(message.text().unwrap()).unwrap();
                seen += 1;
            }
        }
    };
    receive(WARM_UP);
    let blocks = COUNTED.div_ceil(EVENTS_PER_BLOCK);
    let count = measure(|| receive(COUNTED)).count_total as usize;
    assert!((COUNTED..=COUNTED + blocks).contains(&count), "{count} allocations for {COUNTED} messages");
}

#[test]
fn an_idle_plain_connection_holds_at_most_2_kib() {
    let server = MockServer::start().unwrap();
    let url = server.url();
    for (name, bytes) in idle_bytes(&Config::new(url)) {
        assert!(bytes <= 2 << 10, "{bytes} bytes per connection with {name}");
    }
}

#[test]
fn an_idle_tls_connection_holds_at_most_16_kib() {
    let server = MockServer::builder().tls().start().unwrap();
    // A literal is looked up on no other thread, whose allocations would not be counted.
    let url = format!("wss://{}/", server.address());
    let config = Config::new(url).without_system_roots().root_certificate(server.root_certificate().unwrap());
    for (name, bytes) in idle_bytes(&config) {
        assert!(bytes <= 16 << 10, "{bytes} bytes per connection with {name}");
    }
}

/// The heap that one more connection takes after its first ping was answered, by where its events go.
fn idle_bytes(config: &Config) -> [(&'static str, i64); 2] {
    let inbox = Inbox::shared(8192);
    let with_handler = idle_bytes_of(|driver| driver.open_with(config.clone(), Handler::new()).unwrap());
    let with_inbox = idle_bytes_of(|driver| driver.open_with(config.clone(), &inbox).unwrap());
    [("a handler", with_handler), ("a shared inbox", with_inbox)]
}

fn idle_bytes_of(open: impl Fn(&Driver) -> Client) -> i64 {
    let mut driver = Driver::new().unwrap();
    // The first holds what all share, such as the TLS config.
    let first = open(&driver);
    turn_until_pinged(&mut driver, &first);
    let mut clients = Vec::with_capacity(IDLE);
    let info = measure(|| {
        for _ in 0..IDLE {
            let client = open(&driver);
            turn_until_pinged(&mut driver, &client);
            clients.push(client);
        }
    });
    info.bytes_current / IDLE as i64
}

fn turn_until_pinged(driver: &mut Driver, client: &Client) {
    turn_until_open(driver, client);
    client.ping().unwrap();
    while client.heartbeat().rtt.is_none() {
        driver.turn(WAIT).unwrap();
    }
}

fn turn_until_open(driver: &mut Driver, client: &Client) {
    while !client.state().is_open() {
        driver.turn(WAIT).unwrap();
    }
}

fn text() -> String {
    "x".repeat(200)
}
