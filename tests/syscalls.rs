//! How often a message goes to the kernel, exactly: counted by `strace` in a child process, which is this test binary again.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use zen_websocket::testkit::{MockServer, Script};
use zen_websocket::{Config, Driver, EventRef, Handler, connect_with};

const WAIT: Duration = Duration::from_secs(60);

/// Messages before counting begins, and messages counted.
const WARM_UP: usize = 10;
const COUNTED: usize = 500;

/// Messages in a burst.
const BURST: usize = 100;

/// Tells the child which server to use.
const URL: &str = "ZEN_WEBSOCKET_SYSCALLS_URL";
/// Tells it where the certificate is that the server's is signed by.
const ROOT: &str = "ZEN_WEBSOCKET_SYSCALLS_ROOT";

/// Files that do not exist: looking for them marks, in the list of calls of a thread, what is to be counted.
const BEGIN: &str = "/zen-websocket-begin";
const END: &str = "/zen-websocket-end";

#[test]
fn an_echoed_message_costs_a_parked_reactor_one_wait_one_receive_and_one_send() {
    let server = MockServer::start().unwrap();
    let Some(calls) = calls_of("child_echoes", &server) else { return };
    assert_eq!(calls, BTreeMap::from([("epoll_wait", COUNTED), ("recvfrom", COUNTED), ("sendto", COUNTED)].map(owned)));
}

#[test]
fn a_send_costs_its_caller_one_call() {
    let server = MockServer::builder().script(Script::new().ignore()).start().unwrap();
    let Some(calls) = calls_of("child_sends", &server) else { return };
    assert_eq!(calls, BTreeMap::from([("sendto", COUNTED)].map(owned)));
}

#[test]
fn a_driver_that_spins_does_nothing_but_read_poll_and_write() {
    let server = MockServer::start().unwrap();
    let Some(calls) = calls_of("child_spins", &server) else { return };
    // How often it polls, and reads in vain, depends on the clock, and tracing makes every call slow.
    assert!(calls["sendto"] == COUNTED && calls["recvfrom"] >= COUNTED, "{calls:?}");
    let known = ["sendto", "recvfrom", "epoll_wait"];
    assert!(calls.keys().all(|name| known.contains(&name.as_str())), "{calls:?}");
}

#[test]
fn a_burst_costs_one_receive() {
    let server = MockServer::builder().script(bursts()).start().unwrap();
    let Some(calls) = calls_of("child_receives_bursts", &server) else { return };
    assert_eq!(calls, BTreeMap::from([("epoll_wait", COUNTED), ("recvfrom", COUNTED), ("sendto", COUNTED)].map(owned)));
}

#[test]
fn an_encrypted_burst_costs_one_receive() {
    let server = MockServer::builder().tls().script(bursts()).start().unwrap();
    let Some(calls) = calls_of("child_receives_bursts", &server) else { return };
    assert_eq!(calls, BTreeMap::from([("epoll_wait", COUNTED), ("recvfrom", COUNTED), ("sendto", COUNTED)].map(owned)));
}

#[test]
fn many_messages_leave_in_one_call_for_each_16_kib() {
    for builder in [MockServer::builder(), MockServer::builder().tls()] {
        let server = builder.script(Script::new().ignore()).start().unwrap();
        let Some(calls) = calls_of("child_sends_many", &server) else { return };
        // A frame of 200 bytes is 208 long. The list of messages may make the heap grow.
        assert_eq!(calls["sendto"], COUNTED.div_ceil((16 << 10) / 208), "{calls:?}");
    }
}

/// Answers each message with a burst that the kernel gets in one piece.
fn bursts() -> Script {
    let frame = [&[0x81, 126, 0, 200][..], &[b'x'; 200]].concat();
    Script::new().on_text(move |peer, _| peer.send_raw(frame.repeat(BURST)))
}

#[test]
#[ignore = "runs in a child process under strace"]
fn child_spins() {
    let Some(config) = config() else { return };
    let mut driver = Driver::new().unwrap();
    let client = driver.open(config).unwrap();
    while !client.state().is_open() {
        driver.turn(None).unwrap();
    }
    client.send(&text()).unwrap();
    let mut seen = 0;
    while seen <= WARM_UP + COUNTED {
        driver
            .turn_with(Duration::ZERO, |context, event| {
                let EventRef::Text(text) = event else { return };
                if seen == WARM_UP {
                    mark(BEGIN);
                }
                seen += 1;
                if seen <= WARM_UP + COUNTED {
                    context.send(text).unwrap();
                } else {
                    mark(END);
                }
            })
            .unwrap();
    }
}

#[test]
#[ignore = "runs in a child process under strace"]
fn child_receives_bursts() {
    answer_bursts(BURST);
}

#[test]
#[ignore = "runs in a child process under strace"]
fn child_sends_many() {
    let Some(config) = config() else { return };
    let client = connect_with(config, Handler::new()).unwrap();
    let texts = vec![text(); COUNTED];
    mark(BEGIN);
    let sent = client.send_many(&texts);
    mark(END);
    assert!(sent.error.is_none(), "{sent:?}");
}

#[test]
#[ignore = "runs in a child process under strace"]
fn child_echoes() {
    answer_bursts(1);
}

#[test]
#[ignore = "runs in a child process under strace"]
fn child_sends() {
    let Some(config) = config() else { return };
    let client = connect_with(config, Handler::new()).unwrap();
    let text = text();
    for number in 0..WARM_UP + COUNTED {
        if number == WARM_UP {
            mark(BEGIN);
        }
        client.send(&text).unwrap();
    }
    mark(END);
}

/// Answers the last message of each burst with itself, in a handler.
fn answer_bursts(messages: usize) {
    let (finish, finished) = mpsc::channel();
    let (mut seen, mut in_burst) = (0, 0);
    let handler = Handler::new().text(move |context, text| {
        in_burst = (in_burst + 1) % messages;
        if in_burst > 0 {
            return;
        }
        match seen {
            WARM_UP => mark(BEGIN),
            n if n == WARM_UP + COUNTED => {
                mark(END);
                let _ = finish.send(());
                return;
            }
            _ => {}
        }
        seen += 1;
        context.send(text).unwrap();
    });
    let Some(config) = config() else { return };
    let client = connect_with(config, handler).unwrap();
    client.send(&text()).unwrap();
    finished.recv_timeout(WAIT).unwrap();
}

/// For the server that the child was given, if this is the child.
fn config() -> Option<Config> {
    let config = Config::new(env::var(URL).ok()?).without_system_roots();
    Some(match env::var(ROOT) {
        Ok(root) => config.root_certificate(fs::read(root).unwrap()),
        Err(_) => config,
    })
}

/// The calls of the marking thread between its marks, by name; `None` if there is no `strace` or it may not trace.
#[expect(clippy::print_stderr, reason = "who runs the tests must see that this one did nothing")]
fn calls_of(child: &str, server: &MockServer) -> Option<BTreeMap<String, usize>> {
    if !can_trace() {
        eprintln!("SKIPPED: no strace here, or it may not trace; install it to count system calls");
        return None;
    }
    // Tests run at the same time may run the same child.
    let trace = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{child}-{}", server.address().port()));
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).arg(env::current_exe().unwrap());
    command.args(["--exact", child, "--ignored", "--nocapture"]).env(URL, server.url());
    if let Some(root) = server.root_certificate() {
        let file = trace.with_extension("der");
        fs::write(&file, root).unwrap();
        command.env(ROOT, file);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = fs::read_to_string(&trace).unwrap();
    let thread = trace.lines().find(|line| line.contains(BEGIN)).unwrap().split_inclusive(' ').next().unwrap().to_owned();
    let mut calls = BTreeMap::new();
    let of_thread = trace.lines().filter_map(|line| line.strip_prefix(&*thread)).map(str::trim_start);
    let marked = of_thread.skip_while(|line| !line.contains(BEGIN)).skip(1).take_while(|line| !line.contains(END));
    // A call during which another thread's was shown is continued on a line of its own, `<... name resumed>`.
    for call in marked.filter(|line| !line.starts_with("<...")) {
        *calls.entry(call.split('(').next().unwrap().to_owned()).or_default() += 1;
    }
    Some(calls)
}

fn can_trace() -> bool {
    Command::new("strace").args(["-o", "/dev/null", "true"]).output().is_ok_and(|output| output.status.success())
}

fn mark(name: &str) {
    assert!(fs::metadata(name).is_err());
}

fn owned((name, count): (&str, usize)) -> (String, usize) {
    (name.to_owned(), count)
}

fn text() -> String {
    "x".repeat(200)
}
