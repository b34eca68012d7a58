//! What becomes of a client when the pods behind its Service come and go (spec 11.B, 11.E, 7): one that sends
//! datagrams from one port all the time, as the e2e tests of `conntrack.go` do. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use lb_tests::{
    cluster::{At, Cluster, PodSpec},
    objects::{Endpoint, load_balancer, service, slice},
    probe::{ClientError, Conversation, Probe, Reply, Target, Transport},
    process::eventually,
};
use socket2::{Domain, Protocol, Socket, Type};

const A1: &str = "10.244.1.10";
const A2: &str = "10.244.1.11";
const B1: &str = "10.244.2.10";
const NODE_PORT: &str = "192.0.2.11:31200";
const CLUSTER_IP: &str = "10.96.0.60:53";
const VIP: &str = "203.0.113.60";
const PORTS: &str = "{name: ask, protocol: UDP, port: 5353}";
/// The e2e tests allow a minute.
const PATIENCE: Duration = Duration::from_secs(10);

fn cluster() -> Result<Cluster> {
    let mut cluster = Cluster::start()?;
    let pod = |name, node, v4| {
        Ok::<_, anyhow::Error>(PodSpec::http(name, node, &[v4], 8080)?.and_udp(5353).and_udp(9090))
    };
    cluster.add_pods(&[pod("a1", "node-a", A1)?, pod("a2", "node-a", A2)?, pod("b1", "node-b", B1)?])?;
    serve(&cluster, &[])?;
    cluster.start_agents()?;
    cluster.route_to(VIP.parse()?, "node-a")?;
    Ok(cluster)
}

/// The Service, on every frontend, with these endpoints.
fn serve(cluster: &Cluster, endpoints: &[Endpoint]) -> Result<()> {
    serve_as(cluster, "", PORTS, endpoints)
}

fn serve_as(cluster: &Cluster, extra: &str, ports: &str, endpoints: &[Endpoint]) -> Result<()> {
    let spec = format!(
        "type: LoadBalancer, clusterIP: 10.96.0.60, ports: [{{name: ask, protocol: UDP, port: 53, nodePort: 31200}}]{extra}"
    );
    let text = load_balancer("cycle", &spec, &[VIP]) + &slice("cycle-1", "cycle", ports, endpoints);
    cluster.apply("cycle.yaml", &text)
}

fn ready(address: &str) -> Endpoint {
    Endpoint::ready(address, if address == B1 { "node-b" } else { "node-a" })
}

/// A client with one source port: a socket that it keeps, or, as `nc` in a loop, one after another.
struct Client<'a> {
    probe: &'a Probe,
    target: Target,
    kept: Option<Conversation<'a>>,
}

impl<'a> Client<'a> {
    fn new(probe: &'a Probe, to: &str, transport: Transport, port: u16) -> Result<Self> {
        let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        let target = Target { transport, ..Target::udp(to)? }.from(from).within(Duration::from_millis(300));
        Ok(Self { probe, target, kept: None })
    }

    /// Keeps its socket from here on.
    fn keeping(mut self) -> Result<Self> {
        self.kept = Some(self.probe.open(self.target)??);
        Ok(self)
    }

    fn ask(&self) -> Result<Result<Reply, ClientError>> {
        match &self.kept {
            Some(conversation) => conversation.ask(),
            None => self.probe.once(self.target),
        }
    }

    /// Sends a datagram every 100 ms until `pod` answers one.
    fn reaches(&self, pod: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < deadline {
            let started = Instant::now();
            let outcome = self.ask()?;
            if outcome.as_ref().is_ok_and(|reply| reply.answer.pod == pod && reply.peer == self.target.to) {
                return Ok(());
            }
            last = Some(outcome);
            // The client's own pace, as the e2e tests': not a wait for anything.
            std::thread::sleep(Duration::from_millis(100).saturating_sub(started.elapsed()));
        }
        anyhow::bail!("{:?} does not reach {pod}: {last:?}", self.target)
    }
}

/// The server pod goes, for a while nobody serves, another one comes; the client never stops sending.
fn server_pod_cycles(cluster: &Cluster, client: &Client<'_>, (old, new): (&str, &str)) -> Result<()> {
    let address = |pod| match pod {
        "a1" => A1,
        "a2" => A2,
        _ => B1,
    };
    serve(cluster, &[ready(address(old))])?;
    client.reaches(old)?;
    serve(cluster, &[])?;
    eventually("does nobody answer", PATIENCE, || Ok(client.ask()?.is_err()))?;
    serve(cluster, &[ready(address(new))])?;
    client.reaches(new)
}

/// Spec 11.B and 11.E: "should be able to preserve UDP traffic when server pod cycles for a …", 7.5, 7.6, 12A 65, 68.
#[test]
fn udp_follows_when_the_server_pod_cycles() -> Result<()> {
    let cluster = cluster()?;
    node_port_service(&cluster)?;
    load_balancer_on_the_same_and_on_different_nodes(&cluster)?;
    cluster_ip_service(&cluster)?;
    cluster_ip_service_and_the_client_is_on_the_host_network(&cluster)?;
    cluster_ip_service_with_internal_policy_local(&cluster)?;
    initial_unready_endpoints_get_ready(&cluster)?;
    target_port_changes_for_a_node_port_service(&cluster)?;
    a_service_that_comes_late_or_goes_and_comes_again(&cluster)
}

fn node_port_service(cluster: &Cluster) -> Result<()> {
    let probe = cluster.probe(&At::Client)?;
    let client = Client::new(&probe, NODE_PORT, Transport::UdpConnected, 12345)?.keeping()?;
    server_pod_cycles(cluster, &client, ("a1", "b1")).context("NodePort, from outside")?;
    server_pod_cycles(cluster, &client, ("b1", "a1")).context("NodePort, from outside, back")?;
    let probe = cluster.probe(&At::pod("b1"))?;
    let client = Client::new(&probe, NODE_PORT, Transport::UdpConnected, 12345)?;
    server_pod_cycles(cluster, &client, ("a1", "a2")).context("NodePort, from a pod")
}

fn load_balancer_on_the_same_and_on_different_nodes(cluster: &Cluster) -> Result<()> {
    let probe = cluster.probe(&At::Client)?;
    let client = Client::new(&probe, &format!("{VIP}:53"), Transport::UdpConnected, 54321)?.keeping()?;
    server_pod_cycles(cluster, &client, ("a1", "b1")).context("LoadBalancer, different nodes")?;
    server_pod_cycles(cluster, &client, ("a1", "a2")).context("LoadBalancer, the same node")
}

fn cluster_ip_service(cluster: &Cluster) -> Result<()> {
    let probe = cluster.probe(&At::pod("a2"))?;
    let loop_of_nc = Client::new(&probe, CLUSTER_IP, Transport::UdpConnected, 12346)?;
    server_pod_cycles(cluster, &loop_of_nc, ("a1", "b1")).context("ClusterIP, a socket each")?;
    let unconnected = Client::new(&probe, CLUSTER_IP, Transport::UdpUnconnected, 12347)?.keeping()?;
    server_pod_cycles(cluster, &unconnected, ("b1", "a1")).context("ClusterIP, one unconnected socket")
}

fn cluster_ip_service_and_the_client_is_on_the_host_network(cluster: &Cluster) -> Result<()> {
    let probe = cluster.probe(&At::host("node-a"))?;
    let client = Client::new(&probe, CLUSTER_IP, Transport::UdpConnected, 12348)?;
    server_pod_cycles(cluster, &client, ("a1", "b1")).context("ClusterIP, host network")?;
    let client = Client::new(&probe, CLUSTER_IP, Transport::UdpUnconnected, 12349)?.keeping()?;
    server_pod_cycles(cluster, &client, ("b1", "a1")).context("ClusterIP, host network, one socket")
}

/// Spec 7.16: the pod of this node is replaced while one on another node goes on serving.
fn cluster_ip_service_with_internal_policy_local(cluster: &Cluster) -> Result<()> {
    let local =
        |endpoints: &[Endpoint]| serve_as(cluster, ", internalTrafficPolicy: Local", PORTS, endpoints);
    let probe = cluster.probe(&At::pod("a2"))?;
    let client = Client::new(&probe, CLUSTER_IP, Transport::UdpUnconnected, 12350)?.keeping()?;
    local(&[ready(A1), ready(B1)])?;
    client.reaches("a1")?;
    local(&[ready(B1)])?;
    eventually("is the other node's pod out of bounds", PATIENCE, || Ok(client.ask()?.is_err()))?;
    local(&[ready(A2), ready(B1)])?;
    client.reaches("a2").context("internalTrafficPolicy: Local")
}

/// Spec 7.12: an unready backend is no reason to disturb a flow, and takes its share once it is ready.
fn initial_unready_endpoints_get_ready(cluster: &Cluster) -> Result<()> {
    let probe = cluster.probe(&At::Client)?;
    let client = Client::new(&probe, NODE_PORT, Transport::UdpConnected, 12351)?.keeping()?;
    serve(cluster, &[Endpoint::unready(A1, "node-a")])?;
    eventually("does nobody answer", PATIENCE, || Ok(client.ask()?.is_err()))?;
    serve(cluster, &[ready(A1)])?;
    client.reaches("a1")?;
    serve(cluster, &[Endpoint::serving(A1, "node-a"), ready(B1)])?;
    // Until the agent knows, a flow may be given the former one, and would keep it.
    eventually("is a flow of its own given the ready one", PATIENCE, || {
        let target = Target::new(Transport::UdpConnected, NODE_PORT.parse()?);
        Ok(probe.once(target)?.is_ok_and(|reply| reply.answer.pod == "b1"))
    })?;
    client.reaches("a1").context("spec 7.10: unready but serving keeps its flows")?;
    serve(cluster, &[Endpoint::unready(A1, "node-a"), ready(B1)])?;
    client.reaches("b1").context("spec 7.10: not serving loses them")
}

/// "should be able to cleanup conntrack entries when UDP service target port changes for a NodePort service".
fn target_port_changes_for_a_node_port_service(cluster: &Cluster) -> Result<()> {
    let probe = cluster.probe(&At::Client)?;
    let client = Client::new(&probe, NODE_PORT, Transport::UdpConnected, 12353)?.keeping()?;
    serve(cluster, &[ready(A1)])?;
    client.reaches("a1")?;
    serve_as(cluster, "", "{name: ask, protocol: UDP, port: 9090}", &[ready(A1)])?;
    eventually("does the new port answer", PATIENCE, || {
        Ok(client.ask()?.is_ok_and(|reply| reply.answer.server.port() == 9090))
    })
}

/// Spec 7.6, 7.11, 12A 65, 68: what was sent before there was a Service leaves no trace, nor does a deleted one.
fn a_service_that_comes_late_or_goes_and_comes_again(cluster: &Cluster) -> Result<()> {
    let probe = cluster.probe(&At::Client)?;
    let client = Client::new(&probe, NODE_PORT, Transport::UdpConnected, 12354)?.keeping()?;
    cluster.delete("cycle.yaml")?;
    eventually("does nobody answer", PATIENCE, || Ok(client.ask()?.is_err()))?;
    serve(cluster, &[ready(A1)])?;
    client.reaches("a1").context("the Service comes late")?;
    cluster.delete("cycle.yaml")?;
    eventually("is the deleted Service dead for a live flow", PATIENCE, || Ok(client.ask()?.is_err()))?;
    serve(cluster, &[ready(B1)])?;
    client.reaches("b1").context("created again, with another pod")
}

/// Counters of `/proc/net/snmp` where the client lives: segments that came in, and resets sent.
fn tcp_counters(cluster: &Cluster) -> Result<(u64, u64)> {
    let namespace = &cluster.place(&At::Client)?.namespace;
    let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let names: Vec<&str> = lines.next().context("names")?.split(' ').collect();
    let values: Vec<&str> = lines.next().context("values")?.split(' ').collect();
    let of = |name: &str| -> Result<u64> {
        let at = names.iter().position(|known| *known == name).with_context(|| format!("no {name}"))?;
        Ok(values[at].parse()?)
    };
    Ok((of("InSegs")?, of("OutRsts")?))
}

/// Segments of the connection `server` → `client` as the pod has it, far outside any window.
fn boom(cluster: &Cluster, pod: &str, server: SocketAddr, client: SocketAddr, count: u32) -> Result<()> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (server.ip(), client.ip()) else {
        anyhow::bail!("IPv4 only: {server} {client}")
    };
    cluster.place(&At::pod(pod))?.namespace.run(|| -> Result<()> {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        for number in 1..=count {
            let sequence = number.wrapping_mul(0x1357_9bdf);
            let packet = PacketBuilder::ipv4(from.octets(), to.octets(), 64)
                .tcp(server.port(), client.port(), sequence, 1000)
                .ack(sequence.wrapping_mul(3));
            let mut bytes = Vec::new();
            packet.write(&mut bytes, b"boom")?;
            raw.send_to(&bytes, &SocketAddr::new(IpAddr::V4(to), 0).into())?;
        }
        Ok(())
    })?
}

/// Spec 11.B "proxy implementation should not be vulnerable to the invalid conntrack state bug", 7.31, 12A 69: what a
/// backend sends out of window is translated like the rest; the client answers it without a reset.
#[test]
fn segments_out_of_window_are_translated() -> Result<()> {
    const SEGMENTS: u32 = 20;
    let cluster = cluster()?;
    let web = |pod| {
        service("web", "type: NodePort, clusterIP: 10.96.0.61, ports: [{port: 80, nodePort: 31201}]")
            + &slice("web-1", "web", "{name: \"\", port: 8080}", &[ready(pod)])
    };
    for (pod, address) in [("a1", A1), ("b1", B1)] {
        cluster.apply("web.yaml", &web(address))?;
        let probe = cluster.probe(&At::Client)?;
        let target = Target::http("192.0.2.11:31201")?;
        eventually("does the pod answer", PATIENCE, || {
            Ok(probe.once(target)?.is_ok_and(|reply| reply.answer.pod == pod))
        })?;
        let connection = probe.open(target)??;
        let answer = connection.ask()??.answer;
        let (segments, resets) = tcp_counters(&cluster)?;
        boom(&cluster, pod, answer.server, answer.client, SEGMENTS)?;
        eventually("have the segments arrived", PATIENCE, || {
            Ok(tcp_counters(&cluster)?.0 >= segments + u64::from(SEGMENTS))
        })?;
        ensure!(tcp_counters(&cluster)?.1 == resets, "{pod}: the client sent a reset");
        ensure!(connection.ask()??.answer.pod == pod, "the connection goes on");
    }
    Ok(())
}

/// 12A 63 and 56: what is open survives new policies and ranges, and one socket's datagrams reach one pod. 12A 77: a
/// ClusterIP is dialled from outside, as where BGP announces it.
#[test]
fn what_is_open_stays_with_its_pod() -> Result<()> {
    let cluster = cluster()?;
    one_socket_s_datagrams_stay_together(&cluster)?;
    a_cluster_ip_is_served_from_outside(&cluster)?;
    open_tcp_survives_changes_of_policy_and_ranges(&cluster)
}

fn one_socket_s_datagrams_stay_together(cluster: &Cluster) -> Result<()> {
    serve(cluster, &[ready(A1), ready(B1)])?;
    for (from, to) in [(At::Client, NODE_PORT), (At::pod("a2"), CLUSTER_IP), (At::host("node-a"), CLUSTER_IP)]
    {
        let probe = cluster.probe(&from)?;
        for transport in [Transport::UdpConnected, Transport::UdpUnconnected] {
            let client = Client::new(&probe, to, transport, 12360)?.keeping()?;
            eventually("is it served", PATIENCE, || Ok(client.ask()?.is_ok()))?;
            let first = client.ask()??.answer.pod;
            for _ in 0..20 {
                ensure!(client.ask()??.answer.pod == first, "{from:?} -> {to}: one socket, one pod");
            }
        }
    }
    Ok(())
}

fn a_cluster_ip_is_served_from_outside(cluster: &Cluster) -> Result<()> {
    cluster.route_to("10.96.0.60".parse()?, "node-a")?;
    serve(cluster, &[ready(A1), ready(B1)])?;
    let probe = cluster.probe(&At::Client)?;
    for pod in ["a1", "b1"] {
        eventually("does each pod answer", PATIENCE, || {
            let outcome = probe.once(Target::udp(CLUSTER_IP)?)?;
            let dialled = CLUSTER_IP.parse()?;
            Ok(outcome.is_ok_and(|reply| reply.answer.pod == pod && reply.peer == dialled))
        })?;
    }
    Ok(())
}

fn open_tcp_survives_changes_of_policy_and_ranges(cluster: &Cluster) -> Result<()> {
    let with = |rest: &str, pods: &[Endpoint]| {
        let spec = format!(
            "type: LoadBalancer, clusterIP: 10.96.0.62, ports: [{{port: 80, nodePort: 31202}}]{rest}"
        );
        let slice = slice("open-1", "open", "{name: \"\", port: 8080}", pods);
        cluster.apply("open.yaml", &(load_balancer("open", &spec, &["203.0.113.66"]) + &slice))
    };
    cluster.route_to("203.0.113.66".parse()?, "node-a")?;
    with("", &[ready(A1), ready(B1)])?;
    let probe = cluster.probe(&At::Client)?;
    let target = Target::http("203.0.113.66:80")?;
    let mut kept = Vec::new();
    eventually("has each pod an open connection", PATIENCE, || {
        let connection = probe.open(target)?;
        let Ok(connection) = connection else { return Ok(false) };
        let pod = connection.ask()??.answer.pod;
        if !kept.iter().any(|(_, known)| *known == pod) {
            kept.push((connection, pod));
        }
        Ok(kept.len() == 2)
    })?;
    let refused = target.within(Duration::from_millis(300));
    for (rest, pods) in [
        (", externalTrafficPolicy: Local", &[ready(A1), ready(B1)][..]),
        (", loadBalancerSourceRanges: [192.0.2.99/32]", &[ready(A1), ready(B1)]),
        (", loadBalancerSourceRanges: [192.0.2.99/32]", &[]),
    ] {
        with(rest, pods)?;
        if rest.contains("Ranges") {
            eventually("is the client shut out", PATIENCE, || Ok(probe.once(refused)?.is_err()))?;
        }
        for (connection, pod) in &kept {
            ensure!(connection.ask()??.answer.pod == *pod, "what is open goes on: {rest}");
        }
    }
    Ok(())
}
