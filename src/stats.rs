//! What a connection has counted.

use std::time::Duration;

/// What a connection has counted since it was opened, over all its wires. Works on a closed connection too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages received, those dropped or discarded included.
    pub messages: u64,
    /// Bytes received after the upgrade, frame headers included, TLS removed.
    pub bytes: u64,
    /// Messages dropped because the inbox was full.
    pub dropped: u64,
    /// Events discarded because nobody holds the inbox any more.
    pub discarded: u64,
    /// The round trip of the latest answered ping.
    pub rtt: Option<Duration>,
    /// Pings of the heartbeat that were not answered within the patience.
    pub pings_missed: u64,
}
