//! Agents, programs and real sockets in a two-node cluster of network namespaces. Needs root.
//!
//! Each case starts a cluster of its own. What the demo shows line by line (`cargo xtask demo`) is not repeated here;
//! these are the cases that need load, time, another configuration or a broken agent.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{net::IpAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Agent,
    cluster::{At, CLIENT_V4, CLIENT_V6, Cluster, GATEWAY_MAC, NODES, PodSpec},
    probe::{ClientError, Reply, Target, Transport},
    process::eventually,
};

const SERVICES: &str = include_str!("../testdata/e2e/services.yaml");
const NODE_A: &str = "192.0.2.11";
const NODE_B: &str = "192.0.2.12";
const NODE_A6: &str = "2001:db8:2::11";
const NODE_B6: &str = "2001:db8:2::12";
const QUESTIONS: usize = 40;

/// A cluster whose agents run with `extra` arguments.
fn cluster_with(extra: &[&str]) -> Result<Cluster> {
    cluster_prepared(|agent| agent.set_extra_args(extra))
}

/// A cluster whose agents were prepared before their start.
fn cluster_prepared(prepare: impl Fn(&mut Agent)) -> Result<Cluster> {
    let mut cluster = Cluster::start()?;
    let pod = |name: &str, node: &str, v4: &str, v6: &str| {
        Ok::<_, anyhow::Error>(PodSpec::http(name, node, &[v4, v6], 8080)?.and_udp(5353))
    };
    cluster.add_pods(&[
        pod("a1", "node-a", "10.244.1.10", "fd00:244:1::10")?,
        pod("a2", "node-a", "10.244.1.11", "fd00:244:1::11")?,
        pod("b1", "node-b", "10.244.2.10", "fd00:244:2::10")?,
    ])?;
    cluster.apply("services.yaml", SERVICES)?;
    cluster.prepare_agents()?;
    for node in NODES {
        prepare(cluster.agent(node.name)?);
    }
    cluster.start_agents()?;
    for vip in ["203.0.113.20", "2001:db8:feed::20", "203.0.113.22", "10.96.0.20", "fd00:96::20"] {
        cluster.route_to(vip.parse()?, "node-a")?;
    }
    Ok(cluster)
}

fn cluster() -> Result<Cluster> {
    cluster_with(&[])
}

fn http(cluster: &Cluster, from: &At, to: &str) -> Result<Result<Reply, ClientError>> {
    cluster.probe(from)?.once(Target::http(to)?)
}

fn answered(cluster: &Cluster, from: &At, to: &str) -> Result<Reply> {
    http(cluster, from, to)?.with_context(|| format!("{from:?} -> {to}"))
}

/// For an answer that must come, however many other clusters start on this machine meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks until each of `pods` has answered and nobody else has.
fn everyone_answers(cluster: &Cluster, from: &At, target: Target, pods: &[&str]) -> Result<()> {
    let tally = cluster.probe(from)?.tally(target.within(PATIENCE), QUESTIONS)?;
    ensure!(tally.failed() == 0, "{from:?} -> {}: {tally:?}", target.to);
    let answered: Vec<&str> = tally.answers.keys().map(String::as_str).collect();
    ensure!(answered == pods, "{from:?} -> {}: {tally:?}", target.to);
    Ok(())
}

/// Every way in, on both families, over TCP and UDP: spec 2.24 to 2.28, 4.12.
fn every_frontend_reaches_every_backend(cluster: &Cluster) -> Result<()> {
    let inside = ["10.96.0.20:80", "[fd00:96::20]:80", "192.0.2.11:31080", "[2001:db8:2::11]:31080"];
    let lb = ["203.0.113.20:80", "[2001:db8:feed::20]:80"];
    for to in inside.iter().chain(&lb) {
        for from in [At::pod("a2"), At::pod("b1"), At::host("node-a")] {
            everyone_answers(cluster, &from, Target::http(to)?, &["a1", "b1"])?;
        }
    }
    for to in inside.iter().chain(&lb) {
        everyone_answers(cluster, &At::Client, Target::http(to)?, &["a1", "b1"])?;
    }
    for to in ["10.96.0.20:53", "[fd00:96::20]:53", "192.0.2.11:31053", "[2001:db8:2::11]:31053"] {
        for from in [At::pod("a2"), At::host("node-a"), At::Client] {
            everyone_answers(cluster, &from, Target::udp(to)?, &["a1", "b1"])?;
            let unconnected = Target { transport: Transport::UdpUnconnected, ..Target::udp(to)? };
            everyone_answers(cluster, &from, unconnected, &["a1", "b1"])?;
        }
    }
    Ok(())
}

/// The client sees whom it dialled (`getpeername`, sender of the datagram), pods see the client.
fn addresses_are_as_they_should_be(cluster: &Cluster) -> Result<()> {
    for (from, to) in [
        (At::pod("a2"), "10.96.0.20:80"),
        (At::pod("a2"), "[fd00:96::20]:80"),
        (At::host("node-a"), "10.96.0.20:80"),
        (At::Client, "192.0.2.11:31080"),
        (At::Client, "[2001:db8:2::11]:31080"),
    ] {
        for _ in 0..8 {
            let reply = answered(cluster, &from, to)?;
            ensure!(reply.peer == to.parse()?, "{from:?} -> {to}: sees {reply:?}");
            if matches!(from, At::Pod(_)) {
                ensure!(reply.answer.client == reply.own, "spec 4.30: the pod's address is kept: {reply:?}");
            }
            if from == At::Client {
                let (node, client): (IpAddr, IpAddr) = match reply.peer.is_ipv4() {
                    true => (NODE_A.parse()?, CLIENT_V4.parse()?),
                    false => (NODE_A6.parse()?, CLIENT_V6.parse()?),
                };
                let expected = if reply.answer.pod == "a1" { client } else { node };
                ensure!(reply.answer.client.ip() == expected, "spec 4.21, ours 4.31: {reply:?}");
            }
        }
    }
    for transport in [Transport::UdpConnected, Transport::UdpUnconnected] {
        for to in ["10.96.0.20:53", "[fd00:96::20]:53"] {
            let target = Target { transport, ..Target::udp(to)? };
            let reply = cluster.probe(&At::pod("a2"))?.once(target)??;
            ensure!(reply.peer == to.parse()?, "{transport:?}: {reply:?}");
        }
    }
    Ok(())
}

/// Spec 5, 5.2: on every path, family and transport the client sees ECONNREFUSED at once.
fn nobody_serves_is_refused_everywhere(cluster: &Cluster) -> Result<()> {
    let targets = [
        Target::http("10.96.0.21:80")?,
        Target::http("[fd00:96::21]:80")?,
        Target::http("192.0.2.11:31081")?,
        Target::http("[2001:db8:2::11]:31081")?,
        Target::udp("10.96.0.21:53")?,
        Target::udp("[fd00:96::21]:53")?,
        Target::udp("192.0.2.11:31054")?,
        Target::udp("[2001:db8:2::11]:31054")?,
    ];
    for (index, target) in targets.into_iter().enumerate() {
        let mut clients = vec![At::pod("a2"), At::host("node-a")];
        if index % 4 >= 2 {
            clients.push(At::Client);
        }
        for from in clients {
            let outcome = cluster.probe(&from)?.once(target)?;
            ensure!(outcome == Err(ClientError::Refused), "{from:?} -> {target:?}: {outcome:?}");
        }
    }
    Ok(())
}

/// DESIGN 10, spec 0.4, 0.5: an address nobody has, and a port the Service does not have.
fn what_service_cidrs_hold_is_refused(cluster: &Cluster, clients: &[At]) -> Result<()> {
    for target in [
        Target::http("10.96.9.9:80")?,
        Target::http("[fd00:96::9]:80")?,
        Target::udp("10.96.9.9:53")?,
        Target::udp("[fd00:96::9]:53")?,
        Target::http("10.96.0.20:81")?,
        Target::http("[fd00:96::20]:81")?,
        Target::udp("10.96.0.20:80")?,
        Target::udp("[fd00:96::20]:80")?,
    ] {
        for from in clients {
            let outcome = cluster.probe(from)?.once(target)?;
            ensure!(outcome == Err(ClientError::Refused), "{from:?} -> {target:?}: {outcome:?}");
        }
    }
    Ok(())
}

/// A Service that goes leaves a refusal, within a second.
fn a_deleted_service_is_refused(cluster: &Cluster) -> Result<()> {
    let (cidr, _) = SERVICES.split_once("---\n").context("the ServiceCIDR, then Services")?;
    cluster.apply("services.yaml", cidr)?;
    for (from, to) in [
        (At::pod("a2"), "10.96.0.20:80"),
        (At::host("node-a"), "10.96.0.20:80"),
        (At::pod("a2"), "[fd00:96::20]:80"),
        (At::host("node-a"), "[fd00:96::20]:80"),
        (At::Client, "10.96.0.20:80"),
        (At::Client, "[fd00:96::20]:80"),
    ] {
        eventually("is it refused", Duration::from_secs(1), || {
            Ok(cluster.probe(&from)?.once(Target::http(to)?.within(Duration::from_millis(300)))?
                == Err(ClientError::Refused))
        })
        .with_context(|| format!("{from:?} -> {to}"))?;
    }
    Ok(())
}

#[test]
fn sockets_and_packets_are_balanced() -> Result<()> {
    let mut cluster = cluster()?;
    every_frontend_reaches_every_backend(&cluster)?;
    addresses_are_as_they_should_be(&cluster)?;
    nobody_serves_is_refused_everywhere(&cluster)?;
    what_service_cidrs_hold_is_refused(&cluster, &[At::pod("a2"), At::host("node-a")])?;
    let status = cluster.agent("node-a")?.cli_text("status", &["-o", "json"])?;
    for verdict in ["socket-translated", "socket-reply", "translated", "redirected", "refused"] {
        let counted = counted(&status, verdict)?;
        ensure!(counted > 0, "{verdict} is counted: {status}");
    }
    ensure!(status.contains("10.96.0.0/16") && status.contains("fd00:96::/112"), "{status}");
    a_deleted_service_is_refused(&cluster)
}

/// Packets of a verdict, from `status -o json`.
fn counted(status: &str, verdict: &str) -> Result<u64> {
    let status: serde_json::Value = serde_json::from_str(status)?;
    let verdicts = status["verdicts"].as_array().context("verdicts in the status")?;
    let of = |entry: &&serde_json::Value| entry["verdict"] == verdict;
    Ok(verdicts.iter().find(of).and_then(|entry| entry["packets"].as_u64()).unwrap_or(0))
}

/// The same without socket hooks: pods are served by their devices' programs alone (VMs, Kata, raw sockets).
#[test]
fn pods_are_balanced_without_socket_hooks() -> Result<()> {
    pods_are_balanced_by_packet(&cluster_with(&["--socket-lb", "false"])?)
}

/// The same past the stack.
#[test]
fn pods_are_balanced_past_the_stack() -> Result<()> {
    let cluster = cluster_with(&["--socket-lb", "false", "--forward-pods"])?;
    pods_are_balanced_by_packet(&cluster)?;
    // From pod to pod, and from the network to the pod that asked, no packet is sent by the host's end of a pod's device.
    let sent = || ["vetha1", "vetha2"].map(|device| sent_by(&cluster, device));
    let before = sent();
    everyone_answers(&cluster, &At::pod("a2"), Target::http("10.96.0.20:80")?, &["a1", "b1"])?;
    for (before, after) in before.into_iter().zip(sent()) {
        let packets = after? - before?;
        ensure!(packets < QUESTIONS as u64 / 2, "{packets} packets: more than a neighbour's questions");
    }
    Ok(())
}

/// Packets that a device of node-a has sent.
fn sent_by(cluster: &Cluster, device: &str) -> Result<u64> {
    let namespace = &cluster.place(&At::host("node-a"))?.namespace;
    let show = || Command::new("ip").args(["-j", "-s", "link", "show", device]).output();
    let links: serde_json::Value = serde_json::from_slice(&namespace.run(show)??.stdout)?;
    links[0]["stats64"]["tx"]["packets"].as_u64().with_context(|| format!("packets of {device}: {links}"))
}

fn pods_are_balanced_by_packet(cluster: &Cluster) -> Result<()> {
    for to in ["10.96.0.20:80", "[fd00:96::20]:80", "192.0.2.11:31080", "203.0.113.20:80"] {
        everyone_answers(cluster, &At::pod("a2"), Target::http(to)?, &["a1", "b1"])?;
        let reply = answered(cluster, &At::pod("a2"), to)?;
        ensure!(reply.answer.client == reply.own, "the pod's address is kept: {reply:?}");
    }
    for to in ["10.96.0.20:53", "[fd00:96::20]:53"] {
        everyone_answers(cluster, &At::pod("a2"), Target::udp(to)?, &["a1", "b1"])?;
    }
    for to in ["10.96.0.23:80", "[fd00:96::23]:80"] {
        let reply = answered(cluster, &At::pod("a1"), to)?;
        let node: IpAddr = if reply.peer.is_ipv4() { NODE_A } else { NODE_A6 }.parse()?;
        ensure!(reply.answer.client.ip() == node, "spec 4.25, hairpin: {reply:?}");
    }
    for target in [
        Target::http("10.96.0.21:80")?,
        Target::http("[fd00:96::21]:80")?,
        Target::udp("10.96.0.21:53")?,
        Target::udp("[fd00:96::21]:53")?,
    ] {
        let outcome = cluster.probe(&At::pod("a2"))?.once(target)?;
        ensure!(outcome == Err(ClientError::Refused), "{target:?}: {outcome:?}");
    }
    for to in ["10.96.0.20:53", "[fd00:96::20]:53"] {
        everyone_answers(cluster, &At::pod("a2"), Target::udp(to)?.sized(2000), &["a1", "b1"])?;
    }
    for to in ["10.96.0.20:80", "[fd00:96::20]:80"] {
        for _ in 0..4 {
            let fetched = cluster.probe(&At::pod("a2"))?.fetch(Target::http(to)?, "/bytes?count=3000000")?;
            ensure!(fetched == Ok(3_000_000), "{to}: {fetched:?}");
        }
    }
    what_service_cidrs_hold_is_refused(cluster, &[At::pod("a2"), At::host("node-a")])
}

/// What the bridge plugin makes of a node, and CNIs that use it (flannel, kindnet of old): pods are ports of a bridge, to which their frames
/// are addressed.
#[test]
fn pods_behind_a_bridge_are_balanced() -> Result<()> {
    for arguments in [&["--socket-lb", "false"][..], &["--socket-lb", "false", "--forward-pods"]] {
        let cluster = cluster_with(arguments)?;
        let mut commands = vec![
            "link add cni0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
            format!("link set cni0 address {GATEWAY_MAC} up"),
        ];
        for (pod, host) in [("a1", 10), ("a2", 11)] {
            commands.extend([
                format!("link set veth{pod} address 02:00:00:00:0c:{host}"),
                format!("link set veth{pod} master cni0"),
                format!("route replace 10.244.1.{host}/32 dev cni0 src {NODE_A}"),
                format!("route replace fd00:244:1::{host}/128 dev cni0 src {NODE_A6}"),
            ]);
        }
        cluster.place(&At::host("node-a"))?.namespace.ip(&commands)?;
        pods_are_balanced_by_packet(&cluster)?;
        for to in ["192.0.2.11:31080", "[2001:db8:2::11]:31080", "203.0.113.20:80"] {
            everyone_answers(&cluster, &At::Client, Target::http(to)?, &["a1", "b1"])?;
        }
    }
    Ok(())
}

/// Spec 1.49 to 1.52, 2.25, 4.22, 4.31, 5.7 and DESIGN 10.
#[test]
fn policies_and_source_ranges_hold_for_everyone() -> Result<()> {
    let cluster = cluster()?;
    let reply = answered(&cluster, &At::Client, "203.0.113.22:80")?;
    ensure!(reply.answer.client.ip() == CLIENT_V4.parse::<IpAddr>()?, "client address kept: {reply:?}");
    let brief = Duration::from_millis(500);
    let outsider = Target::http("203.0.113.22:80")?.within(brief);
    let outcome = cluster.probe(&At::Outsider)?.once(outsider)?;
    ensure!(outcome == Err(ClientError::TimedOut), "outside the source ranges: {outcome:?}");
    for from in [At::pod("a2"), At::host("node-a"), At::host("node-b")] {
        answered(&cluster, &from, "203.0.113.22:80").context("the short-circuit of spec 4.40")?;
    }
    answered(&cluster, &At::Outsider, "192.0.2.11:31082").context("spec 1.49: NodePorts have no ranges")?;
    let elsewhere = Target::http("192.0.2.12:31082")?.within(brief);
    let outcome = cluster.probe(&At::Client)?.once(elsewhere)?;
    ensure!(outcome == Err(ClientError::TimedOut), "policy Local, no backend on node-b: {outcome:?}");
    answered(&cluster, &At::host("node-b"), "192.0.2.12:31082").context("spec 4.22 b")?;
    answered(&cluster, &At::host("node-a"), "127.0.0.1:31080").context("DESIGN 10: for local processes")?;
    answered(&cluster, &At::host("node-a"), "[::1]:31080").context("DESIGN 10: for local processes")?;
    let outcome = http(&cluster, &At::pod("a2"), "127.0.0.1:31080")?;
    ensure!(outcome == Err(ClientError::Refused), "a pod's loopback is its own: {outcome:?}");
    Ok(())
}

/// What flannel makes of a node: a VXLAN device towards the pods of the other one, and masquerading of what pods send
/// anywhere else.
fn overlay(cluster: &Cluster, nodes: [(&str, u8, &str, u8, &str); 2]) -> Result<()> {
    for (name, own, _, other, other_ip) in nodes {
        let place = cluster.place(&At::host(name))?;
        let mut commands = vec![
            format!(
                "link add flannel.1 mtu 1430 address 02:00:00:00:01:0{own} type vxlan id 1 dev eth0 dstport 8472 nolearning"
            ),
            format!("address add 10.244.{own}.0/32 dev flannel.1"),
            format!("address add fd00:244:{own}::/128 dev flannel.1 nodad"),
            "link set flannel.1 up".to_owned(),
            format!("neigh add 10.244.{other}.0 lladdr 02:00:00:00:01:0{other} dev flannel.1 nud permanent"),
            format!(
                "neigh add fd00:244:{other}:: lladdr 02:00:00:00:01:0{other} dev flannel.1 nud permanent"
            ),
        ];
        commands.extend([
            format!("route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink"),
            format!("route add fd00:244:{other}::/64 via fd00:244:{other}:: dev flannel.1 onlink"),
        ]);
        // Every pod of the other node, or strict reverse path filtering drops what comes out of the tunnel.
        for pod in [10, 11] {
            commands.extend([
                format!("route replace 10.244.{other}.{pod}/32 via 10.244.{other}.0 dev flannel.1 onlink"),
                format!(
                    "route replace fd00:244:{other}::{pod}/128 via fd00:244:{other}:: dev flannel.1 onlink"
                ),
            ]);
        }
        place.namespace.ip(&commands)?;
        let mac = format!("02:00:00:00:01:0{other}");
        for (iptables, pods) in [("iptables", "10.244.0.0/16"), ("ip6tables", "fd00:244::/32")] {
            let rule = ["-t", "nat", "-A", "POSTROUTING", "-s", pods, "!", "-d", pods, "-j", "MASQUERADE"];
            let output = place.output(iptables, &rule)?;
            ensure!(output.status.success(), "{iptables}: {output:?}");
        }
        let output = place.output("bridge", &["fdb", "append", &mac, "dev", "flannel.1", "dst", other_ip])?;
        ensure!(output.status.success(), "bridge fdb: {output:?}");
    }
    Ok(())
}

/// A CNI with an overlay: backends on the other node are reached through the tunnel, from its own address.
#[test]
fn an_overlay_is_followed_and_used() -> Result<()> {
    let mut cluster = cluster()?;
    overlay(&cluster, [("node-a", 1, NODE_A, 2, NODE_B), ("node-b", 2, NODE_B, 1, NODE_A)])?;
    for node in NODES {
        let agent = cluster.agent(node.name)?;
        eventually("is the tunnel attached", Duration::from_secs(2), || {
            let status = agent.cli_text("status", &[])?;
            Ok(status.lines().any(|line| line.contains("flannel.1") && line.contains("overlay")))
        })?;
    }
    every_frontend_reaches_every_backend(&cluster)?;
    for (to, tunnel) in [("192.0.2.11:31080", "10.244.1.0"), ("[2001:db8:2::11]:31080", "fd00:244:1::")] {
        eventually("does the other node's pod see the tunnel", Duration::from_secs(2), || {
            let answer = answered(&cluster, &At::Client, to)?.answer;
            Ok(answer.pod == "b1" && answer.client.ip() == tunnel.parse::<IpAddr>()?)
        })?;
    }
    let fetched =
        cluster.probe(&At::pod("a2"))?.fetch(Target::http("10.96.0.20:80")?, "/bytes?count=3000000")?;
    ensure!(fetched == Ok(3_000_000), "{fetched:?}");
    Ok(())
}

/// Segments larger than the MTU (GSO) through every kind of path.
#[test]
fn bulk_data_arrives_whole() -> Result<()> {
    let cluster = cluster_with(&["--socket-lb", "false"])?;
    for from in [At::Client, At::pod("a2")] {
        for to in ["192.0.2.11:31080", "[2001:db8:2::11]:31080", "10.96.0.20:80"] {
            for _ in 0..4 {
                let fetched = cluster.probe(&from)?.fetch(Target::http(to)?, "/bytes?count=3000000")?;
                ensure!(fetched == Ok(3_000_000), "{from:?} -> {to}: {fetched:?}");
            }
        }
    }
    Ok(())
}

/// Every backend sees the client, wherever the client dials, and node-a, which is dialled, never sees an answer of node-b's
/// pod: it knows flows towards its own pod and tunnels.
#[test]
fn direct_server_return_keeps_the_clients_address() -> Result<()> {
    let mut cluster = cluster_with(&["--forwarding", "dsr"])?;
    let http = ["192.0.2.11:31080", "[2001:db8:2::11]:31080", "203.0.113.20:80", "[2001:db8:feed::20]:80"];
    let udp = ["192.0.2.11:31053", "[2001:db8:2::11]:31053"];
    let targets = http.into_iter().map(Target::http).chain(udp.into_iter().map(Target::udp));
    // Below those that the kernel chooses: a port from which the same backend was dialled by another VIP would be replaced.
    let mut ports = 20_000..;
    for target in targets.collect::<Result<Vec<_>>>()? {
        everyone_answers(&cluster, &At::Client, target, &["a1", "b1"])?;
        for port in ports.by_ref().take(8) {
            let reply = cluster.probe(&At::Client)?.once(target.from_port(port))??;
            ensure!(reply.answer.client == reply.own && reply.peer == target.to, "{target:?}: {reply:?}");
        }
    }
    // Large segments (GSO) in tunnels, and large ones back.
    let path = format!("/bytes?count=3000000&ignored={}", "x".repeat(60_000));
    for to in &http[..2] {
        for _ in 0..4 {
            let fetched = cluster.probe(&At::Client)?.fetch(Target::http(to)?, &path)?;
            ensure!(fetched == Ok(3_000_000), "{to}: {fetched:?}");
        }
    }
    let listing = cluster.agent("node-a")?.cli_text("connections", &["-o", "json"])?;
    let connections: Vec<serde_json::Value> = serde_json::from_str(&listing)?;
    let count = |is_such: &dyn Fn(&serde_json::Value) -> bool| {
        connections.iter().filter(|connection| is_such(connection)).count()
    };
    let is_remote = |end: &serde_json::Value| {
        end.as_str().is_some_and(|end| end.starts_with("10.244.2.") || end.starts_with("[fd00:244:2:"))
    };
    ensure!(count(&|connection| connection["direction"] == "tunnel") > 0, "{listing}");
    ensure!(count(&|connection| is_remote(&connection["source"])) == 0, "{listing}");
    Ok(())
}

/// Spec 11.4, 12A 49: 2000 bytes are two fragments each way, translated by socket (the node) and by packet.
#[test]
fn large_datagrams_arrive_whole() -> Result<()> {
    for arguments in [[].as_slice(), &["--socket-lb", "false"]] {
        let cluster = cluster_with(arguments)?;
        for to in ["192.0.2.11:31053", "[2001:db8:2::11]:31053"] {
            everyone_answers(&cluster, &At::Client, Target::udp(to)?.sized(2000), &["a1", "b1"])?;
        }
        for to in ["10.96.0.20:53", "[fd00:96::20]:53"] {
            for from in [At::pod("a2"), At::pod("b1"), At::host("node-a")] {
                everyone_answers(&cluster, &from, Target::udp(to)?.sized(2000), &["a1", "b1"])?;
            }
        }
    }
    Ok(())
}

/// Stopping, killing and restarting the agent under load loses no request and breaks no connection (DESIGN 7).
#[test]
fn the_agent_may_die_at_any_time() -> Result<()> {
    let mut cluster = cluster()?;
    let clients = [
        (At::Client, Target::http("192.0.2.11:31080")?),
        (At::pod("a2"), Target::http("10.96.0.20:80")?),
        (At::host("node-a"), Target::http("[fd00:96::20]:80")?),
        (At::Outsider, Target::udp("[2001:db8:2::11]:31053")?),
    ];
    let probes = clients.iter().map(|(from, _)| cluster.probe(from)).collect::<Result<Vec<_>>>()?;
    let mut kept = Vec::new();
    for (probe, (_, target)) in probes.iter().zip(&clients) {
        kept.push(probe.open(*target)??);
        probe.start_load(*target, 1)?;
    }
    for round in 0..3 {
        cluster.agent("node-a")?.kill()?;
        for conversation in &kept {
            conversation.ask()?.with_context(|| format!("killed, round {round}"))?;
        }
        probes.iter().try_for_each(|probe| probe.load_goes_on(20))?;
        cluster.agent("node-a")?.start()?;
        cluster.agent("node-a")?.wait_until_ready()?;
        cluster.agent("node-a")?.stop()?;
        for conversation in &kept {
            conversation.ask()?.with_context(|| format!("stopped, round {round}"))?;
        }
        probes.iter().try_for_each(|probe| probe.load_goes_on(20))?;
        cluster.agent("node-a")?.start()?;
        cluster.agent("node-a")?.wait_until_ready()?;
    }
    for conversation in &kept {
        conversation.ask()?.context("started again")?;
    }
    for (probe, (from, target)) in probes.iter().zip(&clients) {
        let tally = probe.stop_load()?;
        ensure!(tally.failed() == 0, "{from:?} -> {}: {tally:?}", target.to);
    }
    Ok(())
}

/// DESIGN 7: the capabilities of the DaemonSet are enough to load, attach and load balance, by socket and by packet.
#[test]
fn three_capabilities_are_enough() -> Result<()> {
    // CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF are numbers 12, 38 and 39 (include/uapi/linux/capability.h).
    let exactly = format!("{:016x}", 1u64 << 12 | 1 << 38 | 1 << 39);
    let mut cluster = cluster_prepared(|agent| agent.set_capabilities(&["bpf", "net_admin", "perfmon"]))?;
    let pid = cluster.agent("node-a")?.pid().context("the agent runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(status.contains(&format!("{set}:\t{exactly}")), "{set} is not {exactly}: {status}");
    }
    for (from, to) in [
        (At::pod("a2"), "10.96.0.20:80"),
        (At::pod("a2"), "[fd00:96::20]:80"),
        (At::Client, "192.0.2.11:31080"),
        (At::Client, "[2001:db8:2::11]:31080"),
    ] {
        let reply = answered(&cluster, &from, to)?;
        ensure!(reply.peer == to.parse()?, "{from:?} -> {to}: {reply:?}");
    }
    Ok(())
}

/// A backend that leaves takes no more connections; what is open drains (spec 2.29, 7.4, 7.15).
#[test]
fn changes_reach_new_connections_at_once() -> Result<()> {
    let cluster = cluster()?;
    let client = cluster.probe(&At::Client)?;
    let target = Target::http("192.0.2.11:31080")?;
    let kept = client.open(target)??;
    let first = kept.ask()??.answer.pod;
    let (gone, stays) = if first == "a1" { ("10.244.1.10", "b1") } else { ("10.244.2.10", "a1") };
    let line = |ip: &str, node: &str| {
        format!("- {{addresses: [{ip}], conditions: {{ready: true}}, nodeName: {node}}}\n")
    };
    let node = if first == "a1" { "node-a" } else { "node-b" };
    cluster.apply("services.yaml", &SERVICES.replacen(&line(gone, node), "", 1))?;
    eventually("does only the other pod answer", Duration::from_secs(5), || {
        let tally = client.tally(target, QUESTIONS)?;
        ensure!(tally.failed() == 0, "{tally:?}");
        Ok(tally.answers.keys().map(String::as_str).eq([stays]))
    })?;
    ensure!(kept.ask()??.answer.pod == first, "what is open drains");
    cluster.delete("services.yaml")?;
    eventually("is the VIP dead for processes", Duration::from_secs(5), || {
        Ok(http(&cluster, &At::host("node-a"), "127.0.0.1:31080")? == Err(ClientError::Refused))
    })?;
    ensure!(kept.ask()??.answer.pod == first, "spec 7.11: TCP of a deleted service continues");
    Ok(())
}

/// `bpftool` names maps and fields, as docs/bpftool.md shows.
#[test]
fn bpftool_prints_field_names() -> Result<()> {
    let mut cluster = cluster()?;
    let pins = cluster.agent("node-a")?.pins().join(lb_common::ABI_VERSION.to_string());
    for (map, fields) in [
        ("FRONTENDS4", ["addr", "port", "protocol", "service_port", "internal"].as_slice()),
        ("BACKENDS6", &["addr", "state", "flags"]),
        ("MEMBERS", &["service_port", "backend", "sets"]),
        ("DEVICES", &["role", "snat4"]),
    ] {
        let path = pins.join(map);
        let output = std::process::Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(&path)
            .output()
            .context("run bpftool")?;
        let text = String::from_utf8_lossy(&output.stdout);
        for field in fields {
            ensure!(text.contains(&format!("\"{field}\"")), "{map}: {field} in {text}");
        }
    }
    Ok(())
}

/// `lb-agent cleanup` leaves nothing, and the node goes on without Services.
#[test]
fn cleanup_leaves_nothing() -> Result<()> {
    let mut cluster = cluster()?;
    answered(&cluster, &At::host("node-b"), "10.96.0.20:80")?;
    let agent = cluster.agent("node-b")?;
    agent.stop()?;
    let pins = agent.pins().to_owned();
    let said = agent.cli_text("cleanup", &[])?;
    ensure!(!pins.exists(), "pins are gone: {said}");
    let place = cluster.place(&At::host("node-b"))?;
    let filters = place.output("tc", &["filter", "show", "dev", "eth0", "ingress"])?;
    ensure!(filters.stdout.is_empty(), "{filters:?}");
    let net = place.output("bpftool", &["net", "show"])?;
    let net = String::from_utf8_lossy(&net.stdout).into_owned();
    ensure!(!net.contains("tc_"), "no program of ours: {net}");
    let node_cgroup = cluster.node_cgroup("node-b")?;
    let attached = std::process::Command::new("bpftool")
        .args(["cgroup", "show"])
        .arg(node_cgroup.path())
        .output()
        .context("run bpftool")?;
    let attached = String::from_utf8_lossy(&attached.stdout).into_owned();
    ensure!(!attached.contains("sock_"), "no program of ours: {attached}");
    ensure!(http(&cluster, &At::host("node-b"), &format!("{NODE_B}:31080"))?.is_err());
    ensure!(http(&cluster, &At::host("node-b"), &format!("[{NODE_B6}]:31080"))?.is_err());
    Ok(())
}

/// The seven refusals of bad.yaml by object and field, while `good` works.
#[test]
fn bad_objects_are_refused_one_by_one() -> Result<()> {
    let mut cluster = cluster()?;
    cluster.apply("bad.yaml", include_str!("../testdata/manifests/bad.yaml"))?;
    let agent = cluster.agent("node-a")?;
    let mut status = serde_json::Value::Null;
    eventually("are the refusals known", Duration::from_secs(5), || {
        status = serde_json::from_str(&agent.cli_text("status", &["-o", "json"])?)?;
        Ok(status["sync"]["refusals"].as_array().is_some_and(|refusals| refusals.len() >= 7))
    })?;
    let refusals = status["sync"]["refusals"].as_array().context("refusals")?;
    let found: Vec<String> =
        refusals.iter().map(|r| format!("{} {}", r["object"], r["field"]).replace('"', "")).collect();
    let mut expected = vec![
        "Deployment default/ignored kind",
        "EndpointSlice default/good-1 endpoints[1].addresses[0]",
        "EndpointSlice default/orphan metadata.labels[kubernetes.io/service-name]",
        "Service default/bad-cluster-ip spec.clusterIP",
        "Service default/bad-port spec.ports[0].port",
        "Service default/bad-protocol spec.ports[0].protocol",
        "Service default/bad-source-range spec.loadBalancerSourceRanges[0]",
    ];
    let mut found: Vec<&str> = found.iter().map(String::as_str).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let services = agent.cli_text("services", &[])?;
    ensure!(services.contains("10.96.0.40:80"), "good works: {services}");
    ensure!(services.contains("bad-port"), "the listing tells who was refused: {services}");
    Ok(())
}
