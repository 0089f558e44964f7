//! How other threads reach a driver: what they leave for it, and when it must be woken.

use std::cell::Cell;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mio::Waker;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::event::ConnectionId;
use crate::reactor::resolver::Resolved;
use crate::reactor::slot::Opening;
use crate::reactor::work::Work;

/// What other threads leave for a driver. Bounded by the number of connections: each is opened once, is posted at most once at a time,
/// and has at most one look-up under way.
pub(crate) struct Mailbox {
    content: Mutex<Content>,
    /// Whether there is anything in `content`; stands in for looking.
    filled: AtomicBool,
    /// Whether the driver may be waiting for events, so that whoever leaves something must wake it.
    asleep: AtomicBool,
    waker: Waker,
    /// The thread that turned the driver last; see [`thread_number`].
    turner: AtomicU64,
    pub(crate) work: Work,
}

/// One filling of the mailbox.
#[derive(Default)]
pub(crate) struct Content {
    pub(crate) openings: Vec<Opening>,
    pub(crate) resolved: Vec<Resolved>,
    pub(crate) posts: Vec<ConnectionId>,
    pub(crate) stop: bool,
    /// Nobody can open connections any more.
    pub(crate) release: bool,
    closed: bool,
}

impl Mailbox {
    pub(crate) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Self {
            content: Mutex::default(),
            filled: AtomicBool::new(false),
            asleep: AtomicBool::new(true),
            waker,
            turner: AtomicU64::new(0),
            work: Work::default(),
        })
    }

    /// Hands over a new connection.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] if the driver is gone.
    pub(crate) fn open(&self, opening: Opening) -> Result<()> {
        self.leave(|content| content.openings.push(opening))
    }

    /// Asks the driver to look at a connection. The caller makes sure that it is posted once at most.
    pub(crate) fn post(&self, connection: ConnectionId) {
        // A driver that is gone has ended its connections; nothing is left to look at.
        let _ = self.leave(|content| content.posts.push(connection));
    }

    /// Returns what a look-up found.
    pub(crate) fn resolved(&self, resolved: Resolved) {
        let _ = self.leave(|content| content.resolved.push(resolved));
    }

    /// Asks the driver to end.
    pub(crate) fn stop(&self) {
        let _ = self.leave(|content| content.stop = true);
    }

    /// Lets the driver end when its connections have.
    pub(crate) fn release(&self) {
        let _ = self.leave(|content| content.release = true);
    }

    fn leave(&self, put: impl FnOnce(&mut Content)) -> Result<()> {
        let mut content = self.content.lock();
        if content.closed {
            return Err(Error::Stopped);
        }
        put(&mut content);
        drop(content);
        self.filled.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
        Ok(())
    }

    /// Takes everything, if there is anything.
    pub(crate) fn take(&self) -> Option<Content> {
        // Looked at before it is written to: a driver that never waits comes here all the time.
        if !self.filled.load(Ordering::SeqCst) {
            return None;
        }
        self.filled.store(false, Ordering::SeqCst);
        let mut content = self.content.lock();
        let closed = content.closed;
        Some(mem::replace(&mut *content, Content { closed, ..Content::default() }))
    }

    /// Takes everything for the last time; later arrivals are refused.
    pub(crate) fn close(&self) -> Content {
        let closed = Content { closed: true, ..Content::default() };
        mem::replace(&mut *self.content.lock(), closed)
    }

    /// Says that the driver is about to wait. `false` if there is something to do first.
    ///
    /// The mailbox is looked at again after `asleep` is set: whoever filled it before saw the driver awake and did not wake it.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        !self.filled.load(Ordering::SeqCst)
    }

    /// Whether it was said that the driver waits, and nobody has woken it since.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    pub(crate) fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Makes the driver's descriptor readable.
    pub(crate) fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!("the reactor could not be woken: {error}");
        }
    }

    /// Notes that this thread turns the driver.
    pub(crate) fn enter(&self) {
        let number = thread_number();
        if self.turner.load(Ordering::Relaxed) != number {
            self.turner.store(number, Ordering::Relaxed);
            TURNED.set(TURNED.get() + 1);
        }
    }

    /// Notes that the driver, turned here last, is no more: nobody waits for this thread on its account.
    pub(crate) fn leave_for_good(&self) {
        self.turner.store(0, Ordering::Relaxed);
        TURNED.set(TURNED.get() - 1);
    }

    /// Whether this thread is the one that turns the driver, so that waiting for the driver would wait for ever.
    pub(crate) fn is_turned_here(&self) -> bool {
        self.turner.load(Ordering::Relaxed) == thread_number()
    }
}

// How many drivers this thread has turned that have not ended here.
thread_local!(static TURNED: Cell<usize> = const { Cell::new(0) });

/// Whether this thread has turned a driver that may still live, so that others may be waiting for it.
pub(crate) fn is_turning_thread() -> bool {
    TURNED.get() > 0
}

/// A number of the thread's own, never 0 and never used twice.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}
