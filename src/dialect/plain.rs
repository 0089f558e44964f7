//! No dialect in particular.

use crate::dialect::{Dialect, Inbound, peek};

/// Nothing is known of the messages; the default. Messages pass unread, except while a raw request waits for its reply
/// ([`Client::request_raw`](crate::Client::request_raw)): then their `"id"` is looked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Dialect for Plain {
    fn name(&self) -> &str {
        "plain"
    }

    fn reads(&self) -> bool {
        false
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        match peek::field(text, "id").and_then(peek::id) {
            Some(id) => Inbound::Reply { id },
            None => Inbound::Message,
        }
    }
}
