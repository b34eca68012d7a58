//! `SOCK_REV_NAT4`, `SOCK_REV_NAT6`: what a socket dialled before a socket hook changed it.
//!
//! An entry holds the backend in its key, so it proves itself: a socket that later talks to another peer finds
//! nothing and sees the address it really has.

use crate::{
    family::{Be16, Family, Protocol, V4, V6},
    id::ServicePortId,
};

/// Key of `SOCK_REV_NAT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SockRevNatKey<F: Family> {
    /// The socket's cookie (low word first, host order), as `bpf_get_socket_cookie` and `SO_COOKIE` give it.
    pub cookie: [u32; 2],
    /// Backend address.
    pub addr: F::Addr,
    /// Backend port.
    pub port: Be16,
    /// Protocol.
    pub protocol: Protocol,
    /// Zero.
    pub _pad: u8,
}

impl<F: Family> SockRevNatKey<F> {
    /// The key of the socket `cookie` talking to backend `addr:port`.
    #[inline(always)]
    pub const fn new(cookie: u64, addr: F::Addr, port: Be16, protocol: Protocol) -> Self {
        Self { cookie: [cookie as u32, (cookie >> 32) as u32], addr, port, protocol, _pad: 0 }
    }
}

/// Value of `SOCK_REV_NAT`: what the socket dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SockRevNatValue<F: Family> {
    /// The VIP.
    pub addr: F::Addr,
    /// The frontend's port.
    pub port: Be16,
    /// Zero.
    pub _pad: u16,
    /// The service port it belonged to.
    pub service_port: ServicePortId,
}

const _: () = assert!(size_of::<SockRevNatKey<V4>>() == 16);
const _: () = assert!(size_of::<SockRevNatKey<V6>>() == 28);
const _: () = assert!(size_of::<SockRevNatValue<V4>>() == 12);
const _: () = assert!(size_of::<SockRevNatValue<V6>>() == 24);
