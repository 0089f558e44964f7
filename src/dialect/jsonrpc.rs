//! JSON-RPC 2.0, with subscriptions as Deribit has them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use memchr::{memchr2, memmem};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::dialect::peek::Cursor;
use crate::dialect::{Confirmation, Dialect, Id, Inbound, Login, LoginStep, Request, Secret, Sequence, Subscribe, peek};
use crate::error::{Error, Rejection, Result};

/// JSON-RPC 2.0. Out of the box it speaks to Deribit; the setters fit it to others.
///
/// Data of a channel is a notification `subscription` with the channel in `params.channel`. A reply to a request to subscribe
/// lists the channels that were accepted; the others count as refused. The notification `heartbeat` of the type `test_request` is
/// answered at once.
///
/// Where a setter has the name of a method of [`Dialect`], that method is called as `Dialect::login(&dialect, step)`.
///
/// ```
/// use zen_websocket::{Dialect, Id, Inbound, JsonRpc};
///
/// let dialect = JsonRpc::default();
/// let request = dialect.request(1, "public/ticker", Some(r#"{"instrument_name":"BTC-PERPETUAL"}"#))?;
/// assert_eq!(
///     request.text,
///     r#"{"jsonrpc":"2.0","id":1,"method":"public/ticker","params":{"instrument_name":"BTC-PERPETUAL"}}"#
/// );
///
/// let reply = r#"{"jsonrpc":"2.0","id":1,"result":{"last_price":50000.5}}"#;
/// assert_eq!(dialect.classify(reply), Inbound::Reply { id: Id::Number(1) });
/// assert_eq!(dialect.result(reply)?, r#"{"last_price":50000.5}"#);
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[derive(Clone)]
pub struct JsonRpc {
    public: Methods,
    /// By what the names of the channels begin with.
    private: Vec<(String, Methods)>,
    channels_max: usize,
    login: Option<Auth>,
    fatal_codes: Vec<i64>,
    sequence: Option<SequenceKeys>,
}

/// How to subscribe and unsubscribe.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Methods {
    subscribe: String,
    unsubscribe: String,
}

#[derive(Clone)]
struct Auth {
    method: String,
    params: ParamsFn,
}

type ParamsFn = Arc<dyn Fn(&LoginStep<'_>) -> serde_json::Result<String> + Send + Sync>;

#[derive(Clone, Debug)]
struct SequenceKeys {
    previous: String,
    last: String,
}

impl Default for JsonRpc {
    fn default() -> Self {
        Self {
            public: Methods::new("public/subscribe", "public/unsubscribe"),
            private: vec![("user.".into(), Methods::new("private/subscribe", "private/unsubscribe"))],
            channels_max: 500,
            login: None,
            fatal_codes: DERIBIT_FATAL.to_vec(),
            sequence: None,
        }
    }
}

impl JsonRpc {
    /// As Deribit speaks it, without a login.
    pub fn new() -> Self {
        Self::default()
    }

    /// The methods that subscribe and unsubscribe, for every channel: [`private_channels`](Self::private_channels) set before are
    /// forgotten. Default `public/subscribe` and `public/unsubscribe`, with private methods for channels that begin with `user.`.
    ///
    /// ```
    /// use zen_websocket::{Dialect, JsonRpc};
    ///
    /// let dialect = JsonRpc::new().subscribe_methods("subscribe", "unsubscribe");
    /// let request = dialect.subscribe(1, &["trades"])?;
    /// assert_eq!(request.text, r#"{"jsonrpc":"2.0","id":1,"method":"subscribe","params":{"channels":["trades"]}}"#);
    /// # Ok::<(), zen_websocket::Error>(())
    /// ```
    pub fn subscribe_methods(mut self, subscribe: impl Into<String>, unsubscribe: impl Into<String>) -> Self {
        self.public = Methods::new(subscribe, unsubscribe);
        self.private.clear();
        self
    }

    /// The methods for channels whose names begin with `prefix`; may be set for several prefixes, of which the last that fits
    /// counts. One request never mixes channels that have different methods.
    pub fn private_channels(
        mut self,
        prefix: impl Into<String>,
        subscribe: impl Into<String>,
        unsubscribe: impl Into<String>,
    ) -> Self {
        self.private.push((prefix.into(), Methods::new(subscribe, unsubscribe)));
        self
    }

    /// The most channels that one request may name, at least 1. Default 500, as Deribit allows.
    pub fn channels_max(mut self, max: usize) -> Self {
        self.channels_max = max.max(1);
        self
    }

    /// Logs in with a request, made anew on every wire and for every refresh; then [`LoginStep::token`] is the `refresh_token`
    /// that the venue gave, if it gave one. The login is refreshed after four fifths of the `expires_in` seconds in the result,
    /// and never if there are none.
    ///
    /// ```
    /// use serde_json::json;
    /// use zen_websocket::JsonRpc;
    ///
    /// let dialect = JsonRpc::new().login("public/auth", |step| match step.token {
    ///     None => json!({"grant_type": "client_credentials", "client_id": "key", "client_secret": "secret"}),
    ///     Some(token) => json!({"grant_type": "refresh_token", "refresh_token": token.expose()}),
    /// });
    /// ```
    pub fn login<P: Serialize>(
        mut self,
        method: impl Into<String>,
        params: impl Fn(&LoginStep<'_>) -> P + Send + Sync + 'static,
    ) -> Self {
        self.login = Some(Auth { method: method.into(), params: Arc::new(move |step| serde_json::to_string(&params(step))) });
        self
    }

    /// The codes with which a venue says that repeating a login is useless. Default: Deribit's 10000, 11029, 11050, 13004, 13009
    /// and 13021.
    pub fn fatal_codes(mut self, codes: &[i64]) -> Self {
        self.fatal_codes = codes.to_vec();
        self
    }

    /// The fields of `params.data` that chain the messages of a channel: the number that the message before ended with, absent or
    /// null in a snapshot, and the number that this one ends with. Deribit's books have `prev_change_id` and `change_id`.
    /// Default: none.
    ///
    /// ```
    /// use zen_websocket::{Dialect, JsonRpc, Sequence};
    ///
    /// let dialect = JsonRpc::new().sequence("prev_change_id", "change_id");
    /// let text = r#"{"method":"subscription","params":{"channel":"book","data":{"prev_change_id":4,"change_id":5}}}"#;
    /// assert_eq!(Dialect::sequence(&dialect, "book", text), Some(Sequence { follows: Some(4), last: 5 }));
    /// ```
    pub fn sequence(mut self, previous: impl Into<String>, last: impl Into<String>) -> Self {
        self.sequence = Some(SequenceKeys { previous: previous.into(), last: last.into() });
        self
    }

    fn methods(&self, channel: &str) -> &Methods {
        let private = self.private.iter().rev().find(|(prefix, _)| channel.starts_with(prefix.as_str()));
        private.map_or(&self.public, |(_, methods)| methods)
    }

    /// Names as many of the channels as may go together.
    fn name_channels(&self, number: u64, channels: &[&str], method: impl Fn(&Methods) -> &str) -> Result<Subscribe> {
        let first = channels.first().ok_or_else(|| Error::config("channels", "none is named"))?;
        let methods = self.methods(first);
        let together = channels.iter().take(self.channels_max).take_while(|channel| self.methods(channel) == methods).count();
        let names: Vec<String> = channels[..together].iter().map(|channel| quoted(channel)).collect();
        let params = format!(r#"{{"channels":[{}]}}"#, names.join(","));
        let Request { text, id } = self.request(number, method(methods), Some(&params))?;
        Ok(Subscribe { text, id: Some(id), channels: together })
    }

    fn send_login(&self, auth: &Auth, step: &LoginStep<'_>) -> Login {
        let request = match (auth.params)(step) {
            Ok(params) => self.request(step.number, &auth.method, Some(&params)),
            Err(error) => Err(Error::Json(Arc::new(error))),
        };
        match request {
            Ok(request) => Login::Send(request),
            // The same closure would make the same again.
            Err(error) => Login::Refused { reason: error.to_string(), fatal: true },
        }
    }

    fn read_login(&self, reply: &str) -> Login {
        match self.check(reply).and_then(|()| self.result(reply)) {
            Ok(result) => Login::Done {
                refresh_after: peek::field(result, "expires_in").and_then(refresh_after),
                token: peek::field(result, "refresh_token").and_then(peek::string).map(Secret::new),
            },
            Err(Error::Rejected(rejection)) => Login::Refused {
                reason: rejection.to_string(),
                fatal: rejection.code.is_some_and(|code| self.fatal_codes.contains(&code)),
            },
            Err(error) => Login::Refused { reason: error.to_string(), fatal: false },
        }
    }
}

impl Dialect for JsonRpc {
    fn name(&self) -> &str {
        "json-rpc"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        if let Some(channel) = pushed_channel(text) {
            return Inbound::Data { channel: Cow::Borrowed(channel) };
        }
        let Some(mut cursor) = Cursor::new(text) else {
            return if opens_batch(text) { Inbound::Batch } else { Inbound::Message };
        };
        let mut front = Front::default();
        let (mut has_outcome, mut searched) = (false, false);
        while let Some(key) = cursor.next_key() {
            match key {
                "jsonrpc" => continue,
                "method" => return front.classify_method(cursor),
                "params" => front.params = front.params.or(Some(cursor.rest())),
                "id" if front.id.is_none() => front.id = Some(cursor.value().and_then(peek::id)),
                "result" | "error" => has_outcome = true,
                // A search through the rest costs less than a walk through it, and mostly finds that there is nothing to walk to.
                _ if front.id.is_none() && !searched => {
                    searched = true;
                    if !mentions_any(cursor.rest()) {
                        return Inbound::Message;
                    }
                }
                _ => {}
            }
            if has_outcome && front.id.is_some() {
                return front.reply();
            }
        }
        if cursor.is_complete() { front.reply() } else { Inbound::Message }
    }

    fn request(&self, number: u64, method: &str, params: Option<&str>) -> Result<Request> {
        // The id is printed as it is compared, whatever the number.
        let id = Id::Number(number.cast_signed());
        Ok(Request { text: message(Some(&id), method, params)?, id })
    }

    fn notification(&self, method: &str, params: Option<&str>) -> Result<String> {
        message(None, method, params)
    }

    fn batch(&self, requests: &[String]) -> Result<String> {
        if requests.is_empty() {
            return Err(Error::config("requests", "a batch must not be empty"));
        }
        Ok(format!("[{}]", requests.join(",")))
    }

    fn split<'a>(&self, text: &'a str) -> Vec<&'a str> {
        match serde_json::from_str::<Vec<&'a RawValue>>(text) {
            Ok(parts) => parts.into_iter().map(RawValue::get).collect(),
            Err(_) => vec![text],
        }
    }

    fn response(&self, id: &Id, outcome: Result<&str, &Rejection>) -> Result<String> {
        Ok(match outcome {
            Ok(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
            Err(rejection) => {
                let (code, message) = (rejection.code.unwrap_or(INTERNAL_ERROR), quoted(&rejection.message));
                let data = rejection.data.as_ref().map(|data| format!(r#","data":{data}"#)).unwrap_or_default();
                format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}{data}}}}}"#)
            }
        })
    }

    fn check(&self, reply: &str) -> Result<()> {
        let mut has_result = false;
        let mut cursor = Cursor::new(reply).ok_or_else(no_outcome)?;
        while let Some(key) = cursor.next_key() {
            match key {
                // Result and error exclude each other, so nothing behind a result matters. Only a null may stand beside an error,
                // as in JSON-RPC 1.0.
                "result" if !cursor.rest().starts_with("null") => return Ok(()),
                "result" => has_result = true,
                "error" => match cursor.value().ok_or_else(no_outcome)? {
                    "null" => {}
                    error => return Err(Error::Rejected(Arc::new(rejection(error)))),
                },
                _ => {}
            }
        }
        if has_result { Ok(()) } else { Err(no_outcome()) }
    }

    fn result<'a>(&self, reply: &'a str) -> Result<&'a str> {
        peek::field(reply, "result").ok_or_else(|| Error::Reply("no result".into()))
    }

    fn subscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        self.name_channels(number, channels, |methods| &methods.subscribe)
    }

    fn unsubscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        self.name_channels(number, channels, |methods| &methods.unsubscribe)
    }

    fn confirm(&self, reply: &str, channels: &[&str]) -> Confirmation {
        let result = match self.check(reply).and_then(|()| self.result(reply)) {
            Ok(result) => result,
            Err(Error::Rejected(rejection)) => {
                let rejected = channels.iter().map(|channel| (channel.to_string(), rejection.to_string())).collect();
                return Confirmation { accepted: vec![], rejected };
            }
            Err(_) => return Confirmation::default(),
        };
        let Ok(Value::Array(list)) = serde_json::from_str(result) else {
            return Confirmation::default();
        };
        let listed = list.iter().filter_map(Value::as_str);
        if channels.is_empty() {
            return Confirmation { accepted: listed.map(str::to_string).collect(), rejected: vec![] };
        }
        let listed: HashSet<&str> = listed.collect();
        let (accepted, rejected): (Vec<&str>, Vec<&str>) = channels.iter().partition(|channel| listed.contains(**channel));
        Confirmation {
            accepted: accepted.into_iter().map(str::to_string).collect(),
            rejected: rejected.into_iter().map(|channel| (channel.to_string(), NOT_ACCEPTED.to_string())).collect(),
        }
    }

    fn sequence(&self, _channel: &str, text: &str) -> Option<Sequence> {
        let keys = self.sequence.as_ref()?;
        let mut cursor = Cursor::new(text)?.seek("params")?.enter()?.seek("data")?.enter()?;
        let (mut previous, mut last) = (None, None);
        while let Some(key) = cursor.next_key() {
            if key == keys.previous && previous.is_none() {
                previous = Some(cursor.value()?);
            } else if key == keys.last && last.is_none() {
                last = Some(cursor.value()?);
            }
            if previous.is_some() && last.is_some() {
                break;
            }
        }
        let follows = match previous {
            None | Some("null") => None,
            Some(number) => Some(number.parse().ok()?),
        };
        Some(Sequence { follows, last: last?.parse().ok()? })
    }

    fn login(&self, step: &LoginStep<'_>) -> Login {
        match (&self.login, step.reply) {
            (None, _) => Login::Done { refresh_after: None, token: None },
            (Some(auth), None) => self.send_login(auth, step),
            (Some(_), Some(reply)) => self.read_login(reply),
        }
    }
}

/// Shows the names only; what a login sends may be secret.
impl fmt::Debug for JsonRpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonRpc")
            .field("public", &self.public)
            .field("private", &self.private)
            .field("channels_max", &self.channels_max)
            .field("login", &self.login.as_ref().map(|auth| &auth.method))
            .field("fatal_codes", &self.fatal_codes)
            .field("sequence", &self.sequence)
            .finish()
    }
}

impl Methods {
    fn new(subscribe: impl Into<String>, unsubscribe: impl Into<String>) -> Self {
        Self { subscribe: subscribe.into(), unsubscribe: unsubscribe.into() }
    }
}

/// The channel of a data message that begins as Deribit's do, byte by byte: nearly all texts of a feed.
#[inline]
fn pushed_channel(text: &str) -> Option<&str> {
    let rest = text.strip_prefix(PUSH)?;
    let end = memchr2(b'"', b'\\', rest.as_bytes())?;
    if rest.as_bytes()[end] == b'"' { rest.get(..end) } else { None }
}

/// What a text has said before the key that decides.
#[derive(Default)]
struct Front<'a> {
    /// Whether there was an id, and whether it can be one.
    id: Option<Option<Id>>,
    /// Begins with the parameters.
    params: Option<&'a str>,
}

impl<'a> Front<'a> {
    fn reply(self) -> Inbound<'a> {
        self.id.flatten().map_or(Inbound::Message, |id| Inbound::Reply { id })
    }

    /// With the cursor at the method.
    fn classify_method(self, mut cursor: Cursor<'a>) -> Inbound<'a> {
        let Some(method) = cursor.value() else {
            return Inbound::Message;
        };
        let param = |name| peek::field(self.params.or_else(|| Some(cursor.clone().seek("params")?.rest()))?, name);
        if method == r#""subscription""# {
            let channel = param("channel").and_then(peek::string);
            return channel.map_or(Inbound::Message, |channel| Inbound::Data { channel });
        }
        let id = match self.id {
            Some(id) => id,
            None if mentions(&ID, cursor.rest()) => cursor.clone().seek("id").and_then(|mut at| at.value()).and_then(peek::id),
            None => None,
        };
        if let Some(id) = id {
            return Inbound::Request { id };
        }
        if method == r#""heartbeat""# && param("type") == Some(r#""test_request""#) {
            return Inbound::Probe { answer: PROBE_ANSWER.into() };
        }
        Inbound::Message
    }
}

/// Whether a text is an array that begins with an object.
fn opens_batch(text: &str) -> bool {
    let inner = text.trim_start_matches(JSON_SPACE).strip_prefix('[');
    inner.is_some_and(|inner| inner.trim_start_matches(JSON_SPACE).starts_with('{'))
}

/// Whether a text contains either key, at any depth or within a string. Both end alike, so one search finds either. Where that ending is
/// frequent, as it is in `"bid"`, two searches for the whole keys take less time.
fn mentions_any(text: &str) -> bool {
    let mut from = 0;
    for _ in 0..LOOK_ALIKES_MAX {
        let Some(at) = ENDING.find(&text.as_bytes()[from..]) else { return false };
        from += at + ENDING.needle().len();
        let seen = &text.as_bytes()[..from];
        if seen.ends_with(ID.needle()) || seen.ends_with(METHOD.needle()) {
            return true;
        }
    }
    // What was seen ends before a key may end, and its beginning may have been seen.
    let mut rest = from - METHOD.needle().len().min(from);
    while !text.is_char_boundary(rest) {
        rest -= 1;
    }
    mentions(&ID, &text[rest..]) || mentions(&METHOD, &text[rest..])
}

/// Whether a text contains a key, at any depth or within a string.
fn mentions(key: &memmem::Finder<'_>, text: &str) -> bool {
    key.find(text.as_bytes()).is_some()
}

/// A request, or a notification if it has no id.
fn message(id: Option<&Id>, method: &str, params: Option<&str>) -> Result<String> {
    let id = id.map(|id| format!(r#","id":{id}"#)).unwrap_or_default();
    let params = match params.map(|params| params.trim_matches(JSON_SPACE)) {
        None | Some("null") => String::new(),
        Some(params) if is_structured(params) => format!(r#","params":{params}"#),
        Some(_) => return Err(Error::config("params", "neither an object nor an array")),
    };
    Ok(format!(r#"{{"jsonrpc":"2.0"{id},"method":{}{params}}}"#, quoted(method)))
}

/// Whether JSON is an object or an array; that it is JSON the caller knows.
fn is_structured(json: &str) -> bool {
    json.starts_with('{') && json.ends_with('}') || json.starts_with('[') && json.ends_with(']')
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string can always be written as JSON")
}

/// Reads an error of whatever shape.
fn rejection(error: &str) -> Rejection {
    let code = match peek::field(error, "code").and_then(peek::id) {
        Some(Id::Number(code)) => Some(code),
        Some(Id::Text(_)) | None => None,
    };
    let message = peek::field(error, "message").and_then(peek::string);
    let data = peek::field(error, "data").filter(|data| *data != "null");
    Rejection { code, message: message.unwrap_or(Cow::Borrowed(error)).into_owned(), data: data.map(str::to_string) }
}

fn no_outcome() -> Error {
    Error::Reply("neither result nor error".into())
}

/// Four fifths of a life in seconds, if that is between a second and a century.
fn refresh_after(expires_in: &str) -> Option<Duration> {
    let seconds: f64 = expires_in.parse().ok()?;
    (1.0..=CENTURY).contains(&seconds).then(|| Duration::from_secs_f64(seconds * 4.0 / 5.0))
}

/// Made once: making one costs more than most searches.
static ID: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(r#""id""#));
static METHOD: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(r#""method""#));
static ENDING: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(r#"d""#));

/// How many words that end as the keys do are looked at one by one; about as many as take the time of a search.
const LOOK_ALIKES_MAX: usize = 8;

/// How Deribit's data messages begin.
const PUSH: &str = r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":""#;

/// Deribit closes the connection if it does not get this.
const PROBE_ANSWER: &str = r#"{"jsonrpc":"2.0","method":"public/test","params":{}}"#;

const NOT_ACCEPTED: &str = "not among the channels the venue accepted";

/// Deribit's errors that speak of the account or its key.
const DERIBIT_FATAL: [i64; 6] = [10000, 11029, 11050, 13004, 13009, 13021];

/// Stands for errors that have no code (JSON-RPC 2.0 §5.1).
const INTERNAL_ERROR: i64 = -32603;

const JSON_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// In seconds.
const CENTURY: f64 = 100.0 * 365.25 * 86_400.0;

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::dialect::peek::tests::{any_text, any_value, spaces, spell};

    #[test]
    fn a_request_has_its_parameters_as_given_or_none() {
        let text = |method, params| JsonRpc::new().request(7, method, params).unwrap().text;
        assert_eq!(text("m", None), r#"{"jsonrpc":"2.0","id":7,"method":"m"}"#);
        assert_eq!(text("m", Some("null")), r#"{"jsonrpc":"2.0","id":7,"method":"m"}"#);
        assert_eq!(text("m", Some("{}")), r#"{"jsonrpc":"2.0","id":7,"method":"m","params":{}}"#);
        assert_eq!(text("", Some(r#" ["logs",{"a":1}] "#)), r#"{"jsonrpc":"2.0","id":7,"method":"","params":["logs",{"a":1}]}"#);
        assert_eq!(text("a\"b", None), r#"{"jsonrpc":"2.0","id":7,"method":"a\"b"}"#);
    }

    #[test]
    fn parameters_are_an_object_or_an_array() {
        for params in ["", "1", r#""a""#, "true", "{", "[1}", "{]"] {
            let error = JsonRpc::new().request(1, "m", Some(params)).unwrap_err();
            assert!(matches!(error, Error::Config { setting: "params", .. }), "{params}");
        }
    }

    #[test]
    fn every_number_gives_another_id_and_the_text_has_it() {
        for number in [0, 1, 1 << 53, u64::MAX] {
            let request = JsonRpc::new().request(number, "m", None).unwrap();
            assert_eq!(peek::field(&request.text, "id").and_then(peek::id), Some(request.id));
        }
    }

    #[test]
    fn a_notification_has_no_id() {
        let text = JsonRpc::new().notification("m", Some("[1]")).unwrap();
        assert_eq!(text, r#"{"jsonrpc":"2.0","method":"m","params":[1]}"#);
    }

    #[test]
    fn a_batch_is_put_together_and_taken_apart() {
        let dialect = JsonRpc::new();
        let requests = ["{\"a\":1}".to_string(), "{\"b\":[]}".to_string()];
        let batch = dialect.batch(&requests).unwrap();
        assert_eq!(batch, r#"[{"a":1},{"b":[]}]"#);
        assert_eq!(dialect.split(&batch), requests);
        assert_eq!(dialect.split(r#" [ { "a" : "]" } , 1 ] "#), [r#"{ "a" : "]" }"#, "1"]);
        assert_eq!(dialect.split(r#"[{"a":1}"#), [r#"[{"a":1}"#]);
        assert!(matches!(dialect.batch(&[]), Err(Error::Config { .. })));
    }

    #[test]
    fn an_answer_has_a_result_or_an_error() {
        let dialect = JsonRpc::new();
        let answer = |id: Id, outcome: Result<&str, &Rejection>| dialect.response(&id, outcome).unwrap();
        assert_eq!(answer("a".into(), Ok("[1]")), r#"{"jsonrpc":"2.0","id":"a","result":[1]}"#);
        let error = answer(1.into(), Err(&Rejection::new(None, "a\"b")));
        assert_eq!(error, r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"a\"b"}}"#);
        let rejection = Rejection { data: Some("{}".into()), ..Rejection::new(-1, "m") };
        let error = answer(1.into(), Err(&rejection));
        assert_eq!(error, r#"{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"m","data":{}}}"#);
        assert_eq!(rejected(&error), rejection);
    }

    #[test]
    fn a_reply_with_a_result_succeeded() {
        for (reply, result) in [
            (r#"{"jsonrpc":"2.0","id":1,"result":{"a":1},"usIn":1,"testnet":true}"#, r#"{"a":1}"#),
            (r#"{"result":null}"#, "null"),
            (r#"{"error":null,"result":[]}"#, "[]"),
            (r#"{"result":null,"error":null}"#, "null"),
        ] {
            JsonRpc::new().check(reply).unwrap();
            assert_eq!(JsonRpc::new().result(reply).unwrap(), result);
        }
    }

    #[test]
    fn a_check_ends_at_a_result() {
        JsonRpc::new().check(r#"{"result":{ rubbish"#).unwrap();
    }

    #[test]
    fn a_reply_with_an_error_was_rejected() {
        let full = r#"{"id":1,"error":{"code":10028,"message":"too\tmany","data":{"wait":1}},"usIn":1}"#;
        let rejection = Rejection { data: Some(r#"{"wait":1}"#.into()), ..Rejection::new(10028, "too\tmany") };
        assert_eq!(rejected(full), rejection);
        assert_eq!(rejected(r#"{"result":null,"error":{"code":1,"message":"m"}}"#), Rejection::new(1, "m"));
        assert_eq!(rejected(r#"{"error":"odd"}"#), Rejection::new(None, r#""odd""#));
        assert_eq!(rejected(r#"{"error":{"code":"7","data":null}}"#), Rejection::new(None, r#"{"code":"7","data":null}"#));
    }

    #[test]
    fn a_reply_without_either_is_none() {
        for reply in ["", "{}", "[]", "1", r#"{"id":1}"#, r#"{"error":null}"#, r#"{"error":{"#, r#"{"x":{"result":1}}"#] {
            assert!(matches!(JsonRpc::new().check(reply), Err(Error::Reply(_))), "{reply}");
            assert!(matches!(JsonRpc::new().result(reply), Err(Error::Reply(_))), "{reply}");
        }
    }

    #[test]
    fn channels_of_one_kind_are_subscribed_together_in_order() {
        let dialect = JsonRpc::new().channels_max(2);
        let next = |channels: &[&str]| dialect.subscribe(3, channels).map(|made| (made.text, made.id, made.channels)).unwrap();
        let id = Some(Id::Number(3));
        let text = r#"{"jsonrpc":"2.0","id":3,"method":"public/subscribe","params":{"channels":["b","a"]}}"#;
        assert_eq!(next(&["b", "a", "c"]), (text.into(), id.clone(), 2));
        let text = r#"{"jsonrpc":"2.0","id":3,"method":"public/subscribe","params":{"channels":["\""]}}"#;
        assert_eq!(next(&["\"", "user.a"]), (text.into(), id.clone(), 1));
        let text = r#"{"jsonrpc":"2.0","id":3,"method":"private/subscribe","params":{"channels":["user.a"]}}"#;
        assert_eq!(next(&["user.a", "b"]), (text.into(), id, 1));
    }

    #[test]
    fn unsubscribing_has_methods_of_its_own() {
        let method = |dialect: &JsonRpc, channel| {
            let text = dialect.unsubscribe(1, &[channel]).unwrap().text;
            peek::field(&text, "method").and_then(peek::string).map(Cow::into_owned).unwrap()
        };
        let deribit = JsonRpc::new();
        assert_eq!(["book", "user.a"].map(|channel| method(&deribit, channel)), ["public/unsubscribe", "private/unsubscribe"]);
        let other = deribit.subscribe_methods("s", "u").private_channels("my.", "ms", "mu").private_channels("my.o", "os", "ou");
        assert_eq!(["user.a", "my.a", "my.o"].map(|channel| method(&other, channel)), ["u", "mu", "ou"]);
    }

    #[test]
    fn at_least_one_channel_is_named() {
        let dialect = JsonRpc::new().channels_max(0);
        assert_eq!(dialect.subscribe(1, &["a", "b"]).unwrap().channels, 1);
        assert!(matches!(dialect.subscribe(1, &[]), Err(Error::Config { setting: "channels", .. })));
    }

    #[test]
    fn channels_missing_from_the_result_are_rejected() {
        let confirmed = JsonRpc::new().confirm(r#"{"id":1,"result":["b",1,"x","a"]}"#, &["a", "c", "b"]);
        let rejected = vec![("c".to_string(), "not among the channels the venue accepted".to_string())];
        assert_eq!(confirmed, Confirmation { accepted: vec!["a".into(), "b".into()], rejected });
    }

    #[test]
    fn without_channels_asked_for_all_of_the_result_are_accepted() {
        let confirmed = JsonRpc::new().confirm(r#"{"result":["b","a"]}"#, &[]);
        assert_eq!(confirmed, Confirmation { accepted: vec!["b".into(), "a".into()], rejected: vec![] });
    }

    #[test]
    fn an_error_rejects_every_channel_and_an_odd_reply_none() {
        let confirmed = JsonRpc::new().confirm(r#"{"error":{"code":11050,"message":"bad_request"}}"#, &["a", "b"]);
        let rejected = ["a", "b"].map(|channel| (channel.to_string(), "bad_request (11050)".to_string())).to_vec();
        assert_eq!(confirmed, Confirmation { accepted: vec![], rejected });
        for reply in ["", r#"{"id":1}"#, r#"{"result":"ok"}"#, r#"{"result":["a"}"#] {
            assert_eq!(JsonRpc::new().confirm(reply, &["a"]), Confirmation::default());
        }
    }

    #[test]
    fn sequences_are_read_from_the_data() {
        let dialect: &dyn Dialect = &JsonRpc::new().sequence("prev", "last");
        let read = |data: &str| dialect.sequence("c", &format!(r#"{{"params":{{"channel":"c","data":{data}}}}}"#));
        let place = |follows, last| Some(Sequence { follows, last });
        assert_eq!(read(r#"{"prev":1,"x":[],"last":2}"#), place(Some(1), 2));
        assert_eq!(read(r#"{"last":2,"x":{"prev":9},"prev":1}"#), place(Some(1), 2));
        assert_eq!(read(r#"{"prev":1,"prev":7,"last":2}"#), place(Some(1), 2));
        assert_eq!(read(r#"{"last":2}"#), place(None, 2));
        assert_eq!(read(r#"{"prev":null,"last":2}"#), place(None, 2));
        for data in ["1", "{}", r#"{"prev":1}"#, r#"{"last":"2"}"#, r#"{"prev":"1","last":2}"#, r#"{"last":-2}"#] {
            assert_eq!(read(data), None, "{data}");
        }
        assert_eq!(Dialect::sequence(&JsonRpc::new(), "c", r#"{"params":{"data":{"prev":1,"last":2}}}"#), None);
    }

    #[test]
    fn without_a_login_there_is_nothing_to_do() {
        assert!(matches!(Dialect::login(&JsonRpc::new(), &step(None, None)), Login::Done { refresh_after: None, token: None }));
    }

    #[test]
    fn a_login_is_sent_and_its_refresh_may_use_the_token() {
        let dialect = auth();
        let sent = |token| match Dialect::login(&dialect, &step(None, token)) {
            Login::Send(request) => request,
            other => panic!("{other:?}"),
        };
        let request = sent(None);
        assert_eq!(request.text, r#"{"jsonrpc":"2.0","id":9,"method":"public/auth","params":{"key":"k","ms":1500}}"#);
        assert_eq!(request.id, Id::Number(9));
        let token = Secret::new("r");
        assert_eq!(sent(Some(&token)).text, r#"{"jsonrpc":"2.0","id":9,"method":"public/auth","params":{"token":"r"}}"#);
    }

    #[test]
    fn a_login_is_refreshed_after_four_fifths_of_its_life() {
        let done = |result: &str| match answered(&format!(r#"{{"id":9,"result":{result}}}"#)) {
            Login::Done { refresh_after, token } => (refresh_after.map(|after| after.as_secs()), token),
            other => panic!("{other:?}"),
        };
        assert_eq!(done(r#"{"refresh_token":"r","expires_in":900}"#), (Some(720), Some(Secret::new("r"))));
        for expires_in in ["0", "-1", "null", "1e400", "1e300", r#""900""#, "true", "{}"] {
            assert_eq!(done(&format!(r#"{{"expires_in":{expires_in}}}"#)), (None, None), "{expires_in}");
        }
        assert_eq!(done(r#""ok""#), (None, None));
    }

    #[test]
    fn a_refused_login_is_fatal_by_its_code() {
        let refused = |reply: &str| match answered(reply) {
            Login::Refused { reason, fatal } => (reason, fatal),
            other => panic!("{other:?}"),
        };
        let error = |code| refused(&format!(r#"{{"id":9,"error":{{"code":{code},"message":"m"}}}}"#));
        assert_eq!(error(13004), ("m (13004)".into(), true));
        assert_eq!(error(10028), ("m (10028)".into(), false));
        assert_eq!(refused(r#"{"error":"m"}"#), ("\\\"m\\\"".into(), false));
        assert_eq!(refused("{}"), ("unusable reply: neither result nor error".into(), false));
        let reply = r#"{"error":{"code":1,"message":"m"}}"#;
        let login = Dialect::login(&auth().fatal_codes(&[1]), &step(Some(reply), None));
        assert!(matches!(login, Login::Refused { fatal: true, .. }));
    }

    #[test]
    fn a_login_that_cannot_be_made_is_refused_for_good() {
        let login = Dialect::login(&JsonRpc::new().login("m", |_| 1), &step(None, None));
        assert!(matches!(login, Login::Refused { fatal: true, .. }), "{login:?}");
    }

    #[test]
    fn debug_shows_names_and_no_secrets() {
        let secret = "hunter2".to_string();
        let shown = format!("{:?}", JsonRpc::new().login("public/auth", move |_| json!({"secret": secret})));
        assert!(shown.contains("public/auth") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_subscription_is_data_of_its_channel() {
        for text in [
            r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":"a/b","data":{"id":1}}}"#,
            r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":"a\/b","data":1}}"#,
            r#"{"method":"subscription","params":{"data":{"channel":"c"},"channel":"a/b"}}"#,
            r#" { "params" : { "channel" : "a/b" } , "method" : "subscription" , "params" : {} } "#,
            r#"{"id":1,"method":"subscription","params":{"channel":"a/b"}}"#,
            r#"{"params":{"channel":"a/b"},"params":{"channel":"c"},"method":"subscription"}"#,
        ] {
            assert_eq!(classify(text), Inbound::Data { channel: "a/b".into() }, "{text}");
        }
        for text in [
            r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":1}}"#,
            r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":"a"#,
            r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":"a\"#,
            r#"{"jsonrpc":"2.0","method":"subscription","params":[{"channel":"a"}]}"#,
            r#"{"jsonrpc":"2.0","method":"subscription","channel":"a"}"#,
        ] {
            assert_eq!(classify(text), Inbound::Message, "{text}");
        }
    }

    #[test]
    fn nothing_behind_the_decisive_key_is_read() {
        let channel = "a".into();
        assert_eq!(classify(&format!(r#"{PUSH}a","data":{{ rubbish"#)), Inbound::Data { channel });
        assert_eq!(classify(r#"{"jsonrpc":"2.0","id":5,"result":{ rubbish"#), Inbound::Reply { id: 5.into() });
    }

    #[test]
    fn a_reply_has_an_id_and_no_method() {
        for text in [
            r#"{"jsonrpc":"2.0","id":7,"result":1}"#,
            r#"{"id":7,"error":{}}"#,
            r#"{"usIn":1,"usOut":2,"result":{"id":1,"method":"m"},"id":7}"#,
            r#"{"result":"\"id\":1}","x":{"id":1},"id":7}"#,
            r#"{"id":7}"#,
            r#"{"id":7,"x":{"method":"m"}}"#,
            r#"{"id":7,"id":8}"#,
            r#"{"x":"\"method\"","id":7}"#,
        ] {
            assert_eq!(classify(text), Inbound::Reply { id: 7.into() }, "{text}");
        }
        assert_eq!(classify(r#"{"id":"7","result":1}"#), Inbound::Reply { id: "7".into() });
    }

    #[test]
    fn a_request_has_an_id_and_a_method() {
        for text in [
            r#"{"jsonrpc":"2.0","method":"m","params":{"id":1},"id":7}"#,
            r#"{"jsonrpc":"2.0","id":7,"method":"heartbeat","params":{"type":"test_request"}}"#,
            r#"{"x":[],"id":7,"y":{"id":1},"method":"m"}"#,
            r#"{"method":5,"id":7}"#,
        ] {
            assert_eq!(classify(text), Inbound::Request { id: 7.into() }, "{text}");
        }
    }

    #[test]
    fn a_reply_is_found_behind_any_number_of_look_alikes() {
        for count in 0..30 {
            let bids = r#"{"bid":"sold"},"#.repeat(count);
            let text = |tail: &str| format!(r#"{{"x":[{bids}0],{tail}}}"#);
            assert_eq!(classify(&text(r#""y":1"#)), Inbound::Message, "{count}");
            assert_eq!(classify(&text(r#""id":7"#)), Inbound::Reply { id: Id::Number(7) }, "{count}");
            let id = Id::Number(7);
            assert_eq!(classify(&text(r#""method":"ask","id":7"#)), Inbound::Request { id }, "{count}");
        }
    }

    #[test]
    fn a_test_request_is_answered_and_other_heartbeats_are_not() {
        let answer = r#"{"jsonrpc":"2.0","method":"public/test","params":{}}"#.to_string();
        for text in [
            r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}"#,
            r#"{"params":{"x":{},"type":"test_request"},"method":"heartbeat"}"#,
        ] {
            assert_eq!(classify(text), Inbound::Probe { answer: answer.clone() }, "{text}");
        }
        for text in [
            r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"heartbeat"}}"#,
            r#"{"jsonrpc":"2.0","method":"heartbeat"}"#,
            r#"{"jsonrpc":"2.0","method":"other","params":{"type":"test_request"}}"#,
        ] {
            assert_eq!(classify(text), Inbound::Message, "{text}");
        }
    }

    #[test]
    fn an_array_that_begins_with_an_object_is_a_batch() {
        assert_eq!([r#"[{"id":1}]"#, " [ \n{"].map(classify), [Inbound::Batch, Inbound::Batch]);
        for text in ["[]", "[1,{}]", "[[{}]]", "["] {
            assert_eq!(classify(text), Inbound::Message, "{text}");
        }
    }

    #[test]
    fn anything_else_is_a_message() {
        for text in [
            "",
            " ",
            "hello",
            "5",
            r#""id""#,
            "{}",
            r#"{"id":null,"error":{}}"#,
            r#"{"error":{},"id":null}"#,
            r#"{"id":1.5,"result":1}"#,
            r#"{"id":null,"id":7}"#,
            r#"{"id":null,"method":"m","id":7}"#,
            r#"{"e":"trade","o":{"id":7,"method":"m"},"s":"\"id\":7"}"#,
            r#"{"e":"trade","p":"1"}"#,
            r#"{"id":7"#,
            r#"{"id":7,"x":1"#,
            r#"{"id":7} {}"#,
            r#"{"method":"m","id":7"#,
        ] {
            assert_eq!(classify(text), Inbound::Message, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn classifying_agrees_with_a_reader_of_the_whole(fields in any_fields(), spaces in spaces()) {
            let text = spell_fields(&fields, &spaces);
            prop_assert_eq!(classify(&text), reference(&fields), "{}", text);
        }

        #[test]
        fn any_text_is_taken(text in any_text()) {
            read_all(&text);
        }

        #[test]
        fn any_truncation_is_taken(fields in any_fields(), spaces in spaces()) {
            let text = spell_fields(&fields, &spaces);
            for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
                read_all(&text[..end]);
            }
        }
    }

    /// What a text is by its fields, of which none occurs twice.
    fn reference(fields: &[(&str, Value)]) -> Inbound<'static> {
        let place = |key| fields.iter().position(|(have, _)| *have == key);
        let value = |key| place(key).map_or(&Value::Null, |place| &fields[place].1);
        let id = value("id").as_i64().map(Id::from).or(value("id").as_str().map(Id::from));
        let outcome = [place("result"), place("error")].into_iter().flatten().min();
        let decided = place("id").zip(outcome).map(|(id, outcome)| id.max(outcome));
        let Some(method) = place("method").filter(|method| decided.is_none_or(|decided| *method < decided)) else {
            return id.map_or(Inbound::Message, |id| Inbound::Reply { id });
        };
        match (fields[method].1.as_str(), id) {
            (Some("subscription"), _) => match value("params")["channel"].as_str() {
                Some(channel) => Inbound::Data { channel: channel.to_string().into() },
                None => Inbound::Message,
            },
            (_, Some(id)) => Inbound::Request { id },
            (Some("heartbeat"), None) if value("params")["type"] == "test_request" => {
                Inbound::Probe { answer: PROBE_ANSWER.into() }
            }
            _ => Inbound::Message,
        }
    }

    fn any_fields() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
        let id = prop_oneof![any::<i64>().prop_map(Value::from), "[a-z\"]{0,9}".prop_map(Value::from), any_value()];
        let names = prop::sample::select(vec!["subscription", "heartbeat", "m"]).prop_map(Value::from);
        let channel = ("[a-z\"]{0,40}", any_value()).prop_map(|(channel, data)| json!({"channel": channel, "data": data}));
        let params = prop_oneof![channel, Just(json!({"type": "test_request"})), any_value()];
        let fields =
            (Just(json!("2.0")), id, prop_oneof![4 => names, 1 => any_value()], params, any_value(), any_value(), any_value())
                .prop_map(|(jsonrpc, id, method, params, result, error, x)| {
                    ["jsonrpc", "id", "method", "params", "result", "error", "x"]
                        .into_iter()
                        .zip([jsonrpc, id, method, params, result, error, x])
                        .collect::<Vec<_>>()
                });
        fields.prop_flat_map(|fields| prop::sample::subsequence(fields, 0..=7).prop_shuffle())
    }

    fn spell_fields(fields: &[(&str, Value)], spaces: &[&str]) -> String {
        let mut spaces = spaces.iter().cycle();
        let fields: Vec<_> = fields.iter().map(|(key, value)| format!("\"{key}\":{}", spell(value, &mut spaces))).collect();
        format!("{{{}}}", fields.join(", "))
    }

    fn read_all(text: &str) {
        let dialect = JsonRpc::new().sequence("id", "method").login("m", |_| ());
        let dialect: &dyn Dialect = &dialect;
        black_box((dialect.classify(text), dialect.split(text), dialect.check(text).is_ok(), dialect.result(text).is_ok()));
        black_box((dialect.confirm(text, &["a"]), dialect.sequence("a", text), dialect.login(&step(Some(text), None))));
    }

    fn classify(text: &str) -> Inbound<'_> {
        JsonRpc::new().classify(text)
    }

    fn rejected(reply: &str) -> Rejection {
        match JsonRpc::new().check(reply) {
            Err(Error::Rejected(rejection)) => (*rejection).clone(),
            other => panic!("{other:?}"),
        }
    }

    fn auth() -> JsonRpc {
        JsonRpc::new().login("public/auth", |step| match step.token {
            Some(token) => json!({"token": token.expose()}),
            None => json!({"key": "k", "ms": step.unix.as_millis() as u64}),
        })
    }

    fn answered(reply: &str) -> Login {
        Dialect::login(&auth(), &step(Some(reply), None))
    }

    fn step<'a>(reply: Option<&'a str>, token: Option<&'a Secret>) -> LoginStep<'a> {
        let step = usize::from(reply.is_some());
        LoginStep { step, reply, is_refresh: token.is_some(), token, number: 9, unix: Duration::from_millis(1500), nonce: 1 }
    }
}
