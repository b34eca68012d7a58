//! What tc lets through before it looks anything up (`lb_common::kind`, `lb_common::bit_set`): packets that only a kind of
//! connection could concern of which there is none. Real programs (`BPF_PROG_TEST_RUN`), IPv4 and IPv6. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::IpAddr;

use lb_common::{
    conntrack::Coarse,
    family::{Protocol, V4, V6},
    frontend::FrontendFlags,
    kind::Kind,
    verdict::Verdict,
};
use lb_tests::{
    both_families,
    packet::{ACK, Packet, SYN, SYN_ACK},
    prog::{Hook, Node, Places, Ran, Server, Service, UNSPEC},
};

const CLIENT_PORT: u16 = 40_000;
const HOOKS: [Hook; 4] = [Hook::FromNetwork, Hook::ToNetwork, Hook::FromPod, Hook::ToPod];

fn untouched(packet: &Packet) -> Ran {
    Ran { code: UNSPEC, packet: packet.bytes() }
}

/// Bytes of both link-layer addresses at the head of a frame.
const LINK_ADDRESSES: usize = 12;

/// The cases, expanded once per family, as in `datapath.rs`.
macro_rules! cases {
    ($module:ident, $F:ident) => {
        mod $module {
            use super::*;

            type F = $F;
            const CLIENT: (IpAddr, u16) = (F::CLIENT, CLIENT_PORT);
            const VIP: (IpAddr, u16) = (F::VIP, 80);
            const LOCAL: Server = Server { addr: (F::POD, 8080), local: true };
            const REMOTE: Server = Server { addr: (F::REMOTE_POD, 8080), local: false };

            fn serve(service: &Service) -> Node {
                let mut node = Node::start();
                node.serve::<F>(service);
                node
            }

            /// A packet is translated at `hook` as long as its kind may exist, and again when one more is recorded.
            fn looked_for(
                node: &mut Node,
                kind: Kind,
                hook: Hook,
                packet: &Packet,
                open: impl Fn(&mut Node),
            ) {
                let kinds = node.kinds() & !Kind::Kept.bit();
                assert_eq!(kinds, kind.bit() & !Kind::Kept.bit(), "no other kind");
                // Which link-layer addresses a frame bears by then depends on when the routing table was asked.
                let run = |node: &mut Node| {
                    let ran = node.run(hook, &packet.bytes());
                    (ran.code, ran.packet[LINK_ADDRESSES..].to_vec())
                };
                let translated = run(node);
                assert_ne!(translated.1, packet.bytes()[LINK_ADDRESSES..]);
                node.forget_kinds();
                assert_eq!(node.kinds(), 0);
                assert_eq!(node.run(hook, &packet.bytes()), untouched(packet));
                open(node);
                assert_ne!(node.kinds(), 0);
                assert_eq!(run(node), translated);
            }

            pub(super) fn answers_to_clients_that_keep_their_address() {
                let mut node = serve(&Service::new(VIP, Protocol::TCP, &[LOCAL]));
                let open = |node: &mut Node| {
                    let port = CLIENT_PORT + node.connections::<F>() as u16;
                    node.run(Hook::FromNetwork, &Packet::tcp((F::CLIENT, port), VIP, SYN).bytes());
                };
                open(&mut node);
                let answer = Packet::tcp(LOCAL.addr, CLIENT, SYN_ACK);
                looked_for(&mut node, Kind::Kept, Hook::ToNetwork, &answer, open);
            }

            pub(super) fn answers_to_clients_that_got_another_address() {
                let mut node = serve(&Service::new(VIP, Protocol::TCP, &[REMOTE]));
                let open = |node: &mut Node| {
                    let port = CLIENT_PORT + node.connections::<F>() as u16;
                    node.run(Hook::FromNetwork, &Packet::tcp((F::CLIENT, port), VIP, SYN).bytes())
                };
                let sent = Packet::decode(&open(&mut node).packet);
                let answer = Packet::tcp(sent.dst, sent.src, SYN_ACK);
                looked_for(&mut node, Kind::Forwarded, Hook::FromNetwork, &answer, |node| drop(open(node)));
            }

            pub(super) fn answers_to_the_node_itself() {
                let service = Service {
                    flags: FrontendFlags::SOURCE_RANGES,
                    ..Service::new(VIP, Protocol::TCP, &[REMOTE])
                };
                let mut node = serve(&service);
                node.source_range::<F>(
                    service.service_port(),
                    F::NODE,
                    if F::NODE.is_ipv4() { 32 } else { 128 },
                );
                let open = |node: &mut Node| {
                    let port = CLIENT_PORT + node.connections::<F>() as u16;
                    node.run(Hook::ToNetwork, &Packet::tcp((F::NODE, port), VIP, SYN).bytes());
                };
                open(&mut node);
                let answer = Packet::tcp(REMOTE.addr, (F::NODE, CLIENT_PORT), SYN_ACK);
                looked_for(&mut node, Kind::Host, Hook::FromNetwork, &answer, open);
            }

            pub(super) fn packets_past_a_frontend_from_a_port_that_is_taken() {
                let mut node = serve(&Service::new(VIP, Protocol::UDP, &[LOCAL]));
                // Loading it takes longer than a connection counts as just seen.
                node.tc_program("tc_uplink_ingress");
                let direct = |port| Packet::udp((F::CLIENT, port), LOCAL.addr, b"?");
                let open = |node: &mut Node| {
                    let port = CLIENT_PORT + node.connections::<F>() as u16;
                    let served = Packet::udp((F::CLIENT, port), VIP, b"?");
                    node.run(Hook::FromNetwork, &served.bytes());
                    let mut entry = node.connection::<F>(&served.flow()).unwrap();
                    entry.last_seen = Coarse(entry.last_seen.0.saturating_sub(2));
                    node.set_connection::<F>(&served.flow(), entry);
                    node.run(Hook::FromNetwork, &direct(port).bytes());
                };
                open(&mut node);
                looked_for(&mut node, Kind::Beside, Hook::FromNetwork, &direct(CLIENT_PORT), open);
            }

            /// Of pods whose sockets were given their backend.
            pub(super) fn what_sockets_send_passes_beside_services_and_is_counted() {
                let mut node = serve(&Service::new(VIP, Protocol::TCP, &[REMOTE]));
                let (pod, backend) = ((F::POD, CLIENT_PORT), REMOTE.addr);
                for hook in HOOKS {
                    for packet in [Packet::tcp(pod, backend, ACK), Packet::tcp(backend, pod, ACK)] {
                        assert_eq!(node.run(hook, &packet.bytes()), untouched(&packet), "{hook:?}");
                    }
                }
                let bytes = Packet::tcp(pod, backend, ACK).bytes().len() as u64;
                assert_eq!(node.all_verdicts(), [(Verdict::NotOurs, (8, 8 * bytes))].into());
                assert_eq!((node.kinds(), node.connections::<F>()), (0, 0));
            }
        }
    };
}

cases!(cases4, V4);
cases!(cases6, V6);

both_families! {
    answers_to_clients_that_keep_their_address
    answers_to_clients_that_got_another_address
    answers_to_the_node_itself
    packets_past_a_frontend_from_a_port_that_is_taken
    what_sockets_send_passes_beside_services_and_is_counted
}
