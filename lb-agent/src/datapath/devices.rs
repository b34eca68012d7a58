//! Which devices get which programs, and what of this node the datapath must know: pure decisions over what netlink
//! says. Called by `follow`.
//!
//! What must stay true: the answer depends on the arguments alone, so the rule table below is tested as a table.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    str::FromStr,
};

use ipnet::IpNet;
use lb_common::{
    device::{DeviceFlags, DeviceRole, DeviceValue},
    family::{Addr4, Addr6, Address},
};

use super::local::DetectLocal;

/// `ARPHRD_ETHER`: packets begin with an Ethernet header.
pub const ARPHRD_ETHER: u16 = 1;
/// `ARPHRD_LOOPBACK`: they do as well.
pub const ARPHRD_LOOPBACK: u16 = 772;
/// The device on which kube-proxy's IPVS mode leaves service addresses: they are not the node's.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// A network device, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// `IFLA_INFO_KIND`; empty: a physical device (or the loopback device).
    pub kind: String,
    /// `IFLA_LINK`: the device below, or the other end.
    pub link: Option<u32>,
    /// `ARPHRD_…`.
    pub link_type: u16,
    /// `IFLA_ADDRESS` of six bytes; zero: it has another, or none.
    pub mac: [u8; 6],
    /// True for the loopback device.
    pub is_loopback: bool,
    /// `IFLA_LINK_NETNSID` is present: the other end, or the device below, is in another network namespace.
    pub has_foreign_peer: bool,
    /// Kind of the device it is a port of (`bridge`, `bond`, …).
    pub port_of: Option<String>,
    /// Name of that device.
    pub controller: Option<String>,
    /// The way of a default route.
    pub has_default_route: bool,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<DeviceAddress>,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Global scope, neither secondary nor deprecated: fit as a source.
    pub is_primary: bool,
}

/// Device name patterns of the operator; `*` stands for any characters, `?` for one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    /// Uplinks.
    pub uplink: Vec<String>,
    /// Workload devices.
    pub workload: Vec<String>,
    /// Overlay devices.
    pub overlay: Vec<String>,
}

/// What a device leads to; `None`: nothing of ours is attached to it.
///
/// A pattern of the operator decides first, and where patterns are given for a role, only they give that role.
/// Then, from top to bottom:
///
/// | device | role |
/// |---|---|
/// | loopback; dummy, ifb, vrf, … | none |
/// | vxlan, geneve, gre*, erspan, ipip, sit, ip6tnl, vti*, wireguard, xfrm; tun without Ethernet header | overlay |
/// | port of a bond, team, or other device that takes over its packets (a bridge does so only for physical ports) | none |
/// | veth or netkit whose peer is in another network namespace, no default route | workload |
/// | bridge without a default route (cni0, docker0) | none: its ports are the workloads |
/// | physical, bond, team, vlan, macvlan, ipvlan, ipoib with an address or a default route | uplink |
/// | veth, netkit, bridge, tap or other with a default route (nodes that are containers) | uplink |
/// | anything else | none |
pub fn role(device: &Device, patterns: &Patterns) -> Option<DeviceRole> {
    let given = [
        (&patterns.uplink, DeviceRole::UPLINK),
        (&patterns.workload, DeviceRole::WORKLOAD),
        (&patterns.overlay, DeviceRole::OVERLAY),
    ];
    let matched = given.iter().find(|(list, _)| list.iter().any(|pattern| matches(pattern, &device.name)));
    if let Some((_, role)) = matched {
        return Some(*role);
    }
    let found = role_by_rule(device)?;
    let is_left_to_patterns = given.iter().any(|(list, role)| *role == found && !list.is_empty());
    (!is_left_to_patterns).then_some(found)
}

fn role_by_rule(device: &Device) -> Option<DeviceRole> {
    if device.is_loopback {
        return None;
    }
    match (device.kind.as_str(), device.port_of.as_deref()) {
        ("dummy" | "ifb" | "vrf" | "nlmon" | "vcan", _) => None,
        (kind, _) if is_overlay(kind) => Some(DeviceRole::OVERLAY),
        ("tun", _) if device.link_type != ARPHRD_ETHER => Some(DeviceRole::OVERLAY),
        ("veth" | "netkit", _) if device.has_foreign_peer && !device.has_default_route => {
            Some(DeviceRole::WORKLOAD)
        }
        (_, Some(_)) => None,
        ("" | "bond" | "team" | "vlan" | "macvlan" | "ipvlan" | "ipoib", _) => {
            (device.has_default_route || !device.addresses.is_empty()).then_some(DeviceRole::UPLINK)
        }
        _ => device.has_default_route.then_some(DeviceRole::UPLINK),
    }
}

fn is_overlay(kind: &str) -> bool {
    matches!(
        kind,
        "vxlan"
            | "geneve"
            | "ipip"
            | "sit"
            | "ip6tnl"
            | "vti"
            | "vti6"
            | "wireguard"
            | "xfrm"
            | "erspan"
            | "ip6erspan"
    ) || kind.starts_with("gre")
        || kind.starts_with("ip6gre")
}

/// True if `pattern` describes the whole of `name`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.chars().next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = &pattern[1..];
            name.char_indices().any(|(at, _)| matches(rest, &name[at..])) || matches(rest, "")
        }
        Some(first) => {
            let mut characters = name.chars();
            characters.next().is_some_and(|found| first == '?' || first == found)
                && matches(&pattern[first.len_utf8()..], characters.as_str())
        }
    }
}

/// How a device receives: what decides whether XDP may run there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receiver {
    /// `IFLA_INFO_KIND`; empty: a driver of its own.
    pub kind: String,
    /// VLAN devices stand above it.
    pub has_vlans: bool,
}

/// What the datapath and the control plane must know about this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Devices with a role: name and entry of `DEVICES`, by ifindex.
    pub devices: BTreeMap<u32, (String, DeviceValue)>,
    /// What decides about XDP on devices with a role, by ifindex.
    pub receivers: BTreeMap<u32, Receiver>,
    /// Entries of `DEVICES` for those without one: packets may leave by them too, as by the bridge of pods.
    pub others: BTreeMap<u32, DeviceValue>,
    /// Entries of `NODE_ADDRESSES4` and `NODE_ADDRESSES6`: address → ifindex.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// The primary address per family: that of the default-route device.
    pub primary: BTreeSet<IpAddr>,
}

/// Derives everything from the devices.
pub fn node_state(devices: &[Device], patterns: &Patterns, detect_local: &DetectLocal) -> NodeState {
    let mut state = NodeState::default();
    for device in devices.iter().filter(|device| device.name != IPVS_DEVICE) {
        for address in device.addresses.iter().filter(|address| is_usable(address.ip)) {
            state.addresses.entry(address.ip.to_canonical()).or_insert(device.ifindex);
        }
    }
    for device in devices {
        let role = role(device, patterns);
        let value = DeviceValue {
            role: role.unwrap_or_default(),
            flags: device_flags(device, role, detect_local),
            snat4: snat_source::<Addr4>(device, devices),
            snat6: snat_source::<Addr6>(device, devices),
            mac: own_mac(device),
            _pad: [0; 2],
        };
        if role.is_some() {
            state.devices.insert(device.ifindex, (device.name.clone(), value));
            let has_vlans = devices.iter().any(|above| is_vlan_of(above, device));
            state.receivers.insert(device.ifindex, Receiver { kind: device.kind.clone(), has_vlans });
        } else if !device.is_loopback && device.name != IPVS_DEVICE {
            state.others.insert(device.ifindex, value);
        }
    }
    state.primary =
        [node_source::<Addr4>(devices).map(Addr4::to_ip), node_source::<Addr6>(devices).map(Addr6::to_ip)]
            .into_iter()
            .flatten()
            .collect();
    state
}

/// The address that frames for the device bear, if it takes no others: ports take those for the bridge, or the bond.
fn own_mac(device: &Device) -> [u8; 6] {
    let is_port = device.port_of.as_deref().is_some_and(|kind| kind != "vrf");
    if is_port { [0; 6] } else { device.mac }
}

fn is_vlan_of(above: &Device, device: &Device) -> bool {
    above.kind == "vlan" && above.link == Some(device.ifindex) && !above.has_foreign_peer
}

/// Link-local IPv6 addresses mean nothing without a device; nobody dials a node by one.
fn is_usable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_multicast(),
    }
}

fn device_flags(device: &Device, role: Option<DeviceRole>, detect_local: &DetectLocal) -> DeviceFlags {
    let is_peer = role == Some(DeviceRole::WORKLOAD) && device.kind == "veth" && device.has_foreign_peer;
    [
        (!matches!(device.link_type, ARPHRD_ETHER | ARPHRD_LOOPBACK), DeviceFlags::L3),
        (detect_local.is_pod_device(&device.name, device.controller.as_deref()), DeviceFlags::POD),
        (is_peer, DeviceFlags::PEER),
    ]
    .into_iter()
    .filter(|(is_true, _)| *is_true)
    .fold(DeviceFlags::default(), |flags, (_, flag)| flags.with(flag))
}

/// The address that packets leaving by `device` get: its own primary one, else the node's.
fn snat_source<A: Address>(device: &Device, devices: &[Device]) -> A {
    primary_address(device).or_else(|| node_source(devices)).unwrap_or_default()
}

/// The node's address: that of the default-route device, else of any device, in the order of their numbers.
fn node_source<A: Address>(devices: &[Device]) -> Option<A> {
    let with_default_route = devices.iter().filter(|device| device.has_default_route);
    let rest = devices.iter().filter(|device| !device.is_loopback && device.name != IPVS_DEVICE);
    with_default_route.chain(rest).find_map(primary_address)
}

fn primary_address<A: Address>(device: &Device) -> Option<A> {
    device
        .addresses
        .iter()
        .filter(|address| address.is_primary && is_usable(address.ip))
        .filter_map(|address| A::from_ip(address.ip))
        .find(|address| !address.is_loopback())
}

/// `--nodeport-addresses`: where NodePorts listen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On every local address.
    #[default]
    All,
    /// On the node's primary address of each family.
    Primary,
    /// On local addresses inside these. A family that has none is closed.
    Cidrs(Vec<IpNet>),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(Self::All),
            "primary" => Ok(Self::Primary),
            list => list
                .split(',')
                .map(|cidr| {
                    cidr.trim().parse().map_err(|_| format!("{cidr:?} is neither `primary` nor a CIDR"))
                })
                .collect::<Result<_, _>>()
                .map(Self::Cidrs),
        }
    }
}

/// The local addresses NodePorts listen on: never loopback ones, which are for local processes only (DESIGN 10).
pub fn nodeport_addresses(state: &NodeState, wanted: &NodePortAddresses) -> BTreeSet<IpAddr> {
    let local = state.addresses.keys().copied().filter(|ip| !ip.is_loopback());
    match wanted {
        NodePortAddresses::All => local.collect(),
        NodePortAddresses::Primary => local.filter(|ip| state.primary.contains(ip)).collect(),
        NodePortAddresses::Cidrs(cidrs) => {
            local.filter(|ip| cidrs.iter().any(|cidr| cidr.contains(ip))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, kind: &str) -> Device {
        Device { name: name.into(), kind: kind.into(), link_type: ARPHRD_ETHER, ..Device::default() }
    }

    fn with_address(device: Device, ip: &str) -> Device {
        let address = DeviceAddress { ip: ip.parse().unwrap(), is_primary: true };
        Device { addresses: vec![address], ..device }
    }

    fn pod(name: &str) -> Device {
        Device { has_foreign_peer: true, ..device(name, "veth") }
    }

    fn port(device: Device, of: &str) -> Device {
        Device { port_of: Some(of.into()), ..device }
    }

    fn routed(device: Device) -> Device {
        Device { has_default_route: true, ..device }
    }

    #[test]
    fn roles_follow_the_rule_table() {
        let uplink = Some(DeviceRole::UPLINK);
        let workload = Some(DeviceRole::WORKLOAD);
        let overlay = Some(DeviceRole::OVERLAY);
        let lo = Device { is_loopback: true, ..device("lo", "") };
        let tun = Device { link_type: 0xfffe, ..device("tun0", "tun") };
        let rows = [
            ("loopback", lo, None),
            ("a card with an address", with_address(device("eth0", ""), "192.0.2.1"), uplink),
            ("a card with a default route only", routed(device("eth0", "")), uplink),
            ("an idle card", device("eth1", ""), None),
            ("a card in a bond", port(with_address(device("eth1", ""), "192.0.2.1"), "bond"), None),
            ("a bond", with_address(device("bond0", "bond"), "192.0.2.1"), uplink),
            ("a vlan", with_address(device("eth0.5", "vlan"), "192.0.2.1"), uplink),
            ("a card under the node's bridge", port(device("eth0", ""), "bridge"), None),
            ("the node's bridge", routed(with_address(device("br0", "bridge"), "192.0.2.1")), uplink),
            ("a CNI's bridge", with_address(device("cni0", "bridge"), "10.244.1.1"), None),
            ("a pod under a bridge", port(pod("veth12"), "bridge"), workload),
            ("a routed pod", pod("cali12"), workload),
            ("a routed pod whose host end has an address", with_address(pod("ptp1"), "10.244.1.1"), workload),
            ("a node that is a container", routed(with_address(pod("eth0"), "172.18.0.2")), uplink),
            ("a veth between devices of the node", device("veth0", "veth"), None),
            ("a pod's netkit", Device { kind: "netkit".into(), ..pod("nk0") }, workload),
            ("flannel", with_address(device("flannel.1", "vxlan"), "10.244.1.0"), overlay),
            ("WireGuard", device("wg0", "wireguard"), overlay),
            ("ipip", device("tunl0", "ipip"), overlay),
            ("gre", device("gre1", "gretap"), overlay),
            ("tun", tun, overlay),
            ("tap", device("tap0", "tun"), None),
            ("nodelocaldns", with_address(device("nodelocaldns", "dummy"), "169.254.20.10"), None),
        ];
        for (name, device, expected) in rows {
            assert_eq!(role(&device, &Patterns::default()), expected, "{name}");
        }
    }

    #[test]
    fn patterns_decide_first_and_alone() {
        let patterns =
            Patterns { uplink: vec!["eth1".into()], workload: vec!["tap*".into()], ..Patterns::default() };
        let rows = [
            ("an idle card that is named", device("eth1", ""), Some(DeviceRole::UPLINK)),
            ("another card", routed(device("eth0", "")), None),
            ("a tap device that is named", device("tap7", "tun"), Some(DeviceRole::WORKLOAD)),
            ("a pod that is not", pod("veth1"), None),
            ("roles without patterns keep their rule", device("wg0", "wireguard"), Some(DeviceRole::OVERLAY)),
        ];
        for (name, device, expected) in rows {
            assert_eq!(role(&device, &patterns), expected, "{name}");
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        let rows = [
            ("eth*", "eth0", true),
            ("eth*", "eth", true),
            ("eth?", "eth", false),
            ("eth?", "eth0", true),
            ("*", "anything", true),
            ("en*s0", "enp3s0", true),
            ("en*s0", "enp3s0f1", false),
            ("eth0", "eth01", false),
        ];
        for (pattern, name, expected) in rows {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    fn node() -> Vec<Device> {
        let lo = Device { is_loopback: true, ..with_address(device("lo", ""), "127.0.0.1") };
        let mut eth0 = routed(with_address(device("eth0", ""), "192.0.2.1"));
        eth0.addresses.push(DeviceAddress { ip: "192.0.2.9".parse().unwrap(), is_primary: false });
        eth0.addresses.push(DeviceAddress { ip: "fe80::1".parse().unwrap(), is_primary: false });
        eth0.addresses.push(DeviceAddress { ip: "2001:db8::1".parse().unwrap(), is_primary: true });
        let wg0 = Device { link_type: 0xfffe, ..with_address(device("wg0", "wireguard"), "10.9.0.1") };
        let ipvs = with_address(device("kube-ipvs0", "dummy"), "10.96.0.1");
        let cni0 = with_address(device("cni0", "bridge"), "10.244.1.1");
        let mut devices = vec![lo, wg0, eth0, pod("veth1"), ipvs, cni0];
        (1u32..).zip(&mut devices).for_each(|(ifindex, device)| device.ifindex = ifindex);
        devices
    }

    #[test]
    fn packets_leave_with_the_devices_own_address_or_the_nodes() {
        let state = node_state(&node(), &Patterns::default(), &DetectLocal::default());
        let value = |ifindex: u32| state.devices[&ifindex].1;
        assert_eq!((value(2).snat4, value(2).flags), (Addr4([10, 9, 0, 1]), DeviceFlags::L3));
        assert_eq!(value(2).snat6.to_ip(), "2001:db8::1".parse::<IpAddr>().unwrap(), "the node's");
        assert_eq!((value(3).snat4, value(3).flags), (Addr4([192, 0, 2, 1]), DeviceFlags::default()));
        assert_eq!(value(4).snat4, Addr4([192, 0, 2, 1]), "a pod's device has none of its own");
        let bridge = state.others[&6];
        assert_eq!((bridge.role, bridge.snat4), (DeviceRole::default(), Addr4([10, 244, 1, 1])));
        assert_eq!(state.others.len(), 1, "neither the loopback device nor IPVS's");
    }

    fn patterns_for(uplink: &str) -> Patterns {
        Patterns { uplink: vec![uplink.into()], ..Patterns::default() }
    }

    #[test]
    fn pods_devices_and_those_below_vlans_are_known() {
        let mut devices = node();
        devices[2].mac = [2, 0, 0, 0, 0, 7];
        let vlan = |name: &str| Device { link: Some(3), ..with_address(device(name, "vlan"), "10.42.0.1") };
        devices.push(Device { ifindex: 7, ..vlan("eth0.42") });
        devices.push(Device { ifindex: 8, link: Some(7), has_foreign_peer: true, ..vlan("moved") });
        devices.push(Device { ifindex: 9, link: Some(2), ..device("macvlan0", "macvlan") });
        let state = node_state(&devices, &Patterns::default(), &DetectLocal::default());
        assert_eq!(state.devices[&3].1.mac, [2, 0, 0, 0, 0, 7]);
        let under_a_bridge =
            node_state(&[port(devices[2].clone(), "bridge")], &patterns_for("eth0"), &DetectLocal::default());
        assert_eq!(under_a_bridge.devices[&3].1.mac, [0; 6], "it takes frames for the bridge");
        let below: Vec<u32> = state
            .receivers
            .iter()
            .filter(|(_, receiver)| receiver.has_vlans)
            .map(|(&ifindex, _)| ifindex)
            .collect();
        assert_eq!(below, [3]);
        let peers = |state: &NodeState| -> Vec<u32> {
            let is_peer = |(_, value): &(String, DeviceValue)| value.flags.has(DeviceFlags::PEER);
            state.devices.iter().filter(|(_, entry)| is_peer(entry)).map(|(&ifindex, _)| ifindex).collect()
        };
        assert_eq!(peers(&state), [4]);
        let state = node_state(&devices, &patterns_for("veth*"), &DetectLocal::default());
        assert_eq!((peers(&state), state.devices[&4].1.role), (vec![], DeviceRole::UPLINK), "not a pod's");
    }

    #[test]
    fn nodeports_listen_where_they_are_told_to() {
        let state = node_state(&node(), &Patterns::default(), &DetectLocal::default());
        let listens = |wanted: &str| {
            let ips = nodeport_addresses(&state, &wanted.parse().unwrap());
            ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(listens(""), "10.9.0.1 10.244.1.1 192.0.2.1 192.0.2.9 2001:db8::1");
        assert_eq!(listens("primary"), "192.0.2.1 2001:db8::1");
        assert_eq!(listens("192.0.2.0/24"), "192.0.2.1 192.0.2.9", "closed for IPv6");
        assert_eq!(listens("10.0.0.0/8,::/0"), "10.9.0.1 10.244.1.1 2001:db8::1");
        assert!("eth0".parse::<NodePortAddresses>().is_err());
        assert!(
            state.addresses.contains_key(&IpAddr::from([127, 0, 0, 1])),
            "the maps know loopback addresses"
        );
    }
}
