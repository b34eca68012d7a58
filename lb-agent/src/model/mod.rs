//! What the cluster says, in the smallest form that answers "which backends does this Service have?".
//!
//! The reconciler feeds it every [`Change`]; it answers which services that made dirty. Objects as the API has them
//! are never kept: 100,000 backends fit into a few megabytes. A change that alters nothing here (labels,
//! annotations, a resync) makes nothing dirty (spec 8.22).

pub mod backend;
mod ended;
pub mod family;
pub mod health_check;
pub mod node;
pub mod service;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::family::{Address as _, Family};

use crate::{
    convert::{self, Converted, Rules},
    model::{
        backend::{Origin, Slice},
        ended::Ended,
        node::{Node, NodePresence, OtherNode},
        service::{Forwarding, Service, ServiceName},
    },
    source::{Change, Kind, ObjectRef, Refusal},
};

/// What must be recomputed after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// These services; may be none.
    Services(Vec<ServiceName>),
    /// Every service: this node is another.
    All,
    /// Every service: other nodes are known otherwise, or whether they are needed is.
    Nodes,
    /// The networks ClusterIPs are taken from, and no service.
    ServiceCidrs,
}

impl Dirty {
    const NOTHING: Self = Self::Services(Vec::new());
}

/// A Service with the slices that name it. Either may come first, and a slice may outlive its Service (spec 1.34).
#[derive(Debug, Default)]
struct Entry {
    service: Option<Box<Service>>,
    slices: BTreeMap<SliceName, Slice>,
}

/// A slice's name within its namespace; an EndpointSlice and an Endpoints object of one name are two.
type SliceName = (Origin, Arc<str>);

/// Everything known about the cluster.
#[derive(Debug, Default)]
pub struct Model {
    services: HashMap<ServiceName, Entry>,
    /// (namespace, origin, name) of a slice → the name of the service it belongs to, so that a slice moves when its
    /// label does (spec 1.32).
    slice_owners: HashMap<(Arc<str>, SliceName), Arc<str>>,
    node: Node,
    node_presence: NodePresence,
    /// Other nodes, by name.
    other_nodes: HashMap<Arc<str>, OtherNode>,
    /// True once every Node was delivered.
    has_every_node: bool,
    /// Services whose packets may go to other nodes in tunnels.
    direct_services: usize,
    service_cidrs: BTreeMap<Arc<str>, Vec<IpNet>>,
    refusals: BTreeMap<ObjectRef, Vec<Refusal>>,
    unreadable: BTreeMap<String, Vec<Refusal>>,
    new_refusals: Vec<Refusal>,
    synced: BTreeSet<Kind>,
    ended: Ended,
    names: Names,
}

impl Model {
    /// Knows nothing but the name of its node.
    pub fn new(node_name: Arc<str>) -> Self {
        Self { node: Node { name: node_name, ..Node::default() }, ..Self::default() }
    }

    /// Takes in one change and says what it made dirty.
    pub fn apply(&mut self, change: Change, rules: &Rules) -> Dirty {
        match change {
            Change::Applied(object) => {
                let id = object.object_ref();
                let (converted, refusals) = convert::convert(&object, rules);
                replace_refusals(&mut self.refusals, id.clone(), refusals, &mut self.new_refusals);
                self.set(&id, converted)
            }
            Change::Deleted(id) => {
                self.refusals.remove(&id);
                self.delete(&id)
            }
            Change::Synced(kind) => {
                self.synced.insert(kind);
                match kind {
                    // What a predecessor left in the maps goes if no object says so any more.
                    Kind::ServiceCidr => Dirty::ServiceCidrs,
                    _ => Dirty::NOTHING,
                }
            }
            Change::EveryNode => {
                let is_news = !std::mem::replace(&mut self.has_every_node, true);
                if is_news && self.wants_nodes() { Dirty::Nodes } else { Dirty::NOTHING }
            }
            Change::Unreadable { origin, refusals } => {
                replace_refusals(&mut self.unreadable, origin, refusals, &mut self.new_refusals);
                Dirty::NOTHING
            }
        }
    }

    /// True once Services and EndpointSlices were both delivered; nothing may be written before (spec 8.11).
    pub fn is_synced(&self) -> bool {
        self.synced.contains(&Kind::Service) && self.synced.contains(&Kind::EndpointSlice)
    }

    /// The Service of this name, unless it is not there or not proxied.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)?.service.as_deref()
    }

    /// Every proxied Service.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, &Service)> {
        self.services.iter().filter_map(|(name, entry)| Some((name, entry.service.as_deref()?)))
    }

    /// The slices that count for a service, by name: its EndpointSlices, or without any its Endpoints object.
    pub fn slices(&self, name: &ServiceName) -> impl Iterator<Item = &Slice> {
        let slices = self.services.get(name).map(|entry| &entry.slices);
        let origin = slices.and_then(|slices| slices.keys().next()).map(|(origin, _)| *origin);
        slices.into_iter().flatten().filter(move |((of, _), _)| Some(*of) == origin).map(|(_, slice)| slice)
    }

    /// True if the pod that had this address terminated and no slice has named it since.
    pub fn has_ended(&self, address: IpAddr) -> bool {
        self.ended.contains(address)
    }

    /// What is known about this node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// True if other nodes' addresses are needed: some Service's packets may go there in tunnels.
    pub fn wants_nodes(&self) -> bool {
        self.direct_services > 0
    }

    /// Where tunnels to another node end in family `F`, if any Service may need one.
    pub fn tunnel_end<F: Family>(&self, node: &str) -> Option<IpAddr> {
        let node = self.other_nodes.get(node).filter(|_| self.wants_nodes())?;
        node.internal_ips.iter().copied().find(|ip| F::Addr::from_ip(*ip).is_some())
    }

    /// True while other nodes are needed and not all of them were delivered: what a predecessor knew of them stays.
    pub fn awaits_nodes(&self) -> bool {
        self.wants_nodes() && !self.has_every_node
    }

    /// The other nodes that are known.
    pub fn other_nodes(&self) -> impl Iterator<Item = &OtherNode> {
        self.other_nodes.values()
    }

    /// What this node's Node object says about its future.
    pub fn node_presence(&self) -> NodePresence {
        self.node_presence
    }

    /// The networks ClusterIPs are taken from, of every ServiceCIDR object (spec 5.12).
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        self.service_cidrs.values().flatten().copied().collect()
    }

    /// The ServiceCIDR objects by name, with each network they name.
    pub fn service_cidr_objects(&self) -> impl Iterator<Item = (&str, &IpNet)> {
        let objects = self.service_cidrs.iter();
        objects.flat_map(|(name, cidrs)| cidrs.iter().map(move |cidr| (&**name, cidr)))
    }

    /// Everything that was refused, by object.
    pub fn refusals(&self) -> impl Iterator<Item = &Refusal> {
        self.refusals.values().chain(self.unreadable.values()).flatten()
    }

    /// What was refused since this was last asked, each fault once however often its object comes again.
    pub fn take_new_refusals(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.new_refusals)
    }

    fn set(&mut self, id: &ObjectRef, converted: Converted) -> Dirty {
        match converted {
            Converted::Service(service) => self.set_service(id, Some(Box::new(service))),
            Converted::Slice(slice) => self.set_slice(id, slice),
            Converted::Node(node, presence) => {
                self.node_presence = presence;
                self.set_node(node)
            }
            Converted::OtherNode(node) => self.set_other_node(id, Some(node)),
            Converted::ServiceCidr(cidrs) => {
                match self.service_cidrs.insert(id.name.as_str().into(), cidrs.clone()) {
                    Some(former) if former == cidrs => Dirty::NOTHING,
                    _ => Dirty::ServiceCidrs,
                }
            }
            Converted::NotProxied => self.delete(id),
        }
    }

    fn delete(&mut self, id: &ObjectRef) -> Dirty {
        match id.kind {
            Kind::Service => self.set_service(id, None),
            Kind::EndpointSlice | Kind::Endpoints => self.delete_slice(id),
            // The zone outlives the Node object (spec 9.6).
            Kind::Node if *id.name == *self.node.name => {
                self.node_presence = NodePresence::Missing;
                Dirty::NOTHING
            }
            Kind::Node => self.set_other_node(id, None),
            Kind::ServiceCidr => match self.service_cidrs.remove(id.name.as_str()) {
                Some(_) => Dirty::ServiceCidrs,
                None => Dirty::NOTHING,
            },
        }
    }

    fn set_service(&mut self, id: &ObjectRef, service: Option<Box<Service>>) -> Dirty {
        let name =
            ServiceName { namespace: self.names.share(&id.namespace), name: self.names.share(&id.name) };
        if service.is_none() && !self.services.contains_key(&name) {
            return Dirty::NOTHING;
        }
        let entry = self.services.entry(name.clone()).or_default();
        if entry.service == service {
            return Dirty::NOTHING;
        }
        let is_direct = |service: &Option<Box<Service>>| {
            usize::from(service.as_ref().is_some_and(|service| service.forwarding != Forwarding::Snat))
        };
        let wanted_nodes = self.direct_services > 0;
        self.direct_services += is_direct(&service);
        self.direct_services -= is_direct(&entry.service);
        entry.service = service;
        self.forget_if_empty(&name);
        if self.wants_nodes() != wanted_nodes {
            return Dirty::Nodes;
        }
        Dirty::Services(vec![name])
    }

    /// Takes in another node, or that there is no such node.
    fn set_other_node(&mut self, id: &ObjectRef, node: Option<OtherNode>) -> Dirty {
        let former = match node.clone() {
            Some(node) => self.other_nodes.insert(self.names.share(&id.name), node),
            None => self.other_nodes.remove(id.name.as_str()),
        };
        if former == node || !self.wants_nodes() { Dirty::NOTHING } else { Dirty::Nodes }
    }

    fn set_slice(&mut self, id: &ObjectRef, mut slice: Slice) -> Dirty {
        slice.share_names(&mut self.names);
        let owner = ServiceName { namespace: self.names.share(&id.namespace), name: slice.service.clone() };
        let name = (origin(id.kind), self.names.share(&id.name));
        let former = self.slice_owners.insert((owner.namespace.clone(), name.clone()), owner.name.clone());
        let mut dirty = Vec::new();
        if let Some(former) = former.filter(|former| *former != owner.name) {
            dirty.extend(self.take_slice(ServiceName { name: former, ..owner.clone() }, &name));
        }
        let entry = self.services.entry(owner.clone()).or_default();
        if entry.slices.get(&name) != Some(&slice) {
            match entry.slices.remove(&name) {
                Some(former) => self.ended.note(&former, &slice, entry.slices.values()),
                None => self.ended.note_first(&slice),
            }
            entry.slices.insert(name, slice);
            dirty.push(owner);
        }
        Dirty::Services(dirty)
    }

    fn delete_slice(&mut self, id: &ObjectRef) -> Dirty {
        let namespace: Arc<str> = id.namespace.as_str().into();
        let name = (origin(id.kind), Arc::from(id.name.as_str()));
        match self.slice_owners.remove(&(namespace.clone(), name.clone())) {
            Some(owner) => Dirty::Services(
                self.take_slice(ServiceName { namespace, name: owner }, &name).into_iter().collect(),
            ),
            None => Dirty::NOTHING,
        }
    }

    /// Takes a slice away from the service it belonged to, which is dirty then.
    fn take_slice(&mut self, owner: ServiceName, name: &SliceName) -> Option<ServiceName> {
        let removed = self.services.get_mut(&owner)?.slices.remove(name);
        self.forget_if_empty(&owner);
        removed.map(|_| owner)
    }

    fn forget_if_empty(&mut self, name: &ServiceName) {
        if self.services.get(name).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.services.remove(name);
        }
    }

    fn set_node(&mut self, node: Node) -> Dirty {
        if self.node == node {
            return Dirty::NOTHING;
        }
        self.node = node;
        Dirty::All
    }
}

/// Keeps `refusals` as all that is refused under `key`, and adds those that were not before to `news`.
fn replace_refusals<K: Ord>(
    known: &mut BTreeMap<K, Vec<Refusal>>,
    key: K,
    refusals: Vec<Refusal>,
    news: &mut Vec<Refusal>,
) {
    let former = known.remove(&key).unwrap_or_default();
    news.extend(refusals.iter().filter(|refusal| !former.contains(refusal)).cloned());
    if !refusals.is_empty() {
        known.insert(key, refusals);
    }
}

fn origin(kind: Kind) -> Origin {
    match kind {
        Kind::Endpoints => Origin::Endpoints,
        _ => Origin::EndpointSlice,
    }
}

/// One copy of each name that many objects carry: namespaces, nodes, zones, port names.
#[derive(Debug, Default)]
pub struct Names {
    known: HashSet<Arc<str>>,
    purge_at: usize,
}

impl Names {
    const PURGE_MIN: usize = 1024;

    /// The shared copy of `name`. Names nobody holds any more are dropped whenever their number has doubled.
    pub fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        if self.known.len() >= self.purge_at.max(Self::PURGE_MIN) {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.purge_at = 2 * self.known.len();
        }
        let name: Arc<str> = name.into();
        self.known.insert(name.clone());
        name
    }
}
