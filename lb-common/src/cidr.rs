//! Networks in maps: `SERVICE_CIDRS4`, `SERVICE_CIDRS6`, which ClusterIPs are taken from (what lies in one and is no
//! frontend is refused, kube-proxy spec 0.5), and `POD_CIDRS4`, `POD_CIDRS6`, which pods are (spec 4.51, 4.52).
//!
//! The former is an array that is searched from its beginning to the first unused entry, not an LPM trie: there are
//! one to eight networks, and the packets that ask are mostly not ours. The latter has one entry, 0, or none.

use crate::family::{Address as _, Family, V4, V6};

/// Value of `SERVICE_CIDRS`, by its place (entries in use come first), and of `POD_CIDRS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct CidrValue<F: Family> {
    /// Network address; host bits are zero.
    pub network: F::Addr,
    /// Netmask: ones for the bits that count.
    pub mask: F::Addr,
    /// 1; 0 in an entry that means nothing.
    pub used: u32,
}

impl<F: Family> CidrValue<F> {
    /// True if `addr` lies in the network. All words are compared: branches would cost more than they save.
    #[inline(always)]
    pub fn matches(&self, addr: &F::Addr) -> bool {
        let mut differing = 0;
        let mut index = 0;
        while index < <F::Addr as crate::family::Address>::WORDS {
            differing |= (addr.word(index) & self.mask.word(index)) ^ self.network.word(index);
            index += 1;
        }
        differing == 0
    }
}

const _: () = assert!(size_of::<CidrValue<V4>>() == 12);
const _: () = assert!(size_of::<CidrValue<V6>>() == 36);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Addr4, Addr6, Address};

    fn addr<A: Address>(text: &str) -> A {
        A::from_ip(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn an_ipv4_network_holds_its_first_and_last_address_and_no_other() {
        let cidr = CidrValue::<V4> { network: addr("10.96.0.0"), mask: addr("255.240.0.0"), used: 1 };
        for (ip, expected) in
            [("10.96.0.0", true), ("10.111.255.255", true), ("10.95.255.255", false), ("10.112.0.0", false)]
        {
            assert_eq!(cidr.matches(&addr::<Addr4>(ip)), expected, "{ip}");
        }
    }

    #[test]
    fn every_word_of_an_ipv6_network_counts() {
        let mask = addr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        let cidr = CidrValue::<V6> { network: addr("fd00:96::"), mask, used: 1 };
        for (ip, expected) in [
            ("fd00:96::", true),
            ("fd00:96::ffff", true),
            ("fd00:97::1", false),
            ("fd00:96:0:1::1", false),
            ("fd00:96::1:0:1", false),
            ("fd00:96::1:0", false),
        ] {
            assert_eq!(cidr.matches(&addr::<Addr6>(ip)), expected, "{ip}");
        }
    }

    #[test]
    fn a_mask_of_zero_holds_everything() {
        let cidr = CidrValue::<V4> { used: 1, ..CidrValue::default() };
        assert!(cidr.matches(&addr("192.0.2.1")));
    }
}
