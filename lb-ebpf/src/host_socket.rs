//! Which socket of the node would get a packet? A NodePort may have the number of a port from which the node itself
//! dialled somebody; netfilter translates opening packets only, and so would let the answer pass (spec 4.14). And a
//! source port of the node is given to a connection (SNAT) only if no socket waits for the answers.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use core::{
    ffi::c_void,
    ptr::{addr_of, read_volatile},
};

use lb_common::{
    conntrack::TcpFlags,
    family::Protocol,
    flow::{FlowKey, Tuple},
};

use crate::{maps::FamilyMaps, packet::Packet};

/// `BPF_F_CURRENT_NETNS`: the namespace of the packet's device.
const CURRENT_NETNS: u64 = u64::MAX;
/// `TCP_ESTABLISHED`, also a connected UDP socket.
const ESTABLISHED: u32 = 1;
/// `TCP_LISTEN`.
const LISTEN: u32 = 10;

/// True if a socket of the node is connected, or connecting, to the sender of a packet. A bare SYN opens something
/// else. UDP sockets that are not connected cannot be told from listening ones. SCTP sockets cannot be looked up: there
/// it is as netfilter has it, only what opens an association opens it to a frontend.
///
/// `tuple` lies in map memory. A BPF function of its own: its registers are not the callers'.
#[inline(never)]
pub fn is_peer<F: FamilyMaps, P: Packet>(
    packet: &P,
    tuple: &Tuple<F>,
    protocol: Protocol,
    flags: TcpFlags,
) -> bool {
    if protocol == Protocol::SCTP {
        return !flags.opens();
    }
    let tcp = protocol == Protocol::TCP;
    if tcp && flags.opens() {
        return false;
    }
    let socket = lookup(packet.context(), tuple, protocol);
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null, held until it is released below.
    let state = unsafe { read_volatile(addr_of!((*socket).state)) };
    // SAFETY: a socket that a lookup returned, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    if tcp { state != LISTEN } else { state == ESTABLISHED }
}

/// True if a socket of the node, in whatever state, would get packets of `flow`, which lies in map memory.
#[inline(never)]
pub fn waits_for<F: FamilyMaps>(context: *mut c_void, flow: &FlowKey<F>) -> bool {
    let socket = lookup(context, &flow.tuple, flow.protocol);
    if socket.is_null() {
        return false;
    }
    // SAFETY: a socket that a lookup returned, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

/// The socket that packets of `tuple` go to in the namespace of the hook's `context`, or null. To be released.
///
/// `tuple` looks like the kernel's `struct bpf_sock_tuple`: addresses, then ports.
#[inline(always)]
fn lookup<F: FamilyMaps>(context: *mut c_void, tuple: &Tuple<F>, protocol: Protocol) -> *mut bpf_sock {
    let (from, len) = (core::ptr::from_ref(tuple).cast_mut().cast(), size_of::<Tuple<F>>() as u32);
    // SAFETY: valid context; `from` points to `len` readable bytes.
    unsafe {
        match protocol == Protocol::TCP {
            true => bpf_skc_lookup_tcp(context, from, len, CURRENT_NETNS, 0),
            false => bpf_sk_lookup_udp(context, from, len, CURRENT_NETNS, 0),
        }
    }
}
