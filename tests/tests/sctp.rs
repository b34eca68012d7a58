//! SCTP through the real programs, one packet at a time (`BPF_PROG_TEST_RUN`), on IPv4 and IPv6, at tc and XDP: the
//! decoder computes every CRC32c anew. What SCTP has in common with TCP and UDP is `datapath.rs`'s. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{
    conntrack::{ConnectionFlags, Phase},
    family::{Family as _, Protocol, V4, V6},
    frontend::FrontendFlags,
    id::BackendId,
    sctp::{ABORT, CHECKSUM, DATA, HEADER_LEN, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE},
    verdict::Verdict,
};
use lb_tests::{
    both_families,
    packet::{self, Icmp, Packet, Unreachable},
    prog::{Hook, Node, Places, REDIRECT, Ran, SHOT, Server, Service, UNSPEC},
};

const CLIENT_PORT: u16 = 40_000;
const PORT: u16 = 38_412;
const TARGET: u16 = 8080;

/// Chunks that neither open nor end an association: COOKIE ECHO, COOKIE ACK, SACK (RFC 9260, 3.2).
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SACK: u8 = 3;

fn untouched(packet: &[u8]) -> Ran {
    Ran { code: UNSPEC, packet: packet.to_vec() }
}

/// The cases, expanded once per family, as in `datapath.rs`.
macro_rules! cases {
    ($module:ident, $F:ident) => {
        mod $module {
            use super::*;

            type F = $F;
            const CLIENT: (IpAddr, u16) = (F::CLIENT, CLIENT_PORT);
            const VIP: (IpAddr, u16) = (F::VIP, PORT);
            const POD: (IpAddr, u16) = (F::POD, TARGET);
            const REMOTE: (IpAddr, u16) = (F::REMOTE_POD, TARGET);
            /// Where the SCTP packet begins in a frame.
            const L4: usize = if F::BITS == 32 { 34 } else { 54 };

            fn serve(backends: &[Server]) -> (Node, Service) {
                let mut node = Node::start();
                let service = Service::new(VIP, Protocol::SCTP, backends);
                node.serve::<F>(&service);
                (node, service)
            }

            fn local() -> Server {
                Server { addr: POD, local: true }
            }

            fn remote() -> Server {
                Server { addr: REMOTE, local: false }
            }

            fn chunk(chunk: u8) -> Packet {
                Packet::sctp(CLIENT, VIP, chunk)
            }

            fn init() -> Packet {
                chunk(INIT).with_payload(&[7; 16])
            }

            fn translate(node: &mut Node, hook: Hook, packet: &Packet) -> Packet {
                let ran = node.run(hook, &packet.bytes());
                assert_eq!(ran.code, UNSPEC, "left to the stack: {:?}", node.verdicts());
                Packet::decode(&ran.packet)
            }

            fn forward(node: &mut Node, hook: Hook, packet: &Packet) -> Packet {
                let ran = node.run(hook, &packet.bytes());
                assert_eq!(ran.code, REDIRECT, "sent on: {:?}", node.verdicts());
                Packet::decode(&ran.packet)
            }

            fn phase(node: &mut Node, packet: &Packet) -> Phase {
                node.connection::<F>(&packet.flow()).expect("an entry").phase
            }

            pub(super) fn an_outside_client_reaches_a_local_pod() {
                let (mut node, service) = serve(&[local()]);
                assert_eq!(translate(&mut node, Hook::FromNetwork, &init()), Packet { dst: POD, ..init() });
                let reply = Packet::sctp(POD, CLIENT, INIT_ACK).with_payload(&[9; 300]);
                let answered = translate(&mut node, Hook::ToNetwork, &reply);
                assert_eq!(answered, Packet { src: VIP, ..reply });
                let data = chunk(DATA).with_payload(&[5; 1400]);
                assert_eq!(translate(&mut node, Hook::FromNetwork, &data), Packet { dst: POD, ..data });
                assert_eq!(node.service(service.service_port()).connections, 1);
                assert_eq!(node.verdicts().into_keys().collect::<Vec<_>>(), [Verdict::Translated]);
            }

            /// Both addresses and both ports change, in both directions.
            pub(super) fn an_outside_client_reaches_a_remote_pod() {
                let (mut node, _) = serve(&[remote()]);
                let sent = forward(&mut node, Hook::FromNetwork, &init());
                assert_eq!((sent.src.0, sent.dst, sent.ttl), (F::NODE, REMOTE, 63));
                assert_ne!(sent.src.1, CLIENT_PORT);
                let reply = Packet::sctp(REMOTE, sent.src, INIT_ACK).with_payload(&[9; 1000]);
                let answered = forward(&mut node, Hook::FromNetwork, &reply);
                assert_eq!(answered, Packet { src: VIP, dst: CLIENT, ttl: 63, ..reply });
                for len in [0, 4, 252, 256, 1024, 1436] {
                    let data = chunk(DATA).with_payload(&vec![3; len]);
                    let again = forward(&mut node, Hook::FromNetwork, &data);
                    assert_eq!(again, Packet { src: sent.src, dst: REMOTE, ttl: 63, ..data });
                }
                assert_eq!(node.connections::<F>(), 2);
            }

            /// The checksum does not cover addresses.
            pub(super) fn without_another_port_the_packet_stays_as_it_is() {
                let (mut node, _) = serve(&[Server { addr: (F::POD, PORT), local: true }]);
                let ran = node.run(Hook::FromNetwork, &init().bytes());
                assert_eq!(Packet::decode(&ran.packet), Packet { dst: (F::POD, PORT), ..init() });
                assert_eq!(ran.packet[L4..], init().bytes()[L4..]);
            }

            /// The hardware's to compute (`CHECKSUM_PARTIAL`), or done without (RFC 9653).
            pub(super) fn a_checksum_of_zero_stays_zero() {
                let (mut node, _) = serve(&[local()]);
                let mut bytes = init().bytes();
                bytes[L4 + CHECKSUM..L4 + HEADER_LEN].fill(0);
                let ran = node.run(Hook::FromNetwork, &bytes);
                assert_eq!(Packet::decode(&ran.packet), Packet { dst: POD, ..init() });
                assert_eq!(ran.packet[L4 + CHECKSUM..L4 + HEADER_LEN], [0; 4]);
            }

            pub(super) fn priority_tags_and_longer_headers_are_understood() {
                let (mut node, _) = serve(&[local()]);
                let long = if F::BITS == 32 {
                    packet::with_ipv4_options(&init().bytes())
                } else {
                    packet::with_ipv6_extension(&init().bytes())
                };
                for bytes in [packet::prioritized(&init().bytes()), long.clone(), packet::prioritized(&long)]
                {
                    let ran = node.run(Hook::FromNetwork, &bytes);
                    assert_eq!((ran.code, ran.packet.len()), (UNSPEC, bytes.len()));
                    assert_eq!(Packet::decode(&ran.packet), Packet { dst: POD, ..init() });
                }
            }

            pub(super) fn an_association_has_the_phases_of_a_connection() {
                let (mut node, _) = serve(&[local()]);
                let reply = Packet::sctp(POD, CLIENT, INIT_ACK);
                for (sent, client, server) in [
                    (init(), Phase::OPENING, Phase::OPENING),
                    (reply.clone(), Phase::OPENING, Phase::OPENING),
                    (chunk(COOKIE_ECHO), Phase::ESTABLISHED, Phase::OPENING),
                    (Packet::sctp(POD, CLIENT, COOKIE_ACK), Phase::ESTABLISHED, Phase::ESTABLISHED),
                    (chunk(SHUTDOWN), Phase::FINISHED, Phase::ESTABLISHED),
                    (Packet::sctp(POD, CLIENT, SACK), Phase::FINISHED, Phase::ESTABLISHED),
                    (Packet::sctp(POD, CLIENT, SHUTDOWN_ACK), Phase::FINISHED, Phase::FINISHED),
                    (chunk(SHUTDOWN_COMPLETE), Phase::FINISHED, Phase::FINISHED),
                    (init(), Phase::OPENING, Phase::OPENING),
                    (chunk(ABORT), Phase::RESET, Phase::OPENING),
                ] {
                    let hook = if sent.src == CLIENT { Hook::FromNetwork } else { Hook::ToNetwork };
                    translate(&mut node, hook, &sent);
                    let phases = (phase(&mut node, &init()), phase(&mut node, &reply));
                    assert_eq!(phases, (client, server), "after {sent:?}");
                }
            }

            /// As TCP: spec 7.15, 5.4.
            pub(super) fn an_association_drains_from_a_backend_that_no_longer_serves() {
                let (mut node, service) = serve(&[local()]);
                let second = Server { addr: (F::POD, TARGET + 1), local: true };
                translate(&mut node, Hook::FromNetwork, &init());
                node.leave(&service, BackendId(1));
                node.serve::<F>(&Service { base: 10, backends: vec![second], ..service.clone() });
                let data = translate(&mut node, Hook::FromNetwork, &chunk(DATA));
                assert_eq!(data.dst, POD, "established: drains");
                assert_eq!(translate(&mut node, Hook::FromNetwork, &init()).dst, second.addr, "opens anew");
                let data = translate(&mut node, Hook::FromNetwork, &chunk(DATA));
                assert_eq!(data.dst, second.addr);
                assert_eq!(node.service(service.service_port()).connections, 2);
            }

            pub(super) fn an_aborted_association_is_opened_anew() {
                let (mut node, service) = serve(&[local()]);
                for sent in [init(), chunk(ABORT), init()] {
                    translate(&mut node, Hook::FromNetwork, &sent);
                }
                assert_eq!(phase(&mut node, &init()), Phase::OPENING);
                assert_eq!(node.service(service.service_port()).connections, 2);
            }

            /// Spec 1.18: the protocols share nothing but the number.
            pub(super) fn another_protocols_port_is_another_port() {
                let (mut node, service) = serve(&[local()]);
                let tcp = Service { id: 2, base: 20, protocol: Protocol::TCP, backends: vec![], ..service };
                node.serve::<F>(&tcp);
                assert_eq!(translate(&mut node, Hook::FromNetwork, &init()).dst, POD);
                let udp = Packet::udp(CLIENT, VIP, b"?").bytes();
                assert_eq!(node.run(Hook::FromNetwork, &udp), untouched(&udp));
            }

            pub(super) fn source_ranges_let_in_whom_they_name() {
                let mut node = Node::start();
                let service = Service::new(VIP, Protocol::SCTP, &[local()]);
                let service = Service { flags: FrontendFlags::SOURCE_RANGES, ..service };
                node.serve::<F>(&service);
                node.source_range::<F>(service.service_port(), F::CLIENT, F::BITS);
                assert_eq!(translate(&mut node, Hook::FromNetwork, &init()).dst, POD);
                let other = Packet { src: (F::OTHER_CLIENT, CLIENT_PORT), ..init() }.bytes();
                assert_eq!(node.run(Hook::FromNetwork, &other).code, SHOT);
                assert_eq!(node.verdicts()[&Verdict::SourceRange].0, 1);
            }

            pub(super) fn affinity_binds_a_client() {
                let mut node = Node::start();
                let servers: Vec<Server> =
                    (0..8).map(|index| Server { addr: (F::POD, TARGET + index), local: true }).collect();
                let service = Service::new(VIP, Protocol::SCTP, &servers);
                let flags = FrontendFlags::AFFINITY;
                node.serve::<F>(&Service { flags, affinity_timeout_s: 100, ..service });
                let seen: BTreeSet<u16> = (50_000..50_020)
                    .map(|port| Packet { src: (F::CLIENT, port), ..init() })
                    .map(|packet| translate(&mut node, Hook::FromNetwork, &packet).dst.1)
                    .collect();
                assert_eq!(seen.len(), 1, "{seen:?}");
            }

            /// A first fragment does not say how long the packet is, on which the checksum's change depends.
            pub(super) fn fragments_pass_where_no_port_changes() {
                let server = Server { addr: (F::POD, PORT), local: true };
                let (mut node, _) = serve(&[server]);
                let data = chunk(DATA).with_payload(&[5; 1000]);
                let parts = packet::fragments(&data.bytes(), 512);
                let expected = packet::fragments(&Packet { dst: server.addr, ..data }.bytes(), 512);
                for (part, packet) in parts.iter().zip(expected) {
                    assert_eq!(node.run(Hook::FromNetwork, part), Ran { code: UNSPEC, packet });
                }
            }

            pub(super) fn fragments_whose_ports_would_change_are_dropped() {
                let (mut node, _) = serve(&[local()]);
                translate(&mut node, Hook::FromNetwork, &init());
                let [first, _] = packet::fragments(&chunk(DATA).with_payload(&[5; 1000]).bytes(), 512);
                assert_eq!(node.run(Hook::FromNetwork, &first).code, SHOT);
                assert_eq!(node.verdicts()[&Verdict::RewriteFailed].0, 1);
            }

            pub(super) fn a_pod_reaches_a_remote_pod() {
                let (mut node, _) = serve(&[remote()]);
                let client = (F::POD, CLIENT_PORT);
                let request = Packet { src: client, ..init() };
                let translated = translate(&mut node, Hook::FromPod, &request);
                assert_eq!(translated, Packet { dst: REMOTE, ..request });
                let reply = Packet::sctp(REMOTE, client, INIT_ACK);
                assert_eq!(translate(&mut node, Hook::ToPod, &reply), Packet { src: VIP, ..reply });
            }

            /// Socket hooks know no SCTP: a process of the node is served as its packets leave.
            pub(super) fn the_node_itself_is_served_as_its_packets_leave() {
                let (mut node, _) = serve(&[local()]);
                let client = (F::NODE, CLIENT_PORT);
                let request = Packet { src: client, ..init() };
                let sent = forward(&mut node, Hook::ToNetwork, &request);
                assert_eq!((sent.src, sent.dst), (client, POD));
                let flags = node.connection::<F>(&request.flow()).unwrap().flags;
                assert_eq!(flags, ConnectionFlags::HOST);
                let reply = Packet::sctp(POD, client, INIT_ACK);
                assert_eq!(forward(&mut node, Hook::FromPod, &reply), Packet { src: VIP, ..reply });
            }

            /// Spec 5, as UDP; what aborts is not answered.
            pub(super) fn without_a_backend_a_client_is_told_port_unreachable() {
                let (mut node, service) = serve(&[]);
                for hook in [Hook::FromNetwork, Hook::FromPod, Hook::FromNetwork] {
                    let ran = node.run(hook, &init().bytes());
                    assert_eq!(ran.code, REDIRECT);
                    let expected =
                        Unreachable { src: F::VIP, dst: F::CLIENT, quoted_src: CLIENT, quoted_dst: VIP };
                    assert_eq!(Unreachable::decode(&ran.packet), expected);
                }
                assert_eq!(node.run(Hook::FromNetwork, &chunk(ABORT).bytes()).code, SHOT);
                assert_eq!(node.verdicts()[&Verdict::Refused].0, 3);
                assert_eq!(node.verdicts()[&Verdict::RefusedSilently].0, 1);
                assert_eq!(node.service(service.service_port()).refused, 4);
            }

            /// The quoted checksum stays: it covers more than is quoted.
            pub(super) fn an_error_about_a_translated_packet_reaches_its_sender() {
                let (mut node, _) = serve(&[remote()]);
                let sent = forward(&mut node, Hook::FromNetwork, &init());
                let quoted = init().with_ttl(sent.ttl).bytes();
                let kind = if F::BITS == 32 { (3, 3) } else { (1, 4) };
                let whole = Icmp::about(F::REMOTE_POD, &sent.bytes(), kind, 0);
                for bytes in [L4 - 14 + 8, whole.payload.len()] {
                    let error = whole.clone().quoting(bytes);
                    let ran = node.run(Hook::FromNetwork, &error.bytes());
                    assert_eq!(ran.code, REDIRECT, "{:?}", node.verdicts());
                    let mut payload = quoted[14..14 + bytes].to_vec();
                    if let Some(checksum) = payload.get_mut(L4 - 14 + CHECKSUM..L4 - 14 + HEADER_LEN) {
                        checksum.copy_from_slice(&sent.bytes()[L4 + CHECKSUM..L4 + HEADER_LEN]);
                    }
                    let expected = Icmp { src: F::VIP, dst: F::CLIENT, ttl: 63, payload, ..error };
                    assert_eq!(Icmp::decode(&ran.packet), expected, "{bytes} bytes");
                }
            }

            /// What the kernel will send as the packets that SCTP itself cut has no one length (`GSO_BY_FRAGS`).
            pub(super) fn a_list_of_packets_is_sent_on() {
                let (mut node, _) = serve(&[remote()]);
                let list = chunk(DATA).with_payload(&[1; 3000]);
                let ran = node.run_segmented(Hook::FromNetwork, &list.bytes(), 0xffff);
                assert_eq!(ran.code, REDIRECT, "{:?}", node.verdicts());
                assert_eq!(Packet::decode(&ran.packet).dst, REMOTE);
            }
        }
    };
}

cases!(cases4, V4);
cases!(cases6, V6);

both_families! {
    an_outside_client_reaches_a_local_pod
    an_outside_client_reaches_a_remote_pod
    without_another_port_the_packet_stays_as_it_is
    a_checksum_of_zero_stays_zero
    priority_tags_and_longer_headers_are_understood
    an_association_has_the_phases_of_a_connection
    an_association_drains_from_a_backend_that_no_longer_serves
    an_aborted_association_is_opened_anew
    another_protocols_port_is_another_port
    source_ranges_let_in_whom_they_name
    affinity_binds_a_client
    fragments_pass_where_no_port_changes
    fragments_whose_ports_would_change_are_dropped
    ;
    a_pod_reaches_a_remote_pod
    the_node_itself_is_served_as_its_packets_leave
    without_a_backend_a_client_is_told_port_unreachable
    an_error_about_a_translated_packet_reaches_its_sender
    a_list_of_packets_is_sent_on
}
