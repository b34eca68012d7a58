//! When to sync: at once after a change, not too often, again after a failure, and in full once an hour.

use std::time::{Duration, Instant as StdInstant};

use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    health::proxy::Health,
    maps::Maps,
    metrics::{
        control_plane::{ControlPlaneMetrics, SyncRecord},
        snapshot::ControlSnapshot,
    },
    model::{
        family::{IpFamily, PerFamily},
        health_check::HealthChecks,
        node::NodeAddresses,
    },
    reconcile::{
        Reconciler, SyncError, SyncOutcome,
        standing::{Claim, Standing},
    },
    report::{BackendReport, ServicePortReport, SyncReport},
    source::{Change, Kind, Object},
};

/// Where the loop gets its work.
#[derive(Debug)]
pub struct Inputs {
    /// From the sources.
    pub changes: mpsc::Receiver<Change>,
    /// From netlink. The first value must be the real one: NodePorts on addresses that it lacks go at the first sync.
    pub node_addresses: watch::Receiver<NodeAddresses>,
    /// From operators.
    pub queries: mpsc::Receiver<Query>,
    /// Ends the loop. The maps stay as they are.
    pub shutdown: CancellationToken,
}

/// Whom the loop tells what it does.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// The health of the proxy.
    pub health: Health,
    /// Counters.
    pub metrics: ControlPlaneMetrics,
    /// What health check node ports may answer: never ahead of the maps.
    pub health_checks: watch::Sender<HealthChecks>,
    /// Whether other nodes' addresses are needed.
    pub wants_nodes: watch::Sender<bool>,
}

/// A question to the loop, with where the answer goes.
#[derive(Debug)]
pub enum Query {
    /// Its state.
    Report(oneshot::Sender<SyncReport>),
    /// Every service port.
    ServicePorts(oneshot::Sender<Vec<ServicePortReport>>),
    /// Every backend.
    Backends(oneshot::Sender<Vec<BackendReport>>),
    /// What a scrape of metrics needs.
    Metrics(oneshot::Sender<ControlSnapshot>),
    /// How each of these sockets' backends stands.
    Standings(Vec<Claim>, oneshot::Sender<Vec<Standing>>),
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the end of one sync to the start of the next; changes in between are taken together.
    pub min_sync_period: Duration,
    /// From a failure to the next try; doubles with each further failure.
    pub retry_min: Duration,
    /// The longest wait for a retry.
    pub retry_max: Duration,
    /// Between comparisons of the maps with what was written.
    pub full_sync_period: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            min_sync_period: Duration::from_millis(5),
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(30),
            full_sync_period: Duration::from_secs(3600),
        }
    }
}

/// Changes taken in before anybody else gets a turn.
const CHANGES_AT_ONCE: usize = 4096;

/// The loop with its clock.
struct Loop<M> {
    reconciler: Reconciler<M>,
    outputs: Outputs,
    timing: Timing,
    /// End of the last sync.
    last: Option<Instant>,
    retry: Duration,
    next_sync: Option<Instant>,
    next_verify: Instant,
}

/// Runs until `shutdown` and returns the reconciler; when every source is gone, what is in the maps stays. A sync writes from within this task: give it a thread of its own
/// or a runtime with several.
pub async fn run<M: Maps>(
    reconciler: Reconciler<M>,
    mut inputs: Inputs,
    outputs: Outputs,
    timing: Timing,
) -> Reconciler<M> {
    let mut state = Loop {
        reconciler,
        outputs,
        timing,
        last: None,
        retry: timing.retry_min,
        next_sync: None,
        next_verify: Instant::now() + timing.full_sync_period,
    };
    let addresses = inputs.node_addresses.borrow_and_update().clone();
    state.reconciler.set_node_addresses(addresses);
    loop {
        state.outputs.health.idle();
        tokio::select! {
            biased;
            () = inputs.shutdown.cancelled() => return state.reconciler,
            Some(query) = inputs.queries.recv() => state.answer(query),
            () = sleep_until(state.next_sync.unwrap_or_else(Instant::now)), if state.next_sync.is_some() => state.sync(),
            Some(change) = inputs.changes.recv() => state.take_in(change, &mut inputs.changes),
            Ok(()) = inputs.node_addresses.changed() => {
                let addresses = inputs.node_addresses.borrow_and_update().clone();
                state.reconciler.set_node_addresses(addresses);
                state.schedule();
            }
            () = sleep_until(state.next_verify) => state.verify(),
        }
    }
}

impl<M: Maps> Loop<M> {
    fn take_in(&mut self, first: Change, more: &mut mpsc::Receiver<Change>) {
        self.outputs.health.busy(StdInstant::now());
        self.apply_change(first);
        for _ in 1..CHANGES_AT_ONCE {
            let Ok(change) = more.try_recv() else { break };
            self.apply_change(change);
        }
        self.outputs.health.set_node(self.reconciler.model().node_presence());
        let wants_nodes = self.reconciler.wants_nodes();
        let differs = |known: &mut bool| std::mem::replace(known, wants_nodes) != wants_nodes;
        self.outputs.wants_nodes.send_if_modified(differs);
        self.outputs.metrics.set_services_pending(self.reconciler.dirty_services());
        self.schedule();
    }

    fn apply_change(&mut self, change: Change) {
        match &change {
            Change::Applied(Object::EndpointSlice(_) | Object::Endpoints(_)) => {
                self.outputs.metrics.endpoint_change();
            }
            Change::Applied(Object::Service(_)) => self.outputs.metrics.service_change(),
            Change::Deleted(id) if id.kind == Kind::Service => self.outputs.metrics.service_change(),
            Change::Deleted(id) if matches!(id.kind, Kind::EndpointSlice | Kind::Endpoints) => {
                self.outputs.metrics.endpoint_change();
            }
            _ => {}
        }
        self.reconciler.apply_change(change);
    }

    /// A change brings the next sync forward to the earliest moment allowed, also before a retry (spec 8.3).
    fn schedule(&mut self) {
        if self.reconciler.needs_sync() {
            self.outputs.health.queued(StdInstant::now());
            self.outputs.metrics.queued();
            let allowed = self.last.map_or_else(Instant::now, |last| last + self.timing.min_sync_period);
            self.next_sync = Some(self.next_sync.map_or(allowed, |next| next.min(allowed)));
        }
    }

    fn sync(&mut self) {
        self.outputs.health.busy(StdInstant::now());
        let outcome = self.reconciler.sync();
        self.tell(&outcome);
        let now = Instant::now();
        self.last = Some(now);
        match outcome {
            Ok(SyncOutcome::Waiting) => {
                self.next_sync = None;
                self.last = None;
            }
            Ok(SyncOutcome::Done { services, writes }) => {
                tracing::debug!(services, writes, "synced");
                self.next_sync = None;
                self.retry = self.timing.retry_min;
                self.schedule();
            }
            Err(error) => {
                tracing::warn!(retry_in = ?self.retry, "sync incomplete, the maps keep what they had: {error}");
                self.next_sync = Some(now + self.retry);
                self.retry = (self.retry * 2).min(self.timing.retry_max);
            }
        }
    }

    /// After a sync, in the order of spec 8.40. What could be written is told also after a failure.
    fn tell(&mut self, outcome: &Result<SyncOutcome, SyncError>) {
        let (writes, pending) = match outcome {
            Ok(SyncOutcome::Waiting) => return,
            Ok(SyncOutcome::Done { writes, .. }) => (Some(*writes), PerFamily::default()),
            Err(_) => (None, self.reconciler.pending()),
        };
        let Outputs { health, metrics, health_checks, .. } = &self.outputs;
        let (took, is_full) = self.reconciler.last_sync();
        metrics.synced(SyncRecord { took, is_full, writes });
        metrics.set_services_pending(self.reconciler.dirty_services());
        for (family, after) in self.reconciler.progress_mut().take_programmed() {
            metrics.programmed(family, after);
        }
        for family in IpFamily::ALL.into_iter().filter(|family| !pending.of(*family)) {
            health.updated(family, Timestamp::now());
            metrics.updated(family);
        }
        let wanted = self.reconciler.progress().health_checks();
        health_checks.send_if_modified(|known| {
            let differs = known != wanted;
            if differs {
                known.clone_from(wanted);
            }
            differs
        });
    }

    fn verify(&mut self) {
        self.outputs.health.busy(StdInstant::now());
        self.next_verify = Instant::now() + self.timing.full_sync_period;
        match self.reconciler.verify() {
            Ok(false) => tracing::debug!("the maps hold what was written"),
            Ok(true) => {
                self.outputs.metrics.repaired();
                tracing::warn!("somebody else changed the maps: repairing them");
            }
            Err(error) => tracing::warn!("cannot compare the maps with what was written: {error}"),
        }
        self.schedule();
    }

    /// Who asked may have gone away; then nobody minds.
    fn answer(&self, query: Query) {
        match query {
            Query::Report(reply) => drop(reply.send(self.reconciler.report())),
            Query::ServicePorts(reply) => drop(reply.send(self.reconciler.service_ports())),
            Query::Backends(reply) => drop(reply.send(self.reconciler.backends())),
            Query::Metrics(reply) => drop(reply.send(self.reconciler.snapshot())),
            Query::Standings(claims, reply) => drop(reply.send(self.reconciler.standings(&claims))),
        }
    }
}
