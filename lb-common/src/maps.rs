//! The table of maps: name, type, key and value sizes, entries, who writes. The built object is compared with it by
//! a test, and `lb-agent` opens maps by these names only.
//!
//! The kernel keeps 15 characters of a name (`BPF_OBJ_NAME_LEN`): `SERVICE_COUNTERS` is `SERVICE_COUNTER` in
//! `bpftool`. Pins carry the whole name.

use crate::{
    affinity::{AffinityKey, AffinityValue},
    allowance::Allowance,
    backend::{BackendValue, MemberKey, MemberValue},
    cidr::CidrValue,
    conntrack::ConnectionValue,
    counters::{TrafficCounter, VerdictCounter},
    device::{DeviceValue, NodeAddressKey, NodeAddressValue},
    family::{V4, V6},
    flood::{FloodState, NewFlows},
    flow::FlowKey,
    fragment::{FragmentKey, FragmentValue},
    frontend::{FrontendKey, FrontendValue},
    id::BackendId,
    kind::Kinds,
    limits,
    next_hop::NextHopValue,
    peer::{PeerKey, PeerValue, TunnelCounter},
    rev_nat::{SockRevNatKey, SockRevNatValue},
    settings::Settings,
    source_range::{SourceRangeKey, SourceRangeValue},
    verdict::Verdict,
    vip::{VipKey, VipValue},
};

/// Base name of `FRONTENDS4` and `FRONTENDS6`.
pub const FRONTENDS: &str = "FRONTENDS";
/// Array of u32: service port id → generation of its membership.
pub const GENERATIONS: &str = "GENERATIONS";
/// Array of u32: slot → backend id.
pub const SLOTS: &str = "SLOTS";
/// Base name of `BACKENDS4` and `BACKENDS6`.
pub const BACKENDS: &str = "BACKENDS";
/// Who serves which service port.
pub const MEMBERS: &str = "MEMBERS";
/// Base name of `SOURCE_RANGES4` and `SOURCE_RANGES6`.
pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
/// Base name of `SERVICE_CIDRS4` and `SERVICE_CIDRS6`.
pub const SERVICE_CIDRS: &str = "SERVICE_CIDRS";
/// Base name of `POD_CIDRS4` and `POD_CIDRS6`.
pub const POD_CIDRS: &str = "POD_CIDRS";
/// Base name of `VIPS4` and `VIPS6`.
pub const VIPS: &str = "VIPS";
/// Base name of `PEERS4` and `PEERS6`.
pub const PEERS: &str = "PEERS";
/// Per-CPU array of one: what came in tunnels.
pub const TUNNELS: &str = "TUNNELS";
/// The ports of frontends ([`crate::bit_set`]).
pub const PORTS: &str = "PORTS";
/// The ports of backends ([`crate::bit_set`]).
pub const TARGET_PORTS: &str = "TARGET_PORTS";
/// Hashes of VIPs ([`crate::bit_set`]).
pub const VIP_HASHES: &str = "VIP_HASHES";
/// Which kinds of connections may exist ([`crate::kind`]).
pub const KINDS: &str = "KINDS";
/// Base name of `NODE_ADDRESSES4` and `NODE_ADDRESSES6`.
pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
/// ifindex → role.
pub const DEVICES: &str = "DEVICES";
/// Base name of `CONNECTIONS4` and `CONNECTIONS6`.
pub const CONNECTIONS: &str = "CONNECTIONS";
/// Base name of `FLOOD4` and `FLOOD6`: the same as `CONNECTIONS`, of flows that have proved nothing yet.
pub const FLOOD: &str = "FLOOD";
/// Base name of `HOST_FLOWS4` and `HOST_FLOWS6`: the answers that flows which the host's netfilter gave another source
/// wait for, key by key as in `CONNECTIONS`.
pub const HOST_FLOWS: &str = "HOST_FLOWS";
/// Per-CPU array with one element: the rate of new flows.
pub const NEW_FLOWS: &str = "NEW_FLOWS";
/// Array with one element: whether `FLOOD` is in use.
pub const FLOOD_STATE: &str = "FLOOD_STATE";
/// Base name of `AFFINITY4` and `AFFINITY6`.
pub const AFFINITY: &str = "AFFINITY";
/// Base name of `NEXT_HOPS4` and `NEXT_HOPS6`.
pub const NEXT_HOPS: &str = "NEXT_HOPS";
/// Base name of `SOCK_REV_NAT4` and `SOCK_REV_NAT6`.
pub const SOCK_REV_NAT: &str = "SOCK_REV_NAT";
/// Base name of `FRAGMENTS4` and `FRAGMENTS6`.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// Per-CPU array, index: verdict code.
pub const COUNTERS: &str = "COUNTERS";
/// Per-CPU array, index: service port id.
pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
/// Per-CPU array, index: backend id.
pub const BACKEND_COUNTERS: &str = "BACKEND_COUNTERS";
/// Array of one: what the agent tells the programs at run time.
pub const SETTINGS: &str = "SETTINGS";
/// Per-CPU array of one: answers a CPU may still send.
pub const ALLOWANCES: &str = "ALLOWANCES";
/// Ring buffer of sampled verdicts.
pub const EVENTS: &str = "EVENTS";

/// `BPF_F_NO_PREALLOC`: entries are allocated as they come.
pub const NO_PREALLOC: u32 = 1;
/// `BPF_F_NO_COMMON_LRU`: each CPU has its share of the entries and evicts from it alone (docs/decisions/0007).
pub const NO_COMMON_LRU: u32 = 2;

/// Map types by the kernel's numbers (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    /// `BPF_MAP_TYPE_HASH`
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_LRU_HASH`
    LruHash = 9,
    /// `BPF_MAP_TYPE_LPM_TRIE`
    LpmTrie = 11,
    /// `BPF_MAP_TYPE_RINGBUF`
    RingBuf = 27,
}

/// Who writes a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// `lb-agent`; the datapath only reads.
    Agent,
    /// The datapath; the agent reads and removes dead entries.
    Datapath,
}

/// One map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Whole name, family digit included.
    pub name: &'static str,
    /// Kernel type.
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries (bytes for a ring buffer) unless the agent is told otherwise.
    pub max_entries: u32,
    /// `BPF_F_…` creation flags.
    pub flags: u32,
    /// Who writes it.
    pub writer: Writer,
}

const fn spec<K, V>(
    name: &'static str,
    map_type: MapType,
    max_entries: u32,
    flags: u32,
    writer: Writer,
) -> MapSpec {
    MapSpec {
        name,
        map_type,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries,
        flags,
        writer,
    }
}

/// Every map of the datapath.
pub const MAPS: [MapSpec; 49] = {
    use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray, RingBuf};
    use Writer::{Agent, Datapath};
    [
        spec::<FrontendKey<V4>, FrontendValue>("FRONTENDS4", Hash, limits::FRONTENDS_MAX, NO_PREALLOC, Agent),
        spec::<FrontendKey<V6>, FrontendValue>("FRONTENDS6", Hash, limits::FRONTENDS_MAX, NO_PREALLOC, Agent),
        spec::<u32, u32>("GENERATIONS", Array, limits::SERVICE_PORTS_MAX, 0, Agent),
        spec::<u32, u32>("SLOTS", Array, limits::SLOTS_MAX, 0, Agent),
        spec::<BackendId, BackendValue<V4>>("BACKENDS4", Hash, limits::BACKENDS_MAX, NO_PREALLOC, Agent),
        spec::<BackendId, BackendValue<V6>>("BACKENDS6", Hash, limits::BACKENDS_MAX, NO_PREALLOC, Agent),
        spec::<MemberKey, MemberValue>("MEMBERS", Hash, limits::MEMBERS_MAX, NO_PREALLOC, Agent),
        spec::<SourceRangeKey<V4>, SourceRangeValue>(
            "SOURCE_RANGES4",
            LpmTrie,
            limits::SOURCE_RANGES_MAX,
            NO_PREALLOC,
            Agent,
        ),
        spec::<SourceRangeKey<V6>, SourceRangeValue>(
            "SOURCE_RANGES6",
            LpmTrie,
            limits::SOURCE_RANGES_MAX,
            NO_PREALLOC,
            Agent,
        ),
        spec::<u32, CidrValue<V4>>("SERVICE_CIDRS4", Array, limits::SERVICE_CIDRS_MAX, 0, Agent),
        spec::<u32, CidrValue<V6>>("SERVICE_CIDRS6", Array, limits::SERVICE_CIDRS_MAX, 0, Agent),
        spec::<u32, CidrValue<V4>>("POD_CIDRS4", Hash, 1, NO_PREALLOC, Agent),
        spec::<u32, CidrValue<V6>>("POD_CIDRS6", Hash, 1, NO_PREALLOC, Agent),
        spec::<VipKey<V4>, VipValue>("VIPS4", Hash, limits::VIPS_MAX, NO_PREALLOC, Agent),
        spec::<VipKey<V6>, VipValue>("VIPS6", Hash, limits::VIPS_MAX, NO_PREALLOC, Agent),
        spec::<NodeAddressKey<V4>, NodeAddressValue>(
            "NODE_ADDRESSES4",
            Hash,
            limits::NODE_ADDRESSES_MAX,
            NO_PREALLOC,
            Agent,
        ),
        spec::<NodeAddressKey<V6>, NodeAddressValue>(
            "NODE_ADDRESSES6",
            Hash,
            limits::NODE_ADDRESSES_MAX,
            NO_PREALLOC,
            Agent,
        ),
        spec::<PeerKey<V4>, PeerValue>("PEERS4", LpmTrie, limits::PEERS_MAX, NO_PREALLOC, Agent),
        spec::<PeerKey<V6>, PeerValue>("PEERS6", LpmTrie, limits::PEERS_MAX, NO_PREALLOC, Agent),
        spec::<u32, TunnelCounter>("TUNNELS", PerCpuArray, 1, 0, Datapath),
        spec::<u32, u64>("PORTS", Array, limits::BIT_SET_WORDS, 0, Agent),
        spec::<u32, u64>("TARGET_PORTS", Array, limits::BIT_SET_WORDS, 0, Agent),
        spec::<u32, u64>("VIP_HASHES", Array, limits::BIT_SET_WORDS, 0, Agent),
        spec::<u32, Kinds>("KINDS", Array, 2, 0, Datapath),
        spec::<u32, DeviceValue>("DEVICES", Hash, limits::DEVICES_MAX, NO_PREALLOC, Agent),
        spec::<FlowKey<V4>, ConnectionValue<V4>>(
            "CONNECTIONS4",
            LruHash,
            limits::CONNECTIONS_MAX,
            NO_COMMON_LRU,
            Datapath,
        ),
        spec::<FlowKey<V6>, ConnectionValue<V6>>(
            "CONNECTIONS6",
            LruHash,
            limits::CONNECTIONS_MAX,
            NO_COMMON_LRU,
            Datapath,
        ),
        spec::<FlowKey<V4>, ConnectionValue<V4>>(
            "FLOOD4",
            LruHash,
            limits::FLOOD_MAX,
            NO_COMMON_LRU,
            Datapath,
        ),
        spec::<FlowKey<V6>, ConnectionValue<V6>>(
            "FLOOD6",
            LruHash,
            limits::FLOOD_MAX,
            NO_COMMON_LRU,
            Datapath,
        ),
        spec::<FlowKey<V4>, u32>("HOST_FLOWS4", Hash, limits::HOST_FLOWS_MAX, NO_PREALLOC, Agent),
        spec::<FlowKey<V6>, u32>("HOST_FLOWS6", Hash, limits::HOST_FLOWS_MAX, NO_PREALLOC, Agent),
        spec::<u32, NewFlows>("NEW_FLOWS", PerCpuArray, 1, 0, Datapath),
        spec::<u32, FloodState>("FLOOD_STATE", Array, 1, 0, Datapath),
        spec::<u32, NextHopValue<V4>>("NEXT_HOPS4", PerCpuArray, limits::NEXT_HOPS, 0, Datapath),
        spec::<u32, NextHopValue<V6>>("NEXT_HOPS6", PerCpuArray, limits::NEXT_HOPS, 0, Datapath),
        spec::<AffinityKey<V4>, AffinityValue>("AFFINITY4", LruHash, limits::AFFINITY_MAX, 0, Datapath),
        spec::<AffinityKey<V6>, AffinityValue>("AFFINITY6", LruHash, limits::AFFINITY_MAX, 0, Datapath),
        spec::<SockRevNatKey<V4>, SockRevNatValue<V4>>(
            "SOCK_REV_NAT4",
            LruHash,
            limits::SOCK_REV_NAT_MAX,
            0,
            Datapath,
        ),
        spec::<SockRevNatKey<V6>, SockRevNatValue<V6>>(
            "SOCK_REV_NAT6",
            LruHash,
            limits::SOCK_REV_NAT_MAX,
            0,
            Datapath,
        ),
        spec::<FragmentKey<V4>, FragmentValue>("FRAGMENTS4", LruHash, limits::FRAGMENTS_MAX, 0, Datapath),
        spec::<FragmentKey<V6>, FragmentValue>("FRAGMENTS6", LruHash, limits::FRAGMENTS_MAX, 0, Datapath),
        spec::<u32, VerdictCounter>("COUNTERS", PerCpuArray, Verdict::COUNT as u32, 0, Datapath),
        spec::<u32, TrafficCounter>("SERVICE_COUNTERS", PerCpuArray, limits::SERVICE_PORTS_MAX, 0, Datapath),
        spec::<u32, TrafficCounter>("BACKEND_COUNTERS", PerCpuArray, limits::BACKENDS_MAX, 0, Datapath),
        spec::<u32, Settings>("SETTINGS", Array, 1, 0, Agent),
        spec::<u32, Allowance>("ALLOWANCES", PerCpuArray, 1, 0, Datapath),
        MapSpec {
            name: "EVENTS",
            map_type: RingBuf,
            key_size: 0,
            value_size: 0,
            max_entries: limits::EVENTS_BYTES,
            flags: 0,
            writer: Datapath,
        },
        spec::<u32, Scratch>("SCRATCH4", PerCpuArray, 1, 0, Datapath),
        spec::<u32, Scratch>("SCRATCH6", PerCpuArray, 1, 0, Datapath),
    ]
};

/// Working memory of one packet's way through the programs: what does not fit on the 512 bytes of BPF stack. Its
/// contents mean nothing outside a run.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch {
    /// 8-aligned bytes.
    pub words: [u64; 128],
}
