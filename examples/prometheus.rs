//! Lets Prometheus see what connections do: what happens comes over the bridge, how things stand is asked for with each scrape.
//! Scrapes itself once, and ends unless it is told to go on serving.
//!
//! `cargo run --release --example prometheus [-- --serve PORT]`

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use metrics::{counter, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use zen_websocket::telemetry::{self, Filter};
use zen_websocket::testkit::{MockServer, Peer, Script};
use zen_websocket::{Client, Config, JsonRpc, Reactor, State};

const WAIT: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_millis(100);

fn main() -> Result<(), Box<dyn Error>> {
    let port = match &std::env::args().skip(1).collect::<Vec<_>>()[..] {
        [] => None,
        [option, port] if option == "--serve" => Some(port.parse()?),
        _ => return Err("usage: prometheus [--serve PORT]".into()),
    };

    // In this order: the bridge describes its metrics to the recorder there is.
    let prometheus = PrometheusBuilder::new().set_buckets(&[0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 3600.0])?.install_recorder()?;
    let _bridge = telemetry::bridge();

    let exchange = MockServer::builder().script(Script::new().on_text(answer)).start()?;
    let reactor = Reactor::builder().start()?;
    let mut feeds = Vec::new();
    for name in ["books", "orders", "trades"] {
        let config = Config::new(exchange.url()).dialect(JsonRpc::default()).heartbeat_interval(HEARTBEAT);
        let (client, inbox) = reactor.connect(config)?;
        thread::spawn(move || inbox.iter().for_each(drop));
        feeds.push((name, client));
    }
    lose_and_trade(&exchange, &feeds)?;

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.unwrap_or(0)))?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || serve(&listener, &prometheus, &reactor, &feeds));

    let text = scrape(address)?;
    println!("{text}");
    let host = exchange.address();
    for wanted in [
        "HTTP/1.1 200 OK".to_owned(),
        format!("zen_websocket_connections_open{{host=\"{host}\"}} 3"),
        format!("zen_websocket_connection_lost_total{{host=\"{host}\",cause=\"io\",closer=\"network\",code=\"none\"}} 3"),
        format!("zen_websocket_call_seconds_count{{host=\"{host}\"}} 3"),
        format!("zen_websocket_ping_rtt_seconds_bucket{{host=\"{host}\",kind=\"ping_pong\",le=\"1\"}}"),
        format!("zen_websocket_messages_in_total{{host=\"{host}\"}}"),
        "engine_inbox_depth{feed=\"books\"}".to_owned(),
        "engine_reactor_turns_total".to_owned(),
    ] {
        if !text.contains(&wanted) {
            return Err(format!("the scrape lacks {wanted}").into());
        }
    }
    println!("all there: {} lines from http://{address}/metrics", text.lines().count());
    if port.is_some() {
        server.join().map_err(|_| "the server panicked")?;
    }
    Ok(())
}

/// Lets something happen that is worth counting.
fn lose_and_trade(exchange: &MockServer, feeds: &[(&str, Client)]) -> Result<(), Box<dyn Error>> {
    let (sender, happened) = mpsc::channel();
    let wanted = Filter::name("connection.lost")?.or(Filter::name("heartbeat.pong")?).or(Filter::name("traffic.count")?);
    let _guard = telemetry::attach(wanted, move |observed| {
        let _ = sender.send(observed.signal.name());
    });
    let until = |name| {
        while happened.recv_timeout(WAIT)? != name {}
        Ok::<_, RecvTimeoutError>(())
    };
    exchange.kill_all();
    feeds.iter().try_for_each(|_| until("connection.lost"))?;
    feeds.iter().try_for_each(|(_, client)| client.wait(State::Open, WAIT))?;
    until("heartbeat.pong")?;
    for (_, client) in feeds {
        let _: Value = client.call("public/test", ())?;
    }
    exchange.broadcast_text(r#"{"method":"subscription","params":{"channel":"ticker","data":{"bid":64000.5}}}"#);
    Ok(feeds.iter().try_for_each(|_| until("traffic.count"))?)
}

/// Answers scrapes, one after the other.
fn serve(listener: &TcpListener, prometheus: &PrometheusHandle, reactor: &Reactor, feeds: &[(&'static str, Client)]) {
    for stream in listener.incoming() {
        let outcome = stream.and_then(|stream| {
            ask(reactor, feeds);
            answer_scrape(stream, &prometheus.render())
        });
        if let Err(error) = outcome {
            println!("scrape failed: {error}");
        }
    }
}

/// Sets what no signal tells: how things stand right now. The names of feeds are this program's own, and few.
fn ask(reactor: &Reactor, feeds: &[(&'static str, Client)]) {
    for &(feed, ref client) in feeds {
        let metrics = client.metrics();
        gauge!("engine_inbox_depth", "feed" => feed).set(metrics.inbox_depth.unwrap_or_default() as f64);
        gauge!("engine_unsent_bytes", "feed" => feed).set(metrics.unsent as f64);
        gauge!("engine_memory_bytes", "feed" => feed).set(metrics.memory as f64);
    }
    let metrics = reactor.metrics();
    counter!("engine_reactor_turns_total").absolute(metrics.turns);
    gauge!("engine_reactor_busy_seconds").set(metrics.busy);
    gauge!("engine_reactor_stall_seconds").set(metrics.longest_stall.map_or(Duration::ZERO, |stall| stall.took));
}

fn answer_scrape(mut stream: TcpStream, text: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(WAIT))?;
    let mut head = BufReader::new(&stream).take(8192).lines();
    let request = head.next().unwrap_or(Ok(String::new()))?;
    // A socket that is closed over unread bytes is reset, and the answer with it.
    while head.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let (status, body) = if request.starts_with("GET /metrics ") { ("200 OK", text) } else { ("404 Not Found", "") };
    let length = body.len();
    let kind = "text/plain; version=0.0.4";
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn scrape(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    io::read_to_string(stream)
}

fn answer(peer: &Peer, text: &str) {
    let request: Value = serde_json::from_str(text).unwrap_or_default();
    peer.send_text(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": "ok" }).to_string());
}
