//! The opening handshake, client side, as bytes (RFC 6455 §4.1, §4.2.2): writes the request, reads and verifies the answer.

use std::time::{Duration, SystemTime};

use tungstenite::handshake::derive_accept_key;

use crate::config::{is_reserved, is_token};

/// An upgrade request, ready to send. It has no `Debug`, because users put credentials into headers.
pub struct Request {
    /// The whole request.
    pub bytes: Vec<u8>,
    /// The `Sec-WebSocket-Key` in it, which the answer must match.
    pub key: String,
}

/// Writes the upgrade request.
///
/// `host` is the value of `Host` unless `headers` brings its own, `target` is path and query, `key` comes from
/// `tungstenite::handshake::client::generate_key`. Headers of the handshake itself are left out, because each
/// of them would change what the answer is checked against.
///
/// # Panics
///
/// In debug builds, if a header's name is no token or any part holds a CR, LF or NUL: configuration refuses those.
pub fn request(host: &str, target: &str, headers: &[(String, String)], subprotocols: &[String], key: String) -> Request {
    debug_assert!(is_single_line(host) && is_single_line(target) && is_single_line(&key));
    debug_assert!(subprotocols.iter().all(|name| is_token(name)));
    debug_assert!(headers.iter().all(|(name, value)| is_token(name) && is_single_line(value)));

    let is_host = |name: &str| name.eq_ignore_ascii_case("host");
    let host = headers.iter().find(|(name, _)| is_host(name)).map_or(host, |(_, value)| value);
    let mut text = format!(
        "GET {target} HTTP/1.1\r\n\
         Host: {host}\r\n\
         Upgrade: websocket\r\n\
         Connection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Version: 13\r\n"
    );
    if !subprotocols.is_empty() {
        push_header(&mut text, "Sec-WebSocket-Protocol", &subprotocols.join(", "));
    }
    for (name, value) in headers.iter().filter(|(name, _)| !is_host(name) && !is_reserved(name)) {
        push_header(&mut text, name, value);
    }
    text.push_str("\r\n");
    Request { bytes: text.into_bytes(), key }
}

/// Most bytes that the head of an answer may take, those of interim answers before it included.
pub const HEAD_MAX: usize = 16 * 1024;

/// Most header lines that one head may have.
pub const HEADERS_MAX: usize = 128;

/// What the server has said so far.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// The head has not come whole.
    Partial,
    /// 101, verified.
    Switched {
        /// The one the server chose among those offered.
        subprotocol: Option<String>,
        /// Bytes the head took; those behind it are frames.
        size: usize,
    },
    /// Any other final status.
    Refused {
        /// 200 to 999, as sent.
        status: u16,
        /// In the order they came; bytes that are not UTF-8 are replaced.
        headers: Vec<(String, String)>,
        /// Bytes the head took; those behind it are the body.
        size: usize,
        /// How long the body is, if the server says.
        content_length: Option<u64>,
    },
}

/// Looks at what has come from the server since the request left: `received` starts with the first byte of the answer and only grows.
///
/// `scanned` is 0 at first and then the caller's to keep; thanks to it a server that sends one byte at a time costs no more than one that
/// sends them all at once. Interim answers, 1xx other than 101, are skipped (RFC 9110 §15.2).
///
/// # Errors
///
/// Says what was wrong: not HTTP, too large, or a 101 that does not answer our request.
pub fn read_answer(received: &[u8], scanned: &mut usize, key: &str, offered: &[String]) -> Result<Answer, String> {
    if !received.iter().zip(b"HTTP/1.").all(|(byte, expected)| byte == expected) {
        return Err("answer is not HTTP/1.1".into());
    }
    let window = &received[..received.len().min(HEAD_MAX)];
    if head_end(window, *scanned).is_some() {
        let mut start = 0;
        while let Some(end) = head_end(window, start) {
            match read_head(&window[start..end], end, key, offered)? {
                Some(answer) => return Ok(answer),
                None => start = end,
            }
        }
    }
    if received.len() >= HEAD_MAX {
        return Err(format!("head of the answer larger than {HEAD_MAX} bytes"));
    }
    // The next byte may complete an end of which up to three bytes are here.
    *scanned = received.len().saturating_sub(3);
    Ok(Answer::Partial)
}

/// How long the server asks us to wait with `Retry-After`, in seconds or as a date (RFC 9110 §10.2.3); zero if the date has passed.
///
/// The value is the server's, up to 2⁶⁴ seconds: bound it before adding it to a time.
pub fn retry_after(headers: &[(String, String)], now: SystemTime) -> Option<Duration> {
    let (_, value) = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("retry-after"))?;
    if let Some(seconds) = to_number(value) {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

fn is_single_line(text: &str) -> bool {
    !text.contains(['\r', '\n', '\0'])
}

fn push_header(text: &mut String, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        text.push_str(part);
    }
}

/// Where the head that starts at or before `from` ends, if it does: behind an empty line. A bare LF ends a line too (RFC 9112 §2.2).
fn head_end(window: &[u8], from: usize) -> Option<usize> {
    let mut position = from;
    loop {
        position += 1 + window.get(position..)?.iter().position(|byte| *byte == b'\n')?;
        match &window[position..] {
            [b'\n', ..] => return Some(position + 1),
            [b'\r', b'\n', ..] => return Some(position + 2),
            _ => {}
        }
    }
}

/// Reads one whole head; `None` if it is an interim one. `size` is where it ends in all that was received.
fn read_head(head: &[u8], size: usize, key: &str, offered: &[String]) -> Result<Option<Answer>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err("malformed answer: head ends too early".into()),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(format!("answer has more than {HEADERS_MAX} headers"));
        }
        Err(error) => return Err(format!("malformed answer: {error}")),
    }
    let (Some(version), Some(status)) = (response.version, response.code) else {
        return Err("malformed answer: no status line".into());
    };
    match status {
        101 if version != 1 => Err("101 is not HTTP/1.1".into()),
        101 => {
            let subprotocol = verify(response.headers, key, offered)?;
            Ok(Some(Answer::Switched { subprotocol, size }))
        }
        0..=99 => Err(format!("malformed answer: status {status:03}")),
        100..=199 => Ok(None),
        // Load balancers that know nothing of the server behind them refuse in HTTP/1.0.
        _ => Ok(Some(refused(status, response.headers, size))),
    }
}

/// The five checks of RFC 6455 §4.1 on a 101; returns the subprotocol.
fn verify(headers: &[httparse::Header<'_>], key: &str, offered: &[String]) -> Result<Option<String>, String> {
    if !has_token(headers, "upgrade", "websocket") {
        return Err("101 without upgrade: websocket".into());
    }
    if !has_token(headers, "connection", "upgrade") {
        return Err("101 without connection: upgrade".into());
    }
    if only(headers, "sec-websocket-accept")? != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err("sec-websocket-accept does not match our key".into());
    }
    if values(headers, "sec-websocket-extensions").next().is_some() {
        return Err("server chose an extension that was not offered".into());
    }
    let Some(chosen) = only(headers, "sec-websocket-protocol")? else {
        return Ok(None);
    };
    match offered.iter().find(|name| name.as_bytes() == chosen) {
        Some(name) => Ok(Some(name.clone())),
        None => Err(format!("server chose a subprotocol that was not offered: {:?}", String::from_utf8_lossy(chosen))),
    }
}

fn refused(status: u16, headers: &[httparse::Header<'_>], size: usize) -> Answer {
    let content_length = match status {
        // These have no body whatever the headers say (RFC 9112 §6.3).
        204 | 304 => Some(0),
        _ if values(headers, "transfer-encoding").next().is_some() => None,
        _ => only(headers, "content-length").ok().flatten().and_then(|value| to_number(str::from_utf8(value).ok()?)),
    };
    let headers =
        headers.iter().map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned())).collect();
    Answer::Refused { status, headers, size, content_length }
}

/// Whether one of the comma-separated lists under `name` has `token`.
fn has_token(headers: &[httparse::Header<'_>], name: &str, token: &str) -> bool {
    values(headers, name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The value of a header that may come once.
fn only<'h>(headers: &'h [httparse::Header<'_>], name: &str) -> Result<Option<&'h [u8]>, String> {
    let mut values = values(headers, name);
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(format!("several {name} headers")),
    }
}

fn values<'h>(headers: &'h [httparse::Header<'_>], name: &str) -> impl Iterator<Item = &'h [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.trim_ascii())
}

/// Reads digits only; `str::parse` would take a sign as well.
fn to_number(text: &str) -> Option<u64> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_what_the_rfc_wants() {
        let request = request("example.com:8080", "/chat?a=1", &[], &[], KEY.into());
        let expected = "GET /chat?a=1 HTTP/1.1\r\nHost: example.com:8080\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        assert_eq!((String::from_utf8(request.bytes).unwrap(), request.key), (expected.to_owned(), KEY.to_owned()));
    }

    #[test]
    fn user_headers_and_subprotocols_are_sent() {
        let text = request_text(&[("X-Key", "secret"), ("Origin", "https://a.b")], &["v2", "v1"]);
        assert!(text.ends_with("13\r\nSec-WebSocket-Protocol: v2, v1\r\nX-Key: secret\r\nOrigin: https://a.b\r\n\r\n"), "{text}");
    }

    #[test]
    fn user_host_replaces_ours() {
        let text = request_text(&[("host", "front.example")], &[]);
        assert!(text.contains("\r\nHost: front.example\r\n"), "{text}");
        assert_eq!(text.to_ascii_lowercase().matches("\r\nhost:").count(), 1);
    }

    #[test]
    fn reserved_headers_cannot_be_overridden() {
        for name in [
            "upgrade",
            "CONNECTION",
            "Sec-WebSocket-Key",
            "sec-websocket-version",
            "Sec-WebSocket-Extensions",
            "Sec-Websocket-Protocol",
        ] {
            assert!(is_reserved(name), "{name}");
            assert_eq!(request_text(&[(name, "mine")], &[]), request_text(&[], &[]));
        }
        assert!(!is_reserved("Host") && !is_reserved("Origin"));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "is_single_line")]
    fn header_value_with_a_line_break_never_leaves() {
        request_text(&[("X-Key", "a\r\nEvil: 1")], &[]);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "is_single_line")]
    fn path_with_a_line_break_never_leaves() {
        request("h", "/\r\nEvil: 1", &[], &[], KEY.into());
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "is_single_line")]
    fn host_with_a_nul_never_leaves() {
        request("h\0", "/", &[], &[], KEY.into());
    }

    #[test]
    fn tokens() {
        assert!(["X-Api_Key", "a", "!#$%&'*+-.^_`|~09azAZ"].into_iter().all(is_token));
        assert!(!["", "a b", "a:", "a\r\n", "ä", "a\0", "(a)"].into_iter().any(is_token));
    }

    #[test]
    fn verified_101_switches_and_leaves_the_frames() {
        let head = head(&[]);
        let received = [head.as_bytes(), b"\x81\x02hi\n\n"].concat();
        assert_eq!(read(&received), Ok(Answer::Switched { subprotocol: None, size: head.len() }));
    }

    #[test]
    fn head_one_byte_at_a_time_is_partial_to_its_last_byte() {
        let head = head(&[("X-Pad", "x")]);
        let mut scanned = 0;
        for end in 0..head.len() {
            assert_eq!(read_answer(&head.as_bytes()[..end], &mut scanned, KEY, &[]), Ok(Answer::Partial), "{end} bytes");
            // What lies before is never looked at again, so the cost stays linear.
            assert_eq!(scanned, end.saturating_sub(3));
        }
        let switched = Answer::Switched { subprotocol: None, size: head.len() };
        assert_eq!(read_answer(head.as_bytes(), &mut scanned, KEY, &[]), Ok(switched));
    }

    #[test]
    fn bare_line_feeds_end_lines() {
        let head = head(&[]).replace("\r\n", "\n");
        let mut scanned = 0;
        for end in 0..head.len() {
            assert_eq!(read_answer(&head.as_bytes()[..end], &mut scanned, KEY, &[]), Ok(Answer::Partial));
        }
        let switched = Answer::Switched { subprotocol: None, size: head.len() };
        assert_eq!(read_answer(head.as_bytes(), &mut scanned, KEY, &[]), Ok(switched));
    }

    #[test]
    fn interim_answers_are_skipped() {
        let received = format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{}", head(&[]));
        let switched = Answer::Switched { subprotocol: None, size: received.len() };
        assert_eq!(read(received.as_bytes()), Ok(switched));
        let mut scanned = 0;
        for end in 0..received.len() {
            assert_eq!(read_answer(&received.as_bytes()[..end], &mut scanned, KEY, &[]), Ok(Answer::Partial));
        }
    }

    #[test]
    fn connection_is_a_list() {
        assert!(switches(&head(&[("Connection", "keep-alive, Upgrade")])));
        assert!(switches(&(head(&[("Connection", "keep-alive")]).replace("\r\n\r\n", "\r\nconnection: UPGRADE\r\n\r\n"))));
    }

    #[test]
    fn connection_without_upgrade_is_an_error() {
        assert_eq!(error(&head(&[("Connection", "keep-alive")])), "101 without connection: upgrade");
    }

    #[test]
    fn missing_upgrade_is_an_error() {
        assert_eq!(error(&head(&[("Upgrade", "h2c")])), "101 without upgrade: websocket");
    }

    #[test]
    fn upgrade_ignores_case() {
        assert!(switches(&head(&[("Upgrade", "WebSocket")])));
    }

    #[test]
    fn bad_accept_is_an_error() {
        assert_eq!(error(&head(&[("Sec-WebSocket-Accept", "AAAA")])), "sec-websocket-accept does not match our key");
        assert_eq!(error(&head(&[]).replace("Accept", "X")), "sec-websocket-accept does not match our key");
    }

    #[test]
    fn two_accepts_are_an_error() {
        let twice = format!("\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        assert_eq!(error(&head(&[]).replace("\r\n\r\n", &twice)), "several sec-websocket-accept headers");
    }

    #[test]
    fn accept_is_trimmed() {
        assert!(switches(&head(&[("Sec-WebSocket-Accept", &format!("  {ACCEPT} \t"))])));
    }

    #[test]
    fn extension_nobody_offered_is_an_error() {
        let head = head(&[("Sec-WebSocket-Extensions", "permessage-deflate")]);
        assert_eq!(error(&head), "server chose an extension that was not offered");
    }

    #[test]
    fn subprotocol_must_be_one_offered() {
        let head = head(&[("Sec-WebSocket-Protocol", "v2")]);
        let offered = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            read_answer(head.as_bytes(), &mut 0, KEY, &names)
        };
        assert_eq!(offered(&["v1", "v2"]), Ok(Answer::Switched { subprotocol: Some("v2".into()), size: head.len() }));
        assert_eq!(offered(&["v1"]), Err("server chose a subprotocol that was not offered: \"v2\"".into()));
        assert_eq!(offered(&[]), Err("server chose a subprotocol that was not offered: \"v2\"".into()));
    }

    #[test]
    fn several_subprotocols_are_an_error() {
        let head = head(&[("Sec-WebSocket-Protocol", "v1")]).replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: v1\r\n\r\n");
        assert_eq!(error(&head), "several sec-websocket-protocol headers");
    }

    #[test]
    fn refusal_carries_status_and_headers() {
        let head = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\n";
        let headers = vec![("Retry-After".to_owned(), "7".to_owned()), ("Content-Length".to_owned(), "4".to_owned())];
        let refused = Answer::Refused { status: 429, headers, size: head.len(), content_length: Some(4) };
        assert_eq!(read(format!("{head}slow").as_bytes()), Ok(refused));
    }

    #[test]
    fn every_other_final_status_is_a_refusal() {
        for status in [200, 302, 401, 403, 404, 503] {
            let head = format!("HTTP/1.1 {status} Whatever\r\n\r\n");
            let refused = Answer::Refused { status, headers: vec![], size: head.len(), content_length: None };
            assert_eq!(read(head.as_bytes()), Ok(refused));
        }
    }

    #[test]
    fn content_length_is_believed_only_if_it_is_clear() {
        assert_eq!(content_length("200 OK", "Content-Length: 12"), Some(12));
        assert_eq!(content_length("200 OK", "Content-Length: +12"), None);
        assert_eq!(content_length("200 OK", "Content-Length: 1\r\nContent-Length: 2"), None);
        assert_eq!(content_length("200 OK", "Content-Length: 12\r\nTransfer-Encoding: chunked"), None);
        assert_eq!(content_length("304 Not Modified", "Content-Length: 12"), Some(0));
    }

    #[test]
    fn old_http_may_refuse_but_not_switch() {
        let refused = Answer::Refused { status: 503, headers: vec![], size: 17, content_length: None };
        assert_eq!(read(b"HTTP/1.0 503 \r\n\r\n"), Ok(refused));
        assert_eq!(error(&head(&[]).replace("HTTP/1.1", "HTTP/1.0")), "101 is not HTTP/1.1");
    }

    #[test]
    fn what_is_not_http_is_an_error_at_its_first_byte() {
        assert_eq!(error("S"), "answer is not HTTP/1.1");
        assert_eq!(error("HTTP/2"), "answer is not HTTP/1.1");
        assert_eq!(error("\x15\x03\x01"), "answer is not HTTP/1.1");
    }

    #[test]
    fn malformed_heads_are_errors() {
        assert_eq!(error("HTTP/1.1 abc\r\n\r\n"), "malformed answer: invalid response status");
        assert_eq!(error("HTTP/1.1 200 OK\r\nno colon\r\n\r\n"), "malformed answer: invalid header name");
        assert_eq!(error("HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n"), "malformed answer: invalid header name");
        assert_eq!(error("HTTP/1.1 042 No\r\n\r\n"), "malformed answer: status 042");
    }

    #[test]
    fn endless_head_is_an_error() {
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_MAX));
        assert_eq!(read(&endless.as_bytes()[..HEAD_MAX - 1]), Ok(Answer::Partial));
        assert_eq!(error(&endless[..HEAD_MAX]), "head of the answer larger than 16384 bytes");
    }

    #[test]
    fn endless_interim_answers_are_an_error() {
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
        assert_eq!(error(&endless), "head of the answer larger than 16384 bytes");
    }

    #[test]
    fn too_many_headers_are_an_error() {
        assert_eq!(error(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(129))), "answer has more than 128 headers");
    }

    #[test]
    fn retry_after_in_seconds() {
        assert_eq!(retry("120"), Some(Duration::from_secs(120)));
    }

    #[test]
    fn retry_after_as_a_date() {
        assert_eq!(retry("Thu, 01 Jan 1970 00:01:40 GMT"), Some(Duration::from_secs(40)));
    }

    #[test]
    fn retry_after_in_the_past_is_now() {
        assert_eq!(retry("Thu, 01 Jan 1970 00:00:01 GMT"), Some(Duration::ZERO));
    }

    #[test]
    fn retry_after_that_means_nothing_is_none() {
        assert_eq!(["", "soon", "-1", "+1", "99999999999999999999"].map(retry), [None; 5]);
        assert_eq!(retry_after(&[], SystemTime::UNIX_EPOCH), None);
    }

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn request_text(headers: &[(&str, &str)], subprotocols: &[&str]) -> String {
        let headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let subprotocols: Vec<_> = subprotocols.iter().map(|name| (*name).to_owned()).collect();
        String::from_utf8(request("h", "/", &headers, &subprotocols, KEY.into()).bytes).unwrap()
    }

    /// A good 101 with some headers replaced or added.
    fn head(changes: &[(&str, &str)]) -> String {
        let mut headers = vec![("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT)];
        headers.retain(|(name, _)| changes.iter().all(|(changed, _)| name != changed));
        headers.extend_from_slice(changes);
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n")
    }

    fn read(received: &[u8]) -> Result<Answer, String> {
        read_answer(received, &mut 0, KEY, &[])
    }

    fn switches(head: &str) -> bool {
        matches!(read(head.as_bytes()), Ok(Answer::Switched { .. }))
    }

    fn error(received: &str) -> String {
        read(received.as_bytes()).unwrap_err()
    }

    fn content_length(status: &str, lines: &str) -> Option<u64> {
        match read(format!("HTTP/1.1 {status}\r\n{lines}\r\n\r\n").as_bytes()).unwrap() {
            Answer::Refused { content_length, .. } => content_length,
            other => panic!("{other:?}"),
        }
    }

    fn retry(value: &str) -> Option<Duration> {
        let headers = [("retry-after".to_owned(), value.to_owned())];
        retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(60))
    }
}
