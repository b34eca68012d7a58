//! What is not ours leaves every program bit for bit as it came, however it looks: random packets of all kinds that networks
//! carry, whole, broken and cut, past a node that serves a frontend and has connections open (issue 4.3). Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::IpAddr;

use lb_common::family::{Protocol, V4, V6};
use lb_tests::{
    packet::{self, ACK, Icmp, Packet, SYN, Tcp},
    prog::{Hook, Node, Places, Server, Service, UNSPEC, XDP_PASS},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

const PORT: u16 = 80;
const PACKETS: u32 = 2_000;
/// The shortest that `BPF_PROG_TEST_RUN` takes: an Ethernet and an IPv6 header.
const SHORTEST: usize = 54;
const HOOKS: [Hook; 4] = [Hook::FromNetwork, Hook::ToNetwork, Hook::FromPod, Hook::ToPod];

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A packet between hosts and ports that no frontend and no connection has.
fn stranger<F: Places>(rng: &mut StdRng) -> Packet {
    let hosts =
        [F::CLIENT, F::OTHER_CLIENT, F::ROUTER, F::NODE, F::POD, F::REMOTE_POD, F::NARROW_POD, F::NOWHERE];
    let ports = [22, 53, PORT, 443, 8080, 30_080, 40_001, rng.random_range(50_000..=u16::MAX)];
    let mut end = || (*hosts.choose(rng).unwrap(), *ports.choose(rng).unwrap());
    let (src, dst) = (end(), end());
    let payload: Vec<u8> = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
    let packet = if rng.random() {
        Packet::udp(src, dst, &payload)
    } else {
        let tcp = Tcp { syn: rng.random(), ack: rng.random(), fin: rng.random(), rst: rng.random(), ..ACK };
        Packet::tcp(src, dst, tcp).with_payload(&payload)
    };
    packet.with_ttl(rng.random())
}

/// Dresses a packet as networks do, then maybe breaks it.
fn dressed<F: Places>(rng: &mut StdRng, packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes = match rng.random_range(0..6) {
        0 if F::BITS == 32 => packet::with_ipv4_options(&bytes),
        0 => packet::with_ipv6_extension(&bytes),
        1 if bytes.len() > SHORTEST + 100 => packet::fragments(&bytes, 64)[rng.random_range(0..2)].clone(),
        2 => {
            let kind = *[(3, 1), (3, 3), (11, 0), (1, 4), (2, 0), (128, 0)].choose(rng).unwrap();
            Icmp::about(F::ROUTER, &bytes, kind, rng.random()).bytes()
        }
        _ => bytes,
    };
    bytes = match rng.random_range(0..8) {
        0 => packet::prioritized(&bytes),
        1 => packet::in_vlan(&bytes),
        _ => bytes,
    };
    if rng.random() {
        for _ in 0..rng.random_range(1..=4) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
    }
    if rng.random_range(0..8) == 0 && bytes.len() > SHORTEST {
        bytes.truncate(rng.random_range(SHORTEST..bytes.len()));
    }
    bytes
}

macro_rules! untouched {
    ($name:ident, $F:ident) => {
        #[test]
        fn $name() {
            type F = $F;
            let mut node = Node::start();
            let backends = [
                Server { addr: (F::POD, 8080), local: true },
                Server { addr: (F::REMOTE_POD, 8080), local: false },
            ];
            node.serve::<F>(&Service::new((F::VIP, PORT), Protocol::TCP, &backends));
            for port in 40_100..40_116 {
                node.run(Hook::FromNetwork, &Packet::tcp((F::CLIENT, port), (F::VIP, PORT), SYN).bytes());
            }
            let open = node.connections::<F>();
            assert_eq!(open, 32, "two entries each");

            let seed = rand::rng().random();
            println!("seed {seed}");
            let mut rng = StdRng::seed_from_u64(seed);
            let vip = octets(F::VIP);
            for _ in 0..PACKETS {
                let packet = stranger::<F>(&mut rng);
                let bytes = dressed::<F>(&mut rng, &packet);
                if bytes.windows(vip.len()).any(|window| window == vip) {
                    continue;
                }
                let ran = node.run_xdp(&bytes);
                assert_eq!((ran.code, &ran.packet), (XDP_PASS, &bytes), "XDP");
                for hook in HOOKS {
                    let ran = node.run_tc(hook, &bytes);
                    assert_eq!((ran.code, &ran.packet), (UNSPEC, &bytes), "{hook:?}");
                }
            }
            assert_eq!(node.connections::<F>(), open);
        }
    };
}

untouched!(ipv4, V4);
untouched!(ipv6, V6);
