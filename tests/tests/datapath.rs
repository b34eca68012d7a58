//! Packets through the real programs, one at a time (`BPF_PROG_TEST_RUN`): for each way through the datapath the
//! verdict, the whole packet with its checksums, the connections and all counters, on IPv4 and IPv6. Needs root.
//!
//! Every verdict of `lb_common::verdict` is brought about here, those of the socket hooks in `sockets.rs`.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    affinity::{AffinityValue, ClientKind},
    backend::MemberSets,
    conntrack::{Coarse, ConnectionFlags, Phase},
    counters::TrafficCounter,
    family::{Address as _, Family, Protocol, V4, V6},
    frontend::FrontendFlags,
    id::{BackendId, ServicePortId},
    limits,
    next_hop::Manner,
    settings::Settings,
    verdict::Verdict,
};
use lb_tests::{
    both_families,
    packet::{self, ACK, FIN, Packet, RST, SYN, SYN_ACK, Tcp, Transport, Unreachable},
    process::eventually,
    prog::{Hook, Node, Places, REDIRECT, Ran, SHOT, Server, Service, UNSPEC},
};
use socket2::{Domain, Socket, Type};

const CLIENT_PORT: u16 = 40_000;
const PORT: u16 = 80;
const TARGET: u16 = 8080;
/// For what other processes are to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// A tick of the slowest kernels, nanoseconds.
const TICK_NS: u64 = 10_000_000;

/// CLOCK_MONOTONIC, nanoseconds.
fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

fn verdicts(expected: &[(Verdict, &[&[u8]])]) -> BTreeMap<Verdict, (u64, u64)> {
    expected
        .iter()
        .map(|(verdict, packets)| {
            let bytes = packets.iter().map(|packet| packet.len() as u64).sum();
            (*verdict, (packets.len() as u64, bytes))
        })
        .collect()
}

fn traffic(connections: u64, packets: &[&[u8]], refused: u64) -> TrafficCounter {
    let bytes = packets.iter().map(|packet| packet.len() as u64).sum();
    TrafficCounter { connections, packets: packets.len() as u64, bytes, refused }
}

fn tcp(src: (IpAddr, u16), dst: (IpAddr, u16), tcp: Tcp) -> Packet {
    Packet::tcp(src, dst, tcp)
}

fn dropped(packet: &[u8]) -> Ran {
    Ran { code: SHOT, packet: packet.to_vec() }
}

fn untouched(packet: &[u8]) -> Ran {
    Ran { code: UNSPEC, packet: packet.to_vec() }
}

/// A socket of the node bound to `local`. Of those bound to one address every second is connected, or connecting, to
/// `peer`; the others listen.
fn bound(protocol: Protocol, local: (IpAddr, u16), peer: (IpAddr, u16)) -> Socket {
    let (local, peer) = (SocketAddr::from(local), SocketAddr::from(peer));
    let kind = if protocol == Protocol::TCP { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(local), kind, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&local.into()).unwrap();
    if !local.ip().is_unspecified() && local.port() % 4 == 0 {
        // Nobody answers; EINPROGRESS says that the SYN is on its way.
        let connected = socket.connect(&peer.into());
        assert!(connected.is_ok() || kind == Type::STREAM, "{connected:?}");
    } else if kind == Type::STREAM {
        socket.listen(1).unwrap();
    }
    socket
}

/// The cases, generic in the family `F` of each expansion: the bounds of map access (`aya::Pod` of every key and
/// value) hold for concrete families, so the body is expanded once per family.
macro_rules! cases {
    ($module:ident, $F:ident) => {
        mod $module {
            use super::*;

            type F = $F;
            const CLIENT: (IpAddr, u16) = (F::CLIENT, CLIENT_PORT);
            const VIP: (IpAddr, u16) = (F::VIP, PORT);
            const POD: (IpAddr, u16) = (F::POD, TARGET);
            const REMOTE: (IpAddr, u16) = (F::REMOTE_POD, TARGET);

            fn local() -> Server {
                Server { addr: POD, local: true }
            }

            fn remote() -> Server {
                Server { addr: REMOTE, local: false }
            }

            fn service(protocol: Protocol, backends: &[Server]) -> Service {
                Service::new(VIP, protocol, backends)
            }

            fn serve(backends: &[Server]) -> (Node, Service) {
                let mut node = Node::start();
                let service = service(Protocol::TCP, backends);
                node.serve::<F>(&service);
                (node, service)
            }

            /// Runs a packet that must be translated and go on by the stack.
            fn translate(node: &mut Node, hook: Hook, packet: &Packet) -> Packet {
                let ran = node.run(hook, &packet.bytes());
                assert_eq!(ran.code, UNSPEC, "left to the stack: {:?}", node.verdicts());
                Packet::decode(&ran.packet)
            }

            /// Runs a packet that must be translated and sent on.
            fn forward(node: &mut Node, hook: Hook, packet: &Packet) -> Packet {
                let ran = node.run(hook, &packet.bytes());
                assert_eq!(ran.code, REDIRECT, "sent on: {:?}", node.verdicts());
                Packet::decode(&ran.packet)
            }

            pub(super) fn what_is_not_ours_leaves_as_it_came() {
                let (mut node, _) = serve(&[local()]);
                let other_port = tcp(CLIENT, (F::VIP, 81), SYN).bytes();
                let other_address = tcp(CLIENT, (F::OTHER_VIP, PORT), SYN).bytes();
                let other_protocol = Packet::udp(CLIENT, VIP, b"x").bytes();
                for packet in [&other_port, &other_address, &other_protocol] {
                    for hook in [Hook::FromNetwork, Hook::ToNetwork, Hook::FromPod, Hook::ToPod] {
                        assert_eq!(node.run(hook, packet), untouched(packet), "{hook:?}");
                    }
                }
                assert_eq!(node.verdicts()[&Verdict::NotOurs].0, 12);
                assert_eq!(node.verdicts().len(), 1);
                assert_eq!(node.connections::<F>(), 0);
            }

            pub(super) fn what_is_no_transport_of_ours_is_not_even_counted() {
                let (mut node, _) = serve(&[local()]);
                let mut dccp = tcp(CLIENT, VIP, SYN).bytes();
                dccp[if F::BITS == 32 { 23 } else { 20 }] = 33;
                let mut arp = tcp(CLIENT, VIP, SYN).bytes();
                arp[12..14].copy_from_slice(&[0x08, 0x06]);
                let mut short = tcp(CLIENT, VIP, SYN).bytes();
                short.truncate(short.len() - 18);
                for packet in [&dccp, &arp, &short] {
                    assert_eq!(node.run(Hook::FromNetwork, packet), untouched(packet));
                }
                assert_eq!(node.verdicts(), BTreeMap::new());
            }

            /// Spec 4.31: the client keeps its address.
            pub(super) fn an_outside_client_reaches_a_local_pod() {
                let (mut node, service) = serve(&[local()]);
                let request = tcp(CLIENT, VIP, SYN).with_payload(b"hello");
                let translated = translate(&mut node, Hook::FromNetwork, &request);
                assert_eq!(translated, Packet { dst: POD, ..request.clone() });

                let entry = node.connection::<F>(&request.flow()).expect("client -> backend");
                assert_eq!(entry.to, translated.flow::<F>().tuple);
                assert_eq!((entry.service_port, entry.backend), (service.service_port(), BackendId(1)));
                assert_eq!((entry.flags, entry.phase), (ConnectionFlags(0), Phase::OPENING));
                let reply = tcp(POD, CLIENT, SYN_ACK);
                let entry = node.connection::<F>(&reply.flow()).expect("backend -> client");
                assert_eq!(entry.to, packet::flow::<F>(VIP, CLIENT, Protocol::TCP).tuple);
                assert_eq!(entry.flags, ConnectionFlags::REPLY);

                assert_eq!(node.run(Hook::FromPod, &reply.bytes()), untouched(&reply.bytes()));
                let answered = translate(&mut node, Hook::ToNetwork, &reply);
                assert_eq!(answered, Packet { src: VIP, ..reply.clone() });

                let bytes = [request.bytes(), reply.bytes()];
                let ours: [&[u8]; 2] = [&bytes[0], &bytes[1]];
                assert_eq!(
                    node.verdicts(),
                    verdicts(&[(Verdict::NotOurs, &[&bytes[1]]), (Verdict::Translated, &ours)])
                );
                assert_eq!(node.service(service.service_port()), traffic(1, &ours, 0));
                assert_eq!(node.backend_traffic(BackendId(1)), traffic(1, &ours, 0));
                assert_eq!(node.service(ServicePortId(2)), TrafficCounter::default());
            }

            /// Spec 4.21, 4.27: SNAT, so that the answer comes back here; one hop less to live.
            pub(super) fn an_outside_client_reaches_a_remote_pod() {
                let (mut node, service) = serve(&[remote()]);
                let request = tcp(CLIENT, VIP, SYN);
                let sent = forward(&mut node, Hook::FromNetwork, &request);
                assert_eq!((sent.dst, sent.src.0, sent.ttl), (REMOTE, F::NODE, 63));
                assert!(sent.src.1 >= limits::SNAT_PORT_MIN, "{}", sent.src.1);
                assert_eq!(sent.transport, Transport::Tcp(SYN));

                let reply = tcp(REMOTE, sent.src, SYN_ACK);
                let answered = forward(&mut node, Hook::FromNetwork, &reply);
                assert_eq!(answered, Packet { src: VIP, dst: CLIENT, ttl: 63, ..reply.clone() });

                let again =
                    forward(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, ACK).with_payload(b"GET"));
                assert_eq!(
                    (again.src, again.dst),
                    (sent.src, REMOTE),
                    "the same port for the whole connection"
                );
                assert_eq!(node.connection::<F>(&request.flow()).unwrap().phase, Phase::ESTABLISHED);
                assert_eq!(node.service(service.service_port()).connections, 1);
                assert_eq!(node.service(service.service_port()).packets, 3);
                assert_eq!(node.connections::<F>(), 2);
            }

            /// Spec 4.20, 4.30: a pod's address is kept, whatever node the backend is on.
            pub(super) fn a_pod_reaches_a_remote_pod() {
                let (mut node, _) = serve(&[remote()]);
                let client = (F::POD, CLIENT_PORT);
                let request = tcp(client, VIP, SYN);
                let translated = translate(&mut node, Hook::FromPod, &request);
                assert_eq!(translated, Packet { dst: REMOTE, ..request });
                assert_eq!(
                    node.run(Hook::ToNetwork, &translated.bytes()),
                    untouched(&translated.bytes()),
                    "translated once only"
                );
                let reply = tcp(REMOTE, client, SYN_ACK);
                assert_eq!(node.run(Hook::FromNetwork, &reply.bytes()), untouched(&reply.bytes()));
                let answered = translate(&mut node, Hook::ToPod, &reply);
                assert_eq!(answered, Packet { src: VIP, ..reply });
            }

            /// Spec 4.25: a pod that is given itself sees the node.
            pub(super) fn a_pod_reaches_itself() {
                let (mut node, _) = serve(&[local()]);
                let client = (F::POD, CLIENT_PORT);
                let sent = forward(&mut node, Hook::FromPod, &tcp(client, VIP, SYN));
                assert_eq!((sent.src.0, sent.dst), (F::NODE, POD));
                let answered = forward(&mut node, Hook::FromPod, &tcp(POD, sent.src, SYN_ACK));
                assert_eq!((answered.src, answered.dst), (VIP, client));
            }

            /// An endpoint that no node claims (spec 2.2) is found by the way that leads to it.
            pub(super) fn a_pod_of_this_node_is_known_by_its_device() {
                let (mut node, _) = serve(&[Server { addr: POD, local: false }]);
                let request = tcp(CLIENT, VIP, SYN);
                let translated = translate(&mut node, Hook::FromNetwork, &request);
                assert_eq!(translated, Packet { dst: POD, ..request });
            }

            /// A backend that is this node itself (host network), not marked local.
            pub(super) fn the_node_itself_is_reached_through_the_stack() {
                let server = Server { addr: (F::NODE, TARGET), local: false };
                let (mut node, _) = serve(&[server]);
                let request = tcp(CLIENT, VIP, SYN);
                let translated = translate(&mut node, Hook::FromNetwork, &request);
                assert_eq!(translated, Packet { dst: server.addr, ..request });
            }

            pub(super) fn udp_is_translated_both_ways() {
                let mut node = Node::start();
                node.serve::<F>(&service(Protocol::UDP, &[remote()]));
                let sent = forward(&mut node, Hook::FromNetwork, &Packet::udp(CLIENT, VIP, b"question"));
                assert_eq!((sent.dst, sent.payload.as_slice()), (REMOTE, b"question".as_slice()));
                let reply = Packet::udp(REMOTE, sent.src, b"answer!");
                let answered = forward(&mut node, Hook::FromNetwork, &reply);
                assert_eq!(answered, Packet { src: VIP, dst: CLIENT, ttl: 63, ..reply });
            }

            /// A process of the node dials a frontend that its socket hook had to leave alone (source ranges).
            pub(super) fn the_node_itself_is_served_as_its_packets_leave() {
                let mut node = Node::start();
                let service = Service {
                    flags: FrontendFlags::SOURCE_RANGES,
                    ..service(Protocol::TCP, &[local(), remote()])
                };
                node.serve::<F>(&service);
                node.source_range::<F>(service.service_port(), F::NODE, F::BITS);
                let client = (F::NODE, CLIENT_PORT);
                let request = tcp(client, VIP, SYN);
                let sent = forward(&mut node, Hook::ToNetwork, &request);
                assert_eq!((sent.src, sent.ttl), (client, 63));
                let entry = node.connection::<F>(&request.flow()).unwrap();
                assert_eq!(entry.flags, ConnectionFlags::HOST);
                let reply = tcp(sent.dst, client, SYN_ACK);
                let ran = node.run(Hook::FromNetwork, &reply.bytes());
                assert_eq!(ran.code, UNSPEC, "given to the stack");
                assert_eq!(Packet::decode(&ran.packet), Packet { src: VIP, ..reply.clone() });
                let ran = node.run(Hook::FromPod, &reply.bytes());
                assert_eq!(ran.code, REDIRECT, "let in by the device towards the VIP");
                assert_eq!(Packet::decode(&ran.packet), Packet { src: VIP, ..reply });

                let foreign = tcp(CLIENT, VIP, SYN).bytes();
                assert_eq!(
                    node.run(Hook::ToNetwork, &foreign),
                    untouched(&foreign),
                    "what is merely forwarded is not the node's own"
                );
            }

            /// Spec 5, 5.2: refused so that the client sees ECONNREFUSED at once.
            pub(super) fn tcp_without_a_backend_is_reset() {
                let (mut node, service) = serve(&[]);
                let request = tcp(CLIENT, VIP, SYN);
                for hook in [Hook::FromNetwork, Hook::FromPod] {
                    let ran = node.run(hook, &request.bytes());
                    assert_eq!(ran.code, REDIRECT);
                    assert_eq!(&ran.packet[..6], &packet::FAR_MAC, "back where it came from");
                    assert_eq!(&ran.packet[6..12], &packet::NEAR_MAC);
                    let reset = Tcp { rst: true, ack: true, ack_number: SYN.seq + 1, ..Tcp::default() };
                    assert_eq!(Packet::decode(&ran.packet), tcp(VIP, CLIENT, reset));
                }
                let data = tcp(CLIENT, VIP, ACK).with_payload(&[7; 1000]);
                let ran = node.run(Hook::FromNetwork, &data.bytes());
                let reset = Tcp { rst: true, seq: ACK.ack_number, ..Tcp::default() };
                assert_eq!(Packet::decode(&ran.packet), tcp(VIP, CLIENT, reset), "RFC 9293, 3.10.7.1");
                let bytes = [request.bytes(), data.bytes()];
                let refused: [&[u8]; 3] = [&bytes[0], &bytes[0], &bytes[1]];
                assert_eq!(node.verdicts(), verdicts(&[(Verdict::Refused, &refused)]));
                assert_eq!(node.service(service.service_port()), traffic(0, &[], 3));
                assert_eq!(node.connections::<F>(), 0, "nothing is remembered");
            }

            /// Two service CIDRs; both VIPs lie in the second.
            fn with_cidrs(node: &mut Node) {
                let [first, first_mask, second, second_mask] = match F::BITS {
                    32 => ["10.200.0.0", "255.255.0.0", "10.96.0.0", "255.240.0.0"],
                    _ => ["fd00:97::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0", "fd00:96::", "ffff:ffff::"],
                }
                .map(|ip| ip.parse().unwrap());
                node.service_cidr::<F>(0, first, first_mask);
                node.service_cidr::<F>(1, second, second_mask);
            }

            /// DESIGN 10, spec 0.4, 0.5: an address nobody has, and a port the Service does not have.
            pub(super) fn what_a_service_cidr_holds_and_no_frontend_has_is_refused() {
                let (mut node, _) = serve(&[local()]);
                with_cidrs(&mut node);
                let mut refused = Vec::new();
                for dialled in [(F::VIP, 81), (F::OTHER_VIP, PORT)] {
                    let (request, question) = (tcp(CLIENT, dialled, SYN), Packet::udp(CLIENT, dialled, b"?"));
                    for hook in [Hook::FromNetwork, Hook::FromPod] {
                        let ran = node.run(hook, &request.bytes());
                        assert_eq!(ran.code, REDIRECT, "{hook:?}: {dialled:?}");
                        let reset = Tcp { rst: true, ack: true, ack_number: SYN.seq + 1, ..Tcp::default() };
                        assert_eq!(Packet::decode(&ran.packet), tcp(dialled, CLIENT, reset));
                        let ran = node.run(hook, &question.bytes());
                        assert_eq!(ran.code, REDIRECT, "{hook:?}: {dialled:?}");
                        let (quoted_src, quoted_dst) = (CLIENT, dialled);
                        let told = Unreachable { src: dialled.0, dst: F::CLIENT, quoted_src, quoted_dst };
                        assert_eq!(Unreachable::decode(&ran.packet), told);
                        refused.extend([request.bytes(), question.bytes()]);
                    }
                }
                let refused: Vec<&[u8]> = refused.iter().map(Vec::as_slice).collect();
                assert_eq!(node.verdicts(), verdicts(&[(Verdict::Refused, &refused)]));
                assert_eq!(node.service(ServicePortId(0)), TrafficCounter::default());
                assert_eq!(node.service(ServicePortId(1)), TrafficCounter::default());
                assert_eq!(node.connections::<F>(), 0, "nothing is remembered");
            }

            pub(super) fn a_service_cidr_refuses_nothing_else() {
                let (mut node, _) = serve(&[local()]);
                with_cidrs(&mut node);
                let elsewhere = tcp(CLIENT, (F::REMOTE_POD, PORT), SYN).bytes();
                for hook in [Hook::FromNetwork, Hook::ToNetwork, Hook::FromPod, Hook::ToPod] {
                    assert_eq!(node.run(hook, &elsewhere), untouched(&elsewhere), "{hook:?}");
                }
                let unknown = (F::OTHER_VIP, PORT);
                let forwarded = tcp(CLIENT, unknown, SYN).bytes();
                for hook in [Hook::ToNetwork, Hook::ToPod] {
                    assert_eq!(node.run(hook, &forwarded), untouched(&forwarded), "{hook:?}");
                }
                let own = tcp((F::NODE, CLIENT_PORT), unknown, SYN);
                let ran = node.run(Hook::ToNetwork, &own.bytes());
                assert_eq!(ran.code, REDIRECT, "the node's own is refused");
                let reset = Tcp { rst: true, ack: true, ack_number: SYN.seq + 1, ..Tcp::default() };
                assert_eq!(Packet::decode(&ran.packet), tcp(unknown, own.src, reset));
                let answer = tcp(unknown, CLIENT, SYN_ACK).bytes();
                assert_eq!(
                    node.run(Hook::ToNetwork, &answer),
                    untouched(&answer),
                    "from there is not to there"
                );
                let last = tcp(CLIENT, unknown, RST).bytes();
                assert_eq!(node.run(Hook::FromPod, &last), dropped(&last), "a reset is never answered");
                let counted: BTreeMap<_, _> =
                    node.verdicts().into_iter().map(|(verdict, (packets, _))| (verdict, packets)).collect();
                let expected = [(Verdict::NotOurs, 7), (Verdict::Refused, 1), (Verdict::RefusedSilently, 1)];
                assert_eq!(counted, expected.into());
            }

            /// Spec 7.11: what is open drains when its Service has gone, and what is served is translated.
            pub(super) fn a_service_cidr_leaves_connections_alone() {
                let (mut node, service) = serve(&[local()]);
                with_cidrs(&mut node);
                translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                let reply = translate(&mut node, Hook::ToNetwork, &tcp(POD, CLIENT, SYN_ACK));
                assert_eq!(reply.src, VIP);
                translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, ACK));
                node.leave(&service, BackendId(1));
                node.delete_frontend::<F>(&service);
                let data = tcp(CLIENT, VIP, ACK).with_payload(b"more");
                assert_eq!(translate(&mut node, Hook::FromNetwork, &data).dst, POD);
                let another = tcp((F::CLIENT, 50_000), VIP, SYN).bytes();
                assert_eq!(node.run(Hook::FromNetwork, &another).code, REDIRECT);
                assert_eq!(node.verdicts()[&Verdict::Refused].0, 1, "the one that came after");
            }

            pub(super) fn a_reset_is_never_answered() {
                let (mut node, service) = serve(&[]);
                let packet = tcp(CLIENT, VIP, RST).bytes();
                assert_eq!(node.run(Hook::FromNetwork, &packet), dropped(&packet));
                assert_eq!(node.verdicts(), verdicts(&[(Verdict::RefusedSilently, &[&packet])]));
                assert_eq!(node.service(service.service_port()), traffic(0, &[], 1));
            }

            pub(super) fn udp_without_a_backend_is_told_port_unreachable() {
                let mut node = Node::start();
                node.serve::<F>(&service(Protocol::UDP, &[]));
                for payload in [&b""[..], b"x", &[9; 1200]] {
                    let packet = Packet::udp(CLIENT, VIP, payload);
                    let ran = node.run(Hook::FromPod, &packet.bytes());
                    assert_eq!(ran.code, REDIRECT);
                    let told =
                        Unreachable { src: F::VIP, dst: F::CLIENT, quoted_src: CLIENT, quoted_dst: VIP };
                    assert_eq!(Unreachable::decode(&ran.packet), told);
                }
                assert_eq!(node.verdicts()[&Verdict::Refused].0, 3);
            }

            pub(super) fn an_answer_that_cannot_be_built_is_a_drop() {
                let (mut node, _) = serve(&[]);
                let mut packet = tcp(CLIENT, VIP, SYN).bytes();
                packet.truncate(packet.len() - 6);
                assert_eq!(node.run(Hook::FromNetwork, &packet), dropped(&packet));
                assert_eq!(node.verdicts(), verdicts(&[(Verdict::RefusalFailed, &[&packet])]));
            }

            pub(super) fn a_packet_that_cannot_be_rewritten_is_a_drop() {
                let (mut node, _) = serve(&[local()]);
                let mut packet = tcp(CLIENT, VIP, SYN).bytes();
                packet.truncate(packet.len() - 6);
                // IPv4: total length; IPv6: payload length.
                let (field, counted_from) = if F::BITS == 32 { (16, 14) } else { (18, 54) };
                let len = u16::try_from(packet.len() - counted_from).unwrap();
                packet[field..field + 2].copy_from_slice(&len.to_be_bytes());
                assert_eq!(node.run(Hook::FromNetwork, &packet).code, SHOT);
                assert_eq!(node.verdicts(), verdicts(&[(Verdict::RewriteFailed, &[&packet])]));
            }

            /// Spec 5, 5.7: load balancers test silence.
            pub(super) fn policy_local_without_a_local_backend_is_silent() {
                let mut node = Node::start();
                let service = Service {
                    flags: FrontendFlags::EXTERNAL_DROP.with(FrontendFlags::INTERNAL_DROP),
                    ..service(Protocol::TCP, &[])
                };
                node.serve::<F>(&service);
                let packet = tcp(CLIENT, VIP, SYN).bytes();
                assert_eq!(node.run(Hook::FromNetwork, &packet), dropped(&packet));
                assert_eq!(node.run(Hook::FromPod, &packet), dropped(&packet));
                assert_eq!(node.verdicts(), verdicts(&[(Verdict::PolicyLocal, &[&packet, &packet])]));
            }

            /// Spec 1.49 to 1.52.
            pub(super) fn source_ranges_let_in_whom_they_name() {
                let mut node = Node::start();
                let service =
                    Service { flags: FrontendFlags::SOURCE_RANGES, ..service(Protocol::TCP, &[local()]) };
                node.serve::<F>(&service);
                let outside = tcp((F::OTHER_CLIENT, 1), VIP, SYN).bytes();
                assert_eq!(
                    node.run(Hook::FromNetwork, &outside),
                    dropped(&outside),
                    "no range at all: closed"
                );
                node.source_range::<F>(service.service_port(), F::CLIENT, F::BITS);
                node.source_range::<F>(ServicePortId(2), F::OTHER_CLIENT, F::BITS);
                assert_eq!(
                    node.run(Hook::FromNetwork, &outside),
                    dropped(&outside),
                    "another service's range"
                );
                assert_eq!(node.run(Hook::FromPod, &outside), dropped(&outside), "pods too");
                translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                assert_eq!(node.verdicts()[&Verdict::SourceRange].0, 3);
                assert_eq!(node.service(service.service_port()).refused, 3);
            }

            pub(super) fn frontends_for_the_node_only_are_not_seen_by_packets() {
                let mut node = Node::start();
                let service =
                    Service { flags: FrontendFlags::HOST_ONLY, ..service(Protocol::TCP, &[local()]) };
                node.serve::<F>(&service);
                let packet = tcp(CLIENT, VIP, SYN).bytes();
                assert_eq!(node.run(Hook::FromNetwork, &packet), untouched(&packet));
            }

            /// Spec 3.3, 3.5, 3.6, 3.8.
            pub(super) fn affinity_binds_a_client_while_its_backend_may_be_chosen() {
                let backends: Vec<Server> =
                    (0..8).map(|index| Server { addr: (F::POD, TARGET + index), local: true }).collect();
                let mut node = Node::start();
                let service = Service {
                    flags: FrontendFlags::AFFINITY,
                    affinity_timeout_s: 100,
                    ..service(Protocol::TCP, &backends)
                };
                node.serve::<F>(&service);
                let dial = |node: &mut Node, port| {
                    translate(node, Hook::FromNetwork, &tcp((F::CLIENT, port), VIP, SYN)).dst
                };
                let before = monotonic_ns();
                let first = dial(&mut node, 1);
                let (bound, after) = (node.affinity::<F>()[0].1.last_used_ns, monotonic_ns());
                // Behind by a tick at most, and by another for the question when jiffies were none.
                assert!(
                    (before.saturating_sub(2 * TICK_NS)..=after).contains(&bound),
                    "{before} {bound} {after}"
                );
                assert!(
                    (2..20).all(|port| dial(&mut node, port) == first),
                    "one backend for twenty connections"
                );

                let (key, value) = node.affinity::<F>()[0];
                assert_eq!((key.service_port, key.kind), (service.service_port(), ClientKind::ADDRESS));
                node.member(&service, value.backend, MemberSets::default());
                // Chosen anew, which may fall on the same one, which does not bind.
                let second = (1000..1100).map(|port| dial(&mut node, port)).find(|dst| *dst != first);
                let second = second.expect("one that takes no new connections binds nobody");
                assert!((31..50).all(|port| dial(&mut node, port) == second));

                let expired = AffinityValue { last_used_ns: 0, ..node.affinity::<F>()[0].1 };
                let mut seen = std::collections::BTreeSet::new();
                for port in 50..150 {
                    node.set_affinity::<F>(&key, expired);
                    seen.insert(dial(&mut node, port));
                }
                assert!(seen.len() > 3, "an expired entry binds nobody: {seen:?}");
            }

            pub(super) fn backends_are_chosen_evenly() {
                let backends: Vec<Server> =
                    (0..4).map(|index| Server { addr: (F::POD, TARGET + index), local: true }).collect();
                let (mut node, _) = serve(&backends);
                let mut hits = BTreeMap::<u16, u32>::new();
                for port in 1..=1000 {
                    let translated =
                        translate(&mut node, Hook::FromNetwork, &tcp((F::CLIENT, port), VIP, SYN));
                    *hits.entry(translated.dst.1).or_default() += 1;
                }
                assert_eq!(hits.len(), 4);
                // 250 each; 6 standard deviations of a fair choice are 82.
                assert!(hits.values().all(|&hit| hit.abs_diff(250) < 82), "{hits:?}");
            }

            /// Spec 7.4, 7.6: at once, not when the flow goes quiet.
            pub(super) fn udp_leaves_a_backend_that_no_longer_serves() {
                let mut node = Node::start();
                let second = Server { addr: (F::POD, TARGET + 1), local: true };
                let service = service(Protocol::UDP, &[local()]);
                node.serve::<F>(&service);
                let question = Packet::udp(CLIENT, VIP, b"?");
                assert_eq!(translate(&mut node, Hook::FromNetwork, &question).dst, POD);
                node.leave(&service, BackendId(1));
                let moved = Service { base: 10, backends: vec![second], ..service };
                node.serve::<F>(&moved);
                assert_eq!(translate(&mut node, Hook::FromNetwork, &question).dst, second.addr);
                assert_eq!(node.connection::<F>(&question.flow()).unwrap().backend, BackendId(10));
            }

            /// Spec 7.15: TCP is left to its end; 5.4.
            pub(super) fn tcp_drains_from_a_backend_that_no_longer_serves() {
                let (mut node, service) = serve(&[local()]);
                translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                let half_open = tcp((F::CLIENT, 50_000), VIP, SYN);
                translate(&mut node, Hook::FromNetwork, &half_open);
                node.leave(&service, BackendId(1));
                node.serve::<F>(&Service { backends: vec![], ..service.clone() });
                let data = translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, ACK));
                assert_eq!(data.dst, POD, "established: drains");
                let ran = node.run(Hook::FromNetwork, &half_open.bytes());
                assert_eq!(ran.code, REDIRECT, "a SYN sent again is a try anew: refused");
                assert_eq!(node.verdicts()[&Verdict::Refused].0, 1);
            }

            pub(super) fn a_moved_generation_is_checked_once() {
                let (mut node, service) = serve(&[local()]);
                let request = tcp(CLIENT, VIP, SYN);
                translate(&mut node, Hook::FromNetwork, &request);
                assert_eq!(node.connection::<F>(&request.flow()).unwrap().generation, 0);
                node.set_generation(service.service_port(), 7);
                translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, ACK));
                assert_eq!(node.connection::<F>(&request.flow()).unwrap().generation, 7);
            }

            pub(super) fn a_finished_connection_is_opened_anew() {
                let (mut node, service) = serve(&[local()]);
                let request = tcp(CLIENT, VIP, SYN);
                translate(&mut node, Hook::FromNetwork, &request);
                translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, FIN));
                assert_eq!(node.connection::<F>(&request.flow()).unwrap().phase, Phase::FINISHED);
                translate(&mut node, Hook::FromNetwork, &request);
                assert_eq!(node.connection::<F>(&request.flow()).unwrap().phase, Phase::OPENING);
                assert_eq!(node.service(service.service_port()).connections, 2);
            }

            pub(super) fn a_quiet_udp_flow_is_chosen_anew() {
                let mut node = Node::start();
                let service = service(Protocol::UDP, &[local()]);
                node.serve::<F>(&service);
                let question = Packet::udp(CLIENT, VIP, b"?");
                translate(&mut node, Hook::FromNetwork, &question);
                let mut entry = node.connection::<F>(&question.flow()).unwrap();
                entry.last_seen = Coarse(entry.last_seen.0.saturating_sub(60));
                node.set_connection::<F>(&question.flow(), entry);
                translate(&mut node, Hook::FromNetwork, &question);
                assert!(entry.last_seen.0 > 0, "the machine has been up for longer than a minute");
                assert_eq!(node.service(service.service_port()).connections, 2);
            }

            /// Two VIPs, one backend, one client port (peers 1.7): the later connection takes another source port.
            pub(super) fn two_vips_of_one_backend_do_not_clash() {
                let (mut node, service) = serve(&[local()]);
                let other_vip = (F::OTHER_VIP, PORT);
                let other = Service { id: 2, base: 20, vip: other_vip, ..service };
                node.serve::<F>(&other);
                let first = translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                let second = translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, other_vip, SYN));
                assert_eq!((first.src, first.dst), (CLIENT, POD));
                assert_eq!((second.src.0, second.dst), (F::CLIENT, POD), "the client keeps its address");
                assert_ne!(second.src.1, CLIENT_PORT);
                let reply = |to| tcp(POD, to, SYN_ACK);
                let answered = translate(&mut node, Hook::ToNetwork, &reply(first.src));
                assert_eq!((answered.src, answered.dst), (VIP, CLIENT));
                let answered = translate(&mut node, Hook::ToNetwork, &reply(second.src));
                assert_eq!((answered.src, answered.dst), (other_vip, CLIENT));
            }

            /// A client dials a frontend, and later from the same port its backend: both are answered by whom they dialled.
            pub(super) fn a_backend_dialled_past_its_frontend_is_told_apart() {
                let mut node = Node::start();
                // Loading it takes seconds; a packet's way from XDP to tc does not.
                node.tc_program("tc_uplink_ingress");
                let service = service(Protocol::UDP, &[local()]);
                node.serve::<F>(&service);
                let served = Packet::udp(CLIENT, VIP, b"?");
                // The verifier takes longer than a connection counts as just seen.
                node.tc_program("tc_uplink_ingress");
                let translated = translate(&mut node, Hook::FromNetwork, &served);
                let seen_again = translated.bytes();
                assert_eq!(node.run(Hook::FromNetwork, &seen_again), untouched(&seen_again));
                let mut entry = node.connection::<F>(&served.flow()).unwrap();
                entry.last_seen = Coarse(entry.last_seen.0.saturating_sub(2));
                node.set_connection::<F>(&served.flow(), entry);
                let direct = translate(&mut node, Hook::FromNetwork, &Packet::udp(CLIENT, POD, b"?"));
                assert_eq!((direct.src.0, direct.dst), (F::CLIENT, POD));
                assert_ne!(direct.src.1, CLIENT_PORT);
                for (to, from) in [(direct.src, POD), (CLIENT, VIP)] {
                    let answer = translate(&mut node, Hook::ToNetwork, &Packet::udp(POD, to, b"!"));
                    assert_eq!((answer.src, answer.dst), (from, CLIENT));
                }
                assert_eq!(node.service(service.service_port()).connections, 1);
            }

            pub(super) fn source_ports_run_out() {
                let mut node = Node::start_with(Some(1));
                node.serve::<F>(&service(Protocol::TCP, &[remote()]));
                let first = forward(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                assert_eq!(first.src, (F::NODE, limits::SNAT_PORT_MIN));
                let packet = tcp((F::CLIENT, 50_000), VIP, SYN).bytes();
                assert_eq!(node.run(Hook::FromNetwork, &packet), dropped(&packet));
                assert_eq!(node.verdicts()[&Verdict::SnatPorts].0, 1);
                assert_eq!(node.connections::<F>(), 2, "the first connection only");
            }

            /// Sockets of any kind on all SNAT ports but one: that one is given. Then on all: a drop.
            pub(super) fn a_source_port_that_a_socket_has_is_not_given() {
                const PORTS: u16 = 8;
                let range = limits::SNAT_PORT_MIN..limits::SNAT_PORT_MIN + PORTS;
                let free = limits::SNAT_PORT_MIN + 5;
                for protocol in [Protocol::TCP, Protocol::UDP] {
                    let mut node = Node::start_with(Some(u32::from(PORTS)));
                    node.serve::<F>(&service(protocol, &[remote()]));
                    let opening = |port| match protocol {
                        Protocol::TCP => tcp((F::CLIENT, port), VIP, SYN),
                        _ => Packet::udp((F::CLIENT, port), VIP, b"?"),
                    };
                    let any: IpAddr = if F::BITS == 32 { "0.0.0.0" } else { "::" }.parse().unwrap();
                    let taken = range.clone().filter(|port| *port != free);
                    let mut sockets: Vec<Socket> = Vec::new();
                    for (port, address) in taken.zip([F::NODE, any].into_iter().cycle()) {
                        sockets.push(bound(protocol, (address, port), REMOTE));
                    }
                    let first = forward(&mut node, Hook::FromNetwork, &opening(CLIENT_PORT));
                    assert_eq!(first.src, (F::NODE, free), "{protocol:?}");
                    let packet = opening(50_000).bytes();
                    assert_eq!(node.run(Hook::FromNetwork, &packet), dropped(&packet), "{protocol:?}");
                    assert_eq!(node.verdicts()[&Verdict::SnatPorts].0, 1);
                    assert_eq!(node.connections::<F>(), 2, "the first connection only");
                    drop(sockets);
                    // A child that another test is starting has them too, until its exec.
                    let begun = Instant::now();
                    while node.run(Hook::FromNetwork, &packet) == dropped(&packet) {
                        assert!(
                            begun.elapsed() < PATIENCE,
                            "{protocol:?}: sockets that are closed are waited for"
                        );
                        thread::sleep(Duration::from_millis(10));
                    }
                    let later = forward(&mut node, Hook::FromNetwork, &opening(50_000));
                    assert_ne!(later.src.1, free, "the sockets are gone, the connection is not");
                }
            }

            /// Netfilter has given all SNAT ports but one to flows of its own towards the backend: that one is given. Then
            /// none is left: a drop. Towards another port of the backend they say nothing.
            pub(super) fn a_source_port_that_netfilter_gave_is_not_given() {
                const PORTS: u16 = 8;
                let range = limits::SNAT_PORT_MIN..limits::SNAT_PORT_MIN + PORTS;
                let free = limits::SNAT_PORT_MIN + 5;
                let mut node = Node::start_with(Some(u32::from(PORTS)));
                node.serve::<F>(&service(Protocol::TCP, &[remote()]));
                let answer = |port| packet::flow::<F>(REMOTE, (F::NODE, port), Protocol::TCP);
                let elsewhere =
                    packet::flow::<F>((F::REMOTE_POD, TARGET + 1), (F::NODE, free), Protocol::TCP);
                node.host_flow::<F>(&elsewhere, true);
                for port in range.filter(|port| *port != free) {
                    node.host_flow::<F>(&answer(port), true);
                }
                let first = forward(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                assert_eq!(first.src, (F::NODE, free));
                let opening = tcp((F::CLIENT, 50_000), VIP, SYN);
                assert_eq!(node.run(Hook::FromNetwork, &opening.bytes()), dropped(&opening.bytes()));
                assert_eq!(node.verdicts()[&Verdict::SnatPorts].0, 1);
                assert_eq!(node.connections::<F>(), 2, "the first connection only");
                let gone = limits::SNAT_PORT_MIN + 2;
                node.host_flow::<F>(&answer(gone), false);
                assert_eq!(forward(&mut node, Hook::FromNetwork, &opening).src, (F::NODE, gone));
                // What netfilter waits for is not ours.
                let theirs = tcp(REMOTE, (F::NODE, limits::SNAT_PORT_MIN), SYN_ACK).bytes();
                assert_eq!(node.run(Hook::FromNetwork, &theirs), untouched(&theirs));
            }

            /// A client that keeps its address may have any port: sockets of the node have nothing to do with it.
            pub(super) fn a_clients_own_port_is_not_one_of_the_nodes() {
                let mut node = Node::start_with(Some(1));
                let port = limits::SNAT_PORT_MIN;
                let any: IpAddr = if F::BITS == 32 { "0.0.0.0" } else { "::" }.parse().unwrap();
                let _listener = bound(Protocol::TCP, (any, port), REMOTE);
                let first = service(Protocol::TCP, &[local()]);
                let other_vip = (F::OTHER_VIP, PORT);
                node.serve::<F>(&Service { id: 2, base: 20, vip: other_vip, ..first.clone() });
                node.serve::<F>(&first);
                translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                let second = translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, other_vip, SYN));
                assert_eq!(second.src, (F::CLIENT, port), "another port of the client's");
            }

            pub(super) fn a_dead_connection_gives_its_port_back() {
                let mut node = Node::start_with(Some(1));
                node.serve::<F>(&service(Protocol::TCP, &[remote()]));
                let first = forward(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                let reply = packet::flow::<F>(REMOTE, first.src, Protocol::TCP);
                let mut entry = node.connection::<F>(&reply).unwrap();
                entry.last_seen = Coarse(entry.last_seen.0.saturating_sub(60));
                node.set_connection::<F>(&reply, entry);
                let other = (F::CLIENT, 50_000);
                let second = node.run(Hook::FromNetwork, &tcp(other, VIP, SYN).bytes());
                assert!(entry.last_seen.0 > 0, "the machine has been up for longer than a minute");
                assert_eq!((second.code, Packet::decode(&second.packet).src), (REDIRECT, first.src));
                let entry = node.connection::<F>(&reply).unwrap();
                assert_eq!(entry.to, packet::flow::<F>(VIP, other, Protocol::TCP).tuple);
            }

            pub(super) fn a_node_without_an_address_cannot_translate_sources() {
                let (mut node, _) = serve(&[remote()]);
                let unspecified = |ip: IpAddr| if ip.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
                let uplink = node.uplink();
                let role = lb_common::device::DeviceRole::UPLINK;
                node.device(uplink, role, unspecified(V4::NODE), unspecified(V6::NODE));
                let packet = tcp(CLIENT, VIP, SYN).bytes();
                assert_eq!(node.run(Hook::FromNetwork, &packet), dropped(&packet));
                assert_eq!(node.verdicts(), verdicts(&[(Verdict::SnatAddress, &[&packet])]));
            }

            pub(super) fn a_backend_without_a_route_is_a_drop() {
                let (mut node, _) = serve(&[Server { addr: (F::NOWHERE, TARGET), local: false }]);
                let packet = tcp(CLIENT, VIP, SYN).bytes();
                assert_eq!(node.run(Hook::FromNetwork, &packet), dropped(&packet));
                assert_eq!(node.verdicts(), verdicts(&[(Verdict::NoRoute, &[&packet])]));
            }

            pub(super) fn priority_tags_and_longer_headers_are_understood() {
                let (mut node, _) = serve(&[local()]);
                let request = tcp(CLIENT, VIP, SYN);
                let expected = Packet { dst: POD, ..request.clone() };
                let long = if F::BITS == 32 {
                    packet::with_ipv4_options(&request.bytes())
                } else {
                    packet::with_ipv6_extension(&request.bytes())
                };
                for bytes in [packet::prioritized(&request.bytes()), long.clone(), packet::prioritized(&long)]
                {
                    let ran = node.run(Hook::FromNetwork, &bytes);
                    assert_eq!((ran.code, ran.packet.len()), (UNSPEC, bytes.len()));
                    assert_eq!(Packet::decode(&ran.packet), expected);
                }
            }

            /// tc asks the routing table, and the kernel for the neighbour, once a second, and addresses the frames in between itself.
            pub(super) fn frames_that_follow_are_addressed_by_the_program() {
                let (mut node, _) = serve(&[remote()]);
                let (syn, data) = (tcp(CLIENT, VIP, SYN), tcp(CLIENT, VIP, ACK));
                node.run_tc(Hook::FromNetwork, &syn.bytes());
                let to = node.connection::<F>(&data.flow()).unwrap().to;
                let addressed = |ran: &Ran| ran.packet[..12] == [packet::FAR_MAC, packet::NEAR_MAC].concat();
                // Both within a second, on one CPU.
                eventually("is a frame addressed", Duration::from_secs(20), || {
                    let before = node.next_hop::<F>(node.uplink(), &to).map(|hop| hop.asked);
                    let [first, second] = [(); 2].map(|()| node.run_tc(Hook::FromNetwork, &data.bytes()));
                    assert_eq!((first.code, second.code), (REDIRECT, REDIRECT));
                    assert_eq!(Packet::decode(&first.packet), Packet::decode(&second.packet));
                    let hop = node.next_hop::<F>(node.uplink(), &to).unwrap();
                    assert_eq!((hop.manner, hop.ifindex), (Manner::ADDRESSED, node.uplink()));
                    let is_new = before != Some(hop.asked);
                    Ok(is_new && !addressed(&first) && addressed(&second))
                })
                .unwrap();
            }

            /// A frame in a VLAN is the VLAN device's, one to another address another device's, or another node's.
            pub(super) fn frames_for_others_are_left_alone() {
                let (mut node, _) = serve(&[local(), remote()]);
                let request = tcp(CLIENT, VIP, SYN).bytes();
                let mut to_another = request.clone();
                to_another[..6].copy_from_slice(&packet::FAR_MAC);
                for bytes in [packet::in_vlan(&request), to_another] {
                    assert_eq!(node.run(Hook::FromNetwork, &bytes), untouched(&bytes));
                }
                assert_eq!((node.connections::<F>(), node.all_verdicts()), (0, BTreeMap::new()));
                assert_ne!(node.run(Hook::FromNetwork, &request), untouched(&request));
                // A bridge's port, and a pod's device, whose frames are addressed to the bridge.
                let mut to_another = tcp((F::CLIENT, 40_001), VIP, SYN).bytes();
                to_another[..6].copy_from_slice(&packet::FAR_MAC);
                assert_ne!(node.run(Hook::FromPod, &to_another), untouched(&to_another));
                node.let_uplink_take_any_frame();
                assert_ne!(node.run(Hook::FromNetwork, &to_another), untouched(&to_another));
            }

            /// Later fragments have no ports: they follow the first.
            pub(super) fn fragments_follow_the_first() {
                let mut node = Node::start();
                node.serve::<F>(&service(Protocol::UDP, &[local()]));
                let question = Packet::udp(CLIENT, VIP, &[5; 1000]);
                let [first, second] = packet::fragments(&question.bytes(), 512);
                assert_eq!(node.run(Hook::FromNetwork, &second), untouched(&second), "before the first");
                let expected = Packet { dst: POD, ..question }.bytes();
                let [first_expected, second_expected] = packet::fragments(&expected, 512);
                let ran = node.run(Hook::FromNetwork, &first);
                assert_eq!(ran, Ran { code: UNSPEC, packet: first_expected });
                let ran = node.run(Hook::FromNetwork, &second);
                assert_eq!(ran, Ran { code: UNSPEC, packet: second_expected });
            }

            pub(super) fn events_tell_what_was_asked_for() {
                let (mut node, service) = serve(&[]);
                let packet = tcp(CLIENT, VIP, SYN).bytes();
                node.run(Hook::FromNetwork, &packet);
                assert!(node.events().is_empty(), "off by default");
                node.set_settings(Settings { events_sample: 1, ..Settings::default() });
                node.run(Hook::FromNetwork, &packet);
                let events = node.events();
                let [event] = events.as_slice() else { panic!("one event: {events:?}") };
                assert_eq!(Verdict::from_code(event.verdict), Some(Verdict::Refused));
                assert_eq!((event.service_port, event.backend), (service.service_port(), BackendId::NONE));
                assert_eq!((event.src_port.get(), event.dst_port.get()), (CLIENT_PORT, PORT));
                assert_eq!((event.protocol, event.ifindex), (Protocol::TCP, node.uplink()));
                let bytes = F::BITS as usize / 8;
                let vip = <F as Family>::Addr::from_ip(F::VIP).unwrap().0;
                assert_eq!((&event.dst[..bytes], &event.dst[bytes..]), (&vip[..], &[0; 16][bytes..]));
                node.set_settings(Settings {
                    events_sample: 1,
                    events_service_port: 2,
                    ..Settings::default()
                });
                node.run(Hook::FromNetwork, &packet);
                assert!(node.events().is_empty(), "another service port's only");
            }
        }
    };
}

cases!(cases4, V4);
cases!(cases6, V6);

both_families! {
    what_is_not_ours_leaves_as_it_came
    what_is_no_transport_of_ours_is_not_even_counted
    an_outside_client_reaches_a_local_pod
    an_outside_client_reaches_a_remote_pod
    a_pod_reaches_a_remote_pod
    a_pod_of_this_node_is_known_by_its_device
    the_node_itself_is_reached_through_the_stack
    udp_is_translated_both_ways
    the_node_itself_is_served_as_its_packets_leave
    tcp_without_a_backend_is_reset
    what_a_service_cidr_holds_and_no_frontend_has_is_refused
    a_service_cidr_refuses_nothing_else
    a_service_cidr_leaves_connections_alone
    a_reset_is_never_answered
    an_answer_that_cannot_be_built_is_a_drop
    a_packet_that_cannot_be_rewritten_is_a_drop
    policy_local_without_a_local_backend_is_silent
    source_ranges_let_in_whom_they_name
    frontends_for_the_node_only_are_not_seen_by_packets
    affinity_binds_a_client_while_its_backend_may_be_chosen
    backends_are_chosen_evenly
    udp_leaves_a_backend_that_no_longer_serves
    tcp_drains_from_a_backend_that_no_longer_serves
    a_moved_generation_is_checked_once
    a_finished_connection_is_opened_anew
    a_quiet_udp_flow_is_chosen_anew
    two_vips_of_one_backend_do_not_clash
    a_backend_dialled_past_its_frontend_is_told_apart
    source_ports_run_out
    a_source_port_that_a_socket_has_is_not_given
    a_source_port_that_netfilter_gave_is_not_given
    a_clients_own_port_is_not_one_of_the_nodes
    a_dead_connection_gives_its_port_back
    a_node_without_an_address_cannot_translate_sources
    a_backend_without_a_route_is_a_drop
    priority_tags_and_longer_headers_are_understood
    frames_that_follow_are_addressed_by_the_program
    frames_for_others_are_left_alone
    fragments_follow_the_first
    events_tell_what_was_asked_for
    ;
    a_pod_reaches_itself
    udp_without_a_backend_is_told_port_unreachable
}

/// IPv4 only: UDP may go without a checksum (RFC 768), and then still does.
#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let mut node = Node::start();
    let service =
        Service::new((V4::VIP, PORT), Protocol::UDP, &[Server { addr: (V4::POD, TARGET), local: true }]);
    node.serve::<V4>(&service);
    let mut question = Packet::udp((V4::CLIENT, CLIENT_PORT), (V4::VIP, PORT), b"no checksum").bytes();
    question[40..42].fill(0);
    let ran = node.run(Hook::FromNetwork, &question);
    assert_eq!(&ran.packet[40..42], &[0, 0]);
    assert_eq!(Packet::decode(&ran.packet).dst, (V4::POD, TARGET));
}

#[test]
fn every_program_passes_the_verifier() {
    Node::start().load_every_program();
}
