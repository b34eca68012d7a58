//! Which runs a service port's backends stand in: lists of them, or Maglev tables. Runs of equal contents are shared.
//!
//! What must stay true: a service port has tables for all of its sets or for none, for one flag speaks for them. When
//! there is no room for its tables it gets lists, chooses at random, and says so; it gets its tables as soon as there
//! is room.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    frontend::Run,
    id::{BackendId, ServicePortId},
};

use super::{
    Desired, Draft, Exhausted, Sets, Target,
    frontends::Runs,
    maglev::{self, TableSize},
    runs::Contents,
};
use crate::{
    convert::ALGORITHM_ANNOTATION,
    model::service::{Algorithm, Service, ServiceName},
    source::Refusal,
};

/// Where a draft's backends stand.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) v4: Runs,
    pub(super) v6: Runs,
    held: Vec<Run>,
    fallback: Option<Reason>,
}

/// Why a service port has no Maglev tables although it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error(
        "no {size} slots in a row left for a Maglev table: backends are chosen at random; raise --max-slots or lower --maglev-table-size"
    )]
    Slots { size: TableSize },
    #[error(
        "{backends} backends, more than the {size} slots of a Maglev table: backends are chosen at random; raise --maglev-table-size"
    )]
    Backends { backends: usize, size: TableSize },
}

/// The service ports without the tables they should have.
#[derive(Debug, Default)]
pub(super) struct Fallbacks {
    all: BTreeMap<ServicePortId, (ServiceName, Reason)>,
    news: Vec<Refusal>,
}

impl Fallbacks {
    fn set(&mut self, id: ServicePortId, service: &ServiceName, reason: Option<Reason>) {
        let Some(reason) = reason else { return drop(self.all.remove(&id)) };
        let current = (service.clone(), reason);
        if self.all.get(&id) != Some(&current) {
            self.news.push(refusal(&current));
            self.all.insert(id, current);
        }
    }

    pub(super) fn refusals(&self) -> impl Iterator<Item = Refusal> {
        self.all.values().map(refusal)
    }
}

fn refusal((service, reason): &(ServiceName, Reason)) -> Refusal {
    Refusal {
        object: format!("Service {service}"),
        field: format!("metadata.annotations[{ALGORITHM_ANNOTATION}]"),
        reason: reason.to_string(),
    }
}

impl Desired {
    /// Service ports that fell back since this was last asked.
    pub fn take_new_fallbacks(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.fallbacks.news)
    }

    /// The Services that wait for slots.
    pub fn short_of_slots(&self) -> BTreeSet<ServiceName> {
        let short = self.fallbacks.all.values().filter(|(_, reason)| matches!(reason, Reason::Slots { .. }));
        short.map(|(service, _)| service.clone()).collect()
    }

    /// True if a Service waits for slots and some are about to come back.
    pub fn awaits_slots(&self) -> bool {
        self.runs.has_retired() && !self.short_of_slots().is_empty()
    }

    /// Holds runs for the draft's sets, and wants those written that nobody has yet.
    pub(super) fn place(
        &mut self,
        (name, service): (&ServiceName, &Service),
        draft: &Draft,
        size: TableSize,
        target: &mut Target<'_>,
    ) -> Result<Placement, Exhausted> {
        let mut fallback = None;
        if service.algorithm == Algorithm::Maglev {
            match self.place_tables(draft, size, target) {
                Ok(placement) => return Ok(placement),
                Err(reason) => fallback = Some(reason),
            }
        }
        let placement = self.place_all(draft, Algorithm::Random, |set| Contents::List(set.into()), target);
        let exhausted = |count| Exhausted::Slots { service: name.clone(), count };
        placement.map(|placement| Placement { fallback, ..placement }).map_err(exhausted)
    }

    fn place_tables(
        &mut self,
        draft: &Draft,
        size: TableSize,
        target: &mut Target<'_>,
    ) -> Result<Placement, Reason> {
        let backends = draft.sets().map(<[_]>::len).into_iter().max().unwrap_or_default();
        if backends > size.get() as usize {
            return Err(Reason::Backends { backends, size });
        }
        let placement = self.place_all(draft, Algorithm::Maglev, |set| table(set, size), target);
        placement.map_err(|_| Reason::Slots { size })
    }

    /// Runs for all sets or for none; the error is how many slots were not to be had.
    fn place_all(
        &mut self,
        draft: &Draft,
        algorithm: Algorithm,
        contents: impl Fn(&[BackendId]) -> Contents,
        target: &mut Target<'_>,
    ) -> Result<Placement, u32> {
        let mut held = Vec::with_capacity(4);
        let mut runs = [Run::default(); 4];
        for (run, set) in runs.iter_mut().zip(draft.sets()).filter(|(_, set)| !set.is_empty()) {
            let contents = contents(set);
            let Some(found) = self.hold(&contents, target) else {
                held.into_iter().for_each(|run| self.undo(run, target));
                return Err(contents.slots());
            };
            held.push(found);
            *run = found;
        }
        let [cluster4, local4, cluster6, local6] = runs;
        let runs_of = |cluster, local, sets: &Sets| Runs { cluster, local, has_any: sets.has_any, algorithm };
        Ok(Placement {
            v4: runs_of(cluster4, local4, &draft.v4),
            v6: runs_of(cluster6, local6, &draft.v6),
            held,
            fallback: None,
        })
    }

    fn hold(&mut self, contents: &Contents, target: &mut Target<'_>) -> Option<Run> {
        let held = self.runs.hold(contents)?;
        if held.is_fresh || !target.delta.wants_run(target.have, held.run) {
            match contents {
                Contents::List(backends) => target.delta.want_run(target.have, held.run, backends),
                Contents::Table(size, backends) => {
                    let table = maglev::build(self.backends.addresses(backends.iter()), *size);
                    target.delta.want_run(target.have, held.run, &table);
                }
            }
        }
        Some(held.run)
    }

    fn undo(&mut self, run: Run, target: &mut Target<'_>) {
        if self.runs.undo(run) {
            target.delta.forget_run(run);
        }
    }

    /// Puts a placement in the place of the one that service port `id` had, and lets go of that.
    pub(super) fn set_placement(
        &mut self,
        id: ServicePortId,
        name: &ServiceName,
        placement: Placement,
        target: &mut Target<'_>,
    ) {
        self.fallbacks.set(id, name, placement.fallback);
        self.ports.entry(id).or_default().algorithm = placement.v4.algorithm;
        self.set_runs(id, placement.held, target);
    }

    /// Service port `id` stands nowhere any more.
    pub(super) fn remove_placement(&mut self, id: ServicePortId, target: &mut Target<'_>) {
        self.fallbacks.all.remove(&id);
        self.set_runs(id, Vec::new(), target);
    }

    fn set_runs(&mut self, id: ServicePortId, held: Vec<Run>, target: &mut Target<'_>) {
        let record = self.ports.entry(id).or_default();
        let former = std::mem::replace(&mut record.runs, held.into());
        for run in former {
            if self.runs.release(run) {
                target.delta.forget_run(run);
            }
        }
    }
}

impl Draft {
    /// Cluster and local set of IPv4, then of IPv6.
    fn sets(&self) -> [&[BackendId]; 4] {
        [&self.v4.cluster, &self.v4.local, &self.v6.cluster, &self.v6.local]
    }
}

/// The table of `set`; of one backend, which every flow finds, one slot.
fn table(set: &[BackendId], size: TableSize) -> Contents {
    if let [_] = set {
        return Contents::List(set.into());
    }
    let mut backends = set.to_vec();
    backends.sort_unstable();
    Contents::Table(size, backends.into())
}
