//! Sockets whose backend has left are destroyed, and no others (docs/decisions/0015, spec 12A 66, 7.15). Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Agent,
    cluster::{At, Cluster, NODES, PodSpec},
    objects::{Endpoint, service, slice},
    probe::{ClientError, Conversation, Target, Transport},
    process::eventually,
};

const PATIENCE: Duration = Duration::from_secs(20);
const A1: [&str; 2] = ["10.244.1.10", "fd00:244:1::10"];
const B1: [&str; 2] = ["10.244.2.10", "fd00:244:2::10"];
const UDP: [&str; 2] = ["10.96.0.70:53", "[fd00:96::70]:53"];
const TCP: [&str; 2] = ["10.96.0.70:80", "[fd00:96::70]:80"];

fn cluster_prepared(prepare: impl Fn(&mut Agent)) -> Result<Cluster> {
    let mut cluster = Cluster::start()?;
    let pod = |name, node, addresses: &[&str]| {
        Ok::<_, anyhow::Error>(PodSpec::http(name, node, addresses, 8080)?.and_udp(5353))
    };
    cluster.add_pods(&[
        pod("a1", "node-a", &A1)?,
        pod("a2", "node-a", &["10.244.1.11", "fd00:244:1::11"])?,
        pod("b1", "node-b", &B1)?,
    ])?;
    serve(&cluster, &[(A1, "ready")])?;
    cluster.prepare_agents()?;
    for node in NODES {
        prepare(cluster.agent(node.name)?);
    }
    cluster.start_agents()?;
    Ok(cluster)
}

/// The Service with these backends, each `ready`, `serving` or `terminating`.
fn serve(cluster: &Cluster, backends: &[([&str; 2], &str)]) -> Result<()> {
    let mut text = service(
        "kept",
        "clusterIP: 10.96.0.70, clusterIPs: [10.96.0.70, \"fd00:96::70\"], ipFamilies: [IPv4, IPv6], \
         ports: [{name: ask, protocol: UDP, port: 53}, {name: http, port: 80}]",
    );
    for (index, family) in ["v4", "v6"].into_iter().enumerate() {
        let endpoint = |(addresses, state): &([&str; 2], &str)| {
            let node = if *addresses == B1 { "node-b" } else { "node-a" };
            match *state {
                "ready" => Endpoint::ready(addresses[index], node),
                "serving" => Endpoint::serving(addresses[index], node),
                _ => Endpoint::terminating(addresses[index], node),
            }
        };
        let endpoints: Vec<Endpoint> = backends.iter().map(endpoint).collect();
        let ports = "{name: ask, protocol: UDP, port: 5353}, {name: http, port: 8080}";
        text += &slice(&format!("kept-{family}"), "kept", ports, &endpoints);
    }
    cluster.apply("kept.yaml", &text)
}

fn status(cluster: &mut Cluster) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(&cluster.agent("node-a")?.cli_text("status", &["-o", "json"])?)?)
}

/// Waits until a datagram sent by a fresh socket reaches `pod`.
fn wait_until_served_by(cluster: &Cluster, pod: &str) -> Result<()> {
    let probe = cluster.probe(&At::host("node-a"))?;
    for to in UDP {
        eventually(&format!("does {pod} serve"), PATIENCE, || {
            Ok(probe.once(Target::udp(to)?)?.is_ok_and(|reply| reply.answer.pod == pod))
        })?;
    }
    Ok(())
}

fn destroyed(conversation: &Conversation<'_>) -> Result<()> {
    eventually("is the socket destroyed", PATIENCE, || match conversation.ask()? {
        Err(ClientError::Destroyed) => Ok(true),
        Ok(_) | Err(ClientError::TimedOut) => Ok(false),
        other => anyhow::bail!("{other:?}"),
    })
}

fn still(conversation: &Conversation<'_>, pod: &str, why: &str) -> Result<()> {
    let reply = conversation.ask()?.with_context(|| why.to_owned())?;
    ensure!(reply.answer.pod == pod, "{why}: {reply:?}");
    Ok(())
}

/// Both families, sockets of the node and of a pod: those connected to the backend that left go, and nobody else.
#[test]
fn connected_udp_sockets_leave_a_backend_that_left() -> Result<()> {
    let cluster = cluster_prepared(|_| ())?;
    let (host, pod) = (cluster.probe(&At::host("node-a"))?, cluster.probe(&At::pod("a2"))?);
    let direct: [SocketAddr; 2] = ["10.244.1.10:5353".parse()?, "[fd00:244:1::10]:5353".parse()?];
    let elsewhere: [SocketAddr; 2] = ["10.244.1.11:5353".parse()?, "[fd00:244:1::11]:5353".parse()?];
    let mut doomed = Vec::new();
    let mut spared = Vec::new();
    for family in 0..2 {
        let target = Target::udp(UDP[family])?.within(Duration::from_millis(500));
        for probe in [&host, &pod] {
            doomed.push(probe.open(target)??);
            let unconnected = Target { transport: Transport::UdpUnconnected, ..target };
            spared.push((probe.open(unconnected)??, "b1", "unconnected: chooses anew per datagram"));
            let never_ours = Target { to: direct[family], ..target };
            spared.push((probe.open(never_ours)??, "a1", "T2: dialled the pod itself"));
            let moved = probe.open(target)??;
            still(&moved, "a1", "before it moves")?;
            moved.redial(elsewhere[family])??;
            spared.push((moved, "a2", "T1, T4: connected elsewhere since"));
        }
    }
    doomed.iter().try_for_each(|conversation| still(conversation, "a1", "before"))?;
    let ports = |spared: &[(Conversation<'_>, &str, &str)]| -> Result<Vec<u16>> {
        spared.iter().map(|(conversation, ..)| Ok(conversation.ask()??.own.port())).collect()
    };
    let before = ports(&spared)?;
    serve(&cluster, &[(A1, "serving"), (B1, "ready")])?;
    wait_until_served_by(&cluster, "b1")?;
    doomed.iter().try_for_each(|conversation| still(conversation, "a1", "unready but serving"))?;
    serve(&cluster, &[(A1, "terminating"), (B1, "ready")])?;
    wait_until_served_by(&cluster, "b1")?;
    doomed.iter().try_for_each(|conversation| still(conversation, "a1", "terminating but serving"))?;
    serve(&cluster, &[(B1, "ready")])?;
    doomed.iter().try_for_each(destroyed)?;
    for (conversation, pod, why) in &spared {
        still(conversation, pod, why)?;
    }
    ensure!(ports(&spared)? == before, "the spared keep their ports");
    for (family, conversation) in doomed.iter().enumerate().map(|(index, c)| (index / 2, c)) {
        conversation.redial(UDP[family].parse()?)??;
        // The first read still tells of the end of the former association.
        eventually("is b1 reached by who dials anew", PATIENCE, || {
            Ok(conversation.ask()?.is_ok_and(|reply| reply.answer.pod == "b1"))
        })?;
    }
    Ok(())
}

/// TCP drains while the pod terminates, and where a pod merely lost its labels; it ends with the pod.
#[test]
fn tcp_sockets_stay_until_the_pod_has_ended() -> Result<()> {
    let mut cluster = cluster_prepared(|_| ())?;
    {
        let (host, pod) = (cluster.probe(&At::host("node-a"))?, cluster.probe(&At::pod("a2"))?);
        let mut kept = Vec::new();
        for to in TCP {
            kept.push(host.open(Target::http(to)?)??);
            kept.push(pod.open(Target::http(to)?)??);
        }
        serve(&cluster, &[(B1, "ready")])?;
        wait_until_served_by(&cluster, "b1")?;
        kept.iter()
            .try_for_each(|conversation| still(conversation, "a1", "12A 63: gone without terminating"))?;
        serve(&cluster, &[(A1, "terminating"), (B1, "ready")])?;
        // Something that only the next sync brings about shows that this one has been taken in.
        eventually("is it known to terminate", PATIENCE, || {
            let backends = cluster.agents()["node-a"].cli_text("backends", &[])?;
            Ok(backends.contains("terminating"))
        })?;
        kept.iter().try_for_each(|conversation| still(conversation, "a1", "7.15: drains"))?;
        serve(&cluster, &[(B1, "ready")])?;
        kept.iter().try_for_each(destroyed)?;
    }
    // A sweep is counted when it is over; the sockets know before.
    eventually("are the destroyed sockets counted", PATIENCE, || {
        Ok(status(&mut cluster)?["sockets"]["destroyed"].as_u64() >= Some(4))
    })
}

/// What was missed while no agent ran is found by the next one; entries of sockets that are closed are collected.
#[test]
fn a_restarted_agent_finds_what_was_missed() -> Result<()> {
    let mut cluster = cluster_prepared(|agent| agent.set_extra_args(&["--gc-period", "1"]))?;
    let probe = cluster.probe(&At::pod("a2"))?;
    let kept = probe.open(Target::udp(UDP[0])?.within(Duration::from_millis(500)))??;
    still(&kept, "a1", "before")?;
    cluster.agent("node-a")?.kill()?;
    serve(&cluster, &[(B1, "ready")])?;
    still(&kept, "a1", "no agent, no change")?;
    cluster.agent("node-a")?.start()?;
    cluster.agent("node-a")?.wait_until_ready()?;
    destroyed(&kept)?;
    drop(kept);
    let tally = probe.tally(Target::udp(UDP[1])?, 20)?;
    ensure!(tally.answered() == 20, "{tally:?}");
    eventually("are the entries of closed sockets collected", Duration::from_secs(40), || {
        let status = status(&mut cluster)?;
        let maps = status["maps"].as_array().context("maps")?;
        let entries =
            |name: &str| maps.iter().find(|map| map["name"] == name).map(|map| map["entries"].clone());
        Ok(entries("SOCK_REV_NAT4") == Some(0.into()) && entries("SOCK_REV_NAT6") == Some(0.into()))
    })
}

/// With the rights of the DaemonSet the node's own sockets are handled, and the status says what is out of reach.
#[test]
fn without_rights_over_pods_the_node_is_served_and_the_rest_reported() -> Result<()> {
    let mut cluster = cluster_prepared(|agent| agent.set_capabilities(&["bpf", "net_admin", "perfmon"]))?;
    let (host, pod) = (cluster.probe(&At::host("node-a"))?, cluster.probe(&At::pod("a2"))?);
    let target = Target::udp(UDP[0])?.within(Duration::from_millis(500));
    let (on_host, in_pod) = (host.open(target)??, pod.open(target)??);
    still(&on_host, "a1", "before")?;
    still(&in_pod, "a1", "before")?;
    serve(&cluster, &[(B1, "ready")])?;
    destroyed(&on_host)?;
    eventually("is the pod's socket reported", PATIENCE, || {
        Ok(status(&mut cluster)?["sockets"]["out_of_reach"] == 1)
    })?;
    let text = cluster.agent("node-a")?.cli_text("status", &[])?;
    ensure!(text.contains("CAP_SYS_ADMIN") && text.contains("1 out of reach"), "{text}");
    still(&in_pod, "a1", "out of reach")
}

/// `--destroy-sockets off` destroys nothing, and says so.
#[test]
fn the_switch_turns_it_off() -> Result<()> {
    let mut cluster = cluster_prepared(|agent| agent.set_extra_args(&["--destroy-sockets", "off"]))?;
    let probe = cluster.probe(&At::host("node-a"))?;
    let kept = probe.open(Target::udp(UDP[0])?)??;
    still(&kept, "a1", "before")?;
    serve(&cluster, &[(B1, "ready")])?;
    wait_until_served_by(&cluster, "b1")?;
    still(&kept, "a1", "the switch is off")?;
    let text = cluster.agent("node-a")?.cli_text("status", &[])?;
    ensure!(text.contains("--destroy-sockets off"), "{text}");
    Ok(())
}
