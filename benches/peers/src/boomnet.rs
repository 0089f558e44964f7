//! boomnet as in its `benches/latency`: a websocket on a buffered stream that is asked for batches without a pause, the buffer large
//! enough for the largest message. Blocking as in its `examples/ws_client_blocking.rs`, without the sleep between batches that is there.
//!
//! Its masks are zero, it does not look at `Sec-WebSocket-Accept`, and text is not checked to be UTF-8.

use std::any::Any;
use std::fmt::Debug;
use std::io::{Read, Write};

use boomnet::stream::buffer::{BufferedStream, IntoBufferedStream};
use boomnet::stream::tcp::TcpStream;
use boomnet::stream::tls::IntoTlsStream;
use boomnet::stream::{ConnectionInfo, ConnectionInfoProvider, ReadHint};
use boomnet::ws::{IntoWebsocket, Websocket, WebsocketFrame};
use rustls_0_22::client::Resumption;
use rustls_0_22::{ClientConfig, RootCertStore};

use crate::harness::contender::{Contender, Link, Next, Observer, Style, Target};
use crate::polled::Polled;

/// The largest frame that is sent, and more.
const BUFFER: usize = 32 << 10;

pub(crate) fn all() -> Vec<Box<dyn Contender>> {
    let boomnet = |name, style| Box::new(Boomnet { name, style, tls: None });
    vec![boomnet("boomnet", Style::Spinning), boomnet("boomnet, blocking", Style::Parked)]
}

struct Boomnet {
    name: &'static str,
    style: Style,
    /// Made when it is first needed; connections share its session cache.
    tls: Option<ClientConfig>,
}

impl Boomnet {
    /// `None` for plain TCP. With `fresh` sessions are not resumed.
    fn config(&mut self, target: &Target, fresh: bool) -> Option<ClientConfig> {
        let root = target.root.as_deref()?;
        let mut config = self.tls.get_or_insert_with(|| build(root)).clone();
        if fresh {
            config.resumption = Resumption::disabled();
        }
        Some(config)
    }
}

impl Contender for Boomnet {
    fn name(&self) -> &'static str {
        self.name
    }

    fn style(&self) -> Style {
        self.style
    }

    fn connect(&mut self, target: &Target, fresh: bool) -> Box<dyn Link> {
        let stream = dial(target, self.style);
        match self.config(target, fresh) {
            None => Box::new(BoomnetLink { socket: upgrade::<_, BUFFER>(stream, target), is_tls: false }),
            Some(config) => {
                let stream = stream.into_tls_stream_with_config(|tls| *tls.as_rustls_mut() = config).expect("good settings");
                Box::new(BoomnetLink { socket: upgrade::<_, BUFFER>(stream, target), is_tls: true })
            }
        }
    }

    /// With the default buffer, on a thread that asks one after the other.
    fn hold(&mut self, target: &Target, count: usize) -> Option<Box<dyn Any>> {
        const DEFAULT: usize = boomnet::stream::buffer::DEFAULT_BUFFER_SIZE;
        if self.style == Style::Parked {
            return None;
        }
        let tls = self.config(target, false);
        let target = target.clone();
        let polled = match tls {
            None => Polled::start(count, move || upgrade::<_, DEFAULT>(dial(&target, Style::Spinning), &target), poll),
            Some(config) => {
                let open = move || {
                    let stream =
                        dial(&target, Style::Spinning).into_tls_stream_with_config(|tls| *tls.as_rustls_mut() = config.clone());
                    upgrade::<_, DEFAULT>(stream.expect("good settings"), &target)
                };
                Polled::start(count, open, poll)
            }
        };
        Some(Box::new(polled))
    }
}

fn dial(target: &Target, style: Style) -> TcpStream {
    ConnectionInfo::new(target.address.ip().to_string(), target.address.port())
        .with_socket_config(move |socket| socket.set_nonblocking(style == Style::Spinning))
        .into_tcp_stream_with_addr(target.address)
        .expect("the server accepts")
}

fn upgrade<S, const N: usize>(stream: S, target: &Target) -> Websocket<BufferedStream<S, N>>
where
    S: Read + Write + ReadHint + ConnectionInfoProvider,
{
    let mut socket = stream.into_buffered_stream::<N>().into_websocket(&target.path);
    while !socket.handshake_complete() {
        poll(&mut socket);
    }
    socket
}

/// Lets the library do what it does on the way to the next text: shake hands, answer pings, write what TLS has encrypted.
fn poll<S: Read + Write + ReadHint>(socket: &mut Websocket<S>) {
    for frame in socket.read_batch().expect("the server accepts") {
        frame.expect("the server accepts");
    }
}

/// The settings of `harness::tls`, in the older rustls that boomnet uses.
fn build(root: &[u8]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(root.to_vec().into()).expect("the server's root is a good certificate");
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

struct BoomnetLink<S> {
    socket: Websocket<S>,
    is_tls: bool,
}

impl<S: Read + Write + ReadHint + Debug> Link for BoomnetLink<S> {
    fn run(&mut self, first: &str, mut observer: Observer) -> Observer {
        self.socket.send_text(true, Some(first.as_bytes())).expect("the server reads");
        loop {
            let mut answer = None;
            for frame in self.socket.read_batch().expect("the server writes") {
                let WebsocketFrame::Text(_, payload) = frame.expect("the server writes") else { continue };
                match observer.message(payload) {
                    Next::Answer => {
                        answer = Some(payload);
                        break;
                    }
                    Next::Continue => {}
                    Next::Done => return observer,
                }
            }
            if let Some(payload) = answer {
                self.socket.send_text(true, Some(payload)).expect("the server reads");
            }
        }
    }

    fn send(&mut self, text: &str) {
        self.socket.send_text(true, Some(text.as_bytes())).expect("the server reads");
        // In TLS a send only encrypts; the next read writes.
        if self.is_tls {
            poll(&mut self.socket);
        }
    }
}
