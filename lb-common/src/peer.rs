//! `PEERS4`, `PEERS6`: LPM tries of the addresses and networks whose tunnels end here; `TUNNELS`: what came in tunnels.

use crate::family::{Family, V4, V6};

/// Key of `PEERS` as `BPF_MAP_TYPE_LPM_TRIE` wants it: prefix length, then the bits it counts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PeerKey<F: Family> {
    /// Significant bits of the address.
    pub prefix_len: u32,
    /// Network address, host bits zero; in a lookup the outer header's source.
    pub addr: F::Addr,
}

impl<F: Family> PeerKey<F> {
    /// The key that asks whether `addr` may send tunnels here.
    #[inline(always)]
    pub const fn lookup(addr: F::Addr) -> Self {
        Self { prefix_len: F::BITS, addr }
    }
}

/// Value of `PEERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PeerValue {
    /// 1.
    pub allowed: u32,
}

/// Value of `TUNNELS`: packets in tunnels that end at this node, for frontends with direct server return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TunnelCounter {
    /// Unwrapped: from a peer.
    pub unwrapped: u64,
    /// Left to the stack as they came: from anybody else.
    pub strangers: u64,
}

const _: () = assert!(size_of::<PeerKey<V4>>() == 8);
const _: () = assert!(size_of::<PeerKey<V6>>() == 20);
