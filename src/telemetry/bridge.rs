//! From the telemetry to the `metrics` facade.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Gauge, KeyName, Label, SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use parking_lot::Mutex;

use crate::error::{Error, Phase};
use crate::event::ConnectionId;
use crate::governor::Pressure;
use crate::telemetry::{Closer, Filter, Guard, Observed, Signal, attach};

/// Counts what connections do in the recorder of the `metrics` facade, until the guard is dropped.
///
/// Install the recorder first: it is told once, here, what the metrics mean. One bridge is enough; two count everything twice.
///
/// Nothing is done per message that passes freely: `rate_limiter.consume` is left out ([`Client::rate_status`](crate::Client::rate_status)
/// tells what is left), and what was received and sent comes about once a second.
///
/// ```
/// use metrics_exporter_prometheus::PrometheusBuilder;
/// use zen_websocket::telemetry;
/// # use zen_websocket::{Config, connect, testkit::MockServer};
/// # let server = MockServer::start()?;
///
/// let prometheus = PrometheusBuilder::new().install_recorder()?;
/// let _bridge = telemetry::bridge();
/// let (client, _inbox) = connect(Config::new(server.url()))?;
/// println!("{}", prometheus.render());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Metrics
///
/// | name | kind | what it says |
/// | --- | --- | --- |
/// | `zen_websocket_<signal>_total` | counter | How often it happened, for each of [`Signal::NAMES`] but `rate_limiter.consume` and `traffic.count`, with `_` for its dot: `zen_websocket_connection_lost_total`. `traffic.dropped` and `traffic.unsent` count messages, `recorder.dropped` counts entries. |
/// | `zen_websocket_messages_in_total`, `…_messages_out_total` | counter | Messages received and sent, from the first read on. |
/// | `zen_websocket_bytes_in_total`, `…_bytes_out_total` | counter | Their bytes, as [`Metrics::bytes_in`](crate::Metrics::bytes_in) and [`bytes_out`](crate::Metrics::bytes_out). |
/// | `zen_websocket_unsent_bytes_total` | counter | Bytes that did not leave before their wire ended. |
/// | `zen_websocket_dial_phase_seconds` | histogram | How long a phase of a dial took. |
/// | `zen_websocket_connect_seconds` | histogram | From the start of a dial to the upgrade. |
/// | `zen_websocket_login_seconds` | histogram | From the upgrade to the end of the login. |
/// | `zen_websocket_restore_seconds` | histogram | How long it took to restore all channels on a new wire. |
/// | `zen_websocket_uptime_seconds` | histogram | How long a wire that was lost had been open. |
/// | `zen_websocket_redial_delay_seconds` | histogram | Pauses before further dials. |
/// | `zen_websocket_ping_rtt_seconds` | histogram | Round trips of the heartbeat. |
/// | `zen_websocket_call_seconds` | histogram | From the start of a call to its reply. |
/// | `zen_websocket_throttle_seconds` | histogram | How much later the rate limit would allow a message that it held back. |
/// | `zen_websocket_stall_seconds` | histogram | How long one connection kept a reactor from the others. |
/// | `zen_websocket_connections_open` | gauge | Connections with an open wire, of those that opened it since the bridge began. |
/// | `zen_websocket_pressure` | gauge | Connections whose queue for the rate limit is at this `level`. |
///
/// # Labels
///
/// None depends on what callers send, and none on how many connections there are. A histogram has those of the counter of its signal.
///
/// | label | on | values |
/// | --- | --- | --- |
/// | `host` | all | Host and port; empty for what concerns a reactor. |
/// | `cause` | `connection.dial_failed`, `.lost` and `.closed`, `request_correlator.fail_all` | The variant of [`Error`] in snake case. |
/// | `closer` | `connection.lost` | `peer`, `own`, `network`. |
/// | `code` | `connection.lost` | The code of the peer's Close frame, or `none`. |
/// | `kind` | `heartbeat.pong` | `ping_pong`, or the name of a dialect. |
/// | `level` | the gauge of the pressure | `low`, `medium`, `high`. |
/// | `limit` | `rate_limiter.refill` | The name of a shared limit; `own` for all others. |
/// | `phase` | `connection.dial_phase` | `resolve`, `connect`, `tls`, `upgrade`. |
pub fn bridge() -> Guard {
    let bridge = Bridge::new();
    bridge.describe();
    let filter = Filter::all().without(Signal::NAMES[Signal::CONSUME]).expect("it is a name");
    attach(filter, move |observed| bridge.observe(observed))
}

struct Bridge {
    /// The counter of each kind of signal.
    counters: Vec<KeyName>,
    gauges: Mutex<Gauges>,
}

/// Which connections the gauges count.
#[derive(Default)]
struct Gauges {
    open: HashMap<ConnectionId, One>,
    pressed: HashMap<ConnectionId, One>,
}

/// Counts for one in a gauge until it is dropped.
struct One(Gauge);

impl Bridge {
    fn new() -> Self {
        let name = |signal: &&str| Arc::<str>::from(format!("zen_websocket_{}_total", signal.replace('.', "_"))).into();
        Self { counters: Signal::NAMES.iter().map(name).collect(), gauges: Mutex::default() }
    }

    fn describe(&self) {
        for (counter, signal) in self.counters.iter().zip(Signal::NAMES) {
            describe_counter!(counter.clone(), Unit::Count, format!("the signal {signal}"));
        }
        for (name, unit, what) in COUNTERS {
            describe_counter!(name, unit, what);
        }
        for (name, what) in HISTOGRAMS {
            describe_histogram!(name, Unit::Seconds, what);
        }
        for (name, what) in GAUGES {
            describe_gauge!(name, Unit::Count, what);
        }
    }

    fn observe(&self, observed: &Observed<'_>) {
        let signal = observed.signal;
        let labels = labels(observed.host, signal);
        if let Some((name, took)) = measured(signal) {
            histogram!(name, labels.clone()).record(took);
        }
        for (name, amount) in amounts(signal) {
            counter!(name, labels.clone()).increment(amount);
        }
        if let Some(connection) = observed.connection {
            self.count_connection(connection, signal, &labels);
        }
        if let Some(amount) = occurrences(signal) {
            counter!(self.counters[signal.kind()].clone(), labels).increment(amount);
        }
    }

    fn count_connection(&self, connection: ConnectionId, signal: &Signal<'_>, labels: &[Label]) {
        match signal {
            Signal::Open => {
                let one = One::new(gauge!("zen_websocket_connections_open", labels.iter()));
                self.gauges.lock().open.insert(connection, one);
            }
            Signal::Pressure { level, .. } => {
                let one = level_word(*level).map(|level| {
                    let labels = [labels, &[Label::from_static_parts("level", level)]].concat();
                    One::new(gauge!("zen_websocket_pressure", labels))
                });
                let pressed = &mut self.gauges.lock().pressed;
                match one {
                    Some(one) => pressed.insert(connection, one),
                    None => pressed.remove(&connection),
                };
            }
            // The queue for the rate limit ends with its wire.
            Signal::Lost { .. } | Signal::Closed { .. } => {
                let mut gauges = self.gauges.lock();
                gauges.open.remove(&connection);
                gauges.pressed.remove(&connection);
            }
            _ => {}
        }
    }
}

impl One {
    fn new(gauge: Gauge) -> Self {
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

fn labels(host: &str, signal: &Signal<'_>) -> Vec<Label> {
    let mut labels = vec![Label::new("host", host.to_owned())];
    let mut add = |key: &'static str, value: SharedString| labels.push(Label::new(key, value));
    match *signal {
        Signal::DialPhase { phase, .. } => add("phase", phase_word(phase).into()),
        Signal::DialFailed { cause, .. } | Signal::FailAll { cause, .. } => add("cause", word(cause).into()),
        Signal::Lost { cause, closer, code, .. } => {
            add("cause", word(cause).into());
            add("closer", closer_word(closer).into());
            add("code", code.map_or("none".into(), |code| code.to_string().into()));
        }
        Signal::Closed { cause } => add("cause", cause.map_or("closed", word).into()),
        Signal::Pong { kind, .. } => add("kind", kind.to_owned().into()),
        Signal::Refill { name, .. } => add("limit", name.map_or("own".into(), |name| name.to_owned().into())),
        _ => {}
    }
    labels
}

/// The time that a signal tells of, and its histogram.
fn measured(signal: &Signal<'_>) -> Option<(&'static str, Duration)> {
    Some(match *signal {
        Signal::DialPhase { took, .. } => ("zen_websocket_dial_phase_seconds", took),
        Signal::Upgrade { took } => ("zen_websocket_connect_seconds", took),
        Signal::Login { took } => ("zen_websocket_login_seconds", took),
        Signal::Restored { took, .. } => ("zen_websocket_restore_seconds", took),
        Signal::Lost { uptime, .. } => ("zen_websocket_uptime_seconds", uptime),
        Signal::RedialScheduled { delay } => ("zen_websocket_redial_delay_seconds", delay),
        Signal::Pong { rtt, .. } => ("zen_websocket_ping_rtt_seconds", rtt),
        Signal::Resolve { round_trip, .. } => ("zen_websocket_call_seconds", round_trip),
        Signal::Throttle { wait } => ("zen_websocket_throttle_seconds", wait),
        Signal::Stall { took } => ("zen_websocket_stall_seconds", took),
        _ => return None,
    })
}

/// What a signal tells of that has counters of its own.
fn amounts(signal: &Signal<'_>) -> impl Iterator<Item = (&'static str, u64)> {
    let amounts = match *signal {
        Signal::Traffic { messages_in, bytes_in, messages_out, bytes_out } => [
            Some(("zen_websocket_messages_in_total", messages_in)),
            Some(("zen_websocket_bytes_in_total", bytes_in)),
            Some(("zen_websocket_messages_out_total", messages_out)),
            Some(("zen_websocket_bytes_out_total", bytes_out)),
        ],
        Signal::Unsent { bytes, .. } => [Some(("zen_websocket_unsent_bytes_total", bytes as u64)), None, None, None],
        _ => [None; 4],
    };
    amounts.into_iter().flatten()
}

/// By how much a signal increments the counter of its kind; `None` if it has none.
fn occurrences(signal: &Signal<'_>) -> Option<u64> {
    match *signal {
        Signal::Traffic { .. } => None,
        Signal::Dropped { messages } => Some(messages),
        Signal::Unsent { messages, .. } => Some(messages as u64),
        Signal::RecorderDropped { entries } => Some(entries),
        _ => Some(1),
    }
}

/// The name of the variant, in snake case.
fn word(error: &Error) -> &'static str {
    match error {
        Error::ChannelsRejected(_) => "channels_rejected",
        Error::Closed => "closed",
        Error::Config { .. } => "config",
        Error::Connect { .. } => "connect",
        Error::DataSilent { .. } => "data_silent",
        Error::DialHook(_) => "dial_hook",
        Error::DialTimeout { .. } => "dial_timeout",
        Error::Disconnected => "disconnected",
        Error::Duplicate(_) => "duplicate",
        Error::Exhausted { .. } => "exhausted",
        Error::Full { .. } => "full",
        Error::Handshake(_) => "handshake",
        Error::InboxFull => "inbox_full",
        Error::Io(_) => "io",
        Error::Json(_) => "json",
        Error::LoginRefused { .. } => "login_refused",
        Error::Lost { .. } => "lost",
        Error::NotConnected => "not_connected",
        Error::OnReactor => "on_reactor",
        Error::Panicked(_) => "panicked",
        Error::PeerClosed { .. } => "peer_closed",
        Error::Protocol { .. } => "protocol",
        Error::QueueFull { .. } => "queue_full",
        Error::Refused(_) => "refused",
        Error::Rejected(_) => "rejected",
        Error::Replaced => "replaced",
        Error::Reply(_) => "reply",
        Error::Resolve { .. } => "resolve",
        Error::Silent { .. } => "silent",
        Error::Stale { .. } => "stale",
        Error::Stopped => "stopped",
        Error::Throttled { .. } => "throttled",
        Error::Timeout { .. } => "timeout",
        Error::Tls { .. } => "tls",
        Error::TooManyCalls { .. } => "too_many_calls",
    }
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Resolve => "resolve",
        Phase::Connect => "connect",
        Phase::Tls => "tls",
        Phase::Upgrade => "upgrade",
        Phase::Login => "login",
    }
}

fn closer_word(closer: Closer) -> &'static str {
    match closer {
        Closer::Peer => "peer",
        Closer::Own => "own",
        Closer::Network => "network",
    }
}

fn level_word(level: Pressure) -> Option<&'static str> {
    match level {
        Pressure::None => None,
        Pressure::Low => Some("low"),
        Pressure::Medium => Some("medium"),
        Pressure::High => Some("high"),
    }
}

const COUNTERS: [(&str, Unit, &str); 5] = [
    ("zen_websocket_messages_in_total", Unit::Count, "messages received"),
    ("zen_websocket_bytes_in_total", Unit::Bytes, "bytes received after the upgrade, TLS removed"),
    ("zen_websocket_messages_out_total", Unit::Count, "messages sent"),
    ("zen_websocket_bytes_out_total", Unit::Bytes, "bytes sent after the upgrade, before TLS"),
    ("zen_websocket_unsent_bytes_total", Unit::Bytes, "bytes that did not leave before their wire ended"),
];

const HISTOGRAMS: [(&str, &str); 10] = [
    ("zen_websocket_dial_phase_seconds", "how long a phase of a dial took"),
    ("zen_websocket_connect_seconds", "from the start of a dial to the upgrade"),
    ("zen_websocket_login_seconds", "from the upgrade to the end of the login"),
    ("zen_websocket_restore_seconds", "how long it took to restore all channels on a new wire"),
    ("zen_websocket_uptime_seconds", "how long a wire that was lost had been open"),
    ("zen_websocket_redial_delay_seconds", "pauses before further dials"),
    ("zen_websocket_ping_rtt_seconds", "round trips of the heartbeat"),
    ("zen_websocket_call_seconds", "from the start of a call to its reply"),
    ("zen_websocket_throttle_seconds", "how much later the rate limit would allow a message that it held back"),
    ("zen_websocket_stall_seconds", "how long one connection kept a reactor from the others"),
];

const GAUGES: [(&str, &str); 2] = [
    ("zen_websocket_connections_open", "connections with an open wire"),
    ("zen_websocket_pressure", "connections whose queue for the rate limit is at this level"),
];
