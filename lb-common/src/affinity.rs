//! `AFFINITY4`, `AFFINITY6`: `sessionAffinity: ClientIP` per service port, shared by all its VIPs (spec 3.3).

use crate::{
    family::{Family, V4, V6},
    id::{BackendId, ServicePortId},
};

/// What identifies the client in an [`AffinityKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ClientKind(pub u32);

impl ClientKind {
    /// The client's address.
    pub const ADDRESS: Self = Self(0);
    /// The cookie of its network namespace: all a socket hook knows before the socket is bound.
    pub const NETNS_COOKIE: Self = Self(1);
}

/// Key of `AFFINITY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityKey<F: Family> {
    /// The service port.
    pub service_port: ServicePortId,
    /// What `client` holds.
    pub kind: ClientKind,
    /// Address (network order, zero padded) or netns cookie (host order).
    pub client: F::Client,
}

/// Value of `AFFINITY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityValue {
    /// CLOCK_MONOTONIC nanoseconds of the client's last new connection.
    pub last_used_ns: u64,
    /// The backend that served it.
    pub backend: BackendId,
    /// Zero.
    pub _pad: u32,
}

impl AffinityValue {
    /// True while the entry binds: younger than `timeout_s` seconds at `now_ns` (spec 3.5, 3.6).
    #[inline(always)]
    pub const fn is_fresh(&self, now_ns: u64, timeout_s: u32) -> bool {
        now_ns.saturating_sub(self.last_used_ns) < timeout_s as u64 * 1_000_000_000
    }
}

const _: () = assert!(size_of::<AffinityKey<V4>>() == 16);
const _: () = assert!(size_of::<AffinityKey<V6>>() == 24);
const _: () = assert!(size_of::<AffinityValue>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_ends_exactly_at_its_timeout() {
        let value = AffinityValue { last_used_ns: 5_000_000_000, backend: BackendId(1), _pad: 0 };
        assert!(value.is_fresh(5_000_000_000, 1));
        assert!(value.is_fresh(5_999_999_999, 1));
        assert!(!value.is_fresh(6_000_000_000, 1));
        assert!(value.is_fresh(4_000_000_000, 1), "a clock read before the write is not an expiry");
    }
}
