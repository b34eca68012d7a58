//! `cargo xtask bench control`: how long the agent needs for everything and for one change. The program `lb-agent run`
//! with a directory of manifests ([`agent_process`]), and its control plane's own share, in this process on real BPF
//! maps. Needs root. Prints a table; `--json FILE` writes the rows as JSON.

mod agent_process;

use std::{fs, hint::black_box, net::Ipv4Addr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use lb_agent::{
    desired::maglev::{self, TableSize},
    maps::bpf::BpfMaps,
    model::{backend::BackendAddress, node::NodeAddresses},
    reconcile::{ReconcileConfig, Reconciler, SyncOutcome},
    source::{Change, Kind, Object},
};
use lb_common::{family::Protocol, id::BackendId};
use lb_tests::{
    bench::{
        Output,
        row::{Row, Target},
    },
    pinned_maps::PinnedMaps,
};

const ENDPOINTS_PER_SERVICE: usize = 10;
const CHANGES: usize = 1000;

/// Measures the control plane.
#[derive(Parser)]
struct Arguments {
    /// How many Services
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=26_000))]
    services: u64,
    #[command(flatten)]
    output: Output,
}

/// A row whose target is an upper limit.
fn row(case: String, unit: &'static str, samples: Vec<f64>, limit: f64) -> Row {
    Row::new("control", case, unit, samples, Target::AtMost(limit))
}

fn main() -> Result<()> {
    let Arguments { services, output } = Arguments::parse();
    let services = usize::try_from(services)?;
    let mut rows = Vec::new();
    for services_per_file in [1, 100] {
        rows.extend(agent_process::measure(services, services_per_file)?);
    }
    rows.extend(in_process(services)?);
    rows.push(tables()?);
    output.publish(&rows)
}

/// The control plane without reading, parsing and loading.
fn in_process(services: usize) -> Result<Vec<Row>> {
    let pins = PinnedMaps::create(&[])?;
    let mut rows = Vec::new();
    let size = "control plane alone";
    let config = ReconcileConfig { node_name: "node-0".to_owned(), ..ReconcileConfig::default() };
    let mut reconciler = Reconciler::new(BpfMaps::open(pins.dir())?, config.clone())?;
    rows.push(row(format!("first sync, {size}"), "ms", vec![first_sync(&mut reconciler, services)?], 2000.0));
    let changes = (0..CHANGES).map(|round| one_change(&mut reconciler, services, round));
    rows.push(row(format!("one endpoint changes, {size}"), "ms", changes.collect::<Result<_>>()?, 10.0));
    rows.push(row(format!("peak memory, {size}"), "MiB", vec![peak_memory_mib("self")?], 150.0));
    let started = Instant::now();
    ensure!(!reconciler.verify()?, "the mirror differs from the maps");
    rows.push(row(format!("full check, {size}"), "ms", vec![milliseconds(started)], 2000.0));
    drop(reconciler);

    let started = Instant::now();
    let mut reconciler = Reconciler::new(BpfMaps::open(pins.dir())?, config)?;
    let restored = milliseconds(started);
    rows.push(row(format!("restore ids, {size}"), "ms", vec![restored], 2000.0));
    rows.push(row(
        format!("sync after restart, {size}"),
        "ms",
        vec![first_sync(&mut reconciler, services)?],
        2000.0,
    ));
    Ok(rows)
}

/// One Maglev table of the default size for a hundred backends.
fn tables() -> Result<Row> {
    let size = TableSize::default();
    let address = |index| BackendAddress {
        addr: Ipv4Addr::from_bits(0x0af4_0000 + index).into(),
        port: 8080,
        protocol: Protocol::TCP,
    };
    let backends: Vec<_> = (1..=100).map(|index| (address(index), BackendId(index))).collect();
    let mut samples = Vec::new();
    for _ in 0..CHANGES {
        let started = Instant::now();
        let table = maglev::build(black_box(backends.clone()), size);
        samples.push(milliseconds(started));
        ensure!(black_box(table).len() == size.get() as usize, "a table of another size");
    }
    Ok(row(format!("build a Maglev table, {size} slots, 100 backends"), "ms", samples, 5.0))
}

/// Everything is delivered, converted and written; in milliseconds. The objects are made while the clock stands.
fn first_sync(reconciler: &mut Reconciler<BpfMaps>, services: usize) -> Result<f64> {
    reconciler.set_node_addresses(NodeAddresses(["192.0.2.10".parse()?].into()));
    let mut spent = 0.0;
    for index in 0..services {
        let (service, slice) = (Change::Applied(service(index)), Change::Applied(slice(index, 0)));
        let started = Instant::now();
        reconciler.apply_change(service);
        reconciler.apply_change(slice);
        spent += milliseconds(started);
    }
    let started = Instant::now();
    reconciler.apply_change(Change::Synced(Kind::Service));
    reconciler.apply_change(Change::Synced(Kind::EndpointSlice));
    let outcome = reconciler.sync()?;
    ensure!(matches!(outcome, SyncOutcome::Done { services: done, .. } if done == services), "{outcome:?}");
    Ok(spent + milliseconds(started))
}

/// One endpoint of one service gets another address; in milliseconds.
fn one_change(reconciler: &mut Reconciler<BpfMaps>, services: usize, round: usize) -> Result<f64> {
    let change = Change::Applied(slice(round * 7919 % services, 1 + round));
    let started = Instant::now();
    reconciler.apply_change(change);
    let outcome = reconciler.sync()?;
    let spent = milliseconds(started);
    ensure!(matches!(outcome, SyncOutcome::Done { services: 1, writes } if writes > 0), "{outcome:?}");
    Ok(spent)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn metadata(name: String) -> ObjectMeta {
    ObjectMeta { name: Some(name), namespace: Some("default".to_owned()), ..ObjectMeta::default() }
}

fn service(index: usize) -> Object {
    let port = ServicePort { port: 80, protocol: Some("TCP".to_owned()), ..ServicePort::default() };
    let spec = ServiceSpec {
        cluster_ip: Some(format!("10.96.{}.{}", index / 256, index % 256)),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    let metadata = metadata(format!("service-{index}"));
    Object::Service(Box::new(Service { metadata, spec: Some(spec), ..Service::default() }))
}

/// The service's endpoints; a `round` other than 0 gives the last of them an address of its own.
fn slice(index: usize, round: usize) -> Object {
    let endpoints = (0..ENDPOINTS_PER_SERVICE).map(|number| {
        let id = index * ENDPOINTS_PER_SERVICE + number;
        let is_changed = round > 0 && number == ENDPOINTS_PER_SERVICE - 1;
        let net = if is_changed { 140 + round % 100 } else { 128 + (id >> 16) };
        Endpoint {
            addresses: vec![format!("10.{net}.{}.{}", (id >> 8) % 256, id % 256)],
            node_name: Some(format!("node-{}", id % 100)),
            ..Endpoint::default()
        }
    });
    let name = Some(String::new());
    let mut metadata = metadata(format!("service-{index}-1"));
    metadata.labels = Some([("kubernetes.io/service-name".to_owned(), format!("service-{index}"))].into());
    Object::EndpointSlice(Box::new(EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints.collect()),
        ports: Some(vec![EndpointPort { name, port: Some(8080), ..EndpointPort::default() }]),
        metadata,
    }))
}

/// The largest resident size a process had, from `/proc/PID/status` (`VmHWM`).
fn peak_memory_mib(pid: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
