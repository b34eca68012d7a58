//! The hooks of a device, which programs they may have, and what holds these.

use std::str::FromStr;

use aya::programs::TcAttachType;
use lb_common::device::{DeviceFlags, DeviceRole};
use serde::{Deserialize, Serialize};

use super::bpf::AttachType;

/// How tc programs are to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// tcx where the kernel has it, else clsact.
    #[default]
    Auto,
    /// tcx or nothing.
    Tcx,
    /// clsact.
    Clsact,
}

impl FromStr for AttachMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            _ => Err(format!("{text:?} is none of auto, tcx, clsact")),
        }
    }
}

/// What holds a tc program on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// A tcx link.
    Tcx,
    /// A filter of a clsact qdisc.
    Clsact,
}

impl Mechanism {
    /// Its name in metrics and listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Direction of a device's hook, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets the device received.
    Ingress,
    /// Packets it is about to send.
    Egress,
}

impl Hook {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Its name in pins.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Every program that may be there.
    pub(super) const fn programs(self) -> [&'static str; 3] {
        match self {
            Self::Ingress => ["tc_uplink_ingress", "tc_l3_ingress", "tc_workload_ingress"],
            Self::Egress => ["tc_uplink_egress", "tc_l3_egress", "tc_workload_egress"],
        }
    }

    /// The program for a device of `role`. Overlay devices are treated as uplinks; those without link-layer header have
    /// programs of their own.
    pub const fn program(self, role: DeviceRole, flags: DeviceFlags) -> &'static str {
        let [uplink, l3, workload] = self.programs();
        match role {
            DeviceRole::WORKLOAD => workload,
            _ if flags.has(DeviceFlags::L3) => l3,
            _ => uplink,
        }
    }

    /// Its tcx attach type.
    pub(super) const fn tcx(self) -> AttachType {
        match self {
            Self::Ingress => AttachType::TCX_INGRESS,
            Self::Egress => AttachType::TCX_EGRESS,
        }
    }

    /// Its parent in a clsact qdisc.
    pub(super) const fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_the_programs_that_can_read_its_packets() {
        let (link, no_link) = (DeviceFlags::default(), DeviceFlags::L3);
        assert_eq!(Hook::Ingress.program(DeviceRole::OVERLAY, link), "tc_uplink_ingress");
        assert_eq!(Hook::Egress.program(DeviceRole::UPLINK, link), "tc_uplink_egress");
        assert_eq!(Hook::Egress.program(DeviceRole::WORKLOAD, link), "tc_workload_egress");
        assert_eq!(Hook::Ingress.program(DeviceRole::OVERLAY, no_link), "tc_l3_ingress");
        assert_eq!(Hook::Egress.program(DeviceRole::UPLINK, no_link), "tc_l3_egress");
    }

    #[test]
    fn attach_modes_are_read_by_name() {
        assert_eq!("auto".parse(), Ok(AttachMode::Auto));
        assert_eq!("clsact".parse(), Ok(AttachMode::Clsact));
        assert!("xdp".parse::<AttachMode>().is_err());
    }
}
