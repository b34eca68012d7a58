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
    source::{Change, Kind, Object},
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
