//! Every fault the test kit can inject: its cause can be named from the log alone, from the events alone and from the telemetry alone, and
//! what `explain` suggests fits it.

mod common;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::json;
use zen_websocket::telemetry::{self, Closer, Filter, Guard, Observed, Signal};
use zen_websocket::testkit::{Certificate, Frame, MockServer, Peer, Script};
use zen_websocket::{
    Client, Config, ConnectionId, Error, Event, Explanation, Generation, Id, Inbox, JsonRpc, Overflow, Phase, Refusal,
    RejectedChannel, Rejection, SocketOptions, connect, open,
};

use self::common::*;

#[test]
fn every_fault_is_named_by_log_events_and_telemetry_and_explained() {
    let wrong: Vec<_> = SEEN.iter().flat_map(|(fault, seen)| fault.judge(seen)).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn faults_that_a_client_can_tell_apart_are_told_apart() {
    let mut first: HashMap<(String, &str), &str> = HashMap::new();
    for (fault, seen) in SEEN.iter() {
        let Some(cause) = &seen.cause else { continue };
        let Explanation { message, suggestion } = cause.explain();
        let reads_like = *first.entry((message.clone(), suggestion)).or_insert(fault.name);
        assert!(reads_like == fault.name || fault.like == Some(reads_like), "{} reads like {reads_like}: {message}", fault.name);
    }
}

/// A method that the kit gains is used above, or is listed here because it is no fault.
#[test]
fn every_method_of_the_kit_is_a_fault_here_or_known_as_none() {
    let own = include_str!("faults.rs");
    let kit = [
        include_str!("../src/testkit/script.rs"),
        include_str!("../src/testkit/peer.rs"),
        include_str!("../src/testkit/server.rs"),
        include_str!("../src/testkit/frame.rs"),
    ];
    let names: Vec<_> = kit.iter().flat_map(|source| source.split("    pub fn ").skip(1)).map(name).collect();
    let calls = |name: &str| [format!(".{name}("), format!("::{name}("), format!("MockServer::{name})")];
    let is_used = |name: &str| calls(name).iter().any(|call| own.contains(call));
    for name in &names {
        assert!(is_used(name) || NO_FAULTS.contains(name), "{name} is neither a fault here nor known as none");
    }
    for known in NO_FAULTS {
        assert!(names.contains(known), "{known} is no method of the kit");
    }
    let certificates = include_str!("../src/testkit/certificate.rs").split("pub enum Certificate {").nth(1).unwrap();
    for line in certificates.split("\n}").next().unwrap().lines().filter(|line| line.contains(',') && !line.contains("///")) {
        assert!(own.contains(&format!("Certificate::{}", name(line.trim_start()))), "{line}");
    }
}

/// What prepares, observes or helps, and harms no client.
const NO_FAULTS: &[&str] = &[
    // Scripts.
    "new",
    "body",
    "echo",
    "on_open",
    "on_text",
    "on_binary",
    "playback",
    // Peers.
    "id",
    "request",
    "send_text",
    "send_binary",
    "send_fragments",
    "ping",
    "resume_reading",
    "thaw",
    "captured",
    "expect",
    "client_close",
    "is_open",
    "wait_closed",
    // Servers.
    "start",
    "builder",
    "url",
    "address",
    "root_certificate",
    "script",
    "script_next",
    "accepted",
    "accept_times",
    "wait_accepted",
    "connections",
    "wait_connections",
    "accept",
    "peers",
    "requests",
    "broadcast_text",
    "resume",
    "captured_dropped",
    "violations",
    // A client that offers only HTTP/1.1 by ALPN fails in the TLS handshake, or is not affected.
    "tls",
    "bind",
    "captured_max",
    // Frames.
    "binary",
    "pong",
    "to_bytes",
];

/// All faults, each with what says so.
fn faults() -> Vec<Fault> {
    vec![
        // ---- no TCP connection ----
        Fault::dial("nobody listens", Script::new())
            .server(|server| server.pause().unwrap())
            .says("could not connect to 127.0.0.1:")
            .so("check that the server is running and that host and port are right"),
        Fault::dial("the port takes no further connection", Script::new())
            .with(|config| {
                let full = full_port();
                config.phase_timeout(Phase::Connect, SOON).on_dial(move |plan| {
                    // Held whole: it is full as long as the hook lives.
                    let FullPort { address, .. } = &full;
                    plan.set_addresses([*address]);
                    Ok(())
                })
            })
            .says("timed out after 100ms connecting")
            .so("check the network path and firewalls, or raise connect_timeout"),
        Fault::dial("the name does not exist", Script::new())
            .with(|config| config.url("ws://no-such-host.invalid/"))
            .says("could not resolve no-such-host.invalid: ")
            .so("check the spelling of the host and the name server"),
        Fault::dial("the name takes too long", Script::new())
            .with(|config| {
                let (hold, held) = mpsc::channel::<()>();
                let held = Mutex::new(held);
                config.phase_timeout(Phase::Resolve, SOON).on_dial(move |_| {
                    let _hold = &hold;
                    let _ = held.lock().unwrap().recv_timeout(3 * SOON);
                    Ok(())
                })
            })
            .says("timed out after 100ms resolving the host")
            .so("check the name server and how long on_dial takes"),
        Fault::dial("the dial hook refuses", Script::new())
            .with(|config| config.on_dial(|_| Err("no token".into())))
            .says("the dial hook failed: no token")
            .so("look at the on_dial hook"),
        Fault::dial("the host has no address of the family", Script::new())
            .with(|config| config.socket(SocketOptions::default().bind_address([0, 0, 0, 0, 0, 0, 0, 1])))
            .says("could not connect to 127.0.0.1: the host has no IPv6 address, and bind_address is one")
            .so("check bind_address and the addresses of the host"),
        Fault::dial("the socket hook refuses", Script::new())
            .with(|config| config.on_socket(|_| Err(io::Error::other("no such interface"))))
            .says("the socket failed: on_socket: no such interface")
            .so("check what the system allows this process, and the on_socket hook"),
        // ---- no answer to the upgrade ----
        Fault::dial("a reset instead of an answer", Script::new().mute().reset_after(SOON / 2))
            .says("the socket failed: Connection reset by peer (os error 104)")
            .so(IF_RARE),
        Fault::dial("a reset at the door", Script::new().reset_on_accept())
            // The reset may come before the connect is known to have succeeded.
            .says("Connection reset by peer (os error 104)")
            .so(IF_RARE)
            .like("a reset instead of an answer"),
        Fault::dial("a server that never answers", Script::new().mute())
            .with(|config| config.phase_timeout(Phase::Upgrade, SOON))
            .says("timed out after 100ms waiting for the upgrade")
            .so("check that the port speaks WebSocket, or raise connect_timeout"),
        Fault::dial("a server that reads and never answers", Script::new().mute_after_tls())
            .with(|config| config.phase_timeout(Phase::Upgrade, SOON))
            .says("timed out after 100ms waiting for the upgrade")
            .so("check that the port speaks WebSocket, or raise connect_timeout")
            .like("a server that never answers"),
        Fault::dial("an answer that comes too late", Script::new().delay(NEVER))
            .with(|config| config.phase_timeout(Phase::Upgrade, SOON))
            .says("timed out after 100ms waiting for the upgrade")
            .so("check that the port speaks WebSocket, or raise connect_timeout")
            .like("a server that never answers"),
        Fault::dial("an answer that dribbles", Script::new().dribble(1, NEVER))
            .with(|config| config.phase_timeout(Phase::Upgrade, SOON))
            .says("timed out after 100ms waiting for the upgrade")
            .so("check that the port speaks WebSocket, or raise connect_timeout")
            .like("a server that never answers"),
        Fault::dial("a hang-up instead of an answer", Script::new().mute_after_tls().hang_up_after(Duration::ZERO))
            .says("the peer closed the TCP connection without a close frame")
            .so(IF_RARE),
        // ---- another answer than 101 ----
        Fault::refusal("a web page", 200).so("check the path of the URL: no WebSocket answers there"),
        Fault::refusal("a redirect", 301).so("use the URL the server points to"),
        Fault::refusal("a bad request", 400).so("check the URL and the headers"),
        Fault::refusal("no credentials", 401).so("check the credentials, their clock and the address they are allowed from"),
        Fault::refusal("forbidden", 403).so("check the credentials, their clock and the address they are allowed from"),
        Fault::refusal("no such path", 404).so("check the path of the URL"),
        Fault::refusal("a slow request", 408).so("connect less often, and only after the pause the server asks for"),
        Fault::refusal("too early", 425).so("connect less often, and only after the pause the server asks for"),
        Fault::refusal("too many requests", 429).so("connect less often, and only after the pause the server asks for"),
        Fault::refusal("an error of the server", 500).so("wait until the server is back"),
        Fault::refusal("maintenance", 503).so("wait until the server is back"),
        // ---- an answer that breaks the handshake ----
        Fault::handshake("another protocol", Script::new().raw_answer("220 smtp.example ESMTP\r\n"))
            .says("the upgrade failed: answer is not HTTP/1.1"),
        Fault::handshake("headers without end", Script::new().endless_headers())
            .says("the upgrade failed: head of the answer larger than 16384 bytes"),
        Fault::handshake("too many headers", (0..130).fold(Script::new(), |script, n| script.header(format!("X-{n}"), "1")))
            .says("the upgrade failed: answer has more than 128 headers"),
        Fault::handshake("a key that is not ours", Script::new().wrong_accept_key())
            .says("the upgrade failed: sec-websocket-accept does not match our key"),
        Fault::handshake("no upgrade header", Script::new().without_header("Upgrade"))
            .says("the upgrade failed: 101 without upgrade: websocket"),
        Fault::handshake("no connection header", Script::new().without_header("Connection"))
            .says("the upgrade failed: 101 without connection: upgrade"),
        Fault::handshake("an extension", Script::new().header("Sec-WebSocket-Extensions", "permessage-deflate"))
            .says("the upgrade failed: server chose an extension that was not offered"),
        Fault::handshake("another subprotocol", Script::new().subprotocol("v9"))
            .with(|config| config.subprotocol("v1"))
            .says(r#"the upgrade failed: server chose a subprotocol that was not offered: "v9""#),
        // ---- TLS ----
        Fault::tls("an expired certificate", Certificate::Expired)
            .says("TLS failed: invalid peer certificate: certificate expired: ")
            .so(CERTIFICATE),
        Fault::tls("a certificate for another host", Certificate::ForHost("elsewhere.example".to_owned()))
            .says(r#"TLS failed: invalid peer certificate: certificate not valid for name "localhost""#)
            .so(CERTIFICATE),
        Fault::tls("a certificate signed by itself", Certificate::SelfSigned)
            .says("TLS failed: invalid peer certificate: UnknownIssuer")
            .so(CERTIFICATE),
        Fault::tls("an issuer nobody knows", Certificate::Valid)
            .trusting_another()
            // Which goes by the same name.
            .says("TLS failed: invalid peer certificate: BadSignature")
            .so(CERTIFICATE),
        Fault::tls("no protocol in common", Certificate::Valid)
            .alpn(&["h2"])
            .says("TLS failed: received fatal alert: NoApplicationProtocol")
            .so(NO_TLS),
        Fault::tls("a TLS server that says nothing", Certificate::Valid)
            .script(Script::new().mute())
            .with(|config| config.phase_timeout(Phase::Tls, SOON))
            .says("timed out after 100ms in the TLS handshake")
            .so("check that the port speaks TLS, or raise connect_timeout"),
        Fault::tls("a TLS server that says nothing more", Certificate::Valid)
            .script(Script::new().mute_after_tls())
            .with(|config| config.phase_timeout(Phase::Upgrade, SOON))
            .says("timed out after 100ms waiting for the upgrade")
            .so("check that the port speaks WebSocket, or raise connect_timeout")
            .like("a server that never answers"),
        Fault::dial("a port that speaks no TLS", Script::new())
            .at(|server| server.url().replace("ws://", "wss://"))
            .trusting_another()
            .says("TLS failed: received corrupt message of type InvalidContentType")
            .so(NO_TLS),
        Fault::tls("a port that speaks TLS only", Certificate::Valid)
            .at(|server| server.url().replace("wss://", "ws://"))
            .says("the upgrade failed: answer is not HTTP/1.1")
            .so(NO_WEBSOCKET)
            .like("another protocol"),
        // ---- the login ----
        Fault::dial("a login that is not answered", Script::new().ignore())
            .with(|config| log_in(config).phase_timeout(Phase::Login, SOON))
            .says("timed out after 100ms logging in")
            .so("check that the dialect recognises the replies to its login, or raise connect_timeout"),
        Fault::dial("a login that is refused", Script::new().on_text(refuse_login))
            .with(log_in)
            .says("the venue refused the login: invalid_credentials (13004)")
            .so("check the credentials, their clock and what they are allowed to do"),
        // ---- the peer closes ----
        Fault::close("a normal close", 1000).so("nothing if it is rare; else see how long the venue lets connections last"),
        Fault::close("a peer that goes away", 1001)
            .so("nothing if it is rare; else see how long the venue lets connections last"),
        Fault::close("what we sent broke the protocol", 1002).so("check what was sent: the peer could not read it"),
        Fault::close("what we sent was of the wrong kind", 1003).so("check what was sent: the peer could not read it"),
        Fault::close("what we sent was not UTF-8", 1007).so("check what was sent: the peer could not read it"),
        Fault::close("a broken rule of the venue", 1008)
            .so("check the credentials, and the venue's rules on messages and limits"),
        Fault::close("a message of ours too long", 1009).so("send smaller messages"),
        Fault::close("an error of the venue", 1011).so("wait until the server is back"),
        Fault::close("a restart", 1012).so("wait until the server is back"),
        Fault::close("a crowd", 1013).so("wait until the server is back"),
        Fault::close("a code of the venue's own", 4001).so(THEIR_CODE),
        Fault::life("a close without a code", Script::new(), |peer, _| peer.close_raw([]))
            .says("the peer closed with code 1005")
            .so(THEIR_CODE)
            .by(Closer::Peer),
        Fault::life("a close that the script planned", Script::new().close_after(Duration::ZERO, 1012, "why"), |_, _| ())
            .says("the peer closed with code 1012: why")
            .so("wait until the server is back")
            .by(Closer::Peer)
            .like("a restart"),
        Fault::dial("a close of all", Script::new())
            .after_open(|server| assert_eq!(server.close_all(1012, "why"), 1))
            .says("the peer closed with code 1012: why")
            .so("wait until the server is back")
            .by(Closer::Peer)
            .like("a restart"),
        // ---- the stream ends ----
        Fault::life("a hang-up", Script::new(), |peer, _| peer.hang_up())
            .says("the peer closed the TCP connection without a close frame")
            .so(IF_RARE)
            .by(Closer::Peer)
            .like("a hang-up instead of an answer"),
        Fault::life("a reset", Script::new(), |peer, _| peer.reset())
            .says("the socket failed: Connection reset by peer (os error 104)")
            .so(IF_RARE)
            .by(Closer::Network)
            .like("a reset instead of an answer"),
        Fault::dial("a reset of all", Script::new())
            .after_open(MockServer::kill_all)
            .says("the socket failed: Connection reset by peer (os error 104)")
            .so(IF_RARE)
            .by(Closer::Network)
            .like("a reset instead of an answer"),
        Fault::dial("a server that stops", Script::new())
            .after_open(MockServer::stop)
            .says("the peer closed the TCP connection without a close frame")
            .so(IF_RARE)
            .by(Closer::Peer)
            .like("a hang-up instead of an answer"),
        // ---- silence ----
        Fault::life("a peer that says nothing more", Script::new(), |peer, _| peer.silence(true))
            .with(heartbeat)
            .says("the peer is silent: not a byte for ")
            .so(SILENT)
            .by(Closer::Own),
        Fault::life("a peer that never says anything", Script::new().silent(), |_, _| ())
            .with(heartbeat)
            .says("the peer is silent: not a byte for ")
            .so(SILENT)
            .by(Closer::Own)
            .like("a peer that says nothing more"),
        Fault::life("a machine that is gone", Script::new(), |peer, _| peer.freeze())
            .with(heartbeat)
            .says("the peer is silent: not a byte for ")
            .so(SILENT)
            .by(Closer::Own)
            .like("a peer that says nothing more"),
        Fault::life("a peer that answers no ping", Script::new().withhold_pongs(), |_, _| ())
            .with(heartbeat)
            .says("the peer is silent: not a byte for ")
            .so(SILENT)
            .by(Closer::Own)
            .like("a peer that says nothing more"),
        Fault::life("a peer that answers pings too late", Script::new().delay_pongs(NEVER), |_, _| ())
            .with(heartbeat)
            .says("the peer is silent: not a byte for ")
            .so(SILENT)
            .by(Closer::Own)
            .like("a peer that says nothing more"),
        Fault::life("a peer that reads nothing more", Script::new(), |peer, _| peer.stop_reading())
            .with(heartbeat)
            .says("the peer is silent: not a byte for ")
            .so(SILENT)
            .by(Closer::Own)
            .like("a peer that says nothing more"),
        Fault::life("a peer that never reads", Script::new().stop_reading(), |_, _| ())
            .with(heartbeat)
            .says("the peer is silent: not a byte for ")
            .so(SILENT)
            .by(Closer::Own)
            .like("a peer that says nothing more"),
        Fault::life("a feed that dries up", Script::new().ignore(), |_, _| ())
            .with(|config| config.heartbeat_interval(SOON / 4).data_silence(SOON))
            .says("no data message for ")
            .so("check the subscriptions, or raise data_silence for a quiet feed")
            .by(Closer::Own),
        // ---- the peer breaks the protocol ----
        Fault::frame("an unknown opcode", 1002, "unknown opcode", || Frame::new(3, "")),
        Fault::frame("a reserved bit", 1002, "reserved bit set", || Frame::text("").rsv(0b100)),
        Fault::frame("a mask", 1002, "masked frame from server", || Frame::text("x").masked([1; 4])),
        Fault::frame("a continuation of nothing", 1002, "continuation of no message", || Frame::continuation("x")),
        Fault::frame("a ping in pieces", 1002, "fragmented control frame", || Frame::ping("").unfinished()),
        Fault::frame("a ping too long", 1002, "control frame longer than 125 bytes", || Frame::ping([0; 126])),
        Fault::frame("a length in a long form", 1002, "frame length not in its shortest form", || Frame::text("").long_length()),
        Fault::frame("a forbidden close code", 1002, "invalid close code", || Frame::close(1005, "")),
        Fault::frame("text that is not UTF-8", 1007, "text is not UTF-8", || Frame::text(*b"\xFF")),
        Fault::frame("a message too long", 1009, "message over the size limit", || Frame::text("").announcing(1 << 40))
            .so("raise max_message if the venue sends such messages"),
        Fault::life("a message inside another", Script::new(), |peer, _| {
            peer.send_raw([Frame::text("a").unfinished(), Frame::text("b")].map(|frame| frame.to_bytes()).concat());
        })
        .says("the peer broke the protocol (1002): new message inside a fragmented one")
        .so(REPORT)
        .by(Closer::Own),
        Fault::life("a close frame of one byte", Script::new(), |peer, _| peer.close_raw([3]))
            .says("the peer broke the protocol (1002): close frame of one byte")
            .so(REPORT)
            .by(Closer::Own),
        Fault::life("a close reason that is not UTF-8", Script::new(), |peer, _| peer.close_raw(*b"\x03\xE8\xFF"))
            .says("the peer broke the protocol (1007): close reason is not UTF-8")
            .so(REPORT)
            .by(Closer::Own),
        Fault::life("rubbish behind the answer", Script::new().glue([0xFF; 2]), |_, _| ())
            .says("the peer broke the protocol (1002): reserved bit set")
            .so(REPORT)
            .by(Closer::Own)
            .like("a reserved bit"),
        // ---- ours ----
        Fault::life("a flood that nobody takes", Script::new(), |peer, _| (0..100).for_each(|_| peer.send_text("tick")))
            .with(|config| config.inbox_capacity(4).overflow(Overflow::Disconnect))
            .says("the inbox was full")
            .so("take events faster, raise inbox_capacity, or choose another overflow policy"),
        Fault::life("a close that is not answered", Script::new().never_answer_close(), |_, client| {
            client.start_close(1000, "").unwrap();
        })
        .with(|config| config.close_timeout(SOON))
        // This program wanted the end, and has it.
        .unnoticed(),
    ]
}

// ---- what sends say ----

/// What a peer that does not read does to senders; the log has it with `debug` only, because it would be a line per send.
#[test]
fn a_peer_that_reads_too_slowly_is_named_by_the_send_and_by_telemetry() {
    watch();
    let server = MockServer::builder().receive_buffer(4096).script(Script::new().stop_reading()).start().unwrap();
    let (_peer, client, _inbox) = join(&server, config(&server).debug(true).heartbeat_interval(None));
    let error = std::iter::repeat_with(|| client.send(&"x".repeat(4000))).find_map(Result::err).unwrap();
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    let Explanation { message, suggestion } = error.explain();
    assert!(message.starts_with("the send buffer is full: ") && message.ends_with(" bytes unsent"), "{message}");
    assert_eq!(suggestion, "send less, or raise unsent_max and accept that messages age in the buffer");
    assert!(logged(client.id()).iter().any(|line| line.ends_with(&format!("not sent: text, 4000 bytes: {message}"))));
    assert!(told(client.id()).iter().any(|told| told.name == "traffic.refused"));
}

#[test]
fn a_call_that_is_not_answered_is_named_by_its_error_and_by_telemetry() {
    watch();
    let (_server, _peer, client, _inbox) = session_with(Script::new().ignore(), |config| config.dialect(JsonRpc::new()));
    let error = client.with_call_timeout(SOON).call::<()>("m", ()).unwrap_err();
    let suggestion = "ask the venue what became of the request before sending it again";
    let explained = error.explain();
    assert!(explained.message.starts_with("timed out after 1") && explained.suggestion == suggestion, "{explained:?}");
    assert!(told(client.id()).iter().any(|told| told.name == "request_correlator.timeout"));
}

// ---- explanations ----

#[test]
fn an_end_after_many_attempts_is_explained_without_promising_another() {
    let server = MockServer::start().unwrap();
    for script in [Script::new().mute_after_tls().hang_up_after(Duration::ZERO), Script::new().status(429)] {
        server.script(script);
        let error = connect(config(&server).connect_attempts(2)).unwrap_err();
        assert!(matches!(error, Error::Exhausted { attempts: 2, .. }), "{error:?}");
        let Explanation { message, suggestion } = error.explain();
        assert!(message.starts_with("gave up after 2 attempts: "), "{message}");
        for promise in ["dialled again", "is kept"] {
            assert!(!suggestion.contains(promise), "nobody dials any more: {suggestion}");
        }
    }
}

#[test]
fn who_uses_a_stopped_reactor_is_told_to_use_another() {
    let server = MockServer::start().unwrap();
    let reactor = zen_websocket::Reactor::builder().start().unwrap();
    reactor.stop();
    let error = reactor.connect(config(&server)).unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error:?}");
    assert_eq!(error.explain().suggestion, "connect again on another reactor");
}

#[test]
fn every_error_has_an_explanation_of_its_own() {
    for error in errors() {
        let Explanation { message, suggestion } = error.explain();
        assert_eq!(message, error.to_string());
        assert!(
            suggestion.starts_with(char::is_lowercase) && !suggestion.ends_with(['.', ' ', '!']),
            "{error:?}: {suggestion:?}"
        );
        assert!(suggestion.split(' ').count() > 2 && !suggestion.contains(". "), "{error:?}: {suggestion:?}");
        let is_lower = |text: &str| !text.starts_with(char::is_uppercase) || text.starts_with("TLS");
        assert!(is_lower(&message) && !message.ends_with('.') && !message.contains('\n'), "{message:?}");
    }
}

/// One of each variant. Names those it lacks if the enum grows, because the names are read from the source.
fn errors() -> Vec<Error> {
    let io = || Arc::new(io::Error::from(io::ErrorKind::ConnectionReset));
    let refusal = |status| Arc::new(Refusal { status, headers: Vec::new(), body: String::new(), retry_after: None });
    let other = || Arc::new(io::Error::other("why"));
    let after = Duration::from_secs(1);
    let rejected = RejectedChannel { channel: "book".into(), reason: "no\nsuch".into() };
    let mut errors = vec![
        Error::ChannelsRejected(vec![rejected].into()),
        Error::Closed,
        Error::Config { setting: "url", reason: "empty".into() },
        Error::Connect { peer: "192.0.2.1:1".into(), source: io() },
        Error::DataSilent { quiet: after },
        Error::DialHook(other()),
        Error::Disconnected,
        Error::Duplicate(Id::from(1)),
        Error::Exhausted { attempts: 2, last: Arc::new(Error::Disconnected) },
        Error::Full { unsent: 1 },
        Error::Handshake("why".into()),
        Error::InboxFull,
        Error::Io(io()),
        Error::Json(other()),
        Error::LoginRefused { reason: "no\nway".into(), fatal: true },
        Error::NotConnected,
        Error::OnReactor,
        Error::Panicked("why".into()),
        Error::Protocol { code: 1002, reason: "why" },
        Error::Protocol { code: 1009, reason: "why" },
        Error::QueueFull { waiting: 1 },
        Error::Rejected(Arc::new(Rejection::new(1, "no\nway"))),
        Error::Replaced,
        Error::Reply("why".into()),
        Error::Resolve { host: "example".into(), source: io() },
        Error::Silent { quiet: after },
        Error::Stale { current: Generation::default() },
        Error::Stopped,
        Error::Throttled { wait: after },
        Error::TooManyCalls { pending: 1 },
    ];
    errors.extend([200, 301, 400, 401, 404, 429, 503].map(|status| Error::Refused(refusal(status))));
    errors.extend([None, Some(1000), Some(1002), Some(1008), Some(1009), Some(1012), Some(4000)].map(peer_closed));
    errors.extend([true, false].map(|certificate| Error::Tls { certificate, source: other() }));
    for sent in [true, false] {
        errors.extend([Error::Lost { cause: Arc::new(Error::Disconnected), sent }, Error::Timeout { after, sent }]);
    }
    let phases = [Phase::Resolve, Phase::Connect, Phase::Tls, Phase::Upgrade, Phase::Login];
    errors.extend(phases.map(|phase| Error::DialTimeout { phase, after }));

    let source = include_str!("../src/error.rs").split("pub enum Error {").nth(1).unwrap().split("\n}").next().unwrap();
    let is_variant = |line: &&str| line.starts_with("    ") && line[4..].starts_with(char::is_uppercase);
    for variant in source.lines().filter(is_variant).map(|line| name(line.trim())) {
        assert!(errors.iter().any(|error| name(&format!("{error:?}")) == variant), "{variant} is missing");
    }
    errors
}

fn peer_closed(code: Option<u16>) -> Error {
    Error::PeerClosed { code, reason: "no\nreason".into() }
}

// ---- helpers ----

/// Long enough for whatever is at work, short enough to wait for.
const SOON: Duration = Duration::from_millis(100);

const CERTIFICATE: &str = "check the host name, the clock and which roots are trusted";
const IF_RARE: &str = "nothing if it is rare; else check the venue's limits and the network path";
const NO_TLS: &str = "check that the port speaks TLS, whether it wants a client certificate, and what lies between";
const NO_WEBSOCKET: &str = "check scheme, port and path of the URL, and the subprotocols that are offered";
const REPORT: &str = "report it to the venue";
const SILENT: &str = "nothing if it is rare; else check the network path, and whether the venue answers pings";
const THEIR_CODE: &str = "see the venue's documentation for this close code";

/// A fault, and what it looks like to the client.
struct Fault {
    name: &'static str,
    certificate: Option<Certificate>,
    trusts_another: bool,
    alpn: &'static [&'static str],
    script: Script,
    url: fn(&MockServer) -> String,
    prepare: Box<dyn Fn(&MockServer) + Send + Sync>,
    set: Box<dyn Fn(Config) -> Config + Send + Sync>,
    act: Option<Act>,
    /// A part of the message of its cause; `None` if nobody is to notice.
    says: Option<&'static str>,
    suggestion: &'static str,
    /// Who ended the wire, if one was open.
    closer: Option<Closer>,
    /// The first fault that looks the same to a client.
    like: Option<&'static str>,
}

type Act = Box<dyn Fn(&MockServer, &Peer, &Client) + Send + Sync>;

impl Fault {
    /// A connection whose first dial meets this script.
    fn dial(name: &'static str, script: Script) -> Self {
        Self {
            name,
            certificate: None,
            trusts_another: false,
            alpn: &["http/1.1"],
            script,
            url: MockServer::url,
            prepare: Box::new(|_| ()),
            set: Box::new(|config| config),
            act: None,
            says: Some(name),
            suggestion: "",
            closer: None,
            like: None,
        }
    }

    /// A connection to which this happens once it is open.
    fn life(name: &'static str, script: Script, act: impl Fn(&Peer, &Client) + Send + Sync + 'static) -> Self {
        Self { act: Some(Box::new(move |_, peer, client| act(peer, client))), ..Self::dial(name, script) }
    }

    fn refusal(name: &'static str, status: u16) -> Self {
        let message = format!("the server answered the upgrade with HTTP {status}").leak();
        Self::dial(name, Script::new().status(status)).says(message)
    }

    fn handshake(name: &'static str, script: Script) -> Self {
        Self::dial(name, script).so(NO_WEBSOCKET)
    }

    fn tls(name: &'static str, certificate: Certificate) -> Self {
        Self { certificate: Some(certificate), ..Self::dial(name, Script::new()) }
    }

    fn close(name: &'static str, code: u16) -> Self {
        let message = format!("the peer closed with code {code}: why").leak();
        Self::life(name, Script::new(), move |peer, _| peer.close(code, "why")).says(message).by(Closer::Peer)
    }

    fn frame(name: &'static str, code: u16, rule: &'static str, frame: fn() -> Frame) -> Self {
        let message = format!("the peer broke the protocol ({code}): {rule}").leak();
        let send = move |peer: &Peer, _: &Client| peer.send_frame(&frame());
        Self::life(name, Script::new(), send).says(message).so(REPORT).by(Closer::Own)
    }

    fn script(self, script: Script) -> Self {
        Self { script, ..self }
    }

    fn alpn(self, alpn: &'static [&'static str]) -> Self {
        Self { alpn, ..self }
    }

    fn trusting_another(self) -> Self {
        Self { trusts_another: true, ..self }
    }

    fn at(self, url: fn(&MockServer) -> String) -> Self {
        Self { url, ..self }
    }

    fn server(self, prepare: impl Fn(&MockServer) + Send + Sync + 'static) -> Self {
        Self { prepare: Box::new(prepare), ..self }
    }

    fn with(self, set: impl Fn(Config) -> Config + Send + Sync + 'static) -> Self {
        Self { set: Box::new(set), ..self }
    }

    fn after_open(self, act: impl Fn(&MockServer) + Send + Sync + 'static) -> Self {
        Self { act: Some(Box::new(move |server, _, _| act(server))), ..self }
    }

    fn says(self, part: &'static str) -> Self {
        Self { says: Some(part), ..self }
    }

    fn unnoticed(self) -> Self {
        Self { says: None, ..self }
    }

    fn so(self, suggestion: &'static str) -> Self {
        Self { suggestion, ..self }
    }

    fn by(self, closer: Closer) -> Self {
        Self { closer: Some(closer), ..self }
    }

    fn like(self, other: &'static str) -> Self {
        Self { like: Some(other), ..self }
    }

    /// Runs a connection into it, to its end.
    fn meet(&self) -> Seen {
        let mut builder = MockServer::builder().script(self.script.clone()).alpn(self.alpn);
        if let Some(certificate) = &self.certificate {
            builder = builder.certificate(certificate.clone());
        }
        let server = builder.start().unwrap();
        (self.prepare)(&server);
        let config = match self.trusts_another {
            true => config_for(server.url()).without_system_roots().root_certificate(other_root()),
            false => config(&server),
        };
        let config = config.url((self.url)(&server)).connect_attempts(1).reconnect(false);
        let (client, inbox) = open((self.set)(config)).unwrap();
        if let Some(act) = &self.act {
            until_open(&inbox);
            act(&server, &server.accept(WAIT).unwrap(), &client);
        }
        let (failed, cause) = ends(&inbox);
        Seen { failed, cause, logged: logged(client.id()), told: told(client.id()) }
    }

    /// What is wrong with what it looked like.
    fn judge(&self, seen: &Seen) -> Vec<String> {
        let texts = |causes: &[Error]| causes.iter().map(Error::to_string).collect::<Vec<_>>();
        let warned: Vec<_> = seen.logged.iter().filter(|line| line.starts_with("WARN")).cloned().collect();
        let ended: Vec<_> = seen.logged.iter().filter(|line| line.starts_with("ERROR")).cloned().collect();
        let told = |name: &str| seen.told.iter().filter(|told| told.name == name).collect::<Vec<_>>();
        let failures: Vec<_> = ["connection.dial_failed", "connection.lost"].into_iter().flat_map(told).collect();
        let mut wrong = Vec::new();
        let mut check = |is_right: bool, what: String| {
            if !is_right {
                wrong.push(format!("- {}: {what}", self.name));
            }
        };
        let Some(says) = self.says else {
            check(seen.cause.is_none() && seen.failed.is_empty(), format!("events say {:?}", texts(&seen.failed)));
            check(warned.is_empty() && ended.is_empty(), format!("the log says {:?}", seen.logged));
            return wrong;
        };
        let Some(cause) = &seen.cause else { return vec![format!("- {}: closed without a cause", self.name)] };
        let is_named = |text: &String| text.contains(says);
        check(is_named(&cause.to_string()), format!("the end says {cause}"));
        // What ends the connection itself ends it without a loss before.
        let count = usize::from(!matches!(cause, Error::InboxFull));
        check(
            seen.failed.len() == count && texts(&seen.failed).iter().all(is_named),
            format!("events say {:?}", texts(&seen.failed)),
        );
        check(warned.len() == count && warned.iter().all(is_named), format!("warnings say {warned:?}"));
        check(ended.len() == 1 && ended.iter().all(is_named), format!("errors say {ended:?}"));
        check(
            failures.len() == count && failures.iter().all(|told| is_named(&told.cause)),
            format!("telemetry says {failures:?}"),
        );
        check(failures.first().and_then(|told| told.closer) == self.closer, format!("telemetry says {failures:?}"));
        check(told("connection.closed").iter().any(|told| is_named(&told.cause)), format!("telemetry says {:?}", seen.told));
        let Explanation { message, suggestion } = cause.explain();
        check(message == cause.to_string(), format!("explained as {message}"));
        check(suggestion == self.suggestion, format!("\n    suggests {suggestion:?},\n    not      {:?}", self.suggestion));
        wrong
    }
}

/// What was to be seen of a fault.
struct Seen {
    /// The causes of dials that failed and of wires lost.
    failed: Vec<Error>,
    /// Why the connection ended.
    cause: Option<Error>,
    logged: Vec<String>,
    told: Vec<Told>,
}

/// A signal with what it says of causes.
#[derive(Clone, Debug)]
struct Told {
    connection: Option<ConnectionId>,
    name: &'static str,
    cause: String,
    closer: Option<Closer>,
}

/// Every fault, met once for all tests.
static SEEN: LazyLock<Vec<(Fault, Seen)>> = LazyLock::new(|| {
    watch();
    let meet = |fault: Fault| thread::Builder::new().name(fault.name.to_owned()).spawn(move || (fault.meet(), fault)).unwrap();
    let mut seen = Vec::new();
    let mut faults = faults().into_iter().peekable();
    // A few at a time, so that what is to take 100 ms does not take much longer.
    while faults.peek().is_some() {
        let under_way: Vec<_> = faults.by_ref().take(AT_ONCE).map(meet).collect();
        seen.extend(under_way.into_iter().map(|it| it.join().unwrap()).map(|(seen, fault)| (fault, seen)));
    }
    seen
});

const AT_ONCE: usize = 8;

/// Takes events to the end: the causes of what failed, and that of the end.
fn ends(inbox: &Inbox) -> (Vec<Error>, Option<Error>) {
    let mut failed = Vec::new();
    loop {
        match next(inbox) {
            Event::DialFailed { cause, redial_in: None, .. } | Event::Lost { cause, redial_in: None } => failed.push(cause),
            Event::Closed { cause } => return (failed, cause),
            Event::Dialing { .. } | Event::Open | Event::Message(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn heartbeat(config: Config) -> Config {
    config.heartbeat_interval(SOON / 2).patience(SOON)
}

fn log_in(config: Config) -> Config {
    config.dialect(JsonRpc::new().login("public/auth", |_| json!({})))
}

fn refuse_login(peer: &Peer, text: &str) {
    let request: serde_json::Value = serde_json::from_str(text).unwrap();
    let error = json!({ "code": 13004, "message": "invalid_credentials" });
    peer.send_text(&json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }).to_string());
}

fn other_root() -> Vec<u8> {
    MockServer::builder().tls().start().unwrap().root_certificate().unwrap().to_vec()
}

/// The name that a piece of source begins with.
fn name(source: &str) -> &str {
    source.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()
}

/// Begins to listen to the log and to telemetry.
fn watch() {
    static TOLD_BY: LazyLock<Guard> = LazyLock::new(|| telemetry::attach(Filter::all(), note));
    LazyLock::force(&TOLD_BY);
    Lines::keep();
}

fn note(observed: &Observed<'_>) {
    let (cause, closer) = match observed.signal {
        Signal::DialFailed { cause, .. } | Signal::Closed { cause: Some(cause) } => (cause.to_string(), None),
        Signal::Lost { cause, closer, .. } => (cause.to_string(), Some(*closer)),
        _ => (String::new(), None),
    };
    let told = Told { connection: observed.connection, name: observed.signal.name(), cause, closer };
    TOLD.lock().unwrap_or_else(PoisonError::into_inner).push(told);
}

fn told(connection: ConnectionId) -> Vec<Told> {
    let told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    told.iter().filter(|told| told.connection == Some(connection)).cloned().collect()
}

/// The lines about a connection, without those about stalls, which a busy machine brings about.
fn logged(connection: ConnectionId) -> Vec<String> {
    let lines = Lines::kept();
    let is_its = |line: &&String| [":", ","].iter().any(|end| line.contains(&format!(" {connection}{end}")));
    lines.iter().filter(is_its).filter(|line| !line.contains("kept its reactor busy")).cloned().collect()
}

static TOLD: Mutex<Vec<Told>> = Mutex::new(Vec::new());
