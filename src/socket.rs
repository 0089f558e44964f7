//! What the kernel is told about the sockets of a connection.

use std::env;
use std::net::IpAddr;
use std::time::Duration;

use crate::error::{Error, Result};

/// How the sockets of a connection behave in the kernel, for [`Config::socket`](crate::Config::socket).
///
/// Setters consume and return the options, which every socket gets before it connects. Nothing is silently left out: a value that makes
/// no sense, and an option that this system does not have, is refused as [`Error::Config`] when the connection is opened; what the
/// kernel refuses (for want of a privilege, say) fails the dial with [`Error::Config`] too. Each names the setting. For further options
/// there is [`Config::on_socket`](crate::Config::on_socket).
///
/// ```
/// use zen_websocket::{Config, SocketOptions};
///
/// // This account's orders leave from an address of their own.
/// let options = SocketOptions::default().bind_address([192, 0, 2, 7]).receive_buffer(1 << 20);
/// let config = Config::new("wss://www.example.com/ws").socket(options);
/// assert!(config.validate().is_ok());
///
/// let error = Config::new("wss://www.example.com/ws").socket(SocketOptions::default().receive_buffer(0)).validate().unwrap_err();
/// assert_eq!(error.to_string(), "invalid receive_buffer: must be from 1 to 2147483647 bytes");
/// ```
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub struct SocketOptions {
    pub(crate) nodelay: bool,
    pub(crate) quickack: bool,
    pub(crate) busy_poll: Option<Duration>,
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) receive_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) notsent_lowat: Option<usize>,
    pub(crate) bind_address: Option<IpAddr>,
    pub(crate) bind_interface: Option<Box<str>>,
    pub(crate) dscp: u8,
}

/// The systems that have an option which is not everywhere, as [`env::consts::OS`] names them.
const LINUX: &[&str] = &["linux"];
const LINUX_MACOS_WINDOWS: &[&str] = &["linux", "macos", "windows"];

/// The largest value of a C `int`, in which the kernel takes its options.
const INT_MAX: usize = i32::MAX as usize;

/// The longest name of a network interface: `IFNAMSIZ` less the NUL.
const INTERFACE_MAX: usize = 15;

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            quickack: false,
            busy_poll: None,
            user_timeout: None,
            keepalive: None,
            receive_buffer: None,
            send_buffer: None,
            notsent_lowat: LINUX.contains(&env::consts::OS).then_some(64 << 10),
            bind_address: None,
            bind_interface: None,
            dscp: 0,
        }
    }
}

impl SocketOptions {
    /// Whether each frame leaves at once (`TCP_NODELAY`, tcp(7)). All systems. On by default: Nagle's algorithm (RFC 1122 §4.2.3.4) would
    /// hold an order back until the last one is acknowledged, which a peer may put off for up to half a second. Off saves packets where
    /// many small frames go out and none is urgent.
    pub fn nodelay(mut self, on: bool) -> Self {
        self.nodelay = on;
        self
    }

    /// Whether what arrives is acknowledged at once, and not some 40 ms later or with the next data that leaves (`TCP_QUICKACK`, tcp(7);
    /// delayed acknowledgements: RFC 1122 §4.2.3.2). Linux. Off by default: it costs a packet and, because the kernel leaves this mode by
    /// itself, a system call after each receive. It helps with a peer that waits for acknowledgements, because it has Nagle's algorithm on
    /// or its congestion window is small.
    pub fn quickack(mut self, on: bool) -> Self {
        self.quickack = on;
        self
    }

    /// About how long a blocking read polls the network device before it waits for its interrupt; whole microseconds (`SO_BUSY_POLL`,
    /// socket(7)). Linux, on devices that support it; more than the system's `net.core.busy_read` may need `CAP_NET_ADMIN`. `None` by
    /// default: it takes a core's time. The reactor's reads do not block, so that each polls the device at most once, which helps one that
    /// [spins](crate::Wait::Spin); how long one that parks polls first is the system's `net.core.busy_poll`.
    pub fn busy_poll(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.busy_poll = limit.into();
        self
    }

    /// How long what was sent may stay unacknowledged before the kernel gives the connection up, which fails the next read or write with
    /// [`Error::Io`]; whole milliseconds (`TCP_USER_TIMEOUT`, tcp(7), RFC 5482). Linux. `None` by default, which leaves it to the system,
    /// up to 20 minutes: the heartbeat notices a silent peer anyway, sooner, and says so. It helps where nothing is heard, behind an inbox
    /// that is full under [`Overflow::Block`](crate::Overflow::Block), or without a heartbeat. It overrides the end of
    /// [`keepalive`](Self::keepalive).
    pub fn user_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.user_timeout = limit.into();
        self
    }

    /// After how long without traffic TCP itself probes the peer, and how often again, until the system's number of probes (9 on Linux)
    /// stayed unanswered; whole seconds, 32,767 at most (`SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, tcp(7), RFC 9293 §3.8.4). Linux,
    /// macOS, Windows. `None` by default: the [heartbeat](crate::Config::heartbeat_interval) covers it, and proves that the peer's program
    /// answers and not only its kernel.
    pub fn keepalive(mut self, period: impl Into<Option<Duration>>) -> Self {
        self.keepalive = period.into();
        self
    }

    /// How many bytes the kernel holds that were not read yet (`SO_RCVBUF`, socket(7)). All systems. `None` by default: the kernel's
    /// autotuning finds a size, and a fixed one turns it off. It is set before the connect, where the window scale is agreed on
    /// (RFC 7323 §2.3). If the kernel grants less (`net.core.rmem_max`), the dial fails.
    pub fn receive_buffer(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.receive_buffer = bytes.into();
        self
    }

    /// How many bytes the kernel holds that were not acknowledged yet (`SO_SNDBUF`, socket(7)). All systems. `None` by default: the
    /// kernel's autotuning finds a size, and a fixed one turns it off. Against orders that age in the kernel
    /// [`notsent_lowat`](Self::notsent_lowat) is better, because it does not limit what is in flight. If the kernel grants less
    /// (`net.core.wmem_max`), the dial fails.
    pub fn send_buffer(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.send_buffer = bytes.into();
        self
    }

    /// With how many bytes that it has not sent yet the kernel takes no more (`TCP_NOTSENT_LOWAT`, described with the sysctl
    /// `net.ipv4.tcp_notsent_lowat`). Linux. Default 64 KiB; `None`, the default elsewhere, leaves it to the system, mostly without a
    /// limit but the send buffer's megabytes. Orders must not age unseen: what the kernel does not take waits in the tail, visible as
    /// [`Client::unsent`](crate::Client::unsent) and bounded by [`Config::unsent_max`](crate::Config::unsent_max). What is on its way does
    /// not count, and the kernel asks for more when half is left, so that the path stays filled.
    pub fn notsent_lowat(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.notsent_lowat = bytes.into();
        self
    }

    /// The local address to dial from, on a port that the kernel chooses (bind(2)). All systems. None by default: the routes decide. It is
    /// for machines with several addresses, one for each account, say, where a venue limits by address. Of a host's addresses only those
    /// of the same family are dialled; `0.0.0.0` and `::` choose the family and nothing else.
    pub fn bind_address(mut self, address: impl Into<IpAddr>) -> Self {
        self.bind_address = Some(address.into());
        self
    }

    /// The network interface to dial through, whatever the routes say (`SO_BINDTODEVICE`, socket(7)); a name of at most 15 bytes, such as
    /// `eth1`. Linux; before 5.7 it needs `CAP_NET_RAW`. None by default: the routes decide.
    pub fn bind_interface(mut self, name: impl Into<Box<str>>) -> Self {
        self.bind_interface = Some(name.into());
        self
    }

    /// The class of service that each packet's header asks for, from 0 to 63 (RFC 2474 §3): the upper six bits of `IP_TOS` (ip(7)), in IPv6
    /// of `IPV6_TCLASS`; the lower two are the kernel's (RFC 3168 §5). Linux. Default 0, best effort: only a network of one's own looks at
    /// it, to let orders (46, expedited forwarding, RFC 3246) pass bulk data.
    pub fn dscp(mut self, class: u8) -> Self {
        self.dscp = class;
        self
    }

    /// Checks what can be told without a socket; the first setting that is wrong is named.
    pub(crate) fn validate(&self) -> Result<()> {
        self.check_system(env::consts::OS)?;
        let durations = [
            ("busy_poll", self.busy_poll, Duration::from_micros(1), INT_MAX, "microseconds"),
            ("user_timeout", self.user_timeout, Duration::from_millis(1), INT_MAX, "milliseconds"),
            ("keepalive", self.keepalive, Duration::from_secs(1), 32_767, "seconds"),
        ];
        for (setting, value, unit, max, units) in durations {
            let Some(value) = value.map(|value| value.as_nanos()) else { continue };
            let unit = unit.as_nanos();
            if value % unit != 0 || !(1..=max as u128).contains(&(value / unit)) {
                return Err(Error::config(setting, format!("must be from 1 to {max} whole {units}")));
            }
        }
        let sizes =
            [("receive_buffer", self.receive_buffer), ("send_buffer", self.send_buffer), ("notsent_lowat", self.notsent_lowat)];
        if let Some((setting, _)) = sizes.iter().find(|(_, size)| size.is_some_and(|size| !(1..=INT_MAX).contains(&size))) {
            return Err(Error::config(setting, format!("must be from 1 to {INT_MAX} bytes")));
        }
        if let Some(name) = &self.bind_interface
            && (!(1..=INTERFACE_MAX).contains(&name.len()) || name.contains('\0'))
        {
            let reason = format!("{name:?} is not a name of 1 to {INTERFACE_MAX} bytes without NUL");
            return Err(Error::config("bind_interface", reason));
        }
        if self.dscp > 63 {
            return Err(Error::config("dscp", "must be from 0 to 63"));
        }
        Ok(())
    }

    /// Refuses what this system does not have.
    fn check_system(&self, system: &str) -> Result<()> {
        let settings = [
            ("quickack", self.quickack, LINUX),
            ("busy_poll", self.busy_poll.is_some(), LINUX),
            ("user_timeout", self.user_timeout.is_some(), LINUX),
            ("keepalive", self.keepalive.is_some(), LINUX_MACOS_WINDOWS),
            ("notsent_lowat", self.notsent_lowat.is_some(), LINUX),
            ("bind_interface", self.bind_interface.is_some(), LINUX),
            ("dscp", self.dscp != 0, LINUX),
        ];
        match settings.iter().find(|(_, is_set, systems)| *is_set && !systems.contains(&system)) {
            Some((setting, ..)) => Err(Error::config(setting, format!("cannot be set on {system}"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SEC: Duration = Duration::from_secs(1);

    fn options() -> SocketOptions {
        SocketOptions::default()
    }

    fn refusal(options: SocketOptions) -> String {
        options.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_good_on_every_system() {
        options().validate().unwrap();
        options().notsent_lowat(None).check_system("plan9").unwrap();
    }

    #[test]
    fn a_size_is_more_than_zero_and_fits_the_kernels_int() {
        for size in [0, INT_MAX + 1] {
            assert_eq!(refusal(options().receive_buffer(size)), "invalid receive_buffer: must be from 1 to 2147483647 bytes");
            assert_eq!(refusal(options().send_buffer(size)), "invalid send_buffer: must be from 1 to 2147483647 bytes");
        }
    }

    #[test]
    fn what_a_system_does_not_have_is_refused_by_name() {
        let plain = || options().notsent_lowat(None);
        let all = [
            ("quickack", plain().quickack(true)),
            ("busy_poll", plain().busy_poll(MS)),
            ("user_timeout", plain().user_timeout(MS)),
            ("keepalive", plain().keepalive(SEC)),
            ("notsent_lowat", plain().notsent_lowat(1)),
            ("bind_interface", plain().bind_interface("en0")),
            ("dscp", plain().dscp(46)),
        ];
        for (setting, options) in all {
            let error = options.check_system("freebsd").unwrap_err().to_string();
            assert_eq!(error, format!("invalid {setting}: cannot be set on freebsd"));
            options.check_system("linux").unwrap();
        }
        plain().keepalive(SEC).check_system("macos").unwrap();
        plain().keepalive(SEC).check_system("windows").unwrap();
    }

    #[cfg(target_os = "linux")]
    mod on_linux {
        use super::*;

        #[test]
        fn a_duration_is_a_whole_number_of_the_kernels_unit_within_its_bounds() {
            let busy_poll = "invalid busy_poll: must be from 1 to 2147483647 whole microseconds";
            for value in [Duration::ZERO, Duration::from_nanos(999), Duration::from_nanos(1001), 2148 * SEC] {
                assert_eq!(refusal(options().busy_poll(value)), busy_poll);
            }
            let user_timeout = "invalid user_timeout: must be from 1 to 2147483647 whole milliseconds";
            for value in [Duration::ZERO, MS / 2, MS + Duration::from_nanos(1), Duration::MAX] {
                assert_eq!(refusal(options().user_timeout(value)), user_timeout);
            }
            let keepalive = "invalid keepalive: must be from 1 to 32767 whole seconds";
            for value in [Duration::ZERO, MS, SEC + MS, 32_768 * SEC] {
                assert_eq!(refusal(options().keepalive(value)), keepalive);
            }
        }

        #[test]
        fn the_least_and_the_most_are_accepted() {
            let least = options().busy_poll(MS / 1000).user_timeout(MS).keepalive(SEC).notsent_lowat(1);
            least.receive_buffer(1).send_buffer(1).bind_interface("a").dscp(1).validate().unwrap();
            let most = options().busy_poll(i32::MAX as u32 * (MS / 1000)).user_timeout(i32::MAX as u32 * MS);
            let most = most.keepalive(32_767 * SEC).notsent_lowat(INT_MAX).receive_buffer(INT_MAX).send_buffer(INT_MAX);
            most.bind_interface("x".repeat(15)).dscp(63).validate().unwrap();
        }

        #[test]
        fn a_mark_of_zero_a_name_that_does_not_fit_and_a_seventh_bit_are_refused() {
            assert_eq!(refusal(options().notsent_lowat(0)), "invalid notsent_lowat: must be from 1 to 2147483647 bytes");
            for (name, shown) in [("", r#""""#), ("a\0", r#""a\0""#), ("sixteen-bytes-ab", r#""sixteen-bytes-ab""#)] {
                let expected = format!("invalid bind_interface: {shown} is not a name of 1 to 15 bytes without NUL");
                assert_eq!(refusal(options().bind_interface(name)), expected);
            }
            assert_eq!(refusal(options().dscp(64)), "invalid dscp: must be from 0 to 63");
        }
    }
}
