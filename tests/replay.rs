//! Recordings read, replayed, and played to a client by the test kit.

mod common;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;
use zen_websocket::testkit::{MockServer, Playback, Script};
use zen_websocket::{
    Client, Config, Content, Direction, Entry, Error, Event, Generation, Inbox, JsonRpc, Message, Metadata, Received, Recorder,
    Recording, Speed, connect,
};

use self::common::*;

// ---- reading ----

#[test]
fn a_recording_of_the_predecessor_is_read_and_counted() {
    let lines = [
        r#"{"type":"text","ts":"2026-01-01T00:00:00.000000Z","dir":"out","data":"{\"id\":1}"}"#,
        r#"{"type":"text","ts":"2026-01-01T00:00:01.000250Z","dir":"in","data":"tick"}"#,
        r#"{"binary":true,"type":"binary","ts":"2026-01-01T00:00:03.000000Z","dir":"in","data":"AQID"}"#,
        r#"{"type":"close","ts":"2026-01-01T00:00:05.000000Z","dir":"out","data":"{\"code\":1000,\"reason\":\"done\"}"}"#,
    ];
    let file = Scratch::of(&lines);
    let expected = [
        Content::Text(r#"{"id":1}"#.into()),
        Content::Text("tick".into()),
        Content::Binary(vec![1, 2, 3]),
        Content::Close { code: Some(1000), reason: "done".into() },
    ];
    assert_eq!(contents(&file.recording()), expected);
    let metadata = file.recording().metadata().unwrap();
    assert_eq!((metadata.count, metadata.inbound, metadata.outbound), (4, 2, 2));
    assert_eq!((metadata.duration, metadata.skipped), (ms(5_000), 0));
    assert_eq!((metadata.connections, metadata.generations), (1, 1));
    assert_eq!(metadata.first, Some(Entry::parse(lines[0]).unwrap().at));
    assert_eq!(metadata.last, Some(Entry::parse(lines[3]).unwrap().at));
}

#[test]
fn an_empty_recording_amounts_to_nothing() {
    assert_eq!(Scratch::empty().recording().metadata().unwrap(), Metadata::default());
}

#[test]
fn lines_that_are_no_entries_are_skipped_and_counted() {
    let (first, last) = (said(0, "first"), said(1, "last"));
    let torn = &said(2, "torn")[..30];
    let file =
        Scratch::of(&["", &first, "no JSON", r#"{"ts":"2026-01-01T00:00:00Z","dir":"up","type":"text","data":""}"#, &last]);
    file.append(b"not UTF-8 \xff\n");
    file.append(torn.as_bytes());
    assert_eq!(texts(&file.recording()), ["first", "last"]);
    let mut entries = file.recording().entries();
    assert_eq!(entries.by_ref().count(), 2);
    assert_eq!(entries.skipped(), 5);
    assert_eq!(file.recording().metadata().unwrap().skipped, 5);
}

#[test]
fn a_last_line_without_its_end_counts_if_it_is_whole() {
    let file = Scratch::empty();
    file.append(said(0, "whole").as_bytes());
    assert_eq!(texts(&file.recording()), ["whole"]);
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("missing.jsonl");
    for (path, error) in [
        (missing.as_path(), Recording::open(&missing).unwrap_err()),
        (missing.as_path(), Recording::open_rotated(&missing).unwrap_err()),
        (folder.path(), Recording::open(folder.path()).unwrap_err()),
    ] {
        assert!(matches!(error, Error::Config { setting: "recording", .. }));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_compressed_recording_is_read_whatever_its_name() {
    let file = Scratch::empty();
    // What was compressed in pieces is one stream after the other (RFC 1952 §2.2).
    file.append(&gzip(&[said(0, "a")]));
    file.append(&gzip(&[said(1, "b")]));
    assert_eq!(texts(&file.recording()), ["a", "b"]);
}

#[test]
fn a_truncated_compressed_recording_ends_with_an_error_behind_what_is_left_of_it() {
    let lines: Vec<_> = (0..5_000).map(|number| said(number, &format!("{number:x}"))).collect();
    let whole = gzip(&lines);
    let file = Scratch::empty();
    file.append(&whole[..whole.len() / 2]);
    let mut entries = file.recording().entries();
    let read: Vec<_> = entries.by_ref().collect();
    let (error, good) = read.split_last().unwrap();
    assert!(good.len() > 1_000 && good.iter().all(Result::is_ok), "{}", good.len());
    assert!(error.as_ref().unwrap_err().to_string().contains(file.path.to_str().unwrap()));
    assert!(entries.next().is_none());
    assert!(file.recording().metadata().is_err());
}

#[test]
fn a_damaged_file_hides_none_of_those_that_follow() {
    let file = Scratch::of(&[&said(2, "c")]);
    let part = |name: &str, content: &[u8]| fs::write(file.path.with_file_name(name), content).unwrap();
    let [a, b] = [gzip(&[said(0, "a")]), gzip(&[said(1, "b")])];
    part("feed.20260101T000000.000000Z.jsonl.gz", &[&a[..], &a[..15]].concat());
    part("feed.20260102T000000.000000Z.jsonl.gz", &b[..5]);
    part("feed.20260103T000000.000000Z.jsonl.gz", &b);
    let recording = Recording::open_rotated(&file.path).unwrap();
    let read = |entry: zen_websocket::Result<Entry>| entry.map_or_else(|error| error.to_string(), text_of);
    let items: Vec<_> = recording.entries().map(read).collect();
    let named = |item: &str, name| item.contains(name);
    assert_eq!([&items[0], &items[3], &items[4]], ["a", "b", "c"]);
    assert!(named(&items[1], "feed.20260101T") && named(&items[2], "feed.20260102T"), "{items:?}");
    assert_eq!(recording.replay(Speed::Unpaced).map(read).collect::<Vec<_>>(), items);
    assert!(named(&recording.metadata().unwrap_err().to_string(), "feed.20260101T"));
    let (inbox, feeding) = recording.replay(Speed::Unpaced).into_inbox(10).unwrap();
    assert_eq!(text(&inbox), "a");
    assert!(matches!(inbox.recv_timeout(WAIT), Err(Error::Closed)));
    assert!(named(&feeding.wait().unwrap_err().to_string(), "feed.20260101T"));
}

#[test]
fn rotated_files_come_before_the_one_that_is_written() {
    let file = Scratch::of(&[&said(4, "e")]);
    let part = |name: &str, content: &[u8]| fs::write(file.path.with_file_name(name), content).unwrap();
    let (b, d) = (said(1, "b") + "\n", said(3, "d") + "\n");
    part("feed.20260102T000000.000000Z.jsonl", b.as_bytes());
    part("feed.20260101T000000.000000Z.jsonl.gz", &gzip(&[said(0, "a")]));
    part("feed.20260103T000000.000000Z.jsonl.gz", &gzip(&[said(2, "c")]));
    // A recorder was killed between these two.
    part("feed.20260104T000000.000000Z.jsonl", d.as_bytes());
    part("feed.20260104T000000.000000Z.jsonl.gz", &gzip(&[said(3, "d")]));
    part("feed.20260105T000000.000000Z.jsonl.gz.tmp", &gzip(&[said(9, "unfinished")])[..10]);
    part("other.20260101T000000.000000Z.jsonl", b.as_bytes());
    assert_eq!(texts(&Recording::open_rotated(&file.path).unwrap()), ["a", "b", "c", "d", "e"]);
    fs::remove_file(&file.path).unwrap();
    assert_eq!(texts(&Recording::open_rotated(&file.path).unwrap()), ["a", "b", "c", "d"]);
}

#[test]
fn rotated_files_are_found_whatever_their_name() {
    rotated_files_are_found("feed".as_ref(), "".as_ref());
    rotated_files_are_found("feed".as_ref(), ".gz".as_ref());
    rotated_files_are_found("feed.eu".as_ref(), ".jsonl".as_ref());
}

#[test]
#[cfg(target_os = "linux")]
fn names_of_rotated_files_need_not_be_unicode() {
    use std::os::unix::ffi::OsStrExt;
    rotated_files_are_found(OsStr::from_bytes(b"f\xffd"), OsStr::from_bytes(b".js\xfe"));
}

fn rotated_files_are_found(stem: &OsStr, extension: &OsStr) {
    let folder = TempDir::new().unwrap();
    let path = |stamp: &str, suffix: &str| {
        folder.path().join([stem, stamp.as_ref(), extension, suffix.as_ref()].into_iter().collect::<OsString>())
    };
    fs::write(path(".20260101T000000.000000Z", ".gz"), gzip(&[said(0, "a")])).unwrap();
    fs::write(path(".20260102T000000.000000Z", ""), said(1, "b")).unwrap();
    fs::write(path("", ""), said(2, "c")).unwrap();
    fs::write(path(".old", ""), said(3, "not a part")).unwrap();
    assert_eq!(texts(&Recording::open_rotated(path("", "")).unwrap()), ["a", "b", "c"], "{stem:?}{extension:?}");
}

#[test]
fn a_file_that_is_compressed_after_it_was_found_is_read_all_the_same() {
    let file = Scratch::of(&[&said(1, "b")]);
    let part = file.path.with_file_name("feed.20260101T000000.000000Z.jsonl");
    fs::write(&part, said(0, "a")).unwrap();
    let recording = Recording::open_rotated(&file.path).unwrap();
    fs::write(part.with_extension("jsonl.gz"), gzip(&[said(0, "a")])).unwrap();
    fs::remove_file(&part).unwrap();
    assert_eq!(texts(&recording), ["a", "b"]);
}

#[test]
fn a_consumer_that_pauses_leaves_the_recording_one_connection() {
    // Under back pressure a message is recorded with the time it was read at, behind what was sent meanwhile.
    let with = |millis: u64, line: String| on(1, 1, line).replace('}', &format!(r#","mono_ns":{}}}"#, millis * 1_000_000));
    let said = |millis| with(millis, said(millis, "x"));
    let sent = |millis| with(millis, sent(millis, "y"));
    let file = Scratch::of(&[said(0), sent(90_000), said(10), sent(90_010), said(20), said(90_020)]);
    let metadata = file.recording().metadata().unwrap();
    assert_eq!((metadata.count, metadata.connections, metadata.generations), (6, 1, 1));
    let playback = Playback::new(&file.recording(), Speed::Unpaced).without_waiting();
    let server = serve(Script::new().playback(&playback));
    let (_client, inbox) = connect(config(&server)).unwrap();
    until_open(&inbox);
    assert_eq!([(); 4].map(|()| text(&inbox)), ["x"; 4]);
    assert_eq!(playback.status().wires, 1);
}

#[test]
fn filters_decide_together_what_is_seen() {
    let file = Scratch::of(&[&said(0, "a"), &sent(1, "a"), &said(2, "b"), &said(3, "a")]);
    let recording = file.recording().filter(|entry| entry.direction == Direction::In);
    let recording = recording.filter(|entry| matches!(&entry.content, Content::Text(text) if text == "a"));
    assert_eq!(texts(&recording), ["a", "a"]);
    let metadata = recording.metadata().unwrap();
    assert_eq!((metadata.count, metadata.outbound, metadata.duration), (2, 0, ms(3)));
    assert_eq!(recording.replay(Speed::Unpaced).count(), 2);
}

#[test]
fn metadata_tells_connections_wires_and_what_is_missing() {
    let file = Scratch::of(&[
        &on(7, 0, state(0, r#"{"event":"dialing","attempt":1}"#)),
        &on(7, 1, said(1, "a")),
        &on(8, 1, said(2, "a")),
        &line(3, "in", "missing", "40"),
        &on(7, 2, said(4, "a")),
        &on(7, 2, state(5, r#"{"event":"closed","cause":null}"#)),
    ]);
    let metadata = file.recording().metadata().unwrap();
    assert_eq!((metadata.count, metadata.inbound, metadata.missing), (6, 3, 40));
    assert_eq!((metadata.connections, metadata.generations), (2, 3));
}

// ---- replay ----

#[test]
fn a_replay_keeps_the_order_and_the_pauses() {
    let file = Scratch::of(&[&said(0, "a"), &said(50, "b"), &said(50, "c")]);
    let began = Instant::now();
    let replayed: Vec<_> =
        file.recording().replay(Speed::Original).map(|entry| (text_of(entry.unwrap()), began.elapsed())).collect();
    assert_eq!(replayed.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(replayed[1].1 >= ms(50), "{replayed:?}");
}

#[test]
fn a_replay_may_be_faster_or_without_pauses() {
    let file = Scratch::of(&[&said(0, "a"), &said(3_600_000, "b")]);
    assert_eq!(quickly(|| file.recording().replay(Speed::Times(1e6)).count()), 2);
    assert_eq!(quickly(|| file.recording().replay(Speed::Unpaced).count()), 2);
}

#[test]
#[should_panic(expected = "0 times as fast")]
fn a_replay_cannot_stand_still() {
    let _ = Scratch::empty().recording().replay(Speed::Times(0.0));
}

#[test]
fn an_inbox_gets_what_its_consumer_got() {
    let file = Scratch::of(&[
        &on(7, 0, state(0, r#"{"event":"dialing","attempt":1}"#)),
        &on(7, 1, state(1, r#"{"event":"open"}"#)),
        &on(7, 1, said(2, "a")),
        &on(7, 1, sent(3, "not for the inbox")),
        &on(9, 1, line(4, "in", "binary", "AQID")),
        &on(7, 1, line(5, "in", "ping", "AQID")),
        &line(6, "in", "missing", "3"),
        &on(7, 1, state(7, r#"{"event":"lost","cause":"the peer closed with code 1012: restart","redial_in_ms":20}"#)),
        &on(7, 2, state(8, r#"{"event":"open"}"#)),
        &on(7, 2, said(9, "b")),
        &on(7, 2, state(10, r#"{"event":"closed","cause":null}"#)),
    ]);
    let (inbox, feeding) = file.recording().replay(Speed::Unpaced).into_inbox(100).unwrap();
    let received: Vec<_> = inbox.iter().collect();
    assert_eq!(feeding.wait().unwrap(), 10);
    let [first, second] = [&received[0], &received[3]].map(|received| received.connection);
    assert_ne!(first, second);
    let got: Vec<_> =
        received.iter().map(|it| (it.connection == first, it.generation.number(), common::line(&it.event))).collect();
    let expected = [
        (true, 0, "dialing 1"),
        (true, 1, "open"),
        (true, 1, "text a"),
        (false, 1, "binary [1, 2, 3]"),
        (true, 1, "gap of 3"),
        (false, 1, "gap of 3"),
        (true, 1, "lost, again in 20ms: the peer closed with code 1012: restart"),
        (true, 2, "open"),
        (true, 2, "text b"),
        (true, 2, "closed"),
    ];
    assert_eq!(got, expected.map(|(is_first, generation, line)| (is_first, generation, line.to_owned())));
    assert_eq!(received[8].at - received[2].at, ms(7), "as far apart as recorded");
}

#[test]
fn a_full_inbox_holds_the_replay_up_and_loses_nothing() {
    let lines: Vec<_> = (0..1_000).map(|number| said(number, &number.to_string())).collect();
    let file = Scratch::of(&lines);
    let (inbox, feeding) = file.recording().replay(Speed::Unpaced).into_inbox(10).unwrap();
    for number in 0..1_000 {
        assert!(inbox.len() <= 10, "{}", inbox.len());
        assert_eq!(text(&inbox), number.to_string());
    }
    assert!(matches!(inbox.recv_timeout(WAIT), Err(Error::Closed)));
    assert_eq!(feeding.wait().unwrap(), 1_000);
}

#[test]
fn a_replay_ends_with_its_consumer() {
    let lines: Vec<_> = (0..1_000).map(|number| said(number, "")).collect();
    let file = Scratch::of(&lines);
    let (inbox, feeding) = file.recording().replay(Speed::Unpaced).into_inbox(10).unwrap();
    inbox.recv_timeout(WAIT).unwrap();
    drop(inbox);
    assert!(feeding.wait().unwrap() < 1_000);
}

#[test]
fn a_replay_that_waits_ends_with_its_handle() {
    let file = Scratch::of(&[&said(0, "a"), &said(3_600_000, "b")]);
    let (inbox, feeding) = file.recording().replay(Speed::Original).into_inbox(10).unwrap();
    assert_eq!(text(&inbox), "a");
    drop(feeding);
    assert!(matches!(inbox.recv_timeout(WAIT), Err(Error::Closed)));
}

#[test]
fn a_recording_that_cannot_be_read_on_ends_the_inbox_and_is_an_error() {
    let file = Scratch::empty();
    let whole = gzip(&[said(0, "a")]);
    file.append(&whole);
    file.append(&whole[..15]);
    let (inbox, feeding) = file.recording().replay(Speed::Unpaced).into_inbox(10).unwrap();
    assert_eq!(inbox.iter().count(), 1);
    assert!(matches!(feeding.wait(), Err(Error::Config { setting: "recording", .. })));
}

// ---- played by the test kit ----

#[test]
fn a_client_gets_wire_after_wire_as_it_was_recorded() {
    let file = Scratch::of(&[
        &on(7, 0, state(0, r#"{"event":"dialing","attempt":1}"#)),
        &on(7, 1, state(0, r#"{"event":"open"}"#)),
        &on(7, 1, said(0, "a")),
        &on(7, 1, line(0, "in", "binary", "AQID")),
        &on(7, 1, state(0, r#"{"event":"lost","cause":"whatever","redial_in_ms":0}"#)),
        &on(7, 1, state(0, r#"{"event":"dial_failed","attempt":1,"cause":"","redial_in_ms":0}"#)),
        &on(7, 2, state(0, r#"{"event":"open"}"#)),
        &on(7, 2, said(0, "b")),
        &on(7, 2, line(0, "in", "close", r#"{\"code\":1012,\"reason\":\"restart\"}"#)),
        &on(7, 2, state(0, r#"{"event":"lost","cause":"whatever","redial_in_ms":0}"#)),
        &on(7, 3, said(0, "c")),
    ]);
    let (_server, playback, client, inbox) = play(&file.recording(), Speed::Unpaced, Script::new());
    let expected = [
        "dialing 1",
        "open",
        "text a",
        "binary [1, 2, 3]",
        "lost, again in 0ns: the peer closed the TCP connection without a close frame",
        "dialing 1",
        "open",
        "text b",
        "lost, again in 20ms: the peer closed with code 1012: restart",
        "dialing 2",
        "open",
        "text c",
    ];
    assert_eq!(lines(&inbox, expected.len()), expected);
    assert!(playback.wait_end(WAIT));
    let status = playback.status();
    assert_eq!((status.wires, status.sent, status.masked, status.unsent), (3, 5, 0, 0));
    client.close().unwrap();
}

#[test]
fn a_reply_waits_for_its_request() {
    let file = Scratch::of(&[&sent(0, "{}"), &said(1, "reply 1"), &sent(2, "{}"), &sent(3, "{}"), &said(4, "reply 3")]);
    let (server, playback, client, inbox) = play(&file.recording(), Speed::Unpaced, Script::new());
    until_open(&inbox);
    for (sent, reply) in [(1, "reply 1"), (2, "reply 3")] {
        for _ in 0..sent {
            assert!(inbox.is_empty() && !playback.status().is_over);
            client.send("anything").unwrap();
            server.expect("anything", WAIT).unwrap();
        }
        assert_eq!(text(&inbox), reply);
    }
    assert!(playback.wait_end(WAIT));
}

#[test]
fn requests_that_nothing_follows_are_not_waited_for() {
    let close = |direction| line(3, direction, "close", r#"{\"code\":1000,\"reason\":\"\"}"#);
    let closed = state(4, r#"{"event":"closed","cause":null}"#);
    for end in [&[][..], &[close("out"), close("in"), closed]] {
        let file = Scratch::of(&[&[said(0, "a"), sent(1, "{}"), sent(2, "goodbye")], end].concat());
        let (_server, playback, _client, inbox) = play(&file.recording(), Speed::Unpaced, Script::new());
        until_open(&inbox);
        assert_eq!(text(&inbox), "a");
        assert!(playback.wait_end(WAIT), "{:?}", playback.status());
    }
}

#[test]
fn a_wire_is_not_hung_up_before_the_requests_it_had() {
    let lost = state(2, r#"{"event":"lost","cause":"whatever","redial_in_ms":0}"#);
    for end in [&[on(1, 1, lost)][..], &[]] {
        let first = [on(1, 1, said(0, "a")), on(1, 1, sent(1, "{}"))];
        let file = Scratch::of(&[&first[..], end, &[on(1, 2, said(3, "b"))]].concat());
        let (server, playback, client, inbox) = play(&file.recording(), Speed::Unpaced, Script::new());
        until_open(&inbox);
        assert_eq!(text(&inbox), "a");
        assert_eq!((inbox.is_empty(), playback.status().is_over), (true, false));
        client.send("{}").unwrap();
        server.expect("{}", WAIT).unwrap();
        until_open(&inbox);
        assert_eq!(text(&inbox), "b");
    }
}

#[test]
fn a_playback_need_not_wait_for_requests() {
    let file = Scratch::of(&[&sent(0, "{}"), &said(1, "reply 1"), &sent(2, "{}"), &said(3, "reply 2")]);
    let playback = Playback::new(&file.recording(), Speed::Unpaced).without_waiting();
    let server = serve(Script::new().playback(&playback));
    let (_client, inbox) = connect(config(&server)).unwrap();
    until_open(&inbox);
    assert_eq!([text(&inbox), text(&inbox)], ["reply 1", "reply 2"]);
}

#[test]
fn what_follows_a_request_comes_as_long_after_it_as_it_was_recorded() {
    let file = Scratch::of(&[&said(0, "a"), &sent(3_600_000, "{}"), &said(3_600_040, "b")]);
    let recording = file.recording().filter(|entry| !matches!(&entry.content, Content::Text(text) if text == "a"));
    let (_server, _playback, client, inbox) = play(&recording, Speed::Original, Script::new());
    until_open(&inbox);
    let asked = Instant::now();
    client.send("now").unwrap();
    assert_eq!(text(&inbox), "b");
    assert!((ms(40)..QUICK).contains(&asked.elapsed()), "{:?}", asked.elapsed());
}

#[test]
fn a_playback_keeps_the_pauses_divided_by_its_speed() {
    let file = Scratch::of(&[&said(0, "a"), &said(500, "b")]);
    let (_server, _playback, _client, inbox) = play(&file.recording(), Speed::Times(10.0), Script::new());
    until_open(&inbox);
    let arrivals = [(); 2].map(|()| inbox.recv_timeout(WAIT).unwrap().at);
    // The first may have been on its way for a moment.
    assert!((ms(30)..QUICK).contains(&(arrivals[1] - arrivals[0])), "{arrivals:?}");
}

#[test]
fn what_is_masked_is_passed_over_and_counted_and_a_login_is_answered_by_the_script() {
    let masked = |line: String| line.replace("}", r#","masked":true}"#);
    let file = Scratch::of(&[&masked(sent(0, "")), &masked(said(1, "")), &said(2, "a")]);
    let script = Script::new().on_text(|peer, text| peer.send_text(&format!("welcome {text}")));
    let (_server, playback, client, inbox) = play(&file.recording(), Speed::Unpaced, script);
    until_open(&inbox);
    client.send("4711").unwrap();
    assert_eq!([text(&inbox), text(&inbox)], ["welcome 4711", "a"]);
    assert!(playback.wait_end(WAIT));
    assert_eq!(playback.status().masked, 1);
}

#[test]
fn a_client_that_goes_early_misses_the_rest_of_the_wire() {
    let file = Scratch::of(&[&on(1, 1, said(0, "a")), &on(1, 1, said(3_600_000, "b")), &on(1, 2, said(3_600_001, "c"))]);
    let (_server, playback, client, inbox) = play(&file.recording(), Speed::Original, Script::new());
    until_open(&inbox);
    assert_eq!(text(&inbox), "a");
    client.reconnect().unwrap();
    until_open(&inbox);
    assert_eq!(text(&inbox), "c");
    assert_eq!((playback.status().wires, playback.status().unsent), (2, 1));
}

#[test]
fn a_playback_is_over_when_a_client_goes_early_and_no_wire_is_left() {
    let file = Scratch::of(&[&said(0, "a"), &said(3_600_000, "b")]);
    let (_server, playback, client, inbox) = play(&file.recording(), Speed::Original, Script::new());
    until_open(&inbox);
    assert_eq!(text(&inbox), "a");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| quickly(|| playback.wait_end(NEVER)));
        client.reconnect().unwrap();
        assert!(waiting.join().unwrap());
    });
    assert_eq!(playback.status().unsent, 1);
}

#[test]
fn what_only_tells_of_the_end_is_not_waited_for() {
    let lost = state(1, r#"{"event":"lost","cause":"whatever","redial_in_ms":null}"#);
    let closed = state(3_600_000, r#"{"event":"closed","cause":"whatever"}"#);
    let file = Scratch::of(&[&said(0, "a"), &lost, &closed]);
    let playback = Playback::new(&file.recording(), Speed::Original);
    let server = serve(Script::new().playback(&playback));
    let (_client, inbox) = connect(config(&server).reconnect(false)).unwrap();
    assert_eq!(until_closed(&inbox).unwrap().to_string(), "the peer closed the TCP connection without a close frame");
    assert!(playback.wait_end(WAIT));
}

#[test]
fn what_has_the_server_do_nothing_is_not_waited_for() {
    let masked = said(3_600_001, "").replace('}', r#","masked":true}"#);
    let file = Scratch::of(&[&said(0, "a"), &line(3_600_000, "in", "pong", ""), &masked]);
    let (_server, playback, _client, _inbox) = play(&file.recording(), Speed::Original, Script::new());
    assert!(playback.wait_end(WAIT));
}

#[test]
fn the_next_client_gets_the_next_wire_and_the_one_before_nothing_more() {
    let wire = |number, texts: [&str; 2]| [said(0, texts[0]), sent(0, "{}"), said(0, texts[1])].map(|line| on(1, number, line));
    let file = Scratch::of(&[wire(1, ["a", "b"]), wire(2, ["c", "d"])].concat());
    let (server, playback, first, one) = play(&file.recording(), Speed::Unpaced, Script::new());
    until_open(&one);
    assert_eq!(text(&one), "a");
    let (second, two) = connect(config(&server)).unwrap();
    until_open(&two);
    assert_eq!(text(&two), "c");
    first.send("of no use").unwrap();
    server.expect("of no use", WAIT).unwrap();
    second.send("{}").unwrap();
    assert_eq!(text(&two), "d");
    assert!(one.is_empty());
    assert_eq!(playback.status().unsent, 1);
}

#[test]
fn a_wire_whose_end_was_not_recorded_is_hung_up() {
    let file = Scratch::of(&[&on(1, 1, said(0, "a")), &on(1, 2, said(1, "b"))]);
    let (_server, _playback, _client, inbox) = play(&file.recording(), Speed::Unpaced, Script::new());
    until_open(&inbox);
    assert_eq!(text(&inbox), "a");
    assert!(matches!(until_lost(&inbox), Error::Disconnected));
    until_open(&inbox);
    assert_eq!(text(&inbox), "b");
}

#[test]
fn after_the_last_wire_connections_get_nothing_but_answers_to_pings_and_close() {
    let file = Scratch::of(&[&on(1, 1, said(0, "a")), &on(1, 1, line(1, "in", "close", r#"{\"code\":1000,\"reason\":\"\"}"#))]);
    let (server, playback, client, inbox) = play(&file.recording(), Speed::Unpaced, Script::new());
    until_lost(&inbox);
    assert!(playback.wait_end(WAIT));
    until_open(&inbox);
    client.send("unheard").unwrap();
    server.expect("unheard", WAIT).unwrap();
    assert!(inbox.is_empty());
    client.close().unwrap();
}

#[test]
fn the_close_of_the_client_that_was_recorded_is_left_to_the_client() {
    let file = Scratch::of(&[
        &said(0, "a"),
        &line(1, "out", "close", r#"{\"code\":1000,\"reason\":\"\"}"#),
        &said(2, "on its way"),
        &line(3, "in", "close", r#"{\"code\":1000,\"reason\":\"\"}"#),
    ]);
    let (server, playback, client, inbox) = play(&file.recording(), Speed::Unpaced, Script::new());
    until_open(&inbox);
    assert_eq!([text(&inbox), text(&inbox)], ["a", "on its way"]);
    assert!(playback.wait_end(WAIT));
    client.send("still open").unwrap();
    server.expect("still open", WAIT).unwrap();
    client.close().unwrap();
    assert_eq!(lines_to_end(&inbox), ["closed"]);
    assert_eq!(server.violations(), [""; 0]);
}

#[test]
fn of_several_connections_the_first_is_played_or_the_one_that_is_filtered_for() {
    let file = Scratch::of(&[&on(7, 1, said(0, "a")), &on(8, 1, said(1, "x")), &on(7, 1, said(2, "b")), &on(8, 1, said(3, "y"))]);
    for (recording, expected) in
        [(file.recording(), ["a", "b"]), (file.recording().filter(|it| it.connection == Some(8)), ["x", "y"])]
    {
        let (_server, playback, _client, inbox) = play(&recording, Speed::Unpaced, Script::new());
        until_open(&inbox);
        assert_eq!([text(&inbox), text(&inbox)], expected);
        assert!(playback.wait_end(WAIT));
    }
}

#[test]
fn a_playback_waits_for_a_client_that_reads_slowly() {
    let filler = "x".repeat(1 << 10);
    let lines: Vec<_> = (0..20_000).map(|number| said(number, &format!("{number} {filler}"))).collect();
    let file = Scratch::of(&lines);
    let playback = Playback::new(&file.recording(), Speed::Unpaced);
    let server = serve(Script::new().playback(&playback));
    let (_client, inbox) = connect(config(&server).inbox_capacity(10)).unwrap();
    until_open(&inbox);
    for number in 0..lines.len() {
        assert_eq!(text(&inbox).split_once(' ').unwrap().0, number.to_string());
        if number == 10 {
            assert!(playback.status().sent < lines.len() as u64, "kept for the client, all of it");
        }
    }
}

#[test]
fn a_playback_that_cannot_be_read_on_says_so() {
    let file = Scratch::empty();
    let whole = gzip(&[said(0, "a")]);
    file.append(&whole);
    file.append(&whole[..15]);
    let (_server, playback, _client, inbox) = play(&file.recording(), Speed::Unpaced, Script::new());
    until_open(&inbox);
    assert_eq!(text(&inbox), "a");
    assert!(!playback.wait_end(WAIT));
    assert!(matches!(playback.status().failure, Some(Error::Config { setting: "recording", .. })));
}

#[test]
fn a_program_that_calls_gets_the_recorded_replies() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("feed.jsonl");
    let levels = |config: Config| {
        let (client, _inbox) = connect(config.dialect(JsonRpc::default())).unwrap();
        let levels = ["a", "b"].map(|market| client.call::<Vec<usize>>("levels", [market]).unwrap());
        client.close().unwrap();
        levels
    };
    let exchange = serve(Script::new().on_text(|peer, text| {
        let request: serde_json::Value = serde_json::from_str(text).unwrap();
        peer.send_text(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":[4,{}]}}"#, request["id"], text.len()));
    }));
    let live = levels(config(&exchange).record_to(&path));

    let playback = Playback::new(&Recording::open(&path).unwrap(), Speed::Unpaced);
    let server = serve(Script::new().playback(&playback));
    assert_eq!(levels(config(&server)), live);
    assert!(playback.wait_end(WAIT));
}

// ---- live, recorded, replayed ----

#[test]
fn a_replay_is_what_was_heard_live() {
    replays_are_what_was_heard_live(20_000);
}

/// `cargo test --release --test replay -- --ignored --nocapture`
#[test]
#[ignore = "takes a while"]
fn a_million_messages_are_replayed_as_they_were_heard_live() {
    replays_are_what_was_heard_live(1_000_000);
}

/// Three wires' worth of texts and binary messages, with requests in between: heard live and recorded, then replayed in each way.
fn replays_are_what_was_heard_live(count: u64) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("feed.jsonl");
    let exchange = serve(Script::new().on_text(|_, _| {}).on_open(move |peer| {
        let wire = peer.id();
        for number in wire * count / 3..(wire + 1) * count / 3 {
            match number % 3 {
                0 => peer.send_binary(&number.to_be_bytes().repeat(1 + number as usize % 20)),
                _ => peer.send_text(&format!(r#"{{"number":{number},"text":"ünï\n\u0000\u2028"}}"#)),
            }
        }
        if wire < 2 {
            peer.hang_up();
        }
    }));
    let record = Recorder::new(&path).queue_max(1 << 30);
    let (live, took) = timed(|| hear_all(config(&exchange).record_to(record), count));
    println!("live, recording: {:.0} messages/s", count as f64 / took);

    let recording = Recording::open(&path).unwrap();
    let (metadata, took) = timed(|| recording.metadata().unwrap());
    println!(
        "metadata: {:.0} entries/s of {} bytes",
        metadata.count as f64 / took,
        fs::metadata(&path).unwrap().len() / metadata.count
    );
    assert_eq!((metadata.skipped, metadata.missing, metadata.connections, metadata.generations), (0, 0, 1, 3));

    let mut closure = Heard::default();
    let (_, took) = timed(|| {
        recording.replay(Speed::Unpaced).map(Result::unwrap).for_each(|entry| match (entry.direction, entry.content) {
            (Direction::In, Content::Text(text)) => closure.add(true, text.as_bytes()),
            (Direction::In, Content::Binary(bytes)) => closure.add(false, &bytes),
            _ => {}
        });
    });
    println!("into a closure: {:.0} messages/s", count as f64 / took);
    assert_eq!(closure.digest(), live);

    let (inboxed, took) = timed(|| {
        let (inbox, feeding) = recording.replay(Speed::Unpaced).into_inbox(8192).unwrap();
        let mut heard = Heard::default();
        inbox.iter().for_each(|received| heard.add_event(&received));
        feeding.wait().unwrap();
        heard.digest()
    });
    println!("into an inbox: {:.0} messages/s", count as f64 / took);
    assert_eq!(inboxed, live);

    let playback = Playback::new(&recording, Speed::Unpaced);
    let server = serve(Script::new().playback(&playback));
    let (played, took) = timed(|| hear_all(config(&server), count));
    println!("through a server: {:.0} messages/s", count as f64 / took);
    assert_eq!(played, live);
    assert_eq!((playback.status().wires, playback.status().masked), (3, 0));
    assert_eq!(server.violations(), [""; 0]);
}

/// Connects, takes so many messages over however many wires, asks something now and then, and closes.
fn hear_all(config: Config, count: u64) -> (u64, u64) {
    let (client, inbox) = connect(config).unwrap();
    let mut heard = Heard::default();
    while heard.count < count {
        let received = inbox.recv_timeout(WAIT).unwrap();
        let before = heard.count;
        heard.add_event(&received);
        if heard.count > before && heard.count % (count / 10) == 0 && heard.count < count {
            ask(&client, received.generation);
        }
    }
    client.close().unwrap();
    heard.digest()
}

/// Asks on the wire that a message came on. It may be gone already; then nothing was asked and nothing is recorded.
fn ask(client: &Client, generation: Generation) {
    let _ = client.send_on(generation, "how is it?");
}

/// A digest of messages.
#[derive(Default)]
struct Heard {
    hasher: DefaultHasher,
    count: u64,
}

impl Heard {
    fn add(&mut self, is_text: bool, payload: &[u8]) {
        (is_text, payload).hash(&mut self.hasher);
        self.count += 1;
    }

    fn add_event(&mut self, received: &Received) {
        if let Event::Message(message) = &received.event {
            self.add(Message::text(message).is_some(), message.bytes());
        }
    }

    fn digest(self) -> (u64, u64) {
        (self.count, self.hasher.finish())
    }
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, f64) {
    let began = Instant::now();
    let value = run();
    (value, began.elapsed().as_secs_f64())
}

/// A server that plays, and a client on it.
fn play(recording: &Recording, speed: Speed, script: Script) -> (MockServer, Playback, Client, Inbox) {
    let playback = Playback::new(recording, speed);
    let server = serve(script.playback(&playback));
    let (client, inbox) = connect(config(&server)).unwrap();
    (server, playback, client, inbox)
}

/// A recording in a directory of its own.
struct Scratch {
    _folder: TempDir,
    path: PathBuf,
}

impl Scratch {
    fn of(lines: &[impl AsRef<str>]) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("feed.jsonl");
        let text: String = lines.iter().map(|line| format!("{}\n", line.as_ref())).collect();
        fs::write(&path, text).unwrap();
        Self { _folder: folder, path }
    }

    fn empty() -> Self {
        Self::of(&[""; 0])
    }

    fn append(&self, bytes: &[u8]) {
        File::options().append(true).open(&self.path).unwrap().write_all(bytes).unwrap();
    }

    fn recording(&self) -> Recording {
        Recording::open(&self.path).unwrap()
    }
}

/// A text that came in, so many milliseconds after the start.
fn said(millis: u64, text: &str) -> String {
    line(millis, "in", "text", text)
}

/// A text that was sent.
fn sent(millis: u64, text: &str) -> String {
    line(millis, "out", "text", text)
}

fn state(millis: u64, object: &str) -> String {
    line(millis, "in", "state", &object.replace('"', r#"\""#))
}

fn line(millis: u64, direction: &str, kind: &str, data: &str) -> String {
    let at = Duration::from_secs(1_767_225_600) + ms(millis);
    let at = humantime::format_rfc3339_micros(std::time::UNIX_EPOCH + at);
    format!(r#"{{"ts":"{at}","dir":"{direction}","type":"{kind}","data":"{data}"}}"#)
}

/// The same of this connection and wire.
fn on(connection: u64, generation: u32, line: String) -> String {
    let rest = line.strip_suffix('}').unwrap();
    format!(r#"{rest},"conn":{connection},"gen":{generation}}}"#)
}

fn gzip(lines: &[String]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    lines.iter().for_each(|line| writeln!(encoder, "{line}").unwrap());
    encoder.finish().unwrap()
}

fn contents(recording: &Recording) -> Vec<Content> {
    recording.entries().map(|entry| entry.unwrap().content).collect()
}

fn texts(recording: &Recording) -> Vec<String> {
    recording.entries().map(|entry| text_of(entry.unwrap())).collect()
}

fn text_of(entry: Entry) -> String {
    match entry.content {
        Content::Text(text) => text,
        other => panic!("no text but {other:?}"),
    }
}
