//! tungstenite on a blocking socket, for measurements that need more of it than a contender offers.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tungstenite::WebSocket;

use crate::harness::contender::Target;

pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Connects and upgrades; `tls` for a target that wants it.
pub(crate) fn connect(target: &Target, tls: Option<Arc<ClientConfig>>) -> WebSocket<Stream> {
    tungstenite::client(target.url(), Stream::connect(target, tls)).expect("the server accepts").0
}

impl Stream {
    pub(crate) fn connect(target: &Target, tls: Option<Arc<ClientConfig>>) -> Self {
        let tcp = TcpStream::connect(target.address).expect("the server accepts");
        tcp.set_nodelay(true).expect("a socket");
        match tls {
            None => Self::Plain(tcp),
            Some(config) => {
                let connection = ClientConnection::new(config, target.address.ip().into()).expect("good settings");
                Self::Tls(Box::new(StreamOwned::new(connection, tcp)))
            }
        }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}
