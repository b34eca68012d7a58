//! `--detect-local`: by what a packet is known to come from a pod, and so from inside the cluster (spec 4d).
//!
//! kube-proxy asks this to decide about policies and masquerading; here it decides about policies alone, because whose
//! address a backend sees follows from where the answer will pass (`lb-ebpf/src/client.rs`).

use std::collections::BTreeMap;

use ipnet::IpNet;
use lb_common::{
    cidr::CidrValue,
    family::{Address as _, Family},
    settings,
};
use thiserror::Error;

/// Flags that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DetectLocalError {
    /// No network of pods.
    #[error("--detect-local cluster-cidr needs --cluster-cidr")]
    ClusterCidr,
    /// No bridge.
    #[error("--detect-local bridge-interface needs --pod-bridge-interface")]
    BridgeInterface,
    /// No prefix; it would hold for every device.
    #[error("--detect-local interface-name-prefix needs --pod-interface-name-prefix")]
    InterfaceNamePrefix,
}

/// The word after `--detect-local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DetectLocalMode {
    /// What comes in by a device towards a pod (see --workload)
    DeviceRole,
    /// What has a source in --cluster-cidr: any pod of the cluster
    ClusterCidr,
    /// What has a source in the podCIDRs of this Node: the pods of this node
    NodeCidr,
    /// What comes in by the bridge --pod-bridge-interface
    BridgeInterface,
    /// What comes in by a device whose name begins with --pod-interface-name-prefix
    InterfaceNamePrefix,
    /// Nothing: policy Local holds for pods as well
    None,
}

/// What goes with the mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetectLocalHints {
    /// Networks of pods; the first of each family counts (spec 4.51).
    pub cluster_cidrs: Vec<IpNet>,
    /// Bridge of this node's pods.
    pub bridge_interface: String,
    /// How the names of pods' devices begin.
    pub interface_name_prefix: String,
}

/// By what pods are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// [`DetectLocalMode::DeviceRole`]
    #[default]
    DeviceRole,
    /// [`DetectLocalMode::ClusterCidr`]
    ClusterCidr(Vec<IpNet>),
    /// [`DetectLocalMode::NodeCidr`]
    NodeCidr,
    /// [`DetectLocalMode::BridgeInterface`]
    BridgeInterface(String),
    /// [`DetectLocalMode::InterfaceNamePrefix`]
    InterfaceNamePrefix(String),
    /// [`DetectLocalMode::None`]
    None,
}

impl DetectLocal {
    /// From the flags. Without a mode the cluster's networks are enough of a word (spec 4.50).
    pub fn new(mode: Option<DetectLocalMode>, hints: DetectLocalHints) -> Result<Self, DetectLocalError> {
        let DetectLocalHints { cluster_cidrs, bridge_interface, interface_name_prefix } = hints;
        let fallback =
            if cluster_cidrs.is_empty() { DetectLocalMode::DeviceRole } else { DetectLocalMode::ClusterCidr };
        match mode.unwrap_or(fallback) {
            DetectLocalMode::DeviceRole => Ok(Self::DeviceRole),
            DetectLocalMode::ClusterCidr if cluster_cidrs.is_empty() => Err(DetectLocalError::ClusterCidr),
            DetectLocalMode::ClusterCidr => Ok(Self::ClusterCidr(cluster_cidrs)),
            DetectLocalMode::NodeCidr => Ok(Self::NodeCidr),
            DetectLocalMode::BridgeInterface if bridge_interface.is_empty() => {
                Err(DetectLocalError::BridgeInterface)
            }
            DetectLocalMode::BridgeInterface => Ok(Self::BridgeInterface(bridge_interface)),
            DetectLocalMode::InterfaceNamePrefix if interface_name_prefix.is_empty() => {
                Err(DetectLocalError::InterfaceNamePrefix)
            }
            DetectLocalMode::InterfaceNamePrefix => Ok(Self::InterfaceNamePrefix(interface_name_prefix)),
            DetectLocalMode::None => Ok(Self::None),
        }
    }

    /// What the programs are told.
    pub fn code(&self) -> settings::DetectLocal {
        match self {
            Self::DeviceRole => settings::DetectLocal::DEVICE_ROLE,
            Self::ClusterCidr(_) | Self::NodeCidr => settings::DetectLocal::CIDR,
            Self::BridgeInterface(_) | Self::InterfaceNamePrefix(_) => settings::DetectLocal::DEVICE_NAME,
            Self::None => settings::DetectLocal::NONE,
        }
    }

    /// True if what comes in by a device of this name, and of this bridge, is a pod's. Names count, not numbers: the device may come later, or again
    /// (spec 4.53). A port of a bridge goes by its bridge's name too, which is what a packet comes in by for IP.
    pub fn is_pod_device(&self, name: &str, bridge: Option<&str>) -> bool {
        let mut names = [Some(name), bridge].into_iter().flatten();
        match self {
            Self::BridgeInterface(bridge) => names.any(|name| name == bridge),
            Self::InterfaceNamePrefix(prefix) => names.any(|name| name.starts_with(prefix)),
            _ => false,
        }
    }

    /// The networks of pods, given those of the own Node object; `None` while they are not known.
    pub fn pod_cidrs<'a>(&'a self, node: Option<&'a [IpNet]>) -> Option<&'a [IpNet]> {
        match self {
            Self::ClusterCidr(cidrs) => Some(cidrs),
            Self::NodeCidr => node,
            _ => Some(&[]),
        }
    }
}

/// The entry of `POD_CIDRS` for family `F`: the first network of the family (spec 4.51, 4.52).
pub fn pod_cidr_entry<F: Family>(cidrs: &[IpNet]) -> BTreeMap<u32, CidrValue<F>> {
    let entry = cidrs.iter().find_map(|cidr| {
        let (network, mask) = (F::Addr::from_ip(cidr.network())?, F::Addr::from_ip(cidr.netmask())?);
        Some((0, CidrValue { network, mask, used: 1 }))
    });
    entry.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use lb_common::family::{V4, V6};

    use super::*;

    fn cidrs(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|cidr| cidr.parse().unwrap()).collect()
    }

    fn hints() -> DetectLocalHints {
        DetectLocalHints {
            cluster_cidrs: cidrs(&["10.0.0.0/8"]),
            bridge_interface: "cni0".into(),
            interface_name_prefix: "cali".into(),
        }
    }

    #[test]
    fn a_mode_needs_what_it_looks_for() {
        use DetectLocalMode::*;
        let none = DetectLocalHints::default;
        let rows = [
            (Option::None, none(), Ok(DetectLocal::DeviceRole)),
            (Option::None, hints(), Ok(DetectLocal::ClusterCidr(cidrs(&["10.0.0.0/8"])))),
            (Some(DeviceRole), hints(), Ok(DetectLocal::DeviceRole)),
            (Some(ClusterCidr), none(), Err(DetectLocalError::ClusterCidr)),
            (Some(NodeCidr), none(), Ok(DetectLocal::NodeCidr)),
            (Some(BridgeInterface), none(), Err(DetectLocalError::BridgeInterface)),
            (Some(BridgeInterface), hints(), Ok(DetectLocal::BridgeInterface("cni0".into()))),
            (Some(InterfaceNamePrefix), none(), Err(DetectLocalError::InterfaceNamePrefix)),
            (Some(InterfaceNamePrefix), hints(), Ok(DetectLocal::InterfaceNamePrefix("cali".into()))),
            (Some(None), hints(), Ok(DetectLocal::None)),
        ];
        for (mode, hints, expected) in rows {
            assert_eq!(DetectLocal::new(mode, hints), expected, "spec 4.50, 4.55: {mode:?}");
        }
    }

    #[test]
    fn devices_go_by_their_name_and_their_bridges() {
        let bridge = DetectLocal::BridgeInterface("cni0".into());
        let prefix = DetectLocal::InterfaceNamePrefix("cali".into());
        let rows = [
            (&bridge, ("cni0", Option::None), true),
            (&bridge, ("veth1", Some("cni0")), true),
            (&bridge, ("veth1", Some("docker0")), false),
            (&bridge, ("cni01", Option::None), false),
            (&prefix, ("cali7", Option::None), true),
            (&prefix, ("veth1", Some("cali0")), true),
            (&prefix, ("eth0", Option::None), false),
            (&DetectLocal::NodeCidr, ("cali7", Option::None), false),
        ];
        for (detect, (name, bridge), expected) in rows {
            assert_eq!(
                detect.is_pod_device(name, bridge),
                expected,
                "spec 4.53: {detect:?} {name} {bridge:?}"
            );
        }
    }

    #[test]
    fn the_first_network_of_a_family_counts() {
        let list = cidrs(&["10.0.0.0/8", "fd00::/48", "172.16.0.0/12"]);
        let four = pod_cidr_entry::<V4>(&list);
        assert_eq!(four.len(), 1, "spec 4.51");
        assert_eq!(four[&0].network.to_ip().to_string(), "10.0.0.0");
        assert_eq!(pod_cidr_entry::<V6>(&list)[&0].mask.to_ip().to_string(), "ffff:ffff:ffff::");
        assert!(pod_cidr_entry::<V6>(&list[..1]).is_empty(), "none of this family: nobody is a pod");
        assert_eq!(DetectLocal::NodeCidr.pod_cidrs(Option::None), Option::None, "not known yet");
    }
}
