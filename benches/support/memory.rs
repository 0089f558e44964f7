//! A wire that is nothing but memory: frames of one length, for ever.

use std::hint::black_box;
use std::io::{self, Read, Write};

use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};
use zen_websocket::internals::{Assembler, Item};

/// What both sides read at a time.
const READ_SIZE: usize = 8 << 10;

/// Whole frames in about a mebibyte, read round and round, so that reads cut frames wherever they happen to.
pub(crate) struct Endless {
    bytes: Vec<u8>,
    at: usize,
}

/// Our decoder, as the reactor uses it: one buffer, payloads borrowed from it.
pub(crate) struct Ours {
    wire: Endless,
    buffer: Vec<u8>,
    assembler: Assembler,
}

/// The reference.
pub(crate) struct Theirs(WebSocket<Endless>);

impl Ours {
    pub(crate) fn new(payload: usize) -> Self {
        Self { wire: Endless::new(payload), buffer: vec![0; READ_SIZE], assembler: Assembler::new(4 << 20) }
    }

    /// Decodes at least this many messages and returns how many.
    pub(crate) fn decode(&mut self, messages: u64) -> u64 {
        let mut seen = 0;
        while seen < messages {
            let count = self.wire.read(&mut self.buffer).expect("memory does not fail");
            let mut rest = &self.buffer[..count];
            while let Some(item) = self.assembler.next(&mut rest).expect("the frames are right") {
                let Item::Text(text) = item else { panic!("{item:?}") };
                black_box(text);
                seen += 1;
            }
        }
        seen
    }
}

impl Theirs {
    pub(crate) fn new(payload: usize) -> Self {
        let config = WebSocketConfig::default().read_buffer_size(READ_SIZE);
        Self(WebSocket::from_raw_socket(Endless::new(payload), Role::Client, Some(config)))
    }

    /// Decodes this many messages.
    pub(crate) fn decode(&mut self, messages: u64) -> u64 {
        for _ in 0..messages {
            let message = self.0.read().expect("the frames are right");
            let Message::Text(text) = &message else { panic!("{message:?}") };
            black_box(text.as_str());
        }
        messages
    }
}

impl Endless {
    fn new(payload: usize) -> Self {
        let frame = text_frame(payload);
        Self { bytes: frame.repeat((1 << 20) / frame.len() + 1), at: 0 }
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.bytes[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at = (self.at + count) % self.bytes.len();
        Ok(count)
    }
}

impl Write for Endless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A text frame of a server.
pub(crate) fn text_frame(payload: usize) -> Vec<u8> {
    let mut frame = vec![0x81];
    match payload {
        0..=125 => frame.push(payload as u8),
        126..=0xFFFF => {
            frame.push(126);
            frame.extend_from_slice(&(payload as u16).to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(payload as u64).to_be_bytes());
        }
    }
    frame.extend(b"{\"price\":1234.5}".iter().cycle().take(payload));
    frame
}
