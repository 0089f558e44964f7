//! Messages on a thread with a loop of its own.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use zen_websocket::{Client, Driver, EventRef, State};

use crate::contenders::zen::Trust;
use crate::harness::contender::{Contender, Link, Next, Observer, Style, Target};

/// A driver turned by the thread that measures, which never sleeps.
#[derive(Default)]
pub(super) struct Driven {
    driver: Option<Rc<RefCell<Driver>>>,
    trust: Trust,
}

impl Contender for Driven {
    fn name(&self) -> &'static str {
        "zen, own driver"
    }

    fn style(&self) -> Style {
        Style::Spinning
    }

    fn is_ours(&self) -> bool {
        true
    }

    fn connect(&mut self, target: &Target, fresh: bool) -> Box<dyn Link> {
        let driver = self.driver.get_or_insert_with(|| Rc::new(RefCell::new(Driver::new().expect("descriptors")))).clone();
        let client = driver.borrow().open(self.trust.config(target, fresh)).expect("a good config");
        while !client.state().is_open() {
            driver.borrow_mut().turn(Duration::ZERO).expect("a poller");
        }
        Box::new(DrivenLink { client, driver })
    }
}

struct DrivenLink {
    client: Client,
    driver: Rc<RefCell<Driver>>,
}

impl Link for DrivenLink {
    fn run(&mut self, first: &str, mut observer: Observer) -> Observer {
        self.send(first);
        let mut driver = self.driver.borrow_mut();
        let mut is_done = false;
        while !is_done {
            let turned = driver.turn_with(Duration::ZERO, |context, event| {
                let EventRef::Text(text) = event else { return };
                match observer.message(text.as_bytes()) {
                    Next::Answer => _ = context.send(text).expect("the server reads"),
                    Next::Continue => {}
                    Next::Done => is_done = true,
                }
            });
            turned.expect("a poller");
        }
        observer
    }

    fn send(&mut self, text: &str) {
        self.client.send(text).expect("the server reads");
    }
}

impl Drop for DrivenLink {
    fn drop(&mut self) {
        let _ = self.client.start_close(1000, "");
        while self.client.state() != State::Closed {
            let _ = self.driver.borrow_mut().turn(Duration::ZERO);
        }
    }
}
