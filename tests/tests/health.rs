//! Health check node ports: what they may say while map writes fail, and their servers on real sockets of the loopback
//! device.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lb_agent::{
    datapath::devices::NodePortAddresses,
    health::{
        node_ports::{NodePortMetrics, NodePorts, NodePortsConfig},
        proxy::Health,
    },
    maps::fake::{FakeMaps, Faults},
    model::{
        family::{IpFamily, PerFamily},
        health_check::{HealthCheck, HealthChecks},
        node::NodeAddresses,
        service::ServiceName,
    },
    reconcile::{
        ReconcileConfig, Reconciler,
        run::{Inputs, Outputs, Timing, run},
    },
    source::{
        Change, Kind, Object, ObjectRef,
        events::{self, EventSink},
        kubernetes::{KubernetesConfig, KubernetesSource},
    },
};
use lb_tests::{
    api_server::{ApiServer, Cluster},
    changes::PATIENCE,
    script::parse_objects,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// A Service of both families, with two ports and this external policy.
fn service(policy: &str) -> Object {
    object(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default, uid: 6e7a}}\nspec:\n  \
         type: LoadBalancer\n  externalTrafficPolicy: {policy}\n  healthCheckNodePort: 32000\n  \
         clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1, 'fd00:96::1']\n  ipFamilies: [IPv4, IPv6]\n  \
         ports:\n  - {{name: a, port: 80, nodePort: 30080}}\n  - {{name: b, port: 81, nodePort: 30081}}\n"
    ))
}

/// Its IPv4 slice, with `endpoints` in YAML.
fn slice(endpoints: &str) -> Object {
    annotated_slice("{}", endpoints)
}

fn annotated_slice(annotations: &str, endpoints: &str) -> Object {
    object(&format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: default, \
         labels: {{kubernetes.io/service-name: web}}, annotations: {annotations}}}\naddressType: IPv4\nports:\n\
         - {{name: a, port: 8080}}\n- {{name: b, port: 8081}}\nendpoints: [{endpoints}]\n"
    ))
}

fn endpoint(ip: &str, node: &str, conditions: &str) -> String {
    format!("{{addresses: [{ip}], nodeName: {node}, conditions: {{{conditions}}}}}")
}

fn object(yaml: &str) -> Object {
    parse_objects(yaml).unwrap().remove(0)
}

fn name(name: &str) -> ServiceName {
    ServiceName { namespace: "default".into(), name: name.into() }
}

fn reconciler() -> Reconciler<FakeMaps> {
    let config = ReconcileConfig { node_name: "node-a".to_owned(), ..ReconcileConfig::default() };
    let mut reconciler = Reconciler::new(FakeMaps::default(), config).unwrap();
    for kind in Kind::ALL {
        reconciler.apply_change(Change::Synced(kind));
    }
    reconciler.set_node_addresses(NodeAddresses(["192.0.2.11".parse().unwrap()].into()));
    reconciler
}

/// What the health check of `web` may say.
fn local(reconciler: &Reconciler<FakeMaps>) -> Option<PerFamily<Option<usize>>> {
    reconciler.progress().health_checks().get(&name("web")).map(|check| check.local)
}

fn of(v4: usize) -> Option<PerFamily<Option<usize>>> {
    Some(PerFamily { v4: Some(v4), v6: Some(0) })
}

/// Spec 6.7, 12A 83.
#[test]
fn distinct_addresses_of_ready_backends_on_this_node_count() {
    let (here, there) = ("node-a", "node-b");
    #[rustfmt::skip]
    let rows = [
        ("none", String::new(), 0),
        ("one, on two ports", endpoint("10.244.0.1", here, "ready: true"), 1),
        ("without conditions", endpoint("10.244.0.1", here, ""), 1),
        ("elsewhere", endpoint("10.244.0.1", there, "ready: true"), 0),
        ("the same address twice", [endpoint("10.244.0.1", here, ""), endpoint("10.244.0.1", here, "")].join(", "), 1),
        ("two here, one there", [endpoint("10.244.0.1", here, ""), endpoint("10.244.0.2", here, ""), endpoint("10.244.0.3", there, "")].join(", "), 2),
        ("terminating, still serving", endpoint("10.244.0.1", here, "ready: false, serving: true, terminating: true"), 0),
        ("serving without being ready", endpoint("10.244.0.1", here, "ready: false, serving: true, terminating: false"), 0),
        ("unready", endpoint("10.244.0.1", here, "ready: false, serving: false"), 0),
    ];
    for (row, endpoints, expected) in rows {
        let mut reconciler = reconciler();
        reconciler.apply_change(Change::Applied(service("Local")));
        reconciler.apply_change(Change::Applied(slice(&endpoints)));
        reconciler.sync().unwrap();
        assert_eq!(local(&reconciler), of(expected), "{row}");
    }
}

/// Spec 1.56, 8.43: the maps come first, whatever fails on the way.
#[test]
fn a_health_check_turns_200_only_after_the_maps_carry_the_change() {
    for seed in 0..200 {
        let mut reconciler = reconciler();
        reconciler.maps_mut().set_faults(Faults { percent: 60, seed });
        reconciler.apply_change(Change::Applied(service("Local")));
        reconciler.apply_change(Change::Applied(slice(&endpoint("10.244.0.1", "node-a", ""))));
        let mut was_incomplete = false;
        loop {
            let is_done = reconciler.sync().is_ok();
            was_incomplete |= !is_done;
            let frontends = &reconciler.maps().state.v4.frontends;
            let leads_there = |port| {
                frontends.iter().any(|(key, value)| key.port.get() == port && value.external.count == 1)
            };
            match local(&reconciler) {
                Some(check) => {
                    assert_eq!(check.v4, Some(1));
                    assert!(
                        leads_there(30080) && leads_there(30081),
                        "seed {seed}: answered before it was written"
                    );
                }
                None => assert!(!is_done, "seed {seed}: written and not answered"),
            }
            if is_done {
                break;
            }
        }
        assert!(was_incomplete || seed != 0, "no write failed");
    }
}

#[test]
fn a_health_check_falls_at_once_even_if_the_maps_cannot_follow() {
    let mut reconciler = reconciler();
    reconciler.apply_change(Change::Applied(service("Local")));
    reconciler.apply_change(Change::Applied(slice(&endpoint("10.244.0.1", "node-a", ""))));
    reconciler.sync().unwrap();
    assert_eq!(local(&reconciler), of(1));
    reconciler.maps_mut().set_faults(Faults { percent: 100, seed: 0 });
    reconciler.apply_change(Change::Applied(slice("")));
    reconciler.sync().unwrap_err();
    assert_eq!(local(&reconciler), of(0), "its backend is gone, whatever the maps say");
    let pair = [endpoint("10.244.0.1", "node-a", ""), endpoint("10.244.0.2", "node-a", "")].join(", ");
    reconciler.apply_change(Change::Applied(slice(&pair)));
    reconciler.sync().unwrap_err();
    assert_eq!(local(&reconciler), of(0), "and does not rise before they do");
    reconciler.maps_mut().set_faults(Faults::default());
    reconciler.sync().unwrap();
    assert_eq!(local(&reconciler), of(2));
    reconciler.maps_mut().set_faults(Faults { percent: 100, seed: 0 });
    reconciler.apply_change(Change::Applied(service("Cluster")));
    reconciler.sync().unwrap_err();
    assert_eq!(local(&reconciler), None, "spec 6.13: with policy Cluster the port closes");
}

#[test]
fn a_failed_service_keeps_only_itself_back() {
    let mut reconciler = reconciler();
    reconciler.maps_mut().entries_max.insert("FRONTENDS6".to_owned(), 0);
    reconciler.apply_change(Change::Applied(service("Local")));
    reconciler.sync().unwrap_err();
    assert_eq!(local(&reconciler), None, "its IPv6 frontends cannot be written");
    assert_eq!(reconciler.pending(), PerFamily { v4: false, v6: true }, "spec 6.22: IPv4 is up to date");
}

/// Spec 8.50 to 8.53, 12A 82: TestLastChangeTriggerTime.
#[test]
fn programming_latency_is_measured_from_the_slice_to_the_maps() {
    let mut reconciler = reconciler();
    let at = |offset: i64| Timestamp::now() + SignedDuration::from_secs(offset);
    let annotated = |time: &str, ip: &str| {
        let annotations = format!("{{endpoints.kubernetes.io/last-change-trigger-time: '{time}'}}");
        Change::Applied(annotated_slice(&annotations, &endpoint(ip, "node-a", "")))
    };
    let mut programmed = |change: Change| {
        reconciler.apply_change(change);
        reconciler.sync().unwrap();
        reconciler.progress_mut().take_programmed().into_iter().map(|(family, _)| family).collect::<Vec<_>>()
    };
    assert_eq!(programmed(Change::Applied(service("Local"))), []);
    let soon = at(1).to_string();
    assert_eq!(programmed(annotated(&soon, "10.244.0.1")), [IpFamily::V4]);
    assert_eq!(programmed(annotated(&at(2).to_string(), "10.244.0.1")), [], "nothing to program");
    assert_eq!(
        programmed(annotated(&at(-3600).to_string(), "10.244.0.2")),
        [],
        "8.51: from before the start"
    );
    assert_eq!(programmed(annotated("yesterday", "10.244.0.3")), [], "8.50: no time");

    for ip in ["10.244.0.4", "10.244.0.5"] {
        reconciler.apply_change(annotated(&soon, ip));
    }
    reconciler.maps_mut().set_faults(Faults { percent: 100, seed: 0 });
    reconciler.sync().unwrap_err();
    assert_eq!(reconciler.progress_mut().take_programmed(), [], "8.53: not before it is written");
    reconciler.maps_mut().set_faults(Faults::default());
    reconciler.sync().unwrap();
    assert_eq!(
        reconciler.progress_mut().take_programmed().len(),
        2,
        "8.52: one for each change of the slice"
    );

    reconciler.apply_change(annotated(&soon, "10.244.0.6"));
    let id =
        ObjectRef { kind: Kind::EndpointSlice, namespace: "default".to_owned(), name: "web-1".to_owned() };
    reconciler.apply_change(Change::Deleted(id));
    reconciler.sync().unwrap();
    assert_eq!(reconciler.progress_mut().take_programmed(), [], "8.52: the slice is gone");
}

/// Spec 5.15: TestNoEndpointsMetric.
#[test]
fn service_ports_without_a_backend_here_are_counted_by_policy() {
    let counts = |endpoints: &str, policies: &str| {
        let mut reconciler = reconciler();
        let yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\nspec: {{type: NodePort, \
             clusterIP: 10.96.0.1, {policies}, ports: [{{name: a, port: 80, nodePort: 30080}}]}}\n"
        );
        reconciler.apply_change(Change::Applied(object(&yaml)));
        reconciler.apply_change(Change::Applied(slice(endpoints)));
        reconciler.sync().unwrap();
        let no_local = reconciler.snapshot().no_local.v4;
        (no_local.internal, no_local.external)
    };
    let (here, there) = (endpoint("10.244.0.1", "node-a", ""), endpoint("10.244.0.2", "node-b", ""));
    let (internal, external) = ("internalTrafficPolicy: Local", "externalTrafficPolicy: Local");
    let both = format!("{internal}, {external}");
    for (row, endpoints, policies, expected) in [
        ("a backend here", [here.as_str(), &there].join(", "), both.as_str(), (0, 0)),
        ("only elsewhere, both policies", there.clone(), &both, (1, 1)),
        ("only elsewhere, internal", there.clone(), internal, (1, 0)),
        ("only elsewhere, external", there.clone(), external, (0, 1)),
        ("only elsewhere, policy Cluster", there, "externalTrafficPolicy: Cluster", (0, 0)),
        ("nowhere at all", String::new(), &both, (0, 0)),
    ] {
        assert_eq!(counts(&endpoints, policies), expected, "spec 5.15: {row}");
    }
}

fn node(spec: &str, metadata: &str) -> Change {
    let yaml =
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: node-a{metadata}}}\nspec: {{{spec}}}\n");
    Change::Applied(object(&yaml))
}

/// Spec 6.23, 9.10, 12A 87.
#[tokio::test]
async fn the_node_object_decides_whether_the_node_is_eligible() -> Result<()> {
    let (changes, inbox) = mpsc::channel(64);
    let (_queries, queries) = mpsc::channel(1);
    let (_addresses, node_addresses) = watch::channel(NodeAddresses::default());
    let stop = CancellationToken::new();
    let inputs = Inputs { changes: inbox, node_addresses, queries, shutdown: stop.clone() };
    let outputs =
        Outputs { health: Health::new(PATIENCE, true, watch::channel(true).1), ..Outputs::default() };
    let health = outputs.health.clone();
    let task = tokio::spawn(run(reconciler(), inputs, outputs, Timing::default()));
    let gone = ObjectRef { kind: Kind::Node, namespace: String::new(), name: "node-a".to_owned() };
    let autoscaler = "taints: [{key: ToBeDeletedByClusterAutoscaler, value: '1', effect: NoSchedule}]";
    #[rustfmt::skip]
    let rows = [
        ("there", node("", ""), true),
        ("about to be removed", node(autoscaler, ""), false),
        ("not after all", node("", ""), true),
        ("being deleted", node("", ", deletionTimestamp: '2026-01-01T00:00:00Z'"), false),
        ("there again", node("", ""), true),
        ("gone", Change::Deleted(gone), false),
        ("cordoned and otherwise tainted", node("unschedulable: true, taints: [{key: other, effect: NoExecute}]", ""), true),
    ];
    for (row, change, expected) in rows {
        changes.send(change).await?;
        let started = Instant::now();
        while health.verdict(std::time::Instant::now()).is_eligible != expected {
            ensure!(started.elapsed() < PATIENCE, "{row}: not {expected}");
            sleep(Duration::from_millis(1)).await;
        }
    }
    ensure!(
        health.verdict(std::time::Instant::now()).is_ready,
        "none of it matters to what the node forwards"
    );
    stop.cancel();
    task.await?;
    Ok(())
}

/// An address of the loopback device that no other test listens on.
fn own_address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, high | 1, low, NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Servers at work, and the ends by which they are told.
struct Servers {
    ip: IpAddr,
    checks: watch::Sender<HealthChecks>,
    addresses: watch::Sender<NodeAddresses>,
    attached: watch::Sender<bool>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Servers {
    fn start(events: EventSink) -> Self {
        let ip = own_address();
        let (checks, known_checks) = watch::channel(HealthChecks::new());
        let (addresses, known_addresses) = watch::channel(NodeAddresses([ip].into()));
        let (attached, is_attached) = watch::channel(true);
        let health = Health::new(PATIENCE, false, is_attached);
        IpFamily::ALL.into_iter().for_each(|family| health.updated(family, Timestamp::now()));
        let servers = NodePorts::new(NodePortsConfig {
            checks: known_checks,
            addresses: known_addresses,
            listen: NodePortAddresses::Cidrs(Vec::new()),
            health,
            events,
            node: "node-a".to_owned(),
            metrics: NodePortMetrics::default(),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(servers.run(stop.clone()));
        Self { ip, checks, addresses, attached, stop, task }
    }

    /// (Service, port, backends): these are the health checks from here on.
    fn set(&self, checks: &[(&str, u16, usize)]) {
        let check = |&(service, port, local): &(&str, u16, usize)| {
            let local = PerFamily { v4: Some(local), v6: None };
            (name(service), HealthCheck { port, uid: "6e7a".into(), local })
        };
        self.checks.send_replace(checks.iter().map(check).collect());
    }

    /// The whole answer, or `None` if nobody listens.
    async fn ask(&self, request: &str, ip: IpAddr, port: u16) -> Option<String> {
        let mut stream = TcpStream::connect(SocketAddr::new(ip, port)).await.ok()?;
        let text = format!("{request} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// (code, Service) by port, of those that listen.
    async fn answers(&self, ports: &[u16]) -> BTreeMap<u16, (u16, String)> {
        let mut answers = BTreeMap::new();
        for port in ports {
            let Some(answer) = self.ask("GET /", self.ip, *port).await else { continue };
            let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
            let name = answer.split("\"name\": \"").nth(1).and_then(|rest| rest.split('"').next());
            answers.insert(*port, (code, name.unwrap_or_default().to_owned()));
        }
        answers
    }

    /// Waits until exactly these (port, code, Service) answer, of `ports`.
    async fn until(&self, what: &str, ports: &[u16], expected: &[(u16, u16, &str)]) -> Result<()> {
        let expected: BTreeMap<u16, (u16, String)> =
            expected.iter().map(|&(port, code, name)| (port, (code, name.to_owned()))).collect();
        let started = Instant::now();
        loop {
            let found = self.answers(ports).await;
            if found == expected {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "{what}: {found:?} in place of {expected:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task.await?;
        Ok(())
    }
}

const PORTS: [u16; 3] = [31_001, 31_002, 31_003];

/// TestServer of kube-proxy (spec 6.1, 6.3, 6.4, 6.8).
#[tokio::test]
async fn servers_come_and_go_and_answer_for_their_service() -> Result<()> {
    let servers = Servers::start(EventSink::default());
    servers.until("no Service, no server", &PORTS, &[]).await?;
    servers.set(&[("a", PORTS[0], 0)]);
    servers.until("nobody serves", &PORTS, &[(PORTS[0], 503, "a")]).await?;
    servers.set(&[("a", PORTS[0], 18)]);
    servers.until("eighteen do", &PORTS, &[(PORTS[0], 200, "a")]).await?;
    servers.set(&[("a", PORTS[0], 1), ("b", PORTS[1], 0), ("c", PORTS[2], 7)]);
    let three = [(PORTS[0], 200, "a"), (PORTS[1], 503, "b"), (PORTS[2], 200, "c")];
    servers.until("three Services", &PORTS, &three).await?;
    servers.set(&[("a", PORTS[1], 1), ("b", PORTS[0], 0), ("c", PORTS[2], 7)]);
    let moved = [(PORTS[1], 200, "a"), (PORTS[0], 503, "b"), (PORTS[2], 200, "c")];
    servers.until("two Services change ports at once (6.8)", &PORTS, &moved).await?;
    servers.set(&[("c", PORTS[2], 0)]);
    servers.until("two are gone", &PORTS, &[(PORTS[2], 503, "c")]).await?;
    servers.set(&[]);
    servers.until("all are gone", &PORTS, &[]).await?;
    servers.stop().await
}

#[tokio::test]
async fn any_path_and_method_gets_the_same_answer() -> Result<()> {
    let servers = Servers::start(EventSink::default());
    servers.set(&[("a", PORTS[0], 2)]);
    servers.until("open", &PORTS[..1], &[(PORTS[0], 200, "a")]).await?;
    for request in ["GET /", "GET /healthz", "GET /any/thing?at=all", "POST /healthz", "DELETE /"] {
        let answer = servers.ask(request, servers.ip, PORTS[0]).await.context("no answer")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
        let head = head.to_lowercase();
        ensure!(head.starts_with("http/1.1 200 "), "{request}: {head}");
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
        ] {
            ensure!(head.lines().any(|line| line == header), "{request}: {header}: {head}");
        }
        ensure!(
            body.ends_with("\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"),
            "{request}: {body}"
        );
    }
    let answer = servers.ask("HEAD /", servers.ip, PORTS[0]).await.context("no answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    servers.attached.send_replace(false);
    servers.until("the proxy is not ready (6.4)", &PORTS[..1], &[(PORTS[0], 503, "a")]).await?;
    servers.stop().await
}

/// TestServerWithSelectiveListeningAddress (spec 6.2, 12A 84); kube-proxy looks once, at its start (9.15).
#[tokio::test]
async fn servers_listen_on_the_nodeport_addresses_and_follow_them() -> Result<()> {
    let servers = Servers::start(EventSink::default());
    let late = own_address();
    servers.set(&[("a", PORTS[0], 1)]);
    servers.until("open on the first address", &PORTS[..1], &[(PORTS[0], 200, "a")]).await?;
    ensure!(servers.ask("GET /", late, PORTS[0]).await.is_none(), "not on an address that is not the node's");
    servers.addresses.send_replace(NodeAddresses([late].into()));
    servers.until("closed on the former address", &PORTS[..1], &[]).await?;
    let answer = servers.ask("GET /", late, PORTS[0]).await.context("no answer on the late address")?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    servers.stop().await
}

/// Spec 6.9, 12A 84: an event on the Service, nobody else suffers, and it is tried again.
#[tokio::test]
async fn a_port_that_is_taken_is_told_as_an_event_and_tried_again() -> Result<()> {
    let api_server = ApiServer::start(&Cluster::new()).await?;
    let dir = tempfile::TempDir::new()?;
    let config = KubernetesConfig {
        kubeconfig: Some(api_server.write_kubeconfig(dir.path())?),
        api_servers: Vec::new(),
        node_name: "node-a".to_owned(),
        page_size: 500,
    };
    let (events, queue) = events::channel();
    let (changes, _listening) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let source = tokio::spawn(KubernetesSource::new(config).with_events(queue).run(changes, stop.clone()));
    let servers = Servers::start(events);
    let taken = TcpListener::bind(SocketAddr::new(servers.ip, PORTS[0])).await?;
    servers.set(&[("a", PORTS[0], 1), ("b", PORTS[1], 1)]);
    servers.until("b is open", &PORTS[1..], &[(PORTS[1], 200, "b")]).await?;
    let started = Instant::now();
    let event = loop {
        if let Some(event) = api_server.events().into_iter().next() {
            break event;
        }
        ensure!(started.elapsed() < PATIENCE, "no event");
        sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(event["reason"], "FailedToStartServiceHealthcheck");
    assert_eq!((&event["type"], &event["action"]), (&"Warning".into(), &"Listen".into()));
    let regarding = &event["regarding"];
    assert_eq!((&regarding["kind"], &regarding["name"]), (&"Service".into(), &"a".into()));
    assert_eq!((&regarding["namespace"], &regarding["uid"]), (&"default".into(), &"6e7a".into()));
    let note = event["note"].as_str().unwrap_or_default();
    let expected = format!("node node-a failed to start healthcheck \"default/a\" on port {}: ", PORTS[0]);
    ensure!(note.starts_with(&expected), "{note}");
    drop(taken);
    servers.until("both are open", &PORTS[..2], &[(PORTS[0], 200, "a"), (PORTS[1], 200, "b")]).await?;
    assert_eq!(api_server.events().len(), 1, "12A 100: told once");
    servers.stop().await?;
    stop.cancel();
    source.await??;
    Ok(())
}
