//! tokio-tungstenite as in its `examples/client.rs`: `connect_async` with the defaults, but without Nagle's algorithm and with our root.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use crate::harness::contender::Target;
use crate::tokio_link::Socket;

pub(crate) struct TokioTungstenite(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket for TokioTungstenite {
    const NAME: &'static str = "tokio-tungstenite";

    type Text = Utf8Bytes;

    async fn connect(target: &Target, tls: Option<Arc<ClientConfig>>) -> Self {
        let connector = tls.map(Connector::Rustls);
        let connected = tokio_tungstenite::connect_async_tls_with_config(target.url(), None, true, connector).await;
        let (socket, _) = connected.expect("the server accepts");
        Self(socket)
    }

    async fn receive(&mut self) -> Utf8Bytes {
        loop {
            if let Message::Text(text) = self.0.next().await.expect("the server stays").expect("the server writes") {
                return text;
            }
        }
    }

    fn payload(text: &Utf8Bytes) -> &[u8] {
        text.as_ref()
    }

    async fn answer(&mut self, text: Utf8Bytes) {
        self.0.send(Message::Text(text)).await.expect("the server reads");
    }

    async fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.expect("the server reads");
    }
}
