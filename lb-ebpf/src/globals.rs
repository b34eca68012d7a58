//! Read-only globals that the agent sets at load (`lb_common::settings`), and the clock.
//!
//! They live in `.rodata`, which is frozen before the verifier runs: it knows their values and removes the branches
//! they forbid, so a helper that an old kernel lacks is never called there.

use core::ptr::read_volatile;

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns};
use lb_common::{limits, settings::DetectLocal};

#[unsafe(no_mangle)]
static NODE_NETNS_COOKIE: u64 = 0;
#[unsafe(no_mangle)]
static SNAT_PORT_MIN: u32 = limits::SNAT_PORT_MIN as u32;
#[unsafe(no_mangle)]
static SNAT_PORT_COUNT: u32 = limits::SNAT_PORT_COUNT as u32;
#[unsafe(no_mangle)]
static DETECT_LOCAL: u32 = DetectLocal::DEVICE_ROLE.0;
#[unsafe(no_mangle)]
static MASQUERADE_ALL: u32 = 0;
#[unsafe(no_mangle)]
static FORWARDS_PODS: u32 = 0;
#[unsafe(no_mangle)]
static FLOOD_THRESHOLD: u32 = 0;
#[unsafe(no_mangle)]
static STATELESS: u32 = 0;
#[unsafe(no_mangle)]
static JIFFY_NS: u32 = 0;
#[unsafe(no_mangle)]
static JIFFIES_AT_0: u32 = 0;
#[unsafe(no_mangle)]
static FEATURES: u32 = 0;

/// Cookie of the node's own network namespace.
#[inline(always)]
pub fn node_netns_cookie() -> u64 {
    // SAFETY: an initialised static; volatile because the loader, not the program, gives the value.
    unsafe { read_volatile(&NODE_NETNS_COOKIE) }
}

/// First SNAT source port and number of ports.
#[inline(always)]
pub fn snat_ports() -> (u32, u32) {
    // SAFETY: as in `node_netns_cookie`.
    unsafe { (read_volatile(&SNAT_PORT_MIN), read_volatile(&SNAT_PORT_COUNT)) }
}

/// By what pods are known.
#[inline(always)]
pub fn detect_local() -> DetectLocal {
    // SAFETY: as in `node_netns_cookie`.
    DetectLocal(unsafe { read_volatile(&DETECT_LOCAL) })
}

/// True if whoever dials a ClusterIP gets a node address.
#[inline(always)]
pub fn masquerades_all() -> bool {
    // SAFETY: as in `node_netns_cookie`.
    unsafe { read_volatile(&MASQUERADE_ALL) != 0 }
}

/// True if what pods dial is sent on by the programs, past the stack.
#[inline(always)]
pub fn forwards_pods() -> bool {
    // SAFETY: as in `node_netns_cookie`.
    unsafe { read_volatile(&FORWARDS_PODS) != 0 }
}

/// New flows a second and CPU from which on there is a flood; 0: there never is.
#[inline(always)]
pub fn flood_threshold() -> u32 {
    // SAFETY: as in `node_netns_cookie`.
    unsafe { read_volatile(&FLOOD_THRESHOLD) }
}

/// True if some flows need no connection.
#[inline(always)]
pub fn has_stateless() -> bool {
    // SAFETY: as in `node_netns_cookie`.
    unsafe { read_volatile(&STATELESS) != 0 }
}

/// True if the kernel has the feature (`lb_common::settings::FEATURE_…`).
#[inline(always)]
pub fn has_feature(feature: u32) -> bool {
    // SAFETY: as in `node_netns_cookie`.
    unsafe { read_volatile(&FEATURES) & feature != 0 }
}

/// CLOCK_MONOTONIC nanoseconds, of the last tick. By jiffies, which the verifier makes a load from memory
/// (docs/decisions/0003); else by a call (Linux 5.11).
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: as in `node_netns_cookie`.
    let (jiffy_ns, at_0) = unsafe { (read_volatile(&JIFFY_NS), read_volatile(&JIFFIES_AT_0)) };
    // SAFETY: helpers without arguments, permitted in every program type used here.
    unsafe {
        if jiffy_ns == 0 {
            bpf_ktime_get_coarse_ns()
        } else {
            (bpf_jiffies64() - at_0 as u64) * jiffy_ns as u64
        }
    }
}

/// 32 random bits.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: a helper without arguments, permitted in every program type used here.
    unsafe { bpf_get_prandom_u32() }
}
