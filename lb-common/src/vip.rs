//! `VIPS4`, `VIPS6`: the addresses that are ours whatever the port: ClusterIPs, externalIPs, load balancer IPs. A port
//! that is no frontend is refused there, and an echo request is answered. What is an address of the node too
//! (`NODE_ADDRESSES`) is the node's: its other ports and its echo stay untouched.

use crate::family::{Address, Family, V4, V6};

/// Key of `VIPS`: the address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct VipKey<F: Family> {
    /// The address.
    pub addr: F::Addr,
}

/// Value of `VIPS`: 1, ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct VipValue {
    /// 1.
    pub used: u32,
}

/// Number of an address in `VIP_HASHES` ([`crate::bit_set`]). Multiplicative hashing spreads the consecutive addresses of a
/// range (Knuth, The Art of Computer Programming, 6.4).
#[inline(always)]
pub fn hash<A: Address>(addr: &A) -> u16 {
    let mut word = addr.word(0);
    let mut index = 1;
    while index < A::WORDS {
        word = word.rotate_left(5) ^ addr.word(index);
        index += 1;
    }
    (u32::from_be(word).wrapping_mul(0x9e37_79b9) >> 16) as u16
}

const _: () = assert!(size_of::<VipKey<V4>>() == 4);
const _: () = assert!(size_of::<VipKey<V6>>() == 16);
const _: () = assert!(size_of::<VipValue>() == 4);
