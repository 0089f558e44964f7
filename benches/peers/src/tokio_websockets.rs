//! tokio-websockets as in its README and `examples/client.rs`, with the defaults; `connect_on` instead of `connect` because that is how
//! Nagle's algorithm can be switched off before the upgrade. Masks are from `fastrand`, the fastest of the generators it offers.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_websockets::{ClientBuilder, Connector, MaybeTlsStream, Message, Payload, WebSocketStream};

use crate::harness::contender::Target;
use crate::tokio_link::Socket;

pub(crate) struct TokioWebSockets(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket for TokioWebSockets {
    const NAME: &'static str = "tokio-websockets";

    type Text = Payload;

    async fn connect(target: &Target, tls: Option<Arc<ClientConfig>>) -> Self {
        let stream = TcpStream::connect(target.address).await.expect("the server accepts");
        stream.set_nodelay(true).expect("a socket");
        let connector = tls.map_or(Connector::Plain, |config| Connector::Rustls(config.into()));
        let stream = connector.wrap(&target.address.ip().to_string(), stream).await.expect("the server speaks TLS");
        let builder = ClientBuilder::new().uri(&target.url()).expect("a good URL");
        let (socket, _) = builder.connect_on(stream).await.expect("the server accepts");
        Self(socket)
    }

    async fn receive(&mut self) -> Payload {
        loop {
            let message = self.0.next().await.expect("the server stays").expect("the server writes");
            if message.is_text() {
                return message.into_payload();
            }
        }
    }

    fn payload(text: &Payload) -> &[u8] {
        text
    }

    async fn answer(&mut self, text: Payload) {
        self.0.send(Message::text(text)).await.expect("the server reads");
    }

    async fn send(&mut self, text: &str) {
        self.0.send(Message::text(text.to_owned())).await.expect("the server reads");
    }
}
