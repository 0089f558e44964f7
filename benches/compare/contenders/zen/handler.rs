//! Messages where they are read.

use std::any::Any;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use zen_websocket::{Client, Handler, State};

use crate::contenders::zen::{Line, Reactors, Trust};
use crate::harness::contender::{Contender, Link, Next, Observer, Style, Target};

/// How many dials a listener's backlog holds.
const BACKLOG: usize = 100;

const PATIENCE: Duration = Duration::from_secs(10);

/// A handler: everything between two messages happens on the reactor's thread.
pub(super) struct Handled {
    name: &'static str,
    reactors: Reactors,
    trust: Trust,
}

impl Handled {
    pub(super) fn new(name: &'static str, reactors: Reactors) -> Self {
        Self { name, reactors, trust: Trust::default() }
    }
}

impl Contender for Handled {
    fn name(&self) -> &'static str {
        self.name
    }

    fn style(&self) -> Style {
        self.reactors.style()
    }

    fn is_ours(&self) -> bool {
        true
    }

    fn connect(&mut self, target: &Target, fresh: bool) -> Box<dyn Link> {
        let (begin, begun) = mpsc::channel::<Observer>();
        let (finish, finished) = mpsc::channel();
        let mut observer = None;
        let handler = Handler::new().text(move |context, text| {
            let observing = observer.get_or_insert_with(|| begun.recv().expect("somebody observes"));
            match observing.message(text.as_bytes()) {
                Next::Answer => _ = context.send(text).expect("the server reads"),
                Next::Continue => {}
                Next::Done => _ = finish.send(observer.take().expect("it observes")),
            }
        });
        let reactor = self.reactors.reactor();
        let client = reactor.0.connect_with(self.trust.config(target, fresh), handler).expect("the server accepts");
        Box::new(HandledLink { line: Line { client, _reactor: reactor }, begin, finished })
    }

    fn hold(&mut self, target: &Target, count: usize) -> Option<Box<dyn Any>> {
        if self.style() == Style::Spinning {
            return None;
        }
        let reactor = self.reactors.reactor();
        let config = self.trust.config(target, false);
        let mut clients: Vec<Client> = Vec::with_capacity(count);
        while clients.len() < count {
            let opening = BACKLOG.min(count - clients.len());
            let opened = || reactor.0.open_with(config.clone(), Handler::new()).expect("a good config");
            clients.extend((0..opening).map(|_| opened()));
            for client in &clients[clients.len() - opening..] {
                client.wait(State::Open, PATIENCE).expect("the server accepts");
            }
        }
        Some(Box::new(clients))
    }
}

struct HandledLink {
    line: Line,
    begin: Sender<Observer>,
    finished: Receiver<Observer>,
}

impl Link for HandledLink {
    fn run(&mut self, first: &str, observer: Observer) -> Observer {
        self.begin.send(observer).expect("the handler lives");
        self.send(first);
        self.finished.recv().expect("the handler lives")
    }

    fn send(&mut self, text: &str) {
        self.line.send(text);
    }
}
