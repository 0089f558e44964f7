//! What it costs, and how to spend less. If something does not work at all: [`wrong`].
//!
//! # Which way to receive
//!
//! The fewer hands a message passes through, the sooner it is where it is needed. From the fastest to the most convenient:
//!
//! | way | between the kernel and your code | take it if |
//! | --- | --- | --- |
//! | [`Driver::turn_with`](crate::Driver::turn_with) without waiting | one read | your engine has a loop and a core for itself |
//! | [`Handler`](crate::Handler) under [`Wait::Spin`](crate::Wait::Spin) | one read | a feed deserves a core |
//! | [`Handler`](crate::Handler) under [`Wait::Adaptive`](crate::Wait::Adaptive) | one read while it is busy, else a wake | bursts matter and the core is shared |
//! | [`Handler`](crate::Handler), parked | a wake of the reactor, one poll, one read | microseconds do not matter, cores do |
//! | [`Inbox`](crate::Inbox) with [`spin_for`](crate::Inbox::spin_for) | the same, a copy, a queue | consumers have their own threads, and a core each |
//! | [`BatchInbox`](crate::BatchInbox) | the same, but copy and queue once per read | floods |
//! | [`Inbox`](crate::Inbox) | the same, and a wake of the consumer per read | anything else |
//! | [`ConflatingInbox`](crate::ConflatingInbox) | the same, older messages of a key replaced | only the newest state counts |
//!
//! Waking a thread that sleeps is what costs: 5 to 50 µs where encoding, masking, writing, reading and decoding a message together take
//! about 5 µs, nearly all of them in the kernel. Two threads that spin on one core are worse than none.
//!
//! # System calls
//!
//! Counted with `strace` by this crate's tests.
//!
//! | what | calls |
//! | --- | --- |
//! | a message echoed by a parked handler | one `epoll_wait`, one `recvfrom`, one `sendto` |
//! | the same by a driver that spins | one `recvfrom`, one `sendto`; empty `recvfrom`s while it waits, and an `epoll_wait` every 5 µs |
//! | a send of any thread | one `sendto` |
//! | a burst of messages, plain or TLS, that arrived together | one `recvfrom` up to 64 KiB |
//! | [`send_many`](crate::Client::send_many), a restore of channels | one `sendto` per 16 KiB |
//! | the consumer of an inbox, asleep | one wake per read, whatever it brought |
//!
//! # Tuning
//!
//! - Pin what spins: [`Wait::Spin`](crate::Wait::Spin) takes a core, and a core that the scheduler leaves alone (`isolcpus`, `nohz_full`)
//!   keeps the slowest messages fast.
//! - One hot feed per spinning reactor. Up to four sockets are read without asking the poller; of more, each costs the others a read.
//! - A handler delays every connection of its reactor. Act in [`Handler::drained`](crate::Handler::drained), or when
//!   [`Context::more`](crate::Context::more) is false, if only the state after a burst counts.
//! - Encode orders in advance; [`Client::send`](crate::Client::send) masks and writes on the calling thread, without a hand-over.
//! - [`SocketOptions`](crate::SocketOptions) say what the kernel should do otherwise, each with its reason.
//! - Clone one [`Config`](crate::Config) for thousands of connections ([`Config::url`](crate::Config::url)): they share its memory.
//!
//! To see where time goes in production, not in a benchmark: [`Config::kernel_stamps`](crate::Config::kernel_stamps) and
//! [`Config::send_stamps`](crate::Config::send_stamps) fill the histograms of [`Client::latency`](crate::Client::latency).
//!
//! # Beside others
//!
//! Each contender is set up as its authors do; its source says where that comes from. Client and server are two processes with a core
//! each. Contenders take turns, in many rounds; a figure is the median over the rounds, a ratio the median of the rounds' ratios with
//! its 10–90 % range. "The floor" is a loop of raw std sockets that does frames by hand. A target counts as reached when the better end of
//! the range is; where the median misses it, that is said. Small machines are noisy: the ratios mean more than the times, and the highest
//! percentiles mean little.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml -- --write-guide`, in a checkout of the crate, measures anew and
//! replaces what follows; `cargo bench --bench compare` leaves out the other libraries but tungstenite.
//!
#![doc = include_str!("figures.md")]

pub mod wrong;
