//! What the reconcile loop knows at the moment of a scrape, and the gauges made of it.

use std::{collections::BTreeMap, fmt};

use lb_common::id::BackendId;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::{encode_gauge, encode_gauges, of_family};
use crate::{
    desired::census::{NoLocal, ServicePort},
    model::{
        backend::BackendAddress,
        family::{IpFamily, PerFamily},
    },
};

/// The state of the control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlSnapshot {
    /// True once the maps held everything the sources delivered at the start.
    pub is_synced: bool,
    /// Services that are load balanced.
    pub services: usize,
    /// Their ports.
    pub service_ports: Vec<ServicePort>,
    /// Frontends in the maps.
    pub frontends: PerFamily<usize>,
    /// Backends in the maps.
    pub backends: Vec<(BackendId, BackendAddress)>,
    /// What policies drop.
    pub no_local: PerFamily<NoLocal>,
    /// Refusals in force, by kind of object.
    pub refusals: BTreeMap<String, usize>,
}

impl Collector for ControlSnapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let families = || IpFamily::ALL.into_iter();
        let help = "1 once the maps held everything the sources delivered at the start";
        encode_gauge(encoder, ("lb_synced", help), u32::from(self.is_synced))?;
        encode_gauge(encoder, ("lb_services", "Services that are load balanced"), self.services)?;
        encode_gauge(encoder, ("lb_service_ports", "Ports of these Services"), self.service_ports.len())?;
        let frontends = families().map(|family| (of_family(family), *self.frontends.of(family)));
        encode_gauges(encoder, ("lb_frontends", "Frontends in the maps"), frontends)?;
        let backends = families().map(|family| (of_family(family), self.backends_of(family)));
        encode_gauges(encoder, ("lb_backends", "Backends in the maps"), backends)?;
        let refusals = self.refusals.iter().map(|(kind, count)| ([("kind", kind)], *count));
        encode_gauges(encoder, ("lb_refusals", "Values of objects that are refused"), refusals)?;
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let help = "Service ports that drop traffic because policy Local finds no backend on this node";
        encode_gauges(encoder, (name, help), families().flat_map(|family| self.no_local_rows(family)))
    }
}

impl ControlSnapshot {
    fn backends_of(&self, family: IpFamily) -> usize {
        self.backends.iter().filter(|(_, backend)| IpFamily::of(backend.addr) == family).count()
    }

    fn no_local_rows(&self, family: IpFamily) -> [([(&'static str, &'static str); 2], usize); 2] {
        let labels = |policy| [("ip_family", family.name()), ("traffic_policy", policy)];
        let counts = self.no_local.of(family);
        [(labels("internal"), counts.internal), (labels("external"), counts.external)]
    }
}
