//! Collections of dead connections. kube-proxy's conntrack reconciler is the like of it, and lends its names.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::{Labels, of_family, per_family, work_seconds};
use crate::model::family::IpFamily;

/// Counts collections.
#[derive(Clone, Debug)]
pub struct CollectionMetrics {
    seconds: Family<Labels<1>, Histogram>,
    deleted: Family<Labels<1>, Counter>,
    failures: Family<Labels<1>, Counter>,
}

impl Default for CollectionMetrics {
    fn default() -> Self {
        Self {
            seconds: per_family(work_seconds),
            deleted: per_family(Counter::default),
            failures: per_family(Counter::default),
        }
    }
}

impl CollectionMetrics {
    /// A family's connections were looked through; `removed`: entries, or `None` after a failure.
    pub fn collected(&self, family: IpFamily, took: Duration, removed: Option<usize>) {
        let label = of_family(family);
        self.seconds.get_or_create(&label).observe(took.as_secs_f64());
        match removed {
            Some(removed) => self.deleted.get_or_create(&label).inc_by(removed as u64),
            None => self.failures.get_or_create(&label).inc(),
        };
    }

    /// Makes them visible in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let name = "kubeproxy_conntrack_reconciler_sync_duration_seconds";
        registry.register(name, "Duration of a collection of dead connections", self.seconds.clone());
        let name = "kubeproxy_conntrack_reconciler_deleted_entries";
        registry.register(name, "Entries of dead connections removed", self.deleted.clone());
        let help = "Collections of dead connections that failed";
        registry.register("lb_connection_collection_failures", help, self.failures.clone());
    }
}
