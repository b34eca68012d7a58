//! The reconcile loop: changes, syncs, and how long after a change in the cluster this node followed.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{Labels, of_family, per_family, work_seconds};
use crate::model::family::IpFamily;

type Seconds = Gauge<f64, AtomicU64>;

/// Counts what the loop does. One sync writes both families; kube-proxy has a proxier for each, so what is a property
/// of a sync appears under both values of `ip_family`.
#[derive(Clone, Debug)]
pub struct ControlPlaneMetrics {
    sync_seconds: Family<Labels<1>, Histogram>,
    full_sync_seconds: Family<Labels<1>, Histogram>,
    partial_sync_seconds: Family<Labels<1>, Histogram>,
    last_success: Family<Labels<1>, Seconds>,
    last_queued: Family<Labels<1>, Seconds>,
    programming_seconds: Family<Labels<1>, Histogram>,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    syncs: Family<Labels<1>, Counter>,
    writes: Counter,
    repairs: Counter,
}

/// A sync that ended.
#[derive(Clone, Copy, Debug)]
pub struct SyncRecord {
    /// How long it took.
    pub took: Duration,
    /// Every service was recomputed.
    pub is_full: bool,
    /// Writes made; `None`: something failed.
    pub writes: Option<usize>,
}

impl Default for ControlPlaneMetrics {
    fn default() -> Self {
        let syncs = Family::default();
        for result in [SUCCESS, FAILURE] {
            drop(syncs.get_or_create(&result));
        }
        Self {
            sync_seconds: per_family(work_seconds),
            full_sync_seconds: per_family(work_seconds),
            partial_sync_seconds: per_family(work_seconds),
            last_success: per_family(Seconds::default),
            last_queued: per_family(Seconds::default),
            programming_seconds: per_family(programming_seconds),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            syncs,
            writes: Counter::default(),
            repairs: Counter::default(),
        }
    }
}

const SUCCESS: Labels<1> = [("result", "success")];
const FAILURE: Labels<1> = [("result", "failure")];

/// kube-proxy's buckets (spec 6d): 0.25 s, 0.5 s, each second up to a minute, then coarser up to 5 minutes.
fn programming_seconds() -> Histogram {
    let steps = |from: u32, to: u32, step: usize| (from..=to).step_by(step).map(f64::from);
    let buckets = [0.25, 0.5].into_iter().chain(steps(1, 59, 1));
    Histogram::new(buckets.chain(steps(60, 115, 5)).chain(steps(120, 300, 30)))
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl ControlPlaneMetrics {
    /// An EndpointSlice (or Endpoints object) came, changed or went.
    pub fn endpoint_change(&self) {
        self.endpoint_changes.inc();
        self.endpoint_changes_pending.inc();
    }

    /// A Service came, changed or went.
    pub fn service_change(&self) {
        self.service_changes.inc();
    }

    /// So many services wait for a sync.
    pub fn set_services_pending(&self, count: usize) {
        self.service_changes_pending.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A sync was asked for.
    pub fn queued(&self) {
        for family in IpFamily::ALL {
            self.last_queued.get_or_create(&of_family(family)).set(now_s());
        }
    }

    /// A sync ended, well or not (spec 8.42).
    pub fn synced(&self, record: SyncRecord) {
        self.endpoint_changes_pending.set(0);
        let kind = if record.is_full { &self.full_sync_seconds } else { &self.partial_sync_seconds };
        for family in IpFamily::ALL {
            let label = of_family(family);
            self.sync_seconds.get_or_create(&label).observe(record.took.as_secs_f64());
            kind.get_or_create(&label).observe(record.took.as_secs_f64());
        }
        let result = if record.writes.is_some() { SUCCESS } else { FAILURE };
        self.syncs.get_or_create(&result).inc();
        self.writes.inc_by(record.writes.unwrap_or_default() as u64);
    }

    /// The maps of a family hold all that is wanted.
    pub fn updated(&self, family: IpFamily) {
        self.last_success.get_or_create(&of_family(family)).set(now_s());
    }

    /// A change of the cluster reached the maps this long after it was made.
    pub fn programmed(&self, family: IpFamily, after: Duration) {
        self.programming_seconds.get_or_create(&of_family(family)).observe(after.as_secs_f64());
    }

    /// The maps were not what had been written.
    pub fn repaired(&self) {
        self.repairs.inc();
    }

    /// Makes them visible in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        for (name, help, metric) in [
            ("sync_proxy_rules_duration", "Duration of syncs, also of failed ones", &self.sync_seconds),
            ("sync_full_proxy_rules_duration", "Duration of syncs of every service", &self.full_sync_seconds),
            ("sync_partial_proxy_rules_duration", "Duration of other syncs", &self.partial_sync_seconds),
            (
                "network_programming_duration",
                "From a change of endpoints to the maps",
                &self.programming_seconds,
            ),
        ] {
            registry.register(format!("kubeproxy_{name}_seconds"), help, metric.clone());
        }
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        registry.register(name, "When the maps last held all that was wanted", self.last_success.clone());
        let name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
        registry.register(name, "When a sync was last asked for", self.last_queued.clone());
        let name = "kubeproxy_sync_proxy_rules_endpoint_changes";
        registry.register(name, "Changes of EndpointSlices", self.endpoint_changes.clone());
        let name = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
        registry.register(name, "Of these, since the last sync", self.endpoint_changes_pending.clone());
        let name = "kubeproxy_sync_proxy_rules_service_changes";
        registry.register(name, "Changes of Services", self.service_changes.clone());
        let name = "kubeproxy_sync_proxy_rules_service_changes_pending";
        registry.register(name, "Services that wait for a sync", self.service_changes_pending.clone());
        registry.register("lb_syncs", "Syncs by result", self.syncs.clone());
        registry.register(
            "lb_sync_writes",
            "Map entries written by syncs that succeeded",
            self.writes.clone(),
        );
        let help = "Times the maps were found changed by somebody else";
        registry.register("lb_repairs", help, self.repairs.clone());
    }
}
