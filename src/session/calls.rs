//! Requests that wait for their replies.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use crate::dialect::Id;
use crate::error::Error;
use crate::ticket::Ticket;

/// How many calls expire in one look, so that nobody waits long for the session.
const EXPIRED_MAX: usize = 64;

/// The calls of a session. Whoever removes one settles it.
#[derive(Debug)]
pub(crate) struct Calls<W> {
    pending: BTreeMap<Id, Call<W>>,
    /// The ids by deadline and token.
    deadlines: BTreeMap<(Instant, u64), Id>,
    /// When the reactor looks for calls that have expired: at the earliest deadline or before. It stays though the call is answered, so
    /// that a program that calls often does not wake the reactor for each call.
    alarm: Option<Instant>,
    /// Counts the calls. An id may be used again; a token is not.
    tokens: u64,
}

/// A request that waits for its reply.
#[derive(Debug)]
pub struct Call<W> {
    /// Whom to tell; several calls of a batch may share a ticket.
    pub waiter: W,
    /// How far the request has come.
    pub ticket: Arc<Ticket>,
    /// When the call began.
    pub began: Instant,
    token: u64,
    deadline: Instant,
}

/// What names one call among all that have used its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Which call.
    pub token: u64,
    /// Whether the reactor must be told of an earlier deadline than it knows.
    pub is_urgent: bool,
}

impl<W> Calls<W> {
    /// Adds a call, unless one with its id waits or `max` calls do.
    pub(crate) fn register(
        &mut self,
        now: Instant,
        id: Id,
        deadline: Instant,
        waiter: W,
        ticket: Arc<Ticket>,
        max: usize,
    ) -> Result<Registered, Error> {
        if self.pending.contains_key(&id) {
            return Err(Error::Duplicate(id));
        }
        if self.pending.len() >= max {
            return Err(Error::TooManyCalls { pending: self.pending.len() });
        }
        self.tokens += 1;
        let token = self.tokens;
        self.deadlines.insert((deadline, token), id.clone());
        self.pending.insert(id, Call { waiter, ticket, began: now, token, deadline });
        let is_urgent = self.alarm.is_none_or(|alarm| deadline < alarm);
        if is_urgent {
            self.alarm = Some(deadline);
        }
        Ok(Registered { token, is_urgent })
    }

    /// Removes the call that has this id.
    pub(crate) fn remove(&mut self, id: &Id) -> Option<Call<W>> {
        let call = self.pending.remove(id)?;
        self.deadlines.remove(&(call.deadline, call.token));
        Some(call)
    }

    /// Removes the call that has this id, if its request has begun to leave.
    pub(crate) fn answer(&mut self, id: &Id) -> Option<Call<W>> {
        if self.pending.get(id)?.ticket.may_arrive() { self.remove(id) } else { None }
    }

    /// Removes this call, if it still waits.
    pub(crate) fn withdraw(&mut self, id: &Id, token: u64) -> Option<Call<W>> {
        if self.pending.get(id)?.token == token { self.remove(id) } else { None }
    }

    /// Removes calls whose deadline has come, a limited number; what is left is due at once.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(Id, Call<W>)> {
        let mut expired = Vec::new();
        if self.alarm.is_none_or(|alarm| alarm > now) {
            return expired;
        }
        while expired.len() < EXPIRED_MAX
            && let Some(entry) = self.deadlines.first_entry()
            && entry.key().0 <= now
        {
            let id = entry.remove();
            expired.extend(self.pending.remove_entry(&id));
        }
        self.alarm = self.deadlines.first_key_value().map(|((deadline, _), _)| *deadline);
        expired
    }

    /// Removes all.
    pub(crate) fn take(&mut self) -> BTreeMap<Id, Call<W>> {
        self.deadlines.clear();
        self.alarm = None;
        mem::take(&mut self.pending)
    }

    /// When [`expire`](Self::expire) wants to be called next.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        self.alarm
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }
}

impl<W> Default for Calls<W> {
    fn default() -> Self {
        Self { pending: BTreeMap::new(), deadlines: BTreeMap::new(), alarm: None, tokens: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    fn register(calls: &mut Calls<&'static str>, now: Instant, id: i64, limit: Duration) -> Result<Registered, Error> {
        calls.register(now, Id::Number(id), now + limit, "waiter", Arc::default(), 3)
    }

    #[test]
    fn a_pending_id_is_refused_and_its_text_is_another() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        register(&mut calls, t0, 1, SEC).unwrap();
        assert!(matches!(register(&mut calls, t0, 1, SEC), Err(Error::Duplicate(Id::Number(1)))));
        calls.register(t0, Id::from("1"), t0 + SEC, "another", Arc::default(), 3).unwrap();
        assert_eq!(calls.remove(&Id::from("1")).unwrap().waiter, "another");
        assert_eq!(calls.len(), 1);
    }

    #[test]
    fn there_is_a_most_of_pending_calls() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        (1..=3).for_each(|id| _ = register(&mut calls, t0, id, SEC).unwrap());
        assert!(matches!(register(&mut calls, t0, 4, SEC), Err(Error::TooManyCalls { pending: 3 })));
        calls.remove(&Id::Number(2)).unwrap();
        register(&mut calls, t0, 4, SEC).unwrap();
    }

    #[test]
    fn a_used_id_serves_again_and_what_belongs_to_the_first_call_does_not_touch_the_second() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        let first = register(&mut calls, t0, 1, SEC).unwrap();
        calls.remove(&Id::Number(1)).unwrap();
        register(&mut calls, t0, 1, 5 * SEC).unwrap();
        assert!(calls.withdraw(&Id::Number(1), first.token).is_none());
        assert!(calls.expire(t0 + 2 * SEC).is_empty(), "the first call's deadline");
        assert_eq!(calls.expire(t0 + 5 * SEC).len(), 1);
    }

    #[test]
    fn calls_expire_in_the_order_of_their_deadlines_a_limited_number_at_a_time() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        for id in 0..200 {
            calls.register(t0, Id::Number(id), t0 + SEC * (200 - id as u32), id, Arc::default(), 1000).unwrap();
        }
        let mut expired = Vec::new();
        while calls.alarm().is_some_and(|alarm| alarm <= t0 + 150 * SEC) {
            let some = calls.expire(t0 + 150 * SEC);
            assert!(some.len() <= EXPIRED_MAX);
            expired.extend(some.into_iter().map(|(_, call)| call.waiter));
        }
        assert_eq!(expired, (50..200).rev().collect::<Vec<_>>());
        assert_eq!((calls.len(), calls.alarm()), (50, Some(t0 + 151 * SEC)));
    }

    #[test]
    fn only_a_deadline_earlier_than_the_alarm_is_urgent_though_calls_are_answered() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        assert!(register(&mut calls, t0, 1, 5 * SEC).unwrap().is_urgent);
        calls.remove(&Id::Number(1)).unwrap();
        assert!(!register(&mut calls, t0 + SEC, 2, 5 * SEC).unwrap().is_urgent, "the alarm still stands");
        assert!(register(&mut calls, t0 + SEC, 3, SEC).unwrap().is_urgent);
        assert!(calls.expire(t0 + SEC).is_empty());
        assert_eq!(calls.expire(t0 + 2 * SEC).len(), 1);
        assert_eq!(calls.alarm(), Some(t0 + 6 * SEC));
    }

    #[test]
    fn a_call_is_taken_back_by_id_and_token() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        let registered = [1, 2].map(|id| register(&mut calls, t0, id, SEC).unwrap().token);
        assert_ne!(registered[0], registered[1]);
        assert!(calls.withdraw(&Id::Number(3), registered[0]).is_none());
        assert!(calls.withdraw(&Id::Number(1), registered[1]).is_none());
        assert_eq!(calls.len(), 2);
        assert_eq!(calls.withdraw(&Id::Number(1), registered[0]).unwrap().began, t0);
        assert_eq!((calls.len(), calls.expire(t0 + SEC).len()), (1, 1));
    }

    #[test]
    fn only_a_request_that_has_begun_to_leave_is_answered() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        let tickets = [(); 3].map(|()| Arc::<Ticket>::default());
        for (id, ticket) in (1..).zip(&tickets) {
            calls.register(t0, Id::Number(id), t0 + SEC, id, ticket.clone(), 9).unwrap();
        }
        tickets[0].withdraw();
        tickets[1].begin();
        let answered = [1, 2, 3, 4].map(|id| calls.answer(&Id::Number(id)).map(|call| call.waiter));
        assert_eq!((answered, calls.len(), calls.deadlines.len()), ([None, Some(2), None, None], 2, 2));
    }

    #[test]
    fn a_refused_call_leaves_no_deadline() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        (1..=3).for_each(|id| _ = register(&mut calls, t0, id, 5 * SEC).unwrap());
        register(&mut calls, t0, 1, SEC).unwrap_err();
        register(&mut calls, t0, 4, SEC).unwrap_err();
        assert_eq!((calls.alarm(), calls.deadlines.len()), (Some(t0 + 5 * SEC), 3));
    }

    #[test]
    fn calls_of_one_deadline_expire_together_when_it_comes_and_no_earlier() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        (1..=3).for_each(|id| _ = register(&mut calls, t0, id, SEC).unwrap());
        assert_eq!(calls.expire(t0 + SEC - Duration::from_nanos(1)).len(), 0);
        assert_eq!((calls.expire(t0 + SEC).len(), calls.alarm()), (3, None));
        assert!(register(&mut calls, t0, 4, 9 * SEC).unwrap().is_urgent, "no alarm stands");
    }

    #[test]
    fn an_alarm_for_nothing_is_put_off_to_the_next_deadline() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        register(&mut calls, t0, 1, SEC).unwrap();
        register(&mut calls, t0, 2, 5 * SEC).unwrap();
        calls.remove(&Id::Number(1)).unwrap();
        assert_eq!((calls.expire(t0 + SEC).len(), calls.alarm()), (0, Some(t0 + 5 * SEC)));
    }

    #[test]
    fn all_that_are_taken_leave_nothing_behind() {
        let (t0, mut calls) = (Instant::now(), Calls::default());
        let first = register(&mut calls, t0, 1, SEC).unwrap();
        register(&mut calls, t0, 2, SEC).unwrap();
        assert_eq!(calls.take().into_keys().collect::<Vec<_>>(), [1, 2].map(Id::Number));
        assert_eq!((calls.len(), calls.alarm(), calls.expire(t0 + SEC).len()), (0, None, 0));
        let again = register(&mut calls, t0, 1, 5 * SEC).unwrap();
        assert!(again.is_urgent && again.token != first.token && calls.expire(t0 + SEC).is_empty());
    }
}
