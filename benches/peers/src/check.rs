//! Whether what is measured works: every contender echoes what it got, and sees as many messages as were sent.

use crate::harness::contender::{Contender, Link, Next, Observe, Observer};
use crate::harness::exchange::Server;

pub(crate) const ARGUMENT: &str = "--check";

const SIZES: [usize; 4] = [64, 200, 1 << 10, 16 << 10];
const ECHOES: usize = 100;

#[expect(clippy::print_stdout, reason = "says what was checked")]
pub(crate) fn run(mut contenders: Vec<Box<dyn Contender>>) {
    let server = Server::start();
    for contender in &mut contenders {
        for tls in [false, true] {
            for fresh in [true, false, false] {
                for path in ["/echo", "/echo-awake"] {
                    echo(&mut *contender.connect(&server.target(path, tls), fresh));
                }
                flood(&mut *contender.connect(&server.target("/flood", tls), fresh));
            }
        }
        println!("{}: as sent, plain and TLS", contender.name());
    }
}

/// A text that differs everywhere from what is shifted or of another size.
fn text(size: usize) -> String {
    (0..).map(|index: usize| char::from(b'a' + ((index * index / 7 + size) % 26) as u8)).take(size).collect()
}

struct Echoes {
    expected: String,
    left: usize,
}

impl Observe for Echoes {
    fn message(&mut self, payload: &[u8]) -> Next {
        assert!(payload == self.expected.as_bytes(), "{} B, {} left", payload.len(), self.left);
        self.left -= 1;
        if self.left > 0 { Next::Answer } else { Next::Done }
    }
}

fn echo(link: &mut dyn Link) {
    for size in SIZES {
        let expected = text(size);
        let echoes: Echoes = link.run(&expected.clone(), Observer::new(Echoes { expected, left: ECHOES })).into_inner();
        assert_eq!(echoes.left, 0);
    }
}

/// Messages of a size that only one run has.
struct Count {
    size: usize,
    left: usize,
}

impl Observe for Count {
    fn message(&mut self, payload: &[u8]) -> Next {
        assert_eq!(payload.len(), self.size);
        self.left -= 1;
        if self.left > 0 { Next::Continue } else { Next::Done }
    }
}

/// One message too many would be of the wrong size in the next run.
fn flood(link: &mut dyn Link) {
    for (round, size) in SIZES.into_iter().cycle().take(2 * SIZES.len()).enumerate() {
        let count = 1000 + round;
        let seen: Count = link.run(&format!("{count} {size}"), Observer::new(Count { size, left: count })).into_inner();
        assert_eq!(seen.left, 0);
    }
}
