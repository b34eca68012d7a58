//! The frontends and source ranges of one service port in one family: what clients dial, and what applies there.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use lb_common::{
    family::{Address, Be16, Family, Protocol},
    frontend::{FrontendFlags, FrontendKey, FrontendKind, FrontendValue, Run},
    id::ServicePortId,
    source_range::SourceRangeKey,
};

use crate::model::{
    node::NodeAddresses,
    service::{Algorithm, Policy, Port, Service, addresses},
};

/// The runs of a service port in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Of the cluster set.
    pub cluster: Run,
    /// Of the local set.
    pub local: Run,
    /// True if something serves somewhere (`select`).
    pub has_any: bool,
    /// How a backend is chosen from them.
    pub algorithm: Algorithm,
}

impl Runs {
    fn flags(self) -> FrontendFlags {
        match self.algorithm {
            Algorithm::Random => FrontendFlags::default(),
            Algorithm::Maglev => FrontendFlags::MAGLEV,
        }
    }
}

/// What all frontends of a service port have in common.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The Service.
    pub service: &'a Service,
    /// The port.
    pub port: &'a Port,
    /// Its id.
    pub id: ServicePortId,
}

/// Every frontend of the service port in family `F`. Where two of them are the same address and port, the stricter
/// kind wins: a load balancer address keeps its source ranges when it is listed as externalIP too.
pub fn frontends<F: Family>(
    origin: Origin<'_>,
    runs: Runs,
    node: &NodeAddresses,
) -> BTreeMap<FrontendKey<F>, FrontendValue> {
    let Origin { service, port, .. } = origin;
    let mut found = BTreeMap::new();
    let Some(cluster_ip) = service.cluster_ip::<F>() else { return found };
    let mut add = |addr: F::Addr, number: u16, value: FrontendValue| {
        found.entry(FrontendKey::new(addr, Be16::new(number), port.name.protocol)).or_insert(value);
    };
    add(cluster_ip, port.port, cluster_ip_value(origin, runs));
    let range_flags = range_flags::<F>(service, node);
    for addr in addresses::<F>(&service.load_balancer_ips) {
        add(addr, port.port, outside_value(origin, runs, FrontendKind::LOAD_BALANCER, range_flags));
    }
    for addr in addresses::<F>(&service.external_ips) {
        add(
            addr,
            port.port,
            outside_value(origin, runs, FrontendKind::EXTERNAL_IP, FrontendFlags::default()),
        );
    }
    if let Some(number) = port.node_port {
        let own = node.0.iter().filter_map(|ip| F::Addr::from_ip(*ip)).filter(|addr| !addr.is_loopback());
        own.for_each(|addr| {
            add(addr, number, outside_value(origin, runs, FrontendKind::NODE_PORT, FrontendFlags::default()));
        });
        // Only socket hooks look there, and they know no SCTP.
        if port.name.protocol != Protocol::SCTP {
            let host_only = outside_value(origin, runs, FrontendKind::NODE_PORT, FrontendFlags::HOST_ONLY);
            add(F::Addr::loopback(), number, host_only);
        }
    }
    bring_together(&mut found);
    let is_own = |key: &FrontendKey<F>| node.0.contains(&key.addr.to_ip());
    found.iter_mut().filter(|(key, _)| !is_own(key)).for_each(|(_, value)| free_of_state(value));
    found
}

/// What source ranges of family `F` mean for a frontend that has them.
fn range_flags<F: Family>(service: &Service, node: &NodeAddresses) -> FrontendFlags {
    let Some(ranges) = service.source_ranges::<F>() else { return FrontendFlags::default() };
    let mut own = node.0.iter().filter(|ip| F::Addr::from_ip(**ip).is_some()).peekable();
    if own.peek().is_some() && own.all(|ip| covers(&ranges, *ip)) {
        FrontendFlags::SOURCE_RANGES.with(FrontendFlags::NODE_ALLOWED)
    } else {
        FrontendFlags::SOURCE_RANGES
    }
}

/// Lets XDP do without connections where the table, and nothing else, says where a flow goes
/// ([`FrontendFlags::STATELESS`]).
fn free_of_state(value: &mut FrontendValue) {
    let needed = FrontendFlags::DSR.with(FrontendFlags::MAGLEV);
    let is_free = !value.flags.has(FrontendFlags::AFFINITY) && !value.flags.has(FrontendFlags::SOURCE_RANGES);
    if value.flags.has(needed) && is_free {
        value.flags = value.flags.with(FrontendFlags::STATELESS);
    }
}

/// With affinity every frontend goes the way of those that have source ranges ([`FrontendFlags::BY_PACKET`]).
fn bring_together<K>(frontends: &mut BTreeMap<K, FrontendValue>) {
    let is_split = frontends.values().any(|value| {
        value.flags.has(FrontendFlags::SOURCE_RANGES) && value.flags.has(FrontendFlags::AFFINITY)
    });
    let rest = frontends.values_mut().filter(|value| !value.flags.has(FrontendFlags::SOURCE_RANGES));
    let rest = rest.filter(|value| is_split && !value.flags.has(FrontendFlags::HOST_ONLY));
    rest.for_each(|value| value.flags = value.flags.with(FrontendFlags::BY_PACKET));
}

/// A ClusterIP knows one policy, the internal one, wherever the client stands (spec 2.24, 2.26).
fn cluster_ip_value(origin: Origin<'_>, runs: Runs) -> FrontendValue {
    let is_local = origin.service.internal_policy == Policy::Local;
    let run = if is_local { runs.local } else { runs.cluster };
    let mut flags = runs.flags();
    if is_local {
        flags = flags.with(FrontendFlags::INTERNAL_LOCAL).with(FrontendFlags::EXTERNAL_LOCAL);
    }
    if is_local && is_silent(runs) {
        flags = flags.with(FrontendFlags::INTERNAL_DROP).with(FrontendFlags::EXTERNAL_DROP);
    }
    value(origin, FrontendKind::CLUSTER_IP, flags, [run, run, Run::default()])
}

/// Any other frontend: clients in the cluster get every backend (the short-circuit of spec 4.40), clients outside
/// what the external policy allows (spec 2.25).
fn outside_value(origin: Origin<'_>, runs: Runs, kind: FrontendKind, flags: FrontendFlags) -> FrontendValue {
    let mut flags = flags.with(runs.flags());
    let is_local = origin.service.external_policy == Policy::Local;
    let external = if is_local { runs.local } else { runs.cluster };
    if is_local {
        flags = flags.with(FrontendFlags::EXTERNAL_LOCAL);
    }
    if is_local && is_silent(runs) {
        flags = flags.with(FrontendFlags::EXTERNAL_DROP);
    }
    let is_direct = origin.service.returns_directly(origin.port) && !flags.has(FrontendFlags::HOST_ONLY);
    if is_direct {
        flags = flags.with(FrontendFlags::DSR);
    }
    let own = if is_direct { runs.local } else { Run::default() };
    value(origin, kind, flags, [runs.cluster, external, own])
}

/// Something serves, but not here: policy Local answers with silence (spec 5).
fn is_silent(runs: Runs) -> bool {
    runs.local.count == 0 && runs.has_any
}

fn value(
    origin: Origin<'_>,
    kind: FrontendKind,
    flags: FrontendFlags,
    [internal, external, own]: [Run; 3],
) -> FrontendValue {
    let affinity = origin.service.affinity_timeout_s;
    FrontendValue {
        service_port: origin.id,
        flags: if affinity.is_some() { flags.with(FrontendFlags::AFFINITY) } else { flags },
        kind,
        _pad: 0,
        affinity_timeout_s: affinity.unwrap_or_default(),
        internal,
        external,
        own,
    }
}

/// The networks that may use the load balancer addresses of family `F`. If they include this node, so may the
/// addresses themselves: that is the source the node's own packets have there (spec 1.51).
pub fn source_ranges<F: Family>(origin: Origin<'_>, node: &NodeAddresses) -> Vec<SourceRangeKey<F>> {
    let mut vips = addresses::<F>(&origin.service.load_balancer_ips).peekable();
    if origin.service.cluster_ip::<F>().is_none() || vips.peek().is_none() {
        return Vec::new();
    }
    let Some(ranges) = origin.service.source_ranges::<F>() else { return Vec::new() };
    let key = |addr, len| SourceRangeKey::new(origin.id, addr, len);
    let mut keys: Vec<_> = ranges
        .iter()
        .filter_map(|range| Some(key(F::Addr::from_ip(range.network())?, range.prefix_len().into())))
        .collect();
    if node.0.iter().any(|ip| covers(&ranges, *ip)) {
        keys.extend(vips.map(|vip| key(vip, F::BITS)));
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

fn covers(ranges: &[IpNet], ip: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&ip))
}
