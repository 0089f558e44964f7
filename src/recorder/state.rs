//! Changes of state as JSON objects.

use std::time::Duration;

use serde_json::json;

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
            // The wire was open: its close is no part of a login.
            let cause = if let Error::PeerClosed { .. } = cause { cause.to_string() } else { text(cause) };
            json!({ "event": "lost", "cause": cause, "redial_in_ms": redial_in.map(millis) })
        }
        Event::Closed { cause } => json!({ "event": "closed", "cause": cause.as_ref().map(text) }),
    };
    Some(described.to_string())
}

/// As a log line has it, without header values, user info and query values; and without what the venue said when it refused a login or
/// closed a wire in the middle of one, which may repeat a secret.
fn text(error: &Error) -> String {
    match error {
        Error::LoginRefused { .. } => "the venue refused the login".to_owned(),
        Error::PeerClosed { code, .. } => Error::PeerClosed { code: *code, reason: "".into() }.to_string(),
        Error::Exhausted { last: inner, .. } | Error::Lost { cause: inner, .. } => {
            error.to_string().replace(&inner.to_string(), &text(inner))
        }
        other => other.to_string(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

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
    fn what_a_venue_says_to_a_login_is_left_out() {
        let refused = Error::LoginRefused { reason: "key 4711".into(), fatal: true };
        let closed = Error::PeerClosed { code: Some(4001), reason: "key 4711".into() };
        assert_eq!(text(&refused), "the venue refused the login");
        assert_eq!(text(&closed), "the peer closed with code 4001");
        let exhausted = Error::Exhausted { attempts: 3, last: Arc::new(refused.clone()) };
        assert_eq!(text(&exhausted), "gave up after 3 attempts: the venue refused the login");
        let lost = Error::Lost { cause: Arc::new(refused), sent: true };
        assert_eq!(text(&lost), "the wire ended before the reply came: the venue refused the login");
    }

    #[test]
    fn a_close_reason_of_an_open_wire_is_told() {
        let lost = Event::Lost { cause: Error::PeerClosed { code: Some(1012), reason: "soon".into() }, redial_in: None };
        let described = r#"{"cause":"the peer closed with code 1012: soon","event":"lost","redial_in_ms":null}"#;
        assert_eq!(describe(&lost).unwrap(), described);
    }

    #[test]
    fn a_message_is_no_change_of_state_and_a_notice_is_one_without_its_message() {
        assert_eq!(describe(&Event::Message(Message::from_text("tick"))), None);
        assert_eq!(describe(&Event::Notice(Message::from_text("secret"))).unwrap(), r#"{"event":"notice"}"#);
    }
}
