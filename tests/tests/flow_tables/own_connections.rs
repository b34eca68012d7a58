//! The node's own sockets and services that have their ports (spec 4.14, 1.62).

use anyhow::Result;
use lb_common::sctp::{ABORT, DATA, INIT, INIT_ACK, SHUTDOWN};
use lb_tests::packet::{ACK, FIN, RST, SYN, SYN_ACK};
use socket2::{Domain, Socket, Type};

use super::*;

/// A socket of the node that has dialled `peer` from `port`, and waits for its answer if it is TCP.
fn dialled(family: FlowFamily, kind: Type, port: u16, peer: SocketAddr) -> Socket {
    let local = SocketAddr::new(family.of(NODE), port);
    let socket = Socket::new(Domain::for_address(local), kind, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&local.into()).unwrap();
    // Nobody answers; EINPROGRESS says that the SYN is on its way.
    let connected = socket.connect(&peer.into());
    assert!(connected.is_ok() || kind == Type::STREAM, "{connected:?}");
    socket
}

/// Spec 4.14, 12A 54, 17: a NodePort, or the port of an externalIP that is a node address, has the number of a port from
/// which the node dialled somebody.
#[test]
fn answers_to_the_nodes_own_connections_pass_whatever_service_has_their_port() -> Result<()> {
    answers_pass()
}

#[test]
fn answers_to_the_nodes_own_connections_pass_xdp_as_well() {
    through_xdp(|| answers_pass().unwrap());
}

fn answers_pass() -> Result<()> {
    let mut node = FlowNode::start(AgentFlags::default())?;
    node.apply(include_str!("../../testdata/flows/own-connections.yaml"))?;
    for family in FAMILIES {
        for (sender, peer) in [(Sender::Outside(CLIENT), CLIENT), (Sender::Pod, POD)] {
            for port in [30001, 5000] {
                let peer = SocketAddr::new(family.of(peer), 443);
                let own = (family.of(NODE), port);
                let (src, stranger) = ((peer.ip(), peer.port()), (peer.ip(), 444));
                let _tcp = dialled(family, Type::STREAM, port, peer);
                let _udp = dialled(family, Type::DGRAM, port, peer);
                for flags in [SYN_ACK, ACK, FIN, RST] {
                    let answer = Packet::tcp(src, own, flags);
                    assert_eq!(node.send_packet(sender, &answer)?, Outcome::Untouched, "{answer:?}");
                }
                let answer = Packet::udp(src, own, b"answer");
                assert_eq!(node.send_packet(sender, &answer)?, Outcome::Untouched, "{answer:?}");
                for chunk in [INIT_ACK, DATA, SHUTDOWN, ABORT] {
                    let answer = Packet::sctp(src, own, chunk);
                    assert_eq!(node.send_packet(sender, &answer)?, Outcome::Untouched, "{answer:?}");
                }
                for dials in [
                    Packet::tcp(src, own, SYN),
                    Packet::tcp(stranger, own, SYN),
                    Packet::udp(stranger, own, b"question"),
                    Packet::sctp(src, own, INIT),
                ] {
                    let outcome = node.send_packet(sender, &dials)?;
                    assert!(matches!(outcome, Outcome::Backends(_)), "{dials:?}: {outcome}");
                }
            }
        }
    }
    Ok(())
}

/// Spec 1.62, 12A 39: a socket that listens on a NodePort, or is bound to it, is shadowed.
#[test]
fn a_nodeport_wins_over_a_local_socket() -> Result<()> {
    let mut node = FlowNode::start(AgentFlags::default())?;
    node.apply(include_str!("../../testdata/flows/own-connections.yaml"))?;
    for family in FAMILIES {
        let local = SocketAddr::new(family.of(NODE), 30001);
        let _listener = std::net::TcpListener::bind(local)?;
        let _server = std::net::UdpSocket::bind(local)?;
        let src = (family.of(CLIENT), 40_000);
        for packet in [
            Packet::tcp(src, (local.ip(), local.port()), SYN),
            Packet::udp(src, (local.ip(), local.port()), b"question"),
        ] {
            let outcome = node.send_packet(Sender::Outside(CLIENT), &packet)?;
            assert!(matches!(outcome, Outcome::Backends(_)), "{packet:?}: {outcome}");
        }
    }
    Ok(())
}
