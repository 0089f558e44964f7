//! tungstenite on a blocking socket.

use std::any::Any;
use std::net::{Shutdown, TcpStream};
use std::thread;

use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

use crate::harness::blocking::Stream;
use crate::harness::contender::{Contender, Link, Next, Observer, Style, Target};
use crate::harness::tls::Settings;

pub(crate) fn all() -> Vec<Box<dyn Contender>> {
    let default = WebSocketConfig::default();
    vec![
        Box::new(Tungstenite { name: "tungstenite", config: default, tls: Settings::default() }),
        Box::new(Tungstenite { name: "tungstenite, 8 KiB", config: default.read_buffer_size(8 << 10), tls: Settings::default() }),
    ]
}

struct Tungstenite {
    name: &'static str,
    config: WebSocketConfig,
    tls: Settings,
}

impl Tungstenite {
    fn socket(&mut self, target: &Target, fresh: bool) -> WebSocket<Stream> {
        let stream = Stream::connect(target, self.tls.config(target, fresh));
        tungstenite::client::client_with_config(target.url(), stream, Some(self.config)).expect("the server accepts").0
    }
}

impl Contender for Tungstenite {
    fn name(&self) -> &'static str {
        self.name
    }

    fn style(&self) -> Style {
        Style::Parked
    }

    fn connect(&mut self, target: &Target, fresh: bool) -> Box<dyn Link> {
        Box::new(self.socket(target, fresh))
    }

    /// Who blocks needs a thread for each.
    fn hold(&mut self, target: &Target, count: usize) -> Option<Box<dyn Any>> {
        let hold = |_| {
            let mut socket = self.socket(target, false);
            let stream = socket.get_ref().tcp().try_clone().expect("descriptors");
            thread::spawn(move || while socket.read().is_ok() {});
            Held(stream)
        };
        Some(Box::new((0..count).map(hold).collect::<Vec<Held>>()))
    }
}

impl Link for WebSocket<Stream> {
    fn run(&mut self, first: &str, mut observer: Observer) -> Observer {
        Link::send(self, first);
        loop {
            let Message::Text(text) = self.read().expect("the server writes") else { continue };
            match observer.message(text.as_bytes()) {
                Next::Answer => WebSocket::send(self, Message::Text(text)).expect("the server reads"),
                Next::Continue => {}
                Next::Done => return observer,
            }
        }
    }

    fn send(&mut self, text: &str) {
        WebSocket::send(self, Message::text(text)).expect("the server reads");
    }
}

/// A connection on a thread, which ends with this.
struct Held(TcpStream);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
