//! How callers start calls, and how calls end.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;

use crate::dialect::{Dialect, Id, Request, peek};
use crate::error::{Error, Rejection, Result};
use crate::event::{Generation, Sent};
use crate::reactor::guard;
use crate::reactor::shared::{Manner, Shared, to_json};
use crate::reply::Reply;
use crate::session::calls::{Call, Registered};
use crate::session::dialogue;
use crate::telemetry::Signal;
use crate::ticket::Ticket;
use crate::wire::out::Outgoing;

/// Whom to tell of the end of a call; told once.
pub(crate) struct Waiter {
    sender: Sender<Result<Reply>>,
    /// What was called, if it has a name.
    pub(crate) method: Option<Box<str>>,
}

/// A call under way. It ends exactly once: with its reply, at its deadline, or with its wire. Dropping it takes it back: if its message
/// still waits for the rate limit, it does not leave, and a reply that comes all the same is
/// [`Event::Unmatched`](crate::Event::Unmatched).
///
/// ```no_run
/// # use std::time::Duration;
/// # use serde_json::json;
/// # use zen_websocket::{Config, Error, JsonRpc, connect};
/// let (client, inbox) = connect(Config::new("wss://www.example.com/ws").dialect(JsonRpc::default()))?;
/// let order = client.start_call("private/buy", json!({ "instrument_name": "BTC-PERPETUAL", "amount": 10 }))?;
/// // … other work …
/// match order.wait_timeout(Duration::from_millis(50)) {
///     Ok(reply) => println!("{} in {:?}", reply.text(), reply.round_trip()),
///     Err(Error::Rejected(rejection)) => println!("refused: {rejection}"),
///     Err(error) if error.may_have_been_sent() => println!("ask the venue what became of it: {error}"),
///     Err(error) => println!("not sent: {error}"),
/// }
/// # Ok::<(), Error>(())
/// ```
#[must_use = "dropping it takes the call back"]
pub struct PendingCall {
    shared: Arc<Shared>,
    id: Id,
    receiver: Receiver<Result<Reply>>,
    deadline: Instant,
    after: Duration,
    token: u64,
    ticket: Arc<Ticket>,
}

impl PendingCall {
    /// The id of the request.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Waits for the reply, until the call's own deadline.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`] if the venue refused the request, [`Error::Reply`] if its answer is none, [`Error::Timeout`] at the deadline,
    /// [`Error::Lost`] if the wire ended. On the thread that would have to receive the reply it does not wait if the reply is not there:
    /// [`Error::OnReactor`] if the request did not leave and will not, otherwise [`Error::Timeout`].
    pub fn wait(self) -> Result<Reply> {
        if let Some(ended) = self.try_get() {
            return ended;
        }
        if self.shared.check_thread().is_err() {
            self.take_back();
            let is_gone = !self.ticket.may_arrive();
            return Err(if is_gone { Error::OnReactor } else { Error::Timeout { after: Duration::ZERO, sent: true } });
        }
        if let Ok(ended) = self.receiver.recv_deadline(self.deadline) {
            return ended;
        }
        match self.withdraw() {
            Some(error) => {
                self.shared.tell(&Signal::Timeout { id: &self.id });
                Err(error)
            }
            // Whoever has ended it is about to say how, or has told another receiver.
            None => {
                let told = Error::Timeout { after: self.after, sent: self.ticket.may_arrive() };
                self.receiver.recv_timeout(self.after).unwrap_or(Err(told))
            }
        }
    }

    /// Waits for the reply, `timeout` at most. The call goes on if the wait ends before it.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait); [`Error::Timeout`] also when only this wait is over, at once on the thread that would have to receive the
    /// reply. Once the end of a call was given, further waits time out.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Reply> {
        if let Some(ended) = self.try_get() {
            return ended;
        }
        let after = if self.shared.check_thread().is_ok() { timeout } else { Duration::ZERO };
        // What still waits for the rate limit may leave later.
        let sent = !self.ticket.is_withdrawn();
        self.receiver.recv_timeout(after).unwrap_or(Err(Error::Timeout { after, sent }))
    }

    /// How the call ended, if it has. Given once.
    pub fn try_get(&self) -> Option<Result<Reply>> {
        self.receiver.try_recv().ok()
    }

    /// The channel that yields how the call ends, for `crossbeam_channel::select!`.
    pub fn receiver(&self) -> &Receiver<Result<Reply>> {
        &self.receiver
    }

    /// Takes the call back, if it still waits.
    fn take_back(&self) {
        if self.withdraw().is_some() {
            self.shared.tell(&Signal::Cancel { id: &self.id });
        }
    }

    /// Takes the call back. If it still waited, this is how it ended; otherwise the end is in its receiver or about to be.
    fn withdraw(&self) -> Option<Error> {
        let withdrawn = self.shared.session.lock().withdraw(&self.id, self.token)?;
        Some(timed_out(&withdrawn.ticket, self.after))
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.take_back();
    }
}

impl fmt::Debug for PendingCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingCall").field("id", &self.id).field("ended", &!self.receiver.is_empty()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn start_call(self: &Arc<Self>, manner: Manner, method: &str, params: Option<&str>) -> Result<PendingCall> {
        let mut taken = None;
        loop {
            let Request { text, id } = self.config.settings.dialect.request(self.next_number(), method, params)?;
            match self.start_request(manner, [(id, Some(method.into()))], &text) {
                // A raw request has taken the number. A dialect that makes the same id of every number is told.
                Err(Error::Duplicate(id)) if taken.as_ref() != Some(&id) => taken = Some(id),
                started => return started.map(|mut started| started.remove(0)),
            }
        }
    }

    /// Several calls in one message. They share its fate until their replies come.
    pub(crate) fn start_batch(self: &Arc<Self>, manner: Manner, calls: &[(&str, Option<String>)]) -> Result<Vec<PendingCall>> {
        let dialect = &self.config.settings.dialect;
        let mut taken = None;
        loop {
            let (mut requests, mut texts) = (Vec::new(), Vec::new());
            for (method, params) in calls {
                let request = dialect.request(self.next_number(), method, params.as_deref())?;
                requests.push((request.id, Some((*method).into())));
                texts.push(request.text);
            }
            match self.start_request(manner, requests, &dialect.batch(&texts)?) {
                Err(Error::Duplicate(id)) if taken.as_ref() != Some(&id) => taken = Some(id),
                started => return started,
            }
        }
    }

    pub(crate) fn start_raw(self: &Arc<Self>, manner: Manner, text: &str) -> Result<PendingCall> {
        let field = peek::field(text, "id").and_then(peek::id);
        let id = field.ok_or_else(|| Error::config("text", "has no \"id\" that is an integer or a string"))?;
        if matches!(id, Id::Number(number) if number >= dialogue::NUMBER_FIRST as i64) {
            return Err(Error::config("text", "has an \"id\" of 2^52 or more, which the connection keeps for itself"));
        }
        self.start_request(manner, [(id, None)], text).map(|mut started| started.remove(0))
    }

    pub(crate) fn notify(&self, manner: Manner, method: &str, params: Option<&str>) -> Result<Sent> {
        let text = self.config.settings.dialect.notification(method, params)?;
        self.send_text(manner, &text, None)
    }

    pub(crate) fn respond(&self, manner: Manner, id: &Id, outcome: Result<impl Serialize, Rejection>) -> Result<Sent> {
        let text = match outcome {
            Ok(result) => self.config.settings.dialect.response(id, Ok(&to_json(&result)?))?,
            Err(rejection) => self.config.settings.dialect.response(id, Err(&rejection))?,
        };
        self.send_text(manner, &text, None)
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Registers the calls, then sends their message; if it is refused, they are taken back.
    fn start_request(
        self: &Arc<Self>,
        manner: Manner,
        requests: impl IntoIterator<Item = (Id, Option<Box<str>>)>,
        text: &str,
    ) -> Result<Vec<PendingCall>> {
        let outgoing = Outgoing { lane: manner.lane, ..self.outgoing(Outgoing::TEXT, text.as_bytes()) };
        let ticket = Arc::new(Ticket::default());
        let after = manner.call_timeout.unwrap_or(self.config.settings.call_timeout);
        let began = Instant::now();
        let deadline = began + after;
        let mut is_urgent = false;
        let registered = self.register(requests, began, deadline, after, &ticket, &mut is_urgent);
        let started = registered.and_then(|(started, generation)| {
            started.iter().for_each(|call| self.tell(&Signal::Track { id: &call.id, timeout: after }));
            // Dropped without having been sent, they are taken back.
            self.send(Outgoing { expected: Some(generation), ticket: Some(&ticket), ..outgoing }, Some(deadline))?;
            Ok(started)
        });
        if is_urgent {
            // Whatever became of these calls: the reactor is to look earlier for calls that have expired.
            self.post();
        }
        started
    }

    fn register(
        self: &Arc<Self>,
        requests: impl IntoIterator<Item = (Id, Option<Box<str>>)>,
        began: Instant,
        deadline: Instant,
        after: Duration,
        ticket: &Arc<Ticket>,
        is_urgent: &mut bool,
    ) -> Result<(Vec<PendingCall>, Generation)> {
        let mut started = Vec::with_capacity(1);
        let mut generation = Generation::default();
        for (id, method) in requests {
            let (sender, receiver) = crossbeam_channel::bounded(1);
            let waiter = Waiter { sender, method };
            let registered = self.session.lock().register(began, id.clone(), deadline, waiter, ticket.clone());
            let (current, Registered { token, is_urgent: earlier }) = registered?;
            *is_urgent |= earlier;
            let (shared, ticket) = (self.clone(), ticket.clone());
            let is_first = started.is_empty();
            started.push(PendingCall { shared, id, receiver, deadline, after, token, ticket });
            if mem::replace(&mut generation, current) != current && !is_first {
                // The calls before this one have ended with their wire; their message must not leave on another.
                return Err(Error::Stale { current });
            }
        }
        Ok((started, generation))
    }

    /// Waiting on the thread that turns the driver would wait for ever.
    pub(crate) fn check_thread(&self) -> Result<()> {
        if self.mailbox.is_turned_here() { Err(Error::OnReactor) } else { Ok(()) }
    }
}

/// Parameters as JSON; `None` for those that are absent, as `()` and `None` are.
pub(crate) fn to_params(params: &impl Serialize) -> Result<Option<String>> {
    Ok(Some(to_json(params)?).filter(|json| json != "null"))
}

impl Waiter {
    /// Settles the call.
    pub(crate) fn settle(self, outcome: Result<Reply>) {
        // Nobody listens any more if the caller has given up this very moment.
        let _ = self.sender.send(outcome);
    }
}

/// The call's time is over: its message does not leave any more, unless it has begun to.
fn timed_out(ticket: &Ticket, after: Duration) -> Error {
    ticket.withdraw();
    Error::Timeout { after, sent: ticket.may_arrive() }
}

/// Ends a call whose deadline has come.
pub(crate) fn expire(call: Call<Waiter>, now: Instant) {
    let outcome = timed_out(&call.ticket, now.saturating_duration_since(call.began));
    call.waiter.settle(Err(outcome));
}

/// Ends a call whose wire has ended for this cause.
pub(crate) fn lose(call: Call<Waiter>, cause: &Arc<Error>) {
    let sent = call.ticket.is_sent();
    call.waiter.settle(Err(Error::Lost { cause: cause.clone(), sent }));
}

/// Ends a call with its reply, even if the dialect panics over it; that is the error then.
pub(crate) fn answer(call: Call<Waiter>, round_trip: Duration, text: &str, dialect: &Arc<dyn Dialect>) -> Result<()> {
    let checked = guard(|| dialect.check(text));
    let outcome = match &checked {
        Ok(Ok(())) => Ok(Reply::new(text, round_trip, dialect.clone())),
        Ok(Err(error)) => Err(error.clone()),
        Err(panicked) => Err(Error::Lost { cause: Arc::new(panicked.clone()), sent: true }),
    };
    call.waiter.settle(outcome);
    checked.map(|_| ())
}
