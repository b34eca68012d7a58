//! `SOURCE_RANGES4`, `SOURCE_RANGES6`: LPM tries of `loadBalancerSourceRanges`, one key space per service port.

use crate::{
    family::{Family, V4, V6},
    id::ServicePortId,
};

/// Key of `SOURCE_RANGES` as `BPF_MAP_TYPE_LPM_TRIE` wants it: prefix length, then the bits it counts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SourceRangeKey<F: Family> {
    /// Significant bits of the rest: 32 for the service port plus the CIDR's prefix length.
    pub prefix_len: u32,
    /// The service port and the address.
    pub data: SourceRangeData<F>,
}

impl<F: Family> SourceRangeKey<F> {
    /// The key of `addr/cidr_len` for `service_port`; host bits of `addr` must be zero.
    #[inline(always)]
    pub const fn new(service_port: ServicePortId, addr: F::Addr, cidr_len: u32) -> Self {
        Self { prefix_len: 32 + cidr_len, data: SourceRangeData { service_port, addr } }
    }

    /// The key that asks whether `client` may use `service_port`.
    #[inline(always)]
    pub const fn lookup(service_port: ServicePortId, client: F::Addr) -> Self {
        Self::new(service_port, client, F::BITS)
    }
}

/// What follows the prefix length in a [`SourceRangeKey`]: the trie's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SourceRangeData<F: Family> {
    /// The service port; always matched whole.
    pub service_port: ServicePortId,
    /// Network address of the CIDR, or the client's address in a lookup.
    pub addr: F::Addr,
}

/// Value of `SOURCE_RANGES`: 1, allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SourceRangeValue {
    /// 1.
    pub allowed: u32,
}

const _: () = assert!(size_of::<SourceRangeKey<V4>>() == 12);
const _: () = assert!(size_of::<SourceRangeKey<V6>>() == 24);
const _: () = assert!(size_of::<SourceRangeValue>() == 4);
