//! A small Kubernetes-like cluster in network namespaces, for the demo and the end-to-end tests.
//!
//! ```text
//!  client 198.51.100.10, 2001:db8:100::10 ----+
//!                                             router ---- bridge 192.0.2.0/24, 2001:db8:2::/64
//!  outsider 203.0.113.200, 2001:db8:200::10 --+             |                      |
//!                                                        node-a .11, ::11       node-b .12, ::12
//!                                                        eth0, rp_filter=1      eth0, rp_filter=1
//!                                                         veth<pod> ...          veth<pod> ...
//! ```
//!
//! Pods have /32 and /128 addresses on a veth pair, as Calico has them: a gateway address that nobody owns, answered
//! by a permanent neighbour entry. Nodes route each other's pods. Service addresses are routed by the router to
//! whichever node [`Cluster::route_to`] names. Nothing but the agent knows what a Service is.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::Agent,
    cgroup::Cgroup,
    netns::{self, Namespace},
    probe::{Probe, program},
    process::{Place, Process},
    sweep,
};

/// One node: name, addresses on the network of nodes.
#[derive(Clone, Copy, Debug)]
pub struct NodeSpec {
    /// As EndpointSlices name it.
    pub name: &'static str,
    /// InternalIP.
    pub v4: &'static str,
    /// InternalIP.
    pub v6: &'static str,
}

/// The nodes of every cluster.
pub const NODES: [NodeSpec; 2] = [
    NodeSpec { name: "node-a", v4: "192.0.2.11", v6: "2001:db8:2::11" },
    NodeSpec { name: "node-b", v4: "192.0.2.12", v6: "2001:db8:2::12" },
];

/// Inside `loadBalancerSourceRanges` of the manifests.
pub const CLIENT_V4: &str = "198.51.100.10";
/// IPv6 of the same client.
pub const CLIENT_V6: &str = "2001:db8:100::10";
/// Outside `loadBalancerSourceRanges` of the manifests.
pub const OUTSIDER_V4: &str = "203.0.113.200";
/// IPv6 of the same client.
pub const OUTSIDER_V6: &str = "2001:db8:200::10";

const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
/// Link-layer address of the node, as pods see it.
pub const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// A pod to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its name, at most 11 letters: `veth<name>` is a device.
    pub name: String,
    /// Name of its node.
    pub node: String,
    /// Its addresses, of either family.
    pub addresses: Vec<IpAddr>,
    /// Ports that answer HTTP, on every address.
    pub http: Vec<u16>,
    /// Ports that answer datagrams, on every address.
    pub udp: Vec<u16>,
}

impl PodSpec {
    /// A pod that serves HTTP on one port.
    pub fn http(name: &str, node: &str, addresses: &[&str], port: u16) -> Result<Self> {
        let parse = |text: &&str| text.parse().with_context(|| format!("address {text}"));
        let addresses = addresses.iter().map(parse).collect::<Result<_>>()?;
        Ok(Self {
            name: name.to_owned(),
            node: node.to_owned(),
            addresses,
            http: vec![port],
            udp: Vec::new(),
        })
    }

    /// Also on this port.
    #[must_use]
    pub fn and_http(mut self, port: u16) -> Self {
        self.http.push(port);
        self
    }

    /// Also datagrams on this port.
    #[must_use]
    pub fn and_udp(mut self, port: u16) -> Self {
        self.udp.push(port);
        self
    }
}

/// Where a process of the cluster lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// The external client.
    Client,
    /// The external client that source ranges refuse.
    Outsider,
    /// The router between them and the nodes.
    Router,
    /// A node itself, as a host process.
    Host(String),
    /// A pod.
    Pod(String),
}

impl At {
    /// A host process of a node.
    pub fn host(node: &str) -> Self {
        Self::Host(node.to_owned())
    }

    /// A process of a pod.
    pub fn pod(name: &str) -> Self {
        Self::Pod(name.to_owned())
    }
}

#[derive(Debug)]
struct Pod {
    spec: PodSpec,
    place: Place,
    _server: Process,
}

/// The cluster. Dropping it removes every trace of it.
#[derive(Debug)]
pub struct Cluster {
    prefix: String,
    cgroup: Cgroup,
    places: BTreeMap<At, Place>,
    pods: BTreeMap<String, Pod>,
    probes: Mutex<BTreeMap<At, Arc<Probe>>>,
    agents: BTreeMap<String, Agent>,
}

impl Cluster {
    /// Makes namespaces, links and routes: router, clients and nodes, no pods and no agents yet.
    pub fn start() -> Result<Self> {
        let prefix = sweep::unique_prefix();
        let cgroup = Cgroup::create(&prefix)?;
        let (places, pods, agents) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        // Made first, so that dropping it removes whatever a failure below leaves.
        let mut cluster = Self { prefix, cgroup, places, pods, probes: Mutex::default(), agents };
        std::fs::create_dir_all(cluster.manifests()).context("make the directory of manifests")?;
        cluster.make_places()?;
        cluster.link_network()?;
        cluster.write_nodes()?;
        Ok(cluster)
    }

    /// Begins the names of all it makes.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The directory of manifests that all agents watch.
    pub fn manifests(&self) -> PathBuf {
        std::env::temp_dir().join(&self.prefix).join("manifests")
    }

    /// Puts a manifest there, whole at once.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        let path = self.manifests().join(file);
        // Beside the directory, not in it: agents watch that.
        let draft = std::env::temp_dir().join(&self.prefix).join("draft");
        std::fs::write(&draft, text).with_context(|| format!("write {}", draft.display()))?;
        std::fs::rename(&draft, &path).with_context(|| format!("write {}", path.display()))
    }

    /// Takes a manifest away.
    pub fn delete(&self, file: &str) -> Result<()> {
        let path = self.manifests().join(file);
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Where a process of this kind lives.
    pub fn place(&self, at: &At) -> Result<&Place> {
        let place = match at {
            At::Pod(name) => self.pods.get(name).map(|pod| &pod.place),
            _ => self.places.get(at),
        };
        place.with_context(|| format!("there is no {at:?} in the cluster"))
    }

    /// A client there; started when first asked for.
    pub fn probe(&self, at: &At) -> Result<Arc<Probe>> {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(probe) = probes.get(at) {
            return Ok(Arc::clone(probe));
        }
        let probe = Arc::new(Probe::start(self.place(at)?)?);
        probes.insert(at.clone(), Arc::clone(&probe));
        Ok(probe)
    }

    /// The router sends `vip` to this node from here on.
    pub fn route_to(&self, vip: IpAddr, node: &str) -> Result<()> {
        let node = node_spec(node)?;
        let route = format!("route replace {}", route_via(vip, node));
        self.place(&At::Router)?.namespace.ip(&[route])
    }

    /// The cgroup of a node: its agent's programs are attached there, its host processes and pods are below.
    pub fn node_cgroup(&self, node: &str) -> Result<Cgroup> {
        self.cgroup.child(node_spec(node)?.name)
    }

    /// Adds pods and waits until they serve.
    pub fn add_pods(&mut self, specs: &[PodSpec]) -> Result<()> {
        let names: Vec<String> =
            specs.iter().map(|spec| format!("{}-pod-{}", self.prefix, spec.name)).collect();
        let namespaces = Namespace::create(&names)?;
        namespaces.iter().try_for_each(|namespace| namespace.set_sysctls(&IPV6_WITHOUT_DAD))?;
        self.link_pods(specs, &namespaces)?;
        let mut started = Vec::new();
        for (spec, namespace) in specs.iter().zip(namespaces) {
            let cgroup = self.node_cgroup(&spec.node)?.child(&format!("pod-{}", spec.name))?;
            let place = Place { namespace, cgroup };
            started.push((spec, spawn_server(spec, &place)?, place));
        }
        for (spec, mut server, place) in started {
            wait_until_serving(spec, &mut server)?;
            self.pods.insert(spec.name.clone(), Pod { spec: spec.clone(), place, _server: server });
        }
        Ok(())
    }

    /// Kills a pod and removes its network.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        self.probes.get_mut().unwrap_or_else(PoisonError::into_inner).remove(&At::pod(name));
        let pod = self.pods.remove(name).with_context(|| format!("there is no pod {name}"))?;
        let (spec, place) = (pod.spec.clone(), pod.place.clone());
        drop(pod);
        crate::cgroup::remove(place.cgroup.path())?;
        for node in NODES.iter().filter(|node| node.name != spec.node) {
            let routes = spec.addresses.iter().map(|address| format!("route del {}", prefix_of(*address)));
            self.place(&At::host(node.name))?.namespace.ip(&routes.collect::<Vec<_>>())?;
        }
        self.place(&At::host(&spec.node))?.namespace.ip(&[format!("link del veth{name}")])?;
        netns::ip(&[], &[format!("netns del {}", place.namespace.name())])
    }

    /// Makes the agent of every node, without starting it.
    pub fn prepare_agents(&mut self) -> Result<()> {
        for node in NODES {
            let place = self.agent_place(node.name)?;
            let cgroup = self.node_cgroup(node.name)?;
            let agent = Agent::new(node.name, place, cgroup, &self.prefix, &self.manifests())?;
            self.agents.insert(node.name.to_owned(), agent);
        }
        Ok(())
    }

    /// Starts the agent of every node and waits until each is ready, see [`Agent::wait_until_ready`].
    pub fn start_agents(&mut self) -> Result<()> {
        if self.agents.is_empty() {
            self.prepare_agents()?;
        }
        self.agents.values_mut().try_for_each(Agent::start)?;
        self.agents.values_mut().try_for_each(Agent::wait_until_ready)
    }

    /// The agent of a node.
    pub fn agent(&mut self, node: &str) -> Result<&mut Agent> {
        self.agents.get_mut(node).with_context(|| format!("no agent on {node}"))
    }

    /// Every agent, by its node.
    pub fn agents(&self) -> &BTreeMap<String, Agent> {
        &self.agents
    }

    fn agent_place(&self, node: &str) -> Result<Place> {
        let namespace = self.place(&At::host(node))?.namespace.clone();
        Ok(Place { namespace, cgroup: self.node_cgroup(node)?.child("agent")? })
    }

    fn make_places(&mut self) -> Result<()> {
        let mut places = vec![
            (At::Router, "router".to_owned(), self.cgroup.child("router")?),
            (At::Client, "client".to_owned(), self.cgroup.child("client")?),
            (At::Outsider, "outsider".to_owned(), self.cgroup.child("outsider")?),
        ];
        for node in NODES {
            places.push((
                At::host(node.name),
                node.name.to_owned(),
                self.node_cgroup(node.name)?.child("host")?,
            ));
        }
        let names: Vec<String> =
            places.iter().map(|(_, name, _)| format!("{}-{name}", self.prefix)).collect();
        for ((at, _, cgroup), namespace) in places.into_iter().zip(Namespace::create(&names)?) {
            namespace.set_sysctls(&IPV6_WITHOUT_DAD)?;
            if matches!(at, At::Router | At::Host(_)) {
                namespace.set_sysctls(&FORWARDING)?;
            }
            if matches!(at, At::Host(_)) {
                namespace.set_sysctls(&STRICT_RP_FILTER)?;
            }
            self.places.insert(at, Place { namespace, cgroup });
        }
        Ok(())
    }

    fn link_network(&self) -> Result<()> {
        let namespace = |at: &At| self.place(at).map(|place| &place.namespace);
        let router = namespace(&At::Router)?;
        let (client, outsider) = (namespace(&At::Client)?, namespace(&At::Outsider)?);
        let mut links = vec![
            veth(client, "eth0", router, "client"),
            veth(outsider, "eth0", router, "outsider"),
            format!("link add nodes netns {} type bridge stp_state 0 forward_delay 0", router.name()),
        ];
        let mut batches = vec![
            (
                client,
                end_host(&["198.51.100.10/24", "2001:db8:100::10/64"], ["198.51.100.1", "2001:db8:100::1"]),
            ),
            (
                outsider,
                end_host(&["203.0.113.200/26", "2001:db8:200::10/64"], ["203.0.113.193", "2001:db8:200::1"]),
            ),
        ];
        let mut on_router = commands(&[
            "link set lo up",
            "address add 198.51.100.1/24 dev client",
            "address add 2001:db8:100::1/64 dev client nodad",
            "address add 203.0.113.193/26 dev outsider",
            "address add 2001:db8:200::1/64 dev outsider nodad",
            "address add 192.0.2.1/24 dev nodes",
            "address add 2001:db8:2::1/64 dev nodes nodad",
            "link set client up",
            "link set outsider up",
            "link set nodes up",
        ]);
        for node in NODES {
            let host = namespace(&At::host(node.name))?;
            links.push(veth(host, "eth0", router, node.name));
            on_router.push(format!("link set {} master nodes up", node.name));
            let addresses = [format!("{}/24", node.v4), format!("{}/64", node.v6)];
            batches.push((host, end_host(&[&addresses[0], &addresses[1]], ["192.0.2.1", "2001:db8:2::1"])));
        }
        batches.push((router, on_router));
        netns::ip(&[], &links)?;
        netns::ip_all(&batches)
    }

    fn link_pods(&self, specs: &[PodSpec], namespaces: &[Namespace]) -> Result<()> {
        let mut links = Vec::new();
        let mut batches = Vec::new();
        let mut on_nodes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (spec, namespace) in specs.iter().zip(namespaces) {
            let node = node_spec(&spec.node)?;
            let host = &self.place(&At::host(node.name))?.namespace;
            links.push(veth(host, &format!("veth{}", spec.name), namespace, "eth0"));
            batches.push((namespace, inside_pod(spec)));
            on_nodes.entry(node.name).or_default().extend(towards_pod(spec, node));
            for other in NODES.iter().filter(|other| other.name != node.name) {
                let routes =
                    spec.addresses.iter().map(|address| format!("route add {}", route_via(*address, node)));
                on_nodes.entry(other.name).or_default().extend(routes);
            }
        }
        for (node, commands) in on_nodes {
            batches.push((&self.place(&At::host(node))?.namespace, commands));
        }
        netns::ip(&[], &links)?;
        netns::ip_all(&batches)
    }

    fn write_nodes(&self) -> Result<()> {
        let document = |node: &NodeSpec| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nstatus:\n  addresses:\n  \
                 - {{type: InternalIP, address: {}}}\n  - {{type: InternalIP, address: \"{}\"}}\n",
                node.name, node.v4, node.v6
            )
        };
        self.apply("nodes.yaml", &NODES.each_ref().map(document).join("---\n"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.agents.values().for_each(|agent| eprintln!("{}", agent.log_tail()));
        }
        self.probes.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        self.agents.clear();
        self.pods.clear();
        if let Err(error) = sweep::remove(&self.prefix) {
            eprintln!("{error:#}");
        }
    }
}

/// Duplicate address detection would make every IPv6 address wait for a second.
const IPV6_WITHOUT_DAD: [(&str, &str); 3] = [
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];
const FORWARDING: [(&str, &str); 2] = [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];
/// As distributions set it: a packet must come in where an answer would go out.
const STRICT_RP_FILTER: [(&str, &str); 2] =
    [("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/default/rp_filter", "1")];

fn node_spec(name: &str) -> Result<&'static NodeSpec> {
    NODES.iter().find(|node| node.name == name).with_context(|| format!("there is no node {name}"))
}

fn commands(lines: &[&str]) -> Vec<String> {
    lines.iter().map(ToString::to_string).collect()
}

fn veth(left: &Namespace, left_name: &str, right: &Namespace, right_name: &str) -> String {
    let (left, right) = (left.name(), right.name());
    format!("link add {left_name} netns {left} type veth peer name {right_name} netns {right}")
}

/// Addresses and default routes of a namespace whose only device is eth0.
fn end_host(addresses: &[&str], gateways: [&str; 2]) -> Vec<String> {
    let mut lines = commands(&["link set lo up", "link set eth0 up"]);
    lines.extend(addresses.iter().map(|address| format!("address add {address} dev eth0{}", nodad(address))));
    lines.extend(gateways.iter().map(|gateway| format!("route add default via {gateway}")));
    lines
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

fn prefix_of(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn route_via(address: IpAddr, node: &NodeSpec) -> String {
    format!("{} via {}", prefix_of(address), if address.is_ipv4() { node.v4 } else { node.v6 })
}

fn inside_pod(spec: &PodSpec) -> Vec<String> {
    let mut lines = commands(&["link set lo up", "link set eth0 up"]);
    for address in &spec.addresses {
        let address = prefix_of(*address);
        lines.push(format!("address add {address} dev eth0{}", nodad(&address)));
    }
    for (version, gateway) in [("-4", GATEWAY_V4), ("-6", GATEWAY_V6)] {
        if spec.addresses.iter().any(|address| address.is_ipv4() == (version == "-4")) {
            lines.push(format!("neighbour add {gateway} lladdr {GATEWAY_MAC} dev eth0 nud permanent"));
            lines.push(format!("route add default via {gateway} dev eth0 onlink"));
        }
    }
    lines
}

fn towards_pod(spec: &PodSpec, node: &NodeSpec) -> Vec<String> {
    let device = format!("veth{}", spec.name);
    let mut lines = vec![format!("link set {device} address {GATEWAY_MAC} up")];
    for address in &spec.addresses {
        let source = if address.is_ipv4() { node.v4 } else { node.v6 };
        lines.push(format!("route add {} dev {device} src {source}", prefix_of(*address)));
    }
    lines
}

fn spawn_server(spec: &PodSpec, place: &Place) -> Result<Process> {
    let mut command = place.command(program("pod")?)?;
    command.args(["serve", "--name", &spec.name]).stdin(Stdio::piped()).stdout(Stdio::piped());
    add_listeners(&mut command, "--http", &spec.addresses, &spec.http);
    add_listeners(&mut command, "--udp", &spec.addresses, &spec.udp);
    Process::spawn(&mut command)
}

fn add_listeners(command: &mut Command, option: &str, addresses: &[IpAddr], ports: &[u16]) {
    for port in ports {
        for address in addresses {
            command.arg(option).arg(std::net::SocketAddr::new(*address, *port).to_string());
        }
    }
}

fn wait_until_serving(spec: &PodSpec, server: &mut Process) -> Result<()> {
    let stdout = server.child().stdout.take().context("stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line == "ready\n", "pod {} did not start: it said {line:?}", spec.name);
    Ok(())
}

/// A manifest of the tests' own copies, by file name.
pub fn manifest(file: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/manifests").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}
