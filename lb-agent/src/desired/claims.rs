//! Which service port a frontend belongs to when several claim it.
//!
//! kube-proxy leaves that to chance (spec 1.61). Here an exact address goes before a NodePort (spec 1.62), then the
//! Service with the oldest creationTimestamp, then the first by namespace and name. Losers take over when the winner
//! goes.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    frontend::{FrontendKey, FrontendKind, FrontendValue},
    id::ServicePortId,
};

use crate::{
    desired::{Owner, PortRecord, RecordFamily, Target},
    maps::dump::frontend_address,
    source::Refusal,
};

/// Frontends with more than one claimant.
#[derive(Debug)]
pub struct Contested<F: RecordFamily>(BTreeMap<FrontendKey<F>, BTreeSet<ServicePortId>>);

impl<F: RecordFamily> Default for Contested<F> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

type Ports = BTreeMap<ServicePortId, PortRecord>;

impl<F: RecordFamily> Contested<F> {
    /// Service port `id` claims `key`, or claims it with another value; its record says so already.
    pub fn claim(&mut self, id: ServicePortId, key: FrontendKey<F>, ports: &Ports, target: &mut Target<'_>) {
        let holder = target.delta.wanted_frontend(target.have, &key).map(|value| value.service_port);
        if let Some(holder) = holder.filter(|holder| *holder != id) {
            self.0.entry(key).or_default().extend([holder, id]);
        }
        match self.0.get(&key) {
            Some(claimants) => award(key, claimants, ports, target),
            None => award(key, &BTreeSet::from([id]), ports, target),
        }
    }

    /// Service port `id` gives `key` up.
    pub fn yield_up(
        &mut self,
        id: ServicePortId,
        key: FrontendKey<F>,
        ports: &Ports,
        target: &mut Target<'_>,
    ) {
        let Some(claimants) = self.0.get_mut(&key) else {
            return target.delta.want_frontend(target.have, key, None);
        };
        claimants.remove(&id);
        award(key, claimants, ports, target);
        if claimants.len() < 2 {
            self.0.remove(&key);
        }
    }

    /// What the losers are to be told.
    pub fn refusals(&self, ports: &Ports) -> BTreeSet<Refusal> {
        let mut refusals = BTreeSet::new();
        for (key, claimants) in &self.0 {
            let Some((winner, _)) = winner(key, claimants, ports) else { continue };
            let losers = claimants.iter().filter(|id| **id != winner).filter_map(|id| ports.get(id));
            let winner = ports.get(&winner).and_then(|record| record.owner.as_ref());
            refusals.extend(losers.filter_map(|loser| refusal(key, loser, winner?)));
        }
        refusals
    }
}

/// Gives `key` to the best of its claimants.
fn award<F: RecordFamily>(
    key: FrontendKey<F>,
    claimants: &BTreeSet<ServicePortId>,
    ports: &Ports,
    target: &mut Target<'_>,
) {
    target.delta.want_frontend(target.have, key, winner(&key, claimants, ports).map(|(_, value)| value));
}

fn winner<F: RecordFamily>(
    key: &FrontendKey<F>,
    claimants: &BTreeSet<ServicePortId>,
    ports: &Ports,
) -> Option<(ServicePortId, FrontendValue)> {
    let claims = claimants.iter().filter_map(|id| {
        let record = ports.get(id)?;
        Some((*id, *F::record(record).frontends.get(key)?, record.owner.as_ref()))
    });
    // What nobody owns was left by a Service that is gone.
    let best = claims
        .min_by_key(|(_, value, owner)| (owner.is_none(), value.kind == FrontendKind::NODE_PORT, *owner));
    best.map(|(id, value, _)| (id, value))
}

fn refusal<F: RecordFamily>(key: &FrontendKey<F>, loser: &PortRecord, winner: &Owner) -> Option<Refusal> {
    let owner = loser.owner.as_ref()?;
    let kind = F::record(loser).frontends.get(key)?.kind;
    let (field, what) = match kind {
        FrontendKind::CLUSTER_IP => ("spec.clusterIPs", frontend_address(key)),
        FrontendKind::EXTERNAL_IP => ("spec.externalIPs", frontend_address(key)),
        FrontendKind::LOAD_BALANCER => ("status.loadBalancer.ingress", frontend_address(key)),
        _ => ("spec.ports[].nodePort", format!("{}/{}", key.port.get(), key.protocol.name())),
    };
    let reason = format!("{what} belongs to Service {}, which comes first", winner.service);
    Some(Refusal { object: format!("Service {}", owner.service), field: field.to_owned(), reason })
}
