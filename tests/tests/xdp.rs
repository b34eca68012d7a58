//! The XDP program alone, one packet at a time (`BPF_PROG_TEST_RUN`): its actions, the frames it sends, and what it
//! leaves to tc. That both together do what tc does alone, `datapath.rs` shows. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    conntrack::Coarse,
    family::{Protocol, V4, V6},
    frontend::FrontendFlags,
    next_hop::NextHopValue,
    verdict::Verdict,
};
use lb_tests::{
    both_families, netns,
    packet::{self, ACK, Packet, SYN},
    prog::{Hook, Node, Places, Ran, Server, Service, UNSPEC, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, ip},
};

/// The link-layer address of a device of this namespace.
fn mac(device: &str) -> [u8; 6] {
    netns::mac_of(device).unwrap()
}

fn packets(node: &Node) -> BTreeMap<Verdict, u64> {
    node.all_verdicts().into_iter().map(|(verdict, (packets, _))| (verdict, packets)).collect()
}

macro_rules! cases {
    ($module:ident, $F:ident) => {
        mod $module {
            use super::*;

            type F = $F;
            const CLIENT: (IpAddr, u16) = (F::CLIENT, 40_000);
            const VIP: (IpAddr, u16) = (F::VIP, 80);

            fn serve(backends: &[(IpAddr, bool)]) -> Node {
                serve_with(backends, FrontendFlags::default())
            }

            fn serve_with(backends: &[(IpAddr, bool)], flags: FrontendFlags) -> Node {
                let backends: Vec<Server> =
                    backends.iter().map(|&(ip, local)| Server { addr: (ip, 8080), local }).collect();
                let mut node = Node::start();
                for protocol in [Protocol::TCP, Protocol::UDP] {
                    let base = u32::from(protocol.0);
                    let service = Service::new(VIP, protocol, &backends);
                    node.serve::<F>(&Service { flags, base, id: base, ..service });
                }
                node
            }

            fn passed(packet: &[u8]) -> Ran {
                Ran { code: XDP_PASS, packet: packet.to_vec() }
            }

            pub(super) fn what_xdp_translates_tc_leaves_as_it_is() {
                let mut node = serve(&[(F::POD, true)]);
                let request = Packet::tcp(CLIENT, VIP, SYN);
                // Loading it takes seconds; a packet's way from XDP to tc does not.
                node.tc_program("tc_uplink_ingress");
                let ran = node.run_xdp(&request.bytes());
                assert_eq!(ran.code, XDP_PASS);
                assert_eq!(Packet::decode(&ran.packet), Packet { dst: (F::POD, 8080), ..request });
                let onwards = node.run_tc(Hook::FromNetwork, &ran.packet);
                assert_eq!(onwards, Ran { code: UNSPEC, ..ran });
                assert_eq!(packets(&node), [(Verdict::NotOurs, 1), (Verdict::Translated, 1)].into());
            }

            pub(super) fn a_frame_goes_back_by_the_device_it_came_by() {
                let mut node = serve(&[(F::REMOTE_POD, false)]);
                let request = Packet::tcp(CLIENT, VIP, SYN);
                for bytes in [request.bytes(), packet::prioritized(&request.bytes())] {
                    let ran = node.run_xdp(&bytes);
                    assert_eq!(ran.code, XDP_TX);
                    assert_eq!(&ran.packet[..6], &packet::FAR_MAC, "the gateway's");
                    assert_eq!(&ran.packet[6..12], &mac("uplink0"));
                    assert_eq!(ran.packet[12..14], bytes[12..14], "the tag, if any, stays");
                    let sent = Packet::decode(&ran.packet);
                    assert_eq!((sent.src.0, sent.dst, sent.ttl), (F::NODE, (F::REMOTE_POD, 8080), 63));
                }
                assert_eq!(packets(&node), [(Verdict::Redirected, 2)].into());
                assert_eq!(node.connections::<F>(), 2);
            }

            pub(super) fn a_frame_leaves_by_another_device_only_if_that_takes_frames() {
                let mut node = serve(&[(F::NARROW_POD, false)]);
                let request = Packet::tcp(CLIENT, VIP, SYN).bytes();
                assert_eq!(node.run_xdp(&request), passed(&request));
                assert_eq!(node.connections::<F>(), 0);
                node.let_narrow_take_frames();
                let ran = node.run_xdp(&request);
                assert_eq!(ran.code, XDP_REDIRECT);
                assert_eq!(&ran.packet[6..12], &mac("narrow0"));
                assert_eq!(packets(&node), [(Verdict::HandedOn, 1), (Verdict::Redirected, 1)].into());
            }

            /// The routing table is asked once a second; a packet too large for its answer is never sent that way.
            pub(super) fn the_way_to_a_neighbour_is_remembered_for_a_second() {
                let mut node = serve(&[(F::REMOTE_POD, false)]);
                let request = Packet::tcp(CLIENT, VIP, SYN);
                assert_eq!(node.run_xdp(&request.bytes()).code, XDP_TX);
                let data = Packet::tcp(CLIENT, VIP, ACK);
                let to = node.connection::<F>(&data.flow()).unwrap().to;
                let asked = loop {
                    if node.run_xdp(&data.bytes()).code == XDP_TX {
                        break node.next_hop::<F>(node.uplink(), &to).unwrap();
                    }
                };
                assert_eq!((asked.ifindex, asked.mtu), (node.uplink(), 1500));
                assert_eq!(asked.macs.0, [packet::FAR_MAC, mac("uplink0")]);

                let elsewhere = [9; 6];
                let mut hop = asked;
                hop.macs.0[0] = elsewhere;
                loop {
                    hop.asked = node.connection::<F>(&data.flow()).unwrap().last_seen;
                    node.set_next_hop::<F>(&to, hop);
                    let sent = node.run_xdp(&data.bytes());
                    if node.connection::<F>(&data.flow()).unwrap().last_seen == hop.asked {
                        assert_eq!(&sent.packet[..6], &elsewhere, "while the second lasts");
                        break;
                    }
                }

                let long_ago = Coarse(hop.asked.0.saturating_sub(5));
                node.set_next_hop::<F>(&to, NextHopValue { asked: long_ago, ..hop });
                let sent = node.run_xdp(&data.bytes());
                assert_eq!((sent.code, &sent.packet[..6]), (XDP_TX, &packet::FAR_MAC[..]), "asked anew");

                loop {
                    let asked = node.connection::<F>(&data.flow()).unwrap().last_seen;
                    node.set_next_hop::<F>(&to, NextHopValue { asked, mtu: 30, ..hop });
                    let sent = node.run_xdp(&data.bytes());
                    if sent.code == XDP_TX {
                        assert_eq!(&sent.packet[..6], &packet::FAR_MAC, "too large for it: asked anew");
                        break;
                    }
                }

                for strange in
                    [NextHopValue { from: hop.from + 1, ..hop }, NextHopValue { src: to.dst, ..hop }]
                {
                    let asked = node.connection::<F>(&data.flow()).unwrap().last_seen;
                    node.set_next_hop::<F>(&to, NextHopValue { asked, ..strange });
                    let sent = node.run_xdp(&data.bytes());
                    assert_eq!(&sent.packet[..6], &packet::FAR_MAC, "the way of others");
                }
            }

            /// The bit is what decides: it is written before the frontend, and taken away after it.
            pub(super) fn a_port_that_no_frontend_has_is_not_looked_up() {
                let mut node = serve(&[(F::POD, true)]);
                node.clear_ports();
                let request = Packet::tcp(CLIENT, VIP, SYN).bytes();
                assert_eq!(node.run_xdp(&request), passed(&request));
                assert_eq!(packets(&node), BTreeMap::new());
                let ran = node.run_tc(Hook::FromNetwork, &request);
                assert_eq!((ran.code, ran.packet), (UNSPEC, request));
            }

            pub(super) fn what_xdp_cannot_do_leaves_it_as_it_came() {
                let small = Packet::tcp(CLIENT, VIP, SYN);
                let large = Packet::tcp(CLIENT, VIP, ACK).with_payload(&[1; 1400]).bytes();
                let nobody = [];
                let rows: [(&str, &[(IpAddr, bool)], Vec<u8>); 5] = [
                    ("no backend, TCP", &nobody, small.bytes()),
                    ("no backend, UDP", &nobody, Packet::udp(CLIENT, VIP, b"?").bytes()),
                    ("no route", &[(F::NOWHERE, false)], small.bytes()),
                    ("too large", &[(F::NARROW_POD, false)], large),
                    ("a neighbour that nobody knows", &[(F::REMOTE_POD, false)], small.bytes()),
                ];
                for (name, backends, packet) in rows {
                    let mut node = serve(backends);
                    node.let_narrow_take_frames();
                    ip("neigh del 192.0.2.1 dev uplink0\nneigh del 2001:db8:2::1 dev uplink0\n");
                    assert_eq!(node.run_xdp(&packet), passed(&packet), "{name}");
                    assert_eq!(packets(&node), [(Verdict::HandedOn, 1)].into(), "{name}");
                    assert_eq!(node.connections::<F>(), 0, "{name}");
                }
                let mut node = serve(&[(F::REMOTE_POD, false)]);
                let last_hop = small.with_ttl(1).bytes();
                assert_eq!(node.run_xdp(&last_hop), passed(&last_hop), "no hop left");
            }

            pub(super) fn silent_drops_need_no_socket_buffer() {
                let mut node = serve_with(&[(F::POD, true)], FrontendFlags::SOURCE_RANGES);
                let request = Packet::tcp(CLIENT, VIP, SYN).bytes();
                assert_eq!(node.run_xdp(&request).code, XDP_DROP);
                assert_eq!(packets(&node), [(Verdict::SourceRange, 1)].into());
            }

            pub(super) fn what_is_not_ours_is_left_to_tc_to_count() {
                let mut node = serve(&[(F::POD, true)]);
                let mut arp = Packet::tcp(CLIENT, VIP, SYN).bytes();
                arp[12..14].copy_from_slice(&[0x08, 0x06]);
                let other = Packet::tcp(CLIENT, (F::VIP, 81), SYN).bytes();
                for packet in [&arp, &other] {
                    assert_eq!(node.run_xdp(packet), passed(packet));
                }
                assert_eq!(packets(&node), BTreeMap::new());
            }

            /// Larger than a page: the kernel hands it over in several buffers.
            pub(super) fn a_packet_of_several_buffers_is_translated() {
                let mut node = serve(&[(F::POD, true)]);
                let question = Packet::udp(CLIENT, VIP, &[7; 8000]);
                let ran = node.run_xdp(&question.bytes());
                assert_eq!(ran.code, XDP_PASS);
                assert_eq!(Packet::decode(&ran.packet), Packet { dst: (F::POD, 8080), ..question.clone() });
                let bytes = question.bytes().len() as u64;
                assert_eq!(node.all_verdicts(), [(Verdict::Translated, (1, bytes))].into());
            }
        }
    };
}

cases!(cases4, V4);
cases!(cases6, V6);

both_families! {
    what_xdp_translates_tc_leaves_as_it_is
    a_frame_goes_back_by_the_device_it_came_by
    a_frame_leaves_by_another_device_only_if_that_takes_frames
    the_way_to_a_neighbour_is_remembered_for_a_second
    a_port_that_no_frontend_has_is_not_looked_up
    what_xdp_cannot_do_leaves_it_as_it_came
    silent_drops_need_no_socket_buffer
    what_is_not_ours_is_left_to_tc_to_count
    a_packet_of_several_buffers_is_translated
}
