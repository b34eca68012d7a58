//! EndpointSlice and core/v1 Endpoints → [`Slice`] (spec 1.3, 1.22 to 1.27, 2.1 to 2.4).

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};

use super::{
    Faults, has_label,
    parse::{parse_ip, parse_port, parse_protocol},
};
use crate::model::{
    backend::{Conditions, Group, Hints, Host, ServingPort, Slice},
    service::PortName,
};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Label of slices that belong to a headless service (spec 1.3).
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The slice, unless it is headless or belongs to nobody.
pub(super) fn convert_slice(object: &discovery::EndpointSlice, faults: &mut Faults) -> Option<Slice> {
    if has_label(&object.metadata, HEADLESS_LABEL) {
        return None;
    }
    let service = object.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
    let Some(service) = service.filter(|service| !service.is_empty()) else {
        faults
            .refuse(format!("metadata.labels[{SERVICE_LABEL}]"), "missing: the slice belongs to no Service");
        return None;
    };
    let Some(is_family) = family_of(&object.address_type) else {
        faults.refuse("addressType", format!("{:?} is not proxied: IPv4 and IPv6 are", object.address_type));
        return None;
    };
    let ports = object.ports.iter().flatten().enumerate();
    let endpoints = object.endpoints.iter().flatten().enumerate();
    let group = Group {
        ports: ports.filter_map(|(index, port)| convert_port(index, port, faults)).collect(),
        hosts: endpoints
            .filter_map(|(index, endpoint)| convert_endpoint(index, endpoint, is_family, faults))
            .collect(),
    };
    Some(Slice { service: service.as_str().into(), groups: Box::new([group]) })
}

fn family_of(address_type: &str) -> Option<fn(&IpAddr) -> bool> {
    match address_type {
        "IPv4" => Some(IpAddr::is_ipv4),
        "IPv6" => Some(IpAddr::is_ipv6),
        _ => None,
    }
}

/// A port needs a name, which may be empty, and a number: without them it serves nothing (spec 1.24, 1.25).
fn convert_port(index: usize, port: &discovery::EndpointPort, faults: &mut Faults) -> Option<ServingPort> {
    let field = |name| format!("ports[{index}].{name}");
    let name = port.name.as_deref().ok_or_else(|| "missing: no service port can match it".to_owned());
    let name = faults.accept(field("name"), name);
    let number =
        port.port.ok_or_else(|| "missing: it does not mean every port".to_owned()).and_then(parse_port);
    let number = faults.accept(field("port"), number);
    let protocol = faults.accept(field("protocol"), parse_protocol(port.protocol.as_deref()))?;
    Some(ServingPort { name: PortName { name: name?.into(), protocol }, port: number? })
}

/// Only the first address counts (spec 1.27).
fn convert_endpoint(
    index: usize,
    endpoint: &discovery::Endpoint,
    is_family: fn(&IpAddr) -> bool,
    faults: &mut Faults,
) -> Option<Host> {
    let Some(text) = endpoint.addresses.first() else {
        faults.refuse(format!("endpoints[{index}].addresses"), "empty: one address is needed");
        return None;
    };
    let ip = parse_ip(text).and_then(|ip| match is_family(&ip) {
        true => Ok(ip),
        false => Err(format!("{text:?} is not of the family that addressType names")),
    });
    let given = endpoint.conditions.as_ref();
    Some(Host {
        addr: faults.accept(format!("endpoints[{index}].addresses[0]"), ip)?,
        conditions: Conditions {
            ready: given.and_then(|given| given.ready).unwrap_or(true),
            serving: given.and_then(|given| given.serving).unwrap_or(true),
            terminating: given.and_then(|given| given.terminating).unwrap_or(false),
        },
        node: endpoint.node_name.as_deref().map(Into::into),
        hints: endpoint.hints.as_ref().and_then(convert_hints),
    })
}

fn convert_hints(hints: &discovery::EndpointHints) -> Option<Box<Hints>> {
    let nodes: Box<[Arc<str>]> =
        hints.for_nodes.iter().flatten().map(|hint| hint.name.as_str().into()).collect();
    let zones: Box<[Arc<str>]> =
        hints.for_zones.iter().flatten().map(|hint| hint.name.as_str().into()).collect();
    (!nodes.is_empty() || !zones.is_empty()).then(|| Box::new(Hints { nodes, zones }))
}

/// A hand-written Endpoints object; it belongs to the Service of its own name. kube-proxy never reads these (spec
/// 1.6): in a cluster a controller mirrors them into slices.
pub(super) fn convert_endpoints(object: &core::Endpoints, faults: &mut Faults) -> Option<Slice> {
    if has_label(&object.metadata, HEADLESS_LABEL) {
        return None;
    }
    let subsets = object.subsets.iter().flatten().enumerate();
    let groups = subsets.map(|(index, subset)| convert_subset(index, subset, faults)).collect();
    Some(Slice { service: object.metadata.name.as_deref()?.into(), groups })
}

fn convert_subset(index: usize, subset: &core::EndpointSubset, faults: &mut Faults) -> Group {
    let at = format!("subsets[{index}]");
    let ports = subset.ports.iter().flatten().enumerate();
    let ports =
        ports.filter_map(|(index, port)| convert_subset_port(&format!("{at}.ports[{index}]"), port, faults));
    let ports = ports.collect();
    let mut hosts = Vec::new();
    for (list, addresses, ready) in
        [("addresses", &subset.addresses, true), ("notReadyAddresses", &subset.not_ready_addresses, false)]
    {
        for (index, address) in addresses.iter().flatten().enumerate() {
            let ip = faults.accept(format!("{at}.{list}[{index}].ip"), parse_ip(&address.ip));
            let conditions = Conditions { ready, serving: true, terminating: false };
            let node = address.node_name.as_deref().map(Into::into);
            hosts.extend(ip.map(|addr| Host { addr, conditions, node, hints: None }));
        }
    }
    Group { ports, hosts: hosts.into() }
}

fn convert_subset_port(field: &str, port: &core::EndpointPort, faults: &mut Faults) -> Option<ServingPort> {
    let number = faults.accept(format!("{field}.port"), parse_port(port.port));
    let protocol = faults.accept(format!("{field}.protocol"), parse_protocol(port.protocol.as_deref()))?;
    let name = PortName { name: port.name.as_deref().unwrap_or_default().into(), protocol };
    Some(ServingPort { name, port: number? })
}
