//! A WebSocket client by hand, the way a careful author writes one for a single feed: one buffer, one large read for all that the kernel
//! has, one write per frame.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection};

use crate::harness::contender::Target;
use crate::harness::frame;

const BUFFER: usize = 64 << 10;

pub(crate) struct Raw {
    stream: TcpStream,
    tls: Option<Box<Tls>>,
    /// Plain text: what was read and not yet taken is in `start..end`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    frame: Vec<u8>,
}

struct Tls {
    connection: ClientConnection,
    /// Encrypted bytes as they were read.
    records: Vec<u8>,
}

impl Raw {
    pub(crate) fn connect(target: &Target, tls: Option<Arc<ClientConfig>>) -> Self {
        let mut stream = TcpStream::connect(target.address).expect("the server accepts");
        stream.set_nodelay(true).expect("a socket");
        let tls = tls.map(|config| {
            let name = target.address.ip().into();
            let mut connection = ClientConnection::new(config, name).expect("good settings");
            while connection.is_handshaking() {
                connection.complete_io(&mut stream).expect("the server speaks TLS");
            }
            Box::new(Tls { connection, records: vec![0; BUFFER] })
        });
        let mut raw = Self { stream, tls, input: vec![0; BUFFER], start: 0, end: 0, frame: Vec::with_capacity(BUFFER) };
        raw.upgrade(target);
        raw
    }

    fn upgrade(&mut self, target: &Target) {
        let key = tungstenite::handshake::client::generate_key();
        write!(
            self.frame,
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {key}\r\n\r\n",
            target.path, target.address
        )
        .expect("memory does not fail");
        self.write_frame();
        loop {
            self.read();
            let head = &self.input[..self.end];
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(head));
                self.start = end + 4;
                return;
            }
        }
    }

    /// From here on, who has to wait spins.
    pub(crate) fn stay_awake(&self) {
        self.stream.set_nonblocking(true).expect("a socket");
    }

    /// Waits for the next text; its payload can be looked at until the next read.
    pub(crate) fn receive(&mut self) -> Range<usize> {
        loop {
            if let Some(payload) = self.take() {
                return payload;
            }
            self.read();
        }
    }

    /// The next text among what was read.
    pub(crate) fn take(&mut self) -> Option<Range<usize>> {
        let frame = frame::parse(&self.input[self.start..self.end])?;
        assert_eq!((frame.opcode, frame.key), (frame::TEXT, None), "the server sends texts only");
        let payload = self.start + frame.payload.start..self.start + frame.payload.end;
        self.start = payload.end;
        Some(payload)
    }

    pub(crate) fn payload(&self, payload: Range<usize>) -> &[u8] {
        &self.input[payload]
    }

    /// Waits until something has come.
    pub(crate) fn read(&mut self) {
        self.input.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let before = self.end;
        while self.end == before {
            let Some(tls) = &mut self.tls else {
                self.end += read(&mut self.stream, &mut self.input[before..]);
                return;
            };
            let count = read(&mut self.stream, &mut tls.records);
            let mut records = &tls.records[..count];
            while !records.is_empty() {
                tls.connection.read_tls(&mut records).expect("room for more");
                tls.connection.process_new_packets().expect("the server speaks TLS");
                self.end += drain(&mut tls.connection, &mut self.input, self.end);
            }
        }
    }

    pub(crate) fn send(&mut self, text: &[u8]) {
        self.frame.clear();
        frame::append(frame::TEXT, text, Some(mask_key()), &mut self.frame);
        self.write_frame();
    }

    /// Sends a payload back.
    pub(crate) fn answer(&mut self, payload: Range<usize>) {
        self.frame.clear();
        frame::append(frame::TEXT, &self.input[payload], Some(mask_key()), &mut self.frame);
        self.write_frame();
    }

    fn write_frame(&mut self) {
        let Some(tls) = &mut self.tls else { return write_all(&mut self.stream, &self.frame) };
        tls.connection.writer().write_all(&self.frame).expect("memory does not fail");
        while tls.connection.wants_write() {
            match tls.connection.write_tls(&mut self.stream) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                written => _ = written.expect("the server reads"),
            }
        }
    }
}

/// Moves plain text behind what the input holds, and returns how much.
fn drain(tls: &mut ClientConnection, input: &mut Vec<u8>, end: usize) -> usize {
    let mut count = 0;
    loop {
        if end + count == input.len() {
            input.resize(input.len() + BUFFER, 0);
        }
        match tls.reader().read(&mut input[end + count..]) {
            Ok(0) => return count,
            Ok(more) => count += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> usize {
    loop {
        match stream.read(buffer) {
            Ok(0) => panic!("the server left"),
            Ok(count) => return count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// As [`Write::write_all`], on a stream that may be non-blocking.
fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => panic!("the server reads: {error}"),
        }
    }
}

fn mask_key() -> [u8; 4] {
    rand::random::<u32>().to_ne_bytes()
}
