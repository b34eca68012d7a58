//! What the maps held at the start, and whose it is: ids survive a restart, and what nobody owns any more goes.
//!
//! What must stay true: after the first sync no connection carries a generation of before the start, whether its
//! service port is still there, was deleted meanwhile, or was half deleted when the former agent died.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::{
    backend::BackendFlags,
    family::{V4, V6},
    frontend::{FrontendFlags, Run},
    id::{BackendId, ServicePortId},
    source_range::SourceRangeKey,
};

use super::{
    Desired, PortRecord, RecordFamily, Surroundings, Target,
    claims::Contested,
    frontends::{Origin, Runs, frontends},
    ids::{BackendTable, IdPool, Membership},
    is_named,
    maglev::{self, TableSize},
    owner,
    placement::Fallbacks,
    runs::{Contents, RunPool},
    vips::Vips,
};
use crate::{
    diff::DeltaFamily,
    maps::{Capacity, MapState},
    model::{
        node::NodeAddresses,
        service::{Port, Service, ServiceName},
    },
};

impl Desired {
    /// Knows what the maps hold, but not yet whose it is. Fresh ids start near `first_id`.
    pub fn restore(have: &MapState, capacity: Capacity, first_id: u32) -> Self {
        let mut ports: BTreeMap<ServicePortId, PortRecord> = BTreeMap::new();
        restore_family::<V4>(&mut ports, have);
        restore_family::<V6>(&mut ports, have);
        let mut backends = BackendTable::restore(have, IdPool::new(capacity.backends, first_id));
        let mut members: BTreeMap<ServicePortId, Vec<Membership>> = BTreeMap::new();
        for (key, value) in &have.members {
            let is_local = is_local::<V4>(have, key.backend) || is_local::<V6>(have, key.backend);
            let member = Membership { backend: key.backend, state: value.state, sets: value.sets, is_local };
            backends.add(&member);
            members.entry(key.service_port).or_default().push(member);
        }
        for (id, members) in members {
            ports.entry(id).or_default().members = members.into();
        }
        let mut port_ids = IdPool::new(capacity.service_ports, first_id);
        ports.keys().for_each(|id| port_ids.claim(id.0));
        let runs = restore_runs(&ports, have, &backends, capacity.slots);
        Self {
            ports,
            by_service: HashMap::new(),
            port_ids,
            backends,
            runs,
            fallbacks: Fallbacks::default(),
            contested4: Contested::default(),
            contested6: Contested::default(),
            vips4: Vips::restore(have),
            vips6: Vips::restore(have),
        }
    }

    /// Recognises the service ports of `model` by the frontends they had: ClusterIPs first, because a NodePort or an
    /// external address may have gone from one Service to another while the agent was away.
    pub fn adopt(&mut self, around: Surroundings<'_>, have: &MapState) {
        let mut services: Vec<_> = around.model.services().collect();
        services.sort_unstable_by_key(|(name, _)| *name);
        for only_cluster_ip in [true, false] {
            for (name, service) in &services {
                for port in &service.ports {
                    let known = self.by_service.get(*name).into_iter().flatten();
                    if !known.into_iter().any(|id| self.is_port(*id, &port.name)) {
                        self.adopt_port::<V4>((name, service, port), only_cluster_ip, around.addresses, have);
                        self.adopt_port::<V6>((name, service, port), only_cluster_ip, around.addresses, have);
                    }
                }
            }
        }
    }

    fn adopt_port<F: RecordFamily>(
        &mut self,
        (name, service, port): (&ServiceName, &Service, &Port),
        only_cluster_ip: bool,
        addresses: &NodeAddresses,
        have: &MapState,
    ) {
        let origin = Origin { service, port, id: ServicePortId::NONE };
        let keys = frontends::<F>(origin, Runs::default(), addresses);
        let keys = keys.keys().filter(|key| !only_cluster_ip || service.cluster_ip::<F>() == Some(key.addr));
        for id in keys.filter_map(|key| F::of(have).frontends.get(key)).map(|value| value.service_port) {
            let known = self.by_service.entry(name.clone()).or_default();
            if known.iter().any(|id| self.ports.get(id).is_some_and(|record| is_named(record, &port.name))) {
                return;
            }
            if let Some(record) = self.ports.get_mut(&id).filter(|record| record.owner.is_none()) {
                record.owner = Some(owner(name, service, port));
                known.push(id);
            }
        }
    }

    /// Wants everything gone that no Service has been recognised by: what was deleted while the agent was away (spec
    /// 8.15).
    pub fn remove_strays(&mut self, target: &mut Target<'_>) {
        let strays: Vec<_> =
            self.ports.iter().filter(|(_, record)| record.owner.is_none()).map(|(id, _)| *id).collect();
        strays.into_iter().for_each(|id| self.remove_port(id, target));
        self.move_freed_generations(target);
        self.backends.touch_all();
    }

    /// Moves the generations of ids that no service port has. A plan deletes members before it moves generations, so
    /// an agent that died between the two left connections that are still valid, of a service port that the maps
    /// otherwise know nothing of. Ids that were never used have no generation and need no write.
    fn move_freed_generations(&self, target: &mut Target<'_>) {
        let freed = target.have.generations.keys().filter(|id| !self.ports.contains_key(id));
        freed.for_each(|id| target.delta.move_generation(target.have, *id));
    }
}

fn is_local<F: DeltaFamily>(have: &MapState, id: BackendId) -> bool {
    F::of(have).backends.get(&id).is_some_and(|value| value.flags.has(BackendFlags::LOCAL))
}

/// The runs of the maps with those who hold them.
fn restore_runs(
    ports: &BTreeMap<ServicePortId, PortRecord>,
    have: &MapState,
    backends: &BackendTable,
    slots: u32,
) -> RunPool {
    let mut pool = RunPool::new(slots, have.runs());
    let mut tables = table_runs::<V4>(have);
    tables.extend(table_runs::<V6>(have));
    for run in ports.values().flat_map(|record| &record.runs) {
        pool.restore(*run, || contents(have, *run, tables.contains(run), backends));
    }
    pool
}

/// The runs that frontends take for Maglev tables.
fn table_runs<F: RecordFamily>(have: &MapState) -> BTreeSet<Run> {
    let values = F::of(have).frontends.values().filter(|value| value.flags.has(FrontendFlags::MAGLEV));
    values.flat_map(|value| value.runs()).collect()
}

/// What a run holds. It is a table only if it is the one that this release builds.
fn contents(have: &MapState, run: Run, is_table: bool, backends: &BackendTable) -> Contents {
    let slots: Vec<_> =
        have.slots.range(run.base..run.base.saturating_add(run.count)).map(|(_, id)| *id).collect();
    let size = TableSize::new(run.count).ok().filter(|_| is_table);
    let ids: BTreeSet<_> = slots.iter().copied().collect();
    let table = size.map(|size| (size, maglev::build(backends.addresses(&ids), size)));
    match table {
        Some((size, table)) if table == slots => Contents::Table(size, ids.into_iter().collect()),
        _ => Contents::List(slots.into()),
    }
}

/// Sorts what the maps of one family hold by service port.
fn restore_family<F: RecordFamily>(ports: &mut BTreeMap<ServicePortId, PortRecord>, have: &MapState) {
    for (key, value) in &F::of(have).frontends {
        let record = ports.entry(value.service_port).or_default();
        F::record_mut(record).frontends.insert(*key, *value);
        let runs = value.runs().into_iter().filter(|run| run.count > 0);
        let runs: BTreeSet<_> = runs.chain(record.runs.iter().copied()).collect();
        record.runs = runs.into_iter().collect();
    }
    let mut ranges: BTreeMap<ServicePortId, Vec<SourceRangeKey<F>>> = BTreeMap::new();
    for key in F::of(have).source_ranges.keys() {
        ranges.entry(key.data.service_port).or_default().push(*key);
    }
    for (id, ranges) in ranges {
        F::record_mut(ports.entry(id).or_default()).source_ranges = ranges.into();
    }
}
