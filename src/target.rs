//! A WebSocket URL, parsed once into what a dial needs (RFC 6455 §3).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::error::{Error, Result};

/// Where to dial and what to ask for there.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) tls: bool,
    pub(crate) host: Arc<str>,
    /// Set if the host is an address and needs no look-up.
    pub(crate) literal: Option<IpAddr>,
    pub(crate) port: u16,
    /// The value of the `Host` header: without the scheme's own port, with brackets around an IPv6 address.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) path: String,
    /// The value of an `Authorization` header, if the URL has user info.
    pub(crate) authorization: Option<String>,
}

impl Target {
    /// Parses a URL of scheme `ws` or `wss`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] that says what is wrong; it never repeats the URL, which may carry credentials.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let refuse = |reason: &str| Error::config("url", reason);
        if text.is_empty() {
            return Err(refuse("a URL is required"));
        }
        // The parser would silently drop these, and a header line is built from what remains.
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(refuse("contains a space or a control character"));
        }
        let url = Url::parse(text).map_err(|error| refuse(&error.to_string()))?;
        let (tls, default_port) = match url.scheme() {
            "ws" => (false, 80),
            "wss" => (true, 443),
            other => return Err(refuse(&format!("the scheme must be ws or wss, not {other}"))),
        };
        if url.fragment().is_some() {
            return Err(refuse("has a fragment, which RFC 6455 §3 forbids"));
        }
        let (host, literal, shown) = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => (name.to_owned(), None, name.to_owned()),
            Some(Host::Ipv4(address)) => (address.to_string(), Some(IpAddr::V4(address)), address.to_string()),
            Some(Host::Ipv6(address)) => (address.to_string(), Some(IpAddr::V6(address)), format!("[{address}]")),
            Some(Host::Domain(_)) | None => return Err(refuse("has no host")),
        };
        let port = url.port().unwrap_or(default_port);
        if port == 0 {
            return Err(refuse("port 0 cannot be connected to"));
        }
        let authority = if port == default_port { shown } else { format!("{shown}:{port}") };
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let authorization = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let mut credentials: Vec<u8> = percent_decode_str(url.username()).collect();
            credentials.push(b':');
            credentials.extend(percent_decode_str(url.password().unwrap_or_default()));
            format!("Basic {}", STANDARD.encode(credentials))
        });
        Ok(Self { tls, host: host.into(), literal, port, authority, path, authorization })
    }
}

/// The URL without user info and with the values of the query replaced, so that logs and errors may show it.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        let (path, query) = self.path.split_once('?').map_or((&*self.path, None), |(path, query)| (path, Some(query)));
        write!(f, "{scheme}://{}{path}", self.authority)?;
        for (i, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
            f.write_str(if i == 0 { "?" } else { "&" })?;
            match pair.split_once('=') {
                Some((name, _)) => write!(f, "{name}=[redacted]")?,
                None => f.write_str("[redacted]")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Target {
        Target::parse(url).unwrap()
    }

    fn refusal(url: &str) -> String {
        Target::parse(url).unwrap_err().to_string()
    }

    #[test]
    fn path_and_query_are_kept_exactly() {
        assert_eq!(parse("ws://h/ws?token=test123&session=abc").path, "/ws?token=test123&session=abc");
        assert_eq!(parse("ws://h").path, "/");
        assert_eq!(parse("ws://h?a=1").path, "/?a=1");
        assert_eq!(parse("ws://h/").path, "/");
        assert_eq!(
            parse("wss://h/stream?streams=btcusdt@depth/ethusdt@depth").path,
            "/stream?streams=btcusdt@depth/ethusdt@depth"
        );
    }

    #[test]
    fn the_scheme_decides_tls_and_the_default_port() {
        let plain = parse("ws://example.com");
        assert_eq!((plain.tls, plain.port, plain.authority.as_str()), (false, 80, "example.com"));
        let tls = parse("wss://example.com:8443/x");
        assert_eq!((tls.tls, tls.port, tls.authority.as_str()), (true, 8443, "example.com:8443"));
        assert_eq!(parse("wss://example.com:443").authority, "example.com");
    }

    #[test]
    fn an_address_needs_no_lookup() {
        let six = parse("ws://[::1]:9000/x");
        assert_eq!(six.literal, Some("::1".parse().unwrap()));
        assert_eq!((&*six.host, six.authority.as_str()), ("::1", "[::1]:9000"));
        assert_eq!(parse("ws://127.0.0.1").literal, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(parse("ws://localhost").literal, None);
    }

    #[test]
    fn user_info_becomes_basic_authorization_and_is_never_shown() {
        let target = parse("wss://al%40ce:pa:ss@example.com/x?key=secret&flag");
        assert_eq!(target.authorization.as_deref(), Some("Basic YWxAY2U6cGE6c3M="));
        assert_eq!(format!("{target:?}"), "wss://example.com/x?key=[redacted]&[redacted]");
    }

    #[test]
    fn what_is_not_a_websocket_url_is_refused_by_name() {
        for url in
            ["http://h", "https://h", "ftp://h", "localhost", "wss://", "ws://", "", "ws://:80", "ws://h:0", "ws://h:99999"]
        {
            assert!(refusal(url).starts_with("invalid url: "), "{url}");
        }
        assert_eq!(refusal("ws://h/#x"), "invalid url: has a fragment, which RFC 6455 §3 forbids");
    }

    #[test]
    fn line_breaks_and_nul_never_reach_a_request() {
        for url in ["ws://h/a\r\nX: y", "ws://h/a\nb", "ws://h\0/", "ws://h/a b", "ws://h\r/", "\tws://h"] {
            assert_eq!(refusal(url), "invalid url: contains a space or a control character");
        }
    }
}
