//! One TCP (and TLS) stream that speaks WebSocket: bytes to messages and back, without ever blocking. Knows nothing of redialling.

pub mod assembler;
pub mod dial;
pub mod frame;
pub mod handshake;
pub mod out;
pub mod tls;
