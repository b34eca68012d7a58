//! This node: its name, its zone, its addresses.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

/// What decides which backends are local and which hints mean this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Own name, lower case (spec 2.3); empty: unknown, nothing is local.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone` of the own Node object; `None` matches no hint (spec 2.18).
    pub zone: Option<Arc<str>>,
    /// `spec.podCIDRs` of the own Node object: the networks of this node's pods.
    pub pod_cidrs: Box<[IpNet]>,
}

/// Another node, as far as tunnels from and to it are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherNode {
    /// Its addresses of type InternalIP: tunnels to it end at the first of their family.
    pub internal_ips: Box<[IpAddr]>,
    /// Those of type ExternalIP.
    pub external_ips: Box<[IpAddr]>,
}

impl OtherNode {
    /// All its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.internal_ips.iter().chain(&self.external_ips).copied()
    }
}

/// Whether load balancers may send traffic to this node, as far as its Node object says (KEP-3836, spec 6.23). What
/// the node forwards does not depend on it (spec 9.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodePresence {
    /// No Node object is known.
    #[default]
    Missing,
    /// There is one.
    Present,
    /// There is one that is being deleted, or that the cluster autoscaler is about to remove.
    Leaving,
}

/// The addresses of this node that NodePorts listen on: already filtered, without loopback addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses(pub BTreeSet<IpAddr>);
