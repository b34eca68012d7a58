//! What waits for a service to be in the maps: its health check, and the measurement of how long it took. Fed by the
//! reconciler with what each sync touched.
//!
//! What must stay true: nothing here is ahead of the maps. A service of which a write failed waits, the others do not.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::discovery::v1::EndpointSlice,
    jiff::{SignedDuration, Timestamp},
};

use crate::{
    model::{
        Model,
        family::IpFamily,
        health_check::{HealthCheck, HealthChecks},
        service::ServiceName,
    },
    source::{Change, Kind, Object},
};

/// Written by the EndpointSlice controller: when the change of pods or of the Service was made that the slice follows.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A change of one family's endpoints, by when its cause came about.
pub type Trigger = (IpFamily, Timestamp);

/// The services on their way to the maps.
#[derive(Debug)]
pub struct Progress {
    /// Touched by a sync and not in the maps yet.
    unwritten: BTreeSet<ServiceName>,
    health_checks: HealthChecks,
    /// Causes of what is not in the maps yet (spec 8.52).
    triggers: BTreeMap<ServiceName, Vec<Trigger>>,
    /// Causes of what reached the maps since [`Self::take_programmed`].
    programmed: Vec<Trigger>,
    started: Timestamp,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            unwritten: BTreeSet::new(),
            health_checks: HealthChecks::new(),
            triggers: BTreeMap::new(),
            programmed: Vec::new(),
            started: Timestamp::now(),
        }
    }
}

/// What a change says about its cause; must be asked before the change is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nothing.
    Unknown,
    /// This.
    Known(Trigger),
    /// A slice is gone, and with it what its service waits for (spec 8.52).
    Removal,
}

impl Cause {
    pub(super) fn of(change: &Change) -> Self {
        match change {
            Change::Applied(Object::EndpointSlice(slice)) => {
                trigger(slice).map_or(Self::Unknown, Self::Known)
            }
            Change::Deleted(id) if id.kind == Kind::EndpointSlice => Self::Removal,
            _ => Self::Unknown,
        }
    }
}

/// The annotation, if it can be read (spec 8.50).
fn trigger(slice: &EndpointSlice) -> Option<Trigger> {
    let text = slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?;
    let family = match slice.address_type.as_str() {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        _ => return None,
    };
    match text.parse() {
        Ok(time) => Some((family, time)),
        Err(error) => {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            tracing::warn!(slice = name, annotation = TRIGGER_TIME, "{text:?} is not a time: {error}");
            None
        }
    }
}

impl Progress {
    /// A change made these services dirty. Causes from before the start say nothing about this agent (spec 8.51).
    pub(super) fn note(&mut self, cause: Cause, services: &[ServiceName]) {
        for name in services {
            match cause {
                Cause::Unknown => {}
                Cause::Removal => drop(self.triggers.remove(name)),
                Cause::Known(trigger) if trigger.1 > self.started => {
                    self.triggers.entry(name.clone()).or_default().push(trigger);
                }
                Cause::Known(_) => {}
            }
        }
    }

    /// A sync touched these services; of those for which `is_pending` holds something is still to be written.
    pub(super) fn advance(
        &mut self,
        mut touched: BTreeSet<ServiceName>,
        model: &Model,
        is_pending: impl Fn(&ServiceName) -> bool,
    ) {
        touched.append(&mut self.unwritten);
        for name in touched {
            let wanted = HealthCheck::of(model, &name);
            let is_pending = is_pending(&name);
            let check = match is_pending {
                true => wanted.and_then(|wanted| wanted.no_better_than(self.health_checks.get(&name))),
                false => wanted,
            };
            match check {
                Some(check) => drop(self.health_checks.insert(name.clone(), check)),
                None => drop(self.health_checks.remove(&name)),
            }
            match is_pending {
                true => drop(self.unwritten.insert(name)),
                false => self.programmed.extend(self.triggers.remove(&name).unwrap_or_default()),
            }
        }
    }

    /// What health check node ports may answer.
    pub fn health_checks(&self) -> &HealthChecks {
        &self.health_checks
    }

    /// How long ago the causes were of what reached the maps since this was last asked.
    pub fn take_programmed(&mut self) -> Vec<(IpFamily, std::time::Duration)> {
        let now = Timestamp::now();
        let since = |at: Timestamp| now.duration_since(at).max(SignedDuration::ZERO).unsigned_abs();
        self.programmed.drain(..).map(|(family, at)| (family, since(at))).collect()
    }
}
