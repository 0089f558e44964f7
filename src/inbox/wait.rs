//! How consumers wait, whatever the inbox.

use std::hint;
use std::iter::FusedIterator;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::inbox::Inbox;
use crate::reactor::{Bell, Feeders};

/// What consumers take from.
pub(crate) trait Source: Yield {
    /// The next, if there is one; [`Error::Closed`] when none can come any more.
    fn take(&self) -> Result<Option<Self::Item>>;

    fn is_empty(&self) -> bool;

    fn bell(&self) -> &Bell;

    fn feeders(&self) -> &Feeders;

    /// How long consumers look before they sleep.
    fn patience(&self) -> Duration;
}

/// Waits for the next, `timeout` at most.
pub(crate) fn recv<S: Source>(source: &S, timeout: Option<Duration>) -> Result<S::Item> {
    if let Some(item) = source.take()? {
        return Ok(item);
    }
    check_thread(source)?;
    let take = || source.take().transpose();
    // A time that cannot be told does not come.
    let after = |pause| Instant::now().checked_add(pause);
    let until = timeout.and_then(after);
    let mut taken = None;
    if !source.patience().is_zero() {
        taken = look(take, after(timeout.unwrap_or(Duration::MAX).min(source.patience())));
    }
    let taken = taken.or_else(|| source.bell().wait(until, take, || !source.is_empty()));
    taken.unwrap_or(Err(Error::Timeout { after: timeout.unwrap_or_default(), sent: false }))
}

/// Waits for the next without ever sleeping.
pub(crate) fn spin<S: Source>(source: &S) -> Result<S::Item> {
    if let Some(item) = source.take()? {
        return Ok(item);
    }
    check_thread(source)?;
    look(|| source.take().transpose(), None).expect("a look without an end finds something")
}

fn look<T>(take: impl Fn() -> Option<T>, until: Option<Instant>) -> Option<T> {
    loop {
        let taken = take();
        if taken.is_some() || until.is_some_and(|until| until <= Instant::now()) {
            return taken;
        }
        hint::spin_loop();
    }
}

fn check_thread<S: Source>(source: &S) -> Result<()> {
    if source.feeders().include_this_thread() { Err(Error::OnReactor) } else { Ok(()) }
}

/// What can be iterated.
pub trait Yield {
    /// What it yields.
    type Item;

    /// Waits for the next; `None` if none can come any more.
    fn next(&self) -> Option<Self::Item>;
}

/// What comes until nothing can come any more; made by [`Inbox::iter`] and its like.
#[derive(Debug)]
pub struct Iter<'a, I = Inbox>(pub(crate) &'a I);

/// What comes until nothing can come any more; made by iterating an inbox itself.
#[derive(Debug)]
pub struct IntoIter<I = Inbox>(pub(crate) I);

impl<I: Yield> Iterator for Iter<'_, I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.0.next()
    }
}

impl<I: Yield> Iterator for IntoIter<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.0.next()
    }
}

impl<I: Yield> FusedIterator for Iter<'_, I> {}
impl<I: Yield> FusedIterator for IntoIter<I> {}
