//! Model → what the maps should hold, one service at a time.
//!
//! [`Desired`] knows, for each service port, the frontends, members, runs and source ranges it wants; the difference
//! to what the maps have goes into a [`Delta`]. Called by the reconciler for each dirty service. What must stay true:
//! an id or a run is never given to another owner while the maps still know the former one.

pub mod census;
pub mod claims;
pub mod frontends;
pub mod ids;
pub mod maglev;
pub mod peers;
pub mod placement;
mod restore;
pub mod runs;
pub mod service_cidrs;
pub mod vips;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::{
    backend::{MemberKey, MemberSets, MemberValue},
    family::{Family, V4, V6},
    frontend::{FrontendFlags, FrontendKey, FrontendValue, Run},
    id::{BackendId, ServicePortId},
    source_range::SourceRangeKey,
};

use crate::{
    desired::{
        census::{NoLocal, no_local},
        claims::Contested,
        frontends::{Origin, Runs},
        ids::{BackendTable, IdPool, Membership},
        maglev::TableSize,
        placement::Fallbacks,
        runs::RunPool,
        vips::Vips,
    },
    diff::{Delta, DeltaFamily, Pending},
    maps::MapState,
    model::{
        Model,
        backend::{Backend, BackendAddress, gather},
        family::PerFamily,
        node::NodeAddresses,
        service::{Algorithm, Forwarding, Port, PortName, Service, ServiceName},
    },
    select::{Policies, select},
    source::Refusal,
};

/// Something there is no more of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// Service port ids.
    #[error("{service}: no id left for a service port; raise --max-service-ports")]
    ServicePorts {
        /// Who needs one.
        service: ServiceName,
    },
    /// Backend ids.
    #[error("{service}: no id left for a backend; raise --max-backends")]
    Backends {
        /// Who needs one.
        service: ServiceName,
    },
    /// Slots.
    #[error("{service}: no {count} slots in a row left; raise --max-slots")]
    Slots {
        /// Who needs them.
        service: ServiceName,
        /// How many.
        count: u32,
    },
}

/// Which service port a record is; in the order in which contested frontends are given out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    created_s: i64,
    service: ServiceName,
    port: PortName,
}

/// What one service port wants.
#[derive(Debug, Default)]
pub struct PortRecord {
    /// `None`: read from the maps, and not recognised as anybody's yet.
    owner: Option<Owner>,
    v4: FamilyRecord<V4>,
    v6: FamilyRecord<V6>,
    /// Sorted.
    members: Box<[Membership]>,
    /// The runs it holds, each as often as it holds it.
    runs: Box<[Run]>,
    /// How backends are chosen from them.
    algorithm: Algorithm,
    no_local: PerFamily<NoLocal>,
}

/// What one service port wants in one family.
#[derive(Debug, Default)]
pub struct FamilyRecord<F: Family> {
    frontends: BTreeMap<FrontendKey<F>, FrontendValue>,
    source_ranges: Box<[SourceRangeKey<F>]>,
}

/// A family with its share of the records.
pub trait RecordFamily: DeltaFamily {
    /// This family's share.
    fn record(record: &PortRecord) -> &FamilyRecord<Self>;
    /// This family's share, to change it.
    fn record_mut(record: &mut PortRecord) -> &mut FamilyRecord<Self>;
    /// The frontends of this family that several service ports claim.
    fn contested(desired: &mut Desired) -> (&mut Contested<Self>, &BTreeMap<ServicePortId, PortRecord>);
    /// The VIPs of this family.
    fn vips(desired: &mut Desired) -> &mut Vips<Self>;
}

impl RecordFamily for V4 {
    fn record(record: &PortRecord) -> &FamilyRecord<Self> {
        &record.v4
    }
    fn record_mut(record: &mut PortRecord) -> &mut FamilyRecord<Self> {
        &mut record.v4
    }
    fn contested(desired: &mut Desired) -> (&mut Contested<Self>, &BTreeMap<ServicePortId, PortRecord>) {
        (&mut desired.contested4, &desired.ports)
    }
    fn vips(desired: &mut Desired) -> &mut Vips<Self> {
        &mut desired.vips4
    }
}

impl RecordFamily for V6 {
    fn record(record: &PortRecord) -> &FamilyRecord<Self> {
        &record.v6
    }
    fn record_mut(record: &mut PortRecord) -> &mut FamilyRecord<Self> {
        &mut record.v6
    }
    fn contested(desired: &mut Desired) -> (&mut Contested<Self>, &BTreeMap<ServicePortId, PortRecord>) {
        (&mut desired.contested6, &desired.ports)
    }
    fn vips(desired: &mut Desired) -> &mut Vips<Self> {
        &mut desired.vips6
    }
}

/// What the maps should hold.
#[derive(Debug)]
pub struct Desired {
    ports: BTreeMap<ServicePortId, PortRecord>,
    by_service: HashMap<ServiceName, Vec<ServicePortId>>,
    port_ids: IdPool,
    backends: BackendTable,
    runs: RunPool,
    fallbacks: Fallbacks,
    contested4: Contested<V4>,
    contested6: Contested<V6>,
    vips4: Vips<V4>,
    vips6: Vips<V6>,
}

/// What is known around a service.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The cluster.
    pub model: &'a Model,
    /// This node's addresses.
    pub addresses: &'a NodeAddresses,
    /// Slots of Maglev tables.
    pub table_size: TableSize,
    /// True at the first sync after a start: every connection looks its backend up once (generations move).
    pub is_first_sync: bool,
}

/// The maps, as they are and as they are wanted.
#[derive(Debug)]
pub struct Target<'a> {
    /// As they are.
    pub have: &'a MapState,
    /// How they are wanted otherwise.
    pub delta: &'a mut Delta,
}

/// A service port before its runs are known.
struct Draft {
    members: Vec<Membership>,
    v4: Sets,
    v6: Sets,
}

/// The backends of one service port in one family, in order.
#[derive(Default)]
struct Sets {
    cluster: Vec<BackendId>,
    local: Vec<BackendId>,
    has_any: bool,
    no_local: NoLocal,
}

impl Desired {
    /// Wants what `name` needs, or nothing if there is no such Service (any more). On an error the service keeps
    /// what it had.
    pub fn update(
        &mut self,
        name: &ServiceName,
        around: Surroundings<'_>,
        target: &mut Target<'_>,
    ) -> Result<(), Exhausted> {
        let former = self.by_service.get(name).cloned().unwrap_or_default();
        let mut current = Vec::new();
        if let Some(service) = around.model.service(name) {
            for port in &service.ports {
                let id = former.iter().copied().find(|id| self.is_port(*id, &port.name));
                // The API refuses two ports of one name and protocol; in manifests the first counts.
                if id.is_some_and(|id| current.contains(&id)) {
                    continue;
                }
                let id = self.update_port(id, (name, service, port), around, target)?;
                if !former.contains(&id) {
                    self.by_service.entry(name.clone()).or_default().push(id);
                }
                current.push(id);
            }
        }
        former.into_iter().filter(|id| !current.contains(id)).for_each(|id| self.remove_port(id, target));
        match current.is_empty() {
            true => drop(self.by_service.remove(name)),
            false => drop(self.by_service.insert(name.clone(), current)),
        }
        Ok(())
    }

    /// Wants the backends and VIPs of all services as they are by now. Last step of a computation.
    pub fn settle(&mut self, target: &mut Target<'_>) {
        self.backends.settle(target.have, target.delta);
        self.vips4.settle(target);
        self.vips6.settle(target);
    }

    /// Frees ids and runs that the maps know no more, and returns the runs.
    pub fn reclaim(&mut self, pending: &Pending) -> Vec<Run> {
        self.port_ids.reclaim(|id| pending.service_ports.contains(&ServicePortId(id)));
        self.backends.reclaim(|id| pending.backends.contains(&BackendId(id)));
        self.runs.reclaim(|run| pending.runs.contains(&run.base))
    }

    /// What Services ask for and do not get: frontends, Maglev tables.
    pub fn refusals(&self) -> BTreeSet<Refusal> {
        let mut refusals = self.contested4.refusals(&self.ports);
        refusals.extend(self.contested6.refusals(&self.ports));
        refusals.extend(self.fallbacks.refusals());
        refusals
    }

    /// The service ports of a Service with their ids.
    pub fn ports_of(&self, name: &ServiceName) -> impl Iterator<Item = (ServicePortId, &PortRecord)> {
        let ids = self.by_service.get(name).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.ports.get(id)?)))
    }

    /// The service port of this id.
    pub fn port(&self, id: ServicePortId) -> Option<&PortRecord> {
        self.ports.get(&id)
    }

    /// Number of service ports.
    pub fn port_count(&self) -> usize {
        self.ports.len()
    }

    /// The id's backend.
    pub fn backend(&self, id: BackendId) -> Option<BackendAddress> {
        self.backends.address(id)
    }

    fn is_port(&self, id: ServicePortId, name: &PortName) -> bool {
        self.ports.get(&id).is_some_and(|record| is_named(record, name))
    }

    /// Wants one service port as its Service says and returns its id.
    fn update_port(
        &mut self,
        known: Option<ServicePortId>,
        (name, service, port): (&ServiceName, &Service, &Port),
        around: Surroundings<'_>,
        target: &mut Target<'_>,
    ) -> Result<ServicePortId, Exhausted> {
        let exhausted = || Exhausted::ServicePorts { service: name.clone() };
        let id = known.or_else(|| self.port_ids.allocate().map(ServicePortId)).ok_or_else(exhausted)?;
        let placed = self.draft((name, service, port), around).and_then(|draft| {
            let placement = self.place((name, service), &draft, around.table_size, target)?;
            Ok((draft, placement))
        });
        let (draft, placement) = match placed {
            Ok(placed) => placed,
            Err(error) => {
                // The id was drawn in vain if it is nobody's yet.
                known.is_none().then(|| self.port_ids.retire(id.0));
                return Err(error);
            }
        };
        let record = self.ports.entry(id).or_default();
        record.owner = Some(owner(name, service, port));
        record.no_local = PerFamily { v4: draft.v4.no_local, v6: draft.v6.no_local };
        let (runs4, runs6) = (placement.v4, placement.v6);
        self.set_placement(id, name, placement, target);
        let origin = Origin { service, port, id };
        self.set_family::<V4>(origin, runs4, around.addresses, target);
        self.set_family::<V6>(origin, runs6, around.addresses, target);
        self.set_members(id, draft.members, around.is_first_sync, target);
        Ok(id)
    }

    /// Gathers and selects the backends and gives them ids.
    fn draft(
        &mut self,
        (name, service, port): (&ServiceName, &Service, &Port),
        around: Surroundings<'_>,
    ) -> Result<Draft, Exhausted> {
        let mut members = Vec::new();
        let v4 = self.draft_family::<V4>((name, service, port), around, &mut members)?;
        let v6 = self.draft_family::<V6>((name, service, port), around, &mut members)?;
        members.sort_unstable();
        Ok(Draft { members, v4, v6 })
    }

    fn draft_family<F: RecordFamily>(
        &mut self,
        (name, service, port): (&ServiceName, &Service, &Port),
        around: Surroundings<'_>,
        members: &mut Vec<Membership>,
    ) -> Result<Sets, Exhausted> {
        if service.cluster_ip::<F>().is_none() {
            return Ok(Sets::default());
        }
        let backends = gather::<F>(around.model.slices(name), &port.name, around.model.node());
        let mut ids = Vec::with_capacity(backends.len());
        for backend in &backends {
            // Whoever does not serve at all is no member, is never selected, and needs no id.
            if backend.host.conditions.state().is_none() {
                ids.push(BackendId::NONE);
                continue;
            }
            let exhausted = || Exhausted::Backends { service: name.clone() };
            let id = self.backends.id(address(backend, port)).ok_or_else(exhausted)?;
            let node = backend.host.node.as_deref();
            let end = node.and_then(|node| around.model.tunnel_end::<F>(node));
            if end.is_some() || !around.model.awaits_nodes() {
                self.backends.set_node(id, end);
            }
            ids.push(id);
        }
        let policies = policies::<F>(service, port);
        let selection = select(&backends, policies, around.model.node());
        let mut sets = vec![MemberSets::default(); ids.len()];
        selection.cluster.iter().for_each(|&index| sets[index] = sets[index].with(MemberSets::CLUSTER));
        selection.local.iter().for_each(|&index| sets[index] = sets[index].with(MemberSets::LOCAL));
        members.extend(backends.iter().zip(&ids).zip(sets).filter_map(|((backend, id), sets)| {
            let state = backend.host.conditions.state()?;
            Some(Membership { backend: *id, state, sets, is_local: backend.is_local })
        }));
        Ok(Sets {
            no_local: no_local(policies, &selection),
            cluster: selection.cluster.into_iter().map(|index| ids[index]).collect(),
            local: selection.local.into_iter().map(|index| ids[index]).collect(),
            has_any: selection.has_any,
        })
    }

    fn set_family<F: RecordFamily>(
        &mut self,
        origin: Origin<'_>,
        runs: Runs,
        addresses: &NodeAddresses,
        target: &mut Target<'_>,
    ) {
        let frontends = frontends::frontends::<F>(origin, runs, addresses);
        let source_ranges = frontends::source_ranges::<F>(origin, addresses);
        self.replace_family(
            origin.id,
            FamilyRecord { frontends, source_ranges: source_ranges.into() },
            target,
        );
    }

    /// Puts `record` in the place of what service port `id` had, and wants what differs.
    fn replace_family<F: RecordFamily>(
        &mut self,
        id: ServicePortId,
        record: FamilyRecord<F>,
        target: &mut Target<'_>,
    ) {
        let keys: Vec<_> = record.frontends.keys().copied().collect();
        F::vips(self).add(&record.frontends);
        let place = F::record_mut(self.ports.entry(id).or_default());
        let former = std::mem::replace(place, record);
        for key in &former.source_ranges {
            target.delta.want_source_range(target.have, *key, false);
        }
        for key in &place.source_ranges {
            target.delta.want_source_range(target.have, *key, true);
        }
        F::vips(self).remove(&former.frontends);
        let (contested, ports) = F::contested(self);
        for key in former.frontends.into_keys().filter(|key| keys.binary_search(key).is_err()) {
            contested.yield_up(id, key, ports, target);
        }
        for key in keys {
            contested.claim(id, key, ports, target);
        }
    }

    /// Wants `members` and nobody else. Connections look again when one has gone or changed its state; one more, or
    /// one that stands in other sets, changes nothing for them.
    fn set_members(
        &mut self,
        id: ServicePortId,
        members: Vec<Membership>,
        is_first_sync: bool,
        target: &mut Target<'_>,
    ) {
        let record = self.ports.entry(id).or_default();
        let former = std::mem::replace(&mut record.members, members.into());
        let gone: Vec<_> =
            former.iter().filter(|member| record.members.binary_search(member).is_err()).copied().collect();
        let added = record.members.iter().filter(|member| former.binary_search(member).is_err());
        let added: Vec<_> = added.copied().collect();
        added.iter().for_each(|member| self.backends.add(member));
        gone.iter().for_each(|member| self.backends.remove(member));
        for member in &gone {
            let key = MemberKey { service_port: id, backend: member.backend };
            target.delta.want_member(target.have, key, None);
        }
        for member in &added {
            let key = MemberKey { service_port: id, backend: member.backend };
            target.delta.want_member(target.have, key, Some(MemberValue::new(member.state, member.sets)));
        }
        let stays = |member: &Membership| {
            added.iter().any(|other| (other.backend, other.state) == (member.backend, member.state))
        };
        if is_first_sync || gone.iter().any(|member| !stays(member)) {
            target.delta.move_generation(target.have, id);
        }
    }

    /// Wants nothing of a service port any more.
    fn remove_port(&mut self, id: ServicePortId, target: &mut Target<'_>) {
        self.replace_family::<V4>(id, FamilyRecord::default(), target);
        self.replace_family::<V6>(id, FamilyRecord::default(), target);
        self.remove_placement(id, target);
        self.set_members(id, Vec::new(), false, target);
        self.ports.remove(&id);
        self.port_ids.retire(id.0);
    }
}

fn owner(name: &ServiceName, service: &Service, port: &Port) -> Owner {
    Owner { created_s: service.created_s, service: name.clone(), port: port.name.clone() }
}

fn is_named(record: &PortRecord, name: &PortName) -> bool {
    record.owner.as_ref().is_some_and(|owner| owner.port == *name)
}

fn address(backend: &Backend<'_>, port: &Port) -> BackendAddress {
    BackendAddress { addr: backend.host.addr, port: backend.port, protocol: port.name.protocol }
}

fn policies<F: Family>(service: &Service, port: &Port) -> Policies {
    Policies {
        internal: service.internal_policy,
        external: service.external_policy,
        is_externally_accessible: service.is_externally_accessible::<F>(port),
        returns_directly: service.returns_directly(port),
    }
}

fn has_direct<F: Family>(record: &FamilyRecord<F>) -> bool {
    record.frontends.values().any(|value| value.flags.has(FrontendFlags::DSR))
}

impl PortRecord {
    /// The service port's members.
    pub fn members(&self) -> &[Membership] {
        &self.members
    }

    /// How what clients outside send gets to backends elsewhere.
    pub fn forwarding(&self) -> Forwarding {
        let is_direct = has_direct(&self.v4) || has_direct(&self.v6);
        if is_direct { Forwarding::Dsr } else { Forwarding::Snat }
    }

    /// How its connections get their backends.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Which port of its Service it is.
    pub fn port(&self) -> Option<&PortName> {
        self.owner.as_ref().map(|owner| &owner.port)
    }

    /// What it claims in family `F`, whether it gets it or not.
    pub fn frontends<F: RecordFamily>(&self) -> &BTreeMap<FrontendKey<F>, FrontendValue> {
        &F::record(self).frontends
    }
}
