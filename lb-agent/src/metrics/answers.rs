//! Answers of `/healthz` and `/livez` on port 10256, by code (spec 6.26).

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::Labels;

/// Counts answers.
#[derive(Clone, Debug)]
pub struct AnswerMetrics {
    healthz: Family<Labels<1>, Counter>,
    livez: Family<Labels<1>, Counter>,
}

impl Default for AnswerMetrics {
    fn default() -> Self {
        Self { healthz: by_code(), livez: by_code() }
    }
}

fn by_code() -> Family<Labels<1>, Counter> {
    let answers = Family::default();
    for code in [200, 503] {
        drop(answers.get_or_create(&label(code)));
    }
    answers
}

fn label(code: u16) -> Labels<1> {
    [("code", if code == 200 { "200" } else { "503" })]
}

impl AnswerMetrics {
    /// `/healthz` was answered with 200 or 503.
    pub fn healthz(&self, code: u16) {
        self.healthz.get_or_create(&label(code)).inc();
    }

    /// `/livez` was answered with 200 or 503.
    pub fn livez(&self, code: u16) {
        self.livez.get_or_create(&label(code)).inc();
    }

    /// Makes them visible in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Answers of /healthz on the health port, by code";
        registry.register("kubeproxy_proxy_healthz", help, self.healthz.clone());
        let help = "Answers of /livez on the health port, by code";
        registry.register("kubeproxy_proxy_livez", help, self.livez.clone());
    }
}
