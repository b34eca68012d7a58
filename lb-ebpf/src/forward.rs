//! The way of a packet that the program forwards itself: FIB lookup, neighbour, redirect.
//!
//! A packet whose source became a node address cannot go up the stack: it would be dropped as a martian. The kernel
//! resolves the neighbour (`bpf_redirect_neigh`, Linux 5.10), once a second, so a next hop that is not yet known works too, as do
//! devices without link-layer addresses. In XDP nobody resolves anything: a way that has no neighbour yet, is too
//! narrow, or leads to a device that takes no frames from XDP is left to tc.

use aya_ebpf::{bindings::bpf_fib_lookup as FibParams, helpers::bpf_fib_lookup};
use lb_common::{
    conntrack::Coarse,
    device::{DeviceFlags, DeviceRole, DeviceValue},
    family::{Address as _, Protocol, V4, V6},
    flow::Tuple,
    next_hop::{self, Macs, Manner, NextHopValue},
    verdict::{DropReason, Verdict},
};

use crate::{
    globals::forwards_pods,
    maps::DEVICES,
    nat::FamilyRewrite,
    packet::{NextHop, Packet, Refused},
    parse::{ETHERNET_LEN, Headers},
};

/// Results of `bpf_fib_lookup` (`BPF_FIB_LKUP_RET_…`).
const SUCCESS: i64 = 0;
const NOT_FORWARDED: i64 = 4;
const NO_NEIGHBOUR: i64 = 7;
const TOO_BIG: i64 = 8;

/// Length of a UDP header.
const UDP_LEN: u32 = 8;
/// Length of a TCP header with as many options as it may have.
const TCP_LEN_MAX: u32 = 60;

/// How a family's addresses stand in the FIB parameters.
pub trait FamilyRoute: FamilyRewrite {
    /// Sets source and destination.
    fn set(params: &mut FibParams, tuple: &Tuple<Self>);
}

impl FamilyRoute for V4 {
    #[inline(always)]
    fn set(params: &mut FibParams, tuple: &Tuple<V4>) {
        params.__bindgen_anon_3.ipv4_src = tuple.src.word(0);
        params.__bindgen_anon_4.ipv4_dst = tuple.dst.word(0);
    }
}

impl FamilyRoute for V6 {
    #[inline(always)]
    fn set(params: &mut FibParams, tuple: &Tuple<V6>) {
        let (src, dst) = (tuple.src, tuple.dst);
        params.__bindgen_anon_3.ipv6_src = [src.word(0), src.word(1), src.word(2), src.word(3)];
        params.__bindgen_anon_4.ipv6_dst = [dst.word(0), dst.word(1), dst.word(2), dst.word(3)];
    }
}

/// Where the routing table sends a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To a neighbour, by [`Way`].
    Via,
    /// Up the stack: the destination is this node's own.
    Local,
}

/// A way through a device, as the last [`route`] found it.
#[repr(C)]
pub struct Way<F: FamilyRoute> {
    params: FibParams,
    next_hop: NextHop,
    /// Source of this node's own packets on the device; zero: none is known. Of a way that is remembered.
    pub node: F::Addr,
    /// Bytes that a tunnel's header adds to the packet.
    added: u16,
    /// How its packets are sent.
    manner: Manner,
    /// How tc will send packets that follow; [`Manner::PLAIN`]: none may.
    later: Manner,
    /// 1: the packet came in by a device, and does not leave by one.
    pub comes_in: u32,
}

impl<F: FamilyRoute> Way<F> {
    /// The device.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.next_hop.ifindex
    }

    /// Goes where the last packets went.
    #[inline(always)]
    pub fn follow(&mut self, hop: &NextHopValue<F>) {
        self.node = hop.node;
        self.next_hop.ifindex = hop.ifindex;
        self.next_hop.macs = hop.macs;
        self.manner = hop.manner;
    }

    /// Notes how a packet is sent, and how those after it.
    #[inline(always)]
    const fn becomes(&mut self, manner: Manner, later: Manner) {
        self.manner = manner;
        self.later = later;
    }

    /// Decides how tc sends a packet that came in, to a neighbour that is known. Into a pod goes what nothing of this node's but us
    /// wants to see: it is spared another turn in this CPU's backlog. What has no link-layer addresses the kernel sends.
    #[inline(always)]
    fn choose(&mut self) {
        match self.device() {
            Some(device) if forwards_pods() && device.flags.has(DeviceFlags::PEER) => {
                self.becomes(Manner::INTO_POD, Manner::INTO_POD);
            }
            Some(device) if !device.flags.has(DeviceFlags::L3) => {
                self.becomes(Manner::PLAIN, Manner::ADDRESSED)
            }
            _ => {}
        }
    }

    /// True if packets of its addresses may follow, out of `P`'s hook.
    #[inline(always)]
    pub fn may_be_remembered<P: Packet>(&self) -> bool {
        P::HANDS_ON || self.later != Manner::PLAIN
    }

    /// Lets packets of these addresses that come in by `from` follow, from `asked` on. A BPF function of its own: the
    /// addresses it copies take none of its callers' stack.
    #[inline(never)]
    pub fn remember(&mut self, hop: &mut NextHopValue<F>, tuple: &Tuple<F>, from: u32, asked: Coarse) {
        self.node = self.device().map_or_else(F::Addr::default, F::snat_address);
        hop.src = tuple.src;
        hop.dst = tuple.dst;
        hop.node = self.node;
        hop.from = from;
        hop.ifindex = self.next_hop.ifindex;
        hop.asked = asked;
        hop.macs = self.next_hop.macs;
        hop.mtu = self.mtu().saturating_add(self.added);
        hop.manner = self.later;
    }

    /// What the next hop takes of the sender's packet, after a [`route`] that was given a length: bytes from the IP header
    /// on.
    #[inline(always)]
    pub fn mtu(&self) -> u16 {
        // SAFETY: either member of the union is a plain integer; the kernel has written the MTU (Linux 5.12).
        unsafe { self.params.__bindgen_anon_1.mtu_result }.saturating_sub(self.added)
    }

    /// Its link-layer address.
    #[inline(always)]
    pub fn device_mac(&self) -> &[u8; 6] {
        &self.next_hop.macs.0[1]
    }

    /// True if the way leads back by the device that the frame `packet` came in by, and the frame is addressed to it.
    #[inline(always)]
    pub fn starts_at<P: Packet>(&self, packet: &P) -> bool {
        self.ifindex() == packet.ifindex()
            && packet.read::<Macs>(0).is_some_and(|macs| macs.0[0] == *self.device_mac())
    }

    /// What the agent knows of the device.
    #[inline(always)]
    pub fn device(&self) -> Option<&'static DeviceValue> {
        // SAFETY: replaced whole by the agent; read within this run.
        unsafe { DEVICES.get(self.next_hop.ifindex) }
    }

    /// True if the device sends frames that an XDP program of `from` gives it.
    #[inline(always)]
    fn takes_frames(&self, from: u32) -> bool {
        self.ifindex() == from || self.device().is_some_and(|device| device.flags.has(DeviceFlags::XDP))
    }

    /// True if the device leads to a pod of this node.
    #[inline(always)]
    pub fn leads_to_workload(&self) -> bool {
        self.device().is_some_and(|device| device.role == DeviceRole::WORKLOAD)
    }
}

/// This CPU's memory of where packets with `tuple`'s addresses went. Packet programs alone use it, with bottom halves
/// disabled.
#[inline(always)]
pub fn remembered<F: FamilyRoute>(tuple: &Tuple<F>) -> Option<&'static mut NextHopValue<F>> {
    let hop = F::next_hops().get_ptr_mut(next_hop::slot(tuple))?;
    // SAFETY: an array element stays; nobody else uses this CPU's during this run.
    Some(unsafe { &mut *hop })
}

/// Bytes from the IP header on of the largest packet that `packet` is on the wire: one segment of it, when hardware
/// or the stack will make several of it. 0 if that cannot be told: such an SCTP packet is a list of those its sender
/// has cut (`GSO_BY_FRAGS`).
#[inline(always)]
pub fn wire_len<F: FamilyRoute, P: Packet>(packet: &P, headers: &Headers<F>) -> u16 {
    let payload = packet.gso_size();
    if payload == 0 {
        return headers.ip_len as u16;
    }
    if headers.flow.protocol == Protocol::SCTP {
        return 0;
    }
    let transport = if headers.flow.protocol == Protocol::TCP {
        let bytes: Option<[u8; 2]> = packet.read(headers.l4 + 12);
        bytes.map_or(TCP_LEN_MAX, |[offset, _]| (offset as u32 >> 4) * 4)
    } else {
        UDP_LEN
    };
    ((headers.l4 - headers.l3) as u32 + transport + payload) as u16
}

/// Looks up the way of a packet with `tuple` and of `len` bytes from the IP header on; 0: however long.
#[inline(always)]
pub fn route<F: FamilyRoute, P: Packet>(
    packet: &P,
    tuple: &Tuple<F>,
    len: u16,
    way: &mut Way<F>,
) -> Result<Route, DropReason> {
    route_added(packet, tuple, len, 0, way)
}

/// The same of a packet to which `added` bytes will be added: a tunnel's header.
#[inline(always)]
pub fn route_added<F: FamilyRoute, P: Packet>(
    packet: &P,
    tuple: &Tuple<F>,
    len: u16,
    added: u16,
    way: &mut Way<F>,
) -> Result<Route, DropReason> {
    way.added = added;
    way.node = F::Addr::default();
    // SAFETY: integers only, all zeroes is a value.
    way.params = unsafe { core::mem::zeroed() };
    way.params.family = F::ADDRESS_FAMILY;
    way.params.ifindex = packet.ifindex();
    way.params.__bindgen_anon_1.tot_len = len.saturating_add(added);
    F::set(&mut way.params, tuple);
    let size = size_of::<FibParams>() as i32;
    // SAFETY: valid context; `params` is initialised and `size` bytes long.
    let result = unsafe { bpf_fib_lookup(packet.context(), &raw mut way.params, size, 0) };
    way.next_hop.ifindex = way.params.ifindex;
    way.next_hop.macs = Macs([way.params.dmac, way.params.smac]);
    way.becomes(Manner::PLAIN, Manner::PLAIN);
    if !P::HANDS_ON && result == SUCCESS && way.comes_in != 0 {
        way.choose();
    }
    if P::HANDS_ON {
        return match result {
            SUCCESS if way.takes_frames(packet.ifindex()) => Ok(Route::Via),
            NOT_FORWARDED => Ok(Route::Local),
            _ => Err(Verdict::HandedOn),
        };
    }
    match result {
        SUCCESS | NO_NEIGHBOUR => Ok(Route::Via),
        NOT_FORWARDED => Ok(Route::Local),
        TOO_BIG => Err(Verdict::TooBig),
        _ => Err(Verdict::NoRoute),
    }
}

/// Gives a packet without link-layer header one. A BPF function of its own: its registers are not the callers'.
#[inline(never)]
fn links<P: Packet>(packet: &mut P) -> bool {
    packet.add_link().is_ok()
}

/// Addresses a frame to the neighbour that is known, and sends it out of the device, or into the pod.
#[inline(always)]
fn addressed<F: FamilyRoute, P: Packet>(packet: &mut P, way: &Way<F>) -> Result<(), Refused> {
    packet.write(0, &way.next_hop.macs)?;
    if way.manner == Manner::INTO_POD { packet.enter(way.ifindex()) } else { packet.send_raw(way.ifindex()) }
}

/// Sends a rewritten packet, whose IP header is at `l3`, on its way. The lookup has put the gateway, of either family, in the
/// destination's place. The kernel takes no packet without link-layer header here, as they come in by WireGuard, ipip or tun.
#[inline(always)]
pub fn send<F: FamilyRoute, P: Packet>(packet: &mut P, l3: usize, way: &mut Way<F>) -> Verdict {
    if !P::HANDS_ON {
        if l3 < ETHERNET_LEN {
            if !links(packet) {
                return Verdict::RewriteFailed;
            }
        } else if way.manner != Manner::PLAIN {
            return match addressed(packet, way) {
                Ok(()) => Verdict::Redirected,
                Err(_) => Verdict::NoRoute,
            };
        }
        way.next_hop.neighbour.nh_family = way.params.family as u32;
        // SAFETY: every member of both unions is plain integers.
        way.next_hop.neighbour.__bindgen_anon_1.ipv6_nh = unsafe { way.params.__bindgen_anon_4.ipv6_dst };
    }
    match packet.send(&mut way.next_hop) {
        Ok(()) => Verdict::Redirected,
        Err(_) => Verdict::NoRoute,
    }
}
