//! A WebSocket client by hand, the way a careful author writes one for a single feed: one buffer, one read per message if the kernel
//! has it whole, one write per frame.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

const BUFFER: usize = 64 << 10;

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
    frame: Vec<u8>,
    /// Where the latest payload ends in `buffer`.
    end: usize,
}

impl Raw {
    pub(crate) fn connect(address: SocketAddr, path: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_nodelay(true).expect("a socket");
        let key = tungstenite::handshake::client::generate_key();
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {key}\r\n\r\n"
        )
        .expect("sent");
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        Self { stream, buffer: vec![0; BUFFER], frame: Vec::with_capacity(BUFFER), end: 0 }
    }

    /// Sends a text of 126 to 65,535 bytes.
    pub(crate) fn send(&mut self, text: &str) {
        encode(text.as_bytes(), &mut self.frame);
        self.stream.write_all(&self.frame).expect("the server reads");
    }

    /// Sends the latest text back.
    pub(crate) fn answer(&mut self) {
        encode(&self.buffer[4..self.end], &mut self.frame);
        self.stream.write_all(&self.frame).expect("the server reads");
    }

    /// The next text. On a non-blocking socket it spins.
    pub(crate) fn receive(&mut self) -> &str {
        let mut filled = 0;
        loop {
            match self.stream.read(&mut self.buffer[filled..]) {
                Ok(0) => panic!("the server left"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => panic!("{error}"),
            }
            if let [0x81, 126, a, b, ..] = self.buffer[..filled] {
                self.end = 4 + usize::from(u16::from_be_bytes([a, b]));
                if filled >= self.end {
                    assert_eq!(filled, self.end, "one message at a time");
                    return str::from_utf8(&self.buffer[4..self.end]).expect("text");
                }
            }
        }
    }
}

/// Writes the frame of a text of 126 to 65,535 bytes.
pub(crate) fn encode(text: &[u8], frame: &mut Vec<u8>) {
    let key = rand::random::<u32>().to_ne_bytes();
    frame.clear();
    frame.extend_from_slice(&[0x81, 0x80 | 126]);
    frame.extend_from_slice(&(text.len() as u16).to_be_bytes());
    frame.extend_from_slice(&key);
    frame.extend_from_slice(text);
    let word = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (chunks, rest) = frame[8..].as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key) {
        *byte ^= key;
    }
}
