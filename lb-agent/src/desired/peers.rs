//! Whose tunnels end here, as the maps should hold them: every other node by the addresses of its Node object, and the
//! networks the operator names. As long as no Service uses tunnels: nobody's.
//!
//! What must stay true: an agent that starts forgets no node before it has seen all of them.

use std::collections::BTreeSet;

use ipnet::IpNet;
use lb_common::{
    family::{Address as _, V4, V6},
    peer::PeerKey,
};

use crate::{desired::Target, diff::DeltaFamily, model::Model};

/// Wants the model's nodes and `sources`.
pub fn want(model: &Model, sources: &[IpNet], target: &mut Target<'_>) {
    let mut networks = BTreeSet::new();
    if model.wants_nodes() {
        networks.extend(sources.iter().map(IpNet::trunc));
        networks.extend(model.other_nodes().flat_map(|node| node.addresses()).map(IpNet::from));
    }
    want_family::<V4>(model, &networks, target);
    want_family::<V6>(model, &networks, target);
}

fn want_family<F: DeltaFamily>(model: &Model, networks: &BTreeSet<IpNet>, target: &mut Target<'_>) {
    let keys: BTreeSet<PeerKey<F>> = networks.iter().filter_map(key).collect();
    let known = target.delta.known_peers::<F>(target.have);
    for gone in known.difference(&keys).filter(|_| !model.awaits_nodes()) {
        target.delta.want_peer(target.have, *gone, false);
    }
    keys.into_iter().for_each(|key| target.delta.want_peer(target.have, key, true));
}

fn key<F: DeltaFamily>(network: &IpNet) -> Option<PeerKey<F>> {
    Some(PeerKey { prefix_len: network.prefix_len().into(), addr: F::Addr::from_ip(network.addr())? })
}
