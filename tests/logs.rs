//! What is logged: one line per change, at which level, and never a secret.

mod common;

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use allocation_counter::measure;
use serde_json::{Value, json};
use zen_websocket::telemetry::{self, Filter};
use zen_websocket::testkit::{ClientMessage, Frame, Matcher, MockServer, Peer, Script};
use zen_websocket::{
    Channels, Client, Config, Confirmation, Context, Dialect, Driver, EventRef, Inbound, Inbox, JsonRpc, Login, LoginStep,
    Overflow, RateLimit, Request, Result, Sent, Subscribe, Throttle, connect, open,
};

use self::common::*;

// ---- a line per change ----

#[test]
fn a_life_is_a_line_per_change_with_its_cause_and_what_comes_next() {
    let server = serve(Script::new());
    let host = server.address();
    server.script_next(Script::new().status(503));
    let (client, inbox) = opened(config(&server).stable_after(NEVER));
    server.accept(WAIT).unwrap().close(1012, "restart");
    until_lost(&inbox);
    until_open(&inbox);
    client.close().unwrap();
    until_closed(&inbox);
    let expected = [
        format!("DEBUG ws://{host}/"),
        "DEBUG dialing, attempt 1".to_owned(),
        format!("WARN dial 1 to {host} failed, next in 20ms: the server answered the upgrade with HTTP 503"),
        "DEBUG dialing, attempt 2".to_owned(),
        format!("INFO open, wire 1 to {host}"),
        format!("WARN lost wire 1 to {host}, next dial in 0ns: the peer closed with code 1012: restart"),
        "DEBUG dialing, attempt 1".to_owned(),
        format!("INFO open, wire 2 to {host}"),
        "INFO closed".to_owned(),
    ];
    assert_eq!(logged(&client), expected);
}

#[test]
fn an_end_that_nobody_wanted_is_an_error_with_its_cause() {
    let server = serve(Script::new());
    let host = server.address();
    let (client, inbox) = opened(config(&server).reconnect(false));
    server.kill_all();
    until_closed(&inbox);
    let reset = "the socket failed: Connection reset by peer (os error 104)";
    let lost = format!("WARN lost wire 1 to {host}: {reset}");
    assert_eq!(worth_reading(&client)[1..], [lost, format!("ERROR closed: {reset}")]);
}

#[test]
fn while_all_is_well_only_open_live_and_closed_are_worth_reading() {
    let set = |config: Config| log_in(config).heartbeat_interval(ms(5)).rate_limit(RateLimit::bucket(1000, 1000, ms(10)));
    let (server, client, inbox) = venue_with(set);
    let host = server.address();
    let _book = client.subscribe("book.a").unwrap();
    assert_eq!(client.call::<Value>("echo", json!([1])).unwrap(), json!([1]));
    let peer = server.accept(WAIT).unwrap();
    peer.send_text(r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.a","data":1}}"#);
    peer.ping("");
    peer.expect(Matcher::when(|it| matches!(it.message, ClientMessage::Pong(_))), WAIT).unwrap();
    until(|| client.heartbeat().rtt.is_some());
    client.close().unwrap();
    until_closed(&inbox);
    let open = format!("INFO open, wire 1 to {host}");
    assert_eq!(worth_reading(&client), [open, "INFO live, wire 1".to_owned(), "INFO closed".to_owned()]);
}

#[test]
fn what_is_dropped_unsent_refused_or_silent_is_a_warning() {
    let set = |config: Config| {
        let config = log_in(config).inbox_capacity(3).overflow(Overflow::DropNewest).reconnect(false);
        config.rate_limit(RateLimit::bucket(4, 1, NEVER)).throttle(Throttle::Queue(5))
    };
    let (server, client, inbox) = venue_with(set);
    let peer = server.accept(WAIT).unwrap();
    let _books = client.start_subscribe(Channels::new(["book.a", "bad"]).silence(ms(50))).unwrap();
    until(|| worth_reading(&client).iter().any(|line| line.contains("no data of")));
    while client.send("queued").unwrap() != Sent::Queued {}
    (0..9).for_each(|_| peer.send_text("tick"));
    until(|| client.metrics().messages_in > 9);
    peer.hang_up();
    until_closed(&inbox);
    let found = worth_reading(&client);
    let has = |start: &str| found.iter().any(|line| line.starts_with(start));
    for start in [
        "WARN bad was refused: ",
        "WARN no data of book.a for ",
        "WARN the inbox was full, ",
        "WARN 1 messages (",
        "WARN lost wire 1 ",
        "ERROR closed: ",
    ] {
        assert!(has(start), "no {start:?} in {found:#?}");
    }
}

#[test]
fn a_reply_to_nobody_and_a_request_of_the_venue_are_told_to_who_looks_closely() {
    let (server, client, inbox) = venue_with(log_in);
    let peer = server.accept(WAIT).unwrap();
    peer.send_text(r#"{"jsonrpc":"2.0","id":7,"result":1}"#);
    peer.send_text(r#"{"jsonrpc":"2.0","id":"who","method":"m"}"#);
    let _ = lines(&inbox, 2);
    let found = logged(&client);
    assert_eq!(found[found.len() - 2..], ["DEBUG a reply to no call that waits, 7", r#"DEBUG the venue asks something, "who""#]);
}

#[test]
fn a_hook_or_an_observer_that_panics_is_an_error_and_ends_nothing() {
    let server = serve(Script::new());
    let (client, _inbox) = opened(config(&server).heartbeat_interval(ms(5)).on_open(|_, _| panic!("no such desk")));
    let pings = Filter::name("heartbeat.ping").unwrap().connection(client.id());
    let observer = telemetry::attach(pings, |_| panic!("no such chart"));
    for line in ["on_open panicked: no such desk", "an observer panicked over heartbeat.ping and is detached"] {
        until(|| all().iter().any(|it| it.text == line && it.level == log::Level::Error));
    }
    assert!(client.state().is_open());
    drop(observer);
}

#[test]
fn every_target_begins_with_the_name_of_the_crate() {
    let server = serve(Script::new());
    opened(config(&server).debug(true)).0.close().unwrap();
    let targets: HashSet<_> = all().into_iter().filter(|line| line.level < log::Level::Trace).map(|line| line.target).collect();
    assert!(targets.contains(FRAMES) && targets.contains("zen_websocket::connection"), "{targets:?}");
    assert!(targets.iter().all(|target| target.starts_with("zen_websocket::")), "{targets:?}");
}

// ---- what a venue writes ----

/// A venue must not be able to write lines of its own into the log.
#[test]
fn a_line_is_one_line_whatever_the_venue_writes() {
    let dialects: [fn(Config) -> Config; 2] = [log_in, |config| config.dialect(Candid)];
    for set in dialects {
        let (server, client, inbox) = venue_with(set);
        let peer = server.accept(WAIT).unwrap();
        let _channel = client.start_subscribe("forged").unwrap();
        peer.send_text(&json!({ "jsonrpc": "2.0", "id": FORGED, "result": 1 }).to_string());
        until(|| logged(&client).iter().any(|line| line.contains("forged was refused")));
        peer.close(4000, FORGED);
        until_lost(&inbox);
        assert_single(&client);
    }
    for script in [refusing_login(FORGED), Script::new().subprotocol("a\tb"), Script::new().header("X\nY", "")] {
        let server = serve(script);
        let (client, inbox) = listening(|| open(log_in(config(&server)).connect_attempts(1)).unwrap());
        until_closed(&inbox);
        assert_single(&client);
    }
}

fn assert_single(client: &Client) {
    let found = logged(client);
    assert!(found.iter().all(|line| !line.contains('\n')), "{found:#?}");
}

const FORGED: &str = "no\nERROR connection 1: closed";

/// Takes whatever the venue says for the reason why a channel is refused.
struct Candid;

impl Dialect for Candid {
    fn name(&self) -> &str {
        "candid"
    }

    fn classify<'a>(&self, _: &'a str) -> Inbound<'a> {
        Inbound::Confirmation
    }

    fn subscribe(&self, _: u64, channels: &[&str]) -> Result<Subscribe> {
        let text = json!({ "params": { "channels": channels } }).to_string();
        Ok(Subscribe { text, id: None, channels: channels.len() })
    }

    fn unsubscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        self.subscribe(number, channels)
    }

    fn confirm(&self, _: &str, _: &[&str]) -> Confirmation {
        Confirmation { rejected: vec![("forged".to_owned(), FORGED.to_owned())], ..Confirmation::default() }
    }
}

// ---- secrets ----

#[test]
fn no_secret_is_logged_in_a_life_with_logins_losses_and_everything_shown() {
    const SECRETS: [&str; 8] =
        ["url-t0ken", "us3r", "pa55word", "h3ader", "l0gin", "t0ken-of-login", "t0ken-of-refresh", "h00k-header"];
    let refreshed = AtomicBool::new(false);
    let server = serve(Script::new().on_text(move |peer, text| {
        let Ok(request) = serde_json::from_str::<Value>(text) else { return };
        let again = refreshed.swap(true, Ordering::SeqCst);
        let (expires, token) = if again { (1000, SECRETS[6]) } else { (1, SECRETS[5]) };
        reply(peer, &request, json!({ "result": { "expires_in": expires, "refresh_token": token } }));
        // Late, and twice: still no business of the log's.
        reply(peer, &request, json!({ "result": { "refresh_token": token } }));
        peer.send_text(&json!([{ "jsonrpc": "2.0", "id": request["id"], "result": { "refresh_token": token } }]).to_string());
    }));
    server.script_next(Script::new().status(401).header("Set-Cookie", SECRETS[3]).body(SECRETS[4]));
    let url = format!("ws://{}:{}@{}/ws?key={}", SECRETS[1], SECRETS[2], server.address(), SECRETS[0]);
    let dialect = JsonRpc::new().login("public/auth", |step| match step.token {
        None => json!({ "client_secret": SECRETS[4] }),
        Some(token) => json!({ "refresh_token": token.expose() }),
    });
    let config = config(&server).url(url).header("X-Api-Key", SECRETS[3]).dialect(dialect).debug(true).on_dial(|plan| {
        plan.set_header("X-Sign", SECRETS[7]);
        Ok(())
    });
    listening(|| connect(config.clone()).unwrap_err());
    let (client, inbox) = opened(config);
    let peer = server.accept(WAIT).unwrap();
    peer.expect(Matcher::regex(SECRETS[5]), WAIT).unwrap();
    // Behind the reply to the refresh.
    peer.send_text("marker");
    until(|| frames(&client).iter().any(|line| line.ends_with("marker")));
    peer.reset();
    until_lost(&inbox);
    until_open(&inbox);
    client.close().unwrap();
    until_closed(&inbox);
    let found = all();
    assert!(found.iter().any(|line| line.text.contains("/ws?key=[redacted]")));
    for secret in SECRETS.into_iter().chain(["dXMzcjpwYTU1d29yZA"]) {
        let told: Vec<_> = found.iter().filter(|line| line.text.contains(secret)).map(|line| &line.text).collect();
        assert!(told.is_empty(), "{secret} in {told:#?}");
    }
}

#[test]
fn the_frames_of_a_login_are_shown_without_their_text_repeated_answers_too() {
    let (server, client, _inbox) = venue_with(|config| log_in(config).debug(true));
    let peer = server.accept(WAIT).unwrap();
    assert_eq!(frames(&client).iter().filter(|line| line.ends_with("[redacted]")).count(), 2);
    let auth: Value = serde_json::from_str(peer.captured()[0].text().unwrap()).unwrap();
    reply(&peer, &auth, json!({ "result": "again" }));
    client.call::<Value>("m", ()).unwrap();
    let found = frames(&client);
    assert_eq!(
        found.iter().filter(|line| line.contains("received text") && line.ends_with("[redacted]")).count(),
        2,
        "{found:#?}"
    );
    assert!(!found.iter().any(|line| line.contains("again")), "{found:#?}");
}

// ---- frames ----

#[test]
fn each_message_and_control_frame_is_a_line_with_its_wire_size_and_text() {
    let (_server, peer, client, inbox) = shown(Script::new().ignore(), |config| config);
    client.send("to \"them\"\n").unwrap();
    client.send_binary(&[0; 3]).unwrap();
    client.ping().unwrap();
    until(|| client.heartbeat().rtt.is_some());
    peer.ping("hello");
    peer.expect(Matcher::when(|it| matches!(it.message, ClientMessage::Pong(_))), WAIT).unwrap();
    peer.send_fragments(&["from ", "them"]);
    peer.send_binary(&[1; 5]);
    let _ = lines(&inbox, 2);
    client.close_with(1000, "bye").unwrap();
    until_closed(&inbox);
    // An answer may be logged before the thread that asked has come to it.
    let (sent, received): (Vec<_>, Vec<_>) = frames(&client).into_iter().partition(|line| line.contains(": sent "));
    let expected = [
        r#"wire 1: sent text, 10 bytes: to \"them\"\n"#,
        "wire 1: sent binary, 3 bytes",
        "wire 1: sent ping, 8 bytes",
        "wire 1: sent pong, 5 bytes",
        "wire 1: sent close, 5 bytes",
    ];
    assert_eq!(sent, expected);
    let expected = [
        "wire 1: received pong, 8 bytes",
        "wire 1: received ping, 5 bytes",
        "wire 1: received text, 9 bytes: from them",
        "wire 1: received binary, 5 bytes",
        "wire 1: received close, 2 bytes",
    ];
    assert_eq!(received, expected);
}

#[test]
fn the_close_that_answers_the_peers_and_the_one_that_tells_it_off_are_lines_too() {
    let (server, peer, client, inbox) = shown(Script::new(), |config| config);
    peer.close(1012, "restart");
    until_lost(&inbox);
    until_open(&inbox);
    server.accept(WAIT).unwrap().send_frame(&Frame::new(3, ""));
    until_lost(&inbox);
    let expected = ["wire 1: received close, 9 bytes", "wire 1: sent close, 2 bytes", "wire 2: sent close, 16 bytes"];
    assert_eq!(frames(&client), expected);
}

#[test]
fn the_pings_of_the_connection_are_lines_too() {
    let (_server, _peer, client, _inbox) = shown(Script::new(), |config| config.heartbeat_interval(ms(5)));
    until(|| client.heartbeat().rtt.is_some());
    let found = frames(&client);
    assert_eq!(found[0], "wire 1: sent ping, 8 bytes");
    assert!(found.contains(&"wire 1: received pong, 8 bytes".to_owned()), "{found:?}");
}

#[test]
fn control_frames_during_a_login_name_the_wire_they_are_on() {
    let server = serve(Script::new().ignore());
    let (client, _inbox) = listening(|| open(log_in(config(&server)).debug(true)).unwrap());
    let peer = server.accept(WAIT).unwrap();
    peer.ping("hello");
    until(|| frames(&client).len() == 3);
    let found = frames(&client);
    assert!(found.iter().all(|line| line.starts_with("wire 1: ")), "{found:#?}");
}

#[test]
fn a_long_text_is_cut_before_the_character_that_goes_beyond_256_bytes() {
    let (_server, _peer, client, _inbox) = shown(Script::new().ignore(), |config| config);
    for (text, shown) in [
        ("x".repeat(256), "x".repeat(256)),
        ("x".repeat(257), "x".repeat(256) + "…"),
        ("x".repeat(255) + "ä", "x".repeat(255) + "…"),
        ("x".repeat(253) + "🦀", "x".repeat(253) + "…"),
        ("x".repeat(252) + "🦀", "x".repeat(252) + "🦀"),
    ] {
        client.send(&text).unwrap();
        let line = frames(&client).pop().unwrap();
        assert_eq!(line, format!("wire 1: sent text, {} bytes: {shown}", text.len()));
    }
}

#[test]
fn a_send_that_is_refused_says_why_and_none_of_its_text() {
    let limit = RateLimit::bucket(2, 1, NEVER).reserved(0);
    let (_server, peer, client, inbox) = shown(Script::new(), |config| config.rate_limit(limit).reconnect(false));
    let generation = client.generation();
    assert_eq!(client.send_many(["1", "2"]).accepted, 2);
    client.send("secret").unwrap_err();
    client.send_on(generation.next(), "secret").unwrap_err();
    peer.reset();
    until_closed(&inbox);
    client.send("secret").unwrap_err();
    let found: Vec<_> = frames(&client).into_iter().filter(|line| line.contains("not sent")).collect();
    let causes = ["the rate limit allows it in ", "the wire changed: wire 1 is open", "the connection was closed"];
    assert_eq!(found.len(), causes.len(), "{found:#?}");
    for (line, cause) in found.iter().zip(causes) {
        assert!(line.starts_with(&format!("wire 1: not sent: text, 6 bytes: {cause}")), "{line}");
    }
}

#[test]
fn a_message_that_waits_for_the_rate_limit_is_not_said_to_be_sent() {
    let limit = RateLimit::bucket(1, 1, NEVER).reserved(0);
    let (_server, _peer, client, _inbox) =
        shown(Script::new().ignore(), |config| config.rate_limit(limit).throttle(Throttle::Queue(5)));
    assert_eq!([client.send("a").unwrap(), client.send("b").unwrap()], [Sent::Written, Sent::Queued]);
    assert_eq!(frames(&client), ["wire 1: sent text, 1 bytes: a", "wire 1: queued text, 1 bytes: b"]);
}

#[test]
fn no_frame_is_shown_unless_that_is_asked_for() {
    let server = serve(Script::new());
    let (client, inbox) = opened(config(&server));
    client.send("hello").unwrap();
    assert_eq!(text(&inbox), "hello");
    client.close().unwrap();
    until_closed(&inbox);
    assert_eq!(frames(&client), [""; 0]);
}

// ---- what it costs ----

#[test]
fn frames_that_are_not_shown_are_not_even_offered_to_a_logger_that_takes_everything() {
    let offered = echo_deaf(|config| config);
    assert_eq!(offered, 0);
}

#[test]
fn frames_that_a_logger_does_not_want_are_not_formatted() {
    let offered = echo_deaf(|config| config.debug(true));
    assert_eq!(offered, 2 * ECHOES);
}

/// Echoes messages on this thread, past a logger that wants nothing and counts what it is offered. Fails if that allocates.
fn echo_deaf(set: fn(Config) -> Config) -> usize {
    let server = MockServer::start().unwrap();
    listen();
    let mut driver = Driver::new().unwrap();
    let client = driver.open(set(config(&server))).unwrap();
    while !client.state().is_open() {
        driver.turn(WAIT).unwrap();
    }
    client.send(&"x".repeat(200)).unwrap();
    let mut echo = |count: usize| {
        let mut seen = 0;
        while seen < count {
            let reply = |context: &Context<'_>, event: EventRef<'_>| {
                if let EventRef::Text(text) = event {
                    context.send(text).unwrap();
                    seen += 1;
                }
            };
            driver.turn_with(WAIT, reply).unwrap();
        }
    };
    IS_DEAF.set(true);
    echo(ECHOES);
    OFFERED.set(0);
    let allocated = measure(|| echo(ECHOES)).count_total;
    IS_DEAF.set(false);
    assert_eq!(allocated, 0);
    OFFERED.get()
}

const ECHOES: usize = 500;

// ---- helpers ----

const FRAMES: &str = "zen_websocket::frames";

/// A venue that accepts logins and channels but `bad` and `forged`, and answers calls with their parameters; and a client that is open.
fn venue_with(set: impl FnOnce(Config) -> Config) -> (MockServer, Client, Inbox) {
    let server = serve(Script::new().on_text(|peer, text| {
        let Ok(request) = serde_json::from_str::<Value>(text) else { return };
        match request["params"]["channels"].as_array() {
            Some(asked) if asked.iter().any(|it| it == "forged") => {
                reply(peer, &request, json!({ "error": { "code": 1, "message": FORGED } }));
            }
            Some(asked) => {
                let accepted: Vec<_> = asked.iter().filter(|it| *it != "bad").collect();
                reply(peer, &request, json!({ "result": accepted }));
            }
            None => reply(peer, &request, json!({ "result": request["params"] })),
        }
    }));
    let (client, inbox) = opened(set(config(&server)));
    (server, client, inbox)
}

/// A client whose frames are shown, with the server's end.
fn shown(script: Script, set: impl FnOnce(Config) -> Config) -> (MockServer, Peer, Client, Inbox) {
    let server = serve(script);
    let (client, inbox) = opened(set(config(&server)).debug(true));
    let peer = server.accept(WAIT).unwrap();
    (server, peer, client, inbox)
}

/// A client that is open, whose every line is kept. The events up to `Open` are taken already.
fn opened(config: Config) -> (Client, Inbox) {
    let (client, inbox) = listening(|| connect(config).unwrap());
    until_open(&inbox);
    (client, inbox)
}

fn listening<T>(run: impl FnOnce() -> T) -> T {
    listen();
    run()
}

fn log_in(config: Config) -> Config {
    config.dialect(JsonRpc::new().login("public/auth", |_| json!({})))
}

fn refusing_login(message: &'static str) -> Script {
    let error = json!({ "error": { "code": 13004, "message": message } });
    Script::new().on_text(move |peer, text| reply(peer, &serde_json::from_str(text).unwrap(), error.clone()))
}

fn reply(peer: &Peer, request: &Value, mut outcome: Value) {
    outcome["jsonrpc"] = "2.0".into();
    outcome["id"] = request["id"].clone();
    peer.send_text(&outcome.to_string());
}

/// The lines about a connection, with their levels, without those about frames, and about stalls, which a busy machine brings about.
fn logged(client: &Client) -> Vec<String> {
    let start = format!("{}: ", client.id());
    let its = all().into_iter().filter_map(|line| Some(format!("{} {}", line.level, line.text.strip_prefix(&start)?)));
    its.filter(|line| !line.contains("kept its reactor busy")).collect()
}

/// Those that are shown unless somebody looks closely.
fn worth_reading(client: &Client) -> Vec<String> {
    logged(client).into_iter().filter(|line| !line.starts_with("DEBUG")).collect()
}

/// The lines about the frames of a connection.
fn frames(client: &Client) -> Vec<String> {
    let start = format!("{}, ", client.id());
    let its = all().into_iter().filter(|line| line.target == FRAMES);
    its.inspect(|line| assert_eq!(line.level, log::Level::Debug))
        .filter_map(|line| line.text.strip_prefix(&start).map(str::to_owned))
        .collect()
}

fn all() -> Vec<Line> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Begins to keep what is logged.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Keeper).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

#[derive(Clone, Debug)]
struct Line {
    level: log::Level,
    target: String,
    text: String,
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

thread_local! {
    /// Whether this thread's lines are not wanted.
    static IS_DEAF: Cell<bool> = const { Cell::new(false) };
    /// How many about frames were offered all the same.
    static OFFERED: Cell<usize> = const { Cell::new(0) };
}

/// Keeps what is logged by threads that are not deaf.
struct Keeper;

impl log::Log for Keeper {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        !IS_DEAF.get()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return OFFERED.set(OFFERED.get() + usize::from(record.target() == FRAMES));
        }
        let (level, target) = (record.level(), record.target().to_owned());
        let line = Line { level, target, text: record.args().to_string() };
        LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn flush(&self) {}
}

#[test]
fn what_a_venue_says_before_a_login_has_succeeded_is_shown_without_its_text() {
    let server = serve(Script::new().ignore());
    let (client, _inbox) = listening(|| open(log_in(config(&server)).debug(true)).unwrap());
    let peer = server.accept(WAIT).unwrap();
    peer.send_text("challenge");
    until(|| frames(&client).len() == 2);
    assert_eq!(frames(&client).pop().unwrap(), "wire 1: received text, 9 bytes: [redacted]");
}

#[test]
fn what_a_dialect_panics_over_after_a_login_is_shown_without_its_text() {
    let server = serve(Script::new().on_text(|peer, text| peer.send_text(text)));
    let (client, inbox) = opened(config(&server).dialect(Fragile).debug(true));
    let peer = server.accept(WAIT).unwrap();
    peer.send_text("poison");
    until_closed(&inbox);
    let found = frames(&client);
    assert!(found.contains(&"wire 1: received text, 6 bytes: [redacted]".to_owned()), "{found:#?}");
}

/// Logs in, and chokes on what it does not know.
struct Fragile;

impl Dialect for Fragile {
    fn name(&self) -> &str {
        "fragile"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        assert_eq!(text, "login");
        Inbound::Reply { id: "login".into() }
    }

    fn login(&self, step: &LoginStep<'_>) -> Login {
        match step.reply {
            None => Login::Send(Request { text: "login".to_owned(), id: "login".into() }),
            Some(_) => Login::Done { refresh_after: None, token: None },
        }
    }
}
