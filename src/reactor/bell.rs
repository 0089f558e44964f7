//! How a reactor wakes the consumers of an inbox.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Wakes consumers that found their queue empty: one for any number of events, and none if none sleeps.
///
/// A consumer says that it listens, then looks at the queue again, then sleeps. A producer pushes, then looks whether anybody listens.
/// Each does its own part before it looks at the other's, so of the two at least one sees the other. Who was rung for, takes an event
/// and sees another, rings for the next consumer.
///
/// A ring that nobody has heard yet stands for later ones: whoever hears it looks at the queue afterwards.
#[derive(Default)]
pub(crate) struct Bell {
    /// Consumers that sleep or are about to.
    listeners: AtomicUsize,
    /// Rings that nobody has heard. While there are any, no listener sleeps that is not being woken.
    rings: Mutex<usize>,
    rung: Condvar,
}

/// One who feeds a queue. When it goes, the queue may have ended, and the consumers are woken to see it.
#[derive(Clone)]
pub(crate) struct Ringer(pub(crate) Arc<Bell>);

/// A consumer that is about to sleep.
struct Listener<'a>(&'a Bell);

impl Bell {
    /// Wakes a consumer, if any sleeps. Comes after the push.
    pub(crate) fn ring(&self) {
        if self.has_listeners() && self.strike() {
            self.rung.notify_one();
        }
    }

    fn ring_all(&self) {
        if self.has_listeners() {
            self.strike_for_all();
            self.rung.notify_all();
        }
    }

    /// Sleeps until there is something to take, or until the deadline. `has_more` says whether another consumer would find something too.
    pub(crate) fn wait<T>(&self, until: Option<Instant>, take: impl Fn() -> Option<T>, has_more: impl Fn() -> bool) -> Option<T> {
        let listener = self.listen();
        let mut was_rung = false;
        loop {
            if let Some(taken) = take() {
                drop(listener);
                if was_rung && has_more() {
                    self.ring();
                }
                return Some(taken);
            }
            if !listener.sleep(until) {
                return None;
            }
            was_rung = true;
        }
    }

    fn listen(&self) -> Listener<'_> {
        self.listeners.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Listener(self)
    }

    fn has_listeners(&self) -> bool {
        fence(Ordering::SeqCst);
        self.listeners.load(Ordering::SeqCst) > 0
    }

    /// Returns whether somebody has to be woken for it.
    fn strike(&self) -> bool {
        let mut rings = self.rings.lock();
        let is_first = *rings == 0;
        *rings += usize::from(is_first);
        is_first
    }

    fn strike_for_all(&self) {
        let mut rings = self.rings.lock();
        // Counted under the lock, so that of two who ring the later one counts no fewer than there are.
        *rings = self.listeners.load(Ordering::SeqCst);
    }
}

impl Deref for Ringer {
    type Target = Bell;

    fn deref(&self) -> &Bell {
        &self.0
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        self.ring_all();
    }
}

impl Listener<'_> {
    /// Returns whether it was rung for.
    fn sleep(&self, until: Option<Instant>) -> bool {
        let mut rings = self.0.rings.lock();
        while *rings == 0 {
            match until {
                None => self.0.rung.wait(&mut rings),
                Some(until) if self.0.rung.wait_until(&mut rings, until).timed_out() => break,
                Some(_) => {}
            }
        }
        hear(&mut rings)
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::SeqCst);
    }
}

fn hear(rings: &mut usize) -> bool {
    let is_rung = *rings > 0;
    *rings -= usize::from(is_rung);
    is_rung
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;
    use std::mem;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use self::Work::*;
    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    #[test]
    fn what_comes_between_the_last_look_and_the_sleep_is_not_slept_over() {
        let bell = Bell::default();
        let looks = Cell::new(0);
        let take = || {
            looks.set(looks.get() + 1);
            if looks.get() == 1 {
                // This look finds nothing; the event comes right behind it.
                bell.ring();
                return None;
            }
            Some("event")
        };
        let began = Instant::now();
        assert_eq!(bell.wait(Some(began + WAIT), take, || false), Some("event"));
        assert!(began.elapsed() < WAIT);
    }

    #[test]
    fn many_rings_wake_once_and_none_stays_behind() {
        let bell = Bell::default();
        (0..3).for_each(|_| bell.ring());
        assert_eq!(*bell.rings.lock(), 0, "nobody listened");
        let listener = bell.listen();
        (0..3).for_each(|_| bell.ring());
        assert_eq!(*bell.rings.lock(), 1);
        assert!(listener.sleep(None));
        assert!(!listener.sleep(Some(Instant::now())));
    }

    #[test]
    fn who_was_rung_for_and_leaves_something_rings_for_the_next() {
        for has_more in [true, false] {
            let bell = Bell::default();
            let _other = bell.listen();
            let looks = Cell::new(0);
            let take = || {
                looks.set(looks.get() + 1);
                if looks.get() == 1 {
                    bell.ring();
                    return None;
                }
                Some(())
            };
            bell.wait(None, take, || has_more);
            assert_eq!(*bell.rings.lock(), usize::from(has_more));
        }
    }

    #[test]
    fn no_order_of_steps_leaves_a_consumer_asleep_beside_an_event() {
        explore(&[&[Push, Ring, Push, Ring]], &[&[Recv], &[Recv]], 2_000);
        explore(&[&[Push, Push, Push, Ring]], &[&[Recv], &[Recv], &[Recv]], 10_000);
        explore(&[&[Push, Ring], &[Push, Push, Ring]], &[&[Recv], &[Recv]], 10_000);
        explore(&[&[Push, Ring, Push, Ring]], &[&[Recv], &[RecvTimeout, RecvTimeout]], 5_000);
    }

    #[test]
    fn no_order_of_steps_leaves_a_consumer_asleep_after_the_end() {
        explore(&[&[Push, Ring, End]], &[&[Recv], &[Recv], &[RecvTimeout]], 10_000);
        explore(&[&[Push, Ring, End], &[End]], &[&[Recv], &[Recv]], 10_000);
    }

    #[test]
    fn consumers_that_sleep_between_events_get_every_one_and_see_the_end() {
        const EVENTS: usize = 20_000;
        let (sender, receiver) = crossbeam_channel::unbounded();
        let bell = Arc::<Bell>::default();
        let (finish, finished) = mpsc::channel();
        for _ in 0..3 {
            let (bell, receiver, finish) = (bell.clone(), receiver.clone(), finish.clone());
            thread::spawn(move || {
                let take = || match receiver.try_recv() {
                    Ok(event) => Some(Some(event)),
                    Err(error) => error.is_disconnected().then_some(None),
                };
                let taken = std::iter::from_fn(|| bell.wait(None, take, || !receiver.is_empty()).unwrap());
                finish.send(taken.collect::<Vec<usize>>()).unwrap();
            });
        }
        for part in 0..2 {
            let (sender, ringer) = (sender.clone(), Ringer(bell.clone()));
            thread::spawn(move || {
                for event in 0..EVENTS / 2 {
                    sender.send(2 * event + part).unwrap();
                    // In bursts of several sizes, with pauses in which consumers fall asleep.
                    if event % 7 < 4 {
                        ringer.ring();
                        while !sender.is_empty() {
                            thread::yield_now();
                        }
                    }
                }
                ringer.ring();
                drop(sender);
            });
        }
        drop(sender);
        let mut taken: Vec<_> = (0..3).flat_map(|_| finished.recv_timeout(WAIT).expect("somebody sleeps on")).collect();
        taken.sort_unstable();
        assert_eq!(taken, Vec::from_iter(0..EVENTS));
    }

    /// What an actor is to do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum Work {
        Push,
        Ring,
        /// Drops a sender, then rings for all.
        End,
        /// Again and again, until the end.
        Recv,
        /// Once, with a deadline that may come at any time.
        RecvTimeout,
    }

    /// Where an actor stands. What follows is one critical section of the bell or of the queue.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum At {
        Begin,
        // Ringing.
        Heed,
        Strike,
        NotifyOne,
        HeedForEnd,
        StrikeForAll,
        NotifyAll,
        // Waiting.
        Look,
        Hear,
        Asleep,
        Leave,
        PassOn,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Actor {
        work: Vec<Work>,
        at: At,
        was_rung: bool,
        has_taken: bool,
    }

    /// A bell, a queue, and everybody at it, in the place of threads and of the condition variable.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Stage {
        listeners: usize,
        rings: usize,
        events: usize,
        senders: usize,
        actors: Vec<Actor>,
    }

    /// Takes every order of the steps, and looks where nobody can go on. There must be so many states at least.
    fn explore(producers: &[&[Work]], consumers: &[&[Work]], least: usize) {
        let works = producers.iter().chain(consumers).map(|work| work.to_vec());
        let actor = |work| Actor { work, at: At::Begin, was_rung: false, has_taken: false };
        let first = Stage { listeners: 0, rings: 0, events: 0, senders: producers.len(), actors: works.map(actor).collect() };
        let mut seen = HashSet::from([first.clone()]);
        let mut open = vec![(first, Vec::new())];
        while let Some((stage, order)) = open.pop() {
            let next = stage.next();
            if next.iter().all(|(_, is_timeout, _)| *is_timeout) {
                stage.check(&order);
            }
            for (actor, _, next) in next {
                if seen.insert(next.clone()) {
                    let step = (actor, stage.actors[actor].at);
                    open.push((next, order.iter().copied().chain([step]).collect()));
                }
            }
        }
        assert!(seen.len() >= least, "only {} states", seen.len());
    }

    impl Stage {
        /// Everything that can happen: by whom, whether it is that a deadline comes, and how things stand then.
        fn next(&self) -> Vec<(usize, bool, Self)> {
            let mut next = Vec::new();
            for (number, actor) in self.actors.iter().enumerate().filter(|(_, actor)| !actor.work.is_empty()) {
                match actor.at {
                    At::Asleep if actor.work[0] == RecvTimeout => next.push((number, true, self.after(number, true))),
                    At::Asleep => {}
                    At::NotifyOne => {
                        let asleep = self.actors.iter().enumerate().filter(|(_, actor)| actor.at == At::Asleep);
                        let woken: Vec<_> = asleep.map(|(other, _)| Some(other)).collect();
                        for other in if woken.is_empty() { vec![None] } else { woken } {
                            let mut after = self.after(number, false);
                            other.into_iter().for_each(|other| after.actors[other].at = At::Hear);
                            next.push((number, false, after));
                        }
                    }
                    _ => next.push((number, false, self.after(number, false))),
                }
            }
            next
        }

        /// After the next step of an actor.
        fn after(&self, number: usize, is_timeout: bool) -> Self {
            let mut after = self.clone();
            let bell = Bell { listeners: AtomicUsize::new(self.listeners), rings: Mutex::new(self.rings), rung: Condvar::new() };
            let actor = &mut after.actors[number];
            let at = match actor.at {
                At::Begin => match actor.work[0] {
                    Push => {
                        after.events += 1;
                        None
                    }
                    Ring => (self.events > 0).then_some(At::Heed),
                    End => {
                        after.senders -= 1;
                        Some(At::HeedForEnd)
                    }
                    Recv | RecvTimeout => {
                        mem::forget(bell.listen());
                        (actor.was_rung, actor.has_taken) = (false, false);
                        Some(At::Look)
                    }
                },
                At::Heed => bell.has_listeners().then_some(At::Strike),
                At::Strike => bell.strike().then_some(At::NotifyOne),
                At::NotifyOne => None,
                At::HeedForEnd => bell.has_listeners().then_some(At::StrikeForAll),
                At::StrikeForAll => {
                    bell.strike_for_all();
                    Some(At::NotifyAll)
                }
                At::NotifyAll => {
                    after.actors.iter_mut().filter(|it| it.at == At::Asleep).for_each(|it| it.at = At::Hear);
                    None
                }
                At::Look => {
                    actor.has_taken = self.events > 0;
                    after.events -= usize::from(actor.has_taken);
                    let is_over = self.events == 0 && self.senders == 0;
                    Some(if actor.has_taken || is_over { At::Leave } else { At::Hear })
                }
                At::Hear | At::Asleep => {
                    let heard = hear(&mut bell.rings.lock());
                    actor.was_rung |= heard;
                    Some(match (heard, is_timeout) {
                        (true, _) => At::Look,
                        (false, true) => At::Leave,
                        (false, false) => At::Asleep,
                    })
                }
                At::Leave => {
                    drop(Listener(&bell));
                    (actor.was_rung && actor.has_taken).then_some(At::PassOn)
                }
                At::PassOn => (self.events > 0).then_some(At::Heed),
            };
            after.listeners = bell.listeners.load(Ordering::SeqCst);
            after.rings = *bell.rings.lock();
            let actor = &mut after.actors[number];
            actor.at = at.unwrap_or(At::Begin);
            if at.is_none() && (actor.work[0] != Recv || !actor.has_taken) {
                actor.work.remove(0);
            }
            after
        }

        /// Nothing but a deadline can go on.
        fn check(&self, order: &[(usize, At)]) {
            if self.actors.iter().any(|actor| actor.at == At::Asleep) {
                assert_eq!(self.events, 0, "asleep beside an event: {order:?}");
                assert!(self.senders > 0, "asleep after the end: {order:?}");
            }
        }
    }
}
