//! The floor: a loop over a bare socket that does the frames by hand.

use crate::harness::contender::{Contender, Link, Next, Observer, Style, Target};
use crate::harness::raw::Raw;
use crate::harness::tls::Settings;

pub(crate) fn all() -> Vec<Box<dyn Contender>> {
    let floor = |name, style| Box::new(Floor { name, style, tls: Settings::default() });
    vec![floor("bare loop, blocking", Style::Parked), floor("bare loop, spinning", Style::Spinning)]
}

struct Floor {
    name: &'static str,
    style: Style,
    tls: Settings,
}

impl Contender for Floor {
    fn name(&self) -> &'static str {
        self.name
    }

    fn style(&self) -> Style {
        self.style
    }

    fn is_floor(&self) -> bool {
        true
    }

    fn connect(&mut self, target: &Target, fresh: bool) -> Box<dyn Link> {
        let raw = Raw::connect(target, self.tls.config(target, fresh));
        if self.style == Style::Spinning {
            raw.stay_awake();
        }
        Box::new(raw)
    }
}

impl Link for Raw {
    fn run(&mut self, first: &str, mut observer: Observer) -> Observer {
        Link::send(self, first);
        loop {
            let payload = self.receive();
            match observer.message(self.payload(payload.clone())) {
                Next::Answer => self.answer(payload),
                Next::Continue => {}
                Next::Done => return observer,
            }
        }
    }

    fn send(&mut self, text: &str) {
        Raw::send(self, text.as_bytes());
    }
}
