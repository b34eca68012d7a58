//! The servers of `run`: health (10256), metrics (10249), health check node ports. They start once the configuration is
//! known to be valid and this agent holds the lock on its pins, before anything is loaded, so that who asks gets an
//! answer: not ready.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::Router;
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Admin,
    config::Config,
    health::{
        self,
        node_ports::{NodePorts, NodePortsConfig},
    },
    http,
    metrics::server::{self, Metrics},
    model::node::NodeAddresses,
    reconcile::run::Outputs,
    source::events::{Event, EventSink, Regarding, Severity},
};

/// From a failure to listen to the next try (spec 6.27).
const RETRY: Duration = Duration::from_secs(5);
/// For the last event of an agent that ends.
const EVENT_PATIENCE: Duration = Duration::from_secs(3);

/// What the servers answer from.
pub(super) struct Parts<'a> {
    pub(super) admin: &'a Admin,
    pub(super) metrics: &'a Metrics,
    pub(super) outputs: &'a Outputs,
    pub(super) addresses: watch::Receiver<NodeAddresses>,
    pub(super) events: EventSink,
}

type Tasks = JoinSet<anyhow::Result<()>>;

/// Starts them as `tasks`, which end with `stop`.
pub(super) fn start(config: &Config, parts: &Parts<'_>, stop: &CancellationToken, tasks: &mut Tasks) {
    parts.events.send(Event {
        regarding: Regarding::Node(config.node_name.clone()),
        severity: Severity::Normal,
        reason: "Starting",
        action: "StartKubeProxy",
        note: format!("lb-agent {} starts", env!("CARGO_PKG_VERSION")),
    });
    let health = health::server::Server {
        health: parts.outputs.health.clone(),
        metrics: parts.metrics.answers.clone(),
    };
    let metrics = server::Server::new(parts.admin.clone(), parts.metrics.clone());
    let listeners = [
        (config.healthz, "--healthz-bind-address", "FailedToStartProxierHealthcheck", health.routes()),
        (config.metrics, "--metrics-bind-address", "FailedToStartMetricServer", metrics.routes()),
    ];
    for (address, flag, reason, routes) in listeners {
        let Some(address) = address else { continue };
        let failure = Failure {
            flag,
            reason,
            ends_the_agent: config.bind_address_hard_fail,
            node: config.node_name.clone(),
            events: parts.events.clone(),
        };
        tasks.spawn(serve(address, routes, failure, stop.clone()));
    }
    tasks.spawn(node_ports(config, parts, stop.clone()));
}

/// What becomes of an address that cannot be listened on.
struct Failure {
    flag: &'static str,
    /// Of the event.
    reason: &'static str,
    ends_the_agent: bool,
    node: String,
    events: EventSink,
}

async fn serve(
    address: SocketAddr,
    routes: Router,
    failure: Failure,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = loop {
        match http::listen(address) {
            Ok(listener) => break listener,
            Err(error) => failure.tell(address, error).await?,
        }
        if stop.run_until_cancelled(sleep(RETRY)).await.is_none() {
            return Ok(());
        }
    };
    http::serve(listener, routes, stop).await;
    Ok(())
}

impl Failure {
    /// With `--bind-address-hard-fail` an error, which ends the agent; else a warning (spec 6.27, 6.31).
    async fn tell(&self, address: SocketAddr, error: std::io::Error) -> anyhow::Result<()> {
        let flag = self.flag;
        if !self.ends_the_agent {
            tracing::warn!("{flag} {address}: {error}; trying again");
            return Ok(());
        }
        let event = Event {
            regarding: Regarding::Node(self.node.clone()),
            severity: Severity::Warning,
            reason: self.reason,
            action: "StartKubeProxy",
            note: format!("{flag} {address}: {error}"),
        };
        self.events.send_last(event, EVENT_PATIENCE).await;
        Err(error).with_context(|| format!("{flag} {address}"))
    }
}

fn node_ports(
    config: &Config,
    parts: &Parts<'_>,
    stop: CancellationToken,
) -> impl Future<Output = anyhow::Result<()>> + use<> {
    let servers = NodePorts::new(NodePortsConfig {
        checks: parts.outputs.health_checks.subscribe(),
        addresses: parts.addresses.clone(),
        listen: config.nodeport_addresses.clone(),
        health: parts.outputs.health.clone(),
        events: parts.events.clone(),
        node: config.node_name.clone(),
        metrics: parts.metrics.node_ports.clone(),
    });
    async move {
        servers.run(stop).await;
        Ok(())
    }
}
