//! Where does a client stand, and whose address does the backend see? Asked of packets that open a connection.
//!
//! Two questions that look like one. *Scope*, whose traffic policy speaks for the client, follows from who it is
//! (spec 4.22, 4d). *Source* follows from where the answer will pass: what a pod of this node sent is answered to its
//! own device, through this node, and may keep its address; what came in by an uplink is answered by the backend's
//! node directly, past us, unless the backend saw our address. So a pod of another node that is recognised by its
//! address gets the backends of a pod, and SNAT all the same.

use lb_common::{
    device::DeviceFlags,
    frontend::{FrontendFlags, FrontendKind, FrontendValue, Scope},
    settings::DetectLocal,
};

use crate::{
    globals::{detect_local, masquerades_all},
    hook::Hook,
    maps::{DEVICES, FamilyMaps},
    packet::Packet,
};

/// Whose address a backend sees as its client's.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Source {
    /// The client's, unless it is the backend itself (hairpin).
    Kept,
    /// The client's if the backend is on this node, else this node's.
    KeptHere,
    /// The client's wherever the backend is: its node answers the client itself (direct server return).
    KeptThere,
    /// This node's.
    Replaced,
}

/// Whose policy speaks for the client that sent a packet from `addr`, seen at `hook`.
#[inline(always)]
pub fn scope<F: FamilyMaps, P: Packet>(packet: &P, addr: &F::Addr, hook: Hook) -> Scope {
    if hook == Hook::UplinkEgress || is_pod::<F>(packet.ifindex(), addr, hook == Hook::WorkloadIngress) {
        Scope::Internal
    } else {
        Scope::External
    }
}

/// Whose address the backend of a client of `scope` sees. What leaves by an uplink is a process of the node's, which
/// has a node address already.
#[inline(always)]
pub fn source(scope: Scope, frontend: &FrontendValue, hook: Hook) -> Source {
    if masquerades_all() && hook != Hook::UplinkEgress && frontend.kind == FrontendKind::CLUSTER_IP {
        return Source::Replaced;
    }
    match hook {
        Hook::UplinkEgress => Source::Kept,
        Hook::WorkloadIngress if scope == Scope::Internal || detect_local() == DetectLocal::NONE => {
            Source::Kept
        }
        Hook::UplinkIngress if frontend.flags.has(FrontendFlags::DSR) => Source::KeptThere,
        _ => Source::KeptHere,
    }
}

/// True if a packet from `addr` that came in by `ifindex`, a device towards a pod or not, is known to be a pod's. A BPF
/// function of its own, for the sake of its callers' stack.
#[inline(never)]
fn is_pod<F: FamilyMaps>(ifindex: u32, addr: &F::Addr, is_workload: bool) -> bool {
    match detect_local() {
        DetectLocal::DEVICE_ROLE => is_workload,
        // SAFETY: the agent replaces values whole; read at once.
        DetectLocal::CIDR => unsafe { F::pod_cidrs().get(0) }.is_some_and(|cidr| cidr.matches(addr)),
        DetectLocal::DEVICE_NAME => {
            // SAFETY: read at once; the agent replaces values whole.
            unsafe { DEVICES.get(ifindex) }.is_some_and(|device| device.flags.has(DeviceFlags::POD))
        }
        _ => false,
    }
}

/// Where the process behind a socket stands. Its address is not known before the socket is bound; a pod's processes
/// count as a pod unless nobody does.
#[inline(always)]
pub fn process_scope(is_node: bool) -> Scope {
    if !is_node && detect_local() == DetectLocal::NONE { Scope::External } else { Scope::Internal }
}
