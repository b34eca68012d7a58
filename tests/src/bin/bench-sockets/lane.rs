//! A lane: client - node - backend, each a network namespace, joined by veth pairs. What the node does with a packet
//! is what lanes differ in ([`Path`]).
//!
//! ```text
//!  client 10.1.0.2.. eth0 ---- client  node  backend ---- eth0 10.2.0.2, .3 backend
//!                        10.1.0.1                10.2.0.1
//! ```

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path as FilePath,
    time::Duration,
};

use anyhow::Result;
use lb_tests::{
    agent::Agent,
    cgroup::Cgroup,
    netns::{self, Namespace},
    offload::fit_for_xdp,
    process::Place,
    sweep,
};

use crate::{
    floor::Floor,
    kube_proxy,
    load::{Client, Measure, Request, Server},
    path::Path,
    services::{BACKENDS, CLUSTER_IP, ServicePort, cluster_port, node_port},
};

/// The node, as its neighbours see it.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// Source addresses of the client, from 10.1.0.2 on.
const SOURCES: u8 = 8;

/// A lane at work. Dropping it removes everything.
pub(crate) struct Lane {
    path: Path,
    prefix: String,
    agent: Option<Agent>,
    client: Option<Client>,
    server: Option<Server>,
    _floor: Option<Floor>,
}

impl Lane {
    /// Builds it for these Services, which lie in `manifests` too.
    pub(crate) fn start(
        path: Path,
        list: &[ServicePort],
        manifests: &FilePath,
        object: &[u8],
    ) -> Result<Self> {
        let prefix = sweep::unique_prefix();
        // Made first, so that dropping it removes whatever a failure below leaves.
        let mut lane = Self { path, prefix, agent: None, client: None, server: None, _floor: None };
        let cgroup = Cgroup::create(&lane.prefix)?;
        let names = ["client", "node", "backend"].map(|role| format!("{}-{role}", lane.prefix));
        let namespaces = Namespace::create(&names)?;
        let [client, node, backend] = &namespaces[..] else { anyhow::bail!("three namespaces are made") };
        link(client, node, backend)?;
        if path == Path::NodePortXdp {
            [client, backend].into_iter().try_for_each(fit_for_xdp)?;
        }
        // A NodePort's client is none of the node's processes.
        let of_node = cgroup.child("node")?;
        let of_client = if path.is_node_port() { &cgroup } else { &of_node };
        let place = |namespace: &Namespace, cgroup: &Cgroup, name: &str| -> Result<Place> {
            Ok(Place { namespace: namespace.clone(), cgroup: cgroup.child(name)? })
        };
        match path.agent_args() {
            Some(args) => {
                let place = place(node, &of_node, "agent")?;
                let mut agent = Agent::new("node", place, of_node.clone(), &lane.prefix, manifests)?;
                agent.set_extra_args(args);
                agent.start()?;
                lane.agent.insert(agent).wait_until_ready()?;
            }
            None if path == Path::Iptables => kube_proxy::load_iptables(node, list)?,
            None if path.is_nftables() => kube_proxy::load_nftables(node, NODE, list)?,
            None => lane._floor = Floor::attach(path, object, node, &of_node)?,
        }
        lane.server = Some(Server::start(&place(backend, &cgroup, "backend")?, &BACKENDS)?);
        let sources: Vec<Ipv4Addr> = (2..2 + SOURCES).map(source).collect();
        lane.client = Some(Client::start(&place(client, of_client, "client")?, &sources)?);
        Ok(lane)
    }

    /// Which way its packets take.
    pub(crate) fn path(&self) -> Path {
        self.path
    }

    /// Operations, or gigabits, in a second.
    pub(crate) fn rate(&mut self, measure: Measure, duration: Duration) -> Result<f64> {
        let to = match self.path {
            path if path.is_direct() => SocketAddrV4::new(BACKENDS[0], measure.port()),
            path if path.is_node_port() => SocketAddrV4::new(NODE, node_port(measure)),
            _ => SocketAddrV4::new(CLUSTER_IP, cluster_port(measure)),
        };
        let client = self.client.as_mut();
        client.map_or(Ok(0.0), |client| client.rate(Request { measure, to, duration }))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        (self.client, self.server) = (None, None);
        // Links are released before the pins go.
        self.agent = None;
        if let Err(error) = sweep::remove(&self.prefix) {
            eprintln!("{error:#}");
        }
    }
}

fn source(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, number)
}

fn link(client: &Namespace, node: &Namespace, backend: &Namespace) -> Result<()> {
    let veth = |name: &str, other: &Namespace| {
        let (node, other) = (node.name(), other.name());
        format!("link add {name} netns {node} type veth peer name eth0 netns {other}")
    };
    netns::ip(&[], &[veth("client", client), veth("backend", backend)])?;
    node.set_sysctls(&[("ipv4/ip_forward", "1")])?;
    let mut on_node: Vec<String> =
        ["lo", "client", "backend"].map(|name| format!("link set {name} up")).into();
    on_node.push(format!("address add {NODE}/16 dev client"));
    on_node.push("address add 10.2.0.1/16 dev backend".to_owned());
    let sources: Vec<Ipv4Addr> = (2..2 + SOURCES).map(source).collect();
    netns::ip_all(&[
        (node, on_node),
        (client, end_host(&sources, "10.1.0.1")),
        (backend, end_host(&BACKENDS, "10.2.0.1")),
    ])
}

fn end_host(addresses: &[Ipv4Addr], gateway: &str) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    lines.extend(addresses.iter().map(|address| format!("address add {address}/16 dev eth0")));
    lines.push(format!("route add default via {gateway}"));
    lines
}
