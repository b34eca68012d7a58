//! `DEVICES`, `NODE_ADDRESSES4`, `NODE_ADDRESSES6`: what this node is made of.

use crate::family::{Addr4, Addr6, Family, V4, V6};

/// What a network device leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DeviceRole(pub u32);

impl DeviceRole {
    /// Towards the network.
    pub const UPLINK: Self = Self(1);
    /// Towards a pod.
    pub const WORKLOAD: Self = Self(2);
    /// A tunnel device.
    pub const OVERLAY: Self = Self(3);

    /// The name operators read.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UPLINK => "uplink",
            Self::WORKLOAD => "workload",
            Self::OVERLAY => "overlay",
            _ => "?",
        }
    }
}

/// Facts about a device. A bit set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DeviceFlags(pub u32);

impl DeviceFlags {
    /// No Ethernet header: packets begin with the IP header (WireGuard, ipip, tun).
    pub const L3: Self = Self(1);
    /// Sends frames that an XDP program gives it (`XDP_REDIRECT`): our own runs there in the driver, and with it the
    /// queues for such frames.
    pub const XDP: Self = Self(2);
    /// What comes in by it is a pod's, as `--detect-local bridge-interface` or `interface-name-prefix` has it.
    pub const POD: Self = Self(4);
    /// One end of a veth pair whose other end is in a pod's network namespace: `bpf_redirect_peer` (Linux 5.10) can hand it
    /// packets there.
    pub const PEER: Self = Self(8);
}

/// Value of `DEVICES` under the device's ifindex (u32).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct DeviceValue {
    /// What it leads to.
    pub role: DeviceRole,
    /// Facts.
    pub flags: DeviceFlags,
    /// IPv4 source of packets that leave by this device after SNAT: its own primary address, or the node's where
    /// it has none. 0.0.0.0: the node has no IPv4 address.
    pub snat4: Addr4,
    /// The same for IPv6.
    pub snat6: Addr6,
    /// Its link-layer address: frames to another are not for this device. Zero: it takes any, as a bridge's port does, or has none.
    pub mac: [u8; 6],
    /// Zero.
    pub _pad: [u8; 2],
}

/// Key of `NODE_ADDRESSES`: an address of this node (kernel: type LOCAL).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NodeAddressKey<F: Family> {
    /// The address.
    pub addr: F::Addr,
}

/// Value of `NODE_ADDRESSES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NodeAddressValue {
    /// ifindex of the device that has the address.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<DeviceValue>() == 36);
const _: () = assert!(size_of::<NodeAddressKey<V4>>() == 4);
const _: () = assert!(size_of::<NodeAddressKey<V6>>() == 16);
