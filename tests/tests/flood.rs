//! A flood of new flows on the real programs: what is established stays, who really connects is served
//! (docs/decisions/0009). Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_common::{
    conntrack::{ConnectionFlags, Phase},
    family::{Family, Protocol, V4, V6},
    frontend::{FrontendFlags, FrontendKind},
    id::BackendId,
    limits,
    sctp::{DATA, INIT, INIT_ACK},
};
use lb_tests::{
    both_families,
    cluster::At,
    objects::service,
    packet::{ACK, Icmp, Packet, RST, SYN, SYN_ACK, tunnelled},
    probe::Target,
    process::eventually,
    prog::{ENTRIES_MAX, Hook, LoadOptions, Node, Places, REDIRECT, SHOT, Server, Service, UNSPEC},
    scene::{Scene, cluster_ip, dual, ready},
};

/// Connections that a flood must not touch, fewer than [`THRESHOLD`].
const ESTABLISHED: u16 = 100;
const THRESHOLD: u32 = 200;
/// Five times what `CONNECTIONS` and `FLOOD` hold in tests.
const FLOOD: u32 = 5 * ENTRIES_MAX;
const TARGET: u16 = 8080;
/// Where a frame's EtherType begins.
const TYPE: usize = 12;
/// The chunks with which a client answers INIT ACK, and a server that (RFC 9260, 3.3.11 and 3.3.12).
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// The address of the `index`th forger.
fn forger<F: Family>(index: u32) -> IpAddr {
    match F::BITS {
        32 => Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + index).into(),
        _ => Ipv6Addr::from_bits((0x2001_0db8_0bad << 80) + u128::from(index)).into(),
    }
}

/// Type and code of "fragmentation needed" or "packet too big".
fn too_big<F: Family>() -> (u8, u8) {
    if F::BITS == 32 { (3, 4) } else { (2, 0) }
}

/// Keeps the thread on one CPU: rates and shares of maps are per CPU.
fn stay_on_one_cpu() {
    // SAFETY: all zeroes is an empty set; the calls read and write it within its size, and concern this thread only.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::try_from(libc::sched_getcpu()).unwrap(), &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(pinned, 0, "{}", std::io::Error::last_os_error());
}

/// The cases, expanded once per family: the bounds of map access hold for concrete families.
macro_rules! cases {
    ($module:ident, $F:ident) => {
        mod $module {
            use super::*;

            type F = $F;
            const VIP: (IpAddr, u16) = (F::VIP, 80);

            /// A node for which `threshold` new flows in a second are not yet a flood.
            fn start(threshold: u32, protocol: Protocol, backends: &[(IpAddr, bool)]) -> Node {
                start_with(
                    &LoadOptions { flood_threshold: threshold, ..LoadOptions::default() },
                    (protocol, FrontendFlags::default()),
                    backends,
                )
            }

            fn start_with(
                options: &LoadOptions<'_>,
                (protocol, flags): (Protocol, FrontendFlags),
                backends: &[(IpAddr, bool)],
            ) -> Node {
                stay_on_one_cpu();
                let mut node = Node::start_loaded(options);
                let backends: Vec<Server> =
                    backends.iter().map(|&(ip, local)| Server { addr: (ip, TARGET), local }).collect();
                let service = Service::new(VIP, protocol, &backends);
                node.serve::<F>(&Service { flags, affinity_timeout_s: 600, ..service });
                // The verifier takes longer than a flood lasts without flows.
                node.tc_program("tc_uplink_ingress");
                node.tc_program("tc_uplink_egress");
                node.xdp_program("xdp_uplink_frags");
                node
            }

            /// Runs a packet that must be translated, whoever sends it on.
            fn translate(node: &mut Node, hook: Hook, packet: &Packet) -> Packet {
                let ran = node.run(hook, &packet.bytes());
                assert!([UNSPEC, REDIRECT].contains(&ran.code), "{packet:?}: {:?}", node.verdicts());
                assert_ne!(ran.packet, packet.bytes(), "{packet:?}: {:?}", node.verdicts());
                Packet::decode(&ran.packet)
            }

            /// Where a backend's packets are translated: SNAT where they come in, else where they leave.
            fn way_back(server: (IpAddr, u16)) -> Hook {
                if server.0 == F::REMOTE_POD { Hook::FromNetwork } else { Hook::ToNetwork }
            }

            fn from_client(port: u16) -> Packet {
                Packet::tcp((F::CLIENT, port), VIP, SYN)
            }

            /// `count` SYNs, each from another address, beginning with forger `first`.
            fn flood(node: &mut Node, first: u32, count: u32) {
                for index in first..first + count {
                    node.run(Hook::FromNetwork, &Packet::tcp((forger::<F>(index), 1234), VIP, SYN).bytes());
                }
            }

            /// Floods until a client's SYN is taken for one of the flood: it, and what became of it.
            fn connect_in_flood(node: &mut Node, first: u32) -> (Packet, Packet) {
                let ports = 30_000 + u16::try_from(first / 1000).unwrap()..;
                for (first, port) in (first..first + 100_000).step_by(1000).zip(ports) {
                    flood(node, first, 2 * THRESHOLD);
                    let syn = from_client(port);
                    let sent = translate(node, Hook::FromNetwork, &syn);
                    if node.flood_entry::<F>(&syn.flow()).is_some() {
                        return (syn, sent);
                    }
                }
                panic!("no flood in {:?}", node.flood_flows());
            }

            /// Connections that are still there after a flood, of [`ESTABLISHED`] that were quiet meanwhile.
            fn survivors(threshold: u32) -> (usize, Node) {
                let mut node = start(threshold, Protocol::TCP, &[(F::POD, true), (F::REMOTE_POD, false)]);
                let ports = 20_000..20_000 + ESTABLISHED;
                for port in ports.clone() {
                    translate(&mut node, Hook::FromNetwork, &from_client(port));
                    let ack = Packet::tcp((F::CLIENT, port), VIP, ACK);
                    translate(&mut node, Hook::FromNetwork, &ack);
                }
                assert_eq!(node.connections::<F>(), 2 * usize::from(ESTABLISHED));
                flood(&mut node, 0, FLOOD);
                let whole = ports.filter(|port| {
                    node.connection::<F>(&from_client(*port).flow()).is_some_and(|entry| {
                        entry.phase == Phase::ESTABLISHED
                            && node
                                .connection::<F>(&lb_common::flow::FlowKey::new(
                                    entry.to.reversed(),
                                    Protocol::TCP,
                                ))
                                .is_some()
                    })
                });
                (whole.count(), node)
            }

            pub(super) fn a_flood_evicts_no_established_connection() {
                let (survivors, mut node) = survivors(THRESHOLD);
                assert_eq!(survivors, usize::from(ESTABLISHED));
                let (recorded, promoted) = node.flood_flows();
                assert!(recorded > u64::from(FLOOD / 2) && promoted == 0, "{recorded} {promoted}");
                assert!(node.flood_entries::<F>() > 0);
                let answer =
                    translate(&mut node, Hook::FromNetwork, &Packet::tcp((F::CLIENT, 20_000), VIP, ACK));
                assert!([F::POD, F::REMOTE_POD].contains(&answer.dst.0));
            }

            pub(super) fn without_it_they_would_be_evicted() {
                let (survivors, mut node) = survivors(0);
                assert!(survivors < usize::from(ESTABLISHED / 2), "{survivors}");
                assert_eq!((node.flood_flows(), node.flood_entries::<F>()), ((0, 0), 0));
            }

            /// From SYN to data, with the flood going on between any two packets; then that of CONNECTIONS too.
            pub(super) fn who_connects_in_a_flood_is_served() {
                const PAUSE: u32 = 20;
                for backend in [(F::POD, true), (F::REMOTE_POD, false)] {
                    let mut node = start(THRESHOLD, Protocol::TCP, &[backend]);
                    let (syn, sent) = connect_in_flood(&mut node, 0);
                    assert_eq!(sent.dst, (backend.0, TARGET));
                    flood(&mut node, 200_000, PAUSE);
                    assert_eq!(translate(&mut node, Hook::FromNetwork, &syn), sent, "sent again");
                    let back = |flags| Packet::tcp(sent.dst, sent.src, flags);
                    let answer = translate(&mut node, way_back(sent.dst), &back(SYN_ACK));
                    assert_eq!((answer.src, answer.dst), (VIP, syn.src));
                    flood(&mut node, 210_000, PAUSE);
                    let ack = Packet::tcp(syn.src, VIP, ACK).with_payload(b"GET");
                    assert_eq!(translate(&mut node, Hook::FromNetwork, &ack).src, sent.src);
                    assert_eq!(node.flood_flows().1, 0, "the client alone proves nothing");
                    flood(&mut node, 220_000, PAUSE);
                    let answer = translate(&mut node, way_back(sent.dst), &back(ACK));
                    assert_eq!((answer.src, answer.dst), (VIP, syn.src));
                    assert_eq!(node.flood_flows().1, 1);
                    for flow in [syn.flow::<F>(), back(ACK).flow()] {
                        let entry = node.connection::<F>(&flow).expect("a connection");
                        assert_eq!(entry.phase, Phase::ESTABLISHED);
                        assert_eq!(entry.flags.has(ConnectionFlags::SNAT), !backend.1);
                        assert!(node.flood_entry::<F>(&flow).is_none(), "in one place only");
                    }
                    flood(&mut node, 300_000, FLOOD);
                    let data = translate(&mut node, Hook::FromNetwork, &ack);
                    assert_eq!((data.src, data.dst), (sent.src, sent.dst));
                }
            }

            pub(super) fn forged_handshakes_do_not_become_connections() {
                let mut node = start(THRESHOLD, Protocol::TCP, &[(F::POD, true)]);
                for first in (0..10).map(|round| 100_000 * round) {
                    let (syn, sent) = connect_in_flood(&mut node, first);
                    translate(&mut node, Hook::ToNetwork, &Packet::tcp(sent.dst, sent.src, SYN_ACK));
                    translate(&mut node, Hook::FromNetwork, &Packet::tcp(syn.src, VIP, ACK));
                    let reset = Packet::tcp(sent.dst, sent.src, RST);
                    translate(&mut node, Hook::ToNetwork, &reset);
                    for flow in [syn.flow::<F>(), reset.flow()] {
                        assert!(
                            node.connection::<F>(&flow).is_none() && node.flood_entry::<F>(&flow).is_some()
                        );
                    }
                }
                assert_eq!(node.flood_flows().1, 0);
            }

            /// The hash finds the backend again; the client kept its address, so the backend knows the packet.
            pub(super) fn a_flow_that_the_flood_drove_out_keeps_its_backend() {
                let pods: Vec<(IpAddr, bool)> =
                    vec![(F::POD, true), (F::NODE, true), (F::OTHER_CLIENT, true)];
                let mut node = start(THRESHOLD, Protocol::TCP, &pods);
                for first in (0..20).map(|round| 100_000 * round) {
                    let (syn, sent) = connect_in_flood(&mut node, first);
                    flood(&mut node, first + 50_000, ENTRIES_MAX);
                    assert!(node.flood_entry::<F>(&syn.flow()).is_none(), "driven out");
                    let again = translate(&mut node, Hook::FromNetwork, &Packet::tcp(syn.src, VIP, ACK));
                    assert_eq!((again.src, again.dst), (sent.src, sent.dst));
                }
            }

            pub(super) fn datagrams_become_a_connection_when_they_last() {
                for backend in [(F::POD, true), (F::REMOTE_POD, false)] {
                    let mut node = start(1, Protocol::UDP, &[backend]);
                    let client = (F::CLIENT, 30_000);
                    for index in 0..20 {
                        let question = Packet::udp((forger::<F>(index), 53), VIP, b"?");
                        translate(&mut node, Hook::FromNetwork, &question);
                    }
                    let question = Packet::udp(client, VIP, b"question");
                    let sent = translate(&mut node, Hook::FromNetwork, &question);
                    assert_eq!(translate(&mut node, Hook::FromNetwork, &question), sent);
                    assert_eq!(node.flood_flows().1, 0, "nobody has answered");
                    let answer = Packet::udp(sent.dst, sent.src, b"answer");
                    for _ in 0..2 {
                        let answered = translate(&mut node, way_back(sent.dst), &answer);
                        assert_eq!((answered.src, answered.dst), (VIP, client));
                        assert!(node.connection::<F>(&question.flow()).is_none(), "nobody has asked again");
                    }
                    assert_eq!(translate(&mut node, Hook::FromNetwork, &question), sent);
                    assert_eq!(node.flood_flows().1, 1);
                    for flow in [question.flow::<F>(), answer.flow()] {
                        assert!(
                            node.connection::<F>(&flow).is_some() && node.flood_entry::<F>(&flow).is_none()
                        );
                    }
                }
            }

            /// COOKIE ACK says that the client has echoed the right cookie; what it sends then moves the association.
            pub(super) fn an_association_becomes_a_connection_after_its_handshake() {
                for backend in [(F::POD, true), (F::REMOTE_POD, false)] {
                    let mut node = start(1, Protocol::SCTP, &[backend]);
                    for index in 0..20 {
                        let init = Packet::sctp((forger::<F>(index), 36_412), VIP, INIT);
                        translate(&mut node, Hook::FromNetwork, &init.with_payload(&[7; 16]));
                    }
                    let client = (F::CLIENT, 30_000);
                    let init = Packet::sctp(client, VIP, INIT).with_payload(&[7; 16]);
                    let sent = translate(&mut node, Hook::FromNetwork, &init);
                    assert!(node.flood_entry::<F>(&init.flow()).is_some());
                    let answer = Packet::sctp(sent.dst, sent.src, INIT_ACK).with_payload(&[9; 300]);
                    for (answer, chunk, moved) in [
                        (answer.clone(), COOKIE_ECHO, 0),
                        (Packet::sctp(sent.dst, sent.src, COOKIE_ACK), DATA, 1),
                    ] {
                        let answered = translate(&mut node, way_back(sent.dst), &answer);
                        assert_eq!((answered.src, answered.dst), (VIP, client));
                        let next = Packet::sctp(client, VIP, chunk).with_payload(&[9; 280]);
                        let next = translate(&mut node, Hook::FromNetwork, &next);
                        assert_eq!((next.src, next.dst), (sent.src, sent.dst));
                        assert_eq!(node.flood_flows().1, moved);
                    }
                    for flow in [init.flow::<F>(), answer.flow()] {
                        assert!(
                            node.connection::<F>(&flow).is_some() && node.flood_entry::<F>(&flow).is_none()
                        );
                    }
                }
            }

            /// The answers pass elsewhere, so the client's word counts, and there is one entry.
            pub(super) fn a_flow_in_a_tunnel_becomes_a_connection_when_it_goes_on() {
                let mut node = start_with(
                    &LoadOptions { flood_threshold: 1, ..LoadOptions::default() },
                    (Protocol::TCP, FrontendFlags::DSR),
                    &[(F::REMOTE_POD, false)],
                );
                let server = Server { addr: (F::REMOTE_POD, TARGET), local: false };
                node.reach_at::<F>(&Service::new(VIP, Protocol::TCP, &[server]), &[F::OTHER_NODE]);
                flood(&mut node, 0, 20);
                let (syn, ack) = (from_client(30_000), Packet::tcp((F::CLIENT, 30_000), VIP, ACK));
                let in_tunnel = |node: &mut Node, packet: &Packet| {
                    let ran = node.run(Hook::FromNetwork, &packet.bytes());
                    assert_eq!(
                        ran.packet[TYPE..],
                        tunnelled(&packet.bytes(), F::NODE, F::OTHER_NODE)[TYPE..]
                    );
                };
                for _ in 0..2 {
                    in_tunnel(&mut node, &syn);
                    assert!(node.flood_entry::<F>(&syn.flow()).is_some(), "a SYN proves nothing");
                }
                let before = node.connections::<F>();
                in_tunnel(&mut node, &ack);
                assert_eq!((node.flood_flows().1, node.connections::<F>()), (1, before + 1));
                let entry = node.connection::<F>(&syn.flow()).expect("is a connection");
                assert!(entry.flags.has(ConnectionFlags::TUNNEL));
            }

            /// A datagram that is one of a flood of them, and what it becomes.
            fn asked_in_a_flood(node: &mut Node) -> (Packet, Packet) {
                for index in 0..20 {
                    let other = Packet::udp((forger::<F>(index), 53), VIP, b"?");
                    translate(node, Hook::FromNetwork, &other);
                }
                let question = Packet::udp((F::CLIENT, 30_000), VIP, b"question");
                let sent = translate(node, Hook::FromNetwork, &question);
                assert!(node.flood_entry::<F>(&question.flow()).is_some());
                (question, sent)
            }

            /// Spec 12A.50, of flows that are in `FLOOD`: in both directions, with and without SNAT.
            pub(super) fn errors_about_flows_of_a_flood_are_translated() {
                for backend in [(F::POD, true), (F::REMOTE_POD, false)] {
                    let mut node = start(1, Protocol::UDP, &[backend]);
                    let (question, sent) = asked_in_a_flood(&mut node);
                    // Where answers are translated an error about the question is, and the other way round.
                    let told = |node: &mut Node, hook, about: &Packet| {
                        let ran = node
                            .run(hook, &Icmp::about(F::ROUTER, &about.bytes(), too_big::<F>(), 1300).bytes());
                        let told = Icmp::decode(&ran.packet);
                        (told.src, told.dst, told.payload)
                    };
                    let quoted = |packet: &Packet, ttl| packet.clone().with_ttl(ttl).bytes()[14..].to_vec();
                    let (src, dst, payload) = told(&mut node, way_back(sent.dst), &sent);
                    assert_eq!((src, dst, payload), (F::VIP, F::CLIENT, quoted(&question, sent.ttl)));
                    let answer = Packet::udp(sent.dst, sent.src, b"answer");
                    let answered = translate(&mut node, way_back(sent.dst), &answer);
                    let (src, dst, payload) = told(&mut node, Hook::FromNetwork, &answered);
                    let router = if backend.1 { F::ROUTER } else { F::NODE };
                    assert_eq!((src, dst, payload), (router, sent.dst.0, quoted(&answer, answered.ttl)));
                    assert_eq!(node.flood_flows().1, 0, "an error proves nothing");
                }
            }

            /// The error comes back to the node that was dialled and goes where the flow goes; there it is translated.
            pub(super) fn errors_about_flows_of_a_flood_pass_tunnels() {
                let options = LoadOptions { flood_threshold: 1, ..LoadOptions::default() };
                let answer = Packet::tcp(VIP, (F::CLIENT, 30_000), SYN_ACK).bytes();
                let error = Icmp::about(F::ROUTER, &answer, too_big::<F>(), 1300).bytes();
                let flags = (Protocol::TCP, FrontendFlags::DSR);
                let mut node = start_with(&options, flags, &[(F::REMOTE_POD, false)]);
                let server = Server { addr: (F::REMOTE_POD, TARGET), local: false };
                node.reach_at::<F>(&Service::new(VIP, Protocol::TCP, &[server]), &[F::OTHER_NODE]);
                flood(&mut node, 0, 20);
                node.run(Hook::FromNetwork, &from_client(30_000).bytes());
                let ran = node.run(Hook::FromNetwork, &error);
                assert_eq!(ran.packet[TYPE..], tunnelled(&error, F::NODE, F::OTHER_NODE)[TYPE..]);

                let mut node = start_with(&options, flags, &[(F::POD, true)]);
                node.peer::<F>(F::OTHER_NODE, F::BITS);
                let arriving = |packet: &[u8]| tunnelled(packet, F::OTHER_NODE, F::NODE);
                for index in 0..20 {
                    let syn = Packet::tcp((forger::<F>(index), 1234), VIP, SYN);
                    node.run(Hook::FromNetwork, &arriving(&syn.bytes()));
                }
                node.run(Hook::FromNetwork, &arriving(&from_client(30_000).bytes()));
                assert!(node.flood_entry::<F>(&from_client(30_000).flow()).is_some());
                let ran = node.run(Hook::FromNetwork, &arriving(&error));
                assert_eq!(Icmp::decode(&ran.packet).dst, F::POD);
            }

            pub(super) fn affinity_binds_who_has_proved_to_be_a_client() {
                let options = LoadOptions { flood_threshold: 1, ..LoadOptions::default() };
                let flags = (Protocol::TCP, FrontendFlags::AFFINITY);
                let mut node = start_with(&options, flags, &[(F::POD, true)]);
                flood(&mut node, 0, 20);
                let first = node.affinity::<F>().len();
                let syn = from_client(30_000);
                let sent = translate(&mut node, Hook::FromNetwork, &syn);
                assert_eq!(node.affinity::<F>().len(), first, "not for a SYN");
                translate(&mut node, Hook::ToNetwork, &Packet::tcp(sent.dst, sent.src, ACK));
                assert_eq!(node.affinity::<F>().len(), first + 1);
            }

            /// Spec 3.5: the hash chooses only for those who are not bound yet.
            pub(super) fn a_client_that_is_bound_keeps_its_backend() {
                let options = LoadOptions { flood_threshold: 1, ..LoadOptions::default() };
                let flags = (Protocol::TCP, FrontendFlags::AFFINITY);
                let pods = [(F::POD, true), (F::NODE, true), (F::OTHER_CLIENT, true), (F::REMOTE_POD, false)];
                let mut node = start_with(&options, flags, &pods);
                let bound = translate(&mut node, Hook::FromNetwork, &from_client(20_000)).dst;
                flood(&mut node, 0, 20);
                for port in 30_000..30_016 {
                    let sent = translate(&mut node, Hook::FromNetwork, &from_client(port));
                    assert!(node.flood_entry::<F>(&from_client(port).flow()).is_some());
                    assert_eq!(sent.dst, bound);
                }
            }

            /// Spec 7.4 to 7.6: a flow goes on to another backend when its own no longer serves, recorded where it may.
            pub(super) fn datagrams_leave_a_backend_that_no_longer_serves() {
                let mut node = start(1, Protocol::UDP, &[(F::POD, true), (F::OTHER_CLIENT, true)]);
                let (question, sent) = asked_in_a_flood(&mut node);
                let (gone, other, stays) =
                    if sent.dst.0 == F::POD { (1, 2, F::OTHER_CLIENT) } else { (2, 1, F::POD) };
                let server = Server { addr: (stays, TARGET), local: true };
                let service = Service { base: other, ..Service::new(VIP, Protocol::UDP, &[server]) };
                node.serve::<F>(&service);
                node.leave(&service, BackendId(gone));
                let sent = translate(&mut node, Hook::FromNetwork, &question);
                assert_eq!((sent.src, sent.dst), (question.src, (stays, TARGET)));
            }

            /// Spec 1.52, 5.1, 5.4: who may not, and who finds nobody, leaves no trace in `FLOOD`.
            pub(super) fn refusals_are_the_same() {
                let mut node = start(1, Protocol::TCP, &[(F::POD, true)]);
                let server = Server { addr: (F::POD, TARGET), local: true };
                let another = |id, port, backends: &[Server]| {
                    let service = Service::new((F::VIP, port), Protocol::TCP, backends);
                    Service { id, base: id * 8, kind: FrontendKind::LOAD_BALANCER, ..service }
                };
                let restricted = Service { flags: FrontendFlags::SOURCE_RANGES, ..another(2, 81, &[server]) };
                node.serve::<F>(&restricted);
                node.source_range::<F>(restricted.service_port(), F::CLIENT, F::BITS);
                node.serve::<F>(&another(3, 82, &[]));
                let silent = Service { flags: FrontendFlags::EXTERNAL_DROP, ..another(4, 83, &[]) };
                node.serve::<F>(&silent);
                flood(&mut node, 0, 20);
                let mut told = |from, port| {
                    let syn = Packet::tcp((from, 30_000), (F::VIP, port), SYN);
                    let code = node.run(Hook::FromNetwork, &syn.bytes()).code;
                    (code, node.flood_entry::<F>(&syn.flow()).is_some())
                };
                assert_eq!(told(F::CLIENT, 81), (UNSPEC, true));
                assert_eq!(told(F::OTHER_CLIENT, 81), (SHOT, false), "source ranges");
                assert_eq!(told(F::CLIENT, 82), (REDIRECT, false), "a RST");
                assert_eq!(told(F::CLIENT, 83), (SHOT, false), "policy Local without a local backend");
            }

            /// All source ports are taken: by flows that have proved nothing, but for one.
            pub(super) fn source_ports_of_unproved_flows_are_taken_over() {
                let options =
                    LoadOptions { flood_threshold: 1, snat_ports: Some(4), ..LoadOptions::default() };
                let flags = (Protocol::TCP, FrontendFlags::default());
                let mut node = start_with(&options, flags, &[(F::REMOTE_POD, false)]);
                let kept = translate(&mut node, Hook::FromNetwork, &from_client(30_000));
                translate(&mut node, Hook::FromNetwork, &Packet::tcp((F::CLIENT, 30_000), VIP, ACK));
                for index in 0..50 {
                    let syn = Packet::tcp((forger::<F>(index), 1234), VIP, SYN);
                    let sent = translate(&mut node, Hook::FromNetwork, &syn);
                    assert!((0..4).contains(&(sent.src.1 - limits::SNAT_PORT_MIN)));
                    assert_ne!(sent.src, kept.src, "a connection keeps its port");
                    let back =
                        translate(&mut node, Hook::FromNetwork, &Packet::tcp(sent.dst, sent.src, SYN_ACK));
                    assert_eq!(back.dst, syn.src, "the latest has it");
                }
            }

            pub(super) fn after_the_flood_flows_are_connections_again() {
                let mut node = start(5, Protocol::TCP, &[(F::POD, true)]);
                flood(&mut node, 0, 20);
                let mut port = 30_000;
                eventually("is a new flow a connection", Duration::from_secs(60), || {
                    port += 1;
                    translate(&mut node, Hook::FromNetwork, &from_client(port));
                    // Fewer than the threshold a second.
                    std::thread::sleep(Duration::from_millis(400));
                    Ok(node.connection::<F>(&from_client(port).flow()).is_some())
                })
                .unwrap();
            }
        }
    };
}

cases!(cases4, V4);
cases!(cases6, V6);

both_families! {
    a_flood_evicts_no_established_connection
    who_connects_in_a_flood_is_served
    ;
    without_it_they_would_be_evicted
    forged_handshakes_do_not_become_connections
    a_flow_that_the_flood_drove_out_keeps_its_backend
    datagrams_become_a_connection_when_they_last
    an_association_becomes_a_connection_after_its_handshake
    a_flow_in_a_tunnel_becomes_a_connection_when_it_goes_on
    errors_about_flows_of_a_flood_are_translated
    errors_about_flows_of_a_flood_pass_tunnels
    affinity_binds_who_has_proved_to_be_a_client
    a_client_that_is_bound_keeps_its_backend
    datagrams_leave_a_backend_that_no_longer_serves
    refusals_are_the_same
    source_ports_of_unproved_flows_are_taken_over
    after_the_flood_flows_are_connections_again
}

/// Real sockets, when every flow is one of a flood; what `status`, metrics and log say of it.
#[test]
fn real_clients_are_served_in_a_flood() -> Result<()> {
    let mut scene =
        Scene::prepared(|agent| agent.set_extra_args(&["--socket-lb", "false", "--flood-threshold", "1"]))?;
    scene.cluster.apply("s.yaml", &(service("s", &dual(50, "")) + &ready("s", &["a1", "b1"])))?;
    for target in cluster_ip(50)? {
        scene.cluster.route_to(target.to.ip(), "node-a")?;
        scene.reaches(&At::Client, target, &["a1", "b1"])?;
        scene.reaches(&At::pod("a2"), target, &["a1", "b1"])?;
    }
    let client = scene.cluster.probe(&At::Client)?;
    for address in ["10.96.0.50:80", "[fd00:96::50]:80"] {
        let kept = client.open(Target::http(address)?)??;
        let first = kept.ask()??;
        ensure!(client.fetch(Target::http(address)?, "/bytes?count=3000000")? == Ok(3_000_000), "{address}");
        ensure!(kept.ask()??.answer == first.answer, "{address}");
    }
    let agent = scene.cluster.agent("node-a")?;
    let status: serde_json::Value = serde_json::from_str(&agent.cli_text("status", &["-o", "json"])?)?;
    let counted = |name: &str| status["flood"][name].as_u64().unwrap_or(0);
    ensure!(counted("recorded") > 0 && counted("promoted") > 0, "{}", status["flood"]);
    ensure!(agent.cli_text("status", &[])?.contains("flows recorded apart"));
    eventually("is its end logged", Duration::from_secs(60), || {
        Ok(agent.log_tail().contains("the flood of new flows is over"))
    })
}
