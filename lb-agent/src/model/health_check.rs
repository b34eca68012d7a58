//! What the health check node ports of this node answer, as values. The cloud's load balancers ask them which nodes
//! have backends of a Service with `externalTrafficPolicy: Local`.

use std::{collections::BTreeMap, sync::Arc};

use lb_common::family::{Family, V4, V6};

use crate::model::{
    Model,
    backend::gather,
    family::PerFamily,
    service::{Service, ServiceName},
};

/// One Service's health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where it listens.
    pub port: u16,
    /// `metadata.uid` of the Service; may be empty.
    pub uid: Arc<str>,
    /// Distinct addresses of ready backends on this node (spec 6.7); `None`: the Service is not of this family, and
    /// nothing listens there.
    pub local: PerFamily<Option<usize>>,
}

/// Every health check of a node.
pub type HealthChecks = BTreeMap<ServiceName, HealthCheck>;

impl HealthCheck {
    /// The health check that a Service wants.
    pub fn of(model: &Model, name: &ServiceName) -> Option<Self> {
        let service = model.service(name)?;
        let port = service.health_check_node_port?;
        let local = PerFamily {
            v4: local_addresses::<V4>(model, name, service),
            v6: local_addresses::<V6>(model, name, service),
        };
        Some(Self { port, uid: service.uid.clone(), local })
    }

    /// This one while the maps still carry `former`: it may fall at once, because a backend that is gone must not be
    /// announced, and rises only once the maps lead there (spec 8.43).
    #[must_use]
    pub fn no_better_than(self, former: Option<&Self>) -> Option<Self> {
        let former = former.filter(|former| former.port == self.port)?;
        let least = |wanted: Option<usize>, former: Option<usize>| Some(wanted?.min(former?));
        let local = PerFamily {
            v4: least(self.local.v4, former.local.v4),
            v6: least(self.local.v6, former.local.v6),
        };
        Some(Self { local, ..self })
    }
}

/// Backends that terminate, or serve without being ready, do not count, although traffic may still reach them: a load
/// balancer is to turn away in time. Neither does a second port of the same address.
fn local_addresses<F: Family>(model: &Model, name: &ServiceName, service: &Service) -> Option<usize> {
    service.cluster_ip::<F>()?;
    let mut addresses: Vec<_> = service
        .ports
        .iter()
        .flat_map(|port| gather::<F>(model.slices(name), &port.name, model.node()))
        .filter(|backend| backend.is_local && backend.host.conditions.ready)
        .map(|backend| backend.host.addr)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Some(addresses.len())
}
