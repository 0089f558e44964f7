//! The upgrade request of a client.

use rustls::{HandshakeKind, ServerConnection};

/// What a client asked for in its upgrade request, and what its TLS handshake settled before.
///
/// ```
/// # use std::{net::TcpStream, time::Duration};
/// # use zen_websocket::testkit::MockServer;
/// # let server = MockServer::start()?;
/// # let stream = TcpStream::connect(server.address())?;
/// let url = format!("ws://{}/ws?token=test", server.address());
/// let _client = tungstenite::client(url, stream).expect("the server upgrades");
///
/// let peer = server.accept(Duration::from_secs(5)).expect("a client has connected");
/// assert_eq!(peer.request().path(), "/ws");
/// assert_eq!(peer.request().query(), "token=test");
/// assert_eq!(peer.request().header("upgrade"), Some("websocket"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    server_name: Option<String>,
    alpn: Option<String>,
    tls_resumed: bool,
}

impl Request {
    /// Parses the head of a request from the front of `bytes`, with the size of that head.
    /// `Ok(None)` asks for more bytes.
    pub(super) fn parse(bytes: &[u8], tls: Option<&ServerConnection>) -> Result<Option<(Self, usize)>, httparse::Error> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(size) = request.parse(bytes)? else {
            return Ok(None);
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let request = Self {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            headers: request.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect(),
            server_name: tls.and_then(|tls| tls.server_name()).map(str::to_owned),
            alpn: tls.and_then(|tls| tls.alpn_protocol()).map(text),
            tls_resumed: tls.is_some_and(|tls| tls.handshake_kind() == Some(HandshakeKind::Resumed)),
        };
        Ok(Some((request, size)))
    }

    /// The path, `/` at least.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    /// The query without its question mark, empty if there was none.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The headers in the order and spelling they came in.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The first header of this name, upper or lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The host name the client sent in its TLS handshake (SNI), of which addresses send none.
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The protocol that ALPN settled on.
    pub fn alpn(&self) -> Option<&str> {
        self.alpn.as_deref()
    }

    /// Whether the client resumed an earlier TLS session.
    pub fn tls_resumed(&self) -> bool {
        self.tls_resumed
    }

    /// What RFC 6455 §4.1 demands of the request and is missing from it.
    pub(super) fn violations(&self) -> impl Iterator<Item = &'static str> {
        let lists = |name, token: &str| {
            let value = self.header(name).unwrap_or_default();
            value.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(token))
        };
        let checks = [
            (self.method == "GET", "the request is not a GET"),
            (self.header("host").is_some(), "the request has no host header"),
            (lists("upgrade", "websocket"), "the upgrade header does not list websocket"),
            (lists("connection", "upgrade"), "the connection header does not list upgrade"),
            (lists("sec-websocket-version", "13"), "the websocket version is not 13"),
            (self.header("sec-websocket-key").is_some_and(|key| key.len() == 24), "the websocket key is not of 24 characters"),
        ];
        checks.into_iter().filter_map(|(kept, complaint)| (!kept).then_some(complaint))
    }
}

const HEADERS_MAX: usize = 128;
