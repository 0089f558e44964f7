//! Measures contenders beside each other: what they are is in [`contender`], what is measured in the modules of [`MEASUREMENTS`].

pub(crate) mod blocking;
mod connect;
pub(crate) mod contender;
mod crowd;
mod echo;
pub(crate) mod exchange;
mod flood;
pub(crate) mod frame;
mod goal;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod peer;
mod plot;
pub(crate) mod raw;
mod report;
mod rounds;
mod send;
mod storm;
mod ticks;
pub(crate) mod tls;

use std::env;
use std::time::Instant;

use crate::harness::contender::{Contender, Style};
use crate::harness::exchange::Server;
use crate::harness::report::Report;

/// In the order in which they run; the arguments choose from them by name.
const MEASUREMENTS: [Measurement; 7] = [
    Measurement { name: "echo", run: echo::run },
    Measurement { name: "ticks", run: ticks::run },
    Measurement { name: "flood", run: flood::run },
    Measurement { name: "send", run: send::run },
    Measurement { name: "memory", run: memory::run },
    Measurement { name: "connect", run: connect::run },
    Measurement { name: "storm", run: storm::run },
];

struct Measurement {
    name: &'static str,
    run: fn(&mut Bench),
}

/// What a measurement works with.
pub(crate) struct Bench {
    pub(crate) contenders: Vec<Box<dyn Contender>>,
    pub(crate) server: Server,
    pub(crate) report: Report,
    is_quick: bool,
}

impl Bench {
    /// Those that wait in this way.
    pub(crate) fn contenders_of(&mut self, style: Style) -> Vec<&mut dyn Contender> {
        self.contenders.iter_mut().filter(|contender| contender.style() == style).map(|contender| &mut **contender as _).collect()
    }

    /// How many rounds to make of so many: few if it is to be quick.
    pub(crate) fn rounds(&self, rounds: usize) -> usize {
        if self.is_quick { rounds.min(3) } else { rounds }
    }
}

/// What the program does: measures what the arguments ask for, or does the part of a process that measures.
#[expect(clippy::print_stdout, reason = "the tables are what this program is for")]
pub(crate) fn run(contenders: Vec<Box<dyn Contender>>) {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    if has(exchange::ARGUMENT) {
        return exchange::run();
    }
    if has(memory::ARGUMENT) {
        return memory::hold(contenders, &arguments);
    }
    let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with('-')).collect();
    let known = MEASUREMENTS.map(|measurement| measurement.name);
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        println!("there is no measurement {unknown}, but there are {}", known.join(", "));
        return;
    }
    let start = Instant::now();
    println!("{}", machine::describe());
    let server = Server::start();
    machine::pin(1);
    let mut bench = Bench { contenders, server, report: Report::default(), is_quick: has("--quick") };
    for Measurement { name, run } in MEASUREMENTS {
        if names.is_empty() || names.contains(&name) {
            let begin = Instant::now();
            run(&mut bench);
            println!("\n{name} took {:.0} s", begin.elapsed().as_secs_f64());
        }
    }
    bench.report.finish(has("--write-guide"));
    println!("all took {:.0} s", start.elapsed().as_secs_f64());
}
