//! A WebSocket client for trading engines without an async runtime.
//!
//! A reactor thread owns the sockets of any number of connections and keeps them up; callers hold a [`Client`] to send and an [`Inbox`]
//! or a [`Handler`] to receive. Sends leave on the calling thread with one write. Losses, redials and the end of a connection arrive as
//! [`Event`]s in order with the messages.
//!
//! ```
//! use zen_websocket::{Config, Event, connect};
//! # use zen_websocket::testkit::MockServer;
//! # let server = MockServer::start()?;
//! # let url = server.url();
//!
//! let (client, inbox) = connect(Config::new(url).header("X-Api-Key", "4711"))?;
//! for received in &inbox {
//!     match received.event {
//!         // On every wire, the first and each that replaces a lost one.
//!         Event::Open => {
//!             client.send_on(received.generation, "hello")?;
//!         }
//!         Event::Message(message) => {
//!             assert_eq!(message.text(), Some("hello"));
//!             client.start_close(1000, "done")?;
//!         }
//!         Event::Lost { cause, .. } => println!("lost, what was built before is stale: {cause}"),
//!         other => println!("{other:?}"),
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The words
//!
//! A *wire* is one TCP stream that speaks WebSocket. A *connection* outlives its wires; each has a [`Generation`]. To *dial* is to make a
//! wire. An *event* is what an inbox yields or a handler gets. A *call* is a request with a reply, a *channel* a feed of a venue's, a
//! *dialect* its message language.
//!
//! # Speaking a venue's language
//!
//! With a [`Dialect`] ([`Config::dialect`]) a connection does what the venue's protocol wants on every wire, in this order:
//!
//! 1. **Login.** Before anything else leaves. Its end is [`Event::Open`]; until then sends are refused, [`connect`] waits, and a refusal
//!    is a failed dial.
//! 2. **Restore.** The channels that are wanted are subscribed, in the lowest lane, behind what callers send, until each is confirmed:
//!    [`Event::Live`]. [`Config::hold_until`] holds callers' messages until then.
//! 3. **Work.** [`Client::call`] and its relatives find their replies; [`Client::subscribe`] wants further channels; what the venue
//!    refuses, sends late, or leaves out is an event.
//!
//! Everything that leaves, these included, keeps to [`Config::rate_limit`]. What a limit holds back leaves in lanes: control frames and
//! logins, urgent messages ([`Client::urgent`]), others, subscriptions; none passes a frame of its own or a higher lane.
//!
//! ```
//! use zen_websocket::testkit::{MockServer, Script};
//! use zen_websocket::{Config, JsonRpc, connect};
//!
//! # let script = Script::new().on_text(|peer, _| peer.send_text(r#"{"jsonrpc":"2.0","id":1,"result":[4,7]}"#));
//! # let exchange = MockServer::builder().script(script).start()?;
//! # let url = exchange.url();
//! let (client, inbox) = connect(Config::new(url).dialect(JsonRpc::default()))?;
//! let levels: Vec<u32> = client.call("public/levels", ())?;
//! assert_eq!(levels, [4, 7]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it is built
//!
//! | floor | modules | what they know |
//! | --- | --- | --- |
//! | 0 | `error`, `event`, `config`, `socket`, `target`, `metrics`, `latency`, `telemetry`, `recorder`, `reply` | what users see |
//! | 0 | `dialect`, `governor`, `ticket` | what a text means, when a frame may leave, how far it has come |
//! | 1 | `session` | when to dial, log in, ping, restore, give up: pure state machines over inputs and `now` |
//! | 1 | `wire` | bytes to messages and back, without blocking: frames, handshake, TLS, dialling |
//! | 2 | `reactor` | the loop that joins the two ([`Driver::turn`]), its thread, its resolvers |
//! | 3 | `client`, `inbox`, `rpc`, `recording` | what callers hold, and how a recording is read and replayed |
//!
//! Callers and the reactor share two locks per connection, never held together: one around the session, for a few field accesses, one
//! around the sending half, for one frame (16 KiB of them in a burst) and one write. A governor's lock is taken under the latter only. Receiving takes no lock that
//! a sender waits for, except to decrypt.
//!
//! # Logs
//!
//! State changes are logged through [`log`], one line each with its cause and what comes next, under the targets
//! `zen_websocket::connection`, `zen_websocket::reactor`, `zen_websocket::recorder` and `zen_websocket::telemetry`, and some below them:
//! `info` for open, live, notices of the venue, and closed by this program, `warn` for a loss, a failed dial, messages dropped or
//! unsent, channels refused, silent or with gaps, and a stalled reactor, `error` for a connection that ended for a cause, a hook that panicked, a recording that fails, or a
//! reactor that cannot go on, `debug` for dials and replies to nobody. [`Config::debug`] adds every message and control frame of a
//! connection, under `zen_websocket::frames`. No line carries header values, user info, query values or logins. A logger runs where the
//! line is written, mostly on a reactor thread: it must not wait, nor panic.
//!
//! # Watching it
//!
//! | question | answer |
//! | --- | --- |
//! | how does it stand, what was counted | [`Client::metrics`], [`Client::heartbeat`], [`Reactor::metrics`] |
//! | how long do things take | [`Client::latency`] |
//! | what happens | [`telemetry`], and the `metrics` facade with feature `metrics` |
//! | what was said | [`Config::record_to`], [`Config::debug`] |
//! | what does this error mean | [`Error::explain`] |
//! | what went wrong, by symptom | [`guide::wrong`] |
//!
//! # Features
//!
//! Both are off by default. `metrics`: the bridge from the [`telemetry`] to the facade of that name. `testkit`: an embedded exchange for
//! tests, plain and TLS, that refuses, stalls, lies and falls silent on request.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod config;
mod dialect;
mod error;
mod event;
mod governor;
pub mod guide;
mod inbox;
mod latency;
mod metrics;
mod reactor;
mod recorder;
mod recording;
mod reply;
mod rpc;
mod session;
mod socket;
mod target;
pub mod telemetry;
#[cfg(feature = "testkit")]
pub mod testkit;
mod ticket;
mod wire;

pub use crate::client::{Client, connect, connect_with, open, open_with};
pub use crate::config::{Config, DialPlan, GapPolicy, Overflow, Throttle};
pub use crate::dialect::{
    Confirmation, Dialect, Id, Inbound, JsonRpc, Login, LoginStep, Plain, Request, Secret, Sequence, Subscribe, peek,
};
pub use crate::error::{Error, Explanation, Phase, Refusal, RejectedChannel, Rejection, Result};
pub use crate::event::{ConnectionId, Event, EventRef, Generation, Message, Received, Sent, Standing, State};
pub use crate::governor::{LimitStatus, Pressure, RateLimit, costs};
pub use crate::inbox::{BatchInbox, ConflatingInbox, Inbox, IntoIter, Iter};
pub use crate::latency::{Latency, Percentiles};
pub use crate::metrics::{
    ChannelCounts, HeartbeatStatus, Latencies, Metrics, Proof, RateStatus, ReactorMetrics, SentMany, Stall,
};
pub use crate::reactor::{
    Batch, Channels, Context, Driver, Events, Handler, PendingCall, Reactor, ReactorBuilder, Sink, Subscription, Wait,
};
pub use crate::recorder::{Content, Direction, Entry, Recorder, RecorderStatus};
pub use crate::recording::{Entries, Feeding, Metadata, Recording, Replay, Speed};
pub use crate::reply::Reply;
#[doc(hidden)]
pub use crate::rpc::__private;
pub use crate::socket::SocketOptions;

/// The pure floors, for this crate's own tests and benchmarks. Not part of the API.
#[doc(hidden)]
pub mod internals {
    pub use crate::governor::{Costs, Governor, Refused};
    pub use crate::latency::{Compact, Histogram};
    pub use crate::recorder::{FrameKind, Tap};
    pub use crate::session::calls::{Call, Registered};
    pub use crate::session::dialogue::{Deed, Dialogue, Rules, Stamp};
    pub use crate::session::{Action, Heartbeat, Session};
    pub use crate::ticket::Ticket;
    pub use crate::wire::assembler::{Assembler, Item};
    pub use crate::wire::frame;
    pub use crate::wire::handshake;
    pub use crate::wire::out::{Decrypted, Lane, Out, Outgoing, Remains, SendStamps, Totals};
}

/// The programs of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
