//! Refusal: a TCP RST or an ICMP port unreachable in place of the packet nobody serves.
//!
//! The answer is built in the packet's own buffer and sent back where it came from. TCP gets a RST (RFC 9293,
//! 3.10.7.1) and not kube-proxy's ICMP: both end in ECONNREFUSED, but a RST is not rate limited or filtered on the
//! way. UDP gets port unreachable (RFC 792; RFC 4443, 3.1). A CPU sends so many answers a second and no more
//! (`lb_common::allowance`).
//!
//! A packet from a local socket may carry `CHECKSUM_PARTIAL`: the kernel has put only the pseudo header's sum into
//! the checksum field, and whoever sends the packet last adds the rest. tc cannot see that flag, but it can see the
//! sum, and must then answer in kind: a complete checksum would be added to once more.

use lb_common::{
    checksum::Sum,
    conntrack::TcpFlags,
    family::{Addr4, Addr6, Be16, Protocol, V4, V6},
    verdict::Verdict,
};

use crate::{
    allowance,
    icmp_error::{self, FamilyError, IcmpHeader},
    nat::{FamilyRewrite, pseudo_header},
    packet::{CHUNK, Packet, Refused},
    parse::{ETHERNET_LEN, FamilyHeader, Fragment, Headers},
};

/// Where the refused packet came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Back {
    /// From the device: the answer leaves by it.
    Device,
    /// From a socket of this node: the answer comes in by the device.
    Socket,
}

/// TTL and hop limit of answers (RFC 1700's recommendation).
pub const TTL: u8 = 64;
/// Length of a TCP header without options.
const TCP_LEN: usize = 20;

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
struct TcpHeader {
    src_port: Be16,
    dst_port: Be16,
    seq: [u8; 4],
    ack: [u8; 4],
    data_offset: u8,
    flags: TcpFlags,
    window: u16,
    checksum: u16,
    urgent: u16,
}

/// Memory to build an answer in.
#[repr(C)]
pub struct Answer<F: FamilyAnswer> {
    /// Who answers.
    pub from: F::Addr,
    /// Its IP header.
    pub ip: F::Header,
    tcp: TcpHeader,
    /// The ICMP header of an error.
    pub icmp: IcmpHeader,
    /// A piece of what an error quotes.
    pub chunk: [u32; CHUNK / 4],
}

/// Answers a packet nobody serves: TCP by a RST, UDP and SCTP by a port unreachable, as kube-proxy's REJECT does.
#[inline(never)]
pub fn refuse<F: FamilyAnswer, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    answer: &mut Answer<F>,
    back: Back,
) -> Verdict {
    if headers.fragment == Fragment::Later || headers.tcp_flags.has(TcpFlags::RST) {
        return Verdict::RefusedSilently;
    }
    if !allowance::take() {
        return Verdict::RefusalLimit;
    }
    answer.from = headers.flow.tuple.dst;
    let built = if headers.flow.protocol == Protocol::TCP {
        reset(packet, headers, answer)
    } else {
        icmp_error::tell(packet, headers, answer, F::PORT_UNREACHABLE)
    };
    match built.and_then(|()| send_back(packet, headers.l3, back)) {
        Ok(()) => Verdict::Refused,
        Err(Refused) => Verdict::RefusalFailed,
    }
}

/// Turns the packet into a RST.
#[inline(always)]
fn reset<F: FamilyAnswer, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    answer: &mut Answer<F>,
) -> Result<(), Refused> {
    let refused = &mut answer.tcp;
    *refused = packet.read(headers.l4).ok_or(Refused)?;
    let partial = is_partial(headers, refused.checksum);
    let (seq, ack, flags) = if refused.flags.has(TcpFlags::ACK) {
        (refused.ack, [0; 4], TcpFlags::RST)
    } else {
        let ack = u32::from_be_bytes(refused.seq).wrapping_add(sequence_len(headers, refused));
        ([0; 4], ack.to_be_bytes(), TcpFlags(TcpFlags::RST.0 | TcpFlags::ACK.0))
    };
    let tuple = &headers.flow.tuple;
    answer.tcp = TcpHeader {
        src_port: tuple.dst_port,
        dst_port: tuple.src_port,
        seq,
        ack,
        data_offset: (TCP_LEN as u8 / 4) << 4,
        flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let pseudo = pseudo_header::<F>(tuple.dst, tuple.src, Protocol::TCP, TCP_LEN as u16);
    answer.tcp.checksum = if partial { pseudo.fold() } else { pseudo.add_tcp(&answer.tcp).checksum() };
    answer.ip = F::header((answer.from, tuple.src), F::FIRST_WORD, Protocol::TCP, TCP_LEN as u16);
    packet.resize((headers.l3 + F::HEADER_LEN + TCP_LEN) as u32)?;
    packet.write(headers.l3, &answer.ip)?;
    packet.write(headers.l3 + F::HEADER_LEN, &answer.tcp)
}

/// Sequence numbers a segment takes: its data, SYN and FIN (RFC 9293, 3.4).
#[inline(always)]
fn sequence_len<F: FamilyAnswer>(headers: &Headers<F>, tcp: &TcpHeader) -> u32 {
    let header_len = (headers.l4 - headers.l3) as u32 + (tcp.data_offset >> 4) as u32 * 4;
    let data = headers.ip_len.saturating_sub(header_len);
    data + tcp.flags.has(TcpFlags::SYN) as u32 + tcp.flags.has(TcpFlags::FIN) as u32
}

/// True if the checksum field holds no more than the pseudo header's sum: `CHECKSUM_PARTIAL`. A complete checksum
/// looks so once in 65,536 packets; that answer is then lost and the client's next SYN gets one.
#[inline(always)]
fn is_partial<F: FamilyAnswer>(headers: &Headers<F>, checksum: u16) -> bool {
    let tuple = &headers.flow.tuple;
    let len = headers.ip_len.wrapping_sub((headers.l4 - headers.l3) as u32) as u16;
    pseudo_header::<F>(tuple.src, tuple.dst, headers.flow.protocol, len).fold() == checksum
}

/// Sums a header word by word.
trait AddHeader {
    fn add_tcp(self, tcp: &TcpHeader) -> Self;
}

impl AddHeader for Sum {
    #[inline(always)]
    fn add_tcp(self, tcp: &TcpHeader) -> Self {
        self.add16(u16::from_ne_bytes(tcp.src_port.0))
            .add16(u16::from_ne_bytes(tcp.dst_port.0))
            .add(u32::from_ne_bytes(tcp.seq))
            .add(u32::from_ne_bytes(tcp.ack))
            .add16(u16::from_ne_bytes([tcp.data_offset, tcp.flags.0]))
    }
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
