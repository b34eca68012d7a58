//! `lb-agent run`: wires the parts together, in an order in which nothing is attached that would answer wrongly.
//!
//! Fresh start: create the maps, write devices and addresses, sync once, then attach. Until then the programs would
//! find no service in the maps and let everything pass, which is harmless but says nothing about a node that is not
//! ready. The verifier looks at the programs while the first sync goes on: each needs about a second.
//! Restart: the maps still hold the last agent's services, in the same layout, so the programs are replaced at once,
//! and a node whose API server is away still follows its pods.

use std::{io::IsTerminal as _, sync::Arc, time::Duration};

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::{
    background, crash, events,
    run_args::{LogFormat, RunArgs},
    servers,
};
use crate::{
    admin::{self, Admin},
    config::{Config, Source},
    datapath::{
        OBJECT,
        attach::Attacher,
        follow::{FollowConfig, Follower},
        load::{self, LoadConfig},
    },
    foreign::{self, Foreign},
    health::proxy::Health,
    maps::bpf::BpfMaps,
    metrics::server::Metrics,
    model::service::Forwarding,
    reconcile::{
        ReconcileConfig, Reconciler,
        run::{self as reconcile, Inputs, Outputs, Query, Timing},
    },
    sockets::run::SocketsReport,
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
        background::destroy_sockets(
            config,
            (pins.dir(), admin.queries.clone()),
            (changes, sockets_report),
            stop,
        );
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
        background::retire_versions(config, &self.admin, stop);
        background::collect_connections(config, &pins, self.metrics.collection, stop)?;
        background::follow_host_flows(config, &pins, self.metrics.host_flows, stop);
        background::log_floods(&pins, stop);
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
