//! Recorders as connections use them, over real files.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Instant, SystemTime};

use flate2::read::GzDecoder;
use tempfile::TempDir;

use super::*;
use crate::event::{Event, Generation};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Long enough for a writer to do what it should not.
const MOMENT: Duration = Duration::from_millis(20);

/// A recorder that writes only when it is asked to, or must.
fn recorder(path: impl Into<PathBuf>) -> Recorder {
    Recorder::new(path).flush_interval(FLUSH_INTERVAL_MAX)
}

fn feed() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("feed.jsonl");
    (directory, path)
}

fn tick(tap: &Tap, text: &str) {
    tap.frame(Instant::now(), Generation::default().next(), Direction::In, FrameKind::Text, text.as_bytes(), false);
}

fn read(path: &Path) -> Vec<Entry> {
    fs::read_to_string(path).unwrap().lines().map(|line| Entry::parse(line).unwrap()).collect()
}

fn contents(path: &Path) -> Vec<Content> {
    read(path).into_iter().map(|entry| entry.content).collect()
}

fn texts(path: &Path) -> Vec<String> {
    let text = |content| match content {
        Content::Text(text) => text,
        other => panic!("{other:?}"),
    };
    contents(path).into_iter().map(text).collect()
}

#[test]
fn a_flush_writes_what_was_recorded() {
    let (_directory, path) = feed();
    let tap = Tap::new(&recorder(&path), 7);
    let numbers: Vec<_> = (0..150).map(|number| number.to_string()).collect();
    numbers.iter().for_each(|number| tick(&tap, number));
    assert!(tap.flush(PATIENCE));
    assert_eq!(texts(&path), numbers);
    let bytes = fs::metadata(&path).unwrap().len();
    assert_eq!(tap.status(), RecorderStatus { written: 150, bytes, ..RecorderStatus::default() });
}

#[test]
fn an_entry_tells_when_where_and_which_way() {
    let (_directory, path) = feed();
    let before = SystemTime::now();
    let tap = Tap::new(&recorder(&path), 7);
    tap.frame(Instant::now(), Generation::default().next(), Direction::Out, FrameKind::Binary, &[1, 2, 3], false);
    assert!(tap.flush(PATIENCE));
    let entry = read(&path).remove(0);
    let millisecond = Duration::from_millis(1);
    assert!(entry.at > before - millisecond && entry.at < SystemTime::now() + millisecond);
    let expected = Entry {
        at: entry.at,
        mono: entry.mono,
        connection: Some(7),
        generation: Some(1),
        direction: Direction::Out,
        content: Content::Binary(vec![1, 2, 3]),
        masked: false,
    };
    assert_eq!(entry, expected);
    assert!(entry.mono.is_some());
}

#[test]
fn every_kind_of_frame_and_every_change_of_state_is_recorded() {
    let (_directory, path) = feed();
    let tap = Tap::new(&recorder(&path), 1);
    let frames: [(_, &[u8]); 6] = [
        (FrameKind::Text, b"text"),
        (FrameKind::Binary, b"binary"),
        (FrameKind::Ping, b"ping"),
        (FrameKind::Pong, b"pong"),
        (FrameKind::Close, b"\x03\xe8bye"),
        (FrameKind::Close, b""),
    ];
    for (kind, payload) in frames {
        tap.frame(Instant::now(), Generation::default(), Direction::In, kind, payload, false);
    }
    tap.event(Instant::now(), Generation::default(), &Event::Open);
    assert!(tap.flush(PATIENCE));
    let expected = [
        Content::Text("text".into()),
        Content::Binary(b"binary".into()),
        Content::Ping(b"ping".into()),
        Content::Pong(b"pong".into()),
        Content::Close { code: Some(1000), reason: "bye".into() },
        Content::Close { code: None, reason: String::new() },
        Content::State(r#"{"event":"open"}"#.into()),
    ];
    assert_eq!(contents(&path), expected);
}

#[test]
fn the_interval_writes_without_being_asked() {
    let (_directory, path) = feed();
    let (sender, written) = mpsc::channel();
    let recorder = Recorder::new(&path).flush_interval(FLUSH_INTERVAL_MIN).mask(move |_| sender.send(()).unwrap());
    let tap = Tap::new(&recorder, 1);
    tick(&tap, "tick");
    assert!(written.recv_timeout(PATIENCE).is_ok());
}

#[test]
fn half_a_queue_is_written_without_being_asked() {
    let (_directory, path) = feed();
    let (sender, written) = mpsc::channel();
    let recorder = recorder(&path).queue_max(QUEUE_MIN).mask(move |_| sender.send(()).unwrap());
    let tap = Tap::new(&recorder, 1);
    assert!(tap.flush(PATIENCE));
    assert_eq!(written.recv_timeout(MOMENT), Err(mpsc::RecvTimeoutError::Timeout));
    tick(&tap, &"x".repeat(QUEUE_MIN / 2));
    assert!(written.recv_timeout(PATIENCE).is_ok());
}

#[test]
fn the_end_of_the_last_tap_writes_everything_and_ends_the_writer() {
    let (_directory, path) = feed();
    let (sender, ended) = mpsc::channel::<()>();
    let tap = Tap::new(&recorder(&path).mask(move |_| drop(sender.clone())), 1);
    let other = tap.clone();
    (0..99).for_each(|_| tick(&tap, "tick"));
    drop(tap);
    assert_eq!(ended.recv_timeout(MOMENT), Err(mpsc::RecvTimeoutError::Timeout), "one is left");
    drop(other);
    assert_eq!(ended.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
    assert_eq!(texts(&path), ["tick"; 99]);
}

#[test]
fn a_file_is_continued() {
    let (_directory, path) = feed();
    fs::write(&path, r#"{"ts":"2023-11-14T22:13:20.000001Z","dir":"in","type":"text","data":"old"}"#).unwrap();
    for text in ["first", "second"] {
        let tap = Tap::new(&recorder(&path), 1);
        tick(&tap, text);
        assert!(tap.flush(PATIENCE));
    }
    assert_eq!(texts(&path), ["old", "first", "second"]);
}

#[test]
fn connections_share_the_file_of_one_path() {
    let (directory, path) = feed();
    let recorders = [recorder(&path), recorder(directory.path().join(".").join("feed.jsonl")).gzip(true)];
    let [one, two] = [(0, 1), (1, 2)].map(|(recorder, connection)| Tap::new(&recorders[recorder], connection));
    tick(&one, "one");
    tick(&two, "two");
    tick(&one, "three");
    assert!(two.flush(PATIENCE));
    assert_eq!(texts(&path), ["one", "two", "three"]);
    assert_eq!(read(&path).iter().map(|entry| entry.connection).collect::<Vec<_>>(), [Some(1), Some(2), Some(1)]);
    assert_eq!(one.status(), two.status());
}

#[test]
fn many_threads_lose_nothing_and_keep_their_order() {
    let (_directory, path) = feed();
    let recorder = Recorder::new(&path).flush_interval(FLUSH_INTERVAL_MIN);
    let taps = [1, 2, 3, 4].map(|connection| Tap::new(&recorder, connection));
    thread::scope(|scope| {
        for tap in &taps {
            scope.spawn(|| (0..5000).for_each(|number| tick(tap, &number.to_string())));
        }
    });
    assert!(taps[0].flush(PATIENCE));
    let entries = read(&path);
    let expected: Vec<_> = (0..5000).map(|number| Content::Text(number.to_string())).collect();
    for connection in 1..=4 {
        let own: Vec<_> = entries.iter().filter(|entry| entry.connection == Some(connection)).collect();
        assert!(own.iter().map(|entry| &entry.content).eq(&expected));
        assert!(own.is_sorted_by_key(|entry| (entry.at, entry.mono)));
    }
    assert_eq!(entries.len(), 20_000);
}

#[test]
fn taps_that_come_and_go_lose_nothing() {
    let (_directory, path) = feed();
    let recorder = recorder(&path);
    let numbers: Vec<_> = (0..300).map(|number| number.to_string()).collect();
    numbers.iter().for_each(|number| tick(&Tap::new(&recorder, 1), number));
    let tap = Tap::new(&recorder, 1);
    assert!(tap.flush(PATIENCE));
    assert_eq!(texts(&path), numbers);
}

#[test]
fn a_large_message_is_recorded_whole_and_in_its_place() {
    let (_directory, path) = feed();
    let tap = Tap::new(&recorder(&path), 1);
    let large = "x".repeat(1 << 20);
    ["before", &large, "after"].iter().for_each(|text| tick(&tap, text));
    assert!(tap.flush(PATIENCE));
    assert!(texts(&path) == ["before", &large, "after"]);
}

#[test]
fn a_directory_in_place_of_the_file_is_reported_and_forgiven() {
    let (_directory, path) = feed();
    fs::create_dir(&path).unwrap();
    let tap = Tap::new(&recorder(&path), 1);
    tick(&tap, "early");
    assert!(!tap.flush(PATIENCE), "it does not wait for a file that fails");
    let status = tap.status();
    assert!(status.waiting > 0 && status.failure.is_some(), "{status:?}");
    fs::remove_dir(&path).unwrap();
    tick(&tap, "late");
    assert!(tap.flush(PATIENCE));
    assert_eq!(texts(&path), ["early", "late"]);
    assert_eq!(tap.status().failure, None);
}

#[test]
fn a_file_without_a_directory_waits_for_it() {
    let (directory, _) = feed();
    let parent = directory.path().join("missing");
    let path = parent.join("feed.jsonl");
    let tap = Tap::new(&recorder(&path), 1);
    tick(&tap, "early");
    assert!(!tap.flush(PATIENCE), "it does not wait for a file that fails");
    fs::create_dir(&parent).unwrap();
    assert!(tap.flush(PATIENCE));
    assert_eq!(texts(&path), ["early"]);
}

#[test]
fn a_recording_that_fails_to_the_end_ends() {
    let (directory, _) = feed();
    let (sender, ended) = mpsc::channel::<()>();
    let tap = Tap::new(&recorder(directory.path()).mask(move |_| drop(sender.clone())), 1);
    tick(&tap, "lost");
    drop(tap);
    assert_eq!(ended.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn what_is_too_much_is_counted_and_told_of_in_its_place() {
    let (_directory, path) = feed();
    fs::create_dir(&path).unwrap();
    let tap = Tap::new(&recorder(&path).queue_max(QUEUE_MIN), 1);
    let half = "x".repeat(QUEUE_MIN / 2 - 100);
    (0..4).for_each(|_| tick(&tap, &half));
    assert_eq!(tap.status().dropped, 2);
    fs::remove_dir(&path).unwrap();
    assert!(tap.flush(PATIENCE));
    tick(&tap, "after");
    assert!(tap.flush(PATIENCE));
    let text = |text: &str| Content::Text(text.to_owned());
    assert!(contents(&path) == [text(&half), text(&half), Content::Missing(2), text("after")]);
    assert_eq!(tap.status().dropped, 2);
}

#[test]
fn secrets_are_left_out() {
    let (_directory, path) = feed();
    let tap = Tap::new(&recorder(&path).mask(|entry| entry.content = Content::Text("seen".into())), 1);
    tap.frame(Instant::now(), Generation::default(), Direction::Out, FrameKind::Text, b"key", true);
    tick(&tap, "tick");
    assert!(tap.flush(PATIENCE));
    let masked: Vec<_> = read(&path).into_iter().map(|entry| (entry.content, entry.masked)).collect();
    assert_eq!(masked, [(Content::Text(String::new()), true), (Content::Text("seen".into()), true)]);
}

#[test]
fn a_mask_changes_what_is_written() {
    let (_directory, path) = feed();
    let mask = |entry: &mut Entry| {
        if let Content::Text(text) = &mut entry.content {
            *text = text.replace("4711", "…");
        }
    };
    let tap = Tap::new(&recorder(&path).mask(mask), 1);
    tick(&tap, "key 4711");
    tick(&tap, "tick");
    assert!(tap.flush(PATIENCE));
    let masked: Vec<_> = read(&path).into_iter().map(|entry| (entry.content, entry.masked)).collect();
    assert_eq!(masked, [(Content::Text("key …".into()), true), (Content::Text("tick".into()), false)]);
}

#[test]
fn a_mask_sees_changes_of_state() {
    let (_directory, path) = feed();
    let mask = |entry: &mut Entry| {
        if let Content::State(text) = &mut entry.content {
            *text = text.replace("4711", "…");
        }
    };
    let tap = Tap::new(&recorder(&path).mask(mask), 1);
    tap.event(Instant::now(), Generation::default(), &Event::Rejected { channel: "book".into(), reason: "key 4711".into() });
    tap.event(Instant::now(), Generation::default(), &Event::Open);
    assert!(tap.flush(PATIENCE));
    let masked: Vec<_> = read(&path).into_iter().map(|entry| (entry.content, entry.masked)).collect();
    let rejected = r#"{"channel":"book","event":"rejected","reason":"key …"}"#;
    let expected = [(rejected, true), (r#"{"event":"open"}"#, false)];
    assert_eq!(masked, expected.map(|(text, masked)| (Content::State(text.into()), masked)));
}

#[test]
fn a_mask_that_panics_hides_all_content_from_there_and_is_not_called_again() {
    let (_directory, path) = feed();
    let (sender, seen) = mpsc::channel();
    let mask = move |entry: &mut Entry| {
        sender.send(entry.content.clone()).unwrap();
        if let Content::Text(text) = &mut entry.content {
            text.truncate(3);
            assert_eq!(text, "tic");
        }
    };
    let tap = Tap::new(&recorder(&path).mask(mask), 1);
    ["tic", "key 4711", "tic"].iter().for_each(|text| tick(&tap, text));
    assert!(tap.flush(PATIENCE));
    let masked: Vec<_> = read(&path).into_iter().map(|entry| (entry.content, entry.masked)).collect();
    assert_eq!(masked, [("tic", false), ("", true), ("", true)].map(|(text, masked)| (Content::Text(text.into()), masked)));
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["tic", "key 4711"].map(|text| Content::Text(text.into())));
}

#[test]
fn a_file_that_was_removed_or_renamed_is_begun_anew() {
    let (directory, path) = feed();
    let tap = Tap::new(&recorder(&path), 1);
    tick(&tap, "one");
    assert!(tap.flush(PATIENCE));
    fs::rename(&path, directory.path().join("feed.jsonl.1")).unwrap();
    tick(&tap, "two");
    assert!(tap.flush(PATIENCE));
    assert_eq!(texts(&path), ["two"]);
    fs::remove_file(&path).unwrap();
    tick(&tap, "three");
    assert!(tap.flush(PATIENCE));
    assert_eq!(texts(&path), ["three"]);
}

#[test]
fn rotated_files_are_compressed_and_hold_everything_in_order() {
    let (directory, path) = feed();
    let (sender, ended) = mpsc::channel::<()>();
    let tap = Tap::new(&recorder(&path).rotate_at(10_000).gzip(true).mask(move |_| drop(sender.clone())), 1);
    let numbers: Vec<_> = (0..1000).map(|number| number.to_string()).collect();
    for some in numbers.chunks(90) {
        some.iter().for_each(|number| tick(&tap, number));
        assert!(tap.flush(PATIENCE));
    }
    drop(tap);
    assert_eq!(ended.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected), "it compresses to the end");
    let mut paths: Vec<_> = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert_eq!(paths.pop(), Some(path.clone()));
    assert!(paths.len() >= 10, "{paths:?}");
    let mut lines = String::new();
    for path in paths {
        let before = lines.len();
        GzDecoder::new(File::open(path).unwrap()).read_to_string(&mut lines).unwrap();
        assert!(lines.len() - before <= 10_000);
    }
    lines += &fs::read_to_string(&path).unwrap();
    let texts: Vec<_> = lines.lines().map(|line| Entry::parse(line).unwrap().content).collect();
    assert!(texts == numbers.into_iter().map(Content::Text).collect::<Vec<_>>());
}

#[test]
fn settings_that_cannot_work_are_named() {
    let named = |recorder: Recorder| match recorder.validate().unwrap_err() {
        Error::Config { setting, .. } => setting,
        other => panic!("{other}"),
    };
    assert_eq!(named(Recorder::new("")), "record_to");
    assert_eq!(named(Recorder::new("x").flush_interval(Duration::ZERO)), "flush_interval");
    assert_eq!(named(Recorder::new("x").queue_max(0)), "queue_max");
    assert_eq!(named(Recorder::new("x").rotate_at(0)), "rotate_at");
    assert_eq!(named(Recorder::new("x").rotate_after(Duration::ZERO)), "rotate_after");
    assert!(Recorder::new("x").validate().is_ok());
}
