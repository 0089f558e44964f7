//! What connections do, told to whoever listens.
//!
//! An observer gets a [`Signal`] for each thing that happens, of the kinds and the connection it asks for. Where nobody listens, telling
//! costs one relaxed load.
//!
//! Observers run where the signal arises: on a reactor thread mostly, on the thread of a sender for what concerns a send, never under a
//! lock. They must not block. One that panics is detached and reported as an error in the log. What an observer itself causes, by
//! sending for instance, is not told to observers.
//!
//! ```
//! use std::sync::mpsc;
//! use zen_websocket::telemetry::{self, Filter, Signal};
//! # use zen_websocket::{Config, connect, testkit::MockServer};
//! # let server = MockServer::start()?;
//!
//! let (sender, rtts) = mpsc::channel();
//! let guard = telemetry::attach(Filter::name("connection.upgrade")?, move |observed| {
//!     if let Signal::Upgrade { took } = *observed.signal {
//!         let _ = sender.send(took);
//!     }
//! });
//! let (client, _inbox) = connect(Config::new(server.url()))?;
//! println!("upgraded in {:?}", rtts.recv()?);
//! drop(guard);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "metrics")]
mod bridge;
mod signal;

use std::cell::Cell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::RwLock;

#[cfg(feature = "metrics")]
pub use self::bridge::bridge;
pub use self::signal::{Closer, Signal};
use crate::error::{Error, Result};
use crate::event::{ConnectionId, Generation};

/// Something that happened, as an observer sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Observed<'a> {
    /// On which connection; `None` for what concerns a recording, which may be that of several.
    pub connection: Option<ConnectionId>,
    /// On which wire of it, the latest.
    pub generation: Generation,
    /// The host the connection is for, with the port unless it is the scheme's own.
    pub host: &'a str,
    /// When.
    pub at: Instant,
    /// What.
    pub signal: &'a Signal<'a>,
}

/// Which signals an observer gets.
///
/// ```
/// use zen_websocket::telemetry::Filter;
///
/// let everything = Filter::all();
/// let heartbeats = Filter::name("heartbeat")?.or(Filter::name("connection.lost")?);
/// assert!(Filter::name("heartbeat.pang").is_err());
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// A bit for each kind of signal.
    kinds: u64,
    connection: Option<ConnectionId>,
}

/// Detaches its observer when dropped. A call of it that is under way on another thread may end later.
#[must_use = "dropping it detaches the observer"]
pub struct Guard(Arc<Observer>);

struct Observer {
    filter: Filter,
    observe: Box<dyn Fn(&Observed<'_>) + Send + Sync>,
    is_detached: AtomicBool,
}

/// The kinds of signals that somebody listens to.
static WANTED: AtomicU64 = AtomicU64::new(0);

static OBSERVERS: RwLock<Vec<Arc<Observer>>> = RwLock::new(Vec::new());

/// Each kind has a bit.
const _: () = assert!(Signal::NAMES.len() <= u64::BITS as usize);

thread_local! {
    static IS_OBSERVING: Cell<bool> = const { Cell::new(false) };
}

/// Lets an observer see what the filter lets through, until the guard is dropped.
pub fn attach(filter: Filter, observer: impl Fn(&Observed<'_>) + Send + Sync + 'static) -> Guard {
    let observer = Arc::new(Observer { filter, observe: Box::new(observer), is_detached: AtomicBool::new(false) });
    let mut observers = OBSERVERS.write();
    observers.push(observer.clone());
    note_wanted(&observers);
    Guard(observer)
}

/// Whether anybody listens to signals of this kind.
pub(crate) fn is_wanted(kind: usize) -> bool {
    WANTED.load(Ordering::Relaxed) & 1 << kind != 0
}

/// Tells those who listen to it of a signal. No lock may be held.
pub(crate) fn tell(observed: &Observed<'_>) {
    let kind = observed.signal.kind();
    if !is_wanted(kind) || IS_OBSERVING.get() {
        return;
    }
    // Copied, so that an observer may attach and detach.
    let observers = OBSERVERS.read().clone();
    IS_OBSERVING.set(true);
    for observer in observers.iter().filter(|observer| observer.wants(kind, observed.connection)) {
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| (observer.observe)(observed))) {
            log::error!("an observer panicked over {} and is detached", observed.signal.name());
            detach(observer);
            // Its own drop might panic.
            std::mem::forget(payload);
        }
    }
    IS_OBSERVING.set(false);
    drop_shielded(observers);
}

/// Tells of a recording, which belongs to no connection.
pub(crate) fn tell_recorder(signal: &Signal<'_>) {
    tell(&Observed { connection: None, generation: Generation::default(), host: "", at: Instant::now(), signal });
}

fn drop_shielded(observers: Vec<Arc<Observer>>) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(observers))) {
        log::error!("dropping an observer panicked");
        std::mem::forget(payload);
    }
}

fn detach(observer: &Arc<Observer>) {
    observer.is_detached.store(true, Ordering::Release);
    let removed = {
        let mut observers = OBSERVERS.write();
        let place = observers.iter().position(|other| Arc::ptr_eq(other, observer));
        let removed = place.map(|place| observers.remove(place));
        note_wanted(&observers);
        removed
    };
    // Outside the lock: what it owns may have a drop of its own.
    drop(removed);
}

fn note_wanted(observers: &[Arc<Observer>]) {
    let kinds = observers.iter().fold(0, |kinds, observer| kinds | observer.filter.kinds);
    WANTED.store(kinds, Ordering::Relaxed);
}

impl Observer {
    fn wants(&self, kind: usize, connection: Option<ConnectionId>) -> bool {
        self.filter.kinds & 1 << kind != 0
            && self.filter.connection.is_none_or(|wanted| Some(wanted) == connection)
            && !self.is_detached.load(Ordering::Acquire)
    }
}

impl Filter {
    /// Lets every signal through.
    pub fn all() -> Self {
        Self { kinds: u64::MAX, connection: None }
    }

    /// Lets the signals of this name through, or of this group, which is the part of a name before the dot.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if no signal has this name.
    pub fn name(name: &str) -> Result<Self> {
        let is_meant = |known: &str| known == name || known.split_once('.').is_some_and(|(group, _)| group == name);
        let kinds = Signal::NAMES.iter().enumerate().filter(|(_, known)| is_meant(known));
        match kinds.fold(0, |kinds, (kind, _)| kinds | 1 << kind) {
            0 => Err(Error::config("filter", format!("no signal is called {name:?}"))),
            kinds => Ok(Self { kinds, connection: None }),
        }
    }

    /// Lets through what either would; restricted to a connection if both are.
    pub fn or(self, other: Self) -> Self {
        let connection = if self.connection == other.connection { self.connection } else { None };
        Self { kinds: self.kinds | other.kinds, connection }
    }

    /// Lets through only what concerns this connection.
    pub fn connection(self, connection: ConnectionId) -> Self {
        Self { connection: Some(connection), ..self }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("filter", &self.0.filter).finish_non_exhaustive()
    }
}
