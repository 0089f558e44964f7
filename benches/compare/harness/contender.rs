//! What is compared: a way to receive and send WebSocket messages.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where and how to connect.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// With its slash: what the server does on this connection.
    pub(crate) path: String,
    /// The certificate authority to trust, as DER; `None` for plain TCP.
    pub(crate) root: Option<Arc<[u8]>>,
}

/// How a contender waits: in the kernel, or awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Parked,
    Spinning,
}

/// A library, set up as its authors do. Keeps what outlives a connection: a runtime, a reactor, the TLS settings and their session cache.
pub(crate) trait Contender {
    /// As in the tables.
    fn name(&self) -> &'static str;

    fn style(&self) -> Style;

    fn is_ours(&self) -> bool {
        false
    }

    fn is_floor(&self) -> bool {
        false
    }

    /// A new connection, upgraded. What this takes is what `connect` measures. With `fresh` TLS does not resume.
    fn connect(&mut self, target: &Target, fresh: bool) -> Box<dyn Link>;

    /// Opens so many connections that do nothing but answer pings; they last as long as what is returned. `None` if there is nothing to
    /// learn from it.
    fn hold(&mut self, target: &Target, count: usize) -> Option<Box<dyn Any>> {
        let _ = (target, count);
        None
    }
}

/// One connection.
pub(crate) trait Link {
    /// Sends `first` as text, then gives every text message that comes to the observer, where and as soon as the library lets user code
    /// see it, and does what it says, until it is done.
    fn run(&mut self, first: &str, observer: Observer) -> Observer;

    /// Sends a text on the calling thread; returns when the kernel has it, or whatever the library's send means.
    fn send(&mut self, text: &str);
}

/// What to do after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send the same payload back.
    Answer,
    Continue,
    /// Stop; no further message comes.
    Done,
}

/// What a measurement does with each message, on whatever thread it comes.
pub(crate) trait Observe: Any + Send {
    fn message(&mut self, payload: &[u8]) -> Next;
}

/// An [`Observe`] of any type.
pub(crate) struct Observer(Box<dyn Observe>);

impl Target {
    pub(crate) fn is_tls(&self) -> bool {
        self.root.is_some()
    }

    /// `ws://127.0.0.1:port/path` or `wss://…`.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.is_tls() { "wss" } else { "ws" };
        format!("{scheme}://{}{}", self.address, self.path)
    }
}

impl Observer {
    pub(crate) fn new(observe: impl Observe) -> Self {
        Self(Box::new(observe))
    }

    pub(crate) fn message(&mut self, payload: &[u8]) -> Next {
        self.0.message(payload)
    }

    /// What was given to [`new`](Self::new), with what it has seen.
    pub(crate) fn into_inner<T: Observe>(self) -> T {
        let any: Box<dyn Any> = self.0;
        *any.downcast().unwrap_or_else(|_| unreachable!("a link returns the observer it was given"))
    }
}
