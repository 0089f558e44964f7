//! Changes of state as JSON objects.

use std::time::Duration;

use serde_json::{Value, json};

use crate::error::Error;
use crate::event::Event;

/// Describes an event without its message, which is recorded as the frame it came in; `None` for a message itself.
pub(super) fn describe(event: &Event) -> Option<String> {
    let described = match event {
        Event::Dialing { attempt } => json!({ "event": "dialing", "attempt": attempt }),
        Event::DialFailed { attempt, cause, redial_in } => {
            json!({ "event": "dial_failed", "attempt": attempt, "cause": text(cause), "redial_in_ms": redial_in.map(millis) })
        }
        Event::Open => json!({ "event": "open" }),
        Event::Live => json!({ "event": "live" }),
        Event::Message(_) => return None,
        Event::Gap { channel, missing } => json!({ "event": "gap", "channel": channel.as_deref(), "missing": missing }),
        Event::Rejected { channel, reason } => json!({ "event": "rejected", "channel": &**channel, "reason": &**reason }),
        Event::ChannelSilent { channel, quiet } => {
            json!({ "event": "channel_silent", "channel": &**channel, "quiet_ms": millis(*quiet) })
        }
        Event::Unmatched { id, .. } => json!({ "event": "unmatched", "id": id.to_string() }),
        Event::Request { id, .. } => json!({ "event": "request", "id": id.to_string() }),
        Event::Notice(_) => json!({ "event": "notice" }),
        Event::Unsent { messages, bytes } => json!({ "event": "unsent", "messages": messages, "bytes": bytes }),
        Event::Lost { cause, redial_in } => {
            json!({ "event": "lost", "cause": text(cause), "redial_in_ms": redial_in.map(millis) })
        }
        Event::Closed { cause } => json!({ "event": "closed", "cause": cause.as_ref().map(text) }),
    };
    Some(described.to_string())
}

/// As a log line has it: without header values, user info and query values.
fn text(error: &Error) -> Value {
    error.to_string().into()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Message;

    #[test]
    fn a_loss_tells_its_cause_and_the_pause() {
        let lost = Event::Lost { cause: Error::Disconnected, redial_in: Some(Duration::from_millis(1500)) };
        let described: Value = serde_json::from_str(&describe(&lost).unwrap()).unwrap();
        let cause = "the peer closed the TCP connection without a close frame";
        assert_eq!(described, json!({ "event": "lost", "cause": cause, "redial_in_ms": 1500 }));
    }

    #[test]
    fn a_message_is_no_change_of_state_and_a_notice_is_one_without_its_message() {
        assert_eq!(describe(&Event::Message(Message::from_text("tick"))), None);
        assert_eq!(describe(&Event::Notice(Message::from_text("secret"))).unwrap(), r#"{"event":"notice"}"#);
    }
}
