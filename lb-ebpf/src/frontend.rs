//! Whom does a client dial, and may it? Frontend lookup and source ranges.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{
    frontend::{FrontendFlags, FrontendKey, FrontendValue},
    source_range::SourceRangeKey,
};

use crate::{concern, maps::FamilyMaps, parse::Headers};

/// Notes what a packet dials.
#[inline(never)]
pub fn dial<F: FamilyMaps>(headers: &Headers<F>, dialled: &mut FrontendKey<F>) {
    *dialled = FrontendKey::new(headers.flow.tuple.dst, headers.flow.tuple.dst_port, headers.flow.protocol);
}

/// The frontend that is dialled by `key`.
#[inline(always)]
pub fn lookup<F: FamilyMaps>(key: &FrontendKey<F>) -> Option<&'static FrontendValue> {
    if !concern::has_frontends(key.port) {
        return None;
    }
    // SAFETY: the agent replaces values whole (a fresh element under RCU); the one read stays valid for this run.
    unsafe { F::frontends().get(key) }
}

/// True if `loadBalancerSourceRanges` lets `client` use the frontend.
#[inline(never)]
pub fn allows<F: FamilyMaps>(frontend: &FrontendValue, client: &F::Addr) -> bool {
    if !frontend.flags.has(FrontendFlags::SOURCE_RANGES) {
        return true;
    }
    let key = SourceRangeKey::<F>::lookup(frontend.service_port, *client);
    F::source_ranges().get(&Key::new(key.prefix_len, key.data)).is_some()
}
