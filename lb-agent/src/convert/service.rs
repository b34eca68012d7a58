//! core/v1 Service → [`Service`] (spec 1.7 to 1.15, 1.35 to 1.58).

use std::{net::IpAddr, str::FromStr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::api::core::v1;
use lb_common::family::{Addr4, Addr6, Address};

use super::{
    Faults, Rules, has_label,
    parse::{parse_cidr, parse_ip, parse_port, parse_protocol},
};
use crate::model::service::{Policy, Port, PortName, Service};

/// Label of Services that another proxy takes care of (spec 1.1).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// `timeoutSeconds` when the API server has not filled it in (spec 3.2).
const AFFINITY_TIMEOUT_DEFAULT_S: u32 = 10_800;
const AFFINITY_TIMEOUT_MAX_S: u32 = 86_400;
/// Annotation that names the Service's `Algorithm`.
pub const ALGORITHM_ANNOTATION: &str = "lb-ebpf.io/algorithm";
/// Annotation that names the Service's `Forwarding`.
pub const FORWARDING_ANNOTATION: &str = "lb-ebpf.io/forwarding";

/// The Service, unless there is nothing to proxy (spec 1.7, 1.8, 1.11).
pub(super) fn convert(object: &v1::Service, rules: &Rules, faults: &mut Faults) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    let text_ip =
        spec.cluster_ip.as_deref().or_else(|| spec.cluster_ips.as_ref()?.first().map(String::as_str));
    if matches!(text_ip, None | Some("" | "None"))
        || spec.type_.as_deref() == Some("ExternalName")
        || has_label(&object.metadata, PROXY_NAME_LABEL)
    {
        return None;
    }
    let ports = convert_ports(spec, faults);
    let cluster_ips = cluster_ips(spec, faults);
    if ports.is_empty() || cluster_ips.is_empty() {
        return None;
    }
    let external_policy = external_policy(spec);
    let service = Service {
        uid: uid(object),
        created_s: object.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
        external_ips: external_ips(spec, rules, faults),
        load_balancer_ips: load_balancer_ips(object, faults),
        source_ranges: source_ranges(spec, faults),
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy,
        affinity_timeout_s: affinity_timeout_s(spec, faults),
        forwarding: annotation(object, FORWARDING_ANNOTATION, faults).unwrap_or(rules.forwarding),
        algorithm: annotation(object, ALGORITHM_ANNOTATION, faults).unwrap_or(rules.algorithm),
        health_check_node_port: health_check_node_port(spec, external_policy, faults),
        cluster_ips,
        ports,
    };
    warn_of_closed_families(&service, faults);
    Some(service)
}

/// Kept only where an event may name it: the Services of a large cluster need no 36 bytes each.
fn uid(object: &v1::Service) -> Arc<str> {
    let has_health_check = object.spec.as_ref().is_some_and(|spec| spec.health_check_node_port.is_some());
    object.metadata.uid.as_deref().filter(|_| has_health_check).unwrap_or_default().into()
}

/// One address per family: by `ipFamilies`, or without it `clusterIP` alone (spec 1.9, 1.10).
fn cluster_ips(spec: &v1::ServiceSpec, faults: &mut Faults) -> Box<[IpAddr]> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let texts = spec.cluster_ips.as_deref().unwrap_or_default();
    if families.is_empty() {
        let text = spec.cluster_ip.as_deref().or(texts.first().map(String::as_str)).unwrap_or_default();
        return faults.accept("spec.clusterIP", parse_ip(text)).into_iter().collect();
    }
    if texts.is_empty() {
        faults.refuse("spec.clusterIPs", "empty, though spec.ipFamilies names families: nothing is proxied");
    }
    let mut ips: Vec<IpAddr> = Vec::new();
    for (index, (text, family)) in texts.iter().zip(families).enumerate() {
        let field = || format!("spec.clusterIPs[{index}]");
        let Some(ip) = faults.accept(field(), parse_ip(text)) else { continue };
        if family_name(ip) != family {
            faults.refuse(
                field(),
                format!("{text:?} is not of the family {family} that spec.ipFamilies[{index}] names"),
            );
        } else if ips.iter().any(|other| family_name(*other) == family) {
            faults.refuse(field(), format!("a second {family} address: one per family is allowed"));
        } else {
            ips.push(ip);
        }
    }
    ips.into()
}

fn family_name(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn convert_ports(spec: &v1::ServiceSpec, faults: &mut Faults) -> Box<[Port]> {
    let ports = spec.ports.as_deref().unwrap_or_default().iter().enumerate();
    ports.filter_map(|(index, port)| convert_port(index, port, faults)).collect()
}

/// A port; with a bad node port it still has its other frontends.
fn convert_port(index: usize, port: &v1::ServicePort, faults: &mut Faults) -> Option<Port> {
    let field = |name| format!("spec.ports[{index}].{name}");
    let number = faults.accept(field("port"), parse_port(port.port));
    let protocol = faults.accept(field("protocol"), parse_protocol(port.protocol.as_deref()));
    let node_port = port.node_port.filter(|port| *port != 0);
    let node_port = node_port.and_then(|port| faults.accept(field("nodePort"), parse_port(port)));
    let name = PortName { name: port.name.as_deref().unwrap_or_default().into(), protocol: protocol? };
    Some(Port { name, port: number?, node_port })
}

/// Only those in `--external-ip-cidrs`: an externalIP takes traffic away from whoever really has the address
/// (CVE-2020-8554).
fn external_ips(spec: &v1::ServiceSpec, rules: &Rules, faults: &mut Faults) -> Box<[IpAddr]> {
    let mut allowed = Vec::new();
    for (index, ip) in parse_list("spec.externalIPs", &spec.external_ips, parse_ip, faults) {
        if rules.external_ip_cidrs.is_empty() || rules.external_ip_cidrs.iter().any(|cidr| cidr.contains(&ip))
        {
            allowed.push(ip);
        } else {
            faults.refuse(
                format!("spec.externalIPs[{index}]"),
                format!("{ip} is outside --external-ip-cidrs: ignored"),
            );
        }
    }
    allowed.into()
}

/// Parses each entry that is not blank (spec 1.38, 1.46); those refused are left out.
fn parse_list<T>(
    field: &str,
    texts: &Option<Vec<String>>,
    parse: fn(&str) -> Result<T, String>,
    faults: &mut Faults,
) -> Vec<(usize, T)> {
    let texts =
        texts.iter().flatten().map(|text| text.trim()).enumerate().filter(|(_, text)| !text.is_empty());
    texts
        .filter_map(|(index, text)| Some((index, faults.accept(format!("{field}[{index}]"), parse(text))?)))
        .collect()
}

/// Addresses of a load balancer that delivers packets as they are (spec 1.43, 1.44).
fn load_balancer_ips(object: &v1::Service, faults: &mut Faults) -> Box<[IpAddr]> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default().iter().enumerate();
    let vips = ingress.filter(|(_, ingress)| matches!(ingress.ip_mode.as_deref(), None | Some("VIP")));
    let vips =
        vips.filter_map(|(index, ingress)| Some((index, ingress.ip.as_deref().filter(|ip| !ip.is_empty())?)));
    vips.filter_map(|(index, ip)| {
        faults.accept(format!("status.loadBalancer.ingress[{index}].ip"), parse_ip(ip))
    })
    .collect()
}

/// `None` only if nothing was asked for; a list of bad entries is a list that allows nobody (DESIGN 10).
fn source_ranges(spec: &v1::ServiceSpec, faults: &mut Faults) -> Option<Box<[IpNet]>> {
    let texts = &spec.load_balancer_source_ranges;
    let is_given = texts.iter().flatten().any(|text| !text.trim().is_empty());
    let ranges = parse_list("spec.loadBalancerSourceRanges", texts, parse_cidr, faults);
    is_given.then(|| ranges.into_iter().map(|(_, range)| range).collect())
}

/// Says so when source ranges close a family whose load balancer addresses were perhaps meant to be open.
fn warn_of_closed_families(service: &Service, faults: &mut Faults) {
    let Some(ranges) = service.source_ranges.as_deref() else { return };
    let closed = [
        ("IPv4", is_closed::<Addr4>(&service.cluster_ips, ranges)),
        ("IPv6", is_closed::<Addr6>(&service.cluster_ips, ranges)),
    ];
    for (family, _) in closed.into_iter().filter(|(_, is_closed)| *is_closed) {
        let reason =
            format!("no valid {family} network: nobody may use the {family} load balancer addresses");
        faults.refuse("spec.loadBalancerSourceRanges", reason);
    }
}

fn is_closed<A: Address>(cluster_ips: &[IpAddr], ranges: &[IpNet]) -> bool {
    cluster_ips.iter().any(|ip| A::from_ip(*ip).is_some())
        && !ranges.iter().any(|range| A::from_ip(range.addr()).is_some())
}

fn policy(text: Option<&str>) -> Policy {
    if text == Some("Local") { Policy::Local } else { Policy::Cluster }
}

/// Counts only where something can come from outside (spec 1.54).
fn external_policy(spec: &v1::ServiceSpec) -> Policy {
    let has_external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => policy(spec.external_traffic_policy.as_deref()),
        _ if has_external_ips => policy(spec.external_traffic_policy.as_deref()),
        _ => Policy::Cluster,
    }
}

/// The value of an annotation, if the Service has it.
fn annotation<T: FromStr<Err = String>>(object: &v1::Service, key: &str, faults: &mut Faults) -> Option<T> {
    let text = object.metadata.annotations.as_ref()?.get(key)?;
    faults.accept(format!("metadata.annotations[{key}]"), text.parse())
}

/// Spec 1.56.
fn health_check_node_port(spec: &v1::ServiceSpec, external: Policy, faults: &mut Faults) -> Option<u16> {
    let port = spec.health_check_node_port.filter(|port| *port != 0)?;
    let is_used = spec.type_.as_deref() == Some("LoadBalancer") && external == Policy::Local;
    if is_used { faults.accept("spec.healthCheckNodePort", parse_port(port)) } else { None }
}

/// Spec 3.1, 3.2.
fn affinity_timeout_s(spec: &v1::ServiceSpec, faults: &mut Faults) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(timeout) = client_ip.and_then(|client_ip| client_ip.timeout_seconds) else {
        return Some(AFFINITY_TIMEOUT_DEFAULT_S);
    };
    let checked =
        u32::try_from(timeout).ok().filter(|timeout| (1..=AFFINITY_TIMEOUT_MAX_S).contains(timeout));
    let reason = || {
        format!("{timeout} is not from 1 to {AFFINITY_TIMEOUT_MAX_S}; {AFFINITY_TIMEOUT_DEFAULT_S} is used")
    };
    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    Some(faults.accept(field, checked.ok_or_else(reason)).unwrap_or(AFFINITY_TIMEOUT_DEFAULT_S))
}
