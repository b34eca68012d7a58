//! Direct server return: a client's packet for a backend elsewhere goes to the backend's node as it is, behind a header
//! of ours (IPIP, RFC 2003; IP6IP6, RFC 2473), and that node answers the client itself.
//!
//! The node that was dialled calls [`send`]. The other one's tc program calls [`unwrap`] and then treats what was inside as
//! a packet that came from the network, but chooses among its own backends, so that nothing is sent twice. Its XDP program
//! does [both at once](unwrap_known) for connections that are known, and leaves the rest wrapped. The outer
//! header has the inner one's traffic class and flow label, so congestion is seen (RFC 6040) and flows spread alike, and
//! always "don't fragment": what does not fit is answered ([`crate::icmp_error`]).

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{
    conntrack::ConnectionFlags,
    device::NodeAddressKey,
    flow::Tuple,
    frontend::{FrontendFlags, FrontendKind},
    peer::{PeerKey, TunnelCounter},
    verdict::Verdict,
};

use crate::{
    answer::Answer,
    conntrack,
    counters::{self, Seen},
    forward::{self, Way},
    frontend,
    maps::TUNNELS,
    nat::{self, Hop},
    packet::{Packet, Refused},
    parse::{Carries, ETHERNET_LEN, Fragment, Headers, parse},
    proof, quote,
    work::{Balanced, Work},
};

/// What [`unwrap`] says of a tunnel that is none of ours: no code of [`Carries`].
pub const NOT_OURS: u32 = u32::MAX;
/// Congestion experienced (RFC 3168, 5).
const CONGESTED: u8 = 3;

/// Sends a packet by `way` in a tunnel whose ends are the addresses of `to`.
#[inline(never)]
pub fn send<F: Balanced, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    way: &mut Way<F>,
    answer: &mut Answer<F>,
) -> Verdict {
    match wrap(packet, headers, to, answer) {
        Ok(()) => match forward::send(packet, headers.l3, way) {
            Verdict::Redirected => Verdict::Tunnelled,
            verdict => verdict,
        },
        Err(Refused) => Verdict::RewriteFailed,
    }
}

/// Puts the outer header before the packet.
#[inline(always)]
fn wrap<F: Balanced, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    to: &Tuple<F>,
    answer: &mut Answer<F>,
) -> Result<(), Refused> {
    if headers.ip_len > u16::MAX as u32 - F::HEADER_LEN as u32 {
        return Err(Refused);
    }
    let first_word = packet.read(headers.l3).ok_or(Refused)?;
    answer.ip = F::header((to.src, to.dst), first_word, F::TUNNEL, headers.ip_len as u16);
    packet.wrap::<F>(F::HEADER_LEN)?;
    packet.write(headers.l3, &answer.ip)
}

/// Takes the packet whose outer headers stand in the scratch memory out of its tunnel, if it was sent here to one of
/// this node's backends; what it then is, as a code of [`Carries`], its headers in the outer ones' place.
///
/// Ours is what a peer sent to an address of this node and has inside a packet for a frontend with direct server return.
/// A NodePort is dialled at the other node's address, which is no frontend here, but this node has it on its own. Or an
/// ICMP error about an answer of such a connection. Everything else stays as it came, strangers' tunnels too.
#[inline(always)]
pub fn unwrap<F: Balanced, P: Packet>(packet: &mut P) -> u32 {
    let Some(work) = Work::<F>::new() else { return NOT_OURS };
    let addr = work.headers.flow.tuple.dst;
    // SAFETY: only asked whether it exists.
    if unsafe { F::node_addresses().get(NodeAddressKey { addr }) }.is_none() {
        return NOT_OURS;
    }
    packet.reach(work.headers.l3 + 2 * F::HEADER_LEN);
    work.dialled.addr = addr;
    let is_known = is_peer::<F>(&work.headers.flow.tuple.src);
    match inside(packet, work) {
        Some(_) if !is_known => {
            count(|counter| counter.strangers += 1);
            NOT_OURS
        }
        Some(carries) if packet.unwrap(F::HEADER_LEN).is_ok() => {
            work.headers.l3 -= F::HEADER_LEN;
            work.headers.l4 -= F::HEADER_LEN;
            work.is_tunnelled = 1;
            if work.is_congested != 0 {
                packet.mark_congested();
            }
            count(|counter| counter.unwrapped += 1);
            carries as u32
        }
        _ => NOT_OURS,
    }
}

/// [`unwrap`] for a hook that hands on: takes the packet out of its tunnel and translates it, if it is one of a known
/// connection to a backend of this node; the verdict's code, or [`NOT_OURS`] of what stays as it came.
///
/// All is decided before anything is changed: what tc has to do, it must find in its tunnel, or it would not know that the
/// packet may go into no other. That is what opens a connection, fragments, what met congestion, ICMP errors, VLAN tags.
#[inline(always)]
pub fn unwrap_known<F: Balanced, P: Packet>(packet: &mut P) -> u32 {
    let Some(work) = Work::<F>::new() else { return NOT_OURS };
    let ends = &work.headers.flow.tuple;
    // SAFETY: only asked whether it exists.
    let ends_here = unsafe { F::node_addresses().get(NodeAddressKey { addr: ends.dst }) }.is_some();
    if work.headers.l3 != ETHERNET_LEN || !ends_here || !is_peer::<F>(&ends.src) {
        return NOT_OURS;
    }
    work.dialled.addr = ends.dst;
    if inside(packet, work) != Some(Carries::Transport)
        || work.is_congested != 0
        || work.headers.fragment != Fragment::Whole
    {
        return NOT_OURS;
    }
    let Some(entry) = conntrack::lookup(&work.headers.flow) else { return NOT_OURS };
    if entry.flags != ConnectionFlags::default()
        || !conntrack::holds(entry, &work.headers)
        || packet.unwrap(F::HEADER_LEN).is_err()
    {
        return NOT_OURS;
    }
    let Work { headers, opening, .. } = work;
    headers.l3 -= F::HEADER_LEN;
    headers.l4 -= F::HEADER_LEN;
    count(|counter| counter.unwrapped += 1);
    let verdict = match nat::rewrite_here(packet, headers, &entry.to, Hop::No) {
        Ok(()) => Verdict::Translated,
        Err(Refused) => Verdict::RewriteFailed,
    };
    opening.service_port = entry.service_port;
    opening.backend = entry.backend;
    let bytes = packet.counted_len(headers.l3 as u32 + headers.ip_len);
    counters::count(
        opening.outcome(verdict),
        &Seen { flow: &headers.flow, bytes, ifindex: packet.ifindex() },
    );
    verdict as u32
}

/// True if `addr` may send tunnels here.
#[inline(never)]
fn is_peer<F: Balanced>(addr: &F::Addr) -> bool {
    let key = PeerKey::<F>::lookup(*addr);
    F::peers().get(&Key::new(key.prefix_len, key.addr)).is_some()
}

#[inline(always)]
fn count(note: impl FnOnce(&mut TunnelCounter)) {
    if let Some(counter) = TUNNELS.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot; programs of the packet hooks run with bottom halves disabled.
        note(unsafe { &mut *counter });
    }
}

/// Reads what is in a tunnel and finds out whether it is ours. Congestion that could not be told its sender is a reason
/// to drop it (RFC 6040, 4.2), as the stack does with a tunnel that ends nowhere.
#[inline(always)]
fn inside<F: Balanced, P: Packet>(packet: &mut P, work: &mut Work<F>) -> Option<Carries> {
    let outer: [u8; 4] = packet.read(work.headers.l3)?;
    work.headers.l3 += F::HEADER_LEN;
    let inner: [u8; 4] = packet.read(work.headers.l3)?;
    if F::ecn(outer) == CONGESTED && F::ecn(inner) == 0 {
        return None;
    }
    work.is_congested = (F::ecn(outer) == CONGESTED) as u32;
    let carries = parse(packet, &mut work.headers)?;
    let is_ours = match carries {
        Carries::Transport => is_served(work),
        Carries::Icmp if P::HANDS_ON => false,
        Carries::Icmp => quote::read(packet, &work.headers, &mut work.quote).is_some() && is_answered(work),
        Carries::Tunnel => false,
    };
    if is_ours { Some(carries) } else { None }
}

/// True if a frontend with direct server return is dialled, which `work.dialled` then is.
#[inline(always)]
fn is_served<F: Balanced>(work: &mut Work<F>) -> bool {
    let own = work.dialled.addr;
    frontend::dial(&work.headers, &mut work.dialled);
    if let Some(frontend) = frontend::lookup(&work.dialled) {
        return frontend.flags.has(FrontendFlags::DSR);
    }
    work.dialled.addr = own;
    frontend::lookup(&work.dialled).is_some_and(|frontend| {
        frontend.kind == FrontendKind::NODE_PORT && frontend.flags.has(FrontendFlags::DSR)
    })
}

/// True if an ICMP error is about an answer of a connection to a backend of this node.
#[inline(always)]
fn is_answered<F: Balanced>(work: &mut Work<F>) -> bool {
    let entry = &mut work.opening.entry;
    proof::read_anywhere(&work.quote.answer, entry) && entry.flags == ConnectionFlags::default()
}
