//! Messages handed over to the thread that measures.

use std::time::Duration;

use zen_websocket::{BatchInbox, Event, EventRef, Inbox};

use crate::contenders::zen::{Line, Reactors, Trust};
use crate::harness::contender::{Contender, Link, Next, Observer, Style, Target};

/// How many events a batched inbox holds: as many as others do by default.
const CAPACITY: usize = 8192;

/// An inbox.
pub(super) struct Boxed {
    name: &'static str,
    reactors: Reactors,
    trust: Trust,
    patience: Duration,
}

/// An inbox that gets all that one receive brings at once.
pub(super) struct Batched {
    name: &'static str,
    reactors: Reactors,
    trust: Trust,
}

impl Boxed {
    /// Its consumer spins for so long before it sleeps.
    pub(super) fn new(name: &'static str, reactors: Reactors, patience: Duration) -> Self {
        Self { name, reactors, trust: Trust::default(), patience }
    }
}

impl Contender for Boxed {
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
        let reactor = self.reactors.reactor();
        let (client, inbox) = reactor.0.connect(self.trust.config(target, fresh)).expect("the server accepts");
        Box::new(BoxedLink { line: Line { client, _reactor: reactor }, inbox: inbox.spin_for(self.patience) })
    }
}

struct BoxedLink {
    line: Line,
    inbox: Inbox,
}

impl Link for BoxedLink {
    fn run(&mut self, first: &str, mut observer: Observer) -> Observer {
        self.send(first);
        loop {
            let received = self.inbox.recv().expect("the connection lives");
            let Event::Message(message) = received.event else { continue };
            let text = message.text().expect("the server sends texts");
            match observer.message(text.as_bytes()) {
                Next::Answer => self.send(text),
                Next::Continue => {}
                Next::Done => return observer,
            }
        }
    }

    fn send(&mut self, text: &str) {
        self.line.send(text);
    }
}

impl Batched {
    pub(super) fn new(name: &'static str, reactors: Reactors) -> Self {
        Self { name, reactors, trust: Trust::default() }
    }
}

impl Contender for Batched {
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
        let reactor = self.reactors.reactor();
        let batches = BatchInbox::new(CAPACITY);
        let client = reactor.0.connect_with(self.trust.config(target, fresh), &batches).expect("the server accepts");
        Box::new(BatchedLink { line: Line { client, _reactor: reactor }, batches })
    }
}

struct BatchedLink {
    line: Line,
    batches: BatchInbox,
}

impl Link for BatchedLink {
    fn run(&mut self, first: &str, mut observer: Observer) -> Observer {
        self.send(first);
        loop {
            let batch = self.batches.recv().expect("this is not the reactor's thread");
            for event in &batch {
                let EventRef::Text(text) = event else { continue };
                match observer.message(text.as_bytes()) {
                    Next::Answer => self.line.send(text),
                    Next::Continue => {}
                    Next::Done => return observer,
                }
            }
        }
    }

    fn send(&mut self, text: &str) {
        self.line.send(text);
    }
}
