//! Tells a socket its options.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpStream;
use socket2::Socket;

use crate::config::SocketHook;
use crate::error::{Error, Result};
use crate::socket::SocketOptions;

/// Prepares a socket to connect to this address: its options, its own address, then the user's hook.
pub(crate) fn prepare(socket: &Socket, address: SocketAddr, options: &SocketOptions, hook: Option<&SocketHook>) -> Result<()> {
    named("nodelay", socket.set_tcp_nodelay(options.nodelay))?;
    if let Some(size) = options.receive_buffer {
        named("receive_buffer", socket.set_recv_buffer_size(size))?;
        check_granted("receive_buffer", size, socket.recv_buffer_size())?;
    }
    if let Some(size) = options.send_buffer {
        named("send_buffer", socket.set_send_buffer_size(size))?;
        check_granted("send_buffer", size, socket.send_buffer_size())?;
    }
    #[cfg(any(target_os = "linux", target_os = "macos", windows))]
    if let Some(period) = options.keepalive {
        named("keepalive", socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(period).with_interval(period)))?;
    }
    prepare_linux(socket, address, options)?;
    if let Some(own) = options.bind_address {
        named("bind_address", socket.bind(&SocketAddr::new(own, 0).into()))?;
    }
    if let Some(hook) = hook {
        hook(socket).map_err(|error| Error::io(io::Error::new(error.kind(), format!("on_socket: {error}"))))?;
    }
    Ok(())
}

/// All numbers fit: the options were validated.
#[cfg(target_os = "linux")]
fn prepare_linux(socket: &Socket, address: SocketAddr, options: &SocketOptions) -> Result<()> {
    if let Some(limit) = options.busy_poll {
        named("busy_poll", socket.set_busy_poll(limit.as_micros() as u32))?;
    }
    if let Some(limit) = options.user_timeout {
        named("user_timeout", socket.set_tcp_user_timeout(Some(limit)))?;
    }
    if let Some(bytes) = options.notsent_lowat {
        named("notsent_lowat", socket.set_tcp_notsent_lowat(bytes as u32))?;
    }
    if let Some(name) = &options.bind_interface {
        named("bind_interface", socket.bind_device(Some(name.as_bytes())))?;
    }
    let class = u32::from(options.dscp) << 2;
    match address {
        _ if class == 0 => Ok(()),
        SocketAddr::V4(_) => named("dscp", socket.set_tos_v4(class)),
        SocketAddr::V6(_) => named("dscp", socket.set_tclass_v6(class)),
    }
}

#[cfg(not(target_os = "linux"))]
fn prepare_linux(_: &Socket, _: SocketAddr, _: &SocketOptions) -> Result<()> {
    Ok(())
}

/// Acknowledges at once what has arrived and what comes next. Wanted again after each receive, because the kernel leaves this mode by
/// itself (tcp(7)); a new socket is in it.
pub(crate) fn rearm_quickack(stream: &TcpStream) {
    // A socket that has failed says so when it is read.
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_quickack(true);
    #[cfg(not(target_os = "linux"))]
    let _ = stream;
}

/// What the system refused, under the name of its setting.
fn named<T>(setting: &'static str, done: io::Result<T>) -> Result<T> {
    done.map_err(|error| Error::config(setting, format!("the system refused it: {error}")))
}

/// Linux takes a size that is too large as the largest it allows, and shows twice the size it took (socket(7)).
fn check_granted(setting: &'static str, wanted: usize, shown: io::Result<usize>) -> Result<()> {
    let granted = named(setting, shown)? / if cfg!(target_os = "linux") { 2 } else { 1 };
    if granted < wanted {
        return Err(Error::config(setting, format!("the system grants {granted} bytes at most")));
    }
    Ok(())
}
