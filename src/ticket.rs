//! How far a message that somebody asks about has come.

use std::sync::atomic::{AtomicU8, Ordering};

/// Follows one message on its way out. Whoever writes it says how far it is, under the lock of the sending half; whoever sent it may
/// take it back until its first byte is made.
///
/// ```text
///   Waiting ── first byte made ──► Begun ── the kernel took the last byte ──► Sent
///   Waiting ── taken back, or its wire ended ──► Withdrawn
/// ```
#[derive(Debug, Default)]
pub struct Ticket(AtomicU8);

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const SENT: u8 = 2;
const WITHDRAWN: u8 = 3;

impl Ticket {
    /// The first byte is about to be made. `false` if the message was taken back.
    pub fn begin(&self) -> bool {
        self.step(WAITING, BEGUN)
    }

    /// The kernel took the last byte.
    pub fn finish(&self) {
        self.step(BEGUN, SENT);
    }

    /// Takes the message back. `false` if its first byte is made already.
    pub fn withdraw(&self) -> bool {
        self.step(WAITING, WITHDRAWN)
    }

    /// Whether the kernel took the last byte, so that the peer may have the message.
    pub fn is_sent(&self) -> bool {
        self.0.load(Ordering::Acquire) == SENT
    }

    /// Whether the message was taken back.
    pub fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Acquire) == WITHDRAWN
    }

    /// Whether the message may still reach the peer, or has.
    pub fn may_arrive(&self) -> bool {
        matches!(self.0.load(Ordering::Acquire), BEGUN | SENT)
    }

    fn step(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_back_until_its_first_byte_is_made() {
        let (taken_back, begun) = (Ticket::default(), Ticket::default());
        assert!(taken_back.withdraw() && !taken_back.begin() && !taken_back.may_arrive());
        assert!(begun.begin() && !begun.withdraw() && begun.may_arrive() && !begun.is_sent());
        begun.finish();
        assert!(begun.is_sent() && !begun.withdraw());
    }
}
