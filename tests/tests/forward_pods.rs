//! `--forward-pods`: what pods dial is translated where it comes in, in both directions, and sent on by the programs. Real programs
//! (`BPF_PROG_TEST_RUN`), IPv4 and IPv6. Needs root. With real sockets: `end_to_end`, `wires`.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::IpAddr;

use lb_common::{
    conntrack::ConnectionFlags,
    family::{Protocol, V4, V6},
    kind::Kind,
    next_hop::Manner,
};
use lb_tests::{
    both_families,
    packet::{ACK, FAR_MAC, NEAR_MAC, Packet, SYN, SYN_ACK},
    prog::{Hook, LoadOptions, Node, Places, REDIRECT, Ran, Server, Service, UNSPEC},
};

/// The cases, expanded once per family, as in `datapath.rs`.
macro_rules! cases {
    ($module:ident, $F:ident) => {
        mod $module {
            use super::*;

            type F = $F;
            /// A pod of this node.
            const CLIENT: (IpAddr, u16) = (F::POD, 40_000);
            const VIP: (IpAddr, u16) = (F::VIP, 80);
            const REMOTE: (IpAddr, u16) = (F::REMOTE_POD, 8080);

            fn serve(protocol: Protocol, backend: (IpAddr, u16)) -> Node {
                let mut node =
                    Node::start_loaded(&LoadOptions { forwards_pods: true, ..LoadOptions::default() });
                let local = backend.0 == F::POD || backend.0 == F::NODE;
                node.serve::<F>(&Service::new(VIP, protocol, &[Server { addr: backend, local }]));
                node
            }

            fn decoded(ran: &Ran) -> (u32, Packet) {
                (ran.code, Packet::decode(&ran.packet))
            }

            pub(super) fn both_directions_are_sent_on_and_the_pod_keeps_its_address() {
                let mut node = serve(Protocol::TCP, REMOTE);
                let request = Packet::tcp(CLIENT, VIP, SYN);
                let expected = Packet { dst: REMOTE, ttl: 63, ..request.clone() };
                assert_eq!(decoded(&node.run(Hook::FromPod, &request.bytes())), (REDIRECT, expected));
                assert_eq!(node.connection::<F>(&request.flow()).unwrap().flags, ConnectionFlags::FORWARDED);
                assert_eq!(node.kinds(), Kind::Forwarded.bit());
                let answer = Packet::tcp(REMOTE, CLIENT, SYN_ACK);
                let expected = Packet { src: VIP, ttl: 63, ..answer.clone() };
                assert_eq!(decoded(&node.run(Hook::FromNetwork, &answer.bytes())), (REDIRECT, expected));
                let data = Packet::tcp(CLIENT, VIP, ACK).with_payload(b"more");
                let expected = Packet { dst: REMOTE, ttl: 63, ..data.clone() };
                assert_eq!(decoded(&node.run(Hook::FromPod, &data.bytes())), (REDIRECT, expected.clone()));
                for hook in [Hook::ToNetwork, Hook::ToPod] {
                    let again = Ran { code: UNSPEC, packet: expected.bytes() };
                    assert_eq!(node.run(hook, &expected.bytes()), again, "seen once more as it leaves");
                }
            }

            pub(super) fn datagrams_are_too() {
                let mut node = serve(Protocol::UDP, REMOTE);
                let question = Packet::udp(CLIENT, VIP, b"?");
                let expected = Packet { dst: REMOTE, ttl: 63, ..question.clone() };
                assert_eq!(decoded(&node.run(Hook::FromPod, &question.bytes())), (REDIRECT, expected));
                let answer = Packet::udp(REMOTE, CLIENT, b"!");
                let expected = Packet { src: VIP, ttl: 63, ..answer.clone() };
                assert_eq!(decoded(&node.run(Hook::FromNetwork, &answer.bytes())), (REDIRECT, expected));
            }

            /// A frame that enters the pod's namespace at once bears its address; the kernel would write it later. The pod's own
            /// answers leave by another device, or by the stack.
            pub(super) fn a_pod_of_this_node_is_entered_at_once() {
                let mut node = serve(Protocol::TCP, (F::POD, 8080));
                let client = (F::OTHER_CLIENT, 40_000);
                let (syn, data) = (Packet::tcp(client, VIP, SYN), Packet::tcp(client, VIP, ACK));
                let addressed =
                    |ran: Ran| (ran.code, ran.packet[..6] == FAR_MAC, Packet::decode(&ran.packet).dst);
                let as_it_was = (REDIRECT, false, (F::POD, 8080));
                assert_eq!(
                    addressed(node.run(Hook::FromPod, &syn.bytes())),
                    as_it_was,
                    "a device of unknown kind"
                );
                node.let_pod_be_entered();
                for packet in [data.clone(), Packet::tcp((client.0, 40_001), VIP, SYN), data.clone()] {
                    let entered = (REDIRECT, true, (F::POD, 8080));
                    assert_eq!(addressed(node.run(Hook::FromPod, &packet.bytes())), entered);
                }
                let to = node.connection::<F>(&data.flow()).unwrap().to;
                let hop = node.next_hop::<F>(node.pod_device(), &to).unwrap();
                let expected = (Manner::INTO_POD, node.pod_device(), [FAR_MAC, NEAR_MAC]);
                assert_eq!((hop.manner, hop.ifindex, hop.macs.0), expected);
                let ran = node.run(Hook::FromNetwork, &Packet::tcp((F::CLIENT, 40_000), VIP, SYN).bytes());
                assert_eq!(addressed(ran), (UNSPEC, false, (F::POD, 8080)), "a client outside");
            }

            pub(super) fn a_backend_that_is_the_node_itself_gets_it_from_the_stack() {
                let mut node = serve(Protocol::TCP, (F::NODE, 8080));
                let request = Packet::tcp(CLIENT, VIP, SYN);
                let expected = Packet { dst: (F::NODE, 8080), ..request.clone() };
                assert_eq!(decoded(&node.run(Hook::FromPod, &request.bytes())), (UNSPEC, expected));
                assert_eq!(node.connection::<F>(&request.flow()).unwrap().flags, ConnectionFlags(0));
            }

            pub(super) fn a_pod_that_is_its_own_backend_gets_another_address() {
                let mut node = serve(Protocol::TCP, (F::POD, 8080));
                let request = Packet::tcp(CLIENT, VIP, SYN);
                let (code, sent) = decoded(&node.run(Hook::FromPod, &request.bytes()));
                assert_eq!((code, sent.src.0, sent.dst), (REDIRECT, F::NODE, (F::POD, 8080)));
                assert!(node.connection::<F>(&request.flow()).unwrap().flags.has(ConnectionFlags::SNAT));
            }

            pub(super) fn clients_outside_are_served_as_ever() {
                let mut node = serve(Protocol::TCP, (F::POD, 8080));
                let request = Packet::tcp((F::CLIENT, 40_000), VIP, SYN);
                let expected = Packet { dst: (F::POD, 8080), ..request.clone() };
                assert_eq!(decoded(&node.run(Hook::FromNetwork, &request.bytes())), (UNSPEC, expected));
            }

            pub(super) fn the_last_hop_is_not_taken() {
                let mut node = serve(Protocol::TCP, REMOTE);
                let request = Packet { ttl: 1, ..Packet::tcp(CLIENT, VIP, SYN) };
                let ran = node.run(Hook::FromPod, &request.bytes());
                assert_eq!(ran.code, REDIRECT, "told the pod");
                assert_ne!(&ran.packet[14..], &request.bytes()[14..]);
                let verdicts = node.verdicts();
                assert_eq!(verdicts[&lb_common::verdict::Verdict::TtlExceeded].0, 1, "{verdicts:?}");
            }
        }
    };
}

cases!(cases4, V4);
cases!(cases6, V6);

both_families! {
    both_directions_are_sent_on_and_the_pod_keeps_its_address
    datagrams_are_too
    a_pod_of_this_node_is_entered_at_once
    a_backend_that_is_the_node_itself_gets_it_from_the_stack
    a_pod_that_is_its_own_backend_gets_another_address
    clients_outside_are_served_as_ever
    the_last_hop_is_not_taken
}
