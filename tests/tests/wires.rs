//! Nodes joined by devices whose packets no veth pair and no test run of the kernel (`BPF_PROG_TEST_RUN`) has: without link-layer
//! header, as WireGuard and ipip overlays are, or with headers outside the linear part of the buffer. With real sockets in
//! namespaces. Needs root.
#![allow(clippy::allow_attributes, clippy::panic, reason = "tests")]

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::At,
    objects::service,
    probe::{Target, Transport},
    process::eventually,
    scene::{PATIENCE, PODS, Scene, dual_with, node_port, ready},
    wire::{Ends, Wire},
};

/// The ends of the wire: node, addresses.
const ENDS: [(&str, [&str; 2]); 2] =
    [("node-a", ["10.9.0.1", "fd00:9::1"]), ("node-b", ["10.9.0.2", "fd00:9::2"])];
const HTTP: u16 = 31_480;
const ASK: u16 = 31_481;

/// The device at both ends.
const DEVICE: &str = "wire0";

/// Pods of the other node are reached by the wire.
fn lay(scene: &Scene, ends: Ends) -> Result<Wire> {
    let namespace = |node| scene.cluster.place(&At::host(node)).map(|place| &place.namespace);
    let wire = Wire::start(DEVICE, ends, [namespace("node-a")?, namespace("node-b")?])?;
    for ((node, [v4, v6]), (_, others)) in ENDS.into_iter().zip(ENDS.into_iter().rev()) {
        let mut commands = vec![
            format!("address add {v4}/24 dev {DEVICE}"),
            format!("address add {v6}/64 dev {DEVICE} nodad"),
            format!("link set {DEVICE} up"),
        ];
        for (_, v4, v6, _) in PODS.iter().filter(|(_, _, _, of)| *of != node) {
            let routes = [v4, v6].into_iter().zip(others);
            commands.extend(routes.map(|(pod, via)| format!("route replace {pod} via {via} dev {DEVICE}")));
        }
        namespace(node)?.ip(&commands)?;
    }
    Ok(wire)
}

/// The programs of each node's end and their mechanism, as its agent says.
fn is_attached(scene: &mut Scene) -> Result<bool> {
    for (node, _) in ENDS {
        let status = scene.cluster.agent(node)?.cli_text("status", &["-o", "json"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let devices = status["attachments"].as_array().context("attachments in the status")?;
        if !devices.iter().any(|device| device["device"] == DEVICE && device["role"] == "overlay") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[test]
fn services_are_served_over_devices_without_link_layer_header() -> Result<()> {
    serve_over(Ends::Tun, &["--socket-lb", "false"])?;
    serve_over(Ends::Tun, &["--socket-lb", "false", "--attach", "clsact", "--forward-pods"])
}

#[test]
fn headers_outside_the_linear_part_of_a_buffer_are_read() -> Result<()> {
    serve_over(Ends::Scattered, &["--socket-lb", "false", "--overlay", DEVICE])
}

/// Serves clients outside, pods and the nodes themselves from pods at the other end of a wire.
fn serve_over(ends: Ends, arguments: &[&str]) -> Result<()> {
    let mut scene = Scene::prepared(|agent| agent.set_extra_args(arguments))?;
    let _wire = lay(&scene, ends)?;
    eventually("do both ends have their programs", PATIENCE, || is_attached(&mut scene))?;
    let ports = format!(
        "{{name: http, port: 80, nodePort: {HTTP}}}, \
         {{name: ask, protocol: UDP, port: 53, nodePort: {ASK}}}"
    );
    let spec = dual_with(190, &ports, "type: NodePort");
    scene.cluster.apply("far.yaml", &(service("far", &spec) + &ready("far", &["b1"])))?;
    // The pod of the other node, from another of this node.
    scene.cluster_ip_reaches(&At::pod("a2"), 190, &["b1"])?;
    for target in node_port(Transport::Http, "node-a", HTTP)?.into_iter().chain(node_port(
        Transport::UdpConnected,
        "node-a",
        ASK,
    )?) {
        let reply = scene.reaches(&At::Client, target, &["b1"])?;
        let [v4, v6] = ENDS[0].1;
        let end: IpAddr = if target.to.is_ipv4() { v4 } else { v6 }.parse()?;
        ensure!(reply.answer.client.ip() == end, "the address of the device it left by: {reply:?}");
    }
    for target in node_port(Transport::Http, "node-a", HTTP)? {
        let fetched = scene.cluster.probe(&At::Client)?.fetch(target, "/bytes?count=3000000")?;
        ensure!(fetched == Ok(3_000_000), "{target:?}: {fetched:?}");
    }
    // In by the wire, and served there, or sent back by it.
    for pod in ["b1", "a1"] {
        scene.cluster.apply("far.yaml", &(service("far", &spec) + &ready("far", &[pod])))?;
        for address in ENDS[1].1 {
            let to = std::net::SocketAddr::new(address.parse()?, HTTP);
            scene.reaches(&At::host("node-a"), Target::new(Transport::Http, to), &[pod])?;
            let to = std::net::SocketAddr::new(address.parse()?, ASK);
            scene.reaches(&At::host("node-a"), Target::new(Transport::UdpConnected, to), &[pod])?;
        }
    }
    Ok(())
}
