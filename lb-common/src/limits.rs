//! Every size, once. Entries of maps are the defaults of `lb-agent run --max-…`.

use crate::verdict::Verdict;

/// Service port ids, index 0 unused: entries of `GENERATIONS` and `SERVICE_COUNTERS`.
pub const SERVICE_PORTS_MAX: u32 = 65_536;
/// Entries of each `FRONTENDS`.
pub const FRONTENDS_MAX: u32 = 262_144;
/// Backend ids, index 0 unused: entries of each `BACKENDS` and of `BACKEND_COUNTERS`.
pub const BACKENDS_MAX: u32 = 262_144;
/// Entries of `SLOTS`: internal and external runs, and room for fresh ones.
pub const SLOTS_MAX: u32 = 1_048_576;
/// Entries of `MEMBERS`.
pub const MEMBERS_MAX: u32 = 524_288;
/// Entries of each `SOURCE_RANGES`.
pub const SOURCE_RANGES_MAX: u32 = 65_536;
/// Entries of each `VIPS`: every frontend may have an address of its own.
pub const VIPS_MAX: u32 = FRONTENDS_MAX;
/// Entries of each `PEERS`; fixed: three clusters of the largest size, each node with an address of each kind.
pub const PEERS_MAX: u32 = 65_536;
/// Entries of each `SERVICE_CIDRS`; fixed.
pub const SERVICE_CIDRS_MAX: u32 = 8;
/// Elements of `PORTS`, `TARGET_PORTS` and `VIP_HASHES`, 64 numbers each; fixed.
pub const BIT_SET_WORDS: u32 = 1_024;
/// Entries of each `NODE_ADDRESSES`.
pub const NODE_ADDRESSES_MAX: u32 = 4_096;
/// Entries of `DEVICES`.
pub const DEVICES_MAX: u32 = 4_096;
/// Entries of each `CONNECTIONS`; two per connection.
pub const CONNECTIONS_MAX: u32 = 262_144;
/// Entries of each `FLOOD`; two per flow.
pub const FLOOD_MAX: u32 = 65_536;
/// New flows a second and CPU from which on flows are recorded in `FLOOD`, at most and at least, unless the agent is told
/// otherwise. In between it is the CPU's share of `CONNECTIONS` divided by [`FLOOD_SHARE`].
pub const FLOOD_THRESHOLD_MAX: u32 = 10_000;
/// As [`FLOOD_THRESHOLD_MAX`].
pub const FLOOD_THRESHOLD_MIN: u32 = 100;
/// As [`FLOOD_THRESHOLD_MAX`]. Two entries for a flow: a second of what is no flood fills a thirty-second.
pub const FLOOD_SHARE: u32 = 64;
/// Entries of each `HOST_FLOWS`: more than there are source ports towards one backend.
pub const HOST_FLOWS_MAX: u32 = 65_536;
/// Entries of each `AFFINITY`.
pub const AFFINITY_MAX: u32 = 65_536;
/// Entries of each `SOCK_REV_NAT`.
pub const SOCK_REV_NAT_MAX: u32 = 65_536;
/// Entries of each `FRAGMENTS`.
pub const FRAGMENTS_MAX: u32 = 8_192;
/// Entries of each `NEXT_HOPS`, per CPU; a power of two; fixed.
pub const NEXT_HOPS: u32 = 1_024;
/// Bytes of `EVENTS`; a power of two and a multiple of the page size.
pub const EVENTS_BYTES: u32 = 262_144;

/// First SNAT source port. The range lies below the NodePorts (30000–32767) and the default `ip_local_port_range`
/// (32768–60999), so that no host socket has one of its ports by chance.
pub const SNAT_PORT_MIN: u16 = 1_024;
/// Number of SNAT source ports: as many connections to one backend can be open, or not yet forgotten, at a time.
pub const SNAT_PORT_COUNT: u16 = 28_976;
/// Tries to find a free SNAT source port before the packet is dropped.
pub const SNAT_TRIES: u32 = 32;

/// Of these tries, those after which a flow of a flood takes the port of another that has not yet proved itself.
pub const FLOOD_TRIES: u32 = 4;

/// IPv6 extension headers skipped before the transport header.
pub const IPV6_EXTENSIONS_MAX: u32 = 6;

const _: () = assert!(SNAT_PORT_MIN + SNAT_PORT_COUNT == 30_000);
const _: () = assert!(SLOTS_MAX >= 2 * MEMBERS_MAX);
const _: () = assert!(MEMBERS_MAX >= BACKENDS_MAX);
const _: () = assert!(EVENTS_BYTES.is_power_of_two());
const _: () = assert!(Verdict::COUNT == 20);
