//! One TCP (and TLS) stream that speaks WebSocket: bytes to messages and back, without ever blocking. Knows nothing of redialling.

pub(crate) mod assembler;
pub(crate) mod dial;
pub mod frame;
pub mod handshake;
pub(crate) mod out;
pub(crate) mod socket;
pub(crate) mod stamp;
pub(crate) mod tls;
