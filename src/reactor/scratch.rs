//! Buffers that all connections of a driver use in turn.

use std::any::Any;

use crate::event::Generation;
use crate::reactor::shared::Shared;
use crate::recorder::FrameKind;

/// How much one receive takes from a socket; what bounds how long one connection keeps the others waiting.
const RECEIVE_MAX: usize = 64 << 10;

/// Buffers that all connections of a driver use in turn.
pub(crate) struct Scratch {
    pub(crate) received: Box<[u8]>,
    pub(crate) plain: Box<[u8]>,
    /// A receive has brought something.
    pub(crate) was_filled: bool,
    pub(crate) pongs: Pongs,
    /// Calls may be answered by what is decoded now: looked at after it was received.
    pub(crate) calls_wait: bool,
    /// What the engine's closure panicked with, to be resumed when the turn is over.
    pub(crate) panic: Option<Box<dyn Any + Send>>,
}

/// Payloads of pings to be answered in one write.
#[derive(Default)]
pub(crate) struct Pongs {
    bytes: Vec<u8>,
    lengths: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            received: vec![0; RECEIVE_MAX].into(),
            // A record may have waited inside TLS for its last byte: 16 KiB more than came in.
            plain: vec![0; RECEIVE_MAX + (32 << 10)].into(),
            was_filled: false,
            pongs: Pongs::default(),
            calls_wait: false,
            panic: None,
        }
    }
}

impl Pongs {
    pub(crate) fn push(&mut self, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
        self.lengths.push(payload.len() as u8);
    }

    /// Sends the pongs for all of them, in one write.
    pub(crate) fn answer(&mut self, shared: &Shared, generation: Generation) {
        if self.lengths.is_empty() {
            return;
        }
        if shared.write(|out| out.pong(self.iter())) == Some(true) {
            self.iter().for_each(|payload| shared.log_control(generation, FrameKind::Pong, payload));
        }
        self.bytes.clear();
        self.lengths.clear();
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        self.lengths.iter().map(move |length| {
            let (payload, after) = rest.split_at(usize::from(*length));
            rest = after;
            payload
        })
    }
}
