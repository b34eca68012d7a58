//! SCTP through the two-node cluster, by raw sockets: no kernel module is needed, here as in the agent (spec 1.21). An
//! INIT reaches a backend, the answer comes from what was dialled, and every CRC32c is right. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    crc32c,
    sctp::{CHECKSUM, CHUNK, HEADER_LEN, INIT, INIT_ACK},
};
use lb_tests::{
    cluster::{At, NODES},
    objects::{Endpoint, service},
    packet::Packet,
    process::eventually,
    scene::{PATIENCE, Scene, dual_with, slices_with},
};
use socket2::{Domain, Protocol, Socket, Type};

const PORT: u16 = 3868;
const TARGET: u16 = 3869;
const NODE_PORT: u16 = 31_868;
/// Longer than a packet takes through the cluster.
const WAIT: Duration = Duration::from_millis(200);

/// A raw socket of SCTP; `UdpSocket` is what the standard library calls a socket without connections.
struct Raw(UdpSocket);

/// A packet that came in.
struct Came {
    from: IpAddr,
    ports: [u16; 2],
    chunk: u8,
}

impl Raw {
    fn open(scene: &Scene, at: &At, domain: Domain) -> Result<Self> {
        let socket = scene.cluster.place(at)?.namespace.run(|| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(132)))?;
            socket.set_read_timeout(Some(WAIT))?;
            Ok::<_, std::io::Error>(socket)
        })?;
        Ok(Self(socket?.into()))
    }

    /// Sends a chunk; the addresses are the kernel's business, for the checksum does not cover them.
    fn send(&self, to: IpAddr, ports: [u16; 2], chunk: u8) -> Result<()> {
        let packet = Packet::sctp((to, ports[0]), (to, ports[1]), chunk).with_payload(&[7; 16]).bytes();
        let sctp = &packet[if to.is_ipv4() { 34 } else { 54 }..];
        self.0.send_to(sctp, SocketAddr::new(to, 0)).with_context(|| format!("send to {to}"))?;
        Ok(())
    }

    /// The next packet of a chunk of this type, if one comes within a while.
    fn receive(&self, chunk: u8) -> Result<Option<Came>> {
        loop {
            match self.receive_any()? {
                Some(came) if came.chunk != chunk => {}
                came => return Ok(came),
            }
        }
    }

    fn receive_any(&self) -> Result<Option<Came>> {
        let mut buffer = [0u8; 2048];
        let (len, from) = match self.0.recv_from(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            received => received?,
        };
        let from = from.ip();
        let header = if from.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let sctp = &buffer[header..len];
        let mut zeroed = sctp.to_vec();
        zeroed[CHECKSUM..HEADER_LEN].fill(0);
        ensure!(
            sctp[CHECKSUM..HEADER_LEN] == crc32c::of(&zeroed).to_le_bytes(),
            "a wrong checksum: {sctp:?}"
        );
        let port = |at: usize| u16::from_be_bytes([sctp[at], sctp[at + 1]]);
        Ok(Some(Came { from, ports: [port(0), port(2)], chunk: sctp[CHUNK] }))
    }
}

/// Dials until each backend has been reached and its answer has come back from `dialled`.
fn reaches_both(scene: &Scene, from: &At, dialled: SocketAddr) -> Result<()> {
    let domain = Domain::for_address(dialled);
    let client = Raw::open(scene, from, domain)?;
    let backends = [Raw::open(scene, &At::pod("a1"), domain)?, Raw::open(scene, &At::pod("b1"), domain)?];
    let (mut port, mut answered) = (40_000, [false; 2]);
    eventually("do both backends answer", PATIENCE, || {
        port += 1;
        client.send(dialled.ip(), [port, dialled.port()], INIT)?;
        for (backend, answered) in backends.iter().zip(&mut answered) {
            let Some(came) = backend.receive(INIT)? else { continue };
            ensure!(came.ports[1] == TARGET, "{:?}", came.ports);
            backend.send(came.from, [TARGET, came.ports[0]], INIT_ACK)?;
            let Some(reply) = client.receive(INIT_ACK)? else { continue };
            ensure!(
                (reply.from, reply.ports[0]) == (dialled.ip(), dialled.port()),
                "answered by {}",
                reply.from
            );
            *answered |= reply.ports[1] == port;
        }
        Ok(answered == [true; 2])
    })
    .with_context(|| format!("{from:?} -> {dialled}: {answered:?}"))
}

#[test]
fn associations_are_opened_through_every_path() -> Result<()> {
    let scene = Scene::start()?;
    let ports = format!("{{name: sctp, port: {PORT}, protocol: SCTP, nodePort: {NODE_PORT}}}");
    let slices = slices_with(
        "diameter",
        &format!("{{name: sctp, port: {TARGET}, protocol: SCTP}}"),
        |name, ip, node| ["a1", "b1"].contains(&name).then(|| Endpoint::ready(ip, node)),
    );
    let text = service("diameter", &dual_with(168, &ports, "type: NodePort")) + &slices;
    scene.cluster.apply("diameter.yaml", &text)?;
    for vip in ["10.96.0.168", "fd00:96::168"] {
        for from in [At::pod("a2"), At::host("node-a")] {
            reaches_both(&scene, &from, SocketAddr::new(vip.parse()?, PORT))?;
        }
    }
    for node in [NODES[0].v4, NODES[0].v6] {
        reaches_both(&scene, &At::Client, SocketAddr::new(node.parse()?, NODE_PORT))?;
    }
    Ok(())
}
