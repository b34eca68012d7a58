//! A plan, made: what succeeds is confirmed, what fails stays wanted, and what would be unsafe after a failure waits.

use std::collections::BTreeSet;

use lb_common::{
    family::Family,
    frontend::{FrontendFlags, FrontendValue},
    id::{BackendId, ServicePortId},
};

use super::{Delta, Plan, slots_of};
use crate::maps::{FamilyWrite, MapError, MapFamily, MapState, Maps, Write};

/// Writes made at once: bounds the memory for them.
const BATCH: usize = 4096;

/// Makes the writes of `plan`, in order. Those that succeed are entered in `have` and leave `delta`; one that fails
/// stays there, and with it every later write that is only safe after it. All others go on: a full map or a bad
/// moment costs what depends on it and nothing else. Of the errors it
/// returns the first and the number: a map that is far too small fails a hundred thousand times.
pub fn apply<M: Maps>(
    maps: &mut M,
    have: &mut MapState,
    delta: &mut Delta,
    plan: &Plan,
) -> Result<(), Failed> {
    let mut blocked = Blocked::default();
    let mut failed: Option<Failed> = None;
    for batch in plan.chunk_by(Write::puts_beside).flat_map(|group| group.chunks(BATCH)) {
        let may_go = batch.len() > 1 && !batch.iter().any(|write| blocked.forbids(write));
        let (made, rest) = batch.split_at(if may_go { maps.apply_batch(batch) } else { 0 });
        for write in made {
            have.apply(write);
            delta.confirm(write);
        }
        for write in rest {
            if blocked.forbids(write) {
                blocked.note(write, have);
                continue;
            }
            match maps.apply(write) {
                Ok(()) => {
                    have.apply(write);
                    delta.confirm(write);
                }
                Err(error) => {
                    blocked.note(write, have);
                    match &mut failed {
                        Some(failed) => failed.count += 1,
                        None => failed = Some(Failed { first: error, count: 1 }),
                    }
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Writes of a plan that failed. They, and those that had to wait for them, are still wanted.
#[derive(Debug, thiserror::Error)]
#[error("{count} writes failed, the first: {first}")]
pub struct Failed {
    /// The first error.
    pub first: MapError,
    /// How many writes failed.
    pub count: usize,
}

/// What writes that were not made stand in the way of.
#[derive(Debug, Default)]
struct Blocked {
    /// Backends that were to be written: no slot and no member may name them.
    backends: BTreeSet<BackendId>,
    /// Service ports that lack a member or source range: their frontends keep their values.
    service_ports: BTreeSet<ServicePortId>,
    /// Slots that were to be written: no frontend may point to them.
    slots: BTreeSet<u32>,
    /// Service ports with a frontend that keeps its former value: their members stay.
    former_frontends: BTreeSet<ServicePortId>,
    /// Service ports with a frontend that stays restricted although it should not be: their source ranges stay.
    restricted: BTreeSet<ServicePortId>,
    /// Service ports with a member that stays: the generation moves when it has gone.
    former_members: BTreeSet<ServicePortId>,
    /// Backends that are still members somewhere.
    in_use: BTreeSet<BackendId>,
    /// A service CIDR was not written to its new place: no old place goes.
    service_cidrs: bool,
}

impl Blocked {
    fn forbids(&self, write: &Write) -> bool {
        match write {
            Write::V4(write) => self.forbids_family(write),
            Write::V6(write) => self.forbids_family(write),
            Write::Member(key, Some(_)) => self.backends.contains(&key.backend),
            Write::Member(key, None) => self.former_frontends.contains(&key.service_port),
            Write::Slot(_, backend) => self.backends.contains(backend),
            Write::Generation(id, _) => self.former_members.contains(id),
        }
    }

    fn forbids_family<F: Family>(&self, write: &FamilyWrite<F>) -> bool {
        match write {
            FamilyWrite::Frontend(_, Some(value)) => {
                self.service_ports.contains(&value.service_port)
                    || value.runs().iter().any(|run| self.slots.range(slots_of(*run)).next().is_some())
            }
            FamilyWrite::SourceRange(key, None) => self.restricted.contains(&key.data.service_port),
            FamilyWrite::Backend(id, None) => self.in_use.contains(id),
            FamilyWrite::ServiceCidr(_, None) => self.service_cidrs,
            _ => false,
        }
    }

    /// `write` was not made.
    fn note(&mut self, write: &Write, have: &MapState) {
        match write {
            Write::V4(write) => self.note_family(write, have),
            Write::V6(write) => self.note_family(write, have),
            Write::Member(key, Some(_)) => {
                self.service_ports.insert(key.service_port);
                if have.members.contains_key(key) {
                    self.former_members.insert(key.service_port);
                }
            }
            Write::Member(key, None) => {
                self.former_members.insert(key.service_port);
                self.in_use.insert(key.backend);
            }
            Write::Slot(index, _) => drop(self.slots.insert(*index)),
            Write::Generation(..) => {}
        }
    }

    fn note_family<F: MapFamily>(&mut self, write: &FamilyWrite<F>, have: &MapState) {
        match write {
            FamilyWrite::Backend(id, Some(_)) => drop(self.backends.insert(*id)),
            FamilyWrite::SourceRange(key, Some(_)) => drop(self.service_ports.insert(key.data.service_port)),
            FamilyWrite::ServiceCidr(_, Some(_)) => self.service_cidrs = true,
            FamilyWrite::Frontend(key, value) => {
                // A frontend that does not exist yet holds on to nothing.
                let Some(former) = F::of(have).frontends.get(key) else { return };
                self.former_frontends.insert(former.service_port);
                let is_restricted = |value: &FrontendValue| value.flags.has(FrontendFlags::SOURCE_RANGES);
                if is_restricted(former) && !value.as_ref().is_some_and(is_restricted) {
                    self.restricted.insert(former.service_port);
                }
            }
            _ => {}
        }
    }
}
