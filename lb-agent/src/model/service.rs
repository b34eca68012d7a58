//! A Service as the load balancer sees it: what clients dial, and which rules apply.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipnet::IpNet;
use lb_common::family::{Address, Family, Protocol};

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which port of a Service; with the Service's name the identity of a service port (spec 1.15).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    /// Name of the port; may be empty.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Every backend serves.
    #[default]
    Cluster,
    /// Only backends on this node serve.
    Local,
}

impl Policy {
    /// Kubernetes' spelling.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

/// How a new connection gets its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Any of them.
    #[default]
    Random,
    /// The one that the flow's hash finds in the Maglev table: every node gives a flow the same.
    Maglev,
}

impl Algorithm {
    /// As the flag and the annotation spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Maglev => "maglev",
        }
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Random, Self::Maglev].into_iter().find(|algorithm| algorithm.name() == text);
        known.ok_or_else(|| format!("{text:?} is no algorithm: random and maglev are"))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How what a client outside sends gets to a backend on another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// With this node's address as its source: the answer comes back here.
    #[default]
    Snat,
    /// Unchanged, in a tunnel: the backend's node answers the client itself (direct server return).
    Dsr,
    /// TCP as `Dsr`, everything else as `Snat`.
    Hybrid,
}

impl Forwarding {
    /// As the flag and the annotation spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Snat => "snat",
            Self::Dsr => "dsr",
            Self::Hybrid => "hybrid",
        }
    }
}

impl FromStr for Forwarding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Snat, Self::Dsr, Self::Hybrid].into_iter().find(|one| one.name() == text);
        known.ok_or_else(|| format!("{text:?} is no way of forwarding: snat, dsr and hybrid are"))
    }
}

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A proxied Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `metadata.uid`; may be empty.
    pub uid: Arc<str>,
    /// `creationTimestamp` in seconds since 1970; without one the Service counts as the youngest.
    pub created_s: i64,
    /// At most one address per family. A family without one is not proxied at all (spec 1.9).
    pub cluster_ips: Box<[IpAddr]>,
    /// `externalIPs` that are allowed.
    pub external_ips: Box<[IpAddr]>,
    /// Addresses of `status.loadBalancer` that reach this node unchanged (spec 1.43).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `loadBalancerSourceRanges`, if the Service has any.
    pub source_ranges: Option<Box<[IpNet]>>,
    /// Whom clients in the cluster get under a ClusterIP.
    pub internal_policy: Policy,
    /// Whom clients outside get under every other frontend.
    pub external_policy: Policy,
    /// Seconds of `sessionAffinity: ClientIP`.
    pub affinity_timeout_s: Option<u32>,
    /// How its connections get their backends.
    pub algorithm: Algorithm,
    /// How its packets get to backends elsewhere.
    pub forwarding: Forwarding,
    /// Where the cloud's load balancer asks for local backends (spec 1.56).
    pub health_check_node_port: Option<u16>,
    /// Its ports.
    pub ports: Box<[Port]>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name and protocol.
    pub name: PortName,
    /// Port of the ClusterIP, externalIPs and load balancer addresses.
    pub port: u16,
    /// Port of the node's addresses.
    pub node_port: Option<u16>,
}

impl Service {
    /// The ClusterIP of a family; without one the Service does not exist for it.
    pub fn cluster_ip<F: Family>(&self) -> Option<F::Addr> {
        addresses::<F>(&self.cluster_ips).next()
    }

    /// True if a port can be reached from outside in family `F` (spec 1.57).
    pub fn is_externally_accessible<F: Family>(&self, port: &Port) -> bool {
        port.node_port.is_some()
            || addresses::<F>(&self.external_ips).next().is_some()
            || addresses::<F>(&self.load_balancer_ips).next().is_some()
    }

    /// True if backends elsewhere answer the clients outside of a port themselves. Under policy Local there are none.
    pub fn returns_directly(&self, port: &Port) -> bool {
        let wanted = match self.forwarding {
            Forwarding::Snat => false,
            Forwarding::Dsr => true,
            Forwarding::Hybrid => port.name.protocol == Protocol::TCP,
        };
        wanted && self.external_policy == Policy::Cluster
    }

    /// Who may use the load balancer addresses of family `F`: `None` for everybody, else these networks.
    ///
    /// A network of length 0 opens its family (spec 1.47). Ranges that name only the other family, or nothing
    /// readable, close this one (DESIGN 10), where kube-proxy would leave it open (spec 1.48).
    pub fn source_ranges<F: Family>(&self) -> Option<Vec<IpNet>> {
        let ranges = self.source_ranges.as_deref()?;
        let ranges: Vec<_> =
            ranges.iter().copied().filter(|range| F::Addr::from_ip(range.addr()).is_some()).collect();
        if ranges.iter().any(|range| range.prefix_len() == 0) { None } else { Some(ranges) }
    }

    /// True if something about it depends on the addresses of this node.
    pub fn depends_on_node_addresses(&self) -> bool {
        self.source_ranges.is_some() || self.ports.iter().any(|port| port.node_port.is_some())
    }
}

/// Those of `ips` that are of family `F`.
pub fn addresses<F: Family>(ips: &[IpAddr]) -> impl Iterator<Item = F::Addr> {
    ips.iter().filter_map(|ip| F::Addr::from_ip(*ip))
}
