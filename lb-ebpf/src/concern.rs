//! May a packet concern us at all? Asked of every packet before any hash map is: the answers are bits of arrays
//! (`lb_common::bit_set`, `lb_common::kind`). Most packets of a node are not ours.

use aya_ebpf::btf_maps::Array;
use lb_common::{bit_set, family::Be16, kind::Kind, limits, next_hop::Macs, vip};

use crate::{
    flood,
    globals::snat_ports,
    hook::Hook,
    kinds,
    maps::{DEVICES, FamilyMaps, PORTS, TARGET_PORTS, VIP_HASHES},
    packet::Packet,
    parse::Headers,
    service_cidr,
};

type BitSet = Array<u64, { limits::BIT_SET_WORDS as usize }>;

#[inline(always)]
fn has(set: &BitSet, number: u16) -> bool {
    set.get(bit_set::word(number)).is_some_and(|word| word & bit_set::bit(number) != 0)
}

/// True if frontends use the port, or did.
#[inline(always)]
pub fn has_frontends(port: Be16) -> bool {
    has(&PORTS, port.get())
}

/// True if a packet to `port` may concern XDP: frontends use it, or it may be the source port that a connection was given
/// (SNAT). What is answered to another is left to tc.
#[inline(always)]
pub fn xdp(port: Be16) -> bool {
    let (min, count) = snat_ports();
    (port.get() as u32).wrapping_sub(min) < count || has_frontends(port)
}

/// True if the kernel says that a frame is not for the uplink it came in by: it is in a VLAN, whose own device will see it, or
/// addressed to another device, as of what a switch floods somebody who listens to everything (promiscuous mode) gets to see. A
/// bridge's port takes frames for the bridge.
#[inline(always)]
pub fn is_for_others<P: Packet>(packet: &P) -> bool {
    packet.is_in_vlan() || (packet.is_addressed_elsewhere() && address(packet) != Some([0; 6]))
}

/// The same, asked by a hook that the kernel tells nothing, of what opens a connection.
#[inline(always)]
pub fn is_addressed<P: Packet>(packet: &P) -> bool {
    let to = packet.read::<Macs>(0).map(|macs| macs.0[0]);
    address(packet).is_some_and(|own| own == [0; 6] || to == Some(own))
}

/// The link-layer address of the device that a frame came in by; zero: it takes frames to any.
#[inline(always)]
fn address<P: Packet>(packet: &P) -> Option<[u8; 6]> {
    // SAFETY: replaced whole by the agent; read within this run.
    unsafe { DEVICES.get(packet.ifindex()) }.map(|device| device.mac)
}

/// True if a packet with `headers` may concern tc at `hook`: it may dial a frontend, belong to a connection of a kind that is
/// translated there, or go to an address that is ours whatever the port.
#[inline(always)]
pub fn tc<F: FamilyMaps>(headers: &Headers<F>, hook: Hook) -> bool {
    let (src_port, dst_port) = (headers.flow.tuple.src_port.get(), headers.flow.tuple.dst_port.get());
    let kinds = kinds::existing();
    let exist = |these: u32| kinds & these != 0;
    let belongs = match hook {
        Hook::UplinkIngress | Hook::WorkloadIngress => {
            exist(Kind::Forwarded.bit() | Kind::Host.bit() | Kind::Beside.bit())
                // The client may dial a backend from a port from which it dialled a frontend.
                || (exist(Kind::Kept.bit()) && has(&TARGET_PORTS, dst_port))
        }
        Hook::UplinkEgress | Hook::WorkloadEgress => {
            exist(Kind::Host.bit())
                || (exist(Kind::Kept.bit() | Kind::Beside.bit()) && has(&TARGET_PORTS, src_port))
        }
    };
    if belongs || flood::is_recent() {
        return true;
    }
    if hook == Hook::WorkloadEgress {
        return false;
    }
    let dst = &headers.flow.tuple.dst;
    has(&PORTS, dst_port) || has(&VIP_HASHES, vip::hash(dst)) || service_cidr::contains::<F>(dst)
}
