//! From bytes to [`Headers`]: link layer, VLAN tags, IPv4 with options, IPv6 with extension headers, fragments, TCP,
//! UDP and SCTP. What is none of these is not ours.

use lb_common::{
    conntrack::TcpFlags,
    family::{Addr4, Be16, Family, Protocol, V4, V6},
    flow::FlowKey,
    fragment::{FragmentKey, FragmentValue},
    limits, sctp,
};

use crate::{maps::FamilyMaps, packet::Packet};

/// Length of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// EtherType of a VLAN tag.
const VLAN: u16 = 0x8100;
/// Length of a VLAN tag.
const VLAN_TAG_LEN: usize = 4;
/// The VLAN in a tag.
pub const VLAN_ID: u16 = 0x0fff;
/// Bytes of a transport header up to the last that is read: TCP's flags, the type of SCTP's first chunk.
const READ_OF_TRANSPORT: usize = 14;

/// Where in its datagram a packet stands.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// Not fragmented.
    Whole = 0,
    /// The first of several: has the ports.
    First = 1,
    /// A later one: the ports come from the first.
    Later = 2,
}

/// What the stages need to know of a packet.
#[repr(C)]
pub struct Headers<F: Family> {
    /// The 5-tuple.
    pub flow: FlowKey<F>,
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the transport header (of the payload, in a later fragment).
    pub l4: usize,
    /// Length of the IP packet in bytes as its header says.
    pub ip_len: u32,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags, or those that say what an SCTP packet says ([`sctp::flags`]); none for UDP.
    pub tcp_flags: TcpFlags,
    /// Place in the datagram.
    pub fragment: Fragment,
    /// Identification of the datagram, as on the wire.
    pub fragment_id: [u8; 4],
}

impl<F: Family> Headers<F> {
    /// The key under which the fragments of this datagram are known.
    #[inline(always)]
    pub fn fragment_key(&self) -> FragmentKey<F> {
        FragmentKey {
            src: self.flow.tuple.src,
            dst: self.flow.tuple.dst,
            id: self.fragment_id,
            protocol: self.flow.protocol,
            _pad: [0; 3],
        }
    }
}

/// How a family's IP header is read.
pub trait FamilyHeader: FamilyMaps {
    /// Length of the header without options or extensions.
    const HEADER_LEN: usize;
    /// Offset, in the header, of the bytes a rewrite changes ([`crate::nat`]).
    const REWRITE_OFFSET: usize;
    /// Protocol of its ICMP.
    const ICMP: Protocol;
    /// ICMP types of an echo request and of its reply.
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;
    /// Protocol of a packet of the family in a tunnel of the same family.
    const TUNNEL: Protocol;

    /// The ECN field of a header that begins with `first_word` (RFC 3168, 5).
    fn ecn(first_word: [u8; 4]) -> u8;

    /// True if ICMP packets of type `kind` quote the packet they are about and say what is wrong with it.
    fn is_error(kind: u8) -> bool;

    /// Reads the IP header at `headers.l3` and sets everything that comes from it.
    fn parse<P: Packet>(packet: &mut P, headers: &mut Headers<Self>) -> Option<()>;
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    total_len: Be16,
    id: [u8; 2],
    fragment: Be16,
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    src: Addr4,
    dst: Addr4,
}

/// The first 8 bytes of an IPv6 header; the addresses follow.
#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv6Header {
    version_class_flow: [u8; 4],
    payload_len: Be16,
    next_header: u8,
    hop_limit: u8,
}

/// More fragments follow (RFC 791).
const IPV4_MORE: u16 = 0x2000;
/// Fragment offset in units of 8 bytes (RFC 791).
const IPV4_OFFSET: u16 = 0x1fff;

impl FamilyHeader for V4 {
    const HEADER_LEN: usize = 20;
    const REWRITE_OFFSET: usize = 8;
    const ICMP: Protocol = Protocol::ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const TUNNEL: Protocol = Protocol::IPIP;

    #[inline(always)]
    fn ecn([_, tos, ..]: [u8; 4]) -> u8 {
        tos & 3
    }

    /// Destination unreachable, time exceeded, parameter problem (RFC 792). Source quench is deprecated (RFC 6633),
    /// redirects concern one link.
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn parse<P: Packet>(packet: &mut P, headers: &mut Headers<V4>) -> Option<()> {
        packet.reach(headers.l3 + Self::HEADER_LEN);
        let header: Ipv4Header = packet.read(headers.l3)?;
        let header_len = (header.version_ihl & 0x0f) as usize * 4;
        if header.version_ihl >> 4 != 4 || header_len < Self::HEADER_LEN {
            return None;
        }
        let fragment = header.fragment.get();
        let [id0, id1] = header.id;
        headers.flow.tuple.src = header.src;
        headers.flow.tuple.dst = header.dst;
        headers.flow.set_protocol(Protocol(header.protocol));
        headers.l4 = headers.l3 + header_len;
        headers.ip_len = header.total_len.get() as u32;
        headers.ttl = header.ttl;
        headers.fragment_id = [id0, id1, 0, 0];
        headers.fragment = match (fragment & IPV4_OFFSET, fragment & IPV4_MORE) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        Some(())
    }
}

/// Extension headers of RFC 8200 that may stand before the transport header.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

impl FamilyHeader for V6 {
    const HEADER_LEN: usize = 40;
    const REWRITE_OFFSET: usize = 4;
    const ICMP: Protocol = Protocol::ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const TUNNEL: Protocol = Protocol::IPV6;

    #[inline(always)]
    fn ecn([_, class_flow, ..]: [u8; 4]) -> u8 {
        class_flow >> 4 & 3
    }

    /// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn parse<P: Packet>(packet: &mut P, headers: &mut Headers<V6>) -> Option<()> {
        packet.reach(headers.l3 + Self::HEADER_LEN);
        let header: Ipv6Header = packet.read(headers.l3)?;
        if header.version_class_flow[0] >> 4 != 6 {
            return None;
        }
        headers.flow.tuple.src = packet.read(headers.l3 + 8)?;
        headers.flow.tuple.dst = packet.read(headers.l3 + 24)?;
        headers.flow.set_protocol(Protocol(header.next_header));
        headers.l4 = headers.l3 + Self::HEADER_LEN;
        headers.ip_len = Self::HEADER_LEN as u32 + header.payload_len.get() as u32;
        headers.ttl = header.hop_limit;
        headers.fragment = Fragment::Whole;
        headers.fragment_id = [0; 4];
        let mut extensions = 0;
        while extensions < limits::IPV6_EXTENSIONS_MAX {
            if !skip_extension(packet, headers)? {
                return Some(());
            }
            extensions += 1;
        }
        None
    }
}

/// Moves past one IPv6 extension header; false if there is none. In a later fragment nothing follows but payload.
#[inline(always)]
fn skip_extension<P: Packet>(packet: &P, headers: &mut Headers<V6>) -> Option<bool> {
    if headers.fragment == Fragment::Later {
        return Some(false);
    }
    match headers.flow.protocol.0 {
        HOP_BY_HOP | ROUTING | DESTINATION => {
            let [next, len]: [u8; 2] = packet.load(headers.l4)?;
            headers.flow.set_protocol(Protocol(next));
            headers.l4 += (len as usize + 1) * 8;
        }
        FRAGMENT => {
            let [next, _, high, low]: [u8; 4] = packet.load(headers.l4)?;
            headers.fragment_id = packet.load(headers.l4 + 4)?;
            let offset = u16::from_be_bytes([high, low]);
            headers.fragment = match (offset & !7, offset & 1) {
                (0, 0) => Fragment::Whole,
                (0, _) => Fragment::First,
                _ => Fragment::Later,
            };
            headers.flow.set_protocol(Protocol(next));
            headers.l4 += 8;
        }
        _ => return Some(false),
    }
    // A chain longer than what is readable is not followed.
    if headers.l4 > crate::packet::OFFSET_MASK - 64 { None } else { Some(true) }
}

/// EtherType and offset of the IP header behind a link-layer header of `link_len` bytes (0: none), and behind a tag that says
/// a priority alone (IEEE 802.1Q, 6.9: VLAN 0). `None`: too short, or in a VLAN, whose own device sees it without the tag.
#[inline(always)]
pub fn parse_link<P: Packet>(packet: &mut P, link_len: usize) -> Option<(u16, usize)> {
    packet.reach(link_len + VLAN_TAG_LEN);
    if link_len == 0 {
        let [version, _]: [u8; 2] = packet.read(0)?;
        return match version >> 4 {
            4 => Some((V4::ETHERTYPE, 0)),
            6 => Some((V6::ETHERTYPE, 0)),
            _ => None,
        };
    }
    let ethertype: Be16 = packet.read(ETHERNET_LEN - 2)?;
    if ethertype.get() != VLAN {
        return Some((ethertype.get(), ETHERNET_LEN));
    }
    let [tag, ethertype]: [Be16; 2] = packet.read(ETHERNET_LEN)?;
    if tag.get() & VLAN_ID == 0 { Some((ethertype.get(), ETHERNET_LEN + VLAN_TAG_LEN)) } else { None }
}

/// What an IP packet carries, as far as it may concern us.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Carries {
    /// TCP, UDP or SCTP, the ports known.
    Transport = 0,
    /// ICMP of the family; nothing of it was read yet.
    Icmp = 1,
    /// A packet of the same family, whole and behind a header without options; nothing of it was read yet.
    Tunnel = 2,
}

/// Parses the IP packet of family `F` at `headers.l3`. `None`: not TCP, UDP, SCTP, ICMP or a tunnel, a later fragment of an unknown
/// datagram, or too short to tell.
#[inline(always)]
pub fn parse<F: FamilyHeader, P: Packet>(packet: &mut P, headers: &mut Headers<F>) -> Option<Carries> {
    F::parse(packet, headers)?;
    headers.tcp_flags = TcpFlags::default();
    if !headers.flow.protocol.is_balanced() {
        headers.flow.tuple.src_port = Be16::default();
        headers.flow.tuple.dst_port = Be16::default();
        return if headers.flow.protocol == F::ICMP {
            Some(Carries::Icmp)
        } else if headers.flow.protocol == F::TUNNEL
            && headers.fragment == Fragment::Whole
            && headers.l4 - headers.l3 == F::HEADER_LEN
        {
            Some(Carries::Tunnel)
        } else {
            None
        };
    }
    let ports = transport(packet, headers)?;
    headers.flow.tuple.src_port = ports.src_port;
    headers.flow.tuple.dst_port = ports.dst_port;
    Some(Carries::Transport)
}

/// The ports, from the transport header or from the datagram's first fragment, and the flags.
#[inline(always)]
fn transport<F: FamilyHeader, P: Packet>(packet: &mut P, headers: &mut Headers<F>) -> Option<FragmentValue> {
    if headers.fragment == Fragment::Later {
        // SAFETY: read at once, before any change of the map.
        return unsafe { F::fragments().get(headers.fragment_key()) }.copied();
    }
    packet.reach(headers.l4 + READ_OF_TRANSPORT);
    if headers.flow.protocol == Protocol::TCP {
        // Two bytes: the bound of one is `at < end`, from which the verifier learns nothing where `at` is unknown.
        let [_, flags]: [u8; 2] = packet.read(headers.l4 + 12)?;
        headers.tcp_flags = TcpFlags(flags);
    } else if headers.flow.protocol == Protocol::SCTP {
        let [chunk, _]: [u8; 2] = packet.read(headers.l4 + sctp::CHUNK)?;
        headers.tcp_flags = sctp::flags(chunk);
    }
    let [src_port, dst_port]: [Be16; 2] = packet.read(headers.l4)?;
    Some(FragmentValue { src_port, dst_port })
}
