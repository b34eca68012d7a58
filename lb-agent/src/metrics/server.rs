//! The answers on port 10249 (spec 6.30): `/metrics`, `/proxyMode`, and for those who only ask whether somebody is
//! there `/healthz` and `/livez`. Whether the node can serve is asked elsewhere: [`crate::health::server`].

use std::{path::PathBuf, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use prometheus_client::{
    encoding::{prometheus_text, text},
    metrics::counter::Counter,
    registry::Registry,
};
use tokio::{sync::Mutex, task::spawn_blocking};

use super::{
    answers::AnswerMetrics, collection::CollectionMetrics, control_plane::ControlPlaneMetrics,
    host_flows::HostFlowsMetrics, node::Node, process::Process, snapshot::ControlSnapshot, traffic::Traffic,
};
use crate::{admin::Admin, health::node_ports::NodePortMetrics, reconcile::run::Query};

/// What `/proxyMode` says; kube-proxy's modes are `iptables`, `ipvs` and `nftables`.
const PROXY_MODE: &str = "ebpf";
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The counters of the agent.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Of the reconcile loop.
    pub control_plane: ControlPlaneMetrics,
    /// Of the health port.
    pub answers: AnswerMetrics,
    /// Of dead connections.
    pub collection: CollectionMetrics,
    /// Of readings of the host's conntrack.
    pub host_flows: HostFlowsMetrics,
    /// Of health check node ports.
    pub node_ports: NodePortMetrics,
    /// Parts of a scrape that could not be read.
    scrape_failures: Counter,
}

/// What was read for one scrape.
#[derive(Debug, Default)]
pub struct Scrape {
    /// From the reconcile loop.
    pub control: ControlSnapshot,
    /// From the maps.
    pub traffic: Traffic,
    /// From the maps and attachments.
    pub node: Node,
    /// From /proc.
    pub process: Process,
}

impl Metrics {
    /// All of it, to be encoded.
    pub fn registry(&self, scrape: Scrape) -> Registry {
        let mut registry = Registry::default();
        self.control_plane.register(&mut registry);
        self.answers.register(&mut registry);
        self.collection.register(&mut registry);
        self.host_flows.register(&mut registry);
        self.node_ports.register(&mut registry);
        let help = "Parts of a scrape that could not be read and are missing from it";
        registry.register("lb_scrape_failures", help, self.scrape_failures.clone());
        registry.register_collector(Box::new(scrape.control));
        registry.register_collector(Box::new(scrape.traffic));
        registry.register_collector(Box::new(scrape.node));
        registry.register_collector(Box::new(scrape.process));
        registry
    }

    /// Takes what could be read; what could not is empty, logged and counted.
    fn accept<T: Default, E: std::fmt::Display>(&self, what: &str, read: Result<T, E>) -> T {
        read.unwrap_or_else(|error| {
            self.scrape_failures.inc();
            tracing::warn!("metrics lack {what}: {error}");
            T::default()
        })
    }
}

/// What the answers are made of.
#[derive(Clone)]
pub struct Server {
    /// State of the agent.
    pub admin: Admin,
    /// Its counters.
    pub metrics: Metrics,
    /// Scrapes wait for each other: two at once would only take twice as long.
    scraping: Arc<Mutex<()>>,
}

/// How a scrape is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Prometheus text 0.0.4, which everybody reads.
    Text,
    /// OpenMetrics 1.0.0, for those who ask for it.
    OpenMetrics,
}

impl Format {
    fn asked_for(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
        if accepted.into_iter().any(|accept| accept.contains(OPEN_METRICS)) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => OPEN_METRICS_TYPE,
        }
    }

    fn encode(self, registry: &Registry) -> Result<String, std::fmt::Error> {
        let mut buffer = String::new();
        match self {
            Self::Text => prometheus_text::encode(&mut buffer, registry)?,
            Self::OpenMetrics => text::encode(&mut buffer, registry)?,
        }
        Ok(buffer)
    }
}

impl Server {
    /// With these parts.
    pub fn new(admin: Admin, metrics: Metrics) -> Self {
        Self { admin, metrics, scraping: Arc::default() }
    }

    /// Any other path is not found.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/metrics", any(metrics))
            .route("/proxyMode", any(|| plain(PROXY_MODE)))
            .route("/healthz", any(|| plain("ok")))
            .route("/healthz/ping", any(|| plain("ok")))
            .route("/livez", any(|| plain("ok")))
            .with_state(self)
    }

    async fn scrape(&self, format: Format) -> Result<String, String> {
        let _turn = self.scraping.lock().await;
        let control = self.admin.ask(Query::Metrics).await.map_err(|(_, reason)| reason);
        let control = self.metrics.accept("the state of the control plane", control);
        let (node, dir) = self.node().await;
        let metrics = self.metrics.clone();
        // System calls and megabytes of text: not on a thread that others wait for.
        let text = spawn_blocking(move || {
            let scrape = metrics.read(control, node, dir);
            format.encode(&metrics.registry(scrape))
        });
        text.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    async fn node(&self) -> (Node, PathBuf) {
        let attacher = self.admin.attacher.lock().await;
        let source = self.admin.source.as_ref().map(|status| status.borrow().clone());
        let (attachments, failures) = (attacher.attachments().cloned().collect(), attacher.failures().len());
        let sockets_destroyed = self.admin.sockets.borrow().destroyed;
        let node = Node { attachments, failures, source, sockets_destroyed, ..Node::default() };
        (node, attacher.datapath().pins.dir().to_owned())
    }
}

impl Metrics {
    fn read(&self, control: ControlSnapshot, mut node: Node, dir: PathBuf) -> Scrape {
        self.accept("verdicts and map fill", node.read_maps(&dir));
        let traffic = self.accept("traffic counters", Traffic::read(&dir, control.clone()));
        let process = self.accept("the process", Process::read());
        Scrape { control, traffic, node, process }
    }
}

async fn metrics(State(server): State<Server>, headers: HeaderMap) -> Response {
    let format = Format::asked_for(&headers);
    match server.scrape(format).await {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn plain(text: &'static str) -> ([(HeaderName, HeaderValue); 2], &'static str) {
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    let nosniff = HeaderValue::from_static("nosniff");
    ([(header::CONTENT_TYPE, content_type), (header::X_CONTENT_TYPE_OPTIONS, nosniff)], text)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const PAGE: &str = include_str!("../../../docs/metrics.md");

    /// Name → type, from the `# TYPE` lines.
    fn exposed() -> BTreeMap<String, String> {
        let text = Format::Text.encode(&Metrics::default().registry(Scrape::default())).unwrap();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
    }

    /// The rows of a section's table: its cells, without backquotes.
    fn rows(section: &str) -> Vec<Vec<String>> {
        let (_, text) = PAGE.split_once(section).unwrap();
        let text = text.split("\n## ").next().unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.split('|').map(|cell| cell.trim().replace('`', "")).collect()).collect()
    }

    #[test]
    fn the_page_lists_exactly_what_is_exposed() {
        let mut listed = BTreeMap::new();
        for section in ["## kube-proxy's", "## Ours", "## The process"] {
            for row in rows(section) {
                let former = listed.insert(row[1].clone(), row[2].clone());
                assert!(former.is_none(), "{} is listed twice", row[1]);
                assert!(!row[4].is_empty(), "{} has no meaning", row[1]);
            }
        }
        assert_eq!(listed, exposed());
    }

    /// Every metric of spec 6d is exposed or is in the table of those that have no meaning here.
    #[test]
    fn no_metric_of_kube_proxy_is_left_without_a_word() {
        let absent: BTreeSet<String> =
            rows("## Not applicable").into_iter().map(|row| row[1].clone()).collect();
        let exposed = exposed();
        for name in [
            "sync_proxy_rules_duration_seconds",
            "sync_full_proxy_rules_duration_seconds",
            "sync_partial_proxy_rules_duration_seconds",
            "sync_proxy_rules_last_timestamp_seconds",
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "network_programming_duration_seconds",
            "sync_proxy_rules_endpoint_changes_pending",
            "sync_proxy_rules_endpoint_changes_total",
            "sync_proxy_rules_service_changes_pending",
            "sync_proxy_rules_service_changes_total",
            "sync_proxy_rules_no_local_endpoints_total",
            "proxy_healthz_total",
            "proxy_livez_total",
            "conntrack_reconciler_sync_duration_seconds",
            "conntrack_reconciler_deleted_entries_total",
            "sync_proxy_rules_iptables_restore_failures_total",
            "sync_proxy_rules_iptables_partial_restore_failures_total",
            "sync_proxy_rules_iptables_total",
            "sync_proxy_rules_iptables_last",
            "iptables_ct_state_invalid_dropped_packets_total",
            "iptables_localhost_nodeports_accepted_packets_total",
            "sync_proxy_rules_nftables_sync_failures_total",
            "sync_proxy_rules_nftables_cleanup_failures_total",
        ] {
            let name = format!("kubeproxy_{name}");
            assert!(exposed.contains_key(&name) != absent.contains(&name), "spec 6d: {name}");
        }
        assert!(absent.iter().all(|name| !exposed.contains_key(name)));
    }

    #[test]
    fn buckets_are_kube_proxy_s() {
        let text = Format::Text.encode(&Metrics::default().registry(Scrape::default())).unwrap();
        let buckets = |name: &str| {
            let prefix = format!("{name}_bucket{{");
            let of_v4 = text.lines().filter(|line| line.starts_with(&prefix) && line.contains("IPv4"));
            let bound =
                |line: &str| line.split("le=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
            of_v4.map(bound).collect::<Vec<f64>>()
        };
        let work = buckets("kubeproxy_sync_proxy_rules_duration_seconds");
        assert_eq!(
            (work.len(), work[0], work[14]),
            (16, 0.001, 16.384),
            "spec 6d: exp(0.001, 2, 15) and +Inf"
        );
        let programming = buckets("kubeproxy_network_programming_duration_seconds");
        assert_eq!(programming.len(), 2 + 59 + 12 + 7 + 1, "spec 6d");
        assert_eq!(programming[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(programming[60..63], [59.0, 60.0, 65.0]);
        assert_eq!(programming[72..75], [115.0, 120.0, 150.0]);
    }

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        let asked = |accept: &'static str| {
            Format::asked_for(&[(header::ACCEPT, HeaderValue::from_static(accept))].into_iter().collect())
        };
        assert_eq!(asked("*/*"), Format::Text);
        assert_eq!(asked("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"), Format::OpenMetrics);
        let text = Format::OpenMetrics.encode(&Metrics::default().registry(Scrape::default())).unwrap();
        assert!(text.ends_with("# EOF\n"));
    }
}
