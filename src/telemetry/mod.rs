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
use std::mem;
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
    /// On which wire of it, the latest, be its login under way.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<Part>);

/// One of the filters that a filter was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
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

/// Replaced as a whole, so that telling takes no more than a look.
static OBSERVERS: RwLock<Option<Arc<[Arc<Observer>]>>> = RwLock::new(None);

/// Each kind has a bit.
const _: () = assert!(Signal::NAMES.len() <= u64::BITS as usize);

thread_local! {
    static IS_OBSERVING: Cell<bool> = const { Cell::new(false) };
}

/// Lets an observer see what the filter lets through, until the guard is dropped.
pub fn attach(filter: Filter, observer: impl Fn(&Observed<'_>) + Send + Sync + 'static) -> Guard {
    let observer = Arc::new(Observer { filter, observe: Box::new(observer), is_detached: AtomicBool::new(false) });
    replace(|observers| observers.iter().cloned().chain([observer.clone()]).collect());
    Guard(observer)
}

/// Whether anybody listens to signals of this kind.
pub(crate) fn is_wanted(kind: usize) -> bool {
    WANTED.load(Ordering::Relaxed) & 1 << kind != 0
}

/// Whether anybody listens to signals of this kind from this connection.
pub(crate) fn is_observed(kind: usize, connection: ConnectionId) -> bool {
    let is_observed = |observers: &[Arc<Observer>]| observers.iter().any(|observer| observer.wants(kind, Some(connection)));
    is_wanted(kind) && OBSERVERS.read().as_deref().is_some_and(is_observed)
}

/// Tells those who listen to it of a signal. No lock may be held.
pub(crate) fn tell(observed: &Observed<'_>) {
    let kind = observed.signal.kind();
    if !is_wanted(kind) || IS_OBSERVING.get() {
        return;
    }
    // Kept apart from the list, so that an observer may attach and detach.
    let Some(observers) = OBSERVERS.read().clone() else { return };
    IS_OBSERVING.set(true);
    for observer in observers.iter().filter(|observer| observer.wants(kind, observed.connection)) {
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| (observer.observe)(observed))) {
            log::error!("an observer panicked over {} and is detached", observed.signal.name());
            detach(observer);
            // Its own drop might panic.
            mem::forget(payload);
        }
    }
    IS_OBSERVING.set(false);
    // An observer that was detached meanwhile goes with its list.
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(observers))) {
        log::error!("dropping an observer panicked");
        mem::forget(payload);
    }
}

/// Tells of a recording, which belongs to no connection.
pub(crate) fn tell_recorder(signal: &Signal<'_>) {
    tell(&Observed { connection: None, generation: Generation::default(), host: "", at: Instant::now(), signal });
}

fn detach(observer: &Arc<Observer>) {
    observer.is_detached.store(true, Ordering::Release);
    replace(|observers| observers.iter().filter(|other| !Arc::ptr_eq(other, observer)).cloned().collect());
}

/// Makes another list of the observers.
fn replace(change: impl FnOnce(&[Arc<Observer>]) -> Arc<[Arc<Observer>]>) {
    let replaced = {
        let mut observers = OBSERVERS.write();
        let changed = change(observers.as_deref().unwrap_or_default());
        let kinds = changed.iter().flat_map(|observer| &observer.filter.0).fold(0, |kinds, part| kinds | part.kinds);
        WANTED.store(kinds, Ordering::Relaxed);
        observers.replace(changed)
    };
    // Outside the lock: what an observer owns may have a drop of its own.
    drop(replaced);
}

impl Observer {
    fn wants(&self, kind: usize, connection: Option<ConnectionId>) -> bool {
        let lets_through =
            |part: &Part| part.kinds & 1 << kind != 0 && part.connection.is_none_or(|wanted| Some(wanted) == connection);
        self.filter.0.iter().any(lets_through) && !self.is_detached.load(Ordering::Acquire)
    }
}

impl Filter {
    /// Lets every signal through.
    pub fn all() -> Self {
        Self(vec![Part { kinds: u64::MAX, connection: None }])
    }

    /// Lets the signals of this name through, or of this group, which is the part of a name before the dot.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if no signal has this name.
    pub fn name(name: &str) -> Result<Self> {
        Ok(Self(vec![Part { kinds: Self::kinds(name)?, connection: None }]))
    }

    /// Keeps the signals of this name or group back.
    ///
    /// # Errors
    ///
    /// As [`name`](Self::name).
    pub fn without(mut self, name: &str) -> Result<Self> {
        let kinds = Self::kinds(name)?;
        self.0.iter_mut().for_each(|part| part.kinds &= !kinds);
        Ok(self)
    }

    fn kinds(name: &str) -> Result<u64> {
        let is_meant = |known: &str| known == name || known.split_once('.').is_some_and(|(group, _)| group == name);
        let kinds = Signal::NAMES.iter().enumerate().filter(|(_, known)| is_meant(known));
        match kinds.fold(0, |kinds, (kind, _)| kinds | 1 << kind) {
            0 => Err(Error::config("filter", format!("no signal is called {name:?}"))),
            kinds => Ok(kinds),
        }
    }

    /// Lets through what either would.
    pub fn or(mut self, other: Self) -> Self {
        for part in other.0 {
            match self.0.iter_mut().find(|own| own.connection == part.connection) {
                Some(own) => own.kinds |= part.kinds,
                None => self.0.push(part),
            }
        }
        self
    }

    /// Lets through only what concerns this connection.
    pub fn connection(mut self, connection: ConnectionId) -> Self {
        self.0.iter_mut().for_each(|part| part.connection = Some(connection));
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_listens_to_any_more_is_not_wanted() {
        let kind = Signal::NAMES.iter().position(|name| *name == "traffic.refused").unwrap();
        let guard = attach(Filter::name("traffic.refused").unwrap(), |_| ());
        let while_attached = is_wanted(kind);
        drop(guard);
        assert_eq!((while_attached, is_wanted(kind)), (true, false));
    }
}
