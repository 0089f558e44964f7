//! What the kernel is told about sockets, read back from the real ones.

#![cfg(target_os = "linux")]

mod common;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use zen_websocket::testkit::{MockServer, Script};
use zen_websocket::{Client, Config, Driver, Error, Event, Inbox, Reactor, SocketOptions, connect, open};

use self::common::*;

// ---- each option, on a socket that is about to connect ----

#[test]
fn by_default_frames_leave_at_once_and_little_waits_in_the_kernel() {
    let fresh = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let look = |socket: &Socket| Ok((socket.tcp_nodelay()?, socket.tcp_notsent_lowat()?, others(socket)?));
    assert_eq!(seen(options(), look), (true, 64 << 10, others(&fresh).unwrap()));
}

#[test]
fn without_nodelay_nagle_is_on() {
    assert!(!seen(options().nodelay(false), Socket::tcp_nodelay));
}

#[test]
fn a_user_timeout_is_told_in_milliseconds() {
    assert_eq!(seen(options().user_timeout(ms(1234)), Socket::tcp_user_timeout), Some(ms(1234)));
}

#[test]
fn keepalive_probes_after_the_period_and_at_the_period() {
    let period = Duration::from_secs(7);
    let look = |socket: &Socket| Ok((socket.keepalive()?, socket.tcp_keepalive_time()?, socket.tcp_keepalive_interval()?));
    assert_eq!(seen(options().keepalive(period), look), (true, period, period));
}

#[test]
fn buffers_have_the_size_that_was_asked_for() {
    // The kernel shows twice what it was told (socket(7)).
    assert_eq!(seen(options().receive_buffer(50_000), Socket::recv_buffer_size), 100_000);
    assert_eq!(seen(options().send_buffer(60_000), Socket::send_buffer_size), 120_000);
}

#[test]
fn the_mark_of_unsent_bytes_can_be_moved_and_left_to_the_system() {
    let fresh = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    assert_eq!(seen(options().notsent_lowat(4096), Socket::tcp_notsent_lowat), 4096);
    assert_eq!(seen(options().notsent_lowat(None), Socket::tcp_notsent_lowat), fresh.tcp_notsent_lowat().unwrap());
}

#[test]
fn an_interface_is_bound() {
    assert_eq!(seen(options().bind_interface("lo"), Socket::device).as_deref(), Some(&b"lo"[..]));
}

#[test]
fn the_class_of_service_is_in_the_upper_bits_of_either_family() {
    assert_eq!(seen(options().dscp(46), Socket::tos_v4), 46 << 2);
    if let Ok(server) = MockServer::builder().bind((Ipv6Addr::LOCALHOST, 0)).start() {
        assert_eq!(seen_by(&server, options().dscp(46), Socket::tclass_v6), 46 << 2);
    }
}

#[test]
fn busy_polling_is_told_in_microseconds_or_refused_by_name() {
    let options = options().busy_poll(Duration::from_micros(50));
    let fresh = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    match fresh.set_busy_poll(50) {
        Ok(()) => assert_eq!(seen(options, Socket::busy_poll), 50),
        Err(refused) => {
            let error = refusal(options);
            assert_eq!(error.to_string(), format!("invalid busy_poll: the system refused it: {refused}"));
        }
    }
}

#[test]
fn with_quickack_the_kernel_is_told_again_after_each_receive() {
    // It leaves the mode when data is answered with data, and comes back to it some time later.
    let mut left = Echoes::new(options());
    assert!((0..100).any(|_| !left.is_quick_after_one()));
    let mut told = Echoes::new(options().quickack(true));
    assert!((0..100).all(|_| told.is_quick_after_one()));
}

// ---- what they do ----

#[test]
fn what_the_kernel_may_not_keep_unsent_is_visible_in_the_tail() {
    const SIZE: usize = 16 << 20;
    let message = "x".repeat(SIZE);
    let taken = |options| {
        let server = MockServer::builder().receive_buffer(4096).script(Script::new().ignore().stop_reading()).start().unwrap();
        let (client, _inbox) = connect(config(&server).socket(options)).unwrap();
        client.send(&message).unwrap();
        SIZE - client.unsent()
    };
    // The peer's window is a few KiB; the last piece taken may pass the mark.
    assert!(taken(options().notsent_lowat(4096)) < 32 << 10);
    assert!((64 << 10..96 << 10).contains(&taken(options())));
    assert!(taken(options().notsent_lowat(None)) > 256 << 10);
}

#[test]
fn the_server_sees_the_address_that_is_bound() {
    let (send, seen) = mpsc::channel();
    let address = serve_raw(move |stream| send.send(stream.peer_addr().unwrap()).unwrap());
    let own: IpAddr = [127, 0, 0, 2].into();
    let config = config_for(format!("ws://{address}")).socket(options().bind_address(own));
    let (_client, _inbox) = open(config).unwrap();
    assert_eq!(seen.recv_timeout(WAIT).unwrap().ip(), own);
}

#[test]
fn only_addresses_of_the_family_that_is_bound_are_dialled() {
    let server = MockServer::start().unwrap();
    let (send, seen) = mpsc::channel();
    let config = dialling(vec![six(1), server.address(), six(2)]).socket(options().bind_address([127, 0, 0, 1]));
    let config = config.on_socket(move |socket| {
        send.send(SockRef::from(&socket).domain()?).unwrap();
        Ok(())
    });
    let (_client, _inbox) = connect(config).unwrap();
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [Domain::IPV4]);
}

// ---- what cannot be had ----

#[test]
fn a_host_without_an_address_of_the_family_is_not_reached() {
    let config = dialling(vec![six(1)]).socket(options().bind_address([127, 0, 0, 1])).connect_attempts(1);
    let error = connect(config).unwrap_err();
    assert_eq!(error.to_string(), "could not connect to exchange.example: the host has no IPv4 address, and bind_address is one");
}

#[test]
fn a_bad_value_is_named_before_a_socket_is_opened() {
    let server = MockServer::start().unwrap();
    let error = open(config(&server).socket(options().notsent_lowat(0))).unwrap_err();
    assert_eq!(error.to_string(), "invalid notsent_lowat: must be from 1 to 2147483647 bytes");
    assert_eq!(server.accepted(), 0);
}

#[test]
fn an_option_that_the_kernel_refuses_is_named_and_ends_the_first_connect() {
    let errors = [options().bind_interface("nosuchinterface"), options().bind_address([192, 0, 2, 1])].map(refusal);
    assert_eq!(
        errors.map(|error| error.to_string()),
        [
            "invalid bind_interface: the system refused it: No such device (os error 19)",
            "invalid bind_address: the system refused it: Cannot assign requested address (os error 99)",
        ]
    );
}

#[test]
fn a_buffer_that_the_kernel_would_cut_is_refused_with_what_it_grants() {
    let fresh = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    fresh.set_recv_buffer_size(1 << 30).unwrap();
    fresh.set_send_buffer_size(1 << 30).unwrap();
    let granted = [fresh.recv_buffer_size().unwrap() / 2, fresh.send_buffer_size().unwrap() / 2];
    let errors = [options().receive_buffer(1 << 30), options().send_buffer(1 << 30)].map(refusal);
    assert_eq!(
        errors.map(|error| error.to_string()),
        [
            format!("invalid receive_buffer: the system grants {} bytes at most", granted[0]),
            format!("invalid send_buffer: the system grants {} bytes at most", granted[1]),
        ]
    );
    // The most that is granted is.
    seen(options().receive_buffer(granted[0]).send_buffer(granted[1]), |_| Ok(()));
}

// ---- the socket hook ----

#[test]
fn the_socket_hook_runs_for_each_dial_before_the_socket_connects() {
    let server = MockServer::start().unwrap();
    let (send, seen) = mpsc::channel();
    let config = config(&server).socket(options().bind_address([127, 0, 0, 2])).on_socket(move |socket| {
        let socket = SockRef::from(&socket);
        let is_connected = socket.peer_addr().is_ok();
        send.send((socket.local_addr()?.as_socket().map(|own| own.ip()), is_connected)).unwrap();
        Ok(())
    });
    let (peer, _client, inbox) = join(&server, config);
    peer.reset();
    until_open(&inbox);
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [(Some([127, 0, 0, 2].into()), false); 2]);
}

#[test]
fn the_socket_hook_cannot_make_the_reactor_wait_for_the_socket() {
    let (send, seen) = mpsc::channel();
    let server = MockServer::start().unwrap();
    let config = config(&server).on_socket(move |socket| {
        SockRef::from(&socket).set_nonblocking(false)?;
        send.send(clone_of(socket)).unwrap();
        Ok(())
    });
    let (_client, _inbox) = connect(config).unwrap();
    assert!(seen.recv_timeout(WAIT).unwrap().nonblocking().unwrap());
}

#[test]
fn an_error_of_the_socket_hook_fails_the_dial_and_the_next_one_may_succeed() {
    let server = MockServer::start().unwrap();
    let is_first = AtomicBool::new(true);
    let (_client, inbox) = connect(config(&server).on_socket(move |_| match is_first.swap(false, Ordering::Relaxed) {
        true => Err(io::Error::other("not yet")),
        false => Ok(()),
    }))
    .unwrap();
    let failed = "dial 1 failed, again in 20ms: the socket failed: on_socket: not yet";
    assert_eq!(lines(&inbox, 4), ["dialing 1", failed, "dialing 2", "open"]);
    assert_eq!(server.accepted(), 1);
}

#[test]
fn an_error_or_panic_of_the_socket_hook_ends_no_other_connection() {
    let server = MockServer::start().unwrap();
    let reactor = Reactor::builder().start().unwrap();
    let (client, inbox) = reactor.connect(config(&server)).unwrap();
    until_open(&inbox);
    let fails = config(&server).connect_attempts(1).on_socket(|_| Err(io::ErrorKind::PermissionDenied.into()));
    let error = reactor.connect(fails).unwrap_err();
    assert!(matches!(&error, Error::Io(source) if source.kind() == io::ErrorKind::PermissionDenied), "{error:?}");
    let error = reactor.connect(config(&server).on_socket(|_| panic!("boom"))).unwrap_err();
    assert!(matches!(&error, Error::Panicked(text) if &**text == "boom"), "{error:?}");
    client.send("still here").unwrap();
    assert_eq!(text(&inbox), "still here");
    assert_eq!(server.accepted(), 1);
}

// ---- helpers ----

fn options() -> SocketOptions {
    SocketOptions::default()
}

/// What a socket with these options says when it is about to connect.
fn seen<T: Send + 'static>(options: SocketOptions, look: impl Fn(&Socket) -> io::Result<T> + Send + Sync + 'static) -> T {
    seen_by(&MockServer::start().unwrap(), options, look)
}

/// As [`seen`], on the way to this server, which is reached.
fn seen_by<T: Send + 'static>(
    server: &MockServer,
    options: SocketOptions,
    look: impl Fn(&Socket) -> io::Result<T> + Send + Sync + 'static,
) -> T {
    let (send, seen) = mpsc::channel();
    let config = config(server).socket(options).on_socket(move |socket| {
        send.send(look(&SockRef::from(&socket))?).unwrap();
        Ok(())
    });
    let (_client, _inbox) = connect(config).unwrap();
    seen.recv_timeout(WAIT).unwrap()
}

/// What is left as the system makes it.
type Others = (bool, Option<Duration>, u32, u32, Option<Vec<u8>>);

fn others(socket: &Socket) -> io::Result<Others> {
    Ok((socket.keepalive()?, socket.tcp_user_timeout()?, socket.busy_poll()?, socket.tos_v4()?, socket.device()?))
}

/// How a connect with these options ends, at the first attempt.
fn refusal(options: SocketOptions) -> Error {
    let server = MockServer::start().unwrap();
    let error = connect(config(&server).socket(options)).unwrap_err();
    assert_eq!(server.accepted(), 0);
    error
}

/// A connection whose reactor is turned by the test, so that it is known when a receive has ended.
struct Echoes {
    _server: MockServer,
    driver: Driver,
    client: Client,
    inbox: Inbox,
    socket: Socket,
}

impl Echoes {
    fn new(options: SocketOptions) -> Self {
        let server = MockServer::start().unwrap();
        let (send, socket) = mpsc::channel();
        let config = config(&server).socket(options).on_socket(move |socket| {
            send.send(clone_of(socket)).unwrap();
            Ok(())
        });
        let (mut driver, inbox) = (Driver::new().unwrap(), Inbox::shared(8));
        let client = driver.open_with(config, &inbox).unwrap();
        while !client.state().is_open() {
            driver.turn(WAIT).unwrap();
        }
        Self { _server: server, driver, client, inbox, socket: socket.recv_timeout(WAIT).unwrap() }
    }

    /// Whether the kernel acknowledges at once when the echo of a message has been received.
    fn is_quick_after_one(&mut self) -> bool {
        self.client.send("echo").unwrap();
        loop {
            match self.inbox.try_recv().unwrap() {
                Some(received) if matches!(received.event, Event::Message(_)) => break,
                Some(_) => {}
                None => self.driver.turn(WAIT).unwrap(),
            }
        }
        self.socket.tcp_quickack().unwrap()
    }
}

fn clone_of(socket: BorrowedFd<'_>) -> Socket {
    socket.try_clone_to_owned().unwrap().into()
}

/// Dials these addresses for a host that does not exist.
fn dialling(addresses: Vec<SocketAddr>) -> Config {
    config_for("ws://exchange.example").on_dial(move |plan| {
        plan.set_addresses(addresses.iter().copied());
        Ok(())
    })
}

fn six(port: u16) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, port).into()
}
