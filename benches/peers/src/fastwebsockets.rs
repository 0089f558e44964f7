//! fastwebsockets as in its README, `examples/tls_client.rs` and `examples/autobahn_client.rs`: the upgrade by hyper, then a
//! `FragmentCollector` with the defaults. The request names the path alone, because hyper would send the whole URL to the server.

use std::sync::Arc;

use fastwebsockets::{FragmentCollector, Frame, OpCode, Payload, handshake};
use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::rt::Executor;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::contender::Target;
use crate::tokio_link::Socket;

pub(crate) struct FastWebSockets(FragmentCollector<TokioIo<Upgraded>>);

impl FastWebSockets {
    async fn upgrade(target: &Target, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let request = Request::builder()
            .uri(&target.path)
            .header("Host", target.address.to_string())
            .header(UPGRADE, "websocket")
            .header(CONNECTION, "upgrade")
            .header("Sec-WebSocket-Key", handshake::generate_key())
            .header("Sec-WebSocket-Version", "13")
            .body(Empty::<Bytes>::new())
            .expect("a good request");
        let (socket, _) = handshake::client(&Spawn, request, stream).await.expect("the server accepts");
        Self(FragmentCollector::new(socket))
    }
}

impl Socket for FastWebSockets {
    const NAME: &'static str = "fastwebsockets";

    type Text = Payload<'static>;

    async fn connect(target: &Target, tls: Option<Arc<ClientConfig>>) -> Self {
        let stream = TcpStream::connect(target.address).await.expect("the server accepts");
        stream.set_nodelay(true).expect("a socket");
        let Some(config) = tls else { return Self::upgrade(target, stream).await };
        let connected = TlsConnector::from(config).connect(target.address.ip().into(), stream).await;
        Self::upgrade(target, connected.expect("the server speaks TLS")).await
    }

    async fn receive(&mut self) -> Payload<'static> {
        loop {
            let frame = self.0.read_frame().await.expect("the server writes");
            if frame.opcode == OpCode::Text {
                return frame.payload;
            }
        }
    }

    fn payload<'a>(text: &'a Payload<'static>) -> &'a [u8] {
        text
    }

    async fn answer(&mut self, text: Payload<'static>) {
        self.0.write_frame(Frame::text(text)).await.expect("the server reads");
    }

    async fn send(&mut self, text: &str) {
        self.0.write_frame(Frame::text(text.as_bytes().into())).await.expect("the server reads");
    }
}

/// Ties hyper's tasks to tokio.
struct Spawn;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Spawn {
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}
