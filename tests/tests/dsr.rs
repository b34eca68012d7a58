//! Direct server return through the real programs (`BPF_PROG_TEST_RUN`): the node that is dialled wraps the client's
//! packet, the backend's node unwraps it and answers by itself. Whole packets, connections and counters, on IPv4 and
//! IPv6. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_agent::desired::maglev::TableSize;
use lb_common::{
    conntrack::ConnectionFlags,
    family::{Family, Protocol, V4, V6},
    frontend::{FrontendFlags, FrontendKind},
    verdict::Verdict,
};
use lb_tests::{
    both_families,
    packet::{self, ACK, Icmp, Packet, SYN, SYN_ACK, Tcp},
    prog::{
        Hook, LoadOptions, Node, Places, REDIRECT, Ran, SHOT, Server, Service, UNSPEC, XDP_PASS,
        XDP_REDIRECT, XDP_TX,
    },
};

const PORT: u16 = 80;
const TARGET: u16 = 8080;

/// Offsets behind the link-layer addresses: a program that sends a frame on gives it others.
const TYPE: usize = 12;

fn tcp(src: (IpAddr, u16), dst: (IpAddr, u16), tcp: Tcp) -> Packet {
    Packet::tcp(src, dst, tcp)
}

fn untouched(packet: &[u8]) -> Ran {
    Ran { code: UNSPEC, packet: packet.to_vec() }
}

fn counts(node: &Node) -> BTreeMap<Verdict, u64> {
    node.verdicts().into_iter().map(|(verdict, (packets, _))| (verdict, packets)).collect()
}

/// What the families differ in.
trait Tunnels: Places {
    const HEADER_LEN: usize;
    const TOO_BIG: (u8, u8);
    const NARROW_NODE: IpAddr;
}

impl Tunnels for V4 {
    const HEADER_LEN: usize = 20;
    const TOO_BIG: (u8, u8) = (3, 4);
    const NARROW_NODE: IpAddr = V4::NARROW_POD;
}

impl Tunnels for V6 {
    const HEADER_LEN: usize = 40;
    const TOO_BIG: (u8, u8) = (2, 0);
    const NARROW_NODE: IpAddr = V6::NARROW_POD;
}

/// The cases, expanded once per family, as in `datapath.rs`.
macro_rules! cases {
    ($module:ident, $F:ident) => {
        mod $module {
            use super::*;

            type F = $F;
            const CLIENT: (IpAddr, u16) = (F::CLIENT, 40_000);
            const VIP: (IpAddr, u16) = (F::VIP, PORT);
            const POD: (IpAddr, u16) = (F::POD, TARGET);
            const REMOTE: (IpAddr, u16) = (F::REMOTE_POD, TARGET);

            fn service(protocol: Protocol, backends: &[Server]) -> Service {
                Service {
                    kind: FrontendKind::LOAD_BALANCER,
                    flags: FrontendFlags::DSR,
                    ..Service::new(VIP, protocol, backends)
                }
            }

            /// A node whose one backend is elsewhere, at `end`.
            fn dialled(protocol: Protocol, end: IpAddr) -> (Node, Service) {
                let mut node = Node::start();
                let service = service(protocol, &[Server { addr: REMOTE, local: false }]);
                node.serve::<F>(&service);
                node.reach_at::<F>(&service, &[end]);
                (node, service)
            }

            /// A node with a backend, and one elsewhere that is not for it to choose.
            fn serving(protocol: Protocol, change: impl FnOnce(&mut Service)) -> (Node, Service) {
                let mut node = Node::start();
                let elsewhere = Server { addr: REMOTE, local: false };
                let mut service =
                    service(protocol, &[elsewhere, elsewhere, elsewhere, Server { addr: POD, local: true }]);
                change(&mut service);
                node.serve::<F>(&service);
                node.reach_at::<F>(&service, &[F::OTHER_NODE]);
                node.peer::<F>(F::OTHER_NODE, F::BITS);
                (node, service)
            }

            fn wrapped(packet: &[u8]) -> Vec<u8> {
                packet::tunnelled(packet, F::NODE, F::OTHER_NODE)
            }

            /// What the other node sends here.
            fn arriving(packet: &[u8]) -> Vec<u8> {
                packet::tunnelled(packet, F::OTHER_NODE, F::NODE)
            }

            /// Runs a packet that must be sent to the other node as it is.
            fn wrap(node: &mut Node, packet: &[u8]) {
                let ran = node.run(Hook::FromNetwork, packet);
                assert_eq!(ran.code, REDIRECT, "sent on: {:?}", node.verdicts());
                assert_eq!(ran.packet[TYPE..], wrapped(packet)[TYPE..]);
            }

            /// Runs a packet that must be translated and go on by the stack.
            fn translate(node: &mut Node, hook: Hook, packet: &[u8]) -> Packet {
                let ran = node.run(hook, packet);
                assert_eq!(ran.code, UNSPEC, "left to the stack: {:?}", node.verdicts());
                Packet::decode(&ran.packet)
            }

            pub(super) fn what_a_client_sends_goes_to_the_backends_node_as_it_is() {
                let (mut node, service) = dialled(Protocol::TCP, F::OTHER_NODE);
                let opening = tcp(CLIENT, VIP, SYN);
                for packet in
                    [opening.clone(), tcp(CLIENT, VIP, ACK), tcp(CLIENT, VIP, ACK).with_payload(b"data")]
                {
                    wrap(&mut node, &packet.bytes());
                }
                assert_eq!(counts(&node), [(Verdict::Tunnelled, 3)].into());
                let entry = node.connection::<F>(&opening.flow::<F>()).expect("recorded");
                assert_eq!(entry.flags, ConnectionFlags::TUNNEL);
                assert_eq!(node.connections::<F>(), 1, "the answers do not pass here");
                let traffic = node.service(service.service_port());
                assert_eq!((traffic.connections, traffic.packets), (1, 3));
            }

            /// RFC 6040: what routers say of congestion reaches the client's and the backend's stacks.
            pub(super) fn the_outer_header_has_the_ecn_of_the_packet() {
                let (mut node, _) = dialled(Protocol::UDP, F::OTHER_NODE);
                for ecn in 0..4 {
                    wrap(&mut node, &packet::with_ecn(&Packet::udp(CLIENT, VIP, b"x").bytes(), ecn));
                }
            }

            pub(super) fn a_flow_stays_with_its_node() {
                let (mut node, service) = dialled(Protocol::TCP, F::OTHER_NODE);
                wrap(&mut node, &tcp(CLIENT, VIP, SYN).bytes());
                node.reach_at::<F>(&service, &[F::OTHER_CLIENT]);
                wrap(&mut node, &tcp(CLIENT, VIP, ACK).bytes());
                let other = tcp((F::CLIENT, 40_001), VIP, SYN).bytes();
                let ran = node.run(Hook::FromNetwork, &other);
                assert_eq!(ran.packet[TYPE..], packet::tunnelled(&other, F::NODE, F::OTHER_CLIENT)[TYPE..]);
            }

            /// As long as nobody says where the backend's node is, and for clients in the cluster.
            pub(super) fn without_a_known_node_the_source_is_replaced() {
                let mut node = Node::start();
                node.serve::<F>(&service(Protocol::TCP, &[Server { addr: REMOTE, local: false }]));
                let ran = node.run(Hook::FromNetwork, &tcp(CLIENT, VIP, SYN).bytes());
                let sent = Packet::decode(&ran.packet);
                assert_eq!((ran.code, sent.src.0, sent.dst), (REDIRECT, F::NODE, REMOTE));
                assert_eq!(counts(&node), [(Verdict::Redirected, 1)].into());
            }

            pub(super) fn fragments_follow_their_first() {
                let (mut node, _) = dialled(Protocol::UDP, F::OTHER_NODE);
                for fragment in packet::fragments(&Packet::udp(CLIENT, VIP, &[7; 64]).bytes(), 32) {
                    wrap(&mut node, &fragment);
                }
                assert_eq!(counts(&node), [(Verdict::Tunnelled, 2)].into());
            }

            /// RFC 1191, RFC 8201: what fits is less by our header.
            pub(super) fn what_does_not_fit_with_its_header_is_answered() {
                let (mut node, _) = dialled(Protocol::TCP, F::NARROW_NODE);
                let ran = node.run(Hook::FromNetwork, &tcp(CLIENT, VIP, SYN).bytes());
                assert_eq!(ran.code, REDIRECT);
                let room = 1280 - 2 * F::HEADER_LEN - 20;
                let ran =
                    node.run(Hook::FromNetwork, &tcp(CLIENT, VIP, ACK).with_payload(&vec![1; room]).bytes());
                assert_eq!((ran.code, ran.packet.len()), (REDIRECT, 14 + 1280));
                let large = tcp(CLIENT, VIP, ACK).with_payload(&vec![1; room + 1]).bytes();
                let ran = node.run(Hook::FromNetwork, &large);
                assert_eq!(ran.code, REDIRECT);
                let told = Icmp::decode(&ran.packet);
                assert_eq!((told.src, told.dst, told.kind), (F::NODE, F::CLIENT, F::TOO_BIG));
                assert_eq!(told.rest, 1280 - F::HEADER_LEN as u32);
                assert_eq!(counts(&node), [(Verdict::Tunnelled, 2), (Verdict::TooBig, 1)].into());
            }

            /// That those which fit are wrapped `end_to_end.rs` shows: `BPF_PROG_TEST_RUN` makes packets of segments of no
            /// kind, which the kernel lets nobody wrap.
            pub(super) fn a_large_packet_of_segments_that_do_not_fit_is_answered() {
                let (mut node, _) = dialled(Protocol::TCP, F::OTHER_NODE);
                let large = tcp(CLIENT, VIP, ACK).with_payload(&[1; 3000]).bytes();
                let largest = 1500 - 2 * F::HEADER_LEN as u32 - 20;
                let ran = node.run_segmented(Hook::FromNetwork, &large, largest + 1);
                assert_eq!((ran.code, counts(&node)[&Verdict::TooBig]), (REDIRECT, 1));
                assert_eq!(Icmp::decode(&ran.packet).rest, 1500 - F::HEADER_LEN as u32);
            }

            /// A node whose XDP program finds the node of a flow in a table.
            fn by_table(backends: &[Server], flags: FrontendFlags) -> (Node, Service) {
                let mut node = Node::start_loaded(&LoadOptions { stateless: true, ..LoadOptions::default() });
                let flags = FrontendFlags::DSR.with(FrontendFlags::MAGLEV).with(flags);
                let service = Service { flags, ..service(Protocol::TCP, backends) };
                node.serve::<F>(&service);
                node.reach_at::<F>(&service, &[F::OTHER_NODE, F::OTHER_CLIENT]);
                node.serve_by_table::<F>(&service, 1000, TableSize::new(251).unwrap());
                (node, service)
            }

            /// What XDP, and by itself tc, make of a flow's opening and of a later packet: to the same node by either, and by
            /// both if the table is the same.
            pub(super) fn a_table_finds_a_flows_node_without_connections() {
                let remote = Server { addr: REMOTE, local: false };
                let other = Server { addr: (F::REMOTE_POD, TARGET + 1), local: false };
                let (mut node, service) = by_table(&[remote, other], FrontendFlags::STATELESS);
                let mut ends = BTreeMap::new();
                for port in 40_000..40_032 {
                    for flags in [SYN, ACK] {
                        let packet = tcp((F::CLIENT, port), VIP, flags).bytes();
                        let ran = node.run_xdp(&packet);
                        assert_eq!(ran.code, XDP_TX, "{:?}", node.all_verdicts());
                        let towards =
                            |end| packet::tunnelled(&packet, F::NODE, end)[TYPE..] == ran.packet[TYPE..];
                        let end =
                            [F::OTHER_NODE, F::OTHER_CLIENT].into_iter().find(|end| towards(*end)).unwrap();
                        assert_eq!(*ends.entry(port).or_insert(end), end, "a flow has one node");
                    }
                }
                let all: BTreeSet<_> = ends.values().collect();
                assert_eq!(all.len(), 2);
                assert_eq!(
                    (node.connections::<F>(), node.service(service.service_port()).connections),
                    (0, 32)
                );
                for (port, end) in ends {
                    let packet = tcp((F::CLIENT, port), VIP, ACK).bytes();
                    let ran = node.run_tc(Hook::FromNetwork, &packet);
                    assert_eq!(ran.packet[TYPE..], packet::tunnelled(&packet, F::NODE, end)[TYPE..]);
                }
            }

            fn left(packet: &[u8]) -> Ran {
                Ran { code: XDP_PASS, packet: packet.to_vec() }
            }

            /// By whichever device the way to the backend's node leads.
            pub(super) fn a_table_is_not_asked_about_frames_for_others() {
                let (mut node, service) =
                    by_table(&[Server { addr: REMOTE, local: false }], FrontendFlags::STATELESS);
                let mut packet = tcp(CLIENT, VIP, SYN).bytes();
                packet[..6].copy_from_slice(&packet::FAR_MAC);
                assert_eq!(node.run_xdp(&packet), left(&packet));
                node.let_narrow_take_frames();
                node.reach_at::<F>(&service, &[F::NARROW_POD]);
                assert_eq!(node.run_xdp(&packet), left(&packet));
                assert_eq!((node.connections::<F>(), node.all_verdicts()), (0, BTreeMap::new()));
                packet[..6].copy_from_slice(&packet::NEAR_MAC);
                assert_eq!(node.run_xdp(&packet).code, XDP_REDIRECT);
            }

            /// A backend of this node, fragments, and what the agent did not call stateless.
            pub(super) fn what_needs_a_connection_has_one_beside_a_table() {
                let backends = [Server { addr: REMOTE, local: false }, Server { addr: POD, local: true }];
                let (mut node, _) = by_table(&backends, FrontendFlags::STATELESS);
                let mut local = 0;
                for port in 40_000..40_032 {
                    let ran = node.run_xdp(&tcp((F::CLIENT, port), VIP, SYN).bytes());
                    local += usize::from(ran.code == XDP_PASS && Packet::decode(&ran.packet).dst == POD);
                }
                assert!((1..32).contains(&local), "{local}");
                assert_eq!(node.connections::<F>(), 2 * local);
                let (mut node, _) = by_table(&backends[..1], FrontendFlags::default());
                assert_eq!(node.run_xdp(&tcp(CLIENT, VIP, SYN).bytes()).code, XDP_TX);
                assert_eq!(node.connections::<F>(), 1);
            }

            /// An error on an answer's way from the backend's node to the client comes back to the VIP.
            pub(super) fn an_error_about_an_answer_goes_to_the_backends_node_too() {
                let (mut node, _) = dialled(Protocol::TCP, F::OTHER_NODE);
                wrap(&mut node, &tcp(CLIENT, VIP, SYN).bytes());
                let answer = tcp(VIP, CLIENT, SYN_ACK).bytes();
                wrap(&mut node, &Icmp::about(F::ROUTER, &answer, F::TOO_BIG, 1280).bytes());
                assert_eq!(counts(&node), [(Verdict::Tunnelled, 2)].into());
            }

            pub(super) fn what_comes_in_a_tunnel_goes_to_a_backend_of_this_node() {
                let (mut node, _) = serving(Protocol::TCP, |_| ());
                for port in 40_000..40_016 {
                    let client = (F::CLIENT, port);
                    let request = tcp(client, VIP, SYN);
                    let sent = translate(&mut node, Hook::FromNetwork, &arriving(&request.bytes()));
                    assert_eq!(sent, Packet { dst: POD, ..request.clone() });
                    let known =
                        translate(&mut node, Hook::FromNetwork, &arriving(&tcp(client, VIP, ACK).bytes()));
                    assert_eq!((known.src, known.dst), (client, POD));
                    let reply = translate(&mut node, Hook::ToNetwork, &tcp(POD, client, SYN_ACK).bytes());
                    assert_eq!(
                        reply,
                        tcp(VIP, client, SYN_ACK),
                        "straight to the client, from whom it dialled"
                    );
                }
                assert_eq!(counts(&node), [(Verdict::Translated, 48)].into());
                assert_eq!(node.tunnels(), (32, 0));
            }

            /// A NodePort is dialled at the other node's address.
            pub(super) fn a_node_port_of_another_node_is_this_ones_too() {
                let own = (F::NODE, 30_080);
                let (mut node, _) = serving(Protocol::UDP, |service| {
                    service.kind = FrontendKind::NODE_PORT;
                    service.vip = own;
                });
                let there = (F::OTHER_NODE, own.1);
                let request = Packet::udp(CLIENT, there, b"?");
                let sent = translate(&mut node, Hook::FromNetwork, &arriving(&request.bytes()));
                assert_eq!(sent, Packet { dst: POD, ..request });
                let reply = translate(&mut node, Hook::ToNetwork, &Packet::udp(POD, CLIENT, b"!").bytes());
                assert_eq!(reply, Packet::udp(there, CLIENT, b"!"));
            }

            /// Otherwise two nodes could send a packet to each other for ever.
            pub(super) fn what_came_in_a_tunnel_goes_into_no_other() {
                let (mut node, service) = serving(Protocol::TCP, |service| service.backends.truncate(1));
                wrap(&mut node, &tcp(CLIENT, VIP, SYN).bytes());
                let again = arriving(&tcp(CLIENT, VIP, ACK).bytes());
                assert_eq!(node.run(Hook::FromNetwork, &again).code, SHOT);
                assert_eq!(counts(&node), [(Verdict::Tunnelled, 1), (Verdict::PolicyLocal, 1)].into());
                assert_eq!(node.service(service.service_port()).refused, 1);
            }

            pub(super) fn tunnels_that_are_none_of_ours_stay_as_they_came() {
                let (mut node, _) =
                    serving(Protocol::TCP, |service| service.flags = FrontendFlags::default());
                let request = tcp(CLIENT, VIP, SYN).bytes();
                let strange = tcp(CLIENT, (F::OTHER_VIP, PORT), SYN).bytes();
                let congested = packet::with_ecn(&arriving(&request), 3);
                for packet in [
                    arriving(&request),
                    packet::tunnelled(&request, F::OTHER_NODE, F::OTHER_NODE),
                    arriving(&strange),
                    arriving(&arriving(&request)),
                    congested,
                    arriving(&request)[..14 + F::HEADER_LEN + 8].to_vec(),
                ] {
                    for hook in [Hook::FromNetwork, Hook::ToNetwork, Hook::FromPod, Hook::ToPod] {
                        assert_eq!(node.run(hook, &packet), untouched(&packet), "{hook:?}");
                    }
                }
                assert_eq!(node.connections::<F>(), 0);
            }

            /// Whoever is no node of the cluster, nor in a network that the operator named.
            pub(super) fn a_strangers_tunnels_stay_as_they_came() {
                let (mut node, _) = serving(Protocol::TCP, |_| ());
                let request = tcp(CLIENT, VIP, SYN).bytes();
                let stranger = |packet: &[u8]| packet::tunnelled(packet, F::OTHER_CLIENT, F::NODE);
                translate(&mut node, Hook::FromNetwork, &arriving(&request));
                let answer = tcp(VIP, CLIENT, SYN_ACK).bytes();
                let error = Icmp::about(F::ROUTER, &answer, F::TOO_BIG, 1280).bytes();
                for packet in [&request, &tcp(CLIENT, VIP, ACK).bytes(), &error] {
                    let packet = stranger(packet);
                    assert_eq!(node.run(Hook::FromNetwork, &packet), untouched(&packet));
                }
                assert_eq!(node.tunnels(), (1, 3));
                assert_eq!(counts(&node), [(Verdict::Translated, 1)].into());
                node.peer::<F>(F::OTHER_CLIENT, F::BITS - 1);
                assert_eq!(translate(&mut node, Hook::FromNetwork, &stranger(&request)).dst, POD);
                assert_eq!(node.tunnels(), (2, 3));
            }

            /// A known connection's packets need no tc: XDP unwraps and translates them. All others it leaves in their tunnels,
            /// bit for bit.
            pub(super) fn xdp_unwraps_what_it_knows() {
                let (mut node, service) = serving(Protocol::TCP, |_| ());
                let opening = arriving(&tcp(CLIENT, VIP, SYN).bytes());
                assert_eq!(node.run_xdp(&opening), left(&opening), "who opens a connection");
                node.run_tc(Hook::FromNetwork, &opening);
                let capable = packet::with_ecn(&tcp(CLIENT, VIP, ACK).bytes(), 1);
                for request in [tcp(CLIENT, VIP, ACK).with_payload(&[7; 999]).bytes(), capable.clone()] {
                    let by_tc = node.run_tc(Hook::FromNetwork, &arriving(&request)).packet;
                    let by_xdp = node.run_xdp(&arriving(&request));
                    assert_eq!(by_xdp, left(&by_tc), "the same by either");
                    assert_eq!(Packet::decode(&by_xdp.packet).dst, POD);
                }
                assert_eq!(node.tunnels(), (5, 0));
                let counted = node.service(service.service_port());
                assert_eq!((counted.packets, counts(&node)[&Verdict::Translated]), (5, 5));
                let large = Packet::udp(CLIENT, VIP, &[7; 64]).bytes();
                let error = Icmp::about(F::ROUTER, &tcp(VIP, CLIENT, ACK).bytes(), F::TOO_BIG, 1280).bytes();
                let other = tcp((F::CLIENT, 50_000), VIP, ACK).bytes();
                let again = tcp(CLIENT, VIP, ACK).bytes();
                for packet in [
                    packet::with_ecn(&arriving(&capable), 3),
                    packet::tunnelled(&again, F::OTHER_CLIENT, F::NODE),
                    packet::tunnelled(&again, F::OTHER_NODE, F::OTHER_NODE),
                    packet::prioritized(&arriving(&again)),
                    arriving(&packet::fragments(&large, 32)[0]),
                    arriving(&error),
                    arriving(&other),
                ] {
                    assert_eq!(node.run_xdp(&packet), left(&packet));
                }
                assert_eq!((node.tunnels(), node.connections::<F>()), ((5, 0), 2));
            }

            /// RFC 6040, 4.2.
            pub(super) fn congestion_in_the_tunnel_is_told_the_backend() {
                let (mut node, _) = serving(Protocol::TCP, |_| ());
                let capable = packet::with_ecn(&tcp(CLIENT, VIP, SYN).bytes(), 2);
                let ran = node.run(Hook::FromNetwork, &packet::with_ecn(&arriving(&capable), 3));
                assert_eq!((ran.code, Packet::decode(&ran.packet).dst), (UNSPEC, POD));
                assert_eq!(ran.packet, packet::with_ecn(&ran.packet, 3));
                let incapable = packet::with_ecn(&arriving(&tcp(CLIENT, VIP, SYN).bytes()), 3);
                assert_eq!(
                    node.run(Hook::FromNetwork, &incapable),
                    untouched(&incapable),
                    "the stack drops it"
                );
            }

            pub(super) fn fragments_in_tunnels_follow_their_first() {
                let (mut node, _) = serving(Protocol::UDP, |_| ());
                for fragment in packet::fragments(&Packet::udp(CLIENT, VIP, &[7; 64]).bytes(), 32) {
                    let ran = node.run(Hook::FromNetwork, &arriving(&fragment));
                    assert_eq!((ran.code, ran.packet.len()), (UNSPEC, fragment.len()));
                }
                assert_eq!(counts(&node), [(Verdict::Translated, 2)].into());
            }

            pub(super) fn an_error_about_an_answer_reaches_the_backend() {
                let (mut node, _) = serving(Protocol::TCP, |_| ());
                translate(&mut node, Hook::FromNetwork, &arriving(&tcp(CLIENT, VIP, SYN).bytes()));
                let answer = tcp(VIP, CLIENT, SYN_ACK);
                let error = Icmp::about(F::ROUTER, &answer.bytes(), F::TOO_BIG, 1280);
                let ran = node.run(Hook::FromNetwork, &arriving(&error.bytes()));
                assert_eq!(ran.code, UNSPEC);
                let told = Icmp::decode(&ran.packet);
                assert_eq!((told.src, told.dst, told.kind), (F::ROUTER, F::POD, F::TOO_BIG));
                assert_eq!(told.payload, Packet { src: POD, ..answer }.bytes()[14..]);
            }
        }
    };
}

cases!(cases4, V4);
cases!(cases6, V6);

both_families! {
    what_a_client_sends_goes_to_the_backends_node_as_it_is
    the_outer_header_has_the_ecn_of_the_packet
    a_flow_stays_with_its_node
    without_a_known_node_the_source_is_replaced
    fragments_follow_their_first
    what_does_not_fit_with_its_header_is_answered
    an_error_about_an_answer_goes_to_the_backends_node_too
    what_comes_in_a_tunnel_goes_to_a_backend_of_this_node
    tunnels_that_are_none_of_ours_stay_as_they_came
    a_strangers_tunnels_stay_as_they_came
    ;
    a_large_packet_of_segments_that_do_not_fit_is_answered
    a_node_port_of_another_node_is_this_ones_too
    a_table_finds_a_flows_node_without_connections
    a_table_is_not_asked_about_frames_for_others
    what_needs_a_connection_has_one_beside_a_table
    what_came_in_a_tunnel_goes_into_no_other
    xdp_unwraps_what_it_knows
    congestion_in_the_tunnel_is_told_the_backend
    fragments_in_tunnels_follow_their_first
    an_error_about_an_answer_reaches_the_backend
}
