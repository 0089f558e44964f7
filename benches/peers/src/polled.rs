//! Connections of a library that never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// A thread that asks its connections for news, one after the other, until this is dropped.
pub(crate) struct Polled {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Polled {
    /// Returns when all are open.
    pub(crate) fn start<S>(
        count: usize,
        mut open: impl FnMut() -> S + Send + 'static,
        mut poll: impl FnMut(&mut S) + Send + 'static,
    ) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (tell, opened) = mpsc::channel();
        let is_over_seen = is_over.clone();
        let thread = thread::spawn(move || {
            let mut sockets: Vec<S> = (0..count).map(|_| open()).collect();
            tell.send(()).expect("somebody waits");
            while !is_over_seen.load(Ordering::Relaxed) {
                sockets.iter_mut().for_each(&mut poll);
            }
        });
        opened.recv().expect("the server accepts");
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
