//! What answers of our own are made of: headers, the memory to build them in, and the way back.

use lb_common::{
    checksum::Sum,
    conntrack::TcpFlags,
    family::{Addr4, Addr6, Be16, Protocol, V4, V6},
};

use crate::{
    hook::Back,
    maps::FamilyMaps,
    nat::{FamilyRewrite, pseudo_header},
    packet::{CHUNK, Packet, Refused},
    parse::{ETHERNET_LEN, FamilyHeader, Headers},
};

/// Length of an ICMP error header.
pub const ICMP_LEN: usize = 8;

/// TTL and hop limit of answers (RFC 1700's recommendation).
pub const TTL: u8 = 64;
/// A family's answers.
pub trait FamilyAnswer: FamilyRewrite + FamilyError {
    /// Its IP header.
    type Header: Copy;
    /// The first word of a header of ours, unless another packet's is taken.
    const FIRST_WORD: [u8; 4];
    /// The header of a packet between two ends, from and to, with `len` bytes behind it. Its traffic class and, in IPv6, flow label
    /// are those of a header that begins with `first_word`.
    fn header(
        ends: (Self::Addr, Self::Addr),
        first_word: [u8; 4],
        protocol: Protocol,
        len: u16,
    ) -> Self::Header;
    /// Sum of what an ICMP checksum covers besides the message: nothing, or the pseudo header (RFC 4443, 2.3).
    fn icmp_pseudo_header(headers: &Headers<Self>, src: Self::Addr, len: u16) -> Sum;
}

/// An IPv4 header without options (RFC 791).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    total_len: Be16,
    id: u16,
    fragment: Be16,
    ttl: u8,
    protocol: Protocol,
    checksum: u16,
    src: Addr4,
    dst: Addr4,
}

/// An IPv6 header (RFC 8200).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ipv6Header {
    version_class_flow: [u8; 4],
    payload_len: Be16,
    next_header: Protocol,
    hop_limit: u8,
    src: Addr6,
    dst: Addr6,
}

const _: () = assert!(size_of::<Ipv4Header>() == V4::HEADER_LEN);
const _: () = assert!(size_of::<Ipv6Header>() == V6::HEADER_LEN);

/// Don't fragment.
const DONT_FRAGMENT: u16 = 0x4000;

impl FamilyAnswer for V4 {
    type Header = Ipv4Header;

    const FIRST_WORD: [u8; 4] = [0x45, 0, 0, 0];

    #[inline(always)]
    fn header((src, dst): (Addr4, Addr4), [_, tos, ..]: [u8; 4], protocol: Protocol, len: u16) -> Ipv4Header {
        let total_len = Be16::new(Self::HEADER_LEN as u16 + len);
        let sum = Sum::default()
            .add16(u16::from_ne_bytes([0x45, tos]))
            .add16(u16::from_ne_bytes(total_len.0))
            .add16(DONT_FRAGMENT.to_be())
            .add16(u16::from_ne_bytes([TTL, protocol.0]))
            .add_addr(src)
            .add_addr(dst);
        Ipv4Header {
            version_ihl: 0x45,
            tos,
            total_len,
            id: 0,
            fragment: Be16::new(DONT_FRAGMENT),
            ttl: TTL,
            protocol,
            checksum: sum.checksum(),
            src,
            dst,
        }
    }

    #[inline(always)]
    fn icmp_pseudo_header(_headers: &Headers<V4>, _src: Addr4, _len: u16) -> Sum {
        Sum::default()
    }
}

impl FamilyAnswer for V6 {
    type Header = Ipv6Header;

    const FIRST_WORD: [u8; 4] = [0x60, 0, 0, 0];

    #[inline(always)]
    fn header((src, dst): (Addr6, Addr6), first_word: [u8; 4], protocol: Protocol, len: u16) -> Ipv6Header {
        Ipv6Header {
            version_class_flow: first_word,
            payload_len: Be16::new(len),
            next_header: protocol,
            hop_limit: TTL,
            src,
            dst,
        }
    }

    #[inline(always)]
    fn icmp_pseudo_header(headers: &Headers<V6>, src: Addr6, len: u16) -> Sum {
        pseudo_header::<V6>(src, headers.flow.tuple.src, Protocol::ICMPV6, len)
    }
}

/// A TCP header without options (RFC 9293).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TcpHeader {
    pub src_port: Be16,
    pub dst_port: Be16,
    pub seq: [u8; 4],
    pub ack: [u8; 4],
    pub data_offset: u8,
    pub flags: TcpFlags,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

/// An ICMP error without its quotation (RFC 792, RFC 4443).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct IcmpHeader {
    pub type_code: [u8; 2],
    pub checksum: u16,
    pub rest: [u8; 4],
}

/// What an error says: type and code, and the four bytes behind the checksum.
#[derive(Clone, Copy)]
pub struct Message {
    pub type_code: [u8; 2],
    pub rest: [u8; 4],
}

/// A family's errors.
pub trait FamilyError: FamilyMaps {
    /// Bytes it quotes at most, and what that is in chunks.
    const QUOTED_MAX: usize;
    /// Nobody listens there.
    const PORT_UNREACHABLE: Message;
    /// TTL or hop limit has run out.
    const TIME_EXCEEDED: Message;
    /// The next hop takes no more than `mtu` bytes (RFC 1191; RFC 4443, 3.2).
    fn too_big(mtu: u16) -> Message;
}

impl FamilyError for V4 {
    const QUOTED_MAX: usize = 576 - 20 - ICMP_LEN;
    const PORT_UNREACHABLE: Message = Message { type_code: [3, 3], rest: [0; 4] };
    const TIME_EXCEEDED: Message = Message { type_code: [11, 0], rest: [0; 4] };

    #[inline(always)]
    fn too_big(mtu: u16) -> Message {
        let [high, low] = mtu.to_be_bytes();
        Message { type_code: [3, 4], rest: [0, 0, high, low] }
    }
}

impl FamilyError for V6 {
    const QUOTED_MAX: usize = 1280 - 40 - ICMP_LEN;
    const PORT_UNREACHABLE: Message = Message { type_code: [1, 4], rest: [0; 4] };
    const TIME_EXCEEDED: Message = Message { type_code: [3, 0], rest: [0; 4] };

    #[inline(always)]
    fn too_big(mtu: u16) -> Message {
        let [high, low] = mtu.to_be_bytes();
        Message { type_code: [2, 0], rest: [0, 0, high, low] }
    }
}

/// Memory to build an answer in.
#[repr(C)]
pub struct Answer<F: FamilyAnswer> {
    /// Who answers.
    pub from: F::Addr,
    /// Its IP header.
    pub ip: F::Header,
    /// The TCP header of a RST.
    pub tcp: TcpHeader,
    /// The ICMP header of an error.
    pub icmp: IcmpHeader,
    /// A piece of what an error quotes.
    pub chunk: [u32; CHUNK / 4],
}

/// Sends the answer back: link-layer addresses exchanged, where there are any.
#[inline(always)]
pub fn send_back<P: Packet>(packet: &mut P, l3: usize, back: Back) -> Result<(), Refused> {
    if l3 >= ETHERNET_LEN {
        packet.pull();
        let [dst, src]: [[u8; 6]; 2] = packet.read(0).ok_or(Refused)?;
        packet.write(0, &[src, dst])?;
    }
    let ifindex = packet.ifindex();
    match back {
        Back::Device => packet.send_raw(ifindex),
        Back::Socket => packet.receive(ifindex),
    }
}
