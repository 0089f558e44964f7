//! This crate, in the ways that it offers.

mod driver;
mod handler;
mod inbox;

use std::rc::{Rc, Weak};
use std::time::Duration;

use zen_websocket::{Client, Config, Handler, Reactor, Wait};

use self::driver::Driven;
use self::handler::Handled;
use self::inbox::{Batched, Boxed};
use crate::harness::contender::{Contender, Style, Target};
use crate::harness::machine;

/// Longer than a message is on its way.
const SPIN_FOR: Duration = Duration::from_millis(1);

pub(crate) fn all() -> Vec<Box<dyn Contender>> {
    let parked = || Reactors::new(Wait::Park);
    let mut all: Vec<Box<dyn Contender>> = vec![
        Box::new(Handled::new("zen, handler", parked())),
        Box::new(Handled::new("zen, adaptive handler", Reactors::new(Wait::Adaptive { spin_for: SPIN_FOR }))),
        Box::new(Boxed::new("zen, inbox", parked(), Duration::ZERO)),
        Box::new(Boxed::new("zen, inbox 20 µs spin", parked(), Duration::from_micros(20))),
        Box::new(Batched::new("zen, batched inbox", parked())),
        Box::new(Driven::default()),
    ];
    // The server, the thread that measures and a reactor that spins want a core each.
    if let Some(core) = machine::cores().get(2) {
        let spinning = || Reactors::new(Wait::Spin { core: Some(core.id) });
        all.push(Box::new(Handled::new("zen, handler spinning", spinning())));
        all.push(Box::new(Boxed::new("zen, inbox spinning", spinning(), Duration::MAX)));
    }
    all
}

/// TLS sessions are resumed among connections with the same trust, as long as one of them lives.
#[derive(Default)]
struct Trust {
    /// Keeps the sessions between two connections that resume.
    keeper: Option<Client>,
    fresh: usize,
}

impl Trust {
    fn config(&mut self, target: &Target, fresh: bool) -> Config {
        let config = Config::new(target.url());
        let Some(root) = &target.root else { return config };
        let trusting =
            |copies| (0..copies).fold(config.clone().without_system_roots(), |config, _| config.root_certificate(&**root));
        if fresh {
            // Trust that no living connection has.
            self.fresh += 1;
            return trusting(2 + self.fresh % 8);
        }
        let config = trusting(1);
        self.keeper
            .get_or_insert_with(|| zen_websocket::connect_with(config.clone(), Handler::new()).expect("the server accepts"));
        config
    }
}

/// A reactor for the connections of a contender. One that spins takes a core, so it runs only while there are any.
struct Reactors {
    wait: Wait,
    running: Weak<Running>,
    /// Keeps one that parks.
    keeper: Option<Rc<Running>>,
}

/// Ends its thread when it is dropped.
struct Running(Reactor);

impl Reactors {
    fn new(wait: Wait) -> Self {
        Self { wait, running: Weak::new(), keeper: None }
    }

    fn reactor(&mut self) -> Rc<Running> {
        self.running.upgrade().unwrap_or_else(|| {
            let running = Rc::new(Running(Reactor::builder().wait(self.wait).start().expect("a thread")));
            self.running = Rc::downgrade(&running);
            self.keeper = (self.wait == Wait::Park).then(|| running.clone());
            running
        })
    }

    fn style(&self) -> Style {
        if matches!(self.wait, Wait::Spin { .. }) { Style::Spinning } else { Style::Parked }
    }
}

/// A connection on such a reactor.
struct Line {
    client: Client,
    _reactor: Rc<Running>,
}

impl Line {
    fn send(&self, text: &str) {
        self.client.send(text).expect("the server reads");
    }
}

/// Takes leave of the server.
impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.client.close();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
    }
}
