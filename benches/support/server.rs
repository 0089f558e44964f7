//! The server of the benchmarks: blocking std sockets, one thread per connection, in a process of its own.
//!
//! The path of the upgrade request says what a connection does; see [`serve`].

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use tungstenite::handshake::derive_accept_key;

use crate::pin;

/// The argument that makes the benchmark's own binary a server.
pub(crate) const ARGUMENT: &str = "--serve";

/// Small, because thousands of connections have one each.
const BUFFER: usize = 16 << 10;
const STACK: usize = 64 << 10;

/// The server process, which ends with this.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(env::current_exe().expect("our own path"))
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the server says its address");
        Self { child, address: line.trim().parse().expect("an address") }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("ws://{}/{path}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the server process does, until the process that started it is gone.
#[expect(clippy::print_stdout, reason = "the address goes to the parent through a pipe")]
pub(crate) fn run() {
    pin(0);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    println!("{}", listener.local_addr().expect("bound"));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that leaves ends its thread.
            let _ = thread::Builder::new().stack_size(STACK).spawn(|| serve(stream));
        }
    });
    let _ = io::stdin().read(&mut [0]);
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let path = accept(&mut stream)?;
    // Every message goes back.
    if path == "/echo" { echo(stream) } else { Ok(()) }
}

/// Answers the upgrade request and returns its path.
fn accept(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
    });
    let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    Ok(path)
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut answer = Vec::with_capacity(BUFFER);
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        answer.clear();
        let mut at = 0;
        while let Some(size) = answer_frame(&mut buffer[at..filled], &mut answer) {
            at += size;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        stream.write_all(&answer)?;
    }
}

/// Appends the answer to the frame at the front of `input`, and returns that frame's size if it has come whole.
fn answer_frame(input: &mut [u8], answer: &mut Vec<u8>) -> Option<usize> {
    let (&first, &second) = (input.first()?, input.get(1)?);
    let (header, length) = match second & 0x7F {
        126 => (4, usize::from(u16::from_be_bytes([*input.get(2)?, *input.get(3)?]))),
        127 => unreachable!("the benchmarks send no such frames"),
        length => (2, usize::from(length)),
    };
    let size = header + 4 + length;
    let frame = input.get_mut(..size)?;
    let (head, payload) = frame.split_at_mut(header + 4);
    let key = [head[header], head[header + 1], head[header + 2], head[header + 3]];
    for (index, byte) in payload.iter_mut().enumerate() {
        *byte ^= key[index % 4];
    }
    // A ping is answered by a pong; a Close frame, as text, by itself.
    answer.push(if first == 0x89 { 0x8A } else { first });
    answer.push(second & 0x7F);
    answer.extend_from_slice(&head[2..header]);
    answer.extend_from_slice(payload);
    Some(size)
}
