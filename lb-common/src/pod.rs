//! The only `unsafe` of the contract: the proof that keys and values are plain bytes.
//!
//! bytemuck's derive cannot see through a generic parameter, so the proof stands here: every type listed is
//! `repr(C)` or `repr(transparent)`, made of integers and byte arrays, any bit pattern of which is valid, and its
//! size equals the sum of its fields' sizes (asserted below), so it has no padding whose bytes would be
//! undefined.

use crate::{
    affinity::{AffinityKey, AffinityValue, ClientKind},
    allowance::Allowance,
    backend::{BackendFlags, BackendState, BackendValue, MemberKey, MemberSets, MemberValue},
    cidr::CidrValue,
    conntrack::{Coarse, ConnectionFlags, ConnectionValue, Phase},
    counters::{TrafficCounter, VerdictCounter},
    device::{DeviceFlags, DeviceRole, DeviceValue, NodeAddressKey, NodeAddressValue},
    event::Event,
    family::{Addr4, Addr6, Be16, Client4, Client6, Protocol, V4, V6},
    flood::{FloodState, NewFlows},
    flow::{FlowKey, Tuple},
    fragment::{FragmentKey, FragmentValue},
    frontend::{FrontendFlags, FrontendKey, FrontendKind, FrontendValue, Run},
    id::{BackendId, ServicePortId},
    kind::{Kind, Kinds},
    next_hop::{Macs, Manner, NextHopValue},
    peer::{PeerKey, PeerValue, TunnelCounter},
    rev_nat::{SockRevNatKey, SockRevNatValue},
    settings::Settings,
    source_range::{SourceRangeData, SourceRangeKey, SourceRangeValue},
    vip::{VipKey, VipValue},
};

/// Implements the marker traits for a type after checking that its fields fill it.
macro_rules! pod {
    ($($type:ty { $($field:ident: $field_type:ty),+ })+) => {$(
        const _: () = assert!(size_of::<$type>() == 0 $(+ size_of::<$field_type>())+, "padding");
        const _: fn($type) = |value| { $(let _: $field_type = value.$field;)+ };
        // SAFETY: integers and byte arrays only, so all zeroes is a value.
        unsafe impl bytemuck::Zeroable for $type {}
        // SAFETY: as the module says; the assertion above excludes padding, the fields' types are `Pod` themselves.
        unsafe impl bytemuck::Pod for $type {}
        #[cfg(feature = "user")]
        // SAFETY: `bytemuck::Pod` is stricter than `aya::Pod`.
        unsafe impl aya::Pod for $type {}
    )+};
}

/// The same for `repr(transparent)` and single-field types.
macro_rules! pod_newtype {
    ($($type:ident($inner:ty))+) => {$(
        const _: () = assert!(size_of::<$type>() == size_of::<$inner>(), "padding");
        // SAFETY: one integer or byte array, so all zeroes is a value.
        unsafe impl bytemuck::Zeroable for $type {}
        // SAFETY: one integer or byte array that fills the type.
        unsafe impl bytemuck::Pod for $type {}
        #[cfg(feature = "user")]
        // SAFETY: `bytemuck::Pod` is stricter than `aya::Pod`.
        unsafe impl aya::Pod for $type {}
    )+};
}

pod_newtype! {
    Addr4([u8; 4]) Addr6([u8; 16]) Be16([u8; 2]) Protocol(u8) Client4([u8; 8]) Client6([u8; 16])
    ServicePortId(u32) BackendId(u32) Macs([[u8; 6]; 2]) Manner(u16)
    FrontendFlags(u16) FrontendKind(u8) BackendState(u8) MemberSets(u8) BackendFlags(u32) ClientKind(u32)
    DeviceRole(u32) DeviceFlags(u32) ConnectionFlags(u8) Phase(u8) Coarse(u32)
}

pod! {
    FrontendKey<V4> { addr: Addr4, port: Be16, protocol: Protocol, _pad: u8 }
    FrontendKey<V6> { addr: Addr6, port: Be16, protocol: Protocol, _pad: u8 }
    Run { base: u32, count: u32 }
    FrontendValue { service_port: ServicePortId, flags: FrontendFlags, kind: FrontendKind, _pad: u8,
        affinity_timeout_s: u32, internal: Run, external: Run, own: Run }
    BackendValue<V4> { addr: Addr4, port: Be16, protocol: Protocol, state: BackendState, flags: BackendFlags,
        node: Addr4 }
    BackendValue<V6> { addr: Addr6, port: Be16, protocol: Protocol, state: BackendState, flags: BackendFlags,
        node: Addr6 }
    MemberKey { service_port: ServicePortId, backend: BackendId }
    MemberValue { state: BackendState, sets: MemberSets, _pad: [u8; 2] }
    SourceRangeData<V4> { service_port: ServicePortId, addr: Addr4 }
    SourceRangeData<V6> { service_port: ServicePortId, addr: Addr6 }
    SourceRangeKey<V4> { prefix_len: u32, data: SourceRangeData<V4> }
    SourceRangeKey<V6> { prefix_len: u32, data: SourceRangeData<V6> }
    SourceRangeValue { allowed: u32 }
    CidrValue<V4> { network: Addr4, mask: Addr4, used: u32 }
    CidrValue<V6> { network: Addr6, mask: Addr6, used: u32 }
    VipKey<V4> { addr: Addr4 }
    VipKey<V6> { addr: Addr6 }
    VipValue { used: u32 }
    PeerKey<V4> { prefix_len: u32, addr: Addr4 }
    PeerKey<V6> { prefix_len: u32, addr: Addr6 }
    PeerValue { allowed: u32 }
    TunnelCounter { unwrapped: u64, strangers: u64 }
    AffinityKey<V4> { service_port: ServicePortId, kind: ClientKind, client: Client4 }
    AffinityKey<V6> { service_port: ServicePortId, kind: ClientKind, client: Client6 }
    AffinityValue { last_used_ns: u64, backend: BackendId, _pad: u32 }
    DeviceValue { role: DeviceRole, flags: DeviceFlags, snat4: Addr4, snat6: Addr6, mac: [u8; 6], _pad: [u8; 2] }
    NodeAddressKey<V4> { addr: Addr4 }
    NodeAddressKey<V6> { addr: Addr6 }
    NodeAddressValue { ifindex: u32 }
    Tuple<V4> { src: Addr4, dst: Addr4, src_port: Be16, dst_port: Be16 }
    Tuple<V6> { src: Addr6, dst: Addr6, src_port: Be16, dst_port: Be16 }
    FlowKey<V4> { tuple: Tuple<V4>, protocol: Protocol, _pad: [u8; 3] }
    FlowKey<V6> { tuple: Tuple<V6>, protocol: Protocol, _pad: [u8; 3] }
    NextHopValue<V4> { src: Addr4, dst: Addr4, node: Addr4, from: u32, ifindex: u32, asked: Coarse, macs: Macs, mtu: u16,
        manner: Manner }
    NextHopValue<V6> { src: Addr6, dst: Addr6, node: Addr6, from: u32, ifindex: u32, asked: Coarse, macs: Macs, mtu: u16,
        manner: Manner }
    ConnectionValue<V4> { to: Tuple<V4>, service_port: ServicePortId, backend: BackendId, generation: u32,
        last_seen: Coarse, flags: ConnectionFlags, phase: Phase, _pad: [u8; 2] }
    ConnectionValue<V6> { to: Tuple<V6>, service_port: ServicePortId, backend: BackendId, generation: u32,
        last_seen: Coarse, flags: ConnectionFlags, phase: Phase, _pad: [u8; 2] }
    SockRevNatKey<V4> { cookie: [u32; 2], addr: Addr4, port: Be16, protocol: Protocol, _pad: u8 }
    SockRevNatKey<V6> { cookie: [u32; 2], addr: Addr6, port: Be16, protocol: Protocol, _pad: u8 }
    SockRevNatValue<V4> { addr: Addr4, port: Be16, _pad: u16, service_port: ServicePortId }
    SockRevNatValue<V6> { addr: Addr6, port: Be16, _pad: u16, service_port: ServicePortId }
    FragmentKey<V4> { src: Addr4, dst: Addr4, id: [u8; 4], protocol: Protocol, _pad: [u8; 3] }
    FragmentKey<V6> { src: Addr6, dst: Addr6, id: [u8; 4], protocol: Protocol, _pad: [u8; 3] }
    FragmentValue { src_port: Be16, dst_port: Be16 }
    VerdictCounter { packets: u64, bytes: u64 }
    TrafficCounter { connections: u64, packets: u64, bytes: u64, refused: u64 }
    Settings { events_sample: u32, events_service_port: u32, events_drops_only: u32, refusals_per_second: u32 }
    NewFlows { window: Coarse, flows: u32, flows_before: u32, _pad: u32, recorded: u64, promoted: u64 }
    FloodState { last: Coarse }
    Kinds { at: [Coarse; Kind::COUNT] }
    Allowance { last_ns: u64, credit: u64 }
    Event { time_ns: u64, service_port: ServicePortId, backend: BackendId, ifindex: u32, verdict: u32,
        src: [u8; 16], dst: [u8; 16], src_port: Be16, dst_port: Be16, protocol: Protocol, family: u8, _pad: [u8; 2] }
}
