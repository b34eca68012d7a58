//! Flow tables: how the agent is told to run, the manifests, and who reaches whom. The real control plane fills the
//! maps of the real programs; each row's packets then run through the hook where they would come by.
//!
//! A table is a text of sections, each a line `== command arguments` and what follows it up to the next:
//!
//! | command | does |
//! |---|---|
//! | `agent KEY=VALUE…` | first of all: flags of `lb-agent run`, by their names; `masquerade-all` has no value |
//! | `apply [FILE…]` | objects, as YAML, from files of `testdata/flows` and from its own text |
//! | `delete KIND NAMESPACE/NAME…` | objects that go |
//! | `flows` | rows, one a line |
//!
//! A row is `FROM -> ADDRESS:PORT[/udp|/sctp]: OUTCOME`. Empty lines and what follows a `#` do not count.
//!
//! | from | a packet of | at the hook |
//! |---|---|---|
//! | `pod` | 10.244.1.99, a pod of this node, node-a | where it leaves the pod |
//! | `container` | 172.17.0.2, behind a device like a pod's, on the bridge docker0 | where it leaves it |
//! | `node` | 192.0.2.11, a process of this node that its socket hook left alone | uplink, egress |
//! | `far-pod` | 10.244.2.2, a pod of another node | uplink, ingress |
//! | `client`, `outsider` | 198.51.100.10, 203.0.113.200 | uplink, ingress |
//! | an address | | uplink, ingress |
//!
//! | outcome | means |
//! |---|---|
//! | `{A, B}` | these backends, no other, each at times; they see the client's address |
//! | `{A, B as node}` | so, but B sees an address of this node |
//! | `DROP` | silence |
//! | `REJECT` | TCP: RST; UDP, SCTP: ICMP port unreachable |
//! | `untouched` | the packet passes, bit for bit |
//!
//! This node also has the address 198.18.0.11. Every table runs twice in the same maps: as it stands, and on IPv6 with
//! `fd00:64::` before every IPv4 address and other namespaces (not with `families=4`).

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use lb_agent::{
    datapath::{
        devices::{
            Device, DeviceAddress, NodePortAddresses, NodeState, Patterns, node_state, nodeport_addresses,
        },
        local::{DetectLocal, DetectLocalHints, DetectLocalMode},
        node_maps::NodeMaps,
    },
    maps::bpf::BpfMaps,
    model::node::NodeAddresses,
    reconcile::{ReconcileConfig, Reconciler},
    source::{Change, Kind, Object, ObjectRef},
};
use lb_common::{family::Protocol, maps::MAPS, sctp};

use crate::{
    packet::{Packet, SYN, Transport, Unreachable},
    pinned_maps::PinnedMaps,
    prog::{self, ENTRIES_MAX, Hook, LoadOptions, Node, REDIRECT, Ran, SHOT, UNSPEC},
    script::{Section, parse_objects, sections, testdata},
};

/// Packets of one row whose backends are drawn by lot: with four of them, one is missed once in 10^7 rows.
const DRAWS: usize = 64;
/// Packets of any other row.
const REPEATS: usize = 2;
/// Clients' ports; those of SNAT are others, as `ip_local_port_range` has it.
const PORTS: (u16, u16) = (32_768, 60_999);
/// This node.
const NODE: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(198, 18, 0, 11)];
/// Begins the IPv6 address in an IPv4 address's place; /96.
const TWIN_PREFIX: [u16; 6] = [0xfd00, 0x64, 0, 0, 0, 0];

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A pod of this node.
    Pod,
    /// A container of this node that is no pod.
    Container,
    /// A process of this node.
    Node,
    /// Somebody whose packets come in by the uplink.
    Outside(Ipv4Addr),
}

/// Which family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowFamily {
    /// As it stands.
    V4,
    /// With the twins of its addresses.
    V6,
}

impl FlowFamily {
    /// The address that stands for `ip` in this family.
    pub fn of(self, ip: Ipv4Addr) -> IpAddr {
        match self {
            Self::V4 => ip.into(),
            Self::V6 => twin(ip).into(),
        }
    }

    fn of_socket(self, (ip, port): (Ipv4Addr, u16)) -> SocketAddr {
        SocketAddr::new(self.of(ip), port)
    }
}

/// The IPv6 address in the place of `ip`.
fn twin(ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = ip.octets();
    let [p, q, r, s, t, u] = TWIN_PREFIX;
    Ipv6Addr::new(p, q, r, s, t, u, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

impl Sender {
    /// By its word in a row.
    pub fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "pod" => Self::Pod,
            "container" => Self::Container,
            "node" => Self::Node,
            "far-pod" => Self::Outside(Ipv4Addr::new(10, 244, 2, 2)),
            "client" => Self::Outside(Ipv4Addr::new(198, 51, 100, 10)),
            "outsider" => Self::Outside(Ipv4Addr::new(203, 0, 113, 200)),
            other => Self::Outside(other.parse().with_context(|| format!("who is {other:?}"))?),
        })
    }

    /// Its address.
    pub fn addr(self) -> Ipv4Addr {
        match self {
            Self::Pod => Ipv4Addr::new(10, 244, 1, 99),
            Self::Container => Ipv4Addr::new(172, 17, 0, 2),
            Self::Node => NODE[0],
            Self::Outside(addr) => addr,
        }
    }
}

/// A backend as it was reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reached {
    /// The backend.
    pub backend: SocketAddr,
    /// It sees an address of this node.
    pub as_node: bool,
}

/// What became of a row's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Each of these was reached.
    Backends(BTreeSet<Reached>),
    /// Silence.
    Drop,
    /// Refused.
    Reject,
    /// Passed as it came.
    Untouched,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backends(reached) => {
                let text =
                    |one: &Reached| format!("{}{}", one.backend, if one.as_node { " as node" } else { "" });
                write!(f, "{{{}}}", reached.iter().map(text).collect::<Vec<_>>().join(", "))
            }
            Self::Drop => f.write_str("DROP"),
            Self::Reject => f.write_str("REJECT"),
            Self::Untouched => f.write_str("untouched"),
        }
    }
}

/// A row.
#[derive(Clone, Debug)]
pub struct Row {
    /// As it is written.
    pub text: String,
    /// Who sends.
    pub from: Sender,
    /// What is dialled.
    pub to: (Ipv4Addr, u16),
    /// By which protocol.
    pub protocol: Protocol,
    expected: String,
}

impl Row {
    /// A line; `None` if nothing is on it.
    pub fn parse(line: &str) -> Result<Option<Self>> {
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            return Ok(None);
        }
        let parsed = || -> Option<(&str, &str, &str)> {
            let (from, rest) = text.split_once("->")?;
            let (to, expected) = rest.trim().split_once(": ")?;
            Some((from.trim(), to.trim(), expected))
        };
        let (from, to, expected) = parsed().with_context(|| format!("no row: {text}"))?;
        let (to, protocol) = match to.split_once('/') {
            None => (to, Protocol::TCP),
            Some((to, "udp")) => (to, Protocol::UDP),
            Some((to, "sctp")) => (to, Protocol::SCTP),
            Some((_, other)) => bail!("no protocol: {other}"),
        };
        let to = parse_socket(to)?;
        let (from, expected) = (Sender::parse(from)?, expected.trim().to_owned());
        Ok(Some(Self { text: text.to_owned(), from, to, protocol, expected }))
    }

    /// What it says will happen.
    pub fn expected(&self, family: FlowFamily) -> Result<Outcome> {
        Ok(match self.expected.as_str() {
            "DROP" => Outcome::Drop,
            "REJECT" => Outcome::Reject,
            "untouched" => Outcome::Untouched,
            set => {
                let list = set.strip_prefix('{').and_then(|set| set.strip_suffix('}'));
                let list = list.with_context(|| format!("no outcome: {set:?}"))?;
                let reached = |item: &str| {
                    let item = item.trim();
                    let backend = family.of_socket(parse_socket(item.trim_end_matches(" as node"))?);
                    Ok(Reached { backend, as_node: item.ends_with(" as node") })
                };
                Outcome::Backends(list.split(',').map(reached).collect::<Result<_>>()?)
            }
        })
    }
}

fn parse_socket(text: &str) -> Result<(Ipv4Addr, u16)> {
    let parsed = text.split_once(':').and_then(|(ip, port)| Some((ip.parse().ok()?, port.parse().ok()?)));
    parsed.with_context(|| format!("no address and port: {text:?}"))
}

/// How the agent is told to run.
#[derive(Clone, Debug, Default)]
pub struct AgentFlags {
    detect_local: DetectLocal,
    masquerade_all: bool,
    nodeport_addresses: NodePortAddresses,
    only_v4: bool,
    /// As `lb-agent run` takes them.
    pub arguments: Vec<String>,
}

impl AgentFlags {
    fn parse(words: &[String]) -> Result<Self> {
        let mut flags = Self::default();
        let (mut mode, mut hints) = (None, DetectLocalHints::default());
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "families" => {
                    flags.only_v4 = value == "4";
                    continue;
                }
                "detect-local" => {
                    let parsed = <DetectLocalMode as clap::ValueEnum>::from_str(value, false);
                    mode = Some(parsed.map_err(anyhow::Error::msg)?);
                }
                "cluster-cidr" => hints.cluster_cidrs = both_families(value)?,
                "pod-bridge-interface" => value.clone_into(&mut hints.bridge_interface),
                "pod-interface-name-prefix" => value.clone_into(&mut hints.interface_name_prefix),
                "masquerade-all" => flags.masquerade_all = true,
                "nodeport-addresses" => {
                    flags.nodeport_addresses = value.parse().map_err(anyhow::Error::msg)?;
                }
                other => bail!("unknown flag {other}"),
            }
            flags.arguments.push(format!("--{word}"));
        }
        flags.detect_local = DetectLocal::new(mode, hints)?;
        Ok(flags)
    }
}

/// A network and its twin.
fn both_families(cidr: &str) -> Result<Vec<IpNet>> {
    [cidr.to_owned(), to_twins(cidr)].iter().map(|cidr| Ok(cidr.parse()?)).collect()
}

/// `text` with the twins of its IPv4 addresses and networks.
fn to_twins(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_digit() || c == '.' || c == '/';
    let mut twins = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !is_part(c)).unwrap_or(from.len()));
        twins.push_str(before);
        twins.push_str(&word_to_twin(word));
        rest = after;
    }
    twins.push_str(rest);
    twins.replace("addressType: IPv4", "addressType: IPv6")
}

fn word_to_twin(word: &str) -> String {
    let (ip, len) = word.split_once('/').map_or((word, None), |(ip, len)| (ip, Some(len)));
    match (ip.parse().map(twin), len.map(str::parse::<u8>)) {
        // Quoted: a colon means something in YAML.
        (Ok(twin), None) => format!("\"{twin}\""),
        (Ok(twin), Some(Ok(len))) => format!("{twin}/{}", len + 96),
        _ => word.to_owned(),
    }
}

/// A node as the tables know it.
const DEVICES: &str = "
addr add 198.18.0.11/32 dev uplink0
addr add fd00:64::192.0.2.11/128 dev uplink0 nodad
addr add fd00:64::198.18.0.11/128 dev uplink0 nodad
route add 10.244.1.0/24 dev pod0
route add fd00:64::10.244.1.0/120 dev pod0
link add box0 type veth peer name inbox0
link set box0 up
link set inbox0 up
route add 172.17.0.0/16 dev box0
route add fd00:64::172.17.0.0/112 dev box0
";

/// A node whose maps a control plane fills.
pub struct FlowNode {
    node: Node,
    reconciler: Reconciler<BpfMaps>,
    node_maps: NodeMaps,
    flags: AgentFlags,
    state: NodeState,
    box_device: u32,
    next_port: u16,
    // Dropped last: the maps' pins.
    pins: PinnedMaps,
}

impl FlowNode {
    /// A node without services, in a network namespace of the calling thread.
    pub fn start(flags: AgentFlags) -> Result<Self> {
        let sizes: Vec<_> = MAPS
            .iter()
            .filter(|map| map.max_entries > ENTRIES_MAX && map.key_size > 0)
            .map(|map| (map.name, ENTRIES_MAX))
            .collect();
        let pins = PinnedMaps::create(&sizes)?;
        let node = Node::start_loaded(&LoadOptions {
            pins: Some(pins.dir()),
            detect_local: flags.detect_local.code(),
            masquerade_all: flags.masquerade_all,
            ..LoadOptions::default()
        });
        prog::ip(DEVICES);
        let box_device = prog::ifindex("box0");
        let patterns = Patterns {
            uplink: vec!["uplink*".into()],
            workload: vec!["pod*".into(), "box*".into()],
            ..Patterns::default()
        };
        let devices = devices(&node, box_device);
        let state = node_state(&devices, &patterns, &flags.detect_local);
        let mut node_maps = NodeMaps::open(pins.dir())?;
        node_maps.write(&state, &BTreeSet::new())?;
        let mut flow_node = Self {
            reconciler: reconciler(&pins)?,
            node,
            node_maps,
            flags,
            state,
            box_device,
            next_port: PORTS.0,
            pins,
        };
        flow_node.tell_addresses();
        Ok(flow_node)
    }

    /// The programs and their maps.
    pub fn node(&mut self) -> &mut Node {
        &mut self.node
    }

    /// A fresh control plane over the same maps, as after a restart of the agent; it knows no objects yet.
    pub fn restart(&mut self) -> Result<()> {
        self.reconciler = reconciler(&self.pins)?;
        self.tell_addresses();
        Ok(())
    }

    fn tell_addresses(&mut self) {
        let addresses = nodeport_addresses(&self.state, &self.flags.nodeport_addresses);
        self.reconciler.set_node_addresses(NodeAddresses(addresses));
    }

    /// Applies the objects of a YAML text, and their twins.
    pub fn apply(&mut self, yaml: &str) -> Result<()> {
        let mut objects = parse_objects(yaml)?;
        ensure!(!objects.is_empty(), "apply: no object");
        if !self.flags.only_v4 {
            let twins = parse_objects(&to_twins(yaml)).context("the twins")?;
            objects.extend(twins.into_iter().filter_map(into_twin));
        }
        objects.into_iter().for_each(|object| self.reconciler.apply_change(Change::Applied(object)));
        self.sync()
    }

    fn delete(&mut self, words: &[String]) -> Result<()> {
        let (kind, names) = words.split_first().context("delete: no kind")?;
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Endpoints];
        let kind =
            kinds.into_iter().find(|known| known.to_string() == *kind).context("delete: unknown kind")?;
        for name in names {
            let (namespace, name) = name.split_once('/').context("delete: NAMESPACE/NAME")?;
            for namespace in [namespace.to_owned(), twin_name(namespace)] {
                let id = ObjectRef { kind, namespace, name: name.to_owned() };
                self.reconciler.apply_change(Change::Deleted(id));
            }
        }
        self.sync()
    }

    /// Writes what the control plane wants, and checks it.
    pub fn sync(&mut self) -> Result<()> {
        self.reconciler.sync()?;
        ensure!(!self.reconciler.verify()?, "the maps differ from what was written");
        let node_cidrs = self.reconciler.watch_pod_cidrs().borrow().clone();
        if let Some(cidrs) = self.flags.detect_local.pod_cidrs(node_cidrs.as_deref()) {
            self.node_maps.write_pod_cidrs(cidrs)?;
        }
        Ok(())
    }

    /// Sends one opening packet, each time from another port of the client.
    pub fn send(&mut self, from: Sender, to: SocketAddr, protocol: Protocol) -> Result<Outcome> {
        let family = if to.is_ipv4() { FlowFamily::V4 } else { FlowFamily::V6 };
        self.next_port = if self.next_port >= PORTS.1 { PORTS.0 } else { self.next_port + 1 };
        let (src, dst) = ((family.of(from.addr()), self.next_port), (to.ip(), to.port()));
        let packet = match protocol {
            Protocol::UDP => Packet::udp(src, dst, b"question"),
            Protocol::SCTP => Packet::sctp(src, dst, sctp::INIT).with_payload(&[7; 16]),
            _ => Packet::tcp(src, dst, SYN),
        };
        self.send_packet(from, &packet)
    }

    /// Sends a packet.
    pub fn send_packet(&mut self, from: Sender, packet: &Packet) -> Result<Outcome> {
        let bytes = packet.bytes();
        let ran = match from {
            Sender::Pod => self.node.run(Hook::FromPod, &bytes),
            Sender::Container => self.node.run_program("tc_workload_ingress", self.box_device, &bytes),
            Sender::Node => self.node.run(Hook::ToNetwork, &bytes),
            Sender::Outside(_) => self.node.run(Hook::FromNetwork, &bytes),
        };
        outcome(packet, &bytes, &ran)
    }

    /// What becomes of so many opening packets together.
    pub fn send_many(
        &mut self,
        from: Sender,
        to: SocketAddr,
        protocol: Protocol,
        times: usize,
    ) -> Result<Outcome> {
        let mut together = self.send(from, to, protocol)?;
        for _ in 1..times {
            match (&mut together, self.send(from, to, protocol)?) {
                (Outcome::Backends(reached), Outcome::Backends(more)) => reached.extend(more),
                (first, next) => ensure!(*first == next, "{first} at first, then {next}"),
            }
        }
        Ok(together)
    }

    fn check(&mut self, row: &Row, family: FlowFamily) -> Result<()> {
        let expected = row.expected(family)?;
        let times = if matches!(expected, Outcome::Backends(_)) { DRAWS } else { REPEATS };
        let found = self.send_many(row.from, family.of_socket(row.to), row.protocol, times)?;
        ensure!(found == expected, "{found}");
        Ok(())
    }
}

fn reconciler(pins: &PinnedMaps) -> Result<Reconciler<BpfMaps>> {
    let config =
        ReconcileConfig { node_name: "node-a".to_owned(), first_id: Some(1), ..ReconcileConfig::default() };
    let mut reconciler = Reconciler::new(BpfMaps::open(pins.dir())?, config)?;
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::ServiceCidr] {
        reconciler.apply_change(Change::Synced(kind));
    }
    Ok(reconciler)
}

/// The node's devices as netlink would tell of them.
fn devices(node: &Node, box_device: u32) -> Vec<Device> {
    let addresses = NODE.into_iter().flat_map(|ip| [FlowFamily::V4.of(ip), FlowFamily::V6.of(ip)]);
    let uplink = Device {
        ifindex: node.uplink(),
        name: "uplink0".into(),
        link_type: 1,
        has_default_route: true,
        addresses: addresses.map(|ip| DeviceAddress { ip, is_primary: true }).collect(),
        ..Device::default()
    };
    let behind = |ifindex: u32, name: &str, controller: &str| Device {
        ifindex,
        name: name.into(),
        controller: Some(controller.into()),
        link_type: 1,
        ..Device::default()
    };
    vec![uplink, behind(node.pod_device(), "pod0", "cni0"), behind(box_device, "box0", "docker0")]
}

/// The object in its other namespace, or what is cluster-wide under its other name; there is one own Node.
fn into_twin(mut object: Object) -> Option<Object> {
    let name = match &mut object {
        Object::Service(object) => &mut object.metadata.namespace,
        Object::EndpointSlice(object) => &mut object.metadata.namespace,
        Object::Endpoints(object) => &mut object.metadata.namespace,
        Object::ServiceCidr(object) => &mut object.metadata.name,
        Object::Node(_) => return None,
    };
    *name = name.take().map(|name| twin_name(&name));
    Some(object)
}

fn twin_name(name: &str) -> String {
    format!("{name}-6")
}

fn outcome(sent: &Packet, bytes: &[u8], ran: &Ran) -> Result<Outcome> {
    match ran.code {
        SHOT => return Ok(Outcome::Drop),
        UNSPEC if ran.packet == bytes => return Ok(Outcome::Untouched),
        UNSPEC | REDIRECT => {}
        code => bail!("code {code}"),
    }
    if ran.code == REDIRECT && is_refusal(sent, &ran.packet) {
        return Ok(Outcome::Reject);
    }
    let received = Packet::decode(&ran.packet);
    let node = NODE.map(|ip| if sent.src.0.is_ipv4() { FlowFamily::V4 } else { FlowFamily::V6 }.of(ip));
    let kept = received.src.0 == sent.src.0;
    ensure!(kept || node.contains(&received.src.0), "the source became {:?}", received.src);
    let backend = SocketAddr::new(received.dst.0, received.dst.1);
    Ok(Outcome::Backends([Reached { backend, as_node: !kept }].into()))
}

/// True if a packet tells the sender of `sent` that nobody serves.
fn is_refusal(sent: &Packet, answer: &[u8]) -> bool {
    match sent.transport {
        Transport::Udp | Transport::Sctp(_) => {
            let is_icmp = if sent.src.0.is_ipv4() { answer[23] == 1 } else { answer[20] == 58 };
            is_icmp && Unreachable::decode(answer).quoted_dst == sent.dst
        }
        Transport::Tcp(_) => {
            let answer = Packet::decode(answer);
            let reset = matches!(&answer.transport, Transport::Tcp(tcp) if tcp.rst);
            reset && (answer.src, answer.dst) == (sent.dst, sent.src)
        }
    }
}

/// Runs a table of `testdata/flows`; the error names every row that failed.
pub fn run(file: &str) -> Result<()> {
    let (_, sections) = sections(&read(file)?)?;
    let (flags, rest) = agent_flags(&sections)?;
    let families = if flags.only_v4 { vec![FlowFamily::V4] } else { vec![FlowFamily::V4, FlowFamily::V6] };
    let mut node = FlowNode::start(flags)?;
    let (mut rows, mut failures) = (0, Vec::new());
    for section in rest {
        match section.command.as_str() {
            "apply" => node.apply(&yaml(section)?)?,
            "delete" => node.delete(&section.arguments)?,
            "flows" => {
                for row in parse_rows(section)? {
                    rows += 1;
                    for family in &families {
                        if let Err(error) = node.check(&row, *family) {
                            failures.push(format!("{family:?}: {}\n    but: {error:#}", row.text));
                        }
                    }
                }
            }
            other => bail!("unknown command {other}"),
        }
    }
    ensure!(rows > 0, "a table without rows");
    ensure!(failures.is_empty(), "{} of {rows} rows:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

fn read(file: &str) -> Result<String> {
    let path = testdata().join("flows").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The objects of an `apply`: its files of `testdata/flows` and its own text.
pub fn yaml(section: &Section) -> Result<String> {
    let mut texts = section.arguments.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?;
    texts.push(section.body.clone());
    Ok(texts.join("\n---\n"))
}

/// The flags, and the sections after them.
pub fn agent_flags(sections: &[Section]) -> Result<(AgentFlags, &[Section])> {
    match sections.split_first() {
        Some((first, rest)) if first.command == "agent" => Ok((AgentFlags::parse(&first.arguments)?, rest)),
        _ => Ok((AgentFlags::default(), sections)),
    }
}

/// The rows of a section.
pub fn parse_rows(section: &Section) -> Result<Vec<Row>> {
    section.body.lines().filter_map(|line| Row::parse(line).transpose()).collect()
}
