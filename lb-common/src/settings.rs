//! What the agent tells the programs: [`Settings`] in the `SETTINGS` map at run time, and the names of the
//! read-only globals set once at load, where a constant lets the verifier remove dead branches.

/// Value of `SETTINGS[0]`. Zero is the default of every field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Report one in this many verdicts to `EVENTS`; 0: none.
    pub events_sample: u32,
    /// Report events of this service port id only; 0: of all.
    pub events_service_port: u32,
    /// Report drops and refusals only, when 1.
    pub events_drops_only: u32,
    /// Zero.
    pub _pad: u32,
}

/// Read-only global (u64): cookie of the node's own network namespace (`SO_NETNS_COOKIE`, Linux 5.14). Only its
/// processes reach NodePorts on the loopback address.
pub const NODE_NETNS_COOKIE: &str = "NODE_NETNS_COOKIE";
/// Read-only global (u32): first SNAT source port, host order.
pub const SNAT_PORT_MIN: &str = "SNAT_PORT_MIN";
/// Read-only global (u32): number of SNAT source ports.
pub const SNAT_PORT_COUNT: &str = "SNAT_PORT_COUNT";
/// Read-only global (u32): bit set of `FEATURE_…`.
pub const FEATURES: &str = "FEATURES";

/// `bpf_set_retval` exists (Linux 5.18): a refused `connect()` fails with ECONNREFUSED, not EPERM.
pub const FEATURE_SET_RETVAL: u32 = 1;
/// `BPF_F_IPV6` of `bpf_l4_csum_replace` exists (Linux 6.16): keeps `CHECKSUM_COMPLETE` right on IPv6.
pub const FEATURE_CSUM_IPV6: u32 = 2;
/// XDP programs may see packets of several buffers (Linux 5.18).
pub const FEATURE_XDP_FRAGS: u32 = 4;

const _: () = assert!(size_of::<Settings>() == 16);
