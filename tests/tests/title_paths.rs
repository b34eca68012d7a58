//! What the Kubernetes e2e tests ask of a service proxy, by their titles (spec 11; docs/conformance.md): policies,
//! topology, affinity, source ranges, host networks, addresses. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{At, NODES},
    objects::{Endpoint, load_balancer, service, slice},
    probe::{Target, Transport},
    process::eventually,
    scene::{
        Make, PATIENCE, PORTS, Scene, cluster_ip, dual, dual_with, node_port, ready, slices, slices_with,
    },
};

#[test]
fn policies_hosts_and_addresses() -> Result<()> {
    let scene = Scene::start()?;
    keeps_the_pod_s_address_and_leaves_pods_alone(&scene)?;
    respects_internal_traffic_policy_local(&scene)?;
    supports_external_traffic_policy_local(&scene)?;
    functions_for_endpoints_on_the_host_network(&scene)?;
    is_reached_by_an_external_ip_of_no_node(&scene)?;
    only_allows_access_from_source_ranges(&scene)?;
    serves_on_another_service_cidr(&scene)?;
    completes_a_status_lifecycle(&scene)
}

/// "should preserve source pod IP for traffic thru service cluster IP" and "NoSNAT".
fn keeps_the_pod_s_address_and_leaves_pods_alone(scene: &Scene) -> Result<()> {
    scene.cluster.apply("kept.yaml", &(service("kept", &dual(140, "")) + &ready("kept", &["a1", "b1"])))?;
    let from = At::pod("a2");
    for target in cluster_ip(140)? {
        scene.reaches(&from, target, &["a1", "b1"])?;
        let mut seen = BTreeSet::new();
        for _ in 0..24 {
            let reply = scene.ask(&from, target)??;
            ensure!(reply.answer.client.ip() == pod_address(target.to.ip()), "{reply:?}");
            seen.insert(reply.answer.pod);
        }
        ensure!(seen.len() == 2, "the same node and across nodes: {seen:?}");
    }
    for to in ["10.244.1.10:8080", "[fd00:244:1::10]:8080", "10.244.2.10:8080", "[fd00:244:2::10]:8080"] {
        let target = Target::http(to)?;
        let reply = scene.ask(&from, target)??;
        ensure!(reply.answer.client == reply.own && reply.answer.server == target.to, "NoSNAT: {reply:?}");
    }
    Ok(())
}

/// The address of pod a2 in the family of `other`.
fn pod_address(other: IpAddr) -> IpAddr {
    let text = if other.is_ipv4() { "10.244.1.11" } else { "fd00:244:1::11" };
    text.parse().unwrap()
}

/// "Pod to Pod", "Pod (hostNetwork: true) to Pod" and "Pod and Node, to Pod (hostNetwork: true)".
fn respects_internal_traffic_policy_local(scene: &Scene) -> Result<()> {
    let spec = dual(141, "internalTrafficPolicy: Local");
    scene.cluster.apply("internal.yaml", &(service("internal", &spec) + &ready("internal", &["a1"])))?;
    for (near, far) in [(At::pod("a2"), At::pod("b1")), (At::host("node-a"), At::host("node-b"))] {
        scene.cluster_ip_reaches(&near, 141, &["a1"])?;
        scene.cluster_ip_fails(&far, 141)?;
    }
    let _server = scene.host_server("node-b", &["192.0.2.12:8080"], &["192.0.2.12:5353"])?;
    let spec = "clusterIP: 10.96.0.142, internalTrafficPolicy: Local, \
                ports: [{name: http, port: 80}, {name: ask, protocol: UDP, port: 53}]";
    let endpoint = [Endpoint::ready("192.0.2.12", "node-b")];
    let text = service("on-host", spec) + &slice("on-host-1", "on-host", PORTS, &endpoint);
    scene.cluster.apply("on-host.yaml", &text)?;
    for target in [Target::http("10.96.0.142:80")?, Target::udp("10.96.0.142:53")?] {
        for near in [At::pod("b1"), At::host("node-b")] {
            scene.reaches(&near, target, &["node-b"])?;
        }
        for far in [At::pod("a2"), At::host("node-a")] {
            scene.fails(&far, target)?;
        }
    }
    Ok(())
}

/// "should support externalTrafficPolicy=Local for type=NodePort", and of a load balancer: "should work for
/// type=LoadBalancer", "should target all nodes with endpoints", "should work from pods".
fn supports_external_traffic_policy_local(scene: &Scene) -> Result<()> {
    let ports = "{name: http, port: 80, nodePort: 31340}, {name: ask, protocol: UDP, port: 53}";
    let spec = dual_with(143, ports, "type: LoadBalancer, externalTrafficPolicy: Local");
    let text = load_balancer("external", &spec, &["203.0.113.63"]) + &ready("external", &["a1"]);
    scene.cluster.apply("external.yaml", &text)?;
    for target in node_port(Transport::Http, "node-a", 31340)? {
        let reply = scene.reaches(&At::host("node-b"), target, &["a1"])?;
        ensure!(reply.answer.client == reply.own, "the other node's own address is seen: {reply:?}");
        scene.reaches(&At::Client, target, &["a1"])?;
    }
    for target in node_port(Transport::Http, "node-b", 31340)? {
        scene.fails(&At::Client, target)?;
        scene.reaches(&At::host("node-b"), target, &["a1"])?;
    }
    let vip = Target::http("203.0.113.63:80")?;
    scene.cluster.route_to("203.0.113.63".parse()?, "node-a")?;
    let reply = scene.reaches(&At::Client, vip, &["a1"])?;
    ensure!(reply.answer.client == reply.own, "the client's address is seen: {reply:?}");
    for from in [At::pod("a2"), At::pod("b1")] {
        let reply = scene.reaches(&from, vip, &["a1"])?;
        ensure!(reply.answer.client == reply.own, "the pod's address is seen: {reply:?}");
    }
    Ok(())
}

/// "should function for service endpoints using hostNetwork", both families, ClusterIP and NodePort, TCP and UDP.
fn functions_for_endpoints_on_the_host_network(scene: &Scene) -> Result<()> {
    let _server = scene.host_server(
        "node-a",
        &["192.0.2.11:8080", "[2001:db8:2::11]:8080"],
        &["192.0.2.11:5353", "[2001:db8:2::11]:5353"],
    )?;
    let ports =
        "{name: http, port: 80, nodePort: 31341}, {name: ask, protocol: UDP, port: 53, nodePort: 31342}";
    let text = service("host", &dual_with(144, ports, "type: NodePort"))
        + &slice("host-v4", "host", PORTS, &[Endpoint::ready("192.0.2.11", "node-a")])
        + &slice("host-v6", "host", PORTS, &[Endpoint::ready("2001:db8:2::11", "node-a")]);
    scene.cluster.apply("host.yaml", &text)?;
    for from in [At::pod("a2"), At::pod("b1"), At::host("node-a"), At::host("node-b")] {
        for target in cluster_ip(144)? {
            scene.reaches(&from, target, &["node-a"]).context("ClusterIP")?;
        }
    }
    for from in [At::pod("a2"), At::pod("b1"), At::host("node-b"), At::Client] {
        for node in ["node-a", "node-b"] {
            let tcp = node_port(Transport::Http, node, 31341)?;
            for target in tcp.into_iter().chain(node_port(Transport::UdpConnected, node, 31342)?) {
                scene.reaches(&from, target, &["node-a"]).context("NodePort")?;
            }
        }
    }
    Ok(())
}

fn is_reached_by_an_external_ip_of_no_node(scene: &Scene) -> Result<()> {
    let spec = "clusterIP: 10.96.0.145, externalIPs: [203.0.113.250], ports: [{name: http, port: 80}]";
    let slices = slices_with("outer", "{name: http, port: 8080}", |pod, address, node| {
        (pod == "b1").then(|| Endpoint::ready(address, node))
    });
    scene.cluster.apply("outer.yaml", &(service("outer", spec) + &slices))?;
    for from in [At::pod("a2"), At::host("node-a")] {
        scene.reaches(&from, Target::http("203.0.113.250:80")?, &["b1"])?;
    }
    Ok(())
}

/// "should only allow access from service loadbalancer source ranges": the four steps of the e2e test.
fn only_allows_access_from_source_ranges(scene: &Scene) -> Result<()> {
    let vip = Target::http("203.0.113.64:80")?;
    scene.cluster.route_to("203.0.113.64".parse()?, "node-a")?;
    let with = |ranges: &str| {
        let spec = format!(
            "type: LoadBalancer, clusterIP: 10.96.0.146, ports: [{{name: http, port: 80}}], \
             loadBalancerSourceRanges: [{ranges}]"
        );
        let text = load_balancer("ranges", &spec, &["203.0.113.64"]);
        scene.cluster.apply(
            "ranges.yaml",
            &(text
                + &slices_with("ranges", PORTS, |pod, address, node| {
                    (pod == "a1" && !address.contains(':')).then(|| Endpoint::ready(address, node))
                })),
        )
    };
    let (accepted, others) = (At::pod("a2"), [At::pod("b1"), At::Client]);
    with("10.244.1.11/32, 192.0.2.11/32")?;
    scene.reaches(&accepted, vip, &["a1"])?;
    others.iter().try_for_each(|from| scene.fails(from, vip))?;
    with("0.0.0.0/1, 128.0.0.0/1")?;
    for from in others.iter().chain([&accepted]) {
        scene.reaches(from, vip, &["a1"])?;
    }
    with("255.0.0.0/32")?;
    for from in others.iter().chain([&accepted]) {
        scene.fails(from, vip)?;
    }
    with("")?;
    for from in others.iter().chain([&accepted]) {
        scene.reaches(from, vip, &["a1"])?;
    }
    Ok(())
}

/// service_cidrs.go "should create Services and serve on different Service CIDRs": no network is built in.
fn serves_on_another_service_cidr(scene: &Scene) -> Result<()> {
    let cidr = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: second}\n\
                spec: {cidrs: [203.0.112.0/24]}\n";
    let spec = "type: NodePort, clusterIP: 203.0.112.9, ports: [{name: http, port: 80, nodePort: 31343}]";
    let slices = slices_with("second", "{name: http, port: 8080}", |pod, address, node| {
        (pod == "a1" && !address.contains(':')).then(|| Endpoint::ready(address, node))
    });
    scene.cluster.apply("second.yaml", &(cidr.to_owned() + &service("second", spec) + &slices))?;
    for from in [At::pod("b1"), At::host("node-b")] {
        scene.reaches(&from, Target::http("203.0.112.9:80")?, &["a1"])?;
        scene.reaches(&from, Target::http("192.0.2.12:31343")?, &["a1"])?;
    }
    scene.refused(&At::pod("b1"), Target::http("203.0.112.10:80")?)
}

/// "should complete a service status lifecycle": an address that only the status has is served while it is there.
fn completes_a_status_lifecycle(scene: &Scene) -> Result<()> {
    let spec = dual(147, "type: LoadBalancer");
    let with = |addresses: &[&str]| {
        let text = load_balancer("status", &spec, addresses) + &ready("status", &["a1"]);
        scene.cluster.apply("status.yaml", &text)
    };
    let vip = Target::http("203.0.113.1:80")?;
    with(&[])?;
    scene.cluster_ip_reaches(&At::pod("a2"), 147, &["a1"])?;
    with(&["203.0.113.1"])?;
    scene.reaches(&At::pod("a2"), vip, &["a1"])?;
    with(&[])?;
    scene.fails(&At::pod("a2"), vip)
}

/// topology_hints.go and traffic_distribution.go: node-a is in zone east, node-b in zone west.
#[test]
fn topology_is_followed() -> Result<()> {
    let scene = Scene::start()?;
    scene.cluster.apply("nodes.yaml", &zones("east"))?;
    routes_to_an_endpoint_in_the_same_zone(&scene)?;
    falls_back_when_a_zone_has_none_or_a_hint_is_missing(&scene)?;
    routes_to_the_same_node_then_the_same_zone(&scene)?;
    follows_the_zone_of_the_node(&scene)
}

/// The Node objects, with node-a in `zone`.
fn zones(zone: &str) -> String {
    let [a, b] = NODES;
    let document = |node: lb_tests::cluster::NodeSpec, zone: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n\
             status: {{addresses: [{{type: InternalIP, address: {}}}, {{type: InternalIP, address: \"{}\"}}]}}\n",
            node.name, node.v4, node.v6
        )
    };
    document(a, zone) + "---\n" + &document(b, "west")
}

fn hinted(service_name: &str, number: u8, hints: &[(&str, &[&str], &[&str])]) -> String {
    service(service_name, &dual(number, "trafficDistribution: PreferClose"))
        + &slices_with(service_name, PORTS, |pod, address, node| {
            let (_, zones, nodes) = hints.iter().find(|(name, ..)| *name == pod)?;
            let endpoint = Endpoint::ready(address, node);
            Some(if zones.is_empty() && nodes.is_empty() { endpoint } else { endpoint.hinted(zones, nodes) })
        })
}

fn routes_to_an_endpoint_in_the_same_zone(scene: &Scene) -> Result<()> {
    let hints: [(&str, &[&str], &[&str]); 3] =
        [("a1", &["east"], &[]), ("a2", &["east"], &[]), ("b1", &["west"], &[])];
    scene.cluster.apply("zone.yaml", &hinted("zone", 150, &hints))?;
    for (from, pods) in [
        (At::pod("a2"), &["a1", "a2"][..]),
        (At::host("node-a"), &["a1", "a2"]),
        (At::pod("b1"), &["b1"]),
        (At::host("node-b"), &["b1"]),
    ] {
        scene.cluster_ip_reaches(&from, 150, pods)?;
    }
    Ok(())
}

fn falls_back_when_a_zone_has_none_or_a_hint_is_missing(scene: &Scene) -> Result<()> {
    let without_east: [(&str, &[&str], &[&str]); 2] = [("a1", &["north"], &[]), ("b1", &["west"], &[])];
    let unhinted: [(&str, &[&str], &[&str]); 2] = [("a1", &["east"], &[]), ("b1", &[], &[])];
    for hints in [without_east, unhinted] {
        scene.cluster.apply("none.yaml", &hinted("none", 151, &hints))?;
        scene.cluster_ip_reaches(&At::pod("a2"), 151, &["a1", "b1"])?;
    }
    Ok(())
}

/// PreferSameNode: the node, else the zone, else everybody; and back when the endpoint is back.
fn routes_to_the_same_node_then_the_same_zone(scene: &Scene) -> Result<()> {
    let all: [(&str, &[&str], &[&str]); 2] = [("a1", &["east"], &["node-a"]), ("b1", &["west"], &["node-b"])];
    let from = At::pod("a2");
    scene.cluster.apply("node.yaml", &hinted("node", 152, &all))?;
    scene.cluster_ip_reaches(&from, 152, &["a1"])?;
    scene.cluster_ip_reaches(&At::pod("b1"), 152, &["b1"])?;
    scene.cluster.apply("node.yaml", &hinted("node", 152, &all[1..]))?;
    scene.cluster_ip_reaches(&from, 152, &["b1"])?;
    let zone: [(&str, &[&str], &[&str]); 2] =
        [("a1", &["east"], &["node-c"]), ("b1", &["west"], &["node-b"])];
    scene.cluster.apply("node.yaml", &hinted("node", 152, &zone))?;
    scene.cluster_ip_reaches(&from, 152, &["a1"]).context("no endpoint on the node: its zone")?;
    scene.cluster.apply("node.yaml", &hinted("node", 152, &all))?;
    scene.cluster_ip_reaches(&from, 152, &["a1"])
}

/// 12A 37: the label comes late, or changes.
fn follows_the_zone_of_the_node(scene: &Scene) -> Result<()> {
    scene.cluster.apply("nodes.yaml", &zones("west"))?;
    scene.cluster_ip_reaches(&At::pod("a2"), 150, &["b1"])
}

/// "should have session affinity work …", "… timeout …" and "should be able to switch session affinity …", for
/// ClusterIP, NodePort and load balancers of both traffic policies; "should function for client IP based session
/// affinity: http" and ": udp", on both families.
#[test]
fn session_affinity_works_expires_and_switches() -> Result<()> {
    let scene = Scene::start()?;
    scene.cluster.route_to("203.0.113.65".parse()?, "node-a")?;
    let ports =
        "{name: http, port: 80, nodePort: 31350}, {name: ask, protocol: UDP, port: 53, nodePort: 31351}";
    for policy in ["Cluster", "Local"] {
        let with = |affinity: &str| {
            let rest = format!("type: LoadBalancer, externalTrafficPolicy: {policy}, {affinity}");
            let text = load_balancer("sticky", &dual_with(160, ports, &rest), &["203.0.113.65"]);
            scene.cluster.apply("sticky.yaml", &(text + &ready("sticky", &["a1", "a2"])))
        };
        let mut paths: Vec<(At, Target)> = Vec::new();
        for from in [At::pod("b1"), At::host("node-b")] {
            paths.extend(cluster_ip(160)?.map(|target| (from.clone(), target)));
        }
        for from in [At::pod("b1"), At::Client] {
            let tcp = node_port(Transport::Http, "node-a", 31350)?;
            let udp = node_port(Transport::UdpConnected, "node-a", 31351)?;
            paths.extend(tcp.into_iter().chain(udp).map(|target| (from.clone(), target)));
        }
        paths.push((At::Client, Target::http("203.0.113.65:80")?));
        with("sessionAffinity: None")?;
        spreads(&scene, &paths)?;
        with("sessionAffinity: ClientIP")?;
        paths.iter().try_for_each(|(from, target)| sticks(&scene, from, *target))?;
        with("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}")?;
        for (from, target) in [&paths[0], paths.last().context("paths")?] {
            expires(&scene, from, *target)?;
        }
        with("sessionAffinity: None")?;
        spreads(&scene, &paths)?;
    }
    Ok(())
}

fn spreads(scene: &Scene, paths: &[(At, Target)]) -> Result<()> {
    paths.iter().try_for_each(|(from, target)| scene.reaches(from, *target, &["a1", "a2"]).map(drop))
}

/// Spec 11.6: fifteen times the same.
fn sticks(scene: &Scene, from: &At, target: Target) -> Result<()> {
    let probe = scene.cluster.probe(from)?;
    eventually("is the client bound", PATIENCE, || {
        let tally = probe.tally(target, 15)?;
        Ok(tally.failed() == 0 && tally.answers.len() == 1)
    })
    .with_context(|| format!("{from:?} -> {target:?}"))
}

/// A client that stays away for longer than the timeout is chosen for anew (spec 3.6, 3.12).
fn expires(scene: &Scene, from: &At, target: Target) -> Result<()> {
    let first = scene.ask(from, target)??.answer.pod;
    // Each question renews the timer: the pause between them is what is tested, not something waited for.
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(1100));
        if scene.ask(from, target)??.answer.pod != first {
            return Ok(());
        }
    }
    anyhow::bail!("{from:?} -> {target:?}: bound to {first} for twenty times the timeout")
}

/// pod_lifecycle.go "should be able to have zero downtime on a Blue Green deployment", loadbalancer.go "should not
/// have connectivity disruption during rolling update": not a request is lost while endpoints are exchanged.
#[test]
fn rolling_updates_lose_no_request() -> Result<()> {
    let scene = Scene::start()?;
    let ports =
        "{name: http, port: 80, nodePort: 31360}, {name: ask, protocol: UDP, port: 53, nodePort: 31361}";
    for policy in ["Cluster", "Local"] {
        let spec = dual_with(170, ports, &format!("type: NodePort, externalTrafficPolicy: {policy}"));
        let with = |pods: &[(&str, Make)]| {
            scene.cluster.apply("roll.yaml", &(service("roll", &spec) + &slices("roll", pods)))
        };
        let (ready, leaving): (Make, Make) = (Endpoint::ready, Endpoint::terminating);
        with(&[("a1", ready)])?;
        let targets = [
            Target::http("10.96.0.170:80")?,
            Target::http("[2001:db8:2::11]:31360")?,
            Target::http("192.0.2.11:31360")?,
        ];
        let clients = [At::host("node-b"), At::Outsider, At::Client];
        for (from, target) in clients.iter().zip(targets) {
            scene.reaches(from, target, &["a1"])?;
            scene.cluster.probe(from)?.start_load(target, 1)?;
        }
        for _ in 0..5 {
            for (pods, watched) in [
                (&[("a1", ready), ("a2", ready)][..], "a2"),
                (&[("a1", leaving), ("a2", ready)], "a2"),
                (&[("a2", ready)], "a2"),
                (&[("a1", ready), ("a2", leaving)], "a1"),
                (&[("a1", ready)], "a1"),
            ] {
                with(pods)?;
                let target = Target::http("10.96.0.170:80")?;
                eventually("is the change in force", PATIENCE, || {
                    Ok(scene.ask(&At::pod("b1"), target)?.is_ok_and(|reply| reply.answer.pod == watched))
                })?;
                clients.iter().try_for_each(|from| scene.cluster.probe(from)?.load_goes_on(5))?;
            }
        }
        for from in &clients {
            let tally = scene.cluster.probe(from)?.stop_load()?;
            ensure!(tally.failed() == 0, "{policy}, {from:?}: {tally:?}");
            ensure!(tally.answers.keys().eq(["a1", "a2"]), "{policy}, {from:?}: {tally:?}");
        }
    }
    Ok(())
}
