//! What the bridge counts in a recorder of the `metrics` facade.

mod common;

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use common::{WAIT, config, ms, serve};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use zen_websocket::telemetry::{self, Guard};
use zen_websocket::testkit::{Peer, Script};
use zen_websocket::{Client, Config, Driver, JsonRpc, RateLimit, State, Throttle};

#[test]
fn a_dial_is_measured_by_its_phases() {
    count(|engine| {
        let server = serve(Script::new());
        let _client = engine.open(config(&server));
        engine.turn_until(|lines| lines.value("connections_open", "") == 1.0);

        let lines = engine.lines();
        assert_eq!(lines.value("connection_dial_total", ""), 1.0);
        assert_eq!(lines.value("connection_dial_phase_total", "phase=\"connect\""), 1.0);
        assert_eq!(lines.value("dial_phase_seconds_count", "phase=\"upgrade\""), 1.0);
        assert_eq!(lines.value("connect_seconds_count", &format!("host=\"{}\"", server.address())), 1.0);
    });
}

#[test]
fn a_dial_that_fails_counts_with_its_cause() {
    count(|engine| {
        let server = serve(Script::new().status(503));
        let _client = engine.open(config(&server));
        engine.turn_until(|lines| lines.value("connection_dial_failed_total", "cause=\"refused\"") >= 1.0);
        assert!(engine.lines().value("redial_delay_seconds_count", "") >= 1.0);
        assert_eq!(engine.lines().value("connections_open", ""), 0.0);
    });
}

#[test]
fn calls_and_pings_are_measured() {
    count(|engine| {
        let server = serve(Script::new().on_text(answer));
        let client = engine.open_live(config(&server).dialect(JsonRpc::default()).heartbeat_interval(ms(10)));
        let _call = client.start_call("public/test", ()).unwrap();
        engine.turn_until(|lines| lines.value("call_seconds_count", "") == 1.0);
        engine.turn_until(|lines| lines.value("ping_rtt_seconds_count", "kind=\"ping_pong\"") >= 1.0);

        let lines = engine.lines();
        assert_eq!(lines.value("request_correlator_track_total", ""), 1.0);
        assert_eq!(lines.value("request_correlator_resolve_total", ""), 1.0);
        assert!(lines.value("heartbeat_ping_total", "") >= lines.value("heartbeat_pong_total", ""));
    });
}

#[test]
fn a_loss_counts_with_who_ended_the_wire_and_what_went_over_it() {
    count(|engine| {
        let server = serve(Script::new());
        let client = engine.open_live(config(&server));
        for count in 1..=2 {
            client.send("0123456789").unwrap();
            engine.turn_until(|_| client.metrics().messages_in == count);
        }
        server.close_all(1012, "restart");
        let how = "cause=\"peer_closed\",closer=\"peer\",code=\"1012\"";
        engine.turn_until(|lines| lines.value("connection_lost_total", how) == 1.0);
        engine.turn_until(|lines| lines.value("connection_open_total", "") == 2.0);

        let lines = engine.lines();
        assert_eq!(lines.value("connections_open", ""), 1.0);
        assert_eq!(lines.value("uptime_seconds_count", how), 1.0);
        assert_eq!(lines.value("connection_dial_total", ""), 2.0);
        assert_eq!(lines.value("messages_in_total", ""), 2.0);
        assert!(lines.value("bytes_in_total", "") > 20.0);
        assert_eq!(lines.value("messages_out_total", ""), 2.0);
        assert!(lines.value("bytes_out_total", "") > 10.0);
    });
}

#[test]
fn a_connection_that_this_program_closes_is_open_no_longer() {
    count(|engine| {
        let server = serve(Script::new());
        let client = engine.open_live(config(&server));
        assert_eq!(engine.lines().value("connections_open", ""), 1.0);
        client.start_close(1000, "").unwrap();
        engine.turn_until(|lines| lines.value("connection_closed_total", "cause=\"closed\"") == 1.0);
        assert_eq!(engine.lines().value("connections_open", ""), 0.0);
    });
}

#[test]
fn a_queue_that_fills_shows_its_pressure_until_the_wire_ends() {
    count(|engine| {
        let server = serve(Script::new());
        let limit = RateLimit::window(1, WAIT);
        let client = engine.open_live(config(&server).rate_limit(limit).throttle(Throttle::Queue(4)));
        for _ in 0..4 {
            client.send("order").unwrap();
        }
        engine.turn_until(|lines| lines.value("pressure", "level=\"high\"") == 1.0);
        assert_eq!(engine.lines().value("pressure", "level=\"medium\""), 0.0);

        server.kill_all();
        engine.turn_until(|lines| lines.value("connection_lost_total", "") == 1.0);
        assert_eq!(engine.lines().value("pressure", "level=\"high\""), 0.0);
        assert_eq!(engine.lines().value("traffic_unsent_total", ""), 3.0);
    });
}

#[test]
fn what_a_limit_gives_back_counts_with_its_name() {
    count(|engine| {
        let server = serve(Script::new());
        let limit = RateLimit::bucket(1, 1, ms(20)).reserved(0).shared("bridge");
        let client = engine.open_live(config(&server).rate_limit(limit).throttle(Throttle::Queue(8)));
        for _ in 0..3 {
            client.send("order").unwrap();
        }
        engine.turn_until(|lines| lines.value("rate_limiter_refill_total", "limit=\"bridge\"") >= 1.0);
        assert!(engine.lines().value("rate_limiter_queue_total", "") >= 1.0);
        assert_eq!(engine.lines().value("rate_limiter_consume_total", ""), 0.0);
    });
}

#[test]
fn without_its_guard_a_bridge_counts_nothing_and_takes_its_gauges_back() {
    count(|engine| {
        let server = serve(Script::new());
        let client = engine.open_live(config(&server));
        engine.bridge = None;
        server.kill_all();
        engine.turn_until(|_| client.generation().number() == 2);
        assert_eq!(engine.lines().value("connections_open", ""), 0.0);
        assert_eq!(engine.lines().value("connection_lost_total", ""), 0.0);
    });
}

#[test]
fn whatever_is_counted_is_described() {
    count(|engine| {
        let server = serve(Script::new().on_text(answer));
        let limit = RateLimit::window(2, WAIT).shared("described");
        let config = config(&server).dialect(JsonRpc::default()).rate_limit(limit).throttle(Throttle::Queue(2));
        let client = engine.open_live(config);
        let _calls = [(); 4].map(|()| client.start_call("public/test", ()));
        server.close_all(1012, "restart");
        engine.turn_until(|lines| lines.value("connection_lost_total", "") == 1.0);

        let text = engine.prometheus.render();
        let names = |kind: &str| {
            let names = text.lines().filter_map(|line| line.strip_prefix(kind)?.split(' ').next());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names("# TYPE "), names("# HELP "));
        assert!(names("# TYPE ").len() > 15, "{text}");
    });
}

/// A bridge into a recorder of this thread's own, and a driver that this thread turns, so that the observer runs on it.
struct Engine {
    driver: Driver,
    prometheus: PrometheusHandle,
    bridge: Option<Guard>,
}

/// The lines of a scrape.
struct Lines(String);

/// One test at a time: a bridge sees the connections of the whole process.
fn count(test: impl FnOnce(&mut Engine)) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let recorder = PrometheusBuilder::new().build_recorder();
    let prometheus = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        test(&mut Engine { driver: Driver::new().unwrap(), prometheus, bridge: Some(telemetry::bridge()) });
    });
}

impl Engine {
    fn open(&self, config: Config) -> Client {
        self.driver.open(config).unwrap()
    }

    fn open_live(&mut self, config: Config) -> Client {
        let client = self.open(config);
        self.turn_until(|_| client.state() == State::Live);
        client
    }

    fn turn_until(&mut self, is_so: impl Fn(&Lines) -> bool) {
        let deadline = Instant::now() + WAIT;
        while !is_so(&self.lines()) {
            assert!(Instant::now() < deadline, "it never came to that: {}", self.lines().0);
            self.driver.turn(ms(10)).unwrap();
        }
    }

    fn lines(&self) -> Lines {
        Lines(self.prometheus.render())
    }
}

impl Lines {
    /// The sum of a metric over all lines that have these labels.
    fn value(&self, name: &str, labels: &str) -> f64 {
        let of_line = |line: &str| {
            let (key, value) = line.strip_prefix("zen_websocket_")?.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' ')?;
            key.contains(labels).then(|| value.parse::<f64>().unwrap())
        };
        self.0.lines().filter_map(of_line).sum()
    }
}

fn answer(peer: &Peer, text: &str) {
    let request: Value = serde_json::from_str(text).unwrap();
    peer.send_text(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": 1 }).to_string());
}
