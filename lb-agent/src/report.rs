//! What a running agent tells an operator: the JSON of its admin socket, printed by the listings of the CLI.

use serde::{Deserialize, Serialize};

use crate::source::Refusal;

/// One service port with everything it leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortReport {
    /// Its id in the maps.
    pub id: u32,
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; may be empty.
    pub port_name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: String,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: String,
    /// Seconds of `sessionAffinity: ClientIP`, if set.
    pub affinity_timeout_s: Option<u32>,
    /// `random` or `maglev`: how backends are chosen.
    pub algorithm: String,
    /// `snat` or `dsr`: how what clients outside send gets to backends elsewhere.
    pub forwarding: String,
    /// `loadBalancerSourceRanges` in force.
    pub source_ranges: Vec<String>,
    /// What clients dial.
    pub frontends: Vec<FrontendReport>,
    /// Who serves, with the state in this service port.
    pub backends: Vec<BackendReport>,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendReport {
    /// `ClusterIP`, `NodePort`, `ExternalIP` or `LoadBalancer`.
    pub kind: String,
    /// `addr:port`, IPv6 in brackets.
    pub address: String,
    /// Backends that clients in the cluster may get.
    pub internal: usize,
    /// Backends that clients outside may get.
    pub external: usize,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// Its id in the maps.
    pub id: u32,
    /// `addr:port`, IPv6 in brackets.
    pub address: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `active`, `terminating` or `quarantined`.
    pub state: String,
    /// True if it runs on this node.
    pub local: bool,
    /// Node it runs on, if the slice says.
    pub node: Option<String>,
}

/// Whose tunnels end here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelReport {
    /// True while some Service's packets may go in tunnels.
    pub wanted: bool,
    /// True until every Node was seen: what the maps hold of them stays meanwhile.
    pub awaits_nodes: bool,
    /// Other nodes known.
    pub nodes: usize,
    /// Addresses and networks in the maps, both families.
    pub peers: usize,
}

/// The control plane's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReport {
    /// True once every source has synced and the maps hold it.
    pub synced: bool,
    /// Services known.
    pub services: usize,
    /// Service ports with at least one frontend.
    pub service_ports: usize,
    /// Frontends in the maps, both families.
    pub frontends: usize,
    /// Backends in the maps, both families.
    pub backends: usize,
    /// Service CIDRs in the maps, both families.
    pub service_cidrs: Vec<String>,
    /// Who may send tunnels here.
    pub tunnels: TunnelReport,
    /// Services waiting to be written.
    pub dirty: usize,
    /// Successful syncs since start.
    pub syncs: u64,
    /// Failed syncs since start.
    pub failures: u64,
    /// The last failure, until a sync succeeds.
    pub last_error: Option<String>,
    /// Duration of the last sync, microseconds.
    pub last_sync_us: u64,
    /// Times the periodic full check found have != want.
    pub repairs: u64,
    /// What was refused, and why.
    pub refusals: Vec<Refusal>,
}
