//! The programs' read-only globals: what the verifier knows when it looks at them, so that what a value rules out is not there.

use aya::EbpfLoader;
use lb_common::{limits, settings};

use super::kernel::Jiffies;

/// A value for each (`lb_common::settings`); the default is what the object has. Flags: 1 or 0.
#[derive(Clone, Copy, Debug)]
pub struct Globals {
    /// Cookie of the node's own network namespace; 0: none is.
    pub node_netns_cookie: u64,
    /// First SNAT source port.
    pub snat_port_min: u32,
    /// Number of SNAT source ports.
    pub snat_port_count: u32,
    /// By what pods are known.
    pub detect_local: settings::DetectLocal,
    /// Flag: whoever dials a ClusterIP gets a node address.
    pub masquerade_all: u32,
    /// Flag: what pods dial is sent on by the programs, past the stack.
    pub forwards_pods: u32,
    /// New flows a second and CPU that are a flood; 0: none are.
    pub flood_threshold: u32,
    /// Flag: XDP asks first whether a packet needs a connection.
    pub stateless: u32,
    /// The clock that the programs read.
    pub jiffies: Jiffies,
    /// `FEATURE_…` that the programs may use.
    pub features: u32,
}

impl Default for Globals {
    fn default() -> Self {
        Self {
            node_netns_cookie: 0,
            snat_port_min: limits::SNAT_PORT_MIN.into(),
            snat_port_count: limits::SNAT_PORT_COUNT.into(),
            detect_local: settings::DetectLocal::DEVICE_ROLE,
            masquerade_all: 0,
            forwards_pods: 0,
            flood_threshold: 0,
            stateless: 0,
            jiffies: Jiffies::default(),
            features: 0,
        }
    }
}

impl Globals {
    /// Has `loader` write them into the object. Loading fails if the object lacks one.
    pub fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global(settings::NODE_NETNS_COOKIE, &self.node_netns_cookie, true)
            .override_global(settings::SNAT_PORT_MIN, &self.snat_port_min, true)
            .override_global(settings::SNAT_PORT_COUNT, &self.snat_port_count, true)
            .override_global(settings::DETECT_LOCAL, &self.detect_local.0, true)
            .override_global(settings::MASQUERADE_ALL, &self.masquerade_all, true)
            .override_global(settings::FORWARDS_PODS, &self.forwards_pods, true)
            .override_global(settings::FLOOD_THRESHOLD, &self.flood_threshold, true)
            .override_global(settings::STATELESS, &self.stateless, true)
            .override_global(settings::JIFFY_NS, &self.jiffies.ns, true)
            .override_global(settings::JIFFIES_AT_0, &self.jiffies.at_0, true)
            .override_global(settings::FEATURES, &self.features, true);
    }
}
