//! A queue between reactors and the consumers of an inbox.

use std::mem;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::reactor::bell::Bell;
use crate::reactor::sink::{Depth, Feeders};

/// What the two ends of an inbox share. Its lock covers a few moves, and hashing and comparing keys: no
/// payload is copied or freed under it.
pub(crate) struct Tray<Q> {
    pub(crate) bell: Bell,
    pub(crate) feeders: Feeders,
    capacity: usize,
    queue: Mutex<Q>,
    /// Events in `queue`, written under its lock; stands in for looking.
    events: AtomicUsize,
    owners: AtomicUsize,
}

/// What waits in a tray.
pub(crate) trait Queue: Default {
    /// How many events.
    fn len(&self) -> usize;
}

/// The consumers' hold on a tray. When the last one goes, what waits goes too, and nothing further is taken in.
pub(crate) struct Owner<Q: Queue>(Arc<Tray<Q>>);

impl<Q: Queue> Tray<Q> {
    /// How many more events fit.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.len())
    }

    /// How many events wait.
    pub(crate) fn len(&self) -> usize {
        self.events.load(Ordering::SeqCst)
    }

    /// Whether nobody can take anything any more.
    pub(crate) fn is_deserted(&self) -> bool {
        self.owners.load(Ordering::SeqCst) == 0
    }

    /// Lets a reactor put something in; `None` if nobody could take it.
    pub(crate) fn put<T>(&self, put: impl FnOnce(&mut Q) -> T) -> Option<T> {
        // The last owner empties the queue after it has gone, so what is put in before it is seen to be gone does not stay.
        self.with(|queue| if self.is_deserted() { None } else { Some(put(queue)) })
    }

    /// Lets a consumer take something out, if there is anything.
    pub(crate) fn take<T>(&self, take: impl FnOnce(&mut Q) -> Option<T>) -> Option<T> {
        if self.len() == 0 { None } else { self.with(take) }
    }

    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Q) -> T) -> T {
        let mut queue = self.queue.lock();
        let result = work(&mut queue);
        self.events.store(queue.len(), Ordering::SeqCst);
        result
    }

    /// Wakes a consumer, if one sleeps and there is something for it.
    pub(crate) fn ring(&self) {
        if self.len() > 0 {
            self.bell.ring();
        }
    }
}

impl<Q: Queue + Send> Depth for Tray<Q> {
    fn depth(&self) -> usize {
        self.len()
    }
}

impl<Q: Queue> Owner<Q> {
    /// A new tray for so many events.
    ///
    /// # Panics
    ///
    /// If `capacity` is 0.
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "an inbox without room receives nothing");
        Self(Arc::new(Tray {
            bell: Bell::default(),
            feeders: Feeders::default(),
            capacity,
            queue: Mutex::default(),
            events: AtomicUsize::new(0),
            owners: AtomicUsize::new(1),
        }))
    }

    /// The tray, for those who do not own it.
    pub(crate) fn tray(&self) -> &Arc<Tray<Q>> {
        &self.0
    }
}

impl<Q: Queue> Deref for Owner<Q> {
    type Target = Tray<Q>;

    fn deref(&self) -> &Tray<Q> {
        &self.0
    }
}

impl<Q: Queue> Clone for Owner<Q> {
    fn clone(&self) -> Self {
        self.owners.fetch_add(1, Ordering::SeqCst);
        Self(self.0.clone())
    }
}

impl<Q: Queue> Drop for Owner<Q> {
    fn drop(&mut self) {
        if self.owners.fetch_sub(1, Ordering::SeqCst) == 1 {
            drop(self.with(mem::take));
        }
    }
}
