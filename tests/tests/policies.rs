//! Policies, masquerading, affinity and NodePort addresses with real sockets, in the two-node cluster. Needs root.
//!
//! What a process of the node dials on its own node never leaves it, so flow tables of packets (flow_tables) cannot say
//! what becomes of it; and what a socket hook decides no program run can.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{At, Cluster, NODES, PodSpec},
    flow_sockets::{Senders, check},
    probe::{ClientError, Target, program},
    process::{Process, eventually},
};

const SENDERS: Senders = Senders { pod: "a2", far_pod: "b1" };

/// A cluster with the services of `policies.yaml`, its agents run with `arguments`.
fn cluster(arguments: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::start()?;
    let pod = |name: &str, node: &str, v4: &str, v6: &str| {
        Ok::<_, anyhow::Error>(PodSpec::http(name, node, &[v4, v6], 8080)?.and_udp(5353))
    };
    cluster.add_pods(&[
        pod("a1", "node-a", "10.244.1.10", "fd00:244:1::10")?,
        pod("a2", "node-a", "10.244.1.11", "fd00:244:1::11")?,
        pod("b1", "node-b", "10.244.2.10", "fd00:244:2::10")?,
    ])?;
    cluster.apply("services.yaml", include_str!("../testdata/e2e/services.yaml"))?;
    cluster.apply("policies.yaml", include_str!("../testdata/e2e/policies.yaml"))?;
    cluster.prepare_agents()?;
    for node in NODES {
        cluster.agent(node.name)?.set_extra_args(arguments);
    }
    cluster.start_agents()?;
    for vip in ["203.0.113.20", "203.0.113.30", "203.0.113.33", "203.0.113.34", "10.96.0.20"] {
        cluster.route_to(vip.parse()?, "node-a")?;
    }
    Ok(cluster)
}

/// Runs the agents with other arguments.
fn restart(cluster: &mut Cluster, arguments: &[&str]) -> Result<()> {
    for node in NODES {
        let agent = cluster.agent(node.name)?;
        agent.stop()?;
        agent.set_extra_args(arguments);
    }
    cluster.start_agents()
}

/// Spec 4b, the rows of a node's own processes and of sockets; `outer` has policy Local outside, `inner` inside.
const BASE: &str = "
pod     -> 10.96.0.20:80    : {10.244.1.10:8080, 10.244.2.10:8080}
node    -> 10.96.0.20:80    : {10.244.1.10:8080, 10.244.2.10:8080}
pod     -> 192.0.2.11:31080 : {10.244.1.10:8080, 10.244.2.10:8080}
node    -> 192.0.2.11:31080 : {10.244.1.10:8080, 10.244.2.10:8080}
node    -> 127.0.0.1:31080  : {10.244.1.10:8080, 10.244.2.10:8080}           # 4.10; DESIGN 10: by the socket hook
client  -> 192.0.2.11:31080 : {10.244.1.10:8080, 10.244.2.10:8080 as node}
pod     -> 10.96.0.30:80    : {10.244.1.10:8080, 10.244.2.10:8080}
pod     -> 192.0.2.11:31090 : {10.244.1.10:8080, 10.244.2.10:8080}           # 4.22 a
pod     -> 203.0.113.30:80  : {10.244.1.10:8080, 10.244.2.10:8080}
node    -> 192.0.2.11:31090 : {10.244.1.10:8080, 10.244.2.10:8080}           # 4.22 b, 4.45
node    -> 127.0.0.1:31090  : {10.244.1.10:8080, 10.244.2.10:8080}
node    -> 203.0.113.30:80  : {10.244.1.10:8080, 10.244.2.10:8080}
client  -> 192.0.2.11:31090 : {10.244.1.10:8080}                             # 4.22 c
client  -> 203.0.113.30:80  : {10.244.1.10:8080}
pod     -> 10.96.0.31:80    : {10.244.1.10:8080}
node    -> 10.96.0.31:80    : {10.244.1.10:8080}
node    -> 192.0.2.11:31091 : {10.244.1.10:8080, 10.244.2.10:8080}
pod     -> 10.96.0.32:80    : DROP                                           # 5: policy Local, not here
node    -> 10.96.0.32:80    : DROP
pod     -> 192.0.2.11:31092 : {10.244.2.10:8080}
node    -> 192.0.2.11:31092 : {10.244.2.10:8080}
client  -> 192.0.2.11:31092 : DROP
pod     -> 10.96.0.21:80    : REJECT
node    -> 192.0.2.11:31081 : REJECT
client  -> 192.0.2.11:31081 : REJECT
";

/// Spec 4.20, 4.26: pods' connections to ClusterIPs are translated on their way, and only they are.
const MASQUERADE_ALL: &str = "
pod     -> 10.96.0.20:80    : {10.244.1.10:8080 as node, 10.244.2.10:8080 as node}
node    -> 10.96.0.20:80    : {10.244.1.10:8080, 10.244.2.10:8080}
client  -> 10.96.0.20:80    : {10.244.1.10:8080 as node, 10.244.2.10:8080 as node}
pod     -> 192.0.2.11:31080 : {10.244.1.10:8080, 10.244.2.10:8080}
pod     -> 10.96.0.31:80    : {10.244.1.10:8080 as node}
pod     -> 10.96.0.32:80    : DROP
pod     -> 10.96.0.21:80    : REJECT
far-pod -> 192.0.2.11:31090 : {10.244.1.10:8080, 10.244.2.10:8080 as node}   # in the cluster CIDR
";

/// Spec 4.23: without a detector pods are nobody special, the node is.
const NO_DETECTOR: &str = "
pod     -> 10.96.0.20:80    : {10.244.1.10:8080, 10.244.2.10:8080}
pod     -> 192.0.2.11:31090 : {10.244.1.10:8080}
pod     -> 203.0.113.30:80  : {10.244.1.10:8080}
node    -> 192.0.2.11:31090 : {10.244.1.10:8080, 10.244.2.10:8080}
far-pod -> 192.0.2.11:31090 : {10.244.1.10:8080}
pod     -> 192.0.2.11:31092 : DROP
node    -> 192.0.2.11:31092 : {10.244.2.10:8080}
";

#[test]
fn policies_and_masquerading_hold_for_sockets() -> Result<()> {
    let mut cluster = cluster(&[])?;
    check(&cluster, SENDERS, BASE)?;
    a_node_reaches_itself_through_an_address_with_source_ranges(&cluster)?;
    restart(&mut cluster, &["--cluster-cidr", "10.244.0.0/16", "--masquerade-all"])?;
    check(&cluster, SENDERS, MASQUERADE_ALL).context("--masquerade-all")?;
    restart(&mut cluster, &["--detect-local", "none"])?;
    check(&cluster, SENDERS, NO_DETECTOR).context("--detect-local none")
}

/// 12A 38: a backend on the host network, dialled by its own node; ranges that let the node in, and pods not.
fn a_node_reaches_itself_through_an_address_with_source_ranges(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.place(&At::host("node-a"))?.command(program("pod")?)?;
    command.args(["serve", "--name", "host-a", "--http", "192.0.2.11:9090"]);
    let _server = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::null()))?;
    let node = cluster.probe(&At::host("node-a"))?;
    eventually("does it serve", Duration::from_secs(10), || {
        Ok(node.once(Target::http("192.0.2.11:9090")?)?.is_ok())
    })?;
    let rows = "
    node    -> 203.0.113.33:80  : {192.0.2.11:9090}
    node    -> 10.96.0.33:80    : {192.0.2.11:9090}
    node    -> 192.0.2.11:31093 : {192.0.2.11:9090}
    client  -> 203.0.113.33:80  : {192.0.2.11:9090}
    pod     -> 10.96.0.33:80    : {192.0.2.11:9090}
    pod     -> 203.0.113.33:80  : DROP
    outsider -> 203.0.113.33:80 : DROP
    ";
    check(cluster, SENDERS, rows)
}

/// Who answers `times` questions.
fn answers(cluster: &Cluster, from: &At, target: Target, times: usize) -> Result<BTreeSet<String>> {
    let tally = cluster.probe(from)?.tally(target, times)?;
    ensure!(tally.failed() == 0, "{from:?} -> {}: {tally:?}", target.to);
    Ok(tally.answers.into_keys().collect())
}

/// Spec 3.3, 3.13, 3.15, 12A 41, 47: on every address of a service port, whether sockets or packets are translated
/// (203.0.113.34 has source ranges), over a restart of the agent, over UDP.
#[test]
fn affinity_is_shared_by_sockets_and_packets() -> Result<()> {
    let mut cluster = cluster(&[])?;
    let mut bound = Vec::new();
    for from in [At::pod("a2"), At::pod("a1"), At::pod("b1"), At::host("node-a")] {
        let backend = answers(&cluster, &from, Target::http("10.96.0.34:80")?, 1)?;
        for to in ["10.96.0.34:80", "203.0.113.34:80", "10.96.0.34:80"] {
            ensure!(
                answers(&cluster, &from, Target::http(to)?, 12)? == backend,
                "{from:?} -> {to}: {backend:?}"
            );
        }
        if from == At::pod("a2") || from == At::host("node-a") {
            let found = answers(&cluster, &from, Target::http("192.0.2.11:31094")?, 12)?;
            ensure!(found == backend, "{from:?} -> NodePort: {found:?}, not {backend:?}");
        }
        let udp = answers(&cluster, &from, Target::udp("10.96.0.34:53")?, 12)?;
        ensure!(udp.len() == 1, "spec 3.15: {udp:?}");
        bound.push((from, backend));
    }
    restart(&mut cluster, &[])?;
    for (from, backend) in bound {
        let found = answers(&cluster, &from, Target::http("10.96.0.34:80")?, 12)?;
        ensure!(found == backend, "spec 3.13: {from:?}: {found:?}, not {backend:?}");
    }
    Ok(())
}

/// An address that comes to node-a late, as keepalived brings one, and goes again: `ip address COMMAND`.
fn address(cluster: &Cluster, command: &str, address: &str) -> Result<()> {
    let nodad = if address.contains(':') && command == "add" { " nodad" } else { "" };
    let place = cluster.place(&At::host("node-a"))?;
    place.namespace.ip(&[format!("address {command} {address} dev eth0{nodad}")])
}

/// How long a busy machine may take; that a second is enough on another is `attach.rs`'s to show.
const SOON: Duration = Duration::from_secs(10);

/// What the client gets from a NodePort in the end.
fn soon(cluster: &Cluster, to: &str, expected: Result<(), ClientError>) -> Result<()> {
    let client = cluster.probe(&At::Client)?;
    let target = Target::http(to)?.within(Duration::from_millis(200));
    eventually("is it so", SOON, || Ok(client.once(target)?.map(drop) == expected))
        .with_context(|| format!("{to}: {expected:?}"))
}

/// Spec 4.6, 4.7, 9.14, 12A 73; DESIGN 10: a list for one family closes the other.
#[test]
fn nodeports_follow_the_addresses_of_the_node() -> Result<()> {
    const LATE: &str = "192.0.2.50:31080";
    const LATE6: &str = "[2001:db8:2::50]:31080";
    let mut cluster = cluster(&[])?;
    for (cidr, to) in [("192.0.2.50/24", LATE), ("2001:db8:2::50/64", LATE6)] {
        address(&cluster, "add", cidr)?;
        soon(&cluster, to, Ok(()))?;
        let process = cluster.probe(&At::host("node-a"))?.once(Target::http(to)?)?;
        ensure!(process.is_ok(), "a process of the node -> {to}: {process:?}");
        address(&cluster, "del", cidr)?;
        let gone = eventually("is the address gone", SOON, || {
            let client = cluster.probe(&At::Client)?;
            Ok(client.once(Target::http(to)?.within(Duration::from_millis(200)))?.is_err())
        });
        gone.context(to)?;
    }
    restart(&mut cluster, &["--nodeport-addresses", "192.0.2.11/32,192.0.2.50/32"])?;
    address(&cluster, "add", "192.0.2.50/24")?;
    soon(&cluster, LATE, Ok(()))?;
    soon(&cluster, "192.0.2.11:31080", Ok(()))?;
    address(&cluster, "add", "192.0.2.51/24")?;
    soon(&cluster, "192.0.2.51:31080", Err(ClientError::Refused))
        .context("not listed: a port nobody listens on")?;
    soon(&cluster, "[2001:db8:2::11]:31080", Err(ClientError::Refused)).context("IPv6 is closed")?;
    restart(&mut cluster, &["--nodeport-addresses", "primary"])?;
    soon(&cluster, "192.0.2.11:31080", Ok(()))?;
    soon(&cluster, "[2001:db8:2::11]:31080", Ok(()))?;
    soon(&cluster, LATE, Err(ClientError::Refused)).context("not the primary address")
}
