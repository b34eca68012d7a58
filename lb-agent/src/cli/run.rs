//! `lb-agent run`: wires the parts together, in an order in which nothing is attached that would answer wrongly.
//!
//! Fresh start: create the maps, write devices and addresses, sync once, then attach. Until then the programs would
//! find no service in the maps and let everything pass, which is harmless but says nothing about a node that is not
//! ready. The verifier looks at the programs while the first sync goes on: each needs about a second.
//! Restart: the maps still hold the last agent's services, in the same layout, so the programs are replaced at once,
//! and a node whose API server is away still follows its pods.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{ArgAction, Args, ValueEnum};
use ipnet::IpNet;
use lb_common::{
    conntrack::ConnectionValue,
    family::{Family, V4, V6},
    flow::FlowKey,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
    time::{interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::{Dirs, crash, events, node_args::NodeArgs, servers};
use crate::{
    admin::{self, Admin},
    config::{self, Config, PortRange, Source},
    conntrack_gc::{self, Collected, Connections, KindLog},
    datapath::{
        OBJECT,
        attach::{AttachMode, Attacher},
        cleanup::retire_other_versions,
        devices::{NodePortAddresses, Patterns},
        follow::{FollowConfig, Follower},
        load::{self, LoadConfig},
        local::{DetectLocal, DetectLocalHints, DetectLocalMode},
        xdp::XdpMode,
    },
    desired::maglev::TableSize,
    flood,
    foreign::{self, Foreign},
    health::proxy::Health,
    host_flows::{self, HostFlowsConfig},
    kube_proxy::GoDuration,
    maps::bpf::BpfMaps,
    metrics::{collection::CollectionMetrics, host_flows::HostFlowsMetrics, server::Metrics},
    model::{
        family::IpFamily,
        service::{Algorithm, Forwarding},
    },
    reconcile::{
        ReconcileConfig, Reconciler,
        run::{self as reconcile, Inputs, Outputs, Query, Timing},
    },
    sockets::{
        Reach,
        run::{self as sockets, SocketsConfig, SocketsReport},
    },
    source::{
        Change,
        events::{self as node_events, EventQueue},
        file::FileSource,
        kubernetes::{KubernetesConfig, KubernetesSource, SourceStatus},
    },
};

/// Changes that may wait for the reconcile loop.
const CHANGES: usize = 4096;
/// Objects asked for at once.
const PAGE_SIZE: u32 = 500;

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
    init_only: bool,
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
    /// Send on what pods dial past the kernel's stack: faster, but netfilter's rules (network policies, masquerading) and
    /// other programs on pods' devices do not see it. By default the stack sends it on.
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
    log_format: LogFormat,
    /// What to log: error, warn, info, debug, trace, or a filter (`info,lb_agent::datapath=debug`).
    #[arg(long, env = "LB_LOG", default_value = "info", value_name = "FILTER")]
    log_level: String,
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
enum LogFormat {
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
    fn into_config(self) -> anyhow::Result<Config> {
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

/// Runs until SIGTERM or SIGINT.
pub(super) async fn run(args: RunArgs, notes: &[String]) -> anyhow::Result<()> {
    start_log(args.log_format, &args.log_level)?;
    notes.iter().for_each(|note| tracing::warn!("--kube-proxy-config: {note}"));
    let init_only = args.init_only;
    let config = args.into_config()?;
    config.tuning.apply()?;
    if init_only {
        return Ok(());
    }
    crash::end_on_panic();
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let result = Agent::start(&config, &stop).await?.finish(&config, &stop).await;
    stop.cancel();
    tracing::info!("stopped; programs and maps stay as they are");
    result
}

fn start_log(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| format!("--log-level {level:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn stop_on_signals(stop: &CancellationToken) -> anyhow::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("wait for signals")?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(())
}

/// A started agent that has attached nothing yet.
struct Agent {
    admin: Admin,
    follower: Follower,
    metrics: Metrics,
    /// True once the socket programs are attached, and every device found at the start is, or was refused.
    attached: watch::Sender<bool>,
    /// Of the own Node.
    pod_cidrs: watch::Receiver<Option<Vec<IpNet>>>,
    restarted: bool,
    /// Tasks whose end with an error ends the agent.
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Agent {
    async fn start(config: &Config, stop: &CancellationToken) -> anyhow::Result<Self> {
        let mut datapath = load::create(OBJECT, &load_config(config))?;
        let (pins, restarted) = (datapath.pins.clone(), datapath.restarted);
        let dir = pins.dir().display();
        tracing::info!(%dir, restarted, kernel = %datapath.release, features = datapath.features, "maps ready");
        if load::forward_log(&mut datapath.ebpf)? {
            tracing::info!("the datapath's development log is on");
        }
        let attacher = Arc::new(Mutex::new(Attacher::new(datapath, config.attach).with_xdp(config.xdp)));
        let follow = FollowConfig {
            patterns: config.patterns.clone(),
            nodeport_addresses: config.nodeport_addresses.clone(),
            detect_local: config.detect_local.clone(),
        };
        let (follower, node_addresses) = Follower::new(follow, &pins, Arc::clone(&attacher)).await?;
        tracing::info!(nodeport_addresses = ?node_addresses.borrow().0, "devices read");

        let (mut tasks, metrics) = (JoinSet::new(), Metrics::default());
        let (attached, is_attached) = watch::channel(false);
        let needs_node = matches!(config.source, Source::Kubernetes { .. });
        let outputs = Outputs {
            health: Health::new(config.health_timeout, needs_node, is_attached),
            metrics: metrics.control_plane.clone(),
            health_checks: watch::Sender::default(),
            wants_nodes: watch::Sender::default(),
        };
        let (events, queue) = node_events::channel();
        let (changes, inbox) = mpsc::channel(CHANGES);
        let feeds = Feeds { changes, events: queue, wants_nodes: outputs.wants_nodes.subscribe() };
        let source = start_source(config, feeds, stop, &mut tasks);
        let (queries, asked) = mpsc::channel(16);
        let addresses = node_addresses.clone();
        let inputs = Inputs { changes: inbox, node_addresses, queries: asked, shutdown: stop.clone() };
        let (sockets_report, sockets) = watch::channel(SocketsReport::default());
        let admin = admin(config, source, (attacher, sockets), (queries, foreign::follow(stop.clone())));
        servers::start(
            config,
            &servers::Parts { admin: &admin, metrics: &metrics, outputs: &outputs, addresses, events },
            stop,
            &mut tasks,
        );
        let Followed { pod_cidrs, changes } =
            start_loop(config, BpfMaps::open(pins.dir())?, inputs, outputs, &mut tasks)?;
        start_sockets(config, (pins.dir(), admin.queries.clone()), (changes, sockets_report), stop);
        // The verifier is waited for.
        let mut guard = admin.attacher.lock().await;
        tokio::task::block_in_place(|| guard.load_programs())?;
        drop(guard);
        tracing::info!("programs loaded");
        Ok(Self { admin, follower, metrics, attached, pod_cidrs, restarted, tasks })
    }

    async fn finish(mut self, config: &Config, stop: &CancellationToken) -> anyhow::Result<()> {
        admin::serve_socket(&config.run_dir, self.admin.clone(), stop.clone())
            .await
            .with_context(|| format!("admin socket in {}", config.run_dir.display()))?;
        if !self.restarted {
            tokio::select! {
                () = first_sync(&self.admin) => tracing::info!("first sync done"),
                ended = first_failure(&mut self.tasks) => return ended,
                () = stop.cancelled() => return Ok(()),
            }
        }
        attach_cgroup(config, &self.admin).await?;
        let pins = self.admin.attacher.lock().await.datapath().pins.clone();
        let follower = tokio::spawn(self.follower.run(self.attached, self.pod_cidrs, stop.clone()));
        start_retirement(config, &self.admin, stop);
        start_collection(config, &pins, self.metrics.collection, stop)?;
        start_host_flows(config, &pins, self.metrics.host_flows, stop);
        start_flood_log(&pins, stop);
        events::start_log(pins.dir(), config.settings())?;
        let result = tokio::select! {
            ended = first_failure(&mut self.tasks) => ended,
            () = stop.cancelled() => Ok(()),
        };
        stop.cancel();
        follower.await?;
        result
    }
}

fn admin(
    config: &Config,
    source: Option<watch::Receiver<SourceStatus>>,
    (attacher, sockets): (Arc<Mutex<Attacher>>, watch::Receiver<SocketsReport>),
    (queries, foreign): (mpsc::Sender<Query>, watch::Receiver<Foreign>),
) -> Admin {
    let manifests = match &config.source {
        Source::Manifests(dir) => dir.display().to_string(),
        Source::Kubernetes { .. } => String::new(),
    };
    let cgroup = config.socket_lb.then(|| config.cgroup.display().to_string());
    Admin { node: config.node_name.clone(), manifests, source, cgroup, attacher, queries, sockets, foreign }
}

/// What others follow of the reconcile loop.
struct Followed {
    /// podCIDRs of the own Node.
    pod_cidrs: watch::Receiver<Option<Vec<IpNet>>>,
    /// Changes with every sync.
    changes: watch::Receiver<u64>,
}

/// Starts the reconcile loop. The agent ends with it if it panics: it must not survive with half a change taken in
/// (spec 8.5).
fn start_loop(
    config: &Config,
    maps: BpfMaps,
    inputs: Inputs,
    outputs: Outputs,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<Followed> {
    let reconcile_config = ReconcileConfig {
        node_name: config.node_name.clone(),
        external_ip_cidrs: config.external_ip_cidrs.clone(),
        algorithm: config.algorithm,
        forwarding: config.forwarding,
        dsr_sources: config.dsr_sources.clone(),
        table_size: config.table_size,
        first_id: None,
    };
    let reconciler = Reconciler::new(maps, reconcile_config)?;
    let followed = Followed { pod_cidrs: reconciler.watch_pod_cidrs(), changes: reconciler.changes() };
    let timing = Timing {
        min_sync_period: config.min_sync_period,
        full_sync_period: config.full_sync_period,
        retry_max: config.retry_period_max,
        ..Timing::default()
    };
    tasks.spawn(async move {
        reconcile::run(reconciler, inputs, outputs, timing).await;
        Ok(())
    });
    Ok(followed)
}

fn load_config(config: &Config) -> LoadConfig {
    LoadConfig {
        pin_dir: config.pin_dir.clone(),
        max_entries: config.max_entries.clone(),
        snat_port_min: config.snat_ports.min,
        snat_port_count: config.snat_ports.count(),
        detect_local: config.detect_local.code(),
        masquerade_all: config.masquerade_all,
        forwards_pods: config.forwards_pods,
        flood_threshold: config.flood_threshold(load::possible_cpus()),
        stateless: config.forwarding != Forwarding::Snat,
    }
}

/// What a source is joined to.
struct Feeds {
    /// Where what it sees goes.
    changes: mpsc::Sender<Change>,
    /// What it is to publish.
    events: EventQueue,
    /// Whether it is to follow other nodes.
    wants_nodes: watch::Receiver<bool>,
}

fn start_source(
    config: &Config,
    feeds: Feeds,
    stop: &CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> Option<watch::Receiver<SourceStatus>> {
    let Feeds { changes, events, wants_nodes } = feeds;
    let stop = stop.clone();
    match &config.source {
        Source::Manifests(dir) => {
            tracing::info!(dir = %dir.display(), "reading manifests");
            let source = FileSource::new(dir.clone());
            tasks.spawn(async move { Ok(source.run(changes, stop).await?) });
            None
        }
        Source::Kubernetes { kubeconfig, api_servers } => {
            let source = KubernetesSource::new(KubernetesConfig {
                kubeconfig: kubeconfig.clone(),
                api_servers: api_servers.clone(),
                node_name: config.node_name.clone(),
                page_size: PAGE_SIZE,
            })
            .with_events(events)
            .with_nodes(wants_nodes);
            tracing::info!("watching the cluster");
            let status = source.status();
            tasks.spawn(async move { Ok(source.run(changes, stop).await?) });
            Some(status)
        }
    }
}

/// Waits until the maps hold what the sources delivered.
async fn first_sync(admin: &Admin) {
    loop {
        if admin.ask(Query::Report).await.is_ok_and(|report| report.synced) {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a task that fails; those that end well do not count.
async fn first_failure(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    std::future::pending().await
}

async fn attach_cgroup(config: &Config, admin: &Admin) -> anyhow::Result<()> {
    let attacher = admin.attacher.lock().await;
    if config.socket_lb {
        attacher.attach_cgroup(&config.cgroup)?;
        tracing::info!(cgroup = %config.cgroup.display(), "socket programs attached");
    } else {
        attacher.detach_cgroup()?;
    }
    Ok(())
}

/// Removes what agents of other ABI versions left, once every device has this one's programs.
fn start_retirement(config: &Config, admin: &Admin, stop: &CancellationToken) {
    let (admin, stop, pin_dir) = (admin.clone(), stop.clone(), config.pin_dir.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(Duration::from_secs(1)) => {}
            }
            let attacher = admin.attacher.lock().await;
            if attacher.attachments().next().is_none() || !attacher.failures().is_empty() {
                continue;
            }
            match retire_other_versions(&pin_dir, &attacher.datapath().pins).await {
                Ok(cleaned) => {
                    cleaned.removed.iter().for_each(|what| tracing::info!("former version: removed {what}"))
                }
                Err(error) => tracing::warn!("former version: {error}"),
            }
            return;
        }
    });
}

/// Starts the search for sockets whose backend has left, unless it is switched off.
fn start_sockets(
    config: &Config,
    (pins, queries): (&Path, mpsc::Sender<Query>),
    (changes, report): (watch::Receiver<u64>, watch::Sender<SocketsReport>),
    stop: &CancellationToken,
) {
    if config.destroy_sockets != Reach::Off {
        report.send_modify(|report| report.enabled = true);
        let settings =
            SocketsConfig { reach: config.destroy_sockets, pins: pins.to_owned(), period: config.gc_period };
        tokio::spawn(sockets::run(settings, queries, changes, report, stop.clone()));
    }
}

/// Logs when a flood begins and ends.
fn start_flood_log(pins: &crate::datapath::pins::Pins, stop: &CancellationToken) {
    let (dir, stop) = (pins.dir().to_owned(), stop.clone());
    tokio::spawn(async move {
        if let Err(error) = flood::watch(&dir, stop).await {
            tracing::warn!("floods are not logged: {error}");
        }
    });
}

/// Reads which ports the host's netfilter has given to flows of its own.
fn start_host_flows(
    config: &Config,
    pins: &crate::datapath::pins::Pins,
    metrics: HostFlowsMetrics,
    stop: &CancellationToken,
) {
    let settings = HostFlowsConfig {
        interval: config.host_conntrack_interval,
        ports: config.snat_ports,
        pins: pins.dir().to_owned(),
    };
    let stop = stop.clone();
    tokio::spawn(async move {
        if let Err(error) = host_flows::run(settings, metrics, stop).await {
            tracing::warn!("ports that the host's netfilter gave may be given again: {error}");
        }
    });
}

fn start_collection(
    config: &Config,
    pins: &crate::datapath::pins::Pins,
    metrics: CollectionMetrics,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut four = Connections::<V4>::open(pins.dir())?;
    let mut six = Connections::<V6>::open(pins.dir())?;
    let mut kinds = KindLog::open(pins.dir())?;
    let (mut ticks, stop) = (interval(config.gc_period), stop.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            // Thousands of system calls: not on a thread that others wait for.
            tokio::task::block_in_place(|| {
                let begun = (conntrack_gc::now(), kinds.recorded());
                let v4 = collect(&mut four, IpFamily::V4, &metrics);
                let v6 = collect(&mut six, IpFamily::V6, &metrics);
                if let (Some(v4), Some(v6)) = (v4, v6)
                    && let Err(error) =
                        begun.1.and_then(|recorded| kinds.forget(&recorded, v4.kinds | v6.kinds, begun.0))
                {
                    tracing::warn!("forget kinds of connections: {error}");
                }
            });
        }
    });
    Ok(())
}

/// Collects one family; what was found, unless it failed.
fn collect<F: Family>(
    connections: &mut Connections<F>,
    family: IpFamily,
    metrics: &CollectionMetrics,
) -> Option<Collected>
where
    FlowKey<F>: bytemuck::Pod + aya::Pod,
    ConnectionValue<F>: bytemuck::Pod + aya::Pod,
{
    let begun = Instant::now();
    let result = connections.collect(conntrack_gc::now());
    let removed = result.as_ref().ok().map(|found| found.removed);
    metrics.collected(family, begun.elapsed(), removed);
    match &result {
        Ok(found) => tracing::debug!(found.entries, found.removed, "connections collected"),
        Err(error) => tracing::warn!("collect connections: {error}"),
    }
    result.ok()
}
