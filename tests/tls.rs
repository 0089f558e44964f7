//! Connections over TLS: whom they trust, what they negotiate, and that everything else works as without.

mod common;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zen_websocket::testkit::{Certificate, Frame, MockServer, MockServerBuilder, Peer, Script};
use zen_websocket::{Client, Config, Error, Event, Inbox, Overflow, connect, open_with};

use self::common::*;

// ---- what is negotiated ----

#[test]
fn wss_uses_tls_with_the_host_name_and_http_1_1_only() {
    let (_server, peer, client, inbox) = tls_session(Script::new());
    assert_eq!((peer.request().server_name(), peer.request().alpn()), (Some("localhost"), Some("http/1.1")));
    client.send("secret").unwrap();
    assert_eq!(text(&inbox), "secret");
}

#[test]
fn ws_uses_no_tls() {
    let (_server, peer, ..) = session(Script::new());
    assert_eq!((peer.request().server_name(), peer.request().alpn()), (None, None));
}

#[test]
fn a_front_end_that_prefers_http_2_is_spoken_to_in_http_1_1() {
    let server = MockServer::builder().tls().alpn(&["h2", "http/1.1"]).start().unwrap();
    let (peer, ..) = join(&server, config(&server));
    assert_eq!(peer.request().alpn(), Some("http/1.1"));
}

#[test]
fn a_server_without_alpn_is_fine_and_one_with_http_2_alone_is_refused() {
    let without = MockServer::builder().tls().alpn(&[]).start().unwrap();
    let (peer, ..) = join(&without, config(&without));
    assert_eq!(peer.request().alpn(), None);
    let only_h2 = MockServer::builder().tls().alpn(&["h2"]).start().unwrap();
    let error = connect(config(&only_h2).connect_attempts(1)).unwrap_err();
    assert!(matches!(error, Error::Tls { certificate: false, .. }), "{error:?}");
}

#[test]
fn an_address_is_verified_like_a_name() {
    let server = MockServer::builder().tls().start().unwrap();
    let url = format!("wss://127.0.0.1:{}/", server.address().port());
    let (peer, ..) = join(&server, trusting(&server, url));
    assert_eq!(peer.request().server_name(), None, "an address is no server name (RFC 6066 §3)");
}

// ---- whom it trusts ----

#[test]
fn a_root_is_given_as_der_or_as_pem_with_or_without_comments() {
    let server = MockServer::builder().tls().start().unwrap();
    let der = server.root_certificate().unwrap();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der));
    let bundle = format!("# Bundle of roots\n\nThe only root\n=============\n{pem}");
    for root in [der, pem.as_bytes(), bundle.as_bytes()] {
        drop(connect(config_for(server.url()).without_system_roots().root_certificate(root)).unwrap());
    }
}

#[test]
fn a_root_is_trusted_besides_those_of_the_system() {
    let server = MockServer::builder().tls().start().unwrap();
    drop(connect(config_for(server.url()).root_certificate(server.root_certificate().unwrap())).unwrap());
}

#[test]
fn a_certificate_that_is_not_in_order_ends_the_first_connect_at_once() {
    for (certificate, reason) in [
        (Certificate::Expired, "expired"),
        (Certificate::SelfSigned, "UnknownIssuer"),
        (Certificate::ForHost("elsewhere.example".to_owned()), "not valid for name"),
    ] {
        let server = MockServer::builder().certificate(certificate).start().unwrap();
        let error = quickly(|| connect(config(&server).connect_attempts(3)).unwrap_err());
        assert_eq!((certificate_error(&error).contains(reason), server.accepted()), (true, 1), "{error}");
    }
}

#[test]
fn an_unknown_root_ends_the_first_connect_at_once() {
    let server = MockServer::builder().tls().start().unwrap();
    let other = MockServer::builder().tls().start().unwrap();
    let error = connect(config_for(server.url()).without_system_roots().root_certificate(other.root_certificate().unwrap()));
    certificate_error(&error.unwrap_err());
    certificate_error(&connect(config_for(server.url())).unwrap_err());
    assert_eq!(server.accepted(), 2);
}

#[test]
fn a_certificate_for_another_address_is_refused() {
    let server = MockServer::builder().certificate(Certificate::ForHost("localhost".to_owned())).start().unwrap();
    let url = format!("wss://127.0.0.1:{}/", server.address().port());
    certificate_error(&connect(trusting(&server, url)).unwrap_err());
}

#[test]
fn addresses_of_the_dial_hook_do_not_change_the_name_that_is_verified() {
    let server = MockServer::builder().tls().start().unwrap();
    let elsewhere = MockServer::builder().certificate(Certificate::ForHost("exchange.example".to_owned())).start().unwrap();
    let dialling = |server: &MockServer| {
        let address = server.address();
        trusting(server, "wss://exchange.example".to_owned()).on_dial(move |plan| {
            plan.set_addresses([address]);
            Ok(())
        })
    };
    let (peer, ..) = join(&elsewhere, dialling(&elsewhere));
    assert_eq!(peer.request().server_name(), Some("exchange.example"));
    certificate_error(&connect(dialling(&server)).unwrap_err());
}

// ---- what breaks it ----

#[test]
fn a_server_that_hangs_up_in_the_handshake_is_an_error_that_may_pass() {
    let address = serve_raw(|mut stream| {
        let mut hello = [0; 64 << 10];
        let _ = stream.read(&mut hello);
    });
    let error = connect(config_for(format!("wss://{address}")).connect_attempts(1)).unwrap_err();
    assert!(matches!(error, Error::Disconnected), "{error:?}");
}

#[test]
fn a_server_that_does_not_speak_tls_is_told_from_one_with_a_bad_certificate() {
    let server = MockServer::start().unwrap();
    let error = connect(config_for(server.url().replace("ws:", "wss:")).connect_attempts(1)).unwrap_err();
    assert!(matches!(error, Error::Tls { certificate: false, .. }), "{error:?}");
}

#[test]
fn garbage_after_the_upgrade_is_a_loss() {
    let server = tls().start().unwrap();
    let (spoil, port) = spoiling_proxy(&server);
    let (_client, inbox) = connect(trusting(&server, format!("wss://localhost:{port}")).reconnect(false)).unwrap();
    spoil.send(()).unwrap();
    let cause = until_lost(&inbox);
    assert!(matches!(cause, Error::Tls { certificate: false, .. }), "{cause:?}");
}

#[test]
fn a_stream_that_ends_without_a_close_notify_is_a_loss() {
    let (_server, peer, client, inbox) = tls_session(Script::new());
    peer.send_text("last words");
    peer.hang_up();
    assert_eq!(text(&inbox), "last words");
    assert!(matches!(until_lost(&inbox), Error::Disconnected));
    until_open(&inbox);
    assert_eq!(client.generation().number(), 2);
}

// ---- everything else ----

#[test]
fn a_redial_resumes_the_tls_session() {
    let (server, first, client, inbox) = tls_session(Script::new());
    client.send("now the ticket has come").unwrap();
    text(&inbox);
    first.reset();
    until_open(&inbox);
    let second = server.accept(WAIT).unwrap();
    assert_eq!((first.request().tls_resumed(), second.request().tls_resumed()), (false, true));
    client.send("again").unwrap();
    assert_eq!(text(&inbox), "again");
}

#[test]
fn large_messages_pass_in_both_directions() {
    let (server, _peer, client, inbox) = tls_session(Script::new());
    let sizes = [0, 1, 16_383, 16_384, 16_385, 65_536, 1_000_000, 4 << 20];
    for (number, size) in sizes.into_iter().enumerate() {
        let payload = vec![number as u8; size];
        client.send_binary(&payload).unwrap();
        assert!(message(&inbox) == payload, "{size} bytes");
    }
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn a_burst_keeps_its_order() {
    let (_server, peer, _client, inbox) = tls_session(Script::new());
    for number in 0..10_000 {
        peer.send_text(&number.to_string());
    }
    for number in 0..10_000 {
        assert_eq!(text(&inbox), number.to_string());
    }
}

#[test]
fn a_blocked_inbox_loses_nothing() {
    let set = |config: Config| config.inbox_capacity(10).overflow(Overflow::Block);
    let (_server, peer, _client, inbox) = tls_session_with(Script::new(), set);
    for number in 0..5000 {
        peer.send_text(&format!("{number} {}", "x".repeat(100)));
    }
    peer.close(1012, "restart");
    for number in 0..5000 {
        assert_eq!(text(&inbox).split_once(' ').unwrap().0, number.to_string());
    }
    assert_eq!(next_line(&inbox), "lost, again in 0ns: the peer closed with code 1012: restart");
}

#[test]
fn frames_behind_the_101_are_the_first_messages() {
    let glue: Vec<u8> = (0..3000).flat_map(|number| Frame::text(number.to_string()).to_bytes()).collect();
    let (_server, _peer, _client, inbox) = tls_session(Script::new().glue(glue));
    for number in 0..3000 {
        assert_eq!(text(&inbox), number.to_string());
    }
}

#[test]
fn records_cut_anywhere_are_put_together() {
    let (_server, _peer, client, inbox) = tls_session(Script::new().dribble(37, ms(1)));
    client.send("hi").unwrap();
    assert_eq!(text(&inbox), "hi");
}

#[test]
fn a_hundred_connections_shake_hands_on_one_thread() {
    let server = tls().start().unwrap();
    let inbox = Inbox::shared(1000);
    let clients: Vec<_> = (0..100).map(|_| open_with(config(&server), &inbox).unwrap()).collect();
    clients.iter().for_each(wait_open);
    drop(clients);
    assert!(server.wait_connections(0, WAIT));
    assert_eq!((server.accepted(), server.violations()), (100, vec![]));
}

#[test]
fn records_of_several_threads_do_not_tear_while_messages_arrive() {
    let (server, peer, client, inbox) = tls_session_with(Script::new(), |config| config.unsent_max(1 << 20));
    thread::scope(|scope| {
        for number in 0..4 {
            let client = &client;
            scope.spawn(move || (0..500).for_each(|count| assert!(client.send(&format!("{number} {count}")).is_ok())));
        }
        (0..500).for_each(|_| peer.send_text("4 0"));
        let mut heard = [0; 5];
        for _ in 0..2500 {
            let text = text(&inbox);
            let (number, count) = text.split_once(' ').unwrap();
            let place: usize = number.parse().unwrap();
            assert!(place == 4 || count == heard[place].to_string(), "{text} after {heard:?}");
            heard[place] += 1;
        }
        assert_eq!(heard, [500; 5]);
    });
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn close_is_shaken_hands_on() {
    let (server, peer, client, inbox) = tls_session(Script::new());
    client.close_with(4001, "bye").unwrap();
    assert_eq!(lines_to_end(&inbox), ["closed"]);
    assert!(peer.wait_closed(WAIT));
    assert_eq!(peer.client_close(), Some((4001, "bye".to_owned())));
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn what_a_peer_that_stopped_reading_did_not_get_is_reported() {
    let slow = || tls().receive_buffer(4096).script(Script::new().stop_reading());
    let server = slow().start().unwrap();
    let (peer, client, inbox) = join(&server, config(&server).reconnect(false));
    let full = loop {
        match client.send(&"x".repeat(4000)) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::Full { .. }), "{full:?}");
    peer.reset();
    match next(&inbox) {
        Event::Unsent { messages, bytes } => {
            assert!(messages > 0 && bytes > 0 && bytes <= 64 << 10, "{messages} messages, {bytes} bytes");
        }
        other => panic!("{other:?}"),
    }
    until_closed(&inbox);
}

// ---- helpers ----

fn tls() -> MockServerBuilder {
    MockServer::builder().tls()
}

fn tls_session(script: Script) -> (MockServer, Peer, Client, Inbox) {
    tls_session_with(script, |config| config)
}

fn tls_session_with(script: Script, set: impl FnOnce(Config) -> Config) -> (MockServer, Peer, Client, Inbox) {
    let server = tls().script(script).start().unwrap();
    let (peer, client, inbox) = join(&server, set(config(&server)));
    (server, peer, client, inbox)
}

fn trusting(server: &MockServer, url: String) -> Config {
    config_for(url).without_system_roots().root_certificate(server.root_certificate().unwrap())
}

fn message(inbox: &Inbox) -> Vec<u8> {
    match next(inbox) {
        Event::Message(message) => message.into_bytes(),
        other => panic!("no message but {other:?}"),
    }
}

/// What TLS said against the certificate.
fn certificate_error(error: &Error) -> String {
    match error {
        Error::Tls { certificate: true, source } => source.to_string(),
        other => panic!("no certificate was refused but {other:?}"),
    }
}

/// A port that passes everything on to the server and back, and on demand tells the client something that nobody encrypted.
fn spoiling_proxy(server: &MockServer) -> (mpsc::Sender<()>, u16) {
    let target = server.address();
    let (spoil, wanted) = mpsc::channel();
    let address = serve_raw(move |mut client| {
        let server = TcpStream::connect(target).unwrap();
        for (mut from, mut to) in
            [(&client, &server), (&server, &client)].map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()))
        {
            thread::spawn(move || io::copy(&mut from, &mut to));
        }
        wanted.recv().unwrap();
        client.write_all(b"\x17\x03\x03\x00\x20 these bytes were never encrypted").unwrap();
    });
    (spoil, address.port())
}
