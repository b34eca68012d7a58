//! (have, want) → an ordered list of writes, every prefix of which leaves the datapath correct.
//!
//! Called by the reconciler: incrementally through [`Delta`], which knows only the entries that differ, and in full
//! through [`diff`] after a restart of the maps or a failed verification. [`apply()`] makes the writes and leaves out
//! those that a failed one has made unsafe.
//!
//! # The order, and what each step prevents
//!
//! | step | before | else |
//! |---|---|---|
//! | 1 service CIDRs that stay written to their new places, then others, and VIPs, removed | | what is no longer ours to refuse would be refused while the rest is written |
//! | 2 backends written | 3, 5 | a slot or a member would name an id without an address: connections are refused |
//! | 3 members written | 6 | a connection to a backend not yet a member would be cut at its first generation check |
//! | 4 source ranges written | 6 | a frontend that has just been restricted would refuse those it should let in |
//! | 5 slots written | 6 | a frontend would point into a run that is empty, or another's |
//! | 6 frontends written | 7–12 | **the commit point**: each value switches atomically from the old run to the new |
//! | 7 service CIDRs, VIPs written | | clients of a frontend about to be written would be refused |
//! | 8 frontends deleted | 10, 12 | a client could still choose a backend that is no member any more |
//! | 9 source ranges deleted | | a frontend still restricted would refuse everybody |
//! | 10 members deleted | 11 | connections that look at the generation first would take the new one and stay |
//! | 11 generations moved | 12 | connections would go on to a backend whose id may soon mean another |
//! | 12 backends deleted | | |
//!
//! `PEERS` depends on nothing else and goes between 1 and 2, what comes before what goes.
//!
//! Runs that no frontend points to any more need no write: nobody reads them. They are written afresh by a later
//! plan, never by the same one, so a program that read the old frontend an instant ago still finds its old run.

mod apply;

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    backend::{BackendValue, MemberKey, MemberValue},
    cidr::CidrValue,
    family::{Family, V4, V6},
    frontend::{FrontendKey, FrontendValue, Run},
    id::{BackendId, ServicePortId},
    peer::{PeerKey, PeerValue},
    source_range::{SourceRangeKey, SourceRangeValue},
    vip::{VipKey, VipValue},
};

use crate::{
    maps::{FamilyState, FamilyWrite, MapFamily, MapState, Write},
    model::family::{IpFamily, PerFamily},
};

pub use apply::{Failed, apply};

/// Writes in the order in which they are safe.
pub type Plan = Vec<Write>;

/// The plan that makes `want` of `have`.
pub fn diff(have: &MapState, want: &MapState) -> Plan {
    Delta::between(have, want).plan(have)
}

/// The entries in which what is wanted differs from what the maps have; `None`: wanted gone.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    v4: FamilyDelta<V4>,
    v6: FamilyDelta<V6>,
    members: Changes<MemberKey, MemberValue>,
    slots: Changes<u32, BackendId>,
    generations: Changes<ServicePortId, u32>,
}

type Changes<K, V> = BTreeMap<K, Option<V>>;

/// A [`Delta`]'s share of one family.
#[derive(Clone, Debug, Default)]
pub struct FamilyDelta<F: Family> {
    frontends: Changes<FrontendKey<F>, FrontendValue>,
    backends: Changes<BackendId, BackendValue<F>>,
    source_ranges: Changes<SourceRangeKey<F>, SourceRangeValue>,
    service_cidrs: Changes<u32, CidrValue<F>>,
    vips: Changes<VipKey<F>, VipValue>,
    peers: Changes<PeerKey<F>, PeerValue>,
}

/// A family with its share of a [`Delta`].
pub trait DeltaFamily: MapFamily {
    /// This family's share.
    fn delta(delta: &Delta) -> &FamilyDelta<Self>;
    /// This family's share, to change it.
    fn delta_mut(delta: &mut Delta) -> &mut FamilyDelta<Self>;
}

impl DeltaFamily for V4 {
    fn delta(delta: &Delta) -> &FamilyDelta<Self> {
        &delta.v4
    }
    fn delta_mut(delta: &mut Delta) -> &mut FamilyDelta<Self> {
        &mut delta.v4
    }
}

impl DeltaFamily for V6 {
    fn delta(delta: &Delta) -> &FamilyDelta<Self> {
        &delta.v6
    }
    fn delta_mut(delta: &mut Delta) -> &mut FamilyDelta<Self> {
        &mut delta.v6
    }
}

/// Wants `value` under `key`; a wish that `have` already fulfils is no difference.
fn want<K: Ord, V: PartialEq>(changes: &mut Changes<K, V>, have: Option<&V>, key: K, value: Option<V>) {
    if have == value.as_ref() {
        changes.remove(&key);
    } else {
        changes.insert(key, value);
    }
}

/// What is wanted under `key`.
fn wanted<K: Ord, V: Copy>(changes: &Changes<K, V>, have: Option<&V>, key: &K) -> Option<V> {
    changes.get(key).copied().unwrap_or(have.copied())
}

/// Every key of either side with what `want` has for it.
fn between<K: Ord + Copy, V: PartialEq + Copy>(
    have: &BTreeMap<K, V>,
    want: &BTreeMap<K, V>,
) -> Changes<K, V> {
    let gone = have.keys().filter(|key| !want.contains_key(key)).map(|key| (*key, None));
    let changed = want.iter().filter(|(key, value)| have.get(key) != Some(value));
    gone.chain(changed.map(|(key, value)| (*key, Some(*value)))).collect()
}

impl Delta {
    /// Everything in which two contents differ. Slots and generations are never deleted.
    pub fn between(have: &MapState, want: &MapState) -> Self {
        let mut delta = Self {
            v4: FamilyDelta::between(&have.v4, &want.v4),
            v6: FamilyDelta::between(&have.v6, &want.v6),
            members: between(&have.members, &want.members),
            slots: between(&have.slots, &want.slots),
            generations: between(&have.generations, &want.generations),
        };
        delta.slots.retain(|_, backend| backend.is_some());
        delta.generations.retain(|_, generation| generation.is_some());
        delta
    }

    /// True if nothing differs.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty()
            && self.v6.is_empty()
            && self.members.is_empty()
            && self.slots.is_empty()
            && self.generations.is_empty()
    }

    /// Whether something of a family differs. `family_of` a backend decides for what is shared; what nobody can tell
    /// counts for both.
    pub fn pending_families(&self, family_of: impl Fn(BackendId) -> Option<IpFamily>) -> PerFamily<bool> {
        let mut pending = PerFamily { v4: !self.v4.is_empty(), v6: !self.v6.is_empty() };
        let members = self.members.keys().map(|key| key.backend);
        for id in members.chain(self.slots.values().flatten().copied()) {
            match family_of(id) {
                Some(family) => *pending.of_mut(family) = true,
                None => pending = PerFamily { v4: true, v6: true },
            }
        }
        let only_generations = !self.generations.is_empty() && !pending.v4 && !pending.v6;
        if only_generations { PerFamily { v4: true, v6: true } } else { pending }
    }

    /// Wants a frontend.
    pub fn want_frontend<F: DeltaFamily>(
        &mut self,
        have: &MapState,
        key: FrontendKey<F>,
        value: Option<FrontendValue>,
    ) {
        want(&mut F::delta_mut(self).frontends, F::of(have).frontends.get(&key), key, value);
    }

    /// The frontend that is wanted under `key`.
    pub fn wanted_frontend<F: DeltaFamily>(
        &self,
        have: &MapState,
        key: &FrontendKey<F>,
    ) -> Option<FrontendValue> {
        wanted(&F::delta(self).frontends, F::of(have).frontends.get(key), key)
    }

    /// Wants a backend.
    pub fn want_backend<F: DeltaFamily>(
        &mut self,
        have: &MapState,
        id: BackendId,
        value: Option<BackendValue<F>>,
    ) {
        want(&mut F::delta_mut(self).backends, F::of(have).backends.get(&id), id, value);
    }

    /// Wants a network among a service port's source ranges.
    pub fn want_source_range<F: DeltaFamily>(
        &mut self,
        have: &MapState,
        key: SourceRangeKey<F>,
        is_wanted: bool,
    ) {
        let value = is_wanted.then_some(SourceRangeValue { allowed: 1 });
        want(&mut F::delta_mut(self).source_ranges, F::of(have).source_ranges.get(&key), key, value);
    }

    /// Wants a service CIDR in place `index`, or none.
    pub fn want_service_cidr<F: DeltaFamily>(
        &mut self,
        have: &MapState,
        index: u32,
        value: Option<CidrValue<F>>,
    ) {
        want(&mut F::delta_mut(self).service_cidrs, F::of(have).service_cidrs.get(&index), index, value);
    }

    /// Wants an address among the VIPs, or not.
    pub fn want_vip<F: DeltaFamily>(&mut self, have: &MapState, key: VipKey<F>, is_wanted: bool) {
        let value = is_wanted.then_some(VipValue { used: 1 });
        want(&mut F::delta_mut(self).vips, F::of(have).vips.get(&key), key, value);
    }

    /// Wants a network among those whose tunnels end here, or not.
    pub fn want_peer<F: DeltaFamily>(&mut self, have: &MapState, key: PeerKey<F>, is_wanted: bool) {
        let value = is_wanted.then_some(PeerValue { allowed: 1 });
        want(&mut F::delta_mut(self).peers, F::of(have).peers.get(&key), key, value);
    }

    /// The networks whose tunnels end here by now, or will.
    pub fn known_peers<F: DeltaFamily>(&self, have: &MapState) -> BTreeSet<PeerKey<F>> {
        F::of(have).peers.keys().chain(F::delta(self).peers.keys()).copied().collect()
    }

    /// Wants a member.
    pub fn want_member(&mut self, have: &MapState, key: MemberKey, value: Option<MemberValue>) {
        want(&mut self.members, have.members.get(&key), key, value);
    }

    /// Wants `backends` in the slots from `run.base` on.
    pub fn want_run(&mut self, have: &MapState, run: Run, backends: &[BackendId]) {
        for (index, backend) in (run.base..).zip(backends) {
            want(&mut self.slots, have.slots.get(&index), index, Some(*backend));
        }
    }

    /// True if `run` is wanted, or there, as [`want_run`](Self::want_run) was told.
    pub fn wants_run(&self, have: &MapState, run: Run) -> bool {
        wanted(&self.slots, have.slots.get(&run.base), &run.base).is_some()
    }

    /// Nothing is wanted in the slots of `run` any more.
    pub fn forget_run(&mut self, run: Run) {
        for index in slots_of(run) {
            self.slots.remove(&index);
        }
    }

    /// Wants the generation of a service port to be another than any so far.
    pub fn move_generation(&mut self, have: &MapState, id: ServicePortId) {
        let current = have.generations.get(&id);
        // Zero is what an untouched entry of the array holds.
        let next = current.copied().unwrap_or_default().checked_add(1).unwrap_or(1);
        want(&mut self.generations, current, id, Some(next));
    }

    /// What is wanted in whole.
    pub fn wanted_state(&self, have: &MapState) -> MapState {
        let mut state = have.clone();
        for write in self.plan(have) {
            state.apply(&write);
        }
        state.forget_dead_slots();
        state
    }

    /// What the maps still have although it is wanted otherwise: what must not be given away yet.
    pub fn pending(&self, have: &MapState) -> Pending {
        let mut pending = Pending::default();
        pending.add_family::<V4>(self, have);
        pending.add_family::<V6>(self, have);
        pending.service_ports.extend(self.members.keys().map(|key| key.service_port));
        pending.backends.extend(self.members.keys().map(|key| key.backend));
        pending
    }

    /// The writes in the order the module describes.
    pub fn plan(&self, have: &MapState) -> Plan {
        let mut plan = Plan::new();
        self.v4.plan_service_cidrs_that_go(&mut plan, &have.v4);
        self.v6.plan_service_cidrs_that_go(&mut plan, &have.v6);
        self.v4.plan_vips(&mut plan, false);
        self.v6.plan_vips(&mut plan, false);
        self.v4.plan_peers(&mut plan);
        self.v6.plan_peers(&mut plan);
        self.v4.plan_backends(&mut plan, true);
        self.v6.plan_backends(&mut plan, true);
        plan.extend(puts(&self.members).map(|(key, value)| Write::Member(key, Some(value))));
        self.v4.plan_source_ranges(&mut plan, true);
        self.v6.plan_source_ranges(&mut plan, true);
        plan.extend(puts(&self.slots).map(|(index, backend)| Write::Slot(index, backend)));
        self.v4.plan_frontends(&mut plan, true);
        self.v6.plan_frontends(&mut plan, true);
        self.v4.plan_service_cidrs_that_come(&mut plan, &have.v4);
        self.v6.plan_service_cidrs_that_come(&mut plan, &have.v6);
        self.v4.plan_vips(&mut plan, true);
        self.v6.plan_vips(&mut plan, true);
        self.v4.plan_frontends(&mut plan, false);
        self.v6.plan_frontends(&mut plan, false);
        self.v4.plan_source_ranges(&mut plan, false);
        self.v6.plan_source_ranges(&mut plan, false);
        plan.extend(deletes(&self.members).map(|key| Write::Member(key, None)));
        plan.extend(puts(&self.generations).map(|(id, generation)| Write::Generation(id, generation)));
        self.v4.plan_backends(&mut plan, false);
        self.v6.plan_backends(&mut plan, false);
        debug_assert!(plan.iter().all(|write| !is_done(write, have)));
        plan
    }

    /// A wish that has been fulfilled.
    fn confirm(&mut self, write: &Write) {
        match write {
            Write::V4(write) => self.v4.confirm(write),
            Write::V6(write) => self.v6.confirm(write),
            Write::Member(key, _) => drop(self.members.remove(key)),
            Write::Slot(index, _) => drop(self.slots.remove(index)),
            Write::Generation(id, _) => drop(self.generations.remove(id)),
        }
    }
}

/// Whether a write would change nothing.
fn is_done(write: &Write, have: &MapState) -> bool {
    match write {
        Write::Member(key, value) => have.members.get(key) == value.as_ref(),
        Write::Slot(index, backend) => have.slots.get(index) == Some(backend),
        Write::Generation(id, generation) => have.generations.get(id) == Some(generation),
        _ => false,
    }
}

fn slots_of(run: Run) -> std::ops::Range<u32> {
    run.base..run.base.saturating_add(run.count)
}

fn puts<K: Copy, V: Copy>(changes: &Changes<K, V>) -> impl Iterator<Item = (K, V)> {
    changes.iter().filter_map(|(key, value)| Some((*key, (*value)?)))
}

fn deletes<K: Copy, V>(changes: &Changes<K, V>) -> impl Iterator<Item = K> {
    changes.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| *key)
}

/// Either the puts or the deletes of `changes`, as writes.
fn planned<K: Copy, V: Copy>(
    changes: &Changes<K, V>,
    puts: bool,
    write: impl Fn(K, Option<V>) -> Write,
) -> impl Iterator<Item = Write> {
    changes
        .iter()
        .filter(move |(_, value)| value.is_some() == puts)
        .map(move |(key, value)| write(*key, *value))
}

impl<F: MapFamily> FamilyDelta<F> {
    fn between(have: &FamilyState<F>, want: &FamilyState<F>) -> Self {
        Self {
            frontends: between(&have.frontends, &want.frontends),
            backends: between(&have.backends, &want.backends),
            source_ranges: between(&have.source_ranges, &want.source_ranges),
            service_cidrs: between(&have.service_cidrs, &want.service_cidrs),
            vips: between(&have.vips, &want.vips),
            peers: between(&have.peers, &want.peers),
        }
    }

    fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.backends.is_empty()
            && self.source_ranges.is_empty()
            && self.service_cidrs.is_empty()
            && self.vips.is_empty()
            && self.peers.is_empty()
    }

    fn plan_backends(&self, plan: &mut Plan, puts: bool) {
        plan.extend(planned(&self.backends, puts, |id, value| F::write(FamilyWrite::Backend(id, value))));
    }

    fn plan_source_ranges(&self, plan: &mut Plan, puts: bool) {
        plan.extend(planned(&self.source_ranges, puts, |key, value| {
            F::write(FamilyWrite::SourceRange(key, value))
        }));
    }

    /// Networks that change their place are written first, then the places that are free are.
    fn plan_service_cidrs_that_go(&self, plan: &mut Plan, have: &FamilyState<F>) {
        plan.extend(self.service_cidr_puts(have, true));
        plan.extend(planned(&self.service_cidrs, false, |index, value| {
            F::write(FamilyWrite::ServiceCidr(index, value))
        }));
    }

    fn plan_service_cidrs_that_come(&self, plan: &mut Plan, have: &FamilyState<F>) {
        plan.extend(self.service_cidr_puts(have, false));
    }

    /// Networks to be written that the map has elsewhere, or those that it does not have.
    fn service_cidr_puts(&self, have: &FamilyState<F>, is_there: bool) -> impl Iterator<Item = Write> {
        puts(&self.service_cidrs)
            .filter(move |(_, value)| have.service_cidrs.values().any(|known| known == value) == is_there)
            .map(|(index, value)| F::write(FamilyWrite::ServiceCidr(index, Some(value))))
    }

    fn plan_vips(&self, plan: &mut Plan, puts: bool) {
        plan.extend(planned(&self.vips, puts, |key, value| F::write(FamilyWrite::Vip(key, value))));
    }

    /// Those that come before those that go: a node may change the address of which a network was known.
    fn plan_peers(&self, plan: &mut Plan) {
        for puts in [true, false] {
            plan.extend(planned(&self.peers, puts, |key, value| F::write(FamilyWrite::Peer(key, value))));
        }
    }

    fn plan_frontends(&self, plan: &mut Plan, puts: bool) {
        plan.extend(planned(&self.frontends, puts, |key, value| F::write(FamilyWrite::Frontend(key, value))));
    }

    fn confirm(&mut self, write: &FamilyWrite<F>) {
        match write {
            FamilyWrite::Frontend(key, _) => drop(self.frontends.remove(key)),
            FamilyWrite::Backend(id, _) => drop(self.backends.remove(id)),
            FamilyWrite::SourceRange(key, _) => drop(self.source_ranges.remove(key)),
            FamilyWrite::ServiceCidr(index, _) => drop(self.service_cidrs.remove(index)),
            FamilyWrite::Vip(key, _) => drop(self.vips.remove(key)),
            FamilyWrite::Peer(key, _) => drop(self.peers.remove(key)),
        }
    }
}

/// What unfinished writes still need.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// Service ports of which something is still to be written or deleted.
    pub service_ports: BTreeSet<ServicePortId>,
    /// Backends likewise.
    pub backends: BTreeSet<BackendId>,
    /// First slots of runs to which a frontend in the maps may still point.
    pub runs: BTreeSet<u32>,
}

impl Pending {
    fn add_family<F: DeltaFamily>(&mut self, delta: &Delta, have: &MapState) {
        let (delta, have) = (F::delta(delta), F::of(have));
        for (key, value) in &delta.frontends {
            let former = have.frontends.get(key);
            self.service_ports.extend(value.iter().chain(former).map(|value| value.service_port));
            let runs = former.iter().flat_map(|former| former.runs());
            self.runs.extend(runs.filter(|run| run.count > 0).map(|run| run.base));
        }
        self.service_ports.extend(delta.source_ranges.keys().map(|key| key.data.service_port));
        self.backends.extend(delta.backends.keys());
    }
}

#[cfg(test)]
mod tests;
