//! What the far end of a veth pair must do for native XDP at the near end: fill in checksums, since a frame that is
//! redirected carries no note that they are missing, and poll its queue (NAPI), or frames redirected to it are dropped.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use lb_tests::netns::Namespace;

/// `SIOCETHTOOL` (linux/sockios.h).
const SIOCETHTOOL: libc::Ioctl = 0x8946;
/// `ETHTOOL_STXCSUM` and `ETHTOOL_SGRO` (linux/ethtool.h). With GRO a veth device polls its queue (Linux 5.13).
const SET_TX_CHECKSUM: u32 = 0x17;
const SET_GRO: u32 = 0x2c;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Makes eth0 of a namespace fit for XDP at its peer.
pub(crate) fn fit_for_xdp(namespace: &Namespace) -> Result<()> {
    namespace.run(|| {
        set("eth0", Value { command: SET_TX_CHECKSUM, data: 0 }).context("turn off checksum offload")?;
        set("eth0", Value { command: SET_GRO, data: 1 }).context("turn on GRO")
    })?
}

fn set(device: &str, mut value: Value) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: integers and a pointer, all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: a terminated name (16 bytes, zeroed, of which `device` fills fewer) and a value that lives until the
    // call returns.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
