//! What the health and metrics ports of running agents tell curl, while real traffic goes through. Needs root and curl.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::core::v1::{Node, Service},
    jiff::{SignedDuration, Timestamp},
};
use lb_agent::{
    datapath::pins::Pins,
    maps::{FamilyWrite, Maps as _, Write, bpf::BpfMaps},
};
use lb_tests::{
    api_server::{ApiServer, Cluster as Objects},
    cluster::{At, Cluster, NODES, PodSpec},
    netns::Namespace,
    probe::{ClientError, Target},
    process::eventually,
};
use serde_json::Value;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);
/// `curl`: could not connect.
const CURL_REFUSED: i32 = 7;
const NODE_A: &str = "192.0.2.11";
const NODE_B: &str = "192.0.2.12";
const NODE_A6: &str = "[2001:db8:2::11]";
const NODE_B6: &str = "[2001:db8:2::12]";

/// A cluster with a pod on each node, whose agents run with `extra` arguments.
fn cluster_with(extra: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::start()?;
    cluster.add_pods(&[
        PodSpec::http("a1", "node-a", &["10.244.1.10", "fd00:244:1::10"], 8080)?,
        PodSpec::http("b1", "node-b", &["10.244.2.10", "fd00:244:2::10"], 8080)?,
    ])?;
    cluster.apply("service.yaml", &service("Local"))?;
    cluster.apply("slices.yaml", &slices("", "ready: true"))?;
    cluster.prepare_agents()?;
    for node in NODES {
        cluster.agent(node.name)?.set_extra_args(extra);
    }
    cluster.start_agents()?;
    Ok(cluster)
}

fn service(policy: &str) -> String {
    let port = if policy == "Local" { "healthCheckNodePort: 32100" } else { "# none" };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  type: LoadBalancer\n  \
         externalTrafficPolicy: {policy}\n  {port}\n  clusterIP: 10.96.0.20\n  \
         clusterIPs: [10.96.0.20, 'fd00:96::20']\n  ipFamilies: [IPv4, IPv6]\n  \
         ports:\n  - {{name: http, port: 80, nodePort: 31080}}\n"
    )
}

/// The slices of `web`, with a1 in these conditions.
fn slices(annotations: &str, conditions: &str) -> String {
    let slice = |family: &str, ip: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-{}, namespace: shop, \
             labels: {{kubernetes.io/service-name: web}}, annotations: {{{annotations}}}}}\naddressType: {family}\n\
             ports:\n- {{name: http, port: 8080}}\nendpoints:\n- {{addresses: ['{ip}'], nodeName: node-a, \
             conditions: {{{conditions}}}}}\n",
            family.to_lowercase()
        )
    };
    format!("{}---\n{}", slice("IPv4", "10.244.1.10"), slice("IPv6", "fd00:244:1::10"))
}

/// What curl got.
#[derive(Debug)]
struct Answer {
    code: u16,
    headers: String,
    body: String,
}

/// Asks with the real curl; an answer, or curl's exit code.
fn curl(cluster: &Cluster, from: &At, options: &[&str], url: &str) -> Result<Result<Answer, i32>> {
    let mut args =
        vec!["--silent", "--show-error", "--include", "--max-time", "10", "--globoff", "--noproxy", "*"];
    args.extend(options);
    args.push(url);
    let output = cluster.place(from)?.output("curl", &args)?;
    if !output.status.success() {
        return Ok(Err(output.status.code().context("curl was killed")?));
    }
    let text = String::from_utf8(output.stdout)?;
    let (headers, body) = text.split_once("\r\n\r\n").context("no headers")?;
    let code = headers.split(' ').nth(1).context("no code")?.parse()?;
    Ok(Ok(Answer { code, headers: headers.to_lowercase(), body: body.to_owned() }))
}

fn get(cluster: &Cluster, from: &At, url: &str) -> Result<Answer> {
    curl(cluster, from, &[], url)?
        .map_err(|code| anyhow::anyhow!("{from:?} -> {url}: curl ended with {code}"))
}

/// Waits until `url` answers with this code, or, for 0, until nobody listens there.
fn until_code(cluster: &Cluster, from: &At, url: &str, code: u16) -> Result<()> {
    eventually(&format!("does {url} say {code}"), PATIENCE, || {
        let found = match curl(cluster, from, &[], url)? {
            Ok(answer) => answer.code,
            Err(CURL_REFUSED) => 0,
            Err(_) => return Ok(false),
        };
        ensure!(found == code, "it says {found}");
        Ok(true)
    })
}

fn http(cluster: &Cluster, from: &At, to: &str) -> Result<Result<String, ClientError>> {
    let reply = cluster.probe(from)?.once(Target::http(to)?)?;
    Ok(reply.map(|reply| reply.answer.pod))
}

/// Spec 11.A "should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes", and
/// 6.7: "should fail health check node port if there are only terminating endpoints".
#[test]
fn health_check_node_ports_follow_policy_and_backends() -> Result<()> {
    let cluster = cluster_with(&[])?;
    let urls = [
        (format!("http://{NODE_A}:32100/"), 200),
        (format!("http://{NODE_A6}:32100/healthz"), 200),
        (format!("http://{NODE_B}:32100/healthz"), 503),
        (format!("http://{NODE_B6}:32100/"), 503),
    ];
    let local = || -> Result<()> {
        for (url, code) in &urls {
            until_code(&cluster, &At::Client, url, *code)?;
        }
        let answer = http(&cluster, &At::Client, "192.0.2.11:31080")?;
        ensure!(answer == Ok("a1".to_owned()), "outside to the backend's node: {answer:?}");
        let silent = cluster
            .probe(&At::Client)?
            .once(Target::http("192.0.2.12:31080")?.within(Duration::from_millis(500)))?;
        ensure!(
            silent.is_err_and(|error| error == ClientError::TimedOut),
            "outside to the other node: silence"
        );
        let answer = http(&cluster, &At::host("node-b"), "192.0.2.12:31080")?;
        ensure!(answer == Ok("a1".to_owned()), "a host process to its own node: {answer:?}");
        Ok(())
    };
    local()?;
    let answer = get(&cluster, &At::Client, &urls[0].0)?;
    for header in [
        "x-load-balancing-endpoint-weight: 1",
        "content-type: application/json",
        "x-content-type-options: nosniff",
    ] {
        ensure!(answer.headers.lines().any(|line| line == header), "spec 6.5: {header}: {answer:?}");
    }
    let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
                \t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
    ensure!(answer.body == body, "spec 6.6: {answer:?}");

    cluster.apply("service.yaml", &service("Cluster"))?;
    for (url, _) in &urls {
        until_code(&cluster, &At::Client, url, 0)?;
    }
    for node in [NODE_A, NODE_B] {
        let answer = http(&cluster, &At::Client, &format!("{node}:31080"))?;
        ensure!(answer == Ok("a1".to_owned()), "policy Cluster, {node}: {answer:?}");
    }
    cluster.apply("service.yaml", &service("Local"))?;
    local()?;

    cluster.apply("slices.yaml", &slices("", "ready: false, serving: true, terminating: true"))?;
    until_code(&cluster, &At::Client, &urls[0].0, 503)?;
    until_code(&cluster, &At::Client, &urls[1].0, 503)?;
    for to in ["192.0.2.11:31080", "[2001:db8:2::11]:31080"] {
        let answer = http(&cluster, &At::Client, to)?;
        ensure!(answer == Ok("a1".to_owned()), "spec 6.7: traffic still flows: {answer:?}");
    }
    Ok(())
}

fn nodes(spec: &str) -> String {
    let node =
        |name: &str, spec: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n{spec}");
    format!("{}---\n{}", node("node-a", spec), node("node-b", ""))
}

/// Spec 6.23 to 6.27, 9.10, 9.11, 12A 85 and 87, and 11.G "should check kube-proxy urls".
#[test]
fn the_health_port_says_whether_the_node_may_be_sent_traffic() -> Result<()> {
    let mut cluster = cluster_with(&[])?;
    let host = At::host("node-a");
    let (healthz, livez) = ("http://localhost:10256/healthz", "http://localhost:10256/livez");
    for (url, has_eligible) in [(healthz, true), (livez, false)] {
        let answer = get(&cluster, &host, url)?;
        ensure!(answer.headers.starts_with("http/1.1 200 ok"), "11.G: {answer:?}");
        ensure!(answer.headers.contains("content-type: application/json"), "{answer:?}");
        ensure!(answer.headers.contains("x-content-type-options: nosniff"), "{answer:?}");
        let body: Value = serde_json::from_str(&answer.body)?;
        let time =
            |value: &Value| value["lastUpdated"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        ensure!(time(&body).is_some() && body["currentTime"].is_string(), "11.G: {answer:?}");
        ensure!(
            body["healthy"] == true && body.get("nodeEligible").is_some() == has_eligible,
            "6.25: {answer:?}"
        );
        for family in ["IPv4", "IPv6"] {
            let status = &body["status"][family];
            ensure!(time(status).is_some() && status["healthy"] == true, "6.25: {answer:?}");
        }
    }
    for (url, code, body) in [
        ("http://localhost:10256/", 404, ""),
        ("http://localhost:10256/metrics", 404, ""),
        ("http://localhost:10249/proxyMode", 200, "ebpf"),
        ("http://localhost:10249/healthz", 200, "ok"),
        ("http://localhost:10249/healthz/ping", 200, "ok"),
        ("http://localhost:10249/livez", 200, "ok"),
        ("http://localhost:10249/", 404, ""),
    ] {
        let answer = get(&cluster, &host, url)?;
        ensure!(answer.code == code && answer.body == body, "{url}: {answer:?}");
    }
    let refused = curl(&cluster, &At::Client, &[], &format!("http://{NODE_A}:10249/metrics"))?;
    ensure!(refused.is_err_and(|code| code == CURL_REFUSED), "the metrics port is the node's own");

    let taint = "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: PreferNoSchedule}]}\n";
    cluster.apply("nodes.yaml", &nodes(taint))?;
    until_code(&cluster, &host, healthz, 503)?;
    let answer = get(&cluster, &host, healthz)?;
    ensure!(answer.body.contains("\"nodeEligible\":false,\"healthy\":true"), "{answer:?}");
    until_code(&cluster, &host, livez, 200)?;
    until_code(&cluster, &At::Client, &format!("http://{NODE_A}:32100/"), 200)?;
    let answer = http(&cluster, &At::Client, "192.0.2.11:31080")?;
    ensure!(answer == Ok("a1".to_owned()), "9.11: it still forwards: {answer:?}");
    cluster.apply(
        "nodes.yaml",
        &nodes("spec: {unschedulable: true, taints: [{key: x, effect: NoSchedule}]}\n"),
    )?;
    until_code(&cluster, &host, healthz, 200)?;
    cluster.delete("nodes.yaml")?;
    cluster.apply("service.yaml", &service("Cluster"))?;
    until_code(&cluster, &At::Client, &format!("http://{NODE_A}:32100/"), 0)?;
    until_code(&cluster, &host, healthz, 200)?;

    // Somebody has the metrics port: the agent works and tries again; with the flag it ends.
    let namespace = cluster.place(&host)?.namespace.clone();
    cluster.agent("node-a")?.stop()?;
    let taken = namespace.run(|| TcpListener::bind("127.0.0.1:10249"))??;
    cluster.agent("node-a")?.start()?;
    cluster.agent("node-a")?.wait_until_ready()?;
    drop(taken);
    until_code(&cluster, &host, "http://localhost:10249/proxyMode", 200)?;
    let agent = cluster.agent("node-a")?;
    agent.stop()?;
    let _taken = namespace.run(|| TcpListener::bind("127.0.0.1:10249"))??;
    agent.set_extra_args(&["--bind-address-hard-fail"]);
    agent.start()?;
    eventually("has the agent ended for want of its port", PATIENCE, || {
        Ok(agent.log_tail().contains("lb-agent: --metrics-bind-address 127.0.0.1:10249: "))
    })
}

/// An API server inside a namespace, with the runtime it lives in.
fn api_server(namespace: &Namespace, objects: &Objects) -> Result<(Runtime, ApiServer)> {
    namespace.run(|| {
        // Its thread is started by this one and so lives in the namespace too.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let server = runtime.block_on(ApiServer::start(objects))?;
        Ok((runtime, server))
    })?
}

fn until_event(server: &ApiServer, reason: &str, kind: &str, name: &str) -> Result<()> {
    eventually(&format!("is there an event {reason} of {kind} {name}"), PATIENCE, || {
        let is_it = |event: &Value| {
            let regarding = &event["regarding"];
            event["reason"] == reason && regarding["kind"] == kind && regarding["name"] == name
        };
        Ok(server.events().iter().any(is_it))
    })
}

/// Spec 6.9, 6.23, 6.27, 9.10, 9.16, 12A 84, 86 and 87.
#[test]
fn a_node_of_a_cluster_needs_its_node_object_and_tells_its_events() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.prepare_agents()?;
    let host = At::host("node-a");
    let namespace = cluster.place(&host)?.namespace.clone();
    let objects = Objects::new();
    objects.apply::<Service>(&serde_yaml_ng::from_str(&service("Local"))?);
    let (_runtime, server) = api_server(&namespace, &objects)?;
    let dir = tempfile::TempDir::new()?;
    let kubeconfig = server.write_kubeconfig(dir.path())?;
    let taken = namespace.run(|| TcpListener::bind("0.0.0.0:32100"))??;
    cluster.agent("node-a")?.set_kubeconfig(&kubeconfig);
    cluster.agent("node-a")?.start()?;

    let (healthz, livez) = ("http://localhost:10256/healthz", "http://localhost:10256/livez");
    until_code(&cluster, &host, livez, 200)?;
    eventually("is it ready but for its Node object", PATIENCE.saturating_mul(2), || {
        let answer = get(&cluster, &host, healthz)?;
        ensure!(answer.code == 503, "without a Node object: {answer:?}");
        Ok(answer.body.contains("\"nodeEligible\":false,\"healthy\":true"))
    })?;
    until_event(&server, "Starting", "Node", "node-a")?;
    until_event(&server, "FailedToStartServiceHealthcheck", "Service", "web")?;
    drop(taken);
    until_code(&cluster, &host, "http://127.0.0.1:32100/", 503)?;

    let node = |name: &str| serde_yaml_ng::from_str::<Node>(&format!("metadata: {{name: {name}}}"));
    objects.apply::<Node>(&node("node-a")?);
    until_code(&cluster, &host, healthz, 200)?;
    objects.delete::<Node>("", "node-a");
    until_code(&cluster, &host, healthz, 503)?;
    until_code(&cluster, &host, livez, 200)?;

    let agent = cluster.agent("node-a")?;
    agent.stop()?;
    let _taken = namespace.run(|| TcpListener::bind("127.0.0.1:10249"))??;
    agent.set_extra_args(&["--bind-address-hard-fail"]);
    agent.start()?;
    until_event(&server, "FailedToStartMetricServer", "Node", "node-a")
}

type Samples = BTreeMap<String, f64>;

/// Every sample of a scrape by name and labels, and the names of the `# TYPE` lines.
fn scrape(cluster: &Cluster) -> Result<(Samples, BTreeSet<String>)> {
    let answer = get(cluster, &At::host("node-a"), "http://127.0.0.1:10249/metrics")?;
    ensure!(answer.headers.contains("content-type: text/plain; version=0.0.4"), "{}", answer.headers);
    let names = answer.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let samples = answer.body.lines().filter(|line| !line.starts_with('#'));
    let parsed = samples.map(|line| {
        let (name, value) = line.rsplit_once(' ').context("no value")?;
        Ok((name.to_owned(), value.parse()?))
    });
    Ok((parsed.collect::<Result<_>>()?, names.map(str::to_owned).collect()))
}

/// The sum of the samples whose name begins with `name` and that carry all of `labels`.
fn sum(samples: &Samples, name: &str, labels: &[&str]) -> f64 {
    let of =
        |sample: &str| sample == name || sample.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
    let found =
        samples.iter().filter(|(sample, _)| of(sample) && labels.iter().all(|label| sample.contains(label)));
    found.map(|(_, value)| value).sum()
}

/// Names in the tables of docs/metrics.md.
fn listed() -> BTreeSet<String> {
    let page = include_str!("../../docs/metrics.md");
    let (tables, _) = page.split_once("## Not applicable").unwrap();
    let rows = tables.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.map(str::to_owned).collect()
}

/// Something of each kind happens on node-a: traffic, changes, refusals, collections, a repair.
fn live(cluster: &mut Cluster) -> Result<()> {
    for _ in 0..3 {
        for to in ["192.0.2.11:31080", "[2001:db8:2::11]:31080"] {
            http(cluster, &At::Client, to)??;
        }
        http(cluster, &At::pod("a1"), "10.96.0.20:80")??;
    }
    cluster.apply("empty.yaml", EMPTY)?;
    eventually("is the empty Service known", PATIENCE, || {
        Ok(sum(&scrape(cluster)?.0, "lb_service_ports", &[]) == 2.0)
    })?;
    let answer = http(cluster, &At::Client, "192.0.2.11:31081")?;
    ensure!(answer == Err(ClientError::Refused), "nobody serves: {answer:?}");
    let now = Timestamp::now() + SignedDuration::from_millis(1);
    let annotation = format!("endpoints.kubernetes.io/last-change-trigger-time: '{now}'");
    cluster.apply("slices.yaml", &slices(&annotation, "ready: true, serving: false"))?;
    let dir = Pins::new(cluster.agent("node-a")?.pins()).dir().to_owned();
    let mut maps = BpfMaps::open(&dir)?;
    let key = *maps.dump()?.v4.frontends.keys().next().context("no frontend")?;
    maps.apply(&Write::V4(FamilyWrite::Frontend(key, None)))?;
    eventually("is the frontend repaired", PATIENCE, || Ok(maps.dump()?.v4.frontends.contains_key(&key)))
}

const EMPTY: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: empty, namespace: shop}\nspec: {type: NodePort, \
                     clusterIP: 10.96.0.21, externalIPs: [nonsense], ports: [{port: 80, nodePort: 31081}]}\n";

/// What grows in [`live`], by name and labels.
const MOVING: [(&str, &[&str]); 29] = [
    (
        "lb_service_connections_total",
        &["namespace=\"shop\"", "service=\"web\"", "port=\"http\"", "protocol=\"TCP\""],
    ),
    ("lb_service_packets_total", &["service=\"web\""]),
    ("lb_service_bytes_total", &["service=\"web\""]),
    ("lb_service_refused_total", &["service=\"empty\"", "port=\"\""]),
    ("lb_backend_connections_total", &["backend=\"10.244.1.10:8080\"", "protocol=\"TCP\""]),
    ("lb_backend_connections_total", &["backend=\"[fd00:244:1::10]:8080\""]),
    ("lb_backend_packets_total", &["backend=\"10.244.1.10:8080\""]),
    ("lb_backend_bytes_total", &["backend=\"10.244.1.10:8080\""]),
    ("lb_verdict_packets_total", &["verdict=\"translated\""]),
    ("lb_verdict_packets_total", &["verdict=\"socket-translated\""]),
    ("lb_verdict_packets_total", &["verdict=\"refused\""]),
    ("lb_verdict_bytes_total", &["verdict=\"translated\""]),
    ("lb_map_entries", &["map=\"FRONTENDS4\""]),
    ("lb_map_entries", &["map=\"CONNECTIONS6\""]),
    ("lb_services", &[]),
    ("lb_service_ports", &[]),
    ("lb_frontends", &["ip_family=\"IPv4\""]),
    ("lb_refusals", &["kind=\"Service\""]),
    ("lb_syncs_total", &["result=\"success\""]),
    ("lb_sync_writes_total", &[]),
    ("lb_repairs_total", &[]),
    ("kubeproxy_sync_proxy_rules_duration_seconds_count", &["ip_family=\"IPv6\""]),
    ("kubeproxy_sync_partial_proxy_rules_duration_seconds_count", &["ip_family=\"IPv4\""]),
    ("kubeproxy_network_programming_duration_seconds_count", &["ip_family=\"IPv4\""]),
    ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", &["ip_family=\"IPv4\""]),
    ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", &["ip_family=\"IPv4\""]),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_total", &[]),
    ("kubeproxy_sync_proxy_rules_service_changes_total", &[]),
    ("kubeproxy_conntrack_reconciler_sync_duration_seconds_count", &["ip_family=\"IPv4\""]),
];

/// What is there from the start, by name and labels.
const STANDING: [(&str, &[&str]); 17] = [
    ("lb_synced", &[]),
    ("lb_backends", &["ip_family=\"IPv6\""]),
    ("lb_map_entries_max", &["map=\"FRONTENDS4\""]),
    (
        "lb_attachment_info",
        &["device=\"eth0\"", "role=\"uplink\"", "mechanism=\"", "reason=\"", "xdp=\"off\"", "xdp_reason=\""],
    ),
    ("lb_attachment_info", &["device=\"vetha1\"", "role=\"workload\""]),
    ("lb_health_check_servers", &[]),
    ("lb_build_info", &["version=\""]),
    ("kubeproxy_sync_full_proxy_rules_duration_seconds_count", &["ip_family=\"IPv4\""]),
    ("kubeproxy_proxy_healthz_total", &["code=\"200\""]),
    ("kubeproxy_proxy_livez_total", &["code=\"200\""]),
    ("process_cpu_seconds_total", &[]),
    ("process_start_time_seconds", &[]),
    ("process_resident_memory_bytes", &[]),
    ("process_virtual_memory_bytes", &[]),
    ("process_virtual_memory_max_bytes", &[]),
    ("process_open_fds", &[]),
    ("process_max_fds", &[]),
];

#[test]
fn every_metric_is_exposed_and_those_that_count_move() -> Result<()> {
    let mut cluster = cluster_with(&["--gc-period", "1", "--full-sync-period", "1"])?;
    for path in ["healthz", "livez"] {
        get(&cluster, &At::host("node-a"), &format!("http://localhost:10256/{path}"))?;
    }
    let (before, names) = scrape(&cluster)?;
    assert_eq!(names, listed(), "docs/metrics.md lists what is exposed");
    for (name, labels) in STANDING {
        ensure!(sum(&before, name, labels) > 0.0, "{name} {labels:?} is not there");
    }
    ensure!(sum(&before, "lb_scrape_failures_total", &[]) == 0.0, "a part of the scrape failed");
    live(&mut cluster)?;
    let mut still = Vec::new();
    eventually("have all counters moved", PATIENCE, || {
        let (after, _) = scrape(&cluster)?;
        still = MOVING
            .into_iter()
            .filter(|(name, labels)| sum(&after, name, labels) <= sum(&before, name, labels))
            .collect();
        Ok(still.is_empty())
    })
    .with_context(|| format!("still as before: {still:?}"))?;

    // The backend is said to run on the other node: under policy Local this one drops what comes from outside.
    let remote = slices("", "ready: true").replace("nodeName: node-a", "nodeName: node-b");
    cluster.apply("slices.yaml", &remote)?;
    eventually("is the lack of a local backend counted", PATIENCE, || {
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        Ok(sum(&scrape(&cluster)?.0, name, &["ip_family=\"IPv4\"", "traffic_policy=\"external\""]) == 1.0)
    })?;
    cluster.delete("service.yaml")?;
    eventually("are the rows of a deleted Service gone", PATIENCE, || {
        Ok(!scrape(&cluster)?.0.keys().any(|sample| sample.contains("service=\"web\"")))
    })?;
    let open_metrics = ["--header", "Accept: application/openmetrics-text; version=1.0.0"];
    let answer = curl(&cluster, &At::host("node-a"), &open_metrics, "http://127.0.0.1:10249/metrics")?;
    let answer = answer.map_err(|code| anyhow::anyhow!("curl ended with {code}"))?;
    ensure!(
        answer.headers.contains("content-type: application/openmetrics-text")
            && answer.body.ends_with("# EOF\n")
    );
    Ok(())
}
