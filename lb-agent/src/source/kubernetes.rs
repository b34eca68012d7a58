//! How do objects of a cluster become changes, and stay so through everything an API server may do? `run` is started
//! by the agent when it is given no directory. One watch per kind: a paged list, then a watch from its
//! resourceVersion. What must stay true: while no API server answers nothing is sent, so the node keeps forwarding;
//! after a re-list everything that vanished meanwhile is sent as deleted.
//!
//! The loop is ours and not `kube::runtime::watcher`, because a watch here may go on at another address from the
//! resourceVersion it had (all API servers of a cluster share one), and because a page is sent on before the next.

use std::{
    collections::HashSet, fmt::Debug, marker::PhantomData, path::PathBuf, pin::pin, sync::Arc, time::Duration,
};

use futures::{StreamExt, TryStream, TryStreamExt};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Resource,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

pub use super::api_servers::{ApiServerError, SourceStatus, Timeouts};
use super::{
    Change, HEADLESS_CLUSTER_IP, HEADLESS_LABEL, Kind, Object, ObjectRef, SERVICE_PROXY_NAME_LABEL,
    api_servers::{ApiServer, ApiServers, Backoff, random_fraction},
    events::{self, EventQueue},
};

/// The annotation in which `kubectl apply` keeps a copy of the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How long a watch lasts before the API server ends it, seconds: from this to as much again, so that watches of a
/// cluster's nodes do not end in step. kube refuses 295 and more.
const WATCH_TIMEOUT_MIN_S: u32 = 140;
/// What the lack of other nodes costs.
const WITHOUT_NODES: &str = "direct server return needs the right to list and watch nodes: until then backends on \
                             nodes not known are reached with SNAT, and such nodes' tunnels are left to the stack";
/// A watch that ends sooner without an event has failed.
const WATCH_SHORT: Duration = Duration::from_secs(1);

/// Why the source ended.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesSourceError {
    /// The configuration gives no client.
    #[error(transparent)]
    ApiServer(#[from] ApiServerError),
    /// A watch died.
    #[error("a watch ended: {0}")]
    Watch(#[from] tokio::task::JoinError),
}

/// Where the API server is and what is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// Credentials and address; None: those of the Pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Addresses to use instead, in order of preference, as `https://192.0.2.10:6443`.
    pub api_servers: Vec<String>,
    /// The node whose Node object is followed.
    pub node_name: String,
    /// Objects per page of a list.
    pub page_size: u32,
}

/// The objects of a cluster.
#[derive(Debug)]
pub struct KubernetesSource {
    config: KubernetesConfig,
    timeouts: Timeouts,
    status: watch::Sender<SourceStatus>,
    events: Option<EventQueue>,
    wants_nodes: Option<watch::Receiver<bool>>,
}

impl KubernetesSource {
    /// A source that talks to nobody yet.
    pub fn new(config: KubernetesConfig) -> Self {
        Self {
            config,
            timeouts: Timeouts::default(),
            status: watch::Sender::default(),
            events: None,
            wants_nodes: None,
        }
    }

    /// Also publishes these events.
    #[must_use]
    pub fn with_events(self, events: EventQueue) -> Self {
        Self { events: Some(events), ..self }
    }

    /// Follows every Node from when `wanted` says so: what no Service needs is not asked of the API server.
    #[must_use]
    pub fn with_nodes(self, wanted: watch::Receiver<bool>) -> Self {
        Self { wants_nodes: Some(wanted), ..self }
    }

    /// With other waiting times.
    #[must_use]
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Follows what the source knows about the API server.
    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        self.status.subscribe()
    }

    /// Sends what the cluster holds, [`Change::Synced`] per kind, then what changes, until `stop`. Endpoints count as
    /// synced at once: a cluster mirrors them into slices (spec 1.6).
    pub async fn run(
        self,
        changes: mpsc::Sender<Change>,
        stop: CancellationToken,
    ) -> Result<(), KubernetesSourceError> {
        let Self { config, timeouts, status, events, wants_nodes } = self;
        let servers =
            ApiServers::open(config.kubeconfig.as_deref(), &config.api_servers, &timeouts, status).await?;
        let shared = Arc::new(Shared { servers, timeouts, page_size: config.page_size, changes });
        if shared.send(Change::Synced(Kind::Endpoints)).await.is_err() {
            return Ok(());
        }
        let mut watches = JoinSet::new();
        for watch in [
            boxed(KindWatch::<Service>::new(&shared, services())),
            boxed(KindWatch::<EndpointSlice>::new(&shared, endpoint_slices())),
            boxed(KindWatch::<Node>::new(&shared, own_node(&config.node_name))),
            boxed(KindWatch::<ServiceCIDR>::new(&shared, Selectors::default())),
        ] {
            watches.spawn(stop.clone().run_until_cancelled_owned(watch));
        }
        if let Some(mut wanted) = wants_nodes {
            let nodes = KindWatch::<Node>::new(&shared, Selectors::default()).announcing(Change::EveryNode);
            let follow = async move {
                if wanted.wait_for(|wanted| *wanted).await.is_ok() {
                    nodes.run().await;
                }
            };
            watches.spawn(stop.clone().run_until_cancelled_owned(follow));
        }
        if let Some(events) = events {
            let shared = shared.clone();
            let publish = async move { events::publish(&shared.servers, events, &config.node_name).await };
            watches.spawn(stop.run_until_cancelled_owned(publish));
        }
        while let Some(ended) = watches.join_next().await {
            ended?;
        }
        Ok(())
    }
}

fn boxed<K: Watched>(watch: KindWatch<K>) -> futures::future::BoxFuture<'static, ()> {
    Box::pin(watch.run())
}

/// What the API server is asked to leave out.
#[derive(Clone, Debug, Default)]
struct Selectors {
    labels: Option<String>,
    fields: Option<String>,
}

/// Spec 1.1; [`Object::is_watched`] says the same.
fn services() -> Selectors {
    Selectors {
        labels: Some(format!("!{SERVICE_PROXY_NAME_LABEL}")),
        fields: Some(format!("spec.clusterIP!={HEADLESS_CLUSTER_IP}")),
    }
}

/// Spec 1.3.
fn endpoint_slices() -> Selectors {
    Selectors { labels: Some(format!("!{HEADLESS_LABEL}")), fields: None }
}

/// Spec 1.5.
fn own_node(name: &str) -> Selectors {
    Selectors { labels: None, fields: Some(format!("metadata.name={name}")) }
}

/// A kind that is watched in a cluster.
trait Watched: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {
    /// Its kind.
    const KIND: Kind;

    /// True if a cluster may lack the API.
    const OPTIONAL: bool = false;

    fn into_object(self) -> Object;
}

impl Watched for Service {
    const KIND: Kind = Kind::Service;

    fn into_object(self) -> Object {
        Object::Service(Box::new(self))
    }
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn into_object(self) -> Object {
        Object::EndpointSlice(Box::new(self))
    }
}

impl Watched for Node {
    const KIND: Kind = Kind::Node;

    fn into_object(self) -> Object {
        Object::Node(Box::new(self))
    }
}

impl Watched for ServiceCIDR {
    const KIND: Kind = Kind::ServiceCidr;
    const OPTIONAL: bool = true;

    fn into_object(self) -> Object {
        Object::ServiceCidr(Box::new(self))
    }
}

/// What the watches have in common.
struct Shared {
    servers: ApiServers,
    timeouts: Timeouts,
    page_size: u32,
    changes: mpsc::Sender<Change>,
}

impl Shared {
    async fn send(&self, change: Change) -> Result<(), Interruption> {
        self.changes.send(change).await.map_err(|_closed| Interruption::Stopped)
    }
}

/// Why a list or watch did not go on.
#[derive(Debug)]
enum Interruption {
    /// Nobody listens any more.
    Stopped,
    /// The resourceVersion or continue token is too old: list again.
    Expired(String),
    /// The cluster does not have this API, or not for us.
    Missing(String),
    /// This server fails or is away: try the next.
    Server { reason: String, wait: Duration },
    /// Every server would say the same.
    Refused(String),
}

/// Keeps one kind in step.
struct KindWatch<K> {
    shared: Arc<Shared>,
    selectors: Selectors,
    /// What was sent as applied and not as deleted since.
    known: HashSet<ObjectRef>,
    /// What says that everything is there.
    announcement: Change,
    synced: bool,
    backoff: Backoff,
    of: PhantomData<fn() -> K>,
}

impl<K: Watched> KindWatch<K> {
    fn new(shared: &Arc<Shared>, selectors: Selectors) -> Self {
        Self {
            shared: shared.clone(),
            selectors,
            known: HashSet::new(),
            announcement: Change::Synced(K::KIND),
            synced: false,
            backoff: Backoff::new(),
            of: PhantomData,
        }
    }

    fn announcing(self, announcement: Change) -> Self {
        Self { announcement, ..self }
    }

    async fn run(mut self) {
        let shared = self.shared.clone();
        let mut version = None;
        loop {
            let server = shared.servers.current();
            let api: Api<K> = Api::all(server.client.clone());
            let outcome = match &mut version {
                None => self.list(&api).await.map(|listed| version = Some(listed)),
                Some(version) => self.watch(&api, version).await,
            };
            match outcome {
                Ok(()) => {}
                Err(Interruption::Stopped) => return,
                Err(interruption) => {
                    let expired = matches!(interruption, Interruption::Expired(_));
                    if self.recover(server, interruption).await.is_err() {
                        return;
                    }
                    version = version.filter(|_| !expired);
                }
            }
        }
    }

    /// Sends every object page by page, then what is no longer there, then Synced. Returns the resourceVersion.
    async fn list(&mut self, api: &Api<K>) -> Result<String, Interruption> {
        let mut seen = HashSet::new();
        let mut params = ListParams {
            label_selector: self.selectors.labels.clone(),
            field_selector: self.selectors.fields.clone(),
            limit: Some(self.shared.page_size),
            ..ListParams::default()
        };
        loop {
            let page = self.in_time("list", api.list(&params)).await?;
            self.shared.servers.note_contact();
            for object in page.items {
                seen.insert(self.apply(object).await?);
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                self.forget_all_but(&seen).await?;
                self.announce().await?;
                return page.metadata.resource_version.filter(|version| !version.is_empty()).ok_or_else(
                    || Interruption::Refused(format!("list of {}s has no resourceVersion", K::KIND)),
                );
            }
        }
    }

    /// Follows changes from `version` on, which moves along.
    async fn watch(&mut self, api: &Api<K>, version: &mut String) -> Result<(), Interruption> {
        let spread = f64::from(WATCH_TIMEOUT_MIN_S) * random_fraction();
        let params = WatchParams {
            label_selector: self.selectors.labels.clone(),
            field_selector: self.selectors.fields.clone(),
            timeout: Some(WATCH_TIMEOUT_MIN_S + spread as u32),
            bookmarks: true,
            send_initial_events: false,
        };
        let begun = Instant::now();
        let events = self.in_time("watch", api.watch(&params, version)).await?;
        self.shared.servers.note_contact();
        if self.follow(events, version).await? == 0 && begun.elapsed() < WATCH_SHORT {
            return Err(failed(format!("watch of {}s ended at once", K::KIND)));
        }
        self.backoff.reset();
        Ok(())
    }

    /// Counts the events of a watch that ended in order.
    async fn follow(
        &mut self,
        events: impl TryStream<Ok = WatchEvent<K>, Error = kube::Error>,
        version: &mut String,
    ) -> Result<u64, Interruption> {
        let mut events = pin!(events.into_stream());
        let mut count = 0;
        loop {
            let stalled = |_elapsed| {
                failed(format!("watch of {}s: silent for {:?}", K::KIND, self.shared.timeouts.idle))
            };
            match timeout(self.shared.timeouts.idle, events.next()).await.map_err(stalled)? {
                None => return Ok(count),
                Some(Ok(event)) => self.take(event, version).await?,
                Some(Err(error)) => return Err(self.classify("watch", error)),
            }
            count += 1;
            self.backoff.reset();
            self.shared.servers.note_contact();
        }
    }

    async fn take(&mut self, event: WatchEvent<K>, version: &mut String) -> Result<(), Interruption> {
        let reached = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let reached = object.meta().resource_version.clone();
                self.apply(object).await?;
                reached
            }
            WatchEvent::Deleted(object) => {
                let reached = object.meta().resource_version.clone();
                let object_ref = object.into_object().object_ref();
                if self.known.remove(&object_ref) {
                    self.shared.send(Change::Deleted(object_ref)).await?;
                }
                reached
            }
            WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) => return Err(self.classify("watch", kube::Error::Api(status))),
        };
        if let Some(reached) = reached {
            *version = reached;
        }
        Ok(())
    }

    async fn apply(&mut self, mut object: K) -> Result<ObjectRef, Interruption> {
        let metadata = object.meta_mut();
        metadata.managed_fields = None;
        if let Some(annotations) = &mut metadata.annotations {
            annotations.remove(LAST_APPLIED);
        }
        let object = object.into_object();
        let object_ref = object.object_ref();
        self.known.insert(object_ref.clone());
        self.shared.send(Change::Applied(object)).await?;
        Ok(object_ref)
    }

    async fn forget_all_but(&mut self, seen: &HashSet<ObjectRef>) -> Result<(), Interruption> {
        let vanished: Vec<ObjectRef> = self.known.difference(seen).cloned().collect();
        for object_ref in vanished {
            self.known.remove(&object_ref);
            self.shared.send(Change::Deleted(object_ref)).await?;
        }
        Ok(())
    }

    async fn announce(&mut self) -> Result<(), Interruption> {
        self.synced = true;
        if self.is_of_every_node() {
            self.shared.servers.note_nodes(None);
        }
        self.shared.send(self.announcement.clone()).await
    }

    async fn in_time<T>(
        &self,
        verb: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Interruption> {
        match timeout(self.shared.timeouts.request, request).await {
            Ok(answer) => answer.map_err(|error| self.classify(verb, error)),
            Err(_elapsed) => {
                Err(failed(format!("{verb} {}s: no answer in {:?}", K::KIND, self.shared.timeouts.request)))
            }
        }
    }

    fn classify(&self, verb: &str, error: kube::Error) -> Interruption {
        let reason = format!("{verb} {}s: {}", K::KIND, explain(&error));
        let kube::Error::Api(status) = error else { return failed(reason) };
        let wait = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        match status.code {
            410 => Interruption::Expired(reason),
            403 | 404 if K::OPTIONAL => Interruption::Missing(reason),
            429 | 500.. => Interruption::Server { reason, wait: Duration::from_secs(wait.into()) },
            _ => Interruption::Refused(reason),
        }
    }

    /// Logs, moves to another server if that may help, and waits.
    async fn recover(&mut self, server: &ApiServer, interruption: Interruption) -> Result<(), Interruption> {
        let shared = self.shared.clone();
        let timeouts = &shared.timeouts;
        let mut delay = self.backoff.next(shared.servers.count(), timeouts);
        let reason = match interruption {
            Interruption::Stopped => return Err(Interruption::Stopped),
            Interruption::Missing(reason) => {
                if !self.synced {
                    tracing::info!(address = server.address, reason, "going on without this API");
                    self.announce().await?;
                }
                tokio::time::sleep(timeouts.missing).await;
                return Ok(());
            }
            Interruption::Server { reason, wait } => {
                shared.servers.leave(server);
                delay = delay.max(wait.min(timeouts.retry_max));
                reason
            }
            Interruption::Refused(reason) if self.is_of_every_node() => self.without_nodes(&reason),
            Interruption::Expired(reason) | Interruption::Refused(reason) => reason,
        };
        let reason = format!("API server {}: {reason}", server.address);
        tracing::warn!(?delay, "{reason}; trying again");
        shared.servers.note_error(reason);
        tokio::time::sleep(delay).await;
        Ok(())
    }

    fn is_of_every_node(&self) -> bool {
        self.announcement == Change::EveryNode
    }

    /// Says what the lack of other nodes costs; everything else goes on.
    fn without_nodes(&self, reason: &str) -> String {
        let reason = format!("{reason}; {WITHOUT_NODES}");
        self.shared.servers.note_nodes(Some(reason.clone()));
        reason
    }
}

fn failed(reason: String) -> Interruption {
    Interruption::Server { reason, wait: Duration::ZERO }
}

/// The error with its causes: "client error (Connect)" alone says little.
fn explain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} {}: {}", status.code, status.reason, status.message);
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
