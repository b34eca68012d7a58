//! Runs the real programs on packets: a node in a network namespace of the calling thread, the programs loaded into
//! the kernel, `BPF_PROG_TEST_RUN` for one packet at a time.
//!
//! Needs root, and says so. A test's thread enters a namespace of its own and never leaves it; the namespace goes
//! with the thread.

mod load;
mod places;
mod services;

use std::{cell::Cell, collections::BTreeMap, fs, net::IpAddr, process::Command};

use aya::{
    Ebpf, Pod, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, PerCpuValues, RingBuf, lpm_trie::Key},
    programs::{CgroupSockAddr, SchedClassifier, Xdp},
};
use lb_common::{
    affinity::{AffinityKey, AffinityValue},
    cidr::CidrValue,
    conntrack::{Coarse, ConnectionValue},
    counters::{TrafficCounter, VerdictCounter},
    device::{DeviceFlags, DeviceRole, DeviceValue, NodeAddressKey, NodeAddressValue},
    event::Event,
    family::{Addr4, Addr6, Address as _, Family, V4, V6},
    flood::NewFlows,
    flow::{FlowKey, Tuple},
    id::{BackendId, ServicePortId},
    kind::{self, Kind, Kinds},
    maps,
    next_hop::{self, NextHopValue},
    peer::{PeerValue, TunnelCounter},
    settings::Settings,
    source_range::{SourceRangeKey, SourceRangeValue},
    verdict::Verdict,
    vip::{self, VipKey, VipValue},
};

use self::load::{create, create_full_size, patiently};
pub use self::{
    load::{ENTRIES_MAX, LoadOptions},
    places::Places,
    services::{Server, Service},
};
#[cfg(doc)]
use crate::packet::FAR_MAC;
use crate::packet::NEAR_MAC;

/// `TC_ACT_UNSPEC` as the program's return value.
pub const UNSPEC: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
pub const SHOT: u32 = 2;
/// `TC_ACT_REDIRECT`.
pub const REDIRECT: u32 = 7;

/// The tc programs.
pub const TC_PROGRAMS: [&str; 6] = [
    "tc_uplink_ingress",
    "tc_uplink_egress",
    "tc_workload_ingress",
    "tc_workload_egress",
    "tc_l3_ingress",
    "tc_l3_egress",
];

/// The XDP programs.
pub const XDP_PROGRAMS: [&str; 2] = ["xdp_uplink", "xdp_uplink_frags"];

/// The socket programs.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    "sock_connect4",
    "sock_connect6",
    "sock_sendmsg4",
    "sock_sendmsg6",
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_getpeername4",
    "sock_getpeername6",
];

/// What a program made of a packet.
#[derive(PartialEq, Eq)]
pub struct Ran {
    /// Its return code.
    pub code: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
}

impl std::fmt::Debug for Ran {
    /// Headers only: a failed comparison of payloads need not fill the screen.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = &self.packet[..self.packet.len().min(86)];
        write!(f, "code {} packet of {} bytes: {head:02x?}", self.code.cast_signed(), self.packet.len())
    }
}

/// A hook: a program and the device it is attached to.
#[derive(Clone, Copy, Debug)]
pub enum Hook {
    /// Uplink, ingress.
    FromNetwork,
    /// Uplink, egress.
    ToNetwork,
    /// The pod's device, ingress.
    FromPod,
    /// The pod's device, egress.
    ToPod,
}

/// Uplink, pod, narrow uplink: names of the node's devices.
const DEVICES: [&str; 3] = ["uplink0", "pod0", "narrow0"];

/// What the node is made of, as `ip -batch` reads it.
const NODE: &str = "
link add uplink0 address 02:00:00:00:00:01 type veth peer name router0
link add pod0 address 02:00:00:00:00:01 type veth peer name inside0
link add narrow0 address 02:00:00:00:00:01 mtu 1280 type veth peer name beyond0
link set lo up
link set uplink0 up
link set router0 up
link set pod0 up
link set inside0 up
link set narrow0 up
link set beyond0 up
addr add 192.0.2.11/24 dev uplink0
addr add 2001:db8:2::11/64 dev uplink0 nodad
addr add 192.0.2.111/24 dev narrow0
neigh add 192.0.2.1 lladdr 02:00:00:00:00:02 dev uplink0 nud permanent
neigh add 2001:db8:2::1 lladdr 02:00:00:00:00:02 dev uplink0 nud permanent
route add default via 192.0.2.1 dev uplink0
route add default via 2001:db8:2::1 dev uplink0
route add 10.244.1.2/32 dev pod0
route add fd00:244:1::2/128 dev pod0
neigh add 10.244.3.2 lladdr 02:00:00:00:00:03 dev narrow0 nud permanent
neigh add fd00:244:3::2 lladdr 02:00:00:00:00:03 dev narrow0 nud permanent
route add 10.244.3.0/24 dev narrow0
route add fd00:244:3::/64 dev narrow0
route add unreachable 10.244.9.0/24
route add unreachable fd00:244:9::/64
";

thread_local! {
    static XDP: Cell<bool> = const { Cell::new(false) };
}

/// Runs `case` with nodes whose uplinks have the XDP program before the tc program, as devices do whose driver can.
pub fn through_xdp(case: impl FnOnce()) {
    XDP.set(true);
    case();
}

/// `XDP_DROP`.
pub const XDP_DROP: u32 = 1;
/// `XDP_PASS`.
pub const XDP_PASS: u32 = 2;
/// `XDP_TX`.
pub const XDP_TX: u32 = 3;
/// `XDP_REDIRECT`.
pub const XDP_REDIRECT: u32 = 4;

/// A node with the datapath loaded.
pub struct Node {
    ebpf: Ebpf,
    devices: [u32; 3],
    /// The uplink has the XDP program too.
    xdp: bool,
}

impl Node {
    /// A node in a network namespace of its own. Programs are loaded when they are first run: the verifier takes a
    /// good part of a second for each.
    pub fn start() -> Self {
        Self::start_loaded(&LoadOptions::default())
    }

    /// The same with so many SNAT ports.
    pub fn start_with(snat_ports: Option<u32>) -> Self {
        Self::start_loaded(&LoadOptions { snat_ports, ..LoadOptions::default() })
    }

    /// The same, loaded as told.
    pub fn start_loaded(options: &LoadOptions<'_>) -> Self {
        Self::start_of(create(options))
    }

    /// The same with maps as large as the agent makes them, and room for so many service ports.
    pub fn start_full_size(service_ports: u32) -> Self {
        Self::start_of(create_full_size(service_ports, &LoadOptions::default()))
    }

    /// Another datapath, of full size, for the same devices. It has maps of its own, whatever `options` say.
    pub fn twin(&self, service_ports: u32, options: &LoadOptions<'_>) -> Self {
        let mut twin =
            Self { ebpf: create_full_size(service_ports, options), devices: self.devices, xdp: self.xdp };
        twin.describe_node();
        twin
    }

    fn start_of(ebpf: Ebpf) -> Self {
        // SAFETY: a system call without pointers; it concerns the calling thread only.
        let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(
            entered,
            0,
            "enter a network namespace (root is needed): {}",
            std::io::Error::last_os_error()
        );
        ip(NODE);
        for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{family}"), "1").expect("turn on forwarding");
        }
        let mut node = Self { ebpf, devices: DEVICES.map(ifindex), xdp: XDP.get() };
        node.describe_node();
        node
    }

    fn describe_node(&mut self) {
        let [uplink, pod, narrow] = self.devices;
        self.device(uplink, DeviceRole::UPLINK, V4::NODE, V6::NODE);
        self.device(pod, DeviceRole::WORKLOAD, V4::NODE, V6::NODE);
        self.device(narrow, DeviceRole::UPLINK, V4::NODE, V6::NODE);
        self.node_address::<V4>(V4::NODE);
        self.node_address::<V6>(V6::NODE);
    }

    /// Loads every program, also those that no packet can be run through here: `BPF_PROG_TEST_RUN` always has a
    /// link-layer header, and does not know socket hooks.
    pub fn load_every_program(&mut self) {
        for name in TC_PROGRAMS {
            self.tc_program(name);
        }
        for name in XDP_PROGRAMS {
            self.xdp_program(name);
        }
        for name in SOCKET_PROGRAMS {
            let program: &mut CgroupSockAddr =
                self.ebpf.program_mut(name).expect(name).try_into().expect(name);
            patiently(name, || program.load());
        }
    }

    /// A tc program, loaded.
    pub fn tc_program(&mut self, name: &str) -> &mut SchedClassifier {
        let program: &mut SchedClassifier = self.ebpf.program_mut(name).expect(name).try_into().expect(name);
        if program.fd().is_err() {
            patiently(name, || program.load());
        }
        program
    }

    /// An XDP program, loaded.
    pub fn xdp_program(&mut self, name: &str) -> &mut Xdp {
        let program: &mut Xdp = self.ebpf.program_mut(name).expect(name).try_into().expect(name);
        if program.fd().is_err() {
            patiently(name, || program.load());
        }
        program
    }

    /// ifindex of the uplink.
    pub fn uplink(&self) -> u32 {
        self.devices[0]
    }

    /// Lets the narrow uplink send frames that XDP gives it.
    pub fn let_narrow_take_frames(&mut self) {
        self.flag(self.devices[2], DeviceFlags::XDP);
    }

    /// Lets the uplink be a bridge's port.
    pub fn let_uplink_take_any_frame(&mut self) {
        let uplink = self.uplink();
        let value: DeviceValue = self.hash("DEVICES").get(&uplink, 0).unwrap();
        self.hash("DEVICES").insert(uplink, DeviceValue { mac: [0; 6], ..value }, 0).unwrap();
    }

    /// Lets packets enter the pod at once, and makes its link-layer address, [`FAR_MAC`], known.
    pub fn let_pod_be_entered(&mut self) {
        self.flag(self.pod_device(), DeviceFlags::PEER);
        for pod in [V4::POD, V6::POD] {
            ip(&format!("neigh add {pod} lladdr 02:00:00:00:00:02 dev pod0 nud permanent"));
        }
    }

    fn flag(&mut self, device: u32, flags: DeviceFlags) {
        let value: DeviceValue = self.hash("DEVICES").get(&device, 0).unwrap();
        self.hash("DEVICES").insert(device, DeviceValue { flags, ..value }, 0).unwrap();
    }

    /// Describes a device to the programs.
    pub fn device(&mut self, ifindex: u32, role: DeviceRole, snat4: IpAddr, snat6: IpAddr) {
        let value = DeviceValue {
            role,
            flags: DeviceFlags::default(),
            snat4: Addr4::from_ip(snat4).unwrap(),
            snat6: Addr6::from_ip(snat6).unwrap(),
            mac: NEAR_MAC,
            _pad: [0; 2],
        };
        self.hash("DEVICES").insert(ifindex, value, 0).unwrap();
    }

    /// Makes an address the node's.
    pub fn node_address<F: Family>(&mut self, addr: IpAddr)
    where
        NodeAddressKey<F>: Pod,
    {
        let key = NodeAddressKey::<F> { addr: F::Addr::from_ip(addr).unwrap() };
        let value = NodeAddressValue { ifindex: self.uplink() };
        self.hash(&name::<F>("NODE_ADDRESSES")).insert(key, value, 0).unwrap();
    }

    /// ifindex of the pod's device.
    pub fn pod_device(&self) -> u32 {
        self.devices[1]
    }

    /// Runs what a device has at a hook on a packet. Where XDP is in use: first the XDP program, then, if that leaves
    /// the packet alone, the tc program. What XDP has translated tc leaves as it is (`xdp.rs` proves that).
    pub fn run(&mut self, hook: Hook, packet: &[u8]) -> Ran {
        if self.xdp && matches!(hook, Hook::FromNetwork) {
            let ran = self.run_xdp(packet);
            match ran.code {
                XDP_PASS if ran.packet == packet => {}
                XDP_PASS => return Ran { code: UNSPEC, ..ran },
                XDP_TX | XDP_REDIRECT => return Ran { code: REDIRECT, ..ran },
                XDP_DROP => return Ran { code: SHOT, ..ran },
                other => panic!("XDP action {other}"),
            }
        }
        self.run_tc(hook, packet)
    }

    /// Runs the XDP program alone; its action and the packet afterwards.
    pub fn run_xdp(&mut self, packet: &[u8]) -> Ran {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, packet.len() as u32, 0, self.uplink(), 0, 0];
        let context: &[u8] = bytemuck::cast_slice(&context);
        let program = self.xdp_program("xdp_uplink_frags");
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(context),
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).expect("BPF_PROG_TEST_RUN");
        out.truncate(result.data_size_out as usize);
        Ran { code: result.return_value, packet: out }
    }

    /// Runs a tc program alone.
    pub fn run_tc(&mut self, hook: Hook, packet: &[u8]) -> Ran {
        let (name, ifindex) = self.program_at(hook);
        self.run_program(name, ifindex, packet)
    }

    /// Runs a tc program alone on a packet that is to leave in segments of `gso_size` bytes of payload (0: as it is).
    pub fn run_segmented(&mut self, hook: Hook, packet: &[u8], gso_size: u32) -> Ran {
        let (name, ifindex) = self.program_at(hook);
        self.run_as((name, ifindex), packet, gso_size)
    }

    /// The tc program at a hook, and its device.
    fn program_at(&self, hook: Hook) -> (&'static str, u32) {
        let [uplink, pod, _] = self.devices;
        match hook {
            Hook::FromNetwork => ("tc_uplink_ingress", uplink),
            Hook::ToNetwork => ("tc_uplink_egress", uplink),
            Hook::FromPod => ("tc_workload_ingress", pod),
            Hook::ToPod => ("tc_workload_egress", pod),
        }
    }

    /// Runs a tc program on a packet of the device `ifindex`.
    pub fn run_program(&mut self, name: &str, ifindex: u32, packet: &[u8]) -> Ran {
        self.run_as((name, ifindex), packet, 0)
    }

    fn run_as(&mut self, (name, ifindex): (&str, u32), packet: &[u8], gso_size: u32) -> Ran {
        let program = self.tc_program(name);
        // `struct __sk_buff`: ifindex and gso_size stand there. Everything else must be zero on the way in.
        let mut context = [0u8; 192];
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        context[176..180].copy_from_slice(&gso_size.to_ne_bytes());
        // Room for an ICMP error that quotes the packet.
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).expect("BPF_PROG_TEST_RUN");
        out.truncate(result.data_size_out as usize);
        Ran { code: result.return_value, packet: out }
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.ebpf.map_mut(name).expect(name).try_into().expect(name)
    }

    /// Verdicts counted since the node was started: (packets, bytes) of those that are not zero. What XDP handed on is
    /// not among them: tc has counted it as what it is.
    pub fn verdicts(&self) -> BTreeMap<Verdict, (u64, u64)> {
        let mut counted = self.all_verdicts();
        counted.remove(&Verdict::HandedOn);
        counted
    }

    /// The same with what XDP handed on.
    pub fn all_verdicts(&self) -> BTreeMap<Verdict, (u64, u64)> {
        let map = self.ebpf.map("COUNTERS").unwrap();
        let counters: PerCpuArray<&MapData, VerdictCounter> = map.try_into().unwrap();
        let sum = |verdict: &Verdict| {
            let values = counters.get(&(*verdict as u32), 0).unwrap();
            values.iter().fold((0, 0), |sum, value| (sum.0 + value.packets, sum.1 + value.bytes))
        };
        Verdict::ALL
            .iter()
            .map(|verdict| (*verdict, sum(verdict)))
            .filter(|(_, sum)| *sum != (0, 0))
            .collect()
    }

    fn traffic(&self, name: &str, index: u32) -> TrafficCounter {
        let counters: PerCpuArray<&MapData, TrafficCounter> =
            self.ebpf.map(name).unwrap().try_into().unwrap();
        let mut sum = TrafficCounter::default();
        for value in counters.get(&index, 0).unwrap().iter() {
            sum.connections += value.connections;
            sum.packets += value.packets;
            sum.bytes += value.bytes;
            sum.refused += value.refused;
        }
        sum
    }

    /// What a service port counted.
    pub fn service(&self, service_port: ServicePortId) -> TrafficCounter {
        self.traffic("SERVICE_COUNTERS", service_port.0)
    }

    /// What a backend counted.
    pub fn backend_traffic(&self, backend: BackendId) -> TrafficCounter {
        self.traffic("BACKEND_COUNTERS", backend.0)
    }

    /// The entry of a flow.
    pub fn connection<F: Family>(&mut self, flow: &FlowKey<F>) -> Option<ConnectionValue<F>>
    where
        FlowKey<F>: Pod,
        ConnectionValue<F>: Pod,
    {
        self.hash(&name::<F>("CONNECTIONS")).get(flow, 0).ok()
    }

    /// The entry of a flow of a flood.
    pub fn flood_entry<F: Family>(&mut self, flow: &FlowKey<F>) -> Option<ConnectionValue<F>>
    where
        FlowKey<F>: Pod,
        ConnectionValue<F>: Pod,
    {
        self.hash(&name::<F>("FLOOD")).get(flow, 0).ok()
    }

    /// Number of entries of flows of a flood, both directions.
    pub fn flood_entries<F: Family>(&mut self) -> usize
    where
        FlowKey<F>: Pod,
        ConnectionValue<F>: Pod,
    {
        self.hash::<FlowKey<F>, ConnectionValue<F>>(&name::<F>("FLOOD")).keys().count()
    }

    /// Flows of floods: recorded, and promoted of these.
    pub fn flood_flows(&self) -> (u64, u64) {
        let map = self.ebpf.map("NEW_FLOWS").unwrap();
        let flows: PerCpuArray<&MapData, NewFlows> = map.try_into().unwrap();
        let cpus = flows.get(&0, 0).unwrap();
        cpus.iter().fold((0, 0), |sum, cpu| (sum.0 + cpu.recorded, sum.1 + cpu.promoted))
    }

    /// Replaces the entry of a flow.
    pub fn set_connection<F: Family>(&mut self, flow: &FlowKey<F>, entry: ConnectionValue<F>)
    where
        FlowKey<F>: Pod,
        ConnectionValue<F>: Pod,
    {
        self.hash(&name::<F>("CONNECTIONS")).insert(*flow, entry, 0).unwrap();
    }

    /// Kinds of connections that may exist, as [`Kind::bit`]s.
    pub fn kinds(&mut self) -> u32 {
        let kinds = self.array::<Kinds>(maps::KINDS);
        kinds.get(&kind::RECORDED, 0).unwrap().since(&kinds.get(&kind::FORGOTTEN, 0).unwrap())
    }

    /// Forgets them, as if a collection had found no connections.
    pub fn forget_kinds(&mut self) {
        let mut kinds = self.array::<Kinds>(maps::KINDS);
        // The clock counts seconds: another connection within this one would not show.
        let before = Kinds { at: [Coarse(1); Kind::COUNT] };
        kinds.set(kind::RECORDED, before, 0).unwrap();
        kinds.set(kind::FORGOTTEN, before, 0).unwrap();
    }

    /// A flow of the host waits for this answer, or no more.
    pub fn host_flow<F: Family>(&mut self, answer: &FlowKey<F>, waits: bool)
    where
        FlowKey<F>: Pod,
    {
        let mut flows = self.hash(&name::<F>("HOST_FLOWS"));
        match waits {
            true => flows.insert(*answer, 1u32, 0).unwrap(),
            false => flows.remove(answer).unwrap(),
        }
    }

    /// Where XDP sent packets with `tuple`'s addresses last, as far as a CPU remembers it.
    pub fn next_hop<F: Family>(&mut self, from: u32, tuple: &Tuple<F>) -> Option<NextHopValue<F>>
    where
        NextHopValue<F>: Pod,
    {
        let map = self.ebpf.map(&name::<F>("NEXT_HOPS")).unwrap();
        let hops: PerCpuArray<&MapData, NextHopValue<F>> = map.try_into().unwrap();
        let hops = hops.get(&next_hop::slot(tuple), 0).unwrap();
        hops.iter().filter(|hop| hop.is_of(tuple, from)).max_by_key(|hop| hop.asked).copied()
    }

    /// Has every CPU remember `hop` for packets with `tuple`'s addresses.
    pub fn set_next_hop<F: Family>(&mut self, tuple: &Tuple<F>, hop: NextHopValue<F>)
    where
        NextHopValue<F>: Pod,
    {
        let map = self.ebpf.map_mut(&name::<F>("NEXT_HOPS")).unwrap();
        let mut hops: PerCpuArray<&mut MapData, NextHopValue<F>> = map.try_into().unwrap();
        let cpus = aya::util::nr_cpus().unwrap();
        let values = PerCpuValues::try_from(vec![hop; cpus]).unwrap();
        hops.set(next_hop::slot(tuple), values, 0).unwrap();
    }

    /// Number of entries of both directions.
    pub fn connections<F: Family>(&mut self) -> usize
    where
        FlowKey<F>: Pod,
        ConnectionValue<F>: Pod,
    {
        self.hash::<FlowKey<F>, ConnectionValue<F>>(&name::<F>("CONNECTIONS")).keys().count()
    }

    /// Affinity entries.
    pub fn affinity<F: Family>(&mut self) -> Vec<(AffinityKey<F>, AffinityValue)>
    where
        AffinityKey<F>: Pod,
    {
        self.hash(&name::<F>("AFFINITY")).iter().map(Result::unwrap).collect()
    }

    /// Replaces an affinity entry.
    pub fn set_affinity<F: Family>(&mut self, key: &AffinityKey<F>, value: AffinityValue)
    where
        AffinityKey<F>: Pod,
    {
        self.hash(&name::<F>("AFFINITY")).insert(*key, value, 0).unwrap();
    }

    /// Moves the generation of a service port.
    pub fn set_generation(&mut self, service_port: ServicePortId, generation: u32) {
        self.array("GENERATIONS").set(service_port.0, generation, 0).unwrap();
    }

    fn array<V: Pod>(&mut self, name: &str) -> Array<&mut MapData, V> {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }

    /// Sets the run-time settings.
    pub fn set_settings(&mut self, settings: Settings) {
        self.array("SETTINGS").set(0, settings, 0).unwrap();
    }

    /// Takes the events waiting in the ring buffer.
    pub fn events(&mut self) -> Vec<Event> {
        let mut ring: RingBuf<&mut MapData> = self.ebpf.map_mut("EVENTS").unwrap().try_into().unwrap();
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            events.push(bytemuck::pod_read_unaligned(&item));
        }
        events
    }

    /// Makes `network` the service CIDR in place `index`.
    pub fn service_cidr<F: Family>(&mut self, index: u32, network: IpAddr, mask: IpAddr)
    where
        CidrValue<F>: Pod,
    {
        let addr = |ip| F::Addr::from_ip(ip).unwrap();
        let value = CidrValue::<F> { network: addr(network), mask: addr(mask), used: 1 };
        self.array(&name::<F>("SERVICE_CIDRS")).set(index, value, 0).unwrap();
    }

    /// Makes `addr` a VIP.
    pub fn vip<F: Family>(&mut self, addr: IpAddr)
    where
        VipKey<F>: Pod,
    {
        let key = VipKey::<F> { addr: F::Addr::from_ip(addr).unwrap() };
        self.hash(&name::<F>("VIPS")).insert(key, VipValue { used: 1 }, 0).unwrap();
        self.add_bit(maps::VIP_HASHES, vip::hash(&key.addr));
    }

    /// Lets tunnels of `addr/bits` end here.
    pub fn peer<F: Family>(&mut self, addr: IpAddr, bits: u32)
    where
        F::Addr: Pod,
    {
        let map = self.ebpf.map_mut(&name::<F>("PEERS")).unwrap();
        let mut trie: LpmTrie<_, F::Addr, PeerValue> = map.try_into().unwrap();
        trie.insert(&Key::new(bits, F::Addr::from_ip(addr).unwrap()), PeerValue { allowed: 1 }, 0).unwrap();
    }

    /// Packets in tunnels so far: unwrapped, and of strangers.
    pub fn tunnels(&self) -> (u64, u64) {
        let map = self.ebpf.map("TUNNELS").unwrap();
        let counters: PerCpuArray<&MapData, TunnelCounter> = map.try_into().unwrap();
        let values = counters.get(&0, 0).unwrap();
        values.iter().fold((0, 0), |sum, value| (sum.0 + value.unwrapped, sum.1 + value.strangers))
    }

    /// Lets `cidr` use a service port's source-ranged frontends.
    pub fn source_range<F: Family>(&mut self, service_port: ServicePortId, addr: IpAddr, bits: u32)
    where
        lb_common::source_range::SourceRangeData<F>: Pod,
    {
        let key = SourceRangeKey::<F>::new(service_port, F::Addr::from_ip(addr).unwrap(), bits);
        let map = self.ebpf.map_mut(&name::<F>("SOURCE_RANGES")).unwrap();
        let mut trie: LpmTrie<_, lb_common::source_range::SourceRangeData<F>, SourceRangeValue> =
            map.try_into().unwrap();
        trie.insert(&Key::new(key.prefix_len, key.data), SourceRangeValue { allowed: 1 }, 0).unwrap();
    }
}

/// Whole name of a family's map.
fn name<F: Family>(base: &str) -> String {
    format!("{base}{}", F::DIGIT)
}

/// ifindex of a device in the thread's namespace.
pub fn ifindex(name: &str) -> u32 {
    let text = Command::new("ip").args(["-o", "link", "show", name]).output().expect("run ip").stdout;
    let text = String::from_utf8(text).unwrap();
    text.split(':').next().and_then(|index| index.trim().parse().ok()).expect("an ifindex")
}

/// Runs `ip -batch` in the thread's namespace.
pub fn ip(batch: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, batch.as_bytes()).unwrap();
    let output = Command::new("ip").arg("-batch").arg(file.path()).output().expect("run ip");
    assert!(output.status.success(), "ip -batch: {}", String::from_utf8_lossy(&output.stderr));
}
