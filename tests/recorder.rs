//! What a session leaves in its recording.

mod common;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use zen_websocket::telemetry::{self, Filter};
use zen_websocket::testkit::{ClientMessage, Matcher, MockServer, Peer, Script};
use zen_websocket::{Config, Content, Direction, Driver, Entry, JsonRpc, RateLimit, Recorder, State, connect, open};

use self::common::*;

fn feed() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("feed.jsonl");
    (directory, path)
}

/// The entries that a file holds, as lines that can be compared: wire, direction, content.
fn entries(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(|line| described(&Entry::parse(line).unwrap())).collect()
}

fn described(entry: &Entry) -> String {
    let content = match &entry.content {
        Content::Text(text) => format!("text {text}"),
        Content::Binary(bytes) => format!("binary {bytes:?}"),
        Content::Ping(bytes) => format!("ping {bytes:?}"),
        Content::Pong(bytes) => format!("pong {bytes:?}"),
        Content::Close { code, reason } => format!("close {code:?} {reason}"),
        Content::State(state) => {
            let state: Value = serde_json::from_str(state).unwrap();
            return state["event"].as_str().unwrap().to_owned();
        }
        other => panic!("{other:?}"),
    };
    let direction = if entry.direction == Direction::In { "in" } else { "out" };
    format!("{} {direction} {content}", entry.generation.unwrap())
}

#[test]
fn a_session_is_recorded_in_order_and_in_both_directions() {
    let (_directory, path) = feed();
    let (_server, peer, client, inbox) = session_with(Script::new(), |config| config.record_to(&path));
    client.send("hello").unwrap();
    assert_eq!(next_line(&inbox), "text hello");
    peer.ping("are you there");
    peer.expect(Matcher::when(|it| matches!(it.message, ClientMessage::Pong(_))), WAIT).unwrap();
    peer.send_binary(&[1, 2, 3]);
    next(&inbox);
    client.close().unwrap();
    let expected = [
        "dialing",
        "open",
        "1 out text hello",
        "1 in text hello",
        &format!("1 in ping {:?}", b"are you there"),
        &format!("1 out pong {:?}", b"are you there"),
        "1 in binary [1, 2, 3]",
        "1 out close Some(1000) ",
        "1 in close Some(1000) ",
        "closed",
    ];
    assert_eq!(entries(&path), expected);
    let recorder = client.metrics().recorder.unwrap();
    assert_eq!((recorder.written, recorder.dropped, recorder.failure), (10, 0, None));
    assert_eq!(recorder.bytes, fs::metadata(&path).unwrap().len());
}

#[test]
fn closing_waits_until_the_recording_is_complete_and_in_the_file() {
    let (_directory, path) = feed();
    let (_server, _peer, client, _inbox) = session_with(Script::new(), |config| config.record_to(seldom(&path)));
    client.close().unwrap();
    assert!(entries(&path).last().is_some_and(|last| last.contains("closed")), "{:?}", entries(&path));
}

#[test]
fn dropping_the_last_client_writes_what_was_recorded_so_far() {
    let (_directory, path) = feed();
    let (_server, _peer, client, _inbox) = session_with(Script::new(), |config| config.record_to(seldom(&path)));
    client.send("hello").unwrap();
    drop(client);
    assert!(entries(&path).iter().any(|entry| entry.contains("hello")), "{:?}", entries(&path));
}

#[test]
fn a_thread_that_panics_leaves_what_was_recorded_in_the_file() {
    let (_directory, path) = feed();
    let (_server, _peer, client, _inbox) = session_with(Script::new(), |config| config.record_to(seldom(&path)));
    let trader = thread::spawn(move || {
        client.send("hello").unwrap();
        panic!("the strategy is wrong");
    });
    trader.join().unwrap_err();
    assert!(entries(&path).iter().any(|entry| entry.contains("hello")), "{:?}", entries(&path));
}

/// One whose file is written in time only if somebody asks.
fn seldom(path: &Path) -> Recorder {
    Recorder::new(path).flush_interval(Duration::from_secs(60))
}

#[test]
fn times_in_a_recording_never_go_back_on_a_connection() {
    let (_directory, path) = feed();
    let (_server, _peer, client, inbox) = session_with(Script::new(), |config| config.record_to(&path));
    for number in 0..100 {
        client.send(&number.to_string()).unwrap();
        text(&inbox);
    }
    client.close().unwrap();
    let entries: Vec<_> = fs::read_to_string(&path).unwrap().lines().map(|line| Entry::parse(line).unwrap()).collect();
    assert!(entries.is_sorted_by_key(|entry| (entry.at, entry.mono)), "{entries:#?}");
    assert!(entries.len() > 200);
}

#[test]
fn a_recording_goes_on_with_the_next_wire_and_with_the_next_client() {
    let (_directory, path) = feed();
    let server = serve(Script::new());
    for _ in 0..2 {
        let (peer, client, inbox) = join(&server, config(&server).record_to(&path));
        client.send("one").unwrap();
        text(&inbox);
        peer.reset();
        until_open(&inbox);
        client.send("two").unwrap();
        text(&inbox);
        client.close().unwrap();
        server.accept(WAIT).unwrap();
    }
    let entries = entries(&path);
    let session = |entries: &[String]| {
        let interesting =
            ["open", "1 out text one", "1 in text one", "lost", "open", "2 out text two", "2 in text two", "closed"];
        let kept: Vec<_> = entries.iter().filter(|entry| interesting.contains(&entry.as_str())).collect();
        assert_eq!(kept, interesting);
    };
    let end = entries.iter().position(|entry| entry == "closed").unwrap() + 1;
    session(&entries[..end]);
    session(&entries[end..]);
}

#[test]
fn a_login_leaves_no_secret_in_a_recording() {
    let (_directory, path) = feed();
    let answer = |peer: &Peer, text: &str| {
        let request: Value = serde_json::from_str(text).unwrap();
        peer.send_text(&format!(r#"{{"id":{},"result":"token-4712"}}"#, request["id"]));
    };
    let dialect = JsonRpc::new().login("public/auth", |_| json!({ "client_secret": "key-4711" }));
    let (_server, _peer, client, _inbox) =
        session_with(Script::new().on_text(answer), |config| config.dialect(dialect).record_to(&path));
    client.close().unwrap();
    let recording = fs::read_to_string(&path).unwrap();
    assert!(!recording.contains("key-4711") && !recording.contains("token-4712"), "{recording}");
    let masked: Vec<_> = recording.lines().map(|line| Entry::parse(line).unwrap()).filter(|entry| entry.masked).collect();
    assert_eq!(masked.iter().map(described).collect::<Vec<_>>(), ["1 out text ", "1 in text "]);
}

#[test]
fn a_refused_login_leaves_no_secret_in_a_recording() {
    let recording = recording_of_login(|peer, text| {
        let request: Value = serde_json::from_str(text).unwrap();
        let reason = format!("invalid secret {}", request["params"]["client_secret"]);
        peer.send_text(&json!({ "id": request["id"], "error": { "code": 13004, "message": reason } }).to_string());
    });
    assert!(recording.contains("the venue refused the login") && !recording.contains("key-4711"), "{recording}");
}

#[test]
fn a_login_that_ends_with_a_close_leaves_no_secret_in_a_recording() {
    let recording = recording_of_login(|peer, _| peer.close(4001, "invalid secret key-4711"));
    assert!(recording.contains("the peer closed with code 4001") && !recording.contains("key-4711"), "{recording}");
}

/// What a connection records that never gets past its login.
fn recording_of_login(answer: impl Fn(&Peer, &str) + Send + Sync + 'static) -> String {
    let (_directory, path) = feed();
    let server = serve(Script::new().on_text(answer));
    let dialect = JsonRpc::new().login("public/auth", |_| json!({ "client_secret": "key-4711" }));
    let (client, _inbox) = open(config(&server).dialect(dialect).record_to(&path)).unwrap();
    until(|| fs::read_to_string(&path).is_ok_and(|recording| recording.contains("dial_failed")));
    // Its outcome says how the login fared.
    let _ = client.close();
    fs::read_to_string(&path).unwrap()
}

/// Panics on some recordings' threads.
struct Panicking;

impl log::Log for Panicking {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        assert!(!record.args().to_string().contains(UNLOGGABLE), "a logger whose pipe is broken");
    }

    fn flush(&self) {}
}

#[test]
fn a_logger_that_panics_ends_a_recording_until_the_next_connection() {
    log::set_logger(&Panicking).unwrap();
    log::set_max_level(log::LevelFilter::Error);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(UNLOGGABLE);
    fs::create_dir(&path).unwrap();
    let (_server, _peer, client, _inbox) = session_with(Script::new(), |config| config.record_to(&path));
    let status = || client.metrics().recorder.unwrap();
    until(|| status().failure.is_some_and(|failure| failure.contains("panicked")));
    assert_eq!((status().written, status().waiting), (0, 0));
    assert!(status().dropped > 0);
    fs::remove_dir(&path).unwrap();
    let (_server, _peer, next, _inbox) = session_with(Script::new(), |config| config.record_to(&path));
    next.close().unwrap();
    assert_eq!(status().failure, None);
    let recording = fs::read_to_string(&path).unwrap();
    assert!(recording.contains("open") && recording.contains("closed"), "{recording}");
}

const UNLOGGABLE: &str = "unloggable.jsonl";

#[test]
fn a_file_that_cannot_be_written_keeps_nobody_from_connecting() {
    let directory = tempfile::tempdir().unwrap();
    let (_server, _peer, client, inbox) = session_with(Script::new(), |config| config.record_to(directory.path()));
    client.send("hello").unwrap();
    assert_eq!(text(&inbox), "hello");
}

#[test]
fn a_recorder_that_cannot_work_is_refused_by_its_setting() {
    let error = connect(Config::new("ws://127.0.0.1:1").record_to(Recorder::new("feed.jsonl").queue_max(1))).unwrap_err();
    assert_eq!(error.to_string(), "invalid queue_max: 64 KiB are the least");
}

/// The program that is killed below: it sends numbers, one after the other, and says when some are in the file.
#[test]
fn child() {
    let Ok(path) = env::var(CHILD) else { return };
    let server = MockServer::start().unwrap();
    let recorder = Recorder::new(path).flush_interval(ms(1));
    let (client, inbox) = connect(config(&server).record_to(recorder)).unwrap();
    until_open(&inbox);
    for number in 0.. {
        client.send(&number.to_string()).unwrap();
        text(&inbox);
        if client.metrics().recorder.unwrap().written >= 1000 {
            writeln!(std::io::stdout(), "{READY}").unwrap();
        }
    }
}

#[test]
fn a_program_that_is_killed_leaves_a_recording_that_can_be_read_and_continued() {
    let (_directory, path) = feed();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = BufReader::new(child.stdout.take().unwrap()).lines().any(|line| line.unwrap() == READY);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready);
    // As if it had been killed in the middle of a line.
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(br#"{"ts":"2026-11-2"#).unwrap();

    let (_server, _peer, client, inbox) = session_with(Script::new(), |config| config.record_to(&path));
    client.send("after").unwrap();
    text(&inbox);
    client.close().unwrap();
    let recording = fs::read_to_string(&path).unwrap();
    let (entries, torn): (Vec<_>, Vec<_>) = recording.lines().map(Entry::parse).partition(Result::is_ok);
    assert_eq!(torn.len(), 1);
    let sent: Vec<_> =
        entries.iter().flatten().filter(|entry| entry.direction == Direction::Out).map(|entry| &entry.content).collect();
    let numbers = sent.iter().position(|content| **content == Content::Text("after".into())).unwrap();
    assert!(numbers > 400, "{numbers}");
    assert!(sent[..numbers].iter().zip(0..).all(|(content, number)| **content == Content::Text(number.to_string())));
}

const CHILD: &str = "ZEN_WEBSOCKET_RECORD_TO";
const READY: &str = "ready";

#[test]
fn dropping_the_last_client_on_the_thread_of_its_driver_waits_for_no_disk() {
    let (_directory, path) = feed();
    let server = serve(Script::new());
    let (go_on, pause) = mpsc::channel::<()>();
    let pause = Mutex::new(pause);
    // The writer gets no further.
    let recorder = Recorder::new(&path).mask(move |_| _ = pause.lock().unwrap().recv());
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config(&server).record_to(recorder)).unwrap();
    while !client.state().is_open() {
        driver.turn(ms(10)).unwrap();
    }
    client.send("x").unwrap();
    let began = Instant::now();
    drop(client);
    assert!(began.elapsed() < ms(1000), "{:?}", began.elapsed());
    drop(go_on);
}

#[test]
fn a_login_that_waits_for_the_rate_limit_leaves_no_secret_either() {
    let (_directory, path) = feed();
    let server = serve(Script::new().ignore());
    let dialect = || JsonRpc::new().login("public/auth", |_| json!({ "client_secret": "key-4711" }));
    let limit = || RateLimit::bucket(1, 1, ms(100)).reserved(0).shared("logins that wait");
    let (_first, _inbox) = open(config(&server).dialect(dialect()).rate_limit(limit())).unwrap();
    server.accept(WAIT).unwrap().expect(Matcher::any(), WAIT).unwrap();
    let (second, _inbox) = open(config(&server).dialect(dialect()).rate_limit(limit()).record_to(&path)).unwrap();
    let peer = server.accept(WAIT).unwrap();
    peer.expect(Matcher::regex("key-4711"), WAIT).unwrap();
    second.close().unwrap();
    let recording = fs::read_to_string(&path).unwrap();
    assert!(entries(&path).contains(&"1 out text ".to_owned()) && !recording.contains("key-4711"), "{recording}");
}

#[test]
fn closing_waits_for_what_is_told_last() {
    let (_directory, path) = feed();
    let (_server, _peer, client, _inbox) =
        session_with(Script::new().ignore(), |config| config.dialect(JsonRpc::new()).record_to(seldom(&path)));
    let filter = Filter::name("request_correlator.fail_all").unwrap().connection(client.id());
    let _guard = telemetry::attach(filter, |_| {
        let began = Instant::now();
        while began.elapsed() < ms(100) {}
    });
    let _call = client.start_call("m", ()).unwrap();
    client.start_close(1000, "").unwrap();
    until(|| client.state() == State::Closed);
    client.close().unwrap();
    assert!(entries(&path).last().is_some_and(|last| last.contains("closed")), "{:?}", entries(&path));
}
