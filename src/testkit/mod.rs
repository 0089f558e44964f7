//! The test kit: an embedded WebSocket exchange that misbehaves on request.
//!
//! [`MockServer`] listens on an ephemeral local port, plain or TLS, and serves every connection from
//! one thread. Left alone it echoes. A [`Script`] says what a connection does instead, from the moment
//! TCP is accepted: refuse the upgrade, never answer, dribble bytes, withhold pongs, reset. A [`Peer`] is
//! the server's end of one upgraded connection, to be driven by hand from the test. What clients sent is
//! kept as [`Captured`] messages, and `expect` waits for one that satisfies a [`Matcher`]. A [`Playback`] makes a script of a recording.
//!
//! No thread of the kit sleeps or polls, and no test has to: whatever there is to wait for has a method
//! with a timeout.
//!
//! ```
//! use std::time::Duration;
//! use zen_websocket::testkit::{MockServer, Script};
//! use zen_websocket::{Config, Event, connect};
//!
//! let server = MockServer::builder()
//!     .script(Script::new().on_text(|peer, text| peer.send_text(&format!("you said {text}"))))
//!     .start()?;
//!
//! let (client, inbox) = connect(Config::new(server.url()).reconnect(false))?;
//! client.send("hello")?;
//! server.expect("hello", Duration::from_secs(5))?;
//! server.kill_all();
//! let heard: Vec<_> = inbox.iter().map(|received| received.event).collect();
//! assert!(matches!(&heard[..], [Event::Dialing { .. }, Event::Open, .., Event::Lost { .. }, Event::Closed { .. }]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod captured;
mod certificate;
mod connection;
mod engine;
mod frame;
mod peer;
mod playback;
mod request;
mod script;
mod server;
mod wire;

pub use captured::{Captured, ClientMessage, ExpectError, Matcher};
pub use certificate::Certificate;
pub use frame::Frame;
pub use peer::Peer;
pub use playback::{Playback, PlaybackStatus};
pub use request::Request;
pub use script::Script;
pub use server::{MockServer, MockServerBuilder};
