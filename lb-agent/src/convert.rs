//! API objects → model values: which objects count, and what they say once every default is filled in and every bad
//! value is refused.
//!
//! Pure; called by the model for each object that changes. A fault costs what it touches and nothing else: a bad
//! address costs the address, a bad port the port. Together with its submodules the only code that knows the API's
//! types, and the only one that says "endpoint".

mod endpoint;
mod parse;
mod service;

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::{
    api::{core::v1, networking::v1::ServiceCIDR},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    model::{
        backend::Slice,
        node::{Node, NodePresence, OtherNode},
        service::{Algorithm, Forwarding, Service},
    },
    source::{Object, Refusal},
};

pub use parse::{parse_cidr, parse_ip};
pub use service::{ALGORITHM_ANNOTATION, FORWARDING_ANNOTATION};

/// Settings that decide what counts.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Own node name, lower case (spec 2.3).
    pub node_name: Arc<str>,
    /// Where externalIPs may lie; empty: anywhere (DESIGN 7).
    pub external_ip_cidrs: Vec<IpNet>,
    /// Algorithm of Services that name none.
    pub algorithm: Algorithm,
    /// How packets of Services that say nothing of it get to backends elsewhere.
    pub forwarding: Forwarding,
}

/// What an object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Converted {
    /// A Service to proxy.
    Service(Service),
    /// Backends of a service.
    Slice(Slice),
    /// This node.
    Node(Node, NodePresence),
    /// Another node, where tunnels may end.
    OtherNode(OtherNode),
    /// Networks of ClusterIPs.
    ServiceCidr(Vec<IpNet>),
    /// Nothing for this proxy: as if the object did not exist.
    NotProxied,
}

/// What `object` says, and what of it was refused.
pub fn convert(object: &Object, rules: &Rules) -> (Converted, Vec<Refusal>) {
    let mut faults = Faults { object: object.object_ref().to_string(), refusals: Vec::new() };
    let converted = match object {
        Object::Service(service) => service::convert(service, rules, &mut faults).map(Converted::Service),
        Object::EndpointSlice(slice) => endpoint::convert_slice(slice, &mut faults).map(Converted::Slice),
        Object::Endpoints(endpoints) => {
            endpoint::convert_endpoints(endpoints, &mut faults).map(Converted::Slice)
        }
        Object::Node(node) => convert_node(node, rules, &mut faults),
        Object::ServiceCidr(cidr) => Some(Converted::ServiceCidr(convert_service_cidr(cidr, &mut faults))),
    };
    (converted.unwrap_or(Converted::NotProxied), faults.refusals)
}

/// The cluster autoscaler puts it on nodes it is about to remove; its effect does not matter (spec 6.23).
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Collects what is refused of one object.
struct Faults {
    object: String,
    refusals: Vec<Refusal>,
}

impl Faults {
    fn refuse(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.refusals.push(Refusal {
            object: self.object.clone(),
            field: field.into(),
            reason: reason.into(),
        });
    }

    /// The value, or `None` after its error was noted under `field`.
    fn accept<T>(&mut self, field: impl Into<String>, value: Result<T, String>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(reason) => {
                self.refuse(field, reason);
                None
            }
        }
    }
}

/// True if the object carries the label at all: its value does not matter (spec 1.1, 1.3).
fn has_label(metadata: &ObjectMeta, label: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

/// Of other nodes only the addresses mean anything here (spec 9.12).
fn convert_node(node: &v1::Node, rules: &Rules, faults: &mut Faults) -> Option<Converted> {
    let is_own = node.metadata.name.as_deref().is_some_and(|name| *name == *rules.node_name);
    let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get("topology.kubernetes.io/zone"));
    let zone = zone.filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into());
    let own = || Node { name: rules.node_name.clone(), zone, pod_cidrs: pod_cidrs(node, faults) };
    Some(if is_own {
        Converted::Node(own(), presence(node))
    } else {
        Converted::OtherNode(other_node(node, faults))
    })
}

fn other_node(node: &v1::Node, faults: &mut Faults) -> OtherNode {
    OtherNode {
        internal_ips: addresses(node, "InternalIP", faults),
        external_ips: addresses(node, "ExternalIP", faults),
    }
}

/// Its addresses of a type, in its order.
fn addresses(node: &v1::Node, of_type: &str, faults: &mut Faults) -> Box<[IpAddr]> {
    let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten()).enumerate();
    let wanted = listed.filter(|(_, address)| address.type_ == of_type);
    wanted
        .filter_map(|(index, address)| {
            faults.accept(format!("status.addresses[{index}].address"), parse_ip(&address.address))
        })
        .collect()
}

/// `spec.podCIDRs`, or of an older API server `spec.podCIDR`.
fn pod_cidrs(node: &v1::Node, faults: &mut Faults) -> Box<[IpNet]> {
    let Some(spec) = &node.spec else { return Box::default() };
    let list = spec.pod_cidrs.as_deref().unwrap_or(spec.pod_cidr.as_slice());
    let parsed = list.iter().enumerate();
    parsed
        .filter_map(|(index, cidr)| faults.accept(format!("spec.podCIDRs[{index}]"), parse_cidr(cidr)))
        .collect()
}

fn presence(node: &v1::Node) -> NodePresence {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let is_leaving =
        node.metadata.deletion_timestamp.is_some() || taints.any(|taint| taint.key == AUTOSCALER_TAINT);
    if is_leaving { NodePresence::Leaving } else { NodePresence::Present }
}

fn convert_service_cidr(object: &ServiceCIDR, faults: &mut Faults) -> Vec<IpNet> {
    let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    let parsed = cidrs.iter().enumerate();
    parsed
        .filter_map(|(index, cidr)| faults.accept(format!("spec.cidrs[{index}]"), parse_cidr(cidr)))
        .collect()
}

#[cfg(test)]
mod tests;
