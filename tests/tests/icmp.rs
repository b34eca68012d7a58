//! ICMP through the real programs (`BPF_PROG_TEST_RUN`): errors about packets of connections of ours are translated as
//! their other direction is, errors of our own tell senders what went wrong, echo requests to VIPs are answered. Whole
//! packets with their checksums, on IPv4 and IPv6. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use lb_common::{
    family::{Family, Protocol, V4, V6},
    frontend::FrontendFlags,
    settings::Settings,
    verdict::Verdict,
};
use lb_tests::{
    both_families,
    packet::{self, ACK, Icmp, Packet, RST, SYN, SYN_ACK, Tcp},
    prog::{Hook, Node, Places, REDIRECT, Ran, SHOT, Server, Service, UNSPEC},
};

const CLIENT_PORT: u16 = 40_000;
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const HOOKS: [Hook; 4] = [Hook::FromNetwork, Hook::ToNetwork, Hook::FromPod, Hook::ToPod];

fn tcp(src: (IpAddr, u16), dst: (IpAddr, u16), tcp: Tcp) -> Packet {
    Packet::tcp(src, dst, tcp)
}

fn untouched(packet: &[u8]) -> Ran {
    Ran { code: UNSPEC, packet: packet.to_vec() }
}

fn dropped(packet: &[u8]) -> Ran {
    Ran { code: SHOT, packet: packet.to_vec() }
}

/// What an error about `packet` quotes: everything from its IP header on.
fn quotation(packet: &Packet) -> Vec<u8> {
    packet.bytes()[14..].to_vec()
}

fn counts(node: &Node) -> BTreeMap<Verdict, u64> {
    node.verdicts().into_iter().map(|(verdict, (packets, _))| (verdict, packets)).collect()
}

/// Types and codes of a family (RFC 792, RFC 4443), and what errors of ours may be long.
trait Errors: Places {
    const TOO_BIG: (u8, u8);
    const TIME_EXCEEDED: (u8, u8);
    const PORT_UNREACHABLE: (u8, u8);
    const PARAMETER_PROBLEM: (u8, u8);
    const ECHO_REQUEST: (u8, u8);
    const ECHO_REPLY: (u8, u8);
    /// Bytes of an IP packet with an error of ours (RFC 1812, 4.3.2.3; RFC 4443, 2.4c).
    const LEN_MAX: usize;
    const HEADER_LEN: usize;
}

impl Errors for V4 {
    const TOO_BIG: (u8, u8) = (3, 4);
    const TIME_EXCEEDED: (u8, u8) = (11, 0);
    const PORT_UNREACHABLE: (u8, u8) = (3, 3);
    const PARAMETER_PROBLEM: (u8, u8) = (12, 0);
    const ECHO_REQUEST: (u8, u8) = (8, 0);
    const ECHO_REPLY: (u8, u8) = (0, 0);
    const LEN_MAX: usize = 576;
    const HEADER_LEN: usize = 20;
}

impl Errors for V6 {
    const TOO_BIG: (u8, u8) = (2, 0);
    const TIME_EXCEEDED: (u8, u8) = (3, 0);
    const PORT_UNREACHABLE: (u8, u8) = (1, 4);
    const PARAMETER_PROBLEM: (u8, u8) = (4, 0);
    const ECHO_REQUEST: (u8, u8) = (128, 0);
    const ECHO_REPLY: (u8, u8) = (129, 0);
    const LEN_MAX: usize = 1280;
    const HEADER_LEN: usize = 40;
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
            const ALL: [(u8, u8); 4] =
                [F::TOO_BIG, F::TIME_EXCEEDED, F::PORT_UNREACHABLE, F::PARAMETER_PROBLEM];

            fn serve(protocol: Protocol, server: Server) -> Node {
                let mut node = Node::start();
                node.serve::<F>(&Service::new(VIP, protocol, &[server]));
                node
            }

            fn local() -> Server {
                Server { addr: POD, local: true }
            }

            fn remote() -> Server {
                Server { addr: REMOTE, local: false }
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

            /// Runs an error that must come out as `expected`.
            fn tell(node: &mut Node, hook: Hook, error: &Icmp, code: u32, expected: &Icmp) {
                let ran = node.run(hook, &error.bytes());
                assert_eq!(ran.code, code, "{hook:?}: {:?}", node.verdicts());
                assert_eq!(&Icmp::decode(&ran.packet), expected, "{hook:?}");
            }

            /// Spec 12A.50. What a router says about a packet with the node's address goes to the client that sent it.
            pub(super) fn an_error_about_a_packet_with_a_node_address_reaches_the_client() {
                let mut node = serve(Protocol::TCP, remote());
                let request = tcp(CLIENT, VIP, ACK).with_payload(&[7; 100]);
                let sent = forward(&mut node, Hook::FromNetwork, &request);
                let request = request.with_ttl(sent.ttl);
                for kind in ALL {
                    let error = Icmp::about(F::ROUTER, &sent.bytes(), kind, 1300);
                    let expected = Icmp {
                        src: F::VIP,
                        dst: F::CLIENT,
                        ttl: 63,
                        payload: quotation(&request),
                        ..error.clone()
                    };
                    tell(&mut node, Hook::FromNetwork, &error, REDIRECT, &expected);
                    // Eight bytes of TCP are all that RFC 792 promises: ports, and no checksum.
                    let brief = F::HEADER_LEN + 8;
                    let (error, expected) = (error.quoting(brief), expected.quoting(brief));
                    tell(&mut node, Hook::FromNetwork, &error, REDIRECT, &expected);
                }
                assert_eq!(counts(&node)[&Verdict::Redirected], 9);
            }

            /// What a router says about an answer goes to the backend that sent it.
            pub(super) fn an_error_about_an_answer_reaches_the_remote_backend() {
                let mut node = serve(Protocol::UDP, remote());
                let sent = forward(&mut node, Hook::FromNetwork, &Packet::udp(CLIENT, VIP, b"?"));
                let reply = Packet::udp(REMOTE, sent.src, &[3; 600]);
                let answered = forward(&mut node, Hook::FromNetwork, &reply);
                let reply = reply.with_ttl(answered.ttl);
                for (kind, src) in [(F::TOO_BIG, F::ROUTER), (F::PORT_UNREACHABLE, F::CLIENT)] {
                    let error = Icmp::about(src, &answered.bytes(), kind, 1300);
                    let expected = Icmp {
                        src: F::NODE,
                        dst: F::REMOTE_POD,
                        ttl: 63,
                        payload: quotation(&reply),
                        ..error.clone()
                    };
                    tell(&mut node, Hook::FromNetwork, &error, REDIRECT, &expected);
                }
            }

            /// Both directions with a pod of this node: what the pod says leaves as the VIP's, what is said about its
            /// answers reaches it, from whom it came.
            pub(super) fn errors_pass_between_an_outside_client_and_a_local_pod() {
                let mut node = serve(Protocol::UDP, local());
                let request = Packet::udp(CLIENT, VIP, b"closed?");
                let translated = translate(&mut node, Hook::FromNetwork, &request);
                let error = Icmp::about(F::POD, &translated.bytes(), F::PORT_UNREACHABLE, 0);
                assert_eq!(node.run(Hook::FromPod, &error.bytes()), untouched(&error.bytes()));
                let expected = Icmp { src: F::VIP, payload: quotation(&request), ..error.clone() };
                tell(&mut node, Hook::ToNetwork, &error, UNSPEC, &expected);

                let reply = Packet::udp(POD, CLIENT, &[1; 900]);
                let answered = translate(&mut node, Hook::ToNetwork, &reply);
                let error = Icmp::about(F::ROUTER, &answered.bytes(), F::TOO_BIG, 1300);
                let expected = Icmp { dst: F::POD, payload: quotation(&reply), ..error.clone() };
                tell(&mut node, Hook::FromNetwork, &error, UNSPEC, &expected);
            }

            /// A pod's own packets, translated on its device: the error is translated there too.
            pub(super) fn an_error_about_a_pods_packet_reaches_the_pod() {
                let mut node = serve(Protocol::TCP, remote());
                let request = tcp((F::POD, CLIENT_PORT), VIP, SYN);
                let sent = translate(&mut node, Hook::FromPod, &request);
                let error = Icmp::about(F::ROUTER, &sent.bytes(), F::TOO_BIG, 1300);
                assert_eq!(node.run(Hook::FromNetwork, &error.bytes()), untouched(&error.bytes()));
                let expected = Icmp { src: F::VIP, payload: quotation(&request), ..error.clone() };
                tell(&mut node, Hook::ToPod, &error, UNSPEC, &expected);

                let reply = tcp(REMOTE, request.src, SYN_ACK);
                let answered = translate(&mut node, Hook::ToPod, &reply);
                let error = Icmp::about(F::POD, &answered.bytes(), F::PORT_UNREACHABLE, 0);
                let expected = Icmp { dst: F::REMOTE_POD, payload: quotation(&reply), ..error.clone() };
                tell(&mut node, Hook::FromPod, &error, UNSPEC, &expected);
            }

            /// A pod that is given itself (spec 4.25).
            pub(super) fn an_error_of_a_hairpin_reaches_the_pod() {
                let mut node = serve(Protocol::UDP, local());
                let request = Packet::udp((F::POD, CLIENT_PORT), VIP, b"me?");
                let sent = forward(&mut node, Hook::FromPod, &request);
                let error = Icmp::about(F::POD, &sent.bytes(), F::PORT_UNREACHABLE, 0);
                let payload = quotation(&request.with_ttl(sent.ttl));
                let expected = Icmp { src: F::VIP, dst: F::POD, ttl: 63, payload, ..error.clone() };
                tell(&mut node, Hook::FromPod, &error, REDIRECT, &expected);
            }

            /// The node's own process, where the socket hook left the packets alone.
            pub(super) fn an_error_about_the_nodes_own_packet_reaches_its_process() {
                for (server, hook, code) in
                    [(remote(), Hook::FromNetwork, UNSPEC), (local(), Hook::FromPod, REDIRECT)]
                {
                    let mut node = Node::start();
                    let flags = FrontendFlags::SOURCE_RANGES;
                    let service = Service { flags, ..Service::new(VIP, Protocol::UDP, &[server]) };
                    node.serve::<F>(&service);
                    node.source_range::<F>(service.service_port(), F::NODE, F::BITS);
                    let request = Packet::udp((F::NODE, CLIENT_PORT), VIP, b"?");
                    let sent = forward(&mut node, Hook::ToNetwork, &request);
                    let error = Icmp::about(server.addr.0, &sent.bytes(), F::PORT_UNREACHABLE, 0);
                    let payload = quotation(&request.with_ttl(sent.ttl));
                    let expected = Icmp { src: F::VIP, payload, ..error.clone() };
                    tell(&mut node, hook, &error, code, &expected);
                }
            }

            /// Another connection, another host's packet, another kind of message, too little quoted: bit for bit.
            pub(super) fn an_error_about_something_else_is_untouched() {
                let mut node = serve(Protocol::UDP, remote());
                let sent = forward(&mut node, Hook::FromNetwork, &Packet::udp(CLIENT, VIP, b"?"));
                let ours = Icmp::about(F::ROUTER, &sent.bytes(), F::TIME_EXCEEDED, 0);
                let unknown = Packet::udp((F::NODE, 9), REMOTE, b"other");
                let tcp = tcp(sent.src, REMOTE, SYN);
                let [_, later] =
                    packet::fragments(&Packet { payload: vec![0; 64], ..sent.clone() }.bytes(), 32);
                let others = [
                    Icmp::about(F::ROUTER, &unknown.bytes(), F::TIME_EXCEEDED, 0),
                    Icmp::about(F::ROUTER, &tcp.bytes(), F::TIME_EXCEEDED, 0),
                    Icmp::about(F::ROUTER, &later, F::TIME_EXCEEDED, 0),
                    Icmp { dst: F::CLIENT, ..ours.clone() },
                    Icmp { kind: F::ECHO_REPLY, ..ours.clone() },
                    ours.clone().quoting(F::HEADER_LEN + 2),
                    ours.clone().quoting(F::HEADER_LEN - 2),
                    ours.quoting(0),
                ];
                for other in others {
                    for hook in HOOKS {
                        let bytes = other.bytes();
                        assert_eq!(node.run(hook, &bytes), untouched(&bytes), "{hook:?}: {other:?}");
                    }
                }
                assert_eq!(counts(&node), [(Verdict::Redirected, 1)].into());
            }

            /// RFC 1122, 3.2.2; RFC 4443, 2.4e.
            pub(super) fn an_error_at_the_end_of_its_life_is_not_answered() {
                let mut node = serve(Protocol::TCP, remote());
                let sent = forward(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                let error = Icmp::about(F::ROUTER, &sent.bytes(), F::TOO_BIG, 1300);
                let bytes = Icmp { ttl: 1, ..error }.bytes();
                assert_eq!(node.run(Hook::FromNetwork, &bytes), dropped(&bytes));
                assert_eq!(counts(&node)[&Verdict::RefusedSilently], 1);
            }

            /// Priority tags, IPv4 options, IPv6 extension headers: of the error, and of what it quotes.
            pub(super) fn errors_with_longer_headers_are_understood() {
                let longer = |bytes: &[u8]| match F::BITS {
                    32 => packet::with_ipv4_options(bytes),
                    _ => packet::with_ipv6_extension(bytes),
                };
                let mut node = serve(Protocol::TCP, remote());
                let request = tcp(CLIENT, VIP, SYN);
                let sent = forward(&mut node, Hook::FromNetwork, &request);
                let error = Icmp::about(F::ROUTER, &longer(&sent.bytes()), F::TOO_BIG, 1300);
                let payload = longer(&request.with_ttl(sent.ttl).bytes())[14..].to_vec();
                let expected = Icmp { src: F::VIP, dst: F::CLIENT, ttl: 63, payload, ..error.clone() };
                for bytes in [packet::prioritized(&error.bytes()), longer(&error.bytes())] {
                    let ran = node.run(Hook::FromNetwork, &bytes);
                    assert_eq!((ran.code, ran.packet.len()), (REDIRECT, bytes.len()));
                    assert_eq!(Icmp::decode(&ran.packet), expected);
                }
            }

            /// What an error of ours quotes of a packet: as much as fits.
            fn quoted(packet: &Packet) -> Vec<u8> {
                let mut whole = quotation(packet);
                whole.truncate(F::LEN_MAX - F::HEADER_LEN - 8);
                whole
            }

            fn narrow() -> Server {
                Server { addr: (F::NARROW_POD, TARGET), local: false }
            }

            /// RFC 1191, RFC 8201: the sender learns what fits.
            pub(super) fn a_packet_larger_than_the_way_is_answered_with_the_mtu() {
                let mut node = serve(Protocol::TCP, narrow());
                let sent = forward(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
                let packet = tcp(CLIENT, VIP, ACK).with_payload(&[1; 1401]);
                let ran = node.run(Hook::FromNetwork, &packet.bytes());
                assert_eq!(ran.code, REDIRECT);
                assert_eq!(&ran.packet[..6], &packet::FAR_MAC, "back where it came from");
                let expected = Icmp {
                    src: F::NODE,
                    dst: F::CLIENT,
                    ttl: 64,
                    kind: F::TOO_BIG,
                    rest: 1280,
                    payload: quoted(&packet),
                };
                assert_eq!(Icmp::decode(&ran.packet), expected);
                assert_eq!(ran.packet.len(), 14 + F::LEN_MAX);
                // 1280 bytes exactly.
                let fits = tcp(CLIENT, VIP, ACK).with_payload(&vec![1; 1280 - F::HEADER_LEN - 20]);
                assert_eq!(forward(&mut node, Hook::FromNetwork, &fits).src, sent.src);
                assert_eq!(counts(&node), [(Verdict::Redirected, 2), (Verdict::TooBig, 1)].into());
            }

            /// A new flow whose first packet is too large, of a datagram sender.
            pub(super) fn a_first_packet_larger_than_the_way_is_answered_too() {
                let mut node = serve(Protocol::UDP, narrow());
                let packet = Packet::udp(CLIENT, VIP, &[1; 1403]);
                let ran = node.run(Hook::FromNetwork, &packet.bytes());
                assert_eq!(ran.code, REDIRECT);
                let told = Icmp::decode(&ran.packet);
                assert_eq!((told.kind, told.rest, told.payload), (F::TOO_BIG, 1280, quoted(&packet)));
                assert_eq!(counts(&node), [(Verdict::TooBig, 1)].into());
            }

            /// An answer that does not fit on its way to the client: the backend learns it, of what it sent.
            pub(super) fn an_answer_larger_than_the_way_is_answered_to_the_backend() {
                let mut node = serve(Protocol::UDP, remote());
                let client = (F::NARROW_POD, CLIENT_PORT);
                let sent = forward(&mut node, Hook::FromNetwork, &Packet::udp(client, VIP, b"?"));
                let reply = Packet::udp(REMOTE, sent.src, &[1; 1400]);
                let ran = node.run(Hook::FromNetwork, &reply.bytes());
                assert_eq!(ran.code, REDIRECT);
                let told = Icmp::decode(&ran.packet);
                assert_eq!((told.src, told.dst), (F::NODE, F::REMOTE_POD));
                assert_eq!((told.kind, told.rest, told.payload), (F::TOO_BIG, 1280, quoted(&reply)));
            }

            /// What the hardware will cut counts by its pieces.
            pub(super) fn a_large_packet_of_segments_that_fit_is_sent_on() {
                let mut node = serve(Protocol::TCP, remote());
                let large = tcp(CLIENT, VIP, ACK).with_payload(&[1; 3000]);
                let largest = 1500 - F::HEADER_LEN as u32 - 20;
                let ran = node.run_segmented(Hook::FromNetwork, &large.bytes(), largest);
                assert_eq!((ran.code, counts(&node)), (REDIRECT, [(Verdict::Redirected, 1)].into()));
                assert_eq!(Packet::decode(&ran.packet).dst, REMOTE);
                let ran = node.run_segmented(Hook::FromNetwork, &large.bytes(), largest + 1);
                assert_eq!((ran.code, counts(&node)[&Verdict::TooBig]), (REDIRECT, 1));
                assert_eq!(Icmp::decode(&ran.packet).rest, 1500);
            }

            /// RFC 792, RFC 4443, 3.3: a traceroute sees this node.
            pub(super) fn a_packet_at_the_end_of_its_life_is_answered() {
                let mut node = serve(Protocol::TCP, remote());
                for (ttl, packet) in [(1, tcp(CLIENT, VIP, SYN)), (0, tcp(CLIENT, VIP, SYN))] {
                    let packet = packet.with_ttl(ttl);
                    let ran = node.run(Hook::FromNetwork, &packet.bytes());
                    assert_eq!(ran.code, REDIRECT);
                    let expected = Icmp {
                        src: F::NODE,
                        dst: F::CLIENT,
                        ttl: 64,
                        kind: F::TIME_EXCEEDED,
                        rest: 0,
                        payload: quotation(&packet),
                    };
                    assert_eq!(Icmp::decode(&ran.packet), expected);
                }
                let reset = tcp(CLIENT, VIP, RST).with_ttl(1).bytes();
                assert_eq!(node.run(Hook::FromNetwork, &reset), dropped(&reset), "never answered");
                let expected = [(Verdict::TtlExceeded, 2), (Verdict::RefusedSilently, 1)];
                assert_eq!(counts(&node), expected.into());
            }

            /// RFC 4443, 2.4c: port unreachable too.
            pub(super) fn port_unreachable_quotes_as_much_as_fits() {
                let mut node = Node::start();
                node.serve::<F>(&Service::new(VIP, Protocol::UDP, &[]));
                for len in [0, 1, 2, 3, 63, 64, 65, 500, 1300] {
                    let packet = Packet::udp(CLIENT, VIP, &vec![9; len]);
                    let ran = node.run(Hook::FromPod, &packet.bytes());
                    let expected = Icmp {
                        src: F::VIP,
                        dst: F::CLIENT,
                        ttl: 64,
                        kind: F::PORT_UNREACHABLE,
                        rest: 0,
                        payload: quoted(&packet),
                    };
                    assert_eq!(Icmp::decode(&ran.packet), expected, "{len} bytes");
                }
            }

            /// RFC 4443, 2.4f. The bucket is each CPU's own.
            pub(super) fn answers_are_limited() {
                let cpus = std::thread::available_parallelism().unwrap().get() as u64;
                let mut node = Node::start();
                node.serve::<F>(&Service::new(VIP, Protocol::TCP, &[]));
                node.set_settings(Settings { refusals_per_second: 2, ..Settings::default() });
                let (started, packet) = (Instant::now(), tcp(CLIENT, VIP, SYN).bytes());
                let answered = (0..200).filter(|_| node.run(Hook::FromPod, &packet).code == REDIRECT).count();
                let answered = answered as u64;
                assert!(answered >= 2, "a second's worth at once");
                assert!(answered <= 2 * cpus * (2 + started.elapsed().as_secs()), "{answered}");
                let expected = [(Verdict::Refused, answered), (Verdict::RefusalLimit, 200 - answered)];
                assert_eq!(counts(&node), expected.into());
                node.set_settings(Settings::default());
                assert_eq!(node.run(Hook::FromPod, &packet).code, REDIRECT, "0: no limit");
            }

            fn echo(src: IpAddr, dst: IpAddr, len: usize) -> Icmp {
                let payload = (0..len).map(|byte| byte as u8).collect();
                Icmp { src, dst, ttl: 9, kind: F::ECHO_REQUEST, rest: 0x0102_0304, payload }
            }

            /// DESIGN 10, spec 12A.61.
            pub(super) fn an_echo_request_to_a_vip_is_answered() {
                let mut node = Node::start();
                node.vip::<F>(F::VIP);
                for (hook, src, len) in [
                    (Hook::FromNetwork, F::CLIENT, 56),
                    (Hook::FromPod, F::POD, 0),
                    (Hook::FromPod, F::POD, 1401),
                    (Hook::ToNetwork, F::NODE, 3),
                ] {
                    let request = echo(src, F::VIP, len);
                    let ran = node.run(hook, &request.bytes());
                    assert_eq!(ran.code, REDIRECT, "{hook:?}");
                    assert_eq!(&ran.packet[..6], &packet::FAR_MAC, "back where it came from");
                    let expected = Icmp { src: F::VIP, dst: src, ttl: 64, kind: F::ECHO_REPLY, ..request };
                    assert_eq!(Icmp::decode(&ran.packet), expected, "{hook:?}");
                }
                assert_eq!(counts(&node), [(Verdict::Echoed, 4)].into());
            }

            pub(super) fn an_echo_request_in_fragments_is_answered_in_fragments() {
                let mut node = Node::start();
                node.vip::<F>(F::VIP);
                let request = echo(F::CLIENT, F::VIP, 1000);
                let [first, second] = packet::fragments(&request.bytes(), 512);
                assert_eq!(node.run(Hook::FromNetwork, &second), untouched(&second), "before the first");
                let reply = Icmp { src: F::VIP, dst: F::CLIENT, ttl: 64, kind: F::ECHO_REPLY, ..request };
                let mut bytes = reply.bytes();
                bytes[..12].rotate_left(6);
                let [first_reply, second_reply] = packet::fragments(&bytes, 512);
                let answered = |packet| Ran { code: REDIRECT, packet };
                assert_eq!(node.run(Hook::FromNetwork, &first), answered(first_reply));
                assert_eq!(node.run(Hook::FromNetwork, &second), answered(second_reply));
            }

            /// An address of the node, one that is nobody's, and a pod that is given the packet: bit for bit.
            pub(super) fn other_echo_requests_are_untouched() {
                let mut node = Node::start();
                node.vip::<F>(F::VIP);
                node.vip::<F>(F::NODE);
                for dst in [F::NODE, F::OTHER_VIP, F::REMOTE_POD] {
                    for hook in HOOKS {
                        let bytes = echo(F::CLIENT, dst, 56).bytes();
                        assert_eq!(node.run(hook, &bytes), untouched(&bytes), "{hook:?}: {dst}");
                    }
                }
                let bytes = echo(F::CLIENT, F::VIP, 56).bytes();
                assert_eq!(node.run(Hook::ToPod, &bytes), untouched(&bytes));
                let reply = Icmp { kind: F::ECHO_REPLY, ..echo(F::CLIENT, F::VIP, 56) }.bytes();
                assert_eq!(node.run(Hook::FromNetwork, &reply), untouched(&reply));
                assert_eq!(counts(&node), BTreeMap::new());
            }

            /// DESIGN 10, spec 0.4, 12A.17, 12A.61: a VIP outside every ServiceCIDR.
            pub(super) fn an_unknown_port_of_a_vip_is_refused() {
                let mut node = serve(Protocol::TCP, local());
                node.vip::<F>(F::VIP);
                let own = (F::NODE, CLIENT_PORT);
                for (hook, from) in
                    [(Hook::FromNetwork, CLIENT), (Hook::FromPod, CLIENT), (Hook::ToNetwork, own)]
                {
                    let request = tcp(from, (F::VIP, 81), SYN);
                    let ran = node.run(hook, &request.bytes());
                    assert_eq!(ran.code, REDIRECT, "{hook:?}");
                    let reset = Tcp { rst: true, ack: true, ack_number: SYN.seq + 1, ..Tcp::default() };
                    assert_eq!(Packet::decode(&ran.packet), tcp((F::VIP, 81), from, reset));
                    let question = Packet::udp(from, VIP, b"?");
                    let ran = node.run(hook, &question.bytes());
                    assert_eq!((ran.code, Icmp::decode(&ran.packet).kind), (REDIRECT, F::PORT_UNREACHABLE));
                }
                assert_eq!(counts(&node), [(Verdict::Refused, 6)].into());
                translate(&mut node, Hook::FromNetwork, &tcp(CLIENT, VIP, SYN));
            }

            /// What is merely forwarded, other protocols, and a VIP that is an address of the node (12A.17).
            pub(super) fn nothing_else_of_a_vip_is_refused() {
                let mut node = serve(Protocol::TCP, local());
                node.vip::<F>(F::VIP);
                node.vip::<F>(F::NODE);
                let forwarded = tcp(CLIENT, (F::VIP, 81), SYN).bytes();
                for hook in [Hook::ToNetwork, Hook::ToPod] {
                    assert_eq!(node.run(hook, &forwarded), untouched(&forwarded), "{hook:?}");
                }
                let mut dccp = tcp(CLIENT, (F::VIP, 81), SYN).bytes();
                dccp[if F::BITS == 32 { 23 } else { 20 }] = 33;
                let own = tcp(CLIENT, (F::NODE, 22), SYN).bytes();
                for packet in [&dccp, &own] {
                    for hook in HOOKS {
                        assert_eq!(node.run(hook, packet), untouched(packet), "{hook:?}");
                    }
                }
                assert_eq!(counts(&node), [(Verdict::NotOurs, 6)].into());
            }
        }
    };
}

cases!(cases4, V4);
cases!(cases6, V6);

both_families! {
    an_error_about_a_packet_with_a_node_address_reaches_the_client
    an_error_about_an_answer_reaches_the_remote_backend
    errors_pass_between_an_outside_client_and_a_local_pod
    an_error_about_a_pods_packet_reaches_the_pod
    an_error_of_a_hairpin_reaches_the_pod
    an_error_about_the_nodes_own_packet_reaches_its_process
    an_error_about_something_else_is_untouched
    an_error_at_the_end_of_its_life_is_not_answered
    errors_with_longer_headers_are_understood
    a_packet_larger_than_the_way_is_answered_with_the_mtu
    a_first_packet_larger_than_the_way_is_answered_too
    an_answer_larger_than_the_way_is_answered_to_the_backend
    a_large_packet_of_segments_that_fit_is_sent_on
    a_packet_at_the_end_of_its_life_is_answered
    port_unreachable_quotes_as_much_as_fits
    answers_are_limited
    an_echo_request_to_a_vip_is_answered
    an_echo_request_in_fragments_is_answered_in_fragments
    other_echo_requests_are_untouched
    an_unknown_port_of_a_vip_is_refused
    nothing_else_of_a_vip_is_refused
}

/// IPv4 only: a quoted UDP datagram without a checksum (RFC 768) still has none.
#[test]
fn a_quoted_udp_checksum_of_zero_stays_zero() {
    let mut node = Node::start();
    let vip = (V4::VIP, PORT);
    let server = Server { addr: (V4::POD, TARGET), local: true };
    node.serve::<V4>(&Service::new(vip, Protocol::UDP, &[server]));
    let mut question = Packet::udp((V4::CLIENT, CLIENT_PORT), vip, b"no checksum").bytes();
    question[40..42].fill(0);
    let sent = node.run(Hook::FromNetwork, &question).packet;
    let error = Icmp::about(V4::POD, &sent, V4::PORT_UNREACHABLE, 0);
    let ran = node.run(Hook::ToNetwork, &error.bytes());
    assert_eq!(ran.code, UNSPEC);
    assert_eq!(Icmp::decode(&ran.packet), Icmp { src: V4::VIP, payload: question[14..].to_vec(), ..error });
}
