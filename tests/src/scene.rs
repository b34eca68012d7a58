//! The stage of the e2e titles: a cluster with three dual-stack pods, and questions in the words of those tests.

use std::{
    io::{BufRead as _, BufReader},
    net::IpAddr,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::Agent,
    cluster::{At, Cluster, NODES, PodSpec},
    objects::{Endpoint, slice},
    probe::{ClientError, Reply, Target, Transport, program},
    process::{Process, eventually},
};

/// How long a change may take; the e2e tests allow 30 s for endpoints and 2 min for Services.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Every pod: name, IPv4, IPv6, node.
pub const PODS: [(&str, &str, &str, &str); 3] = [
    ("a1", "10.244.1.10", "fd00:244:1::10", "node-a"),
    ("a2", "10.244.1.11", "fd00:244:1::11", "node-a"),
    ("b1", "10.244.2.10", "fd00:244:2::10", "node-b"),
];
/// HTTP on 8080 and 8081, datagrams on 5353, by the names of the ports of a Service.
pub const PORTS: &str = "{name: http, port: 8080}, {name: ask, protocol: UDP, port: 5353}";
/// The networks of ClusterIPs.
const SERVICE_CIDR: &str = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\n\
                            spec: {cidrs: [10.96.0.0/16, \"fd00:96::/112\"]}\n";

/// The cluster with its pods and agents.
#[derive(Debug)]
pub struct Scene {
    /// The cluster.
    pub cluster: Cluster,
}

impl Scene {
    /// With agents as they are by default.
    pub fn start() -> Result<Self> {
        Self::prepared(|_| ())
    }

    /// With agents that were prepared before their start.
    pub fn prepared(prepare: impl Fn(&mut Agent)) -> Result<Self> {
        let mut cluster = Cluster::start()?;
        let spec = |(name, v4, v6, node): (&str, &str, &str, &str)| {
            Ok::<_, anyhow::Error>(PodSpec::http(name, node, &[v4, v6], 8080)?.and_http(8081).and_udp(5353))
        };
        cluster.add_pods(&PODS.into_iter().map(spec).collect::<Result<Vec<_>>>()?)?;
        cluster.apply("service-cidr.yaml", SERVICE_CIDR)?;
        cluster.prepare_agents()?;
        for node in NODES {
            prepare(cluster.agent(node.name)?);
        }
        cluster.start_agents()?;
        Ok(Self { cluster })
    }

    /// A server on the host network of a node; its name is that of the node.
    pub fn host_server(&self, node: &str, http: &[&str], udp: &[&str]) -> Result<Process> {
        let mut command = self.cluster.place(&At::host(node))?.command(program("pod")?)?;
        command.args(["serve", "--name", node]).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (option, address) in http.iter().map(|a| ("--http", a)).chain(udp.iter().map(|a| ("--udp", a))) {
            command.args([option, address]);
        }
        let mut server = Process::spawn(&mut command)?;
        let stdout = server.child().stdout.take().context("stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "the server on {node} said {line:?}");
        Ok(server)
    }

    /// One question.
    pub fn ask(&self, from: &At, target: Target) -> Result<std::result::Result<Reply, ClientError>> {
        self.cluster.probe(from)?.once(target)
    }

    /// Waits until exactly `pods` answer, each of them, and nothing fails. Returns one of the replies.
    pub fn reaches(&self, from: &At, target: Target, pods: &[&str]) -> Result<Reply> {
        let probe = self.cluster.probe(from)?;
        let times = if pods.len() > 1 { 24 * pods.len() } else { 5 };
        let target = target.within(Duration::from_millis(1000));
        let (mut last, mut reply) = (None, None);
        eventually("do exactly these answer", PATIENCE, || {
            let tally = probe.tally(target, times)?;
            let answered = tally.answers.keys().map(String::as_str).eq(pods.iter().copied());
            if answered && tally.failed() == 0 {
                reply = probe.once(target)?.ok();
            }
            last = Some(tally);
            Ok(reply.is_some())
        })
        .with_context(|| format!("{from:?} -> {target:?}: {pods:?} wanted, {last:?}"))?;
        reply.context("a reply")
    }

    /// Waits until nobody answers, however that is said.
    pub fn fails(&self, from: &At, target: Target) -> Result<()> {
        let target = target.within(Duration::from_millis(300));
        eventually("does nobody answer", PATIENCE, || Ok(self.ask(from, target)?.is_err()))
            .with_context(|| format!("{from:?} -> {target:?}"))
    }

    /// Waits until the answer is ECONNREFUSED.
    pub fn refused(&self, from: &At, target: Target) -> Result<()> {
        let target = target.within(Duration::from_millis(500));
        let mut last = None;
        eventually("is it refused", PATIENCE, || {
            let outcome = self.ask(from, target)?;
            let done = outcome == Err(ClientError::Refused);
            last = Some(outcome);
            Ok(done)
        })
        .with_context(|| format!("{from:?} -> {target:?}: {last:?}"))
    }

    /// As [`Self::reaches`], on both families and over TCP and UDP, of the ClusterIPs numbered `number`.
    pub fn cluster_ip_reaches(&self, from: &At, number: u8, pods: &[&str]) -> Result<()> {
        for target in cluster_ip(number)? {
            self.reaches(from, target, pods)?;
        }
        Ok(())
    }

    /// As [`Self::fails`], likewise.
    pub fn cluster_ip_fails(&self, from: &At, number: u8) -> Result<()> {
        cluster_ip(number)?.into_iter().try_for_each(|target| self.fails(from, target))
    }
}

/// HTTP on port 80 and datagrams on port 53 of the ClusterIPs numbered `number`, both families.
pub fn cluster_ip(number: u8) -> Result<[Target; 4]> {
    Ok([
        Target::http(&format!("10.96.0.{number}:80"))?,
        Target::http(&format!("[fd00:96::{number}]:80"))?,
        Target::udp(&format!("10.96.0.{number}:53"))?,
        Target::udp(&format!("[fd00:96::{number}]:53"))?,
    ])
}

/// The addresses of a NodePort: one node or both, both families.
pub fn node_port(transport: Transport, node: &str, port: u16) -> Result<Vec<Target>> {
    let nodes = NODES.iter().filter(|spec| spec.name == node);
    let addresses = nodes.flat_map(|spec| [spec.v4, spec.v6]);
    let target = |address: &str| {
        let address: IpAddr = address.parse()?;
        Ok(Target::new(transport, std::net::SocketAddr::new(address, port)))
    };
    addresses.map(target).collect()
}

/// `spec` of a dual-stack Service with the ClusterIPs numbered `number` and ports `http` (80) and `ask` (53).
pub fn dual(number: u8, rest: &str) -> String {
    let ports = "{name: http, port: 80}, {name: ask, protocol: UDP, port: 53}";
    dual_with(number, ports, rest)
}

/// As [`dual`], with other ports.
pub fn dual_with(number: u8, ports: &str, rest: &str) -> String {
    let rest = if rest.is_empty() { String::new() } else { format!(", {rest}") };
    format!(
        "clusterIP: 10.96.0.{number}, clusterIPs: [10.96.0.{number}, \"fd00:96::{number}\"], \
         ipFamilies: [IPv4, IPv6], ports: [{ports}]{rest}"
    )
}

/// How a pod's endpoint is made from its address and node.
pub type Make = fn(&str, &str) -> Endpoint;

/// The slices of a Service, one per family, with these pods.
pub fn slices(service: &str, pods: &[(&str, Make)]) -> String {
    slices_with(service, PORTS, |name, address, node| {
        pods.iter().find(|(pod, _)| *pod == name).map(|(_, make)| make(address, node))
    })
}

/// The slices of a Service with these ready pods.
pub fn ready(service: &str, pods: &[&str]) -> String {
    let pods: Vec<(&str, Make)> = pods.iter().map(|pod| (*pod, Endpoint::ready as Make)).collect();
    slices(service, &pods)
}

/// The slices of a Service: `make` says which pods (name, address, node) are endpoints, and how.
pub fn slices_with(
    service: &str,
    ports: &str,
    make: impl Fn(&str, &str, &str) -> Option<Endpoint>,
) -> String {
    let v4: Vec<Endpoint> = PODS.iter().filter_map(|(name, v4, _, node)| make(name, v4, node)).collect();
    let v6: Vec<Endpoint> = PODS.iter().filter_map(|(name, _, v6, node)| make(name, v6, node)).collect();
    slice(&format!("{service}-v4"), service, ports, &v4)
        + &slice(&format!("{service}-v6"), service, ports, &v6)
}
