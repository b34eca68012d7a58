//! The loop that keeps the maps as the cluster wants them.
//!
//! [`Reconciler`] is the loop's body, without time or I/O but for the maps: changes go in, [`Reconciler::sync`] writes
//! what is dirty. [`run`](run::run) is the loop itself. What must stay true: nothing is written before Services and
//! EndpointSlices have both been delivered (spec 8.11); what could not be written stays wanted until it is; `have`
//! holds confirmed writes only.

mod listing;
pub mod progress;
pub mod run;
pub mod standing;

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::sync::watch;

use crate::{
    convert::Rules,
    desired::{Desired, Exhausted, Surroundings, Target, maglev::TableSize, peers, service_cidrs},
    diff::{Delta, Failed, apply},
    maps::{MapError, MapState, Maps, dump},
    model::{
        Dirty, Model,
        family::{IpFamily, PerFamily},
        node::NodeAddresses,
        service::{Algorithm, Forwarding, ServiceName},
    },
    reconcile::progress::{Cause, Progress},
    report::{SyncReport, TunnelReport},
    source::{Change, Refusal},
};

/// Settings.
#[derive(Clone, Debug, Default)]
pub struct ReconcileConfig {
    /// Name of this node; spaces around it and upper case do not count (spec 2.3).
    pub node_name: String,
    /// Where externalIPs may lie; empty: anywhere.
    pub external_ip_cidrs: Vec<IpNet>,
    /// Algorithm of Services that name none.
    pub algorithm: Algorithm,
    /// How packets of Services that say nothing of it get to backends elsewhere.
    pub forwarding: Forwarding,
    /// From where tunnels may come beside other nodes' addresses.
    pub dsr_sources: Vec<IpNet>,
    /// Slots of Maglev tables.
    pub table_size: TableSize,
    /// The first id to give out; `None`: a random one.
    pub first_id: Option<u32>,
}

/// What a sync did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncOutcome {
    /// Nothing: the sources have not delivered everything yet.
    Waiting,
    /// The maps hold what is wanted.
    Done {
        /// Services recomputed.
        services: usize,
        /// Writes made.
        writes: usize,
    },
}

/// A sync that left something undone. It stays wanted: sync again.
#[derive(Debug, thiserror::Error)]
#[error("{count} faults, the first: {first}")]
pub struct SyncError {
    /// How many.
    pub count: usize,
    /// The first.
    pub first: Fault,
}

/// One thing that went wrong in a sync.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A map could not be written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A service needs more than there is.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

/// The control plane of one node.
#[derive(Debug)]
pub struct Reconciler<M> {
    maps: M,
    rules: Rules,
    dsr_sources: Vec<IpNet>,
    table_size: TableSize,
    model: Model,
    addresses: NodeAddresses,
    desired: Desired,
    /// What the maps hold: the dump at the start and every confirmed write since.
    have: MapState,
    /// How it is wanted otherwise.
    delta: Delta,
    dirty: BTreeSet<ServiceName>,
    all_dirty: bool,
    service_cidrs_dirty: bool,
    peers_dirty: bool,
    /// False until the first sync has computed everything.
    has_computed: bool,
    progress: Progress,
    /// podCIDRs of the own Node, once it is known; for whoever asks pods' devices.
    pod_cidrs: watch::Sender<Option<Vec<IpNet>>>,
    /// Counts the syncs that recomputed something, whether all of it could be written or not.
    changes: watch::Sender<u64>,
    stats: Stats,
}

#[derive(Debug, Default)]
struct Stats {
    is_synced: bool,
    syncs: u64,
    failures: u64,
    last_error: Option<String>,
    last_duration: Duration,
    is_full: bool,
    repairs: u64,
}

impl<M: Maps> Reconciler<M> {
    /// Reads the maps back, ids included. Nothing is written.
    pub fn new(mut maps: M, config: ReconcileConfig) -> Result<Self, MapError> {
        let have = maps.dump()?;
        let first_id = config.first_id.unwrap_or_else(random);
        let node_name = config.node_name.trim().to_lowercase();
        let rules = Rules {
            node_name: node_name.as_str().into(),
            external_ip_cidrs: config.external_ip_cidrs,
            algorithm: config.algorithm,
            forwarding: config.forwarding,
        };
        Ok(Self {
            desired: Desired::restore(&have, maps.capacity(), first_id),
            model: Model::new(rules.node_name.clone()),
            maps,
            rules,
            dsr_sources: config.dsr_sources,
            table_size: config.table_size,
            addresses: NodeAddresses::default(),
            have,
            delta: Delta::default(),
            dirty: BTreeSet::new(),
            all_dirty: true,
            service_cidrs_dirty: false,
            peers_dirty: true,
            has_computed: false,
            progress: Progress::default(),
            pod_cidrs: watch::channel(None).0,
            changes: watch::Sender::new(0),
            stats: Stats::default(),
        })
    }

    /// The podCIDRs of the own Node, from when it is known.
    pub fn watch_pod_cidrs(&self) -> watch::Receiver<Option<Vec<IpNet>>> {
        self.pod_cidrs.subscribe()
    }

    /// True while some Service's packets may go to other nodes in tunnels, so that their addresses are needed.
    pub fn wants_nodes(&self) -> bool {
        self.model.wants_nodes()
    }

    /// Takes in one change. Nothing is written.
    pub fn apply_change(&mut self, change: Change) {
        let cause = Cause::of(&change);
        match self.model.apply(change, &self.rules) {
            Dirty::Services(names) => {
                self.progress.note(cause, &names);
                self.dirty.extend(names);
            }
            Dirty::All => {
                self.all_dirty = true;
                self.publish_pod_cidrs();
            }
            Dirty::Nodes => {
                self.all_dirty = true;
                self.peers_dirty = true;
            }
            Dirty::ServiceCidrs => self.service_cidrs_dirty = true,
        }
        self.model.take_new_refusals().iter().for_each(warn);
    }

    /// An own Node without podCIDRs (some CNIs have none) is not known by them.
    fn publish_pod_cidrs(&self) {
        let found = self.model.node().pod_cidrs.to_vec();
        self.pod_cidrs.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&found);
            if differs {
                *known = Some(found);
            }
            differs
        });
    }

    /// Takes in the addresses of this node. Nothing is written.
    pub fn set_node_addresses(&mut self, addresses: NodeAddresses) {
        if self.addresses != addresses {
            let concerned = self.model.services().filter(|(_, service)| service.depends_on_node_addresses());
            self.dirty.extend(concerned.map(|(name, _)| name.clone()));
            self.addresses = addresses;
        }
    }

    /// True if [`sync`](Self::sync) has something to do.
    pub fn needs_sync(&self) -> bool {
        let is_dirty = self.all_dirty || self.service_cidrs_dirty || !self.dirty.is_empty();
        self.model.is_synced() && (is_dirty || !self.delta.is_empty() || self.desired.awaits_slots())
    }

    /// Computes what is dirty and writes what differs. After an error everything that could safely be written has
    /// been; call again for the rest.
    pub fn sync(&mut self) -> Result<SyncOutcome, SyncError> {
        if !self.model.is_synced() {
            return Ok(SyncOutcome::Waiting);
        }
        let started = Instant::now();
        self.reclaim();
        let is_full = self.all_dirty;
        let (touched, exhausted) = self.compute();
        let services = touched.len();
        let plan = self.delta.plan(&self.have);
        let written = apply(&mut self.maps, &mut self.have, &mut self.delta, &plan);
        if services > 0 || !plan.is_empty() {
            self.changes.send_modify(|count| *count += 1);
        }
        self.advance(touched);
        self.stats.last_duration = started.elapsed();
        self.stats.is_full = is_full;
        match first_fault(exhausted, written) {
            Some(error) => {
                self.stats.failures += 1;
                self.stats.last_error = Some(error.to_string());
                Err(error)
            }
            None => {
                self.stats.is_synced = true;
                self.stats.syncs += 1;
                self.stats.last_error = None;
                Ok(SyncOutcome::Done { services, writes: plan.len() })
            }
        }
    }

    /// Gives ids and slots free that the maps know no more. Services that wait for slots try again.
    fn reclaim(&mut self) {
        let freed = self.desired.reclaim(&self.delta.pending(&self.have));
        if !freed.is_empty() {
            self.dirty.extend(self.desired.short_of_slots());
        }
        for run in freed {
            for index in run.base..run.base.saturating_add(run.count) {
                self.have.slots.remove(&index);
            }
        }
    }

    fn advance(&mut self, touched: BTreeSet<ServiceName>) {
        let Self { desired, dirty, .. } = self;
        let pending = self.delta.pending(&self.have).service_ports;
        self.progress.advance(touched, &self.model, |name| {
            dirty.contains(name) || desired.ports_of(name).any(|(id, _)| pending.contains(&id))
        });
    }

    /// Recomputes the dirty services. Returns them, and what could not be had; those services stay dirty.
    fn compute(&mut self) -> (BTreeSet<ServiceName>, Vec<Exhausted>) {
        let around = Surroundings {
            model: &self.model,
            addresses: &self.addresses,
            table_size: self.table_size,
            is_first_sync: !self.has_computed,
        };
        let mut target = Target { have: &self.have, delta: &mut self.delta };
        if !self.has_computed {
            self.desired.adopt(around, &self.have);
        }
        let mut names = std::mem::take(&mut self.dirty);
        if std::mem::take(&mut self.all_dirty) {
            names.extend(self.model.services().map(|(name, _)| name.clone()));
        }
        let mut exhausted = Vec::new();
        for name in &names {
            if let Err(error) = self.desired.update(name, around, &mut target) {
                exhausted.push(error);
                self.dirty.insert(name.clone());
            }
        }
        if !self.has_computed {
            self.desired.remove_strays(&mut target);
            self.has_computed = true;
        }
        self.desired.settle(&mut target);
        self.desired.take_new_fallbacks().iter().for_each(warn);
        if std::mem::take(&mut self.service_cidrs_dirty) {
            service_cidrs::want(&self.model, &mut target);
        }
        if std::mem::take(&mut self.peers_dirty) {
            peers::want(&self.model, &self.dsr_sources, &mut target);
        }
        (names, exhausted)
    }

    /// Reads the maps and compares them with what was written. Returns whether they differed; the next sync then
    /// repairs them.
    pub fn verify(&mut self) -> Result<bool, MapError> {
        let found = self.maps.dump()?;
        let mut written = self.have.clone();
        written.forget_dead_slots();
        let differs = found != written;
        if differs {
            self.stats.repairs += 1;
            self.delta = Delta::between(&found, &self.delta.wanted_state(&self.have));
            self.have = found;
        }
        Ok(differs)
    }

    /// Whether something of a family is still to be written.
    pub fn pending(&self) -> PerFamily<bool> {
        let of = |id| Some(IpFamily::of(self.desired.backend(id)?.addr));
        let mut pending = self.delta.pending_families(of);
        for service in self.dirty.iter().filter_map(|name| self.model.service(name)) {
            for ip in &service.cluster_ips {
                *pending.of_mut(IpFamily::of(*ip)) = true;
            }
        }
        pending
    }

    /// Services that wait for the next sync.
    pub fn dirty_services(&self) -> usize {
        self.dirty.len()
    }

    /// Duration of the last sync, and whether it was of every service.
    pub fn last_sync(&self) -> (Duration, bool) {
        (self.stats.last_duration, self.stats.is_full)
    }

    /// What waits for the maps.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What waits for the maps, to take from it.
    pub fn progress_mut(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// The state of the control plane.
    pub fn report(&self) -> SyncReport {
        SyncReport {
            synced: self.stats.is_synced,
            services: self.model.services().count(),
            service_ports: self.desired.port_count(),
            frontends: self.have.v4.frontends.len() + self.have.v6.frontends.len(),
            backends: self.have.v4.backends.len() + self.have.v6.backends.len(),
            service_cidrs: self.service_cidrs(),
            tunnels: self.tunnels(),
            dirty: self.dirty.len() + self.delta.pending(&self.have).service_ports.len(),
            syncs: self.stats.syncs,
            failures: self.stats.failures,
            last_error: self.stats.last_error.clone(),
            last_sync_us: u64::try_from(self.stats.last_duration.as_micros()).unwrap_or(u64::MAX),
            repairs: self.stats.repairs,
            refusals: self.refusals(),
        }
    }

    /// The service CIDRs in the maps.
    fn service_cidrs(&self) -> Vec<String> {
        let v4 = self.have.v4.service_cidrs.values().map(dump::service_cidr_network);
        v4.chain(self.have.v6.service_cidrs.values().map(dump::service_cidr_network)).collect()
    }

    /// Who is known that may send tunnels here.
    fn tunnels(&self) -> TunnelReport {
        TunnelReport {
            wanted: self.model.wants_nodes(),
            awaits_nodes: self.model.awaits_nodes(),
            nodes: self.model.other_nodes().count(),
            peers: self.have.v4.peers.len() + self.have.v6.peers.len(),
        }
    }

    /// What was refused: bad values, and frontends that another Service has.
    pub fn refusals(&self) -> Vec<Refusal> {
        let refusals = self.model.refusals().cloned().chain(self.desired.refusals());
        refusals.chain(service_cidrs::refusals(&self.model)).collect()
    }

    /// Changes with every sync that recomputed or wrote something.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What is known about the cluster.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The maps it writes.
    pub fn maps(&self) -> &M {
        &self.maps
    }

    /// The maps it writes, to disturb them.
    pub fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }

    /// Ends the work and hands the maps back, as they are.
    pub fn into_maps(self) -> M {
        self.maps
    }
}

fn warn(refusal: &Refusal) {
    tracing::warn!(object = refusal.object, field = refusal.field, "refused: {}", refusal.reason);
}

fn first_fault(exhausted: Vec<Exhausted>, written: Result<(), Failed>) -> Option<SyncError> {
    let count = exhausted.len() + written.as_ref().err().map_or(0, |failed| failed.count);
    let exhausted = exhausted.into_iter().next().map(Fault::from);
    let first = exhausted.or_else(|| written.err().map(|failed| Fault::from(failed.first)))?;
    Some(SyncError { count, first })
}

/// Any number: where ids start, so that an agent without memory does not repeat what its predecessor gave out.
fn random() -> u32 {
    let hash = RandomState::new().hash_one(());
    (hash ^ (hash >> 32)) as u32
}
