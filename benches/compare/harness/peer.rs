//! The server's end of a connection.

use std::hint;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::{ServerConfig, ServerConnection};
use tungstenite::handshake::derive_accept_key;

use crate::harness::frame;

/// What is written at a time in a flood: so many records in TLS, so many bytes without.
const BURST_RECORDS: usize = 100;
const BURST_BYTES: usize = 64 << 10;

/// Holds the largest frame that comes.
const BUFFER: usize = 32 << 10;

/// How long an awake connection waits awake: longer than anything but another contender's turn.
const AWAKE: Duration = Duration::from_millis(1);

/// How many digits a stamp has.
pub(crate) const STAMP: usize = 20;

/// A connection; its path says what it does.
pub(crate) struct Peer {
    wire: Wire,
    path: String,
    /// Plain text: what was read and not yet taken.
    input: Vec<u8>,
    /// Frames to be written.
    output: Vec<u8>,
}

/// The bytes below the frames.
struct Wire {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Encrypted bytes to be written.
    records: Vec<u8>,
    buffer: Vec<u8>,
    /// Whether reads spin before they sleep.
    is_awake: bool,
    is_nonblocking: bool,
}

impl Peer {
    /// Answers the upgrade request.
    pub(crate) fn accept(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let tls = tls.map(ServerConnection::new).transpose().map_err(io::Error::other)?.map(|mut tls| {
            tls.set_buffer_limit(None);
            Box::new(tls)
        });
        let buffer = vec![0; BUFFER];
        let wire = Wire { stream, tls, records: Vec::new(), buffer, is_awake: false, is_nonblocking: false };
        let mut peer = Self { wire, path: String::new(), input: Vec::new(), output: Vec::new() };
        let end = loop {
            peer.wire.read(&mut peer.input)?;
            if let Some(end) = peer.input.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head: Vec<u8> = peer.input.drain(..end).collect();
        let head = String::from_utf8_lossy(&head);
        head.split(' ').nth(1).unwrap_or_default().clone_into(&mut peer.path);
        let key = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
        });
        let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
        write!(
            peer.output,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        )?;
        peer.flush()?;
        Ok(peer)
    }

    pub(crate) fn serve(mut self) -> io::Result<()> {
        match self.path.as_str() {
            // Every message goes back.
            "/echo" => self.echo(),
            // The same without sleeping between messages that follow each other.
            "/echo-awake" => {
                self.wire.is_awake = true;
                self.echo()
            }
            // "COUNT RATE SIZE" asks for so many messages, so many per second, of so many bytes, each with the time it is due in front.
            "/ticks" => self.ticks(),
            // "COUNT SIZE" asks for so many messages of so many bytes, as fast as they go.
            "/flood" => self.flood(),
            // Nothing comes back. Without sleeping: a write that wakes nobody takes a fraction of one that does, so it is the harder measure.
            "/sink" => {
                self.wire.is_awake = true;
                loop {
                    self.receive()?;
                }
            }
            _ => Ok(()),
        }
    }

    fn echo(&mut self) -> io::Result<()> {
        loop {
            let message = self.receive()?;
            frame::append(frame::TEXT, &message, None, &mut self.output);
            if self.input.is_empty() {
                self.flush()?;
            }
        }
    }

    /// Keeps its own schedule: a client that is late finds the messages waiting, with stamps that tell.
    fn ticks(&mut self) -> io::Result<()> {
        loop {
            let [count, rate, size] = self.request()?;
            let mut text = filler(size);
            let (start, start_stamp) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
            for index in 0..count {
                let due = Duration::from_nanos((index + 1) as u64 * 1_000_000_000 / rate as u64);
                stamp(&mut text, start_stamp + due);
                frame::append(frame::TEXT, &text, None, &mut self.output);
                while start.elapsed() < due {
                    hint::spin_loop();
                }
                self.flush()?;
            }
        }
    }

    fn flood(&mut self) -> io::Result<()> {
        loop {
            let [count, size] = self.request()?;
            let mut message = Vec::new();
            frame::append(frame::TEXT, &filler(size), None, &mut message);
            self.wire.flood(&message, count)?;
        }
    }

    fn request<const N: usize>(&mut self) -> io::Result<[usize; N]> {
        let text = self.receive()?;
        let words: Option<Vec<usize>> =
            str::from_utf8(&text).ok().and_then(|text| text.split_whitespace().map(|word| word.parse().ok()).collect());
        words.and_then(|words| words.try_into().ok()).ok_or_else(|| ErrorKind::InvalidData.into())
    }

    /// The next message. Pings are answered; a Close frame is, and is an error.
    fn receive(&mut self) -> io::Result<Vec<u8>> {
        loop {
            while let Some(frame) = frame::parse(&self.input) {
                let mut payload = self.input[frame.payload.clone()].to_vec();
                if let Some(key) = frame.key {
                    frame::apply_mask(&mut payload, key);
                }
                self.input.drain(..frame.payload.end);
                match frame.opcode {
                    frame::TEXT => return Ok(payload),
                    frame::PING => frame::append(frame::PONG, &payload, None, &mut self.output),
                    frame::CLOSE => {
                        frame::append(frame::CLOSE, &payload, None, &mut self.output);
                        self.flush()?;
                        return Err(ErrorKind::ConnectionAborted.into());
                    }
                    _ => {}
                }
            }
            self.flush()?;
            self.wire.read(&mut self.input)?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            self.wire.write(&self.output)?;
            self.output.clear();
        }
        Ok(())
    }
}

impl Wire {
    /// Appends what comes next.
    fn read(&mut self, input: &mut Vec<u8>) -> io::Result<()> {
        let before = input.len();
        while input.len() == before {
            let count = self.read_stream()?;
            let Some(tls) = &mut self.tls else {
                input.extend_from_slice(&self.buffer[..count]);
                continue;
            };
            let mut bytes = &self.buffer[..count];
            while !bytes.is_empty() {
                tls.read_tls(&mut bytes)?;
                tls.process_new_packets().map_err(io::Error::other)?;
                match tls.reader().read_to_end(input) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                    _ => {}
                }
            }
            // The handshake.
            if tls.wants_write() {
                self.write(&[])?;
            }
        }
        Ok(())
    }

    fn read_stream(&mut self) -> io::Result<usize> {
        let start = Instant::now();
        loop {
            if self.is_awake != self.is_nonblocking {
                self.stream.set_nonblocking(self.is_awake)?;
                self.is_nonblocking = self.is_awake;
            }
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if start.elapsed() > AWAKE {
                        self.stream.set_nonblocking(false)?;
                        self.is_nonblocking = false;
                        let count = self.stream.peek(&mut [0])?;
                        if count == 0 {
                            return Err(ErrorKind::UnexpectedEof.into());
                        }
                    }
                }
                read => return read,
            }
        }
    }

    /// Writes frames, in TLS as one record unless they are longer.
    fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return write_all(&mut self.stream, frames) };
        tls.writer().write_all(frames)?;
        self.records.clear();
        while tls.wants_write() {
            tls.write_tls(&mut self.records)?;
        }
        write_all(&mut self.stream, &self.records)
    }

    /// Writes a frame so many times. In TLS all of them are encrypted before the first leaves, so that the client is not measured by the
    /// time its peer takes to encrypt.
    fn flood(&mut self, frame: &[u8], count: usize) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            let per_burst = BURST_BYTES.div_ceil(frame.len());
            let burst = frame.repeat(per_burst.min(count));
            let mut left = count;
            while left > 0 {
                let now = left.min(per_burst);
                write_all(&mut self.stream, &burst[..now * frame.len()])?;
                left -= now;
            }
            return Ok(());
        };
        self.records.clear();
        let mut bursts = Vec::new();
        for index in 1..=count {
            tls.writer().write_all(frame)?;
            if index % BURST_RECORDS == 0 || index == count {
                while tls.wants_write() {
                    tls.write_tls(&mut self.records)?;
                }
                bursts.push(self.records.len());
            }
        }
        let mut from = 0;
        for to in bursts {
            write_all(&mut self.stream, &self.records[from..to])?;
            from = to;
        }
        Ok(())
    }
}

/// As [`Write::write_all`], on a stream that may be non-blocking.
fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A text of this many bytes that looks like a feed's.
pub(crate) fn filler(size: usize) -> Vec<u8> {
    b"00000000000000000000 {\"op\":\"trade\",\"price\":1234.5,\"size\":7}".iter().copied().cycle().take(size).collect()
}

/// Puts nanoseconds since the epoch in front of a text.
fn stamp(text: &mut [u8], time: Duration) {
    let mut left = time.as_nanos();
    for digit in text[..STAMP].iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
}
