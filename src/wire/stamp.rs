//! When the kernel received what is read (`SO_TIMESTAMPNS`, socket(7)).

use std::io;
use std::time::SystemTime;

use mio::net::TcpStream;

/// Reads a socket together with the kernel's stamps.
pub(crate) struct Stamped {
    /// Where the kernel puts them.
    #[cfg(target_os = "linux")]
    control: Box<[u8]>,
}

#[cfg(target_os = "linux")]
impl Stamped {
    /// Asks for stamps; `None` if the kernel gives none.
    pub(crate) fn new(stream: &TcpStream) -> Option<Self> {
        use nix::sys::socket::{setsockopt, sockopt};
        use nix::sys::time::TimeSpec;

        setsockopt(stream, sockopt::ReceiveTimestampns, &true).ok()?;
        Some(Self { control: nix::cmsg_space!(TimeSpec).into() })
    }

    /// Reads, and says when the kernel received the last segment of it.
    pub(crate) fn read(&mut self, stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<SystemTime>)> {
        use std::io::IoSliceMut;
        use std::os::fd::AsRawFd;
        use std::time::{Duration, UNIX_EPOCH};

        use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

        let mut buffers = [IoSliceMut::new(buffer)];
        let received = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut self.control), MsgFlags::empty())?;
        // Other control messages that the program asked for may leave no room; the bytes are what counts.
        let stamp = received.cmsgs().ok().into_iter().flatten().find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(time) => UNIX_EPOCH.checked_add(Duration::from(time)),
            _ => None,
        });
        Ok((received.bytes, stamp))
    }
}

/// Other systems stamp no streams.
#[cfg(not(target_os = "linux"))]
impl Stamped {
    pub(crate) fn new(_: &TcpStream) -> Option<Self> {
        None
    }

    pub(crate) fn read(&mut self, mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, Option<SystemTime>)> {
        io::Read::read(&mut stream, buffer).map(|count| (count, None))
    }
}
