//! Turns the bytes of one wire into messages (RFC 6455 §5, §8.1), lending whole ones out of the read buffer.

use std::mem;

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::wire::frame::{self, HEADER_MAX, Header, Violation};

/// What the peer said.
#[derive(Debug, PartialEq)]
pub enum Item<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping, possibly from between the fragments of a message; the payload goes back in our pong.
    Ping(&'a [u8]),
    /// A pong, asked for or not.
    Pong(&'a [u8]),
    /// The last thing a peer says; what follows on the wire means nothing (RFC 6455 §5.5.1), so the caller stops here.
    Close {
        /// `None` means 1005, no code given (RFC 6455 §7.1.5).
        code: Option<u16>,
        /// Empty if there is none.
        reason: &'a str,
    },
}

/// The decoder of one wire. Between calls it keeps nothing but an unfinished frame or message.
///
/// Every byte is looked at once, however small the pieces it comes in. Which items come out depends on the bytes alone, not on where they
/// were cut. Heap use is at most twice what the unfinished message has brought so far, and 4 KiB when there is none.
#[derive(Debug)]
pub struct Assembler {
    max_message: usize,
    /// The start of a header that has not come whole.
    header: Few<HEADER_MAX>,
    /// The frame whose payload is under way.
    frame: Option<Frame>,
    /// The payload of an unfinished control frame, which may stand between the fragments of `message`.
    control: Vec<u8>,
    /// Empty unless `phase` says otherwise.
    message: Message,
    phase: Phase,
}

impl Assembler {
    /// Makes a decoder that refuses messages of more than `max_message` bytes.
    pub fn new(max_message: usize) -> Self {
        Self {
            max_message,
            header: Few::new(),
            frame: None,
            control: Vec::new(),
            message: Message::Binary(Vec::new()),
            phase: Phase::Idle,
        }
    }

    /// Takes the next complete item off the front of `input`, which is advanced past it.
    ///
    /// The item borrows from `input` if its payload lies whole in it, else from the decoder. `Ok(None)` means that all of `input` was
    /// consumed and, where it matters later, kept. Call until then: memory of a delivered message is given back by the following call.
    ///
    /// # Errors
    ///
    /// The peer broke RFC 6455 or the limit. Text that is not UTF-8 and messages over the limit are reported as soon as the bytes at hand
    /// show it, in the middle of a frame if need be. The decoder is spent then: what further calls return means nothing.
    #[inline]
    pub fn next<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8]) -> Result<Option<Item<'s>>, Violation> {
        if self.phase == Phase::Delivered {
            self.message.give_back();
            self.phase = Phase::Idle;
        }
        if self.phase == Phase::Idle
            && self.frame.is_none()
            && self.header.is_empty()
            && let Some(item) = lend_whole(input, self.max_message)?
        {
            return Ok(Some(item));
        }
        loop {
            match self.step(input)? {
                Step::Starved => return Ok(None),
                Step::Fragment => {}
                Step::Lent(item) => return Ok(Some(item)),
                Step::Control(control) => {
                    return control_item(control, self.control.as_slice()).map(Some);
                }
                Step::Message => return Ok(Some(self.message.as_item())),
            }
        }
    }

    /// Bytes held on the heap.
    pub fn memory(&self) -> usize {
        match &self.message {
            Message::Text { valid, .. } => valid.capacity(),
            Message::Binary(bytes) => bytes.capacity(),
        }
    }

    /// Goes on to the end of the frame under way or to the end of `input`, whichever is first.
    #[inline]
    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Step<'i>, Violation> {
        let frame = match self.frame.take() {
            Some(frame) => frame,
            None => match self.read_header(input)? {
                Some(header) => self.begin(header)?,
                None => return Ok(Step::Starved),
            },
        };
        let is_whole = frame.left <= input.len() as u64;
        let (part, rest) = input.split_at(if is_whole { frame.left as usize } else { input.len() });
        *input = rest;
        match frame.opcode {
            OpCode::Control(control) => {
                if is_whole && self.control.is_empty() {
                    return control_item(control, part).map(Step::Lent);
                }
                self.control.extend_from_slice(part);
                if is_whole {
                    return Ok(Step::Control(control));
                }
            }
            OpCode::Data(_) => {
                let is_last = is_whole && frame.is_final;
                if is_last && self.message.is_empty() {
                    self.phase = Phase::Idle;
                    return self.message.lend(part).map(Step::Lent);
                }
                self.message.push(part)?;
                if is_last {
                    self.message.finish()?;
                    self.phase = Phase::Delivered;
                    return Ok(Step::Message);
                }
                if is_whole {
                    return Ok(Step::Fragment);
                }
            }
        }
        self.frame = Some(Frame { left: frame.left - part.len() as u64, ..frame });
        Ok(Step::Starved)
    }

    #[inline]
    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<Header>, Violation> {
        if self.header.is_empty() {
            match frame::parse_header(input)? {
                Some(header) => {
                    *input = &input[header.size..];
                    return Ok(Some(header));
                }
                None => self.header.push(mem::take(input)),
            }
            return Ok(None);
        }
        while let [byte, rest @ ..] = *input {
            *input = rest;
            self.header.push(&[*byte]);
            if let Some(header) = frame::parse_header(self.header.as_slice())? {
                self.header.clear();
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// Checks a header against what came before it and makes room for its frame.
    #[inline]
    fn begin(&mut self, header: Header) -> Result<Frame, Violation> {
        match (header.opcode, self.phase) {
            (OpCode::Control(_), _) => self.control.clear(),
            (OpCode::Data(Data::Continue), Phase::Unfinished) => {}
            (OpCode::Data(Data::Continue), Phase::Idle | Phase::Delivered) => {
                return Err(Violation::protocol("continuation of no message"));
            }
            (OpCode::Data(_), Phase::Unfinished) => {
                return Err(Violation::protocol("new message inside a fragmented one"));
            }
            (OpCode::Data(kind), Phase::Idle | Phase::Delivered) => {
                self.message.begin(kind);
                self.phase = Phase::Unfinished;
            }
        }
        if matches!(header.opcode, OpCode::Data(_)) && header.length > (self.max_message - self.message.len()) as u64 {
            return Err(Violation::too_big("message over the size limit"));
        }
        Ok(Frame { opcode: header.opcode, is_final: header.is_final, left: header.length })
    }
}

/// Takes a message off the front of `input` that lies whole in it, in one frame of less than 64 KiB. Nearly all of market data does, and
/// need not go through the steps of the others: 19 ns instead of 25 for a text of 200 bytes (`benches/decode.rs`).
#[inline]
fn lend_whole<'i>(input: &mut &'i [u8], max: usize) -> Result<Option<Item<'i>>, Violation> {
    let (first, length, rest) = match **input {
        [first, length @ 0..=125, ref rest @ ..] => (first, usize::from(length), rest),
        [first, 126, a, b, ref rest @ ..] if a > 0 || b > 125 => (first, usize::from(u16::from_be_bytes([a, b])), rest),
        _ => return Ok(None),
    };
    if length > max || !matches!(first, FINAL_TEXT | FINAL_BINARY) {
        return Ok(None);
    }
    let Some((payload, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    *input = rest;
    match first {
        FINAL_TEXT => str::from_utf8(payload).map(|text| Some(Item::Text(text))).map_err(|_| NOT_UTF8),
        _ => Ok(Some(Item::Binary(payload))),
    }
}

/// The first byte of a message in one frame (RFC 6455 §5.2).
const FINAL_TEXT: u8 = 0x81;
const FINAL_BINARY: u8 = 0x82;

/// Whether the end of a message lies in `input`, which begins where another has ended. Pings and pongs are looked past; after a Close
/// frame nothing comes.
pub(crate) fn holds_message(mut input: &[u8]) -> bool {
    while let Ok(Some(header)) = frame::parse_header(input) {
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let Some(rest) = input[header.size..].get(length..) else { return false };
        match header.opcode {
            OpCode::Data(_) if header.is_final => return true,
            OpCode::Control(Control::Close) => return false,
            OpCode::Data(_) | OpCode::Control(_) => input = rest,
        }
    }
    false
}

/// What one step came to.
enum Step<'i> {
    /// The input is used up.
    Starved,
    /// A fragment ended, its message did not.
    Fragment,
    /// An item lies whole in the input.
    Lent(Item<'i>),
    /// A control frame was completed in `Assembler::control`.
    Control(Control),
    /// A message was completed in `Assembler::message`.
    Message,
}

/// A frame whose header has come.
#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: OpCode,
    is_final: bool,
    /// Bytes of payload still to come.
    left: u64,
}

/// Where `Assembler::message` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    /// A data frame began whose message has not ended.
    Unfinished,
    /// Lent to the caller until the next call.
    Delivered,
}

/// The bytes of an unfinished data message. Its buffer passes from one message to the next, whatever their kinds.
#[derive(Debug)]
enum Message {
    Text {
        valid: String,
        /// The start of a character whose end has not come.
        tail: Few<4>,
    },
    Binary(Vec<u8>),
}

impl Message {
    #[inline]
    fn begin(&mut self, kind: Data) {
        match (kind, &mut *self) {
            (Data::Text, Self::Binary(buffer)) => {
                let valid = String::from_utf8(mem::take(buffer)).expect("an idle buffer is empty");
                *self = Self::Text { valid, tail: Few::new() };
            }
            (Data::Binary, Self::Text { valid, .. }) => *self = Self::Binary(mem::take(valid).into_bytes()),
            (Data::Text, Self::Text { .. }) | (Data::Binary, Self::Binary(_)) => {}
            (Data::Continue | Data::Reserved(_), _) => {
                unreachable!("only a text or binary frame begins a message")
            }
        }
    }

    fn push(&mut self, part: &[u8]) -> Result<(), Violation> {
        match self {
            Self::Text { valid, tail } => push_text(valid, tail, part),
            Self::Binary(bytes) => {
                bytes.extend_from_slice(part);
                Ok(())
            }
        }
    }

    fn finish(&self) -> Result<(), Violation> {
        match self {
            Self::Text { tail, .. } if !tail.is_empty() => Err(NOT_UTF8),
            Self::Text { .. } | Self::Binary(_) => Ok(()),
        }
    }

    /// The item of this kind whose payload is `whole`.
    #[inline]
    fn lend<'i>(&self, whole: &'i [u8]) -> Result<Item<'i>, Violation> {
        match self {
            Self::Text { .. } => str::from_utf8(whole).map(Item::Text).map_err(|_| NOT_UTF8),
            Self::Binary(_) => Ok(Item::Binary(whole)),
        }
    }

    fn as_item(&self) -> Item<'_> {
        match self {
            Self::Text { valid, .. } => Item::Text(valid),
            Self::Binary(bytes) => Item::Binary(bytes),
        }
    }

    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::Text { valid, tail } => valid.len() + tail.len,
            Self::Binary(bytes) => bytes.len(),
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn give_back(&mut self) {
        match self {
            Self::Text { valid, .. } => {
                valid.clear();
                valid.shrink_to(KEPT_MAX);
            }
            Self::Binary(bytes) => {
                bytes.clear();
                bytes.shrink_to(KEPT_MAX);
            }
        }
    }
}

/// Appends `part` to `valid`, all but the start of a character that `part` cuts off, which waits in `tail`.
fn push_text(valid: &mut String, tail: &mut Few<4>, mut part: &[u8]) -> Result<(), Violation> {
    while !tail.is_empty() {
        let [byte, rest @ ..] = part else {
            return Ok(());
        };
        part = rest;
        tail.push(&[*byte]);
        match str::from_utf8(tail.as_slice()) {
            Ok(character) => {
                valid.push_str(character);
                tail.clear();
            }
            Err(error) if error.error_len().is_none() => {}
            Err(_) => return Err(NOT_UTF8),
        }
    }
    // Split before checking, so that no byte is checked twice.
    let (whole, cut) = part.split_at(whole_characters(part));
    valid.push_str(str::from_utf8(whole).map_err(|_| NOT_UTF8)?);
    if !cut.is_empty() {
        if str::from_utf8(cut).is_err_and(|error| error.error_len().is_some()) {
            return Err(NOT_UTF8);
        }
        tail.push(cut);
    }
    Ok(())
}

/// The length of `text` without a last character that announces more bytes than there are.
fn whole_characters(text: &[u8]) -> usize {
    for (back, byte) in text.iter().rev().take(3).enumerate() {
        let width = match byte {
            0x80..=0xBF => continue,
            0x00..=0x7F => 1,
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xFF => 4,
        };
        if width > back + 1 {
            return text.len() - back - 1;
        }
        break;
    }
    text.len()
}

#[inline]
fn control_item(control: Control, payload: &[u8]) -> Result<Item<'_>, Violation> {
    match control {
        Control::Ping => Ok(Item::Ping(payload)),
        Control::Pong => Ok(Item::Pong(payload)),
        Control::Close => close_item(payload),
        Control::Reserved(_) => unreachable!("parse_header refuses unknown opcodes"),
    }
}

fn close_item(payload: &[u8]) -> Result<Item<'_>, Violation> {
    let (code, reason) = match payload {
        [] => {
            return Ok(Item::Close { code: None, reason: "" });
        }
        [_] => return Err(Violation::protocol("close frame of one byte")),
        [a, b, reason @ ..] => (u16::from_be_bytes([*a, *b]), reason),
    };
    let reason = str::from_utf8(reason).map_err(|_| Violation::utf8("close reason is not UTF-8"))?;
    if !frame::is_valid_close_code(code) {
        return Err(Violation::protocol("invalid close code"));
    }
    Ok(Item::Close { code: Some(code), reason })
}

/// Up to `N` bytes in place.
#[derive(Debug)]
struct Few<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Few<N> {
    fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    #[inline]
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, more: &[u8]) {
        self.bytes[self.len..][..more.len()].copy_from_slice(more);
        self.len += more.len();
    }

    #[inline]
    fn clear(&mut self) {
        self.len = 0;
    }
}

/// What an idle decoder may hold: enough for the messages that most feeds cut at the edge of a read.
const KEPT_MAX: usize = 4096;

const NOT_UTF8: Violation = Violation::utf8("text is not UTF-8");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_frames_are_lent_out_of_the_input() {
        let input = frames(&[(0x81, b"tick"), (0x82, b"\x01\x02")]);
        let mut assembler = Assembler::new(LIMIT);
        let mut rest = &input[..];
        let Some(Item::Text(text)) = assembler.next(&mut rest).unwrap() else { panic!("no text") };
        assert_eq!((text, text.as_ptr()), ("tick", input[2..].as_ptr()));
        let Some(Item::Binary(bytes)) = assembler.next(&mut rest).unwrap() else { panic!("no bytes") };
        assert_eq!((bytes, bytes.as_ptr()), (&[1, 2][..], input[8..].as_ptr()));
        assert_eq!(assembler.next(&mut rest), Ok(None));
        assert_eq!(assembler.memory(), 0);
    }

    #[test]
    fn whole_payload_is_lent_though_its_header_came_before() {
        let input = frames(&[(0x81, b"tick")]);
        let mut assembler = Assembler::new(LIMIT);
        assert_eq!(assembler.next(&mut &input[..2]), Ok(None));
        assert_eq!(assembler.next(&mut &input[2..]), Ok(Some(Item::Text("tick"))));
        assert_eq!(assembler.memory(), 0);
    }

    #[test]
    fn cutting_a_stream_anywhere_changes_nothing() {
        let long = "ä€😀 ".repeat(20);
        let input = frames(&[
            (0x01, long.as_bytes()),
            (0x89, b"between"),
            (0x00, b""),
            (0x8A, b""),
            (0x80, "größer".as_bytes()),
            (0x82, &[0xFF; 300]),
            (0x81, long.as_bytes()),
            (0x88, b"\x0F\xA1bye"),
        ]);
        let whole = decode(&[&input]);
        assert_eq!(whole.as_ref().map(Vec::len), Ok(6));
        for cut in 0..input.len() {
            assert_eq!(decode(&[&input[..cut], &input[cut..]]), whole, "cut at {cut}");
        }
        assert_eq!(decode(&input.chunks(1).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn a_message_is_seen_from_afar_if_its_end_has_come() {
        let holds = |list: &[(u8, &[u8])]| holds_message(&frames(list));
        assert!(!holds(&[]));
        assert!(holds(&[(0x81, b"")]));
        assert!(holds(&[(0x89, b"ping"), (0x8A, b""), (0x82, b"1")]));
        assert!(holds(&[(0x01, b"first"), (0x89, b""), (0x80, b"last")]));
        assert!(!holds(&[(0x01, b"first"), (0x00, b"and no last")]));
        assert!(!holds(&[(0x88, b""), (0x81, b"after the end")]));
        assert!(!holds(&[(0xC1, b"no such frame")]));
        let input = frames(&[(0x89, b""), (0x81, &[b'x'; 200])]);
        assert!((0..input.len()).all(|cut| !holds_message(&input[..cut])));
        assert!(!holds_message(&[0x82, 127, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]));
    }

    #[test]
    fn empty_ping_is_an_item() {
        assert_eq!(decode(&[&frames(&[(0x89, b"")])]), Ok(vec!["Ping([])".to_owned()]));
    }

    #[test]
    fn empty_pong_is_an_item() {
        assert_eq!(decode(&[&frames(&[(0x8A, b"")])]), Ok(vec!["Pong([])".to_owned()]));
    }

    #[test]
    fn close_without_code_has_none() {
        assert_eq!(Assembler::new(LIMIT).next(&mut &[0x88, 0][..]), Ok(Some(Item::Close { code: None, reason: "" })));
    }

    #[test]
    fn close_code_and_reason_come_out() {
        for code in [1000, 1001, 1008, 1012, 4001_u16] {
            let input = frames(&[(0x88, &[&code.to_be_bytes(), "für immer".as_bytes()].concat())]);
            let close = Item::Close { code: Some(code), reason: "für immer" };
            assert_eq!(Assembler::new(LIMIT).next(&mut &input[..]), Ok(Some(close)));
        }
    }

    #[test]
    fn zero_length_frames_are_fine_everywhere() {
        let input = frames(&[(0x81, b""), (0x82, b""), (0x01, b""), (0x00, b""), (0x80, b""), (0x02, b""), (0x80, b"x")]);
        let items = ["Text(\"\")", "Binary([])", "Text(\"\")", "Binary([120])"].map(str::to_owned);
        assert_eq!(decode(&[&input]), Ok(items.to_vec()));
    }

    #[test]
    fn control_frame_between_fragments_comes_at_once() {
        let input = frames(&[(0x01, b"a"), (0x89, b"p")]);
        assert_eq!(Assembler::new(LIMIT).next(&mut &input[..]), Ok(Some(Item::Ping(b"p"))));
    }

    #[test]
    fn continuation_of_no_message_is_refused() {
        assert_eq!(decode(&[&[0x80]]), Ok(vec![]));
        assert_eq!(decode(&[&[0x80, 0]]), Err(Violation::protocol("continuation of no message")));
    }

    #[test]
    fn continuation_after_a_finished_message_is_refused() {
        let input = frames(&[(0x01, b"a"), (0x80, b"b"), (0x80, b"c")]);
        assert_eq!(decode(&[&input]), Err(Violation::protocol("continuation of no message")));
    }

    #[test]
    fn new_message_inside_a_fragmented_one_is_refused() {
        let input = frames(&[(0x01, b"a"), (0x81, b"b")]);
        assert_eq!(decode(&[&input]), Err(Violation::protocol("new message inside a fragmented one")));
    }

    #[test]
    fn header_violations_come_through() {
        assert_eq!(decode(&[&[0xC1]]), Err(Violation::protocol("reserved bit set")));
        assert_eq!(decode(&[&[0x81], &[0x85]]), Err(Violation::protocol("masked frame from server")));
    }

    #[test]
    fn close_frame_of_one_byte_is_refused() {
        assert_eq!(decode(&[&frames(&[(0x88, b"\x03")])]), Err(Violation::protocol("close frame of one byte")));
    }

    #[test]
    fn invalid_close_codes_are_refused() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000_u16] {
            let input = frames(&[(0x88, &code.to_be_bytes())]);
            assert_eq!(decode(&[&input]), Err(Violation::protocol("invalid close code")), "{code}");
        }
    }

    #[test]
    fn close_reason_must_be_utf8() {
        let input = frames(&[(0x88, b"\x03\xE8\xFF")]);
        assert_eq!(decode(&[&input]), Err(Violation::utf8("close reason is not UTF-8")));
    }

    #[test]
    fn text_must_be_utf8() {
        assert_eq!(decode(&[&frames(&[(0x81, b"a\xFFb")])]), Err(NOT_UTF8));
        assert_eq!(decode(&[&frames(&[(0x81, b"\xED\xA0\x80")])]), Err(NOT_UTF8));
    }

    #[test]
    fn utf8_cut_inside_a_character_at_a_frame_edge_is_joined() {
        let input = frames(&[(0x01, b"\xF0"), (0x00, b"\x9F"), (0x00, b""), (0x00, b"\x98\x80\xE2"), (0x80, b"\x82\xAC")]);
        assert_eq!(decode(&[&input]), Ok(vec!["Text(\"😀€\")".to_owned()]));
    }

    #[test]
    fn utf8_that_ends_inside_a_character_is_refused() {
        assert_eq!(decode(&[&frames(&[(0x81, b"a\xE2\x82")])]), Err(NOT_UTF8));
        assert_eq!(decode(&[&frames(&[(0x01, b"a\xE2"), (0x80, b"\x82")])]), Err(NOT_UTF8));
    }

    #[test]
    fn text_that_cannot_become_utf8_fails_inside_its_frame() {
        // Autobahn 6.4.3 and 6.4.4: the fourth byte puts the character beyond U+10FFFF, and the frame never ends.
        let start = b"\x81\x7E\x01\x00\xCE\xBA\xE1\xBD\xB9";
        assert_eq!(decode(&[start, b"\xF4"]), Ok(vec![]));
        assert_eq!(decode(&[start, b"\xF4", b"\x90"]), Err(NOT_UTF8));
        assert_eq!(decode(&[start, b"\xF4\x90"]), Err(NOT_UTF8));
        assert_eq!(decode(&[start, b"\xFF"]), Err(NOT_UTF8));
    }

    #[test]
    fn message_over_the_limit_is_refused_by_its_header() {
        let header = [&[0x82, 127][..], &(LIMIT as u64 + 1).to_be_bytes()].concat();
        let mut assembler = Assembler::new(LIMIT);
        assert_eq!(assembler.next(&mut &header[..]), Err(Violation::too_big("message over the size limit")));
        assert_eq!(assembler.memory(), 0);
    }

    #[test]
    fn limit_counts_all_fragments() {
        let exact = frames(&[(0x02, &[0; 6]), (0x80, &[0; 4])]);
        let over = frames(&[(0x02, &[0; 6]), (0x80, &[0; 5])]);
        assert_eq!(Assembler::new(10).next(&mut &exact[..]), Ok(Some(Item::Binary(&[0; 10]))));
        assert_eq!(Assembler::new(10).next(&mut &over[..]), Err(Violation::too_big("message over the size limit")));
    }

    #[test]
    fn buffer_grows_with_the_bytes_that_came() {
        let header = [&[0x82, 127][..], &(LIMIT as u64).to_be_bytes()].concat();
        let mut assembler = Assembler::new(LIMIT);
        assert_eq!(assembler.next(&mut &header[..]), Ok(None));
        assert_eq!(assembler.memory(), 0);
        assert_eq!(assembler.next(&mut &[0; 100][..]), Ok(None));
        assert!(assembler.memory() <= 200, "{}", assembler.memory());
    }

    #[test]
    fn big_buffer_is_given_back() {
        for opcode in [0x01, 0x02] {
            let input = frames(&[(opcode, &[b'x'; 50_000]), (0x80, &[b'y'; 50_000])]);
            let mut assembler = Assembler::new(LIMIT);
            let mut rest = &input[..];
            assert!(matches!(assembler.next(&mut rest), Ok(Some(_))));
            assert!(assembler.memory() >= 100_000);
            assert_eq!(assembler.next(&mut rest), Ok(None));
            assert!(assembler.memory() <= KEPT_MAX, "{}", assembler.memory());
        }
    }

    #[test]
    fn small_buffer_serves_every_cut_message() {
        let mut assembler = Assembler::new(LIMIT);
        let mut buffers = Vec::new();
        for opcode in [0x81, 0x82].into_iter().cycle().take(100) {
            let input = frames(&[(opcode, &[b'x'; 200])]);
            assert_eq!(assembler.next(&mut &input[..150]), Ok(None));
            buffers.push(match assembler.next(&mut &input[150..]).unwrap().unwrap() {
                Item::Text(text) => text.as_ptr(),
                Item::Binary(bytes) => bytes.as_ptr(),
                other => panic!("{other:?}"),
            });
        }
        // The first message may still move the buffer while it grows; it is delivered from where the others are.
        assert!(buffers.iter().all(|buffer| *buffer == buffers[0]), "{buffers:?}");
    }

    const LIMIT: usize = 1 << 20;

    /// The items as text, up to the end of the input or a Close.
    fn decode(pieces: &[&[u8]]) -> Result<Vec<String>, Violation> {
        let mut assembler = Assembler::new(LIMIT);
        let mut items = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            while let Some(item) = assembler.next(&mut input)? {
                items.push(format!("{item:?}"));
            }
            assert_eq!(input, b"");
        }
        Ok(items)
    }

    fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (first, payload) in frames {
            bytes.push(*first);
            match payload.len() {
                length @ 0..=125 => bytes.push(length as u8),
                length @ 126..=0xFFFF => bytes.extend([&[126][..], &(length as u16).to_be_bytes()].concat()),
                length => bytes.extend([&[127][..], &(length as u64).to_be_bytes()].concat()),
            }
            bytes.extend_from_slice(payload);
        }
        bytes
    }
}
