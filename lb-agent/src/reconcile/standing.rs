//! Does the backend that a socket was given still serve what the socket dialled? Asked by `sockets`.
//!
//! What must stay true: nobody is said to have left while the maps may still hand it out, nor before everything the
//! sources know has been written once.

use std::collections::{HashMap, HashSet};

use lb_common::{
    backend::MemberKey,
    family::{Address, Family},
    id::{BackendId, ServicePortId},
};

use crate::{
    maps::{FamilyState, Maps},
    model::backend::BackendAddress,
    reconcile::Reconciler,
};

/// A socket's translation: the service port it dialled and the backend it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// What it dialled.
    pub service_port: ServicePortId,
    /// Whom it talks to.
    pub backend: BackendAddress,
}

/// How the backend of a [`Claim`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It serves this service port, ready or not.
    Serves,
    /// It does not; its pod may live, so that what is open can drain.
    Left,
    /// It does not, and its pod has ended.
    Ended,
}

/// Service port → who serves it, according to the maps or to what is wanted.
type Members = HashMap<ServicePortId, HashSet<BackendAddress>>;

impl<M: Maps> Reconciler<M> {
    /// How the backend of each claim stands, in order.
    pub fn standings(&self, claims: &[Claim]) -> Vec<Standing> {
        let mut members = Members::new();
        claims.iter().map(|claim| self.standing(claim, &mut members)).collect()
    }

    fn standing(&self, claim: &Claim, members: &mut Members) -> Standing {
        let id = claim.service_port;
        let mut serves = || members.entry(id).or_insert_with(|| self.members_of(id)).contains(&claim.backend);
        if !self.stats.is_synced || serves() {
            Standing::Serves
        } else if self.model.has_ended(claim.backend.addr) {
            Standing::Ended
        } else {
            Standing::Left
        }
    }

    fn members_of(&self, id: ServicePortId) -> HashSet<BackendAddress> {
        let key = |backend| MemberKey { service_port: id, backend: BackendId(backend) };
        let written = self.have.members.range(key(0)..=key(u32::MAX)).map(|(key, _)| key.backend);
        let written = written.filter_map(|id| {
            written_address(&self.have.v4, id).or_else(|| written_address(&self.have.v6, id))
        });
        let wanted = self.desired.port(id).into_iter().flat_map(|record| record.members());
        written.chain(wanted.filter_map(|member| self.desired.backend(member.backend))).collect()
    }
}

fn written_address<F: Family>(state: &FamilyState<F>, id: BackendId) -> Option<BackendAddress> {
    let value = state.backends.get(&id)?;
    Some(BackendAddress { addr: value.addr.to_ip(), port: value.port.get(), protocol: value.protocol })
}
