//! Offloads of a device (ethtool).

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// `SIOCETHTOOL` (linux/sockios.h).
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// An offload, by the command that sets it (linux/ethtool.h).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Offload {
    /// `ETHTOOL_STXCSUM`: checksums of what is sent.
    TxChecksum = 0x17,
    /// `ETHTOOL_SGRO`: what is received is merged. A veth device then polls its queue (Linux 5.13).
    Gro = 0x2c,
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Turns an offload of a device in `namespace` on or off.
pub fn turn(namespace: &Namespace, device: &str, offload: Offload, on: bool) -> Result<()> {
    let value = Value { command: offload as u32, data: on.into() };
    namespace.run(|| set(device, value))?.with_context(|| format!("{offload:?} of {device}"))
}

/// Makes eth0 of `namespace` fit for native XDP at the other end of its veth pair: checksums are filled in, since a frame that
/// is redirected carries no note that they are missing, and its queue is polled (NAPI), or frames redirected to it are dropped.
pub fn fit_for_xdp(namespace: &Namespace) -> Result<()> {
    turn(namespace, "eth0", Offload::TxChecksum, false)?;
    turn(namespace, "eth0", Offload::Gro, true)
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
