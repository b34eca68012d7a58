//! The servers on healthCheckNodePorts: one for each Service, family and address that NodePorts listen on.
//!
//! What must stay true: what is answered is never ahead of the maps ([`HealthChecks`] is not); a port is closed before
//! another Service may open it (spec 6.8); a port that cannot be opened costs nobody else anything and is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{answer::answer, proxy::Health};
use crate::{
    datapath::devices::NodePortAddresses,
    http,
    model::{family::IpFamily, health_check::HealthChecks, node::NodeAddresses, service::ServiceName},
    source::events::{Event, EventSink, Regarding, Severity},
};

/// From a failure to the next try.
const RETRY: Duration = Duration::from_secs(5);

/// Where the servers get what they say, and whom they tell.
#[derive(Clone, Debug)]
pub struct NodePortsConfig {
    /// What may be answered.
    pub checks: watch::Receiver<HealthChecks>,
    /// The addresses NodePorts listen on.
    pub addresses: watch::Receiver<NodeAddresses>,
    /// How they were asked for: all of them means the unspecified address.
    pub listen: NodePortAddresses,
    /// The health of the proxy.
    pub health: Health,
    /// Where failures to listen are told.
    pub events: EventSink,
    /// Name of this node.
    pub node: String,
    /// Counts the servers.
    pub metrics: NodePortMetrics,
}

/// Counts servers.
#[derive(Clone, Debug, Default)]
pub struct NodePortMetrics {
    open: Gauge,
    failed: Gauge,
}

impl NodePortMetrics {
    /// Makes them visible in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "lb_health_check_servers",
            "Listeners on health check node ports",
            self.open.clone(),
        );
        let help = "Health check node ports that could not be opened and are tried again";
        registry.register("lb_health_check_servers_failed", help, self.failed.clone());
    }
}

/// One server to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    address: SocketAddr,
    service: ServiceName,
}

#[derive(Debug)]
struct Open {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// The servers.
#[derive(Debug)]
pub struct NodePorts {
    config: NodePortsConfig,
    open: BTreeMap<Place, Open>,
    /// Why a place could not be opened.
    failed: BTreeMap<Place, String>,
}

impl NodePorts {
    /// No server yet.
    pub fn new(config: NodePortsConfig) -> Self {
        Self { config, open: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Opens and closes servers as told, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.follow().await;
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = self.config.checks.changed() => {}
                Ok(()) = self.config.addresses.changed() => {}
                () = sleep(RETRY), if !self.failed.is_empty() => {}
            }
        }
        self.close(|_| false).await;
    }

    async fn follow(&mut self) {
        let wanted = self.wanted();
        self.close(|place| wanted.contains(place)).await;
        self.failed.retain(|place, _| wanted.contains(place));
        for place in wanted {
            if !self.open.contains_key(&place) {
                self.open(place);
            }
        }
        let count = |len: usize| i64::try_from(len).unwrap_or(i64::MAX);
        self.config.metrics.open.set(count(self.open.len()));
        self.config.metrics.failed.set(count(self.failed.len()));
    }

    fn wanted(&mut self) -> BTreeSet<Place> {
        let config = &mut self.config;
        let addresses = config.addresses.borrow_and_update();
        let listen = |family| addresses_of(family, &config.listen, &addresses);
        let ips = [(IpFamily::V4, listen(IpFamily::V4)), (IpFamily::V6, listen(IpFamily::V6))];
        let checks = config.checks.borrow_and_update();
        let mut wanted = BTreeSet::new();
        for (service, check) in checks.iter() {
            let ips =
                ips.iter().filter(|(family, _)| check.local.of(*family).is_some()).flat_map(|(_, ips)| ips);
            let places = ips.map(|ip| (SocketAddr::new(*ip, check.port), service.clone()));
            wanted.extend(places.map(|(address, service)| Place { address, service }));
        }
        wanted
    }

    /// Closes the servers for which `stays` does not hold. Afterwards their ports are free.
    async fn close(&mut self, stays: impl Fn(&Place) -> bool) {
        let gone: Vec<_> = self.open.extract_if(.., |place, _| !stays(place)).collect();
        gone.iter().for_each(|(_, open)| open.stop.cancel());
        for (place, open) in gone {
            // Ends in an error only if the server panicked, and then its port is free too.
            let _ = open.task.await;
            tracing::info!(service = %place.service, address = %place.address, "health check closed");
        }
    }

    fn open(&mut self, place: Place) {
        match http::listen(place.address) {
            Ok(listener) => {
                let stop = CancellationToken::new();
                let task = tokio::spawn(http::serve(listener, self.routes(&place), stop.clone()));
                tracing::info!(service = %place.service, address = %place.address, "health check opened");
                self.failed.remove(&place);
                self.open.insert(place, Open { stop, task });
            }
            Err(error) => self.fail(place, error.to_string()),
        }
    }

    /// Told once, until the reason changes (12A 100).
    fn fail(&mut self, place: Place, reason: String) {
        if self.failed.get(&place) == Some(&reason) {
            return;
        }
        let Place { address, service } = &place;
        tracing::warn!(%service, %address, "cannot open the health check: {reason}; trying again");
        let uid = self.config.checks.borrow().get(service).map(|check| check.uid.clone()).unwrap_or_default();
        self.config.events.send(Event {
            regarding: Regarding::Service { name: service.clone(), uid },
            severity: Severity::Warning,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: format!(
                "node {} failed to start healthcheck \"{service}\" on port {}: listen on {address}: {reason}",
                self.config.node,
                address.port()
            ),
        });
        self.failed.insert(place, reason);
    }

    /// Any method, any path (spec 6.3).
    fn routes(&self, place: &Place) -> Router {
        let asked = Asked {
            service: place.service.clone(),
            family: IpFamily::of(place.address.ip()),
            checks: self.config.checks.clone(),
            health: self.config.health.clone(),
        };
        Router::new().fallback(respond).with_state(Arc::new(asked))
    }
}

fn addresses_of(family: IpFamily, listen: &NodePortAddresses, known: &NodeAddresses) -> Vec<IpAddr> {
    match (listen, family) {
        (NodePortAddresses::All, IpFamily::V4) => vec![Ipv4Addr::UNSPECIFIED.into()],
        (NodePortAddresses::All, IpFamily::V6) => vec![Ipv6Addr::UNSPECIFIED.into()],
        _ => known.0.iter().copied().filter(|ip| IpFamily::of(*ip) == family).collect(),
    }
}

/// What one server is asked about.
struct Asked {
    service: ServiceName,
    family: IpFamily,
    checks: watch::Receiver<HealthChecks>,
    health: Health,
}

async fn respond(State(asked): State<Arc<Asked>>) -> Response {
    let local = asked.checks.borrow().get(&asked.service).and_then(|check| *check.local.of(asked.family));
    match local {
        Some(local) => answer(&asked.service, local, asked.health.verdict(Instant::now()).is_ready),
        // On a connection that outlived its Service (spec 6.10).
        None => (StatusCode::SERVICE_UNAVAILABLE, [(header::CONNECTION, "close")]).into_response(),
    }
}
