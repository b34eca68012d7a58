//! Source ports of connections on the wire: two VIPs of one backend dialled from one client port, and a node whose
//! netfilter masquerades too (docs/decisions/0005). Needs root.
#![allow(clippy::allow_attributes, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{At, CLIENT_V4, CLIENT_V6},
    objects::service,
    probe::{Conversation, Reply, Target},
    scene::{Scene, cluster_ip, dual, ready},
};

/// Numbers of ClusterIPs; the Services of each pair have the same pod.
const LOCAL: [u8; 2] = [40, 41];
const REMOTE: [u8; 2] = [42, 43];
/// Not in `ip_local_port_range` of the client.
const CLIENT_PORT: u16 = 20_001;

/// A cluster without socket hooks in which node-a serves both pairs of Services for whoever is outside.
fn scene() -> Result<Scene> {
    let scene = Scene::prepared(|agent| agent.set_extra_args(&["--socket-lb", "false"]))?;
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
        let services = cluster_ip(REMOTE[0])?;
        let direct =
            ["10.244.2.10:8080", "[fd00:244:2::10]:8080", "10.244.2.10:5353", "[fd00:244:2::10]:5353"];
        for (service, direct) in services.into_iter().zip(direct) {
            let direct = Target { to: direct.parse()?, ..service };
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
