//! Watches connections in the terminal, one row each, drawn anew every second; plain lines if the output is no terminal.
//!
//! `cargo run --release --example monitor [-- --seconds N] [URL…]`
//!
//! Without URLs it watches five connections to embedded exchanges: one that is fine, one whose consumer is slow, one that is reset again
//! and again, one with a slow path, and one that is refused.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zen_websocket::telemetry::{self, Filter, Observed, Signal};
use zen_websocket::testkit::{MockServer, Peer, Script};
use zen_websocket::{Client, Config, ConnectionId, JsonRpc, Latency, Metrics, Overflow, Reactor, ReactorMetrics, State};

const INTERVAL: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let (mut seconds, mut urls) = (10, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--seconds" => seconds = arguments.next().ok_or("--seconds wants a number")?.parse()?,
            option if option.starts_with('-') => return Err("usage: monitor [--seconds N] [URL…]".into()),
            _ => urls.push(argument),
        }
    }

    let notes = Arc::new(Notes::default());
    let observer = notes.clone();
    let _guard = telemetry::attach(Filter::name("connection")?, move |observed| observer.note(observed));
    let reactor = Reactor::builder().start()?;
    let (mut exchanges, mut clients) = (Vec::new(), Vec::new());
    for url in &urls {
        clients.push(open(&reactor, Config::new(url), Duration::ZERO)?);
    }
    if urls.is_empty() {
        for (script, pause) in faults() {
            let exchange = MockServer::builder().script(script).start()?;
            let client = open(&reactor, Config::new(exchange.url()).dialect(JsonRpc::default()), pause)?;
            exchanges.push(exchange);
            clients.push(client.clone());
            thread::spawn(move || trade(&client));
        }
    }

    let is_terminal = io::stdout().is_terminal();
    let mut before = Sample::take(&reactor, &clients);
    for tick in 0..seconds {
        thread::sleep(INTERVAL);
        let sample = Sample::take(&reactor, &clients);
        let lines = sample.lines(&before, &notes, is_terminal);
        let shown = if is_terminal { draw(&lines, tick > 0) } else { print(&lines) };
        match shown {
            // Whoever read has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            shown => shown?,
        }
        before = sample;
    }
    Ok(())
}

/// Opens a connection whose consumer takes so long for each event.
fn open(reactor: &Reactor, config: Config, pause: Duration) -> zen_websocket::Result<Client> {
    let config = config.heartbeat_interval(INTERVAL).inbox_capacity(1024).overflow(Overflow::DropNewest);
    let (client, inbox) = reactor.open(config)?;
    thread::spawn(move || inbox.iter().for_each(|_| thread::sleep(pause)));
    Ok(client)
}

/// What telemetry tells and metrics do not: of each connection its host, and what went wrong last.
#[derive(Default)]
struct Notes(Mutex<HashMap<ConnectionId, (String, String)>>);

impl Notes {
    fn note(&self, observed: &Observed<'_>) {
        let Some(connection) = observed.connection else { return };
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (host, error) = notes.entry(connection).or_default();
        match observed.signal {
            Signal::Dial { .. } => observed.host.clone_into(host),
            Signal::DialFailed { cause, .. } | Signal::Lost { cause, .. } | Signal::Closed { cause: Some(cause) } => {
                *error = cause.to_string();
            }
            _ => {}
        }
    }

    fn of(&self, connection: ConnectionId) -> (String, String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&connection).cloned().unwrap_or_default()
    }
}

/// How everything stands at one moment.
struct Sample {
    at: Instant,
    reactor: ReactorMetrics,
    connections: Vec<(Client, Metrics)>,
}

impl Sample {
    fn take(reactor: &Reactor, clients: &[Client]) -> Self {
        let connections = clients.iter().map(|client| (client.clone(), client.metrics())).collect();
        Self { at: Instant::now(), reactor: reactor.metrics(), connections }
    }

    fn lines(&self, before: &Self, notes: &Notes, is_coloured: bool) -> Vec<String> {
        let seconds = (self.at - before.at).as_secs_f64();
        let rate = |now: u64, then: u64| (now - then) as f64 / seconds;
        let ReactorMetrics { turns, busy, longest_stall, .. } = self.reactor;
        let mut lines = vec![format!(
            "reactor: {:.0} turns/s, {:.1} % busy, longest stall {}",
            rate(turns, before.reactor.turns),
            (busy - before.reactor.busy).as_secs_f64() / seconds * 100.0,
            longest_stall.map_or("none".to_owned(), |stall| format!("{:.1?} ({})", stall.took, stall.connection)),
        )];
        for ((client, now), (_, then)) in self.connections.iter().zip(&before.connections) {
            let (latency, (host, error)) = (client.latency(), notes.of(client.id()));
            let cells = [
                ("id", 3, client.id().to_string().replace("connection ", "")),
                ("host", 21, host),
                ("state", 10, if is_coloured { coloured(now.state) } else { format!("{:?}", now.state) }),
                ("wire", 4, now.generation.number().to_string()),
                ("up s", 6, now.uptime.map_or("-".to_owned(), |uptime| format!("{:.1}", uptime.as_secs_f64()))),
                ("in/s", 6, format!("{:.0}", rate(now.messages_in, then.messages_in))),
                ("out/s", 6, format!("{:.0}", rate(now.messages_out, then.messages_out))),
                ("kB/s in", 7, format!("{:.1}", rate(now.bytes_in, then.bytes_in) / 1000.0)),
                ("kB/s out", 8, format!("{:.1}", rate(now.bytes_out, then.bytes_out) / 1000.0)),
                ("calls p50/p99 ms", 16, percentiles(latency.calls)),
                ("pings p50/p99 ms", 16, percentiles(latency.pings)),
                ("inbox", 6, now.inbox_depth.map_or("-".to_owned(), |depth| depth.to_string())),
                ("drops", 7, now.dropped.to_string()),
                ("unsent", 7, now.unsent.to_string()),
                ("last error", 0, error),
            ];
            if lines.len() == 1 {
                lines.push(cells.iter().map(|(name, width, _)| format!("{name:>width$}  ")).collect());
            }
            lines.push(cells.iter().map(|(_, width, cell)| format!("{cell:>width$}  ")).collect());
        }
        lines
    }
}

fn percentiles(latency: Option<Latency>) -> String {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    latency.map_or("-".to_owned(), |latency| format!("{:.2}/{:.2}", ms(latency.recent.p50), ms(latency.recent.p99)))
}

fn coloured(state: State) -> String {
    let colour = match state {
        State::Open | State::Live => 32,
        State::Closing | State::Closed => 31,
        _ => 33,
    };
    // Padded in here: the escapes count as characters where columns are aligned.
    format!("\x1b[{colour}m{:>10}\x1b[0m", format!("{state:?}"))
}

/// Draws over the lines that were drawn before. None wraps, or those below it would move.
fn draw(lines: &[String], is_again: bool) -> io::Result<()> {
    let up = if is_again { format!("\x1b[{}A", lines.len()) } else { String::new() };
    let text: String = lines.iter().map(|line| format!("\x1b[2K{line}\n")).collect();
    write_all(&format!("\x1b[?7l{up}{text}\x1b[?7h"))
}

fn print(lines: &[String]) -> io::Result<()> {
    write_all(&lines.iter().map(|line| line.trim_end().to_owned() + "\n").collect::<String>())
}

fn write_all(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// What the exchanges do, and how long the consumers of what they send take for each event.
fn faults() -> [(Script, Duration); 5] {
    let ms = Duration::from_millis;
    let script = || Script::new().on_open(stream_ticks).on_text(answer);
    let (slow, refused) = (script().delay(ms(20)), Script::new().status(503));
    [(script(), ms(0)), (script(), ms(3)), (script().reset_after(ms(2500)), ms(0)), (slow, ms(0)), (refused, ms(0))]
}

fn stream_ticks(peer: &Peer) {
    let peer = peer.clone();
    thread::spawn(move || {
        while peer.is_open() {
            peer.send_text(r#"{"method":"subscription","params":{"channel":"ticker","data":{"bid":64000.5}}}"#);
            thread::sleep(Duration::from_millis(1));
        }
    });
}

fn answer(peer: &Peer, text: &str) {
    let request: Value = serde_json::from_str(text).unwrap_or_default();
    peer.send_text(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": "ok" }).to_string());
}

/// Calls the exchange, whenever there is one, until the connection has ended.
fn trade(client: &Client) {
    while client.state() != State::Closed {
        // How it fares is what the monitor shows.
        let _ = client.call::<Value>("public/test", json!({}));
        thread::sleep(Duration::from_millis(20));
    }
}
