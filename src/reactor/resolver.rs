//! Work of a dial that may block: the user's dial hook and the look-up of a name.
//!
//! Each of the two runs on up to four threads of the process, made when needed and gone when idle; hooks that block do not keep names
//! from being looked up. A connection has one hook running at a time. Nobody ever joins these threads: `getaddrinfo` cannot be interrupted. A name is looked up once at a time, whoever
//! asks; answers are kept, and the last good one serves when a look-up fails.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustls::ClientConfig;

use crate::config::{self, Config, DialPlan, Redacted};
use crate::error::{Error, Result};
use crate::event::ConnectionId;
use crate::reactor::mailbox::Mailbox;
use crate::reactor::{panic_text, shield};
use crate::target::Target;
use crate::wire::dial::Plan;
use crate::wire::tls;

const THREADS_MAX: usize = 4;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

/// How long an answer is used without asking again. `getaddrinfo` tells no lifetime; venues move hosts within minutes.
const FRESH: Duration = Duration::from_secs(30);

/// How many names are remembered; the one asked for longest ago makes room.
const NAMES_MAX: usize = 1024;

/// Has threads started for jobs that wait though none could be started for them before.
pub(crate) fn staff() {
    HOOKS.staff();
    LOOK_UPS.staff();
}

/// What became of the blocking part of a dial.
pub(crate) struct Resolved {
    pub(crate) connection: ConnectionId,
    /// Which dial of the connection asked.
    pub(crate) dial: u64,
    pub(crate) plan: Result<Plan>,
}

/// The blocking part of a dial.
pub(crate) struct Query {
    pub(crate) connection: ConnectionId,
    pub(crate) dial: u64,
    pub(crate) attempt: u32,
    pub(crate) deadline: Instant,
    pub(crate) config: Arc<Config>,
    /// Set unless the config's own URL is plain.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Query {
    /// Runs the dial hook and looks the host up; the answer goes to the mailbox, from whatever thread has it.
    pub(crate) fn start(self) {
        if self.config.settings.on_dial.is_some() {
            HOOKS.run(Box::new(move || self.look_up()));
        } else {
            self.look_up();
        }
    }

    fn look_up(self) {
        match self.plan() {
            Err(error) => self.answer(Err(error)),
            Ok(plan) if !plan.addresses.is_empty() => self.answer(Ok(plan)),
            Ok(mut plan) => {
                let host = plan.target.host.clone();
                look_up(
                    host.clone(),
                    self.connection,
                    Box::new(move |found| {
                        let port = plan.target.port;
                        self.answer(match found {
                            Ok(addresses) => {
                                plan.addresses = addresses.iter().map(|address| (*address, port).into()).collect();
                                Ok(plan)
                            }
                            Err(source) => Err(Error::Resolve { host, source }),
                        });
                    }),
                );
            }
        }
    }

    /// What to dial, as config and hook say; without addresses if the host must be looked up.
    fn plan(&self) -> Result<Plan> {
        let config = &self.config;
        let mut wanted = DialPlan {
            url: Redacted(config.url.clone()),
            headers: Redacted(config.settings.headers.clone()),
            addresses: Vec::new(),
            attempt: self.attempt,
            deadline: self.deadline,
        };
        if let Some(hook) = &config.settings.on_dial {
            match panic::catch_unwind(AssertUnwindSafe(|| hook(&mut wanted))) {
                Ok(done) => done.map_err(|error| Error::DialHook(error.into()))?,
                Err(payload) => return Err(Error::DialHook(Arc::new(Error::Panicked(panic_text(payload))))),
            }
            config::check_headers(&wanted.headers.0)?;
        }
        let target = Target::parse(&wanted.url.0)?;
        if let (Some(literal), true) = (target.literal, wanted.addresses.is_empty()) {
            wanted.addresses.push((literal, target.port).into());
        }
        let tls = match &self.tls {
            _ if !target.tls => None,
            Some(tls) => Some(tls.clone()),
            // The hook turned ws into wss.
            None => Some(tls::client_config(&config.settings.trust)?),
        };
        Ok(Plan {
            target,
            headers: wanted.headers.0,
            subprotocols: config.settings.subprotocols.clone(),
            addresses: wanted.addresses,
            tls,
        })
    }

    fn answer(self, plan: Result<Plan>) {
        self.mailbox.resolved(Resolved { connection: self.connection, dial: self.dial, plan });
    }
}

type Job = Box<dyn FnOnce() + Send>;
type Found = Result<Arc<[IpAddr]>, Arc<io::Error>>;
type Waiter = Box<dyn FnOnce(Found) + Send>;

static HOOKS: Pool = Pool::new();
static LOOK_UPS: Pool = Pool::new();

/// Threads for jobs that may block.
struct Pool {
    state: Mutex<PoolState>,
    ready: Condvar,
}

/// A connection has one job at a time, which bounds the queue.
struct PoolState {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

impl Pool {
    const fn new() -> Self {
        Self { state: Mutex::new(PoolState { jobs: VecDeque::new(), idle: 0, threads: 0 }), ready: Condvar::new() }
    }

    fn run(&'static self, job: Job) {
        self.state.lock().jobs.push_back(job);
        self.staff();
    }

    /// Sees to it that a thread works off the jobs. Called again whenever somebody waits for one, in case none could be started.
    fn staff(&'static self) {
        let mut state = self.state.lock();
        if state.idle >= state.jobs.len() || state.threads == THREADS_MAX {
            self.ready.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        if let Err(error) = thread::Builder::new().name("zen-websocket resolver".to_owned()).spawn(|| self.work()) {
            log::error!("a resolver thread could not be started: {error}");
            self.state.lock().threads -= 1;
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // What it drops may be the last of a user's hook.
                shield("a dial", job);
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let timed_out = self.ready.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// What is known of a name.
#[derive(Default)]
struct Name {
    /// The last good answer, and when it was last asked for.
    known: Option<(Arc<[IpAddr]>, Instant)>,
    /// Who waits for the look-up under way, with the latest dial of each; `None` if there is none.
    waiters: Option<HashMap<ConnectionId, Waiter>>,
}

static NAMES: LazyLock<Mutex<HashMap<Arc<str>, Name>>> = LazyLock::new(Mutex::default);

fn look_up(host: Arc<str>, connection: ConnectionId, waiter: Waiter) {
    let mut names = NAMES.lock();
    if names.len() >= NAMES_MAX && !names.contains_key(&host) {
        let idle = names.iter().filter(|(_, name)| name.waiters.is_none());
        let oldest = idle.min_by_key(|(_, name)| name.known.as_ref().map(|(_, asked)| *asked));
        if let Some(oldest) = oldest.map(|(host, _)| host.clone()) {
            names.remove(&oldest);
        }
    }
    let name = names.entry(host.clone()).or_default();
    match (&name.known, &mut name.waiters) {
        // While a look-up takes its time, what is known serves.
        (Some((addresses, asked)), waiters) if waiters.is_some() || asked.elapsed() < FRESH => {
            let found = addresses.clone();
            drop(names);
            waiter(Ok(found));
        }
        (_, Some(waiters)) => {
            let earlier = waiters.insert(connection, waiter);
            drop(names);
            // It may hold the last of a user's hook.
            shield("dropping a dial", || drop(earlier));
            LOOK_UPS.staff();
        }
        (_, None) => {
            name.waiters = Some(HashMap::from([(connection, waiter)]));
            drop(names);
            LOOK_UPS.run(Box::new(move || ask(&host)));
        }
    }
}

/// Asks the system, keeps the answer and tells everyone who waits.
fn ask(host: &Arc<str>) {
    let answer = (&**host, 0).to_socket_addrs().map(|addresses| {
        let mut found: Vec<IpAddr> = Vec::new();
        for address in addresses {
            if !found.contains(&address.ip()) {
                found.push(address.ip());
            }
        }
        found
    });
    let mut names = NAMES.lock();
    let name = names.entry(host.clone()).or_default();
    let waiters = name.waiters.take().unwrap_or_default();
    let (found, is_old): (Found, bool) = match (answer, &name.known) {
        (Ok(found), _) if !found.is_empty() => (Ok(found.into()), false),
        (_, Some((last, _))) => (Ok(last.clone()), true),
        (failed, None) => (Err(Arc::new(failed.err().unwrap_or_else(|| io::Error::other("no addresses")))), false),
    };
    if let Ok(addresses) = &found {
        name.known = Some((addresses.clone(), Instant::now()));
    }
    drop(names);
    if is_old {
        log::warn!("{host} could not be resolved; its last addresses are used");
    }
    for waiter in waiters.into_values() {
        let found = found.clone();
        shield("a dial", || waiter(found));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const WAIT: Duration = Duration::from_secs(30);

    #[test]
    fn askers_of_the_same_name_share_one_look_up_and_a_later_one_its_answer() {
        let (send, found) = mpsc::channel();
        for _ in 0..100 {
            let send = send.clone();
            look_up("localhost".into(), ConnectionId::next(), Box::new(move |answer| send.send(answer).unwrap()));
        }
        let first = found.recv_timeout(WAIT).unwrap().unwrap();
        for _ in 1..100 {
            assert!(Arc::ptr_eq(&first, &found.recv_timeout(WAIT).unwrap().unwrap()));
        }
        assert!(first.iter().all(|address| address.is_loopback()));
    }

    #[test]
    fn what_is_known_serves_while_a_look_up_hangs() {
        let known: Arc<[IpAddr]> = [[127, 0, 0, 9].into()].into();
        let hanging = Name { known: Some((known.clone(), Instant::now() - 2 * FRESH)), waiters: Some(HashMap::new()) };
        NAMES.lock().insert("hangs.invalid".into(), hanging);
        let (send, found) = mpsc::channel();
        look_up("hangs.invalid".into(), ConnectionId::next(), Box::new(move |answer| send.send(answer).unwrap()));
        assert_eq!(found.recv_timeout(WAIT).unwrap().unwrap(), known);
    }

    #[test]
    fn a_name_that_does_not_exist_is_an_error() {
        let (send, found) = mpsc::channel();
        look_up("no-such-host.invalid".into(), ConnectionId::next(), Box::new(move |answer| send.send(answer).unwrap()));
        assert!(found.recv_timeout(WAIT).unwrap().is_err());
    }
}
