//! A WebSocket client for programs without an async runtime. (Guide to follow.)

mod client;
mod config;
mod error;
mod event;
mod inbox;
mod reactor;
mod session;
mod stats;
mod target;
#[cfg(feature = "testkit")]
pub mod testkit;
mod wire;

/// The pure floors, for this crate's own tests and benchmarks. Not part of the API.
#[doc(hidden)]
pub mod internals {
    pub use crate::session::{Action, Session};
    pub use crate::wire::assembler::{Assembler, Item};
    pub use crate::wire::frame;
    pub use crate::wire::handshake;
    pub use crate::wire::out::{Decrypted, Out, Remains};
}

pub use crate::client::{Client, connect, connect_with, open, open_with};
pub use crate::config::{Config, DialPlan, Overflow};
pub use crate::error::{Error, Explanation, Phase, Refusal, Result};
pub use crate::event::{ConnectionId, Event, EventRef, Generation, Message, Received, Sent, State};
pub use crate::inbox::Inbox;
pub use crate::reactor::{Builder, Context, Driver, Handler, Reactor, Sink, Wait};
pub use crate::stats::Stats;
