//! What the Kubernetes e2e tests ask of a service proxy, by their titles (spec 11; docs/conformance.md): Services and
//! endpoints that change, on both families, over TCP and UDP, from pods, nodes and outside. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::At,
    objects::{Endpoint, load_balancer, service, slice},
    probe::{Target, Transport},
    scene::{Make, Scene, cluster_ip, dual, dual_with, node_port, ready, slices, slices_with},
};

/// A pod and a process of the host network, on different nodes.
fn clients() -> [At; 2] {
    [At::pod("a2"), At::host("node-b")]
}

/// An unready endpoint that still terminates, as a pod whose readiness probe fails in its grace period.
fn terminating_unready(address: &str, node: &str) -> Endpoint {
    Endpoint::with(address, node, "ready: false, serving: false, terminating: true")
}

/// The same under `publishNotReadyAddresses` (spec 2.5).
fn published(address: &str, node: &str) -> Endpoint {
    Endpoint::with(address, node, "ready: true, serving: false, terminating: true")
}

#[test]
fn services_come_change_and_go() -> Result<()> {
    let scene = Scene::start()?;
    serves_a_basic_endpoint_from_pods(&scene)?;
    is_updated_after_adding_or_deleting_ports(&scene)?;
    goes_up_and_down(&scene)?;
    works_after_it_has_been_recreated(&scene)?;
    changes_its_type_to_node_port_with_tcp_and_udp_on_one_port(&scene)?;
    changes_from_and_to_external_name(&scene)?;
    serves_one_port_with_two_protocols(&scene)?;
    changes_type_and_ports_of_a_load_balancer(&scene)?;
    updates_its_node_port(&scene)
}

fn serves_a_basic_endpoint_from_pods(scene: &Scene) -> Result<()> {
    for pods in [&["a1"][..], &["a1", "b1"], &["b1"]] {
        scene.cluster.apply("basic.yaml", &(service("basic", &dual(100, "")) + &ready("basic", pods)))?;
        for from in clients() {
            scene.cluster_ip_reaches(&from, 100, pods)?;
        }
    }
    scene.cluster.apply("basic.yaml", &(service("basic", &dual(100, "")) + &ready("basic", &[])))?;
    for from in clients() {
        for target in cluster_ip(100)? {
            scene.refused(&from, target)?;
        }
    }
    Ok(())
}

fn is_updated_after_adding_or_deleting_ports(scene: &Scene) -> Result<()> {
    let slices =
        slices_with("ports", "{name: http, port: 8080}, {name: more, port: 8081}", |pod, address, node| {
            (pod == "a1").then(|| Endpoint::ready(address, node))
        });
    let with = |ports: &str| {
        scene.cluster.apply("ports.yaml", &(service("ports", &dual_with(101, ports, "")) + &slices))
    };
    let from = At::pod("a2");
    let (first, second) = (Target::http("10.96.0.101:80")?, Target::http("10.96.0.101:81")?);
    with("{name: http, port: 80}")?;
    scene.reaches(&from, first, &["a1"])?;
    scene.refused(&from, second)?;
    with("{name: http, port: 80}, {name: more, port: 81}")?;
    scene.reaches(&from, second, &["a1"])?;
    scene.reaches(&from, first, &["a1"])?;
    with("{name: more, port: 81}")?;
    scene.refused(&from, first)?;
    scene.reaches(&from, second, &["a1"]).map(drop)
}

fn goes_up_and_down(scene: &Scene) -> Result<()> {
    let up = |name: &str, number: u8, pod: &str| {
        scene
            .cluster
            .apply(&format!("{name}.yaml"), &(service(name, &dual(number, "")) + &ready(name, &[pod])))
    };
    up("one", 102, "a1")?;
    up("two", 103, "b1")?;
    for from in clients() {
        scene.cluster_ip_reaches(&from, 102, &["a1"])?;
        scene.cluster_ip_reaches(&from, 103, &["b1"])?;
    }
    scene.cluster.delete("one.yaml")?;
    up("three", 104, "a2")?;
    for from in clients() {
        scene.cluster_ip_fails(&from, 102)?;
        scene.cluster_ip_reaches(&from, 103, &["b1"])?;
        scene.cluster_ip_reaches(&from, 104, &["a2"])?;
    }
    Ok(())
}

fn works_after_it_has_been_recreated(scene: &Scene) -> Result<()> {
    for number in [105, 106] {
        scene
            .cluster
            .apply("again.yaml", &(service("again", &dual(number, "")) + &ready("again", &["a1"])))?;
        for from in clients() {
            scene.cluster_ip_reaches(&from, number, &["a1"])?;
        }
        scene.cluster.delete("again.yaml")?;
        scene.cluster_ip_fails(&At::host("node-b"), number)?;
    }
    Ok(())
}

fn changes_its_type_to_node_port_with_tcp_and_udp_on_one_port(scene: &Scene) -> Result<()> {
    let slices = slices_with(
        "type",
        "{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 5353}",
        |pod, address, node| (pod == "b1").then(|| Endpoint::ready(address, node)),
    );
    let with = |ports: &str, rest: &str| {
        scene.cluster.apply("type.yaml", &(service("type", &dual_with(107, ports, rest)) + &slices))
    };
    with("{name: tcp, port: 80}", "")?;
    scene.reaches(&At::pod("a2"), Target::http("10.96.0.107:80")?, &["b1"])?;
    with(
        "{name: tcp, port: 80, nodePort: 31301}, {name: udp, protocol: UDP, port: 80, nodePort: 31302}",
        "type: NodePort",
    )?;
    for node in ["node-a", "node-b"] {
        for from in [At::pod("a2"), At::Client] {
            for target in node_port(Transport::Http, node, 31301)? {
                scene.reaches(&from, target, &["b1"])?;
            }
            for target in node_port(Transport::UdpConnected, node, 31302)? {
                scene.reaches(&from, target, &["b1"])?;
            }
        }
    }
    with("{name: tcp, port: 80}", "")?;
    for target in node_port(Transport::Http, "node-a", 31301)? {
        scene.fails(&At::Client, target)?;
    }
    nobody_listens(scene, 31301)
}

/// "should release NodePorts on delete": the e2e test asks `ss` on the node.
fn nobody_listens(scene: &Scene, port: u16) -> Result<()> {
    let filter = format!("sport = :{port}");
    let output = scene.cluster.place(&At::host("node-a"))?.output("ss", &["-Hant46", &filter])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !text.contains("LISTEN"), "{output:?}");
    Ok(())
}

fn changes_from_and_to_external_name(scene: &Scene) -> Result<()> {
    let external = service("name", "type: ExternalName, externalName: example.com");
    let slices = ready("name", &["a1"]);
    let with = |text: &str| scene.cluster.apply("name.yaml", &(text.to_owned() + &slices));
    let ports = "{name: http, port: 80, nodePort: 31303}, {name: ask, protocol: UDP, port: 53}";
    for rest in ["", "type: NodePort"] {
        with(&external)?;
        scene.cluster_ip_fails(&At::host("node-a"), 108)?;
        with(&service("name", &dual_with(108, ports, rest)))?;
        scene.cluster_ip_reaches(&At::pod("a2"), 108, &["a1"])?;
        if !rest.is_empty() {
            for target in node_port(Transport::Http, "node-b", 31303)? {
                scene.reaches(&At::pod("a2"), target, &["a1"])?;
            }
        }
    }
    with(&external)?;
    for target in node_port(Transport::Http, "node-b", 31303)? {
        scene.fails(&At::pod("a2"), target)?;
    }
    scene.cluster_ip_fails(&At::pod("a2"), 108)
}

fn serves_one_port_with_two_protocols(scene: &Scene) -> Result<()> {
    let slices = slices_with(
        "both",
        "{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 5353}",
        |pod, address, node| (pod == "a1").then(|| Endpoint::ready(address, node)),
    );
    let (tcp, udp) = (Target::http("10.96.0.109:80")?, Target::udp("10.96.0.109:80")?);
    for kind in ["type: ClusterIP", "type: LoadBalancer, allocateLoadBalancerNodePorts: false"] {
        let with = |ports: &str| {
            scene.cluster.apply("both.yaml", &(service("both", &dual_with(109, ports, kind)) + &slices))
        };
        with("{name: tcp, port: 80}, {name: udp, protocol: UDP, port: 80}")?;
        scene.reaches(&At::pod("a2"), tcp, &["a1"])?;
        scene.reaches(&At::pod("a2"), udp, &["a1"])?;
        with("{name: tcp, port: 80}")?;
        scene.refused(&At::pod("a2"), udp)?;
        scene.reaches(&At::pod("a2"), tcp, &["a1"])?;
    }
    Ok(())
}

/// 11.E "should be able to change the type and ports of a TCP service" and "… UDP service"; without NodePorts too.
fn changes_type_and_ports_of_a_load_balancer(scene: &Scene) -> Result<()> {
    scene.cluster.route_to("203.0.113.61".parse()?, "node-a")?;
    let slices = ready("lb", &["b1"]);
    let ports = |http: u16, ask: u16, nodes: Option<(u16, u16)>| {
        let (first, second) =
            nodes.map(|(a, b)| (format!(", nodePort: {a}"), format!(", nodePort: {b}"))).unwrap_or_default();
        format!("{{name: http, port: {http}{first}}}, {{name: ask, protocol: UDP, port: {ask}{second}}}")
    };
    let with = |ports: &str, kind: &str| {
        let spec = dual_with(110, ports, kind);
        let addresses: &[&str] = if kind.contains("LoadBalancer") { &["203.0.113.61"] } else { &[] };
        scene.cluster.apply("lb.yaml", &(load_balancer("lb", &spec, addresses) + &slices))
    };
    let reaches = |to: &str, transport| {
        scene.reaches(&At::Client, Target::new(transport, to.parse()?), &["b1"]).map(drop)
    };
    let fails = |to: &str, transport| scene.fails(&At::Client, Target::new(transport, to.parse()?));
    let (tcp, udp) = (Transport::Http, Transport::UdpConnected);
    with(&ports(80, 53, Some((31304, 31305))), "type: NodePort")?;
    reaches("192.0.2.11:31304", tcp)?;
    reaches("192.0.2.11:31305", udp)?;
    with(&ports(80, 53, Some((31304, 31305))), "type: LoadBalancer")?;
    reaches("203.0.113.61:80", tcp)?;
    reaches("203.0.113.61:53", udp)?;
    with(&ports(80, 53, Some((31306, 31307))), "type: LoadBalancer")?;
    reaches("192.0.2.11:31306", tcp)?;
    reaches("192.0.2.11:31307", udp)?;
    fails("192.0.2.11:31304", tcp)?;
    fails("192.0.2.11:31305", udp)?;
    with(&ports(81, 54, Some((31306, 31307))), "type: LoadBalancer")?;
    reaches("203.0.113.61:81", tcp)?;
    reaches("203.0.113.61:54", udp)?;
    reaches("192.0.2.11:31306", tcp)?;
    fails("203.0.113.61:80", tcp)?;
    with(&ports(80, 53, None), "type: LoadBalancer, allocateLoadBalancerNodePorts: false")?;
    reaches("203.0.113.61:80", tcp)?;
    fails("192.0.2.11:31306", tcp)?;
    with(&ports(80, 53, None), "type: ClusterIP")?;
    fails("203.0.113.61:80", tcp)?;
    scene.cluster_ip_reaches(&At::pod("a2"), 110, &["b1"])
}

/// 11.G "should update nodePort: http" and ": udp".
fn updates_its_node_port(scene: &Scene) -> Result<()> {
    let with = |http: u16, ask: u16| {
        let ports = format!(
            "{{name: http, port: 80, nodePort: {http}}}, {{name: ask, protocol: UDP, port: 53, nodePort: {ask}}}"
        );
        let spec = dual_with(111, &ports, "type: NodePort");
        scene.cluster.apply("moved.yaml", &(service("moved", &spec) + &ready("moved", &["a1"])))
    };
    let on = |port, transport| node_port(transport, "node-b", port);
    with(31308, 31309)?;
    for target in on(31308, Transport::Http)?.into_iter().chain(on(31309, Transport::UdpConnected)?) {
        scene.reaches(&At::host("node-b"), target, &["a1"])?;
    }
    with(31310, 31311)?;
    for target in on(31310, Transport::Http)?.into_iter().chain(on(31311, Transport::UdpConnected)?) {
        scene.reaches(&At::host("node-b"), target, &["a1"])?;
    }
    for target in on(31308, Transport::Http)?.into_iter().chain(on(31309, Transport::UdpConnected)?) {
        scene.fails(&At::host("node-b"), target)?;
    }
    Ok(())
}

#[test]
fn endpoints_are_found_by_name_condition_and_label() -> Result<()> {
    let scene = Scene::start()?;
    serves_multiport_endpoints_from_pods(&scene)?;
    supports_named_target_ports_that_differ_by_endpoint(&scene)?;
    supports_ports_and_addresses_spread_over_slices(&scene)?;
    serves_unready_pods_only_if_published(&scene)?;
    falls_back_to_terminating_endpoints(&scene)?;
    implements_the_labels_that_hide_services_and_slices(&scene)?;
    rejects_when_no_endpoints_exist(&scene)?;
    serves_several_services_with_one_selector(&scene)?;
    hairpins_back_to_the_pod_itself(&scene)
}

fn serves_multiport_endpoints_from_pods(scene: &Scene) -> Result<()> {
    let spec = dual_with(120, "{name: first, port: 80}, {name: second, port: 81}", "");
    let endpoint = |pod: &'static str| {
        move |name: &str, address: &str, node: &str| (name == pod).then(|| Endpoint::ready(address, node))
    };
    let text = service("multi", &spec)
        + &slices_with("multi", "{name: first, port: 8080}", endpoint("a1"))
        + &slices_with("multi", "{name: second, port: 8081}", endpoint("b1"))
            .replace("name: multi-", "name: other-");
    scene.cluster.apply("multi.yaml", &text)?;
    for from in clients() {
        scene.reaches(&from, Target::http("10.96.0.120:80")?, &["a1"])?;
        scene.reaches(&from, Target::http("[fd00:96::120]:81")?, &["b1"])?;
    }
    Ok(())
}

fn supports_named_target_ports_that_differ_by_endpoint(scene: &Scene) -> Result<()> {
    let one = |name: &str, port: u16, address: &str, node: &str| {
        slice(name, "named", &format!("{{name: http, port: {port}}}"), &[Endpoint::ready(address, node)])
    };
    let spec = "clusterIP: 10.96.0.121, ports: [{name: http, port: 80, targetPort: web}]";
    let text = service("named", spec)
        + &one("named-1", 8080, "10.244.1.10", "node-a")
        + &one("named-2", 8081, "10.244.2.10", "node-b");
    scene.cluster.apply("named.yaml", &text)?;
    scene.reaches(&At::pod("a2"), Target::http("10.96.0.121:80")?, &["a1", "b1"]).map(drop)
}

/// 11.D: ports and addresses in several hand-made slices, without node names.
fn supports_ports_and_addresses_spread_over_slices(scene: &Scene) -> Result<()> {
    let anywhere = |name: &str, ports: &str, address: &str| {
        let endpoint = Endpoint::ready(address, "none");
        slice(name, "spread", ports, &[endpoint]).replace(", nodeName: none", "")
    };
    let spec = "clusterIP: 10.96.0.122, ports: [{name: http, port: 80}, {name: more, port: 81}]";
    let text = service("spread", spec)
        + &anywhere("spread-1", "{name: http, port: 8080}", "10.244.1.10")
        + &anywhere("spread-2", "{name: more, port: 8081}", "10.244.1.10")
        + &anywhere("spread-3", "{name: http, port: 8081}, {name: more, port: 8080}", "10.244.2.10");
    scene.cluster.apply("spread.yaml", &text)?;
    for port in [80, 81] {
        let target = Target::http(&format!("10.96.0.122:{port}"))?;
        scene.reaches(&At::pod("a2"), target, &["a1", "b1"])?;
    }
    Ok(())
}

fn serves_unready_pods_only_if_published(scene: &Scene) -> Result<()> {
    let ports = "{name: http, port: 80, nodePort: 31320}, {name: ask, protocol: UDP, port: 53}";
    let text = service("unready", &dual_with(123, ports, "type: NodePort"));
    for (make, served) in [(published as Make, true), (terminating_unready, false), (published, true)] {
        scene.cluster.apply("unready.yaml", &(text.clone() + &slices("unready", &[("b1", make)])))?;
        for from in clients() {
            for node in ["node-a", "node-b"] {
                for target in node_port(Transport::Http, node, 31320)?.into_iter().chain(cluster_ip(123)?) {
                    match served {
                        true => drop(scene.reaches(&from, target, &["b1"])?),
                        false => scene.refused(&from, target)?,
                    }
                }
            }
        }
    }
    Ok(())
}

/// Of each policy: terminating endpoints serve when none is ready, of this node only under policy Local.
fn falls_back_to_terminating_endpoints(scene: &Scene) -> Result<()> {
    let slices = slices("fall", &[("a1", Endpoint::terminating), ("b1", terminating_unready)]);
    let ports = "{name: http, port: 80, nodePort: 31321}, {name: ask, protocol: UDP, port: 53}";
    let with = |policy: &str| {
        let spec = dual_with(124, ports, &format!("type: NodePort, {policy}"));
        scene.cluster.apply("fall.yaml", &(service("fall", &spec) + &slices))
    };
    with("internalTrafficPolicy: Cluster")?;
    for from in [At::pod("a2"), At::pod("b1")] {
        scene.cluster_ip_reaches(&from, 124, &["a1"])?;
        for target in node_port(Transport::Http, "node-a", 31321)? {
            scene.reaches(&from, target, &["a1"])?;
        }
    }
    with("internalTrafficPolicy: Local")?;
    scene.cluster_ip_fails(&At::pod("b1"), 124)?;
    scene.cluster_ip_reaches(&At::pod("a2"), 124, &["a1"])?;
    with("externalTrafficPolicy: Local")?;
    for target in node_port(Transport::Http, "node-b", 31321)? {
        scene.fails(&At::Client, target)?;
    }
    for target in node_port(Transport::Http, "node-a", 31321)? {
        scene.reaches(&At::Client, target, &["a1"])?;
        scene.reaches(&At::pod("a2"), target, &["a1"])?;
    }
    Ok(())
}

/// `service.kubernetes.io/service-proxy-name` on a Service and `…/headless` on its slices: come and go.
fn implements_the_labels_that_hide_services_and_slices(scene: &Scene) -> Result<()> {
    let text = service("hidden", &dual(125, "")) + &ready("hidden", &["a1"]);
    let labelled = |label: &str| {
        text.replace("metadata: {name: hidden,", &format!("metadata: {{labels: {{{label}}}, name: hidden,"))
    };
    let in_slices = text.replace("labels: {", "labels: {service.kubernetes.io/headless: \"\", ");
    for hidden in [labelled("service.kubernetes.io/service-proxy-name: other"), in_slices] {
        scene.cluster.apply("hidden.yaml", &hidden)?;
        for from in clients() {
            scene.cluster_ip_fails(&from, 125)?;
        }
        scene.cluster.apply("hidden.yaml", &text)?;
        for from in clients() {
            scene.cluster_ip_reaches(&from, 125, &["a1"])?;
        }
    }
    Ok(())
}

/// Also "… for evicted pods": the pod is Failed, so that its slice is empty however `publishNotReadyAddresses` stands.
fn rejects_when_no_endpoints_exist(scene: &Scene) -> Result<()> {
    for rest in ["", "publishNotReadyAddresses: true"] {
        scene.cluster.apply("none.yaml", &(service("none", &dual(126, rest)) + &ready("none", &[])))?;
        for from in clients() {
            cluster_ip(126)?.into_iter().try_for_each(|target| scene.refused(&from, target))?;
        }
    }
    Ok(())
}

fn serves_several_services_with_one_selector(scene: &Scene) -> Result<()> {
    for (name, number) in [("same-1", 127), ("same-2", 128)] {
        let text = service(name, &dual(number, "")) + &ready(name, &["a1", "b1"]);
        scene.cluster.apply(&format!("{name}.yaml"), &text)?;
    }
    // 11.G "endpoint-Service": a backend is the client.
    for from in [At::pod("a1"), At::pod("b1"), At::host("node-a")] {
        scene.cluster_ip_reaches(&from, 127, &["a1", "b1"])?;
        scene.cluster_ip_reaches(&from, 128, &["a1", "b1"])?;
    }
    Ok(())
}

fn hairpins_back_to_the_pod_itself(scene: &Scene) -> Result<()> {
    scene.cluster.apply("self.yaml", &(service("self", &dual(129, "")) + &ready("self", &["a1"])))?;
    scene.cluster_ip_reaches(&At::pod("a1"), 129, &["a1"]).context("the pod reaches itself")
}
