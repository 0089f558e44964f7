//! Our decoder against tungstenite's: the same messages and the same verdict from random streams cut at random places.

use std::io::{self, Read, Write};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tungstenite::error::Error;
use tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};

use zen_websocket::internals::{Assembler, Item};

proptest! {
    // A failure prints its stream; it then becomes a unit test in assembler.rs, so no file of seeds is kept.
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn well_formed_streams_decode_as_in_tungstenite(stream in well_formed(), cuts in cuts()) {
        let (said, verdict) = ours(&cut(&stream, &cuts), LIMIT);
        prop_assert!(!matches!(verdict, Verdict::Broken(_)), "{verdict:?}");
        prop_assert_eq!((said, verdict), theirs(&stream, LIMIT));
    }

    #[test]
    fn broken_streams_fail_as_in_tungstenite(stream in broken(), cuts in cuts(), limit in limit()) {
        compare(&stream, &cuts, limit)?;
    }

    #[test]
    fn cutting_never_changes_what_comes_out(
        stream in prop_oneof![broken(), vec(any::<u8>(), 0..300)],
        cuts in cuts(),
        limit in limit(),
    ) {
        let whole = ours(&[&stream], limit);
        prop_assert_eq!(&ours(&cut(&stream, &cuts), limit), &whole);
        prop_assert_eq!(&ours(&stream.chunks(1).collect::<Vec<_>>(), limit), &whole);
    }
}

/// Checks that both decoders say the same of `stream`, but for the five differences named here.
fn compare(stream: &[u8], cuts: &[Index], limit: usize) -> Result<(), TestCaseError> {
    let (mut said, verdict) = ours(&cut(stream, cuts), limit);

    // 1. Tungstenite takes a length in more bytes than it needs (RFC 6455 §5.2 forbids it). We refuse that frame, unless something before
    // it was bad; of the stream with the lengths put right we must say what tungstenite says of either.
    let shortest = with_shortest_lengths(stream);
    if shortest != stream {
        prop_assert!(matches!(verdict, Verdict::Broken(_)), "{verdict:?}");
        prop_assert!(ours(&[&shortest], limit).0.starts_with(&said));
        prop_assert_eq!(theirs(stream, limit), theirs(&shortest, limit));
        return compare(&shortest, cuts, limit);
    }

    let Verdict::Broken(class) = verdict else {
        // 2. Tungstenite does not know close code 1014 (IANA's registry has it) and treats it like an invalid one, see 4.
        if let Some(Said::Close(Some(1014), _)) = said.last() {
            said.pop();
            said.push(invalid_close());
        }
        prop_assert_eq!((said, verdict), theirs(stream, limit));
        return Ok(());
    };

    // 3. Tungstenite judges a frame when all of it came, we when what came is enough. So it gets a rest for the last frame, which cannot make
    // good what we refused; 0xFF, lest it complete a length to one in more bytes than it needs, which is difference 1.
    let padded = [stream, &vec![0xFF; limit + FRAME_SLACK]].concat();
    let (their_said, their_verdict) = theirs(&padded, limit);
    match (class, their_verdict) {
        // 4. Tungstenite answers an invalid close code by reporting a Close of its own wording; RFC 6455 §7.4.2 lets us fail.
        (Class::CloseCode, _) => {
            said.push(invalid_close());
            prop_assert_eq!((their_said, their_verdict), (said, Verdict::Closed));
        }
        // 5. Of two faults in one header, a broken rule and a length over the limit, we name the rule, tungstenite the length.
        (Class::Protocol, Verdict::Broken(Class::TooBig)) => prop_assert_eq!(their_said, said),
        (Class::Protocol | Class::TooBig | Class::Utf8, _) => {
            prop_assert_eq!((their_said, their_verdict), (said, verdict))
        }
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq)]
enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Open,
    Closed,
    Broken(Class),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Class {
    CloseCode,
    Protocol,
    TooBig,
    Utf8,
}

fn ours(pieces: &[&[u8]], limit: usize) -> (Vec<Said>, Verdict) {
    let mut assembler = Assembler::new(limit);
    let mut said = Vec::new();
    let mut came = 0;
    for piece in pieces {
        let mut input = *piece;
        came += piece.len();
        loop {
            match assembler.next(&mut input) {
                Ok(None) => break,
                Ok(Some(Item::Text(text))) => said.push(Said::Text(text.to_owned())),
                Ok(Some(Item::Binary(bytes))) => said.push(Said::Binary(bytes.to_owned())),
                Ok(Some(Item::Ping(payload))) => said.push(Said::Ping(payload.to_owned())),
                Ok(Some(Item::Pong(payload))) => said.push(Said::Pong(payload.to_owned())),
                Ok(Some(Item::Close { code, reason })) => {
                    said.push(Said::Close(code, reason.to_owned()));
                    return (said, Verdict::Closed);
                }
                Err(violation) => {
                    let class = match (violation.code, violation.reason) {
                        (1002, "invalid close code") => Class::CloseCode,
                        (1002, _) => Class::Protocol,
                        (1007, _) => Class::Utf8,
                        (1009, _) => Class::TooBig,
                        _ => panic!("{violation:?}"),
                    };
                    return (said, Verdict::Broken(class));
                }
            }
        }
        assert_eq!(input, b"", "Ok(None) means that the input is used up");
        assert!(assembler.memory() <= (2 * came.min(limit)).max(4096), "{} bytes held", assembler.memory());
    }
    (said, Verdict::Open)
}

fn theirs(stream: &[u8], limit: usize) -> (Vec<Said>, Verdict) {
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .max_message_size(Some(limit))
        // The frame limit holds for control frames too, which are no part of a message.
        .max_frame_size(Some(limit.max(125)))
        .accept_unmasked_frames(false);
    let mut socket = WebSocket::from_raw_socket(Memory(stream), Role::Client, Some(config));
    let mut said = Vec::new();
    loop {
        let class = match socket.read() {
            Ok(Message::Text(text)) => {
                said.push(Said::Text(text.to_string()));
                continue;
            }
            Ok(Message::Binary(bytes)) => {
                said.push(Said::Binary(bytes.to_vec()));
                continue;
            }
            Ok(Message::Ping(payload)) => {
                said.push(Said::Ping(payload.to_vec()));
                continue;
            }
            Ok(Message::Pong(payload)) => {
                said.push(Said::Pong(payload.to_vec()));
                continue;
            }
            Ok(Message::Close(close)) => {
                let (code, reason) =
                    close.map_or((None, String::new()), |close| (Some(close.code.into()), close.reason.to_string()));
                said.push(Said::Close(code, reason));
                return (said, Verdict::Closed);
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return (said, Verdict::Open);
            }
            Err(Error::Capacity(_)) => Class::TooBig,
            Err(Error::Protocol(_)) => Class::Protocol,
            Err(Error::Utf8(_)) => Class::Utf8,
            other => panic!("{other:?}"),
        };
        return (said, Verdict::Broken(class));
    }
}

/// A stream that has nothing more to say and swallows what it is told.
struct Memory<'a>(&'a [u8]);

impl Read for Memory<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for Memory<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn invalid_close() -> Said {
    Said::Close(Some(1002), "Protocol violation".to_owned())
}

/// Rewrites the lengths of the frames at the front, up to the first that no client may receive for another reason and up to a Close.
fn with_shortest_lengths(stream: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = stream;
    loop {
        let (length, size) = match *rest {
            [_, second @ 0..=125, ..] => (u64::from(second), 2),
            [_, 126, a, b, ..] => (u64::from(u16::from_be_bytes([a, b])), 4),
            [_, 127, a, b, c, d, e, f, g, h, ..] => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 10),
            _ => break,
        };
        let (is_known, is_control) = (matches!(rest[0] & 0x7F, 0..=2 | 8..=10), rest[0] & 8 != 0);
        if !is_known || (is_control && (rest[0] & 0x80 == 0 || length > 125)) {
            break;
        }
        let payload = &rest[size..];
        let payload = &payload[..payload.len().min(usize::try_from(length).unwrap_or(usize::MAX))];
        out.extend(header(rest[0], length));
        out.extend(payload);
        let is_close = rest[0] & 0x0F == 8;
        rest = &rest[size + payload.len()..];
        if is_close {
            break;
        }
    }
    out.extend(rest);
    out
}

fn cut<'a>(stream: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut rest = stream;
    let mut pieces = Vec::new();
    for cut in cuts {
        let (piece, tail) = rest.split_at(cut.index(rest.len() + 1));
        pieces.push(piece);
        rest = tail;
    }
    pieces.push(rest);
    pieces
}

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    vec(any::<Index>(), 0..8)
}

fn limit() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(LIMIT), 1 => 0..400_usize]
}

/// Messages whole and in fragments, control frames between them, perhaps a Close.
fn well_formed() -> impl Strategy<Value = Vec<u8>> {
    (vec(piece(), 0..6), option::of(close(select(vec![1000, 1001, 1003, 1007, 1011, 1013, 3000, 4999]))))
        .prop_map(|(pieces, close)| [pieces.concat(), close.unwrap_or_default()].concat())
}

/// The same with frames that should not be there, a few bits flipped, and cut off at the end.
fn broken() -> impl Strategy<Value = Vec<u8>> {
    let flips = prop_oneof![2 => Just(vec![]), 1 => vec((any::<Index>(), 0..8_u8), 1..4)];
    (vec(prop_oneof![3 => piece(), 2 => oddity()], 0..6), flips, option::of(any::<Index>())).prop_map(|(pieces, flips, end)| {
        let mut stream = pieces.concat();
        if let Some(end) = end {
            stream.truncate(end.index(stream.len() + 1));
        }
        if !stream.is_empty() {
            for (at, bit) in flips {
                let at = at.index(stream.len());
                stream[at] ^= 1 << bit;
            }
        }
        stream
    })
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => message(), 1 => control()]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        8 => vec(any::<char>(), 0..40).prop_map(String::from_iter),
        4 => "[ -~]{0,60}",
        2 => (any::<char>(), 30..500_usize).prop_map(|(character, times)| String::from(character).repeat(times)),
        1 => Just("€".repeat(23_000)),
    ]
    .prop_map(|text| (1, text.into_bytes()));
    let binary = prop_oneof![8 => vec(any::<u8>(), 0..200), 1 => Just(vec![7; 70_000])].prop_map(|bytes| (2, bytes));
    let fragments = prop_oneof![1 => Just(vec![]), 1 => vec((any::<Index>(), option::of(control())), 1..5)];
    (prop_oneof![2 => text, 1 => binary], fragments).prop_map(|((opcode, payload), fragments)| {
        let mut stream = Vec::new();
        let mut rest = &payload[..];
        let mut first = opcode;
        for (at, control) in fragments {
            let (fragment, tail) = rest.split_at(at.index(rest.len() + 1));
            stream.extend(frame(first, fragment));
            stream.extend(control.unwrap_or_default());
            (first, rest) = (0, tail);
        }
        stream.extend(frame(0x80 | first, rest));
        stream
    })
}

fn control() -> impl Strategy<Value = Vec<u8>> {
    (select(vec![0x89, 0x8A]), vec(any::<u8>(), 0..=125)).prop_map(|(first, payload)| frame(first, &payload))
}

fn close(code: impl Strategy<Value = u16>) -> impl Strategy<Value = Vec<u8>> {
    option::of((code, "\\PC{0,30}")).prop_map(|body| match body {
        Some((code, reason)) => frame(0x88, &[&code.to_be_bytes(), reason.as_bytes()].concat()),
        None => frame(0x88, b""),
    })
}

/// A frame that is wrong, at least in most places.
fn oddity() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || vec(any::<u8>(), 0..30);
    let first = || prop_oneof![select(vec![0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A]), any::<u8>()];
    let code = prop_oneof![
        select(vec![0, 999, 1002, 1004, 1005, 1006, 1012, 1014, 1015, 1016, 2999, 5000]),
        any::<u16>(),
        3000..5000_u16,
    ];
    prop_oneof![
        // Any opcode, reserved bits, fragments out of place, bad UTF-8, close frames of any payload.
        4 => (first(), bytes()).prop_map(|(first, payload)| frame(first, &payload)),
        2 => close(code),
        1 => (first(), 126..300_usize).prop_map(|(first, length)| frame(first, &vec![b'x'; length])),
        1 => (first(), any::<[u8; 4]>(), bytes()).prop_map(|(first, key, payload)| {
            let masked: Vec<u8> = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            [&[first, 0x80 | payload.len() as u8], &key[..], &masked].concat()
        }),
        2 => (first(), "[a-z]{0,30}").prop_map(|(first, text)| {
            [&[first, 126], &(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
        }),
        1 => (first(), "[a-z]{0,300}").prop_map(|(first, text)| {
            [&[first, 127], &(text.len() as u64).to_be_bytes()[..], text.as_bytes()].concat()
        }),
        1 => (first(), prop_oneof![any::<u64>(), Just(1 << 63)]).prop_map(|(first, length)| header(first, length)),
    ]
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&header(first, payload.len() as u64), payload].concat()
}

fn header(first: u8, length: u64) -> Vec<u8> {
    match length {
        0..=125 => vec![first, length as u8],
        126..=0xFFFF => [&[first, 126], &(length as u16).to_be_bytes()[..]].concat(),
        _ => [&[first, 127], &length.to_be_bytes()[..]].concat(),
    }
}

const LIMIT: usize = 100_000;

/// More than any header, and than a control frame where the limit for messages is smaller.
const FRAME_SLACK: usize = 150;
