//! Which backends serve which client: the specification, as one pure function over one service port in one family.
//!
//! Called by `desired` for every service port that is dirty. Numbers in brackets are those of the reference spec.

use crate::model::{
    backend::{Backend, Conditions},
    node::Node,
    service::Policy,
};

/// The rules that apply to a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// `internalTrafficPolicy` (1.55).
    pub internal: Policy,
    /// `externalTrafficPolicy` (1.54).
    pub external: Policy,
    /// True if it has a NodePort, externalIP or load balancer address in this family (1.57).
    pub is_externally_accessible: bool,
    /// True if other nodes may send this one what is for its backends (direct server return).
    pub returns_directly: bool,
}

/// The answer: indices into the backends that were given, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Whom clients get under policy Cluster.
    pub cluster: Vec<usize>,
    /// Whom clients get under policy Local.
    pub local: Vec<usize>,
    /// True if something serves somewhere: an empty set then means "not here" and is met with silence; otherwise it
    /// means "nowhere" and is refused (section 5).
    pub has_any: bool,
}

/// Selects the backends of one service port in one family.
///
/// **Cluster set**, if some frontend may use it (1.58: `internalTrafficPolicy: Cluster`, or anything that can be
/// reached from outside):
/// - the ready backends (2.7), of which topology hints may leave a part:
///   - hints count only if every ready backend carries one of the kind in question, and only if one of them means
///     us; backends that are not ready have no say (2.12, 2.13, 2.19, 2.20);
///   - node hints that name this node come first (2.14); failing that, zone hints that name its zone (2.15);
///     otherwise all ready backends stay (2.16). A node without a zone matches no zone hint (2.18).
/// - if none is ready: all that terminate but still serve, whatever their hints (2.7).
///
/// **Local set**, if some frontend may use it (1.58: `internalTrafficPolicy: Local`, or `externalTrafficPolicy:
/// Local` of something that can be reached from outside, 2.27; or direct server return of such): the ready backends on this node; if there is none,
/// those on this node that terminate but still serve (2.10). Hints have no say here. The fallback of one set does
/// not depend on the other's.
///
/// **`has_any`**: the cluster set is not empty; or, where the local set is used, any backend anywhere is ready, or
/// terminates and still serves (2.7, 2.9).
///
/// A backend that serves without being ready, and does not terminate, is never selected.
pub fn select(backends: &[Backend<'_>], policies: Policies, node: &Node) -> Selection {
    let mut selection = Selection::default();
    if uses_cluster(policies) {
        selection.cluster = cluster_set(backends, node);
        selection.has_any = !selection.cluster.is_empty();
    }
    if uses_local(policies) {
        let mut usable = backends.iter().map(|backend| backend.host.conditions);
        selection.has_any |= usable.any(|conditions| conditions.ready || is_last_resort(conditions));
        selection.local =
            ready_or_last_resort(backends, |backend| backend.is_local, |backend| backend.is_local);
    }
    selection
}

fn uses_cluster(policies: Policies) -> bool {
    policies.internal == Policy::Cluster || policies.is_externally_accessible
}

fn uses_local(policies: Policies) -> bool {
    policies.internal == Policy::Local
        || (policies.external == Policy::Local || policies.returns_directly)
            && policies.is_externally_accessible
}

/// Not ready any more, but serving until its connections have ended.
fn is_last_resort(conditions: Conditions) -> bool {
    !conditions.ready && conditions.serving && conditions.terminating
}

fn cluster_set(backends: &[Backend<'_>], node: &Node) -> Vec<usize> {
    let topology = Topology::of(backends, node);
    ready_or_last_resort(backends, |backend| topology.allows(backend, node), |_| true)
}

/// The ready ones among those `wanted`; without any, the last resorts among those `wanted_then`.
fn ready_or_last_resort(
    backends: &[Backend<'_>],
    wanted: impl Fn(&Backend<'_>) -> bool,
    wanted_then: impl Fn(&Backend<'_>) -> bool,
) -> Vec<usize> {
    let ready = indices(backends, |backend| backend.host.conditions.ready && wanted(backend));
    if !ready.is_empty() {
        return ready;
    }
    indices(backends, |backend| is_last_resort(backend.host.conditions) && wanted_then(backend))
}

fn indices(backends: &[Backend<'_>], keep: impl Fn(&Backend<'_>) -> bool) -> Vec<usize> {
    backends.iter().enumerate().filter(|(_, backend)| keep(backend)).map(|(index, _)| index).collect()
}

/// Which hints are obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Ignored,
    SameNode,
    SameZone,
}

impl Topology {
    /// The hints to obey, from the ready backends (2.12 to 2.16).
    fn of(backends: &[Backend<'_>], node: &Node) -> Self {
        let mut ready = backends.iter().filter(|backend| backend.host.conditions.ready).peekable();
        if ready.peek().is_none() {
            return Self::Ignored;
        }
        let (mut all_name_nodes, mut one_names_node, mut all_name_zones, mut one_names_zone) =
            (true, false, true, false);
        for backend in ready {
            let hints = backend.host.hints.as_deref();
            all_name_nodes &= hints.is_some_and(|hints| !hints.nodes.is_empty());
            all_name_zones &= hints.is_some_and(|hints| !hints.zones.is_empty());
            one_names_node |= names_node(backend, node);
            one_names_zone |= names_zone(backend, node);
        }
        match (all_name_nodes && one_names_node, all_name_zones && one_names_zone) {
            (true, _) => Self::SameNode,
            (false, true) => Self::SameZone,
            (false, false) => Self::Ignored,
        }
    }

    fn allows(self, backend: &Backend<'_>, node: &Node) -> bool {
        match self {
            Self::Ignored => true,
            Self::SameNode => names_node(backend, node),
            Self::SameZone => names_zone(backend, node),
        }
    }
}

fn names_node(backend: &Backend<'_>, node: &Node) -> bool {
    backend.host.hints.as_ref().is_some_and(|hints| hints.nodes.contains(&node.name))
}

fn names_zone(backend: &Backend<'_>, node: &Node) -> bool {
    let hints = backend.host.hints.as_ref();
    hints.zip(node.zone.as_ref()).is_some_and(|(hints, zone)| hints.zones.contains(zone))
}

#[cfg(test)]
mod tests;
