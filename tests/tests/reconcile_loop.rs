//! The reconcile loop with its clock: at once, not too often, again after a failure, in full now and then.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, time::Duration};

use lb_agent::{
    maps::fake::{FakeMaps, Faults},
    model::node::NodeAddresses,
    reconcile::{
        ReconcileConfig, Reconciler,
        run::{Inputs, Outputs, Query, Timing, run},
    },
    report::SyncReport,
    source::{Change, Kind, Object, ObjectRef},
};
use lb_tests::script::{parse_objects, testdata};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// A loop that runs, with the other ends of its inputs.
struct Running {
    changes: mpsc::Sender<Change>,
    addresses: watch::Sender<NodeAddresses>,
    queries: mpsc::Sender<Query>,
    shutdown: CancellationToken,
    task: JoinHandle<Reconciler<FakeMaps>>,
}

fn reconciler(faults: Faults) -> Reconciler<FakeMaps> {
    let mut maps = FakeMaps::default();
    maps.set_faults(faults);
    Reconciler::new(maps, ReconcileConfig { node_name: "node-a".to_owned(), ..ReconcileConfig::default() })
        .unwrap()
}

fn start(reconciler: Reconciler<FakeMaps>, timing: Timing) -> Running {
    let (changes, changes_in) = mpsc::channel(64);
    let (addresses, node_addresses) = watch::channel(NodeAddresses::default());
    let (queries, queries_in) = mpsc::channel(8);
    let shutdown = CancellationToken::new();
    let inputs =
        Inputs { changes: changes_in, node_addresses, queries: queries_in, shutdown: shutdown.clone() };
    Running {
        changes,
        addresses,
        queries,
        shutdown,
        task: tokio::spawn(run(reconciler, inputs, Outputs::default(), timing)),
    }
}

fn objects(manifest: &str) -> Vec<Object> {
    parse_objects(&fs::read_to_string(testdata().join("manifests").join(manifest)).unwrap()).unwrap()
}

impl Running {
    async fn deliver(&self, manifest: &str) {
        for object in objects(manifest) {
            self.changes.send(Change::Applied(object)).await.unwrap();
        }
    }

    async fn deliver_synced(&self) {
        self.changes.send(Change::Synced(Kind::Service)).await.unwrap();
        self.changes.send(Change::Synced(Kind::EndpointSlice)).await.unwrap();
    }

    async fn report(&self) -> SyncReport {
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query::Report(reply)).await.unwrap();
        answer.await.unwrap()
    }

    async fn until(&self, what: &str, condition: impl Fn(&SyncReport) -> bool) -> SyncReport {
        let started = Instant::now();
        loop {
            let report = self.report().await;
            if condition(&report) {
                return report;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "waited in vain until {what}: {report:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn stop(self) -> Reconciler<FakeMaps> {
        self.shutdown.cancel();
        self.task.await.unwrap()
    }
}

#[tokio::test]
async fn changes_within_a_period_are_written_together() {
    let running = start(
        reconciler(Faults::default()),
        Timing { min_sync_period: Duration::from_millis(300), ..Timing::default() },
    );
    running.deliver("nodeport.yaml").await;
    running.deliver_synced().await;
    let first =
        running.until("the first change is written", |report| report.synced && report.dirty == 0).await;
    let started = Instant::now();
    for manifest in ["dual-stack.yaml", "hello-world.yaml", "loadbalancer.yaml"] {
        running.deliver(manifest).await;
    }
    let second = running.until("the others are", |report| report.services == 6 && report.dirty == 0).await;
    assert_eq!(second.syncs, first.syncs + 1, "spec 8.2: one sync for all of them");
    assert!(started.elapsed() > Duration::from_millis(150), "not before the period is over");
    running.stop().await;
}

#[tokio::test]
async fn a_failed_sync_is_tried_again_until_it_succeeds() {
    let timing = Timing {
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(5),
        ..Timing::default()
    };
    let running = start(reconciler(Faults { percent: 60, seed: 3 }), timing);
    running.deliver("dual-stack.yaml").await;
    running.deliver_synced().await;
    let report = running.until("everything is written", |report| report.synced && report.dirty == 0).await;
    assert!(report.failures > 0 && report.last_error.is_none(), "spec 8.13: {report:?}");
    let reconciler = running.stop().await;
    assert_eq!(reconciler.maps().state.v6.frontends.len(), 3);
}

#[tokio::test]
async fn node_addresses_are_followed_and_questions_answered_after_the_sources_have_gone() {
    let running =
        start(reconciler(Faults::default()), Timing { min_sync_period: Duration::ZERO, ..Timing::default() });
    running.deliver("nodeport.yaml").await;
    running.deliver_synced().await;
    running.until("synced", |report| report.frontends == 5).await;
    let Running { changes, addresses, queries, shutdown, task } = running;
    drop(changes);
    let (spare, _) = mpsc::channel(1);
    let running = Running { changes: spare, addresses, queries, shutdown, task };
    running.addresses.send(NodeAddresses(["192.0.2.10".parse().unwrap()].into())).unwrap();
    running.until("spec 9.14: NodePorts listen there", |report| report.frontends == 7).await;
    let (reply, answer) = oneshot::channel();
    running.queries.send(Query::ServicePorts(reply)).await.unwrap();
    let ports = answer.await.unwrap();
    let lines: Vec<_> =
        ports.iter().map(|port| (port.name.as_str(), port.frontends.len(), port.backends.len())).collect();
    assert_eq!(lines, [("go-demo-2", 3, 2), ("go-demo-2-db", 1, 1), ("go-demo-2-svc", 3, 2)]);
    let (reply, answer) = oneshot::channel();
    running.queries.send(Query::Backends(reply)).await.unwrap();
    let backends = answer.await.unwrap();
    assert_eq!(backends.len(), 3);
    assert!(backends.iter().all(|backend| backend.local && backend.node.as_deref() == Some("node-a")));
    running.stop().await;
}

#[tokio::test]
async fn what_somebody_else_changed_is_repaired_by_the_periodic_check() {
    let mut reconciler = reconciler(Faults::default());
    for object in objects("dual-stack.yaml") {
        reconciler.apply_change(Change::Applied(object));
    }
    reconciler.apply_change(Change::Synced(Kind::Service));
    reconciler.apply_change(Change::Synced(Kind::EndpointSlice));
    reconciler.sync().unwrap();
    let before = reconciler.maps().state.clone();
    reconciler.maps_mut().state.v4.frontends.clear();
    let timing = Timing { full_sync_period: Duration::from_millis(20), ..Timing::default() };
    let running = start(reconciler, timing);
    running.until("repaired", |report| report.repairs == 1 && report.dirty == 0 && report.syncs > 1).await;
    assert_eq!(running.stop().await.maps().state, before);
}

#[tokio::test]
async fn every_fault_of_the_bad_manifest_is_named_and_the_good_service_works() {
    let running = start(reconciler(Faults::default()), Timing::default());
    running.deliver("bad.yaml").await;
    running.deliver_synced().await;
    let report = running.until("synced", |report| report.synced).await;
    let named: Vec<_> =
        report.refusals.iter().map(|refusal| (refusal.object.as_str(), refusal.field.as_str())).collect();
    // The seventh, an object of a kind that is not watched, is the source's to refuse.
    assert_eq!(
        named,
        [
            ("Service default/bad-cluster-ip", "spec.clusterIP"),
            ("Service default/bad-port", "spec.ports[0].port"),
            ("Service default/bad-protocol", "spec.ports[0].protocol"),
            ("Service default/bad-source-range", "spec.loadBalancerSourceRanges[0]"),
            ("EndpointSlice default/good-1", "endpoints[1].addresses[0]"),
            ("EndpointSlice default/orphan", "metadata.labels[kubernetes.io/service-name]"),
        ]
    );
    assert_eq!(report.backends, 1);
    running.stop().await;
}

#[tokio::test]
async fn nothing_is_written_before_services_and_slices_have_both_been_delivered() {
    let mut before = reconciler(Faults::default());
    before.apply_change(Change::Applied(objects("dual-stack.yaml").remove(0)));
    for kind in [Kind::Service, Kind::EndpointSlice] {
        before.apply_change(Change::Synced(kind));
    }
    before.sync().unwrap();
    let maps = before.into_maps();
    let (left, writes) = (maps.state.clone(), maps.writes.len());
    let config = ReconcileConfig { node_name: "node-a".to_owned(), ..ReconcileConfig::default() };
    let running = start(Reconciler::new(maps, config).unwrap(), Timing::default());
    running.deliver("nodeport.yaml").await;
    for kind in [Kind::Service, Kind::Node, Kind::ServiceCidr, Kind::Endpoints] {
        running.changes.send(Change::Synced(kind)).await.unwrap();
    }
    running.addresses.send(NodeAddresses(["192.0.2.10".parse().unwrap()].into())).unwrap();
    let report = running.until("everything is taken in", |report| report.services == 3).await;
    assert!(!report.synced && report.syncs == 0, "spec 8.11, TestSyncProxyRulesStartup: {report:?}");
    let maps = running.stop().await.into_maps();
    assert_eq!((maps.state, maps.writes.len()), (left, writes), "spec 8.14: what a predecessor left stays");
}

/// Nodes come later than Services: what the maps know of them stays until all have come.
#[test]
fn an_agent_that_starts_forgets_no_node_before_it_has_seen_every_one() {
    let cluster = parse_objects(concat!(
        "kind: Service\nmetadata: {name: web, namespace: default, annotations: {lb-ebpf.io/forwarding: dsr}}\n",
        "spec: {clusterIP: 10.96.0.1, externalIPs: [203.0.113.1], ports: [{name: http, port: 80}]}\n---\n",
        "kind: EndpointSlice\naddressType: IPv4\nports: [{name: http, port: 80}]\n",
        "metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}\n",
        "endpoints: [{addresses: [10.244.2.1], nodeName: node-b}]\n---\n",
        "kind: Node\nmetadata: {name: node-b}\n",
        "status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}\n",
    ))
    .unwrap();
    let started = |maps, objects: &[Object]| {
        let config = ReconcileConfig { node_name: "node-a".to_owned(), ..ReconcileConfig::default() };
        let mut reconciler = Reconciler::new(maps, config).unwrap();
        objects.iter().for_each(|object| reconciler.apply_change(Change::Applied(object.clone())));
        for kind in [Kind::Service, Kind::EndpointSlice] {
            reconciler.apply_change(Change::Synced(kind));
        }
        reconciler.sync().unwrap();
        reconciler
    };
    let known = |reconciler: &Reconciler<FakeMaps>| {
        let lines = reconciler.maps().state.to_string();
        let tells = |line: &&str| line.starts_with("PEER") || line.contains("node=");
        lines.lines().filter(tells).count()
    };
    let mut first = started(FakeMaps::default(), &cluster);
    assert_eq!(known(&first), 2, "a Node is known as soon as it comes");
    first.apply_change(Change::EveryNode);
    first.sync().unwrap();
    assert_eq!(known(&first), 2);
    let mut second = started(first.into_maps(), &cluster[..2]);
    assert_eq!(known(&second), 2, "its predecessor's");
    assert!(second.report().tunnels.awaits_nodes);
    second.apply_change(Change::EveryNode);
    second.sync().unwrap();
    assert_eq!(known(&second), 0, "node-b has gone meanwhile");
    assert!(!second.report().tunnels.awaits_nodes);
}

#[tokio::test]
async fn what_comes_again_unchanged_or_with_other_metadata_causes_no_sync() {
    let running =
        start(reconciler(Faults::default()), Timing { min_sync_period: Duration::ZERO, ..Timing::default() });
    running.deliver("nodeport.yaml").await;
    running.deliver_synced().await;
    let first = running.until("synced", |report| report.synced && report.dirty == 0).await;
    running.deliver("nodeport.yaml").await;
    running.deliver_synced().await;
    for mut object in objects("nodeport.yaml") {
        let metadata = match &mut object {
            Object::Service(service) => &mut service.metadata,
            Object::EndpointSlice(slice) => &mut slice.metadata,
            _ => continue,
        };
        metadata.resource_version = Some("99".to_owned());
        metadata.labels.get_or_insert_default().insert("team".to_owned(), "x".to_owned());
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert("endpoints.kubernetes.io/last-change-trigger-time".to_owned(), "now".to_owned());
        running.changes.send(Change::Applied(object)).await.unwrap();
    }
    // An event that does matter comes after all of them, in the same channel.
    running.deliver("dual-stack.yaml").await;
    let last =
        running.until("the others are written", |report| report.services == 4 && report.dirty == 0).await;
    assert!(last.syncs - first.syncs <= 2, "spec 8.21, 8.22, 12A 96, 97: {last:?}");
    let maps = running.stop().await.into_maps();
    let mut alone = reconciler(Faults::default());
    for kind in [Kind::Service, Kind::EndpointSlice] {
        alone.apply_change(Change::Synced(kind));
    }
    for manifest in ["nodeport.yaml", "dual-stack.yaml"] {
        objects(manifest).into_iter().for_each(|object| alone.apply_change(Change::Applied(object)));
        alone.sync().unwrap();
    }
    assert_eq!(maps.writes.len(), alone.maps().writes.len(), "not one write more than each object once");
}

#[tokio::test]
async fn an_event_brings_the_next_try_forward() {
    let hour = Duration::from_secs(3600);
    let timing =
        Timing { retry_min: hour, retry_max: hour, min_sync_period: Duration::ZERO, ..Timing::default() };
    let running = start(reconciler(Faults { percent: 60, seed: 3 }), timing);
    running.deliver("dual-stack.yaml").await;
    running.deliver_synced().await;
    running.until("a try has failed", |report| report.failures > 0).await;
    let started = Instant::now();
    loop {
        // Addresses that come and go are events, too.
        for addresses in [vec!["192.0.2.10".parse().unwrap()], vec![]] {
            running.addresses.send(NodeAddresses(addresses.into_iter().collect())).unwrap();
        }
        running.deliver("nodeport.yaml").await;
        let report = running.report().await;
        if report.synced && report.dirty == 0 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "spec 8.3: {report:?}");
        sleep(Duration::from_millis(2)).await;
    }
    running.stop().await;
}

fn from_yaml(text: &str) -> Change {
    Change::Applied(parse_objects(text).unwrap().remove(0))
}

#[tokio::test]
async fn service_cidrs_are_followed_as_they_change() {
    let running = start(reconciler(Faults::default()), Timing::default());
    running.deliver_synced().await;
    running.until("synced", |report| report.synced).await;
    for (cidrs, expected) in [
        ("[10.96.0.0/16]", vec!["10.96.0.0/16"]),
        ("[10.96.0.0/16, 'fd00:96::/112']", vec!["10.96.0.0/16", "fd00:96::/112"]),
        ("['fd00:96::/112']", vec!["fd00:96::/112"]),
    ] {
        let yaml = format!("{{kind: ServiceCIDR, metadata: {{name: kubernetes}}, spec: {{cidrs: {cidrs}}}}}");
        running.changes.send(from_yaml(&yaml)).await.unwrap();
        running.until("12A 89, spec 5.12", |report| report.service_cidrs == expected).await;
    }
    running.stop().await;
}

#[tokio::test]
async fn the_zone_outlives_the_own_node_and_changes_when_it_comes_back() {
    const SERVICE: &str = "{kind: Service, metadata: {name: s, namespace: default},
        spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}";
    const SLICE: &str = "{kind: EndpointSlice, addressType: IPv4, ports: [{name: '', port: 80}],
        metadata: {name: s, namespace: default, labels: {kubernetes.io/service-name: s}}, endpoints: [
        {addresses: [10.0.0.1], hints: {forZones: [{name: east}]}},
        {addresses: [10.0.0.2], hints: {forZones: [{name: west}]}},
        {addresses: [10.0.0.3], hints: {forZones: [{name: west}]}}]}";
    let node = |zone: &str| {
        from_yaml(&format!(
            "{{kind: Node, metadata: {{name: node-a, labels: {{topology.kubernetes.io/zone: {zone}}}}}}}"
        ))
    };
    let running =
        start(reconciler(Faults::default()), Timing { min_sync_period: Duration::ZERO, ..Timing::default() });
    for change in [from_yaml(SERVICE), from_yaml(SLICE)] {
        running.changes.send(change).await.unwrap();
    }
    running.deliver_synced().await;
    let chosen = async |expected: usize, why: &str| {
        let started = Instant::now();
        loop {
            let (reply, answer) = oneshot::channel();
            running.queries.send(Query::ServicePorts(reply)).await.unwrap();
            let ports = answer.await.unwrap();
            let found =
                ports.first().and_then(|port| port.frontends.first()).map(|frontend| frontend.internal);
            if found == Some(expected) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{why}: {found:?}");
            sleep(Duration::from_millis(2)).await;
        }
    };
    chosen(3, "spec 9.7: without a zone hints mean nothing").await;
    running.changes.send(node("east")).await.unwrap();
    chosen(1, "spec 9.6: the label comes late (12A 37)").await;
    let id = ObjectRef { kind: Kind::Node, namespace: String::new(), name: "node-a".to_owned() };
    let before = running.report().await.syncs;
    running.changes.send(Change::Deleted(id)).await.unwrap();
    assert_eq!(running.report().await.syncs, before, "spec 9.6, 9.10: a deleted Node is no event here");
    chosen(1, "the old zone stays").await;
    running.changes.send(node("west")).await.unwrap();
    chosen(2, "the Node is back, elsewhere").await;
    running.stop().await;
}
