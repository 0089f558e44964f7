//! RFC 6455 frames by hand, for the server and for the contenders that do everything themselves.

use std::ops::Range;

pub(crate) const TEXT: u8 = 0x1;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

/// A whole frame at the front of a buffer.
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) key: Option<[u8; 4]>,
    /// Where in the buffer; it ends where the frame ends.
    pub(crate) payload: Range<usize>,
}

/// The frame at the front, if it has come whole.
pub(crate) fn parse(input: &[u8]) -> Option<Frame> {
    let (first, second) = (*input.first()?, *input.get(1)?);
    let (mut start, length) = match second & 0x7F {
        126 => (4, usize::from(u16::from_be_bytes(*input.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*input.get(2..)?.first_chunk()?) as usize),
        length => (2, usize::from(length)),
    };
    let mut key = None;
    if second & 0x80 != 0 {
        key = Some(*input.get(start..)?.first_chunk()?);
        start += 4;
    }
    let payload = start..start + length;
    (payload.end <= input.len()).then_some(Frame { opcode: first & 0x0F, key, payload })
}

/// Appends a frame; clients mask theirs.
pub(crate) fn append(opcode: u8, payload: &[u8], key: Option<[u8; 4]>, output: &mut Vec<u8>) {
    let mask = if key.is_some() { 0x80 } else { 0 };
    output.push(0x80 | opcode);
    match payload.len() {
        length @ 0..=125 => output.push(mask | length as u8),
        length @ 126..=0xFFFF => {
            output.push(mask | 126);
            output.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            output.push(mask | 127);
            output.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    output.extend_from_slice(key.as_ref().map_or(&[], |key| key));
    let start = output.len();
    output.extend_from_slice(payload);
    if let Some(key) = key {
        apply_mask(&mut output[start..], key);
    }
}

pub(crate) fn apply_mask(bytes: &mut [u8], key: [u8; 4]) {
    let word = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (chunks, rest) = bytes.as_chunks_mut();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}
