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
    /// Answers (RST, ICMP errors) a CPU may send a second, a second's worth at once; 0: any number.
    pub refusals_per_second: u32,
}

/// Read-only global (u64): cookie of the node's own network namespace (`SO_NETNS_COOKIE`, Linux 5.14). Only its
/// processes reach NodePorts on the loopback address.
pub const NODE_NETNS_COOKIE: &str = "NODE_NETNS_COOKIE";
/// Read-only global (u32): first SNAT source port, host order.
pub const SNAT_PORT_MIN: &str = "SNAT_PORT_MIN";
/// Read-only global (u32): number of SNAT source ports.
pub const SNAT_PORT_COUNT: &str = "SNAT_PORT_COUNT";
/// Read-only global (u32): a [`DetectLocal`].
pub const DETECT_LOCAL: &str = "DETECT_LOCAL";
/// Read-only global (u32): 1 if whoever dials a ClusterIP gets a node address (kube-proxy's `--masquerade-all`).
pub const MASQUERADE_ALL: &str = "MASQUERADE_ALL";
/// Read-only global (u32): 1 if what pods dial is sent on by the programs, past the stack.
pub const FORWARDS_PODS: &str = "FORWARDS_PODS";
/// Read-only global (u32): new flows a second and CPU from which on they are recorded in `FLOOD`; 0: never.
pub const FLOOD_THRESHOLD: &str = "FLOOD_THRESHOLD";
/// Read-only global (u32): 1 if XDP asks first whether a packet is for a stateless frontend
/// ([`crate::frontend::FrontendFlags::STATELESS`]), so that no other packets pay for the question.
pub const STATELESS: &str = "STATELESS";
/// Read-only global (u32): nanoseconds of a jiffy, or 0: the programs read `bpf_ktime_get_coarse_ns` instead.
pub const JIFFY_NS: &str = "JIFFY_NS";
/// Read-only global (u32): jiffies when CLOCK_MONOTONIC was 0.
pub const JIFFIES_AT_0: &str = "JIFFIES_AT_0";
/// Read-only global (u32): bit set of `FEATURE_…`.
pub const FEATURES: &str = "FEATURES";

/// By what a packet is known to come from a pod (spec 4d). Nobody but pods and the node itself is in the cluster:
/// `externalTrafficPolicy` speaks for all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct DetectLocal(pub u32);

impl DetectLocal {
    /// By the role of the device it comes in by.
    pub const DEVICE_ROLE: Self = Self(0);
    /// By its source: in `POD_CIDRS`. A family that has none there knows no pods (spec 4.51).
    pub const CIDR: Self = Self(1);
    /// By [`crate::device::DeviceFlags::POD`] of the device it comes in by.
    pub const DEVICE_NAME: Self = Self(2);
    /// By nothing: nobody is known as a pod (spec 4.23).
    pub const NONE: Self = Self(3);
}

/// `bpf_set_retval` exists (Linux 5.18): a refused `connect()` fails with ECONNREFUSED, not EPERM.
pub const FEATURE_SET_RETVAL: u32 = 1;
/// `BPF_F_IPV6` of `bpf_l4_csum_replace` exists (Linux 6.16): keeps `CHECKSUM_COMPLETE` right on IPv6.
pub const FEATURE_CSUM_IPV6: u32 = 2;
/// XDP programs may see packets of several buffers (Linux 5.18).
pub const FEATURE_XDP_FRAGS: u32 = 4;

const _: () = assert!(size_of::<Settings>() == 16);
