//! The control plane on real BPF maps. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{collections::BTreeSet, fs, os::fd::AsFd as _};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues, lpm_trie::Key};
use lb_agent::{
    datapath::bpf as calls,
    desired::census::ServicePort,
    host_flows::{HostFlows, HostFlowsMaps},
    inspect,
    maps::{Capacity, FamilyWrite, MapError, MapState, Maps, Write, bpf::BpfMaps},
    metrics::{snapshot::ControlSnapshot, traffic::Traffic},
    model::{
        node::NodeAddresses,
        service::{PortName, ServiceName},
    },
    reconcile::{ReconcileConfig, Reconciler},
    source::{Change, Kind, ObjectRef},
};
use lb_common::{
    backend::BackendValue,
    bit_set,
    counters::TrafficCounter,
    family::{Addr4, Address as _, Be16, Protocol, V4},
    flow::{FlowKey, Tuple},
    frontend::{FrontendKey, FrontendValue},
    id::{BackendId, ServicePortId},
    maps,
    source_range::{SourceRangeData, SourceRangeValue},
    vip,
};
use lb_tests::{
    pinned_maps::PinnedMaps,
    script::{parse_objects, testdata},
};

/// A control plane that has been given these manifests and not written yet.
fn reconciler(pins: &PinnedMaps, manifests: &[&str]) -> Reconciler<BpfMaps> {
    reconciler_of(BpfMaps::open(pins.dir()).unwrap(), manifests)
}

/// The same with these maps.
fn reconciler_of<M: Maps>(maps: M, manifests: &[&str]) -> Reconciler<M> {
    let config =
        ReconcileConfig { node_name: "node-a".to_owned(), first_id: Some(1), ..ReconcileConfig::default() };
    let mut reconciler = Reconciler::new(maps, config).unwrap();
    reconciler.set_node_addresses(NodeAddresses(
        ["192.0.2.10", "2001:db8::10"].map(|ip| ip.parse().unwrap()).into(),
    ));
    for manifest in manifests {
        let text = fs::read_to_string(testdata().join("manifests").join(manifest)).unwrap();
        parse_objects(&text)
            .unwrap()
            .into_iter()
            .for_each(|object| reconciler.apply_change(Change::Applied(object)));
    }
    reconciler.apply_change(Change::Synced(Kind::Service));
    reconciler.apply_change(Change::Synced(Kind::EndpointSlice));
    reconciler
}

/// The dump a script of the control plane expects after its first `apply`.
fn expected(script: &str) -> String {
    let text = fs::read_to_string(testdata().join("control_plane").join(script)).unwrap();
    let after = text.split("== maps\n").nth(1).unwrap();
    after.split("\n== ").next().unwrap().trim_end().to_owned() + "\n"
}

#[test]
fn the_kernel_holds_what_the_scripts_expect_and_lets_it_go_again() {
    let pins = PinnedMaps::create(&[]).unwrap();
    for manifest in ["dual-stack", "loadbalancer", "nodeport"] {
        let mut reconciler = reconciler(&pins, &[&format!("{manifest}.yaml")]);
        // The maps are used again; what the former round left is deleted, and generations are never reset.
        reconciler.sync().unwrap();
        assert!(!reconciler.verify().unwrap(), "the mirror equals the kernel's maps");
        let dump = reconciler.maps_mut().dump().unwrap();
        assert_eq!(dump.inconsistencies(), Vec::<String>::new());
        if manifest == "dual-stack" {
            assert_eq!(dump.to_string(), expected("dual-stack.txt"));
        }
    }
    let mut empty = reconciler(&pins, &[]);
    empty.sync().unwrap();
    let dump = empty.maps_mut().dump().unwrap();
    let lines = dump.to_string();
    assert!(lines.lines().all(|line| line.starts_with("GENERATION ")), "{lines}");
}

fn words(pins: &PinnedMaps, set: &str) -> Array<MapData, u64> {
    Map::from_map_data(MapData::from_pin(pins.dir().join(set)).unwrap()).unwrap().try_into().unwrap()
}

fn has(pins: &PinnedMaps, set: &str, number: u16) -> bool {
    words(pins, set).get(&bit_set::word(number), 0).unwrap() & bit_set::bit(number) != 0
}

#[test]
fn the_bits_of_what_is_written_are_set_and_stay_set() {
    let pins = PinnedMaps::create(&[]).unwrap();
    let vip = vip::hash(&Addr4([10, 96, 0, 10]));
    let bits = [(maps::PORTS, 53), (maps::TARGET_PORTS, 5353), (maps::VIP_HASHES, vip)];
    let found = |pins: &PinnedMaps| bits.map(|(set, number)| has(pins, set, number));
    let mut first = reconciler(&pins, &["dual-stack.yaml"]);
    assert_eq!(found(&pins), [false; 3]);
    first.sync().unwrap();
    assert_eq!(found(&pins), [true; 3]);
    assert!(!has(&pins, maps::PORTS, 54));
    for (set, number) in bits {
        words(&pins, set).set(bit_set::word(number), 0, 0).unwrap();
    }
    assert_eq!(found(&pins), [false; 3], "somebody else took them away");
    first.verify().unwrap();
    assert_eq!(found(&pins), [true; 3]);
    drop(first);
    let mut empty = reconciler(&pins, &[]);
    empty.sync().unwrap();
    empty.verify().unwrap();
    assert_eq!(found(&pins), [true; 3], "connections may outlive their frontends");
}

#[test]
fn a_fresh_agent_finds_its_ids_and_changes_generations_only() {
    let pins = PinnedMaps::create(&[]).unwrap();
    let mut first = reconciler(&pins, &["dual-stack.yaml", "loadbalancer.yaml"]);
    first.sync().unwrap();
    let before = first.maps_mut().dump().unwrap();
    drop(first);
    let mut second = reconciler(&pins, &["dual-stack.yaml", "loadbalancer.yaml"]);
    second.sync().unwrap();
    let mut after = second.maps_mut().dump().unwrap();
    after.generations.iter_mut().for_each(|(_, generation)| *generation -= 1);
    assert_eq!(after, before, "spec 8.14");
}

#[test]
fn connections_of_a_half_deleted_service_end_with_the_next_start() {
    let pins = PinnedMaps::create(&[]).unwrap();
    let mut first = reconciler(&pins, &["dual-stack.yaml"]);
    first.sync().unwrap();
    let before = first.maps_mut().dump().unwrap();
    drop(first);
    // Every write of the deletion but those of generations: what an agent leaves that dies just before them.
    let mut dying = BpfMaps::open(pins.dir()).unwrap();
    for write in lb_agent::diff::diff(&before, &Default::default()) {
        dying.apply(&write).unwrap();
    }
    assert_eq!(dying.dump().unwrap().generations, before.generations);
    let mut next = reconciler(&pins, &[]);
    next.sync().unwrap();
    let mut expected = before.generations.clone();
    assert!(!expected.is_empty());
    expected.values_mut().for_each(|generation| *generation += 1);
    assert_eq!(next.maps_mut().dump().unwrap().generations, expected);
}

#[test]
fn a_map_that_is_too_small_says_so_and_costs_only_what_does_not_fit() {
    let pins = PinnedMaps::create(&[("FRONTENDS6", 1)]).unwrap();
    let mut reconciler = reconciler(&pins, &["dual-stack.yaml", "nodeport.yaml"]);
    let error = reconciler.sync().unwrap_err().to_string();
    assert!(error.ends_with("map FRONTENDS6 is full (1 entries); raise --max-frontends"), "{error}");
    let dump = reconciler.maps_mut().dump().unwrap();
    assert_eq!((dump.v6.frontends.len(), dump.v4.frontends.len()), (1, 10), "IPv4 is complete");
    assert!(dump.inconsistencies().is_empty());
    let report = reconciler.report();
    assert_eq!((report.failures, report.synced), (1, false));
    assert!(report.last_error.is_some());

    // Room again: the wish is still there.
    let id = ObjectRef { kind: Kind::Service, namespace: "kube-system".to_owned(), name: "dns".to_owned() };
    reconciler.apply_change(Change::Deleted(id));
    reconciler.sync().unwrap();
    assert!(reconciler.maps_mut().dump().unwrap().v6.frontends.is_empty());
}

fn backend(id: u32, port: u16) -> Write {
    let addr = Addr4::from_ip(std::net::Ipv4Addr::from(id).into()).unwrap();
    let value = BackendValue { addr, port: Be16::new(port), ..BackendValue::default() };
    Write::V4(FamilyWrite::Backend(BackendId(id), Some(value)))
}

#[test]
fn a_batch_ends_where_its_map_is_full_and_the_next_write_says_why() {
    let pins = PinnedMaps::create(&[("BACKENDS4", 3)]).unwrap();
    let mut maps = BpfMaps::open(pins.dir()).unwrap();
    assert_eq!(maps.apply_batch(&[]), 0);
    let writes = [1, 2, 3, 4, 5].map(|id| backend(id, 80));
    assert_eq!(maps.apply_batch(&writes), 3);
    let ports = |maps: &mut BpfMaps| -> Vec<(u32, u16)> {
        let backends = maps.dump().unwrap().v4.backends;
        backends.iter().map(|(id, value)| (id.0, value.port.get())).collect()
    };
    assert_eq!(ports(&mut maps), [(1, 80), (2, 80), (3, 80)]);
    let error = maps.apply(&writes[3]).unwrap_err().to_string();
    assert!(error.starts_with("write BACKEND id=4 "), "{error}");
    assert!(error.ends_with("map BACKENDS4 is full (3 entries); raise --max-backends"), "{error}");
    // What is there is replaced in a full map too; what follows the one without room is not tried.
    assert_eq!(maps.apply_batch(&[backend(3, 81), backend(4, 81), backend(1, 81)]), 1);
    assert_eq!(ports(&mut maps), [(1, 80), (2, 80), (3, 81)]);
}

#[test]
fn a_full_map_costs_the_writes_behind_it_in_the_batch_only() {
    let pins = PinnedMaps::create(&[("FRONTENDS4", 4)]).unwrap();
    let mut reconciler = reconciler(&pins, &["dual-stack.yaml", "nodeport.yaml"]);
    let error = reconciler.sync().unwrap_err();
    assert_eq!(error.count, 6, "{error}");
    let dump = reconciler.maps_mut().dump().unwrap();
    assert_eq!((dump.v4.frontends.len(), dump.inconsistencies().len()), (4, 0));
    let whole = {
        let pins = PinnedMaps::create(&[]).unwrap();
        let mut reconciler = self::reconciler(&pins, &["dual-stack.yaml", "nodeport.yaml"]);
        reconciler.sync().unwrap();
        reconciler.maps_mut().dump().unwrap()
    };
    let expected: Vec<_> = whole.v4.frontends.iter().take(4).collect();
    assert_eq!(dump.v4.frontends.iter().collect::<Vec<_>>(), expected, "the first four of the plan");
    assert_eq!(dump.v4.backends, whole.v4.backends);
    assert!(dump.v6 == whole.v6 && dump.members == whole.members, "everything else is complete");
}

/// Every type of map the control plane writes takes batches.
#[test]
fn whole_plans_go_in_batches() {
    let pins = PinnedMaps::create(&[]).unwrap();
    let mut source = reconciler(&pins, &["dual-stack.yaml", "nodeport.yaml", "loadbalancer.yaml"]);
    source.sync().unwrap();
    let want = source.maps_mut().dump().unwrap();
    let pins = PinnedMaps::create(&[]).unwrap();
    let mut maps = BpfMaps::open(pins.dir()).unwrap();
    let plan = lb_agent::diff::diff(&MapState::default(), &want);
    let mut touched = Vec::new();
    for batch in plan.chunk_by(Write::puts_beside) {
        assert_eq!(maps.apply_batch(batch), batch.len(), "{}", batch[0]);
        touched.push(batch[0].map());
    }
    assert_eq!(maps.dump().unwrap(), want);
    for map in ["BACKENDS4", "BACKENDS6", "FRONTENDS4", "MEMBERS", "SLOTS", "SOURCE_RANGES4", "VIPS4"] {
        assert!(touched.iter().any(|name| name == map), "{map}: {touched:?}");
    }
    assert!(has(&pins, maps::PORTS, 53));
}

/// Maps of a kernel that has no batches for them.
struct NoBatches(BpfMaps);

impl Maps for NoBatches {
    fn apply(&mut self, write: &Write) -> Result<(), MapError> {
        self.0.apply(write)
    }
    fn apply_batch(&mut self, _: &[Write]) -> usize {
        0
    }
    fn dump(&mut self) -> Result<MapState, MapError> {
        self.0.dump()
    }
    fn capacity(&self) -> Capacity {
        self.0.capacity()
    }
}

#[test]
fn without_batches_every_write_goes_by_itself() {
    let pins = PinnedMaps::create(&[]).unwrap();
    let maps = NoBatches(BpfMaps::open(pins.dir()).unwrap());
    let mut reconciler = reconciler_of(maps, &["dual-stack.yaml"]);
    reconciler.sync().unwrap();
    assert_eq!(reconciler.maps_mut().dump().unwrap().to_string(), expected("dual-stack.txt"));
    // A type of map of which the kernel takes none.
    let ring = calls::open_pin(&pins.dir().join(maps::EVENTS)).unwrap();
    assert_eq!(calls::update_batch(ring.as_fd(), &[1u32, 2], &[1u32, 2]), 0);
}

#[test]
fn what_somebody_else_changed_is_found_and_repaired() {
    let pins = PinnedMaps::create(&[]).unwrap();
    let mut reconciler = reconciler(&pins, &["dual-stack.yaml"]);
    reconciler.sync().unwrap();
    let before = reconciler.maps_mut().dump().unwrap();
    let mut stranger = BpfMaps::open(pins.dir()).unwrap();
    for write in lb_agent::diff::diff(&before, &Default::default()) {
        stranger.apply(&write).unwrap();
    }
    assert!(reconciler.verify().unwrap());
    reconciler.sync().unwrap();
    assert_eq!(reconciler.maps_mut().dump().unwrap(), before);
    assert_eq!(reconciler.report().repairs, 1);
}

#[test]
fn a_directory_without_maps_is_named() {
    let error = BpfMaps::open("/sys/fs/bpf/lb-tests-nowhere".as_ref()).err().unwrap().to_string();
    assert!(error.starts_with("open map FRONTENDS4 at /sys/fs/bpf/lb-tests-nowhere/FRONTENDS4: "), "{error}");
}

fn service_port(id: u32) -> ServicePort {
    let service = ServiceName { namespace: "default".into(), name: format!("s{id}").into() };
    let port = PortName { name: "".into(), protocol: Protocol::TCP };
    ServicePort { id: ServicePortId(id), service, port }
}

/// As many as there can be, so that batches end at every kind of place.
#[test]
fn counters_of_every_service_port_are_the_sum_over_the_cpus() {
    let pins = PinnedMaps::create(&[]).unwrap();
    let data = MapData::from_pin(pins.dir().join(maps::SERVICE_COUNTERS)).unwrap();
    let mut counters: PerCpuArray<_, TrafficCounter> = PerCpuArray::try_from(Map::PerCpuArray(data)).unwrap();
    let cpus = aya::util::nr_cpus().unwrap();
    let last = counters.len() - 1;
    let ids = || (1..=last).filter(|id| id % 100 != 50);
    for id in ids() {
        let of = |cpu: usize| TrafficCounter {
            connections: u64::from(id),
            packets: cpu as u64,
            bytes: 1,
            refused: 0,
        };
        let values = PerCpuValues::try_from((0..cpus).map(of).collect::<Vec<_>>()).unwrap();
        counters.set(id, values, 0).unwrap();
    }
    let known =
        ControlSnapshot { service_ports: ids().map(service_port).collect(), ..ControlSnapshot::default() };
    let traffic = Traffic::read(pins.dir(), known).unwrap();
    assert!(traffic.service_ports.iter().map(|(port, _)| port.id.0).eq(ids()));
    let packets = (0..cpus as u64).sum::<u64>();
    for (port, counter) in traffic.service_ports {
        let connections = u64::from(port.id.0) * cpus as u64;
        assert_eq!(
            counter,
            TrafficCounter { connections, packets, bytes: cpus as u64, refused: 0 },
            "{port:?}"
        );
    }
}

#[test]
fn flows_of_the_host_replace_those_of_the_round_before_and_of_a_former_agent() {
    let pins = PinnedMaps::create(&[("HOST_FLOWS4", 2)]).unwrap();
    let key = |port| {
        let addr = |ip: &str| Addr4::from_ip(ip.parse().unwrap()).unwrap();
        let (src_port, dst_port) = (Be16::new(80), Be16::new(port));
        let tuple = Tuple { src: addr("10.0.0.1"), dst: addr("192.0.2.1"), src_port, dst_port };
        FlowKey::<V4>::new(tuple, Protocol::TCP)
    };
    let flows =
        |ports: &[u16]| HostFlows { v4: ports.iter().copied().map(key).collect(), ..HostFlows::default() };
    let entries = || {
        let data = MapData::from_pin(pins.dir().join("HOST_FLOWS4")).unwrap();
        let map: HashMap<_, FlowKey<V4>, u32> = HashMap::try_from(Map::HashMap(data)).unwrap();
        map.keys().map(|key| key.unwrap().tuple.dst_port.get()).collect::<BTreeSet<_>>()
    };
    let mut maps = HostFlowsMaps::open(pins.dir()).unwrap();
    maps.replace(flows(&[2000, 2001])).unwrap();
    assert_eq!(entries(), [2000, 2001].into());
    // What goes makes room for what comes.
    maps.replace(flows(&[2001, 2002])).unwrap();
    assert_eq!(entries(), [2001, 2002].into());
    let error = maps.replace(flows(&[2001, 2002, 2003])).unwrap_err().to_string();
    assert!(error.starts_with("write HOST_FLOWS4: "), "{error}");
    assert_eq!(entries(), [2001, 2002].into());
    HostFlowsMaps::open(pins.dir()).unwrap().replace(flows(&[2002])).unwrap();
    assert_eq!(entries(), [2002].into(), "what a former agent left has gone");
}

#[test]
fn the_fill_of_a_map_is_counted_over_many_batches() {
    let pins = PinnedMaps::create(&[]).unwrap();
    let data = |name: &str| MapData::from_pin(pins.dir().join(name)).unwrap();
    let mut frontends: HashMap<_, FrontendKey<V4>, FrontendValue> =
        HashMap::try_from(Map::HashMap(data("FRONTENDS4"))).unwrap();
    let mut ranges: LpmTrie<_, SourceRangeData<V4>, SourceRangeValue> =
        LpmTrie::try_from(Map::LpmTrie(data("SOURCE_RANGES4"))).unwrap();
    for number in 0..10_000_u32 {
        let addr = Addr4::from_ip(std::net::Ipv4Addr::from(number).into()).unwrap();
        let key = FrontendKey::new(addr, Be16::new(80), Protocol::TCP);
        frontends.insert(key, FrontendValue::default(), 0).unwrap();
        let range = SourceRangeData { service_port: ServicePortId(1), addr };
        ranges.insert(&Key::new(64, range), SourceRangeValue::default(), 0).unwrap();
    }
    let fill = inspect::map_fill(pins.dir()).unwrap();
    let entries = |name: &str| fill.iter().find(|map| map.name == name).unwrap().entries;
    assert_eq!(
        (entries("FRONTENDS4"), entries("SOURCE_RANGES4"), entries("FRONTENDS6")),
        (10_000, 10_000, 0)
    );
}
