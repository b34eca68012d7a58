//! Flags of `run`, and the configuration they make.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, ValueEnum};
use ipnet::IpNet;

use super::{Dirs, node_args::NodeArgs};
use crate::{
    config::{self, Config, PortRange, Source},
    datapath::{
        devices::{NodePortAddresses, Patterns},
        hook::AttachMode,
        local::{DetectLocal, DetectLocalHints, DetectLocalMode},
        xdp::XdpMode,
    },
    desired::maglev::TableSize,
    kube_proxy::GoDuration,
    model::service::{Algorithm, Forwarding},
    sockets::Reach,
};

/// Flags of `run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    dirs: Dirs,
    /// Read flags from this file (YAML, `apiVersion: lb-ebpf.io/v1alpha1`, `kind: AgentConfiguration`; --gc-period is
    /// the field gcPeriod). Flags given here win. Read once, at the start.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Take over kube-proxy's configuration file (KubeProxyConfiguration, or kubeadm's ConfigMap with it). Flags and
    /// --config win. `lb-agent check --kube-proxy-config FILE` says what becomes of each field.
    #[arg(long, value_name = "FILE")]
    pub(super) kube_proxy_config: Option<PathBuf>,
    /// Write the flags in force as a file for --config, and end; `-` is stdout.
    #[arg(long, value_name = "FILE")]
    pub(super) write_config_to: Option<PathBuf>,
    /// Set the node's sysctls and end: what an init container with more rights does.
    #[arg(long)]
    pub(super) init_only: bool,
    /// This node's name in Kubernetes: endpoints with it are local. Default: the host name. Trimmed, lower case.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Read Service, EndpointSlice, Endpoints, Node and ServiceCIDR objects from the YAML and JSON files of this
    /// directory and follow them; no cluster is needed.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Follow the cluster of this kubeconfig. Without --manifests and --kubeconfig: the Pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Address of an API server (https://192.0.2.10:6443), in place of the configured one; repeat it for fail-over.
    /// Give real addresses: the ClusterIP `kubernetes` works only once this agent does.
    #[arg(long = "api-server", value_name = "URL")]
    api_servers: Vec<String>,
    /// The cgroup v2 directory whose processes are served by the socket programs. Default: the cgroup2 mount.
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Devices towards the network, by name pattern (`eth*`), repeatable. Given: only these; default: found by rule.
    #[arg(long, value_name = "PATTERN")]
    uplink: Vec<String>,
    /// Devices towards pods, by name pattern, repeatable. Given: only these; default: veth and netkit devices whose
    /// other end is in another network namespace.
    #[arg(long, value_name = "PATTERN")]
    workload: Vec<String>,
    /// Tunnel devices, by name pattern, repeatable. Given: only these; default: vxlan, geneve, ipip, WireGuard, ….
    #[arg(long, value_name = "PATTERN")]
    overlay: Vec<String>,
    /// How tc programs are attached: tcx links (Linux 6.6), filters of a clsact qdisc, or auto: tcx where possible.
    #[arg(long, default_value = "auto", value_name = "auto|tcx|clsact")]
    attach: AttachMode,
    /// Where the XDP program runs before the tc program of an uplink: in the driver (native), in the kernel's receive
    /// path (generic), nowhere (off), or auto: in the driver of physical devices and bonds that can. `lb-agent status`
    /// says what each device got, and why.
    #[arg(long, default_value = "auto", value_name = "auto|native|generic|off")]
    xdp: XdpMode,
    /// Attach the socket programs. With `false` every packet is translated on its way instead, which costs more.
    #[arg(long, default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    socket_lb: bool,
    /// How a new connection gets its backend: any of them, or by its 5-tuple from a Maglev table, which gives a flow the
    /// same backend on every node. A Service's annotation `lb-ebpf.io/algorithm` goes first.
    #[arg(long, default_value_t = Algorithm::Random, value_name = "random|maglev")]
    algorithm: Algorithm,
    /// How what a client outside sends gets to a backend on another node: with this node's address as its source, or
    /// unchanged in a tunnel (IPIP, IP6IP6) to the backend's node, which runs this agent too and answers the client itself
    /// (direct server return); hybrid is dsr for TCP and snat for the rest. A Service's annotation `lb-ebpf.io/forwarding`
    /// goes first.
    #[arg(long, default_value_t = Forwarding::Snat, value_name = "snat|dsr|hybrid")]
    forwarding: Forwarding,
    /// Send on what pods dial past the kernel's stack, into a pod of this node at once: faster, but netfilter's rules (network
    /// policies, masquerading) and other programs on pods' devices do not see it. By default the stack sends it on.
    #[arg(long)]
    forward_pods: bool,
    /// From where tunnels may come, beside the addresses of other Nodes (InternalIP, ExternalIP): CIDRs separated by commas.
    /// For nodes that send from another address, that of a second uplink, say.
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    dsr_sources: Vec<IpNet>,
    /// Slots of a Maglev table: a prime from 251 to 131071, a hundred times the backends of a Service or more. The same
    /// on every node. Services with the same backends share a table; each set of backends needs one, and room for
    /// another while it changes: see --max-slots.
    #[arg(long, default_value_t = TableSize::default(), value_name = "N")]
    maglev_table_size: TableSize,
    /// Where connected sockets are destroyed when the backend they were given no longer serves what they dialled (UDP)
    /// or its pod has ended (TCP): on the node and in pods (auto; pods need CAP_SYS_ADMIN), on the node only, or off.
    #[arg(long, value_enum, default_value_t = Reach::Auto)]
    destroy_sockets: Reach,
    /// Where NodePorts listen: `primary`, or CIDRs separated by commas; a list for one IP family closes the other.
    /// Default: every local address.
    #[arg(long, default_value = "", value_name = "LIST")]
    nodeport_addresses: NodePortAddresses,
    #[command(flatten)]
    detect: DetectArgs,
    /// externalIPs outside these CIDRs (separated by commas) are refused. Default: none are.
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    external_ip_cidrs: Vec<IpNet>,
    /// Where /healthz (may load balancers send to this node?) and /livez (does the agent work?) are served; empty:
    /// nowhere.
    #[arg(long, default_value = "0.0.0.0:10256", value_name = "ADDR:PORT")]
    healthz_bind_address: String,
    /// Where /metrics and /proxyMode are served; empty: nowhere.
    #[arg(long, default_value = "127.0.0.1:10249", value_name = "ADDR:PORT")]
    metrics_bind_address: String,
    /// End when one of these two addresses cannot be listened on, in place of trying again every 5 s.
    #[arg(long)]
    bind_address_hard_fail: bool,
    /// Seconds a change may wait to be written to the maps before /healthz, /livez and health check node ports say 503.
    #[arg(long, default_value_t = 60, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    health_timeout: u64,
    /// Milliseconds between two syncs: changes within are written together. Longer saves CPU, shorter reacts sooner.
    #[arg(long, default_value_t = 5, value_name = "MS")]
    min_sync_period: u64,
    /// The longest wait before a failed sync is tried again (30s, 1m30s); the first is 200 ms, and it doubles.
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    retry_period_max: GoDuration,
    /// Seconds between comparisons of the maps with what was written; a difference is repaired.
    #[arg(long, default_value_t = 3600, value_name = "S")]
    full_sync_period: u64,
    /// Seconds between collections of dead connections.
    #[arg(long, default_value_t = 30, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    gc_period: u64,
    /// Time between readings of the host's conntrack (5s, 1m): source ports that netfilter has given to flows of its own
    /// by then are not given to connections. 0: it is not read.
    #[arg(long, default_value = "5s", value_name = "DURATION")]
    host_conntrack_interval: GoDuration,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    node: NodeArgs,
    /// Source ports for packets to backends on other nodes. Keep them outside ip_local_port_range and NodePorts.
    #[arg(long, default_value_t = PortRange::default(), value_name = "MIN-MAX")]
    snat_ports: PortRange,
    /// New flows a second and CPU that are a flood: beyond it flows are recorded apart from connections, and move to them
    /// once both sides talk, so that a flood evicts nothing but its own. 0: never. Default: a 64th of a CPU's share of
    /// --max-connections, 100 to 10000.
    #[arg(long, value_name = "N")]
    flood_threshold: Option<u32>,
    /// Log one in N verdicts of the datapath; 0: none. Costs a ring buffer write each.
    #[arg(long, default_value_t = 0, value_name = "N")]
    events_sample: u32,
    /// Answers to packets that nobody serves (RST, ICMP errors) a CPU may send a second, as many at once; beyond it
    /// they are dropped in silence. 0: any number.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    refusals_per_second: u32,
    /// Log lines to read, or JSON objects to collect.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
    /// What to log: error, warn, info, debug, trace, or a filter (`info,lb_agent::datapath=debug`).
    #[arg(long, env = "LB_LOG", default_value = "info", value_name = "FILTER")]
    pub(super) log_level: String,
}

/// Sizes of maps. Another size than that of the pinned map is an error at start, never a silent loss.
#[derive(Debug, Args)]
struct Sizes {
    /// Frontends (address, port, protocol) per IP family. Default: 262144.
    #[arg(long, value_name = "N")]
    max_frontends: Option<u32>,
    /// Backends per IP family. Default: 262144.
    #[arg(long, value_name = "N")]
    max_backends: Option<u32>,
    /// Service ports. Default: 65536.
    #[arg(long, value_name = "N")]
    max_service_ports: Option<u32>,
    /// Pairs of service port and backend. Default: 524288.
    #[arg(long, value_name = "N")]
    max_members: Option<u32>,
    /// Slots; twice the members, and twice the Maglev tables, leaves room to write runs anew. Default: 1048576.
    #[arg(long, value_name = "N")]
    max_slots: Option<u32>,
    /// loadBalancerSourceRanges entries per IP family. Default: 65536.
    #[arg(long, value_name = "N")]
    max_source_ranges: Option<u32>,
    /// Connection entries per IP family, two per connection; the least recently used gives way. Default: 262144.
    #[arg(long, value_name = "N")]
    max_connections: Option<u32>,
    /// Entries for flows of a flood per IP family, two per flow; the least recently used gives way. Default: 65536.
    #[arg(long, value_name = "N")]
    max_flood: Option<u32>,
    /// Clients with session affinity per IP family; the least recently used gives way. Default: 65536.
    #[arg(long, value_name = "N")]
    max_affinity: Option<u32>,
    /// Sockets shown the VIP they dialled, per IP family; the least recently used gives way. Default: 65536.
    #[arg(long, value_name = "N")]
    max_sock_rev_nat: Option<u32>,
}

/// Who is in the cluster.
#[derive(Debug, Args)]
struct DetectArgs {
    /// By what a packet is known to come from a pod: only pods and the node itself are served past
    /// `externalTrafficPolicy: Local`. Default: device-role, or with --cluster-cidr cluster-cidr.
    #[arg(long, value_name = "MODE")]
    detect_local: Option<DetectLocalMode>,
    /// Networks of the cluster's pods, separated by commas; the first of each IP family counts.
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    cluster_cidr: Vec<IpNet>,
    /// Bridge of this node's pods, for --detect-local bridge-interface.
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pod_bridge_interface: String,
    /// How the names of pods' devices begin, for --detect-local interface-name-prefix.
    #[arg(long, default_value = "", value_name = "PREFIX", hide_default_value = true)]
    pod_interface_name_prefix: String,
    /// Give whoever dials a ClusterIP a node address; pods' connections are then translated on their way, not at
    /// their sockets, which costs more.
    #[arg(long)]
    masquerade_all: bool,
}

impl DetectArgs {
    fn into_detect_local(self) -> anyhow::Result<DetectLocal> {
        let hints = DetectLocalHints {
            cluster_cidrs: self.cluster_cidr,
            bridge_interface: self.pod_bridge_interface,
            interface_name_prefix: self.pod_interface_name_prefix,
        };
        Ok(DetectLocal::new(self.detect_local, hints)?)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

impl Sizes {
    fn in_order(&self) -> [Option<u32>; 10] {
        [
            self.max_frontends,
            self.max_backends,
            self.max_service_ports,
            self.max_members,
            self.max_slots,
            self.max_source_ranges,
            self.max_connections,
            self.max_flood,
            self.max_affinity,
            self.max_sock_rev_nat,
        ]
    }
}

impl RunArgs {
    pub(super) fn into_config(self) -> anyhow::Result<Config> {
        let max_entries = config::max_entries(self.sizes.in_order())?;
        config::check_tables(self.algorithm, self.maglev_table_size, &max_entries)?;
        Ok(Config {
            node_name: config::node_name(self.node_name.as_deref())?,
            source: Source::new(self.manifests, self.kubeconfig, self.api_servers)?,
            cgroup: config::cgroup(self.cgroup.as_deref())?,
            pin_dir: self.dirs.pin_dir,
            run_dir: self.dirs.run_dir,
            patterns: Patterns { uplink: self.uplink, workload: self.workload, overlay: self.overlay },
            attach: self.attach,
            xdp: self.xdp,
            socket_lb: self.socket_lb,
            algorithm: self.algorithm,
            forwarding: self.forwarding,
            forwards_pods: self.forward_pods,
            dsr_sources: self.dsr_sources,
            table_size: self.maglev_table_size,
            destroy_sockets: self.destroy_sockets,
            nodeport_addresses: self.nodeport_addresses,
            masquerade_all: self.detect.masquerade_all,
            detect_local: self.detect.into_detect_local()?,
            external_ip_cidrs: self.external_ip_cidrs,
            healthz: config::listen_address("--healthz-bind-address", &self.healthz_bind_address, 10256)?,
            metrics: config::listen_address("--metrics-bind-address", &self.metrics_bind_address, 10249)?,
            bind_address_hard_fail: self.bind_address_hard_fail,
            health_timeout: Duration::from_secs(self.health_timeout),
            min_sync_period: Duration::from_millis(self.min_sync_period),
            retry_period_max: self.retry_period_max.length,
            full_sync_period: Duration::from_secs(self.full_sync_period.max(1)),
            gc_period: Duration::from_secs(self.gc_period),
            host_conntrack_interval: self.host_conntrack_interval.length,
            max_entries,
            tuning: self.node.tuning()?,
            snat_ports: self.snat_ports,
            flood_threshold: self.flood_threshold,
            events_sample: self.events_sample,
            refusals_per_second: self.refusals_per_second,
        })
    }
}
