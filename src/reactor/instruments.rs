//! What a connection measures. Nothing of it takes memory before there is something to measure.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::latency::{Histogram, Latency};

/// How many methods are measured by themselves: more than a program calls on one connection, unless it makes names up.
const METHODS_MAX: usize = 64;

/// The measurements of a connection. Each is written by the thread that turns its reactor, and read by any.
#[derive(Default)]
pub(crate) struct Instruments(OnceLock<Box<Measured>>);

#[derive(Default)]
struct Measured {
    calls: Histogram,
    methods: Mutex<Vec<Arc<Method>>>,
    kernel: Histogram,
    /// The host the connection is for, as observers are told.
    host: OnceLock<String>,
}

/// A method that is called, and how long its replies take.
struct Method {
    name: Arc<str>,
    calls: Histogram,
}

impl Instruments {
    /// A call was answered, of this method if it has a name.
    pub(crate) fn note_call(&self, now: Instant, method: Option<&str>, round_trip: Duration) {
        let measured = self.measured();
        measured.calls.record(now, round_trip);
        if let Some(method) = method.and_then(|name| measured.method(name)) {
            method.calls.record(now, round_trip);
        }
    }

    /// The first message of a read, which the kernel stamped, is delivered.
    pub(crate) fn note_kernel(&self, now: Instant, stamp: SystemTime) {
        // The system's clock may have been set back meanwhile.
        self.measured().kernel.record(now, SystemTime::now().duration_since(stamp).unwrap_or_default());
    }

    /// The host the connection is for; asked for once.
    pub(crate) fn host(&self, host: impl FnOnce() -> String) -> &str {
        self.measured().host.get_or_init(host)
    }

    pub(crate) fn calls(&self, now: Instant) -> Option<Latency> {
        self.0.get()?.calls.summary(now)
    }

    pub(crate) fn kernel(&self, now: Instant) -> Option<Latency> {
        self.0.get()?.kernel.summary(now)
    }

    /// The methods that had replies.
    pub(crate) fn methods(&self, now: Instant) -> Vec<(Arc<str>, Latency)> {
        let methods = self.0.get().map(|measured| measured.methods.lock().clone()).unwrap_or_default();
        methods.into_iter().filter_map(|method| Some((method.name.clone(), method.calls.summary(now)?))).collect()
    }

    fn measured(&self) -> &Measured {
        self.0.get_or_init(Box::default)
    }
}

impl Measured {
    /// The method of this name, if there is room for it.
    fn method(&self, name: &str) -> Option<Arc<Method>> {
        let mut methods = self.methods.lock();
        if let Some(known) = methods.iter().find(|method| &*method.name == name) {
            return Some(known.clone());
        }
        if methods.len() == METHODS_MAX {
            return None;
        }
        let method = Arc::new(Method { name: name.into(), calls: Histogram::default() });
        methods.push(method.clone());
        Some(method)
    }
}
