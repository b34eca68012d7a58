//! The control plane without reading, parsing and loading: objects are handed to the reconciler, which writes real
//! maps.

use std::time::Instant;

use anyhow::{Result, ensure};
use lb_agent::{
    maps::bpf::BpfMaps,
    model::node::NodeAddresses,
    reconcile::{ReconcileConfig, Reconciler, SyncOutcome},
    source::{Change, Kind, Object},
};
use lb_tests::{
    bench::row::{Row, Target},
    pinned_maps::PinnedMaps,
};

use crate::{
    milliseconds,
    objects::{Move, NODE, Scale, service, slice},
    row,
};

const CHANGES: usize = 1000;

/// First sync, changes, a full check, and a restart.
pub(crate) fn measure(scale: Scale, has_targets: bool) -> Result<Vec<Row>> {
    let pins = PinnedMaps::create(&[])?;
    let mut rows = Vec::new();
    let mut add = |what: &str, samples, limit| {
        let target = if has_targets { Target::AtMost(limit) } else { Target::NotSet };
        rows.push(row(format!("{what}, {scale}, control plane alone"), "ms", samples, target));
    };
    let config = ReconcileConfig { node_name: NODE.to_owned(), ..ReconcileConfig::default() };
    let mut reconciler = Reconciler::new(BpfMaps::open(pins.dir())?, config.clone())?;
    add("first sync", vec![first_sync(&mut reconciler, scale)?], 2000.0);
    let changes = (1..=CHANGES).map(|round| one_change(&mut reconciler, scale, Move::nth(round, scale)));
    add("one endpoint changes", changes.collect::<Result<_>>()?, 10.0);
    let started = Instant::now();
    ensure!(!reconciler.verify()?, "the mirror differs from the maps");
    add("full check", vec![milliseconds(started)], 2000.0);
    drop(reconciler);

    let started = Instant::now();
    let mut reconciler = Reconciler::new(BpfMaps::open(pins.dir())?, config)?;
    add("restore ids", vec![milliseconds(started)], 2000.0);
    add("sync after restart", vec![first_sync(&mut reconciler, scale)?], 2000.0);
    Ok(rows)
}

/// Everything is delivered, converted and written; in milliseconds. The objects are made while the clock stands.
fn first_sync(reconciler: &mut Reconciler<BpfMaps>, scale: Scale) -> Result<f64> {
    reconciler.set_node_addresses(NodeAddresses(["192.0.2.10".parse()?].into()));
    let mut spent = 0.0;
    for index in 0..scale.services {
        let service = Change::Applied(Object::Service(Box::new(service(index))));
        let slice = Change::Applied(Object::EndpointSlice(Box::new(slice(index, scale, None))));
        let started = Instant::now();
        reconciler.apply_change(service);
        reconciler.apply_change(slice);
        spent += milliseconds(started);
    }
    let started = Instant::now();
    reconciler.apply_change(Change::Synced(Kind::Service));
    reconciler.apply_change(Change::Synced(Kind::EndpointSlice));
    let outcome = reconciler.sync()?;
    ensure!(
        matches!(outcome, SyncOutcome::Done { services, .. } if services == scale.services),
        "{outcome:?}"
    );
    Ok(spent + milliseconds(started))
}

/// One endpoint of one service gets another address; in milliseconds.
fn one_change(reconciler: &mut Reconciler<BpfMaps>, scale: Scale, change: Move) -> Result<f64> {
    let slice = slice(change.service, scale, Some(change));
    let change = Change::Applied(Object::EndpointSlice(Box::new(slice)));
    let started = Instant::now();
    reconciler.apply_change(change);
    let outcome = reconciler.sync()?;
    let spent = milliseconds(started);
    ensure!(matches!(outcome, SyncOutcome::Done { services: 1, writes } if writes > 0), "{outcome:?}");
    Ok(spent)
}
