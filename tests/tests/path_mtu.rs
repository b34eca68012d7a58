//! Path MTU discovery through frontends: a hop on the way takes less than both ends believe, and says so in ICMP errors
//! (RFC 1191, RFC 8201) about packets that no socket ever sent. Real sockets in namespaces, both families. Needs root.
#![allow(clippy::allow_attributes, clippy::panic, reason = "tests")]

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{At, CLIENT_V4, CLIENT_V6, NODES},
    objects::service,
    probe::{Target, Transport},
    process::eventually,
    scene::{PATIENCE, PODS, Scene, cluster_ip, dual_with, node_port, ready},
};

/// Less than any device on the way has, more than IPv6 allows (RFC 8200, 5).
const NARROW: u64 = 1300;
/// Bytes of a datagram between [`NARROW`] and what devices take.
const DATAGRAM: usize = 1400;
/// Answered by more than any window, asked for by as much.
const LARGE_ANSWER: &str = "/bytes?count=300000";
const LARGE_REQUEST: &str = "/bytes?count=300000&ignored=";

/// One Service whose backend is a1, one whose backend is b1. Pods' packets are translated on their way, not by sockets.
fn scene() -> Result<Scene> {
    let scene = Scene::prepared(|agent| agent.set_extra_args(&["--socket-lb", "false"]))?;
    for (name, number, port, pod) in [("near", 180, 31380, "a1"), ("far", 181, 31382, "b1")] {
        let ask = port + 1;
        let ports = format!(
            "{{name: http, port: 80, nodePort: {port}}}, \
             {{name: ask, protocol: UDP, port: 53, nodePort: {ask}}}"
        );
        let spec = dual_with(number, &ports, "type: NodePort");
        scene.cluster.apply(&format!("{name}.yaml"), &(service(name, &spec) + &ready(name, &[pod])))?;
        scene.cluster_ip_reaches(&At::pod("a2"), number, &[pod])?;
    }
    Ok(scene)
}

/// Makes the way from a router to `to`, out of `device`, narrow.
fn narrow(scene: &Scene, router: &At, device: &str, to: [&str; 2]) -> Result<()> {
    let routes = to.map(|to| format!("route replace {to} dev {device} mtu {NARROW}"));
    scene.cluster.place(router)?.namespace.ip(&routes)
}

/// What the kernel at `at` believes of the path to `to`; `None`: that it is as wide as its device.
fn learnt(scene: &Scene, at: &At, to: IpAddr) -> Result<Option<u64>> {
    let output = scene
        .cluster
        .place(at)?
        .command("ip")?
        .args(["-j", "route", "get", &to.to_string()])
        .output()
        .context("run ip")?;
    let routes: serde_json::Value = serde_json::from_slice(&output.stdout).context("ip route get")?;
    Ok(routes[0]["metrics"][0]["mtu"].as_u64())
}

/// `from` transfers over TCP, or asks over UDP, what is too large for the narrow hop; then `learner` knows of it, by the
/// address that it knows its peer by.
fn discovers(scene: &Scene, from: &At, target: Target, learner: &At, peer: IpAddr) -> Result<()> {
    let what = || format!("{from:?} -> {target:?}, {learner:?} learns of {peer}");
    ensure!(learnt(scene, learner, peer)?.is_none(), "{}: known before", what());
    let probe = scene.cluster.probe(from)?;
    if target.transport == Transport::Http {
        let path = match learner == from {
            true => format!("{LARGE_REQUEST}{}", "x".repeat(60_000)),
            false => LARGE_ANSWER.to_owned(),
        };
        let fetched = probe.fetch(target, &path)?;
        ensure!(fetched == Ok(300_000), "{}: {fetched:?}", what());
    } else {
        // The datagram that was too large is lost, as UDP's are; the next one goes in fragments.
        eventually("is a large datagram answered", PATIENCE, || {
            Ok(probe.once(target.sized(DATAGRAM))?.is_ok())
        })
        .with_context(what)?;
    }
    ensure!(learnt(scene, learner, peer)? == Some(NARROW), "{}: {:?}", what(), learnt(scene, learner, peer)?);
    Ok(())
}

/// The addresses of a pod.
fn pod(name: &str) -> Result<[IpAddr; 2]> {
    let (_, v4, v6, _) = PODS.iter().find(|(pod, ..)| *pod == name).context("a pod")?;
    Ok([v4.parse()?, v6.parse()?])
}

/// Requests, to a backend of the node that is dialled, of another node, and through a ClusterIP.
#[test]
fn clients_learn_of_a_narrow_hop_before_the_backend() -> Result<()> {
    for transport in [Transport::Http, Transport::UdpConnected] {
        let scene = scene()?;
        let b1 = pod("b1")?.map(|address| address.to_string());
        narrow(&scene, &At::host("node-b"), "vethb1", [&b1[0], &b1[1]])?;
        let port = if transport == Transport::Http { 31382 } else { 31383 };
        for node in NODES {
            for target in node_port(transport, node.name, port)? {
                discovers(&scene, &At::Client, target, &At::Client, target.to.ip())?;
            }
        }
        let from = At::pod("a1");
        for target in cluster_ip(181)?.into_iter().filter(|target| same_kind(target.transport, transport)) {
            discovers(&scene, &from, target, &from, target.to.ip())?;
        }
    }
    Ok(())
}

/// Answers, from a backend of the node that is dialled, which knows the client, and of another, which knows the node.
#[test]
fn backends_learn_of_a_narrow_hop_before_the_client() -> Result<()> {
    for (transport, near, far) in [(Transport::Http, 31380, 31382), (Transport::UdpConnected, 31381, 31383)] {
        let scene = scene()?;
        narrow(&scene, &At::Router, "client", [CLIENT_V4, CLIENT_V6])?;
        let clients: [IpAddr; 2] = [CLIENT_V4.parse()?, CLIENT_V6.parse()?];
        for (target, client) in node_port(transport, "node-a", near)?.into_iter().zip(clients) {
            discovers(&scene, &At::Client, target, &At::pod("a1"), client)?;
        }
        for target in node_port(transport, "node-a", far)? {
            discovers(&scene, &At::Client, target, &At::pod("b1"), target.to.ip())?;
        }
    }
    Ok(())
}

fn same_kind(one: Transport, other: Transport) -> bool {
    (one == Transport::Http) == (other == Transport::Http)
}
