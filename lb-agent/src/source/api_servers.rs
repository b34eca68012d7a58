//! Which API server address is talked to, and when is another one tried? Used by the watches of
//! [`super::kubernetes`]. A healthy address is kept; one that fails is left for the next in the list. The ClusterIP
//! of `kubernetes.default` is never needed: it is served by what this agent has yet to write.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::sync::watch;

/// Why there is no client for an API server.
#[derive(Debug, thiserror::Error)]
pub enum ApiServerError {
    /// The kubeconfig file.
    #[error("read kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// The Pod's service account.
    #[error("read the Pod's service account: {source}; outside a Pod give --kubeconfig or --manifests")]
    InCluster {
        /// Why.
        source: Box<InClusterError>,
    },
    /// An address that is no URL.
    #[error("API server address {address:?} is not a URL such as https://192.0.2.10:6443")]
    Address {
        /// As given.
        address: String,
    },
    /// TLS or authentication settings that do not work.
    #[error("prepare a client for API server {address}: {source}")]
    Client {
        /// The address.
        address: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// How long to wait for what. The defaults suit a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a TCP and TLS connection.
    pub connect: Duration,
    /// For a page of a list, and for a watch to begin.
    pub request: Duration,
    /// For any sign of life on a watch. API servers send bookmarks about once a minute.
    pub idle: Duration,
    /// Before the first retry; doubles with each round through all addresses.
    pub retry_min: Duration,
    /// The most.
    pub retry_max: Duration,
    /// Before an API that the cluster does not have is asked for again.
    pub missing: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(30),
            idle: Duration::from_secs(90),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            missing: Duration::from_secs(300),
        }
    }
}

/// What `lb-agent status` says about the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// The address in use.
    pub address: String,
    /// When an API server last answered or sent an event.
    pub last_contact: Option<SystemTime>,
    /// The last failure, with what was tried at which address.
    pub last_error: Option<String>,
    /// Why other nodes cannot be followed although they are needed.
    pub nodes_error: Option<String>,
}

/// The addresses with a client for each.
pub(super) struct ApiServers {
    servers: Vec<ApiServer>,
    current: AtomicUsize,
    status: watch::Sender<SourceStatus>,
}

pub(super) struct ApiServer {
    index: usize,
    pub(super) address: String,
    pub(super) client: Client,
}

impl ApiServers {
    /// Clients for the given addresses, or else for the one that the kubeconfig or the Pod's environment names.
    pub(super) async fn open(
        kubeconfig: Option<&Path>,
        addresses: &[String],
        timeouts: &Timeouts,
        status: watch::Sender<SourceStatus>,
    ) -> Result<Self, ApiServerError> {
        let mut base = base_config(kubeconfig, addresses).await?;
        base.connect_timeout = Some(timeouts.connect);
        base.read_timeout = None;
        base.default_retry = false;
        let own = [base.cluster_url.to_string()];
        let addresses = if addresses.is_empty() { &own } else { addresses };
        let servers = addresses.iter().enumerate().map(|(index, address)| server(index, address, &base));
        let servers =
            Self { servers: servers.collect::<Result<_, _>>()?, current: AtomicUsize::new(0), status };
        servers.show_address();
        Ok(servers)
    }

    /// How many addresses there are; at least one.
    pub(super) fn count(&self) -> usize {
        self.servers.len()
    }

    /// The server to talk to.
    pub(super) fn current(&self) -> &ApiServer {
        &self.servers[self.current.load(Ordering::Relaxed) % self.servers.len()]
    }

    /// Moves on from a server that failed, unless another watch has done so already.
    pub(super) fn leave(&self, server: &ApiServer) {
        let next = (server.index + 1) % self.servers.len();
        let moved =
            self.current.compare_exchange(server.index, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if moved && next != server.index {
            tracing::info!(
                from = server.address,
                to = self.servers[next].address,
                "moving to another API server"
            );
            self.show_address();
        }
    }

    /// Notes that a server answered.
    pub(super) fn note_contact(&self) {
        self.status.send_modify(|status| status.last_contact = Some(SystemTime::now()));
    }

    /// Notes what failed.
    pub(super) fn note_error(&self, error: String) {
        self.status.send_modify(|status| status.last_error = Some(error));
    }

    /// Notes why other nodes cannot be followed, or that they can.
    pub(super) fn note_nodes(&self, error: Option<String>) {
        self.status.send_modify(|status| status.nodes_error = error);
    }

    fn show_address(&self) {
        let address = &self.current().address;
        self.status.send_modify(|status| status.address.clone_from(address));
    }
}

fn server(index: usize, address: &str, base: &Config) -> Result<ApiServer, ApiServerError> {
    let invalid = || ApiServerError::Address { address: address.to_owned() };
    let mut config = base.clone();
    config.cluster_url = address.parse().map_err(|_error| invalid())?;
    if config.cluster_url.host().is_none()
        || !matches!(config.cluster_url.scheme_str(), Some("http" | "https"))
    {
        return Err(invalid());
    }
    let client = Client::try_from(config)
        .map_err(|source| ApiServerError::Client { address: address.to_owned(), source: Box::new(source) })?;
    Ok(ApiServer { index, address: address.to_owned(), client })
}

async fn base_config(kubeconfig: Option<&Path>, addresses: &[String]) -> Result<Config, ApiServerError> {
    if let Some(path) = kubeconfig {
        let failed = |source| ApiServerError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
        let file = Kubeconfig::read_from(path).map_err(failed)?;
        return Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed);
    }
    // Its URL is replaced by the given addresses; the service account's CA and token are what is wanted of it.
    let config = if addresses.is_empty() { Config::incluster_env() } else { Config::incluster_dns() };
    let config = config.map_err(|source| ApiServerError::InCluster { source: Box::new(source) })?;
    if addresses.is_empty() {
        tracing::warn!(
            address = %config.cluster_url,
            "KUBERNETES_SERVICE_HOST is usually a ClusterIP, which nothing serves before this agent has synced once; \
             give --api-server"
        );
    }
    Ok(config)
}

/// Waiting times between failures: doubling, with jitter so that the nodes of a cluster do not return in step.
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { failures: 0 }
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next waiting time, between half and all of what `rounds` of failures through `addresses` make.
    pub(super) fn next(&mut self, addresses: usize, timeouts: &Timeouts) -> Duration {
        let round = self.failures / u32::try_from(addresses).unwrap_or(u32::MAX).max(1);
        self.failures = self.failures.saturating_add(1);
        let full = timeouts.retry_min.saturating_mul(1 << round.min(20)).min(timeouts.retry_max);
        full.mul_f64(0.5 + 0.5 * random_fraction())
    }
}

/// In [0, 1). Randomness of a hasher's keys: enough to spread retries, and no dependency.
pub(super) fn random_fraction() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(SystemTime::now()) >> 40;
    bits as f64 / f64::from(1 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_double_once_per_round_through_the_addresses() {
        let timeouts = Timeouts { retry_max: Duration::from_secs(1), ..Timeouts::default() };
        let mut backoff = Backoff::new();
        for full_ms in [100, 100, 200, 200, 400, 400, 800, 800, 1000, 1000] {
            let delay = backoff.next(2, &timeouts).as_millis();
            assert!((full_ms / 2..=full_ms).contains(&delay), "{delay} of {full_ms}");
        }
        backoff.reset();
        assert!(backoff.next(2, &timeouts).as_millis() <= 100);
    }

    #[tokio::test]
    async fn an_address_that_is_no_url_is_refused_by_name() {
        let base = Config::new("http://127.0.0.1:1".parse().unwrap());
        for address in ["192.0.2.1:6443", "ftp://x", ""] {
            let error = server(0, address, &base).map(|server| server.address).unwrap_err();
            assert!(error.to_string().contains(&format!("{address:?}")), "{error}");
        }
    }
}
