//! What a consumer got when an entry was recorded, rebuilt from the entry.

use std::io;
use std::time::Duration;

use serde_json::Value;

use crate::error::Error;
use crate::event::{Event, Message};
use crate::recorder::{Content, Direction, Entry};

/// The event that a consumer gets for this entry, if any: for a message that came in and for a change of state, unless its content is not
/// known.
pub(super) fn to_event(entry: &Entry) -> Option<Event> {
    match &entry.content {
        _ if entry.masked || entry.direction == Direction::Out => None,
        Content::Text(text) => Some(Event::Message(Message::from_text(text))),
        Content::Binary(bytes) => Some(Event::Message(Message::from_binary(bytes))),
        Content::State(_) => to_change(&entry.content),
        Content::Missing(missing) => Some(Event::Gap { channel: None, missing: *missing }),
        Content::Ping(_) | Content::Pong(_) | Content::Close { .. } => None,
    }
}

/// The change of state that an entry tells of. Those that carry a message (`unmatched`, `request`, `notice`) are none: the message is
/// an entry of its own.
pub(crate) fn to_change(content: &Content) -> Option<Event> {
    let Content::State(text) = content else { return None };
    let state: Value = serde_json::from_str(text).ok()?;
    let text = |key: &str| state[key].as_str().unwrap_or_default();
    let number = |key: &str| state[key].as_u64().unwrap_or_default();
    let size = |key: &str| usize::try_from(number(key)).unwrap_or(usize::MAX);
    let attempt = || u32::try_from(number("attempt")).unwrap_or(u32::MAX);
    let redial_in = || state["redial_in_ms"].as_u64().map(Duration::from_millis);
    Some(match text("event") {
        "dialing" => Event::Dialing { attempt: attempt() },
        "dial_failed" => Event::DialFailed { attempt: attempt(), cause: to_error(text("cause")), redial_in: redial_in() },
        "open" => Event::Open,
        "live" => Event::Live,
        "gap" => Event::Gap { channel: state["channel"].as_str().map(Into::into), missing: number("missing") },
        "rejected" => Event::Rejected { channel: text("channel").into(), reason: text("reason").into() },
        "channel_silent" => {
            Event::ChannelSilent { channel: text("channel").into(), quiet: Duration::from_millis(number("quiet_ms")) }
        }
        "unsent" => Event::Unsent { messages: size("messages"), bytes: size("bytes") },
        "lost" => Event::Lost { cause: to_error(text("cause")), redial_in: redial_in() },
        "closed" => Event::Closed { cause: state["cause"].as_str().map(to_error) },
        _ => return None,
    })
}

/// The cause with this text. A recording has only the text: what cannot be told from it is an [`Error::Io`] that shows it.
fn to_error(text: &str) -> Error {
    let plain = [Error::Closed, Error::Disconnected, Error::InboxFull, Error::Replaced, Error::Stopped];
    if let Some(error) = plain.into_iter().find(|error| error.to_string() == text) {
        return error;
    }
    if let Some(rest) = text.strip_prefix("the peer closed with code ") {
        let (code, reason) = rest.split_once(": ").unwrap_or((rest, ""));
        if let Ok(code) = code.parse() {
            // 1005 is how a frame without a code is shown (RFC 6455 §7.1.5).
            return Error::PeerClosed { code: Some(code).filter(|code| *code != 1005), reason: reason.into() };
        }
    }
    Error::io(io::Error::other(text.strip_prefix("the socket failed: ").unwrap_or(text).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_from_their_texts() {
        let closed = |code, reason: &str| Error::PeerClosed { code, reason: reason.into() };
        let told =
            [Error::Disconnected, Error::Replaced, closed(Some(1012), "at 9: soon"), closed(None, ""), closed(Some(1001), "")];
        for cause in told {
            assert_eq!(format!("{:?}", to_error(&cause.to_string())), format!("{cause:?}"));
        }
        let reset = Error::io(io::Error::other("connection reset"));
        assert_eq!(to_error(&reset.to_string()).to_string(), reset.to_string());
        let other = to_error("the peer is silent: not a byte for 40s");
        assert!(matches!(&other, Error::Io(source) if source.to_string() == "the peer is silent: not a byte for 40s"));
    }

    #[test]
    fn changes_of_state_are_told_from_their_objects() {
        let change = |text: &str| to_change(&Content::State(text.into())).map(|event| format!("{event:?}"));
        let expected = |event: Event| Some(format!("{event:?}"));
        let redial_in = Some(Duration::from_millis(1500));
        assert_eq!(change(r#"{"event":"dialing","attempt":3}"#), expected(Event::Dialing { attempt: 3 }));
        assert_eq!(
            change(r#"{"event":"lost","cause":"replaced on request","redial_in_ms":1500}"#),
            expected(Event::Lost { cause: Error::Replaced, redial_in })
        );
        assert_eq!(change(r#"{"event":"closed","cause":null}"#), expected(Event::Closed { cause: None }));
        let gap = Event::Gap { channel: Some("book".into()), missing: 7 };
        assert_eq!(change(r#"{"event":"gap","channel":"book","missing":7}"#), expected(gap));
        assert_eq!([r#"{"event":"notice"}"#, r#"{"event":"a later invention"}"#, "[]", "{", ""].map(change), [const { None }; 5]);
    }
}
