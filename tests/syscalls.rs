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
use zen_websocket::{Config, Handler, connect_with};

const WAIT: Duration = Duration::from_secs(60);

/// Messages before counting begins, and messages counted.
const WARM_UP: usize = 10;
const COUNTED: usize = 500;

/// Tells the child which server to use.
const URL: &str = "ZEN_WEBSOCKET_SYSCALLS_URL";

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
#[ignore = "runs in a child process under strace"]
fn child_echoes() {
    let (finish, finished) = mpsc::channel();
    let mut seen = 0;
    let handler = Handler::new().text(move |context, text| {
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
    let Ok(url) = env::var(URL) else { return };
    let client = connect_with(Config::new(url), handler).unwrap();
    client.send(&text()).unwrap();
    finished.recv_timeout(WAIT).unwrap();
}

#[test]
#[ignore = "runs in a child process under strace"]
fn child_sends() {
    let Ok(url) = env::var(URL) else { return };
    let client = connect_with(Config::new(url), Handler::new()).unwrap();
    let text = text();
    for number in 0..WARM_UP + COUNTED {
        if number == WARM_UP {
            mark(BEGIN);
        }
        client.send(&text).unwrap();
    }
    mark(END);
}

/// The calls of the marking thread between its marks, by name; `None` if there is no `strace` or it may not trace.
#[expect(clippy::print_stderr, reason = "who runs the tests must see that this one did nothing")]
fn calls_of(child: &str, server: &MockServer) -> Option<BTreeMap<String, usize>> {
    if !can_trace() {
        eprintln!("SKIPPED: no strace here, or it may not trace; install it to count system calls");
        return None;
    }
    let trace = Path::new(env!("CARGO_TARGET_TMPDIR")).join(child);
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&trace)
        .arg(env::current_exe().unwrap())
        .args(["--exact", child, "--ignored", "--nocapture"])
        .env(URL, server.url())
        .output()
        .unwrap();
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
