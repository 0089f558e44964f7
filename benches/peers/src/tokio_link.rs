//! What the libraries on tokio have in common: a runtime on the thread that measures, and one `block_on` per run.

use std::any::Any;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::join_all;
use rustls::ClientConfig;
use tokio::runtime::{Builder, Runtime};

use crate::harness::contender::{Contender, Link, Next, Observer, Style, Target};
use crate::harness::tls::Settings;

/// How many connections are opened at a time: enough to keep the server busy, too few for what opening needs to be seen in the memory.
const OPENING: usize = 10;

/// A connection of one of these libraries.
pub(crate) trait Socket: Sized + Send + 'static {
    const NAME: &'static str;

    /// A received text, in the form that the library sends without a copy.
    type Text: Send;

    fn connect(target: &Target, tls: Option<Arc<ClientConfig>>) -> impl Future<Output = Self> + Send;

    /// The next text. Pings are answered on the way.
    fn receive(&mut self) -> impl Future<Output = Self::Text> + Send;

    fn payload(text: &Self::Text) -> &[u8];

    fn answer(&mut self, text: Self::Text) -> impl Future<Output = ()> + Send;

    fn send(&mut self, text: &str) -> impl Future<Output = ()> + Send;
}

pub(crate) struct Tokio<S> {
    runtime: Rc<Runtime>,
    tls: Settings,
    socket: PhantomData<S>,
}

impl<S: Socket> Tokio<S> {
    pub(crate) fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("descriptors");
        Self { runtime: Rc::new(runtime), tls: Settings::default(), socket: PhantomData }
    }
}

impl<S: Socket> Contender for Tokio<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn style(&self) -> Style {
        Style::Parked
    }

    fn connect(&mut self, target: &Target, fresh: bool) -> Box<dyn Link> {
        let tls = self.tls.config(target, fresh);
        let socket = self.runtime.block_on(S::connect(target, tls));
        Box::new(TokioLink { runtime: self.runtime.clone(), socket })
    }

    /// A task for each, on a runtime with a thread.
    fn hold(&mut self, target: &Target, count: usize) -> Option<Box<dyn Any>> {
        let tls = self.tls.config(target, false);
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("descriptors and a thread");
        runtime.block_on(async {
            let mut left = count;
            while left > 0 {
                let opening = left.min(OPENING);
                for mut socket in join_all((0..opening).map(|_| S::connect(target, tls.clone()))).await {
                    tokio::spawn(async move {
                        loop {
                            socket.receive().await;
                        }
                    });
                }
                left -= opening;
            }
        });
        Some(Box::new(runtime))
    }
}

struct TokioLink<S> {
    runtime: Rc<Runtime>,
    socket: S,
}

impl<S: Socket> Link for TokioLink<S> {
    fn run(&mut self, first: &str, mut observer: Observer) -> Observer {
        let Self { runtime, socket } = self;
        runtime.block_on(async {
            socket.send(first).await;
            loop {
                let text = socket.receive().await;
                match observer.message(S::payload(&text)) {
                    Next::Answer => socket.answer(text).await,
                    Next::Continue => {}
                    Next::Done => return observer,
                }
            }
        })
    }

    fn send(&mut self, text: &str) {
        self.runtime.block_on(self.socket.send(text));
    }
}
