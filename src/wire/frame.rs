//! One WebSocket frame as bytes: reads the header of a frame from the peer, writes a masked frame of ours (RFC 6455 §5.2–§5.5).

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::recorder::FrameKind;

/// Why a peer's bytes break RFC 6455 or our limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Goes into our Close frame: 1002 (protocol error), 1007 (not UTF-8) or 1009 (too big).
    pub code: u16,
    /// Says what was wrong; short enough for a Close frame.
    pub reason: &'static str,
}

impl Violation {
    pub(crate) const fn protocol(reason: &'static str) -> Self {
        Self { code: 1002, reason }
    }

    pub(crate) const fn utf8(reason: &'static str) -> Self {
        Self { code: 1007, reason }
    }

    pub(crate) const fn too_big(reason: &'static str) -> Self {
        Self { code: 1009, reason }
    }
}

/// The header of one frame that a client may receive: whoever holds one need not check it again.
///
/// The opcode is a known one, no RSV bit is set, the frame is not masked, a control frame is final and at most 125 bytes long, the length
/// is encoded in the fewest bytes and lies below 2⁶³.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the payload is; never one of the reserved kinds.
    pub opcode: OpCode,
    /// Whether the message ends with this frame.
    pub is_final: bool,
    /// Bytes of payload that follow.
    pub length: u64,
    /// Bytes the header itself took: 2, 4 or 10.
    pub size: usize,
}

/// The longest header of any frame: two bytes, eight of length and, in frames of ours, four of key.
pub const HEADER_MAX: usize = 14;

/// Reads the header at the front of `input`; `None` if it has not come whole.
///
/// Read by hand because tungstenite's `FrameHeader::parse` takes 16 ns instead of 5 and judges nothing before the whole length came.
///
/// # Errors
///
/// The first violation; one that the bytes at hand already show is reported without waiting for the rest of the header.
#[inline]
pub fn parse_header(input: &[u8]) -> Result<Option<Header>, Violation> {
    let Some(&first) = input.first() else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(Violation::protocol("reserved bit set"));
    }
    let opcode = OpCode::from(first & 0x0F);
    if let OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) = opcode {
        return Err(Violation::protocol("unknown opcode"));
    }
    let is_control = matches!(opcode, OpCode::Control(_));
    let is_final = first & 0x80 != 0;
    if is_control && !is_final {
        return Err(Violation::protocol("fragmented control frame"));
    }

    let Some(&second) = input.get(1) else {
        return Ok(None);
    };
    if second & 0x80 != 0 {
        return Err(Violation::protocol("masked frame from server"));
    }
    if is_control && second > 125 {
        return Err(Violation::protocol("control frame longer than 125 bytes"));
    }
    let (length, length_min, size) = match (second, input) {
        (0..=125, _) => (u64::from(second), 0, 2),
        (126, [_, _, a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 126, 4),
        (127, [_, _, a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 0x1_0000, 10),
        _ => return Ok(None),
    };
    if length < length_min {
        return Err(Violation::protocol("frame length not in its shortest form"));
    }
    if length >> 63 != 0 {
        return Err(Violation::protocol("frame length of 2^63 or more"));
    }
    Ok(Some(Header { opcode, is_final, length, size }))
}

/// Appends one final frame, masked with `key`.
pub fn encode(opcode: OpCode, key: [u8; 4], payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(HEADER_MAX + payload.len());
    out.push(0x80 | u8::from(opcode));
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    mask(&mut out[start..], key);
}

/// How many bytes [`encode`] appends for a payload of this length.
pub fn size(payload: usize) -> usize {
    let header = match payload {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    header + 4 + payload
}

/// What a frame is, for those who record it.
pub(crate) fn kind(opcode: OpCode) -> FrameKind {
    match opcode {
        OpCode::Control(Control::Ping) => FrameKind::Ping,
        OpCode::Control(Control::Pong) => FrameKind::Pong,
        OpCode::Control(_) => FrameKind::Close,
        OpCode::Data(Data::Binary) => FrameKind::Binary,
        OpCode::Data(_) => FrameKind::Text,
    }
}

/// The payload of a Close frame. Without a code it is empty, whatever the reason (RFC 6455 §5.5.1); a reason of more than 123 bytes is
/// cut between two characters.
pub fn close_payload(code: Option<u16>, reason: &str) -> Vec<u8> {
    let Some(code) = code else { return Vec::new() };
    let mut cut = reason.len().min(CONTROL_MAX - 2);
    while !reason.is_char_boundary(cut) {
        cut -= 1;
    }
    [&code.to_be_bytes(), &reason.as_bytes()[..cut]].concat()
}

/// The longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_MAX: usize = 125;

/// Draws a mask key that the peer cannot foretell (RFC 6455 §5.3, §10.3): one word out of the thread's CSPRNG, which makes 64 at a time.
#[inline]
pub fn next_key() -> [u8; 4] {
    rand::random::<u32>().to_ne_bytes()
}

/// Whether a peer may put `code` into a Close frame (RFC 6455 §7.4 and IANA's registry, which added 1012–1014).
pub fn is_valid_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Applies `key` in words of eight bytes, which the compiler turns into vector instructions.
fn mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tungstenite::protocol::frame::FrameHeader;

    use super::*;

    #[test]
    fn lengths_are_read_in_their_three_forms() {
        let binary = |length, size| Ok(Some(Header { opcode: BINARY, is_final: true, length, size }));
        assert_eq!(parse_header(&[0x82, 125]), binary(125, 2));
        assert_eq!(parse_header(&[0x82, 126, 0, 126]), binary(126, 4));
        assert_eq!(parse_header(&[0x82, 126, 0xFF, 0xFF]), binary(0xFFFF, 4));
        assert_eq!(parse_header(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]), binary(0x1_0000, 10));
        assert_eq!(parse_header(&[0x82, 127, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]), binary(u64::MAX >> 1, 10));
    }

    #[test]
    fn every_opcode_is_read_or_refused() {
        let known: Vec<u8> = (0..16).filter(|opcode| parse_header(&[0x80 | opcode, 0]).is_ok()).collect();
        assert_eq!(known, [0, 1, 2, 8, 9, 10]);
        assert_eq!(refused(&[0x83]), "unknown opcode");
        assert_eq!(refused(&[0x8B]), "unknown opcode");
    }

    #[test]
    fn header_cut_anywhere_waits_for_more() {
        for whole in [&[0x02, 5][..], &[0x81, 126, 1, 0], &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]] {
            for cut in 0..whole.len() {
                assert_eq!(parse_header(&whole[..cut]), Ok(None), "{cut} bytes of {whole:?}");
            }
        }
    }

    #[test]
    fn compressed_frame_nobody_negotiated_is_refused_at_its_first_byte() {
        assert_eq!(refused(&[0xC1]), "reserved bit set");
    }

    #[test]
    fn other_reserved_bits_are_refused() {
        assert_eq!(refused(&[0xA1]), "reserved bit set");
        assert_eq!(refused(&[0x91]), "reserved bit set");
    }

    #[test]
    fn masked_frame_is_refused_before_its_key_came() {
        assert_eq!(refused(&[0x81, 0x80]), "masked frame from server");
    }

    #[test]
    fn fragmented_control_frame_is_refused() {
        assert_eq!(refused(&[0x09]), "fragmented control frame");
    }

    #[test]
    fn oversize_control_frame_is_refused_before_its_length_came() {
        assert_eq!(refused(&[0x89, 126]), "control frame longer than 125 bytes");
        assert_eq!(refused(&[0x88, 127]), "control frame longer than 125 bytes");
    }

    #[test]
    fn length_in_more_bytes_than_needed_is_refused() {
        assert_eq!(refused(&[0x82, 126, 0, 125]), "frame length not in its shortest form");
        assert_eq!(refused(&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]), "frame length not in its shortest form");
    }

    #[test]
    fn length_of_2_to_63_is_refused() {
        assert_eq!(refused(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]), "frame length of 2^63 or more");
    }

    #[test]
    fn encoded_frames_are_what_tungstenite_reads() {
        for length in [0, 1, 7, 8, 9, 125, 126, 127, 1000, 0xFFFF, 0x1_0000, 100_003] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut out = b"before".to_vec();
            encode(BINARY, KEY, &payload, &mut out);
            let mut cursor = Cursor::new(&out[6..]);
            let header = FrameHeader { opcode: BINARY, mask: Some(KEY), ..FrameHeader::default() };
            assert_eq!(FrameHeader::parse(&mut cursor).unwrap(), Some((header.clone(), length as u64)));
            // It would read a longer header too.
            assert_eq!(cursor.position() as usize, header.len(length as u64));
            let start = 6 + cursor.position() as usize;
            assert_eq!(unmasked(&out[start..]), payload);
        }
    }

    #[test]
    fn close_carries_code_and_reason() {
        assert_eq!(close_payload(Some(1001), "bye"), b"\x03\xE9bye");
    }

    #[test]
    fn close_without_code_is_empty() {
        assert_eq!(close_payload(None, "bye"), b"");
    }

    #[test]
    fn close_reason_is_cut_between_characters() {
        let reason = "é".repeat(100);
        assert_eq!(close_payload(Some(4000), &reason)[2..], reason.as_bytes()[..122]);
    }

    #[test]
    fn close_codes_a_peer_may_send() {
        let valid: Vec<u16> = (0..=u16::MAX).filter(|code| is_valid_close_code(*code)).collect();
        let expected: Vec<u16> = (1000..=1003).chain(1007..=1014).chain(3000..=4999).collect();
        assert_eq!(valid, expected);
    }

    #[test]
    fn keys_differ() {
        let mut keys: Vec<_> = (0..100).map(|_| next_key()).collect();
        keys.sort_unstable();
        keys.dedup();
        // Two equal ones among a hundred come once in a million runs; three never.
        assert!(keys.len() >= 99, "{keys:?}");
    }

    const BINARY: OpCode = OpCode::Data(Data::Binary);
    const KEY: [u8; 4] = [0x11, 0x22, 0x44, 0x88];

    fn refused(input: &[u8]) -> &'static str {
        let violation = parse_header(input).unwrap_err();
        assert_eq!(violation.code, 1002);
        violation.reason
    }

    fn unmasked(payload: &[u8]) -> Vec<u8> {
        payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key).collect()
    }
}
