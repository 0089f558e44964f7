//! A program that records is killed at any moment: what it recorded more than a flush interval before is there, and the next start goes
//! on behind it.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use zen_websocket::testkit::{MockServer, Script};
use zen_websocket::{Config, Content, Direction, Entry, Event, Recorder, Recording, State, connect};

const FILES: usize = 25;
/// Starts that record to the same file, each of which is killed.
const STARTS: u64 = 2;
const SEED: u64 = 27;

const FLUSH_INTERVAL: Duration = Duration::from_millis(10);
/// What a loaded machine may need to write what is due.
const SLACK: Duration = Duration::from_millis(60);
const LIFE_MAX: Duration = Duration::from_millis(150);
const WAIT: Duration = Duration::from_secs(10);

/// Where a child finds the file to record to.
const PATH: &str = "ZEN_WEBSOCKET_TEST_RECORD_TO";
/// Which start it is.
const START: &str = "ZEN_WEBSOCKET_TEST_START";
const BATCH: u64 = 20;
const PAUSE: Duration = Duration::from_millis(1);

#[test]
fn a_recording_outlives_its_program_but_for_the_last_flush_interval() {
    let mut rng = SmallRng::seed_from_u64(SEED);
    let folder = TempDir::new().unwrap();
    let (mut promised, mut torn) = (0, 0);
    for file in 0..FILES {
        let path = folder.path().join(format!("{file}.jsonl"));
        for start in 0..STARTS {
            let (mut child, reports) = record(&path, start);
            let life = LIFE_MAX.mul_f64(rng.random());
            let reported = reported_until(&reports, life);
            child.kill().unwrap();
            let killed = Instant::now();
            child.wait().unwrap();
            let due =
                reported.iter().rev().find(|(at, _)| *at + FLUSH_INTERVAL + SLACK <= killed).map_or(0, |(_, number)| *number);
            promised += due;

            let context = format!("seed {SEED}, file {file}, start {start}, killed after {life:?}");
            let text = fs::read(&path).unwrap();
            let (lines, tail) = text.split_at(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
            torn += usize::from(!tail.is_empty());
            let numbers = numbers(lines, start, &context);
            assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{context}: {numbers:?}");
            assert!(numbers.len() as u64 >= due, "{context}: {due} are due, {} are there", numbers.len());
        }
        let metadata = Recording::open(&path).unwrap().metadata().unwrap();
        assert!(metadata.skipped <= STARTS, "file {file}: {metadata:?}");
        assert!(metadata.connections <= STARTS && metadata.missing == 0, "file {file}: {metadata:?}");
    }
    println!("{} kills: {promised} messages had to be there, {torn} last lines were torn", FILES as u64 * STARTS);
    assert!(promised > 0, "no child lived long enough to promise anything");
}

#[test]
#[ignore = "what the other test kills"]
fn child_records_until_it_is_killed() {
    let Some(path) = env::var_os(PATH) else { return };
    let start: u64 = env::var(START).unwrap().parse().unwrap();
    let next = AtomicU64::new(0);
    let script = Script::new().on_text(move |peer, _| {
        let first = next.fetch_add(BATCH, Ordering::Relaxed);
        (first..first + BATCH).for_each(|number| peer.send_text(&format!("{start} {number}")));
    });
    let exchange = MockServer::builder().script(script).captured_max(0).start().unwrap();
    let config = Config::new(exchange.url()).record_to(Recorder::new(path).flush_interval(FLUSH_INTERVAL));
    let (client, inbox) = connect(config).unwrap();
    client.wait(State::Open, WAIT).unwrap();
    for batch in 1.. {
        client.send("more").unwrap();
        let mut missing = BATCH;
        while missing > 0 {
            missing -= u64::from(matches!(inbox.recv_timeout(WAIT).unwrap().event, Event::Message(_)));
        }
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "\nheard {}", batch * BATCH).and_then(|()| stdout.flush()).unwrap();
        // Nothing comes: this keeps to what the writer can do, even that of a debug build.
        assert!(inbox.recv_timeout(PAUSE).is_err());
    }
}

/// Starts a child, and returns what it reports to have recorded, with the time it was told.
fn record(path: &Path, start: u64) -> (Child, Receiver<(Instant, u64)>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child_records_until_it_is_killed", "--ignored", "--nocapture"])
        .env(PATH, path)
        .env(START, start.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (report, reports) = mpsc::channel();
    thread::spawn(move || {
        let heard = stdout.lines().map_while(Result::ok).filter_map(|line| line.strip_prefix("heard ")?.parse().ok());
        // Nobody listens when the test has failed.
        let _ = heard.map(|number| report.send((Instant::now(), number))).find(Result::is_err);
    });
    (child, reports)
}

/// What is reported in the time after the first report.
fn reported_until(reports: &Receiver<(Instant, u64)>, life: Duration) -> VecDeque<(Instant, u64)> {
    let first = reports.recv_timeout(WAIT).expect("the child records");
    let deadline = first.0 + life;
    let mut reported = VecDeque::from([first]);
    while let Ok(report) = reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        reported.push_back(report);
    }
    reported
}

/// The numbers that this start received, by whole lines, each of which is an entry or the torn one of the start before.
fn numbers(lines: &[u8], start: u64, context: &str) -> Vec<u64> {
    let (mut numbers, mut skipped) = (Vec::new(), 0);
    for line in lines.split(|byte| *byte == b'\n') {
        let entry = std::str::from_utf8(line).ok().and_then(|line| Entry::parse(line).ok());
        let Some(entry) = entry else {
            skipped += u64::from(!line.is_empty());
            continue;
        };
        if let (Direction::In, Content::Text(text)) = (entry.direction, entry.content) {
            let (of, number) = text.split_once(' ').unwrap();
            if of.parse() == Ok(start) {
                numbers.push(number.parse().unwrap());
            }
        }
    }
    assert!(skipped <= start, "{context}: {skipped} whole lines are no entries");
    numbers
}
