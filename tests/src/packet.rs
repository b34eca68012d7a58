//! Packets in and out: built and decoded by `etherparse`, so that tests compare meanings and recomputed checksums,
//! not magic bytes.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Header, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket,
    TcpHeader, TransportSlice, UdpHeader,
};
use lb_common::{
    checksum::Sum,
    crc32c,
    family::{Address as _, Be16, Family, Protocol},
    flow::{FlowKey, Tuple},
    sctp,
};

/// Link-layer address of the near end.
pub const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Link-layer address of the far end.
pub const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// TCP flags as a test names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// SYN.
    pub syn: bool,
    /// ACK.
    pub ack: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack_number: u32,
}

/// A SYN.
pub const SYN: Tcp = Tcp { syn: true, ack: false, fin: false, rst: false, seq: 1000, ack_number: 0 };
/// A SYN with ACK.
pub const SYN_ACK: Tcp = Tcp { syn: true, ack: true, fin: false, rst: false, seq: 5000, ack_number: 1001 };
/// An ACK.
pub const ACK: Tcp = Tcp { syn: false, ack: true, fin: false, rst: false, seq: 1001, ack_number: 5001 };
/// A FIN.
pub const FIN: Tcp = Tcp { syn: false, ack: true, fin: true, rst: false, seq: 1001, ack_number: 5001 };
/// A RST.
pub const RST: Tcp = Tcp { syn: false, ack: false, fin: false, rst: true, seq: 1001, ack_number: 0 };

/// What rides on IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment.
    Tcp(Tcp),
    /// A UDP datagram.
    Udp,
    /// An SCTP packet of one chunk, of this type.
    Sctp(u8),
}

/// A packet as a test states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub src: (IpAddr, u16),
    /// Destination.
    pub dst: (IpAddr, u16),
    /// Transport.
    pub transport: Transport,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Payload.
    pub payload: Vec<u8>,
}

/// `family` address and port in the tuple's own types.
pub fn flow<F: Family>(src: (IpAddr, u16), dst: (IpAddr, u16), protocol: Protocol) -> FlowKey<F> {
    let addr = |ip| F::Addr::from_ip(ip).expect("an address of the family");
    let tuple =
        Tuple { src: addr(src.0), dst: addr(dst.0), src_port: Be16::new(src.1), dst_port: Be16::new(dst.1) };
    FlowKey::new(tuple, protocol)
}

impl Packet {
    /// A TCP packet without payload, TTL 64.
    pub fn tcp(src: (IpAddr, u16), dst: (IpAddr, u16), tcp: Tcp) -> Self {
        Self { src, dst, transport: Transport::Tcp(tcp), ttl: 64, payload: Vec::new() }
    }

    /// A UDP packet, TTL 64.
    pub fn udp(src: (IpAddr, u16), dst: (IpAddr, u16), payload: &[u8]) -> Self {
        Self { src, dst, transport: Transport::Udp, ttl: 64, payload: payload.to_vec() }
    }

    /// An SCTP packet of one empty chunk, TTL 64. A payload is the chunk's, of whole 4 bytes.
    pub fn sctp(src: (IpAddr, u16), dst: (IpAddr, u16), chunk: u8) -> Self {
        Self { src, dst, transport: Transport::Sctp(chunk), ttl: 64, payload: Vec::new() }
    }

    /// The same packet with `payload`.
    #[must_use]
    pub fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The same packet with `ttl`.
    #[must_use]
    pub fn with_ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Its protocol.
    pub fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp(_) => Protocol::TCP,
            Transport::Udp => Protocol::UDP,
            Transport::Sctp(_) => Protocol::SCTP,
        }
    }

    /// Its flow.
    pub fn flow<F: Family>(&self) -> FlowKey<F> {
        flow(self.src, self.dst, self.protocol())
    }

    /// The bytes on an Ethernet.
    pub fn bytes(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(FAR_MAC, NEAR_MAC);
        let builder = match (self.src.0, self.dst.0) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => builder.ipv4(src.octets(), dst.octets(), self.ttl),
            (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), self.ttl),
            _ => panic!("addresses of two families"),
        };
        let mut bytes = Vec::new();
        match &self.transport {
            Transport::Udp => builder.udp(self.src.1, self.dst.1).write(&mut bytes, &self.payload),
            Transport::Sctp(chunk) => {
                let packet = self.sctp_bytes(*chunk);
                builder.write(&mut bytes, IpNumber::SCTP, &packet)
            }
            Transport::Tcp(tcp) => {
                let mut header = TcpHeader::new(self.src.1, self.dst.1, tcp.seq, 4096);
                (header.syn, header.ack, header.fin, header.rst) = (tcp.syn, tcp.ack, tcp.fin, tcp.rst);
                header.acknowledgment_number = tcp.ack_number;
                builder.tcp_header(header).write(&mut bytes, &self.payload)
            }
        }
        .expect("write to memory");
        bytes
    }

    /// The SCTP packet; its verification tag is 0 where it has to be (RFC 9260, 8.5.1), and always the same elsewhere.
    fn sctp_bytes(&self, chunk: u8) -> Vec<u8> {
        let tag: u32 = if chunk == sctp::INIT { 0 } else { 0xcafe_f00d };
        let len = u16::try_from(4 + self.payload.len()).expect("a chunk that fits");
        let mut bytes = [self.src.1.to_be_bytes(), self.dst.1.to_be_bytes()].concat();
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([chunk, 0]);
        bytes.extend(len.to_be_bytes());
        bytes.extend(&self.payload);
        let checksum = crc32c::of(&bytes).to_le_bytes();
        bytes[sctp::CHECKSUM..sctp::HEADER_LEN].copy_from_slice(&checksum);
        bytes
    }

    /// Decodes an SCTP packet and checks its checksum, unless that is left to the hardware.
    fn decode_sctp(bytes: &[u8], (src, dst, ttl): (IpAddr, IpAddr, u8)) -> Self {
        let mut zeroed = bytes.to_vec();
        zeroed[sctp::CHECKSUM..sctp::HEADER_LEN].fill(0);
        let checksum = &bytes[sctp::CHECKSUM..sctp::HEADER_LEN];
        if checksum != [0; 4] {
            assert_eq!(checksum, crc32c::of(&zeroed).to_le_bytes(), "SCTP checksum");
        }
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        Self {
            src: (src, port(0)),
            dst: (dst, port(2)),
            transport: Transport::Sctp(bytes[sctp::CHUNK]),
            ttl,
            payload: bytes[sctp::CHUNK + 4..].to_vec(),
        }
    }

    /// Decodes Ethernet bytes and checks every checksum against one computed anew.
    pub fn decode(bytes: &[u8]) -> Self {
        let sliced = SlicedPacket::from_ethernet(bytes).expect("a packet");
        let (src, dst, ttl) = addresses(&sliced);
        let carried = sliced.net.as_ref().and_then(NetSlice::ip_payload_ref).expect("an IP packet");
        if carried.ip_number == IpNumber::SCTP {
            return Self::decode_sctp(carried.payload, (src, dst, ttl));
        }
        match sliced.transport.as_ref().expect("TCP or UDP") {
            TransportSlice::Tcp(slice) => {
                let header = slice.to_header();
                assert_eq!(header.checksum, tcp_checksum(src, dst, &header, slice.payload()), "TCP checksum");
                let tcp = Tcp {
                    syn: header.syn,
                    ack: header.ack,
                    fin: header.fin,
                    rst: header.rst,
                    seq: header.sequence_number,
                    ack_number: header.acknowledgment_number,
                };
                Self {
                    src: (src, header.source_port),
                    dst: (dst, header.destination_port),
                    transport: Transport::Tcp(tcp),
                    ttl,
                    payload: slice.payload().to_vec(),
                }
            }
            TransportSlice::Udp(slice) => {
                let header = slice.to_header();
                if header.checksum != 0 {
                    assert_eq!(
                        header.checksum,
                        udp_checksum(src, dst, &header, slice.payload()),
                        "UDP checksum"
                    );
                }
                Self {
                    src: (src, header.source_port),
                    dst: (dst, header.destination_port),
                    transport: Transport::Udp,
                    ttl,
                    payload: slice.payload().to_vec(),
                }
            }
            other => panic!("neither TCP, UDP nor SCTP: {other:?}"),
        }
    }
}

/// Addresses and TTL; checks the IPv4 header checksum.
fn addresses(sliced: &SlicedPacket<'_>) -> (IpAddr, IpAddr, u8) {
    match sliced.net.as_ref().expect("IP") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header checksum");
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), header.time_to_live)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.hop_limit())
        }
        other => panic!("not IP: {other:?}"),
    }
}

fn tcp_checksum(src: IpAddr, dst: IpAddr, header: &TcpHeader, payload: &[u8]) -> u16 {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
        }
        _ => panic!("addresses of two families"),
    }
    .expect("a payload that fits")
}

fn udp_checksum(src: IpAddr, dst: IpAddr, header: &UdpHeader, payload: &[u8]) -> u16 {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
        }
        _ => panic!("addresses of two families"),
    }
    .expect("a payload that fits")
}

/// The Internet checksum of `bytes` (RFC 1071): 0 if they contain it.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
    bytes.chunks(2).fold(Sum::default(), |sum, pair| sum.add16(word(pair))).checksum()
}

/// A port unreachable: who says it to whom, and the flow it quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Who says it.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// Source of the packet it quotes.
    pub quoted_src: (IpAddr, u16),
    /// Destination of the packet it quotes.
    pub quoted_dst: (IpAddr, u16),
}

impl Unreachable {
    /// Decodes an ICMP or ICMPv6 port unreachable and checks its checksum.
    pub fn decode(bytes: &[u8]) -> Self {
        let sliced = SlicedPacket::from_ethernet(bytes).expect("a packet");
        let (src, dst, _) = addresses(&sliced);
        let quoted = match sliced.transport.as_ref().expect("ICMP") {
            TransportSlice::Icmpv4(icmp) => {
                let header: Icmpv4Header = icmp.header();
                assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, 3), "port unreachable (RFC 792)");
                assert_eq!(header.checksum, header.icmp_type.calc_checksum(icmp.payload()), "ICMP checksum");
                icmp.payload()
            }
            TransportSlice::Icmpv6(icmp) => {
                assert_eq!((icmp.type_u8(), icmp.code_u8()), (1, 4), "port unreachable (RFC 4443)");
                let (IpAddr::V6(from), IpAddr::V6(to)) = (src, dst) else { panic!("ICMPv6 over IPv4") };
                assert!(icmp.is_checksum_valid(from.octets(), to.octets()), "ICMPv6 checksum");
                icmp.payload()
            }
            other => panic!("not ICMP: {other:?}"),
        };
        let (src_port, dst_port) = quoted_ports(quoted);
        let (quoted_src, quoted_dst) = quoted_addresses(quoted);
        Self { src, dst, quoted_src: (quoted_src, src_port), quoted_dst: (quoted_dst, dst_port) }
    }
}

fn quoted_addresses(quoted: &[u8]) -> (IpAddr, IpAddr) {
    if quoted[0] >> 4 == 4 {
        let (header, _) = Ipv4Header::from_slice(quoted).expect("a quoted header");
        (header.source.into(), header.destination.into())
    } else {
        let (header, _) = Ipv6Header::from_slice(quoted).expect("a quoted header");
        (header.source.into(), header.destination.into())
    }
}

fn quoted_ports(quoted: &[u8]) -> (u16, u16) {
    let at = if quoted[0] >> 4 == 4 { usize::from(quoted[0] & 15) * 4 } else { 40 };
    let port = |at: usize| u16::from_be_bytes([quoted[at], quoted[at + 1]]);
    (port(at), port(at + 2))
}

/// An ICMP message: an error with what it quotes, or an echo with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Who says it.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type and code.
    pub kind: (u8, u8),
    /// What stands behind the checksum: nothing, an MTU, or an echo's identifier and number.
    pub rest: u32,
    /// Everything else.
    pub payload: Vec<u8>,
}

impl Icmp {
    /// An error from `src` about `packet`, an Ethernet frame, of which it quotes all but the link layer.
    pub fn about(src: IpAddr, packet: &[u8], kind: (u8, u8), rest: u32) -> Self {
        let payload = packet[14..].to_vec();
        let (dst, _) = quoted_addresses(&payload);
        Self { src, dst, ttl: 64, kind, rest, payload }
    }

    /// The same quoting so many bytes only.
    #[must_use]
    pub fn quoting(mut self, bytes: usize) -> Self {
        self.payload.truncate(bytes);
        self
    }

    /// The bytes on an Ethernet.
    pub fn bytes(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(FAR_MAC, NEAR_MAC);
        let ((kind, code), rest) = (self.kind, self.rest.to_be_bytes());
        let mut bytes = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => builder
                .ipv4(src.octets(), dst.octets(), self.ttl)
                .icmpv4_raw(kind, code, rest)
                .write(&mut bytes, &self.payload),
            (IpAddr::V6(src), IpAddr::V6(dst)) => builder
                .ipv6(src.octets(), dst.octets(), self.ttl)
                .icmpv6_raw(kind, code, rest)
                .write(&mut bytes, &self.payload),
            _ => panic!("addresses of two families"),
        }
        .expect("write to memory");
        bytes
    }

    /// Decodes an ICMP message from an Ethernet and checks its checksums.
    pub fn decode(bytes: &[u8]) -> Self {
        let sliced = SlicedPacket::from_ethernet(bytes).expect("a packet");
        let (src, dst, ttl) = addresses(&sliced);
        let (kind, rest, payload) = match sliced.transport.as_ref().expect("ICMP") {
            TransportSlice::Icmpv4(icmp) => {
                assert_eq!(internet_checksum(icmp.slice()), 0, "ICMP checksum");
                ((icmp.type_u8(), icmp.code_u8()), icmp.bytes5to8(), icmp.payload())
            }
            TransportSlice::Icmpv6(icmp) => {
                let (IpAddr::V6(from), IpAddr::V6(to)) = (src, dst) else { panic!("ICMPv6 over IPv4") };
                assert!(icmp.is_checksum_valid(from.octets(), to.octets()), "ICMPv6 checksum");
                ((icmp.type_u8(), icmp.code_u8()), icmp.bytes5to8(), icmp.payload())
            }
            other => panic!("not ICMP: {other:?}"),
        };
        Self { src, dst, ttl, kind, rest: u32::from_be_bytes(rest), payload: payload.to_vec() }
    }
}

/// `bytes` behind a tag that says a priority alone (IEEE 802.1Q: VLAN 0).
pub fn prioritized(bytes: &[u8]) -> Vec<u8> {
    tagged(bytes, [0xe0, 0x00])
}

/// `bytes` in VLAN 42.
pub fn in_vlan(bytes: &[u8]) -> Vec<u8> {
    tagged(bytes, [0x00, 0x2a])
}

fn tagged(bytes: &[u8], tag: [u8; 2]) -> Vec<u8> {
    [&bytes[..12], &[0x81, 0x00], &tag, &bytes[12..]].concat()
}

/// An IPv4 packet with four bytes of options (no-operation), checksums right.
pub fn with_ipv4_options(bytes: &[u8]) -> Vec<u8> {
    let (mut header, rest) = Ipv4Header::from_slice(&bytes[14..]).expect("IPv4");
    header.options = [1, 1, 1, 1].into();
    header.total_len += 4;
    header.header_checksum = header.calc_header_checksum();
    let mut packet = bytes[..14].to_vec();
    header.write(&mut packet).expect("write to memory");
    packet.extend(rest);
    packet
}

/// An IPv6 packet with a destination options header before its transport header.
pub fn with_ipv6_extension(bytes: &[u8]) -> Vec<u8> {
    let (mut header, rest) = Ipv6Header::from_slice(&bytes[14..]).expect("IPv6");
    let next = header.next_header;
    header.next_header = IpNumber::IPV6_DESTINATION_OPTIONS;
    header.payload_length += 8;
    header.flow_label = Ipv6FlowLabel::ZERO;
    let mut packet = bytes[..14].to_vec();
    header.write(&mut packet).expect("write to memory");
    packet.extend([next.0, 0, 1, 4, 0, 0, 0, 0]);
    packet.extend(rest);
    packet
}

/// Splits an IPv4 or IPv6 packet into two fragments, the first with `first` bytes of payload (a multiple of 8).
pub fn fragments(bytes: &[u8], first: usize) -> [Vec<u8>; 2] {
    if bytes[14] >> 4 == 4 { fragments4(bytes, first) } else { fragments6(bytes, first) }
}

fn fragments4(bytes: &[u8], first: usize) -> [Vec<u8>; 2] {
    let (header, rest) = Ipv4Header::from_slice(&bytes[14..]).expect("IPv4");
    let fragment = |offset: usize, more: bool, payload: &[u8]| {
        let mut header = header.clone();
        header.identification = 0x1234;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = (u16::try_from(offset / 8).expect("small")).try_into().expect("small");
        header.set_payload_len(payload.len()).expect("small");
        header.header_checksum = header.calc_header_checksum();
        let mut packet = bytes[..14].to_vec();
        header.write(&mut packet).expect("write to memory");
        packet.extend(payload);
        packet
    };
    [fragment(0, true, &rest[..first]), fragment(first, false, &rest[first..])]
}

fn fragments6(bytes: &[u8], first: usize) -> [Vec<u8>; 2] {
    let (header, rest) = Ipv6Header::from_slice(&bytes[14..]).expect("IPv6");
    let fragment = |offset: usize, more: u16, payload: &[u8]| {
        let mut outer = header.clone();
        outer.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
        outer.payload_length = u16::try_from(payload.len() + 8).expect("small");
        let mut packet = bytes[..14].to_vec();
        outer.write(&mut packet).expect("write to memory");
        packet.extend([header.next_header.0, 0]);
        packet.extend((u16::try_from(offset).expect("small") | more).to_be_bytes());
        packet.extend([0xde, 0xad, 0xbe, 0xef]);
        packet.extend(payload);
        packet
    };
    [fragment(0, 1, &rest[..first]), fragment(first, 0, &rest[first..])]
}

/// The packet in a tunnel between two nodes, as it is on the wire: traffic class and flow label are the packet's own.
pub fn tunnelled(bytes: &[u8], src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let inner = &bytes[14..];
    let mut packet = bytes[..14].to_vec();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = u16::from_be_bytes([inner[2], inner[3]]);
            let mut header =
                Ipv4Header::new(len, 64, IpNumber::IPV4, src.octets(), dst.octets()).expect("small");
            let (own, _) = Ipv4Header::from_slice(inner).expect("IPv4");
            (header.dscp, header.ecn, header.dont_fragment) = (own.dscp, own.ecn, true);
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut packet).expect("write to memory");
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (own, _) = Ipv6Header::from_slice(inner).expect("IPv6");
            let header = Ipv6Header {
                payload_length: own.payload_length + 40,
                next_header: IpNumber::IPV6,
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
                ..own
            };
            header.write(&mut packet).expect("write to memory");
        }
        _ => panic!("addresses of two families"),
    }
    packet.extend(inner);
    packet
}

/// The packet with ECN field `ecn` in its outermost header.
pub fn with_ecn(bytes: &[u8], ecn: u8) -> Vec<u8> {
    let mut packet = bytes.to_vec();
    if packet[14] >> 4 == 4 {
        packet[15] = packet[15] & !3 | ecn;
        let (header, _) = Ipv4Header::from_slice(&packet[14..]).expect("IPv4");
        packet[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    } else {
        packet[15] = packet[15] & !0x30 | ecn << 4;
    }
    packet
}
