//! The maps, declared as `lb_common::maps` lists them, and the way from a family to its own: [`FamilyMaps`].

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use lb_common::{
    affinity::{AffinityKey, AffinityValue},
    allowance::Allowance,
    backend::{BackendValue, MemberKey, MemberValue},
    cidr::CidrValue,
    conntrack::ConnectionValue,
    counters::{TrafficCounter, VerdictCounter},
    device::{DeviceValue, NodeAddressKey, NodeAddressValue},
    event::Event,
    family::{Addr4, Addr6, Family, V4, V6},
    flood::{FloodState, NewFlows},
    flow::FlowKey,
    fragment::{FragmentKey, FragmentValue},
    frontend::{FrontendKey, FrontendValue},
    id::BackendId,
    kind::Kinds,
    limits,
    maps::{NO_COMMON_LRU, NO_PREALLOC, Scratch},
    next_hop::NextHopValue,
    peer::{PeerValue, TunnelCounter},
    rev_nat::{SockRevNatKey, SockRevNatValue},
    settings::Settings,
    source_range::{SourceRangeData, SourceRangeValue},
    verdict::Verdict,
    vip::{VipKey, VipValue},
};

type Frontends<F> =
    HashMap<FrontendKey<F>, FrontendValue, { limits::FRONTENDS_MAX as usize }, { NO_PREALLOC as usize }>;
type Backends<F> =
    HashMap<BackendId, BackendValue<F>, { limits::BACKENDS_MAX as usize }, { NO_PREALLOC as usize }>;
type SourceRanges<F> = LpmTrie<SourceRangeData<F>, SourceRangeValue, { limits::SOURCE_RANGES_MAX as usize }>;
type ServiceCidrs<F> = Array<CidrValue<F>, { limits::SERVICE_CIDRS_MAX as usize }>;
type PodCidrs<F> = HashMap<u32, CidrValue<F>, 1, { NO_PREALLOC as usize }>;
type Vips<F> = HashMap<VipKey<F>, VipValue, { limits::VIPS_MAX as usize }, { NO_PREALLOC as usize }>;
type NodeAddresses<F> = HashMap<
    NodeAddressKey<F>,
    NodeAddressValue,
    { limits::NODE_ADDRESSES_MAX as usize },
    { NO_PREALLOC as usize },
>;
type Peers<F> = LpmTrie<<F as Family>::Addr, PeerValue, { limits::PEERS_MAX as usize }>;
type Connections<F> = LruHashMap<
    FlowKey<F>,
    ConnectionValue<F>,
    { limits::CONNECTIONS_MAX as usize },
    { NO_COMMON_LRU as usize },
>;
type Flood<F> =
    LruHashMap<FlowKey<F>, ConnectionValue<F>, { limits::FLOOD_MAX as usize }, { NO_COMMON_LRU as usize }>;
type HostFlows<F> = HashMap<FlowKey<F>, u32, { limits::HOST_FLOWS_MAX as usize }, { NO_PREALLOC as usize }>;
type NextHops<F> = PerCpuArray<NextHopValue<F>, { limits::NEXT_HOPS as usize }>;
type Affinity<F> = LruHashMap<AffinityKey<F>, AffinityValue, { limits::AFFINITY_MAX as usize }>;
type SockRevNat<F> = LruHashMap<SockRevNatKey<F>, SockRevNatValue<F>, { limits::SOCK_REV_NAT_MAX as usize }>;
type Fragments<F> = LruHashMap<FragmentKey<F>, FragmentValue, { limits::FRAGMENTS_MAX as usize }>;

#[btf_map]
pub static GENERATIONS: Array<u32, { limits::SERVICE_PORTS_MAX as usize }> = Array::new();
#[btf_map]
pub static SLOTS: Array<u32, { limits::SLOTS_MAX as usize }> = Array::new();
#[btf_map]
pub static MEMBERS: HashMap<
    MemberKey,
    MemberValue,
    { limits::MEMBERS_MAX as usize },
    { NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
pub static PORTS: Array<u64, { limits::BIT_SET_WORDS as usize }> = Array::new();
#[btf_map]
pub static TARGET_PORTS: Array<u64, { limits::BIT_SET_WORDS as usize }> = Array::new();
#[btf_map]
pub static VIP_HASHES: Array<u64, { limits::BIT_SET_WORDS as usize }> = Array::new();
#[btf_map]
pub static KINDS: Array<Kinds, 2> = Array::new();
#[btf_map]
pub static DEVICES: HashMap<u32, DeviceValue, { limits::DEVICES_MAX as usize }, { NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<VerdictCounter, { Verdict::COUNT }> = PerCpuArray::new();
#[btf_map]
pub static SERVICE_COUNTERS: PerCpuArray<TrafficCounter, { limits::SERVICE_PORTS_MAX as usize }> =
    PerCpuArray::new();
#[btf_map]
pub static BACKEND_COUNTERS: PerCpuArray<TrafficCounter, { limits::BACKENDS_MAX as usize }> =
    PerCpuArray::new();
#[btf_map]
pub static TUNNELS: PerCpuArray<TunnelCounter, 1> = PerCpuArray::new();
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
pub static ALLOWANCES: PerCpuArray<Allowance, 1> = PerCpuArray::new();
#[btf_map]
pub static NEW_FLOWS: PerCpuArray<NewFlows, 1> = PerCpuArray::new();
#[btf_map]
pub static FLOOD_STATE: Array<FloodState, 1> = Array::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, { limits::EVENTS_BYTES as usize }> = RingBuf::new();

/// The maps of one family.
pub trait FamilyMaps: Family {
    fn frontends() -> &'static Frontends<Self>;
    fn backends() -> &'static Backends<Self>;
    fn source_ranges() -> &'static SourceRanges<Self>;
    fn service_cidrs() -> &'static ServiceCidrs<Self>;
    fn pod_cidrs() -> &'static PodCidrs<Self>;
    fn vips() -> &'static Vips<Self>;
    fn node_addresses() -> &'static NodeAddresses<Self>;
    fn peers() -> &'static Peers<Self>;
    fn connections() -> &'static Connections<Self>;
    fn flood() -> &'static Flood<Self>;
    fn host_flows() -> &'static HostFlows<Self>;
    fn next_hops() -> &'static NextHops<Self>;
    fn affinity() -> &'static Affinity<Self>;
    fn sock_rev_nat() -> &'static SockRevNat<Self>;
    fn fragments() -> &'static Fragments<Self>;
    /// This CPU's working memory. Programs of the packet hooks run with bottom halves disabled, so no other uses it.
    fn scratch() -> Option<*mut Scratch>;
    /// The SNAT source address of a device.
    fn snat_address(device: &DeviceValue) -> Self::Addr;
}

macro_rules! family_maps {
    ($family:ident, $addr:ident, $snat:ident, $frontends:ident, $backends:ident, $ranges:ident, $cidrs:ident,
     $pods:ident, $vips:ident, $nodes:ident, $peers:ident,
     $connections:ident, $flood:ident, $host_flows:ident, $hops:ident, $affinity:ident, $rev_nat:ident,
     $fragments:ident, $scratch:ident) => {
        #[btf_map]
        pub static $frontends: Frontends<$family> = HashMap::new();
        #[btf_map]
        pub static $backends: Backends<$family> = HashMap::new();
        #[btf_map]
        pub static $ranges: SourceRanges<$family> = LpmTrie::new();
        #[btf_map]
        pub static $cidrs: ServiceCidrs<$family> = Array::new();
        #[btf_map]
        pub static $pods: PodCidrs<$family> = HashMap::new();
        #[btf_map]
        pub static $vips: Vips<$family> = HashMap::new();
        #[btf_map]
        pub static $nodes: NodeAddresses<$family> = HashMap::new();
        #[btf_map]
        pub static $peers: Peers<$family> = LpmTrie::new();
        #[btf_map]
        pub static $connections: Connections<$family> = LruHashMap::new();
        #[btf_map]
        pub static $flood: Flood<$family> = LruHashMap::new();
        #[btf_map]
        pub static $host_flows: HostFlows<$family> = HashMap::new();
        #[btf_map]
        pub static $hops: NextHops<$family> = PerCpuArray::new();
        #[btf_map]
        pub static $affinity: Affinity<$family> = LruHashMap::new();
        #[btf_map]
        pub static $rev_nat: SockRevNat<$family> = LruHashMap::new();
        #[btf_map]
        pub static $fragments: Fragments<$family> = LruHashMap::new();

        #[btf_map]
        pub static $scratch: PerCpuArray<Scratch, 1> = PerCpuArray::new();

        impl FamilyMaps for $family {
            #[inline(always)]
            fn frontends() -> &'static Frontends<Self> {
                &$frontends
            }
            #[inline(always)]
            fn backends() -> &'static Backends<Self> {
                &$backends
            }
            #[inline(always)]
            fn source_ranges() -> &'static SourceRanges<Self> {
                &$ranges
            }
            #[inline(always)]
            fn service_cidrs() -> &'static ServiceCidrs<Self> {
                &$cidrs
            }
            #[inline(always)]
            fn pod_cidrs() -> &'static PodCidrs<Self> {
                &$pods
            }
            #[inline(always)]
            fn vips() -> &'static Vips<Self> {
                &$vips
            }
            #[inline(always)]
            fn node_addresses() -> &'static NodeAddresses<Self> {
                &$nodes
            }
            #[inline(always)]
            fn peers() -> &'static Peers<Self> {
                &$peers
            }
            #[inline(always)]
            fn connections() -> &'static Connections<Self> {
                &$connections
            }
            #[inline(always)]
            fn flood() -> &'static Flood<Self> {
                &$flood
            }
            #[inline(always)]
            fn host_flows() -> &'static HostFlows<Self> {
                &$host_flows
            }
            #[inline(always)]
            fn next_hops() -> &'static NextHops<Self> {
                &$hops
            }
            #[inline(always)]
            fn affinity() -> &'static Affinity<Self> {
                &$affinity
            }
            #[inline(always)]
            fn sock_rev_nat() -> &'static SockRevNat<Self> {
                &$rev_nat
            }
            #[inline(always)]
            fn fragments() -> &'static Fragments<Self> {
                &$fragments
            }
            #[inline(always)]
            fn scratch() -> Option<*mut Scratch> {
                $scratch.get_ptr_mut(0)
            }
            #[inline(always)]
            fn snat_address(device: &DeviceValue) -> $addr {
                device.$snat
            }
        }
    };
}

family_maps!(
    V4,
    Addr4,
    snat4,
    FRONTENDS4,
    BACKENDS4,
    SOURCE_RANGES4,
    SERVICE_CIDRS4,
    POD_CIDRS4,
    VIPS4,
    NODE_ADDRESSES4,
    PEERS4,
    CONNECTIONS4,
    FLOOD4,
    HOST_FLOWS4,
    NEXT_HOPS4,
    AFFINITY4,
    SOCK_REV_NAT4,
    FRAGMENTS4,
    SCRATCH4
);
family_maps!(
    V6,
    Addr6,
    snat6,
    FRONTENDS6,
    BACKENDS6,
    SOURCE_RANGES6,
    SERVICE_CIDRS6,
    POD_CIDRS6,
    VIPS6,
    NODE_ADDRESSES6,
    PEERS6,
    CONNECTIONS6,
    FLOOD6,
    HOST_FLOWS6,
    NEXT_HOPS6,
    AFFINITY6,
    SOCK_REV_NAT6,
    FRAGMENTS6,
    SCRATCH6
);
