//! Source ports of connections on the wire: two VIPs of one backend dialled from one client port, and a node whose
//! netfilter masquerades too (docs/decisions/0005). Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_agent::maps::family_map_name;
use lb_common::{
    ABI_VERSION,
    family::{Family, Protocol, V4, V6},
    flow::FlowKey,
    maps,
};
use lb_tests::{
    cluster::{At, CLIENT_V4, CLIENT_V6},
    objects::service,
    probe::{Conversation, Reply, Target},
    process::eventually,
    scene::{Scene, cluster_ip, dual, ready},
};

/// Numbers of ClusterIPs; the Services of each pair have the same pod.
const LOCAL: [u8; 2] = [40, 41];
const REMOTE: [u8; 2] = [42, 43];
/// Not in `ip_local_port_range` of the client.
const CLIENT_PORT: u16 = 20_001;
/// Of pods, over UDP.
const UDP_PORT: u16 = 5353;

/// A cluster without socket hooks in which node-a serves both pairs of Services for whoever is outside.
fn scene() -> Result<Scene> {
    scene_with("1024-29999")
}

/// The same with other SNAT ports.
fn scene_with(snat_ports: &str) -> Result<Scene> {
    let arguments = ["--socket-lb", "false", "--snat-ports", snat_ports];
    let scene = Scene::prepared(|agent| agent.set_extra_args(&arguments))?;
    for (numbers, pod) in [(LOCAL, "a1"), (REMOTE, "b1")] {
        for number in numbers {
            let name = format!("s{number}");
            let text = service(&name, &dual(number, "")) + &ready(&name, &[pod]);
            scene.cluster.apply(&format!("{name}.yaml"), &text)?;
            for target in cluster_ip(number)? {
                scene.cluster.route_to(target.to.ip(), "node-a")?;
                scene.reaches(&At::Client, target, &[pod])?;
            }
        }
    }
    Ok(scene)
}

fn asked(conversation: &Conversation<'_>) -> Result<Reply> {
    conversation.ask()?.context("an answer")
}

#[test]
fn two_vips_of_one_backend_can_be_dialled_from_one_port() -> Result<()> {
    let scene = scene()?;
    let clients = [(At::Client, [CLIENT_V4, CLIENT_V6]), (At::pod("a2"), ["10.244.1.11", "fd00:244:1::11"])];
    for (from, addresses) in &clients {
        let probe = scene.cluster.probe(from)?;
        for [one, other] in [LOCAL, REMOTE] {
            for (one, other) in cluster_ip(one)?.into_iter().zip(cluster_ip(other)?) {
                let own: IpAddr = addresses[usize::from(one.to.is_ipv6())].parse()?;
                let own = SocketAddr::new(own, CLIENT_PORT);
                let targets = [one, other].map(|target| target.from(own));
                let [one, other] =
                    targets.map(|target| probe.open(target).and_then(|opened| Ok((target, opened?))));
                let conversations = [one?, other?];
                let mut seen_by_pod = BTreeSet::new();
                for (target, conversation) in conversations.iter().chain(&conversations) {
                    let reply = asked(conversation).with_context(|| format!("{from:?} -> {target:?}"))?;
                    ensure!((reply.peer, reply.own) == (target.to, own), "{target:?}: {reply:?}");
                    seen_by_pod.insert(reply.answer.client);
                }
                ensure!(seen_by_pod.len() == 2, "{from:?} -> {}: {seen_by_pod:?}", targets[0].to);
            }
        }
    }
    Ok(())
}

/// Pods' connections that netfilter masquerades to the node's address, and connections that got it from us, all to one
/// backend: in peace, when netfilter keeps the ports or has a range of its own.
#[test]
fn masquerading_by_netfilter_goes_on_beside_ours() -> Result<()> {
    const CONNECTIONS: usize = 50;
    let scene = scene()?;
    for rule in ["masquerade", "masquerade to :40000-60999 fully-random"] {
        masquerade(&scene, rule)?;
        let (pod, client) = (scene.cluster.probe(&At::pod("a2"))?, scene.cluster.probe(&At::Client)?);
        for [service, direct] in targets()? {
            let mut open = Vec::new();
            for _ in 0..CONNECTIONS {
                open.push(pod.open(direct)??);
                open.push(client.open(service)??);
            }
            let node: IpAddr = if direct.to.is_ipv4() { "192.0.2.11" } else { "2001:db8:2::11" }.parse()?;
            let mut seen_by_pod = BTreeSet::new();
            for conversation in open.iter().chain(&open) {
                let reply = asked(conversation).with_context(|| format!("{rule}: {direct:?}"))?;
                ensure!(reply.answer.client.ip() == node, "{rule}: {reply:?}");
                seen_by_pod.insert(reply.answer.client);
            }
            ensure!(seen_by_pod.len() == 2 * CONNECTIONS, "{rule}: {} sources", seen_by_pod.len());
        }
    }
    Ok(())
}

/// Netfilter gives its flows ports of our own range, at random and before ours come: with so few ports, ours would meet
/// theirs. The agent knows them after a round, and all are answered.
#[test]
fn netfilter_may_masquerade_from_our_range_if_its_flows_are_older() -> Result<()> {
    const CONNECTIONS: usize = 40;
    const PORTS: &str = "20000-20199";
    // Another range: a connection of ours that is older would get the answers of a flow that netfilter puts on its port.
    let mut scene = scene_with("1024-19999")?;
    let agent = scene.cluster.agent("node-a")?;
    agent.stop()?;
    let args = ["--socket-lb", "false", "--snat-ports", PORTS, "--host-conntrack-interval", "500ms"];
    agent.set_extra_args(&args);
    agent.start()?;
    agent.wait_until_ready()?;
    masquerade(&scene, &format!("masquerade to :{PORTS} fully-random"))?;
    let pins = scene.cluster.agent("node-a")?.pins().join(ABI_VERSION.to_string());
    let (pod, client) = (scene.cluster.probe(&At::pod("a2"))?, scene.cluster.probe(&At::Client)?);
    for [service, direct] in targets()? {
        let theirs =
            (0..CONNECTIONS).map(|_| Ok(pod.open(direct)??)).collect::<Result<Vec<_>>>().context("theirs")?;
        for conversation in &theirs {
            asked(conversation).with_context(|| format!("{direct:?} before ours"))?;
        }
        let is_udp = direct.to.port() == UDP_PORT;
        let protocol = if is_udp { Protocol::UDP } else { Protocol::TCP };
        eventually("does the agent know netfilter's flows?", Duration::from_secs(20), || {
            let known = match direct.to {
                SocketAddr::V4(_) => host_flows::<V4>(&pins, protocol)?,
                SocketAddr::V6(_) => host_flows::<V6>(&pins, protocol)?,
            };
            Ok(known >= CONNECTIONS)
        })?;
        // Ports that the kernel chooses may be those of flows that got theirs from the former range.
        let ours = (CLIENT_PORT..)
            .take(CONNECTIONS)
            .map(|port| Ok(client.open(service.from_port(port))??))
            .collect::<Result<Vec<_>>>()
            .context("ours")?;
        let mut seen_by_pod = BTreeSet::new();
        for conversation in theirs.iter().chain(&ours).chain(&theirs) {
            let reply = asked(conversation).with_context(|| format!("{direct:?} beside ours"))?;
            ensure!((20_000..20_200).contains(&reply.answer.client.port()), "{reply:?}");
            seen_by_pod.insert(reply.answer.client);
        }
        ensure!(seen_by_pod.len() == 2 * CONNECTIONS, "{} sources", seen_by_pod.len());
    }
    Ok(())
}

/// How many answers the datapath leaves to the host.
fn host_flows<F: Family>(pins: &Path, protocol: Protocol) -> Result<usize>
where
    FlowKey<F>: aya::Pod,
{
    let data = MapData::from_pin(pins.join(family_map_name::<F>(maps::HOST_FLOWS)))?;
    let flows: HashMap<MapData, FlowKey<F>, u32> = Map::HashMap(data).try_into()?;
    let keys = flows.keys().collect::<Result<Vec<_>, _>>()?;
    Ok(keys.iter().filter(|key| key.protocol == protocol).count())
}

/// A service of a pod elsewhere, and that pod itself, over both protocols and families.
fn targets() -> Result<Vec<[Target; 2]>> {
    let direct = ["10.244.2.10:8080", "[fd00:244:2::10]:8080", "10.244.2.10:5353", "[fd00:244:2::10]:5353"];
    let pairs = cluster_ip(REMOTE[0])?.into_iter().zip(direct);
    pairs.map(|(service, direct)| Ok([service, Target { to: direct.parse()?, ..service }])).collect()
}

/// Lets node-a masquerade what its pods send to other nodes' pods, as `rule` says.
fn masquerade(scene: &Scene, rule: &str) -> Result<()> {
    let rules = format!(
        "table inet cni {{}}\ndelete table inet cni\ntable inet cni {{\n\
         chain leaving {{ type nat hook postrouting priority srcnat;\n\
         meta l4proto {{ tcp, udp }} ip saddr 10.244.1.0/24 ip daddr 10.244.2.0/24 {rule}\n\
         meta l4proto {{ tcp, udp }} ip6 saddr fd00:244:1::/64 ip6 daddr fd00:244:2::/64 {rule}\n}}\n}}\n"
    );
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let output = scene.cluster.place(&At::host("node-a"))?.namespace.run(|| {
        let mut child = nft.spawn()?;
        child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(rules.as_bytes()))?;
        child.wait_with_output()
    })??;
    ensure!(output.status.success(), "nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
