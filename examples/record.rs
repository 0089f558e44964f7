//! Records a session for some seconds, of an embedded exchange or of the one at a URL, and tells what was recorded.
//!
//! `cargo run --release --example record -- [FILE] [SECONDS] [URL]`

use std::error::Error;
use std::time::{Duration, Instant};

use zen_websocket::testkit::{MockServer, Peer, Script};
use zen_websocket::{Config, Event, Recorder, Recording, connect};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = tempfile::tempdir()?;
    let path = match arguments.next() {
        Some(option) if option.starts_with('-') => return Err("usage: record [FILE] [SECONDS] [URL]".into()),
        Some(file) => file.into(),
        None => folder.path().join("feed.jsonl"),
    };
    let seconds = Duration::from_secs_f64(arguments.next().map_or(Ok(3.0), |seconds| seconds.parse())?);
    let exchange = MockServer::builder().script(Script::new().on_open(stream_ticks)).start()?;
    let url = arguments.next().unwrap_or_else(|| exchange.url());

    println!("{url} is recorded to {} for {seconds:?}", path.display());
    let recorder = Recorder::new(&path).rotate_at(256 << 20).gzip(true);
    let (client, inbox) = connect(Config::new(url).record_to(recorder))?;
    client.send("who is there?")?;
    let (deadline, mut crashes) = (Instant::now() + seconds, [seconds / 3, 2 * seconds / 3].into_iter().peekable());
    let began = Instant::now();
    while let Ok(received) = inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        match received.event {
            Event::Message(_) => {}
            other => println!("{}: {other:?}", received.generation),
        }
        if crashes.next_if(|after| began.elapsed() >= *after).is_some() {
            exchange.kill_all();
        }
    }
    // Waits until everything is in the file.
    client.close()?;

    let metadata = Recording::open_rotated(&path)?.metadata()?;
    println!("{metadata:#?}");
    Ok(())
}

/// What the embedded exchange does with each connection: a tick every millisecond.
fn stream_ticks(peer: &Peer) {
    let peer = peer.clone();
    std::thread::spawn(move || {
        for number in 0.. {
            if !peer.is_open() {
                break;
            }
            peer.send_text(&format!(r#"{{"tick":{number},"price":{}}}"#, 50_000 + number * 7919 % 101));
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}
