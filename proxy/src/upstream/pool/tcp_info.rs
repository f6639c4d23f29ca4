//! The kernel's state of a TCP connection.

use std::num::NonZeroU64;
use std::os::fd::AsFd;

use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, libc, sockopt_impl};

/// `struct tcp_info` up to `tcpi_bytes_acked`, in words of eight bytes: reported by Linux since
/// 4.1.
type Words = [u64; 16];

sockopt_impl!(
    /// The socket option.
    Info,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    Words
);

/// `TCP_ESTABLISHED` and `TCP_CLOSE` of Linux.
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;

/// The state of a connection, and how many of the sent bytes have been acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    state: u8,
    /// Total in bytes. `None`: nothing yet, or the kernel does not count.
    pub acknowledged: Option<NonZeroU64>,
}

impl TcpInfo {
    /// `None`: the kernel does not report it.
    pub fn of(socket: &impl AsFd) -> Option<Self> {
        let words = getsockopt(socket, Info).ok()?;
        Some(Self {
            state: words[0].to_ne_bytes()[0],
            acknowledged: NonZeroU64::new(words[15]),
        })
    }

    /// Neither side has ended its half.
    pub fn is_open(self) -> bool {
        self.state == ESTABLISHED
    }

    /// Nothing more will be sent, received or acknowledged.
    pub fn is_over(self) -> bool {
        self.state == CLOSE
    }
}
