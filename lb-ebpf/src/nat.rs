//! Rewrites a packet's tuple: addresses, ports, TTL and every checksum that covers them, in one place.

use core::mem::offset_of;

use lb_common::{
    checksum::{self, Sum},
    crc32c,
    family::{Addr4, Addr6, Be16, Protocol, V4, V6},
    flow::Tuple,
    sctp,
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
#[inline(always)]
pub fn rewrite<F: FamilyRewrite, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    hop: Hop,
) -> Result<(), Refused> {
    if headers.flow.protocol == Protocol::SCTP {
        rewrite_sctp(packet, headers, to, hop)
    } else {
        rewrite_summed(packet, headers, to, hop)
    }
}

/// [`rewrite`] in line, for the way that most packets take.
#[inline(always)]
pub fn rewrite_here<F: FamilyRewrite, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    hop: Hop,
) -> Result<(), Refused> {
    if headers.flow.protocol == Protocol::SCTP {
        rewrite_sctp(packet, headers, to, hop)
    } else {
        summed(packet, headers, to, hop)
    }
}

/// Rewrites TTL and addresses.
#[inline(always)]
fn rewrite_header<F: FamilyRewrite, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    hop: Hop,
) -> Result<(), Refused> {
    let ttl = if hop == Hop::Yes { headers.ttl - 1 } else { headers.ttl };
    F::write(packet, headers, to, ttl)
}

/// Rewrites a packet with an Internet checksum: TCP, UDP.
///
/// A later fragment has no ports and no transport checksum: the first one's checksum covers the whole datagram and
/// was updated with it.
#[inline(always)]
fn summed<F: FamilyRewrite, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    hop: Hop,
) -> Result<(), Refused> {
    rewrite_header(packet, headers, to, hop)?;
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
        pseudo: checksum::address_difference(from, to),
        segment: checksum::port_difference(from, to),
        protocol: headers.flow.protocol,
        ipv6: F::IPV6,
    })
}

/// [`summed`] as a BPF function of its own.
#[inline(never)]
fn rewrite_summed<F: FamilyRewrite, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    hop: Hop,
) -> Result<(), Refused> {
    summed(packet, headers, to, hop)
}

/// Rewrites an SCTP packet: of its CRC32c the ports' part only, for it does not cover the addresses.
///
/// 0 stays 0: either the hardware, or the stack at the last device, is to compute the checksum and expects this
/// (`CHECKSUM_PARTIAL`, `csum_not_inet`), or both ends agreed to do without (RFC 9653). A true CRC of 0 looks so once in
/// 2^32 packets; that packet is then sent again. A first fragment does not say how long the packet is, so its
/// checksum cannot follow: SCTP cuts its data to the path's MTU itself, and its packets are not fragmented.
///
/// A BPF function beside that of TCP and UDP, out of their way; inside it there would be no stack left (Linux 6.1).
#[inline(never)]
fn rewrite_sctp<F: FamilyRewrite, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    hop: Hop,
) -> Result<(), Refused> {
    rewrite_header(packet, headers, to, hop)?;
    let changed = word(&headers.flow.tuple) ^ word(to);
    if changed == 0 || headers.fragment == Fragment::Later {
        return Ok(());
    }
    let checksum: u32 = packet.read(headers.l4 + sctp::CHECKSUM).ok_or(Refused)?;
    packet.write(headers.l4, &word(to))?;
    if checksum == 0 {
        return Ok(());
    }
    if headers.fragment == Fragment::First {
        return Err(Refused);
    }
    let len = headers.ip_len.wrapping_sub((headers.l4 - headers.l3) as u32);
    let updated = checksum ^ crc32c::difference(changed.to_le(), len).to_le();
    packet.write(headers.l4 + sctp::CHECKSUM, &updated)
}

/// The ports of a tuple as they lie in memory.
#[inline(always)]
const fn word<F: FamilyRewrite>(tuple: &Tuple<F>) -> u32 {
    let ([a, b], [c, d]) = (tuple.src_port.0, tuple.dst_port.0);
    u32::from_ne_bytes([a, b, c, d])
}

/// Sum of a pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).
#[inline(always)]
pub fn pseudo_header<F: FamilyRewrite>(src: F::Addr, dst: F::Addr, protocol: Protocol, len: u16) -> Sum {
    let words = [0, protocol.0];
    Sum::default().add_addr(src).add_addr(dst).add16(u16::from_ne_bytes(words)).add16(len.to_be())
}
