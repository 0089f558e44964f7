//! Turns what was recorded into lines.

use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::queue::{Chunk, Head, What};
use super::tap::Shared;
use super::{Content, Entry, FrameKind, Mask};
use crate::telemetry::{self, Signal};

/// Makes entries of frames, and lines of entries that the mask has seen.
pub(super) struct Scribe {
    shared: Arc<Shared>,
    has_mask_panicked: bool,
}

/// What the time of day was at an instant.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    day: SystemTime,
    instant: Instant,
}

impl Scribe {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, has_mask_panicked: false }
    }

    pub(super) fn append_lines(&mut self, chunk: &Chunk, clock: Clock, lines: &mut Vec<u8>) {
        let mask = self.shared.recorder.mask.clone();
        for (head, payload) in chunk.entries() {
            let mut entry = self.entry(head, payload, clock);
            match (head.what, &mask) {
                (What::Frame(_) | What::State, Some(mask)) if !head.is_secret => self.mask(&**mask, &mut entry),
                (What::Frame(_) | What::State, _) => {}
                (What::Missing(count), _) => self.handle_overflow(count),
            }
            entry.append_to(lines);
            lines.push(b'\n');
        }
    }

    fn entry(&self, head: &Head, payload: &[u8], clock: Clock) -> Entry {
        let text = || String::from_utf8_lossy(payload).into_owned();
        let content = match head.what {
            What::Frame(FrameKind::Text) => Content::Text(text()),
            What::Frame(FrameKind::Binary) => Content::Binary(payload.to_vec()),
            What::Frame(FrameKind::Ping) => Content::Ping(payload.to_vec()),
            What::Frame(FrameKind::Pong) => Content::Pong(payload.to_vec()),
            What::Frame(FrameKind::Close) => match payload.split_first_chunk() {
                Some((code, reason)) => {
                    let reason = String::from_utf8_lossy(reason).into_owned();
                    Content::Close { code: Some(u16::from_be_bytes(*code)), reason }
                }
                None => Content::Close { code: None, reason: text() },
            },
            What::State => Content::State(text()),
            What::Missing(count) => Content::Missing(count),
        };
        let is_of_a_connection = !matches!(head.what, What::Missing(_));
        Entry {
            at: clock.day_at(head.at),
            mono: Some(head.at.saturating_duration_since(self.shared.started)),
            connection: is_of_a_connection.then_some(head.connection),
            generation: is_of_a_connection.then_some(head.generation),
            direction: head.direction,
            content,
            masked: head.is_secret,
        }
    }

    fn mask(&mut self, mask: &Mask, entry: &mut Entry) {
        let before = entry.clone();
        if !self.has_mask_panicked {
            match panic::catch_unwind(AssertUnwindSafe(|| mask(entry))) {
                Ok(()) => {
                    entry.masked |= entry.content != before.content;
                    return;
                }
                Err(payload) => {
                    // Its own drop might panic.
                    mem::forget(payload);
                    self.has_mask_panicked = true;
                    log::error!("the mask of {} panicked; entries are written without content", self.shared.path.display());
                }
            }
        }
        *entry = Entry { content: before.content.to_emptied(), masked: true, ..before };
    }

    fn handle_overflow(&self, count: u64) {
        log::warn!("{count} entries for {} were dropped, because too many waited", self.shared.path.display());
        telemetry::tell_recorder(&Signal::RecorderDropped { entries: count });
    }
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { day: SystemTime::now(), instant: Instant::now() }
    }

    fn day_at(self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.instant) {
            Some(after) => self.day + after,
            None => self.day - self.instant.duration_since(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_reaches_both_ways() {
        let (second, now) = (Duration::from_secs(1), Instant::now());
        let clock = Clock { day: SystemTime::now(), instant: now + second };
        assert_eq!(clock.day_at(now), clock.day - second);
        assert_eq!(clock.day_at(now + 2 * second), clock.day + second);
    }
}
