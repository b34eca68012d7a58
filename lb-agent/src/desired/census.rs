//! What there is, to be counted: every service port by name, and those that drop. Read at each scrape of the metrics.

use lb_common::id::ServicePortId;

use crate::{
    desired::Desired,
    model::{
        family::{IpFamily, PerFamily},
        service::{Policy, PortName, ServiceName},
    },
    select::{Policies, Selection},
};

/// A service port and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its id in the maps.
    pub id: ServicePortId,
    /// Its Service.
    pub service: ServiceName,
    /// Which port of it.
    pub port: PortName,
}

/// Service ports that drop what reaches them because traffic policy Local finds no backend here, although there is
/// one elsewhere (spec 5.15).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocal {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

impl Desired {
    /// Every service port that a Service has.
    pub fn service_ports(&self) -> impl Iterator<Item = ServicePort> {
        self.ports.iter().filter_map(|(id, record)| {
            let owner = record.owner.as_ref()?;
            Some(ServicePort { id: *id, service: owner.service.clone(), port: owner.port.clone() })
        })
    }

    /// How many service ports drop traffic because no backend is on this node (spec 5.15).
    pub fn no_local(&self) -> PerFamily<NoLocal> {
        let mut sum = PerFamily::<NoLocal>::default();
        for record in self.ports.values() {
            for family in IpFamily::ALL {
                let (sum, own) = (sum.of_mut(family), record.no_local.of(family));
                sum.internal += own.internal;
                sum.external += own.external;
            }
        }
        sum
    }
}

/// Whether a service port is in the rows of spec 5 that drop.
pub(super) fn no_local(policies: Policies, selection: &Selection) -> NoLocal {
    let drops = selection.has_any && selection.local.is_empty();
    let internal = drops && policies.internal == Policy::Local;
    let external = drops && policies.external == Policy::Local && policies.is_externally_accessible;
    NoLocal { internal: usize::from(internal), external: usize::from(external) }
}
