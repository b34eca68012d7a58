//! Rewrites a packet's tuple: addresses, ports, TTL and every checksum that covers them, in one place.

use core::mem::offset_of;

use lb_common::{
    checksum::{self, Sum},
    family::{Addr4, Addr6, Be16, Protocol, V4, V6},
    flow::Tuple,
};

use crate::{
    packet::{ChecksumChange, Packet, Refused},
    parse::{FamilyHeader, Fragment, Headers},
};

/// Offset of the checksum in a TCP header (RFC 9293).
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header (RFC 768).
pub const UDP_CHECKSUM: usize = 6;

/// Whether the packet takes a hop here: the program forwards it itself, so it lowers TTL or hop limit itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// The stack forwards it.
    No,
    /// The program forwards it.
    Yes,
}

/// The part of an IP header that a rewrite changes, as it is on the wire.
pub trait FamilyRewrite: FamilyHeader {
    /// Writes TTL, addresses and, where there is one, the header checksum.
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        to: &Tuple<Self>,
        ttl: u8,
    ) -> Result<(), Refused>;
    /// True for IPv6.
    const IPV6: bool;
}

/// Bytes 8 to 19 of an IPv4 header.
#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv4Tail {
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    src: Addr4,
    dst: Addr4,
}

const _: () = assert!(offset_of!(Ipv4Tail, dst) == 8 && size_of::<Ipv4Tail>() == 12);

impl FamilyRewrite for V4 {
    const IPV6: bool = false;

    /// The header checksum is updated here and not by `bpf_l3_csum_replace`: header and checksum change together,
    /// so their sum, and with it `CHECKSUM_COMPLETE`, stays the same.
    #[inline(always)]
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<V4>,
        to: &Tuple<V4>,
        ttl: u8,
    ) -> Result<(), Refused> {
        let protocol = headers.flow.protocol.0;
        let checksum: u16 = packet.read(headers.l3 + 10).ok_or(Refused)?;
        let difference = checksum::address_difference(&headers.flow.tuple, to)
            .add16(u16::from_ne_bytes([ttl, protocol]))
            .add16(!u16::from_ne_bytes([headers.ttl, protocol]));
        let tail = Ipv4Tail {
            ttl,
            protocol,
            checksum: checksum::update(checksum, difference).to_ne_bytes(),
            src: to.src,
            dst: to.dst,
        };
        packet.write(headers.l3 + Self::REWRITE_OFFSET, &tail)
    }
}

/// Bytes 4 to 39 of an IPv6 header.
#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv6Tail {
    payload_len: Be16,
    next_header: u8,
    hop_limit: u8,
    src: Addr6,
    dst: Addr6,
}

const _: () = assert!(offset_of!(Ipv6Tail, hop_limit) == 3 && size_of::<Ipv6Tail>() == 36);

impl FamilyRewrite for V6 {
    const IPV6: bool = true;

    #[inline(always)]
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<V6>,
        to: &Tuple<V6>,
        ttl: u8,
    ) -> Result<(), Refused> {
        let kept: [u8; 4] = packet.read(headers.l3 + Self::REWRITE_OFFSET).ok_or(Refused)?;
        let [len0, len1, next_header, _] = kept;
        let payload_len = Be16([len0, len1]);
        let tail = Ipv6Tail { payload_len, next_header, hop_limit: ttl, src: to.src, dst: to.dst };
        packet.write(headers.l3 + Self::REWRITE_OFFSET, &tail)
    }
}

/// Rewrites the packet's tuple to `to`.
///
/// A later fragment has no ports and no transport checksum: the first one's checksum covers the whole datagram and
/// was updated with it.
#[inline(never)]
pub fn rewrite<F: FamilyRewrite, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    hop: Hop,
) -> Result<(), Refused> {
    let ttl = if hop == Hop::Yes { headers.ttl - 1 } else { headers.ttl };
    F::write(packet, headers, to, ttl)?;
    if headers.fragment == Fragment::Later {
        return Ok(());
    }
    let from = &headers.flow.tuple;
    if to.src_port != from.src_port || to.dst_port != from.dst_port {
        packet.write::<[Be16; 2]>(headers.l4, &[to.src_port, to.dst_port])?;
    }
    let field = if headers.flow.protocol == Protocol::TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    packet.update_checksum(ChecksumChange {
        offset: headers.l4 + field,
        pseudo: fold(checksum::address_difference(from, to)),
        segment: fold(checksum::port_difference(from, to)),
        protocol: headers.flow.protocol,
        ipv6: F::IPV6,
    })
}

/// A difference as the checksum helpers take it; 0 says that nothing changes.
#[inline(always)]
const fn fold(difference: Sum) -> u32 {
    match difference.fold() {
        // Ones' complement has two zeros: removing and adding the same words gives the other one.
        0xffff => 0,
        folded => folded as u32,
    }
}

/// Sum of a pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).
#[inline(always)]
pub fn pseudo_header<F: FamilyRewrite>(src: F::Addr, dst: F::Addr, protocol: Protocol, len: u16) -> Sum {
    let words = [0, protocol.0];
    Sum::default().add_addr(src).add_addr(dst).add16(u16::from_ne_bytes(words)).add16(len.to_be())
}
