//! `FRAGMENTS4`, `FRAGMENTS6`: the ports of a datagram whose later fragments carry none (RFC 791, RFC 8200).

use crate::family::{Be16, Family, Protocol, V4, V6};

/// Key of `FRAGMENTS`: what all fragments of one datagram share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentKey<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Identification, as on the wire (IPv4: 16 bits in the first two bytes).
    pub id: [u8; 4],
    /// Protocol.
    pub protocol: Protocol,
    /// Zero.
    pub _pad: [u8; 3],
}

/// Value of `FRAGMENTS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentValue {
    /// Source port.
    pub src_port: Be16,
    /// Destination port.
    pub dst_port: Be16,
}

const _: () = assert!(size_of::<FragmentKey<V4>>() == 16);
const _: () = assert!(size_of::<FragmentKey<V6>>() == 40);
const _: () = assert!(size_of::<FragmentValue>() == 4);
