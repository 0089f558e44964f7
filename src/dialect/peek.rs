//! Reads the front of JSON texts without parsing the rest.
//!
//! Most of what a [dialect](crate::Dialect) must know of a text stands in the first few dozen bytes. These functions walk an
//! object from its front and stop at what they look for, so the length of the rest costs nothing:
//!
//! ```
//! use zen_websocket::{Id, peek};
//!
//! let text = r#"{"id": 7, "result": {"order": {"state": "open"}}}"#;
//! assert_eq!(peek::field(text, "id").and_then(peek::id), Some(Id::Number(7)));
//! assert_eq!(peek::path(text, &["result", "order", "state"]), Some(r#""open""#));
//! ```
//!
//! They take any text and never panic. They do not validate what they pass by: of an array or object only brackets and strings
//! are looked at, and what comes after the answer not at all. Keys are compared as they are written, so a key that is spelt with
//! escapes is not found. Of keys that occur twice the first counts.

use std::borrow::Cow;
use std::mem;

use memchr::memchr2;

use crate::dialect::Id;

/// The keys of an object, as written between their quotes, each with its value as written.
///
/// The object is read while the iterator is advanced. It ends without a word at the first thing that is not JSON, and at once if
/// the text is not an object.
///
/// ```
/// use zen_websocket::peek;
///
/// let text = r#" { "a" : [1, 2], "b" : "x\ny" } "#;
/// assert_eq!(peek::keys(text).collect::<Vec<_>>(), [("a", "[1, 2]"), ("b", r#""x\ny""#)]);
/// assert_eq!(peek::keys("[1, 2]").next(), None);
/// ```
pub fn keys(text: &str) -> Keys<'_> {
    Keys { cursor: Cursor::new(text) }
}

/// The value of a key of an object, as written.
///
/// ```
/// use zen_websocket::peek;
///
/// assert_eq!(peek::field(r#"{"e":"trade","p":"0.5"}"#, "p"), Some(r#""0.5""#));
/// assert_eq!(peek::field(r#"{"e":{"p":1}}"#, "p"), None);
/// ```
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    Cursor::new(text)?.seek(key)?.value()
}

/// The value of a key of an object within objects, as written. What follows it in the objects around it is not read.
///
/// ```
/// use zen_websocket::peek;
///
/// assert_eq!(peek::path(r#"{"params":{"type":"heartbeat"}}"#, &["params", "type"]), Some(r#""heartbeat""#));
/// ```
pub fn path<'a>(text: &'a str, keys: &[&str]) -> Option<&'a str> {
    let (last, outer) = keys.split_last()?;
    let object = outer.iter().try_fold(Cursor::new(text)?, |cursor, key| cursor.seek(key)?.enter())?;
    object.seek(last)?.value()
}

/// The text of a JSON string, `None` if the value is another one. It is copied only if it has escapes.
///
/// ```
/// use zen_websocket::peek;
///
/// assert_eq!(peek::string(r#""BTC\/USD""#).as_deref(), Some("BTC/USD"));
/// assert_eq!(peek::string("1"), None);
/// ```
pub fn string(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(value).ok().map(Cow::Owned)
}

/// The id that a JSON integer or string stands for, `None` if the value is another one or the integer no `i64`.
///
/// ```
/// use zen_websocket::{Id, peek};
///
/// assert_eq!(["1", r#""a""#].map(peek::id), [Some(Id::from(1)), Some(Id::from("a"))]);
/// assert_eq!(["null", "1.5", "[1]"].map(peek::id), [None, None, None]);
/// ```
pub fn id(value: &str) -> Option<Id> {
    if value.starts_with('"') {
        return string(value).map(|text| Id::Text(text.into()));
    }
    let digits = value.strip_prefix('-').unwrap_or(value);
    let is_json = digits == "0" || digits.starts_with(|digit: char| matches!(digit, '1'..='9'));
    if is_json { value.parse().ok().map(Id::Number) } else { None }
}

/// Iterates over an object; see [`keys`].
#[derive(Clone, Debug)]
pub struct Keys<'a> {
    cursor: Option<Cursor<'a>>,
}

impl<'a> Iterator for Keys<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let cursor = self.cursor.as_mut()?;
        Some((cursor.next_key()?, cursor.value()?))
    }
}

impl std::iter::FusedIterator for Keys<'_> {}

/// A place in an object. A value is passed by only when it is asked for or the next key is, so stopping at a key costs nothing
/// for its value.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    place: Place,
}

/// What a [`Cursor`] stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The first key, or the end of an empty object.
    Front,
    /// The value of the key given last.
    Value,
    /// A comma, or the end.
    After,
    /// What follows the object.
    End,
    /// Something that is not JSON.
    Broken,
}

impl<'a> Cursor<'a> {
    /// Stands at the first key of an object; `None` if the text does not begin with one.
    #[inline]
    pub(crate) fn new(text: &'a str) -> Option<Self> {
        let at = skip_space(text.as_bytes(), 0);
        (text.as_bytes().get(at) == Some(&b'{')).then_some(Self { text, at: at + 1, place: Place::Front })
    }

    /// Goes on to the value of a key.
    pub(crate) fn seek(mut self, key: &str) -> Option<Self> {
        while self.next_key()? != key {}
        Some(self)
    }

    /// Right after a key: into the object that is its value, to leave the one around it for good.
    pub(crate) fn enter(self) -> Option<Self> {
        Self::new(self.rest())
    }

    /// The next key, without its quotes. `None` at the end and at the first thing that is not JSON, then for ever.
    #[inline]
    pub(crate) fn next_key(&mut self) -> Option<&'a str> {
        if self.place == Place::Value {
            self.value()?;
        }
        if matches!(self.place, Place::End | Place::Broken) {
            return None;
        }
        let bytes = self.text.as_bytes();
        let place = mem::replace(&mut self.place, Place::Broken);
        let mut at = skip_space(bytes, self.at);
        match (place, bytes.get(at)?) {
            (_, b'}') => {
                (self.at, self.place) = (at + 1, Place::End);
                return None;
            }
            (Place::After, b',') => at = skip_space(bytes, at + 1),
            (Place::After, _) => return None,
            _ => {}
        }
        let at = skip(bytes, at, b'"')?;
        let end = string_end(bytes, at)?;
        let colon = skip_space(bytes, end + 1);
        self.at = skip_space(bytes, skip(bytes, colon, b':')?);
        self.place = Place::Value;
        self.text.get(at..end)
    }

    /// The value of the key given last, as written; only once.
    #[inline]
    pub(crate) fn value(&mut self) -> Option<&'a str> {
        if self.place != Place::Value {
            return None;
        }
        self.place = Place::Broken;
        let end = value_end(self.text.as_bytes(), self.at)?;
        let value = self.text.get(self.at..end)?;
        (self.at, self.place) = (end, Place::After);
        Some(value)
    }

    /// What has not been read; right after a key it begins with its value.
    pub(crate) fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Whether the object has been read to its end and nothing but white space follows.
    pub(crate) fn is_complete(&self) -> bool {
        self.place == Place::End && skip_space(self.text.as_bytes(), self.at) == self.text.len()
    }
}

/// The first place from `at` on that is not white space.
#[inline]
fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(at) {
        at += 1;
    }
    at
}

/// The place after a byte that must come next.
#[inline]
fn skip(bytes: &[u8], at: usize, expected: u8) -> Option<usize> {
    (bytes.get(at) == Some(&expected)).then_some(at + 1)
}

/// The end of the value that begins at `at`; `None` if there is none or it does not end.
#[inline]
fn value_end(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        b'"' => Some(string_end(bytes, at + 1)? + 1),
        b'{' | b'[' => nested_end(bytes, at),
        _ => {
            let rest = bytes.get(at..)?;
            // A number may go on beyond the end of a text that was cut, so something must follow.
            let length = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'))?;
            is_scalar(&rest[..length]).then_some(at + length)
        }
    }
}

/// Tells a number by its letters only.
fn is_scalar(value: &[u8]) -> bool {
    match value.first() {
        Some(b'-' | b'0'..=b'9') => value.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')),
        _ => matches!(value, b"true" | b"false" | b"null"),
    }
}

/// The place of the quote that closes a string whose first byte is at `at`.
#[inline]
fn string_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += find_quote_or_escape(bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

#[inline]
fn find_quote_or_escape(bytes: &[u8]) -> Option<usize> {
    let near = bytes.as_chunks().0.iter().take(NEAR);
    for (index, &word) in near.enumerate() {
        let word = u64::from_le_bytes(word);
        let found = equal(word, b'"') | equal(word, b'\\');
        if found != 0 {
            return Some(index * size_of::<u64>() + found.trailing_zeros() as usize / 8);
        }
    }
    memchr2(b'"', b'\\', bytes)
}

/// The place after the bracket that closes the one at `at`. Which kind of bracket it is does not matter.
fn nested_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    let (mut depth, mut in_string) = (0, false);
    loop {
        while let Some((&word, _)) = bytes.get(at..)?.split_first_chunk() {
            let word = Word::new(word, in_string);
            if word.has_escape || word.closing >= depth {
                break;
            }
            depth = depth + word.opening - word.closing;
            in_string = word.ends_in_string;
            at += size_of::<u64>();
        }
        let byte_by_byte = at + size_of::<u64>();
        while at < byte_by_byte {
            match *bytes.get(at)? {
                b'"' => in_string = !in_string,
                b'\\' if in_string => at += 1,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }
}

/// Eight bytes of JSON, counted together: 4.6 KiB of a book take 2.2 µs instead of 5.7 one by one.
struct Word {
    has_escape: bool,
    /// Brackets outside of strings.
    opening: u64,
    closing: u64,
    ends_in_string: bool,
}

impl Word {
    #[inline]
    fn new(bytes: [u8; 8], in_string: bool) -> Self {
        let word = u64::from_le_bytes(bytes);
        // The two kinds of brackets differ in one bit.
        let bracket = word | (EACH * 0x20);
        // The product has in each byte the sum of the bytes up to it; an odd number of quotes means within a string.
        let inside = (equal(word, b'"').wrapping_mul(EACH) + EACH * u64::from(in_string)) & EACH;
        Self {
            has_escape: equal(word, b'\\') != 0,
            opening: sum(equal(bracket, b'{') & !inside),
            closing: sum(equal(bracket, b'}') & !inside),
            ends_in_string: inside >> 56 != 0,
        }
    }
}

/// Has a 1 in each byte that is equal to `byte`.
#[inline]
fn equal(word: u64, byte: u8) -> u64 {
    let (difference, low) = (word ^ (EACH * u64::from(byte)), EACH * 0x7f);
    // The highest bit of a byte of the sum is set if any lower one of the difference is.
    !(((difference & low) + low) | difference | low) >> 7
}

/// The sum of the bytes of a word.
#[inline]
fn sum(word: u64) -> u64 {
    word.wrapping_mul(EACH) >> 56
}

/// A 1 in each byte.
const EACH: u64 = 0x0101_0101_0101_0101;

/// How many words of a string are looked at before memchr is called: most strings are shorter, and the call costs as much as
/// that.
const NEAR: usize = 3;

#[cfg(test)]
pub(crate) mod tests {
    use std::hint::black_box;

    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    #[test]
    fn keys_and_values_come_as_written() {
        let text = r#" {"a":"x,\"}" , "b\n" : [1,{"c":"]"}],"é":-1.5e3, "":null , "t":true} "#;
        let expected = [("a", r#""x,\"}""#), (r"b\n", r#"[1,{"c":"]"}]"#), ("é", "-1.5e3"), ("", "null"), ("t", "true")].to_vec();
        assert_eq!(keys(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn keys_end_at_the_first_thing_that_is_not_json() {
        let names = |text: &'static str| keys(text).map(|(key, _)| key).collect::<String>();
        for text in ["", "[1]", "1", r#""{}""#, "{", "{}", "{,}", "{a:1}", r#"{"a"}"#, r#"{"a":}"#, r#"{"a":1"#, r#"{"a":[1"#] {
            assert_eq!(names(text), "", "{text}");
        }
        for text in
            [r#"{"a":1 2,"b":1}"#, r#"{"a":1,,"b":1}"#, r#"{"a":1 "b":1}"#, r#"{"a":1]"b":1}"#, r#"{"a":1,"b":nul,"c":1}"#]
        {
            assert_eq!(names(text), "a", "{text}");
        }
        assert_eq!(names(r#"{"a":1},"b":2}"#), "a");
    }

    #[test]
    fn nothing_comes_after_the_end() {
        for text in [r#"{"a":1} "b":2}"#, r#"{"a":"x"!"b":2}"#] {
            let mut keys = keys(text);
            assert!(keys.next().is_some());
            assert!((0..3).all(|_| keys.next().is_none()), "{text}");
        }
    }

    #[test]
    fn the_first_of_equal_keys_counts() {
        assert_eq!(field(r#"{"a":1,"a":2}"#, "a"), Some("1"));
    }

    #[test]
    fn what_follows_the_answer_is_not_read() {
        assert_eq!(field(r#"{"a":1,"b":"#, "a"), Some("1"));
        assert_eq!(path(r#"{"a":{"b":{"c":"d" rubbish"#, &["a", "b", "c"]), Some(r#""d""#));
    }

    #[test]
    fn a_path_leads_through_objects_only() {
        let text = r#"{"x":{"b":1},"a":{"x":[{"b":2}],"b":3}}"#;
        assert_eq!(path(text, &["a", "b"]), Some("3"));
        assert_eq!(path(text, &["a"]), Some(r#"{"x":[{"b":2}],"b":3}"#));
        for keys in [&["a", "x", "b"][..], &["b"], &["a", "b", "c"], &["a", "c"], &[]] {
            assert_eq!(path(text, keys), None);
        }
    }

    #[test]
    fn a_number_that_may_go_on_is_no_value() {
        assert_eq!(field(r#"{"id":12"#, "id"), None);
        assert_eq!(field(r#"{"id":12}"#, "id"), Some("12"));
    }

    #[test]
    fn strings_are_borrowed_unless_they_have_escapes() {
        assert!(matches!(string(r#""BTC/é""#), Some(Cow::Borrowed("BTC/é"))));
        assert!(matches!(string(r#""\u00e9\"""#), Some(Cow::Owned(text)) if text == "é\""));
        for value in ["", "\"", "a", "1", "null", r#""a"#, r#"a""#, r#""a"b""#, r#""\""#, r#""\x""#, "\"\n\"", r#"["a"]"#] {
            assert_eq!(string(value), None, "{value}");
        }
    }

    #[test]
    fn ids_are_integers_and_strings() {
        let number = |number: i64| Some(Id::Number(number));
        assert_eq!(["0", "-12", "9223372036854775807"].map(id), [number(0), number(-12), number(i64::MAX)]);
        assert_eq!([r#""""#, r#""1""#, r#""\n""#].map(id), ["", "1", "\n"].map(|text| Some(Id::from(text))));
        for value in ["", "-", "+1", "01", "1.0", "1e3", "9223372036854775808", "null", "true", "{}", "[1]", "1 ", "٣"] {
            assert_eq!(id(value), None, "{value}");
        }
    }

    #[test]
    fn a_long_string_or_a_deep_nest_is_passed_by() {
        let deep = 100_000;
        let text = format!(r#"{{"s":"{}\"","n":{}{},"z":1}}"#, "x".repeat(1000), "[".repeat(deep), "]".repeat(deep));
        assert_eq!(field(&text, "z"), Some("1"));
    }

    proptest! {
        #[test]
        fn keys_agree_with_serde_json(text in spelled(any_object())) {
            let mut read = Map::new();
            for (key, value) in keys(&text) {
                let key = serde_json::from_str(&format!("\"{key}\"")).unwrap();
                prop_assert_eq!(value, value.trim());
                read.insert(key, serde_json::from_str(value).unwrap());
            }
            prop_assert_eq!(Value::Object(read), serde_json::from_str::<Value>(&text).unwrap());
        }

        #[test]
        fn strings_agree_with_serde_json(inner in r#"([a-zé" \x00]|\\["\\n]|\\u00[0-9a-f]{2}){0,20}"#) {
            let value = format!("\"{inner}\"");
            prop_assert_eq!(string(&value).map(Cow::into_owned), serde_json::from_str::<String>(&value).ok());
        }

        #[test]
        fn any_text_is_taken(text in any_text()) {
            read_all(&text);
        }

        #[test]
        fn any_truncation_is_taken(text in spelled(any_object())) {
            for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
                read_all(&text[..end]);
            }
        }
    }

    fn read_all(text: &str) {
        for (key, value) in keys(text) {
            assert!(field(text, key).is_some());
            black_box((string(value), id(value), path(text, &[key, key])));
        }
        black_box((string(text), id(text), path(text, &["a", "b"])));
    }

    /// Rubbish, and what looks like JSON for a while.
    pub(crate) fn any_text() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), r#"[\[{]?([\[\]{}",:\\ é0-9-]|"[a-z"\\]{0,9}"|"id":|"method":|"params":|"result":){0,40}"#]
    }

    /// A JSON object with spaces in places.
    pub(crate) fn spelled(value: impl Strategy<Value = Value>) -> impl Strategy<Value = String> {
        (value, spaces()).prop_map(|(value, spaces)| spell(&value, &mut spaces.iter().cycle()))
    }

    pub(crate) fn spaces() -> impl Strategy<Value = Vec<&'static str>> {
        prop::collection::vec(prop::sample::select(vec!["", "", "", " ", "\t", "\r\n  "]), 1..8)
    }

    pub(crate) fn any_object() -> impl Strategy<Value = Value> {
        prop::collection::hash_map(any_key(), any_value(), 0..6).prop_map(|fields| fields.into_iter().collect())
    }

    /// With keys and strings that a careless reader trips over.
    pub(crate) fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any_key().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(any_key(), inner, 0..4).prop_map(|fields| fields.into_iter().collect()),
            ]
        })
    }

    fn any_key() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(vec!["id", "method", "params", "channel", "type", "result", "error", "test_request"])
                .prop_map(str::to_string),
            r#"[\[\]{}",:\\a-z\n é]{0,40}"#,
        ]
    }

    pub(crate) fn spell<'a>(value: &Value, spaces: &mut impl Iterator<Item = &'a &'a str>) -> String {
        let mut space = || spaces.next().copied().unwrap_or_default();
        let (before, after) = (space(), space());
        let inner = match value {
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(|item| spell(item, spaces)).collect();
                format!("[{before}{}]", items.join(","))
            }
            Value::Object(fields) => {
                let field = |(key, value)| format!("{before}{}{after}:{}", Value::String(key), spell(value, spaces));
                let fields: Vec<_> = fields.iter().map(|(key, value)| (key.clone(), value)).map(field).collect();
                format!("{{{after}{}{before}}}", fields.join(","))
            }
            leaf => leaf.to_string(),
        };
        format!("{before}{inner}{after}")
    }
}
