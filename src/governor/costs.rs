//! What a message costs at venues that weigh their messages.
//!
//! Made for [`RateLimit::cost`](crate::RateLimit::cost). They look for the first `"method"` key and its string, and read no other
//! JSON; any bytes have a cost.

/// The credits of a Deribit request: public methods 1, `private/set_…` 10, `private/buy…` and `private/sell…` 15, all others 5. A
/// text without a method costs 1.
///
/// ```
/// use zen_websocket::costs;
///
/// assert_eq!(costs::deribit(br#"{"id":1,"method":"private/buy","params":{}}"#), 15);
/// assert_eq!(costs::deribit(b"no request"), 1);
/// ```
#[must_use]
pub fn deribit(payload: &[u8]) -> u32 {
    let Some(method) = method(payload) else { return 1 };
    if method.starts_with(b"public/") {
        1
    } else if method.starts_with(b"private/set_") {
        10
    } else if method.starts_with(b"private/buy") || method.starts_with(b"private/sell") {
        15
    } else {
        5
    }
}

/// The weight of a Binance request: 2 for a method that asks for klines, 1 for all others.
///
/// ```
/// use zen_websocket::costs;
///
/// assert_eq!(costs::binance(br#"{"id":1,"method":"klines","params":{}}"#), 2);
/// assert_eq!(costs::binance(br#"{"id":1,"method":"order.place","params":{}}"#), 1);
/// ```
#[must_use]
pub fn binance(payload: &[u8]) -> u32 {
    let klines = |method| find(method, b"klines").is_some();
    if method(payload).is_some_and(klines) { 2 } else { 1 }
}

/// Every message costs 1.
///
/// ```
/// use zen_websocket::costs;
///
/// assert_eq!(costs::simple(b"anything"), 1);
/// ```
#[must_use]
pub fn simple(_payload: &[u8]) -> u32 {
    1
}

/// The string of the first key `"method"`. Inside a JSON string the quotes are escaped, so what is found is a key or a whole
/// string.
fn method(payload: &[u8]) -> Option<&[u8]> {
    let mut rest = payload;
    loop {
        rest = after(rest, find(rest, KEY)? + KEY.len());
        let Some(value) = rest.strip_prefix(b":") else { continue };
        let value = after(value, 0).strip_prefix(b"\"")?;
        return Some(&value[..find(value, b"\"")?]);
    }
}

/// What follows the first `count` bytes and white space.
fn after(text: &[u8], count: usize) -> &[u8] {
    text[count..].trim_ascii_start()
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|part| part == wanted)
}

const KEY: &[u8] = b"\"method\"";

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str) -> Vec<u8> {
        format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{{}}}}"#).into_bytes()
    }

    #[test]
    fn deribit_weighs_by_the_kind_of_method() {
        let methods =
            ["public/ticker", "private/get_positions", "private/set_heartbeat", "private/buy", "private/sell", "private/x"];
        assert_eq!(methods.map(|method| deribit(&request(method))), [1, 5, 10, 15, 15, 5]);
        assert_eq!(["private/sell_all", "x", ""].map(|method| deribit(&request(method))), [15, 5, 5]);
    }

    #[test]
    fn binance_weighs_klines_twice() {
        let methods = ["klines", "uiKlines", "order.place", "ping", ""];
        assert_eq!(methods.map(|method| binance(&request(method))), [2, 1, 1, 1, 1]);
        assert_eq!(binance(&request("market.klines.list")), 2);
        assert_eq!(binance(br#"{"params":["klines"]}"#), 1);
    }

    #[test]
    fn simple_is_one() {
        assert_eq!([&b""[..], b"{}", b"\xff"].map(simple), [1; 3]);
    }

    #[test]
    fn the_method_is_found_behind_white_space_and_look_alikes() {
        assert_eq!(method(b"{ \"method\" :\n\t \"a/b\" }"), Some(&b"a/b"[..]));
        assert_eq!(method(br#"{"list":["method","x"],"method":"a"}"#), Some(&b"a"[..]));
        assert_eq!(method(br#"{"note":"\"method\":\"b\"","method":"a"}"#), Some(&b"a"[..]));
    }

    #[test]
    fn bytes_without_a_method_have_a_cost() {
        for payload in
            [&b""[..], b"\"method\"", b"\"method\":", b"\"method\": 5", b"\"method\":\"open", b"\xff\xfe\"method\xff", b"\""]
        {
            assert_eq!((method(payload), deribit(payload), binance(payload)), (None, 1, 1), "{payload:?}");
        }
        assert_eq!(deribit(b"\xff\"method\":\"\xff\""), 5);
    }
}
