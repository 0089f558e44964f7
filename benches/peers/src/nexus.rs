//! nexus-web as in its README: `Client::builder().tls(…).connect(…)`, then `recv` in a loop; on a blocking socket as it is there, and on
//! one that does not block, for which `recv` is documented too.

use std::any::Any;
use std::net::TcpStream;

use nexus_web::MaybeTls;
use nexus_web::tls::TlsConfig;
use nexus_web::ws::{Client, Message};

use crate::harness::contender::{Contender, Link, Next, Observer, Style, Target};
use crate::polled::Polled;

pub(crate) fn all() -> Vec<Box<dyn Contender>> {
    let nexus = |name, style| Box::new(Nexus { name, style, tls: None });
    vec![nexus("nexus-web", Style::Spinning), nexus("nexus-web, blocking", Style::Parked)]
}

struct Nexus {
    name: &'static str,
    style: Style,
    /// Made when it is first needed; connections share its session cache.
    tls: Option<TlsConfig>,
}

impl Nexus {
    /// `None` for plain TCP. With `fresh` they are settings of their own, because sessions cannot be kept from being resumed.
    fn config(&mut self, target: &Target, fresh: bool) -> Option<TlsConfig> {
        let root = target.root.as_deref()?;
        Some(if fresh { build(root) } else { self.tls.get_or_insert_with(|| build(root)).clone() })
    }
}

impl Contender for Nexus {
    fn name(&self) -> &'static str {
        self.name
    }

    fn style(&self) -> Style {
        self.style
    }

    fn connect(&mut self, target: &Target, fresh: bool) -> Box<dyn Link> {
        let tls = self.config(target, fresh);
        Box::new(NexusLink { socket: connect(target, tls.as_ref(), self.style), style: self.style, answer: String::new() })
    }

    /// On a thread that asks one after the other.
    fn hold(&mut self, target: &Target, count: usize) -> Option<Box<dyn Any>> {
        if self.style == Style::Parked {
            return None;
        }
        let tls = self.config(target, false);
        let target = target.clone();
        Some(Box::new(Polled::start(count, move || connect(&target, tls.as_ref(), Style::Spinning), poll)))
    }
}

fn connect(target: &Target, tls: Option<&TlsConfig>, style: Style) -> Client<MaybeTls<TcpStream>> {
    let builder = Client::builder().disable_nagle();
    let builder = match tls {
        None => builder,
        Some(config) => builder.tls(config),
    };
    let socket = builder.connect(&target.url()).expect("the server accepts");
    let stream = match socket.stream() {
        MaybeTls::Plain(stream) => stream,
        MaybeTls::Tls(tls) => tls.stream(),
    };
    stream.set_nonblocking(style == Style::Spinning).expect("a socket");
    socket
}

fn build(root: &[u8]) -> TlsConfig {
    TlsConfig::builder()
        .skip_system_certs()
        .add_root_cert(root.to_vec())
        .build()
        .expect("the server's root is a good certificate")
}

/// Answers a ping, which the library leaves to the user.
fn poll(socket: &mut Client<MaybeTls<TcpStream>>) {
    if let Some(Message::Ping(payload)) = socket.recv().expect("the server writes") {
        let payload = payload.to_vec();
        socket.send_pong(&payload).expect("the server reads");
    }
}

struct NexusLink {
    socket: Client<MaybeTls<TcpStream>>,
    style: Style,
    /// A copy of what is answered: the message cannot be held while the socket sends.
    answer: String,
}

impl Link for NexusLink {
    fn run(&mut self, first: &str, mut observer: Observer) -> Observer {
        self.send(first);
        loop {
            let text = match self.socket.recv().expect("the server writes") {
                Some(Message::Text(text)) => text,
                Some(_) => continue,
                None => {
                    assert_eq!(self.style, Style::Spinning, "the server stays");
                    continue;
                }
            };
            match observer.message(text.as_bytes()) {
                Next::Answer => {
                    self.answer.clear();
                    self.answer.push_str(text);
                    self.socket.send_text(&self.answer).expect("the server reads");
                }
                Next::Continue => {}
                Next::Done => return observer,
            }
        }
    }

    fn send(&mut self, text: &str) {
        self.socket.send_text(text).expect("the server reads");
    }
}
