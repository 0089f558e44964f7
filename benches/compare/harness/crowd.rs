//! The server's end of thousands of connections that do little: one thread and one poll, plain and TLS.
//!
//! The path of the upgrade request says what becomes of a connection; see [`Crowd::enrol`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::{ServerConfig, ServerConnection};
use tungstenite::handshake::derive_accept_key;

use crate::harness::frame;

/// Listens on two ports, plain and TLS, and serves whoever comes until the process ends.
pub(crate) fn start(tls: Arc<ServerConfig>) -> [SocketAddr; 2] {
    raise_descriptors();
    let doors = [None, Some(tls)].map(|tls| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
        Door { listener, tls }
    });
    let addresses = doors.each_ref().map(|door| door.listener.local_addr().expect("bound"));
    let mut crowd = Crowd::new(doors).expect("a poller");
    thread::spawn(move || crowd.run().expect("a poller and descriptors"));
    addresses
}

/// Lets this process have as many descriptors as it may; returns how many those are.
pub(crate) fn raise_descriptors() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let limit = if setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() { maximum } else { current };
    limit.unwrap_or(u64::MAX)
}

struct Crowd {
    poll: Poll,
    doors: [Door; 2],
    members: Vec<Option<Member>>,
    free: Vec<usize>,
    /// How many pings came in all, and how many pongs.
    pings: u64,
    pongs: u64,
    censuses: Vec<Census>,
    storm: Option<Storm>,
}

struct Door {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
}

/// One connection.
struct Member {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    is_upgraded: bool,
    /// Whether any message ends it.
    is_mortal: bool,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Somebody wants to know when so many of these frames have come.
struct Census {
    member: usize,
    opcode: u8,
    wanted: u64,
}

/// One after the other is killed.
struct Storm {
    interval: Duration,
    next: Instant,
    /// Who has lived longest is first.
    doomed: VecDeque<usize>,
}

impl Crowd {
    fn new(mut doors: [Door; 2]) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (index, door) in doors.iter_mut().enumerate() {
            door.listener.register(poll.registry(), Token(index), Interest::READABLE)?;
        }
        Ok(Self { poll, doors, members: Vec::new(), free: Vec::new(), pings: 0, pongs: 0, censuses: Vec::new(), storm: None })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            let wait = self.storm.as_ref().map(|storm| storm.next.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                let Token(token) = event.token();
                match token.checked_sub(self.doors.len()) {
                    None => self.accept(token)?,
                    // Who leaves or breaks the protocol is dropped.
                    Some(index) => self.serve(index).unwrap_or_else(|_| self.remove(index)),
                }
            }
            self.take_census();
            self.kill_due();
        }
    }

    fn accept(&mut self, door: usize) -> io::Result<()> {
        loop {
            let Door { listener, tls } = &self.doors[door];
            let mut stream = match listener.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                accepted => accepted?.0,
            };
            let tls = tls.clone().map(ServerConnection::new).transpose().map_err(io::Error::other)?.map(Box::new);
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.members.push(None);
                self.members.len() - 1
            });
            let token = Token(self.doors.len() + index);
            stream.register(self.poll.registry(), token, Interest::READABLE | Interest::WRITABLE)?;
            self.members[index] = Some(Member::new(stream, tls));
        }
    }

    fn serve(&mut self, index: usize) -> io::Result<()> {
        let Some(member) = &mut self.members[index] else { return Ok(()) };
        member.fill()?;
        if !member.is_upgraded {
            let Some(path) = member.upgrade() else { return member.flush() };
            self.enrol(index, &path);
        }
        let Some(member) = &mut self.members[index] else { return Ok(()) };
        while let Some((opcode, payload)) = member.take_frame() {
            match opcode {
                frame::PING => {
                    self.pings += 1;
                    frame::append(frame::PONG, &payload, None, &mut member.output);
                }
                frame::PONG => self.pongs += 1,
                frame::CLOSE => {
                    frame::append(frame::CLOSE, &payload, None, &mut member.output);
                    member.flush()?;
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                _ if member.is_mortal => return Err(ErrorKind::ConnectionAborted.into()),
                _ => {}
            }
        }
        member.flush()
    }

    /// What becomes of a connection. Whatever it is, its pings are answered.
    fn enrol(&mut self, index: usize, path: &str) {
        let Some(member) = &mut self.members[index] else { return };
        let (name, number) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        let number = number.parse().unwrap_or(1);
        match name {
            // "/idle": it is pinged once.
            "idle" => frame::append(frame::PING, b"", None, &mut member.output),
            // "/mortal": it is greeted, and killed when it says anything.
            "mortal" => {
                member.is_mortal = true;
                frame::append(frame::TEXT, b"hello", None, &mut member.output);
            }
            // "/pings/N", "/pongs/N": it is told when this many pings or pongs have come from others.
            "pings" => self.censuses.push(Census { member: index, opcode: frame::PING, wanted: self.pings + number }),
            "pongs" => self.censuses.push(Census { member: index, opcode: frame::PONG, wanted: self.pongs + number }),
            // "/storm/N": so many of these are killed per second, in turn.
            "storm" => {
                let interval = Duration::from_secs(1) / number as u32;
                let begin = || Storm { interval, next: Instant::now() + interval, doomed: VecDeque::new() };
                self.storm.get_or_insert_with(begin).doomed.push_back(index);
            }
            _ => {}
        }
    }

    fn take_census(&mut self) {
        let (pings, pongs) = (self.pings, self.pongs);
        let is_reached = |census: &mut Census| census.wanted <= if census.opcode == frame::PING { pings } else { pongs };
        for census in self.censuses.extract_if(.., is_reached) {
            if let Some(member) = &mut self.members[census.member] {
                frame::append(frame::TEXT, b"reached", None, &mut member.output);
                // If that fails, the poll tells of it too.
                let _ = member.flush();
            }
        }
    }

    fn kill_due(&mut self) {
        while let Some(storm) = &mut self.storm
            && storm.next <= Instant::now()
        {
            storm.next += storm.interval;
            match storm.doomed.pop_front() {
                Some(index) => self.remove(index),
                None => self.storm = None,
            }
        }
    }

    /// Drops a connection without a word.
    fn remove(&mut self, index: usize) {
        if self.members[index].take().is_some() {
            self.free.push(index);
            self.censuses.retain(|census| census.member != index);
            if let Some(storm) = &mut self.storm {
                storm.doomed.retain(|doomed| *doomed != index);
            }
        }
    }
}

impl Member {
    fn new(stream: TcpStream, tls: Option<Box<ServerConnection>>) -> Self {
        Self { stream, tls, is_upgraded: false, is_mortal: false, input: Vec::new(), output: Vec::new() }
    }

    /// Reads whatever has come.
    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let read = match &mut self.tls {
                Some(tls) => tls.read_tls(&mut self.stream),
                None => self.stream.read(&mut buffer),
            };
            let count = match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                read => read?,
            };
            let Some(tls) = &mut self.tls else {
                self.input.extend_from_slice(&buffer[..count]);
                continue;
            };
            tls.process_new_packets().map_err(io::Error::other)?;
            match tls.reader().read_to_end(&mut self.input) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }

    /// Writes as much as the kernel takes.
    fn flush(&mut self) -> io::Result<()> {
        loop {
            let written = match &mut self.tls {
                Some(tls) => {
                    tls.writer().write_all(&mem::take(&mut self.output))?;
                    if !tls.wants_write() {
                        return Ok(());
                    }
                    tls.write_tls(&mut self.stream)
                }
                None if self.output.is_empty() => return Ok(()),
                None => self.stream.write(&self.output).inspect(|count| drop(self.output.drain(..*count))),
            };
            match written {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                written => written?,
            };
        }
    }

    /// Answers the upgrade request, if it has come whole, and returns its path.
    fn upgrade(&mut self) -> Option<String> {
        let end = self.input.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head: Vec<u8> = self.input.drain(..end).collect();
        let head = String::from_utf8_lossy(&head);
        let key = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
        });
        let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.output.extend_from_slice(answer.as_bytes());
        self.is_upgraded = true;
        Some(head.split(' ').nth(1).unwrap_or_default().to_owned())
    }

    /// Opcode and payload of the next frame, if it has come whole.
    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let frame = frame::parse(&self.input)?;
        let mut payload = self.input[frame.payload.clone()].to_vec();
        if let Some(key) = frame.key {
            frame::apply_mask(&mut payload, key);
        }
        self.input.drain(..frame.payload.end);
        Some((frame.opcode, payload))
    }
}
