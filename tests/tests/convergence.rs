//! Whatever happens on the way, the maps end up meaning what the objects that are left say: random changes, random
//! syncs, failing writes, restarts.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        core::v1::{ClientIPConfig, Service, ServicePort, ServiceSpec, SessionAffinityConfig},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use lb_agent::{
    desired::maglev::TableSize,
    maps::{
        Capacity, FamilyState, MapFamily, MapState, Maps,
        dump::frontend_address,
        fake::{FakeMaps, Faults},
    },
    model::node::NodeAddresses,
    reconcile::{ReconcileConfig, Reconciler, SyncOutcome},
    source::{Change, Kind, Object, ObjectRef},
};
use lb_common::{
    backend::MemberKey,
    family::{Address, V4, V6},
    frontend::Run,
    id::{BackendId, ServicePortId},
};
use proptest::prelude::*;

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    Service {
        name: u8,
        vip: u8,
        node_port: Option<u8>,
        is_local: bool,
        affinity: bool,
        dual: bool,
        maglev: bool,
    },
    Slice {
        name: u8,
        service: u8,
        hosts: Vec<(u8, u8)>,
        is_v6: bool,
    },
    DeleteService(u8),
    DeleteSlice(u8),
    Addresses(BTreeSet<u8>),
    Sync,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, 0u8..5, prop::option::of(0u8..3), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(name, vip, node_port, is_local, affinity, dual, maglev)| Step::Service { name, vip, node_port, is_local, affinity, dual, maglev }
        ),
        6 => (0u8..5, 0u8..4, prop::collection::vec((0u8..6, 0u8..5), 0..4), any::<bool>())
            .prop_map(|(name, service, hosts, is_v6)| Step::Slice { name, service, hosts, is_v6 }),
        2 => (0u8..4).prop_map(Step::DeleteService),
        2 => (0u8..5).prop_map(Step::DeleteSlice),
        1 => prop::collection::btree_set(0u8..4, 0..3).prop_map(Step::Addresses),
        4 => Just(Step::Sync),
        1 => Just(Step::Restart),
    ]
}

fn metadata(name: String) -> ObjectMeta {
    ObjectMeta { name: Some(name), namespace: Some("default".to_owned()), ..ObjectMeta::default() }
}

/// VIPs and NodePorts come from so small a stock that services fight over them.
fn service(
    name: u8,
    vip: u8,
    (node_port, is_local, affinity, dual, maglev): (Option<u8>, bool, bool, bool, bool),
) -> Object {
    let port = ServicePort {
        port: 80,
        node_port: node_port.map(|port| 30_000 + i32::from(port)),
        ..ServicePort::default()
    };
    let (v4, v6) = (format!("10.96.0.{vip}"), format!("fd00:96::{vip}"));
    let families = if dual { vec!["IPv4", "IPv6"] } else { vec!["IPv4"] };
    let timeout =
        Some(SessionAffinityConfig { client_ip: Some(ClientIPConfig { timeout_seconds: Some(60) }) });
    let spec = ServiceSpec {
        type_: Some("NodePort".to_owned()),
        cluster_ip: Some(v4.clone()),
        cluster_ips: Some(if dual { vec![v4, v6] } else { vec![v4] }),
        ip_families: Some(families.into_iter().map(str::to_owned).collect()),
        external_ips: Some(vec![format!("198.51.100.{}", vip % 2)]),
        external_traffic_policy: is_local.then(|| "Local".to_owned()),
        session_affinity: affinity.then(|| "ClientIP".to_owned()),
        session_affinity_config: timeout.filter(|_| affinity),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    let mut metadata = metadata(format!("s{name}"));
    metadata.annotations = maglev.then(|| [("lb-ebpf.io/algorithm".to_owned(), "maglev".to_owned())].into());
    Object::Service(Box::new(Service { metadata, spec: Some(spec), ..Service::default() }))
}

fn slice(name: u8, service: u8, hosts: &[(u8, u8)], is_v6: bool) -> Object {
    let mut metadata = metadata(format!("e{name}"));
    metadata.labels = Some([("kubernetes.io/service-name".to_owned(), format!("s{service}"))].into());
    let endpoints = hosts.iter().map(|(host, condition)| Endpoint {
        addresses: vec![if is_v6 { format!("fd00:244::{host}") } else { format!("10.244.0.{host}") }],
        conditions: Some(EndpointConditions {
            ready: Some(*condition < 2),
            serving: Some(*condition < 4),
            terminating: Some(*condition == 3),
        }),
        node_name: Some(if host % 2 == 0 { "node-a" } else { "node-b" }.to_owned()),
        ..Endpoint::default()
    });
    let port = EndpointPort { name: Some(String::new()), port: Some(8080), ..EndpointPort::default() };
    Object::EndpointSlice(Box::new(EndpointSlice {
        address_type: if is_v6 { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: Some(endpoints.collect()),
        ports: Some(vec![port]),
        metadata,
    }))
}

/// The world of a test: what exists, and the control plane that follows it.
struct World {
    objects: BTreeMap<ObjectRef, Object>,
    addresses: NodeAddresses,
    reconciler: Option<Reconciler<FakeMaps>>,
}

fn start(
    maps: FakeMaps,
    objects: &BTreeMap<ObjectRef, Object>,
    addresses: &NodeAddresses,
) -> Reconciler<FakeMaps> {
    let node_name = "node-a".to_owned();
    let table_size = TableSize::new(251).unwrap();
    let config = ReconcileConfig { node_name, table_size, ..ReconcileConfig::default() };
    let mut reconciler = Reconciler::new(maps, config).unwrap();
    reconciler.set_node_addresses(addresses.clone());
    objects.values().for_each(|object| reconciler.apply_change(Change::Applied(object.clone())));
    reconciler.apply_change(Change::Synced(Kind::Service));
    reconciler.apply_change(Change::Synced(Kind::EndpointSlice));
    reconciler
}

impl World {
    fn new(faults: Faults) -> Self {
        let mut maps = FakeMaps::default();
        maps.set_faults(faults);
        // Little more than the largest world needs, so that ids and slots come round again.
        maps.capacity = Capacity { service_ports: 16, backends: 48, slots: 200 + 24 * 251 };
        let (objects, addresses) = (BTreeMap::new(), NodeAddresses::default());
        Self { reconciler: Some(start(maps, &objects, &addresses)), objects, addresses }
    }

    fn reconciler(&mut self) -> &mut Reconciler<FakeMaps> {
        self.reconciler.as_mut().unwrap()
    }

    fn apply(&mut self, object: Object) {
        self.objects.insert(object.object_ref(), object.clone());
        self.reconciler().apply_change(Change::Applied(object));
    }

    fn delete(&mut self, kind: Kind, name: String) {
        let id = ObjectRef { kind, namespace: "default".to_owned(), name };
        self.objects.remove(&id);
        self.reconciler().apply_change(Change::Deleted(id));
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Service { name, vip, node_port, is_local, affinity, dual, maglev } => {
                self.apply(service(*name, *vip, (*node_port, *is_local, *affinity, *dual, *maglev)));
            }
            Step::Slice { name, service, hosts, is_v6 } => self.apply(slice(*name, *service, hosts, *is_v6)),
            Step::DeleteService(name) => self.delete(Kind::Service, format!("s{name}")),
            Step::DeleteSlice(name) => self.delete(Kind::EndpointSlice, format!("e{name}")),
            Step::Addresses(last) => {
                let ips = last.iter().map(|last| format!("192.0.2.{last}").parse().unwrap());
                self.addresses = NodeAddresses(ips.collect());
                let addresses = self.addresses.clone();
                self.reconciler().set_node_addresses(addresses);
            }
            Step::Sync => self.sync_once(),
            Step::Restart => {
                let maps = self.reconciler.take().unwrap().into_maps();
                self.reconciler = Some(start(maps, &self.objects, &self.addresses));
            }
        }
    }

    /// One sync, complete or not; every write of it must have been safe.
    fn sync_once(&mut self) {
        let mut replay = self.reconciler().maps().state.clone();
        self.reconciler().maps_mut().writes.clear();
        let _ = self.reconciler().sync();
        for write in &self.reconciler().maps().writes {
            replay.apply(write);
            assert_eq!(replay.inconsistencies(), Vec::<String>::new(), "after {write}");
        }
    }

    fn settle(&mut self) -> MapState {
        for _ in 0..1000 {
            self.sync_once();
            if !self.reconciler().needs_sync() && self.reconciler().sync().is_ok() {
                assert!(!self.reconciler().verify().unwrap(), "the mirror differs from the maps");
                return self.reconciler().maps_mut().dump().unwrap();
            }
        }
        panic!("not synced after 1000 tries");
    }
}

/// What maps mean to a client, whatever ids and slots they use.
fn meaning(state: &MapState) -> BTreeSet<String> {
    let mut lines = family_meaning::<V4>(state);
    lines.extend(family_meaning::<V6>(state));
    lines
}

fn family_meaning<F: MapFamily>(state: &MapState) -> BTreeSet<String> {
    let family = F::of(state);
    let mut lines = BTreeSet::new();
    for (key, value) in &family.frontends {
        let run = |run: Run| -> Vec<String> {
            (run.base..run.base + run.count).map(|slot| name(family, state.slots[&slot])).collect()
        };
        let (internal, external) = (run(value.internal), run(value.external));
        let members: BTreeSet<_> = members(state, value.service_port)
            .filter(|(backend, _)| family.backends.contains_key(backend))
            .map(|(backend, state)| format!("{} {state}", name(family, backend)))
            .collect();
        let (kind, flags, timeout) = (value.kind.name(), value.flags, value.affinity_timeout_s);
        let address = frontend_address(key);
        lines.insert(format!("{address} {kind} {flags:?} {timeout} {internal:?} {external:?} {members:?}"));
    }
    lines.extend(family.backends.values().map(|value| format!("{value:?}")));
    lines
}

fn name<F: MapFamily>(family: &FamilyState<F>, id: BackendId) -> String {
    let value = &family.backends[&id];
    format!("{}:{}", value.addr.to_ip(), value.port.get())
}

fn members(state: &MapState, id: ServicePortId) -> impl Iterator<Item = (BackendId, &'static str)> {
    let all = MemberKey { service_port: id, backend: BackendId(0) }..=MemberKey {
        service_port: id,
        backend: BackendId(u32::MAX),
    };
    state.members.range(all).map(|(key, value)| (key.backend, value.state.name()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_maps_end_up_meaning_what_the_objects_say(
        steps in prop::collection::vec(step(), 1..40),
        percent in prop_oneof![Just(0u64), Just(10), Just(40)],
        seed: u64,
    ) {
        let mut world = World::new(Faults { percent, seed });
        steps.iter().for_each(|step| world.take(step));
        let settled = world.settle();
        let mut fresh = start(FakeMaps::default(), &world.objects, &world.addresses);
        fresh.sync().unwrap();
        prop_assert_eq!(meaning(&settled), meaning(&fresh.maps_mut().dump().unwrap()));
    }

    /// ClusterIPs are each service's own here: a service port that has lost every frontend to others cannot be
    /// recognised after a restart, and need not be.
    #[test]
    fn a_restart_keeps_every_id_and_moves_generations_only(mut steps in prop::collection::vec(step(), 1..40)) {
        for step in &mut steps {
            if let Step::Service { name, vip, .. } = step {
                *vip = *name;
            }
        }
        let mut world = World::new(Faults::default());
        steps.iter().for_each(|step| world.take(step));
        let before = world.settle();
        world.take(&Step::Restart);
        let mut after = world.settle();
        let used: BTreeSet<_> = after.v4.frontends.values().map(|value| value.service_port).collect();
        for (id, generation) in &mut after.generations {
            // Freed ids move as well: their former agent may have died before it moved them.
            *generation -= u32::from(used.contains(id) || before.generations.contains_key(id));
        }
        after.generations.retain(|_, generation| *generation > 0);
        prop_assert_eq!(after, before, "spec 8.14");
    }
}

#[test]
fn nothing_is_written_before_services_and_slices_have_both_been_delivered() {
    for order in [[Kind::Service, Kind::EndpointSlice], [Kind::EndpointSlice, Kind::Service]] {
        let mut reconciler = Reconciler::new(FakeMaps::default(), ReconcileConfig::default()).unwrap();
        reconciler.apply_change(Change::Applied(service(1, 1, (None, false, false, false, false))));
        for kind in [order[0], Kind::Node, Kind::ServiceCidr] {
            reconciler.apply_change(Change::Synced(kind));
            assert_eq!(reconciler.sync().unwrap(), SyncOutcome::Waiting, "spec 8.11");
        }
        assert!(reconciler.maps().writes.is_empty());
        assert!(!reconciler.report().synced);
        reconciler.apply_change(Change::Synced(order[1]));
        assert!(
            matches!(reconciler.sync().unwrap(), SyncOutcome::Done { services: 1, writes } if writes > 0)
        );
        assert!(reconciler.report().synced);
    }
}

#[test]
fn a_freed_id_is_not_given_out_again_soon() {
    let mut world = World::new(Faults::default());
    world.reconciler = Some(start(FakeMaps::default(), &world.objects, &world.addresses));
    let mut given = BTreeSet::new();
    for _ in 0..50 {
        world.apply(service(1, 1, (None, false, false, false, false)));
        world.apply(slice(1, 1, &[(1, 0)], false));
        let state = world.settle();
        let (backend, port) =
            (state.v4.backends.keys().next().unwrap().0, state.v4.frontends.values().next().unwrap());
        assert!(given.insert((backend, port.service_port.0)));
        world.delete(Kind::Service, "s1".to_owned());
        world.settle();
    }
    assert_eq!(given.iter().map(|(backend, _)| backend).collect::<BTreeSet<_>>().len(), 50);
    assert_eq!(given.iter().map(|(_, port)| port).collect::<BTreeSet<_>>().len(), 50);
}
