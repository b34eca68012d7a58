//! The API server as a source: what the watches ask for and send, and what they do when a server fails.

use std::{env, path::PathBuf, time::Duration};

use anyhow::Context;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use lb_agent::source::{
    Kind, Object,
    kubernetes::{KubernetesConfig, KubernetesSource, KubernetesSourceError, SourceStatus, Timeouts},
};
use lb_tests::{
    api_server::{ApiServer, Cluster, Fault, Mode},
    changes::{Changes, PATIENCE},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

type Outcome = anyhow::Result<()>;

/// Short enough for a test, long enough for a busy machine.
const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(2),
    request: Duration::from_secs(3),
    idle: Duration::from_millis(1500),
    retry_min: Duration::from_millis(20),
    retry_max: Duration::from_millis(200),
    missing: Duration::from_millis(300),
};

/// A source at work.
struct Running {
    changes: Changes,
    status: watch::Receiver<SourceStatus>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), KubernetesSourceError>>,
    _dir: Option<TempDir>,
}

impl Running {
    fn start(kubeconfig: PathBuf, api_servers: Vec<String>, timeouts: Timeouts) -> Self {
        Self::start_with(kubeconfig, api_servers, timeouts, |source| source)
    }

    fn start_with(
        kubeconfig: PathBuf,
        api_servers: Vec<String>,
        timeouts: Timeouts,
        prepare: impl FnOnce(KubernetesSource) -> KubernetesSource,
    ) -> Self {
        let (sender, changes) = Changes::channel(64);
        let node_name = "node-a".to_owned();
        let config =
            KubernetesConfig { kubeconfig: Some(kubeconfig), api_servers, node_name, page_size: 500 };
        let source = prepare(KubernetesSource::new(config).with_timeouts(timeouts));
        let (status, stop) = (source.status(), CancellationToken::new());
        let task = tokio::spawn(source.run(sender, stop.clone()));
        Self { changes, status, stop, task, _dir: None }
    }

    /// Talks to these servers, in this order.
    fn to(servers: &[&ApiServer]) -> anyhow::Result<Self> {
        let dir = TempDir::new()?;
        let kubeconfig = servers[0].write_kubeconfig(dir.path())?;
        let running = Self::start(kubeconfig, servers.iter().map(|server| server.url()).collect(), TIMEOUTS);
        Ok(Self { _dir: Some(dir), ..running })
    }

    async fn synced(servers: &[&ApiServer]) -> anyhow::Result<Self> {
        let mut running = Self::to(servers)?;
        running.changes.until_synced().await?;
        running.changes.forget_log();
        Ok(running)
    }

    async fn stop(self) -> Outcome {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.context("the source does not stop")???;
        Ok(())
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> anyhow::Result<K> {
    Ok(serde_json::from_value(value)?)
}

fn service(name: &str, address: &str) -> anyhow::Result<Service> {
    object(json!({
        "metadata": {"name": name, "namespace": "default",
            "managedFields": [{"manager": "kubectl", "operation": "Update"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes"}},
        "spec": {"clusterIP": address, "ports": [{"port": 80, "protocol": "TCP"}]},
    }))
}

fn labelled(name: &str, label: &str) -> anyhow::Result<Service> {
    let mut service = service(name, "10.0.0.1")?;
    service.metadata.labels = Some([(label.to_owned(), String::new())].into());
    Ok(service)
}

fn slice(name: &str) -> anyhow::Result<EndpointSlice> {
    object(json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "a"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": true}}],
    }))
}

/// Two nodes, a service range, and the Services `a` and `b` with a slice each.
fn small_cluster() -> anyhow::Result<Cluster> {
    let cluster = Cluster::new();
    for name in ["node-a", "node-b"] {
        cluster.apply::<Node>(&object(json!({"metadata": {"name": name}}))?);
    }
    cluster.apply::<ServiceCIDR>(&object(
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.0.0.0/16"]}}),
    )?);
    for name in ["a", "b"] {
        cluster.apply(&service(name, "10.0.0.1")?);
        cluster.apply(&slice(name)?);
    }
    Ok(cluster)
}

const SMALL: [&str; 6] = [
    "Service default/a",
    "Service default/b",
    "EndpointSlice default/a",
    "EndpointSlice default/b",
    "Node node-a",
    "ServiceCIDR kubernetes",
];

#[tokio::test]
async fn what_a_cluster_holds_is_sent_with_the_selectors_of_the_specification() -> Outcome {
    let cluster = small_cluster()?;
    cluster.apply(&labelled("other", "service.kubernetes.io/service-proxy-name")?);
    cluster.apply(&service("headless", "None")?);
    let mut headless = slice("headless")?;
    headless.metadata.labels = Some([("service.kubernetes.io/headless".to_owned(), String::new())].into());
    cluster.apply(&headless);
    let server = ApiServer::start(&cluster).await?;
    let running = Running::synced(&[&server]).await?;
    assert_eq!(running.changes.names(), SMALL, "spec 1.1, 1.3, 1.5");
    assert!(server.requests().iter().all(|request| !request.contains("/endpoints?")), "spec 1.6");
    let Some(Object::Service(service)) = running.changes.objects.values().next() else {
        panic!("no Service")
    };
    assert_eq!(service.metadata.managed_fields, None);
    let annotations = service.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations.into_keys().collect::<Vec<_>>(), ["kept"]);
    let status = running.status.borrow().clone();
    assert_eq!((status.address, status.last_error), (server.url(), None));
    assert!(status.last_contact.is_some());
    running.stop().await
}

#[tokio::test]
async fn updates_deletions_and_additions_are_sent_as_they_happen() -> Outcome {
    let cluster = small_cluster()?;
    let server = ApiServer::start(&cluster).await?;
    let mut running = Running::synced(&[&server]).await?;
    cluster.apply(&service("a", "10.0.0.9")?);
    cluster.delete::<Service>("default", "b");
    cluster.apply(&service("c", "10.0.0.3")?);
    cluster.apply::<Node>(&object(json!({"metadata": {"name": "node-b", "labels": {"not": "ours"}}}))?);
    running.changes.until("c", |changes| changes.has("Service default/c")).await?;
    assert_eq!(running.changes.log, ["+Service default/a", "-Service default/b", "+Service default/c"]);
    running.changes.nothing_within(Duration::from_millis(300)).await?;
    running.stop().await
}

#[tokio::test]
async fn a_label_that_comes_is_a_deletion_and_one_that_goes_an_addition() -> Outcome {
    let cluster = small_cluster()?;
    let server = ApiServer::start(&cluster).await?;
    let mut running = Running::synced(&[&server]).await?;
    cluster.apply(&labelled("a", "service.kubernetes.io/service-proxy-name")?);
    running.changes.until("gone (spec 1.2)", |changes| !changes.has("Service default/a")).await?;
    cluster.apply(&service("a", "10.0.0.1")?);
    running.changes.until("back", |changes| changes.has("Service default/a")).await?;
    running.stop().await
}

#[tokio::test]
async fn a_headless_label_that_comes_on_a_slice_is_a_deletion_and_one_that_goes_an_addition() -> Outcome {
    let cluster = small_cluster()?;
    let server = ApiServer::start(&cluster).await?;
    let mut running = Running::synced(&[&server]).await?;
    let mut headless = slice("a")?;
    let labels = headless.metadata.labels.get_or_insert_default();
    labels.insert("service.kubernetes.io/headless".to_owned(), String::new());
    cluster.apply(&headless);
    running.changes.until("gone (spec 1.3)", |changes| !changes.has("EndpointSlice default/a")).await?;
    cluster.apply(&slice("a")?);
    running.changes.until("back", |changes| changes.has("EndpointSlice default/a")).await?;
    running.stop().await
}

#[tokio::test]
async fn a_service_that_becomes_headless_is_a_deletion() -> Outcome {
    let cluster = small_cluster()?;
    let server = ApiServer::start(&cluster).await?;
    let mut running = Running::synced(&[&server]).await?;
    cluster.apply(&service("a", "None")?);
    running.changes.until("gone (spec 1.1, 12A 1)", |changes| !changes.has("Service default/a")).await?;
    cluster.apply(&service("a", "10.0.0.1")?);
    running.changes.until("back", |changes| changes.has("Service default/a")).await?;
    running.stop().await
}

#[tokio::test]
async fn the_own_node_is_deleted_and_made_again() -> Outcome {
    let cluster = small_cluster()?;
    let server = ApiServer::start(&cluster).await?;
    let mut running = Running::synced(&[&server]).await?;
    cluster.delete::<Node>("", "node-a");
    running.changes.until("gone (spec 9.10)", |changes| !changes.has("Node node-a")).await?;
    cluster.apply::<Node>(&object(json!({"metadata": {"name": "node-a"}}))?);
    running.changes.until("back", |changes| changes.has("Node node-a")).await?;
    assert_eq!(running.changes.log, ["-Node node-a", "+Node node-a"]);
    running.stop().await
}

/// A source that follows every Node once told to.
fn with_nodes(server: &ApiServer) -> anyhow::Result<(Running, watch::Sender<bool>)> {
    let dir = TempDir::new()?;
    let kubeconfig = server.write_kubeconfig(dir.path())?;
    let wanted = watch::Sender::new(false);
    let running = Running::start_with(kubeconfig, vec![server.url()], TIMEOUTS, |source| {
        source.with_nodes(wanted.subscribe())
    });
    Ok((Running { _dir: Some(dir), ..running }, wanted))
}

fn node(name: &str, address: &str) -> anyhow::Result<Node> {
    object(json!({
        "metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }))
}

/// The first address of a Node that was sent.
fn address_of(changes: &Changes, name: &str) -> Option<String> {
    changes.objects.values().find_map(|object| match object {
        Object::Node(node) if node.metadata.name.as_deref() == Some(name) => {
            Some(node.status.as_ref()?.addresses.as_ref()?.first()?.address.clone())
        }
        _ => None,
    })
}

fn asked_for_every_node(server: &ApiServer) -> usize {
    let requests = server.requests();
    requests.iter().filter(|it| it.contains("/nodes?") && !it.contains("fieldSelector")).count()
}

#[tokio::test]
async fn every_node_is_followed_once_some_service_needs_it() -> Outcome {
    let cluster = small_cluster()?;
    let server = ApiServer::start(&cluster).await?;
    let (mut running, wanted) = with_nodes(&server)?;
    running.changes.until_synced().await?;
    running.changes.nothing_within(Duration::from_millis(300)).await?;
    assert_eq!(asked_for_every_node(&server), 0);
    assert!(!running.changes.has_every_node);
    wanted.send_replace(true);
    running.changes.until("every Node", |changes| changes.has_every_node).await?;
    assert!(running.changes.has("Node node-b"));

    cluster.apply(&node("node-b", "192.0.2.11")?);
    cluster.apply(&node("node-c", "192.0.2.12")?);
    running.changes.until("node-c", |changes| changes.has("Node node-c")).await?;
    assert_eq!(address_of(&running.changes, "node-b").as_deref(), Some("192.0.2.11"));
    cluster.apply(&node("node-b", "192.0.2.99")?);
    let has_moved = |changes: &Changes| address_of(changes, "node-b").as_deref() == Some("192.0.2.99");
    running.changes.until("another address", has_moved).await?;
    cluster.delete::<Node>("", "node-c");
    running.changes.until("gone", |changes| !changes.has("Node node-c")).await?;
    assert!(running.changes.has("Node node-a"), "the own one stays");
    running.stop().await
}

#[tokio::test]
async fn every_node_is_listed_again_when_its_watch_is_gone() -> Outcome {
    let cluster = small_cluster()?;
    cluster.apply(&node("node-c", "192.0.2.12")?);
    let mut server = ApiServer::start(&cluster).await?;
    let (mut running, wanted) = with_nodes(&server)?;
    wanted.send_replace(true);
    running.changes.until_synced().await?;
    running.changes.until("every Node", |changes| changes.has_every_node).await?;
    running.changes.forget_log();
    server.stop().await;
    cluster.delete::<Node>("", "node-c");
    cluster.apply(&node("node-d", "192.0.2.13")?);
    cluster.compact();
    server.restart().await?;
    let again = |changes: &Changes| changes.log.iter().any(|entry| entry == "every Node");
    running.changes.until("410 Gone and a list", again).await?;
    assert!(running.changes.has("Node node-d") && !running.changes.has("Node node-c"));
    let deleted: Vec<_> = running.changes.log.iter().filter(|entry| entry.starts_with('-')).collect();
    assert_eq!(deleted, ["-Node node-c"]);
    running.stop().await
}

/// RBAC without nodes: what direct server return lacks is said, and everything else goes on.
#[tokio::test]
async fn a_cluster_that_shows_no_nodes_is_followed_all_the_same() -> Outcome {
    let cluster = small_cluster()?;
    let server = ApiServer::start(&cluster).await?;
    let (mut running, wanted) = with_nodes(&server)?;
    running.changes.until_synced().await?;
    cluster.hide::<Node>(403);
    wanted.send_replace(true);
    let status = running.status.wait_for(|status| status.nodes_error.is_some()).await?.clone();
    let error = status.nodes_error.unwrap_or_default();
    assert!(error.contains("403") && error.contains("right to list and watch nodes"), "{error}");
    running.changes.forget_log();
    cluster.apply(&service("c", "10.0.0.3")?);
    cluster.delete::<EndpointSlice>("default", "b");
    let goes_on =
        |changes: &Changes| changes.has("Service default/c") && !changes.has("EndpointSlice default/b");
    running.changes.until("the others", goes_on).await?;
    assert!(!running.changes.has_every_node);
    cluster.show::<Node>();
    running.changes.until("every Node", |changes| changes.has_every_node).await?;
    assert!(running.changes.has("Node node-b"));
    running.status.wait_for(|status| status.nodes_error.is_none()).await?;
    running.stop().await
}

#[tokio::test]
async fn a_watch_goes_on_where_its_connection_broke() -> Outcome {
    let cluster = small_cluster()?;
    let mut server = ApiServer::start(&cluster).await?;
    let mut running = Running::synced(&[&server]).await?;
    let lists =
        |server: &ApiServer| server.requests().iter().filter(|request| request.contains("limit=")).count();
    let before = lists(&server);
    server.stop().await;
    cluster.delete::<Service>("default", "b");
    cluster.apply(&service("c", "10.0.0.3")?);
    running.changes.nothing_within(Duration::from_millis(500)).await.context("while it is away")?;
    running.status.wait_for(|status| status.last_error.is_some()).await?;
    server.restart().await?;
    running.changes.until("c", |changes| changes.has("Service default/c")).await?;
    assert_eq!(running.changes.log, ["-Service default/b", "+Service default/c"]);
    assert_eq!(lists(&server), before, "no list was needed");
    running.stop().await
}

#[tokio::test]
async fn what_vanished_while_history_was_lost_is_deleted_after_the_list() -> Outcome {
    let cluster = small_cluster()?;
    let mut server = ApiServer::start(&cluster).await?;
    let mut running = Running::synced(&[&server]).await?;
    server.stop().await;
    cluster.delete::<Service>("default", "b");
    cluster.delete::<EndpointSlice>("default", "b");
    cluster.compact();
    server.restart().await?;
    let gone =
        |changes: &Changes| !changes.has("Service default/b") && !changes.has("EndpointSlice default/b");
    running.changes.until("b is gone", gone).await?;
    assert!(running.changes.has("Service default/a"));
    running.stop().await
}

#[tokio::test]
async fn a_watch_that_is_gone_lists_again_whichever_way_it_is_told() -> Outcome {
    let cluster = small_cluster()?;
    let server = ApiServer::start(&cluster).await?;
    let mut running = Running::synced(&[&server]).await?;
    for fault in [Fault::GoneInStream, Fault::Status(410)] {
        running.changes.forget_log();
        server.inject(fault);
        server.break_watches();
        let listed = |changes: &Changes| changes.log.iter().any(|entry| entry.starts_with("synced"));
        running.changes.until("a list", listed).await.with_context(|| format!("{fault:?}"))?;
        assert!(!running.changes.log.iter().any(|entry| entry.starts_with('-')), "{:?}", running.changes.log);
    }
    assert_eq!(running.changes.names(), SMALL);
    running.stop().await
}

#[tokio::test]
async fn errors_at_the_start_are_retried_until_everything_is_there() -> Outcome {
    let cluster = small_cluster()?;
    for fault in [
        Fault::Status(429),
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(401),
        Fault::Break,
        Fault::Slow(Duration::from_millis(300)),
    ] {
        let server = ApiServer::start(&cluster).await?;
        (0..5).for_each(|_request| server.inject(fault));
        let running = Running::synced(&[&server]).await.with_context(|| format!("{fault:?}"))?;
        assert_eq!(running.changes.names(), SMALL, "{fault:?}");
        running.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left_for_the_next() -> Outcome {
    let cluster = small_cluster()?;
    let (first, second) = (ApiServer::start(&cluster).await?, ApiServer::start(&cluster).await?);
    let mut running = Running::synced(&[&first, &second]).await?;
    assert!(second.requests().is_empty(), "a healthy server is kept");
    first.set_mode(Mode::Stalled);
    cluster.apply(&service("c", "10.0.0.3")?);
    running.changes.until("c", |changes| changes.has("Service default/c")).await?;
    assert_eq!(running.changes.log, ["+Service default/c"]);
    let status = running.status.borrow().clone();
    assert_eq!(status.address, second.url());
    let error = status.last_error.unwrap_or_default();
    assert!(error.contains(&first.url()) && error.contains("silent"), "{error}");
    running.stop().await
}

#[tokio::test]
async fn of_several_servers_any_that_works_is_enough() -> Outcome {
    let cluster = small_cluster()?;
    let mut servers = [
        ApiServer::start(&cluster).await?,
        ApiServer::start(&cluster).await?,
        ApiServer::start(&cluster).await?,
    ];
    servers[0].stop().await;
    servers[1].set_mode(Mode::Failing(503));
    let [first, second, third] = &servers;
    let mut running = Running::synced(&[first, second, third]).await?;
    assert_eq!(running.status.borrow().address, third.url());
    servers[2].stop().await;
    servers[0].restart().await?;
    cluster.apply(&service("c", "10.0.0.3")?);
    running.changes.until("c", |changes| changes.has("Service default/c")).await?;
    running.stop().await
}

#[tokio::test]
async fn a_huge_cluster_comes_in_pages_that_outlive_an_expired_one() -> Outcome {
    let cluster = small_cluster()?;
    for index in 0..10_000 {
        cluster.apply(&service(&format!("s{index}"), "10.0.0.1")?);
    }
    let server = ApiServer::start(&cluster).await?;
    let mut running = Running::to(&[&server])?;
    running.changes.until("a first page", |changes| changes.has("Service default/s1")).await?;
    cluster.compact();
    running.changes.until_synced().await?;
    assert_eq!(running.changes.objects.len(), 10_000 + SMALL.len());
    let pages = server
        .requests()
        .iter()
        .filter(|request| request.contains("services?") && request.contains("continue="))
        .count();
    assert!(pages >= 20, "{pages} pages");
    running.stop().await
}

#[tokio::test]
async fn a_cluster_without_service_cidrs_is_synced_and_one_that_gets_them_is_noticed() -> Outcome {
    for code in [404, 403] {
        let cluster = small_cluster()?;
        cluster.hide::<ServiceCIDR>(code);
        let server = ApiServer::start(&cluster).await?;
        let mut running = Running::synced(&[&server]).await?;
        assert!(!running.changes.has("ServiceCIDR kubernetes"));
        cluster.show::<ServiceCIDR>();
        running.changes.until("the range", |changes| changes.has("ServiceCIDR kubernetes")).await?;
        running.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn streaming_lists_are_refused_as_by_a_server_without_them() -> Outcome {
    let server = ApiServer::start(&small_cluster()?).await?;
    let client = Client::try_from(Config::new(server.url().parse()?))?;
    let services: Api<Service> = Api::all(client);
    let refused = services.watch(&kube::api::WatchParams::streaming_lists(), "0").await;
    let Err(kube::Error::Api(status)) = refused.map(|_events| ()) else { panic!("not refused") };
    assert_eq!(status.code, 422);
    Ok(())
}

#[tokio::test]
async fn configuration_errors_name_what_was_tried() -> Outcome {
    let running = Running::start(PathBuf::from("/nonexistent/kubeconfig"), Vec::new(), TIMEOUTS);
    let Err(error) = running.task.await? else { panic!("no error") };
    assert!(error.to_string().contains("/nonexistent/kubeconfig"), "{error}");
    let server = ApiServer::start(&Cluster::new()).await?;
    let dir = TempDir::new()?;
    let kubeconfig = server.write_kubeconfig(dir.path())?;
    let running = Running::start(kubeconfig.clone(), vec!["192.0.2.1".to_owned()], TIMEOUTS);
    let Err(error) = running.task.await? else { panic!("no error") };
    assert!(error.to_string().contains("192.0.2.1"), "{error}");

    let mut running = Running::start(kubeconfig, vec!["https://127.0.0.1:1".to_owned()], TIMEOUTS);
    let status = running.status.wait_for(|status| status.last_error.is_some()).await?.clone();
    let error = status.last_error.unwrap_or_default();
    assert!(error.contains("https://127.0.0.1:1") && error.contains("refused"), "{error}");
    running.changes.until("Endpoints, which no cluster has", |changes| changes.synced.len() == 1).await?;
    assert!(running.changes.synced.contains(&Kind::Endpoints));
    running.stop().await
}

/// Against the cluster of `LB_TEST_KUBECONFIG`, else against an in-process server; in a namespace of its own.
#[tokio::test]
async fn a_real_api_server_agrees_on_objects_and_labels() -> Outcome {
    let Some(kubeconfig) = env::var_os("LB_TEST_KUBECONFIG").map(PathBuf::from) else {
        return against_in_process_server().await;
    };
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(&kubeconfig)?, &options).await?;
    let client = Client::try_from(config)?;
    let namespace = format!("lb-test-{}", std::process::id());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": namespace}}))?).await?;
    let outcome = against_real_server(kubeconfig, client, &namespace).await;
    namespaces.delete(&namespace, &DeleteParams::default()).await?;
    outcome
}

async fn against_real_server(kubeconfig: PathBuf, client: Client, namespace: &str) -> Outcome {
    let mut running = Running::start(kubeconfig, Vec::new(), Timeouts::default());
    running.changes.until_synced().await?;
    let services: Api<Service> = Api::namespaced(client, namespace);
    let web = object(json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}))?;
    services.create(&PostParams::default(), &web).await?;
    let name = format!("Service {namespace}/web");
    running.changes.until("created", |changes| changes.has(&name)).await?;
    for (value, expected) in [(json!(""), false), (json!(null), true)] {
        let patch = json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": value}}});
        services.patch("web", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        running.changes.until("label", |changes| changes.has(&name) == expected).await?;
    }
    services.delete("web", &DeleteParams::default()).await?;
    running.changes.until("deleted", |changes| !changes.has(&name)).await?;
    running.stop().await
}

async fn against_in_process_server() -> Outcome {
    let cluster = small_cluster()?;
    let server = ApiServer::start(&cluster).await?;
    let mut running = Running::synced(&[&server]).await?;
    cluster.apply(&service("web", "10.0.0.5")?);
    running.changes.until("created", |changes| changes.has("Service default/web")).await?;
    cluster.apply(&labelled("web", "service.kubernetes.io/service-proxy-name")?);
    running.changes.until("labelled", |changes| !changes.has("Service default/web")).await?;
    cluster.apply(&service("web", "10.0.0.5")?);
    running.changes.until("unlabelled", |changes| changes.has("Service default/web")).await?;
    cluster.delete::<Service>("default", "web");
    running.changes.until("deleted", |changes| !changes.has("Service default/web")).await?;
    running.stop().await
}
