//! What calls, subscriptions and rate limits cost: the routing of messages, the round trip of a call, a reservation, and tables of 10²
//! to 10⁴ entries. Figures are from interleaved rounds; the server of the round trips is a second process.
//!
//! `cargo bench --bench venue [-- routing|flood|call|governor|tables]`

#[path = "support/memory.rs"]
#[expect(dead_code, reason = "only the frames are needed here")]
mod memory;
#[path = "support/rounds.rs"]
mod rounds;
#[path = "support/server.rs"]
mod server;

use std::env;
use std::hint::black_box;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use zen_websocket::internals::{Assembler, Deed, Dialogue, Governor, Item, Rules, Session, Stamp, Ticket};
use zen_websocket::{Config, Dialect, Event, Id, Inbound, JsonRpc, RateLimit, Request, Result, connect};

use crate::rounds::{AtMost, Comparison};
use crate::server::Server;

/// Rounds of each figure that is a difference, and messages per round.
const ROUNDS: usize = 101;
const MESSAGES: usize = 2000;

/// Calls per round.
const CALLS: usize = 500;

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == server::ARGUMENT) {
        return server::run();
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("measures under `cargo bench` only");
        return;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let is_wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter.as_str()));
    pin(1);
    if is_wanted("routing") {
        println!("routing, more than decoding alone, 100 calls pending          p10      p50      p90");
        for (what, text, most) in texts() {
            let Spread([low, middle, high]) = routing(&text);
            let reached = if low <= most { "yes" } else { "NO" };
            println!("{what:<56} {low:>5.1} ns {middle:>5.1} ns {high:>5.1} ns  target ≤ {most} ns: {reached}");
        }
    }
    if is_wanted("call") {
        println!("{}", Comparison::HEADER);
        println!("{}", call(&Server::start()));
    }
    if is_wanted("governor") {
        println!("governor, reserve and commit with `now` given                 p10      p50      p90");
        let second = Duration::from_secs(1);
        for (what, limits) in [
            ("bucket", vec![RateLimit::bucket(1_000_000, 1_000_000, second)]),
            ("window", vec![RateLimit::window(1_000_000, second)]),
            ("bucket and window", vec![RateLimit::bucket(1_000_000, 1_000_000, second), RateLimit::window(1_000_000, second)]),
        ] {
            let Spread([low, middle, high]) = governor(&limits);
            let reached = if limits.len() > 1 {
                "no target"
            } else if low <= 100.0 {
                "yes"
            } else {
                "NO"
            };
            println!("{what:<56} {low:>5.1} ns {middle:>5.1} ns {high:>5.1} ns  target ≤ 100 ns: {reached}");
        }
    }
    if is_wanted("tables") {
        println!("tables, per entry                                             10²      10³      10⁴");
        table("calls: register and settle by reply, out of order", settle);
        table("calls: register and expire", expire);
        table("channels: restore and confirm, 500 a request", restore);
        table("channels: data of a watched channel", watch);
    }
}

#[expect(clippy::print_stdout, reason = "a line of the table")]
fn table(what: &str, measure: impl Fn(usize) -> f64) {
    let [hundred, thousand, ten_thousand] = [100, 1000, 10_000].map(measure);
    println!("{what:<56} {hundred:>5.0} ns {thousand:>5.0} ns {ten_thousand:>5.0} ns");
}

/// The 10th, 50th and 90th percentile of rounds.
struct Spread([f64; 3]);

impl Spread {
    fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        Self([0.1, 0.5, 0.9].map(|part| figures[((figures.len() - 1) as f64 * part) as usize]))
    }
}

fn texts() -> Vec<(&'static str, String, f64)> {
    let fill = |text: &str, length: usize| {
        let mut text = text.to_owned();
        while text.len() + 16 < length {
            text.push_str(r#"["64000.5","1"],"#);
        }
        text + r#"["64001.0","2"]]}"#
    };
    let push = r#"{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.BTC-PERPETUAL.raw","data":{"bids":["#;
    let other = r#"{"e":"depthUpdate","E":1672515782136,"s":"BTCUSDT","U":157,"u":160,"bids":["#;
    vec![
        ("200 B, the front decides", fill(push, 200) + "}}", 40.0),
        ("4 KiB, the front decides", fill(push, 4096) + "}}", 40.0),
        ("200 B, searched through", fill(other, 200), 60.0),
        ("4 KiB, searched through", fill(other, 4096), 250.0),
        ("4 KiB, searched through, words that end as keys do", look_alikes(4096), 250.0),
    ]
}

/// Text full of what a search for `"id"` and `"method"` stumbles over.
fn look_alikes(length: usize) -> String {
    let mut text = r#"{"e":"quotes","quotes":["#.to_owned();
    while text.len() + 40 < length {
        text.push_str(r#"{"bid":"64000.5","side":"sold"},"#);
    }
    text + r#"{"bid":"1"}]}"#
}

/// Decoding frames from memory with and without what a connection does with each text: the dialect under a guard against its panics, and
/// the question whether the dialogue watches data.
fn routing(text: &str) -> Spread {
    let frame = [memory::text_frame(text.len())[..].split_at(header_length(text.len())).0, text.as_bytes()].concat();
    let wire = frame.repeat(MESSAGES);
    let dialect: Arc<dyn Dialect> = Arc::new(JsonRpc::default());
    let now = Instant::now();
    let dialogue = Dialogue::new(dialect.clone(), rules(), now);
    let mut session = session(100, now);
    let mut decode = |route: &dyn Fn(&str) -> bool| {
        let mut assembler = Assembler::new(1 << 20);
        let start = Instant::now();
        // As after each receive.
        black_box(session.handle_receive(now));
        for mut chunk in wire.chunks((64 << 10) / frame.len() * frame.len()) {
            while let Some(item) = assembler.next(&mut chunk).expect("the frames are right") {
                let Item::Text(text) = item else { panic!("{item:?}") };
                assert!(route(text));
            }
        }
        start.elapsed().as_nanos() as f64 / MESSAGES as f64
    };
    let routed = |text: &str| {
        let inbound = panic::catch_unwind(AssertUnwindSafe(|| dialect.classify(text)));
        let is_data = matches!(inbound, Ok(Inbound::Data { .. } | Inbound::Message));
        is_data && !dialogue.watches_data() && !dialogue.has_deeds()
    };
    let mut differences = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let plain = decode(&|text| !black_box(text).is_empty());
        differences.push(decode(&routed) - plain);
    }
    Spread::of(differences)
}

fn header_length(payload: usize) -> usize {
    memory::text_frame(payload).len() - payload
}

/// JSON-RPC whose requests look like replies, so that an echo answers them.
struct Echoed(JsonRpc);

impl Dialect for Echoed {
    fn name(&self) -> &str {
        "echoed"
    }

    fn classify<'a>(&self, text: &'a str) -> Inbound<'a> {
        self.0.classify(text)
    }

    fn request(&self, number: u64, _: &str, params: Option<&str>) -> Result<Request> {
        // As long as the text it is compared with.
        let id = Id::Number(1_000_000 + number as i64);
        Ok(Request { text: format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{}}}"#, params.unwrap_or("null")), id })
    }

    fn check(&self, reply: &str) -> Result<()> {
        self.0.check(reply)
    }

    fn result<'a>(&self, reply: &'a str) -> Result<&'a str> {
        self.0.result(reply)
    }
}

fn call(server: &Server) -> Comparison {
    let result = "7".repeat(150);
    let (caller, _events) =
        connect(Config::new(server.url("echo")).dialect(Echoed(JsonRpc::default()))).expect("the server accepts");
    let (sender, inbox) = connect(Config::new(server.url("echo"))).expect("the server accepts");
    let text = format!(r#"{{"jsonrpc":"2.0","id":1000000,"result":["{result}"]}}"#);
    Comparison::run(
        "call, parked / bare send and inbox",
        AtMost(1.15),
        |times| {
            for _ in 0..CALLS {
                let start = Instant::now();
                let answer: [String; 1] = caller.call("echo", [&result]).expect("the server answers");
                times.add(start.elapsed().as_nanos() as f64);
                assert_eq!(answer[0].len(), result.len());
            }
        },
        |times| {
            for _ in 0..CALLS {
                let start = Instant::now();
                sender.send(&text).expect("the server reads");
                let length = loop {
                    if let Event::Message(message) = inbox.recv().expect("the server answers").event {
                        break message.bytes().len();
                    }
                };
                times.add(start.elapsed().as_nanos() as f64);
                assert_eq!(length, text.len());
            }
        },
    )
}

fn governor(limits: &[RateLimit]) -> Spread {
    let mut now = Instant::now();
    let governor = Governor::new(limits, now).expect("good limits").expect("limits");
    let costs = governor.costs(b"", || 1);
    let round = |_| {
        let start = Instant::now();
        for _ in 0..MESSAGES {
            now += Duration::from_micros(10);
            governor.reserve(now, black_box(&costs), false).expect("there is enough");
            governor.commit(now, &costs);
        }
        start.elapsed().as_nanos() as f64 / MESSAGES as f64
    };
    Spread::of((0..ROUNDS).map(round).collect())
}

fn rules() -> Rules {
    let second = Duration::from_secs(1);
    Rules { confirm_timeout: 10 * second, retry: 30 * second, restore: true, resubscribe_on_gap: false }
}

/// A session with a wire and this many calls that wait.
fn session(calls: usize, now: Instant) -> Session<usize> {
    let config = Config::new("ws://localhost").calls_max(20_000);
    let mut session = Session::new(Arc::new(config), 0, now);
    session.handle_begin(now);
    session.handle_opened(now, Default::default(), None);
    for number in 0..calls {
        let id = Id::Number(number as i64);
        // Its request has begun to leave.
        let ticket = Arc::<Ticket>::default();
        assert!(ticket.begin());
        session.register(now, id, now + Duration::from_secs(30), number, ticket).expect("there is room");
    }
    session
}

/// The least of several runs, per entry.
fn least(entries: usize, mut run: impl FnMut() -> Duration) -> f64 {
    (0..15).map(|_| run().as_nanos() as f64 / entries as f64).fold(f64::MAX, f64::min)
}

fn settle(entries: usize) -> f64 {
    let now = Instant::now();
    // A step that is prime to every size visits all.
    let ids: Vec<_> = (0..entries).map(|index| Id::Number((index * 7919 % entries) as i64)).collect();
    least(entries, || {
        let start = Instant::now();
        let mut session = session(entries, now);
        for id in &ids {
            black_box(session.handle_reply(now, id).expect("it waits"));
        }
        start.elapsed()
    })
}

fn expire(entries: usize) -> f64 {
    let now = Instant::now();
    least(entries, || {
        let start = Instant::now();
        let mut session = session(entries, now);
        let late = now + Duration::from_secs(30);
        let mut expired = 0;
        while expired < entries {
            expired += session.take_expired(late).len();
        }
        start.elapsed()
    })
}

fn names(entries: usize) -> Vec<Arc<str>> {
    (0..entries).map(|number| format!("book.INSTRUMENT-{number}.raw").into()).collect()
}

fn restore(entries: usize) -> f64 {
    let names = names(entries);
    least(entries, || restored(&names).1)
}

/// A dialogue whose channels are confirmed, and how long that took from the upgrade on.
fn restored(names: &[Arc<str>]) -> (Dialogue, Duration) {
    let now = Instant::now();
    let stamp = Stamp { unix: Duration::ZERO, nonce: 0 };
    let mut dialogue = Dialogue::new(Arc::new(JsonRpc::default()), rules(), now);
    dialogue.want(now, 1, names, Some(Duration::from_secs(5)), false);
    let mut spent = Duration::ZERO;
    let start = Instant::now();
    dialogue.handle_upgraded(now, stamp);
    let mut deeds = dialogue.take_deeds();
    spent += start.elapsed();
    while !dialogue.is_live() {
        let requests = deeds.iter().filter_map(|deed| match deed {
            Deed::Say { text, .. } => serde_json::from_str::<serde_json::Value>(text).ok(),
            _ => None,
        });
        let replies: Vec<_> = requests
            .map(|request| {
                let reply = serde_json::json!({ "jsonrpc": "2.0", "id": request["id"], "result": request["params"]["channels"] });
                (Id::Number(request["id"].as_i64().expect("a number")), reply.to_string())
            })
            .collect();
        let start = Instant::now();
        for (id, reply) in &replies {
            dialogue.handle_reply(now, stamp, id, reply);
        }
        deeds = dialogue.take_deeds();
        spent += start.elapsed();
    }
    (dialogue, spent)
}

fn watch(entries: usize) -> f64 {
    let names = names(entries);
    let (mut dialogue, _) = restored(&names);
    let now = Instant::now();
    least(entries, || {
        let start = Instant::now();
        names.iter().for_each(|name| assert!(dialogue.handle_data(now, name, "{}").is_none()));
        start.elapsed()
    })
}

/// Keeps the calling thread, and those it starts, on a core, if there are several.
pub(crate) fn pin(core: usize) {
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    let cores = CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default());
    if let Some(core) = cores.get(core) {
        core_affinity::set_for_current(*core);
    }
}
