//! When to sync: at once after a change, not too often, again after a failure, and in full once an hour.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    maps::Maps,
    model::node::NodeAddresses,
    reconcile::{Reconciler, SyncOutcome},
    report::{BackendReport, ServicePortReport, SyncReport},
    source::Change,
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

/// A question to the loop, with where the answer goes.
#[derive(Debug)]
pub enum Query {
    /// Its state.
    Report(oneshot::Sender<SyncReport>),
    /// Every service port.
    ServicePorts(oneshot::Sender<Vec<ServicePortReport>>),
    /// Every backend.
    Backends(oneshot::Sender<Vec<BackendReport>>),
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
    timing: Timing,
    /// End of the last sync.
    last: Option<Instant>,
    retry: Duration,
    next_sync: Option<Instant>,
    next_verify: Instant,
}

/// Runs until `shutdown` and returns the reconciler; when every source is gone, what is in the maps stays. A sync writes from within this task: give it a thread of its own
/// or a runtime with several.
pub async fn run<M: Maps>(reconciler: Reconciler<M>, mut inputs: Inputs, timing: Timing) -> Reconciler<M> {
    let mut state = Loop {
        reconciler,
        timing,
        last: None,
        retry: timing.retry_min,
        next_sync: None,
        next_verify: Instant::now() + timing.full_sync_period,
    };
    let addresses = inputs.node_addresses.borrow_and_update().clone();
    state.reconciler.set_node_addresses(addresses);
    loop {
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
        self.reconciler.apply_change(first);
        for _ in 1..CHANGES_AT_ONCE {
            let Ok(change) = more.try_recv() else { break };
            self.reconciler.apply_change(change);
        }
        self.schedule();
    }

    /// A change brings the next sync forward to the earliest moment allowed, also before a retry (spec 8.3).
    fn schedule(&mut self) {
        if self.reconciler.needs_sync() {
            let allowed = self.last.map_or_else(Instant::now, |last| last + self.timing.min_sync_period);
            self.next_sync = Some(self.next_sync.map_or(allowed, |next| next.min(allowed)));
        }
    }

    fn sync(&mut self) {
        let outcome = self.reconciler.sync();
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

    fn verify(&mut self) {
        self.next_verify = Instant::now() + self.timing.full_sync_period;
        match self.reconciler.verify() {
            Ok(false) => tracing::debug!("the maps hold what was written"),
            Ok(true) => tracing::warn!("somebody else changed the maps: repairing them"),
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
        }
    }
}
