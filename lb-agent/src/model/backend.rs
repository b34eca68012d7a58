//! Who serves: the backends of a service port, gathered from the slices of its Service.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use lb_common::{
    backend::BackendState,
    family::{Address, Family, Protocol},
};

use crate::model::{Names, node::Node, service::PortName};

/// Which kind of object a slice came from. The first one present for a service is the only one used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// discovery.k8s.io/v1.
    EndpointSlice,
    /// core/v1, hand-written.
    Endpoints,
}

/// What one object contributes to a service of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Name of the service.
    pub service: Arc<str>,
    /// An EndpointSlice is one group, an Endpoints object one per subset.
    pub groups: Box<[Group]>,
}

/// Hosts that all serve the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The ports.
    pub ports: Box<[ServingPort]>,
    /// The hosts.
    pub hosts: Box<[Host]>,
}

/// A port that serves the service port of the same name and protocol (spec 1.16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingPort {
    /// Name and protocol.
    pub name: PortName,
    /// Port on the host.
    pub port: u16,
}

/// An address that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The address.
    pub addr: IpAddr,
    /// Whether it serves.
    pub conditions: Conditions,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// For whom it is meant.
    pub hints: Option<Box<Hints>>,
}

impl Host {
    /// True if it runs on `node` (spec 2.2).
    pub fn runs_on(&self, node: &Node) -> bool {
        !node.name.is_empty() && self.node.as_ref() == Some(&node.name)
    }
}

/// Conditions with their defaults filled in (spec 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Takes new connections.
    pub ready: bool,
    /// Answers.
    pub serving: bool,
    /// Is being shut down.
    pub terminating: bool,
}

impl Conditions {
    /// The state of a backend in these conditions; `None`: not a member at all (spec 7.4).
    pub fn state(self) -> Option<BackendState> {
        match self {
            Self { ready: true, .. } => Some(BackendState::ACTIVE),
            Self { serving: true, terminating: true, .. } => Some(BackendState::TERMINATING),
            Self { serving: true, .. } => Some(BackendState::QUARANTINED),
            _ => None,
        }
    }
}

/// Topology hints (spec 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hints {
    /// Nodes that should use the backend.
    pub nodes: Box<[Arc<str>]>,
    /// Zones that should use the backend.
    pub zones: Box<[Arc<str>]>,
}

/// A host at one port, as one service port sees it.
#[derive(Clone, Copy, Debug)]
pub struct Backend<'a> {
    /// The host.
    pub host: &'a Host,
    /// Port on the host.
    pub port: u16,
    /// True if it runs on this node.
    pub is_local: bool,
}

impl Slice {
    /// Lets the names in it share memory with those of other slices.
    pub fn share_names(&mut self, names: &mut Names) {
        self.service = names.share(&self.service);
        for group in &mut self.groups {
            for port in &mut group.ports {
                port.name.name = names.share(&port.name.name);
            }
            for host in &mut group.hosts {
                host.share_names(names);
            }
        }
    }
}

impl Host {
    fn share_names(&mut self, names: &mut Names) {
        let hints = self.hints.iter_mut().flat_map(|hints| hints.nodes.iter_mut().chain(&mut hints.zones));
        for name in hints.chain(&mut self.node) {
            *name = names.share(name);
        }
    }
}

/// The backends of one service port in one family, each address and port once, in the order of the text
/// `address:port` (spec 1.28 to 1.31).
///
/// Of several slices that name the same address and port, one that is not terminating wins: the pod that runs, not
/// the ghost of the one that had its address before (spec 1.30).
pub fn gather<'a, F: Family>(
    slices: impl Iterator<Item = &'a Slice>,
    port: &PortName,
    node: &Node,
) -> Vec<Backend<'a>> {
    let mut found: BTreeMap<(IpAddr, u16), Backend<'a>> = BTreeMap::new();
    for group in slices.flat_map(|slice| &slice.groups) {
        for serving in group.ports.iter().filter(|serving| serving.name == *port) {
            for host in group.hosts.iter().filter(|host| F::Addr::from_ip(host.addr).is_some()) {
                let backend = Backend { host, port: serving.port, is_local: host.runs_on(node) };
                let known = found.entry((host.addr, serving.port)).or_insert(backend);
                if !host.conditions.terminating {
                    *known = backend;
                }
            }
        }
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort_by_cached_key(|backend| format!("{}:{}", backend.host.addr, backend.port));
    found
}

/// What a [`BackendId`](lb_common::id::BackendId) stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendAddress {
    /// Address.
    pub addr: IpAddr,
    /// Port, host byte order.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}
