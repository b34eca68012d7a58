//! The places of a test: addresses, per family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::family::{Family, V4, V6};

/// The places of a test, per family.
pub trait Places: Family {
    /// A client outside.
    const CLIENT: IpAddr;
    /// The router between node, clients and other nodes.
    const ROUTER: IpAddr;
    /// Another one.
    const OTHER_CLIENT: IpAddr;
    /// A VIP.
    const VIP: IpAddr;
    /// Another VIP.
    const OTHER_VIP: IpAddr;
    /// This node.
    const NODE: IpAddr;
    /// A pod of this node.
    const POD: IpAddr;
    /// A pod of another node.
    const REMOTE_POD: IpAddr;
    /// The node of [`Self::REMOTE_POD`].
    const OTHER_NODE: IpAddr;
    /// A pod behind a device with an MTU of 1280.
    const NARROW_POD: IpAddr;
    /// An address with an unreachable route.
    const NOWHERE: IpAddr;
}

impl Places for V4 {
    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
    const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 200));
    const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
    const OTHER_VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 11));
    const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11));
    const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2));
    const REMOTE_POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 2, 2));
    const OTHER_NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 12));
    const NARROW_POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 3, 2));
    const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 9, 9));
}

impl Places for V6 {
    const CLIENT: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
    const ROUTER: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1));
    const OTHER_CLIENT: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x200, 0, 0, 0, 0, 0x20));
    const VIP: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xa));
    const OTHER_VIP: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xb));
    const NODE: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x11));
    const POD: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 2));
    const REMOTE_POD: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 2, 0, 0, 0, 0, 2));
    const OTHER_NODE: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x12));
    const NARROW_POD: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 3, 0, 0, 0, 0, 2));
    const NOWHERE: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 9, 0, 0, 0, 0, 9));
}
