//! Follows devices and addresses: netlink → [`super::devices`] → maps, attachments, NodePort addresses.
//! Runs for as long as the agent.
//!
//! What must stay true: netlink's messages only say *that* something changed; what is there is read anew, so a lost
//! message (ENOBUFS) costs nothing but time. The maps are written before a program is attached, because a program
//! asks them what its device is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
    sys::SocketAddr,
};
use thiserror::Error;
use tokio::{
    sync::{Mutex, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    attach::Attacher,
    devices::{self, Device, DeviceAddress, NodePortAddresses, NodeState, Patterns, Receiver},
    local::DetectLocal,
    node_maps::{NodeMapError, NodeMaps},
    pins::Pins,
    xdp::XdpPlace,
};
use crate::model::node::NodeAddresses;

/// Messages that come this close together are answered by one reading.
const SETTLE: Duration = Duration::from_millis(20);
/// Reading anew without any message.
const FULL_PERIOD: Duration = Duration::from_secs(60);
/// From a failure to the next try.
const RETRY: Duration = Duration::from_secs(1);

/// What can go wrong while following.
#[derive(Debug, Error)]
pub enum FollowError {
    /// The netlink socket.
    #[error("open a netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// A dump.
    #[error("read devices and addresses through netlink: {0}")]
    Netlink(#[from] rtnetlink::Error),
    /// A map.
    #[error(transparent)]
    Map(#[from] NodeMapError),
}

/// What to follow for.
#[derive(Clone, Debug)]
pub struct FollowConfig {
    /// Roles given by the operator.
    pub patterns: Patterns,
    /// Where NodePorts listen.
    pub nodeport_addresses: NodePortAddresses,
    /// By what pods are known.
    pub detect_local: DetectLocal,
}

/// Follows devices; see the module.
pub struct Follower {
    config: FollowConfig,
    node_maps: NodeMaps,
    netlink: Netlink,
    state: NodeState,
    /// podCIDRs of the own Node object, once it is known.
    pod_cidrs: Option<Vec<IpNet>>,
    attacher: Arc<Mutex<Attacher>>,
    addresses: watch::Sender<NodeAddresses>,
    /// How devices received when they were attached.
    receivers: BTreeMap<u32, Receiver>,
    /// Devices that could not be attached, to be tried again.
    failed: BTreeMap<u32, String>,
    /// Devices whose driver runs the XDP program: they take frames from XDP.
    native: BTreeSet<u32>,
}

impl Follower {
    /// Reads what is there and writes the maps; attaches nothing yet. Must be called in the node's network namespace.
    pub async fn new(
        config: FollowConfig,
        pins: &Pins,
        attacher: Arc<Mutex<Attacher>>,
    ) -> Result<(Self, watch::Receiver<NodeAddresses>), FollowError> {
        let node_maps = NodeMaps::open(pins.dir())?;
        let netlink = Netlink::open()?;
        let (addresses, receiver) = watch::channel(NodeAddresses::default());
        let mut follower = Self {
            config,
            node_maps,
            netlink,
            state: NodeState::default(),
            pod_cidrs: None,
            attacher,
            addresses,
            receivers: BTreeMap::new(),
            failed: BTreeMap::new(),
            native: BTreeSet::new(),
        };
        follower.refresh().await?;
        Ok((follower, receiver))
    }

    /// Attaches what is there, tells `attached` once each device has been tried, then follows, until `stop`, also the
    /// `pod_cidrs` of the own Node.
    pub async fn run(
        mut self,
        attached: watch::Sender<bool>,
        mut pod_cidrs: watch::Receiver<Option<Vec<IpNet>>>,
        stop: CancellationToken,
    ) {
        // What has been said by then is news as well.
        pod_cidrs.mark_changed();
        self.attach().await;
        attached.send_replace(true);
        loop {
            let wait = if self.failed.is_empty() { FULL_PERIOD } else { RETRY };
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = pod_cidrs.changed() => self.pod_cidrs = pod_cidrs.borrow_and_update().clone(),
                alive = timeout(wait, self.netlink.changed()) => {
                    if alive == Ok(false) {
                        self.reopen(&stop).await;
                    }
                }
            }
            match self.refresh().await {
                Ok(()) => self.attach().await,
                Err(error) => {
                    tracing::error!("{error}");
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn reopen(&mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            match Netlink::open() {
                Ok(netlink) => {
                    self.netlink = netlink;
                    return;
                }
                Err(error) => tracing::error!("open a netlink socket: {error}"),
            }
            sleep(RETRY).await;
        }
    }

    /// Reads everything anew; writes maps and NodePort addresses.
    async fn refresh(&mut self) -> Result<(), FollowError> {
        let found = self.netlink.dump().await?;
        let state = devices::node_state(&found, &self.config.patterns, &self.config.detect_local);
        self.node_maps.write(&state, &self.native)?;
        if let Some(cidrs) = self.config.detect_local.pod_cidrs(self.pod_cidrs.as_deref()) {
            self.node_maps.write_pod_cidrs(cidrs)?;
        }
        let listen = NodeAddresses(devices::nodeport_addresses(&state, &self.config.nodeport_addresses));
        self.addresses.send_if_modified(|known| {
            let differs = *known != listen;
            if differs {
                *known = listen;
            }
            differs
        });
        self.state = state;
        Ok(())
    }

    /// Brings the attachments in line with the last reading.
    async fn attach(&mut self) {
        let mut attacher = self.attacher.lock().await;
        let attached: BTreeMap<u32, (String, String)> = attacher
            .attachments()
            .map(|attachment| (attachment.ifindex, (attachment.device.clone(), attachment.role.clone())))
            .collect();
        for ifindex in attacher.pinned_devices().into_iter().chain(attached.keys().copied()) {
            if !self.state.devices.contains_key(&ifindex) {
                match attacher.detach_device(ifindex) {
                    Ok(()) => tracing::info!(ifindex, "device forgotten"),
                    Err(error) => tracing::warn!(ifindex, "forget device: {error}"),
                }
            }
        }
        self.failed.retain(|ifindex, _| self.state.devices.contains_key(ifindex));
        for (&ifindex, (name, value)) in &self.state.devices {
            let role = value.role.name();
            let receiver = &self.state.receivers[&ifindex];
            if attached.get(&ifindex) == Some(&(name.clone(), role.to_owned()))
                && self.receivers.get(&ifindex) == Some(receiver)
            {
                continue;
            }
            let attached = attacher
                .attach_device(ifindex, name, value.role, value.flags)
                .and_then(|()| attacher.attach_xdp(ifindex, value.role, receiver));
            match attached {
                Ok(()) => {
                    self.failed.remove(&ifindex);
                    tracing::info!(device = name, ifindex, role, "attached");
                }
                Err(error) => {
                    let text = error.to_string();
                    if self.failed.insert(ifindex, text.clone()).as_ref() != Some(&text) {
                        tracing::error!(device = name, ifindex, role, "attach: {text}");
                    }
                }
            }
        }
        self.receivers.clone_from(&self.state.receivers);
        attacher.set_failures(self.failed.values().cloned().collect());
        let native = attacher.attachments().filter(|attachment| attachment.xdp.place == XdpPlace::Native);
        self.native = native.map(|attachment| attachment.ifindex).collect();
        if let Err(error) = self.node_maps.write(&self.state, &self.native) {
            tracing::error!("{error}");
        }
    }
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A netlink connection with its subscriptions.
struct Netlink {
    handle: Handle,
    messages: Messages,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        tokio::spawn(connection);
        Ok(Self { handle, messages })
    }

    /// Waits for a change that matters, and a little longer for others that come with it. False: the connection is
    /// gone.
    async fn changed(&mut self) -> bool {
        loop {
            match self.messages.next().await {
                Some((message, _)) if matters(&message) => break,
                Some(_) => {}
                None => return false,
            }
        }
        sleep(SETTLE).await;
        while self.messages.try_recv().is_ok() {}
        true
    }

    /// Every device with its addresses and default routes, in the order of their numbers.
    async fn dump(&self) -> Result<Vec<Device>, rtnetlink::Error> {
        let links: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await?;
        let addresses: Vec<AddressMessage> = self.handle.address().get().execute().try_collect().await?;
        let mut routes =
            self.default_routes(RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()).await?;
        routes.extend(self.default_routes(RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()).await?);
        let names: HashMap<u32, String> = links.iter().filter_map(name_of).collect();
        let controllers: HashMap<u32, u32> = links.iter().filter_map(controller_of).collect();
        let mut devices: Vec<Device> = links.into_iter().map(device_of).collect();
        devices.sort_by_key(|device| device.ifindex);
        for device in &mut devices {
            device.has_default_route = routes.contains(&device.ifindex);
            let controller = controllers.get(&device.ifindex);
            device.controller = controller.and_then(|ifindex| names.get(ifindex)).cloned();
            device.addresses = addresses
                .iter()
                .filter(|address| address.header.index == device.ifindex)
                .filter_map(address_of)
                .collect();
        }
        Ok(devices)
    }

    /// ifindexes of the default routes of one family's main table.
    async fn default_routes(&self, mut request: RouteMessage) -> Result<Vec<u32>, rtnetlink::Error> {
        request.header.table = RouteHeader::RT_TABLE_UNSPEC;
        let mut routes = self.handle.route().get(request).execute();
        let mut found = Vec::new();
        while let Some(route) = routes.try_next().await? {
            if is_default(&route) && route.header.table == RouteHeader::RT_TABLE_MAIN {
                found.extend(ways(&route));
            }
        }
        Ok(found)
    }
}

/// Routes come and go with every pod; only default routes decide anything.
fn matters(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => is_default(route),
        _ => true,
    }
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

fn ways(route: &RouteMessage) -> Vec<u32> {
    let mut found = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => found.push(*ifindex),
            RouteAttribute::MultiPath(hops) => found.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    found
}

fn name_of(link: &LinkMessage) -> Option<(u32, String)> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some((link.header.index, name.clone())),
        _ => None,
    })
}

/// The ifindex of the bridge, bond, … that a device is a port of.
fn controller_of(link: &LinkMessage) -> Option<(u32, u32)> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(ifindex) => Some((link.header.index, *ifindex)),
        _ => None,
    })
}

fn device_of(link: LinkMessage) -> Device {
    let mut device = Device {
        ifindex: link.header.index,
        link_type: link.header.link_layer_type.into(),
        is_loopback: link.header.flags.contains(LinkFlags::Loopback),
        ..Device::default()
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name = name,
            LinkAttribute::Address(bytes) => device.mac = bytes.try_into().unwrap_or_default(),
            LinkAttribute::Link(ifindex) => device.link = Some(ifindex),
            LinkAttribute::LinkNetNsId(_) => device.has_foreign_peer = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => device.kind = kind.to_string(),
                        LinkInfo::PortKind(kind) => device.port_of = Some(kind.to_string()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    device
}

/// The address that a message tells of, unless duplicate address detection failed for it. On point-to-point links
/// `IFA_ADDRESS` is the peer's, so `IFA_LOCAL` goes first.
fn address_of(message: &AddressMessage) -> Option<DeviceAddress> {
    let unusable = AddressHeaderFlags::Dadfailed | AddressHeaderFlags::Tentative;
    if message.header.flags.intersects(unusable) {
        return None;
    }
    let (mut local, mut address, mut deprecated) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(flags) => {
                deprecated = flags.intersects(AddressFlags::Deprecated | AddressFlags::Secondary);
            }
            _ => {}
        }
    }
    let is_primary = message.header.scope == AddressScope::Universe && !deprecated;
    Some(DeviceAddress { ip: local.or(address)?, is_primary })
}
