//! A queue in which a newer message takes the place of an older one with the same key.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Weak};

use crate::event::{ConnectionId, EventRef, Generation, Received};
use crate::reactor::handler::Context;
use crate::reactor::sink::{self, Depth, Feeders, Intake, Outcome};
use crate::reactor::tray::{Queue, Tray};

/// The function that says what a message is the latest value of.
pub(crate) type KeyFn<K> = dyn Fn(ConnectionId, EventRef<'_>) -> Option<K> + Send + Sync;

/// The queue of a conflating inbox.
pub(crate) struct Conflated<K> {
    waiting: VecDeque<(Option<Key<K>>, Received)>,
    /// The number of the first that waits; they are numbered as they come.
    first: u64,
    /// The numbers of those with a key.
    places: HashMap<Key<K>, u64>,
    /// How many messages gave their place to a newer one.
    pub(crate) replaced: u64,
}

/// The sending end of a conflating inbox, for one connection.
pub(crate) struct ConflatingFeed<K> {
    tray: Arc<Tray<Conflated<K>>>,
    key: Arc<KeyFn<K>>,
    generation: Generation,
    /// Counts the state changes and the wires: no message passes one.
    era: u64,
    /// Something was delivered since the consumers were told.
    is_news: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key<K> {
    connection: ConnectionId,
    era: u64,
    key: K,
}

impl<K: Clone + Eq + Hash> Conflated<K> {
    /// Returns the message whose place was taken.
    fn put(&mut self, key: Option<Key<K>>, received: Received) -> Option<Received> {
        if let Some(key) = &key {
            // A key that panicked when it was taken out has left a place that is no more.
            let place = self.places.get(key).and_then(|place| place.checked_sub(self.first));
            if let Some((_, older)) = place.and_then(|place| self.waiting.get_mut(place as usize)) {
                self.replaced += 1;
                return Some(mem::replace(older, received));
            }
            self.places.insert(key.clone(), self.first + self.waiting.len() as u64);
        }
        self.waiting.push_back((key, received));
        None
    }

    pub(crate) fn take(&mut self) -> Option<Received> {
        let (key, received) = self.waiting.pop_front()?;
        self.first += 1;
        if let Some(key) = key {
            self.places.remove(&key);
        }
        Some(received)
    }
}

impl<K> ConflatingFeed<K> {
    pub(crate) fn new(tray: Arc<Tray<Conflated<K>>>, key: Arc<KeyFn<K>>) -> Self {
        Self { tray, key, generation: Generation::default(), era: 0, is_news: false }
    }
}

impl<K: Clone + Eq + Hash + Send> ConflatingFeed<K> {
    fn put(&mut self, context: &Context<'_>, event: EventRef<'_>) -> Outcome {
        let Context { connection, generation, .. } = *context;
        let is_message = !matches!(event, EventRef::State(_));
        // Where inboxes are full, a wire may come and go without a state change that tells of it.
        if !is_message || mem::replace(&mut self.generation, generation) != generation {
            self.era += 1;
        }
        let key = if is_message { (self.key)(connection, event) } else { None };
        let key = key.map(|key| Key { connection, era: self.era, key });
        // What follows may take the place of something older, and come before this.
        let received = Received { more: false, ..sink::received(context, sink::to_event(event)) };
        match self.tray.put(|queue| queue.put(key, received)) {
            Some(None) => Outcome::Delivered,
            Some(Some(_older)) => Outcome::Replaced,
            None => Outcome::Discarded,
        }
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Intake for ConflatingFeed<K> {
    fn room(&self) -> usize {
        self.tray.room()
    }

    fn deliver(&mut self, context: &Context<'_>, event: EventRef<'_>) -> Outcome {
        if self.tray.is_deserted() {
            return Outcome::Discarded;
        }
        self.is_news = true;
        // The key function is the user's, and so is what compares keys.
        panic::catch_unwind(AssertUnwindSafe(|| self.put(context, event))).unwrap_or_else(Outcome::Panicked)
    }

    fn flush(&mut self) {
        if mem::take(&mut self.is_news) {
            self.tray.ring();
        }
    }

    fn feeders(&self) -> &Feeders {
        &self.tray.feeders
    }

    fn depth(&self) -> Weak<dyn Depth> {
        let tray: Weak<Tray<_>> = Arc::downgrade(&self.tray);
        tray
    }
}

impl<K> Queue for Conflated<K> {
    fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl<K> Default for Conflated<K> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), first: 0, places: HashMap::new(), replaced: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::*;
    use crate::config::Config;
    use crate::event::Event;
    use crate::reactor::Driver;
    use crate::reactor::shared::Shared;
    use crate::reactor::tray::Owner;

    #[test]
    fn messages_stay_on_their_wire_though_nothing_was_said_between() {
        let (mut feed, shared, owner) = fed(|_, _| Some("key"));
        let first = Generation::default().next();
        let generations = [first, first, first.next(), first.next()];
        let outcomes = generations.map(|generation| {
            let outcome = feed.deliver(&Context::new(&shared, generation, Instant::now()), EventRef::Text("x"));
            matches!(outcome, Outcome::Replaced)
        });
        assert_eq!((outcomes, owner.len()), ([false, true, false, true], 2));
    }

    #[test]
    fn a_key_that_panics_is_an_outcome_and_spoils_nothing() {
        /// Cannot be hashed while the flag is set.
        #[derive(Clone)]
        struct Fragile(Arc<AtomicBool>);

        impl PartialEq for Fragile {
            fn eq(&self, _: &Self) -> bool {
                true
            }
        }

        impl Eq for Fragile {}

        impl Hash for Fragile {
            fn hash<H: Hasher>(&self, _: &mut H) {
                assert!(!self.0.load(Ordering::Relaxed), "as the test asks");
            }
        }

        let is_broken = Arc::new(AtomicBool::new(false));
        let key = Fragile(is_broken.clone());
        let (mut feed, shared, owner) = fed(move |_, _| Some(key.clone()));
        let context = Context::new(&shared, Generation::default(), Instant::now());
        let mut deliver = |text| feed.deliver(&context, EventRef::Text(text));
        assert!(matches!(deliver("1"), Outcome::Delivered));
        is_broken.store(true, Ordering::Relaxed);
        assert!(matches!(deliver("2"), Outcome::Panicked(_)));
        // Its entry among the places stays behind.
        assert!(panic::catch_unwind(AssertUnwindSafe(|| owner.take(Conflated::take))).is_err());
        is_broken.store(false, Ordering::Relaxed);
        assert!(matches!(deliver("3"), Outcome::Delivered));
        assert_eq!(owner.len(), 1);
        assert!(matches!(owner.take(Conflated::take).unwrap().event, Event::Message(it) if it.text() == Some("3")));
    }

    fn fed<K: Clone + Eq + Hash + Send + 'static>(
        key: impl Fn(ConnectionId, EventRef<'_>) -> Option<K> + Send + Sync + 'static,
    ) -> (ConflatingFeed<K>, Arc<Shared>, Owner<Conflated<K>>) {
        let mailbox = Driver::new().unwrap().mailbox.clone();
        let shared = Shared::new(ConnectionId::next(), Arc::new(Config::new("ws://peer")), None, mailbox, None);
        let owner = Owner::new(100);
        (ConflatingFeed::new(owner.tray().clone(), Arc::new(key)), shared, owner)
    }
}
