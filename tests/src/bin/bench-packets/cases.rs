//! What is measured: floors, then each way of a packet through XDP and tc.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use lb_agent::desired::maglev::TableSize;
use lb_common::{
    family::{Family, Protocol, V4, V6},
    frontend::FrontendFlags,
};
use lb_tests::{
    bench::row::{Row, Target},
    packet::{ACK, Packet, SYN, SYN_ACK, tunnelled},
    prog::{
        Hook, LoadOptions, Node, Places, REDIRECT, SHOT, Server, Service, UNSPEC, XDP_DROP, XDP_PASS,
        XDP_REDIRECT, XDP_TX,
    },
};

use crate::bed::{Bench, Vary};

/// Numbers of service ports, in the order of [`Nodes`].
const SERVICES: [u32; 4] = [1, 1_000, 10_000, 100_000];
/// Room for all of them and those under measurement.
const SERVICE_PORTS: u32 = 131_072;
/// Backends of a service under measurement: each has SNAT ports of its own, so that new flows find a free one.
const BACKENDS: u16 = 64;
/// Room for the services of [`serve_directly`], and their node's index among [`Nodes`]. It records no connections.
const STATELESS_PORTS: u32 = 16;
const STATELESS: usize = SERVICES.len();
/// Index among [`Nodes`] of the one that is flooded by one new flow a second.
const FLOODED: usize = STATELESS + 1;
/// Nodes that the backends of such a service are on.
const NODES: u8 = 8;
/// The port of the service that other nodes send to in tunnels.
const TUNNELLED: u16 = 83;
/// First id of what is there only to fill the maps.
const FILLER: u32 = 1_000;
/// Random flows of [`Vary::Random`]: every source port once.
const FLOWS: u32 = 65_536;

/// The program a case runs.
pub(crate) enum Program {
    /// A measuring program by itself, without the one that restores the packet.
    Bare(&'static str),
    /// The same behind it.
    Floor(&'static str),
    /// The XDP program.
    Xdp,
    /// A tc program.
    Tc(&'static str),
}

impl Program {
    /// Whether it runs at the XDP hook.
    pub(crate) fn is_xdp(&self) -> bool {
        match self {
            Self::Bare(name) | Self::Floor(name) => !name.ends_with("_tc"),
            Self::Xdp => true,
            Self::Tc(_) => false,
        }
    }
}

/// One figure to be.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) program: Program,
    /// Index into [`SERVICES`], [`STATELESS`] or [`FLOODED`].
    pub(crate) services: usize,
    pub(crate) packet: Vec<u8>,
    pub(crate) vary: Vary,
    /// Return codes that say that it went the way it was meant to.
    pub(crate) codes: &'static [u32],
    target: Target,
}

impl Case {
    /// The row of its samples.
    pub(crate) fn row(&self, samples: Vec<f64>) -> Row {
        Row::new("packets", self.name.clone(), "ns", samples, self.target)
    }
}

/// One datapath for each number of services, all for the devices of one node.
pub(crate) struct Nodes(Vec<Node>);

impl Nodes {
    pub(crate) fn start() -> Self {
        let mut nodes = vec![Node::start_full_size(SERVICE_PORTS)];
        for _ in &SERVICES[1..] {
            let twin = nodes[0].twin(SERVICE_PORTS, &LoadOptions::default());
            nodes.push(twin);
        }
        for (node, services) in nodes.iter_mut().zip(SERVICES) {
            serve::<V4>(node, 0);
            serve::<V6>(node, 256);
            (1..services).for_each(|index| fill(node, index));
        }
        let mut stateless =
            nodes[0].twin(STATELESS_PORTS, &LoadOptions { stateless: true, ..LoadOptions::default() });
        serve_directly::<V4>(&mut stateless, 1);
        serve_directly::<V6>(&mut stateless, 2);
        nodes.push(stateless);
        let options = LoadOptions { flood_threshold: 1, ..LoadOptions::default() };
        let mut flooded = nodes[0].twin(SERVICE_PORTS, &options);
        serve::<V4>(&mut flooded, 0);
        serve::<V6>(&mut flooded, 256);
        nodes.push(flooded);
        Self(nodes)
    }

    pub(crate) fn node(&mut self, index: usize) -> &mut Node {
        &mut self.0[index]
    }

    pub(crate) fn uplink(&self) -> u32 {
        self.0[0].uplink()
    }

    /// Instructions and jited bytes of the packet programs.
    pub(crate) fn program_sizes(&mut self) -> Result<Vec<Row>> {
        let node = &mut self.0[0];
        let mut rows = Vec::new();
        let xdp = node.xdp_program("xdp_uplink_frags").info()?;
        let mut infos = vec![("xdp_uplink_frags", xdp)];
        for name in ["tc_uplink_ingress", "tc_uplink_egress", "tc_workload_ingress", "tc_workload_egress"] {
            infos.push((name, node.tc_program(name).info()?));
        }
        for (name, info) in infos {
            let translated = f64::from(info.size_translated().context("xlated_prog_len")?) / 8.0;
            let row = |what: &str, unit, figure| {
                Row::new("packets", format!("{name}: {what}"), unit, vec![figure], Target::NotSet)
            };
            rows.push(row("size", "instructions", translated));
            rows.push(row("size, jited", "bytes", f64::from(info.size_jitted())));
            let verified = info.verified_instruction_count().map_or(f64::NAN, f64::from);
            rows.push(row("verified", "instructions", verified));
        }
        Ok(rows)
    }
}

/// The services under measurement, ids from `base` on: TCP and UDP to remote backends, one to a local backend, one to
/// nobody, one that other nodes send to in tunnels.
fn serve<F: Places>(node: &mut Node, base: u32)
where
    lb_common::frontend::FrontendKey<F>: aya::Pod,
    lb_common::backend::BackendValue<F>: aya::Pod,
    F::Addr: aya::Pod,
{
    let remote: Vec<Server> =
        (0..BACKENDS).map(|port| Server { addr: (F::REMOTE_POD, 8080 + port), local: false }).collect();
    let local = [Server { addr: (F::POD, 8080), local: true }];
    let rows: [(u16, Protocol, &[Server]); 4] = [
        (80, Protocol::TCP, &remote),
        (80, Protocol::UDP, &remote),
        (81, Protocol::TCP, &local),
        (82, Protocol::TCP, &[]),
    ];
    for (index, (port, protocol, backends)) in (1u32..).zip(rows) {
        let service = Service::new((F::VIP, port), protocol, backends);
        node.serve::<F>(&Service { id: base + index, base: (base + index) * u32::from(BACKENDS), ..service });
    }
    let (id, flags) = (base + 5, FrontendFlags::DSR);
    let service = Service::new((F::VIP, TUNNELLED), Protocol::TCP, &local);
    node.serve::<F>(&Service { id, base: id * u32::from(BACKENDS), flags, ..service });
    node.peer::<F>(F::OTHER_NODE, F::BITS);
}

/// A service whose backends are on [`NODES`] other nodes, which answer its clients themselves, with a Maglev table.
fn serve_directly<F: Places>(node: &mut Node, id: u32)
where
    lb_common::frontend::FrontendKey<F>: aya::Pod,
    lb_common::backend::BackendValue<F>: aya::Pod,
{
    let backends: Vec<Server> =
        (0..BACKENDS).map(|port| Server { addr: (F::REMOTE_POD, 8080 + port), local: false }).collect();
    let flags = FrontendFlags::DSR.with(FrontendFlags::MAGLEV).with(FrontendFlags::STATELESS);
    let base = id * u32::from(BACKENDS);
    let service = Service { id, base, flags, ..Service::new((F::VIP, 80), Protocol::TCP, &backends) };
    let ends: Vec<IpAddr> = (0..NODES).map(|index| nth(F::OTHER_NODE, index)).collect();
    node.serve::<F>(&service);
    node.reach_at::<F>(&service, &ends);
    node.serve_by_table::<F>(&service, id * 100_000, TableSize::default());
}

/// The address `index` further.
fn nth(ip: IpAddr, index: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip) + u32::from(index))),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) + u128::from(index))),
    }
}

/// A service that nobody dials.
fn fill(node: &mut Node, index: u32) {
    let addr = IpAddr::V4(Ipv4Addr::from(0x0a64_0000 + index));
    let backend = Server { addr: (IpAddr::V4(Ipv4Addr::from(0x0af4_0000 + index)), 8080), local: false };
    let service = Service::new((addr, 80), Protocol::TCP, &[backend]);
    let base = 512 * u32::from(BACKENDS) + index;
    node.serve::<V4>(&Service { id: FILLER + index, base, ..service });
}

/// A client whose address ends in two zero bytes, which [`Vary::Each`] writes.
fn client<F: Family>() -> (IpAddr, u16) {
    let ip = if F::BITS == 32 {
        IpAddr::V4(Ipv4Addr::new(198, 51, 0, 0))
    } else {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 1, 0))
    };
    (ip, 40_000)
}

const SENT_ON: &[u32] = &[XDP_TX, XDP_REDIRECT, REDIRECT];
/// Some packets of many flows are left to tc, to probe the neighbour.
const SENT_ON_OR_PROBED: &[u32] = &[XDP_TX, XDP_REDIRECT, REDIRECT, XDP_PASS];
const LEFT: &[u32] = &[XDP_PASS, UNSPEC];
const ANY: &[u32] = &[0, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT, REDIRECT, UNSPEC, SHOT];

/// Every case; the connections that they continue are opened on the way.
pub(crate) fn all(nodes: &mut Nodes, bench: &mut Bench) -> Result<Vec<Case>> {
    let mut cases = floors();
    for xdp in [true, false] {
        family::<V4>(nodes, bench, &mut cases, xdp)?;
        family::<V6>(nodes, bench, &mut cases, xdp)?;
    }
    for services in 1..SERVICES.len() {
        with_services(nodes, bench, &mut cases, services)?;
    }
    Ok(cases)
}

fn floors() -> Vec<Case> {
    let packet = Packet::tcp(client::<V4>(), (V4::VIP, 80), ACK).bytes();
    let floor = |name: &str, program, vary| Case {
        name: format!("floor: {name}"),
        program,
        services: 0,
        packet: packet.clone(),
        vary,
        codes: ANY,
        target: Target::NotSet,
    };
    vec![
        floor("XDP, return", Program::Bare("floor_return_xdp"), Vary::One),
        floor("XDP, parse", Program::Bare("floor_parse"), Vary::One),
        floor("XDP, parse, one hash lookup (absent)", Program::Bare("floor_hash"), Vary::One),
        floor("XDP, packet restored, return", Program::Floor("floor_return_xdp"), Vary::One),
        floor("XDP, packet restored, random flow, return", Program::Floor("floor_return_xdp"), Vary::Random),
        floor(
            "XDP, packet restored, two LRU inserts of new keys",
            Program::Floor("floor_insert_two"),
            Vary::Each,
        ),
        floor("XDP, packet restored, one FIB lookup", Program::Floor("floor_route"), Vary::One),
        floor("XDP, packet restored, one socket lookup (none)", Program::Floor("floor_socket"), Vary::Each),
        floor("XDP, packet restored, one LRU lookup of those", Program::Floor("floor_lru"), Vary::Random),
        floor(
            "XDP, packet restored, least translation, one flow",
            Program::Floor("floor_translate"),
            Vary::One,
        ),
        floor(
            "XDP, packet restored, least translation, random flows",
            Program::Floor("floor_translate"),
            Vary::Random,
        ),
        floor("tc, return", Program::Bare("floor_return_tc"), Vary::One),
        floor("tc, packet restored, return", Program::Floor("floor_return_tc"), Vary::One),
        floor("tc, packet restored, random flow, return", Program::Floor("floor_return_tc"), Vary::Random),
    ]
}

/// The targets of issue 4.7, for IPv4 in XDP.
fn target<F: Family>(xdp: bool, limit: f64) -> Target {
    if xdp && F::BITS == 32 { Target::AtMost(limit) } else { Target::NotSet }
}

/// Makes a case of its name, packet, variation, expected codes and target.
type Make<'a> = &'a dyn Fn(&str, &Packet, Vary, &'static [u32], Target) -> Case;

/// What is measured at one kind of hook only, with a SYN and a data packet.
fn of_one_hook<F: Places>(case: Make<'_>, xdp: bool, [syn, data]: [&Packet; 2]) -> Vec<Case> {
    if !xdp {
        let between_pods = Packet::tcp((F::POD, 40_000), (F::REMOTE_POD, 8080), ACK);
        let case = case("not ours, pods served by socket", &between_pods, Vary::One, LEFT, Target::NotSet);
        // No connection was ever recorded there.
        return vec![Case { services: STATELESS, ..case }];
    }
    let direct = |name: &str, vary, target| Case {
        services: STATELESS,
        ..case(&format!("TCP, DSR, stateless Maglev, {name}"), data, vary, SENT_ON_OR_PROBED, target)
    };
    let flooded = case("TCP, new flow in a flood", syn, Vary::Each, SENT_ON, Target::NotSet);
    vec![
        Case { services: FLOODED, ..flooded },
        direct("one flow", Vary::One, Target::NotSet),
        direct("64k random flows", Vary::Random, target::<F>(xdp, 120.0)),
    ]
}

fn family<F: Places>(nodes: &mut Nodes, bench: &mut Bench, cases: &mut Vec<Case>, xdp: bool) -> Result<()> {
    let where_ = format!("{}, IPv{}", if xdp { "XDP" } else { "tc" }, F::DIGIT);
    let program = || if xdp { Program::Xdp } else { Program::Tc("tc_uplink_ingress") };
    let case = |name: &str, packet: &Packet, vary, codes, target| Case {
        name: format!("{where_}: {name}"),
        program: program(),
        services: 0,
        packet: packet.bytes(),
        vary,
        codes,
        target,
    };
    let (client, vip) = (client::<F>(), (F::VIP, 80));
    let node = nodes.node(0);
    let syn = Packet::tcp(client, vip, SYN);
    let reply = establish(node, &syn);
    let question = Packet::udp(client, vip, b"four and twenty bytes long");
    let data = Packet::tcp(client, vip, ACK);
    cases.extend(to_local_backends::<F>(node, client).into_iter().map(|(name, packet)| {
        let case = case(name, &data, Vary::One, LEFT, Target::NotSet);
        Case { packet, ..case }
    }));
    for opening in [&syn, &question] {
        bench.open_flows(&case("open flows", opening, Vary::Each, SENT_ON, Target::NotSet), nodes, FLOWS)?;
    }
    let (one, many) = (target::<F>(xdp, 80.0), target::<F>(xdp, 350.0));
    cases.extend(of_one_hook::<F>(&case, xdp, [&syn, &data]));
    cases.extend([
        case("TCP established, DNAT + SNAT, one flow", &data, Vary::One, SENT_ON, one),
        case("TCP established, DNAT + SNAT, 64k random flows", &data, Vary::Random, SENT_ON_OR_PROBED, many),
        case("UDP, DNAT + SNAT, one flow", &question, Vary::One, SENT_ON, Target::NotSet),
        case(
            "UDP, DNAT + SNAT, 64k random flows",
            &question,
            Vary::Random,
            SENT_ON_OR_PROBED,
            Target::NotSet,
        ),
        case("TCP, answer of a remote backend (SNAT reply)", &reply, Vary::One, SENT_ON, Target::NotSet),
        case("TCP, new flow, both directions recorded", &syn, Vary::Each, SENT_ON, target::<F>(xdp, 800.0)),
        case("not ours", &Packet::tcp(client, (F::NODE, 22), ACK), Vary::One, LEFT, target::<F>(xdp, 30.0)),
        case(
            "not ours, a port that frontends use",
            &Packet::tcp(client, (F::NODE, 80), ACK),
            Vary::One,
            LEFT,
            Target::NotSet,
        ),
        case(
            "no backend (XDP leaves it to tc, tc answers)",
            &Packet::tcp(client, (F::VIP, 82), SYN),
            Vary::One,
            ANY,
            Target::NotSet,
        ),
    ]);
    Ok(())
}

/// Opens connections to backends of this node, one of them in a tunnel; their next packets.
fn to_local_backends<F: Places>(node: &mut Node, client: (IpAddr, u16)) -> [(&'static str, Vec<u8>); 2] {
    let direct = |tcp| Packet::tcp(client, (F::VIP, 81), tcp).bytes();
    let in_tunnel =
        |tcp| tunnelled(&Packet::tcp(client, (F::VIP, TUNNELLED), tcp).bytes(), F::OTHER_NODE, F::NODE);
    for opening in [direct(SYN), in_tunnel(SYN)] {
        node.run(Hook::FromNetwork, &opening);
    }
    [
        ("TCP established, DNAT to a local backend", direct(ACK)),
        ("TCP, DSR, out of a tunnel, DNAT to a local backend", in_tunnel(ACK)),
    ]
}

/// Opens the connection of `syn`; the backend's next packet.
fn establish(node: &mut Node, syn: &Packet) -> Packet {
    let sent = Packet::decode(&node.run(Hook::FromNetwork, &syn.bytes()).packet);
    node.run(Hook::FromNetwork, &Packet::tcp(sent.dst, sent.src, SYN_ACK).bytes());
    node.run(Hook::FromNetwork, &Packet::tcp(syn.src, syn.dst, ACK).bytes());
    Packet::tcp(sent.dst, sent.src, ACK)
}

/// The cases that the number of services might matter to.
fn with_services(nodes: &mut Nodes, bench: &mut Bench, cases: &mut Vec<Case>, services: usize) -> Result<()> {
    let (client, vip) = (client::<V4>(), (V4::VIP, 80));
    let (syn, data) = (Packet::tcp(client, vip, SYN), Packet::tcp(client, vip, ACK));
    let other = Packet::tcp(client, (V4::NODE, 80), ACK);
    establish(nodes.node(services), &syn);
    let case = |name: &str, packet: &Packet, vary, codes| Case {
        name: format!("XDP, IPv4, {} services: {name}", SERVICES[services]),
        program: Program::Xdp,
        services,
        packet: packet.bytes(),
        vary,
        codes,
        target: Target::NotSet,
    };
    bench.open_flows(&case("open flows", &syn, Vary::Each, SENT_ON), nodes, FLOWS)?;
    cases.extend([
        case("TCP established, one flow", &data, Vary::One, SENT_ON),
        case("TCP established, 64k random flows", &data, Vary::Random, SENT_ON_OR_PROBED),
        case("TCP, new flow", &syn, Vary::Each, SENT_ON),
        case("not ours, a port that frontends use", &other, Vary::One, LEFT),
    ]);
    Ok(())
}

/// 100,000 services over 1, from samples of the same rounds.
pub(crate) fn ratios(cases: &[Case], samples: &[Vec<f64>]) -> Option<Row> {
    let find = |prefix: &str| {
        let name = |case: &Case| case.name.starts_with(prefix) && case.name.ends_with("one flow");
        samples.get(cases.iter().position(name)?)
    };
    let (one, many) =
        (find("XDP, IPv4: TCP established")?, find("XDP, IPv4, 100000 services: TCP established")?);
    let ratios = many.iter().zip(one).map(|(many, one)| many / one).collect();
    let name = "XDP, IPv4: TCP established, one flow, 100000 services over 1";
    Some(Row::new("packets", name, "ratio", ratios, Target::AtMost(1.1)))
}
