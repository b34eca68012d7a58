//! IPv4 and IPv6 as types: code, keys and values are written once, generic over [`Family`].

use core::{
    fmt::Debug,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IPv4 address, network byte order. Four aligned bytes: one load in the kernel, bytes in `bpftool map dump`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Addr4(pub [u8; 4]);

/// An IPv6 address, network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Addr6(pub [u8; 16]);

/// A transport port, network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(2))]
pub struct Be16(pub [u8; 2]);

impl Be16 {
    /// From a port in host byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be_bytes())
    }

    /// The port in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// A transport protocol by its IANA number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: Self = Self(1);
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: Self = Self(58);
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: Self = Self(4);
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: Self = Self(41);
    /// SCTP (RFC 9260).
    pub const SCTP: Self = Self(132);

    /// True if packets say how far their connection has come: TCP, SCTP.
    #[inline(always)]
    pub const fn has_handshake(self) -> bool {
        self.0 == Self::TCP.0 || self.0 == Self::SCTP.0
    }

    /// True if it is balanced.
    #[inline(always)]
    pub const fn is_balanced(self) -> bool {
        self.has_handshake() || self.0 == Self::UDP.0
    }

    /// Kubernetes' spelling (`TCP`, `UDP`, `SCTP`), or `?`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TCP => "TCP",
            Self::UDP => "UDP",
            Self::SCTP => "SCTP",
            _ => "?",
        }
    }
}

/// An address of one family: fixed size, network byte order, readable as 32-bit words for hashes and checksums.
pub trait Address: Copy + Debug + Default + Eq + Ord + Hash + Send + Sync + 'static {
    /// Length in 32-bit words.
    const WORDS: usize;

    /// Word `index` in memory (network) order, as a native integer. `index` is below [`Self::WORDS`].
    fn word(&self, index: usize) -> u32;

    /// The address as the standard library has it.
    fn to_ip(self) -> IpAddr;

    /// The address, if `ip` is of this family. IPv4-mapped IPv6 counts as IPv4 (kube-proxy spec 1.37).
    fn from_ip(ip: IpAddr) -> Option<Self>;

    /// True for 127.0.0.0/8 or ::1.
    fn is_loopback(&self) -> bool;

    /// 127.0.0.1 or ::1, the one loopback address under which NodePorts are listed.
    fn loopback() -> Self;

    /// True for 0.0.0.0 or ::, which `connect()` takes for the loopback address.
    fn is_unspecified(&self) -> bool;
}

impl Address for Addr4 {
    const WORDS: usize = 1;

    #[inline(always)]
    fn word(&self, _index: usize) -> u32 {
        u32::from_ne_bytes(self.0)
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self.0))
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Some(Self(v4.octets())),
            IpAddr::V6(_) => None,
        }
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.0[0] == 127
    }

    #[inline(always)]
    fn loopback() -> Self {
        Self([127, 0, 0, 1])
    }

    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        self.word(0) == 0
    }
}

impl Address for Addr6 {
    const WORDS: usize = 4;

    #[inline(always)]
    fn word(&self, index: usize) -> u32 {
        let at = (index & 3) * 4;
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self.0))
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip.to_canonical() {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(Self(v6.octets())),
        }
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.word(0) == 0 && self.word(1) == 0 && self.word(2) == 0 && self.word(3) == 1u32.to_be()
    }

    #[inline(always)]
    fn loopback() -> Self {
        let mut bytes = [0; 16];
        bytes[15] = 1;
        Self(bytes)
    }

    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        self.word(0) == 0 && self.word(1) == 0 && self.word(2) == 0 && self.word(3) == 0
    }
}

/// An IP family: the type parameter of keys, values, maps and the datapath. Implemented by [`V4`] and [`V6`] only.
pub trait Family: Copy + Debug + Default + Eq + Ord + Hash + Send + Sync + 'static {
    /// The family's address.
    type Addr: Address;
    /// Who an affinity entry belongs to: an address or an 8-byte network namespace cookie.
    type Client: Copy + Debug + Default + Eq + Ord + Hash + Send + Sync + 'static;
    /// Appended to a map's base name: `FRONTENDS4`.
    const DIGIT: char;
    /// Kubernetes' name of the family: `IPv4` or `IPv6`.
    const NAME: &'static str;
    /// EtherType (IEEE 802), host byte order.
    const ETHERTYPE: u16;
    /// `AF_INET` or `AF_INET6` as Linux numbers them, for `bpf_fib_lookup` and `bpf_redirect_neigh`.
    const ADDRESS_FAMILY: u8;
    /// Bits of an address.
    const BITS: u32;

    /// An address as affinity client.
    fn client_from_addr(addr: Self::Addr) -> Self::Client;
    /// A network namespace cookie (host byte order) as affinity client.
    fn client_from_cookie(cookie: u64) -> Self::Client;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V6;

/// Affinity client of IPv4: eight aligned bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Client4(pub [u8; 8]);

/// Affinity client of IPv6: sixteen aligned bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Client6(pub [u8; 16]);

impl Family for V4 {
    type Addr = Addr4;
    type Client = Client4;
    const DIGIT: char = '4';
    const NAME: &'static str = "IPv4";
    const ETHERTYPE: u16 = 0x0800;
    const ADDRESS_FAMILY: u8 = 2;
    const BITS: u32 = 32;

    #[inline(always)]
    fn client_from_addr(addr: Addr4) -> Client4 {
        let [a, b, c, d] = addr.0;
        Client4([a, b, c, d, 0, 0, 0, 0])
    }

    #[inline(always)]
    fn client_from_cookie(cookie: u64) -> Client4 {
        Client4(cookie.to_ne_bytes())
    }
}

impl Family for V6 {
    type Addr = Addr6;
    type Client = Client6;
    const DIGIT: char = '6';
    const NAME: &'static str = "IPv6";
    const ETHERTYPE: u16 = 0x86dd;
    const ADDRESS_FAMILY: u8 = 10;
    const BITS: u32 = 128;

    #[inline(always)]
    fn client_from_addr(addr: Addr6) -> Client6 {
        Client6(addr.0)
    }

    #[inline(always)]
    fn client_from_cookie(cookie: u64) -> Client6 {
        let [a, b, c, d, e, f, g, h] = cookie.to_ne_bytes();
        Client6([a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_of_the_ipv4_family() {
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(Addr4::from_ip(mapped), Some(Addr4([10, 0, 0, 1])));
        assert_eq!(Addr6::from_ip(mapped), None);
    }

    #[test]
    fn loopback_is_the_whole_of_127_but_only_one_of_ipv6() {
        assert!(Addr4([127, 9, 9, 9]).is_loopback());
        assert!(Addr6::loopback().is_loopback());
        assert!(!Addr6::default().is_loopback());
        assert!(Addr6::default().is_unspecified());
    }

    #[test]
    fn ports_are_big_endian_in_memory() {
        assert_eq!(Be16::new(0x1f90).0, [0x1f, 0x90]);
        assert_eq!(Be16::new(8080).get(), 8080);
    }
}
