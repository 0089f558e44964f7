//! What observers are told of the traffic of a connection: sums, about once a second, and nothing per message.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::reactor::shared::Shared;
use crate::telemetry::{self, Signal};
use crate::wire::out::Totals;

/// How often observers are told.
const EVERY: Duration = Duration::from_secs(1);

/// What observers were told, if there are any.
pub(crate) struct Traffic(Option<Box<Told>>);

#[derive(Default)]
struct Told {
    /// When they are told more, if there is more.
    due: Option<Instant>,
    received: Totals,
    sent: Totals,
}

impl Traffic {
    /// Of a connection that begins: what is sent before the first read counts, too.
    pub(crate) fn new() -> Self {
        Self(telemetry::is_wanted(Signal::TRAFFIC).then(Box::default))
    }

    /// When observers are to be told.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.0.as_ref()?.due
    }

    /// Something was read: observers are told within a second.
    pub(crate) fn note(&mut self, at: Instant, shared: &Shared) {
        let is_wanted = telemetry::is_wanted(Signal::TRAFFIC);
        match &mut self.0 {
            Some(told) if is_wanted => _ = told.due.get_or_insert(at + EVERY),
            Some(_) => self.0 = None,
            None if is_wanted => {
                let (received, sent) = totals(shared);
                self.0 = Some(Box::new(Told { due: Some(at + EVERY), received, sent }));
            }
            None => {}
        }
    }

    /// Tells what came and went since the last time.
    pub(crate) fn tell(&mut self, shared: &Shared) {
        let Some(told) = &mut self.0 else { return };
        told.due = None;
        let (received, sent) = totals(shared);
        let before = (mem::replace(&mut told.received, received), mem::replace(&mut told.sent, sent));
        if before != (received, sent) {
            shared.tell(&Signal::Traffic {
                messages_in: received.messages - before.0.messages,
                bytes_in: received.bytes - before.0.bytes,
                messages_out: sent.messages - before.1.messages,
                bytes_out: sent.bytes - before.1.bytes,
            });
        }
    }
}

/// What has been received and sent so far.
fn totals(shared: &Shared) -> (Totals, Totals) {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let received = Totals { messages: count(&shared.counters.messages), bytes: count(&shared.counters.bytes) };
    (received, shared.out.lock().totals())
}
