//! Frames as bytes: whatever a server may send, right or wrong, and the headers of what clients send.

/// One WebSocket frame, as wrong as a test needs it.
///
/// ```
/// use zen_websocket::testkit::Frame;
///
/// assert_eq!(Frame::text("hi").to_bytes(), [0x81, 2, b'h', b'i']);
/// // The first half of a fragmented text message, with a reserved bit that nobody negotiated.
/// assert_eq!(Frame::text("hi").unfinished().rsv(0b100).to_bytes(), [0x41, 2, b'h', b'i']);
/// // A header that announces far more than will ever come.
/// assert_eq!(Frame::binary("").announcing(1 << 40).to_bytes(), [0x82, 127, 0, 0, 1, 0, 0, 0, 0, 0]);
/// ```
#[derive(Clone, Debug)]
pub struct Frame {
    fin: bool,
    rsv: u8,
    opcode: u8,
    mask: Option<[u8; 4]>,
    length: u64,
    long: bool,
    payload: Vec<u8>,
}

impl Frame {
    /// Makes a frame of any opcode, of which only the lower four bits count.
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        let payload = payload.into();
        let length = payload.len() as u64;
        Self { fin: true, rsv: 0, opcode: opcode & 0x0f, mask: None, length, long: false, payload }
    }

    /// Makes a text frame; bytes that are not UTF-8 are welcome.
    pub fn text(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(TEXT, payload)
    }

    /// Makes a binary frame.
    pub fn binary(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(BINARY, payload)
    }

    /// Makes a continuation frame: the second and every later piece of a fragmented message.
    pub fn continuation(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(CONTINUATION, payload)
    }

    /// Makes a ping.
    pub fn ping(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(PING, payload)
    }

    /// Makes a pong.
    pub fn pong(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(PONG, payload)
    }

    /// Makes a close frame with a code and a reason.
    pub fn close(code: u16, reason: &str) -> Self {
        Self::new(CLOSE, close_payload(code, reason))
    }

    /// Leaves the FIN bit off: more frames of the same message follow.
    pub fn unfinished(mut self) -> Self {
        self.fin = false;
        self
    }

    /// Sets the three reserved bits: `0b100` is RSV1, `0b001` RSV3.
    pub fn rsv(mut self, bits: u8) -> Self {
        self.rsv = bits & 0b111;
        self
    }

    /// Masks the payload, which no server may do (RFC 6455 §5.1).
    pub fn masked(mut self, key: [u8; 4]) -> Self {
        self.mask = Some(key);
        self
    }

    /// Announces this payload length instead of the true one.
    pub fn announcing(mut self, length: u64) -> Self {
        self.length = length;
        self
    }

    /// Writes the length in eight bytes even where fewer are enough, which RFC 6455 §5.2 forbids.
    pub fn long_length(mut self) -> Self {
        self.long = true;
        self
    }

    /// The frame as it leaves, for [`Script::glue`](super::Script::glue) or
    /// [`Peer::send_raw`](super::Peer::send_raw).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.payload.len() + 14);
        let first = u8::from(self.fin) << 7 | self.rsv << 4 | self.opcode;
        let masked = u8::from(self.mask.is_some()) << 7;
        push_header(&mut bytes, [first, masked], self.length, self.long);
        let key = self.mask.unwrap_or_default();
        bytes.extend(self.mask.iter().flatten());
        bytes.extend(&self.payload);
        let start = bytes.len() - self.payload.len();
        unmask(&mut bytes[start..], key);
        bytes
    }
}

/// Appends a whole, correct server frame.
pub(super) fn encode(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    push_header(out, [0x80 | opcode, 0], payload.len() as u64, false);
    out.extend_from_slice(payload);
}

pub(super) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// Appends the first two bytes and the length; the mask bit comes with `second`.
fn push_header(out: &mut Vec<u8>, [first, second]: [u8; 2], length: u64, long: bool) {
    match length {
        0..=125 if !long => out.extend([first, second | length as u8]),
        126..=0xffff if !long => {
            out.extend([first, second | 126]);
            out.extend((length as u16).to_be_bytes());
        }
        _ => {
            out.extend([first, second | 127]);
            out.extend(length.to_be_bytes());
        }
    }
}

/// The header of a frame that came from a client.
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) rsv: u8,
    pub(super) opcode: u8,
    pub(super) mask: Option<[u8; 4]>,
    pub(super) length: u64,
    /// Bytes of the header itself.
    pub(super) size: usize,
    /// Whether the length took no more bytes than it needs.
    pub(super) minimal: bool,
}

impl Header {
    /// Reads a header from the front of `bytes`, or `None` if it is not all there yet.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[first, second], rest) = bytes.split_first_chunk()?;
        let (length, wide, least) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 2, 126),
            127 => (u64::from_be_bytes(*rest.first_chunk()?), 8, 0x1_0000),
            short => (u64::from(short), 0, 0),
        };
        let masked = second & 0x80 != 0;
        let mask = if masked { Some(*rest[wide..].first_chunk()?) } else { None };
        Some(Self {
            fin: first & 0x80 != 0,
            rsv: first >> 4 & 0b111,
            opcode: first & 0x0f,
            mask,
            length,
            size: 2 + wide + if masked { 4 } else { 0 },
            minimal: length >= least,
        })
    }
}

/// Applies a mask key; the same call masks and unmasks.
pub(super) fn unmask(payload: &mut [u8], key: [u8; 4]) {
    let mut words = payload.chunks_exact_mut(4);
    for word in &mut words {
        for (byte, key) in word.iter_mut().zip(key) {
            *byte ^= key;
        }
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key) {
        *byte ^= key;
    }
}

pub(super) const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;
