//! The shell around sessions and wires: a [`Driver`] and the thread that turns it.

mod batch;
mod bell;
mod calls;
mod conflate;
mod driver;
mod handler;
mod instruments;
mod mailbox;
mod resolver;
mod scratch;
mod shared;
mod sink;
mod slot;
mod subscription;
mod talk;
mod traffic;
mod tray;
mod witness;
mod work;

use std::any::Any;
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use parking_lot::Mutex;

pub use self::batch::{Batch, Events};
pub(crate) use self::batch::{BatchFeed, Batches, take_batch};
pub(crate) use self::bell::Bell;
pub use self::calls::PendingCall;
pub(crate) use self::calls::to_params;
pub(crate) use self::conflate::{Conflated, ConflatingFeed, KeyFn};
pub use self::driver::Driver;
pub use self::handler::{Context, Handler};
pub(crate) use self::mailbox::Mailbox;
pub(crate) use self::shared::{Manner, Shared};
pub use self::sink::Sink;
pub(crate) use self::sink::{Feed, Feeders, Kind};
pub(crate) use self::slot::Opening;
pub use self::subscription::{Channels, Subscription};
pub(crate) use self::tray::Owner;
pub(crate) use self::witness::CONNECTION;
use crate::error::{Error, Result};
use crate::metrics::ReactorMetrics;

/// A thread that owns the sockets of any number of connections.
///
/// Connections opened by the free functions of this crate run on [`Reactor::shared`], except those with a handler, which get a reactor
/// each. Clones are handles to the same thread. When the last one is dropped, the thread goes on until its connections have closed.
///
/// ```no_run
/// use zen_websocket::{Config, Handler, Reactor, Wait};
///
/// let hot = Reactor::builder().name("hot feed").wait(Wait::Spin { core: Some(1) }).start()?;
/// let client = hot.connect_with(Config::new("wss://www.example.com/ws"), Handler::new())?;
/// # Ok::<(), zen_websocket::Error>(())
/// ```
#[derive(Clone)]
pub struct Reactor(Arc<Handle>);

struct Handle {
    mailbox: Arc<Mailbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How a reactor waits for events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// Sleeps in the kernel until something happens. Costs nothing while idle; an event pays for waking a thread.
    #[default]
    Park,
    /// Never sleeps: the thread takes a core for itself, and nobody has to wake it. The few sockets that had something to read lately are
    /// read without asking the poller first, which looks for the others every few microseconds.
    Spin {
        /// The core to stay on; `None` leaves it to the scheduler.
        core: Option<usize>,
    },
    /// Spins for a while after each event, then sleeps: bursts are met awake, and a quiet feed costs nothing. Wants a core for itself
    /// while it is busy, as `Spin` does.
    Adaptive {
        /// How long after the last event.
        spin_for: Duration,
    },
}

/// Settings of a [`Reactor`].
#[must_use]
#[derive(Clone, Debug)]
pub struct ReactorBuilder {
    name: String,
    wait: Wait,
}

impl Reactor {
    /// The reactor of the process, started on first use. Stopping it ends every connection on it, and the free functions that use it
    /// answer [`Error::Stopped`] from then on.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the system has no thread or descriptor left.
    pub fn shared() -> Result<Self> {
        static SHARED: OnceLock<Reactor> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        let _starting = STARTING.lock();
        if let Some(reactor) = SHARED.get() {
            return Ok(reactor.clone());
        }
        let reactor = Self::builder().start()?;
        Ok(SHARED.get_or_init(|| reactor).clone())
    }

    /// Settings for a reactor of one's own.
    pub fn builder() -> ReactorBuilder {
        ReactorBuilder { name: "zen-websocket".to_owned(), wait: Wait::Park }
    }

    /// Ends all connections with [`Error::Stopped`], without waiting for close handshakes, and ends the thread. Whatever its
    /// connections are doing, that takes milliseconds. Further connections are refused. On a thread that turns a reactor or driver, this
    /// one or another that still exists, it returns before the connections have ended.
    pub fn stop(&self) {
        self.0.mailbox.stop();
        if mailbox::is_turning_thread() {
            return;
        }
        let thread = self.0.thread.lock().take();
        if let Some(thread) = thread {
            // A panic of the thread was reported where it happened.
            let _ = thread.join();
        }
    }

    /// What it has done so far. Reading it disturbs nothing.
    pub fn metrics(&self) -> ReactorMetrics {
        self.0.mailbox.work.metrics()
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.0.mailbox
    }
}

impl ReactorBuilder {
    /// The name of the thread. Default `zen-websocket`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How the thread waits. Default [`Wait::Park`].
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if there is no such core or the name contains a NUL; [`Error::Io`] if the system has no thread or descriptor
    /// left.
    pub fn start(self) -> Result<Reactor> {
        if self.name.contains('\0') {
            return Err(Error::config("name", "contains a NUL"));
        }
        let core = match self.wait {
            Wait::Spin { core: Some(wanted) } => {
                let cores = core_affinity::get_core_ids().unwrap_or_default();
                Some(
                    *cores
                        .iter()
                        .find(|core| core.id == wanted)
                        .ok_or_else(|| Error::config("wait", format!("there is no core {wanted}")))?,
                )
            }
            Wait::Park | Wait::Adaptive { .. } | Wait::Spin { core: None } => None,
        };
        let driver = Driver::new()?;
        let mailbox = driver.mailbox.clone();
        let wait = self.wait;
        let thread = thread::Builder::new().name(self.name).spawn(move || run(driver, wait, core)).map_err(Error::io)?;
        Ok(Reactor(Arc::new(Handle { mailbox, thread: Mutex::new(Some(thread)) })))
    }
}

/// What the thread does.
fn run(mut driver: Driver, wait: Wait, core: Option<CoreId>) {
    if let Some(core) = core
        && !core_affinity::set_for_current(core)
    {
        log::warn!("the reactor could not be moved to core {}", core.id);
    }
    let mut last_event = Instant::now();
    while driver.is_wanted() {
        let timeout = match wait {
            Wait::Park => None,
            Wait::Spin { .. } => Some(Duration::ZERO),
            Wait::Adaptive { spin_for } => (last_event.elapsed() < spin_for).then_some(Duration::ZERO),
        };
        match driver.serve(timeout, &mut |_, _| ()) {
            Ok(true) if matches!(wait, Wait::Adaptive { .. }) => last_event = Instant::now(),
            Ok(_) => {}
            Err(error) => {
                log::error!("the reactor ends: {error}");
                return;
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.mailbox.release();
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").finish_non_exhaustive()
    }
}

/// Runs code of the user's whose panic must end nothing else.
fn shield(what: impl fmt::Display, run: impl FnOnce()) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(run)) {
        log::error!("{what} panicked: {}", panic_text(payload));
    }
}

/// Runs code of the user's whose panic must end its connection, or its dial, only.
fn guard<T>(run: impl FnOnce() -> T) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(run)).map_err(|payload| Error::Panicked(panic_text(payload)))
}

/// The text of a panic. A payload of another type is leaked, because its own `drop` might panic.
fn panic_text(payload: Box<dyn Any + Send>) -> Arc<str> {
    let text = text_of(&*payload).into();
    if !payload.is::<&str>() && !payload.is::<String>() {
        mem::forget(payload);
    }
    text
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("not a text")
}
