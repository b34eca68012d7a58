//! The kernel program and the host build of the same formulas decide alike on random packets: the slot a flow gets,
//! the checksums, and whether a connection's entry still holds. Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{collections::BTreeSet, net::IpAddr};

use lb_agent::desired::maglev::TableSize;
use lb_common::{
    conntrack::{Coarse, ConnectionValue, Membership, Phase, Reuse, TcpFlags, reuse},
    family::{Address as _, Family, Protocol, V4, V6},
    frontend::{FrontendFlags, Run},
    id::BackendId,
    maglev, sctp,
};
use lb_tests::{
    packet::{Packet, Tcp, Transport},
    prog::{Hook, Node, Places, Server, Service, UNSPEC},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

const PORT: u16 = 80;
const PACKETS: u32 = 2_000;

/// A generator whose seed is printed, so that a failure can be run again.
fn rng() -> StdRng {
    let seed = rand::rng().random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn random_ip<F: Family>(rng: &mut StdRng) -> IpAddr {
    if F::BITS == 32 {
        IpAddr::V4(rng.random::<u32>().into())
    } else {
        // 2000::/3, so that no address is taken for a mapped one.
        IpAddr::V6(((rng.random::<u128>() >> 3) | 1 << 125).into())
    }
}

fn random_packet<F: Places>(rng: &mut StdRng, protocol: Protocol) -> Packet {
    let client = (random_ip::<F>(rng), rng.random_range(1..=u16::MAX));
    let vip = (F::VIP, PORT);
    let tcp = Tcp { syn: true, seq: rng.random(), ..Tcp::default() };
    let (packet, len) = match protocol {
        Protocol::SCTP => (Packet::sctp(client, vip, sctp::INIT), rng.random_range(0..350) * 4),
        _ => (Packet::tcp(client, vip, tcp), rng.random_range(0..64)),
    };
    let payload: Vec<u8> = (0..len).map(|_| rng.random()).collect();
    packet.with_payload(&payload).with_ttl(rng.random_range(2..=255))
}

/// Flags, or a chunk, and what the datapath takes them for.
fn random_words(rng: &mut StdRng, protocol: Protocol) -> (Transport, TcpFlags) {
    if protocol == Protocol::SCTP {
        let chunk = rng.random_range(0..20);
        return (Transport::Sctp(chunk), sctp::flags(chunk));
    }
    let tcp =
        Tcp { syn: rng.random(), ack: rng.random(), fin: rng.random(), rst: rng.random(), ..Tcp::default() };
    (Transport::Tcp(tcp), flags(tcp))
}

/// Seven backends behind a frontend that chooses by the flow's hash.
macro_rules! agreement {
    ($module:ident, $F:ident) => {
        mod $module {
            use super::*;

            type F = $F;

            fn service(protocol: Protocol) -> Service {
                let backends: Vec<Server> =
                    (0..7).map(|index| Server { addr: (F::POD, 8000 + index), local: true }).collect();
                let service = Service::new((F::VIP, PORT), protocol, &backends);
                Service { flags: FrontendFlags::MAGLEV, base: 100, ..service }
            }

            /// The packet decoder recomputes every checksum.
            #[test]
            fn on_the_slot_of_a_flow_and_its_checksums() {
                slots_and_checksums(Protocol::TCP);
            }

            #[test]
            fn on_the_slot_of_a_flow_and_its_checksums_sctp() {
                slots_and_checksums(Protocol::SCTP);
            }

            fn slots_and_checksums(protocol: Protocol) {
                let mut rng = rng();
                let mut node = Node::start();
                let service = service(protocol);
                node.serve::<F>(&service);
                let run = Run { base: service.base, count: service.backends.len() as u32 };
                for _ in 0..PACKETS {
                    let packet = random_packet::<F>(&mut rng, protocol);
                    let ran = node.run(Hook::FromNetwork, &packet.bytes());
                    assert_eq!(ran.code, UNSPEC, "{packet:?}");
                    let slot = maglev::slot(run, service.flags, packet.flow::<F>().hash(0), 0);
                    let expected = service.backends[(slot - service.base) as usize].addr;
                    let decoded = Packet::decode(&ran.packet);
                    assert_eq!(decoded, Packet { dst: expected, src: decoded.src, ..packet.clone() });
                }
            }

            #[test]
            fn on_whether_an_entry_still_holds() {
                entries_that_hold(Protocol::TCP);
            }

            #[test]
            fn on_whether_an_entry_still_holds_sctp() {
                entries_that_hold(Protocol::SCTP);
            }

            fn entries_that_hold(protocol: Protocol) {
                let mut rng = rng();
                let mut node = Node::start();
                let service = service(protocol);
                node.serve::<F>(&service);
                let now = now();
                for _ in 0..PACKETS {
                    let mut packet = random_packet::<F>(&mut rng, protocol);
                    let (transport, flags) = random_words(&mut rng, protocol);
                    packet.transport = transport;
                    let entry = random_entry::<F>(&mut rng, &packet, now);
                    node.set_connection::<F>(&packet.flow(), entry);
                    // Backend 999 is no member; the generation differs, so that membership is asked for.
                    let gone = entry.backend == BackendId(999);
                    let membership = if gone { Membership::Gone } else { Membership::Serves };
                    let expected = reuse(&entry, protocol, flags, now, membership);
                    let ran = node.run(Hook::FromNetwork, &packet.bytes());
                    let kept = Packet::decode(&ran.packet).dst.1 == 1;
                    assert_eq!(kept, expected == Reuse::Keep, "{packet:?} {entry:?} at {now:?}");
                }
            }

            /// The same flow gets the same backend on nodes that know the backends by other ids, by other slots, and
            /// heard of them in another order.
            #[test]
            fn on_the_backend_of_a_flow_whatever_the_node() {
                let mut rng = rng();
                let packets: Vec<_> =
                    (0..PACKETS).map(|_| random_packet::<F>(&mut rng, Protocol::TCP)).collect();
                let mut there = service(Protocol::TCP);
                there.backends.reverse();
                let there = Service { id: 9, base: 300, ..there };
                let [here, there] =
                    [(service(Protocol::TCP), 1000), (there, 2000)].map(|(service, first_slot)| {
                        let mut node = Node::start();
                        node.serve::<F>(&service);
                        node.serve_by_table::<F>(&service, first_slot, TableSize::new(251).unwrap());
                        let chosen = |packet: &Packet| {
                            let ran = node.run(Hook::FromNetwork, &packet.bytes());
                            Packet::decode(&ran.packet).dst
                        };
                        packets.iter().map(chosen).collect::<Vec<_>>()
                    });
                assert_eq!(here, there);
                let used: BTreeSet<_> = here.into_iter().collect();
                assert_eq!(used.len(), 7, "every backend has its share");
            }

            /// An entry that leads to port 1, where no backend is: whether it was followed shows in the packet.
            fn random_entry<G: Places>(rng: &mut StdRng, packet: &Packet, now: Coarse) -> ConnectionValue<G> {
                let mut to = packet.flow::<G>().tuple;
                to.dst = G::Addr::from_ip(G::POD).unwrap();
                to.dst_port = lb_common::family::Be16::new(1);
                let phases = [Phase::OPENING, Phase::ESTABLISHED, Phase::FINISHED, Phase::RESET];
                // Whole steps away from the boundary of 60 s (56 units), which the clock may cross meanwhile.
                let age = [0, 1, 30, 50, 60, 100][rng.random_range(0..6)];
                ConnectionValue {
                    to,
                    service_port: lb_common::id::ServicePortId(1),
                    backend: BackendId(if rng.random() { 999 } else { 100 }),
                    generation: 5,
                    last_seen: Coarse(now.0.saturating_sub(age)),
                    phase: phases[rng.random_range(0..4)],
                    ..ConnectionValue::default()
                }
            }
        }
    };
}

agreement!(ipv4, V4);
agreement!(ipv6, V6);

fn flags(tcp: Tcp) -> TcpFlags {
    let bit = |set: bool, flag: TcpFlags| if set { flag.0 } else { 0 };
    TcpFlags(
        bit(tcp.fin, TcpFlags::FIN)
            | bit(tcp.syn, TcpFlags::SYN)
            | bit(tcp.rst, TcpFlags::RST)
            | bit(tcp.ack, TcpFlags::ACK),
    )
}

/// CLOCK_MONOTONIC as the programs see it.
fn now() -> Coarse {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) }, 0);
    Coarse::from_ns(time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned())
}
