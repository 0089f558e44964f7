//! Replays a recording into an inbox, as a strategy would take it; without a file, makes one first.
//!
//! `cargo run --release --example replay -- [FILE] [--speed N|max]`

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use zen_websocket::testkit::{MockServer, Script};
use zen_websocket::{Config, Event, Recorder, Recording, Speed, connect};

fn main() -> Result<(), Box<dyn Error>> {
    let (mut path, mut speed) = (None, Speed::Original);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--speed" => speed = to_speed(&arguments.next().unwrap_or_default())?,
            option if option.starts_with('-') => return Err("usage: replay [FILE] [--speed N|max]".into()),
            file => path = Some(PathBuf::from(file)),
        }
    }
    let folder = tempfile::tempdir()?;
    let path = path.map_or_else(|| record(folder.path().join("feed.jsonl")), Ok)?;

    let recording = Recording::open_rotated(&path)?;
    let metadata = recording.metadata()?;
    println!("{}: {} entries of {:?}, {} wires", path.display(), metadata.count, metadata.duration, metadata.generations);
    let bar = ProgressBar::new(metadata.inbound);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")?);

    let mut messages = 0;
    let began = Instant::now();
    let (inbox, feeding) = recording.replay(speed).into_inbox(8192)?;
    for received in &inbox {
        match received.event {
            Event::Message(_) => {
                bar.inc(1);
                messages += 1;
            }
            Event::Lost { .. } => bar.set_message(format!("{} lost", received.generation)),
            _ => {}
        }
    }
    let events = feeding.wait()?;
    bar.finish_and_clear();
    println!("{events} events, {messages} messages in {:.2?}", began.elapsed());
    Ok(())
}

fn to_speed(text: &str) -> Result<Speed, Box<dyn Error>> {
    match text.parse::<f64>() {
        Ok(factor) if factor > 0.0 && factor.is_finite() => Ok(Speed::Times(factor)),
        _ if text == "max" => Ok(Speed::Unpaced),
        _ => Err(format!("--speed wants a number above zero or max, not {text:?}").into()),
    }
}

/// Records what an exchange has to say in a second or so, crashes included.
fn record(path: PathBuf) -> Result<PathBuf, Box<dyn Error>> {
    let script = Script::new().on_text(|peer, text| (0..1000).for_each(|number| peer.send_text(&format!("{text} {number}"))));
    let exchange = MockServer::builder().script(script).start()?;
    let (client, inbox) = connect(Config::new(exchange.url()).record_to(Recorder::new(&path)))?;
    let mut ticks = 0;
    for received in &inbox {
        match received.event {
            Event::Open if received.generation.number() > 4 => client.start_close(1000, "")?,
            Event::Open => drop(client.send_on(received.generation, "tick")?),
            Event::Message(_) => {
                ticks += 1;
                if ticks % 1000 == 0 {
                    exchange.kill_all();
                }
            }
            _ => {}
        }
    }
    client.close()?;
    Ok(path)
}
