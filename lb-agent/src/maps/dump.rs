//! [`MapState`] ↔ text, one sorted line per entry: what `lb-agent dump` prints and what tests compare.
//!
//! ```text
//! FRONTEND 10.96.0.10:53/UDP ClusterIP service-port=1 internal=2@1 external=2@1 affinity=600s
//! BACKEND id=1 10.244.1.2:5353/UDP active local
//! MEMBER service-port=1 backend=1 active
//! SLOT 1 backend=1
//! SOURCE_RANGE service-port=1 198.51.100.0/24
//! SERVICE_CIDR 0 10.96.0.0/12
//! VIP 10.96.0.10
//! PEER 192.0.2.12/32
//! GENERATION service-port=1 1
//! ```
//!
//! A run is `count@base`. Every line reads back to the entry it was written from.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use lb_common::{
    backend::{BackendFlags, BackendState, BackendValue, MemberKey, MemberSets, MemberValue},
    cidr::CidrValue,
    family::{Address, Be16, Family, Protocol, V4, V6},
    frontend::{FrontendFlags, FrontendKey, FrontendKind, FrontendValue, Run},
    id::{BackendId, ServicePortId},
    peer::{PeerKey, PeerValue},
    source_range::{SourceRangeKey, SourceRangeValue},
    vip::{VipKey, VipValue},
};

use crate::maps::{FamilyWrite, MapFamily, MapState, Write};

/// Flags with their names; affinity has a field of its own.
const FLAGS: [(FrontendFlags, &str); 11] = [
    (FrontendFlags::SOURCE_RANGES, "source-ranges"),
    (FrontendFlags::INTERNAL_LOCAL, "internal-local"),
    (FrontendFlags::EXTERNAL_LOCAL, "external-local"),
    (FrontendFlags::INTERNAL_DROP, "internal-drop"),
    (FrontendFlags::EXTERNAL_DROP, "external-drop"),
    (FrontendFlags::HOST_ONLY, "host-only"),
    (FrontendFlags::MAGLEV, "maglev"),
    (FrontendFlags::NODE_ALLOWED, "node-allowed"),
    (FrontendFlags::BY_PACKET, "by-packet"),
    (FrontendFlags::DSR, "dsr"),
    (FrontendFlags::STATELESS, "stateless"),
];

const KINDS: [FrontendKind; 4] = [
    FrontendKind::CLUSTER_IP,
    FrontendKind::NODE_PORT,
    FrontendKind::EXTERNAL_IP,
    FrontendKind::LOAD_BALANCER,
];
const STATES: [BackendState; 3] =
    [BackendState::ACTIVE, BackendState::TERMINATING, BackendState::QUARANTINED];
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// A line of `FRONTENDS`.
pub struct Frontend<'a, F: Family>(pub &'a FrontendKey<F>, pub &'a FrontendValue);
/// A line of `BACKENDS`.
pub struct Backend<'a, F: Family>(pub BackendId, pub &'a BackendValue<F>);
/// A line of `SOURCE_RANGES`.
pub struct SourceRange<'a, F: Family>(pub &'a SourceRangeKey<F>);
/// A line of `SERVICE_CIDRS`: the place, then the network.
pub struct ServiceCidr<'a, F: Family>(pub u32, pub &'a CidrValue<F>);
/// A line of `VIPS`.
pub struct Vip<'a, F: Family>(pub &'a VipKey<F>);
/// A line of `PEERS`.
pub struct Peer<'a, F: Family>(pub &'a PeerKey<F>);
/// The sets of a member, as a line names them.
const MEMBER_SETS: [(MemberSets, &str); 2] = [(MemberSets::CLUSTER, "cluster"), (MemberSets::LOCAL, "local")];

/// A line of `MEMBERS`.
pub struct Member<'a>(pub &'a MemberKey, pub &'a MemberValue);
/// A line of `SLOTS`.
pub struct Slot(pub u32, pub BackendId);
/// A line of `GENERATIONS`.
pub struct Generation(pub ServicePortId, pub u32);

/// `10.96.0.10:53`, or `[fd00:96::a]:53`.
pub fn socket_address<A: Address>(addr: A, port: Be16) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port.get())
}

/// `10.96.0.10:53/UDP`.
pub fn frontend_address<F: Family>(key: &FrontendKey<F>) -> String {
    format!("{}/{}", socket_address(key.addr, key.port), key.protocol.name())
}

/// `10.96.0.0/12`.
pub fn service_cidr_network<F: Family>(value: &CidrValue<F>) -> String {
    let len: u32 = (0..F::Addr::WORDS).map(|word| value.mask.word(word).count_ones()).sum();
    format!("{}/{len}", value.network.to_ip())
}

impl<F: Family> fmt::Display for Frontend<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key, value) = self;
        let (internal, external) = (value.internal, value.external);
        write!(
            f,
            "FRONTEND {} {} service-port={}",
            frontend_address(key),
            value.kind.name(),
            value.service_port.0
        )?;
        write!(
            f,
            " internal={}@{} external={}@{}",
            internal.count, internal.base, external.count, external.base
        )?;
        if value.flags.has(FrontendFlags::DSR) {
            write!(f, " own={}@{}", value.own.count, value.own.base)?;
        }
        if value.flags.has(FrontendFlags::AFFINITY) {
            write!(f, " affinity={}s", value.affinity_timeout_s)?;
        }
        let set: Vec<_> =
            FLAGS.iter().filter(|(flag, _)| value.flags.has(*flag)).map(|(_, name)| *name).collect();
        if set.is_empty() { Ok(()) } else { write!(f, " flags={}", set.join(",")) }
    }
}

impl<F: Family> fmt::Display for Backend<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(id, value) = self;
        let address = socket_address(value.addr, value.port);
        write!(f, "BACKEND id={} {address}/{} {}", id.0, value.protocol.name(), value.state.name())?;
        if value.flags.has(BackendFlags::LOCAL) {
            f.write_str(" local")?;
        }
        if value.node.is_unspecified() { Ok(()) } else { write!(f, " node={}", value.node.to_ip()) }
    }
}

impl<F: Family> fmt::Display for SourceRange<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.0;
        let len = key.prefix_len.saturating_sub(32);
        write!(f, "SOURCE_RANGE service-port={} {}/{len}", key.data.service_port.0, key.data.addr.to_ip())
    }
}

impl<F: Family> fmt::Display for ServiceCidr<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(index, value) = self;
        write!(f, "SERVICE_CIDR {index} {}", service_cidr_network(value))
    }
}

impl<F: Family> fmt::Display for Vip<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VIP {}", self.0.addr.to_ip())
    }
}

impl<F: Family> fmt::Display for Peer<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PEER {}/{}", self.0.addr.to_ip(), self.0.prefix_len)
    }
}

impl fmt::Display for Member<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key, value) = self;
        write!(
            f,
            "MEMBER service-port={} backend={} {}",
            key.service_port.0,
            key.backend.0,
            value.state.name()
        )?;
        let mut sets = MEMBER_SETS.iter().filter(|(set, _)| value.sets.has(*set));
        sets.try_for_each(|(_, name)| write!(f, " {name}"))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SLOT {} backend={}", self.0, self.1.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GENERATION service-port={} {}", self.0.0, self.1)
    }
}

impl fmt::Display for MapState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_frontends::<V4>(self, f)?;
        write_frontends::<V6>(self, f)?;
        write_backends(self, f)?;
        self.members.iter().try_for_each(|(key, value)| writeln!(f, "{}", Member(key, value)))?;
        self.slots.iter().try_for_each(|(index, backend)| writeln!(f, "{}", Slot(*index, *backend)))?;
        write_source_ranges::<V4>(self, f)?;
        write_source_ranges::<V6>(self, f)?;
        write_service_cidrs::<V4>(self, f)?;
        write_service_cidrs::<V6>(self, f)?;
        write_vips::<V4>(self, f)?;
        write_vips::<V6>(self, f)?;
        write_peers::<V4>(self, f)?;
        write_peers::<V6>(self, f)?;
        self.generations
            .iter()
            .try_for_each(|(id, generation)| writeln!(f, "{}", Generation(*id, *generation)))
    }
}

fn write_frontends<F: MapFamily>(state: &MapState, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    F::of(state).frontends.iter().try_for_each(|(key, value)| writeln!(f, "{}", Frontend(key, value)))
}

fn write_source_ranges<F: MapFamily>(state: &MapState, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    F::of(state).source_ranges.keys().try_for_each(|key| writeln!(f, "{}", SourceRange(key)))
}

fn write_service_cidrs<F: MapFamily>(state: &MapState, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut cidrs = F::of(state).service_cidrs.iter();
    cidrs.try_for_each(|(index, value)| writeln!(f, "{}", ServiceCidr(*index, value)))
}

fn write_vips<F: MapFamily>(state: &MapState, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    F::of(state).vips.keys().try_for_each(|key| writeln!(f, "{}", Vip(key)))
}

fn write_peers<F: MapFamily>(state: &MapState, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    F::of(state).peers.keys().try_for_each(|key| writeln!(f, "{}", Peer(key)))
}

/// Both families together, in the order of their common ids.
fn write_backends(state: &MapState, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut lines: BTreeMap<BackendId, String> = BTreeMap::new();
    lines.extend(state.v4.backends.iter().map(|(id, value)| (*id, Backend(*id, value).to_string())));
    lines.extend(state.v6.backends.iter().map(|(id, value)| (*id, Backend(*id, value).to_string())));
    lines.values().try_for_each(|line| writeln!(f, "{line}"))
}

/// A line that is no entry.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {number}: {line:?} is not an entry of a map")]
pub struct ParseError {
    /// Its number, from 1.
    pub number: usize,
    /// The line.
    pub line: String,
}

impl FromStr for MapState {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut state = Self::default();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let error = || ParseError { number: index + 1, line: line.to_owned() };
            state.apply(&parse_line(line).ok_or_else(error)?);
        }
        Ok(state)
    }
}

/// The write that makes the entry a line describes.
fn parse_line(line: &str) -> Option<Write> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (table, words) = words.split_first()?;
    match *table {
        "FRONTEND" => parse_frontend(words),
        "BACKEND" => parse_backend(words),
        "MEMBER" => {
            let [service_port, backend, state, sets @ ..] = words else { return None };
            let (service_port, backend) = (id(service_port)?, BackendId(field(backend, "backend")?));
            let sets = sets.iter().try_fold(MemberSets::default(), |sets, name| {
                let (set, _) = MEMBER_SETS.iter().find(|(_, known)| known == name)?;
                Some(sets.with(*set))
            })?;
            Some(Write::Member(
                MemberKey { service_port, backend },
                Some(MemberValue::new(parse_state(state)?, sets)),
            ))
        }
        "SLOT" => {
            let [index, backend] = words else { return None };
            Some(Write::Slot(index.parse().ok()?, BackendId(field(backend, "backend")?)))
        }
        "SOURCE_RANGE" => parse_source_range(words),
        "SERVICE_CIDR" => parse_service_cidr(words),
        "VIP" => parse_vip(words),
        "PEER" => parse_peer(words),
        "GENERATION" => {
            let [service_port, generation] = words else { return None };
            Some(Write::Generation(id(service_port)?, generation.parse().ok()?))
        }
        _ => None,
    }
}

/// The value of `name=value`.
fn field<T: FromStr>(word: &str, name: &str) -> Option<T> {
    word.strip_prefix(name)?.strip_prefix('=')?.parse().ok()
}

fn id(word: &str) -> Option<ServicePortId> {
    field(word, "service-port").map(ServicePortId)
}

fn parse_state(name: &str) -> Option<BackendState> {
    STATES.into_iter().find(|state| state.name() == name)
}

fn parse_address(word: &str) -> Option<(IpAddr, Be16, Protocol)> {
    let (address, protocol) = word.split_once('/')?;
    let address: SocketAddr = address.parse().ok()?;
    let protocol = PROTOCOLS.into_iter().find(|known| known.name() == protocol)?;
    Some((address.ip(), Be16::new(address.port()), protocol))
}

fn parse_run(word: &str, name: &str) -> Option<Run> {
    let text: String = field(word, name)?;
    let (count, base) = text.split_once('@')?;
    Some(Run { base: base.parse().ok()?, count: count.parse().ok()? })
}

fn parse_frontend(words: &[&str]) -> Option<Write> {
    let [address, kind, service_port, internal, external, rest @ ..] = words else { return None };
    let (ip, port, protocol) = parse_address(address)?;
    let mut value = FrontendValue {
        service_port: id(service_port)?,
        kind: KINDS.into_iter().find(|known| known.name() == *kind)?,
        internal: parse_run(internal, "internal")?,
        external: parse_run(external, "external")?,
        ..FrontendValue::default()
    };
    for word in rest {
        if let Some(affinity) = field::<String>(word, "affinity") {
            value.flags = value.flags.with(FrontendFlags::AFFINITY);
            value.affinity_timeout_s = affinity.strip_suffix('s')?.parse().ok()?;
        } else if word.starts_with("own=") {
            value.own = parse_run(word, "own")?;
        } else {
            for name in field::<String>(word, "flags")?.split(',') {
                value.flags = value.flags.with(FLAGS.iter().find(|(_, known)| *known == name)?.0);
            }
        }
    }
    frontend_write::<V4>(ip, port, protocol, value)
        .or_else(|| frontend_write::<V6>(ip, port, protocol, value))
}

fn frontend_write<F: MapFamily>(
    ip: IpAddr,
    port: Be16,
    protocol: Protocol,
    value: FrontendValue,
) -> Option<Write> {
    let key = FrontendKey::new(F::Addr::from_ip(ip)?, port, protocol);
    Some(F::write(FamilyWrite::Frontend(key, Some(value))))
}

fn parse_backend(words: &[&str]) -> Option<Write> {
    let [id, address, state, rest @ ..] = words else { return None };
    let (flags, rest) = match rest {
        ["local", rest @ ..] => (BackendFlags::LOCAL, rest),
        rest => (BackendFlags::default(), rest),
    };
    let node = match rest {
        [] => None,
        [node] => Some(field::<IpAddr>(node, "node")?),
        _ => return None,
    };
    let id = BackendId(field(id, "id")?);
    let (ip, port, protocol) = parse_address(address)?;
    let state = parse_state(state)?;
    backend_write::<V4>(id, ip, (port, protocol), (state, flags, node))
        .or_else(|| backend_write::<V6>(id, ip, (port, protocol), (state, flags, node)))
}

fn backend_write<F: MapFamily>(
    id: BackendId,
    ip: IpAddr,
    (port, protocol): (Be16, Protocol),
    (state, flags, node): (BackendState, BackendFlags, Option<IpAddr>),
) -> Option<Write> {
    let node = node.and_then(F::Addr::from_ip).unwrap_or_default();
    let value = BackendValue { addr: F::Addr::from_ip(ip)?, port, protocol, state, flags, node };
    Some(F::write(FamilyWrite::Backend(id, Some(value))))
}

fn parse_source_range(words: &[&str]) -> Option<Write> {
    let [service_port, range] = words else { return None };
    let (service_port, range): (_, ipnet::IpNet) = (id(service_port)?, range.parse().ok()?);
    source_range_write::<V4>(service_port, range).or_else(|| source_range_write::<V6>(service_port, range))
}

fn source_range_write<F: MapFamily>(service_port: ServicePortId, range: ipnet::IpNet) -> Option<Write> {
    let key =
        SourceRangeKey::new(service_port, F::Addr::from_ip(range.network())?, range.prefix_len().into());
    Some(F::write(FamilyWrite::SourceRange(key, Some(SourceRangeValue { allowed: 1 }))))
}

fn parse_service_cidr(words: &[&str]) -> Option<Write> {
    let [index, cidr] = words else { return None };
    let (index, cidr): (_, ipnet::IpNet) = (index.parse().ok()?, cidr.parse().ok()?);
    service_cidr_write::<V4>(index, cidr).or_else(|| service_cidr_write::<V6>(index, cidr))
}

fn service_cidr_write<F: MapFamily>(index: u32, cidr: ipnet::IpNet) -> Option<Write> {
    let (network, mask) = (F::Addr::from_ip(cidr.network())?, F::Addr::from_ip(cidr.netmask())?);
    let value = CidrValue { network, mask, used: 1 };
    Some(F::write(FamilyWrite::ServiceCidr(index, Some(value))))
}

fn parse_vip(words: &[&str]) -> Option<Write> {
    let [addr] = words else { return None };
    let addr: IpAddr = addr.parse().ok()?;
    vip_write::<V4>(addr).or_else(|| vip_write::<V6>(addr))
}

fn vip_write<F: MapFamily>(addr: IpAddr) -> Option<Write> {
    let key = VipKey { addr: F::Addr::from_ip(addr)? };
    Some(F::write(FamilyWrite::Vip(key, Some(VipValue { used: 1 }))))
}

fn parse_peer(words: &[&str]) -> Option<Write> {
    let [network] = words else { return None };
    let network: IpNet = network.parse().ok()?;
    peer_write::<V4>(network).or_else(|| peer_write::<V6>(network))
}

fn peer_write<F: MapFamily>(network: IpNet) -> Option<Write> {
    let key = PeerKey { prefix_len: network.prefix_len().into(), addr: F::Addr::from_ip(network.addr())? };
    Some(F::write(FamilyWrite::Peer(key, Some(PeerValue { allowed: 1 }))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
FRONTEND 10.96.0.10:53/UDP ClusterIP service-port=1 internal=2@1 external=2@1 affinity=600s
FRONTEND 127.0.0.1:30080/TCP NodePort service-port=2 internal=0@0 external=0@0 flags=external-drop,host-only
FRONTEND 203.0.113.1:80/TCP LoadBalancer service-port=2 internal=1@3 external=0@0 affinity=1s flags=source-ranges,external-drop
FRONTEND 203.0.113.2:80/TCP LoadBalancer service-port=2 internal=2@5 external=2@5 own=1@7 flags=dsr
FRONTEND [fd00:96::a]:53/UDP ClusterIP service-port=1 internal=1@4 external=1@4
BACKEND id=1 10.244.1.2:5353/UDP active local
BACKEND id=2 [fd00:244:1::2]:5353/UDP terminating
BACKEND id=3 10.244.2.2:5353/UDP quarantined node=192.0.2.12
MEMBER service-port=1 backend=1 active
MEMBER service-port=1 backend=2 terminating
SLOT 1 backend=1
SLOT 4 backend=2
SOURCE_RANGE service-port=2 198.51.100.0/24
SOURCE_RANGE service-port=2 2001:db8::/32
SERVICE_CIDR 0 10.96.0.0/12
SERVICE_CIDR 1 10.128.0.0/24
SERVICE_CIDR 0 fd00:96::/112
VIP 10.96.0.10
VIP fd00:96::a
PEER 198.51.100.0/24
PEER 192.0.2.12/32
PEER 2001:db8:2::12/128
GENERATION service-port=1 7
";

    #[test]
    fn every_line_reads_back() {
        let state: MapState = TEXT.parse().unwrap();
        assert_eq!(state.to_string(), TEXT);
        assert_eq!(state.v6.backends.len(), 1);
    }

    #[test]
    fn a_line_that_is_no_entry_is_named() {
        let error = "SLOT 1 backend=1\nSLOT x backend=1\n".parse::<MapState>().unwrap_err();
        assert_eq!(error, ParseError { number: 2, line: "SLOT x backend=1".to_owned() });
        for line in
            ["FRONTEND 1.2.3.4:1/TCP ClusterIP service-port=1 internal=1@1 external=1@1 flags=odd", "NOTHING"]
        {
            assert!(line.parse::<MapState>().is_err(), "{line}");
        }
    }
}
