//! One line of a recording: a JSON object.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::Error as _;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// One entry of a recording.
///
/// ```
/// use zen_websocket::{Content, Direction, Entry};
///
/// let line = r#"{"ts":"2026-11-21T14:51:35.000250Z","dir":"in","type":"text","data":"tick","gen":1}"#;
/// let entry = Entry::parse(line)?;
/// assert_eq!(entry.direction, Direction::In);
/// assert_eq!(entry.content, Content::Text("tick".into()));
/// assert_eq!(entry.generation, Some(1));
/// assert_eq!(entry.to_line(), line);
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The time of day, to the microsecond.
    pub at: SystemTime,
    /// The same by a clock that is never set, since the recorder was opened; `None` in recordings that do not have it.
    pub mono: Option<Duration>,
    /// Which connection of the program that recorded.
    pub connection: Option<u64>,
    /// Which wire of it.
    pub generation: Option<u32>,
    /// Which way it went. What is not a frame counts as `In`.
    pub direction: Direction,
    /// What it was.
    pub content: Content,
    /// Its content was left out or changed, to keep a secret.
    pub masked: bool,
}

/// What an [`Entry`] holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A ping.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A Close frame.
    Close {
        /// RFC 6455 §7.4; `None` if the frame had no code.
        code: Option<u16>,
        /// What was written beside it.
        reason: String,
    },
    /// A change of state: a JSON object whose `"event"` names it.
    State(String),
    /// So many entries are missing here: the writer did not keep up.
    Missing(u64),
}

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the peer.
    In,
    /// To the peer.
    Out,
}

impl Entry {
    /// Reads a line of a recording, with or without the line break.
    ///
    /// Fields beyond `ts`, `dir`, `type` and `data` may be absent, unknown ones are skipped. Where base64 is expected and something else
    /// stands, its bytes are taken as they are.
    ///
    /// # Errors
    ///
    /// [`Error::Json`], which says what is wrong, if the line is not JSON, a field is absent, or its value has no meaning.
    pub fn parse(line: &str) -> Result<Self> {
        Self::from_json(line).map_err(|error| Error::Json(Arc::new(error)))
    }

    fn from_json(line: &str) -> serde_json::Result<Self> {
        let mut fields: Map<String, Value> = serde_json::from_str(line)?;
        let at = text(&mut fields, "ts")?;
        let direction = text(&mut fields, "dir")?;
        let kind = text(&mut fields, "type")?;
        let data = text(&mut fields, "data")?;
        Ok(Self {
            at: humantime::parse_rfc3339(&at).map_err(|error| malformed(format!("ts is {at:?}: {error}")))?,
            mono: number(&fields, "mono_ns")?.map(Duration::from_nanos),
            connection: number(&fields, "conn")?,
            generation: number(&fields, "gen")?
                .map(|number| u32::try_from(number).map_err(|_| malformed(format!("gen is {number}"))))
                .transpose()?,
            direction: match direction.as_str() {
                "in" => Direction::In,
                "out" => Direction::Out,
                _ => return Err(malformed(format!("dir is {direction:?}"))),
            },
            content: match kind.as_str() {
                "text" => Content::Text(data),
                "binary" => Content::Binary(bytes(data)),
                "ping" => Content::Ping(bytes(data)),
                "pong" => Content::Pong(bytes(data)),
                "close" => close(&data)?,
                "state" => Content::State(data),
                "missing" => Content::Missing(data.parse().map_err(|_| malformed(format!("{data:?} are missing")))?),
                _ => return Err(malformed(format!("type is {kind:?}"))),
            },
            masked: fields.get("masked").is_some_and(|masked| *masked == true),
        })
    }

    /// Writes the entry as a line of a recording, without the line break.
    ///
    /// Times are cut to microseconds and to the years 1970 to 9999.
    pub fn to_line(&self) -> String {
        let mut line = Vec::new();
        self.append_to(&mut line);
        String::from_utf8(line).expect("JSON of texts and ASCII is UTF-8")
    }

    pub(super) fn append_to(&self, line: &mut Vec<u8>) {
        let at = humantime::format_rfc3339_micros(self.at.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST));
        let direction = match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        write(line, format_args!(r#"{{"ts":"{at}","dir":"{direction}","type":"{}","data":"#, self.content.name()));
        match &self.content {
            Content::Text(text) | Content::State(text) => append_json(line, text),
            Content::Binary(bytes) | Content::Ping(bytes) | Content::Pong(bytes) => append_base64(line, bytes),
            Content::Close { code, reason } => append_json(line, &json!({ "code": code, "reason": reason }).to_string()),
            Content::Missing(count) => write(line, format_args!("\"{count}\"")),
        }
        if let Content::Binary(_) = self.content {
            line.extend_from_slice(br#","binary":true"#);
        }
        if self.masked {
            line.extend_from_slice(br#","masked":true"#);
        }
        if let Some(mono) = self.mono {
            write(line, format_args!(r#","mono_ns":{}"#, u64::try_from(mono.as_nanos()).unwrap_or(u64::MAX)));
        }
        if let Some(generation) = self.generation {
            write(line, format_args!(r#","gen":{generation}"#));
        }
        if let Some(connection) = self.connection {
            write(line, format_args!(r#","conn":{connection}"#));
        }
        line.push(b'}');
    }
}

impl Content {
    fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Binary(_) => "binary",
            Self::Ping(_) => "ping",
            Self::Pong(_) => "pong",
            Self::Close { .. } => "close",
            Self::State(_) => "state",
            Self::Missing(_) => "missing",
        }
    }

    /// The same kind with nothing in it.
    pub(super) fn to_emptied(&self) -> Self {
        match self {
            Self::Text(_) => Self::Text(String::new()),
            Self::Binary(_) => Self::Binary(Vec::new()),
            Self::Ping(_) => Self::Ping(Vec::new()),
            Self::Pong(_) => Self::Pong(Vec::new()),
            Self::Close { .. } => Self::Close { code: None, reason: String::new() },
            Self::State(_) => Self::State(String::new()),
            Self::Missing(count) => Self::Missing(*count),
        }
    }
}

fn text(fields: &mut Map<String, Value>, name: &'static str) -> serde_json::Result<String> {
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(malformed(format!("{name} is {other}, not a string"))),
        None => Err(serde_json::Error::missing_field(name)),
    }
}

fn number(fields: &Map<String, Value>, name: &str) -> serde_json::Result<Option<u64>> {
    let Some(value) = fields.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    value.as_u64().map(Some).ok_or_else(|| malformed(format!("{name} is {value}")))
}

fn bytes(data: String) -> Vec<u8> {
    BASE64_STANDARD.decode(&data).unwrap_or_else(|_| data.into_bytes())
}

fn close(data: &str) -> serde_json::Result<Content> {
    let mut fields: Map<String, Value> = serde_json::from_str(data)?;
    let code = number(&fields, "code")?
        .map(|code| u16::try_from(code).map_err(|_| malformed(format!("a close code is {code}"))))
        .transpose()?;
    let reason = match fields.remove("reason") {
        Some(Value::String(reason)) => reason,
        None | Some(Value::Null) => String::new(),
        Some(other) => return Err(malformed(format!("a close reason is {other}"))),
    };
    Ok(Content::Close { code, reason })
}

fn malformed(what: String) -> serde_json::Error {
    serde_json::Error::custom(what)
}

fn append_json(line: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(line, text).expect("a text is JSON, and a Vec takes every write");
}

fn append_base64(line: &mut Vec<u8>, bytes: &[u8]) {
    line.push(b'"');
    let start = line.len();
    line.resize(start + bytes.len().div_ceil(3) * 4, 0);
    BASE64_STANDARD.encode_slice(bytes, &mut line[start..]).expect("base64 makes four bytes of three");
    line.push(b'"');
}

fn write(line: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    std::io::Write::write_fmt(line, arguments).expect("a Vec takes every write");
}

/// The last moment that RFC 3339 has four digits for the year of, since 1970.
const LAST: Duration = Duration::new(253_402_300_799, 999_999_999);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(content: Content) -> Entry {
        let at = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        Entry { at, mono: None, connection: None, generation: None, direction: Direction::Out, content, masked: false }
    }

    #[test]
    fn lines_are_what_they_have_always_been() {
        let close = Content::Close { code: Some(1000), reason: "done".into() };
        assert_eq!(
            [Content::Text("a\"\n".into()), Content::Binary(vec![1, 2, 3]), close].map(|content| entry(content).to_line()),
            [
                r#"{"ts":"2023-11-14T22:13:20.000001Z","dir":"out","type":"text","data":"a\"\n"}"#,
                r#"{"ts":"2023-11-14T22:13:20.000001Z","dir":"out","type":"binary","data":"AQID","binary":true}"#,
                r#"{"ts":"2023-11-14T22:13:20.000001Z","dir":"out","type":"close","data":"{\"code\":1000,\"reason\":\"done\"}"}"#,
            ]
        );
    }

    #[test]
    fn a_line_tells_of_the_wire_and_of_masking() {
        let entry = Entry {
            mono: Some(Duration::from_nanos(5)),
            connection: Some(7),
            generation: Some(2),
            masked: true,
            ..entry(Content::Missing(3))
        };
        let line = r#"{"ts":"2023-11-14T22:13:20.000001Z","dir":"out","type":"missing","data":"3","masked":true,"mono_ns":5,"gen":2,"conn":7}"#;
        assert_eq!(entry.to_line(), line);
        assert_eq!(Entry::parse(line).unwrap(), entry);
    }

    #[test]
    fn keys_may_come_in_any_order_with_foreign_ones_among_them() {
        let line = r#"{"binary":true,"data":"AQID","x":[{}],"dir":"in","ts":"2023-11-14T22:13:20.000001Z","type":"binary"}"#;
        let expected = Entry { direction: Direction::In, ..entry(Content::Binary(vec![1, 2, 3])) };
        assert_eq!(Entry::parse(line).unwrap(), expected);
    }

    #[test]
    fn what_is_not_base64_keeps_its_bytes() {
        let line = r#"{"ts":"2023-11-14T22:13:20.000001Z","dir":"out","type":"binary","data":"not base64!","binary":true}"#;
        assert_eq!(Entry::parse(line).unwrap(), entry(Content::Binary(b"not base64!".to_vec())));
    }

    #[test]
    fn malformed_lines_say_what_is_wrong() {
        let error = |line: &str| Entry::parse(line).unwrap_err().to_string();
        let with = |ts: &str, dir: &str, kind: &str, data: &str| {
            error(&format!(r#"{{"ts":{ts},"dir":"{dir}","type":"{kind}","data":{data}}}"#))
        };
        let ts = r#""2023-11-14T22:13:20Z""#;
        assert!(error("{").contains("EOF"), "{}", error("{"));
        assert!(error("[]").contains("expected a map"), "{}", error("[]"));
        assert!(error("{}").contains("missing field `ts`"));
        assert!(error(r#"{"ts":"","dir":"in","type":"text"}"#).contains("missing field `data`"));
        assert!(with(r#""yesterday""#, "in", "text", r#""""#).contains(r#"ts is "yesterday": timestamp format"#));
        assert!(with("5", "in", "text", r#""""#).contains("ts is 5, not a string"));
        assert!(with(ts, "up", "text", r#""""#).contains(r#"dir is "up""#));
        assert!(with(ts, "in", "smoke", r#""""#).contains(r#"type is "smoke""#));
        assert!(with(ts, "in", "missing", r#""some""#).contains(r#""some" are missing"#));
        assert!(with(ts, "in", "close", r#""{\"code\":70000}""#).contains("close code is 70000"));
        assert!(with(ts, "in", "close", r#""bye""#).contains("invalid JSON"));
    }

    #[test]
    fn times_out_of_range_are_clamped() {
        let early = Entry { at: UNIX_EPOCH - Duration::from_secs(1), ..entry(Content::Missing(1)) };
        let late = Entry { at: UNIX_EPOCH + LAST + Duration::from_secs(1), ..entry(Content::Missing(1)) };
        assert!(early.to_line().contains("1970-01-01T00:00:00.000000Z"));
        assert!(late.to_line().contains("9999-12-31T23:59:59.999999Z"));
    }

    fn content() -> impl Strategy<Value = Content> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..50);
        prop_oneof![
            any::<String>().prop_map(Content::Text),
            bytes().prop_map(Content::Binary),
            bytes().prop_map(Content::Ping),
            bytes().prop_map(Content::Pong),
            (any::<Option<u16>>(), any::<String>()).prop_map(|(code, reason)| Content::Close { code, reason }),
            any::<String>().prop_map(Content::State),
            any::<u64>().prop_map(Content::Missing),
        ]
    }

    prop_compose! {
        fn entries()(
            micros in 0..253_402_300_800_000_000_u64,
            mono in any::<Option<u64>>(),
            connection in any::<Option<u64>>(),
            generation in any::<Option<u32>>(),
            is_in in any::<bool>(),
            content in content(),
            masked in any::<bool>(),
        ) -> Entry {
            Entry {
                at: UNIX_EPOCH + Duration::from_micros(micros),
                mono: mono.map(Duration::from_nanos),
                connection,
                generation,
                direction: if is_in { Direction::In } else { Direction::Out },
                content,
                masked,
            }
        }
    }

    proptest! {
        #[test]
        fn every_entry_survives_its_line(entry in entries()) {
            let line = entry.to_line();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(Entry::parse(&line).unwrap(), entry);
        }

        #[test]
        fn no_text_is_too_strange_to_parse(text in any::<String>()) {
            let _ = Entry::parse(&text);
        }

        #[test]
        fn no_cut_or_mended_line_is_too_strange_to_parse(entry in entries(), at in any::<prop::sample::Index>(), with in any::<char>()) {
            let mut line: Vec<char> = entry.to_line().chars().collect();
            let at = at.index(line.len());
            line[at] = with;
            let _ = Entry::parse(&line.iter().collect::<String>());
            let _ = Entry::parse(&line[..at].iter().collect::<String>());
        }
    }
}
