//! Objects as YAML → what they mean, and what of them is refused.

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::*;
use crate::model::service::Policy;

fn convert_service(spec: &str) -> (Option<Service>, Vec<(String, String)>) {
    convert_service_with(spec, &Rules::default())
}

fn convert_service_with(yaml: &str, rules: &Rules) -> (Option<Service>, Vec<(String, String)>) {
    let object: v1::Service = serde_yaml_ng::from_str(yaml).unwrap();
    let (converted, refusals) = convert(&Object::Service(Box::new(object)), rules);
    let service = match converted {
        Converted::Service(service) => Some(service),
        other => {
            assert_eq!(other, Converted::NotProxied);
            None
        }
    };
    (service, refusals.into_iter().map(|refusal| (refusal.field, refusal.reason)).collect())
}

fn fields(refusals: &[(String, String)]) -> Vec<&str> {
    refusals.iter().map(|(field, _)| field.as_str()).collect()
}

#[test]
fn what_has_no_cluster_ip_is_not_proxied() {
    for spec in [
        "{clusterIP: '', ports: [{port: 80}]}",
        "{clusterIP: None, clusterIPs: [None], ports: [{port: 80, nodePort: 30000}]}",
        "{ports: [{port: 80}]}",
        "{type: ExternalName, clusterIP: 10.0.0.1, ports: [{port: 80}]}",
        "{clusterIP: 10.0.0.1}",
        "{clusterIP: 10.0.0.1, ports: []}",
    ] {
        let (service, refusals) = convert_service(&format!("{{metadata: {{name: s}}, spec: {spec}}}"));
        assert_eq!((service, refusals), (None, vec![]), "spec 1.7, 1.8, 1.11: {spec}");
    }
}

#[test]
fn the_proxy_name_label_excludes_whatever_its_value() {
    for value in ["", "other"] {
        let (service, refusals) = convert_service(&format!(
            "{{metadata: {{name: s, labels: {{service.kubernetes.io/service-proxy-name: '{value}'}}}}, \
             spec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}}}"
        ));
        assert_eq!((service, refusals), (None, vec![]), "spec 1.1");
    }
}

#[test]
fn an_algorithm_that_does_not_exist_is_refused_by_name_and_the_default_used() {
    let rules = Rules { algorithm: Algorithm::Maglev, ..Rules::default() };
    for (annotations, algorithm, is_refused) in [
        ("{}", Algorithm::Maglev, false),
        ("{lb-ebpf.io/algorithm: random}", Algorithm::Random, false),
        ("{lb-ebpf.io/algorithm: maglev}", Algorithm::Maglev, false),
        ("{lb-ebpf.io/algorithm: Random}", Algorithm::Maglev, true),
        ("{lb-ebpf.io/algorithm: ''}", Algorithm::Maglev, true),
    ] {
        let yaml = format!(
            "{{metadata: {{name: s, annotations: {annotations}}}, spec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}}}"
        );
        let (service, refusals) = convert_service_with(&yaml, &rules);
        assert_eq!(service.unwrap().algorithm, algorithm, "{annotations}");
        let expected: &[&str] =
            if is_refused { &["metadata.annotations[lb-ebpf.io/algorithm]"] } else { &[] };
        assert_eq!(fields(&refusals), expected, "{annotations}");
    }
}

#[test]
fn families_pick_their_cluster_ips() {
    for (ips, expected) in [
        ("clusterIP: 10.0.0.1", vec!["10.0.0.1"]),
        (
            "clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], ipFamilies: [IPv4, IPv6]",
            vec!["10.0.0.1", "fd00::1"],
        ),
        ("clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], ipFamilies: [IPv4, IPv6]", vec!["10.0.0.1"]),
        ("clusterIP: 'fd00::1', ipFamilies: []", vec!["fd00::1"]),
        ("clusterIP: 'fd00::1', clusterIPs: ['fd00::1', 10.0.0.1]", vec!["fd00::1"]),
        ("clusterIP: 10.0.0.041", vec!["10.0.0.41"]),
    ] {
        let (service, refusals) =
            convert_service(&format!("{{metadata: {{name: s}}, spec: {{{ips}, ports: [{{port: 80}}]}}}}"));
        let got: Vec<_> = service.unwrap().cluster_ips.iter().map(ToString::to_string).collect();
        assert_eq!(
            (got.iter().map(String::as_str).collect(), refusals),
            (expected, vec![]),
            "spec 1.9, 1.10: {ips}"
        );
    }
}

#[test]
fn families_without_cluster_ips_have_none() {
    let (service, refusals) = convert_service(
        "{metadata: {name: s}, spec: {clusterIP: 10.0.0.1, ipFamilies: [IPv4], ports: [{port: 80}]}}",
    );
    assert_eq!((service, fields(&refusals)), (None, vec!["spec.clusterIPs"]), "spec 1.10");
}

#[test]
fn each_bad_value_costs_itself_only() {
    let (service, refusals) = convert_service(
        "{metadata: {name: s}, spec: {type: LoadBalancer, clusterIP: 10.0.0.1,
          externalIPs: [192.0.2.1, nonsense, ' '], loadBalancerSourceRanges: [' 203.0.113.0/25', x, ''],
          sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 90000}},
          ports: [{port: 0}, {name: a, port: 80, protocol: DCCP}, {name: b, port: 81, nodePort: 70000}, {name: c, port: 82}]},
          status: {loadBalancer: {ingress: [{ip: bad}, {ip: 203.0.113.9}, {hostname: h}, {ip: 203.0.113.8, ipMode: Proxy}]}}}",
    );
    let service = service.unwrap();
    assert_eq!(
        fields(&refusals),
        [
            "spec.ports[0].port",
            "spec.ports[1].protocol",
            "spec.ports[2].nodePort",
            "spec.externalIPs[1]",
            "status.loadBalancer.ingress[0].ip",
            "spec.loadBalancerSourceRanges[1]",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ]
    );
    assert_eq!(service.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [81, 82]);
    assert_eq!(service.external_ips.len(), 1);
    assert_eq!(
        service.load_balancer_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["203.0.113.9"],
        "spec 1.43"
    );
    assert_eq!(
        service.source_ranges.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["203.0.113.0/25"]
    );
    assert_eq!(service.affinity_timeout_s, Some(10_800), "spec 3.2");
}

#[test]
fn external_ips_outside_the_allowed_networks_are_ignored_and_named() {
    let rules = Rules { external_ip_cidrs: vec!["192.0.2.0/24".parse().unwrap()], ..Rules::default() };
    let (service, refusals) = convert_service_with(
        "{metadata: {name: s}, spec: {clusterIP: 10.0.0.1, externalIPs: [192.0.2.1, 198.51.100.1], ports: [{port: 80}]}}",
        &rules,
    );
    assert_eq!(
        service.unwrap().external_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.1"]
    );
    assert_eq!(fields(&refusals), ["spec.externalIPs[1]"]);
}

#[test]
fn source_ranges_close_the_family_they_do_not_name() {
    use lb_common::family::{V4, V6};
    let dual = "clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], ipFamilies: [IPv4, IPv6]";
    for (ranges, open4, open6, warnings) in [
        ("[]", true, true, 0),
        ("['']", true, true, 0),
        ("[203.0.113.0/24]", false, false, 1),
        ("[0.0.0.0/0, '2001:db8::/32']", true, false, 0),
        ("[0.0.0.0/0]", true, false, 1),
        ("[bad]", false, false, 3),
    ] {
        let (service, refusals) = convert_service(&format!(
            "{{metadata: {{name: s}}, spec: {{{dual}, loadBalancerSourceRanges: {ranges}, ports: [{{port: 80}}]}}}}"
        ));
        let service = service.unwrap();
        let open = (service.source_ranges::<V4>().is_none(), service.source_ranges::<V6>().is_none());
        assert_eq!((open, refusals.len()), ((open4, open6), warnings), "spec 1.47, DESIGN 10: {ranges}");
    }
}

#[test]
fn traffic_policies_count_where_they_mean_something() {
    for (spec, external, health_check) in [
        (
            "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30000",
            Policy::Local,
            Some(30_000),
        ),
        (
            "type: LoadBalancer, externalTrafficPolicy: Cluster, healthCheckNodePort: 30000",
            Policy::Cluster,
            None,
        ),
        ("type: NodePort, externalTrafficPolicy: Local, healthCheckNodePort: 30000", Policy::Local, None),
        ("type: ClusterIP, externalTrafficPolicy: Local", Policy::Cluster, None),
        ("type: ClusterIP, externalTrafficPolicy: Local, externalIPs: [192.0.2.1]", Policy::Local, None),
    ] {
        let (service, _) = convert_service(&format!(
            "{{metadata: {{name: s}}, spec: {{{spec}, clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}}}"
        ));
        let service = service.unwrap();
        assert_eq!(
            (service.external_policy, service.health_check_node_port),
            (external, health_check),
            "spec 1.54, 1.56: {spec}"
        );
    }
}

fn slice(yaml: &str) -> (Option<Slice>, Vec<String>) {
    let object: EndpointSlice = serde_yaml_ng::from_str(yaml).unwrap();
    let (converted, refusals) = convert(&Object::EndpointSlice(Box::new(object)), &Rules::default());
    let slice = if let Converted::Slice(slice) = converted { Some(slice) } else { None };
    (slice, refusals.into_iter().map(|refusal| refusal.field).collect())
}

#[test]
fn conditions_have_their_defaults() {
    let (slice, refusals) = slice(
        "{metadata: {name: e, labels: {kubernetes.io/service-name: s}}, addressType: IPv4, ports: [{name: '', port: 80}],
          endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false}},
                      {addresses: [10.0.0.3], conditions: {terminating: true, ready: false, serving: false}}]}",
    );
    assert!(refusals.is_empty());
    let slice = slice.unwrap();
    let conditions: Vec<_> = slice.groups[0].hosts.iter().map(|host| host.conditions).collect();
    let given: Vec<_> =
        conditions.iter().map(|given| (given.ready, given.serving, given.terminating)).collect();
    assert_eq!(given, [(true, true, false), (false, true, false), (false, false, true)], "spec 2.1");
}

#[test]
fn slices_are_refused_part_by_part() {
    for (yaml, ports, hosts, refused) in [
        (
            "addressType: IPv4, ports: [{port: 80}, {name: a}, {name: b, port: 0}, {name: c, port: 1, protocol: X}, {name: d, port: 2}],
             endpoints: [{addresses: []}, {addresses: [x]}, {addresses: ['fd00::1']}, {addresses: [10.0.0.1, junk]}]",
            1,
            1,
            vec![
                "ports[0].name", "ports[1].port", "ports[2].port", "ports[3].protocol", "endpoints[0].addresses",
                "endpoints[1].addresses[0]", "endpoints[2].addresses[0]",
            ],
        ),
        ("addressType: IPv6, endpoints: [{addresses: ['fd00::1']}]", 0, 1, vec![]),
    ] {
        let (slice, refusals) =
            slice(&format!("{{metadata: {{name: e, labels: {{kubernetes.io/service-name: s}}}}, {yaml}}}"));
        let group = &slice.unwrap().groups[0];
        assert_eq!((group.ports.len(), group.hosts.len()), (ports, hosts), "spec 1.24 to 1.27");
        assert_eq!(refusals, refused);
    }
}

#[test]
fn slices_that_belong_to_nobody_are_refused_and_headless_ones_ignored() {
    for (labels, address_type, refused) in [
        ("{}", "IPv4", vec!["metadata.labels[kubernetes.io/service-name]"]),
        ("{kubernetes.io/service-name: ''}", "IPv4", vec!["metadata.labels[kubernetes.io/service-name]"]),
        ("{kubernetes.io/service-name: s}", "FQDN", vec!["addressType"]),
        ("{kubernetes.io/service-name: s, service.kubernetes.io/headless: ''}", "IPv4", vec![]),
    ] {
        let (slice, refusals) = slice(&format!(
            "{{metadata: {{name: e, labels: {labels}}}, addressType: {address_type}, endpoints: []}}"
        ));
        assert_eq!(
            (slice, refusals.iter().map(String::as_str).collect()),
            (None, refused),
            "spec 1.3, 1.22, 1.23"
        );
    }
}

#[test]
fn hand_written_endpoints_are_groups_of_their_subsets() {
    let object: v1::Endpoints = serde_yaml_ng::from_str(
        "{metadata: {name: s}, subsets: [{addresses: [{ip: 10.0.0.1, nodeName: n}, {ip: x}], notReadyAddresses: [{ip: 10.0.0.2}],
          ports: [{port: 80}, {name: dns, port: 53, protocol: UDP}]}, {addresses: [{ip: 10.0.0.3}], ports: [{port: 70000}]}]}",
    )
    .unwrap();
    let (converted, refusals) = convert(&Object::Endpoints(Box::new(object)), &Rules::default());
    let Converted::Slice(slice) = converted else { panic!("{converted:?}") };
    let fields: Vec<_> = refusals.iter().map(|refusal| refusal.field.as_str()).collect();
    assert_eq!(fields, ["subsets[0].addresses[1].ip", "subsets[1].ports[0].port"]);
    let ready: Vec<_> = slice.groups[0].hosts.iter().map(|host| host.conditions.ready).collect();
    assert_eq!((&*slice.service, ready, slice.groups[0].ports.len()), ("s", vec![true, false], 2));
    assert_eq!((slice.groups[1].hosts.len(), slice.groups[1].ports.len()), (1, 0));
}

#[test]
fn the_own_node_says_which_networks_its_pods_have() {
    let rules = Rules { node_name: "node-a".into(), ..Rules::default() };
    for (spec, expected) in [
        ("{podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00::/64']}", "10.244.1.0/24 fd00::/64"),
        ("{podCIDR: 10.244.1.0/24}", "10.244.1.0/24"),
        ("{podCIDRs: [nonsense, 10.244.1.0/24]}", "10.244.1.0/24"),
        ("{}", ""),
    ] {
        let node: v1::Node =
            serde_yaml_ng::from_str(&format!("{{metadata: {{name: node-a}}, spec: {spec}}}")).unwrap();
        let (converted, refusals) = convert(&Object::Node(Box::new(node)), &rules);
        let Converted::Node(node, _) = converted else { panic!("the own node") };
        let found: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(found.join(" "), expected, "spec 4.52: {spec}");
        assert_eq!(refusals.len(), usize::from(spec.contains("nonsense")));
    }
}

#[test]
fn only_the_own_node_counts() {
    let rules = Rules { node_name: "node-a".into(), ..Rules::default() };
    for (name, zone, expected) in
        [("node-a", "z", Some(Some("z"))), ("node-a", "", Some(None)), ("node-b", "z", None)]
    {
        let node: v1::Node = serde_yaml_ng::from_str(&format!(
            "{{metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: '{zone}'}}}}}}"
        ))
        .unwrap();
        let (converted, _) = convert(&Object::Node(Box::new(node)), &rules);
        let got = if let Converted::Node(node, _) = converted { Some(node.zone) } else { None };
        assert_eq!(got, expected.map(|zone: Option<&str>| zone.map(Into::into)), "spec 2.18, 9.12");
    }
}
