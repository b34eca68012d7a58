//! Rounds in which the host's conntrack is read.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, histogram::Histogram},
    registry::Registry,
};

use super::work_seconds;

/// Counts rounds.
#[derive(Clone, Debug)]
pub struct HostFlowsMetrics {
    seconds: Histogram,
    failures: Counter,
}

impl Default for HostFlowsMetrics {
    fn default() -> Self {
        Self { seconds: work_seconds(), failures: Counter::default() }
    }
}

impl HostFlowsMetrics {
    /// A round is over.
    pub fn read(&self, took: Duration, is_whole: bool) {
        self.seconds.observe(took.as_secs_f64());
        if !is_whole {
            self.failures.inc();
        }
    }

    /// Makes them visible in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Duration of a reading of the host's conntrack";
        registry.register("lb_host_conntrack_read_seconds", help, self.seconds.clone());
        let help = "Readings of the host's conntrack that failed";
        registry.register("lb_host_conntrack_read_failures", help, self.failures.clone());
    }
}
