//! What runs beside the reconcile loop, as long as the agent does: each part looks after what the datapath, the host or former
//! agents leave behind. One that fails says so and ends nothing else.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use lb_common::{
    conntrack::ConnectionValue,
    family::{Family, V4, V6},
    flow::FlowKey,
};
use tokio::{
    sync::{mpsc, watch},
    time::{interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Admin,
    config::Config,
    conntrack_gc::{self, Collected, Connections, KindLog},
    datapath::{cleanup::retire_other_versions, pins::Pins},
    flood,
    host_flows::{self, HostFlowsConfig},
    metrics::{collection::CollectionMetrics, host_flows::HostFlowsMetrics},
    model::family::IpFamily,
    reconcile::run::Query,
    sockets::{
        Reach,
        run::{self as sockets, SocketsConfig, SocketsReport},
    },
};

/// Removes what agents of other ABI versions left, once every device has this one's programs.
pub(super) fn retire_versions(config: &Config, admin: &Admin, stop: &CancellationToken) {
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
pub(super) fn destroy_sockets(
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
pub(super) fn log_floods(pins: &Pins, stop: &CancellationToken) {
    let (dir, stop) = (pins.dir().to_owned(), stop.clone());
    tokio::spawn(async move {
        if let Err(error) = flood::watch(&dir, stop).await {
            tracing::warn!("floods are not logged: {error}");
        }
    });
}

/// Reads which ports the host's netfilter has given to flows of its own.
pub(super) fn follow_host_flows(
    config: &Config,
    pins: &Pins,
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

/// Removes dead connections every `gc_period`, and forgets the kinds of which none is left. Fails if the maps cannot be opened.
pub(super) fn collect_connections(
    config: &Config,
    pins: &Pins,
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
                let (begun, recorded) = (conntrack_gc::now(), kinds.recorded());
                let v4 = collect(&mut four, IpFamily::V4, &metrics);
                let v6 = collect(&mut six, IpFamily::V6, &metrics);
                if let (Some(v4), Some(v6)) = (v4, v6)
                    && let Err(error) =
                        recorded.and_then(|recorded| kinds.forget(&recorded, v4.kinds | v6.kinds, begun))
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
